//! Failures outside our programs: keys that are refused, names that
//! are none, ports and sockets that are taken, rights that are missing, disks
//! that are full, servers that die, and garbage on every port. Each is met with
//! a reason and what to do, or is survived; nothing is lost.
#![allow(clippy::unwrap_used)]

mod disks;
mod garbage;
mod joining;
mod outages;
mod places;
mod refusals;

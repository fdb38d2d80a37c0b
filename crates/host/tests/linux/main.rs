//! The room on a real kernel, in network and mount namespaces of the tests' own.
//!
//! A test that is not permitted to make a namespace says so and passes: there
//! is no way to tell a machine that lacks the right from one that never will
//! have it. Run as root to run all.

#![allow(clippy::unwrap_used)]
#![allow(unsafe_code)] // unshare(2) and mount(2)

mod forwarding;
mod full_disk;
mod gso;
mod link_changes;
mod policy_routing;
mod queues;
mod resolv_conf;
mod superpackets;
mod support;

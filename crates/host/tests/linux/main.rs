//! The crate on a real kernel, in network and mount namespaces of the tests' own.
//!
//! A test that is not permitted to make a namespace prints so and passes: some
//! machines never permit it. Run as root to run all.

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

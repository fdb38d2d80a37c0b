//! A small network in many situations, and the property that ties deltas and
//! full maps together.

#![allow(clippy::unwrap_used)]

mod commit;
mod deltas;
mod dns;
mod lock;
mod logins;
mod owners;
mod policies;
mod policy;
mod references;
mod registration;
mod roles;
mod routers;
mod sections;
mod ssh_checks;
mod world;

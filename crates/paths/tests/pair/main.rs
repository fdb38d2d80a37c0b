//! Nodes in a small virtual internet: NATs, relays, a control server, and one
//! clock that jumps from event to event.

#![allow(clippy::unwrap_used)]

mod bad_input;
mod direct;
mod in_use;
mod mapping;
mod measure;
mod nat;
mod port_search;
mod reference;
mod relayed;
mod relayed_bad_input;
mod world;

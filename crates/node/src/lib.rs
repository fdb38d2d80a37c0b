//! The node: daemon, command line, and the local interface between them.
//!
//! One program holds both sides. `warren daemon` runs a node on this machine;
//! every other command talks to it over a Unix socket, in the reference
//! client's protocol, so other people's tools can do the same.

pub mod cli;
pub mod daemon;
pub mod localapi;

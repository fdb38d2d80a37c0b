//! The local interface over a real socket, with an engine made of a few
//! variables behind it: the server's rules, the client, and the command line.

#![allow(clippy::unwrap_used)]

mod commands;
mod interface;
mod memory;
mod served;

//! The local interface over a real socket, served by a node
//! that is a few variables: the server's rules, the client, and the command line.

#![allow(clippy::unwrap_used)]

mod commands;
mod interface;
mod memory;
mod served;

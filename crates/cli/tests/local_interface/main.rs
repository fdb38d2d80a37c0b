//! The local interface over a real socket: the rules of the server, the client,
//! and the command line. Behind the socket is the node of the daemon, without an
//! interface in the operating system; it joins a coordination server that runs in
//! this process too.

#![allow(clippy::unwrap_used)]

mod bad_requests;
mod commands;
mod daemon;
mod interface;
mod network;
mod official;
mod readme;
mod served;

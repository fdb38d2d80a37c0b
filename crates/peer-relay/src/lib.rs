//! The server of a peer relay: a node that forwards datagrams between two other nodes
//! which find no direct path to each other.
//!
//! # The life of an endpoint
//! 1. A client sends an allocation request over DERP. The caller checks that the policy
//!    lets it, and [`Server::allocate`] makes an endpoint for the two clients: a VNI
//!    and the addresses of this server. The client passes it on to the other one.
//! 2. Each client binds its address, by three messages over UDP in a Geneve header with
//!    the control bit: bind, challenge, answer. [`Server::control`] takes the first and
//!    the third, and gives the second.
//! 3. Once both are bound, [`Server::forward`] says where a datagram goes. Datagrams are
//!    passed on unchanged and are not looked into: they are sealed between the clients.
//! 4. The endpoint ends when it was not bound in [`BIND_LIFETIME`], or when one of the
//!    clients was silent for [`STEADY_LIFETIME`].
//!
//! # Protection
//! - A VNI is random, and alone gives nothing: datagrams are forwarded only from an
//!   address that a client has proved to receive at.
//! - A reply is never larger than the message that it answers, and goes to its source.
//! - The challenge is a MAC over the source and the attempt, so it needs no memory. Its
//!   key changes every [`CHALLENGE_KEY_LIFETIME`].
//! - Attempts of a client are numbered. A recorded bind and answer of an attempt that
//!   has ended cannot move the client back to its earlier address.
//! - The number of endpoints is bounded, in total and for each node that asks.
//!
//! # How to drive it
//! The server does no IO and has no clock: every input takes the time, and there is one
//! deadline ([`Server::next_deadline`], [`Server::on_deadline`]).

#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

mod challenge;
mod endpoint;
mod server;

pub use challenge::CHALLENGE_KEY_LIFETIME;
pub use server::{
    AllocateError, BIND_LIFETIME, Counters, EndpointStatus, Limits, STEADY_LIFETIME, Server,
    SideStatus,
};

//! The relay protocol, DERP, as state machines without IO: both ends and the mesh.
//!
//! A relay carries packets between nodes that hold a connection to it, named
//! by node key. It sees only ciphertext; it knows only which keys talk to each other.
//!
//! # Life of a connection
//!
//! 1. The relay says its public key ([`Identity::server_key_frame`]). A client
//!    that knows the key already (from the TLS handshake) does not wait for it.
//! 2. The client proves its node key with a sealed box ([`client::Client`],
//!    [`login`]).
//! 3. The relay process asks whether that key may come in; the relay answers with
//!    sealed information and enters the connection in its [`Registry`].
//! 4. Frames flow. [`server::Connection`] turns each frame of a client into a
//!    [`server::Request`]; the registry says where a packet goes.
//! 5. When the last connection of a key closes, the clients that received
//!    packets from it are notified.
//!
//! # Ownership
//!
//! | state | owner |
//! |---|---|
//! | [`FrameBuffer`], [`server::Connection`] | the task that reads a connection |
//! | [`server::Keepalive`] | the task that writes it |
//! | [`SendQueue`] | shared by all senders to that connection; short critical sections. All together hold what the [`QueueBudget`] allows |
//! | [`Registry`] | the relay, behind a read-write lock; readers may cache a route while [`Registry::generation`] and the [`Turns`] of its key do not change |
//!
//! Nothing here reads a clock, draws randomness or touches a socket: the
//! simulator runs the same code.

#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

mod bucket;
mod budget;
mod buffer;
pub mod client;
pub mod login;
mod queue;
mod registry;
pub mod server;

pub use bucket::TokenBucket;
pub use budget::QueueBudget;
pub use buffer::{FrameBuffer, FrameTooLong, Frames, OverLong, RawFrame};
pub use login::{ClientInfo, Identity, LoginError, ServerInfo};
pub use queue::{Drops, Limits, QueueFull, SendQueue};
pub use registry::{Census, ConnId, LinkId, News, Notice, Presence, Registry, Route, Turns};

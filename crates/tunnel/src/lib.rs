//! WireGuard sessions: their peers, keys and lifetimes.
//!
//! Two parts with different owners:
//!
//! - [`Handshakes`] lives in the engine. It speaks the three handshake
//!   messages with all peers, keeps every timer of the protocol, and turns
//!   finished handshakes into sessions. It is sans-IO: datagrams and time go
//!   in, [`Event`]s come out.
//! - A [`Session`] is what the data plane needs to seal and open packets. It
//!   is immutable, shared behind an `Arc`, and works in place without
//!   allocating. Each receiving thread keeps a [`ReplayWindow`] per session.
//!
//! The life of a session: the data plane has a packet and no key, and the
//! engine calls [`Handshakes::want_session`]. An initiation goes out, again
//! every five seconds until a response comes or 90 seconds are over. The
//! initiator may use the session at once; the responder only after the first
//! packet that authenticates under it ([`Handshakes::session_confirmed`]).
//! After 120 seconds of age the initiator's next packet asks for a successor;
//! both are usable side by side while the change happens, so nothing is lost.
//! After 180 seconds the keys are gone.
//!
//! This crate never chooses a path, looks inside packets, keeps packets waiting,
//! reads a clock or draws randomness of its own.
//!
//! Source: J. Donenfeld, "WireGuard: Next Generation Kernel Network Tunnel",
//! whose sections are cited where a rule comes from.

#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

mod cipher;
mod cookie;
mod handshakes;
mod load;
mod noise;
mod peer;
mod replay;
mod session;
mod timestamp;

use std::time::Duration;

pub use cipher::{Aead, MAX_BATCH, MIN_BATCH};
pub use handshakes::{Event, HandshakeCounters, Handshakes, Reason};
pub use peer::Activity;
pub use replay::ReplayWindow;
pub use session::{OpenError, Opened, Role, SealError, Session};
pub use warren_node_types::{PeerIndex, Source};

/// Age at which the initiator of a session asks for the next one.
pub const REKEY_AFTER_TIME: Duration = Duration::from_secs(120);
/// Age at which a session must not be used any more, in either direction.
pub const REJECT_AFTER_TIME: Duration = Duration::from_secs(180);
/// Packets after which a new session is asked for.
pub const REKEY_AFTER_MESSAGES: u64 = 1 << 60;
/// Packets after which a session must not send any more.
pub const REJECT_AFTER_MESSAGES: u64 = u64::MAX - (1 << 13);
/// How long to wait for a response before the next initiation. A random part
/// below [`REKEY_JITTER`] is added.
pub const REKEY_TIMEOUT: Duration = Duration::from_secs(5);
/// Upper bound of the random part of a retry, so that two sides that started
/// at the same moment drift apart.
pub const REKEY_JITTER: Duration = Duration::from_millis(334);
/// How long to go on initiating before giving up.
pub const REKEY_ATTEMPT_TIME: Duration = Duration::from_secs(90);
/// How long received data may stay without anything sent back before an empty
/// packet (keepalive) is sent to the peer.
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long after sent data nothing may come back before the session is
/// doubted and renewed; jitter is added.
pub const NEW_HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(15);
/// Age at which a received packet makes the initiator renew: the last moment
/// at which a keepalive and one handshake still fit before the end.
pub const REKEY_ON_RECEIVE_TIME: Duration = Duration::from_secs(165);
/// How long after the last session everything about a peer is forgotten.
pub const KEY_ERASE_TIME: Duration = Duration::from_secs(540);
/// How long a cookie is good for, and how often the cookie secret changes.
pub const COOKIE_LIFETIME: Duration = Duration::from_secs(120);
/// Least time between two initiations accepted from one peer.
pub const INITIATION_INTERVAL: Duration = Duration::from_millis(20);

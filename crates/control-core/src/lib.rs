//! The whole coordinator as one state.
//!
//! A [`Coordinator`] knows the users, the nodes, the pre-auth keys, who waits
//! for an approval or a check, who is online, and what every open map stream was told
//! last. Things happen to it through methods that take the time; what it wants
//! done comes out of [`Coordinator::poll_output`]: rows to store, sessions that
//! have something to send, sessions to end, parked registrations to answer.
//!
//! The life of a change: a method alters the records, then *marks* it in the
//! pending set of exactly those sessions whose view it alters ([`Pending`]).
//! A pending set holds at most one entry per peer, so it is bounded by the size
//! of the view and newer news replace older news by construction. When the
//! shell has room to send it calls [`Coordinator::next_message`], and the
//! message is rendered from the state of that moment. Nothing waits for a
//! timer, and nothing is sent twice.
//!
//! What a node is told is a pure function of (state, node):
//! [`Coordinator::render`]. A delta is the same function narrowed to what was
//! marked, and a property test holds them together: the map a client already
//! has plus the delta is the map it would get afresh.
//!
//! It never opens a socket or a file, never reads a clock, and draws randomness
//! only from the [`warren_keys::Entropy`] it was given.

#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

mod access;
mod addresses;
mod admin;
mod auth_keys;
mod coordinator;
mod deadlines;
mod error;
mod message;
mod names;
mod policies;
mod records;
mod references;
mod register;
mod render;
mod routes;
mod session;
mod ssh_checks;
mod update;

#[cfg(test)]
mod tests;

pub use access::Access;
pub use addresses::{AddressIndex, V4_RANGE, V6_RANGE};
pub use admin::{NewAuthKey, PendingView};
pub use auth_keys::AuthKeyText;
pub use coordinator::{Config, Coordinator, Notice, Output};
pub use deadlines::Reason;
pub use error::{AdminError, MapError};
pub use message::Message;
pub use names::{LabelError, is_label, sanitize_hostname, unique_label};
pub use policies::{GivenPolicy, PolicyFile, PolicyVersion, Tailnet, TriedPolicy, diff_of_files};
pub use records::{
    AuthKeyId, AuthKeyRecord, Change, JoinMethod, NodeRecord, RowId, Snapshot, TAGGED_DEVICES,
    UserRecord, role_name,
};
pub use references::{NodeRef, UserRef};
pub use register::{PendingId, RegisterOutcome};
pub use session::{Pending, SessionId};
pub use ssh_checks::{SshCheckView, SshOutcome, SshQuestion, SshRefusal};
pub use warren_policy::Role;

/// The oldest capability version that is served (Tailscale 1.80). Older ones
/// do not know `HomeDERP`, named filters and deltas as they are sent here.
pub const MIN_CAPABILITY: u32 = 113;

//! The coordinator of a tailnet, without IO.
//!
//! A [`Coordinator`] knows the users, the nodes, the pre-auth keys, the requests
//! that wait for an approval or a check, the nodes that are online, and what was
//! sent last on every open map stream. Inputs are methods that take the time;
//! actions come out of [`Coordinator::poll_output`]: rows to store, sessions
//! that have something to send, sessions to end, parked requests to answer.
//!
//! The life of a change: a method makes a new record and commits it as a
//! [`Change`]. The commit applies it to the directory, hands it to the store,
//! compares it with the record before, and invalidates parts of the maps of
//! exactly those sessions that the difference concerns ([`PendingUpdate`]).
//! A pending update holds at most one entry per peer, so it is bounded by the
//! size of the view, and newer states replace older ones by construction. When
//! the runtime can send, it calls [`Coordinator::begin_message`], and the message
//! is rendered from the state of that moment. No timer delays it, and nothing is
//! sent twice. A change that another coordinator made goes the same way
//! ([`Coordinator::apply_foreign`]).
//!
//! The map of a node is a pure function of ([`View`], node): [`View::render`]. A
//! delta is the same function narrowed to what was invalidated, and a property
//! test ties them together: the map a client already has plus the delta is the
//! complete map of that moment. A [`View`] is a cheap copy that does not change
//! any more, so readers and rendering do not keep commits waiting.
//!
//! The crate never opens a socket or a file, never reads a clock, and draws
//! randomness only from the [`warren_keys::Entropy`] it was given.

#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

mod access;
mod addresses;
mod auth_keys;
mod clock;
mod config;
mod coordinator;
mod directory;
mod dns;
mod error;
mod holders;
mod host_limits;
mod impact;
mod lock;
mod logins;
mod map_sessions;
mod message;
mod names;
mod output;
mod parked;
mod policies;
mod presence;
mod probes;
mod records;
mod references;
mod registrations;
mod render;
mod routes;
mod ssh_checks;
mod table;
mod tailnet;
mod view;

#[cfg(test)]
mod tests;

pub use access::Access;
pub use addresses::{AddressIndex, V4_RANGE, V6_RANGE};
pub use auth_keys::AuthKeyText;
pub use config::{Config, is_in_zone};
pub use coordinator::{
    Coordinator, LoginPage, LoginSubject, NewAuthKey, PendingView, RegisterOutcome, channel_url,
};
pub use directory::Standing;
pub use dns::{
    ConfiguredDns, Dns, DnsChange, DnsError, DnsKey, DnsName, DnsPart, ExtraRecord, MAX_RECORDS,
    NameError, Nameserver, NameserverError, RecordData, RecordError, RecordSource, StoredDns,
};
pub use error::{AdminError, LoginError, MapError};
pub use holders::SharedKey;
pub use lock::{LockError, LockMessage, LockRecord, Turned};
pub use logins::{BegunLogin, LoginPurpose, LoginResult, ReturnedLogin};
pub use map_sessions::{PatchFields, PeerUpdate, PendingUpdate, SessionId};
pub use message::{Message, MessageKind};
pub use names::{LabelError, is_label, sanitize_hostname, unique_label};
pub use output::{Notice, Output, Reason};
pub use parked::PendingId;
pub use policies::PolicyFile;
pub use records::{
    AccountRecord, AuthKeyId, AuthKeyRecord, Change, JoinMethod, NodeRecord, PolicyVersion, RowId,
    Snapshot, TAGGED_DEVICES, UserRecord, role_name,
};
pub use references::{NodeRef, UserRef};
pub use render::{MessageDraft, Rendered};
pub use routes::{RouteMove, RouterState};
pub use ssh_checks::{SshCheckView, SshOutcome, SshQuestion, SshRefusal};
pub use tailnet::{GivenPolicy, Tailnet, TriedPolicy, diff_of_files};
pub use view::View;
pub use warren_policy::Role;

/// The oldest capability version that is served (Tailscale 1.80). Older ones
/// do not know `HomeDERP`, named filters and deltas as they are sent here.
pub const MIN_CAPABILITY: u32 = 113;

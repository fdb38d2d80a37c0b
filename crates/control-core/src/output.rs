//! Actions for the runtime.

use warren_control_types::NodeId;

use crate::holders::SharedKey;
use crate::map_sessions::SessionId;
use crate::parked::PendingId;
use crate::records::Change;
use crate::routes::RouteMove;

/// An event for the administrator's terminal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// A node joined for the first time.
    Joined(NodeId),
    /// A known node got a new key.
    KeyRenewed(NodeId),
    /// A node, with this name, logged out; its record stays, expired.
    LoggedOut(NodeId, String),
    /// The record of a node with this name is gone: deleted, or ephemeral and
    /// away.
    Left(NodeId, String),
    /// A machine with this host name waits for approval.
    Waiting(PendingId, String),
    /// The policy that is in force lets every node reach every node, for this
    /// reason.
    PolicyAllowsEverything(String),
    /// The stored policy cannot be read, for this reason, so nothing is allowed.
    PolicyUnreadable(String),
    /// A session over SSH waits for a check.
    SshCheck {
        /// The id to approve.
        id: PendingId,
        /// The node that the session comes from.
        source: NodeId,
        /// The node where it would run.
        destination: NodeId,
        /// The user as which it would run.
        local_user: String,
    },
    /// Two machines hold a key at the same time.
    SharedKey(SharedKey),
    /// Another router serves a subnet than before.
    RouteMoved(RouteMove),
    /// The node turned tailnet lock on.
    LockOn(NodeId),
    /// The node turned tailnet lock off.
    LockOff(NodeId),
    /// The stored chain of tailnet lock cannot be read.
    LockDamaged,
    /// Peers are informed that the node is online.
    Online(NodeId),
    /// Peers are informed that the node is offline.
    Offline(NodeId),
}

/// An action for the runtime.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// Store this row. `durable`: before any answer that speaks of it.
    Store {
        /// The row.
        change: Change,
        /// Whether losing it would break a promise (keys, registrations).
        durable: bool,
    },
    /// The session has something to send.
    Wake(SessionId),
    /// End the stream.
    End(SessionId),
    /// Put the parked requests with this id again: it is decided.
    Decided(PendingId),
    /// Inform the administrator.
    Notice(Notice),
}

/// The reason why the coordinator wants to be called at its next deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// A node has been without a stream for the grace time.
    Offline(NodeId),
    /// A node has been without a stream long enough for another router to serve its
    /// subnets.
    RouterMissed(NodeId),
    /// Routers are to be asked whether they answer, or judged by their answers.
    ProbeRouters,
    /// An ephemeral node has been away too long.
    DeleteEphemeral(NodeId),
    /// A machine has waited too long for approval.
    ForgetPending,
    /// A person has taken too long for a step of a login.
    ForgetLogin,
    /// A session over SSH has waited too long for a check, or a decision about
    /// one has been kept long enough.
    SshCheck,
    /// A key may have expired, or the wall clock was set.
    KeyExpiry,
}

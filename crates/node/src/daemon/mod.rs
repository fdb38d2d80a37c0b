//! The daemon: a node with its operating system.
//!
//! ```text
//!            local interface (CLI)            coordination server
//!                    │ requests                     │ results
//!                    ▼                              ▼
//!   relays ──▶ [ engine task: drives the Node ] ◀── sessions
//!     │              │ views, orders    ▲ inputs
//!     ▼              ▼                  │
//!   [ in threads ]  [ out threads ]  ── packets between TUN and network
//! ```
//!
//! One task owns all state and never blocks; everything else sends it
//! [`Message`]s. It decides nothing itself: the decisions are made in
//! [`Node`](warren_node_core::Node), without IO. Start-up fails early and says
//! why: first the state folder, then the local interface, the tunnel device and the
//! sockets. Everything else is optional: a part that fails is reported in the status
//! and tried again. Changes in the operating system are taken back at the
//! end, and what a killed daemon left is removed at the start.

mod aead;
mod config_file;
mod control_session;
mod debug_listener;
mod detached;
mod engine_task;
mod handle;
mod host_task;
mod hostinfo;
mod lock_files;
mod lock_requests;
mod magic_dns;
mod outside_names;
mod packets;
mod port_mapping;
mod relay_server;
mod relays;
mod ssh;
mod start;
mod state;
mod status;
mod system;
mod userspace;

use std::time::Duration;

use tokio::sync::mpsc;
use warren_control_types::RegionId;
use warren_dial::derp::DerpSender;
use warren_host::link::LinkChange;
use warren_node_core::node::{LinkId, NodeInput};

pub use config_file::{ConfigFile, ConfigFileError};
pub use detached::DetachedNode;
pub use handle::NodeHandle;
pub use start::{DaemonError, DaemonOptions, Proxies, Tunnel, clean_up, run};
pub use state::{StateError, StateFolder, StatePlace};

/// Datagrams of each kind that may wait for the engine task. Others can send any
/// number: those that do not fit are dropped, as by a full socket.
const WAITING_DATAGRAMS: usize = 1024;

/// The sending end of the engine task's inbox.
#[derive(Clone)]
pub struct Inbox {
    /// Messages of our own; we control their rate.
    messages: mpsc::UnboundedSender<Message>,
    /// Datagrams of unauthenticated senders; they control the rate.
    datagrams: mpsc::Sender<NodeInput>,
    /// Packets of nodes that relays let in. They have a queue of their own, so
    /// that a flood on the socket does not block the relays.
    relayed: mpsc::Sender<NodeInput>,
    /// Tunnel data for a relay that is still being connected.
    unsent: mpsc::Sender<NodeInput>,
}

/// The other end of an [`Inbox`].
pub struct Outbox {
    messages: mpsc::UnboundedReceiver<Message>,
    datagrams: mpsc::Receiver<NodeInput>,
    relayed: mpsc::Receiver<NodeInput>,
    unsent: mpsc::Receiver<NodeInput>,
}

impl Inbox {
    /// Both ends.
    pub fn new() -> (Self, Outbox) {
        let (messages, our_messages) = mpsc::unbounded_channel();
        let (datagrams, their_datagrams) = mpsc::channel(WAITING_DATAGRAMS);
        let (relayed, from_relays) = mpsc::channel(WAITING_DATAGRAMS);
        let (unsent, to_relays) = mpsc::channel(WAITING_DATAGRAMS);
        let inbox = Self {
            messages,
            datagrams,
            relayed,
            unsent,
        };
        let outbox = Outbox {
            messages: our_messages,
            datagrams: their_datagrams,
            relayed: from_relays,
            unsent: to_relays,
        };
        (inbox, outbox)
    }

    /// Sends a message. The receiver is gone only at shutdown, so a failure is
    /// ignored.
    pub fn send(&self, message: impl Into<Message>) {
        drop(self.messages.send(message.into()));
    }

    /// Sends something from the network, unless too much of its kind waits
    /// already. Returns whether it was taken.
    pub fn try_send(&self, datagram: NodeInput) -> bool {
        let queue = match &datagram {
            NodeInput::Relay { .. } => &self.relayed,
            NodeInput::RelayData { .. } => &self.unsent,
            _ => &self.datagrams,
        };
        queue.try_send(datagram).is_ok()
    }

    /// Whether the engine task has ended.
    pub fn is_closed(&self) -> bool {
        self.messages.is_closed()
    }
}

impl Outbox {
    /// The next message of any kind, each in its turn; `None` when all senders
    /// are gone.
    pub async fn next(&mut self) -> Option<Message> {
        tokio::select! {
            message = self.messages.recv() => message,
            Some(input) = self.datagrams.recv() => Some(input.into()),
            Some(input) = self.relayed.recv() => Some(input.into()),
            Some(input) = self.unsent.recv() => Some(input.into()),
        }
    }
}

/// A message to the engine task.
pub enum Message {
    /// Something that happened to the node.
    Node(NodeInput),
    /// A connection to a relay is open, and the login was sent.
    RelayConnected {
        /// The relay.
        region: RegionId,
        /// The connection.
        link: LinkId,
        /// The sending end of it.
        sender: DerpSender,
    },
    /// The network around this machine changed.
    Link(LinkChange),
    /// A request of a local program.
    Request(Box<handle::Request>),
    /// The daemon should end.
    Stop,
}

impl From<NodeInput> for Message {
    fn from(input: NodeInput) -> Self {
        Self::Node(input)
    }
}

/// The time since the UNIX epoch; zero for a clock before it.
pub(crate) fn wall_clock() -> Duration {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default()
}

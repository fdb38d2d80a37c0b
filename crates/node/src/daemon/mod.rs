//! The daemon: a node with its operating system.
//!
//! ```text
//!            local interface (CLI)            coordination server
//!                    │ requests                     │ netmap
//!                    ▼                              ▼
//!   relays ──▶ [ engine task: owns the Engine ] ◀── control session
//!     │              │ views, orders    ▲ messages
//!     ▼              ▼                  │
//!   [ in threads ]  [ out threads ]  ── packets between TUN and network
//! ```
//!
//! One task owns all state and never blocks; everything else sends it
//! [`Message`]s. Start-up fails early and says why: first the state folder,
//! then the tunnel device, the sockets, and the local interface. What was
//! changed in the operating system is taken back at the end, and what a killed
//! predecessor left is removed at the start.

mod aead;
mod control_session;
mod engine_task;
mod entropy;
mod handle;
mod host_task;
mod hostinfo;
mod magic_dns;
mod pump;
mod relays;
mod start;
mod state;
mod status;

use std::net::SocketAddr;
use std::time::Duration;

use tokio::sync::mpsc;
use warren_control_types::RegionId;
use warren_host::link::LinkChange;
use warren_keys::{DiscoPublic, NodePublic};
use warren_tunnel::{PeerIndex, Source};

pub use handle::NodeHandle;
pub use start::{DaemonError, DaemonOptions, clean_up, run};
pub use state::{StateError, StateFolder};

/// Datagrams that may wait for the engine, of each kind. Others can send any
/// number: what is too much is dropped, as a full socket would.
const WAITING_DATAGRAMS: usize = 1024;

/// The way to the engine's task.
#[derive(Clone)]
pub struct Inbox {
    /// What we say ourselves; its rate is ours.
    messages: mpsc::UnboundedSender<Message>,
    /// What strangers send to our socket; its rate is theirs.
    strangers: mpsc::Sender<Message>,
    /// What comes through relays, from nodes that relays let in. Apart, so that
    /// a flood on the socket does not take the way around it.
    relayed: mpsc::Sender<Message>,
    /// Tunnel data for a relay that is still being connected.
    unsent: mpsc::Sender<Message>,
}

/// The other end of an [`Inbox`].
pub struct Outbox {
    messages: mpsc::UnboundedReceiver<Message>,
    strangers: mpsc::Receiver<Message>,
    relayed: mpsc::Receiver<Message>,
    unsent: mpsc::Receiver<Message>,
}

impl Inbox {
    /// Both ends.
    pub fn new() -> (Self, Outbox) {
        let (messages, from_us) = mpsc::unbounded_channel();
        let (strangers, from_strangers) = mpsc::channel(WAITING_DATAGRAMS);
        let (relayed, from_relays) = mpsc::channel(WAITING_DATAGRAMS);
        let (unsent, not_sent) = mpsc::channel(WAITING_DATAGRAMS);
        let inbox = Self {
            messages,
            strangers,
            relayed,
            unsent,
        };
        let outbox = Outbox {
            messages: from_us,
            strangers: from_strangers,
            relayed: from_relays,
            unsent: not_sent,
        };
        (inbox, outbox)
    }

    /// Hands over a message. The engine ends after everybody who could send
    /// one, so a message that is not taken is nobody's loss.
    pub fn tell(&self, message: Message) {
        drop(self.messages.send(message));
    }

    /// Hands over something from the network, unless too much of its kind
    /// waits already. Returns whether it was taken.
    pub fn offer(&self, datagram: Message) -> bool {
        let lane = match &datagram {
            Message::RelayPacket { .. } => &self.relayed,
            Message::RelayData { .. } => &self.unsent,
            _ => &self.strangers,
        };
        lane.try_send(datagram).is_ok()
    }

    /// Whether the engine has ended.
    pub fn is_closed(&self) -> bool {
        self.messages.is_closed()
    }
}

impl Outbox {
    /// The next of any kind, each in its turn; `None` when nobody can send any
    /// more.
    pub async fn next(&mut self) -> Option<Message> {
        tokio::select! {
            message = self.messages.recv() => message,
            Some(datagram) = self.strangers.recv() => Some(datagram),
            Some(datagram) = self.relayed.recv() => Some(datagram),
            Some(datagram) = self.unsent.recv() => Some(datagram),
        }
    }
}

/// Something for the engine's task to look at.
pub enum Message {
    /// A datagram that is no tunnel data.
    Udp {
        /// Who sent it.
        from: SocketAddr,
        /// The datagram.
        packet: Vec<u8>,
    },
    /// A packet from a relay that is no tunnel data.
    RelayPacket {
        /// Which relay.
        region: RegionId,
        /// Who sent it.
        from: NodePublic,
        /// The packet.
        packet: Vec<u8>,
    },
    /// Tunnel data for a relay that is not connected yet.
    RelayData {
        /// Which relay.
        region: RegionId,
        /// For whom.
        to: NodePublic,
        /// The packet.
        packet: Vec<u8>,
    },
    /// A relay took our login, on the connection of that number.
    RelayUp(RegionId, u64),
    /// The connection of that number ended, or did not come about.
    RelayDown(RegionId, u64),
    /// A relay does not have that peer.
    RelayPeerGone {
        /// Which relay.
        region: RegionId,
        /// Who.
        peer: NodePublic,
    },
    /// A measurement over HTTPS.
    RelayLatency(RegionId, Duration),
    /// A name of the relay map was looked up.
    Resolved(String, Vec<std::net::IpAddr>),
    /// Packets wait for a session.
    NeedSession(PeerIndex),
    /// The first packet of a session authenticated.
    Confirmed(u32),
    /// Authenticated traffic came from there.
    Heard(PeerIndex, Source),
    /// A peer told its disco key inside the tunnel.
    DiscoAdvertised(PeerIndex, DiscoPublic),
    /// A peer answered a TSMP ping.
    TsmpPong {
        /// Who.
        peer: PeerIndex,
        /// What the ping carried.
        data: [u8; 8],
        /// Where its peer interface is.
        peer_api_port: Option<u16>,
    },
    /// The network around this machine changed.
    Link(LinkChange),
    /// From the coordination server, in the session of that number.
    Control(u64, control_session::ControlEvent),
    /// From a local program.
    Request(Box<handle::Request>),
    /// The daemon should end.
    Stop,
}

/// The time since the UNIX epoch; zero for a clock before it.
pub(crate) fn wall_clock() -> Duration {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default()
}

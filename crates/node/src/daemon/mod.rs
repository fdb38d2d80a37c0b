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

mod backend;
mod c2n;
mod control_session;
mod engine_task;
mod entropy;
mod host_task;
mod hostinfo;
mod magic_dns;
mod pump;
mod relays;
mod start;
mod state;
mod status;

use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use tokio::sync::mpsc;
use warren_control_types::RegionId;
use warren_host::link::LinkChange;
use warren_keys::{DiscoPublic, NodePublic};
use warren_tunnel::{PeerIndex, Source};

use crate::cli::DaemonArgs;

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
    Request(Box<backend::Request>),
    /// The daemon should end.
    Stop,
}

/// What `warren daemon` does: logs to standard error, runs, and maps the end to
/// an exit code.
pub fn main(args: DaemonArgs) -> ExitCode {
    log_to_stderr(args.verbose);
    let options = DaemonOptions {
        state_dir: args.state_dir,
        state_file: args.state_file,
        socket: args.socket,
        port: args.port,
        tun: args.tun,
    };
    // Two workers serve the engine, the local interface and relays; packets
    // have threads of their own.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    let result = match runtime {
        Err(source) => Err(DaemonError::System {
            what: "cannot start the runtime",
            source,
        }),
        Ok(runtime) if args.cleanup => runtime.block_on(clean_up(&options)),
        Ok(runtime) => runtime.block_on(run(options)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("warren daemon: {error}");
            ExitCode::FAILURE
        }
    }
}

/// `WARREN_LOG` wins over the flag, as for all our programs; so does `RUST_LOG`
/// where that is not set.
fn log_to_stderr(verbose: u8) {
    use tracing_subscriber::filter::{LevelFilter, Targets};
    use tracing_subscriber::layer::SubscriberExt as _;
    use tracing_subscriber::util::SubscriberInitExt as _;
    let default = match verbose {
        0 => LevelFilter::INFO,
        1 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    let chosen = ["WARREN_LOG", "RUST_LOG"]
        .into_iter()
        .filter_map(|name| std::env::var(name).ok())
        .filter(|text| !text.is_empty())
        .find_map(|text| text.parse::<Targets>().ok());
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    // Already set up by an embedding program: that one wins.
    drop(
        tracing_subscriber::registry()
            .with(lines)
            .with(chosen.unwrap_or_else(|| Targets::new().with_default(default)))
            .try_init(),
    );
}

/// The time since the UNIX epoch; zero for a clock before it.
pub(crate) fn wall_clock() -> Duration {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default()
}

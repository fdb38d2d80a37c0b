//! What the engine tells others about itself: the coordination server, and
//! whoever asks for a status.

use std::net::SocketAddr;
use std::time::Duration;

use warren_control_types::{EndpointType, NetInfo, NodeId};
use warren_keys::{DiscoPublic, NodePublic};
use warren_node_types::{Destination, PathAddr};

use warren_dataplane::Traffic;

/// What the coordination server must know so that peers can find us.
#[derive(Debug, Clone, PartialEq)]
pub struct ControlReport {
    /// Where we may be reached, best first.
    pub endpoints: Vec<(SocketAddr, EndpointType)>,
    /// The network around us; `None` until it was looked at.
    pub net_info: Option<NetInfo>,
    /// Where our path-finding messages come from.
    pub disco_key: DiscoPublic,
}

/// How one peer is doing.
#[derive(Debug, Clone, PartialEq)]
pub struct PeerReport {
    /// Who.
    pub node: NodeId,
    /// Its key.
    pub key: NodePublic,
    /// Which way packets take.
    pub destination: Destination,
    /// Whether a session may be used now.
    pub has_session: bool,
    /// How long ago the last handshake ended.
    pub last_handshake: Option<Duration>,
    /// How long ago something was last sent.
    pub last_sent: Option<Duration>,
    /// How long ago something last arrived.
    pub last_received: Option<Duration>,
    /// Packets and bytes.
    pub traffic: Traffic,
}

/// What became of a ping.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PingAnswer {
    /// The number given with the request.
    pub token: u64,
    /// The answer, or why there is none.
    pub result: Result<Pong, PingError>,
}

/// A ping was answered.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pong {
    /// Who answered.
    pub node: NodeId,
    /// Over which path.
    pub via: PathAddr,
    /// There and back.
    pub latency: Duration,
}

/// Why a ping has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PingError {
    /// Nobody in the tailnet has this address.
    #[error("no node of this tailnet has that address")]
    NoSuchPeer,
    /// It is our own.
    #[error("that is this machine's own address")]
    OwnAddress,
    /// The path engine could not, or nobody answered.
    #[error(transparent)]
    Path(#[from] warren_paths::PingError),
}

//! Reports of the engine: for the coordination server, and for the status.

use std::net::SocketAddr;
use std::time::Duration;

use warren_control_types::{EndpointType, NetInfo, NodeId};
use warren_keys::{DiscoPublic, NodePublic};
use warren_node_types::{Destination, PathAddr};

use warren_dataplane::Traffic;

/// The facts with which the coordination server lets peers find us.
#[derive(Debug, Clone, PartialEq)]
pub struct ControlReport {
    /// The addresses at which we may be reached, best first.
    pub endpoints: Vec<(SocketAddr, EndpointType)>,
    /// The network around us; `None` until it was measured.
    pub net_info: Option<NetInfo>,
    /// The sender of our path-finding messages.
    pub disco_key: DiscoPublic,
}

/// The state of one peer.
#[derive(Debug, Clone, PartialEq)]
pub struct PeerReport {
    /// The node id of the peer.
    pub node: NodeId,
    /// Its key.
    pub key: NodePublic,
    /// The path that packets take.
    pub destination: Destination,
    /// Whether a session may be used now.
    pub has_session: bool,
    /// The time since the last handshake ended.
    pub last_handshake: Option<Duration>,
    /// The time since something was last sent.
    pub last_sent: Option<Duration>,
    /// The time since something was last received.
    pub last_received: Option<Duration>,
    /// The packets and bytes so far.
    pub traffic: Traffic,
}

/// The result of a ping.
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
    /// The peer that replied.
    pub node: NodeId,
    /// The path of the reply.
    pub via: PathAddr,
    /// The round-trip time.
    pub latency: Duration,
}

/// The reason why a ping has no reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PingError {
    /// No node of the tailnet has this address.
    #[error("no node of this tailnet has that address")]
    NoSuchPeer,
    /// The address is our own.
    #[error("that is this machine's own address")]
    OwnAddress,
    /// The path engine could not send it, or no reply came.
    #[error(transparent)]
    Path(#[from] warren_paths::PingError),
}

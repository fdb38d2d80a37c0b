//! Inputs, events and views of the path engine.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use warren_control_types::{EndpointType, NetInfo, RegionId};
use warren_keys::{DiscoPublic, NodePublic};
use warren_node_types::{Destination, Family, PathAddr, PeerIndex, SocketOrder, TailnetRanges};

/// The configuration of the path engine, for its whole life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PathsConfig {
    /// The UDP port that the user configured, if any. Behind a NAT that varies its
    /// mappings such a port is advertised as a guess, because users often forward
    /// it by hand.
    pub configured_port: Option<u16>,
    /// The address ranges of the tailnet: peers are not looked for there.
    pub ranges: TailnetRanges,
}

/// A peer of the netmap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerInfo {
    /// Its identity at relays.
    pub node_key: NodePublic,
    /// Without one a peer can only be reached over its relay.
    pub disco_key: Option<DiscoPublic>,
    /// The addresses that it advertises.
    pub endpoints: Vec<SocketAddr>,
    /// The relay region where it listens.
    pub home_derp: Option<RegionId>,
    /// Its role towards peer relays.
    pub peer_relay: PeerRelayRole,
}

/// The abilities of a peer with peer relays, as far as the policy lets us use them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PeerRelayRole {
    /// Nothing: it does not understand the messages, or we must not use peer relays.
    #[default]
    None,
    /// It can meet us at a peer relay.
    Client,
    /// The same, and it may be asked for an endpoint on a relay server of its own.
    Server,
}

/// The sockets and addresses of this host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LocalAddresses {
    /// Local port of the IPv4 socket; `None` while there is no such socket.
    pub port_v4: Option<u16>,
    /// Local port of the IPv6 socket; `None` while there is no such socket.
    pub port_v6: Option<u16>,
    /// Addresses of interfaces that are up, without those of the tunnel.
    pub interfaces: Vec<IpAddr>,
    /// Addresses with ports that the user configured as reachable.
    pub explicit: Vec<SocketAddr>,
}

/// The measurements of the network around. They are numbered from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Measurements {
    /// The last one that came to its end; 0 before the first.
    pub last_ended: u64,
    /// The time of that end.
    pub ended_at: Option<Instant>,
    /// The one whose end answers the last request to measure. `None` while none runs.
    pub awaited: Option<u64>,
}

/// The path to a peer, for a status display.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerPath {
    /// The destination that was reported to the data plane.
    pub destination: Destination,
    /// The direct path, also while it is degraded.
    pub direct: Option<SocketAddr>,
    /// Its smoothed round-trip time.
    pub round_trip: Option<Duration>,
    /// The peer relay in use, or that would be without the direct path.
    pub peer_relay: Option<PathAddr>,
    /// The smoothed round-trip time through it.
    pub peer_relay_round_trip: Option<Duration>,
    /// The region of the relay that would be used.
    pub relay: Option<RegionId>,
}

/// The reason why a ping had no result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PingError {
    /// The handle is not known.
    #[error("no such peer")]
    NoSuchPeer,
    /// The peer published no disco key.
    #[error("the peer does not answer path-finding messages")]
    NoDisco,
    /// Neither an address nor a relay is known.
    #[error("no path to the peer is known yet")]
    NoPath,
    /// Nothing came back within 5 seconds.
    #[error("no answer within 5 seconds")]
    Timeout,
}

/// An output of the path engine.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Send a datagram from the socket of the family of `to`.
    SendUdp {
        /// The receiver.
        to: SocketAddr,
        /// The bytes.
        packet: Vec<u8>,
    },
    /// Do this with the sockets of a port search. Datagrams that arrive at them are given
    /// to `handle_search_udp`.
    Sockets(SocketOrder),
    /// Send a packet through the relay of a region that is connected.
    SendRelay {
        /// The region.
        region: RegionId,
        /// The receiver.
        to: NodePublic,
        /// The bytes.
        packet: Vec<u8>,
    },
    /// From now on the data plane sends packets for `peer` there.
    Destination {
        /// The peer.
        peer: PeerIndex,
        /// The new paths.
        destination: Destination,
    },
    /// Our own addresses changed: report them to control.
    Endpoints(Vec<(SocketAddr, EndpointType)>),
    /// Our findings about the network changed: report them to control.
    NetInfo(NetInfo),
    /// Our home relay is now in this region: inform the relays (NotePreferred).
    /// A `ConnectRelay` for it came before; a `NetInfo`, for control and the
    /// peers, follows when that relay is connected.
    HomeRelay(RegionId),
    /// Make one attempt to connect to the relay of this region, and answer
    /// with `relay_connected` or `relay_disconnected`. Repeated with a growing
    /// pause while the region is needed.
    ConnectRelay(RegionId),
    /// Nothing needed this relay for a minute: close it.
    CloseRelay(RegionId),
    /// Answer to [`ping`](crate::Paths::ping).
    Pong {
        /// From the call.
        token: u64,
        /// The peer.
        peer: PeerIndex,
        /// From sending to answer.
        latency: Duration,
        /// The path of the first answer.
        via: PathAddr,
    },
    /// A [`ping`](crate::Paths::ping) ended without an answer.
    PingFailed {
        /// From the call.
        token: u64,
        /// The reason.
        error: PingError,
    },
    /// Keep a mapping at the router to this UDP port of ours, and report it with
    /// `handle_port_map`; `None`: give the mapping up. After a change of the
    /// network, `None` comes first, so that a mapping is never taken from one
    /// network to the next.
    WantPortMapping {
        /// The family of the socket.
        family: Family,
        /// The local port.
        port: Option<u16>,
    },
    /// UDP seems blocked: time a GET of `/derp/latency-check` at this region
    /// and answer with `relay_https_latency`. Failures need no answer.
    ProbeRelayHttps {
        /// The region.
        region: RegionId,
    },
    /// A peer asks the relay server of this node for an endpoint. If the policy lets
    /// it, answer with `send_relay_endpoint`.
    RelayEndpointRequested {
        /// The peer.
        peer: PeerIndex,
        /// The DERP region that the request came through, and the answer goes through.
        region: RegionId,
        /// The two clients of the endpoint; the peer is one of them.
        clients: [DiscoPublic; 2],
        /// The number of the request, for the answer.
        generation: u32,
    },
    /// Resolve this name and answer with `host_resolved`, also when there is
    /// no address.
    ResolveHost {
        /// A host name of the relay map.
        name: String,
    },
}

/// The purpose of a deadline, for logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// The next STUN probe, or the end of a measurement.
    Netcheck,
    /// The next periodic measurement.
    Remeasure,
    /// Own addresses are published after a short wait for more.
    PublishEndpoints,
    /// A relay is connected again or closed.
    Relay,
    /// A port mapping expires.
    PortMapping,
    /// A peer's timer: pings, heartbeat, check or CallMeMaybe.
    Peer,
    /// Unanswered pings are forgotten.
    PingExpiry,
    /// The next probes of a port search, or its end.
    PortSearch,
}

/// Numbers of dropped inputs, by reason, and a few totals. All only grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs, reason = "each name is its own description")]
pub struct Counters {
    pub disco_malformed: u64,
    pub disco_unknown_sender: u64,
    pub disco_from_ourselves: u64,
    pub disco_does_not_open: u64,
    pub disco_unknown_type: u64,
    pub disco_wrong_transport: u64,
    pub disco_wrong_relay_sender: u64,
    pub ping_wrong_node: u64,
    pub ping_ambiguous: u64,
    pub ping_replayed: u64,
    pub pong_unknown_transaction: u64,
    pub pong_wrong_peer: u64,
    pub pong_wrong_transport: u64,
    pub stun_malformed: u64,
    pub stun_unknown_transaction: u64,
    pub candidates_refused: u64,
    pub candidates_evicted: u64,
    pub pings_evicted: u64,
    pub port_mappings_refused: u64,
    pub relay_requests_refused: u64,
    pub pre_netmap_dropped: u64,
    pub degenerate_disco_key: u64,
    pub pings_sent: u64,
    pub pongs_sent: u64,
    pub call_me_maybes_sent: u64,
    pub stun_sent: u64,
    pub searches_started: u64,
    pub searches_won: u64,
    pub search_probes_sent: u64,
    pub search_messages_refused: u64,
    pub search_datagrams_refused: u64,
    pub peer_relay_requests_sent: u64,
    pub peer_relay_binds_sent: u64,
    pub peer_relays_found: u64,
    pub peer_relay_endpoints_refused: u64,
    pub peer_relay_challenges_refused: u64,
    pub peer_relay_unknown: u64,
}

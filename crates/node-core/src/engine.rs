//! The engine: one owner for everything a node knows and decides.
//!
//! Inputs are methods that take the time; what follows from them is collected
//! and read with [`Engine::poll_output`] until it returns `None`. The three
//! parts do not know each other: path finding ([`Paths`]), WireGuard handshakes
//! ([`Handshakes`]) and the netmap ([`Netmap`]). The engine routes the events of
//! each to the others, and keeps the snapshot that the data plane reads
//! ([`View`]) up to date.

mod admission;
mod apply_netmap;
mod relay_client;
mod relay_server;
mod route_events;

#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use rustc_hash::FxHashMap;
use warren_control_types::{
    ApplyError, CapMap, Changes, EndpointType, MapResponse, NetInfo, Netmap, Node, NodeId, Notices,
    PeerDelta, RegionId,
};
use warren_filter::{Filter, FlowTable, RuleProblem};
use warren_keys::{DiscoPublic, DiscoSecret, Entropy, NodePublic, NodeSecret};
use warren_node_types::{PathAddr, SearchSocket, SocketOrder, TailnetRanges};
use warren_paths::{
    Destination, Event as PathEvent, Family, LocalAddresses, Measurements, Paths, PathsConfig,
    PeerInfo, PortMapReport, Reason as PathReason,
};
use warren_tunnel::{Aead, Event as TunnelEvent, Handshakes, PeerIndex, Session, Source};

use warren_wire::geneve;
use warren_wire::ip::{Protocol, tsmp};

use self::admission::Admission;
pub use self::admission::{HiddenPeer, LockGate, LockedOut};
pub use self::relay_server::RelayRequest;
use crate::entropy::SharedEntropy;
use crate::host_config::{HostConfig, TUNNEL_MTU, accepted_prefixes, single_addresses};
use crate::packet_filter::PacketFilter;
use crate::peers::{PeerTable, Unanswered};
use crate::prefs::NodePrefs;
use crate::report::{ControlReport, PeerReport, PingAnswer, PingError, Pong};
use crate::server_clock::{ClockPair, ServerClock};
use warren_dataplane::{
    Clients, Intercepts, Match, PeerView, RouteTable, ServiceId, SessionView, Sources, View,
};

/// Shortest time between two repetitions of an initiation to a peer from which
/// something was received.
const NUDGE_GAP: Duration = Duration::from_millis(250);

/// The name server inside the tunnel, the first service of this process.
pub const MAGIC_DNS: ServiceId = ServiceId(1);

/// The SSH server inside the tunnel.
pub const SSH: ServiceId = ServiceId(2);
/// Its port.
const SSH_PORT: u16 = 22;

/// Packets that end in this process: those of the host to the addresses of MagicDNS, and
/// those of peers to the SSH port of `ssh_addresses`. Connections of this machine to that
/// port stay with its own SSH server.
fn intercepts(ranges: &TailnetRanges, ssh_addresses: &[IpAddr]) -> Intercepts {
    let mut intercepts = Intercepts::new();
    for address in [ranges.service_v4.into(), ranges.service_v6.into()] {
        intercepts.insert(address, Match::Any, Clients::Host, MAGIC_DNS);
    }
    for address in ssh_addresses {
        let port = Match::Port(Protocol::TCP, SSH_PORT);
        intercepts.insert(*address, port, Clients::AdmittedPeers, SSH);
    }
    intercepts
}

/// The configuration of an engine.
pub struct EngineConfig {
    /// The node's identity to peers and relays.
    pub node_key: NodeSecret,
    /// The identity of its path-finding messages; new at every start.
    pub disco_key: DiscoSecret,
    /// How many entries the memory of flows has; `None` for the usual.
    pub flow_slots: Option<usize>,
    /// The cipher implementation that sessions use.
    pub aead: Aead,
    /// The address ranges of the tailnet. Everything in the node that must know
    /// them takes them from here.
    pub ranges: TailnetRanges,
    /// The peers that are accepted.
    pub lock: LockGate,
}

/// An action for the owner of the engine.
#[derive(Debug)]
pub enum Output {
    /// Send a datagram from the node's UDP socket.
    SendUdp {
        /// The receiver.
        to: SocketAddr,
        /// The datagram.
        packet: Vec<u8>,
    },
    /// Do this with the sockets of a port search; give the engine what arrives at them with
    /// [`Engine::handle_search_udp`].
    Sockets(SocketOrder),
    /// Send a packet through a relay; connect to it first if need be.
    SendRelay {
        /// The relay.
        region: RegionId,
        /// The receiver.
        to: NodePublic,
        /// The packet.
        packet: Vec<u8>,
    },
    /// Make one attempt to connect to this relay; answer with
    /// [`Engine::relay_connected`] or [`Engine::relay_disconnected`].
    ConnectRelay(RegionId),
    /// Nothing needs this relay any more: close the connection.
    CloseRelay(RegionId),
    /// This relay is now home: stay connected, and notify all relays.
    HomeRelay(RegionId),
    /// Measure the latency of a relay over HTTPS, because UDP does not get there;
    /// answer with [`Engine::relay_https_latency`].
    ProbeRelayHttps(RegionId),
    /// Find the addresses of a relay's host name, around the tunnel; answer
    /// with [`Engine::host_resolved`].
    ResolveHost(String),
    /// Keep a mapping at the router to this UDP port of the node, or give it up;
    /// answer with [`Engine::handle_port_map`].
    WantPortMapping {
        /// The family of the socket.
        family: Family,
        /// The local port; `None`: no mapping is needed.
        port: Option<u16>,
    },
    /// A peer that may use the relay server of this node asks for an endpoint; answer
    /// with [`Engine::send_relay_endpoint`], or not at all.
    RelayEndpointRequested(RelayRequest),
    /// Packets for this peer take another path from now on. Nothing to do: the
    /// view has it too.
    Path {
        /// The peer.
        node: NodeId,
        /// The path.
        destination: Destination,
    },
    /// The data plane should go on with this view.
    View(Arc<View>),
    /// Send an empty packet to the peer through its session.
    Keepalive(PeerIndex),
    /// Throw away the packets that wait for the peer: it does not answer.
    DropStaged(PeerIndex),
    /// Send an IP packet of the node's own to the peer through its session.
    Inject {
        /// The receiver.
        peer: PeerIndex,
        /// The packet.
        packet: Vec<u8>,
    },
    /// The operating system should be set up like this.
    Host(HostConfig),
    /// The netmap is different in these parts.
    Netmap(Box<Changes>),
    /// The coordination server should receive this report.
    Control(ControlReport),
    /// A ping has a reply, or failed.
    Pong(PingAnswer),
}

/// The counters of the engine.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct EngineCounters {
    /// Datagrams that neither path finding nor the handshakes accepted.
    pub unclaimed: u64,
    /// Packet filter rules that could not be read.
    pub bad_rules: u64,
    /// Handshake messages for peers without any path.
    pub unroutable: u64,
}

/// A node, without its operating system.
pub struct Engine {
    origin: Instant,
    aead: Aead,
    ranges: TailnetRanges,
    node_key: NodePublic,
    disco_key: DiscoPublic,
    prefs: NodePrefs,
    /// Without the peers that tailnet lock keeps out.
    netmap: Netmap,
    admission: Admission,
    peers: PeerTable,
    paths: Paths,
    handshakes: Handshakes,
    sessions: FxHashMap<u32, SessionView>,
    routes: Arc<RouteTable>,
    intercepts: Arc<Intercepts>,
    /// The addresses whose SSH port is intercepted.
    ssh_addresses: Vec<IpAddr>,
    sources: Arc<Sources>,
    packet_filter: PacketFilter,
    flows: Arc<FlowTable>,
    host_config: HostConfig,
    report: ControlReport,
    report_changed: bool,
    view_changed: bool,
    /// Peers whose key expired by the clock, before a message of the server.
    expired_here: BTreeSet<NodeId>,
    next_expiry: Option<Instant>,
    server_clock: ServerClock,
    counters: EngineCounters,
    outputs: VecDeque<Output>,
}

impl Engine {
    /// A node without peers.
    pub fn new(config: EngineConfig, now: Instant, entropy: Box<dyn Entropy>) -> Self {
        let mut entropy = SharedEntropy::new(entropy);
        let node_key = config.node_key.public();
        let disco_key = config.disco_key.public();
        let flows = match config.flow_slots {
            Some(slots) => FlowTable::with_slots(&mut entropy, slots),
            None => FlowTable::new(&mut entropy),
        };
        let mut handshakes = Handshakes::new(config.node_key, entropy.boxed());
        handshakes.set_aead(config.aead);
        let paths_config = PathsConfig {
            configured_port: None,
            ranges: config.ranges,
        };
        let paths = Paths::new(paths_config, node_key, config.disco_key, entropy.boxed());
        Self {
            origin: now,
            ranges: config.ranges,
            node_key,
            disco_key,
            prefs: NodePrefs::default(),
            netmap: Netmap::default(),
            admission: Admission::new(config.lock),
            peers: PeerTable::default(),
            paths,
            handshakes,
            aead: config.aead,
            sessions: FxHashMap::default(),
            routes: Arc::new(RouteTable::new()),
            intercepts: Arc::new(intercepts(&config.ranges, &[])),
            ssh_addresses: Vec::new(),
            sources: Arc::default(),
            packet_filter: PacketFilter::new(config.ranges),
            flows: Arc::new(flows),
            host_config: HostConfig::default(),
            report: ControlReport {
                endpoints: Vec::new(),
                net_info: None,
                disco_key,
            },
            report_changed: true,
            view_changed: true,
            expired_here: BTreeSet::new(),
            next_expiry: None,
            server_clock: ServerClock::default(),
            counters: EngineCounters::default(),
            outputs: VecDeque::new(),
        }
    }

    // ---- views ----

    /// The node's identity to peers.
    pub fn node_key(&self) -> NodePublic {
        self.node_key
    }

    /// The cipher implementation that sessions use.
    pub fn aead(&self) -> Aead {
        self.aead
    }

    /// The address ranges of the tailnet.
    pub fn ranges(&self) -> &TailnetRanges {
        &self.ranges
    }

    /// The identity of its path-finding messages.
    pub fn disco_key(&self) -> DiscoPublic {
        self.disco_key
    }

    /// The netmap as it is now.
    pub fn netmap(&self) -> &Netmap {
        &self.netmap
    }

    /// The preferences it acts on.
    pub fn prefs(&self) -> &NodePrefs {
        &self.prefs
    }

    /// The path engine, to read its report and counters.
    pub fn paths(&self) -> &Paths {
        &self.paths
    }

    /// The handshakes, to read their counters.
    pub fn handshakes(&self) -> &Handshakes {
        &self.handshakes
    }

    /// The newest time that a handshake of ours carried, since the UNIX epoch;
    /// to be kept for [`resume_timestamps`](Self::resume_timestamps).
    pub fn last_timestamp(&self) -> Duration {
        self.handshakes.last_timestamp()
    }

    /// The counters of dropped messages and rules.
    pub fn counters(&self) -> EngineCounters {
        self.counters
    }

    /// The report that the coordination server should have now.
    pub fn control_report(&self) -> &ControlReport {
        &self.report
    }

    /// The newest findings about the network around, latencies included.
    pub fn net_info(&self) -> NetInfo {
        self.paths.net_info()
    }

    /// The measurements of the network around.
    pub fn measurements(&self) -> Measurements {
        self.paths.measurements()
    }

    /// The state of every peer.
    pub fn peer_reports(&self, now: Instant) -> Vec<PeerReport> {
        let age = |at: Option<Instant>| at.map(|at| now.saturating_duration_since(at));
        self.peers
            .iter()
            .map(|(_, peer)| {
                let activity = peer.view.counters.activity(self.origin);
                let session = peer.view.session.as_ref();
                PeerReport {
                    node: peer.node,
                    key: peer.key,
                    destination: peer.view.destination,
                    has_session: session.is_some_and(|session| !session.is_expired(now)),
                    last_handshake: age(session.map(|session| session.created())),
                    last_sent: age(activity.last_sent),
                    last_received: age(activity.last_received),
                    traffic: peer.view.counters.traffic(),
                }
            })
            .collect()
    }

    /// The packet filter in force, with its counters. Its rules are those of
    /// the netmap, in order, unless shields are up.
    pub fn filter(&self) -> &Arc<Filter> {
        self.packet_filter.filter()
    }

    /// The entries of the netmap's packet filter that could not be used.
    pub fn filter_problems(&self) -> &[RuleProblem] {
        self.packet_filter.problems()
    }

    /// The peer that has `address`, or serves a route to it.
    pub fn peer_at(&self, address: IpAddr) -> Option<&Node> {
        let index = self.routes.lookup(address)?;
        self.netmap.peers.get(&self.peers.get(index)?.node)
    }

    // ---- inputs ----

    /// Continues with timestamps above `floor`, even if the clock is behind: peers
    /// refuse timestamps that are not above the last one of an earlier run.
    pub fn resume_timestamps(&mut self, floor: Duration) {
        self.handshakes.resume_timestamps(floor);
    }

    /// Changes the preferences.
    pub fn set_prefs(&mut self, now: Instant, prefs: NodePrefs) {
        if self.prefs == prefs {
            return;
        }
        self.paths.set_port_search(now, !prefs.no_port_search);
        self.prefs = prefs;
        let ids: Vec<NodeId> = self.netmap.peers.keys().copied().collect();
        for id in ids {
            self.refresh_peer(now, id);
        }
        self.rebuild_routes();
        if self.refresh_filter(false) {
            self.refresh_relay_roles(now);
        }
        self.refresh_host();
        self.refresh_intercepts();
        self.drain();
    }

    /// The time at the coordination server, since the UNIX epoch.
    pub fn server_time(&self, now: Instant, wall: Duration) -> Duration {
        self.server_clock.now(now, wall)
    }

    /// The clocks of the server and of this machine, once the former is known.
    pub fn clock_pair(&self, now: Instant, wall: Duration) -> Option<ClockPair> {
        self.server_clock.pair(now, wall)
    }

    /// The machine slept, so the server's time may be later than counted.
    pub fn slept(&mut self) {
        self.server_clock.slept();
    }

    /// The warning about a clock of this machine that is wrong.
    pub fn clock_problem(&self, now: Instant, wall: Duration) -> Option<String> {
        self.server_clock.problem(now, wall)
    }

    /// Starts from a netmap that was kept on disk, until the server sends one, and
    /// from the clocks that were kept with it.
    pub fn restore_netmap(
        &mut self,
        now: Instant,
        wall: Duration,
        netmap: Netmap,
        clock: Option<ClockPair>,
    ) {
        if let Some(clock) = clock {
            self.server_clock.resume(now, wall, clock);
        }
        // The first message of the server replaces this as a whole.
        let mut netmap = netmap;
        let before = self.admission.reveal(&mut self.netmap.peers);
        let mut changes = Changes::between(&self.netmap, &netmap);
        self.admission
            .conceal(&mut netmap.peers, before, &mut changes);
        self.netmap = netmap;
        self.follow(now, changes);
        self.expire_peers(now, wall);
    }

    /// A new map stream begins; its first message replaces the whole netmap.
    pub fn begin_map_stream(&mut self) {
        self.netmap.begin_stream();
    }

    /// Applies a message of the map stream.
    ///
    /// # Errors
    /// When it cannot be applied; the netmap is as before.
    pub fn apply_map(
        &mut self,
        now: Instant,
        wall: Duration,
        message: MapResponse,
    ) -> Result<Notices, ApplyError> {
        let before = self.admission.reveal(&mut self.netmap.peers);
        let mut applied = self.netmap.apply(message, wall);
        let mut nothing = Changes::default();
        let changes = match &mut applied {
            Ok(applied) => &mut applied.changes,
            Err(_) => &mut nothing,
        };
        self.admission
            .conceal(&mut self.netmap.peers, before, changes);
        let applied = applied?;
        let server = applied.notices.control_time;
        let server = server.and_then(|time| Duration::try_from(time.as_duration()).ok());
        // A server without a clock sends the zero time of its language.
        if let Some(server) = server.filter(|time| !time.is_zero()) {
            self.server_clock.learn(now, server);
        }
        if !applied.changes.is_empty() {
            let restarted = self.restarted_peers(&applied.changes);
            self.follow(now, applied.changes);
            for index in restarted {
                self.handshakes.renew(now, wall, index);
            }
            self.drain();
        }
        self.expire_peers(now, wall);
        Ok(applied.notices)
    }

    /// The sockets and interfaces of this machine.
    pub fn set_local_addresses(&mut self, now: Instant, addresses: LocalAddresses) {
        self.paths.set_local_addresses(now, addresses);
        self.drain();
    }

    /// The networks that this machine is in, with its addresses in them:
    /// as an exit node it does not open them.
    pub fn set_host_networks(&mut self, networks: Vec<IpNet>) {
        self.packet_filter.set_networks(networks);
        self.refresh_filter(false);
    }

    /// The network around us is another one: paths must be found again.
    pub fn link_changed(&mut self, now: Instant) {
        self.paths.link_changed(now);
        self.drain();
    }

    /// A datagram arrived at a socket of a port search.
    pub fn handle_search_udp(
        &mut self,
        now: Instant,
        wall: Duration,
        socket: SearchSocket,
        from: SocketAddr,
        packet: &[u8],
    ) {
        if !self.paths.handle_search_udp(now, socket, from, packet) {
            self.handshakes
                .handle_datagram(now, wall, Source::Udp(from), packet);
        }
        self.drain();
    }

    /// A datagram that is not tunnel data came in over UDP.
    pub fn handle_udp(&mut self, now: Instant, wall: Duration, from: SocketAddr, packet: &[u8]) {
        if !self.paths.handle_udp(now, from, packet) {
            let (source, message) = origin(from, packet);
            self.handshakes.handle_datagram(now, wall, source, message);
        }
        self.drain();
    }

    /// A packet that is not tunnel data came in through a relay.
    pub fn handle_relay(
        &mut self,
        now: Instant,
        wall: Duration,
        region: RegionId,
        from: NodePublic,
        packet: &[u8],
    ) {
        if !self.paths.handle_relay(now, region, from, packet) {
            let source = Source::Derp { region, key: from };
            self.handshakes.handle_datagram(now, wall, source, packet);
        } else {
            self.nudge(now, from);
        }
        self.drain();
    }

    /// A relay connection is up.
    pub fn relay_connected(&mut self, now: Instant, region: RegionId) {
        self.paths.relay_connected(now, region);
        self.drain();
    }

    /// A relay connection broke.
    pub fn relay_disconnected(&mut self, now: Instant, region: RegionId) {
        self.paths.relay_disconnected(now, region);
        self.drain();
    }

    /// A relay reports that a peer is not connected to it.
    pub fn relay_peer_gone(&mut self, now: Instant, region: RegionId, peer: NodePublic) {
        self.paths.relay_peer_gone(now, region, peer);
        self.drain();
    }

    /// An answer to [`Output::ProbeRelayHttps`].
    pub fn relay_https_latency(&mut self, now: Instant, region: RegionId, latency: Duration) {
        self.paths.relay_https_latency(now, region, latency);
        self.drain();
    }

    /// An answer to [`Output::ResolveHost`].
    pub fn host_resolved(&mut self, now: Instant, name: &str, addresses: Vec<IpAddr>) {
        self.paths.host_resolved(now, name, addresses);
        self.drain();
    }

    /// The port mapper has something to report.
    pub fn handle_port_map(&mut self, now: Instant, report: PortMapReport) {
        self.paths.handle_port_map(now, report);
        self.drain();
    }

    /// The data plane has packets for a peer and no session, or its session
    /// should be renewed, or the peer sends on one that we do not have.
    pub fn need_session(&mut self, now: Instant, wall: Duration, peer: PeerIndex) {
        self.paths.note_sent(now, peer);
        self.handshakes.want_session(now, wall, peer);
        self.drain();
    }

    /// The first packet on a session authenticated.
    pub fn session_confirmed(&mut self, now: Instant, local_index: u32) {
        self.handshakes.session_confirmed(now, local_index);
        self.drain();
    }

    /// Authenticated traffic of a peer came from there.
    pub fn received_from(&mut self, now: Instant, peer: PeerIndex, from: Source) {
        self.paths.note_received(now, peer, &from);
        self.drain();
    }

    /// A peer sent its disco key inside the tunnel, where only the peer can: it is
    /// newer than that of the netmap.
    pub fn disco_advertised(&mut self, now: Instant, peer: PeerIndex, key: DiscoPublic) {
        let Some(node) = self.peers.get(peer).map(|peer| peer.node) else {
            return;
        };
        let Some(entry) = self.netmap.peers.get_mut(&node) else {
            return;
        };
        if entry.disco_key != Some(key) {
            entry.disco_key = key.non_zero();
            self.refresh_peer(now, node);
            self.drain();
        }
    }

    /// Reads the data plane's counters: the timers of sessions and paths live
    /// on them. Call it a few times per second while there is traffic, less
    /// often otherwise; returns whether there was some.
    pub fn sample_traffic(&mut self, now: Instant, wall: Duration) -> bool {
        let mut busy = false;
        let indices: Vec<PeerIndex> = self.peers.iter().map(|(index, _)| index).collect();
        for index in indices {
            let Some(peer) = self.peers.get_mut(index) else {
                continue;
            };
            let traffic = peer.view.counters.traffic();
            let sent = traffic.tx_packets != peer.seen.tx_packets;
            let received = traffic.rx_packets != peer.seen.rx_packets;
            peer.seen.tx_packets = traffic.tx_packets;
            peer.seen.rx_packets = traffic.rx_packets;
            if peer.view.session.is_some() || sent || received {
                let activity = peer.view.counters.activity(self.origin);
                self.handshakes.note_activity(now, wall, index, activity);
            }
            if sent {
                self.paths.note_sent(now, index);
            }
            busy |= sent || received;
        }
        self.drain();
        busy
    }

    /// Sends a disco ping; the answer comes as [`Output::Pong`].
    ///
    /// # Errors
    /// When no peer has the address.
    pub fn ping(
        &mut self,
        now: Instant,
        address: IpAddr,
        token: u64,
        size: usize,
    ) -> Result<NodeId, PingError> {
        let own = self.netmap.self_node.as_ref();
        if own.is_some_and(|own| own.addresses.iter().any(|prefix| prefix.addr() == address)) {
            return Err(PingError::OwnAddress);
        }
        let index = self.routes.lookup(address).ok_or(PingError::NoSuchPeer)?;
        let node = self
            .peers
            .get(index)
            .map(|peer| peer.node)
            .ok_or(PingError::NoSuchPeer)?;
        let size = u16::try_from(size).ok().filter(|size| *size > 0);
        self.paths.ping(now, index, token, size);
        self.drain();
        Ok(node)
    }

    /// Sends a TSMP ping through the tunnel; the data plane receives the reply and
    /// reports its `data`: `token` in network order.
    ///
    /// # Errors
    /// When no peer has the address.
    pub fn ping_through_tunnel(&mut self, address: IpAddr, token: u64) -> Result<(), PingError> {
        let peer = self.routes.lookup(address).ok_or(PingError::NoSuchPeer)?;
        let own = self
            .netmap
            .self_node
            .as_ref()
            .ok_or(PingError::NoSuchPeer)?;
        let source = single_addresses(own);
        let source = source
            .into_iter()
            .find(|own| own.is_ipv4() == address.is_ipv4());
        let source = source.ok_or(PingError::NoSuchPeer)?;
        let ping = tsmp::Message::Ping(token.to_be_bytes());
        let packet = ping
            .packet(source, address)
            .map_err(|_| PingError::NoSuchPeer)?;
        self.outputs.push_back(Output::Inject { peer, packet });
        Ok(())
    }

    /// The capabilities that the policy grants `node` towards us.
    pub fn caps_from(&self, node: &Node) -> CapMap {
        let own = self
            .netmap
            .self_node
            .as_ref()
            .map(single_addresses)
            .unwrap_or_default();
        let pairs = node.addresses.iter().map(IpNet::addr).filter_map(|source| {
            Some((
                source,
                *own.iter().find(|own| own.is_ipv4() == source.is_ipv4())?,
            ))
        });
        let mut caps = CapMap::default();
        for (source, destination) in pairs {
            for (name, values) in self.packet_filter.filter().caps_for(source, destination).0 {
                caps.entry(name).or_insert(values);
            }
        }
        caps
    }

    /// How the operating system should be set up.
    pub fn host_config(&self) -> &HostConfig {
        &self.host_config
    }

    /// Whether the coordination server is reachable: while it is not, peers
    /// cannot learn of a new home relay, so there is none.
    pub fn set_control_connected(&mut self, connected: bool) {
        self.paths.set_control_connected(connected);
        self.drain();
    }

    /// While paused nothing is sent and no path is kept.
    pub fn set_paused(&mut self, now: Instant, paused: bool) {
        self.paths.set_paused(now, paused);
        self.drain();
    }

    /// Measures the network around us again.
    pub fn restun(&mut self, now: Instant) {
        self.paths.remeasure(now);
        self.drain();
    }

    /// When [`Engine::handle_timeout`] has something to do, and what.
    pub fn next_deadline(&self) -> Option<(Instant, &'static str)> {
        let paths = self
            .paths
            .next_deadline()
            .map(|(at, reason)| (at, path_reason(reason)));
        let tunnel = self
            .handshakes
            .next_deadline()
            .map(|(at, reason)| (at, reason.as_str()));
        let expiry = self.next_expiry.map(|at| (at, "key expiry of a peer"));
        [paths, tunnel, expiry]
            .into_iter()
            .flatten()
            .min_by_key(|(at, _)| *at)
    }

    /// Does what is due. Calling it early does nothing.
    pub fn handle_timeout(&mut self, now: Instant, wall: Duration) {
        self.paths.handle_timeout(now);
        self.handshakes.handle_timeout(now, wall);
        if self.next_expiry.is_some_and(|at| now >= at) {
            self.expire_peers(now, wall);
        }
        self.drain();
    }

    /// The next thing to do, if any.
    pub fn poll_output(&mut self) -> Option<Output> {
        // First the view: what a peer answers to the messages behind it must
        // find its session.
        if std::mem::take(&mut self.view_changed) {
            return Some(Output::View(Arc::new(self.build_view())));
        }
        if let Some(output) = self.outputs.pop_front() {
            return Some(output);
        }
        if std::mem::take(&mut self.report_changed) {
            return Some(Output::Control(self.report.clone()));
        }
        None
    }
}

/// The origin of a WireGuard message over UDP, and the message: behind a Geneve header it
/// came from a peer relay.
fn origin(from: SocketAddr, packet: &[u8]) -> (Source, &[u8]) {
    match geneve::Header::parse(packet) {
        Some((header, message)) => {
            let (server, vni) = (from, header.vni);
            (Source::PeerRelay { server, vni }, message)
        }
        None => (Source::Udp(from), packet),
    }
}

fn path_reason(reason: PathReason) -> &'static str {
    match reason {
        PathReason::Netcheck => "look at the network around",
        PathReason::Remeasure => "look at the network around again",
        PathReason::PublishEndpoints => "publish endpoints",
        PathReason::Relay => "relay connection",
        PathReason::PortMapping => "end of a port mapping",
        PathReason::Peer => "path of a peer",
        PathReason::PingExpiry => "unanswered pings",
        PathReason::PortSearch => "search for a path through a NAT",
    }
}

//! A node: the real [`Node`](warren_node_core::Node) and the real packet path, with
//! simulated sockets, streams and a disk around them.
//!
//! This file carries inputs in and outputs out, as the engine task of the daemon
//! does. It decides nothing: logins, retries, relay connections and paths are the
//! business of the node core. Everything that needs the network is left in
//! [`Node::actions`].

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use warren_control_types::{Hostinfo, RegionId};
use warren_dataplane::{VNET_HDR_LEN, View};
use warren_keys::{MachineSecret, NodePublic};
use warren_lock::LockSecret;
use warren_node_core::node::{
    HostReport, KeptLock, LinkId, LocalNetwork, NetworkChange, NodeConfig, NodeInput, NodeOutput,
    NodeSettings, SessionId, StoredLogin,
};
use warren_node_core::{HostConfig, Node as NodeCore, NodePrefs};
use warren_node_types::{Destination, SearchSocket, SocketOrder};
use warren_paths::LocalAddresses;
use warren_tunnel::Source;
use warren_wire::relay_batch;
use warren_wire::wireguard::is_transport;

use crate::network::HostId;
use crate::packet_path::{PacketEvent, PacketPath};
use crate::random::SimRng;
use crate::relay_io::{Received, RelayIo};
use crate::session_io::{Send, SessionIo};
use crate::stream::StreamId;
use crate::time::SimTime;

/// The UDP port of every node.
pub(crate) const PORT: u16 = 41_641;
/// The first port of the sockets of port searches.
const FIRST_SEARCH_PORT: u16 = 49_152;
/// The number of flows that a node remembers.
const FLOW_SLOTS: usize = 1024;

/// Something for the network to do.
pub(crate) enum Action {
    /// From this port.
    Udp(u16, SocketAddr, Vec<u8>),
    DialRelay(RegionId, LinkId),
    DialControl(SessionId),
    Send(StreamId, Vec<u8>),
    Close(StreamId),
    ProbeHttps(RegionId),
    /// A packet for the programs of the host.
    Packet(Vec<u8>),
}

/// The machine of a node and its user.
#[derive(Clone)]
pub(crate) struct Identity {
    pub(crate) name: String,
    pub(crate) machine: MachineSecret,
    pub(crate) auth_key: String,
}

/// The present, as a node sees it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NodeTime {
    pub(crate) now: Instant,
    pub(crate) elapsed: SimTime,
    pub(crate) wall: Duration,
}

/// The files of a node. They survive its process.
#[derive(Default)]
struct Disk {
    login: StoredLogin,
    want_running: bool,
    /// As JSON.
    netmap: Option<Vec<u8>>,
    clock_floor: Duration,
}

pub(crate) struct Node {
    pub(crate) host: HostId,
    pub(crate) identity: Identity,
    pub(crate) is_running: bool,
    pub(crate) actions: Vec<Action>,
    /// The paths that packets for each peer took, and since when.
    pub(crate) history: BTreeMap<NodePublic, Vec<(SimTime, Destination)>>,
    core: NodeCore,
    packets: PacketPath,
    disk: Disk,
    /// The settings of the operating system; `None`: as without the node.
    host_config: Option<HostConfig>,
    sessions: BTreeMap<SessionId, SessionIo>,
    relays: BTreeMap<RegionId, RelayIo>,
    sockets: SearchSockets,
    rng: SimRng,
}

/// The sockets of port searches.
#[derive(Default)]
struct SearchSockets {
    last: u16,
    /// By their ports.
    open: BTreeMap<u16, SearchSocket>,
    /// The ports from which the node sends to these addresses.
    kept: BTreeMap<SocketAddr, u16>,
}

impl SearchSockets {
    fn port_of(&self, socket: SearchSocket) -> Option<u16> {
        let mut open = self.open.iter();
        open.find(|(_, open)| **open == socket)
            .map(|(port, _)| *port)
    }

    /// The port from which the node sends to this address.
    fn port_to(&self, to: SocketAddr) -> u16 {
        self.kept.get(&to).copied().unwrap_or(PORT)
    }
}

impl Node {
    /// A node that is switched on now and logs in with its auth key.
    pub(crate) fn new(
        host: HostId,
        identity: Identity,
        at: NodeTime,
        addresses: Vec<IpAddr>,
        mut rng: SimRng,
    ) -> Self {
        // The key for tailnet lock is not drawn from the randomness of the run: no server
        // of the simulation offers it.
        let login = StoredLogin {
            lock_key: Some(LockSecret::from_seed(&[1; 32])),
            ..StoredLogin::default()
        };
        let disk = Disk {
            login,
            ..Disk::default()
        };
        let mut node = Self {
            host,
            core: process(&identity, &disk, at.now, addresses, &mut rng),
            identity,
            is_running: true,
            actions: Vec::new(),
            history: BTreeMap::new(),
            packets: PacketPath::new(),
            disk,
            host_config: None,
            sessions: BTreeMap::new(),
            relays: BTreeMap::new(),
            sockets: SearchSockets::default(),
            rng,
        };
        node.begin(at);
        node
    }

    // ---- views ----

    pub(crate) fn core(&self) -> &NodeCore {
        &self.core
    }

    pub(crate) fn view(&self) -> Option<&View> {
        self.packets.view()
    }

    pub(crate) fn packets(&self) -> &PacketPath {
        &self.packets
    }

    pub(crate) fn key(&self) -> NodePublic {
        self.core.engine().node_key()
    }

    // ---- the process and its user ----

    /// The process is killed; returns the streams it had.
    pub(crate) fn stop(&mut self) -> Vec<StreamId> {
        self.is_running = false;
        self.sockets = SearchSockets::default();
        self.actions.clear();
        let relays = std::mem::take(&mut self.relays).into_values();
        let sessions = std::mem::take(&mut self.sessions).into_values();
        let relays = relays.filter_map(|relay| relay.stream);
        relays
            .chain(sessions.filter_map(|session| session.stream()))
            .collect()
    }

    /// A new process starts from what is on disk.
    pub(crate) fn start(&mut self, at: NodeTime, addresses: Vec<IpAddr>) {
        self.core = process(&self.identity, &self.disk, at.now, addresses, &mut self.rng);
        self.packets = PacketPath::new();
        self.history.clear();
        self.host_config = None;
        self.is_running = true;
        self.begin(at);
    }

    fn begin(&mut self, at: NodeTime) {
        let netmap = self.disk.netmap.as_ref();
        let netmap = netmap.and_then(|netmap| serde_json::from_slice(netmap).ok());
        self.core.start(at.now, at.wall, netmap);
        if self.core.account().is_none() {
            self.log_in(at, false);
        } else {
            self.settle(at);
        }
    }

    /// The user logs in with the auth key, as with `warren up`. `force`: with a new
    /// node key, even if there is a login.
    pub(crate) fn log_in(&mut self, at: NodeTime, force: bool) {
        self.disk.want_running = true;
        let input = NodeInput::Start {
            settings: Box::new(settings(&self.identity, true)),
            force_login: force,
            auth_key: Some(self.identity.auth_key.clone()),
        };
        self.give(at, input);
        self.settle(at);
    }

    /// The user switches port searches on or off.
    pub(crate) fn set_port_search(&mut self, at: NodeTime, on: bool) {
        let settings = NodeSettings {
            packets: NodePrefs {
                no_port_search: !on,
                ..NodePrefs::default()
            },
            ..settings(&self.identity, self.disk.want_running)
        };
        self.give(at, NodeInput::Settings(Box::new(settings)));
        self.settle(at);
    }

    /// The host has these addresses now: its line was cut or mended.
    pub(crate) fn link_changed(&mut self, at: NodeTime, addresses: Vec<IpAddr>) {
        let network = Box::new(local_network(addresses));
        self.give(at, NodeInput::Network(NetworkChange::Major, network));
        self.settle(at);
    }

    /// A program of the host sends a packet into the tunnel.
    pub(crate) fn send_packet(&mut self, at: NodeTime, packet: &[u8]) {
        self.packets.send(at.now, packet);
        self.settle(at);
    }

    // ---- the network ----

    /// A datagram arrives at `port`.
    pub(crate) fn datagram(&mut self, at: NodeTime, port: u16, from: SocketAddr, bytes: &mut [u8]) {
        let is_kept = self.sockets.kept.values().any(|kept| *kept == port);
        if port == PORT || is_kept {
            let len = bytes.len();
            self.packets.receive(at.now, Source::Udp(from), bytes, len);
        } else if let Some(socket) = self.sockets.open.get(&port).copied() {
            let packet = bytes.to_vec();
            let input = NodeInput::SearchUdp {
                socket,
                from,
                packet,
            };
            self.give(at, input);
        }
        self.settle(at);
    }

    fn send_udp(&mut self, to: SocketAddr, bytes: Vec<u8>) {
        let port = self.sockets.port_to(to);
        self.actions.push(Action::Udp(port, to, bytes));
    }

    fn order_sockets(&mut self, order: SocketOrder) {
        let sockets = &mut self.sockets;
        match order {
            SocketOrder::Open { search, count } => {
                sockets.open.clear();
                for number in 0..count {
                    sockets.last = (sockets.last + 1) % (u16::MAX - FIRST_SEARCH_PORT);
                    let socket = SearchSocket { search, number };
                    sockets
                        .open
                        .insert(FIRST_SEARCH_PORT + sockets.last, socket);
                }
            }
            SocketOrder::Send { socket, to, packet } => {
                if let Some(port) = sockets.port_of(socket) {
                    self.actions.push(Action::Udp(port, to, packet));
                }
            }
            SocketOrder::Keep { socket, remote } => {
                if let Some(port) = sockets.port_of(socket) {
                    sockets.open.remove(&port);
                    sockets.kept.insert(remote, port);
                }
            }
            SocketOrder::Close { search } => {
                sockets.open.retain(|_, socket| socket.search != search);
            }
            SocketOrder::Release { remote } => drop(sockets.kept.remove(&remote)),
            SocketOrder::CloseAll => *sockets = SearchSockets::default(),
        }
    }

    /// The number of sockets of port searches: open for a search, and kept.
    pub(crate) fn search_sockets(&self) -> (usize, usize) {
        (self.sockets.open.len(), self.sockets.kept.len())
    }

    pub(crate) fn https_answered(&mut self, at: NodeTime, region: RegionId, latency: Duration) {
        self.give(at, NodeInput::RelayLatency(region, latency));
        self.settle(at);
    }

    /// The connection to a relay; `None` when the node does not want it any more.
    fn relay_of(&mut self, region: RegionId, stream: StreamId) -> Option<&mut RelayIo> {
        let relay = self.relays.get_mut(&region);
        relay.filter(|relay| relay.stream == Some(stream))
    }

    fn relay(&mut self, region: RegionId, link: LinkId) -> Option<&mut RelayIo> {
        let relay = self.relays.get_mut(&region);
        relay.filter(|relay| relay.link == link)
    }

    /// Whether a connection is still wanted, so that it should be dialled.
    pub(crate) fn wants_relay(&self, region: RegionId, link: LinkId) -> bool {
        let relay = self.relays.get(&region);
        relay.is_some_and(|relay| relay.link == link)
    }

    pub(crate) fn relay_dialed(&mut self, region: RegionId, link: LinkId, stream: StreamId) {
        if let Some(relay) = self.relay(region, link) {
            relay.stream = Some(stream);
        }
    }

    /// The stream to a relay is open; `key` comes with its certificate.
    pub(crate) fn relay_opened(
        &mut self,
        at: NodeTime,
        region: RegionId,
        stream: StreamId,
        key: NodePublic,
        local: Option<IpAddr>,
    ) {
        let node_key = self.core.node_key().clone();
        let relay = self.relays.get_mut(&region);
        let Some(relay) = relay.filter(|relay| relay.stream == Some(stream)) else {
            return;
        };
        let link = relay.link;
        let input = if relay.opened(at.now, &node_key, key, &mut self.rng) {
            NodeInput::RelayOpened {
                region,
                link,
                local,
            }
        } else {
            NodeInput::RelayDown(region, link)
        };
        self.give(at, input);
        self.settle(at);
    }

    pub(crate) fn relay_closed(&mut self, at: NodeTime, region: RegionId, stream: StreamId) {
        if let Some(relay) = self.relay_of(region, stream) {
            let link = relay.link;
            self.relays.remove(&region);
            self.give(at, NodeInput::RelayDown(region, link));
        }
        self.settle(at);
    }

    pub(crate) fn relay_data(
        &mut self,
        at: NodeTime,
        region: RegionId,
        stream: StreamId,
        bytes: &[u8],
    ) {
        let relay = self.relays.get_mut(&region);
        let Some(relay) = relay.filter(|relay| relay.stream == Some(stream)) else {
            return;
        };
        let link = relay.link;
        for event in relay.received(at.now, bytes, &mut self.rng) {
            let input = match event {
                Received::Up => NodeInput::RelayUp(region, link),
                Received::PeerGone(peer) => NodeInput::RelayPeerGone { region, peer },
                Received::Ended => {
                    self.end_relay(at, region);
                    continue;
                }
                Received::Packet(from, mut packet) => {
                    let source = Source::Derp { region, key: from };
                    if is_transport(&packet) {
                        let len = packet.len();
                        self.packets.receive(at.now, source, &mut packet, len);
                        continue;
                    }
                    if let Some((len, datagrams)) = relay_batch::split(&mut packet) {
                        self.packets.receive(at.now, source, datagrams, len);
                        continue;
                    }
                    NodeInput::Relay {
                        region,
                        from,
                        packet,
                    }
                }
            };
            self.give(at, input);
        }
        self.settle(at);
    }

    /// Closes a connection that cannot be used any more.
    fn end_relay(&mut self, at: NodeTime, region: RegionId) {
        if let Some(relay) = self.relays.remove(&region) {
            self.actions.extend(relay.stream.map(Action::Close));
            self.give(at, NodeInput::RelayDown(region, relay.link));
        }
    }

    // ---- the coordination server ----

    /// The session whose connection this is.
    fn session(&mut self, id: SessionId, stream: StreamId) -> Option<&mut SessionIo> {
        let session = self.sessions.get_mut(&id);
        session.filter(|session| session.stream() == Some(stream))
    }

    /// Whether a session has not ended, so that its connection should be dialled.
    pub(crate) fn wants_control(&self, id: SessionId) -> bool {
        self.sessions.contains_key(&id)
    }

    pub(crate) fn control_dialed(&mut self, id: SessionId, stream: StreamId) {
        if let Some(session) = self.sessions.get_mut(&id) {
            session.dialed(stream);
        }
    }

    pub(crate) fn control_opened(&mut self, id: SessionId, stream: StreamId) {
        if let Some(session) = self.session(id, stream) {
            let waiting = session.opened(stream).into_iter();
            let sends = waiting.map(|bytes| Action::Send(stream, bytes));
            self.actions.extend(sends);
        }
    }

    pub(crate) fn control_closed(&mut self, at: NodeTime, id: SessionId, stream: StreamId) {
        if self.session(id, stream).is_some() {
            self.control_ended(at, id, "the connection to the coordination server broke");
        }
        self.settle(at);
    }

    fn control_ended(&mut self, at: NodeTime, id: SessionId, reason: &str) {
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        for input in session.closed(reason) {
            self.give(at, NodeInput::Control(id, input));
        }
    }

    pub(crate) fn control_data(
        &mut self,
        at: NodeTime,
        id: SessionId,
        stream: StreamId,
        bytes: &[u8],
    ) {
        let Some(session) = self.session(id, stream) else {
            return;
        };
        match session.received(at.now, bytes) {
            Ok(input) => self.give(at, NodeInput::Control(id, input)),
            Err(reason) => {
                self.actions.push(Action::Close(stream));
                self.control_ended(at, id, &reason);
            }
        }
        self.settle(at);
    }

    // ---- time ----

    pub(crate) fn next_deadline(&self) -> Option<(Instant, &'static str)> {
        let relays = self.relays.values().filter_map(RelayIo::next_deadline);
        let sessions = self.sessions.values().filter_map(SessionIo::next_deadline);
        [
            self.core.next_deadline(),
            relays.min().map(|at| (at, "silence of a relay")),
            sessions.min().map(|at| (at, "silence of the map stream")),
        ]
        .into_iter()
        .flatten()
        .min_by_key(|(at, _)| *at)
    }

    pub(crate) fn timeout(&mut self, at: NodeTime) {
        self.core.handle_timeout(at.now, at.wall);
        let relays = self.relays.iter();
        let silent: Vec<RegionId> = relays
            .filter(|(_, relay)| relay.is_silent(at.now))
            .map(|(region, _)| *region)
            .collect();
        for region in silent {
            self.end_relay(at, region);
        }
        let is_due = |session: &SessionIo| session.next_deadline().is_some_and(|due| at.now >= due);
        let sessions = self.sessions.iter();
        let silent: Vec<_> = sessions
            .filter(|(_, session)| is_due(session))
            .map(|(id, session)| (*id, session.stream()))
            .collect();
        for (id, stream) in silent {
            self.actions.extend(stream.map(Action::Close));
            self.control_ended(at, id, "the coordination server is silent");
        }
        self.settle(at);
    }

    // ---- inputs and outputs of the core ----

    fn give(&mut self, at: NodeTime, input: NodeInput) {
        self.core.handle(at.now, at.wall, input);
    }

    /// Carries outputs and events between the core and the packet path until neither
    /// has any.
    fn settle(&mut self, at: NodeTime) {
        if !self.is_running {
            return;
        }
        loop {
            while let Some(output) = self.core.poll_output() {
                self.carry_out(at, output);
            }
            let events = self.packets.take_events();
            if events.is_empty() {
                break;
            }
            for event in events {
                self.on_packet_event(at, event);
            }
        }
        for relay in self.relays.values_mut() {
            if let Some((stream, bytes)) = relay.take_output() {
                self.actions.push(Action::Send(stream, bytes));
            }
        }
    }

    fn on_packet_event(&mut self, at: NodeTime, event: PacketEvent) {
        let input = match event {
            PacketEvent::SendUdp(to, bytes) => return self.send_udp(to, bytes),
            PacketEvent::SendRelay(region, to, packet) => {
                let relay = self.relays.get_mut(&region);
                match relay.filter(|relay| relay.is_open()) {
                    Some(relay) => return relay.send(to, &packet),
                    None => NodeInput::RelayData { region, to, packet },
                }
            }
            PacketEvent::Tun(frame) => {
                let packet = frame.get(VNET_HDR_LEN..).unwrap_or_default();
                return self.actions.push(Action::Packet(packet.to_vec()));
            }
            PacketEvent::Inject(peer, packet) => {
                return self.packets.inject(at.now, peer, &packet);
            }
            PacketEvent::Control(Source::Udp(from), packet) => NodeInput::Udp { from, packet },
            PacketEvent::Control(Source::Derp { region, key: from }, packet) => NodeInput::Relay {
                region,
                from,
                packet,
            },
            // Geneve headers are stripped from tunnel data alone.
            PacketEvent::Control(Source::PeerRelay { .. }, _) => return,
            PacketEvent::NeedSession(peer) => NodeInput::NeedSession(peer),
            PacketEvent::Confirmed(index) => NodeInput::SessionConfirmed(index),
            PacketEvent::ReceivedFrom(peer, from) => NodeInput::ReceivedFrom(peer, from),
            PacketEvent::TsmpPong(data) => NodeInput::TsmpPong(data),
            PacketEvent::DiscoAdvertised(peer, key) => NodeInput::DiscoAdvertised(peer, key),
        };
        self.give(at, input);
    }

    fn carry_out(&mut self, at: NodeTime, output: NodeOutput) {
        match output {
            NodeOutput::SendUdp { to, packet } => self.send_udp(to, packet),
            NodeOutput::Sockets(order) => self.order_sockets(order),
            NodeOutput::SendRelay {
                region,
                link,
                to,
                packet,
            } => {
                if let Some(relay) = self.relay(region, link) {
                    relay.send(to, &packet);
                }
            }
            NodeOutput::View(view) => {
                self.remember_paths(at.elapsed, &view);
                self.packets.set_view(at.now, view);
            }
            NodeOutput::Keepalive(peer) => self.packets.send_keepalive(at.now, peer),
            NodeOutput::DropStaged(peer) => self.packets.drop_staged(peer),
            NodeOutput::Inject { peer, packet } => self.packets.inject(at.now, peer, &packet),
            NodeOutput::DialRelay {
                region,
                link,
                is_home,
                ..
            } => {
                self.relays.insert(region, RelayIo::new(link, is_home));
                self.actions.push(Action::DialRelay(region, link));
            }
            NodeOutput::CloseRelay(region, link) => {
                if let Some(relay) = self.relay(region, link) {
                    let stream = relay.stream;
                    self.relays.remove(&region);
                    self.actions.extend(stream.map(Action::Close));
                }
            }
            NodeOutput::NoteHome(region, link, is_home) => {
                if let Some(relay) = self.relay(region, link) {
                    relay.note_home(is_home);
                }
            }
            NodeOutput::ProbeRelayHttps(region) => self.actions.push(Action::ProbeHttps(region)),
            // The relay map has an address for every name.
            // No host of the simulation runs a relay server.
            NodeOutput::RelayEndpointRequested(_) => {}
            NodeOutput::ResolveHost(name) => self.give(at, NodeInput::Resolved(name, Vec::new())),
            NodeOutput::OpenSession(id) => drop(self.sessions.insert(id, SessionIo::default())),
            NodeOutput::CloseSession(id) => {
                let stream = self.sessions.remove(&id).and_then(|s| s.stream());
                self.actions.extend(stream.map(Action::Close));
            }
            NodeOutput::Control(id, request) => {
                if let Some(session) = self.sessions.get_mut(&id) {
                    match session.request(request) {
                        Send::Nothing => {}
                        Send::Dial => self.actions.push(Action::DialControl(id)),
                        Send::Write(stream, bytes) => {
                            self.actions.push(Action::Send(stream, bytes));
                        }
                    }
                }
            }
            NodeOutput::SaveLogin(id) => {
                self.disk.login = self.core.stored_login();
                self.give(at, NodeInput::LoginSaved(id, Ok(())));
            }
            NodeOutput::SaveNetmap => {
                let kept = self.core.kept_netmap(at.now, at.wall);
                self.disk.netmap = serde_json::to_vec(&kept).ok();
            }
            NodeOutput::ForgetNetmap => self.disk.netmap = None,
            NodeOutput::SaveClock(floor) => self.disk.clock_floor = floor,
            NodeOutput::Host => self.set_up_host(at),
            // The routers map no ports, the server makes no requests to nodes, and the
            // user neither logs out nor pings. Paths are read from views.
            NodeOutput::C2n { .. }
            | NodeOutput::WantPortMapping { .. }
            | NodeOutput::Unregister(_)
            | NodeOutput::PingEnded { .. }
            | NodeOutput::Path { .. }
            | NodeOutput::Notice(_)
            // The server of the simulation does not offer tailnet lock.
            | NodeOutput::LockRequest { .. }
            | NodeOutput::StoreLock(_) => {}
        }
    }

    /// The operating system takes settings at once. As in the daemon, settings that
    /// do not change are not reported.
    fn set_up_host(&mut self, at: NodeTime) {
        let config = self.core.host_config();
        if self.host_config.as_ref() != config {
            self.host_config = config.cloned();
            let report = HostReport {
                addresses: config.map_or_else(Vec::new, |config| config.addresses.clone()),
                problems: Vec::new(),
            };
            self.give(at, NodeInput::HostApplied(report));
        }
    }

    fn remember_paths(&mut self, elapsed: SimTime, view: &View) {
        for peer in view.peers.iter().flatten() {
            let history = self.history.entry(peer.key).or_default();
            if history.last().map(|(_, last)| *last) != Some(peer.destination) {
                history.push((elapsed, peer.destination));
            }
        }
    }
}

/// A node core for a process that starts now.
fn process(
    identity: &Identity,
    disk: &Disk,
    now: Instant,
    addresses: Vec<IpAddr>,
    rng: &mut SimRng,
) -> NodeCore {
    let config = NodeConfig {
        stored: disk.login.clone(),
        lock: KeptLock::Off,
        clock_floor: disk.clock_floor,
        settings: settings(identity, disk.want_running),
        network: local_network(addresses),
        flow_slots: Some(FLOW_SLOTS),
        aead: warren_tunnel::Aead::default(),
        ranges: warren_node_types::TailnetRanges::DEFAULT,
        ephemeral: false,
    };
    NodeCore::new(config, now, rng.boxed())
}

fn settings(identity: &Identity, want_running: bool) -> NodeSettings {
    NodeSettings {
        want_running,
        server: crate::control::SERVER.to_owned(),
        packets: NodePrefs::default(),
        hostinfo: Hostinfo {
            hostname: identity.name.clone(),
            os: "linux".to_owned(),
            ..Hostinfo::default()
        },
    }
}

fn local_network(interfaces: Vec<IpAddr>) -> LocalNetwork {
    let has = |v4: bool| interfaces.iter().any(|address| address.is_ipv4() == v4);
    LocalNetwork {
        addresses: LocalAddresses {
            port_v4: has(true).then_some(PORT),
            port_v6: has(false).then_some(PORT),
            interfaces,
            explicit: Vec::new(),
        },
        networks: Vec::new(),
    }
}

//! A node: the real engine and both halves of the data plane, with everything
//! that the daemon does around them, and nothing of the operating system.
//!
//! It is a state like the cores: what happens to it goes in by methods, what
//! it wants done is left in [`Node::acts`].

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use warren_control_types::{Netmap, RegionId};
use warren_dataplane::{
    Drops, InSink, Inbound, InboundOffloads, Joined, OutSink, Outbound, RelaySend, ServiceId,
    TunWrite, UdpSend, VNET_HDR_LEN, View, VnetHdr,
};
use warren_keys::{DiscoPublic, DiscoSecret, MachineSecret, NodePublic, NodeSecret};
use warren_node_core::{Engine, EngineConfig, HostConfig, NodePrefs, Output};
use warren_paths::{Destination, LocalAddresses};
use warren_tunnel::{PeerIndex, Source};
use warren_wire::relay_train;
use warren_wire::wireguard::is_transport;

use crate::network::HostId;
use crate::node_control::ControlSession;
use crate::node_relay::{Arrived, RelayLink};
use crate::random::Dice;
use crate::stream::StreamId;
use crate::time::{Moment, millis, secs};

/// The UDP port of every node.
pub(crate) const PORT: u16 = 41_641;
/// How often traffic counters are looked at while packets flow, and otherwise.
const SAMPLE: (Duration, Duration) = (millis(200), secs(1));

/// What the data plane found out, in order.
enum News {
    Udp(SocketAddr, Vec<u8>),
    Relay(RegionId, NodePublic, Vec<u8>),
    NeedSession(PeerIndex),
    Tun(Vec<u8>),
    Control(Source, Vec<u8>),
    Confirmed(u32),
    Heard(PeerIndex, Source),
    Inject(PeerIndex, Vec<u8>),
    DiscoAdvertised(PeerIndex, DiscoPublic),
}

#[derive(Default)]
struct Sink(Vec<News>);

impl OutSink for Sink {
    fn udp(&mut self, sends: &[UdpSend], buffer: &[u8]) {
        for send in sends {
            self.0.extend(
                send.datagrams(buffer)
                    .map(|bytes| News::Udp(send.to, bytes.to_vec())),
            );
        }
    }

    fn relay(&mut self, sends: &[RelaySend], buffer: &[u8]) {
        for send in sends {
            let news = |bytes: &[u8]| News::Relay(send.region, send.to, bytes.to_vec());
            self.0
                .extend(send.packets(buffer, &mut Vec::new()).map(news));
        }
    }

    fn need_session(&mut self, peer: PeerIndex) {
        self.0.push(News::NeedSession(peer));
    }

    fn deliver(&mut self, _service: ServiceId, _packet: &[u8]) {}

    fn tun(&mut self, frame: &[u8]) {
        self.0.push(News::Tun(frame.to_vec()));
    }
}

impl InSink for Sink {
    fn deliver(&mut self, _service: ServiceId, _packet: &[u8]) {}

    fn tun_write(&mut self, frame: &[u8]) -> TunWrite {
        self.0.push(News::Tun(frame.to_vec()));
        TunWrite::Taken
    }

    fn joining_ends(&mut self, _: Joined) {}

    fn control(&mut self, from: Source, datagram: &[u8]) {
        self.0.push(News::Control(from, datagram.to_vec()));
    }

    fn confirmed(&mut self, local_index: u32) {
        self.0.push(News::Confirmed(local_index));
    }

    fn heard(&mut self, peer: PeerIndex, from: Source) {
        self.0.push(News::Heard(peer, from));
    }

    fn need_session(&mut self, peer: PeerIndex) {
        self.0.push(News::NeedSession(peer));
    }

    fn out(&mut self, peer: PeerIndex, packet: &[u8]) {
        self.0.push(News::Inject(peer, packet.to_vec()));
    }

    fn pong(&mut self, _peer: PeerIndex, _data: [u8; 8], _peer_api_port: Option<u16>) {}

    fn disco_advertised(&mut self, peer: PeerIndex, key: DiscoPublic) {
        self.0.push(News::DiscoAdvertised(peer, key));
    }
}

/// What a node wants done.
pub(crate) enum Act {
    Udp(SocketAddr, Vec<u8>),
    DialRelay(RegionId),
    DialControl,
    Send(StreamId, Vec<u8>),
    Close(StreamId),
    ProbeHttps(RegionId),
    Resolve(String),
    /// A packet for the programs of the host.
    Packet(Vec<u8>),
}

/// What a node is made with, and keeps over a restart.
#[derive(Clone)]
pub(crate) struct Identity {
    pub(crate) name: String,
    pub(crate) machine: MachineSecret,
    pub(crate) key: NodeSecret,
    pub(crate) old_key: Option<NodePublic>,
    pub(crate) auth_key: String,
}

/// The present, as a node sees it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Present {
    pub(crate) now: Instant,
    pub(crate) moment: Moment,
    pub(crate) wall: Duration,
}

pub(crate) struct Node {
    pub(crate) host: HostId,
    pub(crate) identity: Identity,
    pub(crate) is_running: bool,
    pub(crate) acts: Vec<Act>,
    /// Which way packets for a peer went, since when.
    pub(crate) history: BTreeMap<NodePublic, Vec<(Moment, Destination)>>,
    pub(crate) control: ControlSession,
    pub(crate) host_config: HostConfig,
    /// What is kept on disk.
    pub(crate) saved_netmap: Option<Vec<u8>>,
    engine: Engine,
    view: Option<Arc<View>>,
    outbound: Outbound,
    inbound: Inbound,
    drops: Arc<Drops>,
    sink: Sink,
    relays: BTreeMap<RegionId, RelayLink>,
    home: Option<RegionId>,
    sample_at: Instant,
    dice: Dice,
}

fn fresh_engine(identity: &Identity, now: Instant, dice: &mut Dice) -> Engine {
    let config = EngineConfig {
        node_key: identity.key.clone(),
        disco_key: DiscoSecret::generate(dice),
        flow_slots: Some(1024),
        aead: warren_tunnel::Aead::default(),
        ranges: warren_node_types::TailnetRanges::DEFAULT,
    };
    Engine::new(config, now, dice.boxed())
}

const NO_OFFLOADS: InboundOffloads = InboundOffloads {
    tcp: false,
    udp: false,
};

impl Node {
    pub(crate) fn new(host: HostId, identity: Identity, at: Present, mut dice: Dice) -> Self {
        let drops = Arc::new(Drops::new());
        Self {
            host,
            engine: fresh_engine(&identity, at.now, &mut dice),
            identity,
            is_running: true,
            acts: Vec::new(),
            history: BTreeMap::new(),
            control: ControlSession::new(at.now),
            host_config: HostConfig::default(),
            saved_netmap: None,
            view: None,
            outbound: Outbound::new(Arc::clone(&drops)),
            inbound: Inbound::new(NO_OFFLOADS, Arc::clone(&drops)),
            drops,
            sink: Sink::default(),
            relays: BTreeMap::new(),
            home: None,
            sample_at: at.now,
            dice,
        }
    }

    // ---- what others may look at ----

    pub(crate) fn engine(&self) -> &Engine {
        &self.engine
    }

    pub(crate) fn view(&self) -> Option<&View> {
        self.view.as_deref()
    }

    pub(crate) fn drops(&self) -> &Drops {
        &self.drops
    }

    pub(crate) fn key(&self) -> NodePublic {
        self.engine.node_key()
    }

    /// The tunnel address of one family.
    pub(crate) fn tunnel_address(&self, v4: bool) -> Option<IpAddr> {
        let addresses = &self.view.as_ref()?.addresses;
        addresses
            .iter()
            .find(|address| address.is_ipv4() == v4)
            .copied()
    }

    // ---- life ----

    /// The process ends, without a word; returns the streams it had.
    pub(crate) fn stop(&mut self) -> Vec<StreamId> {
        self.is_running = false;
        self.acts.clear();
        let relays = std::mem::take(&mut self.relays).into_values();
        let streams = relays
            .filter_map(|link| link.stream)
            .chain(self.control.stream());
        streams.collect()
    }

    /// A new process starts from what is on disk.
    pub(crate) fn start(&mut self, at: Present, addresses: Vec<IpAddr>) {
        let clock = self.engine.last_timestamp();
        self.engine = fresh_engine(&self.identity, at.now, &mut self.dice);
        self.engine.resume_timestamps(clock);
        self.view = None;
        self.drops = Arc::new(Drops::new());
        self.outbound = Outbound::new(Arc::clone(&self.drops));
        self.inbound = Inbound::new(NO_OFFLOADS, Arc::clone(&self.drops));
        self.sink = Sink::default();
        self.home = None;
        self.history.clear();
        self.control = ControlSession::new(at.now);
        self.is_running = true;
        self.sample_at = at.now;
        self.set_addresses(at, addresses);
        self.engine.set_prefs(at.now, NodePrefs::default());
        let saved: Option<Netmap> = self
            .saved_netmap
            .as_ref()
            .and_then(|saved| serde_json::from_slice(saved).ok());
        if let Some(netmap) = saved {
            self.engine.restore_netmap(at.now, at.wall, netmap);
        }
        self.turn(at);
    }

    /// The same process logs in with a new key, which makes it a new node.
    pub(crate) fn renew_key(&mut self, at: Present, addresses: Vec<IpAddr>) -> Vec<StreamId> {
        let streams = self.stop();
        self.identity.old_key = Some(self.identity.key.public());
        self.identity.key = NodeSecret::generate(&mut self.dice);
        self.saved_netmap = None;
        self.start(at, addresses);
        streams
    }

    fn set_addresses(&mut self, at: Present, interfaces: Vec<IpAddr>) {
        let has = |v4: bool| interfaces.iter().any(|address| address.is_ipv4() == v4);
        let addresses = LocalAddresses {
            port_v4: has(true).then_some(PORT),
            port_v6: has(false).then_some(PORT),
            interfaces,
            explicit: Vec::new(),
        };
        self.engine.set_local_addresses(at.now, addresses);
    }

    /// The host's addresses are others, or the cable was out. Connections from
    /// addresses that are gone are closed; returns their streams.
    pub(crate) fn link_changed(&mut self, at: Present, addresses: Vec<IpAddr>) -> Vec<StreamId> {
        let relays = std::mem::take(&mut self.relays);
        let streams = relays
            .values()
            .filter_map(|link| link.stream)
            .chain(self.control.stream());
        let streams = streams.collect();
        for region in relays.into_keys() {
            self.engine.relay_disconnected(at.now, region);
        }
        self.control_lost(at);
        self.set_addresses(at, addresses);
        self.engine.link_changed(at.now);
        self.turn(at);
        streams
    }

    fn control_lost(&mut self, at: Present) {
        self.control.lost(at.now, &mut self.dice);
        self.engine.set_control_connected(false);
    }

    // ---- from the network ----

    pub(crate) fn datagram(&mut self, at: Present, from: SocketAddr, bytes: &mut [u8]) {
        let len = bytes.len();
        self.tunnel_in(at, Source::Udp(from), bytes, len);
        self.turn(at);
    }

    fn tunnel_in(&mut self, at: Present, from: Source, bytes: &mut [u8], len: usize) {
        match &self.view {
            Some(view) => {
                self.inbound
                    .datagrams(view, at.now, from, bytes, len, &mut self.sink);
            }
            // Before the first view nothing can be for the tunnel.
            None => self.sink.0.push(News::Control(from, bytes.to_vec())),
        }
    }

    pub(crate) fn relay_dialed(&mut self, region: RegionId, stream: StreamId) {
        if let Some(link) = self.relays.get_mut(&region) {
            link.stream = Some(stream);
        }
    }

    pub(crate) fn relay_opened(
        &mut self,
        at: Present,
        region: RegionId,
        stream: StreamId,
        relay: NodePublic,
    ) {
        let home = self.home == Some(region);
        if let Some(link) = self
            .relays
            .get_mut(&region)
            .filter(|l| l.stream == Some(stream))
        {
            link.opened(at.now, &self.identity.key, relay, home, &mut self.dice);
        }
        self.turn(at);
    }

    pub(crate) fn relay_closed(&mut self, at: Present, region: RegionId, stream: StreamId) {
        if self
            .relays
            .get(&region)
            .is_some_and(|link| link.stream == Some(stream))
        {
            self.relays.remove(&region);
            self.engine.relay_disconnected(at.now, region);
        }
        self.turn(at);
    }

    pub(crate) fn relay_data(
        &mut self,
        at: Present,
        region: RegionId,
        stream: StreamId,
        bytes: &[u8],
    ) {
        let link = self
            .relays
            .get_mut(&region)
            .filter(|link| link.stream == Some(stream));
        let Some(link) = link else { return };
        for arrived in link.received(at.now, bytes, &mut self.dice) {
            match arrived {
                Arrived::Connected => self.engine.relay_connected(at.now, region),
                Arrived::Packet(from, mut packet) => {
                    let source = Source::Derp { region, key: from };
                    if is_transport(&packet) {
                        let len = packet.len();
                        self.tunnel_in(at, source, &mut packet, len);
                    } else if let Some((len, datagrams)) = relay_train::split(&mut packet) {
                        self.tunnel_in(at, source, datagrams, len);
                    } else {
                        self.engine
                            .handle_relay(at.now, at.wall, region, from, &packet);
                    }
                }
                Arrived::PeerGone(key) => self.engine.relay_peer_gone(at.now, region, key),
                Arrived::Broken => self.close_relay(at, region, true),
            }
        }
        self.turn(at);
    }

    fn close_relay(&mut self, at: Present, region: RegionId, tell: bool) {
        let Some(link) = self.relays.remove(&region) else {
            return;
        };
        self.acts.extend(link.stream.map(Act::Close));
        if tell {
            self.engine.relay_disconnected(at.now, region);
        }
    }

    pub(crate) fn https_answered(&mut self, at: Present, region: RegionId, latency: Duration) {
        self.engine.relay_https_latency(at.now, region, latency);
        self.turn(at);
    }

    pub(crate) fn resolved(&mut self, at: Present, name: &str, addresses: Vec<IpAddr>) {
        self.engine.host_resolved(at.now, name, addresses);
        self.turn(at);
    }

    // ---- the coordination server ----

    pub(crate) fn control_opened(&mut self, at: Present, stream: StreamId) {
        if self.control.stream() != Some(stream) {
            return;
        }
        let identity = self.identity.clone();
        let bytes = self.control.opened(&identity, self.engine.control_report());
        self.send_control(bytes);
        self.turn(at);
    }

    fn send_control(&mut self, messages: Vec<Vec<u8>>) {
        if let Some(stream) = self.control.stream() {
            self.acts
                .extend(messages.into_iter().map(|bytes| Act::Send(stream, bytes)));
        }
    }

    pub(crate) fn control_closed(&mut self, at: Present, stream: StreamId) {
        if self.control.stream() == Some(stream) {
            self.control_lost(at);
        }
        self.turn(at);
    }

    pub(crate) fn control_data(&mut self, at: Present, stream: StreamId, bytes: &[u8]) {
        if self.control.stream() != Some(stream) {
            return;
        }
        let identity = self.identity.clone();
        let heard = self
            .control
            .received(bytes, &identity, self.engine.control_report());
        self.send_control(heard.send);
        if heard.stream_begins {
            self.engine.begin_map_stream();
            self.engine.set_control_connected(true);
        }
        if let Some(map) = heard.map {
            match self.engine.apply_map(at.now, at.wall, *map) {
                Ok(_) => self.saved_netmap = serde_json::to_vec(self.engine.netmap()).ok(),
                Err(error) => self.control.complain(error.to_string()),
            }
        }
        self.turn(at);
    }

    // ---- from the host ----

    /// A program of the host sends a packet into the tunnel.
    pub(crate) fn send_packet(&mut self, at: Present, packet: &[u8]) {
        if let Some(view) = self.view.clone() {
            let frame = [&VnetHdr::PLAIN.to_bytes()[..], packet].concat();
            self.outbound.packet(&view, at.now, &frame, &mut self.sink);
        }
        self.turn(at);
    }

    // ---- time ----

    pub(crate) fn next_deadline(&self) -> Option<(Instant, &'static str)> {
        let engine = self.engine.next_deadline();
        let control = self
            .control
            .next_deadline()
            .map(|at| (at, "control session"));
        let sample = Some((self.sample_at, "traffic sample"));
        let relays = self
            .relays
            .values()
            .filter_map(RelayLink::next_deadline)
            .min();
        let relays = relays.map(|at| (at, "silence of a relay"));
        [engine, control, sample, relays]
            .into_iter()
            .flatten()
            .min_by_key(|(at, _)| *at)
    }

    pub(crate) fn timeout(&mut self, at: Present) {
        self.engine.handle_timeout(at.now, at.wall);
        if at.now >= self.sample_at {
            let busy = self.engine.sample_traffic(at.now, at.wall);
            self.sample_at = at.now + if busy { SAMPLE.0 } else { SAMPLE.1 };
        }
        let silent: Vec<RegionId> = self
            .relays
            .iter()
            .filter(|(_, link)| link.is_silent(at.now))
            .map(|(region, _)| *region)
            .collect();
        for region in silent {
            self.close_relay(at, region, true);
        }
        if self.control.wants_to_dial(at.now) {
            self.acts.push(Act::DialControl);
        }
        self.turn(at);
    }

    // ---- the turn of the crank ----

    /// Carries what engine and data plane say to each other until both are
    /// silent.
    fn turn(&mut self, at: Present) {
        if !self.is_running {
            return;
        }
        loop {
            while let Some(output) = self.engine.poll_output() {
                self.carry_out(at, output);
            }
            self.outbound.flush(&mut self.sink);
            self.inbound.flush(&mut self.sink);
            let news = std::mem::take(&mut self.sink.0);
            if news.is_empty() {
                break;
            }
            for news in news {
                self.take(at, news);
            }
        }
        for link in self.relays.values_mut() {
            if let Some((stream, bytes)) = link.take_output() {
                self.acts.push(Act::Send(stream, bytes));
            }
        }
    }

    fn take(&mut self, at: Present, news: News) {
        let Present { now, wall, .. } = at;
        match news {
            News::Udp(to, bytes) => self.acts.push(Act::Udp(to, bytes)),
            News::Relay(region, to, bytes) => self.relay_send(region, to, bytes),
            News::NeedSession(peer) => self.engine.need_session(now, wall, peer),
            News::Tun(frame) => {
                let packet = frame.get(VNET_HDR_LEN..).unwrap_or_default();
                self.acts.push(Act::Packet(packet.to_vec()));
            }
            News::Control(Source::Udp(from), bytes) => {
                self.engine.handle_udp(now, wall, from, &bytes);
            }
            News::Control(Source::Derp { region, key }, bytes) => {
                self.engine.handle_relay(now, wall, region, key, &bytes);
            }
            // The packet path strips no Geneve headers, so it reports none.
            News::Control(Source::PeerRelay { .. }, _) => {}
            News::Confirmed(index) => self.engine.session_confirmed(now, index),
            News::Heard(peer, from) => self.engine.heard(now, peer, from),
            News::Inject(peer, packet) => {
                if let Some(view) = self.view.clone() {
                    self.outbound
                        .inject(&view, now, peer, &packet, &mut self.sink);
                }
            }
            News::DiscoAdvertised(peer, key) => self.engine.disco_advertised(now, peer, key),
        }
    }

    fn relay_connect(&mut self, region: RegionId) {
        if let Entry::Vacant(place) = self.relays.entry(region) {
            place.insert(RelayLink::new());
            self.acts.push(Act::DialRelay(region));
        }
    }

    fn relay_send(&mut self, region: RegionId, to: NodePublic, bytes: Vec<u8>) {
        self.relay_connect(region);
        if let Some(link) = self.relays.get_mut(&region) {
            link.send(to, bytes);
        }
    }

    fn carry_out(&mut self, at: Present, output: Output) {
        match output {
            Output::SendUdp { to, packet } => self.acts.push(Act::Udp(to, packet)),
            Output::SendRelay { region, to, packet } => self.relay_send(region, to, packet),
            Output::ConnectRelay(region) => self.relay_connect(region),
            Output::CloseRelay(region) => self.close_relay(at, region, false),
            Output::HomeRelay(region) => {
                self.home = Some(region);
                for (other, link) in &mut self.relays {
                    link.note_home(*other == region);
                }
                self.relay_connect(region);
            }
            Output::ProbeRelayHttps(region) => self.acts.push(Act::ProbeHttps(region)),
            Output::ResolveHost(name) => self.acts.push(Act::Resolve(name)),
            Output::View(view) => {
                self.remember_paths(at.moment, &view);
                self.outbound.on_view_change(&view, at.now, &mut self.sink);
                self.inbound.on_view_change(&view);
                self.view = Some(view);
            }
            Output::Keepalive(peer) => {
                if let Some(view) = &self.view {
                    self.outbound
                        .send_keepalive(view, at.now, peer, &mut self.sink);
                }
            }
            Output::Inject { peer, packet } => self.sink.0.push(News::Inject(peer, packet)),
            Output::Host(config) => self.host_config = config,
            Output::Control(report) => {
                let messages = self.control.report(&self.identity, &report);
                self.send_control(messages);
            }
            // The simulated routers map no ports.
            Output::WantPortMapping { .. } => {}
            Output::Path { .. } => {}
            Output::DropStaged(peer) => self.outbound.drop_staged(peer),
            Output::Netmap(_) | Output::Pong(_) => {}
        }
    }

    fn remember_paths(&mut self, moment: Moment, view: &View) {
        for peer in view.peers.iter().flatten() {
            let history = self.history.entry(peer.key).or_default();
            if history.last().map(|(_, last)| *last) != Some(peer.destination) {
                history.push((moment, peer.destination));
            }
        }
    }
}

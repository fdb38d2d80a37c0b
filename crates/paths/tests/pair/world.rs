//! The virtual internet.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use warren_control_types::{DerpMap, DerpNode, DerpRegion, EndpointType, HostAddress, RegionId};
use warren_keys::{DiscoPublic, DiscoSecret, NodePublic, NodeSecret};
use warren_node_types::Source;
use warren_paths::{
    Destination, Event, LocalAddresses, PathAddr, Paths, PathsConfig, PeerIndex, PeerInfo,
    PeerRelayRole, PortMapReport,
};
use warren_peer_relay::{Limits, Server};
use warren_testkit::SeededEntropy;
use warren_wire::geneve::{Header, Payload};
use warren_wire::{disco, stun};

use crate::nat::{Kind, Nat};
use crate::reference::Reference;

pub const ONE_WAY: Duration = Duration::from_millis(20);
/// TCP, TLS and the upgrade.
const RELAY_CONNECT: Duration = Duration::from_millis(120);
/// From a change at control to the peers.
const CONTROL: Duration = Duration::from_millis(40);
pub const PORT: u16 = 41641;
/// The lifetime that routers give to port mappings.
pub const MAPPING_LIFETIME: Duration = Duration::from_secs(60);
/// From the wish for a mapping to the report.
const MAPPING: Duration = Duration::from_millis(30);

/// The port of relay servers.
const RELAY_PORT: u16 = 40_000;

pub fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// The path engine of a host: ours, or the model of a foreign one.
pub enum Engine {
    Ours(Box<Paths>),
    Reference(Box<Reference>),
}

/// The relay server of a host.
pub struct RelayServer {
    pub server: Server,
    entropy: SeededEntropy,
}

pub struct Node {
    pub engine: Engine,
    pub relay_server: Option<RelayServer>,
    pub nat: Nat,
    pub key: NodePublic,
    pub disco: DiscoPublic,
    inside: IpAddr,
    online: bool,
    endpoints: Vec<SocketAddr>,
    home: Option<RegionId>,
    /// Regions it is connected to.
    relays: BTreeSet<RegionId>,
    pub destinations: BTreeMap<usize, Destination>,
    pub history: Vec<(Instant, Destination)>,
    pub udp_sent: u64,
    pub events: Vec<Event>,
    last_note: BTreeMap<usize, Instant>,
    last_received: BTreeMap<usize, (Source, Instant)>,
}

enum Delivery {
    Udp {
        from: SocketAddr,
        to: SocketAddr,
        packet: Vec<u8>,
    },
    ToRelay {
        region: RegionId,
        from: usize,
        to: NodePublic,
        packet: Vec<u8>,
    },
    FromRelay {
        region: RegionId,
        from: NodePublic,
        to: usize,
        packet: Vec<u8>,
    },
    PeerGone {
        region: RegionId,
        about: NodePublic,
        to: usize,
    },
    RelayUp {
        region: RegionId,
        node: usize,
    },
    Netmap {
        about: usize,
        to: usize,
        info: PeerInfo,
    },
    PortMap {
        node: usize,
        report: PortMapReport,
    },
}

pub struct Flow {
    pub from: usize,
    pub to: usize,
    pub every: Duration,
    pub until: Instant,
    next: Instant,
    /// When each packet was sent, and when its first copy arrived.
    pub packets: Vec<(Instant, Option<Instant>)>,
}

impl Flow {
    /// Packets sent in the time that did not arrive.
    pub fn lost(&self) -> usize {
        self.packets
            .iter()
            .filter(|(_, arrived)| arrived.is_none())
            .count()
    }
}

pub struct World {
    pub now: Instant,
    pub start: Instant,
    pub nodes: Vec<Node>,
    pub flows: Vec<Flow>,
    /// Pairs of outside addresses between which UDP is lost, both ways.
    pub cut: BTreeSet<(IpAddr, IpAddr)>,
    pub regions: u16,
    /// Datagrams that are lost, in percent; of packets through DERP a quarter of that.
    pub loss: u64,
    /// Datagrams take up to this much longer, at random.
    pub jitter: Duration,
    /// Datagrams from and to these addresses take this much longer.
    pub slow: BTreeMap<IpAddr, Duration>,
    /// The host of each disco key, those of earlier processes as well.
    keys: BTreeMap<DiscoPublic, usize>,
    random: u64,
    in_flight: BTreeMap<(Instant, u64), Delivery>,
    sequence: u64,
    same_instant: u32,
}

fn stun_server(region: RegionId) -> SocketAddr {
    SocketAddr::from(([203, 0, 113, region.0 as u8], 3478))
}

impl World {
    pub fn new(kinds: &[Kind]) -> Self {
        let now = Instant::now();
        let mut world = Self {
            now,
            start: now,
            nodes: Vec::new(),
            flows: Vec::new(),
            cut: BTreeSet::new(),
            regions: 2,
            loss: 0,
            jitter: Duration::ZERO,
            slow: BTreeMap::new(),
            keys: BTreeMap::new(),
            random: 1,
            in_flight: BTreeMap::new(),
            sequence: 0,
            same_instant: 0,
        };
        for kind in kinds {
            world.add(*kind, false);
        }
        world
    }

    pub fn add(&mut self, kind: Kind, reference: bool) -> usize {
        let number = u8::try_from(self.nodes.len() + 1).unwrap();
        let key = NodeSecret::from_bytes(&[number; 32]).public();
        let secret = DiscoSecret::from_bytes(&[number + 100; 32]);
        let disco = secret.public();
        let nat = Nat::new(kind, Ipv4Addr::new(198, 51, 100, number).into());
        let inside = match nat.is_public() {
            true => nat.outside,
            false => Ipv4Addr::new(10, 0, number, 2).into(),
        };
        let engine = match reference {
            true => Engine::Reference(Box::new(Reference::new(key, secret, u64::from(number)))),
            false => Engine::Ours(Box::new(engine(key, secret, u64::from(number)))),
        };
        self.keys.insert(disco, self.nodes.len());
        self.nodes.push(Node {
            engine,
            relay_server: None,
            nat,
            key,
            disco,
            inside,
            online: false,
            endpoints: Vec::new(),
            home: None,
            relays: BTreeSet::new(),
            destinations: BTreeMap::new(),
            history: Vec::new(),
            udp_sent: 0,
            events: Vec::new(),
            last_note: BTreeMap::new(),
            last_received: BTreeMap::new(),
        });
        self.nodes.len() - 1
    }

    pub fn derp_map(&self) -> DerpMap {
        let region = |id: u16| {
            let IpAddr::V4(ip) = stun_server(RegionId(id)).ip() else {
                unreachable!()
            };
            let node = DerpNode {
                name: id.to_string(),
                host_name: format!("relay{id}.example"),
                ipv4: HostAddress::At(ip),
                ipv6: HostAddress::Never,
                ..DerpNode::default()
            };
            DerpRegion {
                region_id: RegionId(id),
                nodes: vec![node],
                ..DerpRegion::default()
            }
        };
        let regions = (1..=self.regions)
            .map(|id| (RegionId(id), region(id)))
            .collect();
        DerpMap {
            regions,
            ..DerpMap::default()
        }
    }

    /// The host starts, and control announces it and all others to each other.
    pub fn join(&mut self, node: usize) {
        self.nodes[node].online = true;
        let map = self.derp_map();
        let (now, local) = (self.now, self.local(node));
        match &mut self.nodes[node].engine {
            Engine::Ours(paths) => {
                paths.set_local_addresses(now, local);
                paths.set_derp_map(now, &map);
            }
            Engine::Reference(_) => {
                let nat = &mut self.nodes[node].nat;
                // The result that its own STUN would have.
                let seen = nat.outbound(now, PORT, stun_server(RegionId(1)));
                let inside = SocketAddr::new(self.nodes[node].inside, PORT);
                self.nodes[node].endpoints = seen.into_iter().chain([inside]).collect();
                self.nodes[node].home = Some(RegionId(1));
                self.nodes[node].relays.insert(RegionId(1));
            }
        }
        self.drain(node);
        for other in 0..self.nodes.len() {
            if other != node && self.nodes[other].online {
                self.announce(node, other);
                self.announce(other, node);
            }
        }
    }

    fn local(&self, node: usize) -> LocalAddresses {
        LocalAddresses {
            port_v4: Some(PORT),
            port_v6: None,
            interfaces: vec![self.nodes[node].inside, Ipv4Addr::LOCALHOST.into()],
            explicit: Vec::new(),
        }
    }

    pub fn info(&self, about: usize) -> PeerInfo {
        let node = &self.nodes[about];
        PeerInfo {
            node_key: node.key,
            disco_key: Some(node.disco),
            endpoints: node.endpoints.clone(),
            home_derp: node.home,
            peer_relay: match (&node.relay_server, &node.engine) {
                (Some(_), _) => PeerRelayRole::Server,
                (None, Engine::Ours(_)) => PeerRelayRole::Client,
                (None, Engine::Reference(_)) => PeerRelayRole::None,
            },
        }
    }

    /// The host begins to relay for others, with another key than before.
    pub fn serve_relay(&mut self, node: usize) {
        self.random = self.random.wrapping_add(1);
        let mut entropy = SeededEntropy(self.random ^ (node as u64) << 32);
        let secret = DiscoSecret::generate(&mut entropy);
        let mut server = Server::new(self.now, secret, Limits::default(), &mut entropy);
        server.set_addresses(vec![self.relay_address(node)]);
        self.nodes[node].relay_server = Some(RelayServer { server, entropy });
        self.announce_to_all(node);
    }

    pub fn relay_address(&self, node: usize) -> SocketAddr {
        SocketAddr::new(self.nodes[node].nat.outside, RELAY_PORT)
    }

    /// From now on some datagrams are lost and late, the same ones for the same seed.
    pub fn disturb(&mut self, seed: u64, loss: u64, jitter: Duration) {
        self.random = seed | 1;
        self.loss = loss;
        self.jitter = jitter;
    }

    fn draw(&mut self, below: u64) -> u64 {
        // Xorshift.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % below.max(1)
    }

    /// Sends a datagram over the internet, where some are lost and some are late.
    fn transmit(&mut self, from: SocketAddr, to: SocketAddr, packet: Vec<u8>) {
        if self.loss > 0 && self.draw(100) < self.loss {
            return;
        }
        let jitter = u64::try_from(self.jitter.as_millis()).unwrap();
        let late = if jitter > 0 {
            ms(self.draw(jitter))
        } else {
            Duration::ZERO
        };
        let slow = |ip: IpAddr| self.slow.get(&ip).copied().unwrap_or_default();
        let delay = ONE_WAY + late + slow(from.ip()) + slow(to.ip());
        self.deliver(delay, Delivery::Udp { from, to, packet });
    }

    /// Control sends `to` the netmap entry of `about`, after a moment.
    fn announce(&mut self, about: usize, to: usize) {
        let info = self.info(about);
        self.deliver(CONTROL, Delivery::Netmap { about, to, info });
    }

    fn announce_to_all(&mut self, about: usize) {
        for other in 0..self.nodes.len() {
            if other != about && self.nodes[other].online {
                self.announce(about, other);
            }
        }
    }

    /// The host moves to another network of the same kind.
    pub fn roam(&mut self, node: usize, outside: [u8; 4]) {
        let moved = &mut self.nodes[node];
        moved.nat = Nat::new(moved.nat.kind, Ipv4Addr::from(outside).into());
        let [_, _, third, fourth] = outside;
        moved.inside = match moved.nat.is_public() {
            true => moved.nat.outside,
            false => Ipv4Addr::new(10, third, fourth, 9).into(),
        };
        moved.relays.clear();
        let (now, local) = (self.now, self.local(node));
        let paths = self.paths(node);
        for region in [RegionId(1), RegionId(2)] {
            paths.relay_disconnected(now, region);
        }
        paths.set_local_addresses(now, local);
        paths.link_changed(now);
        self.drain(node);
    }

    /// The process starts again, with a new disco key and the same node key.
    pub fn restart(&mut self, node: usize) {
        let number = node as u8 + 1;
        let secret = DiscoSecret::from_bytes(&[number + 150; 32]);
        let old = &mut self.nodes[node];
        old.disco = secret.public();
        self.keys.insert(old.disco, node);
        old.engine = Engine::Ours(Box::new(engine(old.key, secret, u64::from(number) + 50)));
        old.relays.clear();
        old.destinations.clear();
        old.endpoints.clear();
        old.home = None;
        self.join(node);
    }

    pub fn paths(&mut self, node: usize) -> &mut Paths {
        match &mut self.nodes[node].engine {
            Engine::Ours(paths) => paths,
            Engine::Reference(_) => panic!("node {node} is a foreign one"),
        }
    }

    /// Applies `with` to the engine of `node`, and carries out its events.
    pub fn poke(&mut self, node: usize, with: impl FnOnce(&mut Paths, Instant)) {
        let now = self.now;
        with(self.paths(node), now);
        self.drain(node);
    }

    pub fn start_flow(&mut self, from: usize, to: usize, every: Duration, lasting: Duration) {
        let until = self.now + lasting;
        let packets = Vec::new();
        self.flows.push(Flow {
            from,
            to,
            every,
            until,
            next: self.now,
            packets,
        });
    }

    pub fn destination(&self, from: usize, to: usize) -> Destination {
        self.nodes[from]
            .destinations
            .get(&to)
            .copied()
            .unwrap_or_default()
    }

    pub fn is_direct(&self, from: usize, to: usize) -> bool {
        matches!(
            self.destination(from, to),
            Destination::One(PathAddr::Udp(_))
        )
    }

    pub fn is_relayed(&self, from: usize, to: usize) -> bool {
        matches!(
            self.destination(from, to),
            Destination::One(PathAddr::PeerRelay { .. })
        )
    }

    pub fn run(&mut self, time: Duration) {
        self.run_until(self.now + time, |_| false);
    }

    /// Runs until `done`, or `limit`. Returns the time it took, if it was done.
    pub fn run_while(&mut self, limit: Duration, done: impl Fn(&Self) -> bool) -> Option<Duration> {
        let began = self.now;
        self.run_until(began + limit, done)
            .then(|| self.now - began)
    }

    fn run_until(&mut self, end: Instant, done: impl Fn(&Self) -> bool) -> bool {
        loop {
            if done(self) {
                return true;
            }
            let delivery = self.in_flight.keys().next().map(|(at, _)| *at);
            let flow = self
                .flows
                .iter()
                .filter(|flow| flow.next < flow.until)
                .map(|it| it.next);
            let engines = self.nodes.iter().filter(|node| node.online);
            let engines = engines.filter_map(|node| match &node.engine {
                Engine::Ours(paths) => paths.next_deadline().map(|(at, _)| at),
                Engine::Reference(reference) => reference.next_deadline(),
            });
            let next = delivery.into_iter().chain(flow).chain(engines).min();
            let Some(next) = next.filter(|next| *next <= end) else {
                self.now = end;
                return done(self);
            };
            if next > self.now {
                self.same_instant = 0;
            } else {
                self.same_instant += 1;
                assert!(
                    self.same_instant < 500,
                    "the clock stands still: {}",
                    self.stuck()
                );
            }
            self.now = self.now.max(next);
            self.step();
        }
    }

    fn stuck(&self) -> String {
        let reasons = self.nodes.iter().map(|node| match &node.engine {
            Engine::Ours(paths) => format!("{:?} ", paths.next_deadline()),
            Engine::Reference(_) => "reference ".to_owned(),
        });
        reasons.collect()
    }

    fn step(&mut self) {
        let now = self.now;
        let due: Vec<_> = self
            .in_flight
            .keys()
            .take_while(|(at, _)| *at <= now)
            .copied()
            .collect();
        for key in due {
            if let Some(delivery) = self.in_flight.remove(&key) {
                self.arrive(delivery);
            }
        }
        for flow in 0..self.flows.len() {
            if self.flows[flow].next <= now && self.flows[flow].next < self.flows[flow].until {
                self.send_data(flow);
            }
        }
        for node in 0..self.nodes.len() {
            let node_state = &mut self.nodes[node];
            if !node_state.online {
                continue;
            }
            match &mut node_state.engine {
                Engine::Ours(paths) => {
                    if paths.next_deadline().is_some_and(|(at, _)| at <= now) {
                        paths.handle_timeout(now);
                        self.drain(node);
                    }
                }
                Engine::Reference(reference) => {
                    reference.handle_timeout(now);
                    self.drain(node);
                }
            }
        }
    }

    fn deliver(&mut self, after: Duration, delivery: Delivery) {
        self.sequence += 1;
        self.in_flight
            .insert((self.now + after, self.sequence), delivery);
    }

    /// Sends a datagram of `node` into the internet.
    pub fn send_udp(&mut self, node: usize, to: SocketAddr, packet: Vec<u8>) {
        self.nodes[node].udp_sent += 1;
        let from = self.nodes[node].nat.outbound(self.now, PORT, to);
        if let Some(from) = from {
            self.transmit(from, to, packet);
        }
    }

    fn send_data(&mut self, flow: usize) {
        let now = self.now;
        let (from, to) = (self.flows[flow].from, self.flows[flow].to);
        let every = self.flows[flow].every;
        self.flows[flow].next += every;
        let number = self.flows[flow].packets.len();
        let last = self.nodes[from].last_note.get(&to).copied();
        if last.is_none_or(|at| now >= at + ms(1000)) {
            self.nodes[from].last_note.insert(to, now);
            match &mut self.nodes[from].engine {
                Engine::Ours(paths) => paths.note_sent(now, PeerIndex(to as u32)),
                Engine::Reference(reference) => reference.note_sent(now, to),
            }
            self.drain(from);
        }
        // The data plane holds packets until there is a path.
        let destination = self.destination(from, to);
        if destination == Destination::None {
            return;
        }
        let udp = destination.paths().find_map(PathAddr::udp_target);
        let relay = destination.derp_region();
        self.flows[flow].packets.push((now, None));
        let mut packet = vec![4, 0, 0, 0, flow as u8];
        packet.extend_from_slice(&(number as u32).to_be_bytes());
        packet.resize(64, 0);
        let wrapped = match destination.vni() {
            Some(vni) => {
                let payload = Payload::WireGuard;
                Header { payload, vni }.wrap(&packet)
            }
            None => packet.clone(),
        };
        if let Some(udp) = udp {
            self.send_udp(from, udp, wrapped);
        }
        if let Some(region) = relay {
            let to = self.nodes[to].key;
            self.deliver(
                ONE_WAY / 2,
                Delivery::ToRelay {
                    region,
                    from,
                    to,
                    packet,
                },
            );
        }
    }

    fn take_data(&mut self, node: usize, from: Option<Source>, packet: &[u8]) {
        let [4, 0, 0, 0, flow, a, b, c, d, ..] = *packet else {
            panic!("not data: {packet:?}")
        };
        let number = u32::from_be_bytes([a, b, c, d]) as usize;
        let now = self.now;
        let sender = self.flows[usize::from(flow)].from;
        assert_eq!(self.flows[usize::from(flow)].to, node, "to the wrong peer");
        let arrival = &mut self.flows[usize::from(flow)].packets[number].1;
        arrival.get_or_insert(now);
        let Some(from) = from else { return };
        let last = self.nodes[node].last_received.get(&sender).copied();
        if last.is_none_or(|(address, at)| address != from || now >= at + ms(1000)) {
            self.nodes[node].last_received.insert(sender, (from, now));
            if let Engine::Ours(paths) = &mut self.nodes[node].engine {
                paths.note_received(now, PeerIndex(sender as u32), &from);
            }
            self.drain(node);
        }
    }

    fn arrive(&mut self, delivery: Delivery) {
        let now = self.now;
        match delivery {
            Delivery::Udp { from, to, packet } => self.arrive_udp(from, to, &packet),
            Delivery::ToRelay {
                region,
                from,
                to,
                packet,
            } => {
                let target = self.nodes.iter().position(|node| node.key == to);
                let here = |node: &usize| self.nodes[*node].relays.contains(&region);
                let key = self.nodes[from].key;
                let ours = matches!(self.nodes[from].engine, Engine::Ours(_));
                if ours && !self.nodes[from].relays.contains(&region) {
                    // The sender's relay client holds it until it is connected.
                    self.deliver(
                        ms(10),
                        Delivery::ToRelay {
                            region,
                            from,
                            to,
                            packet,
                        },
                    );
                    return;
                }
                match target.filter(here) {
                    Some(to) => self.deliver(
                        ONE_WAY / 2,
                        Delivery::FromRelay {
                            region,
                            from: key,
                            to,
                            packet,
                        },
                    ),
                    None if disco::looks_like_relayed_disco(&packet) => self.deliver(
                        ONE_WAY / 2,
                        Delivery::PeerGone {
                            region,
                            about: to,
                            to: from,
                        },
                    ),
                    None => {}
                }
            }
            Delivery::FromRelay {
                region,
                from,
                to,
                packet,
            } => {
                let consumed = match &mut self.nodes[to].engine {
                    Engine::Ours(paths) => paths.handle_relay(now, region, from, &packet),
                    Engine::Reference(reference) => reference.handle_relay(now, from, &packet),
                };
                self.drain(to);
                if !consumed {
                    self.take_data(to, None, &packet);
                }
            }
            Delivery::PeerGone { region, about, to } => {
                if let Engine::Ours(paths) = &mut self.nodes[to].engine {
                    paths.relay_peer_gone(now, region, about);
                }
                self.drain(to);
            }
            Delivery::RelayUp { region, node } => {
                self.nodes[node].relays.insert(region);
                self.poke(node, |paths, now| paths.relay_connected(now, region));
            }
            Delivery::PortMap { node, report } => {
                self.poke(node, |paths, now| paths.handle_port_map(now, report));
            }
            Delivery::Netmap { about, to, info } => {
                match &mut self.nodes[to].engine {
                    Engine::Ours(paths) => {
                        paths.upsert_peer(now, PeerIndex(about as u32), info);
                    }
                    Engine::Reference(reference) => reference.set_peer(about, info),
                }
                self.drain(to);
            }
        }
    }

    fn arrive_udp(&mut self, from: SocketAddr, to: SocketAddr, packet: &[u8]) {
        if self.cut.contains(&(from.ip(), to.ip())) || self.cut.contains(&(to.ip(), from.ip())) {
            return;
        }
        for region in 1..=self.regions {
            if to == stun_server(RegionId(region)) {
                let request = stun::Request::parse(packet).unwrap();
                let packet = stun::Response::to(&request, from).emit();
                self.deliver(
                    ONE_WAY,
                    Delivery::Udp {
                        from: to,
                        to: from,
                        packet,
                    },
                );
                return;
            }
        }
        let now = self.now;
        let target = self
            .nodes
            .iter()
            .position(|node| node.nat.outside == to.ip());
        let Some(node) = target.filter(|node| self.nodes[*node].online) else {
            return;
        };
        if self.nodes[node].relay_server.is_some() && to == self.relay_address(node) {
            self.arrive_at_relay(node, from, packet);
            return;
        }
        if !self.nodes[node].nat.inbound(now, to.port(), from) {
            return;
        }
        let consumed = match &mut self.nodes[node].engine {
            Engine::Ours(paths) => paths.handle_udp(now, from, packet),
            Engine::Reference(reference) => reference.handle_udp(now, from, packet),
        };
        self.drain(node);
        if !consumed {
            let (from, content) = match Header::parse(packet) {
                Some((Header { vni, .. }, content)) => {
                    (Source::PeerRelay { server: from, vni }, content)
                }
                None => (Source::Udp(from), packet),
            };
            self.take_data(node, Some(from), content);
        }
    }

    /// A datagram arrived at the relay server of a host.
    fn arrive_at_relay(&mut self, node: usize, from: SocketAddr, packet: &[u8]) {
        let now = self.now;
        let at = self.relay_address(node);
        let (header, content) = Header::parse(packet).unwrap();
        let relay = self.nodes[node].relay_server.as_mut().unwrap();
        relay.server.on_deadline(now);
        if header.payload == Payload::DiscoControl {
            let reply = relay
                .server
                .control(now, from, header.vni, content, &mut relay.entropy);
            if let Some(reply) = reply {
                self.transmit(at, from, reply);
            }
            return;
        }
        let to = relay
            .server
            .forward(now, from, header.vni, 1, packet.len() as u64);
        let endpoint = relay
            .server
            .endpoints()
            .into_iter()
            .find(|endpoint| endpoint.vni == header.vni);
        // Data names the endpoint of its own pair, or one that is gone.
        if let (Payload::WireGuard, Some(endpoint), [4, 0, 0, 0, flow, ..]) =
            (header.payload, endpoint, content)
        {
            let flow = &self.flows[usize::from(*flow)];
            let hosts = endpoint.sides.map(|side| self.keys.get(&side.key).copied());
            assert!(
                hosts.contains(&Some(flow.from)) && hosts.contains(&Some(flow.to)),
                "data at the endpoint of another pair"
            );
        }
        if let Some(to) = to {
            self.transmit(at, to, packet.to_vec());
        }
    }

    /// A peer asks the relay server of `node` for an endpoint.
    fn allocate(
        &mut self,
        node: usize,
        peer: PeerIndex,
        region: RegionId,
        clients: [DiscoPublic; 2],
        generation: u32,
    ) {
        let now = self.now;
        let requester = self.nodes[peer.0 as usize].key;
        let Some(relay) = &mut self.nodes[node].relay_server else {
            return;
        };
        let endpoint = relay
            .server
            .allocate(now, requester, clients, &mut relay.entropy);
        if let Ok(endpoint) = endpoint {
            self.paths(node)
                .send_relay_endpoint(now, peer, region, generation, endpoint);
        }
    }

    /// Does what the engine of `node` asks for.
    pub fn drain(&mut self, node: usize) {
        loop {
            let event = match &mut self.nodes[node].engine {
                Engine::Ours(paths) => paths.poll_event(),
                Engine::Reference(reference) => reference.poll_event(),
            };
            let Some(event) = event else { return };
            match event.clone() {
                Event::SendUdp { to, packet } => {
                    self.send_udp(node, to, packet);
                    continue;
                }
                Event::SendRelay { region, to, packet } => {
                    let up = matches!(self.nodes[node].engine, Engine::Reference(_))
                        || self.nodes[node].relays.contains(&region);
                    assert!(up, "sent through a relay that is not connected");
                    let delivery = Delivery::ToRelay {
                        region,
                        from: node,
                        to,
                        packet,
                    };
                    if self.loss == 0 || self.draw(400) >= self.loss {
                        self.deliver(ONE_WAY / 2, delivery);
                    }
                    continue;
                }
                Event::Destination { peer, destination } => {
                    self.nodes[node]
                        .destinations
                        .insert(peer.0 as usize, destination);
                    self.nodes[node].history.push((self.now, destination));
                }
                Event::Endpoints(list) => {
                    self.nodes[node].endpoints = list
                        .iter()
                        .map(|(address, _): &(_, EndpointType)| *address)
                        .collect();
                    self.announce_to_all(node);
                }
                Event::NetInfo(info) => {
                    self.nodes[node].home = info.preferred_derp;
                    self.announce_to_all(node);
                }
                Event::ConnectRelay(region) => {
                    self.deliver(RELAY_CONNECT, Delivery::RelayUp { region, node });
                }
                Event::CloseRelay(region) => {
                    self.nodes[node].relays.remove(&region);
                }
                Event::WantPortMapping { port, .. } => {
                    if let Some(external) = self.nodes[node].nat.forward(port.is_some()) {
                        let lifetime = MAPPING_LIFETIME;
                        let report = PortMapReport::Mapped { external, lifetime };
                        self.deliver(MAPPING, Delivery::PortMap { node, report });
                    }
                }
                Event::RelayEndpointRequested {
                    peer,
                    region,
                    clients,
                    generation,
                } => self.allocate(node, peer, region, clients, generation),
                // The hosts give no more sockets: port searches find nothing here.
                Event::Sockets(_)
                | Event::HomeRelay(_)
                | Event::Pong { .. }
                | Event::PingFailed { .. }
                | Event::ProbeRelayHttps { .. }
                | Event::ResolveHost { .. } => {}
            }
            self.nodes[node].events.push(event);
        }
    }
}

fn engine(key: NodePublic, secret: DiscoSecret, seed: u64) -> Paths {
    Paths::new(
        PathsConfig::default(),
        key,
        secret,
        Box::new(SeededEntropy(seed)),
    )
}

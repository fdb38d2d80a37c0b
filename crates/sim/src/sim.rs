//! The simulation: hosts, what happens to them, and in which order.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use warren_control_core::Coordinator;
use warren_control_types::{DerpMap, DerpNode, DerpRegion, HostAddress, RegionId};
use warren_keys::{Entropy as _, MachineSecret, NodeSecret};
use warren_node_core::Engine;
use warren_paths::Destination;
use warren_wire::ip::IpPacket;

use crate::control::{Control, ControlActs};
use crate::flow::{self, Flow, FlowReport, FlowSpec, Message};
use crate::network::{Datagram, HostId, Link, Loss, Network, Place};
use crate::node::{Act, Identity, Node, PORT, Present};
use crate::random::Dice;
use crate::relay::{HALF_OPEN, Relay, RelayActs};
use crate::stream::{Purpose, Side, StreamId, Streams};
use crate::time::{Clock, Moment, Queue, secs};
use crate::trace::{self, Trace};

const STUN_PORT: u16 = 3_478;
/// How long a connection attempt to nowhere takes to fail.
const DIAL_TIMEOUT: Duration = secs(10);
/// So many turns of one host at one moment mean that it runs in circles.
const IN_CIRCLES: u32 = 10_000;

/// A node of the simulation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeIndex(usize);

/// A relay of the simulation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelayIndex(usize);

/// A flow between two nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowIndex(usize);

/// Which way packets for a peer go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Nowhere yet.
    None,
    /// Through a relay.
    Relay,
    /// Straight.
    Direct,
    /// Both: the straight one is in doubt.
    Both,
}

impl From<Destination> for Way {
    fn from(destination: Destination) -> Self {
        match destination {
            Destination::None => Self::None,
            Destination::Udp(_) => Self::Direct,
            Destination::Relay(_) => Self::Relay,
            Destination::Both { .. } => Self::Both,
        }
    }
}

/// What a simulation is made with.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Decides everything that chance decides.
    pub seed: u64,
    /// The policy of the tailnet; all may do everything without.
    pub policy: Option<String>,
    /// How long node keys work.
    pub key_lifetime: Option<Duration>,
}

/// What a node is made with.
#[derive(Debug, Clone)]
pub struct NodeSpec {
    name: String,
    place: Place,
    link: Link,
    v6: bool,
    beside: Option<NodeIndex>,
    tags: BTreeSet<String>,
}

impl NodeSpec {
    /// A node with this name, at a place.
    pub fn new(name: &str, place: Place) -> Self {
        Self {
            name: name.to_owned(),
            place,
            link: Link::default(),
            v6: false,
            beside: None,
            tags: BTreeSet::new(),
        }
    }

    /// Its line.
    #[must_use]
    pub fn link(self, link: Link) -> Self {
        Self { link, ..self }
    }

    /// It has IPv6 too.
    #[must_use]
    pub fn with_v6(self) -> Self {
        Self { v6: true, ..self }
    }

    /// It shares the network of another node, whatever its place.
    #[must_use]
    pub fn beside(self, other: NodeIndex) -> Self {
        Self {
            beside: Some(other),
            ..self
        }
    }

    /// It belongs to a tag.
    #[must_use]
    pub fn tag(mut self, tag: &str) -> Self {
        self.tags.insert(tag.to_owned());
        self
    }
}

enum Event {
    /// A datagram is where it turns.
    Turn {
        segment: usize,
        datagram: Datagram,
    },
    /// A datagram arrives.
    Arrive {
        host: HostId,
        datagram: Datagram,
    },
    Opened(StreamId),
    Failed(StreamId),
    Data {
        stream: StreamId,
        to: Side,
        bytes: Vec<u8>,
    },
    Closed {
        stream: StreamId,
        to: Side,
    },
    HttpsAnswer {
        node: usize,
        region: RegionId,
        latency: Duration,
    },
    Wake(HostId),
    Send(usize),
}

#[derive(Clone, Copy)]
enum Role {
    Node(usize),
    Relay(usize),
    Control,
}

/// A deterministic internet with a tailnet on it.
///
/// Everything that is built takes part from then on; time passes only in
/// [`run_for`](Self::run_for) and its siblings.
pub struct Sim {
    clock: Clock,
    queue: Queue<Event>,
    network: Network,
    streams: Streams,
    roles: Vec<Role>,
    /// When each host is to be woken, as far as planned.
    wakes: Vec<Option<Moment>>,
    circling: (Moment, u32),
    nodes: Vec<Node>,
    /// How wrong the wall clock of each node is, in seconds.
    skew: Vec<i64>,
    relays: Vec<Relay>,
    control: Control,
    flows: Vec<Flow>,
    forbidden: BTreeSet<(usize, usize)>,
    violations: Vec<String>,
    narrates: bool,
    trace: Trace,
    dice: Dice,
}

impl Sim {
    /// A tailnet in which all may do everything.
    pub fn new(seed: u64) -> Self {
        Self::with(Options {
            seed,
            ..Options::default()
        })
    }

    /// A tailnet of these properties.
    pub fn with(options: Options) -> Self {
        let clock = Clock::new();
        let mut dice = Dice::new(options.seed);
        let mut network = Network::new(dice.fork());
        let host = network.add_host(Place::Open, Link::default(), true);
        let Options {
            policy,
            key_lifetime,
            ..
        } = options;
        let control = Control::new(
            host,
            clock.now(),
            clock.wall(),
            key_lifetime,
            policy,
            dice.fork(),
        );
        Self {
            clock,
            queue: Queue::new(),
            network,
            streams: Streams::default(),
            roles: vec![Role::Control],
            wakes: vec![None],
            circling: (Moment::ZERO, 0),
            nodes: Vec::new(),
            skew: Vec::new(),
            relays: Vec::new(),
            control,
            flows: Vec::new(),
            forbidden: BTreeSet::new(),
            violations: Vec::new(),
            narrates: false,
            trace: Trace::default(),
            dice,
        }
    }

    // ---- building ----

    /// A relay, which is a region of its own, near everybody.
    pub fn relay(&mut self, code: &str) -> RelayIndex {
        self.relay_with(
            code,
            Link {
                latency: Duration::from_millis(5),
                ..Link::default()
            },
        )
    }

    /// A relay on this line.
    pub fn relay_with(&mut self, code: &str, link: Link) -> RelayIndex {
        let host = self.network.add_host(Place::Open, link, true);
        let index = self.relays.len();
        let region = RegionId(u16::try_from(index + 1).unwrap_or(u16::MAX));
        self.relays
            .push(Relay::new(host, region, code, self.dice.fork()));
        self.roles.push(Role::Relay(index));
        self.wakes.push(None);
        let map = self.derp_map();
        self.control.coordinator.set_derp_map(map);
        self.settle_control();
        RelayIndex(index)
    }

    fn derp_map(&self) -> DerpMap {
        let mut map = DerpMap::default();
        for relay in &self.relays {
            let at = |v4: Option<_>| v4.map_or(HostAddress::Never, HostAddress::At);
            let node = DerpNode {
                name: format!("{}a", relay.region.0),
                region_id: relay.region,
                host_name: format!("{}.relay.sim", relay.code),
                ipv4: at(self.network.v4(relay.host)),
                ipv6: self
                    .network
                    .v6(relay.host)
                    .map_or(HostAddress::Never, HostAddress::At),
                ..DerpNode::default()
            };
            let region = DerpRegion {
                region_id: relay.region,
                region_code: relay.code.clone(),
                region_name: relay.code.clone(),
                nodes: vec![node],
                ..DerpRegion::default()
            };
            map.regions.insert(relay.region, region);
        }
        map
    }

    /// A node that starts now and joins with an auth key.
    pub fn node(&mut self, name: &str, place: Place) -> NodeIndex {
        self.node_with(NodeSpec::new(name, place))
    }

    /// The same, with more to say about it.
    pub fn node_with(&mut self, spec: NodeSpec) -> NodeIndex {
        let host = match spec.beside {
            Some(other) => self
                .network
                .add_beside(self.nodes[other.0].host, spec.link, spec.v6),
            None => self.network.add_host(spec.place, spec.link, spec.v6),
        };
        let mut dice = self.dice.fork();
        let identity = Identity {
            name: spec.name,
            machine: MachineSecret::from_bytes(&dice.bytes()),
            key: NodeSecret::generate(&mut dice),
            old_key: None,
            auth_key: self.auth_key(&spec.tags),
        };
        let index = self.nodes.len();
        self.skew.push(0);
        let at = self.present(index);
        self.nodes.push(Node::new(host, identity, at, dice));
        self.roles.push(Role::Node(index));
        self.wakes.push(None);
        let addresses = self.network.addresses(host);
        self.nodes[index].start(at, addresses);
        self.after(index);
        NodeIndex(index)
    }

    #[allow(
        clippy::expect_used,
        reason = "a simulation that cannot be set up has to stop"
    )]
    fn auth_key(&mut self, tags: &BTreeSet<String>) -> String {
        if tags.is_empty() {
            return self.control.auth_key.clone();
        }
        let new = warren_control_core::NewAuthKey {
            user: Some(crate::control::USER.to_owned()),
            reusable: true,
            tags: tags.clone(),
            ..warren_control_core::NewAuthKey::default()
        };
        let wall = self.clock.wall();
        let made = self.control.coordinator.create_auth_key(wall, new);
        made.expect("the tag is allowed").0.expose()
    }

    /// A program on `from` begins to send numbered datagrams to `to`, which
    /// sends them back.
    pub fn flow(&mut self, from: NodeIndex, to: NodeIndex, spec: FlowSpec) -> FlowIndex {
        let now = self.clock.moment();
        self.flows.push(Flow::new(now, from.0, to.0, spec));
        let index = self.flows.len() - 1;
        self.queue.plan(now, Event::Send(index));
        FlowIndex(index)
    }

    /// The program sends no more.
    pub fn stop_flow(&mut self, flow: FlowIndex) {
        self.flows[flow.0].is_running = false;
    }

    /// From now on it is a violation when a request of `from` reaches `to`.
    pub fn forbid(&mut self, from: NodeIndex, to: NodeIndex) {
        self.forbidden.insert((from.0, to.0));
    }

    // ---- faults and changes ----

    /// Cuts the straight way between two nodes; each still reaches the rest.
    pub fn cut(&mut self, a: NodeIndex, b: NodeIndex) {
        self.network
            .set_cut(self.nodes[a.0].host, self.nodes[b.0].host, true);
    }

    /// Mends the straight way between two nodes.
    pub fn mend(&mut self, a: NodeIndex, b: NodeIndex) {
        self.network
            .set_cut(self.nodes[a.0].host, self.nodes[b.0].host, false);
    }

    /// Pulls a node's cable.
    pub fn unplug(&mut self, node: NodeIndex) {
        let host = self.nodes[node.0].host;
        self.network.set_plugged(host, false);
        for stream in self.streams.of(host) {
            self.half_open(stream);
        }
        self.tell_link(node.0);
    }

    /// Puts a node's cable back in.
    pub fn plug(&mut self, node: NodeIndex) {
        self.network.set_plugged(self.nodes[node.0].host, true);
        self.tell_link(node.0);
    }

    /// Another line for a node.
    pub fn set_link(&mut self, node: NodeIndex, link: Link) {
        self.network.set_link(self.nodes[node.0].host, link);
    }

    /// Another line for a relay.
    pub fn set_relay_link(&mut self, relay: RelayIndex, link: Link) {
        self.network.set_link(self.relays[relay.0].host, link);
    }

    /// Takes a node to another network, with other addresses.
    pub fn roam(&mut self, node: NodeIndex, place: Place) {
        let host = self.nodes[node.0].host;
        self.network.move_host(host, place);
        for stream in self.streams.of(host) {
            self.half_open(stream);
        }
        self.tell_link(node.0);
    }

    /// The NATs and firewalls before a node forget everything.
    pub fn reboot_router(&mut self, node: NodeIndex) {
        self.network.reboot_gateways(self.nodes[node.0].host);
    }

    fn tell_link(&mut self, node: usize) {
        if !self.nodes[node].is_running {
            return;
        }
        let (at, addresses) = (self.present(node), self.interfaces(node));
        for stream in self.nodes[node].link_changed(at, addresses) {
            self.half_open(stream);
        }
        self.after(node);
    }

    /// The addresses that a node's host has now.
    fn interfaces(&self, node: usize) -> Vec<IpAddr> {
        let host = self.nodes[node].host;
        if self.network.is_plugged(host) {
            self.network.addresses(host)
        } else {
            Vec::new()
        }
    }

    /// A stream broke without a word: the client knows, the server finds out.
    fn half_open(&mut self, stream: StreamId) {
        self.streams.freeze(stream);
        let at = self.clock.moment() + HALF_OPEN;
        self.queue.plan(
            at,
            Event::Closed {
                stream,
                to: Side::Server,
            },
        );
    }

    /// Ends a node's process as with SIGKILL: the system closes its sockets.
    pub fn kill(&mut self, node: NodeIndex) {
        for stream in self.nodes[node.0].stop() {
            self.close(stream, Side::Client);
        }
    }

    /// Starts a node again; it has its keys and the netmap it kept, a new
    /// disco key and no sessions.
    pub fn start(&mut self, node: NodeIndex) {
        let at = self.present(node.0);
        let addresses = self.interfaces(node.0);
        self.nodes[node.0].start(at, addresses);
        self.after(node.0);
    }

    /// Starts a node again, unless it runs.
    pub fn start_if_stopped(&mut self, node: NodeIndex) {
        if !self.nodes[node.0].is_running {
            self.start(node);
        }
    }

    /// Kills a node and starts it again.
    pub fn restart(&mut self, node: NodeIndex) {
        self.kill(node);
        self.start(node);
    }

    /// Logs a node in again, with a new node key.
    pub fn renew_key(&mut self, node: NodeIndex) {
        let at = self.present(node.0);
        let addresses = self.interfaces(node.0);
        for stream in self.nodes[node.0].renew_key(at, addresses) {
            self.close(stream, Side::Client);
        }
        self.after(node.0);
    }

    /// Turns a node's wall clock forward or back, in seconds.
    pub fn jump_clock(&mut self, node: NodeIndex, seconds: i64) {
        self.skew[node.0] += seconds;
    }

    /// Stops a relay; its connections break.
    pub fn stop_relay(&mut self, relay: RelayIndex) {
        for stream in self.relays[relay.0].stop() {
            self.close(stream, Side::Server);
        }
    }

    /// Starts a relay again.
    pub fn start_relay(&mut self, relay: RelayIndex) {
        self.relays[relay.0].is_up = true;
    }

    /// The coordination server goes away.
    pub fn stop_control(&mut self) {
        let (now, wall) = (self.clock.now(), self.clock.wall());
        for stream in self.control.stop(now, wall) {
            self.close(stream, Side::Server);
        }
    }

    /// The coordination server is back, with what it knew.
    pub fn start_control(&mut self) {
        self.control.is_up = true;
    }

    /// Does something at the coordination server; nodes hear of it.
    pub fn admin<T>(&mut self, act: impl FnOnce(&mut Coordinator, Duration) -> T) -> T {
        let wall = self.clock.wall();
        let result = act(&mut self.control.coordinator, wall);
        self.settle_control();
        result
    }

    /// Mends all cuts and cables, and starts whatever was stopped.
    pub fn heal(&mut self) {
        let unplugged: Vec<usize> = (0..self.nodes.len())
            .filter(|node| !self.network.is_plugged(self.nodes[*node].host))
            .collect();
        self.network.mend_all();
        unplugged.into_iter().for_each(|node| self.tell_link(node));
        self.start_control();
        self.relays.iter_mut().for_each(|relay| relay.is_up = true);
        for node in 0..self.nodes.len() {
            if !self.nodes[node].is_running {
                self.start(NodeIndex(node));
            }
        }
    }

    // ---- what is to be seen ----

    /// The time since the start.
    pub fn moment(&self) -> Moment {
        self.clock.moment()
    }

    /// A node's engine.
    pub fn engine(&self, node: NodeIndex) -> &Engine {
        self.nodes[node.0].engine()
    }

    /// A node's name and present state, for messages.
    pub fn describe(&self, node: NodeIndex) -> String {
        let node = &self.nodes[node.0];
        let engine = node.engine();
        format!(
            "{}: running {}, home {:?}, {} peers, refused {:?}, net {:?}, paths {:?}",
            node.identity.name,
            node.is_running,
            engine.paths().home(),
            engine.netmap().peers.len(),
            node.control.refusal(),
            engine.paths().endpoints(),
            engine.paths().counters(),
        )
    }

    /// A node's address inside the tunnel.
    pub fn address(&self, node: NodeIndex) -> Option<IpAddr> {
        self.nodes[node.0].tunnel_address(true)
    }

    /// Why the coordination server does not want a node any more.
    pub fn refusal(&self, node: NodeIndex) -> Option<&str> {
        self.nodes[node.0].control.refusal()
    }

    /// How many packets a node's data plane dropped.
    pub fn drops(&self, node: NodeIndex) -> BTreeMap<String, u64> {
        let drops = self.nodes[node.0].drops();
        warren_node_core::dataplane::DropReason::ALL
            .iter()
            .filter(|reason| drops.get(**reason) > 0)
            .map(|reason| (format!("{reason:?}"), drops.get(*reason)))
            .collect()
    }

    /// Datagrams that the network did not deliver, by reason.
    pub fn losses(&self) -> &BTreeMap<Loss, u64> {
        self.network.losses()
    }

    /// How many clients a relay has.
    pub fn relay_clients(&self, relay: RelayIndex) -> usize {
        self.relays[relay.0].clients()
    }

    /// Which way a node sends packets for a peer.
    pub fn way(&self, from: NodeIndex, to: NodeIndex) -> Way {
        self.destination(from, to).into()
    }

    /// The same, with the address.
    pub fn destination(&self, from: NodeIndex, to: NodeIndex) -> Destination {
        let key = self.nodes[to.0].key();
        let peers = self.nodes[from.0].view().map(|view| view.peers.as_slice());
        let mut peers = peers.unwrap_or_default().iter().flatten();
        peers
            .find(|peer| peer.key == key)
            .map(|peer| peer.destination)
            .unwrap_or_default()
    }

    /// All ways a node's packets for a peer took since its start, and since
    /// when.
    pub fn ways(&self, from: NodeIndex, to: NodeIndex) -> Vec<(Moment, Way)> {
        let key = self.nodes[to.0].key();
        let history = self.nodes[from.0].history.get(&key);
        history
            .into_iter()
            .flatten()
            .map(|(at, way)| (*at, Way::from(*way)))
            .collect()
    }

    /// Whether `from` has `to` in its netmap, with whatever else is known of it
    /// by then.
    pub fn sees(&self, from: NodeIndex, to: NodeIndex) -> bool {
        let key = self.nodes[to.0].key();
        let mut peers = self.nodes[from.0].engine().netmap().peers.values();
        self.address(from).is_some() && peers.any(|peer| peer.key == key && !peer.expired)
    }

    /// Whether `from` has `to` in its netmap, with a home relay, and may use
    /// it.
    pub fn knows(&self, from: NodeIndex, to: NodeIndex) -> bool {
        let key = self.nodes[to.0].key();
        let mut peers = self.nodes[from.0].engine().netmap().peers.values();
        peers.any(|peer| peer.key == key && !peer.expired && peer.home_region().is_some())
    }

    /// What became of a flow.
    pub fn report(&self, flow: FlowIndex) -> FlowReport {
        self.flows[flow.0].report(self.clock.moment())
    }

    /// When datagram number `sequence` of a flow was sent.
    pub fn sent_at(&self, flow: FlowIndex, sequence: u32) -> Option<Moment> {
        self.flows[flow.0].sent_at(sequence)
    }

    /// A digest of everything that was delivered, when, from where, to where.
    pub fn trace(&self) -> u64 {
        self.trace.digest()
    }

    /// How many deliveries the digest is of.
    pub fn deliveries(&self) -> u64 {
        self.trace.count()
    }

    /// From now on every delivery is printed, to find out what went wrong.
    pub fn narrate(&mut self) {
        self.narrates = true;
    }

    fn name(&self, host: HostId) -> &str {
        match self.roles[host.0] {
            Role::Node(node) => &self.nodes[node].identity.name,
            Role::Relay(relay) => &self.relays[relay].code,
            Role::Control => "control",
        }
    }

    /// What must never happen and did.
    pub fn violations(&self) -> &[String] {
        &self.violations
    }

    // ---- time ----

    /// Lets time pass.
    pub fn run_for(&mut self, time: Duration) {
        self.run_until(self.clock.moment() + time);
    }

    /// Lets time pass until a moment.
    ///
    /// # Panics
    /// When something happened that never must.
    pub fn run_until(&mut self, moment: Moment) {
        while let Some((at, event)) = self.queue.take(moment) {
            self.clock.advance_to(at);
            self.happen(event);
        }
        self.clock.advance_to(moment);
        assert!(
            self.violations.is_empty(),
            "at {moment:?}: {:#?}",
            self.violations
        );
    }

    /// Lets time pass until something is so; returns how long that took, or
    /// `None` when it was not so within `limit`.
    pub fn wait_for(
        &mut self,
        limit: Duration,
        mut is_so: impl FnMut(&Self) -> bool,
    ) -> Option<Duration> {
        let began = self.clock.moment();
        loop {
            if is_so(self) {
                return Some(self.clock.moment() - began);
            }
            let Some((at, event)) = self.queue.take(began + limit) else {
                self.run_until(began + limit);
                return is_so(self).then_some(limit);
            };
            self.clock.advance_to(at);
            self.happen(event);
            assert!(
                self.violations.is_empty(),
                "at {at:?}: {:#?}",
                self.violations
            );
        }
    }

    /// Lets time pass until all nodes that run know each other.
    ///
    /// # Panics
    /// When that takes more than half a minute.
    #[track_caller]
    pub fn run_until_joined(&mut self) -> Duration {
        let pairs = |sim: &Self| {
            let running = |node: &usize| sim.nodes[*node].is_running;
            let nodes: Vec<usize> = (0..sim.nodes.len()).filter(running).collect();
            nodes.iter().all(|from| {
                let known = |to: &usize| from == to || sim.knows(NodeIndex(*from), NodeIndex(*to));
                nodes.iter().all(known)
            })
        };
        match self.wait_for(secs(30), pairs) {
            Some(time) => time,
            None => {
                let nodes = (0..self.nodes.len()).map(|node| self.describe(NodeIndex(node)));
                panic!("not joined in 30 s: {:#?}", nodes.collect::<Vec<_>>());
            }
        }
    }

    fn present(&self, node: usize) -> Present {
        let wall = self.clock.wall();
        let skew = Duration::from_secs(self.skew[node].unsigned_abs());
        Present {
            now: self.clock.now(),
            moment: self.clock.moment(),
            wall: if self.skew[node] < 0 {
                wall.saturating_sub(skew)
            } else {
                wall + skew
            },
        }
    }

    // ---- events ----

    fn happen(&mut self, event: Event) {
        match event {
            Event::Turn {
                segment,
                mut datagram,
            } => {
                let moment = self.clock.moment();
                match self.network.descend(moment, segment, &mut datagram) {
                    Ok((host, delay)) => {
                        self.queue
                            .plan(moment + delay, Event::Arrive { host, datagram });
                    }
                    Err(loss) => self.network.count(loss),
                }
            }
            Event::Arrive { host, datagram } => self.arrive(host, datagram),
            Event::Opened(stream) => self.opened(stream),
            Event::Failed(stream) => {
                if self.streams.get(stream).is_some() {
                    self.closed(stream, Side::Client);
                }
            }
            Event::Data { stream, to, bytes } => self.data(stream, to, &bytes),
            Event::Closed { stream, to } => self.closed(stream, to),
            Event::HttpsAnswer {
                node,
                region,
                latency,
            } => {
                if self.nodes[node].is_running {
                    let at = self.present(node);
                    self.nodes[node].https_answered(at, region, latency);
                    self.after(node);
                }
            }
            Event::Wake(host) => self.wake(host),
            Event::Send(flow) => self.send_flow(flow),
        }
    }

    fn arrive(&mut self, host: HostId, mut datagram: Datagram) {
        let Datagram { from, to, .. } = datagram;
        if !self.network.is_plugged(host) || !self.network.addresses(host).contains(&to.ip()) {
            self.network.count(Loss::Unplugged);
            return;
        }
        self.trace
            .datagram(self.clock.moment(), from, to, &datagram.bytes);
        if self.narrates {
            let (moment, bytes) = (self.clock.moment(), &datagram.bytes);
            let (sender, receiver) = (self.name(datagram.origin), self.name(host));
            let what = trace::name_of(bytes);
            println!("{moment:>12.3?} {sender} -> {receiver} {what} from {from} to {to}");
        }
        match self.roles[host.0] {
            Role::Control => {}
            Role::Relay(relay) => {
                let answer = self.relays[relay].stun(from, &datagram.bytes);
                if let Some(answer) = answer.filter(|_| to.port() == STUN_PORT) {
                    self.send_udp(host, STUN_PORT, from, answer);
                }
            }
            Role::Node(node) => {
                if to.port() == PORT && self.nodes[node].is_running {
                    let at = self.present(node);
                    self.nodes[node].datagram(at, from, &mut datagram.bytes);
                    self.after(node);
                }
            }
        }
    }

    fn send_udp(&mut self, host: HostId, port: u16, to: SocketAddr, bytes: Vec<u8>) {
        let moment = self.clock.moment();
        match self.network.climb(moment, host, port, to, bytes) {
            Ok(turned) => {
                let event = Event::Turn {
                    segment: turned.segment,
                    datagram: turned.datagram,
                };
                self.queue.plan(moment + turned.delay, event);
            }
            Err(loss) => self.network.count(loss),
        }
    }

    fn wake(&mut self, host: HostId) {
        let moment = self.clock.moment();
        if self.wakes[host.0] != Some(moment) {
            return;
        }
        self.wakes[host.0] = None;
        self.circling = match self.circling {
            (at, turns) if at == moment => (at, turns + 1),
            _ => (moment, 0),
        };
        let now = self.clock.now();
        match self.roles[host.0] {
            Role::Node(node) => {
                if !self.nodes[node].is_running {
                    return;
                }
                assert!(
                    self.circling.1 < IN_CIRCLES,
                    "{} does not get past its deadline at {moment:?}: {:?}",
                    self.nodes[node].identity.name,
                    self.nodes[node].next_deadline().map(|(_, reason)| reason),
                );
                let at = self.present(node);
                self.nodes[node].timeout(at);
                self.after(node);
            }
            Role::Relay(relay) => {
                let acts = self.relays[relay].handle_timeout(now);
                self.after_relay(relay, acts);
            }
            Role::Control => {
                let mut acts = ControlActs::default();
                self.control
                    .handle_timeout(now, self.clock.wall(), &mut acts);
                self.after_control(acts);
            }
        }
    }

    fn plan_wake(&mut self, host: HostId, at: Option<Instant>) {
        let Some(at) = at else { return };
        let at = self.clock.moment_of(at).max(self.clock.moment());
        if self.wakes[host.0].is_none_or(|planned| at < planned) {
            self.wakes[host.0] = Some(at);
            self.queue.plan(at, Event::Wake(host));
        }
    }

    // ---- streams ----

    fn dial(&mut self, node: usize, server: HostId, purpose: Purpose) -> StreamId {
        let client = self.nodes[node].host;
        let stream = self.streams.add(node, client, server, purpose);
        let there = self.network.stream_delay(client, server);
        let back = self.network.stream_delay(client, server);
        let moment = self.clock.moment();
        match there.zip(back) {
            // TCP and TLS take a round trip each.
            Some((there, back)) => {
                self.queue
                    .plan(moment + (there + back) * 2, Event::Opened(stream));
            }
            None => self
                .queue
                .plan(moment + DIAL_TIMEOUT, Event::Failed(stream)),
        }
        stream
    }

    fn opened(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get(id) else {
            return;
        };
        let plugged = self.network.is_plugged(stream.client);
        let is_up = match self.roles[stream.server.0] {
            Role::Relay(relay) => self.relays[relay].is_up,
            Role::Control => self.control.is_up,
            Role::Node(_) => false,
        };
        if !plugged || !is_up || stream.is_frozen {
            self.closed(id, Side::Client);
            return;
        }
        self.streams.open(id);
        let (node, at) = (stream.node, self.present(stream.node));
        match stream.purpose {
            Purpose::Relay(region) => {
                let Role::Relay(relay) = self.roles[stream.server.0] else {
                    return;
                };
                let key = self.relays[relay].key();
                let acts = self.relays[relay].accept(at.now, id);
                self.after_relay(relay, acts);
                self.nodes[node].relay_opened(at, region, id, key);
            }
            Purpose::Control => {
                let machine = self.nodes[node].identity.machine.public();
                self.control.accept(id, machine);
                self.nodes[node].control_opened(at, id);
            }
        }
        self.after(node);
    }

    fn send(&mut self, id: StreamId, from: Side, bytes: Vec<u8>) {
        let Some(stream) = self.streams.get(id).filter(|stream| stream.is_open) else {
            return;
        };
        // Into a dead line: TCP keeps it for ever.
        let Some(delay) = self.network.stream_delay(stream.client, stream.server) else {
            return;
        };
        let to = from.other();
        let at = self.streams.arrival(id, to, self.clock.moment() + delay);
        self.queue.plan(
            at,
            Event::Data {
                stream: id,
                to,
                bytes,
            },
        );
    }

    /// One side closes; the other hears of it behind what was sent before.
    fn close(&mut self, id: StreamId, from: Side) {
        let Some(stream) = self.streams.get(id) else {
            return;
        };
        let to = from.other();
        let delay = self
            .network
            .stream_delay(stream.client, stream.server)
            .unwrap_or(HALF_OPEN);
        let at = self.streams.arrival(id, to, self.clock.moment() + delay);
        self.queue.plan(at, Event::Closed { stream: id, to });
    }

    fn data(&mut self, id: StreamId, to: Side, bytes: &[u8]) {
        let Some(stream) = self.streams.get(id).filter(|stream| stream.is_open) else {
            return;
        };
        if !self.network.is_plugged(stream.client) {
            return;
        }
        let moment = self.clock.moment();
        self.trace.chunk(
            moment,
            stream.client.0,
            stream.server.0,
            to == Side::Client,
            bytes,
        );
        if self.narrates {
            let (client, server) = (self.name(stream.client), self.name(stream.server));
            let arrow = if to == Side::Client { "<=" } else { "=>" };
            let what = match stream.purpose {
                Purpose::Relay(_) => trace::frames_of(bytes),
                Purpose::Control => String::from_utf8_lossy(bytes).chars().take(300).collect(),
            };
            println!("{moment:>12.3?} {client} {arrow} {server} {what}");
        }
        let at = self.present(stream.node);
        match (to, stream.purpose) {
            (Side::Client, purpose) => {
                if !self.nodes[stream.node].is_running {
                    return;
                }
                match purpose {
                    Purpose::Relay(region) => {
                        self.nodes[stream.node].relay_data(at, region, id, bytes);
                    }
                    Purpose::Control => self.nodes[stream.node].control_data(at, id, bytes),
                }
                self.after(stream.node);
            }
            (Side::Server, Purpose::Relay(_)) => {
                let Role::Relay(relay) = self.roles[stream.server.0] else {
                    return;
                };
                let acts = self.relays[relay].received(at.now, id, bytes);
                self.after_relay(relay, acts);
            }
            (Side::Server, Purpose::Control) => {
                let mut acts = ControlActs::default();
                self.control
                    .received(at.now, self.clock.wall(), id, bytes, &mut acts);
                self.after_control(acts);
            }
        }
    }

    fn closed(&mut self, id: StreamId, to: Side) {
        let Some(stream) = self.streams.remove(id) else {
            return;
        };
        let at = self.present(stream.node);
        match (to, stream.purpose) {
            (Side::Client, purpose) => {
                if !self.nodes[stream.node].is_running {
                    return;
                }
                match purpose {
                    Purpose::Relay(region) => {
                        self.nodes[stream.node].relay_closed(at, region, id);
                    }
                    Purpose::Control => self.nodes[stream.node].control_closed(at, id),
                }
                self.after(stream.node);
            }
            (Side::Server, Purpose::Relay(_)) => {
                let Role::Relay(relay) = self.roles[stream.server.0] else {
                    return;
                };
                let acts = self.relays[relay].closed(at.now, id);
                self.after_relay(relay, acts);
            }
            (Side::Server, Purpose::Control) => {
                self.control.closed(at.now, self.clock.wall(), id);
                self.settle_control();
            }
        }
    }

    // ---- after a host had its turn ----

    fn after(&mut self, node: usize) {
        for act in std::mem::take(&mut self.nodes[node].acts) {
            let host = self.nodes[node].host;
            match act {
                Act::Udp(to, bytes) => self.send_udp(host, PORT, to, bytes),
                Act::DialRelay(region) => {
                    let relay = self.relays.iter().find(|relay| relay.region == region);
                    if let Some(server) = relay.map(|relay| relay.host) {
                        let stream = self.dial(node, server, Purpose::Relay(region));
                        self.nodes[node].relay_dialed(region, stream);
                    }
                }
                Act::DialControl => {
                    let stream = self.dial(node, self.control.host, Purpose::Control);
                    self.nodes[node].control.dialed(stream);
                }
                Act::Send(stream, bytes) => self.send(stream, Side::Client, bytes),
                Act::Close(stream) => self.close(stream, Side::Client),
                Act::ProbeHttps(region) => self.probe_https(node, region),
                Act::Resolve(name) => {
                    // All relays tell their addresses.
                    let at = self.present(node);
                    self.nodes[node].resolved(at, &name, Vec::new());
                }
                Act::Packet(packet) => self.packet(node, &packet),
            }
        }
        if !self.nodes[node].acts.is_empty() {
            self.after(node);
        }
        let at = self.nodes[node].next_deadline().map(|(at, _)| at);
        self.plan_wake(self.nodes[node].host, at);
    }

    fn probe_https(&mut self, node: usize, region: RegionId) {
        let relay = self
            .relays
            .iter()
            .find(|relay| relay.region == region && relay.is_up);
        let Some(server) = relay.map(|relay| relay.host) else {
            return;
        };
        let client = self.nodes[node].host;
        let there = self.network.stream_delay(client, server);
        let back = self.network.stream_delay(client, server);
        if let Some((there, back)) = there.zip(back) {
            let latency = there + back;
            let at = self.clock.moment() + latency * 3;
            self.queue.plan(
                at,
                Event::HttpsAnswer {
                    node,
                    region,
                    latency,
                },
            );
        }
    }

    fn after_relay(&mut self, relay: usize, acts: RelayActs) {
        for (stream, bytes) in acts.send {
            self.send(stream, Side::Server, bytes);
        }
        for stream in acts.close {
            self.close(stream, Side::Server);
        }
        let at = self.relays[relay].next_deadline();
        self.plan_wake(self.relays[relay].host, at);
    }

    fn settle_control(&mut self) {
        let mut acts = ControlActs::default();
        self.control.settle(self.clock.wall(), &mut acts);
        self.after_control(acts);
    }

    fn after_control(&mut self, acts: ControlActs) {
        for (stream, bytes) in acts.send {
            self.send(stream, Side::Server, bytes);
        }
        for stream in acts.close {
            self.close(stream, Side::Server);
        }
        let at = self
            .control
            .next_deadline(self.clock.now(), self.clock.wall());
        self.plan_wake(self.control.host, at);
    }

    // ---- programs ----

    fn send_flow(&mut self, index: usize) {
        let (moment, flow) = (self.clock.moment(), &mut self.flows[index]);
        if !flow.is_running {
            return;
        }
        self.queue
            .plan(moment + flow.spec.interval, Event::Send(index));
        let (from, v4) = (flow.from, !flow.spec.v6);
        let Some(to) = self.nodes[flow.to].tunnel_address(v4) else {
            return;
        };
        let node = &self.nodes[from];
        let Some(own) = node.tunnel_address(v4).filter(|_| node.is_running) else {
            return;
        };
        let id = u32::try_from(index).unwrap_or(u32::MAX);
        if let Some(packet) = flow.next(moment, id, own, to) {
            let at = self.present(from);
            self.nodes[from].send_packet(at, &packet);
            self.after(from);
        }
    }

    /// A packet came out of a node's tunnel.
    fn packet(&mut self, node: usize, bytes: &[u8]) {
        let Ok(packet) = IpPacket::parse(bytes) else {
            self.violations
                .push(format!("node {node} was handed what is no packet"));
            return;
        };
        let own = [true, false].map(|v4| self.nodes[node].tunnel_address(v4));
        if !own.contains(&Some(packet.dst)) {
            let what = format!("node {node} was handed a packet for {}", packet.dst);
            self.violations.push(what);
        }
        let Some(message) = packet.udp_payload().and_then(Message::parse) else {
            return;
        };
        let (meant, other) = match message.is_reply {
            false => (message.to, message.from),
            true => (message.from, message.to),
        };
        if meant as usize != node {
            self.violations
                .push(format!("node {node} was handed {message:?}"));
            return;
        }
        let source = self.nodes[other as usize].tunnel_address(packet.src.is_ipv4());
        if source.is_some_and(|source| source != packet.src) {
            self.violations
                .push(format!("{message:?} came from {}", packet.src));
        }
        let moment = self.clock.moment();
        let Some(flow) = self.flows.get_mut(message.flow as usize) else {
            return;
        };
        let is_new = if message.is_reply {
            flow.note_answered(moment, message.sequence)
        } else {
            flow.note_reached(message.sequence)
        };
        if !is_new {
            self.violations
                .push(format!("{message:?} was delivered twice"));
        }
        if message.is_reply {
            return;
        }
        if self.forbidden.contains(&(other as usize, node)) {
            self.violations.push(format!("{message:?} was forbidden"));
        }
        if let Some(answer) = flow::echo(&packet) {
            let at = self.present(node);
            self.nodes[node].send_packet(at, &answer);
        }
    }
}

impl std::fmt::Debug for Sim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sim")
            .field("moment", &self.clock.moment())
            .field("nodes", &self.nodes.len())
            .field("deliveries", &self.deliveries())
            .finish_non_exhaustive()
    }
}

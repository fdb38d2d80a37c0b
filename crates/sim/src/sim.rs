//! The simulation: hosts, and the queue of their events.

mod build;
mod connections;
mod events;
mod faults;
mod programs;
mod views;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use warren_control_core::Coordinator;
use warren_control_types::{DerpMap, DerpNode, DerpRegion, HostAddress, RegionId};
use warren_keys::{Entropy as _, MachineSecret};
use warren_node_core::{Engine, Node as NodeCore};
use warren_node_types::{Destination, PathAddr};
use warren_wire::ip::IpPacket;

use crate::control::Control;
use crate::flow::{self, Flow, FlowDatagram, FlowReport, FlowSpec};
use crate::network::{Datagram, HostId, Link, Loss, Network, Uplink};
use crate::node::{Action, Identity, Node, NodeTime};
use crate::random::SimRng;
use crate::relay::{HALF_OPEN, Relay};
use crate::stream::{Purpose, Side, StreamActions, StreamId, Streams};
use crate::time::{Clock, Queue, SimTime, secs};
use crate::trace::{self, Trace};

const STUN_PORT: u16 = 3_478;
/// The time after which a connection attempt without any reply fails.
const DIAL_TIMEOUT: Duration = secs(10);
/// So many wakes at one instant mean that a host does not get past its deadline.
const MAX_WAKES_AT_ONCE: u32 = 10_000;

/// A node of the simulation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeIndex(usize);

/// A relay of the simulation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelayIndex(usize);

/// A flow between two nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowIndex(usize);

/// The kind of path that packets for a peer take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathKind {
    /// No path yet.
    None,
    /// Through a relay.
    Relay,
    /// Over UDP to the peer itself.
    Direct,
    /// Direct and through a relay: the direct path is degraded.
    Both,
}

impl From<Destination> for PathKind {
    fn from(destination: Destination) -> Self {
        match destination {
            Destination::None => Self::None,
            // The simulated internet has no peer relays.
            Destination::One(PathAddr::Udp(_) | PathAddr::PeerRelay { .. }) => Self::Direct,
            Destination::One(PathAddr::Derp(_)) => Self::Relay,
            Destination::Both(..) => Self::Both,
        }
    }
}

/// The properties of a simulation.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The seed of all randomness.
    pub seed: u64,
    /// The policy of the tailnet; without one all connections are allowed.
    pub policy: Option<String>,
    /// The lifetime of node keys.
    pub key_lifetime: Option<Duration>,
}

/// The properties of a node.
#[derive(Debug, Clone)]
pub struct NodeSpec {
    name: String,
    uplink: Uplink,
    link: Link,
    v6: bool,
    beside: Option<NodeIndex>,
    tags: BTreeSet<String>,
    late: Duration,
}

impl NodeSpec {
    /// A node with this name and this uplink.
    pub fn new(name: &str, uplink: Uplink) -> Self {
        Self {
            name: name.to_owned(),
            uplink,
            link: Link::default(),
            v6: false,
            beside: None,
            tags: BTreeSet::new(),
            late: Duration::ZERO,
        }
    }

    /// Lets the timers of the node fire so late, as on a machine with too much to do.
    #[must_use]
    pub fn late(self, late: Duration) -> Self {
        Self { late, ..self }
    }

    /// Replaces the link of the node.
    #[must_use]
    pub fn link(self, link: Link) -> Self {
        Self { link, ..self }
    }

    /// Gives the node IPv6 too.
    #[must_use]
    pub fn with_v6(self) -> Self {
        Self { v6: true, ..self }
    }

    /// Puts the node into the network of another one; its own uplink is not used.
    #[must_use]
    pub fn beside(self, other: NodeIndex) -> Self {
        Self {
            beside: Some(other),
            ..self
        }
    }

    /// Gives the node a tag.
    #[must_use]
    pub fn tag(mut self, tag: &str) -> Self {
        self.tags.insert(tag.to_owned());
        self
    }
}

enum Event {
    /// A datagram is in the segment that knows its destination.
    Descend {
        segment: usize,
        datagram: Datagram,
    },
    /// A datagram arrives at a host.
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
/// [`run_for`](Self::run_for), [`run_until`](Self::run_until),
/// [`wait_for`](Self::wait_for) and [`run_until_joined`](Self::run_until_joined).
pub struct Sim {
    clock: Clock,
    queue: Queue<Event>,
    network: Network,
    streams: Streams,
    roles: Vec<Role>,
    /// The planned wake of each host.
    wakes: Vec<Option<SimTime>>,
    wakes_at_once: (SimTime, u32),
    nodes: Vec<Node>,
    /// The error of the wall clock of each node, in seconds.
    skew: Vec<i64>,
    /// How late the timers of each node fire.
    late: Vec<Duration>,
    relays: Vec<Relay>,
    control: Control,
    flows: Vec<Flow>,
    forbidden: BTreeSet<(usize, usize)>,
    violations: Vec<String>,
    narrates: bool,
    trace: Trace,
    rng: SimRng,
}

impl Sim {
    /// A tailnet in which all connections are allowed.
    pub fn new(seed: u64) -> Self {
        Self::with(Options {
            seed,
            ..Options::default()
        })
    }

    /// A tailnet with these properties.
    pub fn with(options: Options) -> Self {
        let clock = Clock::new();
        let mut rng = SimRng::new(options.seed);
        let mut network = Network::new(rng.fork());
        let host = network.add_host(Uplink::Open, Link::default(), true);
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
            rng.fork(),
        );
        Self {
            clock,
            queue: Queue::new(),
            network,
            streams: Streams::default(),
            roles: vec![Role::Control],
            wakes: vec![None],
            wakes_at_once: (SimTime::ZERO, 0),
            nodes: Vec::new(),
            skew: Vec::new(),
            late: Vec::new(),
            relays: Vec::new(),
            control,
            flows: Vec::new(),
            forbidden: BTreeSet::new(),
            violations: Vec::new(),
            narrates: false,
            trace: Trace::default(),
            rng,
        }
    }

    // ---- time ----

    /// Lets time pass.
    pub fn run_for(&mut self, time: Duration) {
        self.run_until(self.clock.elapsed() + time);
    }

    /// Lets time pass until this time since the start.
    ///
    /// # Panics
    /// After a violation: an event that must never happen.
    pub fn run_until(&mut self, elapsed: SimTime) {
        while let Some((at, event)) = self.queue.take(elapsed) {
            self.clock.advance_to(at);
            self.handle_event(event);
        }
        self.clock.advance_to(elapsed);
        assert!(
            self.violations.is_empty(),
            "at {elapsed:?}: {:#?}",
            self.violations
        );
    }

    /// Lets time pass until a condition holds; returns the time that this took, or
    /// `None` when it did not hold within `limit`.
    pub fn wait_for(
        &mut self,
        limit: Duration,
        mut holds: impl FnMut(&Self) -> bool,
    ) -> Option<Duration> {
        let began = self.clock.elapsed();
        loop {
            if holds(self) {
                return Some(self.clock.elapsed() - began);
            }
            let Some((at, event)) = self.queue.take(began + limit) else {
                self.run_until(began + limit);
                return holds(self).then_some(limit);
            };
            self.clock.advance_to(at);
            self.handle_event(event);
            assert!(
                self.violations.is_empty(),
                "at {at:?}: {:#?}",
                self.violations
            );
        }
    }

    /// Lets time pass until all running nodes know each other.
    ///
    /// # Panics
    /// When that takes more than 30 s.
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

    pub(super) fn node_time(&self, node: usize) -> NodeTime {
        let wall = self.clock.wall();
        let skew = Duration::from_secs(self.skew[node].unsigned_abs());
        NodeTime {
            now: self.clock.now(),
            elapsed: self.clock.elapsed(),
            wall: if self.skew[node] < 0 {
                wall.saturating_sub(skew)
            } else {
                wall + skew
            },
        }
    }
}

impl std::fmt::Debug for Sim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sim")
            .field("elapsed", &self.clock.elapsed())
            .field("nodes", &self.nodes.len())
            .field("deliveries", &self.deliveries())
            .finish_non_exhaustive()
    }
}

//! The simulation: hosts, what happens to them, and in which order.

mod build;
mod connections;
mod events;
mod faults;
mod programs;
mod sight;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use warren_control_core::Coordinator;
use warren_control_types::{DerpMap, DerpNode, DerpRegion, HostAddress, RegionId};
use warren_keys::{Entropy as _, MachineSecret};
use warren_node_core::{Engine, Node as NodeCore};
use warren_node_types::{Destination, PathAddr};
use warren_wire::ip::IpPacket;

use crate::control::{Control, ControlActs};
use crate::flow::{self, Flow, FlowReport, FlowSpec, Message};
use crate::network::{Datagram, HostId, Link, Loss, Network, Place};
use crate::node::{Action, Identity, Node, PORT, Present};
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
            // The simulated internet has no peer relays.
            Destination::One(PathAddr::Udp(_) | PathAddr::PeerRelay { .. }) => Self::Direct,
            Destination::One(PathAddr::Derp(_)) => Self::Relay,
            Destination::Both(..) => Self::Both,
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

    pub(super) fn present(&self, node: usize) -> Present {
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

//! Allocation, binding and forwarding.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;
use warren_keys::sealed_box::NONCE_LEN;
use warren_keys::{DiscoPublic, DiscoSecret, Entropy, NodePublic};
use warren_timers::DeadlineQueue;
use warren_wire::disco::{BindRelayEndpoint, Envelope, Message, RelayEndpoint};
use warren_wire::geneve::{Header, Payload, Vni};

use crate::challenge::{Attempt, ChallengeKeys};
use crate::endpoint::{Bound, Endpoint, Side};

/// How long the two clients have to bind their addresses.
pub const BIND_LIFETIME: Duration = Duration::from_secs(30);
/// How long an endpoint stays without a datagram of one of its clients.
pub const STEADY_LIFETIME: Duration = Duration::from_secs(300);

/// Draws of a VNI before the allocation is refused. With [`Limits`] far below 2^24, two
/// draws in a row that are taken are already rare.
const VNI_DRAWS: usize = 64;

/// Bounds of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Endpoints in total.
    pub endpoints: usize,
    /// Endpoints that one node has asked for.
    pub per_node: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            endpoints: 16_384,
            per_node: 1_024,
        }
    }
}

/// The reason for which there is no endpoint. The client is not answered: it tries
/// other servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AllocateError {
    /// No address of this server is known yet.
    #[error("no address of this relay is known yet")]
    NoAddress,
    /// The two keys are equal, degenerate, or one is that of the server.
    #[error("the two clients are not two other nodes")]
    Clients,
    /// [`Limits::endpoints`] exist.
    #[error("too many endpoints")]
    Full,
    /// The node has [`Limits::per_node`] endpoints.
    #[error("too many endpoints of one node")]
    NodeFull,
}

/// Counts since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Endpoints that were allocated.
    pub allocated: u64,
    /// Endpoints that ended for want of traffic.
    pub expired: u64,
    /// Addresses that were bound.
    pub bound: u64,
    /// Control messages that were not taken.
    pub refused: u64,
    /// Datagrams of senders without a bound address.
    pub unbound: u64,
    /// Datagrams passed on.
    pub forwarded_packets: u64,
    /// Bytes passed on, Geneve headers included.
    pub forwarded_bytes: u64,
}

/// A client of an endpoint, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SideStatus {
    /// Its disco key.
    pub key: DiscoPublic,
    /// The address that it has bound.
    pub address: Option<SocketAddr>,
    /// Datagrams that came from there.
    pub packets: u64,
    /// Bytes that came from there.
    pub bytes: u64,
}

/// An endpoint, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointStatus {
    /// Its number.
    pub vni: Vni,
    /// Its clients.
    pub sides: [SideStatus; 2],
}

/// The state of a relay server.
pub struct Server {
    secret: DiscoSecret,
    public: DiscoPublic,
    limits: Limits,
    addresses: Vec<SocketAddr>,
    endpoints: FxHashMap<Vni, Endpoint>,
    by_clients: FxHashMap<[DiscoPublic; 2], Vni>,
    by_requester: FxHashMap<NodePublic, usize>,
    deadlines: DeadlineQueue<Vni>,
    challenges: ChallengeKeys,
    next_lamport_id: u64,
    counters: Counters,
}

impl Server {
    /// A server without endpoints and addresses. `secret` must be fresh: by another key
    /// the clients of an earlier server see that their endpoints are gone.
    #[must_use]
    pub fn new(
        now: Instant,
        secret: DiscoSecret,
        limits: Limits,
        entropy: &mut dyn Entropy,
    ) -> Self {
        Self {
            public: secret.public(),
            secret,
            limits,
            addresses: Vec::new(),
            endpoints: FxHashMap::default(),
            by_clients: FxHashMap::default(),
            by_requester: FxHashMap::default(),
            deadlines: DeadlineQueue::new(),
            challenges: ChallengeKeys::new(now, entropy),
            next_lamport_id: 1,
            counters: Counters::default(),
        }
    }

    /// The disco key of the server.
    #[must_use]
    pub fn public(&self) -> DiscoPublic {
        self.public
    }

    /// Counts since the start.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// The addresses that clients may reach the server at, the best first.
    pub fn set_addresses(&mut self, addresses: Vec<SocketAddr>) {
        self.addresses = addresses;
    }

    /// An endpoint for two clients, asked for by the node `requester`. There is one for
    /// each pair: a further request gets it with the addresses of now.
    ///
    /// # Errors
    /// [`AllocateError`]; the request is not answered.
    pub fn allocate(
        &mut self,
        now: Instant,
        requester: NodePublic,
        clients: [DiscoPublic; 2],
        entropy: &mut dyn Entropy,
    ) -> Result<RelayEndpoint, AllocateError> {
        self.on_deadline(now);
        if self.addresses.is_empty() {
            return Err(AllocateError::NoAddress);
        }
        let mut clients = clients;
        clients.sort_unstable_by_key(|key| *key.as_bytes());
        if let Some(vni) = self.by_clients.get(&clients)
            && let Some(endpoint) = self.endpoints.get(vni)
        {
            return Ok(self.describe(*vni, endpoint, clients));
        }
        if clients[0] == clients[1] || clients.contains(&self.public) {
            return Err(AllocateError::Clients);
        }
        let asked = self.by_requester.get(&requester).copied().unwrap_or(0);
        if asked >= self.limits.per_node {
            return Err(AllocateError::NodeFull);
        }
        if self.endpoints.len() >= self.limits.endpoints {
            return Err(AllocateError::Full);
        }
        let vni = self.draw_vni(entropy).ok_or(AllocateError::Full)?;
        let endpoint = Endpoint {
            sides: [self.side(clients[0])?, self.side(clients[1])?],
            lamport_id: self.next_lamport_id,
            allocated: now,
            requester,
        };
        self.next_lamport_id += 1;
        self.counters.allocated += 1;
        let description = self.describe(vni, &endpoint, clients);
        self.deadlines.set(vni, endpoint.expires());
        self.by_clients.insert(clients, vni);
        *self.by_requester.entry(requester).or_insert(0) += 1;
        self.endpoints.insert(vni, endpoint);
        Ok(description)
    }

    /// Takes a datagram with the control bit: `content` behind its Geneve header, from
    /// `source`. Returns the datagram to send back there, from the address that it was
    /// sent to.
    pub fn control(
        &mut self,
        now: Instant,
        source: SocketAddr,
        vni: Vni,
        content: &[u8],
        entropy: &mut dyn Entropy,
    ) -> Option<Vec<u8>> {
        self.challenges.rotate(now, entropy);
        match self.try_control(now, source, vni, content, entropy) {
            Some(reply) => reply,
            None => {
                self.counters.refused += 1;
                None
            }
        }
    }

    /// The outer `None`: refused.
    fn try_control(
        &mut self,
        now: Instant,
        source: SocketAddr,
        vni: Vni,
        content: &[u8],
        entropy: &mut dyn Entropy,
    ) -> Option<Option<Vec<u8>>> {
        let envelope = Envelope::parse(content).ok()?;
        let endpoint = self.endpoints.get_mut(&vni)?;
        let number = endpoint.side_of(&envelope.sender)?;
        let [a, b] = &mut endpoint.sides;
        let (side, other) = if number == 0 { (a, b) } else { (b, a) };
        let opened = side.shared.open(envelope.sealed).ok()?;
        let message = Message::parse(&opened).ok()?;
        let (bind, is_answer) = match &message {
            Message::BindRelayEndpoint(bind) => (bind, false),
            Message::BindRelayEndpointAnswer(bind) => (bind, true),
            _ => return None,
        };
        // The Geneve header is not sealed; the VNI within is.
        let fits = bind.vni == vni.get() && bind.remote == other.key && bind.generation != 0;
        if !fits || !side.is_later(bind.generation) {
            return None;
        }
        let attempt = Attempt {
            vni,
            generation: bind.generation,
            client: side.key,
            source,
        };
        if is_answer {
            let in_progress = side.in_progress == Some(bind.generation);
            if !in_progress || !self.challenges.accepts(&attempt, &bind.challenge) {
                return None;
            }
            side.in_progress = None;
            side.completed = Some(bind.generation);
            let before = side.bound;
            side.bound = Some(Bound {
                address: source,
                last_seen: now,
                packets: before.map_or(0, |bound| bound.packets),
                bytes: before.map_or(0, |bound| bound.bytes),
            });
            self.counters.bound += 1;
            self.deadlines.set(vni, endpoint.expires());
            return Some(None);
        }
        side.in_progress = Some(bind.generation);
        let challenge = Message::BindRelayEndpointChallenge(BindRelayEndpoint {
            challenge: self.challenges.make(&attempt),
            ..*bind
        });
        let mut nonce = [0; NONCE_LEN];
        entropy.fill(&mut nonce);
        let sealed = Envelope::seal(&self.public, &side.shared, &nonce, &challenge);
        let header = Header {
            payload: Payload::DiscoControl,
            vni,
        };
        Some(Some(header.wrap(&sealed)))
    }

    /// The address that datagrams from `source` go to, `None` where they are dropped.
    /// `packets` of them in a row have `bytes` in all; they go on unchanged, with their
    /// Geneve headers.
    #[inline]
    pub fn forward(
        &mut self,
        now: Instant,
        source: SocketAddr,
        vni: Vni,
        packets: u64,
        bytes: u64,
    ) -> Option<SocketAddr> {
        let to = self
            .endpoints
            .get_mut(&vni)
            .and_then(|endpoint| endpoint.forward(now, source, packets, bytes));
        if to.is_some() {
            self.counters.forwarded_packets += packets;
            self.counters.forwarded_bytes += bytes;
        } else {
            self.counters.unbound += packets;
        }
        to
    }

    /// When [`on_deadline`](Self::on_deadline) has something to do.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.next_deadline()
    }

    /// Ends the endpoints without traffic.
    pub fn on_deadline(&mut self, now: Instant) {
        while let Some(vni) = self.deadlines.pop_due(now) {
            // Traffic does not move the deadline: look at the record.
            match self.endpoints.get(&vni).map(Endpoint::expires) {
                Some(at) if at > now => self.deadlines.set(vni, at),
                Some(_) => {
                    self.remove(vni);
                    self.counters.expired += 1;
                }
                None => {}
            }
        }
    }

    /// Ends the endpoints for which `keep` is false, as when the policy no longer lets
    /// their nodes use this relay. It gets the node that asked for the endpoint, and the
    /// clients.
    pub fn retain(&mut self, mut keep: impl FnMut(&NodePublic, &[DiscoPublic; 2]) -> bool) {
        let gone: Vec<Vni> = self
            .endpoints
            .iter()
            .filter(|(_, endpoint)| {
                let clients = [endpoint.sides[0].key, endpoint.sides[1].key];
                !keep(&endpoint.requester, &clients)
            })
            .map(|(vni, _)| *vni)
            .collect();
        for vni in gone {
            self.remove(vni);
            self.deadlines.remove(&vni);
        }
    }

    /// The nodes that have asked for the endpoints.
    #[must_use]
    pub fn requesters(&self) -> Vec<NodePublic> {
        self.by_requester.keys().copied().collect()
    }

    /// All endpoints, in the order of their numbers.
    #[must_use]
    pub fn endpoints(&self) -> Vec<EndpointStatus> {
        let mut all: Vec<_> = self
            .endpoints
            .iter()
            .map(|(vni, endpoint)| EndpointStatus {
                vni: *vni,
                sides: endpoint.sides.each_ref().map(|side| SideStatus {
                    key: side.key,
                    address: side.bound.map(|bound| bound.address),
                    packets: side.bound.map_or(0, |bound| bound.packets),
                    bytes: side.bound.map_or(0, |bound| bound.bytes),
                }),
            })
            .collect();
        all.sort_unstable_by_key(|endpoint| endpoint.vni);
        all
    }

    fn remove(&mut self, vni: Vni) {
        let Some(endpoint) = self.endpoints.remove(&vni) else {
            return;
        };
        let clients = [endpoint.sides[0].key, endpoint.sides[1].key];
        self.by_clients.remove(&clients);
        if let Some(asked) = self.by_requester.get_mut(&endpoint.requester) {
            *asked -= 1;
            if *asked == 0 {
                self.by_requester.remove(&endpoint.requester);
            }
        }
    }

    fn side(&self, key: DiscoPublic) -> Result<Side, AllocateError> {
        let shared = self
            .secret
            .shared_with(key.as_bytes())
            .map_err(|_| AllocateError::Clients)?;
        Ok(Side {
            key,
            shared,
            in_progress: None,
            completed: None,
            bound: None,
        })
    }

    /// A number that is not in use.
    fn draw_vni(&self, entropy: &mut dyn Entropy) -> Option<Vni> {
        (0..VNI_DRAWS)
            .filter_map(|_| {
                let mut bytes = [0; 4];
                entropy.fill(&mut bytes);
                Vni::new(u32::from_be_bytes(bytes) & Vni::MAX.get())
            })
            .find(|vni| !self.endpoints.contains_key(vni))
    }

    fn describe(&self, vni: Vni, endpoint: &Endpoint, clients: [DiscoPublic; 2]) -> RelayEndpoint {
        RelayEndpoint {
            server: self.public,
            clients,
            lamport_id: endpoint.lamport_id,
            vni: vni.get(),
            bind_lifetime: nanoseconds(BIND_LIFETIME),
            steady_lifetime: nanoseconds(STEADY_LIFETIME),
            addresses: self.addresses.clone(),
        }
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

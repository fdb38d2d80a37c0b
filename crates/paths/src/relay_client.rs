//! Peer relays that forward between this node and a peer.
//!
//! # The life of a relayed path
//! 1. Packets flow, and [`SEARCH_AFTER`] later there is still no path over UDP: a few of
//!    the nodes that may be asked get an allocation request, over DERP.
//! 2. A node answers with an endpoint for us and the peer. The peer gets it in a
//!    CallMeMaybeVia, and both sides bind their addresses at the relay ([`Handshake`]).
//! 3. A pong that comes through the relay confirms the path. Of several relays the fastest
//!    one is used; one that is hardly faster than the one in use is not taken.
//! 4. The path in use is checked and left as a direct one is ([`PathInUse`]). It rests while
//!    a direct path works, and is forgotten when the relay must have forgotten it.
//!
//! # Bounds
//! For each peer: [`MAX_SERVERS`] requests, [`MAX_HANDSHAKES`] handshakes and [`MAX_BOUND`]
//! endpoints; [`MAX_INVITATIONS`] handshakes in [`INVITATION_WINDOW`] on the word of the
//! peer. Searches without a result come less and less often.

mod handshake;
mod offer;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use warren_keys::DiscoPublic;
use warren_node_types::{Family, PathAddr, PeerIndex, Vni};
use warren_timers::{Backoff, Growth};
use warren_wire::disco::RelayEndpoint;

use crate::choice::{self, RoundTrip};
use crate::path_in_use::{ACTIVE, Cause, PathInUse};

pub(crate) use self::handshake::Handshake;
pub(crate) use self::offer::{MAX_ADDRESSES, Offer, sorted_pair};

/// Direct paths get this long before relays are asked.
const SEARCH_AFTER: Duration = Duration::from_millis(500);
/// The pauses between searches that found nothing.
const SEARCH_PAUSE: Backoff = Backoff::new(
    Growth::Doubling,
    Duration::from_secs(5),
    Duration::from_secs(60),
);
/// The pause behind a search that found a relay.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// A relay slower than `GOOD_ENOUGH` is compared with the others this often.
const UPGRADE: Duration = Duration::from_secs(60);
const GOOD_ENOUGH: Duration = Duration::from_millis(5);
/// Nodes that are asked in one search.
pub(crate) const MAX_SERVERS: usize = 8;
/// A request is sent again after this time...
const RESEND: Duration = Duration::from_secs(3);
/// ...and is given up after this.
const GIVE_UP: Duration = Duration::from_secs(10);
/// Between two looks whether the DERP relay of a server is connected.
const DERP_WAIT: Duration = Duration::from_millis(200);
/// Handshakes of one peer at the same time.
const MAX_HANDSHAKES: usize = MAX_SERVERS;
/// Endpoints of one peer that were confirmed.
const MAX_BOUND: usize = 4;
/// Handshakes that a peer may make us begin...
const MAX_INVITATIONS: usize = 8;
/// ...in this time.
const INVITATION_WINDOW: Duration = Duration::from_secs(10);
/// Between two pings back to a peer that uses an endpoint which we do not.
const PING_BACK_GAP: Duration = Duration::from_millis(200);

/// An endpoint on a relay server, as datagrams name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct RelayAddr {
    pub(crate) server: SocketAddr,
    pub(crate) vni: Vni,
}

impl From<RelayAddr> for PathAddr {
    fn from(RelayAddr { server, vni }: RelayAddr) -> Self {
        Self::PeerRelay { server, vni }
    }
}

/// The state that peers share: the servers, and the peer that each message belongs to.
#[derive(Debug, Default)]
pub(crate) struct RelayIndex {
    /// The peers that may be asked for endpoints.
    pub(crate) servers: BTreeSet<PeerIndex>,
    /// The peer for which each request was sent, by its number.
    requests: BTreeMap<u32, PeerIndex>,
    /// The peer of each handshake.
    handshakes: BTreeMap<(DiscoPublic, Vni), PeerIndex>,
    /// The peer behind each endpoint that we are bound at, or about to be.
    addresses: BTreeMap<RelayAddr, PeerIndex>,
    last_generation: u32,
}

impl RelayIndex {
    /// The next number of a request or handshake; never 0.
    pub(crate) fn next_generation(&mut self) -> u32 {
        self.last_generation = self.last_generation.wrapping_add(1).max(1);
        self.last_generation
    }

    pub(crate) fn requested_for(&self, generation: u32) -> Option<PeerIndex> {
        self.requests.get(&generation).copied()
    }

    pub(crate) fn in_handshake(&self, server: DiscoPublic, vni: Vni) -> Option<PeerIndex> {
        self.handshakes.get(&(server, vni)).copied()
    }

    pub(crate) fn peer_at(&self, address: RelayAddr) -> Option<PeerIndex> {
        self.addresses.get(&address).copied()
    }

    /// Whether there is a handshake with this server.
    pub(crate) fn knows_server(&self, server: DiscoPublic) -> bool {
        let mut those = self.handshakes.range((server, Vni::MIN)..);
        those.next().is_some_and(|((key, _), _)| *key == server)
    }
}

/// A request for an endpoint that has no answer yet.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) server: PeerIndex,
    pub(crate) generation: u32,
    began: Instant,
    was_sent: bool,
    next: Instant,
}

impl Request {
    fn new(now: Instant, server: PeerIndex, generation: u32) -> Self {
        Self {
            server,
            generation,
            began: now,
            was_sent: false,
            next: now,
        }
    }

    pub(crate) fn is_due(&self, now: Instant) -> bool {
        now >= self.next
    }

    pub(crate) fn is_over(&self, now: Instant) -> bool {
        now >= self.began + GIVE_UP
    }

    /// It was sent.
    pub(crate) fn sent(&mut self, now: Instant) {
        let end = self.began + GIVE_UP;
        self.next = if self.was_sent {
            end
        } else {
            (now + RESEND).min(end)
        };
        self.was_sent = true;
    }

    /// The DERP relay of the server is not connected yet.
    pub(crate) fn wait(&mut self, now: Instant) {
        self.next = (now + DERP_WAIT).min(self.began + GIVE_UP);
    }
}

/// An endpoint that a pong has confirmed.
#[derive(Debug)]
struct Bound {
    address: RelayAddr,
    server: DiscoPublic,
    lamport_id: u64,
    steady_lifetime: Duration,
    /// When something of the peer last came through it.
    alive: Instant,
    pinged_back: Option<Instant>,
    round_trip: RoundTrip,
}

impl Bound {
    /// The server has forgotten it by then, unless something comes before.
    fn expires(&self) -> Instant {
        self.alive + self.steady_lifetime
    }
}

/// The relays between this node and one peer.
#[derive(Debug)]
pub(crate) struct PeerRelays {
    pub(crate) requests: Vec<Request>,
    pub(crate) handshakes: Vec<Handshake>,
    bound: Vec<Bound>,
    in_use: Option<PathInUse<RelayAddr>>,
    /// Since when packets flow without a working path over UDP.
    needed_since: Option<Instant>,
    searched: Option<Instant>,
    not_before: Option<Instant>,
    pause: Backoff,
    /// When the peer made us begin handshakes.
    invitations: VecDeque<Instant>,
}

impl Default for PeerRelays {
    fn default() -> Self {
        Self {
            requests: Vec::new(),
            handshakes: Vec::new(),
            bound: Vec::new(),
            in_use: None,
            needed_since: None,
            searched: None,
            not_before: None,
            pause: SEARCH_PAUSE,
            invitations: VecDeque::new(),
        }
    }
}

impl PeerRelays {
    /// The path in use, also while it is degraded.
    pub(crate) fn in_use(&self) -> Option<RelayAddr> {
        self.in_use.as_ref().map(|path| path.address)
    }

    /// The smoothed round trip of the path in use.
    pub(crate) fn round_trip(&self) -> Option<Duration> {
        self.bound_at(self.in_use()?)?.round_trip.get()
    }

    pub(crate) fn is_good(&self, now: Instant) -> bool {
        let path = self.in_use.as_ref();
        path.is_some_and(|path| path.is_good(now, self.round_trip()))
    }

    /// Whether there is nothing to forget.
    pub(crate) fn is_empty(&self) -> bool {
        self.requests.is_empty() && self.handshakes.is_empty() && self.bound.is_empty()
    }

    /// Forgets everything, as when the peer is gone or its process is a new one. Returns the
    /// keys of the servers of handshakes.
    pub(crate) fn forget(&mut self, index: &mut RelayIndex) -> Vec<DiscoPublic> {
        for request in &self.requests {
            index.requests.remove(&request.generation);
        }
        let servers = self.end_handshakes(index, |_| true);
        for bound in &self.bound {
            index.addresses.remove(&bound.address);
        }
        *self = Self::default();
        servers
    }

    /// Our network, or the set of nodes that may be asked, is another one: the next search
    /// need not wait.
    pub(crate) fn something_changed(&mut self) {
        self.pause.reset();
        self.not_before = None;
    }

    /// Our network changed. The servers know us by another address.
    pub(crate) fn mark_suspect(&mut self, now: Instant) {
        if let Some(path) = &mut self.in_use {
            path.mark_suspect(now, Cause::Moved);
        }
        self.something_changed();
    }

    /// One of our sockets is gone.
    pub(crate) fn forget_family(&mut self, family: Family) {
        let path = self.in_use.take();
        self.in_use = path.filter(|path| Family::of_socket(path.address.server) != family);
    }

    // ---- the search ----

    /// Notes whether packets flow without a working path over UDP.
    pub(crate) fn note_need(&mut self, now: Instant, is_needed: bool) {
        if is_needed {
            self.needed_since.get_or_insert(now);
        } else {
            self.needed_since = None;
        }
    }

    /// When to ask relays, with `servers` of them there.
    fn search_at(&self, servers: usize, last_sent: Option<Instant>) -> Option<Instant> {
        let least = self.not_before;
        let needed = self.needed_since.map(|since| {
            let at = since + SEARCH_AFTER;
            least.map_or(at, |least| at.max(least))
        });
        let slow = self.round_trip().is_some_and(|it| it > GOOD_ENOUGH);
        let upgrade = self.searched.filter(|_| slow && servers > 1);
        let upgrade = upgrade.map(|at| at + UPGRADE);
        let next = needed.into_iter().chain(upgrade).min();
        next.filter(|at| servers > 0 && last_sent.is_some_and(|sent| *at < sent + ACTIVE))
    }

    pub(crate) fn search_is_due(
        &self,
        now: Instant,
        servers: usize,
        last_sent: Option<Instant>,
    ) -> bool {
        self.search_at(servers, last_sent)
            .is_some_and(|at| now >= at)
    }

    /// Begins a search among these servers.
    pub(crate) fn search(
        &mut self,
        index: &mut RelayIndex,
        now: Instant,
        peer: PeerIndex,
        servers: &[PeerIndex],
    ) {
        self.searched = Some(now);
        if self.needed_since.is_some() {
            self.not_before = Some(now + self.pause.delay());
        }
        for server in servers {
            let is_asked = self.requests.iter().any(|it| it.server == *server);
            if !is_asked && self.requests.len() < MAX_SERVERS {
                let generation = index.next_generation();
                index.requests.insert(generation, peer);
                self.requests.push(Request::new(now, *server, generation));
            }
        }
    }

    /// Ends the requests that were not answered.
    pub(crate) fn end_requests(&mut self, index: &mut RelayIndex, now: Instant) {
        self.requests.retain(|request| {
            let is_over = request.is_over(now);
            if is_over {
                index.requests.remove(&request.generation);
            }
            !is_over
        });
    }

    /// Whether `server` answers the request of that number, which ends with it.
    pub(crate) fn answered(
        &mut self,
        index: &mut RelayIndex,
        server: PeerIndex,
        generation: u32,
    ) -> bool {
        let those = |it: &Request| it.server == server && it.generation == generation;
        let Some(at) = self.requests.iter().position(those) else {
            return false;
        };
        self.requests.remove(at);
        index.requests.remove(&generation);
        true
    }

    // ---- handshakes ----

    /// Whether the peer may make us begin another handshake now.
    pub(crate) fn may_invite(&mut self, now: Instant) -> bool {
        while self
            .invitations
            .front()
            .is_some_and(|at| now >= *at + INVITATION_WINDOW)
        {
            self.invitations.pop_front();
        }
        if self.invitations.len() >= MAX_INVITATIONS {
            return false;
        }
        self.invitations.push_back(now);
        true
    }

    /// Whether a handshake for this endpoint would change anything: there is none for it or
    /// a later one of the same server, and the path in use is not that endpoint and good.
    pub(crate) fn is_news(&self, now: Instant, offer: &Offer) -> bool {
        let same_server = |it: &&Handshake| it.offer.server == offer.server;
        let known = self.handshakes.iter().filter(same_server);
        let later = known.map(|it| it.offer.lamport_id).max();
        let bound = self.in_use().and_then(|address| self.bound_at(address));
        let in_use = bound.filter(|bound| bound.server == offer.server);
        let is_used = in_use.is_some_and(|bound| {
            bound.lamport_id > offer.lamport_id
                || (bound.lamport_id == offer.lamport_id && self.is_good(now))
        });
        later.is_none_or(|later| later < offer.lamport_id) && !is_used
    }

    /// Begins a handshake; one for an earlier endpoint of the same server ends. Returns
    /// whether it began: not where another peer has that endpoint, or where there are too
    /// many.
    pub(crate) fn begin(
        &mut self,
        index: &mut RelayIndex,
        now: Instant,
        peer: PeerIndex,
        offer: Offer,
        call: Option<RelayEndpoint>,
    ) -> bool {
        let server = offer.server;
        self.end_handshakes(index, |it| it.offer.server == server);
        let key = (offer.server, offer.vni);
        if index.handshakes.contains_key(&key) || self.handshakes.len() >= MAX_HANDSHAKES {
            return false;
        }
        index.handshakes.insert(key, peer);
        let generation = index.next_generation();
        self.handshakes
            .push(Handshake::new(now, offer, generation, call));
        true
    }

    /// Ends the handshakes for which `which` is true. Returns the keys of their servers.
    pub(crate) fn end_handshakes(
        &mut self,
        index: &mut RelayIndex,
        which: impl Fn(&Handshake) -> bool,
    ) -> Vec<DiscoPublic> {
        let (ended, kept) = std::mem::take(&mut self.handshakes)
            .into_iter()
            .partition::<Vec<_>, _>(|it| which(it));
        self.handshakes = kept;
        for handshake in &ended {
            let key = (handshake.offer.server, handshake.offer.vni);
            index.handshakes.remove(&key);
            if let Some(address) = handshake.address() {
                self.release(index, address);
            }
        }
        ended.into_iter().map(|it| it.offer.server).collect()
    }

    pub(crate) fn handshake_mut(
        &mut self,
        server: DiscoPublic,
        vni: Vni,
    ) -> Option<&mut Handshake> {
        let mut all = self.handshakes.iter_mut();
        all.find(|it| it.offer.server == server && it.offer.vni == vni)
    }

    /// Takes a challenge from `from`. Returns whether it counts.
    pub(crate) fn challenged(
        &mut self,
        index: &mut RelayIndex,
        now: Instant,
        peer: PeerIndex,
        server: DiscoPublic,
        from: RelayAddr,
        challenge: [u8; 32],
    ) -> bool {
        let is_free = index.peer_at(from).is_none_or(|it| it == peer);
        let handshake = self.handshake_mut(server, from.vni);
        let counts =
            is_free && handshake.is_some_and(|it| it.challenged(now, from.server, challenge));
        if counts {
            index.addresses.insert(from, peer);
        }
        counts
    }

    // ---- endpoints that are bound ----

    /// Whether datagrams of the peer may come from there.
    pub(crate) fn knows(&self, address: RelayAddr) -> bool {
        let handshake = |it: &Handshake| it.address() == Some(address);
        self.bound_at(address).is_some() || self.handshakes.iter().any(handshake)
    }

    /// Data of the peer that authenticated came from there.
    pub(crate) fn received(&mut self, now: Instant, address: RelayAddr) {
        if let Some(bound) = self.bound_at_mut(address) {
            bound.alive = now;
        }
        if let Some(path) = self.in_use.as_mut().filter(|it| it.address == address) {
            path.received(now);
        }
    }

    /// A ping of the peer came from there. Returns whether to ping back.
    pub(crate) fn pinged(&mut self, now: Instant, address: RelayAddr) -> bool {
        let in_handshake = |it: &&mut Handshake| it.address() == Some(address);
        if let Some(handshake) = self.handshakes.iter_mut().find(in_handshake) {
            return handshake.pinged();
        }
        let is_good = self.is_good(now);
        let Some(bound) = self.bound_at_mut(address) else {
            return false;
        };
        bound.alive = now;
        let waited = bound.pinged_back.is_none_or(|at| now >= at + PING_BACK_GAP);
        if is_good || !waited {
            return false;
        }
        bound.pinged_back = Some(now);
        true
    }

    /// A pong of the peer came from there after `latency`. Returns the key of the server
    /// whose handshake ends with it.
    pub(crate) fn confirmed(
        &mut self,
        index: &mut RelayIndex,
        now: Instant,
        address: RelayAddr,
        latency: Duration,
    ) -> Option<DiscoPublic> {
        let before = self.in_use().zip(self.round_trip());
        let before_is_good = self.is_good(now);
        let done = |it: &Handshake| it.address() == Some(address);
        let done = self.handshakes.iter().position(done);
        let done = done.map(|at| self.handshakes.remove(at));
        if let Some(handshake) = &done {
            index
                .handshakes
                .remove(&(handshake.offer.server, handshake.offer.vni));
            self.keep(index, now, address, &handshake.offer);
            self.pause.reset();
            self.not_before = Some(now + AGAIN_AFTER);
        }
        let bound = self.bound_at_mut(address)?;
        bound.alive = now;
        bound.round_trip.sample(latency);
        let round_trip = bound.round_trip.get().unwrap_or(latency);
        let server = bound.server;
        let stays = before_is_good && !self.replaces((address, round_trip), before);
        match &mut self.in_use {
            Some(path) if path.address == address => path.confirm(now),
            Some(_) if stays => {}
            Some(_) | None => self.in_use = Some(PathInUse::new(now, address)),
        }
        done.map(|_| server)
    }

    /// Whether a relay that answers is taken instead of the one in use, which is good.
    fn replaces(
        &self,
        (address, round_trip): (RelayAddr, Duration),
        current: Option<(RelayAddr, Duration)>,
    ) -> bool {
        let Some((in_use, old)) = current else {
            return true;
        };
        let (new, known) = (self.bound_at(address), self.bound_at(in_use));
        let is_later = new.zip(known).is_some_and(|(new, known)| {
            new.server == known.server && new.lamport_id > known.lamport_id
        });
        is_later || choice::is_better((address.server, round_trip), (in_use.server, old))
    }

    /// Keeps an endpoint. The one that was silent for the longest time goes for it.
    fn keep(&mut self, index: &mut RelayIndex, now: Instant, address: RelayAddr, offer: &Offer) {
        self.bound.retain(|bound| bound.address != address);
        let in_use = self.in_use();
        if self.bound.len() >= MAX_BOUND {
            let others = self.bound.iter().filter(|it| Some(it.address) != in_use);
            let stalest = others.min_by_key(|bound| bound.alive);
            if let Some(stalest) = stalest.map(|bound| bound.address) {
                self.bound.retain(|bound| bound.address != stalest);
                self.release(index, stalest);
            }
        }
        self.bound.push(Bound {
            address,
            server: offer.server,
            lamport_id: offer.lamport_id,
            steady_lifetime: offer.steady_lifetime,
            alive: now,
            pinged_back: None,
            round_trip: RoundTrip::default(),
        });
    }

    /// Gives an endpoint up that nothing here names any more.
    fn release(&self, index: &mut RelayIndex, address: RelayAddr) {
        if !self.knows(address) {
            index.addresses.remove(&address);
        }
    }

    /// Forgets the endpoints that their servers have forgotten, and leaves a path that is
    /// lost. While packets take a direct path, the relayed one rests.
    pub(crate) fn leave_dead(
        &mut self,
        index: &mut RelayIndex,
        now: Instant,
        direct_is_good: bool,
    ) {
        let expired = |bound: &&Bound| now >= bound.expires();
        let expired: Vec<_> = self.bound.iter().filter(expired).collect();
        for address in expired
            .iter()
            .map(|bound| bound.address)
            .collect::<Vec<_>>()
        {
            self.bound.retain(|bound| bound.address != address);
            self.release(index, address);
            self.in_use.take_if(|path| path.address == address);
        }
        let round_trip = self.round_trip();
        if direct_is_good && let Some(path) = &mut self.in_use {
            path.rest();
        }
        self.in_use.take_if(|path| path.is_lost(now, round_trip));
    }

    /// The relay to ping now, to check the path in use.
    pub(crate) fn check(
        &mut self,
        now: Instant,
        last_sent: Option<Instant>,
        direct_is_good: bool,
    ) -> Option<RelayAddr> {
        let round_trip = self.round_trip();
        let path = self.in_use.as_mut().filter(|_| !direct_is_good)?;
        path.check_at(last_sent).filter(|at| now >= *at)?;
        path.probed(now, round_trip);
        Some(path.address)
    }

    /// Whether something waits for a connection to a DERP relay.
    pub(crate) fn waits_for_derp(&self, now: Instant) -> bool {
        let calls = self.handshakes.iter().any(|it| it.wants_call(now));
        calls || self.requests.iter().any(|request| !request.was_sent)
    }

    /// When something is due, or the destination changes.
    pub(crate) fn deadline(
        &self,
        now: Instant,
        servers: usize,
        last_sent: Option<Instant>,
        direct_is_good: bool,
        can_call: bool,
    ) -> Option<Instant> {
        let requests = self.requests.iter().map(|request| request.next);
        let handshakes = self.handshakes.iter().map(|it| it.deadline(can_call));
        let path = self.in_use.as_ref().filter(|_| !direct_is_good);
        let check = path.and_then(|path| path.check_at(last_sent));
        let change = path.and_then(|path| path.change_at(now, self.round_trip()));
        let search = self.search_at(servers, last_sent);
        let search = search.filter(|_| !direct_is_good);
        let all = requests.chain(handshakes);
        all.chain(check).chain(change).chain(search).min()
    }

    fn bound_at(&self, address: RelayAddr) -> Option<&Bound> {
        self.bound.iter().find(|bound| bound.address == address)
    }

    fn bound_at_mut(&mut self, address: RelayAddr) -> Option<&mut Bound> {
        self.bound.iter_mut().find(|bound| bound.address == address)
    }
}

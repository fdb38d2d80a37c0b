//! One peer: its candidates, the straight path in use, and what we do to find
//! or keep one.
//!
//! A peer is *active* until 45 s after the last packet for it, and *warm* for
//! a few seconds after something new was learnt about it. An active or warm
//! peer without a good straight path is pinged and called ([`Punch`]); an
//! active one with such a path is checked ([`Direct`]); nothing is ever sent to
//! any other peer of its own accord.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use warren_control_types::RegionId;
use warren_node_types::{Destination, Family, PathAddr, PeerIndex, TailnetRanges};
use warren_wire::disco::{Message, Ping, Pong, TxId};

use crate::api::PeerInfo;
use crate::candidates::{Added, Candidates};
use crate::choice;
use crate::core::{Asked, Core, To};
use crate::direct::{ACTIVE, Cause, Direct};
use crate::punch::{FAVOURITES, Punch};

/// How long a peer stays warm.
const WARM: Duration = Duration::from_secs(5);
/// A candidate is not pinged again sooner, whatever asks for it.
const MIN_GAP: Duration = Duration::from_millis(10);
/// ...but after this much when a ping has just come from it: that the way is
/// open now may be news since our own last one, which a NAT has swallowed.
const ANSWER_GAP: Duration = Duration::from_millis(1);
/// ...and this is the gap when a working path exists beside it.
const CURIOUS_GAP: Duration = Duration::from_secs(5);
/// Between calls to one peer.
const CALL_GAP: Duration = Duration::from_millis(200);
/// Between calls from one peer that make us ping everyone.
const CALLED_GAP: Duration = Duration::from_millis(100);
/// A peer that was called with our newest addresses within this time knows them.
const TOLD: Duration = Duration::from_secs(27);
/// A path slower than `GOOD_ENOUGH` is compared with the others this often.
const UPGRADE: Duration = Duration::from_secs(60);
const GOOD_ENOUGH: Duration = Duration::from_millis(5);
/// A call this soon after a path was found crossed it on the way.
const JUST_FOUND: Duration = Duration::from_millis(1000);
/// A lost path asks for a new measurement at most this often.
const LOSS_GAP: Duration = Duration::from_secs(2);
/// Transaction ids of answered pings that are remembered against replay.
const ANSWERED: usize = 128;

pub(crate) struct Peer {
    handle: PeerIndex,
    pub(crate) info: PeerInfo,
    candidates: Candidates,
    direct: Option<Direct>,
    /// The region where something of this peer was last received.
    heard_region: Option<RegionId>,
    /// The last packet for this peer.
    last_sent: Option<Instant>,
    warm_until: Option<Instant>,
    /// The same, because the peer called. We ping then, but do not call, or
    /// two peers would keep each other awake for ever.
    called_until: Option<Instant>,
    punch: Option<Punch>,
    /// When all candidates were last pinged.
    last_everyone: Option<Instant>,
    call_due: Option<Instant>,
    /// When the peer was last called, and with which of our lists.
    called: Option<(Instant, u64)>,
    /// When the peer last called us.
    called_us: Option<Instant>,
    answered: VecDeque<TxId>,
    /// What the data plane was told last.
    pub(crate) destination: Destination,
}

impl Peer {
    pub(crate) fn new(handle: PeerIndex, info: PeerInfo, tailnet: TailnetRanges) -> Self {
        Self {
            handle,
            info,
            candidates: Candidates::new(tailnet),
            direct: None,
            heard_region: None,
            last_sent: None,
            warm_until: None,
            called_until: None,
            punch: None,
            last_everyone: None,
            call_due: None,
            called: None,
            called_us: None,
            answered: VecDeque::new(),
            destination: Destination::None,
        }
    }

    // ---- what others may know ----

    pub(crate) fn is_active(&self, now: Instant) -> bool {
        self.last_sent.is_some_and(|at| now < at + ACTIVE)
    }

    pub(crate) fn has_good_path(&self, now: Instant) -> bool {
        self.direct
            .as_ref()
            .is_some_and(|direct| direct.is_good(now, self.round_trip()))
    }

    /// Address and smoothed round trip of the path in use.
    pub(crate) fn direct(&self) -> Option<(SocketAddr, Option<Duration>)> {
        self.direct
            .as_ref()
            .map(|direct| (direct.address, self.round_trip()))
    }

    pub(crate) fn is_punching(&self) -> bool {
        self.punch.is_some()
    }

    pub(crate) fn call_waits(&self) -> bool {
        self.call_due.is_some()
    }

    /// Where the peer can be reached by relay.
    pub(crate) fn relay(&self, core: &Core) -> Option<RegionId> {
        let regions = &core.netcheck.map().regions;
        let known = self.info.home_derp.or(self.heard_region);
        known.filter(|region| regions.contains_key(region))
    }

    /// Where a call may reach the peer. In a map with one region there is
    /// nothing to guess wrong, but a peer without a home is hardly connected
    /// yet: a lost call is repeated soon, a lost handshake is not.
    fn call_relay(&self, core: &Core) -> Option<RegionId> {
        let mut regions = core.netcheck.map().regions.keys();
        let first = regions.next().copied();
        let only = first.filter(|_| regions.next().is_none());
        self.relay(core).or(only)
    }

    /// The way for packets now.
    pub(crate) fn destination(&self, core: &Core, now: Instant) -> Destination {
        match (&self.direct, self.relay(core)) {
            (None, None) => Destination::None,
            (None, Some(region)) => Destination::derp(region),
            (Some(direct), None) => Destination::udp(direct.address),
            (Some(direct), Some(_)) if direct.is_good(now, self.round_trip()) => {
                Destination::udp(direct.address)
            }
            (Some(direct), Some(region)) => {
                Destination::Both(PathAddr::Udp(direct.address), region)
            }
        }
    }

    // ---- what the netmap and the data plane say ----

    /// Takes the newest addresses of the netmap.
    pub(crate) fn set_endpoints(&mut self, core: &mut Core, now: Instant) {
        let keep = self.in_use();
        let added = self.candidates.set_netmap(now, &self.info.endpoints, keep);
        let new = self.count(core, added);
        if self.wants_path(now) {
            for address in new {
                self.ping(core, now, address, MIN_GAP);
            }
        }
    }

    /// The peer's process is a new one: its sockets may be too.
    pub(crate) fn restarted(&mut self, now: Instant) {
        self.answered.clear();
        self.called = None;
        self.punch = None;
        if let Some(direct) = &mut self.direct {
            direct.suspect(now, Cause::Moved);
        }
    }

    /// Something new is known: look for a path for a few seconds.
    pub(crate) fn warm_up(&mut self, now: Instant) {
        if !self.wants_path(now) {
            self.punch = None;
        }
        self.warm_until = Some(now + WARM);
    }

    /// Calls the peer, at `at` or as soon as its turn comes after that.
    pub(crate) fn want_call(&mut self, at: Instant) {
        let earliest = self.called.map_or(at, |(last, _)| at.max(last + CALL_GAP));
        self.call_due = Some(self.call_due.map_or(earliest, |due| due.min(earliest)));
    }

    /// A packet for the peer was sent, or wants to be.
    pub(crate) fn note_sent(&mut self, core: &mut Core, now: Instant) {
        if !self.wants_path(now) {
            self.punch = None;
        }
        self.last_sent = Some(now);
        if let Some(region) = self.destination(core, now).derp_region() {
            core.want_relay(now, region);
        } else if let Some(region) = self.relay(core) {
            // The relay stays connected beside a direct path, so that it is
            // there when that path dies.
            core.relays.touch(now, region);
        }
    }

    /// Authenticated data came from `from`.
    pub(crate) fn note_received(&mut self, core: &mut Core, now: Instant, from: SocketAddr) {
        if let Some(direct) = self.direct.as_mut().filter(|direct| direct.address == from) {
            direct.received(now);
            return;
        }
        // A peer that roamed sends before its pings arrive.
        let added = self.candidates.heard(now, from, self.in_use());
        let is_new = !self.count(core, added).is_empty();
        let gap = if is_new || !self.has_good_path(now) {
            MIN_GAP
        } else {
            CURIOUS_GAP
        };
        self.ping(core, now, from, gap);
    }

    /// Something of this peer came through the relay of `region`.
    pub(crate) fn heard_at(&mut self, region: RegionId) {
        self.heard_region = Some(region);
    }

    /// The relay of `region` does not know the peer, or is gone itself.
    pub(crate) fn not_at(&mut self, region: RegionId) {
        self.heard_region = self.heard_region.filter(|heard| *heard != region);
    }

    /// Our network changed: the path in use counts for half until it answers
    /// again (packets take the relay as well), and no measurement is kept.
    pub(crate) fn doubt_paths(&mut self, now: Instant) {
        if let Some(direct) = &mut self.direct {
            direct.suspect(now, Cause::Moved);
        }
        self.punch = None;
        self.called = None;
        self.candidates.forget_measurements();
    }

    /// One of our sockets is gone.
    pub(crate) fn forget_family(&mut self, family: Family) {
        self.direct = self
            .direct
            .take()
            .filter(|direct| Family::of_socket(direct.address) != family);
    }

    // ---- what the peer says ----

    /// Answers a ping, and learns where the peer is.
    pub(crate) fn handle_ping(&mut self, core: &mut Core, now: Instant, ping: Ping, via: PathAddr) {
        let Some(to) = self.to() else { return };
        if self.answered.contains(&ping.tx) {
            core.counters.ping_replayed += 1;
            return;
        }
        self.answered.push_back(ping.tx);
        if self.answered.len() > ANSWERED {
            self.answered.pop_front();
        }
        let source = match via {
            PathAddr::Udp(source) | PathAddr::PeerRelay { server: source, .. } => source,
            // A relayed ping has no source address; the field carries the
            // one that stands for relays, with the region as its port.
            PathAddr::Derp(region) => SocketAddr::from(([127, 3, 3, 40], region.0)),
        };
        if core.send(
            now,
            to,
            via,
            &Message::Pong(Pong {
                tx: ping.tx,
                source,
            }),
        ) {
            core.counters.pongs_sent += 1;
        }
        let PathAddr::Udp(source) = via else { return };
        let known = self.candidates.get(source).is_some();
        let added = self.candidates.heard(now, source, self.in_use());
        self.count(core, added);
        // The way in is open, so the way out probably is: ask back at once.
        let in_doubt = self.direct.as_ref().is_none_or(|direct| {
            direct.is_doubtful(now, self.round_trip()) || (!known && direct.address != source)
        });
        let elsewhere = self.in_use() != Some(source) && !self.has_good_path(now);
        if in_doubt {
            self.ping(core, now, source, ANSWER_GAP);
        } else if elsewhere {
            self.ping(core, now, source, CURIOUS_GAP);
        }
    }

    /// A pong of this peer for a ping to `address` came after `latency`.
    pub(crate) fn handle_pong(&mut self, now: Instant, address: SocketAddr, latency: Duration) {
        let old_round_trip = self.round_trip();
        let Some(candidate) = self.candidates.get_mut(address) else {
            return;
        };
        candidate.round_trip.sample(latency);
        candidate.last_pong = Some(now);
        let round_trip = candidate.round_trip.get().unwrap_or(latency);
        match &mut self.direct {
            Some(direct) if direct.address == address => direct.confirm(now),
            Some(direct)
                if direct.is_good(now, old_round_trip)
                    && !old_round_trip.is_some_and(|old| {
                        choice::is_better((address, round_trip), (direct.address, old))
                    }) => {}
            Some(_) | None => {
                self.direct = Some(Direct::new(now, address));
                self.last_everyone.get_or_insert(now);
            }
        }
    }

    /// The peer says where it is and wants to be pinged there at once.
    pub(crate) fn handle_call(&mut self, core: &mut Core, now: Instant, listed: &[SocketAddr]) {
        let keep = self.in_use();
        let added = self.candidates.set_called(now, listed, keep);
        self.count(core, added);
        if self.called_us.is_some_and(|at| now < at + CALLED_GAP) {
            return;
        }
        self.called_us = Some(now);
        self.called_until = Some(now + WARM);
        // Who calls has no straight path, so ours may be gone as well.
        if let Some(direct) = &mut self.direct {
            let settled = now >= direct.found() + JUST_FOUND;
            let moved = settled && !listed.contains(&direct.address);
            direct.suspect(now, if moved { Cause::Moved } else { Cause::Called });
        }
        self.ping_everyone(core, now);
        if !self.has_good_path(now) {
            self.punch = Some(Punch::after_first_round(now));
        }
        let newest = core.own.generation();
        let told = self
            .called
            .is_some_and(|(at, list)| list == newest && now < at + TOLD);
        if !told {
            self.want_call(now);
        }
    }

    // ---- what a person asks ----

    /// Pings by every way that may be the one in use. Returns whether there is
    /// any.
    pub(crate) fn ping_for_person(&mut self, core: &mut Core, now: Instant, asked: Asked) -> bool {
        let Some(to) = self.to() else { return false };
        self.note_sent(core, now);
        let relay = self.relay(core);
        let good = self.has_good_path(now);
        if !good && let Some(region) = relay {
            core.want_relay(now, region);
            self.ping_relay_for_person(core, now, asked);
        }
        let addresses = match self.in_use().filter(|_| good) {
            Some(address) => vec![address],
            None => self.candidates.by_freshness(),
        };
        for address in &addresses {
            if self.may_ping(core, *address) {
                core.send_ping(now, to, PathAddr::Udp(*address), asked);
            }
        }
        relay.is_some() || !addresses.is_empty()
    }

    /// The relayed part of the above; returns whether it could be sent.
    pub(crate) fn ping_relay_for_person(
        &self,
        core: &mut Core,
        now: Instant,
        asked: Asked,
    ) -> bool {
        let relay = self
            .relay(core)
            .filter(|region| core.relays.is_connected(*region));
        let (Some(to), Some(region)) = (self.to(), relay) else {
            return false;
        };
        core.send_ping(now, to, PathAddr::Derp(region), asked);
        true
    }

    // ---- what time brings ----

    /// Does everything that is due.
    pub(crate) fn drive(&mut self, core: &mut Core, now: Instant) {
        if self.info.disco_key.is_none() {
            self.direct = None;
            self.punch = None;
            self.call_due = None;
            return;
        }
        self.check_direct(core, now);
        self.drive_punch(core, now);
        self.drive_call(core, now);
    }

    /// When `drive` has something to do, or the destination changes.
    pub(crate) fn deadline(&self, core: &Core, now: Instant) -> Option<Instant> {
        let path = self.direct.as_ref();
        let check = path.and_then(|direct| direct.check_at(self.last_sent));
        let change = path.and_then(|direct| direct.change_at(now, self.round_trip()));
        let punch = self.punch.as_ref().map(Punch::next);
        let calm = self.punch.as_ref().and(self.wanted_until());
        let punch = punch.into_iter().chain(calm).min();
        let call = self.call_due.filter(|_| {
            self.call_relay(core)
                .is_some_and(|region| core.relays.is_connected(region))
        });
        let upgrade = self.upgrade_at();
        [check, change, punch, call, upgrade]
            .into_iter()
            .flatten()
            .min()
    }

    fn check_direct(&mut self, core: &mut Core, now: Instant) {
        let round_trip = self.round_trip();
        let Some(direct) = &mut self.direct else {
            return;
        };
        if direct.is_lost(now, round_trip) {
            self.direct = None;
            // Perhaps our router has forgotten its mappings.
            let last = core.netcheck.last_started();
            if last.is_none_or(|at| now >= at + LOSS_GAP) {
                core.netcheck.request(now);
            }
            return;
        }
        let address = direct.address;
        if direct.check_at(self.last_sent).is_some_and(|at| now >= at) {
            direct.probed(now, round_trip);
            self.ping(core, now, address, MIN_GAP);
        }
        if self.upgrade_at().is_some_and(|at| now >= at) {
            self.ping_everyone(core, now);
        }
    }

    fn drive_punch(&mut self, core: &mut Core, now: Instant) {
        if !self.wants_path(now) {
            self.punch = None;
            return;
        }
        let Some(round) = self.punch.get_or_insert_with(|| Punch::new(now)).take(now) else {
            return;
        };
        if round.everyone {
            self.ping_everyone(core, now);
        } else {
            for address in self.candidates.by_freshness().into_iter().take(FAVOURITES) {
                self.ping(core, now, address, MIN_GAP);
            }
        }
        let own_wish = self.wished_until().is_some_and(|at| now < at);
        if round.call && own_wish {
            self.want_call(now);
        }
    }

    fn drive_call(&mut self, core: &mut Core, now: Instant) {
        if self.call_due.is_none_or(|at| now < at) {
            return;
        }
        let Some(to) = self.to().filter(|_| !core.own.current().is_empty()) else {
            self.call_due = None;
            return;
        };
        let Some(region) = self.call_relay(core) else {
            return;
        };
        core.want_relay(now, region);
        if !core.relays.is_connected(region) {
            return;
        }
        self.call_due = None;
        self.called = Some((now, core.own.generation()));
        core.send_call(now, to, region);
        if core.own.is_stale(now) && !core.netcheck.is_running() {
            core.netcheck.request(now);
        }
    }

    /// When to compare the path in use with the other candidates.
    fn upgrade_at(&self) -> Option<Instant> {
        self.round_trip()
            .filter(|round_trip| *round_trip > GOOD_ENOUGH)?;
        let at = self.last_everyone? + UPGRADE;
        Some(at).filter(|at| self.last_sent.is_some_and(|sent| *at < sent + ACTIVE))
    }

    // ---- small things ----

    fn to(&self) -> Option<To> {
        let disco = self.info.disco_key?;
        Some(To {
            peer: self.handle,
            node: self.info.node_key,
            disco,
        })
    }

    fn in_use(&self) -> Option<SocketAddr> {
        self.direct.as_ref().map(|direct| direct.address)
    }

    fn round_trip(&self) -> Option<Duration> {
        self.candidates.get(self.in_use()?)?.round_trip.get()
    }

    /// Until when we want a path for our own reasons.
    fn wished_until(&self) -> Option<Instant> {
        let active = self.last_sent.map(|at| at + ACTIVE);
        active.into_iter().chain(self.warm_until).max()
    }

    /// Until when a path is worth looking for.
    fn wanted_until(&self) -> Option<Instant> {
        let wished = self.wished_until();
        wished.into_iter().chain(self.called_until).max()
    }

    /// Whether to look for a straight path: somebody needs one, and there is
    /// none that works.
    fn wants_path(&self, now: Instant) -> bool {
        let works = self
            .direct
            .as_ref()
            .is_some_and(|direct| !direct.is_doubtful(now, self.round_trip()));
        self.info.disco_key.is_some() && !works && self.wanted_until().is_some_and(|at| now < at)
    }

    fn ping_everyone(&mut self, core: &mut Core, now: Instant) {
        self.last_everyone = Some(now);
        for address in self.candidates.by_freshness() {
            self.ping(core, now, address, MIN_GAP);
        }
    }

    /// Pings a candidate, unless that was done less than `gap` ago.
    fn ping(&mut self, core: &mut Core, now: Instant, address: SocketAddr, gap: Duration) {
        let allowed = self.may_ping(core, address);
        let (Some(to), Some(candidate)) = (self.to(), self.candidates.get_mut(address)) else {
            return;
        };
        if !allowed || candidate.last_ping.is_some_and(|at| now < at + gap) {
            return;
        }
        candidate.last_ping = Some(now);
        core.send_ping(now, to, PathAddr::Udp(address), Asked::default());
    }

    fn may_ping(&self, core: &Core, address: SocketAddr) -> bool {
        core.netcheck.has_family(Family::of_socket(address)) && !core.own.is_own_socket(address)
    }

    fn count(&self, core: &mut Core, added: Added) -> Vec<SocketAddr> {
        core.counters.candidates_refused += added.refused;
        core.counters.candidates_evicted += added.evicted;
        added.new
    }
}

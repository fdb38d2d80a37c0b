//! One peer: its candidates, the direct path in use, and the messages that find
//! or keep one.
//!
//! A peer is *active* until 45 s after the last packet for it, and *recently
//! learned* for a few seconds after something new is known about it. Such a peer
//! is searched for while it has no good direct path: it gets pings and
//! CallMeMaybe messages ([`ProbeSchedule`]). The path of an active peer is checked
//! ([`PathInUse`]). No other peer is sent anything unless it asks.

mod relayed;

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use warren_control_types::RegionId;
use warren_node_types::{Destination, Family, PathAddr, PeerIndex, TailnetRanges};
use warren_wire::disco::{Message, Ping, Pong, PortSearch, PortSearchStep, TxId};

use crate::api::PeerInfo;
use crate::candidates::{Added, Candidates};
use crate::choice;
use crate::core::{Core, PingOptions, To};
use crate::path_in_use::{ACTIVE, Cause, PathInUse};
use crate::port_attempts::Attempts;
use crate::port_forecast::PortPattern;
use crate::probe_schedule::{MAX_FAST_CANDIDATES, ProbeSchedule};
use crate::relay_client::{PeerRelays, RelayAddr};

/// How long a peer counts as recently learned.
const RECENTLY_LEARNED: Duration = Duration::from_secs(5);
/// A candidate is not pinged again sooner, whatever the reason.
const MIN_PROBE_GAP: Duration = Duration::from_millis(10);
/// ...but after this much when a ping has just come from it: the path may be
/// open only now, after a NAT dropped our last ping.
const MIN_PROBE_GAP_AFTER_PING: Duration = Duration::from_millis(1);
/// ...and after this much while a working path exists beside it.
const MIN_PROBE_GAP_WITH_PATH: Duration = Duration::from_secs(5);
/// Between CallMeMaybe messages to one peer.
const CALL_ME_MAYBE_GAP: Duration = Duration::from_millis(200);
/// A CallMeMaybe makes us ping all candidates at most this often.
const CALL_ME_MAYBE_PING_GAP: Duration = Duration::from_millis(100);
/// A peer that was sent our newest addresses within this time knows them.
const ADDRESSES_KNOWN: Duration = Duration::from_secs(27);
/// A path slower than `GOOD_ENOUGH` is compared with the others this often.
const UPGRADE: Duration = Duration::from_secs(60);
const GOOD_ENOUGH: Duration = Duration::from_millis(5);
/// A CallMeMaybe this soon after a path was found was sent before the peer knew
/// that path.
const NEW_PATH: Duration = Duration::from_millis(1000);
/// A lost path asks for a new measurement at most this often.
const LOSS_GAP: Duration = Duration::from_secs(2);
/// Transaction ids of answered pings that are remembered against replay.
const ANSWERED: usize = 128;

pub(crate) struct Peer {
    handle: PeerIndex,
    pub(crate) info: PeerInfo,
    candidates: Candidates,
    direct: Option<PathInUse<SocketAddr>>,
    /// The region through which something of this peer was last received.
    last_region: Option<RegionId>,
    /// The last packet for this peer.
    last_sent: Option<Instant>,
    learned_until: Option<Instant>,
    /// The same, because the peer sent a CallMeMaybe. We ping then, but send no
    /// CallMeMaybe, or two peers would keep each other active for ever.
    call_me_maybe_until: Option<Instant>,
    schedule: Option<ProbeSchedule>,
    /// When all candidates were last pinged.
    all_pinged: Option<Instant>,
    call_me_maybe_due: Option<Instant>,
    /// When our addresses were last sent to the peer, and which list of them.
    call_me_maybe_sent: Option<(Instant, u64)>,
    /// When the last CallMeMaybe of the peer came.
    call_me_maybe_received: Option<Instant>,
    answered: VecDeque<TxId>,
    pub(crate) attempts: Attempts,
    pub(crate) relays: PeerRelays,
    /// The destination that was reported last.
    pub(crate) destination: Destination,
}

impl Peer {
    pub(crate) fn new(handle: PeerIndex, info: PeerInfo, tailnet: TailnetRanges) -> Self {
        Self {
            handle,
            info,
            candidates: Candidates::new(tailnet),
            direct: None,
            last_region: None,
            last_sent: None,
            learned_until: None,
            call_me_maybe_until: None,
            schedule: None,
            all_pinged: None,
            call_me_maybe_due: None,
            call_me_maybe_sent: None,
            call_me_maybe_received: None,
            answered: VecDeque::new(),
            attempts: Attempts::default(),
            relays: PeerRelays::default(),
            destination: Destination::None,
        }
    }

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

    pub(crate) fn is_searching(&self) -> bool {
        self.schedule.is_some()
    }

    pub(crate) fn call_me_maybe_waits(&self) -> bool {
        self.call_me_maybe_due.is_some()
    }

    /// The region of the relay through which the peer can be reached.
    pub(crate) fn relay(&self, core: &Core) -> Option<RegionId> {
        let regions = &core.netcheck.map().regions;
        let known = self.info.home_derp.or(self.last_region);
        known.filter(|region| regions.contains_key(region))
    }

    /// The region of the relay through which a CallMeMaybe may reach the peer.
    /// With one region in the map, a peer without a home can only be there. It is
    /// hardly connected yet: a lost CallMeMaybe is repeated soon, a lost handshake
    /// is not.
    pub(crate) fn call_me_maybe_relay(&self, core: &Core) -> Option<RegionId> {
        let mut regions = core.netcheck.map().regions.keys();
        let first = regions.next().copied();
        let only = first.filter(|_| regions.next().is_none());
        self.relay(core).or(only)
    }

    /// The paths that packets take now.
    pub(crate) fn destination(&self, core: &Core, now: Instant) -> Destination {
        let direct = self.direct.as_ref().map(|it| PathAddr::Udp(it.address));
        let relayed = self.relays.in_use().map(PathAddr::from);
        if let Some(path) = direct.filter(|_| self.has_good_path(now)) {
            return Destination::One(path);
        }
        if let Some(path) = relayed.filter(|_| self.relays.is_good(now)) {
            return Destination::One(path);
        }
        match (direct.or(relayed), self.relay(core)) {
            (None, None) => Destination::None,
            (None, Some(region)) => Destination::derp(region),
            (Some(path), None) => Destination::One(path),
            (Some(path), Some(region)) => Destination::Both(path, region),
        }
    }

    /// Takes the newest addresses of the netmap.
    pub(crate) fn set_endpoints(&mut self, core: &mut Core, now: Instant) {
        let keep = self.in_use();
        let added = self.candidates.set_netmap(now, &self.info.endpoints, keep);
        let new = self.count(core, added);
        if !new.is_empty() {
            self.attempts.something_changed();
        }
        if self.wants_path(now) {
            for address in new {
                self.ping(core, now, address, MIN_PROBE_GAP);
            }
        }
    }

    /// The peer's process is a new one: its sockets may be too.
    pub(crate) fn restarted(&mut self, core: &mut Core, now: Instant) {
        self.forget_relays(core);
        self.answered.clear();
        self.attempts.forget();
        self.call_me_maybe_sent = None;
        self.schedule = None;
        if let Some(direct) = &mut self.direct {
            direct.mark_suspect(now, Cause::Moved);
        }
    }

    /// Something new was learned: look for a path for a few seconds.
    pub(crate) fn note_learned(&mut self, now: Instant) {
        if !self.wants_path(now) {
            self.schedule = None;
        }
        self.learned_until = Some(now + RECENTLY_LEARNED);
    }

    /// Sends the peer a CallMeMaybe at `at`, or as soon after that as the least
    /// gap allows.
    pub(crate) fn want_call_me_maybe(&mut self, at: Instant) {
        let earliest = self
            .call_me_maybe_sent
            .map_or(at, |(last, _)| at.max(last + CALL_ME_MAYBE_GAP));
        self.call_me_maybe_due = Some(
            self.call_me_maybe_due
                .map_or(earliest, |due| due.min(earliest)),
        );
    }

    /// A packet for the peer was sent, or is waiting to be.
    pub(crate) fn note_sent(&mut self, core: &mut Core, now: Instant) {
        if !self.wants_path(now) {
            self.schedule = None;
        }
        if !self.is_active(now) {
            self.attempts.needed_again();
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
        let added = self.candidates.received(now, from, self.in_use());
        let is_new = !self.count(core, added).is_empty();
        let gap = if is_new || !self.has_good_path(now) {
            MIN_PROBE_GAP
        } else {
            MIN_PROBE_GAP_WITH_PATH
        };
        self.ping(core, now, from, gap);
    }

    /// Something of this peer came through the relay of `region`.
    pub(crate) fn received_at(&mut self, region: RegionId) {
        self.last_region = Some(region);
    }

    /// The relay of `region` does not know the peer, or is gone itself.
    pub(crate) fn not_at(&mut self, region: RegionId) {
        self.last_region = self.last_region.filter(|known| *known != region);
    }

    /// Our network changed: the path in use is suspect until it answers again
    /// (packets take the relay as well), and no measurement is kept.
    pub(crate) fn mark_paths_suspect(&mut self, now: Instant) {
        if let Some(direct) = &mut self.direct {
            direct.mark_suspect(now, Cause::Moved);
        }
        self.relays.mark_suspect(now);
        self.schedule = None;
        self.call_me_maybe_sent = None;
        self.attempts.forget();
        self.candidates.forget_measurements();
    }

    /// One of our sockets is gone.
    pub(crate) fn forget_family(&mut self, family: Family) {
        self.direct = self
            .direct
            .take()
            .filter(|direct| Family::of_socket(direct.address) != family);
        self.relays.forget_family(family);
    }

    /// Answers a ping, and learns an address of the peer.
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
            // address that means "relay", with the region as its port.
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
        if let PathAddr::PeerRelay { server, vni } = via {
            self.pinged_through(core, now, RelayAddr { server, vni });
        }
        let PathAddr::Udp(source) = via else { return };
        let known = self.candidates.get(source).is_some();
        let added = self.candidates.received(now, source, self.in_use());
        self.count(core, added);
        // Datagrams come in from there, so they probably go out too: ping back at
        // once.
        let path_is_unsure = self.direct.as_ref().is_none_or(|direct| {
            direct.is_degraded(now, self.round_trip()) || (!known && direct.address != source)
        });
        let elsewhere = self.in_use() != Some(source) && !self.has_good_path(now);
        if path_is_unsure {
            self.ping(core, now, source, MIN_PROBE_GAP_AFTER_PING);
        } else if elsewhere {
            self.ping(core, now, source, MIN_PROBE_GAP_WITH_PATH);
        }
    }

    /// A pong of this peer for a ping to `address` came after `latency`.
    pub(crate) fn handle_pong(&mut self, now: Instant, address: SocketAddr, latency: Duration) {
        let old_round_trip = self.round_trip();
        if self.candidates.get(address).is_none() {
            // A guess of a port search, or a candidate that had to go for another.
            self.candidates.received(now, address, self.in_use());
        }
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
                self.direct = Some(PathInUse::new(now, address));
                self.all_pinged.get_or_insert(now);
            }
        }
    }

    /// A CallMeMaybe came: the peer lists its addresses, to be pinged at once.
    pub(crate) fn handle_call_me_maybe(
        &mut self,
        core: &mut Core,
        now: Instant,
        listed: &[SocketAddr],
    ) {
        let keep = self.in_use();
        let added = self.candidates.set_call_me_maybe(now, listed, keep);
        if !self.count(core, added).is_empty() {
            self.attempts.something_changed();
        }
        self.attempts.called();
        if self
            .call_me_maybe_received
            .is_some_and(|at| now < at + CALL_ME_MAYBE_PING_GAP)
        {
            return;
        }
        self.call_me_maybe_received = Some(now);
        self.call_me_maybe_until = Some(now + RECENTLY_LEARNED);
        // The peer has no direct path, so ours may be gone as well.
        if let Some(direct) = &mut self.direct {
            let settled = now >= direct.found() + NEW_PATH;
            let moved = settled && !listed.contains(&direct.address);
            direct.mark_suspect(
                now,
                if moved {
                    Cause::Moved
                } else {
                    Cause::CallMeMaybe
                },
            );
        }
        self.ping_all_candidates(core, now);
        if !self.has_good_path(now) {
            self.schedule = Some(ProbeSchedule::after_first_round(now));
        }
        let newest = core.own.generation();
        let is_known = self
            .call_me_maybe_sent
            .is_some_and(|(at, list)| list == newest && now < at + ADDRESSES_KNOWN);
        if !is_known {
            self.want_call_me_maybe(now);
        }
    }

    /// Pings on every path that may be in use. Returns whether there is one.
    pub(crate) fn ping_for_user(
        &mut self,
        core: &mut Core,
        now: Instant,
        options: PingOptions,
    ) -> bool {
        let Some(to) = self.to() else { return false };
        self.note_sent(core, now);
        let relay = self.relay(core);
        let good = self.has_good_path(now);
        let relayed = self.relays.in_use().filter(|_| !good);
        if let Some(address) = relayed {
            core.send_ping(now, to, address.into(), options);
        }
        let is_relayed = relayed.is_some() && self.relays.is_good(now);
        if !good
            && !is_relayed
            && let Some(region) = relay
        {
            core.want_relay(now, region);
            self.ping_relay_for_user(core, now, options);
        }
        let addresses = match self.in_use().filter(|_| good) {
            Some(address) => vec![address],
            None => self.candidates.by_freshness(),
        };
        for address in &addresses {
            if self.may_ping(core, *address) {
                core.send_ping(now, to, PathAddr::Udp(*address), options);
            }
        }
        relay.is_some() || relayed.is_some() || !addresses.is_empty()
    }

    /// Pings through the relay. Returns whether it is connected.
    pub(crate) fn ping_relay_for_user(
        &self,
        core: &mut Core,
        now: Instant,
        options: PingOptions,
    ) -> bool {
        let relay = self
            .relay(core)
            .filter(|region| core.relays.is_connected(*region));
        let (Some(to), Some(region)) = (self.to(), relay) else {
            return false;
        };
        core.send_ping(now, to, PathAddr::Derp(region), options);
        true
    }

    /// Does everything that is due.
    pub(crate) fn drive(&mut self, core: &mut Core, now: Instant) {
        if self.info.disco_key.is_none() {
            self.direct = None;
            self.schedule = None;
            self.call_me_maybe_due = None;
            self.forget_relays(core);
            return;
        }
        self.check_direct(core, now);
        self.drive_relays(core, now);
        self.drive_schedule(core, now);
        self.drive_call_me_maybe(core, now);
        self.drive_port_search(core, now);
    }

    /// When `drive` has something to do, or the destination changes.
    pub(crate) fn deadline(&self, core: &Core, now: Instant) -> Option<Instant> {
        let path = self.direct.as_ref();
        let check = path.and_then(|direct| direct.check_at(self.last_sent));
        let change = path.and_then(|direct| direct.change_at(now, self.round_trip()));
        let schedule = self.schedule.as_ref().map(ProbeSchedule::next);
        let end = self.schedule.as_ref().and(self.wanted_until());
        let schedule = schedule.into_iter().chain(end).min();
        let call_me_maybe = self.call_me_maybe_due.filter(|_| {
            self.call_me_maybe_relay(core)
                .is_some_and(|region| core.relays.is_connected(region))
        });
        let upgrade = self.upgrade_at();
        let offer = self.offer_at(core, now);
        let trial = core.searches.trial_ends(now, self.handle);
        let forecast = self.forecast_at(core, now);
        let search = [offer, forecast, trial];
        let relays = self.relays_deadline(core, now);
        let all = [check, change, schedule, call_me_maybe, upgrade, relays];
        all.into_iter().chain(search).flatten().min()
    }

    fn check_direct(&mut self, core: &mut Core, now: Instant) {
        let round_trip = self.round_trip();
        let Some(direct) = &mut self.direct else {
            return;
        };
        if direct.is_lost(now, round_trip) {
            self.direct = None;
            // Perhaps our router has lost its mappings.
            let last = core.netcheck.last_started();
            if last.is_none_or(|at| now >= at + LOSS_GAP) {
                core.netcheck.request(now);
            }
            return;
        }
        let address = direct.address;
        if direct.check_at(self.last_sent).is_some_and(|at| now >= at) {
            direct.probed(now, round_trip);
            self.ping(core, now, address, MIN_PROBE_GAP);
        }
        if self.upgrade_at().is_some_and(|at| now >= at) {
            self.ping_all_candidates(core, now);
        }
    }

    fn drive_schedule(&mut self, core: &mut Core, now: Instant) {
        if !self.wants_path(now) {
            self.schedule = None;
            return;
        }
        let Some(round) = self
            .schedule
            .get_or_insert_with(|| ProbeSchedule::new(now))
            .take(now)
        else {
            return;
        };
        if round.all_candidates {
            self.ping_all_candidates(core, now);
        } else {
            for address in self
                .candidates
                .by_freshness()
                .into_iter()
                .take(MAX_FAST_CANDIDATES)
            {
                self.ping(core, now, address, MIN_PROBE_GAP);
            }
        }
        let is_needed = self.needed_until().is_some_and(|at| now < at);
        if round.call_me_maybe && is_needed {
            self.want_call_me_maybe(now);
        }
    }

    fn drive_call_me_maybe(&mut self, core: &mut Core, now: Instant) {
        if self.call_me_maybe_due.is_none_or(|at| now < at) {
            return;
        }
        let Some(to) = self.to().filter(|_| !core.own.current().is_empty()) else {
            self.call_me_maybe_due = None;
            return;
        };
        let Some(region) = self.call_me_maybe_relay(core) else {
            return;
        };
        core.want_relay(now, region);
        if !core.relays.is_connected(region) {
            return;
        }
        self.call_me_maybe_due = None;
        self.call_me_maybe_sent = Some((now, core.own.generation()));
        core.send_call_me_maybe(now, to, region);
        if core.own.is_stale(now) && !core.netcheck.is_running() {
            core.netcheck.request(now);
        }
    }

    /// Offers the peer a port search, when nothing else has helped.
    fn drive_port_search(&mut self, core: &mut Core, now: Instant) {
        if self.schedule.is_some() && self.direct.is_none() {
            self.attempts.wanted_since.get_or_insert(now);
        } else {
            self.attempts.wanted_since = None;
        }
        if self.offer_at(core, now).is_none_or(|at| now < at) {
            if self.forecast_at(core, now).is_some_and(|at| now >= at) {
                core.begin_forecast(now, self.handle);
            }
            return;
        }
        let outside = core.netcheck.global(Family::V4);
        let (Some(to), Some(outside), Some(region)) =
            (self.to(), outside, self.call_me_maybe_relay(core))
        else {
            return;
        };
        let mut random = [0; 4];
        core.entropy.fill(&mut random);
        let random = u32::from_be_bytes(random);
        let step = PortSearchStep::Offer {
            outside: outside.ip(),
            needed: self.is_active(now),
        };
        let open = self.attempts.open_offer();
        let id = core.searches.offer(now, self.handle, open, random);
        self.attempts.offers(id);
        let offer = Message::PortSearch(PortSearch { id, step });
        core.send(now, to, PathAddr::Derp(region), &offer);
    }

    /// When to foresee ports for the peer: it makes no searches with us, and the ports of
    /// our NAT are not known to be random.
    fn forecast_at(&self, core: &Core, now: Instant) -> Option<Instant> {
        let at = self.attempts.forecast_at()?;
        let random = core.searches.pattern == Some(PortPattern::Random);
        let can = !random && core.netcheck.has_stun_server(Family::V4);
        Some(at).filter(|_| can && self.may_search(core, now))
    }

    /// Candidates to which datagrams leave our network, the public ones first.
    pub(crate) fn outside_candidates(&self, most: usize) -> Vec<SocketAddr> {
        let is_private = |address: &SocketAddr| match address.ip() {
            IpAddr::V4(ip) => ip.is_private() || ip.is_loopback() || ip.is_link_local(),
            IpAddr::V6(_) => true,
        };
        let mut all = self.candidates.by_freshness();
        all.retain(|address| address.is_ipv4() && !is_private(address));
        all.truncate(most);
        all
    }

    /// Sends the peer a CallMeMaybe now.
    pub(crate) fn call_now(&mut self, core: &mut Core, now: Instant) {
        self.call_me_maybe_due = Some(now);
        self.drive_call_me_maybe(core, now);
    }

    /// When to offer the peer a port search: our NAT maps to other ports for other
    /// destinations, packets flow in one direction or the other, and pings alone found
    /// no path.
    fn offer_at(&self, core: &Core, now: Instant) -> Option<Instant> {
        let at = self.attempts.next_at()?;
        Some(at).filter(|_| self.may_search(core, now))
    }

    pub(crate) fn may_search(&self, core: &Core, now: Instant) -> bool {
        let called = self.call_me_maybe_until.is_some_and(|until| now < until);
        let is_needed = self.is_active(now) || called;
        let region = self.call_me_maybe_relay(core);
        is_needed
            && core.searches.may_offer()
            && core.netcheck.varies() == Some(true)
            && core.netcheck.global(Family::V4).is_some()
            && region.is_some_and(|region| core.relays.is_connected(region))
    }

    /// When to compare the path in use with the other candidates.
    fn upgrade_at(&self) -> Option<Instant> {
        self.round_trip()
            .filter(|round_trip| *round_trip > GOOD_ENOUGH)?;
        let at = self.all_pinged? + UPGRADE;
        Some(at).filter(|at| self.last_sent.is_some_and(|sent| *at < sent + ACTIVE))
    }

    pub(crate) fn to(&self) -> Option<To> {
        let disco = self.info.disco_key?;
        Some(To {
            peer: self.handle,
            node: self.info.node_key,
            disco,
        })
    }

    pub(crate) fn in_use(&self) -> Option<SocketAddr> {
        self.direct.as_ref().map(|direct| direct.address)
    }

    fn round_trip(&self) -> Option<Duration> {
        self.candidates.get(self.in_use()?)?.round_trip.get()
    }

    /// Until when we need a path ourselves.
    fn needed_until(&self) -> Option<Instant> {
        let active = self.last_sent.map(|at| at + ACTIVE);
        active.into_iter().chain(self.learned_until).max()
    }

    /// Until when a path is worth looking for.
    fn wanted_until(&self) -> Option<Instant> {
        let needed = self.needed_until();
        needed.into_iter().chain(self.call_me_maybe_until).max()
    }

    /// Whether to look for a direct path: one is needed, and none works.
    fn wants_path(&self, now: Instant) -> bool {
        let works = self
            .direct
            .as_ref()
            .is_some_and(|direct| !direct.is_degraded(now, self.round_trip()));
        self.info.disco_key.is_some() && !works && self.wanted_until().is_some_and(|at| now < at)
    }

    fn ping_all_candidates(&mut self, core: &mut Core, now: Instant) {
        self.all_pinged = Some(now);
        for address in self.candidates.by_freshness() {
            self.ping(core, now, address, MIN_PROBE_GAP);
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
        core.send_ping(now, to, PathAddr::Udp(address), PingOptions::default());
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

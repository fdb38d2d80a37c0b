//! Port searches: the agreement with the peer, the probes, and their end.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Instant;

use warren_control_types::RegionId;
use warren_node_types::{Family, PathAddr, PeerIndex, SearchSocket, SocketOrder};
use warren_wire::disco::{self, Message, PortSearch, PortSearchRefusal, PortSearchStep};
use warren_wire::stun;

use super::Paths;
use crate::api::Event;
use crate::core::PingOptions;
use crate::port_search::{PortSearchOutcome, Probe, Role, SOCKETS};

impl Paths {
    /// Whether this node takes part in port searches; it does from the start.
    pub fn set_port_search(&mut self, now: Instant, on: bool) {
        if self.core.searches.is_switched_off() != on {
            return;
        }
        self.core.searches.set_switched_off(!on);
        if on {
            for peer in self.peers.values_mut() {
                peer.attempts.something_changed();
            }
            // Peers that were refused may offer again.
            self.call_searching_peers(now);
        } else {
            self.end_port_search(now, PortSearchOutcome::Ended);
        }
        self.settle_all_peers(now);
    }

    /// Takes a datagram from a socket of a port search. Returns whether it was meant for
    /// this crate; all others are WireGuard's.
    ///
    /// The first one that the peer of the search sealed wins: its socket is kept.
    pub fn handle_search_udp(
        &mut self,
        now: Instant,
        socket: SearchSocket,
        from: SocketAddr,
        packet: &[u8],
    ) -> bool {
        let from = stun::unmap(from);
        if let Some(handle) = self.core.searches.forecast_of(socket) {
            if !self.handle_forecast_udp(now, packet) {
                let called = self.core.searches.forecast.as_ref();
                let known = called.is_some_and(|it| it.called.contains(&from));
                self.take_winner(now, handle, socket, from, known, packet);
            }
            self.settle_shared(now);
            return true;
        }
        let Some((handle, target)) = self.core.searches.target_of(socket) else {
            if self.core.searches.is_kept(socket, from) {
                return self.handle_udp(now, from, packet);
            }
            self.core.counters.search_datagrams_refused += 1;
            return true;
        };
        self.take_winner(now, handle, socket, from, from == target, packet);
        true
    }

    /// Keeps the socket if the peer of the search sealed the datagram, and sent it from an
    /// address that is `known`.
    fn take_winner(
        &mut self,
        now: Instant,
        handle: PeerIndex,
        socket: SearchSocket,
        from: SocketAddr,
        known: bool,
        packet: &[u8],
    ) {
        let opened = (known && disco::looks_like_disco(packet))
            .then(|| self.open(packet))
            .flatten();
        let disco_key = self.peers.get(&handle).and_then(|peer| peer.info.disco_key);
        match opened {
            Some((sender, message @ (Message::Ping(_) | Message::Pong(_))))
                if Some(sender) == disco_key =>
            {
                self.core.searches.keep(now, handle, socket, from);
                let keep = SocketOrder::Keep {
                    socket,
                    remote: from,
                };
                self.core.events.push_back(Event::Sockets(keep));
                self.end_port_search(now, PortSearchOutcome::Found);
                self.handle_udp_message(now, from, sender, message);
                self.settle_shared(now);
            }
            _ => self.core.counters.search_datagrams_refused += 1,
        }
    }

    /// A step of the agreement came from `handle` through the relay of `region`.
    pub(super) fn handle_port_search(
        &mut self,
        now: Instant,
        region: RegionId,
        handle: PeerIndex,
        message: PortSearch,
    ) {
        let PortSearch { id, step } = message;
        match step {
            PortSearchStep::Offer { outside, needed } => {
                let answer = match self.accept_port_search(now, handle, id, outside, needed) {
                    Ok(target) => PortSearchStep::Accept { target },
                    Err(reason) => PortSearchStep::Refuse(reason),
                };
                if let Some(to) = self.peers.get(&handle).and_then(|peer| peer.to()) {
                    let answer = Message::PortSearch(PortSearch { id, step: answer });
                    self.core.send(now, to, PathAddr::Derp(region), &answer);
                }
            }
            PortSearchStep::Accept { target } => self.offer_accepted(now, handle, id, target),
            PortSearchStep::Refuse(reason) => {
                let ours = self.core.searches.running().is_some_and(|running| {
                    running.id == id && running.peer == handle && running.role != Role::Forecasting
                });
                if ours {
                    let outcome = match reason {
                        PortSearchRefusal::NotFound => PortSearchOutcome::NotFound,
                        reason => PortSearchOutcome::Refused(reason),
                    };
                    self.end_port_search(now, outcome);
                } else {
                    self.core.counters.search_messages_refused += 1;
                }
            }
        }
    }

    /// The peer accepted an offer, which may have counted as unanswered meanwhile.
    fn offer_accepted(&mut self, now: Instant, handle: PeerIndex, id: u32, target: SocketAddr) {
        let running = self.core.searches.running();
        let is_running = running.is_some_and(|it| it.id == id && it.peer == handle);
        let waits = match running {
            Some(running) => is_running && running.role == Role::Offering,
            None => !self.core.searches.is_switched_off(),
        };
        let usable = is_outside_v4(target.ip()) && target.port() != 0;
        let peer = self.peers.get_mut(&handle);
        match peer.filter(|peer| usable && waits && peer.attempts.open_offer() == Some(id)) {
            Some(peer) => {
                peer.attempts.begins();
                self.core.searches.accepted(now, handle, id, target);
                self.core.counters.searches_started += 1;
                let open = SocketOrder::Open {
                    search: id,
                    count: SOCKETS,
                };
                self.core.events.push_back(Event::Sockets(open));
            }
            None => {
                self.core.counters.search_messages_refused += 1;
                // The peer would send all its guesses to no one.
                if !is_running {
                    let reason = PortSearchRefusal::Ended;
                    self.report_search_end(now, handle, id, reason);
                }
            }
        }
    }

    /// Reports to the peer that the search `id` is over.
    fn report_search_end(
        &mut self,
        now: Instant,
        handle: PeerIndex,
        id: u32,
        reason: PortSearchRefusal,
    ) {
        let Some(peer) = self.peers.get(&handle) else {
            return;
        };
        let region = peer.call_me_maybe_relay(&self.core);
        let region = region.filter(|region| self.core.relays.is_connected(*region));
        if let (Some(to), Some(region), false) = (peer.to(), region, self.paused) {
            let step = PortSearchStep::Refuse(reason);
            let message = Message::PortSearch(PortSearch { id, step });
            self.core.send(now, to, PathAddr::Derp(region), &message);
        }
    }

    /// Takes part in the search that a peer offers, with the address that it should send to.
    fn accept_port_search(
        &mut self,
        now: Instant,
        handle: PeerIndex,
        id: u32,
        outside: IpAddr,
        needed: bool,
    ) -> Result<SocketAddr, PortSearchRefusal> {
        if self.core.searches.is_switched_off() {
            return Err(PortSearchRefusal::SwitchedOff);
        }
        if self.core.netcheck.varies() == Some(true) {
            return Err(PortSearchRefusal::PortVaries);
        }
        let target = self.core.netcheck.global(Family::V4);
        let target = target.ok_or(PortSearchRefusal::NoAddress)?;
        let own = self.core.own.local().interfaces.contains(&outside);
        if !is_outside_v4(outside) || own || self.config.ranges.contains(outside) {
            self.core.counters.search_messages_refused += 1;
            return Err(PortSearchRefusal::Unspecified);
        }
        if let Some(running) = self.core.searches.running().copied()
            && running.peer == handle
        {
            // The answer was lost, and the offer came again.
            if running.id == id {
                return Ok(target);
            }
            // A peer offers one search at a time, so it has left this one.
            self.end_port_search(now, PortSearchOutcome::Refused(PortSearchRefusal::Ended));
        }
        let is_busy = self.core.searches.running().is_some();
        let peer = self.peers.get_mut(&handle);
        let peer = peer.ok_or(PortSearchRefusal::Unspecified)?;
        if is_busy || !peer.attempts.may_accept(now) {
            return Err(PortSearchRefusal::Busy);
        }
        if !(needed || peer.is_active(now)) || peer.has_good_path(now) {
            return Err(PortSearchRefusal::NotNeeded);
        }
        let mut random = [0; 2];
        self.core.entropy.fill(&mut random);
        let random = u16::from_be_bytes(random);
        self.core
            .searches
            .accept(now, handle, id, outside, target, random);
        self.core.counters.searches_started += 1;
        // All guesses are in vain where our NAT has another port for us by now.
        self.measure(now);
        Ok(target)
    }

    /// Leaves the search when the address to which the peer sends is not ours any more.
    pub(super) fn check_search_target(&mut self, now: Instant) {
        let Some(running) = self.core.searches.running() else {
            return;
        };
        let seen = self.core.netcheck.global(Family::V4);
        if let (Role::Easy { target, .. }, Some(seen)) = (running.role, seen)
            && target != seen
        {
            self.end_port_search(now, PortSearchOutcome::Ended);
        }
    }

    /// Sends the probes that are due, and ends the search when it is over.
    pub(super) fn drive_port_search(&mut self, now: Instant) {
        let Some(running) = self.core.searches.running().copied() else {
            return;
        };
        let peer = self.peers.get(&running.peer);
        let Some(to) = peer.and_then(|peer| peer.to()) else {
            self.end_port_search(now, PortSearchOutcome::Ended);
            return;
        };
        if peer.is_some_and(|peer| peer.has_good_path(now)) {
            let in_use = peer.and_then(|peer| peer.in_use());
            let outcome = match running.role {
                // Only a path to the NAT that was searched: otherwise a peer could have the
                // probes repeated without a longer pause, by a path to elsewhere.
                Role::Easy { outside, .. } if in_use.is_some_and(|to| to.ip() == outside) => {
                    PortSearchOutcome::Found
                }
                Role::Easy { .. } | Role::Offering | Role::Forecasting | Role::Hard { .. } => {
                    PortSearchOutcome::Ended
                }
            };
            self.end_port_search(now, outcome);
            return;
        }
        self.drive_forecast(now);
        while let Some(probe) = self.core.searches.next_probe(now) {
            self.core.counters.search_probes_sent += 1;
            match probe {
                Probe::From(socket, target) => self.core.ping_from(now, to, socket, target),
                Probe::To(address) => {
                    let via = PathAddr::Udp(address);
                    self.core.send_ping(now, to, via, PingOptions::default());
                }
            }
        }
        if self.core.searches.is_over(now) {
            let outcome = match running.role {
                Role::Offering => PortSearchOutcome::Unanswered,
                Role::Forecasting | Role::Hard { .. } | Role::Easy { .. } => {
                    PortSearchOutcome::NotFound
                }
            };
            self.end_port_search(now, outcome);
        }
    }

    /// Ends the running search, if there is one. Others may begin.
    pub(super) fn end_port_search(&mut self, now: Instant, outcome: PortSearchOutcome) {
        let Some(running) = self.core.searches.end() else {
            return;
        };
        if matches!(running.role, Role::Hard { .. } | Role::Forecasting) {
            let close = SocketOrder::Close { search: running.id };
            self.core.events.push_back(Event::Sockets(close));
        }
        if outcome == PortSearchOutcome::Found {
            self.core.counters.searches_won += 1;
        }
        if let Some(peer) = self.peers.get_mut(&running.peer) {
            let attempts = &mut peer.attempts;
            match running.role {
                Role::Forecasting => {
                    attempts.forecast_ended(now, outcome == PortSearchOutcome::Found);
                }
                Role::Offering => attempts.offer_ended(now, running.since, outcome),
                Role::Hard { .. } => attempts.search_ended(now, running.since, outcome),
                Role::Easy { .. } => attempts.accepted_ended(now, running.since, outcome),
            }
        }
        let reason = match (outcome, running.role) {
            (_, Role::Forecasting) => None,
            (PortSearchOutcome::Ended, _) => Some(PortSearchRefusal::Ended),
            // The other side waits for the guesses of this one.
            (PortSearchOutcome::NotFound, Role::Easy { .. }) => Some(PortSearchRefusal::NotFound),
            _ => None,
        };
        if let Some(reason) = reason {
            self.report_search_end(now, running.peer, running.id, reason);
        }
        self.settle_searching_peers(now);
    }

    /// Ends the running search if it is one with this peer.
    pub(super) fn end_port_search_with(&mut self, now: Instant, handle: PeerIndex) {
        let running = self.core.searches.running();
        if running.is_some_and(|running| running.peer == handle) {
            self.end_port_search(now, PortSearchOutcome::Ended);
        }
    }

    /// Ends the running search and closes all sockets of searches.
    pub(super) fn close_search_sockets(&mut self, now: Instant) {
        self.end_port_search(now, PortSearchOutcome::Ended);
        if self.core.searches.forget_kept() {
            let close = Event::Sockets(SocketOrder::CloseAll);
            self.core.events.push_back(close);
        }
    }

    /// Closes the kept sockets of a peer that are not in use.
    pub(super) fn release_sockets(&mut self, now: Instant, handle: PeerIndex) {
        let in_use = self.peers.get(&handle).and_then(|peer| peer.in_use());
        let unused = match self.peers.contains_key(&handle) {
            true => self.core.searches.release(now, handle, in_use),
            false => self.core.searches.release_all(handle),
        };
        for remote in unused {
            let release = SocketOrder::Release { remote };
            self.core.events.push_back(Event::Sockets(release));
        }
    }
}

/// Whether a NAT may have this address, or a node of which no other network knows.
fn is_outside_v4(ip: IpAddr) -> bool {
    let IpAddr::V4(ip) = ip else { return false };
    let this_network = ip.octets()[0] == 0;
    !(this_network
        || ip.is_loopback()
        || ip.is_link_local()
        || ip.is_multicast()
        || ip == Ipv4Addr::BROADCAST
        || ip.octets()[0] >= 240)
}

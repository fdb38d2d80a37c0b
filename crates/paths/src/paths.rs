//! The state of the path engine, its clock, and what the data plane reports.

mod netmap;
mod network;
mod peer_relays;
mod port_forecast;
mod port_mapping;
mod port_search;
mod receive;
mod relay_client;
mod relay_events;
mod user_pings;
mod views;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Instant;

use warren_control_types::{NetInfo, RegionId};
use warren_keys::{DiscoPublic, DiscoSecret, Entropy, NodePublic};
use warren_node_types::{PeerIndex, Source};
use warren_timers::DeadlineQueue;

use self::port_mapping::PortMappings;
use self::user_pings::UserPing;
use crate::api::{Counters, Event, PathsConfig, Reason};
use crate::core::Core;
use crate::disco_keys::DiscoKeys;
use crate::endpoints::OwnEndpoints;
use crate::netcheck::Netcheck;
use crate::path_in_use::ACTIVE;
use crate::peer::Peer;
use crate::pings::Pings;
use crate::port_search::PortSearches;
use crate::pre_netmap::PreNetmap;
use crate::relay_client::{RelayAddr, RelayIndex};
use crate::relays::Relays;

/// Finds and watches the paths to all peers.
///
/// Every input takes the time and may leave events, read with
/// [`poll_event`](Self::poll_event) until it is empty. Then
/// [`next_deadline`](Self::next_deadline) says when to call
/// [`handle_timeout`](Self::handle_timeout); calling it early does nothing.
pub struct Paths {
    config: PathsConfig,
    core: Core,
    peers: BTreeMap<PeerIndex, Peer>,
    by_node: BTreeMap<NodePublic, PeerIndex>,
    /// Several nodes may share a disco key.
    by_disco: BTreeMap<DiscoPublic, BTreeSet<PeerIndex>>,
    pre_netmap: PreNetmap,
    /// When each peer has something to do.
    timers: DeadlineQueue<PeerIndex>,
    /// Pings that the user asked for, by token.
    user_pings: BTreeMap<u64, UserPing>,
    last_activity: Option<Instant>,
    measure_at: Option<Instant>,
    announced_home: Option<RegionId>,
    /// The home that control and peers know: one whose relay we reached, so that
    /// no peer sends to a relay that does not know us yet.
    reported_home: Option<RegionId>,
    /// When home is reported to control even without that.
    publish_home_at: Option<Instant>,
    port_mappings: PortMappings,
    last_net_info: Option<NetInfo>,
    paused: bool,
}

impl Paths {
    /// An engine without peers. It does nothing before it has a relay map and
    /// local addresses.
    pub fn new(
        config: PathsConfig,
        node_key: NodePublic,
        disco: DiscoSecret,
        entropy: Box<dyn Entropy>,
    ) -> Self {
        let draw = node_key
            .as_bytes()
            .first_chunk::<8>()
            .copied()
            .unwrap_or_default();
        Self {
            config,
            core: Core {
                node_key,
                entropy,
                keys: DiscoKeys::new(disco),
                pings: Pings::default(),
                relays: Relays::default(),
                netcheck: Netcheck::new(u64::from_be_bytes(draw)),
                own: OwnEndpoints::default(),
                searches: PortSearches::default(),
                relay_index: RelayIndex::default(),
                events: VecDeque::new(),
                counters: Counters::default(),
            },
            peers: BTreeMap::new(),
            by_node: BTreeMap::new(),
            by_disco: BTreeMap::new(),
            pre_netmap: PreNetmap::default(),
            timers: DeadlineQueue::new(),
            user_pings: BTreeMap::new(),
            last_activity: None,
            measure_at: None,
            announced_home: None,
            reported_home: None,
            publish_home_at: None,
            port_mappings: PortMappings::default(),
            last_net_info: None,
            paused: false,
        }
    }

    /// Packets for `peer` are being sent: to be called for the first one after
    /// a pause, and then about once a second.
    pub fn note_sent(&mut self, now: Instant, peer: PeerIndex) {
        let Some(state) = self.peers.get_mut(&peer) else {
            return;
        };
        let was_idle = self.last_activity.is_none_or(|at| now >= at + ACTIVE);
        self.last_activity = Some(now);
        state.note_sent(&mut self.core, now);
        if was_idle && self.core.own.is_stale(now) && !self.core.netcheck.is_running() {
            self.measure(now);
        }
        if self.measure_at.is_none() {
            self.measure_at = Some(self.next_period(now));
        }
        self.settle(now, peer);
        self.settle_shared(now);
    }

    /// Packets of `peer` that authenticated arrive from `from`: to be called
    /// about once a second, and at once when the source differs from the last
    /// one. Packets from a DERP relay that pass through
    /// [`handle_relay`](Self::handle_relay) need no call.
    pub fn note_received(&mut self, now: Instant, peer: PeerIndex, from: &Source) {
        if let Source::Derp { region, .. } = *from {
            self.core.netcheck.relay_received(now, region);
            self.core.relays.touch(now, region);
        }
        if let Some(state) = self.peers.get_mut(&peer) {
            match *from {
                Source::Udp(from) => {
                    state.note_received(&mut self.core, now, warren_wire::stun::unmap(from));
                }
                Source::Derp { region, .. } => state.received_at(region),
                // Data from an endpoint that is not known leads to no path: only a
                // handshake with the relay does.
                Source::PeerRelay { server, vni } => {
                    let server = warren_wire::stun::unmap(server);
                    state.relays.received(now, RelayAddr { server, vni });
                }
            }
        }
        self.settle(now, peer);
        self.settle_shared(now);
    }

    /// The next event, in the order in which they happened.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.core.events.pop_front()
    }

    /// When [`handle_timeout`](Self::handle_timeout) will have something to do,
    /// and the reason. Changes with every input.
    pub fn next_deadline(&self) -> Option<(Instant, Reason)> {
        if self.paused {
            return None;
        }
        let asked = self.user_pings.values().map(|ping| ping.ends_at).min();
        let all = [
            self.core
                .netcheck
                .deadline()
                .map(|at| (at, Reason::Netcheck)),
            self.measure_at.map(|at| (at, Reason::Remeasure)),
            self.core
                .own
                .deadline()
                .map(|at| (at, Reason::PublishEndpoints)),
            self.publish_home_at.map(|at| (at, Reason::Relay)),
            self.port_mappings
                .deadline()
                .map(|at| (at, Reason::PortMapping)),
            self.core.relays.deadline().map(|at| (at, Reason::Relay)),
            self.timers.next_deadline().map(|at| (at, Reason::Peer)),
            self.core
                .pings
                .deadline()
                .map(|at| (at, Reason::PingExpiry)),
            asked.map(|at| (at, Reason::PingExpiry)),
            self.core
                .searches
                .deadline()
                .map(|at| (at, Reason::PortSearch)),
        ];
        all.into_iter().flatten().min()
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.paused {
            return;
        }
        // All of them first: a peer may set a deadline that is due again.
        let due: Vec<PeerIndex> = std::iter::from_fn(|| self.timers.pop_due(now)).collect();
        for handle in due {
            self.settle(now, handle);
        }
        self.settle_shared(now);
    }

    /// Lets a peer do what is due, reports its destination if it changed, and
    /// sets its timer.
    fn settle(&mut self, now: Instant, handle: PeerIndex) {
        let Some(peer) = self.peers.get_mut(&handle) else {
            return;
        };
        if self.paused {
            return;
        }
        peer.drive(&mut self.core, now);
        self.drive_relay_search(now, handle);
        let Some(peer) = self.peers.get_mut(&handle) else {
            return;
        };
        let destination = peer.destination(&self.core, now);
        if destination != peer.destination {
            peer.destination = destination;
            if let Some(region) = destination.derp_region()
                && peer.is_active(now)
            {
                self.core.want_relay(now, region);
            }
            self.core.events.push_back(Event::Destination {
                peer: handle,
                destination,
            });
        }
        let deadline = peer.deadline(&self.core, now);
        self.timers.update(handle, deadline);
        self.release_sockets(now, handle);
    }

    fn settle_all_peers(&mut self, now: Instant) {
        for handle in self.peers.keys().copied().collect::<Vec<_>>() {
            self.settle(now, handle);
        }
        self.settle_shared(now);
    }

    /// Does everything that is due apart from peers.
    fn settle_shared(&mut self, now: Instant) {
        if self.paused {
            return;
        }
        if self.measure_at.is_some_and(|at| now >= at) {
            self.measure_at = None;
            if self.last_activity.is_some_and(|at| now < at + ACTIVE) {
                self.measure(now);
                self.measure_at = Some(self.next_period(now));
            }
        }
        let core = &mut self.core;
        let progress = core.netcheck.drive(
            now,
            core.entropy.as_mut(),
            &mut core.events,
            &mut core.counters,
        );
        self.apply(now, progress);
        self.core.relays.handle_timeout(now, &mut self.core.events);
        self.drive_port_search(now);
        self.core.pings.expire(now);
        self.expire_port_mappings(now);
        self.end_late_pings(now);
        if let Some(list) = self.core.own.take_published(now) {
            self.core.events.push_back(Event::Endpoints(list));
        }
    }
}

//! The engine: inputs in, events out.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use warren_control_types::{DerpMap, EndpointType, NetInfo, RegionId};
use warren_keys::{DiscoPublic, DiscoSecret, Entropy, NodePublic};
use warren_node_types::{Family, PeerIndex, Source};

use crate::api::{
    Counters, Event, LocalAddresses, PathsConfig, PeerInfo, PeerPath, PingError, Reason,
};
use crate::core::{Asked, Core};
use crate::direct::ACTIVE;
use crate::disco_keys::DiscoKeys;
use crate::early::Early;
use crate::endpoints::{FIRST_ANSWER, OwnEndpoints};
use crate::netcheck::{Netcheck, Progress};
use crate::peer::Peer;
use crate::pings::{Pings, TIMEOUT};
use crate::port_mapping::PortMappings;
use crate::relays::Relays;

/// In tailnets up to this size paths are set up before the first packet.
const SMALL_TAILNET: usize = 16;
/// Periodic measurements are this far apart, at random, so that nodes that
/// started together do not measure together.
const PERIOD: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(26));
/// Home is told to control after this long even if its relay was not reached.
const HOME_PATIENCE: Duration = Duration::from_secs(2);
/// A lost relay connection asks for a new measurement at most this often.
const RELAY_LOSS_GAP: Duration = Duration::from_secs(5);
/// What a ping of disco weighs without padding.
const PING_LEN: u16 = 124;

/// Finds and watches the ways to all peers.
///
/// Every input takes the time and may leave events, read with
/// [`poll_event`](Self::poll_event) until it is empty. Then
/// [`next_deadline`](Self::next_deadline) says when to call
/// [`handle_timeout`](Self::handle_timeout); calling it early does nothing.
pub struct Paths {
    config: PathsConfig,
    pub(crate) core: Core,
    pub(crate) peers: BTreeMap<PeerIndex, Peer>,
    pub(crate) by_node: BTreeMap<NodePublic, PeerIndex>,
    /// Several nodes may share a disco key.
    pub(crate) by_disco: BTreeMap<DiscoPublic, BTreeSet<PeerIndex>>,
    pub(crate) early: Early,
    timers: BTreeSet<(Instant, PeerIndex)>,
    timer_of: BTreeMap<PeerIndex, Instant>,
    /// Pings that a person asked for, by token.
    pub(crate) asked: BTreeMap<u64, AskedPing>,
    last_activity: Option<Instant>,
    measure_at: Option<Instant>,
    announced_home: Option<RegionId>,
    /// The home that control and peers are told: one whose relay we reached,
    /// so that nobody sends to a relay that does not know us yet.
    public_home: Option<RegionId>,
    /// When control is told of home even without that.
    publish_home_at: Option<Instant>,
    pub(crate) port_mappings: PortMappings,
    pub(crate) last_net_info: Option<NetInfo>,
    pub(crate) paused: bool,
}

pub(crate) struct AskedPing {
    pub(crate) peer: PeerIndex,
    ends_at: Instant,
    padding: u16,
    /// The relay was not connected when the ping began.
    waits_for_relay: bool,
}

impl Paths {
    /// An engine that knows nobody yet. It does nothing before it has a relay
    /// map and local addresses.
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
                events: VecDeque::new(),
                counters: Counters::default(),
            },
            peers: BTreeMap::new(),
            by_node: BTreeMap::new(),
            by_disco: BTreeMap::new(),
            early: Early::default(),
            timers: BTreeSet::new(),
            timer_of: BTreeMap::new(),
            asked: BTreeMap::new(),
            last_activity: None,
            measure_at: None,
            announced_home: None,
            public_home: None,
            publish_home_at: None,
            port_mappings: PortMappings::default(),
            last_net_info: None,
            paused: false,
        }
    }

    // ---- what control says ----

    /// Takes the relay map. Measuring starts at once if it differs from the
    /// last one.
    pub fn set_derp_map(&mut self, now: Instant, map: &DerpMap) {
        if !self.core.netcheck.set_map(map) {
            return;
        }
        let exists = |region: RegionId| map.regions.contains_key(&region);
        self.core.relays.retain(exists, &mut self.core.events);
        self.announced_home = self.announced_home.filter(|home| exists(*home));
        self.core.own.publish_by(now + FIRST_ANSWER);
        self.measure(now);
        self.settle_everyone(now);
    }

    /// Takes what the netmap says about a peer, new or not.
    pub fn upsert_peer(&mut self, now: Instant, handle: PeerIndex, info: PeerInfo) {
        let old = self.peers.get(&handle).map(|peer| peer.info.clone());
        if old
            .as_ref()
            .is_some_and(|old| old.node_key != info.node_key)
        {
            self.remove_peer(now, handle);
        }
        let old = old.filter(|old| old.node_key == info.node_key);
        if old.as_ref() == Some(&info) {
            return;
        }
        // A node key has one peer; a second handle for it takes over.
        if let Some(other) = self
            .by_node
            .get(&info.node_key)
            .copied()
            .filter(|it| *it != handle)
        {
            self.remove_peer(now, other);
        }
        let old_disco = old.as_ref().and_then(|old| old.disco_key);
        let new_disco = old_disco != info.disco_key;
        if new_disco {
            self.forget_disco(handle, old_disco);
            if let Some(disco) = info.disco_key {
                self.by_disco.entry(disco).or_default().insert(handle);
            }
        }
        self.by_node.insert(info.node_key, handle);
        let node = info.node_key;
        let small = self.peers.len() < SMALL_TAILNET;
        let peer = self
            .peers
            .entry(handle)
            .or_insert_with(|| Peer::new(handle, info.clone(), self.config.ranges));
        peer.info = info;
        if new_disco && old.is_some() {
            peer.restarted(now);
        }
        peer.set_endpoints(&mut self.core, now);
        if new_disco || !peer.has_good_path(now) {
            if small || peer.is_active(now) {
                peer.warm_up(now);
            }
            // Also tells the peer's new home where we are.
            if peer.is_punching() {
                peer.want_call(now);
            }
        }
        self.settle(now, handle);
        for packet in self.early.take(now, &node) {
            self.handle_relay(now, packet.region, node, &packet.packet);
        }
        self.settle_shared(now);
    }

    /// Forgets a peer that left the netmap.
    pub fn remove_peer(&mut self, now: Instant, handle: PeerIndex) {
        let Some(peer) = self.peers.remove(&handle) else {
            return;
        };
        self.by_node.remove(&peer.info.node_key);
        self.forget_disco(handle, peer.info.disco_key);
        if let Some(at) = self.timer_of.remove(&handle) {
            self.timers.remove(&(at, handle));
        }
        let asked: Vec<u64> = self
            .asked
            .iter()
            .filter(|(_, ping)| ping.peer == handle)
            .map(|(token, _)| *token)
            .collect();
        for token in asked {
            self.fail(token, PingError::NoSuchPeer);
        }
        self.settle_shared(now);
    }

    /// Whether the map stream of control is up. While it is not, home stays
    /// where it is: nobody could learn of a new one.
    pub fn set_control_connected(&mut self, connected: bool) {
        self.core.netcheck.set_control_away(!connected);
    }

    // ---- what the host says ----

    /// Takes the sockets and interface addresses.
    pub fn set_local_addresses(&mut self, now: Instant, local: LocalAddresses) {
        let usable = |ip: &&IpAddr| match ip {
            IpAddr::V4(_) => false,
            IpAddr::V6(ip) => !ip.is_unicast_link_local() && !ip.is_unspecified(),
        };
        let loopback_only = local.interfaces.iter().all(IpAddr::is_loopback);
        let mut v6 = local.interfaces.iter().filter(usable);
        let has_v4 = local.port_v4.is_some();
        let has_v6 = local.port_v6.is_some() && v6.any(|ip| loopback_only || !ip.is_loopback());
        let families = self.core.netcheck.set_families(has_v4, has_v6);
        let rebound = (local.port_v4, local.port_v6)
            != (self.core.own.local().port_v4, self.core.own.local().port_v6);
        if self.core.own.set_local(now, local) {
            self.core.own.publish_by(now + FIRST_ANSWER);
            self.call_those_in_search(now);
        }
        for (family, exists) in [(Family::V4, has_v4), (Family::V6, has_v6)] {
            if !exists {
                self.peers
                    .values_mut()
                    .for_each(|peer| peer.forget_family(family));
            }
        }
        if families || rebound {
            self.core.netcheck.forget();
            self.measure(now);
        }
        self.choose_port_mappings(now);
        self.settle_everyone(now);
    }

    /// Looks at the network around us now, because somebody asks.
    pub fn remeasure(&mut self, now: Instant) {
        self.measure(now);
        self.settle_shared(now);
    }

    /// The network underneath changed (interface, address, default route):
    /// nothing measured before holds any more. Packets take the relay as well
    /// as the path they took until that is confirmed anew or another is found:
    /// many a change leaves the path as it was, and then not one packet waits.
    pub fn link_changed(&mut self, now: Instant) {
        self.core.netcheck.forget();
        self.core.own.forget_measurement(now);
        self.give_up_port_mappings(now);
        self.core.relays.retry_now(now);
        let small = self.peers.len() <= SMALL_TAILNET;
        for peer in self.peers.values_mut() {
            peer.doubt_paths(now);
            if small || peer.is_active(now) {
                peer.warm_up(now);
            }
        }
        self.measure(now);
        self.settle_everyone(now);
    }

    /// While paused (no network at all) nothing is sent, no port mapping is
    /// kept and no deadline exists. Resuming is a link change.
    pub fn set_paused(&mut self, now: Instant, paused: bool) {
        let resumed = self.paused && !paused;
        self.paused = paused;
        if paused {
            self.give_up_port_mappings(now);
        }
        if resumed {
            self.link_changed(now);
        }
    }

    /// Answer to [`Event::ResolveHost`]; an empty list if there is no address.
    pub fn host_resolved(&mut self, now: Instant, name: &str, addresses: Vec<IpAddr>) {
        self.core.netcheck.host_resolved(name, addresses);
        self.settle_shared(now);
    }

    /// Answer to [`Event::ProbeRelayHttps`]: the time of the request alone,
    /// over a connection that was already open.
    pub fn relay_https_latency(&mut self, now: Instant, region: RegionId, latency: Duration) {
        self.core.netcheck.https_latency(region, latency);
        self.settle_shared(now);
    }

    // ---- what the relays say ----

    /// A connection to the relay of this region is up.
    pub fn relay_connected(&mut self, now: Instant, region: RegionId) {
        self.core.relays.connected(now, region);
        for (token, peer) in self
            .asked
            .iter()
            .filter(|(_, ping)| ping.waits_for_relay)
            .map(|(token, ping)| (*token, ping.peer))
            .collect::<Vec<_>>()
        {
            let Some(peer) = self.peers.get(&peer) else {
                continue;
            };
            let Some(ping) = self.asked.get_mut(&token) else {
                continue;
            };
            let asked = Asked {
                token: Some(token),
                padding: ping.padding,
            };
            ping.waits_for_relay = !peer.ping_relay_for_person(&mut self.core, now, asked);
        }
        // Calls that went into the old connection may be lost.
        let searching = self.peers.values_mut().filter(|peer| peer.is_punching());
        searching.for_each(|peer| peer.want_call(now));
        let waiting = self.peers.iter().filter(|(_, peer)| peer.call_waits());
        for handle in waiting.map(|(handle, _)| *handle).collect::<Vec<_>>() {
            self.settle(now, handle);
        }
        self.settle_shared(now);
    }

    /// The connection is gone, or the attempt for [`Event::ConnectRelay`]
    /// failed.
    pub fn relay_disconnected(&mut self, now: Instant, region: RegionId) {
        let was_connected = self.core.relays.is_connected(region);
        self.core.relays.disconnected(now, region);
        self.core.netcheck.lost_relay(region);
        self.peers.values_mut().for_each(|peer| peer.not_at(region));
        let recently = self
            .core
            .netcheck
            .last_started()
            .is_some_and(|at| now < at + RELAY_LOSS_GAP);
        if was_connected && !recently {
            self.measure(now);
        }
        self.settle_everyone(now);
    }

    /// The relay of this region told that `peer` is not connected to it.
    pub fn relay_peer_gone(&mut self, now: Instant, region: RegionId, peer: NodePublic) {
        let Some(handle) = self.by_node.get(&peer).copied() else {
            return;
        };
        if let Some(peer) = self.peers.get_mut(&handle) {
            peer.not_at(region);
            // It may be on its way to its relay while both sides start.
            if peer.is_punching() && peer.relay(&self.core) == Some(region) {
                peer.want_call(now + Duration::from_millis(250));
            }
        }
        self.settle(now, handle);
        self.settle_shared(now);
    }

    // ---- what the data plane says ----

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
            self.core.netcheck.heard_relay(now, region);
            self.core.relays.touch(now, region);
        }
        if let Some(state) = self.peers.get_mut(&peer) {
            match *from {
                Source::Udp(from) => {
                    state.note_received(&mut self.core, now, warren_wire::stun::unmap(from));
                }
                Source::Derp { region, .. } => state.heard_at(region),
                // Only a pong confirms a path, and candidates are direct
                // addresses: data from a peer relay leads to no new one.
                Source::PeerRelay { .. } => {}
            }
        }
        self.settle(now, peer);
        self.settle_shared(now);
    }

    // ---- what a person asks ----

    /// Pings `peer` by every way that may be in use; the first answer ends it
    /// with [`Event::Pong`], and 5 s without one with [`Event::PingFailed`].
    ///
    /// `size` is the length of the UDP payload; shorter than 124 bytes is not
    /// possible and means 124.
    pub fn ping(&mut self, now: Instant, peer: PeerIndex, token: u64, size: Option<u16>) {
        let padding = size.unwrap_or_default().saturating_sub(PING_LEN);
        let Some(state) = self.peers.get_mut(&peer) else {
            self.fail(token, PingError::NoSuchPeer);
            return;
        };
        if state.info.disco_key.is_none() {
            self.fail(token, PingError::NoDisco);
            return;
        }
        self.last_activity = Some(now);
        let asked = Asked {
            token: Some(token),
            padding,
        };
        let has_way = state.ping_for_person(&mut self.core, now, asked);
        let relay = state.relay(&self.core);
        let connected = relay.is_some_and(|region| self.core.relays.is_connected(region));
        if has_way {
            let waits_for_relay = relay.is_some() && !connected && !state.has_good_path(now);
            let ping = AskedPing {
                peer,
                ends_at: now + TIMEOUT,
                padding,
                waits_for_relay,
            };
            self.asked.insert(token, ping);
        } else {
            self.fail(token, PingError::NoPath);
        }
        self.settle(now, peer);
        self.settle_shared(now);
    }

    // ---- what is known ----

    /// How `peer` is reached now, for a status display.
    pub fn peer_path(&self, peer: PeerIndex) -> Option<PeerPath> {
        let state = self.peers.get(&peer)?;
        let direct = state.direct();
        Some(PeerPath {
            destination: state.destination,
            direct: direct.map(|(address, _)| address),
            round_trip: direct.and_then(|(_, round_trip)| round_trip),
            relay: state.relay(&self.core),
        })
    }

    /// Our own addresses, the newest ones.
    pub fn endpoints(&self) -> &[(SocketAddr, EndpointType)] {
        self.core.own.current()
    }

    /// Our home relay region. Control and peers hear of it in
    /// [`Event::NetInfo`], once its relay is reached.
    pub fn home(&self) -> Option<RegionId> {
        self.core.netcheck.home()
    }

    /// The newest findings about our network.
    pub fn net_info(&self) -> NetInfo {
        let os_has_v6 = self.core.own.local().port_v6.is_some();
        let protocols = self.port_mappings.protocols();
        NetInfo {
            preferred_derp: self.public_home,
            have_port_map: self.port_mappings.external().next().is_some(),
            upnp: protocols.upnp,
            pmp: protocols.nat_pmp,
            pcp: protocols.pcp,
            ..self.core.netcheck.net_info(os_has_v6)
        }
    }

    /// Our addresses as STUN servers saw them last.
    pub fn outside_addresses(&self) -> Vec<SocketAddr> {
        self.core.netcheck.addresses()
    }

    /// What was counted since the start.
    pub fn counters(&self) -> Counters {
        Counters {
            early_dropped: self.early.dropped(),
            ..self.core.counters
        }
    }

    /// The disco key that peers must know us by.
    pub fn disco_key(&self) -> DiscoPublic {
        *self.core.keys.public()
    }

    // ---- the clockwork ----

    /// The next event, in the order in which they happened.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.core.events.pop_front()
    }

    /// When [`handle_timeout`](Self::handle_timeout) will have something to do,
    /// and what. Changes with every input.
    pub fn next_deadline(&self) -> Option<(Instant, Reason)> {
        if self.paused {
            return None;
        }
        let asked = self.asked.values().map(|ping| ping.ends_at).min();
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
            self.timers.first().map(|(at, _)| (*at, Reason::Peer)),
            self.core
                .pings
                .deadline()
                .map(|at| (at, Reason::PingExpiry)),
            asked.map(|at| (at, Reason::PingExpiry)),
        ];
        all.into_iter().flatten().min()
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.paused {
            return;
        }
        let due: Vec<PeerIndex> = self
            .timers
            .iter()
            .take_while(|(at, _)| *at <= now)
            .map(|(_, handle)| *handle)
            .collect();
        for handle in due {
            self.settle(now, handle);
        }
        self.settle_shared(now);
    }

    /// Lets a peer do what is due, tells the data plane if its way changed,
    /// and sets its timer.
    pub(crate) fn settle(&mut self, now: Instant, handle: PeerIndex) {
        let Some(peer) = self.peers.get_mut(&handle) else {
            return;
        };
        if self.paused {
            return;
        }
        peer.drive(&mut self.core, now);
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
        let old = match deadline {
            Some(at) => self.timer_of.insert(handle, at),
            None => self.timer_of.remove(&handle),
        };
        if old != deadline {
            if let Some(old) = old {
                self.timers.remove(&(old, handle));
            }
            if let Some(at) = deadline {
                self.timers.insert((at, handle));
            }
        }
    }

    fn settle_everyone(&mut self, now: Instant) {
        for handle in self.peers.keys().copied().collect::<Vec<_>>() {
            self.settle(now, handle);
        }
        self.settle_shared(now);
    }

    /// Everything due that is not a peer's.
    pub(crate) fn settle_shared(&mut self, now: Instant) {
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
        self.core.pings.expire(now);
        self.expire_port_mappings(now);
        let ended = self.asked.iter().filter(|(_, ping)| now >= ping.ends_at);
        for token in ended.map(|(token, _)| *token).collect::<Vec<_>>() {
            self.fail(token, PingError::Timeout);
        }
        if let Some(list) = self.core.own.take_published(now) {
            self.core.events.push_back(Event::Endpoints(list));
        }
    }

    /// Uses what a measurement found.
    pub(crate) fn apply(&mut self, now: Instant, progress: Progress) {
        self.core.netcheck.pick_first_home(now);
        let home = self.core.netcheck.home();
        let moved = home.is_some() && home != self.announced_home;
        if let Some(home) = home.filter(|_| moved) {
            self.announced_home = Some(home);
            self.publish_home_at = Some(now + HOME_PATIENCE);
            self.core.relays.set_home(now, home, &mut self.core.events);
            self.core.events.push_back(Event::HomeRelay(home));
        }
        if progress.addresses || progress.finished {
            let outside = self.core.netcheck.addresses();
            let varying = self.core.netcheck.varying_v4();
            let port = self.config.configured_port;
            let guess = varying
                .zip(port)
                .map(|(ip, port)| SocketAddr::new(ip, port));
            if self.core.own.set_measured(now, outside, guess) {
                self.call_those_in_search(now);
            }
            self.choose_port_mappings(now);
        }
        if self.publish_home(now) || progress.finished {
            self.report_net_info();
        }
    }

    /// Lets the world know of home when its relay is reached, or when that
    /// takes too long. Returns whether something is new.
    fn publish_home(&mut self, now: Instant) -> bool {
        let home = self.core.netcheck.home();
        let Some(home) = home.filter(|_| home != self.public_home) else {
            self.publish_home_at = None;
            return false;
        };
        let waited = self.publish_home_at.is_some_and(|at| now >= at);
        if !waited && !self.core.relays.is_connected(home) {
            return false;
        }
        self.publish_home_at = None;
        self.public_home = Some(home);
        true
    }

    /// Control is told when something besides latency differs.
    pub(crate) fn report_net_info(&mut self) {
        let info = self.net_info();
        let comparable = NetInfo {
            derp_latency: BTreeMap::new(),
            ..info.clone()
        };
        if self.last_net_info.as_ref() != Some(&comparable) {
            self.last_net_info = Some(comparable);
            self.core.events.push_back(Event::NetInfo(info));
        }
    }

    /// Our addresses changed: peers that search for a path with us must know.
    pub(crate) fn call_those_in_search(&mut self, now: Instant) {
        let searching = self.peers.iter_mut().filter(|(_, peer)| peer.is_punching());
        let mut handles = Vec::new();
        for (handle, peer) in searching {
            peer.want_call(now);
            handles.push(*handle);
        }
        for handle in handles {
            self.settle(now, handle);
        }
    }

    fn measure(&mut self, now: Instant) {
        if !self.paused {
            self.core.netcheck.request(now);
        }
    }

    fn next_period(&mut self, now: Instant) -> Instant {
        let mut random = [0; 4];
        self.core.entropy.fill(&mut random);
        let (least, most) = PERIOD;
        let share = f64::from(u32::from_be_bytes(random)) / f64::from(u32::MAX);
        now + least + (most - least).mul_f64(share)
    }

    fn fail(&mut self, token: u64, error: PingError) {
        self.asked.remove(&token);
        self.core
            .events
            .push_back(Event::PingFailed { token, error });
    }

    fn forget_disco(&mut self, handle: PeerIndex, disco: Option<DiscoPublic>) {
        self.core.pings.forget_peer(handle);
        let Some(disco) = disco else { return };
        let Some(owners) = self.by_disco.get_mut(&disco) else {
            return;
        };
        owners.remove(&handle);
        if owners.is_empty() {
            self.by_disco.remove(&disco);
            self.core.keys.forget(&disco);
        }
    }
}

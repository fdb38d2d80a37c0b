//! The network around this machine: its changes, and the findings of netcheck.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use warren_control_types::{NetInfo, RegionId};
use warren_node_types::Family;

use super::Paths;
use super::netmap::SMALL_TAILNET;
use crate::api::{Event, LocalAddresses};
use crate::endpoints::FIRST_ANSWER;
use crate::netcheck::Progress;
use crate::port_search::PortSearchOutcome;

/// Periodic measurements are this far apart, at random, so that nodes that
/// started together do not measure together.
const PERIOD: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(26));
/// Home is reported to control after this long even if its relay was not
/// reached.
const HOME_REPORT_WAIT: Duration = Duration::from_secs(2);

impl Paths {
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
            self.call_searching_peers(now);
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
        self.settle_all_peers(now);
    }

    /// Measures the network now, with all relay regions.
    /// [`measurements`](Self::measurements) has the number of the measurement.
    pub fn remeasure(&mut self, now: Instant) {
        if !self.paused {
            self.core.netcheck.request_full(now);
        }
        self.settle_shared(now);
    }

    /// The network underneath changed (interface, address, default route):
    /// nothing measured before holds any more. Packets take the relay as well
    /// as the path they took until that is confirmed again or another is found:
    /// many changes leave the path as it was, and then no packet waits.
    pub fn link_changed(&mut self, now: Instant) {
        self.core.netcheck.forget();
        self.core.own.forget_measurement(now);
        self.give_up_port_mappings(now);
        self.core.relays.retry_now(now);
        self.end_port_search(now, PortSearchOutcome::Ended);
        self.core.searches.pattern = None;
        let small = self.peers.len() <= SMALL_TAILNET;
        for peer in self.peers.values_mut() {
            peer.mark_paths_suspect(now);
            if small || peer.is_active(now) {
                peer.note_learned(now);
            }
        }
        self.measure(now);
        self.settle_all_peers(now);
    }

    /// While paused (no network at all) nothing is sent, no port mapping and no socket
    /// of a port search is kept, and no deadline exists. Resuming is a link change.
    pub fn set_paused(&mut self, now: Instant, paused: bool) {
        let resumed = self.paused && !paused;
        self.paused = paused;
        if paused {
            self.give_up_port_mappings(now);
            self.close_search_sockets(now);
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

    /// Uses the findings of a measurement.
    pub(super) fn apply(&mut self, now: Instant, progress: Progress) {
        self.core.netcheck.pick_first_home(now);
        let home = self.core.netcheck.home();
        let moved = home.is_some() && home != self.announced_home;
        if let Some(home) = home.filter(|_| moved) {
            self.announced_home = Some(home);
            self.publish_home_at = Some(now + HOME_REPORT_WAIT);
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
                self.call_searching_peers(now);
            }
            self.choose_port_mappings(now);
            self.check_search_target(now);
            // Whether they are offered a search depends on what was found.
            self.settle_searching_peers(now);
        }
        if self.publish_home(now) || progress.finished {
            self.report_net_info();
        }
    }

    /// Makes home public when its relay is reached, or when that takes too long.
    /// Returns whether the public home changed.
    pub(super) fn publish_home(&mut self, now: Instant) -> bool {
        let home = self.core.netcheck.home();
        let Some(home) = home.filter(|_| home != self.reported_home) else {
            self.publish_home_at = None;
            return false;
        };
        let waited = self.publish_home_at.is_some_and(|at| now >= at);
        if !waited && !self.core.relays.is_connected(home) {
            return false;
        }
        self.publish_home_at = None;
        self.reported_home = Some(home);
        true
    }

    /// Reports the network to control if something besides latency differs.
    pub(super) fn report_net_info(&mut self) {
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

    /// Our addresses changed: peers that search for a path to us must know.
    pub(super) fn call_searching_peers(&mut self, now: Instant) {
        let searching = self
            .peers
            .iter_mut()
            .filter(|(_, peer)| peer.is_searching());
        let mut handles = Vec::new();
        for (handle, peer) in searching {
            peer.want_call_me_maybe(now);
            handles.push(*handle);
        }
        for handle in handles {
            self.settle(now, handle);
        }
    }

    /// Lets the peers for which a path is searched do what is due.
    pub(super) fn settle_searching_peers(&mut self, now: Instant) {
        let searching = self.peers.iter().filter(|(_, peer)| peer.is_searching());
        for handle in searching.map(|(handle, _)| *handle).collect::<Vec<_>>() {
            self.settle(now, handle);
        }
    }

    pub(super) fn measure(&mut self, now: Instant) {
        if !self.paused {
            self.core.netcheck.request(now);
        }
    }

    pub(super) fn next_period(&mut self, now: Instant) -> Instant {
        let mut random = [0; 4];
        self.core.entropy.fill(&mut random);
        let (least, most) = PERIOD;
        let share = f64::from(u32::from_be_bytes(random)) / f64::from(u32::MAX);
        now + least + (most - least).mul_f64(share)
    }
}

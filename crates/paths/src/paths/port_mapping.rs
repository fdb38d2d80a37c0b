//! Port mappings: addresses outside at which a router forwards UDP to this
//! machine.
//!
//! A port mapper speaks NAT-PMP, PCP or UPnP with the router. It is not part of
//! this crate. This file decides whether a mapping is useful
//! ([`Event::WantPortMapping`]) and adds the mappings that the port mapper
//! reports ([`PortMapReport`]) to our endpoints.
//!
//! A mapping is useful in a family in which STUN servers see an address that no
//! interface of this machine has: a router translates. Peers reach the mapped
//! address without hole punching, so a mapping also makes pairs direct whose
//! NATs both vary their mappings.
//!
//! A mapping ends with its lifetime, with a change of the network, and when the
//! socket has another port. It is not remembered after that, unlike addresses
//! from STUN: the router has said when it stops forwarding.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use warren_node_types::{Family, MappingProtocols, PortMapReport};
use warren_wire::stun;

use super::Paths;
use crate::api::Event;

/// Longer lifetimes count as this one, which RFC 6887 section 15 recommends.
const MAX_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);

/// A mapping that a router holds for us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mapping {
    external: SocketAddr,
    expires: Instant,
}

/// The mapping of one family. Without a wanted port there is no mapping.
#[derive(Debug, Default)]
struct Slot {
    wanted: Option<u16>,
    mapping: Option<Mapping>,
}

/// The mappings of both families, and the protocols that the router speaks.
#[derive(Debug, Default)]
pub(super) struct PortMappings {
    v4: Slot,
    v6: Slot,
    protocols: MappingProtocols,
}

impl PortMappings {
    /// The mapped addresses, IPv4 first.
    pub(super) fn external(&self) -> impl Iterator<Item = SocketAddr> {
        let both = [&self.v4, &self.v6].into_iter();
        both.filter_map(|slot| Some(slot.mapping?.external))
    }

    /// The mapping protocols that the router was found to speak.
    pub(super) fn protocols(&self) -> MappingProtocols {
        self.protocols
    }

    /// When the next mapping expires.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let both = [&self.v4, &self.v6].into_iter();
        both.filter_map(|slot| Some(slot.mapping?.expires)).min()
    }

    /// Removes mappings that are past their lifetime.
    fn expire(&mut self, now: Instant) {
        for slot in [&mut self.v4, &mut self.v6] {
            slot.mapping = slot.mapping.filter(|mapping| now < mapping.expires);
        }
    }

    /// Sets the port that should be mapped. Returns whether it is another one;
    /// a mapping of the old port ends.
    fn want(&mut self, family: Family, port: Option<u16>) -> bool {
        let slot = self.slot(family);
        let changed = slot.wanted != port;
        if changed {
            *slot = Slot {
                wanted: port,
                mapping: None,
            };
        }
        changed
    }

    /// Takes a report. Returns whether it was one that can be true.
    fn take(&mut self, now: Instant, report: PortMapReport) -> bool {
        match report {
            PortMapReport::Protocols(protocols) => self.protocols = protocols,
            PortMapReport::Unmapped(family) => self.slot(family).mapping = None,
            PortMapReport::Mapped { external, lifetime } => {
                let external = stun::unmap(external);
                let expires = now + lifetime.min(MAX_LIFETIME);
                let slot = self.slot(Family::of_socket(external));
                let usable = slot.wanted.is_some() && is_reachable(external);
                slot.mapping =
                    Some(Mapping { external, expires }).filter(|_| usable && expires > now);
                return usable;
            }
        }
        true
    }

    fn slot(&mut self, family: Family) -> &mut Slot {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }
}

/// Whether peers could send to `external`. Private addresses are accepted: peers
/// behind the same outer NAT reach them.
fn is_reachable(external: SocketAddr) -> bool {
    let unicast = match external.ip() {
        IpAddr::V4(ip) => {
            !ip.is_unspecified()
                && !ip.is_loopback()
                && !ip.is_link_local()
                && !ip.is_multicast()
                && !ip.is_broadcast()
        }
        IpAddr::V6(ip) => {
            !ip.is_unspecified()
                && !ip.is_loopback()
                && !ip.is_unicast_link_local()
                && !ip.is_multicast()
        }
    };
    unicast && external.port() != 0
}

impl Paths {
    /// Takes a report of the port mapper. A mapping that was not asked for with
    /// [`Event::WantPortMapping`] is ignored, as one of an earlier network.
    pub fn handle_port_map(&mut self, now: Instant, report: PortMapReport) {
        if !self.port_mappings.take(now, report) {
            self.core.counters.port_mappings_refused += 1;
        }
        self.use_port_mappings(now);
        // The first report of the network waits for the first measurement.
        if self.last_net_info.is_some() {
            self.report_net_info();
        }
        self.settle_shared(now);
    }

    /// Asks for the mappings that are useful now, and gives up the others.
    pub(super) fn choose_port_mappings(&mut self, now: Instant) {
        if self.paused {
            return;
        }
        for family in Family::ALL {
            let local = self.core.own.local();
            let port = match family {
                Family::V4 => local.port_v4,
                Family::V6 => local.port_v6,
            };
            let wanted = match self.core.netcheck.global(family) {
                Some(seen) => port.filter(|_| !local.interfaces.contains(&seen.ip())),
                // Without an answer of a STUN server nothing is known to have
                // changed.
                None => port.filter(|_| self.port_mappings.slot(family).wanted.is_some()),
            };
            self.want_port_mapping(family, wanted);
        }
        self.use_port_mappings(now);
    }

    /// Gives up all mappings: the network is another one, or paused.
    pub(super) fn give_up_port_mappings(&mut self, now: Instant) {
        for family in Family::ALL {
            self.want_port_mapping(family, None);
        }
        self.port_mappings.protocols = MappingProtocols::default();
        self.use_port_mappings(now);
    }

    /// Removes mappings that are past their lifetime.
    pub(super) fn expire_port_mappings(&mut self, now: Instant) {
        if self.port_mappings.deadline().is_some_and(|at| now >= at) {
            self.port_mappings.expire(now);
            self.use_port_mappings(now);
            self.report_net_info();
        }
    }

    fn want_port_mapping(&mut self, family: Family, port: Option<u16>) {
        if self.port_mappings.want(family, port) {
            let event = Event::WantPortMapping { family, port };
            self.core.events.push_back(event);
        }
    }

    fn use_port_mappings(&mut self, now: Instant) {
        let external = self.port_mappings.external().collect();
        if self.core.own.set_mapped(now, external) {
            self.call_searching_peers(now);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    fn mapped(external: &str, lifetime: u64) -> PortMapReport {
        PortMapReport::Mapped {
            external: external.parse().unwrap(),
            lifetime: seconds(lifetime),
        }
    }

    #[test]
    fn addresses_that_peers_cannot_reach_are_refused() {
        let now = Instant::now();
        let cases = [
            ("198.51.100.1:4000", true),
            ("[2001:db8::1]:4000", true),
            ("[::ffff:198.51.100.1]:4000", true),
            ("10.0.0.1:4000", true),
            ("198.51.100.1:0", false),
            ("0.0.0.0:4000", false),
            ("127.0.0.1:4000", false),
            ("169.254.0.1:4000", false),
            ("224.0.0.1:4000", false),
            ("255.255.255.255:4000", false),
            ("[::]:4000", false),
            ("[::1]:4000", false),
            ("[fe80::1]:4000", false),
            ("[ff02::1]:4000", false),
        ];
        for (external, usable) in cases {
            let mut mappings = PortMappings::default();
            mappings.want(Family::V4, Some(1));
            mappings.want(Family::V6, Some(1));
            mappings.take(now, mapped("198.51.100.9:9", 60));
            mappings.take(now, mapped("[2001:db8::9]:9", 60));
            assert_eq!(
                mappings.take(now, mapped(external, 60)),
                usable,
                "{external}"
            );
            // A mapping that cannot be used has still replaced the last one.
            let count = if usable { 2 } else { 1 };
            assert_eq!(mappings.external().count(), count, "{external}");
        }
    }

    #[test]
    fn very_long_lifetimes_end_after_a_day() {
        let now = Instant::now();
        let mut mappings = PortMappings::default();
        mappings.want(Family::V4, Some(1));
        let report = PortMapReport::Mapped {
            external: "198.51.100.1:4000".parse().unwrap(),
            lifetime: Duration::MAX,
        };
        assert!(mappings.take(now, report));
        assert_eq!(mappings.deadline(), Some(now + MAX_LIFETIME));
    }

    #[derive(Debug, Clone)]
    enum Step {
        Want(Option<u16>),
        Mapped(u16, u64),
        Unmapped,
        Pass(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            prop::option::of(1u16..4).prop_map(Step::Want),
            (1u16..5, 0u64..20).prop_map(|(port, lifetime)| Step::Mapped(port, lifetime)),
            Just(Step::Unmapped),
            (0u64..15).prop_map(Step::Pass),
        ]
    }

    proptest! {
        /// A mapping is used from its report until its lifetime ends, a report
        /// replaces it, or another port is wanted. The other family is untouched.
        #[test]
        fn mappings_agree_with_a_plain_model(steps in prop::collection::vec(step(), 0..40)) {
            let start = Instant::now();
            let mut now = 0;
            let mut mappings = PortMappings::default();
            mappings.want(Family::V6, Some(1));
            mappings.take(start, mapped("[2001:db8::1]:1", 86_400));
            let (mut wanted, mut held) = (None, None::<(u16, u64)>);
            for step in steps {
                match step {
                    Step::Want(port) => {
                        prop_assert_eq!(mappings.want(Family::V4, port), port != wanted);
                        held = held.filter(|_| port == wanted);
                        wanted = port;
                    }
                    Step::Mapped(port, lifetime) => {
                        let external = SocketAddr::from(([198, 51, 100, 1], port));
                        let lifetime = seconds(lifetime);
                        let report = PortMapReport::Mapped { external, lifetime };
                        let taken = mappings.take(start + seconds(now), report);
                        prop_assert_eq!(taken, wanted.is_some());
                        held = Some((port, now + lifetime.as_secs())).filter(|_| taken);
                    }
                    Step::Unmapped => {
                        mappings.take(start, PortMapReport::Unmapped(Family::V4));
                        held = None;
                    }
                    Step::Pass(time) => now += time,
                }
                mappings.expire(start + seconds(now));
                held = held.filter(|(_, expires)| now < *expires);
                let ports: Vec<u16> = mappings.external().map(|external| external.port()).collect();
                let expected: Vec<u16> = held.map(|(port, _)| port).into_iter().chain([1]).collect();
                prop_assert_eq!(ports, expected);
                let deadline = held.map(|(_, expires)| expires).unwrap_or(86_400);
                prop_assert_eq!(mappings.deadline(), Some(start + seconds(deadline)));
            }
        }
    }
}

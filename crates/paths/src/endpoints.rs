//! Our own addresses, as they are advertised to control and peers.
//!
//! They come from the port mapper, from STUN, from the interfaces, and from
//! configuration. An address that STUN servers saw is remembered for [`MEMORY`]
//! after that: a mapping often outlives the moment in which a measurement missed
//! it, and a peer that pings one address too many loses nothing.
//!
//! The first list is published as soon as STUN has answered once, or when it
//! is clear that it will not at once; later changes are collected for [`SETTLE`].

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use warren_control_types::EndpointType;

use crate::api::LocalAddresses;

/// How long an address from outside is advertised after it was last seen.
const MEMORY: Duration = Duration::from_secs(310);
/// Remembered addresses with the same IP.
const PER_IP: usize = 6;
/// Addresses that are advertised at most.
const MAX: usize = 60;
/// How long the first list waits for a STUN answer.
pub(crate) const FIRST_ANSWER: Duration = Duration::from_millis(150);
/// How long later changes are collected.
const SETTLE: Duration = Duration::from_millis(25);
/// A list older than this is measured again when it is sent to a peer.
const FRESH: Duration = Duration::from_secs(27);

pub(crate) type Endpoint = (SocketAddr, EndpointType);

#[derive(Default)]
pub(crate) struct OwnEndpoints {
    local: LocalAddresses,
    /// From the port mapper.
    mapped: Vec<SocketAddr>,
    /// From the newest measurement.
    stun: Vec<SocketAddr>,
    /// The outside IP of a NAT that varies its mappings, with the port that the
    /// user configured.
    guess: Option<SocketAddr>,
    measured: Option<Instant>,
    memory: BTreeMap<IpAddr, Vec<(Endpoint, Instant)>>,
    current: Vec<Endpoint>,
    /// Grows with each change of `current`.
    generation: u64,
    publish_at: Option<Instant>,
    published: Vec<Endpoint>,
}

impl OwnEndpoints {
    pub(crate) fn local(&self) -> &LocalAddresses {
        &self.local
    }

    /// The list for CallMeMaybe: always the newest one, published or not.
    pub(crate) fn current(&self) -> &[Endpoint] {
        &self.current
    }

    /// The number of the newest list.
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    /// Whether a datagram to `address` would come back to ourselves.
    pub(crate) fn is_own_socket(&self, address: SocketAddr) -> bool {
        let port = if address.is_ipv4() {
            self.local.port_v4
        } else {
            self.local.port_v6
        };
        port == Some(address.port()) && self.local.interfaces.contains(&address.ip())
    }

    pub(crate) fn is_stale(&self, now: Instant) -> bool {
        self.measured.is_none_or(|at| now >= at + FRESH)
    }

    /// Returns whether the list changed.
    pub(crate) fn set_local(&mut self, now: Instant, local: LocalAddresses) -> bool {
        self.local = local;
        self.refresh(now)
    }

    /// Takes the addresses that STUN servers saw. Returns whether the list changed.
    pub(crate) fn set_measured(
        &mut self,
        now: Instant,
        stun: Vec<SocketAddr>,
        guess: Option<SocketAddr>,
    ) -> bool {
        self.measured = Some(now);
        self.stun = stun;
        self.guess = guess;
        self.refresh(now)
    }

    /// Takes the addresses that routers forward to us. Returns whether the list
    /// changed.
    pub(crate) fn set_mapped(&mut self, now: Instant, mapped: Vec<SocketAddr>) -> bool {
        if self.mapped == mapped {
            return false;
        }
        self.mapped = mapped;
        self.refresh(now)
    }

    /// The network changed: nothing measured holds any more. Remembered addresses
    /// are still advertised.
    pub(crate) fn forget_measurement(&mut self, now: Instant) {
        self.measured = None;
        self.stun.clear();
        self.guess = None;
        self.refresh(now);
    }

    /// Publishes at `at` at the latest.
    pub(crate) fn publish_by(&mut self, at: Instant) {
        self.publish_at = Some(self.publish_at.map_or(at, |earlier| earlier.min(at)));
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.publish_at
    }

    /// The list for control, when it is time and differs from the last one.
    pub(crate) fn take_published(&mut self, now: Instant) -> Option<Vec<Endpoint>> {
        if self.publish_at.is_none_or(|at| now < at) {
            return None;
        }
        self.publish_at = None;
        if self.current.is_empty() && self.published.is_empty() {
            return None;
        }
        let sorted = |list: &[Endpoint]| {
            let mut list = list.to_vec();
            list.sort();
            list
        };
        if sorted(&self.current) == sorted(&self.published) {
            return None;
        }
        self.published.clone_from(&self.current);
        Some(self.current.clone())
    }

    fn refresh(&mut self, now: Instant) -> bool {
        let outside = self
            .stun
            .iter()
            .map(|address| (*address, EndpointType::Stun));
        let guess = self
            .guess
            .map(|address| (address, EndpointType::Stun4LocalPort));
        let outside: Vec<Endpoint> = outside.chain(guess).collect();
        for endpoint in &outside {
            self.remember(now, *endpoint);
        }
        self.memory.retain(|_, known| {
            known.retain(|(_, until)| now < *until);
            !known.is_empty()
        });

        let mut list: Vec<Endpoint> = Vec::new();
        let mut add = |endpoint: Endpoint| {
            if list.len() < MAX && !list.iter().any(|(address, _)| *address == endpoint.0) {
                list.push(endpoint);
            }
        };
        for mapped in &self.mapped {
            add((*mapped, EndpointType::PortMapped));
        }
        outside.into_iter().for_each(&mut add);
        for explicit in &self.local.explicit {
            add((*explicit, EndpointType::ExplicitConf));
        }
        self.interface_endpoints().into_iter().for_each(&mut add);
        self.memory
            .values()
            .flatten()
            .for_each(|(endpoint, _)| add(*endpoint));

        let changed = list != self.current;
        if changed {
            let first_stun = self
                .published
                .iter()
                .all(|(_, kind)| *kind != EndpointType::Stun)
                && !self.stun.is_empty();
            let waiting = self.published.is_empty() && self.stun.is_empty();
            if first_stun {
                self.publish_by(now);
            } else if !waiting {
                self.publish_by(now + SETTLE);
            }
            self.current = list;
            self.generation += 1;
        }
        changed
    }

    fn interface_endpoints(&self) -> Vec<Endpoint> {
        let usable = |ip: &&IpAddr| match ip {
            IpAddr::V4(ip) => !ip.is_unspecified(),
            IpAddr::V6(ip) => !ip.is_unspecified() && !ip.is_unicast_link_local(),
        };
        let interfaces = || self.local.interfaces.iter().filter(usable);
        // Loopback helps only hosts that have nothing else.
        let loopback_only = interfaces().all(|ip| ip.is_loopback());
        let endpoints = interfaces().filter(|ip| loopback_only || !ip.is_loopback());
        let with_port = endpoints.filter_map(|ip| {
            let port = if ip.is_ipv4() {
                self.local.port_v4
            } else {
                self.local.port_v6
            };
            port.map(|port| (SocketAddr::new(*ip, port), EndpointType::Local))
        });
        with_port.collect()
    }

    fn remember(&mut self, now: Instant, endpoint: Endpoint) {
        let known = self.memory.entry(endpoint.0.ip()).or_default();
        known.retain(|((address, _), _)| *address != endpoint.0);
        // Newest first, so that the oldest is cut off.
        known.insert(0, (endpoint, now + MEMORY));
        known.truncate(PER_IP);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn local() -> LocalAddresses {
        LocalAddresses {
            port_v4: Some(41641),
            port_v6: None,
            interfaces: ["127.0.0.1", "10.0.0.2", "fd00::2", "fe80::2"]
                .map(|ip| ip.parse().unwrap())
                .to_vec(),
            explicit: Vec::new(),
        }
    }

    fn public(port: u16) -> SocketAddr {
        ([198, 51, 100, 1], port).into()
    }

    #[test]
    fn the_first_list_waits_for_stun_but_not_forever() {
        let now = Instant::now();
        let inside: Endpoint = ("10.0.0.2:41641".parse().unwrap(), EndpointType::Local);
        let mut own = OwnEndpoints::default();
        assert!(own.set_local(now, local()));
        assert_eq!(own.current(), [inside]);
        assert_eq!(own.take_published(now), None);

        own.publish_by(now + FIRST_ANSWER);
        assert_eq!(own.take_published(now), None);
        own.set_measured(now, vec![public(7)], None);
        let expected = vec![(public(7), EndpointType::Stun), inside];
        assert_eq!(own.take_published(now), Some(expected));

        let mut blocked = OwnEndpoints::default();
        blocked.set_local(now, local());
        blocked.publish_by(now + FIRST_ANSWER);
        assert_eq!(
            blocked.take_published(now + FIRST_ANSWER),
            Some(vec![inside])
        );
    }

    #[test]
    fn vanished_addresses_are_advertised_for_a_while() {
        let now = Instant::now();
        let mut own = OwnEndpoints::default();
        own.set_local(now, local());
        own.set_measured(now, vec![public(1)], Some(public(41641)));
        for port in 2..9 {
            own.set_measured(now, vec![public(port)], None);
        }
        let ports = |own: &OwnEndpoints| {
            let outside = own
                .current()
                .iter()
                .filter(|(_, kind)| *kind != EndpointType::Local);
            outside
                .map(|(address, _)| address.port())
                .collect::<Vec<_>>()
        };
        assert_eq!(ports(&own), [8, 7, 6, 5, 4, 3], "six of one IP");
        own.set_measured(now + MEMORY, vec![public(9)], None);
        assert_eq!(ports(&own), [9]);
    }

    #[test]
    fn loopback_is_advertised_only_alone() {
        let mut own = OwnEndpoints::default();
        let interfaces = vec!["127.0.0.1".parse().unwrap()];
        own.set_local(
            Instant::now(),
            LocalAddresses {
                interfaces,
                ..local()
            },
        );
        assert_eq!(
            own.current(),
            [("127.0.0.1:41641".parse().unwrap(), EndpointType::Local)]
        );
        assert!(own.is_own_socket("127.0.0.1:41641".parse().unwrap()));
        assert!(!own.is_own_socket("127.0.0.1:41642".parse().unwrap()));
    }
}

//! NATs and firewalls between a host and the internet, by their behaviour after
//! RFC 4787.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// A mapping or filter entry that was not used lives this long.
const LIFETIME: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A public address, nothing in between.
    Open,
    /// A public address behind a stateful firewall.
    Firewall,
    /// Endpoint-independent mapping and filtering.
    Cone,
    /// Endpoint-independent mapping, address-and-port-dependent filtering.
    Easy,
    /// A new mapping for each destination, and the same filtering.
    Hard,
    /// No UDP at all.
    Blocked,
}

pub const ALL: [Kind; 6] = [
    Kind::Open,
    Kind::Firewall,
    Kind::Cone,
    Kind::Easy,
    Kind::Hard,
    Kind::Blocked,
];

pub struct Nat {
    pub kind: Kind,
    pub outside: IpAddr,
    /// By destination where that matters.
    mappings: BTreeMap<Option<SocketAddr>, (u16, Instant)>,
    allowed: BTreeMap<(u16, SocketAddr), Instant>,
    /// Whether it maps a port when asked.
    pub maps_ports: bool,
    /// The port outside that it forwards to the host.
    forwarded: Option<u16>,
    next_port: u16,
}

impl Nat {
    pub fn new(kind: Kind, outside: IpAddr) -> Self {
        let next_port = 20_000;
        Self {
            kind,
            outside,
            mappings: BTreeMap::new(),
            allowed: BTreeMap::new(),
            maps_ports: false,
            forwarded: None,
            next_port,
        }
    }

    /// Whether the host itself has the outside address.
    pub fn is_public(&self) -> bool {
        matches!(self.kind, Kind::Open | Kind::Firewall)
    }

    /// Maps a port to the host, or removes the mapping. Returns the address
    /// outside.
    pub fn forward(&mut self, enabled: bool) -> Option<SocketAddr> {
        self.forwarded = Some(50_000).filter(|_| enabled && self.maps_ports);
        Some(SocketAddr::new(self.outside, self.forwarded?))
    }

    /// The source address outside, or nothing if the datagram is dropped.
    pub fn outbound(&mut self, now: Instant, port: u16, to: SocketAddr) -> Option<SocketAddr> {
        // Answers to a flow through the mapped port leave from that port.
        let answered = self
            .forwarded
            .filter(|port| self.allowed.contains_key(&(*port, to)));
        if let Some(port) = answered {
            return Some(SocketAddr::new(self.outside, port));
        }
        let outside = match self.kind {
            Kind::Blocked => return None,
            Kind::Open | Kind::Firewall => port,
            Kind::Cone | Kind::Easy => self.map(now, None),
            Kind::Hard => self.map(now, Some(to)),
        };
        self.allowed.insert((outside, to), now);
        Some(SocketAddr::new(self.outside, outside))
    }

    /// Whether a datagram to `port` outside reaches the host.
    pub fn inbound(&mut self, now: Instant, port: u16, from: SocketAddr) -> bool {
        if self.forwarded == Some(port) {
            self.allowed.insert((port, from), now);
            return true;
        }
        let live = |at: &Instant| now < *at + LIFETIME;
        let allowed = self.allowed.get(&(port, from)).is_some_and(live);
        let mapped = self
            .mappings
            .values()
            .any(|(mapped, at)| *mapped == port && live(at));
        let passes = match self.kind {
            Kind::Open => true,
            Kind::Firewall => allowed,
            Kind::Cone => mapped,
            Kind::Easy | Kind::Hard => mapped && allowed,
            Kind::Blocked => false,
        };
        if passes {
            self.allowed.entry((port, from)).and_modify(|at| *at = now);
            for (mapped, at) in self.mappings.values_mut() {
                if *mapped == port {
                    *at = now;
                }
            }
        }
        passes
    }

    /// Forgets everything, as a router does that restarts.
    pub fn reset(&mut self) {
        self.mappings.clear();
        self.allowed.clear();
    }

    fn map(&mut self, now: Instant, to: Option<SocketAddr>) -> u16 {
        let next = &mut self.next_port;
        let entry = self.mappings.entry(to).or_insert((0, now));
        if entry.0 == 0 || now >= entry.1 + LIFETIME {
            *next += 1;
            entry.0 = *next;
        }
        entry.1 = now;
        entry.0
    }
}

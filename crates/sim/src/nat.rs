//! Network address translation by behaviour, in the words of RFC 4787, and the
//! firewall that translates nothing but remembers flows in the same way.
//!
//! "Cone" and "symmetric" are not used: they mix two things. A NAT is
//! described by how it *maps* (REQ-1) and by how it *filters* (REQ-8); ports,
//! lifetimes and hairpinning are further properties.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use crate::random::SimRng;
use crate::time::{SimTime, secs};

/// The part of the other side that a binding, or a permission to send in,
/// depends on (RFC 4787, sections 4.1 and 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dependence {
    /// On the inside address alone.
    EndpointIndependent,
    /// Also on the address of the other side.
    AddressDependent,
    /// Also on its port.
    AddressAndPortDependent,
}

/// The outside port that a new binding gets (section 4.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ports {
    /// The inside port where it is free.
    Preserving,
    /// One after the other.
    Sequential,
    /// Any.
    Random,
}

/// How a NAT behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NatBehaviour {
    /// The condition under which two flows share an outside port.
    pub mapping: Dependence,
    /// The senders that may reply to it.
    pub filtering: Dependence,
    /// The choice of the port.
    pub ports: Ports,
    /// How long a binding lives without traffic (REQ-5 asks for 2 minutes or
    /// more, many have 30 s).
    pub expiry: SimTime,
    /// Whether traffic from outside keeps it alive too (REQ-6).
    pub inbound_refreshes: bool,
    /// Whether two inside hosts may talk by their outside addresses (REQ-9).
    pub hairpinning: bool,
}

impl NatBehaviour {
    /// The usual home router: one port for all, and only the hosts asked may reply.
    pub const EASY: Self = Self {
        mapping: Dependence::EndpointIndependent,
        filtering: Dependence::AddressAndPortDependent,
        ports: Ports::Preserving,
        expiry: secs(30),
        inbound_refreshes: true,
        hairpinning: false,
    };

    /// One port for all, and every host may send to it.
    pub const CONE: Self = Self {
        filtering: Dependence::EndpointIndependent,
        hairpinning: true,
        ..Self::EASY
    };

    /// A port for every destination, at random.
    pub const HARD: Self = Self {
        mapping: Dependence::AddressAndPortDependent,
        ports: Ports::Random,
        ..Self::EASY
    };

    /// A carrier's: many customers behind one address.
    pub const CARRIER: Self = Self {
        ports: Ports::Random,
        expiry: secs(120),
        ..Self::EASY
    };
}

/// The part of the other side's address that a flow depends on.
fn relevant(dependence: Dependence, other: SocketAddr) -> Option<(IpAddr, u16)> {
    match dependence {
        Dependence::EndpointIndependent => None,
        Dependence::AddressDependent => Some((other.ip(), 0)),
        Dependence::AddressAndPortDependent => Some((other.ip(), other.port())),
    }
}

#[derive(Debug)]
struct Binding {
    inside: SocketAddr,
    key: Option<(IpAddr, u16)>,
    used: SimTime,
    /// The hosts asked, with the time of the last datagram.
    asked: BTreeMap<Option<(IpAddr, u16)>, SimTime>,
}

/// A NAT with one outside address.
#[derive(Debug)]
pub(crate) struct Nat {
    behaviour: NatBehaviour,
    outside: IpAddr,
    bindings: BTreeMap<u16, Binding>,
    next_port: u16,
    rng: SimRng,
}

impl Nat {
    pub(crate) fn new(behaviour: NatBehaviour, outside: IpAddr, mut rng: SimRng) -> Self {
        let next_port = 2_000 + rng.below(40_000) as u16;
        Self {
            behaviour,
            outside,
            bindings: BTreeMap::new(),
            next_port,
            rng,
        }
    }

    pub(crate) fn outside(&self) -> IpAddr {
        self.outside
    }

    pub(crate) fn hairpins(&self) -> bool {
        self.behaviour.hairpinning
    }

    /// Forgets everything, as after a power cut.
    pub(crate) fn reboot(&mut self) {
        self.bindings.clear();
    }

    /// A datagram goes out; its source is from now on what is returned.
    pub(crate) fn outbound(
        &mut self,
        now: SimTime,
        from: SocketAddr,
        to: SocketAddr,
    ) -> Option<SocketAddr> {
        let expiry = self.behaviour.expiry;
        self.bindings
            .retain(|_, binding| now < binding.used + expiry);
        let key = relevant(self.behaviour.mapping, to);
        let known = self
            .bindings
            .iter()
            .find(|(_, binding)| binding.inside == from && binding.key == key)
            .map(|(port, _)| *port);
        let port = match known {
            Some(port) => port,
            None => self.free_port(from.port())?,
        };
        let binding = self.bindings.entry(port).or_insert_with(|| Binding {
            inside: from,
            key,
            used: now,
            asked: BTreeMap::new(),
        });
        binding.used = now;
        binding
            .asked
            .insert(relevant(self.behaviour.filtering, to), now);
        Some(SocketAddr::new(self.outside, port))
    }

    /// A datagram comes in for an outside port; it goes to what is returned.
    pub(crate) fn inbound(
        &mut self,
        now: SimTime,
        from: SocketAddr,
        port: u16,
    ) -> Option<SocketAddr> {
        let expiry = self.behaviour.expiry;
        let binding = self.bindings.get_mut(&port)?;
        let asked = binding
            .asked
            .get_mut(&relevant(self.behaviour.filtering, from))?;
        if now >= binding.used + expiry || now >= *asked + expiry {
            return None;
        }
        if self.behaviour.inbound_refreshes {
            binding.used = now;
            *asked = now;
        }
        Some(binding.inside)
    }

    fn free_port(&mut self, wish: u16) -> Option<u16> {
        let mut port = match self.behaviour.ports {
            Ports::Preserving => wish,
            Ports::Sequential => self.next_port,
            Ports::Random => 1_024 + self.rng.below(64_000) as u16,
        };
        for _ in 0..u16::MAX {
            if port >= 1_024 && !self.bindings.contains_key(&port) {
                self.next_port = port.wrapping_add(1);
                return Some(port);
            }
            port = port.wrapping_add(1);
        }
        None
    }
}

/// A firewall that lets in what was asked for from inside.
#[derive(Debug)]
pub(crate) struct Firewall {
    expiry: SimTime,
    flows: BTreeMap<(SocketAddr, SocketAddr), SimTime>,
}

impl Firewall {
    pub(crate) fn new(expiry: SimTime) -> Self {
        Self {
            expiry,
            flows: BTreeMap::new(),
        }
    }

    pub(crate) fn outbound(&mut self, now: SimTime, from: SocketAddr, to: SocketAddr) {
        let expiry = self.expiry;
        self.flows.retain(|_, used| now < *used + expiry);
        self.flows.insert((from, to), now);
    }

    pub(crate) fn lets_in(&mut self, now: SimTime, from: SocketAddr, to: SocketAddr) -> bool {
        let expiry = self.expiry;
        match self.flows.get_mut(&(to, from)) {
            Some(used) if now < *used + expiry => {
                *used = now;
                true
            }
            Some(_) | None => false,
        }
    }

    pub(crate) fn reboot(&mut self) {
        self.flows.clear();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn nat(behaviour: NatBehaviour) -> Nat {
        Nat::new(behaviour, "203.0.113.1".parse().unwrap(), SimRng::new(1))
    }

    #[test]
    fn mapping_decides_the_port_that_each_destination_sees() {
        use Dependence::{AddressAndPortDependent, AddressDependent, EndpointIndependent};
        let inside = at("10.0.0.2:41641");
        let others = [at("192.0.2.1:1"), at("192.0.2.1:2"), at("192.0.2.2:1")];
        for (mapping, different) in [
            (EndpointIndependent, 1),
            (AddressDependent, 2),
            (AddressAndPortDependent, 3),
        ] {
            let mut nat = nat(NatBehaviour {
                mapping,
                ..NatBehaviour::HARD
            });
            let seen: std::collections::BTreeSet<_> = others
                .iter()
                .map(|to| nat.outbound(secs(1), inside, *to).unwrap())
                .collect();
            assert_eq!(seen.len(), different, "{mapping:?}");
            let again = nat.outbound(secs(2), inside, others[0]).unwrap();
            assert!(seen.contains(&again), "a binding is kept");
        }
    }

    #[test]
    fn filtering_decides_which_senders_may_reply() {
        use Dependence::{AddressAndPortDependent, AddressDependent, EndpointIndependent};
        let (inside, asked) = (at("10.0.0.2:41641"), at("192.0.2.1:1"));
        let answers = [asked, at("192.0.2.1:2"), at("192.0.2.2:1")];
        for (filtering, allowed) in [
            (EndpointIndependent, 3),
            (AddressDependent, 2),
            (AddressAndPortDependent, 1),
        ] {
            let mut nat = nat(NatBehaviour {
                filtering,
                ..NatBehaviour::EASY
            });
            let port = nat.outbound(secs(1), inside, asked).unwrap().port();
            let come: Vec<_> = answers
                .iter()
                .filter_map(|from| nat.inbound(secs(2), *from, port))
                .collect();
            assert_eq!(come, vec![inside; allowed], "{filtering:?}");
        }
    }

    #[test]
    fn bindings_end_and_free_ports_are_preserved() {
        let mut nat = nat(NatBehaviour::EASY);
        let to = at("192.0.2.1:1");
        let first = nat.outbound(secs(0), at("10.0.0.2:5000"), to).unwrap();
        assert_eq!(first, at("203.0.113.1:5000"));
        let second = nat.outbound(secs(0), at("10.0.0.3:5000"), to).unwrap();
        assert_eq!(second.port(), 5001, "taken");
        assert!(nat.inbound(secs(29), to, 5000).is_some());
        assert!(
            nat.inbound(secs(58), to, 5000).is_some(),
            "traffic kept it alive"
        );
        assert!(nat.inbound(secs(31), to, 5001).is_none());
        assert!(nat.inbound(secs(88), to, 5000).is_none());
        let again = nat.outbound(secs(90), at("10.0.0.3:5000"), to).unwrap();
        assert_eq!(again.port(), 5000, "free again");
    }

    #[test]
    fn a_firewall_knows_both_ends_of_a_flow() {
        let mut firewall = Firewall::new(secs(30));
        let (inside, other) = (at("198.51.100.1:1"), at("192.0.2.1:1"));
        assert!(!firewall.lets_in(secs(0), other, inside));
        firewall.outbound(secs(0), inside, other);
        assert!(firewall.lets_in(secs(1), other, inside));
        assert!(!firewall.lets_in(secs(1), at("192.0.2.1:2"), inside));
        assert!(!firewall.lets_in(secs(31), other, inside));
    }
}

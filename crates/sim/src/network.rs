//! The network between hosts: segments joined by gateways, as a tree whose
//! root is the internet.
//!
//! A datagram *climbs* from its host's segment until one knows the
//! destination, through NATs and firewalls (they change at once), takes the
//! latency of the links of both hosts, and *descends* to the receiver, through
//! the NATs and firewalls as these are by then. Home
//! networks all use the same private addresses, as in reality: an address that a
//! peer claims to have may be that of a neighbour, or our own.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use crate::nat::{Firewall, Nat, NatBehaviour};
use crate::random::SimRng;
use crate::time::{SimTime, millis, secs};

/// The one-way delay between two hosts of a segment.
const LAN_DELAY: Duration = Duration::from_micros(300);
/// The time for which a firewall remembers a UDP flow.
const FIREWALL_MEMORY: Duration = secs(30);

/// A machine in the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct HostId(pub(crate) usize);

/// The devices between a host and the internet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Uplink {
    /// None: a public address.
    Open,
    /// A NAT through which every host may send.
    Cone,
    /// A usual home router.
    Easy,
    /// A home router behind the NAT of a carrier.
    Cgnat,
    /// A public address behind a firewall that lets answers in.
    Firewall,
    /// A NAT with another port for every destination.
    Hard,
    /// A firewall that lets no UDP through.
    NoUdp,
    /// A NAT that behaves like this.
    Behind(NatBehaviour),
}

/// The link between a host and its segment. All numbers are for one direction.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Link {
    /// The least delay.
    pub latency: Duration,
    /// The largest additional delay.
    pub jitter: Duration,
    /// The probability that a packet is lost.
    pub loss: f64,
    /// The longest IP packet, in bytes.
    pub mtu: usize,
}

impl Default for Link {
    fn default() -> Self {
        Self {
            latency: millis(10),
            jitter: Duration::from_micros(500),
            loss: 0.0,
            mtu: 1_500,
        }
    }
}

/// A UDP datagram on its way.
#[derive(Debug, Clone)]
pub(crate) struct Datagram {
    /// The host that sent it, whatever the NATs made of the address.
    pub(crate) origin: HostId,
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
    pub(crate) bytes: Vec<u8>,
}

/// The reason why a datagram was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Loss {
    /// Chance, on a link.
    Chance,
    /// Longer than a link takes.
    TooLong,
    /// A host is unplugged, or the sender has no address of that family.
    Unplugged,
    /// No host has the destination.
    NoRoute,
    /// A NAT or firewall did not let it through.
    Refused,
    /// The path between the two hosts is cut.
    Cut,
}

#[derive(Debug, Clone, Copy)]
enum Target {
    Host(HostId),
    Segment(usize),
}

/// The treatment of IPv4 by a gateway. IPv6 always passes a firewall.
#[derive(Debug)]
enum Gateway {
    Root,
    Nat(Box<Nat>),
    Firewall(Firewall),
}

#[derive(Debug)]
struct Segment {
    parent: usize,
    gateway: Gateway,
    v6: Firewall,
    blocks_udp: bool,
    inside: BTreeMap<IpAddr, Target>,
    hosts: u8,
}

#[derive(Debug)]
struct Host {
    segment: usize,
    v4: IpAddr,
    v6: Option<IpAddr>,
    link: Link,
    plugged: bool,
}

/// The whole network.
#[derive(Debug)]
pub(crate) struct Network {
    segments: Vec<Segment>,
    hosts: Vec<Host>,
    cuts: BTreeSet<(HostId, HostId)>,
    losses: BTreeMap<Loss, u64>,
    next_public: u32,
    next_carrier: u32,
    rng: SimRng,
}

/// A datagram in the segment that knows its destination.
pub(crate) struct Routed {
    pub(crate) segment: usize,
    pub(crate) datagram: Datagram,
    pub(crate) delay: Duration,
}

impl Network {
    pub(crate) fn new(rng: SimRng) -> Self {
        let root = Segment {
            parent: 0,
            gateway: Gateway::Root,
            v6: Firewall::new(FIREWALL_MEMORY),
            blocks_udp: false,
            inside: BTreeMap::new(),
            hosts: 0,
        };
        Self {
            segments: vec![root],
            hosts: Vec::new(),
            cuts: BTreeSet::new(),
            losses: BTreeMap::new(),
            next_public: 1,
            next_carrier: 1,
            rng,
        }
    }

    // ---- building ----

    /// A host with a network of its own.
    pub(crate) fn add_host(&mut self, uplink: Uplink, link: Link, v6: bool) -> HostId {
        let host = self.empty_host(link);
        let segment = self.build(uplink);
        self.attach(host, segment, v6);
        host
    }

    /// A host in the same segment as another.
    pub(crate) fn add_beside(&mut self, other: HostId, link: Link, v6: bool) -> HostId {
        let host = self.empty_host(link);
        let segment = self.hosts[other.0].segment;
        self.attach(host, segment, v6);
        host
    }

    fn empty_host(&mut self, link: Link) -> HostId {
        let nowhere = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        self.hosts.push(Host {
            segment: 0,
            v4: nowhere,
            v6: None,
            link,
            plugged: true,
        });
        HostId(self.hosts.len() - 1)
    }

    /// Moves a host to another network, where it gets other addresses.
    pub(crate) fn move_host(&mut self, host: HostId, uplink: Uplink) {
        let v6 = self.hosts[host.0].v6.is_some();
        for segment in &mut self.segments {
            segment
                .inside
                .retain(|_, target| !matches!(target, Target::Host(there) if *there == host));
        }
        let segment = self.build(uplink);
        self.attach(host, segment, v6);
    }

    fn public(&mut self) -> IpAddr {
        self.next_public += 1;
        let [_, a, b, c] = self.next_public.to_be_bytes();
        Ipv4Addr::new(203, a, b, c).into()
    }

    fn segment(&mut self, parent: usize, gateway: Gateway, blocks_udp: bool) -> usize {
        let index = self.segments.len();
        if let Gateway::Nat(nat) = &gateway {
            let outside = nat.outside();
            self.segments[parent]
                .inside
                .insert(outside, Target::Segment(index));
        }
        self.segments.push(Segment {
            parent,
            gateway,
            v6: Firewall::new(FIREWALL_MEMORY),
            blocks_udp,
            inside: BTreeMap::new(),
            hosts: 0,
        });
        index
    }

    fn nat(&mut self, parent: usize, behaviour: NatBehaviour, outside: IpAddr) -> usize {
        let rng = self.rng.fork();
        self.segment(
            parent,
            Gateway::Nat(Box::new(Nat::new(behaviour, outside, rng))),
            false,
        )
    }

    fn build(&mut self, uplink: Uplink) -> usize {
        let behaviour = match uplink {
            Uplink::Open => return 0,
            Uplink::Firewall | Uplink::NoUdp => {
                let firewall = Gateway::Firewall(Firewall::new(FIREWALL_MEMORY));
                return self.segment(0, firewall, uplink == Uplink::NoUdp);
            }
            Uplink::Cgnat => {
                let outside = self.public();
                let carrier = self.nat(0, NatBehaviour::CARRIER, outside);
                self.next_carrier += 1;
                let [_, _, b, c] = self.next_carrier.to_be_bytes();
                let inside = Ipv4Addr::new(100, 72, b, c).into();
                return self.nat(carrier, NatBehaviour::EASY, inside);
            }
            Uplink::Cone => NatBehaviour::CONE,
            Uplink::Easy => NatBehaviour::EASY,
            Uplink::Hard => NatBehaviour::HARD,
            Uplink::Behind(behaviour) => behaviour,
        };
        let outside = self.public();
        self.nat(0, behaviour, outside)
    }

    fn attach(&mut self, host: HostId, segment: usize, v6: bool) {
        self.segments[segment].hosts += 1;
        let number = self.segments[segment].hosts;
        let v4 = match self.segments[segment].gateway {
            Gateway::Nat(_) => Ipv4Addr::new(192, 168, 1, 9 + number).into(),
            Gateway::Root | Gateway::Firewall(_) => self.public(),
        };
        self.next_public += 1;
        let v6 = v6.then(|| {
            let [a, b] = [(self.next_public >> 16) as u16, self.next_public as u16];
            IpAddr::V6(Ipv6Addr::new(0x2a0a, a, b, 1, 0, 0, 0, u16::from(number)))
        });
        let translated = matches!(self.segments[segment].gateway, Gateway::Nat(_));
        for address in std::iter::once(v4).chain(v6) {
            self.segments[segment]
                .inside
                .insert(address, Target::Host(host));
            let mut below = segment;
            while below != 0 && !(address.is_ipv4() && translated) {
                let parent = self.segments[below].parent;
                self.segments[parent]
                    .inside
                    .insert(address, Target::Segment(below));
                below = parent;
            }
        }
        let entry = &mut self.hosts[host.0];
        (entry.segment, entry.v4, entry.v6) = (segment, v4, v6);
    }

    // ---- faults ----

    /// Cuts or mends the direct path between two hosts; other paths stay.
    pub(crate) fn set_cut(&mut self, a: HostId, b: HostId, cut: bool) {
        for pair in [(a, b), (b, a)] {
            if cut {
                self.cuts.insert(pair);
            } else {
                self.cuts.remove(&pair);
            }
        }
    }

    pub(crate) fn mend_all(&mut self) {
        self.cuts.clear();
        self.hosts.iter_mut().for_each(|host| host.plugged = true);
    }

    pub(crate) fn set_plugged(&mut self, host: HostId, plugged: bool) {
        self.hosts[host.0].plugged = plugged;
    }

    pub(crate) fn is_plugged(&self, host: HostId) -> bool {
        self.hosts[host.0].plugged
    }

    pub(crate) fn set_link(&mut self, host: HostId, link: Link) {
        self.hosts[host.0].link = link;
    }

    /// The gateways in front of a host lose their state.
    pub(crate) fn reboot_gateways(&mut self, host: HostId) {
        let mut segment = self.hosts[host.0].segment;
        while segment != 0 {
            let here = &mut self.segments[segment];
            match &mut here.gateway {
                Gateway::Nat(nat) => nat.reboot(),
                Gateway::Firewall(firewall) => firewall.reboot(),
                Gateway::Root => {}
            }
            here.v6.reboot();
            segment = here.parent;
        }
    }

    // ---- views ----

    /// The addresses of a host's interfaces.
    pub(crate) fn addresses(&self, host: HostId) -> Vec<IpAddr> {
        let host = &self.hosts[host.0];
        std::iter::once(host.v4).chain(host.v6).collect()
    }

    pub(crate) fn v4(&self, host: HostId) -> Option<Ipv4Addr> {
        match self.hosts[host.0].v4 {
            IpAddr::V4(v4) => Some(v4),
            IpAddr::V6(_) => None,
        }
    }

    pub(crate) fn v6(&self, host: HostId) -> Option<Ipv6Addr> {
        match self.hosts[host.0].v6 {
            Some(IpAddr::V6(v6)) => Some(v6),
            Some(IpAddr::V4(_)) | None => None,
        }
    }

    pub(crate) fn losses(&self) -> &BTreeMap<Loss, u64> {
        &self.losses
    }

    /// The delay of a TCP segment between two hosts, with retransmissions after
    /// losses; `None` while one of the hosts is unplugged.
    pub(crate) fn stream_delay(&mut self, a: HostId, b: HostId) -> Option<Duration> {
        let (a, b) = (&self.hosts[a.0], &self.hosts[b.0]);
        if !a.plugged || !b.plugged {
            return None;
        }
        let (one, two) = (a.link, b.link);
        let latency = one.latency + two.latency;
        let mut delay = latency + self.rng.up_to(one.jitter + two.jitter);
        let mut retransmission = millis(200).max(latency * 2);
        while self.rng.chance(one.loss + two.loss) {
            delay += retransmission;
            retransmission *= 2;
        }
        Some(delay)
    }

    // ---- datagrams ----

    pub(crate) fn count(&mut self, loss: Loss) {
        *self.losses.entry(loss).or_default() += 1;
    }

    /// A host sends from `port`.
    pub(crate) fn climb(
        &mut self,
        now: SimTime,
        origin: HostId,
        port: u16,
        to: SocketAddr,
        bytes: Vec<u8>,
    ) -> Result<Routed, Loss> {
        let host = &self.hosts[origin.0];
        let link = host.link;
        let own = if to.is_ipv4() { Some(host.v4) } else { host.v6 };
        let own = own.filter(|_| host.plugged).ok_or(Loss::Unplugged)?;
        let home = host.segment;
        fits(&link, to, bytes.len())?;
        let mut datagram = Datagram {
            origin,
            from: SocketAddr::new(own, port),
            to,
            bytes,
        };
        let mut segment = home;
        loop {
            if let Some(target) = self.segments[segment].inside.get(&datagram.to.ip()) {
                let near = segment == home && matches!(target, Target::Host(_)) && home != 0;
                let delay = if near {
                    LAN_DELAY / 2
                } else {
                    if self.rng.chance(link.loss) {
                        return Err(Loss::Chance);
                    }
                    link.latency + self.rng.up_to(link.jitter)
                };
                return Ok(Routed {
                    segment,
                    datagram,
                    delay,
                });
            }
            if segment == 0 {
                return Err(Loss::NoRoute);
            }
            let here = &mut self.segments[segment];
            if here.blocks_udp {
                return Err(Loss::Refused);
            }
            match &mut here.gateway {
                Gateway::Nat(nat) if to.is_ipv4() => {
                    let inward = datagram.to.ip() == nat.outside();
                    if inward && !nat.hairpins() {
                        return Err(Loss::Refused);
                    }
                    datagram.from = nat
                        .outbound(now, datagram.from, datagram.to)
                        .ok_or(Loss::Refused)?;
                    if inward {
                        datagram.to = nat
                            .inbound(now, datagram.from, datagram.to.port())
                            .ok_or(Loss::Refused)?;
                        continue;
                    }
                }
                Gateway::Firewall(firewall) if to.is_ipv4() => {
                    firewall.outbound(now, datagram.from, datagram.to);
                }
                Gateway::Nat(_) | Gateway::Firewall(_) | Gateway::Root => {
                    here.v6.outbound(now, datagram.from, datagram.to);
                }
            }
            segment = here.parent;
        }
    }

    /// Takes the datagram from the segment that knows its destination down to the
    /// host; returns the host and the delay.
    pub(crate) fn descend(
        &mut self,
        now: SimTime,
        mut segment: usize,
        datagram: &mut Datagram,
    ) -> Result<(HostId, Duration), Loss> {
        loop {
            let target = *self.segments[segment]
                .inside
                .get(&datagram.to.ip())
                .ok_or(Loss::NoRoute)?;
            let below = match target {
                Target::Segment(below) => below,
                Target::Host(host) => {
                    let near = segment != 0 && self.hosts[datagram.origin.0].segment == segment;
                    return self.arrive(host, near, datagram).map(|delay| (host, delay));
                }
            };
            let here = &mut self.segments[below];
            if here.blocks_udp {
                return Err(Loss::Refused);
            }
            let passes = match &mut here.gateway {
                Gateway::Nat(nat) if datagram.to.is_ipv4() => {
                    let inside = nat.inbound(now, datagram.from, datagram.to.port());
                    datagram.to = inside.unwrap_or(datagram.to);
                    inside.is_some()
                }
                Gateway::Firewall(firewall) if datagram.to.is_ipv4() => {
                    firewall.lets_in(now, datagram.from, datagram.to)
                }
                Gateway::Nat(_) | Gateway::Firewall(_) | Gateway::Root => {
                    here.v6.lets_in(now, datagram.from, datagram.to)
                }
            };
            if !passes {
                return Err(Loss::Refused);
            }
            segment = below;
        }
    }

    fn arrive(&mut self, host: HostId, near: bool, datagram: &Datagram) -> Result<Duration, Loss> {
        if self.cuts.contains(&(datagram.origin, host)) {
            return Err(Loss::Cut);
        }
        let (link, plugged) = (self.hosts[host.0].link, self.hosts[host.0].plugged);
        if !plugged {
            return Err(Loss::Unplugged);
        }
        fits(&link, datagram.to, datagram.bytes.len())?;
        if near {
            return Ok(LAN_DELAY / 2);
        }
        if self.rng.chance(link.loss) {
            return Err(Loss::Chance);
        }
        Ok(link.latency + self.rng.up_to(link.jitter))
    }
}

fn fits(link: &Link, to: SocketAddr, payload: usize) -> Result<(), Loss> {
    let headers = if to.is_ipv4() { 28 } else { 48 };
    if payload + headers > link.mtu {
        Err(Loss::TooLong)
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn network() -> Network {
        Network::new(SimRng::new(3))
    }

    fn send(
        network: &mut Network,
        from: HostId,
        to: SocketAddr,
    ) -> Result<(HostId, SocketAddr), Loss> {
        let mut routed = network.climb(secs(1), from, 41641, to, vec![1; 100])?;
        let (host, _) = network.descend(secs(1), routed.segment, &mut routed.datagram)?;
        Ok((host, routed.datagram.from))
    }

    #[test]
    fn replies_pass_back_through_two_nats() {
        let mut network = network();
        let behind = network.add_host(Uplink::Cgnat, Link::default(), false);
        let open = network.add_host(Uplink::Open, Link::default(), false);
        let address = SocketAddr::new(network.hosts[open.0].v4, 41641);
        let (host, seen) = send(&mut network, behind, address).unwrap();
        assert_eq!(host, open);
        assert!(seen.ip().to_string().starts_with("203."), "{seen}");
        assert_eq!(send(&mut network, open, seen), Ok((behind, address)));
        let unasked = network.add_host(Uplink::Open, Link::default(), false);
        assert_eq!(send(&mut network, unasked, seen), Err(Loss::Refused));
    }

    #[test]
    fn private_addresses_reach_the_neighbour() {
        let mut network = network();
        let one = network.add_host(Uplink::Easy, Link::default(), false);
        let beside = network.add_beside(one, Link::default(), false);
        let elsewhere = network.add_host(Uplink::Easy, Link::default(), false);
        assert_eq!(
            network.hosts[one.0].v4, network.hosts[elsewhere.0].v4,
            "as in reality"
        );
        let to = SocketAddr::new(network.hosts[beside.0].v4, 41641);
        assert_eq!(send(&mut network, one, to).unwrap().0, beside);
        assert_eq!(send(&mut network, elsewhere, to), Err(Loss::NoRoute));
    }

    #[test]
    fn hairpinning_is_a_property_of_the_nat() {
        for (uplink, works) in [(Uplink::Cone, true), (Uplink::Easy, false)] {
            let mut network = network();
            let one = network.add_host(uplink, Link::default(), false);
            let two = network.add_beside(one, Link::default(), false);
            let server = network.add_host(Uplink::Open, Link::default(), false);
            let server = SocketAddr::new(network.hosts[server.0].v4, 3478);
            let (_, seen) = send(&mut network, two, server).unwrap();
            let looped = send(&mut network, one, seen).map(|(host, _)| host);
            assert_eq!(looped, if works { Ok(two) } else { Err(Loss::Refused) });
        }
    }

    #[test]
    fn datagrams_that_are_too_long_cut_or_blocked_are_lost() {
        let mut network = network();
        let one = network.add_host(Uplink::Open, Link::default(), true);
        let two = network.add_host(Uplink::Open, Link::default(), true);
        let to = SocketAddr::new(network.hosts[two.0].v6.unwrap(), 41641);
        assert!(send(&mut network, one, to).is_ok());
        let long = network.climb(secs(1), one, 1, to, vec![0; 1_453]);
        assert_eq!(long.err(), Some(Loss::TooLong));
        network.set_cut(one, two, true);
        assert_eq!(send(&mut network, one, to), Err(Loss::Cut));
        network.mend_all();
        let blocked = network.add_host(Uplink::NoUdp, Link::default(), true);
        assert_eq!(send(&mut network, blocked, to), Err(Loss::Refused));
    }
}

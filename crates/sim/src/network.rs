//! The network between hosts: segments joined by gateways, as a tree whose
//! root is the internet.
//!
//! A datagram *climbs* from its host's segment until one knows the
//! destination, passing NATs and firewalls on the way (they change at once),
//! travels for as long as the links of both hosts say, and *descends* to the
//! receiver, through their NATs and firewalls as these are by then. Home
//! networks all use the same private addresses, as they do in the world: an
//! address that a peer claims to have may well be a neighbour's, or our own.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use crate::nat::{Firewall, Nat, NatBehaviour};
use crate::random::Dice;
use crate::time::{Moment, millis, secs};

/// From one host to another in the same segment, one way.
const LAN_DELAY: Duration = Duration::from_micros(300);
/// How long a firewall remembers a UDP flow.
const FIREWALL_MEMORY: Duration = secs(30);

/// A machine in the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct HostId(pub(crate) usize);

/// What stands between a host and the internet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Nothing: a public address.
    Open,
    /// A NAT through which everybody may answer.
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

/// The line between a host and its segment. All numbers are for one way.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Link {
    /// How long everything takes at least.
    pub latency: Duration,
    /// How much longer it may take.
    pub jitter: Duration,
    /// How likely a packet gets lost.
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
    /// Who really sent it.
    pub(crate) origin: HostId,
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
    pub(crate) bytes: Vec<u8>,
}

/// Why a datagram got nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Loss {
    /// Chance, on a link.
    Chance,
    /// Longer than a link takes.
    TooLong,
    /// A cable is out, or the sender has no such address.
    Unplugged,
    /// Nobody has the destination.
    NoRoute,
    /// A NAT or firewall did not let it through.
    Refused,
    /// The way between the two hosts was cut.
    Cut,
}

#[derive(Debug, Clone, Copy)]
enum Target {
    Host(HostId),
    Segment(usize),
}

/// What a gateway does with IPv4. IPv6 always passes a firewall.
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

/// All of it.
#[derive(Debug)]
pub(crate) struct Network {
    segments: Vec<Segment>,
    hosts: Vec<Host>,
    cuts: BTreeSet<(HostId, HostId)>,
    losses: BTreeMap<Loss, u64>,
    next_public: u32,
    next_carrier: u32,
    dice: Dice,
}

/// Where a datagram is after it climbed.
pub(crate) struct Turned {
    pub(crate) segment: usize,
    pub(crate) datagram: Datagram,
    pub(crate) delay: Duration,
}

impl Network {
    pub(crate) fn new(dice: Dice) -> Self {
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
            dice,
        }
    }

    // ---- building ----

    /// A host of its own place.
    pub(crate) fn add_host(&mut self, place: Place, link: Link, v6: bool) -> HostId {
        let host = self.empty_host(link);
        let segment = self.build(place);
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

    /// Takes a host elsewhere: it gets other addresses.
    pub(crate) fn move_host(&mut self, host: HostId, place: Place) {
        let v6 = self.hosts[host.0].v6.is_some();
        for segment in &mut self.segments {
            segment
                .inside
                .retain(|_, target| !matches!(target, Target::Host(there) if *there == host));
        }
        let segment = self.build(place);
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
        let dice = self.dice.fork();
        self.segment(
            parent,
            Gateway::Nat(Box::new(Nat::new(behaviour, outside, dice))),
            false,
        )
    }

    fn build(&mut self, place: Place) -> usize {
        let behaviour = match place {
            Place::Open => return 0,
            Place::Firewall | Place::NoUdp => {
                let firewall = Gateway::Firewall(Firewall::new(FIREWALL_MEMORY));
                return self.segment(0, firewall, place == Place::NoUdp);
            }
            Place::Cgnat => {
                let outside = self.public();
                let carrier = self.nat(0, NatBehaviour::CARRIER, outside);
                self.next_carrier += 1;
                let [_, _, b, c] = self.next_carrier.to_be_bytes();
                let inside = Ipv4Addr::new(100, 72, b, c).into();
                return self.nat(carrier, NatBehaviour::EASY, inside);
            }
            Place::Cone => NatBehaviour::CONE,
            Place::Easy => NatBehaviour::EASY,
            Place::Hard => NatBehaviour::HARD,
            Place::Behind(behaviour) => behaviour,
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

    /// Cuts or mends the direct way between two hosts; other ways stay.
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

    /// The gateways before a host lose their memory.
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

    // ---- what is known ----

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

    /// How long a segment of a stream between two hosts takes, with what TCP
    /// does about losses; `None` while one of them is unplugged.
    pub(crate) fn stream_delay(&mut self, a: HostId, b: HostId) -> Option<Duration> {
        let (a, b) = (&self.hosts[a.0], &self.hosts[b.0]);
        if !a.plugged || !b.plugged {
            return None;
        }
        let (one, two) = (a.link, b.link);
        let latency = one.latency + two.latency;
        let mut delay = latency + self.dice.up_to(one.jitter + two.jitter);
        let mut retransmission = millis(200).max(latency * 2);
        while self.dice.chance(one.loss + two.loss) {
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
        now: Moment,
        origin: HostId,
        port: u16,
        to: SocketAddr,
        bytes: Vec<u8>,
    ) -> Result<Turned, Loss> {
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
                    if self.dice.chance(link.loss) {
                        return Err(Loss::Chance);
                    }
                    link.latency + self.dice.up_to(link.jitter)
                };
                return Ok(Turned {
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

    /// The datagram has reached the segment where it turned; returns who gets
    /// it, and when.
    pub(crate) fn descend(
        &mut self,
        now: Moment,
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
        if self.dice.chance(link.loss) {
            return Err(Loss::Chance);
        }
        Ok(link.latency + self.dice.up_to(link.jitter))
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
        Network::new(Dice::new(3))
    }

    fn send(
        network: &mut Network,
        from: HostId,
        to: SocketAddr,
    ) -> Result<(HostId, SocketAddr), Loss> {
        let mut turned = network.climb(secs(1), from, 41641, to, vec![1; 100])?;
        let (host, _) = network.descend(secs(1), turned.segment, &mut turned.datagram)?;
        Ok((host, turned.datagram.from))
    }

    #[test]
    fn answers_find_back_through_two_nats() {
        let mut network = network();
        let behind = network.add_host(Place::Cgnat, Link::default(), false);
        let open = network.add_host(Place::Open, Link::default(), false);
        let address = SocketAddr::new(network.hosts[open.0].v4, 41641);
        let (host, seen) = send(&mut network, behind, address).unwrap();
        assert_eq!(host, open);
        assert!(seen.ip().to_string().starts_with("203."), "{seen}");
        assert_eq!(send(&mut network, open, seen), Ok((behind, address)));
        let stranger = network.add_host(Place::Open, Link::default(), false);
        assert_eq!(send(&mut network, stranger, seen), Err(Loss::Refused));
    }

    #[test]
    fn private_addresses_mean_the_neighbour() {
        let mut network = network();
        let one = network.add_host(Place::Easy, Link::default(), false);
        let beside = network.add_beside(one, Link::default(), false);
        let elsewhere = network.add_host(Place::Easy, Link::default(), false);
        assert_eq!(
            network.hosts[one.0].v4, network.hosts[elsewhere.0].v4,
            "as in the world"
        );
        let to = SocketAddr::new(network.hosts[beside.0].v4, 41641);
        assert_eq!(send(&mut network, one, to).unwrap().0, beside);
        assert_eq!(send(&mut network, elsewhere, to), Err(Loss::NoRoute));
    }

    #[test]
    fn hairpinning_is_a_property_of_the_nat() {
        for (place, works) in [(Place::Cone, true), (Place::Easy, false)] {
            let mut network = network();
            let one = network.add_host(place, Link::default(), false);
            let two = network.add_beside(one, Link::default(), false);
            let server = network.add_host(Place::Open, Link::default(), false);
            let server = SocketAddr::new(network.hosts[server.0].v4, 3478);
            let (_, seen) = send(&mut network, two, server).unwrap();
            let looped = send(&mut network, one, seen).map(|(host, _)| host);
            assert_eq!(looped, if works { Ok(two) } else { Err(Loss::Refused) });
        }
    }

    #[test]
    fn what_is_too_long_cut_or_blocked_gets_lost() {
        let mut network = network();
        let one = network.add_host(Place::Open, Link::default(), true);
        let two = network.add_host(Place::Open, Link::default(), true);
        let to = SocketAddr::new(network.hosts[two.0].v6.unwrap(), 41641);
        assert!(send(&mut network, one, to).is_ok());
        let long = network.climb(secs(1), one, 1, to, vec![0; 1_453]);
        assert_eq!(long.err(), Some(Loss::TooLong));
        network.set_cut(one, two, true);
        assert_eq!(send(&mut network, one, to), Err(Loss::Cut));
        network.mend_all();
        let blocked = network.add_host(Place::NoUdp, Link::default(), true);
        assert_eq!(send(&mut network, blocked, to), Err(Loss::Refused));
    }
}

//! The filter beside a slow, literal model: rules walked one by one as their
//! text says, packets taken apart by hand. Random rules and packets from a
//! small world, so that they meet.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use proptest::prelude::*;
use warren_control_types::{FilterRule, NetPortRange, PortRange};
use warren_filter::{
    CapabilityHolders, Count, Direction, DropReason, Filter, FlowTable, LocalAddresses, LocalSet,
    Verdict, Without,
};
use warren_testkit::FixedEntropy;
use warren_wire::ip::IpPacket;

/// A packet in the model's terms.
#[derive(Debug, Clone)]
struct Packet {
    outbound: bool,
    src: IpAddr,
    dst: IpAddr,
    protocol: u8,
    ports: (u16, u16),
    flags: u8,
    icmp: (u8, u8),
    /// Put a destination options header in front of the transport (IPv6).
    extension: bool,
    /// Make it a later fragment.
    later_fragment: bool,
    /// Make it a first fragment.
    first_fragment: bool,
}

const ADDRESSES: [&str; 10] = [
    "100.64.0.1",
    "100.64.0.2",
    "100.64.0.3",
    "10.1.2.3",
    "224.0.0.5",
    "169.254.1.1",
    "fd7a:115c:a1e0::1",
    "fd7a:115c:a1e0::2",
    "2001:db8::7",
    "fe80::1",
];

/// Own addresses and routes of the node under test.
const OWN: [&str; 2] = ["100.64.0.1", "fd7a:115c:a1e0::1"];
const ROUTES: [&str; 2] = ["10.1.0.0/16", "2001:db8::/32"];

fn address() -> impl Strategy<Value = IpAddr> {
    proptest::sample::select(&ADDRESSES[..]).prop_map(|text| text.parse().unwrap())
}

fn packet() -> impl Strategy<Value = Packet> {
    (
        any::<bool>(),
        address(),
        address(),
        proptest::sample::select(&[1u8, 2, 6, 17, 47, 58, 99, 132][..]),
        (0u16..4, 0u16..4),
        proptest::sample::select(&[0x02u8, 0x12, 0x10, 0x04, 0xc2][..]),
        (
            proptest::sample::select(&[0u8, 8, 128, 129, 3, 12, 1, 13][..]),
            0u8..2,
        ),
        any::<bool>(),
        prop_oneof![6 => Just((false, false)), 1 => Just((true, false)), 1 => Just((false, true))],
    )
        .prop_filter("one family", |p| p.1.is_ipv4() == p.2.is_ipv4())
        .prop_map(
            |(outbound, src, dst, protocol, ports, flags, icmp, extension, fragment)| {
                Packet {
                    outbound,
                    src,
                    dst,
                    protocol,
                    ports,
                    flags,
                    icmp,
                    extension,
                    // TSMP is never fragmented; the parser refuses it.
                    later_fragment: fragment.0 && protocol != 99,
                    first_fragment: fragment.1 && protocol != 99,
                }
            },
        )
}

impl Packet {
    fn transport(&self) -> Vec<u8> {
        let mut out = vec![0u8; 28];
        match self.protocol {
            6 | 17 | 132 => {
                out[..2].copy_from_slice(&self.ports.0.to_be_bytes());
                out[2..4].copy_from_slice(&self.ports.1.to_be_bytes());
                out[13] = self.flags;
            }
            1 | 58 => (out[0], out[1]) = self.icmp,
            _ => {}
        }
        out
    }

    fn bytes(&self) -> Vec<u8> {
        let transport = self.transport();
        match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let mut out = vec![0x45, 0, 0, 48, 0, 0, 0, 0, 64, self.protocol, 0, 0];
                if self.later_fragment {
                    out[7] = 20;
                } else if self.first_fragment {
                    out[6] = 0x20;
                }
                out.extend(src.octets());
                out.extend(dst.octets());
                out.extend(transport);
                out
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let mut middle = Vec::new();
                let mut next = self.protocol;
                if self.later_fragment {
                    middle = vec![next, 0, 0, 160, 0, 0, 0, 1];
                    next = 44;
                } else if self.first_fragment {
                    middle = vec![next, 0, 0, 1, 0, 0, 0, 1];
                    next = 44;
                }
                if self.extension {
                    let mut options = vec![next, 0, 1, 4, 0, 0, 0, 0];
                    options.extend(middle);
                    middle = options;
                    next = 60;
                }
                let len = u8::try_from(middle.len() + transport.len()).unwrap();
                let mut out = vec![0x60, 0, 0, 0, 0, len, next, 64];
                out.extend(src.octets());
                out.extend(dst.octets());
                out.extend(middle);
                out.extend(transport);
                out
            }
            _ => unreachable!("filtered by the strategy"),
        }
    }
}

fn rule() -> impl Strategy<Value = FilterRule> {
    let place = proptest::sample::select(
        &[
            "*",
            "100.64.0.1",
            "100.64.0.0/30",
            "100.64.0.2-100.64.0.3",
            "10.1.0.0/16",
            "fd7a:115c:a1e0::/48",
            "fd7a:115c:a1e0::1",
            "2001:db8::7",
            "2001:db8::-2001:db9::",
            "nonsense",
        ][..],
    );
    let source = prop_oneof![
        4 => place.clone().prop_map(str::to_owned),
        1 => Just("cap:trusted".to_owned()),
    ];
    let ports = prop_oneof![
        Just(PortRange::ANY),
        (0u16..4, 0u16..3).prop_map(|(first, len)| PortRange {
            first,
            last: first + len,
        }),
    ];
    (
        proptest::collection::vec(source, 0..3),
        proptest::collection::vec((place, ports), 0..3),
        proptest::collection::vec(
            proptest::sample::select(&[1i64, 2, 6, 17, 47, 58, 132, 300][..]),
            0..3,
        ),
    )
        .prop_map(|(src_ips, dst, ip_proto)| FilterRule {
            src_ips,
            dst_ports: dst
                .into_iter()
                .map(|(ip, ports)| NetPortRange {
                    ip: ip.to_owned(),
                    ports,
                    ..NetPortRange::default()
                })
                .collect(),
            ip_proto,
            ..FilterRule::default()
        })
}

/// Peers that hold the capability "trusted".
const TRUSTED: [&str; 2] = ["100.64.0.3/32", "fd7a:115c:a1e0::2/128"];

fn text_contains(text: &str, address: IpAddr) -> bool {
    if text == "*" {
        return true;
    }
    if text == "cap:trusted" {
        return TRUSTED.iter().any(|net| text_contains(net, address));
    }
    if let Some((from, to)) = text.split_once('-') {
        let (from, to): (IpAddr, IpAddr) = (from.parse().unwrap(), to.parse().unwrap());
        return from.is_ipv4() == address.is_ipv4() && from <= address && address <= to;
    }
    if let Ok(net) = text.parse::<IpNet>() {
        return net.contains(&address);
    }
    text.parse::<IpAddr>() == Ok(address)
}

/// Section by section what a filter does.
#[derive(Default)]
struct Model {
    rules: Vec<FilterRule>,
    shields_up: bool,
    flows: BTreeSet<(u8, IpAddr, u16, IpAddr, u16)>,
    /// Addresses between which a first fragment came in.
    first_fragments: BTreeSet<(IpAddr, IpAddr)>,
}

impl Model {
    fn is_local(address: IpAddr) -> bool {
        OWN.iter().any(|own| text_contains(own, address))
            || ROUTES.iter().any(|route| text_contains(route, address))
    }

    fn any_rule(&self, p: &Packet, fits: impl Fn(&BTreeSet<i64>, &PortRange) -> bool) -> bool {
        !self.shields_up
            && self.rules.iter().any(|rule| {
                let mut protocols: BTreeSet<i64> = rule.ip_proto.iter().copied().collect();
                protocols.retain(|number| *number < 256);
                if rule.ip_proto.is_empty() {
                    protocols.extend([6, 17, 1, 58]);
                }
                !protocols.is_empty()
                    && rule.src_ips.iter().any(|text| text_contains(text, p.src))
                    && rule
                        .dst_ports
                        .iter()
                        .any(|dst| text_contains(&dst.ip, p.dst) && fits(&protocols, &dst.ports))
            })
    }

    fn accepts(&mut self, p: &Packet) -> bool {
        let bad_destination = match p.dst {
            IpAddr::V4(a) => a.is_multicast() || a.is_link_local(),
            IpAddr::V6(a) => a.is_multicast() || a.is_unicast_link_local(),
        };
        if bad_destination {
            return false;
        }
        let v4 = p.dst.is_ipv4();
        let is_icmp = (v4 && p.protocol == 1) || (!v4 && p.protocol == 58);
        let has_flow = matches!(p.protocol, 6 | 17 | 132);
        if p.outbound {
            // Nothing answers a reset.
            let resets = p.protocol == 6 && p.flags & 0x04 != 0;
            if has_flow && !p.later_fragment && !resets {
                self.flows
                    .insert((p.protocol, p.dst, p.ports.1, p.src, p.ports.0));
            }
            let request = if v4 { (8, 0) } else { (128, 0) };
            if is_icmp && !p.later_fragment && p.icmp == request {
                // The identifier of all of them is zero.
                self.flows.insert((p.protocol, p.dst, 0, p.src, 0));
            }
            return true;
        }
        if !Self::is_local(p.dst) {
            return false;
        }
        if p.later_fragment {
            return self.first_fragments.contains(&(p.src, p.dst)) || self.any_rule(p, |_, _| true);
        }
        let passes = self.accepts_transport(p, is_icmp);
        if passes && p.first_fragment {
            self.first_fragments.insert((p.src, p.dst));
        }
        passes
    }

    fn accepts_transport(&self, p: &Packet, is_icmp: bool) -> bool {
        let v4 = p.dst.is_ipv4();
        if is_icmp {
            let reply = if v4 { (0, 0) } else { (129, 0) };
            // The quoted packet of these is all zero: no packet of the
            // receiver, so errors never pass.
            let errors: &[u8] = if v4 { &[3, 11, 12] } else { &[1, 2, 3, 4] };
            if p.icmp == reply {
                return self.flows.contains(&(p.protocol, p.src, 0, p.dst, 0))
                    || self.any_rule(p, |_, _| true);
            }
            if errors.contains(&p.icmp.0) {
                return false;
            }
            return self.any_rule(p, |_, _| true);
        }
        let by_port = |protocols: &BTreeSet<i64>, ports: &PortRange| {
            protocols.contains(&i64::from(p.protocol)) && ports.contains(p.ports.1)
        };
        match p.protocol {
            6 | 17 | 132 => {
                let opens = p.protocol == 6 && p.flags & 0x12 == 0x02;
                let flow = (p.protocol, p.src, p.ports.0, p.dst, p.ports.1);
                (!opens && self.flows.contains(&flow)) || self.any_rule(p, by_port)
            }
            99 => true,
            other => self.any_rule(p, |protocols, ports| {
                protocols.contains(&i64::from(other)) && *ports == PortRange::ANY
            }),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 2000,
        failure_persistence: Some(Box::new(
            proptest::test_runner::FileFailurePersistence::WithSource("regressions"),
        )),
        ..ProptestConfig::default()
    })]

    #[test]
    fn the_filter_agrees_with_the_model(
        rules in proptest::collection::vec(rule(), 0..5),
        packets in proptest::collection::vec(packet(), 1..12),
        shields_up in proptest::bool::weighted(0.1),
    ) {
        let own: Vec<IpAddr> = OWN.iter().map(|text| text.parse().unwrap()).collect();
        let routes: Vec<IpNet> = ROUTES.iter().map(|text| text.parse().unwrap()).collect();
        let local = LocalSet::new(&LocalAddresses {
            addresses: &own,
            advertised: &routes,
            ..LocalAddresses::default()
        });
        let mut holders = CapabilityHolders::new();
        let trusted: Vec<IpNet> = TRUSTED.iter().map(|net| net.parse().unwrap()).collect();
        holders.add("trusted", &trusted);
        let (mut filter, _) = Filter::compile(&rules, local, &holders);
        if shields_up {
            filter = filter.jailed();
        }
        let flows = FlowTable::with_slots(&mut FixedEntropy(0), 1024).without_grace();
        let mut model = Model { rules, shields_up, ..Model::default() };
        let mut seen = Count::default();
        for packet in &packets {
            let bytes = packet.bytes();
            let view = IpPacket::parse(&bytes).unwrap();
            let verdict = if packet.outbound {
                filter.check_out(&flows, &view, 1)
            } else {
                filter.check_in(&flows, &view, 1)
            };
            if !packet.outbound {
                seen = seen + Count { packets: 1, bytes: bytes.len() as u64 };
            }
            prop_assert_eq!(
                verdict == Verdict::Accept, model.accepts(packet), "{:?} {:?}", packet, verdict
            );
        }
        // Every packet that came is counted, once.
        let by_rule = (0..filter.rule_count()).map(|rule| filter.passed_by_rule(rule));
        let without = Without::ALL.map(|why| filter.passed_without_rule(why));
        let drops = DropReason::ALL.map(|reason| filter.dropped(Direction::In, reason));
        let counted = by_rule.chain(without).chain(drops).fold(Count::default(), |a, b| a + b);
        prop_assert_eq!(counted, seen);
    }
}

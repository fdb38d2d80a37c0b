//! The cost of a packet in the filter, with 1, 100 and 10,000 rules, beside a bare
//! prefix lookup. Run by `bench/filter`.
//!
//! Every figure is the best of several rounds: noise of a shared machine only
//! ever adds. Packets are taken in an order that no cache can foresee, from a
//! pool of 65,536 flows.

#![allow(clippy::unwrap_used)]
// The table is what this program is for.
#![allow(clippy::print_stdout)]

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;
use prefix_trie::PrefixMap;
use warren_control_types::{FilterRule, NetPortRange, PortRange};
use warren_filter::{
    CapabilityHolders, Filter, FlowTable, GRACE_SECS, LocalAddresses, LocalSet, Verdict,
};
use warren_testkit::SeededEntropy;
use warren_wire::ip::IpPacket;

/// Packets of one measurement.
const PACKETS: usize = 1 << 16;
/// Rounds, of which the best counts.
const ROUNDS: usize = 9;

/// A number below `limit`.
fn below(random: &mut SeededEntropy, limit: u32) -> u32 {
    // It is below a `u32`.
    random.below(u64::from(limit.max(1))) as u32
}

/// Which rules.
#[derive(Clone, Copy)]
enum Shape {
    /// A subnet router: each rule lets one host reach one host at one port.
    Hosts,
    /// Groups: each rule lets 100 of 10,000 hosts reach this node at one port.
    Groups,
    /// Ranges that nest: every host is in half of all rules.
    Nested,
}

impl Shape {
    const fn name(self) -> &'static str {
        match self {
            Self::Hosts => "host to host",
            Self::Groups => "groups of 100",
            Self::Nested => "nested ranges",
        }
    }
}

/// Hosts of the network.
const HOSTS: u32 = 10_000;

fn host(n: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(100, 64, 0, 10)) + n)
}

/// A destination behind this node.
fn inside(n: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 0, 0, 0)) + n)
}

/// The ports that rules open; what no rule opens lies above.
fn port(n: u32) -> u16 {
    1000 + (n % 5000) as u16
}

fn rules(shape: Shape, count: u32, random: &mut SeededEntropy) -> Vec<FilterRule> {
    let rule = |sources: Vec<String>, to: String, ports: PortRange| FilterRule {
        src_ips: sources,
        dst_ports: vec![NetPortRange {
            ip: to,
            ports,
            ..NetPortRange::default()
        }],
        ip_proto: vec![6, 17],
        ..FilterRule::default()
    };
    let single = |n| PortRange {
        first: port(n),
        last: port(n),
    };
    (0..count)
        .map(|n| match shape {
            Shape::Hosts => rule(
                vec![host(n % HOSTS).to_string()],
                inside(n).to_string(),
                single(n),
            ),
            Shape::Groups => {
                let members = (0..100).map(|_| host(below(random, HOSTS)).to_string());
                rule(members.collect(), inside(0).to_string(), single(n))
            }
            Shape::Nested => {
                let width = HOSTS / count.max(1);
                let range = format!(
                    "{}-{}",
                    host(n * width / 2),
                    host(HOSTS - 1 - n * width / 2)
                );
                rule(vec![range], format!("10.0.0.0/{}", 8 + n % 16), single(n))
            }
        })
        .collect()
}

/// A packet that the filter lets through, by rule `n`.
fn allowed(
    shape: Shape,
    rules: &[FilterRule],
    n: u32,
    random: &mut SeededEntropy,
) -> (Ipv4Addr, Ipv4Addr, u16) {
    let rule = &rules[n as usize];
    let to = match shape {
        Shape::Hosts => inside(n),
        Shape::Groups => inside(0),
        Shape::Nested => inside(below(random, 256)),
    };
    let source = &rule.src_ips[below(random, rule.src_ips.len() as u32) as usize];
    let from = source.split('-').next().unwrap().parse().unwrap();
    (from, to, rule.dst_ports[0].ports.first)
}

fn segment(from: Ipv4Addr, to: Ipv4Addr, ports: (u16, u16), protocol: u8) -> [u8; 40] {
    let mut out = [0; 40];
    out[..4].copy_from_slice(&[0x45, 0, 0, 40]);
    (out[8], out[9]) = (64, protocol);
    out[12..16].copy_from_slice(&from.octets());
    out[16..20].copy_from_slice(&to.octets());
    out[20..22].copy_from_slice(&ports.0.to_be_bytes());
    out[22..24].copy_from_slice(&ports.1.to_be_bytes());
    (out[32], out[33]) = (0x50, 0x02);
    out
}

/// Nanoseconds per item of the best round.
fn best(items: usize, mut round: impl FnMut()) -> f64 {
    round();
    let best = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            round();
            start.elapsed()
        })
        .min();
    best.unwrap_or(Duration::ZERO).as_secs_f64() * 1e9 / items as f64
}

/// Nanoseconds per packet of `check_in`, and how many passed.
fn check(filter: &Filter, flows: &FlowTable, packets: &[IpPacket<'_>]) -> (f64, usize) {
    let mut passed = 0;
    let nanoseconds = best(packets.len(), || {
        passed = packets
            .iter()
            .filter(|packet| {
                let verdict = filter.check_in(flows, black_box(packet), GRACE_SECS);
                black_box(verdict) == Verdict::Accept
            })
            .count();
    });
    (nanoseconds, passed)
}

fn parse(bytes: &[[u8; 40]]) -> Vec<IpPacket<'_>> {
    bytes
        .iter()
        .map(|bytes| IpPacket::parse(bytes).unwrap())
        .collect()
}

fn measure(shape: Shape, count: u32) {
    let mut random = SeededEntropy(u64::from(count));
    let rules = rules(shape, count, &mut random);
    let addresses = [IpAddr::V4(Ipv4Addr::new(100, 64, 0, 1))];
    let routes = ["10.0.0.0/8".parse().unwrap()];
    let local = LocalSet::new(&LocalAddresses {
        addresses: &addresses,
        advertised: &routes,
        ..LocalAddresses::default()
    });
    let holders = CapabilityHolders::new();
    let start = Instant::now();
    let (filter, problems) = Filter::compile(&rules, local, &holders);
    let compile = start.elapsed();
    assert!(problems.is_empty());
    let flows = FlowTable::new(&mut random);

    let good: Vec<_> = (0..PACKETS)
        .map(|_| {
            let n = below(&mut random, count);
            allowed(shape, &rules, n, &mut random)
        })
        .collect();
    let opening: Vec<_> = good
        .iter()
        .map(|(from, to, port)| segment(*from, *to, (5000, *port), 6))
        .collect();
    // The same sources and destinations, a port that no rule opens.
    let refused: Vec<_> = good
        .iter()
        .map(|(from, to, port)| segment(*from, *to, (5000, port + 20_000), 6))
        .collect();
    // Answers to flows from behind this node, which no rule lets in. As many as
    // the table can hold even where buckets fill unevenly.
    let answers: Vec<_> = (0..PACKETS / 4)
        .map(|n| {
            let (from, to, _) = good[n];
            segment(from, to, (443, 30_000 + (n % 30_000) as u16), 17)
        })
        .collect();
    for answer in &answers {
        let mut question = *answer;
        question[12..16].copy_from_slice(&answer[16..20]);
        question[16..20].copy_from_slice(&answer[12..16]);
        question[20..22].copy_from_slice(&answer[22..24]);
        question[22..24].copy_from_slice(&answer[20..22]);
        flows.remember(&IpPacket::parse(&question).unwrap(), GRACE_SECS);
    }

    let (allow, passed) = check(&filter, &flows, &parse(&opening));
    assert_eq!(passed, opening.len(), "every opening is allowed");
    let (deny, passed) = check(&filter, &flows, &parse(&refused));
    assert_eq!(passed, 0, "no refused packet passes");
    let (answer, passed) = check(&filter, &flows, &parse(&answers));
    assert!(
        passed > answers.len() * 9 / 10,
        "answers are known: {passed}"
    );

    // The bare lookup: as many prefixes as there are rules, the sources.
    let mut table: PrefixMap<Ipv4Net, u32> = PrefixMap::new();
    for n in 0..count {
        table.insert(Ipv4Net::from(host(n)), n);
    }
    let bare = best(good.len(), || {
        for (from, _, _) in &good {
            black_box(table.get_lpm(&Ipv4Net::from(*black_box(from))));
        }
    });

    println!(
        "{:>14} {count:>7} {allow:>10.1} {deny:>10.1} {answer:>12.1} {bare:>12.1} {:>10.2} {:>10}",
        shape.name(),
        compile.as_secs_f64() * 1e3,
        filter.bytes().div_ceil(1024),
    );
}

fn main() {
    println!(
        "{:>14} {:>7} {:>10} {:>10} {:>12} {:>12} {:>10} {:>10}",
        "rules", "number", "allowed", "denied", "established", "bare prefix", "compile", "memory"
    );
    println!(
        "{:>14} {:>7} {:>10} {:>10} {:>12} {:>12} {:>10} {:>10}",
        "", "", "ns/packet", "ns/packet", "ns/packet", "ns/lookup", "ms", "KiB"
    );
    for shape in [Shape::Hosts, Shape::Groups, Shape::Nested] {
        for count in [1, 100, 10_000] {
            measure(shape, count);
        }
    }
}

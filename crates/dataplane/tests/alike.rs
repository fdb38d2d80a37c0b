//! Packets that are opened together are judged as if each had come alone, and
//! counted so.

#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use warren_control_types::{FilterRule, NetPortRange, PortRange};
use warren_dataplane::DropReason;
use warren_dataplane_testkit::{Pair, Recipe, Transport, expand, udp_address};
use warren_filter::{DropReason as Refusal, Without};
use warren_tunnel::Source;

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// The port that the rule opens.
const OPEN: u16 = 80;

fn rules() -> Vec<FilterRule> {
    vec![FilterRule {
        src_ips: vec!["*".into()],
        dst_ports: vec![NetPortRange {
            ip: "*".into(),
            ports: PortRange {
                first: OPEN,
                last: OPEN,
            },
            ..NetPortRange::default()
        }],
        ..FilterRule::default()
    }]
}

/// A packet of 180 bytes, so that a batch is made of any of them.
#[derive(Debug, Clone)]
struct Packet {
    tcp: Option<u8>,
    port: u16,
    wrong_source: bool,
    fragment: bool,
}

impl Packet {
    fn build(&self, id: u16) -> Vec<u8> {
        let recipe = Recipe {
            v6: false,
            extension: false,
            ports: (1000, self.port),
            id,
            dont_fragment: false,
            transport: match self.tcp {
                Some(flags) => Transport::Tcp {
                    sequence: 1,
                    flags,
                    options: 0,
                },
                None => Transport::Udp,
            },
            payload: vec![1; if self.tcp.is_some() { 140 } else { 152 }],
        };
        let mut packet = recipe.build();
        if self.wrong_source {
            packet[15] = 99;
        }
        if self.fragment {
            // A later one.
            packet[7] = 40;
        }
        packet
    }
}

fn packet() -> impl Strategy<Value = Packet> {
    let flags = prop_oneof![Just(SYN), Just(ACK), Just(SYN | ACK)];
    let tcp = prop_oneof![2 => Just(None), 3 => flags.prop_map(Some)];
    let port = prop_oneof![4 => Just(OPEN), 1 => Just(81u16)];
    (
        tcp,
        port,
        prop::bool::weighted(0.1),
        prop::bool::weighted(0.1),
    )
        .prop_map(|(tcp, port, wrong_source, fragment)| Packet {
            tcp,
            port,
            wrong_source,
            fragment,
        })
}

/// Packets, of which many are like the one before.
fn packets() -> impl Strategy<Value = Vec<Packet>> {
    let run = (packet(), 1usize..6).prop_map(|(packet, count)| vec![packet; count]);
    prop::collection::vec(run, 1..12).prop_map(|runs| runs.concat())
}

/// All that is to be seen of how they were received.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    packets: Vec<Vec<u8>>,
    refused: Vec<Vec<u8>>,
    drops: Vec<u64>,
    filter: Vec<u64>,
    traffic: (u64, u64),
}

fn receive(packets: &[Packet], together: bool) -> Seen {
    let mut pair = Pair::with_rules(&rules());
    let mut datagrams = Vec::new();
    let session = pair.views[0].peers[1].as_ref().unwrap().session.clone();
    let session = session.unwrap();
    for (i, packet) in packets.iter().enumerate() {
        let mut datagram = [&[0; 16][..], &packet.build(i as u16), &[0; 28]].concat();
        let counter = session.reserve(1).unwrap();
        session.seal_in_place(counter, &mut datagram).unwrap();
        datagrams.push(datagram);
    }
    let len = datagrams[0].len();
    let from = Source::Udp(udp_address(1));
    if together {
        pair.arrive(from, datagrams.concat(), len);
    } else {
        for datagram in datagrams {
            pair.arrive(from, datagram, len);
        }
    }
    pair.inbound.flush(&mut pair.host);

    let filter = &pair.views[1].filter;
    let count = |count: warren_filter::Count| [count.packets, count.bytes];
    let passed = Without::ALL.map(|why| count(filter.passed_without_rule(why)));
    let dropped = Refusal::ALL.map(|why| count(filter.dropped(warren_filter::Direction::In, why)));
    let ruled = count(filter.passed_by_rule(0));
    let traffic = pair.views[1].peers[1].as_ref().unwrap().counters.traffic();
    Seen {
        packets: pair.host.frames.iter().flat_map(|f| expand(f)).collect(),
        refused: pair
            .host
            .out
            .into_iter()
            .map(|(_, packet)| packet)
            .collect(),
        drops: DropReason::ALL
            .iter()
            .map(|why| pair.drops[1].get(*why))
            .collect(),
        filter: [passed.concat(), dropped.concat(), ruled.to_vec()].concat(),
        traffic: (traffic.rx_packets, traffic.rx_bytes),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn a_batch_is_judged_like_its_packets(packets in packets()) {
        prop_assert_eq!(receive(&packets, true), receive(&packets, false));
    }
}

#[test]
fn the_packets_of_a_flow_are_all_counted() {
    let packet = Packet {
        tcp: Some(ACK),
        port: OPEN,
        wrong_source: false,
        fragment: false,
    };
    let seen = receive(&vec![packet; 20], true);
    assert_eq!(seen.packets.len(), 20);
    assert_eq!(seen.filter.iter().rev().take(2).sum::<u64>(), 20 + 20 * 180);
    assert_eq!(seen.traffic, (20, 20 * 180));
}

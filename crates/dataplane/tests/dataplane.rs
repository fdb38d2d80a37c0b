//! Packets through both halves of the data plane.

#![allow(clippy::unwrap_used)]

mod traffic;

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use std::net::IpAddr;
use traffic::{Item, by_flow, items, plain, raw};
use warren_control_types::RegionId;
use warren_dataplane::{Clients, DropReason, Intercepts, Match, ServiceId};
use warren_dataplane_testkit::{
    HEADER, PEER, Pair, Recipe, Transport, addresses, expand, segments, sessions, udp_address,
};
use warren_keys::{DiscoSecret, NodePublic};
use warren_node_types::Vni;
use warren_node_types::{Destination, PathAddr};
use warren_tunnel::{PeerIndex, Source};
use warren_wire::ip::icmp::{self, Echo};
use warren_wire::ip::{IpPacket, Parsed, Protocol, tsmp, udp};
use warren_wire::{geneve, relay_batch};

fn datagram(payload: usize) -> Recipe {
    Recipe {
        transport: Transport::Udp,
        ports: (5000, 53),
        ..segments(0, payload)
    }
}

#[test]
fn a_superpacket_crosses_as_one() {
    for v6 in [false, true] {
        let mut pair = Pair::new();
        let header = if v6 { 72 } else { 52 };
        let recipe = Recipe {
            v6,
            ..segments(1, 60_000)
        };
        pair.send(&recipe.frame(Some(1_280 - header)));
        pair.outbound.flush(&mut pair.net);
        assert!(pair.net.udp.len() <= 2, "{} sends", pair.net.udp.len());
        pair.cross();
        assert_eq!(pair.host.frames.len(), 1, "joined again");
        let packets = expand(&pair.host.frames[0]);
        assert_eq!(packets, recipe.expected(Some(1_280 - header)));
        let traffic = pair.views[0].peers[1].as_ref().unwrap().counters.traffic();
        assert_eq!(traffic.tx_packets, packets.len() as u64);
        assert_eq!(
            traffic.tx_bytes,
            packets.iter().map(|p| p.len() as u64).sum::<u64>()
        );
        let received = pair.views[1].peers[1].as_ref().unwrap().counters.traffic();
        assert_eq!(
            (received.rx_packets, received.rx_bytes),
            (traffic.tx_packets, traffic.tx_bytes)
        );
    }
}

#[test]
fn single_datagrams_leave_in_one_send_and_arrive_joined() {
    let mut pair = Pair::new();
    for _ in 0..10 {
        pair.send(&datagram(1_000).frame(None));
    }
    pair.outbound.flush(&mut pair.net);
    assert_eq!(pair.net.udp.len(), 1);
    pair.cross();
    assert_eq!(pair.host.frames.len(), 1);
    assert_eq!(expand(&pair.host.frames[0]).len(), 10);
}

#[test]
fn packets_wait_for_a_session_and_for_a_path() {
    let mut pair = Pair::new();
    let good = pair.views[0].clone();
    pair.views[0] = warren_dataplane_testkit::with_peer(&good, |peer| peer.session = None);
    for i in 0..3 {
        pair.send(&segments(i, 100).frame(None));
    }
    pair.cross();
    assert_eq!(pair.net.wanted, [PEER], "asked once");
    pair.views[0] =
        warren_dataplane_testkit::with_peer(&good, |peer| peer.destination = Destination::None);
    pair.outbound
        .on_view_change(&pair.views[0], pair.now, &mut pair.net);
    pair.cross();
    assert!(pair.host.frames.is_empty());
    pair.views[0] = good;
    pair.outbound
        .on_view_change(&pair.views[0], pair.now, &mut pair.net);
    pair.cross();
    let got: Vec<_> = pair.host.frames.iter().flat_map(|f| expand(f)).collect();
    assert_eq!(
        got,
        (0..3).map(|i| segments(i, 100).build()).collect::<Vec<_>>()
    );
    assert_eq!(pair.drops[0].total(), 0);
}

#[test]
fn waiting_packets_do_not_go_to_whoever_has_the_index_now() {
    let mut pair = Pair::new();
    let good = pair.views[0].clone();
    pair.views[0] = warren_dataplane_testkit::with_peer(&good, |peer| peer.session = None);
    pair.send(&segments(0, 100).frame(None));
    // The same index, but its addresses are another peer's.
    let mut other = good;
    other.routes = std::sync::Arc::default();
    pair.views[0] = other;
    pair.outbound
        .on_view_change(&pair.views[0], pair.now, &mut pair.net);
    pair.cross();
    assert!(pair.host.frames.is_empty());
    assert_eq!(pair.drops[0].get(DropReason::NoRoute), 1);
}

#[test]
fn datagrams_for_a_peer_relay_carry_a_geneve_header_and_those_for_derp_do_not() {
    let vni = Vni::new(0x01_0203).unwrap();
    let server = udp_address(50);
    for batches in [false, true] {
        let mut pair = Pair::new();
        let path = PathAddr::PeerRelay { server, vni };
        let both = Destination::Both(path, RegionId(9));
        pair.views[0] =
            warren_dataplane_testkit::with_peer(&pair.views[0], |peer| peer.destination = both);
        if batches {
            let session = pair.views[0].peer(PEER).unwrap().session.clone();
            session.unwrap().note_takes_batches();
        }
        // A superpacket, packets that are gathered, and a keepalive.
        let large = Recipe {
            payload: vec![7; 5_000],
            ..datagram(0)
        };
        pair.send(&large.frame(Some(1_000)));
        for len in [300, 300, 200] {
            pair.send(&datagram(len).frame(None));
        }
        let view = pair.views[0].clone();
        pair.outbound
            .send_keepalive(&view, pair.now, PEER, &mut pair.net);
        pair.outbound.flush(&mut pair.net);

        let header = geneve::Header {
            payload: geneve::Payload::WireGuard,
            vni,
        };
        let mut inner = Vec::new();
        for (to, (bytes, segment)) in std::mem::take(&mut pair.net.udp) {
            assert_eq!(to, server);
            for datagram in bytes.chunks(segment) {
                let (found, rest) = geneve::Header::parse(datagram).unwrap();
                assert_eq!(found, header);
                inner.push(rest.to_vec());
            }
        }
        assert_eq!(inner.len(), 5 + 3 + 1);
        let mut relayed = Vec::new();
        for mut packet in std::mem::take(&mut pair.net.relayed) {
            match relay_batch::split(&mut packet) {
                Some((len, datagrams)) => {
                    relayed.extend(datagrams.chunks(len).map(<[u8]>::to_vec));
                }
                None => relayed.push(packet),
            }
        }
        assert_eq!(relayed, inner, "in batches: {batches}");
        for datagram in inner {
            let len = datagram.len();
            pair.arrive(Source::Udp(udp_address(1)), datagram, len);
        }
        assert_eq!(pair.drops[1].total(), 0);
    }
}

#[test]
fn in_doubt_both_ways_are_used_and_the_copy_is_dropped() {
    let mut pair = Pair::new();
    let both = Destination::Both(PathAddr::Udp(udp_address(2)), RegionId(9));
    pair.views[0] =
        warren_dataplane_testkit::with_peer(&pair.views[0], |peer| peer.destination = both);
    pair.send(&datagram(500).frame(None));
    pair.outbound.flush(&mut pair.net);
    let (region, to, (bytes, segment)) = pair.net.relay.pop().unwrap();
    assert_eq!((region, to), (RegionId(9), NodePublic::from_bytes([2; 32])));
    assert_eq!(pair.net.udp, [(udp_address(2), (bytes.clone(), segment))]);
    let relay = Source::Derp {
        region: warren_node_types::RegionId(9),
        key: NodePublic::from_bytes([1; 32]),
    };
    pair.arrive(relay, bytes, segment);
    pair.cross();
    assert_eq!(pair.host.frames.len(), 1);
    assert_eq!(pair.drops[1].get(DropReason::Replayed), 1);
    assert_eq!(
        pair.host.heard,
        [(PEER, relay)],
        "a copy proves nothing about its way"
    );
    assert_eq!(pair.host.confirmed, [22]);
}

#[test]
fn roaming_is_told_when_it_happens() {
    let mut pair = Pair::new();
    let one = |pair: &mut Pair, from: Source| {
        pair.send(&datagram(10).frame(None));
        pair.outbound.flush(&mut pair.net);
        for (_, (bytes, segment)) in std::mem::take(&mut pair.net.udp) {
            pair.arrive(from, bytes, segment);
        }
    };
    let (here, there) = (Source::Udp(udp_address(1)), Source::Udp(udp_address(7)));
    for from in [here, here, there, there, here] {
        one(&mut pair, from);
    }
    assert_eq!(pair.host.heard, [(PEER, here), (PEER, there), (PEER, here)]);
    pair.later(Duration::from_secs(1));
    one(&mut pair, here);
    assert_eq!(pair.host.heard.len(), 4);
}

#[test]
fn control_datagrams_go_to_the_engine() {
    let mut pair = Pair::new();
    let from = Source::Udp(udp_address(1));
    let message = |kind: u8, len: usize| [&[kind, 0, 0, 0][..], &vec![7; len - 4]].concat();
    let stun = [&[1, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42][..], &[5; 12]].concat();
    for bytes in [
        message(1, 148),
        message(2, 92),
        message(3, 64),
        [&b"TS\xf0\x9f\x92\xac"[..], &[3; 80]].concat(),
        stun,
    ] {
        let len = bytes.len();
        pair.arrive(from, bytes.clone(), len);
        assert_eq!(pair.host.control.last(), Some(&(from, bytes)));
    }
    assert_eq!(pair.drops[1].total(), 0);
    // Noise costs the engine nothing.
    let noise = [
        vec![1; 148],
        message(1, 147),
        vec![0; 20],
        vec![4, 0, 0, 0],
        vec![9],
    ];
    for bytes in &noise {
        pair.arrive(from, bytes.clone(), bytes.len());
    }
    assert_eq!(pair.host.control.len(), 5);
    assert_eq!(pair.drops[1].get(DropReason::Unrecognised), 5);
}

#[test]
fn bad_datagrams_in_a_batch_do_not_stop_it() {
    let mut pair = Pair::new();
    for i in 0..6 {
        pair.send(
            &Recipe {
                id: i,
                ..datagram(200)
            }
            .frame(None),
        );
    }
    pair.outbound.flush(&mut pair.net);
    let (_, (mut bytes, segment)) = pair.net.udp.pop().unwrap();
    bytes[segment + 20] ^= 1;
    bytes[2 * segment + 4] ^= 1;
    bytes[3 * segment] = 9;
    let repeated = bytes[..segment].to_vec();
    bytes[4 * segment..5 * segment].copy_from_slice(&repeated);
    pair.arrive(Source::Udp(udp_address(1)), bytes, segment);
    pair.cross();
    let got: usize = pair.host.frames.iter().map(|f| expand(f).len()).sum();
    assert_eq!(got, 2);
    assert_eq!(pair.drops[1].get(DropReason::Forged), 1);
    assert_eq!(pair.drops[1].get(DropReason::UnknownSession), 1);
    assert_eq!(pair.drops[1].get(DropReason::Replayed), 1);
    assert_eq!(pair.drops[1].get(DropReason::Unrecognised), 1);
    assert!(pair.host.control.is_empty());
}

#[test]
fn datagrams_that_are_opened_together_are_judged_one_by_one() {
    let mut pair = Pair::new();
    for id in 0..12 {
        pair.send(
            &Recipe {
                id,
                ..datagram(200)
            }
            .frame(None),
        );
    }
    pair.outbound.flush(&mut pair.net);
    let (_, (mut bytes, segment)) = pair.net.udp.pop().unwrap();
    assert_eq!(bytes.len(), 12 * segment);
    // All twelve name the same session: one is damaged, one comes twice, two
    // change places.
    bytes[5 * segment + 20] ^= 1;
    bytes.copy_within(7 * segment..8 * segment, 8 * segment);
    let (first, second) = bytes[9 * segment..11 * segment].split_at_mut(segment);
    first.swap_with_slice(second);
    pair.arrive(Source::Udp(udp_address(1)), bytes, segment);
    pair.cross();
    let got: usize = pair.host.frames.iter().map(|f| expand(f).len()).sum();
    assert_eq!(got, 10);
    assert_eq!(pair.drops[1].get(DropReason::Forged), 1);
    assert_eq!(pair.drops[1].get(DropReason::Replayed), 1);
    assert_eq!(pair.drops[1].total(), 2);
}

#[test]
fn an_exit_node_speaks_for_the_internet_but_for_no_other_peer() {
    let own = addresses(1)[0];
    for (source, accepted) in [
        (own, true),
        ("192.0.2.77".parse().unwrap(), true),
        ("100.64.0.9".parse().unwrap(), false),
        ("10.1.2.3".parse().unwrap(), false),
    ] {
        let mut pair = Pair::new();
        let everything = "0.0.0.0/0".parse().unwrap();
        let mut view = warren_dataplane_testkit::with_peer(&pair.views[1], |peer| {
            peer.allowed_sources.push(everything);
        });
        let other = PeerIndex(7);
        let mut routes = (*view.routes).clone();
        routes.insert(everything, PEER);
        routes.insert("100.64.0.9/32".parse().unwrap(), other);
        routes.insert("10.0.0.0/8".parse().unwrap(), other);
        view.routes = Arc::new(routes);
        pair.views[1] = view;
        let std::net::IpAddr::V4(v4) = source else {
            unreachable!("a literal of this test")
        };
        let mut packet = datagram(10).build();
        packet[12..16].copy_from_slice(&v4.octets());
        pair.send(&plain(&packet));
        pair.cross();
        let refused = pair.drops[1].get(DropReason::WrongSource);
        assert_eq!(refused, u64::from(!accepted), "{source}");
    }
}

#[test]
fn sources_must_belong_to_the_peer_and_rules_hold() {
    let mut pair = Pair::new();
    let mut wrong_source = datagram(10).build();
    wrong_source[15] = 99;
    pair.send(&plain(&wrong_source));
    pair.cross();
    assert_eq!(pair.drops[1].get(DropReason::WrongSource), 1);

    let mut pair = Pair::with_rules(&[]);
    let open = Recipe {
        transport: Transport::Tcp {
            sequence: 1,
            flags: 0x02,
            options: 0,
        },
        ..segments(0, 0)
    };
    pair.send(&open.frame(None));
    pair.cross();
    assert_eq!(pair.drops[1].get(DropReason::FilteredIn), 1);
    let (peer, refusal) = pair.host.out.pop().unwrap();
    let refusal = IpPacket::parse(&refusal).unwrap();
    assert_eq!((peer, refusal.dst), (PEER, addresses(1)[0]));
    assert!(matches!(refusal.tsmp(), Some(tsmp::Message::Reject(_))));
}

#[test]
fn answers_to_our_datagrams_come_in_without_a_rule() {
    let mut pair = Pair::with_rules(&[]);
    let question = datagram(20).build();
    pair.views[1].flows = Arc::new(warren_filter::FlowTable::new(
        &mut warren_testkit::FixedEntropy(0x31),
    ));
    pair.send(&plain(&question));
    pair.cross();
    assert!(pair.host.frames.is_empty(), "not asked for");
    // Node 2 sends first; then the same datagram is an answer.
    let [_, b] = sessions(pair.now);
    let asking = warren_dataplane_testkit::with_peer(&pair.views[1], |peer| peer.session = Some(b));
    let reversed = udp::packet(
        std::net::SocketAddr::new(addresses(2)[0], 53),
        std::net::SocketAddr::new(addresses(1)[0], 5000),
        b"?",
    )
    .unwrap();
    pair.outbound
        .packet(&asking, pair.now, &plain(&reversed), &mut pair.net);
    pair.outbound.flush(&mut pair.net);
    pair.net.udp.clear();
    pair.send(&plain(&question));
    pair.cross();
    assert_eq!(pair.host.frames, [plain(&question)]);
}

#[test]
fn messages_between_nodes_are_answered_or_told() {
    let mut pair = Pair::new();
    let (src, dst) = (addresses(1)[0], addresses(2)[0]);
    let ping = tsmp::Message::Ping(*b"12345678").packet(src, dst).unwrap();
    pair.send(&plain(&ping));
    assert_eq!(
        pair.drops[0].get(DropReason::Internal),
        1,
        "the host may not"
    );
    pair.outbound
        .inject(&pair.views[0], pair.now, PEER, &ping, &mut pair.net);
    pair.cross();
    let (_, pong) = pair.host.out.pop().unwrap();
    let pong = IpPacket::parse(&pong).unwrap();
    assert_eq!(
        pong.tsmp(),
        Some(tsmp::Message::Pong {
            data: *b"12345678",
            peer_api_port: None
        })
    );
    let key = DiscoSecret::from_bytes(&[8; 32]).public();
    for message in [
        tsmp::Message::Pong {
            data: *b"abcdefgh",
            peer_api_port: Some(1),
        },
        tsmp::Message::DiscoAdvertisement(key),
    ] {
        let packet = message.packet(src, dst).unwrap();
        pair.outbound
            .inject(&pair.views[0], pair.now, PEER, &packet, &mut pair.net);
    }
    pair.cross();
    assert_eq!(
        (pair.host.pongs, pair.host.discos),
        (vec![*b"abcdefgh"], vec![key])
    );
    assert!(pair.host.frames.is_empty());
}

const DNS: ServiceId = ServiceId(1);
const SSH: ServiceId = ServiceId(2);
const ALL: ServiceId = ServiceId(3);

fn intercepts(rows: &[(IpAddr, Match, Clients, ServiceId)]) -> Arc<Intercepts> {
    let mut intercepts = Intercepts::new();
    for (address, matches, clients, service) in rows {
        intercepts.insert(*address, *matches, *clients, *service);
    }
    Arc::new(intercepts)
}

/// A UDP packet of node 1 to `port` of node 2.
fn to_port(port: u16) -> Vec<u8> {
    let (from, to) = (addresses(1)[0], addresses(2)[0]);
    udp::packet((from, 999).into(), (to, port).into(), b"data").unwrap()
}

#[test]
fn narrower_intercepts_take_packets_of_peers_before_wider_ones() {
    let mut pair = Pair::new();
    let own = addresses(2)[0];
    pair.views[1].intercepts = intercepts(&[
        (
            own,
            Match::Protocol(Protocol::UDP),
            Clients::AdmittedPeers,
            ALL,
        ),
        (
            own,
            Match::Port(Protocol::UDP, 22),
            Clients::AdmittedPeers,
            SSH,
        ),
        (
            own,
            Match::Port(Protocol::TCP, 80),
            Clients::AdmittedPeers,
            DNS,
        ),
        (own, Match::Any, Clients::Host, DNS),
    ]);
    for port in [22, 80, 22] {
        pair.send(&plain(&to_port(port)));
    }
    pair.cross();
    let expected = [(SSH, to_port(22)), (ALL, to_port(80)), (SSH, to_port(22))];
    assert_eq!(pair.host.delivered, expected);
    assert!(pair.host.frames.is_empty() && pair.drops[1].total() == 0);
}

#[test]
fn packets_that_match_no_intercept_reach_the_host() {
    let mut pair = Pair::new();
    let own = addresses(2)[0];
    let other = addresses(2)[1];
    pair.views[1].intercepts = intercepts(&[
        (
            own,
            Match::Port(Protocol::UDP, 22),
            Clients::AdmittedPeers,
            SSH,
        ),
        (own, Match::Port(Protocol::UDP, 53), Clients::Host, DNS),
        (other, Match::Any, Clients::AdmittedPeers, ALL),
    ]);
    pair.send(&plain(&to_port(53)));
    pair.cross();
    assert!(pair.host.delivered.is_empty());
    assert_eq!(pair.host.frames.len(), 1);
}

#[test]
fn packets_of_one_flow_that_arrive_together_reach_the_same_service() {
    let mut pair = Pair::new();
    let own = addresses(2)[0];
    let rows = [(
        own,
        Match::Port(Protocol::UDP, 22),
        Clients::AdmittedPeers,
        SSH,
    )];
    pair.views[1].intercepts = intercepts(&rows);
    for _ in 0..8 {
        pair.send(&plain(&to_port(22)));
    }
    pair.cross();
    assert_eq!(pair.host.delivered, vec![(SSH, to_port(22)); 8]);
}

#[test]
fn filter_and_cryptokey_routing_hold_in_front_of_services() {
    let own = addresses(2)[0];
    let row = (own, Match::Any, Clients::AdmittedPeers, SSH);
    let mut refused = Pair::with_rules(&[]);
    refused.views[1].intercepts = intercepts(&[row]);
    refused.send(&plain(&to_port(22)));
    refused.cross();
    assert!(refused.host.delivered.is_empty());
    assert_eq!(refused.drops[1].get(DropReason::FilteredIn), 1);

    for clients in [Clients::AdmittedPeers, Clients::AllPeers] {
        let mut spoofed = Pair::new();
        spoofed.views[1].intercepts = intercepts(&[(own, Match::Any, clients, SSH)]);
        let from = ([192, 0, 2, 77], 999).into();
        let packet = udp::packet(from, (own, 22).into(), b"data").unwrap();
        spoofed.send(&plain(&packet));
        spoofed.cross();
        assert!(spoofed.host.delivered.is_empty());
        assert_eq!(spoofed.drops[1].get(DropReason::WrongSource), 1);
    }
}

#[test]
fn connections_to_a_service_for_all_peers_need_no_rule() {
    let own = addresses(2)[0];
    let syn = Recipe {
        transport: Transport::Tcp {
            sequence: 1,
            flags: 0x02,
            options: 0,
        },
        ports: (5000, 80),
        ..segments(0, 0)
    };
    for (clients, delivered) in [(Clients::AllPeers, 1), (Clients::AdmittedPeers, 0)] {
        let mut pair = Pair::with_rules(&[]);
        let row = (own, Match::Port(Protocol::TCP, 80), clients, SSH);
        pair.views[1].intercepts = intercepts(&[row]);
        pair.send(&syn.frame(None));
        pair.cross();
        assert_eq!(pair.host.delivered.len(), delivered);
        assert_eq!(pair.drops[1].total(), 1 - delivered as u64);
    }
}

#[test]
fn packets_of_the_host_to_a_service_address_end_here() {
    let mut pair = Pair::new();
    let service = [100, 100, 100, 100];
    let rows = [(service.into(), Match::Any, Clients::Host, DNS)];
    pair.views[0].intercepts = intercepts(&rows);
    let query = udp::packet((addresses(1)[0], 999).into(), (service, 53).into(), b"dns").unwrap();
    pair.send(&plain(&query));
    assert_eq!(pair.net.delivered, [(DNS, query)]);
    let echo = Echo {
        ident: 1,
        sequence: 2,
        data: b"hello",
    };
    let request = icmp::echo_request(addresses(1)[0], service.into(), echo).unwrap();
    pair.send(&plain(&request));
    let reply = IpPacket::parse(&pair.net.tun[0][HEADER..]).unwrap();
    assert_eq!((reply.src, reply.dst), (service.into(), addresses(1)[0]));
    assert!(matches!(reply.icmp(), Some(icmp::Icmp::EchoReply(_))));
    pair.cross();
    assert!(pair.host.frames.is_empty() && pair.drops[0].total() == 0);
}

#[test]
fn keepalives_confirm_and_carry_nothing() {
    let mut pair = Pair::new();
    pair.outbound
        .send_keepalive(&pair.views[0], pair.now, PEER, &mut pair.net);
    pair.cross();
    assert!(pair.host.frames.is_empty());
    assert_eq!(pair.host.confirmed, [22]);
    let counters = &pair.views[1].peers[1].as_ref().unwrap().counters;
    assert_eq!(counters.traffic().rx_packets, 0);
    let activity = counters.activity(pair.views[1].origin);
    assert!(activity.last_received.is_some() && activity.last_data_received.is_none());
}

#[test]
fn old_sessions_ask_for_a_new_one_and_then_end() {
    let mut pair = Pair::new();
    pair.later(Duration::from_secs(120));
    pair.send(&datagram(10).frame(None));
    pair.send(&datagram(10).frame(None));
    assert_eq!(pair.net.wanted, [PEER], "and goes on sending");
    pair.outbound.flush(&mut pair.net);
    let late = pair.net.udp.pop().unwrap().1;
    pair.later(Duration::from_secs(60));
    pair.arrive(Source::Udp(udp_address(1)), late.0, late.1);
    assert_eq!(pair.drops[1].get(DropReason::ExpiredSession), 2);
    pair.send(&datagram(10).frame(None));
    pair.outbound.flush(&mut pair.net);
    assert!(pair.net.udp.is_empty(), "staged");
    pair.outbound.drop_staged(PEER);
    assert_eq!(pair.drops[0].get(DropReason::StagingFull), 1);
}

#[test]
fn lying_superpackets_are_dropped() {
    let good = segments(1, 5_000).frame(Some(1_000));
    let break_at = |at: usize, value: u8| {
        let mut frame = good.clone();
        frame[at] = value;
        frame
    };
    let zero_size = {
        let mut frame = good.clone();
        frame[4..6].fill(0);
        frame
    };
    for (what, frame) in [
        ("old kind of offload", break_at(1, 3)),
        ("wrong family", break_at(1, 4)),
        ("UDP of a TCP packet", break_at(1, 5)),
        ("segments of nothing", zero_size),
        ("checksum elsewhere", break_at(8, 6)),
        ("checksum starts elsewhere", break_at(6, 24)),
        ("longer than it is", break_at(HEADER + 2, 0xff)),
        ("data offset too small", break_at(HEADER + 32, 0x40)),
        ("a fragment", break_at(HEADER + 6, 0x20)),
        ("cut off", good[..HEADER + 30].to_vec()),
        ("empty", vec![]),
    ] {
        let mut pair = Pair::new();
        pair.send(&frame);
        pair.cross();
        assert_eq!(pair.drops[0].get(DropReason::Malformed), 1, "{what}");
        assert!(pair.host.frames.is_empty(), "{what}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Joining and cutting on the way do not change the packets: they are those of a
    /// plain model that handles one at a time.
    #[test]
    fn packets_are_those_of_the_plain_model(raw in raw(), batches in prop::collection::vec(1usize..12, 1..20)) {
        let items = items(raw);
        let mut pair = Pair::new();
        let mut batch = batches.iter().cycle();
        let mut rest = items.as_slice();
        while !rest.is_empty() {
            let (now, later) = rest.split_at((*batch.next().unwrap()).min(rest.len()));
            for item in now {
                pair.send(&item.frame());
            }
            pair.cross();
            rest = later;
        }
        let expected = by_flow(items.iter().flat_map(Item::expected));
        let got = by_flow(pair.host.frames.iter().flat_map(|frame| expand(frame)));
        prop_assert_eq!(pair.drops[0].total() + pair.drops[1].total(), 0);
        prop_assert_eq!(got.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
        for (flow, packets) in &expected {
            prop_assert_eq!(got[flow].len(), packets.len(), "{}", flow);
            for (a, b) in got[flow].iter().zip(packets) {
                prop_assert!(a == b, "{}", flow);
            }
        }
    }

    /// Frames with damaged headers are dropped or sent, but whatever arrives
    /// can be taken by the kernel.
    #[test]
    fn lies_do_no_harm(
        raw in raw(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in any::<prop::sample::Index>(),
        cut_it: bool,
    ) {
        let mut pair = Pair::new();
        for item in items(raw) {
            let mut frame = item.frame();
            for (at, value) in &damage {
                // Most of it in the headers.
                let at = at.index(frame.len().min(90));
                frame[at] = *value;
            }
            if cut_it {
                frame.truncate(cut.index(frame.len()));
            }
            pair.send(&frame);
        }
        pair.cross();
        for frame in &pair.host.frames {
            let packets = expand(frame);
            prop_assert!(packets.iter().all(|packet| Parsed::parse(packet).is_ok()));
        }
    }

    /// Bytes from the network, whatever they are.
    #[test]
    fn any_datagrams_are_survived(
        mut bytes in prop::collection::vec(any::<u8>(), 0..400), segment in 0usize..200, data: bool,
    ) {
        if data && bytes.len() >= 8 {
            bytes[..8].copy_from_slice(&[4, 0, 0, 0, 22, 0, 0, 0]);
        }
        let mut pair = Pair::new();
        pair.arrive(Source::Udp(udp_address(1)), bytes, segment);
        pair.cross();
        prop_assert!(pair.host.frames.is_empty());
    }
}

/// `Protocol` in keys prints by name; keep the helper honest.
#[test]
fn flows_are_told_apart() {
    let flows = by_flow([
        segments(1, 10).build(),
        datagram(10).build(),
        segments(2, 10).build(),
    ]);
    assert_eq!(flows.len(), 2);
    assert_eq!(Protocol::TCP.to_string(), "TCP");
}

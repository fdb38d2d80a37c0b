//! Packets that come through a peer relay.

#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;

use warren_control_types::RegionId;
use warren_dataplane::DropReason;
use warren_dataplane_testkit::{PEER, Pair, Recipe, expand, segments, udp_address, with_peer};
use warren_keys::DiscoSecret;
use warren_node_types::{Destination, PathAddr, Vni};
use warren_tunnel::Source;
use warren_wire::disco::MAGIC;
use warren_wire::geneve::{Header, Payload};

fn server() -> SocketAddr {
    udp_address(50)
}

fn vni(number: u32) -> Vni {
    Vni::new(number).unwrap()
}

/// A pair whose sender uses the endpoint with this number.
fn relayed(number: u32) -> Pair {
    let mut pair = Pair::new();
    let path = PathAddr::PeerRelay {
        server: server(),
        vni: vni(number),
    };
    let destination = Destination::Both(path, RegionId(9));
    pair.views[0] = with_peer(&pair.views[0], |peer| peer.destination = destination);
    pair
}

fn large() -> Recipe {
    segments(1, 20_000)
}

#[test]
fn joined_datagrams_of_a_relay_cross_as_one_packet() {
    let mut pair = relayed(7);
    pair.send(&large().frame(Some(1_200)));
    pair.outbound.flush(&mut pair.net);
    for (to, (bytes, segment)) in std::mem::take(&mut pair.net.udp) {
        assert_eq!(to, server());
        pair.arrive(Source::Udp(server()), bytes, segment);
    }
    assert_eq!(pair.drops[1].total(), 0);
    assert_eq!(pair.host.frames.len(), 1, "joined again");
    assert_eq!(expand(&pair.host.frames[0]), large().expected(Some(1_200)));
    let from = Source::PeerRelay {
        server: server(),
        vni: vni(7),
    };
    assert_eq!(pair.host.heard, [(PEER, from)]);
    // The copies through DERP.
    let packets = pair.host.frames.len();
    for (_, _, (bytes, segment)) in std::mem::take(&mut pair.net.relay) {
        pair.arrive(Source::Udp(udp_address(1)), bytes, segment);
    }
    assert_eq!(pair.host.frames.len(), packets);
    assert!(pair.drops[1].get(DropReason::Replayed) > 0);
}

/// One receive call can give datagrams of several endpoints: the kernel joins all that come
/// from one address.
#[test]
fn datagrams_of_two_endpoints_in_one_buffer_are_kept_apart() {
    let mut pair = relayed(7);
    pair.send(&large().frame(Some(1_200)));
    pair.outbound.flush(&mut pair.net);
    let mut vnis = [7, 7, 8, 7, 8, 8].iter().cycle();
    for (_, (mut bytes, segment)) in std::mem::take(&mut pair.net.udp) {
        for datagram in bytes.chunks_mut(segment) {
            let header = Header {
                payload: Payload::WireGuard,
                vni: vni(*vnis.next().unwrap()),
            };
            datagram[..8].copy_from_slice(&header.to_bytes());
        }
        pair.arrive(Source::Udp(server()), bytes, segment);
    }
    assert_eq!(pair.drops[1].total(), 0);
    let packets: Vec<_> = pair.host.frames.iter().flat_map(|it| expand(it)).collect();
    assert_eq!(packets, large().expected(Some(1_200)));
    assert!(pair.host.heard.len() > 2, "{:?}", pair.host.heard);
}

#[test]
fn messages_of_a_relay_reach_the_engine_with_their_header() {
    let mut disco = MAGIC.to_vec();
    disco.extend_from_slice(DiscoSecret::from_bytes(&[3; 32]).public().as_bytes());
    disco.resize(124, 1);
    let mut initiation = vec![1, 0, 0, 0];
    initiation.resize(148, 1);
    let cases = [
        (Payload::Disco, &disco[..], true),
        (Payload::DiscoControl, &disco, true),
        (Payload::WireGuard, &initiation, true),
        (Payload::Disco, &initiation, false),
        (Payload::WireGuard, &disco, false),
        (Payload::WireGuard, &[], false),
    ];
    for (payload, content, expected) in cases {
        let mut pair = relayed(7);
        let datagram = Header {
            payload,
            vni: vni(7),
        }
        .wrap(content);
        let len = datagram.len();
        pair.arrive(Source::Udp(server()), datagram.clone(), len);
        let passed = vec![(Source::Udp(server()), datagram)];
        let passed = if expected { passed } else { Vec::new() };
        assert_eq!(pair.host.control, passed, "{payload:?}");
        let dropped = pair.drops[1].get(DropReason::Unrecognised);
        assert_eq!(dropped, u64::from(!expected));
    }
}

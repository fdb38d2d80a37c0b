//! Messages about peer relays without effect: unasked, misdirected, repeated, or with
//! addresses that no relay has.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use warren_control_types::RegionId;
use warren_keys::DiscoSecret;
use warren_paths::{Counters, Event, Paths, PeerIndex, PeerInfo, PeerRelayRole};
use warren_wire::disco::{
    AllocateRelayEndpointResponse, BindRelayEndpoint, Envelope, Message, RelayEndpoint,
};
use warren_wire::geneve::{Header, Payload, Vni};

use crate::bad_input::{PEER, disco, engine, events, node, ping, sealed};
use crate::world::ms;

const SERVER: u8 = 9;
const REGION: RegionId = RegionId(1);

fn vni(number: u32) -> Vni {
    Vni::new(number).unwrap()
}

fn at(last: u8) -> SocketAddr {
    ([192, 0, 2, last], 40_000).into()
}

/// Relay server `server` names an endpoint for the engine and its peer.
fn endpoint(server: u8, number: u32, addresses: Vec<SocketAddr>) -> RelayEndpoint {
    let mut clients = [disco(1).public(), disco(2).public()];
    clients.sort_unstable_by_key(|key| *key.as_bytes());
    RelayEndpoint {
        server: disco(server).public(),
        clients,
        lamport_id: 1,
        vni: number,
        bind_lifetime: 30_000_000_000,
        steady_lifetime: 300_000_000_000,
        addresses,
    }
}

/// The engine with a connected DERP relay and without events.
fn ready(now: Instant) -> Paths {
    let mut paths = engine(now);
    paths.relay_connected(now, REGION);
    events(&mut paths);
    paths
}

fn via(paths: &mut Paths, now: Instant, nonce: u8, endpoint: RelayEndpoint) {
    let message = Message::CallMeMaybeVia(endpoint);
    paths.handle_relay(now, REGION, node(2), &sealed(&disco(2), nonce, &message));
}

/// Datagrams with the control bit among the events: receiver, VNI, and message.
fn controls(events: &[Event], server: u8) -> Vec<(SocketAddr, Vni, Message)> {
    let key = disco(server)
        .shared_with(disco(1).public().as_bytes())
        .unwrap();
    let read = |event: &Event| {
        let Event::SendUdp { to, packet } = event else {
            return None;
        };
        let (header, content) = Header::parse(packet)?;
        assert_eq!(header.payload, Payload::DiscoControl);
        let opened = key.open(Envelope::parse(content).ok()?.sealed).ok()?;
        Some((*to, header.vni, Message::parse(&opened).ok()?))
    };
    events.iter().filter_map(read).collect()
}

fn geneve(payload: Payload, number: u32, content: &[u8]) -> Vec<u8> {
    Header {
        payload,
        vni: vni(number),
    }
    .wrap(content)
}

fn counters(paths: &Paths) -> Counters {
    paths.counters()
}

#[test]
fn datagrams_of_unknown_relays_are_dropped_and_counted() {
    let now = Instant::now();
    let mut paths = ready(now);
    let from_peer = sealed(&disco(2), 1, &ping(1, node(2)));
    let handshake = [1, 0, 0, 0, 5, 6, 7, 8];
    for (payload, content) in [
        (Payload::Disco, &from_peer[..]),
        (Payload::DiscoControl, &from_peer),
        (Payload::WireGuard, &handshake),
    ] {
        let datagram = geneve(payload, 7, content);
        assert!(paths.handle_udp(now, at(1), &datagram), "{payload:?}");
    }
    assert_eq!(counters(&paths).peer_relay_unknown, 3);
    assert_eq!(events(&mut paths), []);
}

#[test]
fn endpoints_that_no_relay_can_have_lead_to_no_handshake() {
    let now = Instant::now();
    let good = endpoint(SERVER, 7, vec![at(1)]);
    let with = |change: fn(&mut RelayEndpoint)| {
        let mut endpoint = good.clone();
        change(&mut endpoint);
        endpoint
    };
    let cases = [
        ("no VNI", with(|it| it.vni = 0)),
        ("a VNI of 25 bits", with(|it| it.vni = 1 << 24)),
        ("our own key", with(|it| it.server = disco(1).public())),
        (
            "the key of the peer",
            with(|it| it.server = disco(2).public()),
        ),
        (
            "other clients",
            with(|it| it.clients[0] = disco(5).public()),
        ),
        ("in no order", with(|it| it.clients.reverse())),
        (
            "nowhere to send to",
            with(|it| {
                let list = [
                    "127.0.0.1:1",
                    "0.0.0.0:1",
                    "224.0.0.1:1",
                    "192.0.2.1:0",
                    "100.64.0.9:1",
                    "[fd7a:115c:a1e0::9]:1",
                    // A family without a socket.
                    "[2001:db8::1]:1",
                    // Our own socket.
                    "10.0.0.1:41641",
                ];
                it.addresses = list.map(|text| text.parse().unwrap()).to_vec();
            }),
        ),
    ];
    for (what, endpoint) in cases {
        let mut paths = ready(now);
        via(&mut paths, now, 1, endpoint);
        assert_eq!(controls(&events(&mut paths), SERVER), [], "{what}");
        assert_eq!(counters(&paths).peer_relay_endpoints_refused, 1, "{what}");
    }
    let mut paths = ready(now);
    via(&mut paths, now, 1, good);
    assert_eq!(controls(&events(&mut paths), SERVER).len(), 1);
}

#[test]
fn peers_that_cannot_use_relays_are_not_followed() {
    let now = Instant::now();
    let mut paths = ready(now);
    let info = PeerInfo {
        node_key: node(2),
        disco_key: Some(disco(2).public()),
        endpoints: Vec::new(),
        home_derp: Some(REGION),
        peer_relay: PeerRelayRole::None,
    };
    paths.upsert_peer(now, PEER, info.clone());
    events(&mut paths);
    via(&mut paths, now, 1, endpoint(SERVER, 7, vec![at(1)]));
    assert_eq!(controls(&events(&mut paths), SERVER), []);
    assert_eq!(counters(&paths).peer_relay_endpoints_refused, 1);

    // The other way round: what is under way ends when relays must not be used any more.
    let client = PeerInfo {
        peer_relay: PeerRelayRole::Client,
        ..info.clone()
    };
    paths.upsert_peer(now, PEER, client);
    via(&mut paths, now, 2, endpoint(SERVER, 7, vec![at(1)]));
    paths.upsert_peer(now, PEER, info);
    events(&mut paths);
    let challenge = challenge(7, 1, disco(2));
    paths.handle_udp(now, at(1), &challenge);
    assert_eq!(counters(&paths).peer_relay_unknown, 1);
}

/// The datagram with which the server challenges the engine.
fn challenge(number: u32, generation: u32, remote: DiscoSecret) -> Vec<u8> {
    let message = Message::BindRelayEndpointChallenge(BindRelayEndpoint {
        vni: number,
        generation,
        remote: remote.public(),
        challenge: [3; 32],
    });
    geneve(
        Payload::DiscoControl,
        number,
        &sealed(&disco(SERVER), 1, &message),
    )
}

#[test]
fn only_the_challenge_of_the_handshake_is_answered() {
    let now = Instant::now();
    let mut paths = ready(now);
    via(&mut paths, now, 1, endpoint(SERVER, 7, vec![at(1), at(2)]));
    let sent = controls(&events(&mut paths), SERVER);
    let to: Vec<_> = sent.iter().map(|(to, number, _)| (*to, *number)).collect();
    assert_eq!(to, [(at(1), vni(7)), (at(2), vni(7))]);
    let Some((_, _, Message::BindRelayEndpoint(bind))) = sent.first() else {
        panic!("{sent:?}")
    };
    assert_ne!(bind.generation, 0);
    let generation = bind.generation;

    let mut forged = challenge(7, generation, disco(2));
    *forged.last_mut().unwrap() ^= 1;
    for (what, from, datagram) in [
        (
            "not an address that was asked",
            at(3),
            challenge(7, generation, disco(2)),
        ),
        (
            "of an earlier attempt",
            at(1),
            challenge(7, generation + 1, disco(2)),
        ),
        (
            "for another peer",
            at(1),
            challenge(7, generation, disco(5)),
        ),
        ("forged", at(1), forged),
    ] {
        paths.handle_udp(now, from, &datagram);
        assert_eq!(events(&mut paths), [], "{what}");
    }
    assert_eq!(counters(&paths).peer_relay_challenges_refused, 3);
    assert_eq!(counters(&paths).disco_does_not_open, 1);

    paths.handle_udp(now, at(2), &challenge(7, generation, disco(2)));
    let sent = events(&mut paths);
    let packets = sent.iter().filter_map(|event| match event {
        Event::SendUdp { to, packet } => Some((*to, Header::parse(packet)?.0.payload)),
        _ => None,
    });
    let expected = [(at(2), Payload::DiscoControl), (at(2), Payload::Disco)];
    assert_eq!(packets.collect::<Vec<_>>(), expected);
    // The second one comes too late.
    paths.handle_udp(now, at(1), &challenge(7, generation, disco(2)));
    assert_eq!(events(&mut paths), []);
}

#[test]
fn only_the_peer_of_an_endpoint_is_answered_through_it() {
    let now = Instant::now();
    let mut paths = ready(now);
    let other = PeerInfo {
        node_key: node(3),
        disco_key: Some(disco(3).public()),
        endpoints: Vec::new(),
        home_derp: None,
        peer_relay: PeerRelayRole::Client,
    };
    paths.upsert_peer(now, PeerIndex(3), other);
    via(&mut paths, now, 1, endpoint(SERVER, 7, vec![at(1)]));
    let sent = controls(&events(&mut paths), SERVER);
    let Some((_, _, Message::BindRelayEndpoint(bind))) = sent.first() else {
        panic!("{sent:?}")
    };
    let challenge = challenge(7, bind.generation, disco(2));
    paths.handle_udp(now, at(1), &challenge);
    events(&mut paths);

    let from_other = sealed(&disco(3), 1, &ping(1, node(3)));
    paths.handle_udp(now, at(1), &geneve(Payload::Disco, 7, &from_other));
    assert_eq!(counters(&paths).peer_relay_unknown, 1);
    let lies = sealed(&disco(2), 2, &ping(2, node(3)));
    paths.handle_udp(now, at(1), &geneve(Payload::Disco, 7, &lies));
    assert_eq!(counters(&paths).ping_wrong_node, 1);
    let from_peer = sealed(&disco(2), 3, &ping(3, node(2)));
    for (from, number) in [(at(2), 7), (at(1), 8)] {
        paths.handle_udp(now, from, &geneve(Payload::Disco, number, &from_peer));
    }
    assert_eq!(counters(&paths).peer_relay_unknown, 3);
    let over_derp_only = sealed(&disco(2), 4, &Message::CallMeMaybe(vec![at(9)]));
    paths.handle_udp(now, at(1), &geneve(Payload::Disco, 7, &over_derp_only));
    assert_eq!(counters(&paths).disco_wrong_transport, 1);
    assert_eq!(events(&mut paths), []);

    paths.handle_udp(now, at(1), &geneve(Payload::Disco, 7, &from_peer));
    assert_eq!(counters(&paths).pongs_sent, 1);
    // A handshake of WireGuard is for others.
    let handshake = geneve(Payload::WireGuard, 7, &[1, 0, 0, 0, 5]);
    assert!(!paths.handle_udp(now, at(1), &handshake));
}

/// A peer names one relay after the other, each with many addresses.
#[test]
fn a_peer_causes_few_datagrams_to_relays() {
    let start = Instant::now();
    let mut now = start;
    let mut paths = ready(now);
    let mut sent = 0;
    let mut number = 0;
    while now < start + Duration::from_secs(10) {
        number += 1;
        let addresses = (0..200).map(|last| SocketAddr::from(([198, 51, 100, last], 1)));
        let server = 20 + u8::try_from(number % 200).unwrap();
        let mut offer = endpoint(server, number, addresses.collect());
        offer.lamport_id = number.into();
        via(&mut paths, now, 1, offer);
        paths.handle_timeout(now);
        let datagrams = events(&mut paths).into_iter();
        sent += datagrams
            .filter(|event| matches!(event, Event::SendUdp { to, .. } if to.port() == 1))
            .count();
        now += ms(10);
    }
    // Eight handshakes, sixteen addresses, six rounds.
    assert!(sent <= 8 * 16 * 6, "{sent}");
    assert!(sent >= 8 * 16, "{sent}");
}

#[test]
fn answers_count_only_from_the_node_that_was_asked() {
    let now = Instant::now();
    let mut paths = ready(now);
    let server = PeerInfo {
        node_key: node(4),
        disco_key: Some(disco(4).public()),
        endpoints: Vec::new(),
        home_derp: Some(REGION),
        peer_relay: PeerRelayRole::Server,
    };
    paths.upsert_peer(now, PeerIndex(4), server);
    paths.note_sent(now, PEER);
    events(&mut paths);
    let later = now + ms(600);
    paths.handle_timeout(later);
    let key = disco(4).shared_with(disco(1).public().as_bytes()).unwrap();
    let asked = events(&mut paths).into_iter().find_map(|event| {
        let Event::SendRelay { to, packet, .. } = event else {
            return None;
        };
        let opened = key.open(Envelope::parse(&packet).ok()?.sealed).ok()?;
        match Message::parse(&opened).ok()? {
            Message::AllocateRelayEndpointRequest(request) if to == node(4) => Some(request),
            _ => None,
        }
    });
    let request = asked.unwrap();
    assert_eq!(request.clients, endpoint(SERVER, 1, vec![]).clients);
    let answer = |generation: u32| {
        Message::AllocateRelayEndpointResponse(AllocateRelayEndpointResponse {
            generation,
            endpoint: endpoint(SERVER, 7, vec![at(1)]),
        })
    };
    for (from, generation) in [(2, request.generation), (4, request.generation + 1)] {
        let packet = sealed(&disco(from), 1, &answer(generation));
        paths.handle_relay(later, REGION, node(from), &packet);
        assert_eq!(controls(&events(&mut paths), SERVER), []);
    }
    assert_eq!(counters(&paths).peer_relay_endpoints_refused, 2);
    let packet = sealed(&disco(4), 1, &answer(request.generation));
    paths.handle_relay(later, REGION, node(4), &packet);
    let sent = events(&mut paths);
    assert_eq!(controls(&sent, SERVER).len(), 1);
    let to_peer = |event: &&Event| matches!(event, Event::SendRelay { to, .. } if *to == node(2));
    assert_eq!(sent.iter().filter(to_peer).count(), 1, "CallMeMaybeVia");
    // The same answer again is one that was not asked for.
    paths.handle_relay(later, REGION, node(4), &packet);
    assert_eq!(counters(&paths).peer_relay_endpoints_refused, 3);
}

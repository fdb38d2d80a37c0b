//! Packets of unknown senders, damaged and replayed packets: they have no effect
//! and are counted.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use warren_control_types::RegionId;
use warren_keys::{DiscoSecret, NodePublic, NodeSecret};
use warren_paths::{
    Destination, Event, LocalAddresses, Paths, PathsConfig, PeerIndex, PeerInfo, PeerRelayRole,
};
use warren_wire::disco::{Envelope, Message, Ping, PingSender, Pong, TxId};

use crate::nat::Kind;
use warren_testkit::SeededEntropy;

use crate::world::{World, ms};

pub const PEER: PeerIndex = PeerIndex(1);

pub fn node(byte: u8) -> NodePublic {
    NodeSecret::from_bytes(&[byte; 32]).public()
}

pub fn disco(byte: u8) -> DiscoSecret {
    DiscoSecret::from_bytes(&[byte; 32])
}

fn somewhere(last: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, last], 41641))
}

/// An engine (node 1, disco 1) that knows one peer (node 2, disco 2).
pub fn engine(now: Instant) -> Paths {
    let config = PathsConfig::default();
    let mut paths = Paths::new(config, node(1), disco(1), Box::new(SeededEntropy(1)));
    let interfaces = vec![std::net::IpAddr::from([10, 0, 0, 1])];
    let local = LocalAddresses {
        port_v4: Some(41641),
        interfaces,
        ..LocalAddresses::default()
    };
    paths.set_local_addresses(now, local);
    paths.set_derp_map(now, &World::new(&[]).derp_map());
    let info = PeerInfo {
        node_key: node(2),
        disco_key: Some(disco(2).public()),
        endpoints: vec![somewhere(2)],
        home_derp: Some(RegionId(1)),
        peer_relay: PeerRelayRole::Client,
    };
    paths.upsert_peer(now, PEER, info);
    paths
}

/// A packet sealed by `from` for the engine.
pub fn sealed(from: &DiscoSecret, nonce: u8, message: &Message) -> Vec<u8> {
    let key = from.shared_with(disco(1).public().as_bytes()).unwrap();
    Envelope::seal(&from.public(), &key, &[nonce; 24], message)
}

pub fn ping(tx: u8, from: NodePublic) -> Message {
    let sender = Some(PingSender {
        node: from,
        padding: 0,
    });
    Message::Ping(Ping {
        tx: TxId([tx; 12]),
        sender,
    })
}

pub fn events(paths: &mut Paths) -> Vec<Event> {
    std::iter::from_fn(|| paths.poll_event()).collect()
}

/// The transaction ids of the pings in `events`, as their receiver reads them.
pub fn pings(events: &[Event]) -> Vec<(SocketAddr, TxId)> {
    let key = disco(2).shared_with(disco(1).public().as_bytes()).unwrap();
    let read = |event: &Event| {
        let Event::SendUdp { to, packet } = event else {
            return None;
        };
        let opened = key.open(Envelope::parse(packet).ok()?.sealed).ok()?;
        match Message::parse(&opened) {
            Ok(Message::Ping(ping)) => Some((*to, ping.tx)),
            _ => None,
        }
    };
    events.iter().filter_map(read).collect()
}

fn is_direct(paths: &Paths) -> bool {
    paths.peer_path(PEER).unwrap().direct.is_some()
}

#[test]
fn only_the_right_pong_counts() {
    let now = Instant::now();
    let later = now + ms(30);
    let mut paths = engine(now);
    let sent = pings(&events(&mut paths));
    assert_eq!(sent.len(), 1, "proactive: one candidate, one ping");
    let pong = |tx| {
        Message::Pong(Pong {
            tx,
            source: somewhere(9),
        })
    };

    paths.handle_udp(
        later,
        somewhere(2),
        &sealed(&disco(2), 1, &pong(TxId([0; 12]))),
    );
    assert_eq!(paths.counters().pong_unknown_transaction, 1);
    paths.handle_udp(later, somewhere(2), &sealed(&disco(3), 2, &pong(sent[0].1)));
    assert_eq!(paths.counters().disco_unknown_sender, 1);
    paths.handle_relay(
        later,
        RegionId(1),
        node(2),
        &sealed(&disco(2), 3, &pong(sent[0].1)),
    );
    assert_eq!(paths.counters().pong_wrong_transport, 1);
    assert!(!is_direct(&paths));

    // From another peer that is known.
    let other = PeerInfo {
        node_key: node(3),
        disco_key: Some(disco(3).public()),
        endpoints: vec![],
        home_derp: None,
        peer_relay: PeerRelayRole::Client,
    };
    paths.upsert_peer(later, PeerIndex(2), other);
    paths.handle_udp(later, somewhere(2), &sealed(&disco(3), 4, &pong(sent[0].1)));
    assert_eq!(paths.counters().pong_wrong_peer, 1);
    assert!(!is_direct(&paths));

    // A NAT may answer from elsewhere; the address that was pinged counts.
    paths.handle_udp(
        later,
        somewhere(77),
        &sealed(&disco(2), 5, &pong(sent[0].1)),
    );
    let path = paths.peer_path(PEER).unwrap();
    assert_eq!(path.destination, Destination::udp(somewhere(2)));
    assert_eq!(path.round_trip, Some(ms(30)));

    // The same pong again.
    paths.handle_udp(
        later,
        somewhere(77),
        &sealed(&disco(2), 5, &pong(sent[0].1)),
    );
    assert_eq!(paths.counters().pong_unknown_transaction, 2);
}

#[test]
fn late_pongs_are_too_late() {
    let now = Instant::now();
    let mut paths = engine(now);
    let sent = pings(&events(&mut paths));
    let late = now + Duration::from_secs(6);
    paths.handle_timeout(late);
    let pong = Message::Pong(Pong {
        tx: sent[0].1,
        source: somewhere(9),
    });
    paths.handle_udp(late, somewhere(2), &sealed(&disco(2), 1, &pong));
    assert_eq!(paths.counters().pong_unknown_transaction, 1);
    assert!(!is_direct(&paths));
}

/// A captured packet of ours, with the header key swapped for the peer's,
/// opens here: the box has no direction.
#[test]
fn reflected_packets_are_dropped() {
    let now = Instant::now();
    let mut paths = engine(now);
    let ours: Vec<Vec<u8>> = events(&mut paths)
        .into_iter()
        .filter_map(|event| match event {
            Event::SendUdp { packet, .. } if packet.starts_with(b"TS") => Some(packet),
            _ => None,
        })
        .collect();
    let mut reflected = ours[0].clone();
    assert!(paths.handle_udp(now, somewhere(66), &reflected), "as it is");
    assert_eq!(paths.counters().disco_from_ourselves, 1);
    reflected[6..38].copy_from_slice(disco(2).public().as_bytes());
    assert!(
        paths.handle_udp(now, somewhere(66), &reflected),
        "with the key swapped"
    );
    assert_eq!(paths.counters().disco_from_ourselves, 2);
    assert_eq!(events(&mut paths), []);
}

#[test]
fn replayed_pings_are_answered_once() {
    let now = Instant::now();
    let mut paths = engine(now);
    events(&mut paths);
    let packet = sealed(&disco(2), 1, &ping(1, node(2)));
    paths.handle_udp(now, somewhere(50), &packet);
    // A pong, and a ping back to the unknown source.
    assert_eq!(events(&mut paths).len(), 2);
    for source in [50, 51, 52] {
        paths.handle_udp(now, somewhere(source), &packet);
    }
    assert_eq!(events(&mut paths), []);
    assert_eq!(paths.counters().ping_replayed, 3);
}

#[test]
fn pings_of_the_wrong_node_are_dropped() {
    let now = Instant::now();
    let mut paths = engine(now);
    events(&mut paths);
    paths.handle_udp(now, somewhere(50), &sealed(&disco(2), 1, &ping(1, node(3))));
    assert_eq!(paths.counters().ping_wrong_node, 1);
    assert_eq!(events(&mut paths), []);
}

#[test]
fn call_me_maybe_counts_only_over_a_relay_and_from_its_author() {
    let now = Instant::now();
    let mut paths = engine(now);
    events(&mut paths);
    let call_me_maybe = sealed(&disco(2), 1, &Message::CallMeMaybe(vec![somewhere(60)]));
    paths.handle_udp(now, somewhere(2), &call_me_maybe);
    assert_eq!(paths.counters().disco_wrong_transport, 1);
    paths.handle_relay(now, RegionId(1), node(3), &call_me_maybe);
    assert_eq!(paths.counters().disco_wrong_relay_sender, 1);
    assert_eq!(pings(&events(&mut paths)), []);
    paths.handle_relay(now, RegionId(1), node(2), &call_me_maybe);
    assert_eq!(pings(&events(&mut paths)).first().unwrap().0, somewhere(60));
}

/// An authenticated peer cannot make us flood others.
#[test]
fn a_flood_of_call_me_maybe_is_limited() {
    let start = Instant::now();
    let mut paths = engine(start);
    events(&mut paths);
    let mut sent = 0;
    for number in 0..1000u32 {
        let now = start + Duration::from_micros(100) * number;
        let list = (0..100u32).map(|port| {
            let port = (number * 100 + port) % 60_000 + 1;
            SocketAddr::from(([198, 51, 100, 7], u16::try_from(port).unwrap()))
        });
        let call_me_maybe = Message::CallMeMaybe(list.collect());
        paths.handle_relay(
            now,
            RegionId(1),
            node(2),
            &sealed(&disco(2), number as u8, &call_me_maybe),
        );
        paths.handle_timeout(now);
        sent += pings(&events(&mut paths)).len();
    }
    // In a tenth of a second: one full round, and the favourites twice.
    assert!(sent <= 64 + 3 * 16, "{sent} pings");
    assert!(paths.counters().candidates_refused > 0);
}

/// A CallMeMaybe that comes before the netmap names its author is not lost.
#[test]
fn a_call_me_maybe_before_the_netmap_is_kept() {
    let now = Instant::now();
    let mut paths = engine(now);
    events(&mut paths);
    let call_me_maybe = sealed(&disco(5), 1, &Message::CallMeMaybe(vec![somewhere(60)]));
    paths.handle_relay(now, RegionId(1), node(5), &call_me_maybe);
    assert_eq!(paths.counters().disco_unknown_sender, 1);
    let info = PeerInfo {
        node_key: node(5),
        disco_key: Some(disco(5).public()),
        endpoints: vec![],
        home_derp: None,
        peer_relay: PeerRelayRole::Client,
    };
    paths.upsert_peer(now + ms(100), PeerIndex(5), info);
    let sent = events(&mut paths);
    let to: Vec<_> = sent
        .iter()
        .filter_map(|event| match event {
            Event::SendUdp { to, .. } => Some(*to),
            _ => None,
        })
        .collect();
    assert!(to.contains(&somewhere(60)), "{sent:?}");
}

#[test]
fn calling_a_timeout_early_does_nothing() {
    let mut world = World::new(&[Kind::Easy, Kind::Easy]);
    world.join(0);
    world.join(1);
    world.start_flow(0, 1, ms(100), Duration::from_secs(2));
    for _ in 0..300 {
        world.run(ms(7));
        let now = world.now;
        for node in [0, 1] {
            let paths = world.paths(node);
            let deadline = paths.next_deadline();
            if deadline.is_some_and(|(at, _)| now < at) {
                paths.handle_timeout(now);
                assert_eq!(paths.poll_event(), None);
                assert_eq!(paths.next_deadline(), deadline);
            }
        }
    }
}

#[test]
fn paused_is_silent() {
    let now = Instant::now();
    let mut paths = engine(now);
    events(&mut paths);
    paths.set_paused(now, true);
    assert_eq!(paths.next_deadline(), None);
    paths.handle_timeout(now + Duration::from_secs(60));
    assert_eq!(events(&mut paths), []);
    paths.set_paused(now + Duration::from_secs(60), false);
    assert!(!pings(&events(&mut paths)).is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Bytes of any kind, from anywhere, in any order.
    #[test]
    fn any_datagram_is_survived(
        packets in prop::collection::vec((0u8..6, prop::collection::vec(any::<u8>(), 0..200)), 0..40),
    ) {
        let mut now = Instant::now();
        let mut paths = engine(now);
        for (kind, body) in packets {
            now += ms(37);
            let packet = match kind {
                0 | 1 => body,
                // Behind the magic, behind a STUN header, and inside a good box.
                2 => [b"TS\xf0\x9f\x92\xac".as_slice(), &body].concat(),
                3 => [&[1, 1, 0, 12, 0x21, 0x12, 0xa4, 0x42], body.as_slice()].concat(),
                _ => {
                    let peer = disco(2);
                    let key = peer.shared_with(disco(1).public().as_bytes()).unwrap();
                    let mut out = b"TS\xf0\x9f\x92\xac".to_vec();
                    out.extend_from_slice(peer.public().as_bytes());
                    key.seal(&[kind; 24], &body, &mut out);
                    out
                }
            };
            paths.handle_udp(now, somewhere(packet.len() as u8), &packet);
            paths.handle_relay(now, RegionId(u16::from(kind)), node(2), &packet);
            paths.handle_timeout(now);
            events(&mut paths);
        }
        prop_assert!(!is_direct(&paths));
    }

    /// A good packet that is cut, lengthened or damaged.
    #[test]
    fn damage_is_survived(cut in 0usize..140, at in 0usize..124, flip in 1u8..) {
        let now = Instant::now();
        let mut paths = engine(now);
        events(&mut paths);
        let good = sealed(&disco(2), 1, &ping(1, node(2)));
        let mut short = good.clone();
        short.resize(cut, 0);
        let mut damaged = good.clone();
        damaged[at] ^= flip;
        for packet in [short, damaged] {
            if packet != good {
                paths.handle_udp(now, somewhere(50), &packet);
                prop_assert_eq!(events(&mut paths), vec![]);
            }
        }
        paths.handle_udp(now, somewhere(50), &good);
        prop_assert_eq!(events(&mut paths).len(), 2);
    }

    /// The same inputs give the same outputs.
    #[test]
    fn runs_repeat(seed in 0u64..1000) {
        let run = || {
            let mut world = World::new(&[Kind::Easy, Kind::Hard]);
            let config = PathsConfig::default();
            world.nodes[0].engine = crate::world::Engine::Ours(Box::new(Paths::new(
                config, world.nodes[0].key, DiscoSecret::from_bytes(&[101; 32]), Box::new(SeededEntropy(seed)),
            )));
            world.join(0);
            world.join(1);
            world.run(ms(700));
            let start = world.start;
            let history = world.nodes.iter().flat_map(|node| &node.history);
            let history: Vec<_> = history.map(|(at, way)| (*at - start, *way)).collect();
            (history, world.nodes[0].udp_sent, world.nodes[1].udp_sent)
        };
        prop_assert_eq!(run(), run());
    }
}

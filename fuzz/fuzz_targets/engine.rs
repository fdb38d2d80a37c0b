//! A whole node without its shell: messages of a hostile coordination server,
//! and datagrams of unauthenticated senders and peers.
#![no_main]

use libfuzzer_sys::fuzz_target;
use warren_control_types::{MapResponse, RegionId};
use warren_fuzz::json::Message as _;
use warren_fuzz::{Clock, address, disco, first_map, node, steps};
use warren_keys::sealed_box::NONCE_LEN;
use warren_node_core::{Engine, EngineConfig};
use warren_node_types::TailnetRanges;
use warren_paths::LocalAddresses;
use warren_testkit::SeededEntropy;
use warren_tunnel::{Handshakes, PeerIndex};
use warren_wire::disco::MAGIC;

fuzz_target!(|bytes: &[u8]| {
    let mut clock = Clock::default();
    let config = EngineConfig {
        node_key: node(1),
        disco_key: disco(1),
        flow_slots: Some(64),
        aead: warren_tunnel::Aead::default(),
        ranges: TailnetRanges::DEFAULT,
        lock: Default::default(),
    };
    let mut engine = Engine::new(config, clock.now, Box::new(SeededEntropy(1)));
    engine
        .apply_map(clock.now, clock.wall, first_map())
        .expect("a whole map");
    engine.set_local_addresses(
        clock.now,
        LocalAddresses {
            port_v4: Some(41641),
            ..LocalAddresses::default()
        },
    );
    let mut peer = Handshakes::new(node(2), Box::new(SeededEntropy(4)));
    peer.add_peer(clock.now, PeerIndex(0), node(1).public());

    for step in steps(bytes) {
        let from = address(step.arg);
        match step.kind % 8 {
            0 => {
                if let Ok(message) = MapResponse::read(step.bytes) {
                    let _ = engine.apply_map(clock.now, clock.wall, message);
                }
            }
            1 => engine.begin_map_stream(),
            2 => engine.handle_udp(clock.now, clock.wall, from, step.bytes),
            3 => {
                let shared = disco(2)
                    .shared_with(disco(1).public().as_bytes())
                    .expect("honest");
                let mut packet = MAGIC.to_vec();
                packet.extend_from_slice(disco(2).public().as_bytes());
                shared.seal(&[9; NONCE_LEN], step.bytes, &mut packet);
                engine.handle_udp(clock.now, clock.wall, from, &packet);
            }
            4 => engine.handle_relay(
                clock.now,
                clock.wall,
                RegionId(u16::from(step.arg & 3)),
                node(2 + (step.arg >> 7)).public(),
                step.bytes,
            ),
            5 => clock.pass(step.arg),
            6 => {
                peer.want_session(clock.now, clock.wall, PeerIndex(0));
                while let Some(event) = peer.poll_event() {
                    if let warren_tunnel::Event::Send { datagram, .. } = event {
                        engine.handle_udp(clock.now, clock.wall, from, &datagram);
                    }
                }
            }
            _ => drop(engine.ping(
                clock.now,
                from.ip(),
                step.arg.into(),
                usize::from(step.arg) * 8,
            )),
        }
        engine.handle_timeout(clock.now, clock.wall);
        peer.handle_timeout(clock.now, clock.wall);
        let mut count = 0;
        while engine.poll_output().is_some() {
            count += 1;
            assert!(count < 5_000, "one input, no end of outputs");
        }
        if let Some((at, reason)) = engine.next_deadline() {
            assert!(at > clock.now, "{reason:?} stays due: the shell would spin");
        }
        let known = engine.netmap().peers.len();
        assert!(engine.peer_reports(clock.now).len() <= known);
    }
});

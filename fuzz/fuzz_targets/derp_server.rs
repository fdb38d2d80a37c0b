//! A relay and several clients that say anything, one of them a mesh peer:
//! logins, requests, the registry's routes and the queues.
#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use warren_derp::server::{Connection, MAX_PAYLOAD, Request};
use warren_derp::{
    ConnId, FrameBuffer, Identity, Limits, LinkId, Notice, OverLong, Presence, Registry, Route,
    SendQueue,
};
use warren_fuzz::{Clock, damage, node, steps};
use warren_keys::DerpMeshKey;
use warren_keys::sealed_box::NONCE_LEN;
use warren_wire::derp::{Frame, FrameKind, PeerFlags, split};

const CLIENTS: u8 = 4;

struct Client {
    connection: Connection,
    queue: SendQueue,
    open: bool,
}

fn log_in(relay: &Identity, plain: &[u8], hurt: &[u8]) {
    let shared = node(1)
        .shared_with(relay.public().as_bytes())
        .expect("an honest key");
    let mut sealed = Vec::new();
    shared.seal(&[3; NONCE_LEN], plain, &mut sealed);
    let intact = sealed.clone();
    damage(&mut sealed, hurt);
    let payload = [&node(1).public().as_bytes()[..], &sealed].concat();
    match relay.open_login(FrameKind::ClientInfo, &payload) {
        Ok(proven) => {
            assert_eq!(sealed, intact);
            assert_eq!(proven.key, node(1).public());
            assert!(!proven.is_mesh_peer || proven.info.mesh_key.is_some());
        }
        Err(error) => drop(error.to_string()),
    }
    assert!(relay.open_login(FrameKind::ClientInfo, plain).is_err());
}

fuzz_target!(|bytes: &[u8]| {
    let mut clock = Clock::default();
    let relay = Identity::new(node(9), Some(DerpMeshKey::from_bytes([5; 32])));
    let mut registry: Registry<u8, u8> = Registry::new(relay.public());
    let presence = Presence {
        source: None,
        flags: PeerFlags::REGULAR,
    };
    let mut clients: Vec<Client> = (0..CLIENTS)
        .map(|n| {
            // The first two are one node, connected twice.
            let key = node(n.max(1)).public();
            registry.connect(ConnId(n.into()), key, n, presence);
            Client {
                connection: Connection::new(clock.now, key, n == CLIENTS - 1),
                queue: SendQueue::new(Limits::NODE),
                open: true,
            }
        })
        .collect();

    for step in steps(bytes) {
        clock.now += Duration::from_millis(step.kind.into());
        let n = usize::from(step.arg % CLIENTS);
        let id = ConnId(n as u64);
        let mut notices: Vec<Notice<u8>> = Vec::new();
        match step.kind % 8 {
            0 => log_in(
                &relay,
                step.bytes,
                if step.arg & 4 == 0 { &[] } else { step.bytes },
            ),
            1 => {
                notices = registry.disconnect(id);
                clients[n].open = false;
            }
            2 if step.arg & 4 == 0 => {
                registry.add_forwarder(
                    LinkId(u64::from(step.arg >> 3)),
                    node(7).public(),
                    step.arg,
                );
            }
            2 => notices = registry.remove_link(LinkId(u64::from(step.arg >> 3))),
            _ => {
                let mut buffer = FrameBuffer::new(MAX_PAYLOAD, OverLong::SkipUnknown);
                buffer.push(step.bytes);
                let Ok(frames) = buffer.frames() else {
                    continue;
                };
                for frame in frames {
                    if !clients[n].open {
                        break;
                    }
                    let key = clients[n].connection.key();
                    let mesh = clients[n].connection.is_mesh_peer();
                    let request =
                        clients[n]
                            .connection
                            .handle_frame(clock.now, frame.kind, frame.payload);
                    match request {
                        Err(_) => {
                            notices.extend(registry.disconnect(id));
                            clients[n].open = false;
                        }
                        Ok(Request::Send { to, packet }) => {
                            registry.note_spoke(id);
                            if let Route::Local {
                                handle, id: conn, ..
                            } = registry.route(&to)
                            {
                                let handle = usize::from(*handle);
                                assert!(clients[handle].open, "a packet for a closed connection");
                                assert_eq!(clients[handle].connection.key(), to);
                                let frame = Frame::RecvPacket { from: key, packet };
                                clients[handle].queue.push_packet(clock.now, &frame);
                                registry.note_heard(key, conn);
                            }
                        }
                        Ok(Request::Forward { to, .. }) => {
                            assert!(mesh);
                            assert!(
                                !matches!(registry.route_local(&to), Route::Mesh { .. }),
                                "no loops"
                            );
                        }
                        Ok(Request::Watch) => {
                            assert!(mesh);
                            for news in registry.watch(id) {
                                let _ = clients[n].queue.push_control(&news.frame());
                            }
                        }
                        Ok(Request::Close(key)) => {
                            assert!(mesh);
                            let _ = registry.connections(&key);
                        }
                        Ok(Request::Pong(data)) => clients[n].queue.push_pong(data),
                        Ok(Request::Home { .. } | Request::Nothing | Request::Unknown) => {}
                    }
                }
            }
        }
        for notice in notices {
            let to = usize::from(notice.to);
            assert!(clients[to].open, "news for a closed connection");
            let _ = clients[to].queue.push_control(&notice.news.frame());
        }
    }

    let census = registry.census();
    assert_eq!(
        census.connections,
        clients.iter().filter(|client| client.open).count()
    );
    let mut out = Vec::new();
    for client in &mut clients {
        while client.queue.take(clock.now, &mut out) {
            let mut rest = &out[..];
            while !rest.is_empty() {
                let (kind, payload, tail) = split(rest).expect("whole frames");
                Frame::parse(kind, payload).expect("good frames");
                rest = tail;
            }
        }
        assert!(client.queue.is_empty());
    }
});

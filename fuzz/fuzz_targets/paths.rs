//! Path finding: all input of unauthenticated senders, relays and peers, in any
//! order, while time passes.
#![no_main]

use std::collections::BTreeSet;

use libfuzzer_sys::fuzz_target;
use warren_control_types::RegionId;
use warren_fuzz::{Clock, address, disco, first_map, node, steps};
use warren_keys::sealed_box::{NONCE_LEN, SharedKey};
use warren_paths::{
    Event, Family, LocalAddresses, MappingProtocols, PathAddr, Paths, PathsConfig, PeerIndex,
    PeerInfo, PeerRelayRole, PortMapReport, SearchSocket, SocketOrder,
};
use warren_testkit::SeededEntropy;
use warren_wire::disco::{
    AllocateRelayEndpointResponse, BindRelayEndpoint, Envelope, MAGIC, Message, Pong, RelayEndpoint,
};
use warren_wire::geneve::{Header, Payload};
use warren_wire::stun::{self, Request, Response};

struct World {
    paths: Paths,
    clock: Clock,
    /// Datagrams sent last, with their receivers.
    sent: Vec<(std::net::SocketAddr, Vec<u8>)>,
    pinged: BTreeSet<std::net::SocketAddr>,
    relays_wanted: BTreeSet<RegionId>,
    /// The port search with open sockets.
    search: Option<u32>,
}

/// The key of the relay server.
const SERVER: u8 = 4;

fn shared(n: u8) -> SharedKey {
    disco(n)
        .shared_with(disco(1).public().as_bytes())
        .expect("an honest key")
}

/// `body` in an envelope of peer `n`.
fn seal(n: u8, body: &[u8]) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.extend_from_slice(disco(n).public().as_bytes());
    shared(n).seal(&[9; NONCE_LEN], body, &mut out);
    out
}

impl World {
    fn new() -> Self {
        let clock = Clock::default();
        let map = first_map();
        let mut derp_map = warren_control_types::DerpMap::default();
        derp_map.merge(map.derp_map.expect("written well"));
        let mut paths = Paths::new(
            PathsConfig::default(),
            node(1).public(),
            disco(1),
            Box::new(SeededEntropy(1)),
        );
        paths.set_control_connected(true);
        paths.set_derp_map(clock.now, &derp_map);
        for n in [2, 3] {
            paths.upsert_peer(clock.now, PeerIndex(n.into()), info(n, &[0, 1]));
        }
        paths.set_local_addresses(clock.now, local(1));
        Self {
            paths,
            clock,
            sent: Vec::new(),
            pinged: BTreeSet::new(),
            relays_wanted: BTreeSet::new(),
            search: None,
        }
    }

    fn settle(&mut self) {
        self.paths.handle_timeout(self.clock.now);
        let mut count = 0;
        while let Some(event) = self.paths.poll_event() {
            count += 1;
            assert!(count < 2_000, "one input, no end of events");
            match event {
                Event::SendUdp { to, packet } => {
                    assert!(
                        to.port() != 0 && !to.ip().is_unspecified(),
                        "no peer can be at {to}"
                    );
                    let content = Header::parse(&packet).map_or(&packet[..], |(_, rest)| rest);
                    assert!(packet.len() <= 1_500 || content.starts_with(&MAGIC));
                    self.pinged.insert(to);
                    self.sent.push((to, packet));
                }
                Event::SendRelay { to, .. } => {
                    assert!([2, 3].map(|n| node(n).public()).contains(&to));
                }
                Event::Destination { peer, destination } => {
                    assert!(peer.0 == 2 || peer.0 == 3);
                    if let Some(to) = destination.paths().find_map(PathAddr::udp_target) {
                        assert!(
                            self.pinged.contains(&to),
                            "{to} never proved that it listens"
                        );
                    }
                }
                Event::ConnectRelay(region) => drop(self.relays_wanted.insert(region)),
                Event::CloseRelay(region) => drop(self.relays_wanted.remove(&region)),
                Event::Endpoints(_)
                | Event::NetInfo(_)
                | Event::HomeRelay(_)
                | Event::Pong { .. }
                | Event::PingFailed { .. }
                | Event::ProbeRelayHttps { .. }
                | Event::WantPortMapping { .. }
                | Event::ResolveHost { .. } => {}
                Event::RelayEndpointRequested { clients, .. } => {
                    assert!(
                        [2, 3]
                            .map(|n| disco(n).public())
                            .iter()
                            .any(|key| clients.contains(key))
                    );
                }
                Event::Sockets(order) => self.order_sockets(order),
            }
        }
        let excess = self.sent.len().saturating_sub(64);
        self.sent.drain(..excess);
        if let Some((at, reason)) = self.paths.next_deadline() {
            assert!(
                at > self.clock.now,
                "{reason:?} stays due: the shell would spin"
            );
        }
    }

    /// Follows the orders about sockets of port searches, as a shell does.
    fn order_sockets(&mut self, order: SocketOrder) {
        match order {
            SocketOrder::Open { search, count } => {
                assert!(count <= 256);
                self.search = Some(search);
            }
            SocketOrder::Send { socket, to, packet } => {
                assert_eq!(Some(socket.search), self.search);
                assert!(socket.number < 256);
                self.pinged.insert(to);
                self.sent.push((to, packet));
            }
            SocketOrder::Keep { socket, .. } => {
                assert_eq!(Some(socket.search), self.search);
                assert!(socket.number < 256);
            }
            SocketOrder::Close { search } => {
                assert_eq!(self.search.take(), Some(search));
            }
            SocketOrder::Release { .. } | SocketOrder::CloseAll => {}
        }
    }

    /// Answers the datagram sent `back` before the last one, if it is a
    /// question; `from` is where the answer seems to come from.
    fn answer(&mut self, back: u8, seen_as: std::net::SocketAddr, misplaced: bool) {
        let Some((to, packet)) = self.sent.iter().rev().nth(back.into()) else {
            return;
        };
        let from = if misplaced { seen_as } else { *to };
        let (header, packet) = match Header::parse(packet) {
            Some((header, content)) => (Some(header), content),
            None => (None, &packet[..]),
        };
        if header.is_some_and(|header| header.payload == Payload::DiscoControl) {
            self.challenge(from, header, packet.to_vec());
            return;
        }
        let answer = if let Ok(request) = Request::parse(packet) {
            Response::to(&request, seen_as).emit()
        } else {
            let Ok(envelope) = Envelope::parse(packet) else {
                return;
            };
            let opened = [2, 3]
                .iter()
                .find_map(|n| Some((*n, shared(*n).open(envelope.sealed).ok()?)));
            let Some((n, body)) = opened else {
                panic!("a disco message that no peer can read");
            };
            let Ok(Message::Ping(ping)) = Message::parse(&body) else {
                return;
            };
            seal(
                n,
                &Message::Pong(Pong {
                    tx: ping.tx,
                    source: stun::unmap(seen_as),
                })
                .emit(),
            )
        };
        let answer = header.map_or(answer.clone(), |header| header.wrap(&answer));
        assert!(self.paths.handle_udp(self.clock.now, from, &answer));
    }

    /// The relay server answers a bind message.
    fn challenge(&mut self, from: std::net::SocketAddr, header: Option<Header>, packet: Vec<u8>) {
        let Some((header, envelope)) = header.zip(Envelope::parse(&packet).ok()) else {
            return;
        };
        let body = shared(SERVER).open(envelope.sealed);
        let Ok(body) = body else {
            panic!("a bind message that the server cannot read");
        };
        let Ok(Message::BindRelayEndpoint(bind)) = Message::parse(&body) else {
            return;
        };
        assert_eq!(bind.vni, header.vni.get());
        let challenge = Message::BindRelayEndpointChallenge(BindRelayEndpoint {
            challenge: [7; 32],
            ..bind
        });
        let answer = header.wrap(&seal(SERVER, &challenge.emit()));
        assert!(self.paths.handle_udp(self.clock.now, from, &answer));
    }
}

/// An endpoint for us and peer `n`, of which only the clients and the server are chosen well.
fn endpoint(n: u8, arg: u8, bytes: &[u8]) -> RelayEndpoint {
    let mut clients = [disco(1).public(), disco(n).public()];
    clients.sort_unstable_by_key(|key| *key.as_bytes());
    RelayEndpoint {
        server: disco(SERVER).public(),
        clients,
        lamport_id: u64::from(arg >> 4),
        vni: u32::from(arg & 15),
        bind_lifetime: u64::from(arg) << 28,
        steady_lifetime: u64::from(arg) << 30,
        addresses: bytes.iter().map(|n| address(*n)).collect(),
    }
}

fn info(n: u8, endpoints: &[u8]) -> PeerInfo {
    PeerInfo {
        node_key: node(n).public(),
        disco_key: Some(disco(n).public()),
        endpoints: endpoints.iter().map(|n| address(*n)).collect(),
        home_derp: Some(RegionId(u16::from(n % 2) + 1)),
        peer_relay: match endpoints.first() {
            Some(0xff) => PeerRelayRole::None,
            _ if n == 2 => PeerRelayRole::Client,
            _ => PeerRelayRole::Server,
        },
    }
}

fn local(arg: u8) -> LocalAddresses {
    LocalAddresses {
        port_v4: (arg & 1 != 0).then_some(41641),
        port_v6: (arg & 2 != 0).then_some(41641),
        interfaces: vec![address(1).ip(), address(2).ip()],
        explicit: Vec::new(),
    }
}

/// Any report of a port mapper, of which only the address is chosen well.
fn port_map_report(external: std::net::SocketAddr, bytes: &[u8]) -> PortMapReport {
    let number = |at: usize| bytes.get(at).copied().unwrap_or_default();
    let family = if number(1) & 1 == 0 {
        Family::V4
    } else {
        Family::V6
    };
    match number(0) % 4 {
        0 => PortMapReport::Unmapped(family),
        1 => PortMapReport::Protocols(MappingProtocols {
            upnp: Some(number(1) & 1 == 0),
            nat_pmp: None,
            pcp: Some(number(1) & 2 == 0),
        }),
        _ => PortMapReport::Mapped {
            external,
            lifetime: std::time::Duration::from_secs(u64::from(number(1)) << number(2).min(56)),
        },
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut world = World::new();
    world.settle();
    for step in steps(bytes) {
        let now = world.clock.now;
        let n = 2 + (step.arg & 1);
        let peer = PeerIndex(n.into());
        let from = address(step.arg >> 1);
        let region = RegionId(u16::from(step.arg & 3));
        let paths = &mut world.paths;
        match step.kind % 19 {
            0 => {
                let ours = paths.handle_udp(now, from, step.bytes);
                let relayed = Header::parse(step.bytes).is_some();
                assert!(!ours || relayed || step.bytes.len() >= 20);
            }
            1 if step.arg == 255 => {
                if let Some(search) = world.search {
                    let socket = SearchSocket { search, number: 3 };
                    paths.handle_search_udp(now, socket, from, &seal(n, step.bytes));
                }
            }
            1 => assert!(paths.handle_udp(now, from, &seal(n, step.bytes))),
            2 => drop(paths.handle_relay(now, region, node(n).public(), step.bytes)),
            3 => assert!(paths.handle_relay(now, region, node(n).public(), &seal(n, step.bytes))),
            4 | 5 => world.clock.pass(step.arg),
            6 => paths.note_sent(now, peer),
            7 => paths.ping(now, peer, step.arg.into(), Some(u16::from(step.arg) * 8)),
            8 => world.answer(step.arg & 7, address(step.arg >> 3), false),
            9 => world.answer(step.arg & 7, address(step.arg >> 3), true),
            10 if step.arg & 4 == 0 => paths.relay_connected(now, region),
            10 => paths.relay_disconnected(now, region),
            11 => paths.relay_peer_gone(now, region, node(n).public()),
            12 => match step.arg >> 5 {
                0 => paths.link_changed(now),
                1 => paths.remeasure(now),
                2 => paths.host_resolved(now, "relay.example.com", vec![from.ip()]),
                3 => paths.relay_https_latency(now, region, std::time::Duration::from_millis(9)),
                4 => paths.handle_port_map(now, port_map_report(from, step.bytes)),
                _ => paths.set_local_addresses(now, local(step.arg)),
            },
            13 => paths.upsert_peer(now, peer, info(n, step.bytes)),
            14 => paths.remove_peer(now, peer),
            16 => {
                let via = Message::CallMeMaybeVia(endpoint(n, step.arg, step.bytes));
                if !step.bytes.is_empty() {
                    paths.handle_relay(now, region, node(n).public(), &seal(n, &via.emit()));
                }
            }
            17 => {
                let response = AllocateRelayEndpointResponse {
                    generation: u32::from(step.arg >> 2),
                    endpoint: endpoint(2, step.arg, step.bytes),
                };
                let response = Message::AllocateRelayEndpointResponse(response);
                paths.handle_relay(now, region, node(3).public(), &seal(3, &response.emit()));
            }
            18 => {
                if let Some(vni) = warren_node_types::Vni::new(u32::from(step.arg & 15)) {
                    let payload = match step.arg >> 6 {
                        0 => Payload::Disco,
                        1 => Payload::DiscoControl,
                        _ => Payload::WireGuard,
                    };
                    let content = seal(n, step.bytes);
                    paths.handle_udp(now, from, &Header { payload, vni }.wrap(&content));
                }
            }
            // Every answer at once: the quick way to a network that works.
            _ => {
                for back in 0..16 {
                    world.answer(back, address(0), false);
                }
            }
        }
        world.settle();
    }
});

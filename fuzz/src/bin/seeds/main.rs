//! Writes the seed corpus: for every target a few small inputs that our own
//! emitters make, so that a short run starts behind the first checks.
//!
//! `cargo run --bin seeds` in this directory; equal code gives equal files.

#[path = "../../../crates/dataplane/tests/support/mod.rs"]
mod support;

// Instrumented code needs the counters that live in here.
use libfuzzer_sys as _;

use std::path::Path;
use std::{fs, io};

use serde_json::{Value, json};
use support::{Recipe, Transport};
use warren_channel::{ClientHandshake, accept, early};
use warren_dataplane::VnetHdr;
use warren_fuzz::{
    Counting, address, disco, first_map_json, lock_secret, locked, machine, node, put_step,
};
use warren_lock::{Aum, Change, Meta, NodeKeySignature, TrustedKey, WrappedAuthKey};
use warren_tunnel::{Event, Handshakes, PeerIndex, Source};
use warren_wire::derp::Frame;
use warren_wire::disco::{
    AllocateRelayEndpointRequest, AllocateRelayEndpointResponse, BindRelayEndpoint, Message, Ping,
    PingSender, Pong, RelayEndpoint, TxId,
};
use warren_wire::ip::IpPacket;
use warren_wire::ip::icmp::{self, Echo};
use warren_wire::ip::tsmp::{self, RejectReason};
use warren_wire::relay_batch;
use warren_wire::stun::{Request, Response, TransactionId};
use warren_wire::{nat_pmp, pcp};

/// The seeds of one target.
struct Seeds<'a> {
    directory: &'a Path,
    target: &'a str,
}

impl Seeds<'_> {
    fn put(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let directory = self.directory.join(self.target);
        fs::create_dir_all(&directory)?;
        fs::write(directory.join(name), bytes)
    }

    /// A sequence of steps: kind, argument, bytes.
    fn story(&self, name: &str, steps: &[(u8, u8, &[u8])]) -> io::Result<()> {
        let mut out = Vec::new();
        for (kind, arg, bytes) in steps {
            put_step(&mut out, *kind, *arg, bytes);
        }
        self.put(name, &out)
    }
}

fn bytes(value: &Value) -> Vec<u8> {
    value.to_string().into_bytes()
}

fn tcp(v6: bool, payload: usize) -> Recipe {
    Recipe {
        v6,
        extension: v6,
        ports: (1000, 80),
        id: 7,
        dont_fragment: true,
        transport: Transport::Tcp {
            sequence: 1,
            flags: 2,
            options: 4,
        },
        payload: vec![7; payload],
    }
}

fn datagram(v6: bool, payload: usize) -> Recipe {
    Recipe {
        extension: false,
        transport: Transport::Udp,
        ports: (5000, 53),
        ..tcp(v6, payload)
    }
}

fn ping(v6: bool) -> Vec<u8> {
    let [own, other] = [1, 2].map(|n| support::addresses(n)[usize::from(v6)]);
    icmp::echo_request(
        own,
        other,
        Echo {
            ident: 1,
            sequence: 2,
            data: b"hello",
        },
    )
    .expect("one family")
}

fn port_mapping(seeds: &Path) -> io::Result<()> {
    let target = Seeds {
        directory: seeds,
        target: "port_mapping",
    };
    let map = nat_pmp::Request::MapUdp {
        internal_port: 41641,
        suggested_port: 0,
        lifetime: 7200,
    };
    target.put("pmp-request", &map.emit())?;
    let mapped = nat_pmp::Response::MappedUdp {
        epoch: 9,
        internal_port: 41641,
        external_port: 1025,
        lifetime: 7200,
    };
    target.put("pmp-response", &mapped.emit())?;
    let external = nat_pmp::Response::ExternalAddress {
        epoch: 9,
        address: [198, 51, 100, 1].into(),
    };
    target.put("pmp-address", &external.emit())?;
    let body = pcp::Body::Map(pcp::Mapping {
        nonce: [7; 12],
        internal_port: 41641,
        external: ([198, 51, 100, 1], 1025).into(),
    });
    let request = pcp::Request {
        lifetime: 7200,
        client: [10, 0, 0, 2].into(),
        body,
    };
    target.put("pcp-request", &request.emit())?;
    let response = pcp::Response {
        result: pcp::ResultCode::Success,
        lifetime: 7200,
        epoch: 9,
        body,
    };
    target.put("pcp-response", &response.emit())?;

    // Both halves of a grant, and time until the renewal.
    let mut grant = Vec::new();
    put_step(&mut grant, 3, 0, &external.emit());
    put_step(&mut grant, 3, 0, &external.emit());
    put_step(&mut grant, 3, 0, &mapped.emit());
    put_step(&mut grant, 0, 255, &[]);
    let mapper = Seeds {
        directory: seeds,
        target: "port_mapper",
    };
    mapper.put("pmp-grant", &grant)
}

fn disco_messages() -> Vec<(&'static str, Message)> {
    let tx = TxId([1; 12]);
    let bind = BindRelayEndpoint {
        vni: 1,
        generation: 2,
        remote: disco(2).public(),
        challenge: [3; 32],
    };
    let clients = [disco(1).public(), disco(2).public()];
    let endpoint = RelayEndpoint {
        server: disco(3).public(),
        clients,
        lamport_id: 4,
        vni: 1,
        bind_lifetime: 30,
        steady_lifetime: 300,
        addresses: vec![address(0), address(2)],
    };
    let sender = Some(PingSender {
        node: node(2).public(),
        padding: 8,
    });
    vec![
        ("ping", Message::Ping(Ping { tx, sender })),
        (
            "pong",
            Message::Pong(Pong {
                tx,
                source: address(2),
            }),
        ),
        ("call", Message::CallMeMaybe(vec![address(0), address(2)])),
        ("bind", Message::BindRelayEndpoint(bind)),
        ("via", Message::CallMeMaybeVia(endpoint.clone())),
        (
            "allocate",
            Message::AllocateRelayEndpointRequest(AllocateRelayEndpointRequest {
                clients,
                generation: 1,
            }),
        ),
        (
            "allocated",
            Message::AllocateRelayEndpointResponse(AllocateRelayEndpointResponse {
                generation: 1,
                endpoint,
            }),
        ),
    ]
}

fn derp_frames(frames: &[Frame<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    for frame in frames {
        frame.emit(&mut out);
    }
    out
}

/// An initiation of node 1 to node 2, and the response.
fn handshake() -> [Vec<u8>; 2] {
    let now = std::time::Instant::now();
    let mut near = Handshakes::new(node(1), Box::new(Counting(1)));
    let mut far = Handshakes::new(node(2), Box::new(Counting(2)));
    near.add_peer(now, PeerIndex(1), node(2).public());
    far.add_peer(now, PeerIndex(1), node(1).public());
    let sent = |hs: &mut Handshakes| loop {
        match hs.poll_event() {
            Some(Event::Send { datagram, .. }) => return datagram,
            Some(_) => {}
            None => panic!("a handshake says something"),
        }
    };
    near.want_session(now, warren_fuzz::WALL, PeerIndex(1));
    let initiation = sent(&mut near);
    far.handle_datagram(now, warren_fuzz::WALL, Source::Udp(address(0)), &initiation);
    [initiation, sent(&mut far)]
}

fn packets(seeds: &Path) -> io::Result<()> {
    let ip = Seeds {
        directory: seeds,
        target: "ip",
    };
    ip.put("tcp4", &tcp(false, 4).build())?;
    ip.put("tcp6-extension", &tcp(true, 4).build())?;
    ip.put("udp4", &datagram(false, 4).build())?;
    ip.put("ping4", &ping(false))?;
    ip.put("ping6", &ping(true))?;
    let syn = tcp(false, 0).build();
    let syn = IpPacket::parse(&syn).expect("a packet");
    ip.put(
        "reject",
        &tsmp::reject_for(&syn, RejectReason::Acl).expect("a first packet"),
    )?;
    let [own, other] = [1, 2].map(|n| support::addresses(n)[0]);
    ip.put(
        "tsmp-ping",
        &tsmp::Message::Ping([1; 8])
            .packet(own, other)
            .expect("one family"),
    )?;
    let error = icmp_error(&datagram(false, 0).build());
    ip.put("unreachable", &error)?;

    let plain = |packet: &[u8]| [&VnetHdr::PLAIN.to_bytes()[..], packet].concat();
    let dataplane = Seeds {
        directory: seeds,
        target: "dataplane",
    };
    let big = tcp(false, 3_000).frame(Some(1_000));
    dataplane.story(
        "out",
        &[
            (0, 0, &plain(&tcp(false, 10).build())),
            (0, 0, &datagram(true, 10).frame(None)),
            (0, 0, &plain(&ping(false))),
        ],
    )?;
    dataplane.story("superpacket", &[(0, 0, &big)])?;
    let segments: Vec<Vec<u8>> = (0..3u32)
        .map(|i| {
            let transport = Transport::Tcp {
                sequence: 1 + 20 * i,
                flags: 0x10,
                options: 0,
            };
            Recipe {
                transport,
                ..tcp(false, 20)
            }
            .build()
        })
        .collect();
    dataplane.story(
        "joined-tcp",
        &[
            (1, 1, &segments[0]),
            (1, 1, &segments[1]),
            (1, 1, &segments[2]),
        ],
    )?;
    let one = datagram(true, 30).build();
    dataplane.story(
        "joined-udp",
        &[
            (1, 1, &one),
            (1, 1, &one),
            (1, 0, &one),
            (1, 1, &ping(true)),
        ],
    )?;
    let [initiation, _] = handshake();
    dataplane.story(
        "strangers",
        &[
            (4, 148, &initiation),
            (4, 32, &[4; 64]),
            (1, 1, &[]),
            (5, 200, &ping(false)),
        ],
    )?;

    let rules = json!([
        {"SrcIPs": ["100.64.0.1", "fd7a:115c:a1e0::1"], "DstPorts": [{"IP": "100.64.0.2",
            "Ports": {"First": 80, "Last": 90}}], "IPProto": [6, 17]},
        {"SrcIPs": ["100.64.0.0-100.64.0.9", "cap:x"], "DstPorts": [{"IP": "*",
            "Ports": {"First": 53, "Last": 53}}]},
        {"SrcIPs": ["*"], "CapGrant": [{"Dsts": ["100.64.0.1/32"], "CapMap": {"c": [1]}}]},
    ]);
    let filter = Seeds {
        directory: seeds,
        target: "filter",
    };
    let incoming = swap_ends(&tcp(false, 0).build());
    let answered = swap_ends(&datagram(false, 4).build());
    filter.story(
        "rules",
        &[
            (0, 0, &bytes(&rules)),
            (1, 1, &incoming),
            (0, 1, &datagram(false, 4).build()),
            (1, 1, &answered),
        ],
    )?;
    filter.story(
        "exit",
        &[
            (0, 1, &bytes(&rules)),
            (1, 9, &swap_ends(&error)),
            (1, 1, &ping(true)),
        ],
    )
}

/// The packet as its receiver would answer it, checksums left alone.
fn swap_ends(packet: &[u8]) -> Vec<u8> {
    let mut out = packet.to_vec();
    let (from, len) = if packet[0] >> 4 == 4 {
        (12, 4)
    } else {
        (8, 16)
    };
    out[from..from + len].copy_from_slice(&packet[from + len..from + 2 * len]);
    out[from + len..from + 2 * len].copy_from_slice(&packet[from..from + len]);
    let ports = from + 2 * len;
    out[ports..ports + 2].copy_from_slice(&packet[ports + 2..ports + 4]);
    out[ports + 2..ports + 4].copy_from_slice(&packet[ports..ports + 2]);
    out
}

/// "Port unreachable" about `packet`.
fn icmp_error(packet: &[u8]) -> Vec<u8> {
    let mut out = ping(false)[..20].to_vec();
    out.extend_from_slice(&[3, 3, 0, 0, 0, 0, 0, 0]);
    out.extend_from_slice(&packet[..28]);
    let total = out.len() as u16;
    out[2..4].copy_from_slice(&total.to_be_bytes());
    out
}

fn path_finding(seeds: &Path) -> io::Result<()> {
    let batches = Seeds {
        directory: seeds,
        target: "relay_batch",
    };
    let batch = |segment_len: usize, bytes: usize| -> Vec<u8> {
        let header = relay_batch::header(segment_len).unwrap_or_default();
        [&header[..], &vec![4; bytes]].concat()
    };
    batches.put("two", &batch(96, 192))?;
    batches.put("short-last", &batch(1312, 1312 + 96))?;
    batches.put("one", &batch(96, 96))?;
    batches.put("too-small", &batch(16, 96))?;
    port_mapping(seeds)?;
    let stun = Seeds {
        directory: seeds,
        target: "stun",
    };
    let request = Request {
        transaction: TransactionId([5; 12]),
    };
    stun.put("request", &request.emit())?;
    stun.put("request-unsigned", &request.emit()[..32])?;
    stun.put("response4", &Response::to(&request, address(0)).emit())?;
    stun.put("response6", &Response::to(&request, address(2)).emit())?;

    let target = Seeds {
        directory: seeds,
        target: "disco",
    };
    let mut peer_story = Vec::new();
    for (name, message) in disco_messages() {
        target.put(name, &message.emit())?;
        peer_story.push(message.emit());
    }
    let shared = disco(2)
        .shared_with(disco(1).public().as_bytes())
        .expect("an honest key");
    let nonce = [7; warren_keys::sealed_box::NONCE_LEN];
    let (_, first) = &disco_messages()[0];
    let sealed = warren_wire::disco::Envelope::seal(&disco(2).public(), &shared, &nonce, first);
    target.put("envelope", &sealed)?;

    let paths = Seeds {
        directory: seeds,
        target: "paths",
    };
    // A network that works, then a path that dies.
    let works: &[(u8, u8, &[u8])] = &[
        (10, 1, &[]),
        (10, 2, &[]),
        (15, 0, &[]),
        (6, 0, &[]),
        (15, 0, &[]),
        (5, 0x5f, &[]),
        (15, 0, &[]),
        (7, 0x40, &[]),
        (15, 0, &[]),
        (6, 0, &[]),
        (5, 0xcf, &[]),
        (6, 0, &[]),
        (5, 0xdf, &[]),
    ];
    paths.story("works", works)?;
    paths.story(
        "peer-speaks",
        &[
            (10, 1, &[]),
            (1, 0, &peer_story[0]),
            (3, 0, &peer_story[2]),
            (15, 0, &[]),
            (1, 1, &peer_story[1]),
            (3, 1, &peer_story[4]),
        ],
    )?;
    paths.story(
        "changes",
        &[
            (13, 0, &[0, 2, 8]),
            (15, 0, &[]),
            (12, 0, &[]),
            (12, 0xe3, &[]),
            (8, 0x10, &[]),
            (9, 0x11, &[]),
            (14, 0, &[]),
            (13, 0, &[1]),
            (5, 0xff, &[]),
            (15, 0, &[]),
        ],
    )?;
    paths.story(
        "strangers",
        &[
            (0, 0, &sealed),
            // From port 0, where no answer can go.
            (1, 0xa2, &peer_story[0]),
            (2, 1, &sealed),
            (0, 4, &request.emit()),
            (0, 4, &Response::to(&request, address(0)).emit()),
            (11, 2, &[]),
        ],
    )?;

    let engine = Seeds {
        directory: seeds,
        target: "engine",
    };
    let [initiation, response] = handshake();
    engine.story(
        "meets",
        &[
            (6, 0, &[]),
            (3, 0, &peer_story[0]),
            (5, 0x5f, &[]),
            (2, 0, &initiation),
            (2, 0, &response),
            (4, 1, &sealed),
            (7, 0, &[]),
            (5, 0xff, &[]),
        ],
    )?;
    let gone = bytes(
        &json!({"PeersRemoved": [3], "PeersChangedPatch": [{"NodeID": 2,
        "Endpoints": ["192.0.2.1:1"], "DERPRegion": 2}], "OnlineChange": {"2": false}}),
    );
    engine.story(
        "map",
        &[
            (0, 0, &gone),
            (3, 0, &peer_story[2]),
            (1, 0, &[]),
            (0, 0, &bytes(&first_map_json())),
        ],
    )
}

fn tunnel(seeds: &Path) -> io::Result<()> {
    let [initiation, response] = handshake();
    let wireguard = Seeds {
        directory: seeds,
        target: "wireguard",
    };
    wireguard.put("initiation", &initiation)?;
    wireguard.put("response", &response)?;
    wireguard.put("cookie", &[&[3, 0, 0, 0][..], &[1; 60]].concat())?;
    wireguard.put("data", &[&[4, 0, 0, 0][..], &[1; 44]].concat())?;

    let session = Seeds {
        directory: seeds,
        target: "session",
    };
    session.story(
        "order",
        &[
            (1, 0, b"a"),
            (1, 1, b""),
            (1, 5, b""),
            (1, 0xfe, b""),
            (2, 0xff, b""),
            (1, 0, b""),
            (3, 40, b""),
            (0, 0, &[4; 40]),
        ],
    )?;

    let batch = Seeds {
        directory: seeds,
        target: "batch",
    };
    batch.story(
        "full",
        &[
            (47, 255, &[0, 5, 9, 1, 0x45]),
            (30, 0, b""),
            (7, 17, &[0x10, 5, 0, 0, 1, 2, 3]),
        ],
    )?;
    batch.story("small", &[(63, 255, &[16, 0, 40, 0x80]), (69, 9, &[0; 4])])?;

    let handshakes = Seeds {
        directory: seeds,
        target: "handshakes",
    };
    let meets: &[(u8, u8, &[u8])] = &[(4, 0, &[]), (0, 1, &[]), (0, 0, &[]), (6, 1, &[])];
    handshakes.story("meets", meets)?;
    handshakes.story(
        "load",
        &[
            (5, 5, &[]),
            (4, 0, &[]),
            (0, 1, &[]),
            (0, 0, &[]),
            (3, 0xcf, &[]),
            (0, 1, &[]),
            (0, 0, &[]),
        ],
    )?;
    handshakes.story(
        "renewed",
        &[
            &[meets[0], meets[1], meets[2], meets[3]][..],
            &[
                (3, 0xff, &[]),
                (4, 1, &[]),
                (0, 0, &[]),
                (0, 1, &[]),
                (1, 1, &[]),
                (0, 4, &[20, 1]),
                (7, 0, &[]),
            ],
        ]
        .concat(),
    )?;
    handshakes.story(
        "strangers",
        &[(2, 1, &initiation), (2, 0, &response), (2, 1, &[3; 64])],
    )
}

fn relay(seeds: &Path) -> io::Result<()> {
    let key = node(2).public();
    let disco_packet = [&warren_wire::disco::MAGIC[..], &[1; 60]].concat();
    let client = [
        Frame::NotePreferred(true),
        Frame::SendPacket {
            to: key,
            packet: b"packet",
        },
        Frame::SendPacket {
            to: key,
            packet: &disco_packet,
        },
        Frame::Ping([1; 8]),
    ];
    let server = [
        Frame::RecvPacket {
            from: key,
            packet: b"packet",
        },
        Frame::PeerGone {
            key,
            reason: warren_wire::derp::PeerGoneReason::NotHere,
        },
        Frame::PeerPresent {
            key,
            source: Some(address(2)),
            flags: warren_wire::derp::PeerFlags::REGULAR,
        },
        Frame::Health("ill"),
        Frame::Restarting {
            reconnect_in: std::time::Duration::from_millis(5),
            try_for: std::time::Duration::from_millis(9),
        },
        Frame::Ping([2; 8]),
        Frame::Pong([2; 8]),
        Frame::KeepAlive,
        Frame::Unknown {
            code: 0x77,
            payload: b"later",
        },
    ];
    let (client, server) = (derp_frames(&client), derp_frames(&server));
    let target = Seeds {
        directory: seeds,
        target: "derp_frames",
    };
    target.put("client", &[&[7, 60][..], &client].concat())?;
    target.put("server", &[&[50, 60][..], &server].concat())?;
    let long = Frame::Unknown {
        code: 0x77,
        payload: &[1; 90],
    };
    target.put(
        "too-long",
        &[&[3, 20][..], &derp_frames(&[long, Frame::KeepAlive])].concat(),
    )?;

    let target = Seeds {
        directory: seeds,
        target: "derp_client",
    };
    let info = br#"{"version":2,"tokenBucketBytesPerSecond":5}"#;
    for mode in [2, 3] {
        let head = [mode, info.len() as u8];
        target.put(&format!("mode{mode}"), &[&head[..], info, &server].concat())?;
    }
    target.put("stranger", &[&[0, 0][..], &server].concat())?;

    let target = Seeds {
        directory: seeds,
        target: "derp_server",
    };
    let mesh = derp_frames(&[
        Frame::WatchConns,
        Frame::ForwardPacket {
            from: node(5).public(),
            to: key,
            packet: b"packet",
        },
        Frame::ClosePeer(key),
    ]);
    let hello =
        json!({"version": 2, "meshKey": "05".repeat(32), "CanAckPings": true, "IsProber": false});
    target.story(
        "talk",
        &[
            (0, 0, &bytes(&hello)),
            (3, 0, &client),
            (3, 3, &mesh),
            (1, 2, &[]),
            (3, 1, &client),
            (2, 0, &[]),
            (1, 0, &[]),
        ],
    )
}

fn control(seeds: &Path) -> io::Result<()> {
    let (client, server) = (machine(1), machine(2));
    let (_, initiation) = ClientHandshake::start(119, &client, &server.public(), &mut Counting(1))
        .expect("a good key");
    let accepted = accept(&initiation, &server, &mut Counting(2)).expect("an honest client");
    let frames = Seeds {
        directory: seeds,
        target: "control_frames",
    };
    frames.put("initiation", &initiation)?;
    frames.put("response", &accepted.response)?;
    frames.put("record", &[&[4, 0, 16][..], &[0; 16]].concat())?;
    frames.put("error", b"\x03\x00\x02no")?;
    frames.put(
        "early",
        &early::encode(br#"{"nodeKeyChallenge":""}"#).expect("it is short"),
    )?;

    let channel = Seeds {
        directory: seeds,
        target: "channel",
    };
    channel.story(
        "intact",
        &[
            (0, 0, &[]),
            (0, 0, &[]),
            (0, 0, b"hello"),
            (1, 3, &[]),
            (0, 0, b"you"),
        ],
    )?;
    channel.story(
        "damaged",
        &[
            (0, 0, &[]),
            (0, 0, &[]),
            (0, 0, b"hello"),
            (0, 0, b"you"),
            (2, 0, &[30, 1]),
        ],
    )?;
    channel.story("damaged-first", &[(0, 0, &[0, 1])])?;

    let first = bytes(&first_map_json());
    let frame = |payload: &[u8]| [&(payload.len() as u32).to_le_bytes(), payload].concat();
    let frames = Seeds {
        directory: seeds,
        target: "map_frames",
    };
    let keepalive = frame(br#"{"KeepAlive":true}"#);
    frames.put("plain", &[&[0, 9][..], &keepalive, &keepalive].concat())?;
    let packed = zstd::encode_all(&first[..], 0)?;
    frames.put("zstd", &[&[1, 60][..], &frame(&packed)].concat())?;

    let mut peer = first_map_json()["Peers"][0].clone();
    peer["CapMap"] = json!({"x": [1, "y"]});
    let delta = bytes(&json!({
        "PeersChanged": [peer], "PeersRemoved": [3], "PeerSeenChange": {"2": true},
        "OnlineChange": {"2": false},
        "PeersChangedPatch": [{"NodeID": 2, "DERPRegion": 1, "Endpoints": ["192.0.2.1:1"],
            "Key": node(4).public(), "DiscoKey": disco(4).public(), "Online": true,
            "LastSeen": "2026-01-02T03:04:05Z", "KeyExpiry": "2027-01-02T03:04:05Z"}],
        "PacketFilters": {"*": null, "a": []},
        "DisplayMessages": {"m": {"Title": "t", "Text": "x", "Severity": "low"}},
        "ControlTime": "2026-01-02T03:04:05.6Z", "Health": ["ill"],
        "SSHPolicy": {"rules": [{"principals": [{"any": true}], "sshUsers": {"*": "="},
            "action": {"accept": true}}]},
        "PingRequest": {"URL": "https://x", "Types": "disco", "IP": "100.64.0.2"},
    }));
    let maps = Seeds {
        directory: seeds,
        target: "map_responses",
    };
    maps.story(
        "stream",
        &[
            (0, 9, &delta),
            (1, 0, &first),
            (0, 0, br#"{"KeepAlive":true}"#),
        ],
    )?;

    let hostinfo = json!({"OS": "linux", "Hostname": "host", "RoutableIPs": ["10.0.0.0/8"],
        "RequestTags": ["tag:web"], "Services": [{"Proto": "tcp", "Port": 22}],
        "NetInfo": {"PreferredDERP": 1, "WorkingUDP": true, "DERPLatency": {"1-v4": 0.01}}});
    let register = json!({"Version": 119, "NodeKey": node(1).public(),
        "OldNodeKey": "nodekey:".to_owned() + &"00".repeat(32), "Auth": {"AuthKey": "x"},
        "Expiry": "0001-01-01T00:00:00Z", "Hostinfo": hostinfo, "Ephemeral": true});
    let request = json!({"Version": 119, "Compress": "zstd", "KeepAlive": true, "Stream": true,
        "NodeKey": node(1).public(), "DiscoKey": disco(1).public(), "Hostinfo": hostinfo,
        "Endpoints": ["192.0.2.1:41641"], "EndpointTypes": [1]});
    let lite = json!({"Version": 119, "NodeKey": node(1).public(), "OmitPeers": true,
        "DiscoKey": disco(1).public(), "Endpoints": ["192.0.2.9:9"], "Hostinfo": hostinfo});
    let types = Seeds {
        directory: seeds,
        target: "control_types",
    };
    let typed = |name: &str, kind: u8, value: &Value| {
        types.put(name, &[&[kind][..], &bytes(value)].concat())
    };
    typed("register", 0, &register)?;
    typed(
        "registered",
        1,
        &json!({"User": {"ID": 1, "DisplayName": "a"}, "AuthURL": "https://x",
        "Login": {"ID": 1, "LoginName": "a"}, "MachineAuthorized": true}),
    )?;
    typed("map-request", 2, &request)?;
    typed("hostinfo", 3, &hostinfo)?;
    typed("node", 4, &peer)?;
    typed(
        "early",
        6,
        &json!({"nodeKeyChallenge": "chalpub:".to_owned() + &"01".repeat(32)}),
    )?;
    typed(
        "keys",
        7,
        &json!({"legacyPublicKey": machine(1).public(), "publicKey": machine(2).public()}),
    )?;
    typed("derp", 11, &first_map_json()["DERPMap"])?;
    types.put(
        "key",
        &[&[12][..], node(1).public().to_string().as_bytes()].concat(),
    )?;

    let coordinator = Seeds {
        directory: seeds,
        target: "coordinator",
    };
    let (register, request, lite) = (bytes(&register), bytes(&request), bytes(&lite));
    coordinator.story(
        "two-nodes",
        &[
            (0, 0x0c, &register),
            (0, 0x0d, &register),
            (1, 4, &request),
            (1, 5, &request),
            (7, 0, &[]),
            (2, 4, &lite),
            (7, 0, &[]),
            (4, 0, &[]),
            (3, 0xff, &[]),
        ],
    )?;
    coordinator.story(
        "administrator",
        &[
            (0, 0x0c, &register),
            (0, 0x1d, &register),
            (1, 5, &request),
            (7, 0, &[]),
            (6, 0x00, b"other"),
            (6, 0x10, &[]),
            (
                6,
                0x14,
                br#"{"tagOwners": {"tag:web": ["alice@"]}, "acls": []}"#,
            ),
            (6, 0x0c, &[]),
            (6, 0x04, &[]),
            (6, 0x08, &[]),
            (7, 0, &[]),
        ],
    )?;
    let mut waits: Value = serde_json::from_slice(&register)?;
    waits["Auth"] = Value::Null;
    waits["Hostinfo"]["RequestTags"] = json!([]);
    coordinator.story(
        "approved",
        &[
            (0, 4, &bytes(&waits)),
            (5, 0, &[]),
            (0, 4, &bytes(&waits)),
            (3, 0xff, &[]),
        ],
    )
}

fn names(seeds: &Path) -> io::Result<()> {
    let question = |name: &str, kind: u8, edns: bool| {
        let mut out = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(edns)];
        for label in name.split('.').filter(|label| !label.is_empty()) {
            out.push(label.len() as u8);
            out.extend_from_slice(label.as_bytes());
        }
        out.extend_from_slice(&[0, 0, kind, 0, 1]);
        if edns {
            out.extend_from_slice(&[0, 0, 41, 0xff, 0xff, 0, 0, 0, 0, 0, 0]);
        }
        out
    };
    let query = Seeds {
        directory: seeds,
        target: "dns_query",
    };
    query.put("a", &question("host2.example.ts.net", 1, false))?;
    query.put("aaaa-edns", &question("host2.example.ts.net", 28, true))?;
    query.put("ptr", &question("2.0.64.100.in-addr.arpa", 12, false))?;
    query.put("missing", &question("nobody.example.ts.net", 1, true))?;
    query.put("split", &question("www.corp.example.com", 1, true))?;
    query.put("others", &question("example.com", 65, false))?;

    let forwarder = Seeds {
        directory: seeds,
        target: "dns_forwarder",
    };
    let asked = question("example.com", 1, true);
    forwarder.story(
        "answered",
        &[(0, 4, &asked), (4, 0x9f, &[]), (1, 0, &[1; 600])],
    )?;
    forwarder.story(
        "failing",
        &[(0, 7, &asked), (1, 0x08, &[]), (3, 0, &[]), (1, 2, &[])],
    )?;
    forwarder.story(
        "silent",
        &[
            (0, 4, &asked),
            (4, 0xaf, &[]),
            (2, 2, &asked),
            (4, 0xbf, &[]),
        ],
    )?;

    let policy = Seeds {
        directory: seeds,
        target: "policy",
    };
    policy.put(
        "acls",
        br#"// who may reach whom
{
  "groups": {"group:dev": ["alice@example.com", "bob@"]},
  "hosts": {"web": "100.64.0.3"},
  "tagOwners": {"tag:web": ["group:dev"]},
  "acls": [
    {"action": "accept", "src": ["group:dev"], "dst": ["tag:web:80,443", "web:22", "*:1-9"]},
    {"action": "accept", "proto": "udp", "src": ["autogroup:member"], "dst": ["10.0.0.0/8:*"]},
  ],
  "autoApprovers": {"routes": {"10.0.0.0/8": ["bob@"]}, "exitNode": ["tag:web"]},
  "tests": [{"src": "bob@", "accept": ["tag:web:80"], "deny": ["tag:web:81"]}],
}"#,
    )?;
    policy.put(
        "grants",
        br#"{"grants": [{"src": ["*"], "dst": ["autogroup:self"], "ip": ["tcp:80-90", "*"],
  "app": {"example.com/cap": [{"a": 1}]}}], "tagOwners": {"tag:web": []}}"#,
    )?;
    policy.put("errors", br#"{"acls": [{"action": "deny", "src": ["group:none", 5], "dst": ["x:0-99999"]}], "aclz": []}"#)
}

fn tailnet_lock(seeds: &Path) -> io::Result<()> {
    let messages = Seeds {
        directory: seeds,
        target: "lock_messages",
    };
    let authority = locked();
    let genesis = authority.log().next().expect("a genesis message");
    messages.put("genesis", genesis.as_bytes())?;
    let meta = Meta::new([("purpose", "pre-auth key"), ("a", "b")]).expect("in range");
    let key = TrustedKey::new(lock_secret(2).public(), 3, meta).expect("in range");
    let add = Aum::unsigned(Some(genesis.hash()), Change::AddKey(key)).signed_by(&lock_secret(0));
    messages.put("add-key", add.as_bytes())?;
    let public = Some(lock_secret(3).public());
    let direct = NodeKeySignature::direct(node(1).public(), public, &lock_secret(0));
    let rotation = direct.rotated(node(2).public(), &lock_secret(3));
    messages.put("rotation", &rotation.encode())?;
    let wrapped = WrappedAuthKey {
        auth_key: "tskey-auth-a".to_owned(),
        credential: NodeKeySignature::credential(lock_secret(4).public(), &lock_secret(0)),
        delegate: lock_secret(4),
    };
    messages.put("auth-key", wrapped.to_text().as_bytes())?;

    let chain = Seeds {
        directory: seeds,
        target: "lock_chain",
    };
    // The last bit of the argument chooses the node, the others key and votes.
    chain.story(
        "fork",
        &[
            (1, 24, &[0]),
            (0, 0, &[1]),
            (2, 3, &[0]),
            (3, 1, &[0]),
            (7, 0, &[1]),
        ],
    )?;
    chain.story(
        "revoked",
        &[(1, 2, &[0]), (0, 2, &[0]), (6, 0, &[1]), (5, 1, &[0, 1])],
    )?;

    let signatures = Seeds {
        directory: seeds,
        target: "lock_signatures",
    };
    signatures.story(
        "rotations",
        &[(0, 1, &[0, 3]), (2, 2, &[3]), (3, 0, &[9, 1]), (2, 3, &[3])],
    )?;
    signatures.story("credential", &[(1, 1, &[1, 4]), (2, 2, &[4]), (2, 3, &[5])])
}

fn main() -> io::Result<()> {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    packets(&seeds)?;
    path_finding(&seeds)?;
    tunnel(&seeds)?;
    relay(&seeds)?;
    control(&seeds)?;
    names(&seeds)?;
    tailnet_lock(&seeds)
}

//! Seeds of the targets that find paths: `relay_batch`, `stun`, `disco`, `paths`, `engine`.

use std::io;
use std::path::Path;

use serde_json::json;
use warren_fuzz::{address, disco, first_map_json, node};
use warren_wire::disco::{
    AllocateRelayEndpointRequest, AllocateRelayEndpointResponse, BindRelayEndpoint, Envelope,
    Message, Ping, PingSender, Pong, RelayEndpoint, TxId,
};
use warren_wire::relay_batch;
use warren_wire::stun::{Request, Response, TransactionId};

use crate::tunnel::handshake;
use crate::{Seeds, bytes};

/// Writes the seeds of all five.
pub(crate) fn write(seeds: &Path) -> io::Result<()> {
    relay_batches(seeds)?;
    stun(seeds)?;
    disco_target(seeds)?;
    paths(seeds)?;
    engine(seeds)
}

/// Batches of datagrams through a relay.
fn relay_batches(seeds: &Path) -> io::Result<()> {
    let batches = Seeds::new(seeds, "relay_batch");
    let batch = |segment_len: usize, bytes: usize| -> Vec<u8> {
        let header = relay_batch::header(segment_len).unwrap_or_default();
        [&header[..], &vec![4; bytes]].concat()
    };
    batches.put("two", &batch(96, 192))?;
    batches.put("short-last", &batch(1312, 1312 + 96))?;
    batches.put("one", &batch(96, 96))?;
    batches.put("too-small", &batch(16, 96))
}

/// Requests and responses of both families.
fn stun(seeds: &Path) -> io::Result<()> {
    let stun = Seeds::new(seeds, "stun");
    let request = stun_request();
    stun.put("request", &request.emit())?;
    stun.put("request-unsigned", &request.emit()[..32])?;
    stun.put("response4", &Response::to(&request, address(0)).emit())?;
    stun.put("response6", &Response::to(&request, address(2)).emit())
}

/// Each message, and an envelope.
fn disco_target(seeds: &Path) -> io::Result<()> {
    let target = Seeds::new(seeds, "disco");
    for (name, message) in disco_messages() {
        target.put(name, &message.emit())?;
    }
    target.put("envelope", &sealed_ping())
}

/// Networks that work, change and fail.
fn paths(seeds: &Path) -> io::Result<()> {
    let messages = emitted();
    let sealed = sealed_ping();
    let request = stun_request();
    let paths = Seeds::new(seeds, "paths");
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
    paths.steps("works", works)?;
    paths.steps(
        "peer-messages",
        &[
            (10, 1, &[]),
            (1, 0, &messages[0]),
            (3, 0, &messages[2]),
            (15, 0, &[]),
            (1, 1, &messages[1]),
            (3, 1, &messages[4]),
        ],
    )?;
    paths.steps(
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
    paths.steps(
        "unauthenticated",
        &[
            (0, 0, &sealed),
            // From port 0, where no answer can go.
            (1, 0xa2, &messages[0]),
            (2, 1, &sealed),
            (0, 4, &request.emit()),
            (0, 4, &Response::to(&request, address(0)).emit()),
            (11, 2, &[]),
        ],
    )
}

/// A handshake, disco messages and netmaps.
fn engine(seeds: &Path) -> io::Result<()> {
    let messages = emitted();
    let sealed = sealed_ping();
    let engine = Seeds::new(seeds, "engine");
    let [initiation, response] = handshake();
    engine.steps(
        "meets",
        &[
            (6, 0, &[]),
            (3, 0, &messages[0]),
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
    engine.steps(
        "map",
        &[
            (0, 0, &gone),
            (3, 0, &messages[2]),
            (1, 0, &[]),
            (0, 0, &bytes(&first_map_json())),
        ],
    )
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

/// The messages of [`disco_messages`] as bytes.
fn emitted() -> Vec<Vec<u8>> {
    let messages = disco_messages();
    messages.iter().map(|(_, message)| message.emit()).collect()
}

/// A ping of node 2 to node 1 in its envelope.
fn sealed_ping() -> Vec<u8> {
    let shared = disco(2)
        .shared_with(disco(1).public().as_bytes())
        .expect("an honest key");
    let nonce = [7; warren_keys::sealed_box::NONCE_LEN];
    let (_, first) = &disco_messages()[0];
    Envelope::seal(&disco(2).public(), &shared, &nonce, first)
}

/// A STUN request.
fn stun_request() -> Request {
    Request {
        transaction: TransactionId([5; 12]),
    }
}

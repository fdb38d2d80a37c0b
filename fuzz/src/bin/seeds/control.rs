//! Seeds of the targets of the control protocol: `control_frames`, `channel`,
//! `map_frames`, `map_responses`, `control_types`, `coordinator`.

use std::io;
use std::path::Path;

use serde_json::{Value, json};
use warren_channel::{ClientHandshake, accept, early};
use warren_fuzz::{disco, first_map_json, machine, node};
use warren_testkit::SeededEntropy;

use crate::{Seeds, bytes};

/// Writes the seeds of all six.
pub(crate) fn write(seeds: &Path) -> io::Result<()> {
    frames(seeds)?;
    channel(seeds)?;
    map_frames(seeds)?;
    map_responses(seeds)?;
    types(seeds)?;
    coordinator(seeds)
}

/// The messages of a handshake, and frames of each type.
fn frames(seeds: &Path) -> io::Result<()> {
    let (client, server) = (machine(1), machine(2));
    let (_, initiation) =
        ClientHandshake::start(119, &client, &server.public(), &mut SeededEntropy(1))
            .expect("a good key");
    let accepted = accept(&initiation, &server, &mut SeededEntropy(2)).expect("an honest client");
    let frames = Seeds::new(seeds, "control_frames");
    frames.put("initiation", &initiation)?;
    frames.put("response", &accepted.response)?;
    frames.put("record", &[&[4, 0, 16][..], &[0; 16]].concat())?;
    frames.put("error", b"\x03\x00\x02no")?;
    frames.put(
        "early",
        &early::encode(br#"{"nodeKeyChallenge":""}"#).expect("it is short"),
    )
}

/// Records as they are sent, and damaged ones.
fn channel(seeds: &Path) -> io::Result<()> {
    let channel = Seeds::new(seeds, "channel");
    channel.steps(
        "intact",
        &[
            (0, 0, &[]),
            (0, 0, &[]),
            (0, 0, b"hello"),
            (1, 3, &[]),
            (0, 0, b"you"),
        ],
    )?;
    channel.steps(
        "damaged",
        &[
            (0, 0, &[]),
            (0, 0, &[]),
            (0, 0, b"hello"),
            (0, 0, b"you"),
            (2, 0, &[30, 1]),
        ],
    )?;
    channel.steps("damaged-first", &[(0, 0, &[0, 1])])
}

/// Netmaps in frames, plain and compressed.
fn map_frames(seeds: &Path) -> io::Result<()> {
    let first = bytes(&first_map_json());
    let frame = |payload: &[u8]| [&(payload.len() as u32).to_le_bytes(), payload].concat();
    let frames = Seeds::new(seeds, "map_frames");
    let keepalive = frame(br#"{"KeepAlive":true}"#);
    frames.put("plain", &[&[0, 9][..], &keepalive, &keepalive].concat())?;
    let packed = zstd::encode_all(&first[..], 0)?;
    frames.put("zstd", &[&[1, 60][..], &frame(&packed)].concat())
}

/// A netmap and a delta with all that it can change.
fn map_responses(seeds: &Path) -> io::Result<()> {
    let first = bytes(&first_map_json());
    let peer = peer_with_capability();
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
    let maps = Seeds::new(seeds, "map_responses");
    maps.steps(
        "stream",
        &[
            (0, 9, &delta),
            (1, 0, &first),
            (0, 0, br#"{"KeepAlive":true}"#),
        ],
    )
}

/// One value of each type.
fn types(seeds: &Path) -> io::Result<()> {
    let types = Seeds::new(seeds, "control_types");
    let typed = |name: &str, kind: u8, value: &Value| {
        types.put(name, &[&[kind][..], &bytes(value)].concat())
    };
    typed("register", 0, &register())?;
    typed(
        "registered",
        1,
        &json!({"User": {"ID": 1, "DisplayName": "a"}, "AuthURL": "https://x",
        "Login": {"ID": 1, "LoginName": "a"}, "MachineAuthorized": true}),
    )?;
    typed("map-request", 2, &map_request())?;
    typed("hostinfo", 3, &hostinfo())?;
    typed("node", 4, &peer_with_capability())?;
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
    )
}

/// Nodes that join, wait for approval, and are administered.
fn coordinator(seeds: &Path) -> io::Result<()> {
    let coordinator = Seeds::new(seeds, "coordinator");
    let (register, request, lite) = (
        bytes(&register()),
        bytes(&map_request()),
        bytes(&endpoint_update()),
    );
    coordinator.steps(
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
    coordinator.steps(
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
    coordinator.steps(
        "approved",
        &[
            (0, 4, &bytes(&waits)),
            (5, 0, &[]),
            (0, 4, &bytes(&waits)),
            (3, 0xff, &[]),
        ],
    )
}

/// A peer with a capability.
fn peer_with_capability() -> Value {
    let mut peer = first_map_json()["Peers"][0].clone();
    peer["CapMap"] = json!({"x": [1, "y"]});
    peer
}

/// The description of a node's host.
fn hostinfo() -> Value {
    json!({"OS": "linux", "Hostname": "host", "RoutableIPs": ["10.0.0.0/8"],
        "RequestTags": ["tag:web"], "Services": [{"Proto": "tcp", "Port": 22}],
        "NetInfo": {"PreferredDERP": 1, "WorkingUDP": true, "DERPLatency": {"1-v4": 0.01}}})
}

/// A registration with an auth key.
fn register() -> Value {
    let hostinfo = hostinfo();
    json!({"Version": 119, "NodeKey": node(1).public(),
        "OldNodeKey": "nodekey:".to_owned() + &"00".repeat(32), "Auth": {"AuthKey": "x"},
        "Expiry": "0001-01-01T00:00:00Z", "Hostinfo": hostinfo, "Ephemeral": true})
}

/// The request for the stream of netmaps.
fn map_request() -> Value {
    let hostinfo = hostinfo();
    json!({"Version": 119, "Compress": "zstd", "KeepAlive": true, "Stream": true,
        "NodeKey": node(1).public(), "DiscoKey": disco(1).public(), "Hostinfo": hostinfo,
        "Endpoints": ["192.0.2.1:41641"], "EndpointTypes": [1]})
}

/// An update of endpoints without a netmap in return.
fn endpoint_update() -> Value {
    let hostinfo = hostinfo();
    json!({"Version": 119, "NodeKey": node(1).public(), "OmitPeers": true,
        "DiscoKey": disco(1).public(), "Endpoints": ["192.0.2.9:9"], "Hostinfo": hostinfo})
}

//! Seeds of the targets of relays: `derp_frames`, `derp_client`, `derp_server`.

use std::io;
use std::path::Path;

use serde_json::json;
use warren_fuzz::{address, node};
use warren_wire::derp::{Frame, PeerFlags, PeerGoneReason};

use crate::{Seeds, bytes};

/// Writes the seeds of all three.
pub(crate) fn write(seeds: &Path) -> io::Result<()> {
    frames(seeds)?;
    client(seeds)?;
    server(seeds)
}

/// Frames of both ends, and one that is too long.
fn frames(seeds: &Path) -> io::Result<()> {
    let (client, server) = (client_frames(), server_frames());
    let target = Seeds::new(seeds, "derp_frames");
    target.put("client", &[&[7, 60][..], &client].concat())?;
    target.put("server", &[&[50, 60][..], &server].concat())?;
    let long = Frame::Unknown {
        code: 0x77,
        payload: &[1; 90],
    };
    target.put(
        "too-long",
        &[&[3, 20][..], &derp_frames(&[long, Frame::KeepAlive])].concat(),
    )
}

/// Frames behind each kind of login.
fn client(seeds: &Path) -> io::Result<()> {
    let server = server_frames();
    let target = Seeds::new(seeds, "derp_client");
    let info = br#"{"version":2,"tokenBucketBytesPerSecond":5}"#;
    for mode in [2, 3] {
        let head = [mode, info.len() as u8];
        target.put(&format!("mode{mode}"), &[&head[..], info, &server].concat())?;
    }
    target.put("unauthenticated", &[&[0, 0][..], &server].concat())
}

/// Clients, and another relay of the mesh.
fn server(seeds: &Path) -> io::Result<()> {
    let key = node(2).public();
    let client = client_frames();
    let target = Seeds::new(seeds, "derp_server");
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
    target.steps(
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

/// Frames of a client.
fn client_frames() -> Vec<u8> {
    let key = node(2).public();
    let disco_packet = [&warren_wire::disco::MAGIC[..], &[1; 60]].concat();
    derp_frames(&[
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
    ])
}

/// Frames of a server.
fn server_frames() -> Vec<u8> {
    let key = node(2).public();
    derp_frames(&[
        Frame::RecvPacket {
            from: key,
            packet: b"packet",
        },
        Frame::PeerGone {
            key,
            reason: PeerGoneReason::NotHere,
        },
        Frame::PeerPresent {
            key,
            source: Some(address(2)),
            flags: PeerFlags::REGULAR,
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
    ])
}

/// `frames` one after the other.
fn derp_frames(frames: &[Frame<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    for frame in frames {
        frame.emit(&mut out);
    }
    out
}

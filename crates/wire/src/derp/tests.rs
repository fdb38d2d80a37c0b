#![allow(clippy::unwrap_used)]

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use proptest::prelude::*;
use warren_keys::NodePublic;

use super::*;

/// A frame that owns what it borrows, for generation.
#[derive(Debug, Clone)]
struct Owned {
    kind: u8,
    a: [u8; 32],
    b: [u8; 32],
    bytes: Vec<u8>,
    text: String,
    source: Option<SocketAddr>,
    number: u32,
}

impl Owned {
    fn frame(&self) -> Frame<'_> {
        let (a, b) = (
            NodePublic::from_bytes(self.a),
            NodePublic::from_bytes(self.b),
        );
        let millis = |n: u32| Duration::from_millis(n.into());
        let eight: [u8; 8] = self.b[..8].try_into().unwrap();
        match FrameKind::from_code(self.kind) {
            FrameKind::ServerKey => Frame::ServerKey { key: a },
            FrameKind::ClientInfo => Frame::ClientInfo {
                key: a,
                sealed: &self.bytes,
            },
            FrameKind::ServerInfo => Frame::ServerInfo {
                sealed: &self.bytes,
            },
            FrameKind::SendPacket => Frame::SendPacket {
                to: a,
                packet: &self.bytes,
            },
            FrameKind::RecvPacket => Frame::RecvPacket {
                from: a,
                packet: &self.bytes,
            },
            FrameKind::KeepAlive => Frame::KeepAlive,
            FrameKind::NotePreferred => Frame::NotePreferred(self.number % 2 == 1),
            FrameKind::PeerGone => Frame::PeerGone {
                key: a,
                reason: PeerGoneReason::from_code(self.b[0]),
            },
            FrameKind::PeerPresent => Frame::PeerPresent {
                key: a,
                source: self.source,
                flags: PeerFlags(self.b[0]),
            },
            FrameKind::ForwardPacket => Frame::ForwardPacket {
                from: a,
                to: b,
                packet: &self.bytes,
            },
            FrameKind::WatchConns => Frame::WatchConns,
            FrameKind::ClosePeer => Frame::ClosePeer(a),
            FrameKind::Ping => Frame::Ping(eight),
            FrameKind::Pong => Frame::Pong(eight),
            FrameKind::Health => Frame::Health(&self.text),
            FrameKind::Restarting => Frame::Restarting {
                reconnect_in: millis(self.number),
                try_for: millis(!self.number),
            },
            FrameKind::Unknown(code) => Frame::Unknown {
                code,
                payload: &self.bytes,
            },
        }
    }
}

fn owned() -> impl Strategy<Value = Owned> {
    let source = proptest::option::of((any::<[u8; 16]>(), 1u16.., any::<bool>()).prop_map(
        |(ip, port, four)| {
            let [a, b, c, d, ..] = ip;
            let ip = if four {
                IpAddr::from([a, b, c, d])
            } else {
                IpAddr::from(ip).to_canonical()
            };
            SocketAddr::new(ip, port)
        },
    ));
    (
        0u8..0x18,
        any::<[u8; 32]>(),
        any::<[u8; 32]>(),
        proptest::collection::vec(any::<u8>(), 0..200),
        any::<String>(),
        source,
        any::<u32>(),
    )
        .prop_map(|(kind, a, b, bytes, text, source, number)| Owned {
            kind,
            a,
            b,
            bytes,
            text,
            source,
            number,
        })
}

proptest! {
    #[test]
    fn emitted_frames_parse_to_themselves(owned in owned(), tail: Vec<u8>) {
        let frame = owned.frame();
        let mut bytes = Vec::new();
        frame.emit(&mut bytes);
        prop_assert_eq!(bytes.len(), frame.frame_len());
        bytes.extend_from_slice(&tail);
        let (kind, payload, rest) = split(&bytes).unwrap();
        prop_assert_eq!(kind, frame.kind());
        prop_assert_eq!(rest, &tail[..]);
        prop_assert_eq!(Frame::parse(kind, payload), Ok(frame));
    }

    #[test]
    fn no_bytes_make_it_panic(bytes: Vec<u8>, kind: u8) {
        let _ = split(&bytes);
        let kind = FrameKind::from_code(kind);
        if let Ok(frame) = Frame::parse(kind, &bytes) {
            // Normalised once, it stays the same.
            let mut out = Vec::new();
            frame.emit(&mut out);
            let (kind, payload, _) = split(&out).unwrap();
            prop_assert_eq!(Frame::parse(kind, payload), Ok(frame));
        }
    }

    #[test]
    fn a_truncated_frame_is_not_whole(owned in owned(), cut in 1usize..) {
        let mut bytes = Vec::new();
        owned.frame().emit(&mut bytes);
        bytes.truncate(bytes.len() - 1 - cut % bytes.len());
        prop_assert_eq!(split(&bytes), None);
    }
}

#[test]
fn presence_comes_in_three_lengths() {
    let key = [7; 32];
    let source: SocketAddr = "192.0.2.1:4242".parse().unwrap();
    let mut payload = key.to_vec();
    let parse = |payload: &[u8]| match Frame::parse(FrameKind::PeerPresent, payload).unwrap() {
        Frame::PeerPresent { source, flags, .. } => (source, flags),
        other => unreachable!("{other:?}"),
    };
    assert_eq!(parse(&payload), (None, PeerFlags(0)));
    payload.extend([
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 1, 0x10, 0x92,
    ]);
    assert_eq!(payload.len(), 50);
    assert_eq!(parse(&payload), (Some(source), PeerFlags(0)));
    payload.push(9);
    assert_eq!(parse(&payload), (Some(source), PeerFlags(9)));
    payload.extend([1, 2, 3]);
    assert_eq!(parse(&payload), (Some(source), PeerFlags(9)));
}

#[test]
fn frames_of_wrong_length_are_refused() {
    let short = |kind, len: usize| Frame::parse(kind, &vec![0; len]).is_err();
    for (kind, bad, good) in [
        (FrameKind::ServerKey, &[0usize, 39][..], &[][..]),
        (FrameKind::ClientInfo, &[31], &[32, 4000]),
        (
            FrameKind::SendPacket,
            &[0, 31, 32 + MAX_PACKET + 1],
            &[32, 32 + MAX_PACKET],
        ),
        (FrameKind::RecvPacket, &[31, 32 + MAX_PACKET + 1], &[32]),
        (FrameKind::NotePreferred, &[0, 2], &[1]),
        (FrameKind::PeerGone, &[31], &[32, 33, 40]),
        (FrameKind::PeerPresent, &[31], &[32, 33, 49, 50, 51, 60]),
        (
            FrameKind::ForwardPacket,
            &[63, 64 + MAX_PACKET + 1],
            &[64, 64 + MAX_PACKET],
        ),
        (FrameKind::WatchConns, &[1], &[0]),
        (FrameKind::ClosePeer, &[31, 33], &[32]),
        (FrameKind::Ping, &[7], &[8, 1000]),
        (FrameKind::Pong, &[7], &[8]),
        (FrameKind::Restarting, &[0, 7], &[8, 9]),
    ] {
        for &len in bad {
            assert!(short(kind, len), "{kind:?} of {len} bytes was taken");
        }
        for &len in good {
            assert!(!short(kind, len), "{kind:?} of {len} bytes was not taken");
        }
    }
}

#[test]
fn disco_is_recognised_by_magic_and_length() {
    let mut packet = DISCO_MAGIC.to_vec();
    packet.resize(61, 0);
    assert!(!looks_like_disco(&packet));
    packet.push(0);
    assert!(looks_like_disco(&packet));
    packet[0] = b'X';
    assert!(!looks_like_disco(&packet));
}

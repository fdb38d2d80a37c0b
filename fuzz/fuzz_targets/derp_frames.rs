//! A DERP stream that arrives in pieces of any size.
#![no_main]

use libfuzzer_sys::fuzz_target;
use warren_derp::{FrameBuffer, OverLong};
use warren_wire::derp::{Frame, FrameKind, HEADER_LEN, Header, split};

/// The frames of a whole stream, parsed by a slow reference parser, and whether it is
/// broken off by a frame that is too long.
fn model(mut rest: &[u8], max: usize, over_long: OverLong) -> (Vec<(FrameKind, Vec<u8>)>, bool) {
    let mut frames = Vec::new();
    while let Some(header) = Header::parse(rest) {
        if header.len as usize > max {
            let unknown = matches!(header.kind, FrameKind::Unknown(_));
            if !unknown || over_long == OverLong::Fatal {
                return (frames, true);
            }
            let gone = (HEADER_LEN as u64 + u64::from(header.len)).min(rest.len() as u64);
            rest = &rest[gone as usize..];
            continue;
        }
        let Some((kind, payload, tail)) = split(rest) else {
            break;
        };
        frames.push((kind, payload.to_vec()));
        rest = tail;
    }
    (frames, false)
}

fn read(
    mut stream: &[u8],
    piece: usize,
    max: usize,
    over_long: OverLong,
) -> (Vec<(FrameKind, Vec<u8>)>, bool) {
    let mut buffer = FrameBuffer::new(max, over_long);
    let mut got = Vec::new();
    while !stream.is_empty() {
        let (now, later) = stream.split_at(piece.min(stream.len()));
        stream = later;
        buffer.push(now);
        loop {
            let ready = buffer.is_ready();
            match buffer.frames() {
                Err(_) => return (got, true),
                Ok(frames) => {
                    let before = got.len();
                    got.extend(frames.map(|frame| (frame.kind, frame.payload.to_vec())));
                    let some = got.len() > before;
                    // Skipping is something to do, but nothing to hand out.
                    assert!(some == ready || over_long == OverLong::SkipUnknown);
                    if !some {
                        break;
                    }
                }
            }
        }
    }
    (got, false)
}

fuzz_target!(|bytes: &[u8]| {
    let Some((&[piece, max], stream)) = bytes.split_first_chunk() else {
        return;
    };
    let piece = usize::from(piece).max(1);
    let max = usize::from(max) * 4;
    for over_long in [OverLong::Fatal, OverLong::SkipUnknown] {
        let expected = model(stream, max, over_long);
        assert_eq!(read(stream, piece, max, over_long), expected);
        for (kind, payload) in &expected.0 {
            let Ok(frame) = Frame::parse(*kind, payload) else {
                continue;
            };
            assert_eq!(frame.kind(), *kind);
            let mut out = Vec::new();
            frame.emit(&mut out);
            assert_eq!(out.len(), frame.frame_len());
            let (kind, payload, rest) = split(&out).expect("our own frame");
            assert!(rest.is_empty());
            assert_eq!(Frame::parse(kind, payload), Ok(frame));
        }
    }
});

//! The frames of the map stream, plain and compressed, in pieces of any size.
#![no_main]

use libfuzzer_sys::fuzz_target;
use warren_channel::map_frames::{MapFrames, Packing};
// Holds the code that reads map responses.
use warren_fuzz as _;

fn read(packing: Packing, mut stream: &[u8], piece: usize) -> (usize, bool) {
    let mut frames = MapFrames::new(packing);
    let mut count = 0;
    while !stream.is_empty() {
        let (now, later) = stream.split_at(piece.min(stream.len()));
        stream = later;
        frames.push(now);
        loop {
            match frames.next_message() {
                Ok(Some(_)) => count += 1,
                Ok(None) => break,
                Err(_) => return (count, true),
            }
        }
    }
    (count, false)
}

fuzz_target!(|bytes: &[u8]| {
    let Some((&[kind, piece], stream)) = bytes.split_first_chunk() else {
        return;
    };
    let packing = if kind & 1 == 0 {
        Packing::Plain
    } else {
        Packing::Zstd
    };
    let whole = read(packing, stream, stream.len().max(1));
    assert_eq!(read(packing, stream, usize::from(piece).max(1)), whole);
});

//! The frames of the map stream.
//!
//! ```text
//! length:u32 (little endian)  payload
//! ```
//!
//! The payload is one `MapResponse` as JSON, or one or more zstd frames of it
//! if the request asked for that. Each message is compressed on its own. Every
//! size has a limit, also that of the inflated message: a few bytes of zstd can
//! inflate to gigabytes.

use std::io::{self, Read as _};

use warren_control_types::MapResponse;

/// Longest payload as sent.
pub const MAX_FRAME_LEN: usize = 64 * 1024 * 1024;
/// Longest JSON of one message.
pub const MAX_MESSAGE_LEN: usize = 256 * 1024 * 1024;
/// A buffer above this size is given back when it is empty.
const KEPT_LEN: usize = 64 * 1024;
const LENGTH_LEN: usize = 4;

/// How the payloads of a stream are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// The JSON as it is.
    Plain,
    /// The JSON in one or more zstd frames.
    Zstd,
}

impl Packing {
    /// The packing that the field `Compress` of a map request asks for.
    pub fn of_request(compress: &str) -> Self {
        if compress == "zstd" {
            Self::Zstd
        } else {
            Self::Plain
        }
    }
}

/// A frame of the map stream cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum MapFrameError {
    /// Its length is zero.
    #[error("the server sent an empty map frame")]
    Empty,
    /// It is too long, as sent or inflated.
    #[error("the server sent a map frame of {length} bytes or more, the limit is {limit}")]
    TooLong {
        /// Its length, or the part of it that was inflated, in bytes.
        length: usize,
        /// The limit, in bytes.
        limit: usize,
    },
    /// It is not zstd.
    #[error("a map frame does not decompress: {0}")]
    Zstd(io::Error),
    /// The payload is not the JSON of a map response.
    #[error("a map frame is not a map response: {0}")]
    Json(#[from] serde_json::Error),
}

/// Puts the pieces of a map stream together.
#[derive(Debug)]
pub struct MapFrames {
    packing: Packing,
    buffer: Vec<u8>,
    /// Bytes of `buffer` that are done with.
    start: usize,
}

impl MapFrames {
    /// The start of a stream.
    pub fn new(packing: Packing) -> Self {
        Self {
            packing,
            buffer: Vec::new(),
            start: 0,
        }
    }

    /// Takes the next piece.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.start = 0;
            if self.buffer.is_empty() {
                self.buffer.shrink_to(KEPT_LEN);
            }
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// Whether a frame has begun and not ended.
    pub fn is_mid_frame(&self) -> bool {
        self.start < self.buffer.len()
    }

    /// The next complete message; `None` until there is one.
    ///
    /// # Errors
    /// [`MapFrameError`]; the stream is then of no more use.
    pub fn next_message(&mut self) -> Result<Option<MapResponse>, MapFrameError> {
        let rest = self.buffer.get(self.start..).unwrap_or_default();
        let Some((length, rest)) = rest.split_first_chunk::<LENGTH_LEN>() else {
            return Ok(None);
        };
        let length = usize::try_from(u32::from_le_bytes(*length)).unwrap_or(usize::MAX);
        if length == 0 {
            return Err(MapFrameError::Empty);
        }
        if length > MAX_FRAME_LEN {
            return Err(MapFrameError::TooLong {
                length,
                limit: MAX_FRAME_LEN,
            });
        }
        let Some(payload) = rest.get(..length) else {
            return Ok(None);
        };
        let message = match self.packing {
            Packing::Plain => serde_json::from_slice(payload)?,
            Packing::Zstd => serde_json::from_slice(&inflate(payload, MAX_MESSAGE_LEN)?)?,
        };
        self.start += LENGTH_LEN + length;
        Ok(Some(message))
    }
}

/// Decompresses, up to `limit` bytes.
fn inflate(payload: &[u8], limit: usize) -> Result<Vec<u8>, MapFrameError> {
    let decoder = zstd::stream::read::Decoder::with_buffer(payload).map_err(MapFrameError::Zstd)?;
    let mut json = Vec::new();
    let mut limited = decoder.take(limit as u64 + 1);
    limited
        .read_to_end(&mut json)
        .map_err(MapFrameError::Zstd)?;
    if json.len() > limit {
        return Err(MapFrameError::TooLong {
            length: json.len(),
            limit,
        });
    }
    Ok(json)
}

/// One message as a frame, for servers.
///
/// # Errors
/// The compressor fails, or the message has more than 4 GiB.
pub fn encode(json: &[u8], packing: Packing) -> io::Result<Vec<u8>> {
    let payload = match packing {
        Packing::Plain => json.to_vec(),
        Packing::Zstd => zstd::bulk::compress(json, 1)?,
    };
    let length = u32::try_from(payload.len()).map_err(io::Error::other)?;
    Ok([&length.to_le_bytes()[..], &payload].concat())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    fn frames(packing: Packing, bytes: &[u8]) -> MapFrames {
        let mut frames = MapFrames::new(packing);
        frames.push(bytes);
        frames
    }

    #[test]
    fn bad_frames_are_told() {
        let next = |packing, bytes: &[u8]| frames(packing, bytes).next_message();
        assert!(matches!(
            next(Packing::Plain, &[0; 4]),
            Err(MapFrameError::Empty)
        ));
        let huge = next(Packing::Plain, &[255; 4]);
        assert!(matches!(
            huge,
            Err(MapFrameError::TooLong {
                limit: MAX_FRAME_LEN,
                ..
            })
        ));
        let plain = encode(b"{\"Seq\":1}", Packing::Plain).unwrap();
        assert!(matches!(
            next(Packing::Zstd, &plain),
            Err(MapFrameError::Zstd(_))
        ));
        let text = encode(b"\"text\"", Packing::Zstd).unwrap();
        assert!(matches!(
            next(Packing::Zstd, &text),
            Err(MapFrameError::Json(_))
        ));
        // Cut inside the compressed data, but with a length that fits the cut.
        let whole = zstd::bulk::compress(&[b' '; 5000], 1).unwrap();
        let cut = encode(&whole[..whole.len() - 2], Packing::Plain).unwrap();
        assert!(matches!(
            next(Packing::Zstd, &cut),
            Err(MapFrameError::Zstd(_))
        ));
    }

    #[test]
    fn inflating_stops_at_the_limit() {
        let bomb = zstd::bulk::compress(&vec![b' '; 1_000_000], 1).unwrap();
        assert!(bomb.len() < 1000);
        let refused = inflate(&bomb, 10_000).unwrap_err();
        assert!(matches!(
            refused,
            MapFrameError::TooLong {
                length: 10_001,
                limit: 10_000
            }
        ));
        assert_eq!(inflate(&bomb, 1_000_000).unwrap().len(), 1_000_000);
    }

    #[test]
    fn message_may_be_several_zstd_frames() {
        let parts = [&b"{\"Seq\""[..], b":7}"].map(|part| zstd::bulk::compress(part, 1).unwrap());
        let frame = encode(&parts.concat(), Packing::Plain).unwrap();
        let message = frames(Packing::Zstd, &frame)
            .next_message()
            .unwrap()
            .unwrap();
        assert_eq!(message.seq, 7);
    }

    proptest! {
        #[test]
        fn any_cut_gives_the_same_messages(
            cuts in proptest::collection::vec(1usize..40, 1..20), zstd: bool,
        ) {
            let packing = if zstd { Packing::Zstd } else { Packing::Plain };
            let message = |seq| format!("{{\"Seq\":{seq},\"Domain\":\"example.net\"}}");
            let wire: Vec<u8> = (1..5)
                .flat_map(|seq| encode(message(seq).as_bytes(), packing).unwrap())
                .collect();
            let (mut frames, mut seen, mut rest) = (MapFrames::new(packing), Vec::new(), &wire[..]);
            let mut cuts = cuts.iter().cycle();
            while !rest.is_empty() {
                let count = (*cuts.next().unwrap()).min(rest.len());
                frames.push(&rest[..count]);
                rest = &rest[count..];
                while let Some(message) = frames.next_message().unwrap() {
                    seen.push(message.seq);
                }
            }
            prop_assert_eq!(seen, [1, 2, 3, 4]);
            prop_assert!(!frames.is_mid_frame());
        }

        #[test]
        fn any_bytes_are_read_without_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..100), length in 0u32..90, zstd: bool,
        ) {
            let packing = if zstd { Packing::Zstd } else { Packing::Plain };
            let _ = frames(packing, &bytes).next_message();
            let framed = [&length.to_le_bytes()[..], &bytes].concat();
            let _ = frames(packing, &framed).next_message();
        }
    }
}

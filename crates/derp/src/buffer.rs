//! The receive buffer: bytes in, whole frames out, nothing copied.
//!
//! The caller reads into [`FrameBuffer::spare`], reports the count, and takes
//! everything that is whole in one go: many frames a read. Frames are handed
//! out mutable, so that a packet can be decrypted where it lies.
//!
//! The buffer starts small, doubles while reads fill it, and shrinks again
//! after a run of small reads: ten thousand idle clients must not hold 64 KiB
//! each. It never grows on the word of a length field alone.

use warren_wire::derp::{FrameKind, HEADER_LEN, Header};

/// The size of a new or idle buffer, in bytes.
const SMALL: usize = 4 * 1024;
/// The largest size that reads alone lead to; a single larger frame may need more.
const LARGE: usize = 256 * 1024;
/// Consecutive reads that left most of the buffer empty, before it shrinks.
const QUIET_READS: u32 = 64;

/// A frame is longer than its reader takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{kind:?} frame of {len} bytes, at most {max} are taken")]
pub struct FrameTooLong {
    /// The frame's kind.
    pub kind: FrameKind,
    /// Bytes of its payload.
    pub len: u32,
    /// The largest payload the reader takes, in bytes.
    pub max: usize,
}

/// The treatment of a frame longer than the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OverLong {
    /// Any such frame is an error (clients).
    Fatal,
    /// Skip it if its kind is unknown, else an error (relays).
    SkipUnknown,
}

/// Received bytes that are not consumed yet.
#[derive(Debug)]
pub struct FrameBuffer {
    /// Initialised throughout; `start..end` holds received bytes.
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    /// Bytes of an over-long frame still to be thrown away.
    skip: u64,
    max_payload: usize,
    over_long: OverLong,
    quiet_reads: u32,
}

impl FrameBuffer {
    /// An empty buffer that takes payloads of at most `max_payload` bytes.
    pub fn new(max_payload: usize, over_long: OverLong) -> Self {
        Self {
            bytes: Vec::new(),
            start: 0,
            end: 0,
            skip: 0,
            max_payload,
            over_long,
            quiet_reads: 0,
        }
    }

    /// Changes the largest payload taken, as when a login is over.
    pub fn set_max_payload(&mut self, max_payload: usize) {
        self.max_payload = max_payload;
    }

    /// Puts bytes behind what is there, such as what came with an HTTP head.
    pub fn push(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let spare = self.spare();
            let n = spare.len().min(bytes.len());
            let (now, later) = bytes.split_at(n);
            if let Some(space) = spare.get_mut(..n) {
                space.copy_from_slice(now);
            }
            self.filled(n);
            bytes = later;
        }
    }

    /// The free space for the next read; never empty.
    pub fn spare(&mut self) -> &mut [u8] {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
            if self.quiet_reads >= QUIET_READS && self.bytes.len() > SMALL {
                self.bytes = Vec::new();
                self.quiet_reads = 0;
            }
        } else if self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        if self.end == self.bytes.len() {
            let len = (self.bytes.len() * 2).max(SMALL);
            self.bytes.resize(len, 0);
        }
        self.bytes.get_mut(self.end..).unwrap_or_default()
    }

    /// Says that `n` bytes were read into [`spare`](Self::spare).
    pub fn filled(&mut self, n: usize) {
        let spare = self.bytes.len() - self.end;
        let n = n.min(spare);
        self.end += n;
        if n * 8 < self.bytes.len() {
            self.quiet_reads = self.quiet_reads.saturating_add(1);
        } else {
            self.quiet_reads = 0;
        }
        if n == spare && self.bytes.len() < LARGE {
            let len = (self.bytes.len() * 2).min(LARGE);
            self.bytes.resize(len, 0);
        }
    }

    /// Takes all frames that are whole. Call it until it hands out none: an
    /// over-long frame is only looked at once those before it were taken.
    ///
    /// # Errors
    /// [`FrameTooLong`]: the stream cannot be read any further.
    pub fn frames(&mut self) -> Result<Frames<'_>, FrameTooLong> {
        let mut at = self.skip_over_long();
        while let Some(header) = self.bytes.get(at..self.end).and_then(Header::parse) {
            if header.len as usize > self.max_payload {
                if at > self.start {
                    break;
                }
                let unknown = matches!(header.kind, FrameKind::Unknown(_));
                if !unknown || self.over_long == OverLong::Fatal {
                    return Err(FrameTooLong {
                        kind: header.kind,
                        len: header.len,
                        max: self.max_payload,
                    });
                }
                self.skip = HEADER_LEN as u64 + u64::from(header.len);
                at = self.skip_over_long();
                continue;
            }
            let next = at + header.frame_len();
            if next > self.end {
                break;
            }
            at = next;
        }
        let from = std::mem::replace(&mut self.start, at);
        Ok(Frames {
            rest: self.bytes.get_mut(from..at).unwrap_or_default(),
        })
    }

    /// Takes only the first frame, if it is whole: for a login, where the bytes
    /// that follow belong to another reader.
    ///
    /// # Errors
    /// [`FrameTooLong`] as for [`frames`](Self::frames).
    pub fn next_frame(&mut self) -> Result<Option<RawFrame<'_>>, FrameTooLong> {
        let Some(header) = self.bytes.get(self.start..self.end).and_then(Header::parse) else {
            return Ok(None);
        };
        if header.len as usize > self.max_payload {
            return Err(FrameTooLong {
                kind: header.kind,
                len: header.len,
                max: self.max_payload,
            });
        }
        let from = self.start;
        let to = from + header.frame_len();
        if to > self.end {
            return Ok(None);
        }
        self.start = to;
        Ok(Frames {
            rest: self.bytes.get_mut(from..to).unwrap_or_default(),
        }
        .next())
    }

    /// Whether [`frames`](Self::frames) has something to say without more bytes.
    pub fn is_ready(&mut self) -> bool {
        let start = self.skip_over_long();
        let there = self.bytes.get(start..self.end).unwrap_or_default();
        Header::parse(there).is_some_and(|header| {
            header.len as usize > self.max_payload || header.frame_len() <= there.len()
        })
    }

    /// Whether bytes wait that [`frames`](Self::frames) has not handed out.
    pub fn has_bytes(&self) -> bool {
        self.start < self.end
    }

    /// Throws away what is there of an over-long frame; where the next starts.
    fn skip_over_long(&mut self) -> usize {
        let there = self.end - self.start;
        let now = usize::try_from(self.skip).unwrap_or(usize::MAX).min(there);
        self.start += now;
        self.skip -= now as u64;
        self.start
    }
}

/// One whole frame, not yet interpreted.
#[derive(Debug, PartialEq, Eq)]
pub struct RawFrame<'a> {
    /// Its kind.
    pub kind: FrameKind,
    /// Its payload.
    pub payload: &'a mut [u8],
}

/// Whole frames, one after the other, from one read.
#[derive(Debug)]
pub struct Frames<'a> {
    rest: &'a mut [u8],
}

impl<'a> Iterator for Frames<'a> {
    type Item = RawFrame<'a>;

    fn next(&mut self) -> Option<RawFrame<'a>> {
        let rest = std::mem::take(&mut self.rest);
        let header = Header::parse(rest)?;
        let (frame, rest) = rest.split_at_mut_checked(header.frame_len())?;
        self.rest = rest;
        Some(RawFrame {
            kind: header.kind,
            payload: frame.get_mut(HEADER_LEN..)?,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn emit(frames: &[(u8, Vec<u8>)]) -> Vec<u8> {
        let mut out = Vec::new();
        for (kind, payload) in frames {
            let len = u32::try_from(payload.len()).unwrap();
            out.extend(
                Header {
                    kind: FrameKind::from_code(*kind),
                    len,
                }
                .to_bytes(),
            );
            out.extend(payload);
        }
        out
    }

    /// Feeds `stream` in reads of the given sizes and collects the frames.
    fn feed(
        buffer: &mut FrameBuffer,
        mut stream: &[u8],
        reads: &[usize],
    ) -> Result<Vec<(u8, Vec<u8>)>, FrameTooLong> {
        let mut got = Vec::new();
        let mut reads = reads.iter().copied().cycle();
        while !stream.is_empty() {
            let spare = buffer.spare();
            assert!(!spare.is_empty());
            let n = reads
                .next()
                .unwrap_or(1)
                .clamp(1, stream.len())
                .min(spare.len());
            spare[..n].copy_from_slice(&stream[..n]);
            stream = &stream[n..];
            buffer.filled(n);
            loop {
                let before = got.len();
                got.extend(
                    buffer
                        .frames()?
                        .map(|f| (f.kind.code(), f.payload.to_vec())),
                );
                if got.len() == before {
                    break;
                }
            }
        }
        Ok(got)
    }

    proptest! {
        #[test]
        fn frames_survive_any_cutting(
            frames in proptest::collection::vec((any::<u8>(), proptest::collection::vec(any::<u8>(), 0..3000)), 0..30),
            reads in proptest::collection::vec(1usize..9000, 1..20),
        ) {
            let mut buffer = FrameBuffer::new(3000, OverLong::Fatal);
            prop_assert_eq!(feed(&mut buffer, &emit(&frames), &reads), Ok(frames));
            prop_assert!(!buffer.has_bytes());
        }

        #[test]
        fn buffer_never_panics_on_bytes(stream: Vec<u8>, reads in proptest::collection::vec(1usize..50, 1..9)) {
            let _ = feed(&mut FrameBuffer::new(64, OverLong::SkipUnknown), &stream, &reads);
        }
    }

    #[test]
    fn over_long_frames_are_refused_after_those_before_them() {
        let stream = emit(&[(4, vec![1; 10]), (4, vec![2; 101]), (4, vec![3; 10])]);
        let mut buffer = FrameBuffer::new(100, OverLong::SkipUnknown);
        buffer.push(&stream);
        assert_eq!(buffer.frames().unwrap().count(), 1);
        assert_eq!(buffer.frames().unwrap_err().len, 101);
    }

    #[test]
    fn relays_skip_over_long_frames_of_unknown_kind() {
        let frames = [(4, vec![1; 10]), (0x77, vec![2; 50_000]), (4, vec![3; 10])];
        let mut buffer = FrameBuffer::new(100, OverLong::SkipUnknown);
        let got = feed(&mut buffer, &emit(&frames), &[700]).unwrap();
        assert_eq!(got, [(4, vec![1; 10]), (4, vec![3; 10])]);
        assert!(
            buffer.bytes.len() <= 8192,
            "grew to {} for nothing",
            buffer.bytes.len()
        );
    }

    #[test]
    fn buffer_grows_with_the_flow_and_shrinks_when_idle() {
        let mut buffer = FrameBuffer::new(100, OverLong::Fatal);
        for _ in 0..200 {
            let n = buffer.spare().len();
            buffer.filled(n);
            buffer.start = buffer.end;
        }
        assert_eq!(buffer.bytes.len(), LARGE);
        for _ in 0..=QUIET_READS {
            buffer.spare();
            buffer.filled(5);
            buffer.start = buffer.end;
        }
        buffer.spare();
        assert_eq!(buffer.bytes.len(), SMALL);
    }
}

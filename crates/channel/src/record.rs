//! Records: the encrypted frames of an established channel.

use std::ops::Range;

use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use warren_wire::control::{
    FrameError, FrameHeader, FrameKind, HEADER_LEN, MAX_PLAINTEXT_LEN, TAG_LEN,
};

/// A channel is dead: nothing more can be sent or read on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChannelError {
    /// A frame is not shaped like a record.
    #[error("the control channel is broken: {0}")]
    Frame(#[from] FrameError),
    /// A record does not authenticate: damaged, repeated or out of order.
    #[error(
        "a record of the control channel does not authenticate: damaged, repeated or reordered"
    )]
    Authentication,
    /// All counters of this direction are used up.
    #[error("the control channel has used up its counters; connect again")]
    Exhausted,
}

/// The cipher of one direction, and how many records it has done.
struct Cipher {
    key: LessSafeKey,
    counter: u64,
}

impl Cipher {
    fn new(key: &[u8; 32]) -> Self {
        let key = UnboundKey::new(&CHACHA20_POLY1305, key);
        let key = key.unwrap_or_else(|_| unreachable!("32 bytes are a ChaCha20 key"));
        Self {
            key: LessSafeKey::new(key),
            counter: 0,
        }
    }

    /// The nonce for the next record: four zero bytes and the counter.
    fn next_nonce(&mut self) -> Result<Nonce, ChannelError> {
        if self.counter == u64::MAX {
            return Err(ChannelError::Exhausted);
        }
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&self.counter.to_be_bytes());
        self.counter += 1;
        Ok(Nonce::assume_unique_for_key(nonce))
    }
}

/// Encrypts one direction of a channel.
pub struct Sealer(Cipher);

impl Sealer {
    pub(crate) fn new(key: &[u8; 32]) -> Self {
        Self(Cipher::new(key))
    }

    /// Appends `plaintext` to `out` as records, as few as will hold it. Empty
    /// plaintext makes no record.
    ///
    /// # Errors
    /// [`ChannelError::Exhausted`].
    pub fn seal(&mut self, plaintext: &[u8], out: &mut Vec<u8>) -> Result<(), ChannelError> {
        for chunk in plaintext.chunks(MAX_PLAINTEXT_LEN) {
            let nonce = self.0.next_nonce()?;
            let length = u16::try_from(chunk.len() + TAG_LEN)
                .unwrap_or_else(|_| unreachable!("a chunk is shorter than 4096 bytes"));
            let header = FrameHeader {
                kind: FrameKind::Record,
                length,
            };
            out.reserve(header.frame_len());
            out.extend_from_slice(&header.emit());
            let start = out.len();
            out.extend_from_slice(chunk);
            let tag = self
                .0
                .key
                .seal_in_place_separate_tag(nonce, Aad::empty(), &mut out[start..]);
            // Sealing fails only beyond 256 GiB of plaintext.
            let tag = tag.unwrap_or_else(|_| unreachable!("a record is short"));
            out.extend_from_slice(tag.as_ref());
        }
        Ok(())
    }
}

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Sealer(record {})", self.0.counter)
    }
}

/// Decrypts one direction of a channel.
pub struct Opener(Cipher);

/// A record that was opened where it lay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    /// Where in the buffer the plaintext is; may be empty.
    pub plaintext: Range<usize>,
    /// Bytes of the buffer the frame took.
    pub consumed: usize,
}

impl Opener {
    pub(crate) fn new(key: &[u8; 32]) -> Self {
        Self(Cipher::new(key))
    }

    /// Opens the record at the start of `buffer`, in place; `None` if it is
    /// not complete yet.
    ///
    /// # Errors
    /// [`ChannelError`]; the channel is then dead.
    pub fn open(&mut self, buffer: &mut [u8]) -> Result<Option<Opened>, ChannelError> {
        let Some(header) = FrameHeader::parse(buffer)? else {
            return Ok(None);
        };
        if header.kind != FrameKind::Record {
            return Err(FrameError::Kind(header.kind as u8).into());
        }
        let consumed = header.frame_len();
        let Some(sealed) = buffer.get_mut(HEADER_LEN..consumed) else {
            return Ok(None);
        };
        let nonce = self.0.next_nonce()?;
        let plaintext = self.0.key.open_in_place(nonce, Aad::empty(), sealed);
        let length = plaintext.map_err(|_| ChannelError::Authentication)?.len();
        Ok(Some(Opened {
            plaintext: HEADER_LEN..HEADER_LEN + length,
            consumed,
        }))
    }
}

impl std::fmt::Debug for Opener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Opener(record {})", self.0.counter)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_last_counter_is_never_used() {
        let mut sealer = Sealer::new(&[7; 32]);
        sealer.0.counter = u64::MAX - 1;
        let mut out = Vec::new();
        sealer.seal(b"x", &mut out).unwrap();
        assert_eq!(sealer.seal(b"x", &mut out), Err(ChannelError::Exhausted));
        let mut opener = Opener::new(&[7; 32]);
        opener.0.counter = u64::MAX;
        assert_eq!(opener.open(&mut out), Err(ChannelError::Exhausted));
    }

    #[test]
    fn empty_record_is_legal() {
        let mut cipher = Cipher::new(&[7; 32]);
        let nonce = cipher.next_nonce().unwrap();
        let tag = cipher
            .key
            .seal_in_place_separate_tag(nonce, Aad::empty(), &mut [])
            .unwrap();
        let mut frame = vec![4, 0, 16];
        frame.extend_from_slice(tag.as_ref());
        let opened = Opener::new(&[7; 32]).open(&mut frame).unwrap().unwrap();
        assert_eq!(
            opened,
            Opened {
                plaintext: 3..3,
                consumed: 19
            }
        );
    }
}

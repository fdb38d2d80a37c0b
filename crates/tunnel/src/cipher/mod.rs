//! ChaCha20-Poly1305 under one key, for one packet and for a batch of them.
//!
//! One packet goes to the library. A batch, that is datagrams of one length
//! behind each other, pays the library's fixed costs once per packet: the
//! start of a cipher for a one-time key, powers of that key, the end of the
//! key stream that no packet needs. Where the processor has AVX2, [`avx2`]
//! works across the borders of packets instead; which is faster, and by how
//! much, prints `bench/aead`. Both give the same bytes.
//!
//! Every datagram is a header of 16 bytes with the counter in its last eight,
//! the content, and 16 bytes of tag. There is no associated data (whitepaper,
//! section 5.4.6).

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(test)]
mod wycheproof;

use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use warren_keys::noise::MessageKey;
use warren_wire::wireguard::{TAG_LEN, TRANSPORT_HEADER_LEN};

/// Most datagrams that are sealed or opened in one go.
pub const MAX_BATCH: usize = 64;
/// Fewer datagrams go to the library, one by one: filling and draining the
/// pipeline would cost what it gains.
pub const MIN_BATCH: usize = 4;

/// Which implementation of ChaCha20-Poly1305 sessions use. All give the same bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Aead {
    /// The fastest one that this processor has: our own for batches where there is
    /// AVX2, else the library.
    #[default]
    Fastest,
    /// The library alone, on every processor.
    Portable,
}

/// The key of one direction of a session.
pub(crate) struct Cipher {
    library: LessSafeKey,
    #[cfg(target_arch = "x86_64")]
    avx2: Option<avx2::Key>,
}

/// Content that does not authenticate, or is beyond what the cipher takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refused;

impl Cipher {
    pub(crate) fn new(key: &MessageKey, aead: Aead) -> Self {
        let library = UnboundKey::new(&CHACHA20_POLY1305, key.as_slice());
        Self {
            library: LessSafeKey::new(
                library.unwrap_or_else(|_| unreachable!("32 bytes are a ChaCha20 key")),
            ),
            #[cfg(target_arch = "x86_64")]
            avx2: match aead {
                Aead::Fastest => avx2::Key::new(key),
                Aead::Portable => None,
            },
        }
    }

    /// Seals `content` and gives its tag.
    #[inline]
    pub(crate) fn seal(&self, counter: u64, content: &mut [u8]) -> Result<[u8; TAG_LEN], Refused> {
        let tag = self
            .library
            .seal_in_place_separate_tag(nonce(counter), Aad::empty(), content)
            .map_err(|_| Refused)?;
        tag.as_ref().try_into().map_err(|_| Refused)
    }

    /// Opens content with its tag behind it; gives the content's length.
    /// Refused content is zeroed.
    #[inline]
    pub(crate) fn open(&self, counter: u64, sealed: &mut [u8]) -> Result<usize, Refused> {
        let content = self
            .library
            .open_in_place(nonce(counter), Aad::empty(), sealed);
        content.map(|content| content.len()).map_err(|_| Refused)
    }

    /// Seals as many datagrams at the front of `batch` as are faster together,
    /// and says how many. All have `segment_len` bytes and their headers.
    #[inline]
    pub(crate) fn seal_together(&self, batch: &mut [u8], segment_len: usize) -> usize {
        let count = together(batch.len(), segment_len);
        #[cfg(target_arch = "x86_64")]
        if let (Some(key), Some(batch)) = (&self.avx2, batch.get_mut(..count * segment_len)) {
            return if key.seal(batch, segment_len) {
                count
            } else {
                0
            };
        }
        _ = (batch, count);
        0
    }

    /// Opens as many datagrams at the front of `batch` as are faster together:
    /// how many, and a bit for each that authenticates. The content of the
    /// others is zeroed.
    #[inline]
    pub(crate) fn open_together(&self, batch: &mut [u8], segment_len: usize) -> (usize, u64) {
        let count = together(batch.len(), segment_len);
        #[cfg(target_arch = "x86_64")]
        if let (Some(key), Some(batch)) = (&self.avx2, batch.get_mut(..count * segment_len)) {
            let Some(right) = key.open(batch, segment_len) else {
                return (0, 0);
            };
            if right.count_ones() as usize != count {
                for (i, datagram) in batch.chunks_exact_mut(segment_len).enumerate() {
                    let forged = right & (1 << i) == 0;
                    let content = datagram.get_mut(TRANSPORT_HEADER_LEN..);
                    content.filter(|_| forged).unwrap_or_default().fill(0);
                }
            }
            return (count, right);
        }
        _ = (batch, count);
        (0, 0)
    }
}

/// How many datagrams at the front of `len` bytes to work on in one go.
#[inline]
fn together(len: usize, segment_len: usize) -> usize {
    let whole = len.checked_div(segment_len).unwrap_or(0).min(MAX_BATCH);
    if whole < MIN_BATCH {
        return 0;
    }
    whole & !1
}

#[inline]
fn nonce(counter: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&counter.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}

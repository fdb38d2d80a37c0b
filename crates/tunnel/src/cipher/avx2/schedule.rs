//! Where the packets of a batch lie, and in which order their key stream is
//! made.

use warren_wire::wireguard::{TAG_LEN as TAG, TRANSPORT_HEADER_LEN as HEADER};

use super::{BATCH, BLOCK, UNITS};
use crate::cipher::MAX_BATCH;

/// Packets of the same length behind each other.
pub(super) struct Batch<'a> {
    pub(super) buffer: &'a mut [u8],
    pub(super) stride: usize,
    pub(super) pairs: usize,
}

impl<'a> Batch<'a> {
    /// A batch of packets of `stride` bytes in all of `buffer`; `None` when
    /// they have no content, or are none, too many or an odd number.
    pub(super) fn new(buffer: &'a mut [u8], stride: usize) -> Option<Self> {
        let pairs = buffer.len().checked_div(stride)? / 2;
        let fits = stride > HEADER + TAG
            && (1..=MAX_BATCH / 2).contains(&pairs)
            && buffer.len() == 2 * pairs * stride;
        fits.then_some(Self {
            buffer,
            stride,
            pairs,
        })
    }

    #[inline]
    pub(super) fn content_len(&self) -> usize {
        self.stride - HEADER - TAG
    }

    /// Where the content of one of a pair starts.
    #[inline]
    pub(super) fn start(&self, pair: usize, side: usize) -> usize {
        (2 * pair + side) * self.stride + HEADER
    }

    /// The counters of a pair, from the headers.
    #[inline]
    pub(super) fn counters(&self, pair: usize) -> [u64; 2] {
        [0, 1].map(|side| {
            let at = self.start(pair, side);
            let counter = self.buffer[at - 8..at].first_chunk();
            u64::from_le_bytes(*counter.unwrap_or_else(|| unreachable!("eight bytes")))
        })
    }
}

/// One block of key stream for both of a pair. Block 0 gives one-time keys.
#[derive(Clone, Copy, Default)]
pub(super) struct Unit {
    pub(super) pair: usize,
    pub(super) block: u32,
}

/// Says which units come next.
pub(super) struct Schedule {
    /// Pairs whose one-time keys are made or on their way.
    pub(super) keys: usize,
    /// The next unit with content.
    pub(super) next: Unit,
}

impl Schedule {
    #[inline]
    pub(super) fn next(&mut self, batch: &Batch<'_>) -> Option<Unit> {
        let Unit { pair, block } = self.next;
        let asked_for = (pair + 2).next_multiple_of(BATCH).min(batch.pairs);
        if self.keys < asked_for {
            self.keys += 1;
            return Some(Unit {
                pair: self.keys - 1,
                block: 0,
            });
        }
        if pair == batch.pairs {
            return None;
        }
        self.next = if block as usize * BLOCK < batch.content_len() {
            Unit {
                pair,
                block: block + 1,
            }
        } else {
            Unit {
                pair: pair + 1,
                block: 1,
            }
        };
        Some(Unit { pair, block })
    }

    /// The next four units where they are whole blocks of one pair: the
    /// first of them.
    #[inline]
    pub(super) fn next_four(&mut self, batch: &Batch<'_>) -> Option<Unit> {
        let unit = self.next;
        let whole = (unit.block as usize - 1 + UNITS) * BLOCK <= batch.content_len();
        let keyed = self.keys >= (unit.pair + 2).next_multiple_of(BATCH).min(batch.pairs);
        if unit.pair == batch.pairs || !keyed || !whole {
            return None;
        }
        self.next.block += UNITS as u32;
        if (self.next.block as usize - 1) * BLOCK >= batch.content_len() {
            self.next = Unit {
                pair: unit.pair + 1,
                block: 1,
            };
        }
        Some(unit)
    }
}

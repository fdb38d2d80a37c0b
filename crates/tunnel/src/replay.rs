//! Which packet counters have been seen: a sliding window (RFC 6479).
//!
//! Packets arrive out of order by as much as the network, several paths and
//! batches make them; within [`ReplayWindow::SPAN`] numbers behind the newest
//! each is accepted exactly once, and everything older is refused.

const WORD_BITS: u64 = 64;
/// A power of two, so that a counter finds its word by masking.
const WORDS: usize = 128;
const WORD_MASK: u64 = WORDS as u64 - 1;

/// The counters received on one session. Owned by the thread that opens its
/// packets; 1 KiB.
#[derive(Clone)]
pub struct ReplayWindow {
    /// One more than the highest counter accepted; 0 when there is none.
    end: u64,
    seen: Box<[u64; WORDS]>,
}

impl ReplayWindow {
    /// How far behind the highest counter a packet may come and still be
    /// accepted. One word less than there are bits: the newest word is only
    /// partly in the past.
    pub const SPAN: u64 = (WORDS as u64 - 1) * WORD_BITS;

    /// A window that has seen nothing.
    pub fn new() -> Self {
        Self {
            end: 0,
            seen: Box::new([0; WORDS]),
        }
    }

    /// Marks `counter` as seen. `false` when it was seen before or is older than the
    /// window: the packet must be dropped. Call it only for packets that
    /// authenticated.
    #[inline]
    pub fn accept(&mut self, counter: u64) -> bool {
        let word = counter / WORD_BITS;
        if counter >= self.end {
            let newest = self.end.saturating_sub(1) / WORD_BITS;
            // Words between the old and the new highest hold numbers of one
            // turn ago; a jump over the whole window clears each once.
            let stale = (word - newest).min(WORDS as u64);
            for step in 1..=stale {
                *self.slot(newest.wrapping_add(step)) = 0;
            }
            self.end = counter.saturating_add(1);
        } else if self.end - 1 - counter >= Self::SPAN {
            return false;
        }
        let bit = 1 << (counter % WORD_BITS);
        let slot = self.slot(word);
        let fresh = *slot & bit == 0;
        *slot |= bit;
        fresh
    }

    /// The highest counter accepted so far.
    pub fn highest(&self) -> Option<u64> {
        self.end.checked_sub(1)
    }

    #[inline]
    fn slot(&mut self, word: u64) -> &mut u64 {
        // Masked to the length of the array.
        &mut self.seen[(word & WORD_MASK) as usize]
    }
}

impl Default for ReplayWindow {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for ReplayWindow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReplayWindow")
            .field("highest", &self.highest())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_edges() {
        let mut window = ReplayWindow::new();
        assert!(window.accept(0) && !window.accept(0));
        assert!(window.accept(ReplayWindow::SPAN));
        assert!(!window.accept(0), "exactly the span behind is too old");
        assert!(window.accept(1));
        assert!(window.accept(u64::MAX - 1) && !window.accept(u64::MAX - 1));
        assert!(!window.accept(5));
        assert!(window.accept(u64::MAX - ReplayWindow::SPAN));
    }

    proptest! {
        /// Steps of all sizes, back and forth, against a plain set.
        #[test]
        fn agrees_with_a_set(
            start in prop_oneof![Just(0u64), 0u64..100_000, Just(u64::MAX / 2)],
            steps in prop::collection::vec(
                prop_oneof![
                    4 => -70i64..70,
                    2 => -9_000i64..9_000,
                    1 => -20_000i64..40_000,
                ],
                1..400,
            ),
        ) {
            let mut window = ReplayWindow::new();
            let mut seen = BTreeSet::new();
            let mut at = start;
            for step in steps {
                at = at.saturating_add_signed(step);
                let too_old = seen.last().is_some_and(|top| {
                    at < *top && *top - at >= ReplayWindow::SPAN
                });
                let expected = !too_old && seen.insert(at);
                prop_assert_eq!(window.accept(at), expected, "counter {}", at);
                prop_assert_eq!(window.highest(), seen.last().copied());
            }
        }
    }
}

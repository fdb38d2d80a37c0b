//! Deterministic helpers for tests: sources of randomness that give the same
//! bytes in each run.
//!
//! [`Entropy`] is an argument of every state machine.
//! Production code passes the operating system's generator; a test passes one
//! of these:
//!
//! | generator | bytes | for |
//! |---|---|---|
//! | [`FixedEntropy`] | one byte, over and over | tests in which randomness must not matter |
//! | [`CountingEntropy`] | another pattern for each call | tests that need distinct keys or ids |
//! | [`SeededEntropy`] | a splitmix64 stream | randomised tests and models |
//!
//! [`LogLines`] keeps the log lines of a test; [`CountingAllocator`] shows whether code
//! allocates; [`parse_metrics`] reads Prometheus' text form.
//!
//! Tests of the whole workspace are in `tests/`: `layers.rs` checks which crate may
//! depend on which, `sources.rs` the text of the sources.

#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

mod allocator;
mod metrics;

pub use allocator::CountingAllocator;
pub use metrics::{Sample, parse_metrics};

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use warren_keys::Entropy;

/// Fills with the same byte in every call.
#[derive(Debug, Clone, Copy, Default)]
pub struct FixedEntropy(pub u8);

impl Entropy for FixedEntropy {
    fn fill(&mut self, out: &mut [u8]) {
        out.fill(self.0);
    }
}

/// Counts its calls. Two calls never give the same bytes when they ask for
/// eight bytes or more.
#[derive(Debug, Clone, Copy, Default)]
pub struct CountingEntropy(pub u64);

impl Entropy for CountingEntropy {
    fn fill(&mut self, out: &mut [u8]) {
        self.0 = self.0.wrapping_add(1);
        for (index, byte) in out.iter_mut().enumerate() {
            *byte = self.0.to_le_bytes()[index % 8] ^ (index as u8);
        }
    }
}

/// A stream of pseudo-random bytes (splitmix64) that depends on the seed alone.
#[derive(Debug, Clone, Copy, Default)]
pub struct SeededEntropy(pub u64);

impl SeededEntropy {
    /// The next 64 bits of the stream.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`, which must not be zero.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next_u64() % limit
    }
}

impl Entropy for SeededEntropy {
    fn fill(&mut self, out: &mut [u8]) {
        for chunk in out.chunks_mut(8) {
            let bytes = self.next_u64().to_le_bytes();
            chunk.copy_from_slice(&bytes[..chunk.len()]);
        }
    }
}

/// A writer for log lines, as `with_writer` of `tracing_subscriber::fmt()` takes it
/// from a closure: clones write to one memory.
#[derive(Debug, Clone, Default)]
pub struct LogLines(Arc<Mutex<Vec<u8>>>);

impl LogLines {
    /// All lines so far.
    #[must_use]
    pub fn text(&self) -> String {
        let bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl io::Write for LogLines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counting_entropy_never_repeats() {
        let mut entropy = CountingEntropy::default();
        let first: [u8; 32] = entropy.bytes();
        let second: [u8; 32] = entropy.bytes();
        assert_ne!(first, second);
    }

    #[test]
    fn equal_seeds_give_equal_streams() {
        let (mut one, mut other) = (SeededEntropy(7), SeededEntropy(7));
        assert_eq!(one.bytes::<100>(), other.bytes::<100>());
        assert_ne!(one.next_u64(), SeededEntropy(8).next_u64());
        assert!((0..1000).all(|_| one.below(3) < 3));
    }
}

//! TAI64N timestamps, the replay protection of initiations.
//!
//! A responder accepts an initiation only when its timestamp is greater than
//! the last one from that peer. So ours must grow strictly, whatever the wall
//! clock does: each is the greater of the clock and the last one plus one.

use std::time::Duration;

/// 2^62 + 10: the TAI64 label of the UNIX epoch as WireGuard counts it.
const TAI64_EPOCH: u64 = 0x4000_0000_0000_000a;

/// 8 bytes of seconds and 4 of nanoseconds, big-endian, so that comparing the
/// bytes compares the times.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Tai64N(pub(crate) [u8; 12]);

impl Tai64N {
    pub(crate) fn from_unix(since_epoch: Duration) -> Self {
        let mut bytes = [0; 12];
        let seconds = TAI64_EPOCH.saturating_add(since_epoch.as_secs());
        bytes[..8].copy_from_slice(&seconds.to_be_bytes());
        bytes[8..].copy_from_slice(&since_epoch.subsec_nanos().to_be_bytes());
        Self(bytes)
    }
}

/// Gives out strictly growing timestamps.
#[derive(Debug, Default)]
pub(crate) struct Clock {
    last: Duration,
}

/// Timestamps are rounded down to about 16 ms, so that initiations do not reveal how
/// fast this machine computes.
const COARSE: u32 = 1 << 24;

impl Clock {
    /// The timestamp for an initiation sent when the wall clock shows `wall`
    /// (time since the UNIX epoch).
    pub(crate) fn next(&mut self, wall: Duration) -> Tai64N {
        let coarse = Duration::new(wall.as_secs(), wall.subsec_nanos() & !(COARSE - 1));
        self.last = coarse.max(self.last.saturating_add(Duration::from_nanos(1)));
        Tai64N::from_unix(self.last)
    }

    /// Time of the last timestamp given out.
    pub(crate) fn last(&self) -> Duration {
        self.last
    }

    /// Promises that no timestamp up to `last` is given out again.
    pub(crate) fn resume(&mut self, last: Duration) {
        self.last = self.last.max(last);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_label_of_the_epoch() {
        let bytes = Tai64N::from_unix(Duration::new(1, 5)).0;
        assert_eq!(bytes, [0x40, 0, 0, 0, 0, 0, 0, 0x0b, 0, 0, 0, 5]);
    }

    #[test]
    fn timestamps_grow_when_the_clock_stands_or_falls() {
        let mut clock = Clock::default();
        let mut last = clock.next(Duration::from_secs(1_000));
        for wall in [1_000, 1_000, 5, 0, 999, 1_001, 1_000] {
            let next = clock.next(Duration::from_secs(wall));
            assert!(next > last, "{next:?} after {last:?}");
            last = next;
        }
        clock.resume(Duration::from_secs(5_000));
        assert!(clock.next(Duration::ZERO) > Tai64N::from_unix(Duration::from_secs(5_000)));
    }
}

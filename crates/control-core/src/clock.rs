//! Readings of the clocks.
//!
//! Keys expire by the wall clock, and a wall clock can be wrong for a while: set by
//! hand, by a time server that lies, or by a machine that was suspended. A reading
//! that does not fit the monotonic clock is a *jump*. For [`SETTLE`], the
//! coordinator goes on from the time before the jump; when the wall clock still
//! says the same by then, it is believed. So a clock that jumps and comes back
//! expires no key, and one that was corrected is followed.

use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};

/// Readings of the two clocks that differ by less belong together: clocks drift,
/// and time servers correct them in small steps.
const TOLERANCE: Duration = Duration::from_secs(60);
/// The time after which a clock that jumped is believed.
pub(crate) const SETTLE: Duration = Duration::from_secs(5 * 60);

/// The calendar moment of a wall clock reading. A reading beyond the year 9999
/// is held at the end of the calendar.
pub(crate) fn timestamp(wall: Duration) -> Timestamp {
    SignedDuration::try_from(wall)
        .ok()
        .and_then(|since| Timestamp::from_duration(since).ok())
        .unwrap_or(Timestamp::MAX)
}

/// The clocks, read together.
#[derive(Debug, Clone)]
pub(crate) struct Clock {
    /// The latest reading of the monotonic clock.
    now: Instant,
    /// The time since the UNIX epoch that is believed at `now`.
    believed: Duration,
    /// The reading of the wall clock at `now`.
    latest: Duration,
    jump: Option<Jump>,
}

/// The wall clock reads something else than it should.
#[derive(Debug, Clone, Copy)]
struct Jump {
    since: Instant,
    reading: Reading,
}

/// Readings of both clocks at one moment.
#[derive(Debug, Clone, Copy)]
struct Reading {
    now: Instant,
    wall: Duration,
}

impl Reading {
    /// Whether the two clocks went on equally from here to a later reading.
    fn fits(self, now: Instant, wall: Duration) -> bool {
        let expected = self.wall + now.saturating_duration_since(self.now);
        expected.abs_diff(wall) <= TOLERANCE
    }
}

impl Clock {
    /// Believes the first reading: there is nothing to compare it with.
    pub(crate) fn new(now: Instant, wall: Duration) -> Self {
        Self {
            now,
            believed: wall,
            latest: wall,
            jump: None,
        }
    }

    /// The latest reading of the monotonic clock.
    pub(crate) fn now(&self) -> Instant {
        self.now
    }

    /// The time that is believed. Decisions about what has expired go by it.
    pub(crate) fn time(&self) -> Timestamp {
        timestamp(self.believed)
    }

    /// The latest reading of the wall clock, believed or not.
    pub(crate) fn latest(&self) -> Timestamp {
        timestamp(self.latest)
    }

    /// Takes over readings of both clocks.
    pub(crate) fn read(&mut self, now: Instant, wall: Duration) {
        let now = now.max(self.now);
        let believed = Reading {
            now: self.now,
            wall: self.believed,
        };
        let follows = believed.fits(now, wall) || {
            let reading = Reading { now, wall };
            let same = self.jump.filter(|jump| jump.reading.fits(now, wall));
            let since = same.map_or(now, |jump| jump.since);
            self.jump = Some(Jump { since, reading });
            now.saturating_duration_since(since) >= SETTLE
        };
        if follows {
            self.believed = wall;
            self.jump = None;
        } else {
            self.believed += now.saturating_duration_since(self.now);
        }
        (self.now, self.latest) = (now, wall);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const START: Duration = Duration::from_secs(1_780_000_000);
    const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn clock_that_jumps_and_comes_back_is_not_followed() {
        let start = Instant::now();
        let mut clock = Clock::new(start, START);
        for after in [30, 60, 200] {
            clock.read(start + secs(after), START + YEAR + secs(after));
            assert_eq!(clock.time(), timestamp(START + secs(after)));
        }
        clock.read(start + secs(230), START + secs(230));
        assert_eq!(clock.time(), timestamp(START + secs(230)));
        // The next jump has to last again.
        clock.read(start + secs(301), START + YEAR);
        assert_eq!(clock.time(), timestamp(START + secs(301)));
    }

    #[test]
    fn clock_that_was_corrected_is_followed_after_a_while() {
        for corrected in [START - YEAR, START + YEAR] {
            let start = Instant::now();
            let mut clock = Clock::new(start, START);
            clock.read(start, corrected);
            assert_eq!(clock.time(), timestamp(START));
            clock.read(start + SETTLE, corrected + SETTLE);
            assert_eq!(clock.time(), timestamp(corrected + SETTLE));
        }
    }

    proptest! {
        /// The believed time follows the monotonic clock while the wall clock reads
        /// anything for less than the settling time.
        #[test]
        fn short_disturbance_moves_nothing(
            readings in proptest::collection::vec((0_u64..20, 0_u64..4_000_000_000), 1..14),
        ) {
            let start = Instant::now();
            let mut clock = Clock::new(start, START);
            let mut passed = Duration::ZERO;
            for (step, wall) in readings {
                passed += secs(step);
                clock.read(start + passed, secs(wall));
                let difference = clock.believed.abs_diff(START + passed);
                // Readings within the tolerance are believed one by one.
                prop_assert!(difference <= TOLERANCE * 14);
            }
            clock.read(start + passed, START + passed);
            prop_assert!(clock.believed.abs_diff(START + passed) <= TOLERANCE * 14);
        }
    }
}

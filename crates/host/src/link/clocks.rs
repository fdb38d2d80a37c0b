//! Noticing that the machine slept, from three clocks that differ in how they
//! take it.

#![allow(unsafe_code)] // clock_gettime: the standard library has no clock that runs on in sleep

use std::time::Duration;

/// A sleep of the machine that outlives the mappings of common NATs.
const SLEPT: Duration = Duration::from_secs(30);

/// A jump of the wall clock that is taken for a sleep where the system does
/// not report it (a virtual machine that was stopped).
const JUMPED: Duration = Duration::from_secs(600);

/// Readings of three clocks at one moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clocks {
    /// Stands still while the machine sleeps.
    monotonic: Duration,
    /// Goes on while the machine sleeps.
    boot: Duration,
    /// The wall clock.
    wall: Duration,
}

impl Clocks {
    pub(super) fn now() -> Clocks {
        let read = |clock| {
            let mut time = libc::timespec {
                tv_sec: 0,
                tv_nsec: 0,
            };
            // SAFETY: the kernel writes one `timespec`, which lives on this
            // stack. It fails for unknown clocks only, and then all is zero.
            unsafe { libc::clock_gettime(clock, &mut time) };
            Duration::new(
                u64::try_from(time.tv_sec).unwrap_or(0),
                u32::try_from(time.tv_nsec).unwrap_or(0),
            )
        };
        Clocks {
            monotonic: read(libc::CLOCK_MONOTONIC),
            boot: read(libc::CLOCK_BOOTTIME),
            wall: read(libc::CLOCK_REALTIME),
        }
    }

    pub(super) fn slept_since(self, before: Clocks) -> bool {
        let ran = self.monotonic.saturating_sub(before.monotonic);
        let lived = self.boot.saturating_sub(before.boot);
        let showed = self.wall.saturating_sub(before.wall);
        lived.saturating_sub(ran) >= SLEPT || showed.saturating_sub(ran) >= JUMPED
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sleep_is_seen_and_time_passing_is_not() {
        let before = Clocks {
            monotonic: Duration::from_secs(100),
            boot: Duration::from_secs(200),
            wall: Duration::from_secs(1_000_000),
        };
        let later = |monotonic, boot, wall| Clocks {
            monotonic: before.monotonic + Duration::from_secs(monotonic),
            boot: before.boot + Duration::from_secs(boot),
            wall: before.wall + Duration::from_secs(wall),
        };
        assert!(!later(3600, 3600, 3600).slept_since(before));
        assert!(later(15, 60, 60).slept_since(before));
        assert!(later(15, 15, 700).slept_since(before));
        // A clock that is set a minute forward, or back, is not a sleep.
        assert!(!later(15, 15, 75).slept_since(before));
        let back = Clocks {
            wall: Duration::ZERO,
            ..later(15, 15, 0)
        };
        assert!(!back.slept_since(before));
    }
}

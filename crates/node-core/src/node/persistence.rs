//! When the netmap and the clock of the handshakes are written to disk.
//!
//! The netmap is written soon after every change, so that a node that is killed
//! right after joining still knows its network.
//!
//! The clock: a peer takes an initiation only when its timestamp is greater than
//! the last one it took from us. A machine without a battery for its clock, or
//! one whose clock was ahead, may start again at a time that its peers take for
//! the past; they would refuse it until its clock has caught up. So a floor is
//! kept that no timestamp of this run is above, and the next run begins there. It
//! runs ahead of the timestamps by [`CLOCK_STEP`], so that it is written at most
//! once in that time, and only while there are handshakes. An orderly end writes
//! the exact time.

use std::time::{Duration, Instant};

/// The distance by which the floor is set ahead.
const CLOCK_STEP: Duration = Duration::from_secs(60);
/// Shortest time between two writes of a netmap.
const WRITE_GAP: Duration = Duration::from_millis(100);
/// The same for a big netmap, whose writing costs more.
const BIG_WRITE_GAP: Duration = Duration::from_secs(5);
/// The number of peers from which on a netmap is big.
const BIG: usize = 200;

/// The state of the files, and whether they should be written.
#[derive(Debug)]
pub(super) struct Persistence {
    netmap_changed: bool,
    netmap_saved_at: Instant,
    /// No handshake so far had a timestamp above this: time since the UNIX epoch.
    clock_floor: Duration,
}

impl Persistence {
    pub(super) fn new(now: Instant, clock_floor: Duration) -> Self {
        Self {
            netmap_changed: false,
            netmap_saved_at: now,
            clock_floor,
        }
    }

    pub(super) fn clock_floor(&self) -> Duration {
        self.clock_floor
    }

    pub(super) fn netmap_changed(&mut self) {
        self.netmap_changed = true;
    }

    /// The file was removed; nothing is to be written.
    pub(super) fn netmap_forgotten(&mut self) {
        self.netmap_changed = false;
    }

    /// The time to write a netmap with so many peers; `None` when the file is up
    /// to date.
    pub(super) fn netmap_due(&self, peers: usize) -> Option<Instant> {
        let gap = if peers > BIG {
            BIG_WRITE_GAP
        } else {
            WRITE_GAP
        };
        self.netmap_changed.then(|| self.netmap_saved_at + gap)
    }

    /// Whether the netmap is to be written now.
    pub(super) fn take_netmap(&mut self, now: Instant, peers: usize) -> bool {
        let is_due = self.netmap_due(peers).is_some_and(|due| now >= due);
        if is_due {
            self.netmap_changed = false;
            self.netmap_saved_at = now;
        }
        is_due
    }

    /// Whether the netmap is to be written at the end.
    pub(super) fn take_netmap_at_end(&mut self) -> bool {
        std::mem::take(&mut self.netmap_changed)
    }

    /// The new floor, when a timestamp has passed the old one.
    pub(super) fn take_clock(&mut self, last_timestamp: Duration) -> Option<Duration> {
        if last_timestamp <= self.clock_floor {
            return None;
        }
        self.clock_floor = whole_seconds(last_timestamp) + CLOCK_STEP;
        Some(self.clock_floor)
    }

    /// The floor at the end: no further ahead than needed.
    pub(super) fn take_exact_clock(&mut self, last_timestamp: Duration) -> Option<Duration> {
        let exact = whole_seconds(last_timestamp);
        let changed = exact != self.clock_floor;
        self.clock_floor = exact;
        changed.then_some(exact)
    }
}

/// The next whole second that is not before `time`.
fn whole_seconds(time: Duration) -> Duration {
    let begun = u64::from(time.subsec_nanos() > 0);
    Duration::from_secs(time.as_secs().saturating_add(begun))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn netmaps_are_written_after_a_gap_that_depends_on_their_size() {
        let start = Instant::now();
        let mut disk = Persistence::new(start, Duration::ZERO);
        assert_eq!(disk.netmap_due(1), None);
        disk.netmap_changed();
        assert!(!disk.take_netmap(start, 1));
        assert_eq!(disk.netmap_due(BIG + 1), Some(start + BIG_WRITE_GAP));
        assert!(disk.take_netmap(start + WRITE_GAP, 1));
        assert!(!disk.take_netmap(start + BIG_WRITE_GAP, 1) && !disk.take_netmap_at_end());
        disk.netmap_changed();
        disk.netmap_forgotten();
        assert!(!disk.take_netmap_at_end());
    }

    #[test]
    fn the_floor_runs_ahead_of_the_timestamps_and_ends_exactly() {
        let millis = Duration::from_millis;
        let mut disk = Persistence::new(Instant::now(), Duration::from_secs(1000));
        assert_eq!(disk.take_clock(millis(1_000_000)), None);
        let floor = Duration::from_secs(1062);
        assert_eq!(disk.take_clock(millis(1_001_001)), Some(floor));
        assert_eq!(disk.take_clock(millis(1_062_000)), None);
        assert_eq!(
            disk.take_exact_clock(millis(1_040_500)),
            Some(Duration::from_secs(1041))
        );
        assert_eq!(disk.take_exact_clock(millis(1_040_500)), None);
    }
}

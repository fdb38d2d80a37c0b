//! Virtual time: a clock that only the event loop moves, and the queue of what
//! is to happen.
//!
//! Monotonic time is one real [`Instant`], taken once, and an offset; the base
//! is never looked at, so two runs agree. Wall time is told apart from it:
//! every host may have a clock that is wrong, and that jumps.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

/// The wall clock at the start of every simulation: 2026-10-01, 00:00 UTC.
const EPOCH: Duration = Duration::from_secs(1_790_812_800);

/// The time since the simulation began.
pub type Moment = Duration;

/// Milliseconds, short enough to read like prose.
pub const fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Seconds, short enough to read like prose.
pub const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// The clock of the simulation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    base: Instant,
    moment: Moment,
}

impl Clock {
    pub(crate) fn new() -> Self {
        Self {
            base: Instant::now(),
            moment: Moment::ZERO,
        }
    }

    pub(crate) fn moment(&self) -> Moment {
        self.moment
    }

    /// The present as the cores want it.
    pub(crate) fn now(&self) -> Instant {
        self.base + self.moment
    }

    /// When `at` is, since the start.
    pub(crate) fn moment_of(&self, at: Instant) -> Moment {
        at.saturating_duration_since(self.base)
    }

    /// The right wall clock time, since 1970.
    pub(crate) fn wall(&self) -> Duration {
        EPOCH + self.moment
    }

    pub(crate) fn advance_to(&mut self, moment: Moment) {
        debug_assert!(moment >= self.moment, "time went backwards");
        self.moment = self.moment.max(moment);
    }
}

struct Entry<E> {
    at: Moment,
    sequence: u64,
    event: E,
}

impl<E> PartialEq for Entry<E> {
    fn eq(&self, other: &Self) -> bool {
        self.sequence == other.sequence
    }
}

impl<E> Eq for Entry<E> {}

impl<E> PartialOrd for Entry<E> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> Ord for Entry<E> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.sequence).cmp(&(other.at, other.sequence))
    }
}

/// What is to happen, in the order of time; events of the same moment happen
/// in the order in which they were planned.
pub(crate) struct Queue<E> {
    heap: BinaryHeap<Reverse<Entry<E>>>,
    sequence: u64,
}

impl<E> Queue<E> {
    pub(crate) fn new() -> Self {
        Self {
            heap: BinaryHeap::new(),
            sequence: 0,
        }
    }

    pub(crate) fn plan(&mut self, at: Moment, event: E) {
        self.sequence += 1;
        self.heap.push(Reverse(Entry {
            at,
            sequence: self.sequence,
            event,
        }));
    }

    /// The next event, if it happens no later than `until`.
    pub(crate) fn take(&mut self, until: Moment) -> Option<(Moment, E)> {
        if self.heap.peek()?.0.at > until {
            return None;
        }
        self.heap
            .pop()
            .map(|Reverse(entry)| (entry.at, entry.event))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_by_time_and_then_by_plan() {
        let mut queue = Queue::new();
        queue.plan(millis(5), "late");
        queue.plan(millis(1), "first");
        queue.plan(millis(1), "second");
        assert_eq!(queue.take(millis(1)), Some((millis(1), "first")));
        assert_eq!(queue.take(millis(1)), Some((millis(1), "second")));
        assert_eq!(queue.take(millis(4)), None);
        assert_eq!(queue.take(millis(5)), Some((millis(5), "late")));
    }
}

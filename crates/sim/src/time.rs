//! Virtual time: a clock that only the event loop moves, and the queue of events.
//!
//! Monotonic time is one real [`Instant`], taken once, and an offset; the base
//! is never looked at, so two runs agree. Wall time is separate: every host may
//! have a clock that is wrong, and that jumps.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

/// The wall clock at the start of every simulation: 2026-10-01, 00:00 UTC.
const EPOCH: Duration = Duration::from_secs(1_790_812_800);

/// The time since the simulation began.
pub type SimTime = Duration;

/// A number of milliseconds.
pub const fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// A number of seconds.
pub const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// The clock of the simulation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    base: Instant,
    elapsed: SimTime,
}

impl Clock {
    pub(crate) fn new() -> Self {
        Self {
            base: Instant::now(),
            elapsed: SimTime::ZERO,
        }
    }

    pub(crate) fn elapsed(&self) -> SimTime {
        self.elapsed
    }

    /// The present as the cores want it.
    pub(crate) fn now(&self) -> Instant {
        self.base + self.elapsed
    }

    /// The time from the start until `at`.
    pub(crate) fn time_of(&self, at: Instant) -> SimTime {
        at.saturating_duration_since(self.base)
    }

    /// The right wall clock time, since the UNIX epoch.
    pub(crate) fn wall(&self) -> Duration {
        EPOCH + self.elapsed
    }

    pub(crate) fn advance_to(&mut self, elapsed: SimTime) {
        debug_assert!(elapsed >= self.elapsed, "time went backwards");
        self.elapsed = self.elapsed.max(elapsed);
    }
}

struct Entry<E> {
    at: SimTime,
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

/// Planned events, in the order of time; events of the same time are in the order
/// in which they were planned.
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

    pub(crate) fn plan(&mut self, at: SimTime, event: E) {
        self.sequence += 1;
        self.heap.push(Reverse(Entry {
            at,
            sequence: self.sequence,
            event,
        }));
    }

    /// The next event, if it happens no later than `until`.
    pub(crate) fn take(&mut self, until: SimTime) -> Option<(SimTime, E)> {
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

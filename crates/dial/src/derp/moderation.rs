//! When to look at a busy connection again, as network cards do with
//! interrupts.
//!
//! A relay that passes packets on one by one wakes its receiver for each. On a
//! machine with few cores the receiver then takes the processor from the relay
//! a thousand times per second, only to find one packet each time, and hands
//! the host one packet each time, which answers one by one too. So while many
//! small packets come, a receiver that has taken all there was leaves the connection
//! alone for [`PAUSE`]; packets that arrive meanwhile are
//! read together. A connection with
//! fewer packets is never left alone.

use std::time::{Duration, Instant};

/// How long a busy connection is left alone.
const PAUSE: Duration = Duration::from_millis(1);
/// Over how long packets are counted.
const SPAN: Duration = Duration::from_millis(8);
/// Packets in a span that make a connection busy: 8,000 per second.
const BUSY: usize = 64;

/// Counts small packets of one connection.
#[derive(Debug)]
pub(super) struct Moderation {
    since: Instant,
    packets: usize,
    busy: bool,
}

impl Moderation {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            since: now,
            packets: 0,
            busy: false,
        }
    }

    /// Notes that `packets` came together, and returns how long to leave the
    /// connection alone.
    pub(super) fn note(&mut self, now: Instant, packets: usize) -> Option<Duration> {
        self.packets += packets;
        let elapsed = now.saturating_duration_since(self.since);
        if elapsed >= SPAN {
            // Over a longer time as many packets say nothing.
            self.busy = self.packets >= BUSY && elapsed < SPAN * 2;
            self.since = now;
            self.packets = 0;
        }
        self.busy.then_some(PAUSE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Packets come in groups of `size` every `gap`; how many groups of 1,000
    /// were followed by a pause.
    fn pauses(size: usize, gap: Duration) -> usize {
        let start = Instant::now();
        let mut moderation = Moderation::new(start);
        let at = |i: u32| start + gap * i;
        (0..1000)
            .filter(|i| moderation.note(at(*i), size).is_some())
            .count()
    }

    #[test]
    fn only_busy_connections_are_left_alone() {
        // A thousand single packets per second: a fast conversation.
        assert_eq!(pauses(1, Duration::from_millis(1)), 0);
        // Large groups, seldom: pages of text.
        assert_eq!(pauses(200, Duration::from_millis(50)), 0);
        // A stream, packet by packet, and the same in groups.
        assert!(pauses(1, Duration::from_micros(40)) > 700);
        assert!(pauses(50, Duration::from_millis(1)) > 900);
    }

    #[test]
    fn moderation_ends_with_the_stream() {
        let start = Instant::now();
        let mut moderation = Moderation::new(start);
        for i in 0..1000 {
            moderation.note(start + Duration::from_micros(50 * i), 1);
        }
        let later = start + Duration::from_secs(1);
        assert_eq!(moderation.note(later, 1), None);
        assert_eq!(moderation.note(later + PAUSE, 1), None);
    }
}

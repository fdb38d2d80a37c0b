//! The probe schedule: when to ping while there is no direct path.
//!
//! The first pings of a pair behind NATs are lost: each opens a NAT for the next
//! ping of the other side. A long wait before the next ping is a long wait for
//! the path, so the first ones come close together, and then less and less often,
//! as the chance falls that one more will help.

use std::time::{Duration, Instant};

/// Offsets of the first rounds, in milliseconds, and whether a CallMeMaybe is
/// sent as well, which makes the peer ping us.
const ROUNDS: [(u64, bool); 11] = [
    (0, true),
    (50, false),
    (100, false),
    (200, true),
    (400, false),
    (700, false),
    (1000, true),
    (1500, false),
    (2000, false),
    (3000, true),
    (5000, true),
];
/// Between later rounds...
const LATER_GAP: Duration = Duration::from_secs(5);
/// ...until this long after the start...
const SEARCH_WINDOW: Duration = Duration::from_secs(30);
/// ...and from then on.
const IDLE_RETRY: Duration = Duration::from_secs(15);
/// Candidates that are pinged after the first round.
pub(crate) const MAX_FAST_CANDIDATES: usize = 16;

#[derive(Debug)]
pub(crate) struct ProbeSchedule {
    started: Instant,
    round: usize,
    next: Instant,
}

/// The messages of a round.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Round {
    /// Ping every candidate, not only the freshest ones.
    pub(crate) all_candidates: bool,
    /// Send the peer a CallMeMaybe.
    pub(crate) call_me_maybe: bool,
}

impl ProbeSchedule {
    /// The first round is due now.
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            started: now,
            round: 0,
            next: now,
        }
    }

    /// A schedule whose first round was just done.
    pub(crate) fn after_first_round(now: Instant) -> Self {
        let mut schedule = Self::new(now);
        schedule.take(now);
        schedule
    }

    pub(crate) fn next(&self) -> Instant {
        self.next
    }

    /// The round that is due, if one is. Rounds that were missed are skipped.
    pub(crate) fn take(&mut self, now: Instant) -> Option<Round> {
        if now < self.next {
            return None;
        }
        let call_me_maybe = ROUNDS.get(self.round).is_none_or(|(_, call)| *call);
        let all_candidates = self.round == 0 || self.round >= ROUNDS.len();
        while self.next <= now {
            self.round += 1;
            self.next = match ROUNDS.get(self.round) {
                Some((offset, _)) => self.started + Duration::from_millis(*offset),
                None if now < self.started + SEARCH_WINDOW => self.next + LATER_GAP,
                None => now + IDLE_RETRY,
            };
        }
        Some(Round {
            all_candidates,
            call_me_maybe,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn rounds_come_less_and_less_often() {
        let start = Instant::now();
        let mut schedule = ProbeSchedule::new(start);
        let mut times = Vec::new();
        let mut call_me_maybes = 0;
        while schedule.next() < start + Duration::from_secs(70) {
            let now = schedule.next();
            times.push((now - start).as_millis());
            call_me_maybes += u32::from(schedule.take(now).unwrap().call_me_maybe);
            assert_eq!(schedule.take(now), None);
        }
        let mut expected: Vec<u128> = ROUNDS.iter().map(|(at, _)| u128::from(*at)).collect();
        expected.extend([10_000, 15_000, 20_000, 25_000, 30_000, 45_000, 60_000]);
        assert_eq!(times, expected);
        assert_eq!(call_me_maybes, 12);
    }

    #[test]
    fn missed_rounds_are_skipped() {
        let start = Instant::now();
        let mut schedule = ProbeSchedule::new(start);
        let late = start + Duration::from_millis(650);
        assert!(schedule.take(late).unwrap().all_candidates);
        assert_eq!(schedule.next(), start + Duration::from_millis(700));
    }
}

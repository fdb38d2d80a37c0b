//! When to ping while there is no straight path.
//!
//! The first pings of a pair behind NATs are lost: each opens the way for the
//! other side's next one. Whoever waits long before the next ping waits long
//! for the path, so the first ones come close together, and then ever less
//! often, as the chance falls that one more will help.

use std::time::{Duration, Instant};

/// Offsets of the first rounds, in milliseconds, and whether the peer is
/// called as well: a call makes it ping us.
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
const LATER: Duration = Duration::from_secs(5);
/// ...until this long after the start...
const PATIENCE: Duration = Duration::from_secs(30);
/// ...and from then on.
const RESIGNED: Duration = Duration::from_secs(15);
/// Candidates that are pinged after the first round.
pub(crate) const FAVOURITES: usize = 16;

#[derive(Debug)]
pub(crate) struct Punch {
    started: Instant,
    round: usize,
    next: Instant,
}

/// What to do in a round.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Round {
    /// Ping every candidate, not only the favourites.
    pub(crate) everyone: bool,
    /// Call the peer.
    pub(crate) call: bool,
}

impl Punch {
    /// The first round is due now.
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            started: now,
            round: 0,
            next: now,
        }
    }

    /// Starts again behind a first round that was just done.
    pub(crate) fn after_first_round(now: Instant) -> Self {
        let mut punch = Self::new(now);
        punch.take(now);
        punch
    }

    pub(crate) fn next(&self) -> Instant {
        self.next
    }

    /// The round that is due, if one is. Rounds that were missed are skipped.
    pub(crate) fn take(&mut self, now: Instant) -> Option<Round> {
        if now < self.next {
            return None;
        }
        let call = ROUNDS.get(self.round).is_none_or(|(_, call)| *call);
        let everyone = self.round == 0 || self.round >= ROUNDS.len();
        while self.next <= now {
            self.round += 1;
            self.next = match ROUNDS.get(self.round) {
                Some((offset, _)) => self.started + Duration::from_millis(*offset),
                None if now < self.started + PATIENCE => self.next + LATER,
                None => now + RESIGNED,
            };
        }
        Some(Round { everyone, call })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn rounds_come_ever_less_often() {
        let start = Instant::now();
        let mut punch = Punch::new(start);
        let mut times = Vec::new();
        let mut calls = 0;
        while punch.next() < start + Duration::from_secs(70) {
            let now = punch.next();
            times.push((now - start).as_millis());
            calls += u32::from(punch.take(now).unwrap().call);
            assert_eq!(punch.take(now), None);
        }
        let mut expected: Vec<u128> = ROUNDS.iter().map(|(at, _)| u128::from(*at)).collect();
        expected.extend([10_000, 15_000, 20_000, 25_000, 30_000, 45_000, 60_000]);
        assert_eq!(times, expected);
        assert_eq!(calls, 12);
    }

    #[test]
    fn missed_rounds_are_skipped() {
        let start = Instant::now();
        let mut punch = Punch::new(start);
        let late = start + Duration::from_millis(650);
        assert!(punch.take(late).unwrap().everyone);
        assert_eq!(punch.next(), start + Duration::from_millis(700));
    }
}

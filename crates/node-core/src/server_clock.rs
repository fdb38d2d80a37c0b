//! The time at the coordination server.
//!
//! The ends of keys are times of the server, so they are judged by its clock and not
//! by that of this machine, which may be wrong by any amount. Each message of the map
//! stream may contain the server's time; from there on it is counted with the monotonic
//! clock, so that a jump of the machine's clock changes nothing. While the machine
//! sleeps that clock stands still: keys then count for longer, until the server answers
//! again.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// A difference that is worth a word to the user.
const NOTABLE: Duration = Duration::from_secs(10 * 60);

/// One moment on both clocks, as times since the UNIX epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockPair {
    /// By the coordination server.
    pub server: Duration,
    /// By this machine.
    pub machine: Duration,
}

/// The clock of the server, as far as it is known.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct ServerClock {
    /// The server's time at a moment.
    known: Option<(Instant, Duration)>,
    /// The machine has slept since, so the time may be too early.
    slept: bool,
}

impl ServerClock {
    /// The server's time is known.
    pub fn learn(&mut self, now: Instant, server: Duration) {
        self.known = Some((now, server));
        self.slept = false;
    }

    /// The machine slept: the clock that the time is counted with stood still.
    pub fn slept(&mut self) {
        self.slept = true;
    }

    /// Goes on from what an earlier run knew; `wall` is the time of this machine.
    pub fn resume(&mut self, now: Instant, wall: Duration, kept: ClockPair) {
        let was_behind = kept.machine + NOTABLE < kept.server;
        let server = match wall.checked_sub(kept.machine) {
            // The clock was wrong then and has been set since: its jump is not time that
            // passed.
            Some(_) if was_behind && wall >= kept.server => wall,
            Some(passed) => kept.server.saturating_add(passed),
            // The clock was set back. It may be right now, but time does not go back.
            None => wall.max(kept.server),
        };
        self.known = Some((now, server));
    }

    /// The time at the server; by this machine while nothing else is known.
    pub fn now(&self, now: Instant, wall: Duration) -> Duration {
        self.known.map_or(wall, |(at, server)| {
            server.saturating_add(now.saturating_duration_since(at))
        })
    }

    /// Both clocks now, for the next run.
    pub fn pair(&self, now: Instant, wall: Duration) -> Option<ClockPair> {
        self.known.map(|_| ClockPair {
            server: self.now(now, wall),
            machine: wall,
        })
    }

    /// The warning for the user when this machine's clock is far off.
    pub fn problem(&self, now: Instant, wall: Duration) -> Option<String> {
        if self.slept {
            return None;
        }
        let server = self.now(now, wall);
        let (difference, direction) = match wall.checked_sub(server) {
            Some(ahead) => (ahead, "ahead of"),
            None => (server.saturating_sub(wall), "behind"),
        };
        let minutes = difference.as_secs() / 60;
        let text = match minutes {
            0..120 => format!("{minutes} minutes"),
            120..2_880 => format!("{} hours", minutes / 60),
            _ => format!("{} days", minutes / 1_440),
        };
        (difference >= NOTABLE).then(|| {
            format!(
                "the clock of this machine is {text} {direction} that of the coordination server; \
                 set it (for example by NTP), or certificates and logins may be refused"
            )
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    const DAY: u64 = 86_400;

    fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn clock_that_is_far_off_is_reported() {
        let now = Instant::now();
        let mut clock = ServerClock::default();
        assert_eq!(clock.problem(now, secs(5)), None);
        clock.learn(now, secs(1_000 * DAY));
        for (wall, part) in [
            (secs(1_000 * DAY + 599), None),
            (secs(1_000 * DAY - 599), None),
            (secs(1_200 * DAY), Some("200 days ahead of")),
            (secs(0), Some("1000 days behind")),
            (secs(1_000 * DAY + 660), Some("11 minutes ahead of")),
        ] {
            let problem = clock.problem(now, wall);
            match part {
                None => assert_eq!(problem, None),
                Some(part) => assert!(problem.unwrap().contains(part), "{part}"),
            }
        }
    }

    #[test]
    fn a_machine_that_slept_does_not_complain_of_its_clock() {
        let now = Instant::now();
        let mut clock = ServerClock::default();
        clock.learn(now, secs(DAY));
        clock.slept();
        assert_eq!(clock.problem(now, secs(2 * DAY)), None);
        clock.learn(now, secs(DAY));
        assert!(clock.problem(now, secs(2 * DAY)).is_some());
    }

    proptest! {
        /// However wrong this machine's clock is and whenever it jumps, the server's
        /// time is the server's.
        #[test]
        fn time_of_the_server_does_not_depend_on_this_machines_clock(
            server in DAY..20_000 * DAY,
            steps in prop::collection::vec((0..10 * DAY, 0..40_000 * DAY), 1..8),
        ) {
            let mut now = Instant::now();
            let mut clock = ServerClock::default();
            clock.learn(now, secs(server));
            let mut expected = server;
            for (passed, wall) in steps {
                now += secs(passed);
                expected += passed;
                prop_assert_eq!(clock.now(now, secs(wall)), secs(expected));
            }
        }

        /// A restart with a clock that is as wrong as before loses nothing.
        #[test]
        fn next_run_goes_on_with_a_wrong_clock(
            server in DAY..20_000 * DAY,
            wall in 0..40_000 * DAY,
            off in 0..100 * DAY,
        ) {
            let now = Instant::now();
            let mut clock = ServerClock::default();
            clock.learn(now, secs(server));
            let kept = clock.pair(now, secs(wall)).unwrap();
            let mut next = ServerClock::default();
            next.resume(now, secs(wall + off), kept);
            let time = next.now(now, secs(wall + off));
            // A clock that was behind and is not any more was set: then its jump is not time
            // that passed.
            let was_set = wall + NOTABLE.as_secs() < server && wall + off >= server;
            if was_set {
                prop_assert!(secs(server) <= time && time <= secs(server + off));
            } else {
                prop_assert_eq!(time, secs(server + off));
            }
            // Where the clock was set right meanwhile, time does not go back.
            let right = server + off;
            let mut next = ServerClock::default();
            next.resume(now, secs(right), kept);
            prop_assert!(next.now(now, secs(right)) >= secs(server));
        }
    }
}

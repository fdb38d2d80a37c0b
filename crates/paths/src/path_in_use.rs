//! A path over UDP in use, direct or through a peer relay, and how long it is trusted.
//!
//! A pong proves the path both ways; data that authenticated proves only that
//! the peer reaches us. Either makes the path *trusted* for [`TRUST`]: packets
//! take it alone.
//!
//! While packets flow the path is checked: every [`HEARTBEAT`], or after
//! [`SILENCE`] without anything from it while we send. While a check has no
//! answer, pings follow in quick succession; soon the path is *degraded* (packets
//! take DERP as well), and a second after the first ping it is lost. So a
//! flow over a path that dies stalls for little more than a second, and a path
//! that only dropped one ping is kept.
//!
//! While data still arrives from the peer, this takes longer: on a congested path
//! pings are lost first.

use std::time::{Duration, Instant};

/// A path is trusted this long after the last sign of life.
const TRUST: Duration = Duration::from_millis(6500);
/// A path in use is checked this often, whatever arrives from it.
const HEARTBEAT: Duration = Duration::from_secs(3);
/// ...and after this long without a sign of life while packets are sent.
const SILENCE: Duration = Duration::from_secs(1);
/// The last packet is this young while packets "are sent"; the data plane
/// reports once a second.
const SENDING: Duration = Duration::from_secs(2);
/// Heartbeats end this long after the last packet.
pub(crate) const ACTIVE: Duration = Duration::from_secs(45);
/// Data that arrived within this time counts as arriving now; the data plane
/// reports about once a second.
const RECEIVING: Duration = Duration::from_millis(1200);
/// Assumed for a path that was never measured.
const UNKNOWN_ROUND_TRIP: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(crate) struct PathInUse<A> {
    pub(crate) address: A,
    found: Instant,
    /// When the last pong came.
    confirmed: Instant,
    /// When data that authenticated last came from there.
    received: Option<Instant>,
    /// When the last check began, or the last pong came.
    checked: Instant,
    check: Option<Check>,
}

#[derive(Debug)]
struct Check {
    since: Instant,
    next_probe: Instant,
    cause: Cause,
}

/// The reason for a check, the weakest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Cause {
    /// The time for a check has come.
    Routine,
    /// The peer sent a CallMeMaybe: it has no path to us. Data that arrives proves
    /// nothing.
    CallMeMaybe,
    /// The peer or this node probably has another address: packets take DERP as
    /// well, at once.
    Moved,
}

impl<A> PathInUse<A> {
    /// A path that a pong has just confirmed.
    pub(crate) fn new(now: Instant, address: A) -> Self {
        Self {
            address,
            found: now,
            confirmed: now,
            received: None,
            checked: now,
            check: None,
        }
    }

    /// A pong came.
    pub(crate) fn confirm(&mut self, now: Instant) {
        self.confirmed = now;
        self.checked = now;
        self.check = None;
    }

    /// Data that authenticated came from there.
    pub(crate) fn received(&mut self, now: Instant) {
        self.received = Some(now);
    }

    /// The path may be gone: the next ping is due now.
    pub(crate) fn mark_suspect(&mut self, now: Instant, cause: Cause) {
        let check = self.check.get_or_insert(Check {
            since: now,
            next_probe: now,
            cause,
        });
        check.cause = check.cause.max(cause);
    }

    /// Packets take another path now: an open check says nothing.
    pub(crate) fn rest(&mut self) {
        self.check = None;
    }

    /// When it became the path in use.
    pub(crate) fn found(&self) -> Instant {
        self.found
    }

    /// The last sign of life.
    fn alive(&self) -> Instant {
        self.received
            .map_or(self.confirmed, |received| received.max(self.confirmed))
    }

    /// Whether packets take this path alone.
    pub(crate) fn is_good(&self, now: Instant, round_trip: Option<Duration>) -> bool {
        now < self.alive() + TRUST && !self.is_degraded(now, round_trip)
    }

    /// Whether a check has failed so far that packets should also take the
    /// relay.
    pub(crate) fn is_degraded(&self, now: Instant, round_trip: Option<Duration>) -> bool {
        self.degraded_at(round_trip).is_some_and(|at| now >= at)
    }

    /// Whether a check has failed for good.
    pub(crate) fn is_lost(&self, now: Instant, round_trip: Option<Duration>) -> bool {
        self.lost_at(round_trip).is_some_and(|at| now >= at)
    }

    /// When to ping next, with `last_sent` the time of the last packet.
    pub(crate) fn check_at(&self, last_sent: Option<Instant>) -> Option<Instant> {
        if let Some(check) = &self.check {
            return Some(check.next_probe);
        }
        let last_sent = last_sent?;
        let heartbeat = Some(self.checked + HEARTBEAT).filter(|at| *at < last_sent + ACTIVE);
        let silence = Some(self.alive() + SILENCE).filter(|at| *at < last_sent + SENDING);
        heartbeat.into_iter().chain(silence).min()
    }

    /// A ping is on its way, as `check_at` asked for.
    pub(crate) fn probed(&mut self, now: Instant, round_trip: Option<Duration>) {
        let round_trip = round_trip.unwrap_or(UNKNOWN_ROUND_TRIP);
        let gap = (round_trip * 3 / 2).max(Duration::from_millis(200));
        self.checked = now;
        let check = self.check.get_or_insert(Check {
            since: now,
            next_probe: now,
            cause: Cause::Routine,
        });
        check.next_probe = now + gap;
    }

    /// When the destination of packets changes by time alone.
    pub(crate) fn change_at(&self, now: Instant, round_trip: Option<Duration>) -> Option<Instant> {
        let expiry = self.alive() + TRUST;
        let all = [
            Some(expiry),
            self.degraded_at(round_trip),
            self.lost_at(round_trip),
        ];
        all.into_iter().flatten().filter(|at| *at > now).min()
    }

    fn degraded_at(&self, round_trip: Option<Duration>) -> Option<Instant> {
        let check = self.check.as_ref()?;
        if check.cause == Cause::Moved {
            return Some(check.since);
        }
        let round_trip = round_trip.unwrap_or(UNKNOWN_ROUND_TRIP);
        let fast = check.since
            + (round_trip * 2 + Duration::from_millis(50)).max(Duration::from_millis(300));
        let slow = check.since + (round_trip * 3).max(Duration::from_secs(1));
        Some(self.unless_receiving(fast, slow))
    }

    fn lost_at(&self, round_trip: Option<Duration>) -> Option<Instant> {
        let check = self.check.as_ref()?;
        let round_trip = round_trip.unwrap_or(UNKNOWN_ROUND_TRIP);
        let fast =
            check.since + (round_trip * 4 + Duration::from_millis(100)).max(Duration::from_secs(1));
        let slow = check.since + (round_trip * 4).max(Duration::from_secs(5));
        Some(self.unless_receiving(fast, slow))
    }

    /// `fast`, but in a routine check not while data arrives; then `slow` at
    /// the latest.
    fn unless_receiving(&self, fast: Instant, slow: Instant) -> Instant {
        let routine = self
            .check
            .as_ref()
            .is_some_and(|check| check.cause == Cause::Routine);
        let received = self.received.filter(|_| routine);
        received.map_or(fast, |received| (received + RECEIVING).min(slow).max(fast))
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    const RTT: Option<Duration> = Some(Duration::from_millis(40));

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn path(now: Instant) -> PathInUse<SocketAddr> {
        PathInUse::new(now, ([192, 0, 2, 1], 1).into())
    }

    #[test]
    fn an_idle_path_is_not_checked() {
        let now = Instant::now();
        let path = path(now);
        assert_eq!(path.check_at(None), None);
        assert!(path.is_good(now + ms(6499), RTT));
        assert!(!path.is_good(now + ms(6500), RTT));
        assert!(!path.is_lost(now + ms(60_000), RTT));
        assert_eq!(path.check_at(Some(now)), Some(now + SILENCE));
        let mut checked = path;
        checked.received(now + ms(1_500));
        assert_eq!(checked.check_at(Some(now)), Some(now + HEARTBEAT));
    }

    #[test]
    fn a_dead_path_is_left_within_two_and_a_half_seconds() {
        let start = Instant::now();
        let mut path = path(start);
        let mut now = start;
        let mut probes = 0;
        let (mut both, mut lost) = (None, None);
        while lost.is_none() && now < start + ms(10_000) {
            now += ms(10);
            if path.check_at(Some(now)).is_some_and(|at| now >= at) {
                path.probed(now, RTT);
                probes += 1;
            }
            if path.is_degraded(now, RTT) {
                both.get_or_insert(now - start);
            }
            if path.is_lost(now, RTT) {
                lost = Some(now - start);
            }
        }
        assert_eq!((both, lost, probes), (Some(ms(1300)), Some(ms(2000)), 6));
    }

    #[test]
    fn arriving_data_delays_the_loss_but_does_not_prevent_it() {
        let start = Instant::now();
        let mut path = path(start);
        path.probed(start, RTT);
        for second in 0..6 {
            path.received(start + ms(1000) * second);
        }
        assert!(!path.is_degraded(start + ms(999), RTT));
        assert!(path.is_degraded(start + ms(1000), RTT));
        assert!(!path.is_lost(start + ms(4999), RTT));
        assert!(path.is_lost(start + ms(5000), RTT));
        path.confirm(start + ms(4000));
        assert!(path.is_good(start + ms(5000), RTT));
    }
}

//! The forecast of the ports that a NAT will choose next.
//!
//! Some NATs map each destination to another port, but count: the next port is the last one
//! and a step. Such ports can be sent to a peer as endpoints before they exist, to any
//! client. Fresh sockets measure the pattern: each asks a STUN server, and the answers show
//! the ports in the order of asking. Then another fresh socket pings the candidates of
//! the peer, while the peer gets a CallMeMaybe with the ports that come next. One of them is
//! the one that the ping to the right candidate was given.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use warren_wire::stun::{Response, TransactionId};

/// Sockets that ask a STUN server each.
pub(crate) const ASKING: u16 = 4;
/// The socket from which the candidates are pinged.
pub(crate) const CALLING: u16 = ASKING;
/// Answers that show a pattern.
const ENOUGH: usize = 3;
/// Ports that are sent to the peer. Other traffic, and pings to candidates that cannot
/// work, take some of them.
const AHEAD: u16 = 12;
/// The candidates that are pinged: fewer than ports ahead.
pub(crate) const CANDIDATES: usize = 8;
/// How long the answers are waited for.
const ANSWERS: Duration = Duration::from_millis(400);
/// How long a path is waited for after the CallMeMaybe.
const CALL: Duration = Duration::from_millis(2_500);
/// The candidates are pinged again this often.
const AGAIN: Duration = Duration::from_millis(200);
/// A larger step is no step.
const MAX_STEP: u16 = 16;

/// How our NAT chooses ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortPattern {
    /// Each is the last one and this much.
    Counting {
        /// The difference, as a number modulo 65,536.
        step: u16,
    },
    /// No pattern was seen.
    Random,
}

/// A forecast for one peer.
#[derive(Debug)]
pub(crate) struct Forecast {
    asked: Vec<TransactionId>,
    seen: [Option<SocketAddr>; ASKING as usize],
    /// The ports that are sent to the peer.
    pub(crate) ahead: Vec<SocketAddr>,
    /// The candidates that the calling socket pings.
    pub(crate) called: Vec<SocketAddr>,
    phase: Phase,
    next: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Measuring,
    Calling { until: Instant },
}

impl Forecast {
    /// The requests with these numbers leave now, in this order.
    pub(crate) fn new(now: Instant, asked: Vec<TransactionId>) -> Self {
        Self {
            asked,
            seen: [None; ASKING as usize],
            ahead: Vec::new(),
            called: Vec::new(),
            phase: Phase::Measuring,
            next: now + ANSWERS,
        }
    }

    /// A STUN response came. Returns whether it is the last that was missing.
    pub(crate) fn answered(&mut self, response: &Response) -> bool {
        let asked = self.asked.iter().position(|id| *id == response.transaction);
        if let Some(seen) = asked.and_then(|at| self.seen.get_mut(at)) {
            *seen = Some(response.mapped);
        }
        self.is_measuring() && self.seen.iter().all(Option::is_some)
    }

    pub(crate) fn is_measuring(&self) -> bool {
        self.phase == Phase::Measuring
    }

    /// The pattern in the answers, with the ports that come next.
    pub(crate) fn pattern(&self) -> (PortPattern, Vec<SocketAddr>) {
        let seen: Vec<(u16, SocketAddr)> = (0..)
            .zip(&self.seen)
            .filter_map(|(number, seen)| Some((number, (*seen)?)))
            .collect();
        let counted = step_of(&seen).zip(seen.last());
        let Some((step, (number, last))) = counted.filter(|_| seen.len() >= ENOUGH) else {
            return (PortPattern::Random, Vec::new());
        };
        // Requests without an answer took a port, too.
        let unseen = ASKING - 1 - *number;
        let ahead = (1..=AHEAD).map(|count| {
            let distance = step.wrapping_mul(count + unseen);
            SocketAddr::new(last.ip(), last.port().wrapping_add(distance))
        });
        let allowed = ahead.filter(|address| address.port() >= 1_024);
        (PortPattern::Counting { step }, allowed.collect())
    }

    /// The peer is called now.
    pub(crate) fn call(&mut self, now: Instant, ahead: Vec<SocketAddr>, called: Vec<SocketAddr>) {
        self.ahead = ahead;
        self.called = called;
        self.phase = Phase::Calling { until: now + CALL };
        self.next = now + AGAIN;
    }

    /// Whether the candidates are to be pinged again.
    pub(crate) fn takes_turn(&mut self, now: Instant) -> bool {
        let due = !self.is_measuring() && now >= self.next;
        if due {
            self.next = now + AGAIN;
        }
        due
    }

    /// When the next thing is to be done.
    pub(crate) fn deadline(&self) -> Instant {
        self.next
    }

    /// Whether no more answers are waited for.
    pub(crate) fn is_measured(&self, now: Instant) -> bool {
        self.is_measuring() && now >= self.next
    }

    pub(crate) fn is_over(&self, now: Instant) -> bool {
        matches!(self.phase, Phase::Calling { until } if now >= until)
    }
}

/// The step between ports that were given one after the other, as far as all show the same
/// one; traffic of others may have taken some between.
fn step_of(seen: &[(u16, SocketAddr)]) -> Option<u16> {
    let mut steps = Vec::new();
    for (one, other) in seen.iter().zip(seen.iter().skip(1)) {
        let same_ip = one.1.ip() == other.1.ip();
        let distance = other.1.port().wrapping_sub(one.1.port());
        let count = other.0 - one.0;
        steps.push((distance / count.max(1)).max(1));
        if !same_ip || distance == 0 || distance / count.max(1) > MAX_STEP * 4 {
            return None;
        }
    }
    let least = steps
        .iter()
        .copied()
        .min()
        .filter(|step| *step <= MAX_STEP)?;
    // Where the answers differ, the NAT counts by one and others took ports as well; their
    // number is not known, so only the least can be said.
    Some(least)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forecast(ports: [Option<u16>; 4]) -> (PortPattern, Vec<u16>) {
        let asked: Vec<_> = (0..4).map(|n| TransactionId([n; 12])).collect();
        let mut forecast = Forecast::new(Instant::now(), asked.clone());
        for (transaction, port) in asked.into_iter().zip(ports) {
            if let Some(port) = port {
                let mapped = SocketAddr::from(([203, 0, 113, 1], port));
                forecast.answered(&Response {
                    transaction,
                    mapped,
                });
            }
        }
        let (pattern, ahead) = forecast.pattern();
        (pattern, ahead.iter().map(SocketAddr::port).collect())
    }

    #[test]
    fn counted_ports_are_continued() {
        for (step, ports) in [
            (1, [5_000, 5_001, 5_002, 5_003]),
            (2, [5_000, 5_002, 5_004, 5_006]),
            (7, [65_500, 65_507, 65_514, 65_521]),
        ] {
            let (pattern, ahead) = forecast(ports.map(Some));
            assert_eq!(pattern, PortPattern::Counting { step });
            assert_eq!(ahead.first(), Some(&(ports[3] + step)));
            assert!(ahead.iter().all(|port| *port >= 1_024));
        }
        let (pattern, ahead) = forecast([Some(5_000), Some(5_001), Some(5_002), None]);
        assert_eq!(pattern, PortPattern::Counting { step: 1 });
        assert_eq!(ahead.first(), Some(&5_004), "5003 was given unseen");
        let (pattern, _) = forecast([Some(5_000), None, Some(5_004), Some(5_006)]);
        assert_eq!(pattern, PortPattern::Counting { step: 2 });
        let (pattern, ahead) = forecast([5_000, 5_003, 5_004, 5_005].map(Some));
        assert_eq!(pattern, PortPattern::Counting { step: 1 });
        assert_eq!(ahead.first(), Some(&5_006), "others took two between");
    }

    #[test]
    fn ports_that_do_not_count_are_random() {
        for ports in [
            [Some(5_000), Some(41_000), Some(9_000), Some(30_000)],
            [Some(5_003), Some(5_002), Some(5_001), Some(5_000)],
            [Some(5_000), Some(5_000), Some(5_000), Some(5_000)],
            [Some(5_000), Some(5_001), None, None],
            [None; 4],
        ] {
            assert_eq!(forecast(ports), (PortPattern::Random, Vec::new()));
        }
    }
}

//! Pings of the user that have not ended.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use warren_timers::DeadlineQueue;

use super::io::{PingFailure, PingReply, PingReport};

/// The longest time that a ping waits for its answer. Path finding gives up on
/// its own pings sooner.
const REPLY_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug)]
struct Waiting {
    asked: IpAddr,
    node_ip: IpAddr,
    node_name: String,
    since: Instant,
}

/// All pings that wait for an answer.
#[derive(Debug, Default)]
pub(super) struct Pings {
    waiting: BTreeMap<u64, Waiting>,
    deadlines: DeadlineQueue<u64>,
}

impl Pings {
    pub(super) fn begin(
        &mut self,
        now: Instant,
        id: u64,
        asked: IpAddr,
        node_ip: IpAddr,
        node_name: String,
    ) {
        let waiting = Waiting {
            asked,
            node_ip,
            node_name,
            since: now,
        };
        self.waiting.insert(id, waiting);
        self.deadlines.set(id, now + REPLY_TIMEOUT);
    }

    /// The ping was answered. The latency is measured here when `reply` has none.
    pub(super) fn answered(
        &mut self,
        now: Instant,
        id: u64,
        reply: Option<PingReply>,
    ) -> Option<PingReport> {
        self.end(id, |waiting| {
            Ok(reply.unwrap_or_else(|| PingReply {
                latency: now.saturating_duration_since(waiting.since),
                via: None,
            }))
        })
    }

    pub(super) fn failed(&mut self, id: u64, why: String) -> Option<PingReport> {
        self.end(id, |_| Err(PingFailure::Failed(why)))
    }

    fn end(
        &mut self,
        id: u64,
        outcome: impl FnOnce(&Waiting) -> Result<PingReply, PingFailure>,
    ) -> Option<PingReport> {
        let waiting = self.waiting.remove(&id)?;
        self.deadlines.remove(&id);
        Some(PingReport {
            outcome: outcome(&waiting),
            asked: waiting.asked,
            node_ip: waiting.node_ip,
            node_name: waiting.node_name,
        })
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.next_deadline()
    }

    /// The next ping that waited too long.
    pub(super) fn take_late(&mut self, now: Instant) -> Option<(u64, PingReport)> {
        let id = self.deadlines.pop_due(now)?;
        let report = self.failed(id, "no answer".to_owned())?;
        Some((id, report))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pings_end_once_by_an_answer_or_by_time() {
        let now = Instant::now();
        let mut pings = Pings::default();
        let ip: IpAddr = "100.64.0.2".parse().unwrap();
        for id in [1, 2] {
            pings.begin(now, id, ip, ip, "db".to_owned());
        }
        let later = now + Duration::from_millis(5);
        let report = pings.answered(later, 1, None).unwrap();
        assert_eq!(report.outcome.unwrap().latency, Duration::from_millis(5));
        assert_eq!(pings.answered(later, 1, None), None);
        assert_eq!(pings.next_deadline(), Some(now + REPLY_TIMEOUT));
        assert!(pings.take_late(later).is_none());
        let (id, report) = pings.take_late(now + REPLY_TIMEOUT).unwrap();
        let no_answer = PingFailure::Failed("no answer".to_owned());
        assert_eq!((id, report.outcome), (2, Err(no_answer)));
        assert_eq!(pings.next_deadline(), None);
    }
}

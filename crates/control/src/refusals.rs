//! Refusals that keep machines out, for the administrator.
//!
//! A machine that is refused sees the reason, but the person in front of it is often not
//! the one who can do something about it. So each reason is counted for `health` and
//! written to the log, at most once in a [`pause`](Refused::pause). Senders that prove
//! nothing can cause refusals at any rate and with texts of their choice: the table has a
//! bound, and so has the number of lines.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;

/// Reasons that are remembered. The one that was met longest ago gives way.
const MAX_REASONS: usize = 32;
/// Lines in the log in a [`WINDOW`], of all reasons together.
const MAX_LINES: u32 = 10;
const WINDOW: Duration = Duration::from_secs(60);

/// The kind of thing that was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// A registration.
    Registration,
    /// Another request of a client.
    Request,
    /// A connection, before it carried a request.
    Connection,
    /// The use of the embedded relay.
    Relay,
}

impl Refused {
    /// All kinds.
    pub const ALL: [Self; 4] = [
        Self::Registration,
        Self::Request,
        Self::Connection,
        Self::Relay,
    ];

    /// The name in the log and in `health`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Registration => "registration",
            Self::Request => "request",
            Self::Connection => "connection",
            Self::Relay => "relay",
        }
    }

    /// The time between two lines about the same reason. A person waits for a
    /// registration; the others are repeated by programs, for days if need be.
    pub fn pause(self) -> Duration {
        match self {
            Self::Registration => Duration::from_secs(60),
            Self::Request | Self::Connection | Self::Relay => Duration::from_secs(3600),
        }
    }
}

/// A reason, and how often it was met since the start of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The kind of thing that was refused.
    pub what: Refused,
    /// The reason, as the machine was given it. It may contain texts of the machine.
    pub reason: String,
    /// How often.
    pub count: u64,
    /// When it was met last.
    pub last: Timestamp,
    /// When the last line about it was written.
    written: Option<Instant>,
    /// The number of the last refusal for this reason.
    number: u64,
}

#[derive(Debug, Default)]
struct Table {
    reasons: Vec<Refusal>,
    /// All refusals by the name of their kind, also those whose reason gave way.
    totals: BTreeMap<&'static str, u64>,
    /// The number of the last refusal.
    number: u64,
    /// The beginning of the window, and the lines since then.
    window: Option<(Instant, u32)>,
}

/// The refusals of a server. See the module.
#[derive(Debug, Default)]
pub struct Refusals(Mutex<Table>);

impl Refusals {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a refusal. Returns the line to write, if one is due.
    pub fn note(
        &self,
        now: Instant,
        wall: Timestamp,
        what: Refused,
        reason: &str,
    ) -> Option<String> {
        let mut table = self.lock();
        let may_write = table.may_write(now);
        table.number += 1;
        *table.totals.entry(what.name()).or_default() += 1;
        let number = table.number;
        let refusal = table.find(what, reason, wall);
        refusal.number = number;
        refusal.count += 1;
        refusal.last = wall;
        let is_due = refusal
            .written
            .is_none_or(|at| now.saturating_duration_since(at) >= what.pause());
        if !is_due || !may_write {
            return None;
        }
        refusal.written = Some(now);
        let line = format!("refused a {}: {reason}", what.name());
        if let Some((_, lines)) = &mut table.window {
            *lines += 1;
        }
        Some(line)
    }

    /// How many there were of this kind since the start of the server.
    pub fn total(&self, what: Refused) -> u64 {
        self.lock().totals.get(what.name()).copied().unwrap_or(0)
    }

    /// All that are remembered, the most recent first.
    pub fn all(&self) -> Vec<Refusal> {
        let mut reasons = self.lock().reasons.clone();
        reasons.sort_by_key(|refusal| std::cmp::Reverse(refusal.number));
        reasons
    }
}

impl Table {
    /// Whether another line may be written in this window.
    fn may_write(&mut self, now: Instant) -> bool {
        let (begin, lines) = self.window.get_or_insert((now, 0));
        if now.saturating_duration_since(*begin) >= WINDOW {
            (*begin, *lines) = (now, 0);
        }
        *lines < MAX_LINES
    }

    fn find(&mut self, what: Refused, reason: &str, wall: Timestamp) -> &mut Refusal {
        let is_same = |refusal: &Refusal| refusal.what == what && refusal.reason == reason;
        let found = self.reasons.iter().position(is_same);
        let index = found.unwrap_or_else(|| {
            if self.reasons.len() >= MAX_REASONS {
                let oldest = self.reasons.iter().enumerate();
                let oldest = oldest.min_by_key(|(_, refusal)| refusal.number);
                let oldest = oldest.map_or(0, |(index, _)| index);
                self.reasons.swap_remove(oldest);
            }
            self.reasons.push(Refusal {
                what,
                reason: reason.to_owned(),
                count: 0,
                last: wall,
                written: None,
                number: 0,
            });
            self.reasons.len() - 1
        });
        &mut self.reasons[index]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wall(seconds: u32) -> Timestamp {
        Timestamp::UNIX_EPOCH + Duration::from_secs(seconds.into())
    }

    #[test]
    fn each_reason_has_one_line_in_its_pause_and_is_counted() {
        let refusals = Refusals::default();
        let start = Instant::now();
        let note = |seconds: u32, what, reason| {
            let now = start + Duration::from_secs(seconds.into());
            refusals.note(now, wall(seconds), what, reason)
        };
        let line = note(0, Refused::Registration, "authkey already used");
        assert_eq!(
            line.as_deref(),
            Some("refused a registration: authkey already used")
        );
        assert_eq!(
            note(59, Refused::Registration, "authkey already used"),
            None
        );
        assert!(note(59, Refused::Registration, "another").is_some());
        assert!(note(60, Refused::Registration, "authkey already used").is_some());
        assert!(note(61, Refused::Relay, "not admitted").is_some());
        assert!(note(600, Refused::Relay, "not admitted").is_none());
        let all = refusals.all();
        let counts: Vec<(&str, u64)> = all
            .iter()
            .map(|refusal| (refusal.reason.as_str(), refusal.count))
            .collect();
        assert_eq!(
            counts,
            [
                ("not admitted", 2),
                ("authkey already used", 3),
                ("another", 1)
            ]
        );
    }

    #[test]
    fn reasons_and_lines_have_a_bound() {
        let refusals = Refusals::default();
        let start = Instant::now();
        let mut lines = 0;
        for n in 0..10_000 {
            let reason = format!("requested tags [tag:{n}] are invalid");
            let noted = refusals.note(start, wall(n), Refused::Registration, &reason);
            lines += u32::from(noted.is_some());
        }
        assert_eq!(lines, MAX_LINES);
        assert_eq!(refusals.all().len(), MAX_REASONS);
        // The total counts those too whose reason is not remembered.
        let totals = Refused::ALL.map(|what| refusals.total(what));
        assert_eq!(totals, [10_000, 0, 0, 0]);
        assert!(refusals.all()[0].reason.contains("9999"));
        let later = refusals.note(start + WINDOW, wall(10_000), Refused::Relay, "other");
        assert!(later.is_some());
    }
}

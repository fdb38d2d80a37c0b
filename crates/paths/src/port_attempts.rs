//! The port searches with one peer: how the last one ended, and when the next may begin.
//!
//! A search takes two nodes that are ready at the same moment. When one of them is not,
//! the next offer leaves after a pause, and every pause has an end. The pause doubles with
//! each offer that led to nothing, so a reason that passes delays the path by about as long
//! as it lasted. It ends early when the peer calls ([`Attempts::called`]), when something
//! about the peer changes ([`Attempts::something_changed`]), and when our own network does
//! ([`Attempts::forget`]).
//!
//! Only a search in which all guesses were made, twice, waits for a change: something in
//! between drops the datagrams, and a third one would not help.
//!
//! A search sends many datagrams to an address that the peer names. So the pause after one
//! that began is *firm*: the peer can neither shorten it nor reset its length. This holds for
//! the searches that we offer and for those that we accept.

use std::time::{Duration, Instant};

use warren_wire::disco::PortSearchRefusal;

use crate::port_search::{ANSWER, PortSearchOutcome};

/// The ordinary pings get this long before an offer.
const HEAD_START: Duration = Duration::from_millis(150);
/// Between the beginnings of two searches, after one that found a path.
const GAP: Duration = Duration::from_secs(10);
/// After a search to the end that found nothing.
const GAP_AFTER_FAILURE: Duration = Duration::from_secs(20);
/// After a search that one side left, and after an offer that the peer refused.
const GAP_AFTER_END: Duration = Duration::from_millis(2_500);
/// No pause is longer.
const MAX_GAP: Duration = Duration::from_secs(640);
/// Offers in quick succession to a peer that answers none.
const MAX_UNANSWERED: u32 = 4;
/// Searches to the end that find nothing before the next one waits for a change: one of
/// them may fail by chance.
const MAX_FAILED: u32 = 2;

/// The searches with one peer.
#[derive(Debug, Default)]
pub(crate) struct Attempts {
    /// Since when there has been no direct path although one is wanted.
    pub(crate) wanted_since: Option<Instant>,
    /// How the last search or offer ended, whichever side offered it.
    pub(crate) last: Option<(Instant, PortSearchOutcome)>,
    /// The number of an offer that the peer may still answer.
    open_offer: Option<u32>,
    unanswered: u32,
    refused: u32,
    offered: Searches,
    accepted: Searches,
    /// The next offer waits for it.
    not_before: Option<Instant>,
    /// Searches to the end that found nothing, since the last change.
    failed: u32,
    /// The next forecast waits for a change.
    forecast_spent: bool,
    /// The end of the pause after a forecast.
    forecast_not_before: Option<Instant>,
}

/// The pause after searches that began, in one of the two roles.
#[derive(Debug, Default)]
struct Searches {
    in_vain: u32,
    not_before: Option<Instant>,
}

impl Searches {
    fn ended(&mut self, since: Instant, outcome: PortSearchOutcome) {
        let gap = match outcome {
            PortSearchOutcome::Found => {
                self.in_vain = 0;
                GAP
            }
            PortSearchOutcome::NotFound => doubled(GAP_AFTER_FAILURE, &mut self.in_vain),
            PortSearchOutcome::Unanswered
            | PortSearchOutcome::Refused(_)
            | PortSearchOutcome::Ended => doubled(GAP_AFTER_END, &mut self.in_vain),
        };
        self.not_before = Some(since + gap);
    }
}

/// `first`, doubled as often as `times`, which counts on.
fn doubled(first: Duration, times: &mut u32) -> Duration {
    let gap = first * 2_u32.pow((*times).min(8));
    *times += 1;
    gap.min(MAX_GAP)
}

impl Attempts {
    /// When the next offer may leave, `None` before something changes.
    pub(crate) fn next_at(&self) -> Option<Instant> {
        let at = self.wanted_since? + HEAD_START;
        let pauses = [self.not_before, self.offered.not_before];
        let next = pauses.into_iter().flatten().fold(at, Instant::max);
        (self.failed < MAX_FAILED).then_some(next)
    }

    /// When a forecast may begin: the peer makes no searches.
    pub(crate) fn forecast_at(&self) -> Option<Instant> {
        let at = self.wanted_since? + HEAD_START;
        let (ended, outcome) = self.last?;
        let alone = matches!(
            outcome,
            PortSearchOutcome::Unanswered
                | PortSearchOutcome::Refused(
                    PortSearchRefusal::SwitchedOff | PortSearchRefusal::Unspecified
                )
        );
        let at = at.max(ended);
        (alone && !self.forecast_spent)
            .then(|| self.forecast_not_before.map_or(at, |not| at.max(not)))
    }

    /// Whether the peer may begin a search now.
    pub(crate) fn may_accept(&self, now: Instant) -> bool {
        self.accepted.not_before.is_none_or(|at| now >= at)
    }

    /// The number of the offer that has no answer. It is offered again under that number, so
    /// that an answer counts whenever it comes.
    pub(crate) fn open_offer(&self) -> Option<u32> {
        self.open_offer
    }

    /// An offer leaves.
    pub(crate) fn offers(&mut self, id: u32) {
        self.open_offer = Some(id);
    }

    /// The peer accepted the offer.
    pub(crate) fn begins(&mut self) {
        self.open_offer = None;
        self.unanswered = 0;
        self.refused = 0;
    }

    /// An offer that left at `since` did not lead to a search.
    pub(crate) fn offer_ended(&mut self, now: Instant, since: Instant, outcome: PortSearchOutcome) {
        self.last = Some((now, outcome));
        let gap = match outcome {
            PortSearchOutcome::Unanswered => {
                self.unanswered += 1;
                match self.unanswered {
                    ..MAX_UNANSWERED => ANSWER * 2_u32.pow(self.unanswered),
                    _ => MAX_GAP,
                }
            }
            PortSearchOutcome::Refused(
                PortSearchRefusal::SwitchedOff | PortSearchRefusal::Unspecified,
            ) => MAX_GAP,
            PortSearchOutcome::Refused(_)
            | PortSearchOutcome::Ended
            | PortSearchOutcome::Found
            | PortSearchOutcome::NotFound => doubled(GAP_AFTER_END, &mut self.refused),
        };
        if outcome != PortSearchOutcome::Unanswered {
            self.open_offer = None;
        }
        self.not_before = Some(since + gap);
    }

    /// A search that we offered, and that began at `since`, is over.
    pub(crate) fn search_ended(
        &mut self,
        now: Instant,
        since: Instant,
        outcome: PortSearchOutcome,
    ) {
        self.last = Some((now, outcome));
        self.not_before = None;
        self.offered.ended(since, outcome);
        self.failed = match outcome {
            PortSearchOutcome::Found => 0,
            PortSearchOutcome::NotFound => self.failed + 1,
            PortSearchOutcome::Unanswered
            | PortSearchOutcome::Refused(_)
            | PortSearchOutcome::Ended => self.failed,
        };
    }

    /// A search that we accepted, and that began at `since`, is over.
    pub(crate) fn accepted_ended(
        &mut self,
        now: Instant,
        since: Instant,
        outcome: PortSearchOutcome,
    ) {
        self.last = Some((now, outcome));
        self.accepted.ended(since, outcome);
    }

    /// A forecast is over. The results of searches with this peer stay.
    pub(crate) fn forecast_ended(&mut self, now: Instant, found: bool) {
        self.forecast_spent = !found;
        self.forecast_not_before = Some(now + GAP);
    }

    /// The peer sent a CallMeMaybe. It looks for a path now, so its refusal may be void.
    pub(crate) fn called(&mut self) {
        if self
            .last
            .is_some_and(|(_, outcome)| matches!(outcome, PortSearchOutcome::Refused(_)))
        {
            self.not_before = None;
        }
    }

    /// The peer is not what it was: another search may help.
    pub(crate) fn something_changed(&mut self) {
        self.failed = 0;
        self.unanswered = 0;
        self.refused = 0;
        self.not_before = None;
        self.forecast_spent = false;
    }

    /// Our network is another one, or the peer's process is: what was tried says nothing any
    /// more.
    pub(crate) fn forget(&mut self) {
        *self = Self {
            wanted_since: self.wanted_since,
            last: self.last,
            forecast_not_before: self.forecast_not_before,
            ..Self::default()
        };
    }

    /// Packets flow again after a pause: a refusal because there were none is void.
    pub(crate) fn needed_again(&mut self) {
        let refused = PortSearchOutcome::Refused(PortSearchRefusal::NotNeeded);
        if self.last.is_some_and(|(_, outcome)| outcome == refused) {
            self.not_before = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REFUSALS: [PortSearchRefusal; 8] = [
        PortSearchRefusal::Unspecified,
        PortSearchRefusal::SwitchedOff,
        PortSearchRefusal::PortVaries,
        PortSearchRefusal::Busy,
        PortSearchRefusal::NotNeeded,
        PortSearchRefusal::NoAddress,
        PortSearchRefusal::Ended,
        PortSearchRefusal::NotFound,
    ];

    fn wanted(now: Instant) -> Attempts {
        Attempts {
            wanted_since: Some(now),
            ..Attempts::default()
        }
    }

    #[test]
    fn two_searches_to_the_end_wait_for_a_change_and_come_ever_later() {
        let start = Instant::now();
        let mut attempts = wanted(start);
        assert_eq!(attempts.next_at(), Some(start + HEAD_START));
        let mut now = start;
        let mut gaps = Vec::new();
        for number in 1..=8 {
            attempts.search_ended(now, now, PortSearchOutcome::NotFound);
            if number % MAX_FAILED == 0 {
                assert_eq!(attempts.next_at(), None);
                attempts.called();
                assert_eq!(attempts.next_at(), None);
                attempts.something_changed();
            }
            let next = attempts.next_at().unwrap_or(now);
            gaps.push((next - now).as_secs());
            now = next;
        }
        assert_eq!(gaps, [20, 40, 80, 160, 320, 640, 640, 640]);
        attempts.forget();
        assert_eq!(attempts.next_at(), Some(start + HEAD_START));
    }

    #[test]
    fn a_peer_that_answers_no_offer_gets_four_soon_and_then_few() {
        let start = Instant::now();
        let mut attempts = wanted(start);
        let mut times = Vec::new();
        for _ in 0..6 {
            let now = attempts.next_at().unwrap_or(start);
            times.push((now - start).as_secs());
            attempts.offers(7);
            attempts.offer_ended(now + ANSWER, now, PortSearchOutcome::Unanswered);
            assert_eq!(attempts.open_offer(), Some(7), "its answer may still come");
        }
        assert_eq!(times[..4], [0, 1, 3, 8]);
        assert!(times[4] >= 640 && times[5] >= times[4] + 640, "{times:?}");
    }

    #[test]
    fn no_refusal_ends_the_offers_and_a_call_voids_its_pause() {
        let start = Instant::now();
        for refusal in REFUSALS {
            let mut attempts = wanted(start);
            let mut now = start + HEAD_START;
            for _ in 0..12 {
                attempts.offers(1);
                attempts.offer_ended(now, now, PortSearchOutcome::Refused(refusal));
                let next = attempts.next_at();
                assert!(next.is_some_and(|at| at > now && at <= now + MAX_GAP));
                now = next.unwrap_or(now);
            }
            attempts.offer_ended(now, now, PortSearchOutcome::Refused(refusal));
            attempts.called();
            assert!(
                attempts.next_at().is_some_and(|at| at <= now),
                "{refusal:?}"
            );
        }
    }

    /// Otherwise a peer could have us send without end to an address that it names.
    #[test]
    fn the_peer_does_not_shorten_the_pause_after_a_search_that_began() {
        let start = Instant::now();
        let ends = [
            PortSearchOutcome::NotFound,
            PortSearchOutcome::Ended,
            PortSearchOutcome::Refused(PortSearchRefusal::Ended),
        ];
        for outcome in ends {
            let mut attempts = wanted(start);
            let mut now = start;
            let mut least = Duration::ZERO;
            for _ in 0..10 {
                attempts.search_ended(now, now, outcome);
                attempts.accepted_ended(now, now, outcome);
                attempts.called();
                attempts.something_changed();
                attempts.needed_again();
                let next = attempts.next_at().unwrap_or(start);
                assert!(!attempts.may_accept(next - Duration::from_millis(1)));
                assert!(attempts.may_accept(next));
                assert!(next - now >= least, "{outcome:?}");
                least = next - now;
                now = next;
            }
            assert_eq!(least, MAX_GAP);
        }
    }
}

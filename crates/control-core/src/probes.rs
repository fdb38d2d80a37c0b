//! Questions to routers: do they answer?
//!
//! The map stream of a router that was cut off stays open for most of a minute,
//! and that of one which cannot open connections any more stays open for good. So
//! the routers that share a subnet are asked, all of them in one round, every
//! [`INTERVAL`]; each has [`PATIENCE`] to answer. A router is asked in two ways
//! over its stream: to open a new connection to this server, and for an echo
//! through the channel that it has. The verdicts of a round come together, or a
//! subnet could move to a router that is about to be found silent too.
//!
//! This module decides which routers are asked, and when, and judges the answers.
//! Sending the questions is the coordinator's part.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use data_encoding::HEXLOWER;
use warren_control_types::NodeId;
use warren_keys::Entropy;

/// The time from one round to the next. With [`PATIENCE`], a router that was cut
/// off is known to be silent after 14 s at most.
pub(crate) const INTERVAL: Duration = Duration::from_secs(9);
/// The time that a router has for an answer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// The way in which a router is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Way {
    /// To make a request over a new connection.
    NewConnection,
    /// For an echo through its channel (c2n).
    Channel,
}

/// A question to one router. The answer names the token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Question {
    pub(crate) node: NodeId,
    pub(crate) way: Way,
    pub(crate) token: String,
}

/// The verdict of a router's answers, from worse to better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Verdict {
    /// It answered neither question.
    Silent,
    /// It answered through its channel and opens no new connection.
    ChannelOnly,
    /// It answered over a new connection.
    Answers,
}

#[derive(Debug)]
struct Round {
    ends: Instant,
    asked: BTreeMap<NodeId, Verdict>,
    tokens: BTreeMap<String, (NodeId, Way)>,
}

/// How late a round is judged.
const LATE: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Probes {
    /// The start of the next round; `None` while there is nothing to ask.
    next: Option<Instant>,
    round: Option<Round>,
    verdicts: BTreeMap<NodeId, Verdict>,
}

impl Probes {
    /// There are routers to ask, or not. The first round begins at once. Returns the
    /// routers on which there is no verdict any more.
    pub(crate) fn needed(&mut self, now: Instant, needed: bool) -> BTreeSet<NodeId> {
        if needed {
            self.next.get_or_insert(now);
            return BTreeSet::new();
        }
        let before = std::mem::take(self);
        before.verdicts.into_keys().collect()
    }

    /// The last verdict on a router. `None`: it was not asked yet, or was silent and has
    /// a new stream since.
    pub(crate) fn verdict(&self, node: NodeId) -> Option<Verdict> {
        self.verdicts.get(&node).copied()
    }

    /// The router has a new stream. It is not silent any more, and otherwise as good as
    /// before until it is asked again.
    pub(crate) fn reconnected(&mut self, node: NodeId) {
        if self.verdict(node) == Some(Verdict::Silent) {
            self.verdicts.remove(&node);
        }
        self.leave_round(node);
    }

    /// The router is gone.
    pub(crate) fn forget(&mut self, node: NodeId) {
        self.verdicts.remove(&node);
        self.leave_round(node);
    }

    fn leave_round(&mut self, node: NodeId) {
        if let Some(round) = &mut self.round {
            round.asked.remove(&node);
            round.tokens.retain(|_, (asked, _)| *asked != node);
        }
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let ends = self.round.as_ref().map(|round| round.ends);
        ends.into_iter().chain(self.next).min()
    }

    /// Ends the round whose time is over; the routers on which the verdict is
    /// another one now.
    pub(crate) fn pop_verdicts(&mut self, now: Instant) -> BTreeSet<NodeId> {
        let Some(round) = self.round.take_if(|round| round.ends <= now) else {
            return BTreeSet::new();
        };
        // The answers of a round that is judged late may wait to be taken: the server was
        // held up, not the routers.
        if now > round.ends + LATE {
            return BTreeSet::new();
        }
        let differs = |(node, verdict): (NodeId, Verdict)| {
            (self.verdicts.insert(node, verdict) != Some(verdict)).then_some(node)
        };
        round.asked.into_iter().filter_map(differs).collect()
    }

    /// Begins the round that is due: asks those of the routers that are connected.
    /// Besides the questions, returns the nodes that are not among the routers any
    /// more; there is no verdict on them from now on.
    pub(crate) fn begin(
        &mut self,
        now: Instant,
        routers: impl FnOnce() -> BTreeSet<NodeId>,
        is_connected: impl Fn(NodeId) -> bool,
        entropy: &mut dyn Entropy,
    ) -> (Vec<Question>, BTreeSet<NodeId>) {
        if self.next.is_none_or(|next| next > now) {
            return Default::default();
        }
        self.next = Some(now + INTERVAL);
        let routers = routers();
        let judged: BTreeSet<NodeId> = self.verdicts.keys().copied().collect();
        self.verdicts.retain(|node, _| routers.contains(node));
        let mut questions = Vec::new();
        for node in routers.iter().copied().filter(|node| is_connected(*node)) {
            for way in [Way::Channel, Way::NewConnection] {
                let mut token = [0; 16];
                entropy.fill(&mut token);
                let token = HEXLOWER.encode(&token);
                questions.push(Question { node, way, token });
            }
        }
        let token = |question: &Question| (question.token.clone(), (question.node, question.way));
        self.round = Some(Round {
            ends: now + PATIENCE,
            asked: questions
                .iter()
                .map(|question| (question.node, Verdict::Silent))
                .collect(),
            tokens: questions.iter().map(token).collect(),
        });
        (questions, &judged - &routers)
    }

    /// The router to which a token was given for this way of answering.
    pub(crate) fn asked(&self, token: &str, way: Way) -> Option<NodeId> {
        let (node, asked) = self.round.as_ref()?.tokens.get(token)?;
        (*asked == way).then_some(*node)
    }

    /// An answer came. A router that opens connections is believed at once;
    /// returns whether the verdict on it is another one now.
    pub(crate) fn answered(&mut self, token: &str) -> bool {
        let Some(round) = &mut self.round else {
            return false;
        };
        let Some((node, way)) = round.tokens.remove(token) else {
            return false;
        };
        let verdict = match way {
            Way::NewConnection => Verdict::Answers,
            Way::Channel => Verdict::ChannelOnly,
        };
        if let Some(so_far) = round.asked.get_mut(&node) {
            *so_far = verdict.max(*so_far);
        }
        way == Way::NewConnection && self.verdicts.insert(node, verdict) != Some(verdict)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use warren_testkit::CountingEntropy;

    use super::*;

    const A: NodeId = NodeId(1);
    const B: NodeId = NodeId(2);
    const ABSENT: NodeId = NodeId(3);

    fn begin(probes: &mut Probes, now: Instant) -> Vec<Question> {
        let routers = || [A, B, ABSENT].into();
        let connected = |node| node != ABSENT;
        probes
            .begin(now, routers, connected, &mut CountingEntropy(0))
            .0
    }

    fn token(questions: &[Question], node: NodeId, way: Way) -> String {
        let found = questions
            .iter()
            .find(|question| question.node == node && question.way == way);
        found.unwrap().token.clone()
    }

    #[test]
    fn routers_are_asked_every_interval_and_judged_together() {
        let start = Instant::now();
        let mut probes = Probes::default();
        assert_eq!(probes.next_deadline(), None);
        probes.needed(start, true);
        assert_eq!(probes.next_deadline(), Some(start));
        let questions = begin(&mut probes, start);
        assert_eq!(questions.len(), 4);
        assert!(begin(&mut probes, start).is_empty());
        assert!(!probes.answered(&token(&questions, B, Way::Channel)));
        assert_eq!(probes.verdict(B), None, "not before the end of the round");
        assert_eq!(probes.next_deadline(), Some(start + PATIENCE));
        assert!(probes.pop_verdicts(start).is_empty());
        assert_eq!(probes.pop_verdicts(start + PATIENCE), [A, B].into());
        assert_eq!(probes.verdict(A), Some(Verdict::Silent));
        assert_eq!(probes.verdict(B), Some(Verdict::ChannelOnly));
        assert_eq!(probes.next_deadline(), Some(start + INTERVAL));

        // An answer over a new connection counts at once.
        let questions = begin(&mut probes, start + INTERVAL);
        let answer = token(&questions, A, Way::NewConnection);
        assert_eq!(probes.asked(&answer, Way::Channel), None);
        assert_eq!(probes.asked(&answer, Way::NewConnection), Some(A));
        assert!(probes.answered(&answer));
        assert!(!probes.answered(&answer), "once");
        assert_eq!(probes.verdict(A), Some(Verdict::Answers));
        // A new stream is not judged by the round before it.
        probes.reconnected(B);
        let ended = probes.pop_verdicts(start + INTERVAL + PATIENCE);
        assert_eq!(ended, BTreeSet::new());
        assert_eq!(probes.verdict(B), Some(Verdict::ChannelOnly));
        probes.forget(B);
        assert_eq!(probes.verdict(B), None);
        // A node that shares no subnet any more is not judged any longer.
        let only_a = probes.begin(
            start + 2 * INTERVAL,
            || [B].into(),
            |_| true,
            &mut CountingEntropy(0),
        );
        assert_eq!(only_a.1, [A].into());
        assert_eq!(probes.verdict(A), None);
        probes.needed(start, false);
        assert_eq!((probes.next_deadline(), probes.verdict(A)), (None, None));
    }

    #[test]
    fn round_that_is_judged_late_changes_no_verdict() {
        let start = Instant::now();
        let mut probes = Probes::default();
        probes.needed(start, true);
        let questions = begin(&mut probes, start);
        assert!(probes.answered(&token(&questions, A, Way::NewConnection)));
        // The server was held up: answers of B may wait in its sockets.
        let late = start + PATIENCE + LATE + Duration::from_millis(1);
        assert!(probes.pop_verdicts(late).is_empty());
        assert_eq!(probes.verdict(A), Some(Verdict::Answers));
        assert_eq!(probes.verdict(B), None);
        // The next round is due and counts as usual.
        assert_eq!(begin(&mut probes, late), []);
        let next = start + INTERVAL;
        assert_eq!(begin(&mut probes, next).len(), 4);
        assert_eq!(probes.pop_verdicts(next + PATIENCE + LATE), [A, B].into());
        assert_eq!(probes.verdict(B), Some(Verdict::Silent));
    }

    proptest! {
        /// A router is silent if and only if it answered nothing within the patience,
        /// whatever else is answered, and all of a round are judged at one moment.
        #[test]
        fn verdicts_follow_the_answers(
            rounds in prop::collection::vec(prop::collection::vec(any::<bool>(), 4), 1..6),
        ) {
            let mut now = Instant::now();
            let mut probes = Probes::default();
            probes.needed(now, true);
            for answers in rounds {
                let questions = begin(&mut probes, now);
                for (question, answered) in questions.iter().zip(&answers) {
                    if *answered {
                        let _ = probes.answered(&question.token);
                        let _ = probes.answered("unknown");
                    }
                }
                let _ = probes.pop_verdicts(now + PATIENCE);
                for (index, node) in [A, B].into_iter().enumerate() {
                    let verdict = match (answers[2 * index], answers[2 * index + 1]) {
                        (_, true) => Verdict::Answers,
                        (true, false) => Verdict::ChannelOnly,
                        (false, false) => Verdict::Silent,
                    };
                    prop_assert_eq!(probes.verdict(node), Some(verdict));
                }
                now = probes.next_deadline().unwrap();
            }
        }
    }
}

//! Sessions over SSH that wait for a check, and checks that were passed.
//!
//! A passed check is remembered for a person and a machine, not for the node
//! that the session came from; a source that belongs to tags is its own person.
//! It is not stored: after a restart every person is checked again.
//!
//! Requests come from nodes of this network only, yet one of them may be in
//! wrong hands. So ids cannot be guessed and belong to one session, and places
//! are limited for every node at either end.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use warren_control_types::{NodeId, SshAction, UserId};
use warren_keys::Entropy;
use warren_policy::SshCheck;

use crate::parked::{Full, ParkedRequests, PendingId};
use crate::records::NodeRecord;

/// How many sessions may wait for a check.
const MAX_CHECKS: usize = 1024;
/// How many of them may lead to one node, or come from one. Each is a request
/// that stays open on the channel of the destination, which carries 64.
const MAX_CHECKS_OF_NODE: usize = 32;
/// How many of them may lead from one node to one other.
const MAX_CHECKS_OF_PAIR: usize = 4;
/// How long a session may wait. Clients give up after half an hour.
const CHECK_TTL: Duration = Duration::from_secs(15 * 60);
/// How long a decision can be asked for again, should its answer get lost.
const DECIDED_TTL: Duration = Duration::from_secs(60);
/// The longest period that a policy can name.
const MAX_PERIOD: Duration = Duration::from_secs(168 * 3600);
/// How many passed checks are remembered.
const MAX_PASSED: usize = 1 << 16;
/// Bytes of the longest local user that is accepted.
pub(crate) const MAX_LOCAL_USER: usize = 256;

/// A node asks whether to let a session in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshQuestion {
    /// The node that the session comes from.
    pub source: NodeId,
    /// The node that asks.
    pub destination: NodeId,
    /// The user as which the session would run there.
    pub local_user: String,
    /// The id that the node was sent before, if it asks again.
    pub check: Option<PendingId>,
}

/// The reaction to a question about a session.
#[derive(Debug, Clone, PartialEq)]
pub enum SshOutcome {
    /// Answer it.
    Answer(Box<SshAction>),
    /// Hold it until [`Output::Decided`](crate::Output::Decided) names this id,
    /// then ask again. When the node goes away before that:
    /// [`Coordinator::stopped_waiting`](crate::Coordinator::stopped_waiting).
    Park(PendingId),
}

impl SshOutcome {
    pub(crate) fn refuse(message: &str) -> Self {
        Self::Answer(Box::new(SshAction {
            reject: true,
            message: message.to_owned(),
            ..SshAction::default()
        }))
    }

    pub(crate) fn let_in(check: SshCheck) -> Self {
        Self::Answer(Box::new(check.then))
    }
}

/// The reason why a question about a session is not answered at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SshRefusal {
    /// The machine is not the destination, or its key has expired.
    #[error("only the node where the session would run may ask for it")]
    NotTheDestination,
    /// The id belongs to another session.
    #[error("this check is for another session")]
    OtherSession,
    /// The server cannot save what the answer would speak of.
    #[error("the server cannot save its state at the moment (see its log); try again later")]
    Unsaved,
}

/// A session that waits for its check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshCheckView {
    /// The id to approve.
    pub id: PendingId,
    /// The node that the session comes from.
    pub source: NodeId,
    /// The node where it would run.
    pub destination: NodeId,
    /// The user as which it would run.
    pub local_user: String,
    /// The start of the waiting.
    pub since: Timestamp,
}

/// The person whose check counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Person {
    User(UserId),
    /// The node belongs to tags and is its own person.
    Node(NodeId),
}

impl Person {
    pub(crate) fn behind(node: &NodeRecord) -> Self {
        match node.user {
            Some(user) if !node.is_tagged() => Self::User(user),
            Some(_) | None => Self::Node(node.id),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CheckState {
    Waiting,
    Approved,
    Denied,
    TimedOut,
}

/// The session of a check; all of it must be the same when a node asks again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CheckedSession {
    pub(crate) person: Person,
    pub(crate) source: NodeId,
    pub(crate) destination: NodeId,
    pub(crate) local_user: String,
}

#[derive(Debug, Clone)]
struct Check {
    session: CheckedSession,
    state: CheckState,
    since: Timestamp,
}

impl Check {
    fn view(&self, id: &PendingId) -> SshCheckView {
        SshCheckView {
            id: id.clone(),
            source: self.session.source,
            destination: self.session.destination,
            local_user: self.session.local_user.clone(),
            since: self.since,
        }
    }
}

/// Groups that share the places.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Group {
    Pair(NodeId, NodeId),
    Destination(NodeId),
    Source(NodeId),
    All,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct SshChecks {
    parked: ParkedRequests<Group, Check>,
    passed: BTreeMap<(Person, NodeId), Instant>,
}

impl SshChecks {
    /// The state of the check with this id, for its own session only. While it
    /// waits, a connection is held open for it from now on.
    pub(crate) fn ask_again(
        &mut self,
        id: &PendingId,
        session: &CheckedSession,
    ) -> Result<Option<CheckState>, SshRefusal> {
        let Some(check) = self.parked.get(id) else {
            return Ok(None);
        };
        if check.session != *session {
            return Err(SshRefusal::OtherSession);
        }
        let state = check.state;
        if state == CheckState::Waiting {
            self.parked.wait(id);
        }
        Ok(Some(state))
    }

    /// Opens a check for a session. Returns also the one that was removed for it.
    pub(crate) fn open(
        &mut self,
        now: Instant,
        time: Timestamp,
        session: CheckedSession,
        entropy: &mut dyn Entropy,
    ) -> Result<(PendingId, Option<PendingId>), Full> {
        let (source, destination) = (session.source, session.destination);
        let shares = [
            (Group::Pair(source, destination), MAX_CHECKS_OF_PAIR),
            (Group::Destination(destination), MAX_CHECKS_OF_NODE),
            (Group::Source(source), MAX_CHECKS_OF_NODE),
            (Group::All, MAX_CHECKS),
        ];
        let check = Check {
            session,
            state: CheckState::Waiting,
            since: time,
        };
        // The node of an approved session is about to ask for the decision.
        let evictable = |check: &Check| check.state != CheckState::Approved;
        self.parked
            .insert(check, &shares, now + CHECK_TTL, evictable, entropy)
    }

    /// A connection that was held open for this id ended.
    pub(crate) fn stopped_waiting(&mut self, id: &PendingId) {
        self.parked.stopped_waiting(id);
    }

    /// The sessions that wait for a check, oldest first.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = SshCheckView> {
        let checks = self.parked.iter();
        checks
            .filter(|(_, check)| check.state == CheckState::Waiting)
            .map(|(id, check)| check.view(id))
    }

    /// Decides about a session that waits.
    pub(crate) fn decide(
        &mut self,
        now: Instant,
        id: &PendingId,
        state: CheckState,
    ) -> Option<SshCheckView> {
        let check = self.parked.get_mut(id)?;
        if check.state != CheckState::Waiting {
            return None;
        }
        check.state = state;
        let view = check.view(id);
        self.parked.set_deadline(id, now + DECIDED_TTL);
        Some(view)
    }

    /// Remembers that the person of an approved session passed a check, and
    /// approves the other sessions of the same person to the same machine for
    /// which `counts_for` says so. Returns those.
    pub(crate) fn passed(
        &mut self,
        now: Instant,
        id: &PendingId,
        counts_for: impl Fn(&CheckedSession) -> bool,
    ) -> Vec<PendingId> {
        let Some(approved) = self.parked.get(id).map(|check| check.session.clone()) else {
            return Vec::new();
        };
        self.remember(now, approved.person, approved.destination);
        let also: Vec<PendingId> = self
            .parked
            .iter()
            .filter(|(_, check)| {
                check.state == CheckState::Waiting
                    && check.session.person == approved.person
                    && check.session.destination == approved.destination
                    && counts_for(&check.session)
            })
            .map(|(id, _)| id.clone())
            .collect();
        for id in &also {
            self.decide(now, id, CheckState::Approved);
        }
        also
    }

    fn remember(&mut self, now: Instant, person: Person, destination: NodeId) {
        let age = |at: &Instant| now.saturating_duration_since(*at);
        self.passed.retain(|_, at| age(at) < MAX_PERIOD);
        self.passed.insert((person, destination), now);
        while self.passed.len() > MAX_PASSED {
            let oldest = self.passed.iter().min_by_key(|(_, at)| **at);
            let Some(oldest) = oldest.map(|(key, _)| *key) else {
                break;
            };
            self.passed.remove(&oldest);
        }
    }

    /// Whether the person passed a check for that machine within the period.
    pub(crate) fn has_passed(
        &self,
        now: Instant,
        session: &CheckedSession,
        period: Duration,
    ) -> bool {
        let passed = self.passed.get(&(session.person, session.destination));
        passed.is_some_and(|at| now.saturating_duration_since(*at) < period)
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.parked.next_deadline()
    }

    /// Ends the waiting of the next session whose time is over, or forgets a
    /// decision. `None`: nothing is due. `Some(None)`: no request waits for it.
    pub(crate) fn pop_due(&mut self, now: Instant) -> Option<Option<PendingId>> {
        let id = self.parked.pop_due(now)?;
        if self.decide(now, &id, CheckState::TimedOut).is_some() {
            return Some(Some(id));
        }
        self.parked.remove(&id);
        Some(None)
    }

    /// Ends the waiting of sessions for which `stays` is false, and forgets the
    /// passed checks of nodes that are gone. For whenever the policy, users or
    /// nodes changed. Returns the sessions that ended.
    pub(crate) fn review(
        &mut self,
        stays: impl Fn(&CheckedSession) -> bool,
        exists: impl Fn(NodeId) -> bool,
    ) -> Vec<PendingId> {
        self.passed.retain(|(person, destination), _| {
            exists(*destination)
                && match person {
                    Person::User(_) => true,
                    Person::Node(node) => exists(*node),
                }
        });
        self.parked.retain(|check| stays(&check.session))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use warren_testkit::CountingEntropy;

    fn session(source: i64, user: &str) -> CheckedSession {
        CheckedSession {
            person: Person::User(UserId(1)),
            source: NodeId(source),
            destination: NodeId(9),
            local_user: user.to_owned(),
        }
    }

    #[test]
    fn approval_counts_for_the_person_and_the_period() {
        let (mut checks, mut entropy) = (SshChecks::default(), CountingEntropy(0));
        let now = Instant::now();
        let mut open = |checks: &mut SshChecks, session| {
            let opened = checks.open(now, Timestamp::UNIX_EPOCH, session, &mut entropy);
            opened.unwrap().0
        };
        let root = open(&mut checks, session(1, "root"));
        let other = open(&mut checks, session(2, "root"));
        let always = open(&mut checks, session(2, "ubuntu"));
        let elsewhere = checks.ask_again(&root, &session(2, "root"));
        assert_eq!(elsewhere, Err(SshRefusal::OtherSession));
        assert!(checks.decide(now, &root, CheckState::Approved).is_some());
        let also = checks.passed(now, &root, |session| session.local_user == "root");
        assert_eq!(also, [other]);
        assert_eq!(checks.waiting().count(), 1);
        let hour = Duration::from_secs(3600);
        assert!(checks.has_passed(now, &session(3, "root"), hour));
        assert!(!checks.has_passed(now + hour, &session(3, "root"), hour));
        // The decisions are forgotten, the waiting one times out, later.
        assert_eq!(checks.pop_due(now + DECIDED_TTL), Some(None));
        assert_eq!(checks.pop_due(now + DECIDED_TTL), Some(None));
        assert_eq!(checks.pop_due(now + CHECK_TTL), Some(Some(always.clone())));
        let state = checks.ask_again(&always, &session(2, "ubuntu"));
        assert_eq!(state, Ok(Some(CheckState::TimedOut)));
    }
}

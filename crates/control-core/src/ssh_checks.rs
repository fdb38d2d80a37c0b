//! Logins over SSH that the policy lets in only after a check.
//!
//! The life of one: a node that is told to check sends the address of its
//! session here ([`Coordinator::ssh_action`]). If the person behind the session
//! has passed a check for that machine within the rule's period, the answer is
//! to let it in. Else the answer holds the session and has the person open an
//! address; the node asks again with the id in it, and that question is parked
//! like the one of a machine that waits for approval, until the administrator
//! decides, the time is over, or the policy has no such rule any more.
//!
//! Who passed a check is remembered for a person and a machine, not for the
//! node that the session came from; a source that belongs to tags stands for
//! itself. It is not stored: after a restart everybody is checked anew.
//!
//! What is asked comes from nodes of this network only, yet one of them may be
//! somebody else's by now. So ids cannot be guessed and belong to one session,
//! places are limited for every node at either end, and a decision is never
//! taken from what the address says, but from the policy of the moment.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use warren_control_types::{NodeId, SshAction, UserId};
use warren_keys::{Entropy, MachinePublic};
use warren_policy::SshCheck;

use crate::coordinator::{Coordinator, Notice, Output, timestamp};
use crate::error::AdminError;
use crate::records::NodeRecord;
use crate::register::PendingId;

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
/// Bytes of the longest local user that is asked about.
const MAX_LOCAL_USER: usize = 256;

/// A node asks whether to let a session in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshQuestion {
    /// Where the session comes from.
    pub source: NodeId,
    /// The node that asks.
    pub destination: NodeId,
    /// As whom the session would run there.
    pub local_user: String,
    /// What the node was told to ask with, if it asks again.
    pub check: Option<PendingId>,
}

/// What to do with a question about a session.
#[derive(Debug, Clone, PartialEq)]
pub enum SshOutcome {
    /// Answer it.
    Answer(Box<SshAction>),
    /// Hold it until [`Output::Decided`] names this id, then ask again. When
    /// the node goes away before that: [`Coordinator::stopped_waiting`].
    Park(PendingId),
}

impl SshOutcome {
    fn refuse(message: &str) -> Self {
        Self::Answer(Box::new(SshAction {
            reject: true,
            message: message.to_owned(),
            ..SshAction::default()
        }))
    }

    fn let_in(check: SshCheck) -> Self {
        Self::Answer(Box::new(check.then))
    }
}

/// Why a question about a session is not answered at all.
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
    /// What to approve.
    pub id: PendingId,
    /// Where the session comes from.
    pub source: NodeId,
    /// Where it would run.
    pub destination: NodeId,
    /// As whom.
    pub local_user: String,
    /// Since when it waits.
    pub since: Timestamp,
}

/// Whose check counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Person {
    User(UserId),
    /// Nobody's: the node itself.
    Node(NodeId),
}

impl Person {
    fn behind(node: &NodeRecord) -> Self {
        match node.user {
            Some(user) if !node.is_tagged() => Self::User(user),
            Some(_) | None => Self::Node(node.id),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting,
    Approved,
    Denied,
    TimedOut,
}

/// What a check is for; all of it must be the same when it is asked again.
#[derive(Debug, Clone, PartialEq, Eq)]
struct About {
    person: Person,
    source: NodeId,
    destination: NodeId,
    local_user: String,
}

#[derive(Debug, Clone)]
struct Check {
    about: About,
    state: State,
    since: Timestamp,
    deadline: Instant,
    /// Questions that are held open for it.
    waiters: u32,
    order: u64,
}

impl Check {
    fn view(&self, id: &PendingId) -> SshCheckView {
        SshCheckView {
            id: id.clone(),
            source: self.about.source,
            destination: self.about.destination,
            local_user: self.about.local_user.clone(),
            since: self.since,
        }
    }
}

/// All checks: those that sessions wait for, and those that were passed.
#[derive(Debug, Default)]
pub(crate) struct SshChecks {
    asked: BTreeMap<PendingId, Check>,
    passed: BTreeMap<(Person, NodeId), Instant>,
    next: u64,
}

impl SshChecks {
    /// When something is to be forgotten.
    pub(crate) fn deadlines(&self) -> impl Iterator<Item = Instant> {
        self.asked.values().map(|check| check.deadline)
    }

    /// A question that was parked is no longer held open.
    pub(crate) fn stopped_waiting(&mut self, id: &PendingId) {
        if let Some(check) = self.asked.get_mut(id) {
            check.waiters = check.waiters.saturating_sub(1);
        }
    }

    /// Whether there is room for one more, if need be in the place of one that
    /// nobody waits at; that one's id.
    fn make_room(&mut self, about: &About) -> Result<Option<PendingId>, ()> {
        /// From the same source, to the same destination.
        type Group = fn(bool, bool) -> bool;
        let groups: [(usize, Group); 4] = [
            (MAX_CHECKS_OF_PAIR, |source, destination| {
                source && destination
            }),
            (MAX_CHECKS_OF_NODE, |_, destination| destination),
            (MAX_CHECKS_OF_NODE, |source, _| source),
            (MAX_CHECKS, |_, _| true),
        ];
        for (limit, is_in) in groups {
            let counts = |check: &Check| {
                let other = &check.about;
                is_in(
                    other.source == about.source,
                    other.destination == about.destination,
                )
            };
            if self.asked.values().filter(|check| counts(check)).count() < limit {
                continue;
            }
            let oldest = self
                .asked
                .iter()
                // Who was let in is about to hear of it.
                .filter(|(_, check)| check.waiters == 0 && check.state != State::Approved)
                .filter(|(_, check)| counts(check))
                .min_by_key(|(_, check)| check.order)
                .map(|(id, _)| id.clone())
                .ok_or(())?;
            // One place less in the narrowest group is one less in all.
            self.asked.remove(&oldest);
            return Ok(Some(oldest));
        }
        Ok(None)
    }

    fn add(&mut self, check: Check, entropy: &mut dyn Entropy) -> PendingId {
        let id = PendingId::generate(entropy);
        self.next += 1;
        let order = self.next;
        self.asked.insert(id.clone(), Check { order, ..check });
        id
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

    fn has_passed(&self, now: Instant, about: &About, period: Duration) -> bool {
        let passed = self.passed.get(&(about.person, about.destination));
        passed.is_some_and(|at| now.saturating_duration_since(*at) < period)
    }
}

impl Coordinator {
    /// Decides about a session that the policy wants checked, for the machine
    /// at the other end of the channel.
    ///
    /// # Errors
    /// It is not that machine's session, or the id is not that session's.
    pub fn ssh_action(
        &mut self,
        now: Instant,
        wall: Duration,
        machine: MachinePublic,
        question: &SshQuestion,
    ) -> Result<SshOutcome, SshRefusal> {
        let time = timestamp(wall);
        self.data
            .nodes
            .get(&question.destination)
            .filter(|node| node.machine == machine && !node.is_expired(time))
            .ok_or(SshRefusal::NotTheDestination)?;
        let Some((about, check)) = self.checked_session(question) else {
            return Ok(SshOutcome::refuse(
                "The policy of this network has no rule that lets this session in after a check.",
            ));
        };
        let asked = question
            .check
            .as_ref()
            .and_then(|id| Some((id, self.ssh_checks.asked.get_mut(id)?)));
        if let Some((id, asked)) = asked {
            if asked.about != about {
                return Err(SshRefusal::OtherSession);
            }
            return Ok(match asked.state {
                State::Waiting => {
                    asked.waiters += 1;
                    SshOutcome::Park(id.clone())
                }
                State::Approved => SshOutcome::let_in(check),
                State::Denied => SshOutcome::refuse("The check of this session was refused."),
                State::TimedOut => {
                    SshOutcome::refuse("The check of this session took too long. Try again.")
                }
            });
        }
        // An id that is not known (any more) is one from before a restart: the
        // session goes on with a new one.
        if self.ssh_checks.has_passed(now, &about, check.period) {
            return Ok(SshOutcome::let_in(check));
        }
        match self.ssh_checks.make_room(&about) {
            Ok(None) => {}
            Ok(Some(evicted)) => self.outputs.push_back(Output::Decided(evicted)),
            Err(()) => {
                return Ok(SshOutcome::refuse(
                    "Too many sessions wait for a check. Try again later.",
                ));
            }
        }
        let waiting = Check {
            about: about.clone(),
            state: State::Waiting,
            since: time,
            deadline: now + CHECK_TTL,
            waiters: 0,
            order: 0,
        };
        let id = self.ssh_checks.add(waiting, self.entropy.as_mut());
        let action = self.hold(&id);
        self.outputs.push_back(Output::Notice(Notice::SshCheck {
            id,
            source: about.source,
            destination: about.destination,
            local_user: about.local_user,
        }));
        Ok(SshOutcome::Answer(Box::new(action)))
    }

    /// The session in a question, and what the policy of the moment says of it.
    fn checked_session(&self, question: &SshQuestion) -> Option<(About, SshCheck)> {
        let source = self.data.nodes.get(&question.source)?;
        if question.local_user.len() > MAX_LOCAL_USER {
            return None;
        }
        let about = About {
            person: Person::behind(source),
            source: question.source,
            destination: question.destination,
            local_user: question.local_user.clone(),
        };
        let check = self.access.ssh_check_for(
            question.source,
            question.destination,
            &question.local_user,
        )?;
        Some((about, check))
    }

    /// Waits for the person, and asks again at this address.
    fn hold(&self, id: &PendingId) -> SshAction {
        SshAction {
            message: format!(
                "# This network asks who you are before it lets you in.\n\
                 # Open this address to confirm it: {}\n",
                self.ssh_check_url(id)
            ),
            hold_and_delegate: format!(
                "{}/machine/ssh/action/$SRC_NODE_ID/to/$DST_NODE_ID?local_user=$LOCAL_USER&auth_id={id}",
                self.config.server_url
            ),
            ..SshAction::default()
        }
    }

    /// Where a person is sent whose session waits for a check.
    pub fn ssh_check_url(&self, id: &PendingId) -> String {
        format!("{}/ssh-check/{id}", self.config.server_url)
    }

    /// The sessions that wait for a check, oldest first.
    pub fn ssh_checks(&self) -> Vec<SshCheckView> {
        let checks = self.ssh_checks.asked.iter();
        let mut waiting: Vec<_> = checks
            .filter(|(_, check)| check.state == State::Waiting)
            .collect();
        waiting.sort_by_key(|(_, check)| check.order);
        let views = waiting.into_iter().map(|(id, check)| check.view(id));
        views.collect()
    }

    /// The person is who it should be: the session is let in, and for the
    /// rule's period all that the same person opens to the same machine.
    ///
    /// # Errors
    /// No session waits under this id.
    pub fn approve_ssh_check(
        &mut self,
        now: Instant,
        id: &PendingId,
    ) -> Result<SshCheckView, AdminError> {
        let view = self.decide_ssh_check(now, id, State::Approved)?;
        let Some(about) = self.ssh_checks.asked.get(id).map(|c| c.about.clone()) else {
            return Ok(view);
        };
        self.ssh_checks
            .remember(now, about.person, about.destination);
        // Others that the same person opened meanwhile go on, too, where this
        // check counts for more than its own session.
        let also: Vec<PendingId> = self
            .ssh_checks
            .asked
            .iter()
            .filter(|(_, check)| {
                check.state == State::Waiting
                    && check.about.person == about.person
                    && check.about.destination == about.destination
                    && self
                        .access
                        .ssh_check_for(
                            check.about.source,
                            check.about.destination,
                            &check.about.local_user,
                        )
                        .is_some_and(|rule| !rule.period.is_zero())
            })
            .map(|(id, _)| id.clone())
            .collect();
        for id in also {
            self.decide_ssh_check(now, &id, State::Approved)?;
        }
        Ok(view)
    }

    /// The session is refused.
    ///
    /// # Errors
    /// No session waits under this id.
    pub fn deny_ssh_check(
        &mut self,
        now: Instant,
        id: &PendingId,
    ) -> Result<SshCheckView, AdminError> {
        self.decide_ssh_check(now, id, State::Denied)
    }

    fn decide_ssh_check(
        &mut self,
        now: Instant,
        id: &PendingId,
        state: State,
    ) -> Result<SshCheckView, AdminError> {
        let waiting = self.ssh_checks.asked.get_mut(id);
        let check = waiting
            .filter(|check| check.state == State::Waiting)
            .ok_or_else(|| AdminError::NoSshCheck(id.0.clone()))?;
        check.state = state;
        check.deadline = now + DECIDED_TTL;
        let view = check.view(id);
        self.outputs.push_back(Output::Decided(id.clone()));
        Ok(view)
    }

    /// Ends the waiting of those whose time is over, and forgets decisions.
    pub(crate) fn time_out_ssh_checks(&mut self, now: Instant) {
        let outputs = &mut self.outputs;
        self.ssh_checks.asked.retain(|id, check| {
            if check.deadline > now {
                return true;
            }
            let was_waiting = check.state == State::Waiting;
            if was_waiting {
                check.state = State::TimedOut;
                check.deadline = now + DECIDED_TTL;
                outputs.push_back(Output::Decided(id.clone()));
            }
            was_waiting
        });
    }

    /// Ends the waiting of sessions that no rule wants checked any more, or
    /// that are another person's now; forgets what was passed for nodes that
    /// are gone. For whenever the policy, users or nodes changed.
    pub(crate) fn review_ssh_checks(&mut self) {
        let (nodes, access) = (&self.data.nodes, &self.access);
        let outputs = &mut self.outputs;
        self.ssh_checks.asked.retain(|id, check| {
            let about = &check.about;
            let person = nodes.get(&about.source).map(Person::behind);
            let stays = person == Some(about.person)
                && access
                    .ssh_check_for(about.source, about.destination, &about.local_user)
                    .is_some();
            if !stays {
                outputs.push_back(Output::Decided(id.clone()));
            }
            stays
        });
        self.ssh_checks.passed.retain(|(person, destination), _| {
            nodes.contains_key(destination)
                && match person {
                    Person::User(_) => true,
                    Person::Node(node) => nodes.contains_key(node),
                }
        });
    }
}

//! Logins over SSH that the policy lets in only after a check.
//!
//! A node whose policy asks for a check sends its session here
//! ([`Coordinator::ssh_action`]). If the person behind the session has passed a
//! check for that machine within the rule's period, the answer is to let it in.
//! Else the answer holds the session and sends the person to an address; the
//! node asks again with the id in it, and that request is parked until the
//! administrator decides, the time is over, or the policy has no such rule any
//! more. A decision never depends on what the address says, but on the policy
//! of the moment.

use std::time::{Duration, Instant};

use warren_control_types::SshAction;
use warren_keys::MachinePublic;
use warren_policy::SshCheck;

use super::Coordinator;
use crate::access::Access;
use crate::error::AdminError;
use crate::output::{Notice, Output};
use crate::parked::PendingId;
use crate::ssh_checks::{
    CheckState, CheckedSession, MAX_LOCAL_USER, Person, SshCheckView, SshOutcome, SshQuestion,
    SshRefusal,
};

fn rule_for(access: &Access, session: &CheckedSession) -> Option<SshCheck> {
    access.ssh_check_for(session.source, session.destination, &session.local_user)
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
        let time = self.advance(now, wall);
        let destination = self.view.node(question.destination);
        destination
            .filter(|node| node.machine == machine && self.view.standing(node.id).is_valid())
            .ok_or(SshRefusal::NotTheDestination)?;
        let Some((session, rule)) = self.checked_session(question) else {
            return Ok(SshOutcome::refuse(
                "The policy of this network has no rule that lets this session in after a check.",
            ));
        };
        let asked = match &question.check {
            Some(id) => self
                .ssh_checks
                .ask_again(id, &session)?
                .map(|state| (id, state)),
            None => None,
        };
        if let Some((id, state)) = asked {
            return Ok(match state {
                CheckState::Waiting => SshOutcome::Park(id.clone()),
                CheckState::Approved => SshOutcome::let_in(rule),
                CheckState::Denied => SshOutcome::refuse("The check of this session was refused."),
                CheckState::TimedOut => {
                    SshOutcome::refuse("The check of this session took too long. Try again.")
                }
            });
        }
        // An id that is not known (any more) is one from before a restart: the
        // session continues with a new one.
        if self.ssh_checks.has_passed(now, &session, rule.period) {
            return Ok(SshOutcome::let_in(rule));
        }
        let entropy = self.entropy.as_mut();
        let Ok((id, evicted)) = self.ssh_checks.open(now, time, session.clone(), entropy) else {
            return Ok(SshOutcome::refuse(
                "Too many sessions wait for a check. Try again later.",
            ));
        };
        self.decided(evicted);
        let action = self.hold(&id);
        self.notice(Notice::SshCheck {
            id,
            source: session.source,
            destination: session.destination,
            local_user: session.local_user,
        });
        Ok(SshOutcome::Answer(Box::new(action)))
    }

    /// The session in a question, and the rule of the moment for it.
    fn checked_session(&self, question: &SshQuestion) -> Option<(CheckedSession, SshCheck)> {
        let source = self.view.node(question.source)?;
        if question.local_user.len() > MAX_LOCAL_USER {
            return None;
        }
        let session = CheckedSession {
            person: Person::behind(source),
            source: question.source,
            destination: question.destination,
            local_user: question.local_user.clone(),
        };
        let rule = rule_for(&self.view.access, &session)?;
        Some((session, rule))
    }

    /// Holds the session, and has the node ask again at this address.
    fn hold(&self, id: &PendingId) -> SshAction {
        SshAction {
            message: format!(
                "# This network asks who you are before it lets you in.\n\
                 # Open this address to confirm it: {}\n",
                self.ssh_check_url(id)
            ),
            hold_and_delegate: format!(
                "{}/machine/ssh/action/$SRC_NODE_ID/to/$DST_NODE_ID?local_user=$LOCAL_USER&auth_id={id}",
                self.config().server_url
            ),
            ..SshAction::default()
        }
    }

    /// The address to which a person is sent whose session waits for a check.
    pub fn ssh_check_url(&self, id: &PendingId) -> String {
        format!("{}/ssh-check/{id}", self.config().server_url)
    }

    /// The sessions that wait for a check, oldest first.
    pub fn ssh_checks(&self) -> Vec<SshCheckView> {
        self.ssh_checks.waiting().collect()
    }

    /// The person is the right one: lets the session in, and for the rule's
    /// period all sessions that the same person opens to the same machine.
    ///
    /// # Errors
    /// No session waits under this id.
    pub fn approve_ssh_check(
        &mut self,
        now: Instant,
        id: &PendingId,
    ) -> Result<SshCheckView, AdminError> {
        let view = self.decide_ssh_check(now, id, CheckState::Approved)?;
        // Others that the same person opened meanwhile continue, too, where this
        // check counts for more than its own session.
        let access = &self.view.access;
        let also = self.ssh_checks.passed(now, id, |session| {
            rule_for(access, session).is_some_and(|rule| !rule.period.is_zero())
        });
        self.decided(also);
        Ok(view)
    }

    /// Refuses the session.
    ///
    /// # Errors
    /// No session waits under this id.
    pub fn deny_ssh_check(
        &mut self,
        now: Instant,
        id: &PendingId,
    ) -> Result<SshCheckView, AdminError> {
        self.decide_ssh_check(now, id, CheckState::Denied)
    }

    fn decide_ssh_check(
        &mut self,
        now: Instant,
        id: &PendingId,
        state: CheckState,
    ) -> Result<SshCheckView, AdminError> {
        let decided = self.ssh_checks.decide(now, id, state);
        let view = decided.ok_or_else(|| AdminError::NoSshCheck(id.0.clone()))?;
        self.outputs.push_back(Output::Decided(id.clone()));
        Ok(view)
    }

    /// Ends the waiting of sessions that no rule wants checked any more, or
    /// that belong to another person now.
    pub(super) fn review_ssh_checks(&mut self) {
        let (directory, access) = (&self.view.directory, &self.view.access);
        let ended = self.ssh_checks.review(
            |session| {
                let person = directory.node(session.source).map(Person::behind);
                person == Some(session.person) && rule_for(access, session).is_some()
            },
            |node| directory.node(node).is_some(),
        );
        self.decided(ended);
    }
}

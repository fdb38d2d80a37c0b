//! The decision about a login to this node over SSH: as which local user, with which
//! permissions, or why not.
//!
//! The coordination server sends an [`SshPolicy`] with the netmap. [`evaluate`] answers for
//! one login: who asks ([`Source`], known from the tunnel), for which user ([`Wanted`]), at
//! which time.
//!
//! ```text
//!   SshPolicy, Source, Wanted, now ──▶ Verdict ─┬─ Refused: no rule, or the rule says so
//!                                               ├─ Granted(Grant)
//!                                               └─ Check ──▶ the server's next action ──▶ Verdict
//! ```
//!
//! **Absence gives nothing.** A node without a policy, a rule without an action, a principal
//! without a field, an action with none of `accept`, `reject` and `holdAndDelegate`: none of
//! them lets anything in, and a permission that an action does not name is not given.
//!
//! **The first rule that matches decides.** A rule matches when it has an action, has not
//! expired, names the source, and maps the wanted user to a local user. A rule that rejects
//! needs no user. A rule that maps a name to itself (`=`) never leads to the user with id 0.
//!
//! **Stricter than the official client** in two points: an action that both accepts and
//! holds is held, and an action that names recorders is refused, because this version does
//! not record.
//!
//! **Never here:** sockets, accounts of the system, the clock.

#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

mod check_url;
mod environment;

use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;
use warren_control_types::{SshAction, SshPolicy, SshPrincipal, SshRule, StableNodeId};

pub use check_url::CheckEnds;
pub use environment::{Environment, is_safe_variable};

/// The node that asks for a login. The tunnel vouches for all of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source<'a> {
    /// Its stable id.
    pub node: &'a StableNodeId,
    /// The address that the connection comes from.
    pub address: IpAddr,
    /// The login name of its owner; empty when there is none.
    pub login: &'a str,
}

/// The kind of account that the system has under the name of the wanted user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Account {
    /// There is no such user.
    Missing,
    /// The user has the id 0, whatever its name.
    Root,
    /// Any other user.
    Ordinary,
}

/// The user that a client asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted<'a> {
    /// The name, as the client wrote it.
    pub name: &'a str,
    /// The account of this name.
    pub account: Account,
}

/// The permissions of a login.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// The local user.
    pub local_user: String,
    /// Shown to the user; may be empty.
    pub message: String,
    /// The longest time that sessions may last.
    pub session_duration: Option<Duration>,
    /// Forwarding of the client's SSH agent.
    pub agent_forwarding: bool,
    /// Connections of the client to addresses that this node reaches.
    pub local_forwarding: bool,
    /// Connections to this node that go on to the client.
    pub remote_forwarding: bool,
    /// Variables that the client may set.
    pub environment: Environment,
    /// From then on the rule does not hold any more.
    pub rule_expires: Option<Timestamp>,
    /// The server decided about this login, on behalf of a rule that demands it.
    pub was_checked: bool,
}

/// A login that the server has to decide about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// Shown to the user before the server is asked; may be empty.
    pub message: String,
    template: String,
    local_user: String,
    environment: Environment,
    rule_expires: Option<Timestamp>,
}

/// The reason why a login is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// No rule names the source.
    NoRule,
    /// Rules name the source, but for other users.
    OtherUsers,
    /// A rule refuses, with this message, which may be empty.
    Rejected(String),
    /// The policy demands that the session is recorded, which this version cannot do.
    Recording,
    /// The action says neither to accept, to reject nor to ask.
    NoAction,
}

/// The answer about a login.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It may go on.
    Granted(Grant),
    /// The server has to be asked.
    Check(Check),
    /// It ends here.
    Refused(Refusal),
}

/// Decides about a login.
pub fn evaluate(
    policy: &SshPolicy,
    source: &Source<'_>,
    wanted: &Wanted<'_>,
    now: Timestamp,
) -> Verdict {
    let mut refusal = Refusal::NoRule;
    for rule in &policy.rules {
        let Some(action) = applicable(rule, source, now) else {
            continue;
        };
        if action.reject {
            return Verdict::Refused(Refusal::Rejected(action.message.clone()));
        }
        let Some(local_user) = local_user(rule, wanted) else {
            refusal = Refusal::OtherUsers;
            continue;
        };
        let environment = Environment::new(&rule.accept_env);
        return decide(
            action,
            local_user.to_owned(),
            environment,
            rule.rule_expires,
            false,
        );
    }
    Verdict::Refused(refusal)
}

impl Check {
    /// Where to ask the server for the next action: path and query.
    pub fn target(&self, ends: &CheckEnds<'_>) -> String {
        ends.expand(&self.template, &self.local_user)
    }

    /// Goes on with the action that the server answered.
    pub fn answer(&self, action: &SshAction) -> Verdict {
        if action.reject {
            return Verdict::Refused(Refusal::Rejected(action.message.clone()));
        }
        decide(
            action,
            self.local_user.clone(),
            self.environment.clone(),
            self.rule_expires,
            true,
        )
    }
}

impl Grant {
    /// Whether a login with this grant may go on under `verdict`, the answer of the present
    /// policy about the same login: as the same user, with no permission that is not given
    /// any more. A login that was not checked may not go on under a policy that demands it;
    /// the permissions of a checked one are the server's, which the policy does not name.
    pub fn holds_under(&self, verdict: &Verdict) -> bool {
        match verdict {
            Verdict::Granted(grant) => {
                let keeps = |has: bool, may: bool| may || !has;
                grant.local_user == self.local_user
                    && keeps(self.agent_forwarding, grant.agent_forwarding)
                    && keeps(self.local_forwarding, grant.local_forwarding)
                    && keeps(self.remote_forwarding, grant.remote_forwarding)
            }
            Verdict::Check(check) => self.was_checked && check.local_user == self.local_user,
            Verdict::Refused(_) => false,
        }
    }
}

/// The action of a rule that has not expired and names the source.
fn applicable<'a>(rule: &'a SshRule, source: &Source<'_>, now: Timestamp) -> Option<&'a SshAction> {
    let has_expired = rule.rule_expires.is_some_and(|at| at <= now);
    let names_source = || rule.principals.iter().any(|one| names(one, source));
    rule.action
        .as_ref()
        .filter(|_| !has_expired && names_source())
}

/// Whether a principal names the source. Its fields are alternatives.
fn names(principal: &SshPrincipal, source: &Source<'_>) -> bool {
    let is_node = || {
        let node = principal.node.as_ref();
        node.is_some_and(|node| !node.0.is_empty() && node == source.node)
    };
    let is_address = || {
        let address = principal.node_ip.parse::<IpAddr>();
        address.is_ok_and(|address| address == source.address)
    };
    let is_owner = || !principal.user_login.is_empty() && principal.user_login == source.login;
    principal.any || is_node() || is_address() || is_owner()
}

/// The local user that a rule gives for the wanted one.
fn local_user<'a>(rule: &'a SshRule, wanted: &Wanted<'a>) -> Option<&'a str> {
    let mapped = rule.ssh_users.get(wanted.name);
    match mapped.or_else(|| rule.ssh_users.get("*"))?.as_str() {
        "" => None,
        "=" => (wanted.account == Account::Ordinary).then_some(wanted.name),
        other => Some(other),
    }
}

fn decide(
    action: &SshAction,
    local_user: String,
    environment: Environment,
    rule_expires: Option<Timestamp>,
    was_checked: bool,
) -> Verdict {
    if !action.recorders.is_empty() {
        return Verdict::Refused(Refusal::Recording);
    }
    if !action.hold_and_delegate.is_empty() {
        return Verdict::Check(Check {
            message: action.message.clone(),
            template: action.hold_and_delegate.clone(),
            local_user,
            environment,
            rule_expires,
        });
    }
    if !action.accept {
        return Verdict::Refused(Refusal::NoAction);
    }
    Verdict::Granted(Grant {
        local_user,
        message: action.message.clone(),
        session_duration: Some(action.session_duration).filter(|duration| !duration.is_zero()),
        agent_forwarding: action.allow_agent_forwarding,
        local_forwarding: action.allow_local_port_forwarding,
        remote_forwarding: action.allow_remote_port_forwarding,
        environment,
        rule_expires,
        was_checked,
    })
}

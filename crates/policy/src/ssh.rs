//! Compiles the `ssh` section: the users that may log in to a node over SSH,
//! and the local accounts that they may use.
//!
//! [`Policy::compile_ssh`] resolves every selector of the section once;
//! [`SshRules::policy_for`] then returns the rules of one node. A node applies
//! the first rule that matches, so their order matters: rules with a check come
//! before rules that accept, each kind in the order of the file.
//!
//! The period of a check, and the action after it, are not sent to the node:
//! the node asks this server, which looks them up with [`SshRules::check_for`].

mod login_tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use warren_control_types::{
    NodeId, SshAction, SshPolicy, SshPrincipal, SshRecorderFailureAction, UserId,
};

use crate::model::{Policy, SshRule};
use crate::node::{PolicyNode, PolicyUser};
use crate::posture::Attributes;
use crate::selector::Selector;

pub use login_tests::{FailedSshTest, SshExpectation};

/// The port on which session recorders listen.
const RECORDER_PORT: u16 = 80;

/// The message for a session that must be recorded and cannot be.
const NO_RECORDER: &str = "This session must be recorded, and no recorder answers.";

/// The `ssh` section, compiled for the current users and nodes.
#[derive(Debug, Clone)]
pub struct SshRules {
    /// Ascending by id.
    nodes: Vec<PolicyNode>,
    /// Rules with a check first, each kind in file order.
    rules: Vec<Resolved>,
}

/// One rule with its selectors resolved.
#[derive(Debug, Clone)]
struct Resolved {
    check: Option<Duration>,
    /// The permissions of an accepted session.
    accept: SshAction,
    accept_env: Vec<String>,
    /// Requested account to local account, for every source.
    users: BTreeMap<String, String>,
    /// Whether users may log in to the account named like their own login.
    by_login: bool,
    /// The names of these accounts.
    local_parts: BTreeMap<UserId, String>,
    /// Source nodes (indices, ascending) of each user, in user order.
    user_sources: BTreeMap<UserId, Vec<usize>>,
    /// Tagged source nodes, listed once for each tag that selects them.
    tagged_sources: Vec<usize>,
    /// Destinations, `autogroup:self` aside.
    to: BTreeSet<usize>,
    to_own_user: bool,
}

/// The conditions of a check.
#[derive(Debug, Clone, PartialEq)]
pub struct SshCheck {
    /// The time for which an earlier check stays valid; zero: never.
    pub period: Duration,
    /// The permissions of the session after the check succeeded.
    pub then: SshAction,
}

impl Policy {
    /// Resolves the `ssh` section for these users and nodes.
    #[must_use]
    pub fn compile_ssh(&self, users: &[PolicyUser], nodes: &[PolicyNode]) -> SshRules {
        self.ssh_rules(users, nodes, None)
    }

    /// Resolves the rules. With `posed`, every node is assumed to have these
    /// attributes.
    fn ssh_rules(
        &self,
        users: &[PolicyUser],
        nodes: &[PolicyNode],
        posed: Option<&Attributes>,
    ) -> SshRules {
        let mut nodes = nodes.to_vec();
        nodes.sort_by_key(|node| node.id);
        let resolve = |rule: &SshRule| self.resolve_ssh(users, &nodes, rule, posed);
        let mut rules: Vec<Resolved> = self.ssh.iter().map(resolve).collect();
        rules.sort_by_key(|rule| rule.check.is_none());
        SshRules { nodes, rules }
    }

    fn resolve_ssh(
        &self,
        users: &[PolicyUser],
        nodes: &[PolicyNode],
        rule: &SshRule,
        posed: Option<&Attributes>,
    ) -> Resolved {
        let selects = |selectors: &[Selector], node: &PolicyNode| {
            selectors
                .iter()
                .any(|selector| self.selects_node(selector, users, node))
        };
        let mut user_sources: BTreeMap<UserId, Vec<usize>> = BTreeMap::new();
        let mut tagged_sources = Vec::new();
        let mut to = BTreeSet::new();
        for (index, node) in nodes.iter().enumerate() {
            if selects(&rule.to, node) {
                to.insert(index);
            }
            if !self.has_posture(&rule.postures, posed.unwrap_or(&node.attributes)) {
                continue;
            }
            if node.is_tagged() {
                let tags = rule.sources.iter().flat_map(|selector| match selector {
                    Selector::Tag(tag) if node.tags.contains(tag) => vec![tag],
                    Selector::Tagged => node.tags.iter().collect(),
                    _ => Vec::new(),
                });
                let tags: BTreeSet<&String> = tags.collect();
                tagged_sources.extend(tags.iter().map(|_| index));
            } else if let Some(user) = node.user.filter(|_| selects(&rule.sources, node)) {
                user_sources.entry(user).or_default().push(index);
            }
        }
        let mut names: BTreeMap<String, String> = BTreeMap::new();
        if rule.logins.nonroot {
            names.insert("*".to_owned(), "=".to_owned());
        }
        let root = if rule.logins.root { "root" } else { "" };
        names.insert("root".to_owned(), root.to_owned());
        names.extend(rule.logins.names.iter().map(|n| (n.clone(), n.clone())));
        let local_parts = users.iter().filter_map(|user| {
            let mut domains = rule.logins.domains.iter();
            let local = domains.find_map(|domain| user.local_part(domain))?;
            Some((user.id, local.to_owned()))
        });
        let recorders = nodes
            .iter()
            .filter(|node| selects(&rule.recorders, node))
            .flat_map(|node| &node.addresses)
            .map(|address| SocketAddr::new(*address, RECORDER_PORT));
        let enforced = rule.enforce_recorder.then(|| SshRecorderFailureAction {
            reject_session_with_message: NO_RECORDER.to_owned(),
            terminate_session_with_message: "The recorder of this session is gone.".to_owned(),
            ..SshRecorderFailureAction::default()
        });
        let recorders: Vec<SocketAddr> = recorders.collect();
        // Without a recorder, clients do not record and do not fail either.
        let accept = if rule.enforce_recorder && recorders.is_empty() {
            SshAction {
                message: NO_RECORDER.to_owned(),
                reject: true,
                ..SshAction::default()
            }
        } else {
            SshAction {
                accept: true,
                allow_agent_forwarding: true,
                allow_local_port_forwarding: true,
                allow_remote_port_forwarding: true,
                recorders,
                on_recording_failure: enforced,
                ..SshAction::default()
            }
        };
        Resolved {
            check: rule.check,
            accept,
            accept_env: rule.accept_env.clone(),
            users: names,
            by_login: !rule.logins.domains.is_empty(),
            local_parts: local_parts.collect(),
            user_sources,
            tagged_sources,
            to,
            to_own_user: rule.to.contains(&Selector::OwnUser),
        }
    }
}

impl SshRules {
    /// The SSH policy for `node`. `base_url` is the address of this server for
    /// checks, without a slash at the end.
    #[must_use]
    pub fn policy_for(&self, node: NodeId, base_url: &str) -> SshPolicy {
        let Ok(index) = self.nodes.binary_search_by_key(&node, |node| node.id) else {
            return SshPolicy::default();
        };
        let mut out = SshPolicy::default();
        for rule in &self.rules {
            let mut say = |sources: &[usize], users: &BTreeMap<String, String>| {
                if sources.is_empty() {
                    return;
                }
                let action = match rule.check {
                    None => rule.accept.clone(),
                    Some(_) => SshAction {
                        hold_and_delegate: format!(
                            "{base_url}/machine/ssh/action/$SRC_NODE_ID/to/$DST_NODE_ID?local_user=$LOCAL_USER"
                        ),
                        ..SshAction::default()
                    },
                };
                out.rules.push(warren_control_types::SshRule {
                    principals: self.principals(sources),
                    ssh_users: users.clone(),
                    action: Some(action),
                    accept_env: rule.accept_env.clone(),
                    ..Default::default()
                });
            };
            for part in self.parts(rule, index) {
                say(&part.sources, &rule.users);
                if let Some(local) = part.local_part {
                    say(
                        &part.sources,
                        &BTreeMap::from([(local.to_owned(), local.to_owned())]),
                    );
                }
            }
        }
        out
    }

    /// The conditions of the check for a session from `source` to `local_user`
    /// on `destination`; `None` if no rule requires a check there.
    #[must_use]
    pub fn check_for(
        &self,
        source: NodeId,
        destination: NodeId,
        local_user: &str,
    ) -> Option<SshCheck> {
        let index = |id: NodeId| self.nodes.binary_search_by_key(&id, |node| node.id).ok();
        let (source, destination) = (index(source)?, index(destination)?);
        let rule = self.rules.iter().find(|rule| {
            rule.check.is_some() && self.lets_in(rule, source, destination, local_user)
        })?;
        Some(SshCheck {
            period: rule.check?,
            then: rule.accept.clone(),
        })
    }

    /// Whether a rule for `destination` allows `source` to log in as `user`.
    fn lets_in(&self, rule: &Resolved, source: usize, destination: usize, user: &str) -> bool {
        self.parts(rule, destination).iter().any(|part| {
            part.sources.contains(&source)
                && (allows(&rule.users, user) || part.local_part == Some(user))
        })
    }

    /// The entries that a rule contributes to the SSH policy of a node.
    fn parts<'a>(&self, rule: &'a Resolved, node: usize) -> Vec<Part<'a>> {
        let own_user = self
            .nodes
            .get(node)
            .filter(|own| !own.is_tagged())
            .and_then(|own| own.user);
        let of_user = |user: UserId| {
            rule.user_sources.get(&user).map(|sources| Part {
                sources: sources.clone(),
                local_part: rule.local_parts.get(&user).map(String::as_str),
            })
        };
        let mut out = Vec::new();
        if rule.to_own_user {
            out.extend(own_user.and_then(of_user));
        }
        if rule.to.contains(&node) {
            if rule.by_login {
                out.extend(rule.user_sources.keys().copied().filter_map(of_user));
                out.push(Part::plain(rule.tagged_sources.clone()));
            } else {
                let users = rule.user_sources.values().flatten();
                let all = users.chain(&rule.tagged_sources).copied();
                out.push(Part::plain(all.collect()));
            }
        } else if rule.by_login && !rule.to.is_empty() {
            // If account names depend on the source, the hosted service also
            // sends a source its own entries, although no login to that node is
            // allowed.
            match own_user {
                Some(user) => {
                    let sources = rule.user_sources.get(&user);
                    if sources.is_some_and(|sources| sources.contains(&node)) {
                        out.extend(of_user(user));
                    }
                }
                None if rule.tagged_sources.contains(&node) => {
                    out.push(Part::plain(vec![node]));
                }
                None => {}
            }
        }
        out
    }

    /// One principal for each address, ascending as text.
    fn principals(&self, sources: &[usize]) -> Vec<SshPrincipal> {
        let mut addresses: Vec<String> = sources
            .iter()
            .filter_map(|source| self.nodes.get(*source))
            .flat_map(|node| &node.addresses)
            .map(IpAddr::to_string)
            .collect();
        addresses.sort_unstable();
        let principal = |node_ip| SshPrincipal {
            node_ip,
            ..SshPrincipal::default()
        };
        addresses.into_iter().map(principal).collect()
    }
}

/// Sources of a rule that share one entry.
struct Part<'a> {
    sources: Vec<usize>,
    /// An account that these sources may use in addition to those of the rule.
    local_part: Option<&'a str>,
}

impl Part<'_> {
    fn plain(sources: Vec<usize>) -> Self {
        Self {
            sources,
            local_part: None,
        }
    }
}

/// Whether a map of accounts allows a login as `user`.
fn allows(users: &BTreeMap<String, String>, user: &str) -> bool {
    match users.get(user) {
        Some(local) => !user.is_empty() && !local.is_empty(),
        None => user != "root" && !user.is_empty() && users.contains_key("*"),
    }
}

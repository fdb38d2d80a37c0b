//! Who sees whom, and what each node lets in.
//!
//! Without a policy every node sees every node and lets everything in. With
//! one, [`warren_policy`] compiles it against the users and nodes of the
//! moment; a peer is visible when either side may open a connection to the
//! other, since both then need the other's key.

mod sections;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::IpAddr;

use ipnet::IpNet;
use warren_control_types::{FilterRule, NetPortRange, NodeId, PortRange, UserId};
use warren_policy::{Compiled, Impact, NodeSet, Policy, PolicyNode, PolicyUser, SshRules};

use crate::records::{NodeRecord, Snapshot, UserRecord};
use crate::routes::{effective, is_exit};

pub(crate) use sections::without_ipv4;

/// The policy in force.
#[derive(Debug, Default)]
pub struct Access {
    /// `None`: no policy, or one without rules, which is the same.
    policy: Option<InForce>,
}

/// Whom a change concerns.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Concern {
    /// By what the policy makes of who may reach whom. `None`: everyone.
    pub(crate) access: Option<Impact>,
    /// Logins over SSH may be others, for everyone.
    pub(crate) ssh: bool,
    /// What single nodes are told of themselves may be different.
    pub(crate) own_nodes: bool,
}

impl Concern {
    fn nobody() -> Self {
        Self {
            access: Some(Impact::default()),
            ..Self::default()
        }
    }

    fn everyone() -> Self {
        Self {
            access: None,
            ssh: true,
            own_nodes: true,
        }
    }
}

#[derive(Debug)]
struct InForce {
    policy: Policy,
    compiled: Compiled,
    ssh: SshRules,
    users: Vec<PolicyUser>,
}

impl Access {
    /// No policy: every node may reach every node.
    pub fn allow_all() -> Self {
        Self::default()
    }

    /// A policy from its text.
    ///
    /// # Errors
    /// Its diagnostics, ready to be shown.
    pub fn parse(text: &str) -> Result<Self, String> {
        read("policy", text).map(Self::of)
    }

    /// A policy that was read.
    pub(crate) fn of(policy: Policy) -> Self {
        let compiled = policy.compile(&[], &[]);
        let ssh = policy.compile_ssh(&[], &[]);
        Self {
            policy: Some(InForce {
                policy,
                compiled,
                ssh,
                users: Vec::new(),
            }),
        }
    }

    /// Whether everybody sees everybody and nobody is told anything special
    /// whatever changes, so that nothing has to be computed again.
    pub fn is_allow_all(&self) -> bool {
        self.policy.as_ref().is_none_or(|in_force| {
            in_force.policy.is_allow_all() && !in_force.policy.has_node_rules()
        })
    }

    /// Compiles everything anew.
    pub(crate) fn recompute(&mut self, data: &Snapshot) {
        if let Some(in_force) = &mut self.policy {
            in_force.users = users(data);
            if !in_force.policy.is_allow_all() {
                in_force.compiled = in_force.policy.compile(&in_force.users, &nodes(data));
            }
            in_force.recompute_ssh(data);
        }
    }

    /// The same policy, compiled anew.
    #[cfg(test)]
    pub(crate) fn anew(&self, data: &Snapshot) -> Self {
        let policy = self.policy.as_ref().map(|own| own.policy.clone());
        let mut out = policy.map(Self::of).unwrap_or_default();
        out.recompute(data);
        out
    }

    /// A node came, went, or is another one for the policy.
    pub(crate) fn node_changed(&mut self, data: &Snapshot, id: NodeId) -> Concern {
        let mut concern = Concern::nobody();
        if let Some(in_force) = &mut self.policy {
            if !in_force.policy.is_allow_all() {
                concern.access = Some(match data.nodes.get(&id) {
                    Some(node) => in_force.compiled.update_node(policy_node(node)),
                    None => in_force.compiled.remove_node(id),
                });
            }
            concern.ssh = in_force.recompute_ssh(data);
        }
        concern
    }

    /// A user came, went or has another name.
    pub(crate) fn users_changed(&mut self, data: &Snapshot) -> Concern {
        let mut concern = Concern::nobody();
        if let Some(in_force) = &mut self.policy {
            in_force.users = users(data);
            if !in_force.policy.is_allow_all() {
                concern.access = Some(in_force.compiled.update_users(&in_force.users));
            }
            concern.ssh = in_force.recompute_ssh(data);
            concern.own_nodes = in_force.policy.has_node_rules();
        }
        concern
    }

    /// A node came online or went offline.
    pub(crate) fn presence_changed(&self, id: NodeId) -> Concern {
        let in_force = self.policy.as_ref();
        let rules = in_force.filter(|in_force| !in_force.policy.is_allow_all());
        Concern {
            access: Some(rules.map_or_else(Impact::default, |in_force| {
                in_force.compiled.presence_changed(id)
            })),
            ..Concern::nobody()
        }
    }

    /// Puts another policy in the place of this one.
    pub(crate) fn replace(&mut self, by: Self, data: &Snapshot) -> Concern {
        let before = std::mem::replace(self, by);
        let (Some(mut old), Some(new)) = (before.policy, &mut self.policy) else {
            self.recompute(data);
            return Concern::everyone();
        };
        if old.policy.is_allow_all() || new.policy.is_allow_all() {
            self.recompute(data);
            return Concern::everyone();
        }
        let mut affected = Impact::default();
        if new.policy.requires_postures() && !old.policy.requires_postures() {
            // Nobody told the old one when a host described itself anew.
            for node in data.nodes.values() {
                affected.unite(&old.compiled.update_node(policy_node(node)));
            }
        }
        affected.unite(&old.compiled.replace_policy(&new.policy));
        new.compiled = old.compiled;
        new.users = old.users;
        let same = old.policy.gives_nodes_the_same(&new.policy);
        new.recompute_ssh(data);
        Concern {
            access: Some(affected),
            ssh: !same,
            own_nodes: !same,
        }
    }

    pub(crate) fn can_see(&self, viewer: NodeId, peer: NodeId) -> bool {
        match &self.policy {
            Some(in_force) if !in_force.policy.is_allow_all() => {
                in_force.compiled.can_see(viewer, peer)
            }
            Some(_) | None => true,
        }
    }

    /// Those who see the node and whom it sees. `None`: everyone.
    pub(crate) fn peers_of(&self, id: NodeId) -> Option<NodeSet> {
        let in_force = self.policy.as_ref()?;
        (!in_force.policy.is_allow_all()).then(|| in_force.compiled.peer_set(id))
    }

    /// The routes behind `peer` that `viewer` is given; `primary` are those of
    /// which the peer is the active router, and `online` the nodes that are
    /// there. Exit routes come last.
    pub(crate) fn routes_for(
        &self,
        viewer: NodeId,
        peer: &NodeRecord,
        primary: Vec<IpNet>,
        online: &BTreeSet<NodeId>,
    ) -> Vec<IpNet> {
        match &self.policy {
            Some(in_force) if !in_force.policy.is_allow_all() => {
                let online = |id: NodeId| online.contains(&id);
                in_force
                    .compiled
                    .routes_for(viewer, peer.id, &primary, &online)
            }
            Some(_) | None => {
                let mut routes = primary;
                routes.extend(effective(peer).into_iter().filter(is_exit));
                routes
            }
        }
    }

    pub(crate) fn filter_for(&self, id: NodeId) -> Vec<FilterRule> {
        match &self.policy {
            Some(in_force) if !in_force.policy.is_allow_all() => in_force.compiled.filter_for(id),
            Some(_) | None => vec![FilterRule {
                src_ips: vec!["*".to_owned()],
                dst_ports: vec![NetPortRange {
                    ip: "*".to_owned(),
                    ports: PortRange::ANY,
                    ..Default::default()
                }],
                ..Default::default()
            }],
        }
    }

    /// Whether the user may give a node the tag. Without a policy nobody may:
    /// there is nothing that says who.
    pub(crate) fn may_tag(&self, user: UserId, tag: &str) -> bool {
        self.policy
            .as_ref()
            .is_some_and(|in_force| in_force.policy.may_use_tag(&in_force.users, user, tag))
    }

    pub(crate) fn approves_route(&self, node: &NodeRecord, route: &IpNet) -> bool {
        self.policy.as_ref().is_some_and(|in_force| {
            in_force
                .policy
                .approves_route(&in_force.users, &policy_node(node), *route)
        })
    }
}

impl InForce {
    /// Resolves the logins over SSH again; whether there are any.
    fn recompute_ssh(&mut self, data: &Snapshot) -> bool {
        let any = self.policy.has_ssh_rules();
        if any {
            self.ssh = self.policy.compile_ssh(&self.users, &nodes(data));
        }
        any
    }
}

/// Reads the policy of a file; the error is ready to be shown.
pub(crate) fn read(file: &str, text: &str) -> Result<Policy, String> {
    Policy::parse(text).map_err(|diagnostics| {
        let mut shown = String::new();
        for diagnostic in &diagnostics {
            let _ = writeln!(shown, "{}", diagnostic.render(file, text).trim_end());
        }
        shown
    })
}

/// The promises in the policy (`tests`, `sshTests`) that do not hold.
pub(crate) fn broken_tests(
    policy: &Policy,
    users: &[PolicyUser],
    nodes: &[PolicyNode],
) -> Vec<String> {
    let access = policy.run_tests(users, nodes);
    let ssh = policy.run_ssh_tests(users, nodes);
    let access = access.iter().map(ToString::to_string);
    access.chain(ssh.iter().map(ToString::to_string)).collect()
}

pub(crate) fn users(data: &Snapshot) -> Vec<PolicyUser> {
    data.users.values().map(policy_user).collect()
}

fn policy_user(user: &UserRecord) -> PolicyUser {
    PolicyUser {
        id: user.id,
        login: user.name.clone(),
        aliases: Vec::new(),
        role: user.role,
    }
}

pub(crate) fn nodes(data: &Snapshot) -> Vec<PolicyNode> {
    data.nodes.values().map(policy_node).collect()
}

fn policy_node(node: &NodeRecord) -> PolicyNode {
    PolicyNode {
        id: node.id,
        user: node.user.filter(|_| !node.is_tagged()),
        tags: node.tags.iter().cloned().collect(),
        addresses: vec![
            IpAddr::from(node.address.v4()),
            IpAddr::from(node.address.v6()),
        ],
        routes: effective(node).into_iter().collect(),
        attributes: sections::attributes(&node.hostinfo),
    }
}

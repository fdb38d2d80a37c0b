//! The peers that each node sees, and the traffic that it lets in.
//!
//! Without a policy every node sees every node and lets everything in. With
//! one, [`warren_policy`] compiles it against the users and nodes of the
//! moment; a peer is visible when either side may open a connection to the
//! other, since both then need the other's key.

mod sections;

use std::fmt::Write as _;
use std::net::IpAddr;

use ipnet::IpNet;
use warren_control_types::{FilterRule, NetPortRange, NodeId, PortRange, UserId};
use warren_policy::{
    Compiled, Context, Impact, NodeSet, Policy, PolicyNode, PolicyUser, RouterService, SshRules,
};

use crate::directory::Directory;
use crate::records::{NodeRecord, UserRecord};
use crate::routes::{effective, is_exit};

pub(crate) use sections::without_ipv4;

/// The reason why every node may reach every node without a policy.
pub(crate) const NO_POLICY: &str = "no policy is set";

/// The policy in force.
#[derive(Debug, Clone)]
pub struct Access {
    /// `None`: no policy, or one without rules, which is the same.
    policy: Option<InForce>,
    /// The reason why the stored policy cannot be read, if that is so. Nothing is
    /// allowed then.
    fault: Option<String>,
}

/// The parts of maps that a change of nodes, users or of the policy alters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct MapImpact {
    /// The nodes whose filters or views the access rules alter. `None`: all.
    pub(crate) access: Option<Impact>,
    /// The SSH policy of any node may differ.
    pub(crate) ssh: bool,
    /// Any node's own section may differ.
    pub(crate) own_nodes: bool,
}

impl MapImpact {
    fn none() -> Self {
        Self {
            access: Some(Impact::default()),
            ..Self::default()
        }
    }

    fn all() -> Self {
        Self {
            access: None,
            ssh: true,
            own_nodes: true,
        }
    }
}

#[derive(Debug, Clone)]
struct InForce {
    policy: Policy,
    compiled: Compiled,
    ssh: SshRules,
    users: Vec<PolicyUser>,
}

impl Access {
    /// No policy: every node may reach every node.
    pub fn allow_all() -> Self {
        Self {
            policy: None,
            fault: None,
        }
    }

    /// A policy from its text.
    ///
    /// # Errors
    /// Its diagnostics, ready to be shown.
    pub fn parse(text: &str) -> Result<Self, String> {
        read("policy", text, &Context::default()).map(Self::of)
    }

    /// A stored policy that cannot be read, for the reason given: nothing is
    /// allowed until another one is set.
    pub(crate) fn unreadable(why: String) -> Self {
        let none = Self::parse(r#"{"acls": []}"#);
        Self {
            fault: Some(why),
            ..none.unwrap_or_else(|why| unreachable!("a list without rules: {why}"))
        }
    }

    /// The reason why the stored policy cannot be read, if that is so.
    pub(crate) fn fault(&self) -> Option<&str> {
        self.fault.as_deref()
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
            fault: None,
        }
    }

    /// Whether every node sees every other one and no node has a section of its
    /// own, whatever changes, so that nothing has to be computed again.
    pub fn is_allow_all(&self) -> bool {
        self.policy.as_ref().is_none_or(|in_force| {
            in_force.policy.is_allow_all() && !in_force.policy.has_node_rules()
        })
    }

    /// The reason why every node may reach every node, if the policy allows that.
    pub(crate) fn allows_everything(&self) -> Option<String> {
        match &self.policy {
            None => Some(NO_POLICY.to_owned()),
            Some(in_force) => {
                let found = in_force.policy.allows_everything();
                found.as_ref().map(ToString::to_string)
            }
        }
    }

    /// Compiles everything from the start.
    pub(crate) fn recompute(&mut self, data: &Directory) {
        if let Some(in_force) = &mut self.policy {
            in_force.users = users(data);
            if !in_force.policy.is_allow_all() {
                in_force.compiled = in_force.policy.compile(&in_force.users, &nodes(data));
            }
            in_force.recompute_ssh(data);
        }
    }

    /// The same policy, compiled from the start.
    #[cfg(test)]
    pub(crate) fn recompiled(&self, data: &Directory) -> Self {
        let policy = self.policy.as_ref().map(|own| own.policy.clone());
        let mut out = policy.map_or_else(Self::allow_all, Self::of);
        out.recompute(data);
        out
    }

    /// A node came, went, or is another one for the policy.
    pub(crate) fn node_changed(&mut self, data: &Directory, id: NodeId) -> MapImpact {
        let mut impact = MapImpact::none();
        if let Some(in_force) = &mut self.policy {
            if !in_force.policy.is_allow_all() {
                impact.access = Some(match data.node(id) {
                    Some(node) => in_force.compiled.update_node(policy_node(node)),
                    None => in_force.compiled.remove_node(id),
                });
            }
            impact.ssh = in_force.recompute_ssh(data);
        }
        impact
    }

    /// A user came, went or has another name.
    pub(crate) fn users_changed(&mut self, data: &Directory) -> MapImpact {
        let mut impact = MapImpact::none();
        if let Some(in_force) = &mut self.policy {
            in_force.users = users(data);
            if !in_force.policy.is_allow_all() {
                impact.access = Some(in_force.compiled.update_users(&in_force.users));
            }
            impact.ssh = in_force.recompute_ssh(data);
            impact.own_nodes = in_force.policy.has_node_rules();
        }
        impact
    }

    /// A node came online or went offline.
    pub(crate) fn presence_changed(&self, id: NodeId) -> MapImpact {
        let in_force = self.policy.as_ref();
        let rules = in_force.filter(|in_force| !in_force.policy.is_allow_all());
        MapImpact {
            access: Some(rules.map_or_else(Impact::default, |in_force| {
                in_force.compiled.presence_changed(id)
            })),
            ..MapImpact::none()
        }
    }

    /// Puts another policy in the place of this one.
    pub(crate) fn replace(&mut self, by: Self, data: &Directory) -> MapImpact {
        let before = std::mem::replace(self, by);
        let (Some(mut old), Some(new)) = (before.policy, &mut self.policy) else {
            self.recompute(data);
            return MapImpact::all();
        };
        if old.policy.is_allow_all() || new.policy.is_allow_all() {
            self.recompute(data);
            return MapImpact::all();
        }
        let mut affected = Impact::default();
        if new.policy.requires_postures() && !old.policy.requires_postures() {
            // The old one was not updated with new descriptions of hosts.
            for node in data.nodes() {
                affected.unite(&old.compiled.update_node(policy_node(node)));
            }
        }
        affected.unite(&old.compiled.replace_policy(&new.policy));
        new.compiled = old.compiled;
        new.users = old.users;
        let same = old.policy.gives_nodes_the_same(&new.policy);
        new.recompute_ssh(data);
        MapImpact {
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

    /// The nodes that see the node, and those that it sees. `None`: all.
    pub(crate) fn peers_of(&self, id: NodeId) -> Option<NodeSet> {
        let in_force = self.policy.as_ref()?;
        (!in_force.policy.is_allow_all()).then(|| in_force.compiled.peer_set(id))
    }

    /// The routes behind `peer` that `viewer` is given; `primary` are those of
    /// which the peer is the active router, and `service` returns how well nodes
    /// serve. Exit routes come last.
    pub(crate) fn routes_for(
        &self,
        viewer: NodeId,
        peer: &NodeRecord,
        primary: Vec<IpNet>,
        service: &dyn Fn(NodeId) -> RouterService,
    ) -> Vec<IpNet> {
        match &self.policy {
            Some(in_force) if !in_force.policy.is_allow_all() => in_force
                .compiled
                .routes_for(viewer, peer.id, &primary, service),
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

    /// Whether the user may give a node the tag. Without a policy no user may.
    pub(crate) fn may_tag(&self, user: UserId, tag: &str) -> bool {
        self.policy
            .as_ref()
            .is_some_and(|in_force| in_force.policy.may_use_tag(&in_force.users, user, tag))
    }

    /// Whether the policy defines the tag. Without a policy, no tag needs a
    /// definition.
    pub(crate) fn defines_tag(&self, tag: &str) -> bool {
        let in_force = self.policy.as_ref();
        in_force.is_none_or(|in_force| in_force.policy.knows_tag(tag))
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
    fn recompute_ssh(&mut self, data: &Directory) -> bool {
        let any = self.policy.has_ssh_rules();
        if any {
            self.ssh = self.policy.compile_ssh(&self.users, &nodes(data));
        }
        any
    }
}

/// Reads the policy of a file; the error is ready to be shown.
pub(crate) fn read(file: &str, text: &str, context: &Context) -> Result<Policy, String> {
    Policy::parse_in(text, context).map_err(|diagnostics| {
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

pub(crate) fn users(data: &Directory) -> Vec<PolicyUser> {
    data.users().map(policy_user).collect()
}

fn policy_user(user: &UserRecord) -> PolicyUser {
    let account = user.account.iter();
    let groups = account.flat_map(|account| {
        let groups = account.groups.iter();
        groups.map(|group| format!("oidc:{}/{group}", account.provider))
    });
    PolicyUser {
        groups: groups.collect(),
        id: user.id,
        login: user.name.clone(),
        aliases: Vec::new(),
        role: user.role,
    }
}

pub(crate) fn nodes(data: &Directory) -> Vec<PolicyNode> {
    data.nodes().map(policy_node).collect()
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

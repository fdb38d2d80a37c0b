//! A parsed and valid policy.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use serde_json::Value;
use warren_control_types::{DerpMap, DerpRegion, RegionId, UserId};

use crate::attributes::{AttributeConfig, NodeAttribute};
use crate::diagnostic::Diagnostic;
use crate::file::Context;
use crate::node::{PolicyNode, PolicyUser};
use crate::posture::{Assertion, Attributes};
use crate::selector::{Ports, Selector};
use crate::ssh::{SshRule, SshTest};

/// A policy, independent of any node.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Policy {
    /// The file has neither acls nor grants: everything is allowed.
    pub(crate) open: bool,
    /// Grants in file order, then acls in file order.
    pub(crate) rules: Vec<Rule>,
    pub(crate) groups: BTreeMap<String, Vec<String>>,
    pub(crate) tag_owners: BTreeMap<String, Vec<Selector>>,
    pub(crate) route_approvers: Vec<(IpNet, Vec<Selector>)>,
    pub(crate) exit_approvers: Vec<Selector>,
    /// By `svc:x` or by the tag of services.
    pub(crate) service_approvers: BTreeMap<String, Vec<Selector>>,
    pub(crate) tests: Vec<Test>,
    pub(crate) ssh: Vec<SshRule>,
    pub(crate) ssh_tests: Vec<SshTest>,
    pub(crate) node_attributes: Vec<NodeAttribute>,
    pub(crate) attribute_configs: BTreeMap<String, AttributeConfig>,
    pub(crate) postures: BTreeMap<String, Vec<Assertion>>,
    pub(crate) relay_regions: RelayRegions,
    pub(crate) randomize_client_port: bool,
    pub(crate) disable_ipv4: bool,
    pub(crate) one_cgnat_route: Option<bool>,
}

/// A grant, or one acl: sources once, and what they may reach.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Rule {
    pub(crate) sources: Vec<Selector>,
    pub(crate) reach: Vec<Reach>,
    /// Capabilities with their values, in file order.
    pub(crate) app: Vec<(String, Vec<Value>)>,
    /// Destinations of the capabilities.
    pub(crate) app_to: Vec<Selector>,
    /// Tags of the routers that may carry the traffic; empty: any.
    pub(crate) via: Vec<String>,
    /// Postures of which a source node must have one; empty: none needed.
    pub(crate) postures: Vec<String>,
}

/// Some destinations with one protocol and its ports.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Reach {
    pub(crate) to: Vec<Selector>,
    /// `None`: TCP, UDP and ICMP.
    pub(crate) protocol: Option<u8>,
    pub(crate) ports: Vec<Ports>,
}

/// An entry of `tests`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Test {
    pub(crate) source: Selector,
    pub(crate) source_text: String,
    pub(crate) protocol: Option<u8>,
    pub(crate) accept: Vec<TestTarget>,
    pub(crate) deny: Vec<TestTarget>,
    /// The attributes that the source is assumed to have.
    pub(crate) attributes: Attributes,
}

/// A destination of a test.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TestTarget {
    pub(crate) to: Selector,
    pub(crate) port: u16,
    pub(crate) text: String,
}

/// The changes of a policy to the relays of the tailnet (`derpMap`).
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RelayRegions {
    /// The server's own regions are left out.
    pub omit_default_regions: bool,
    /// Regions to add or replace; `None` removes one.
    pub regions: BTreeMap<RegionId, Option<DerpRegion>>,
}

impl RelayRegions {
    /// Whether the policy does not change the relays.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.omit_default_regions && self.regions.is_empty()
    }

    /// Applies the policy to the server's relays.
    pub fn apply(&self, map: &mut DerpMap) {
        if self.omit_default_regions {
            map.regions.clear();
            map.omit_default_regions = true;
        }
        for (id, region) in &self.regions {
            match region {
                Some(region) => map.regions.insert(*id, region.clone()),
                None => map.regions.remove(id),
            };
        }
    }
}

impl Policy {
    /// Parses a policy file. An empty file, and one with neither `acls` nor
    /// `grants`, allow everything. All errors are returned at once, in the
    /// order of their positions (at most the first five hundred).
    pub fn parse(source: &str) -> Result<Self, Vec<Diagnostic>> {
        Self::parse_in(source, &Context::default())
    }

    /// Parses a policy file with facts about its tailnet.
    pub fn parse_in(source: &str, context: &Context) -> Result<Self, Vec<Diagnostic>> {
        crate::file::read(source, context)
    }

    /// Parses a policy file that may not be UTF-8.
    pub fn parse_bytes(source: &[u8], context: &Context) -> Result<Self, Vec<Diagnostic>> {
        match std::str::from_utf8(source) {
            Ok(source) => Self::parse_in(source, context),
            Err(error) => Err(vec![Diagnostic::not_utf8(source, error)]),
        }
    }

    /// The policy of a tailnet without a file: every node may reach every node.
    #[must_use]
    pub fn allow_all() -> Self {
        Self {
            open: true,
            ..Self::default()
        }
    }

    /// Whether everything is allowed because the file has no rules section.
    #[must_use]
    pub fn is_allow_all(&self) -> bool {
        self.open
    }

    /// Whether the tag is defined in `tagOwners`.
    #[must_use]
    pub fn knows_tag(&self, tag: &str) -> bool {
        self.tag_owners.contains_key(tag)
    }

    /// Whether every node uses a random UDP port.
    #[must_use]
    pub fn randomize_client_port(&self) -> bool {
        self.randomize_client_port
    }

    /// Whether the policy defines SSH logins or attributes of single nodes.
    #[must_use]
    pub fn has_node_rules(&self) -> bool {
        !self.ssh.is_empty() || !self.node_attributes.is_empty()
    }

    /// Whether there are rules for logins over SSH.
    #[must_use]
    pub fn has_ssh_rules(&self) -> bool {
        !self.ssh.is_empty()
    }

    /// Whether any rule requires a posture.
    #[must_use]
    pub fn requires_postures(&self) -> bool {
        let rules = self.rules.iter().map(|rule| &rule.postures);
        let ssh = self.ssh.iter().map(|rule| &rule.postures);
        rules.chain(ssh).any(|postures| !postures.is_empty())
    }

    /// The changes of the policy to the relays.
    #[must_use]
    pub fn relay_regions(&self) -> &RelayRegions {
        &self.relay_regions
    }

    /// Whether a host with these attributes has one of the postures. True if
    /// the list is empty.
    pub(crate) fn has_posture(&self, postures: &[String], attributes: &Attributes) -> bool {
        postures.is_empty()
            || postures.iter().any(|posture| {
                self.postures
                    .get(posture)
                    .is_some_and(|all| all.iter().all(|one| one.holds(attributes)))
            })
    }

    /// Whether `user` may give a node the tag: listed in `tagOwners`, directly,
    /// by group, or through a tag that owns it. Cycles add no owner. Owners and
    /// admins of the tailnet and of its network may use every defined tag.
    #[must_use]
    pub fn may_use_tag(&self, users: &[PolicyUser], user: UserId, tag: &str) -> bool {
        let Some(user) = users.iter().find(|candidate| candidate.id == user) else {
            return false;
        };
        if user.role.may_use_any_tag() && self.knows_tag(tag) {
            return true;
        }
        let mut seen = BTreeSet::new();
        let mut open = vec![tag];
        while let Some(tag) = open.pop() {
            if !seen.insert(tag) {
                continue;
            }
            for owner in self.tag_owners.get(tag).into_iter().flatten() {
                match owner {
                    Selector::Tag(owner) => open.push(owner),
                    owner if self.selects_user(owner, user) => return true,
                    _ => {}
                }
            }
        }
        false
    }

    /// Whether a node that carries `held` may take on `tag`: because it is the
    /// same tag, or owns it.
    #[must_use]
    pub fn tag_owns(&self, held: &str, tag: &str) -> bool {
        let mut seen = BTreeSet::new();
        let mut open = vec![tag];
        while let Some(tag) = open.pop() {
            if tag == held {
                return true;
            }
            if seen.insert(tag) {
                let owners = self.tag_owners.get(tag).into_iter().flatten();
                open.extend(owners.filter_map(|owner| match owner {
                    Selector::Tag(owner) => Some(owner.as_str()),
                    _ => None,
                }));
            }
        }
        false
    }

    /// Whether `route`, which `node` advertises, is approved automatically. A
    /// default route is approved by `exitNode` only, another one by a key of
    /// `routes` that contains it.
    #[must_use]
    pub fn approves_route(&self, users: &[PolicyUser], node: &PolicyNode, route: IpNet) -> bool {
        let is_approver = |list: &[Selector]| {
            list.iter()
                .any(|selector| self.selects_node(selector, users, node))
        };
        if route.prefix_len() == 0 {
            return is_approver(&self.exit_approvers);
        }
        self.route_approvers
            .iter()
            .filter(|(key, _)| key.contains(&route))
            .any(|(_, list)| is_approver(list))
    }

    /// Whether the policy approves `node` as a host of a service automatically:
    /// it is an approver of the service's name or of one of its tags.
    #[must_use]
    pub fn approves_service(
        &self,
        users: &[PolicyUser],
        node: &PolicyNode,
        service: &str,
        service_tags: &[String],
    ) -> bool {
        std::iter::once(service)
            .chain(service_tags.iter().map(String::as_str))
            .filter_map(|name| self.service_approvers.get(name))
            .flatten()
            .any(|selector| self.selects_node(selector, users, node))
    }

    /// Whether an identity selector matches `user`.
    pub(crate) fn selects_user(&self, selector: &Selector, user: &PolicyUser) -> bool {
        match selector {
            Selector::User(login) => user.is_named(login),
            Selector::Group(group) => self
                .groups
                .get(group)
                .is_some_and(|logins| logins.iter().any(|login| user.is_named(login))),
            Selector::Domain(domain) => user.local_part(domain).is_some(),
            Selector::Role(role) => user.role.is(*role),
            Selector::Member | Selector::Any => true,
            Selector::Net(_)
            | Selector::Tag(_)
            | Selector::Tagged
            | Selector::OwnUser
            | Selector::Internet
            | Selector::DangerAll
            | Selector::Shared
            | Selector::Set(_)
            | Selector::Service(_) => false,
        }
    }

    /// Whether a selector matches `node` by identity, not by its addresses. A
    /// tagged node matches by its tags only. Fast if the users ascend by id:
    /// this runs for every node.
    pub(crate) fn selects_node(
        &self,
        selector: &Selector,
        users: &[PolicyUser],
        node: &PolicyNode,
    ) -> bool {
        match selector {
            Selector::Any => true,
            Selector::Tag(tag) => node.tags.contains(tag),
            Selector::Tagged => node.is_tagged(),
            Selector::Member => !node.is_tagged() && node.user.is_some(),
            Selector::User(_) | Selector::Group(_) | Selector::Domain(_) | Selector::Role(_) => {
                let owner = node.user.filter(|_| !node.is_tagged());
                owner
                    .and_then(|owner| find_user(users, owner))
                    .is_some_and(|user| self.selects_user(selector, user))
            }
            Selector::Net(_)
            | Selector::OwnUser
            | Selector::Internet
            | Selector::DangerAll
            | Selector::Shared
            | Selector::Set(_)
            | Selector::Service(_) => false,
        }
    }
}

/// The user with this id: by binary search if users ascend by id, otherwise by
/// linear search.
fn find_user(users: &[PolicyUser], id: UserId) -> Option<&PolicyUser> {
    match users.binary_search_by_key(&id, |user| user.id) {
        Ok(index) => users.get(index),
        Err(_) => users.iter().find(|user| user.id == id),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::Role;

    #[test]
    fn a_user_is_found_in_any_order() {
        let user = |id| PolicyUser {
            id: UserId(id),
            login: format!("u{id}@"),
            aliases: Vec::new(),
            role: Role::default(),
        };
        for order in [[1, 2, 3, 5, 8], [8, 5, 3, 2, 1], [5, 1, 8, 2, 3]] {
            let users = order.map(user);
            for id in 0..10 {
                let found = find_user(&users, UserId(id)).map(|user| user.id.0);
                assert_eq!(found, order.contains(&id).then_some(id), "{order:?}");
            }
        }
        assert_eq!(find_user(&[], UserId(1)), None);
    }
}

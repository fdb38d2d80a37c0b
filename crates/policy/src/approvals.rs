//! Tags that users may assign, and automatic approvals of routes and services.

use std::collections::BTreeSet;

use ipnet::IpNet;
use warren_control_types::UserId;

use crate::model::Policy;
use crate::node::{PolicyNode, PolicyUser};
use crate::selector::Selector;

impl Policy {
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
}

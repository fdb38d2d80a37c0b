//! Whether selectors and postures match users and nodes.

use ipnet::IpNet;
use warren_control_types::UserId;

use crate::model::Policy;
use crate::node::{PolicyNode, PolicyUser};
use crate::posture::Attributes;
use crate::selector::Selector;
use crate::span::Span;

impl Policy {
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

    /// Whether a selector matches `node` by identity or by one of its
    /// addresses.
    pub(crate) fn targets_node(
        &self,
        selector: &Selector,
        users: &[PolicyUser],
        node: &PolicyNode,
    ) -> bool {
        match selector {
            Selector::Net(net) => node
                .addresses
                .iter()
                .any(|address| net.contains(&IpNet::from(*address))),
            Selector::Set(set) => node.addresses.iter().any(|address| {
                let at = Span::from(*address);
                set.spans.iter().any(|span| span.contains(&at))
            }),
            identity => self.selects_node(identity, users, node),
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
            groups: Vec::new(),
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

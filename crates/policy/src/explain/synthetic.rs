//! Users and machines for a comparison without a server: two machines for each
//! login, one for each tag, and one more user that no rule names.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use warren_control_types::{NodeId, UserId};

use crate::model::Policy;
use crate::node::{PROVIDER_GROUP, PolicyNode, PolicyUser, Role};
use crate::posture::Attributes;
use crate::selector::Selector;

/// A tailnet that is derived from policies.
#[derive(Debug, Clone)]
pub struct SyntheticTailnet {
    /// All users that the policies name, and one more.
    pub users: Vec<PolicyUser>,
    /// Two machines for each user, and one for each tag.
    pub nodes: Vec<PolicyNode>,
    /// The names of the machines: their login or tag.
    pub names: BTreeMap<NodeId, String>,
}

impl SyntheticTailnet {
    /// Derives users and nodes from the names in the policies.
    #[must_use]
    pub fn from_policies(policies: &[&Policy]) -> Self {
        let mut logins: BTreeSet<String> = BTreeSet::new();
        let mut tags: BTreeSet<String> = BTreeSet::new();
        for policy in policies {
            logins.extend(policy.groups.values().flatten().cloned());
            tags.extend(policy.tag_owners.keys().cloned());
            let rules = policy.rules.iter().flat_map(|rule| {
                let to = rule.reach.iter().flat_map(|reach| &reach.to);
                rule.sources.iter().chain(to).chain(&rule.app_to)
            });
            let ssh = policy
                .ssh
                .iter()
                .flat_map(|rule| rule.sources.iter().chain(&rule.to));
            for selector in rules.chain(ssh) {
                match selector {
                    Selector::User(login) => {
                        logins.insert(login.clone());
                    }
                    Selector::Domain(domain) => {
                        logins.insert(format!("user@{domain}"));
                    }
                    _ => {}
                }
            }
        }
        let mut out = Self {
            users: Vec::new(),
            nodes: Vec::new(),
            names: BTreeMap::new(),
        };
        let other = "other users".to_owned();
        for login in logins.into_iter().chain([other]) {
            let id = UserId(
                i64::try_from(out.users.len())
                    .unwrap_or(i64::MAX)
                    .saturating_add(1),
            );
            // Two machines, so that rules about a user's own machines have an
            // effect.
            for name in [login.clone(), format!("{login} (another machine)")] {
                out.add(Some(id), Vec::new(), name);
            }
            let group = Some(login.clone()).filter(|login| login.starts_with(PROVIDER_GROUP));
            out.users.push(PolicyUser {
                id,
                login,
                aliases: Vec::new(),
                groups: group.into_iter().collect(),
                role: Role::default(),
            });
        }
        for tag in tags {
            out.add(None, vec![tag.clone()], tag);
        }
        out
    }

    fn add(&mut self, user: Option<UserId>, tags: Vec<String>, name: String) {
        let n = u32::try_from(self.nodes.len())
            .unwrap_or(u32::MAX)
            .saturating_add(1);
        let id = NodeId(i64::from(n));
        let v4 = Ipv4Addr::new(100, 64, 0, 0).to_bits().saturating_add(n);
        let v6 = Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, 0).to_bits() + u128::from(n);
        self.names.insert(id, name);
        self.nodes.push(PolicyNode {
            id,
            user,
            tags,
            addresses: vec![
                IpAddr::from(Ipv4Addr::from_bits(v4)),
                IpAddr::from(Ipv6Addr::from_bits(v6)),
            ],
            routes: Vec::new(),
            attributes: Attributes::default(),
        });
    }
}

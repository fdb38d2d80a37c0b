//! The facts about users and nodes on which a policy depends.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use warren_control_types::{NodeId, UserId};

use crate::posture::Attributes;

/// The administrative role of a user, as named by `autogroup:admin` and similar
/// autogroups.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// An ordinary member without administrative rights.
    #[default]
    Member,
    /// All rights, which other admins cannot revoke. An owner is an admin too.
    Owner,
    /// All rights.
    Admin,
    /// May change the policy file, routes, DNS and tags.
    NetworkAdmin,
    /// May manage users and devices.
    ItAdmin,
    /// May manage billing.
    BillingAdmin,
    /// May read everything and change nothing.
    Auditor,
}

impl Role {
    /// The roles that an autogroup can name, by the name behind `autogroup:`.
    pub(crate) const NAMED: [(&str, Self); 6] = [
        ("owner", Self::Owner),
        ("admin", Self::Admin),
        ("network-admin", Self::NetworkAdmin),
        ("it-admin", Self::ItAdmin),
        ("billing-admin", Self::BillingAdmin),
        ("auditor", Self::Auditor),
    ];

    /// All roles, each by its name: those of the autogroups, and `member`.
    pub fn all() -> impl Iterator<Item = (&'static str, Self)> {
        std::iter::once(("member", Self::Member)).chain(Self::NAMED)
    }

    /// Whether the autogroup of role `named` includes a user of this role.
    #[must_use]
    pub fn is(self, named: Self) -> bool {
        self == named || (self == Self::Owner && named == Self::Admin)
    }

    /// The capabilities by which a node learns its user's role.
    #[must_use]
    pub fn capabilities(self) -> &'static [&'static str] {
        const ADMIN: &str = "https://tailscale.com/cap/is-admin";
        const OWNER: &str = "https://tailscale.com/cap/is-owner";
        match self {
            Self::Owner => &[ADMIN, OWNER],
            Self::Admin => &[ADMIN],
            _ => &[],
        }
    }

    /// Whether a user of this role may give a node any tag.
    #[must_use]
    pub fn may_use_any_tag(self) -> bool {
        matches!(self, Self::Owner | Self::Admin | Self::NetworkAdmin)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::all().find(|(_, role)| role == self);
        f.pad(name.map_or("member", |(name, _)| name))
    }
}

/// The error for a text that is not the name of a role.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{0}\" is not a valid role; roles are member, owner, admin, network-admin, it-admin, billing-admin and auditor"
)]
pub struct UnknownRole(pub String);

impl FromStr for Role {
    type Err = UnknownRole;

    fn from_str(text: &str) -> Result<Self, UnknownRole> {
        let mut all = Self::all();
        all.find(|(name, _)| *name == text)
            .map(|(_, role)| role)
            .ok_or_else(|| UnknownRole(text.to_owned()))
    }
}

/// The beginning of the name of a group at an identity provider:
/// `oidc:PROVIDER/GROUP`.
pub(crate) const PROVIDER_GROUP: &str = "oidc:";

/// Whether the text is `oidc:`, the name of a provider, `/`, and a group.
pub(crate) fn is_provider_group(text: &str) -> bool {
    text.strip_prefix(PROVIDER_GROUP)
        .and_then(|rest| rest.split_once('/'))
        .is_some_and(|(provider, group)| !provider.is_empty() && !group.is_empty())
}

/// A user of the tailnet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyUser {
    /// The user.
    pub id: UserId,
    /// The login name, `name@domain` or, for users known to this server only,
    /// a bare `name`; a policy names the latter `name@`.
    pub login: String,
    /// Other names that a policy may use for the user, such as the e-mail
    /// address when the login is something else.
    pub aliases: Vec<String>,
    /// The groups in which identity providers list the user, each as
    /// `oidc:PROVIDER/GROUP`. A policy names them as members of its groups.
    pub groups: Vec<String>,
    /// The role of the user.
    pub role: Role,
}

/// A node of the tailnet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyNode {
    /// The node.
    pub id: NodeId,
    /// Its owner; ignored when the node is tagged: a tagged node has no user.
    pub user: Option<UserId>,
    /// Its tags, with the prefix `tag:`.
    pub tags: Vec<String>,
    /// Its addresses of both families.
    pub addresses: Vec<IpAddr>,
    /// Routes that were approved for it, exit routes (`0.0.0.0/0`, `::/0`)
    /// included.
    pub routes: Vec<IpNet>,
    /// The known attributes of the host, for postures.
    pub attributes: Attributes,
}

impl PolicyNode {
    /// Whether the node carries tags and so belongs to no user.
    #[must_use]
    pub fn is_tagged(&self) -> bool {
        !self.tags.is_empty()
    }

    /// The approved routes that are not exit routes.
    pub fn subnet_routes(&self) -> impl Iterator<Item = &IpNet> {
        self.routes.iter().filter(|route| route.prefix_len() != 0)
    }

    /// The approved exit routes.
    pub fn exit_routes(&self) -> impl Iterator<Item = &IpNet> {
        self.routes.iter().filter(|route| route.prefix_len() == 0)
    }

    /// Whether `address` is one of the node's own.
    #[must_use]
    pub fn has_address(&self, address: IpAddr) -> bool {
        self.addresses.contains(&address)
    }
}

impl PolicyUser {
    /// Whether `login` in a policy names this user, or a group of an identity
    /// provider that lists it. `name@` is the local user `name` of this server.
    pub(crate) fn is_named(&self, login: &str) -> bool {
        if login.starts_with(PROVIDER_GROUP) {
            return self.groups.iter().any(|group| group == login);
        }
        let plain = login.strip_suffix('@').unwrap_or(login);
        let names = || std::iter::once(&self.login).chain(&self.aliases);
        names().any(|name| name == login || name == plain)
    }

    /// The part before the `@` of the login (or another name) in `domain`. The
    /// letter case of the domain is ignored.
    pub(crate) fn local_part(&self, domain: &str) -> Option<&str> {
        std::iter::once(&self.login)
            .chain(&self.aliases)
            .filter_map(|name| name.rsplit_once('@'))
            .find(|(local, of)| !local.is_empty() && of.eq_ignore_ascii_case(domain))
            .map(|(local, _)| local)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn roles_are_read_as_they_are_written() {
        for (name, role) in Role::all() {
            assert_eq!(role.to_string(), name);
            assert_eq!(name.parse::<Role>().unwrap(), role);
        }
        assert_eq!(Role::all().count(), 7);
        let error = "king".parse::<Role>().unwrap_err().to_string();
        for (name, _) in Role::all() {
            assert!(error.contains(name), "{error}");
        }
    }
}

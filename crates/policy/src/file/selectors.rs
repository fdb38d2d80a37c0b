//! Reads selectors: the users, nodes and addresses that a rule names.

use super::{Reader, Text};
use crate::node::{PROVIDER_GROUP, Role};
use crate::selector::{Selector, is_service_name, parse_net};

/// Whether the text has the form of a login domain, such as `example.com` or
/// `github`.
fn is_domain(text: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_');
    let mut labels = text.split('.');
    labels.all(|label| !label.is_empty() && label.chars().all(is_part))
}

/// Autogroups other than those of roles.
const AUTOGROUPS: [&str; 6] = [
    "member",
    "tagged",
    "self",
    "internet",
    "danger-all",
    "shared",
];

impl Reader<'_> {
    /// Reads a selector of any kind. `side` goes in front of messages (`src=`);
    /// errors are recorded.
    pub(super) fn selector(&mut self, text: &Text<'_>, side: &str) -> Option<Selector> {
        let name = text.text;
        if let Some(net) = parse_net(name) {
            return Some(Selector::Net(net));
        }
        if name == "*" {
            return Some(Selector::Any);
        }
        if let Some(domain) = name.strip_prefix("user:*@") {
            self.own_domain(text, domain);
            return Some(Selector::Domain(domain.to_owned()));
        }
        if name.starts_with("group:") {
            if self.policy.groups.contains_key(name) {
                return Some(Selector::Group(name.to_owned()));
            }
            let help = self
                .suggest(name, self.policy.groups.keys().map(String::as_str))
                .or_else(|| Some(format!("define {name:?} in \"groups\"")));
            self.problem_with(&text.span, format!("{side}group not found: {name:?}"), help);
            return None;
        }
        if name.starts_with(PROVIDER_GROUP) {
            let message = format!("{side}{name:?} is a group of an identity provider");
            let help = "make it a member of a group in \"groups\", and name that one here";
            self.problem_with(&text.span, message, Some(help.to_owned()));
            return None;
        }
        if name.starts_with("tag:") {
            return self.tag(text, side).map(Selector::Tag);
        }
        if let Some(autogroup) = name.strip_prefix("autogroup:") {
            return self.autogroup(text, autogroup);
        }
        if name.starts_with("ipset:") {
            if let Some(set) = self.ipsets.get(name) {
                return Some(Selector::Set(set.clone()));
            }
            let help = self.suggest(name, self.ipsets.keys().map(String::as_str));
            let help = help.or_else(|| Some(format!("define {name:?} in \"ipsets\"")));
            self.problem_with(&text.span, format!("{side}ipset not found: {name:?}"), help);
            return None;
        }
        if name.starts_with("svc:") {
            if is_service_name(name) {
                return Some(Selector::Service(name.to_owned()));
            }
            let help = "expected svc: and letters, digits and dashes".to_owned();
            self.problem_with(
                &text.span,
                format!("{side}{name:?} is not a valid service name"),
                Some(help),
            );
            return None;
        }
        if name.contains('@') {
            return Some(Selector::User(name.to_owned()));
        }
        if let Some(net) = self.hosts.get(name) {
            return Some(Selector::Net(*net));
        }
        let help = self.suggest(name, self.hosts.keys().map(String::as_str)).or_else(|| {
            Some(
                "expected *, an address, a host of \"hosts\", a login, group:, tag:, autogroup:, ipset: or svc:"
                    .to_owned(),
            )
        });
        let message = if name.contains(':') {
            format!("{side}{name:?} is not valid")
        } else {
            format!("{side}host not found: {name:?}")
        };
        self.problem_with(&text.span, message, help);
        None
    }

    /// A tag that must be a key of `tagOwners`.
    pub(super) fn tag(&mut self, text: &Text<'_>, side: &str) -> Option<String> {
        let name = text.text;
        if self.policy.tag_owners.contains_key(name) {
            return Some(name.to_owned());
        }
        let help = self
            .suggest(name, self.policy.tag_owners.keys().map(String::as_str))
            .or_else(|| Some(format!("define {name:?} in \"tagOwners\"")));
        self.problem_with(&text.span, format!("{side}tag not found: {name:?}"), help);
        None
    }

    /// Reports an error if the domain does not belong to the tailnet. The text is
    /// the one of the hosted service for all expressions with a domain.
    pub(super) fn own_domain(&mut self, text: &Text<'_>, domain: &str) {
        let known = self.context.domains.as_ref();
        let is_own = match known {
            Some(domains) => domains.iter().any(|own| own.eq_ignore_ascii_case(domain)),
            None => is_domain(domain),
        };
        if is_own {
            return;
        }
        let domains = known.into_iter().flatten();
        let help = self
            .suggest(domain, domains.clone().map(String::as_str))
            .or_else(|| match domains.take(10).cloned().collect::<Vec<_>>() {
                own if own.is_empty() => {
                    Some("expected the domain of users' login names".to_owned())
                }
                own => Some(format!("the login domains here are: {}", own.join(", "))),
            });
        let message = format!(
            "{domain} is not associated with this Tailnet and cannot be used in user:*@{domain} expressions"
        );
        self.problem_with(&text.span, message, help);
    }

    fn autogroup(&mut self, text: &Text<'_>, name: &str) -> Option<Selector> {
        if let Some((_, role)) = Role::NAMED.into_iter().find(|(role, _)| *role == name) {
            return Some(Selector::Role(role));
        }
        Some(match name {
            "member" | "members" => {
                self.one_member_name(text);
                Selector::Member
            }
            "tagged" => Selector::Tagged,
            "self" => Selector::OwnUser,
            "internet" => Selector::Internet,
            "danger-all" => Selector::DangerAll,
            "shared" => Selector::Shared,
            "nonroot" => {
                let message = format!("{:?} is only for the users of an ssh rule", text.text);
                self.problem(&text.span, message);
                return None;
            }
            other => {
                let roles = Role::NAMED.into_iter().map(|(name, _)| name);
                let help = self.suggest(other, AUTOGROUPS.into_iter().chain(roles));
                let message = format!("unknown autogroup: {:?}", text.text);
                self.problem_with(&text.span, message, help);
                return None;
            }
        })
    }

    /// `autogroup:members` is the old name of `autogroup:member`; a file uses
    /// one of the two.
    fn one_member_name(&mut self, text: &Text<'_>) {
        match &self.member_name {
            None => self.member_name = Some(text.text.to_owned()),
            Some(first) if first == text.text => {}
            Some(first) => {
                let message = format!("{:?} and {first:?} are both used in this file", text.text);
                let help = "they mean the same; write autogroup:member everywhere".to_owned();
                self.problem_with(&text.span, message, Some(help));
            }
        }
    }
}

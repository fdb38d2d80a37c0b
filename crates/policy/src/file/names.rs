//! Reads the sections that define names (hosts, groups, tags with their
//! owners), and `autoApprovers`.

use super::{Reader, Text, is_empty};
use crate::json::Spanned;
use crate::node::{PROVIDER_GROUP, is_provider_group};
use crate::selector::{Selector, is_service_name, parse_net};

impl Reader<'_> {
    pub(super) fn hosts(&mut self, value: &Spanned) {
        for member in self.members(value, "hosts") {
            let name = member.name.trim();
            if name.is_empty() || name.contains(['@', ':']) {
                let message = format!("host name {name:?} must not be empty or contain @ or :");
                self.problem(&member.name_span, message);
                continue;
            }
            let Some(text) = self.text(&member.value) else {
                continue;
            };
            match parse_net(text.text) {
                Some(net) => {
                    self.hosts.insert(name.to_owned(), net);
                }
                None => {
                    let message = format!(
                        "hosts[{name:?}]: {:?} is not a valid address or prefix",
                        text.text
                    );
                    self.problem(&text.span, message);
                }
            }
        }
    }

    pub(super) fn groups(&mut self, value: &Spanned) {
        for member in self.members(value, "groups") {
            let name = member.name.trim();
            if !name.starts_with("group:") {
                let message = format!("group name {name:?} must start with \"group:\"");
                self.problem(&member.name_span, message);
                continue;
            }
            let mut logins = Vec::new();
            for text in self.texts(Some(&member.value).filter(|v| !v.is_null()), name) {
                let login = text.text;
                if login.starts_with("group:") {
                    let message =
                        format!("groups[{name:?}]: {login:?}: group members cannot be recursive");
                    self.problem(&text.span, message);
                } else if login.starts_with(PROVIDER_GROUP) {
                    if is_provider_group(login) {
                        logins.push(login.to_owned());
                    } else {
                        let message = format!(
                            "groups[{name:?}]: {login:?} is not a group of an identity provider"
                        );
                        let help = "write oidc:PROVIDER/GROUP, with the name of the provider in the server's configuration";
                        self.problem_with(&text.span, message, Some(help.to_owned()));
                    }
                } else if login.starts_with("tag:")
                    || login.starts_with("autogroup:")
                    || !login.contains('@')
                {
                    let message = format!("groups[{name:?}]: {login:?} is not a login name");
                    let help = "members are login names such as alice@example.com".to_owned();
                    self.problem_with(&text.span, message, Some(help));
                } else {
                    logins.push(login.to_owned());
                }
            }
            self.policy.groups.insert(name.to_owned(), logins);
        }
    }

    pub(super) fn tag_owners(&mut self, value: &Spanned) {
        let members = self.members(value, "tagOwners");
        // All tags are defined before their owners are read, because tags may
        // own tags.
        for member in &members {
            let name = member.name.trim();
            let first = name.strip_prefix("tag:").map(|rest| rest.chars().next());
            let rest_fits = name
                .chars()
                .skip(4)
                .all(|c| c.is_ascii_alphanumeric() || c == '-');
            let message = match first {
                None => format!("tagOwners[{name:?}]: tag names must start with \"tag:\""),
                Some(first) if !first.is_some_and(|c| c.is_ascii_alphabetic()) => {
                    format!("tagOwners[{name:?}]: tag names must start with a letter, after 'tag:'")
                }
                Some(_) if !rest_fits => format!(
                    "tagOwners[{name:?}]: tag names can only contain letters, digits and dashes"
                ),
                Some(_) => {
                    self.policy.tag_owners.insert(name.to_owned(), Vec::new());
                    continue;
                }
            };
            self.problem(&member.name_span, message);
        }
        for member in members {
            let name = member.name.trim();
            let owners = self.identities(&member.value, &format!("tagOwners[{name:?}]"));
            if let Some(list) = self.policy.tag_owners.get_mut(name) {
                *list = owners;
            }
        }
    }

    pub(super) fn auto_approvers(&mut self, value: &Spanned) {
        let known = ["routes", "exitNode", "services"];
        let Some(fields) = self.fields(value, "autoApprovers", &known) else {
            return;
        };
        if let Some(routes) = fields.get("routes") {
            for member in self.members(routes, "autoApprovers.routes") {
                let approvers = self.identities(&member.value, "autoApprovers.routes");
                match parse_net(member.name.trim()) {
                    Some(net) => self.policy.route_approvers.push((net, approvers)),
                    None => {
                        let message = format!("{:?} is not a valid prefix", member.name);
                        self.problem(&member.name_span, message);
                    }
                }
            }
        }
        if let Some(list) = fields.get("exitNode") {
            self.policy.exit_approvers = self.identities(list, "autoApprovers.exitNode");
        }
        let services = fields.get("services").filter(|value| !is_empty(value));
        if let Some(services) = services {
            for member in self.members(services, "autoApprovers.services") {
                let name = member.name.trim();
                let approvers = self.identities(&member.value, "autoApprovers.services");
                if name.starts_with("tag:") {
                    let text = Text {
                        text: name,
                        span: member.name_span.clone(),
                    };
                    self.tag(&text, "");
                } else if !is_service_name(name) {
                    let message = format!("{name:?} is not a valid service name");
                    let help = "expected svc:name, or the tag of services".to_owned();
                    self.problem_with(&member.name_span, message, Some(help));
                }
                let services = &mut self.policy.service_approvers;
                services.insert(name.to_owned(), approvers);
            }
        }
    }

    /// Reads a list of owners or approvers: users, groups, tags, member,
    /// tagged.
    fn identities(&mut self, value: &Spanned, what: &str) -> Vec<Selector> {
        let mut out = Vec::new();
        for text in self.texts(Some(value).filter(|value| !value.is_null()), what) {
            match self.selector(&text, "") {
                Some(
                    selector @ (Selector::User(_)
                    | Selector::Group(_)
                    | Selector::Tag(_)
                    | Selector::Member
                    | Selector::Tagged
                    | Selector::Role(_)),
                ) => out.push(selector),
                Some(_) => {
                    let message = format!("{what}: {:?} cannot be used here", text.text);
                    let help = "expected users, groups, tags or autogroups of these".to_owned();
                    self.problem_with(&text.span, message, Some(help));
                }
                None => {}
            }
        }
        out
    }
}

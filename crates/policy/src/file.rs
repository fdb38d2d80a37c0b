//! Reading a policy file: sections, fields and selectors, every error with its
//! place.
//!
//! Reading goes on after an error, so that all of them are reported; only text
//! that is no HuJSON ends it at once.

mod entries;
mod rules;

use std::collections::BTreeMap;
use std::ops::Range;

use crate::diagnostic::{Diagnostic, did_you_mean};
use crate::json::{self, Member, Spanned, Value};
use crate::policy::Policy;
use crate::selector::{Selector, parse_net};

/// Sections this version reads.
const SECTIONS: [&str; 8] = [
    "acls",
    "grants",
    "groups",
    "hosts",
    "tagOwners",
    "autoApprovers",
    "tests",
    "randomizeClientPort",
];

/// Sections of the language that this version does not enforce. Taking a file
/// and ignoring them would promise what is not done.
const LATER_SECTIONS: [&str; 10] = [
    "ssh",
    "sshTests",
    "nodeAttrs",
    "postures",
    "defaultSrcPosture",
    "ipsets",
    "derpMap",
    "disableIPv4",
    "OneCGNATRoute",
    "attrConfig",
];

pub(crate) fn read(source: &str) -> Result<Policy, Vec<Diagnostic>> {
    let tree = json::parse(source).map_err(|error| vec![error])?;
    let Some(tree) = tree else {
        return Ok(Policy::allow_all());
    };
    let mut reader = Reader {
        source,
        problems: Vec::new(),
        hosts: BTreeMap::new(),
        policy: Policy::default(),
    };
    reader.file(&tree);
    if reader.problems.is_empty() {
        Ok(reader.policy)
    } else {
        reader.problems.sort_by_key(|problem| problem.span.start);
        Err(reader.problems)
    }
}

/// What is known while a file is read.
struct Reader<'s> {
    source: &'s str,
    problems: Vec<Diagnostic>,
    hosts: BTreeMap<String, ipnet::IpNet>,
    policy: Policy,
}

/// The fields of an object by their name in lower case.
struct Fields<'t>(BTreeMap<String, &'t Spanned>);

impl<'t> Fields<'t> {
    /// The value of a field; `null` equals absence.
    fn get(&self, name: &str) -> Option<&'t Spanned> {
        self.0
            .get(&name.to_ascii_lowercase())
            .copied()
            .filter(|value| !value.is_null())
    }
}

/// A string of the file, trimmed, with its place.
#[derive(Clone)]
struct Text<'t> {
    text: &'t str,
    span: Range<usize>,
}

impl<'s> Reader<'s> {
    fn problem(&mut self, span: &Range<usize>, message: impl Into<String>) {
        self.problem_with(span, message, None);
    }

    fn problem_with(
        &mut self,
        span: &Range<usize>,
        message: impl Into<String>,
        help: Option<String>,
    ) {
        let found = Diagnostic::new(self.source, span.clone(), message, help);
        self.problems.push(found);
    }

    fn file(&mut self, tree: &Spanned) {
        let known: Vec<&str> = SECTIONS.iter().chain(&LATER_SECTIONS).copied().collect();
        let Some(fields) = self.fields(tree, "the policy", &known) else {
            return;
        };
        for name in LATER_SECTIONS {
            let Some(value) = fields.get(name) else {
                continue;
            };
            if !is_empty(value) {
                self.problem_with(
                    &value.span,
                    format!("section {name:?} is not supported by this version"),
                    Some("remove it; what it asks for would not be enforced".to_owned()),
                );
            }
        }
        // Names first: rules refer to them.
        if let Some(value) = fields.get("hosts") {
            self.hosts(value);
        }
        if let Some(value) = fields.get("groups") {
            self.groups(value);
        }
        if let Some(value) = fields.get("tagOwners") {
            self.tag_owners(value);
        }
        if let Some(value) = fields.get("autoApprovers") {
            self.auto_approvers(value);
        }
        let (grants, acls) = (fields.get("grants"), fields.get("acls"));
        self.policy.open = grants.is_none() && acls.is_none();
        for rule in self.items(grants, "grants") {
            self.grant(rule);
        }
        for rule in self.items(acls, "acls") {
            self.acl(rule);
        }
        for test in self.items(fields.get("tests"), "tests") {
            self.test(test);
        }
        if let Some(value) = fields.get("randomizeClientPort") {
            match value.value {
                Value::Bool(on) => self.policy.randomize_client_port = on,
                _ => self.expected(value, "true or false"),
            }
        }
    }

    /// Says that another kind of value belongs there.
    fn expected(&mut self, value: &Spanned, what: &str) {
        let message = format!("expected {what}, found {}", value.kind());
        self.problem(&value.span, message);
    }

    /// The members of an object with free names (groups, hosts), without
    /// duplicates.
    fn members<'t>(&mut self, value: &'t Spanned, what: &str) -> Vec<&'t Member> {
        let Value::Object(members) = &value.value else {
            self.expected(value, &format!("an object for {what}"));
            return Vec::new();
        };
        let mut first: BTreeMap<&str, ()> = BTreeMap::new();
        let mut out = Vec::new();
        for member in members {
            if first.insert(&member.name, ()).is_some() {
                let message = format!("{:?} is there twice in {what}", member.name);
                self.problem(&member.name_span, message);
            } else {
                out.push(member);
            }
        }
        out
    }

    /// The fields of an object with fixed names. Letter case does not count;
    /// unknown names and duplicates are errors.
    fn fields<'t>(&mut self, value: &'t Spanned, what: &str, known: &[&str]) -> Option<Fields<'t>> {
        let Value::Object(members) = &value.value else {
            self.expected(value, &format!("an object for {what}"));
            return None;
        };
        let mut out = BTreeMap::new();
        for member in members {
            let lower = member.name.to_ascii_lowercase();
            if !known.iter().any(|name| name.eq_ignore_ascii_case(&lower)) {
                let help = did_you_mean(&member.name, known.iter().copied());
                let message = format!("unknown field: {:?}", member.name);
                self.problem_with(&member.name_span, message, help);
            } else if out.insert(lower, &member.value).is_some() {
                let message = format!("field {:?} is there twice in {what}", member.name);
                self.problem(&member.name_span, message);
            }
        }
        Some(Fields(out))
    }

    /// The elements of an array; nothing for an absent one.
    fn items<'t>(&mut self, value: Option<&'t Spanned>, what: &str) -> &'t [Spanned] {
        let Some(value) = value else {
            return &[];
        };
        if let Value::Array(items) = &value.value {
            items
        } else {
            self.expected(value, &format!("an array for {what}"));
            &[]
        }
    }

    /// The strings of an array, trimmed.
    fn texts<'t>(&mut self, value: Option<&'t Spanned>, what: &str) -> Vec<Text<'t>> {
        let items = self.items(value, what);
        let mut out = Vec::with_capacity(items.len());
        for item in items {
            out.extend(self.text(item));
        }
        out
    }

    fn text<'t>(&mut self, value: &'t Spanned) -> Option<Text<'t>> {
        if let Value::String(text) = &value.value {
            Some(Text {
                text: text.trim(),
                span: value.span.clone(),
            })
        } else {
            self.expected(value, "a string");
            None
        }
    }

    fn hosts(&mut self, value: &Spanned) {
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
                    let message =
                        format!("hosts[{name:?}]: {:?} is no address or prefix", text.text);
                    self.problem(&text.span, message);
                }
            }
        }
    }

    fn groups(&mut self, value: &Spanned) {
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
                } else if login.starts_with("tag:")
                    || login.starts_with("autogroup:")
                    || !login.contains('@')
                {
                    let message = format!("groups[{name:?}]: {login:?} is no login name");
                    let help = "members are login names such as alice@example.com".to_owned();
                    self.problem_with(&text.span, message, Some(help));
                } else {
                    logins.push(login.to_owned());
                }
            }
            self.policy.groups.insert(name.to_owned(), logins);
        }
    }

    fn tag_owners(&mut self, value: &Spanned) {
        let members = self.members(value, "tagOwners");
        // All tags are known before their owners are looked at.
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

    fn auto_approvers(&mut self, value: &Spanned) {
        let known = ["routes", "exitNode", "services"];
        let Some(fields) = self.fields(value, "autoApprovers", &known) else {
            return;
        };
        if let Some(services) = fields.get("services").filter(|value| !is_empty(value)) {
            self.problem(
                &services.span,
                "autoApprovers.services is not supported by this version",
            );
        }
        if let Some(routes) = fields.get("routes") {
            for member in self.members(routes, "autoApprovers.routes") {
                let approvers = self.identities(&member.value, "autoApprovers.routes");
                match parse_net(member.name.trim()) {
                    Some(net) => self.policy.route_approvers.push((net, approvers)),
                    None => {
                        let message = format!("{:?} is no prefix", member.name);
                        self.problem(&member.name_span, message);
                    }
                }
            }
        }
        if let Some(list) = fields.get("exitNode") {
            self.policy.exit_approvers = self.identities(list, "autoApprovers.exitNode");
        }
    }

    /// A list of owners or approvers: users, groups, tags, member, tagged.
    fn identities(&mut self, value: &Spanned, what: &str) -> Vec<Selector> {
        let mut out = Vec::new();
        for text in self.texts(Some(value).filter(|value| !value.is_null()), what) {
            match self.selector(&text, "") {
                Some(
                    selector @ (Selector::User(_)
                    | Selector::Group(_)
                    | Selector::Tag(_)
                    | Selector::Member
                    | Selector::Tagged),
                ) => out.push(selector),
                Some(_) => {
                    let message = format!("{what}: {:?} cannot be used here", text.text);
                    let help = "expected users, groups or tags".to_owned();
                    self.problem_with(&text.span, message, Some(help));
                }
                None => {}
            }
        }
        out
    }

    /// Reads a selector of any kind. `side` goes in front of messages
    /// (`src=`); errors are noted.
    fn selector(&mut self, text: &Text<'_>, side: &str) -> Option<Selector> {
        let name = text.text;
        if let Some(net) = parse_net(name) {
            return Some(Selector::Net(net));
        }
        if name == "*" {
            return Some(Selector::Any);
        }
        if let Some(domain) = name.strip_prefix("user:*@") {
            return Some(Selector::Domain(domain.to_owned()));
        }
        if name.starts_with("group:") {
            if self.policy.groups.contains_key(name) {
                return Some(Selector::Group(name.to_owned()));
            }
            let help = did_you_mean(name, self.policy.groups.keys().map(String::as_str))
                .or_else(|| Some(format!("define {name:?} in \"groups\"")));
            self.problem_with(&text.span, format!("{side}group not found: {name:?}"), help);
            return None;
        }
        if name.starts_with("tag:") {
            return self.tag(text, side).map(Selector::Tag);
        }
        if let Some(autogroup) = name.strip_prefix("autogroup:") {
            return self.autogroup(text, autogroup);
        }
        if name.starts_with("ipset:") || name.starts_with("svc:") {
            self.problem(
                &text.span,
                format!("{name:?} is not supported by this version"),
            );
            return None;
        }
        if name.contains('@') {
            return Some(Selector::User(name.to_owned()));
        }
        if let Some(net) = self.hosts.get(name) {
            return Some(Selector::Net(*net));
        }
        let help = did_you_mean(name, self.hosts.keys().map(String::as_str)).or_else(|| {
            Some(
                "expected *, an address, a host of \"hosts\", a login, group:, tag: or autogroup:"
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
    fn tag(&mut self, text: &Text<'_>, side: &str) -> Option<String> {
        let name = text.text;
        if self.policy.tag_owners.contains_key(name) {
            return Some(name.to_owned());
        }
        let help = did_you_mean(name, self.policy.tag_owners.keys().map(String::as_str))
            .or_else(|| Some(format!("define {name:?} in \"tagOwners\"")));
        self.problem_with(&text.span, format!("{side}tag not found: {name:?}"), help);
        None
    }

    fn autogroup(&mut self, text: &Text<'_>, name: &str) -> Option<Selector> {
        const KNOWN: [&str; 5] = ["member", "tagged", "self", "internet", "danger-all"];
        const LATER: [&str; 8] = [
            "owner",
            "admin",
            "network-admin",
            "it-admin",
            "billing-admin",
            "auditor",
            "shared",
            "nonroot",
        ];
        Some(match name {
            "member" | "members" => Selector::Member,
            "tagged" => Selector::Tagged,
            "self" => Selector::OwnUser,
            "internet" => Selector::Internet,
            "danger-all" => Selector::DangerAll,
            other => {
                let (message, help) = if LATER.contains(&other) {
                    let message = format!("{:?} is not supported by this version", text.text);
                    (message, None)
                } else {
                    let message = format!("unknown autogroup: {:?}", text.text);
                    (message, did_you_mean(other, KNOWN))
                };
                self.problem_with(&text.span, message, help);
                return None;
            }
        })
    }
}

/// A value that asks for nothing.
fn is_empty(value: &Spanned) -> bool {
    match &value.value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(members) => members.is_empty(),
        Value::String(text) => text.is_empty(),
        Value::Bool(true) | Value::Number(_) => false,
    }
}

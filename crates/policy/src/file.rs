//! Reads a policy file: sections, fields and selectors, every error with its
//! position.
//!
//! Reading continues after an error, so that all errors are reported; only text
//! that is not HuJSON ends it at once. The time is linear in the length of the
//! file, errors included: the number of stored errors and of searched
//! suggestions is bounded.

mod assertions;
mod attributes;
mod ipsets;
mod names;
mod network;
mod postures;
mod rules;
mod selectors;
mod ssh;
mod ssh_tests;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use crate::diagnostic::{Diagnostic, Found, did_you_mean};
use crate::json::{self, Member, Spanned, Value};
use crate::model::Policy;
use crate::selector::IpSet;

/// The sections of the language.
const SECTIONS: [&str; 18] = [
    "acls",
    "grants",
    "groups",
    "hosts",
    "ipsets",
    "tagOwners",
    "autoApprovers",
    "ssh",
    "tests",
    "sshTests",
    "nodeAttrs",
    "postures",
    "defaultSrcPosture",
    "attrConfig",
    "derpMap",
    "disableIPv4",
    "OneCGNATRoute",
    "randomizeClientPort",
];

/// The number of errors that are stored; further ones are only counted.
const KEPT_ERRORS: usize = 500;

/// The number of errors for which a similar name is searched.
const SUGGESTIONS: usize = 100;

/// Facts about the tailnet that decide whether a file is valid.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Context {
    /// The login domains of the tailnet. `user:*@domain` and
    /// `localpart:*@domain` may name no others. `None`: they are not known, so
    /// that every name of a domain is valid.
    pub domains: Option<BTreeSet<String>>,
}

impl Policy {
    /// Parses a policy file. A file without a value is an error; one with
    /// neither `acls` nor `grants` allows everything (see
    /// [`Policy::allows_everything`]). All errors are returned at once, in the
    /// order of their positions (at most the first five hundred).
    pub fn parse(source: &str) -> Result<Self, Vec<Diagnostic>> {
        Self::parse_in(source, &Context::default())
    }

    /// Parses a policy file with facts about its tailnet.
    pub fn parse_in(source: &str, context: &Context) -> Result<Self, Vec<Diagnostic>> {
        read(source, context)
    }

    /// Parses a policy file that may not be UTF-8.
    pub fn parse_bytes(source: &[u8], context: &Context) -> Result<Self, Vec<Diagnostic>> {
        match std::str::from_utf8(source) {
            Ok(source) => Self::parse_in(source, context),
            Err(error) => Err(vec![Diagnostic::not_utf8(source, error)]),
        }
    }
}

fn read(source: &str, context: &Context) -> Result<Policy, Vec<Diagnostic>> {
    let tree = json::parse(source).map_err(|error| vec![error])?;
    let mut reader = Reader {
        context,
        problems: Vec::new(),
        more_problems: 0,
        hosts: BTreeMap::new(),
        ipsets: BTreeMap::new(),
        default_posture: Vec::new(),
        member_name: None,
        in_test: false,
        policy: Policy::default(),
    };
    reader.file(&tree);
    if reader.problems.is_empty() {
        return Ok(reader.policy);
    }
    let mut problems = reader.problems;
    problems.sort_by_key(|problem| problem.span.start);
    if reader.more_problems > 0 {
        let end = source.len();
        let message = format!("{} more errors are not shown", reader.more_problems);
        problems.push(Found::new(end..end, message, None));
    }
    Err(Diagnostic::locate(source, problems))
}

/// The state while a file is read.
struct Reader<'c> {
    context: &'c Context,
    problems: Vec<Found>,
    more_problems: usize,
    hosts: BTreeMap<String, ipnet::IpNet>,
    ipsets: BTreeMap<String, IpSet>,
    /// The postures of rules that name none.
    default_posture: Vec<String>,
    /// The spelling of `autogroup:member` that the file uses.
    member_name: Option<String>,
    /// Within `tests` and `sshTests`: a malformed test counts as failed, and
    /// its errors begin with that.
    in_test: bool,
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

impl Reader<'_> {
    fn problem(&mut self, span: &Range<usize>, message: impl Into<String>) {
        self.problem_with(span, message, None);
    }

    fn problem_with(
        &mut self,
        span: &Range<usize>,
        message: impl Into<String>,
        help: Option<String>,
    ) {
        if self.problems.len() < KEPT_ERRORS {
            let message = if self.in_test {
                format!("test(s) failed: {}", message.into())
            } else {
                message.into()
            };
            self.problems.push(Found::new(span.clone(), message, help));
        } else {
            self.more_problems += 1;
        }
    }

    /// "did you mean", as long as there are not too many errors to care.
    fn suggest<'a>(&self, name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
        if self.problems.len() >= SUGGESTIONS {
            return None;
        }
        did_you_mean(name, known)
    }

    fn file(&mut self, tree: &Spanned) {
        let Some(fields) = self.fields(tree, "the policy", &SECTIONS) else {
            return;
        };
        // Names are read first, because rules refer to them.
        if let Some(value) = fields.get("hosts") {
            self.hosts(value);
        }
        if let Some(value) = fields.get("ipsets") {
            self.ipsets(value);
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
        if let Some(value) = fields.get("postures") {
            self.postures(value);
        }
        self.default_posture = self.posture_names(fields.get("defaultSrcPosture"));
        let (grants, acls) = (fields.get("grants"), fields.get("acls"));
        self.policy.open = grants.is_none() && acls.is_none();
        for rule in self.items(grants, "grants") {
            self.grant(rule);
        }
        for rule in self.items(acls, "acls") {
            self.acl(rule);
        }
        for rule in self.items(fields.get("ssh"), "ssh") {
            self.ssh_rule(rule);
        }
        for entry in self.items(fields.get("nodeAttrs"), "nodeAttrs") {
            self.node_attribute(entry);
        }
        if let Some(value) = fields.get("attrConfig") {
            self.attribute_config(value);
        }
        self.in_test = true;
        for test in self.items(fields.get("tests"), "tests") {
            self.test(test);
        }
        for test in self.items(fields.get("sshTests"), "sshTests") {
            self.ssh_test(test);
        }
        self.in_test = false;
        self.network_options(&fields);
    }

    /// Reports that a value of another kind is expected.
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
        let mut seen: BTreeSet<&str> = BTreeSet::new();
        let mut out = Vec::new();
        for member in members {
            // Names are looked up trimmed, so the trimmed name must be unique.
            if seen.insert(member.name.trim()) {
                out.push(member);
            } else {
                let message = format!("{:?} appears twice in {what}", member.name);
                self.problem(&member.name_span, message);
            }
        }
        out
    }

    /// The fields of an object with fixed names. Letter case does not count;
    /// unknown names and duplicates are errors.
    fn fields<'t>(&mut self, value: &'t Spanned, what: &str, known: &[&str]) -> Option<Fields<'t>> {
        self.fields_but(value, what, known, |_| false)
    }

    /// The same, for objects in which members whose name begins with # are
    /// notes of an admin console.
    fn fields_and_notes<'t>(
        &mut self,
        value: &'t Spanned,
        what: &str,
        known: &[&str],
    ) -> Option<Fields<'t>> {
        self.fields_but(value, what, known, |name| name.starts_with('#'))
    }

    fn fields_but<'t>(
        &mut self,
        value: &'t Spanned,
        what: &str,
        known: &[&str],
        skipped: impl Fn(&str) -> bool,
    ) -> Option<Fields<'t>> {
        let Value::Object(members) = &value.value else {
            self.expected(value, &format!("an object for {what}"));
            return None;
        };
        let mut out = BTreeMap::new();
        for member in members.iter().filter(|member| !skipped(&member.name)) {
            let lower = member.name.to_ascii_lowercase();
            if !known.iter().any(|name| name.eq_ignore_ascii_case(&lower)) {
                let help = self
                    .suggest(&member.name, known.iter().copied())
                    .or_else(|| {
                        let known = known.join(", ");
                        Some(format!("{what} may have: {known}"))
                    });
                let message = format!("unknown field: {:?}", member.name);
                self.problem_with(&member.name_span, message, help);
            } else if out.insert(lower, &member.value).is_some() {
                let message = format!("field {:?} appears twice in {what}", member.name);
                self.problem(&member.name_span, message);
            }
        }
        Some(Fields(out))
    }

    /// The value of a field with an old name, of which only one may be there.
    fn renamed<'t>(&mut self, fields: &Fields<'t>, name: &str, old: &str) -> Option<&'t Spanned> {
        let (new_value, old_value) = (fields.get(name), fields.get(old));
        if let (Some(_), Some(value)) = (new_value, old_value) {
            let message = format!("{old:?} is the old name of {name:?}; only one may be there");
            self.problem(&value.span, message);
        }
        new_value.or(old_value)
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
        let mut text = self.literal(value)?;
        text.text = text.text.trim();
        Some(text)
    }

    /// A string as it is written, spaces included.
    fn literal<'t>(&mut self, value: &'t Spanned) -> Option<Text<'t>> {
        if let Value::String(text) = &value.value {
            Some(Text {
                text,
                span: value.span.clone(),
            })
        } else {
            self.expected(value, "a string");
            None
        }
    }

    /// A boolean field; absent is `false`.
    fn flag(&mut self, value: Option<&Spanned>) -> bool {
        match value.map(|value| (value, &value.value)) {
            None => false,
            Some((_, Value::Bool(on))) => *on,
            Some((value, _)) => {
                self.expected(value, "true or false");
                false
            }
        }
    }
}

/// Whether the value is empty and so requests nothing.
fn is_empty(value: &Spanned) -> bool {
    match &value.value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(members) => members.is_empty(),
        Value::String(text) => text.is_empty(),
        Value::Bool(true) | Value::Number(_) => false,
    }
}

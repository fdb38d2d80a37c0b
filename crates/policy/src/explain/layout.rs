//! The positions of rules and names in a policy file.
//!
//! The parsed policy has no positions; the layout has. Both come from the same
//! text, and rules are numbered alike: grants, then acls.

use std::ops::Range;

use crate::diagnostic::Diagnostic;
use crate::json::{self, Member, Spanned, Value};

/// A position in the policy file with the text there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceLocation {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// The first line of the text at this position.
    pub text: String,
}

/// The section of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Section {
    Grants,
    Acls,
}

/// A string of a list, trimmed, and its bytes with the quotes.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) text: String,
    pub(super) span: Range<usize>,
}

/// A list of strings and its bytes with the brackets.
#[derive(Debug, Clone, Default)]
pub(super) struct List {
    pub(super) span: Option<Range<usize>>,
    pub(super) entries: Vec<Entry>,
}

/// The positions of a rule and its lists.
#[derive(Debug, Clone)]
pub(super) struct RuleLayout {
    pub(super) section: Section,
    pub(super) span: Range<usize>,
    pub(super) src: List,
    pub(super) dst: List,
    pub(super) ip: List,
}

/// The positions of all rules and names of a file.
#[derive(Debug, Clone, Default)]
pub(super) struct Layout {
    /// Rules in the order of the parsed policy.
    pub(super) rules: Vec<RuleLayout>,
    /// The byte ranges of the arrays of both sections.
    pub(super) grants: Option<Range<usize>>,
    pub(super) acls: Option<Range<usize>>,
    /// Members of groups: group, login.
    pub(super) groups: Vec<(String, Vec<Entry>)>,
    /// Hosts by name, with the bytes of the whole member.
    pub(super) hosts: Vec<(String, Range<usize>)>,
}

impl Layout {
    pub(super) fn of(source: &str) -> Self {
        let mut out = Self::default();
        let Ok(tree) = json::parse(source) else {
            return out;
        };
        for (name, section) in [("grants", Section::Grants), ("acls", Section::Acls)] {
            let Some(Spanned {
                span,
                value: Value::Array(rules),
            }) = field(&tree, &[name])
            else {
                continue;
            };
            match section {
                Section::Grants => out.grants = Some(span.clone()),
                Section::Acls => out.acls = Some(span.clone()),
            }
            out.rules.extend(rules.iter().map(|rule| RuleLayout {
                section,
                span: rule.span.clone(),
                src: list(field(rule, &["src", "users"])),
                dst: list(field(rule, &["dst", "ports"])),
                ip: list(field(rule, &["ip"])),
            }));
        }
        for group in members(field(&tree, &["groups"])) {
            let logins = list(Some(&group.value)).entries;
            out.groups.push((group.name.trim().to_owned(), logins));
        }
        for host in members(field(&tree, &["hosts"])) {
            let span = host.name_span.start..host.value.span.end;
            out.hosts.push((host.name.trim().to_owned(), span));
        }
        out
    }

    /// The file entry of a destination: every destination of an acl has its own
    /// reach, those of a grant are the same in each.
    pub(super) fn destination(
        &self,
        rule: usize,
        reach: usize,
        destination: usize,
    ) -> Option<&Entry> {
        let layout = self.rules.get(rule)?;
        layout.dst.entries.get(match layout.section {
            Section::Grants => destination,
            Section::Acls => reach,
        })
    }
}

impl SourceLocation {
    pub(super) fn of(source: &str, span: &Range<usize>) -> Self {
        let at = Diagnostic::new(source, span.clone(), String::new(), None);
        Self {
            line: at.line,
            column: at.column,
            text: at.text,
        }
    }
}

/// The member with one of these names, ignoring letter case, unless it is null.
fn field<'t>(object: &'t Spanned, names: &[&str]) -> Option<&'t Spanned> {
    names.iter().find_map(|name| {
        members(Some(object))
            .iter()
            .find(|member| member.name.eq_ignore_ascii_case(name) && !member.value.is_null())
            .map(|member| &member.value)
    })
}

fn members(value: Option<&Spanned>) -> &[Member] {
    match value.map(|value| &value.value) {
        Some(Value::Object(members)) => members,
        _ => &[],
    }
}

fn list(value: Option<&Spanned>) -> List {
    let Some(value) = value else {
        return List::default();
    };
    let Value::Array(items) = &value.value else {
        return List::default();
    };
    let entries = items.iter().filter_map(|item| match &item.value {
        Value::String(text) => Some(Entry {
            text: text.trim().to_owned(),
            span: item.span.clone(),
        }),
        _ => None,
    });
    List {
        span: Some(value.span.clone()),
        entries: entries.collect(),
    }
}

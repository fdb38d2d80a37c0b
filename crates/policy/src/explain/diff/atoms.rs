//! Splits rules into atoms over equivalence classes: the units in which
//! policies are compared.

use std::collections::BTreeSet;

use super::classes::{EquivalenceClasses, Side};
use crate::model::SshRule;
use crate::model::{Policy, Rule};
use crate::selector::{Ports, Selector};

/// Part of a rule: one group of destinations with its ports, or one right.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Atom {
    pub(super) from: BTreeSet<usize>,
    pub(super) to: BTreeSet<usize>,
    pub(super) what: What,
    /// The selectors of the rule, for labels. They do not count in comparisons:
    /// two rules with equal classes are equal.
    pub(super) names: Names,
}

/// The access that an atom allows.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum What {
    Ports {
        via: Vec<String>,
        reach: Open,
    },
    /// A capability with its values, or a login by SSH.
    Right(String),
}

/// A protocol and its ports.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Open {
    pub(super) protocol: Option<u8>,
    pub(super) ports: Vec<Ports>,
}

/// Selectors that are ignored in comparisons.
#[derive(Debug, Clone)]
pub(super) struct Names(pub(super) Vec<Selector>);

impl PartialEq for Names {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Names {}

impl PartialOrd for Names {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Names {
    fn cmp(&self, _: &Self) -> std::cmp::Ordering {
        std::cmp::Ordering::Equal
    }
}

/// Splits the rules of a policy into atoms.
pub(super) fn of(classes: &EquivalenceClasses<'_>, side: Side, policy: &Policy) -> Vec<Atom> {
    let mut out = Vec::new();
    if policy.open {
        let any = [Selector::Any];
        out.push(Atom {
            from: classes.sources(side, &any, &[]),
            to: classes.destinations(side, &any),
            what: What::Ports {
                via: Vec::new(),
                reach: Open {
                    protocol: None,
                    ports: vec![Ports::ALL],
                },
            },
            names: Names(any.to_vec()),
        });
    }
    for rule in &policy.rules {
        of_rule(classes, side, rule, &mut out);
    }
    for rule in &policy.ssh {
        of_ssh(classes, side, rule, &mut out);
    }
    out.retain(|atom| !atom.from.is_empty() && !atom.to.is_empty());
    out
}

fn of_rule(classes: &EquivalenceClasses<'_>, side: Side, rule: &Rule, out: &mut Vec<Atom>) {
    let from = classes.sources(side, &rule.sources, &rule.postures);
    let names = |to: &[Selector]| Names(rule.sources.iter().chain(to).cloned().collect());
    for reach in &rule.reach {
        let mut ports = reach.ports.clone();
        ports.sort_unstable();
        out.push(Atom {
            from: from.clone(),
            to: classes.destinations(side, &reach.to),
            what: What::Ports {
                via: rule.via.clone(),
                reach: Open {
                    protocol: reach.protocol,
                    ports,
                },
            },
            names: names(&reach.to),
        });
    }
    for (name, values) in &rule.app {
        let values: Vec<String> = values.iter().map(ToString::to_string).collect();
        let mut text = format!("capability {name}");
        if !values.is_empty() {
            text = format!("{text} {}", values.join(" "));
        }
        if !rule.via.is_empty() {
            text = format!("{text} via {}", rule.via.join(", "));
        }
        out.push(Atom {
            from: from.clone(),
            to: classes.destinations(side, &rule.app_to),
            what: What::Right(text),
            names: names(&rule.app_to),
        });
    }
}

fn of_ssh(classes: &EquivalenceClasses<'_>, side: Side, rule: &SshRule, out: &mut Vec<Atom>) {
    let logins = &rule.logins;
    let mut names: Vec<String> = logins.names.iter().cloned().collect();
    names.extend(logins.root.then(|| "root".to_owned()));
    names.extend(logins.nonroot.then(|| "autogroup:nonroot".to_owned()));
    let domains = logins.domains.iter();
    names.extend(domains.map(|domain| format!("localpart:*@{domain}")));
    let check = if rule.check.is_some() {
        " after a check"
    } else {
        ""
    };
    for name in names {
        out.push(Atom {
            from: classes.sources(side, &rule.sources, &rule.postures),
            to: classes.destinations(side, &rule.to),
            what: What::Right(format!("ssh as {name}{check}")),
            names: Names(rule.sources.iter().chain(&rule.to).cloned().collect()),
        });
    }
}

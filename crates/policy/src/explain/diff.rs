//! Compares two policies: the access that only one of them allows.
//!
//! Both are applied to the same users and nodes. Machines that no name in
//! either file distinguishes form one equivalence class; so do address ranges.
//! Rules that are equal on both sides are removed, and only the pairs of
//! classes that the remaining rules mention are compared. The differences are
//! described with the names that the files use.

mod atoms;
mod classes;
mod labels;
mod ranges;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use serde_json::{Value, json};

use super::context::PolicyContext;
use super::ports::Services;
use crate::selector::Selector;
use atoms::{Atom, What};
use classes::{Class, EquivalenceClasses, Side};

/// The differences between two policies.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Diff {
    /// Access that the new policy allows and the old one does not.
    pub gained: Vec<AccessChange>,
    /// Access that the old policy allows and the new one does not.
    pub lost: Vec<AccessChange>,
    /// Further differences.
    pub notes: Vec<String>,
    pairs_gained: usize,
    pairs_lost: usize,
}

/// Access between some classes that one policy allows and the other does not.
#[derive(Debug, Clone, PartialEq)]
pub struct AccessChange {
    /// The sources, by the names of the files.
    pub from: Vec<String>,
    /// The destinations, by the names of the files.
    pub to: Vec<String>,
    /// The ports and protocols, or another right.
    pub service: String,
    /// Tags of the routers that must carry it.
    pub via: Vec<String>,
    /// The number of affected pairs of machines or ranges.
    pub pairs: usize,
    /// The ports and protocols as data; null for another right.
    pub ports: Value,
}

impl Diff {
    /// Whether both allow the same.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.gained.is_empty() && self.lost.is_empty() && self.notes.is_empty()
    }

    /// The number of pairs of machines (or ranges of addresses) that gain
    /// access.
    #[must_use]
    pub fn pairs_gained(&self) -> usize {
        self.pairs_gained
    }

    /// The number of pairs that lose access.
    #[must_use]
    pub fn pairs_lost(&self) -> usize {
        self.pairs_lost
    }

    /// The text for a terminal.
    #[must_use]
    pub fn text(&self) -> String {
        if self.is_empty() {
            return "no difference in what is allowed\n".to_owned();
        }
        let mut out = String::new();
        for (sign, word, changes, pairs) in [
            ('+', "gained", &self.gained, self.pairs_gained),
            ('-', "lost", &self.lost, self.pairs_lost),
        ] {
            if changes.is_empty() {
                continue;
            }
            let _ = writeln!(out, "{word}: {}", counted(pairs));
            for change in changes {
                let via = if change.via.is_empty() {
                    String::new()
                } else {
                    format!(" via {}", change.via.join(", "))
                };
                let _ = writeln!(
                    out,
                    "  {sign} {} -> {}  {}{via}  ({})",
                    change.from.join(", "),
                    change.to.join(", "),
                    change.service,
                    counted(change.pairs)
                );
            }
        }
        for note in &self.notes {
            let _ = writeln!(out, "note: {note}");
        }
        out
    }

    /// The JSON for programs.
    #[must_use]
    pub fn json(&self) -> Value {
        let changes = |changes: &[AccessChange]| -> Value {
            changes
                .iter()
                .map(|change| {
                    json!({
                        "from": change.from,
                        "to": change.to,
                        "service": change.service,
                        "via": change.via,
                        "pairs": change.pairs,
                        "ports": change.ports,
                    })
                })
                .collect()
        };
        json!({
            "gained": changes(&self.gained),
            "lost": changes(&self.lost),
            "pairs_gained": self.pairs_gained,
            "pairs_lost": self.pairs_lost,
            "notes": self.notes,
        })
    }
}

fn counted(pairs: usize) -> String {
    if pairs == 1 {
        "1 pair".to_owned()
    } else {
        format!("{pairs} pairs")
    }
}

impl PolicyContext<'_> {
    /// The changes if `after` replaces this policy, for the users and nodes of
    /// this context.
    #[must_use]
    pub fn diff(&self, after: &PolicyContext<'_>) -> Diff {
        let classes = EquivalenceClasses::new(self, after.policy);
        let before_atoms = atoms::of(&classes, Side::Before, self.policy);
        let after_atoms = atoms::of(&classes, Side::After, after.policy);
        let (only_before, only_after) = different(&before_atoms, &after_atoms);
        let (gained, pairs_gained) = one_way(
            &classes,
            Side::After,
            &only_after,
            &after_atoms,
            &before_atoms,
        );
        let (lost, pairs_lost) = one_way(
            &classes,
            Side::Before,
            &only_before,
            &before_atoms,
            &after_atoms,
        );
        let mut notes = Vec::new();
        if self.policy.open != after.policy.open {
            notes.push(if after.policy.open {
                "the new policy has no rules and so allows everything".to_owned()
            } else {
                "the old policy had no rules and so allowed everything".to_owned()
            });
        }
        let rules_differ =
            self.policy.rules != after.policy.rules || self.policy.groups != after.policy.groups;
        if gained.is_empty() && lost.is_empty() && notes.is_empty() && rules_differ {
            notes.push("the rules differ, but not for the machines that are there now".to_owned());
        }
        Diff {
            gained,
            lost,
            notes,
            pairs_gained,
            pairs_lost,
        }
    }
}

/// The atoms that occur on one side only; repeated atoms are counted.
fn different(before: &[Atom], after: &[Atom]) -> (Vec<Atom>, Vec<Atom>) {
    let mut counts: BTreeMap<&Atom, i64> = BTreeMap::new();
    for atom in before {
        *counts.entry(atom).or_default() -= 1;
    }
    for atom in after {
        *counts.entry(atom).or_default() += 1;
    }
    let side = |wanted: fn(i64) -> bool| {
        counts
            .iter()
            .filter(|(_, count)| wanted(**count))
            .map(|(atom, _)| (*atom).clone())
            .collect()
    };
    (side(|count| count < 0), side(|count| count > 0))
}

/// The rights of a pair: ports by the routers that must carry them, and other
/// rights.
#[derive(Default)]
struct Rights {
    ports: BTreeMap<Vec<String>, Services>,
    other: BTreeSet<String>,
}

/// A difference: the services as text, the routers, and the right if it is not one of
/// ports.
type Key = (String, Vec<String>, String);

/// The classes that have a difference: destination -> sources.
type ByDestination = BTreeMap<usize, BTreeSet<usize>>;

/// Differences, the ports of each as JSON, and their classes.
type Found = BTreeMap<Key, (Value, ByDestination)>;

/// The access that `here` allows and `there` does not, for the pairs that the
/// differing atoms mention, and the number of pairs of machines that it concerns.
fn one_way(
    classes: &EquivalenceClasses<'_>,
    side: Side,
    candidates: &[Atom],
    here: &[Atom],
    there: &[Atom],
) -> (Vec<AccessChange>, usize) {
    let mut pairs: BTreeSet<(usize, usize)> = BTreeSet::new();
    for atom in candidates {
        for from in &atom.from {
            pairs.extend(atom.to.iter().map(|to| (*from, *to)));
        }
    }
    let mut found = differences(classes, pairs, here, there);
    let mut touched: BTreeSet<(usize, usize)> = BTreeSet::new();
    for (_, class_ids) in found.values_mut() {
        drop_listed_twice(classes, class_ids);
        for (to, sources) in &*class_ids {
            touched.extend(sources.iter().map(|from| (*from, *to)));
        }
    }
    let total = touched
        .iter()
        .map(|(from, to)| classes.pairs(*from, *to))
        .sum();
    (access_changes(classes, side, candidates, found), total)
}

/// The rights that `here` gives and `there` does not, for each of `pairs`.
fn differences(
    classes: &EquivalenceClasses<'_>,
    pairs: BTreeSet<(usize, usize)>,
    here: &[Atom],
    there: &[Atom],
) -> Found {
    let (here, there) = (by_source(classes, here), by_source(classes, there));
    let mut found = Found::new();
    for (from, to) in pairs {
        if classes.pairs(from, to) == 0 {
            continue;
        }
        let mine = rights(classes, &here, from, to);
        let theirs = rights(classes, &there, from, to);
        let mut note = |key: Key, ports: Value| {
            let (_, class_ids) = found.entry(key).or_insert_with(|| (ports, BTreeMap::new()));
            class_ids.entry(to).or_default().insert(from);
        };
        for (via, services) in &mine.ports {
            let mut left = services.clone();
            // Access through any router includes access through these.
            for (other, services) in &theirs.ports {
                if other.is_empty() || other == via {
                    left = left.minus(services);
                }
            }
            if !left.is_empty() {
                left.without_implied();
                note((left.text(), via.clone(), String::new()), left.json());
            }
        }
        for right in mine.other.difference(&theirs.other) {
            note((right.clone(), Vec::new(), right.clone()), Value::Null);
        }
    }
    found
}

/// Removes a user's own machines where they are listed as other classes too.
fn drop_listed_twice(classes: &EquivalenceClasses<'_>, class_ids: &mut ByDestination) {
    let is_listed = |from: &usize| {
        let own = classes.own_classes(*from).unwrap_or_default();
        own.iter().all(|class| {
            class_ids
                .get(class)
                .is_some_and(|sources| sources.contains(from))
        })
    };
    let own = class_ids.get(&classes.own()).cloned().unwrap_or_default();
    let left: BTreeSet<usize> = own.into_iter().filter(|from| !is_listed(from)).collect();
    if left.is_empty() {
        class_ids.remove(&classes.own());
    } else {
        class_ids.insert(classes.own(), left);
    }
}

/// The differences with the names of their sources and destinations, sorted.
fn access_changes(
    classes: &EquivalenceClasses<'_>,
    side: Side,
    candidates: &[Atom],
    found: Found,
) -> Vec<AccessChange> {
    let names = classes.names(side);
    let mut out = Vec::new();
    for ((service, via, _), (ports, by_destination)) in found {
        let mut by_sources: BTreeMap<BTreeSet<usize>, BTreeSet<usize>> = BTreeMap::new();
        for (to, from) in by_destination {
            by_sources.entry(from).or_default().insert(to);
        }
        for (from, to) in by_sources {
            let pairs = from
                .iter()
                .flat_map(|from| to.iter().map(move |to| classes.pairs(*from, *to)))
                .sum();
            // The names of the rules that caused the difference are preferred.
            let preferred: BTreeSet<&Selector> = candidates
                .iter()
                .filter(|atom| !atom.from.is_disjoint(&from) && !atom.to.is_disjoint(&to))
                .flat_map(|atom| &atom.names.0)
                .collect();
            out.push(AccessChange {
                from: classes.labels(&names, &from, &preferred),
                to: classes.labels(&names, &to, &preferred),
                service: service.clone(),
                via: via.clone(),
                pairs,
                ports: ports.clone(),
            });
        }
    }
    out.sort_by(|a, b| (&a.from, &a.to, &a.service).cmp(&(&b.from, &b.to, &b.service)));
    out
}

fn by_source<'a>(classes: &EquivalenceClasses<'_>, atoms: &'a [Atom]) -> Vec<Vec<&'a Atom>> {
    let mut out = vec![Vec::new(); classes.list.len()];
    for atom in atoms {
        for from in &atom.from {
            if let Some(list) = out.get_mut(*from) {
                list.push(atom);
            }
        }
    }
    out
}

fn rights(
    classes: &EquivalenceClasses<'_>,
    atoms: &[Vec<&Atom>],
    from: usize,
    to: usize,
) -> Rights {
    let mut out = Rights::default();
    for atom in atoms.get(from).into_iter().flatten() {
        let direct = atom.to.contains(&to);
        let own = classes.own();
        let by_own = !direct && atom.to.contains(&own) && classes.is_of_one_user(from, to);
        let all_own = !direct
            && matches!(classes.list.get(to), Some(Class::Own))
            && classes
                .own_classes(from)
                .is_some_and(|class_ids| class_ids.iter().all(|class| atom.to.contains(class)));
        if !(direct || by_own || all_own) {
            continue;
        }
        match &atom.what {
            What::Ports { via, reach } => {
                out.ports
                    .entry(via.clone())
                    .or_default()
                    .add_open(reach.protocol, &reach.ports);
            }
            What::Right(text) => {
                out.other.insert(text.clone());
            }
        }
    }
    out
}

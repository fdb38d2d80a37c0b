//! Names for sets of classes, as the policy files spell them.

use std::collections::{BTreeMap, BTreeSet};

use super::classes::{Class, EquivalenceClasses, Side};
use crate::node::Role;
use crate::selector::Selector;
use crate::span::net_text;

/// The largest number of names in a list; the rest is only counted.
const LABELS: usize = 8;

impl EquivalenceClasses<'_> {
    /// The available labels: selectors with the classes that they match, those
    /// of the files first, then tags, users, and the two kinds of machines.
    pub(super) fn names(&self, side: Side) -> Vec<(Selector, BTreeSet<usize>)> {
        let mut out: Vec<(Selector, BTreeSet<usize>)> = Vec::new();
        for selector in &self.selectors {
            let one = std::slice::from_ref(selector);
            let mut set = self.sources(side, one, &[]);
            set.extend(self.destinations(side, one));
            if *selector == Selector::Any {
                set.remove(&self.own());
            }
            out.push((selector.clone(), set));
        }
        let mut tags: BTreeMap<String, BTreeSet<usize>> = BTreeMap::new();
        for class in 0..self.machine_classes() {
            for node in self.members(class) {
                for tag in &node.tags {
                    tags.entry(tag.clone()).or_default().insert(class);
                }
            }
        }
        // A class may contain machines of several users or tags; then none of
        // these names fits.
        let all_have =
            |class: &usize, tag: &String| self.members(*class).all(|node| node.tags.contains(tag));
        for (tag, class_ids) in tags {
            if class_ids.iter().all(|class| all_have(class, &tag)) {
                out.push((Selector::Tag(tag), class_ids));
            }
        }
        for (user, class_ids) in &self.classes_of_user {
            let only = |class: &usize| self.members(*class).all(|node| node.user == Some(*user));
            if let Some(login) = self.context.login(*user)
                && class_ids.iter().all(only)
            {
                out.push((Selector::User(login), class_ids.clone()));
            }
        }
        for kind in [Selector::Member, Selector::Tagged] {
            let set = self.sources(side, std::slice::from_ref(&kind), &[]);
            out.push((kind, set));
        }
        out
    }

    /// Labels for some classes; the names of the differing rules are preferred.
    pub(super) fn labels(
        &self,
        names: &[(Selector, BTreeSet<usize>)],
        class_ids: &BTreeSet<usize>,
        preferred: &BTreeSet<&Selector>,
    ) -> Vec<String> {
        let mut left = class_ids.clone();
        let mut out = Vec::new();
        let nodes_only = class_ids
            .iter()
            .all(|class| *class < self.machine_classes());
        let mut choices: Vec<(&Selector, BTreeSet<usize>)> = Vec::new();
        for (selector, set) in names {
            let mut set = set.clone();
            // For a set of machines, `*` stands for all machines.
            if *selector == Selector::Any && nodes_only {
                set.retain(|class| *class < self.machine_classes());
            }
            if !set.is_empty() && set.is_subset(class_ids) {
                choices.push((selector, set));
            }
        }
        choices.sort_by_key(|(selector, _)| !preferred.contains(selector));
        while !left.is_empty() {
            let mut best: Option<(usize, &Selector, &BTreeSet<usize>)> = None;
            for (selector, set) in &choices {
                let new = set.intersection(&left).count();
                if new > 0 && best.is_none_or(|(most, ..)| new > most) {
                    best = Some((new, selector, set));
                }
            }
            let Some((_, selector, set)) = best else {
                break;
            };
            out.push(self.selector_text(selector));
            left.retain(|class| !set.contains(class));
            if *selector == Selector::Any {
                left.remove(&self.own());
            }
        }
        for class in left {
            match self.list.get(class) {
                Some(Class::Nodes(_)) => {
                    out.extend(self.members(class).map(|node| self.context.name_of(node)));
                }
                Some(Class::Range(span)) => out.push(span.text()),
                Some(Class::Internet) => out.push("autogroup:internet".to_owned()),
                Some(Class::Own) => out.push("autogroup:self".to_owned()),
                None => {}
            }
        }
        if out.len() > LABELS {
            let more = out.len() - LABELS + 1;
            out.truncate(LABELS - 1);
            out.push(format!("{more} more"));
        }
        out
    }

    fn selector_text(&self, selector: &Selector) -> String {
        match selector {
            Selector::Any => "*".to_owned(),
            Selector::Net(net) => net_text(net),
            Selector::User(name)
            | Selector::Group(name)
            | Selector::Tag(name)
            | Selector::Service(name) => name.clone(),
            Selector::Domain(domain) => format!("user:*@{domain}"),
            Selector::Member => "autogroup:member".to_owned(),
            Selector::Tagged => "autogroup:tagged".to_owned(),
            Selector::OwnUser => "autogroup:self".to_owned(),
            Selector::Internet => "autogroup:internet".to_owned(),
            Selector::DangerAll => "autogroup:danger-all".to_owned(),
            Selector::Shared => "autogroup:shared".to_owned(),
            Selector::Set(set) => set.name.clone(),
            Selector::Role(role) => {
                let named = Role::NAMED.iter().find(|(_, named)| named == role);
                format!("autogroup:{}", named.map_or("member", |(name, _)| name))
            }
        }
    }
}

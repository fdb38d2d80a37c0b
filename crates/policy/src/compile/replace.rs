//! Another policy file: the rules that are new, and those that went.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use super::Compiled;
use super::affected::{Affected, Touched};
use super::bits::Bits;
use super::items::{Entry, ItemId, Kind};
use super::meaning::Meaning;
use super::settle::Change;
use super::source::{Posture, Source};
use super::table::Id;
use crate::policy::{Policy, Rule};
use crate::selector::Selector;

impl Policy {
    /// Whether both tell single nodes the same, besides who may reach whom:
    /// logins over SSH, attributes, settings.
    #[must_use]
    pub fn tells_nodes_the_same(&self, other: &Self) -> bool {
        let names = !self.speaks_of_nodes()
            || (self.groups == other.groups && self.postures == other.postures);
        names
            && self.ssh == other.ssh
            && self.node_attributes == other.node_attributes
            && self.attribute_configs == other.attribute_configs
            && self.randomize_client_port == other.randomize_client_port
            && self.disable_ipv4 == other.disable_ipv4
            && self.one_cgnat_route == other.one_cgnat_route
    }
}

impl Compiled {
    /// Another policy is in force. Rules that stay, in the order in which they
    /// were, cost nothing.
    pub fn replace_policy(&mut self, policy: &Policy) -> Affected {
        if *self.policy == *policy {
            return Affected::default();
        }
        if self.policy.open != policy.open {
            let users: Vec<_> = self.users.values().cloned().collect();
            let network = std::mem::take(&mut self.network);
            *self = Self::new(Arc::new(policy.clone()), &users, network);
            let all = self.ids(&self.network.present);
            return Affected {
                filters: all.clone(),
                peers: all.clone(),
                routes: all.clone(),
                views: all,
            };
        }
        let mut touched = Touched::default();
        let mut changed: BTreeSet<Id<Source>> = BTreeSet::new();
        let rules = policy.effective_rules();
        let kept = self.kept(&rules);
        let stay: BTreeSet<Id<Entry>> = kept.iter().flatten().copied().collect();
        let gone: Vec<Id<Entry>> = self
            .order
            .iter()
            .copied()
            .filter(|id| !stay.contains(id))
            .collect();
        for rule in &gone {
            self.touch_rule(*rule, &mut touched);
            changed.extend(self.forget(*rule));
        }
        let before = std::mem::replace(&mut self.policy, Arc::new(policy.clone()));
        let names = self.names_changed(&before, &mut touched);
        let mut order = Vec::with_capacity(rules.len());
        let mut new = Vec::new();
        for (rule, kept) in rules.iter().zip(kept) {
            order.push(kept.unwrap_or_else(|| {
                let id = self.add_rule(rule);
                new.push(id);
                id
            }));
        }
        self.set_order(order);
        for rule in &new {
            self.touch_rule(*rule, &mut touched);
            let items = self.rules.get(*rule).into_iter().flat_map(|r| &r.items);
            let sources = items.filter_map(|id| self.items.get(*id)).map(|i| i.source);
            changed.extend(sources);
        }
        self.regroup(&changed, &mut touched);
        if !gone.is_empty() || names {
            self.sweep();
        }
        let none = Bits::default();
        self.name(&touched, [&none, &none])
    }

    pub(super) fn set_order(&mut self, order: Vec<Id<Entry>>) {
        let ranks = order.iter().enumerate();
        self.rank = ranks.map(|(rank, id)| (*id, rank)).collect();
        self.order = order;
    }

    /// For every rule of a new file the one that stays in its place: the
    /// longest row of equal ones, in the order in which they are now.
    fn kept(&self, rules: &[Rule]) -> Vec<Option<Id<Entry>>> {
        let rule = |id: &Id<Entry>| self.rules.get(*id).map(|entry| &entry.rule);
        let mut known: BTreeMap<u64, VecDeque<usize>> = BTreeMap::new();
        for (at, id) in self.order.iter().enumerate() {
            if let Some(rule) = rule(id) {
                known.entry(fingerprint(rule)).or_default().push_back(at);
            }
        }
        // Which of the old ones is equal; of several, the first that is left.
        let equal: Vec<Option<usize>> = rules
            .iter()
            .map(|new| {
                let places = known.get_mut(&fingerprint(new))?;
                let found = places.iter().position(|at| {
                    let old = self.order.get(*at).and_then(rule);
                    old.is_some_and(|old| old == new)
                })?;
                places.remove(found)
            })
            .collect();
        let rising = longest_rising(&equal);
        let kept = equal.iter().zip(rising);
        kept.map(|(at, stays)| {
            at.filter(|_| stays)
                .and_then(|at| self.order.get(at))
                .copied()
        })
        .collect()
    }

    /// Those whom a rule concerns.
    fn touch_rule(&self, rule: Id<Entry>, touched: &mut Touched) {
        let items = self.rules.get(rule).into_iter().flat_map(|r| &r.items);
        for item in items.filter_map(|id| self.items.get(*id)) {
            let Some(source) = self.sources.get(item.source) else {
                continue;
            };
            if item.is_own_user() {
                for slot in source.selected.iter() {
                    let fellows: Bits = self.fellows(slot).into_iter().collect();
                    touched.filters.unite(&fellows);
                    touched.peers.unite(&fellows);
                }
                continue;
            }
            if !matches!(item.kind, Kind::ViaPeers { .. }) {
                touched.filters.unite(&item.reached);
            }
            touched.routes.unite(&source.covered);
            touched.routes.unite(&item.reached);
            if !source.covered.is_empty() && !item.reached.is_empty() {
                touched.peers.unite(&source.covered);
                touched.peers.unite(&item.reached);
            }
        }
    }

    /// Takes out a rule; the answer is its sources.
    fn forget(&mut self, rule: Id<Entry>) -> Vec<Id<Source>> {
        let items = self.rules.remove(rule).map(|entry| entry.items);
        let mut sources = Vec::new();
        for id in items.unwrap_or_default() {
            let Some(item) = self.items.remove(id) else {
                continue;
            };
            if let Some(source) = self.sources.get_mut(item.source) {
                source.items.remove(&id);
            }
            if let Kind::Ports { protocol, .. } = item.kind {
                self.forget_place(item.source, protocol);
            }
            sources.push(item.source);
        }
        sources
    }

    /// Forgets where rules of the source with the protocol go, if there are
    /// none any more.
    fn forget_place(&mut self, source: Id<Source>, protocol: Option<u8>) {
        let items = self.sources.get(source).into_iter().flat_map(|s| &s.items);
        let is_another = |id: &ItemId| {
            let kind = self.items.get(*id).map(|item| &item.kind);
            matches!(kind, Some(Kind::Ports { protocol: own, .. }) if *own == protocol)
        };
        if !items.into_iter().any(is_another) {
            self.places.remove(&(source, protocol));
        }
    }

    /// Groups and postures may mean something else in the new file.
    fn names_changed(&mut self, before: &Policy, touched: &mut Touched) -> bool {
        let mut change = Change::default();
        let groups: Vec<(Id<Meaning>, Selector)> = self
            .meanings
            .iter()
            .filter(|(_, meaning)| match &meaning.selector {
                Selector::Group(name) => before.groups.get(name) != self.policy.groups.get(name),
                _ => false,
            })
            .map(|(id, meaning)| (id, meaning.selector.clone()))
            .collect();
        for (id, selector) in groups {
            let now = self.resolve(&selector);
            if let Some(meaning) = self.meanings.get_mut(id) {
                let toggled = meaning.holds.difference(&now.holds);
                *meaning = now;
                if !toggled.is_empty() {
                    change.turned.insert(id, toggled);
                }
            }
        }
        let differs = |name: &String| before.postures.get(name) != self.policy.postures.get(name);
        for (id, posture) in self.postures.iter_mut() {
            if !posture.names.iter().any(differs) {
                continue;
            }
            let passes = posture.passes.clone();
            posture.look_at_all(&self.policy, &self.network);
            if posture.passes != passes {
                change.posed.insert(id);
            }
        }
        if change.turned.is_empty() && change.posed.is_empty() {
            return false;
        }
        self.meanings_turned(&mut change);
        let spread = self.settle(&change);
        touched.filters.unite(&spread.filters);
        touched.peers.unite(&spread.peers);
        touched.routes.unite(&spread.routes);
        true
    }

    /// Forgets what no rule speaks of any more.
    fn sweep(&mut self) {
        let unused: Vec<Id<Source>> = self
            .sources
            .iter()
            .filter(|(_, source)| source.items.is_empty())
            .map(|(id, _)| id)
            .collect();
        for id in unused {
            let Some(source) = self.sources.remove(id) else {
                continue;
            };
            if let Some(bucket) = self.alike.get_mut(&source.hash) {
                bucket.remove(&id);
                if bucket.is_empty() {
                    self.alike.remove(&source.hash);
                }
            }
            self.source_ids.remove(&(source.selectors, source.posture));
        }
        let mut meanings: BTreeSet<Id<Meaning>> = BTreeSet::new();
        let mut postures: BTreeSet<Id<Posture>> = BTreeSet::new();
        for (_, source) in self.sources.iter() {
            meanings.extend(&source.selectors);
            postures.insert(source.posture);
        }
        for (_, item) in self.items.iter() {
            item.kind.any_meaning(|id| {
                meanings.insert(id);
                false
            });
            if let Kind::Capabilities { posture, .. } = item.kind {
                postures.extend(posture);
            }
        }
        let table = &mut self.meanings;
        self.meaning_ids.retain(|_, id| {
            let used = meanings.contains(id);
            if !used {
                table.remove(*id);
            }
            used
        });
        let table = &mut self.postures;
        self.posture_ids.retain(|_, id| {
            let used = postures.contains(id);
            if !used {
                table.remove(*id);
            }
            used
        });
    }
}

/// Equal for equal rules. Values of capabilities do not count.
fn fingerprint(rule: &Rule) -> u64 {
    let mut hasher = DefaultHasher::new();
    rule.sources.hash(&mut hasher);
    rule.app_to.hash(&mut hasher);
    rule.via.hash(&mut hasher);
    rule.postures.hash(&mut hasher);
    for reach in &rule.reach {
        (&reach.to, reach.protocol, &reach.ports).hash(&mut hasher);
    }
    for (name, _) in &rule.app {
        name.hash(&mut hasher);
    }
    hasher.finish()
}

/// Which numbers belong to the longest row that rises.
fn longest_rising(numbers: &[Option<usize>]) -> Vec<bool> {
    // The last place of the best row of each length, and before each place the
    // one that its row has before it.
    let mut ends: Vec<(usize, usize)> = Vec::new();
    let mut before: Vec<Option<usize>> = vec![None; numbers.len()];
    for (place, number) in numbers.iter().enumerate() {
        let Some(number) = *number else {
            continue;
        };
        let length = ends.partition_point(|(last, _)| *last < number);
        let previous = length.checked_sub(1).and_then(|shorter| ends.get(shorter));
        if let Some(own) = before.get_mut(place) {
            *own = previous.map(|(_, place)| *place);
        }
        match ends.get_mut(length) {
            Some(end) => *end = (number, place),
            None => ends.push((number, place)),
        }
    }
    let mut out = vec![false; numbers.len()];
    let mut at = ends.last().map(|(_, place)| *place);
    while let Some(place) = at {
        if let Some(stays) = out.get_mut(place) {
            *stays = true;
        }
        at = before.get(place).copied().flatten();
    }
    out
}

#[cfg(test)]
mod tests {
    use super::longest_rising;

    #[test]
    fn most_rules_stay() {
        for (numbers, stay) in [
            (vec![], vec![]),
            (vec![None], vec![false]),
            (vec![Some(0), Some(1), Some(2)], vec![true, true, true]),
            // The last one moved to the front; the others stay.
            (vec![Some(2), Some(0), Some(1)], vec![false, true, true]),
            (
                vec![Some(0), None, Some(3), Some(1), Some(2), Some(4)],
                vec![true, false, false, true, true, true],
            ),
        ] {
            assert_eq!(longest_rising(&numbers), stay, "{numbers:?}");
        }
    }
}

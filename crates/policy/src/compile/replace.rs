//! Replaces the policy: adds new rules and removes old ones.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use super::Compiled;
use super::arena::Id;
use super::bits::Bits;
use super::impact::{Impact, SlotImpact};
use super::posture::Posture;
use super::propagate::NetworkChange;
use super::resolved::ResolvedSelector;
use super::rules::{FileRule, RuleKind};
use super::source::Source;
use super::tables::CompiledRuleId;
use crate::model::{Policy, Rule};
use crate::selector::Selector;

impl Policy {
    /// Whether both policies give single nodes the same SSH logins, attributes
    /// and settings. Access between nodes is not compared.
    #[must_use]
    pub fn gives_nodes_the_same(&self, other: &Self) -> bool {
        let names = !self.has_node_rules()
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
    /// Replaces the policy. Rules that stay in the same order cost nothing.
    pub fn replace_policy(&mut self, policy: &Policy) -> Impact {
        if *self.policy == *policy {
            return Impact::default();
        }
        if self.policy.open != policy.open {
            let users: Vec<_> = self.users.values().cloned().collect();
            let network = std::mem::take(&mut self.network);
            *self = Self::new(Arc::new(policy.clone()), &users, network);
            let all = self.ids(&self.network.present);
            return Impact {
                filters: all.clone(),
                peers: all.clone(),
                routes: all.clone(),
                views: all,
            };
        }
        let mut impact = SlotImpact::default();
        let mut changed: BTreeSet<Id<Source>> = BTreeSet::new();
        let rules = policy.effective_rules();
        let kept = self.reusable_rules(&rules);
        let stay: BTreeSet<Id<FileRule>> = kept.iter().flatten().copied().collect();
        let gone: Vec<Id<FileRule>> = self
            .order
            .iter()
            .copied()
            .filter(|id| !stay.contains(id))
            .collect();
        for rule in &gone {
            self.add_rule_impact(*rule, &mut impact);
            changed.extend(self.remove_rule(*rule));
        }
        let before = std::mem::replace(&mut self.policy, Arc::new(policy.clone()));
        let names = self.names_changed(&before, &mut impact);
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
            self.add_rule_impact(*rule, &mut impact);
            let compiled_rules = self
                .file_rules
                .get(*rule)
                .into_iter()
                .flat_map(|r| &r.compiled_rules);
            let sources = compiled_rules
                .filter_map(|id| self.compiled_rules.get(*id))
                .map(|i| i.source);
            changed.extend(sources);
        }
        self.regroup(&changed, &mut impact);
        if !gone.is_empty() || names {
            self.remove_unused();
        }
        self.checked();
        let none = Bits::default();
        self.impact_of(&impact, [&none, &none])
    }

    pub(super) fn set_order(&mut self, order: Vec<Id<FileRule>>) {
        let ranks = order.iter().enumerate();
        self.rank = ranks.map(|(rank, id)| (*id, rank)).collect();
        self.order = order;
    }

    /// For every rule of a new file, the existing rule that it can reuse: the
    /// longest subsequence of equal rules in the current order.
    fn reusable_rules(&self, rules: &[Rule]) -> Vec<Option<Id<FileRule>>> {
        let rule = |id: &Id<FileRule>| self.file_rules.get(*id).map(|entry| &entry.rule);
        let mut known: BTreeMap<u64, VecDeque<usize>> = BTreeMap::new();
        for (at, id) in self.order.iter().enumerate() {
            if let Some(rule) = rule(id) {
                known.entry(fingerprint(rule)).or_default().push_back(at);
            }
        }
        // The index of an equal old rule; of several, the first that is not
        // used yet.
        let equal: Vec<Option<usize>> = rules
            .iter()
            .map(|new| {
                let merge_targets = known.get_mut(&fingerprint(new))?;
                let found = merge_targets.iter().position(|at| {
                    let old = self.order.get(*at).and_then(rule);
                    old.is_some_and(|old| old == new)
                })?;
                merge_targets.remove(found)
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

    /// Adds the nodes that a rule affects.
    fn add_rule_impact(&self, rule: Id<FileRule>, impact: &mut SlotImpact) {
        let compiled_rules = self
            .file_rules
            .get(rule)
            .into_iter()
            .flat_map(|r| &r.compiled_rules);
        for compiled in compiled_rules.filter_map(|id| self.compiled_rules.get(*id)) {
            let Some(source) = self.sources.get(compiled.source) else {
                continue;
            };
            if compiled.is_own_user() {
                for slot in source.selected.iter() {
                    let nodes_of_same_user: Bits =
                        self.nodes_of_same_user(slot).into_iter().collect();
                    impact.filters.unite(&nodes_of_same_user);
                    impact.peers.unite(&nodes_of_same_user);
                }
                continue;
            }
            if !matches!(compiled.kind, RuleKind::ViaPeers { .. }) {
                impact.filters.unite(&compiled.reached);
            }
            impact.routes.unite(&source.covered);
            impact.routes.unite(&compiled.reached);
            if !source.covered.is_empty() && !compiled.reached.is_empty() {
                impact.peers.unite(&source.covered);
                impact.peers.unite(&compiled.reached);
            }
        }
    }

    /// Removes a rule and returns its sources.
    fn remove_rule(&mut self, rule: Id<FileRule>) -> Vec<Id<Source>> {
        let compiled_rules = self
            .file_rules
            .remove(rule)
            .map(|entry| entry.compiled_rules);
        let mut sources = Vec::new();
        for id in compiled_rules.unwrap_or_default() {
            let Some(compiled) = self.compiled_rules.remove(id) else {
                continue;
            };
            if let Some(source) = self.sources.get_mut(compiled.source) {
                source.compiled_rules.remove(&id);
            }
            if let RuleKind::Ports { protocol, .. } = compiled.kind {
                self.forget_merge_target(compiled.source, protocol);
            }
            sources.push(compiled.source);
        }
        sources
    }

    /// Removes the merge target of a source and protocol if no rule uses it any
    /// more.
    fn forget_merge_target(&mut self, source: Id<Source>, protocol: Option<u8>) {
        let compiled_rules = self
            .sources
            .get(source)
            .into_iter()
            .flat_map(|s| &s.compiled_rules);
        let is_another = |id: &CompiledRuleId| {
            let kind = self.compiled_rules.get(*id).map(|compiled| &compiled.kind);
            matches!(kind, Some(RuleKind::Ports { protocol: own, .. }) if *own == protocol)
        };
        if !compiled_rules.into_iter().any(is_another) {
            self.merge_targets.remove(&(source, protocol));
        }
    }

    /// Updates groups and postures that have another definition in the new
    /// file.
    fn names_changed(&mut self, before: &Policy, impact: &mut SlotImpact) -> bool {
        let mut change = NetworkChange::default();
        let groups: Vec<(Id<ResolvedSelector>, Selector)> = self
            .selectors
            .iter()
            .filter(|(_, resolved)| match &resolved.selector {
                Selector::Group(name) => before.groups.get(name) != self.policy.groups.get(name),
                _ => false,
            })
            .map(|(id, resolved)| (id, resolved.selector.clone()))
            .collect();
        for (id, selector) in groups {
            let now = self.resolve(&selector);
            if let Some(resolved) = self.selectors.get_mut(id) {
                let toggled = resolved.holds.difference(&now.holds);
                *resolved = now;
                if !toggled.is_empty() {
                    change.selectors.insert(id, toggled);
                }
            }
        }
        let differs = |name: &String| before.postures.get(name) != self.policy.postures.get(name);
        for (id, posture) in self.postures.iter_mut() {
            if !posture.names.iter().any(differs) {
                continue;
            }
            let passes = posture.passes.clone();
            posture.refresh_all(&self.policy, &self.network);
            if posture.passes != passes {
                change.postures.insert(id);
            }
        }
        if change.selectors.is_empty() && change.postures.is_empty() {
            return false;
        }
        self.invalidate_sources(&mut change);
        let spread = self.propagate(&change);
        impact.filters.unite(&spread.filters);
        impact.peers.unite(&spread.peers);
        impact.routes.unite(&spread.routes);
        true
    }

    /// Removes sources, selectors and postures that no rule uses any more.
    fn remove_unused(&mut self) {
        let unused: Vec<Id<Source>> = self
            .sources
            .iter()
            .filter(|(_, source)| source.compiled_rules.is_empty())
            .map(|(id, _)| id)
            .collect();
        for id in unused {
            let Some(source) = self.sources.remove(id) else {
                continue;
            };
            if let Some(bucket) = self.by_fingerprint.get_mut(&source.fingerprint) {
                bucket.remove(&id);
                if bucket.is_empty() {
                    self.by_fingerprint.remove(&source.fingerprint);
                }
            }
            self.source_ids.remove(&(source.selectors, source.posture));
        }
        let mut selectors: BTreeSet<Id<ResolvedSelector>> = BTreeSet::new();
        let mut postures: BTreeSet<Id<Posture>> = BTreeSet::new();
        for (_, source) in self.sources.iter() {
            selectors.extend(&source.selectors);
            postures.insert(source.posture);
        }
        for (_, compiled) in self.compiled_rules.iter() {
            compiled.kind.any_selector(|id| {
                selectors.insert(id);
                false
            });
            if let RuleKind::Capabilities { posture, .. } = compiled.kind {
                postures.extend(posture);
            }
        }
        let arena = &mut self.selectors;
        self.selector_ids.retain(|_, id| {
            let used = selectors.contains(id);
            if !used {
                arena.remove(*id);
            }
            used
        });
        let arena = &mut self.postures;
        self.posture_ids.retain(|_, id| {
            let used = postures.contains(id);
            if !used {
                arena.remove(*id);
            }
            used
        });
    }
}

/// Equal for equal rules. The values of capabilities are not included.
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

/// Marks the numbers of the longest increasing subsequence.
fn longest_rising(numbers: &[Option<usize>]) -> Vec<bool> {
    // For each length the end of the best subsequence, and for each position
    // its predecessor in its subsequence.
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
    fn longest_increasing_subsequence_is_kept() {
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

//! Propagates a change from nodes and selectors to sources and compiled rules,
//! and collects the affected nodes.

use std::collections::{BTreeMap, BTreeSet};

use super::Compiled;
use super::arena::Id;
use super::bits::{Bits, Slot};
use super::impact::SlotImpact;
use super::posture::Posture;
use super::resolved::ResolvedSelector;
use super::rules::RuleKind;
use super::source::{Source, SourceChange};
use super::tables::{CompiledRuleId, Lookup};

/// A change of nodes, selectors or postures.
#[derive(Debug, Default)]
pub(super) struct NetworkChange {
    /// The node that was added, removed or changed.
    pub(super) node: Option<Slot>,
    /// Nodes that sources must evaluate again: this one, and those related to
    /// its addresses.
    pub(super) slots: Vec<Slot>,
    /// Whether its addresses changed.
    pub(super) addresses: bool,
    /// Whether an old or new address of it is in the subnet of a router.
    pub(super) address_in_subnet: bool,
    /// Whether a subnet got its first router or lost its last one.
    pub(super) new_routes: bool,
    /// Selectors that match other nodes now, with the nodes that differ.
    pub(super) selectors: BTreeMap<Id<ResolvedSelector>, Bits>,
    /// Postures whose set of nodes changed beyond this node.
    pub(super) postures: BTreeSet<Id<Posture>>,
    /// Sources that must be computed again completely.
    pub(super) rebuilt: BTreeSet<Id<Source>>,
}

impl Compiled {
    /// Updates sources and compiled rules. The peers of the changed node itself
    /// are left to the caller, which has its previous peers.
    pub(super) fn propagate(&mut self, change: &NetworkChange) -> SlotImpact {
        let mut impact = SlotImpact::default();
        let sources = self.propagate_to_sources(change);
        let compiled_rules = self.propagate_to_rules(change, &mut impact);
        let dirty: BTreeSet<Id<Source>> = sources
            .iter()
            .filter(|(_, t)| t.texts || t.group || !t.selected.is_empty())
            .map(|(id, _)| *id)
            .collect();
        self.regroup(&dirty, &mut impact);
        let others = |slots: &[Slot]| -> Bits {
            let slots = slots.iter().copied();
            slots.filter(|slot| Some(*slot) != change.node).collect()
        };
        for (id, toggled) in &sources {
            let Some(source) = self.sources.get(*id) else {
                continue;
            };
            let coverers = others(&toggled.covered);
            toggled
                .covered
                .iter()
                .for_each(|slot| impact.routes.insert(*slot));
            impact.peers.unite(&coverers);
            let spans_changed =
                toggled.texts && (change.address_in_subnet || change.rebuilt.contains(id));
            let mut own_user = false;
            for compiled in source
                .compiled_rules
                .iter()
                .filter_map(|id| self.compiled_rules.get(*id))
            {
                if toggled.texts && !matches!(compiled.kind, RuleKind::ViaPeers { .. }) {
                    impact.filters.unite(&compiled.reached);
                }
                if !coverers.is_empty() {
                    impact.peers.unite(&compiled.reached);
                }
                if spans_changed {
                    impact.routes.unite(&compiled.reached);
                }
                own_user |= compiled.is_own_user();
            }
            if own_user {
                for slot in &toggled.selected {
                    let nodes_of_same_user: Bits =
                        self.nodes_of_same_user(*slot).into_iter().collect();
                    impact.filters.unite(&nodes_of_same_user);
                    if Some(*slot) != change.node {
                        impact.peers.unite(&nodes_of_same_user);
                    }
                }
            }
        }
        for (id, toggled) in &compiled_rules {
            let Some(compiled) = self.compiled_rules.get(*id) else {
                continue;
            };
            let Some(source) = self.sources.get(compiled.source) else {
                continue;
            };
            let reached = others(toggled);
            if !reached.is_empty() && !source.covered.is_empty() {
                impact.peers.unite(&reached);
                impact.peers.unite(&source.covered);
            }
            for slot in toggled {
                impact.filters.insert(*slot);
                impact.routes.insert(*slot);
                let own = self.network.get(*slot);
                if own.is_some_and(|own| !own.node.routes.is_empty()) {
                    impact.routes.unite(&source.covered);
                }
            }
        }
        impact
    }

    fn propagate_to_sources(&mut self, change: &NetworkChange) -> Vec<(Id<Source>, SourceChange)> {
        let from = Lookup {
            selectors: &self.selectors,
            postures: &self.postures,
            network: &self.network,
        };
        let mut out = Vec::new();
        for (id, source) in self.sources.iter_mut() {
            let mut toggled = if change.rebuilt.contains(&id) {
                source.refresh_all(from)
            } else {
                source.refresh(&change.slots, from)
            };
            let listed = change.node.is_some_and(|slot| source.listed.get(slot));
            toggled.texts |= listed && change.addresses;
            toggled.texts |= source.with_routes && change.new_routes;
            toggled.group = source.with_routes && change.addresses;
            let nothing = !toggled.texts && !toggled.group && toggled.selected.is_empty();
            if !nothing || !toggled.covered.is_empty() {
                out.push((id, toggled));
            }
        }
        out
    }

    fn propagate_to_rules(
        &mut self,
        change: &NetworkChange,
        impact: &mut SlotImpact,
    ) -> Vec<(CompiledRuleId, Vec<Slot>)> {
        let lookup = Lookup {
            selectors: &self.selectors,
            postures: &self.postures,
            network: &self.network,
        };
        let mut out = Vec::new();
        for (id, compiled) in self.compiled_rules.iter_mut() {
            if compiled.is_own_user() {
                continue;
            }
            if let Some(slot) = change.node {
                let reaches = lookup.reaches(&compiled.kind, slot);
                if compiled.reached.assign(slot, reaches) {
                    out.push((id, vec![slot]));
                }
                // The rule may reach the node by another of its destinations
                // now.
                let turned = || {
                    compiled
                        .kind
                        .any_selector(|id| change.selectors.contains_key(&id))
                };
                if reaches && !change.selectors.is_empty() && turned() {
                    impact.filters.insert(slot);
                }
                continue;
            }
            let posed = match &compiled.kind {
                RuleKind::Capabilities { posture, .. } => {
                    posture.is_some_and(|posture| change.postures.contains(&posture))
                }
                _ => false,
            };
            let mut turned = Bits::default();
            compiled.kind.any_selector(|id| {
                if let Some(slots) = change.selectors.get(&id) {
                    turned.unite(slots);
                }
                false
            });
            if !posed && turned.is_empty() {
                continue;
            }
            let reached = lookup.reached(&compiled.kind);
            impact.filters.unite(&turned.and(&reached));
            let toggled: Vec<Slot> = reached.difference(&compiled.reached).iter().collect();
            compiled.reached = reached;
            if !toggled.is_empty() {
                out.push((id, toggled));
            }
        }
        out
    }

    /// Moves changed sources to their new group of equal sources; the merge
    /// targets of rules may change with it.
    pub(super) fn regroup(&mut self, dirty: &BTreeSet<Id<Source>>, impact: &mut SlotImpact) {
        let mut around: BTreeSet<Id<Source>> = BTreeSet::new();
        let lookup = Lookup {
            selectors: &self.selectors,
            postures: &self.postures,
            network: &self.network,
        };
        let mut hashes: BTreeSet<u64> = BTreeSet::new();
        for id in dirty {
            let Some(source) = self.sources.get_mut(*id) else {
                continue;
            };
            let before = source.fingerprint;
            source.update_fingerprint(lookup);
            let after = source.fingerprint;
            hashes.extend([before, after]);
            if before == after {
                continue;
            }
            if let Some(bucket) = self.by_fingerprint.get_mut(&before) {
                bucket.remove(id);
                if bucket.is_empty() {
                    self.by_fingerprint.remove(&before);
                } else if let Some(bucket) = self.by_fingerprint.get(&before) {
                    around.extend(bucket);
                }
            }
            self.by_fingerprint.entry(after).or_default().insert(*id);
        }
        for hash in hashes {
            around.extend(self.by_fingerprint.get(&hash).into_iter().flatten());
        }
        for compiled in self.update_merge_targets(&around) {
            if let Some(compiled) = self.compiled_rules.get(compiled) {
                impact.filters.unite(&compiled.reached);
            }
        }
    }
}

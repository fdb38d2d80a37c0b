//! A change spreads: from selectors and nodes to sources and items, and from
//! there to those it concerns.

use std::collections::{BTreeMap, BTreeSet};

use super::Compiled;
use super::affected::Touched;
use super::bits::{Bits, Slot};
use super::items::{ItemId, Kind, Lookup};
use super::meaning::Meaning;
use super::source::{Posture, Source, Toggled};
use super::table::Id;

/// What changed at the bottom.
#[derive(Debug, Default)]
pub(super) struct Change {
    /// The node that came, went, or is another one now.
    pub(super) node: Option<Slot>,
    /// Nodes at which sources may be different: this one, and those that have
    /// to do with its addresses.
    pub(super) slots: Vec<Slot>,
    /// Its addresses are others.
    pub(super) addresses: bool,
    /// Its address lies, or lay, in somebody's subnet.
    pub(super) overlaid: bool,
    /// A subnet is served for the first time, or no longer.
    pub(super) new_routes: bool,
    /// Selectors that mean other nodes now, and which.
    pub(super) turned: BTreeMap<Id<Meaning>, Bits>,
    /// Postures that others than this node have, or no longer.
    pub(super) posed: BTreeSet<Id<Posture>>,
    /// Sources to look at as a whole.
    pub(super) whole: BTreeSet<Id<Source>>,
}

impl Compiled {
    /// Brings sources and items up to date. Of the changed node itself, peers
    /// are left to the caller, who knows them from before.
    pub(super) fn settle(&mut self, change: &Change) -> Touched {
        let mut touched = Touched::default();
        let sources = self.settle_sources(change);
        let items = self.settle_items(change, &mut touched);
        let dirty: BTreeSet<Id<Source>> = sources
            .iter()
            .filter(|(_, t)| t.texts || t.group || !t.selected.is_empty())
            .map(|(id, _)| *id)
            .collect();
        self.regroup(&dirty, &mut touched);
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
                .for_each(|slot| touched.routes.insert(*slot));
            touched.peers.unite(&coverers);
            let spans_changed = toggled.texts && (change.overlaid || change.whole.contains(id));
            let mut own_user = false;
            for item in source.items.iter().filter_map(|id| self.items.get(*id)) {
                if toggled.texts && !matches!(item.kind, Kind::ViaPeers { .. }) {
                    touched.filters.unite(&item.reached);
                }
                if !coverers.is_empty() {
                    touched.peers.unite(&item.reached);
                }
                if spans_changed {
                    touched.routes.unite(&item.reached);
                }
                own_user |= item.is_own_user();
            }
            if own_user {
                for slot in &toggled.selected {
                    let fellows: Bits = self.fellows(*slot).into_iter().collect();
                    touched.filters.unite(&fellows);
                    if Some(*slot) != change.node {
                        touched.peers.unite(&fellows);
                    }
                }
            }
        }
        for (id, toggled) in &items {
            let Some(item) = self.items.get(*id) else {
                continue;
            };
            let Some(source) = self.sources.get(item.source) else {
                continue;
            };
            let reached = others(toggled);
            if !reached.is_empty() && !source.covered.is_empty() {
                touched.peers.unite(&reached);
                touched.peers.unite(&source.covered);
            }
            for slot in toggled {
                touched.filters.insert(*slot);
                touched.routes.insert(*slot);
                let own = self.network.get(*slot);
                if own.is_some_and(|own| !own.node.routes.is_empty()) {
                    touched.routes.unite(&source.covered);
                }
            }
        }
        touched
    }

    fn settle_sources(&mut self, change: &Change) -> Vec<(Id<Source>, Toggled)> {
        let from = Lookup {
            meanings: &self.meanings,
            postures: &self.postures,
            network: &self.network,
        };
        let mut out = Vec::new();
        for (id, source) in self.sources.iter_mut() {
            let mut toggled = if change.whole.contains(&id) {
                source.look_at_all(from)
            } else {
                source.look_at(&change.slots, from)
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

    fn settle_items(&mut self, change: &Change, touched: &mut Touched) -> Vec<(ItemId, Vec<Slot>)> {
        let lookup = Lookup {
            meanings: &self.meanings,
            postures: &self.postures,
            network: &self.network,
        };
        let mut out = Vec::new();
        for (id, item) in self.items.iter_mut() {
            if item.is_own_user() {
                continue;
            }
            if let Some(slot) = change.node {
                let reaches = lookup.reaches(&item.kind, slot);
                if item.reached.assign(slot, reaches) {
                    out.push((id, vec![slot]));
                }
                // The same rule may reach it by another of its destinations.
                let turned = || item.kind.any_meaning(|id| change.turned.contains_key(&id));
                if reaches && !change.turned.is_empty() && turned() {
                    touched.filters.insert(slot);
                }
                continue;
            }
            let posed = match &item.kind {
                Kind::Capabilities { posture, .. } => {
                    posture.is_some_and(|posture| change.posed.contains(&posture))
                }
                _ => false,
            };
            let mut turned = Bits::default();
            item.kind.any_meaning(|id| {
                if let Some(slots) = change.turned.get(&id) {
                    turned.unite(slots);
                }
                false
            });
            if !posed && turned.is_empty() {
                continue;
            }
            let reached = lookup.reached(&item.kind);
            touched.filters.unite(&turned.and(&reached));
            let toggled: Vec<Slot> = reached.difference(&item.reached).iter().collect();
            item.reached = reached;
            if !toggled.is_empty() {
                out.push((id, toggled));
            }
        }
        out
    }

    /// Sources that are something else now leave those that were like them and
    /// join others; rules that become one may go elsewhere by that.
    pub(super) fn regroup(&mut self, dirty: &BTreeSet<Id<Source>>, touched: &mut Touched) {
        let mut around: BTreeSet<Id<Source>> = BTreeSet::new();
        let lookup = Lookup {
            meanings: &self.meanings,
            postures: &self.postures,
            network: &self.network,
        };
        let mut hashes: BTreeSet<u64> = BTreeSet::new();
        for id in dirty {
            let Some(source) = self.sources.get_mut(*id) else {
                continue;
            };
            let before = source.hash;
            source.seal(lookup);
            let after = source.hash;
            hashes.extend([before, after]);
            if before == after {
                continue;
            }
            if let Some(bucket) = self.alike.get_mut(&before) {
                bucket.remove(id);
                if bucket.is_empty() {
                    self.alike.remove(&before);
                } else if let Some(bucket) = self.alike.get(&before) {
                    around.extend(bucket);
                }
            }
            self.alike.entry(after).or_default().insert(*id);
        }
        for hash in hashes {
            around.extend(self.alike.get(&hash).into_iter().flatten());
        }
        for item in self.find_places(&around) {
            if let Some(item) = self.items.get(item) {
                touched.filters.unite(&item.reached);
            }
        }
    }
}

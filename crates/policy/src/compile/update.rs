//! Applies changes of nodes and users.

use std::collections::{BTreeMap, BTreeSet};

use warren_control_types::{NodeId, UserId};

use super::Compiled;
use super::arena::Id;
use super::bits::{Bits, Slot};
use super::impact::{Impact, SlotImpact};
use super::network::{NodeChange, NodeEntry};
use super::propagate::NetworkChange;
use super::resolved::SelectorKind;
use super::rules::RuleKind;
use super::source::Source;
use crate::node::{PolicyNode, PolicyUser};

impl Compiled {
    /// Adds or changes a node.
    pub fn update_node(&mut self, node: PolicyNode) -> Impact {
        let old = self.network.slot(node.id);
        if old
            .and_then(|slot| self.network.get(slot))
            .map(|own| &own.node)
            == Some(&node)
        {
            return Impact::default();
        }
        let before = old.map(|slot| self.view(slot)).unwrap_or_default();
        let moved = self.network.put(node);
        self.node_moved(moved, before)
    }

    /// Removes a node.
    pub fn remove_node(&mut self, node: NodeId) -> Impact {
        let Some(slot) = self.network.slot(node) else {
            return Impact::default();
        };
        let before = self.view(slot);
        let moved = self.network.take(node);
        self.node_moved(moved, before)
    }

    fn node_moved(&mut self, moved: NodeChange, before: Bits) -> Impact {
        let slot = moved.slot;
        let own = self.network.get(slot);
        let was = moved.before.as_ref();
        let both = was.zip(own);
        let same_addresses = both.is_some_and(|(a, b)| a.node.addresses == b.node.addresses);
        let same_routes = both.is_some_and(|(a, b)| a.node.routes == b.node.routes);
        let was_there = was.is_some();
        let same_user = was.and_then(NodeEntry::user) == own.and_then(NodeEntry::user);
        let old_user = was.and_then(NodeEntry::user);
        let routes = |own: Option<&NodeEntry>| own.is_some_and(|own| !own.node.routes.is_empty());
        let has_routes = routes(was) || routes(own);
        let mut old = was.into_iter().flat_map(|was| &was.spans);
        let overlaid = self.network.is_overlaid(slot)
            || old.any(|address| self.network.any_route_overlaps(address));

        let mut change = NetworkChange {
            node: Some(slot),
            slots: std::iter::once(slot)
                .chain(moved.others.iter().copied())
                .collect(),
            addresses: !same_addresses,
            address_in_subnet: overlaid,
            new_routes: moved.new_routes,
            ..NetworkChange::default()
        };
        let mut passing = BTreeMap::new();
        for (id, posture) in self.postures.iter_mut() {
            let all = posture.all_pass();
            let toggled = posture.refresh(slot, &self.policy, was, own);
            passing.insert(id, (toggled, posture.all_pass() != all));
        }
        for (id, resolved) in self.selectors.iter_mut() {
            if resolved.refresh(slot, own) {
                change.selectors.insert(id, Bits::from_iter([slot]));
            }
        }
        let lookup = self.lookup();
        for (id, source) in self.sources.iter() {
            let Some((toggled, all_toggled)) = passing.get(&source.posture) else {
                continue;
            };
            let asks = lookup.postures.get(source.posture);
            if asks.is_none_or(|posture| posture.names.is_empty()) {
                continue;
            }
            let all_pass = asks.is_some_and(|posture| posture.all_pass());
            let hangs = |own: Option<&NodeEntry>| {
                own.is_some_and(|own| source.depends_on_posture_of(own, lookup))
            };
            let of_address = (!all_pass || *all_toggled)
                && (*toggled || !same_addresses)
                && (hangs(was) || hangs(own));
            if *all_toggled || of_address {
                change.rebuilt.insert(id);
            }
        }
        let mut impact = self.propagate(&change);
        let after = self.view(slot);
        // Nodes that see it now and did not before, or the reverse.
        let seen = before.difference(&after);
        let came_or_went = !was_there || !self.network.present.get(slot);
        if !seen.is_empty() || came_or_went {
            impact.peers.insert(slot);
        }
        if came_or_went || !same_addresses || !same_routes {
            impact.filters.insert(slot);
            impact.routes.insert(slot);
        }
        let mut routed = Bits::default();
        let another =
            came_or_went || !same_addresses || !same_routes || !change.selectors.is_empty();
        if has_routes && another {
            routed = before.or(&after);
            self.add_via_impact(slot, &change, &mut impact);
        }
        if !same_addresses || !same_user {
            self.add_own_user_impact(slot, old_user, &mut impact);
        }
        self.checked();
        self.impact_of(&impact, [&seen, &routed])
    }

    /// The nodes that a change of a node's online state affects: those that use
    /// a router with one of its tags, for which another router may be chosen
    /// now.
    #[must_use]
    pub fn presence_changed(&self, node: NodeId) -> Impact {
        let mut impact = SlotImpact::default();
        if let Some(slot) = self.network.slot(node)
            && self.network.routers.get(slot)
        {
            self.add_via_impact(slot, &NetworkChange::default(), &mut impact);
        }
        let none = Bits::default();
        self.impact_of(&impact, [&none, &none])
    }

    /// Adds the nodes that use routers with the tags of this node: another
    /// router may be chosen for them.
    fn add_via_impact(&self, slot: Slot, change: &NetworkChange, impact: &mut SlotImpact) {
        for (_, compiled) in self.compiled_rules.iter() {
            let (RuleKind::Via { routers, .. } | RuleKind::ViaPeers { routers, .. }) =
                &compiled.kind
            else {
                continue;
            };
            let had = routers.iter().any(|id| change.selectors.contains_key(id));
            if (had || self.lookup().has_tag(routers, slot))
                && let Some(source) = self.sources.get(compiled.source)
            {
                impact.routes.unite(&source.covered);
            }
        }
    }

    /// Adds the nodes that rules of `autogroup:self` relate to this node, or
    /// did before.
    fn add_own_user_impact(&self, slot: Slot, old_user: Option<UserId>, impact: &mut SlotImpact) {
        if !self
            .compiled_rules
            .iter()
            .any(|(_, compiled)| compiled.is_own_user())
        {
            return;
        }
        let new_user = self.network.get(slot).and_then(NodeEntry::user);
        for user in old_user.into_iter().chain(new_user) {
            for fellow in self.network.nodes_of(user) {
                impact.filters.insert(fellow);
            }
        }
        impact.filters.insert(slot);
    }

    /// Replaces the users.
    pub fn update_users(&mut self, users: &[PolicyUser]) -> Impact {
        let now: BTreeMap<UserId, &PolicyUser> = users.iter().map(|user| (user.id, user)).collect();
        let ids: BTreeSet<UserId> = self.users.keys().chain(now.keys()).copied().collect();
        let changed: Vec<UserId> = ids
            .into_iter()
            .filter(|id| self.users.get(id) != now.get(id).copied())
            .collect();
        if changed.is_empty() {
            return Impact::default();
        }
        for id in &changed {
            if let Some(before) = self.users.remove(id) {
                self.names.remove(&before);
            }
            if let Some(user) = now.get(id) {
                self.names.add(user);
                self.users.insert(*id, (*user).clone());
            }
        }
        let mut change = NetworkChange::default();
        for (id, resolved) in self.selectors.iter_mut() {
            let SelectorKind::Users(known) = &mut resolved.kind else {
                continue;
            };
            let mut toggled = Bits::default();
            for user in &changed {
                let now = self.users.get(user);
                let meant =
                    now.is_some_and(|user| self.policy.selects_user(&resolved.selector, user));
                let differs = match meant {
                    true => known.insert(*user),
                    false => known.remove(user),
                };
                for slot in self.network.nodes_of(*user).filter(|_| differs) {
                    resolved.holds.assign(slot, meant);
                    toggled.insert(slot);
                }
            }
            if !toggled.is_empty() {
                change.selectors.insert(id, toggled);
            }
        }
        self.invalidate_sources(&mut change);
        let impact = self.propagate(&change);
        self.checked();
        let none = Bits::default();
        self.impact_of(&impact, [&none, &none])
    }

    /// Marks the sources that contain the changed selectors and postures.
    pub(super) fn invalidate_sources(&self, change: &mut NetworkChange) {
        let turned = |source: &Source| {
            change.postures.contains(&source.posture)
                || source
                    .selectors
                    .iter()
                    .any(|id| change.selectors.contains_key(id))
        };
        let sources = self.sources.iter().filter(|(_, source)| turned(source));
        let whole: BTreeSet<Id<Source>> = sources.map(|(id, _)| id).collect();
        change.rebuilt.extend(whole);
    }
}

//! Changes of nodes and users.

use std::collections::{BTreeMap, BTreeSet};

use warren_control_types::{NodeId, UserId};

use super::Compiled;
use super::affected::{Affected, Touched};
use super::bits::{Bits, Slot};
use super::items::Kind;
use super::meaning::Kind as Means;
use super::network::{Moved, Own};
use super::settle::Change;
use super::source::Source;
use super::table::Id;
use crate::node::{PolicyNode, PolicyUser};

impl Compiled {
    /// A node came, or is another one now.
    pub fn update_node(&mut self, node: PolicyNode) -> Affected {
        let old = self.network.slot(node.id);
        if old
            .and_then(|slot| self.network.get(slot))
            .map(|own| &own.node)
            == Some(&node)
        {
            return Affected::default();
        }
        let before = old.map(|slot| self.view(slot)).unwrap_or_default();
        let moved = self.network.put(node);
        self.node_moved(moved, before)
    }

    /// A node went.
    pub fn remove_node(&mut self, node: NodeId) -> Affected {
        let Some(slot) = self.network.slot(node) else {
            return Affected::default();
        };
        let before = self.view(slot);
        let moved = self.network.take(node);
        self.node_moved(moved, before)
    }

    fn node_moved(&mut self, moved: Moved, before: Bits) -> Affected {
        let slot = moved.slot;
        let own = self.network.get(slot);
        let was = moved.before.as_ref();
        let both = was.zip(own);
        let same_addresses = both.is_some_and(|(a, b)| a.node.addresses == b.node.addresses);
        let same_routes = both.is_some_and(|(a, b)| a.node.routes == b.node.routes);
        let was_there = was.is_some();
        let same_user = was.and_then(Own::user) == own.and_then(Own::user);
        let old_user = was.and_then(Own::user);
        let routes = |own: Option<&Own>| own.is_some_and(|own| !own.node.routes.is_empty());
        let has_routes = routes(was) || routes(own);
        let mut old = was.into_iter().flat_map(|was| &was.spans);
        let overlaid = self.network.is_overlaid(slot)
            || old.any(|address| self.network.any_route_overlaps(address));

        let mut change = Change {
            node: Some(slot),
            slots: std::iter::once(slot)
                .chain(moved.others.iter().copied())
                .collect(),
            addresses: !same_addresses,
            overlaid,
            new_routes: moved.new_routes,
            ..Change::default()
        };
        let mut passing = BTreeMap::new();
        for (id, posture) in self.postures.iter_mut() {
            let all = posture.all_pass();
            let toggled = posture.look_at(slot, &self.policy, was, own);
            passing.insert(id, (toggled, posture.all_pass() != all));
        }
        for (id, meaning) in self.meanings.iter_mut() {
            if meaning.look_at(slot, own) {
                change.turned.insert(id, Bits::from_iter([slot]));
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
            let hangs = |own: Option<&Own>| own.is_some_and(|own| source.hangs_on(own, lookup));
            let of_address = (!all_pass || *all_toggled)
                && (*toggled || !same_addresses)
                && (hangs(was) || hangs(own));
            if *all_toggled || of_address {
                change.whole.insert(id);
            }
        }
        let mut touched = self.settle(&change);
        let after = self.view(slot);
        // Who sees it now and did not, or the reverse.
        let seen = before.difference(&after);
        let came_or_went = !was_there || !self.network.present.get(slot);
        if !seen.is_empty() || came_or_went {
            touched.peers.insert(slot);
        }
        if came_or_went || !same_addresses || !same_routes {
            touched.filters.insert(slot);
            touched.routes.insert(slot);
        }
        let mut routed = Bits::default();
        let another = came_or_went || !same_addresses || !same_routes || !change.turned.is_empty();
        if has_routes && another {
            routed = before.or(&after);
            self.touch_via(slot, &change, &mut touched);
        }
        if !same_addresses || !same_user {
            self.touch_own_user(slot, old_user, &mut touched);
        }
        self.name(&touched, [&seen, &routed])
    }

    /// Whom it concerns that a node came online or went offline: those who use
    /// a router with a tag of it, for whom it may be another one now.
    #[must_use]
    pub fn presence_changed(&self, node: NodeId) -> Affected {
        let mut touched = Touched::default();
        if let Some(slot) = self.network.slot(node)
            && self.network.routers.get(slot)
        {
            self.touch_via(slot, &Change::default(), &mut touched);
        }
        let none = Bits::default();
        self.name(&touched, [&none, &none])
    }

    /// A router may be another one for those who use routers with its tags.
    fn touch_via(&self, slot: Slot, change: &Change, touched: &mut Touched) {
        for (_, item) in self.items.iter() {
            let (Kind::Via { routers, .. } | Kind::ViaPeers { routers, .. }) = &item.kind else {
                continue;
            };
            let had = routers.iter().any(|id| change.turned.contains_key(id));
            if (had || self.lookup().has_tag(routers, slot))
                && let Some(source) = self.sources.get(item.source)
            {
                touched.routes.unite(&source.covered);
            }
        }
    }

    /// The node counts for the rules among the nodes of its user, or did.
    fn touch_own_user(&self, slot: Slot, old_user: Option<UserId>, touched: &mut Touched) {
        if !self.items.iter().any(|(_, item)| item.is_own_user()) {
            return;
        }
        let new_user = self.network.get(slot).and_then(Own::user);
        for user in old_user.into_iter().chain(new_user) {
            for fellow in self.network.nodes_of(user) {
                touched.filters.insert(fellow);
            }
        }
        touched.filters.insert(slot);
    }

    /// These are the users now.
    pub fn update_users(&mut self, users: &[PolicyUser]) -> Affected {
        let now: BTreeMap<UserId, &PolicyUser> = users.iter().map(|user| (user.id, user)).collect();
        let ids: BTreeSet<UserId> = self.users.keys().chain(now.keys()).copied().collect();
        let changed: Vec<UserId> = ids
            .into_iter()
            .filter(|id| self.users.get(id) != now.get(id).copied())
            .collect();
        if changed.is_empty() {
            return Affected::default();
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
        let mut change = Change::default();
        for (id, meaning) in self.meanings.iter_mut() {
            let Means::Users(known) = &mut meaning.kind else {
                continue;
            };
            let mut toggled = Bits::default();
            for user in &changed {
                let now = self.users.get(user);
                let meant =
                    now.is_some_and(|user| self.policy.selects_user(&meaning.selector, user));
                let differs = match meant {
                    true => known.insert(*user),
                    false => known.remove(user),
                };
                for slot in self.network.nodes_of(*user).filter(|_| differs) {
                    meaning.holds.assign(slot, meant);
                    toggled.insert(slot);
                }
            }
            if !toggled.is_empty() {
                change.turned.insert(id, toggled);
            }
        }
        self.meanings_turned(&mut change);
        let touched = self.settle(&change);
        let none = Bits::default();
        self.name(&touched, [&none, &none])
    }

    /// Names the sources that hold the selectors and postures that changed.
    pub(super) fn meanings_turned(&self, change: &mut Change) {
        let turned = |source: &Source| {
            change.posed.contains(&source.posture)
                || source
                    .selectors
                    .iter()
                    .any(|id| change.turned.contains_key(id))
        };
        let sources = self.sources.iter().filter(|(_, source)| turned(source));
        let whole: BTreeSet<Id<Source>> = sources.map(|(id, _)| id).collect();
        change.whole.extend(whole);
    }
}

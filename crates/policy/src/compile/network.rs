//! The current nodes, with indexes by address, user and route.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnet::IpNet;
use warren_control_types::{NodeId, UserId};

use super::bits::{Bits, Slot};
use crate::node::PolicyNode;
use crate::span::{Span, TAILNET, net_text};

/// A node with precomputed texts and ranges.
#[derive(Debug, Clone)]
pub(super) struct NodeEntry {
    pub(super) node: PolicyNode,
    /// Its addresses as text on the wire.
    pub(super) texts: Vec<Arc<str>>,
    /// Its addresses.
    pub(super) spans: Vec<Span>,
    /// Its approved subnet routes.
    pub(super) routes: Vec<Span>,
}

impl NodeEntry {
    fn new(node: PolicyNode) -> Self {
        Self {
            texts: node
                .addresses
                .iter()
                .map(|a| a.to_string().into())
                .collect(),
            spans: node.addresses.iter().map(|a| Span::from(*a)).collect(),
            routes: node.subnet_routes().map(Span::from).collect(),
            node,
        }
    }

    /// The user who owns the node; `None` if it is tagged.
    pub(super) fn user(&self) -> Option<UserId> {
        self.node.user.filter(|_| !self.node.is_tagged())
    }

    /// Whether one of its addresses is in one of the ascending ranges.
    pub(super) fn is_in(&self, spans: &[Span]) -> bool {
        self.spans.iter().any(|own| own.overlaps_any(spans))
    }

    /// Whether one of its subnet routes overlaps one of the ascending ranges.
    pub(super) fn serves(&self, spans: &[Span]) -> bool {
        self.routes.iter().any(|own| own.overlaps_any(spans))
    }

    /// Whether the node, or a host behind it, may have an address in the range.
    pub(super) fn touches(&self, span: &Span) -> bool {
        self.spans
            .iter()
            .chain(&self.routes)
            .any(|own| own.overlaps(span))
    }

    fn has_exit(&self, v6: bool) -> bool {
        self.node
            .exit_routes()
            .any(|exit| Span::from(exit).is_v6() == v6)
    }
}

/// All nodes. A node keeps its slot until it is removed.
#[derive(Debug, Clone, Default)]
pub(super) struct Network {
    slots: Vec<Option<NodeEntry>>,
    free: Vec<Slot>,
    by_id: BTreeMap<NodeId, Slot>,
    /// Every address with the nodes that have it, normally one.
    by_address: BTreeSet<(Span, Slot)>,
    of_user: BTreeMap<UserId, BTreeSet<Slot>>,
    /// Subnet routes with the number of their routers and their text on the
    /// wire.
    routes: BTreeMap<IpNet, (usize, Arc<str>)>,
    /// Other nodes whose addresses lie in a subnet route of this one, or are
    /// its own too. Few networks have any.
    over: BTreeMap<Slot, BTreeSet<Slot>>,
    /// Slots in use.
    pub(super) present: Bits,
    /// Nodes with an address.
    pub(super) addressed: Bits,
    /// Nodes that serve subnets.
    pub(super) routers: Bits,
    /// Nodes with an exit route of either family: IPv4, IPv6.
    pub(super) exits: [Bits; 2],
    /// Nodes with an address or route in the tailnet's own ranges.
    pub(super) in_tailnet: Bits,
    /// Nodes with any address or subnet route.
    pub(super) anywhere: Bits,
    /// Nodes that serve a subnet, or have an address in one that is served.
    pub(super) behind: Bits,
}

/// The effect of adding, changing or removing a node.
#[derive(Debug, Default)]
pub(super) struct NodeChange {
    pub(super) slot: Slot,
    pub(super) before: Option<NodeEntry>,
    /// Other nodes whose relation to the addresses or routes of this node
    /// changed.
    pub(super) others: BTreeSet<Slot>,
    /// A subnet got its first router or lost its last one.
    pub(super) new_routes: bool,
}

impl Network {
    pub(super) fn build(nodes: &[PolicyNode]) -> Self {
        let mut out = Self::default();
        let mut nodes: Vec<&PolicyNode> = nodes.iter().collect();
        nodes.sort_by_key(|node| node.id);
        for node in nodes {
            // If several nodes have the same id, the first one is used.
            if !out.by_id.contains_key(&node.id) {
                out.place(node.id, NodeEntry::new(node.clone()));
            }
        }
        let slots: Vec<Slot> = out.present.iter().collect();
        for slot in slots {
            out.find_over(slot);
        }
        let served: Vec<Span> = out.routes.keys().map(Span::from).collect();
        let mut behind = out.routers.clone();
        for span in served {
            for slot in out.inside(&span) {
                behind.insert(slot);
            }
        }
        out.behind = behind;
        out
    }

    pub(super) fn slot(&self, id: NodeId) -> Option<Slot> {
        self.by_id.get(&id).copied()
    }

    pub(super) fn get(&self, slot: Slot) -> Option<&NodeEntry> {
        self.slots.get(slot)?.as_ref()
    }

    pub(super) fn id(&self, slot: Slot) -> Option<NodeId> {
        self.get(slot).map(|own| own.node.id)
    }

    /// All nodes, ascending by id.
    pub(super) fn all(&self) -> impl Iterator<Item = (Slot, &NodeEntry)> {
        self.by_id
            .values()
            .filter_map(|slot| Some((*slot, self.get(*slot)?)))
    }

    pub(super) fn nodes_of(&self, user: UserId) -> impl Iterator<Item = Slot> + '_ {
        self.of_user.get(&user).into_iter().flatten().copied()
    }

    /// All served subnets with their text on the wire.
    pub(super) fn routes(&self) -> impl Iterator<Item = (&IpNet, &Arc<str>)> {
        self.routes.iter().map(|(route, (_, text))| (route, text))
    }

    pub(super) fn any_route_overlaps(&self, span: &Span) -> bool {
        self.routes
            .keys()
            .any(|route| Span::from(route).overlaps(span))
    }

    /// Nodes with an address in the range; twice for two addresses.
    pub(super) fn inside(&self, span: &Span) -> impl Iterator<Item = Slot> + '_ {
        self.addresses_inside(span).map(|(_, slot)| slot)
    }

    pub(super) fn addresses_inside(&self, span: &Span) -> impl Iterator<Item = (Span, Slot)> + '_ {
        let (first, last) = span.ends();
        self.by_address
            .range((first, 0)..=(last, Slot::MAX))
            .copied()
    }

    /// Nodes with addresses in the ranges, and nodes with subnet routes that
    /// overlap them.
    pub(super) fn touching(&self, spans: &[Span]) -> (Bits, Bits) {
        let holds = spans.iter().flat_map(|span| self.inside(span)).collect();
        let serves = self.routers.iter().filter(|slot| {
            self.get(*slot).is_some_and(|own| {
                own.routes
                    .iter()
                    .any(|r| spans.iter().any(|s| s.overlaps(r)))
            })
        });
        (holds, serves.collect())
    }

    /// Nodes that have, or route, an address of a node in the set.
    pub(super) fn over(&self, set: &Bits) -> Bits {
        let mut out = set.and(&self.addressed);
        for (slot, others) in &self.over {
            if others.iter().any(|other| set.get(*other)) {
                out.insert(*slot);
            }
        }
        out
    }

    pub(super) fn is_over(&self, slot: Slot, set: &Bits) -> bool {
        (set.get(slot) && self.addressed.get(slot))
            || self
                .over
                .get(&slot)
                .is_some_and(|others| others.iter().any(|other| set.get(*other)))
    }

    /// Whether an address of the node lies in a subnet that another one serves.
    pub(super) fn is_overlaid(&self, slot: Slot) -> bool {
        self.behind.get(slot) || self.over.values().any(|others| others.contains(&slot))
    }

    /// Inserts a node, or replaces the one with the same id.
    pub(super) fn put(&mut self, node: PolicyNode) -> NodeChange {
        let id = node.id;
        self.change(id, Some(NodeEntry::new(node)))
    }

    pub(super) fn take(&mut self, id: NodeId) -> NodeChange {
        self.change(id, None)
    }

    fn change(&mut self, id: NodeId, own: Option<NodeEntry>) -> NodeChange {
        let mut moved = NodeChange::default();
        let mut touched: BTreeMap<IpNet, bool> = BTreeMap::new();
        let mut note = |nets: &mut dyn Iterator<Item = &IpNet>, network: &Self| {
            for net in nets {
                let served = network.routes.contains_key(net);
                touched.entry(*net).or_insert(served);
            }
        };
        if let Some(own) = &own {
            note(&mut own.node.subnet_routes(), self);
        }
        let old = self.slot(id);
        if let Some(before) = old.and_then(|slot| self.get(slot)) {
            note(&mut before.node.subnet_routes(), self);
        }
        if let Some(slot) = old {
            moved.others.extend(self.over_whom(slot));
            moved.before = self.vacate(slot);
            moved.slot = slot;
        }
        if let Some(own) = own {
            moved.slot = self.place(id, own);
            self.find_over(moved.slot);
            self.find_under(moved.slot);
            moved.others.extend(self.over_whom(moved.slot));
        }
        let changed: Vec<IpNet> = touched
            .into_iter()
            .filter(|(net, served)| self.routes.contains_key(net) != *served)
            .map(|(net, _)| net)
            .collect();
        moved.new_routes = !changed.is_empty();
        let mut unsure: BTreeSet<Slot> = changed
            .iter()
            .flat_map(|net| self.inside(&Span::from(net)).collect::<Vec<_>>())
            .collect();
        unsure.insert(moved.slot);
        for slot in unsure {
            let behind = self.is_behind(slot);
            if self.behind.assign(slot, behind) {
                moved.others.insert(slot);
            }
        }
        moved.others.remove(&moved.slot);
        moved
    }

    fn is_behind(&self, slot: Slot) -> bool {
        self.routers.get(slot)
            || self.get(slot).is_some_and(|own| {
                let mut addresses = own.spans.iter();
                addresses.any(|address| self.any_route_overlaps(address))
            })
    }

    /// The nodes whose `over` entry contains this one.
    fn over_whom(&self, slot: Slot) -> Vec<Slot> {
        let over = self.over.iter();
        over.filter(|(_, others)| others.contains(&slot))
            .map(|(other, _)| *other)
            .collect()
    }

    /// Computes the `over` entry of this node.
    fn find_over(&mut self, slot: Slot) {
        let Some(own) = self.get(slot) else {
            return;
        };
        let all = own.spans.iter().chain(&own.routes);
        let others: BTreeSet<Slot> = all
            .flat_map(|span| self.inside(span))
            .filter(|other| *other != slot)
            .collect();
        if !others.is_empty() {
            self.over.insert(slot, others);
        }
    }

    /// Adds this node to the `over` entries of other nodes.
    fn find_under(&mut self, slot: Slot) {
        let Some(own) = self.get(slot) else {
            return;
        };
        let touches = |other: &Slot| {
            self.get(*other)
                .is_some_and(|other| own.spans.iter().any(|span| other.touches(span)))
        };
        let same = own.spans.iter().flat_map(|span| self.inside(span));
        let found: BTreeSet<Slot> = same
            .chain(self.routers.iter())
            .filter(|other| *other != slot && touches(other))
            .collect();
        for other in found {
            self.over.entry(other).or_default().insert(slot);
        }
    }

    fn vacate(&mut self, slot: Slot) -> Option<NodeEntry> {
        let own = self.slots.get_mut(slot)?.take()?;
        self.by_id.remove(&own.node.id);
        self.free.push(slot);
        for span in &own.spans {
            self.by_address.remove(&(*span, slot));
        }
        if let Some(user) = own.user()
            && let Some(nodes) = self.of_user.get_mut(&user)
        {
            nodes.remove(&slot);
            if nodes.is_empty() {
                self.of_user.remove(&user);
            }
        }
        for route in own.node.subnet_routes() {
            if let Some((count, _)) = self.routes.get_mut(route) {
                *count -= 1;
                if *count == 0 {
                    self.routes.remove(route);
                }
            }
        }
        self.over.remove(&slot);
        self.over.retain(|_, others| {
            others.remove(&slot);
            !others.is_empty()
        });
        self.mark(slot, None);
        Some(own)
    }

    fn place(&mut self, id: NodeId, own: NodeEntry) -> Slot {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.by_id.insert(id, slot);
        for span in &own.spans {
            self.by_address.insert((*span, slot));
        }
        if let Some(user) = own.user() {
            self.of_user.entry(user).or_default().insert(slot);
        }
        for route in own.node.subnet_routes() {
            let text = || net_text(route).into();
            let entry = self.routes.entry(*route);
            entry.or_insert_with(|| (0, text())).0 += 1;
        }
        self.mark(slot, Some(&own));
        if let Some(place) = self.slots.get_mut(slot) {
            *place = Some(own);
        }
        slot
    }

    fn mark(&mut self, slot: Slot, own: Option<&NodeEntry>) {
        let is = |what: fn(&NodeEntry) -> bool| own.is_some_and(what);
        self.present.assign(slot, own.is_some());
        self.addressed.assign(slot, is(|own| !own.spans.is_empty()));
        self.routers.assign(slot, is(|own| !own.routes.is_empty()));
        let [v4, v6] = &mut self.exits;
        v4.assign(slot, is(|own| own.has_exit(false)));
        v6.assign(slot, is(|own| own.has_exit(true)));
        let in_tailnet = is(|own| TAILNET.iter().any(|named| own.touches(&named.span)));
        self.in_tailnet.assign(slot, in_tailnet);
        let anywhere = is(|own| !own.spans.is_empty() || !own.routes.is_empty());
        self.anywhere.assign(slot, anywhere);
    }
}

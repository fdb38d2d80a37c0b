//! The tables to which compiled rules and sources refer by id, and the
//! destinations that they look up there.

use ipnet::IpNet;

use super::arena::{Arena, Id};
use super::bits::{Bits, Slot};
use super::network::Network;
use super::posture::Posture;
use super::resolved::{ResolvedSelector, SelectorKind};
use crate::selector::Selector;
use crate::span::{INTERNET, Span, internet_overlaps, net_text};

/// The key type of the ids of compiled rules. Sources list the rules that use
/// them, and rules name their source: the key lets both refer to each other.
#[derive(Debug, Clone)]
pub(super) enum CompiledRuleKey {}

/// The id of a compiled rule.
pub(super) type CompiledRuleId = Id<CompiledRuleKey>;

/// The arenas to which the ids in compiled rules refer.
#[derive(Clone, Copy)]
pub(super) struct Lookup<'a> {
    pub(super) selectors: &'a Arena<ResolvedSelector>,
    pub(super) postures: &'a Arena<Posture>,
    pub(super) network: &'a Network,
}

impl Lookup<'_> {
    pub(super) fn unite_receivers(self, to: Id<ResolvedSelector>, out: &mut Bits) {
        let Some(resolved) = self.selectors.get(to) else {
            return;
        };
        let [v4, v6] = &self.network.exits;
        match &resolved.kind {
            SelectorKind::Any | SelectorKind::DangerAll => out.unite(&self.network.present),
            SelectorKind::Nodes | SelectorKind::Users(_) => out.unite(&resolved.holds),
            SelectorKind::Addresses(_, [public_v4, public_v6]) => {
                out.unite(&resolved.holds);
                out.unite(&resolved.serves);
                if *public_v4 {
                    out.unite(v4);
                }
                if *public_v6 {
                    out.unite(v6);
                }
            }
            SelectorKind::Internet => {
                out.unite(v4);
                out.unite(v6);
            }
            SelectorKind::Nothing => {}
        }
    }

    /// Whether a rule with this destination belongs in the node's filter.
    pub(super) fn receives(self, to: Id<ResolvedSelector>, slot: Slot) -> bool {
        let [v4, v6] = &self.network.exits;
        self.selectors
            .get(to)
            .is_some_and(|resolved| match &resolved.kind {
                SelectorKind::Any | SelectorKind::DangerAll => self.network.present.get(slot),
                SelectorKind::Nodes | SelectorKind::Users(_) => resolved.holds.get(slot),
                SelectorKind::Addresses(_, [public_v4, public_v6]) => {
                    resolved.holds.get(slot)
                        || resolved.serves.get(slot)
                        || (*public_v4 && v4.get(slot))
                        || (*public_v6 && v6.get(slot))
                }
                SelectorKind::Internet => v4.get(slot) || v6.get(slot),
                SelectorKind::Nothing => false,
            })
    }

    pub(super) fn tagged(self, routers: &[Id<ResolvedSelector>]) -> Bits {
        let mut out = Bits::default();
        for tag in routers.iter().filter_map(|id| self.selectors.get(*id)) {
            out.unite(&tag.holds);
        }
        out
    }

    /// Whether the node has one of the tags.
    pub(super) fn has_tag(self, routers: &[Id<ResolvedSelector>], slot: Slot) -> bool {
        let mut tags = routers.iter().filter_map(|id| self.selectors.get(*id));
        tags.any(|tag| tag.holds.get(slot))
    }

    pub(super) fn unite_served(self, to: Id<ResolvedSelector>, out: &mut Bits) {
        let Some(resolved) = self.selectors.get(to) else {
            return;
        };
        match &resolved.kind {
            SelectorKind::Addresses(..) => out.unite(&resolved.serves),
            SelectorKind::Internet => self.network.exits.iter().for_each(|exit| out.unite(exit)),
            SelectorKind::Any | SelectorKind::DangerAll => out.unite(&self.network.routers),
            SelectorKind::Nodes | SelectorKind::Users(_) | SelectorKind::Nothing => {}
        }
    }

    /// Whether the node routes to the destination.
    pub(super) fn is_served(self, to: Id<ResolvedSelector>, slot: Slot) -> bool {
        self.selectors
            .get(to)
            .is_some_and(|resolved| match &resolved.kind {
                SelectorKind::Addresses(..) => resolved.serves.get(slot),
                SelectorKind::Internet => self.network.exits.iter().any(|exit| exit.get(slot)),
                SelectorKind::Any | SelectorKind::DangerAll => self.network.routers.get(slot),
                SelectorKind::Nodes | SelectorKind::Users(_) | SelectorKind::Nothing => false,
            })
    }

    pub(super) fn unite_granted(self, to: Id<ResolvedSelector>, posed: bool, out: &mut Bits) {
        let Some(resolved) = self.selectors.get(to) else {
            return;
        };
        match &resolved.kind {
            SelectorKind::Any => out.unite(&self.network.addressed),
            SelectorKind::DangerAll if !posed => out.unite(&self.network.addressed),
            SelectorKind::Nodes | SelectorKind::Users(_) => {
                out.unite(&resolved.holds.and(&self.network.addressed));
            }
            SelectorKind::Addresses(..) => {
                out.unite(&resolved.holds);
                if !posed {
                    out.unite(&resolved.serves);
                }
            }
            SelectorKind::DangerAll | SelectorKind::Internet | SelectorKind::Nothing => {}
        }
    }

    /// Whether capabilities apply to any address on the node.
    pub(super) fn granted(self, to: Id<ResolvedSelector>, posed: bool, slot: Slot) -> bool {
        let addressed = || self.network.addressed.get(slot);
        self.selectors
            .get(to)
            .is_some_and(|resolved| match &resolved.kind {
                SelectorKind::Any => addressed(),
                SelectorKind::DangerAll => !posed && addressed(),
                SelectorKind::Nodes | SelectorKind::Users(_) => {
                    addressed() && resolved.holds.get(slot)
                }
                SelectorKind::Addresses(..) => {
                    resolved.holds.get(slot) || (!posed && resolved.serves.get(slot))
                }
                SelectorKind::Internet | SelectorKind::Nothing => false,
            })
    }

    /// The text on the wire of the destination on a node.
    pub(super) fn texts_on(self, to: Id<ResolvedSelector>, slot: Slot) -> Vec<String> {
        let Some(resolved) = self.selectors.get(to) else {
            return Vec::new();
        };
        let Some(own) = self.network.get(slot).filter(|_| self.receives(to, slot)) else {
            return Vec::new();
        };
        match (&resolved.kind, &resolved.selector) {
            (SelectorKind::Nodes | SelectorKind::Users(_), _) => {
                own.texts.iter().map(ToString::to_string).collect()
            }
            (SelectorKind::Addresses(spans, _), Selector::Set(_)) => {
                let [v4, v6] = &self.network.exits;
                let here = spans.iter().filter(|span| {
                    let exit = if span.is_v6() { v6 } else { v4 };
                    own.touches(span) || (exit.get(slot) && internet_overlaps(span))
                });
                here.map(Span::text).collect()
            }
            _ => self.literal(to),
        }
    }

    /// The destination as written, for `*`, addresses and the internet.
    pub(super) fn literal(self, to: Id<ResolvedSelector>) -> Vec<String> {
        let selector = self.selectors.get(to).map(|resolved| &resolved.selector);
        match selector {
            Some(Selector::Any | Selector::DangerAll) => vec!["*".to_owned()],
            Some(Selector::Net(net)) => vec![net_text(net)],
            Some(Selector::Set(set)) => set.spans.iter().map(Span::text).collect(),
            Some(Selector::Internet) => {
                INTERNET.iter().map(|named| named.text.to_owned()).collect()
            }
            _ => Vec::new(),
        }
    }

    /// The prefixes on a node to which capabilities apply: the matched
    /// addresses of its own, and the named prefix if the node routes it. With a
    /// posture, all its addresses if one of them is matched.
    pub(super) fn prefixes_on(
        self,
        to: Id<ResolvedSelector>,
        posture: Option<Id<Posture>>,
        slot: Slot,
    ) -> Vec<IpNet> {
        let (Some(resolved), Some(own)) = (self.selectors.get(to), self.network.get(slot)) else {
            return Vec::new();
        };
        let addresses = || own.node.addresses.iter().map(|a| IpNet::from(*a));
        if let Some(posture) = posture {
            let passes = self
                .postures
                .get(posture)
                .is_some_and(|p| p.passes.get(slot));
            let meant = passes && self.granted(to, true, slot);
            return if meant {
                addresses().collect()
            } else {
                Vec::new()
            };
        }
        match (&resolved.kind, &resolved.selector) {
            (SelectorKind::Any | SelectorKind::DangerAll, _) => addresses().collect(),
            (SelectorKind::Nodes | SelectorKind::Users(_), _) if resolved.holds.get(slot) => {
                addresses().collect()
            }
            (SelectorKind::Addresses(..), Selector::Net(net)) if resolved.serves.get(slot) => {
                vec![*net]
            }
            (SelectorKind::Addresses(spans, _), selector) => {
                let meant = |own: &IpNet| Span::from(own).overlaps_any(spans);
                let mut out: Vec<IpNet> = addresses().filter(meant).collect();
                if matches!(selector, Selector::Set(_)) {
                    let serves = |span: &&Span| own.routes.iter().any(|r| r.overlaps(span));
                    out.extend(spans.iter().filter(serves).flat_map(Span::nets));
                }
                out
            }
            (
                SelectorKind::Nodes
                | SelectorKind::Users(_)
                | SelectorKind::Internet
                | SelectorKind::Nothing,
                _,
            ) => Vec::new(),
        }
    }

    /// Whether a packet to somewhere in `route` may match.
    pub(super) fn overlaps(self, to: Id<ResolvedSelector>, route: &Span) -> bool {
        self.selectors
            .get(to)
            .is_some_and(|resolved| match &resolved.kind {
                SelectorKind::Any | SelectorKind::DangerAll => true,
                SelectorKind::Addresses(spans, _) => route.overlaps_any(spans),
                SelectorKind::Internet => internet_overlaps(route),
                SelectorKind::Nodes | SelectorKind::Users(_) | SelectorKind::Nothing => false,
            })
    }

    /// Whether the destination holds public addresses, as an exit node serves
    /// them.
    pub(super) fn is_internet(self, to: Id<ResolvedSelector>) -> bool {
        self.selectors
            .get(to)
            .is_some_and(|resolved| match &resolved.kind {
                SelectorKind::Any | SelectorKind::DangerAll | SelectorKind::Internet => true,
                SelectorKind::Addresses(_, [v4, v6]) => *v4 || *v6,
                SelectorKind::Nodes | SelectorKind::Users(_) | SelectorKind::Nothing => false,
            })
    }
}

//! What a rule of the file becomes: items, each with one source.

use std::sync::Arc;

use ipnet::IpNet;
use warren_control_types::{CapMap, NetPortRange, PortRange};

use super::Compiled;
use super::bits::{Bits, Slot};
use super::meaning::{Kind as Means, Meaning};
use super::network::Network;
use super::source::{Posture, Source};
use super::table::{Id, Table};
use crate::policy::{Reach, Rule};
use crate::selector::{Ports, Selector};
use crate::span::{INTERNET, Span, internet_overlaps, net_text};

pub(super) type ItemId = Id<Item>;

/// One rule before it is reduced to a node.
#[derive(Debug, Clone)]
pub(super) struct Item {
    /// The rule of the file, and which of its items this is.
    pub(super) rule: Id<Entry>,
    pub(super) nth: usize,
    /// Tells it from all others there ever were.
    pub(super) serial: u64,
    pub(super) source: Id<Source>,
    pub(super) kind: Kind,
    /// Nodes whose filter it is in, or that are peers for its sake. What
    /// speaks of the nodes of one user reaches nobody in this sense.
    pub(super) reached: Bits,
}

/// A rule of the file.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) rule: Rule,
    pub(super) items: Vec<ItemId>,
}

/// A destination and its ports.
pub(super) type To = (Id<Meaning>, Arc<[Ports]>);

#[derive(Debug, Clone)]
pub(super) enum Kind {
    /// Ports; several of equal sources and protocol become one.
    Ports { protocol: Option<u8>, to: Vec<To> },
    /// Ports on the nodes of the source's own user.
    OwnUser {
        protocol: Option<u8>,
        ports: Arc<[Ports]>,
    },
    /// Ports behind routers with one of some tags.
    Via {
        protocol: Option<u8>,
        to: Vec<To>,
        routers: Vec<Id<Meaning>>,
    },
    /// Capabilities. With a posture, only on nodes that have it, by what they
    /// are or by an address.
    Capabilities {
        to: Vec<Id<Meaning>>,
        map: CapMap,
        posture: Option<Id<Posture>>,
    },
    /// Capabilities among the nodes of the source's own user.
    OwnUserCapabilities { map: CapMap },
    /// Capabilities by way of routers: no rule, but the routers are peers.
    ViaPeers {
        to: Vec<Id<Meaning>>,
        routers: Vec<Id<Meaning>>,
    },
}

/// Capabilities that need a counterpart in the other direction.
const COMPANIONS: [(&str, &str); 2] = [
    ("tailscale.com/cap/drive", "tailscale.com/cap/drive-sharer"),
    ("tailscale.com/cap/relay", "tailscale.com/cap/relay-target"),
];

impl Item {
    /// Whether it speaks of the nodes of one user.
    pub(super) fn is_own_user(&self) -> bool {
        matches!(
            self.kind,
            Kind::OwnUser { .. } | Kind::OwnUserCapabilities { .. }
        )
    }
}

impl Kind {
    /// Whether a selector, or the tag of a router, is one of those sought.
    pub(super) fn any_meaning(&self, mut sought: impl FnMut(Id<Meaning>) -> bool) -> bool {
        match self {
            Self::Ports { to, .. } => to.iter().any(|(to, _)| sought(*to)),
            Self::Via { to, routers, .. } => {
                to.iter().any(|(to, _)| sought(*to)) || routers.iter().any(|tag| sought(*tag))
            }
            Self::Capabilities { to, .. } => to.iter().any(|to| sought(*to)),
            Self::ViaPeers { to, routers } => to.iter().chain(routers).any(|id| sought(*id)),
            Self::OwnUser { .. } | Self::OwnUserCapabilities { .. } => false,
        }
    }
}

/// Where items look up what they hold.
#[derive(Clone, Copy)]
pub(super) struct Lookup<'a> {
    pub(super) meanings: &'a Table<Meaning>,
    pub(super) postures: &'a Table<Posture>,
    pub(super) network: &'a Network,
}

impl Lookup<'_> {
    /// Nodes that the item reaches, of all.
    pub(super) fn reached(self, kind: &Kind) -> Bits {
        let mut out = Bits::default();
        match kind {
            Kind::Ports { to, .. } => {
                for (to, _) in to {
                    self.unite_receivers(*to, &mut out);
                }
            }
            Kind::Via { to, routers, .. } => {
                for (to, _) in to {
                    self.unite_served(*to, &mut out);
                }
                out.intersect(&self.tagged(routers));
            }
            Kind::ViaPeers { to, routers } => {
                for to in to {
                    self.unite_served(*to, &mut out);
                }
                out.intersect(&self.tagged(routers));
            }
            Kind::Capabilities { to, posture, .. } => {
                for to in to {
                    self.unite_granted(*to, posture.is_some(), &mut out);
                }
                if let Some(posture) = posture.and_then(|id| self.postures.get(id)) {
                    out.intersect(&posture.passes);
                }
                out.intersect(&self.network.addressed.or(&self.network.routers));
            }
            Kind::OwnUser { .. } | Kind::OwnUserCapabilities { .. } => {}
        }
        out.shrink();
        out
    }

    /// Whether the item reaches the node.
    pub(super) fn reaches(self, kind: &Kind, slot: Slot) -> bool {
        match kind {
            Kind::Ports { to, .. } => to.iter().any(|(to, _)| self.receives(*to, slot)),
            Kind::Via { to, routers, .. } => {
                self.has_tag(routers, slot) && to.iter().any(|(to, _)| self.is_served(*to, slot))
            }
            Kind::ViaPeers { to, routers } => {
                self.has_tag(routers, slot) && to.iter().any(|to| self.is_served(*to, slot))
            }
            Kind::Capabilities { to, posture, .. } => {
                let network = self.network;
                let posed = posture.and_then(|id| self.postures.get(id));
                (network.addressed.get(slot) || network.routers.get(slot))
                    && posed.is_none_or(|posture| posture.passes.get(slot))
                    && to.iter().any(|to| self.granted(*to, posed.is_some(), slot))
            }
            Kind::OwnUser { .. } | Kind::OwnUserCapabilities { .. } => false,
        }
    }

    fn unite_receivers(self, to: Id<Meaning>, out: &mut Bits) {
        let Some(meaning) = self.meanings.get(to) else {
            return;
        };
        let [v4, v6] = &self.network.exits;
        match &meaning.kind {
            Means::Any | Means::DangerAll => out.unite(&self.network.present),
            Means::Nodes | Means::Users(_) => out.unite(&meaning.holds),
            Means::Addresses(_, [public_v4, public_v6]) => {
                out.unite(&meaning.holds);
                out.unite(&meaning.serves);
                if *public_v4 {
                    out.unite(v4);
                }
                if *public_v6 {
                    out.unite(v6);
                }
            }
            Means::Internet => {
                out.unite(v4);
                out.unite(v6);
            }
            Means::Nobody => {}
        }
    }

    /// Whether a rule with this destination belongs into the node's filter.
    pub(super) fn receives(self, to: Id<Meaning>, slot: Slot) -> bool {
        let [v4, v6] = &self.network.exits;
        self.meanings
            .get(to)
            .is_some_and(|meaning| match &meaning.kind {
                Means::Any | Means::DangerAll => self.network.present.get(slot),
                Means::Nodes | Means::Users(_) => meaning.holds.get(slot),
                Means::Addresses(_, [public_v4, public_v6]) => {
                    meaning.holds.get(slot)
                        || meaning.serves.get(slot)
                        || (*public_v4 && v4.get(slot))
                        || (*public_v6 && v6.get(slot))
                }
                Means::Internet => v4.get(slot) || v6.get(slot),
                Means::Nobody => false,
            })
    }

    fn tagged(self, routers: &[Id<Meaning>]) -> Bits {
        let mut out = Bits::default();
        for tag in routers.iter().filter_map(|id| self.meanings.get(*id)) {
            out.unite(&tag.holds);
        }
        out
    }

    /// Whether the node has one of the tags.
    pub(super) fn has_tag(self, routers: &[Id<Meaning>], slot: Slot) -> bool {
        let mut tags = routers.iter().filter_map(|id| self.meanings.get(*id));
        tags.any(|tag| tag.holds.get(slot))
    }

    fn unite_served(self, to: Id<Meaning>, out: &mut Bits) {
        let Some(meaning) = self.meanings.get(to) else {
            return;
        };
        match &meaning.kind {
            Means::Addresses(..) => out.unite(&meaning.serves),
            Means::Internet => self.network.exits.iter().for_each(|exit| out.unite(exit)),
            Means::Any | Means::DangerAll => out.unite(&self.network.routers),
            Means::Nodes | Means::Users(_) | Means::Nobody => {}
        }
    }

    /// Whether the node routes to the destination.
    pub(super) fn is_served(self, to: Id<Meaning>, slot: Slot) -> bool {
        self.meanings
            .get(to)
            .is_some_and(|meaning| match &meaning.kind {
                Means::Addresses(..) => meaning.serves.get(slot),
                Means::Internet => self.network.exits.iter().any(|exit| exit.get(slot)),
                Means::Any | Means::DangerAll => self.network.routers.get(slot),
                Means::Nodes | Means::Users(_) | Means::Nobody => false,
            })
    }

    fn unite_granted(self, to: Id<Meaning>, posed: bool, out: &mut Bits) {
        let Some(meaning) = self.meanings.get(to) else {
            return;
        };
        match &meaning.kind {
            Means::Any => out.unite(&self.network.addressed),
            Means::DangerAll if !posed => out.unite(&self.network.addressed),
            Means::Nodes | Means::Users(_) => {
                out.unite(&meaning.holds.and(&self.network.addressed));
            }
            Means::Addresses(..) => {
                out.unite(&meaning.holds);
                if !posed {
                    out.unite(&meaning.serves);
                }
            }
            Means::DangerAll | Means::Internet | Means::Nobody => {}
        }
    }

    /// Whether capabilities hold for anything on the node.
    fn granted(self, to: Id<Meaning>, posed: bool, slot: Slot) -> bool {
        let addressed = || self.network.addressed.get(slot);
        self.meanings
            .get(to)
            .is_some_and(|meaning| match &meaning.kind {
                Means::Any => addressed(),
                Means::DangerAll => !posed && addressed(),
                Means::Nodes | Means::Users(_) => addressed() && meaning.holds.get(slot),
                Means::Addresses(..) => {
                    meaning.holds.get(slot) || (!posed && meaning.serves.get(slot))
                }
                Means::Internet | Means::Nobody => false,
            })
    }

    /// The destination on a node that it reaches, as it goes on the wire.
    pub(super) fn texts_on(self, to: Id<Meaning>, slot: Slot) -> Vec<String> {
        let Some(meaning) = self.meanings.get(to) else {
            return Vec::new();
        };
        let Some(own) = self.network.get(slot).filter(|_| self.receives(to, slot)) else {
            return Vec::new();
        };
        match (&meaning.kind, &meaning.selector) {
            (Means::Nodes | Means::Users(_), _) => {
                own.texts.iter().map(ToString::to_string).collect()
            }
            (Means::Addresses(spans, _), Selector::Set(_)) => {
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
    pub(super) fn literal(self, to: Id<Meaning>) -> Vec<String> {
        let selector = self.meanings.get(to).map(|meaning| &meaning.selector);
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

    /// The prefixes on a node that capabilities hold for: its own addresses as
    /// far as they are meant, and the written prefix where it serves it. Where
    /// a posture is asked, all its addresses if one is meant.
    pub(super) fn prefixes_on(
        self,
        to: Id<Meaning>,
        posture: Option<Id<Posture>>,
        slot: Slot,
    ) -> Vec<IpNet> {
        let (Some(meaning), Some(own)) = (self.meanings.get(to), self.network.get(slot)) else {
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
        match (&meaning.kind, &meaning.selector) {
            (Means::Any | Means::DangerAll, _) => addresses().collect(),
            (Means::Nodes | Means::Users(_), _) if meaning.holds.get(slot) => addresses().collect(),
            (Means::Addresses(..), Selector::Net(net)) if meaning.serves.get(slot) => vec![*net],
            (Means::Addresses(spans, _), selector) => {
                let meant = |own: &IpNet| Span::from(own).overlaps_any(spans);
                let mut out: Vec<IpNet> = addresses().filter(meant).collect();
                if matches!(selector, Selector::Set(_)) {
                    let serves = |span: &&Span| own.routes.iter().any(|r| r.overlaps(span));
                    out.extend(spans.iter().filter(serves).flat_map(Span::nets));
                }
                out
            }
            (Means::Nodes | Means::Users(_) | Means::Internet | Means::Nobody, _) => Vec::new(),
        }
    }

    /// Whether a packet to somewhere in `route` may match.
    pub(super) fn overlaps(self, to: Id<Meaning>, route: &Span) -> bool {
        self.meanings
            .get(to)
            .is_some_and(|meaning| match &meaning.kind {
                Means::Any | Means::DangerAll => true,
                Means::Addresses(spans, _) => route.overlaps_any(spans),
                Means::Internet => internet_overlaps(route),
                Means::Nodes | Means::Users(_) | Means::Nobody => false,
            })
    }

    /// Whether the destination holds public addresses, as an exit node serves
    /// them.
    pub(super) fn is_internet(self, to: Id<Meaning>) -> bool {
        self.meanings
            .get(to)
            .is_some_and(|meaning| match &meaning.kind {
                Means::Any | Means::DangerAll | Means::Internet => true,
                Means::Addresses(_, [v4, v6]) => *v4 || *v6,
                Means::Nodes | Means::Users(_) | Means::Nobody => false,
            })
    }
}

pub(super) fn destinations(texts: &[String], ports: &[Ports]) -> Vec<NetPortRange> {
    let pairs = texts
        .iter()
        .flat_map(|text| ports.iter().map(move |ports| (text, ports)));
    pairs
        .map(|(text, ports)| NetPortRange {
            ip: text.clone(),
            ports: PortRange {
                first: ports.first,
                last: ports.last,
            },
            ..NetPortRange::default()
        })
        .collect()
}

impl Compiled {
    /// Takes up a rule of the file.
    pub(super) fn add_rule(&mut self, rule: &Rule) -> Id<Entry> {
        let entry = self.rules.add(Entry {
            rule: rule.clone(),
            items: Vec::new(),
        });
        let source = self.source(&rule.sources, &rule.postures);
        for reach in &rule.reach {
            self.add_reach(entry, source, reach, &rule.via);
        }
        if rule.app.is_empty() {
            return entry;
        }
        if rule.via.is_empty() {
            self.add_capabilities(entry, source, rule);
        } else if rule.reach.is_empty() {
            let to = self.meanings_of(&rule.app_to);
            let routers = self.routers(&rule.via);
            self.add_item(entry, source, Kind::ViaPeers { to, routers });
        }
        entry
    }

    fn add_reach(&mut self, entry: Id<Entry>, source: Id<Source>, reach: &Reach, via: &[String]) {
        let protocol = reach.protocol;
        let ports: Arc<[Ports]> = reach.ports.as_slice().into();
        let mut to = Vec::new();
        for selector in &reach.to {
            if *selector == Selector::OwnUser {
                let ports = ports.clone();
                self.add_item(entry, source, Kind::OwnUser { protocol, ports });
            } else {
                to.push((self.meaning(selector), ports.clone()));
            }
        }
        if to.is_empty() {
            return;
        }
        let kind = if via.is_empty() {
            Kind::Ports { protocol, to }
        } else {
            Kind::Via {
                protocol,
                to,
                routers: self.routers(via),
            }
        };
        self.add_item(entry, source, kind);
    }

    /// The capability rule of a grant, and the counterparts it needs.
    fn add_capabilities(&mut self, entry: Id<Entry>, source: Id<Source>, rule: &Rule) {
        let (own, others): (Vec<_>, Vec<_>) = rule
            .app_to
            .iter()
            .cloned()
            .partition(|selector| *selector == Selector::OwnUser);
        let map = CapMap(rule.app.iter().cloned().collect());
        let own = !own.is_empty();
        let to = self.meanings_of(&others);
        self.add_grant(entry, source, to, None, own, map);
        for (name, counterpart) in COMPANIONS {
            if !rule.app.iter().any(|(granted, _)| granted == name) {
                continue;
            }
            let map = CapMap([(counterpart.to_owned(), Vec::new())].into());
            if !others.is_empty() {
                let reversed = self.source(&others, &[]);
                let posed = !rule.postures.is_empty();
                let posture = posed.then(|| self.posture(&rule.postures));
                let to = self.meanings_of(&rule.sources);
                self.add_grant(entry, reversed, to, posture, false, map.clone());
            }
            // Among the nodes of one user both directions look the same.
            self.add_grant(entry, source, Vec::new(), None, own, map);
        }
    }

    fn add_grant(
        &mut self,
        entry: Id<Entry>,
        source: Id<Source>,
        to: Vec<Id<Meaning>>,
        posture: Option<Id<Posture>>,
        own_user: bool,
        map: CapMap,
    ) {
        if own_user {
            let map = map.clone();
            self.add_item(entry, source, Kind::OwnUserCapabilities { map });
        }
        if !to.is_empty() {
            self.add_item(entry, source, Kind::Capabilities { to, map, posture });
        }
    }

    fn add_item(&mut self, rule: Id<Entry>, source: Id<Source>, kind: Kind) {
        let reached = self.lookup().reached(&kind);
        self.serials += 1;
        let nth = self.rules.get(rule).map_or(0, |entry| entry.items.len());
        let id = self.items.add(Item {
            rule,
            nth,
            serial: self.serials,
            source,
            kind,
            reached,
        });
        if let Some(entry) = self.rules.get_mut(rule) {
            entry.items.push(id);
        }
        if let Some(source) = self.sources.get_mut(source) {
            source.items.insert(id);
        }
    }

    fn meanings_of(&mut self, selectors: &[Selector]) -> Vec<Id<Meaning>> {
        selectors.iter().map(|one| self.meaning(one)).collect()
    }

    fn routers(&mut self, tags: &[String]) -> Vec<Id<Meaning>> {
        let tags = tags.iter().cloned().map(Selector::Tag);
        tags.map(|tag| self.meaning(&tag)).collect()
    }

    fn meaning(&mut self, selector: &Selector) -> Id<Meaning> {
        if let Some(id) = self.meaning_ids.get(selector) {
            return *id;
        }
        let meaning = self.resolve(selector);
        let id = self.meanings.add(meaning);
        self.meaning_ids.insert(selector.clone(), id);
        id
    }

    fn posture(&mut self, names: &[String]) -> Id<Posture> {
        let mut names = names.to_vec();
        names.sort_unstable();
        names.dedup();
        if let Some(id) = self.posture_ids.get(&names) {
            return *id;
        }
        let posture = Posture::resolve(&names, &self.policy, &self.network);
        let id = self.postures.add(posture);
        self.posture_ids.insert(names, id);
        id
    }

    fn source(&mut self, selectors: &[Selector], postures: &[String]) -> Id<Source> {
        let mut selectors = self.meanings_of(selectors);
        selectors.sort_unstable();
        selectors.dedup();
        let key = (selectors, self.posture(postures));
        if let Some(id) = self.source_ids.get(&key) {
            return *id;
        }
        let source = Source::new(key.0.clone(), key.1, self.lookup());
        let hash = source.hash;
        let id = self.sources.add(source);
        self.alike.entry(hash).or_default().insert(id);
        self.source_ids.insert(key, id);
        id
    }
}

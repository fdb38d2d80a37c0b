//! The filter of one node.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use warren_control_types::{CapGrant, CapMap, FilterRule, NetPortRange, NodeId};

use super::Compiled;
use super::bits::Slot;
use super::items::{Item, ItemId, Kind, destinations};
use super::source::Source;
use super::table::Id;

/// Where an item goes: the rank of its rule, and which of its items it is.
type Place = (usize, usize);

impl Compiled {
    /// The rules for `node`: those that reach its addresses, the routes it
    /// serves, or the internet through it. Empty: nothing may reach it.
    #[must_use]
    pub fn filter_for(&self, node: NodeId) -> Vec<FilterRule> {
        let Some(slot) = self.network.slot(node) else {
            return Vec::new();
        };
        let mut items: Vec<(Place, Place, &Item)> = self
            .items
            .iter()
            .filter(|(_, item)| item.reached.get(slot) || item.is_own_user())
            .map(|(_, item)| (self.merged_place(item), self.place(item), item))
            .collect();
        items.sort_unstable_by_key(|(merged, own, _)| (*merged, *own));
        let mut out: Vec<FilterRule> = Vec::new();
        // Self rules of one node merge like the general ones.
        let mut own: BTreeMap<(Vec<String>, Vec<i64>), usize> = BTreeMap::new();
        let mut open: Option<Place> = None;
        for (merged, _, item) in items {
            let Some(to) = self.what_for(item, slot) else {
                continue;
            };
            if matches!(item.kind, Kind::Ports { .. })
                && open == Some(merged)
                && let Some(earlier) = out.last_mut()
            {
                earlier.dst_ports.extend(to.dst_ports);
                continue;
            }
            let src_ips = match item.is_own_user() {
                true => self.own_user_texts(item.source, slot),
                false => self.source_texts(item.source),
            };
            let may_be_empty = matches!(item.kind, Kind::Capabilities { .. });
            if src_ips.is_empty() && !may_be_empty {
                continue;
            }
            if let Kind::OwnUser { .. } = item.kind {
                let key = (src_ips.clone(), to.ip_proto.clone());
                if let Some(earlier) = own.get(&key).and_then(|at| out.get_mut(*at)) {
                    earlier.dst_ports.extend(to.dst_ports);
                    continue;
                }
                own.insert(key, out.len());
            }
            open = matches!(item.kind, Kind::Ports { .. }).then_some(merged);
            out.push(FilterRule { src_ips, ..to });
        }
        out
    }

    pub(super) fn place(&self, item: &Item) -> Place {
        let rank = self.rank.get(&item.rule).copied();
        (rank.unwrap_or(usize::MAX), item.nth)
    }

    /// The place of the first item that becomes one rule with this one.
    fn merged_place(&self, item: &Item) -> Place {
        let Kind::Ports { protocol, .. } = item.kind else {
            return self.place(item);
        };
        let first = self.places.get(&(item.source, protocol));
        let first = first.and_then(|(first, _)| self.items.get(*first));
        first.map_or_else(|| self.place(item), |first| self.place(first))
    }

    /// The rule of an item for a node, without its sources.
    fn what_for(&self, item: &Item, slot: Slot) -> Option<FilterRule> {
        let lookup = self.lookup();
        let (protocol, dst_ports, cap_grant) = match &item.kind {
            Kind::Ports { protocol, to } => {
                let ports = to
                    .iter()
                    .flat_map(|(to, ports)| destinations(&lookup.texts_on(*to, slot), ports));
                (*protocol, ports.collect(), Vec::new())
            }
            Kind::Via { protocol, to, .. } => {
                let served = to.iter().filter(|(to, _)| lookup.is_served(*to, slot));
                let ports =
                    served.flat_map(|(to, ports)| destinations(&lookup.literal(*to), ports));
                (*protocol, ports.collect(), Vec::new())
            }
            Kind::OwnUser { protocol, ports } => {
                let own = self.network.get(slot)?;
                let addresses: Vec<String> = own.texts.iter().map(ToString::to_string).collect();
                (*protocol, destinations(&addresses, ports), Vec::new())
            }
            Kind::Capabilities { to, map, posture } => {
                let grants = to
                    .iter()
                    .map(|to| lookup.prefixes_on(*to, *posture, slot))
                    .filter(|prefixes| !prefixes.is_empty())
                    .map(|dsts| grant(dsts, map));
                (None, Vec::new(), grants.collect())
            }
            Kind::OwnUserCapabilities { map } => {
                let own = self.network.get(slot)?;
                let dsts = own.node.addresses.iter().map(|a| IpNet::from(*a)).collect();
                (None, Vec::new(), vec![grant(dsts, map)])
            }
            Kind::ViaPeers { .. } => return None,
        };
        rule(protocol, dst_ports, cap_grant)
    }

    fn source_texts(&self, source: Id<Source>) -> Vec<String> {
        let Some(source) = self.sources.get(source) else {
            return Vec::new();
        };
        let texts = source.texts(&self.network);
        texts.iter().map(ToString::to_string).collect()
    }

    /// The addresses of those nodes of `node`'s user that the source selects,
    /// `node` itself included.
    fn own_user_texts(&self, source: Id<Source>, slot: Slot) -> Vec<String> {
        let fellows = self.fellows(slot).into_iter();
        let mut texts: Vec<String> = fellows
            .filter(|other| self.selects(source, *other))
            .filter_map(|other| self.network.get(other))
            .flat_map(|own| own.texts.iter().map(ToString::to_string))
            .collect();
        texts.sort_unstable();
        texts.dedup();
        texts
    }

    /// Works out where the rules of these sources go, and of those that are
    /// like them. The answer is the items that go elsewhere now.
    pub(super) fn find_places(&mut self, sources: &BTreeSet<Id<Source>>) -> Vec<ItemId> {
        let mut moved = Vec::new();
        let mut left = sources.clone();
        while let Some(first) = left.pop_first() {
            let Some(source) = self.sources.get(first) else {
                continue;
            };
            let bucket = self.alike.get(&source.hash).into_iter().flatten();
            let group: Vec<Id<Source>> = bucket
                .copied()
                .filter(|id| self.sources.get(*id).is_some_and(|one| one.is_like(source)))
                .collect();
            let mut firsts: BTreeMap<Option<u8>, (Place, ItemId, u64)> = BTreeMap::new();
            let mut all: Vec<(Id<Source>, Option<u8>, ItemId)> = Vec::new();
            for id in &group {
                left.remove(id);
                let items = self.sources.get(*id).into_iter().flat_map(|one| &one.items);
                for at in items {
                    let Some(item) = self.items.get(*at) else {
                        continue;
                    };
                    let Kind::Ports { protocol, .. } = item.kind else {
                        continue;
                    };
                    all.push((*id, protocol, *at));
                    let own = (self.place(item), *at, item.serial);
                    let earliest = firsts.entry(protocol).or_insert(own);
                    *earliest = own.min(*earliest);
                }
            }
            for (source, protocol, item) in all {
                let Some((_, first, serial)) = firsts.get(&protocol) else {
                    continue;
                };
                let now = (*first, *serial);
                let before = self.places.get(&(source, protocol));
                if before != Some(&now) {
                    moved.push((source, protocol, item, now));
                }
            }
        }
        for (source, protocol, _, now) in &moved {
            self.places.insert((*source, *protocol), *now);
        }
        moved.into_iter().map(|(_, _, item, _)| item).collect()
    }
}

fn rule(
    protocol: Option<u8>,
    dst_ports: Vec<NetPortRange>,
    cap_grant: Vec<CapGrant>,
) -> Option<FilterRule> {
    (!dst_ports.is_empty() || !cap_grant.is_empty()).then(|| FilterRule {
        dst_ports,
        cap_grant,
        ip_proto: protocol.map(i64::from).into_iter().collect(),
        ..FilterRule::default()
    })
}

fn grant(dsts: Vec<IpNet>, map: &CapMap) -> CapGrant {
    CapGrant {
        dsts,
        cap_map: map.clone(),
        ..CapGrant::default()
    }
}

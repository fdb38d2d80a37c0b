//! The packet filter of one node.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnet::IpNet;
use warren_control_types::{CapGrant, CapMap, FilterRule, NetPortRange, NodeId};

use super::Compiled;
use super::arena::Id;
use super::bits::Slot;
use super::rules::{CompiledRule, RuleKind, destinations};
use super::source::{Source, WireTexts};
use super::tables::CompiledRuleId;

/// The position of a compiled rule: the rank of its file rule, and its index
/// within it.
type RulePosition = (usize, usize);

impl Compiled {
    /// The rules for `node`: those that reach its addresses, the routes it
    /// serves, or the internet through it. Empty: nothing may reach it.
    #[must_use]
    pub fn filter_for(&self, node: NodeId) -> Vec<FilterRule> {
        let Some(slot) = self.network.slot(node) else {
            return Vec::new();
        };
        let mut compiled_rules: Vec<(RulePosition, RulePosition, &CompiledRule)> = self
            .compiled_rules
            .iter()
            .filter(|(_, compiled)| compiled.reached.get(slot) || compiled.is_own_user())
            .map(|(_, compiled)| {
                (
                    self.merged_position(compiled),
                    self.position(compiled),
                    compiled,
                )
            })
            .collect();
        compiled_rules.sort_unstable_by_key(|(merged, own, _)| (*merged, *own));
        let mut entries = Entries::default();
        let mut current: Option<RulePosition> = None;
        for (merged, _, compiled) in compiled_rules {
            let Some(to) = self.rule_without_sources(compiled, slot) else {
                continue;
            };
            let is_general = matches!(compiled.kind, RuleKind::Ports { .. });
            if is_general && current == Some(merged) {
                entries.extend_last(to.dst_ports);
                continue;
            }
            let sources = match compiled.is_own_user() {
                true => Some(self.own_user_texts(compiled.source, slot)),
                false => self.source_texts(compiled.source).cloned(),
            };
            let Some(sources) = sources else {
                continue;
            };
            let may_be_empty = matches!(compiled.kind, RuleKind::Capabilities { .. });
            if sources.texts.is_empty() && !may_be_empty {
                continue;
            }
            entries.add(&sources, to);
            current = is_general.then_some(merged);
        }
        entries.rules
    }

    pub(super) fn position(&self, compiled: &CompiledRule) -> RulePosition {
        let rank = self.rank.get(&compiled.rule).copied();
        (rank.unwrap_or(usize::MAX), compiled.nth)
    }

    /// The position of the rule into which this one is merged.
    fn merged_position(&self, compiled: &CompiledRule) -> RulePosition {
        let RuleKind::Ports { protocol, .. } = compiled.kind else {
            return self.position(compiled);
        };
        let first = self.merge_targets.get(&(compiled.source, protocol));
        let first = first.and_then(|(first, _)| self.compiled_rules.get(*first));
        first.map_or_else(|| self.position(compiled), |first| self.position(first))
    }

    /// The filter rule of a compiled rule for a node, without its sources.
    fn rule_without_sources(&self, compiled: &CompiledRule, slot: Slot) -> Option<FilterRule> {
        let lookup = self.lookup();
        let (protocol, dst_ports, cap_grant) = match &compiled.kind {
            RuleKind::Ports { protocol, to } => {
                let ports = to
                    .iter()
                    .flat_map(|(to, ports)| destinations(&lookup.texts_on(*to, slot), ports));
                (*protocol, ports.collect(), Vec::new())
            }
            RuleKind::Via { protocol, to, .. } => {
                let served = to.iter().filter(|(to, _)| lookup.is_served(*to, slot));
                let ports =
                    served.flat_map(|(to, ports)| destinations(&lookup.literal(*to), ports));
                (*protocol, ports.collect(), Vec::new())
            }
            RuleKind::OwnUser { protocol, ports } => {
                let own = self.network.get(slot)?;
                let addresses: Vec<String> = own.texts.iter().map(ToString::to_string).collect();
                (*protocol, destinations(&addresses, ports), Vec::new())
            }
            RuleKind::Capabilities { to, map, posture } => {
                let grants = to
                    .iter()
                    .map(|to| lookup.prefixes_on(*to, *posture, slot))
                    .filter(|prefixes| !prefixes.is_empty())
                    .map(|dsts| grant(dsts, map));
                (None, Vec::new(), grants.collect())
            }
            RuleKind::OwnUserCapabilities { map } => {
                let own = self.network.get(slot)?;
                let dsts = own.node.addresses.iter().map(|a| IpNet::from(*a)).collect();
                (None, Vec::new(), vec![grant(dsts, map)])
            }
            RuleKind::ViaPeers { .. } => return None,
        };
        rule(protocol, dst_ports, cap_grant)
    }

    fn source_texts(&self, source: Id<Source>) -> Option<&WireTexts> {
        let source = self.sources.get(source)?;
        Some(source.texts(&self.network))
    }

    /// The addresses of those nodes of `node`'s user that the source selects,
    /// `node` itself included.
    fn own_user_texts(&self, source: Id<Source>, slot: Slot) -> WireTexts {
        let nodes_of_same_user = self.nodes_of_same_user(slot).into_iter();
        let mut texts: Vec<Arc<str>> = nodes_of_same_user
            .filter(|other| self.selects(source, *other))
            .filter_map(|other| self.network.get(other))
            .flat_map(|own| own.texts.iter().cloned())
            .collect();
        texts.sort_unstable();
        texts.dedup();
        WireTexts::new(texts)
    }

    /// Computes the merge targets of these sources and of all sources equal to
    /// them on the wire. Returns the compiled rules whose target changed.
    pub(super) fn update_merge_targets(
        &mut self,
        sources: &BTreeSet<Id<Source>>,
    ) -> Vec<CompiledRuleId> {
        let mut moved = Vec::new();
        let mut left = sources.clone();
        while let Some(first) = left.pop_first() {
            let Some(source) = self.sources.get(first) else {
                continue;
            };
            let bucket = self
                .by_fingerprint
                .get(&source.fingerprint)
                .into_iter()
                .flatten();
            let group: Vec<Id<Source>> = bucket
                .copied()
                .filter(|id| {
                    self.sources
                        .get(*id)
                        .is_some_and(|one| one.is_same_on_wire(source))
                })
                .collect();
            let mut firsts: BTreeMap<Option<u8>, (RulePosition, CompiledRuleId, u64)> =
                BTreeMap::new();
            let mut all: Vec<(Id<Source>, Option<u8>, CompiledRuleId)> = Vec::new();
            for id in &group {
                left.remove(id);
                let compiled_rules = self
                    .sources
                    .get(*id)
                    .into_iter()
                    .flat_map(|one| &one.compiled_rules);
                for at in compiled_rules {
                    let Some(compiled) = self.compiled_rules.get(*at) else {
                        continue;
                    };
                    let RuleKind::Ports { protocol, .. } = compiled.kind else {
                        continue;
                    };
                    all.push((*id, protocol, *at));
                    let own = (self.position(compiled), *at, compiled.serial);
                    let earliest = firsts.entry(protocol).or_insert(own);
                    *earliest = own.min(*earliest);
                }
            }
            for (source, protocol, compiled) in all {
                let Some((_, first, serial)) = firsts.get(&protocol) else {
                    continue;
                };
                let now = (*first, *serial);
                let before = self.merge_targets.get(&(source, protocol));
                if before != Some(&now) {
                    moved.push((source, protocol, compiled, now));
                }
            }
        }
        for (source, protocol, _, now) in &moved {
            self.merge_targets.insert((*source, *protocol), *now);
        }
        moved
            .into_iter()
            .map(|(_, _, compiled, _)| compiled)
            .collect()
    }
}

/// The filter of a node while it is put together. Rules for ports with equal
/// sources and protocol are one entry, at the position of the first of them;
/// destinations that appear twice are kept.
#[derive(Default)]
struct Entries {
    rules: Vec<FilterRule>,
    /// The index of the last rule that was added or extended.
    last: usize,
    /// Indexes of rules for ports, by the hash of their sources and by protocol.
    known: BTreeMap<(u64, Vec<i64>), Vec<usize>>,
}

impl Entries {
    fn add(&mut self, sources: &WireTexts, to: FilterRule) {
        self.last = self.rules.len();
        if !to.dst_ports.is_empty() {
            let key = (sources.hash, to.ip_proto.clone());
            let known = self.known.entry(key).or_default();
            let is_same = |at: &usize| {
                let earlier = self.rules.get(*at);
                earlier.is_some_and(|earlier| sources.is(&earlier.src_ips))
            };
            if let Some(at) = known.iter().copied().find(is_same) {
                self.last = at;
                self.extend_last(to.dst_ports);
                return;
            }
            known.push(self.last);
        }
        self.rules.push(FilterRule {
            src_ips: sources.strings(),
            ..to
        });
    }

    fn extend_last(&mut self, dst_ports: Vec<NetPortRange>) {
        if let Some(rule) = self.rules.get_mut(self.last) {
            rule.dst_ports.extend(dst_ports);
        }
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

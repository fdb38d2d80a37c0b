//! Compiled rules: the parts of a rule of the file, each with one source.

use std::sync::Arc;

use warren_control_types::{CapMap, NetPortRange, PortRange};

use super::Compiled;
use super::arena::Id;
use super::bits::{Bits, Slot};
use super::parts::{Part, PartTo, parts};
use super::posture::Posture;
use super::resolved::ResolvedSelector;
use super::source::Source;
use super::tables::{CompiledRuleId, Lookup};
use crate::model::Rule;
use crate::selector::{Ports, Selector};

/// One rule of the tailnet, before it is reduced to a node.
#[derive(Debug, Clone)]
pub(super) struct CompiledRule {
    /// The rule of the file, and the index of this part in it.
    pub(super) rule: Id<FileRule>,
    pub(super) nth: usize,
    /// A number that is never used again.
    pub(super) serial: u64,
    pub(super) source: Id<Source>,
    pub(super) kind: RuleKind,
    /// Nodes whose filter contains the rule, or that are peers because of it.
    /// Empty for rules among the nodes of one user.
    pub(super) reached: Bits,
}

/// A rule of the file.
#[derive(Debug, Clone)]
pub(super) struct FileRule {
    pub(super) rule: Rule,
    pub(super) compiled_rules: Vec<CompiledRuleId>,
}

/// A destination and its ports.
pub(super) type To = (Id<ResolvedSelector>, Arc<[Ports]>);

#[derive(Debug, Clone)]
pub(super) enum RuleKind {
    /// Ports; rules with equal sources and protocol are merged.
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
        routers: Vec<Id<ResolvedSelector>>,
    },
    /// Capabilities. With a posture, only on nodes that have it, by identity or
    /// by an address.
    Capabilities {
        to: Vec<Id<ResolvedSelector>>,
        map: CapMap,
        posture: Option<Id<Posture>>,
    },
    /// Capabilities among the nodes of the source's own user.
    OwnUserCapabilities { map: CapMap },
    /// Capabilities by way of routers: no rule, but the routers are peers.
    ViaPeers {
        to: Vec<Id<ResolvedSelector>>,
        routers: Vec<Id<ResolvedSelector>>,
    },
}

/// Capabilities that need a counterpart in the other direction.
const COMPANIONS: [(&str, &str); 2] = [
    ("tailscale.com/cap/drive", "tailscale.com/cap/drive-sharer"),
    ("tailscale.com/cap/relay", "tailscale.com/cap/relay-target"),
];

impl CompiledRule {
    /// Whether the rule is among the nodes of one user.
    pub(super) fn is_own_user(&self) -> bool {
        matches!(
            self.kind,
            RuleKind::OwnUser { .. } | RuleKind::OwnUserCapabilities { .. }
        )
    }
}

impl RuleKind {
    /// Whether a selector, or the tag of a router, satisfies the predicate.
    pub(super) fn any_selector(
        &self,
        mut sought: impl FnMut(Id<ResolvedSelector>) -> bool,
    ) -> bool {
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

impl Lookup<'_> {
    /// All nodes that a rule reaches.
    pub(super) fn reached(self, kind: &RuleKind) -> Bits {
        let mut out = Bits::default();
        match kind {
            RuleKind::Ports { to, .. } => {
                for (to, _) in to {
                    self.unite_receivers(*to, &mut out);
                }
            }
            RuleKind::Via { to, routers, .. } => {
                for (to, _) in to {
                    self.unite_served(*to, &mut out);
                }
                out.intersect(&self.tagged(routers));
            }
            RuleKind::ViaPeers { to, routers } => {
                for to in to {
                    self.unite_served(*to, &mut out);
                }
                out.intersect(&self.tagged(routers));
            }
            RuleKind::Capabilities { to, posture, .. } => {
                for to in to {
                    self.unite_granted(*to, posture.is_some(), &mut out);
                }
                if let Some(posture) = posture.and_then(|id| self.postures.get(id)) {
                    out.intersect(&posture.passes);
                }
                out.intersect(&self.network.addressed.or(&self.network.routers));
            }
            RuleKind::OwnUser { .. } | RuleKind::OwnUserCapabilities { .. } => {}
        }
        out.shrink();
        out
    }

    /// Whether a rule reaches the node.
    pub(super) fn reaches(self, kind: &RuleKind, slot: Slot) -> bool {
        match kind {
            RuleKind::Ports { to, .. } => to.iter().any(|(to, _)| self.receives(*to, slot)),
            RuleKind::Via { to, routers, .. } => {
                self.has_tag(routers, slot) && to.iter().any(|(to, _)| self.is_served(*to, slot))
            }
            RuleKind::ViaPeers { to, routers } => {
                self.has_tag(routers, slot) && to.iter().any(|to| self.is_served(*to, slot))
            }
            RuleKind::Capabilities { to, posture, .. } => {
                let network = self.network;
                let posed = posture.and_then(|id| self.postures.get(id));
                (network.addressed.get(slot) || network.routers.get(slot))
                    && posed.is_none_or(|posture| posture.passes.get(slot))
                    && to.iter().any(|to| self.granted(*to, posed.is_some(), slot))
            }
            RuleKind::OwnUser { .. } | RuleKind::OwnUserCapabilities { .. } => false,
        }
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
    /// Compiles a rule of the file.
    pub(super) fn add_rule(&mut self, rule: &Rule) -> Id<FileRule> {
        let file_rule = self.file_rules.add(FileRule {
            rule: rule.clone(),
            compiled_rules: Vec::new(),
        });
        // A rule without sources says nothing, unlike one whose sources match no
        // node: that one still names its capabilities.
        if rule.sources.is_empty() {
            return file_rule;
        }
        let source = self.intern_source(&rule.sources, &rule.postures);
        for part in parts(rule) {
            self.add_part(file_rule, source, part, &rule.via);
        }
        if rule.app.is_empty() {
            return file_rule;
        }
        if rule.via.is_empty() {
            self.add_capabilities(file_rule, source, rule);
        } else if rule.reach.is_empty() {
            let to = self.intern_selectors(&rule.app_to);
            let routers = self.routers(&rule.via);
            self.add_compiled_rule(file_rule, source, RuleKind::ViaPeers { to, routers });
        }
        file_rule
    }

    fn add_part(
        &mut self,
        file_rule: Id<FileRule>,
        source: Id<Source>,
        part: Part,
        via: &[String],
    ) {
        let protocol = part.protocol;
        let kind = match part.to {
            PartTo::OwnUser(ports) => RuleKind::OwnUser {
                protocol,
                ports: ports.into(),
            },
            PartTo::Others(to) => {
                let to = to.into_iter();
                let to =
                    to.map(|(selector, ports)| (self.intern_selector(&selector), ports.into()));
                let to = to.collect();
                if via.is_empty() {
                    RuleKind::Ports { protocol, to }
                } else {
                    RuleKind::Via {
                        protocol,
                        to,
                        routers: self.routers(via),
                    }
                }
            }
        };
        self.add_compiled_rule(file_rule, source, kind);
    }

    /// The capability rule of a grant, and the counterparts it needs.
    fn add_capabilities(&mut self, file_rule: Id<FileRule>, source: Id<Source>, rule: &Rule) {
        let (own, others): (Vec<_>, Vec<_>) = rule
            .app_to
            .iter()
            .cloned()
            .partition(|selector| *selector == Selector::OwnUser);
        let map = CapMap(rule.app.iter().cloned().collect());
        let own = !own.is_empty();
        let to = self.intern_selectors(&others);
        self.add_grant(file_rule, source, to, None, own, map);
        for (name, counterpart) in COMPANIONS {
            if !rule.app.iter().any(|(granted, _)| granted == name) {
                continue;
            }
            let map = CapMap([(counterpart.to_owned(), Vec::new())].into());
            if !others.is_empty() {
                let reversed = self.intern_source(&others, &[]);
                let posed = !rule.postures.is_empty();
                let posture = posed.then(|| self.intern_posture(&rule.postures));
                let to = self.intern_selectors(&rule.sources);
                self.add_grant(file_rule, reversed, to, posture, false, map.clone());
            }
            // Among the nodes of one user both directions look the same.
            self.add_grant(file_rule, source, Vec::new(), None, own, map);
        }
    }

    fn add_grant(
        &mut self,
        file_rule: Id<FileRule>,
        source: Id<Source>,
        to: Vec<Id<ResolvedSelector>>,
        posture: Option<Id<Posture>>,
        own_user: bool,
        map: CapMap,
    ) {
        if own_user {
            let map = map.clone();
            self.add_compiled_rule(file_rule, source, RuleKind::OwnUserCapabilities { map });
        }
        if !to.is_empty() {
            self.add_compiled_rule(
                file_rule,
                source,
                RuleKind::Capabilities { to, map, posture },
            );
        }
    }

    fn add_compiled_rule(&mut self, rule: Id<FileRule>, source: Id<Source>, kind: RuleKind) {
        let reached = self.lookup().reached(&kind);
        self.serials += 1;
        let nth = self
            .file_rules
            .get(rule)
            .map_or(0, |entry| entry.compiled_rules.len());
        let id = self.compiled_rules.add(CompiledRule {
            rule,
            nth,
            serial: self.serials,
            source,
            kind,
            reached,
        });
        if let Some(entry) = self.file_rules.get_mut(rule) {
            entry.compiled_rules.push(id);
        }
        if let Some(source) = self.sources.get_mut(source) {
            source.compiled_rules.insert(id);
        }
    }

    fn intern_selectors(&mut self, selectors: &[Selector]) -> Vec<Id<ResolvedSelector>> {
        selectors
            .iter()
            .map(|one| self.intern_selector(one))
            .collect()
    }

    fn routers(&mut self, tags: &[String]) -> Vec<Id<ResolvedSelector>> {
        let tags = tags.iter().cloned().map(Selector::Tag);
        tags.map(|tag| self.intern_selector(&tag)).collect()
    }

    fn intern_selector(&mut self, selector: &Selector) -> Id<ResolvedSelector> {
        if let Some(id) = self.selector_ids.get(selector) {
            return *id;
        }
        let resolved = self.resolve(selector);
        let id = self.selectors.add(resolved);
        self.selector_ids.insert(selector.clone(), id);
        id
    }

    fn intern_posture(&mut self, names: &[String]) -> Id<Posture> {
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

    fn intern_source(&mut self, selectors: &[Selector], postures: &[String]) -> Id<Source> {
        let mut selectors = self.intern_selectors(selectors);
        selectors.sort_unstable();
        selectors.dedup();
        let key = (selectors, self.intern_posture(postures));
        if let Some(id) = self.source_ids.get(&key) {
            return *id;
        }
        let source = Source::new(key.0.clone(), key.1, self.lookup());
        let hash = source.fingerprint;
        let id = self.sources.add(source);
        self.by_fingerprint.entry(hash).or_default().insert(id);
        self.source_ids.insert(key, id);
        id
    }
}

//! A plain implementation for tests: everything is computed from scratch, pair
//! by pair.
//!
//! Its answers for a node must equal those of [`super::Compiled`]. Every
//! selector is resolved for every rule. Rules with equal sources and protocol
//! are merged (at the position of the first one), except for those that depend
//! on the receiving node (`autogroup:self`, `via`) and capability grants.
//! [`Compiled::filter_for`] then selects, for one node, the destinations on it:
//! its own addresses, its approved subnet routes, and the internet if it is an
//! exit node; and it merges the rules for ports of this node.

mod routes;
mod source;
mod target;

use std::collections::BTreeMap;

use ipnet::IpNet;
use warren_control_types::{CapGrant, CapMap, FilterRule, NetPortRange, NodeId, PortRange};

use super::parts::{Part, PartTo, parts};
use crate::model::{Policy, Reach, Rule};
use crate::node::{PolicyNode, PolicyUser};
use crate::selector::{Ports, Selector};
use source::Source;
use target::Target;

/// Index of a source in [`Compiled::sources`].
type SourceIndex = usize;

/// A policy compiled by the plain implementation.
#[derive(Debug, Clone)]
pub(super) struct Compiled {
    /// Ascending by id.
    nodes: Vec<PolicyNode>,
    sources: Vec<Source>,
    rules: Vec<PlainRule>,
    /// Per node, the sources of the rules in its filter, ascending.
    reached_by: Vec<Vec<SourceIndex>>,
    /// Whether all nodes see each other.
    open: bool,
}

/// One rule before it is reduced to a node.
#[derive(Debug, Clone)]
enum PlainRule {
    /// Ports; several rules of the file with equal sources and protocol.
    Ports {
        source: SourceIndex,
        protocol: Option<u8>,
        to: Vec<(Target, Vec<Ports>)>,
    },
    /// Ports on the nodes of the source's own user.
    OwnUser {
        source: SourceIndex,
        protocol: Option<u8>,
        ports: Vec<Ports>,
    },
    /// Ports behind routers with one of some tags.
    Via {
        source: SourceIndex,
        protocol: Option<u8>,
        to: Vec<(Target, Vec<Ports>)>,
        routers: Vec<String>,
    },
    /// Capabilities.
    Capabilities {
        source: SourceIndex,
        to: Vec<Target>,
        map: CapMap,
    },
    /// Capabilities among the nodes of the source's own user.
    OwnUserCapabilities { source: SourceIndex, map: CapMap },
    /// Capabilities by way of routers: no rule, but the routers are peers.
    ViaPeers {
        source: SourceIndex,
        to: Vec<Target>,
        routers: Vec<String>,
    },
}

/// Capabilities that need a counterpart in the other direction.
const COMPANIONS: [(&str, &str); 2] = [
    ("tailscale.com/cap/drive", "tailscale.com/cap/drive-sharer"),
    ("tailscale.com/cap/relay", "tailscale.com/cap/relay-target"),
];

impl Compiled {
    /// Compiles the policy for these users and nodes.
    pub(super) fn new(policy: &Policy, users: &[PolicyUser], nodes: &[PolicyNode]) -> Self {
        let mut nodes = nodes.to_vec();
        nodes.sort_by_key(|node| node.id);
        let mut builder = Builder {
            policy,
            users,
            out: Compiled {
                nodes,
                sources: Vec::new(),
                rules: Vec::new(),
                reached_by: Vec::new(),
                open: policy.open,
            },
            merged: BTreeMap::new(),
        };
        if policy.open {
            builder.rule(&Rule {
                sources: vec![Selector::Any],
                reach: vec![Reach {
                    to: vec![Selector::Any],
                    protocol: None,
                    ports: vec![Ports::ALL],
                }],
                app: Vec::new(),
                app_to: Vec::new(),
                via: Vec::new(),
                postures: Vec::new(),
            });
        }
        for rule in &policy.rules {
            builder.rule(rule);
        }
        let mut out = builder.out;
        out.reached_by = (0..out.nodes.len())
            .map(|node| out.sources_reaching(node))
            .collect();
        out
    }
}

struct Builder<'p> {
    policy: &'p Policy,
    users: &'p [PolicyUser],
    out: Compiled,
    /// The index of the rule for these sources and protocol.
    merged: BTreeMap<(SourceIndex, Option<u8>), usize>,
}

impl Builder<'_> {
    fn rule(&mut self, rule: &Rule) {
        if rule.sources.is_empty() {
            return;
        }
        let source = self.resolve(&rule.sources, &rule.postures);
        let source = self.intern(source);
        let usable = !self.source_is_empty(source);
        for part in parts(rule).into_iter().filter(|_| usable) {
            self.part(source, part, &rule.via);
        }
        if rule.app.is_empty() {
            return;
        }
        if rule.via.is_empty() {
            self.capabilities(source, rule);
        } else if rule.reach.is_empty() {
            let to = self.targets(&rule.app_to);
            self.out.rules.push(PlainRule::ViaPeers {
                source,
                to,
                routers: rule.via.clone(),
            });
        }
    }

    fn part(&mut self, source: SourceIndex, part: Part, via: &[String]) {
        let protocol = part.protocol;
        let to: Vec<(Target, Vec<Ports>)> = match part.to {
            PartTo::OwnUser(ports) => {
                self.out.rules.push(PlainRule::OwnUser {
                    source,
                    protocol,
                    ports,
                });
                return;
            }
            PartTo::Others(to) => {
                let to = to.into_iter();
                to.map(|(selector, ports)| (self.target(&selector), ports))
                    .collect()
            }
        };
        if !via.is_empty() {
            self.out.rules.push(PlainRule::Via {
                source,
                protocol,
                to,
                routers: via.to_vec(),
            });
            return;
        }
        let place = self
            .merged
            .get(&(source, protocol))
            .and_then(|at| self.out.rules.get_mut(*at));
        if let Some(PlainRule::Ports { to: earlier, .. }) = place {
            earlier.extend(to);
            return;
        }
        self.merged.insert((source, protocol), self.out.rules.len());
        self.out.rules.push(PlainRule::Ports {
            source,
            protocol,
            to,
        });
    }

    /// The capability rule of a grant, and the counterparts it needs.
    fn capabilities(&mut self, source: SourceIndex, rule: &Rule) {
        let (own, others): (Vec<_>, Vec<_>) = rule
            .app_to
            .iter()
            .cloned()
            .partition(|selector| *selector == Selector::OwnUser);
        let map = CapMap(rule.app.iter().cloned().collect());
        let to = self.targets(&others);
        self.grant(source, to, !own.is_empty(), map);

        let reversed = self.resolve(&others, &[]);
        for (name, counterpart) in COMPANIONS {
            if !rule.app.iter().any(|(granted, _)| granted == name) {
                continue;
            }
            let map = CapMap([(counterpart.to_owned(), Vec::new())].into());
            let to = if others.is_empty() {
                Vec::new()
            } else {
                self.source_targets(rule)
            };
            let reversed = self.intern(reversed.clone());
            self.grant(reversed, to, false, map.clone());
            // Among the nodes of one user both directions look the same.
            self.grant(source, Vec::new(), !own.is_empty(), map);
        }
    }

    fn grant(&mut self, source: SourceIndex, to: Vec<Target>, own_user: bool, map: CapMap) {
        if own_user {
            self.out.rules.push(PlainRule::OwnUserCapabilities {
                source,
                map: map.clone(),
            });
        }
        if !to.is_empty() {
            self.out
                .rules
                .push(PlainRule::Capabilities { source, to, map });
        }
    }

    fn resolve(&self, selectors: &[Selector], postures: &[String]) -> Source {
        let nodes = &self.out.nodes;
        Source::resolve(self.policy, self.users, nodes, selectors, postures)
    }

    /// The sources of a rule as destinations, those without its posture aside.
    fn source_targets(&self, rule: &Rule) -> Vec<Target> {
        if rule.postures.is_empty() {
            return self.targets(&rule.sources);
        }
        let means = |selector: &Selector, node: &PolicyNode| {
            self.policy.has_posture(&rule.postures, &node.attributes)
                && self.policy.targets_node(selector, self.users, node)
        };
        let targets = rule.sources.iter().map(|selector| {
            let nodes = self.out.nodes.iter();
            Target::Nodes(nodes.map(|node| means(selector, node)).collect())
        });
        targets.collect()
    }

    fn targets(&self, selectors: &[Selector]) -> Vec<Target> {
        selectors
            .iter()
            .map(|selector| self.target(selector))
            .collect()
    }

    fn target(&self, selector: &Selector) -> Target {
        match selector {
            Selector::Any | Selector::DangerAll => Target::Any,
            Selector::Net(net) => Target::Net(*net),
            Selector::Set(set) => Target::Set(set.clone()),
            Selector::Internet => Target::Internet,
            identity => Target::Nodes(
                self.out
                    .nodes
                    .iter()
                    .map(|node| self.policy.selects_node(identity, self.users, node))
                    .collect(),
            ),
        }
    }

    /// Stores a source once; equal address lists are one source.
    fn intern(&mut self, source: Source) -> SourceIndex {
        let sources = &mut self.out.sources;
        if let Some(found) = sources.iter().position(|known| *known == source) {
            return found;
        }
        sources.push(source);
        sources.len() - 1
    }

    fn source_is_empty(&self, source: SourceIndex) -> bool {
        self.out
            .sources
            .get(source)
            .is_none_or(|source| source.texts.is_empty())
    }
}

impl Compiled {
    /// The rules for `node`: those that reach its addresses, the routes it
    /// serves, or the internet through it. Empty: nothing may reach it.
    pub(super) fn filter_for(&self, node: NodeId) -> Vec<FilterRule> {
        let Some(index) = self.index(node) else {
            return Vec::new();
        };
        self.rules_for(index)
    }

    /// The peers of `node`, ascending.
    pub(super) fn peers_of(&self, node: NodeId) -> Vec<NodeId> {
        let Some(index) = self.index(node) else {
            return Vec::new();
        };
        let peers = self.nodes.iter().enumerate();
        peers
            .filter(|(other, _)| *other != index && self.sees(index, *other))
            .map(|(_, other)| other.id)
            .collect()
    }

    fn index(&self, node: NodeId) -> Option<usize> {
        self.nodes.binary_search_by_key(&node, |node| node.id).ok()
    }

    fn sees(&self, a: usize, b: usize) -> bool {
        self.open || self.is_source_towards(a, b) || self.is_source_towards(b, a)
    }

    /// Whether `from` is a source of a rule in the filter of `to`.
    fn is_source_towards(&self, from: usize, to: usize) -> bool {
        let general = self
            .reached_by
            .get(to)
            .into_iter()
            .flatten()
            .filter_map(|source| self.sources.get(*source))
            .any(|source| source.covers(from));
        general
            || (self.same_user(from, to)
                && self.rules.iter().any(|rule| match rule {
                    PlainRule::OwnUser { source, .. }
                    | PlainRule::OwnUserCapabilities { source, .. } => self.selects(*source, from),
                    _ => false,
                }))
    }

    /// Whether both are untagged nodes of one user.
    fn same_user(&self, a: usize, b: usize) -> bool {
        let user = |index: usize| {
            let node = self.nodes.get(index)?;
            node.user.filter(|_| !node.is_tagged())
        };
        user(a).is_some() && user(a) == user(b)
    }

    fn selects(&self, source: SourceIndex, node: usize) -> bool {
        self.sources
            .get(source)
            .is_some_and(|source| source.selects(node))
    }

    /// The sources of all rules in the filter of `node`, those among nodes of
    /// one user aside.
    fn sources_reaching(&self, node: usize) -> Vec<SourceIndex> {
        let mut found: Vec<SourceIndex> = self
            .rules
            .iter()
            .filter_map(|rule| match rule {
                PlainRule::Ports { source, to, .. } => to
                    .iter()
                    .any(|(target, _)| target.reaches(self, node))
                    .then_some(*source),
                PlainRule::Via {
                    source,
                    to,
                    routers,
                    ..
                } => to
                    .iter()
                    .any(|(target, _)| target.reaches_via(self, node, routers))
                    .then_some(*source),
                PlainRule::ViaPeers {
                    source,
                    to,
                    routers,
                } => to
                    .iter()
                    .any(|target| target.reaches_via(self, node, routers))
                    .then_some(*source),
                PlainRule::Capabilities { source, to, .. } => to
                    .iter()
                    .any(|target| !target.prefixes_on(self, node).is_empty())
                    .then_some(*source),
                PlainRule::OwnUser { .. } | PlainRule::OwnUserCapabilities { .. } => None,
            })
            .collect();
        found.sort_unstable();
        found.dedup();
        found
    }

    /// The rules of one node. Those for ports with equal sources and protocol
    /// are one rule.
    fn rules_for(&self, node: usize) -> Vec<FilterRule> {
        let mut out: Vec<FilterRule> = Vec::new();
        for rule in self.rules.iter().filter_map(|one| self.rule_for(one, node)) {
            let earlier = out.iter_mut().find(|earlier| {
                !rule.dst_ports.is_empty()
                    && !earlier.dst_ports.is_empty()
                    && earlier.src_ips == rule.src_ips
                    && earlier.ip_proto == rule.ip_proto
            });
            match earlier {
                Some(earlier) => earlier.dst_ports.extend(rule.dst_ports),
                None => out.push(rule),
            }
        }
        out
    }

    fn rule_for(&self, rule: &PlainRule, node: usize) -> Option<FilterRule> {
        match rule {
            PlainRule::Ports {
                source,
                protocol,
                to,
            } => {
                let dst_ports = to
                    .iter()
                    .flat_map(|(target, ports)| destinations(&target.texts_on(self, node), ports))
                    .collect();
                port_rule(self.source_texts(*source), *protocol, dst_ports)
            }
            PlainRule::Via {
                source,
                protocol,
                to,
                routers,
            } => {
                let dst_ports = to
                    .iter()
                    .filter(|(target, _)| target.reaches_via(self, node, routers))
                    .flat_map(|(target, ports)| destinations(&target.literal(), ports))
                    .collect();
                port_rule(self.source_texts(*source), *protocol, dst_ports)
            }
            PlainRule::OwnUser {
                source,
                protocol,
                ports,
            } => {
                let own = self.nodes.get(node)?;
                let addresses: Vec<String> =
                    own.addresses.iter().map(ToString::to_string).collect();
                port_rule(
                    self.own_user_texts(*source, node),
                    *protocol,
                    destinations(&addresses, ports),
                )
            }
            PlainRule::Capabilities { source, to, map } => {
                let cap_grant = to
                    .iter()
                    .map(|target| target.prefixes_on(self, node))
                    .filter(|prefixes| !prefixes.is_empty())
                    .map(|dsts| grant(dsts, map))
                    .collect();
                grant_rule(self.source_texts(*source), cap_grant)
            }
            PlainRule::OwnUserCapabilities { source, map } => {
                let src_ips = self.own_user_texts(*source, node);
                let own = self.nodes.get(node).filter(|_| !src_ips.is_empty())?;
                let dsts = own.addresses.iter().map(|a| IpNet::from(*a)).collect();
                grant_rule(src_ips, vec![grant(dsts, map)])
            }
            PlainRule::ViaPeers { .. } => None,
        }
    }

    fn source_texts(&self, source: SourceIndex) -> Vec<String> {
        self.sources
            .get(source)
            .map(|source| source.texts.clone())
            .unwrap_or_default()
    }

    /// The addresses of those nodes of `node`'s user that the source selects,
    /// `node` itself included.
    fn own_user_texts(&self, source: SourceIndex, node: usize) -> Vec<String> {
        let mut texts: Vec<String> = self
            .nodes
            .iter()
            .enumerate()
            .filter(|(other, _)| self.same_user(node, *other) && self.selects(source, *other))
            .flat_map(|(_, other)| other.addresses.iter().map(ToString::to_string))
            .collect();
        texts.sort_unstable();
        texts.dedup();
        texts
    }
}

fn destinations(texts: &[String], ports: &[Ports]) -> Vec<NetPortRange> {
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

fn port_rule(
    src_ips: Vec<String>,
    protocol: Option<u8>,
    dst_ports: Vec<NetPortRange>,
) -> Option<FilterRule> {
    if src_ips.is_empty() || dst_ports.is_empty() {
        return None;
    }
    Some(FilterRule {
        src_ips,
        dst_ports,
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

fn grant_rule(src_ips: Vec<String>, cap_grant: Vec<CapGrant>) -> Option<FilterRule> {
    if cap_grant.is_empty() {
        return None;
    }
    Some(FilterRule {
        src_ips,
        cap_grant,
        ..FilterRule::default()
    })
}

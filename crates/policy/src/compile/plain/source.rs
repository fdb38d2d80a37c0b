//! Sources of rules, resolved.

use std::net::IpAddr;

use crate::model::Policy;
use crate::node::{PolicyNode, PolicyUser};
use crate::selector::Selector;
use crate::span::{Span, TAILNET, net_text};

/// The sources of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Source {
    /// The texts on the wire: sorted, without duplicates.
    pub(super) texts: Vec<String>,
    /// The same as ranges.
    spans: Vec<Span>,
    /// By node index: selected by identity (for `autogroup:self`).
    selected: Vec<bool>,
    /// By node index: an address or approved subnet route overlaps.
    covered: Vec<bool>,
}

impl Source {
    pub(super) fn resolve(
        policy: &Policy,
        users: &[PolicyUser],
        nodes: &[PolicyNode],
        selectors: &[Selector],
        postures: &[String],
    ) -> Self {
        let mut parts: Vec<(String, Vec<Span>)> = Vec::new();
        let mut selected = vec![false; nodes.len()];
        let passes: Vec<bool> = nodes
            .iter()
            .map(|node| policy.has_posture(postures, &node.attributes))
            .collect();
        let all_pass = passes.iter().all(|passes| *passes);
        for selector in selectors {
            let own = match selector {
                Selector::Any => {
                    let ranges = TAILNET.iter();
                    let routes = nodes.iter().flat_map(PolicyNode::subnet_routes);
                    let routes = routes.map(|route| (net_text(route), vec![Span::from(route)]));
                    // Hosts behind a subnet router have no posture.
                    if all_pass {
                        parts.extend(routes);
                        ranges
                            .map(|named| (named.text.to_owned(), vec![named.span]))
                            .collect()
                    } else {
                        let own = nodes.iter().zip(&passes).filter(|(_, passes)| **passes);
                        let own = own.flat_map(|(node, _)| &node.addresses);
                        parts.extend(own.map(|a| (a.to_string(), vec![Span::from(*a)])));
                        routes.collect()
                    }
                }
                Selector::DangerAll if all_pass => vec![("*".to_owned(), Span::ALL.to_vec())],
                Selector::DangerAll => of_those_that_pass(&Span::ALL, nodes, &passes),
                Selector::Net(net) if all_pass => vec![(net_text(net), vec![Span::from(net)])],
                Selector::Net(net) => of_those_that_pass(&[Span::from(net)], nodes, &passes),
                Selector::Set(set) => of_those_that_pass(&set.spans, nodes, &passes),
                _ => Vec::new(),
            };
            parts.extend(own);
            for ((node, selected), passes) in nodes.iter().zip(&mut selected).zip(&passes) {
                if !passes || !policy.selects_node(selector, users, node) {
                    continue;
                }
                *selected = true;
                if *selector != Selector::Any {
                    let own = node.addresses.iter();
                    parts.extend(own.map(|a| (a.to_string(), vec![Span::from(*a)])));
                }
            }
        }
        parts.sort_unstable();
        parts.dedup();
        let spans: Vec<Span> = parts.iter().flat_map(|(_, spans)| spans).copied().collect();
        let covered = nodes
            .iter()
            .map(|node| {
                let own = node.addresses.iter().map(|a| Span::from(*a));
                let mut all = own.chain(node.subnet_routes().map(Span::from));
                all.any(|own| spans.iter().any(|span| span.overlaps(&own)))
            })
            .collect();
        Self {
            texts: parts.into_iter().map(|(text, _)| text).collect(),
            spans,
            selected,
            covered,
        }
    }

    /// Whether the node is selected by identity.
    pub(super) fn selects(&self, node: usize) -> bool {
        self.selected.get(node).copied().unwrap_or(false)
    }

    /// Whether packets of the node, or from behind it, match.
    pub(super) fn covers(&self, node: usize) -> bool {
        self.covered.get(node).copied().unwrap_or(false)
    }

    pub(super) fn overlaps(&self, span: &Span) -> bool {
        self.spans.iter().any(|own| own.overlaps(span))
    }
}

/// Ranges without the addresses of nodes that lack the posture. If there are
/// such nodes, the tailnet's own ranges are replaced by the addresses of the
/// other nodes.
fn of_those_that_pass(
    spans: &[Span],
    nodes: &[PolicyNode],
    passes: &[bool],
) -> Vec<(String, Vec<Span>)> {
    let one = |span: Span| (span.text(), vec![span]);
    let mut out = Vec::new();
    for span in spans {
        let inside = |address: &IpAddr| span.contains(&Span::from(*address));
        let lacking = nodes
            .iter()
            .zip(passes)
            .any(|(node, passes)| !passes && node.addresses.iter().any(inside));
        if !lacking {
            out.push(one(*span));
            continue;
        }
        let ranges = TAILNET.iter().fold(vec![*span], |left, named| {
            left.iter()
                .flat_map(|part| part.without(&named.span))
                .collect()
        });
        out.extend(ranges.into_iter().map(one));
        let passing = nodes.iter().zip(passes).filter(|(_, passes)| **passes);
        let passing = passing.flat_map(|(node, _)| &node.addresses);
        out.extend(passing.filter(|a| inside(a)).map(|a| one(Span::from(*a))));
    }
    out
}

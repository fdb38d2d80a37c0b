//! Sources of rules, resolved.

use crate::node::{PolicyNode, PolicyUser};
use crate::policy::Policy;
use crate::selector::Selector;
use crate::span::{Span, TAILNET, net_text};

/// The sources of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Source {
    /// As they go on the wire: sorted, no duplicates.
    pub(super) texts: Vec<String>,
    /// The same as ranges.
    spans: Vec<Span>,
    /// By node index: meant by what it is (for `autogroup:self`).
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
    ) -> Self {
        let mut parts: Vec<(String, Vec<Span>)> = Vec::new();
        let mut selected = vec![false; nodes.len()];
        for selector in selectors {
            match selector {
                Selector::Any => {
                    let ranges = TAILNET.iter();
                    parts.extend(ranges.map(|named| (named.text.to_owned(), vec![named.span])));
                    let routes = nodes.iter().flat_map(PolicyNode::subnet_routes);
                    parts.extend(routes.map(|route| (net_text(route), vec![Span::from(route)])));
                }
                Selector::DangerAll => parts.push(("*".to_owned(), Span::ALL.to_vec())),
                Selector::Net(net) => parts.push((net_text(net), vec![Span::from(net)])),
                Selector::Set(set) => {
                    parts.extend(set.spans.iter().map(|span| (span.text(), vec![*span])));
                }
                _ => {}
            }
            for (node, selected) in nodes.iter().zip(&mut selected) {
                if !policy.selects_node(selector, users, node) {
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

    /// Whether the node is meant by identity.
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

//! Destinations of rules, resolved, and what is left of them on one node.

use ipnet::IpNet;

use super::Compiled;
use crate::node::PolicyNode;
use crate::span::{INTERNET, Span, internet_overlaps, net_text};

/// A destination of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    /// `*`.
    Any,
    /// By node index: all addresses of these nodes.
    Nodes(Vec<bool>),
    /// Exactly these addresses.
    Net(IpNet),
    /// Public addresses.
    Internet,
}

impl Target {
    /// Whether a rule with this destination belongs into the filter of `node`.
    pub(super) fn reaches(&self, compiled: &Compiled, node: usize) -> bool {
        let Some(own) = compiled.nodes.get(node) else {
            return false;
        };
        match self {
            Self::Any => true,
            Self::Nodes(nodes) => nodes.get(node).copied().unwrap_or(false),
            Self::Net(net) => {
                let span = Span::from(net);
                own.addresses.iter().any(|a| span.contains(&Span::from(*a)))
                    || serves(own, &span)
                    || (own.exit_routes().next().is_some()
                        && internet_overlaps(&span)
                        && own
                            .exit_routes()
                            .any(|exit| Span::from(exit).overlaps(&span)))
            }
            Self::Internet => own.exit_routes().next().is_some(),
        }
    }

    /// Whether `node` is a router with one of the tags and serves this
    /// destination.
    pub(super) fn reaches_via(&self, compiled: &Compiled, node: usize, tags: &[String]) -> bool {
        let Some(own) = compiled.nodes.get(node) else {
            return false;
        };
        if !own.tags.iter().any(|tag| tags.contains(tag)) {
            return false;
        }
        match self {
            Self::Net(net) => serves(own, &Span::from(net)),
            Self::Internet => own.exit_routes().next().is_some(),
            Self::Any => own.subnet_routes().next().is_some(),
            Self::Nodes(_) => false,
        }
    }

    /// The destination on `node` as it goes on the wire.
    pub(super) fn texts_on(&self, compiled: &Compiled, node: usize) -> Vec<String> {
        if !self.reaches(compiled, node) {
            return Vec::new();
        }
        match self {
            Self::Nodes(_) => compiled
                .nodes
                .get(node)
                .into_iter()
                .flat_map(|own| &own.addresses)
                .map(ToString::to_string)
                .collect(),
            Self::Any | Self::Net(_) | Self::Internet => self.literal(),
        }
    }

    /// The destination as written, for `*`, addresses and the internet.
    pub(super) fn literal(&self) -> Vec<String> {
        match self {
            Self::Any => vec!["*".to_owned()],
            Self::Net(net) => vec![net_text(net)],
            Self::Internet => INTERNET.iter().map(|named| named.text.to_owned()).collect(),
            Self::Nodes(_) => Vec::new(),
        }
    }

    /// The prefixes on `node` that capabilities hold for: its own addresses
    /// as far as they are meant, and the written prefix where it serves it.
    pub(super) fn prefixes_on(&self, compiled: &Compiled, node: usize) -> Vec<IpNet> {
        let Some(own) = compiled.nodes.get(node) else {
            return Vec::new();
        };
        let addresses = || own.addresses.iter().map(|a| IpNet::from(*a));
        match self {
            Self::Any => addresses().collect(),
            Self::Nodes(nodes) if nodes.get(node).copied().unwrap_or(false) => {
                addresses().collect()
            }
            Self::Nodes(_) | Self::Internet => Vec::new(),
            Self::Net(net) if serves(own, &Span::from(net)) => vec![*net],
            Self::Net(net) => addresses().filter(|own| net.contains(own)).collect(),
        }
    }

    /// Whether a packet to somewhere in `route` may match.
    pub(super) fn overlaps(&self, route: &Span) -> bool {
        match self {
            Self::Any => true,
            Self::Net(net) => Span::from(net).overlaps(route),
            Self::Internet => internet_overlaps(route),
            Self::Nodes(_) => false,
        }
    }

    /// Whether the destination holds public addresses, as an exit node serves
    /// them.
    pub(super) fn is_internet(&self) -> bool {
        match self {
            Self::Any | Self::Internet => true,
            Self::Net(net) => internet_overlaps(&Span::from(net)),
            Self::Nodes(_) => false,
        }
    }
}

/// Whether an approved subnet route of the node overlaps `span`.
fn serves(node: &PolicyNode, span: &Span) -> bool {
    node.subnet_routes()
        .any(|route| Span::from(route).overlaps(span))
}

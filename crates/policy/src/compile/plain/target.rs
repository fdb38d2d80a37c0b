//! Destinations of rules, resolved, and what is left of them on one node.

use ipnet::IpNet;

use super::Compiled;
use crate::node::PolicyNode;
use crate::selector::IpSet;
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
    /// Addresses under a name.
    Set(IpSet),
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
            Self::Net(net) => receives(own, &Span::from(net)),
            Self::Set(set) => set.spans.iter().any(|span| receives(own, span)),
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
            Self::Set(set) => set.spans.iter().any(|span| serves(own, span)),
            Self::Internet => own.exit_routes().next().is_some(),
            Self::Any => own.subnet_routes().next().is_some(),
            Self::Nodes(_) => false,
        }
    }

    /// The destination on `node` as it goes on the wire.
    pub(super) fn texts_on(&self, compiled: &Compiled, node: usize) -> Vec<String> {
        let own = compiled.nodes.get(node);
        let Some(own) = own.filter(|_| self.reaches(compiled, node)) else {
            return Vec::new();
        };
        match self {
            Self::Nodes(_) => own.addresses.iter().map(ToString::to_string).collect(),
            Self::Set(set) => {
                let here = set.spans.iter().filter(|span| receives(own, span));
                here.map(Span::text).collect()
            }
            Self::Any | Self::Net(_) | Self::Internet => self.literal(),
        }
    }

    /// The destination as written, for `*`, addresses and the internet.
    pub(super) fn literal(&self) -> Vec<String> {
        match self {
            Self::Any => vec!["*".to_owned()],
            Self::Net(net) => vec![net_text(net)],
            Self::Set(set) => set.spans.iter().map(Span::text).collect(),
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
            Self::Set(set) => {
                let mut out: Vec<IpNet> = addresses()
                    .filter(|own| set.spans.iter().any(|span| span.contains(&own.into())))
                    .collect();
                let served = set.spans.iter().filter(|span| serves(own, span));
                out.extend(served.flat_map(Span::nets));
                out
            }
        }
    }

    /// Whether a packet to somewhere in `route` may match.
    pub(super) fn overlaps(&self, route: &Span) -> bool {
        match self {
            Self::Any => true,
            Self::Net(net) => Span::from(net).overlaps(route),
            Self::Set(set) => set.spans.iter().any(|span| span.overlaps(route)),
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
            Self::Set(set) => set.spans.iter().any(internet_overlaps),
            Self::Nodes(_) => false,
        }
    }
}

/// Whether packets to `span` arrive at the node: its own, behind it, or to the
/// internet by way of it.
fn receives(own: &PolicyNode, span: &Span) -> bool {
    own.addresses.iter().any(|a| span.contains(&Span::from(*a)))
        || serves(own, span)
        || (internet_overlaps(span)
            && own
                .exit_routes()
                .any(|exit| Span::from(exit).overlaps(span)))
}

/// Whether an approved subnet route of the node overlaps `span`.
fn serves(node: &PolicyNode, span: &Span) -> bool {
    node.subnet_routes()
        .any(|route| Span::from(route).overlaps(span))
}

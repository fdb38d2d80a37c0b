//! The nodes that a change affects.

use super::Compiled;
use super::bits::Bits;
use crate::node_set::NodeSet;

/// The nodes for which a change may have made a difference. All other nodes are
/// unaffected; for some of the listed nodes nothing may have changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Impact {
    /// Nodes whose packet filter may differ ([`Compiled::filter_for`]).
    pub filters: NodeSet,
    /// Nodes whose peers may differ ([`Compiled::peers_of`]).
    pub peers: NodeSet,
    /// Nodes whose routes may differ ([`Compiled::routes_for`]) for a peer that
    /// they saw before and still see.
    pub routes: NodeSet,
    /// The nodes in `peers` and `routes` for which more than the one changed
    /// node may differ: they must compare all their peers. After a change of
    /// users or of the policy, these are all of them.
    pub views: NodeSet,
}

impl Impact {
    /// Whether the change affects no node.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.filters.is_empty() && self.peers.is_empty() && self.routes.is_empty()
    }

    /// Adds the nodes that another change affects.
    pub fn unite(&mut self, other: &Self) {
        self.filters.extend(other.filters.iter());
        self.peers.extend(other.peers.iter());
        self.routes.extend(other.routes.iter());
        self.views.extend(other.views.iter());
    }
}

/// The same by slots, during propagation.
#[derive(Debug, Default)]
pub(super) struct SlotImpact {
    pub(super) filters: Bits,
    pub(super) peers: Bits,
    pub(super) routes: Bits,
}

impl Compiled {
    /// Converts slots to nodes. `one` are the nodes for which only the changed
    /// node differs, in peers and in routes.
    pub(super) fn impact_of(&self, impact: &SlotImpact, one: [&Bits; 2]) -> Impact {
        let [peers, routes] = one;
        Impact {
            filters: self.ids(&impact.filters),
            peers: self.ids(&impact.peers.or(peers)),
            routes: self.ids(&impact.routes.or(routes)),
            views: self.ids(&impact.peers.or(&impact.routes)),
        }
    }
}

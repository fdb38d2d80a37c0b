//! Whom a change concerns.

use super::Compiled;
use super::bits::Bits;
use crate::node_set::NodeSet;

/// The nodes for which a change may have made a difference. Nobody else has
/// to be told; of those that are named, some may find that nothing changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Impact {
    /// What [`Compiled::filter_for`] says to them.
    pub filters: NodeSet,
    /// Who their peers are ([`Compiled::peers_of`]).
    pub peers: NodeSet,
    /// Which routes they are given ([`Compiled::routes_for`]) of a peer that
    /// they saw before and see now.
    pub routes: NodeSet,
    /// Of those in `peers` and `routes`, the ones for whom it may be more than
    /// the one node that changed: they compare all they see. After a change of
    /// users or of the policy, that is everyone.
    pub views: NodeSet,
}

impl Impact {
    /// Whether the change concerns nobody.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.filters.is_empty() && self.peers.is_empty() && self.routes.is_empty()
    }

    /// Takes in those whom another change concerns.
    pub fn unite(&mut self, other: &Self) {
        self.filters.extend(other.filters.iter());
        self.peers.extend(other.peers.iter());
        self.routes.extend(other.routes.iter());
        self.views.extend(other.views.iter());
    }
}

/// The same by slots, while it is worked out.
#[derive(Debug, Default)]
pub(super) struct SlotImpact {
    pub(super) filters: Bits,
    pub(super) peers: Bits,
    pub(super) routes: Bits,
}

impl Compiled {
    /// The nodes behind the slots; `one` are those for whom nothing but the
    /// changed node is different, in peers and in routes.
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

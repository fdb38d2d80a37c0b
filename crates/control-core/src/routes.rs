//! Which node routes which subnet.
//!
//! A route counts when the node advertises it *and* the administrator approved
//! it. Of several routers of one subnet exactly one is active, because a prefix
//! may stand in one peer's `AllowedIPs` only: the present one as long as it is
//! online, else the online one with the lowest id. Default routes are different:
//! every approved exit node carries them, and each client picks.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use warren_control_types::NodeId;

use crate::records::NodeRecord;

/// Whether the prefix is a whole address family, that is, an exit route.
pub(crate) fn is_exit(route: &IpNet) -> bool {
    route.prefix_len() == 0
}

/// What the node advertises, without stray host bits.
pub(crate) fn advertised(node: &NodeRecord) -> BTreeSet<IpNet> {
    node.hostinfo
        .routable_ips
        .iter()
        .map(IpNet::trunc)
        .collect()
}

/// What the node advertises and may.
pub(crate) fn effective(node: &NodeRecord) -> BTreeSet<IpNet> {
    advertised(node)
        .intersection(&node.approved_routes)
        .copied()
        .collect()
}

/// The active router of each subnet.
#[derive(Debug, Clone, Default)]
pub(crate) struct Primaries(BTreeMap<IpNet, NodeId>);

impl Primaries {
    /// Decides again; the answer is the nodes whose routes changed.
    pub(crate) fn recompute(
        &mut self,
        nodes: &BTreeMap<NodeId, NodeRecord>,
        online: &BTreeSet<NodeId>,
    ) -> BTreeSet<NodeId> {
        let mut routers: BTreeMap<IpNet, Vec<NodeId>> = BTreeMap::new();
        for node in nodes.values() {
            if node.hostinfo.routable_ips.is_empty() || node.approved_routes.is_empty() {
                continue;
            }
            for route in effective(node).into_iter().filter(|route| !is_exit(route)) {
                routers.entry(route).or_default().push(node.id);
            }
        }
        let mut next = BTreeMap::new();
        for (route, candidates) in routers {
            let present = self
                .0
                .get(&route)
                .copied()
                .filter(|id| candidates.contains(id));
            let chosen = present
                .filter(|id| online.contains(id))
                .or_else(|| candidates.iter().copied().find(|id| online.contains(id)))
                .or(present)
                .or_else(|| candidates.first().copied());
            if let Some(id) = chosen {
                next.insert(route, id);
            }
        }
        let changed = next
            .iter()
            .filter(|(route, id)| self.0.get(route) != Some(id))
            .chain(
                self.0
                    .iter()
                    .filter(|(route, id)| next.get(route) != Some(id)),
            )
            .map(|(_, id)| *id)
            .collect();
        self.0 = next;
        changed
    }

    /// The subnets for which `id` is the active router.
    pub(crate) fn of(&self, id: NodeId) -> Vec<IpNet> {
        self.0
            .iter()
            .filter(|(_, router)| **router == id)
            .map(|(route, _)| *route)
            .collect()
    }
}

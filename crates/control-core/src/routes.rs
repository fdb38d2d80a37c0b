//! The active router of each subnet.
//!
//! A route counts when the node advertises it *and* the administrator approved
//! it. Of several routers of one subnet exactly one is active, because a prefix
//! may be in one peer's `AllowedIPs` only: one that may serve, before one that
//! is offline, before one whose key has expired; among equals the present one,
//! else the one with the lowest id. Default routes are different: every approved
//! exit node carries them, and each client picks.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use warren_control_types::NodeId;

use crate::directory::Standing;
use crate::records::NodeRecord;

/// The routes of an exit node, one for each address family.
pub(crate) const EXIT_ROUTES: [IpNet; 2] = [
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0)),
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0)),
];

/// Whether the prefix is a whole address family, that is, an exit route.
pub(crate) fn is_exit(route: &IpNet) -> bool {
    route.prefix_len() == 0
}

/// The routes that the node advertises, without stray host bits.
pub(crate) fn advertised(node: &NodeRecord) -> BTreeSet<IpNet> {
    node.hostinfo
        .routable_ips
        .iter()
        .map(IpNet::trunc)
        .collect()
}

/// The routes that the node advertises and that are approved.
pub(crate) fn effective(node: &NodeRecord) -> BTreeSet<IpNet> {
    if node.approved_routes.is_empty() {
        return BTreeSet::new();
    }
    advertised(node)
        .intersection(&node.approved_routes)
        .copied()
        .collect()
}

/// See the module. A change of one node looks at the routers of its subnets.
#[derive(Debug, Clone, Default)]
pub(crate) struct Primaries {
    /// The routers of each subnet, active or not.
    routers: BTreeMap<IpNet, BTreeSet<NodeId>>,
    subnets: BTreeMap<NodeId, BTreeSet<IpNet>>,
    active: BTreeMap<IpNet, NodeId>,
    /// Routers that were looked at, for tests of what a change costs.
    #[cfg(test)]
    pub(crate) visited: usize,
}

impl Primaries {
    /// The node routes these subnets now. Returns the nodes for which other
    /// subnets are active than before.
    pub(crate) fn set_routes(
        &mut self,
        id: NodeId,
        routes: BTreeSet<IpNet>,
        standing: impl Fn(NodeId) -> Standing,
    ) -> BTreeSet<NodeId> {
        let new: BTreeSet<IpNet> = routes.into_iter().filter(|route| !is_exit(route)).collect();
        let old = self.subnets.remove(&id).unwrap_or_default();
        for route in old.difference(&new) {
            if let Some(routers) = self.routers.get_mut(route) {
                routers.remove(&id);
                if routers.is_empty() {
                    self.routers.remove(route);
                }
            }
        }
        for route in &new {
            self.routers.entry(*route).or_default().insert(id);
        }
        let concerned: Vec<IpNet> = old.union(&new).copied().collect();
        if !new.is_empty() {
            self.subnets.insert(id, new);
        }
        self.choose(&concerned, standing)
    }

    /// The node came online, went offline, or its key expired or was renewed.
    pub(crate) fn standing_changed(
        &mut self,
        id: NodeId,
        standing: impl Fn(NodeId) -> Standing,
    ) -> BTreeSet<NodeId> {
        let subnets = self.subnets.get(&id);
        let concerned: Vec<IpNet> = subnets.into_iter().flatten().copied().collect();
        self.choose(&concerned, standing)
    }

    fn choose(
        &mut self,
        routes: &[IpNet],
        standing: impl Fn(NodeId) -> Standing,
    ) -> BTreeSet<NodeId> {
        let mut changed = BTreeSet::new();
        for route in routes {
            let present = self.active.get(route).copied();
            let routers = self.routers.get(route);
            #[cfg(test)]
            {
                self.visited += routers.map_or(0, BTreeSet::len);
            }
            // The best standing, then the present one, then the lowest id.
            let chosen = routers
                .into_iter()
                .flatten()
                .copied()
                .max_by_key(|id| (standing(*id), Some(*id) == present, std::cmp::Reverse(*id)));
            if chosen == present {
                continue;
            }
            changed.extend(present);
            changed.extend(chosen);
            match chosen {
                Some(id) => self.active.insert(*route, id),
                None => self.active.remove(route),
            };
        }
        changed
    }

    /// The subnets for which `id` is the active router.
    pub(crate) fn of(&self, id: NodeId) -> Vec<IpNet> {
        let subnets = self.subnets.get(&id).into_iter().flatten();
        subnets
            .filter(|route| self.active.get(route) == Some(&id))
            .copied()
            .collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const A: NodeId = NodeId(1);
    const B: NodeId = NodeId(2);

    #[test]
    fn best_standing_serves_and_the_present_router_stays_among_equals() {
        let route: IpNet = "10.9.0.0/16".parse().unwrap();
        let mut primaries = Primaries::default();
        let mut state = BTreeMap::from([(A, Standing::Offline), (B, Standing::Offline)]);
        let set = |primaries: &mut Primaries, id, state: &BTreeMap<NodeId, Standing>| {
            primaries.set_routes(id, [route].into(), |id| state[&id])
        };
        assert_eq!(set(&mut primaries, B, &state), [B].into());
        assert_eq!(set(&mut primaries, A, &state), BTreeSet::new());
        assert_eq!(primaries.of(B), [route]);
        for (id, standing, active) in [
            (A, Standing::Online, A),
            (B, Standing::Online, A),
            (A, Standing::Expired, B),
            (A, Standing::Online, B),
            (B, Standing::Offline, A),
            (A, Standing::Expired, B),
            (B, Standing::Expired, B),
        ] {
            state.insert(id, standing);
            primaries.standing_changed(id, |id| state[&id]);
            assert_eq!(primaries.of(active), [route], "{id} {standing:?}");
        }
        primaries.set_routes(B, BTreeSet::new(), |id| state[&id]);
        assert_eq!((primaries.of(A), primaries.of(B)), (vec![route], vec![]));
        primaries.set_routes(A, BTreeSet::new(), |id| state[&id]);
        assert!(primaries.active.is_empty() && primaries.routers.is_empty());
    }
}

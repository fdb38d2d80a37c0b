//! The active router of each subnet.
//!
//! A route counts when the node advertises it *and* the administrator approved
//! it. Of several routers of one subnet at most one is active, because a prefix
//! may be in one peer's `AllowedIPs` only: the one in the best [`RouterState`]; among
//! equals the present one, else the one with the lowest id. A router that is absent
//! is never active, and a subnet never moves to one without a stream. Default routes
//! are different: every approved exit node carries them, and each client picks.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use warren_control_types::NodeId;
use warren_policy::RouterService;

use crate::records::NodeRecord;

/// Whether a node can serve as a router, from "not at all" upwards.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RouterState {
    /// It is offline, its key has expired, or it does not answer.
    #[default]
    Absent,
    /// It was there before the server started and has had no time to come back yet.
    Expected,
    /// Its stream ended a moment ago; its peers are not informed yet. It goes on with
    /// the subnets that it serves if there is no other router, and gets no others.
    Lost,
    /// Its stream ended less than a second ago. It goes on with the subnets that it
    /// serves and gets no others.
    Returning,
    /// It answers over the connection that it has and opens no new one.
    Impaired,
    /// It has a stream and was not asked yet. It goes on with the subnets that it
    /// serves, and counts as much as an impaired one for others: until it has answered,
    /// nothing says that it is better.
    Unasked,
    /// It is there, and answered when it was asked.
    Answering,
}

impl RouterState {
    /// Whether a subnet that no node or another one serves may go to this one.
    fn may_take_over(self) -> bool {
        match self {
            Self::Absent | Self::Lost | Self::Returning => false,
            Self::Expected | Self::Impaired | Self::Unasked | Self::Answering => true,
        }
    }

    /// Whether a subnet stays with this router, however good others are.
    fn keeps(self) -> bool {
        matches!(self, Self::Returning | Self::Unasked)
    }

    /// How well it serves routes whose router a policy chooses (`via`). There is no
    /// present router that would be preferred, so a router whose stream ended a moment
    /// ago keeps its routes by being as good as before.
    pub(crate) fn service(self) -> RouterService {
        match self {
            Self::Absent | Self::Expected | Self::Lost => RouterService::Absent,
            Self::Impaired => RouterService::Impaired,
            Self::Returning | Self::Unasked | Self::Answering => RouterService::Good,
        }
    }

    /// The state in which it is compared with other routers.
    fn rank(self) -> Self {
        match self {
            Self::Unasked => Self::Impaired,
            other => other,
        }
    }
}

/// A subnet is served by another router.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouteMove {
    /// The subnet.
    pub route: IpNet,
    /// The router before.
    pub from: NodeId,
    /// The router now; `None`: no router is there.
    pub to: Option<NodeId>,
}

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
    /// Subnets with more than one router.
    contested: BTreeSet<IpNet>,
    moves: Vec<RouteMove>,
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
        state: impl Fn(NodeId) -> RouterState,
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
        self.choose(&concerned, state)
    }

    /// The node is in another state as a router, or its key expired or was renewed.
    pub(crate) fn state_changed(
        &mut self,
        id: NodeId,
        state: impl Fn(NodeId) -> RouterState,
    ) -> BTreeSet<NodeId> {
        let subnets = self.subnets.get(&id);
        let concerned: Vec<IpNet> = subnets.into_iter().flatten().copied().collect();
        self.choose(&concerned, state)
    }

    fn choose(
        &mut self,
        routes: &[IpNet],
        state: impl Fn(NodeId) -> RouterState,
    ) -> BTreeSet<NodeId> {
        let mut changed = BTreeSet::new();
        for route in routes {
            let present = self.active.get(route).copied();
            let routers = self.routers.get(route);
            if routers.is_some_and(|routers| routers.len() > 1) {
                self.contested.insert(*route);
            } else {
                self.contested.remove(route);
            }
            #[cfg(test)]
            {
                self.visited += routers.map_or(0, BTreeSet::len);
            }
            let stays = |id: &NodeId| state(*id).keeps();
            let present_routes = routers.into_iter().flatten().any(|id| Some(*id) == present);
            if present_routes && present.as_ref().is_some_and(stays) {
                continue;
            }
            // The best state, then the present one, then the lowest id.
            let there = routers.into_iter().flatten().copied();
            let there = there.filter(|id| match state(*id) {
                RouterState::Absent => false,
                state => Some(*id) == present || state.may_take_over(),
            });
            let chosen = there.max_by_key(|id| {
                let rank = state(*id).rank();
                (rank, Some(*id) == present, std::cmp::Reverse(*id))
            });
            if chosen == present {
                continue;
            }
            changed.extend(present);
            changed.extend(chosen);
            if let Some(from) = present {
                self.moves.push(RouteMove {
                    route: *route,
                    from,
                    to: chosen,
                });
            }
            match chosen {
                Some(id) => self.active.insert(*route, id),
                None => self.active.remove(route),
            };
        }
        changed
    }

    /// Whether any subnet has more than one router.
    pub(crate) fn is_contested(&self) -> bool {
        !self.contested.is_empty()
    }

    /// All routers of subnets that have more than one.
    pub(crate) fn rivals(&self) -> BTreeSet<NodeId> {
        let routers = self
            .contested
            .iter()
            .filter_map(|route| self.routers.get(route));
        routers.flatten().copied().collect()
    }

    /// The subnets that moved from one router to another since the last call.
    pub(crate) fn take_moves(&mut self) -> Vec<RouteMove> {
        std::mem::take(&mut self.moves)
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

    use proptest::prelude::*;

    use super::*;

    const A: NodeId = NodeId(1);
    const B: NodeId = NodeId(2);
    const C: NodeId = NodeId(3);

    #[test]
    fn best_router_serves_and_the_present_one_stays_among_equals() {
        use RouterState::{Absent, Answering, Expected, Impaired, Lost, Unasked};
        let route: IpNet = "10.9.0.0/16".parse().unwrap();
        let mut primaries = Primaries::default();
        let mut state = BTreeMap::from([(A, Absent), (B, Expected)]);
        let set = |primaries: &mut Primaries, id, state: &BTreeMap<NodeId, RouterState>| {
            primaries.set_routes(id, [route].into(), |id| state[&id])
        };
        assert_eq!(set(&mut primaries, B, &state), [B].into());
        assert!(!primaries.is_contested());
        assert_eq!(set(&mut primaries, A, &state), BTreeSet::new());
        assert_eq!(primaries.rivals(), [A, B].into());
        for (id, new, active) in [
            (A, Answering, Some(A)),
            (B, Answering, Some(A)),
            (A, Lost, Some(B)),
            (A, Answering, Some(B)),
            (B, Impaired, Some(A)),
            (A, Impaired, Some(A)),
            (A, Absent, Some(B)),
            (B, Absent, None),
            (A, Lost, None),
            (A, Impaired, Some(A)),
            (A, Lost, Some(A)),
            (B, Lost, Some(A)),
            // A new stream is no sign of being better, nor of being worse.
            (A, Impaired, Some(A)),
            (B, Unasked, Some(A)),
            (B, Impaired, Some(A)),
            (A, Unasked, Some(A)),
            (B, Answering, Some(A)),
            (A, Impaired, Some(B)),
            (B, Unasked, Some(B)),
            (A, Answering, Some(B)),
            (B, Answering, Some(B)),
            (B, Absent, Some(A)),
        ] {
            state.insert(id, new);
            primaries.state_changed(id, |id| state[&id]);
            let serving = [A, B].into_iter().find(|id| !primaries.of(*id).is_empty());
            assert_eq!(serving, active, "{id} {new:?}");
        }
        let moves = primaries.take_moves();
        let withdrawn = RouteMove {
            route,
            from: B,
            to: None,
        };
        assert_eq!((moves.len(), moves.contains(&withdrawn)), (7, true));
        primaries.set_routes(B, BTreeSet::new(), |id| state[&id]);
        primaries.set_routes(A, BTreeSet::new(), |id| state[&id]);
        assert!(primaries.active.is_empty() && primaries.routers.is_empty());
        assert!(!primaries.is_contested());
    }

    proptest! {
        /// The active router is never absent, never worse than another one, and there
        /// is one if any router is there; it changes only to a better one.
        #[test]
        fn active_router_is_the_best_and_stays(
            changes in prop::collection::vec((1_i64..4, 0_usize..7, any::<bool>()), 1..60),
        ) {
            use RouterState::{Absent, Answering, Expected, Impaired, Lost, Returning, Unasked};
            const STATES: [RouterState; 7] =
                [Absent, Expected, Lost, Returning, Impaired, Unasked, Answering];
            let route: IpNet = "10.9.0.0/16".parse().unwrap();
            let mut primaries = Primaries::default();
            let mut states = BTreeMap::from([(A, Absent), (B, Absent), (C, Absent)]);
            let mut routers = BTreeSet::new();
            let mut before: Option<NodeId> = None;
            for (id, state, routes) in changes {
                let id = NodeId(id);
                states.insert(id, STATES[state]);
                let offered = routes.then_some(route).into_iter().collect();
                primaries.set_routes(id, offered, |id| states[&id]);
                if routes { routers.insert(id) } else { routers.remove(&id) };
                let active = primaries.active.get(&route).copied();
                let candidates = routers.iter().copied();
                let candidates = candidates
                    .filter(|id| Some(*id) == before || states[id].may_take_over());
                let best = candidates.map(|id| states[&id].rank()).max().unwrap_or(Absent);
                let state_of_active = active.map_or(Absent, |id| states[&id]);
                let of_active = state_of_active.rank();
                let stays = active == before && [Returning, Unasked].contains(&state_of_active);
                prop_assert!(of_active == best || stays);
                if let Some(stays) = before.filter(|id| routers.contains(id)) {
                    prop_assert!(active == before || states[&stays].rank() < of_active || best == Absent);
                }
                before = active;
            }
        }
    }
}

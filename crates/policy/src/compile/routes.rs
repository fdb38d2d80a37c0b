//! The routes of a peer that a node receives.

use std::cmp::Reverse;

use ipnet::IpNet;
use warren_control_types::NodeId;

use super::Compiled;
use super::arena::Id;
use super::bits::Slot;
use super::resolved::ResolvedSelector;
use super::rules::RuleKind;
use crate::span::Span;

/// How well a router that a `via` grant may name serves its routes, from worse to
/// better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RouterService {
    /// It is not there. The hosted service names the oldest router when all are absent.
    Absent,
    /// It is there and something is wrong with it.
    Impaired,
    /// It serves.
    Good,
}

impl Compiled {
    /// The routes behind `peer` that `viewer` receives: subnet routes that the
    /// viewer may use, or from which traffic may come to it, and exit routes if
    /// it may reach the internet there. `primary` are the subnet routes for
    /// which `peer` is the elected router, and `service` returns how well a
    /// router serves. Ascending, exit routes last.
    #[must_use]
    pub fn routes_for(
        &self,
        viewer: NodeId,
        peer: NodeId,
        primary: &[IpNet],
        service: &dyn Fn(NodeId) -> RouterService,
    ) -> Vec<IpNet> {
        let (Some(v), Some(p)) = (self.network.slot(viewer), self.network.slot(peer)) else {
            return Vec::new();
        };
        let Some(own) = self.network.get(p).map(|own| &own.node) else {
            return Vec::new();
        };
        let mut routes: Vec<IpNet> = own
            .subnet_routes()
            .filter(|route| match self.via_router(v, route, service) {
                Some(router) => router == p,
                None => primary.contains(route) && self.route_concerns(v, p, route),
            })
            .copied()
            .collect();
        routes.sort_unstable();
        let mut exits: Vec<IpNet> = own.exit_routes().copied().collect();
        if !exits.is_empty() && self.may_use_exit(v, p) {
            exits.sort_unstable();
            routes.extend(exits);
        }
        routes
    }

    /// Whether a route of the peer is relevant for the viewer.
    fn route_concerns(&self, viewer: Slot, peer: Slot, route: &IpNet) -> bool {
        let span = Span::from(route);
        let is_router = || {
            let own = self.network.get(viewer);
            own.is_some_and(|own| own.node.subnet_routes().any(|own| own == route))
        };
        let traffic_comes_in = || {
            self.compiled_rules.iter().any(|(_, compiled)| {
                compiled.reached.get(viewer)
                    && self
                        .sources
                        .get(compiled.source)
                        .is_some_and(|source| source.overlaps(&span, &self.network))
            })
        };
        self.policy.open || is_router() || self.may_reach(viewer, peer, &span) || traffic_comes_in()
    }

    /// Whether a rule in the peer's filter lets the viewer reach the route.
    fn may_reach(&self, viewer: Slot, peer: Slot, route: &Span) -> bool {
        let lookup = self.lookup();
        self.compiled_rules.iter().any(|(_, compiled)| {
            compiled.reached.get(peer)
                && self.covers(compiled.source, viewer)
                && match &compiled.kind {
                    RuleKind::Ports { to, .. } => to
                        .iter()
                        .any(|(to, _)| lookup.overlaps(*to, route) && lookup.receives(*to, peer)),
                    RuleKind::Capabilities { to, posture, .. } => to.iter().any(|to| {
                        let prefixes = lookup.prefixes_on(*to, *posture, peer);
                        let mut spans = prefixes.iter().map(Span::from);
                        spans.any(|span| span.overlaps(route))
                    }),
                    _ => false,
                }
        })
    }

    /// The router that a `via` grant picks for the viewer and the route: the
    /// one that serves best of those with a tag it names; among equals, the oldest.
    /// `None` if no such grant exists or another rule opens the route without naming
    /// routers.
    fn via_router(
        &self,
        viewer: Slot,
        route: &IpNet,
        service: &dyn Fn(NodeId) -> RouterService,
    ) -> Option<Slot> {
        let (lookup, span) = (self.lookup(), Span::from(route));
        let mut tags: Vec<Id<ResolvedSelector>> = Vec::new();
        for (_, compiled) in self.compiled_rules.iter() {
            let (opens, routers) = match &compiled.kind {
                RuleKind::Via { to, routers, .. } => {
                    let opens = to.iter().any(|(to, _)| lookup.overlaps(*to, &span));
                    (opens, routers)
                }
                RuleKind::ViaPeers { to, routers } => {
                    (to.iter().any(|to| lookup.overlaps(*to, &span)), routers)
                }
                _ => continue,
            };
            if opens && self.covers(compiled.source, viewer) {
                tags.extend(routers);
            }
        }
        if tags.is_empty() {
            return None;
        }
        let opened_otherwise =
            self.compiled_rules
                .iter()
                .any(|(_, compiled)| match &compiled.kind {
                    RuleKind::Ports { to, .. } => {
                        self.covers(compiled.source, viewer)
                            && to.iter().any(|(to, _)| lookup.overlaps(*to, &span))
                    }
                    _ => false,
                });
        if opened_otherwise {
            return None;
        }
        let candidates = self.network.all().filter(|(slot, own)| {
            lookup.has_tag(&tags, *slot) && own.node.subnet_routes().any(|own| own == route)
        });
        // The first of the best; `min_by_key` keeps the first of equals.
        let best = candidates.min_by_key(|(_, own)| Reverse(service(own.node.id)))?;
        Some(best.0)
    }

    /// Whether the viewer may reach the internet through the peer.
    fn may_use_exit(&self, viewer: Slot, peer: Slot) -> bool {
        let lookup = self.lookup();
        let opens = |kind: &RuleKind| match kind {
            RuleKind::Ports { to, .. } => to
                .iter()
                .any(|(to, _)| lookup.is_internet(*to) && lookup.receives(*to, peer)),
            RuleKind::Via { to, .. } => to
                .iter()
                .any(|(to, _)| lookup.is_internet(*to) && lookup.is_served(*to, peer)),
            _ => false,
        };
        self.policy.open
            || self.compiled_rules.iter().any(|(_, compiled)| {
                compiled.reached.get(peer)
                    && self.covers(compiled.source, viewer)
                    && opens(&compiled.kind)
            })
    }
}

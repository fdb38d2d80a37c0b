//! The routes of a peer that a node receives.

use ipnet::IpNet;
use warren_control_types::NodeId;

use super::{Compiled, PlainRule};
use crate::compile::routes::RouterService;
use crate::node::PolicyNode;
use crate::span::Span;

impl Compiled {
    /// The routes behind `peer` that `viewer` receives, as
    /// [`super::super::Compiled::routes_for`].
    pub(in crate::compile) fn routes_for(
        &self,
        viewer: NodeId,
        peer: NodeId,
        primary: &[IpNet],
        service: &dyn Fn(NodeId) -> RouterService,
    ) -> Vec<IpNet> {
        let (Some(v), Some(p)) = (self.index(viewer), self.index(peer)) else {
            return Vec::new();
        };
        let Some(own) = self.nodes.get(p) else {
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
        if self.may_use_exit(v, p) {
            let mut exits: Vec<IpNet> = own.exit_routes().copied().collect();
            exits.sort_unstable();
            routes.extend(exits);
        }
        routes
    }

    /// Whether a route of the peer is relevant for the viewer.
    fn route_concerns(&self, viewer: usize, peer: usize, route: &IpNet) -> bool {
        let span = Span::from(route);
        let is_router = self
            .nodes
            .get(viewer)
            .is_some_and(|node| node.subnet_routes().any(|own| own == route));
        let traffic_comes_in = self
            .reached_by
            .get(viewer)
            .into_iter()
            .flatten()
            .filter_map(|source| self.sources.get(*source))
            .any(|source| source.overlaps(&span));
        self.open || is_router || traffic_comes_in || self.may_reach(viewer, peer, &span)
    }

    /// Whether a rule in the peer's filter lets the viewer reach the route.
    fn may_reach(&self, viewer: usize, peer: usize, route: &Span) -> bool {
        self.rules.iter().any(|rule| match rule {
            PlainRule::Ports { source, to, .. } => {
                self.covers(*source, viewer)
                    && to
                        .iter()
                        .any(|(target, _)| target.overlaps(route) && target.reaches(self, peer))
            }
            PlainRule::Capabilities { source, to, .. } => {
                self.covers(*source, viewer)
                    && to.iter().any(|target| {
                        target
                            .prefixes_on(self, peer)
                            .iter()
                            .any(|prefix| Span::from(prefix).overlaps(route))
                    })
            }
            PlainRule::Via { .. }
            | PlainRule::ViaPeers { .. }
            | PlainRule::OwnUser { .. }
            | PlainRule::OwnUserCapabilities { .. } => false,
        })
    }

    /// The router that a `via` grant picks for the viewer and the route: the
    /// one that serves best of those with a tag it names; among equals, the oldest.
    /// `None` when no such grant is there or another rule opens the
    /// route without naming routers.
    fn via_router(
        &self,
        viewer: usize,
        route: &IpNet,
        service: &dyn Fn(NodeId) -> RouterService,
    ) -> Option<usize> {
        let span = Span::from(route);
        let mut tags: Vec<&String> = Vec::new();
        let mut opened_otherwise = false;
        for rule in &self.rules {
            match rule {
                PlainRule::Via {
                    source,
                    to,
                    routers,
                    ..
                } => {
                    if self.covers(*source, viewer) && to.iter().any(|(t, _)| t.overlaps(&span)) {
                        tags.extend(routers);
                    }
                }
                PlainRule::ViaPeers {
                    source,
                    to,
                    routers,
                } => {
                    if self.covers(*source, viewer) && to.iter().any(|t| t.overlaps(&span)) {
                        tags.extend(routers);
                    }
                }
                PlainRule::Ports { source, to, .. } => {
                    opened_otherwise |=
                        self.covers(*source, viewer) && to.iter().any(|(t, _)| t.overlaps(&span));
                }
                PlainRule::Capabilities { .. }
                | PlainRule::OwnUser { .. }
                | PlainRule::OwnUserCapabilities { .. } => {}
            }
        }
        if opened_otherwise || tags.is_empty() {
            return None;
        }
        let serves = |node: &PolicyNode| {
            node.tags.iter().any(|tag| tags.contains(&tag))
                && node.subnet_routes().any(|own| own == route)
        };
        use RouterService::{Absent, Good, Impaired};
        [Good, Impaired, Absent].into_iter().find_map(|wanted| {
            let mut nodes = self.nodes.iter();
            nodes.position(|node| serves(node) && service(node.id) == wanted)
        })
    }

    /// Whether the viewer may reach the internet through the peer.
    fn may_use_exit(&self, viewer: usize, peer: usize) -> bool {
        self.open
            || self.rules.iter().any(|rule| match rule {
                PlainRule::Ports { source, to, .. } => {
                    self.covers(*source, viewer)
                        && to
                            .iter()
                            .any(|(t, _)| t.is_internet() && t.reaches(self, peer))
                }
                PlainRule::Via {
                    source,
                    to,
                    routers,
                    ..
                } => {
                    self.covers(*source, viewer)
                        && to
                            .iter()
                            .any(|(t, _)| t.is_internet() && t.reaches_via(self, peer, routers))
                }
                PlainRule::Capabilities { .. }
                | PlainRule::ViaPeers { .. }
                | PlainRule::OwnUser { .. }
                | PlainRule::OwnUserCapabilities { .. } => false,
            })
    }

    fn covers(&self, source: usize, node: usize) -> bool {
        self.sources
            .get(source)
            .is_some_and(|source| source.covers(node))
    }
}

//! The nodes at which a packet may arrive, and the routers that carry it.

use ipnet::IpNet;
use warren_control_types::NodeId;

use super::Carrier;
use crate::explain::context::PolicyContext;
use crate::explain::evaluate::{Packet, evaluate, is_for};

impl PolicyContext<'_> {
    /// The nodes at which a packet with this destination may arrive.
    pub(super) fn receivers(&self, packet: &Packet) -> Vec<NodeId> {
        match self.evaluator().owner(packet.destination) {
            Some(owner) => vec![owner.id],
            None => self
                .nodes
                .iter()
                .filter(|node| is_for(node, packet.destination))
                .map(|node| node.id)
                .collect(),
        }
    }

    /// The routers of an address that belongs to no machine, the most specific
    /// route first.
    pub(super) fn carriers(&self, packet: &Packet) -> Vec<Carrier> {
        if self.evaluator().owner(packet.destination).is_some() {
            return Vec::new();
        }
        let mut out = Vec::new();
        for node in self.nodes {
            let offered = self.offered.get(&node.id).map_or(&[][..], Vec::as_slice);
            let covers = |route: &&IpNet| route.contains(&packet.destination);
            let approved = node.routes.iter().filter(covers).map(|route| (route, true));
            let waiting = offered
                .iter()
                .filter(covers)
                .filter(|route| !node.routes.contains(route))
                .map(|route| (route, false));
            let best = approved
                .chain(waiting)
                .max_by_key(|(route, approved)| (*approved, route.prefix_len()));
            if let Some((route, approved)) = best {
                let verdict = evaluate(self.policy, self.users, self.nodes, node.id, packet);
                out.push(Carrier {
                    node: node.id,
                    name: self.name_of(node),
                    route: *route,
                    approved,
                    lets_in: verdict.allowed,
                });
            }
        }
        out.sort_by_key(|carrier| {
            (
                !carrier.approved,
                std::cmp::Reverse(carrier.route.prefix_len()),
                carrier.node,
            )
        });
        out
    }
}

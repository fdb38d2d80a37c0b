//! The relay server of this node: which peers may use it.

use warren_wire::disco::RelayEndpoint;

use super::*;

/// Lets a peer ask the relay server of a node for endpoints; granted by the policy.
const RELAY: &str = "tailscale.com/cap/relay";
/// The attribute with which the coordination server turns the relay server off.
const DISABLED: &str = "disable-relay-server";

/// A request for an endpoint on the relay server of this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelayRequest {
    /// The peer.
    pub peer: PeerIndex,
    /// Its node key.
    pub node: NodePublic,
    /// The DERP region that the answer goes through.
    pub region: RegionId,
    /// The two clients of the endpoint.
    pub clients: [DiscoPublic; 2],
    /// The number of the request.
    pub generation: u32,
}

impl Engine {
    /// Whether the policy lets the node with this key use the relay server of this node.
    pub fn may_use_relay(&self, node: &NodePublic) -> bool {
        let Some(own) = self.netmap.self_node.as_ref() else {
            return false;
        };
        let is_disabled = own.cap_map.contains_key(DISABLED);
        let peer = self.netmap.peers.values().find(|peer| peer.key == *node);
        let Some(peer) = peer.filter(|_| !is_disabled) else {
            return false;
        };
        self.holds(peer, RELAY)
    }

    /// Sends a peer the endpoint that it asked for.
    pub fn send_relay_endpoint(
        &mut self,
        now: Instant,
        request: &RelayRequest,
        endpoint: RelayEndpoint,
    ) {
        self.paths.send_relay_endpoint(
            now,
            request.peer,
            request.region,
            request.generation,
            endpoint,
        );
        self.drain();
    }

    pub(super) fn relay_endpoint_requested(
        &mut self,
        peer: PeerIndex,
        region: RegionId,
        clients: [DiscoPublic; 2],
        generation: u32,
    ) {
        let Some(node) = self.peers.get(peer).map(|peer| peer.key) else {
            return;
        };
        if self.may_use_relay(&node) {
            let request = RelayRequest {
                peer,
                node,
                region,
                clients,
                generation,
            };
            self.outputs
                .push_back(Output::RelayEndpointRequested(request));
        }
    }
}

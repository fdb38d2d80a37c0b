//! Peer relays: the requests of peers to the relay server of this node.
//!
//! A request comes over DERP only, from the node whose disco key sealed it, and one of
//! the two clients that it names must be that node. Whether the policy lets the node use
//! this relay is decided above.

use std::time::Instant;

use warren_control_types::RegionId;
use warren_node_types::{PathAddr, PeerIndex};
use warren_wire::disco::{
    AllocateRelayEndpointRequest, AllocateRelayEndpointResponse, Message, RelayEndpoint,
};

use super::Paths;
use crate::api::Event;
use crate::core::To;

impl Paths {
    /// Sends `peer` the endpoint that it asked for with
    /// [`Event::RelayEndpointRequested`].
    pub fn send_relay_endpoint(
        &mut self,
        now: Instant,
        peer: PeerIndex,
        region: RegionId,
        generation: u32,
        endpoint: RelayEndpoint,
    ) {
        let info = self.peers.get(&peer).map(|known| &known.info);
        let Some((node, disco)) = info.and_then(|info| Some((info.node_key, info.disco_key?)))
        else {
            return;
        };
        let to = To { peer, node, disco };
        let response = Message::AllocateRelayEndpointResponse(AllocateRelayEndpointResponse {
            generation,
            endpoint,
        });
        self.core.send(now, to, PathAddr::Derp(region), &response);
    }

    /// Takes a request that came through the relay of `region`.
    pub(super) fn relay_endpoint_requested(
        &mut self,
        region: RegionId,
        peer: PeerIndex,
        request: AllocateRelayEndpointRequest,
    ) {
        let known = self.peers.get(&peer);
        let sender = known.and_then(|known| known.info.disco_key);
        if !sender.is_some_and(|sender| request.clients.contains(&sender)) {
            self.core.counters.relay_requests_refused += 1;
            return;
        }
        self.core.events.push_back(Event::RelayEndpointRequested {
            peer,
            region,
            clients: request.clients,
            generation: request.generation,
        });
    }
}

//! Peer relays, the client's side: requests to nodes that forward for others, the endpoints
//! that they and the peers name, and datagrams with a Geneve header.
//!
//! An endpoint counts only from a node that was asked, with the number of the request, or
//! from the peer that it is for; and only for the two disco keys of that peer and us. From a
//! relay itself nothing but a challenge counts, in a handshake that is under way. Datagrams
//! of a peer count only from an endpoint that we bound, or are about to, for that peer.

use std::net::SocketAddr;
use std::time::Instant;

use warren_node_types::{PathAddr, PeerIndex};
use warren_wire::disco::{
    self, AllocateRelayEndpointRequest, AllocateRelayEndpointResponse, BindRelayEndpoint, Envelope,
    Message, Ping, RelayEndpoint,
};
use warren_wire::geneve::{Header, Payload};

use super::Paths;
use crate::api::PeerRelayRole;
use crate::peer::Peer;
use crate::relay_client::{MAX_ADDRESSES, MAX_SERVERS, Offer, RelayAddr, sorted_pair};

impl Paths {
    /// Asks relay servers for endpoints, where a peer needs a path.
    pub(super) fn drive_relay_search(&mut self, now: Instant, handle: PeerIndex) {
        let Some(peer) = self.peers.get(&handle) else {
            return;
        };
        if peer.relay_search_is_due(&self.core, now) {
            let servers = self.servers_for(handle);
            if let Some(peer) = self.peers.get_mut(&handle) {
                let index = &mut self.core.relay_index;
                peer.relays.search(index, now, handle, &servers);
            }
        }
        self.send_relay_requests(now, handle);
    }

    /// The servers to ask: those whose home region is ours or that of the peer first, since
    /// they are probably near one of us; among equals any.
    fn servers_for(&mut self, handle: PeerIndex) -> Vec<PeerIndex> {
        let homes = [
            self.core.netcheck.home(),
            self.peers.get(&handle).and_then(|peer| peer.info.home_derp),
        ];
        let mut seed = [0; 4];
        self.core.entropy.fill(&mut seed);
        let seed = u32::from_be_bytes(seed);
        let mut servers: Vec<PeerIndex> = self.core.relay_index.servers.iter().copied().collect();
        servers.sort_by_cached_key(|server| {
            let home = self.peers.get(server).and_then(|peer| peer.info.home_derp);
            let is_near = home.is_some() && homes.contains(&home);
            // A multiplication by an odd number permutes; the seed makes it another one.
            let draw = (server.0 ^ seed).wrapping_mul(0x9e37_79b1);
            (!is_near, draw)
        });
        servers.truncate(MAX_SERVERS);
        servers
    }

    fn send_relay_requests(&mut self, now: Instant, handle: PeerIndex) {
        let Some(peer) = self.peers.get_mut(&handle) else {
            return;
        };
        let is_due = peer.relays.requests.iter().any(|it| it.is_due(now));
        let Some(disco) = peer.info.disco_key.filter(|_| is_due) else {
            return;
        };
        let clients = sorted_pair(*self.core.keys.public(), disco);
        let mut requests = std::mem::take(&mut peer.relays.requests);
        for request in requests.iter_mut().filter(|it| it.is_due(now)) {
            let server = self.peers.get(&request.server);
            let Some((to, region)) = server.and_then(|it| it.to().zip(it.relay(&self.core))) else {
                request.wait(now);
                continue;
            };
            self.core.want_relay(now, region);
            if !self.core.relays.is_connected(region) {
                request.wait(now);
                continue;
            }
            let message = Message::AllocateRelayEndpointRequest(AllocateRelayEndpointRequest {
                clients,
                generation: request.generation,
            });
            self.core.send(now, to, PathAddr::Derp(region), &message);
            self.core.counters.peer_relay_requests_sent += 1;
            request.sent(now);
        }
        if let Some(peer) = self.peers.get_mut(&handle) {
            peer.relays.requests = requests;
        }
    }

    /// The peer `server` answers a request for an endpoint.
    pub(super) fn handle_relay_allocation(
        &mut self,
        now: Instant,
        server: PeerIndex,
        response: &AllocateRelayEndpointResponse,
    ) {
        let generation = response.generation;
        let handle = self.core.relay_index.requested_for(generation);
        let peer = handle.and_then(|handle| self.peers.get_mut(&handle));
        let index = &mut self.core.relay_index;
        let (Some(handle), true) = (
            handle,
            peer.is_some_and(|peer| peer.relays.answered(index, server, generation)),
        ) else {
            self.core.counters.peer_relay_endpoints_refused += 1;
            return;
        };
        self.take_endpoint(now, handle, &response.endpoint, true);
        self.settle(now, handle);
    }

    /// A peer asks to meet us at a relay.
    pub(super) fn handle_call_me_maybe_via(
        &mut self,
        now: Instant,
        handle: PeerIndex,
        endpoint: &RelayEndpoint,
    ) {
        self.take_endpoint(now, handle, endpoint, false);
    }

    /// Begins a handshake for an endpoint that a server (`is_ours`) or the peer itself named.
    fn take_endpoint(
        &mut self,
        now: Instant,
        handle: PeerIndex,
        endpoint: &RelayEndpoint,
        is_ours: bool,
    ) {
        let Some(peer) = self.peers.get_mut(&handle) else {
            return;
        };
        let ranges = &self.config.ranges;
        let disco = peer.info.disco_key.filter(|_| peer.may_use_relays());
        let offer = disco.and_then(|disco| Offer::check(endpoint, &self.core, ranges, &disco));
        // A server has a key of its own, not that of a node.
        let offer = offer.filter(|offer| !self.by_disco.contains_key(&offer.server));
        let Some(offer) = offer else {
            self.core.counters.peer_relay_endpoints_refused += 1;
            return;
        };
        if !peer.relays.is_news(now, &offer) {
            return;
        }
        let call = is_ours.then(|| RelayEndpoint {
            addresses: endpoint
                .addresses
                .iter()
                .copied()
                .take(MAX_ADDRESSES)
                .collect(),
            ..endpoint.clone()
        });
        let index = &mut self.core.relay_index;
        let may = is_ours || peer.relays.may_invite(now);
        if !may || !peer.relays.begin(index, now, handle, offer, call) {
            self.core.counters.peer_relay_endpoints_refused += 1;
        }
    }

    /// Takes a datagram with a Geneve header. Returns whether it was meant for this crate; a
    /// WireGuard message of a known endpoint is not.
    pub(super) fn handle_geneve(
        &mut self,
        now: Instant,
        from: SocketAddr,
        header: Header,
        content: &[u8],
    ) -> bool {
        let from = RelayAddr {
            server: from,
            vni: header.vni,
        };
        match header.payload {
            Payload::DiscoControl => self.handle_challenge(now, from, content),
            Payload::Disco => self.handle_relayed_disco(now, from, content),
            Payload::WireGuard => {
                let is_known = self.core.relay_index.peer_at(from).is_some();
                self.core.counters.peer_relay_unknown += u64::from(!is_known);
                return !is_known;
            }
        }
        self.settle_shared(now);
        true
    }

    fn handle_challenge(&mut self, now: Instant, from: RelayAddr, content: &[u8]) {
        let Ok(envelope) = Envelope::parse(content) else {
            self.core.counters.disco_malformed += 1;
            return;
        };
        let server = envelope.sender;
        let handle = self.core.relay_index.in_handshake(server, from.vni);
        let Some(peer) = handle.and_then(|handle| self.peers.get_mut(&handle)) else {
            self.core.counters.peer_relay_unknown += 1;
            return;
        };
        let Some(opened) = self.core.keys.open(&envelope) else {
            self.core.counters.disco_does_not_open += 1;
            return;
        };
        let expected = |bind: &BindRelayEndpoint, peer: &mut Peer| {
            let handshake = peer.relays.handshake_mut(server, from.vni);
            let generation = handshake.map(|it| it.generation);
            bind.vni == from.vni.get()
                && Some(bind.generation) == generation
                && Some(bind.remote) == peer.info.disco_key
        };
        let index = &mut self.core.relay_index;
        let counts = match (Message::parse(&opened), handle) {
            (Ok(Message::BindRelayEndpointChallenge(bind)), Some(handle))
                if expected(&bind, peer) =>
            {
                let challenge = bind.challenge;
                peer.relays
                    .challenged(index, now, handle, server, from, challenge)
            }
            _ => false,
        };
        self.core.counters.peer_relay_challenges_refused += u64::from(!counts);
        if let Some(handle) = handle.filter(|_| counts) {
            self.settle(now, handle);
        }
    }

    fn handle_relayed_disco(&mut self, now: Instant, from: RelayAddr, content: &[u8]) {
        // Before any cryptography: the peer behind that endpoint, and its key.
        let handle = self.core.relay_index.peer_at(from);
        let Some(peer) = handle.and_then(|handle| self.peers.get(&handle)) else {
            self.core.counters.peer_relay_unknown += 1;
            return;
        };
        if !disco::looks_like_disco(content) {
            self.core.counters.disco_malformed += 1;
            return;
        }
        let (key, node) = (peer.info.disco_key, peer.info.node_key);
        let Some((sender, message)) = self.open(content) else {
            return;
        };
        let Some(handle) = handle.filter(|_| key == Some(sender)) else {
            self.core.counters.peer_relay_unknown += 1;
            return;
        };
        match message {
            Message::Ping(Ping {
                sender: Some(sender),
                ..
            }) if sender.node != node => {
                self.core.counters.ping_wrong_node += 1;
            }
            Message::Ping(ping) => {
                if let Some(peer) = self.peers.get_mut(&handle) {
                    peer.handle_ping(&mut self.core, now, ping, from.into());
                }
                self.settle(now, handle);
            }
            Message::Pong(pong) => self.handle_pong(now, sender, from.into(), pong),
            _ => self.core.counters.disco_wrong_transport += 1,
        }
    }

    /// Notes whether a peer may be asked for endpoints.
    pub(super) fn set_relay_server(
        &mut self,
        now: Instant,
        handle: PeerIndex,
        role: PeerRelayRole,
    ) {
        let servers = &mut self.core.relay_index.servers;
        if role != PeerRelayRole::Server {
            servers.remove(&handle);
        } else if servers.insert(handle) {
            for peer in self.peers.values_mut().filter(|peer| peer.is_searching()) {
                peer.relays.something_changed();
            }
            self.settle_searching_peers(now);
        }
    }
}

//! Packets from the network, and the checks before they count.
//!
//! A disco packet counts only if its disco key is listed in the netmap. Because
//! a packet can be reflected to its author (the box has no direction), packets
//! that carry our own keys are dropped, and a pong counts only for a ping that we
//! sent to that peer over the same kind of transport. A CallMeMaybe counts only
//! over a relay, from the node whose disco key sealed it.

use std::net::SocketAddr;
use std::time::Instant;

use warren_control_types::RegionId;
use warren_keys::{DiscoPublic, NodePublic};
use warren_node_types::{PathAddr, PeerIndex};
use warren_wire::disco::{self, Envelope, Message, ParseError, Ping, Pong};
use warren_wire::geneve::Header;
use warren_wire::stun;

use super::Paths;
use crate::api::Event;
use crate::core::To;
use crate::relay_client::RelayAddr;

impl Paths {
    /// Takes a datagram from one of the UDP sockets. Returns whether it was
    /// meant for this crate (STUN or disco, or anything in a Geneve header of an unknown
    /// peer relay); all others are WireGuard's, some in a Geneve header.
    pub fn handle_udp(&mut self, now: Instant, from: SocketAddr, packet: &[u8]) -> bool {
        let from = stun::unmap(from);
        if stun::looks_like_stun(packet) {
            let progress = self
                .core
                .netcheck
                .handle_stun(now, packet, &mut self.core.counters);
            self.apply(now, progress);
            self.settle_shared(now);
            return true;
        }
        if let Some((header, content)) = Header::parse(packet) {
            return self.handle_geneve(now, from, header, content);
        }
        if !disco::looks_like_disco(packet) {
            return false;
        }
        if let Some((sender, message)) = self.open(packet) {
            self.handle_udp_message(now, from, sender, message);
            self.settle_shared(now);
        }
        true
    }

    /// Takes a packet from the relay of `region`, with the sender that the
    /// relay has verified. Returns whether it was disco; all others are
    /// WireGuard's.
    pub fn handle_relay(
        &mut self,
        now: Instant,
        region: RegionId,
        from: NodePublic,
        packet: &[u8],
    ) -> bool {
        self.core.netcheck.relay_received(now, region);
        self.core.relays.touch(now, region);
        let handle = self.by_node.get(&from).copied();
        let is_disco = disco::looks_like_relayed_disco(packet);
        if let Some(peer) = handle.and_then(|handle| self.peers.get_mut(&handle)) {
            peer.received_at(region);
        }
        if !is_disco {
            if let Some(handle) = handle {
                self.settle(now, handle);
            }
            return false;
        }
        let Ok(envelope) = Envelope::parse(packet) else {
            self.core.counters.disco_malformed += 1;
            return true;
        };
        let known = handle.and_then(|handle| self.peers.get(&handle));
        let matches = known.is_some_and(|peer| peer.info.disco_key == Some(envelope.sender));
        let Some(handle) = handle.filter(|_| matches) else {
            // The netmap may be about to name this node or its new key.
            if self.by_disco.contains_key(&envelope.sender) {
                self.core.counters.disco_wrong_relay_sender += 1;
            } else if envelope.sender == *self.core.keys.public() {
                self.core.counters.disco_from_ourselves += 1;
            } else {
                self.core.counters.disco_unknown_sender += 1;
                self.pre_netmap.keep(now, region, from, packet);
            }
            return true;
        };
        if let Some((_, message)) = self.open(packet) {
            self.handle_relay_message(now, region, handle, message);
        }
        self.settle(now, handle);
        self.settle_shared(now);
        true
    }

    /// Opens a packet of a peer; drops and counts all others.
    pub(super) fn open(&mut self, packet: &[u8]) -> Option<(DiscoPublic, Message)> {
        let counters = &mut self.core.counters;
        let Ok(envelope) = Envelope::parse(packet) else {
            counters.disco_malformed += 1;
            return None;
        };
        if envelope.sender == *self.core.keys.public() {
            counters.disco_from_ourselves += 1;
            return None;
        }
        if !self.by_disco.contains_key(&envelope.sender) {
            counters.disco_unknown_sender += 1;
            return None;
        }
        let Some(opened) = self.core.keys.open(&envelope) else {
            counters.disco_does_not_open += 1;
            return None;
        };
        match Message::parse(&opened) {
            Ok(message) => Some((envelope.sender, message)),
            Err(ParseError::UnknownType { .. } | ParseError::UnknownVersion { .. }) => {
                counters.disco_unknown_type += 1;
                None
            }
            Err(ParseError::NotDisco | ParseError::Truncated { .. }) => {
                counters.disco_malformed += 1;
                None
            }
        }
    }

    pub(super) fn handle_udp_message(
        &mut self,
        now: Instant,
        from: SocketAddr,
        sender: DiscoPublic,
        message: Message,
    ) {
        // A source that nothing can be sent to: forged, or rewritten badly.
        if from.port() == 0 || from.ip().is_unspecified() {
            self.core.counters.disco_malformed += 1;
            return;
        }
        match message {
            Message::Ping(ping) => self.handle_udp_ping(now, from, sender, ping),
            Message::Pong(pong) => self.handle_pong(now, sender, PathAddr::Udp(from), pong),
            Message::CallMeMaybe(_)
            | Message::CallMeMaybeVia(_)
            | Message::AllocateRelayEndpointRequest(_)
            | Message::AllocateRelayEndpointResponse(_)
            | Message::PortSearch(_)
            | Message::BindRelayEndpoint(_)
            | Message::BindRelayEndpointChallenge(_)
            | Message::BindRelayEndpointAnswer(_) => {
                self.core.counters.disco_wrong_transport += 1;
            }
        }
    }

    fn handle_relay_message(
        &mut self,
        now: Instant,
        region: RegionId,
        handle: PeerIndex,
        message: Message,
    ) {
        let Some(peer) = self.peers.get_mut(&handle) else {
            return;
        };
        match message {
            Message::Ping(ping) => {
                if ping
                    .sender
                    .is_some_and(|sender| sender.node != peer.info.node_key)
                {
                    self.core.counters.ping_wrong_node += 1;
                    return;
                }
                peer.handle_ping(&mut self.core, now, ping, PathAddr::Derp(region));
            }
            Message::Pong(pong) => {
                if let Some(sender) = peer.info.disco_key {
                    self.handle_pong(now, sender, PathAddr::Derp(region), pong);
                }
            }
            Message::CallMeMaybe(endpoints) => {
                peer.handle_call_me_maybe(&mut self.core, now, &endpoints);
            }
            Message::PortSearch(step) => self.handle_port_search(now, region, handle, step),
            Message::AllocateRelayEndpointRequest(request) => {
                self.relay_endpoint_requested(region, handle, request);
            }
            Message::CallMeMaybeVia(endpoint) => {
                self.handle_call_me_maybe_via(now, handle, &endpoint);
            }
            Message::AllocateRelayEndpointResponse(response) => {
                self.handle_relay_allocation(now, handle, &response);
            }
            Message::BindRelayEndpoint(_)
            | Message::BindRelayEndpointChallenge(_)
            | Message::BindRelayEndpointAnswer(_) => {
                self.core.counters.disco_wrong_transport += 1;
            }
        }
    }

    fn handle_udp_ping(&mut self, now: Instant, from: SocketAddr, sender: DiscoPublic, ping: Ping) {
        let Some(owners) = self.by_disco.get(&sender) else {
            return;
        };
        let claimed = match ping.sender {
            Some(claim) if claim.node == self.core.node_key => {
                self.core.counters.disco_from_ourselves += 1;
                return;
            }
            Some(claim) => {
                let named = self
                    .by_node
                    .get(&claim.node)
                    .filter(|named| owners.contains(named));
                let Some(named) = named else {
                    self.core.counters.ping_wrong_node += 1;
                    return;
                };
                Some(*named)
            }
            None if owners.len() == 1 => owners.first().copied(),
            None => None,
        };
        let Some(handle) = claimed else {
            // Several nodes have this key, and the ping names none: answer it, but
            // learn nothing.
            self.core.counters.ping_ambiguous += 1;
            let first = owners.first().copied();
            let node = first.and_then(|first| Some(self.peers.get(&first)?.info.node_key));
            if let Some((peer, node)) = first.zip(node) {
                let pong = Message::Pong(Pong {
                    tx: ping.tx,
                    source: from,
                });
                let to = To {
                    peer,
                    node,
                    disco: sender,
                };
                if self.core.send(now, to, PathAddr::Udp(from), &pong) {
                    self.core.counters.pongs_sent += 1;
                }
            }
            return;
        };
        if let Some(peer) = self.peers.get_mut(&handle) {
            peer.handle_ping(&mut self.core, now, ping, PathAddr::Udp(from));
        }
        self.settle(now, handle);
    }

    pub(super) fn handle_pong(
        &mut self,
        now: Instant,
        sender: DiscoPublic,
        came: PathAddr,
        pong: Pong,
    ) {
        let Some(waiting) = self.core.pings.get(&pong.tx).copied() else {
            self.core.counters.pong_unknown_transaction += 1;
            return;
        };
        let Some(peer) = self.peers.get_mut(&waiting.peer) else {
            return;
        };
        if peer.info.disco_key != Some(sender) {
            self.core.counters.pong_wrong_peer += 1;
            return;
        }
        // The address may differ (a NAT answers from elsewhere), the kind of
        // transport may not.
        match (waiting.via, came) {
            (PathAddr::Udp(_), PathAddr::Udp(_)) => {}
            (PathAddr::Derp(asked), PathAddr::Derp(came)) if asked == came => {}
            (asked @ PathAddr::PeerRelay { .. }, came) if asked == came => {}
            (PathAddr::Udp(_) | PathAddr::PeerRelay { .. } | PathAddr::Derp(_), _) => {
                self.core.counters.pong_wrong_transport += 1;
                return;
            }
        }
        self.core.pings.remove(&pong.tx);
        let latency = now.saturating_duration_since(waiting.sent);
        match waiting.via {
            PathAddr::Udp(address) => peer.handle_pong(now, address, latency),
            PathAddr::PeerRelay { server, vni } => {
                let address = RelayAddr { server, vni };
                peer.handle_relayed_pong(&mut self.core, now, address, latency);
            }
            PathAddr::Derp(_) => {}
        }
        if let Some(token) = waiting.token
            && self.user_pings.remove(&token).is_some()
        {
            let (peer, via) = (waiting.peer, waiting.via);
            self.core.events.push_back(Event::Pong {
                token,
                peer,
                latency,
                via,
            });
        }
        self.settle(now, waiting.peer);
    }
}

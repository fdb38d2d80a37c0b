//! The relayed path to a peer: handshakes with relay servers, and the check of the path.

use std::time::{Duration, Instant};

use warren_node_types::PathAddr;
use warren_wire::disco::{BindRelayEndpoint, Message};

use super::Peer;
use crate::api::PeerRelayRole;
use crate::core::{Core, PingOptions};
use crate::relay_client::RelayAddr;

impl Peer {
    /// Whether the peer and we may meet at a peer relay.
    pub(crate) fn may_use_relays(&self) -> bool {
        self.info.peer_relay != PeerRelayRole::None && self.info.disco_key.is_some()
    }

    /// Whether a CallMeMaybeVia can be sent to the peer now.
    fn can_call(&self, core: &Core) -> bool {
        let region = self.call_me_maybe_relay(core);
        region.is_some_and(|region| core.relays.is_connected(region))
    }

    /// Does what is due, apart from the search.
    pub(super) fn drive_relays(&mut self, core: &mut Core, now: Instant) {
        if !self.may_use_relays() {
            self.forget_relays(core);
            return;
        }
        let direct_is_good = self.has_good_path(now);
        self.relays
            .leave_dead(&mut core.relay_index, now, direct_is_good);
        let works = direct_is_good || self.relays.is_good(now);
        let is_needed = !works && self.is_active(now);
        self.relays.note_need(now, is_needed);
        self.relays.end_requests(&mut core.relay_index, now);
        let ended = self
            .relays
            .end_handshakes(&mut core.relay_index, |it| it.has_ended(now));
        core.forget_servers(ended);
        self.drive_handshakes(core, now);
        let checked = self.relays.check(now, self.last_sent, direct_is_good);
        if let Some((to, address)) = self.to().zip(checked) {
            core.send_ping(now, to, address.into(), PingOptions::default());
        }
    }

    fn drive_handshakes(&mut self, core: &mut Core, now: Instant) {
        let (Some(to), can_call) = (self.to(), self.can_call(core)) else {
            return;
        };
        let region = self.call_me_maybe_relay(core);
        for handshake in &mut self.relays.handshakes {
            let due = handshake.due(now, can_call);
            let bind = BindRelayEndpoint {
                vni: handshake.offer.vni.get(),
                generation: handshake.generation,
                remote: to.disco,
                challenge: [0; 32],
            };
            let (server, vni) = (handshake.offer.server, handshake.offer.vni);
            if let Some((region, endpoint)) = region.zip(due.call) {
                let call = Message::CallMeMaybeVia(endpoint);
                core.send(now, to, PathAddr::Derp(region), &call);
            }
            if due.bind {
                for address in handshake.offer.addresses.iter().copied() {
                    let at = RelayAddr {
                        server: address,
                        vni,
                    };
                    core.send_to_server(server, at, &Message::BindRelayEndpoint(bind));
                }
            }
            if let Some((address, challenge)) = due.answer {
                let at = RelayAddr {
                    server: address,
                    vni,
                };
                let answer = BindRelayEndpoint { challenge, ..bind };
                core.send_to_server(server, at, &Message::BindRelayEndpointAnswer(answer));
                core.send_ping(now, to, at.into(), PingOptions::default());
            }
        }
    }

    /// When `drive_relays` or the search has something to do.
    pub(super) fn relays_deadline(&self, core: &Core, now: Instant) -> Option<Instant> {
        if !self.may_use_relays() {
            return None;
        }
        self.relays.deadline(
            now,
            core.relay_index.servers.len(),
            self.last_sent,
            self.has_good_path(now),
            self.can_call(core),
        )
    }

    /// Whether to ask relay servers now.
    pub(crate) fn relay_search_is_due(&self, core: &Core, now: Instant) -> bool {
        let servers = core.relay_index.servers.len();
        self.may_use_relays()
            && !self.has_good_path(now)
            && self.relays.search_is_due(now, servers, self.last_sent)
    }

    /// Forgets all endpoints on relays.
    pub(crate) fn forget_relays(&mut self, core: &mut Core) {
        if !self.relays.is_empty() {
            let servers = self.relays.forget(&mut core.relay_index);
            core.forget_servers(servers);
        }
    }

    /// A ping of the peer came through a relay.
    pub(super) fn pinged_through(&mut self, core: &mut Core, now: Instant, address: RelayAddr) {
        if self.relays.pinged(now, address)
            && let Some(to) = self.to()
        {
            core.send_ping(now, to, address.into(), PingOptions::default());
        }
    }

    /// A pong of the peer for a ping through a relay came after `latency`.
    pub(crate) fn handle_relayed_pong(
        &mut self,
        core: &mut Core,
        now: Instant,
        address: RelayAddr,
        latency: Duration,
    ) {
        let index = &mut core.relay_index;
        if let Some(server) = self.relays.confirmed(index, now, address, latency) {
            core.counters.peer_relays_found += 1;
            core.forget_servers(vec![server]);
        }
    }
}

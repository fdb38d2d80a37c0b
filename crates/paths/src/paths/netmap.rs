//! Inputs from the netmap: the relay map and the peers.

use std::time::Instant;

use warren_control_types::{DerpMap, RegionId};
use warren_keys::DiscoPublic;
use warren_node_types::PeerIndex;

use super::Paths;
use crate::api::PeerInfo;
use crate::endpoints::FIRST_ANSWER;
use crate::peer::Peer;

/// In tailnets up to this size paths are set up before the first packet.
pub(super) const SMALL_TAILNET: usize = 16;

impl Paths {
    /// Takes the relay map. Measuring starts at once if it differs from the
    /// last one.
    pub fn set_derp_map(&mut self, now: Instant, map: &DerpMap) {
        if !self.core.netcheck.set_map(map) {
            return;
        }
        let exists = |region: RegionId| map.regions.contains_key(&region);
        self.core.relays.retain(exists, &mut self.core.events);
        self.announced_home = self.announced_home.filter(|home| exists(*home));
        self.core.own.publish_by(now + FIRST_ANSWER);
        self.measure(now);
        self.settle_all_peers(now);
    }

    /// Takes what the netmap says about a peer, new or not.
    pub fn upsert_peer(&mut self, now: Instant, handle: PeerIndex, info: PeerInfo) {
        let old = self.peers.get(&handle).map(|peer| peer.info.clone());
        if old
            .as_ref()
            .is_some_and(|old| old.node_key != info.node_key)
        {
            self.remove_peer(now, handle);
        }
        let old = old.filter(|old| old.node_key == info.node_key);
        if old.as_ref() == Some(&info) {
            return;
        }
        // A node key has one peer; a second handle for it takes over.
        if let Some(other) = self
            .by_node
            .get(&info.node_key)
            .copied()
            .filter(|it| *it != handle)
        {
            self.remove_peer(now, other);
        }
        let old_disco = old.as_ref().and_then(|old| old.disco_key);
        let new_disco = old_disco != info.disco_key;
        if new_disco {
            self.forget_disco(handle, old_disco);
            if let Some(disco) = info.disco_key {
                self.by_disco.entry(disco).or_default().insert(handle);
            }
        }
        self.by_node.insert(info.node_key, handle);
        if new_disco && old.is_some() {
            // The process that took part in it is gone.
            self.end_port_search_with(now, handle);
        }
        let node = info.node_key;
        let relay_role = info.peer_relay;
        let small = self.peers.len() < SMALL_TAILNET;
        let peer = self
            .peers
            .entry(handle)
            .or_insert_with(|| Peer::new(handle, info.clone(), self.config.ranges));
        peer.info = info;
        if new_disco && old.is_some() {
            peer.restarted(&mut self.core, now);
        }
        peer.set_endpoints(&mut self.core, now);
        if new_disco || !peer.has_good_path(now) {
            if small || peer.is_active(now) {
                peer.note_learned(now);
            }
            // Also sends our addresses through the peer's new home.
            if peer.is_searching() {
                peer.want_call_me_maybe(now);
            }
        }
        self.set_relay_server(now, handle, relay_role);
        self.settle(now, handle);
        for packet in self.pre_netmap.take(now, &node) {
            self.handle_relay(now, packet.region, node, &packet.packet);
        }
        self.settle_shared(now);
    }

    /// Forgets a peer that left the netmap.
    pub fn remove_peer(&mut self, now: Instant, handle: PeerIndex) {
        let Some(mut peer) = self.peers.remove(&handle) else {
            return;
        };
        peer.forget_relays(&mut self.core);
        self.core.relay_index.servers.remove(&handle);
        self.by_node.remove(&peer.info.node_key);
        self.forget_disco(handle, peer.info.disco_key);
        self.timers.remove(&handle);
        self.end_pings_of(handle);
        self.release_sockets(now, handle);
        self.settle_shared(now);
    }

    /// Whether the map stream of control is up. While it is not, home stays
    /// where it is: peers could not learn of a new one.
    pub fn set_control_connected(&mut self, connected: bool) {
        self.core.netcheck.set_control_away(!connected);
    }

    pub(super) fn forget_disco(&mut self, handle: PeerIndex, disco: Option<DiscoPublic>) {
        self.core.pings.forget_peer(handle);
        let Some(disco) = disco else { return };
        let Some(owners) = self.by_disco.get_mut(&disco) else {
            return;
        };
        owners.remove(&handle);
        if owners.is_empty() {
            self.by_disco.remove(&disco);
            self.core.keys.forget(&disco);
        }
    }
}

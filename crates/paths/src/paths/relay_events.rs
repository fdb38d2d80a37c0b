//! Inputs from the connections to relays.

use std::time::{Duration, Instant};

use warren_control_types::RegionId;
use warren_keys::NodePublic;

use super::Paths;

/// A lost relay connection asks for a new measurement at most this often.
const RELAY_LOSS_GAP: Duration = Duration::from_secs(5);

impl Paths {
    /// A connection to the relay of this region is up.
    pub fn relay_connected(&mut self, now: Instant, region: RegionId) {
        self.core.relays.connected(now, region);
        self.send_waiting_pings(now);
        // CallMeMaybe messages on the old connection may be lost.
        let searching = self.peers.values_mut().filter(|peer| peer.is_searching());
        searching.for_each(|peer| peer.want_call_me_maybe(now));
        let waiting = self
            .peers
            .iter()
            .filter(|(_, peer)| peer.call_me_maybe_waits() || peer.relays.waits_for_derp(now));
        for handle in waiting.map(|(handle, _)| *handle).collect::<Vec<_>>() {
            self.settle(now, handle);
        }
        self.settle_shared(now);
    }

    /// The connection is gone, or the attempt for [`Event::ConnectRelay`](crate::Event::ConnectRelay)
    /// failed.
    pub fn relay_disconnected(&mut self, now: Instant, region: RegionId) {
        let was_connected = self.core.relays.is_connected(region);
        self.core.relays.disconnected(now, region);
        self.core.netcheck.relay_lost(region);
        self.peers.values_mut().for_each(|peer| peer.not_at(region));
        let recently = self
            .core
            .netcheck
            .last_started()
            .is_some_and(|at| now < at + RELAY_LOSS_GAP);
        if was_connected && !recently {
            self.measure(now);
        }
        self.settle_all_peers(now);
    }

    /// The relay of this region reports that `peer` is not connected to it.
    pub fn relay_peer_gone(&mut self, now: Instant, region: RegionId, peer: NodePublic) {
        let Some(handle) = self.by_node.get(&peer).copied() else {
            return;
        };
        if let Some(peer) = self.peers.get_mut(&handle) {
            peer.not_at(region);
            // It may be on its way to its relay while both sides start.
            if peer.is_searching() && peer.relay(&self.core) == Some(region) {
                peer.want_call_me_maybe(now + Duration::from_millis(250));
            }
        }
        self.settle(now, handle);
        self.settle_shared(now);
    }
}

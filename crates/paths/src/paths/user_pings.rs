//! Pings that the user asked for.

use std::time::Instant;

use warren_node_types::PeerIndex;

use super::Paths;
use crate::api::{Event, PingError};
use crate::core::PingOptions;
use crate::pings::TIMEOUT;

/// Bytes of a disco ping without padding.
const PING_LEN: u16 = 124;

/// A ping that is under way for the user.
pub(super) struct UserPing {
    peer: PeerIndex,
    pub(super) ends_at: Instant,
    padding: u16,
    /// The relay was not connected when the ping began.
    waits_for_relay: bool,
}

impl Paths {
    /// Pings `peer` on every path that may be in use; the first answer ends it
    /// with [`Event::Pong`], and 5 s without one with [`Event::PingFailed`].
    ///
    /// `size` is the length of the UDP payload; shorter than 124 bytes is not
    /// possible and means 124.
    pub fn ping(&mut self, now: Instant, peer: PeerIndex, token: u64, size: Option<u16>) {
        let padding = size.unwrap_or_default().saturating_sub(PING_LEN);
        let Some(state) = self.peers.get_mut(&peer) else {
            self.fail(token, PingError::NoSuchPeer);
            return;
        };
        if state.info.disco_key.is_none() {
            self.fail(token, PingError::NoDisco);
            return;
        }
        self.last_activity = Some(now);
        let options = PingOptions {
            token: Some(token),
            padding,
        };
        let has_path = state.ping_for_user(&mut self.core, now, options);
        let relay = state.relay(&self.core);
        let connected = relay.is_some_and(|region| self.core.relays.is_connected(region));
        if has_path {
            let waits_for_relay = relay.is_some() && !connected && !state.has_good_path(now);
            let ping = UserPing {
                peer,
                ends_at: now + TIMEOUT,
                padding,
                waits_for_relay,
            };
            self.user_pings.insert(token, ping);
        } else {
            self.fail(token, PingError::NoPath);
        }
        self.settle(now, peer);
        self.settle_shared(now);
    }

    /// Sends the pings that wait for a relay, as far as one is connected now.
    pub(super) fn send_waiting_pings(&mut self, now: Instant) {
        for (token, peer) in self
            .user_pings
            .iter()
            .filter(|(_, ping)| ping.waits_for_relay)
            .map(|(token, ping)| (*token, ping.peer))
            .collect::<Vec<_>>()
        {
            let Some(peer) = self.peers.get(&peer) else {
                continue;
            };
            let Some(ping) = self.user_pings.get_mut(&token) else {
                continue;
            };
            let options = PingOptions {
                token: Some(token),
                padding: ping.padding,
            };
            ping.waits_for_relay = !peer.ping_relay_for_user(&mut self.core, now, options);
        }
    }

    /// Ends the pings of a peer that is gone.
    pub(super) fn end_pings_of(&mut self, handle: PeerIndex) {
        let tokens: Vec<u64> = self
            .user_pings
            .iter()
            .filter(|(_, ping)| ping.peer == handle)
            .map(|(token, _)| *token)
            .collect();
        for token in tokens {
            self.fail(token, PingError::NoSuchPeer);
        }
    }

    /// Ends the pings that were not answered in time.
    pub(super) fn end_late_pings(&mut self, now: Instant) {
        let ended = self
            .user_pings
            .iter()
            .filter(|(_, ping)| now >= ping.ends_at);
        for token in ended.map(|(token, _)| *token).collect::<Vec<_>>() {
            self.fail(token, PingError::Timeout);
        }
    }

    pub(super) fn fail(&mut self, token: u64, error: PingError) {
        self.user_pings.remove(&token);
        self.core
            .events
            .push_back(Event::PingFailed { token, error });
    }
}

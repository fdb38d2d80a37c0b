//! Where the packets of peers come from, and what it means when they come on a
//! session that is not there.
//!
//! A node that was restarted has no sessions. Its peers do not know: they still send
//! on the old ones, and notice after 15 s of silence (WireGuard's timer), or earlier
//! when the coordination server informs them. The restarted node can see it from the
//! first packet, but cannot prove it: when tunnel data for an unknown session comes
//! from an address of a peer, and there is no session with that peer, the node
//! requests one. The handshake then authenticates the peer.
//!
//! Unauthenticated senders cause nothing: an address or relay key that belongs to no
//! peer ends at a lookup. A sender that forges a peer's address causes at most one
//! handshake with that peer in [`ASK_INTERVAL`].

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;
use warren_keys::NodePublic;
use warren_tunnel::{PeerIndex, Source};

use super::{InSink, View};

/// How often at most a session is asked for because of packets that belong to
/// none, per peer.
const ASK_INTERVAL: Duration = Duration::from_secs(5);

/// The addresses and relay keys of the peers, as the netmap has them.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    addresses: FxHashMap<SocketAddr, PeerIndex>,
    keys: FxHashMap<NodePublic, PeerIndex>,
}

impl Sources {
    /// Adds the key of `peer`, and takes its addresses to be `now` and no longer
    /// `before`. Where peers name the same address, as in private networks that
    /// look alike, the last one has it.
    pub fn set(
        &mut self,
        peer: PeerIndex,
        key: NodePublic,
        before: &[SocketAddr],
        now: &[SocketAddr],
    ) {
        self.forget(peer, before);
        self.keys.insert(key, peer);
        for address in now {
            self.addresses.insert(*address, peer);
        }
    }

    /// Removes `peer` with its key and addresses.
    pub fn remove(&mut self, peer: PeerIndex, key: &NodePublic, addresses: &[SocketAddr]) {
        self.forget(peer, addresses);
        if self.keys.get(key) == Some(&peer) {
            self.keys.remove(key);
        }
    }

    fn forget(&mut self, peer: PeerIndex, addresses: &[SocketAddr]) {
        for address in addresses {
            if self.addresses.get(address) == Some(&peer) {
                self.addresses.remove(address);
            }
        }
    }

    /// The peer known at each address. The sender is not authenticated.
    #[inline]
    pub fn peer_at(&self, source: &Source) -> Option<PeerIndex> {
        match source {
            Source::Udp(address) => self.addresses.get(address).copied(),
            // The netmap names no peer relays.
            Source::PeerRelay { .. } => None,
            Source::Derp { key, .. } => self.keys.get(key).copied(),
        }
    }
}

/// Remembers the peers for which a session was requested.
#[derive(Debug, Default)]
pub(super) struct LostSessions {
    asked: FxHashMap<PeerIndex, Instant>,
}

impl LostSessions {
    /// Forgets peers that are gone.
    pub(super) fn on_view_change(&mut self, view: &View) {
        self.asked.retain(|index, _| view.peer(*index).is_some());
    }

    /// Tunnel data for a session that is not there came from `from`.
    #[cold]
    pub(super) fn note(&mut self, view: &View, now: Instant, from: Source, sink: &mut dyn InSink) {
        let Some(peer) = view.sources.peer_at(&from).and_then(|at| view.peer(at)) else {
            return;
        };
        // With a session, these are late packets of one before it.
        let has_session = peer.session.as_ref();
        if has_session.is_some_and(|session| !session.is_expired(now)) {
            return;
        }
        let asked = self.asked.get(&peer.index);
        if asked.is_none_or(|at| now.saturating_duration_since(*at) >= ASK_INTERVAL) {
            self.asked.insert(peer.index, now);
            sink.need_session(peer.index);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_peer_is_found_by_address_and_by_key() {
        let (first, second) = (PeerIndex(1), PeerIndex(2));
        let key = |n| NodePublic::from_bytes([n; 32]);
        let relayed = |n| Source::Derp {
            region: warren_node_types::RegionId(7),
            key: key(n),
        };
        let (a, b, c) = (
            address("192.0.2.1:41641"),
            address("[2001:db8::1]:41641"),
            address("192.168.1.5:41641"),
        );
        let mut sources = Sources::default();
        sources.set(first, key(1), &[], &[a, c]);
        sources.set(second, key(2), &[], &[b, c]);
        assert_eq!(sources.peer_at(&Source::Udp(a)), Some(first));
        assert_eq!(sources.peer_at(&Source::Udp(b)), Some(second));
        assert_eq!(sources.peer_at(&Source::Udp(c)), Some(second));
        assert_eq!(sources.peer_at(&relayed(1)), Some(first));
        assert_eq!(sources.peer_at(&relayed(3)), None);
        // An address that a peer lost is not taken from its present owner.
        sources.set(first, key(1), &[a, c], &[a]);
        assert_eq!(sources.peer_at(&Source::Udp(c)), Some(second));
        sources.remove(second, &key(2), &[b, c]);
        assert_eq!(sources.peer_at(&Source::Udp(b)), None);
        assert_eq!(sources.peer_at(&Source::Udp(c)), None);
        assert_eq!(sources.peer_at(&relayed(2)), None);
        assert_eq!(sources.peer_at(&Source::Udp(a)), Some(first));
    }
}

//! The input of the data plane: one immutable snapshot of the node.
//!
//! The engine builds a new [`View`] whenever something changes and publishes
//! it; the threads take a reference once per batch. Unchanged parts are shared
//! between views by `Arc`, so that publishing costs little even with many
//! peers.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use ipnet::IpNet;
use rustc_hash::FxHashMap;
use warren_filter::{Filter, FlowTable};
use warren_keys::NodePublic;
use warren_node_types::Destination;
use warren_tunnel::{PeerIndex, Session};

use super::{Intercepts, PeerCounters, RouteTable, Sources};

/// One peer, as the data plane sees it.
#[derive(Debug, Clone)]
pub struct PeerView {
    /// The peer's place in [`View::peers`].
    pub index: PeerIndex,
    /// Its key, for relays.
    pub key: NodePublic,
    /// The session to send with. `None` while there is none that may be used:
    /// packets then wait, and a session is asked for.
    pub session: Option<Arc<Session>>,
    /// Which way packets take. With `Destination::None` packets wait.
    pub destination: Destination,
    /// Prefixes the peer may use as source, unless a longer one of another peer
    /// holds it: see [`View::allows_source`]. Single addresses first makes the
    /// usual check one comparison.
    pub allowed_sources: Vec<IpNet>,
    /// Whether the peer may only answer: the strict filter applies to it.
    pub jailed: bool,
    /// Counters shared by all views of this peer.
    pub counters: Arc<PeerCounters>,
}

/// A session packets may arrive on.
#[derive(Debug, Clone)]
pub struct SessionView {
    /// The peer of the session.
    pub peer: PeerIndex,
    /// The keys.
    pub session: Arc<Session>,
}

/// Everything the data plane needs to know, at one moment.
#[derive(Debug, Clone)]
pub struct View {
    /// Zero of the coarse clock of all [`PeerCounters`]; the same in every
    /// view of a process.
    pub origin: Instant,
    /// Peers by [`PeerIndex`]; holes are `None`.
    pub peers: Vec<Option<Arc<PeerView>>>,
    /// Which peer has which destination.
    pub routes: Arc<RouteTable>,
    /// Where the packets of peers come from.
    pub sources: Arc<Sources>,
    /// All sessions that may receive, by local index: also those a responder
    /// may not yet send with, and the previous ones.
    pub sessions: FxHashMap<u32, SessionView>,
    /// The rules for ordinary peers.
    pub filter: Arc<Filter>,
    /// The rules for jailed peers.
    pub jailed_filter: Arc<Filter>,
    /// Flows that were opened from here, shared by both directions and kept
    /// across views.
    pub flows: Arc<FlowTable>,
    /// Our own addresses inside the tunnel.
    pub addresses: Vec<IpAddr>,
    /// Packets that end in this process, and the services that take them.
    pub intercepts: Arc<Intercepts>,
    /// MTU of the TUN device in bytes; content is not padded beyond it.
    pub tunnel_mtu: u16,
    /// Port of the PeerAPI, as answers to the pings of peers report it.
    pub peer_api_port: Option<u16>,
}

impl View {
    /// The peer at `index`.
    #[inline]
    pub fn peer(&self, index: PeerIndex) -> Option<&Arc<PeerView>> {
        self.peers.get(usize::try_from(index.0).ok()?)?.as_ref()
    }

    /// Whether packets from `peer` may carry `source` as inner source address
    /// (cryptokey routing): the longest prefix that holds it must be `peer`'s.
    /// An exit node, whose prefix holds every address, may thus speak for the
    /// internet but not for another peer.
    #[inline]
    pub fn allows_source(&self, peer: &PeerView, source: IpAddr) -> bool {
        let mut allowed = peer.allowed_sources.iter();
        match allowed.find(|prefix| prefix.contains(&source)) {
            None => false,
            // Nothing is longer than a single address.
            Some(prefix) if prefix.prefix_len() == prefix.max_prefix_len() => true,
            Some(_) => self.routes.lookup(source) == Some(peer.index),
        }
    }

    /// The filter that applies to `peer`.
    #[inline]
    pub fn filter_for(&self, peer: &PeerView) -> &Filter {
        if peer.jailed {
            &self.jailed_filter
        } else {
            &self.filter
        }
    }
}

//! The peers of the netmap, with the dense index that the data plane uses.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use ipnet::IpNet;
use warren_control_types::NodeId;
use warren_keys::NodePublic;
use warren_node_types::{Destination, PeerIndex};

use warren_dataplane::{PeerCounters, PeerView};
use warren_paths::PeerRelayRole;

/// Free indices that are not used again yet.
const KEPT_FREE: usize = 256;

/// One peer. Its netmap entry stays in the netmap.
pub(crate) struct Peer {
    pub(crate) node: NodeId,
    pub(crate) key: NodePublic,
    /// Its endpoints in the netmap, as the data plane knows them.
    pub(crate) endpoints: Vec<SocketAddr>,
    /// Whether the data plane does not know its endpoints yet.
    pub(crate) is_new_here: bool,
    /// The view of the data plane; replaced, never changed.
    pub(crate) view: Arc<PeerView>,
    /// Its role towards peer relays, as the path engine knows it.
    pub(crate) relay_role: PeerRelayRole,
    /// The traffic counters that were last reported to the path engine.
    pub(crate) seen: Seen,
    /// The initiation that has no response yet.
    pub(crate) unanswered: Option<Unanswered>,
}

/// An initiation under way. It may have been lost, as when the peer was not yet
/// connected to its relay, so the same message is sent again as soon as there is
/// a better chance; a peer that has it already takes it for a replay.
pub(crate) struct Unanswered {
    pub(crate) datagram: Vec<u8>,
    /// When it was last sent again because of a sign of life.
    pub(crate) nudged: Option<Instant>,
}

/// The traffic counters at the last look.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Seen {
    pub(crate) tx_packets: u64,
    pub(crate) rx_packets: u64,
}

/// All peers, by index, by node id and by key.
#[derive(Default)]
pub(crate) struct PeerTable {
    slots: Vec<Option<Peer>>,
    /// Free slots, the one free for the longest time first.
    free: VecDeque<usize>,
    by_node: BTreeMap<NodeId, PeerIndex>,
    by_key: BTreeMap<NodePublic, PeerIndex>,
}

impl PeerTable {
    pub(crate) fn get(&self, index: PeerIndex) -> Option<&Peer> {
        self.slots.get(slot(index)?)?.as_ref()
    }

    pub(crate) fn get_mut(&mut self, index: PeerIndex) -> Option<&mut Peer> {
        self.slots.get_mut(slot(index)?)?.as_mut()
    }

    pub(crate) fn index_of(&self, node: NodeId) -> Option<PeerIndex> {
        self.by_node.get(&node).copied()
    }

    pub(crate) fn index_of_key(&self, key: &NodePublic) -> Option<PeerIndex> {
        self.by_key.get(key).copied()
    }

    /// In the order of their indices.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (PeerIndex, &Peer)> {
        self.slots
            .iter()
            .enumerate()
            .filter_map(|(slot, peer)| Some((PeerIndex(u32::try_from(slot).ok()?), peer.as_ref()?)))
    }

    /// The views of all peers for the data plane, by index.
    pub(crate) fn views(&self) -> Vec<Option<Arc<PeerView>>> {
        self.slots
            .iter()
            .map(|peer| peer.as_ref().map(|peer| Arc::clone(&peer.view)))
            .collect()
    }

    /// Adds a peer. An index that was free for the longest time is used again
    /// only when many are: messages that name a removed peer may still be on
    /// their way.
    pub(crate) fn insert(&mut self, node: NodeId, key: NodePublic) -> PeerIndex {
        let reused = if self.free.len() > KEPT_FREE {
            self.free.pop_front()
        } else {
            None
        };
        let free = reused.unwrap_or(self.slots.len());
        let index = PeerIndex(u32::try_from(free).unwrap_or(u32::MAX));
        let peer = Peer {
            node,
            key,
            endpoints: Vec::new(),
            is_new_here: true,
            view: Arc::new(PeerView {
                index,
                key,
                session: None,
                destination: Destination::None,
                allowed_sources: Vec::new(),
                jailed: false,
                counters: Arc::new(PeerCounters::new()),
            }),
            relay_role: PeerRelayRole::None,
            seen: Seen::default(),
            unanswered: None,
        };
        if free == self.slots.len() {
            self.slots.push(Some(peer));
        } else {
            self.slots[free] = Some(peer);
        }
        self.by_node.insert(node, index);
        self.by_key.insert(key, index);
        index
    }

    pub(crate) fn remove(&mut self, index: PeerIndex) -> Option<Peer> {
        let peer = self.slots.get_mut(slot(index)?)?.take()?;
        self.free.push_back(slot(index)?);
        self.by_node.remove(&peer.node);
        if self.by_key.get(&peer.key) == Some(&index) {
            self.by_key.remove(&peer.key);
        }
        Some(peer)
    }
}

impl Peer {
    /// Replaces the view by a changed copy; the data plane keeps the old one
    /// until it takes the next whole view.
    pub(crate) fn change_view(&mut self, change: impl FnOnce(&mut PeerView)) {
        let mut view = PeerView::clone(&self.view);
        change(&mut view);
        self.view = Arc::new(view);
    }

    pub(crate) fn set_allowed_sources(&mut self, mut allowed: Vec<IpNet>) -> bool {
        // Single addresses first: the usual check then ends at once.
        allowed.sort_by_key(|prefix| (std::cmp::Reverse(prefix.prefix_len()), *prefix));
        let changed = self.view.allowed_sources != allowed;
        if changed {
            self.change_view(|view| view.allowed_sources = allowed);
        }
        changed
    }
}

fn slot(index: PeerIndex) -> Option<usize> {
    usize::try_from(index.0).ok()
}

//! A session: one open map stream, what it was told, and what it has yet to hear.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use ipnet::IpNet;
use warren_control_types::{NodeId, PingRequest, SshPolicy, UserId};
use warren_policy::NodeSet;

/// The number of a stream; a new one for every streaming request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// The fields of a peer that can be patched (`PeerChange`), as a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PatchFields(u16);

impl PatchFields {
    /// Online, and last seen while offline.
    pub const ONLINE: Self = Self(1);
    /// UDP endpoints.
    pub const ENDPOINTS: Self = Self(2);
    /// Path-finding key.
    pub const DISCO: Self = Self(4);
    /// Home relay region.
    pub const RELAY: Self = Self(8);
    /// Node key and its signature.
    pub const KEY: Self = Self(16);
    /// Capability version.
    pub const CAPABILITY: Self = Self(32);

    /// Both sets.
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether all of `other` is in here.
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether nothing is in here.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// How much of a peer has to be told again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerMark {
    /// Some fields.
    Patch(PatchFields),
    /// Everything, or that it came or went.
    Whole,
}

impl PeerMark {
    fn merge(self, other: Self) -> Self {
        match (self, other) {
            (Self::Patch(a), Self::Patch(b)) => Self::Patch(a.with(b)),
            (Self::Whole, Self::Patch(_)) | (Self::Patch(_) | Self::Whole, Self::Whole) => {
                Self::Whole
            }
        }
    }
}

/// What a session has yet to hear: at most one entry per peer and one flag per
/// section, so a slow reader costs no more than the size of its view.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pending {
    /// Its own node.
    pub own_node: bool,
    /// Peers.
    pub peers: BTreeMap<NodeId, PeerMark>,
    /// Users whose profile changed.
    pub users: BTreeSet<UserId>,
    /// Who may be seen, and which routes: compare with what was sent.
    pub view: bool,
    /// Who may come in: compare.
    pub filter: bool,
    /// Who may log in over SSH: compare.
    pub ssh: bool,
    /// Names.
    pub dns: bool,
    /// Relays.
    pub relays: bool,
}

impl Pending {
    /// Whether there is nothing to say.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    pub(crate) fn mark_peer(&mut self, id: NodeId, mark: PeerMark) {
        self.peers
            .entry(id)
            .and_modify(|old| *old = old.merge(mark))
            .or_insert(mark);
    }
}

/// What the client at the other end of the stream holds.
#[derive(Debug, Clone, Default)]
pub(crate) struct Told {
    pub(crate) peers: NodeSet,
    pub(crate) users: BTreeSet<UserId>,
    /// The SHA-256 of the filter's JSON: a filter may be long, and there are
    /// as many as there are nodes.
    pub(crate) filter: [u8; 32],
    pub(crate) ssh: SshPolicy,
    /// Peers that are shown without their IPv4 address.
    pub(crate) without_ipv4: NodeSet,
    /// Routes behind peers; nothing for those without.
    pub(crate) routes: BTreeMap<NodeId, Vec<IpNet>>,
}

#[derive(Debug, Clone)]
pub(crate) struct Session {
    pub(crate) node: NodeId,
    /// `None` until the first, complete message was taken.
    pub(crate) told: Option<Told>,
    pub(crate) pending: Pending,
    /// Questions to the node; a message carries one.
    pub(crate) questions: VecDeque<PingRequest>,
}

impl Session {
    pub(crate) fn new(node: NodeId) -> Self {
        Self {
            node,
            told: None,
            pending: Pending::default(),
            questions: VecDeque::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_of_one_peer_fold_into_one() {
        let mut pending = Pending::default();
        assert!(pending.is_empty());
        pending.mark_peer(NodeId(1), PeerMark::Patch(PatchFields::ONLINE));
        pending.mark_peer(NodeId(1), PeerMark::Patch(PatchFields::DISCO));
        let both = PatchFields::ONLINE.with(PatchFields::DISCO);
        assert_eq!(pending.peers[&NodeId(1)], PeerMark::Patch(both));
        pending.mark_peer(NodeId(1), PeerMark::Whole);
        pending.mark_peer(NodeId(1), PeerMark::Patch(PatchFields::RELAY));
        assert_eq!(pending.peers[&NodeId(1)], PeerMark::Whole);
        assert_eq!(pending.peers.len(), 1);
    }
}

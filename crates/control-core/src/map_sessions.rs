//! Open map streams: what was sent last on each, and what has to be sent next.
//!
//! A change invalidates entries in the [`PendingUpdate`] of the sessions that it
//! concerns. That holds one entry per peer and one flag per section, so a slow
//! reader costs no more than the size of its view, and newer states replace
//! older ones. A message is rendered from it and from [`LastSent`] outside of
//! here: [`MapSessions::begin`] hands both out, [`MapSessions::finish`] takes
//! back the state that was sent. Invalidations in between are part of the next
//! message.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use ipnet::IpNet;
use warren_control_types::{NodeId, PingRequest, SshPolicy, UserId};
use warren_policy::NodeSet;

/// c2n requests that may wait for a node that reads slowly.
const MAX_PINGS: usize = 16;

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
    /// Disco key.
    pub const DISCO: Self = Self(4);
    /// Home DERP region.
    pub const RELAY: Self = Self(8);
    /// Node key and its signature.
    pub const KEY: Self = Self(16);
    /// Capability version.
    pub const CAPABILITY: Self = Self(32);

    /// The union of both sets.
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether the set contains all of `other`.
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether the set is empty.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// How much of a peer has to be sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerUpdate {
    /// Some fields.
    Patch(PatchFields),
    /// Everything, or that it came or went.
    Whole,
}

impl PeerUpdate {
    fn merge(self, other: Self) -> Self {
        match (self, other) {
            (Self::Patch(a), Self::Patch(b)) => Self::Patch(a.with(b)),
            (Self::Whole, Self::Patch(_)) | (Self::Patch(_) | Self::Whole, Self::Whole) => {
                Self::Whole
            }
        }
    }
}

/// The parts of a session's map that have to be rendered again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PendingUpdate {
    /// The node itself.
    pub own_node: bool,
    /// Peers.
    pub peers: BTreeMap<NodeId, PeerUpdate>,
    /// Users whose profile changed.
    pub users: BTreeSet<UserId>,
    /// Visible peers and their routes: compare with what was sent.
    pub view: bool,
    /// Packet filter: compare with what was sent.
    pub filter: bool,
    /// SSH policy: compare with what was sent.
    pub ssh: bool,
    /// DERP map.
    pub relays: bool,
    /// State of tailnet lock.
    pub lock: bool,
    /// Name resolution: compare with what was sent.
    pub dns: bool,
}

impl PendingUpdate {
    /// Whether nothing has to be sent.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn invalidate_peer(&mut self, id: NodeId, update: PeerUpdate) {
        self.peers
            .entry(id)
            .and_modify(|old| *old = old.merge(update))
            .or_insert(update);
    }
}

/// The parts of the map that the client at the other end of the stream holds.
#[derive(Debug, Clone, Default)]
pub(crate) struct LastSent {
    /// The revision of the directory that the map was rendered from.
    pub(crate) revision: u64,
    pub(crate) peers: NodeSet,
    pub(crate) users: BTreeSet<UserId>,
    /// The SHA-256 of the filter's JSON: a filter may be long, and there are
    /// as many as there are nodes.
    pub(crate) filter: [u8; 32],
    pub(crate) ssh: SshPolicy,
    /// The SHA-256 of the JSON of the settings of name resolution.
    pub(crate) dns: [u8; 32],
    /// The nodes to which aliases led then.
    pub(crate) alias_nodes: BTreeSet<NodeId>,
    /// Peers that are shown without their IPv4 address.
    pub(crate) without_ipv4: NodeSet,
    /// Routes behind peers; peers without routes are left out.
    pub(crate) routes: BTreeMap<NodeId, Vec<IpNet>>,
}

#[derive(Debug)]
enum Sent {
    Nothing,
    /// A message is being rendered.
    Rendering,
    Last(Box<LastSent>),
}

#[derive(Debug)]
struct MapSession {
    node: NodeId,
    sent: Sent,
    pending: PendingUpdate,
    /// c2n requests to the node; a message carries one.
    pings: VecDeque<PingRequest>,
}

/// The ingredients of the next message of a session.
#[derive(Debug)]
pub(crate) struct Begun {
    pub(crate) node: NodeId,
    pub(crate) pending: PendingUpdate,
    /// `None`: the first message of the session, which is complete.
    pub(crate) last: Option<Box<LastSent>>,
    pub(crate) ping: Option<PingRequest>,
}

/// The reason why a c2n request cannot be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PingError {
    NotConnected,
    TooMany,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct MapSessions {
    sessions: BTreeMap<SessionId, MapSession>,
    by_node: BTreeMap<NodeId, SessionId>,
    /// Sessions that have something to send and were not woken yet.
    to_wake: BTreeSet<SessionId>,
    last_id: u64,
    /// Sessions that were looked at, for tests of what a change costs.
    #[cfg(test)]
    pub(crate) visited: usize,
}

impl MapSessions {
    /// Opens the stream of a node. Returns it and the one that it replaces.
    pub(crate) fn open(&mut self, node: NodeId) -> (SessionId, Option<SessionId>) {
        let replaced = self.end_of(node);
        self.last_id += 1;
        let id = SessionId(self.last_id);
        let session = MapSession {
            node,
            sent: Sent::Nothing,
            pending: PendingUpdate::default(),
            pings: VecDeque::new(),
        };
        self.sessions.insert(id, session);
        self.by_node.insert(node, id);
        self.to_wake.insert(id);
        (id, replaced)
    }

    /// Removes a stream. Returns its node, if this was its stream.
    pub(crate) fn close(&mut self, id: SessionId) -> Option<NodeId> {
        let node = self.sessions.get(&id)?.node;
        self.end_of(node)?;
        Some(node)
    }

    /// Removes the stream of a node.
    pub(crate) fn end_of(&mut self, node: NodeId) -> Option<SessionId> {
        let id = self.by_node.remove(&node)?;
        self.sessions.remove(&id);
        self.to_wake.remove(&id);
        Some(id)
    }

    #[cfg(test)]
    pub(crate) fn of_node(&self, node: NodeId) -> Option<SessionId> {
        self.by_node.get(&node).copied()
    }

    pub(crate) fn len(&self) -> usize {
        self.sessions.len()
    }

    /// The next session that has something to send.
    pub(crate) fn pop_wake(&mut self) -> Option<SessionId> {
        self.to_wake.pop_first()
    }

    /// Invalidates parts of the map of one node.
    pub(crate) fn invalidate(&mut self, node: NodeId, change: impl FnOnce(&mut PendingUpdate)) {
        if let Some(id) = self.by_node.get(&node)
            && let Some(session) = self.sessions.get_mut(id)
        {
            #[cfg(test)]
            {
                self.visited += 1;
            }
            change(&mut session.pending);
            self.to_wake.insert(*id);
        }
    }

    /// Invalidates parts of the maps of all nodes.
    pub(crate) fn invalidate_all(&mut self, change: impl Fn(&mut PendingUpdate)) {
        for (id, session) in &mut self.sessions {
            #[cfg(test)]
            {
                self.visited += 1;
            }
            change(&mut session.pending);
            self.to_wake.insert(*id);
        }
    }

    /// Invalidates a peer in the maps of these nodes; `None`: of all.
    pub(crate) fn invalidate_peer(
        &mut self,
        viewers: Option<&NodeSet>,
        peer: NodeId,
        update: PeerUpdate,
    ) {
        match viewers {
            Some(viewers) => {
                for viewer in viewers.iter().filter(|viewer| *viewer != peer) {
                    self.invalidate(viewer, |pending| pending.invalidate_peer(peer, update));
                }
            }
            None => {
                for (id, session) in &mut self.sessions {
                    if session.node != peer {
                        #[cfg(test)]
                        {
                            self.visited += 1;
                        }
                        session.pending.invalidate_peer(peer, update);
                        self.to_wake.insert(*id);
                    }
                }
            }
        }
    }

    /// Invalidates a user's profile where it was sent. A renamed user may be
    /// known to any session.
    pub(crate) fn invalidate_user(&mut self, user: UserId) {
        for (id, session) in &mut self.sessions {
            let concerned = match &session.sent {
                Sent::Nothing => false,
                Sent::Rendering => true,
                Sent::Last(last) => last.users.contains(&user),
            };
            if concerned {
                session.pending.users.insert(user);
                self.to_wake.insert(*id);
            }
        }
    }

    /// Adds a c2n request to the next messages of a node.
    pub(crate) fn ping(&mut self, node: NodeId, ping: PingRequest) -> Result<(), PingError> {
        let id = self.by_node.get(&node).ok_or(PingError::NotConnected)?;
        let session = self.sessions.get_mut(id).ok_or(PingError::NotConnected)?;
        if session.pings.len() >= MAX_PINGS {
            return Err(PingError::TooMany);
        }
        session.pings.push_back(ping);
        self.to_wake.insert(*id);
        Ok(())
    }

    /// Hands out what the next message is made from. `None`: there is nothing
    /// to send, or no such session.
    pub(crate) fn begin(&mut self, id: SessionId) -> Option<Begun> {
        let session = self.sessions.get_mut(&id)?;
        let idle = session.pending.is_empty() && session.pings.is_empty();
        if idle && !matches!(session.sent, Sent::Nothing) {
            return None;
        }
        let last = match std::mem::replace(&mut session.sent, Sent::Rendering) {
            Sent::Nothing => None,
            Sent::Last(last) => Some(last),
            // One message at a time.
            Sent::Rendering => return None,
        };
        Some(Begun {
            node: session.node,
            pending: std::mem::take(&mut session.pending),
            last,
            ping: session.pings.pop_front(),
        })
    }

    /// The message was rendered; the client is about to hold this.
    pub(crate) fn finish(&mut self, id: SessionId, last: Box<LastSent>) {
        if let Some(session) = self.sessions.get_mut(&id) {
            session.sent = Sent::Last(last);
            if !session.pending.is_empty() || !session.pings.is_empty() {
                self.to_wake.insert(id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn updates_of_one_peer_fold_into_one() {
        let mut pending = PendingUpdate::default();
        assert!(pending.is_empty());
        pending.invalidate_peer(NodeId(1), PeerUpdate::Patch(PatchFields::ONLINE));
        pending.invalidate_peer(NodeId(1), PeerUpdate::Patch(PatchFields::DISCO));
        let both = PatchFields::ONLINE.with(PatchFields::DISCO);
        assert_eq!(pending.peers[&NodeId(1)], PeerUpdate::Patch(both));
        pending.invalidate_peer(NodeId(1), PeerUpdate::Whole);
        pending.invalidate_peer(NodeId(1), PeerUpdate::Patch(PatchFields::RELAY));
        assert_eq!(pending.peers[&NodeId(1)], PeerUpdate::Whole);
        assert_eq!(pending.peers.len(), 1);
    }

    #[test]
    fn changes_during_rendering_are_part_of_the_next_message() {
        let mut sessions = MapSessions::default();
        let (id, replaced) = sessions.open(NodeId(1));
        assert_eq!((replaced, sessions.pop_wake()), (None, Some(id)));
        assert!(sessions.begin(id).unwrap().last.is_none());
        assert!(sessions.begin(id).is_none());
        sessions.invalidate_user(UserId(1));
        assert!(sessions.begin(id).is_none(), "one message at a time");
        sessions.finish(id, Box::default());
        assert_eq!(sessions.pop_wake(), Some(id));
        let second = sessions.begin(id).unwrap();
        assert!(second.last.is_some() && second.pending.users.len() == 1);
        sessions.finish(id, Box::default());
        assert!(sessions.begin(id).is_none());
        assert_eq!(sessions.pop_wake(), None);
    }

    #[test]
    fn only_viewers_with_a_stream_are_visited() {
        let mut sessions = MapSessions::default();
        let open: Vec<SessionId> = (1..=9).map(|n| sessions.open(NodeId(n)).0).collect();
        while sessions.pop_wake().is_some() {}
        let viewers: NodeSet = [NodeId(2), NodeId(3), NodeId(77)].into_iter().collect();
        sessions.invalidate_peer(Some(&viewers), NodeId(3), PeerUpdate::Whole);
        assert_eq!(sessions.visited, 1);
        assert_eq!(sessions.pop_wake(), Some(open[1]));
        assert_eq!(sessions.pop_wake(), None);
    }

    #[test]
    fn late_end_of_a_replaced_stream_leaves_its_successor_alone() {
        let mut sessions = MapSessions::default();
        let (first, _) = sessions.open(NodeId(1));
        let (second, replaced) = sessions.open(NodeId(1));
        assert_eq!(replaced, Some(first));
        assert_eq!(sessions.close(first), None);
        assert_eq!(sessions.close(second), Some(NodeId(1)));
        assert_eq!(sessions.len(), 0);
    }
}

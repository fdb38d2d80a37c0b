//! Nodes that this node signs without a person, by their tags.
//!
//! The tags of a node are the word of the server, so for these tags the lock protects
//! against a stolen server no more. It is off unless the user of a trusted node turns it on.

use std::collections::{BTreeMap, BTreeSet};

use warren_control_types::{Node, NodeId};
use warren_keys::NodePublic;
use warren_lock::Unauthorized;

use super::LockRequestId;
use crate::engine::{HiddenPeer, LockedOut};

/// The most signatures that are submitted at a time.
const AT_A_TIME: usize = 16;

/// The tags, and the nodes that were signed.
#[derive(Debug, Default)]
pub(super) struct Autosign {
    tags: BTreeSet<String>,
    /// Keys that were signed in this session with the server. Each is signed once, whatever
    /// becomes of it.
    done: BTreeSet<NodePublic>,
    under_way: BTreeMap<LockRequestId, NodeId>,
}

impl Autosign {
    pub(super) fn new(tags: BTreeSet<String>) -> Self {
        Self {
            tags,
            ..Self::default()
        }
    }

    pub(super) fn tags(&self) -> &BTreeSet<String> {
        &self.tags
    }

    pub(super) fn disconnected(&mut self) {
        self.done.clear();
        self.under_way.clear();
    }

    /// The nodes to sign now.
    pub(super) fn due<'a>(
        &self,
        hidden: impl Iterator<Item = &'a HiddenPeer>,
    ) -> Vec<(NodeId, NodePublic)> {
        let free = AT_A_TIME.saturating_sub(self.under_way.len());
        let wanted = hidden.filter(|peer| {
            peer.why == LockedOut::Signature(Unauthorized::Unsigned)
                && self.covers(&peer.node)
                && !self.done.contains(&peer.node.key)
        });
        let wanted = wanted.map(|peer| (peer.node.id, peer.node.key));
        wanted.take(free).collect()
    }

    /// Whether all tags of the node are among those that are signed: another tag may give it
    /// more rights.
    fn covers(&self, node: &Node) -> bool {
        !node.tags.is_empty() && node.tags.iter().all(|tag| self.tags.contains(tag))
    }

    pub(super) fn submitted(&mut self, id: LockRequestId, node: NodeId, key: NodePublic) {
        self.done.insert(key);
        self.under_way.insert(id, node);
    }

    /// The node whose signature this is the answer for.
    pub(super) fn answered(&mut self, id: LockRequestId) -> Option<NodeId> {
        self.under_way.remove(&id)
    }
}

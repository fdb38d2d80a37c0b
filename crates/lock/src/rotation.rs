//! Node keys that later keys of the same node replace.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use warren_keys::{LockPublic, NodePublic};

use crate::signature::{Authorization, SignatureKind};

/// Finds obsolete node keys among the peers of a netmap.
///
/// All keys in the chain of a valid rotation are obsolete, unless a peer has one with a
/// signature for another lock key: the rotation is not of that peer then, and a node could
/// otherwise remove any other one by a rotation that names it. (The official client does
/// not check that.) When several chains begin with
/// direct signatures for the same lock key, because a node was copied with its state, the
/// longest one is kept; when the longest are of equal length, none is. Chains that begin
/// with a credential may share its key, since reusable auth keys admit several nodes.
#[derive(Debug, Default)]
pub struct RotationTracker {
    /// Replaced keys, with the lock keys of the rotations that replace them.
    replaced: BTreeMap<NodePublic, BTreeSet<Option<LockPublic>>>,
    /// The lock keys of the peers.
    peers: BTreeMap<NodePublic, Option<LockPublic>>,
    /// By wrapping key: node keys with the lengths of their chains.
    chains: BTreeMap<Option<LockPublic>, Vec<(NodePublic, usize)>>,
}

impl RotationTracker {
    /// Adds a peer whose signature was verified.
    pub fn add(&mut self, node_key: NodePublic, authorization: &Authorization) {
        self.peers.insert(node_key, authorization.wrapping_key);
        for key in &authorization.previous {
            let by = self.replaced.entry(*key).or_default();
            by.insert(authorization.wrapping_key);
        }
        if authorization.initial == SignatureKind::Direct && !authorization.previous.is_empty() {
            self.chains
                .entry(authorization.wrapping_key)
                .or_default()
                .push((node_key, authorization.previous.len()));
        }
    }

    /// The obsolete node keys among the peers that were added.
    pub fn obsolete(self) -> BTreeSet<NodePublic> {
        let peers = self.peers;
        let is_own = |key: &NodePublic, by: &BTreeSet<_>| {
            peers.get(key).is_none_or(|lock_key| by.contains(lock_key))
        };
        let replaced = self.replaced.into_iter();
        let replaced = replaced.filter(|(key, by)| is_own(key, by));
        let mut out: BTreeSet<NodePublic> = replaced.map(|(key, _)| key).collect();
        for mut chains in self.chains.into_values() {
            chains.retain(|(key, _)| !out.contains(key));
            chains.sort_by_key(|(_, length)| Reverse(*length));
            let tie = matches!(&chains[..], [(_, first), (_, second), ..] if first == second);
            let kept = usize::from(!tie);
            out.extend(chains.iter().skip(kept).map(|(key, _)| *key));
        }
        out
    }
}

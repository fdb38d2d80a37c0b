//! Tailnet lock in the engine: which peers of the netmap are accepted.
//!
//! The server's messages are applied to all peers. Those that the lock does not admit are
//! taken out of the netmap before anything else sees it, and put back only while the next
//! message is applied. So no other part of the node can forget the lock: for routes, names,
//! sessions, the filter and the status they do not exist.
//!
//! The official client makes an exception for peers that the server marks as reachable by
//! their peer interface only. This engine makes none: the mark is the server's word.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use warren_control_types::{Changes, Node, NodeId, PeerDelta};
use warren_keys::NodePublic;
use warren_lock::{Authority, Authorization, RotationTracker, Unauthorized};

use super::Engine;

/// The peers that an engine accepts.
#[derive(Debug, Clone, Default)]
pub enum LockGate {
    /// All: tailnet lock is off.
    #[default]
    Off,
    /// Those that are there now: tailnet lock is on, and its chain is being fetched.
    Pending,
    /// Those whose keys this chain admits.
    On(Arc<Authority>),
    /// None: tailnet lock is on, and its chain cannot be read.
    Closed,
}

/// Why a peer is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LockedOut {
    /// Its signature does not admit it.
    #[error(transparent)]
    Signature(#[from] Unauthorized),
    /// The signature of another peer shows that this key was replaced.
    #[error("another key of the same node replaces the node key")]
    Replaced,
    /// The chain is being fetched.
    #[error("the tailnet lock of the network is not known yet")]
    Pending,
    /// The chain cannot be read.
    #[error("the tailnet lock of this machine cannot be read")]
    Closed,
}

/// A peer that is not accepted.
#[derive(Debug, Clone, PartialEq)]
pub struct HiddenPeer {
    /// The peer, as the server describes it.
    pub node: Node,
    /// The reason.
    pub why: LockedOut,
}

/// The outcome for a signature, kept because most messages change none.
struct Verdict {
    key: NodePublic,
    signature: Vec<u8>,
    outcome: Result<Authorization, Unauthorized>,
}

/// The gate, and the peers that it holds back.
#[derive(Default)]
pub(super) struct Admission {
    gate: LockGate,
    /// The peers that are accepted while the chain is being fetched.
    known: BTreeMap<NodeId, NodePublic>,
    hidden: BTreeMap<NodeId, HiddenPeer>,
    verdicts: BTreeMap<NodeId, Verdict>,
}

impl Admission {
    pub(super) fn new(gate: LockGate) -> Self {
        Self {
            gate,
            ..Self::default()
        }
    }

    /// `accepted` are the peers that were accepted so far.
    fn set_gate(&mut self, gate: LockGate, accepted: BTreeMap<NodeId, NodePublic>) {
        self.known = match gate {
            LockGate::Pending => accepted,
            LockGate::Off | LockGate::On(_) | LockGate::Closed => BTreeMap::new(),
        };
        self.gate = gate;
        self.verdicts.clear();
    }

    /// Puts all peers into the netmap, and returns which of them were hidden.
    pub(super) fn reveal(&mut self, peers: &mut BTreeMap<NodeId, Node>) -> Revealed {
        let hidden = std::mem::take(&mut self.hidden);
        let reasons = hidden.into_iter().map(|(id, peer)| {
            peers.insert(id, peer.node);
            (id, peer.why)
        });
        Revealed(reasons.collect())
    }

    /// Takes the peers that are not accepted out of the netmap again. `changes` becomes
    /// what changed for those that do not know them.
    pub(super) fn conceal(
        &mut self,
        peers: &mut BTreeMap<NodeId, Node>,
        before: Revealed,
        changes: &mut Changes,
    ) {
        if matches!(self.gate, LockGate::Off) && before.0.is_empty() {
            return;
        }
        let is_old_news = !self.verdicts.is_empty() && !touches_keys(peers, changes);
        let refused = match is_old_news {
            true => before.0.clone(),
            false => self.judge(peers),
        };
        for (id, why) in refused {
            let Some(node) = peers.remove(&id) else {
                continue;
            };
            let delta = changes.peers.remove(&id);
            if !before.0.contains_key(&id) {
                let last = match delta {
                    Some(PeerDelta::Added) => None,
                    Some(PeerDelta::Changed(last) | PeerDelta::Removed(last)) => Some(last),
                    None => Some(Box::new(node.clone())),
                };
                if let Some(last) = last {
                    changes.peers.insert(id, PeerDelta::Removed(last));
                }
            }
            self.hidden.insert(id, HiddenPeer { node, why });
        }
        for id in before.0.into_keys() {
            if peers.contains_key(&id) {
                changes.peers.insert(id, PeerDelta::Added);
            } else if !self.hidden.contains_key(&id) {
                changes.peers.remove(&id);
            }
        }
    }

    /// The peers that are not accepted, with the reasons.
    fn judge(&mut self, peers: &BTreeMap<NodeId, Node>) -> BTreeMap<NodeId, LockedOut> {
        let authority = match &self.gate {
            LockGate::Off => {
                self.verdicts.clear();
                return BTreeMap::new();
            }
            LockGate::Pending => {
                let is_known =
                    |(id, node): &(&NodeId, &Node)| self.known.get(id) == Some(&node.key);
                let new = peers.iter().filter(|peer| !is_known(peer));
                return new.map(|(id, _)| (*id, LockedOut::Pending)).collect();
            }
            LockGate::Closed => return peers.keys().map(|id| (*id, LockedOut::Closed)).collect(),
            LockGate::On(authority) => authority,
        };
        let mut kept = std::mem::take(&mut self.verdicts);
        let mut refused = BTreeMap::new();
        let mut rotations = RotationTracker::default();
        for (id, node) in peers {
            let known = kept.remove(id).filter(|verdict| {
                verdict.key == node.key && verdict.signature == node.key_signature
            });
            let verdict = known.unwrap_or_else(|| Verdict {
                key: node.key,
                signature: node.key_signature.clone(),
                outcome: authority.authorize(node.key, &node.key_signature),
            });
            match &verdict.outcome {
                Ok(authorization) => rotations.add(node.key, authorization),
                Err(why) => drop(refused.insert(*id, why.clone().into())),
            }
            self.verdicts.insert(*id, verdict);
        }
        let replaced: BTreeSet<NodePublic> = rotations.obsolete();
        for (id, node) in peers {
            if replaced.contains(&node.key) {
                refused.entry(*id).or_insert(LockedOut::Replaced);
            }
        }
        refused
    }
}

/// The peers that were hidden before a message, with the reasons.
pub(super) struct Revealed(BTreeMap<NodeId, LockedOut>);

/// Whether the changes concern the key or signature of a peer.
fn touches_keys(peers: &BTreeMap<NodeId, Node>, changes: &Changes) -> bool {
    changes.peers.iter().any(|(id, delta)| match delta {
        PeerDelta::Added | PeerDelta::Removed(_) => true,
        PeerDelta::Changed(before) => peers
            .get(id)
            .is_none_or(|now| now.key != before.key || now.key_signature != before.key_signature),
    })
}

impl Engine {
    /// Accepts other peers from now on.
    pub fn set_lock(&mut self, now: Instant, wall: Duration, gate: LockGate) {
        let accepted = self.netmap.peers.iter();
        let accepted = accepted.map(|(id, node)| (*id, node.key)).collect();
        let before = self.admission.reveal(&mut self.netmap.peers);
        self.admission.set_gate(gate, accepted);
        let mut changes = Changes::default();
        self.admission
            .conceal(&mut self.netmap.peers, before, &mut changes);
        if !changes.is_empty() {
            self.follow(now, changes);
        }
        self.expire_peers(now, wall);
    }

    /// The peers that tailnet lock keeps out.
    pub fn hidden_peers(&self) -> impl ExactSizeIterator<Item = &HiddenPeer> {
        self.admission.hidden.values()
    }

    /// Whether the other nodes accept this one; `None` while tailnet lock is off, or the
    /// server has sent no netmap.
    pub fn own_authorization(&self) -> Option<Result<Authorization, Unauthorized>> {
        let LockGate::On(authority) = &self.admission.gate else {
            return None;
        };
        let own = self.netmap.self_node.as_ref()?;
        Some(authority.authorize(self.node_key, &own.key_signature))
    }
}

#[cfg(test)]
mod tests;

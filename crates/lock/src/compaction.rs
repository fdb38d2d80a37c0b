//! Removing old messages, which would otherwise gather for as long as a tailnet lives.

use std::collections::BTreeSet;

use crate::aum::Change;
use crate::authority::Authority;
use crate::digest::AumHash;

/// The messages that compaction keeps. The default is that of the official client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compaction {
    /// How many messages before the head are kept at least.
    pub min_chain: usize,
    /// For how many seconds a message is kept at least.
    pub min_age: u64,
}

impl Default for Compaction {
    fn default() -> Self {
        Self {
            min_chain: 24,
            min_age: 14 * 24 * 60 * 60,
        }
    }
}

impl Authority {
    /// Removes messages that are no longer needed, and returns their hashes. The head,
    /// its state, and the result of any later message stay the same.
    ///
    /// The chain is cut at a checkpoint, which becomes the oldest message. It lies behind
    /// at least [`Compaction::min_chain`] messages, is older than
    /// [`Compaction::min_age`], and all younger messages, on any branch, descend from it.
    pub fn compact(&mut self, now: u64, keep: Compaction) -> Vec<AumHash> {
        let young: Vec<AumHash> = self
            .stored()
            .filter(|stored| now.saturating_sub(stored.stored_at) < keep.min_age)
            .map(|stored| stored.aum.hash())
            .collect();
        let candidates: Vec<AumHash> = self
            .log()
            .skip(keep.min_chain)
            .filter(|aum| matches!(aum.change(), Change::Checkpoint(_)))
            .map(crate::Aum::hash)
            .collect();
        for candidate in candidates {
            if now.saturating_sub(self.stored_at(candidate)) < keep.min_age {
                continue;
            }
            let descendants = self.descendants(candidate);
            if young.iter().all(|hash| descendants.contains(hash)) {
                return self.retain(candidate, &descendants);
            }
        }
        Vec::new()
    }

    /// A message and everything that descends from it.
    fn descendants(&self, root: AumHash) -> BTreeSet<AumHash> {
        let mut out = BTreeSet::new();
        let mut open = vec![root];
        while let Some(hash) = open.pop() {
            if out.insert(hash) {
                open.extend(self.children_of(hash).map(crate::Aum::hash));
            }
        }
        out
    }
}

//! The exchange of two holders of a chain, to find the messages that the other one lacks.

use std::collections::BTreeSet;

use crate::aum::{Aum, Change};
use crate::authority::Authority;
use crate::digest::AumHash;

/// How far back from the head checkpoints are offered, and another head is looked for.
const MAX_STEPS: usize = 1000;

/// A short description of a chain. Both sides send theirs, and answer with the messages
/// that the other one lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyncOffer {
    /// The head.
    pub head: AumHash,
    /// Checkpoints of the chain, the newest first, and the oldest message at the end.
    pub ancestors: Vec<AumHash>,
}

/// Two chains have no message in common, as far as the offer shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the two chains have no message in common")]
pub struct NoIntersection;

impl Authority {
    /// The description of this chain.
    pub fn offer(&self) -> SyncOffer {
        let oldest = self.oldest();
        let checkpoints = self
            .log()
            .take(MAX_STEPS)
            .take_while(|aum| aum.hash() != oldest)
            .filter(|aum| matches!(aum.change(), Change::Checkpoint(_)))
            .map(Aum::hash);
        SyncOffer {
            head: self.head(),
            ancestors: checkpoints.chain([oldest]).collect(),
        }
    }

    /// The messages of this chain that the sender of `offer` lacks, oldest first.
    ///
    /// # Errors
    /// [`NoIntersection`] if nothing in the offer belongs to this chain.
    pub fn missing(&self, offer: &SyncOffer) -> Result<Vec<Aum>, NoIntersection> {
        if offer.head == self.head() {
            return Ok(Vec::new());
        }
        let chain = self.chain();
        let recent = chain.len().saturating_sub(MAX_STEPS);
        let after_head = chain[recent..]
            .iter()
            .position(|hash| *hash == offer.head)
            .map(|position| recent + position);
        let common = after_head.or_else(|| {
            let ours: BTreeSet<_> = chain.iter().collect();
            let ancestor = offer.ancestors.iter().find(|hash| ours.contains(hash))?;
            chain.iter().position(|hash| hash == ancestor)
        });
        let common = common.ok_or(NoIntersection)?;
        Ok(chain[common + 1..]
            .iter()
            .filter_map(|hash| self.aum(*hash))
            .cloned()
            .collect())
    }
}

//! Forks below the removal of a key, or the loss of its votes.
//!
//! At a fork the message whose signers have more votes wins, by the votes of that time. So a
//! key that was removed, or that has fewer votes now, could sign another successor of a message
//! from the time when it had more, and take that change back. A coordination server sees messages in their order, and
//! can refuse those; a node that receives a set of messages cannot, since all
//! nodes must agree on equal sets.

use std::collections::{BTreeMap, BTreeSet};

use crate::aum::Aum;
use crate::authority::Authority;
use crate::digest::AumHash;
use crate::key::{KeyId, TrustedKey};
use crate::state::State;

impl Authority {
    /// The first signer of `updates` that had more votes where its branch leaves the chain than
    /// it has now; a key that was removed has none. Messages that are known, or that follow
    /// no known one, are skipped. `updates` are in the order of [`Authority::inform`], which
    /// verifies their signatures: this is cheaper behind it.
    pub fn outdated_signer(&self, updates: &[Aum]) -> Option<KeyId> {
        // Where the branch of each new message leaves the chain.
        let mut branches: BTreeMap<AumHash, AumHash> = BTreeMap::new();
        let mut states: BTreeMap<AumHash, Option<State>> = BTreeMap::new();
        let chain: BTreeSet<AumHash> = self.chain().iter().copied().collect();
        for aum in updates {
            let Some(parent) = aum.parent().filter(|_| self.aum(aum.hash()).is_none()) else {
                continue;
            };
            let fork = match branches.get(&parent) {
                Some(fork) => *fork,
                None => match self.leaves_chain_at(&chain, parent) {
                    Some(fork) => fork,
                    None => continue,
                },
            };
            branches.insert(aum.hash(), fork);
            let state = states.entry(fork).or_insert_with(|| self.state_at(fork));
            let Some(state) = state else { continue };
            let votes = |state: &State, key: &KeyId| state.key(key).map_or(0, TrustedKey::votes);
            let is_outdated = |key: &KeyId| votes(state, key) > votes(self.state(), key);
            let mut signers = aum.signatures().iter().map(|by| KeyId::from(by.key));
            if let Some(key) = signers.find(is_outdated) {
                return Some(key);
            }
        }
        None
    }

    /// The message of the chain from which the branch of a stored message comes.
    fn leaves_chain_at(&self, chain: &BTreeSet<AumHash>, hash: AumHash) -> Option<AumHash> {
        let mut at = hash;
        while !chain.contains(&at) {
            at = self.aum(at)?.parent()?;
        }
        Some(at)
    }
}

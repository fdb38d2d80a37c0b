//! Forks below the removal of a key.
//!
//! At a fork the message whose signers have more votes wins, by the votes of that time. So a
//! key that was removed could sign another successor of a message from the time when it was
//! trusted, and take its removal back. A coordination server sees messages in their order, and
//! can refuse those; a node that receives a set of messages cannot, since all
//! nodes must agree on equal sets.

use std::collections::BTreeMap;

use crate::aum::Aum;
use crate::authority::Authority;
use crate::digest::AumHash;
use crate::key::KeyId;
use crate::state::State;

impl Authority {
    /// The first signer of `updates` that was trusted where its branch leaves the chain, and
    /// that the chain has removed since. Messages that are known, or that follow
    /// no known one, are skipped. `updates` are in the order of [`Authority::inform`].
    pub fn removed_signer(&self, updates: &[Aum]) -> Option<KeyId> {
        // Where the branch of each new message leaves the chain.
        let mut branches: BTreeMap<AumHash, AumHash> = BTreeMap::new();
        let mut states: BTreeMap<AumHash, Option<State>> = BTreeMap::new();
        for aum in updates {
            let Some(parent) = aum.parent().filter(|_| self.aum(aum.hash()).is_none()) else {
                continue;
            };
            let fork = match branches.get(&parent) {
                Some(fork) => *fork,
                None => match self.leaves_chain_at(parent) {
                    Some(fork) => fork,
                    None => continue,
                },
            };
            branches.insert(aum.hash(), fork);
            let state = states.entry(fork).or_insert_with(|| self.state_at(fork));
            let Some(state) = state else { continue };
            let removed = |key: &KeyId| state.key(key).is_some() && self.state().key(key).is_none();
            let mut signers = aum.signatures().iter().map(|by| KeyId::from(by.key));
            if let Some(key) = signers.find(removed) {
                return Some(key);
            }
        }
        None
    }

    /// The message of the chain from which the branch of a stored message comes.
    fn leaves_chain_at(&self, hash: AumHash) -> Option<AumHash> {
        let mut at = hash;
        while !self.chain().contains(&at) {
            at = self.aum(at)?.parent()?;
        }
        Some(at)
    }
}

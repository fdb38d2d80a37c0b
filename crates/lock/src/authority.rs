//! All messages of a lock that are known, and the branch that wins.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use crate::aum::{Aum, Change, MAX_AUM};
use crate::digest::AumHash;
use crate::key::{InvalidKey, KeyId};
use crate::secret::LockSecret;
use crate::state::{Checkpoint, State};
use crate::stored::StoredAum;

/// The most messages that an [`Authority`] keeps.
pub const MAX_STORED_AUMS: usize = 4096;
/// The most bytes of messages that an [`Authority`] keeps.
pub const MAX_STORED_BYTES: usize = 16 * MAX_AUM;

/// Why a message is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A first message that is no checkpoint.
    #[error("the first message of a lock is a checkpoint")]
    NotACheckpoint,
    /// The message does not follow the one before it.
    #[error("the message does not follow the one before it")]
    Parent,
    /// The parent is not known, or was removed by compaction.
    #[error("the parent of the message is not known")]
    UnknownParent,
    /// The message is not signed.
    #[error("the message is not signed")]
    Unsigned,
    /// A signer is not trusted before the message.
    #[error("the signing key {0} is not trusted")]
    SignerNotTrusted(KeyId),
    /// A signature is wrong.
    #[error("the signature of {0} is wrong")]
    Signature(KeyId),
    /// The key that is added is there.
    #[error("the key {0} is trusted already")]
    KeyExists(KeyId),
    /// The key that is changed or removed is not there.
    #[error("the key {0} is not trusted")]
    KeyNotFound(KeyId),
    /// The key would have too many votes or too much metadata.
    #[error(transparent)]
    Key(#[from] InvalidKey),
    /// The last key would be removed.
    #[error("the last trusted key cannot be removed")]
    LastKey,
    /// A checkpoint of another lock.
    #[error("the checkpoint belongs to another lock")]
    StateId,
    /// More messages than [`MAX_STORED_AUMS`] or [`MAX_STORED_BYTES`].
    #[error("too many messages are stored")]
    Full,
}

/// A batch of messages was refused; none of them was stored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("message {} of the update is refused: {refusal}", .index + 1)]
pub struct InformError {
    /// The position of the message in the batch, from 0.
    pub index: usize,
    /// The reason.
    pub refusal: Refusal,
}

/// A message that came from storage and is not used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Discarded {
    /// The message.
    pub hash: AumHash,
    /// The reason. [`Refusal::UnknownParent`] if its branch does not begin at the
    /// oldest message.
    pub refusal: Refusal,
}

/// The messages of a lock. They are a tree whose root is the oldest message that is
/// known; the chain is the branch that wins, and its end is the head.
///
/// Of messages with the same parent wins, in this order: the one whose signers have
/// more votes before it; a removal of a key; the one with the smaller hash.
#[derive(Debug, Clone)]
pub struct Authority {
    stored: BTreeMap<AumHash, StoredAum>,
    children: BTreeMap<AumHash, BTreeSet<AumHash>>,
    bytes: usize,
    /// From the oldest message to the head.
    chain: Vec<AumHash>,
    state: State,
}

impl Authority {
    /// Makes a lock, and its genesis message.
    ///
    /// # Errors
    /// [`Refusal::SignerNotTrusted`] if the checkpoint does not trust the signer.
    pub fn create(
        checkpoint: Checkpoint,
        signer: &LockSecret,
        now: u64,
    ) -> Result<(Self, Aum), Refusal> {
        let genesis = Aum::unsigned(None, Change::Checkpoint(checkpoint)).signed_by(signer);
        Ok((Self::bootstrap(genesis.clone(), now)?, genesis))
    }

    /// Joins a lock by its genesis message or a later checkpoint, which is signed by
    /// keys that it contains itself. The caller must trust the source of
    /// the message.
    ///
    /// # Errors
    /// [`Refusal`] if the message is no checkpoint that its own keys signed.
    pub fn bootstrap(genesis: Aum, now: u64) -> Result<Self, Refusal> {
        let state = State::of_checkpoint(&genesis).ok_or(Refusal::NotACheckpoint)?;
        state.verify_signatures(&genesis)?;
        Ok(Self::from_root(genesis, now, state))
    }

    fn from_root(root: Aum, stored_at: u64, state: State) -> Self {
        let mut new = Self {
            stored: BTreeMap::new(),
            children: BTreeMap::new(),
            bytes: 0,
            chain: vec![root.hash()],
            state,
        };
        new.insert(root, stored_at);
        new
    }

    /// Reads what was stored. `oldest` names the root; its signatures were verified when
    /// it was stored, and can only be verified again if it is a genesis message. Those of
    /// all others are verified again, and a message that fails is discarded together
    /// with its successors.
    ///
    /// # Errors
    /// [`Refusal`] if the oldest message is missing or cannot be the root.
    pub fn open(
        stored: impl IntoIterator<Item = StoredAum>,
        oldest: AumHash,
    ) -> Result<(Self, Vec<Discarded>), Refusal> {
        let mut by_parent: BTreeMap<Option<AumHash>, Vec<StoredAum>> = BTreeMap::new();
        let mut root = None;
        for stored in stored {
            if stored.aum.hash() == oldest {
                root = Some(stored);
            } else {
                by_parent
                    .entry(stored.aum.parent())
                    .or_default()
                    .push(stored);
            }
        }
        let root = root.ok_or(Refusal::UnknownParent)?;
        let state = State::of_checkpoint(&root.aum).ok_or(Refusal::NotACheckpoint)?;
        if root.aum.parent().is_none() {
            state.verify_signatures(&root.aum)?;
        }
        let mut open = vec![state.clone()];
        let mut new = Self::from_root(root.aum, root.stored_at, state);
        let mut discarded = Vec::new();
        while let Some(state) = open.pop() {
            for next in by_parent.remove(&Some(state.head())).unwrap_or_default() {
                let checked = new
                    .has_room(1, next.aum.as_bytes().len())
                    .and_then(|()| state.verify(&next.aum));
                match checked {
                    Ok(after) => {
                        open.push(after);
                        new.insert(next.aum, next.stored_at);
                    }
                    Err(refusal) => discarded.push(Discarded {
                        hash: next.aum.hash(),
                        refusal,
                    }),
                }
            }
        }
        discarded.extend(by_parent.into_values().flatten().map(|stored| Discarded {
            hash: stored.aum.hash(),
            refusal: Refusal::UnknownParent,
        }));
        new.choose_chain();
        Ok((new, discarded))
    }

    /// Adds messages, oldest first, and returns the hashes of those that are new. They
    /// have to be stored before the new state is used, so that a restart does not go
    /// back to an older one. Messages that are known are skipped.
    ///
    /// # Errors
    /// [`InformError`] if a message is refused. Nothing has changed then.
    pub fn inform(&mut self, updates: &[Aum], now: u64) -> Result<Vec<AumHash>, InformError> {
        let mut states: BTreeMap<AumHash, State> = BTreeMap::new();
        states.insert(self.head(), self.state.clone());
        let mut accepted: Vec<&Aum> = Vec::new();
        let mut bytes = 0;
        for (index, aum) in updates.iter().enumerate() {
            let hash = aum.hash();
            if self.stored.contains_key(&hash) || states.contains_key(&hash) {
                continue;
            }
            let refused = |refusal| InformError { index, refusal };
            bytes += aum.as_bytes().len();
            self.has_room(accepted.len() + 1, bytes).map_err(refused)?;
            let parent = aum.parent().ok_or_else(|| refused(Refusal::Parent))?;
            let before = match states.get(&parent) {
                Some(state) => state.clone(),
                None => self
                    .state_at(parent)
                    .ok_or_else(|| refused(Refusal::UnknownParent))?,
            };
            let after = before.verify(aum).map_err(refused)?;
            states.insert(parent, before);
            states.insert(hash, after);
            accepted.push(aum);
        }
        // Messages that extend the head one after the other need no new choice.
        let mut head = self.head();
        let extends = accepted.iter().all(|aum| {
            let follows = aum.parent() == Some(head);
            head = aum.hash();
            follows
        });
        let new: Vec<AumHash> = accepted.iter().map(|aum| aum.hash()).collect();
        for aum in accepted {
            self.insert(aum.clone(), now);
        }
        match states.remove(&head) {
            Some(state) if extends => {
                self.chain.extend(&new);
                self.state = state;
            }
            _ => self.choose_chain(),
        }
        Ok(new)
    }

    fn has_room(&self, messages: usize, bytes: usize) -> Result<(), Refusal> {
        if self.stored.len() + messages > MAX_STORED_AUMS || self.bytes + bytes > MAX_STORED_BYTES {
            return Err(Refusal::Full);
        }
        Ok(())
    }

    fn insert(&mut self, aum: Aum, stored_at: u64) {
        self.bytes += aum.as_bytes().len();
        if let Some(parent) = aum.parent() {
            self.children.entry(parent).or_default().insert(aum.hash());
        }
        self.stored.insert(aum.hash(), StoredAum { aum, stored_at });
    }

    /// Removes all messages but those in `keep`, and makes `oldest` the root, which is in
    /// the chain. Returns the hashes that were removed.
    pub(crate) fn retain(&mut self, oldest: AumHash, keep: &BTreeSet<AumHash>) -> Vec<AumHash> {
        let removed: Vec<AumHash> = self
            .stored
            .keys()
            .filter(|hash| !keep.contains(hash))
            .copied()
            .collect();
        for hash in &removed {
            if let Some(gone) = self.stored.remove(hash) {
                self.bytes -= gone.aum.as_bytes().len();
            }
            self.children.remove(hash);
        }
        self.children.retain(|_, children| {
            children.retain(|child| keep.contains(child));
            !children.is_empty()
        });
        self.chain = self
            .chain
            .iter()
            .copied()
            .skip_while(|hash| *hash != oldest)
            .collect();
        removed
    }

    /// Follows the tree from its root, at each fork along the message that wins.
    fn choose_chain(&mut self) {
        let oldest = self.oldest();
        let Some(mut state) = self.state_at(oldest) else {
            return;
        };
        let mut chain = vec![oldest];
        while let Some(next) = self.winner(&state) {
            // Every message was verified against this very state when it was added.
            let Ok(after) = state.apply(next) else { break };
            chain.push(next.hash());
            state = after;
        }
        self.chain = chain;
        self.state = state;
    }

    fn winner(&self, state: &State) -> Option<&Aum> {
        self.children_of(state.head()).max_by_key(|aum| {
            (
                state.weight(aum),
                matches!(aum.change(), Change::RemoveKey(_)),
                Reverse(aum.hash()),
            )
        })
    }

    pub(crate) fn children_of(&self, hash: AumHash) -> impl Iterator<Item = &Aum> {
        self.children
            .get(&hash)
            .into_iter()
            .flatten()
            .filter_map(|child| self.aum(*child))
    }

    /// The state after the message with this hash, on whichever branch it is.
    pub(crate) fn state_at(&self, hash: AumHash) -> Option<State> {
        let mut path = Vec::new();
        let mut next = self.aum(hash)?;
        let mut state = loop {
            if let Some(state) = State::of_checkpoint(next) {
                break state;
            }
            path.push(next);
            next = self.aum(next.parent()?)?;
        };
        while let Some(aum) = path.pop() {
            state = state.apply(aum).ok()?;
        }
        Some(state)
    }

    /// The message with this hash.
    pub fn aum(&self, hash: AumHash) -> Option<&Aum> {
        self.stored.get(&hash).map(|stored| &stored.aum)
    }

    /// All messages, in the order of their hashes.
    pub fn stored(&self) -> impl ExactSizeIterator<Item = &StoredAum> {
        self.stored.values()
    }

    pub(crate) fn stored_at(&self, hash: AumHash) -> u64 {
        self.stored.get(&hash).map_or(0, |stored| stored.stored_at)
    }

    /// The messages of the chain from the head back to the oldest one.
    pub fn log(&self) -> impl Iterator<Item = &Aum> {
        self.chain.iter().rev().filter_map(|hash| self.aum(*hash))
    }

    pub(crate) fn chain(&self) -> &[AumHash] {
        &self.chain
    }

    /// The hash of the last message of the chain.
    pub fn head(&self) -> AumHash {
        self.state.head()
    }

    /// The hash of the first message of the chain that is kept.
    pub fn oldest(&self) -> AumHash {
        // The chain begins with the root, which is never removed.
        self.chain.first().copied().unwrap_or(self.state.head())
    }

    /// The trusted keys and disablement values.
    pub fn state(&self) -> &State {
        &self.state
    }
}

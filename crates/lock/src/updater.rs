//! Making updates.

use crate::aum::{Aum, Change};
use crate::authority::{Authority, Refusal};
use crate::key::{KeyId, Meta, TrustedKey};
use crate::secret::LockSecret;
use crate::state::{InvalidCheckpoint, MAX_KEYS, State};

/// A checkpoint is made when this many messages have none.
const CHECKPOINT_EVERY: usize = 50;

/// A change cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UpdateError {
    /// The chain would refuse the message.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The limit of keys is reached.
    #[error("a tailnet trusts at most {MAX_KEYS} keys; remove one with `warren lock remove`")]
    TooManyKeys,
    /// A checkpoint is due and cannot be made.
    #[error("a checkpoint is due and cannot be made: {0}")]
    Checkpoint(#[from] InvalidCheckpoint),
}

/// Makes signed messages that follow the head of a chain. They take effect when they are
/// given to [`Authority::inform`], here and on all other nodes.
#[derive(Debug)]
pub struct Updater<'a> {
    authority: &'a Authority,
    signer: &'a LockSecret,
    state: State,
    updates: Vec<Aum>,
}

impl<'a> Updater<'a> {
    /// An updater that signs with `signer`, which the chain has to trust.
    pub fn new(authority: &'a Authority, signer: &'a LockSecret) -> Self {
        Self {
            authority,
            signer,
            state: authority.state().clone(),
            updates: Vec::new(),
        }
    }

    fn push(&mut self, change: Change) -> Result<(), UpdateError> {
        let aum = Aum::unsigned(Some(self.state.head()), change).signed_by(self.signer);
        self.state = self.state.verify(&aum)?;
        self.updates.push(aum);
        Ok(())
    }

    /// Trusts another key.
    ///
    /// # Errors
    /// [`UpdateError`] if the key is trusted already, or there are too many.
    pub fn add_key(&mut self, key: TrustedKey) -> Result<(), UpdateError> {
        if self.state.keys().len() >= MAX_KEYS && self.state.key(key.id()).is_none() {
            return Err(UpdateError::TooManyKeys);
        }
        self.push(Change::AddKey(key))
    }

    /// Stops to trust a key.
    ///
    /// # Errors
    /// [`UpdateError`] if the key is not trusted, or is the last one.
    pub fn remove_key(&mut self, id: KeyId) -> Result<(), UpdateError> {
        self.push(Change::RemoveKey(id))
    }

    /// Gives a key other votes, other metadata, or both.
    ///
    /// # Errors
    /// [`UpdateError`] if the key is not trusted, or the votes are out of range.
    pub fn update_key(
        &mut self,
        id: KeyId,
        votes: Option<u16>,
        meta: Option<Meta>,
    ) -> Result<(), UpdateError> {
        let votes = votes.map(u64::from);
        let meta = meta.filter(|meta| !meta.is_empty());
        if votes.is_none() && meta.is_none() {
            return Ok(());
        }
        self.push(Change::UpdateKey { id, votes, meta })
    }

    /// The messages, oldest first, with a checkpoint at the end when one is due.
    ///
    /// # Errors
    /// [`UpdateError::Checkpoint`] if the checkpoint cannot be made.
    pub fn finish(mut self) -> Result<Vec<Aum>, UpdateError> {
        let before = CHECKPOINT_EVERY.saturating_sub(self.updates.len());
        let recent = self.authority.log().take(before);
        // Without a checkpoint among the last messages, and with at least that many.
        let mut looked_at = 0;
        let due = recent
            .inspect(|_| looked_at += 1)
            .all(|aum| !matches!(aum.change(), Change::Checkpoint(_)));
        if due && looked_at == before {
            self.push(Change::Checkpoint(self.state.to_checkpoint()?))?;
        }
        Ok(self.updates)
    }
}

//! Recovery after a trusted key was stolen.

use crate::aum::{Aum, Change};
use crate::authority::Authority;
use crate::digest::AumHash;
use crate::key::KeyId;
use crate::state::InvalidCheckpoint;

/// A revocation cannot be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RevocationError {
    /// None of the keys is trusted now.
    #[error("none of these keys is trusted; `warren lock status` lists the trusted keys")]
    NotTrusted,
    /// The message to fork from is not known.
    #[error("the message to fork from is not known; `warren lock log` lists the messages")]
    UnknownParent,
    /// No key would be left.
    #[error("all trusted keys would be revoked; keep one of them")]
    AllKeys,
    /// The remaining keys do not make a valid checkpoint.
    #[error(transparent)]
    Checkpoint(InvalidCheckpoint),
}

/// Makes a checkpoint without the keys in `revoke`, which forks from a message before
/// they could be misused, so that everything that they signed since then loses its
/// effect. It is not signed yet: it wins as soon as its signers have more votes than
/// those of the message that followed the same parent.
///
/// The fork begins at `fork_from`, or else at the newest message after which none of the
/// keys was trusted and `our_key` was, or else at the oldest message.
///
/// # Errors
/// [`RevocationError`] says which of the conditions does not hold.
pub fn revocation(
    authority: &Authority,
    revoke: &[KeyId],
    our_key: &KeyId,
    fork_from: Option<AumHash>,
) -> Result<Aum, RevocationError> {
    let parent = match fork_from {
        Some(hash) => authority
            .aum(hash)
            .map(Aum::hash)
            .ok_or(RevocationError::UnknownParent)?,
        None => {
            let trusted = |id| authority.state().key(id).is_some();
            if !revoke.iter().any(trusted) {
                return Err(RevocationError::NotTrusted);
            }
            parent_before(authority, revoke, our_key)
        }
    };
    let checkpoint = authority
        .state()
        .without(revoke)
        .map_err(|error| match error {
            InvalidCheckpoint::Keys
                if authority
                    .state()
                    .keys()
                    .all(|key| revoke.contains(key.id())) =>
            {
                RevocationError::AllKeys
            }
            other => RevocationError::Checkpoint(other),
        })?;
    Ok(Aum::unsigned(Some(parent), Change::Checkpoint(checkpoint)))
}

fn parent_before(authority: &Authority, revoke: &[KeyId], our_key: &KeyId) -> AumHash {
    authority
        .log()
        .map(Aum::hash)
        .find(|hash| {
            authority.state_at(*hash).is_some_and(|state| {
                state.key(our_key).is_some() && revoke.iter().all(|id| state.key(id).is_none())
            })
        })
        .unwrap_or(authority.oldest())
}

//! Tailnet lock: which node keys belong to a tailnet, decided by the keys of its
//! administrators and not by the coordination server.
//!
//! The parts, from the bottom up:
//!
//! | part | what it is |
//! |---|---|
//! | [`LockSecret`], [`KeyId`], [`TrustedKey`] | an Ed25519 key of a node; a key that the tailnet trusts, with its votes |
//! | [`Aum`], [`Change`] | one authority update message: a change of the trusted keys, signed, with the hash of its predecessor |
//! | [`State`], [`Checkpoint`] | the trusted keys and disablement values after an update |
//! | [`Authority`] | all updates that are known, the branch that wins, and its state |
//! | [`StoredAum`] | a message as a file |
//! | [`SyncOffer`] | what two holders of a chain exchange to find the updates that the other one lacks |
//! | [`Updater`], [`revocation`] | make updates: changes of keys, and forks that revoke keys from an earlier point |
//! | [`NodeKeySignature`] | states that a node key may join; verified with [`Authority::authorize`] |
//! | [`RotationTracker`] | finds node keys that later ones of the same node replace |
//! | [`DisablementSecret`] | turns the lock off for all nodes |
//! | [`WrappedAuthKey`] | an auth key with a credential, so that a node signs itself |
//!
//! An [`Authority`] is made by [`Authority::create`] or [`Authority::bootstrap`]
//! from a genesis message, or by [`Authority::open`] from what was stored. It keeps
//! everything in memory and does no IO: [`Authority::inform`] returns the hashes of
//! the messages to store, [`Authority::compact`] those to remove. The order of arrival
//! does not matter: equal sets of messages give equal heads.
//!
//! **Encoding.** Messages are CBOR in the canonical form of CTAP2, at most 16 levels
//! deep. A hash covers the bytes, so only canonical bytes are accepted: two different
//! encodings of one message cannot exist. The official implementation accepts other
//! encodings, and hashes what it would have written itself.
//!
//! **Signatures.** All signatures are Ed25519 over a BLAKE2s-256 digest. Those of
//! trusted keys are verified by the rules of ZIP 215, those of rotations by RFC 8032
//! without the cofactor; the nodes of a tailnet must agree, also about odd points.
//!
//! **Bounds.** [`MAX_AUM`], [`MAX_STORED_AUMS`] and [`MAX_STORED_BYTES`] bound what a
//! holder of a trusted key can make others store.
//!
//! The tests compare with vectors that the official implementation computed; see
//! `tests/vectors/README.md`.

#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

mod aum;
mod authority;
mod cbor;
mod compaction;
mod digest;
mod disablement;
mod forks;
mod key;
mod recovery;
mod rotation;
mod secret;
mod signature;
mod state;
mod stored;
mod sync;
mod updater;
mod wrapped;

pub use aum::{Aum, AumSignature, Change, MAX_AUM};
pub use authority::{
    Authority, Discarded, InformError, MAX_STORED_AUMS, MAX_STORED_BYTES, Refusal,
};
pub use cbor::DecodeError;
pub use compaction::Compaction;
pub use digest::{AumHash, ParseHashError};
pub use disablement::{DisablementSecret, DisablementValue};
pub use key::{InvalidKey, KeyId, MAX_META, MAX_VOTES, Meta, TrustedKey};
pub use recovery::{RevocationError, revocation};
pub use rotation::RotationTracker;
pub use secret::{LockSecret, ParseSecretError};
pub use signature::{
    Authorization, MAX_NODE_KEY_SIGNATURE, NodeKeySignature, ResignError, SignatureKind,
    Unauthorized,
};
pub use state::{Checkpoint, InvalidCheckpoint, MAX_DISABLEMENT_VALUES, MAX_KEYS, State, StateId};
pub use stored::{MAX_STORED_AUM, StoredAum};
pub use sync::{NoIntersection, SyncOffer};
pub use updater::{UpdateError, Updater};
pub use wrapped::WrappedAuthKey;

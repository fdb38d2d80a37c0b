//! Keys of the overlay network: one type per role, and the two constructions
//! that use them ([`noise`] and [`sealed_box`]).
//!
//! Every Curve25519 key on the wire is 32 bytes. Its *role* decides the text
//! prefix (`nodekey:`, `mkey:`, `discokey:` ...) and which operations make
//! sense, so each role is a type of its own and a machine key can never be
//! handed to code that wants a node key.
//!
//! Secrets wipe themselves on drop, compare in constant time, and print as
//! `NodeSecret(nodekey:ab12…)`, that is by their public half.
//!
//! Nothing here draws randomness: callers pass an [`Entropy`], so the
//! simulator can replay a run byte for byte.

#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

mod entropy;
mod roles;

pub mod noise;
pub mod sealed_box;
pub mod x25519;

pub use entropy::Entropy;
pub use roles::{
    ChallengePublic, ChallengeSecret, DerpMeshKey, DiscoPublic, DiscoSecret, LockPublic,
    MachinePublic, MachineSecret, NodePublic, NodeSecret, ParseKeyError,
};

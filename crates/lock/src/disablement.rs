//! Secrets that turn the lock off.

use std::fmt;

use argon2::{Algorithm, Argon2, Params, Version};
use data_encoding::HEXLOWER;
use subtle::ConstantTimeEq as _;
use warren_keys::Entropy;
use zeroize::Zeroizing;

/// The salt of the derivation. It is the same for all tailnets.
const SALT: &[u8] = b"tailscale network-lock disablement salt";
/// Memory in KiB, passes, lanes.
const COST: (u32, u32, u32) = (16 * 1024, 4, 4);

/// The public value of a disablement secret, which the chain holds. The secret cannot
/// be computed from it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct DisablementValue([u8; 32]);

impl DisablementValue {
    /// The value with these bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Whether it is one of `values`, in constant time.
    pub(crate) fn is_one_of(&self, values: &[Self]) -> bool {
        values.iter().fold(false, |found, value| {
            found | bool::from(value.0.ct_eq(&self.0))
        })
    }
}

impl fmt::Debug for DisablementValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "disablement:{}", HEXLOWER.encode(&self.0))
    }
}

/// A secret whose holder may turn the lock off for all nodes.
#[derive(Clone)]
pub struct DisablementSecret(Zeroizing<Vec<u8>>);

impl DisablementSecret {
    /// Makes a fresh secret of 32 bytes.
    pub fn generate(entropy: &mut dyn Entropy) -> Self {
        let mut bytes = Zeroizing::new(vec![0; 32]);
        entropy.fill(&mut bytes);
        Self(bytes)
    }

    /// The secret with these bytes.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        Self(Zeroizing::new(bytes.to_vec()))
    }

    /// The bytes. Keep copies in `Zeroizing`.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// The public value: Argon2i, version 1.3, with 16 MiB, four passes and four lanes.
    /// It takes some ten milliseconds, so callers do not let others choose how often.
    pub fn value(&self) -> DisablementValue {
        let (memory, passes, lanes) = COST;
        let mut out = [0; 32];
        Params::new(memory, passes, lanes, Some(out.len()))
            .and_then(|params| {
                Argon2::new(Algorithm::Argon2i, Version::V0x13, params)
                    .hash_password_into(&self.0, SALT, &mut out)
            })
            // All of the parameters are constants within the limits of Argon2, and a
            // secret has less than 4 GiB.
            .expect("the parameters of the derivation are valid");
        DisablementValue(out)
    }
}

impl fmt::Debug for DisablementSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DisablementSecret(…)")
    }
}

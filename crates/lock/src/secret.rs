//! Ed25519: private keys, and the two ways to verify a signature.

use std::fmt;
use std::str::FromStr;

use data_encoding::{HEXLOWER, HEXLOWER_PERMISSIVE};
use ed25519_dalek::{Signer as _, SigningKey, Verifier as _};
use subtle::ConstantTimeEq as _;
use warren_keys::{Entropy, LockPublic};
use zeroize::Zeroizing;

use crate::key::KeyId;

/// Whether `signature` over `digest` is valid by the rules of ZIP 215: points need not
/// be in their canonical form, and the equation is multiplied by the cofactor.
pub(crate) fn verify_zip215(public: &LockPublic, digest: &[u8; 32], signature: &[u8; 64]) -> bool {
    ed25519_zebra::VerificationKey::try_from(*public.as_bytes())
        .is_ok_and(|key| key.verify(&(*signature).into(), digest).is_ok())
}

/// Whether `signature` over `digest` is valid by the equation of RFC 8032 without the
/// cofactor, where R must be the encoding that the equation gives.
pub(crate) fn verify_plain(public: &LockPublic, digest: &[u8; 32], signature: &[u8; 64]) -> bool {
    ed25519_dalek::VerifyingKey::from_bytes(public.as_bytes())
        .is_ok_and(|key| key.verify(digest, &signature.into()).is_ok())
}

/// A text is not the private half of a lock key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected the private half of a lock key: \"{}\" and 128 hexadecimal digits",
    LockSecret::PREFIX
)]
pub struct ParseSecretError;

/// The private half of a lock key. Every node has one; it signs the rotations of the
/// node's own key, and if the tailnet trusts it, other nodes and updates.
#[derive(Clone)]
pub struct LockSecret(Box<SigningKey>);

impl LockSecret {
    /// The prefix of the text form.
    pub const PREFIX: &'static str = "nlpriv:";

    /// Makes a fresh key.
    pub fn generate(entropy: &mut dyn Entropy) -> Self {
        let mut seed = Zeroizing::new([0; 32]);
        entropy.fill(seed.as_mut_slice());
        Self::from_seed(&seed)
    }

    /// The key of this seed (RFC 8032 section 5.1.5).
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(Box::new(SigningKey::from_bytes(seed)))
    }

    /// The key with these 64 bytes: the seed and the public half.
    ///
    /// # Errors
    /// [`ParseSecretError`] if the public half does not belong to the seed.
    pub fn from_keypair(bytes: &[u8; 64]) -> Result<Self, ParseSecretError> {
        SigningKey::from_keypair_bytes(bytes)
            .map(|key| Self(Box::new(key)))
            .map_err(|_| ParseSecretError)
    }

    /// The seed and the public half.
    pub fn to_keypair(&self) -> Zeroizing<[u8; 64]> {
        Zeroizing::new(self.0.to_keypair_bytes())
    }

    /// The text form for the state file: `nlpriv:` and 128 digits.
    pub fn to_text(&self) -> Zeroizing<String> {
        let digits = Zeroizing::new(HEXLOWER.encode(&*self.to_keypair()));
        Zeroizing::new(format!("{}{}", Self::PREFIX, *digits))
    }

    /// The public half.
    pub fn public(&self) -> LockPublic {
        LockPublic::from_bytes(self.0.verifying_key().to_bytes())
    }

    /// The identity of the key, if the tailnet trusts it.
    pub fn id(&self) -> KeyId {
        self.public().into()
    }

    /// Signs a digest.
    pub(crate) fn sign(&self, digest: &[u8; 32]) -> [u8; 64] {
        self.0.sign(digest).to_bytes()
    }
}

impl fmt::Debug for LockSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LockSecret({:?})", self.public())
    }
}

impl PartialEq for LockSecret {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_bytes().ct_eq(other.0.as_bytes()).into()
    }
}

impl Eq for LockSecret {}

impl FromStr for LockSecret {
    type Err = ParseSecretError;

    fn from_str(text: &str) -> Result<Self, ParseSecretError> {
        let digits = text.strip_prefix(Self::PREFIX).ok_or(ParseSecretError)?;
        if digits.len() != 128 {
            return Err(ParseSecretError);
        }
        let mut bytes = Zeroizing::new([0; 64]);
        HEXLOWER_PERMISSIVE
            .decode_mut(digits.as_bytes(), bytes.as_mut_slice())
            .map_err(|_| ParseSecretError)?;
        Self::from_keypair(&bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_signatures_are_judged_like_the_official_ones() {
        let file: serde_json::Value =
            serde_json::from_str(include_str!("../tests/vectors/primitives.json")).unwrap();
        let rows = file["ed25519"].as_array().unwrap();
        assert!(rows.len() > 196);
        for row in rows {
            let bytes = |name: &str| {
                HEXLOWER
                    .decode(row[name].as_str().unwrap().as_bytes())
                    .unwrap()
            };
            let public = LockPublic::from_bytes(bytes("public").try_into().unwrap());
            let signature = bytes("signature").try_into().unwrap();
            let digest = bytes("message").try_into().unwrap();
            assert_eq!(
                verify_zip215(&public, &digest, &signature),
                row["zip215"].as_bool().unwrap(),
                "{row}"
            );
            assert_eq!(
                verify_plain(&public, &digest, &signature),
                row["plain"].as_bool().unwrap(),
                "{row}"
            );
        }
    }

    #[test]
    fn text_form_is_read_back_and_a_foreign_public_half_is_refused() {
        let secret = LockSecret::from_seed(&[7; 32]);
        assert_eq!(secret.to_text().parse(), Ok(secret.clone()));
        let mut bytes = *secret.to_keypair();
        bytes[63] ^= 1;
        assert_eq!(LockSecret::from_keypair(&bytes), Err(ParseSecretError));
        for text in ["", "nlpriv:", "nlpriv:00", "nlpub:00"] {
            assert_eq!(text.parse::<LockSecret>(), Err(ParseSecretError));
        }
    }
}

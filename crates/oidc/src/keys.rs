//! The keys of a provider (RFC 7517), and signatures by them.
//!
//! `jsonwebtoken` reads keys and verifies; this module says which keys and algorithms
//! count. Its checks of claims are not used: they read a clock of their own.

use jsonwebtoken::crypto::verify;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk};
use jsonwebtoken::{Algorithm, DecodingKey};
use serde::Deserialize;
use serde_json::Value;

/// More keys than a provider has; further ones are not read.
const MAX_KEYS: usize = 64;

/// The digest that belongs to an algorithm, for `at_hash`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Digest {
    Sha256,
    Sha384,
    Sha512,
}

/// The kind of a key; an algorithm works with one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Rsa,
    P256,
    P384,
    Ed25519,
}

/// The algorithm with this name in the header of a token, if it is accepted: none with
/// a shared secret, and not "none".
pub(crate) fn accepted(name: &str) -> Option<Algorithm> {
    // The newer name of the same (RFC 9864).
    let name = if name == "Ed25519" { "EdDSA" } else { name };
    let algorithm: Algorithm = name.parse().ok()?;
    kind_for(algorithm).map(|_| algorithm)
}

fn kind_for(algorithm: Algorithm) -> Option<Kind> {
    Some(match algorithm {
        Algorithm::RS256 | Algorithm::RS384 | Algorithm::RS512 => Kind::Rsa,
        Algorithm::PS256 | Algorithm::PS384 | Algorithm::PS512 => Kind::Rsa,
        Algorithm::ES256 => Kind::P256,
        Algorithm::ES384 => Kind::P384,
        Algorithm::EdDSA => Kind::Ed25519,
        // Shared secrets (HS256 and others), and algorithms of later versions.
        _ => return None,
    })
}

pub(crate) fn digest_of(algorithm: Algorithm) -> Digest {
    match algorithm {
        Algorithm::RS256 | Algorithm::PS256 | Algorithm::ES256 => Digest::Sha256,
        Algorithm::RS384 | Algorithm::PS384 | Algorithm::ES384 => Digest::Sha384,
        // RS512 and PS512; Ed25519 hashes with SHA-512.
        _ => Digest::Sha512,
    }
}

#[derive(Clone)]
struct Key {
    id: Option<String>,
    /// The only algorithm that the key is for, if it says so.
    algorithm: Option<String>,
    kind: Kind,
    key: DecodingKey,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Key")
            .field("id", &self.id)
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}

/// The keys that a provider publishes, without those of unknown types and those that
/// do not sign.
#[derive(Debug, Clone, Default)]
pub struct KeySet(Vec<Key>);

/// The document with the keys is not one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the provider's keys cannot be read: {0}")]
pub struct KeySetError(String);

/// Why no key verifies a signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unverified {
    /// No key has the id, or fits the algorithm.
    NoKey,
    /// The signature is not one by the key.
    Signature,
}

#[derive(Deserialize)]
struct Document {
    keys: Vec<Value>,
}

impl KeySet {
    /// Reads the document at `jwks_uri`. A key that is not understood is left out.
    ///
    /// # Errors
    /// The document is not a set of keys.
    pub fn parse(document: &[u8]) -> Result<Self, KeySetError> {
        let document: Document =
            serde_json::from_slice(document).map_err(|error| KeySetError(error.to_string()))?;
        let keys = document.keys.into_iter().filter_map(Key::read);
        Ok(Self(keys.take(MAX_KEYS).collect()))
    }

    /// The number of keys that can be used.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether no key can be used.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Verifies a signature, in base64url, by the key with this id; without an id, by
    /// any that fits. `name` is the algorithm as the token writes it.
    pub(crate) fn verify(
        &self,
        algorithm: Algorithm,
        name: &str,
        id: Option<&str>,
        message: &[u8],
        signature: &str,
    ) -> Result<(), Unverified> {
        let mut outcome = Unverified::NoKey;
        let fitting = self.0.iter().filter(|key| {
            kind_for(algorithm) == Some(key.kind)
                && id.is_none_or(|id| key.id.as_deref() == Some(id))
                && key.algorithm.as_deref().is_none_or(|only| only == name)
        });
        for key in fitting {
            if verify(signature, message, &key.key, algorithm).unwrap_or(false) {
                return Ok(());
            }
            outcome = Unverified::Signature;
        }
        Err(outcome)
    }
}

impl Key {
    fn read(value: Value) -> Option<Self> {
        let text = |name: &str| value.get(name)?.as_str().map(str::to_owned);
        if text("use").is_some_and(|purpose| purpose != "sig") {
            return None;
        }
        let (id, algorithm) = (text("kid"), text("alg"));
        let jwk: Jwk = serde_json::from_value(value).ok()?;
        // With the length of a public key that is not an RSA one: an uncompressed point.
        let (kind, length) = match &jwk.algorithm {
            AlgorithmParameters::RSA(_) => (Kind::Rsa, None),
            AlgorithmParameters::EllipticCurve(key) => match key.curve {
                EllipticCurve::P256 => (Kind::P256, Some(65)),
                EllipticCurve::P384 => (Kind::P384, Some(97)),
                _ => return None,
            },
            AlgorithmParameters::OctetKeyPair(key) => match key.curve {
                EllipticCurve::Ed25519 => (Kind::Ed25519, Some(32)),
                _ => return None,
            },
            _ => return None,
        };
        let key = DecodingKey::from_jwk(&jwk).ok()?;
        let has_length = |wanted: usize| key.try_get_as_bytes().is_ok_and(|b| b.len() == wanted);
        if !length.is_none_or(has_length) {
            return None;
        }
        Some(Self {
            id,
            algorithm,
            kind,
            key,
        })
    }
}

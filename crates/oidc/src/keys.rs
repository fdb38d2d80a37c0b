//! The keys of a provider (RFC 7517) and signatures by them (RFC 7515, RFC 7518,
//! RFC 8037).

use aws_lc_rs::signature::{
    self, EcdsaVerificationAlgorithm, RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey,
};
use data_encoding::BASE64URL_NOPAD;
use serde::Deserialize;
use serde_json::Value;

/// More keys than a provider has; further ones are not read.
const MAX_KEYS: usize = 64;
/// The longest RSA modulus, in bytes: 8192 bits.
const MAX_MODULUS: usize = 1024;
/// The longest RSA exponent, in bytes.
const MAX_EXPONENT: usize = 8;

/// An algorithm of signatures that is accepted. There is none with a shared secret,
/// and "none" is not among them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    Rs256,
    /// RSASSA-PKCS1-v1_5 with SHA-384.
    Rs384,
    /// RSASSA-PKCS1-v1_5 with SHA-512.
    Rs512,
    /// RSASSA-PSS with SHA-256.
    Ps256,
    /// RSASSA-PSS with SHA-384.
    Ps384,
    /// RSASSA-PSS with SHA-512.
    Ps512,
    /// ECDSA with P-256 and SHA-256.
    Es256,
    /// ECDSA with P-384 and SHA-384.
    Es384,
    /// ECDSA with P-521 and SHA-512.
    Es512,
    /// Ed25519.
    EdDsa,
}

/// The digest that belongs to an algorithm, for `at_hash`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Digest {
    Sha256,
    Sha384,
    Sha512,
}

/// How the family of an algorithm verifies.
enum Scheme {
    Rsa(&'static RsaParameters),
    Ec(Curve, &'static EcdsaVerificationAlgorithm),
    Ed25519,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Curve {
    P256,
    P384,
    P521,
}

impl Curve {
    /// The curve with this name, and the length of its coordinates in bytes.
    fn named(name: &str) -> Option<(Self, usize)> {
        match name {
            "P-256" => Some((Self::P256, 32)),
            "P-384" => Some((Self::P384, 48)),
            "P-521" => Some((Self::P521, 66)),
            _ => None,
        }
    }
}

impl Algorithm {
    /// The algorithm with this name in the header of a token.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "RS256" => Self::Rs256,
            "RS384" => Self::Rs384,
            "RS512" => Self::Rs512,
            "PS256" => Self::Ps256,
            "PS384" => Self::Ps384,
            "PS512" => Self::Ps512,
            "ES256" => Self::Es256,
            "ES384" => Self::Es384,
            "ES512" => Self::Es512,
            "EdDSA" | "Ed25519" => Self::EdDsa,
            _ => return None,
        })
    }

    pub(crate) fn digest(self) -> Digest {
        match self {
            Self::Rs256 | Self::Ps256 | Self::Es256 => Digest::Sha256,
            Self::Rs384 | Self::Ps384 | Self::Es384 => Digest::Sha384,
            Self::Rs512 | Self::Ps512 | Self::Es512 | Self::EdDsa => Digest::Sha512,
        }
    }

    fn scheme(self) -> Scheme {
        match self {
            Self::Rs256 => Scheme::Rsa(&signature::RSA_PKCS1_2048_8192_SHA256),
            Self::Rs384 => Scheme::Rsa(&signature::RSA_PKCS1_2048_8192_SHA384),
            Self::Rs512 => Scheme::Rsa(&signature::RSA_PKCS1_2048_8192_SHA512),
            Self::Ps256 => Scheme::Rsa(&signature::RSA_PSS_2048_8192_SHA256),
            Self::Ps384 => Scheme::Rsa(&signature::RSA_PSS_2048_8192_SHA384),
            Self::Ps512 => Scheme::Rsa(&signature::RSA_PSS_2048_8192_SHA512),
            Self::Es256 => Scheme::Ec(Curve::P256, &signature::ECDSA_P256_SHA256_FIXED),
            Self::Es384 => Scheme::Ec(Curve::P384, &signature::ECDSA_P384_SHA384_FIXED),
            Self::Es512 => Scheme::Ec(Curve::P521, &signature::ECDSA_P521_SHA512_FIXED),
            Self::EdDsa => Scheme::Ed25519,
        }
    }
}

#[derive(Debug, Clone)]
enum Material {
    Rsa {
        n: Vec<u8>,
        e: Vec<u8>,
    },
    /// The point, uncompressed.
    Ec(Curve, Vec<u8>),
    Ed25519(Vec<u8>),
}

#[derive(Debug, Clone)]
struct Key {
    id: Option<String>,
    /// The only algorithm that the key is for, if it says so.
    algorithm: Option<String>,
    material: Material,
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

#[derive(Deserialize)]
struct Jwk {
    kty: String,
    #[serde(default)]
    kid: Option<String>,
    #[serde(default, rename = "use")]
    purpose: Option<String>,
    #[serde(default)]
    alg: Option<String>,
    #[serde(default)]
    crv: String,
    #[serde(default)]
    n: String,
    #[serde(default)]
    e: String,
    #[serde(default)]
    x: String,
    #[serde(default)]
    y: String,
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

    /// Verifies a signature by the key with this id; without an id, by any that fits.
    pub(crate) fn verify(
        &self,
        algorithm: Algorithm,
        name: &str,
        id: Option<&str>,
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), Unverified> {
        let mut outcome = Unverified::NoKey;
        let fitting = self.0.iter().filter(|key| {
            id.is_none_or(|id| key.id.as_deref() == Some(id))
                && key.algorithm.as_deref().is_none_or(|only| only == name)
        });
        for key in fitting {
            match key.material.verify(algorithm, message, signature) {
                Some(true) => return Ok(()),
                Some(false) => outcome = Unverified::Signature,
                None => {}
            }
        }
        Err(outcome)
    }
}

impl Key {
    fn read(value: Value) -> Option<Self> {
        let key: Jwk = serde_json::from_value(value).ok()?;
        if key
            .purpose
            .as_deref()
            .is_some_and(|purpose| purpose != "sig")
        {
            return None;
        }
        let bytes = |text: &str| BASE64URL_NOPAD.decode(text.as_bytes()).ok();
        let material = match key.kty.as_str() {
            "RSA" => {
                let (n, e) = (bytes(&key.n)?, bytes(&key.e)?);
                let sane = |part: &[u8], most| (1..=most).contains(&part.len());
                if !sane(&n, MAX_MODULUS) || !sane(&e, MAX_EXPONENT) {
                    return None;
                }
                Material::Rsa { n, e }
            }
            "EC" => {
                let (curve, length) = Curve::named(&key.crv)?;
                let (x, y) = (bytes(&key.x)?, bytes(&key.y)?);
                if x.len() != length || y.len() != length {
                    return None;
                }
                Material::Ec(curve, [&[4][..], &x, &y].concat())
            }
            "OKP" if key.crv == "Ed25519" => {
                let x = bytes(&key.x)?;
                if x.len() != 32 {
                    return None;
                }
                Material::Ed25519(x)
            }
            _ => return None,
        };
        Some(Self {
            id: key.kid,
            algorithm: key.alg,
            material,
        })
    }
}

impl Material {
    /// Whether the signature verifies. `None`: the key is not for the algorithm.
    fn verify(&self, algorithm: Algorithm, message: &[u8], signature: &[u8]) -> Option<bool> {
        let verified = match (self, algorithm.scheme()) {
            (Self::Rsa { n, e }, Scheme::Rsa(parameters)) => {
                RsaPublicKeyComponents { n, e }.verify(parameters, message, signature)
            }
            (Self::Ec(own, point), Scheme::Ec(curve, algorithm)) if *own == curve => {
                UnparsedPublicKey::new(algorithm, point).verify(message, signature)
            }
            (Self::Ed25519(key), Scheme::Ed25519) => {
                UnparsedPublicKey::new(&signature::ED25519, key).verify(message, signature)
            }
            _ => return None,
        };
        Some(verified.is_ok())
    }
}

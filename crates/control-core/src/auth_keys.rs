//! Pre-auth keys: `wk-<id>-<secret>`.
//!
//! The id finds the record, the secret is 256 random bits in lower-case base32.
//! Only the SHA-256 of the secret is kept, so no node can join with a copy of the
//! database. No slow hash: there is nothing to guess in 256 bits.

use data_encoding::{Encoding, Specification};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use warren_keys::Entropy;

use crate::records::AuthKeyId;

const PREFIX: &str = "wk-";

/// The text of a pre-auth key, known only at creation and to the machine that
/// uses it.
#[derive(Clone)]
pub struct AuthKeyText {
    id: AuthKeyId,
    secret: String,
}

impl AuthKeyText {
    /// Makes the text of the key `id` from fresh randomness.
    pub(crate) fn generate(id: AuthKeyId, entropy: &mut dyn Entropy) -> Self {
        let mut bytes = [0_u8; 32];
        entropy.fill(&mut bytes);
        Self {
            id,
            secret: base32().encode(&bytes),
        }
    }

    /// Reads a key; `None` if it does not have the form.
    pub fn parse(text: &str) -> Option<Self> {
        let (id, secret) = text.trim().strip_prefix(PREFIX)?.split_once('-')?;
        let id = id.parse().ok().filter(|id| *id > 0).map(AuthKeyId)?;
        (!secret.is_empty() && secret.len() <= 128).then(|| Self {
            id,
            secret: secret.to_owned(),
        })
    }

    /// Which record it belongs to.
    pub const fn id(&self) -> AuthKeyId {
        self.id
    }

    /// The beginning of all texts of this key, by which people recognise it.
    pub fn prefix(id: AuthKeyId) -> String {
        format!("{PREFIX}{}-", id.0)
    }

    /// The whole key, to hand to a person or a machine.
    pub fn expose(&self) -> String {
        Self::prefix(self.id) + &self.secret
    }

    /// The digest that is stored.
    pub(crate) fn digest(&self) -> [u8; 32] {
        Sha256::digest(self.secret.as_bytes()).into()
    }

    /// Whether this is the key with the stored digest, in constant time.
    pub(crate) fn matches(&self, digest: &[u8; 32]) -> bool {
        self.digest().ct_eq(digest).into()
    }
}

impl std::fmt::Debug for AuthKeyText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{PREFIX}{}-…", self.id.0)
    }
}

fn base32() -> Encoding {
    let mut spec = Specification::new();
    spec.symbols.push_str("abcdefghijklmnopqrstuvwxyz234567");
    #[expect(
        clippy::expect_used,
        reason = "32 distinct ASCII symbols are a valid encoding"
    )]
    spec.encoding().expect("a constant specification")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;
    use warren_testkit::FixedEntropy;

    #[test]
    fn text_comes_back_and_only_the_right_secret_matches() {
        let key = AuthKeyText::generate(AuthKeyId(7), &mut FixedEntropy(1));
        let other = AuthKeyText::generate(AuthKeyId(7), &mut FixedEntropy(2));
        let again = AuthKeyText::parse(&key.expose()).unwrap();
        assert_eq!(again.id(), AuthKeyId(7));
        assert!(again.matches(&key.digest()));
        assert!(!other.matches(&key.digest()));
        assert!(!format!("{key:?}").contains(&key.expose()[6..20]));
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in ".*") {
            if let Some(key) = AuthKeyText::parse(&text) {
                prop_assert_eq!(AuthKeyText::parse(&key.expose()).unwrap().digest(), key.digest());
            }
        }
    }
}

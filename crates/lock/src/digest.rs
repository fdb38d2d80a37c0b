//! Hashes of messages.

use std::fmt;
use std::str::FromStr;

use blake2::{Blake2s256, Digest as _};
use data_encoding::BASE32_NOPAD;

/// BLAKE2s-256.
pub(crate) fn blake2s(bytes: &[u8]) -> [u8; 32] {
    Blake2s256::digest(bytes).into()
}

/// The hash of an authority update message with its signatures. The text form is
/// base32 without padding, 52 characters; files are named by it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AumHash([u8; 32]);

/// A text is not the hash of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected a hash of 52 base32 characters, as `warren lock log` shows them")]
pub struct ParseHashError;

impl AumHash {
    /// The hash with these bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for AumHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE32_NOPAD.encode(&self.0))
    }
}

impl fmt::Debug for AumHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AumHash({self})")
    }
}

impl FromStr for AumHash {
    type Err = ParseHashError;

    fn from_str(text: &str) -> Result<Self, ParseHashError> {
        if text.len() != 52 {
            return Err(ParseHashError);
        }
        let bytes = BASE32_NOPAD
            .decode(text.as_bytes())
            .map_err(|_| ParseHashError)?;
        bytes.try_into().map(Self).map_err(|_| ParseHashError)
    }
}

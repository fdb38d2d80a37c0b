//! Keys that a tailnet trusts.

use std::collections::BTreeMap;
use std::fmt;

use data_encoding::HEXLOWER;
use warren_keys::LockPublic;

use crate::cbor::{DecodeError, FieldWriter, Reader, Writer};

/// The most votes of a key.
pub const MAX_VOTES: u16 = 4096;
/// The most bytes of the metadata of a key: names and values together.
pub const MAX_META: usize = 512;

/// The only kind of keys, Ed25519.
const KIND_25519: u64 = 1;

/// The identity of a trusted key: its public bytes.
///
/// A key is 32 bytes long; but the rules of the chain do not ask for it, so a message
/// may name one of another length. No signature can be made with it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(Box<[u8]>);

impl KeyId {
    pub(crate) fn from_slice(bytes: &[u8]) -> Self {
        Self(bytes.into())
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The public key, unless it has the wrong length.
    pub fn public(&self) -> Option<LockPublic> {
        <[u8; 32]>::try_from(&*self.0)
            .ok()
            .map(LockPublic::from_bytes)
    }
}

impl From<LockPublic> for KeyId {
    fn from(public: LockPublic) -> Self {
        Self::from_slice(public.as_bytes())
    }
}

impl fmt::Display for KeyId {
    /// As command lines show it: `tlpub:` and hexadecimal digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tlpub:{}", HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// A key breaks the limits of votes or metadata.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidKey {
    /// No votes, or more than [`MAX_VOTES`].
    #[error("a key has 1 to {MAX_VOTES} votes")]
    Votes,
    /// More metadata than [`MAX_META`].
    #[error("the metadata of a key has at most {MAX_META} bytes")]
    Meta,
}

impl From<InvalidKey> for DecodeError {
    fn from(error: InvalidKey) -> Self {
        Self::Invalid(match error {
            InvalidKey::Votes => "a key has too many votes or none",
            InvalidKey::Meta => "a key has too much metadata",
        })
    }
}

/// Metadata of a key: names and values.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Meta(BTreeMap<String, String>);

impl Meta {
    /// Metadata from pairs.
    ///
    /// # Errors
    /// [`InvalidKey::Meta`] above [`MAX_META`] bytes.
    pub fn new(
        pairs: impl IntoIterator<Item = (impl Into<String>, impl Into<String>)>,
    ) -> Result<Self, InvalidKey> {
        let map: BTreeMap<String, String> = pairs
            .into_iter()
            .map(|(name, value)| (name.into(), value.into()))
            .collect();
        let size: usize = map
            .iter()
            .map(|(name, value)| name.len() + value.len())
            .sum();
        if size > MAX_META {
            return Err(InvalidKey::Meta);
        }
        Ok(Self(map))
    }

    /// Whether there are no pairs.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value with this name.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// Names and values in the order of the names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (&**name, &**value))
    }

    pub(crate) fn encode(&self, out: &mut Writer) {
        let mut pairs: Vec<_> = self.iter().collect();
        pairs.sort_by_key(|(name, _)| (name.len(), *name));
        out.map(pairs.len());
        for (name, value) in pairs {
            out.text(name);
            out.text(value);
        }
    }
}

/// A key whose signatures the tailnet trusts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustedKey {
    id: KeyId,
    votes: u16,
    meta: Meta,
}

impl TrustedKey {
    /// A key with its votes and metadata.
    ///
    /// # Errors
    /// [`InvalidKey::Votes`] unless there are 1 to [`MAX_VOTES`].
    pub fn new(id: impl Into<KeyId>, votes: u16, meta: Meta) -> Result<Self, InvalidKey> {
        if votes == 0 || votes > MAX_VOTES {
            return Err(InvalidKey::Votes);
        }
        Ok(Self {
            id: id.into(),
            votes,
            meta,
        })
    }

    /// Its identity, the public key.
    pub fn id(&self) -> &KeyId {
        &self.id
    }

    /// The weight of a signature of this key when branches compete.
    pub fn votes(&self) -> u16 {
        self.votes
    }

    /// Its metadata.
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// The same key with other votes or metadata.
    pub(crate) fn updated(
        &self,
        votes: Option<u64>,
        meta: Option<&Meta>,
    ) -> Result<Self, InvalidKey> {
        let votes = match votes {
            Some(votes) => u16::try_from(votes).map_err(|_| InvalidKey::Votes)?,
            None => self.votes,
        };
        Self::new(self.id.clone(), votes, meta.unwrap_or(&self.meta).clone())
    }

    pub(crate) fn encode(&self, out: &mut Writer) {
        let mut fields = FieldWriter::default();
        fields.field(1).uint(KIND_25519);
        fields.field(2).uint(self.votes.into());
        let public = self.id.as_bytes();
        fields
            .field(3)
            .bytes_or_null((!public.is_empty()).then_some(public));
        if !self.meta.is_empty() {
            self.meta.encode(fields.field(12));
        }
        fields.finish_into(out);
    }

    pub(crate) fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let (mut kind, mut votes, mut public) = (None, None, None);
        let mut meta = Meta::default();
        reader.fields(|reader, number| {
            match number {
                1 => kind = Some(reader.uint()?),
                2 => votes = Some(reader.uint()?),
                3 => public = Some(reader.bytes_or_null()?.unwrap_or_default()),
                12 => meta = Meta::new(reader.text_map()?)?,
                _ => return Err(DecodeError::UnknownField),
            }
            Ok(())
        })?;
        let (Some(kind), Some(votes), Some(public)) = (kind, votes, public) else {
            return Err(DecodeError::MissingField);
        };
        if kind != KIND_25519 {
            return Err(DecodeError::Invalid("a key has an unknown kind"));
        }
        let votes = u16::try_from(votes).map_err(|_| InvalidKey::Votes)?;
        Ok(Self::new(KeyId::from_slice(public), votes, meta)?)
    }
}

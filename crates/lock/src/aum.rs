//! Authority update messages.

use std::fmt;
use std::sync::Arc;

use warren_keys::LockPublic;

use crate::cbor::{DecodeError, FieldWriter, Reader, Writer};
use crate::digest::{AumHash, blake2s};
use crate::key::{KeyId, Meta, TrustedKey};
use crate::secret::{LockSecret, verify_zip215};
use crate::state::Checkpoint;

/// The most bytes of a message. A checkpoint with as many keys and as much metadata as
/// possible needs less.
pub const MAX_AUM: usize = 1 << 20;

const ADD_KEY: u8 = 1;
const REMOVE_KEY: u8 = 2;
const NO_OP: u8 = 3;
const UPDATE_KEY: u8 = 4;
const CHECKPOINT: u8 = 5;

/// The field of the signatures, the last one.
const SIGNATURES: u64 = 23;

/// The change that a message makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A key is trusted from now on.
    AddKey(TrustedKey),
    /// A key is no longer trusted.
    RemoveKey(KeyId),
    /// Nothing.
    NoOp,
    /// A key gets other votes or metadata; at least one of them.
    UpdateKey {
        /// The key.
        id: KeyId,
        /// The new votes, as the message has them.
        votes: Option<u64>,
        /// The new metadata, which replaces all of the old.
        meta: Option<Meta>,
    },
    /// All keys and values are replaced.
    Checkpoint(Checkpoint),
    /// A kind of a later version. It changes nothing that this version knows.
    Unknown(u8),
}

/// A signature of a message.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct AumSignature {
    /// The key that signed.
    pub key: LockPublic,
    /// The signature over the digest of the message.
    pub signature: [u8; 64],
}

impl AumSignature {
    pub(crate) fn verify(&self, digest: &[u8; 32]) -> bool {
        verify_zip215(&self.key, digest, &self.signature)
    }
}

impl fmt::Debug for AumSignature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AumSignature({:?})", self.key)
    }
}

/// An authority update message, with its encoding and hash. Clones share it.
#[derive(Clone)]
pub struct Aum(Arc<Inner>);

struct Inner {
    /// The canonical encoding.
    bytes: Box<[u8]>,
    /// How many of `bytes` come before the field of the signatures.
    unsigned: usize,
    hash: AumHash,
    parent: Option<AumHash>,
    change: Change,
    signatures: Vec<AumSignature>,
}

impl Aum {
    /// An unsigned message. A genesis message has no parent.
    pub fn unsigned(parent: Option<AumHash>, change: Change) -> Self {
        let mut fields = FieldWriter::default();
        fields.field(1).uint(kind(&change).into());
        fields
            .field(2)
            .bytes_or_null(parent.as_ref().map(|hash| hash.as_bytes().as_slice()));
        match &change {
            Change::AddKey(key) => key.encode(fields.field(3)),
            Change::RemoveKey(id) => fields.field(4).bytes(id.as_bytes()),
            Change::UpdateKey { id, votes, meta } => {
                fields.field(4).bytes(id.as_bytes());
                if let Some(votes) = votes {
                    fields.field(6).uint(*votes);
                }
                if let Some(meta) = meta {
                    meta.encode(fields.field(7));
                }
            }
            Change::Checkpoint(checkpoint) => checkpoint.encode(fields.field(5)),
            Change::NoOp | Change::Unknown(_) => {}
        }
        let bytes = fields.finish();
        Self(Arc::new(Inner {
            hash: AumHash::from_bytes(blake2s(&bytes)),
            unsigned: bytes.len(),
            bytes: bytes.into(),
            parent,
            change,
            signatures: Vec::new(),
        }))
    }

    /// The same message with one more signature. Its hash is another one.
    #[must_use]
    pub fn signed_by(&self, secret: &LockSecret) -> Self {
        let inner = &*self.0;
        let mut signatures = inner.signatures.clone();
        signatures.push(AumSignature {
            key: secret.public(),
            signature: secret.sign(&self.signing_digest()),
        });
        let mut out = Writer::default();
        let unsigned_pairs = self.pairs() - u8::from(!inner.signatures.is_empty());
        out.map(usize::from(unsigned_pairs) + 1);
        out.append(&inner.bytes[1..inner.unsigned]);
        out.uint(SIGNATURES);
        out.array(signatures.len());
        for signature in &signatures {
            let mut fields = FieldWriter::default();
            fields.field(1).bytes(signature.key.as_bytes());
            fields.field(2).bytes(&signature.signature);
            fields.finish_into(&mut out);
        }
        let bytes = out.finish();
        Self(Arc::new(Inner {
            hash: AumHash::from_bytes(blake2s(&bytes)),
            unsigned: inner.unsigned,
            bytes: bytes.into(),
            parent: inner.parent,
            change: inner.change.clone(),
            signatures,
        }))
    }

    /// Reads a message. Signatures are not verified here.
    ///
    /// # Errors
    /// [`DecodeError`] if the bytes are no canonical CBOR, or the message breaks a rule
    /// that does not depend on the chain.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        if bytes.len() > MAX_AUM {
            return Err(DecodeError::TooLarge);
        }
        let mut fields = Fields::default();
        let mut reader = Reader::new(bytes);
        reader.fields(|reader, number| fields.read(reader, number))?;
        let unread = fields.unread_at_signatures;
        reader.finish()?;
        let (Some(kind), Some(parent)) = (fields.kind, fields.parent) else {
            return Err(DecodeError::MissingField);
        };
        let signatures = std::mem::take(&mut fields.signatures);
        // The number of the field takes one byte, which was read already.
        let unsigned = unread.map_or(bytes.len(), |unread| bytes.len() - unread - 1);
        Ok(Self(Arc::new(Inner {
            hash: AumHash::from_bytes(blake2s(bytes)),
            unsigned,
            bytes: bytes.into(),
            parent,
            change: fields.into_change(kind)?,
            signatures,
        })))
    }

    /// The encoding.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0.bytes
    }

    /// The hash of the message with its signatures.
    pub fn hash(&self) -> AumHash {
        self.0.hash
    }

    /// The digest that signatures cover: the hash of the message without them.
    pub fn signing_digest(&self) -> [u8; 32] {
        let inner = &*self.0;
        if inner.signatures.is_empty() {
            return *inner.hash.as_bytes();
        }
        let mut out = Writer::default();
        out.map(usize::from(self.pairs() - 1));
        out.append(&inner.bytes[1..inner.unsigned]);
        blake2s(&out.finish())
    }

    /// How many fields the encoding has. There are fewer than 24, so the head of the map
    /// is one byte.
    fn pairs(&self) -> u8 {
        self.0.bytes[0] & 0x1f
    }

    /// The hash of the message before this one; `None` for a genesis message.
    pub fn parent(&self) -> Option<AumHash> {
        self.0.parent
    }

    /// The change that the message makes.
    pub fn change(&self) -> &Change {
        &self.0.change
    }

    /// The signatures, in the order in which they were made.
    pub fn signatures(&self) -> &[AumSignature] {
        &self.0.signatures
    }

    /// The name of the kind, as the log shows it.
    pub fn kind(&self) -> &'static str {
        match kind(self.change()) {
            0 => "invalid",
            ADD_KEY => "add-key",
            REMOVE_KEY => "remove-key",
            NO_OP => "no-op",
            UPDATE_KEY => "update-key",
            CHECKPOINT => "checkpoint",
            _ => "unknown",
        }
    }
}

impl PartialEq for Aum {
    fn eq(&self, other: &Self) -> bool {
        self.hash() == other.hash()
    }
}

impl Eq for Aum {}

impl fmt::Debug for Aum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Aum")
            .field("hash", &self.0.hash)
            .field("parent", &self.0.parent)
            .field("change", &self.0.change)
            .field("signatures", &self.0.signatures)
            .finish()
    }
}

fn kind(change: &Change) -> u8 {
    match change {
        Change::AddKey(_) => ADD_KEY,
        Change::RemoveKey(_) => REMOVE_KEY,
        Change::NoOp => NO_OP,
        Change::UpdateKey { .. } => UPDATE_KEY,
        Change::Checkpoint(_) => CHECKPOINT,
        Change::Unknown(kind) => *kind,
    }
}

/// The fields of a message while it is read.
#[derive(Default)]
struct Fields {
    kind: Option<u8>,
    parent: Option<Option<AumHash>>,
    key: Option<TrustedKey>,
    id: Option<KeyId>,
    state: Option<Checkpoint>,
    votes: Option<u64>,
    meta: Option<Vec<(String, String)>>,
    signatures: Vec<AumSignature>,
    unread_at_signatures: Option<usize>,
}

impl Fields {
    fn read(&mut self, reader: &mut Reader<'_>, number: u64) -> Result<(), DecodeError> {
        match number {
            1 => self.kind = Some(u8::try_from(reader.uint()?).map_err(|_| DecodeError::Type)?),
            2 => {
                self.parent = Some(match reader.bytes_or_null()? {
                    None => None,
                    Some(bytes) => {
                        let bytes = bytes.try_into().map_err(|_| {
                            DecodeError::Invalid("the hash of the parent has 32 bytes")
                        })?;
                        Some(AumHash::from_bytes(bytes))
                    }
                });
            }
            3 => self.key = Some(TrustedKey::decode(reader)?),
            4 => self.id = Some(KeyId::from_slice(reader.some_bytes()?)),
            5 => self.state = Some(Checkpoint::decode(reader)?),
            6 => self.votes = Some(reader.uint()?),
            7 => {
                let pairs = reader.text_map()?.into_iter();
                self.meta = Some(pairs.map(|(a, b)| (a.into(), b.into())).collect());
            }
            SIGNATURES => {
                self.unread_at_signatures = Some(reader.unread());
                self.signatures = reader.array(read_signature)?;
                if self.signatures.is_empty() {
                    return Err(DecodeError::NotCanonical);
                }
            }
            _ => return Err(DecodeError::UnknownField),
        }
        Ok(())
    }

    /// The change, if the message has the fields of its kind and no others.
    fn into_change(self, kind: u8) -> Result<Change, DecodeError> {
        let Self {
            key,
            id,
            state,
            votes,
            meta,
            ..
        } = self;
        match (kind, key, id, state, votes, meta) {
            (ADD_KEY, Some(key), None, None, None, None) => Ok(Change::AddKey(key)),
            (REMOVE_KEY, None, Some(id), None, None, None) => Ok(Change::RemoveKey(id)),
            (UPDATE_KEY, None, Some(_), None, None, None) => Err(DecodeError::Invalid(
                "an update-key message changes nothing",
            )),
            (UPDATE_KEY, None, Some(id), None, votes, meta) => Ok(Change::UpdateKey {
                id,
                votes,
                meta: meta.map(Meta::new).transpose()?,
            }),
            (CHECKPOINT, None, None, Some(state), None, None) => Ok(Change::Checkpoint(state)),
            (ADD_KEY | REMOVE_KEY | UPDATE_KEY | CHECKPOINT, ..) => Err(DecodeError::Invalid(
                "the message has other fields than its kind",
            )),
            (NO_OP, ..) => Ok(Change::NoOp),
            (kind, ..) => Ok(Change::Unknown(kind)),
        }
    }
}

fn read_signature(reader: &mut Reader<'_>) -> Result<AumSignature, DecodeError> {
    let (mut key, mut signature) = (None, None);
    reader.fields(|reader, number| {
        match number {
            1 => key = reader.bytes_or_null()?,
            2 => signature = reader.bytes_or_null()?,
            _ => return Err(DecodeError::UnknownField),
        }
        Ok(())
    })?;
    let key = key.and_then(|key| key.try_into().ok());
    let signature = signature.and_then(|signature| signature.try_into().ok());
    let (Some(key), Some(signature)) = (key, signature) else {
        return Err(DecodeError::Invalid(
            "a signature has a key of 32 bytes and 64 bytes of its own",
        ));
    };
    Ok(AumSignature {
        key: LockPublic::from_bytes(key),
        signature,
    })
}

//! The state after an update: trusted keys and disablement values.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::aum::{Aum, Change};
use crate::authority::Refusal;
use crate::cbor::{DecodeError, FieldWriter, Reader, Writer};
use crate::digest::AumHash;
use crate::disablement::{DisablementSecret, DisablementValue};
use crate::key::{KeyId, TrustedKey};

/// The most keys in a checkpoint.
pub const MAX_KEYS: usize = 512;
/// The most disablement values in a checkpoint.
pub const MAX_DISABLEMENT_VALUES: usize = 32;

/// The identity of a lock, random and the same in all its checkpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct StateId(pub u64, pub u64);

impl StateId {
    /// The identity in these 16 bytes, two little-endian numbers.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        let number = u128::from_le_bytes(bytes);
        Self(number as u64, (number >> 64) as u64)
    }
}

impl std::fmt::Display for StateId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.0, self.1)
    }
}

/// Keys and disablement values cannot be those of a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidCheckpoint {
    /// No keys, or more than [`MAX_KEYS`].
    #[error("a checkpoint has 1 to {MAX_KEYS} keys")]
    Keys,
    /// A key is there twice.
    #[error("a key is there twice")]
    KeyTwice,
    /// No disablement values, or more than [`MAX_DISABLEMENT_VALUES`].
    #[error("a checkpoint has 1 to {MAX_DISABLEMENT_VALUES} disablement values")]
    Values,
    /// A disablement value is there twice.
    #[error("a disablement value is there twice")]
    ValueTwice,
}

impl From<InvalidCheckpoint> for DecodeError {
    fn from(error: InvalidCheckpoint) -> Self {
        Self::Invalid(match error {
            InvalidCheckpoint::Keys => "a checkpoint has too many keys or none",
            InvalidCheckpoint::KeyTwice => "a checkpoint has a key twice",
            InvalidCheckpoint::Values => "a checkpoint has too many disablement values or none",
            InvalidCheckpoint::ValueTwice => "a checkpoint has a disablement value twice",
        })
    }
}

/// The trusted keys and disablement values of a lock: what a checkpoint message holds.
/// Clones share the keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    keys: Arc<Vec<Arc<TrustedKey>>>,
    values: Arc<[DisablementValue]>,
    id: StateId,
}

impl Checkpoint {
    /// A checkpoint with these keys and values.
    ///
    /// # Errors
    /// [`InvalidCheckpoint`] names the limit that they break.
    pub fn new(
        keys: Vec<TrustedKey>,
        values: Vec<DisablementValue>,
        id: StateId,
    ) -> Result<Self, InvalidCheckpoint> {
        Self {
            keys: Arc::new(keys.into_iter().map(Arc::new).collect()),
            values: values.into(),
            id,
        }
        .checked()
    }

    fn checked(self) -> Result<Self, InvalidCheckpoint> {
        if self.keys.is_empty() || self.keys.len() > MAX_KEYS {
            return Err(InvalidCheckpoint::Keys);
        }
        if self.values.is_empty() || self.values.len() > MAX_DISABLEMENT_VALUES {
            return Err(InvalidCheckpoint::Values);
        }
        let ids: BTreeSet<_> = self.keys.iter().map(|key| key.id()).collect();
        if ids.len() < self.keys.len() {
            return Err(InvalidCheckpoint::KeyTwice);
        }
        let values: BTreeSet<_> = self.values.iter().collect();
        if values.len() < self.values.len() {
            return Err(InvalidCheckpoint::ValueTwice);
        }
        Ok(self)
    }

    /// The trusted keys, in the order in which they were added.
    pub fn keys(&self) -> impl ExactSizeIterator<Item = &TrustedKey> {
        self.keys.iter().map(|key| &**key)
    }

    /// The trusted key with this identity.
    pub fn key(&self, id: &KeyId) -> Option<&TrustedKey> {
        self.keys().find(|key| key.id() == id)
    }

    /// The public values of the disablement secrets.
    pub fn disablement_values(&self) -> &[DisablementValue] {
        &self.values
    }

    /// The identity of the lock.
    pub fn id(&self) -> StateId {
        self.id
    }

    /// Whether `secret` turns this lock off. This derives a value from the secret,
    /// which takes some ten milliseconds.
    pub fn accepts_disablement(&self, secret: &DisablementSecret) -> bool {
        self.accepts_value(&secret.value())
    }

    /// As [`Checkpoint::accepts_disablement`], for the value of a secret.
    pub fn accepts_value(&self, value: &DisablementValue) -> bool {
        value.is_one_of(&self.values)
    }

    /// The same without the keys in `ids`.
    ///
    /// # Errors
    /// [`InvalidCheckpoint`] if no key is left, or there are too many.
    pub(crate) fn without(&self, ids: &[KeyId]) -> Result<Self, InvalidCheckpoint> {
        let mut out = self.clone();
        Arc::make_mut(&mut out.keys).retain(|key| !ids.contains(key.id()));
        out.checked()
    }

    pub(crate) fn encode(&self, out: &mut Writer) {
        let mut fields = FieldWriter::default();
        fields.field(1).bytes_or_null(None);
        let values = fields.field(2);
        values.array(self.values.len());
        for value in &*self.values {
            values.bytes(value.as_bytes());
        }
        let keys = fields.field(3);
        keys.array(self.keys.len());
        for key in &*self.keys {
            key.encode(keys);
        }
        for (number, part) in [(4, self.id.0), (5, self.id.1)] {
            if part != 0 {
                fields.field(number).uint(part);
            }
        }
        fields.finish_into(out);
    }

    pub(crate) fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let (mut last, mut values, mut keys) = (false, None, None);
        let mut id = StateId(0, 0);
        let part = |reader: &mut Reader<'_>| match reader.uint()? {
            0 => Err(DecodeError::NotCanonical),
            part => Ok(part),
        };
        reader.fields(|reader, number| {
            match number {
                1 if reader.bytes_or_null()?.is_some() => {
                    return Err(DecodeError::Invalid("a checkpoint names its own hash"));
                }
                1 => last = true,
                2 => {
                    values = Some(reader.array(|reader| {
                        reader
                            .bytes()?
                            .try_into()
                            .map(DisablementValue::from_bytes)
                            .map_err(|_| DecodeError::Invalid("a disablement value has 32 bytes"))
                    })?);
                }
                3 => keys = Some(reader.array(TrustedKey::decode)?),
                4 => id.0 = part(reader)?,
                5 => id.1 = part(reader)?,
                _ => return Err(DecodeError::UnknownField),
            }
            Ok(())
        })?;
        let (true, Some(values), Some(keys)) = (last, values, keys) else {
            return Err(DecodeError::MissingField);
        };
        Ok(Self::new(keys, values, id)?)
    }
}

/// The state of a chain after one of its messages.
///
/// Unlike a [`Checkpoint`] message, a state may have more than [`MAX_KEYS`] keys,
/// because the rules of the chain do not limit how often keys are added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    head: AumHash,
    content: Checkpoint,
}

impl State {
    /// The state after a checkpoint, whatever came before; `None` for other messages.
    pub(crate) fn of_checkpoint(aum: &Aum) -> Option<Self> {
        match aum.change() {
            Change::Checkpoint(content) => Some(Self {
                head: aum.hash(),
                content: content.clone(),
            }),
            _ => None,
        }
    }

    /// The hash of the message after which this is the state.
    pub fn head(&self) -> AumHash {
        self.head
    }

    /// The keys and values as a checkpoint would hold them.
    ///
    /// # Errors
    /// [`InvalidCheckpoint`] if there are too many keys.
    pub(crate) fn to_checkpoint(&self) -> Result<Checkpoint, InvalidCheckpoint> {
        self.content.clone().checked()
    }

    /// The state after `aum`, whose signatures are not looked at.
    pub(crate) fn apply(&self, aum: &Aum) -> Result<Self, Refusal> {
        if aum.parent() != Some(self.head) {
            return Err(Refusal::Parent);
        }
        let mut content = self.content.clone();
        match aum.change() {
            Change::AddKey(key) => {
                if content.key(key.id()).is_some() {
                    return Err(Refusal::KeyExists(key.id().clone()));
                }
                Arc::make_mut(&mut content.keys).push(Arc::new(key.clone()));
            }
            Change::RemoveKey(id) => {
                let keys = Arc::make_mut(&mut content.keys);
                let before = keys.len();
                keys.retain(|key| key.id() != id);
                if keys.len() == before {
                    return Err(Refusal::KeyNotFound(id.clone()));
                }
            }
            Change::UpdateKey { id, votes, meta } => {
                let key = Arc::make_mut(&mut content.keys)
                    .iter_mut()
                    .find(|key| key.id() == id)
                    .ok_or_else(|| Refusal::KeyNotFound(id.clone()))?;
                *key = Arc::new(key.updated(*votes, meta.as_ref())?);
            }
            Change::Checkpoint(checkpoint) => {
                if checkpoint.id != content.id {
                    return Err(Refusal::StateId);
                }
                content = checkpoint.clone();
            }
            Change::NoOp | Change::Unknown(_) => {}
        }
        Ok(Self {
            head: aum.hash(),
            content,
        })
    }

    /// Checks everything that makes `aum` a valid successor, and returns the state
    /// after it.
    pub(crate) fn verify(&self, aum: &Aum) -> Result<Self, Refusal> {
        // The cheap tests come first.
        let next = self.apply(aum)?;
        self.verify_signatures(aum)?;
        if let Change::RemoveKey(_) = aum.change()
            && next.keys.is_empty()
        {
            return Err(Refusal::LastKey);
        }
        Ok(next)
    }

    /// Checks that `aum` is signed, and only by keys of this state.
    pub(crate) fn verify_signatures(&self, aum: &Aum) -> Result<(), Refusal> {
        if aum.signatures().is_empty() {
            return Err(Refusal::Unsigned);
        }
        let digest = aum.signing_digest();
        for signature in aum.signatures() {
            let id = KeyId::from(signature.key);
            if self.key(&id).is_none() {
                return Err(Refusal::SignerNotTrusted(id));
            }
            if !signature.verify(&digest) {
                return Err(Refusal::Signature(id));
            }
        }
        Ok(())
    }

    /// The sum of the votes of the keys of this state that signed `aum`, each once.
    pub(crate) fn weight(&self, aum: &Aum) -> u64 {
        let signers: BTreeSet<KeyId> = aum
            .signatures()
            .iter()
            .map(|signature| signature.key.into())
            .collect();
        self.keys()
            .filter(|key| signers.contains(key.id()))
            .map(|key| u64::from(key.votes()))
            .sum()
    }
}

impl std::ops::Deref for State {
    type Target = Checkpoint;

    fn deref(&self) -> &Checkpoint {
        &self.content
    }
}

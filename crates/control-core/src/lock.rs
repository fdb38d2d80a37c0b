//! Tailnet lock: what the server remembers of it.
//!
//! The server stores the chain of update messages and passes it on. It can read all of
//! it and forge none of it: every node verifies the messages itself.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use warren_control_types::TkaInfo;
use warren_lock::{Aum, AumHash, Authority, StoredAum};

/// An update message of tailnet lock, as it arrived.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockMessage {
    /// Its hash.
    #[serde(with = "hash_text")]
    pub hash: AumHash,
    /// Its encoding.
    #[serde(with = "hex_text")]
    pub bytes: Vec<u8>,
    /// Seconds since 1970 when it arrived.
    pub stored_at: u64,
}

impl LockMessage {
    pub(crate) fn of(aum: &Aum, stored_at: u64) -> Self {
        Self {
            hash: aum.hash(),
            bytes: aum.as_bytes().to_vec(),
            stored_at,
        }
    }
}

/// Whether tailnet lock is on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Turned {
    /// It is on.
    On {
        /// The first message of its chain.
        #[serde(with = "hash_text")]
        genesis: AumHash,
    },
    /// It was turned off.
    Off {
        /// The secret that turned it off. Nodes that were away ask for it as a proof;
        /// it is worth nothing any more.
        #[serde(with = "hex_text")]
        secret: Vec<u8>,
    },
}

/// The row about tailnet lock. There is none before it is turned on for the first time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockRecord {
    /// Whether it is on.
    pub turned: Turned,
}

/// The reason why a request about tailnet lock is refused. The text goes to the person
/// at the node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LockError {
    /// The node key is unknown, expired, or belongs to another machine.
    #[error("node not found: this node key is not registered here; log in again")]
    NoNode,
    /// The owner of the node may not turn the lock on.
    #[error(
        "only nodes of an owner, admin or network-admin may turn tailnet lock on; `warren-control users set-role` changes roles"
    )]
    NotAllowed,
    /// The lock is on already.
    #[error("tailnet lock is on already")]
    AlreadyOn,
    /// The lock is off.
    #[error("tailnet lock is not on")]
    NotOn,
    /// `init/finish` without `init/begin`.
    #[error("tailnet lock was not prepared by this node; run `lock init` again")]
    NotPrepared,
    /// The stored chain cannot be read.
    #[error(
        "the server cannot read its copy of the tailnet lock; it stays on. Restore the database from a backup"
    )]
    Damaged,
    /// The disablement secret is wrong.
    #[error("the disablement secret is not one of this tailnet lock")]
    WrongSecret,
    /// Something in the request is not valid.
    #[error("{0}")]
    Refused(String),
}

/// See the module. A copy is cheap.
#[derive(Debug, Clone, Default)]
pub(crate) struct Lock {
    record: Option<Arc<LockRecord>>,
    messages: Arc<BTreeMap<AumHash, LockMessage>>,
    /// `None` while the lock is off, or its first message is missing.
    authority: Option<Arc<Authority>>,
}

impl Lock {
    pub(crate) fn load(
        record: Option<LockRecord>,
        messages: BTreeMap<AumHash, LockMessage>,
    ) -> Self {
        let mut out = Self {
            record: record.map(Arc::new),
            messages: Arc::new(messages),
            authority: None,
        };
        out.open();
        out
    }

    fn open(&mut self) {
        self.authority = None;
        let Some(Turned::On { genesis }) = self.record().map(|record| &record.turned) else {
            return;
        };
        let stored = self.messages.values().filter_map(|message| {
            let aum = Aum::decode(&message.bytes).ok()?;
            Some(StoredAum {
                aum,
                stored_at: message.stored_at,
            })
        });
        // Messages that cannot be read stay in the store. Nodes send theirs again.
        self.authority = Authority::open(stored, *genesis)
            .ok()
            .map(|(authority, _)| Arc::new(authority));
    }

    pub(crate) fn record(&self) -> Option<&LockRecord> {
        self.record.as_deref()
    }

    pub(crate) fn messages(&self) -> &BTreeMap<AumHash, LockMessage> {
        &self.messages
    }

    /// The chain.
    ///
    /// # Errors
    /// [`LockError::NotOn`], or [`LockError::Damaged`].
    pub(crate) fn authority(&self) -> Result<&Authority, LockError> {
        match (&self.authority, self.is_on()) {
            (Some(authority), _) => Ok(authority),
            (None, true) => Err(LockError::Damaged),
            (None, false) => Err(LockError::NotOn),
        }
    }

    pub(crate) fn is_on(&self) -> bool {
        let turned = self.record().map(|record| &record.turned);
        matches!(turned, Some(Turned::On { .. }))
    }

    /// The secret that turned the lock off.
    pub(crate) fn disablement_secret(&self) -> Option<&[u8]> {
        match &self.record()?.turned {
            Turned::Off { secret } => Some(secret),
            Turned::On { .. } => None,
        }
    }

    pub(crate) fn set_record(&mut self, record: LockRecord) {
        self.record = Some(Arc::new(record));
        self.open();
    }

    pub(crate) fn put_message(&mut self, message: LockMessage) {
        if let Some(authority) = &mut self.authority
            && let Ok(aum) = Aum::decode(&message.bytes)
        {
            // It was verified before it was stored.
            let _ = Arc::make_mut(authority).inform(&[aum], message.stored_at);
        }
        Arc::make_mut(&mut self.messages).insert(message.hash, message);
    }

    pub(crate) fn remove_message(&mut self, hash: AumHash) {
        Arc::make_mut(&mut self.messages).remove(&hash);
    }

    /// The part of which nodes are informed. A chain that cannot be read has no head, and
    /// is never reported as turned off.
    pub(crate) fn info(&self) -> Option<TkaInfo> {
        let disabled = !self.is_on();
        self.record.as_ref()?;
        let head = self.authority.as_ref();
        Some(TkaInfo {
            head: head
                .map(|authority| authority.head().to_string())
                .unwrap_or_default(),
            disabled,
        })
    }
}

/// A hash in rows.
mod hash_text {
    use serde::{Deserialize as _, Deserializer, Serializer, de};
    use warren_lock::AumHash;

    pub(super) fn serialize<S: Serializer>(
        hash: &AumHash,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_str(hash)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<AumHash, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

/// Bytes in rows.
mod hex_text {
    use data_encoding::HEXLOWER;
    use serde::{Deserialize as _, Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&HEXLOWER.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        HEXLOWER.decode(text.as_bytes()).map_err(de::Error::custom)
    }
}

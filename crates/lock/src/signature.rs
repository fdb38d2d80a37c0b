//! Signatures of node keys.

use std::fmt;

use warren_keys::{LockPublic, NodePublic};

use crate::authority::Authority;
use crate::cbor::{DecodeError, FieldWriter, Reader, Writer};
use crate::digest::blake2s;
use crate::key::KeyId;
use crate::secret::{LockSecret, verify_plain, verify_zip215};

/// The most bytes of a signature. The deepest nesting needs less.
pub const MAX_NODE_KEY_SIGNATURE: usize = 8 * 1024;

/// The most levels of a signature that is rotated once more: the encoding allows one more.
const MAX_LEVELS: usize = 15;

/// Before the 32 bytes of a node key in a signature.
const NODE_KEY_PREFIX: [u8; 2] = *b"np";

/// How a signature makes a node key valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignatureKind {
    /// A trusted key signed the node key.
    Direct,
    /// The node's own lock key signed a node key that replaces an earlier one, whose
    /// signature is nested.
    Rotation,
    /// A trusted key signed another key, which signs one or more node keys by rotations
    /// that nest this signature. It admits no node itself.
    Credential,
    /// A kind of a later version.
    Unknown(u8),
}

impl SignatureKind {
    fn number(self) -> u8 {
        match self {
            Self::Direct => 1,
            Self::Rotation => 2,
            Self::Credential => 3,
            Self::Unknown(number) => number,
        }
    }
}

impl From<u8> for SignatureKind {
    fn from(number: u8) -> Self {
        match number {
            1 => Self::Direct,
            2 => Self::Rotation,
            3 => Self::Credential,
            number => Self::Unknown(number),
        }
    }
}

impl fmt::Display for SignatureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Direct => f.write_str("direct"),
            Self::Rotation => f.write_str("rotation"),
            Self::Credential => f.write_str("credential"),
            Self::Unknown(0) => f.write_str("invalid"),
            Self::Unknown(number) => write!(f, "unknown ({number})"),
        }
    }
}

/// Why a signature does not admit a node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unauthorized {
    /// There is no signature.
    #[error("the node key is not signed")]
    Unsigned,
    /// The bytes are no signature.
    #[error("the signature cannot be read: {0}")]
    Decode(#[from] DecodeError),
    /// A credential signature without a rotation around it.
    #[error("a credential admits no node itself")]
    Credential,
    /// The signature is for another node key.
    #[error("the signature is for another node key")]
    OtherNode,
    /// A trusted key has to be named and is not.
    #[error("the signature names no trusted key")]
    NoSigner,
    /// The key that signed is not trusted (any more).
    #[error("the signing key {0} is not trusted")]
    NotTrusted(KeyId),
    /// The signature is wrong.
    #[error("the signature of the {0} level is wrong")]
    Signature(SignatureKind),
    /// A rotation of something that names no key for it.
    #[error("the rotation is not allowed by the signature that it nests")]
    NoWrappingKey,
    /// A signature that has to nest another one, or must not.
    #[error("the levels of the signature do not fit together")]
    Nesting,
    /// A kind of a later version.
    #[error("the signature has an unknown kind")]
    UnknownKind,
}

/// A node key cannot be signed again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ResignError {
    /// The old signature cannot be read.
    #[error("the old signature cannot be read: {0}")]
    Decode(#[from] DecodeError),
    /// A credential is needed, and the signature is another kind.
    #[error("the signature is no credential")]
    NotACredential,
}

/// A signature that admits a node key, with all the signatures that it depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeKeySignature {
    kind: SignatureKind,
    node_key: Option<NodePublic>,
    signer: Option<LockPublic>,
    signature: Option<[u8; 64]>,
    nested: Option<Box<NodeKeySignature>>,
    wrapping_key: Option<LockPublic>,
}

/// A node key is admitted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authorization {
    /// The trusted key.
    pub signer: KeyId,
    /// The kind of the innermost signature.
    pub initial: SignatureKind,
    /// The key that signs the rotations of the innermost signature.
    pub wrapping_key: Option<LockPublic>,
    /// The node keys that this one replaces, from the newest to the oldest. Only
    /// rotations have some.
    pub previous: Vec<NodePublic>,
}

impl NodeKeySignature {
    fn unsigned(kind: SignatureKind) -> Self {
        Self {
            kind,
            node_key: None,
            signer: None,
            signature: None,
            nested: None,
            wrapping_key: None,
        }
    }

    fn signed_by(mut self, secret: &LockSecret) -> Self {
        self.signature = Some(secret.sign(&self.digest()));
        self
    }

    /// Signs a node key with a trusted key. `wrapping_key` is the node's own lock key,
    /// which may sign rotations.
    pub fn direct(
        node_key: NodePublic,
        wrapping_key: Option<LockPublic>,
        trusted: &LockSecret,
    ) -> Self {
        Self {
            node_key: Some(node_key),
            signer: Some(trusted.public()),
            wrapping_key,
            ..Self::unsigned(SignatureKind::Direct)
        }
        .signed_by(trusted)
    }

    /// Signs a key with a trusted key, so that it admits nodes by
    /// [`NodeKeySignature::by_credential`].
    pub fn credential(delegate: LockPublic, trusted: &LockSecret) -> Self {
        Self {
            signer: Some(trusted.public()),
            wrapping_key: Some(delegate),
            ..Self::unsigned(SignatureKind::Credential)
        }
        .signed_by(trusted)
    }

    fn rotation(self, node_key: NodePublic, secret: &LockSecret) -> Self {
        Self {
            node_key: Some(node_key),
            nested: Some(Box::new(self)),
            ..Self::unsigned(SignatureKind::Rotation)
        }
        .signed_by(secret)
    }

    /// Admits a node by a credential, with the private half of the key in it.
    ///
    /// # Errors
    /// [`ResignError::NotACredential`] for other signatures.
    pub fn by_credential(
        self,
        node_key: NodePublic,
        delegate: &LockSecret,
    ) -> Result<Self, ResignError> {
        if self.kind != SignatureKind::Credential {
            return Err(ResignError::NotACredential);
        }
        Ok(self.rotation(node_key, delegate))
    }

    /// The signature for a new node key of the same node, signed with its lock key: the
    /// same signature if it is for this key already, else a rotation around it. Chains
    /// of rotations that have become too deep are built again without their oldest keys.
    #[must_use]
    pub fn rotated(self, node_key: NodePublic, secret: &LockSecret) -> Self {
        if self.node_key == Some(node_key) {
            return self;
        }
        self.trimmed(secret).rotation(node_key, secret)
    }

    fn trimmed(self, secret: &LockSecret) -> Self {
        // The official client counts node keys. A credential has none, so a chain that
        // begins with one gets a level too deep there, and its node is locked out.
        if self.levels().count() <= MAX_LEVELS {
            return self;
        }
        let mut keys: Vec<NodePublic> = self
            .levels()
            .filter_map(|level| level.node_key)
            .take(MAX_LEVELS - 1)
            .collect();
        keys.reverse();
        keys.into_iter().fold(self.into_initial(), |nested, key| {
            nested.rotation(key, secret)
        })
    }

    fn into_initial(mut self) -> Self {
        while self.kind == SignatureKind::Rotation
            && let Some(nested) = self.nested.take()
        {
            self = *nested;
        }
        self
    }

    /// This signature and those nested in it, from outside.
    pub fn levels(&self) -> impl Iterator<Item = &Self> {
        std::iter::successors(Some(self), |level| match level.kind {
            SignatureKind::Rotation => level.nested.as_deref(),
            _ => None,
        })
    }

    /// The kind of the signature.
    pub fn kind(&self) -> SignatureKind {
        self.kind
    }

    /// The node key that it admits.
    pub fn node_key(&self) -> Option<NodePublic> {
        self.node_key
    }

    /// The trusted key that it names itself, without the nested ones.
    pub fn signer(&self) -> Option<LockPublic> {
        self.signer
    }

    /// The signature of this level.
    pub fn signature(&self) -> Option<&[u8; 64]> {
        self.signature.as_ref()
    }

    /// The signature that it depends on.
    pub fn nested(&self) -> Option<&Self> {
        self.nested.as_deref()
    }

    /// The key of this level that may sign rotations, without the nested ones.
    pub fn own_wrapping_key(&self) -> Option<LockPublic> {
        self.wrapping_key
    }

    /// The key that may sign a rotation of this signature. Nothing is verified here.
    pub fn wrapping_key(&self) -> Option<LockPublic> {
        self.levels().find_map(|level| level.wrapping_key)
    }

    /// The trusted key that admits the node in the end. Nothing is verified here.
    pub fn authorizing_key(&self) -> Option<KeyId> {
        let innermost = self.levels().last()?;
        match innermost.kind {
            SignatureKind::Direct | SignatureKind::Credential => innermost.signer.map(KeyId::from),
            _ => None,
        }
    }

    /// The digest that the signature of the outermost level covers: everything but itself.
    pub fn digest(&self) -> [u8; 32] {
        let mut out = Writer::default();
        self.encode_into(&mut out, false);
        blake2s(&out.finish())
    }

    /// The encoding.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        self.encode_into(&mut out, true);
        out.finish()
    }

    fn encode_into(&self, out: &mut Writer, with_signature: bool) {
        let mut fields = FieldWriter::default();
        fields.field(1).uint(self.kind.number().into());
        if let Some(key) = &self.node_key {
            let bytes = [&NODE_KEY_PREFIX[..], key.as_bytes()].concat();
            fields.field(2).bytes(&bytes);
        }
        if let Some(signer) = &self.signer {
            fields.field(3).bytes(signer.as_bytes());
        }
        if let Some(signature) = self.signature.as_ref().filter(|_| with_signature) {
            fields.field(4).bytes(signature);
        }
        if let Some(nested) = &self.nested {
            nested.encode_into(fields.field(5), true);
        }
        if let Some(key) = &self.wrapping_key {
            fields.field(6).bytes(key.as_bytes());
        }
        fields.finish_into(out);
    }

    /// Reads a signature. Nothing is verified here.
    ///
    /// # Errors
    /// [`DecodeError`] if the bytes are no canonical CBOR, or a key or signature has the
    /// wrong length.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        if bytes.len() > MAX_NODE_KEY_SIGNATURE {
            return Err(DecodeError::TooLarge);
        }
        let mut reader = Reader::new(bytes);
        let out = Self::read(&mut reader)?;
        reader.finish()?;
        Ok(out)
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let mut kind = None;
        let mut out = Self::unsigned(SignatureKind::Direct);
        reader.fields(|reader, number| {
            match number {
                1 => kind = Some(u8::try_from(reader.uint()?).map_err(|_| DecodeError::Type)?),
                2 => out.node_key = Some(read_node_key(reader)?),
                3 => out.signer = Some(LockPublic::from_bytes(sized(reader)?)),
                4 => out.signature = Some(sized(reader)?),
                5 => out.nested = Some(Box::new(Self::read(reader)?)),
                6 => out.wrapping_key = Some(LockPublic::from_bytes(sized(reader)?)),
                _ => return Err(DecodeError::UnknownField),
            }
            Ok(())
        })?;
        out.kind = kind.ok_or(DecodeError::MissingField)?.into();
        Ok(out)
    }

    /// Verifies one level against the node key that it has to admit.
    fn verify_level(&self, node_key: NodePublic, trusted: &LockPublic) -> Result<(), Unauthorized> {
        if self.kind != SignatureKind::Credential && self.node_key != Some(node_key) {
            return Err(Unauthorized::OtherNode);
        }
        let wrong = Unauthorized::Signature(self.kind);
        let signature = self.signature.ok_or(wrong.clone())?;
        let digest = self.digest();
        let valid = match (self.kind, &self.nested) {
            (SignatureKind::Rotation, Some(nested)) => {
                let key = nested.wrapping_key().ok_or(Unauthorized::NoWrappingKey)?;
                verify_plain(&key, &digest, &signature)
            }
            (SignatureKind::Direct | SignatureKind::Credential, None) => {
                verify_zip215(trusted, &digest, &signature)
            }
            (SignatureKind::Unknown(_), _) => return Err(Unauthorized::UnknownKind),
            _ => return Err(Unauthorized::Nesting),
        };
        valid.then_some(()).ok_or(wrong)
    }
}

fn sized<const N: usize>(reader: &mut Reader<'_>) -> Result<[u8; N], DecodeError> {
    reader
        .some_bytes()?
        .try_into()
        .map_err(|_| DecodeError::Invalid("a key or signature has the wrong length"))
}

fn read_node_key(reader: &mut Reader<'_>) -> Result<NodePublic, DecodeError> {
    let bytes: [u8; 34] = sized(reader)?;
    bytes
        .strip_prefix(&NODE_KEY_PREFIX)
        .and_then(|key| key.try_into().ok())
        .map(NodePublic::from_bytes)
        .ok_or(DecodeError::Invalid("a node key begins with \"np\""))
}

impl Authority {
    /// Whether the encoded `signature` admits `node_key` to the tailnet now.
    ///
    /// # Errors
    /// [`Unauthorized`] says why it does not.
    pub fn authorize(
        &self,
        node_key: NodePublic,
        signature: &[u8],
    ) -> Result<Authorization, Unauthorized> {
        if signature.is_empty() {
            return Err(Unauthorized::Unsigned);
        }
        let decoded = NodeKeySignature::decode(signature)?;
        if decoded.kind == SignatureKind::Credential {
            return Err(Unauthorized::Credential);
        }
        let signer = decoded.authorizing_key().ok_or(Unauthorized::NoSigner)?;
        let trusted = self.state().key(&signer).and_then(|key| key.id().public());
        let trusted = trusted.ok_or_else(|| Unauthorized::NotTrusted(signer.clone()))?;
        let mut wanted = node_key;
        let mut innermost = &decoded;
        let mut previous = Vec::new();
        for (depth, level) in decoded.levels().enumerate() {
            if depth > 0
                && let Some(key) = level.node_key
            {
                previous.push(key);
                wanted = key;
            }
            level.verify_level(wanted, &trusted)?;
            innermost = level;
        }
        Ok(Authorization {
            signer,
            initial: innermost.kind,
            wrapping_key: innermost.wrapping_key,
            previous,
        })
    }
}

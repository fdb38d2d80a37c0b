//! The commands of tailnet lock for the user of a node.
//!
//! Each command makes a request to the coordination server, or checks its answer; the
//! runtime sends them. Nothing is applied here before it came back by the synchronisation,
//! as it does to all other nodes.

use warren_control_types::{
    CapabilityVersion, Encoded, TkaDisableRequest, TkaInitBeginRequest, TkaInitBeginResponse,
    TkaInitFinishRequest, TkaSignInfo, TkaSignaturesUsingKeyRequest, TkaSignaturesUsingKeyResponse,
    TkaSubmitSignatureRequest, TkaSyncSendRequest, TkaSyncSendResponse,
};
use warren_keys::{Entropy, LockPublic, NodePublic};
use warren_lock::{
    Aum, AumHash, Authority, Checkpoint, DisablementSecret, DisablementValue, InvalidCheckpoint,
    KeyId, LockSecret, NodeKeySignature, Refusal, RevocationError, StateId, TrustedKey,
    Unauthorized, UpdateError, Updater, WrappedAuthKey, revocation,
};

/// Between an auth key and its credential.
const WRAPPED: &str = "--TL";

/// A command cannot be carried out. The texts are shown to the user; scripts look for
/// those of the official client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LockCommandError {
    /// The lock is off.
    #[error("tailnet-lock is not active")]
    NotOn,
    /// The lock is on.
    #[error("tailnet lock is already enabled")]
    AlreadyOn,
    /// The server does not offer it.
    #[error(
        "the coordination server does not offer tailnet lock to this node; see `warren status` \
         whether it is connected"
    )]
    NotOffered,
    /// There is no login.
    #[error("this machine is not logged in; log in with `warren up`")]
    NoLogin,
    /// The key of this node is not trusted.
    #[error(
        "this node is not trusted by Tailnet Lock; run the command on a node with a trusted key, see `warren lock status`"
    )]
    NotTrusted,
    /// The keys of a new lock do not contain that of this node.
    #[error(
        "the tailnet lock key of the current node must be one of the trusted keys during initialization"
    )]
    OwnKeyMissing,
    /// The keys and values of a new lock are not valid.
    #[error(transparent)]
    Checkpoint(#[from] InvalidCheckpoint),
    /// The message would not be valid.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The update cannot be made.
    #[error(transparent)]
    Update(#[from] UpdateError),
    /// The revocation cannot be made.
    #[error(transparent)]
    Revocation(#[from] RevocationError),
    /// The secret does not turn this lock off.
    #[error("incorrect disablement secret")]
    WrongSecret,
    /// Another change came first.
    #[error("central tka head differs from submitted AUM, try again")]
    OtherHead,
    /// The server sent a signature that the key did not make, or that is not valid.
    #[error("the coordination server sent a signature that is not one of that key: {0}")]
    ForeignSignature(Unauthorized),
    /// The message of a revocation has a signature of this node.
    #[error("this node has already signed this recovery AUM")]
    SignedAlready,
    /// The message is no revocation.
    #[error("this is no message of a revocation; `warren lock revoke-keys` makes one")]
    NoRevocation,
    /// The auth key carries a credential.
    #[error("the auth key was already wrapped")]
    WrappedAlready,
}

/// A new lock that is being turned on.
#[derive(Debug)]
pub struct LockInit {
    secret: LockSecret,
    node_key: NodePublic,
    genesis: Aum,
}

impl LockInit {
    /// The first request.
    pub fn begin(&self) -> TkaInitBeginRequest {
        TkaInitBeginRequest {
            version: CapabilityVersion::CURRENT,
            node_key: self.node_key,
            genesis_aum: self.genesis.as_bytes().to_vec(),
        }
    }

    /// The second request, with a signature of each node. `support` is a secret that the
    /// operator of the server may use to turn the lock off.
    pub fn finish(&self, answer: &TkaInitBeginResponse, support: Vec<u8>) -> TkaInitFinishRequest {
        let sign = |node: &TkaSignInfo| {
            let wrapping_key = <[u8; 32]>::try_from(&*node.rotation_pubkey)
                .ok()
                .map(LockPublic::from_bytes);
            let signature = NodeKeySignature::direct(node.node_public, wrapping_key, &self.secret);
            (node.node_id, Encoded(signature.encode()))
        };
        TkaInitFinishRequest {
            version: CapabilityVersion::CURRENT,
            node_key: self.node_key,
            signatures: answer.need_signatures.iter().map(sign).collect(),
            support_disablement: support,
        }
    }
}

/// A message that revokes keys from an earlier point on. It wins as soon as its signers
/// have more votes than those of the message that followed the same parent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revocation(pub Aum);

/// The commands, for the node as it is now.
#[derive(Debug, Clone, Copy)]
pub struct LockCommands<'a> {
    pub(in crate::node) authority: Option<&'a Authority>,
    pub(in crate::node) secret: &'a LockSecret,
    /// The node key of the login.
    pub(in crate::node) node_key: Option<NodePublic>,
    /// Whether the server offers tailnet lock.
    pub(in crate::node) is_offered: bool,
}

impl<'a> LockCommands<'a> {
    /// The chain; `None` while the lock is off.
    pub fn chain(&self) -> Option<&'a Authority> {
        self.authority
    }

    /// The node's own key for tailnet lock.
    pub fn own_key(&self) -> LockPublic {
        self.secret.public()
    }

    /// The node key of the login.
    pub fn own_node_key(&self) -> Option<NodePublic> {
        self.node_key
    }

    fn authority(&self) -> Result<&'a Authority, LockCommandError> {
        self.authority.ok_or(LockCommandError::NotOn)
    }

    fn node_key(&self) -> Result<NodePublic, LockCommandError> {
        self.node_key.ok_or(LockCommandError::NoLogin)
    }

    /// The chain, if it trusts the key of this node.
    fn trusting(&self) -> Result<&'a Authority, LockCommandError> {
        let authority = self.authority()?;
        match authority.state().key(&self.secret.id()) {
            Some(_) => Ok(authority),
            None => Err(LockCommandError::NotTrusted),
        }
    }

    /// Makes the first message of a lock.
    ///
    /// # Errors
    /// [`LockCommandError`].
    pub fn init(
        &self,
        keys: Vec<TrustedKey>,
        values: Vec<DisablementValue>,
        entropy: &mut dyn Entropy,
    ) -> Result<LockInit, LockCommandError> {
        let node_key = self.node_key()?;
        if self.authority.is_some() {
            return Err(LockCommandError::AlreadyOn);
        }
        if !self.is_offered {
            return Err(LockCommandError::NotOffered);
        }
        if keys.iter().all(|key| *key.id() != self.secret.id()) {
            return Err(LockCommandError::OwnKeyMissing);
        }
        let mut id = [0; 16];
        entropy.fill(&mut id);
        let checkpoint = Checkpoint::new(keys, values, StateId::from_bytes(id))?;
        let (_, genesis) = Authority::create(checkpoint, self.secret, 0)?;
        Ok(LockInit {
            secret: self.secret.clone(),
            node_key,
            genesis,
        })
    }

    /// Signs the key of a node. Its `rotation_key` may sign the keys that follow.
    ///
    /// # Errors
    /// [`LockCommandError`].
    pub fn sign(
        &self,
        node_key: NodePublic,
        rotation_key: Option<LockPublic>,
    ) -> Result<TkaSubmitSignatureRequest, LockCommandError> {
        self.trusting()?;
        let signature = NodeKeySignature::direct(node_key, rotation_key, self.secret);
        Ok(TkaSubmitSignatureRequest {
            version: CapabilityVersion::CURRENT,
            node_key: self.node_key()?,
            signature: signature.encode(),
        })
    }

    /// Adds and removes trusted keys. `None` if there is nothing to do; else the request,
    /// and the head that the server has if it accepts it.
    ///
    /// # Errors
    /// [`LockCommandError`].
    pub fn modify(
        &self,
        add: Vec<TrustedKey>,
        remove: Vec<KeyId>,
    ) -> Result<Option<(TkaSyncSendRequest, AumHash)>, LockCommandError> {
        let authority = self.trusting()?;
        let node_key = self.node_key()?;
        let mut updater = Updater::new(authority, self.secret);
        for key in add {
            updater.add_key(key)?;
        }
        for id in remove {
            updater.remove_key(id)?;
        }
        let updates = updater.finish()?;
        Ok(updates.last().map(|last| {
            let request = send(node_key, authority.head(), &updates, true);
            (request, last.hash())
        }))
    }

    /// Turns the lock off for all nodes.
    ///
    /// # Errors
    /// [`LockCommandError`].
    pub fn disable(
        &self,
        secret: &DisablementSecret,
    ) -> Result<TkaDisableRequest, LockCommandError> {
        let authority = self.authority()?;
        if !authority.state().accepts_disablement(secret) {
            return Err(LockCommandError::WrongSecret);
        }
        Ok(TkaDisableRequest {
            version: CapabilityVersion::CURRENT,
            node_key: self.node_key()?,
            head: authority.head().to_string(),
            disablement_secret: secret.expose().to_vec(),
        })
    }

    /// The messages from the head back, at most `limit`.
    ///
    /// # Errors
    /// [`LockCommandError::NotOn`].
    pub fn log(&self, limit: usize) -> Result<Vec<Aum>, LockCommandError> {
        Ok(self.authority()?.log().take(limit).cloned().collect())
    }

    /// Asks for the signatures that a trusted key made.
    ///
    /// # Errors
    /// [`LockCommandError`].
    pub fn affected(&self, key: &KeyId) -> Result<TkaSignaturesUsingKeyRequest, LockCommandError> {
        self.authority()?;
        Ok(TkaSignaturesUsingKeyRequest {
            version: CapabilityVersion::CURRENT,
            node_key: self.node_key()?,
            key_id: key.as_bytes().to_vec(),
        })
    }

    /// The signatures that the server found, after each was verified: they are to be
    /// signed again with another key, which must not admit nodes that were never signed.
    ///
    /// # Errors
    /// [`LockCommandError::ForeignSignature`].
    pub fn affected_found(
        &self,
        key: &KeyId,
        answer: TkaSignaturesUsingKeyResponse,
    ) -> Result<Vec<Encoded>, LockCommandError> {
        let authority = self.authority()?;
        for signature in &answer.signatures {
            let node_key = NodeKeySignature::decode(&signature.0)
                .map_err(|error| LockCommandError::ForeignSignature(error.into()))?
                .node_key();
            let node_key =
                node_key.ok_or(LockCommandError::ForeignSignature(Unauthorized::OtherNode))?;
            let authorization = authority
                .authorize(node_key, &signature.0)
                .map_err(LockCommandError::ForeignSignature)?;
            if authorization.signer != *key {
                let other = Unauthorized::NotTrusted(authorization.signer);
                return Err(LockCommandError::ForeignSignature(other));
            }
        }
        Ok(answer.signatures)
    }

    /// Makes a message that revokes keys, and signs it.
    ///
    /// # Errors
    /// [`LockCommandError`].
    pub fn revoke(
        &self,
        keys: &[KeyId],
        fork_from: Option<AumHash>,
    ) -> Result<Revocation, LockCommandError> {
        let authority = self.authority()?;
        let aum = revocation(authority, keys, &self.secret.id(), fork_from)?;
        Ok(Revocation(aum.signed_by(self.secret)))
    }

    /// Signs a message that revokes keys too.
    ///
    /// # Errors
    /// [`LockCommandError`].
    pub fn cosign(&self, revocation: &Revocation) -> Result<Revocation, LockCommandError> {
        self.authority()?;
        let aum = check_revocation(revocation)?;
        let own = self.secret.public();
        if aum
            .signatures()
            .iter()
            .any(|signature| signature.key == own)
        {
            return Err(LockCommandError::SignedAlready);
        }
        Ok(Revocation(aum.signed_by(self.secret)))
    }

    /// Sends a message that revokes keys to all nodes.
    ///
    /// # Errors
    /// [`LockCommandError`].
    pub fn submit(&self, revocation: &Revocation) -> Result<TkaSyncSendRequest, LockCommandError> {
        self.authority()?;
        let aum = check_revocation(revocation)?;
        Ok(send(
            self.node_key()?,
            aum.hash(),
            std::slice::from_ref(aum),
            false,
        ))
    }

    /// Adds a credential to an auth key, with which a new node signs itself. `trusted` is
    /// a key of its own for this auth key, which the caller adds to the trusted keys.
    ///
    /// # Errors
    /// [`LockCommandError`].
    pub fn wrap(
        &self,
        auth_key: &str,
        trusted: &LockSecret,
        entropy: &mut dyn Entropy,
    ) -> Result<WrappedAuthKey, LockCommandError> {
        self.authority()?;
        if auth_key.contains(WRAPPED) {
            return Err(LockCommandError::WrappedAlready);
        }
        let delegate = LockSecret::generate(entropy);
        Ok(WrappedAuthKey {
            auth_key: auth_key.to_owned(),
            credential: NodeKeySignature::credential(delegate.public(), trusted),
            delegate,
        })
    }
}

/// Whether the server accepted an update as a whole.
///
/// # Errors
/// [`LockCommandError::OtherHead`].
pub fn check_head(answer: &TkaSyncSendResponse, expected: AumHash) -> Result<(), LockCommandError> {
    if answer.head == expected.to_string() {
        Ok(())
    } else {
        Err(LockCommandError::OtherHead)
    }
}

/// A user may be asked to sign anything: only checkpoints that follow another message are
/// revocations.
fn check_revocation(revocation: &Revocation) -> Result<&Aum, LockCommandError> {
    let aum = &revocation.0;
    match (aum.parent(), aum.change()) {
        (Some(_), warren_lock::Change::Checkpoint(_)) => Ok(aum),
        _ => Err(LockCommandError::NoRevocation),
    }
}

fn send(
    node_key: NodePublic,
    head: AumHash,
    updates: &[Aum],
    interactive: bool,
) -> TkaSyncSendRequest {
    TkaSyncSendRequest {
        version: CapabilityVersion::CURRENT,
        node_key,
        head: head.to_string(),
        missing_aums: updates
            .iter()
            .map(|aum| Encoded(aum.as_bytes().to_vec()))
            .collect(),
        interactive,
    }
}

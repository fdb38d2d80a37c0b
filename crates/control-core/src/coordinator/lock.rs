//! Requests about tailnet lock.
//!
//! Any node may ask for the chain, add to it and submit signatures: what it hands over
//! proves itself. Only to turn the lock on takes a right, because the node that does it
//! chooses the first trusted keys; to turn it off takes the secret.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use warren_control_types::{
    Encoded, NodeId, RegisterRequest, TkaBootstrapRequest, TkaBootstrapResponse, TkaDisableRequest,
    TkaInitBeginRequest, TkaInitBeginResponse, TkaInitFinishRequest, TkaSignInfo,
    TkaSignaturesUsingKeyRequest, TkaSignaturesUsingKeyResponse, TkaSubmitSignatureRequest,
    TkaSyncOfferRequest, TkaSyncOfferResponse, TkaSyncSendRequest, TkaSyncSendResponse,
};
use warren_keys::{MachinePublic, NodePublic};
use warren_lock::{
    Aum, AumHash, Authority, DisablementValue, NodeKeySignature, SignatureKind, SyncOffer,
};

use super::Coordinator;
use crate::lock::{LockError, LockMessage, LockRecord, Turned};
use crate::output::Notice;
use crate::records::{Change, NodeRecord};
use crate::view::View;

/// More checkpoints than a chain can have.
const MAX_ANCESTORS: usize = 4096;

/// A lock that a node prepared and did not finish yet.
#[derive(Debug)]
pub(super) struct Start {
    node: NodeId,
    genesis: Aum,
}

fn refused(error: impl std::fmt::Display) -> LockError {
    LockError::Refused(error.to_string())
}

/// Refuses messages that differ from known ones in their signatures only, unless another
/// key has signed.
///
/// The hash of a message covers its signatures, and of two messages with the same weight
/// the one with the smaller hash wins. Without this rule, a node without a trusted key
/// could repeat, reorder or leave out signatures until its variant wins, and so roll the
/// chain back, or fill it.
fn refuse_signature_variants(authority: &Authority, aums: &[Aum]) -> Result<(), LockError> {
    type Signers = BTreeSet<[u8; 32]>;
    let signers = |aum: &Aum| -> Signers {
        let signatures = aum.signatures().iter();
        signatures
            .map(|signature| *signature.key.as_bytes())
            .collect()
    };
    let mut known: BTreeMap<[u8; 32], Vec<(AumHash, Signers)>> = BTreeMap::new();
    for stored in authority.stored() {
        let variants = known.entry(stored.aum.signing_digest()).or_default();
        variants.push((stored.aum.hash(), signers(&stored.aum)));
    }
    for aum in aums {
        let own = signers(aum);
        if own.len() != aum.signatures().len() {
            return Err(refused("a key has signed a message twice"));
        }
        let variants = known.entry(aum.signing_digest()).or_default();
        if variants.iter().any(|(hash, _)| *hash == aum.hash()) {
            continue;
        }
        if variants.iter().any(|(_, there)| own.is_subset(there)) {
            return Err(refused("the message is known with these signatures"));
        }
        variants.push((aum.hash(), own));
    }
    Ok(())
}

fn read_aums(encoded: &[Encoded]) -> Result<Vec<Aum>, LockError> {
    encoded
        .iter()
        .map(|aum| Aum::decode(&aum.0).map_err(refused))
        .collect()
}

fn read_hash(text: &str) -> Result<AumHash, LockError> {
    text.parse().map_err(refused)
}

impl View {
    /// The node that asks.
    fn lock_node(&self, machine: MachinePublic, key: NodePublic) -> Result<&NodeRecord, LockError> {
        self.node_by_key(&key)
            .filter(|node| node.machine == machine && self.standing(node.id).is_valid())
            .ok_or(LockError::NoNode)
    }

    /// `bootstrap`: the first message for a node where the lock is off, or the secret for
    /// a node where it is still on.
    ///
    /// # Errors
    /// [`LockError`].
    pub fn lock_bootstrap(
        &self,
        machine: MachinePublic,
        request: &TkaBootstrapRequest,
    ) -> Result<TkaBootstrapResponse, LockError> {
        self.lock_node(machine, request.node_key)?;
        let lock = self.directory.lock();
        let mut response = TkaBootstrapResponse::default();
        if lock.is_on() {
            let authority = lock.authority()?;
            if let Some(genesis) = authority.aum(authority.oldest()) {
                response.genesis_aum = genesis.as_bytes().to_vec();
            }
        } else if let Some(secret) = lock.disablement_secret() {
            response.disablement_secret = secret.to_vec();
        }
        Ok(response)
    }

    /// `sync/offer`: the messages that the node lacks.
    ///
    /// # Errors
    /// [`LockError`].
    pub fn lock_sync_offer(
        &self,
        machine: MachinePublic,
        request: &TkaSyncOfferRequest,
    ) -> Result<TkaSyncOfferResponse, LockError> {
        self.lock_node(machine, request.node_key)?;
        let authority = self.directory.lock().authority()?;
        if request.ancestors.len() > MAX_ANCESTORS {
            return Err(refused("the offer has too many ancestors"));
        }
        let theirs = SyncOffer {
            head: read_hash(&request.head)?,
            ancestors: request
                .ancestors
                .iter()
                .map(|hash| read_hash(hash))
                .collect::<Result<_, _>>()?,
        };
        let missing = authority.missing(&theirs).map_err(refused)?;
        let ours = authority.offer();
        Ok(TkaSyncOfferResponse {
            head: ours.head.to_string(),
            ancestors: ours.ancestors.iter().map(AumHash::to_string).collect(),
            missing_aums: missing
                .iter()
                .map(|aum| Encoded(aum.as_bytes().to_vec()))
                .collect(),
        })
    }

    /// `affected-sigs`: the signatures of nodes that a trusted key made.
    ///
    /// # Errors
    /// [`LockError`].
    pub fn lock_signatures_using(
        &self,
        machine: MachinePublic,
        request: &TkaSignaturesUsingKeyRequest,
    ) -> Result<TkaSignaturesUsingKeyResponse, LockError> {
        self.lock_node(machine, request.node_key)?;
        self.directory.lock().authority()?;
        let made_by_key = |node: &&NodeRecord| {
            NodeKeySignature::decode(&node.key_signature)
                .ok()
                .and_then(|signature| signature.authorizing_key())
                .is_some_and(|key| key.as_bytes() == request.key_id)
        };
        Ok(TkaSignaturesUsingKeyResponse {
            signatures: self
                .nodes()
                .filter(made_by_key)
                .map(|node| Encoded(node.key_signature.clone()))
                .collect(),
        })
    }

    /// Whether a signature of this machine names, among the keys that it replaces, one
    /// that a node of another machine has now. Nodes take a replaced key for void,
    /// whoever had it, so with its own rotations any signed node could remove others.
    pub(crate) fn replaces_others(
        &self,
        machine: MachinePublic,
        signature: &NodeKeySignature,
    ) -> bool {
        let mut replaced = signature
            .levels()
            .skip(1)
            .filter_map(NodeKeySignature::node_key);
        replaced.any(|key| {
            let node = self.node_by_key(&key);
            node.is_some_and(|node| node.machine != machine)
        })
    }

    /// The chain of tailnet lock.
    ///
    /// # Errors
    /// [`LockError::NotOn`] or [`LockError::Damaged`].
    pub fn lock(&self) -> Result<&Authority, LockError> {
        self.directory.lock().authority()
    }
}

impl Coordinator {
    /// Applies a row about the lock, and informs all nodes if what they are to know
    /// changes by it.
    pub(super) fn lock_committed(&mut self, change: Change) {
        let before = self.view.directory.lock().info();
        let lock = self.view_mut().directory.lock_mut();
        match change {
            Change::LockMessage(message) => lock.put_message(message),
            Change::LockMessageGone(hash) => lock.remove_message(hash),
            Change::Lock(record) => lock.set_record(record),
            _ => {}
        }
        if self.view.directory.lock().info() != before {
            self.sessions.invalidate_all(|pending| pending.lock = true);
        }
    }

    /// `init/begin`: takes the first message, and names the nodes to sign.
    ///
    /// # Errors
    /// [`LockError`]; nothing was changed.
    pub fn lock_init_begin(
        &mut self,
        machine: MachinePublic,
        request: &TkaInitBeginRequest,
        wall: Duration,
    ) -> Result<TkaInitBeginResponse, LockError> {
        let node = self.view.lock_node(machine, request.node_key)?;
        let owner = node.user.filter(|_| !node.is_tagged());
        let role = owner
            .and_then(|user| self.view.user(user))
            .map(|user| user.role);
        if !role.is_some_and(|role| role.may_use_any_tag()) {
            return Err(LockError::NotAllowed);
        }
        if self.view.directory.lock().is_on() {
            return Err(LockError::AlreadyOn);
        }
        let genesis = Aum::decode(&request.genesis_aum).map_err(refused)?;
        if genesis.parent().is_some() {
            return Err(refused("the first message of a lock has no parent"));
        }
        Authority::bootstrap(genesis.clone(), wall.as_secs()).map_err(refused)?;
        self.lock_start = Some(Start {
            node: node.id,
            genesis,
        });
        let need_signatures = self
            .view
            .nodes()
            .map(|node| TkaSignInfo {
                node_id: node.id,
                node_public: node.key,
                rotation_pubkey: node
                    .lock_key
                    .map(|key| key.as_bytes().to_vec())
                    .unwrap_or_default(),
            })
            .collect();
        Ok(TkaInitBeginResponse { need_signatures })
    }

    /// `init/finish`: takes the signatures and turns the lock on. Nodes that joined since
    /// `init/begin`, or got another key, are not signed yet.
    ///
    /// # Errors
    /// [`LockError`]; nothing was changed.
    pub fn lock_init_finish(
        &mut self,
        machine: MachinePublic,
        request: &TkaInitFinishRequest,
        wall: Duration,
    ) -> Result<(), LockError> {
        let id = self.view.lock_node(machine, request.node_key)?.id;
        if self.view.directory.lock().is_on() {
            return Err(LockError::AlreadyOn);
        }
        let start = self.lock_start.as_ref().filter(|start| start.node == id);
        let genesis = start.ok_or(LockError::NotPrepared)?.genesis.clone();
        let now = wall.as_secs();
        let authority = Authority::bootstrap(genesis.clone(), now).map_err(refused)?;
        let valid = |node: NodeId| {
            let node = self.view.node(node)?;
            let signature = &request.signatures.get(&node.id)?.0;
            let authorized = authority.authorize(node.key, signature).is_ok();
            authorized.then(|| (node.id, signature.clone()))
        };
        // The node itself must not be locked out by its own doing.
        valid(id).ok_or_else(|| {
            refused("the node that turns the lock on has not signed itself; run `lock init` again")
        })?;
        let signatures: Vec<_> = request
            .signatures
            .keys()
            .copied()
            .filter_map(valid)
            .collect();
        self.lock_start = None;
        for (node, signature) in signatures {
            self.revise(node, true, |node| node.key_signature = signature);
        }
        let message = LockMessage::of(&genesis, now);
        let turned = Turned::On {
            genesis: message.hash,
        };
        self.commit(Change::LockMessage(message), true);
        self.commit(Change::Lock(LockRecord { turned }), true);
        self.notice(Notice::LockOn(id));
        Ok(())
    }

    /// `sync/send`: takes messages that the server lacks.
    ///
    /// # Errors
    /// [`LockError`]; nothing was changed.
    pub fn lock_sync_send(
        &mut self,
        machine: MachinePublic,
        request: &TkaSyncSendRequest,
        wall: Duration,
    ) -> Result<TkaSyncSendResponse, LockError> {
        self.view.lock_node(machine, request.node_key)?;
        let aums = read_aums(&request.missing_aums)?;
        let before = self.view.directory.lock().authority()?;
        let mut authority = before.clone();
        refuse_signature_variants(&authority, &aums)?;
        let new = authority.inform(&aums, wall.as_secs()).map_err(refused)?;
        if let Some(key) = before.outdated_signer(&aums) {
            return Err(LockError::Refused(format!(
                "the signing key {key} was removed or has fewer votes now; it cannot undo that"
            )));
        }
        for hash in new {
            if let Some(aum) = authority.aum(hash) {
                let message = LockMessage::of(aum, wall.as_secs());
                self.commit(Change::LockMessage(message), true);
            }
        }
        Ok(TkaSyncSendResponse {
            head: authority.head().to_string(),
        })
    }

    /// `sign`: takes a signature of a node's key.
    ///
    /// # Errors
    /// [`LockError`]; nothing was changed.
    pub fn lock_sign(
        &mut self,
        machine: MachinePublic,
        request: &TkaSubmitSignatureRequest,
    ) -> Result<(), LockError> {
        self.view.lock_node(machine, request.node_key)?;
        let authority = self.view.directory.lock().authority()?;
        let signature = NodeKeySignature::decode(&request.signature).map_err(refused)?;
        let key = signature
            .node_key()
            .ok_or_else(|| refused("the signature names no node key"))?;
        // A rotation is made by the node itself: with one of its own, any signed node could
        // replace the signature of another.
        if key != request.node_key && signature.kind() != SignatureKind::Direct {
            return Err(refused(
                "the key of another node is signed directly, by a trusted key",
            ));
        }
        authority
            .authorize(key, &request.signature)
            .map_err(refused)?;
        let node = self.view.node_by_key(&key);
        let node = node.ok_or_else(|| refused("no node of this tailnet has the signed key"))?;
        if self.view.replaces_others(node.machine, &signature) {
            return Err(refused("the signature replaces the key of another machine"));
        }
        let node = node.id;
        let signature = request.signature.clone();
        self.revise(node, true, |node| node.key_signature = signature);
        Ok(())
    }

    /// Whether the signature in a registration replaces the key of another machine.
    pub(super) fn signature_replaces_others(
        &self,
        machine: MachinePublic,
        request: &RegisterRequest,
    ) -> bool {
        let signature = NodeKeySignature::decode(&request.node_key_signature);
        signature.is_ok_and(|signature| self.view.replaces_others(machine, &signature))
    }

    /// `disable`: turns the lock off. `value` is that of the secret in the request; to
    /// derive it takes long, so the caller does it elsewhere.
    ///
    /// # Errors
    /// [`LockError`]; nothing was changed.
    pub fn lock_disable(
        &mut self,
        machine: MachinePublic,
        request: &TkaDisableRequest,
        value: DisablementValue,
    ) -> Result<(), LockError> {
        let id = self.view.lock_node(machine, request.node_key)?.id;
        let lock = self.view.directory.lock();
        if !lock.authority()?.state().accepts_value(&value) {
            return Err(LockError::WrongSecret);
        }
        let hashes: Vec<AumHash> = lock.messages().keys().copied().collect();
        let turned = Turned::Off {
            secret: request.disablement_secret.clone(),
        };
        self.commit(Change::Lock(LockRecord { turned }), true);
        for hash in hashes {
            self.commit(Change::LockMessageGone(hash), true);
        }
        self.notice(Notice::LockOff(id));
        Ok(())
    }

    /// The signature that a node has to rotate: it comes with a new node key, without a
    /// signature, and its present key has one that its lock key may rotate.
    pub(super) fn signature_to_rotate(
        &self,
        machine: MachinePublic,
        request: &RegisterRequest,
    ) -> Option<Vec<u8>> {
        if !request.node_key_signature.is_empty() {
            return None;
        }
        let lock_key = request.nl_key?;
        let authority = self.view.directory.lock().authority().ok()?;
        let old = self.view.node_by_key(&request.old_node_key?)?;
        if old.machine != machine || authority.authorize(old.key, &old.key_signature).is_err() {
            return None;
        }
        let signature = NodeKeySignature::decode(&old.key_signature).ok()?;
        (signature.wrapping_key() == Some(lock_key)).then(|| old.key_signature.clone())
    }
}

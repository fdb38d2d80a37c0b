//! Tailnet lock: its files, and the view that local programs have of it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Instant;

use warren_control_types::{Encoded, Node};
use warren_dial::control::ControlClient;
use warren_keys::NodePublic;
use warren_lock::{KeyId, NodeKeySignature, SignatureKind};
use warren_node_core::node::{LockCommands, NodeInput, StoredChain};

use super::EngineTask;
use crate::daemon::{lock_files, wall_clock};
use crate::localapi::error::{ApiError, Reply};
use crate::localapi::tailnet_lock::{AutosignTags, LockKey, LockPeer, LockSignature, LockStatus};

impl EngineTask {
    /// Writes the chain before the packet path follows it, and reports the outcome.
    pub(super) fn store_lock(&mut self, chain: Option<&StoredChain>) {
        let result = lock_files::store(self.state.lock_folder().as_deref(), chain);
        let result = result.map_err(|error| {
            tracing::error!(%error, "the tailnet lock cannot be written to disk");
            error.to_string()
        });
        self.node
            .handle(Instant::now(), wall_clock(), NodeInput::LockStored(result));
    }

    /// The commands that the user has for tailnet lock.
    pub(in crate::daemon) fn lock_commands(&self) -> LockCommands<'_> {
        self.node.lock_commands()
    }

    /// The client of the session with the coordination server.
    pub(in crate::daemon) fn control_client(&self) -> Reply<ControlClient> {
        let session = self.node.session_id().and_then(|id| self.sessions.get(&id));
        let session = session.ok_or_else(|| {
            ApiError::Failed(
                "this machine is not connected to the coordination server; connect with \
                 `warren up`"
                    .to_owned(),
            )
        })?;
        session.client().map_err(ApiError::Failed)
    }

    /// Whether tailnet lock is on, or its chain cannot be read.
    pub(in crate::daemon) fn is_locked(&self) -> bool {
        self.node.is_locked()
    }

    /// Turns tailnet lock off on this machine only.
    pub(in crate::daemon) fn disable_lock_here(&mut self) -> Reply<()> {
        self.save_error = None;
        self.give(NodeInput::DisableLockHere);
        match self.save_error.take() {
            None => Ok(()),
            Some(error) => Err(ApiError::Failed(error)),
        }
    }

    /// The tags whose nodes are signed without a person.
    pub(in crate::daemon) fn autosign(&self) -> AutosignTags {
        AutosignTags {
            tags: self.node.autosign_tags().clone(),
        }
    }

    /// Signs nodes that have none but these tags without a person.
    pub(in crate::daemon) fn set_autosign(&mut self, tags: BTreeSet<String>) -> Reply<()> {
        if self.node.account().is_none() {
            return Err(ApiError::Failed(
                "this machine is not logged in; log in with `warren up`".to_owned(),
            ));
        }
        self.save_error = None;
        self.give(NodeInput::Autosign(tags));
        match self.save_error.take() {
            None => Ok(()),
            Some(error) => Err(ApiError::Failed(error)),
        }
    }

    /// The state of tailnet lock.
    pub(in crate::daemon) fn lock_status(&self) -> LockStatus {
        let commands = self.node.lock_commands();
        let mut status = LockStatus {
            public_key: commands.own_key(),
            node_key: commands.own_node_key(),
            ..LockStatus::default()
        };
        if status.node_key.is_none() {
            status.public_key = Default::default();
        }
        let Some(authority) = commands.chain() else {
            return status;
        };
        let engine = self.node.engine();
        let netmap = engine.netmap();
        let own_signature = netmap.self_node.as_ref().map(|own| &own.key_signature);
        status.enabled = true;
        status.head = Some(*authority.head().as_bytes());
        status.node_key_signed = matches!(engine.own_authorization(), Some(Ok(_)));
        status.node_key_signature = Some(shown_signature(own_signature.map_or(&[], |key| key)));
        status.trusted_keys = authority.state().keys().map(shown_key).collect();
        status.visible_peers = netmap.peers.values().map(shown_peer).collect();
        status.filtered_peers = engine
            .hidden_peers()
            .map(|peer| shown_peer(&peer.node))
            .collect();
        status.state_id = authority.state().id().0;
        status
    }
}

fn shown_key(key: &warren_lock::TrustedKey) -> LockKey {
    let text = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
    LockKey {
        kind: "25519".to_owned(),
        key: key.id().public().unwrap_or_default(),
        metadata: key.meta().iter().map(text).collect(),
        votes: key.votes().into(),
    }
}

fn shown_peer(node: &Node) -> LockPeer {
    let addresses = node.addresses.iter();
    let single = addresses.filter(|prefix| prefix.prefix_len() == prefix.max_prefix_len());
    let addresses: Vec<IpAddr> = single.map(ipnet::IpNet::addr).collect();
    LockPeer {
        name: node.name.clone(),
        id: node.id,
        stable_id: node.stable_id.clone(),
        tailscale_ips: addresses,
        node_key: node.key,
        node_key_signature: shown_signature(&node.key_signature),
    }
}

/// A signature as local programs get to see it; one that cannot be read is empty.
fn shown_signature(encoded: &[u8]) -> LockSignature {
    NodeKeySignature::decode(encoded).map_or_else(|_| LockSignature::default(), |it| shown(&it))
}

fn shown(signature: &NodeKeySignature) -> LockSignature {
    let node_key = |key: NodePublic| [b"np", &key.as_bytes()[..]].concat();
    let key = |key: warren_keys::LockPublic| Encoded(KeyId::from(key).as_bytes().to_vec());
    LockSignature {
        sig_kind: match signature.kind() {
            SignatureKind::Direct => 1,
            SignatureKind::Rotation => 2,
            SignatureKind::Credential => 3,
            SignatureKind::Unknown(number) => number,
        },
        pubkey: Encoded(signature.node_key().map(node_key).unwrap_or_default()),
        key_id: signature.signer().map(key).unwrap_or_default(),
        signature: Encoded(
            signature
                .signature()
                .map(|it| it.to_vec())
                .unwrap_or_default(),
        ),
        nested: signature.nested().map(|nested| Box::new(shown(nested))),
        wrapping_pubkey: signature.own_wrapping_key().map(key).unwrap_or_default(),
    }
}

//! Tailnet lock in the forms of the local interface. They are those of the official client,
//! whose command line reads and writes them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use warren_control_types::{Encoded, NodeId, StableNodeId};
use warren_keys::{LockPublic, NodePublic};

use crate::go_json::nullable;

/// The state of tailnet lock at a node.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct LockStatus {
    /// Whether it is on.
    pub enabled: bool,
    /// The hash of the head of the chain.
    pub head: Option<[u8; 32]>,
    /// The node's own key; zero before there is one.
    pub public_key: LockPublic,
    /// The node key; none without a login.
    pub node_key: Option<NodePublic>,
    /// Whether other nodes accept this one.
    pub node_key_signed: bool,
    /// The signature of the node key.
    pub node_key_signature: Option<LockSignature>,
    /// The trusted keys.
    #[serde(with = "nullable")]
    pub trusted_keys: Vec<LockKey>,
    /// The peers that are accepted.
    #[serde(with = "nullable")]
    pub visible_peers: Vec<LockPeer>,
    /// The peers that are not accepted.
    #[serde(with = "nullable")]
    pub filtered_peers: Vec<LockPeer>,
    /// The first half of the identity of the lock.
    #[serde(rename = "StateID")]
    pub state_id: u64,
}

/// A signature of a node key, with the signatures that it depends on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct LockSignature {
    /// 1: direct, 2: rotation, 3: credential.
    pub sig_kind: u8,
    /// `np` and the 32 bytes of the node key.
    pub pubkey: Encoded,
    /// The trusted key.
    #[serde(rename = "KeyID")]
    pub key_id: Encoded,
    /// The signature of this level.
    pub signature: Encoded,
    /// The signature that it depends on.
    pub nested: Option<Box<LockSignature>>,
    /// The key that may sign rotations.
    pub wrapping_pubkey: Encoded,
}

/// A trusted key in a [`LockStatus`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct LockKey {
    /// The kind: `25519`.
    pub kind: String,
    /// The key.
    pub key: LockPublic,
    /// Names and values.
    #[serde(with = "nullable")]
    pub metadata: BTreeMap<String, String>,
    /// The weight of its signatures.
    pub votes: u64,
}

/// A peer in a [`LockStatus`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct LockPeer {
    /// Its full name.
    pub name: String,
    /// Its number.
    #[serde(rename = "ID")]
    pub id: NodeId,
    /// Its stable id.
    #[serde(rename = "StableID")]
    pub stable_id: StableNodeId,
    /// Its addresses.
    #[serde(rename = "TailscaleIPs")]
    pub tailscale_ips: Vec<IpAddr>,
    /// Its key.
    pub node_key: NodePublic,
    /// The signature of its key.
    pub node_key_signature: LockSignature,
}

/// An update message.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct LockUpdate {
    /// Its hash.
    pub hash: [u8; 32],
    /// The name of its kind.
    pub change: String,
    /// The message itself.
    pub raw: Encoded,
}

/// The tags whose nodes a node signs without a person.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct AutosignTags {
    /// The tags; none: it signs no node by itself.
    pub tags: BTreeSet<String>,
}

/// A key in a request.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct GivenKey {
    /// The kind: 1, Ed25519.
    pub kind: u8,
    /// The weight of its signatures.
    pub votes: u64,
    /// The public key.
    pub public: Encoded,
    /// Names and values.
    #[serde(with = "nullable")]
    pub meta: BTreeMap<String, String>,
}

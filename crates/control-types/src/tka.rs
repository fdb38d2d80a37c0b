//! Requests about tailnet lock, at `/machine/tka/...`. All of them are GET requests
//! with a JSON body, and are answered with a JSON object.
//!
//! Update messages and signatures are CBOR, which this crate does not look into; hashes
//! are base32 text.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use warren_keys::NodePublic;

use crate::ids::{CapabilityVersion, NodeId};
use crate::json;

/// An encoded update message or signature: base64 in JSON.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Encoded(#[serde(with = "json::base64")] pub Vec<u8>);

/// `init/begin`: turns the lock on, with a genesis message that its maker signed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct TkaInitBeginRequest {
    /// The protocol version that the client understands.
    #[serde(deserialize_with = "json::or_zero")]
    pub version: CapabilityVersion,
    /// The node that asks.
    #[serde(deserialize_with = "json::or_zero")]
    pub node_key: NodePublic,
    /// The first message, a checkpoint.
    #[serde(rename = "GenesisAUM", with = "json::base64")]
    pub genesis_aum: Vec<u8>,
}

/// A node whose key has to be signed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct TkaSignInfo {
    /// Its number.
    #[serde(rename = "NodeID", deserialize_with = "json::or_zero")]
    pub node_id: NodeId,
    /// Its key.
    #[serde(deserialize_with = "json::or_zero")]
    pub node_public: NodePublic,
    /// The key that may sign its next node keys; empty if the node has none.
    #[serde(with = "json::base64")]
    pub rotation_pubkey: Vec<u8>,
}

/// The answer to a [`TkaInitBeginRequest`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct TkaInitBeginResponse {
    /// The nodes to sign.
    #[serde(deserialize_with = "json::or_zero")]
    pub need_signatures: Vec<TkaSignInfo>,
}

/// `init/finish`: the signatures that [`TkaInitBeginResponse`] asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct TkaInitFinishRequest {
    /// The protocol version that the client understands.
    #[serde(deserialize_with = "json::or_zero")]
    pub version: CapabilityVersion,
    /// The node that asks.
    #[serde(deserialize_with = "json::or_zero")]
    pub node_key: NodePublic,
    /// The signature of each node's key.
    #[serde(deserialize_with = "json::or_zero")]
    pub signatures: BTreeMap<NodeId, Encoded>,
    /// A disablement secret for the operator of the server.
    #[serde(with = "json::base64", skip_serializing_if = "Vec::is_empty")]
    pub support_disablement: Vec<u8>,
}

/// `bootstrap`: what a node needs to turn the lock on or off at its side.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct TkaBootstrapRequest {
    /// The protocol version that the client understands.
    #[serde(deserialize_with = "json::or_zero")]
    pub version: CapabilityVersion,
    /// The node that asks.
    #[serde(deserialize_with = "json::or_zero")]
    pub node_key: NodePublic,
    /// The head of the node; empty or all zero if the lock is off there.
    #[serde(deserialize_with = "json::or_zero")]
    pub head: String,
}

/// The answer to a [`TkaBootstrapRequest`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct TkaBootstrapResponse {
    /// The first message, if the lock is on.
    #[serde(
        rename = "GenesisAUM",
        with = "json::base64",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub genesis_aum: Vec<u8>,
    /// The secret that proves that the lock was turned off.
    #[serde(with = "json::base64", skip_serializing_if = "Vec::is_empty")]
    pub disablement_secret: Vec<u8>,
}

/// `sync/offer`: describes the chain of the node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct TkaSyncOfferRequest {
    /// The protocol version that the client understands.
    #[serde(deserialize_with = "json::or_zero")]
    pub version: CapabilityVersion,
    /// The node that asks.
    #[serde(deserialize_with = "json::or_zero")]
    pub node_key: NodePublic,
    /// The head of the node.
    #[serde(deserialize_with = "json::or_zero")]
    pub head: String,
    /// Checkpoints of its chain, the newest first, and its oldest message.
    #[serde(deserialize_with = "json::or_zero")]
    pub ancestors: Vec<String>,
}

/// The answer to a [`TkaSyncOfferRequest`]: the same of the server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct TkaSyncOfferResponse {
    /// The head of the server.
    #[serde(deserialize_with = "json::or_zero")]
    pub head: String,
    /// Checkpoints of its chain, the newest first, and its oldest message.
    #[serde(deserialize_with = "json::or_zero")]
    pub ancestors: Vec<String>,
    /// The messages that the node lacks, oldest first.
    #[serde(rename = "MissingAUMs", deserialize_with = "json::or_zero")]
    pub missing_aums: Vec<Encoded>,
}

/// `sync/send`: the messages that the server lacks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct TkaSyncSendRequest {
    /// The protocol version that the client understands.
    #[serde(deserialize_with = "json::or_zero")]
    pub version: CapabilityVersion,
    /// The node that asks.
    #[serde(deserialize_with = "json::or_zero")]
    pub node_key: NodePublic,
    /// The head of the node after it applied the messages of the server.
    #[serde(deserialize_with = "json::or_zero")]
    pub head: String,
    /// The messages, oldest first.
    #[serde(rename = "MissingAUMs", deserialize_with = "json::or_zero")]
    pub missing_aums: Vec<Encoded>,
    /// A person waits for the result.
    #[serde(deserialize_with = "json::or_zero")]
    pub interactive: bool,
}

/// The answer to a [`TkaSyncSendRequest`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct TkaSyncSendResponse {
    /// The head of the server now.
    #[serde(deserialize_with = "json::or_zero")]
    pub head: String,
}

/// `disable`: turns the lock off for all nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct TkaDisableRequest {
    /// The protocol version that the client understands.
    #[serde(deserialize_with = "json::or_zero")]
    pub version: CapabilityVersion,
    /// The node that asks.
    #[serde(deserialize_with = "json::or_zero")]
    pub node_key: NodePublic,
    /// The head of the node.
    #[serde(deserialize_with = "json::or_zero")]
    pub head: String,
    /// The secret.
    #[serde(with = "json::base64")]
    pub disablement_secret: Vec<u8>,
}

/// `sign`: a signature of some node's key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct TkaSubmitSignatureRequest {
    /// The protocol version that the client understands.
    #[serde(deserialize_with = "json::or_zero")]
    pub version: CapabilityVersion,
    /// The node that asks.
    #[serde(deserialize_with = "json::or_zero")]
    pub node_key: NodePublic,
    /// The signature, which names the node key.
    #[serde(with = "json::base64")]
    pub signature: Vec<u8>,
}

/// `affected-sigs`: asks for the signatures that a trusted key made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct TkaSignaturesUsingKeyRequest {
    /// The protocol version that the client understands.
    #[serde(deserialize_with = "json::or_zero")]
    pub version: CapabilityVersion,
    /// The node that asks.
    #[serde(deserialize_with = "json::or_zero")]
    pub node_key: NodePublic,
    /// The trusted key: its public bytes.
    #[serde(rename = "KeyID", with = "json::base64")]
    pub key_id: Vec<u8>,
}

/// The answer to a [`TkaSignaturesUsingKeyRequest`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct TkaSignaturesUsingKeyResponse {
    /// The signatures.
    #[serde(deserialize_with = "json::or_zero")]
    pub signatures: Vec<Encoded>,
}

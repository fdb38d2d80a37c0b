//! Joining a network: the server's key, registration, users and logins.
//!
//! A node fetches the server's Noise key over TLS, then sends a
//! [`RegisterRequest`] with the node key it wants to use. The answer is a
//! success, a wish for another key, an address for the user to open, or an
//! error text for the user. Refusals travel inside a 200 answer.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use warren_keys::{ChallengePublic, LockPublic, MachinePublic, NodePublic};

use crate::{CapabilityVersion, Hostinfo, LoginId, UserId, json};

/// Answer to `GET /key`: the public key of the server for Noise.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct OverTlsPublicKeyResponse {
    /// Key of the retired transport: absent, but always sent, because clients
    /// exist that insist on the field.
    #[serde(rename = "legacyPublicKey", with = "json::zeroable")]
    pub legacy_public_key: Option<MachinePublic>,
    /// The server's Noise static key.
    #[serde(rename = "publicKey", with = "json::zeroable")]
    pub public_key: Option<MachinePublic>,
}

/// The first message of the server on a new channel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct EarlyNoise {
    /// A key for a later proof that the node owns its node key.
    #[serde(rename = "nodeKeyChallenge", with = "json::zeroable")]
    pub node_key_challenge: Option<ChallengePublic>,
}

/// Asks to use a node key, to renew it, or to give it up.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct RegisterRequest {
    /// The protocol version that the client understands.
    #[serde(deserialize_with = "json::or_zero")]
    pub version: CapabilityVersion,
    /// The key to register.
    #[serde(deserialize_with = "json::or_zero")]
    pub node_key: NodePublic,
    /// The key before it, during rotation.
    #[serde(with = "json::zeroable")]
    pub old_node_key: Option<NodePublic>,
    /// The node's key for tailnet lock.
    #[serde(rename = "NLKey", with = "json::zeroable")]
    pub nl_key: Option<LockPublic>,
    /// A credential, unless the node is known or logs in interactively.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "Option::is_none"
    )]
    pub auth: Option<RegisterAuth>,
    /// Wanted end of the key's life. In the past: log out.
    #[serde(with = "json::time")]
    pub expiry: Option<Timestamp>,
    /// The address handed out before; the answer waits until it was visited.
    #[serde(deserialize_with = "json::or_zero")]
    pub followup: String,
    /// The machine the node runs on.
    #[serde(deserialize_with = "json::or_zero")]
    pub hostinfo: Option<Hostinfo>,
    /// Forget the node when it goes away.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "json::is_zero"
    )]
    pub ephemeral: bool,
    /// Tailnet lock: a signature over `node_key` (CBOR).
    #[serde(with = "json::base64")]
    pub node_key_signature: Vec<u8>,
    /// Kind of `signature`, as `signature-v2`.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "String::is_empty"
    )]
    pub signature_type: String,
    /// When `signature` was made.
    #[serde(with = "json::time", skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<Timestamp>,
    /// Device certificate chain, concatenated DER.
    #[serde(with = "json::base64", skip_serializing_if = "Vec::is_empty")]
    pub device_cert: Vec<u8>,
    /// Device signature (RSA-PSS).
    #[serde(with = "json::base64", skip_serializing_if = "Vec::is_empty")]
    pub signature: Vec<u8>,
    /// The wanted tailnet; `required:` in front refuses any other.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "String::is_empty"
    )]
    pub tailnet: String,
}

/// The proof that a node may join. Its text is a secret.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct RegisterAuth {
    /// A pre-authentication key, opaque to the client.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "String::is_empty"
    )]
    pub auth_key: String,
}

impl std::fmt::Debug for RegisterAuth {
    /// Does not print the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RegisterAuth(..)")
    }
}

/// Answer to a [`RegisterRequest`]. Read it in the order `error`,
/// `node_key_signature`, `node_key_expired`, `auth_url`; else it is a success.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct RegisterResponse {
    /// The owner of the node.
    #[serde(deserialize_with = "json::or_zero")]
    pub user: User,
    /// How that user logged in.
    #[serde(deserialize_with = "json::or_zero")]
    pub login: Login,
    /// Make a new node key and register again.
    #[serde(deserialize_with = "json::or_zero")]
    pub node_key_expired: bool,
    /// Whether an administrator has approved the machine.
    #[serde(deserialize_with = "json::or_zero")]
    pub machine_authorized: bool,
    /// The user must open this address.
    #[serde(rename = "AuthURL", deserialize_with = "json::or_zero")]
    pub auth_url: String,
    /// Tailnet lock: sign the new key starting from this and register again.
    #[serde(with = "json::base64")]
    pub node_key_signature: Vec<u8>,
    /// Refusal, for the user to read; everything else is then meaningless.
    #[serde(deserialize_with = "json::or_zero")]
    pub error: String,
}

/// An owner of nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct User {
    /// Its number.
    #[serde(rename = "ID", deserialize_with = "json::or_zero")]
    pub id: UserId,
    /// Its name for people.
    #[serde(deserialize_with = "json::or_zero")]
    pub display_name: String,
    /// Its picture.
    #[serde(
        rename = "ProfilePicURL",
        deserialize_with = "json::or_zero",
        skip_serializing_if = "String::is_empty"
    )]
    pub profile_pic_url: String,
    /// When it was created.
    #[serde(with = "json::time", skip_serializing_if = "Option::is_none")]
    pub created: Option<Timestamp>,
}

/// One way for a user to log in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Login {
    /// Its number.
    #[serde(rename = "ID", deserialize_with = "json::or_zero")]
    pub id: LoginId,
    /// The identity provider, as `google`.
    #[serde(deserialize_with = "json::or_zero")]
    pub provider: String,
    /// An address, as `ann@example.com`.
    #[serde(deserialize_with = "json::or_zero")]
    pub login_name: String,
    /// Its name for people.
    #[serde(deserialize_with = "json::or_zero")]
    pub display_name: String,
    /// Its picture.
    #[serde(
        rename = "ProfilePicURL",
        deserialize_with = "json::or_zero",
        skip_serializing_if = "String::is_empty"
    )]
    pub profile_pic_url: String,
}

/// The data of a user that nodes may know.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct UserProfile {
    /// The user.
    #[serde(rename = "ID", deserialize_with = "json::or_zero")]
    pub id: UserId,
    /// An address, as `ann@example.com`.
    #[serde(deserialize_with = "json::or_zero")]
    pub login_name: String,
    /// Its name for people.
    #[serde(deserialize_with = "json::or_zero")]
    pub display_name: String,
    /// Its picture.
    #[serde(
        rename = "ProfilePicURL",
        deserialize_with = "json::or_zero",
        skip_serializing_if = "String::is_empty"
    )]
    pub profile_pic_url: String,
    /// Names of its groups, sorted, as far as this node may know them.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub groups: Vec<String>,
}

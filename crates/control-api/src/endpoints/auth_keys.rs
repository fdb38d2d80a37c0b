//! Pre-auth keys, with which machines join without approval.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Lists all pre-auth keys, without their secrets.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListAuthKeys {}

/// Creates a pre-auth key. It needs an owner: a user or tags.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateAuthKey {
    /// The user that owns its nodes.
    pub user: Option<String>,
    /// Whether it works more than once.
    pub reusable: bool,
    /// Whether its nodes are deleted when they stay offline.
    pub ephemeral: bool,
    /// The tags that own its nodes.
    pub tags: BTreeSet<String>,
    /// How long the key is valid, in seconds; `null` if it does not expire.
    pub lifetime_seconds: Option<u64>,
}

/// Revokes a pre-auth key. Nodes that used it stay.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExpireAuthKey {
    /// The number of the key.
    pub id: i64,
}

/// Deletes a pre-auth key. Nodes that used it stay. The answer is the key as it was.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeleteAuthKey {
    /// The number of the key.
    pub id: i64,
}

/// Whether a pre-auth key works, and why not otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AuthKeyState {
    /// It works.
    Works,
    /// It works once, and was used.
    UsedUp,
    /// Its time is over.
    Expired,
    /// An administrator revoked it.
    Revoked,
}

impl std::fmt::Display for AuthKeyState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Works => "works",
            Self::UsedUp => "used up",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
        })
    }
}

/// A pre-auth key, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthKeyInfo {
    /// The number of the record.
    pub id: i64,
    /// The beginning of the key, before its secret.
    pub prefix: String,
    /// The user that owns the nodes it registers.
    pub user: Option<String>,
    /// Whether it works more than once.
    pub reusable: bool,
    /// Whether its nodes are ephemeral.
    pub ephemeral: bool,
    /// The tags of its nodes.
    pub acl_tags: Vec<String>,
    /// How often it was used.
    pub uses: u64,
    /// Whether it was used at all.
    pub used: bool,
    /// Whether it works now.
    pub usable: bool,
    /// The same, with the reason.
    pub state: AuthKeyState,
    /// The time at which it expires; `null` if it does not.
    pub expiration: Option<Timestamp>,
    /// The time of creation.
    pub created_at: Timestamp,
}

/// A pre-auth key that was made just now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreatedAuthKey {
    /// The whole key. It is shown this once.
    pub key: String,
    /// The key without its secret.
    #[serde(flatten)]
    pub record: AuthKeyInfo,
}

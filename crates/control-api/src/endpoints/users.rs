//! Users, who own nodes.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use warren_control_core::{Role, role_name};

/// Lists all users, by their ids.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListUsers {}

/// Creates a user.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateUser {
    /// The login name.
    pub name: String,
}

/// Renames a user.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RenameUser {
    /// The name, number, `id:NUMBER` or `name:NAME` of the user.
    pub user: String,
    /// The new login name.
    pub new_name: String,
}

/// Sets the role of a user.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetUserRole {
    /// The name, number, `id:NUMBER` or `name:NAME` of the user.
    pub user: String,
    /// The new role.
    #[serde(with = "role_name")]
    pub role: Role,
}

/// Deletes a user that owns no nodes, and its pre-auth keys. The answer is the user
/// as it was.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeleteUser {
    /// The name, number, `id:NUMBER` or `name:NAME` of the user.
    pub user: String,
}

/// A user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserInfo {
    /// The number of the record.
    pub id: i64,
    /// The login name.
    pub name: String,
    /// The role, for the autogroups of the policy.
    #[serde(with = "role_name")]
    pub role: Role,
    /// The time of creation.
    pub created_at: Timestamp,
}

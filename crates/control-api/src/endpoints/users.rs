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

/// Sets the account at an identity provider with which a user logs in.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkUser {
    /// The name, number, `id:NUMBER` or `name:NAME` of the user.
    pub user: String,
    /// The issuer of the provider, exactly as in the configuration.
    pub issuer: String,
    /// The subject there (the claim `sub`), exactly.
    pub subject: String,
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
    /// The account at an identity provider, if the user logs in at one.
    #[serde(default)]
    pub account: Option<UserAccountInfo>,
}

/// The account of a user at an identity provider, as of the last login.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserAccountInfo {
    /// The name of the provider in the configuration; empty until the first login with
    /// an account that an administrator linked.
    pub provider: String,
    /// The issuer.
    pub issuer: String,
    /// The subject at that issuer.
    pub subject: String,
    /// The e-mail address, if it may be trusted.
    pub email: Option<String>,
    /// The name for people.
    pub display_name: Option<String>,
    /// The groups at the provider.
    pub groups: Vec<String>,
    /// The last login, if there was one.
    pub last_login: Option<Timestamp>,
}

//! SSH sessions that the policy allows only after a check.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Lists the sessions that wait for a check, oldest first.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListSshChecks {}

/// Approves a session, and for the time that the rule says further sessions of the
/// same person to the same machine.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApproveSshCheck {
    /// The id at the end of the address that the person was shown.
    pub id: String,
}

/// Refuses a session.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DenySshCheck {
    /// The id at the end of the address that the person was shown.
    pub id: String,
}

/// An SSH session that waits for a check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SshCheckInfo {
    /// The id to approve.
    pub id: String,
    /// The user or the tags that own the source.
    pub owner: String,
    /// The name of the source node.
    pub source: String,
    /// The name of the destination node.
    pub destination: String,
    /// The local user at the destination.
    pub local_user: String,
    /// The time at which it began to wait.
    pub since: Timestamp,
}

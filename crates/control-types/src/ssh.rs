//! The rules for logins over SSH. The first rule that matches wins.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{StableNodeId, json};

/// The rules for logging in to this node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct SshPolicy {
    /// In order.
    #[serde(deserialize_with = "json::list")]
    pub rules: Vec<SshRule>,
}

/// A rule: the action for some principals that log in as some user.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct SshRule {
    /// From then on the rule matches nothing.
    #[serde(with = "json::time", skip_serializing_if = "Option::is_none")]
    pub rule_expires: Option<Timestamp>,
    /// The rule applies to connections that match one of these.
    #[serde(deserialize_with = "json::list")]
    pub principals: Vec<SshPrincipal>,
    /// Wanted user (or `*`) to local user; `=` keeps the name, empty refuses.
    #[serde(deserialize_with = "json::or_zero")]
    pub ssh_users: BTreeMap<String, String>,
    /// The action; without one the rule matches nothing.
    #[serde(deserialize_with = "json::or_zero")]
    pub action: Option<SshAction>,
    /// Patterns of environment variables the client may set.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub accept_env: Vec<String>,
}

/// The origin of a connection; the fields that are set are alternatives.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct SshPrincipal {
    /// A node.
    #[serde(with = "json::zeroable", skip_serializing_if = "Option::is_none")]
    pub node: Option<StableNodeId>,
    /// An address of a node.
    #[serde(
        rename = "nodeIP",
        deserialize_with = "json::or_zero",
        skip_serializing_if = "String::is_empty"
    )]
    pub node_ip: String,
    /// The owner of a node.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "String::is_empty"
    )]
    pub user_login: String,
    /// Any origin.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "json::is_zero"
    )]
    pub any: bool,
}

/// The handling of a session.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct SshAction {
    /// Shown to the user.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "String::is_empty"
    )]
    pub message: String,
    /// End it.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "json::is_zero"
    )]
    pub reject: bool,
    /// Let it in.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "json::is_zero"
    )]
    pub accept: bool,
    /// How long it may last, in nanoseconds on the wire; zero is forever.
    #[serde(with = "json::nanoseconds", skip_serializing_if = "json::is_zero")]
    pub session_duration: Duration,
    /// Agent forwarding is allowed.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "json::is_zero"
    )]
    pub allow_agent_forwarding: bool,
    /// Ask this address of the server for the next action.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "String::is_empty"
    )]
    pub hold_and_delegate: String,
    /// Local port forwarding is allowed.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "json::is_zero"
    )]
    pub allow_local_port_forwarding: bool,
    /// Remote port forwarding is allowed.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "json::is_zero"
    )]
    pub allow_remote_port_forwarding: bool,
    /// Where to send recordings.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub recorders: Vec<SocketAddr>,
    /// The handling of failed recordings.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "Option::is_none"
    )]
    pub on_recording_failure: Option<SshRecorderFailureAction>,
}

/// The handling of a session that cannot be recorded.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct SshRecorderFailureAction {
    /// Do not start the session, and show this message.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "String::is_empty"
    )]
    pub reject_session_with_message: String,
    /// End a running session, and show this message.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "String::is_empty"
    )]
    pub terminate_session_with_message: String,
    /// Report it to the server at this address.
    #[serde(
        rename = "NotifyURL",
        deserialize_with = "json::or_zero",
        skip_serializing_if = "String::is_empty"
    )]
    pub notify_url: String,
}

//! Parts of a map response that concern the user and the program, not the network.

use serde::{Deserialize, Serialize};

use crate::json;

/// A message from the server to the user.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct DisplayMessage {
    /// One line.
    #[serde(deserialize_with = "json::or_zero")]
    pub title: String,
    /// The text.
    #[serde(deserialize_with = "json::or_zero")]
    pub text: String,
    /// `high`, `medium` or `low`.
    #[serde(deserialize_with = "json::or_zero")]
    pub severity: String,
    /// Connections suffer.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "json::is_zero"
    )]
    pub impacts_connectivity: bool,
    /// A button with something that the user can do.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "Option::is_none"
    )]
    pub primary_action: Option<DisplayMessageAction>,
}

/// A button.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct DisplayMessageAction {
    /// The address that it opens.
    #[serde(rename = "URL", deserialize_with = "json::or_zero")]
    pub url: String,
    /// Its text.
    #[serde(deserialize_with = "json::or_zero")]
    pub label: String,
}

/// State of tailnet lock, as the server has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct TkaInfo {
    /// Newest entry of its log, in base32.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "String::is_empty"
    )]
    pub head: String,
    /// It is to be switched off.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "json::is_zero"
    )]
    pub disabled: bool,
}

/// Instructions that are carried out once.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Debug {
    /// Read nothing from the stream for this many seconds.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "json::is_zero"
    )]
    pub sleep_seconds: f64,
    /// Send no logs from now on.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "json::is_zero"
    )]
    pub disable_log_tail: bool,
    /// End the program with this code.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "Option::is_none"
    )]
    pub exit: Option<i64>,
}

/// The newest version of the software.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ClientVersion {
    /// This is the newest.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "json::is_zero"
    )]
    pub running_latest: bool,
    /// The newest, if this is not.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "String::is_empty"
    )]
    pub latest_version: String,
    /// The newest version fixes a security problem.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "json::is_zero"
    )]
    pub urgent_security_update: bool,
    /// Show a notice.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "json::is_zero"
    )]
    pub notify: bool,
    /// The address that the notice opens.
    #[serde(
        rename = "NotifyURL",
        deserialize_with = "json::or_zero",
        skip_serializing_if = "String::is_empty"
    )]
    pub notify_url: String,
    /// Its text.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "String::is_empty"
    )]
    pub notify_text: String,
}

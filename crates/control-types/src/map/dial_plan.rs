//! Addresses at which the server can be reached.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::json;

/// How to reach the server.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ControlDialPlan {
    /// Tried in parallel; none is "use DNS".
    #[serde(deserialize_with = "json::or_zero")]
    pub candidates: Vec<ControlIpCandidate>,
}

/// One way to reach the server.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ControlIpCandidate {
    /// The address.
    #[serde(
        rename = "IP",
        with = "json::address",
        skip_serializing_if = "Option::is_none"
    )]
    pub ip: Option<IpAddr>,
    /// A host that forwards to it.
    #[serde(
        rename = "ACEHost",
        deserialize_with = "json::or_zero",
        skip_serializing_if = "String::is_empty"
    )]
    pub ace_host: String,
    /// Seconds to wait before trying.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "json::is_zero"
    )]
    pub dial_start_delay_sec: f64,
    /// Seconds to try; none is no time at all.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "json::is_zero"
    )]
    pub dial_timeout_sec: f64,
    /// Higher is better.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "json::is_zero"
    )]
    pub priority: i64,
}

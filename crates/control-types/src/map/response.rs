//! One message of the map stream.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{ClientVersion, ControlDialPlan, Debug, DisplayMessage, PingRequest, TkaInfo};
use crate::{
    DerpMapUpdate, DnsConfig, FilterRule, Node, NodeId, PeerChange, SshPolicy, UserProfile, json,
};

/// One message of the map stream.
///
/// Parts that are `None` (or an empty list of changes) stay as they were in this
/// stream; each new stream starts from nothing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct MapResponse {
    /// Names the stream, in its first message.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "String::is_empty"
    )]
    pub map_session_handle: String,
    /// Number of the message within the stream.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "json::is_zero"
    )]
    pub seq: i64,
    /// The message is a keepalive and carries nothing else.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "json::is_zero"
    )]
    pub keep_alive: bool,
    /// Something to answer; comes with any message.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "Option::is_none"
    )]
    pub ping_request: Option<PingRequest>,
    /// An address to show to the user.
    #[serde(
        rename = "PopBrowserURL",
        deserialize_with = "json::or_zero",
        skip_serializing_if = "String::is_empty"
    )]
    pub pop_browser_url: String,
    /// The node itself, replaced as a whole; must be in the first message.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "Option::is_none"
    )]
    pub node: Option<Node>,
    /// Changes of the relay map.
    #[serde(
        rename = "DERPMap",
        deserialize_with = "json::or_zero",
        skip_serializing_if = "Option::is_none"
    )]
    pub derp_map: Option<DerpMapUpdate>,
    /// All peers, if not empty; an empty list changes nothing.
    #[serde(
        deserialize_with = "json::optional_list",
        skip_serializing_if = "Option::is_none"
    )]
    pub peers: Option<Vec<Node>>,
    /// Peers that are new, or replaced as a whole.
    #[serde(deserialize_with = "json::list", skip_serializing_if = "Vec::is_empty")]
    pub peers_changed: Vec<Node>,
    /// Peers that are gone.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub peers_removed: Vec<NodeId>,
    /// Peers that changed in a few fields.
    #[serde(deserialize_with = "json::list", skip_serializing_if = "Vec::is_empty")]
    pub peers_changed_patch: Vec<PeerChange>,
    /// `true`: seen just now. `false`: the time of the last sign of life is not
    /// known.
    #[serde(
        deserialize_with = "json::map_without_nulls",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub peer_seen_change: BTreeMap<NodeId, bool>,
    /// Peers that came online or went offline.
    #[serde(
        deserialize_with = "json::map_without_nulls",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub online_change: BTreeMap<NodeId, bool>,
    /// Name resolution, replaced as a whole.
    #[serde(
        rename = "DNSConfig",
        deserialize_with = "json::or_zero",
        skip_serializing_if = "Option::is_none"
    )]
    pub dns_config: Option<DnsConfig>,
    /// Name of the network; empty changes nothing.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "String::is_empty"
    )]
    pub domain: String,
    /// Whether to report ports that listen.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "Option::is_none"
    )]
    pub collect_services: Option<bool>,
    /// The filter named `base`; an empty list blocks everything.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "Option::is_none"
    )]
    pub packet_filter: Option<Vec<FilterRule>>,
    /// Filters by name. `null` deletes one; the name `*` with `null` deletes
    /// all, before the others are read.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "json::is_zero"
    )]
    pub packet_filters: BTreeMap<String, Option<Vec<FilterRule>>>,
    /// Users that are new, or replaced as a whole.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub user_profiles: Vec<UserProfile>,
    /// Complaints to show; an empty list is "all well".
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "Option::is_none"
    )]
    pub health: Option<Vec<String>>,
    /// Messages to show by id; deleted like `packet_filters`.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "json::is_zero"
    )]
    pub display_messages: BTreeMap<String, Option<DisplayMessage>>,
    /// The rules for logins over SSH, replaced as a whole.
    #[serde(
        rename = "SSHPolicy",
        deserialize_with = "json::or_zero",
        skip_serializing_if = "Option::is_none"
    )]
    pub ssh_policy: Option<SshPolicy>,
    /// The server's clock.
    #[serde(with = "json::time", skip_serializing_if = "Option::is_none")]
    pub control_time: Option<Timestamp>,
    /// State of tailnet lock; off until the server sends one.
    #[serde(
        rename = "TKAInfo",
        deserialize_with = "json::or_zero",
        skip_serializing_if = "Option::is_none"
    )]
    pub tka_info: Option<TkaInfo>,
    /// For audit logs.
    #[serde(
        rename = "DomainDataPlaneAuditLogID",
        deserialize_with = "json::or_zero",
        skip_serializing_if = "String::is_empty"
    )]
    pub domain_data_plane_audit_log_id: String,
    /// Instructions to carry out once.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "Option::is_none"
    )]
    pub debug: Option<Debug>,
    /// How to reach the server next time.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "Option::is_none"
    )]
    pub control_dial_plan: Option<ControlDialPlan>,
    /// The newest version of the software.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "Option::is_none"
    )]
    pub client_version: Option<ClientVersion>,
    /// Older form of a node capability.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "Option::is_none"
    )]
    pub default_auto_update: Option<bool>,
}

impl MapResponse {
    /// The keepalive. Its JSON is the same 18 bytes every time, because clients
    /// recognise it by its bytes.
    pub fn keep_alive() -> Self {
        Self {
            keep_alive: true,
            ..Self::default()
        }
    }
}

//! The network map: what a node tells, and the stream of what it is told.
//!
//! A node keeps one [`MapRequest`] with `stream` open. Its answer is a first,
//! full [`MapResponse`] and then changes for as long as the connection lives;
//! [`Netmap`](crate::Netmap) puts them together. News of the node itself go up
//! in short requests beside it, with `omit_peers` and without `stream`.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use warren_keys::{DiscoPublic, NodePublic};

use crate::{
    CapabilityVersion, DerpMapUpdate, DnsConfig, FilterRule, Hostinfo, Node, NodeId, PeerChange,
    RegionId, SshPolicy, UserProfile, json,
};

/// Asks for the map, or tells news of the node, or both.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct MapRequest {
    /// What the client understands.
    #[serde(deserialize_with = "json::or_zero")]
    pub version: CapabilityVersion,
    /// `zstd`, or empty for plain JSON frames.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "String::is_empty"
    )]
    pub compress: String,
    /// The client wants keepalives.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "json::is_zero"
    )]
    pub keep_alive: bool,
    /// Which node asks.
    #[serde(deserialize_with = "json::or_zero")]
    pub node_key: NodePublic,
    /// Its disco key. Absent: keep what you have.
    #[serde(with = "json::zeroable")]
    pub disco_key: Option<DiscoPublic>,
    /// Hardware-bound key, `hwattestpub:` and hex.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "String::is_empty"
    )]
    pub hardware_attestation_key: String,
    /// Its signature over time and node key.
    #[serde(with = "json::base64", skip_serializing_if = "Vec::is_empty")]
    pub hardware_attestation_key_signature: Vec<u8>,
    /// Keep sending changes.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "json::is_zero"
    )]
    pub stream: bool,
    /// Its machine.
    #[serde(deserialize_with = "json::or_zero")]
    pub hostinfo: Option<Hostinfo>,
    /// Stream to resume (not used by known clients).
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "String::is_empty"
    )]
    pub map_session_handle: String,
    /// Last message of that stream.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "json::is_zero"
    )]
    pub map_session_seq: i64,
    /// All its UDP endpoints.
    #[serde(
        deserialize_with = "json::endpoints",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub endpoints: Vec<SocketAddr>,
    /// How each of them was found.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub endpoint_types: Vec<EndpointType>,
    /// Tailnet lock: its head, in base32.
    #[serde(
        rename = "TKAHead",
        deserialize_with = "json::or_zero",
        skip_serializing_if = "String::is_empty"
    )]
    pub tka_head: String,
    /// Retired.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "json::is_zero"
    )]
    pub read_only: bool,
    /// Only news, no map wanted.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "json::is_zero"
    )]
    pub omit_peers: bool,
    /// Names of oddities, for information.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub debug_flags: Vec<String>,
    /// Opaque.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "String::is_empty"
    )]
    pub connection_handle_for_test: String,
}

/// How an endpoint was found.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(from = "i64", into = "i64")]
pub enum EndpointType {
    /// Not told, or in a way that is newer than this program.
    #[default]
    Unknown,
    /// An address of an interface.
    Local,
    /// Seen from outside by a STUN server.
    Stun,
    /// A mapping that the router granted.
    PortMapped,
    /// The outside address with the local port: a static port forward.
    Stun4LocalPort,
    /// Configured by a person.
    ExplicitConf,
}

impl From<i64> for EndpointType {
    fn from(number: i64) -> Self {
        match number {
            1 => Self::Local,
            2 => Self::Stun,
            3 => Self::PortMapped,
            4 => Self::Stun4LocalPort,
            5 => Self::ExplicitConf,
            _ => Self::Unknown,
        }
    }
}

impl From<EndpointType> for i64 {
    fn from(kind: EndpointType) -> Self {
        match kind {
            EndpointType::Unknown => 0,
            EndpointType::Local => 1,
            EndpointType::Stun => 2,
            EndpointType::PortMapped => 3,
            EndpointType::Stun4LocalPort => 4,
            EndpointType::ExplicitConf => 5,
        }
    }
}

/// One message of the map stream.
///
/// What is `None` (or an empty list of changes) stays as it was in this
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
    /// Nothing but a sign of life.
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
    /// `true`: seen just now. `false`: not seen since nobody knows when.
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
    /// Who may log in over SSH, replaced as a whole.
    #[serde(
        rename = "SSHPolicy",
        deserialize_with = "json::or_zero",
        skip_serializing_if = "Option::is_none"
    )]
    pub ssh_policy: Option<SshPolicy>,
    /// The server's clock.
    #[serde(with = "json::time", skip_serializing_if = "Option::is_none")]
    pub control_time: Option<Timestamp>,
    /// State of tailnet lock; off unless ever told.
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
    /// Orders to carry out once.
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
    /// News of the software.
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
    /// The sign of life. Its JSON is the same 18 bytes every time, because
    /// clients recognise it by its bytes.
    pub fn keep_alive() -> Self {
        Self {
            keep_alive: true,
            ..Self::default()
        }
    }
}

/// Something the server wants to know from the node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct PingRequest {
    /// Where to answer; different for every request. Repeated: ignore it.
    #[serde(rename = "URL", deserialize_with = "json::or_zero")]
    pub url: String,
    /// Answer inside the channel.
    #[serde(
        rename = "URLIsNoise",
        deserialize_with = "json::or_zero",
        skip_serializing_if = "json::is_zero"
    )]
    pub url_is_noise: bool,
    /// Log success, too.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "json::is_zero"
    )]
    pub log: bool,
    /// Empty: a HEAD. `c2n`: run `payload`. Else ping in these ways, comma
    /// between them.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "String::is_empty"
    )]
    pub types: String,
    /// Whom to ping.
    #[serde(
        rename = "IP",
        with = "json::address",
        skip_serializing_if = "Option::is_none"
    )]
    pub ip: Option<IpAddr>,
    /// For `c2n`: an HTTP/1 request.
    #[serde(with = "json::base64", skip_serializing_if = "Vec::is_empty")]
    pub payload: Vec<u8>,
}

/// What a ping found.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct PingResponse {
    /// The way it was done: `disco`, `TSMP`, `ICMP` or `peerapi`.
    #[serde(rename = "Type", deserialize_with = "json::or_zero")]
    pub kind: String,
    /// Whom it was for.
    #[serde(
        rename = "IP",
        deserialize_with = "json::or_zero",
        skip_serializing_if = "String::is_empty"
    )]
    pub ip: String,
    /// An address of the node that answered.
    #[serde(
        rename = "NodeIP",
        deserialize_with = "json::or_zero",
        skip_serializing_if = "String::is_empty"
    )]
    pub node_ip: String,
    /// Its first name.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "String::is_empty"
    )]
    pub node_name: String,
    /// Why there is no answer.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "String::is_empty"
    )]
    pub err: String,
    /// Round trip in seconds.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "json::is_zero"
    )]
    pub latency_seconds: f64,
    /// The direct path, if it was one.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "String::is_empty"
    )]
    pub endpoint: String,
    /// The peer relay, if it went through one: `ip:port:vni:N`.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "String::is_empty"
    )]
    pub peer_relay: String,
    /// The relay region, if it went through one.
    #[serde(
        rename = "DERPRegionID",
        with = "json::zeroable",
        skip_serializing_if = "Option::is_none"
    )]
    pub derp_region_id: Option<RegionId>,
    /// Its short name.
    #[serde(
        rename = "DERPRegionCode",
        deserialize_with = "json::or_zero",
        skip_serializing_if = "String::is_empty"
    )]
    pub derp_region_code: String,
    /// Port of the peer's own API.
    #[serde(
        rename = "PeerAPIPort",
        deserialize_with = "json::or_zero",
        skip_serializing_if = "json::is_zero"
    )]
    pub peer_api_port: u16,
    /// The address is our own.
    #[serde(
        rename = "IsLocalIP",
        deserialize_with = "json::or_zero",
        skip_serializing_if = "json::is_zero"
    )]
    pub is_local_ip: bool,
}

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
    /// What the user can do.
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
    /// What it opens.
    #[serde(rename = "URL", deserialize_with = "json::or_zero")]
    pub url: String,
    /// What it says.
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

/// Orders that are carried out once.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Debug {
    /// Read nothing for so long.
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

/// News of the software.
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
    /// It closes a hole.
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
    /// What the notice opens.
    #[serde(
        rename = "NotifyURL",
        deserialize_with = "json::or_zero",
        skip_serializing_if = "String::is_empty"
    )]
    pub notify_url: String,
    /// What it says.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "String::is_empty"
    )]
    pub notify_text: String,
}

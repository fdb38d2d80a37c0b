//! The request for the map, and for updates about the node.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use warren_keys::{DiscoPublic, NodePublic};

use crate::{CapabilityVersion, Hostinfo, json};

/// A request for the map, an update about the node, or both.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct MapRequest {
    /// The protocol version that the client understands.
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
    /// The node.
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
    /// Retired; ignored.
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
    /// For tests of other implementations; ignored.
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
    /// Not stated, or of a kind that is newer than this program.
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
    /// Configured by the user.
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

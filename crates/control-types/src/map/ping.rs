//! Requests of the server to a node, and the results of pings.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::{RegionId, json};

/// A request of the server to the node.
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
    /// The address to ping.
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

/// The result of a ping.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct PingResponse {
    /// The kind of ping: `disco`, `TSMP`, `ICMP` or `peerapi`.
    #[serde(rename = "Type", deserialize_with = "json::or_zero")]
    pub kind: String,
    /// The address that was pinged.
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
    /// The error, if there is no answer.
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

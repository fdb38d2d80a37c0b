//! Name resolution as the server configures it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::json;

/// The whole configuration; a new one replaces the old one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct DnsConfig {
    /// Resolvers for every name; empty leaves those of the system in use.
    #[serde(deserialize_with = "json::list", skip_serializing_if = "Vec::is_empty")]
    pub resolvers: Vec<Resolver>,
    /// Resolvers by suffix (no leading dot). An empty list means that the
    /// node itself answers for the suffix.
    #[serde(
        deserialize_with = "json::map_of_lists",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub routes: BTreeMap<String, Vec<Resolver>>,
    /// Resolvers for when a default is unavoidable and none is set.
    #[serde(deserialize_with = "json::list", skip_serializing_if = "Vec::is_empty")]
    pub fallback_resolvers: Vec<Resolver>,
    /// Search domains, no trailing dot.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub domains: Vec<String>,
    /// MagicDNS: names of nodes resolve.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "json::is_zero"
    )]
    pub proxied: bool,
    /// Older form of `resolvers`.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub nameservers: Vec<IpAddr>,
    /// Names for which the node may get certificates.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub cert_domains: Vec<String>,
    /// Further records the node answers itself.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub extra_records: Vec<DnsRecord>,
    /// Names this node refuses when peers resolve through it; a leading dot
    /// covers what is below.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub exit_node_filtered_set: Vec<String>,
}

/// Where to send questions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Resolver {
    /// An IP address, `IP:port`, `https://...` or `http://node:port/path`.
    #[serde(deserialize_with = "json::or_zero")]
    pub addr: String,
    /// Addresses of the host in `addr`, where that is a name.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub bootstrap_resolution: Vec<IpAddr>,
    /// Keep using it while an exit node is in use.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "json::is_zero"
    )]
    pub use_with_exit_node: bool,
}

/// One record.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct DnsRecord {
    /// Full name.
    #[serde(deserialize_with = "json::or_zero")]
    pub name: String,
    /// `A`, `AAAA`, or empty: the kind follows from the value.
    #[serde(
        rename = "Type",
        deserialize_with = "json::or_zero",
        skip_serializing_if = "String::is_empty"
    )]
    pub kind: String,
    /// An IP address.
    #[serde(deserialize_with = "json::or_zero")]
    pub value: String,
}

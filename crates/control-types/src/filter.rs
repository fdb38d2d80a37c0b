//! Packet filter rules and capability grants, as the server sends them.
//!
//! The texts inside are interpreted by the packet filter, not here.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{CapMap, json};

/// Allows sources to reach destinations, or grants them capabilities there;
/// one rule never does both.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct FilterRule {
    /// `*`, an address, a prefix, `IP-IP`, or `cap:<node capability>`.
    #[serde(rename = "SrcIPs", deserialize_with = "json::or_zero")]
    pub src_ips: Vec<String>,
    /// Retired; a rule list that uses it is refused as a whole.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub src_bits: Vec<i64>,
    /// The destinations that may be reached.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub dst_ports: Vec<NetPortRange>,
    /// IP protocol numbers; empty is TCP, UDP and ICMP of both families.
    #[serde(
        rename = "IPProto",
        deserialize_with = "json::or_zero",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub ip_proto: Vec<i64>,
    /// Capabilities the sources hold.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub cap_grant: Vec<CapGrant>,
}

/// Destinations of a rule.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct NetPortRange {
    /// `*`, an address, a prefix or `IP-IP`.
    #[serde(rename = "IP", deserialize_with = "json::or_zero")]
    pub ip: String,
    /// Retired; a rule list that uses it is refused as a whole.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "Option::is_none"
    )]
    pub bits: Option<i64>,
    /// The ports.
    #[serde(deserialize_with = "json::or_zero")]
    pub ports: PortRange,
}

/// Ports, both ends included.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct PortRange {
    /// The lowest.
    #[serde(deserialize_with = "json::or_zero")]
    pub first: u16,
    /// The highest.
    #[serde(deserialize_with = "json::or_zero")]
    pub last: u16,
}

impl PortRange {
    /// Every port.
    pub const ANY: Self = Self {
        first: 0,
        last: u16::MAX,
    };

    /// Just this port.
    pub const fn single(port: u16) -> Self {
        Self {
            first: port,
            last: port,
        }
    }

    /// Whether `port` lies inside.
    pub const fn contains(&self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }
}

/// Capabilities that the sources of a rule hold towards some addresses.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct CapGrant {
    /// Addresses of the nodes that honour the grant.
    #[serde(deserialize_with = "json::or_zero")]
    pub dsts: Vec<IpNet>,
    /// Capabilities without values (older form).
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub caps: Vec<String>,
    /// Capabilities with their values.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "json::is_zero"
    )]
    pub cap_map: CapMap,
}

//! Nodes, and patches to them.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::{Deref, DerefMut};

use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use warren_keys::{DiscoPublic, MachinePublic, NodePublic};

use crate::{CapabilityVersion, Hostinfo, NodeId, RegionId, Resolver, StableNodeId, UserId, json};

/// A node, as one particular other node (or itself) may see it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Node {
    /// Its number.
    #[serde(rename = "ID", deserialize_with = "json::or_zero")]
    pub id: NodeId,
    /// Its opaque name.
    #[serde(rename = "StableID", deserialize_with = "json::or_zero")]
    pub stable_id: StableNodeId,
    /// Full DNS name with the trailing dot.
    #[serde(deserialize_with = "json::or_zero")]
    pub name: String,
    /// Its owner.
    #[serde(deserialize_with = "json::or_zero")]
    pub user: UserId,
    /// The user that shared it into this network.
    #[serde(with = "json::zeroable", skip_serializing_if = "Option::is_none")]
    pub sharer: Option<UserId>,
    /// Its identity to peers.
    #[serde(deserialize_with = "json::or_zero")]
    pub key: NodePublic,
    /// When `key` ends; never, if absent.
    #[serde(with = "json::time", skip_serializing_if = "Option::is_none")]
    pub key_expiry: Option<Timestamp>,
    /// Tailnet lock: signature over `key`.
    #[serde(with = "json::base64", skip_serializing_if = "Vec::is_empty")]
    pub key_signature: Vec<u8>,
    /// Its identity to the server.
    #[serde(with = "json::zeroable", skip_serializing_if = "Option::is_none")]
    pub machine: Option<MachinePublic>,
    /// Where its path-finding messages come from; absent if it has none.
    #[serde(with = "json::zeroable", skip_serializing_if = "Option::is_none")]
    pub disco_key: Option<DiscoPublic>,
    /// Its own addresses, /32 and /128.
    #[serde(deserialize_with = "json::or_zero")]
    pub addresses: Vec<IpNet>,
    /// Prefixes of packets that may be sent to it and come from it. `None` is the
    /// same as `addresses`; see [`Node::allowed_ips`].
    #[serde(
        rename = "AllowedIPs",
        deserialize_with = "json::or_zero",
        skip_serializing_if = "Option::is_none"
    )]
    pub allowed_ips: Option<Vec<IpNet>>,
    /// Where it may be reachable by UDP.
    #[serde(
        deserialize_with = "json::endpoints",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub endpoints: Vec<SocketAddr>,
    /// Older form of `home_derp`: `127.3.3.40:<region>`.
    #[serde(
        rename = "DERP",
        deserialize_with = "json::or_zero",
        skip_serializing_if = "String::is_empty"
    )]
    pub legacy_derp: String,
    /// Its home relay region; see [`Node::home_region`].
    #[serde(
        rename = "HomeDERP",
        with = "json::zeroable",
        skip_serializing_if = "Option::is_none"
    )]
    pub home_derp: Option<RegionId>,
    /// Its machine, perhaps trimmed.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "Option::is_none"
    )]
    pub hostinfo: Option<Hostinfo>,
    /// When it joined.
    #[serde(with = "json::time", skip_serializing_if = "Option::is_none")]
    pub created: Option<Timestamp>,
    /// The protocol version that it understands.
    #[serde(with = "json::zeroable", skip_serializing_if = "Option::is_none")]
    pub cap: Option<CapabilityVersion>,
    /// Its tags, as `tag:web`.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub tags: Vec<String>,
    /// Subnets it is the active router for.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub primary_routes: Vec<IpNet>,
    /// When it was last connected to the server; only of interest while offline.
    #[serde(with = "json::time", skip_serializing_if = "Option::is_none")]
    pub last_seen: Option<Timestamp>,
    /// Whether it is connected to the server; `None` is unknown.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "Option::is_none"
    )]
    pub online: Option<bool>,
    /// Approved by an administrator, where that is needed.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "json::is_zero"
    )]
    pub machine_authorized: bool,
    /// Older form of `cap_map`, without values.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub capabilities: Vec<String>,
    /// Features of the node.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "json::is_zero"
    )]
    pub cap_map: CapMap,
    /// Exempt from tailnet lock, and in return only good for a few things.
    #[serde(
        rename = "UnsignedPeerAPIOnly",
        deserialize_with = "json::or_zero",
        skip_serializing_if = "json::is_zero"
    )]
    pub unsigned_peer_api_only: bool,
    /// For audit logs; on self only.
    #[serde(
        rename = "DataPlaneAuditLogID",
        deserialize_with = "json::or_zero",
        skip_serializing_if = "String::is_empty"
    )]
    pub data_plane_audit_log_id: String,
    /// Its key has ended.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "json::is_zero"
    )]
    pub expired: bool,
    /// The IPv4 address by which this peer knows us.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "Option::is_none"
    )]
    pub self_node_v4_masq_addr_for_this_peer: Option<Ipv4Addr>,
    /// The IPv6 address by which this peer knows us.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "Option::is_none"
    )]
    pub self_node_v6_masq_addr_for_this_peer: Option<Ipv6Addr>,
    /// A plain WireGuard peer: no disco, no relay.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "json::is_zero"
    )]
    pub is_wire_guard_only: bool,
    /// May not open connections to us.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "json::is_zero"
    )]
    pub is_jailed: bool,
    /// Resolvers to use with this plain WireGuard exit node.
    #[serde(
        rename = "ExitNodeDNSResolvers",
        deserialize_with = "json::list",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub exit_node_dns_resolvers: Vec<Resolver>,
}

impl Node {
    /// Prefixes of packets that may be sent to it and come from it.
    pub fn allowed_ips(&self) -> &[IpNet] {
        self.allowed_ips.as_deref().unwrap_or(&self.addresses)
    }

    /// Its home relay region, from either form.
    pub fn home_region(&self) -> Option<RegionId> {
        self.home_derp.or_else(|| {
            let region = self.legacy_derp.strip_prefix("127.3.3.40:")?.parse().ok()?;
            Some(RegionId(region)).filter(|region| region.0 != 0)
        })
    }

    /// Its first name: `laptop` of `laptop.example.ts.net.`.
    pub fn base_name(&self) -> &str {
        self.name.split('.').next().unwrap_or_default()
    }

    /// Puts what older servers say in other fields where it belongs now.
    pub(crate) fn normalize(&mut self) {
        self.home_derp = self.home_region();
        self.legacy_derp.clear();
        for capability in std::mem::take(&mut self.capabilities) {
            self.cap_map.entry(capability).or_default();
        }
    }

    /// Applies a patch that names this node.
    pub fn apply(&mut self, patch: &PeerChange) {
        fn set<T: Clone>(field: &mut T, value: &Option<T>) {
            if let Some(value) = value {
                field.clone_from(value);
            }
        }
        if patch.derp_region.is_some() {
            self.home_derp = patch.derp_region;
        }
        if patch.cap.is_some() {
            self.cap = patch.cap;
        }
        set(&mut self.cap_map, &patch.cap_map);
        set(&mut self.endpoints, &patch.endpoints);
        set(&mut self.key, &patch.key);
        set(&mut self.key_signature, &patch.key_signature);
        if let Some(key) = patch.disco_key {
            self.disco_key = key.non_zero();
        }
        if patch.online.is_some() {
            self.online = patch.online;
        }
        set(&mut self.last_seen, &patch.last_seen);
        set(&mut self.key_expiry, &patch.key_expiry);
    }
}

/// Names of features with their values; a name alone says "has it".
///
/// On the wire each value is a list of any JSON, or `null`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(transparent)]
pub struct CapMap(pub BTreeMap<String, Vec<Value>>);

impl CapMap {
    /// Whether the feature is there, with values or without.
    pub fn has(&self, capability: &str) -> bool {
        self.0.contains_key(capability)
    }
}

impl<'de> Deserialize<'de> for CapMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        json::map_of_lists(deserializer).map(Self)
    }
}

impl Deref for CapMap {
    type Target = BTreeMap<String, Vec<Value>>;
    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl DerefMut for CapMap {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0
    }
}

impl<S: Into<String>> FromIterator<S> for CapMap {
    /// Features without values.
    fn from_iter<I: IntoIterator<Item = S>>(names: I) -> Self {
        Self(
            names
                .into_iter()
                .map(|name| (name.into(), Vec::new()))
                .collect(),
        )
    }
}

/// A patch to a peer: fields that are `None` stay.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct PeerChange {
    /// The peer that changed; an unknown one is ignored.
    #[serde(rename = "NodeID", deserialize_with = "json::or_zero")]
    pub node_id: NodeId,
    /// Its home relay region.
    #[serde(
        rename = "DERPRegion",
        with = "json::zeroable",
        skip_serializing_if = "Option::is_none"
    )]
    pub derp_region: Option<RegionId>,
    /// The protocol version that it understands.
    #[serde(with = "json::zeroable", skip_serializing_if = "Option::is_none")]
    pub cap: Option<CapabilityVersion>,
    /// All its features; an empty map takes all away.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "Option::is_none"
    )]
    pub cap_map: Option<CapMap>,
    /// All its endpoints; an empty list takes all away.
    #[serde(
        deserialize_with = "json::optional_endpoints",
        skip_serializing_if = "Option::is_none"
    )]
    pub endpoints: Option<Vec<SocketAddr>>,
    /// Its new key.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "Option::is_none"
    )]
    pub key: Option<NodePublic>,
    /// Signature over the key.
    #[serde(
        with = "json::optional_base64",
        skip_serializing_if = "Option::is_none"
    )]
    pub key_signature: Option<Vec<u8>>,
    /// Its new disco key; all zero takes it away.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "Option::is_none"
    )]
    pub disco_key: Option<DiscoPublic>,
    /// Whether it is connected to the server.
    #[serde(
        deserialize_with = "json::or_zero",
        skip_serializing_if = "Option::is_none"
    )]
    pub online: Option<bool>,
    /// When it was last connected; `Some(None)` forgets it.
    #[serde(with = "json::patched_time", skip_serializing_if = "Option::is_none")]
    pub last_seen: Option<Option<Timestamp>>,
    /// When its key ends; `Some(None)` is never.
    #[serde(with = "json::patched_time", skip_serializing_if = "Option::is_none")]
    pub key_expiry: Option<Option<Timestamp>>,
}

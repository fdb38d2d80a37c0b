//! Nodes, machines that wait for approval, and subnet routes.

use std::collections::BTreeSet;

use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use warren_control_core::{JoinMethod, RouterState};

/// Lists nodes, by their ids.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListNodes {
    /// Only the nodes of this user.
    pub user: Option<String>,
}

/// Looks up one node.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GetNode {
    /// The name, number, address, `id:NUMBER` or `name:NAME` of the node.
    pub node: String,
}

/// Renames a node.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RenameNode {
    /// The name, number, address, `id:NUMBER` or `name:NAME` of the node.
    pub node: String,
    /// The new name, a DNS label.
    pub new_name: String,
}

/// Sets when the key of a node expires; then it has to log in again.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExpireNode {
    /// The name, number, address, `id:NUMBER` or `name:NAME` of the node.
    pub node: String,
    /// The moment; now if left out.
    #[serde(default)]
    pub expiry: NewExpiry,
}

/// When the key of a node expires: `"now"`, `"never"` or `{"at": TIME}`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NewExpiry {
    /// At once.
    #[default]
    Now,
    /// It does not. An expiry before is taken back.
    Never,
    /// At this time.
    At(Timestamp),
}

/// Deletes a node. The answer is the node as it was.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeleteNode {
    /// The name, number, address, `id:NUMBER` or `name:NAME` of the node.
    pub node: String,
}

/// Sets the tags that own a node; at least one, and the policy must define them.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TagNode {
    /// The name, number, address, `id:NUMBER` or `name:NAME` of the node.
    pub node: String,
    /// The tags, as `tag:NAME`.
    pub tags: BTreeSet<String>,
}

/// Gives a node to a user, and takes its tags away.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AssignNode {
    /// The name, number, address, `id:NUMBER` or `name:NAME` of the node.
    pub node: String,
    /// The user; the one that registered the node if left out.
    pub user: Option<String>,
}

/// Lists nodes with the routes that they offer, that are approved, and that they serve.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListRoutes {
    /// Only this node; all nodes with routes if left out.
    pub node: Option<String>,
}

/// Sets the approved routes of a node; without routes, none is approved.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApproveRoutes {
    /// The name, number, address, `id:NUMBER` or `name:NAME` of the node.
    pub node: String,
    /// The routes to approve. One that the node does not offer yet counts from
    /// when it does.
    pub routes: Vec<IpNet>,
}

/// Lists the machines that wait for approval.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListPendingNodes {}

/// Approves a machine that waits.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApproveNode {
    /// The id at the end of the address that the machine shows.
    pub id: String,
    /// The user that owns the node.
    pub user: String,
    /// Tags that own the node instead.
    pub tags: BTreeSet<String>,
}

/// Refuses a machine that waits for approval, or a session over SSH that waits for a
/// check.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RejectLogin {
    /// The id at the end of the address that the machine shows.
    pub id: String,
}

/// The answer to [`RejectLogin`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RejectedLogin {
    /// The id.
    pub id: String,
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// The number of the record.
    pub id: i64,
    /// The host name that the machine reports.
    pub name: String,
    /// The DNS label in this network.
    pub given_name: String,
    /// The fully qualified name.
    pub fqdn: String,
    /// The user that registered the node.
    pub user: Option<String>,
    /// The tags that own the node.
    pub tags: Vec<String>,
    /// The IPv4 address, then the IPv6 address.
    pub ip_addresses: Vec<String>,
    /// Whether its map stream is open, or was within the grace time.
    pub online: bool,
    /// The time at which the node was last seen; for an online node, the time at
    /// which it was last away.
    pub last_seen: Option<Timestamp>,
    /// The time at which the node key expires; `null` if it does not.
    pub expiry: Option<Timestamp>,
    /// Whether the key has expired.
    pub expired: bool,
    /// The time of its registration.
    pub created_at: Timestamp,
    /// `auth_key` or `approval`.
    pub register_method: JoinMethod,
    /// The number of the pre-auth key that it used last.
    pub auth_key: Option<i64>,
    /// Whether the node is deleted when it stays offline.
    pub ephemeral: bool,
    /// The WireGuard key.
    pub node_key: String,
    /// The key of the control channel.
    pub machine_key: String,
    /// The disco key.
    pub disco_key: Option<String>,
    /// The UDP endpoints.
    pub endpoints: Vec<String>,
    /// The home DERP region.
    pub home_relay: Option<u16>,
    /// The operating system.
    pub os: String,
    /// The program and its version.
    pub version: String,
    /// The capability version of the program.
    pub capability_version: u32,
    /// The routes that the node offers.
    pub available_routes: Vec<String>,
    /// The routes that are approved, also those that the node does not offer yet.
    pub approved_routes: Vec<String>,
    /// The routes that the node serves now. Of the routers of a subnet one serves;
    /// exit routes are served by every exit node that is there.
    pub serving_routes: Vec<String>,
    /// Whether a node with approved routes can serve as a router: `absent`, `expected`
    /// (after a start of the server), `lost`, `returning`, `impaired` or `answering`.
    pub router_state: Option<RouterState>,
}

/// A machine that waits for approval.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingNodeInfo {
    /// The id to approve.
    pub id: String,
    /// The host name of the machine.
    pub name: String,
    /// The operating system of the machine.
    pub os: String,
    /// The time at which it began to wait.
    pub since: Timestamp,
}

//! The answers to the administrator, in the field names of `--json`.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use warren_control_core::{
    AuthKeyRecord, Coordinator, JoinMethod, NodeRecord, PendingView, Role, SshCheckView,
    UserRecord, View, role_name,
};

use crate::coordinator::CoordinatorHandle;

/// A user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserView {
    /// The number of the record.
    pub id: i64,
    /// The login name.
    pub name: String,
    /// The role, for the autogroups of the policy.
    #[serde(with = "role_name")]
    pub role: Role,
    /// The time of creation.
    pub created_at: Timestamp,
}

impl UserView {
    pub(crate) fn new(user: &UserRecord) -> Self {
        Self {
            id: user.id.0,
            name: user.name.clone(),
            role: user.role,
            created_at: user.created,
        }
    }
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeView {
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
    /// Tags that own it.
    pub tags: Vec<String>,
    /// IPv4, then IPv6.
    pub ip_addresses: Vec<String>,
    /// Whether its map stream is open, or was within the grace time.
    pub online: bool,
    /// Last seen; for an online node when it last was away.
    pub last_seen: Option<Timestamp>,
    /// When the key stops working; `null` is never.
    pub expiry: Option<Timestamp>,
    /// Whether the key has expired.
    pub expired: bool,
    /// The time of its registration.
    pub created_at: Timestamp,
    /// `auth_key` or `approval`.
    pub register_method: JoinMethod,
    /// Whether the node is deleted when it stays offline.
    pub ephemeral: bool,
    /// WireGuard key.
    pub node_key: String,
    /// Control channel key.
    pub machine_key: String,
    /// Path-finding key.
    pub disco_key: Option<String>,
    /// UDP endpoints.
    pub endpoints: Vec<String>,
    /// Home relay region.
    pub home_relay: Option<u16>,
    /// Operating system.
    pub os: String,
    /// Program and version.
    pub version: String,
    /// Capability version.
    pub capability_version: u32,
    /// The routes that the node offers.
    pub available_routes: Vec<String>,
    /// The routes that are approved.
    pub approved_routes: Vec<String>,
}

impl NodeView {
    pub(crate) fn new(coordinator: &View, node: &NodeRecord, wall: Duration) -> Self {
        let user = node.user.and_then(|id| coordinator.user(id));
        let now = moment(wall);
        Self {
            id: node.id.0,
            name: node.hostinfo.hostname.clone(),
            given_name: node.name.clone(),
            fqdn: coordinator.full_name(node),
            user: user.map(|user| user.name.clone()),
            tags: node.tags.iter().cloned().collect(),
            ip_addresses: vec![node.address.v4().to_string(), node.address.v6().to_string()],
            online: coordinator.is_online(node.id),
            last_seen: node.last_seen,
            expiry: node.key_expiry,
            expired: node.key_expiry.is_some_and(|expiry| expiry <= now),
            created_at: node.created,
            register_method: node.join_method,
            ephemeral: node.ephemeral,
            node_key: node.key.to_string(),
            machine_key: node.machine.to_string(),
            disco_key: node.disco.map(|key| key.to_string()),
            endpoints: node.endpoints.iter().map(ToString::to_string).collect(),
            home_relay: node.home_relay.map(|region| region.0),
            os: node.hostinfo.os.clone(),
            version: node.hostinfo.ipn_version.clone(),
            capability_version: node.capability,
            available_routes: node
                .hostinfo
                .routable_ips
                .iter()
                .map(ToString::to_string)
                .collect(),
            approved_routes: node
                .approved_routes
                .iter()
                .map(ToString::to_string)
                .collect(),
        }
    }
}

/// The moment `wall` after the UNIX epoch, to the nanosecond: what is shown as
/// expired must be refused too.
fn moment(wall: Duration) -> Timestamp {
    i128::try_from(wall.as_nanos())
        .ok()
        .and_then(|nanoseconds| Timestamp::from_nanosecond(nanoseconds).ok())
        .unwrap_or(Timestamp::MAX)
}

/// A machine that waits for approval.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitingView {
    /// The id to approve.
    pub id: String,
    /// The host name of the machine.
    pub name: String,
    /// The operating system of the machine.
    pub os: String,
    /// The time at which it began to wait.
    pub since: Timestamp,
}

impl WaitingView {
    pub(crate) fn new(view: &PendingView) -> Self {
        Self {
            id: view.id.0.clone(),
            name: view.hostname.clone(),
            os: view.os.clone(),
            since: view.since,
        }
    }
}

/// An SSH session that waits for a check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckView {
    /// The id to approve.
    pub id: String,
    /// The user or the tags behind the source.
    pub owner: String,
    /// The source node.
    pub source: String,
    /// The destination node.
    pub destination: String,
    /// The local user at the destination.
    pub local_user: String,
    /// The time at which it began to wait.
    pub since: Timestamp,
}

impl CheckView {
    pub(crate) fn new(coordinator: &View, view: &SshCheckView) -> Self {
        let source = coordinator.node(view.source);
        let user = source
            .and_then(|node| node.user)
            .and_then(|id| coordinator.user(id));
        let owner = match (source, user) {
            (Some(node), _) if node.is_tagged() => {
                let tags: Vec<_> = node.tags.iter().cloned().collect();
                tags.join(",")
            }
            (_, user) => user.map(|user| user.name.clone()).unwrap_or_default(),
        };
        let name = |node: Option<&NodeRecord>| node.map(|n| n.name.clone()).unwrap_or_default();
        Self {
            id: view.id.0.clone(),
            owner,
            source: name(source),
            destination: name(coordinator.node(view.destination)),
            local_user: view.local_user.clone(),
            since: view.since,
        }
    }

    /// All that wait, oldest first.
    pub(crate) fn waiting(coordinator: &Coordinator) -> Vec<Self> {
        let checks = coordinator.ssh_checks();
        let state = coordinator.view();
        let views = checks.iter().map(|view| Self::new(&state, view));
        views.collect()
    }
}

/// A pre-auth key, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthKeyView {
    /// The number of the record.
    pub id: i64,
    /// The user that owns the nodes it registers.
    pub user: Option<String>,
    /// Whether it works more than once.
    pub reusable: bool,
    /// Whether its nodes are ephemeral.
    pub ephemeral: bool,
    /// Tags of its nodes.
    pub acl_tags: Vec<String>,
    /// How often it was used.
    pub uses: u64,
    /// Whether it was used at all.
    pub used: bool,
    /// Whether it works now.
    pub usable: bool,
    /// When it stops working; `null` is never.
    pub expiration: Option<Timestamp>,
    /// The time of creation.
    pub created_at: Timestamp,
}

impl AuthKeyView {
    pub(crate) fn new(coordinator: &View, key: &AuthKeyRecord, wall: Duration) -> Self {
        let user = key.user.and_then(|id| coordinator.user(id));
        let now = moment(wall);
        let expired = key.expiry.is_some_and(|expiry| expiry <= now);
        Self {
            id: key.id.0,
            user: user.map(|user| user.name.clone()),
            reusable: key.reusable,
            ephemeral: key.ephemeral,
            acl_tags: key.tags.iter().cloned().collect(),
            uses: key.uses,
            used: key.uses > 0,
            usable: !expired && (key.reusable || key.uses == 0),
            expiration: key.expiry,
            created_at: key.created,
        }
    }
}

/// A pre-auth key that was made just now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreatedKeyView {
    /// The whole key. It is shown this once.
    pub key: String,
    /// The key without its secret.
    #[serde(flatten)]
    pub record: AuthKeyView,
}

/// The response of a node to a c2n request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct C2nView {
    /// The HTTP status.
    pub status: u16,
    /// The body, as far as it is text.
    pub body: String,
}

/// The health of the server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthView {
    /// `pass` or `fail`.
    pub status: String,
    /// Whether rows reach the disk.
    pub database: bool,
    /// The URL at which nodes reach the server.
    pub server_url: String,
    /// The MagicDNS zone.
    pub base_domain: String,
    /// Whether every node may reach every node for lack of a policy.
    pub allow_all: bool,
    /// The file that is in charge of the policy, if one is.
    pub policy_file: Option<String>,
    /// The reason why the content of that file is not in force.
    pub policy_problem: Option<String>,
    /// How many users there are.
    pub users: usize,
    /// How many nodes there are.
    pub nodes: usize,
    /// How many of them are online.
    pub online: usize,
    /// How many machines wait for approval.
    pub waiting: usize,
    /// The program's version.
    pub version: String,
}

impl HealthView {
    pub(crate) fn new(coordinator: &CoordinatorHandle) -> Self {
        let database = coordinator.is_healthy();
        let waiting = coordinator.inspect(|c| c.pending().len());
        coordinator.read(|c| Self {
            status: if database { "pass" } else { "fail" }.to_owned(),
            database,
            server_url: c.config().server_url.clone(),
            base_domain: c.config().base_domain.clone(),
            allow_all: c.is_without_policy(),
            policy_file: c.policy_file().map(|file| file.path.clone()),
            policy_problem: c
                .policy_file()
                .and_then(|file| file.problem.as_ref())
                .map(|(since, why)| format!("since {since:.0}: {why}")),
            users: c.users().count(),
            nodes: c.node_count(),
            online: c.nodes().filter(|node| c.is_online(node.id)).count(),
            waiting,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        })
    }
}

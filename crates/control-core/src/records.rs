//! Records: users, nodes, pre-auth keys and a handful of settings.
//!
//! A record is what the store keeps, one row each. [`Change`] is the unit of
//! storage: the row as it now is. Applying all changes in order to an empty
//! [`Snapshot`] gives the state back, so a crash between two changes loses at
//! most changes that no answer spoke of yet.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use warren_control_types::{Hostinfo, NodeId, RegionId, UserId};
use warren_keys::{DiscoPublic, LockPublic, MachinePublic, NodePublic};
use warren_lock::AumHash;
use warren_policy::Role;

use crate::addresses::AddressIndex;
use crate::dns::StoredDns;
use crate::lock::{LockMessage, LockRecord};

/// The owner that clients see for nodes that belong to tags, not to a person.
pub const TAGGED_DEVICES: UserId = UserId(2_147_455_555);

/// The number of a pre-auth key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AuthKeyId(pub i64);

/// A person who owns machines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserRecord {
    /// Never reused.
    pub id: UserId,
    /// The login name: unique, chosen by the administrator or made from the account.
    pub name: String,
    /// When it was made.
    pub created: Timestamp,
    /// Its role in the policy (`autogroup:admin` and the like). The
    /// administrators of this server are another matter.
    #[serde(with = "role_name")]
    pub role: Role,
    /// The account at an identity provider with which the person logs in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<Box<AccountRecord>>,
}

/// The account of a user at an identity provider, as of the last login. The pair of
/// issuer and subject is the person; all else may change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountRecord {
    /// The name of the provider in the configuration of that time.
    pub provider: String,
    /// The issuer, byte for byte.
    pub issuer: String,
    /// The subject at that issuer, byte for byte.
    pub subject: String,
    /// The e-mail address, if it may be trusted.
    #[serde(default)]
    pub email: Option<String>,
    /// The short name at the provider.
    #[serde(default)]
    pub username: Option<String>,
    /// The name for people.
    #[serde(default)]
    pub display_name: Option<String>,
    /// The address of a picture.
    #[serde(default)]
    pub picture: Option<String>,
    /// The groups at the provider.
    #[serde(default)]
    pub groups: BTreeSet<String>,
    /// The last login. `None`: an administrator linked the account, and it was not
    /// used yet.
    #[serde(default)]
    pub last_login: Option<Timestamp>,
}

impl UserRecord {
    /// The name for people: that of the account, else the login name.
    pub fn display_name(&self) -> &str {
        let account = self.account.as_ref();
        let name = account.and_then(|account| account.display_name.as_deref());
        name.unwrap_or(&self.name)
    }
}

/// A role as its name, in rows and answers.
pub mod role_name {
    use serde::{Deserialize as _, Deserializer, Serializer, de};
    use warren_policy::Role;

    /// Writes the name.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(role: &Role, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(role)
    }

    /// Reads the name.
    ///
    /// # Errors
    /// There is no such role.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Role, D::Error> {
        let name = String::deserialize(deserializer)?;
        name.parse().map_err(de::Error::custom)
    }
}

/// How a node came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JoinMethod {
    /// With a pre-auth key.
    AuthKey,
    /// Approved by the administrator.
    Approval,
    /// By a person who logged in at an identity provider.
    Login,
}

/// A node: one login of one machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Never reused.
    pub id: NodeId,
    /// The static key of its control channel; several logins may share it.
    pub machine: MachinePublic,
    /// Its present WireGuard and relay identity.
    pub key: NodePublic,
    /// The user with whose login or key it joined. Absent only for keys that
    /// have tags and no user.
    pub user: Option<UserId>,
    /// Not empty: the node belongs to these tags, not to the user.
    pub tags: BTreeSet<String>,
    /// Whether an administrator set the owner after the node had joined. A login
    /// with the pre-auth key that the node has used before does not change it then.
    #[serde(default)]
    pub owner_set: bool,
    /// Its addresses in both families.
    pub address: AddressIndex,
    /// The DNS label, unique here.
    pub name: String,
    /// Whether a person chose the name; then the host name no longer decides.
    pub name_chosen: bool,
    /// First registration.
    pub created: Timestamp,
    /// When the key stops working. `None`: never.
    pub key_expiry: Option<Timestamp>,
    /// When it was last seen connected. Meaningful while offline.
    pub last_seen: Option<Timestamp>,
    /// To be deleted when it stays away.
    pub ephemeral: bool,
    /// How it came in.
    pub join_method: JoinMethod,
    /// The pre-auth key it used.
    pub auth_key: Option<AuthKeyId>,
    /// Its path-finding key, of its present process.
    pub disco: Option<DiscoPublic>,
    /// Where it believes to be reachable by UDP.
    pub endpoints: Vec<SocketAddr>,
    /// Its home relay region.
    pub home_relay: Option<RegionId>,
    /// Its own description. `NetInfo` survives updates that lack it.
    pub hostinfo: Hostinfo,
    /// The capability version of its last request.
    pub capability: u32,
    /// Routes the administrator approved, advertised at the moment or not.
    pub approved_routes: BTreeSet<IpNet>,
    /// The tailnet-lock signature of its key, passed on unchanged.
    pub key_signature: Vec<u8>,
    /// Its key for tailnet lock, which may sign its next node keys.
    #[serde(default)]
    pub lock_key: Option<LockPublic>,
}

impl NodeRecord {
    /// Whether tags own it.
    pub fn is_tagged(&self) -> bool {
        !self.tags.is_empty()
    }

    /// The owner as clients see it.
    pub fn owner(&self) -> UserId {
        if self.is_tagged() {
            TAGGED_DEVICES
        } else {
            self.user.unwrap_or(TAGGED_DEVICES)
        }
    }

    /// Whether the key had stopped working at `wall`.
    pub fn is_expired(&self, wall: Timestamp) -> bool {
        self.key_expiry.is_some_and(|expiry| expiry <= wall)
    }

    /// The opaque id that clients keep in their preferences.
    pub fn stable_id(&self) -> String {
        format!("n{}WRN", self.id.0)
    }
}

/// A pre-auth key, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthKeyRecord {
    /// Never reused; part of the key's text.
    pub id: AuthKeyId,
    /// SHA-256 of the secret.
    pub digest: [u8; 32],
    /// The user that owns the nodes that it makes.
    pub user: Option<UserId>,
    /// Whether it works more than once.
    pub reusable: bool,
    /// Whether its nodes are deleted when they stay away.
    pub ephemeral: bool,
    /// Tags its nodes get.
    pub tags: BTreeSet<String>,
    /// When it was made.
    pub created: Timestamp,
    /// When it stops working. `None`: never.
    #[serde(deserialize_with = "crate::tailnet::present")]
    pub expiry: Option<Timestamp>,
    /// How often it was used.
    pub uses: u64,
    /// Whether an administrator ended it before its time.
    #[serde(default)]
    pub revoked: bool,
}

/// A policy that was in force once, or is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyVersion {
    /// Its number, from 1. Numbers are not used twice.
    pub version: i64,
    /// The moment at which it came into force. `None`: it is older than the
    /// history.
    pub at: Option<Timestamp>,
    /// The person who set it.
    pub by: String,
    /// The name of its file.
    pub file: String,
    /// Its text. `None`: no policy, every node may reach every node.
    #[serde(deserialize_with = "crate::tailnet::present")]
    pub text: Option<String>,
}

/// One row as it now is.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// A user was made or altered.
    User(UserRecord),
    /// A user is gone.
    UserGone(UserId),
    /// A node was made or altered.
    Node(Box<NodeRecord>),
    /// A node is gone.
    NodeGone(NodeId),
    /// A key was made or altered.
    AuthKey(AuthKeyRecord),
    /// A key is gone.
    AuthKeyGone(AuthKeyId),
    /// The policy text; `None` is allow-all.
    Policy(Option<String>),
    /// A policy was set.
    PolicyVersion(PolicyVersion),
    /// A version is no longer kept.
    PolicyVersionGone(i64),
    /// An update message of tailnet lock arrived.
    LockMessage(LockMessage),
    /// An update message is no longer kept.
    LockMessageGone(AumHash),
    /// Tailnet lock was turned on or off.
    Lock(LockRecord),
    /// Settings or records of name resolution were changed.
    Dns(Box<StoredDns>),
    /// The next numbers to hand out, so that none is used twice.
    Counters(Counters),
}

/// Names a row of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RowId {
    /// A user.
    User(UserId),
    /// A node.
    Node(NodeId),
    /// A pre-auth key.
    AuthKey(AuthKeyId),
    /// The policy text.
    Policy,
    /// A version of the policy.
    PolicyVersion(i64),
    /// An update message of tailnet lock.
    LockMessage(AumHash),
    /// Whether tailnet lock is on.
    Lock,
    /// Name resolution.
    Dns,
    /// The next numbers.
    Counters,
}

impl Change {
    /// The row that it replaces.
    pub fn row(&self) -> RowId {
        match self {
            Self::User(user) => RowId::User(user.id),
            Self::UserGone(id) => RowId::User(*id),
            Self::Node(node) => RowId::Node(node.id),
            Self::NodeGone(id) => RowId::Node(*id),
            Self::AuthKey(key) => RowId::AuthKey(key.id),
            Self::AuthKeyGone(id) => RowId::AuthKey(*id),
            Self::Policy(_) => RowId::Policy,
            Self::PolicyVersion(version) => RowId::PolicyVersion(version.version),
            Self::PolicyVersionGone(version) => RowId::PolicyVersion(*version),
            Self::LockMessage(message) => RowId::LockMessage(message.hash),
            Self::LockMessageGone(hash) => RowId::LockMessage(*hash),
            Self::Lock(_) => RowId::Lock,
            Self::Dns(_) => RowId::Dns,
            Self::Counters(_) => RowId::Counters,
        }
    }
}

/// The next number of each kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// The next user id.
    pub user: i64,
    /// The next node id.
    pub node: i64,
    /// The next pre-auth key id.
    pub auth_key: i64,
    /// Where the search for a free address starts.
    pub address: u32,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            user: 1,
            node: 1,
            auth_key: 1,
            address: 1,
        }
    }
}

/// Everything that is remembered.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Snapshot {
    /// All users.
    pub users: BTreeMap<UserId, UserRecord>,
    /// All nodes.
    pub nodes: BTreeMap<NodeId, NodeRecord>,
    /// All pre-auth keys, used and expired ones too.
    pub auth_keys: BTreeMap<AuthKeyId, AuthKeyRecord>,
    /// The policy text; `None` is allow-all.
    pub policy: Option<String>,
    /// Policies that were set, by their number; the last is in force.
    pub policies: BTreeMap<i64, PolicyVersion>,
    /// Tailnet lock, if it was turned on once.
    pub lock: Option<LockRecord>,
    /// The update messages of tailnet lock.
    pub lock_messages: BTreeMap<AumHash, LockMessage>,
    /// Name resolution, as far as commands and the file with records decide about it.
    pub dns: StoredDns,
    /// The next numbers.
    pub counters: Counters,
}

impl Snapshot {
    /// Applies one change.
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::User(user) => {
                self.users.insert(user.id, user);
            }
            Change::UserGone(id) => {
                self.users.remove(&id);
            }
            Change::Node(node) => {
                self.nodes.insert(node.id, *node);
            }
            Change::NodeGone(id) => {
                self.nodes.remove(&id);
            }
            Change::AuthKey(key) => {
                self.auth_keys.insert(key.id, key);
            }
            Change::AuthKeyGone(id) => {
                self.auth_keys.remove(&id);
            }
            Change::Policy(text) => self.policy = text,
            Change::PolicyVersion(version) => {
                self.policies.insert(version.version, version);
            }
            Change::PolicyVersionGone(version) => {
                self.policies.remove(&version);
            }
            Change::LockMessage(message) => {
                self.lock_messages.insert(message.hash, message);
            }
            Change::LockMessageGone(hash) => {
                self.lock_messages.remove(&hash);
            }
            Change::Lock(record) => self.lock = Some(record),
            Change::Dns(dns) => self.dns = *dns,
            Change::Counters(counters) => self.counters = counters,
        }
    }
}

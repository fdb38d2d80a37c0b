//! The records and the ways to find them.
//!
//! All that is remembered goes in and out of here one [`Change`](crate::Change) at a time, and
//! the indexes (by key, machine, name, user, address, expiry) follow. A copy is
//! cheap and stays as it was, see [`Table`].

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use ipnet::IpNet;
use jiff::Timestamp;
use warren_control_types::{NodeId, UserId};
use warren_keys::{MachinePublic, NodePublic};

use crate::addresses::AddressIndex;
use crate::dns::StoredDns;
use crate::lock::Lock;
use crate::records::{
    AuthKeyId, AuthKeyRecord, Counters, NodeRecord, PolicyVersion, Snapshot, UserRecord,
};
use crate::routes::RouterState;
use crate::table::Table;

/// Whether a node takes part in the network, from "not at all" upwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// There is no such node.
    Unknown,
    /// Its key has expired.
    Expired,
    /// Its key is valid, and its peers are informed that it is offline.
    Offline,
    /// Its key is valid and it is online.
    Online,
}

impl Standing {
    /// Whether the node may use what the network offers: relays, SSH sessions,
    /// the traffic of its peers.
    pub fn is_valid(self) -> bool {
        self >= Self::Offline
    }

    /// Whether the node is known and its key has expired.
    pub fn is_expired(self) -> bool {
        self == Self::Expired
    }
}

/// The variants in which one node is shown to different peers: the routes that
/// the peer is given, and whether the IPv4 address is left out.
pub(crate) type PeerVariant = (Vec<IpNet>, bool);

/// The state of a node that its peers see and its record does not contain.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct NodeState {
    pub(crate) online: bool,
    pub(crate) expired: bool,
    /// Subnets for which it is the active router.
    pub(crate) primary_routes: Vec<IpNet>,
    /// As a router: whether it is there.
    pub(crate) router: RouterState,
}

/// A node as its peers see it at one moment. It is replaced as a whole, and its
/// JSON with it.
#[derive(Debug)]
pub(crate) struct NodeEntry {
    pub(crate) record: Arc<NodeRecord>,
    pub(crate) state: NodeState,
    /// The [revision](Directory::revision) that made it.
    pub(crate) revision: u64,
    json: Mutex<BTreeMap<PeerVariant, Arc<str>>>,
}

impl NodeEntry {
    fn new(record: Arc<NodeRecord>, state: NodeState, revision: u64) -> Self {
        Self {
            record,
            state,
            revision,
            json: Mutex::default(),
        }
    }

    /// The JSON of this variant, made once for all peers that see it.
    pub(crate) fn json(
        &self,
        variant: PeerVariant,
        make: impl FnOnce(&PeerVariant) -> Option<String>,
    ) -> Option<Arc<str>> {
        let cache = || self.json.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(json) = cache().get(&variant) {
            return Some(json.clone());
        }
        let json: Arc<str> = make(&variant)?.into();
        cache().insert(variant, json.clone());
        Some(json)
    }
}

/// See the module.
#[derive(Debug, Clone, Default)]
pub(crate) struct Directory {
    users: Table<UserId, Arc<UserRecord>>,
    nodes: Table<NodeId, Arc<NodeEntry>>,
    auth_keys: Table<AuthKeyId, Arc<AuthKeyRecord>>,
    policy: Option<Arc<str>>,
    policies: Table<i64, Arc<PolicyVersion>>,
    lock: Lock,
    dns: Arc<StoredDns>,
    counters: Counters,
    /// Counts the changes of nodes.
    revision: u64,
    by_key: Table<NodePublic, NodeId>,
    by_machine: Table<(MachinePublic, NodeId), ()>,
    by_name: Table<(String, NodeId), ()>,
    by_user: Table<(UserId, NodeId), ()>,
    by_address: Table<AddressIndex, NodeId>,
    by_expiry: Table<(Timestamp, NodeId), ()>,
}

/// Before all nodes of an index.
const FIRST: NodeId = NodeId(i64::MIN);

impl Directory {
    /// The records of a store, seen at `time`.
    pub(crate) fn load(snapshot: &Snapshot, time: Timestamp) -> Self {
        let mut out = Self {
            policy: snapshot.policy.as_deref().map(Into::into),
            dns: Arc::new(snapshot.dns.clone()),
            lock: Lock::load(snapshot.lock.clone(), snapshot.lock_messages.clone()),
            counters: snapshot.counters,
            ..Self::default()
        };
        for user in snapshot.users.values() {
            out.put_user(user.clone());
        }
        for key in snapshot.auth_keys.values() {
            out.put_auth_key(key.clone());
        }
        for version in snapshot.policies.values() {
            out.put_policy_version(version.clone());
        }
        for node in snapshot.nodes.values() {
            out.put_node(node.clone(), time);
        }
        out
    }

    /// A copy in the form of a store.
    pub(crate) fn snapshot(&self) -> Snapshot {
        Snapshot {
            users: self.users().map(|user| (user.id, user.clone())).collect(),
            nodes: self.nodes().map(|node| (node.id, node.clone())).collect(),
            auth_keys: self.auth_keys().map(|key| (key.id, key.clone())).collect(),
            policy: self.policy.as_deref().map(str::to_owned),
            policies: self
                .policy_versions()
                .map(|version| (version.version, version.clone()))
                .collect(),
            dns: StoredDns::clone(&self.dns),
            lock: self.lock.record().cloned(),
            lock_messages: self.lock.messages().clone(),
            counters: self.counters,
        }
    }

    /// Name resolution, as far as it is stored.
    pub(crate) fn dns(&self) -> &StoredDns {
        &self.dns
    }

    pub(crate) fn set_dns(&mut self, dns: StoredDns) {
        self.dns = Arc::new(dns);
    }

    /// Tailnet lock.
    pub(crate) fn lock(&self) -> &Lock {
        &self.lock
    }

    pub(crate) fn lock_mut(&mut self) -> &mut Lock {
        &mut self.lock
    }

    // Nodes.

    pub(crate) fn entry(&self, id: NodeId) -> Option<&NodeEntry> {
        self.nodes.get(&id).map(AsRef::as_ref)
    }

    pub(crate) fn entries(&self) -> impl Iterator<Item = &NodeEntry> {
        self.nodes.values().map(AsRef::as_ref)
    }

    pub(crate) fn node(&self, id: NodeId) -> Option<&NodeRecord> {
        self.entry(id).map(|entry| entry.record.as_ref())
    }

    pub(crate) fn nodes(&self) -> impl Iterator<Item = &NodeRecord> {
        self.entries().map(|entry| entry.record.as_ref())
    }

    pub(crate) fn node_count(&self) -> usize {
        self.nodes.len()
    }

    /// Whether the node takes part. This goes by what peers are informed of, so
    /// that no two decisions about one node differ.
    pub(crate) fn standing(&self, id: NodeId) -> Standing {
        match self.entry(id) {
            None => Standing::Unknown,
            Some(entry) if entry.state.expired => Standing::Expired,
            Some(entry) if entry.state.online => Standing::Online,
            Some(_) => Standing::Offline,
        }
    }

    /// Whether the node can serve as a router.
    pub(crate) fn router_state(&self, id: NodeId) -> RouterState {
        let entry = self.entry(id).filter(|entry| !entry.state.expired);
        entry.map_or(RouterState::Absent, |entry| entry.state.router)
    }

    pub(crate) fn node_by_key(&self, key: &NodePublic) -> Option<&NodeRecord> {
        self.node(*self.by_key.get(key)?)
    }

    pub(crate) fn nodes_of_machine(
        &self,
        machine: MachinePublic,
    ) -> impl Iterator<Item = &NodeRecord> {
        let ids = of_first(&self.by_machine, machine);
        ids.into_iter().filter_map(|id| self.node(id))
    }

    pub(crate) fn nodes_of_user(&self, user: UserId) -> Vec<NodeId> {
        of_first(&self.by_user, user)
    }

    pub(crate) fn nodes_named(&self, label: &str) -> Vec<&NodeRecord> {
        let ids = of_first(&self.by_name, label.to_owned());
        ids.into_iter().filter_map(|id| self.node(id)).collect()
    }

    pub(crate) fn node_with_address(&self, address: IpAddr) -> Option<&NodeRecord> {
        let node = self.node(*self.by_address.get(&AddressIndex::of(address)?)?)?;
        let own = [
            IpAddr::from(node.address.v4()),
            IpAddr::from(node.address.v6()),
        ];
        own.contains(&address).then_some(node)
    }

    pub(crate) fn has_address(&self, address: AddressIndex) -> bool {
        self.by_address.get(&address).is_some()
    }

    /// Nodes whose keys expire after `from`, up to and at `to`.
    pub(crate) fn expiring(&self, from: Timestamp, to: Timestamp) -> Vec<NodeId> {
        let start = (from, NodeId(i64::MAX));
        let range = self.by_expiry.range_from(&start);
        range
            .take_while(|((at, _), ())| *at <= to)
            .map(|((_, id), ())| *id)
            .collect()
    }

    /// The next expiry after `time`.
    pub(crate) fn next_expiry(&self, time: Timestamp) -> Option<Timestamp> {
        let start = (time, NodeId(i64::MAX));
        let mut range = self.by_expiry.range_from(&start);
        range.next().map(|((at, _), ())| *at)
    }

    /// Puts in a node as it now is; returns it as it was.
    pub(crate) fn put_node(&mut self, new: NodeRecord, time: Timestamp) -> Option<Arc<NodeEntry>> {
        let id = new.id;
        let old = self.nodes.get(&id).cloned();
        if let Some(old) = &old {
            self.unindex(&old.record);
        }
        self.by_key.insert(new.key, id);
        self.by_machine.insert((new.machine, id), ());
        self.by_name.insert((new.name.clone(), id), ());
        self.by_address.insert(new.address, id);
        if let Some(user) = new.user {
            self.by_user.insert((user, id), ());
        }
        if let Some(expiry) = new.key_expiry {
            self.by_expiry.insert((expiry, id), ());
        }
        let mut state = old
            .as_ref()
            .map(|old| old.state.clone())
            .unwrap_or_default();
        state.expired = new.is_expired(time);
        self.put_entry(Arc::new(new), state);
        old
    }

    fn unindex(&mut self, old: &NodeRecord) {
        let id = old.id;
        if self.by_key.get(&old.key) == Some(&id) {
            self.by_key.remove(&old.key);
        }
        if self.by_address.get(&old.address) == Some(&id) {
            self.by_address.remove(&old.address);
        }
        self.by_machine.remove(&(old.machine, id));
        self.by_name.remove(&(old.name.clone(), id));
        if let Some(user) = old.user {
            self.by_user.remove(&(user, id));
        }
        if let Some(expiry) = old.key_expiry {
            self.by_expiry.remove(&(expiry, id));
        }
    }

    pub(crate) fn remove_node(&mut self, id: NodeId) -> Option<Arc<NodeEntry>> {
        let old = self.nodes.remove(&id)?;
        self.unindex(&old.record);
        Some(old)
    }

    /// Changes what the record does not say; whether that is a change.
    pub(crate) fn set_state(&mut self, id: NodeId, change: impl FnOnce(&mut NodeState)) -> bool {
        let Some(entry) = self.nodes.get(&id) else {
            return false;
        };
        let mut state = entry.state.clone();
        change(&mut state);
        if state == entry.state {
            return false;
        }
        self.put_entry(entry.record.clone(), state);
        true
    }

    fn put_entry(&mut self, record: Arc<NodeRecord>, state: NodeState) {
        self.revision += 1;
        let id = record.id;
        let entry = NodeEntry::new(record, state, self.revision);
        self.nodes.insert(id, Arc::new(entry));
    }

    /// The number of the last change of a node; it only grows.
    pub(crate) fn revision(&self) -> u64 {
        self.revision
    }

    // Users.

    pub(crate) fn user(&self, id: UserId) -> Option<&UserRecord> {
        self.users.get(&id).map(AsRef::as_ref)
    }

    pub(crate) fn users(&self) -> impl Iterator<Item = &UserRecord> {
        self.users.values().map(AsRef::as_ref)
    }

    pub(crate) fn users_named<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a UserRecord> {
        self.users()
            .filter(move |user| user.name.eq_ignore_ascii_case(name))
    }

    /// The user who logs in with this account.
    pub(crate) fn user_of_account(&self, issuer: &str, subject: &str) -> Option<&UserRecord> {
        self.users().find(|user| {
            let account = user.account.as_ref();
            account.is_some_and(|own| own.issuer == issuer && own.subject == subject)
        })
    }

    pub(crate) fn put_user(&mut self, new: UserRecord) -> Option<Arc<UserRecord>> {
        self.users.insert(new.id, Arc::new(new))
    }

    pub(crate) fn remove_user(&mut self, id: UserId) -> Option<Arc<UserRecord>> {
        self.users.remove(&id)
    }

    // Keys, policies, numbers.

    pub(crate) fn auth_key(&self, id: AuthKeyId) -> Option<&AuthKeyRecord> {
        self.auth_keys.get(&id).map(AsRef::as_ref)
    }

    pub(crate) fn auth_keys(&self) -> impl Iterator<Item = &AuthKeyRecord> {
        self.auth_keys.values().map(AsRef::as_ref)
    }

    pub(crate) fn put_auth_key(&mut self, new: AuthKeyRecord) {
        self.auth_keys.insert(new.id, Arc::new(new));
    }

    pub(crate) fn remove_auth_key(&mut self, id: AuthKeyId) {
        self.auth_keys.remove(&id);
    }

    pub(crate) fn policy(&self) -> Option<&str> {
        self.policy.as_deref()
    }

    pub(crate) fn set_policy(&mut self, text: Option<String>) {
        self.policy = text.map(Into::into);
    }

    pub(crate) fn policy_versions(&self) -> impl DoubleEndedIterator<Item = &PolicyVersion> {
        self.policies.values().map(AsRef::as_ref)
    }

    pub(crate) fn policy_version(&self, version: i64) -> Option<&PolicyVersion> {
        self.policies.get(&version).map(AsRef::as_ref)
    }

    pub(crate) fn put_policy_version(&mut self, new: PolicyVersion) {
        self.policies.insert(new.version, Arc::new(new));
    }

    pub(crate) fn remove_policy_version(&mut self, version: i64) {
        self.policies.remove(&version);
    }

    pub(crate) fn counters(&self) -> Counters {
        self.counters
    }

    pub(crate) fn set_counters(&mut self, counters: Counters) {
        self.counters = counters;
    }
}

/// The nodes of an index under `first`.
fn of_first<A: Ord + Clone>(index: &Table<(A, NodeId), ()>, first: A) -> Vec<NodeId> {
    let start = (first, FIRST);
    let range = index.range_from(&start);
    range
        .take_while(|((other, _), ())| *other == start.0)
        .map(|((_, id), ())| *id)
        .collect()
}

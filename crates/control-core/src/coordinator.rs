//! The state itself, and how a change finds those it concerns.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use jiff::{SignedDuration, Timestamp};
use warren_control_types::{DerpMap, MapRequest, NodeId, UserId};
use warren_keys::{Entropy, MachinePublic, NodePublic};
use warren_policy::Impact;

use crate::access::{Access, Concern};
use crate::error::MapError;
use crate::policies::PolicyFile;
use crate::records::{AuthKeyId, AuthKeyRecord, Change, NodeRecord, Snapshot, UserRecord};
use crate::register::{PendingId, Pendings};
use crate::routes::Primaries;
use crate::session::{PatchFields, PeerMark, Session, SessionId};
use crate::ssh_checks::SshChecks;

/// What the administrator decides at start.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where nodes reach this server; addresses for people are built from it.
    /// No slash at the end.
    pub server_url: String,
    /// The MagicDNS zone without a dot at the end; also the tailnet's name.
    pub base_domain: String,
    /// Relays told to the nodes.
    pub derp_map: DerpMap,
    /// How long an ephemeral node may be away before it is deleted.
    pub ephemeral_timeout: Duration,
    /// How long a stream may be down before the peers hear of it, so that a
    /// reconnect goes unnoticed.
    pub offline_grace: Duration,
    /// How long the key of a node that belongs to a user works. `None`: for ever.
    pub key_lifetime: Option<Duration>,
}

impl Config {
    /// The defaults for a server at `server_url` with these relays.
    pub fn new(server_url: impl Into<String>, derp_map: DerpMap) -> Self {
        let server_url: String = server_url.into();
        Self {
            server_url: server_url.trim_end_matches('/').to_owned(),
            base_domain: "warren.internal".to_owned(),
            derp_map,
            ephemeral_timeout: Duration::from_secs(120),
            offline_grace: Duration::from_secs(10),
            key_lifetime: Some(Duration::from_secs(180 * 24 * 3600)),
        }
    }
}

/// What may differ in how a node is shown to its peers: the routes that a peer
/// is given, and whether it is shown no IPv4 address.
pub(crate) type PeerView = (Vec<IpNet>, bool);

/// Something an administrator would like to see pass by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// A node joined for the first time.
    Joined(NodeId),
    /// A known node got a new key.
    KeyRenewed(NodeId),
    /// A node logged out; its record stays, expired.
    LoggedOut(NodeId, String),
    /// A node's record is gone: deleted, or ephemeral and away.
    Left(NodeId, String),
    /// A machine waits for approval.
    Waiting(PendingId, String),
    /// A session over SSH waits for a check.
    SshCheck {
        /// What to approve.
        id: PendingId,
        /// Where it comes from.
        source: NodeId,
        /// Where it would run.
        destination: NodeId,
        /// As whom.
        local_user: String,
    },
    /// A node was announced online.
    Online(NodeId),
    /// A node was announced offline.
    Offline(NodeId),
}

/// What the coordinator wants done.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// Store this row. `durable`: before anybody is answered.
    Store {
        /// The row.
        change: Change,
        /// Whether losing it would break a promise (keys, registrations).
        durable: bool,
    },
    /// The session has something to say.
    Wake(SessionId),
    /// End the stream.
    End(SessionId),
    /// Ask again what became of the parked questions with this id.
    Decided(PendingId),
    /// Tell the administrator.
    Notice(Notice),
}

/// The coordinator. See the crate's documentation for its life.
pub struct Coordinator {
    pub(crate) config: Config,
    pub(crate) data: Snapshot,
    pub(crate) access: Access,
    pub(crate) policy_file: Option<PolicyFile>,
    pub(crate) by_key: BTreeMap<NodePublic, NodeId>,
    pub(crate) pendings: Pendings,
    pub(crate) ssh_checks: SshChecks,
    pub(crate) sessions: BTreeMap<SessionId, Session>,
    pub(crate) session_of: BTreeMap<NodeId, SessionId>,
    /// Nodes that peers are told to be online.
    pub(crate) online: BTreeSet<NodeId>,
    /// When a node without a stream is announced offline.
    pub(crate) offline_at: BTreeMap<NodeId, Instant>,
    /// When an ephemeral node without a stream is deleted.
    pub(crate) delete_at: BTreeMap<NodeId, Instant>,
    /// Nodes whose peers were told that their key has expired.
    pub(crate) told_expired: BTreeSet<NodeId>,
    pub(crate) primaries: Primaries,
    /// Nodes as their peers see them.
    pub(crate) peer_json: BTreeMap<NodeId, BTreeMap<PeerView, Arc<str>>>,
    pub(crate) entropy: Box<dyn Entropy>,
    pub(crate) outputs: VecDeque<Output>,
    next_session: u64,
}

impl Coordinator {
    /// Takes up the state that was stored.
    ///
    /// Nobody is online yet; ephemeral nodes get their full time to return.
    ///
    /// # Errors
    /// The stored policy no longer parses: its diagnostics.
    pub fn new(
        now: Instant,
        wall: Duration,
        config: Config,
        data: Snapshot,
        entropy: Box<dyn Entropy>,
    ) -> Result<Self, String> {
        let access = match &data.policy {
            None => Access::allow_all(),
            Some(text) => Access::parse(text)?,
        };
        let by_key = data
            .nodes
            .values()
            .map(|node| (node.key, node.id))
            .collect();
        let delete_at = data
            .nodes
            .values()
            .filter(|node| node.ephemeral)
            .map(|node| (node.id, now + config.ephemeral_timeout))
            .collect();
        let mut this = Self {
            config,
            data,
            access,
            policy_file: None,
            by_key,
            pendings: Pendings::default(),
            ssh_checks: SshChecks::default(),
            sessions: BTreeMap::new(),
            session_of: BTreeMap::new(),
            online: BTreeSet::new(),
            offline_at: BTreeMap::new(),
            delete_at,
            told_expired: BTreeSet::new(),
            primaries: Primaries::default(),
            peer_json: BTreeMap::new(),
            entropy,
            outputs: VecDeque::new(),
            next_session: 1,
        };
        let wall = timestamp(wall);
        this.told_expired = this
            .data
            .nodes
            .values()
            .filter(|node| node.is_expired(wall))
            .map(|n| n.id)
            .collect();
        this.access.recompute(&this.data);
        this.primaries.recompute(&this.data.nodes, &this.online);
        Ok(this)
    }

    /// What the administrator decided at start.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Everything that is remembered.
    pub fn snapshot(&self) -> &Snapshot {
        &self.data
    }

    /// The node with this id.
    pub fn node(&self, id: NodeId) -> Option<&NodeRecord> {
        self.data.nodes.get(&id)
    }

    /// The node that has this key.
    pub fn node_by_key(&self, key: &NodePublic) -> Option<&NodeRecord> {
        self.by_key.get(key).and_then(|id| self.data.nodes.get(id))
    }

    /// Whether a relay may serve whoever holds this key: a node of this network
    /// whose key still works.
    pub fn admits(&self, wall: Duration, key: &NodePublic) -> bool {
        self.node_by_key(key)
            .is_some_and(|node| !node.is_expired(timestamp(wall)))
    }

    /// Whether peers are told that the node is online.
    pub fn is_online(&self, id: NodeId) -> bool {
        self.online.contains(&id)
    }

    /// The next thing to do, in order.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Replaces the relays told to the nodes, for instance when the embedded
    /// relay found out its port.
    pub fn set_derp_map(&mut self, derp_map: DerpMap) {
        if self.config.derp_map == derp_map {
            return;
        }
        self.config.derp_map = derp_map;
        let all: Vec<_> = self.sessions.keys().copied().collect();
        for id in all {
            self.mark(id, |pending| pending.relays = true);
        }
    }

    /// Opens the map stream of a node. It replaces an older stream of the same
    /// node. The first message is ready to be taken at once.
    ///
    /// Of the request only what is there is taken over: a fresh client may have
    /// neither a disco key nor endpoints yet.
    ///
    /// # Errors
    /// See [`MapError`]; nothing was changed.
    pub fn open_stream(
        &mut self,
        machine: MachinePublic,
        request: &MapRequest,
    ) -> Result<SessionId, MapError> {
        let id = self.authorize(machine, request)?;
        if let Some(old) = self.session_of.remove(&id) {
            self.sessions.remove(&old);
            self.outputs.push_back(Output::End(old));
        }
        let session = SessionId(self.next_session);
        self.next_session += 1;
        self.sessions.insert(session, Session::new(id));
        self.session_of.insert(id, session);
        self.offline_at.remove(&id);
        self.delete_at.remove(&id);
        self.apply_stream_request(id, request);
        if self.online.insert(id) {
            self.outputs.push_back(Output::Notice(Notice::Online(id)));
            self.announce(id, PeerMark::Patch(PatchFields::ONLINE));
            self.mark_own(id);
            self.presence_changed(id);
        }
        self.outputs.push_back(Output::Wake(session));
        Ok(session)
    }

    /// The stream ended, from whichever side. Peers hear of it after the grace
    /// time, unless the node is back by then.
    pub fn close_stream(&mut self, now: Instant, wall: Duration, session: SessionId) {
        let Some(closed) = self.sessions.remove(&session) else {
            return;
        };
        if self.session_of.get(&closed.node) != Some(&session) {
            return;
        }
        self.session_of.remove(&closed.node);
        self.offline_at
            .insert(closed.node, now + self.config.offline_grace);
        let Some(node) = self.data.nodes.get_mut(&closed.node) else {
            return;
        };
        node.last_seen = Some(timestamp(wall));
        let (id, ephemeral, change) = (
            node.id,
            node.ephemeral,
            Change::Node(Box::new(node.clone())),
        );
        self.peer_json.remove(&id);
        self.outputs.push_back(Output::Store {
            change,
            durable: false,
        });
        if ephemeral {
            self.delete_at
                .insert(id, now + self.config.ephemeral_timeout);
        }
    }

    /// Checks that the machine at the other end of the channel owns the node
    /// key in the request, and that the client is not too old.
    pub(crate) fn authorize(
        &self,
        machine: MachinePublic,
        request: &MapRequest,
    ) -> Result<NodeId, MapError> {
        let have = request.version.0;
        if have < crate::MIN_CAPABILITY {
            return Err(MapError::TooOld {
                have,
                need: crate::MIN_CAPABILITY,
            });
        }
        match self.node_by_key(&request.node_key) {
            Some(node) if node.machine == machine => Ok(node.id),
            Some(_) | None => Err(MapError::NotFound),
        }
    }

    /// Marks `id` in every session that was told of it. Those who have yet to
    /// be told know already that they have.
    pub(crate) fn announce(&mut self, id: NodeId, mark: PeerMark) {
        self.announce_to(id, mark, |_| false);
    }

    /// The same, and in the sessions of other nodes.
    fn announce_to(&mut self, id: NodeId, mark: PeerMark, also: impl Fn(NodeId) -> bool) {
        self.peer_json.remove(&id);
        for (&session_id, session) in &mut self.sessions {
            if session.node == id {
                continue;
            }
            let told = session.told.as_ref();
            if told.is_none_or(|told| told.peers.contains(id)) || also(session.node) {
                session.pending.mark_peer(id, mark);
                self.outputs.push_back(Output::Wake(session_id));
            }
        }
    }

    /// Marks a node's own section in its session.
    pub(crate) fn mark_own(&mut self, id: NodeId) {
        if let Some(&session) = self.session_of.get(&id) {
            self.mark(session, |pending| pending.own_node = true);
        }
    }

    /// Marks what a change of users or of the policy may have altered.
    pub(crate) fn mark_concern(&mut self, concern: &Concern) {
        let access = match &concern.access {
            None => {
                let all: Vec<_> = self.sessions.keys().copied().collect();
                for id in all {
                    self.mark(id, |pending| {
                        pending.view = true;
                        pending.filter = true;
                    });
                }
                &Impact::default()
            }
            Some(affected) => affected,
        };
        for (nodes, filter) in [(&access.filters, true), (&access.views, false)] {
            for node in nodes.iter() {
                let Some(&session) = self.session_of.get(&node) else {
                    continue;
                };
                self.mark(session, |pending| {
                    pending.filter |= filter;
                    pending.view |= !filter;
                });
            }
        }
        if concern.ssh {
            self.review_ssh_checks();
        }
        if concern.ssh || concern.own_nodes {
            let all: Vec<_> = self.sessions.keys().copied().collect();
            for id in all {
                self.mark(id, |pending| {
                    pending.ssh |= concern.ssh;
                    pending.own_node |= concern.own_nodes;
                    // A node may have lost its IPv4 address in others' eyes.
                    pending.view |= concern.own_nodes;
                });
            }
        }
    }

    pub(crate) fn mark(
        &mut self,
        id: SessionId,
        change: impl FnOnce(&mut crate::session::Pending),
    ) {
        if let Some(session) = self.sessions.get_mut(&id) {
            change(&mut session.pending);
            self.outputs.push_back(Output::Wake(id));
        }
    }

    /// A node came, went, or got another owner, other tags or other routes:
    /// the policy makes something else of it.
    pub(crate) fn identity_changed(&mut self, id: NodeId) {
        let concern = self.access.node_changed(&self.data, id);
        let peers = self.access.peers_of(id);
        self.announce_to(id, PeerMark::Whole, |viewer| {
            peers.as_ref().is_none_or(|peers| peers.contains(viewer))
        });
        self.mark_concern(&concern);
        if let Some(&session) = self.session_of.get(&id) {
            self.mark(session, |pending| {
                pending.own_node = true;
                pending.view = true;
                pending.filter = true;
                pending.ssh = true;
            });
        }
    }

    /// Users came, went or have other names.
    pub(crate) fn users_changed(&mut self) {
        let concern = self.access.users_changed(&self.data);
        self.mark_concern(&concern);
    }

    /// A node came online or went offline: others may serve its routes now.
    pub(crate) fn presence_changed(&mut self, id: NodeId) {
        let concern = self.access.presence_changed(id);
        self.mark_concern(&concern);
        self.routers_changed();
    }

    /// Who serves which route may have changed.
    pub(crate) fn routers_changed(&mut self) {
        for id in self.primaries.recompute(&self.data.nodes, &self.online) {
            self.announce(id, PeerMark::Whole);
            self.mark_own(id);
        }
    }

    /// Stores the node as it is.
    pub(crate) fn store_node(&mut self, id: NodeId, durable: bool) {
        if let Some(node) = self.data.nodes.get(&id) {
            let change = Change::Node(Box::new(node.clone()));
            self.outputs.push_back(Output::Store { change, durable });
        }
    }

    pub(crate) fn store_user(&mut self, user: &UserRecord) {
        let change = Change::User(user.clone());
        self.outputs.push_back(Output::Store {
            change,
            durable: true,
        });
    }

    pub(crate) fn store_auth_key(&mut self, key: &AuthKeyRecord) {
        let change = Change::AuthKey(key.clone());
        self.outputs.push_back(Output::Store {
            change,
            durable: true,
        });
    }

    pub(crate) fn store_counters(&mut self) {
        let change = Change::Counters(self.data.counters);
        self.outputs.push_back(Output::Store {
            change,
            durable: true,
        });
    }

    /// Takes a node out of everything.
    pub(crate) fn remove_node(&mut self, id: NodeId) {
        let Some(node) = self.data.nodes.remove(&id) else {
            return;
        };
        if self.by_key.get(&node.key) == Some(&id) {
            self.by_key.remove(&node.key);
        }
        if let Some(session) = self.session_of.remove(&id) {
            self.sessions.remove(&session);
            self.outputs.push_back(Output::End(session));
        }
        self.online.remove(&id);
        self.offline_at.remove(&id);
        self.delete_at.remove(&id);
        self.told_expired.remove(&id);
        self.outputs.push_back(Output::Store {
            change: Change::NodeGone(id),
            durable: true,
        });
        self.outputs
            .push_back(Output::Notice(Notice::Left(id, node.name)));
        self.identity_changed(id);
        self.routers_changed();
    }

    pub(crate) fn take_user_id(&mut self) -> UserId {
        let id = UserId(self.data.counters.user);
        self.data.counters.user += 1;
        self.store_counters();
        id
    }

    pub(crate) fn take_node_id(&mut self) -> NodeId {
        let id = NodeId(self.data.counters.node);
        self.data.counters.node += 1;
        self.store_counters();
        id
    }

    pub(crate) fn take_auth_key_id(&mut self) -> AuthKeyId {
        let id = AuthKeyId(self.data.counters.auth_key);
        self.data.counters.auth_key += 1;
        self.store_counters();
        id
    }
}

impl std::fmt::Debug for Coordinator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Coordinator")
            .field("users", &self.data.users.len())
            .field("nodes", &self.data.nodes.len())
            .field("sessions", &self.sessions.len())
            .finish_non_exhaustive()
    }
}

/// The calendar moment of a wall clock reading. A reading beyond the year 9999
/// is held at the end of the calendar.
pub(crate) fn timestamp(wall: Duration) -> Timestamp {
    SignedDuration::try_from(wall)
        .ok()
        .and_then(|since| Timestamp::from_duration(since).ok())
        .unwrap_or(Timestamp::MAX)
}

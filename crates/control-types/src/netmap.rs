//! The network map as a state: the sum of the messages of a map stream.
//!
//! A stream starts from nothing. Its first message must carry the node itself
//! and is complete; each later one changes parts. [`Netmap::apply`] takes them
//! one by one and says what became different, so that an engine can act on
//! just that. When a connection is lost the map stays valid: call
//! [`Netmap::begin_stream`], and the first message of the next stream is
//! compared against it.
//!
//! The map can be written to disk and read back. It never looks at a clock and
//! draws no conclusions: expiry of keys, tailnet lock and the packet filter's
//! meaning are the business of other crates.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::{
    ClientVersion, ControlDialPlan, Debug, DerpMap, DisplayMessage, DnsConfig, FilterRule,
    MapResponse, Node, NodeId, PingRequest, SshPolicy, TkaInfo, UserId, UserProfile,
};

/// Name of the filter in the field `PacketFilter`.
const BASE_FILTER: &str = "base";
/// The name that, with `null`, deletes all names.
const ALL_NAMES: &str = "*";

/// Everything a node knows about its network.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Netmap {
    /// The node itself; `None` before the first message.
    pub self_node: Option<Node>,
    /// The other nodes that it may see.
    pub peers: BTreeMap<NodeId, Node>,
    /// The relays.
    pub derp_map: DerpMap,
    /// How names are resolved.
    pub dns_config: DnsConfig,
    /// Packet filters by name; all of them apply together. Empty blocks all.
    pub filters: BTreeMap<String, Vec<FilterRule>>,
    /// Users that peers belong to.
    pub user_profiles: BTreeMap<UserId, UserProfile>,
    /// Name of the network.
    pub domain: String,
    /// Whether to report ports that listen.
    pub collect_services: Option<bool>,
    /// Complaints of the server.
    pub health: Vec<String>,
    /// Messages to show, by id; if there are any, they take the place of
    /// `health`.
    pub display_messages: BTreeMap<String, DisplayMessage>,
    /// The rules for logins over SSH.
    pub ssh_policy: Option<SshPolicy>,
    /// State of tailnet lock; `None` is off.
    pub tka_info: Option<TkaInfo>,
    /// For audit logs.
    pub domain_data_plane_audit_log_id: String,
    /// The next message starts a new stream.
    #[serde(skip)]
    fresh_stream: bool,
}

/// A message cannot be applied; the map is as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// The first message of a stream says nothing about the node itself.
    #[error(
        "the first message of the map stream lacks the node itself; \
         the server is at fault, connect again"
    )]
    NoSelfNode,
}

/// The effect of one message.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Applied {
    /// The parts of the map that are different now.
    pub changes: Changes,
    /// The parts of the message that are not part of the map.
    pub notices: Notices,
}

/// Parts of the map that are different from before.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Changes {
    /// The node itself.
    pub self_node: bool,
    /// Peers, with what they were before.
    pub peers: BTreeMap<NodeId, PeerDelta>,
    /// The relay map.
    pub derp_map: bool,
    /// Name resolution.
    pub dns_config: bool,
    /// Packet filters.
    pub filters: bool,
    /// User profiles.
    pub user_profiles: bool,
    /// Name of the network.
    pub domain: bool,
    /// Whether to report ports.
    pub collect_services: bool,
    /// `health` or `display_messages`.
    pub messages: bool,
    /// SSH rules.
    pub ssh_policy: bool,
    /// Tailnet lock.
    pub tka_info: bool,
    /// Audit log id.
    pub domain_data_plane_audit_log_id: bool,
}

/// The change of a peer. Its present state is in [`Netmap::peers`].
#[derive(Clone, Debug, PartialEq)]
pub enum PeerDelta {
    /// It was not there before.
    Added,
    /// It was like this before.
    Changed(Box<Node>),
    /// It is gone; this was its last state.
    Removed(Box<Node>),
}

impl PeerDelta {
    /// From a peer before and after; `None` if nothing happened.
    fn between(before: Option<Node>, after: Option<&Node>) -> Option<Self> {
        match (before, after) {
            (None, None) => None,
            (None, Some(_)) => Some(Self::Added),
            (Some(before), None) => Some(Self::Removed(Box::new(before))),
            (Some(before), Some(after)) if before == *after => None,
            (Some(before), Some(_)) => Some(Self::Changed(Box::new(before))),
        }
    }
}

impl Changes {
    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The parts that are different in `after`.
    pub fn between(before: &Netmap, after: &Netmap) -> Self {
        let ids = before.peers.keys().chain(after.peers.keys());
        let peers = ids.filter_map(|id| {
            let delta = PeerDelta::between(before.peers.get(id).cloned(), after.peers.get(id))?;
            Some((*id, delta))
        });
        Self {
            peers: peers.collect(),
            self_node: before.self_node != after.self_node,
            derp_map: before.derp_map != after.derp_map,
            dns_config: before.dns_config != after.dns_config,
            filters: before.filters != after.filters,
            user_profiles: before.user_profiles != after.user_profiles,
            domain: before.domain != after.domain,
            collect_services: before.collect_services != after.collect_services,
            messages: before.health != after.health
                || before.display_messages != after.display_messages,
            ssh_policy: before.ssh_policy != after.ssh_policy,
            tka_info: before.tka_info != after.tka_info,
            domain_data_plane_audit_log_id: before.domain_data_plane_audit_log_id
                != after.domain_data_plane_audit_log_id,
        }
    }
}

/// Parts of a message that are to be acted upon once.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Notices {
    /// Something to answer. A server may repeat one: compare its `url` with
    /// the last.
    pub ping_request: Option<PingRequest>,
    /// An address to show to the user; compare with the last.
    pub pop_browser_url: Option<String>,
    /// The server's clock.
    pub control_time: Option<Timestamp>,
    /// How to reach the server next time; outlives the stream.
    pub control_dial_plan: Option<ControlDialPlan>,
    /// The newest version of the software.
    pub client_version: Option<ClientVersion>,
    /// Instructions. Never carried out for a keepalive.
    pub debug: Option<Debug>,
    /// Older form of a node capability.
    pub default_auto_update: Option<bool>,
}

/// Stores `value`. Returns whether that changed anything.
fn set<T: PartialEq>(field: &mut T, value: Option<T>) -> bool {
    match value {
        Some(value) if *field != value => {
            *field = value;
            true
        }
        _ => false,
    }
}

/// Applies changes by name: `null` deletes one name or, at `*`, all of them
/// before anything else.
fn merge_named<T: PartialEq>(
    state: &mut BTreeMap<String, T>,
    mut changes: BTreeMap<String, Option<T>>,
) {
    if let Some(None) = changes.get(ALL_NAMES) {
        changes.remove(ALL_NAMES);
        state.clear();
    }
    for (name, value) in changes {
        match value {
            Some(value) => drop(state.insert(name, value)),
            None => drop(state.remove(&name)),
        }
    }
}

/// Peers that a message touches, as they were before it.
#[derive(Default)]
struct Touched(BTreeMap<NodeId, Option<Node>>);

impl Touched {
    fn note(&mut self, peers: &BTreeMap<NodeId, Node>, id: NodeId) {
        self.0.entry(id).or_insert_with(|| peers.get(&id).cloned());
    }
}

impl Netmap {
    /// From here on messages belong to a new stream. The map stays as it is
    /// until the first of them, which then replaces all of it.
    pub fn begin_stream(&mut self) {
        self.fresh_stream = true;
    }

    /// All rules of all filters.
    pub fn packet_filter(&self) -> impl Iterator<Item = &FilterRule> {
        self.filters.values().flatten()
    }

    /// The node or peer with this id.
    pub fn node(&self, id: NodeId) -> Option<&Node> {
        let itself = self.self_node.as_ref().filter(|node| node.id == id);
        itself.or_else(|| self.peers.get(&id))
    }

    /// Applies one message. `wall` is the time now, since the UNIX epoch.
    ///
    /// # Errors
    /// [`ApplyError`]; the map is then unchanged.
    pub fn apply(
        &mut self,
        mut message: MapResponse,
        wall: Duration,
    ) -> Result<Applied, ApplyError> {
        let keep_alive = message.keep_alive;
        let notices = Notices {
            ping_request: message.ping_request.take(),
            pop_browser_url: Some(std::mem::take(&mut message.pop_browser_url))
                .filter(|url| !url.is_empty()),
            control_time: message.control_time.take(),
            control_dial_plan: message.control_dial_plan.take(),
            client_version: message.client_version.take(),
            debug: message.debug.take().filter(|_| !keep_alive),
            default_auto_update: message.default_auto_update.take().filter(|_| !keep_alive),
        };
        if keep_alive {
            return Ok(Applied {
                changes: Changes::default(),
                notices,
            });
        }
        let first = self.fresh_stream || self.self_node.is_none();
        if first && message.node.is_none() {
            return Err(ApplyError::NoSelfNode);
        }
        let changes = if first {
            let mut next = Self::default();
            next.merge(message, wall);
            let changes = Changes::between(self, &next);
            *self = next;
            changes
        } else {
            self.merge(message, wall)
        };
        Ok(Applied { changes, notices })
    }

    fn merge(&mut self, message: MapResponse, wall: Duration) -> Changes {
        let mut changes = Changes::default();
        if let Some(mut node) = message.node {
            node.normalize();
            changes.self_node = set(&mut self.self_node, Some(Some(node)));
        }
        if let Some(update) = message.derp_map {
            let mut next = self.derp_map.clone();
            next.merge(update);
            changes.derp_map = set(&mut self.derp_map, Some(next));
        }
        changes.dns_config = set(&mut self.dns_config, message.dns_config);
        let domain = Some(message.domain).filter(|domain| !domain.is_empty());
        changes.domain = set(&mut self.domain, domain);
        let collect = message.collect_services;
        changes.collect_services = set(&mut self.collect_services, collect.map(Some));
        changes.ssh_policy = set(&mut self.ssh_policy, message.ssh_policy.map(Some));
        changes.tka_info = set(&mut self.tka_info, message.tka_info.map(Some));
        let log_id = message.domain_data_plane_audit_log_id;
        changes.domain_data_plane_audit_log_id = set(
            &mut self.domain_data_plane_audit_log_id,
            Some(log_id).filter(|id| !id.is_empty()),
        );

        for profile in message.user_profiles {
            let known = self.user_profiles.get(&profile.id);
            if known != Some(&profile) {
                self.user_profiles.insert(profile.id, profile);
                changes.user_profiles = true;
            }
        }

        changes.messages = set(&mut self.health, message.health);
        if !message.display_messages.is_empty() {
            let mut next = self.display_messages.clone();
            merge_named(&mut next, message.display_messages);
            changes.messages |= set(&mut self.display_messages, Some(next));
        }

        if message.packet_filter.is_some() || !message.packet_filters.is_empty() {
            let mut next = self.filters.clone();
            if let Some(rules) = message.packet_filter {
                next.insert(BASE_FILTER.to_owned(), rules);
            }
            merge_named(&mut next, message.packet_filters);
            changes.filters = set(&mut self.filters, Some(next));
        }

        let mut touched = Touched::default();
        match message.peers {
            Some(peers) if !peers.is_empty() => {
                // Beside a full list, other peer fields are ignored.
                let before = std::mem::take(&mut self.peers);
                touched.0 = before
                    .into_iter()
                    .map(|(id, node)| (id, Some(node)))
                    .collect();
                for peer in peers {
                    self.upsert(peer, &mut touched);
                }
            }
            _ => {
                for id in message.peers_removed {
                    touched.note(&self.peers, id);
                    self.peers.remove(&id);
                }
                for peer in message.peers_changed {
                    self.upsert(peer, &mut touched);
                }
                let now = SignedDuration::try_from(wall).ok();
                let now = now.and_then(|now| Timestamp::from_duration(now).ok());
                for (id, seen) in message.peer_seen_change {
                    self.patch(id, &mut touched, |peer| {
                        peer.last_seen = now.filter(|_| seen);
                    });
                }
                for (id, online) in message.online_change {
                    self.patch(id, &mut touched, |peer| peer.online = Some(online));
                }
                for patch in &message.peers_changed_patch {
                    self.patch(patch.node_id, &mut touched, |peer| peer.apply(patch));
                }
            }
        }
        for (id, before) in touched.0 {
            if let Some(delta) = PeerDelta::between(before, self.peers.get(&id)) {
                changes.peers.insert(id, delta);
            }
        }
        changes
    }

    fn upsert(&mut self, mut peer: Node, touched: &mut Touched) {
        peer.normalize();
        touched.note(&self.peers, peer.id);
        self.peers.insert(peer.id, peer);
    }

    fn patch(&mut self, id: NodeId, touched: &mut Touched, change: impl FnOnce(&mut Node)) {
        touched.note(&self.peers, id);
        if let Some(peer) = self.peers.get_mut(&id) {
            change(peer);
        }
    }
}

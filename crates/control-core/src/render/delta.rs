//! The parts of a map that changed since the last message of a session.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use warren_control_types::{
    CapabilityVersion, DnsConfig, FilterRule, MapResponse, NodeId, PeerChange, SshPolicy, UserId,
};
use warren_policy::NodeSet;

use super::{digest, filters};
use crate::clock::timestamp;
use crate::directory::NodeEntry;
use crate::map_sessions::{LastSent, PatchFields, PeerUpdate, PendingUpdate};
use crate::message::Message;
use crate::records::NodeRecord;
use crate::view::View;

/// The peers of a delta.
#[derive(Default)]
struct Peers {
    /// To be sent whole.
    whole: BTreeSet<NodeId>,
    patches: Vec<PeerChange>,
    removed: BTreeSet<NodeId>,
}

impl View {
    /// The message after which the client's map is the one of this view in all
    /// that was invalidated; `None` if it is already. `last` follows.
    pub(super) fn delta(
        &self,
        wall: Duration,
        id: NodeId,
        pending: PendingUpdate,
        last: &mut LastSent,
    ) -> Option<Message> {
        let mut head = MapResponse::default();
        if pending.own_node {
            let own = self.directory.entry(id);
            head.node = own.map(|node| self.render_own(node));
        }
        if pending.relays {
            head.derp_map = Some(self.access.relays(&self.config.derp_map).into());
        }
        if pending.lock {
            head.tka_info = self.directory.lock().info();
        }
        if pending.filter {
            head.packet_filters = self.filter_delta(id, last).map(filters).unwrap_or_default();
        }
        // A profile of NextDNS depends on the node itself.
        if pending.dns || pending.own_node || self.aliases_differ(&pending, last) {
            head.dns_config = self.dns_delta(id, last);
        }
        if pending.ssh {
            head.ssh_policy = self.ssh_delta(id, last);
        }
        let mut peers = Peers::default();
        if !self.takes_part(id) {
            // Users are renamed for nodes that take part only.
            let own = self.directory.node(id).map(NodeRecord::owner);
            last.users.retain(|user| Some(*user) == own);
        }
        if pending.view {
            self.view_delta(id, last, &mut peers);
        }
        self.peers_delta(id, &pending.peers, last, &mut peers);
        let own = pending.own_node.then_some(id);
        head.user_profiles = self
            .users_delta(&pending.users, peers.whole.iter().copied().chain(own), last)
            .into_iter()
            .map(|user| self.render_user(user))
            .collect();
        self.remember_variants(id, &peers, last);
        last.revision = self.directory.revision();
        head.peers_changed_patch = peers.patches;
        head.peers_removed = peers.removed.into_iter().collect();
        let peers_changed = self.peers_json(id, peers.whole.into_iter());
        if head == MapResponse::default() && peers_changed.is_empty() {
            return None;
        }
        head.control_time = Some(timestamp(wall));
        Some(Message {
            complete: false,
            head,
            peers: Vec::new(),
            peers_changed,
        })
    }

    fn filter_delta(&self, id: NodeId, last: &mut LastSent) -> Option<Vec<FilterRule>> {
        let filter = self.filter_of(id);
        let digest = digest(&filter);
        let differs = digest != last.filter;
        last.filter = digest;
        differs.then_some(filter)
    }

    /// Whether an alias may lead to other addresses for this node: other peers are seen, or
    /// one that an alias leads to, or led to, changed.
    fn aliases_differ(&self, pending: &PendingUpdate, last: &LastSent) -> bool {
        let whole = pending.peers.iter();
        let mut whole = whole.filter(|(_, update)| matches!(update, PeerUpdate::Whole));
        let has_aliases = || self.dns().alias_targets().next().is_some();
        pending.view && has_aliases()
            || whole.any(|(peer, _)| last.alias_nodes.contains(peer) || self.is_alias_target(*peer))
    }

    fn dns_delta(&self, id: NodeId, last: &mut LastSent) -> Option<DnsConfig> {
        let dns = self.render_dns(id);
        let digest = digest(&dns);
        let differs = digest != last.dns;
        last.dns = digest;
        last.alias_nodes = self.alias_nodes();
        differs.then_some(dns)
    }

    fn ssh_delta(&self, id: NodeId, last: &mut LastSent) -> Option<SshPolicy> {
        let ssh = self.ssh_of(id);
        let differs = ssh != last.ssh;
        last.ssh.clone_from(&ssh);
        differs.then_some(ssh)
    }

    /// Compares all visible peers, their routes and addresses with what was
    /// sent.
    fn view_delta(&self, id: NodeId, last: &mut LastSent, peers: &mut Peers) {
        let visible: NodeSet = self.visible_peers(id);
        peers.removed.extend(last.peers.difference(&visible));
        peers.whole.extend(visible.difference(&last.peers));
        // A peer that was hidden since the last message, and changed meanwhile,
        // was not invalidated for this session.
        let changed = visible.iter().filter(|peer| {
            let entry = self.directory.entry(*peer);
            entry.is_some_and(|entry| entry.revision > last.revision)
        });
        peers.whole.extend(changed);
        let routes = self.all_routes_seen(id, &visible);
        let either = routes.keys().chain(last.routes.keys());
        let differ = either.filter(|peer| routes.get(peer) != last.routes.get(peer));
        let differ = differ.filter(|peer| visible.contains(**peer));
        peers.whole.extend(differ);
        let without_ipv4 = self.all_without_ipv4(id);
        let fewer = without_ipv4.difference(&last.without_ipv4);
        let more = last.without_ipv4.difference(&without_ipv4);
        let differ = fewer.chain(more).filter(|peer| visible.contains(*peer));
        peers.whole.extend(differ);
        last.without_ipv4 = without_ipv4;
        last.peers = visible;
        last.routes = routes;
    }

    /// The peers that were invalidated one by one.
    fn peers_delta(
        &self,
        id: NodeId,
        pending: &BTreeMap<NodeId, PeerUpdate>,
        last: &mut LastSent,
        peers: &mut Peers,
    ) {
        for (&peer, update) in pending {
            let entry = self.directory.entry(peer);
            let entry = entry.filter(|_| peer != id && self.can_see(id, peer));
            match (entry, last.peers.contains(peer)) {
                (None, true) => {
                    last.peers.remove(peer);
                    peers.removed.insert(peer);
                }
                (None, false) => {}
                (Some(_), false) => {
                    last.peers.insert(peer);
                    peers.whole.insert(peer);
                }
                (Some(_), true) if peers.whole.contains(&peer) => {}
                (Some(entry), true) => match update {
                    PeerUpdate::Whole => {
                        peers.whole.insert(peer);
                    }
                    PeerUpdate::Patch(fields) => match patch(entry, *fields) {
                        Some(patch) => peers.patches.push(patch),
                        None => {
                            peers.whole.insert(peer);
                        }
                    },
                },
            }
        }
    }

    /// The users whose profiles have to be sent: renamed ones, and owners of
    /// nodes that are sent.
    fn users_delta(
        &self,
        renamed: &BTreeSet<UserId>,
        nodes: impl Iterator<Item = NodeId>,
        last: &mut LastSent,
    ) -> BTreeSet<UserId> {
        let mut users: BTreeSet<UserId> = renamed.intersection(&last.users).copied().collect();
        let owners: BTreeSet<UserId> = nodes
            .filter_map(|node| self.directory.node(node))
            .map(NodeRecord::owner)
            .collect();
        users.extend(owners.difference(&last.users));
        last.users.extend(&users);
        users
    }

    /// Remembers the routes and addresses of the peers that are sent.
    fn remember_variants(&self, id: NodeId, peers: &Peers, last: &mut LastSent) {
        for &peer in peers.whole.iter().chain(&peers.removed) {
            let entry = self.directory.entry(peer);
            let entry = entry.filter(|_| peers.whole.contains(&peer));
            let routes = entry.map(|entry| self.routes_seen(id, entry));
            let routes = routes.unwrap_or_default();
            if entry.is_some_and(|entry| self.is_without_ipv4(id, &entry.record)) {
                last.without_ipv4.insert(peer);
            } else {
                last.without_ipv4.remove(peer);
            }
            if routes.is_empty() {
                last.routes.remove(&peer);
            } else {
                last.routes.insert(peer, routes);
            }
        }
    }
}

/// The fields as a patch; `None` where a patch cannot express them.
fn patch(entry: &NodeEntry, fields: PatchFields) -> Option<PeerChange> {
    if entry.state.expired {
        return None;
    }
    let node = &entry.record;
    let mut patch = PeerChange {
        node_id: node.id,
        ..Default::default()
    };
    if fields.has(PatchFields::ONLINE) {
        let online = entry.state.online;
        patch.online = Some(online);
        patch.last_seen = node.last_seen.filter(|_| !online).map(Some);
    }
    if fields.has(PatchFields::ENDPOINTS) {
        patch.endpoints = Some(node.endpoints.clone());
    }
    if fields.has(PatchFields::DISCO) {
        patch.disco_key = Some(node.disco?);
    }
    if fields.has(PatchFields::RELAY) {
        patch.derp_region = Some(node.home_relay?);
    }
    if fields.has(PatchFields::KEY) {
        patch.key = Some(node.key);
        patch.key_signature = Some(node.key_signature.clone());
    }
    if fields.has(PatchFields::CAPABILITY) {
        patch.cap = Some(CapabilityVersion(node.capability));
    }
    Some(patch)
}

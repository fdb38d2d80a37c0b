//! What a node is told: the whole of it, or what changed.
//!
//! Everything here reads the state and nothing else, so the same state gives
//! the same map. The one thing that is written is what a session was told.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use sha2::{Digest as _, Sha256};
use warren_control_types::{
    CapMap, CapabilityVersion, Debug, DnsConfig, FilterRule, Hostinfo, MapResponse, Node, NodeId,
    PeerChange, StableNodeId, UserId, UserProfile,
};
use warren_policy::NodeSet;

use crate::access::without_ipv4;
use crate::coordinator::{Coordinator, timestamp};
use crate::message::Message;
use crate::records::NodeRecord;
use crate::routes::{effective, is_exit};
use crate::session::{PatchFields, PeerMark, Pending, SessionId, Told};

/// The name of the one filter that is sent.
const FILTER: &str = "base";

impl Coordinator {
    /// The complete map of a node. `None` if there is no such node.
    pub fn render(&self, wall: Duration, id: NodeId) -> Option<MapResponse> {
        let mut response = self.render_head(wall, id)?;
        let peers: Vec<Node> = self
            .visible_peers(id)
            .into_iter()
            .filter_map(|peer| self.data.nodes.get(&peer))
            .map(|peer| {
                let routes = self.routes_seen(id, peer);
                self.render_peer(peer, &routes, self.is_without_ipv4(id, peer))
            })
            .collect();
        response.peers = (!peers.is_empty()).then_some(peers);
        Some(response)
    }

    /// The complete map of a node, with shared peers, ready to be written.
    pub fn full_message(&mut self, wall: Duration, id: NodeId) -> Option<Message> {
        let head = self.render_head(wall, id)?;
        let peers = self
            .visible_peers(id)
            .into_iter()
            .filter_map(|peer| self.peer_json(id, peer))
            .collect();
        Some(Message {
            head,
            peers,
            peers_changed: Vec::new(),
        })
    }

    /// What the session has to hear next; `None` if it knows everything, or is
    /// no longer open. The first message is the complete map.
    pub fn next_message(&mut self, wall: Duration, session: SessionId) -> Option<Message> {
        let news = self.next_news(wall, session);
        let entry = self.sessions.get_mut(&session)?;
        let Some(question) = entry.questions.pop_front() else {
            return news;
        };
        let mut message = news.unwrap_or_default();
        message.head.ping_request = Some(question);
        Some(message)
    }

    fn next_news(&mut self, wall: Duration, session: SessionId) -> Option<Message> {
        let entry = self.sessions.get_mut(&session)?;
        let id = entry.node;
        let pending = std::mem::take(&mut entry.pending);
        match entry.told.take() {
            None => {
                let message = self.full_message(wall, id)?;
                let peers: NodeSet = self.visible_peers(id).into_iter().collect();
                let told = Told {
                    routes: self.all_routes_seen(id, &peers),
                    peers,
                    users: message
                        .head
                        .user_profiles
                        .iter()
                        .map(|user| user.id)
                        .collect(),
                    filter: digest(&self.access.filter_for(id)),
                    ssh: message.head.ssh_policy.clone().unwrap_or_default(),
                    without_ipv4: self.all_without_ipv4(id),
                };
                self.sessions.get_mut(&session)?.told = Some(told);
                Some(message)
            }
            Some(mut told) => {
                let message = self.delta(wall, id, pending, &mut told);
                self.sessions.get_mut(&session)?.told = Some(told);
                message
            }
        }
    }

    fn delta(
        &mut self,
        wall: Duration,
        id: NodeId,
        pending: Pending,
        told: &mut Told,
    ) -> Option<Message> {
        let mut head = MapResponse::default();
        let mut changed: BTreeSet<NodeId> = BTreeSet::new();
        if pending.own_node {
            head.node = self.data.nodes.get(&id).map(|node| self.render_own(node));
        }
        if pending.relays {
            head.derp_map = Some(self.access.relays(&self.config.derp_map).into());
        }
        if pending.dns {
            head.dns_config = Some(self.render_dns());
        }
        if pending.filter {
            let filter = self.access.filter_for(id);
            let digest = digest(&filter);
            if digest != told.filter {
                head.packet_filters = filters(filter);
                told.filter = digest;
            }
        }
        if pending.ssh {
            let ssh = self.access.ssh_policy_for(id, &self.config.server_url);
            if ssh != told.ssh {
                head.ssh_policy = Some(ssh.clone());
                told.ssh = ssh;
            }
        }
        if pending.view {
            let visible: NodeSet = self.visible_peers(id).into_iter().collect();
            head.peers_removed.extend(told.peers.difference(&visible));
            changed.extend(visible.difference(&told.peers));
            let routes = self.all_routes_seen(id, &visible);
            let either = routes.keys().chain(told.routes.keys());
            let differ = either.filter(|peer| routes.get(peer) != told.routes.get(peer));
            changed.extend(differ.filter(|peer| visible.contains(**peer)));
            let without_ipv4 = self.all_without_ipv4(id);
            let fewer = without_ipv4.difference(&told.without_ipv4);
            let more = told.without_ipv4.difference(&without_ipv4);
            changed.extend(fewer.chain(more).filter(|peer| visible.contains(*peer)));
            told.without_ipv4 = without_ipv4;
            told.peers = visible;
            told.routes = routes;
        }
        for (peer, mark) in pending.peers {
            let visible =
                self.data.nodes.contains_key(&peer) && peer != id && self.access.can_see(id, peer);
            match (visible, told.peers.contains(peer)) {
                (false, true) => {
                    told.peers.remove(peer);
                    head.peers_removed.push(peer);
                }
                (false, false) => {}
                (true, false) => {
                    told.peers.insert(peer);
                    changed.insert(peer);
                }
                (true, true) if changed.contains(&peer) => {}
                (true, true) => match mark {
                    PeerMark::Whole => {
                        changed.insert(peer);
                    }
                    PeerMark::Patch(fields) => {
                        match self
                            .data
                            .nodes
                            .get(&peer)
                            .map(|n| self.render_patch(n, fields))
                        {
                            Some(Some(patch)) => head.peers_changed_patch.push(patch),
                            Some(None) => {
                                changed.insert(peer);
                            }
                            None => {}
                        }
                    }
                },
            }
        }
        head.peers_removed.sort_unstable();
        let mut users: BTreeSet<UserId> =
            pending.users.intersection(&told.users).copied().collect();
        let own = pending.own_node.then_some(id);
        let owners: BTreeSet<UserId> = changed
            .iter()
            .copied()
            .chain(own)
            .filter_map(|node| self.data.nodes.get(&node))
            .map(NodeRecord::owner)
            .collect();
        users.extend(owners.difference(&told.users));
        told.users.extend(&users);
        head.user_profiles = users
            .into_iter()
            .map(|user| self.render_user(user))
            .collect();
        for &peer in changed.iter().chain(&head.peers_removed) {
            let node = self.data.nodes.get(&peer);
            let node = node.filter(|_| changed.contains(&peer));
            let routes = node.map(|node| self.routes_seen(id, node));
            let routes = routes.unwrap_or_default();
            if node.is_some_and(|node| self.is_without_ipv4(id, node)) {
                told.without_ipv4.insert(peer);
            } else {
                told.without_ipv4.remove(peer);
            }
            if routes.is_empty() {
                told.routes.remove(&peer);
            } else {
                told.routes.insert(peer, routes);
            }
        }
        let peers_changed: Vec<Arc<str>> = changed
            .into_iter()
            .filter_map(|peer| self.peer_json(id, peer))
            .collect();
        if head == MapResponse::default() && peers_changed.is_empty() {
            return None;
        }
        head.control_time = Some(timestamp(wall));
        Some(Message {
            head,
            peers: Vec::new(),
            peers_changed,
        })
    }

    /// Everything of a complete map but the peers.
    fn render_head(&self, wall: Duration, id: NodeId) -> Option<MapResponse> {
        let node = self.data.nodes.get(&id)?;
        let mut users = BTreeSet::from([node.owner()]);
        users.extend(
            self.visible_peers(id)
                .iter()
                .filter_map(|peer| self.data.nodes.get(peer))
                .map(NodeRecord::owner),
        );
        Some(MapResponse {
            node: Some(self.render_own(node)),
            derp_map: Some(self.access.relays(&self.config.derp_map).into()),
            dns_config: Some(self.render_dns()),
            domain: self.config.base_domain.clone(),
            collect_services: Some(false),
            packet_filters: filters(self.access.filter_for(id)),
            ssh_policy: Some(self.access.ssh_policy_for(id, &self.config.server_url)),
            user_profiles: users
                .into_iter()
                .map(|user| self.render_user(user))
                .collect(),
            control_time: Some(timestamp(wall)),
            // Nodes of a private network have no business with a public log service.
            debug: Some(Debug {
                disable_log_tail: true,
                ..Default::default()
            }),
            ..Default::default()
        })
    }

    /// Ids of the peers that a node sees, ascending.
    fn visible_peers(&self, id: NodeId) -> Vec<NodeId> {
        match self.access.peers_of(id) {
            Some(peers) => peers.iter().collect(),
            None => {
                let all = self.data.nodes.keys().copied();
                all.filter(|peer| *peer != id).collect()
            }
        }
    }

    /// The routes behind `peer` that `viewer` is given.
    fn routes_seen(&self, viewer: NodeId, peer: &NodeRecord) -> Vec<IpNet> {
        // Most nodes route nothing.
        if peer.approved_routes.is_empty() {
            return Vec::new();
        }
        self.access
            .routes_for(viewer, peer, self.primaries.of(peer.id), &self.online)
    }

    fn all_routes_seen(&self, viewer: NodeId, peers: &NodeSet) -> BTreeMap<NodeId, Vec<IpNet>> {
        peers
            .iter()
            .filter_map(|id| self.data.nodes.get(&id))
            .map(|peer| (peer.id, self.routes_seen(viewer, peer)))
            .filter(|(_, routes)| !routes.is_empty())
            .collect()
    }

    /// Whether `viewer` is shown `peer` without its IPv4 address.
    fn is_without_ipv4(&self, viewer: NodeId, peer: &NodeRecord) -> bool {
        let viewer = self.data.nodes.get(&viewer);
        viewer.is_some_and(|viewer| self.access.is_without_ipv4(viewer))
            || self.access.is_without_ipv4(peer)
    }

    fn all_without_ipv4(&self, viewer: NodeId) -> NodeSet {
        if !self.access.may_disable_ipv4() {
            return NodeSet::new();
        }
        let viewer = self.data.nodes.get(&viewer);
        let all = viewer.is_some_and(|viewer| self.access.is_without_ipv4(viewer));
        let peers = self.data.nodes.values();
        peers
            .filter(|peer| all || self.access.is_without_ipv4(peer))
            .map(|peer| peer.id)
            .collect()
    }

    /// A peer's JSON, made once for all viewers that are given the same routes.
    fn peer_json(&mut self, viewer: NodeId, id: NodeId) -> Option<Arc<str>> {
        let node = self.data.nodes.get(&id)?;
        let view = (
            self.routes_seen(viewer, node),
            self.is_without_ipv4(viewer, node),
        );
        if let Some(json) = self.peer_json.get(&id).and_then(|made| made.get(&view)) {
            return Some(json.clone());
        }
        let (routes, only_v6) = &view;
        let json = serde_json::to_string(&self.render_peer(node, routes, *only_v6)).ok()?;
        let json: Arc<str> = json.into();
        let made = self.peer_json.entry(id).or_default();
        made.insert(view, json.clone());
        Some(json)
    }

    /// A node as a peer sees it that is given these routes, and no IPv4
    /// address with `only_v6`.
    fn render_peer(&self, node: &NodeRecord, routes: &[IpNet], only_v6: bool) -> Node {
        let expired = self.told_expired.contains(&node.id);
        let mut rendered = self.render_node(node, only_v6);
        rendered.cap_map = self.access.peer_attributes_of(node);
        rendered.primary_routes = routes.iter().filter(|r| !is_exit(r)).copied().collect();
        if let Some(allowed) = &mut rendered.allowed_ips {
            allowed.extend(routes);
        }
        rendered.hostinfo = Some(self.peer_hostinfo(&node.hostinfo));
        rendered.expired = expired;
        if expired {
            // Nobody is to send it anything; do not even tell where it is.
            rendered.endpoints.clear();
            rendered.home_derp = None;
        }
        rendered
    }

    /// A node as it sees itself.
    fn render_own(&self, node: &NodeRecord) -> Node {
        let mut rendered = self.render_node(node, self.access.is_without_ipv4(node));
        rendered.hostinfo = Some(node.hostinfo.clone());
        rendered.expired = self.told_expired.contains(&node.id);
        rendered.primary_routes = self.primaries.of(node.id);
        // All that is approved, whoever is the active router.
        if let Some(allowed) = &mut rendered.allowed_ips {
            allowed.extend(effective(node));
        }
        rendered.cap_map = own_capabilities();
        // A tagged node is nobody's.
        let user = node.user.filter(|_| node.tags.is_empty());
        if let Some(user) = user.and_then(|user| self.data.users.get(&user)) {
            for name in user.role.capabilities() {
                rendered.cap_map.insert((*name).to_owned(), Vec::new());
            }
        }
        rendered.cap_map.extend(self.access.attributes_of(node).0);
        rendered
    }

    /// What is the same for everybody; routes are not.
    fn render_node(&self, node: &NodeRecord, only_v6: bool) -> Node {
        let mut addresses = node.address.prefixes().to_vec();
        if only_v6 {
            without_ipv4(&mut addresses);
        }
        let online = self.online.contains(&node.id);
        Node {
            id: node.id,
            stable_id: StableNodeId(node.stable_id()),
            name: self.full_name(node),
            user: node.owner(),
            key: node.key,
            key_expiry: node.key_expiry,
            key_signature: node.key_signature.clone(),
            machine: Some(node.machine),
            disco_key: node.disco,
            allowed_ips: Some(addresses.clone()),
            addresses,
            endpoints: node.endpoints.clone(),
            home_derp: node.home_relay,
            created: Some(node.created),
            cap: Some(CapabilityVersion(node.capability)),
            tags: node.tags.iter().cloned().collect(),
            last_seen: node.last_seen.filter(|_| !online),
            online: Some(online),
            machine_authorized: true,
            ..Default::default()
        }
    }

    /// The fully qualified name, with the dot at the end.
    pub fn full_name(&self, node: &NodeRecord) -> String {
        format!("{}.{}.", node.name, self.config.base_domain)
    }

    /// What peers need of a host's description: its system, and where its
    /// services listen. The rest is between the node and this server.
    pub(crate) fn peer_hostinfo(&self, full: &Hostinfo) -> Hostinfo {
        Hostinfo {
            os: full.os.clone(),
            hostname: full.hostname.clone(),
            services: full.services.clone(),
            ssh_host_keys: full.ssh_host_keys.clone(),
            routable_ips: full.routable_ips.clone(),
            shields_up: full.shields_up,
            location: full.location.clone(),
            ..Default::default()
        }
    }

    /// The fields as a patch; `None` where a patch cannot say it.
    fn render_patch(&self, node: &NodeRecord, fields: PatchFields) -> Option<PeerChange> {
        if self.told_expired.contains(&node.id) {
            return None;
        }
        let mut patch = PeerChange {
            node_id: node.id,
            ..Default::default()
        };
        if fields.has(PatchFields::ONLINE) {
            let online = self.online.contains(&node.id);
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

    fn render_user(&self, id: UserId) -> UserProfile {
        let (name, _) = self.user_name(id);
        UserProfile {
            id,
            login_name: name.clone(),
            display_name: name,
            ..Default::default()
        }
    }

    /// MagicDNS for the tailnet's zone; everything else stays with the host.
    fn render_dns(&self) -> DnsConfig {
        DnsConfig {
            proxied: true,
            domains: vec![self.config.base_domain.clone()],
            // No resolver: the node answers for this zone itself, unknown names
            // in it included.
            routes: BTreeMap::from([(self.config.base_domain.clone(), Vec::new())]),
            ..Default::default()
        }
    }
}

fn filters(rules: Vec<FilterRule>) -> BTreeMap<String, Option<Vec<FilterRule>>> {
    BTreeMap::from([(FILTER.to_owned(), Some(rules))])
}

/// What tells a filter from others.
fn digest(rules: &[FilterRule]) -> [u8; 32] {
    let mut hasher = Hashed(Sha256::new());
    // Writing to a digest does not fail, nor do rules as JSON.
    let _ = serde_json::to_writer(&mut hasher, rules);
    hasher.0.finalize().into()
}

/// A digest to write to.
struct Hashed(Sha256);

impl std::io::Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// What a node may do by itself, policy apart: exchange files between the
/// machines of one owner, and never update itself behind the owner's back.
fn own_capabilities() -> CapMap {
    let mut capabilities: CapMap = ["https://tailscale.com/cap/file-sharing"]
        .into_iter()
        .collect();
    capabilities.insert(
        "default-auto-update".to_owned(),
        vec![serde_json::Value::Bool(false)],
    );
    capabilities
}

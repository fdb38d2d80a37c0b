//! What a node is told: the whole of it, or what changed.
//!
//! Everything here reads the state and nothing else, so the same state gives
//! the same map. The one thing that is written is what a session was told.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use warren_control_types::{
    CapMap, CapabilityVersion, Debug, DnsConfig, FilterRule, Hostinfo, MapResponse, Node, NodeId,
    PeerChange, StableNodeId, UserId, UserProfile,
};

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
            .filter_map(|peer| Some(self.render_peer(self.data.nodes.get(&peer)?)))
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
            .filter_map(|peer| self.peer_json(peer))
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
        let entry = self.sessions.get_mut(&session)?;
        let id = entry.node;
        let pending = std::mem::take(&mut entry.pending);
        match entry.told.take() {
            None => {
                let message = self.full_message(wall, id)?;
                let told = Told {
                    peers: self.visible_peers(id).into_iter().collect(),
                    users: message
                        .head
                        .user_profiles
                        .iter()
                        .map(|user| user.id)
                        .collect(),
                    filter: self.access.filter_for(id),
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
            head.derp_map = Some(self.config.derp_map.clone().into());
        }
        if pending.dns {
            head.dns_config = Some(self.render_dns());
        }
        if pending.access {
            let filter = self.access.filter_for(id);
            if filter != told.filter {
                head.packet_filters = filters(filter.clone());
                told.filter = filter;
            }
            let visible: BTreeSet<NodeId> = self.visible_peers(id).into_iter().collect();
            head.peers_removed.extend(told.peers.difference(&visible));
            changed.extend(visible.difference(&told.peers));
            told.peers = visible;
        }
        for (peer, mark) in pending.peers {
            let visible =
                self.data.nodes.contains_key(&peer) && peer != id && self.access.can_see(id, peer);
            match (visible, told.peers.contains(&peer)) {
                (false, true) => {
                    told.peers.remove(&peer);
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
        let peers_changed: Vec<Arc<str>> = changed
            .into_iter()
            .filter_map(|peer| self.peer_json(peer))
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
            derp_map: Some(self.config.derp_map.clone().into()),
            dns_config: Some(self.render_dns()),
            domain: self.config.base_domain.clone(),
            collect_services: Some(false),
            packet_filters: filters(self.access.filter_for(id)),
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
        self.data
            .nodes
            .keys()
            .copied()
            .filter(|peer| *peer != id && self.access.can_see(id, *peer))
            .collect()
    }

    fn peer_json(&mut self, id: NodeId) -> Option<Arc<str>> {
        if let Some(json) = self.peer_json.get(&id) {
            return Some(json.clone());
        }
        let node = self.data.nodes.get(&id)?;
        let json: Arc<str> = serde_json::to_string(&self.render_peer(node)).ok()?.into();
        self.peer_json.insert(id, json.clone());
        Some(json)
    }

    /// A node as its peers see it.
    fn render_peer(&self, node: &NodeRecord) -> Node {
        let expired = self.told_expired.contains(&node.id);
        let mut rendered = self.render_node(node);
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
        let mut rendered = self.render_node(node);
        rendered.hostinfo = Some(node.hostinfo.clone());
        rendered.expired = self.told_expired.contains(&node.id);
        rendered.cap_map = own_capabilities();
        rendered
    }

    fn render_node(&self, node: &NodeRecord) -> Node {
        let addresses = node.address.prefixes().to_vec();
        let primary_routes = self.primaries.of(node.id);
        let mut allowed_ips = addresses.clone();
        allowed_ips.extend(&primary_routes);
        allowed_ips.extend(effective(node).into_iter().filter(is_exit));
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
            addresses,
            allowed_ips: Some(allowed_ips),
            endpoints: node.endpoints.clone(),
            home_derp: node.home_relay,
            created: Some(node.created),
            cap: Some(CapabilityVersion(node.capability)),
            tags: node.tags.iter().cloned().collect(),
            primary_routes,
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

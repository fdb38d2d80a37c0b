//! The map of a node: complete, or what changed.
//!
//! Everything here is a function of a [`View`], so the same state gives the same
//! map. A delta is the same rendering narrowed to what was invalidated
//! ([`delta`]).

mod delta;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use warren_control_types::{
    CapMap, CapabilityVersion, Debug, FilterRule, MapResponse, Node, NodeId, SshPolicy,
    StableNodeId, UserId, UserProfile,
};
use warren_policy::NodeSet;

use crate::access::without_ipv4;
use crate::clock::timestamp;
use crate::directory::NodeEntry;
use crate::impact::peer_hostinfo;
use crate::map_sessions::{Begun, LastSent, SessionId};
use crate::message::Message;
use crate::records::NodeRecord;
use crate::routes::{effective, is_exit};
use crate::view::View;

/// The name of the one filter that is sent.
const FILTER: &str = "base";

/// The next message of a session, to be rendered without the coordinator.
#[derive(Debug)]
pub struct MessageDraft {
    pub(crate) session: SessionId,
    pub(crate) view: Arc<View>,
    pub(crate) begun: Begun,
}

/// The map that a session's client holds after a message, to be handed back with
/// [`Coordinator::finish_message`](crate::Coordinator::finish_message).
#[derive(Debug)]
pub struct Rendered {
    pub(crate) session: SessionId,
    pub(crate) last: Box<LastSent>,
}

impl MessageDraft {
    /// The message, unless nothing of it differs from what was sent.
    pub fn render(self, wall: Duration) -> (Option<Message>, Rendered) {
        let Begun {
            node,
            pending,
            last,
            ping,
        } = self.begun;
        let (message, last) = match last {
            None => self.view.first_message(wall, node).map_or_else(
                || (None, Box::default()),
                |(message, last)| (Some(message), last),
            ),
            Some(mut last) => (self.view.delta(wall, node, pending, &mut last), last),
        };
        let message = match ping {
            None => message,
            Some(ping) => {
                let mut message = message.unwrap_or_default();
                message.head.ping_request = Some(ping);
                Some(message)
            }
        };
        let rendered = Rendered {
            session: self.session,
            last,
        };
        (message, rendered)
    }
}

impl View {
    /// The complete map of a node. `None` if there is no such node.
    pub fn render(&self, wall: Duration, id: NodeId) -> Option<MapResponse> {
        let visible = self.visible_peers(id);
        let mut response = self.render_head(wall, id, &visible)?;
        let peers: Vec<Node> = visible
            .iter()
            .filter_map(|peer| self.directory.entry(peer))
            .map(|peer| {
                let routes = self.routes_seen(id, peer);
                self.render_peer(peer, &routes, self.is_without_ipv4(id, &peer.record))
            })
            .collect();
        response.peers = (!peers.is_empty()).then_some(peers);
        Some(response)
    }

    /// The complete map of a node, with shared peers, ready to be written.
    pub fn full_message(&self, wall: Duration, id: NodeId) -> Option<Message> {
        let visible = self.visible_peers(id);
        let head = self.render_head(wall, id, &visible)?;
        Some(Message {
            complete: true,
            head,
            peers: self.peers_json(id, visible.iter()),
            peers_changed: Vec::new(),
        })
    }

    fn first_message(&self, wall: Duration, id: NodeId) -> Option<(Message, Box<LastSent>)> {
        let message = self.full_message(wall, id)?;
        let peers = self.visible_peers(id);
        let last = LastSent {
            revision: self.directory.revision(),
            routes: self.all_routes_seen(id, &peers),
            peers,
            users: message
                .head
                .user_profiles
                .iter()
                .map(|user| user.id)
                .collect(),
            filter: digest(&self.filter_of(id)),
            dns: digest(&self.render_dns(id)),
            alias_nodes: self.alias_nodes(),
            ssh: message.head.ssh_policy.clone().unwrap_or_default(),
            without_ipv4: self.all_without_ipv4(id),
        };
        Some((message, Box::new(last)))
    }

    /// Everything of a complete map but the peers.
    fn render_head(&self, wall: Duration, id: NodeId, visible: &NodeSet) -> Option<MapResponse> {
        let entry = self.directory.entry(id)?;
        let mut users = BTreeSet::from([entry.record.owner()]);
        users.extend(
            visible
                .iter()
                .filter_map(|peer| self.directory.node(peer))
                .map(NodeRecord::owner),
        );
        Some(MapResponse {
            node: Some(self.render_own(entry)),
            derp_map: Some(self.access.relays(&self.config.derp_map).into()),
            dns_config: Some(self.render_dns(id)),
            domain: self.config.base_domain.clone(),
            collect_services: Some(false),
            packet_filters: filters(self.filter_of(id)),
            ssh_policy: Some(self.ssh_of(id)),
            user_profiles: users
                .into_iter()
                .map(|user| self.render_user(user))
                .collect(),
            control_time: Some(timestamp(wall)),
            tka_info: self.directory.lock().info(),
            // Nodes of a private network have no business with a public log service.
            debug: Some(Debug {
                disable_log_tail: true,
                ..Default::default()
            }),
            ..Default::default()
        })
    }

    /// Whether the node takes part in the network. A node that does not is sent
    /// itself and what it needs for a new login, and nothing about others: its
    /// key may be in the hands of a thief.
    fn takes_part(&self, id: NodeId) -> bool {
        self.standing(id).is_valid()
    }

    /// The peers that a node sees.
    fn visible_peers(&self, id: NodeId) -> NodeSet {
        if !self.takes_part(id) {
            return NodeSet::new();
        }
        let all = || self.directory.nodes().map(|node| node.id);
        let visible = self.access.peers_of(id);
        visible.unwrap_or_else(|| all().filter(|peer| *peer != id).collect())
    }

    /// Whether a node sees this peer.
    pub(crate) fn can_see(&self, id: NodeId, peer: NodeId) -> bool {
        self.takes_part(id) && self.access.can_see(id, peer)
    }

    /// The packet filter of a node.
    fn filter_of(&self, id: NodeId) -> Vec<FilterRule> {
        if !self.takes_part(id) {
            return Vec::new();
        }
        self.access.filter_for(id)
    }

    /// The rules of a node for logins over SSH.
    fn ssh_of(&self, id: NodeId) -> SshPolicy {
        if !self.takes_part(id) {
            return SshPolicy::default();
        }
        self.access.ssh_policy_for(id, &self.config.server_url)
    }

    /// The routes behind `peer` that `viewer` is given.
    fn routes_seen(&self, viewer: NodeId, peer: &NodeEntry) -> Vec<IpNet> {
        // Most nodes route nothing.
        if peer.record.approved_routes.is_empty() {
            return Vec::new();
        }
        let service = |id| self.directory.router_state(id).service();
        let primary = peer.state.primary_routes.clone();
        self.access
            .routes_for(viewer, &peer.record, primary, &service)
    }

    fn all_routes_seen(&self, viewer: NodeId, peers: &NodeSet) -> BTreeMap<NodeId, Vec<IpNet>> {
        peers
            .iter()
            .filter_map(|id| self.directory.entry(id))
            .map(|peer| (peer.record.id, self.routes_seen(viewer, peer)))
            .filter(|(_, routes)| !routes.is_empty())
            .collect()
    }

    /// Whether `viewer` is shown `peer` without its IPv4 address.
    pub(crate) fn is_without_ipv4(&self, viewer: NodeId, peer: &NodeRecord) -> bool {
        let viewer = self.directory.node(viewer);
        viewer.is_some_and(|viewer| self.access.is_without_ipv4(viewer))
            || self.access.is_without_ipv4(peer)
    }

    fn all_without_ipv4(&self, viewer: NodeId) -> NodeSet {
        if !self.access.may_disable_ipv4() {
            return NodeSet::new();
        }
        let viewer = self.directory.node(viewer);
        let all = viewer.is_some_and(|viewer| self.access.is_without_ipv4(viewer));
        let peers = self.directory.nodes();
        peers
            .filter(|peer| all || self.access.is_without_ipv4(peer))
            .map(|peer| peer.id)
            .collect()
    }

    /// The JSON of peers, made once for all viewers that see the same variant.
    fn peers_json(&self, viewer: NodeId, ids: impl Iterator<Item = NodeId>) -> Vec<Arc<str>> {
        ids.filter_map(|id| {
            let peer = self.directory.entry(id)?;
            let variant = (
                self.routes_seen(viewer, peer),
                self.is_without_ipv4(viewer, &peer.record),
            );
            peer.json(variant, |(routes, only_v6)| {
                serde_json::to_string(&self.render_peer(peer, routes, *only_v6)).ok()
            })
        })
        .collect()
    }

    /// A node as a peer sees it that is given these routes, and no IPv4
    /// address with `only_v6`.
    fn render_peer(&self, peer: &NodeEntry, routes: &[IpNet], only_v6: bool) -> Node {
        let mut rendered = self.render_node(peer, only_v6);
        rendered.cap_map = self.access.peer_attributes_of(&peer.record);
        rendered.primary_routes = routes.iter().filter(|r| !is_exit(r)).copied().collect();
        if let Some(allowed) = &mut rendered.allowed_ips {
            allowed.extend(routes);
        }
        rendered.hostinfo = Some(peer_hostinfo(&peer.record.hostinfo));
        if rendered.expired {
            // Peers must not send it anything, so they do not learn its address.
            rendered.endpoints.clear();
            rendered.home_derp = None;
        }
        rendered
    }

    /// A node as it sees itself.
    fn render_own(&self, entry: &NodeEntry) -> Node {
        let node = &entry.record;
        let mut rendered = self.render_node(entry, self.access.is_without_ipv4(node));
        rendered.hostinfo = Some(node.hostinfo.clone());
        rendered
            .primary_routes
            .clone_from(&entry.state.primary_routes);
        // All that is approved, whichever node is the active router.
        if let Some(allowed) = &mut rendered.allowed_ips {
            allowed.extend(effective(node));
        }
        rendered.cap_map = own_capabilities();
        // A tagged node belongs to no user.
        let user = node.user.filter(|_| node.tags.is_empty());
        if let Some(user) = user.and_then(|user| self.directory.user(user)) {
            for name in user.role.capabilities() {
                rendered.cap_map.insert((*name).to_owned(), Vec::new());
            }
        }
        rendered.cap_map.extend(self.access.attributes_of(node).0);
        rendered
    }

    /// The fields that are the same for every viewer; routes are not.
    fn render_node(&self, entry: &NodeEntry, only_v6: bool) -> Node {
        let node = &entry.record;
        let mut addresses = node.address.prefixes().to_vec();
        if only_v6 {
            without_ipv4(&mut addresses);
        }
        let online = entry.state.online;
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
            expired: entry.state.expired,
            ..Default::default()
        }
    }

    fn render_user(&self, id: UserId) -> UserProfile {
        let person = self.person(id);
        UserProfile {
            id,
            login_name: person.login_name,
            display_name: person.display_name,
            profile_pic_url: person.picture,
            ..Default::default()
        }
    }
}

fn filters(rules: Vec<FilterRule>) -> BTreeMap<String, Option<Vec<FilterRule>>> {
    BTreeMap::from([(FILTER.to_owned(), Some(rules))])
}

/// Identifies a part of a map by its content.
fn digest<T: Serialize + ?Sized>(part: &T) -> [u8; 32] {
    let mut hasher = Hashed(Sha256::new());
    // Writing to a digest does not fail, nor do these parts as JSON.
    let _ = serde_json::to_writer(&mut hasher, part);
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

/// The capabilities of every node, policy apart: exchange files between the
/// machines of one owner, use tailnet lock, run an SSH server and pass environment
/// variables to it as far as the policy's SSH rules permit, and no update without the
/// owner.
fn own_capabilities() -> CapMap {
    let mut capabilities: CapMap = [
        "https://tailscale.com/cap/file-sharing",
        "https://tailscale.com/cap/ssh",
        "https://tailscale.com/cap/tailnet-lock",
        "ssh-env-vars",
    ]
    .into_iter()
    .collect();
    capabilities.insert(
        "default-auto-update".to_owned(),
        vec![serde_json::Value::Bool(false)],
    );
    capabilities
}

//! Applies a netmap: to the peers, the routes, the filter, and the snapshot that
//! the data plane reads.

use super::*;

impl Engine {
    /// Peers with a session whose disco key changed: their process is a new one,
    /// which does not know that session.
    pub(super) fn restarted_peers(&self, changes: &Changes) -> Vec<PeerIndex> {
        let restarted = |(id, delta): (&NodeId, &PeerDelta)| {
            let PeerDelta::Changed(before) = delta else {
                return None;
            };
            let now = self.netmap.peers.get(id)?;
            let index = self.peers.index_of(*id)?;
            let session = &self.peers.get(index)?.view.session;
            let is_new = before.disco_key.is_some() && now.disco_key != before.disco_key;
            (is_new && now.key == before.key && session.is_some()).then_some(index)
        };
        changes.peers.iter().filter_map(restarted).collect()
    }

    pub(super) fn follow(&mut self, now: Instant, changes: Changes) {
        if changes.derp_map {
            self.paths.set_derp_map(now, &self.netmap.derp_map);
        }
        for (id, delta) in &changes.peers {
            let before = match delta {
                PeerDelta::Added => None,
                PeerDelta::Changed(before) | PeerDelta::Removed(before) => Some(before),
            };
            let key = self.netmap.peers.get(id).map(|node| node.key);
            if before.is_some() && before.map(|node| node.key) != key {
                self.remove_peer(now, *id);
            }
            if key.is_some() {
                self.refresh_peer(now, *id);
            }
        }
        if changes.self_node || !changes.peers.is_empty() {
            self.rebuild_routes();
            self.refresh_host();
            self.refresh_intercepts();
            self.view_changed = true;
        }
        if changes.self_node || changes.filters || !changes.peers.is_empty() {
            let filter_is_new = self.refresh_filter(changes.filters);
            if filter_is_new || changes.self_node {
                self.refresh_relay_roles(now);
            }
        }
        self.outputs.push_back(Output::Netmap(Box::new(changes)));
        self.drain();
    }

    /// Removes peers whose key has expired, and adds those whose key was renewed;
    /// keys expire by the server's clock, also while the server is down.
    pub(super) fn expire_peers(&mut self, now: Instant, wall: Duration) {
        let time = self.server_time(now, wall);
        let mut next: Option<Duration> = None;
        let mut changed = Vec::new();
        for (id, peer) in &mut self.netmap.peers {
            let end = peer
                .key_expiry
                .and_then(|end| Duration::try_from(end.as_duration()).ok());
            let ended = end.is_some_and(|end| end <= time);
            if ended && !peer.expired {
                peer.expired = true;
                self.expired_here.insert(*id);
                changed.push(*id);
            } else if !ended && self.expired_here.remove(id) {
                peer.expired = false;
                changed.push(*id);
            }
            if let Some(end) = end.filter(|_| !ended) {
                next = Some(next.map_or(end, |next| next.min(end)));
            }
        }
        // A day at most, so that a clock that jumps is noticed before the server is
        // known.
        const LONGEST: Duration = Duration::from_secs(86_400);
        self.next_expiry = next.map(|end| now + end.saturating_sub(time).min(LONGEST));
        if changed.is_empty() {
            return;
        }
        for id in changed {
            self.refresh_peer(now, id);
        }
        self.rebuild_routes();
        self.refresh_host();
        self.drain();
    }

    /// Brings everything we keep about a peer in line with its netmap entry.
    pub(super) fn refresh_peer(&mut self, now: Instant, id: NodeId) {
        let Some(node) = self.netmap.peers.get(&id) else {
            return;
        };
        let (key, jailed) = (node.key, node.is_jailed);
        let allowed = accepted_prefixes(node, &self.prefs);
        let endpoints = node.endpoints.clone();
        let info = PeerInfo {
            node_key: key,
            disco_key: node.disco_key,
            endpoints: node.endpoints.clone(),
            home_derp: node.home_region(),
            peer_relay: self.peer_relay_role(node),
        };
        if key.is_zero() || node.expired {
            self.remove_peer(now, id);
            return;
        }
        let index = match self.peers.index_of(id) {
            Some(index) => index,
            None => {
                let index = self.peers.insert(id, key);
                self.handshakes.add_peer(now, index, key);
                self.view_changed = true;
                index
            }
        };
        let relay_role = info.peer_relay;
        self.paths.upsert_peer(now, index, info);
        if let Some(peer) = self.peers.get_mut(index) {
            peer.relay_role = relay_role;
            self.view_changed |= peer.set_allowed_sources(allowed);
            if peer.is_new_here || peer.endpoints != endpoints {
                let sources = Arc::make_mut(&mut self.sources);
                sources.set(index, key, &peer.endpoints, &endpoints);
                peer.endpoints = endpoints;
                peer.is_new_here = false;
                self.view_changed = true;
            }
            if peer.view.jailed != jailed {
                peer.change_view(|view| view.jailed = jailed);
                self.view_changed = true;
            }
        }
    }

    pub(super) fn remove_peer(&mut self, now: Instant, id: NodeId) {
        let Some(index) = self.peers.index_of(id) else {
            return;
        };
        self.paths.remove_peer(now, index);
        self.handshakes.remove_peer(index);
        self.sessions.retain(|_, session| session.peer != index);
        if let Some(peer) = self.peers.remove(index) {
            let sources = Arc::make_mut(&mut self.sources);
            sources.remove(index, &peer.key, &peer.endpoints);
        }
        self.view_changed = true;
    }

    pub(super) fn rebuild_routes(&mut self) {
        let mut table = RouteTable::new();
        for (index, peer) in self.peers.iter() {
            let Some(node) = self.netmap.peers.get(&peer.node) else {
                continue;
            };
            for prefix in accepted_prefixes(node, &self.prefs) {
                // Two peers with one prefix is a mistake of the server; the
                // first by index keeps it, so that order does not matter.
                if let Some(earlier) = table.insert(prefix, index)
                    && earlier < index
                {
                    table.insert(prefix, earlier);
                }
            }
        }
        self.routes = Arc::new(table);
        self.view_changed = true;
    }

    /// Brings the filter in line; `rules`: whether they may have changed.
    /// Returns whether it is another one.
    pub(super) fn refresh_filter(&mut self, rules: bool) -> bool {
        let changed = self.packet_filter.refresh(&self.netmap, &self.prefs, rules);
        if changed {
            if rules {
                self.counters.bad_rules += self.packet_filter.problems().len() as u64;
            }
            self.view_changed = true;
        }
        changed
    }

    pub(super) fn refresh_host(&mut self) {
        let config = HostConfig::compute(&self.netmap, &self.prefs, &self.ranges);
        if config != self.host_config {
            self.host_config = config.clone();
            self.outputs.push_back(Output::Host(config));
        }
    }

    /// Intercepts the SSH port of the addresses that the node has now.
    pub(super) fn refresh_intercepts(&mut self) {
        let own = self.netmap.self_node.as_ref();
        let own = own.filter(|_| self.prefs.intercept_ssh);
        let addresses = own.map(single_addresses).unwrap_or_default();
        if addresses != self.ssh_addresses {
            self.intercepts = Arc::new(intercepts(&self.ranges, &addresses));
            self.ssh_addresses = addresses;
            self.view_changed = true;
        }
    }

    pub(super) fn build_view(&self) -> View {
        let own = self.netmap.self_node.as_ref();
        View {
            origin: self.origin,
            peers: self.peers.views(),
            routes: Arc::clone(&self.routes),
            sources: Arc::clone(&self.sources),
            sessions: self.sessions.clone(),
            filter: Arc::clone(self.packet_filter.filter()),
            jailed_filter: Arc::clone(self.packet_filter.jailed()),
            flows: Arc::clone(&self.flows),
            addresses: own.map(single_addresses).unwrap_or_default(),
            intercepts: Arc::clone(&self.intercepts),
            tunnel_mtu: TUNNEL_MTU,
            peer_api_port: None,
        }
    }
}

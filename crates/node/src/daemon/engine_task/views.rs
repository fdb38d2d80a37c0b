//! The views that local programs have of the node: status, netmap, the owners of
//! addresses, and changes as they happen.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc;
use warren_control_types::{Hostinfo, Netmap, Node, NodeId, UserId, UserProfile};

use super::{EngineTask, shown_state};
use crate::daemon::status::{self, StatusContext};
use crate::daemon::userspace::ProgramDialer;
use crate::daemon::{hostinfo, wall_clock};
use crate::localapi::endpoints::address_of;
use crate::localapi::error::{ApiError, Reply};
use crate::localapi::health::HealthState;
use crate::localapi::notify::{NetworkMap, Notify, NotifyMask, Snapshot};
use crate::localapi::types::{Status, WhoIsResponse, WhoIsTarget};

impl EngineTask {
    /// The status.
    pub(in crate::daemon) fn status(&mut self, peers: bool) -> Status {
        let is_described = self.node.account().is_some() && self.known_netmap().is_some();
        let engine = self.node.engine();
        let reports = engine.peer_reports(Instant::now());
        let context = StatusContext {
            state: shown_state(self.node.state()),
            auth_url: self.node.auth_url(),
            have_node_key: self.node.account().is_some(),
            health: self.health(),
            has_interface: self.has_interface,
            hostinfo: match is_described {
                true => Hostinfo::default(),
                false => hostinfo::describe(
                    &self.state.prefs,
                    self.has_interface,
                    self.ssh.public_keys(),
                ),
            },
            wall: wall_clock(),
        };
        status::status(engine, &context, &reports, peers)
    }

    /// The list of problems, for the user.
    pub(super) fn health(&self) -> Vec<String> {
        let mut health = self.node.login_problems();
        health.extend(self.node.time_problems(Instant::now(), wall_clock()));
        health.extend(self.link_problem.clone());
        health.extend(self.overlaps());
        health.extend(self.ssh_problems());
        // Without an interface, connections of peers are connections of this process.
        if self.state.prefs.want_running && self.has_interface {
            let offered = &self.state.prefs.advertise_routes;
            health.extend(warren_host::firewall::not_forwarding(offered));
        }
        health.extend(self.node.netmap_problems());
        health
    }

    /// The netmap, once the server has sent one.
    pub(in crate::daemon) fn known_netmap(&self) -> Option<&Netmap> {
        Some(self.node.netmap()).filter(|netmap| netmap.self_node.is_some())
    }

    /// The node with this number, ourselves or a peer.
    pub(in crate::daemon) fn peer_by_id(&self, id: NodeId) -> Reply<Node> {
        let netmap = self.node.netmap();
        let mut nodes = netmap.self_node.iter().chain(netmap.peers.values());
        let found = nodes.find(|node| node.id == id).cloned();
        found.ok_or_else(|| ApiError::NotFound("no peer with that NodeID".to_owned()))
    }

    /// The user with this number.
    pub(in crate::daemon) fn user_by_id(&self, id: UserId) -> Reply<UserProfile> {
        let found = self.node.netmap().user_profiles.get(&id).cloned();
        found.ok_or_else(|| ApiError::NotFound("no user with that UserID".to_owned()))
    }

    /// The address of a host of the network.
    pub(in crate::daemon) fn address_of(&self, host: &str) -> Option<IpAddr> {
        let netmap = self.node.netmap();
        let nodes = netmap.self_node.iter().chain(netmap.peers.values());
        let named = nodes.map(|node| {
            let address = node.addresses.first().map(|prefix| prefix.addr());
            (node.name.as_str(), address)
        });
        address_of(host, named)
    }

    /// The reason why this system does not forward the packets of the routes that are
    /// offered; empty: it does.
    pub(in crate::daemon) fn forwarding_problem(&self) -> String {
        if !self.has_interface {
            // The connections of peers are connections of this process.
            return String::new();
        }
        let offered = &self.state.prefs.advertise_routes;
        let problem = warren_host::firewall::not_forwarding(offered);
        problem.join("; ")
    }

    /// The dialer for connections of programs.
    pub(in crate::daemon) fn programs(&self) -> Option<Arc<ProgramDialer>> {
        self.programs.clone()
    }

    /// The netmap as local programs get to see it.
    pub(in crate::daemon) fn shown_netmap(&self) -> Reply<NetworkMap> {
        let cached = self.node.netmap_is_cached();
        let shown = status::network_map(self.node.engine(), cached);
        shown.ok_or_else(|| ApiError::Refused("no netmap".to_owned()))
    }

    /// The folder of the state; empty if it is in memory.
    pub(in crate::daemon) fn state_folder(&self) -> String {
        let folder = self.state.folder();
        folder.map_or_else(String::new, |folder| folder.display().to_string())
    }

    /// Listens to changes.
    pub(in crate::daemon) fn subscribe(&mut self, mask: NotifyMask) -> mpsc::Receiver<Notify> {
        let wants = |part| mask.contains(part);
        let snapshot = Snapshot {
            session_id: self.listeners.next_session_id(),
            state: shown_state(self.node.state()),
            prefs: self.prefs(),
            browse_to_url: self.node.auth_url().to_owned(),
            net_map: wants(NotifyMask::INITIAL_NETMAP)
                .then(|| status::network_map(self.node.engine(), self.node.netmap_is_cached()))
                .flatten(),
            status: wants(NotifyMask::INITIAL_STATUS).then(|| self.status(true)),
            health: HealthState::new(&self.health()),
        };
        if wants(NotifyMask::ENGINE_UPDATES) {
            // The new listener does not know the counters.
            self.listeners.engine_status = None;
        }
        self.listeners.add(mask, Notify::initial(mask, snapshot))
    }

    /// Sends the traffic counters to the listeners that want them, when they changed.
    pub(super) fn notify_engine_status(&mut self) {
        if !self.listeners.want(NotifyMask::ENGINE_UPDATES) {
            return;
        }
        let engine = self.node.engine();
        let reports = engine.peer_reports(Instant::now());
        let links = self.node.open_relay_links();
        let status = status::engine_status(engine, &reports, links, wall_clock());
        if self.listeners.engine_status.as_ref() != Some(&status) {
            self.listeners.engine_status = Some(status.clone());
            self.listeners.notify(|notify| notify.engine = Some(status));
        }
    }

    /// The node that has an address.
    pub(in crate::daemon) fn whois(&self, target: WhoIsTarget) -> Reply<WhoIsResponse> {
        let netmap = self.node.netmap();
        let everyone = || netmap.self_node.iter().chain(netmap.peers.values());
        let node = match target {
            WhoIsTarget::Key(key) => everyone().find(|node| node.key == key),
            WhoIsTarget::Ip(ip) => self.node_at(ip.get()),
            WhoIsTarget::Socket(address) => self.node_at(address.ip.get()),
        };
        let node = node.ok_or_else(|| ApiError::NotFound("no match for IP:port".to_owned()))?;
        let profile = netmap
            .user_profiles
            .get(&node.user)
            .cloned()
            .unwrap_or_default();
        Ok(WhoIsResponse {
            node: node.clone(),
            user_profile: profile,
            cap_map: self
                .node
                .engine()
                .caps_from(node)
                .0
                .into_iter()
                .map(|(name, values)| (name, values.into()))
                .collect(),
        })
    }

    pub(super) fn node_at(&self, ip: IpAddr) -> Option<&warren_control_types::Node> {
        let own = self.node.netmap().self_node.as_ref();
        let own = own.filter(|own| own.addresses.iter().any(|prefix| prefix.addr() == ip));
        own.or_else(|| self.node.engine().peer_at(ip))
    }
}

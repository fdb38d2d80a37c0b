//! The views that local programs have of the node: status, netmap, the owners of
//! addresses, and changes as they happen.

use std::net::IpAddr;
use std::time::Instant;

use tokio::sync::mpsc;
use warren_control_types::{Hostinfo, Netmap};

use super::{EngineTask, shown_state};
use crate::daemon::status::{self, StatusContext};
use crate::daemon::{hostinfo, wall_clock};
use crate::localapi::error::{ApiError, Reply};
use crate::localapi::health::HealthState;
use crate::localapi::notify::{Notify, NotifyMask, Snapshot};
use crate::localapi::types::{LoginProfile, NetworkProfile, Status, WhoIsResponse, WhoIsTarget};

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
                false => hostinfo::describe(&self.state.prefs),
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
        if self.state.prefs.want_running {
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

    /// The login in use.
    pub(in crate::daemon) fn current_profile(&self) -> LoginProfile {
        let Some(login) = &self.state.login.account else {
            return LoginProfile::default();
        };
        let netmap = self.node.netmap();
        LoginProfile {
            id: self
                .state
                .profile()
                .trim_start_matches("profile-")
                .to_owned(),
            name: login.user_profile.login_name.clone(),
            network_profile: NetworkProfile {
                magic_dns_name: netmap
                    .self_node
                    .as_ref()
                    .map(status::magic_dns_suffix)
                    .unwrap_or_default(),
                domain_name: netmap.domain.clone(),
                display_name: String::new(),
            },
            key: self.state.profile().to_owned(),
            user_profile: login.user_profile.clone(),
            node_id: login.node_id.0.clone(),
            control_url: self.state.prefs.control_url.clone(),
            ..LoginProfile::default()
        }
    }
}

//! What local programs see of the node: status, netmap, whose address is
//! whose, counters, and changes as they happen.

use std::net::IpAddr;
use std::time::Instant;

use tokio::sync::mpsc;
use warren_control_types::Netmap;
use warren_dataplane::DropReason;

use super::{EngineTask, LISTENER_QUEUE};
use crate::daemon::status::{self, Surroundings};
use crate::daemon::wall_clock;
use crate::localapi::error::{ApiError, Reply};
use crate::localapi::metrics::{Metric, MetricKind};
use crate::localapi::notify::{Notify, NotifyMask, Snapshot};
use crate::localapi::types::{LoginProfile, NetworkProfile, Status, WhoIsResponse, WhoIsTarget};

impl EngineTask {
    /// The status.
    pub(in crate::daemon) fn status(&mut self, peers: bool) -> Status {
        let reports = self.engine.peer_reports(Instant::now());
        let around = Surroundings {
            state: self.backend_state,
            auth_url: &self.auth_url,
            have_node_key: self.state.login.is_some(),
            health: self.health(),
            wall: wall_clock(),
        };
        status::status(&self.engine, &around, &reports, peers)
    }

    pub(super) fn health(&self) -> Vec<String> {
        let mut health = Vec::new();
        health.extend(Some(self.error.clone()).filter(|error| !error.is_empty()));
        if self.state.prefs.want_running {
            health.extend(self.needs_login.clone());
            health.extend(self.forgotten_there.clone());
        }
        if let Some(trouble) = &self.trouble
            && self.state.prefs.want_running
        {
            health.push(format!(
                "no connection to the coordination server: {trouble}"
            ));
        }
        health.extend(self.host_problems.iter().cloned());
        if self.state.prefs.want_running {
            let offered = &self.state.prefs.advertise_routes;
            health.extend(warren_host::firewall::not_forwarding(offered));
        }
        health.extend(self.filter_health());
        let netmap = self.engine.netmap();
        if netmap.display_messages.is_empty() {
            health.extend(netmap.health.iter().cloned());
        } else {
            let messages = netmap.display_messages.values();
            health.extend(messages.map(|message| format!("{}: {}", message.title, message.text)));
        }
        health
    }

    /// The netmap.
    pub(in crate::daemon) fn netmap(&self) -> &Netmap {
        self.engine.netmap()
    }

    /// Listens to what changes.
    pub(in crate::daemon) fn subscribe(&mut self, mask: NotifyMask) -> mpsc::Receiver<Notify> {
        let (listener, notifications) = mpsc::channel(LISTENER_QUEUE);
        self.sessions_given += 1;
        let wants = |part| mask.contains(part);
        let snapshot = Snapshot {
            session_id: format!("{:016x}", self.sessions_given),
            state: self.backend_state,
            prefs: self.prefs(),
            browse_to_url: self.auth_url.clone(),
            net_map: wants(NotifyMask::INITIAL_NETMAP)
                .then(|| status::network_map(&self.engine, self.netmap_is_cached)),
            status: wants(NotifyMask::INITIAL_STATUS).then(|| self.status(true)),
            health: serde_json::json!({ "Warnings": self.health() }),
        };
        if let Some(first) = Notify::initial(mask, snapshot) {
            // The queue is new and has room.
            drop(listener.try_send(first));
        }
        self.listeners.push((mask, listener));
        notifications
    }

    /// Whose address is it?
    pub(in crate::daemon) fn whois(&self, target: WhoIsTarget) -> Reply<WhoIsResponse> {
        let netmap = self.engine.netmap();
        let everyone = || netmap.self_node.iter().chain(netmap.peers.values());
        let node = match target {
            WhoIsTarget::Key(key) => everyone().find(|node| node.key == key),
            WhoIsTarget::Ip(ip) => self.node_at(ip),
            WhoIsTarget::Socket(address) => self.node_at(address.ip()),
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
                .engine
                .caps_from(node)
                .0
                .into_iter()
                .map(|(name, values)| (name, values.into()))
                .collect(),
        })
    }

    pub(super) fn node_at(&self, ip: IpAddr) -> Option<&warren_control_types::Node> {
        let own = self.engine.netmap().self_node.as_ref();
        let own = own.filter(|own| own.addresses.iter().any(|prefix| prefix.addr() == ip));
        own.or_else(|| self.engine.peer_at(ip))
    }

    /// The login in use.
    pub(in crate::daemon) fn current_profile(&self) -> LoginProfile {
        let Some(login) = &self.state.login else {
            return LoginProfile::default();
        };
        let netmap = self.engine.netmap();
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
            node_id: login.node_id.clone(),
            control_url: self.state.prefs.control_url.clone(),
            ..LoginProfile::default()
        }
    }

    /// The counters.
    pub(in crate::daemon) fn metrics(&self) -> Vec<Metric> {
        let counter = |name, help, value: u64, labels| Metric {
            name,
            kind: MetricKind::Counter,
            help,
            labels,
            value: value as f64,
        };
        let mut metrics = self.user_metrics();
        metrics.extend(DropReason::ALL.into_iter().map(|reason| {
            let labels = vec![("reason", format!("{reason:?}").to_lowercase())];
            let value = self.shared.drops.get(reason);
            counter(
                "warren_dropped_packets_total",
                "packets dropped, by reason",
                value,
                labels,
            )
        }));
        let traffic = self
            .engine
            .peer_reports(Instant::now())
            .into_iter()
            .fold((0, 0), |(rx, tx), report| {
                (rx + report.traffic.rx_bytes, tx + report.traffic.tx_bytes)
            });
        metrics.push(counter(
            "warren_inbound_bytes_total",
            "bytes from peers",
            traffic.0,
            Vec::new(),
        ));
        metrics.push(counter(
            "warren_outbound_bytes_total",
            "bytes to peers",
            traffic.1,
            Vec::new(),
        ));
        let failures = self
            .shared
            .send_failures
            .load(std::sync::atomic::Ordering::Relaxed);
        metrics.push(counter(
            "warren_send_failures_total",
            "datagrams or frames the system refused",
            failures,
            Vec::new(),
        ));
        metrics.push(Metric {
            name: "warren_live_relays",
            kind: MetricKind::Gauge,
            help: "relay connections",
            labels: Vec::new(),
            value: self.relays.live() as f64,
        });
        metrics
    }
}

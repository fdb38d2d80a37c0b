//! The whole node as one state: login, engine, relays, pings, health, and what is
//! kept on disk.
//!
//! A [`NodeInput`] goes in by [`Node::handle`]; what follows from it is read with
//! [`Node::poll_output`] until it returns `None`. The runtime carries outputs out
//! in their order and reports results as inputs. The daemon and the simulator
//! drive the same `Node`; they differ in what sockets, streams and disks are.
//!
//! The parts inside do not know each other: the [`Engine`] (netmap, paths,
//! handshakes), the logins (the session with the server, and a new login beside
//! it), the connections to relays, the pings of the user, and what is on disk.
//! `Node` routes the outputs of each to the others, and derives the
//! [`NodeState`] from all of them.

mod io;
mod logins;
mod persistence;
mod pings;
mod relay_links;
mod tailnet_lock;

#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use warren_control_client::Description;
use warren_control_types::{MapResponse, Netmap};
use warren_keys::{DiscoSecret, Entropy, NodeSecret};

pub use self::io::{
    Account, HostReport, KeptNetmap, LinkId, LocalNetwork, NetworkChange, NodeConfig, NodeInput,
    NodeOutput, NodeSettings, NodeState, Notice, PingFailure, PingKind, PingReply, PingReport,
    SaveId, SessionId, StoredLogin,
};
use self::logins::{Effect, Logins};
use self::persistence::Persistence;
use self::pings::Pings;
use self::relay_links::RelayLinks;
use self::tailnet_lock::TailnetLock;
pub use self::tailnet_lock::{
    KeptLock, LockAnswer, LockCommandError, LockCommands, LockInit, LockRequest, LockRequestId,
    Revocation, StoredChain, check_head,
};
use crate::entropy::SharedEntropy;
use crate::{Engine, EngineConfig, HostConfig, Output, PingAnswer};

/// Time between two looks at the traffic counters while packets flow, and
/// otherwise.
const SAMPLE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(1));

const KEY_ENDED: &str =
    "the key of this node has ended; log in again with `warren up --force-reauth`";

/// A node without its operating system.
pub struct Node {
    engine: Engine,
    node_key: NodeSecret,
    disco_key: DiscoSecret,
    flow_slots: Option<usize>,
    logins: Logins,
    links: RelayLinks,
    pings: Pings,
    persistence: Persistence,
    lock: TailnetLock,
    settings: NodeSettings,
    network: LocalNetwork,
    /// `None` before the start.
    state: Option<NodeState>,
    /// Whether the operating system has the node's addresses.
    host_ready: bool,
    host_problems: Vec<String>,
    /// Whether the netmap comes from the disk, and not from the server.
    netmap_is_cached: bool,
    sample_at: Instant,
    entropy: SharedEntropy,
    outputs: VecDeque<NodeOutput>,
}

impl Node {
    /// A node that does nothing before [`start`](Self::start).
    pub fn new(config: NodeConfig, now: Instant, entropy: Box<dyn Entropy>) -> Self {
        let mut entropy = SharedEntropy::new(entropy);
        let node_key = match &config.stored {
            StoredLogin {
                account: Some(account),
                ..
            } => account.node_key.clone(),
            StoredLogin {
                candidate: Some(key),
                ..
            } => key.clone(),
            StoredLogin { .. } => NodeSecret::generate(&mut entropy),
        };
        let disco_key = DiscoSecret::generate(&mut entropy);
        let refused = config.stored.refused_locks.clone();
        let mut lock = TailnetLock::new(config.lock, refused, entropy.boxed());
        lock.set_autosign_tags(config.stored.autosign_tags.clone());
        let engine_config = EngineConfig {
            node_key: node_key.clone(),
            disco_key: disco_key.clone(),
            flow_slots: config.flow_slots,
            aead: config.aead,
            ranges: config.ranges,
            lock: lock.gate(),
        };
        let mut engine = Engine::new(engine_config, now, entropy.boxed());
        engine.resume_timestamps(config.clock_floor);
        engine.set_prefs(now, config.settings.packets.clone());
        let mut node = Self {
            engine,
            node_key,
            disco_key,
            flow_slots: config.flow_slots,
            logins: Logins::new(config.stored, config.ephemeral, entropy.boxed()),
            links: RelayLinks::default(),
            pings: Pings::default(),
            persistence: Persistence::new(now, config.clock_floor),
            lock,
            settings: config.settings,
            network: config.network,
            state: None,
            host_ready: false,
            host_problems: Vec::new(),
            netmap_is_cached: false,
            sample_at: now + SAMPLE.1,
            entropy,
            outputs: VecDeque::new(),
        };
        node.set_network(now);
        node.collect_outputs(now);
        node
    }

    /// Begins where the last run ended: with its netmap, and with its login if
    /// the user wants the node to run.
    pub fn start(&mut self, now: Instant, wall: Duration, kept: Option<KeptNetmap<'_>>) {
        if let Some(kept) = kept.filter(|_| self.logins.account().is_some()) {
            self.netmap_is_cached = true;
            let netmap = kept.netmap.into_owned();
            self.engine.restore_netmap(now, wall, netmap, kept.clock);
        }
        self.describe(now);
        if self.settings.want_running {
            self.logins.connect(now, None);
        }
        self.settle(now, wall);
    }

    // ---- views ----

    /// The engine, to look at.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// The netmap as it is now.
    pub fn netmap(&self) -> &Netmap {
        self.engine.netmap()
    }

    /// The netmap that [`NodeOutput::SaveNetmap`] writes.
    pub fn kept_netmap(&self, now: Instant, wall: Duration) -> KeptNetmap<'_> {
        KeptNetmap {
            clock: self.engine.clock_pair(now, wall),
            netmap: Cow::Borrowed(self.engine.netmap()),
        }
    }

    /// Whether the netmap comes from the disk, and not from the server.
    pub fn netmap_is_cached(&self) -> bool {
        self.netmap_is_cached
    }

    /// The node's identity to peers and relays.
    pub fn node_key(&self) -> &NodeSecret {
        &self.node_key
    }

    /// The login in force.
    pub fn account(&self) -> Option<&Account> {
        self.logins.account()
    }

    /// The logins that [`NodeOutput::SaveLogin`] writes.
    pub fn stored_login(&self) -> StoredLogin {
        StoredLogin {
            refused_locks: self.lock.refused().to_vec(),
            autosign_tags: self.lock.autosign_tags().clone(),
            ..self.logins.stored()
        }
    }

    /// The state of the node; `None` before the start.
    pub fn state(&self) -> Option<NodeState> {
        self.state
    }

    /// The address that a person should open to log in; empty when there is none.
    pub fn auth_url(&self) -> &str {
        self.logins.auth_url()
    }

    /// Whether the map stream of the server is open.
    pub fn is_connected(&self) -> bool {
        self.logins.is_connected()
    }

    /// The number of open connections to relays.
    pub fn open_relay_links(&self) -> usize {
        self.links.open_links()
    }

    /// The operating system should be set up like this; `None`: as without the
    /// node.
    pub fn host_config(&self) -> Option<&HostConfig> {
        let is_wanted = self.is_engaged() && self.settings.want_running;
        is_wanted.then(|| self.engine.host_config())
    }

    /// The problems of the login, the server and the operating system.
    pub fn login_problems(&self) -> Vec<String> {
        let mut problems = self.logins.problems(self.settings.want_running);
        problems.extend(self.host_problems.iter().cloned());
        problems
    }

    /// The problems with time: the node's key has ended, or the clock of this machine is
    /// wrong.
    pub fn time_problems(&self, now: Instant, wall: Duration) -> Vec<String> {
        let ended = self.settings.want_running && self.key_has_ended(now, wall);
        let ended = ended.then(|| KEY_ENDED.to_owned());
        let clock = self.engine.clock_problem(now, wall);
        ended.into_iter().chain(clock).collect()
    }

    /// The problems of the netmap, found by the server or here.
    pub fn netmap_problems(&self) -> Vec<String> {
        let mut problems: Vec<String> = self.filter_problem().into_iter().collect();
        problems.extend(self.lock_problems());
        let netmap = self.netmap();
        if netmap.display_messages.is_empty() {
            problems.extend(netmap.health.iter().cloned());
        } else {
            let messages = netmap.display_messages.values();
            let texts = messages.map(|message| format!("{}: {}", message.title, message.text));
            problems.extend(texts);
        }
        problems
    }

    /// The packet filter rules that cannot be used, in one line.
    pub fn filter_problem(&self) -> Option<String> {
        let problems = self.engine.filter_problems();
        let first = problems.first()?;
        let count = problems.len();
        Some(format!(
            "the coordination server sent packet filter rules that cannot be used in full; \
             {count} left out, the first: {first} (see: warren debug filter)"
        ))
    }

    /// Whether the node's own key has ended, by the server's clock.
    fn key_has_ended(&self, now: Instant, wall: Duration) -> bool {
        let own = self.netmap().self_node.as_ref();
        let end = own.and_then(|own| own.key_expiry);
        let time = self.engine.server_time(now, wall).as_secs();
        end.is_some_and(|end| u64::try_from(end.as_duration().as_secs()).unwrap_or(0) <= time)
    }

    fn is_engaged(&self) -> bool {
        self.state.is_some_and(NodeState::is_engaged)
    }

    // ---- inputs ----

    /// Takes what happened. Read [`poll_output`](Self::poll_output) afterwards.
    pub fn handle(&mut self, now: Instant, wall: Duration, input: NodeInput) {
        match input {
            // A node that is down does not reply.
            NodeInput::Udp { .. } | NodeInput::SearchUdp { .. } | NodeInput::Relay { .. }
                if !self.is_engaged() => {}
            NodeInput::Udp { from, packet } => self.engine.handle_udp(now, wall, from, &packet),
            NodeInput::SearchUdp {
                socket,
                from,
                packet,
            } => self
                .engine
                .handle_search_udp(now, wall, socket, from, &packet),
            NodeInput::Relay {
                region,
                from,
                packet,
            } => {
                self.engine.handle_relay(now, wall, region, from, &packet);
            }
            NodeInput::RelayData { region, to, packet } => self.links.send(region, to, packet),
            NodeInput::NeedSession(peer) => self.engine.need_session(now, wall, peer),
            NodeInput::SessionConfirmed(index) => self.engine.session_confirmed(now, index),
            NodeInput::ReceivedFrom(peer, from) => self.engine.received_from(now, peer, from),
            NodeInput::DiscoAdvertised(peer, key) => self.engine.disco_advertised(now, peer, key),
            NodeInput::TsmpPong(data) => {
                let id = u64::from_be_bytes(data);
                let report = self.pings.answered(now, id, None);
                self.ping_ended(id, report);
            }
            NodeInput::RelayOpened {
                region,
                link,
                local,
            } => self.links.opened(region, link, local),
            NodeInput::RelayUp(region, link) => {
                if self.links.is_current(region, link) {
                    self.engine.relay_connected(now, region);
                }
            }
            NodeInput::RelayDown(region, link) => {
                if self.links.is_current(region, link) {
                    self.links.ended(region);
                    self.engine.relay_disconnected(now, region);
                }
            }
            NodeInput::RelayPeerGone { region, peer } => {
                self.engine.relay_peer_gone(now, region, peer);
            }
            NodeInput::RelayLatency(region, latency) => {
                self.engine.relay_https_latency(now, region, latency);
            }
            NodeInput::Resolved(name, addresses) => {
                self.engine.host_resolved(now, &name, addresses);
            }
            NodeInput::RelayEndpoint(request, endpoint) => {
                self.engine.send_relay_endpoint(now, &request, *endpoint);
            }
            NodeInput::PortMap(report) => self.engine.handle_port_map(now, report),
            NodeInput::Control(session, input) => self.logins.handle_control(now, session, input),
            NodeInput::LoginSaved(id, result) => self.logins.saved(now, id, result),
            NodeInput::Network(change, network) => self.network_changed(now, change, *network),
            NodeInput::HostApplied(report) => self.host_applied(report),
            NodeInput::Settings(settings) => self.settings_changed(now, *settings),
            NodeInput::Start {
                settings,
                force_login,
                auth_key,
            } => self.start_as_asked(now, *settings, force_login, auth_key),
            NodeInput::LogIn => self.log_in(now),
            NodeInput::LogOut => self.forget_login(now, true),
            NodeInput::ResetLogin => self.forget_login(now, false),
            NodeInput::UseLogin {
                settings,
                stored,
                lock,
            } => self.use_login(now, *settings, *stored, *lock),
            NodeInput::DisableLockHere => self.disable_lock_here(),
            NodeInput::Autosign(tags) => self.set_autosign_tags(tags),
            NodeInput::LockAnswer(id, answer) => self.lock_answered(now, wall, id, answer),
            NodeInput::LockStored(result) => self.lock.stored(now, result),
            NodeInput::Ping { id, address, kind } => self.ping(now, id, address, kind),
            NodeInput::Remeasure => self.engine.restun(now),
            NodeInput::FindPaths => {
                self.engine.link_changed(now);
                self.set_network(now);
            }
            NodeInput::Stop => self.stop(now),
        }
        self.settle(now, wall);
    }

    /// The time at which [`handle_timeout`](Self::handle_timeout) has something
    /// to do, with the reason.
    pub fn next_deadline(&self) -> Option<(Instant, &'static str)> {
        let netmap_due = self.persistence.netmap_due(self.netmap().peers.len());
        [
            self.engine.next_deadline(),
            self.logins.next_deadline(),
            self.pings.next_deadline().map(|at| (at, "a late ping")),
            netmap_due.map(|at| (at, "write the netmap")),
            self.lock
                .next_deadline()
                .map(|at| (at, "next attempt of tailnet lock")),
            Some((self.sample_at, "traffic counters")),
        ]
        .into_iter()
        .flatten()
        .min_by_key(|(at, _)| *at)
    }

    /// Does what is due. An early call does nothing.
    pub fn handle_timeout(&mut self, now: Instant, wall: Duration) {
        self.engine.handle_timeout(now, wall);
        self.logins.handle_timeout(now);
        if self.lock.handle_timeout(now) {
            self.compare_lock();
        }
        while let Some((id, report)) = self.pings.take_late(now) {
            self.ping_ended(id, Some(report));
        }
        if now >= self.sample_at {
            let busy = self.engine.sample_traffic(now, wall);
            self.sample_at = now + if busy { SAMPLE.0 } else { SAMPLE.1 };
        }
        self.settle(now, wall);
    }

    /// The next thing to do, if there is one.
    pub fn poll_output(&mut self) -> Option<NodeOutput> {
        self.outputs.pop_front()
    }

    /// The settings of the operating system were made as far as they can be.
    fn host_applied(&mut self, report: HostReport) {
        // A report of earlier settings says nothing about those that count.
        let config = self.host_config();
        self.host_ready = config.is_some_and(|config| {
            !config.addresses.is_empty() && config.addresses == report.addresses
        });
        if self.host_problems != report.problems {
            self.host_problems = report.problems;
            let notice = Notice::Health;
            self.outputs.push_back(NodeOutput::Notice(notice));
        }
    }

    // ---- settings and logins ----

    fn settings_changed(&mut self, now: Instant, settings: NodeSettings) {
        let before = self.use_settings(now, settings);
        let wants = self.settings.want_running;
        if wants == before.want_running && self.settings.server == before.server {
            return;
        }
        if wants && self.logins.account().is_some() {
            self.logins.connect(now, None);
        } else if !wants {
            self.logins.disconnect();
            self.links.close_all();
        }
    }

    /// Uses other settings; returns those from before.
    fn use_settings(&mut self, now: Instant, settings: NodeSettings) -> NodeSettings {
        let before = std::mem::replace(&mut self.settings, settings);
        self.engine.set_prefs(now, self.settings.packets.clone());
        self.describe(now);
        self.outputs.push_back(NodeOutput::Host);
        before
    }

    fn start_as_asked(
        &mut self,
        now: Instant,
        settings: NodeSettings,
        force_login: bool,
        auth_key: Option<String>,
    ) {
        let was_running = self.use_settings(now, settings).want_running;
        if force_login && self.settings.want_running && !was_running {
            // The login from before goes on beside the new one.
            self.logins.connect(now, None);
        }
        self.logins
            .start(now, force_login, auth_key, &self.node_key);
    }

    fn log_in(&mut self, now: Instant) {
        if !self.settings.want_running {
            self.settings.want_running = true;
            self.logins.connect(now, None);
        }
        self.logins.log_in_interactively(now, &self.node_key);
    }

    fn forget_login(&mut self, now: Instant, notify_server: bool) {
        self.settings.want_running = false;
        self.lock.logged_out();
        self.logins.forget(notify_server);
        self.node_key = NodeSecret::generate(&mut self.entropy);
        self.replace_engine(now);
        self.outputs.push_back(NodeOutput::Host);
    }

    fn use_login(
        &mut self,
        now: Instant,
        settings: NodeSettings,
        stored: StoredLogin,
        lock: KeptLock,
    ) {
        let keys = [
            stored.account.as_ref().map(|account| &account.node_key),
            stored.candidate.as_ref(),
        ];
        self.node_key = match keys.into_iter().flatten().next() {
            Some(key) => key.clone(),
            None => NodeSecret::generate(&mut self.entropy),
        };
        self.lock.replace(lock, stored.refused_locks.clone());
        self.lock.set_autosign_tags(stored.autosign_tags.clone());
        self.logins.replace(stored);
        self.settings = settings;
        // The netmap and the paths are those of the other login.
        self.replace_engine(now);
        if self.settings.want_running && self.logins.account().is_some() {
            self.logins.connect(now, None);
        }
    }

    fn stop(&mut self, now: Instant) {
        self.logins.disconnect();
        self.links.close_all();
        // Also gives up the port mappings.
        self.engine.set_paused(now, true);
        self.collect_outputs(now);
        if self.persistence.take_netmap_at_end() && self.logins.account().is_some() {
            self.outputs.push_back(NodeOutput::SaveNetmap);
        }
        let last = self.engine.last_timestamp();
        if let Some(floor) = self.persistence.take_exact_clock(last) {
            self.outputs.push_back(NodeOutput::SaveClock(floor));
        }
    }

    /// Another node key is another node: the engine begins again.
    fn replace_engine(&mut self, now: Instant) {
        // The timestamps go on: peers compare them across keys of one machine.
        self.save_clock();
        // The new engine does not know which port mappings this one asked for.
        self.engine.set_paused(now, true);
        self.collect_outputs(now);
        let config = EngineConfig {
            node_key: self.node_key.clone(),
            disco_key: self.disco_key.clone(),
            flow_slots: self.flow_slots,
            aead: self.engine.aead(),
            ranges: *self.engine.ranges(),
            lock: self.lock.gate(),
        };
        self.engine = Engine::new(config, now, self.entropy.boxed());
        self.engine
            .resume_timestamps(self.persistence.clock_floor());
        self.engine.set_prefs(now, self.settings.packets.clone());
        self.engine.set_paused(now, !self.is_engaged());
        self.links.close_all();
        self.set_network(now);
        self.host_ready = false;
        self.netmap_is_cached = false;
        self.persistence.netmap_forgotten();
        self.outputs.push_back(NodeOutput::ForgetNetmap);
        // The system's addresses go and come back, so that their setting is reported
        // for the new key too.
        self.outputs.push_back(NodeOutput::Host);
        self.describe(now);
    }

    // ---- the network around ----

    fn network_changed(&mut self, now: Instant, change: NetworkChange, network: LocalNetwork) {
        let before = std::mem::replace(&mut self.network, network);
        let here = &self.network.addresses.interfaces;
        if change != NetworkChange::Minor {
            for region in self.links.close_stranded(here) {
                self.engine.relay_disconnected(now, region);
            }
            self.engine.link_changed(now);
            if change == NetworkChange::Slept {
                self.engine.slept();
            }
            let mut earlier = before.addresses.interfaces.iter();
            let lost_address = earlier.any(|address| !here.contains(address));
            // A person with a login address at hand is not given another one for
            // less than a lost connection.
            let is_paused = !self.logins.is_connected() && self.logins.auth_url().is_empty();
            let is_broken = lost_address || change == NetworkChange::Slept || is_paused;
            if is_broken && self.logins.has_session() {
                // Its connection hangs in the old network, or it waits between
                // attempts that could not succeed.
                self.logins.reconnect(now);
            }
        }
        self.set_network(now);
        // The networks beside the tunnel may be others.
        self.outputs.push_back(NodeOutput::Host);
    }

    fn set_network(&mut self, now: Instant) {
        self.engine
            .set_local_addresses(now, self.network.addresses.clone());
        self.engine.set_host_networks(self.network.networks.clone());
    }

    /// Describes this machine to the server.
    fn describe(&mut self, now: Instant) {
        let report = self.engine.control_report();
        let mut hostinfo = self.settings.hostinfo.clone();
        hostinfo.net_info.clone_from(&report.net_info);
        let description = Description {
            hostinfo,
            endpoints: report.endpoints.clone(),
            disco_key: Some(report.disco_key),
            lock_head: self.lock.head(),
        };
        self.logins.describe(now, description);
    }

    // ---- pings ----

    fn ping(&mut self, now: Instant, id: u64, address: IpAddr, kind: PingKind) {
        let own = self.netmap().self_node.as_ref();
        if own.is_some_and(|own| own.addresses.iter().any(|prefix| prefix.addr() == address)) {
            let report = PingReport {
                asked: address,
                node_ip: address,
                node_name: String::new(),
                outcome: Err(PingFailure::OwnAddress),
            };
            self.ping_ended(id, Some(report));
            return;
        }
        let Some(node) = self.engine.peer_at(address) else {
            self.outputs
                .push_back(NodeOutput::PingEnded { id, report: None });
            return;
        };
        let node_ip = node.addresses.first().map_or(address, ipnet::IpNet::addr);
        let name = node.base_name().to_owned();
        self.pings.begin(now, id, address, node_ip, name);
        let started = match kind {
            PingKind::Disco(size) => self.engine.ping(now, address, id, size).map(drop),
            PingKind::Tsmp => self.engine.ping_through_tunnel(address, id),
        };
        if let Err(error) = started {
            let report = self.pings.failed(id, error.to_string());
            self.ping_ended(id, report);
        }
    }

    fn path_ping_ended(&mut self, now: Instant, answer: PingAnswer) {
        let id = answer.token;
        let report = match answer.result {
            Ok(pong) => {
                let reply = PingReply {
                    latency: pong.latency,
                    via: Some(pong.via),
                };
                self.pings.answered(now, id, Some(reply))
            }
            Err(error) => self.pings.failed(id, error.to_string()),
        };
        self.ping_ended(id, report);
    }

    fn ping_ended(&mut self, id: u64, report: Option<PingReport>) {
        if report.is_some() {
            self.outputs.push_back(NodeOutput::PingEnded { id, report });
        }
    }

    // ---- outputs of the parts ----

    /// Carries outputs between the parts until none has any, and works out the
    /// state.
    fn settle(&mut self, now: Instant, wall: Duration) {
        loop {
            let mut is_quiet = true;
            while let Some(effect) = self.logins.poll_effect() {
                is_quiet = false;
                self.on_login_effect(now, wall, effect);
            }
            is_quiet &= !self.carry_out_lock(now, wall);
            is_quiet &= !self.collect_outputs(now);
            is_quiet &= !self.work_out_state(now, wall);
            if is_quiet {
                break;
            }
        }
        self.save_clock();
        let peers = self.netmap().peers.len();
        if self.persistence.take_netmap(now, peers) && self.logins.account().is_some() {
            self.outputs.push_back(NodeOutput::SaveNetmap);
        }
    }

    fn save_clock(&mut self) {
        let last = self.engine.last_timestamp();
        if let Some(floor) = self.persistence.take_clock(last) {
            self.outputs.push_back(NodeOutput::SaveClock(floor));
        }
    }

    fn on_login_effect(&mut self, now: Instant, wall: Duration, effect: Effect) {
        match effect {
            Effect::Output(output) => self.outputs.push_back(output),
            Effect::KeyReplaced => {
                self.lock.login_accepted(&self.settings.server);
                let key = self
                    .logins
                    .account()
                    .map(|account| account.node_key.clone());
                if let Some(key) = key.filter(|key| *key != self.node_key) {
                    self.node_key = key;
                    self.replace_engine(now);
                }
            }
            Effect::StreamBegins => {
                self.engine.set_control_connected(true);
                self.engine.begin_map_stream();
            }
            Effect::Disconnected => {
                self.engine.set_control_connected(false);
                self.lock.disconnected();
            }
            Effect::Map(message) => self.apply_map(now, wall, *message),
        }
    }

    fn apply_map(&mut self, now: Instant, wall: Duration, message: MapResponse) {
        self.netmap_is_cached = false;
        self.expect_lock(now, wall, &message);
        match self.engine.apply_map(now, wall, message) {
            Ok(notices) => {
                self.compare_lock();
                if let Some(url) = notices.pop_browser_url {
                    let notice = Notice::BrowseTo(url);
                    self.outputs.push_back(NodeOutput::Notice(notice));
                }
            }
            Err(error) => self.logins.note_trouble(error.to_string()),
        }
    }

    /// Takes the outputs of the engine and of the relay connections; returns
    /// whether there were any.
    fn collect_outputs(&mut self, now: Instant) -> bool {
        let mut any = false;
        while let Some(output) = self.engine.poll_output() {
            any = true;
            self.on_engine_output(now, output);
        }
        while let Some(output) = self.links.poll_output() {
            any = true;
            self.outputs.push_back(output);
        }
        any
    }

    fn on_engine_output(&mut self, now: Instant, output: Output) {
        let output = match output {
            Output::SendUdp { to, packet } => NodeOutput::SendUdp { to, packet },
            Output::Sockets(order) => NodeOutput::Sockets(order),
            Output::SendRelay { region, to, packet } => {
                return self.links.send(region, to, packet);
            }
            Output::ConnectRelay(region) => {
                if !self.links.connect(region) {
                    self.engine.relay_disconnected(now, region);
                }
                return;
            }
            Output::CloseRelay(region) => return self.links.close(region),
            Output::HomeRelay(region) => return self.links.set_home(region),
            Output::ProbeRelayHttps(region) => NodeOutput::ProbeRelayHttps(region),
            Output::ResolveHost(name) => NodeOutput::ResolveHost(name),
            Output::WantPortMapping { family, port } => {
                NodeOutput::WantPortMapping { family, port }
            }
            Output::RelayEndpointRequested(request) => NodeOutput::RelayEndpointRequested(request),
            Output::Path { node, destination } => NodeOutput::Path { node, destination },
            Output::View(view) => NodeOutput::View(view),
            Output::Keepalive(peer) => NodeOutput::Keepalive(peer),
            Output::DropStaged(peer) => NodeOutput::DropStaged(peer),
            Output::Inject { peer, packet } => NodeOutput::Inject { peer, packet },
            Output::Host(_) => NodeOutput::Host,
            Output::Netmap(changes) => {
                if changes.derp_map {
                    for region in self.links.set_map(&self.engine.netmap().derp_map) {
                        self.engine.relay_disconnected(now, region);
                    }
                }
                self.persistence.netmap_changed();
                self.outputs.push_back(NodeOutput::Host);
                NodeOutput::Notice(Notice::Netmap(changes))
            }
            Output::Control(_) => return self.describe(now),
            Output::Pong(answer) => return self.path_ping_ended(now, answer),
        };
        self.outputs.push_back(output);
    }

    /// Works out the state from all parts; returns whether it changed.
    fn work_out_state(&mut self, now: Instant, wall: Duration) -> bool {
        let own = self.netmap().self_node.as_ref();
        let expired = self.key_has_ended(now, wall);
        let state = if self.logins.needs_login() || expired {
            NodeState::NeedsLogin
        } else if !self.settings.want_running {
            NodeState::Stopped
        } else {
            match own {
                None => NodeState::Starting,
                Some(own) if !own.machine_authorized => NodeState::NeedsMachineAuth,
                Some(_) if self.host_ready => NodeState::Running,
                Some(_) => NodeState::Starting,
            }
        };
        if self.state == Some(state) {
            return false;
        }
        let was_engaged = self.state.map(NodeState::is_engaged);
        let is_engaged = state.is_engaged();
        self.state = Some(state);
        if was_engaged != Some(is_engaged) {
            self.host_ready &= is_engaged;
            self.engine.set_paused(now, !is_engaged);
            self.outputs.push_back(NodeOutput::Host);
        }
        let notice = Notice::State(state);
        self.outputs.push_back(NodeOutput::Notice(notice));
        true
    }
}

//! The task that owns the engine, and with it all state of the daemon.
//!
//! It takes one [`Message`] after the other, lets the engine decide, and does
//! what comes out. It waits for nothing but the next message or the next
//! deadline: what takes time (the operating system, the network, the disk) is
//! done by others, who report back.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};
use warren_control_types::{Netmap, PingRequest};
use warren_dial::Dialer;
use warren_dns::{Options as DnsOptions, ResolverConfig};
use warren_host::link::{Change, LinkState};
use warren_keys::{DiscoSecret, NodeSecret};
use warren_node_core::dataplane::DropReason;
use warren_node_core::{Engine, EngineConfig, NodePrefs, Output, PingAnswer, PingError, Pong};
use warren_paths::{LocalAddresses, Via};

use super::control_session::{ControlEvent, ControlSession, Description, SessionConfig, log_out};
use super::entropy::SystemEntropy;
use super::host_task::{Host, Outcome, Wanted};
use super::hostinfo;
use super::pump::{OutCommand, Pump, Shared};
use super::relays::Relays;
use super::state::{Login, StateFolder};
use super::status::{self, Surroundings};
use super::{Inbox, Message, Outbox, wall_clock};
use crate::localapi::backend::{BackendError, Reply};
use crate::localapi::go_json::GoTime;
use crate::localapi::metrics::{Metric, MetricKind};
use crate::localapi::notify::{Empty, Notify, NotifyMask, Snapshot, State};
use crate::localapi::prefs::{MaskedPrefs, Options, Prefs};
use crate::localapi::types::{
    LoginProfile, NetcheckReport, NetworkProfile, PingResult, PingType, Status, WhoIsResponse,
    WhoIsTarget,
};

/// How often traffic counters are looked at while packets flow.
const SAMPLE_BUSY: Duration = Duration::from_millis(200);
/// How often otherwise.
const SAMPLE_IDLE: Duration = Duration::from_secs(1);
/// Notifications that may wait for a listener.
const LISTENER_QUEUE: usize = 128;
/// A netmap is written at most this often, a big one less often.
const NETMAP_WRITES: Duration = Duration::from_millis(100);
/// How often a big one.
const BIG_NETMAP_WRITES: Duration = Duration::from_secs(5);
/// From how many peers on it is big.
const BIG_NETMAP: usize = 200;
/// How long a ping waits that the path engine does not look after.
const PING_PATIENCE: Duration = Duration::from_secs(10);

/// What the task is given at the start.
pub struct Parts {
    /// Shared with the packet threads.
    pub shared: Arc<Shared>,
    /// The packet threads.
    pub pump: Pump,
    /// Relay connections.
    pub relays: Relays,
    /// The operating system.
    pub host: Host,
    /// The engine, not yet knowing anybody.
    pub engine: Engine,
    /// Keys and preferences.
    pub state: StateFolder,
    /// For the control session.
    pub dialer: Dialer,
    /// The task's own inbox, for those it starts.
    pub inbox: Inbox,
    /// The network around.
    pub link: LinkState,
    /// The key of the engine, when nobody is logged in yet.
    pub candidate_key: NodeSecret,
    /// Ports to ask for when sockets are bound anew.
    pub rebind: Box<dyn Fn() -> std::io::Result<warren_host::udp::UdpPair> + Send>,
}

/// Somebody waits for a ping.
struct WaitingPing {
    asked: IpAddr,
    node_ip: IpAddr,
    node_name: String,
    since: Instant,
    reply: oneshot::Sender<Reply<PingResult>>,
}

/// The owner of everything.
pub struct EngineTask {
    shared: Arc<Shared>,
    pump: Pump,
    relays: Relays,
    host: Host,
    engine: Engine,
    state: StateFolder,
    dialer: Dialer,
    inbox: Inbox,
    link: LinkState,
    candidate_key: NodeSecret,
    rebind: Box<dyn Fn() -> std::io::Result<warren_host::udp::UdpPair> + Send>,

    session: Option<ControlSession>,
    /// The number of the present session.
    epoch: u64,
    description: watch::Sender<Description>,
    backend_state: State,
    auth_url: String,
    error: String,
    trouble: Option<String>,
    host_problems: Vec<String>,
    host_ready: bool,
    last_server_ping: String,
    listeners: Vec<(NotifyMask, mpsc::Sender<Notify>)>,
    sessions_given: u64,
    pings: BTreeMap<u64, WaitingPing>,
    next_token: u64,
    netmap_unsaved: bool,
    netmap_saved_at: Instant,
    netmap_is_cached: bool,
}

impl EngineTask {
    /// The task, ready to [`run`](Self::run).
    pub fn new(parts: Parts) -> Self {
        let (description, _) = watch::channel(Description::default());
        Self {
            shared: parts.shared,
            pump: parts.pump,
            relays: parts.relays,
            host: parts.host,
            engine: parts.engine,
            state: parts.state,
            dialer: parts.dialer,
            inbox: parts.inbox,
            link: parts.link,
            candidate_key: parts.candidate_key,
            rebind: parts.rebind,
            session: None,
            epoch: 0,
            description,
            backend_state: State::NoState,
            auth_url: String::new(),
            error: String::new(),
            trouble: None,
            host_problems: Vec::new(),
            host_ready: false,
            last_server_ping: String::new(),
            listeners: Vec::new(),
            sessions_given: 0,
            pings: BTreeMap::new(),
            next_token: 0,
            netmap_unsaved: false,
            netmap_saved_at: Instant::now(),
            netmap_is_cached: false,
        }
    }

    /// Works until told to stop; then everything in the operating system is
    /// as it was before.
    pub async fn run(
        mut self,
        mut messages: Outbox,
        mut outcomes: mpsc::UnboundedReceiver<Outcome>,
    ) {
        self.wake_up();
        let mut sample = Instant::now() + SAMPLE_IDLE;
        loop {
            self.carry_out();
            let due = [
                self.engine.next_deadline().map(|(at, _)| at),
                self.netmap_due(),
            ];
            let deadline = due.into_iter().flatten().fold(sample, Instant::min);
            tokio::select! {
                message = messages.next() => match message {
                    None | Some(Message::Stop) => break,
                    Some(message) => self.handle(message),
                },
                Some(outcome) = outcomes.recv() => self.host_done(outcome),
                () = tokio::time::sleep_until(deadline.into()) => {
                    let now = Instant::now();
                    self.engine.handle_timeout(now, wall_clock());
                    self.save_netmap_if_due(now);
                    if now >= sample {
                        let busy = self.engine.sample_traffic(now, wall_clock());
                        sample = now + if busy { SAMPLE_BUSY } else { SAMPLE_IDLE };
                        self.housekeeping(now);
                    }
                }
            }
        }
        self.session = None;
        self.relays.close_all();
        self.save_netmap();
        self.host.stop().await;
    }

    /// Where the last run left off.
    fn wake_up(&mut self) {
        let now = Instant::now();
        self.tell_link(now);
        self.apply_prefs(now);
        if self.state.login.is_some()
            && let Some(netmap) = self.state.load_netmap()
        {
            self.netmap_is_cached = true;
            self.engine.restore_netmap(now, wall_clock(), netmap);
        }
        if self.state.login.is_some() && self.state.prefs.want_running {
            self.connect(None);
        } else {
            self.settle();
        }
    }

    fn handle(&mut self, message: Message) {
        let (now, wall) = (Instant::now(), wall_clock());
        match message {
            Message::Udp { .. } | Message::RelayPacket { .. } if !self.is_engaged() => {}
            Message::Udp { from, packet } => self.engine.handle_udp(now, wall, from, &packet),
            Message::RelayPacket {
                region,
                from,
                packet,
            } => {
                self.engine.handle_relay(now, wall, region, from, &packet);
            }
            Message::RelayData { region, to, packet } => self.relays.send(region, &to, &packet),
            Message::RelayUp(region, connection) => {
                if self.relays.is_current(region, connection) {
                    self.engine.relay_connected(now, region);
                }
            }
            Message::RelayDown(region, connection) => {
                if self.relays.is_current(region, connection) {
                    self.relays.close(region);
                    self.engine.relay_disconnected(now, region);
                }
            }
            Message::RelayPeerGone { region, peer } => {
                self.engine.relay_peer_gone(now, region, peer);
            }
            Message::RelayLatency(region, latency) => {
                self.engine.relay_https_latency(now, region, latency);
            }
            Message::Resolved(name, addresses) => self.engine.host_resolved(now, &name, addresses),
            Message::NeedSession(peer) => self.engine.need_session(now, wall, peer),
            Message::Confirmed(index) => self.engine.session_confirmed(now, index),
            Message::Heard(peer, from) => self.engine.heard(now, peer, from),
            Message::DiscoAdvertised(peer, key) => self.engine.disco_advertised(now, peer, key),
            Message::TsmpPong { data, .. } => {
                self.ping_answered(u64::from_be_bytes(data), None);
            }
            Message::Link(change) => {
                self.link = change.state;
                if let Change::Major(why) = change.change {
                    tracing::info!(?why, "the network changed");
                    if let Err(error) = self.rebind() {
                        tracing::warn!(%error, "sockets are as before");
                    }
                    let here = self.link.interfaces.iter().flat_map(|it| &it.addrs);
                    let here: Vec<IpAddr> = here.map(ipnet::IpNet::addr).collect();
                    let stranded = self.relays.close_stranded(|it| here.contains(&it));
                    for region in stranded {
                        self.engine.relay_disconnected(now, region);
                    }
                    self.engine.link_changed(now);
                    if self.session.is_some() && self.state.login.is_some() {
                        // Its connection hangs in the old network.
                        self.connect(None);
                    }
                }
                self.tell_link(now);
            }
            Message::Control(epoch, event) => {
                if epoch == self.epoch && self.session.is_some() {
                    self.control(now, wall, event);
                }
            }
            Message::Request(request) => request(self),
            // The loop looks at it before.
            Message::Stop => {}
        }
    }

    // ---- outputs of the engine ----

    fn carry_out(&mut self) {
        while let Some(output) = self.engine.poll_output() {
            match output {
                Output::SendUdp { to, packet } => self.shared.send_udp(to, &packet),
                Output::SendRelay { region, to, packet } => self.relays.send(region, &to, &packet),
                Output::ConnectRelay(region) => {
                    if !self.relays.connect(region) {
                        self.engine.relay_disconnected(Instant::now(), region);
                    }
                }
                Output::CloseRelay(region) => self.relays.close(region),
                Output::HomeRelay(region) => self.relays.set_home(region),
                Output::ProbeRelayHttps(region) => {
                    self.relays.measure_https(region);
                }
                Output::ResolveHost(name) => {
                    let inbox = self.inbox.clone();
                    tokio::spawn(async move {
                        let found = tokio::net::lookup_host((name.as_str(), 0)).await;
                        let addresses = found
                            .map(|addresses| addresses.map(|address| address.ip()).collect())
                            .unwrap_or_default();
                        inbox.tell(Message::Resolved(name, addresses));
                    });
                }
                Output::View(view) => self.shared.publish(view),
                Output::Keepalive(peer) => self.pump.order(OutCommand::Keepalive(peer)),
                Output::Inject { peer, packet } => {
                    self.pump.order(OutCommand::Inject(peer, packet));
                }
                Output::DropStaged(peer) => self.pump.order(OutCommand::DropStaged(peer)),
                Output::Host(_) => self.refresh_host(),
                Output::Netmap(changes) => {
                    if changes.derp_map {
                        for region in self.relays.set_map(&self.engine.netmap().derp_map) {
                            self.engine.relay_disconnected(Instant::now(), region);
                        }
                    }
                    self.refresh_host();
                    self.netmap_unsaved = true;
                    self.save_netmap_if_due(Instant::now());
                    self.settle();
                    let network_map = status::network_map(&self.engine, self.netmap_is_cached);
                    self.notify(|notify| notify.net_map = Some(Box::new(network_map)));
                }
                Output::Control(_) => self.refresh_description(),
                Output::Pong(answer) => self.path_ping_ended(answer),
            }
        }
    }

    /// Tells the host task what follows from netmap and preferences.
    fn refresh_host(&mut self) {
        let running = self.is_engaged() && self.state.prefs.want_running;
        let wanted = if running {
            Wanted {
                host: self.engine.host_config().clone(),
                dns: self.resolver_config(),
            }
        } else {
            Wanted::default()
        };
        self.host.want(wanted);
    }

    fn resolver_config(&self) -> Option<ResolverConfig> {
        if !self.state.prefs.corp_dns {
            return None;
        }
        let netmap = self.engine.netmap();
        let own = netmap.self_node.as_ref()?;
        let options = DnsOptions {
            accept_dns: true,
            key_expired: false,
        };
        let peers = netmap.peers.values();
        Some(ResolverConfig::from_netmap(
            &netmap.dns_config,
            own,
            peers,
            options,
        ))
    }

    fn refresh_description(&mut self) {
        let report = self.engine.control_report();
        let mut hostinfo = hostinfo::describe(&self.state.prefs);
        hostinfo.net_info = report.net_info.clone();
        let description = Description {
            hostinfo,
            endpoints: report.endpoints.clone(),
            disco_key: Some(report.disco_key),
        };
        self.description.send_if_modified(|current| {
            let changed = *current != description;
            *current = description;
            changed
        });
    }

    fn host_done(&mut self, outcome: Outcome) {
        for problem in &outcome.problems {
            tracing::warn!("{problem}");
        }
        self.host_problems = outcome.problems;
        // Addresses count once they were asked for and set.
        self.host_ready = !self.engine.host_config().addresses.is_empty();
        self.settle();
    }

    fn housekeeping(&mut self, now: Instant) {
        let late: Vec<u64> = self
            .pings
            .iter()
            .filter(|(_, ping)| now - ping.since >= PING_PATIENCE)
            .map(|(token, _)| *token)
            .collect();
        for token in late {
            self.ping_failed(token, "no answer".to_owned());
        }
        self.listeners.retain(|(_, listener)| !listener.is_closed());
        self.settle();
    }

    /// Soon, so that a node that is killed right after joining still knows its
    /// network; changes in quick succession are gathered.
    fn save_netmap_if_due(&mut self, now: Instant) {
        if self.netmap_due().is_some_and(|due| now >= due) {
            self.save_netmap();
        }
    }

    /// When the netmap is to be written; `None` when the file is up to date.
    fn netmap_due(&self) -> Option<Instant> {
        let big = self.engine.netmap().peers.len() > BIG_NETMAP;
        let pause = if big {
            BIG_NETMAP_WRITES
        } else {
            NETMAP_WRITES
        };
        self.netmap_unsaved.then(|| self.netmap_saved_at + pause)
    }

    fn save_netmap(&mut self) {
        if !std::mem::take(&mut self.netmap_unsaved) || self.state.login.is_none() {
            return;
        }
        self.netmap_saved_at = Instant::now();
        let path = self.state.netmap_path();
        let text = serde_json::to_vec(self.engine.netmap());
        // Big, and not urgent: not on the task that everything waits for.
        std::thread::spawn(move || {
            let written = text
                .map_err(std::io::Error::other)
                .and_then(|text| warren_host::atomic_file::write_atomic(&path, &text, 0o600));
            if let Err(error) = written {
                tracing::warn!(%error, "cannot keep the netmap; a restart needs the server");
            }
        });
    }

    fn save_state(&mut self) -> Reply<()> {
        self.state
            .save()
            .map_err(|error| BackendError::Failed(error.to_string()))
    }

    // ---- what the daemon is doing ----

    /// Whether we take part in the network at all.
    fn is_engaged(&self) -> bool {
        matches!(self.backend_state, State::Starting | State::Running)
    }

    /// Works out the state from what is known, and tells listeners.
    fn settle(&mut self) {
        let prefs = &self.state.prefs;
        let own = self.engine.netmap().self_node.as_ref();
        let expired = own
            .and_then(|own| own.key_expiry)
            .is_some_and(|end| end.as_duration().as_secs() <= wall_clock().as_secs() as i64);
        let state = if self.state.login.is_none() || expired {
            State::NeedsLogin
        } else if !prefs.want_running {
            State::Stopped
        } else {
            match own {
                None => State::Starting,
                Some(own) if !own.machine_authorized => State::NeedsMachineAuth,
                Some(_) if self.host_ready => State::Running,
                Some(_) => State::Starting,
            }
        };
        if state == self.backend_state {
            return;
        }
        tracing::info!(from = %self.backend_state, to = %state, "state");
        let engaged = |state| matches!(state, State::Starting | State::Running);
        let crossed =
            engaged(state) != engaged(self.backend_state) || self.backend_state == State::NoState;
        self.backend_state = state;
        if state == State::Running {
            self.auth_url.clear();
        }
        if crossed {
            self.host_ready &= engaged(state);
            self.engine.set_paused(Instant::now(), !engaged(state));
            self.refresh_host();
        }
        self.notify(|notify| notify.state = Some(state));
    }

    fn notify(&mut self, fill: impl FnOnce(&mut Notify)) {
        if self.listeners.is_empty() {
            return;
        }
        let mut notify = Notify::new();
        fill(&mut notify);
        self.listeners
            .retain(|(mask, listener)| match notify.clone().for_mask(*mask) {
                None => !listener.is_closed(),
                // One that does not keep up has to start again.
                Some(notify) => listener.try_send(notify).is_ok(),
            });
    }

    fn tell_link(&mut self, now: Instant) {
        let sockets = self.shared.sockets.load();
        let port = |socket: &Option<warren_host::udp::UdpSocket>| {
            socket.as_ref().map(|socket| socket.local_addr().port())
        };
        let interfaces = self.link.interfaces.iter().filter(|interface| interface.up);
        let addresses = LocalAddresses {
            port_v4: port(&sockets.v4),
            port_v6: port(&sockets.v6),
            interfaces: interfaces
                .flat_map(|interface| interface.addrs.iter().map(ipnet::IpNet::addr))
                .collect(),
            explicit: Vec::new(),
        };
        self.engine.set_local_addresses(now, addresses);
    }

    // ---- the coordination server ----

    /// Starts talking to the server, with what is stored and this key.
    fn connect(&mut self, auth_key: Option<String>) {
        let server = match self.state.prefs.control_url.parse() {
            Ok(server) => server,
            Err(error) => {
                self.error = format!(
                    "the address of the coordination server, {:?}, makes no sense: {error}",
                    self.state.prefs.control_url
                );
                self.settle();
                return;
            }
        };
        let (node_key, old_node_key) = match &self.state.login {
            Some(login) => (login.node_key.clone(), login.old_node_key.clone()),
            None => (self.candidate_key.clone(), None),
        };
        let config = SessionConfig {
            server,
            machine_key: self.state.machine_key.clone(),
            node_key,
            old_node_key,
            auth_key,
            ephemeral: false,
        };
        self.error.clear();
        self.trouble = None;
        self.refresh_description();
        self.epoch += 1;
        self.session = Some(ControlSession::start(
            self.epoch,
            config,
            self.dialer.clone(),
            self.description.subscribe(),
            self.inbox.clone(),
        ));
        self.settle();
    }

    fn control(&mut self, now: Instant, wall: Duration, event: ControlEvent) {
        match event {
            ControlEvent::AuthUrl(url) => {
                self.auth_url = url.clone();
                self.notify(|notify| notify.browse_to_url = Some(url));
            }
            ControlEvent::Registered {
                node_key,
                old_node_key,
                user_profile,
            } => {
                self.registered(now, node_key, old_node_key, user_profile);
            }
            ControlEvent::KeyExpired => self.settle(),
            ControlEvent::StreamBegins => {
                self.trouble = None;
                self.engine.set_control_connected(true);
                self.engine.begin_map_stream();
            }
            ControlEvent::Map(message) => {
                self.netmap_is_cached = false;
                match self.engine.apply_map(now, wall, *message) {
                    Ok(notices) => {
                        if let Some(request) = notices.ping_request {
                            self.answer_server(request);
                        }
                        if let Some(url) = notices.pop_browser_url {
                            self.notify(|notify| notify.browse_to_url = Some(url));
                        }
                    }
                    Err(error) => self.trouble = Some(error.to_string()),
                }
            }
            ControlEvent::Refused(reason) => {
                tracing::warn!(reason, "the coordination server refused");
                self.error = reason.clone();
                self.session = None;
                self.notify(|notify| notify.err_message = Some(reason));
                self.settle();
            }
            ControlEvent::Trouble(what) => {
                self.engine.set_control_connected(false);
                if self.trouble.as_ref() != Some(&what) {
                    tracing::info!(what, "coordination server");
                }
                self.trouble = Some(what);
            }
        }
    }

    fn answer_server(&mut self, request: PingRequest) {
        if request.url.is_empty() || request.url == self.last_server_ping {
            return;
        }
        self.last_server_ping = request.url.clone();
        if let Some(session) = &self.session {
            session.answer_ping(request);
        }
    }

    fn registered(
        &mut self,
        now: Instant,
        node_key: NodeSecret,
        old_node_key: Option<NodeSecret>,
        user_profile: warren_control_types::UserProfile,
    ) {
        if node_key.public() != self.engine.node_key() {
            self.replace_engine(now, &node_key);
        }
        let node_id = self.state.login.as_ref().map(|login| login.node_id.clone());
        self.state.login = Some(Login {
            node_key,
            old_node_key,
            user_profile,
            node_id: node_id.unwrap_or_default(),
        });
        self.state.prefs.logged_out = false;
        if let Err(error) = self.save_state() {
            // Running on is better than stopping; the next start needs a login.
            self.error = error.to_string();
            tracing::error!("{error}");
        }
        self.auth_url.clear();
        self.notify(|notify| notify.login_finished = Some(Empty {}));
        self.settle();
    }

    /// Another node key is another node: everything is learnt anew.
    fn replace_engine(&mut self, now: Instant, node_key: &NodeSecret) {
        let config = EngineConfig {
            node_key: node_key.clone(),
            disco_key: DiscoSecret::generate(&mut SystemEntropy),
            flow_slots: None,
        };
        let entropy = || Box::new(SystemEntropy);
        self.engine = Engine::new(config, now, entropy(), entropy(), entropy());
        self.relays.set_node_key(node_key.clone());
        self.host_ready = false;
        self.engine.set_paused(now, !self.is_engaged());
        self.tell_link(now);
        self.apply_prefs(now);
    }

    fn apply_prefs(&mut self, now: Instant) {
        let prefs = &self.state.prefs;
        let exit_node = Some(prefs.exit_node_id.clone()).filter(|id| !id.is_empty());
        self.engine.set_prefs(
            now,
            NodePrefs {
                accept_routes: prefs.route_all,
                shields_up: prefs.shields_up,
                advertise_routes: prefs.advertise_routes.clone(),
                exit_node: exit_node.map(warren_control_types::StableNodeId),
            },
        );
    }

    // ---- requests of local programs ----

    /// The status.
    pub(super) fn status(&mut self, peers: bool) -> Status {
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

    fn health(&self) -> Vec<String> {
        let mut health = Vec::new();
        health.extend(Some(self.error.clone()).filter(|error| !error.is_empty()));
        if let Some(trouble) = &self.trouble
            && self.state.prefs.want_running
        {
            health.push(format!(
                "no connection to the coordination server: {trouble}"
            ));
        }
        health.extend(self.host_problems.iter().cloned());
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
    pub(super) fn netmap(&self) -> &Netmap {
        self.engine.netmap()
    }

    /// The preferences.
    pub(super) fn prefs(&self) -> Prefs {
        Prefs {
            config: self.state.shown_login(),
            ..self.state.prefs.clone()
        }
    }

    /// Changes preferences.
    pub(super) fn edit_prefs(&mut self, change: &MaskedPrefs) -> Reply<Prefs> {
        let before = self.state.prefs.clone();
        change.apply_to(&mut self.state.prefs);
        if let Err(error) = self.save_state() {
            self.state.prefs = before;
            return Err(error);
        }
        self.prefs_changed(&before);
        Ok(self.prefs())
    }

    fn prefs_changed(&mut self, before: &Prefs) {
        let prefs = self.state.prefs.clone();
        if prefs == *before {
            return;
        }
        self.apply_prefs(Instant::now());
        self.refresh_description();
        if prefs.want_running != before.want_running || prefs.control_url != before.control_url {
            if prefs.want_running && self.state.login.is_some() {
                self.connect(None);
            } else if !prefs.want_running {
                self.session = None;
                self.relays.close_all();
                self.settle();
            }
        }
        self.refresh_host();
        let shown = self.prefs();
        self.notify(|notify| notify.prefs = Some(Box::new(shown)));
    }

    /// Starts with these preferences.
    pub(super) fn start(&mut self, options: Options) -> Reply<()> {
        let before = self.state.prefs.clone();
        if let Some(prefs) = options.update_prefs {
            self.state.prefs = prefs;
        }
        self.state.prefs.logged_out = false;
        if let Err(error) = self.save_state() {
            self.state.prefs = before;
            return Err(error);
        }
        self.apply_prefs(Instant::now());
        let auth_key = Some(options.auth_key).filter(|key| !key.is_empty());
        if auth_key.is_some() || self.state.login.is_some() {
            self.state.prefs.want_running = true;
            self.connect(auth_key);
        } else {
            self.settle();
        }
        let shown = self.prefs();
        self.notify(|notify| notify.prefs = Some(Box::new(shown)));
        Ok(())
    }

    /// Lets a person log in.
    pub(super) fn login_interactive(&mut self) -> Reply<()> {
        if self.state.prefs.control_url.is_empty() {
            return Err(BackendError::Refused(
                "no coordination server is chosen; give one with --login-server".to_owned(),
            ));
        }
        self.state.prefs.want_running = true;
        if let Some(login) = self.state.login.take() {
            // Another key, so that the server asks a person again.
            self.candidate_key = NodeSecret::generate(&mut SystemEntropy);
            let key = self.candidate_key.clone();
            self.replace_engine(Instant::now(), &key);
            drop(login);
        }
        self.save_state()?;
        self.connect(None);
        Ok(())
    }

    /// Gives up the login, at the server and here.
    pub(super) fn logout(&mut self, reason: &str, reply: oneshot::Sender<Reply<()>>) {
        tracing::info!(reason, "logging out");
        let config = self.state.login.as_ref().and_then(|login| {
            Some(SessionConfig {
                server: self.state.prefs.control_url.parse().ok()?,
                machine_key: self.state.machine_key.clone(),
                node_key: login.node_key.clone(),
                old_node_key: None,
                auth_key: None,
                ephemeral: false,
            })
        });
        let forgotten = self.reset_auth();
        let (dialer, hostinfo) = (
            self.dialer.clone(),
            self.description.borrow().hostinfo.clone(),
        );
        tokio::spawn(async move {
            let told = match config {
                None => Ok(()),
                Some(config) => log_out(config, dialer, hostinfo).await.map_err(|error| {
                    BackendError::Failed(format!(
                        "logged out here, but the coordination server could not be told: {error}"
                    ))
                }),
            };
            drop(reply.send(forgotten.and(told)));
        });
    }

    /// Forgets the login here.
    pub(super) fn reset_auth(&mut self) -> Reply<()> {
        self.session = None;
        self.state.login = None;
        self.state.prefs.want_running = false;
        self.state.prefs.logged_out = true;
        self.state.forget_netmap();
        self.netmap_unsaved = false;
        self.auth_url.clear();
        self.candidate_key = NodeSecret::generate(&mut SystemEntropy);
        let key = self.candidate_key.clone();
        self.replace_engine(Instant::now(), &key);
        self.relays.close_all();
        self.settle();
        self.refresh_host();
        let shown = self.prefs();
        self.notify(|notify| notify.prefs = Some(Box::new(shown)));
        self.save_state()
    }

    /// Listens to what changes.
    pub(super) fn subscribe(&mut self, mask: NotifyMask) -> mpsc::Receiver<Notify> {
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

    /// Pings once.
    pub(super) fn ping(
        &mut self,
        ip: IpAddr,
        kind: PingType,
        size: usize,
        reply: oneshot::Sender<Reply<PingResult>>,
    ) {
        let own = self.engine.netmap().self_node.as_ref();
        if own.is_some_and(|own| own.addresses.iter().any(|prefix| prefix.addr() == ip)) {
            let result = PingResult {
                ip: ip.to_string(),
                node_ip: ip.to_string(),
                is_local_ip: true,
                err: format!("{ip} is local Tailscale IP"),
                ..PingResult::default()
            };
            drop(reply.send(Ok(result)));
            return;
        }
        let Some(node) = self.engine.peer_at(ip) else {
            drop(reply.send(Err(BackendError::NotFound(format!(
                "no node of this tailnet has the address {ip}"
            )))));
            return;
        };
        self.next_token += 1;
        let token = self.next_token;
        let node_ip = node.addresses.first().map_or(ip, ipnet::IpNet::addr);
        let waiting = WaitingPing {
            asked: ip,
            node_ip,
            node_name: node.base_name().to_owned(),
            since: Instant::now(),
            reply,
        };
        self.pings.insert(token, waiting);
        let started = match kind {
            PingType::Disco => self.engine.ping(Instant::now(), ip, token, size).map(drop),
            PingType::Tsmp => self.engine.ping_through_tunnel(ip, token),
            PingType::Icmp | PingType::PeerApi => {
                self.ping_failed(token, format!("{kind} pings are not supported yet"));
                return;
            }
        };
        if let Err(error) = started {
            self.ping_failed(token, error.to_string());
        }
    }

    fn path_ping_ended(&mut self, answer: PingAnswer) {
        match answer.result {
            Ok(pong) => self.ping_answered(answer.token, Some(pong)),
            Err(PingError::Path(error)) => self.ping_failed(answer.token, error.to_string()),
            Err(error) => self.ping_failed(answer.token, error.to_string()),
        }
    }

    fn ping_answered(&mut self, token: u64, pong: Option<Pong>) {
        let Some(ping) = self.pings.remove(&token) else {
            return;
        };
        let latency = pong.map_or_else(|| ping.since.elapsed(), |pong| pong.latency);
        let mut result = PingResult {
            ip: ping.asked.to_string(),
            node_ip: ping.node_ip.to_string(),
            node_name: ping.node_name,
            latency_seconds: latency.as_secs_f64(),
            ..PingResult::default()
        };
        match pong.map(|pong| pong.via) {
            None => {}
            Some(Via::Udp(address)) => result.endpoint = address.to_string(),
            Some(Via::Relay(region)) => {
                result.derp_region_id = region.0;
                result.derp_region_code =
                    status::region_code(&self.engine.netmap().derp_map, region);
            }
        }
        // Who asked may have gone.
        drop(ping.reply.send(Ok(result)));
    }

    fn ping_failed(&mut self, token: u64, error: String) {
        let Some(ping) = self.pings.remove(&token) else {
            return;
        };
        let result = PingResult {
            ip: ping.asked.to_string(),
            node_ip: ping.node_ip.to_string(),
            node_name: ping.node_name,
            err: error,
            ..PingResult::default()
        };
        drop(ping.reply.send(Ok(result)));
    }

    /// Whose address is it?
    pub(super) fn whois(&self, target: WhoIsTarget) -> Reply<WhoIsResponse> {
        let netmap = self.engine.netmap();
        let everyone = || netmap.self_node.iter().chain(netmap.peers.values());
        let node = match target {
            WhoIsTarget::Key(key) => everyone().find(|node| node.key == key),
            WhoIsTarget::Ip(ip) => self.node_at(ip),
            WhoIsTarget::Socket(address) => self.node_at(address.ip()),
        };
        let node = node.ok_or_else(|| BackendError::NotFound("no match for IP:port".to_owned()))?;
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

    fn node_at(&self, ip: IpAddr) -> Option<&warren_control_types::Node> {
        let own = self.engine.netmap().self_node.as_ref();
        let own = own.filter(|own| own.addresses.iter().any(|prefix| prefix.addr() == ip));
        own.or_else(|| self.engine.peer_at(ip))
    }

    /// The login in use.
    pub(super) fn current_profile(&self) -> LoginProfile {
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

    /// What was last measured of the network around.
    pub(super) fn netcheck(&mut self) -> Reply<NetcheckReport> {
        let report = self.engine.control_report();
        let Some(info) = &report.net_info else {
            self.engine.restun(Instant::now());
            return Err(BackendError::Unavailable(
                "nothing was measured yet; ask again in a second".to_owned(),
            ));
        };
        let mut out = NetcheckReport {
            now: GoTime::from_unix(wall_clock()),
            udp: info.working_udp.unwrap_or_default(),
            ipv6: info.working_ipv6.unwrap_or_default(),
            os_has_ipv6: info.os_has_ipv6.unwrap_or_default(),
            mapping_varies_by_dest_ip: info.mapping_varies_by_dest_ip,
            upnp: info.upnp,
            pmp: info.pmp,
            pcp: info.pcp,
            preferred_derp: info
                .preferred_derp
                .map(|region| region.0)
                .unwrap_or_default(),
            ..NetcheckReport::default()
        };
        for (name, seconds) in &info.derp_latency {
            let Some((region, family)) = name.split_once('-') else {
                continue;
            };
            let Ok(region) = region.parse::<u16>() else {
                continue;
            };
            let nanoseconds = Duration::try_from_secs_f64(*seconds)
                .unwrap_or_default()
                .as_nanos();
            let nanoseconds = u64::try_from(nanoseconds).unwrap_or(u64::MAX);
            let best = out.region_latency.entry(region).or_insert(nanoseconds);
            *best = (*best).min(nanoseconds);
            match family {
                "v4" => drop(out.region_v4_latency.insert(region, nanoseconds)),
                _ => drop(out.region_v6_latency.insert(region, nanoseconds)),
            }
        }
        out.ipv4 = !out.region_v4_latency.is_empty();
        out.ipv4_can_send = self.link.default_route_v4.is_some();
        out.ipv6_can_send = self.link.default_route_v6.is_some();
        let seen = |v4: bool| {
            report
                .endpoints
                .iter()
                .find(|(address, kind)| {
                    address.is_ipv4() == v4 && *kind == warren_control_types::EndpointType::Stun
                })
                .map(|(address, _)| address.to_string())
                .unwrap_or_default()
        };
        out.global_v4 = seen(true);
        out.global_v6 = seen(false);
        Ok(out)
    }

    /// The counters.
    pub(super) fn metrics(&self) -> Vec<Metric> {
        let counter = |name, help, value: u64, labels| Metric {
            name,
            kind: MetricKind::Counter,
            help,
            labels,
            value: value as f64,
        };
        let mut metrics: Vec<Metric> = DropReason::ALL
            .into_iter()
            .map(|reason| {
                let labels = vec![("reason", format!("{reason:?}").to_lowercase())];
                let value = self.shared.drops.get(reason);
                counter(
                    "warren_dropped_packets_total",
                    "packets dropped, by reason",
                    value,
                    labels,
                )
            })
            .collect();
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

    /// Measures the network around again.
    pub(super) fn restun(&mut self) {
        self.engine.restun(Instant::now());
    }

    /// Binds the sockets anew.
    pub(super) fn rebind(&mut self) -> Reply<()> {
        let sockets = (self.rebind)().map_err(|error| BackendError::Failed(error.to_string()))?;
        self.shared.sockets.store(Arc::new(sockets));
        self.shared.in_waker.wake();
        self.tell_link(Instant::now());
        Ok(())
    }
}

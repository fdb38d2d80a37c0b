//! The task that owns the engine, and with it all state of the daemon.
//!
//! It takes one [`Message`] after the other, lets the engine decide, and does
//! what comes out. It waits for nothing but the next message or the next
//! deadline: what takes time (the operating system, the network, the disk) is
//! done by others, who report back.

mod explain;
mod kept_clock;
mod kept_files;
mod kept_netmap;
mod login;
mod network;
mod pings;
mod prefs;
mod views;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use tokio::sync::{mpsc, watch};
use warren_dial::Dialer;
use warren_dns::{Options as DnsOptions, ResolverConfig};
use warren_host::link::LinkState;
use warren_host::udp::UdpOptions;
use warren_keys::NodeSecret;
use warren_node_core::{Engine, Output};

use self::kept_files::KeptFiles;
use self::pings::WaitingPing;
use super::control_session::{ControlSession, Description};
use super::host_task::{Forwarding, Host, Outcome, Wanted};
use super::hostinfo;
use super::pump::{OutCommand, Pump, Shared};
use super::relays::Relays;
use super::state::StateFolder;
use super::status;
use super::{Inbox, Message, Outbox, wall_clock};
use crate::localapi::error::{ApiError, Reply};
use crate::localapi::notify::{Notify, NotifyMask, State};
use crate::localapi::prefs::NetfilterMode;

/// How often traffic counters are looked at while packets flow.
const SAMPLE_BUSY: Duration = Duration::from_millis(200);
/// How often otherwise.
const SAMPLE_IDLE: Duration = Duration::from_secs(1);
/// Notifications that may wait for a listener.
const LISTENER_QUEUE: usize = 128;
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
    /// How sockets are made.
    pub socket_options: UdpOptions,
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
    socket_options: UdpOptions,

    session: Option<ControlSession>,
    /// The number of the present session.
    epoch: u64,
    /// Whether the map stream of that session stands.
    stream_stands: bool,
    description: watch::Sender<Description>,
    backend_state: State,
    auth_url: String,
    error: String,
    /// Why only a new login helps.
    needs_login: Option<String>,
    /// What the server said when it did not know the node.
    forgotten_there: Option<String>,
    /// The auth key of a login that the server has not taken yet.
    pending_key: Option<String>,
    /// The key that a new login takes the place of.
    replaced_key: Option<NodeSecret>,
    /// The auth key of the last `start`, and when it came.
    given_key: Option<(Instant, String)>,
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
    files: KeptFiles,
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
            socket_options: parts.socket_options,
            session: None,
            epoch: 0,
            stream_stands: false,
            description,
            backend_state: State::NoState,
            auth_url: String::new(),
            error: String::new(),
            needs_login: None,
            forgotten_there: None,
            pending_key: None,
            replaced_key: None,
            given_key: None,
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
            files: KeptFiles::new(),
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
            self.keep_clock();
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
        self.keep_exact_clock();
        self.host.stop().await;
    }

    /// Where the last run left off.
    fn wake_up(&mut self) {
        let now = Instant::now();
        self.resume_clock();
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
            Message::Link(change) => self.link_changed(now, change),
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
                Output::Path { node, destination } => {
                    let peer = self.engine.netmap().peers.get(&node);
                    let name = peer.map_or("?", |peer| peer.base_name());
                    tracing::debug!(peer = name, ?destination, "path");
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
                    if changes.filters
                        && let Some(problem) = self.filter_health()
                    {
                        tracing::warn!("{problem}");
                    }
                    self.refresh_host();
                    self.netmap_unsaved = true;
                    self.save_netmap_if_due(Instant::now());
                    self.settle();
                    if !self.listeners.is_empty() {
                        let network_map = status::network_map(&self.engine, self.netmap_is_cached);
                        let own = network_map.self_node.clone().filter(|_| changes.self_node);
                        self.notify(|notify| {
                            notify.self_change = own.map(Box::new);
                            notify.net_map = Some(Box::new(network_map));
                        });
                    }
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
                beside: self.networks_beside(),
                forwarding: self.forwarding(),
                dns: self.resolver_config(),
            }
        } else {
            Wanted::default()
        };
        self.host.want(wanted);
    }

    /// The networks this machine stands in, when an exit node is not to take
    /// them too.
    fn networks_beside(&self) -> BTreeSet<IpNet> {
        let prefs = &self.state.prefs;
        if prefs.exit_node_id.is_empty() || !prefs.exit_node_allow_lan_access {
            return BTreeSet::new();
        }
        let around = self.link.interfaces.iter();
        around
            .filter(|interface| interface.up && !interface.loopback)
            .flat_map(|interface| &interface.addrs)
            .map(IpNet::trunc)
            .collect()
    }

    fn forwarding(&self) -> Option<Forwarding> {
        let prefs = &self.state.prefs;
        (prefs.netfilter_mode == NetfilterMode::On).then(|| Forwarding {
            snat: !prefs.no_snat,
            stateful: prefs.no_stateful_filtering == Some(false),
            offered: !prefs.advertise_routes.is_empty(),
        })
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
        self.end_late_pings(now);
        self.listeners.retain(|(_, listener)| !listener.is_closed());
        self.settle();
    }

    fn save_state(&mut self) -> Reply<()> {
        self.state
            .save()
            .map_err(|error| ApiError::Failed(error.to_string()))
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
        let state = if self.state.login.is_none() || expired || self.needs_login.is_some() {
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
            tokio::spawn(release_what_started_us());
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

    // ---- the coordination server ----

    // ---- requests of local programs ----
}

/// How long after joining what was needed for that is given back: by then the
/// relays are measured and the first paths found.
const SETTLED: Duration = Duration::from_secs(2);

/// Most of the program has done its work when a node has joined.
async fn release_what_started_us() {
    tokio::time::sleep(SETTLED).await;
    match tokio::task::spawn_blocking(warren_host::resident::release_program).await {
        Ok(Ok(bytes)) => tracing::debug!(bytes, "program released from memory until needed"),
        Ok(Err(error)) => tracing::debug!(%error, "cannot release the program from memory"),
        Err(_) => {}
    }
}

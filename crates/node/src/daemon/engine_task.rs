//! The task that drives the node, and with it all state of the daemon.
//!
//! It takes one [`Message`] after the other, gives it to the [`Node`], and carries
//! out what comes out. It waits for nothing but the next message or the next
//! deadline: work that takes time (the operating system, the network, the disk) is
//! done by other tasks, which report back. Only the login is written to disk here
//! and now, because the node must not go on before it is there.

mod file_writer;
mod filter;
mod host;
mod listeners;
mod login;
mod metrics;
mod network;
mod pings;
mod prefs;
mod profiles;
mod relay_server;
mod ssh;
mod tailnet_lock;
mod views;
mod why;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tracing::{Instrument as _, Span};
use warren_control_client::Input as ControlInput;
use warren_dial::Dialer;
use warren_host::link::{LinkChange, LinkState};
use warren_host::udp::UdpOptions;
use warren_node_core::Node;
use warren_node_core::node::{HostReport, NodeInput, NodeOutput, NodeState, Notice, SessionId};
use warren_node_types::Family;
use warren_packet_threads::{OutCommand, PacketThreads};

use self::file_writer::FileWriter;
use self::listeners::Listeners;
use self::network::AwaitedNetcheck;
pub(super) use self::network::local_network;
use self::pings::Pings;
pub(super) use self::prefs::node_settings;
use super::control_session::{SessionIo, session_span};
use super::host_task::Host;
use super::magic_dns::DnsCounters;
use super::port_mapping::PortMapping;
use super::relay_server::RelayServer;
use super::relays::{Relays, relay_span};
use super::ssh::Ssh;
use super::state::StateFolder;
use super::userspace::ProgramDialer;
use super::{Inbox, Message, NodeHandle, Outbox, status, wall_clock};
use crate::localapi::c2n;
use crate::localapi::error::{ApiError, Reply};
use crate::localapi::health::HealthState;
use crate::localapi::notify::{Empty, State};

/// The settings and handles with which the task starts.
pub struct EngineTaskConfig {
    /// The packet threads.
    pub packets: PacketThreads,
    /// Counters of MagicDNS.
    pub dns: Arc<DnsCounters>,
    /// Whether the tunnel device is an interface of the operating system.
    pub has_interface: bool,
    /// Makes connections for programs; `None` where none ask.
    pub programs: Option<Arc<ProgramDialer>>,
    /// The SSH server.
    pub ssh: Ssh,
    /// Relay connections.
    pub relays: Relays,
    /// The operating system.
    pub host: Host,
    /// The node, not started yet.
    pub node: Node,
    /// Keys and preferences.
    pub state: StateFolder,
    /// For sessions with the coordination server.
    pub dialer: Dialer,
    /// The task's own inbox, for the tasks that it starts.
    pub inbox: Inbox,
    /// The network around.
    pub link: LinkChange,
    /// How sockets are made.
    pub socket_options: UdpOptions,
    /// The port mapper; a node that leaves the system alone has none.
    pub port_mapping: Option<PortMapping>,
}

/// The handles of everything that the node decides about.
pub struct EngineTask {
    packets: PacketThreads,
    dns: Arc<DnsCounters>,
    has_interface: bool,
    programs: Option<Arc<ProgramDialer>>,
    ssh: Ssh,
    relays: Relays,
    host: Host,
    node: Node,
    state: StateFolder,
    dialer: Dialer,
    inbox: Inbox,
    link: LinkState,
    /// The reason why the task cannot follow the network around.
    link_problem: Option<String>,
    socket_options: UdpOptions,
    relay_server: Option<RelayServer>,
    port_mapping: Option<PortMapping>,
    sessions: BTreeMap<SessionId, SessionIo>,
    listeners: Listeners,
    pings: Pings,
    netchecks: Vec<AwaitedNetcheck>,
    files: FileWriter,
    /// The reason why the login could not be written to disk, for the request
    /// that led to it.
    save_error: Option<String>,
    /// The program that waits for the end of a logout.
    logout_reply: Option<oneshot::Sender<Reply<()>>>,
}

impl EngineTask {
    /// The task, ready to [`run`](Self::run).
    pub fn new(config: EngineTaskConfig) -> Self {
        Self {
            packets: config.packets,
            dns: config.dns,
            has_interface: config.has_interface,
            programs: config.programs,
            ssh: config.ssh,
            relays: config.relays,
            host: config.host,
            node: config.node,
            state: config.state,
            dialer: config.dialer,
            inbox: config.inbox,
            link: config.link.state,
            link_problem: config.link.problem,
            socket_options: config.socket_options,
            relay_server: None,
            port_mapping: config.port_mapping,
            sessions: BTreeMap::new(),
            listeners: Listeners::default(),
            pings: Pings::default(),
            netchecks: Vec::new(),
            files: FileWriter::new(),
            save_error: None,
            logout_reply: None,
        }
    }

    /// Works until it is asked to stop; then everything in the operating system is
    /// as it was before.
    pub async fn run(
        mut self,
        mut messages: Outbox,
        mut results: mpsc::UnboundedReceiver<HostReport>,
    ) {
        let netmap = self.state.load_netmap();
        self.node.start(Instant::now(), wall_clock(), netmap);
        self.carry_out();
        self.refresh_relay_server();
        self.use_router();
        loop {
            let deadline = self.node.next_deadline().map(|(at, _)| at);
            // A node samples traffic all the time, so it has a deadline.
            let deadline = deadline.unwrap_or_else(|| Instant::now() + Duration::from_secs(1));
            tokio::select! {
                message = messages.next() => match message {
                    None | Some(Message::Stop) => break,
                    Some(message) => {
                        // All that follows is logged as belonging to its cause.
                        let _cause = cause(&message).entered();
                        self.handle(message);
                        self.carry_out();
                    }
                },
                Some(result) = results.recv() => {
                    let _cause = tracing::info_span!("host").entered();
                    self.give(NodeInput::HostApplied(result));
                }
                () = tokio::time::sleep_until(deadline.into()) => {
                    self.node.handle_timeout(Instant::now(), wall_clock());
                    self.notify_engine_status();
                }
            }
            self.carry_out();
        }
        self.give(NodeInput::Stop);
        let port_mapping = self.port_mapping.take();
        let released = async {
            if let Some(port_mapping) = port_mapping {
                port_mapping.stop().await;
            }
        };
        tokio::join!(released, self.host.stop());
    }

    fn handle(&mut self, message: Message) {
        match message {
            Message::Node(input) => self.node.handle(Instant::now(), wall_clock(), input),
            Message::RelayConnected {
                region,
                link,
                sender,
            } => {
                if let Some(local) = self.relays.connected(region, link, sender) {
                    self.give(NodeInput::RelayOpened {
                        region,
                        link,
                        local,
                    });
                }
            }
            Message::Link(change) => self.link_changed(change),
            Message::Request(request) => request(self),
            // The loop ends before.
            Message::Stop => {}
        }
    }

    /// Gives something to the node and carries out what follows.
    fn give(&mut self, input: NodeInput) {
        self.node.handle(Instant::now(), wall_clock(), input);
        self.carry_out();
    }

    // ---- outputs of the node ----

    fn carry_out(&mut self) {
        while let Some(output) = self.node.poll_output() {
            self.carry_out_one(output);
        }
        self.answer_netchecks();
    }

    fn carry_out_one(&mut self, output: NodeOutput) {
        match output {
            NodeOutput::SendUdp { to, packet } => self.packets.send_udp(to, &packet),
            NodeOutput::Sockets(order) => {
                self.packets.order_sockets(order, &self.socket_options);
            }
            NodeOutput::SendRelay {
                region,
                link,
                to,
                packet,
            } => self.relays.send(region, link, &to, &packet),
            NodeOutput::View(view) => {
                self.ssh.set_addresses(&view.addresses);
                self.packets.publish(view);
            }
            NodeOutput::Keepalive(peer) => self.packets.order(OutCommand::Keepalive(peer)),
            NodeOutput::DropStaged(peer) => self.packets.order(OutCommand::DropStaged(peer)),
            NodeOutput::Inject { peer, packet } => {
                self.packets.order(OutCommand::Inject(peer, packet));
            }
            NodeOutput::Path { node, destination } => {
                let peer = self.node.netmap().peers.get(&node);
                let name = peer.map_or("?", |peer| peer.base_name());
                let peer = tracing::debug_span!(parent: None, "peer", id = node.0);
                tracing::debug!(parent: &peer, name, ?destination, "path");
            }
            NodeOutput::DialRelay {
                region,
                link,
                definition,
                is_home,
            } => {
                let key = self.node.node_key().clone();
                self.relays.dial(region, link, *definition, is_home, key);
            }
            NodeOutput::CloseRelay(region, link) => self.relays.close(region, link),
            NodeOutput::NoteHome(region, link, home) => self.relays.note_home(region, link, home),
            NodeOutput::ProbeRelayHttps(region) => {
                let regions = &self.node.netmap().derp_map.regions;
                let nodes = regions.get(&region).map(|region| region.nodes.clone());
                self.relays.measure_https(region, nodes.unwrap_or_default());
            }
            NodeOutput::RelayEndpointRequested(request) => self.relay_endpoint_requested(request),
            NodeOutput::ResolveHost(name) => self.resolve(name),
            NodeOutput::WantPortMapping { family, port } => {
                tracing::debug!(%family, ?port, "port mapping");
                if let (Some(mapping), Family::V4) = (&self.port_mapping, family) {
                    mapping.want(port);
                }
            }
            NodeOutput::OpenSession(id) => {
                let session = SessionIo::new(
                    id,
                    &self.state.prefs.control_url,
                    self.state.machine_key.clone(),
                    self.dialer.clone(),
                    self.inbox.clone(),
                );
                self.sessions.insert(id, session);
            }
            NodeOutput::CloseSession(id) => drop(self.sessions.remove(&id)),
            NodeOutput::Control(id, request) => {
                if let Some(session) = self.sessions.get_mut(&id) {
                    session.request(request);
                }
            }
            NodeOutput::C2n {
                session,
                id,
                request,
            } => {
                let inbox = self.inbox.clone();
                let handle = Arc::new(NodeHandle::new(inbox.clone()));
                // The macro takes the id of the parent only, so the parent has to live on.
                let parent = session_span(session);
                let span = tracing::info_span!(parent: &parent, "c2n", id);
                let answering = async move {
                    let response = c2n::respond(handle, &request).await;
                    let answer = ControlInput::C2nAnswer { id, response };
                    inbox.send(NodeInput::Control(session, answer));
                };
                tokio::spawn(answering.instrument(span));
            }
            NodeOutput::Unregister(request) => self.unregister(*request),
            NodeOutput::SaveLogin(id) => {
                let result = self.save_login();
                let now = Instant::now();
                let input = NodeInput::LoginSaved(id, result);
                self.node.handle(now, wall_clock(), input);
            }
            NodeOutput::LockRequest {
                session,
                id,
                request,
            } => {
                if let Some(session) = self.sessions.get_mut(&session) {
                    session.lock_request(id, *request);
                }
            }
            NodeOutput::StoreLock(chain) => self.store_lock(chain.as_deref()),
            NodeOutput::SaveNetmap => self.save_netmap(),
            NodeOutput::ForgetNetmap => {
                let path = self.state.netmap_path();
                self.files.remove(path, "cannot remove the netmap on disk");
            }
            NodeOutput::SaveClock(floor) => self.save_clock(floor),
            NodeOutput::Host => self.refresh_host(),
            NodeOutput::PingEnded { id, report } => self.ping_ended(id, report),
            NodeOutput::Notice(notice) => self.on_notice(notice),
        }
    }

    /// Looks up a host name of the relay map, outside the tunnel.
    fn resolve(&self, name: String) {
        let (dialer, inbox) = (self.dialer.clone(), self.inbox.clone());
        tokio::spawn(async move {
            let addresses = dialer.resolve(&name).await.unwrap_or_default();
            inbox.send(NodeInput::Resolved(name, addresses));
        });
    }

    // ---- the disk ----

    /// Writes the login, and the preferences with it.
    fn save_login(&mut self) -> Result<(), String> {
        self.state.login = self.node.stored_login();
        if self.state.login.account.is_some() {
            self.state.prefs.logged_out = false;
        }
        let result = self.state.save().map_err(|error| error.to_string());
        if let Err(error) = &result {
            tracing::error!("{error}");
            self.save_error = Some(error.clone());
        }
        result
    }

    /// Changes the state and writes it. If either fails, the state is as before: the next
    /// write must not contain a change that was reported as failed.
    fn change_state(&mut self, change: impl FnOnce(&mut StateFolder) -> Reply<()>) -> Reply<()> {
        let before = self.state.in_memory();
        let written = change(&mut self.state).and_then(|()| {
            let saved = self.state.save();
            saved.map_err(|error| ApiError::Failed(error.to_string()))
        });
        if written.is_err() {
            self.state.restore(before);
        }
        written
    }

    fn save_netmap(&self) {
        const CONSEQUENCE: &str = "cannot write the netmap to disk; a restart needs the server";
        let kept = self.node.kept_netmap(Instant::now(), wall_clock());
        match serde_json::to_vec(&kept) {
            Ok(text) => self
                .files
                .write(self.state.netmap_path(), text, CONSEQUENCE),
            Err(error) => tracing::warn!(%error, "{CONSEQUENCE}"),
        }
    }

    fn save_clock(&mut self, floor: Duration) {
        self.state.clock_floor = floor;
        let text = format!("{}\n", floor.as_secs());
        self.files.write(
            self.state.clock_path(),
            text.into_bytes(),
            "cannot write the clock of handshakes to disk; if the machine's clock is set back, \
             peers may refuse us after a restart",
        );
    }

    // ---- notices ----

    fn on_notice(&mut self, notice: Notice) {
        match notice {
            Notice::State(state) => {
                let state = shown_state(Some(state));
                tracing::info!(%state, "state");
                // The engine may be a new one, without peers.
                self.recheck_relay_endpoints();
                self.listeners.notify(|notify| notify.state = Some(state));
            }
            Notice::BrowseTo(url) => {
                self.listeners
                    .notify(|notify| notify.browse_to_url = Some(url));
            }
            Notice::LoginFinished => {
                self.listeners
                    .notify(|notify| notify.login_finished = Some(Empty {}));
                if std::mem::take(&mut self.listeners.state_follows_login) {
                    self.notify_state();
                }
            }
            Notice::Error(error) => {
                tracing::warn!(reason = error, "the coordination server refused");
                self.listeners.state_follows_login = false;
                self.listeners
                    .notify(|notify| notify.err_message = Some(error));
            }
            Notice::SignedByTags(node, Ok(())) => {
                tracing::info!(
                    id = node.0,
                    "signed a node by its tags (warren lock autosign)"
                );
            }
            Notice::SignedByTags(node, Err(error)) => {
                tracing::warn!(id = node.0, error, "a node could not be signed by its tags");
            }
            Notice::Health => {
                let problems = self.health();
                if problems.is_empty() {
                    tracing::info!("no problems any more");
                } else {
                    tracing::warn!(?problems, "health");
                }
                let health = HealthState::new(&problems);
                self.listeners.notify(|notify| notify.health = Some(health));
            }
            Notice::Netmap(changes) => {
                self.ssh.netmap_changed();
                if changes.filters
                    && let Some(problem) = self.node.filter_problem()
                {
                    tracing::warn!("{problem}");
                }
                if changes.self_node || changes.filters || !changes.peers.is_empty() {
                    self.recheck_relay_endpoints();
                }
                if !self.listeners.is_empty() {
                    let is_cached = self.node.netmap_is_cached();
                    let network_map = status::network_map(self.node.engine(), is_cached);
                    let own = network_map.as_ref().and_then(|map| map.self_node.clone());
                    let own = own.filter(|_| changes.self_node);
                    self.listeners.notify(|notify| {
                        notify.self_change = own.map(Box::new);
                        notify.net_map = network_map.map(Box::new);
                    });
                }
            }
        }
    }
}

/// The span of what led to a message. Datagrams have none, because they come at any
/// rate; a request has the one of its caller, see [`NodeHandle`].
fn cause(message: &Message) -> Span {
    match message {
        Message::Node(NodeInput::Control(session, _)) => session_span(*session),
        Message::Node(NodeInput::RelayUp(region, link) | NodeInput::RelayDown(region, link))
        | Message::RelayConnected { region, link, .. } => relay_span(*region, *link),
        Message::Link(_) => tracing::info_span!(parent: None, "network"),
        Message::Node(_) | Message::Request(_) | Message::Stop => Span::none(),
    }
}

/// The state in the words of the local interface.
fn shown_state(state: Option<NodeState>) -> State {
    match state {
        None => State::NoState,
        Some(NodeState::NeedsLogin) => State::NeedsLogin,
        Some(NodeState::NeedsMachineAuth) => State::NeedsMachineAuth,
        Some(NodeState::Stopped) => State::Stopped,
        Some(NodeState::Starting) => State::Starting,
        Some(NodeState::Running) => State::Running,
    }
}

//! Starting the daemon: everything that it cannot do without, in an order in which a
//! failure leaves nothing behind, and then everything that it can.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot, watch};
use warren_dial::Dialer;
use warren_dial::names::ResolveNames;
use warren_dial::proxies::OutgoingProxies;
use warren_dns::ResolverConfig;
use warren_host::BYPASS_MARK;
use warren_host::device::memory::MemoryDevice;
use warren_host::firewall::Firewall;
use warren_host::link::{LinkChange, LinkMonitor};
use warren_host::lock::LockError;
use warren_host::resolver::{self, ResolverError};
use warren_host::router::{Router, RouterError, RouterOptions};
use warren_host::tun::{Tun, TunDevice, TunError};
use warren_host::udp::{UdpError, UdpOptions, UdpPair, bind_pair};
use warren_node_core::node::{HostReport, NodeConfig, NodeOutput};
use warren_node_core::{Node, TUNNEL_MTU};
use warren_packet_threads::{BadThreads, Config, PacketThreads, ThreadCounts, relay_queue};
use warren_service_manager::ServiceManager;
use warren_tunnel::Aead;

use super::aead::{self, BadAead};
use super::config_file::{ConfigFile, ConfigFileError};
use super::engine_task::{EngineTask, EngineTaskConfig, local_network, node_settings};
use super::handle::NodeHandle;
use super::host_task::Host;
use super::outside_names::OutsideNames;
use super::packets::PacketReports;
use super::port_mapping::{Allowed, PortMapping};
use super::relays::Relays;
use super::ssh::{ServiceStack, Ssh, SshPlace};
use super::state::{StateError, StateFolder, StatePlace};
use super::system::{Machine, resolver_options};
use super::userspace::{self, ProgramDialer, Routes, StartedNetwork, UserspaceSystem};
use super::{Inbox, Message, debug_listener, lock_files, magic_dns};
use crate::localapi::server;
use warren_dial::SystemEntropy;

/// The time until a local socket that could not be opened is tried again.
const SOCKET_RETRY: Duration = Duration::from_secs(10);

/// How a daemon runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DaemonOptions {
    /// Folder for what the system needs after a crash: what resolv.conf was. Usually
    /// that of the state too.
    pub state_dir: PathBuf,
    /// Where keys, preferences and the last netmap are kept.
    pub state: StatePlace,
    /// Where to listen for the command line.
    pub socket: PathBuf,
    /// The configuration file, if there is one.
    pub config: Option<PathBuf>,
    /// Where counters and figures are served, as `host:port` or `:port`.
    pub debug: Option<String>,
    /// UDP port; 0 lets the system choose.
    pub port: u16,
    /// The end of the tunnel at this machine.
    pub tunnel: Tunnel,
    /// The proxies for programs of this machine.
    pub proxies: Proxies,
}

/// The end of the tunnel at this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tunnel {
    /// An interface of the operating system with this name.
    Interface(String),
    /// A network stack in this process, which needs no privilege.
    Userspace,
}

/// Where proxies listen, each as `host:port` or `:port`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Proxies {
    /// SOCKS5.
    pub socks5: Option<String>,
    /// HTTP.
    pub http: Option<String>,
}

/// The remedy for a socket of the command line that cannot be opened.
fn socket_advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "run the daemon as root, or give it a socket in a folder of your own with --socket"
        }
        io::ErrorKind::AddrInUse => {
            "is another daemon running? choose another socket with --socket"
        }
        _ => "choose another socket with --socket",
    }
}

/// The daemon cannot run.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The state folder.
    #[error(transparent)]
    State(#[from] StateError),
    /// The number of packet threads that is asked for.
    #[error(transparent)]
    Threads(#[from] BadThreads),
    /// The cipher that is asked for.
    #[error(transparent)]
    Aead(#[from] BadAead),
    /// The tunnel device.
    #[error(transparent)]
    Tun(#[from] TunError),
    /// The sockets.
    #[error(transparent)]
    Udp(#[from] UdpError),
    /// Addresses and routes.
    #[error(transparent)]
    Router(#[from] RouterError),
    /// Name resolution.
    #[error(transparent)]
    Resolver(#[from] ResolverError),
    /// The local interface.
    #[error("cannot listen on {}: {source}; {}", path.display(), socket_advice(source))]
    Socket {
        /// The socket.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// A proxy for programs.
    #[error("cannot listen for programs at {address}: {source}; choose another address")]
    Proxy {
        /// The address.
        address: String,
        /// The error of the system.
        source: io::Error,
    },
    /// The configuration file.
    #[error(transparent)]
    Config(#[from] ConfigFileError),
    /// The listener for counters and figures.
    #[error("cannot serve counters at {address}: {source}; choose another address with --debug")]
    Debug {
        /// The address.
        address: String,
        /// The error of the system.
        source: io::Error,
    },
    /// Anything else of the system.
    #[error("{what}: {source}")]
    System {
        /// The step that failed.
        what: &'static str,
        /// The error of the system.
        source: io::Error,
    },
}

pub(super) fn system(what: &'static str) -> impl FnOnce(io::Error) -> DaemonError {
    move |source| DaemonError::System { what, source }
}

/// Runs a daemon until a signal stops it.
///
/// # Errors
/// [`DaemonError`]; nothing was changed in the operating system then.
pub async fn run(options: DaemonOptions) -> Result<(), DaemonError> {
    let threads = ThreadCounts::choose()?;
    let aead = aead::choose()?;
    let config = options
        .config
        .as_deref()
        .map(ConfigFile::load)
        .transpose()?;
    let mut state = open_state(&options)?;
    let mut auth_key = None;
    if let Some(config) = config {
        config.change.apply_to(&mut state.prefs);
        state.save()?;
        auth_key = config.auth_key.clone();
        state.config = Some(config);
    }
    let auth_key = auth_key.filter(|_| state.login.account.is_none());
    let socket = match LocalSocket::bind(options.socket.clone()) {
        Ok(socket) => Some(socket),
        // A machine that is administered over the tunnel needs the network most.
        Err(error) if is_on_its_own(&state) && error.kind() != io::ErrorKind::AddrInUse => {
            tracing::error!(
                path = %options.socket.display(), %error,
                "no commands are possible until the local socket can be opened; choose another \
                 with --socket"
            );
            None
        }
        Err(source) => {
            let path = options.socket;
            return Err(DaemonError::Socket { path, source });
        }
    };
    let (inbox, messages) = Inbox::new();
    let handle = NodeHandle::new(inbox.clone());
    let (done, results) = mpsc::unbounded_channel();
    let attachment = match &options.tunnel {
        Tunnel::Interface(name) => {
            Attachment::interface(name, threads.out, &options, handle, done).await?
        }
        Tunnel::Userspace => Attachment::userspace(handle, done).await?,
    };
    let mut links = attachment.links;
    let proxies = &options.proxies;
    let programs = &attachment.programs;
    userspace::serve_proxies(proxies.socks5.as_deref(), proxies.http.as_deref(), programs).await?;
    let platform = Platform {
        device: attachment.device,
        in_threads: threads.inward,
        sockets: bind_sockets(options.port, &attachment.socket_options)?,
        socket_options: attachment.socket_options,
        link: links.current(),
        host: attachment.host,
        resolver_config: attachment.resolver_config,
        dialer: attachment.dialer,
        aead,
        port_mapping: Some(Allowed::by_environment()),
        programs: Some(attachment.programs),
        services: attachment.services,
        ssh: Some(attachment.ssh),
    };
    let task = platform.engine_task(state, inbox.clone())?;

    let watcher = inbox.clone();
    tokio::spawn(async move {
        loop {
            let change = links.next().await;
            watcher.send(Message::Link(change));
            if watcher.is_closed() {
                return;
            }
        }
    });
    let stopper = inbox.clone();
    tokio::spawn(async move {
        stop_signal().await;
        stopper.send(Message::Stop);
    });

    let handle = Arc::new(NodeHandle::new(inbox.clone()));
    if let Some(address) = &options.debug {
        debug_listener::serve(address, NodeHandle::new(inbox.clone())).await?;
    }
    if let Some(auth_key) = auth_key {
        inbox.send(Message::Request(Box::new(|task| {
            if let Err(error) = task.log_in_with(auth_key) {
                tracing::error!(%error, "the auth key of the configuration file is not used");
            }
        })));
    }
    let local = tokio::spawn(serve_local_programs(socket, options.socket.clone(), handle));
    tracing::info!(socket = %options.socket.display(), "ready");
    let manager = ServiceManager::from_environment();
    manager.ready();
    let watchdog = tokio::spawn(report_alive(manager.clone(), inbox));
    task.run(messages, results).await;
    manager.stopping();
    watchdog.abort();
    local.abort();
    // The file of the socket goes with the task.
    let _cancelled = local.await;
    Ok(())
}

/// The state in the place that the options name.
fn open_state(options: &DaemonOptions) -> Result<StateFolder, DaemonError> {
    match &options.state {
        StatePlace::Files { folder, file } => {
            Ok(StateFolder::open(folder, file, &mut SystemEntropy)?)
        }
        StatePlace::Memory => {
            if matches!(options.tunnel, Tunnel::Interface(_)) {
                // For what resolv.conf was. It may be a folder of the system, as /tmp.
                let made = std::fs::create_dir_all(&options.state_dir);
                made.map_err(|source| StateError::Folder {
                    path: options.state_dir.clone(),
                    source,
                })?;
            }
            Ok(StateFolder::in_memory_only(&mut SystemEntropy)?)
        }
    }
}

/// The place of a node in the operating system, or beside it.
struct Attachment {
    device: TunnelDevice,
    socket_options: UdpOptions,
    links: LinkMonitor,
    host: Host,
    resolver_config: watch::Receiver<ResolverConfig>,
    dialer: Dialer,
    programs: Arc<ProgramDialer>,
    /// The device of services beside an interface.
    services: Option<Arc<MemoryDevice>>,
    ssh: SshPlace,
}

impl Attachment {
    /// An interface with this name, with routes, firewall and resolver. `done` gets the
    /// reports of the host task.
    async fn interface(
        name: &str,
        queues: usize,
        options: &DaemonOptions,
        handle: NodeHandle,
        done: mpsc::UnboundedSender<HostReport>,
    ) -> Result<Self, DaemonError> {
        let tun = TunDevice::create(name, queues)?;
        if let Err(error) = tun.set_mtu(TUNNEL_MTU) {
            // It is set with the addresses too.
            tracing::warn!(%error, "the MTU is not set yet");
        }
        let interface = tun.name().to_owned();
        let links = LinkMonitor::start(&[&interface]).await;
        let names = Arc::new(OutsideNames::default());
        let dialer = Dialer::outside_tunnel(Arc::clone(&names) as Arc<dyn ResolveNames>)
            .with_proxies(outgoing_proxies());
        let (answers, resolver_config) = watch::channel(ResolverConfig::default());
        let machine = Machine::open(interface, &options.state_dir, answers, names).await;
        let stack = ServiceStack::start()?;
        Ok(Self {
            device: TunnelDevice::System(tun),
            socket_options: UdpOptions {
                mark: Some(BYPASS_MARK),
                ..UdpOptions::default()
            },
            links,
            host: Host::start(machine, done),
            resolver_config,
            dialer,
            programs: Arc::new(ProgramDialer::with_interface(handle)),
            services: Some(stack.device),
            ssh: SshPlace {
                services: stack.services,
                network: Some(stack.network),
            },
        })
    }

    /// A network stack in this process.
    async fn userspace(
        handle: NodeHandle,
        done: mpsc::UnboundedSender<HostReport>,
    ) -> Result<Self, DaemonError> {
        let StartedNetwork {
            device,
            network,
            own,
            closed,
            services,
        } = userspace::start_network()?;
        let (routes, known_routes) = watch::channel(Routes::default());
        let (answers, resolver_config) = watch::channel(ResolverConfig::default());
        let programs =
            ProgramDialer::without_interface(handle, network.clone(), known_routes, closed);
        let system = UserspaceSystem {
            network,
            own,
            routes,
            answers,
        };
        Ok(Self {
            device: TunnelDevice::Memory(device),
            socket_options: UdpOptions::default(),
            links: LinkMonitor::start(&[]).await,
            host: Host::start(system, done),
            resolver_config,
            dialer: Dialer::new().with_proxies(outgoing_proxies()),
            programs: Arc::new(programs),
            services: None,
            ssh: SshPlace {
                services,
                network: None,
            },
        })
    }
}

/// The proxies for connections to the coordination server and to relays.
fn outgoing_proxies() -> OutgoingProxies {
    let proxies = OutgoingProxies::from_environment();
    let variables = proxies.variables();
    if !variables.is_empty() {
        tracing::info!(
            ?variables,
            "the coordination server and the relays are reached through a proxy"
        );
    }
    proxies
}

/// Reports that the daemon works, as often as the service manager wants it: each time
/// the engine task has answered.
async fn report_alive(manager: ServiceManager, engine: Inbox) {
    let Some(period) = manager.watchdog_period() else {
        return;
    };
    loop {
        tokio::time::sleep(period).await;
        let (reply, answer) = oneshot::channel();
        // A task that has ended does not answer.
        engine.send(Message::Request(Box::new(move |_| _ = reply.send(()))));
        if answer.await.is_err() {
            return;
        }
        manager.alive();
    }
}

/// Whether the node goes to the network without a command.
fn is_on_its_own(state: &StateFolder) -> bool {
    state.login.account.is_some() && state.prefs.want_running
}

/// Serves the local interface, as soon as its socket can be opened.
async fn serve_local_programs(
    mut socket: Option<LocalSocket>,
    path: PathBuf,
    handle: Arc<NodeHandle>,
) {
    let socket = loop {
        if let Some(socket) = socket {
            break socket;
        }
        tokio::time::sleep(SOCKET_RETRY).await;
        socket = LocalSocket::bind(path.clone())
            .inspect_err(|error| tracing::debug!(%error, "the local socket cannot be opened yet"))
            .ok();
    };
    let LocalSocket {
        listener,
        file: _file,
    } = socket;
    server::serve(listener, handle).await;
}

/// The socket of the local interface, and its file.
struct LocalSocket {
    listener: UnixListener,
    file: RemovedAtEnd,
}

impl LocalSocket {
    fn bind(path: PathBuf) -> io::Result<Self> {
        let listener = server::bind(&path)?;
        let file = RemovedAtEnd(path);
        Ok(Self { listener, file })
    }
}

/// The device through which packets of the host enter and leave the tunnel.
pub(super) enum TunnelDevice {
    /// An interface of the operating system.
    System(TunDevice),
    /// A device in this process.
    Memory(MemoryDevice),
}

/// The parts of a machine that a node works with, opened.
pub(super) struct Platform {
    /// The tunnel device.
    pub(super) device: TunnelDevice,
    /// The number of threads that receive from the network.
    pub(super) in_threads: usize,
    /// The UDP sockets.
    pub(super) sockets: UdpPair,
    /// The options that the sockets were made with.
    pub(super) socket_options: UdpOptions,
    /// The network around.
    pub(super) link: LinkChange,
    /// The task that sets the operating system up.
    pub(super) host: Host,
    /// The settings of MagicDNS, as that task compiles them.
    pub(super) resolver_config: watch::Receiver<ResolverConfig>,
    /// For connections to the coordination server and to relays.
    pub(super) dialer: Dialer,
    /// The cipher of the tunnel.
    pub(super) aead: Aead,
    /// The kinds of port mapping that are used, if the node may ask routers at all.
    pub(super) port_mapping: Option<Allowed>,
    /// Makes connections for programs; `None` where none ask.
    pub(super) programs: Option<Arc<ProgramDialer>>,
    /// The device of services of the node beside an interface.
    pub(super) services: Option<Arc<MemoryDevice>>,
    /// The place of the SSH server, if there can be one.
    pub(super) ssh: Option<SshPlace>,
}

impl Platform {
    /// Starts the packet threads and MagicDNS, and makes the task of a node that
    /// goes on from `state`.
    ///
    /// # Errors
    /// [`DaemonError::System`] when descriptors or threads are lacking.
    pub(super) fn engine_task(
        self,
        mut state: StateFolder,
        inbox: Inbox,
    ) -> Result<EngineTask, DaemonError> {
        if state.prefs.control_url.is_empty() {
            state.prefs.want_running = false;
        }
        let has_interface = matches!(self.device, TunnelDevice::System(_));
        let handle = NodeHandle::new(inbox.clone());
        let mut ssh = Ssh::new(self.ssh, state.ssh_folder(), handle);
        ssh.set(state.prefs.run_ssh);
        let config = NodeConfig {
            stored: state.login.clone(),
            lock: lock_files::load(state.lock_folder().as_deref()),
            clock_floor: state.clock_floor,
            settings: node_settings(&state.prefs, has_interface, ssh.public_keys()),
            network: local_network(&self.sockets, &self.link.state),
            flow_slots: None,
            aead: self.aead,
            ranges: warren_node_types::TailnetRanges::DEFAULT,
            ephemeral: state.is_ephemeral(),
        };
        let mut node = Node::new(config, Instant::now(), Box::new(SystemEntropy));
        let mut outputs = std::iter::from_fn(|| node.poll_output());
        let first_view = outputs.find_map(|output| match output {
            NodeOutput::View(view) => Some(view),
            _ => None,
        });
        let first_view = first_view.unwrap_or_else(|| unreachable!("a new node publishes a view"));

        let (relay_feed, relay_inbox) =
            relay_queue().map_err(system("cannot make a wake-up descriptor"))?;
        let relays = Relays::new(self.dialer.clone(), inbox.clone(), relay_feed);
        let (dns_queue, dns_packets) = mpsc::channel(magic_dns::WAITING_QUESTIONS);
        let config = Config {
            inward: self.in_threads,
            sockets: self.sockets,
            view: first_view,
            engine: Arc::new(PacketReports {
                engine: inbox.clone(),
                dns: dns_queue,
                services: self.services.clone(),
            }),
            relay_ports: relays.ports(),
            relay_inbox,
            services: self.services,
        };
        let packets = match self.device {
            TunnelDevice::System(tun) => PacketThreads::over_tun(tun, config),
            TunnelDevice::Memory(device) => PacketThreads::over_memory(device, config),
        };
        let packets = packets.map_err(system("cannot start the packet threads"))?;
        let dns = Arc::<magic_dns::DnsCounters>::default();
        tokio::spawn(magic_dns::serve(
            packets.frame_writer(),
            Arc::clone(&dns),
            dns_packets,
            self.resolver_config,
        ));
        let port_mapping = self.port_mapping.map(|allowed| {
            let record = state.port_mapping_path();
            PortMapping::start(allowed, record, self.dialer.clone(), inbox.clone())
        });
        Ok(EngineTask::new(EngineTaskConfig {
            packets,
            dns,
            has_interface,
            programs: self.programs,
            ssh,
            relays,
            host: self.host,
            node,
            state,
            dialer: self.dialer,
            inbox,
            link: self.link,
            socket_options: self.socket_options,
            port_mapping,
        }))
    }
}

/// The file of our socket. The next daemon removes a stale one too, but an
/// orderly end leaves nothing, be it of a long run or of a start that failed.
struct RemovedAtEnd(PathBuf);

impl Drop for RemovedAtEnd {
    fn drop(&mut self) {
        // Gone already is as good.
        drop(std::fs::remove_file(&self.0));
    }
}

/// Binds the sockets. A port that is taken does not keep the node from the network,
/// but a user that opened it in a router should know.
fn bind_sockets(port: u16, options: &UdpOptions) -> Result<UdpPair, UdpError> {
    let sockets = bind_pair(&[port], options)?;
    for socket in [&sockets.v4, &sockets.v6].into_iter().flatten() {
        let bound = socket.local_addr();
        if port != 0 && bound.port() != port {
            tracing::warn!(
                wanted = port,
                bound = bound.port(),
                "the UDP port is taken by another program; using another one. \
                 Stop that program or choose a free port with --port"
            );
        }
    }
    Ok(sockets)
}

/// Waits for the signal to stop.
async fn stop_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut terminate), Ok(mut interrupt)) = (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
    ) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

/// Removes what an earlier daemon left in the operating system. Each part is tried,
/// whatever happens to the others; where nothing is left, nothing fails.
///
/// # Errors
/// The first [`DaemonError`] of what is left and cannot be removed, or of a daemon that
/// still runs. The others are logged.
pub async fn clean_up(options: &DaemonOptions) -> Result<(), DaemonError> {
    let Tunnel::Interface(interface) = &options.tunnel else {
        // Such a daemon changes nothing in the system.
        return Ok(());
    };
    // Nothing is touched while a daemon runs. Where its folder cannot be locked for
    // another reason, the interface decides.
    let _lock = match StateFolder::lock(&options.state_dir) {
        Err(error @ LockError::AlreadyRunning { .. }) => {
            return Err(StateError::from(error).into());
        }
        Err(LockError::Io { .. }) => None,
        Ok(lock) => Some(lock),
    };
    // Only a daemon that runs keeps the interface busy. Without TUN devices there is
    // no interface of ours.
    if let Err(error @ TunError::NameTaken { .. }) = Tun::create(interface) {
        return Err(error.into());
    }
    let resolver = resolver::recover(&resolver_options(interface, &options.state_dir));
    let router = Router::remove_leftovers(RouterOptions::default()).await;
    if let Err(error) = Firewall::open() {
        tracing::warn!(%error, "rules of the packet filter may be left");
    }
    let results = [
        resolver.map_err(DaemonError::from),
        router.map_err(DaemonError::from),
    ];
    let mut errors = results.into_iter().filter_map(Result::err);
    let first = errors.next();
    for error in errors {
        tracing::error!("{error}");
    }
    first.map_or(Ok(()), Err)
}

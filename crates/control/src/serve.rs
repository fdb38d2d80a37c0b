//! `warren-control serve`: opens the state, binds the ports, starts the tasks.

use std::collections::BTreeSet;
use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use url::Url;
use warren_control_api::socket::AdminSocket;
use warren_control_core::{AdminError, Config, Coordinator, Snapshot, View};
use warren_control_types::DerpMap;
use warren_dial::SystemEntropy;
use warren_dial::connections::{ConnectionLimits, ConnectionTable, OTHER_FILES};
use warren_dial::limits::raise_file_limit;
use warren_keys::{MachineSecret, NodeSecret};
use warren_logging::LevelControl;
use warren_relay::tls::Certificate;
use warren_relay::{Applicant, Relay};
use warren_service_manager::{PassedSockets, ServiceManager};

use crate::admin::{self, Administration};
use crate::banner::{BannerFacts, banner};
use crate::certificates::{Acceptor, CertificateFile, CertificateFiles};
use crate::cli::args::{OptionalListen, Serve};
use crate::clock::{now, wall_clock};
use crate::config::{Settings, Source};
use crate::coordinator::CoordinatorHandle;
use crate::dns_records::RecordsFile;
use crate::failure::{Failure, print, print_error};
use crate::inputs::{Inputs, RecordsOfFile};
use crate::invite::{Invitation, invite};
use crate::login::Logins;
use crate::metrics::MetricsPages;
use crate::noise::Upgrader;
use crate::policy_file::{self, PolicyFile};
use crate::refusals::Refused;
use crate::reload::{Reloader, levels};
use crate::second_dial::SecondDial;
use crate::self_map::{bind, check_outside_zone, guess_url, own_map, taken};
use crate::server::{Server, Tls};
use crate::state_dir::StateDir;
use crate::store::{self, WriteQueue};
use crate::terminal::Hints;
use crate::watched_file;

/// The port of RFC 8489.
const STUN_PORT: u16 = 3478;
/// The names of the sockets that a service manager can pass.
const NODES_SOCKET: &str = "control";
const SECOND_DIAL_SOCKET: &str = "second-dial";
const STUN_SOCKET: &str = "stun";
const METRICS_SOCKET: &str = "metrics";
const SERVICES: &[&str] = &[
    NODES_SOCKET,
    SECOND_DIAL_SOCKET,
    METRICS_SOCKET,
    STUN_SOCKET,
];

/// A server whose ports are bound and whose state is open.
pub struct Running {
    /// The coordinator.
    pub coordinator: Arc<CoordinatorHandle>,
    /// The URL at which nodes reach it.
    pub server_url: String,
    /// The text that it prints at start.
    pub banner: String,
    /// Whether that shows a pre-auth key.
    pub shows_key: bool,
    /// Lines about nodes that join and leave.
    pub lines: mpsc::UnboundedReceiver<String>,
    /// The server's tasks; they end when this is dropped.
    pub tasks: JoinSet<()>,
    /// The connections of its port.
    pub connections: Arc<ConnectionTable>,
    /// The identity providers.
    pub logins: Arc<Logins>,
    /// Reads the settings again.
    pub settings: Arc<Reloader>,
    /// Where metrics are served.
    pub metrics: Option<SocketAddr>,
    relay: Option<Relay>,
    _state: StateDir,
}

impl std::fmt::Debug for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Running")
            .field("server_url", &self.server_url)
            .finish_non_exhaustive()
    }
}

impl Running {
    /// Ends all connections and waits until everything is on disk.
    ///
    /// # Errors
    /// Something could not be written.
    pub async fn stop(mut self) -> Result<(), Failure> {
        if let Some(relay) = &self.relay {
            relay.close();
        }
        self.tasks.shutdown().await;
        self.coordinator.flush().await?;
        Ok(())
    }
}

/// Runs the server until a signal ends it.
pub(crate) async fn run(state_dir: &Path, serve: Serve) -> Result<(), Failure> {
    let source = Source::of_process(serve);
    let settings = source.read()?;
    let log = warren_logging::start(settings.log_format, levels(&settings));
    let mut hang_up = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup())?;
    let mut interrupt = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())?;
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let sockets = PassedSockets::from_environment()?;
    let mut running = start_with(sockets, state_dir, source, settings, Some(log)).await?;
    print(std::mem::take(&mut running.banner));
    if running.shows_key && !std::io::stdout().is_terminal() {
        print(
            "This output is not a terminal. If it goes into a log, readers of the log can use \
             the key above until a machine has joined with it or its time is over.\n\n"
                .to_owned(),
        );
    }
    let manager = ServiceManager::from_environment();
    manager.ready();
    let mut watchdog = manager.watchdog_period().map(tokio::time::interval);
    loop {
        tokio::select! {
            // A coordinator whose lock is never given back does not work.
            () = next(&mut watchdog) => running.coordinator.read(|_| manager.alive()),
            line = running.lines.recv() => {
                let Some(line) = line else { break };
                print(format!("{}  {line}\n", jiff::Zoned::now().strftime("%H:%M:%S")));
            }
            _ = hang_up.recv() => report_reload(&running.settings).await,
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
        }
    }
    manager.stopping();
    running.stop().await
}

/// Waits until the service manager expects the next sign of life, if it expects any.
async fn next(watchdog: &mut Option<tokio::time::Interval>) {
    match watchdog {
        Some(interval) => {
            interval.tick().await;
        }
        None => std::future::pending().await,
    }
}

/// Reads the settings again, because of a signal, and reports it on standard error.
async fn report_reload(settings: &Reloader) {
    match settings.reload().await {
        Ok(info) => {
            let text = crate::cli::reload_text(&info);
            print_error(text.trim_end());
        }
        Err(error) => print_error(&error.to_string()),
    }
}

/// Opens the state, binds the ports and starts serving. Settings come from `serve`, from
/// the file that it names, and from the environment.
///
/// # Errors
/// The settings, the state or a port cannot be used; nothing keeps running.
pub async fn start(state_dir: &Path, serve: Serve) -> Result<Running, Failure> {
    let source = Source::of_process(serve);
    let settings = source.read()?;
    start_with(PassedSockets::default(), state_dir, source, settings, None).await
}

/// Starts on sockets of the service manager, which come before the addresses of the
/// settings.
async fn start_with(
    mut sockets: PassedSockets,
    state_dir: &Path,
    source: Source,
    settings: Settings,
    log: Option<LevelControl>,
) -> Result<Running, Failure> {
    for file in settings.open_secrets() {
        tracing::warn!(
            "{} holds a secret and other users can read it; close it with chmod 600, or use \
             client_secret_file",
            file.display()
        );
    }
    // Everything that can be wrong with the configuration comes first.
    let mut inputs = Inputs::read(&settings)?;
    let opened = Opened::open(state_dir, &inputs)?;
    let port = Port::bind(&mut sockets, &settings, &mut inputs, &opened.state)?;
    let stun = bind_stun(&mut sockets, &settings, &port)?;
    let relay_key = port.relay_secret.public();
    let second_dial = match sockets.take_tcp(SECOND_DIAL_SOCKET, SERVICES) {
        Some(listener) => SecondDial::on(TcpListener::from_std(listener)?, &port.url, relay_key)?,
        None => SecondDial::bind(settings.second_dial, &port.url, port.local, relay_key)?,
    };
    let metrics = bind_metrics(&mut sockets, &settings)?;
    sockets.check_all_taken()?;
    let stun_port = match &stun {
        Some(socket) => Some(socket.local_addr()?.port()),
        None => None,
    };

    let derp_map = port.derp_map(&inputs, stun_port);
    check_outside_zone(&settings.base_domain, &port.url, &derp_map).map_err(Failure::Failed)?;
    let mut config = Config::new(port.server_url.clone(), derp_map);
    config.base_domain.clone_from(&settings.base_domain);
    config.dns.clone_from(&settings.dns);
    config.ephemeral_timeout = settings.ephemeral_timeout;
    config.key_lifetime = Some(settings.key_expiry).filter(|life| !life.is_zero());
    let coordinator = Coordinator::new(
        now(),
        wall_clock(),
        config,
        opened.snapshot,
        Box::new(SystemEntropy),
    );
    let (sender, lines) = mpsc::unbounded_channel();
    let hints = Hints::new(state_dir);
    let coordinator = CoordinatorHandle::new(coordinator, opened.store, sender, hints.clone());
    let mut policy_file = None;
    if let Some((file, read)) = inputs.policy {
        policy_file::take_at_start(&coordinator, &file, read).await?;
        policy_file = Some(file);
    }
    let records = take_records(inputs.records, &coordinator).await?;
    let invitation = invite(&coordinator, &opened.state, &settings.first_user).await?;

    let relay = port
        .with_relay
        .then(|| own_relay(port.relay_secret, &coordinator));
    let needed_files = settings.max_connections.saturating_add(OTHER_FILES);
    let files = raise_file_limit(needed_files as u64);
    let limits = ConnectionLimits::new(settings.max_connections, files);
    let connections = ConnectionTable::new(limits);
    let logins = Logins::new(settings.providers.clone(), &port.server_url);
    let server = Server::new(
        coordinator.clone(),
        Upgrader::new(coordinator.clone(), opened.key),
        logins.clone(),
        relay.clone(),
        port.tls,
        connections.clone(),
    );
    let state = opened.state.path();
    let admin_socket = AdminSocket::open(state).map_err(|error| {
        Failure::Failed(format!(
            "cannot open the administration socket in {}: {error}",
            state.display()
        ))
    })?;

    let mut tasks = JoinSet::new();
    if let Some(socket) = stun {
        tasks.spawn(warren_relay::stun::serve(Arc::new(socket)));
    }
    let banner = banner(&BannerFacts {
        state,
        new: opened.new,
        url: &port.url,
        server_url: &port.server_url,
        own_tls: port.own_tls,
        with_relay: port.with_relay,
        stun_port,
        second_dial: &second_dial,
        metrics: metrics.as_ref().map(|(_, address)| *address),
        allow_all: coordinator.read(View::is_without_policy),
        invitation: &invitation,
        policy_file: policy_file.as_deref(),
        hints: &hints,
    });
    if let SecondDial::Served(listener, acceptor) = second_dial {
        let server = server.with_tls(Tls::Required(acceptor));
        tasks.spawn(Arc::new(server).run(listener));
    }
    tasks.spawn(Arc::new(server).run(port.listener));
    let metrics = metrics.map(|(listener, address)| {
        let pages = MetricsPages {
            coordinator: coordinator.clone(),
            connections: connections.clone(),
            relay: relay.clone(),
        };
        tasks.spawn(pages.serve(listener));
        address
    });
    let reloader = Arc::new(Reloader {
        source,
        last: tokio::sync::Mutex::new(settings),
        coordinator: coordinator.clone(),
        logins: logins.clone(),
        url: port.url,
        policy: policy_file.clone(),
        log,
    });
    let router = admin::router(Administration {
        coordinator: coordinator.clone(),
        logins: logins.clone(),
        settings: reloader.clone(),
        records: records.clone(),
        certificate: port.certificate_files.clone(),
    });
    tasks.spawn(admin_socket.serve(router));
    tasks.spawn(coordinator.clone().run_timer());
    if let Some(path) = policy_file {
        let coordinator = coordinator.clone();
        let file = PolicyFile { path, coordinator };
        tasks.spawn(watched_file::watch(Arc::new(file)));
    }
    for files in port.certificate_files.iter() {
        for is_key in [false, true] {
            let files = files.clone();
            let file = CertificateFile { files, is_key };
            tasks.spawn(watched_file::watch(Arc::new(file)));
        }
    }
    if let Some(file) = records {
        tasks.spawn(watched_file::watch(file));
    }

    Ok(Running {
        coordinator,
        server_url: port.server_url,
        banner,
        shows_key: matches!(invitation, Invitation::Key(..)),
        lines,
        tasks,
        connections,
        logins,
        settings: reloader,
        metrics,
        relay,
        _state: opened.state,
    })
}

/// Fails if the policy file is not valid.
fn require_valid_policy(inputs: &Inputs) -> Result<(), Failure> {
    match inputs.policy_error() {
        Some(why) => Err(Failure::Failed(why.to_owned())),
        None => Ok(()),
    }
}

/// Takes the records of the file, if there is one; without one, those of an earlier file
/// are gone.
async fn take_records(
    given: Option<(PathBuf, RecordsOfFile)>,
    coordinator: &Arc<CoordinatorHandle>,
) -> Result<Option<Arc<RecordsFile>>, Failure> {
    match given {
        Some((path, read)) => Ok(Some(
            RecordsFile::start(path, coordinator.clone(), read).await?,
        )),
        None => {
            let none = BTreeSet::new();
            let taken = coordinator.change_saved(|c, _, _| c.take_dns_file(none));
            taken.await?.map_err(AdminError::from)?;
            Ok(None)
        }
    }
}

/// The state folder and its content.
struct Opened {
    state: StateDir,
    key: MachineSecret,
    /// Whether the folder is new.
    new: bool,
    store: WriteQueue,
    snapshot: Snapshot,
}

impl Opened {
    fn open(state_dir: &Path, inputs: &Inputs) -> Result<Self, Failure> {
        // A server that has never run has no earlier policy to go on with: it creates
        // nothing before its file is valid.
        if !StateDir::was_used(state_dir) {
            require_valid_policy(inputs)?;
        }
        let state = StateDir::open(state_dir)?;
        let (key, new) = state.noise_key(&mut SystemEntropy)?;
        let (store, snapshot) = store::open(&state.database())?;
        // The same holds for a server that ran without a policy.
        if snapshot.policy.is_none() {
            require_valid_policy(inputs)?;
        }
        // And for one that ran without records of a file.
        if snapshot.dns.file_records.is_empty()
            && let Some((_, Err(why))) = &inputs.records
        {
            return Err(Failure::Failed(why.clone()));
        }
        Ok(Self {
            state,
            key,
            new,
            store,
            snapshot,
        })
    }
}

/// The port for nodes, which the relay shares unless relays were given.
struct Port {
    listener: TcpListener,
    local: SocketAddr,
    url: Url,
    server_url: String,
    /// Whether a certificate was given.
    own_tls: bool,
    with_relay: bool,
    relay_secret: NodeSecret,
    tls: Tls,
    /// The pin of the certificate, if there is one.
    pin: Option<String>,
    /// The files of the certificate that was given.
    certificate_files: Option<Arc<CertificateFiles>>,
}

impl Port {
    fn bind(
        sockets: &mut PassedSockets,
        settings: &Settings,
        inputs: &mut Inputs,
        state: &StateDir,
    ) -> Result<Self, Failure> {
        let listener = match sockets.take_tcp(NODES_SOCKET, SERVICES) {
            Some(listener) => TcpListener::from_std(listener)?,
            None => bind(settings.listen)?,
        };
        let local = listener.local_addr()?;
        let own_tls = inputs.certificate.is_some();
        let url = match &settings.server_url {
            Some(url) => url.clone(),
            None => guess_url(local, own_tls)?,
        };
        let relay_secret = warren_relay::keyfile::load_or_create(&state.path().join("relay.key"))?;
        let with_relay = inputs.derp_map.is_none();
        let certificate = match inputs.certificate.take() {
            Some(certificate) => Some(certificate),
            None if with_relay => {
                let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
                Some(Certificate::self_signed(host, state.path())?)
            }
            None => None,
        };
        let pin = certificate.as_ref().map(Certificate::pin);
        let tls = match certificate {
            None => Tls::Off,
            Some(certificate) => {
                let acceptor = Acceptor::new(certificate, relay_secret.public())?;
                if own_tls {
                    Tls::Required(acceptor)
                } else {
                    Tls::ForRelay(acceptor)
                }
            }
        };
        let files = settings.certificate.clone();
        let certificate_files = match (files, &tls, &pin) {
            (Some(files), Tls::Required(acceptor), Some(pin)) => {
                let relay = relay_secret.public();
                Some(CertificateFiles::new(
                    files,
                    pin.clone(),
                    relay,
                    acceptor.clone(),
                ))
            }
            _ => None,
        };
        Ok(Self {
            listener,
            local,
            server_url: url.as_str().trim_end_matches('/').to_owned(),
            url,
            own_tls,
            with_relay,
            relay_secret,
            tls,
            pin,
            certificate_files,
        })
    }

    /// The given relays, or the one at this port.
    fn derp_map(&self, inputs: &Inputs, stun_port: Option<u16>) -> DerpMap {
        if let Some(map) = &inputs.derp_map {
            return map.clone();
        }
        let pin = self.pin.clone().filter(|_| self.url.scheme() == "http");
        own_map(&self.url, self.local.port(), stun_port, pin)
    }
}

/// Binds the port for STUN, if STUN is to be answered.
fn bind_stun(
    sockets: &mut PassedSockets,
    settings: &Settings,
    port: &Port,
) -> Result<Option<UdpSocket>, Failure> {
    if let Some(socket) = sockets.take_udp(STUN_SOCKET, SERVICES) {
        return Ok(Some(UdpSocket::from_std(socket)?));
    }
    let address = match settings.stun_listen {
        Some(OptionalListen::Off) => None,
        Some(OptionalListen::At(address)) => Some(address),
        None => port
            .with_relay
            .then(|| SocketAddr::new(port.local.ip(), STUN_PORT)),
    };
    let Some(address) = address else {
        return Ok(None);
    };
    let socket = warren_relay::stun::bind(address).map_err(|error| {
        Failure::Failed(format!(
            "cannot answer STUN on {address}/udp: {error}{}; choose another with --stun-listen IP:PORT, or --stun-listen off",
            taken(&error)
        ))
    })?;
    Ok(Some(socket))
}

/// Binds the port for metrics, if they are to be served, and returns its address too.
fn bind_metrics(
    sockets: &mut PassedSockets,
    settings: &Settings,
) -> Result<Option<(TcpListener, SocketAddr)>, Failure> {
    let listener = match sockets.take_tcp(METRICS_SOCKET, SERVICES) {
        Some(listener) => TcpListener::from_std(listener)?,
        None => match settings.metrics_listen {
            None | Some(OptionalListen::Off) => return Ok(None),
            Some(OptionalListen::At(address)) => {
                warren_relay::listen::bind(address).map_err(|error| {
                    Failure::Failed(format!(
                        "cannot serve metrics on {address}/tcp: {error}{}; choose another with --metrics-listen IP:PORT, or --metrics-listen off",
                        taken(&error)
                    ))
                })?
            }
        },
    };
    let address = listener.local_addr()?;
    if !address.ip().is_loopback() {
        tracing::warn!(
            port = address.port(),
            "the address for metrics is not a loopback address: all who reach it read them, \
             without a password"
        );
    }
    Ok(Some((listener, address)))
}

/// The relay of this network, which serves this network only.
fn own_relay(secret: NodeSecret, coordinator: &Arc<CoordinatorHandle>) -> Relay {
    let mut config = warren_relay::Config::new(secret);
    let coordinator = coordinator.clone();
    config.admission = Some(Arc::new(move |applicant: Applicant| {
        let admits = coordinator.admits(&applicant.key);
        if !admits {
            let why = "a client is not a node with a valid key";
            coordinator.refused(Refused::Relay, why);
        }
        admits
    }));
    Relay::new(config)
}

/// The settings of `serve` that tests and other programs begin with: all defaults.
pub fn defaults() -> Serve {
    Serve::default()
}

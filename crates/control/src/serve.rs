//! `warren-control serve`: opens the state, binds the ports, starts the tasks.

use std::io::{IsTerminal as _, Read as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use warren_control_core::{Config, Coordinator, View};
use warren_control_types::DerpMap;
use warren_dial::SystemEntropy;
use warren_dial::limits::raise_file_limit;
use warren_relay::tls::Certificate;
use warren_relay::{Applicant, Relay};

use warren_control_api::socket::AdminSocket;

use crate::admin;
use crate::banner::{BannerFacts, banner};
use crate::cli::args::{DEFAULT_MAX_CONNECTIONS, Serve, StunListen};
use crate::clock::wall_clock;
use crate::coordinator::CoordinatorHandle;
use crate::failure::{Failure, print};
use crate::invite::invite;
use crate::noise::Upgrader;
use crate::policy_file;
use crate::self_map::{bind, guess_url, own_map, parse_url, taken};
use crate::server::{Server, Tls};
use crate::state_dir::StateDir;
use crate::store;
use crate::terminal::Hints;
use warren_dial::connections::{ConnectionLimits, ConnectionTable, OTHER_FILES};

/// The port of RFC 8489.
const STUN_PORT: u16 = 3478;

/// A server whose ports are bound and whose state is open.
pub struct Running {
    /// The coordinator.
    pub coordinator: Arc<CoordinatorHandle>,
    /// Where nodes reach it.
    pub server_url: String,
    /// The text that it prints at start.
    pub banner: String,
    /// Lines about nodes that join and leave.
    pub lines: mpsc::UnboundedReceiver<String>,
    /// The server's tasks; they end when this is dropped.
    pub tasks: tokio::task::JoinSet<()>,
    /// The connections of its port.
    pub connections: Arc<ConnectionTable>,
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

/// Logs to standard error: from "warn" on, or as `WARREN_LOG` or else `RUST_LOG`
/// says.
fn log_to_stderr() {
    use tracing_subscriber::filter::{LevelFilter, Targets};
    use tracing_subscriber::layer::SubscriberExt as _;
    use tracing_subscriber::util::SubscriberInitExt as _;
    let chosen = ["WARREN_LOG", "RUST_LOG"]
        .into_iter()
        .filter_map(|name| std::env::var(name).ok())
        .filter(|text| !text.is_empty())
        .find_map(|text| text.parse::<Targets>().ok());
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    // Already set up by an embedding program: that one wins.
    let _ = tracing_subscriber::registry()
        .with(lines)
        .with(chosen.unwrap_or_else(|| Targets::new().with_default(LevelFilter::WARN)))
        .try_init();
}

/// Runs the server until a signal ends it.
pub(crate) async fn run(state_dir: &Path, serve: Serve) -> Result<(), Failure> {
    log_to_stderr();
    let mut interrupt = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())?;
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let mut running = start(state_dir, serve).await?;
    print(std::mem::take(&mut running.banner));
    loop {
        tokio::select! {
            line = running.lines.recv() => {
                let Some(line) = line else { break };
                print(format!("{}  {line}\n", jiff::Zoned::now().strftime("%H:%M:%S")));
            }
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
        }
    }
    running.stop().await
}

/// Opens the state, binds the ports and starts serving.
///
/// # Errors
/// The configuration, the state or a port cannot be used; nothing keeps running.
pub async fn start(state_dir: &Path, serve: Serve) -> Result<Running, Failure> {
    // Everything that can be wrong with the configuration comes first.
    let given_map = serve.derp_map.as_deref().map(read_derp_map).transpose()?;
    let policy = serve.policy.as_ref();
    let policy = policy.map(|file| (file.clone(), policy_file::read_checked(file)));
    let url = serve.server_url.as_deref().map(parse_url).transpose()?;
    let given_cert = match (&serve.tls_cert, &serve.tls_key) {
        (Some(cert), Some(key)) => Some(Certificate::from_files(cert, key)?),
        _ => None,
    };

    // A server that has never run has no earlier policy to go on with: it creates
    // nothing before its file is valid.
    if let Some((_, Err(why))) = &policy
        && !StateDir::was_used(state_dir)
    {
        return Err(Failure::Failed(why.clone()));
    }

    let state = StateDir::open(state_dir)?;
    let (key, new) = state.noise_key(&mut SystemEntropy)?;
    let (store, snapshot) = store::open(&state.database())?;
    // The same holds for a server that ran without a policy.
    let policy = match policy {
        Some((_, Err(why))) if snapshot.policy.is_none() => return Err(Failure::Failed(why)),
        other => other,
    };

    let listener = bind(serve.listen)?;
    let local = listener.local_addr()?;
    let url = match url {
        Some(url) => url,
        None => guess_url(local, given_cert.is_some())?,
    };
    let server_url = url.as_str().trim_end_matches('/').to_owned();

    // The relay shares the port, unless relays were given.
    let mut tasks = tokio::task::JoinSet::new();
    let relay_secret = warren_relay::keyfile::load_or_create(&state.path().join("relay.key"))?;
    let with_relay = given_map.is_none();
    let own_tls = given_cert.is_some();
    let certificate = match given_cert {
        Some(certificate) => Some(certificate),
        None if with_relay => {
            let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
            Some(Certificate::self_signed(host, state.path())?)
        }
        None => None,
    };
    let pin = certificate.as_ref().map(Certificate::pin);
    let acceptor = match certificate {
        Some(certificate) => {
            let config = warren_relay::tls::server_config(certificate, relay_secret.public())?;
            Some(TlsAcceptor::from(config))
        }
        None => None,
    };
    let tls = match acceptor {
        Some(acceptor) if own_tls => Tls::Required(acceptor),
        Some(acceptor) => Tls::ForRelay(acceptor),
        None => Tls::Off,
    };
    let stun = match serve.stun_listen {
        Some(StunListen::Off) => None,
        Some(StunListen::At(address)) => Some(address),
        None => with_relay.then(|| SocketAddr::new(local.ip(), STUN_PORT)),
    };
    let mut stun_port = None;
    if let Some(address) = stun {
        let socket = warren_relay::stun::bind(address).map_err(|error| {
            Failure::Failed(format!(
                "cannot answer STUN on {address}/udp: {error}{}; choose another with --stun-listen IP:PORT, or --stun-listen off",
                taken(&error)
            ))
        })?;
        stun_port = Some(socket.local_addr()?.port());
        tasks.spawn(warren_relay::stun::serve(Arc::new(socket)));
    }

    let derp_map = match given_map {
        Some(map) => map,
        None => own_map(
            &url,
            local.port(),
            stun_port,
            pin.filter(|_| url.scheme() == "http"),
        ),
    };
    let mut config = Config::new(server_url.clone(), derp_map);
    config.base_domain = serve.base_domain;
    config.ephemeral_timeout = serve.ephemeral_timeout;
    config.key_lifetime = Some(serve.key_expiry).filter(|life| !life.is_zero());
    let coordinator = Coordinator::new(
        Instant::now(),
        wall_clock(),
        config,
        snapshot,
        Box::new(SystemEntropy),
    )
    .map_err(|why| Failure::Failed(format!("the stored policy no longer reads:\n{why}")))?;

    let (sender, lines) = mpsc::unbounded_channel();
    let hints = Hints::new(state_dir);
    let coordinator = CoordinatorHandle::new(coordinator, store, sender, hints.clone());
    let policy_file = match policy {
        None => None,
        Some((file, read)) => {
            policy_file::take_at_start(&coordinator, &file, read).await?;
            Some(file)
        }
    };
    let invitation = invite(&coordinator, &state, &serve.user).await?;

    let relay = with_relay.then(|| {
        let mut config = warren_relay::Config::new(relay_secret);
        // A relay of this network serves this network.
        let admitting = coordinator.clone();
        config.admission = Some(Arc::new(move |applicant: Applicant| {
            admitting.admits(&applicant.key)
        }));
        Relay::new(config)
    });
    let public_key = key.public();
    let needed_files = serve.max_connections.saturating_add(OTHER_FILES);
    let files = raise_file_limit(needed_files as u64);
    let connections = ConnectionTable::new(ConnectionLimits::new(serve.max_connections, files));
    let server = Arc::new(Server {
        coordinator: coordinator.clone(),
        upgrader: Arc::new(Upgrader {
            coordinator: coordinator.clone(),
            key,
        }),
        relay: relay.clone(),
        tls,
        public_key,
        connections: connections.clone(),
    });
    let admin_socket = AdminSocket::open(state.path()).map_err(|error| {
        Failure::Failed(format!(
            "cannot open the administration socket in {}: {error}",
            state.path().display()
        ))
    })?;
    tasks.spawn(server.run(listener));
    tasks.spawn(admin_socket.serve(admin::router(coordinator.clone())));
    tasks.spawn(coordinator.clone().run_timer());
    if let Some(file) = &policy_file {
        tasks.spawn(policy_file::watch(file.clone(), coordinator.clone()));
    }

    let banner = banner(&BannerFacts {
        state: state.path(),
        new,
        url: &url,
        server_url: &server_url,
        own_tls,
        with_relay,
        stun_port,
        allow_all: coordinator.read(View::is_without_policy),
        invitation: &invitation,
        policy_file: policy_file.as_deref(),
        hints: &hints,
    });
    Ok(Running {
        coordinator,
        server_url,
        banner,
        lines,
        tasks,
        connections,
        relay,
        _state: state,
    })
}

fn read_derp_map(file: &Path) -> Result<DerpMap, Failure> {
    let text = read_text(file)?;
    DerpMap::from_json(text.as_bytes())
        .map_err(|error| Failure::Failed(format!("{}: {error}", file.display())))
}

fn read_text(file: &Path) -> Result<String, Failure> {
    let wrong =
        |error: std::io::Error| Failure::Failed(format!("cannot read {}: {error}", file.display()));
    if file == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map_err(wrong)?;
        return Ok(text);
    }
    std::fs::read_to_string(file).map_err(wrong)
}

/// The defaults of `serve`, for programs that embed the server.
pub fn defaults() -> Serve {
    Serve {
        listen: None,
        server_url: None,
        derp_map: None::<PathBuf>,
        stun_listen: None,
        tls_cert: None,
        tls_key: None,
        policy: None,
        base_domain: "warren.internal".to_owned(),
        ephemeral_timeout: Duration::from_secs(120),
        key_expiry: Duration::from_secs(180 * 86_400),
        max_connections: DEFAULT_MAX_CONNECTIONS,
        user: "default".to_owned(),
    }
}

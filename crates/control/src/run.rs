//! From a command line to an exit code.

use std::ffi::OsString;
use std::io::{IsTerminal as _, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::{CommandFactory as _, Parser as _};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use url::{Host, Url};
use warren_control_core::{Config, Coordinator, GivenPolicy, NewAuthKey, View};
use warren_control_types::{DerpMap, DerpNode, DerpRegion, HostAddress, RegionId};
use warren_dial::limits::raise_file_limit;
use warren_relay::tls::Certificate;
use warren_relay::{Applicant, Relay};

use crate::admin::{self, AdminSocket, Command};
use crate::args::{
    self, Cli, Debugging, Nodes, Preauthkeys, Serve, SshChecks, StunListen, Top, Users,
};
use crate::clock::wall_clock;
use warren_dial::SystemEntropy;

use crate::args::DEFAULT_MAX_CONNECTIONS;
use crate::coordinator::CoordinatorHandle;
use crate::noise::Upgrader;
use crate::output::{self, Hints};
use crate::policy_cli;
use crate::policy_file;
use crate::server::{Server, Tls};
use crate::state_dir::StateDir;
use crate::store;
use warren_dial::connections::{ConnectionLimits, ConnectionTable, OTHER_FILES};

/// Region of the embedded relay; 900 to 999 are for networks of one's own.
const OWN_REGION: RegionId = RegionId(900);
/// The port for nodes, unless `--listen` names another.
const DEFAULT_PORT: u16 = 8080;
/// The port of RFC 8489.
const STUN_PORT: u16 = 3478;
/// How long the key that `serve` prints is valid.
const FIRST_KEY_LIFETIME: Duration = Duration::from_secs(3600);
/// How much of that must be left for the key to be printed again.
const FIRST_KEY_REST: Duration = Duration::from_secs(600);

/// Runs the program.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args::normalise(args)) {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return failed(&format!("cannot start: {error}")),
    };
    match runtime.block_on(run(cli)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Failed(why)) => failed(&why),
        Err(Failure::Usage(why)) => {
            eprintln!("warren-control: {why}");
            ExitCode::from(2)
        }
    }
}

fn failed(why: &str) -> ExitCode {
    eprintln!("warren-control: {why}");
    ExitCode::FAILURE
}

/// Why the program ends with an error.
#[derive(Debug)]
pub enum Failure {
    /// The command failed, for this reason.
    Failed(String),
    /// The command line is not valid, for this reason.
    Usage(String),
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Failed(error.to_string())
    }
}

async fn run(cli: Cli) -> Result<(), Failure> {
    let command = match cli.command {
        Top::Serve(serve) => return run_server(&cli.state_dir, *serve).await,
        Top::Completion { shell } => {
            clap_complete::generate(
                shell,
                &mut Cli::command(),
                "warren-control",
                &mut std::io::stdout(),
            );
            return Ok(());
        }
        Top::Policy(policy) => return policy_cli::run(&cli.state_dir, cli.json, policy).await,
        Top::Users(users) => match users {
            Users::Create { name } => Command::UsersCreate { name },
            Users::List => Command::UsersList,
            Users::Rename { name, new_name } => Command::UsersRename { name, new_name },
            Users::SetRole { name, role } => Command::UsersSetRole { name, role },
            Users::Delete { name } => Command::UsersDelete { name },
        },
        Top::Nodes(nodes) => match nodes {
            Nodes::List { user } => Command::NodesList { user },
            Nodes::Show { node } => Command::NodesShow { node },
            Nodes::Rename { node, name } => Command::NodesRename { node, name },
            Nodes::Expire { node } => Command::NodesExpire { node },
            Nodes::Delete { node } => Command::NodesDelete { node },
            Nodes::Waiting => Command::NodesWaiting,
            Nodes::Approve {
                id,
                key,
                user,
                tags,
            } => Command::NodesApprove {
                id: id_in(&id.or(key).unwrap_or_default()),
                user,
                tags: args::set(tags, Vec::new()),
            },
            Nodes::Routes { node } => Command::NodesRoutes { node },
            Nodes::ApproveRoutes { node, routes, more } => Command::NodesApproveRoutes {
                node,
                routes: args::set(routes, more).into_iter().collect(),
            },
            Nodes::Tag { node, tags, more } => Command::NodesTag {
                node,
                tags: args::set(tags, more),
            },
        },
        Top::Preauthkeys(keys) => match keys {
            Preauthkeys::Create {
                user,
                reusable,
                ephemeral,
                tags,
                expiry,
            } => Command::PreauthkeysCreate {
                user,
                reusable,
                ephemeral,
                tags: args::set(tags, Vec::new()),
                lifetime: expiry.as_secs(),
            },
            Preauthkeys::List => Command::PreauthkeysList,
            Preauthkeys::Expire { id } => Command::PreauthkeysExpire { id },
        },
        Top::SshChecks(checks) => match checks {
            SshChecks::List => Command::SshChecksList,
            SshChecks::Approve { id } => Command::SshChecksApprove { id: id_in(&id) },
            SshChecks::Deny { id } => Command::SshChecksDeny { id: id_in(&id) },
        },
        Top::Health => Command::Health,
        Top::Debug(Debugging::C2n { node, path, data }) => Command::DebugC2n { node, path, data },
    };
    let hints = Hints::new(&cli.state_dir);
    let answer = admin::ask(&cli.state_dir, &command).await;
    let answer = answer.map_err(|error| Failure::Failed(hints.complete(&error.to_string())))?;
    let text = if cli.json {
        format!("{}\n", serde_json::to_string_pretty(&answer)?)
    } else {
        let now = jiff::Timestamp::now();
        hints.complete(&output::render(&command, &answer, now)?)
    };
    print(text);
    if matches!(command, Command::DebugC2n { .. }) && answer["status"].as_u64() >= Some(400) {
        return Err(Failure::Failed("the node refused the request".to_owned()));
    }
    let unhealthy = matches!(command, Command::Health) && answer["status"] != "pass";
    if unhealthy {
        Err(Failure::Failed("the server is unhealthy".to_owned()))
    } else {
        Ok(())
    }
}

/// The id at the end of an address: people paste the whole one.
fn id_in(given: &str) -> String {
    given.rsplit('/').next().unwrap_or_default().to_owned()
}

/// Prints; a reader that went away (`| head`) is no error.
pub(crate) fn print(text: String) {
    let _ = std::io::stdout().write_all(text.as_bytes());
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

async fn run_server(state_dir: &Path, serve: Serve) -> Result<(), Failure> {
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
    let policy = policy.map(|file| (file.clone(), read_policy(file)));
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
            take_policy_file(&coordinator, &file, read).await?;
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
    tasks.spawn(admin::serve(admin_socket, coordinator.clone()));
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

struct BannerFacts<'a> {
    state: &'a Path,
    new: bool,
    url: &'a Url,
    server_url: &'a str,
    own_tls: bool,
    with_relay: bool,
    stun_port: Option<u16>,
    allow_all: bool,
    invitation: &'a Invitation,
    policy_file: Option<&'a Path>,
    hints: &'a Hints,
}

/// How the first lines of `serve` say to add a machine.
enum Invitation {
    /// With this key, which works for so long: no machine is here yet.
    Key(String, Duration),
    /// With a key that this user makes.
    Make(String),
}

/// A key for the first machine; the one of the last start if it still works for
/// a while. Once a machine is here, its administrator makes keys as needed.
async fn invite(
    coordinator: &CoordinatorHandle,
    state: &StateDir,
    user: &str,
) -> Result<Invitation, Failure> {
    let kept = state.first_key()?;
    let made = coordinator
        .change_saved(|c, _, wall| {
            if c.view().users().next().is_none() {
                c.create_user(wall, user)?;
            }
            let state = c.view();
            let owner = state
                .find_user(user)
                .ok()
                .or_else(|| state.users().next())
                .map(|user| user.name.clone());
            if state.node_count() > 0 {
                return Ok((Invitation::Make(owner.unwrap_or_default()), None));
            }
            if let Some(text) = &kept {
                let left = c.auth_key_left(wall, text);
                if let Some(left) = left.filter(|left| *left >= FIRST_KEY_REST) {
                    return Ok((Invitation::Key(text.to_string(), left), None));
                }
                // It was never used, so no node depends on it.
                c.forget_auth_key(text);
            }
            let new = NewAuthKey {
                user: owner.map(Into::into),
                lifetime: Some(FIRST_KEY_LIFETIME),
                ..NewAuthKey::default()
            };
            let (text, _) = c.create_auth_key(wall, new)?;
            let text = text.expose();
            let invitation = Invitation::Key(text.clone(), FIRST_KEY_LIFETIME);
            Ok::<_, warren_control_core::AdminError>((invitation, Some(text)))
        })
        .await??;
    match made {
        (Invitation::Make(user), _) => {
            state.forget_first_key();
            Ok(Invitation::Make(user))
        }
        (invitation, None) => Ok(invitation),
        (invitation, Some(fresh)) => {
            state.keep_first_key(&fresh)?;
            Ok(invitation)
        }
    }
}

fn banner(facts: &BannerFacts<'_>) -> String {
    let state = facts.state.display();
    let new = if facts.new {
        " (new: keys, database)"
    } else {
        ""
    };
    let how = match (facts.url.scheme(), facts.own_tls) {
        ("https", true) => "",
        ("https", false) => "   plain HTTP here: a TLS proxy is needed in front",
        _ => "   plain HTTP: fine in a lab or behind a TLS proxy",
    };
    let stun = match facts.stun_port {
        Some(port) => format!(", STUN on {port}/udp"),
        None => ", no STUN".to_owned(),
    };
    let relay = if facts.with_relay {
        format!("region {OWN_REGION} here{stun}")
    } else {
        "as in the given map".to_owned()
    };
    let policy = if facts.allow_all {
        "allow-all until you set one: every node may reach every node"
    } else {
        match facts.policy_file {
            Some(_) => "from a file; see: warren-control policy get",
            None => "set; see: warren-control policy get",
        }
    };
    let url = facts.server_url;
    let (title, key) = match facts.invitation {
        Invitation::Key(key, left) => {
            let time = match left.as_secs() / 60 {
                60 => "1 hour".to_owned(),
                minutes => format!("{minutes} minutes"),
            };
            (
                format!("Add a machine (key works once, for {time}):"),
                key.as_str(),
            )
        }
        Invitation::Make(user) => (
            format!(
                "Add a machine (KEY comes from: warren-control preauthkeys create --user {user}):"
            ),
            "KEY",
        ),
    };
    let title = facts.hints.complete(&title);
    let policy = facts.hints.complete(policy);
    format!(
        "warren-control {}   state {state}{new}\n  control   {url}{how}\n  relay     {relay}\n  policy    {policy}\n\n\
         {title}\n  \
         warren up --login-server {url} --auth-key {key}\n  \
         tailscale up --login-server {url} --auth-key {key}\n\n",
        env!("CARGO_PKG_VERSION"),
    )
}

/// Reads the policy file and checks it.
fn read_policy(file: &Path) -> Result<String, String> {
    let text = policy_file::read(file)?;
    let given = GivenPolicy {
        file: file.display().to_string(),
        text: Some(text.clone()),
    };
    match given.parse() {
        Ok(_) => Ok(text),
        Err(error) => Err(format!("{}: {error}", file.display())),
    }
}

/// Puts the policy file in charge. If it is not valid, the policy from before the
/// start stays in force, if there is one.
async fn take_policy_file(
    coordinator: &CoordinatorHandle,
    file: &Path,
    read: Result<String, String>,
) -> Result<(), Failure> {
    let path = file.display().to_string();
    coordinator
        .change(|c, _, _| c.put_file_in_charge(&path))
        .1
        .wait()
        .await?;
    let why = match read {
        Ok(text) => {
            let taken = policy_file::take(coordinator, file, text).await?;
            match taken {
                Ok(_) => return Ok(()),
                Err(error) => error.to_string(),
            }
        }
        Err(why) => {
            let ((), saved) = coordinator.change(|c, _, wall| c.policy_file_failed(wall, &why));
            saved.wait().await?;
            why
        }
    };
    if coordinator.read(View::is_without_policy) {
        return Err(Failure::Failed(why));
    }
    tracing::error!("the policy of the last run stays in force: {why}");
    Ok(())
}

fn read_derp_map(file: &Path) -> Result<DerpMap, Failure> {
    let text = read_text(file)?;
    DerpMap::from_json(text.as_bytes())
        .map_err(|error| Failure::Failed(format!("{}: {error}", file.display())))
}

fn parse_url(text: &str) -> Result<Url, Failure> {
    let wrong = |why: &str| {
        Failure::Usage(format!(
            "--server-url {text}: {why}; write it as http://192.0.2.1:8080 or https://net.example"
        ))
    };
    let url = Url::parse(text).map_err(|error| wrong(&error.to_string()))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(wrong("it must begin with http:// or https://"));
    }
    if url.host().is_none() || !matches!(url.path(), "" | "/") || url.query().is_some() {
        return Err(wrong(
            "it must be a host, perhaps with a port, and nothing more",
        ));
    }
    Ok(url)
}

fn taken(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::AddrInUse => " (another program uses it)",
        std::io::ErrorKind::AddrNotAvailable => " (no such address on this machine)",
        std::io::ErrorKind::PermissionDenied => " (ports below 1024 need more rights)",
        _ => "",
    }
}

fn bind(wanted: Option<SocketAddr>) -> Result<tokio::net::TcpListener, Failure> {
    let wildcard_v6 = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), DEFAULT_PORT);
    let wildcard_v4 = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), DEFAULT_PORT);
    let address = wanted.unwrap_or(wildcard_v6);
    let mut bound = warren_relay::listen::bind(address);
    // A machine without IPv6 cannot listen on all addresses of both families.
    if wanted.is_none()
        && let Err(error) = &bound
        && error.kind() != std::io::ErrorKind::AddrInUse
    {
        bound = warren_relay::listen::bind(wildcard_v4);
    }
    bound.map_err(|error| {
        Failure::Failed(format!(
            "cannot listen on {address}/tcp: {error}{}; choose another with --listen IP:PORT",
            taken(&error)
        ))
    })
}

/// The address of this machine that other machines most likely reach. Asking
/// the routing table sends nothing.
fn own_address() -> IpAddr {
    let ask = |bind: SocketAddr, towards: SocketAddr| -> Option<IpAddr> {
        let socket = UdpSocket::bind(bind).ok()?;
        socket.connect(towards).ok()?;
        Some(socket.local_addr().ok()?.ip())
    };
    // Documentation addresses (RFC 5737, RFC 3849): routed like any other.
    let v4 = ask(
        SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0),
        SocketAddr::new(Ipv4Addr::new(192, 0, 2, 1).into(), 9),
    );
    let v6 = || {
        ask(
            SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0),
            SocketAddr::new(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(), 9),
        )
    };
    v4.or_else(v6).unwrap_or(Ipv4Addr::LOCALHOST.into())
}

fn guess_url(local: SocketAddr, tls: bool) -> Result<Url, Failure> {
    let ip = if local.ip().is_unspecified() {
        own_address()
    } else {
        local.ip()
    };
    let scheme = if tls { "https" } else { "http" };
    Ok(Url::parse(&format!(
        "{scheme}://{}",
        SocketAddr::new(ip, local.port())
    ))?)
}

/// The map with the embedded relay alone.
fn own_map(url: &Url, port: u16, stun_port: Option<u16>, pin: Option<String>) -> DerpMap {
    let mut node = DerpNode {
        name: "900a".to_owned(),
        region_id: OWN_REGION,
        derp_port_raw: i32::from(url.port_or_known_default().unwrap_or(port)),
        stun_port_raw: stun_port.map_or(-1, i32::from),
        cert_name: pin.unwrap_or_default(),
        ..DerpNode::default()
    };
    match url.host() {
        Some(Host::Ipv4(ip)) => {
            node.host_name = ip.to_string();
            node.ipv4 = HostAddress::At(ip);
            node.ipv6 = HostAddress::Never;
        }
        Some(Host::Ipv6(ip)) => {
            node.host_name = ip.to_string();
            node.ipv6 = HostAddress::At(ip);
            node.ipv4 = HostAddress::Never;
        }
        Some(Host::Domain(name)) => node.host_name = name.to_owned(),
        None => {}
    }
    let region = DerpRegion {
        region_id: OWN_REGION,
        region_code: "own".to_owned(),
        region_name: "Embedded relay".to_owned(),
        nodes: vec![node],
        ..DerpRegion::default()
    };
    DerpMap {
        regions: [(OWN_REGION, region)].into(),
        omit_default_regions: true,
        ..DerpMap::default()
    }
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

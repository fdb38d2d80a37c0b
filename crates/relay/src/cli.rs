//! The program `warren-relay`: its command line, and what it starts.

use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, Parser, Subcommand, ValueEnum};
use tokio::net::{TcpListener, UdpSocket};
use tokio::signal::unix::{Signal, SignalKind, signal};
use warren_control_types::{DerpMap, DerpNode, DerpRegion, HostAddress, RegionId};
use warren_dial::Dialer;
use warren_dial::connections::{ConnectionLimits, OTHER_FILES};
use warren_dial::limits::raise_file_limit;
use warren_logging::{LevelFilter, log_to_stderr};
use warren_service_manager::{PassedSocketError, PassedSockets, ServiceManager};

use crate::bootstrap::BootstrapDns;
use crate::keyfile::{self, KeyFileError};
use crate::mesh::MeshPeer;
use crate::relay::{Config, MAX_CONNECTIONS, RateLimit, Relay};
use crate::tls::{self, Certificate, TlsError};
use crate::verify::{VerifyUrl, VerifyUrlError};
use crate::{listen, stun};

/// The relay of a private network: carries packets between nodes that cannot
/// reach each other directly (DERP), and reports to nodes their public addresses (STUN).
#[derive(Debug, Parser)]
#[command(name = "warren-relay", version)]
pub struct Cli {
    /// The subcommand.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands of `warren-relay`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the relay until it is stopped
    Serve(Box<Serve>),
    /// Print a completion script for a shell
    Completion {
        /// The shell to write it for
        shell: clap_complete::Shell,
    },
}

/// The protection of connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TlsMode {
    /// Make a certificate once, and print its pin for the DERP map
    SelfSigned,
    /// Use --cert and --key
    Files,
    /// Plain HTTP, behind a proxy that does TLS (or in a lab)
    Off,
}

fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse()
        .map_err(|_| "write it as 0.0.0.0:8443, or as [::]:8443 for both families".to_owned())
}

/// `warren-relay serve`.
#[derive(Debug, Args)]
pub struct Serve {
    /// Address and port for DERP
    #[arg(long, value_name = "IP:PORT", default_value = "[::]:443", value_parser = address)]
    pub listen: SocketAddr,
    /// Address and port for STUN
    #[arg(long, value_name = "IP:PORT", default_value = "[::]:3478", value_parser = address)]
    pub stun_listen: SocketAddr,
    /// Do not answer STUN
    #[arg(long)]
    pub no_stun: bool,
    /// Plain HTTP port beside TLS: captive portal probes, and a redirect
    #[arg(long, value_name = "IP:PORT", value_parser = address)]
    pub http_listen: Option<SocketAddr>,
    /// Where metrics are served (else only to loopback, on the DERP port)
    #[arg(long, value_name = "IP:PORT", value_parser = address)]
    pub metrics_listen: Option<SocketAddr>,
    /// How connections are secured
    #[arg(long, value_enum, default_value_t = TlsMode::SelfSigned)]
    pub tls: TlsMode,
    /// Name or address that clients connect to
    #[arg(long, value_name = "HOST")]
    pub hostname: String,
    /// Certificate chain (PEM), with --tls files
    #[arg(long, value_name = "FILE", required_if_eq("tls", "files"))]
    pub cert: Option<PathBuf>,
    /// Its private key (PEM), with --tls files
    #[arg(long, value_name = "FILE", required_if_eq("tls", "files"))]
    pub key: Option<PathBuf>,
    /// Number of the region in the DERP map (900 to 999 are for own relays)
    #[arg(long, value_name = "N", default_value_t = 900, value_parser = clap::value_parser!(u16).range(1..))]
    pub region_id: u16,
    /// Short name of the region
    #[arg(long, value_name = "CODE", default_value = "warren")]
    pub region_code: String,
    /// Long name of the region
    #[arg(long, value_name = "NAME", default_value = "Warren relay")]
    pub region_name: String,
    /// File with the 64 digits that the relays of the mesh share
    #[arg(long, value_name = "FILE")]
    pub mesh_key_file: Option<PathBuf>,
    /// The other relays of the region: HOST, HOST:PORT or URL
    #[arg(
        long,
        value_name = "HOST",
        value_delimiter = ',',
        requires = "mesh_key_file"
    )]
    pub mesh_with: Vec<MeshPeer>,
    /// Where the relay's key, a self-signed certificate and the map entry are kept
    #[arg(long, value_name = "DIR", default_value = "warren-relay")]
    pub state_dir: PathBuf,
    /// Ask this URL about each client
    #[arg(long, value_name = "URL")]
    pub verify_client_url: Option<String>,
    /// Admit clients while that URL cannot be reached
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set,
        num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub verify_client_url_fail_open: bool,
    /// Bytes a second that one client may send
    #[arg(long, value_name = "BYTES")]
    pub client_rate: Option<u64>,
    /// Bytes that one client may send at once
    #[arg(
        long,
        value_name = "BYTES",
        default_value_t = 0,
        requires = "client_rate"
    )]
    pub client_burst: u64,
    /// Connections at a time, if the system allows as many open files
    #[arg(long, value_name = "N", default_value_t = MAX_CONNECTIONS)]
    pub max_connections: usize,
    /// Names whose addresses clients without DNS may ask for
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub bootstrap_dns_names: Vec<String>,
}

/// The names of the sockets that a service manager can pass.
const SERVICES: &[&str] = &["derp", "http", "metrics", "stun"];

/// The relay cannot start. Each message says what to change.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A key file cannot be used.
    #[error(transparent)]
    KeyFile(#[from] KeyFileError),
    /// The TLS setup failed.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// `--verify-client-url`.
    #[error("--verify-client-url: {0}")]
    Verify(#[from] VerifyUrlError),
    /// A socket of the service manager cannot be used.
    #[error(transparent)]
    Passed(#[from] PassedSocketError),
    /// An address is taken or not ours.
    #[error("cannot listen on {address} for {what}: {source}{}", advice(source))]
    Listen {
        /// The service.
        what: &'static str,
        /// The address it should listen on.
        address: SocketAddr,
        /// The system's error.
        source: std::io::Error,
    },
}

fn advice(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::AddrInUse => " (another program has it; choose another port)",
        std::io::ErrorKind::PermissionDenied => {
            " (ports below 1024 need root or CAP_NET_BIND_SERVICE; choose another port)"
        }
        std::io::ErrorKind::AddrNotAvailable => " (this machine does not have that address)",
        _ => "",
    }
}

/// The sockets of the relay: those of the service manager, or its own.
struct Listeners {
    derp: TcpListener,
    stun: Option<UdpSocket>,
    http: Option<TcpListener>,
    metrics: Option<TcpListener>,
}

impl Listeners {
    fn bind(serve: &Serve, mut sockets: PassedSockets) -> Result<Self, ServeError> {
        let failed = |what, address| {
            move |source| ServeError::Listen {
                what,
                address,
                source,
            }
        };
        let mut passed = |name, address| {
            let listener = sockets.take_tcp(name, SERVICES);
            let listener = listener.map(TcpListener::from_std).transpose();
            listener.map_err(failed(name, address))
        };
        let own = |what, address| listen::bind(address).map_err(failed(what, address));
        let derp = match passed("derp", serve.listen)? {
            Some(listener) => listener,
            None => own("DERP", serve.listen)?,
        };
        let mut optional = |name, address: Option<SocketAddr>| match (
            passed(name, address.unwrap_or(serve.listen))?,
            address,
        ) {
            (Some(listener), _) => Ok(Some(listener)),
            (None, Some(address)) => own(name, address).map(Some),
            (None, None) => Ok(None),
        };
        let http = optional("http", serve.http_listen)?;
        let metrics = optional("metrics", serve.metrics_listen)?;
        let stun = match sockets.take_udp("stun", SERVICES) {
            Some(socket) => UdpSocket::from_std(socket).map(Some),
            None if serve.no_stun => Ok(None),
            None => stun::bind(serve.stun_listen).map(Some),
        };
        let stun = stun.map_err(failed("STUN", serve.stun_listen))?;
        sockets.check_all_taken()?;
        Ok(Self {
            derp,
            stun,
            http,
            metrics,
        })
    }
}

fn is_at_port(listener: Option<&TcpListener>, port: u16) -> bool {
    let address = listener.and_then(|listener| listener.local_addr().ok());
    address.is_some_and(|address| address.port() == port)
}

/// A relay that is listening, before it serves.
#[derive(Debug)]
pub struct Running {
    /// The relay.
    pub relay: Relay,
    /// Its entry for a DERP map, as a whole map.
    pub map: DerpMap,
    /// The address on which DERP is served.
    pub address: SocketAddr,
    tasks: tokio::task::JoinSet<()>,
}

impl Running {
    /// Serves until cancelled.
    pub async fn run(&mut self) {
        while self.tasks.join_next().await.is_some() {}
        std::future::pending().await
    }
}

impl Serve {
    /// Reads keys, binds everything, and starts to serve.
    ///
    /// # Errors
    /// [`ServeError`]; nothing is left running.
    pub async fn start(&self) -> Result<Running, ServeError> {
        self.start_on(PassedSockets::default()).await
    }

    /// The same on sockets of the service manager, which come before the addresses of the
    /// command line.
    ///
    /// # Errors
    /// As [`Serve::start`]; or there are more sockets than services.
    pub async fn start_on(&self, sockets: PassedSockets) -> Result<Running, ServeError> {
        let dialer = Dialer::new();
        let secret = keyfile::load_or_create(&self.state_dir.join("relay.key"))?;
        let mut config = Config::new(secret);
        config.mesh_key = match &self.mesh_key_file {
            Some(file) => Some(keyfile::load_mesh_key(file)?),
            None => None,
        };
        if let Some(url) = &self.verify_client_url {
            let verify = VerifyUrl::new(dialer.clone(), url, self.verify_client_url_fail_open)?;
            config.admission = Some(Arc::new(verify));
        }
        config.rate_limit = self.client_rate.map(|rate| RateLimit {
            bytes_per_second: rate,
            burst: self.client_burst,
        });
        let needed = self.max_connections.saturating_add(OTHER_FILES) as u64;
        config.limits = ConnectionLimits::new(self.max_connections, raise_file_limit(needed));
        config.bootstrap_dns = BootstrapDns::new(self.bootstrap_dns_names.iter().cloned());
        let bootstrap = config.bootstrap_dns.clone();
        let relay = Relay::new(config);

        let certificate = match (self.tls, &self.cert, &self.key) {
            (TlsMode::SelfSigned, _, _) => {
                Some(Certificate::self_signed(&self.hostname, &self.state_dir)?)
            }
            (TlsMode::Files, Some(cert), Some(key)) => Some(Certificate::from_files(cert, key)?),
            // Checked by the command line.
            (TlsMode::Files, _, _) | (TlsMode::Off, _, _) => None,
        };
        let pin = certificate.as_ref().map(Certificate::pin);
        let tls = match certificate {
            Some(certificate) => Some(tls::server_config(certificate, relay.public_key())?),
            None => None,
        };

        let listeners = Listeners::bind(self, sockets)?;
        let address = listeners.derp.local_addr().unwrap_or(self.listen);
        let can_port80 = is_at_port(listeners.http.as_ref(), 80);
        let mut stun_port = None;
        let mut tasks = tokio::task::JoinSet::new();
        if let Some(socket) = listeners.stun {
            stun_port = Some(socket.local_addr().unwrap_or(self.stun_listen).port());
            tasks.spawn(stun::serve(Arc::new(socket)));
        }
        if let Some(http) = listeners.http {
            tasks.spawn(listen::serve_port_80(relay.clone(), http));
        }
        if let Some(metrics) = listeners.metrics {
            tasks.spawn(listen::serve_metrics(relay.clone(), metrics));
        }
        tasks.spawn(listen::serve(relay.clone(), listeners.derp, tls));
        for peer in &self.mesh_with {
            let (relay, dialer, peer) = (relay.clone(), dialer.clone(), peer.clone());
            tasks.spawn(async move { relay.mesh_with(dialer, peer).await });
        }
        if !bootstrap.is_empty() {
            tasks.spawn(async move { bootstrap.run().await });
        }
        let pin = pin.filter(|_| self.tls == TlsMode::SelfSigned);
        let map = self.map(address.port(), stun_port, can_port80, pin);
        Ok(Running {
            relay,
            map,
            address,
            tasks,
        })
    }

    /// The entry of this relay for a DERP map.
    fn map(
        &self,
        port: u16,
        stun_port: Option<u16>,
        can_port80: bool,
        pin: Option<String>,
    ) -> DerpMap {
        let region_id = RegionId(self.region_id);
        let mut node = DerpNode {
            name: format!("{}a", self.region_id),
            region_id,
            host_name: self.hostname.clone(),
            cert_name: pin.unwrap_or_default(),
            derp_port_raw: if port == 443 { 0 } else { port.into() },
            stun_port_raw: match stun_port {
                Some(3478) => 0,
                Some(port) => port.into(),
                None => -1,
            },
            can_port80,
            ..DerpNode::default()
        };
        match self.hostname.parse::<IpAddr>() {
            Ok(IpAddr::V4(ip)) => {
                (node.ipv4, node.ipv6) = (HostAddress::At(ip), HostAddress::Never);
            }
            Ok(IpAddr::V6(ip)) => {
                (node.ipv4, node.ipv6) = (HostAddress::Never, HostAddress::At(ip));
            }
            Err(_) => {}
        }
        let region = DerpRegion {
            region_id,
            region_code: self.region_code.clone(),
            region_name: self.region_name.clone(),
            nodes: vec![node],
            ..DerpRegion::default()
        };
        DerpMap {
            regions: [(region_id, region)].into(),
            ..DerpMap::default()
        }
    }

    /// The file with the entry of this relay, for `warren-control serve --derp-map`.
    fn map_path(&self) -> PathBuf {
        self.state_dir.join("derp-map.json")
    }

    /// Writes that file, as a whole or not at all.
    fn write_map(&self, running: &Running) -> std::io::Result<()> {
        let map = serde_json::to_vec_pretty(&running.map)?;
        let mut file = tempfile::NamedTempFile::new_in(&self.state_dir)?;
        file.write_all(&map)?;
        file.as_file()
            .set_permissions(std::fs::Permissions::from_mode(0o644))?;
        file.persist(self.map_path()).map_err(|error| error.error)?;
        Ok(())
    }

    /// The startup lines for the operator.
    fn greeting(&self, running: &Running) -> String {
        let tls = match self.tls {
            TlsMode::SelfSigned => "TLS with a self-signed certificate, pinned in the map entry",
            TlsMode::Files => "TLS",
            TlsMode::Off => "plain HTTP: fine behind a TLS proxy or in a lab",
        };
        let stun = if self.no_stun {
            "off".to_owned()
        } else {
            self.stun_listen.to_string()
        };
        // The map always has a JSON form.
        let map = serde_json::to_string_pretty(&running.map).unwrap_or_default();
        format!(
            "warren-relay {}   state {}\n  derp  {}   {tls}\n  stun  {stun}\n  key   {}\n\n\
             Entry for the DERP map, also in {}:\n{map}\n",
            env!("CARGO_PKG_VERSION"),
            self.state_dir.display(),
            running.address,
            running.relay.public_key(),
            self.map_path().display(),
        )
    }
}

/// Runs the program; returns its exit code.
pub fn main() -> u8 {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let code = if error.use_stderr() { 2 } else { 0 };
            let _ = error.print();
            return code;
        }
    };
    log_to_stderr(LevelFilter::INFO);
    match cli.command {
        Command::Completion { shell } => {
            let mut command = <Cli as clap::CommandFactory>::command();
            clap_complete::generate(shell, &mut command, "warren-relay", &mut std::io::stdout());
            0
        }
        Command::Serve(serve) => match tokio::runtime::Runtime::new() {
            Ok(runtime) => runtime.block_on(run(&serve)),
            Err(error) => failed(&error),
        },
    }
}

fn failed(error: &dyn std::error::Error) -> u8 {
    let _ = writeln!(std::io::stderr(), "error: {error}");
    1
}

/// The signals that end the relay.
fn signals() -> std::io::Result<(Signal, Signal)> {
    Ok((
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
    ))
}

async fn run(serve: &Serve) -> u8 {
    // Before anything else: a signal that comes early ends the relay in order, too.
    let (mut interrupt, mut terminate) = match signals() {
        Ok(signals) => signals,
        Err(error) => return failed(&error),
    };
    let started = match PassedSockets::from_environment() {
        Ok(sockets) => serve.start_on(sockets).await,
        Err(error) => Err(error.into()),
    };
    let mut running = match started {
        Ok(running) => running,
        Err(error) => return failed(&error),
    };
    if let Err(error) = serve.write_map(&running) {
        tracing::warn!(%error, path = %serve.map_path().display(), "the map entry cannot be written");
    }
    let mut out = std::io::stdout();
    let _ = out.write_all(serve.greeting(&running).as_bytes());
    let _ = out.flush();
    let manager = ServiceManager::from_environment();
    manager.ready();
    let watchdog = async {
        let Some(period) = manager.watchdog_period() else {
            return std::future::pending().await;
        };
        loop {
            tokio::time::sleep(period).await;
            manager.alive();
        }
    };
    tokio::select! {
        () = running.run() => {}
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        () = watchdog => {}
    }
    manager.stopping();
    running.relay.close();
    0
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn serve(args: &[&str]) -> Serve {
        let all = ["warren-relay", "serve"].iter().chain(args);
        match Cli::try_parse_from(all).unwrap().command {
            Command::Serve(serve) => *serve,
            Command::Completion { .. } => unreachable!("asked for serve"),
        }
    }

    #[tokio::test]
    async fn self_signed_relay_prints_a_pinned_entry() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().to_str().unwrap();
        let args = ["--hostname", "127.0.0.1", "--state-dir", state];
        let ports = ["--listen", "127.0.0.1:0", "--stun-listen", "127.0.0.1:0"];
        let serve = serve(&[&args[..], &ports[..]].concat());
        let running = serve.start().await.unwrap();
        let json = serde_json::to_value(&running.map).unwrap();
        let node = &json["Regions"]["900"]["Nodes"][0];
        assert_eq!(node["HostName"], "127.0.0.1");
        assert_eq!(node["IPv4"], "127.0.0.1");
        assert_eq!(node["DERPPort"], running.address.port());
        assert!(
            node["CertName"]
                .as_str()
                .unwrap()
                .starts_with("sha256-raw:")
        );
        assert!(serve.greeting(&running).contains("sha256-raw:"));
        serve.write_map(&running).unwrap();
        let written = std::fs::read(serve.map_path()).unwrap();
        assert_eq!(DerpMap::from_json(&written).unwrap(), running.map);
        // The port is taken now.
        let again = Serve {
            listen: running.address,
            no_stun: true,
            ..serve
        };
        let error = again.start().await.unwrap_err();
        assert!(error.to_string().contains("choose another port"), "{error}");
    }

    #[test]
    fn wrong_usage_is_noticed() {
        for args in [
            &["serve"][..],
            &["serve", "--hostname", "x", "--tls", "files"],
            &["serve", "--hostname", "x", "--mesh-with", "y"],
            &["serve", "--hostname", "x", "--region-id", "0"],
            &["serve", "--hostname", "x", "--listen", "nowhere"],
        ] {
            let all = ["warren-relay"].iter().chain(args);
            assert!(Cli::try_parse_from(all).is_err(), "{args:?}");
        }
        let off = ["--hostname", "x", "--verify-client-url-fail-open=false"];
        assert!(!serve(&off).verify_client_url_fail_open);
    }
}

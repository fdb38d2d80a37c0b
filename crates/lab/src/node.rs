//! A node on a host: ours or the real one, driven by the same commands.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::network::{Host, LabError, which};
use crate::program::{Program, foreign, ours};
use crate::wait::{PATIENCE, until};

/// The program that runs the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `warren`.
    Warren,
    /// `tailscaled`, driven by `tailscale`.
    Tailscale,
    /// `tailscaled` that speaks to relays over WebSocket. The released one has
    /// that only in browsers; a build with the tag `ts_debug_websockets` is
    /// looked for under the name `tailscaled-websocket`.
    TailscaleWebSocket,
}

impl Kind {
    /// Whether its programs are installed here.
    pub fn is_installed(self) -> bool {
        match self {
            Self::Warren => ours("warren").is_ok(),
            Self::Tailscale => foreign("tailscaled").is_some() && foreign("tailscale").is_some(),
            Self::TailscaleWebSocket => {
                foreign("tailscaled-websocket").is_some() && foreign("tailscale").is_some()
            }
        }
    }
}

/// A running node.
pub struct Node {
    host: Host,
    kind: Kind,
    daemon: Program,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    is_privileged: bool,
}

/// How a node reaches a peer, as its status shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Path {
    /// Nothing is being sent.
    Idle,
    /// Through the relay region of that code.
    Relay(String),
    /// Straight to that address.
    Direct(String),
}

impl Node {
    /// Starts the daemon and waits until it answers.
    ///
    /// # Errors
    /// When the programs are missing or the daemon does not come up.
    pub fn start(host: &Host, kind: Kind) -> Result<Self, LabError> {
        Self::start_with(host, kind, &[])
    }

    /// As [`Node::start`], with more of the daemon's environment.
    ///
    /// # Errors
    /// As [`Node::start`].
    pub fn start_with(
        host: &Host,
        kind: Kind,
        environment: &[(&str, &str)],
    ) -> Result<Self, LabError> {
        Self::start_as(host, kind, environment, None)
    }

    /// Starts a daemon without a network interface and without privileges, with more
    /// arguments.
    ///
    /// # Errors
    /// As [`Node::start`].
    pub fn start_userspace(host: &Host, kind: Kind, more: &[&str]) -> Result<Self, LabError> {
        Self::start_as(host, kind, &[], Some(more))
    }

    fn start_as(
        host: &Host,
        kind: Kind,
        environment: &[(&str, &str)],
        userspace: Option<&[&str]>,
    ) -> Result<Self, LabError> {
        let folder = host.folder().join("node");
        std::fs::create_dir_all(&folder)?;
        let folder = folder.display().to_string();
        let mut arguments = match kind {
            Kind::Warren => vec![
                "daemon".to_owned(),
                format!("--state-dir={folder}"),
                format!("--socket={folder}/s.sock"),
                "--port=41641".to_owned(),
                "--tun=warren0".to_owned(),
            ],
            Kind::Tailscale | Kind::TailscaleWebSocket => vec![
                format!("--statedir={folder}"),
                format!("--socket={folder}/s.sock"),
                "--port=41641".to_owned(),
                "--tun=tailscale0".to_owned(),
            ],
        };
        if let Some(more) = userspace {
            arguments.retain(|argument| !argument.starts_with("--tun="));
            arguments.push("--tun=userspace-networking".to_owned());
            arguments.extend(more.iter().map(|&argument| argument.to_owned()));
        }
        let environment: Vec<(String, String)> = environment
            .iter()
            .map(|&(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        let is_privileged = userspace.is_none();
        let daemon = start_daemon(host, kind, &arguments, &environment, is_privileged)?;
        let mut node = Self {
            host: host.clone(),
            kind,
            daemon,
            arguments,
            environment,
            is_privileged,
        };
        node.wait_until_it_answers()?;
        Ok(node)
    }

    fn wait_until_it_answers(&mut self) -> Result<(), LabError> {
        // A daemon that has ended will not answer any more: stop waiting.
        until("the daemon to answer", PATIENCE, || {
            match self.daemon.check_alive() {
                Err(ended) => Ok(Err(ended)),
                Ok(()) => self.status_json().map(|_| Ok(())),
            }
        })?
    }

    /// The host it runs on.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The program of the node.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The daemon itself.
    pub fn daemon(&mut self) -> &mut Program {
        &mut self.daemon
    }

    /// Changes the environment of the next daemon, in addition to what it has.
    pub fn set_environment(&mut self, more: &[(&str, &str)]) {
        let more = more.iter();
        let more = more.map(|&(name, value)| (name.to_owned(), value.to_owned()));
        self.environment.extend(more);
    }

    /// Starts the daemon again after it was stopped or killed.
    ///
    /// # Errors
    /// As [`Node::start`].
    pub fn restart(&mut self) -> Result<(), LabError> {
        self.daemon = start_daemon(
            &self.host,
            self.kind,
            &self.arguments,
            &self.environment,
            self.is_privileged,
        )?;
        self.wait_until_it_answers()
    }

    /// Runs a command of the node's CLI.
    ///
    /// # Errors
    /// When it fails; the text holds what it printed.
    pub fn cli(&self, arguments: &[&str]) -> Result<String, LabError> {
        let binary = match self.kind {
            Kind::Warren => ours("warren")?,
            Kind::Tailscale | Kind::TailscaleWebSocket => {
                missing(foreign("tailscale"), "tailscale")?
            }
        };
        let socket = format!("--socket={}/node/s.sock", self.host.folder().display());
        let mut all = vec![socket.as_str()];
        all.extend(arguments);
        self.host.run(&binary.display().to_string(), &all)
    }

    /// Joins the tailnet of `server` with an auth key; returns how long the
    /// command took.
    ///
    /// # Errors
    /// When the server refuses or does not answer.
    pub fn up(&self, server: &str, auth_key: &str, more: &[&str]) -> Result<Duration, LabError> {
        let server = format!("--login-server={server}");
        let auth_key = format!("--auth-key={auth_key}");
        let hostname = format!("--hostname={}", self.host.name());
        let mut arguments = vec!["up", &server, &auth_key, &hostname, "--timeout=40s"];
        arguments.extend(more);
        let start = Instant::now();
        self.cli(&arguments)?;
        Ok(start.elapsed())
    }

    /// A number that a node of ours counts, by its name without `warren_`.
    ///
    /// # Errors
    /// When the daemon does not answer or counts no such thing.
    pub fn metric(&self, name: &str) -> Result<u64, LabError> {
        use std::io::{Read as _, Write as _};
        let socket = self.host.folder().join("node/s.sock");
        let mut stream = std::os::unix::net::UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(
            b"GET /localapi/v0/usermetrics HTTP/1.1\r\nHost: local-tailscaled.sock\r\n\
              Connection: close\r\n\r\n",
        )?;
        let mut page = String::new();
        stream.read_to_string(&mut page)?;
        let prefix = format!("warren_{name} ");
        let value = page.lines().find_map(|line| line.strip_prefix(&prefix));
        value
            .and_then(|value| value.trim().parse().ok())
            .ok_or_else(|| LabError::new(format!("the node does not count {name}:\n{page}")))
    }

    /// The output of `status --json`.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub fn status_json(&self) -> Result<Value, LabError> {
        let text = self.cli(&["status", "--json"])?;
        serde_json::from_str(&text)
            .map_err(|error| LabError::new(format!("status --json is not JSON: {error}\n{text}")))
    }

    /// The node's own addresses, IPv4 first.
    ///
    /// # Errors
    /// While it has none.
    pub fn addresses(&self) -> Result<Vec<IpAddr>, LabError> {
        let status = self.status_json()?;
        let addresses = status["TailscaleIPs"].as_array().into_iter().flatten();
        let mut addresses: Vec<IpAddr> = addresses
            .filter_map(|address| address.as_str()?.parse().ok())
            .collect();
        addresses.sort();
        if addresses.is_empty() {
            return Err(LabError::new(format!(
                "{} has no address yet",
                self.host.name()
            )));
        }
        Ok(addresses)
    }

    /// The names of the peers this node sees, sorted.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub fn peers(&self) -> Result<Vec<String>, LabError> {
        let status = self.status_json()?;
        let peers = status["Peer"]
            .as_object()
            .into_iter()
            .flat_map(|peers| peers.values());
        let mut names: Vec<String> = peers
            .filter_map(|peer| Some(peer["DNSName"].as_str()?.split('.').next()?.to_owned()))
            .collect();
        names.sort();
        Ok(names)
    }

    /// The entry of `peer` in the status.
    ///
    /// # Errors
    /// When the node does not see it.
    pub fn peer(&self, peer: &str) -> Result<Value, LabError> {
        let status = self.status_json()?;
        let peers = status["Peer"]
            .as_object()
            .into_iter()
            .flat_map(|peers| peers.values());
        let mut found = peers.filter(|entry| {
            entry["DNSName"]
                .as_str()
                .and_then(|name| name.split('.').next())
                == Some(peer)
        });
        let found = found.next().cloned();
        found.ok_or_else(|| LabError::new(format!("{} does not see {peer}", self.host.name())))
    }

    /// How the node reaches `peer` now.
    ///
    /// # Errors
    /// When the node does not see it.
    pub fn path_to(&self, peer: &str) -> Result<Path, LabError> {
        let entry = self.peer(peer)?;
        let text = |key: &str| entry[key].as_str().unwrap_or_default().to_owned();
        let (direct, relay) = (text("CurAddr"), text("Relay"));
        Ok(match (direct.as_str(), relay.as_str()) {
            ("", "") => Path::Idle,
            ("", _) => Path::Relay(relay),
            _ => Path::Direct(direct),
        })
    }

    /// Waits until `peer` is reached directly; returns the address.
    ///
    /// # Errors
    /// After the usual patience.
    pub fn wait_until_direct(&self, peer: &str) -> Result<String, LabError> {
        until(
            &format!("a direct path to {peer}"),
            PATIENCE,
            || match self.path_to(peer)? {
                Path::Direct(address) => Ok(address),
                other @ (Path::Idle | Path::Relay(_)) => Err(LabError::new(format!("{other:?}"))),
            },
        )
    }
}

fn start_daemon(
    host: &Host,
    kind: Kind,
    arguments: &[String],
    more: &[(String, String)],
    is_privileged: bool,
) -> Result<Program, LabError> {
    let quiet = [
        ("TS_NO_LOGS_NO_SUPPORT", "true"),
        ("TS_DEBUG_FIREWALL_MODE", "nftables"),
        ("TS_DISABLE_PORTMAPPER", "true"),
        ("TS_DEBUG_DERP_WS_CLIENT", "true"),
    ];
    let (name, binary, own) = match kind {
        Kind::Warren => ("warren", ours("warren")?, [].as_slice()),
        Kind::Tailscale => (
            "tailscaled",
            missing(foreign("tailscaled"), "tailscaled")?,
            &quiet[..3],
        ),
        Kind::TailscaleWebSocket => (
            "tailscaled",
            missing(foreign("tailscaled-websocket"), "tailscaled-websocket")?,
            &quiet[..],
        ),
    };
    let mut environment = own.to_vec();
    environment.extend(
        more.iter()
            .map(|(name, value)| (name.as_str(), value.as_str())),
    );
    if is_privileged {
        return Program::start(host, name, &binary, arguments, &environment);
    }
    // Without capabilities root may do no more than others: no network device, no route.
    let setpriv = missing(which("setpriv"), "setpriv")?;
    let without = ["--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"];
    let mut all: Vec<String> = without.map(str::to_owned).into();
    all.push(binary.display().to_string());
    all.extend_from_slice(arguments);
    Program::start(host, name, &setpriv, &all, &environment)
}

fn missing(found: Option<std::path::PathBuf>, name: &str) -> Result<std::path::PathBuf, LabError> {
    found.ok_or_else(|| LabError::new(format!("the program {name} is not installed")))
}

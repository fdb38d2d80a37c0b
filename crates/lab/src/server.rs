//! Coordination servers and relays on hosts: ours, Headscale, and `derper`.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde_json::{Value, json};

use crate::network::{Host, LabError};
use crate::program::{Program, foreign, ours};
use crate::wait::{PATIENCE, until};

/// Where the lab's relays of ours serve their metrics.
const METRICS_PORT: u16 = 9090;

/// A running `warren-control`.
pub struct Control {
    host: Host,
    program: Program,
    arguments: Vec<String>,
    url: String,
}

impl Control {
    /// Starts it with its embedded relay, or with the DERP map given.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start(host: &Host, derp_map: Option<&Value>) -> Result<Self, LabError> {
        Self::start_with(host, derp_map, &[])
    }

    /// As [`Control::start`], with more arguments.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start_with(
        host: &Host,
        derp_map: Option<&Value>,
        more: &[&str],
    ) -> Result<Self, LabError> {
        Self::start_at(host, host.address(), derp_map, more)
    }

    /// As [`Control::start_with`], at another address of the host.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start_at(
        host: &Host,
        address: IpAddr,
        derp_map: Option<&Value>,
        more: &[&str],
    ) -> Result<Self, LabError> {
        let url = format!("http://{address}:8080");
        let mut arguments = vec![
            "serve".to_owned(),
            format!("--state-dir={}", state_folder(host)),
            format!("--listen={address}:8080"),
            format!("--server-url={url}"),
        ];
        if let Some(map) = derp_map {
            let file = host.folder().join("derp-map.json");
            std::fs::write(&file, map.to_string())?;
            arguments.push(format!("--derp-map={}", file.display()));
        }
        arguments.extend(more.iter().map(|&argument| argument.to_owned()));
        let program = Program::start(
            host,
            "warren-control",
            &ours("warren-control")?,
            &arguments,
            &[],
        )?;
        let mut control = Self {
            host: host.clone(),
            program,
            arguments,
            url,
        };
        control.wait_until_it_answers()?;
        Ok(control)
    }

    fn wait_until_it_answers(&mut self) -> Result<(), LabError> {
        until("warren-control to answer", PATIENCE, || {
            match self.program.check_alive() {
                Err(ended) => Ok(Err(ended)),
                Ok(()) => self.cli(&["users", "list", "--json"]).map(|_| Ok(())),
            }
        })?
    }

    /// The host it runs on.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The address nodes are given.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The folder of its state.
    pub fn state_folder(&self) -> std::path::PathBuf {
        state_folder(&self.host).into()
    }

    /// The running program.
    pub fn program(&mut self) -> &mut Program {
        &mut self.program
    }

    /// Starts the server again after it was stopped or killed.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn restart(&mut self) -> Result<(), LabError> {
        self.program = Program::start(
            &self.host,
            "warren-control",
            &ours("warren-control")?,
            &self.arguments,
            &[],
        )?;
        self.wait_until_it_answers()
    }

    /// Runs an admin command.
    ///
    /// # Errors
    /// When it fails; the text holds what it printed.
    pub fn cli(&self, arguments: &[&str]) -> Result<String, LabError> {
        let binary = ours("warren-control")?.display().to_string();
        let state = format!("--state-dir={}", state_folder(&self.host));
        let mut all = vec![state.as_str()];
        all.extend(arguments);
        self.host.run(&binary, &all)
    }

    /// Runs an admin command and reads its JSON.
    ///
    /// # Errors
    /// When it fails or prints something else.
    pub fn json(&self, arguments: &[&str]) -> Result<Value, LabError> {
        let mut all = arguments.to_vec();
        all.push("--json");
        let text = self.cli(&all)?;
        serde_json::from_str(&text)
            .map_err(|error| LabError::new(format!("not JSON: {error}\n{text}")))
    }

    /// Makes `user` if need be, and a reusable auth key of theirs.
    ///
    /// # Errors
    /// When the server refuses.
    pub fn auth_key(&self, user: &str) -> Result<String, LabError> {
        let users = self.json(&["users", "list"])?;
        let known = users
            .as_array()
            .into_iter()
            .flatten()
            .any(|entry| entry["name"] == user);
        if !known {
            self.cli(&["users", "create", user])?;
        }
        let key = self.json(&[
            "preauthkeys",
            "create",
            "--user",
            user,
            "--reusable",
            "--expiry",
            "24h",
        ])?;
        key["key"]
            .as_str()
            .map(str::to_owned)
            .ok_or_else(|| LabError::new(format!("no field `key` in {key}")))
    }

    /// The id of the node called `name`.
    ///
    /// # Errors
    /// When there is none.
    pub fn node_id(&self, name: &str) -> Result<String, LabError> {
        let nodes = self.json(&["nodes", "list"])?;
        let mut nodes = nodes.as_array().into_iter().flatten();
        let node = nodes.find(|node| node["given_name"] == name || node["name"] == name);
        let id = node.map(|node| match &node["id"] {
            Value::String(id) => id.clone(),
            other => other.to_string(),
        });
        id.ok_or_else(|| LabError::new(format!("the server knows no node {name}")))
    }
}

fn state_folder(host: &Host) -> String {
    host.folder().join("control").display().to_string()
}

/// A running Headscale.
pub struct Headscale {
    host: Host,
    _program: Program,
}

impl Headscale {
    /// Starts it with `derp_map`; `None` when it is not installed.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start(host: &Host, derp_map: &Value) -> Result<Option<Self>, LabError> {
        let Some(binary) = foreign("headscale") else {
            return Ok(None);
        };
        let folder = host.folder().join("headscale");
        std::fs::create_dir_all(&folder)?;
        let shown = folder.display();
        std::fs::write(folder.join("derp.yaml"), headscale_derp_map(derp_map))?;
        std::fs::write(
            folder.join("config.yaml"),
            format!(
                "server_url: http://{address}:8080
listen_addr: {address}:8080
metrics_listen_addr: 127.0.0.1:9090
grpc_listen_addr: 127.0.0.1:50443
noise:
  private_key_path: {shown}/noise.key
prefixes:
  v4: 100.64.0.0/10
  v6: fd7a:115c:a1e0::/48
database:
  type: sqlite
  sqlite:
    path: {shown}/db.sqlite
derp:
  server:
    enabled: false
  urls: []
  paths:
    - {shown}/derp.yaml
  auto_update_enabled: false
dns:
  magic_dns: true
  base_domain: headscale.test
  override_local_dns: false
  nameservers:
    global: []
unix_socket: {shown}/headscale.sock
policy:
  mode: file
  path: ''
",
                address = host.address()
            ),
        )?;
        let arguments = vec![
            "serve".to_owned(),
            "--config".to_owned(),
            format!("{shown}/config.yaml"),
        ];
        let program = Program::start(host, "headscale", &binary, &arguments, &[])?;
        let mut headscale = Self {
            host: host.clone(),
            _program: program,
        };
        until("headscale to answer", PATIENCE, || {
            headscale._program.check_alive()?;
            headscale.cli(&["users", "list"])
        })?;
        Ok(Some(headscale))
    }

    /// The address nodes are given.
    pub fn url(&self) -> String {
        format!("http://{}:8080", self.host.address())
    }

    /// Runs an admin command.
    ///
    /// # Errors
    /// When it fails; the text holds what it printed.
    pub fn cli(&self, arguments: &[&str]) -> Result<String, LabError> {
        let binary = foreign("headscale").ok_or_else(|| LabError::new("headscale is gone"))?;
        let config = self
            .host
            .folder()
            .join("headscale/config.yaml")
            .display()
            .to_string();
        let mut all = vec!["--config", config.as_str()];
        all.extend(arguments);
        self.host.run(&binary.display().to_string(), &all)
    }

    /// Makes a user and a reusable auth key of theirs.
    ///
    /// # Errors
    /// When the server refuses.
    pub fn auth_key(&self, user: &str) -> Result<String, LabError> {
        self.cli(&["users", "create", user])?;
        let users = self.cli(&["users", "list", "-o", "json"])?;
        let users: Value = serde_json::from_str(&users)
            .map_err(|error| LabError::new(format!("not JSON: {error}\n{users}")))?;
        let mut users = users.as_array().into_iter().flatten();
        let id = users
            .find(|entry| entry["name"] == user)
            .map(|entry| entry["id"].to_string());
        let id = id.unwrap_or_else(|| "1".to_owned()).replace('"', "");
        let key = self.cli(&[
            "preauthkeys",
            "create",
            "--user",
            &id,
            "--reusable",
            "--expiration",
            "24h",
            "-o",
            "json",
        ])?;
        let key: Value = serde_json::from_str(&key)
            .map_err(|error| LabError::new(format!("not JSON: {error}\n{key}")))?;
        key["key"]
            .as_str()
            .map(str::to_owned)
            .ok_or_else(|| LabError::new(format!("no field `key` in {key}")))
    }
}

/// Headscale reads its relays as YAML with lower-case names; JSON is YAML.
fn headscale_derp_map(map: &Value) -> String {
    fn lower(value: &Value) -> Value {
        match value {
            Value::Object(fields) => Value::Object(
                fields
                    .iter()
                    .map(|(key, value)| (key.to_lowercase(), lower(value)))
                    .collect(),
            ),
            Value::Array(items) => Value::Array(items.iter().map(lower).collect()),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value.clone(),
        }
    }
    // Region numbers are keys, and YAML wants them bare.
    let mut text = String::from("regions:\n");
    let regions = map["Regions"].as_object().into_iter().flatten();
    for (id, region) in regions {
        text += &format!("  {id}: {}\n", lower(region));
    }
    text
}

/// Which relay program serves a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RelayKind {
    /// `warren-relay`.
    Warren,
    /// `derper`.
    Derper,
}

/// A running relay.
pub struct Relay {
    host: Host,
    program: Program,
    name: &'static str,
    binary: std::path::PathBuf,
    arguments: Vec<String>,
    region: u16,
    entry: Value,
}

impl Relay {
    /// Starts a relay with a self-signed certificate as region `region`;
    /// `None` when its program is not installed.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start(host: &Host, kind: RelayKind, region: u16) -> Result<Option<Self>, LabError> {
        let address = host.address();
        let folder = host.folder().join("relay");
        std::fs::create_dir_all(&folder)?;
        let (name, binary, arguments) = match kind {
            RelayKind::Warren => {
                let arguments = vec![
                    "serve".to_owned(),
                    format!("--listen={address}:443"),
                    format!("--stun-listen={address}:3478"),
                    format!("--metrics-listen={address}:{METRICS_PORT}"),
                    "--tls=self-signed".to_owned(),
                    format!("--hostname={address}"),
                    format!("--state-dir={}", folder.display()),
                ];
                ("warren-relay", ours("warren-relay")?, arguments)
            }
            RelayKind::Derper => {
                let Some(binary) = foreign("derper") else {
                    return Ok(None);
                };
                let arguments = vec![
                    "-a".to_owned(),
                    format!("{address}:443"),
                    "-http-port=-1".to_owned(),
                    "-stun".to_owned(),
                    "-stun-port=3478".to_owned(),
                    "-certmode=manual".to_owned(),
                    format!("-certdir={}", folder.display()),
                    format!("-hostname={address}"),
                    format!("-c={}/derper.key", folder.display()),
                ];
                ("derper", binary, arguments)
            }
        };
        let mut relay = Self {
            host: host.clone(),
            program: Program::start(host, name, &binary, &arguments, &[])?,
            name,
            binary,
            arguments,
            region,
            entry: Value::Null,
        };
        let pin = until(
            "the relay to print its certificate's hash",
            PATIENCE,
            || {
                relay.program.check_alive()?;
                let log = relay.program.log();
                let at = log
                    .find("sha256-raw:")
                    .ok_or_else(|| LabError::new(log.clone()))?;
                Ok::<_, LabError>(
                    log[at..]
                        .chars()
                        .take("sha256-raw:".len() + 64)
                        .collect::<String>(),
                )
            },
        )?;
        relay.entry = json!({
            "Name": format!("{region}a"),
            "RegionID": region,
            "HostName": address.to_string(),
            "IPv4": address.to_string(),
            "IPv6": "none",
            "CertName": pin,
            "STUNPort": 3478,
        });
        relay.wait_until_it_listens()?;
        Ok(Some(relay))
    }

    fn wait_until_it_listens(&self) -> Result<(), LabError> {
        let https = SocketAddr::new(self.host.address(), 443);
        until("the relay to listen", PATIENCE, || {
            self.host.inside(move || {
                std::net::TcpStream::connect_timeout(&https, Duration::from_secs(1))
            })
        })
        .map(drop)
    }

    /// Starts the relay again, with its key and certificate, after it was
    /// stopped or killed.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn restart(&mut self) -> Result<(), LabError> {
        self.program = Program::start(&self.host, self.name, &self.binary, &self.arguments, &[])?;
        self.wait_until_it_listens()
    }

    /// The host it runs on.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The certificate chain of our relay (PEM).
    ///
    /// # Errors
    /// When it is not where our relay keeps it.
    pub fn certificate(&self) -> Result<String, LabError> {
        let name = format!("relay/{}.crt", self.host.address());
        Ok(std::fs::read_to_string(self.host.folder().join(name))?)
    }

    /// One of the numbers that our relay counts, by its name without
    /// `warren_relay_`.
    ///
    /// # Errors
    /// When the relay does not answer or counts no such thing.
    pub fn counter(&self, name: &str) -> Result<u64, LabError> {
        let address = SocketAddr::new(self.host.address(), METRICS_PORT);
        let page = self.host.inside(move || {
            use std::io::{Read as _, Write as _};
            let mut stream = std::net::TcpStream::connect_timeout(&address, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream
                .write_all(b"GET /metrics HTTP/1.1\r\nHost: relay\r\nConnection: close\r\n\r\n")?;
            let mut page = String::new();
            stream.read_to_string(&mut page)?;
            Ok::<_, std::io::Error>(page)
        })?;
        let prefix = format!("warren_relay_{name} ");
        let value = page.lines().find_map(|line| line.strip_prefix(&prefix));
        value
            .and_then(|value| value.trim().parse().ok())
            .ok_or_else(|| LabError::new(format!("the relay does not count {name}:\n{page}")))
    }

    /// Its region in a DERP map.
    pub fn region(&self) -> Value {
        json!({
            "RegionID": self.region,
            "RegionCode": format!("r{}", self.region),
            "RegionName": self.host.name(),
            "Nodes": [self.entry],
        })
    }

    /// The running program.
    pub fn program(&mut self) -> &mut Program {
        &mut self.program
    }
}

/// The DERP map of these relays.
pub fn derp_map(relays: &[&Relay]) -> Value {
    let regions: serde_json::Map<String, Value> = relays
        .iter()
        .map(|relay| (relay.region.to_string(), relay.region()))
        .collect();
    json!({ "Regions": regions })
}

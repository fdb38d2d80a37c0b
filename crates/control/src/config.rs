//! The settings of the server: a TOML file, environment variables, and flags.
//!
//! Every setting is a key of the file. The variable `WARREN_CONTROL_SECTION_KEY` and,
//! where there is one, the flag of `serve` are the same setting; a flag overrides a
//! variable, and a variable overrides the file. Everything that is wrong is found in one
//! reading, unknown keys and variables too, and then nothing is used.
//! `packaging/warren-control.toml` describes each key; a test compares it with the keys
//! that are read here.

mod dns;
mod given;
mod providers;
mod reader;
mod show;
mod shown;
mod suggest;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use url::Url;
use warren_control_core::ConfiguredDns;
use warren_logging::{Format, Levels};
use warren_oidc::Provider;

pub use reader::{Entry, Mistake, Origin, Takes};
pub use show::{changed, to_json, to_toml};

use crate::cli::args::{
    DEFAULT_MAX_CONNECTIONS, OptionalListen, Serve, parse_domain, parse_duration, parse_listen,
    parse_optional,
};
use crate::self_map::parse_url;
use given::Given;
use reader::{Key, Reader, VARIABLES};

/// Fewest connections with which a server can work.
const MIN_CONNECTIONS: usize = 16;
/// More connections than a process can have open.
const MAX_CONNECTIONS: usize = 4 << 20;
/// Bytes of the longest file that is read.
const MAX_FILE: u64 = 16 << 20;

/// The settings, checked.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Address and port for nodes.
    pub listen: Option<SocketAddr>,
    /// The URL at which nodes reach the server.
    pub server_url: Option<Url>,
    /// Address and port for official clients that dial again.
    pub second_dial: Option<OptionalListen>,
    /// Address and port for metrics.
    pub metrics_listen: Option<OptionalListen>,
    /// Connections at a time.
    pub max_connections: usize,
    /// The user that owns the printed key.
    pub first_user: String,
    /// The files with the certificate chain and its private key.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// The file with the relays to use.
    pub derp_map: Option<PathBuf>,
    /// Address and port for STUN.
    pub stun_listen: Option<OptionalListen>,
    /// The zone of the nodes' names.
    pub base_domain: String,
    /// How long the login of a user's node is valid; zero: it does not expire.
    pub key_expiry: Duration,
    /// How long an ephemeral node may be away.
    pub ephemeral_timeout: Duration,
    /// Name resolution, as far as the configuration decides about it.
    pub dns: ConfiguredDns,
    /// The file with extra records.
    pub dns_records: Option<PathBuf>,
    /// The policy file that is in charge.
    pub policy: Option<PathBuf>,
    /// The levels of the log.
    pub log_levels: Option<Levels>,
    /// The form of its lines.
    pub log_format: Format,
    /// The identity providers, in the order of their buttons.
    pub providers: Vec<Provider>,
    /// Every key with its value, for showing and comparing.
    pub entries: Vec<Entry>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: None,
            server_url: None,
            second_dial: None,
            metrics_listen: None,
            max_connections: DEFAULT_MAX_CONNECTIONS,
            first_user: "default".to_owned(),
            certificate: None,
            derp_map: None,
            stun_listen: None,
            base_domain: "warren.internal".to_owned(),
            key_expiry: Duration::from_secs(180 * 86_400),
            ephemeral_timeout: Duration::from_secs(120),
            dns: ConfiguredDns::default(),
            dns_records: None,
            policy: None,
            log_levels: None,
            log_format: Format::default(),
            providers: Vec::new(),
            entries: Vec::new(),
        }
    }
}

impl Settings {
    /// Where a key was given.
    pub(crate) fn origin(&self, section: &str, name: &str) -> Origin {
        let mut entries = self.entries.iter();
        let found = entries.find(|entry| entry.section == section && entry.name == name);
        found.map_or(Origin::Default, |entry| entry.origin.clone())
    }

    /// The files with a secret in them that other users can read.
    pub(crate) fn open_secrets(&self) -> Vec<&Path> {
        use std::os::unix::fs::PermissionsExt as _;
        let secrets = self.entries.iter().filter(|entry| entry.hidden.is_some());
        let files = secrets.filter_map(|entry| match &entry.origin {
            Origin::File(path, _) if entry.name == "client_secret" => Some(path.as_path()),
            _ => None,
        });
        let mut files: Vec<&Path> = files
            .filter(|path| {
                let found = std::fs::metadata(path);
                found.is_ok_and(|found| found.permissions().mode() & 0o077 != 0)
            })
            .collect();
        files.dedup();
        files
    }

    /// These settings, but the keys that need a restart as in `running`: what a server
    /// uses that started with those and read these.
    pub(crate) fn as_used(&self, running: &Self) -> Self {
        let is_live = |entry: &&Entry| entry.takes == Takes::Reload;
        let is_fixed = |entry: &&Entry| entry.takes == Takes::Restart;
        let fixed = running.entries.iter().filter(is_fixed);
        let derp_map = match (&running.derp_map, &self.derp_map) {
            (Some(_), Some(new)) => Some(new.clone()),
            (old, _) => old.clone(),
        };
        Self {
            providers: self.providers.clone(),
            log_levels: self.log_levels.clone(),
            dns: self.dns.clone(),
            derp_map,
            entries: fixed
                .chain(self.entries.iter().filter(is_live))
                .cloned()
                .collect(),
            ..running.clone()
        }
    }
}

/// Everything that is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistakes(pub Vec<Mistake>);

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.len() {
            1 => f.write_str("the configuration has a mistake, so it is not used:")?,
            count => write!(
                f,
                "the configuration has {count} mistakes, so it is not used:"
            )?,
        }
        for mistake in &self.0 {
            // An explanation may have several lines.
            let text = mistake.to_string().trim_end().replace('\n', "\n    ");
            write!(f, "\n  {text}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Mistakes {}

/// Where settings come from; they can be read again at any time.
#[derive(Debug, Clone, Default)]
pub struct Source {
    flags: Serve,
    variables: BTreeMap<String, String>,
}

impl Source {
    /// Flags and environment variables.
    pub fn new(flags: Serve, variables: impl IntoIterator<Item = (String, String)>) -> Self {
        let ours = variables
            .into_iter()
            .filter(|(name, _)| name.starts_with(VARIABLES));
        Self {
            flags,
            variables: ours.collect(),
        }
    }

    /// Flags, and the environment of this process.
    pub fn of_process(flags: Serve) -> Self {
        // Text that is not Unicode is the value of no setting.
        let variables = std::env::vars_os().filter_map(|(name, value)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        });
        Self::new(flags, variables)
    }

    /// Reads the settings, and the files with secrets that they name.
    ///
    /// # Errors
    /// Everything that is wrong with them.
    pub fn read(&self) -> Result<Settings, Mistakes> {
        let Some(file) = &self.flags.config else {
            return self.parse(Path::new("configuration"), "");
        };
        let text = read_text(file).map_err(|why| {
            Mistakes(vec![Mistake {
                place: Origin::File(file.clone(), 0),
                what: format!("cannot be read: {why}"),
            }])
        })?;
        self.parse(file, &text)
    }

    /// Reads the settings from the text of a file.
    ///
    /// # Errors
    /// Everything that is wrong with them.
    pub fn parse(&self, file: &Path, text: &str) -> Result<Settings, Mistakes> {
        let mut reader = Reader::new(file, text, &self.variables);
        let mut settings = Settings::default();
        settings.read_server(&mut reader, &self.flags);
        settings.read_tls(&mut reader, &self.flags);
        settings.read_relay(&mut reader, &self.flags);
        settings.read_nodes(&mut reader, &self.flags);
        settings.read_dns(&mut reader, &self.flags);
        settings.read_policy(&mut reader, &self.flags);
        settings.read_log(&mut reader);
        settings.providers = providers::read(&mut reader);
        settings.entries = reader.finish().map_err(Mistakes)?;
        Ok(settings)
    }
}

fn text(given: &Given) -> Result<String, given::Wrong> {
    given.text(|text| Ok(text.to_owned()))
}

fn optional(given: &Given) -> Result<OptionalListen, given::Wrong> {
    given.text(parse_optional)
}

fn duration(given: &Given) -> Result<Duration, given::Wrong> {
    given.text(parse_duration)
}

/// The sections. Each key has the flag of the same setting.
impl Settings {
    fn read_server(&mut self, reader: &mut Reader, flags: &Serve) {
        let mut server = reader.section("server");
        let url = Key::new("url", "made from the address of this machine and the port");
        let url = server.value(
            url.flag("--server-url"),
            flags.server_url.clone(),
            |given| given.text(|text| parse_url(text).map(|_| text.to_owned())),
        );
        let listen = Key::new("listen", "\"[::]:8080\"").flag("--listen");
        self.listen = server.value(listen, flags.listen, |given| given.text(parse_listen));
        let second_dial = Key::new(
            "second_dial",
            "port 443 beside listen, where url is http://",
        );
        let second_dial = second_dial.flag("--second-dial");
        self.second_dial = server.value(second_dial, flags.second_dial, optional);
        let metrics = Key::new("metrics_listen", "\"off\"").flag("--metrics-listen");
        self.metrics_listen = server.value(metrics, flags.metrics_listen, optional);
        let connections = Key::new("max_connections", "16384").flag("--max-connections");
        let connections = server.value(connections, flags.max_connections, |given| {
            given.number(MIN_CONNECTIONS, MAX_CONNECTIONS)
        });
        let user = Key::new("first_user", "\"default\"").flag("--user");
        let user = server.value(user, flags.user.clone(), text);
        server.finish();
        self.max_connections = connections.unwrap_or(self.max_connections);
        self.first_user = user.unwrap_or_else(|| self.first_user.clone());
        self.server_url = url.and_then(|text| match parse_url(&text) {
            Ok(url) => Some(url),
            // That of a flag is checked here, the other ones were above.
            Err(why) => {
                reader.mistake(Origin::Flag("--server-url".to_owned()), why);
                None
            }
        });
    }

    fn read_tls(&mut self, reader: &mut Reader, flags: &Serve) {
        let path = path_from(reader.file());
        let mut tls = reader.section("tls");
        let certificate = Key::new("certificate", "none: plain HTTP").flag("--tls-cert");
        let certificate = tls.value(certificate, flags.tls_cert.clone(), &path);
        let key = Key::new("key", "none: plain HTTP").flag("--tls-key");
        let key = tls.value(key, flags.tls_key.clone(), &path);
        if certificate.is_some() != key.is_some() {
            tls.wrong("certificate and key belong together; give both or neither");
        }
        tls.finish();
        self.certificate = certificate.zip(key);
    }

    fn read_relay(&mut self, reader: &mut Reader, flags: &Serve) {
        let path = path_from(reader.file());
        let mut relay = reader.section("relay");
        let map = Key::new("derp_map", "the embedded relay").flag("--derp-map");
        self.derp_map = relay.value(map.live(), flags.derp_map.clone(), path);
        let stun = Key::new("stun_listen", "port 3478 beside the embedded relay");
        self.stun_listen = relay.value(stun.flag("--stun-listen"), flags.stun_listen, optional);
        relay.finish();
    }

    fn read_nodes(&mut self, reader: &mut Reader, flags: &Serve) {
        let mut nodes = reader.section("nodes");
        let expiry = Key::new("key_expiry", "\"180d\"").flag("--key-expiry");
        let expiry = nodes.value(expiry, flags.key_expiry, duration);
        let timeout = Key::new("ephemeral_timeout", "\"2m\"").flag("--ephemeral-timeout");
        let timeout = nodes.value(timeout, flags.ephemeral_timeout, duration);
        nodes.finish();
        self.key_expiry = expiry.unwrap_or(self.key_expiry);
        self.ephemeral_timeout = timeout.unwrap_or(self.ephemeral_timeout);
    }

    fn read_dns(&mut self, reader: &mut Reader, flags: &Serve) {
        let path = path_from(reader.file());
        let mut dns = reader.section("dns");
        let zone = Key::new("base_domain", "\"warren.internal\"").flag("--base-domain");
        let zone = dns.value(zone, flags.base_domain.clone(), |given| {
            given.text(parse_domain)
        });
        self.dns = dns::read(&mut dns);
        let file = Key::new("records_file", "none");
        self.dns_records = dns.key(file, path);
        dns.finish();
        self.base_domain = zone.unwrap_or_else(|| self.base_domain.clone());
    }

    fn read_policy(&mut self, reader: &mut Reader, flags: &Serve) {
        let path = path_from(reader.file());
        let mut policy = reader.section("policy");
        let file = Key::new("file", "none: the policy is set by command").flag("--policy");
        self.policy = policy.value(file, flags.policy.clone(), path);
        policy.finish();
    }

    fn read_log(&mut self, reader: &mut Reader) {
        let mut log = reader.section("log");
        self.log_levels = log.key(Key::new("levels", "\"warn\"").live(), |given| {
            given.text(|text| text.parse::<Levels>().map_err(|error| error.to_string()))
        });
        let format = log.key(Key::new("format", "\"text\""), |given| {
            given.text(|text| text.parse::<Format>().map_err(|error| error.to_string()))
        });
        log.finish();
        self.log_format = format.unwrap_or_default();
    }
}

/// Reads a path: from the folder of the file, or, in a variable, as it is.
fn path_from(file: &Path) -> impl Fn(&Given) -> Result<PathBuf, given::Wrong> + use<> {
    let folder = file.parent().unwrap_or(Path::new("")).to_owned();
    move |given| {
        let in_file = given.line > 0;
        given.text(|text| match text {
            "" => Err("the name of a file is expected".to_owned()),
            text if in_file => Ok(folder.join(text)),
            text => Ok(PathBuf::from(text)),
        })
    }
}

/// The text of a file of reasonable length.
pub(crate) fn read_text(file: &Path) -> Result<String, String> {
    use std::io::Read as _;
    let read = || {
        let mut text = String::new();
        let opened = std::fs::File::open(file)?;
        opened.take(MAX_FILE + 1).read_to_string(&mut text)?;
        Ok(text)
    };
    let text = read().map_err(|error: std::io::Error| error.to_string())?;
    match u64::try_from(text.len()) {
        Ok(length) if length <= MAX_FILE => Ok(text),
        _ => Err(format!("it is longer than {} MiB", MAX_FILE >> 20)),
    }
}

#[cfg(test)]
mod tests;

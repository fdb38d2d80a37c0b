//! The command line.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use jiff::Timestamp;
use warren_control_core::Role;

/// Connections at a time, unless the command line says otherwise.
pub const DEFAULT_MAX_CONNECTIONS: usize = 16_384;

/// Coordination server of a private network: nodes join here, learn of each
/// other and of what they may reach.
#[derive(Debug, Parser)]
#[command(name = "warren-control", version, max_term_width = 100)]
pub struct Cli {
    /// Folder with keys, database and the socket for administration.
    #[arg(
        long,
        global = true,
        env = "WARREN_CONTROL_STATE_DIR",
        default_value_os_t = crate::terminal::default_state_dir(),
        value_name = "DIR"
    )]
    pub state_dir: PathBuf,
    /// Print JSON instead of text.
    #[arg(long, global = true)]
    pub json: bool,
    /// Print JSON or YAML in the form of Headscale.
    #[arg(
        long,
        short,
        global = true,
        hide = true,
        value_enum,
        hide_possible_values = true,
        value_name = "FORMAT",
        conflicts_with = "json"
    )]
    pub output: Option<OutputForm>,
    /// Accepted for scripts: no command but `policy set` asks for confirmation.
    #[arg(long, global = true, hide = true)]
    pub force: bool,
    /// Accepted for scripts: the configuration file of Headscale is not read.
    #[arg(
        id = "headscale-config",
        short = 'c',
        global = true,
        hide = true,
        value_name = "FILE"
    )]
    pub headscale_config: Option<PathBuf>,
    /// The command.
    #[command(subcommand)]
    pub command: Top,
}

/// The forms of output that Headscale has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OutputForm {
    /// Indented JSON.
    Json,
    /// JSON in one line.
    JsonLine,
    /// YAML.
    Yaml,
}

/// The areas of the command line.
#[derive(Debug, Subcommand)]
pub enum Top {
    /// Run the server. Needs no configuration.
    Serve(Box<Serve>),
    /// Check and show the settings of `serve`.
    #[command(subcommand)]
    Config(Configuration),
    /// Let the running server read its settings again, with the files that they name. If
    /// anything is wrong, nothing changes. Reports the settings that need a restart.
    Reload,
    /// Manage users, who own nodes.
    #[command(subcommand, visible_alias = "user")]
    Users(Users),
    /// Manage nodes.
    #[command(subcommand, visible_alias = "node")]
    Nodes(Nodes),
    /// Manage keys with which machines join without approval.
    #[command(subcommand, visible_aliases = ["preauthkey", "authkeys"])]
    Preauthkeys(Preauthkeys),
    /// Manage the access policy.
    #[command(subcommand)]
    Policy(Policy),
    /// Manage name resolution: name servers, search domains and extra records.
    #[command(subcommand)]
    Dns(Dns),
    /// Manage SSH sessions that the policy allows only after a check.
    #[command(subcommand, visible_alias = "ssh-check")]
    SshChecks(SshChecks),
    /// Copy the state into a new folder, while the server runs or stands still: users,
    /// nodes, keys, policies, and the keys of the server itself.
    Backup {
        /// The folder; it must not be there yet.
        folder: PathBuf,
    },
    /// Put a backup into the state folder, which must be empty or missing. Nodes connect to
    /// a server with that state again without a login.
    Restore {
        /// The folder with the backup.
        folder: PathBuf,
    },
    /// Show server health.
    Health,
    /// Examine connected nodes.
    #[command(subcommand)]
    Debug(Debugging),
    /// Print the version.
    Version,
    /// Check the settings of the environment.
    #[command(hide = true)]
    Configtest,
    /// Make keys.
    #[command(subcommand, hide = true)]
    Generate(Generate),
    /// Print a completion script for a shell.
    Completion {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// `serve`. Flags that are not given are settings of the environment, of the file, or
/// defaults.
#[derive(Debug, Clone, Default, Args)]
pub struct Serve {
    /// Settings (TOML). Each flag is a key there too, and a variable
    /// WARREN_CONTROL_SECTION_KEY; flags override variables, and these the file.
    #[arg(
        long,
        env = "WARREN_CONTROL_CONFIG",
        hide_env_values = true,
        value_name = "FILE"
    )]
    pub config: Option<PathBuf>,
    /// Address and TCP port for nodes. [default: port 8080 on all addresses]
    #[arg(long, value_name = "IP:PORT", value_parser = parse_listen)]
    pub listen: Option<SocketAddr>,
    /// URL at which nodes reach this server. [default: made from the address of this
    /// machine and the port]
    #[arg(long, value_name = "URL")]
    pub server_url: Option<String>,
    /// Relays to use (JSON as on the wire) instead of the embedded one.
    #[arg(long, value_name = "FILE")]
    pub derp_map: Option<PathBuf>,
    /// Address and UDP port for STUN, or "off". [default: port 3478 beside the
    /// embedded relay]
    #[arg(long, value_name = "IP:PORT", value_parser = parse_optional)]
    pub stun_listen: Option<OptionalListen>,
    /// Address and TCP port for official clients that dial again, or "off". They use TLS
    /// there and verify no certificate. [default: port 443 beside --listen, where the URL
    /// is http:// and its host is not in a private range]
    #[arg(long, value_name = "IP:PORT", value_parser = parse_optional)]
    pub second_dial: Option<OptionalListen>,
    /// Address and TCP port for metrics (Prometheus, GET /metrics), or "off". There is no
    /// password: choose one that only their readers reach. [default: off]
    #[arg(long, value_name = "IP:PORT", value_parser = parse_optional)]
    pub metrics_listen: Option<OptionalListen>,
    /// Certificate chain (PEM). Without it the server is plain HTTP.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// Private key of the certificate (PEM).
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Policy (HuJSON). The file is in charge while the server runs: what it
    /// says takes effect when it is saved.
    #[arg(long, value_name = "FILE")]
    pub policy: Option<PathBuf>,
    /// Zone of the nodes' names. [default: warren.internal]
    #[arg(long, value_name = "NAME", value_parser = parse_domain)]
    pub base_domain: Option<String>,
    /// How long an ephemeral node may be offline before it is deleted. [default: 2m]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub ephemeral_timeout: Option<Duration>,
    /// How long the login of a user's node is valid; "0" means that it does not expire.
    /// [default: 180d]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub key_expiry: Option<Duration>,
    /// Connections at a time. One in four is for clients that have not yet shown
    /// that they are nodes of this network. [default: 16384]
    #[arg(long, value_name = "N")]
    pub max_connections: Option<usize>,
    /// User that owns the printed key; created if no user exists. [default: default]
    #[arg(long, value_name = "NAME")]
    pub user: Option<String>,
}

/// `config`.
#[derive(Debug, Subcommand)]
pub enum Configuration {
    /// Check the settings that `serve` would use, and all files that they name. Reports
    /// everything that is wrong, and changes nothing.
    Check {
        /// Those of `serve`.
        #[command(flatten)]
        flags: Box<Serve>,
    },
    /// Show the settings that `serve` would use, as TOML, with where each one comes from.
    /// Secrets are hidden.
    Show {
        /// Those of `serve`.
        #[command(flatten)]
        flags: Box<Serve>,
    },
}

/// The address of a service that can be left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OptionalListen {
    /// The service is left out.
    Off,
    /// It is on this address and port.
    At(SocketAddr),
}

/// `generate`.
#[derive(Debug, Clone, Copy, Subcommand)]
pub enum Generate {
    /// Make a key in the form of the file `noise.key`.
    PrivateKey,
}

/// `users`.
#[derive(Debug, Subcommand)]
pub enum Users {
    /// Create a user.
    Create {
        /// Login name.
        name: String,
        /// Accepted for scripts.
        #[command(flatten)]
        profile: Profile,
    },
    /// Show all users.
    #[command(visible_alias = "ls")]
    List {
        /// Only the user with this number.
        #[arg(long, value_name = "N", hide = true)]
        identifier: Option<i64>,
        /// Only the user with this name.
        #[arg(long, hide = true)]
        name: Option<String>,
        /// Only the user with this mail address.
        #[arg(long, hide = true)]
        email: Option<String>,
    },
    /// Rename a user.
    Rename {
        /// Current name, number, id:NUMBER or name:NAME.
        name: String,
        /// New name.
        #[arg(required_unless_present = "renamed")]
        new_name: Option<String>,
        /// The new name, in the spelling of other servers.
        #[arg(long = "new-name", id = "renamed", hide = true)]
        renamed: Option<String>,
    },
    /// Set the role of a user. Autogroups of the policy such as `autogroup:admin`
    /// select users by role.
    SetRole {
        /// Name, number, id:NUMBER or name:NAME.
        name: String,
        /// The role; new users are members.
        #[arg(value_parser = roles())]
        role: Role,
    },
    /// Set the account at an identity provider with which a user logs in.
    Link {
        /// Name, number, id:NUMBER or name:NAME.
        name: String,
        /// Issuer of the provider, exactly as in the configuration.
        #[arg(long, value_name = "URL")]
        issuer: String,
        /// The person's number or name there (the claim "sub"), exactly.
        #[arg(long)]
        subject: String,
    },
    /// Delete a user that owns no nodes.
    #[command(visible_alias = "destroy")]
    Delete {
        /// Name, number, id:NUMBER or name:NAME.
        name: String,
    },
}

/// Facts about a user that other servers keep.
#[derive(Debug, Args)]
pub struct Profile {
    /// The name to show.
    #[arg(long, hide = true)]
    pub display_name: Option<String>,
    /// The mail address.
    #[arg(long, hide = true)]
    pub email: Option<String>,
    /// The address of a picture.
    #[arg(long, hide = true)]
    pub picture_url: Option<String>,
}

/// `nodes`.
#[derive(Debug, Subcommand)]
pub enum Nodes {
    /// Show all nodes.
    #[command(visible_alias = "ls")]
    List {
        /// Show only the nodes of this user.
        #[arg(long)]
        user: Option<String>,
    },
    /// Show one node.
    Show {
        /// Name, number, address, id:NUMBER or name:NAME.
        node: String,
    },
    /// Rename a node.
    Rename {
        /// Name, number, address, id:NUMBER or name:NAME.
        node: String,
        /// New name.
        name: String,
    },
    /// Set when the key of a node expires; now, unless a flag says otherwise. Then the
    /// node has to log in again.
    #[command(visible_alias = "logout")]
    Expire {
        /// Name, number, address, id:NUMBER or name:NAME.
        node: String,
        /// The key does not expire. An expiry before is taken back.
        #[arg(long, conflicts_with_all = ["after", "at"])]
        never: bool,
        /// The key expires after this time, as 24h or 30d.
        #[arg(long = "in", value_name = "TIME", value_parser = parse_duration)]
        after: Option<Duration>,
        /// The key expires at this moment, as 2030-01-31T12:00:00Z.
        #[arg(long, value_name = "MOMENT", conflicts_with = "after")]
        at: Option<Timestamp>,
    },
    /// Delete a node.
    #[command(visible_alias = "rm")]
    Delete {
        /// Name, number, address, id:NUMBER or name:NAME.
        node: String,
    },
    /// Show machines that wait for approval.
    Waiting,
    /// Approve a machine that waits.
    #[command(visible_alias = "register")]
    Approve {
        /// The id at the end of the address that the machine shows.
        #[arg(required_unless_present = "key")]
        id: Option<String>,
        /// The id, in the spelling of other servers.
        #[arg(long, hide = true)]
        key: Option<String>,
        /// The user that owns the node.
        #[arg(long)]
        user: String,
        /// Tags that own the node instead.
        #[arg(
            long = "tag",
            visible_alias = "tags",
            value_delimiter = ',',
            value_name = "tag:NAME"
        )]
        tags: Vec<String>,
    },
    /// Refuse a machine that waits for approval, or a session that waits for a check.
    Reject {
        /// The id at the end of the address that the machine shows.
        id: String,
    },
    /// Say that every node has an address of both families.
    #[command(hide = true)]
    Backfillips,
    /// Show the routes that nodes offer, which are approved, and which router serves.
    #[command(visible_alias = "list-routes")]
    Routes {
        /// Name, number, address, id:NUMBER or name:NAME; all nodes with routes if left out.
        node: Option<String>,
    },
    /// Approve exactly these routes of a node and withdraw the others; without routes,
    /// withdraw all. A route that the node does not offer yet is served once it offers it.
    ApproveRoutes {
        /// Name, number, address, id:NUMBER or name:NAME.
        node: String,
        /// As 10.1.0.0/16; more than one with commas.
        #[arg(
            long = "routes",
            visible_alias = "route",
            value_delimiter = ',',
            value_name = "ROUTE"
        )]
        routes: Vec<String>,
        /// Same as --routes.
        #[arg(value_name = "ROUTE", value_delimiter = ',')]
        more: Vec<String>,
    },
    /// Replace the tags of a node. The policy must define them.
    Tag {
        /// Name, number, address, id:NUMBER or name:NAME.
        node: String,
        /// The tags.
        #[arg(
            long = "tag",
            visible_alias = "tags",
            value_delimiter = ',',
            value_name = "tag:NAME"
        )]
        tags: Vec<String>,
        /// Same as --tag.
        #[arg(value_name = "tag:NAME", value_delimiter = ',')]
        more: Vec<String>,
    },
    /// Give a node to a user, and take its tags away.
    #[command(visible_alias = "untag")]
    Assign {
        /// Name, number, address, id:NUMBER or name:NAME.
        node: String,
        /// The user. [default: the one that registered the node]
        #[arg(long)]
        user: Option<String>,
    },
}

/// `preauthkeys`.
#[derive(Debug, Subcommand)]
pub enum Preauthkeys {
    /// Create a key. It is shown only once.
    Create {
        /// The user that owns its nodes.
        #[arg(long)]
        user: Option<String>,
        /// Allow more than one use.
        #[arg(long)]
        reusable: bool,
        /// Delete its nodes when they stay offline.
        #[arg(long)]
        ephemeral: bool,
        /// Its nodes belong to these tags.
        #[arg(
            long = "tag",
            visible_alias = "tags",
            value_delimiter = ',',
            value_name = "tag:NAME"
        )]
        tags: Vec<String>,
        /// How long the key is valid, as 30m, 24h or 7d; "0" means that it does not expire.
        #[arg(long, visible_alias = "expiration", default_value = "1h", value_parser = parse_duration)]
        expiry: Duration,
    },
    /// Show all keys, without their secrets.
    #[command(visible_alias = "ls")]
    List,
    /// Revoke a key. Nodes that used it stay.
    #[command(visible_alias = "revoke")]
    Expire {
        /// The number of the key.
        id: i64,
    },
    /// Delete a key from the list. Nodes that used it stay.
    #[command(visible_alias = "rm")]
    Delete {
        /// The number of the key.
        id: i64,
    },
}

/// `dns`. Every command prints the settings and records that result; changes reach nodes
/// at once.
#[derive(Debug, Subcommand)]
pub enum Dns {
    /// Show the settings and records, with where they come from.
    #[command(visible_alias = "get")]
    Show,
    /// Change settings. Those of the configuration are changed there.
    #[command(arg_required_else_help = true)]
    Set {
        /// Whether names of nodes resolve.
        #[arg(long, value_enum, value_name = "on|off", hide_possible_values = true)]
        magic_dns: Option<Switch>,
        /// Whether the name servers replace those of each host; otherwise they are used
        /// only where a host has none to use.
        #[arg(long, value_enum, value_name = "on|off", hide_possible_values = true)]
        override_local: Option<Switch>,
        /// Name servers for all names: addresses, addresses with a port, or https:// URLs
        /// of servers for DNS over HTTPS; "" for none.
        #[arg(long, value_delimiter = ',', value_name = "SERVER")]
        nameservers: Option<Vec<String>>,
        /// Search domains after the zone of the nodes; "" for none.
        #[arg(long, value_delimiter = ',', value_name = "DOMAIN")]
        search_domains: Option<Vec<String>>,
        /// Give a setting its default again: magic-dns, override-local, nameservers, split
        /// or search-domains.
        #[arg(long, value_delimiter = ',', value_name = "SETTING")]
        unset: Vec<String>,
    },
    /// Set the name servers of one suffix. Without a server, nodes answer for the suffix
    /// themselves, from the extra records.
    Split {
        /// As corp.example.com.
        suffix: String,
        /// The name servers.
        #[arg(value_name = "SERVER", value_delimiter = ',')]
        nameservers: Vec<String>,
        /// Take the suffix away.
        #[arg(long, conflicts_with = "nameservers")]
        remove: bool,
    },
    /// Add and delete extra records: names beside those of the nodes.
    #[command(subcommand, visible_alias = "record")]
    Records(DnsRecords),
}

/// `dns records`.
#[derive(Debug, Subcommand)]
pub enum DnsRecords {
    /// Add a record.
    Add {
        /// Its full name, as grafana.example.com.
        name: String,
        /// A, AAAA or CNAME.
        #[arg(value_name = "TYPE")]
        kind: String,
        /// An address; for CNAME a node, or the name of another record.
        value: String,
    },
    /// Delete the records of a name that were added by commands.
    #[command(visible_alias = "rm")]
    Delete {
        /// Their full name.
        name: String,
        /// Only those of this type.
        #[arg(value_name = "TYPE")]
        kind: Option<String>,
        /// Only those of this value.
        value: Option<String>,
    },
}

/// A setting that is on or off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// On.
    On,
    /// Off.
    Off,
}

impl Switch {
    /// Whether it is on.
    #[must_use]
    pub fn is_on(self) -> bool {
        self == Self::On
    }
}

/// `ssh-checks`.
#[derive(Debug, Subcommand)]
pub enum SshChecks {
    /// Show the sessions that wait for a check.
    #[command(visible_alias = "ls")]
    List,
    /// Approve a session, once the person is confirmed. For the time that the rule
    /// says, further sessions of this person to this machine need no check.
    Approve {
        /// The id at the end of the address that the person was shown.
        id: String,
    },
    /// Refuse the session.
    Deny {
        /// The id at the end of the address that the person was shown.
        id: String,
    },
}

/// `debug`.
#[derive(Debug, Subcommand)]
pub enum Debugging {
    /// Send a c2n request to a connected node and show the response. All clients
    /// support /echo; other paths depend on the program.
    C2n {
        /// Name, number, address, id:NUMBER or name:NAME.
        node: String,
        /// The path of the request, as /echo.
        path: String,
        /// Body to send; makes it a POST.
        #[arg(long, value_name = "TEXT")]
        data: Option<String>,
    },
}

/// `policy`.
#[derive(Debug, Subcommand)]
pub enum Policy {
    /// Show the policy in force, or an earlier one.
    Get {
        /// A number from `policy history`.
        #[arg(long, value_name = "N")]
        version: Option<i64>,
    },
    /// Set the policy. Its tests are run and the difference is shown first; all
    /// nodes are updated at once.
    Set {
        /// HuJSON file; "-" is the input.
        #[arg(required_unless_present_any = ["allow_all", "version"])]
        file: Option<PathBuf>,
        /// Remove the policy: every node may reach every node.
        #[arg(long, conflicts_with_all = ["file", "version"])]
        allow_all: bool,
        /// Restore an earlier policy: a number from `policy history`.
        #[arg(long, value_name = "N", conflicts_with = "file")]
        version: Option<i64>,
        /// Show what would change, and change nothing.
        #[arg(long)]
        dry_run: bool,
        /// Do not ask for confirmation. Without a terminal, no question is asked.
        #[arg(long, short)]
        yes: bool,
    },
    /// Check a policy for errors, without setting it and without a server.
    Check {
        /// HuJSON file; "-" is the input.
        file: PathBuf,
    },
    /// Run the tests of a policy against the current users and nodes.
    Test {
        /// HuJSON file, "-" is the input; the policy in force if left out.
        file: Option<PathBuf>,
    },
    /// Show which access a policy adds and removes. Two files are compared without
    /// a server.
    Diff {
        /// The new policy, or the old one if another follows.
        file: PathBuf,
        /// The new policy.
        new: Option<PathBuf>,
    },
    /// Explain why a machine reaches another, or which change would allow it.
    Why {
        /// A machine, address, user, group, tag or host.
        source: String,
        /// The same with a port: `db:5432`, `10.1.2.3:22`, `[fd7a::1]:22`.
        #[arg(value_name = "DESTINATION:PORT")]
        destination: String,
        /// tcp, udp, icmp or another. [default: tcp]
        protocol: Option<String>,
        /// Use this file instead of the policy in force.
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// Show the policies that were set, with time and author.
    History,
}

/// `-name` is `--name`, as users of Go programs type it.
pub fn normalise(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut only_values = false;
    args.into_iter()
        .enumerate()
        .map(|(n, arg)| {
            if n == 0 || only_values {
                return arg;
            }
            let Some(text) = arg.to_str() else { return arg };
            if text == "--" {
                only_values = true;
            }
            match text.strip_prefix('-') {
                Some(rest)
                    if rest.len() > 1 && rest.starts_with(|c: char| c.is_ascii_alphabetic()) =>
                {
                    format!("--{rest}").into()
                }
                Some(_) | None => arg,
            }
        })
        .collect()
}

/// Both spellings of a list, as a set.
pub fn set(a: Vec<String>, b: Vec<String>) -> BTreeSet<String> {
    a.into_iter()
        .chain(b)
        .map(|text| text.trim().to_owned())
        .filter(|t| !t.is_empty())
        .collect()
}

fn roles() -> impl TypedValueParser<Value = Role> {
    PossibleValuesParser::new(Role::all().map(|(name, _)| name))
        .try_map(|name| name.parse::<Role>())
}

pub(crate) fn parse_listen(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        "expected an address and a port, as 0.0.0.0:8080, or [::]:8080 for both families".to_owned()
    })
}

pub(crate) fn parse_optional(text: &str) -> Result<OptionalListen, String> {
    match text {
        "off" => Ok(OptionalListen::Off),
        _ => text
            .parse()
            .map(OptionalListen::At)
            .map_err(|_| "expected an address and a port, as 0.0.0.0:3478, or \"off\"".to_owned()),
    }
}

pub(crate) fn parse_domain(text: &str) -> Result<String, String> {
    let name = text.trim_matches('.').to_ascii_lowercase();
    if name.split('.').count() < 2 {
        return Err("a zone has at least two parts, as net.example".to_owned());
    }
    for label in name.split('.') {
        warren_control_core::is_label(label).map_err(|error| error.to_string())?;
    }
    Ok(name)
}

/// Reads `90s`, `30m`, `24h`, `7d`, `1h30m`; a bare `0` is a duration of zero.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("\"{text}\" is not a valid duration; write it as 90s, 30m, 24h or 7d");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut total = 0_u64;
    let mut digits = String::new();
    for c in text.chars() {
        if c.is_ascii_digit() {
            digits.push(c);
            continue;
        }
        let unit = match c {
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 86_400,
            'w' => 7 * 86_400,
            'y' => 365 * 86_400,
            _ => return Err(wrong()),
        };
        let number: u64 = std::mem::take(&mut digits).parse().map_err(|_| wrong())?;
        let part = number.checked_mul(unit).ok_or_else(wrong)?;
        total = total.checked_add(part).ok_or_else(wrong)?;
    }
    if digits.is_empty() && !text.is_empty() {
        Ok(Duration::from_secs(total))
    } else {
        Err(wrong())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use clap::CommandFactory as _;
    use proptest::prelude::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(normalise(line.split(' ').map(OsString::from)))
    }

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn command_lines_of_scripts_are_accepted() {
        for line in [
            "warren-control serve",
            "warren-control serve --state-dir D --listen 127.0.0.1:80 --server-url http://x --derp-map F --stun-listen 0.0.0.0:3478",
            "warren-control serve -state-dir D -listen [::]:80 -stun-listen=off",
            "warren-control --state-dir D users create NAME",
            "warren-control users create NAME -state-dir D",
            "warren-control --state-dir D preauthkeys create --user NAME --reusable --ephemeral --tag tag:x --expiry 24h --json",
            "warren-control nodes list --json",
            "warren-control nodes approve abc --user NAME",
            "warren-control nodes register --key abc --user NAME",
            "warren-control nodes expire db --never",
            "warren-control nodes expire db --in 30d",
            "warren-control nodes assign db --user NAME",
            "warren-control nodes untag db",
            "warren-control nodes approve-routes db --routes 10.0.0.0/8,::/0",
            "warren-control policy set --allow-all",
            "warren-control policy set F --dry-run",
            "warren-control policy set --version 3 --yes",
            "warren-control policy get --version 3",
            "warren-control policy diff OLD NEW --json",
            "warren-control policy test",
            "warren-control policy why laptop db:5432 udp",
            "warren-control debug c2n laptop /echo --data hello",
            "warren-control config check --config F --listen [::]:80",
            "warren-control config show --json",
            "warren-control reload",
            "warren-control backup DIR --state-dir S",
            "warren-control restore DIR",
            "warren-control dns set --magic-dns off --nameservers 1.1.1.1,9.9.9.9 --unset split",
            "warren-control dns split corp.example 10.0.0.53",
            "warren-control dns split corp.example --remove",
            "warren-control dns records add db.example CNAME db",
            "warren-control dns records delete db.example",
        ] {
            if let Err(error) = parse(line) {
                panic!("{line}: {error}");
            }
        }
        for line in [
            "warren-control",
            "warren-control nodes",
            "warren-control nodes expire db --never --in 30d",
            "warren-control serve --tls-cert F",
        ] {
            assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
        }
    }

    #[test]
    fn durations_are_read_with_their_units() {
        for (text, seconds) in [
            ("90s", 90),
            ("30m", 1800),
            ("24h", 86_400),
            ("1h30m", 5400),
            ("0", 0),
            ("2w", 1_209_600),
        ] {
            assert_eq!(
                parse_duration(text).unwrap(),
                Duration::from_secs(seconds),
                "{text}"
            );
        }
        for text in [
            "",
            "5",
            "h",
            "-1h",
            "1.5h",
            "99999999999999999999h",
            "9999999999999999w",
        ] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in ".*") {
            let _ = parse_duration(&text);
            let _ = parse_domain(&text);
            let _ = parse_optional(&text);
        }
    }
}

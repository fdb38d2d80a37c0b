//! `warren ssh [USER@]HOST [ARGUMENTS]`: the system's SSH client, with the host keys that
//! the network knows.
//!
//! Names and keys of peers come from other machines. Only those with a plain form get into
//! the file of known hosts and onto the command line of `ssh`.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::args::Given;
use super::ping::is_called;
use super::{Failure, not_running};
use warren_local_api::client::Client;
use warren_local_api::endpoints::GetStatus;
use warren_local_api::types::{PeerStatus, Status};

pub(super) async fn run(given: &Given<'_>, client: &Client) -> Result<(), Failure> {
    let target = given.text("HOST").unwrap_or_default();
    let (user, host) = match target.rsplit_once('@') {
        Some((user, host)) => (Some(user), host),
        None => (None, target),
    };
    if let Some(user) = user {
        check_user(user)?;
    }
    let status = client.call(GetStatus { peers: true }).await?;
    if let Some(text) = not_running(&status) {
        return Err(Failure::Failed(text));
    }
    let peer = find(&status, host).ok_or_else(|| {
        Failure::failed(format_args!(
            "node {host:?} not found; the nodes that exist: warren status"
        ))
    })?;
    let name = reached_as(peer).ok_or_else(|| {
        Failure::failed(format_args!("node {host:?} has no usable name or address"))
    })?;
    if host_keys(peer).next().is_none() {
        return Err(Failure::failed(format_args!(
            "node {host:?} has no SSH server of the network; turn it on there with \
             `warren set --ssh`, or use: ssh {name}"
        )));
    }
    let known_hosts = write_known_hosts(&known_hosts(&status))
        .map_err(|error| Failure::failed(format_args!("cannot write the known hosts: {error}")))?;
    let proxy = proxy_command(&super::socket(given))?;
    let target = match user {
        Some(user) => format!("{user}@{name}"),
        None => name,
    };
    let options = options(&known_hosts, &proxy)?;
    let mut ssh = Command::new("ssh");
    ssh.args(options)
        .arg("--")
        .arg(target)
        .args(given.all("ARGUMENTS"));
    let error = ssh.exec();
    Err(Failure::failed(format_args!(
        "cannot start ssh: {error}; install the OpenSSH client"
    )))
}

/// Refuses names that `ssh` would take for something else.
fn check_user(user: &str) -> Result<(), Failure> {
    let is_plain = |c: char| !c.is_control() && !c.is_whitespace();
    if user.is_empty() || user.starts_with('-') || !user.chars().all(is_plain) {
        return Err(Failure::usage(format_args!(
            "{user:?} is not the name of a user"
        )));
    }
    Ok(())
}

/// The peer with this name or address.
fn find<'a>(status: &'a Status, host: &str) -> Option<&'a PeerStatus> {
    let address = host.trim_matches(['[', ']']).parse().ok();
    let has_address = |peer: &PeerStatus| {
        let mut addresses = peer.tailscale_ips.iter();
        address.is_some_and(|address: std::net::IpAddr| addresses.any(|ip| *ip == address))
    };
    let mut peers = status.peer.values();
    peers.find(|peer| is_called(peer, host) || has_address(peer))
}

/// The name in DNS, or else the first address.
fn reached_as(peer: &PeerStatus) -> Option<String> {
    let address = || peer.tailscale_ips.first().map(|ip| ip.to_string());
    plain_name(peer).or_else(address)
}

fn plain_name(peer: &PeerStatus) -> Option<String> {
    let name = peer.dns_name.trim_end_matches('.');
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let is_name = !name.is_empty() && !name.starts_with('-') && name.bytes().all(is_plain);
    is_name.then(|| name.to_owned())
}

/// The host keys of a peer, each as type and key.
fn host_keys(peer: &PeerStatus) -> impl Iterator<Item = String> {
    peer.ssh_host_keys.iter().filter_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let (kind, key) = (fields.next()?, fields.next()?);
        let is_kind = |byte: u8| byte.is_ascii_alphanumeric() || b"-@.".contains(&byte);
        let is_key = |byte: u8| byte.is_ascii_alphanumeric() || b"+/=".contains(&byte);
        let starts = ["ssh-", "ecdsa-", "sk-"];
        let is_usable = starts.iter().any(|start| kind.starts_with(start))
            && kind.bytes().all(is_kind)
            && key.bytes().all(is_key);
        is_usable.then(|| format!("{kind} {key}"))
    })
}

/// The file of known hosts: a line for each name and address of a peer, and key.
fn known_hosts(status: &Status) -> String {
    let mut text = String::new();
    for peer in status.peer.values() {
        let addresses = peer.tailscale_ips.iter().map(|ip| ip.to_string());
        for name in plain_name(peer).into_iter().chain(addresses) {
            for key in host_keys(peer) {
                // Writing to a string does not fail.
                let _ = writeln!(text, "{name} {key}");
            }
        }
    }
    text
}

/// Writes the file into the user's configuration folder, whole or not at all.
fn write_known_hosts(text: &str) -> io::Result<PathBuf> {
    let folder = std::env::var_os("XDG_CONFIG_HOME").filter(|folder| !folder.is_empty());
    let folder = folder.map(PathBuf::from).or_else(|| {
        let home = std::env::var_os("HOME").filter(|home| !home.is_empty())?;
        Some(Path::new(&home).join(".config"))
    });
    let folder = folder.ok_or_else(|| io::Error::other("HOME is not set"))?;
    let folder = folder.join("warren");
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&folder)?;
    let path = folder.join("ssh_known_hosts");
    let new = folder.join(format!("ssh_known_hosts.{}", std::process::id()));
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)?;
    file.write_all(text.as_bytes())?;
    std::fs::rename(&new, &path)?;
    Ok(path)
}

/// The command that connects through the network: this program, for the shell that `ssh`
/// starts it with. `%` begins a variable of `ssh`.
fn proxy_command(socket: &Path) -> Result<String, Failure> {
    let program = std::env::current_exe().map_err(Failure::failed)?;
    let quoted = |path: &Path| -> Result<String, Failure> {
        let text = path.to_str().filter(|text| !text.contains('\n'));
        let text = text.ok_or_else(|| {
            Failure::failed(format_args!("the path {path:?} cannot be given to ssh"))
        })?;
        Ok(format!(
            "'{}'",
            text.replace('\'', r"'\''").replace('%', "%%")
        ))
    };
    let mut flag = OsString::from("--socket=");
    flag.push(socket);
    Ok(format!(
        "{} {} nc %h %p",
        quoted(&program)?,
        quoted(Path::new(&flag))?
    ))
}

/// The options of `ssh`: the keys that the network knows, and no others.
fn options(known_hosts: &Path, proxy: &str) -> Result<Vec<OsString>, Failure> {
    let file = known_hosts
        .to_str()
        .filter(|text| !text.contains(['"', '\n']));
    let file = file.ok_or_else(|| {
        Failure::failed(format_args!(
            "the path {known_hosts:?} cannot be given to ssh"
        ))
    })?;
    // `%` and `${` begin variables there.
    let file = file.replace('%', "%%");
    let options = [
        format!("UserKnownHostsFile \"{file}\""),
        "GlobalKnownHostsFile none".to_owned(),
        "UpdateHostKeys no".to_owned(),
        "StrictHostKeyChecking yes".to_owned(),
        "CanonicalizeHostname no".to_owned(),
        format!("ProxyCommand {proxy}"),
    ];
    Ok(options
        .into_iter()
        .flat_map(|option| [OsString::from("-o"), option.into()])
        .collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn peer(name: &str, keys: &[&str]) -> PeerStatus {
        PeerStatus {
            dns_name: name.to_owned(),
            tailscale_ips: vec!["100.64.0.2".parse().unwrap()],
            ssh_host_keys: keys.iter().map(|key| (*key).to_owned()).collect(),
            ..PeerStatus::default()
        }
    }

    #[test]
    fn names_that_ssh_takes_for_options_are_refused() {
        for user in [
            "-oProxyCommand=touch /tmp/x",
            "-l",
            "",
            "a b",
            "a\nb",
            "a\u{1b}[1m",
            "a\u{9b}x",
        ] {
            assert!(check_user(user).is_err(), "{user:?}");
        }
        for user in [
            "root",
            "alice",
            "alice@example.com",
            r"DOMAIN\alice",
            "müller",
        ] {
            assert!(check_user(user).is_ok(), "{user:?}");
        }
    }

    #[test]
    fn keys_of_another_form_do_not_get_into_the_known_hosts() {
        let keys = [
            "ssh-ed25519 AAAAgood comment",
            "ssh-ed25519 AAAA\n* ssh-ed25519 AAAAevil",
            "@cert-authority * ssh-ed25519 AAAAevil",
            "* AAAAevil",
            "ssh-ed25519",
            "ssh-ed25519 AAAA!",
            "",
        ];
        let peer = peer("db.example.com.", &keys);
        let found: Vec<String> = host_keys(&peer).collect();
        // Of a line that contains another line, only its own two fields are read.
        assert_eq!(found, ["ssh-ed25519 AAAAgood", "ssh-ed25519 AAAA"]);
        let mut status = Status::default();
        status.peer.insert(Default::default(), peer);
        for line in known_hosts(&status).lines() {
            let fields: Vec<&str> = line.split(' ').collect();
            assert_eq!(fields.len(), 3, "{line}");
            assert!(
                ["db.example.com", "100.64.0.2"].contains(&fields[0]),
                "{line}"
            );
        }
    }

    #[test]
    fn a_name_of_another_form_is_not_used() {
        for name in ["-oProxyCommand=x.", "a b.", "*.", "a,b.", "a\nb.", "."] {
            assert_eq!(
                reached_as(&peer(name, &[])).unwrap(),
                "100.64.0.2",
                "{name:?}"
            );
        }
        assert_eq!(
            reached_as(&peer("db.example.com.", &[])).unwrap(),
            "db.example.com"
        );
    }

    #[test]
    fn paths_are_quoted_for_the_shell() {
        let command = proxy_command(Path::new("/run/it's 100%/x.sock")).unwrap();
        assert!(
            command.ends_with(r"'--socket=/run/it'\''s 100%%/x.sock' nc %h %p"),
            "{command}"
        );
        assert!(proxy_command(Path::new("/run/a\nb")).is_err());
        assert!(options(Path::new("/home/a\"b"), "x").is_err());
    }
}

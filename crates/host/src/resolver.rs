//! Putting the node's name server into use on the machine, and taking it out.
//!
//! Two ways, chosen when [`SystemDns::open`] looks at the machine:
//!
//! - **systemd-resolved**, where it really answers the machine's programs: our
//!   interface gets its own servers and domains over D-Bus. Queries can be
//!   split by domain, and everything goes away with the interface.
//! - **direct**: `/etc/resolv.conf` is ours while we run. The original is kept
//!   beside it and put back at the end; after a crash at the next start. If
//!   another program writes the file meanwhile, what it wrote becomes the new
//!   original and ours is written again, but not endlessly. Where `/etc` takes no
//!   files and `resolv.conf` is a link, the target of the link is written.
//!
//! **Limits.** It answers no query, and it does not forward:
//! [`SystemDns::base_config`] gives the forwarder the servers that the machine had.

mod direct;
mod resolv_conf;
mod resolved;
mod uplinks;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use direct::Direct;
pub use resolv_conf::BaseConfig;
use resolved::Resolved;
use uplinks::Uplinks;
use warren_node_types::TailnetRanges;

/// The name server's IPv4 address, served by every node for itself.
pub const SERVICE_V4: Ipv4Addr = TailnetRanges::DEFAULT.service_v4;

/// The name server's IPv6 address.
pub const SERVICE_V6: Ipv6Addr = TailnetRanges::DEFAULT.service_v6;

/// The resolver settings for the machine. Without name servers, the machine keeps
/// those that it had without us.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OsDnsConfig {
    /// Name servers, best first.
    pub nameservers: Vec<IpAddr>,
    /// Domains that single-label names are tried in, without dots at the ends.
    pub search_domains: Vec<String>,
    /// Domains whose names, and only those, go to `nameservers`. Empty: all
    /// names. Where [`SystemDns::supports_split_dns`] is false this is ignored
    /// and all names come to `nameservers`.
    pub match_domains: Vec<String>,
}

/// Where things are on the machine. The default is the real machine.
#[derive(Clone, Debug)]
pub struct ResolverOptions {
    /// The tunnel's interface.
    pub interface: String,
    /// The file that the C library reads.
    pub resolv_conf: PathBuf,
    /// The order of look-ups of the C library.
    pub nsswitch: PathBuf,
    /// Where systemd-resolved writes the servers it asks.
    pub resolved_uplinks: PathBuf,
    /// Folder for the copy of the original where `resolv_conf` is mounted by
    /// itself (containers, `ip netns exec`), so that its neighbours belong to
    /// another system, and where the target of a link is written. `None`: beside
    /// the written file all the same.
    pub state_dir: Option<PathBuf>,
    /// Whether systemd-resolved may be used.
    pub allow_resolved: bool,
}

impl ResolverOptions {
    /// The real machine, for the tunnel `interface`.
    pub fn new(interface: &str) -> ResolverOptions {
        ResolverOptions {
            interface: interface.to_owned(),
            resolv_conf: "/etc/resolv.conf".into(),
            nsswitch: "/etc/nsswitch.conf".into(),
            resolved_uplinks: "/run/systemd/resolve/resolv.conf".into(),
            state_dir: None,
            allow_resolved: true,
        }
    }
}

/// Why the machine's resolver is not set as wanted.
#[derive(Debug, thiserror::Error)]
pub enum ResolverError {
    /// A file cannot be read or written.
    #[error("cannot {action} {}: {source}", .path.display())]
    File {
        /// The step that failed.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// systemd-resolved did not do as asked.
    #[error("systemd-resolved refused {method}: {reason}; see `systemctl status systemd-resolved`")]
    Resolved {
        /// The D-Bus method.
        method: &'static str,
        /// Its answer, or that there was none in time.
        reason: String,
    },
    /// The tunnel's interface is gone.
    #[error("interface {name:?} not found; its name servers cannot be set: {source}")]
    NoInterface {
        /// The interface.
        name: String,
        /// The error of the system.
        source: io::Error,
    },
}

/// The way in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// systemd-resolved over D-Bus.
    Resolved,
    /// `/etc/resolv.conf` itself.
    Direct,
}

impl std::fmt::Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Mode::Resolved => "systemd-resolved",
            Mode::Direct => "direct",
        })
    }
}

enum Backend {
    Resolved(Resolved),
    Direct(Direct),
}

/// The machine's resolver settings. Dropping it restores a file that is ours;
/// [`SystemDns::revert`] does so too and returns errors.
pub struct SystemDns {
    backend: Backend,
    uplinks: Uplinks,
}

impl SystemDns {
    /// Looks at the machine, restores what a killed predecessor left, and
    /// chooses the way. Changes nothing else. A file that cannot be restored counts
    /// as taken. Must be called inside a tokio runtime.
    pub async fn open(options: ResolverOptions) -> SystemDns {
        // Before reading the owner of the file: our file would hide it.
        if let Err(error) = recover(&options) {
            tracing::warn!(%error, "resolv.conf of an earlier run is not restored");
        }
        let backend = match Self::try_resolved(&options).await {
            Some(resolved) => Backend::Resolved(resolved),
            None => Backend::Direct(Direct::new(&options)),
        };
        let uplinks = Uplinks::new(options.resolved_uplinks.clone());
        SystemDns { backend, uplinks }
    }

    async fn try_resolved(options: &ResolverOptions) -> Option<Resolved> {
        let content = read_or_empty(&options.resolv_conf);
        let nsswitch = read_or_empty(&options.nsswitch);
        if !options.allow_resolved
            || !resolv_conf::is_served_by_resolved(&content, &nsswitch)
            || !is_machines_namespace()
        {
            return None;
        }
        match Resolved::connect(&options.interface).await {
            Ok(resolved) => Some(resolved),
            Err(error) => {
                tracing::info!(%error, "systemd-resolved owns resolv.conf but does not answer");
                None
            }
        }
    }

    /// The way in use.
    pub fn mode(&self) -> Mode {
        match self.backend {
            Backend::Resolved(_) => Mode::Resolved,
            Backend::Direct(_) => Mode::Direct,
        }
    }

    /// Whether [`OsDnsConfig::match_domains`] is honoured.
    pub fn supports_split_dns(&self) -> bool {
        self.mode() == Mode::Resolved
    }

    /// The servers and domains that the machine has without us, as of now; our
    /// own service addresses are left out, because forwarding to them would be
    /// a loop.
    pub fn base_config(&self) -> BaseConfig {
        match &self.backend {
            Backend::Resolved(_) => self.uplinks.base_config(),
            Backend::Direct(direct) => direct.base_config(),
        }
    }

    /// Waits until [`SystemDns::base_config`] is something else than it was, because
    /// another program wrote resolv.conf, or because the machine is in another network.
    /// Can be dropped and called again.
    pub async fn base_changed(&self) {
        match &self.backend {
            Backend::Resolved(_) => self.uplinks.changed().await,
            Backend::Direct(direct) => direct.base_changed().await,
        }
    }

    /// Makes the machine use `config`, and keeps it so until the next call,
    /// [`SystemDns::revert`] or drop.
    pub async fn apply(&mut self, config: &OsDnsConfig) -> Result<(), ResolverError> {
        if config.nameservers.is_empty() {
            return self.revert().await;
        }
        match &mut self.backend {
            Backend::Resolved(resolved) => resolved.apply(config).await,
            Backend::Direct(direct) => direct.apply(config),
        }
    }

    /// Puts back what the machine had.
    pub async fn revert(&mut self) -> Result<(), ResolverError> {
        match &mut self.backend {
            Backend::Resolved(resolved) => resolved.revert().await,
            Backend::Direct(direct) => direct.revert(),
        }
    }

    /// Whether another program keeps overwriting the file faster than we are
    /// willing to fight; names may then not resolve. Worth a health warning.
    pub fn is_overwritten(&self) -> bool {
        match &self.backend {
            Backend::Resolved(_) => false,
            Backend::Direct(direct) => direct.is_overwritten(),
        }
    }
}

/// Restores what a killed predecessor left. Does nothing where it left nothing.
///
/// # Errors
/// [`ResolverError::File`] when the file is ours and cannot be given back.
pub fn recover(options: &ResolverOptions) -> Result<(), ResolverError> {
    direct::recover(options)
}

impl std::fmt::Debug for SystemDns {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SystemDns")
            .field("mode", &self.mode())
            .finish_non_exhaustive()
    }
}

fn read_or_empty(path: &Path) -> String {
    std::fs::read(path)
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default()
}

/// Whether we share the network with the first process. The D-Bus socket is
/// seen from every network namespace, but systemd-resolved can only set
/// interfaces of its own: the same number there is another interface.
fn is_machines_namespace() -> bool {
    let namespace = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/net"));
    match (namespace("thread-self"), namespace("1")) {
        (Ok(ours), Ok(first)) => ours == first,
        // Not permitted to look: an ordinary user on the real machine.
        _ => true,
    }
}

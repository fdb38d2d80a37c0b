//! Forwarding between the tunnel and the networks of this machine, as a subnet
//! router or exit node does: what the packet filter of the system has to know.
//!
//! One table of our own, `inet warren`, for both families:
//!
//! | chain | what it does |
//! |---|---|
//! | `input` | drops IPv4 that claims the address of a node but did not come from the tunnel |
//! | `forward` | marks what comes from the tunnel with [`FORWARD_MARK`] and lets it through; drops what claims the address of a node and would go into it; with stateful filtering also what belongs to no connection from there |
//! | `postrouting` | gives what is marked the address of this machine (unless that is switched off), so that the LAN needs no route back |
//!
//! Marks do what the reference's do. **Addresses of nodes** are those of the tailnet's
//! range (usually 100.64.0.0/10) that this machine routes into the tunnel, which the
//! rules ask the routing tables (nft's `fib`). The rest of the range belongs to others:
//! carriers, clouds and LANs use it for name servers, mirrors and machines. While all
//! destinations are routed into the tunnel, only packets of no known connection are
//! dropped.
//!
//! **Life.** [`Firewall::open`] removes the table of a predecessor.
//! [`Firewall::apply`] replaces the table as a whole, in one step. The table is
//! bound to our socket where the kernel can do that (Linux 5.12): it goes with
//! the process, even with one that is killed, and stays when others reload
//! their rules.
//!
//! **Limits.** It never changes tables of others: a packet that one of them drops is
//! dropped ([`Firewall::in_the_way`] lists such tables). It does not switch
//! forwarding on, which is a decision about all interfaces of the machine (and makes
//! it ignore router advertisements): [`not_forwarding`] reports when it is off.

mod nftables;
mod others;

use std::io;

use ipnet::{IpNet, Ipv4Net};

use crate::{MARK_MASK, sysctl};
use nftables::{Batch, Connection, Hook, TABLE_OWNED, Verdict};

/// Mark of packets that came from the tunnel and go on to another network.
pub const FORWARD_MARK: u32 = 0x40000;

const TABLE: &str = "warren";
const LOOPBACK: &str = "lo";

/// The settings of the system's packet filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirewallConfig {
    /// The tunnel's interface.
    pub interface: String,
    /// The range of the tailnet's IPv4 addresses. Those of them that are routed into
    /// the tunnel come from there only.
    pub tailnet: Ipv4Net,
    /// All destinations are routed into the tunnel (an exit node is used). The routing
    /// tables then do not distinguish nodes from others in the range, so packets that answer
    /// this machine are let through. The kernel follows all connections for that.
    pub routes_everything: bool,
    /// Gives packets from the tunnel our address when they leave to a LAN.
    pub snat: bool,
    /// Lets from other networks into the tunnel only what belongs to a
    /// connection from there.
    pub stateful: bool,
}

/// Why packets are not forwarded as wanted.
#[derive(Debug, thiserror::Error)]
pub enum FirewallError {
    /// The rules are set, without those that need the routing tables.
    #[error("this kernel cannot ask the routing tables in the packet filter (module nft_fib_inet)")]
    NoRouteLookup,
    /// The kernel was built without it, or the module is not there.
    #[error(
        "this kernel has no nftables (module nf_tables), which is needed to {action}: {source}"
    )]
    NoNftables {
        /// The step that failed.
        action: &'static str,
        /// The error of the system.
        source: io::Error,
    },
    /// The process may not change the packet filter, or another one owns our
    /// table.
    #[error(
        "not permitted to {action}: run as root or with CAP_NET_ADMIN, and stop any other warren \
         in this network namespace"
    )]
    NotPermitted {
        /// The step that failed.
        action: &'static str,
    },
    /// Anything else.
    #[error("cannot {action}: {source}")]
    Io {
        /// The step that failed.
        action: &'static str,
        /// The error of the system.
        source: io::Error,
    },
}

/// Our table in the system's packet filter.
#[derive(Debug)]
pub struct Firewall {
    connection: Connection,
    installed: Option<FirewallConfig>,
    /// Whether the kernel looks up routes in rules, as far as is known.
    has_route_lookup: bool,
}

impl Firewall {
    /// Connects to the kernel and removes the table of a killed predecessor.
    ///
    /// # Errors
    /// [`FirewallError`]; nothing was changed then.
    pub fn open() -> Result<Firewall, FirewallError> {
        let action = "open the packet filter";
        let connection = Connection::open().map_err(fail(action))?;
        let mut batch = Batch::new();
        batch.delete_table(TABLE);
        match connection.commit(batch) {
            Err(error) if error.raw_os_error() != Some(libc::ENOENT) => Err(fail(action)(error)),
            _ => Ok(Firewall {
                connection,
                installed: None,
                has_route_lookup: true,
            }),
        }
    }

    /// Makes our table as `config` says, or removes it; returns whether
    /// anything changed.
    ///
    /// # Errors
    /// [`FirewallError::NoRouteLookup`]: all is as wanted but for the rules against
    /// forged addresses. Others: all is as before.
    pub fn apply(&mut self, config: Option<&FirewallConfig>) -> Result<bool, FirewallError> {
        // Without route lookup it is tried again: its module may have been loaded since.
        let is_partial = config.is_some() && !self.has_route_lookup;
        let has_changed = self.installed.as_ref() != config || is_partial;
        if has_changed {
            self.replace(config)?;
            self.installed = config.cloned();
        }
        match config {
            Some(_) if !self.has_route_lookup => Err(FirewallError::NoRouteLookup),
            _ => Ok(has_changed),
        }
    }

    fn replace(&mut self, config: Option<&FirewallConfig>) -> Result<(), FirewallError> {
        let refused = |error: &io::Error| {
            let code = error.raw_os_error();
            // An expression whose module is missing is "not found".
            matches!(code, Some(libc::EOPNOTSUPP | libc::EINVAL | libc::ENOENT))
        };
        // Older kernels bind no table to a process (the next start removes what is
        // left), and small ones do not look up routes.
        let mut last = Ok(());
        for (owned, has_route_lookup) in
            [(true, true), (false, true), (true, false), (false, false)]
        {
            let mut batch = Batch::new();
            if self.installed.is_some() {
                batch.delete_table(TABLE);
            }
            if let Some(config) = config {
                write(&mut batch, config, owned, has_route_lookup);
            }
            last = self.connection.commit(batch);
            match &last {
                Err(error) if refused(error) => {}
                Err(_) => break,
                Ok(()) => {
                    self.has_route_lookup = has_route_lookup;
                    break;
                }
            }
        }
        last.map_err(fail("set up forwarding in the packet filter"))
    }

    /// Messages for the user about chains of other programs that drop forwarded
    /// packets by default: one line per chain.
    pub fn in_the_way(&self, interface: &str) -> Vec<String> {
        let chains = others::dropping(&self.connection).unwrap_or_else(|error| {
            tracing::debug!(%error, "cannot list the chains of the packet filter");
            Vec::new()
        });
        let line = |chain: others::Chain| {
            format!(
                "another firewall drops forwarded packets by default (chain {chain}), those of \
                 offered routes too unless it has rules for them: \
                 nft insert rule {chain} iifname {interface} accept, and the same with oifname"
            )
        };
        chains.into_iter().map(line).collect()
    }

    /// Removes our table.
    ///
    /// # Errors
    /// [`FirewallError`]; the table is still there then.
    pub fn cleanup(&mut self) -> Result<(), FirewallError> {
        self.apply(None).map(drop)
    }
}

/// The whole table.
fn write(batch: &mut Batch, config: &FirewallConfig, owned: bool, has_route_lookup: bool) {
    let tunnel = config.interface.as_str();
    let hook = |number, priority, kind| Hook {
        number,
        priority,
        kind,
    };
    let tailnet = config.tailnet;
    batch.new_table(TABLE, if owned { TABLE_OWNED } else { 0 });

    if has_route_lookup {
        batch.new_chain(TABLE, "input", hook(1, 0, "filter"));
        batch.new_rule(TABLE, "input", |rule| {
            rule.input(false, tunnel)
                .input(false, LOOPBACK)
                .source_in(tailnet)
                .source_routed_to(tunnel);
            if config.routes_everything {
                rule.of_no_connection();
            }
            rule.verdict(Verdict::Drop);
        });
    }

    batch.new_chain(TABLE, "forward", hook(2, 0, "filter"));
    batch.new_rule(TABLE, "forward", |rule| {
        rule.input(true, tunnel).set_mark(FORWARD_MARK, MARK_MASK);
    });
    batch.new_rule(TABLE, "forward", |rule| {
        rule.marked(FORWARD_MARK, MARK_MASK)
            .verdict(Verdict::Accept);
    });
    if has_route_lookup {
        batch.new_rule(TABLE, "forward", |rule| {
            rule.output(tunnel)
                .source_in(tailnet)
                .source_routed_to(tunnel);
            if config.routes_everything {
                rule.of_no_connection();
            }
            rule.verdict(Verdict::Drop);
        });
    }
    if config.stateful {
        batch.new_rule(TABLE, "forward", |rule| {
            rule.output(tunnel)
                .of_no_connection()
                .verdict(Verdict::Drop);
        });
    }

    if config.snat {
        batch.new_chain(TABLE, "postrouting", hook(4, 100, "nat"));
        batch.new_rule(TABLE, "postrouting", |rule| {
            rule.marked(FORWARD_MARK, MARK_MASK).masquerade();
        });
    }
}

/// Messages for the user when this machine offers `routes` but does not forward: one
/// line per family that is needed and off.
pub fn not_forwarding<'a>(routes: impl IntoIterator<Item = &'a IpNet>) -> Vec<String> {
    let (v4, v6): (Vec<&IpNet>, Vec<&IpNet>) =
        routes.into_iter().partition(|route| route.addr().is_ipv4());
    let families = [
        ("IPv4", v4.is_empty(), "net/ipv4/ip_forward"),
        ("IPv6", v6.is_empty(), "net/ipv6/conf/all/forwarding"),
    ];
    let off = |setting: &str| sysctl::read(setting).is_ok_and(|value| value == "0");
    families
        .into_iter()
        .filter(|(_, unneeded, setting)| !unneeded && off(setting))
        .map(|(family, _, setting)| {
            let name = setting.replace('/', ".");
            format!(
                "{family} forwarding is off on this machine, so the {family} routes it offers lead \
                 nowhere: sysctl -w {name}=1 (and in /etc/sysctl.d to keep it)"
            )
        })
        .collect()
}

fn fail(action: &'static str) -> impl FnOnce(io::Error) -> FirewallError {
    move |source| match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => FirewallError::NotPermitted { action },
        Some(
            libc::EPROTONOSUPPORT
            | libc::EAFNOSUPPORT
            | libc::EOPNOTSUPP
            | libc::ENOENT
            | libc::EINVAL,
        ) => FirewallError::NoNftables { action, source },
        _ => FirewallError::Io { action, source },
    }
}

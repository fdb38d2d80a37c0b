//! The operating system, as a node needs it.
//!
//! Everything that touches the machine is in this crate: network devices ([`device`])
//! such as the TUN device ([`tun`]), the sockets that carry WireGuard, disco and STUN ([`udp`]), the
//! two primitives of the data-plane threads ([`wake`], [`poll`]), routes and
//! policy rules ([`router`]), forwarding in the packet filter ([`firewall`]), the
//! resolver settings ([`resolver`]), changes of the network under us ([`link`]),
//! and three small things that files and sockets need ([`atomic_file`],
//! [`lock`], [`peer_creds`]).
//!
//! **Limits.** It decides nothing: the caller chooses routes, name servers, and the
//! peer that gets a packet. It never touches
//! routes, rules, addresses or files that are not its own, and it puts back
//! what it changed: at exit, and after a crash at the next start.
//!
//! The interfaces speak of addresses, prefixes and file descriptors only, so
//! that another system can stand behind the same names. Linux is the one built.

#[cfg(not(target_os = "linux"))]
compile_error!("warren-host has a Linux back end only");

pub mod atomic_file;
pub mod device;
pub mod firewall;
pub mod link;
pub mod lock;
mod netlink;
pub mod peer_creds;
pub mod poll;
pub mod resolver;
pub mod router;
mod sysctl;
pub mod tun;
pub mod udp;
pub mod wake;

/// Firewall mark of the node's own sockets: policy routing sends what carries
/// it around the tunnel.
pub const BYPASS_MARK: u32 = 0x80000;

/// The bits of a mark that belong to us; other programs own the rest.
pub const MARK_MASK: u32 = 0xff0000;

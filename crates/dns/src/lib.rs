//! Name resolution of the tailnet: our own answers, questions to upstreams, and
//! the settings of the operating system's resolver.
//!
//! A question for `100.100.100.100` takes this way:
//!
//! ```text
//!  query ── Resolver::handle_query ──┬── Answer   a name of the tailnet, or an error
//!                                    ├── Forward ── Forwarder ── upstream ── answer
//!                                    └── Drop     not a question at all
//! ```
//!
//! - [`config`]: the netmap's DNS configuration, worked out once: a table of
//!   hosts, the domains that are ours, and upstreams by suffix;
//! - [`resolver`]: decides about one question, without state;
//! - [`forwarder`]: questions under way to upstreams: retries, timeouts, checks;
//! - [`os`]: the settings of the operating system's resolver;
//! - [`lookup`]: the addresses of one name, for a program that asks by itself;
//! - [`message`]: the few bytes of a DNS message that are read and changed in
//!   place, because a forwarded question keeps every byte but its id.
//!
//! There is no socket and no clock here, and nothing is ever cached: upstreams
//! do that, and local answers live for five seconds.

#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

pub mod config;
pub mod forwarder;
pub mod lookup;
pub mod message;
pub mod os;
pub mod resolver;

pub use config::{Options, ResolverConfig};
pub use forwarder::{Client, ClientId, ExchangeId, Forwarder, ForwarderCounters, Output};
pub use os::{BaseOs, OsDnsDecision, compile};
pub use resolver::{Decision, Resolver, Transport};

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use warren_node_types::TailnetRanges;

/// Where the tailnet's resolver is, IPv4.
pub const SERVICE_V4: Ipv4Addr = TailnetRanges::DEFAULT.service_v4;

/// Where the tailnet's resolver is, IPv6.
pub const SERVICE_V6: Ipv6Addr = TailnetRanges::DEFAULT.service_v6;

/// The name of both service addresses.
pub const SERVICE_NAME: &str = "magicdns.localhost-tailscale-daemon.";

/// Longest question accepted over TCP, in bytes.
pub const MAX_TCP_QUERY: usize = 4096;

/// Whether this is one of the two service addresses.
pub fn is_service(ip: IpAddr) -> bool {
    TailnetRanges::DEFAULT.is_service(ip)
}

//! Reports about port mappings at the router.

use std::net::SocketAddr;
use std::time::Duration;

use crate::Family;

/// A report of the port mapper to the path engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortMapReport {
    /// A router forwards datagrams to `external` to our socket of the same
    /// family. This replaces the last mapping of the family.
    Mapped {
        /// The address at the router.
        external: SocketAddr,
        /// The time from now until the router stops forwarding, unless the
        /// mapping is renewed and reported again.
        lifetime: Duration,
    },
    /// The router does not forward to our socket of this family any more.
    Unmapped(Family),
    /// The result of looking for a router that can map ports.
    Protocols(MappingProtocols),
}

/// The port mapping protocols that a router speaks; `None` where it is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MappingProtocols {
    /// UPnP IGD.
    pub upnp: Option<bool>,
    /// NAT-PMP (RFC 6886).
    pub nat_pmp: Option<bool>,
    /// PCP (RFC 6887).
    pub pcp: Option<bool>,
}

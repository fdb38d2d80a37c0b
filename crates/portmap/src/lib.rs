//! A port mapping at the router of the local network, by PCP (RFC 6887) or
//! NAT-PMP (RFC 6886).
//!
//! A [`PortMapper`] looks for a protocol that the router speaks, asks for a
//! mapping of one UDP port, and renews it at half of its lifetime. There is one
//! mapper for each family of addresses; NAT-PMP exists for IPv4 only.
//!
//! # The life of a mapping
//! 1. A router and a port are known: PCP and NAT-PMP are probed, a few times with
//!    growing gaps. Without an answer the next search begins after ten minutes.
//! 2. The first protocol that answers is asked for a mapping. A refusal is
//!    respected for a while.
//! 3. A mapping is reported, and again after each renewal. A renewal that is not
//!    answered is tried again until the mapping expires.
//! 4. Another port, or none: the mapping is deleted at the router. Another router:
//!    it is forgotten.
//!
//! # How to drive it
//! The mapper does no IO and has no clock: every input takes the time, outputs are
//! polled, and there is one deadline. It believes datagrams only from the router
//! that it asked, and PCP responses only with its own nonce. Whatever a router
//! answers, the rate of requests stays bounded.
//!
//! It does not receive the announcements of routers that lost their mappings, as
//! they are sent to a multicast group; after a restart of the router the mapping
//! comes back with the next renewal.

#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

mod mapper;

pub use mapper::{Output, PortMapper, Router};
pub use warren_node_types::{MappingProtocols, PortMapReport};

//! A port mapping at the router of the local network, by PCP (RFC 6887), NAT-PMP
//! (RFC 6886) or UPnP IGD 1 and 2.
//!
//! A [`PortMapper`] looks for a protocol that the router speaks, asks for a
//! mapping of one UDP port, and renews it at half of its lifetime. There is one
//! mapper for each family of addresses; NAT-PMP and UPnP are used for IPv4 only.
//!
//! # The life of a mapping
//! 1. A router and a port are known: all protocols are probed, a few times with
//!    growing gaps. Without an answer the next search begins after ten minutes, and
//!    later ones after up to 16 times as long.
//! 2. The first protocol that answers is asked for a mapping; UPnP, which takes a few
//!    exchanges by HTTP, where no other has answered after 0.75 s, or where the other
//!    refuses. A refusal is respected for a while.
//! 3. A mapping is reported, and again after each renewal. A renewal that is not
//!    answered is tried again until the mapping expires.
//! 4. Another port, or none: the mapping is deleted at the router. Another router:
//!    it is forgotten.
//! 5. A record of it is kept on disk ([`Output::Keep`]), so that the next process
//!    goes on with the mapping of one that was killed, or deletes it.
//!
//! # How to drive it
//! The mapper does no IO and has no clock: every input takes the time, outputs are
//! polled, and there is one deadline. It believes datagrams only from the router
//! that it asked, and PCP responses only with its own nonce; it connects to no other
//! machine, whatever a description says. Whatever a router
//! answers, the rate of requests stays bounded.
//!
//! It does not receive the announcements of routers that lost their mappings, as
//! they are sent to a multicast group; after a restart of the router the mapping
//! comes back with the next renewal.

#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

mod kept;
mod mapper;
mod removal;
mod upnp;

pub use kept::KeptMapping;
pub use mapper::{EXCHANGE_TIMEOUT, Output, PortMapper, Router};
pub use warren_node_types::{MappingProtocols, PortMapReport};
pub use warren_wire::upnp::{Response, Unfinished};

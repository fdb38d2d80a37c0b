//! Types that several parts of a node share.
//!
//! The cores of a node do not depend on each other: path discovery does not
//! know the tunnel, and the tunnel does not know the packet filter. They still
//! use the same things. This crate defines those things once, so that no
//! conversions are needed where the cores meet:
//!
//! - [`Prefs`] and [`MaskedPrefs`]: what the user wants, and changes to it.
//! - [`PeerIndex`]: the number of a peer within one node.
//! - [`Family`]: IPv4 or IPv6.
//! - [`PathAddr`]: one way to a peer. A new kind of path is a new variant
//!   here, and the compiler names every place that must handle it.
//! - [`Destination`]: the paths that packets for a peer take now.
//! - [`Source`]: the path that a datagram arrived on, with the sender's key
//!   where a relay states it.
//! - [`SearchSocket`] and [`SocketOrder`]: the sockets of a search for a path through a
//!   NAT that maps to random ports.
//! - [`PortMapReport`]: the port mappings that a router holds for the node.
//! - [`TailnetRanges`]: the address ranges that belong to the tailnet.
//!
//! The types hold data only. They carry no policy, do no IO and read no clock.

#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

mod family;
mod path;
mod peer;
mod port_map;
mod prefs;
mod ranges;
mod search_sockets;

pub use family::Family;
pub use path::{Destination, PathAddr, Source};
pub use peer::PeerIndex;
pub use port_map::{MappingProtocols, PortMapReport};
pub use prefs::{
    AppConnector, AutoUpdate, MaskedPrefs, NetfilterMode, Prefs, check_hostname, exit_routes,
};
pub use ranges::TailnetRanges;
pub use search_sockets::{SearchSocket, SocketOrder};
pub use warren_control_types::RegionId;
pub use warren_wire::geneve::Vni;

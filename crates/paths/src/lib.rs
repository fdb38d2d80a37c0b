//! The path to each peer.
//!
//! A packet for a peer can always take the peer's relay. This crate offers that
//! path at once, and meanwhile looks for a direct one: it learns our own
//! addresses from STUN servers, sends them to the peer through the relay
//! (CallMeMaybe), and pings every address that the peer may have, while the peer
//! does the same. The first ping that is answered gives the direct path; packets
//! move over to it then, and back to the relay when it dies.
//!
//! Where no direct path is found within a moment, nodes of the tailnet that forward for
//! others (peer relays) are asked, and their path is used until there is a direct one. The
//! order is always: direct, peer relay, DERP.
//!
//! # The life of a pair
//! 1. The netmap names a peer. In a small tailnet, or when the first packet
//!    for it is sent, the search begins: a CallMeMaybe, and pings to all
//!    candidates, in rounds that come close together at first.
//! 2. A ping from the peer arrives, perhaps from an unknown address. It is
//!    answered, and that address is pinged at once: the NAT lets it through now.
//! 3. A pong confirms a candidate: [`Event::Destination`] with
//!    a [`PathAddr::Udp`].
//! 4. While packets flow the path is checked. Silence brings quick pings, then
//!    [`Destination::Both`], then the relay alone, and the search begins
//!    again.
//! 5. 45 s after the last packet nothing is sent any more. The path is kept,
//!    and used together with the relay when packets flow again, until a pong
//!    confirms it.
//!
//! # How to drive it
//! [`Paths`] does no IO and has no clock: every input takes the time, events
//! are polled, and there is one deadline. The same inputs and random bytes give
//! the same outputs. It never carries packets of users, opens sockets, or trusts
//! an address without a pong from it.

#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

mod api;
mod candidates;
mod choice;
mod core;
mod disco_keys;
mod endpoints;
mod netcheck;
mod path_in_use;
mod paths;
mod peer;
mod pings;
mod port_attempts;
mod port_forecast;
mod port_search;
mod pre_netmap;
mod probe_schedule;
mod relay_client;
mod relays;

pub use api::{
    Counters, Event, LocalAddresses, Measurements, PathsConfig, PeerInfo, PeerPath, PeerRelayRole,
    PingError, Reason,
};
pub use paths::Paths;
pub use port_forecast::PortPattern;
pub use port_search::PortSearchOutcome;
pub use warren_node_types::{
    Destination, Family, MappingProtocols, PathAddr, PeerIndex, PortMapReport, SearchSocket,
    SocketOrder,
};

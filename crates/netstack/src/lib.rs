//! TCP, UDP and ICMP echo inside this process, for a node without a network interface
//! and for services of the node itself.
//!
//! [`Netstack`] is one state without IO. It takes IP packets ([`Netstack::receive`]),
//! the requests of the application and the time; it gives IP packets
//! ([`Netstack::poll_transmit`]), [`Event`]s and a deadline.
//!
//! ```text
//!   packets ──▶ tuple ─┬─ open connection ── Connection (one smoltcp socket each)
//!                      ├─ SYN that waits ─── HalfOpen: accept() or refuse()
//!                      ├─ closed lately ──── TimeWait: the last ACK again
//!                      └─ none ───────────── a reset
//!             datagrams ── Flow: a queue per pair of addresses
//!             echo requests ── answered, or an event for other destinations
//! ```
//!
//! **Life of an incoming connection.** A SYN is kept as it came, in some 100 bytes,
//! and reported ([`Event::Incoming`]). The application first does what can fail, such
//! as connecting to the program that serves the port, and then calls
//! [`accept`](Netstack::accept) or [`refuse`](Netstack::refuse). Buffers exist from
//! then on. A connection ends for the application with [`release`](Netstack::release),
//! for the network with the last acknowledgment; a peer that does not send it is
//! waited for until a deadline of [`Limits`].
//!
//! **Each connection is a stack of its own.** TCP itself is smoltcp's, hidden in
//! `connection.rs`. Each connection has its own interface with a single socket, so the
//! cost of a packet does not depend on the number of connections, and sequence numbers
//! begin at random. Segments go out as superpackets of up to 64 KiB with the length of
//! a segment ([`Transmit::segment_len`]), one per connection in turn.
//!
//! **Limits of smoltcp 0.14**, which this crate inherits: it sends selective
//! acknowledgments but makes no use of those that it receives (`acks.rs` makes some), has
//! no timestamps, no discovery of the path MTU, 32 holes in the receive buffer, and a
//! retransmission timeout of at least one second. Buffers do not grow, so a connection gets its share of
//! memory when it opens ([`Limits::pool_bytes`]). Packets with IPv6 extension headers and
//! fragments are dropped and counted.
//!
//! **Never here:** sockets, the clock, decisions about who may connect (the packet
//! filter decided before), names.

#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

mod acks;
mod connection;
mod counters;
mod flows;
mod half_open;
mod limits;
mod link;
mod mss;
mod sent;
mod stack;
mod time_wait;

use std::net::SocketAddr;

pub use counters::Counters;
pub use limits::Limits;
pub use stack::Netstack;

/// The number of a TCP connection. Numbers are not used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(u64);

/// The number of a UDP flow. Numbers are not used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowId(u64);

/// Both ends of a connection or flow, as seen from this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tuple {
    /// The address and port on this side.
    pub local: SocketAddr,
    /// The address and port of the other side.
    pub remote: SocketAddr,
}

/// The state of the transport checksum of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checksum {
    /// Someone has verified it already; the field itself may be unfinished.
    Verified,
    /// It is complete and has to be verified.
    Complete,
}

/// Something that happened, for the application.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A connection to `tuple.local` waits for [`Netstack::accept`] or
    /// [`Netstack::refuse`].
    Incoming {
        /// Its number.
        id: ConnectionId,
        /// Its ends.
        tuple: Tuple,
    },
    /// A connection can be read, written, or has ended.
    Connection {
        /// Its number.
        id: ConnectionId,
        /// There is something to read, or the end.
        readable: bool,
        /// There is space to write, or the end.
        writable: bool,
    },
    /// The first datagram of a new flow waits to be read.
    IncomingFlow {
        /// Its number.
        id: FlowId,
        /// Its ends.
        tuple: Tuple,
    },
    /// A datagram of a flow waits to be read, or the flow has ended.
    Flow(FlowId),
    /// An echo request to an address that is not one of ours. The application may
    /// answer it with [`Netstack::answer_echo`].
    Echo(Vec<u8>),
}

/// An IP packet to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transmit {
    /// As many zero bytes as [`Netstack::new`] was given as headroom, then the packet.
    pub frame: Vec<u8>,
    /// Where it is a TCP superpacket, the payload bytes of each segment; its
    /// checksums are not complete then. `None`: an ordinary packet with complete
    /// checksums.
    pub segment_len: Option<u16>,
}

/// The reason why a connection cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ConnectionError {
    /// The other side has refused it.
    #[error("connection refused")]
    Refused,
    /// The other side has ended it early.
    #[error("connection reset by the other side")]
    Reset,
    /// The other side did not answer in time.
    #[error("the other side does not answer")]
    TimedOut,
    /// It was closed for writing, or it does not exist any more.
    #[error("connection is closed")]
    Closed,
}

/// The reason why no connection or flow can be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// As many as the [`Limits`] allow are open.
    #[error("too many connections are open; close some")]
    TooMany,
    /// No port is free on this side, or the given one is in use.
    #[error("the local port is in use; choose another")]
    PortInUse,
    /// The addresses cannot be the ends of a connection.
    #[error("these addresses cannot be the ends of a connection")]
    Unusable,
}

//! The sockets of a port search.
//!
//! A node behind a NAT that maps each destination to a random port sends to a peer from
//! many sockets at once, so that many ports of the NAT lead to it. When a datagram of the
//! peer arrives at one of them, that socket is kept for this peer; the others are closed.

use std::net::SocketAddr;

/// A socket of a port search.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SearchSocket {
    /// The number of the search within this process.
    pub search: u32,
    /// The number of the socket within the search, from 0.
    pub number: u16,
}

/// An order about the sockets of a port search. Orders that name a socket that could not
/// be opened have no effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SocketOrder {
    /// Open so many sockets for IPv4, each at a port of the system's choice. The sockets of
    /// an earlier search that are still open are closed.
    Open {
        /// The search that they belong to.
        search: u32,
        /// Their number.
        count: u16,
    },
    /// Send a datagram from one of them.
    Send {
        /// The socket.
        socket: SearchSocket,
        /// The receiver.
        to: SocketAddr,
        /// The bytes.
        packet: Vec<u8>,
    },
    /// From now on everything for `remote` leaves through this socket, and what arrives at
    /// it is treated like what arrives at the first socket.
    Keep {
        /// The socket.
        socket: SearchSocket,
        /// The peer's address.
        remote: SocketAddr,
    },
    /// Close the sockets of this search, but for those that are kept.
    Close {
        /// The search.
        search: u32,
    },
    /// Close the socket that is kept for `remote`.
    Release {
        /// The peer's address.
        remote: SocketAddr,
    },
    /// Close all of them, also those that are kept.
    CloseAll,
}

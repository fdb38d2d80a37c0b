//! Packets that end in this process instead of the host or a peer.
//!
//! The table names services by address, protocol and port. It is asked in both
//! directions: for packets of the host, before a peer is looked up, and for packets
//! of peers, after cryptokey routing and the filter. A service says which of the
//! two it serves. Where no service is registered for a direction, a packet costs
//! one branch there.

use std::net::IpAddr;

use warren_wire::ip::{Fragment, Parsed, Protocol};

/// The number of a service, by which the shell finds the receiver of its packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceId(pub u16);

/// The packets to an address that belong to a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Match {
    /// All of them, fragments too.
    Any,
    /// Those of this protocol, fragments too.
    Protocol(Protocol),
    /// Those of this protocol to this port. Fragments that carry no port do not
    /// match.
    Port(Protocol, u16),
}

impl Match {
    #[inline]
    fn takes(self, packet: &Parsed) -> bool {
        match self {
            Self::Any => true,
            Self::Protocol(protocol) => packet.protocol == protocol,
            Self::Port(protocol, port) => {
                packet.protocol == protocol
                    && packet.dst_port == port
                    && !matches!(packet.fragment, Fragment::Later { .. })
            }
        }
    }

    /// Narrower matches are found first.
    fn rank(self) -> u8 {
        match self {
            Self::Port(..) => 0,
            Self::Protocol(_) => 1,
            Self::Any => 2,
        }
    }
}

/// The packets that may reach a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clients {
    /// Packets of the host.
    Host,
    /// Packets of peers that the filter admits.
    AdmittedPeers,
    /// Packets of all peers. New TCP connections need no rule of the filter.
    AllPeers,
}

/// A service that takes packets from peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PeerService {
    pub(super) id: ServiceId,
    pub(super) open_to_all: bool,
}

#[derive(Debug, Clone, Copy)]
struct Row<S> {
    address: IpAddr,
    matches: Match,
    service: S,
}

/// Services by address, protocol and port. Few rows are expected: they are compared
/// one after the other, narrower matches first.
#[derive(Debug, Clone, Default)]
pub struct Intercepts {
    host: Vec<Row<ServiceId>>,
    peers: Vec<Row<PeerService>>,
}

impl Intercepts {
    /// An empty table.
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives packets of these `clients` to `address` to `service`. Of two equal
    /// entries the first counts.
    pub fn insert(
        &mut self,
        address: IpAddr,
        matches: Match,
        clients: Clients,
        service: ServiceId,
    ) {
        let peers = |open_to_all| PeerService {
            id: service,
            open_to_all,
        };
        match clients {
            Clients::Host => insert(&mut self.host, address, matches, service),
            Clients::AdmittedPeers => insert(&mut self.peers, address, matches, peers(false)),
            Clients::AllPeers => insert(&mut self.peers, address, matches, peers(true)),
        }
    }

    /// The service for a `packet` of the host.
    #[inline]
    pub(super) fn for_host(&self, packet: &Parsed) -> Option<ServiceId> {
        find(&self.host, packet)
    }

    /// The service for a `packet` of a peer.
    #[inline]
    pub(super) fn for_peer(&self, packet: &Parsed) -> Option<PeerService> {
        find(&self.peers, packet)
    }
}

fn insert<S>(rows: &mut Vec<Row<S>>, address: IpAddr, matches: Match, service: S) {
    let behind = rows.partition_point(|row| row.matches.rank() <= matches.rank());
    let row = Row {
        address,
        matches,
        service,
    };
    rows.insert(behind, row);
}

#[inline]
fn find<S: Copy>(rows: &[Row<S>], packet: &Parsed) -> Option<S> {
    let mut rows = rows.iter();
    let found = rows.find(|row| row.address == packet.dst && row.matches.takes(packet));
    found.map(|row| row.service)
}

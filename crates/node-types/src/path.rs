//! Paths to peers.

use std::fmt;
use std::net::SocketAddr;

use warren_control_types::RegionId;
use warren_keys::NodePublic;
use warren_wire::geneve::Vni;

/// One path to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PathAddr {
    /// Directly over UDP. IPv4 addresses are never in their IPv6-mapped form.
    Udp(SocketAddr),
    /// Through a peer relay: over UDP to `server`, with a Geneve header in
    /// front of each datagram.
    PeerRelay {
        /// The UDP address of the relay.
        server: SocketAddr,
        /// The pair of nodes that the relay forwards between.
        vni: Vni,
    },
    /// Through the DERP relay of this region.
    Derp(RegionId),
}

impl PathAddr {
    /// Where datagrams on this path are sent over UDP; `None` for DERP.
    #[must_use]
    pub fn udp_target(self) -> Option<SocketAddr> {
        match self {
            Self::Udp(to) | Self::PeerRelay { server: to, .. } => Some(to),
            Self::Derp(_) => None,
        }
    }

    /// The VNI of the Geneve header in front of each datagram; `None` where
    /// datagrams have no such header.
    #[must_use]
    #[inline]
    pub fn vni(self) -> Option<Vni> {
        match self {
            Self::PeerRelay { vni, .. } => Some(vni),
            Self::Udp(_) | Self::Derp(_) => None,
        }
    }
}

/// In the notation of the official client: `192.0.2.1:41641`,
/// `192.0.2.1:7:vni:3`, `derp-1`.
impl fmt::Display for PathAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Udp(address) => write!(f, "{address}"),
            Self::PeerRelay { server, vni } => write!(f, "{server}:vni:{vni}"),
            Self::Derp(region) => write!(f, "derp-{region}"),
        }
    }
}

/// The paths that packets for a peer take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Destination {
    /// No path is known yet; packets wait.
    #[default]
    None,
    /// One path.
    One(PathAddr),
    /// A path over UDP that is not confirmed now, and the DERP relay of a
    /// region beside it. The receiver's replay window drops the copies.
    Both(PathAddr, RegionId),
}

impl Destination {
    /// Directly to a UDP address.
    #[must_use]
    pub const fn udp(address: SocketAddr) -> Self {
        Self::One(PathAddr::Udp(address))
    }

    /// Through the DERP relay of a region.
    #[must_use]
    pub const fn derp(region: RegionId) -> Self {
        Self::One(PathAddr::Derp(region))
    }

    /// The paths, in the order in which packets are sent on them.
    pub fn paths(self) -> impl Iterator<Item = PathAddr> {
        let (first, second) = match self {
            Self::None => (None, None),
            Self::One(path) => (Some(path), None),
            Self::Both(path, region) => (Some(path), Some(PathAddr::Derp(region))),
        };
        first.into_iter().chain(second)
    }

    /// The region of the DERP relay, if packets take one.
    #[must_use]
    pub fn derp_region(self) -> Option<RegionId> {
        match self {
            Self::One(PathAddr::Derp(region)) | Self::Both(_, region) => Some(region),
            Self::None | Self::One(PathAddr::Udp(_) | PathAddr::PeerRelay { .. }) => None,
        }
    }

    /// The VNI of the Geneve header that datagrams over UDP carry, if any.
    #[must_use]
    #[inline]
    pub fn vni(self) -> Option<Vni> {
        match self {
            Self::One(path) | Self::Both(path, _) => path.vni(),
            Self::None => None,
        }
    }
}

/// The path that a datagram arrived on, which is also the path for a reply.
///
/// A datagram over UDP states no sender; a DERP relay states the node key of
/// the sender. So the two cannot be a pair of a path and an optional key
/// without combinations that never occur.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// Directly over UDP. IPv4 addresses are never in their IPv6-mapped form.
    Udp(SocketAddr),
    /// From a peer relay, with this VNI in its Geneve header.
    PeerRelay {
        /// The UDP address of the relay.
        server: SocketAddr,
        /// From the Geneve header.
        vni: Vni,
    },
    /// Through a DERP relay.
    Derp {
        /// The region of the relay.
        region: RegionId,
        /// The sender, whose key the relay has verified.
        key: NodePublic,
    },
}

impl Source {
    /// The path back.
    #[must_use]
    pub fn path(&self) -> PathAddr {
        match *self {
            Self::Udp(address) => PathAddr::Udp(address),
            Self::PeerRelay { server, vni } => PathAddr::PeerRelay { server, vni },
            Self::Derp { region, .. } => PathAddr::Derp(region),
        }
    }

    /// The sender's node key, where the path states it.
    #[must_use]
    pub fn key(&self) -> Option<NodePublic> {
        match *self {
            Self::Udp(_) | Self::PeerRelay { .. } => None,
            Self::Derp { key, .. } => Some(key),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn relayed() -> PathAddr {
        PathAddr::PeerRelay {
            server: "192.0.2.1:7".parse().unwrap(),
            vni: Vni::new(3).unwrap(),
        }
    }

    #[test]
    fn paths_are_written_as_the_official_client_writes_them() {
        let direct = PathAddr::Udp("[2001:db8::1]:41641".parse().unwrap());
        assert_eq!(direct.to_string(), "[2001:db8::1]:41641");
        assert_eq!(relayed().to_string(), "192.0.2.1:7:vni:3");
        assert_eq!(PathAddr::Derp(RegionId(9)).to_string(), "derp-9");
    }

    #[test]
    fn a_destination_lists_its_paths_and_its_region() {
        let (region, derp) = (RegionId(9), PathAddr::Derp(RegionId(9)));
        let cases = [
            (Destination::None, vec![], None),
            (Destination::One(relayed()), vec![relayed()], None),
            (Destination::derp(region), vec![derp], Some(region)),
            (
                Destination::Both(relayed(), region),
                vec![relayed(), derp],
                Some(region),
            ),
        ];
        for (destination, paths, region) in cases {
            assert_eq!(destination.paths().collect::<Vec<_>>(), paths);
            assert_eq!(destination.derp_region(), region);
        }
    }
}

//! Views of the state.

use std::net::SocketAddr;
use std::time::Instant;

use warren_control_types::{EndpointType, NetInfo, RegionId};
use warren_keys::DiscoPublic;
use warren_node_types::{PathAddr, PeerIndex};

use super::Paths;
use crate::api::{Counters, Measurements, PeerPath};
use crate::port_search::PortSearchOutcome;

impl Paths {
    /// The path to `peer` now, for a status display.
    pub fn peer_path(&self, peer: PeerIndex) -> Option<PeerPath> {
        let state = self.peers.get(&peer)?;
        let direct = state.direct();
        Some(PeerPath {
            destination: state.destination,
            direct: direct.map(|(address, _)| address),
            round_trip: direct.and_then(|(_, round_trip)| round_trip),
            peer_relay: state.relays.in_use().map(PathAddr::from),
            peer_relay_round_trip: state.relays.round_trip(),
            relay: state.relay(&self.core),
        })
    }

    /// When the last port search with `peer` ended, and how.
    pub fn port_search(&self, peer: PeerIndex) -> Option<(Instant, PortSearchOutcome)> {
        self.peers.get(&peer)?.attempts.last
    }

    /// Our own addresses, the newest ones.
    pub fn endpoints(&self) -> &[(SocketAddr, EndpointType)] {
        self.core.own.current()
    }

    /// Our home relay region. Control and peers learn it from
    /// [`Event::NetInfo`](crate::Event::NetInfo), once its relay is reached.
    pub fn home(&self) -> Option<RegionId> {
        self.core.netcheck.home()
    }

    /// The newest findings about our network.
    pub fn net_info(&self) -> NetInfo {
        let os_has_v6 = self.core.own.local().port_v6.is_some();
        let protocols = self.port_mappings.protocols();
        NetInfo {
            preferred_derp: self.reported_home,
            have_port_map: self.port_mappings.external().next().is_some(),
            upnp: protocols.upnp,
            pmp: protocols.nat_pmp,
            pcp: protocols.pcp,
            ..self.core.netcheck.net_info(os_has_v6)
        }
    }

    /// The measurements behind [`net_info`](Self::net_info).
    pub fn measurements(&self) -> Measurements {
        let measurements = self.core.netcheck.measurements();
        Measurements {
            awaited: measurements.awaited.filter(|_| !self.paused),
            ..measurements
        }
    }

    /// Our addresses as STUN servers saw them last.
    pub fn outside_addresses(&self) -> Vec<SocketAddr> {
        self.core.netcheck.addresses()
    }

    /// The counters since the start.
    pub fn counters(&self) -> Counters {
        Counters {
            pre_netmap_dropped: self.pre_netmap.dropped(),
            ..self.core.counters
        }
    }

    /// The disco key that peers must know us by.
    pub fn disco_key(&self) -> DiscoPublic {
        *self.core.keys.public()
    }
}

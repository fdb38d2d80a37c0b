//! The way from the packet threads to the engine task and the name server.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::mpsc;
use warren_dataplane::{ServiceId, VNET_HDR_LEN};
use warren_host::device::Device as _;
use warren_host::device::memory::MemoryDevice;
use warren_keys::{DiscoPublic, NodePublic};
use warren_node_core::node::NodeInput;
use warren_node_core::{MAGIC_DNS, SSH};
use warren_node_types::{RegionId, SearchSocket};
use warren_packet_threads::EngineSink;
use warren_tunnel::{PeerIndex, Source};

use super::Inbox;

/// Passes the reports of the packet threads on.
pub struct PacketReports {
    /// To the engine task.
    pub engine: Inbox,
    /// To the name server inside the tunnel.
    pub dns: mpsc::Sender<Vec<u8>>,
    /// To the services beside an interface.
    pub services: Option<Arc<MemoryDevice>>,
}

impl EngineSink for PacketReports {
    fn control(&self, from: Source, datagram: &[u8]) -> bool {
        let packet = datagram.to_vec();
        self.engine.try_send(match from {
            // Datagrams of peer relays that are not tunnel data come with their header.
            Source::Udp(from) | Source::PeerRelay { server: from, .. } => {
                NodeInput::Udp { from, packet }
            }
            Source::Derp { region, key } => NodeInput::Relay {
                region,
                from: key,
                packet,
            },
        })
    }

    fn search_datagram(&self, socket: SearchSocket, from: SocketAddr, datagram: &[u8]) {
        // One too many is lost, as on any network.
        let _ = self.engine.try_send(NodeInput::SearchUdp {
            socket,
            from,
            packet: datagram.to_vec(),
        });
    }

    fn session_confirmed(&self, local_index: u32) {
        self.engine.send(NodeInput::SessionConfirmed(local_index));
    }

    fn received_from(&self, peer: PeerIndex, from: Source) {
        self.engine.send(NodeInput::ReceivedFrom(peer, from));
    }

    fn need_session(&self, peer: PeerIndex) {
        self.engine.send(NodeInput::NeedSession(peer));
    }

    fn tsmp_pong(&self, data: [u8; 8]) {
        self.engine.send(NodeInput::TsmpPong(data));
    }

    fn disco_advertised(&self, peer: PeerIndex, key: DiscoPublic) {
        self.engine.send(NodeInput::DiscoAdvertised(peer, key));
    }

    fn unconnected_relay(&self, region: RegionId, to: NodePublic, packet: &[u8]) -> bool {
        self.engine.try_send(NodeInput::RelayData {
            region,
            to,
            packet: packet.to_vec(),
        })
    }

    fn deliver(&self, service: ServiceId, packet: &[u8]) -> bool {
        match (service, &self.services) {
            (MAGIC_DNS, _) => self.dns.try_send(packet.to_vec()).is_ok(),
            (SSH, Some(services)) => {
                let frame = [&[0; VNET_HDR_LEN], packet].concat();
                services.write(0, &frame).is_ok()
            }
            _ => false,
        }
    }
}

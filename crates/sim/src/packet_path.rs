//! Both directions of the real packet path of a node, with a sink that collects
//! their events.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use warren_control_types::RegionId;
use warren_dataplane::{
    Drops, InSink, Inbound, InboundOffloads, Joined, OutSink, Outbound, RelaySend, ServiceId,
    TunWrite, UdpSend, View, VnetHdr,
};
use warren_keys::{DiscoPublic, NodePublic};
use warren_tunnel::{PeerIndex, Source};

const NO_OFFLOADS: InboundOffloads = InboundOffloads {
    tcp: false,
    udp: false,
};

/// Something that the packet path sends or reports.
pub(crate) enum PacketEvent {
    SendUdp(SocketAddr, Vec<u8>),
    SendRelay(RegionId, NodePublic, Vec<u8>),
    /// A frame for the TUN device.
    Tun(Vec<u8>),
    /// A datagram that is not tunnel data.
    Control(Source, Vec<u8>),
    NeedSession(PeerIndex),
    Confirmed(u32),
    ReceivedFrom(PeerIndex, Source),
    /// An IP packet of the node's own for a peer.
    Inject(PeerIndex, Vec<u8>),
    TsmpPong([u8; 8]),
    DiscoAdvertised(PeerIndex, DiscoPublic),
}

#[derive(Default)]
struct Sink(Vec<PacketEvent>);

impl OutSink for Sink {
    fn udp(&mut self, sends: &[UdpSend], buffer: &[u8]) {
        for send in sends {
            let datagrams = send.datagrams(buffer);
            let events = datagrams.map(|bytes| PacketEvent::SendUdp(send.to, bytes.to_vec()));
            self.0.extend(events);
        }
    }

    fn relay(&mut self, sends: &[RelaySend], buffer: &[u8]) {
        for send in sends {
            let event = |bytes: &[u8]| PacketEvent::SendRelay(send.region, send.to, bytes.to_vec());
            self.0
                .extend(send.packets(buffer, &mut Vec::new()).map(event));
        }
    }

    fn need_session(&mut self, peer: PeerIndex) {
        self.0.push(PacketEvent::NeedSession(peer));
    }

    fn deliver(&mut self, _service: ServiceId, _packet: &[u8]) {}

    fn tun(&mut self, frame: &[u8]) {
        self.0.push(PacketEvent::Tun(frame.to_vec()));
    }
}

impl InSink for Sink {
    fn deliver(&mut self, _service: ServiceId, _packet: &[u8]) {}

    fn tun_write(&mut self, frame: &[u8]) -> TunWrite {
        self.0.push(PacketEvent::Tun(frame.to_vec()));
        TunWrite::Taken
    }

    fn joining_ends(&mut self, _: Joined) {}

    fn control(&mut self, from: Source, datagram: &[u8]) {
        self.0.push(PacketEvent::Control(from, datagram.to_vec()));
    }

    fn confirmed(&mut self, local_index: u32) {
        self.0.push(PacketEvent::Confirmed(local_index));
    }

    fn heard(&mut self, peer: PeerIndex, from: Source) {
        self.0.push(PacketEvent::ReceivedFrom(peer, from));
    }

    fn need_session(&mut self, peer: PeerIndex) {
        self.0.push(PacketEvent::NeedSession(peer));
    }

    fn out(&mut self, peer: PeerIndex, packet: &[u8]) {
        self.0.push(PacketEvent::Inject(peer, packet.to_vec()));
    }

    fn pong(&mut self, _peer: PeerIndex, data: [u8; 8], _peer_api_port: Option<u16>) {
        self.0.push(PacketEvent::TsmpPong(data));
    }

    fn disco_advertised(&mut self, peer: PeerIndex, key: DiscoPublic) {
        self.0.push(PacketEvent::DiscoAdvertised(peer, key));
    }
}

/// The packet path of one process.
pub(crate) struct PacketPath {
    view: Option<Arc<View>>,
    outbound: Outbound,
    inbound: Inbound,
    drops: Arc<Drops>,
    sink: Sink,
}

impl PacketPath {
    pub(crate) fn new() -> Self {
        let drops = Arc::new(Drops::new());
        Self {
            view: None,
            outbound: Outbound::new(Arc::clone(&drops)),
            inbound: Inbound::new(NO_OFFLOADS, Arc::clone(&drops)),
            drops,
            sink: Sink::default(),
        }
    }

    pub(crate) fn view(&self) -> Option<&View> {
        self.view.as_deref()
    }

    pub(crate) fn drops(&self) -> &Drops {
        &self.drops
    }

    /// The address of the node inside the tunnel, of one family.
    pub(crate) fn tunnel_address(&self, v4: bool) -> Option<IpAddr> {
        let addresses = &self.view.as_ref()?.addresses;
        addresses
            .iter()
            .find(|address| address.is_ipv4() == v4)
            .copied()
    }

    pub(crate) fn set_view(&mut self, now: Instant, view: Arc<View>) {
        self.outbound.on_view_change(&view, now, &mut self.sink);
        self.inbound.on_view_change(&view);
        self.view = Some(view);
    }

    /// Takes datagrams from the network, all of `len` bytes but the last.
    pub(crate) fn receive(&mut self, now: Instant, from: Source, bytes: &mut [u8], len: usize) {
        match &self.view {
            Some(view) => {
                self.inbound
                    .datagrams(view, now, from, bytes, len, &mut self.sink);
            }
            // Before the first view nothing can be for the tunnel.
            None => {
                let event = PacketEvent::Control(from, bytes.to_vec());
                self.sink.0.push(event);
            }
        }
    }

    /// Takes an IP packet of a program of this host.
    pub(crate) fn send(&mut self, now: Instant, packet: &[u8]) {
        if let Some(view) = &self.view {
            let frame = [&VnetHdr::PLAIN.to_bytes()[..], packet].concat();
            self.outbound.packet(view, now, &frame, &mut self.sink);
        }
    }

    /// Sends an IP packet of the node's own to a peer.
    pub(crate) fn inject(&mut self, now: Instant, peer: PeerIndex, packet: &[u8]) {
        if let Some(view) = &self.view {
            self.outbound
                .inject(view, now, peer, packet, &mut self.sink);
        }
    }

    pub(crate) fn send_keepalive(&mut self, now: Instant, peer: PeerIndex) {
        if let Some(view) = &self.view {
            self.outbound
                .send_keepalive(view, now, peer, &mut self.sink);
        }
    }

    pub(crate) fn drop_staged(&mut self, peer: PeerIndex) {
        self.outbound.drop_staged(peer);
    }

    /// The events since the last call, in order.
    pub(crate) fn take_events(&mut self) -> Vec<PacketEvent> {
        self.outbound.flush(&mut self.sink);
        self.inbound.flush(&mut self.sink);
        std::mem::take(&mut self.sink.0)
    }
}

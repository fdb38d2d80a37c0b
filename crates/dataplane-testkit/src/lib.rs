//! Helpers of the tests, the fuzz target and the benchmark of `warren-dataplane`:
//!
//! - [`Pair`]: two data planes; node 1 sends, node 2 receives.
//! - [`Recipe`]: packets built by hand, and the frames in which a host gives them
//!   to the TUN device.
//! - [`expand`]: a model of the kernel, which splits each superpacket into packets
//!   and computes all checksums from the bytes.
//!
//! It depends on `warren-dataplane`, so it is not part of `warren-testkit`.

// A wrong packet ends the test.
#![allow(clippy::unwrap_used)]

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;
use warren_control_types::{FilterRule, NetPortRange, PortRange, RegionId};
use warren_dataplane::{
    Drops, GsoType, InSink, Inbound, InboundOffloads, Joined, OutSink, Outbound, PeerCounters,
    PeerView, RelaySend, RouteTable, ServiceId, SessionView, TunWrite, UdpSend, VNET_HDR_LEN, View,
    VnetHdr,
};
use warren_filter::{CapabilityHolders, Filter, FlowTable, LocalAddresses, LocalSet};
use warren_keys::noise::MessageKey;
use warren_keys::{DiscoPublic, NodePublic};
use warren_node_types::Destination;
use warren_testkit::FixedEntropy;
use warren_tunnel::{PeerIndex, Role, Session, Source};
use warren_wire::ip::checksum::{Sum, checksum, transport_checksum};
use warren_wire::ip::{Parsed, Protocol};

/// The index of the only peer of a node in a [`Pair`].
pub const PEER: PeerIndex = PeerIndex(1);

/// The tailnet addresses of node `i`: IPv4 and IPv6.
pub fn addresses(i: u8) -> [IpAddr; 2] {
    [
        format!("100.64.0.{i}").parse().unwrap(),
        format!("fd7a:115c:a1e0::{i}").parse().unwrap(),
    ]
}

/// Rules that allow all packets.
pub fn allow_all() -> Vec<FilterRule> {
    vec![FilterRule {
        src_ips: vec!["*".into()],
        dst_ports: vec![NetPortRange {
            ip: "*".into(),
            ports: PortRange::ANY,
            ..NetPortRange::default()
        }],
        ..FilterRule::default()
    }]
}

/// Sessions of two nodes with each other.
pub fn sessions(now: Instant) -> [Arc<Session>; 2] {
    let (x, y) = (MessageKey::new([1; 32]), MessageKey::new([2; 32]));
    [
        Arc::new(Session::new(Role::Initiator, 11, 22, &x, &y, now)),
        Arc::new(Session::new(Role::Responder, 22, 11, &y, &x, now)),
    ]
}

/// The view of node `own`, whose only peer is `peer`.
pub fn view(own: u8, peer: u8, session: &Arc<Session>, now: Instant, rules: &[FilterRule]) -> View {
    let local = LocalSet::new(&LocalAddresses {
        addresses: &addresses(own),
        ..LocalAddresses::default()
    });
    let (filter, problems) = Filter::compile(rules, local, &CapabilityHolders::new());
    assert!(problems.is_empty());
    let nets = addresses(peer).map(|a| a.into());
    let peer_view = PeerView {
        index: PEER,
        key: NodePublic::from_bytes([peer; 32]),
        session: Some(Arc::clone(session)),
        destination: Destination::udp(udp_address(peer)),
        allowed_sources: nets.to_vec(),
        jailed: false,
        counters: Arc::new(PeerCounters::new()),
    };
    let mut sessions = FxHashMap::default();
    sessions.insert(
        session.local_index(),
        SessionView {
            peer: PEER,
            session: Arc::clone(session),
        },
    );
    View {
        origin: now,
        peers: vec![None, Some(Arc::new(peer_view))],
        routes: Arc::new(RouteTable::from_iter(nets.map(|net| (net, PEER)))),
        sessions,
        jailed_filter: Arc::new(filter.jailed()),
        filter: Arc::new(filter),
        sources: Arc::default(),
        flows: Arc::new(FlowTable::new(&mut FixedEntropy(0x31))),
        addresses: addresses(own).to_vec(),
        intercepts: Arc::default(),
        tunnel_mtu: 1280,
        peer_api_port: None,
    }
}

/// `view` with its peer changed.
pub fn with_peer(view: &View, change: impl FnOnce(&mut PeerView)) -> View {
    let mut view = view.clone();
    let mut peer = PeerView::clone(view.peers[1].as_ref().unwrap());
    change(&mut peer);
    view.peers[1] = Some(Arc::new(peer));
    view
}

/// The UDP address of node `i`.
pub fn udp_address(i: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, i], 41641))
}

/// A run of datagrams, as one receive call with GRO gives it.
pub type Batch = (Vec<u8>, usize);

/// The network: keeps what the data plane sends.
#[derive(Default)]
pub struct Net {
    /// Batches for UDP addresses.
    pub udp: Vec<(SocketAddr, Batch)>,
    /// Batches for peers behind a relay.
    pub relay: Vec<(RegionId, NodePublic, Batch)>,
    /// The same, as packets for the relay.
    pub relayed: Vec<Vec<u8>>,
    /// Peers for which a session was requested.
    pub wanted: Vec<PeerIndex>,
    /// Packets for services of this process.
    pub delivered: Vec<(ServiceId, Vec<u8>)>,
    /// Frames for the sending host itself.
    pub tun: Vec<Vec<u8>>,
}

impl OutSink for Net {
    fn udp(&mut self, sends: &[UdpSend], buffer: &[u8]) {
        for send in sends {
            let bytes = buffer[send.range.clone()].to_vec();
            assert!(bytes.len() <= 65_507 && send.datagrams(buffer).count() <= 64);
            assert!(send.datagrams(buffer).all(|d| d.len() >= 32));
            self.udp.push((send.to, (bytes, send.segment_len)));
        }
    }
    fn relay(&mut self, sends: &[RelaySend], buffer: &[u8]) {
        let mut batches = Vec::new();
        for send in sends {
            self.relayed
                .extend(send.packets(buffer, &mut batches).map(<[u8]>::to_vec));
            let bytes = buffer[send.range.clone()].to_vec();
            self.relay
                .push((send.region, send.to, (bytes, send.segment_len)));
        }
    }
    fn need_session(&mut self, peer: PeerIndex) {
        self.wanted.push(peer);
    }
    fn deliver(&mut self, service: ServiceId, packet: &[u8]) {
        self.delivered.push((service, packet.to_vec()));
    }
    fn tun(&mut self, frame: &[u8]) {
        self.tun.push(frame.to_vec());
    }
}

/// A receiving path that joins everything.
pub fn inbound(drops: &Arc<Drops>) -> Inbound {
    let offloads = InboundOffloads {
        tcp: true,
        udp: true,
    };
    Inbound::new(offloads, Arc::clone(drops))
}

/// The receiving host: keeps what the data plane gives it.
#[derive(Default)]
pub struct Host {
    /// Frames that the TUN device took.
    pub frames: Vec<Vec<u8>>,
    /// Datagrams that are not transport data.
    pub control: Vec<(Source, Vec<u8>)>,
    /// Local indices of sessions that the peer has used.
    pub confirmed: Vec<u32>,
    /// Peers that sent a valid packet, and its source.
    pub heard: Vec<(PeerIndex, Source)>,
    /// Peers for which a session was requested.
    pub wanted: Vec<PeerIndex>,
    /// Packets that the data plane sends back to a peer.
    pub out: Vec<(PeerIndex, Vec<u8>)>,
    /// The data of TSMP pongs.
    pub pongs: Vec<[u8; 8]>,
    /// Disco keys that peers advertised.
    pub discos: Vec<DiscoPublic>,
    /// Kinds of frames that the device does not take.
    pub refuses: Vec<GsoType>,
    /// Whether it takes nothing at all.
    pub is_down: bool,
    /// Packets for services of this process.
    pub delivered: Vec<(ServiceId, Vec<u8>)>,
    /// The number of frames that the device refused.
    pub refused: usize,
    /// Kinds of joining that ended because the device refused them.
    pub given_up: Vec<Joined>,
}

impl InSink for Host {
    fn tun_write(&mut self, frame: &[u8]) -> TunWrite {
        let kind = VnetHdr::parse(frame).map(|(vnet, _)| vnet.gso);
        let refuses = self.refuses.contains(&kind.unwrap());
        if refuses || self.is_down {
            self.refused += 1;
            return TunWrite::Refused;
        }
        self.frames.push(frame.to_vec());
        TunWrite::Taken
    }
    fn deliver(&mut self, service: ServiceId, packet: &[u8]) {
        self.delivered.push((service, packet.to_vec()));
    }
    fn joining_ends(&mut self, kind: Joined) {
        self.given_up.push(kind);
    }
    fn control(&mut self, from: Source, datagram: &[u8]) {
        self.control.push((from, datagram.to_vec()));
    }
    fn confirmed(&mut self, local_index: u32) {
        self.confirmed.push(local_index);
    }
    fn heard(&mut self, peer: PeerIndex, from: Source) {
        self.heard.push((peer, from));
    }
    fn need_session(&mut self, peer: PeerIndex) {
        self.wanted.push(peer);
    }
    fn out(&mut self, peer: PeerIndex, packet: &[u8]) {
        self.out.push((peer, packet.to_vec()));
    }
    fn pong(&mut self, _: PeerIndex, data: [u8; 8], _: Option<u16>) {
        self.pongs.push(data);
    }
    fn disco_advertised(&mut self, _: PeerIndex, key: DiscoPublic) {
        self.discos.push(key);
    }
}

/// A receiving host that only counts, without allocating.
#[derive(Debug, Default)]
pub struct CountingHost {
    /// Frames for the TUN device.
    pub frames: usize,
    /// Their bytes.
    pub bytes: usize,
}

impl InSink for CountingHost {
    fn deliver(&mut self, _: ServiceId, _: &[u8]) {}
    fn tun_write(&mut self, frame: &[u8]) -> TunWrite {
        self.frames += 1;
        self.bytes += frame.len();
        TunWrite::Taken
    }
    fn joining_ends(&mut self, _: Joined) {}
    fn control(&mut self, _: Source, _: &[u8]) {}
    fn confirmed(&mut self, _: u32) {}
    fn heard(&mut self, _: PeerIndex, _: Source) {}
    fn need_session(&mut self, _: PeerIndex) {}
    fn out(&mut self, _: PeerIndex, _: &[u8]) {}
    fn pong(&mut self, _: PeerIndex, _: [u8; 8], _: Option<u16>) {}
    fn disco_advertised(&mut self, _: PeerIndex, _: DiscoPublic) {}
}

/// Node 1 sends, node 2 receives.
pub struct Pair {
    /// The time of the next call.
    pub now: Instant,
    /// The views of node 1 and node 2.
    pub views: [View; 2],
    /// The sending path of node 1.
    pub outbound: Outbound,
    /// The receiving path of node 2.
    pub inbound: Inbound,
    /// The drop counters of both nodes.
    pub drops: [Arc<Drops>; 2],
    /// The network behind node 1.
    pub net: Net,
    /// The host of node 2.
    pub host: Host,
}

impl Default for Pair {
    fn default() -> Self {
        Self::new()
    }
}

impl Pair {
    /// A pair whose filters allow all packets.
    pub fn new() -> Self {
        Self::with_rules(&allow_all())
    }

    /// A pair with these filter rules at both nodes.
    pub fn with_rules(rules: &[FilterRule]) -> Self {
        let now = Instant::now();
        let [a, b] = sessions(now);
        let drops = [Arc::new(Drops::new()), Arc::new(Drops::new())];
        let offloads = InboundOffloads {
            tcp: true,
            udp: true,
        };
        Self {
            now,
            views: [view(1, 2, &a, now, rules), view(2, 1, &b, now, rules)],
            outbound: Outbound::new(Arc::clone(&drops[0])),
            inbound: Inbound::new(offloads, Arc::clone(&drops[1])),
            drops,
            net: Net::default(),
            host: Host::default(),
        }
    }

    /// Gives a frame of the host of node 1 to its data plane.
    pub fn send(&mut self, frame: &[u8]) {
        self.outbound
            .packet(&self.views[0], self.now, frame, &mut self.net);
    }

    /// Sends off what was gathered; the datagrams arrive.
    pub fn cross(&mut self) {
        self.outbound.flush(&mut self.net);
        for (_, (bytes, segment)) in std::mem::take(&mut self.net.udp) {
            self.arrive(Source::Udp(udp_address(1)), bytes, segment);
        }
        self.inbound.flush(&mut self.host);
    }

    /// Gives datagrams of `segment` bytes each to node 2.
    pub fn arrive(&mut self, from: Source, mut bytes: Vec<u8>, segment: usize) {
        let view = &self.views[1];
        self.inbound
            .datagrams(view, self.now, from, &mut bytes, segment, &mut self.host);
    }

    /// Moves the clock.
    pub fn later(&mut self, by: Duration) {
        self.now += by;
    }
}

/// Transport of a packet built by hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// A TCP segment.
    Tcp {
        /// The sequence number.
        sequence: u32,
        /// The byte of flags.
        flags: u8,
        /// The length of the options in bytes, a multiple of 4.
        options: usize,
    },
    /// A UDP datagram.
    Udp,
}

/// A packet built by hand.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// Whether it is an IPv6 packet.
    pub v6: bool,
    /// Destination options in front of the transport (IPv6 only).
    pub extension: bool,
    /// Source and destination port.
    pub ports: (u16, u16),
    /// The identification of an IPv4 packet.
    pub id: u16,
    /// Whether the bit "don't fragment" of IPv4 is set.
    pub dont_fragment: bool,
    /// The transport header.
    pub transport: Transport,
    /// The bytes behind the transport header.
    pub payload: Vec<u8>,
}

impl Recipe {
    fn ends(&self) -> (IpAddr, IpAddr) {
        let family = usize::from(self.v6);
        (addresses(1)[family], addresses(2)[family])
    }

    fn protocol(&self) -> Protocol {
        match self.transport {
            Transport::Tcp { .. } => Protocol::TCP,
            Transport::Udp => Protocol::UDP,
        }
    }

    /// The length of the IP headers in bytes.
    pub fn transport_offset(&self) -> usize {
        match (self.v6, self.extension) {
            (false, _) => 20,
            (true, false) => 40,
            (true, true) => 48,
        }
    }

    /// The place of the checksum in the transport header.
    pub fn checksum_offset(&self) -> usize {
        match self.transport {
            Transport::Tcp { .. } => 16,
            Transport::Udp => 6,
        }
    }

    /// Transport header (checksum zero) and payload.
    fn transport_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend(self.ports.0.to_be_bytes());
        out.extend(self.ports.1.to_be_bytes());
        match self.transport {
            Transport::Tcp {
                sequence,
                flags,
                options,
            } => {
                out.extend(sequence.to_be_bytes());
                out.extend(77u32.to_be_bytes());
                out.push((((20 + options) / 4) << 4) as u8);
                out.push(flags);
                // The window follows the upper half of the identification, so
                // that a test can change it.
                out.extend([0x20, self.id.to_be_bytes()[0], 0, 0, 0, 0]);
                out.extend(std::iter::repeat_n(1, options));
            }
            Transport::Udp => {
                out.extend(((8 + self.payload.len()) as u16).to_be_bytes());
                out.extend([0, 0]);
            }
        }
        out.extend(&self.payload);
        out
    }

    fn ip_header(&self, transport_len: usize) -> Vec<u8> {
        let (src, dst) = self.ends();
        let protocol = self.protocol().0;
        let mut out = Vec::new();
        match (src, dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                out.extend([0x45, 0]);
                out.extend(((20 + transport_len) as u16).to_be_bytes());
                out.extend(self.id.to_be_bytes());
                out.extend([
                    if self.dont_fragment { 0x40 } else { 0 },
                    0,
                    64,
                    protocol,
                    0,
                    0,
                ]);
                out.extend(src.octets());
                out.extend(dst.octets());
                let sum = checksum(&out);
                out[10..12].copy_from_slice(&sum.to_be_bytes());
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let extension = if self.extension { 8 } else { 0 };
                out.extend([0x60, 1, 2, 3]);
                out.extend(((extension + transport_len) as u16).to_be_bytes());
                out.extend([if self.extension { 60 } else { protocol }, 64]);
                out.extend(src.octets());
                out.extend(dst.octets());
                if self.extension {
                    out.extend([protocol, 0, 1, 4, 0, 0, 0, 0]);
                }
            }
            _ => unreachable!(),
        }
        out
    }

    /// The packet as it must look on the wire.
    pub fn build(&self) -> Vec<u8> {
        let mut transport = self.transport_bytes();
        let (src, dst) = self.ends();
        let mut sum = transport_checksum(src, dst, self.protocol(), &transport);
        if sum == 0 && self.transport == Transport::Udp {
            sum = 0xffff;
        }
        let at = self.checksum_offset();
        transport[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        [self.ip_header(transport.len()), transport].concat()
    }

    /// The frame of a host that leaves the checksum, and with a size also the
    /// cutting, to the device.
    pub fn frame(&self, gso_size: Option<u16>) -> Vec<u8> {
        let mut transport = self.transport_bytes();
        let (src, dst) = self.ends();
        let partial = Sum::pseudo_header(src, dst, self.protocol(), transport.len()).folded();
        let at = self.checksum_offset();
        transport[at..at + 2].copy_from_slice(&partial.to_be_bytes());
        let gso = match (gso_size, self.transport, self.v6) {
            (None, ..) => GsoType::None,
            (_, Transport::Tcp { .. }, false) => GsoType::TcpV4,
            (_, Transport::Tcp { .. }, true) => GsoType::TcpV6,
            (_, Transport::Udp, _) => GsoType::Udp,
        };
        let header = VnetHdr {
            checksum: Some((self.transport_offset() as u16, at as u16)),
            gso,
            gso_size: gso_size.unwrap_or(0),
            hdr_len: 0,
        };
        [
            &header.to_bytes()[..],
            &self.ip_header(transport.len()),
            &transport,
        ]
        .concat()
    }

    /// One finished packet as a frame.
    pub fn plain_frame(&self) -> Vec<u8> {
        [&VnetHdr::PLAIN.to_bytes()[..], &self.build()].concat()
    }

    /// The packets that the frame with this segment size stands for.
    pub fn expected(&self, gso_size: Option<u16>) -> Vec<Vec<u8>> {
        let size = gso_size.map_or(usize::MAX, usize::from);
        if self.payload.len() <= size {
            return vec![self.build()];
        }
        let chunks: Vec<_> = self.payload.chunks(size).collect();
        let last = chunks.len() - 1;
        let one = |(i, chunk): (usize, &&[u8])| {
            let mut piece = self.clone();
            piece.payload = chunk.to_vec();
            piece.id = self.id.wrapping_add(i as u16);
            if let Transport::Tcp {
                sequence, flags, ..
            } = &mut piece.transport
            {
                *sequence = sequence.wrapping_add((i * size) as u32);
                if i < last {
                    *flags &= !0x09;
                }
                if i > 0 {
                    *flags &= !0x80;
                }
            }
            piece.build()
        };
        chunks.iter().enumerate().map(one).collect()
    }
}

/// The packets that the kernel makes of a frame written to the TUN device, one by
/// one, with all checksums computed from their bytes.
pub fn expand(frame: &[u8]) -> Vec<Vec<u8>> {
    let (vnet, packet) = VnetHdr::parse(frame).unwrap();
    if vnet.gso == GsoType::None {
        assert_eq!(vnet, VnetHdr::PLAIN);
        return vec![packet.to_vec()];
    }
    let parsed = Parsed::parse(packet).unwrap();
    assert_eq!(parsed.total_len, packet.len());
    let at = parsed.transport_offset;
    let (start, field) = vnet.checksum.unwrap();
    assert_eq!(usize::from(start), at);
    let tcp = parsed.protocol == Protocol::TCP;
    assert_eq!(usize::from(field), if tcp { 16 } else { 6 });
    let field = at + usize::from(field);
    let partial = u16::from_be_bytes([packet[field], packet[field + 1]]);
    let pseudo =
        Sum::pseudo_header(parsed.src, parsed.dst, parsed.protocol, packet.len() - at).folded();
    assert_eq!(
        partial, pseudo,
        "the kernel adds to the pseudo header's sum"
    );
    if at == 20 {
        assert_eq!(checksum(&packet[..20]), 0);
    }
    let header_len = at
        + if tcp {
            usize::from(packet[at + 12] >> 4) * 4
        } else {
            8
        };
    let hdr_len = u16::from_ne_bytes([frame[2], frame[3]]);
    assert_eq!(usize::from(hdr_len), header_len);
    let payload = &packet[header_len..];
    assert!(
        payload.len() > usize::from(vnet.gso_size),
        "a single packet is not a superpacket"
    );
    if !tcp {
        assert_eq!(
            usize::from(u16::from_be_bytes([packet[at + 4], packet[at + 5]])),
            packet.len() - at
        );
    }
    let chunks: Vec<_> = payload.chunks(usize::from(vnet.gso_size)).collect();
    let one = |(i, chunk): (usize, &&[u8])| {
        let mut out = [&packet[..header_len], chunk].concat();
        let total = out.len();
        if at == 20 {
            let id = u16::from_be_bytes([out[4], out[5]]).wrapping_add(i as u16);
            out[2..4].copy_from_slice(&(total as u16).to_be_bytes());
            out[4..6].copy_from_slice(&id.to_be_bytes());
            out[10..12].fill(0);
            let sum = checksum(&out[..20]);
            out[10..12].copy_from_slice(&sum.to_be_bytes());
        } else {
            out[4..6].copy_from_slice(&((total - 40) as u16).to_be_bytes());
        }
        if tcp {
            let sequence = u32::from_be_bytes(out[at + 4..at + 8].try_into().unwrap());
            let sequence = sequence.wrapping_add((i * usize::from(vnet.gso_size)) as u32);
            out[at + 4..at + 8].copy_from_slice(&sequence.to_be_bytes());
            if i + 1 < chunks.len() {
                out[at + 13] &= !0x09;
            }
        } else {
            out[at + 4..at + 6].copy_from_slice(&((total - at) as u16).to_be_bytes());
        }
        out[field..field + 2].fill(0);
        let mut sum = transport_checksum(parsed.src, parsed.dst, parsed.protocol, &out[at..]);
        if sum == 0 && !tcp {
            sum = 0xffff;
        }
        out[field..field + 2].copy_from_slice(&sum.to_be_bytes());
        out
    };
    chunks.iter().enumerate().map(one).collect()
}

/// A packet without what may legally change when it is joined and cut again:
/// the identification of IPv4 packets that are never fragmented.
pub fn comparable(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if packet[0] >> 4 == 4 && packet[6] & 0x40 != 0 {
        // Header checksums are right or wrong together.
        let valid = checksum(&packet[..20]) == 0;
        packet[4..6].fill(0);
        packet[10..12].fill(u8::from(valid));
    }
    packet
}

/// The length of the virtio header before each packet.
pub const HEADER: usize = VNET_HDR_LEN;

/// A datagram of its own.
pub fn udp(id: u16, payload: usize) -> Recipe {
    Recipe {
        v6: false,
        extension: false,
        ports: (5000, 53),
        id,
        dont_fragment: true,
        transport: Transport::Udp,
        payload: (0..payload).map(|i| (i as u8) ^ (id as u8)).collect(),
    }
}

/// A TCP segment, or more of them in one frame.
pub fn tcp(v6: bool, payload: usize) -> Recipe {
    Recipe {
        v6,
        ports: (1000, 80),
        transport: Transport::Tcp {
            sequence: 9,
            flags: 0x10,
            options: 12,
        },
        ..udp(7, payload)
    }
}

/// The packets that reached the host, one by one.
pub fn arrived(pair: &Pair) -> Vec<Vec<u8>> {
    pair.host.frames.iter().flat_map(|f| expand(f)).collect()
}

/// TCP from this sequence number on, with different bytes.
pub fn segments(sequence: u32, payload: usize) -> Recipe {
    Recipe {
        v6: false,
        extension: false,
        ports: (1000, 80),
        id: 7,
        dont_fragment: true,
        transport: Transport::Tcp {
            sequence,
            flags: 0x10,
            options: 12,
        },
        payload: (0..payload).map(|i| (i * 7) as u8).collect(),
    }
}

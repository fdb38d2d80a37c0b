//! One node and many peers: batches carry packets of all of them, each flow
//! keeps its order, and a flood harms only the peer that sends it.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use warren_dataplane::{
    DropReason, Drops, InSink, Inbound, InboundOffloads, Joined, OutSink, Outbound, PeerCounters,
    PeerView, RelaySend, RouteTable, ServiceId, SessionView, TunWrite, UdpSend, View, VnetHdr,
};
use warren_dataplane_testkit::{HEADER, addresses, allow_all, expand, sessions, view};
use warren_keys::noise::MessageKey;
use warren_keys::{DiscoPublic, NodePublic};
use warren_node_types::Destination;
use warren_tunnel::{PeerIndex, Role, Session, Source};
use warren_wire::ip::{Parsed, udp};

/// A node with `count` peers, and the peers' ends of the sessions.
struct ManyPeers {
    now: Instant,
    view: View,
    far: Vec<Session>,
}

fn inner(peer: usize) -> IpAddr {
    let [high, low] = (peer as u16 + 2).to_be_bytes();
    Ipv4Addr::new(100, 70, high, low).into()
}

fn outer(peer: usize) -> SocketAddr {
    let [high, low] = (peer as u16).to_be_bytes();
    SocketAddr::from(([198, 18, high, low], 41_641))
}

fn index(peer: usize) -> PeerIndex {
    PeerIndex(peer as u32)
}

impl ManyPeers {
    fn new(count: usize) -> Self {
        let now = Instant::now();
        let mut view = view(1, 2, &sessions(now)[0], now, &allow_all());
        view.peers.clear();
        view.sessions.clear();
        let mut routes = RouteTable::default();
        let mut far = Vec::new();
        for peer in 0..count {
            let mut key = [1; 32];
            key[..8].copy_from_slice(&(peer as u64).to_le_bytes());
            let (x, y) = (MessageKey::new(key), MessageKey::new([9; 32]));
            let (here, there) = (1_000 + peer as u32, 90_000 + peer as u32);
            let near = Arc::new(Session::new(Role::Initiator, here, there, &x, &y, now));
            far.push(Session::new(Role::Responder, there, here, &y, &x, now));
            routes.insert(inner(peer).into(), index(peer));
            let session = SessionView {
                peer: index(peer),
                session: Arc::clone(&near),
            };
            view.sessions.insert(here, session);
            view.peers.push(Some(Arc::new(PeerView {
                index: index(peer),
                key: NodePublic::from_bytes(key),
                session: Some(near),
                destination: Destination::udp(outer(peer)),
                allowed_sources: vec![inner(peer).into()],
                jailed: false,
                counters: Arc::new(PeerCounters::new()),
            })));
        }
        view.routes = Arc::new(routes);
        Self { now, view, far }
    }

    /// A frame of the host to `peer`.
    fn frame(&self, peer: usize, number: u32) -> Vec<u8> {
        let from = SocketAddr::new(addresses(1)[0], 7_000);
        let to = SocketAddr::new(inner(peer), 9);
        let packet = udp::packet(from, to, &number.to_be_bytes()).unwrap();
        [&VnetHdr::PLAIN.to_bytes()[..], &packet].concat()
    }

    /// A datagram that `peer` sealed.
    fn datagram(&self, peer: usize, number: u32) -> Vec<u8> {
        let from = SocketAddr::new(inner(peer), 9);
        let to = SocketAddr::new(addresses(1)[0], 7_000);
        let packet = udp::packet(from, to, &number.to_be_bytes()).unwrap();
        let mut datagram = [&[0; 16][..], &packet, &[0; 16]].concat();
        let session = &self.far[peer];
        let counter = session.reserve(1).unwrap();
        session.seal_in_place(counter, &mut datagram).unwrap();
        datagram
    }

    /// Which peer a datagram went to, and the number in it.
    fn open(&self, to: SocketAddr, datagram: &[u8]) -> (usize, u32) {
        let IpAddr::V4(ip) = to.ip() else {
            unreachable!("all addresses here are IPv4")
        };
        let peer = usize::from(u16::from_be_bytes([ip.octets()[2], ip.octets()[3]]));
        let mut datagram = datagram.to_vec();
        let (_, content) = self.far[peer].open_in_place(&mut datagram).unwrap();
        let packet = &datagram[content];
        let parsed = Parsed::parse(packet).unwrap();
        assert_eq!(parsed.dst, inner(peer), "a packet of another peer");
        let payload = &packet[parsed.transport_offset + 8..parsed.total_len];
        (peer, u32::from_be_bytes(payload.try_into().unwrap()))
    }

    fn without_session(&self, gone: impl Fn(usize) -> bool) -> View {
        let mut view = self.view.clone();
        for (peer, slot) in view.peers.iter_mut().enumerate() {
            if gone(peer) {
                let mut changed = PeerView::clone(slot.as_ref().unwrap());
                changed.session = None;
                *slot = Some(Arc::new(changed));
            }
        }
        view
    }
}

/// Calls of the sink, as the shell would turn them into system calls.
#[derive(Default)]
struct Net {
    calls: usize,
    /// Datagrams in each send with segmentation offload.
    runs: Vec<usize>,
    sent: Vec<(SocketAddr, Vec<u8>)>,
    wanted: Vec<PeerIndex>,
}

impl OutSink for Net {
    fn udp(&mut self, sends: &[UdpSend], buffer: &[u8]) {
        self.calls += 1;
        for send in sends {
            self.runs.push(send.datagrams(buffer).count());
            let datagrams = send.datagrams(buffer).map(|d| (send.to, d.to_vec()));
            self.sent.extend(datagrams);
        }
    }
    fn relay(&mut self, _: &[RelaySend], _: &[u8]) {}
    fn need_session(&mut self, peer: PeerIndex) {
        self.wanted.push(peer);
    }
    fn deliver(&mut self, _: ServiceId, _: &[u8]) {}
    fn tun(&mut self, _: &[u8]) {}
}

/// Everything that was received, in the order of the calls.
#[derive(Default)]
struct Host {
    frames: Vec<Vec<u8>>,
    control: Vec<Vec<u8>>,
    heard: Vec<PeerIndex>,
    confirmed: usize,
}

impl InSink for Host {
    fn deliver(&mut self, _: ServiceId, _: &[u8]) {}
    fn tun_write(&mut self, frame: &[u8]) -> TunWrite {
        self.frames.push(frame.to_vec());
        TunWrite::Taken
    }
    fn joining_ends(&mut self, _: Joined) {}
    fn control(&mut self, _: Source, datagram: &[u8]) {
        self.control.push(datagram.to_vec());
    }
    fn confirmed(&mut self, _: u32) {
        self.confirmed += 1;
    }
    fn heard(&mut self, peer: PeerIndex, _: Source) {
        self.heard.push(peer);
    }
    fn need_session(&mut self, _: PeerIndex) {}
    fn out(&mut self, _: PeerIndex, _: &[u8]) {}
    fn pong(&mut self, _: PeerIndex, _: [u8; 8], _: Option<u16>) {}
    fn disco_advertised(&mut self, _: PeerIndex, _: DiscoPublic) {}
}

fn inbound() -> (Inbound, Arc<Drops>) {
    let drops = Arc::new(Drops::new());
    let offloads = InboundOffloads {
        tcp: true,
        udp: true,
    };
    (Inbound::new(offloads, Arc::clone(&drops)), drops)
}

fn numbers(frames: &[Vec<u8>]) -> BTreeMap<IpAddr, Vec<u32>> {
    let mut out: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for packet in frames.iter().flat_map(|frame| expand(frame)) {
        let parsed = Parsed::parse(&packet).unwrap();
        let payload = &packet[parsed.transport_offset + 8..];
        let number = u32::from_be_bytes(payload.try_into().unwrap());
        out.entry(parsed.src).or_default().push(number);
    }
    out
}

const ROUNDS: u32 = 5;

#[test]
fn one_hand_over_carries_packets_for_all_peers() {
    for count in [1, 10, 1_000] {
        let node = ManyPeers::new(count);
        let drops = Arc::new(Drops::new());
        let mut outbound = Outbound::new(Arc::clone(&drops));
        let mut net = Net::default();
        for number in 0..ROUNDS {
            for peer in 0..count {
                let frame = node.frame(peer, number);
                outbound.packet(&node.view, node.now, &frame, &mut net);
                if outbound.is_full() {
                    outbound.flush(&mut net);
                }
            }
        }
        outbound.flush(&mut net);
        // 64 packets are enough for one.
        let most = (ROUNDS as usize * count).div_ceil(64);
        assert!(net.calls <= most, "{} calls for {count} peers", net.calls);
        let mut got: BTreeMap<usize, Vec<u32>> = BTreeMap::new();
        for (to, datagram) in &net.sent {
            let (peer, number) = node.open(*to, datagram);
            got.entry(peer).or_default().push(number);
        }
        let expected = (0..count).map(|peer| (peer, (0..ROUNDS).collect()));
        assert_eq!(got, expected.collect());
        assert_eq!(drops.total(), 0);
    }
}

#[test]
fn mixed_packets_leave_sorted_by_peer() {
    const PEERS: usize = 10;
    const EACH: u32 = 6;
    let node = ManyPeers::new(PEERS);
    let drops = Arc::new(Drops::new());
    let mut outbound = Outbound::new(Arc::clone(&drops));
    let mut net = Net::default();
    for number in 0..EACH {
        for peer in 0..PEERS {
            let frame = node.frame(peer, number);
            outbound.packet(&node.view, node.now, &frame, &mut net);
        }
    }
    outbound.flush(&mut net);
    assert_eq!((net.calls, net.runs), (1, vec![EACH as usize; PEERS]));
    let opened = net.sent.iter().map(|(to, d)| node.open(*to, d));
    let expected = (0..PEERS).flat_map(|peer| (0..EACH).map(move |number| (peer, number)));
    assert_eq!(opened.collect::<Vec<_>>(), expected.collect::<Vec<_>>());
    assert_eq!(drops.total(), 0);
}

#[test]
fn last_batch_of_the_buffer_grows_and_others_keep_their_length() {
    let node = ManyPeers::new(2);
    let mut outbound = Outbound::new(Arc::new(Drops::new()));
    let mut net = Net::default();
    // Space for 16 is reserved; beyond that, the other peer's packet is in the way.
    let plan = [(0, 20), (1, 1), (0, 10), (1, 20)];
    let mut number = [0; 2];
    for (peer, count) in plan {
        for _ in 0..count {
            let frame = node.frame(peer, number[peer]);
            number[peer] += 1;
            outbound.packet(&node.view, node.now, &frame, &mut net);
        }
    }
    outbound.flush(&mut net);
    let mut got: BTreeMap<usize, Vec<u32>> = BTreeMap::new();
    for (to, datagram) in &net.sent {
        let (peer, number) = node.open(*to, datagram);
        got.entry(peer).or_default().push(number);
    }
    let expected = number.iter().enumerate();
    let expected = expected.map(|(peer, count)| (peer, (0..*count).collect()));
    assert_eq!(got, expected.collect());
    assert_eq!(net.calls, 1);
    assert!(net.runs.len() <= 5, "{:?}", net.runs);
}

#[test]
fn a_batch_from_many_peers_keeps_each_flow_in_order() {
    for count in [1, 10, 1_000] {
        let node = ManyPeers::new(count);
        let (mut inbound, drops) = inbound();
        let mut host = Host::default();
        for number in 0..ROUNDS {
            for peer in 0..count {
                let mut datagram = node.datagram(peer, number);
                let len = datagram.len();
                let from = Source::Udp(outer(peer));
                inbound.datagrams(&node.view, node.now, from, &mut datagram, len, &mut host);
            }
        }
        inbound.flush(&mut host);
        let expected = (0..count).map(|peer| (inner(peer), (0..ROUNDS).collect()));
        assert_eq!(numbers(&host.frames), expected.collect());
        assert_eq!((host.heard.len(), host.confirmed), (count, count));
        assert_eq!(drops.total(), 0);
        for peer in node.view.peers.iter().flatten() {
            assert_eq!(peer.counters.traffic().rx_packets, u64::from(ROUNDS));
        }
    }
}

#[test]
fn a_flood_to_peers_without_sessions_costs_others_nothing() {
    let node = ManyPeers::new(400);
    // The first 40 are being flooded, the next 360 get a packet each, at
    // whatever moment; none has a session yet.
    let drops = Arc::new(Drops::new());
    let mut outbound = Outbound::new(Arc::clone(&drops));
    let mut net = Net::default();
    let waiting = node.without_session(|_| true);
    for number in 0..2_000 {
        for peer in 0..40 {
            // As long as it gets, so that bytes are the limit.
            let mut frame = node.frame(peer, number);
            let long = 40_000_u16;
            frame.resize(HEADER + usize::from(long), 0);
            frame[HEADER + 2..HEADER + 4].copy_from_slice(&long.to_be_bytes());
            outbound.packet(&waiting, node.now, &frame, &mut net);
        }
        if let Some(peer) = (40..400)
            .nth(number as usize / 5)
            .filter(|_| number % 5 == 0)
        {
            let frame = node.frame(peer, number);
            outbound.packet(&waiting, node.now, &frame, &mut net);
        }
    }
    // Each was asked for once, the flooded ones not more often.
    assert_eq!(net.wanted.len(), 400);
    assert!(drops.get(DropReason::StagingFull) > 0);
    let view = node.without_session(|peer| peer < 40);
    outbound.on_view_change(&view, node.now, &mut net);
    outbound.flush(&mut net);
    let got: Vec<usize> = net.sent.iter().map(|(to, d)| node.open(*to, d).0).collect();
    assert_eq!(got, (40..400).collect::<Vec<_>>());
    // And a peer with a session does not wait behind those without.
    let frame = node.frame(399, 7);
    outbound.packet(&view, node.now, &frame, &mut net);
    outbound.flush(&mut net);
    let (to, datagram) = net.sent.last().unwrap();
    assert_eq!(node.open(*to, datagram), (399, 7));
}

#[test]
fn control_messages_pass_a_flood_of_data_and_noise_ends_in_it() {
    let node = ManyPeers::new(2);
    let (mut inbound, drops) = inbound();
    let mut host = Host::default();
    let disco = |n: u8| [&b"TS\xf0\x9f\x92\xac"[..], &[n; 60]].concat();
    let handshake = |n: u8| {
        let mut bytes = vec![n; 148];
        bytes[..4].copy_from_slice(&[1, 0, 0, 0]);
        bytes
    };
    let mut sent = Vec::new();
    for n in 0..100 {
        // A peer floods, another host sends noise, and forgeries name our session.
        for number in 0..50 {
            let mut datagram = node.datagram(0, n * 50 + number);
            let len = datagram.len();
            let from = Source::Udp(outer(0));
            inbound.datagrams(&node.view, node.now, from, &mut datagram, len, &mut host);
            let mut noise = vec![0xcc; 1_200];
            let unknown = Source::Udp(outer(77));
            inbound.datagrams(&node.view, node.now, unknown, &mut noise, 1_200, &mut host);
            noise[..8].copy_from_slice(&[4, 0, 0, 0, 0xe8, 3, 0, 0]);
            inbound.datagrams(&node.view, node.now, unknown, &mut noise, 1_200, &mut host);
        }
        for mut message in [disco(n as u8), handshake(n as u8)] {
            sent.push(message.clone());
            let len = message.len();
            let from = Source::Udp(outer(1));
            inbound.datagrams(&node.view, node.now, from, &mut message, len, &mut host);
        }
        // Handed over at once, not when the data is through.
        assert_eq!(host.control, sent);
    }
    inbound.flush(&mut host);
    assert_eq!(
        numbers(&host.frames)[&inner(0)],
        (0..5_000).collect::<Vec<_>>()
    );
    assert_eq!(drops.get(DropReason::Unrecognised), 5_000);
    assert_eq!(drops.get(DropReason::Forged), 5_000);
    // Noise from other addresses does not change a peer's source address.
    assert_eq!(host.heard, [index(0)]);
}

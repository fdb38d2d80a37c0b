//! Packets through the real packet threads of two nodes. Their devices are in memory,
//! their sockets are on the loopback interface.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;
use warren_control_types::{FilterRule, NetPortRange, PortRange};
use warren_dataplane::{
    Clients, DropReason, Intercepts, Match, PeerCounters, PeerView, RouteTable, ServiceId,
    SessionView, TunWrite, VNET_HDR_LEN, View,
};
use warren_filter::{CapabilityHolders, Filter, FlowTable, LocalAddresses, LocalSet};
use warren_host::device::Offloads;
use warren_host::device::memory::{MemoryHost, MemoryOptions, pair};
use warren_host::poll::{Watch, wait};
use warren_host::udp::{UdpOptions, bind_pair};
use warren_host::wake::Waker;
use warren_keys::noise::MessageKey;
use warren_keys::{DiscoPublic, NodePublic};
use warren_node_types::{Destination, RegionId, SearchSocket, SocketOrder};
use warren_packet_threads::{
    Config, EngineSink, OutCommand, PacketThreads, RelayFeed, RelayPorts, RelayedPackets,
    relay_queue,
};
use warren_testkit::FixedEntropy;
use warren_tunnel::{PeerIndex, Role, Session, Source};
use warren_wire::ip::{IpPacket, Protocol, udp};

const PEER: PeerIndex = PeerIndex(0);
/// Longest wait for something that must happen.
const LIMIT: Duration = Duration::from_secs(30);

/// The tailnet addresses of node `i`.
fn addresses(i: usize) -> [IpAddr; 2] {
    [
        format!("100.64.0.{}", i + 1).parse().unwrap(),
        format!("fd7a:115c:a1e0::{}", i + 1).parse().unwrap(),
    ]
}

fn key(i: usize) -> NodePublic {
    NodePublic::from_bytes([i as u8 + 1; 32])
}

/// A report of the threads of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Report {
    Control(Source, Vec<u8>),
    Search(SearchSocket, SocketAddr, Vec<u8>),
    Confirmed(u32),
    ReceivedFrom(Source),
    NeedSession(PeerIndex),
    Pong([u8; 8]),
    Disco(DiscoPublic),
    Unconnected(RegionId, NodePublic, Vec<u8>),
    Deliver(ServiceId, Vec<u8>),
}

struct Reports {
    all: Mutex<Vec<Report>>,
    waker: Waker,
}

impl Reports {
    fn push(&self, report: Report) -> bool {
        self.all.lock().unwrap().push(report);
        self.waker.wake();
        true
    }

    /// Waits for a report that `fits`, and removes all up to it.
    fn expect<T>(&self, fits: impl Fn(&Report) -> Option<T>) -> T {
        let deadline = Instant::now() + LIMIT;
        loop {
            self.waker.clear();
            let mut all = self.all.lock().unwrap();
            if let Some((at, found)) = all
                .iter()
                .enumerate()
                .find_map(|(at, report)| Some((at, fits(report)?)))
            {
                all.drain(..=at);
                return found;
            }
            drop(all);
            wait_for(&self.waker, deadline);
        }
    }
}

impl EngineSink for Reports {
    fn control(&self, from: Source, datagram: &[u8]) -> bool {
        self.push(Report::Control(from, datagram.to_vec()))
    }
    fn search_datagram(&self, socket: SearchSocket, from: SocketAddr, datagram: &[u8]) {
        self.push(Report::Search(socket, from, datagram.to_vec()));
    }
    fn session_confirmed(&self, local_index: u32) {
        self.push(Report::Confirmed(local_index));
    }
    fn received_from(&self, _: PeerIndex, from: Source) {
        self.push(Report::ReceivedFrom(from));
    }
    fn need_session(&self, peer: PeerIndex) {
        self.push(Report::NeedSession(peer));
    }
    fn tsmp_pong(&self, data: [u8; 8]) {
        self.push(Report::Pong(data));
    }
    fn disco_advertised(&self, _: PeerIndex, key: DiscoPublic) {
        self.push(Report::Disco(key));
    }
    fn unconnected_relay(&self, region: RegionId, to: NodePublic, packet: &[u8]) -> bool {
        self.push(Report::Unconnected(region, to, packet.to_vec()))
    }
    fn deliver(&self, service: ServiceId, packet: &[u8]) -> bool {
        self.push(Report::Deliver(service, packet.to_vec()))
    }
}

fn wait_for(fd: &impl std::os::fd::AsFd, deadline: Instant) {
    let left = deadline.saturating_duration_since(Instant::now());
    let ready = wait(&mut [Watch::readable(fd)], Some(left)).unwrap();
    assert!(ready > 0, "nothing came in time");
}

/// A node: its device, its threads and what they report.
struct Node {
    host: MemoryHost,
    threads: PacketThreads,
    reports: Arc<Reports>,
    relays: RelayFeed,
    view: View,
}

impl Node {
    fn new(threads: usize, view: View, sockets: warren_host::udp::UdpPair) -> Self {
        let (device, host) = pair(MemoryOptions {
            queues: threads,
            capacity: 4096,
            offloads: Offloads::default(),
            mtu: 1280,
        })
        .unwrap();
        let (relays, relay_inbox) = relay_queue().unwrap();
        let reports = Arc::new(Reports {
            all: Mutex::default(),
            waker: Waker::new().unwrap(),
        });
        let config = Config {
            services: None,
            inward: threads,
            sockets,
            view: Arc::new(view.clone()),
            engine: Arc::<Reports>::clone(&reports),
            relay_ports: Arc::<RelayPorts>::default(),
            relay_inbox,
        };
        let threads = PacketThreads::over_memory(device, config).unwrap();
        Self {
            host,
            threads,
            reports,
            relays,
            view,
        }
    }

    /// The next `count` packets for the host, without virtio headers.
    fn receive(&self, count: usize) -> Vec<Vec<u8>> {
        let deadline = Instant::now() + LIMIT;
        let mut packets = Vec::new();
        loop {
            self.host
                .receive(|written| packets.push(written.frame[VNET_HDR_LEN..].to_vec()));
            if packets.len() >= count {
                return packets;
            }
            wait_for(&self.host, deadline);
        }
    }
}

/// `view` with its peer changed.
fn with_peer(mut view: View, change: impl FnOnce(&mut PeerView)) -> View {
    let mut peer = PeerView::clone(view.peers[0].as_ref().unwrap());
    change(&mut peer);
    view.peers[0] = Some(Arc::new(peer));
    view
}

/// The view of node `own`, which has the other one as its peer.
fn view(own: usize, ports: [u16; 2], session: &Arc<Session>, now: Instant) -> View {
    let other = 1 - own;
    let local = LocalSet::new(&LocalAddresses {
        addresses: &addresses(own),
        ..LocalAddresses::default()
    });
    let allow_all = FilterRule {
        src_ips: vec!["*".into()],
        dst_ports: vec![NetPortRange {
            ip: "*".into(),
            ports: PortRange::ANY,
            ..NetPortRange::default()
        }],
        ..FilterRule::default()
    };
    let (filter, problems) = Filter::compile(&[allow_all], local, &CapabilityHolders::new());
    assert!(problems.is_empty());
    let nets = addresses(other).map(ipnet::IpNet::from);
    let peer = PeerView {
        index: PEER,
        key: key(other),
        session: Some(Arc::clone(session)),
        destination: Destination::udp(SocketAddr::from(([127, 0, 0, 1], ports[other]))),
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
        peers: vec![Some(Arc::new(peer))],
        routes: Arc::new(RouteTable::from_iter(nets.map(|net| (net, PEER)))),
        sessions,
        jailed_filter: Arc::new(filter.jailed()),
        filter: Arc::new(filter),
        sources: Arc::default(),
        flows: Arc::new(FlowTable::new(&mut FixedEntropy(7))),
        addresses: addresses(own).to_vec(),
        intercepts: Arc::default(),
        tunnel_mtu: 1280,
        peer_api_port: None,
    }
}

/// Two nodes with a session and a direct path.
fn two_nodes(threads: usize) -> [Node; 2] {
    two_nodes_with(threads, |_, view| view)
}

/// As [`two_nodes`]; the view that each begins with is changed.
fn two_nodes_with(threads: usize, change: impl Fn(usize, View) -> View) -> [Node; 2] {
    let now = Instant::now();
    let (x, y) = (MessageKey::new([1; 32]), MessageKey::new([2; 32]));
    let sessions = [
        Arc::new(Session::new(Role::Initiator, 11, 22, &x, &y, now)),
        Arc::new(Session::new(Role::Responder, 22, 11, &y, &x, now)),
    ];
    let sockets = [(); 2].map(|()| bind_pair(&[0], &UdpOptions::default()).unwrap());
    let ports = [0, 1].map(|i| {
        let v4 = sockets[i].v4.as_ref().unwrap();
        v4.local_addr().port()
    });
    let mut numbers = 0..;
    sockets.map(|sockets| {
        let own = numbers.next().unwrap();
        let view = change(own, view(own, ports, &sessions[own], now));
        Node::new(threads, view, sockets)
    })
}

/// A packet of flow `flow` from node `from` to the other one.
fn packet(from: usize, flow: u16, number: u32, len: usize) -> Vec<u8> {
    let family = usize::from(flow) % 2;
    let [source, target] = [from, 1 - from].map(|i| addresses(i)[family]);
    let mut content = vec![flow as u8; len];
    content[..4].copy_from_slice(&number.to_be_bytes());
    let (source, target) = (
        SocketAddr::new(source, 4000 + flow),
        SocketAddr::new(target, 9),
    );
    udp::packet(source, target, &content).unwrap()
}

fn frame(packet: &[u8]) -> Vec<u8> {
    [&[0; VNET_HDR_LEN], packet].concat()
}

/// The flow and number of a packet.
fn flow_and_number(packet: &[u8]) -> (u16, u32) {
    let packet = IpPacket::parse(packet).unwrap();
    let content = packet.udp_payload().unwrap();
    let number = u32::from_be_bytes(*content.first_chunk().unwrap());
    (packet.src_port - 4000, number)
}

#[test]
fn packets_cross_in_both_directions_in_the_order_of_each_flow() {
    const FLOWS: u16 = 6;
    const NUMBERS: u32 = 200;
    for threads in [1, 3] {
        let nodes = two_nodes(threads);
        for (from, node) in nodes.iter().enumerate() {
            for number in 0..NUMBERS {
                for flow in 0..FLOWS {
                    let frame = frame(&packet(from, flow, number, 900));
                    assert!(node.host.send(usize::from(flow) % threads, &frame));
                }
            }
        }
        for (to, node) in nodes.iter().enumerate() {
            // Each is the packet that was sent, and the last of its flow so far.
            let mut last = BTreeMap::new();
            let mut received = 0;
            while last.len() < usize::from(FLOWS) || last.values().any(|n| *n + 1 < NUMBERS) {
                for arrived in node.receive(1) {
                    let (flow, number) = flow_and_number(&arrived);
                    assert_eq!(arrived, packet(1 - to, flow, number, 900));
                    let before = last.insert(flow, number);
                    assert!(before.is_none_or(|before| before < number), "out of order");
                    received += 1;
                }
            }
            assert_eq!(
                received,
                u32::from(FLOWS) * NUMBERS,
                "loopback loses nothing"
            );
        }
        for node in &nodes {
            assert_eq!(
                (node.threads.drops().total(), node.threads.send_failures()),
                (0, 0)
            );
        }
    }
}

#[test]
fn the_first_packet_confirms_the_session_and_its_source_is_reported() {
    let nodes = two_nodes(1);
    let address = nodes[0].threads.sockets().v4.as_ref().unwrap().local_addr();
    let source = Source::Udp(SocketAddr::from(([127, 0, 0, 1], address.port())));
    nodes[0].host.send(0, &frame(&packet(0, 0, 7, 100)));
    assert_eq!(nodes[1].receive(1), [packet(0, 0, 7, 100)]);
    let reports = &nodes[1].reports;
    reports.expect(|report| (*report == Report::Confirmed(22)).then_some(()));
    reports.expect(|report| (*report == Report::ReceivedFrom(source)).then_some(()));
}

#[test]
fn packets_wait_for_a_session_and_leave_when_the_view_brings_one() {
    let nodes = two_nodes_with(2, |own, view| match own {
        0 => with_peer(view, |peer| peer.session = None),
        _ => view,
    });
    for number in 0..3 {
        nodes[0].host.send(1, &frame(&packet(0, 1, number, 100)));
    }
    let needs = |report: &Report| (*report == Report::NeedSession(PEER)).then_some(());
    nodes[0].reports.expect(needs);
    let session = nodes[0].view.sessions[&11].session.clone();
    let view = with_peer(nodes[0].view.clone(), |peer| peer.session = Some(session));
    nodes[0].threads.publish(Arc::new(view));
    let arrived = nodes[1].receive(3);
    let numbers = arrived.iter().map(|packet| flow_and_number(packet).1);
    assert_eq!(numbers.collect::<Vec<_>>(), [0, 1, 2]);
}

#[test]
fn packets_pass_through_relays() {
    let region = RegionId(9);
    let nodes = two_nodes_with(2, |_, view| {
        with_peer(view, |peer| peer.destination = Destination::derp(region))
    });
    nodes[0].host.send(0, &frame(&packet(0, 0, 1, 100)));
    let (to, datagram) = nodes[0].reports.expect(|report| match report {
        Report::Unconnected(in_region, to, packet) if *in_region == region => {
            Some((*to, packet.clone()))
        }
        _ => None,
    });
    assert_eq!(to, key(1));
    let mut batch = RelayedPackets::new(region);
    batch.push(key(0), &datagram, datagram.len());
    let runtime = tokio::runtime::Builder::new_multi_thread().build().unwrap();
    assert!(runtime.block_on(nodes[1].relays.send(batch)));
    assert_eq!(nodes[1].receive(1), [packet(0, 0, 1, 100)]);
    let source = Source::Derp {
        region,
        key: key(0),
    };
    let reports = &nodes[1].reports;
    reports.expect(|report| (*report == Report::ReceivedFrom(source)).then_some(()));
}

#[test]
fn datagrams_without_tunnel_data_are_reported_to_the_engine() {
    let nodes = two_nodes(2);
    let address = nodes[1].threads.sockets().v4.as_ref().unwrap().local_addr();
    let to = SocketAddr::from(([127, 0, 0, 1], address.port()));
    let request = warren_wire::stun::Request {
        transaction: warren_wire::stun::TransactionId([7; 12]),
    };
    let request = request.emit().to_vec();
    nodes[0].threads.send_udp(to, b"neither STUN nor disco");
    nodes[0].threads.send_udp(to, &request);
    let datagram = nodes[1].reports.expect(|report| match report {
        Report::Control(Source::Udp(_), datagram) => Some(datagram.clone()),
        _ => None,
    });
    assert_eq!(datagram, request);
    assert_eq!(nodes[1].threads.drops().get(DropReason::Unrecognised), 1);
}

#[test]
fn services_of_the_process_get_packets_of_the_host_and_of_peers() {
    const SERVICE: ServiceId = ServiceId(5);
    let mut intercepts = Intercepts::new();
    let matches = Match::Port(Protocol::UDP, 9);
    intercepts.insert(addresses(1)[0], matches, Clients::AdmittedPeers, SERVICE);
    intercepts.insert(addresses(1)[1], matches, Clients::Host, SERVICE);
    let intercepts = Arc::new(intercepts);
    let nodes = two_nodes_with(1, |_, mut view| {
        view.intercepts = Arc::clone(&intercepts);
        view
    });
    // Flow 0 has IPv4, flow 1 IPv6.
    let sent = [0, 1].map(|flow| packet(0, flow, 1, 100));
    for packet in &sent {
        nodes[0].host.send(0, &frame(packet));
    }
    let delivered = [1, 0].map(|node: usize| {
        nodes[node].reports.expect(|report| match report {
            Report::Deliver(service, packet) => Some((*service, packet.clone())),
            _ => None,
        })
    });
    assert_eq!(delivered, sent.map(|packet| (SERVICE, packet)));
}

#[test]
fn packets_of_the_node_itself_and_answers_are_written_to_the_device() {
    let nodes = two_nodes(2);
    let own = packet(0, 0, 4, 64);
    nodes[0]
        .threads
        .order(OutCommand::Inject(PEER, own.clone()));
    assert_eq!(nodes[1].receive(1), std::slice::from_ref(&own));
    let writer = nodes[1].threads.frame_writer();
    assert_eq!(writer.write(&frame(&own)), TunWrite::Taken);
    assert_eq!(nodes[1].receive(1), [own]);
    assert_eq!(writer.write(&[0; 3]), TunWrite::Refused);
    assert_eq!(nodes[1].threads.send_failures(), 1);
}

/// Node 1 searches: node 0 answers one of its sockets, which then carries the packets of
/// both directions; the others are closed.
#[test]
fn the_socket_that_won_a_port_search_carries_the_packets() {
    let mut nodes = two_nodes(2);
    let address = nodes[0].threads.sockets().v4.as_ref().unwrap().local_addr();
    let remote = SocketAddr::from(([127, 0, 0, 1], address.port()));
    let options = UdpOptions::default();
    let order = |node: &mut Node, order| node.threads.order_sockets(order, &options);
    order(
        &mut nodes[1],
        SocketOrder::Open {
            search: 5,
            count: 8,
        },
    );
    let socket = SearchSocket {
        search: 5,
        number: 3,
    };
    let request = |number: u8| {
        let transaction = warren_wire::stun::TransactionId([number; 12]);
        let request = warren_wire::stun::Request { transaction };
        request.emit().to_vec()
    };
    let probe = SocketOrder::Send {
        socket,
        to: remote,
        packet: request(1),
    };
    order(&mut nodes[1], probe);
    let from = nodes[0].reports.expect(|report| match report {
        Report::Control(Source::Udp(from), datagram) if *datagram == request(1) => Some(*from),
        _ => None,
    });
    nodes[0].threads.send_udp(from, &request(2));
    let won = nodes[1].reports.expect(|report| match report {
        Report::Search(won, from, datagram) if *datagram == request(2) => Some((*won, *from)),
        _ => None,
    });
    assert_eq!(won, (socket, remote));

    order(&mut nodes[1], SocketOrder::Keep { socket, remote });
    order(&mut nodes[1], SocketOrder::Close { search: 5 });
    assert_eq!(nodes[1].threads.kept_sockets(), 1);
    let view = with_peer(nodes[0].view.clone(), |peer| {
        peer.destination = Destination::udp(from);
    });
    nodes[0].threads.publish(Arc::new(view));
    for (sender, receiver) in [(0, 1), (1, 0), (0, 1)] {
        for number in 0..50 {
            let frame = frame(&packet(sender, 0, number, 900));
            assert!(nodes[sender].host.send(0, &frame));
        }
        let mut numbers = Vec::new();
        while numbers.len() < 50 {
            let arrived = nodes[receiver].receive(1);
            numbers.extend(arrived.iter().map(|packet| flow_and_number(packet).1));
        }
        assert!(numbers.is_sorted());
    }
    // Its packets left from there, not from its first socket.
    let source = Source::Udp(from);
    let reports = &nodes[0].reports;
    reports.expect(|report| (*report == Report::ReceivedFrom(source)).then_some(()));

    order(&mut nodes[1], SocketOrder::Release { remote });
    assert_eq!(nodes[1].threads.kept_sockets(), 0);
    nodes[1].threads.send_udp(remote, &request(3));
    let first = nodes[0].reports.expect(|report| match report {
        Report::Control(Source::Udp(from), datagram) if *datagram == request(3) => Some(*from),
        _ => None,
    });
    let own = nodes[1].threads.sockets().v4.as_ref().unwrap().local_addr();
    assert_eq!(first.port(), own.port());
}

//! Bad input and its bounds.
#![allow(clippy::unwrap_used)]

mod world;

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use warren_netstack::{Checksum, ConnectionError, Event, Limits, Netstack};
use warren_wire::ip::{IpPacket, TcpFlags, icmp, tcp, udp};
use world::{HEADROOM, Network, PORT, World};

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A SYN from `from`, made by a stack of its own.
fn syn(from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let now = Instant::now();
    let entropy = Box::new(warren_testkit::SeededEntropy(from.port().into()));
    let mut stack = Netstack::new(now, 1280, 0, Limits::default(), entropy);
    stack.connect(now, from.ip(), to).unwrap();
    let mut packet = stack.poll_transmit(now).unwrap().frame;
    // The port that the test wants.
    packet[20..22].copy_from_slice(&from.port().to_be_bytes());
    packet
}

fn flags_of(packet: &[u8]) -> u8 {
    IpPacket::parse(packet).unwrap().tcp_flags.0
}

fn sent(stack: &mut Netstack, now: Instant) -> Vec<Vec<u8>> {
    std::iter::from_fn(|| stack.poll_transmit(now))
        .map(|sent| sent.frame[HEADROOM..].to_vec())
        .collect()
}

fn small() -> Limits {
    Limits {
        connections: 4,
        connections_per_source: 3,
        half_open: 8,
        half_open_per_source: 3,
        flows: 4,
        flows_per_source: 3,
        datagrams_per_flow: 2,
        ..Limits::default()
    }
}

#[test]
fn a_flood_of_syns_is_bounded_and_leaves_others_their_place() {
    let mut world = World::new(1, false, Network::default(), small());
    let (now, server) = (world.now, world.server());
    let stack = &mut world.stacks[1];
    for port in 1..=100 {
        let from = SocketAddr::new(address("100.64.9.9"), port);
        stack.receive(now, &syn(from, server), Checksum::Verified);
    }
    assert_eq!(stack.half_open(), 3, "of one source");
    for host in 1..=100 {
        let from = SocketAddr::new(IpAddr::from([100, 64, 8, host]), 1000);
        stack.receive(now, &syn(from, server), Checksum::Verified);
    }
    assert_eq!(stack.half_open(), 8, "of all");
    assert!(
        sent(stack, now).is_empty(),
        "no answer before the application decides"
    );
    assert_eq!(stack.counters().half_open_dropped, 97 + 95);
    // A newcomer gets a place, and those without a decision end.
    let from = SocketAddr::new(address("100.64.7.7"), 1000);
    stack.receive(now, &syn(from, server), Checksum::Verified);
    let events = std::iter::from_fn(|| stack.poll_event());
    let newest = events.last().unwrap();
    let Event::Incoming { id, tuple } = newest else {
        panic!("{newest:?}");
    };
    assert_eq!(tuple.remote, from);
    stack.accept(now, id).unwrap();
    let answers = sent(stack, now);
    assert_eq!(answers.len(), 1);
    assert_eq!(flags_of(&answers[0]), TcpFlags::SYN | TcpFlags::ACK);
    stack.handle_timeout(now + Duration::from_secs(31));
    assert_eq!(stack.half_open(), 0);
}

#[test]
fn a_syn_that_is_repeated_waits_once() {
    let mut world = World::new(1, false, Network::default(), small());
    let (now, server) = (world.now, world.server());
    let packet = syn(SocketAddr::new(address("100.64.9.9"), 5), server);
    for _ in 0..5 {
        world.stacks[1].receive(now, &packet, Checksum::Verified);
    }
    assert_eq!(world.stacks[1].half_open(), 1);
}

#[test]
fn connections_are_bounded_in_all_and_for_each_source() {
    let mut world = World::new(1, false, Network::default(), small());
    let (now, server) = (world.now, world.server());
    let stack = &mut world.stacks[1];
    let mut accepted = 0;
    for (host, ports) in [(1, 5), (2, 5)] {
        for port in 1..=ports {
            let from = SocketAddr::new(IpAddr::from([100, 64, 8, host]), port);
            stack.receive(now, &syn(from, server), Checksum::Verified);
            while let Some(event) = stack.poll_event() {
                if let Event::Incoming { id, .. } = event {
                    accepted += u32::from(stack.accept(now, id).is_ok());
                }
            }
        }
        assert_eq!(accepted, if host == 1 { 3 } else { 4 });
    }
    assert_eq!(stack.connections(), 4);
    let resets = sent(stack, now);
    let resets = resets
        .iter()
        .filter(|packet| flags_of(packet) & TcpFlags::RST != 0);
    assert_eq!(resets.count(), 6);
    // Those that never finish the handshake go.
    stack.handle_timeout(now + Duration::from_secs(31));
    while stack.poll_event().is_some() {}
    assert_eq!(stack.counters().connections_timed_out, 4);
}

#[test]
fn a_refused_connection_fails_at_once_on_the_other_side() {
    let mut world = World::new(1, true, Network::default(), small());
    let (local, server) = (world.addresses[0], world.server());
    let client = world.stacks[0].connect(world.now, local, server).unwrap();
    while world.stacks[0].is_open(client) == Ok(false) {
        assert!(world.step());
        while let Some(event) = world.stacks[1].poll_event() {
            if let Event::Incoming { id, .. } = event {
                world.stacks[1].refuse(id);
            }
        }
    }
    assert_eq!(
        world.stacks[0].is_open(client),
        Err(ConnectionError::Refused)
    );
}

#[test]
fn a_peer_that_is_silent_is_given_up() {
    // Not a single packet arrives after the handshake.
    let mut world = World::new(3, false, Network::default(), Limits::default());
    let (client, server) = world.open();
    world.network.loss = 1000;
    let start = world.now;
    world.stacks[0]
        .write(world.now, client, b"question")
        .unwrap();
    world.stacks[1].shut_down(world.now, server);
    while world.stacks[0].is_open(client) == Ok(true) || world.stacks[1].is_open(server) == Ok(true)
    {
        assert!(world.step());
    }
    assert!(world.now - start <= Duration::from_secs(16 * 60));
    let mut buffer = [0; 8];
    let read = world.stacks[0].read(world.now, client, &mut buffer);
    assert_eq!(read, Err(ConnectionError::TimedOut));
}

#[test]
fn a_released_connection_does_not_wait_for_ever_for_the_end_of_the_other_side() {
    let mut world = World::new(3, false, Network::default(), Limits::default());
    let (client, _server) = world.open();
    world.stacks[0].release(world.now, client);
    while world.stacks[0].connections() > 0 {
        assert!(world.step());
    }
    assert_eq!(world.stacks[0].counters().connections_timed_out, 1);
}

#[test]
fn data_for_a_released_connection_is_answered_with_a_reset() {
    let mut world = World::new(3, false, Network::default(), Limits::default());
    let (client, server) = world.open();
    world.stacks[0].release(world.now, client);
    while !matches!(
        world.stacks[1].read(world.now, server, &mut [0; 8]),
        Ok(Some(0))
    ) {
        assert!(world.step());
    }
    world.stacks[1]
        .write(world.now, server, b"too late")
        .unwrap();
    while world.stacks[1].is_open(server) == Ok(true) {
        assert!(world.step());
    }
    assert_eq!(world.stacks[1].is_open(server), Err(ConnectionError::Reset));
    assert_eq!(world.stacks[0].connections(), 0);
}

#[test]
fn unread_data_outlives_the_end_of_the_connection() {
    let mut world = World::new(3, false, Network::default(), Limits::default());
    let (client, server) = world.open();
    world.stacks[0]
        .write(world.now, client, b"last words")
        .unwrap();
    world.stacks[1].shut_down(world.now, server);
    world.stacks[0].release(world.now, client);
    let later = world.now + Duration::from_secs(120);
    while world.now < later && world.step() {}
    let mut buffer = [0; 32];
    let read = world.stacks[1].read(world.now, server, &mut buffer);
    assert_eq!(read, Ok(Some(10)));
    assert_eq!(&buffer[..10], b"last words");
    let end = world.stacks[1].read(world.now, server, &mut buffer);
    assert_eq!(end, Ok(Some(0)));
}

#[test]
fn a_last_ack_that_was_lost_is_sent_again() {
    let mut world = World::new(3, false, Network::default(), Limits::default());
    let (client, server) = world.open();
    world.stacks[0].release(world.now, client);
    while !matches!(
        world.stacks[1].read(world.now, server, &mut [0; 8]),
        Ok(Some(0))
    ) {
        assert!(world.step());
    }
    world.stacks[1].release(world.now, server);
    world.send_all();
    // The FIN arrives; its ACK is lost.
    while world.stacks[0].connections() > 0 {
        assert!(world.step());
        let now = world.now;
        drop(sent(&mut world.stacks[0], now));
    }
    assert_eq!(world.stacks[1].connections(), 1, "in LAST-ACK");
    while world.stacks[1].connections() > 0 {
        assert!(world.step());
    }
    assert_eq!(world.stacks[1].counters().connections_timed_out, 0);
    assert_eq!(world.stacks[0].counters().resets, 0);
}

#[test]
fn a_segment_without_a_connection_is_reset_and_a_reset_is_not_answered() {
    let mut world = World::new(1, false, Network::default(), small());
    let (now, server) = (world.now, world.server());
    let mut stray = syn(SocketAddr::new(address("100.64.9.9"), 5), server);
    stray[33] = TcpFlags::ACK;
    world.stacks[1].receive(now, &stray, Checksum::Verified);
    let answers = sent(&mut world.stacks[1], now);
    assert_eq!(answers.len(), 1);
    assert_eq!(flags_of(&answers[0]), TcpFlags::RST);
    world.stacks[1].receive(now, &answers[0], Checksum::Verified);
    assert!(sent(&mut world.stacks[1], now).is_empty());
    let unfinished = tcp::reset_for(&IpPacket::parse(&stray).unwrap());
    assert!(unfinished.is_some());
}

#[test]
fn a_wrong_checksum_is_noticed_unless_someone_verified_it() {
    let mut world = World::new(1, false, Network::default(), small());
    let (now, server) = (world.now, world.server());
    let mut packet = syn(SocketAddr::new(address("100.64.9.9"), 5), server);
    packet[36] ^= 1;
    world.stacks[1].receive(now, &packet, Checksum::Complete);
    assert_eq!(world.stacks[1].half_open(), 0);
    assert_eq!(world.stacks[1].counters().malformed, 1);
    world.stacks[1].receive(now, &packet, Checksum::Verified);
    assert_eq!(world.stacks[1].half_open(), 1);
}

#[test]
fn datagrams_arrive_in_flows_with_bounds() {
    let mut world = World::new(1, false, Network::default(), small());
    let (now, server) = (world.now, world.server());
    let stack = &mut world.stacks[1];
    let datagram = |host, port, payload: &[u8]| {
        udp::packet(
            SocketAddr::new(IpAddr::from([100, 64, 8, host]), port),
            server,
            payload,
        )
        .unwrap()
    };
    for text in ["one", "two", "three"] {
        stack.receive(now, &datagram(1, 7, text.as_bytes()), Checksum::Complete);
    }
    let Some(Event::IncomingFlow { id, tuple }) = stack.poll_event() else {
        panic!("no flow");
    };
    assert_eq!(tuple.local, server);
    assert_eq!(stack.poll_event(), None, "reported once");
    assert_eq!(stack.read_datagram(id).unwrap(), b"one");
    assert_eq!(stack.read_datagram(id).unwrap(), b"two");
    assert_eq!(stack.read_datagram(id), None);
    assert_eq!(stack.counters().datagrams_dropped, 1);
    assert!(stack.send_datagram(now, id, b"answer"));
    assert!(
        !stack.send_datagram(now, id, &[0; 1300]),
        "longer than the MTU"
    );
    let answers = sent(stack, now);
    let answer = IpPacket::parse(&answers[0]).unwrap();
    assert_eq!(answer.udp_payload().unwrap(), b"answer");
    assert_eq!((answer.src_port, answer.dst_port), (PORT, 7));
    // One source, then all.
    for port in 8..20 {
        stack.receive(now, &datagram(1, port, b"x"), Checksum::Complete);
    }
    assert_eq!(stack.flows(), 3);
    for host in 2..20 {
        stack.receive(now, &datagram(host, 7, b"x"), Checksum::Complete);
    }
    assert_eq!(stack.flows(), 4);
    stack.handle_timeout(now + Duration::from_secs(121));
    assert_eq!(stack.flows(), 0);
}

#[test]
fn our_own_echo_requests_are_answered_and_others_reported() {
    let mut world = World::new(1, false, Network::default(), small());
    let (now, to) = (world.now, world.addresses[1]);
    let stack = &mut world.stacks[1];
    let echo = icmp::Echo {
        ident: 7,
        sequence: 1,
        data: b"payload",
    };
    let ours = icmp::echo_request(address("100.64.9.9"), to, echo).unwrap();
    stack.receive(now, &ours, Checksum::Complete);
    let answers = sent(stack, now);
    let answer = IpPacket::parse(&answers[0]).unwrap();
    assert!(matches!(answer.icmp(), Some(icmp::Icmp::EchoReply(_))));
    assert_eq!(answer.dst, address("100.64.9.9"));
    let others = icmp::echo_request(address("100.64.9.9"), address("10.0.0.1"), echo).unwrap();
    stack.receive(now, &others, Checksum::Complete);
    assert!(sent(stack, now).is_empty());
    let Some(Event::Echo(request)) = stack.poll_event() else {
        panic!("no event");
    };
    stack.answer_echo(request);
    let answers = sent(stack, now);
    assert_eq!(
        IpPacket::parse(&answers[0]).unwrap().src,
        address("10.0.0.1")
    );
}

#[test]
fn addresses_that_name_no_single_host_are_refused() {
    let mut world = World::new(1, false, Network::default(), small());
    let now = world.now;
    for (from, to) in [
        ("127.0.0.1", "100.64.0.2"),
        ("100.64.9.9", "127.0.0.1"),
        ("0.0.0.0", "100.64.0.2"),
        ("224.0.0.1", "100.64.0.2"),
        ("100.64.9.9", "255.255.255.255"),
    ] {
        let from = SocketAddr::new(address(from), 5);
        let packet = udp::packet(from, SocketAddr::new(address(to), 53), b"x");
        world.stacks[1].receive(now, &packet.unwrap(), Checksum::Verified);
    }
    assert_eq!(world.stacks[1].flows(), 0);
    assert_eq!(world.stacks[1].counters().malformed, 5);
    let local = world.addresses[0];
    for to in ["127.0.0.1:80", "0.0.0.0:80", "100.64.0.2:0", "[fd7a::1]:80"] {
        let to: SocketAddr = to.parse().unwrap();
        assert!(world.stacks[0].connect(now, local, to).is_err(), "{to}");
    }
}

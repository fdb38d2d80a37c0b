//! Streams through relays: two of ours put many datagrams into one packet of the
//! relay, ours or another one; packets for other implementations go one by one.
//! Every byte arrives either way.
#![allow(clippy::unwrap_used)]

use std::io::{Read as _, Write as _};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};

use warren_lab::scenario::{Tailnet, address, installed, lab};
use warren_lab::{Kind, Lab, Node, Place, RelayKind};

const PORT: u16 = 7000;
/// Bytes sent in each direction.
const STREAM: usize = 16 << 20;
/// Payload of a packet in the tunnel: its MTU less IPv4 and TCP headers.
const SEGMENT: usize = 1228;

/// Different bytes for each direction.
fn stream(salt: u32) -> Vec<u8> {
    let numbers = (0..STREAM as u32 / 4).map(|i| i.wrapping_mul(2_654_435_761) ^ salt);
    numbers.flat_map(u32::to_be_bytes).collect()
}

/// Sends one stream and takes the other.
fn exchange(mut connection: TcpStream, send: u32, expect: u32) {
    let mut writing = connection.try_clone().unwrap();
    let mut received = Vec::with_capacity(STREAM);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            writing.write_all(&stream(send)).unwrap();
            writing.shutdown(std::net::Shutdown::Write).unwrap();
        });
        connection.read_to_end(&mut received).unwrap();
    });
    assert!(
        received == stream(expect),
        "the stream is not what was sent"
    );
}

fn both_ways(from: &Node, to: &Node) {
    let bind = || TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT)).unwrap();
    let listener = to.host().inside(bind);
    std::thread::scope(|scope| {
        scope.spawn(|| exchange(listener.accept().unwrap().0, 1, 2));
        let at = SocketAddr::new(address(to, false), PORT);
        let connection = from.host().inside(move || TcpStream::connect(at).unwrap());
        exchange(connection, 2, 1);
    });
}

/// Two nodes that only reach each other through that kind of relay.
fn pair(relay: RelayKind, kinds: [Kind; 2]) -> Option<(Lab, Tailnet, [Node; 2])> {
    let mut lab = lab()?;
    kinds.into_iter().try_for_each(installed)?;
    let tailnet = Tailnet::new(&mut lab, relay)?;
    let nodes = [("alice", kinds[0]), ("bob", kinds[1])]
        .map(|(name, kind)| tailnet.join(&lab.host(name, Place::NoUdp).unwrap(), kind));
    warren_lab::scenario::traffic_flows(&nodes[0], &nodes[1]);
    Some((lab, tailnet, nodes))
}

/// Packets that our relay took while the streams went through it, for each
/// datagram that the streams need at least.
fn packets_per_datagram(kinds: [Kind; 2]) -> Option<f64> {
    let (_lab, tailnet, [alice, bob]) = pair(RelayKind::Warren, kinds)?;
    let taken = || -> u64 {
        let relays = tailnet.relays.iter();
        relays
            .map(|relay| relay.counter("packets_total").unwrap())
            .sum()
    };
    let before = taken();
    both_ways(&alice, &bob);
    Some((taken() - before) as f64 / (2 * STREAM / SEGMENT) as f64)
}

#[test]
fn ours_and_ours_over_our_relay() {
    if let Some(packets) = packets_per_datagram([Kind::Warren; 2]) {
        assert!(packets < 0.6, "{packets} packets for each datagram");
    }
}

#[test]
fn ours_and_a_real_client_over_our_relay() {
    if let Some(packets) = packets_per_datagram([Kind::Warren, Kind::Tailscale]) {
        assert!(packets >= 1.0, "{packets} packets for each datagram");
    }
}

#[test]
fn over_the_real_relay() {
    for second in [Kind::Warren, Kind::Tailscale] {
        let Some((_lab, _tailnet, [alice, bob])) = pair(RelayKind::Derper, [Kind::Warren, second])
        else {
            return;
        };
        both_ways(&alice, &bob);
    }
}

//! Several threads for each direction: every flow stays in order, nothing is
//! lost, and the work is really shared.
//!
//! Machines with few processors get one thread each way by themselves, so the
//! number is given here.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use warren_lab::probe::{ECHO_PORT, Echo};
use warren_lab::scenario::{Tailnet, address, installed, lab};
use warren_lab::{Host, Kind, Lab, Node, Place, RelayKind};

/// Threads of each direction.
const THREADS: usize = 4;
/// Connections, and as many flows of datagrams, at the same time.
const FLOWS: usize = 16;
/// Bytes of each connection, in each direction.
const STREAM: usize = 1 << 20;
/// Datagrams of a flow on their way at once, and how often.
const BURST: u32 = 20;
const BURSTS: u32 = 60;
const PORT: u16 = 7000;

fn join(tailnet: &Tailnet, host: &Host) -> Node {
    let threads = THREADS.to_string();
    let environment = [("WARREN_PACKET_THREADS", threads.as_str())];
    let node = Node::start_with(host, Kind::Warren, &environment).unwrap();
    node.up(tailnet.control.url(), &tailnet.key, &[]).unwrap();
    node
}

fn pair(lab: &mut Lab) -> Option<(Tailnet, Node, Node)> {
    installed(Kind::Warren)?;
    let tailnet = Tailnet::new(lab, RelayKind::Warren)?;
    let alice = lab.host("alice", Place::Open).unwrap();
    let bob = lab.host("bob", Place::Open).unwrap();
    let (alice, bob) = (join(&tailnet, &alice), join(&tailnet, &bob));
    alice.wait_until_direct("bob").unwrap();
    Some((tailnet, alice, bob))
}

/// How often each packet thread of a daemon went to sleep so far: a thread
/// without work sleeps on.
fn sleeps(node: &mut Node) -> BTreeMap<String, u64> {
    let tasks = format!("/proc/{}/task", node.daemon().pid());
    let of = |task: std::io::Result<std::fs::DirEntry>| {
        let folder = task.unwrap().path();
        let read = |file: &str| std::fs::read_to_string(folder.join(file)).unwrap();
        let status = read("status");
        let count = status
            .lines()
            .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))
            .unwrap();
        (
            read("comm").trim().to_owned(),
            count.trim().parse().unwrap(),
        )
    };
    let all = std::fs::read_dir(tasks).unwrap().map(of);
    all.filter(|(name, _)| name.starts_with("warren-out") || name.starts_with("warren-in"))
        .collect()
}

/// The changes since `before`.
fn since(node: &mut Node, before: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    let now = sleeps(node).into_iter();
    now.map(|(name, count)| {
        let before = before[&name];
        (name, count - before)
    })
    .collect()
}

/// How many threads whose names begin so slept at least so often.
fn busy(sleeps: &BTreeMap<String, u64>, direction: &str, least: u64) -> usize {
    let of = sleeps.iter();
    of.filter(|(name, count)| name.starts_with(direction) && **count >= least)
        .count()
}

/// The bytes of connection `number`: another sequence of numbers for each.
fn stream(number: usize) -> Vec<u8> {
    let numbers = (0..STREAM / 4).map(|i| (i * FLOWS + number) as u32);
    numbers.flat_map(u32::to_be_bytes).collect()
}

/// Echoes the bytes of every connection until no client connects any more.
fn serve(host: &Host) {
    let listener = host.inside(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT)).unwrap());
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            std::thread::spawn(move || {
                let mut reading = connection.unwrap();
                let mut writing = reading.try_clone().unwrap();
                // Ends with the test.
                drop(std::io::copy(&mut reading, &mut writing));
                drop(writing.shutdown(std::net::Shutdown::Write));
            });
        }
    });
}

/// Sends a stream there and takes it back.
fn converse(mut connection: TcpStream, number: usize) {
    let sent = stream(number);
    let mut received = Vec::with_capacity(sent.len());
    let mut writing = connection.try_clone().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            writing.write_all(&sent).unwrap();
            writing.shutdown(std::net::Shutdown::Write).unwrap();
        });
        connection.read_to_end(&mut received).unwrap();
    });
    assert!(received == sent, "connection {number} is not what was sent");
}

/// Sends numbered datagrams to the echo and takes what comes back, which may
/// miss some but must be in order. Gives how many came.
fn bursts(socket: &UdpSocket, bursts: u32) -> u32 {
    let (mut next, mut came, mut newest) = (0u32, 0, None);
    let mut datagram = [7; 1000];
    for _ in 0..bursts {
        for _ in 0..BURST {
            datagram[..4].copy_from_slice(&next.to_be_bytes());
            next += 1;
            socket.send(&datagram).unwrap();
        }
        while newest != Some(next - 1) {
            let mut echo = [0; 1500];
            let Ok(len) = socket.recv(&mut echo) else {
                break;
            };
            assert_eq!(len, datagram.len());
            let number = u32::from_be_bytes(echo[..4].try_into().unwrap());
            assert!(newest < Some(number), "{number} came after {newest:?}");
            newest = Some(number);
            came += 1;
        }
    }
    came
}

fn socket(host: &Host, to: IpAddr) -> UdpSocket {
    let any: IpAddr = match to {
        IpAddr::V4(_) => [0, 0, 0, 0].into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = host.inside(move || {
        let socket = UdpSocket::bind((any, 0)).unwrap();
        socket.connect((to, ECHO_PORT)).unwrap();
        socket
    });
    socket
        .set_read_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    socket
}

#[test]
fn many_flows_share_the_threads_and_each_stays_in_order() {
    let Some(mut lab) = lab() else { return };
    let Some((_tailnet, mut alice, mut bob)) = pair(&mut lab) else {
        return;
    };
    let _echo = Echo::start(bob.host()).unwrap();
    serve(bob.host());
    let before = [sleeps(&mut alice), sleeps(&mut bob)];
    let came: u32 = std::thread::scope(|scope| {
        let mut datagrams = Vec::new();
        for number in 0..FLOWS {
            let to = address(&bob, number % 2 == 1);
            let host = alice.host().clone();
            let server = SocketAddr::new(to, PORT);
            let connection = host.inside(move || TcpStream::connect(server).unwrap());
            scope.spawn(move || converse(connection, number));
            let socket = socket(&host, to);
            datagrams.push(scope.spawn(move || bursts(&socket, BURSTS)));
        }
        datagrams.into_iter().map(|flow| flow.join().unwrap()).sum()
    });
    let all = FLOWS as u32 * BURST * BURSTS;
    assert!(came > all / 2, "{came} of {all} datagrams came back");
    for (node, before) in [(&mut alice, &before[0]), (&mut bob, &before[1])] {
        let slept = since(node, before);
        assert_eq!(slept.len(), 2 * THREADS, "{slept:?}");
        // A new picture of the node wakes each thread that sends, too, but
        // not so often. Of those that receive only one is woken by anything
        // but work.
        assert!(busy(&slept, "warren-out-", 100) > 1, "{slept:?}");
        assert!(busy(&slept, "warren-in-", 10) > 1, "{slept:?}");
    }
}

#[test]
fn a_flow_alone_stays_with_one_thread() {
    let Some(mut lab) = lab() else { return };
    let Some((_tailnet, mut alice, mut bob)) = pair(&mut lab) else {
        return;
    };
    let _echo = Echo::start(bob.host()).unwrap();
    let socket = socket(alice.host(), address(&bob, false));
    let before = [sleeps(&mut alice), sleeps(&mut bob)];
    let came = (0..1_000).map(|_| single(&socket)).sum::<u32>();
    assert!(came > 900, "{came} of 1000");
    for (node, before) in [(&mut alice, &before[0]), (&mut bob, &before[1])] {
        let slept = since(node, before);
        for direction in ["warren-out-", "warren-in-"] {
            assert_eq!(busy(&slept, direction, 500), 1, "{slept:?}");
            assert_eq!(busy(&slept, direction, 100), 1, "{slept:?}");
        }
    }
}

/// One datagram there and back.
fn single(socket: &UdpSocket) -> u32 {
    socket.send(b"one").unwrap();
    u32::from(socket.recv(&mut [0; 100]).is_ok())
}

#[test]
fn a_number_that_makes_no_sense_is_said_at_the_start() {
    let Some(mut lab) = lab() else { return };
    if installed(Kind::Warren).is_none() {
        return;
    }
    let host = lab.host("alice", Place::Open).unwrap();
    let Err(error) = Node::start_with(&host, Kind::Warren, &[("WARREN_PACKET_THREADS", "many")])
    else {
        panic!("a daemon with many threads");
    };
    let error = error.to_string();
    assert!(error.contains("WARREN_PACKET_THREADS"), "{error}");
}

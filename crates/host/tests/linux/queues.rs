//! A TUN device with several queues: what the kernel does with flows, on which
//! the daemon relies when it reads with several threads.

use std::collections::{BTreeMap, BTreeSet};
use std::net::UdpSocket;

use crate::support::{ip, route_tunnel, with_tun};
use warren_host::poll::{Watch, wait};
use warren_host::tun::{MAX_FRAME_LEN, Tun, TunError, VNET_HEADER_LEN};

/// Flows, each a socket with a port of its own.
const FLOWS: u16 = 64;

/// So many queues of a TUN with 10.77.0.1 and a route to its network.
fn tunnel(queues: usize) -> Vec<Tun> {
    let tuns = Tun::create_queues("wtest%d", queues).unwrap();
    assert_eq!(tuns.len(), queues);
    assert!(tuns.iter().all(|tun| tun.name() == "wtest0"));
    assert!(tuns.iter().all(|tun| tun.offloads() == tuns[0].offloads()));
    route_tunnel("wtest0");
    tuns
}

/// The source port of a UDP packet over IPv4.
fn udp_source(frame: &[u8]) -> Option<u16> {
    let packet = &frame[VNET_HEADER_LEN..];
    (packet[0] == 0x45 && packet[9] == 17).then(|| u16::from_be_bytes([packet[20], packet[21]]))
}

/// Makes an answer of a packet: addresses and ports change places. The sums
/// stay as they were, and stay the kernel's to finish.
fn answer(frame: &mut [u8]) {
    let packet = &mut frame[VNET_HEADER_LEN..];
    let (source, destination) = packet[12..20].split_at_mut(4);
    source.swap_with_slice(destination);
    let (source, destination) = packet[20..24].split_at_mut(2);
    source.swap_with_slice(destination);
}

/// Sends one packet of each flow to 10.77.0.2, takes all from the queues, and
/// writes an answer to each into the queue that `choose` names. Returns the queue
/// from which each flow came.
fn round(
    tuns: &[Tun],
    flows: &[UdpSocket],
    choose: impl Fn(usize) -> usize,
) -> BTreeMap<u16, usize> {
    for flow in flows {
        flow.send(b"question").unwrap();
    }
    let mut came = BTreeMap::new();
    let mut frame = vec![0; MAX_FRAME_LEN];
    while came.len() < flows.len() {
        let mut watches: Vec<_> = tuns.iter().map(Watch::readable).collect();
        wait(&mut watches, None).unwrap();
        for (queue, tun) in tuns.iter().enumerate() {
            while let Ok(len) = tun.read(&mut frame) {
                let Some(port) = udp_source(&frame[..len]) else {
                    continue;
                };
                assert_eq!(came.insert(port, queue), None, "one packet per flow");
                answer(&mut frame[..len]);
                tuns[choose(queue)].write(&frame[..len]).unwrap();
            }
        }
    }
    for flow in flows {
        assert_eq!(flow.recv(&mut [0; 100]).unwrap(), 8, "the answer");
    }
    came
}

fn flows() -> Vec<UdpSocket> {
    let flow = |_| {
        let socket = UdpSocket::bind("10.77.0.1:0").unwrap();
        socket.connect("10.77.0.2:9").unwrap();
        socket
    };
    (0..FLOWS).map(flow).collect()
}

#[test]
fn flows_spread_over_queues_and_stay_where_their_answers_are_written() {
    with_tun(|| {
        let tuns = tunnel(4);
        let flows = flows();
        let first = round(&tuns, &flows, |queue| queue);
        let used: BTreeSet<_> = first.values().collect();
        assert!(used.len() > 1, "all flows in one queue: {first:?}");
        for _ in 0..10 {
            assert_eq!(round(&tuns, &flows, |queue| queue), first);
        }
    });
}

/// Why answers must not all be written into one queue.
#[test]
fn flows_go_to_the_queue_that_their_answers_are_written_to() {
    with_tun(|| {
        let tuns = tunnel(2);
        let flows = flows();
        round(&tuns, &flows, |_| 1);
        let second = round(&tuns, &flows, |_| 1);
        assert!(second.values().all(|queue| *queue == 1), "{second:?}");
    });
}

#[test]
fn persistent_devices_of_either_kind_are_attached_to() {
    with_tun(|| {
        ip("tuntap add wone mode tun");
        ip("tuntap add wmany mode tun multi_queue");
        assert_eq!(Tun::create_queues("wone", 4).unwrap().len(), 1);
        assert_eq!(Tun::create_queues("wmany", 4).unwrap().len(), 4);
        assert_eq!(Tun::create("wmany").unwrap().name(), "wmany");
        assert_eq!(Tun::create("wone").unwrap().name(), "wone");
    });
}

#[test]
fn a_device_in_use_is_not_shared() {
    with_tun(|| {
        let tuns = tunnel(2);
        for queues in [1, 2] {
            let taken = Tun::create_queues("wtest0", queues);
            assert!(matches!(taken, Err(TunError::NameTaken { .. })), "{queues}");
        }
        drop(tuns);
    });
}

//! Joined datagrams over the loopback: GSO out, GRO in.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::support::{in_network_namespace, ip};
use warren_host::poll::{Watch, wait};
use warren_host::udp::{Datagrams, RecvBatch, UdpOptions, UdpSocket, bind_pair};

fn socket(ip: impl Into<IpAddr>) -> UdpSocket {
    UdpSocket::bind(SocketAddr::new(ip.into(), 0), &UdpOptions::default()).unwrap()
}

/// Receives `count` datagrams; gives sender and content of each, and how many
/// messages they came in.
fn receive(socket: &UdpSocket, count: usize) -> (Vec<(SocketAddr, Vec<u8>)>, usize) {
    let mut batch = RecvBatch::new(8);
    let (mut datagrams, mut messages) = (Vec::new(), 0);
    while datagrams.len() < count {
        wait(&mut [Watch::readable(socket)], None).unwrap();
        messages += socket.recv_batch(&mut batch).unwrap();
        for mut buffer in batch.buffers() {
            let from = buffer.from;
            datagrams.extend(buffer.datagrams().map(|datagram| (from, datagram.to_vec())));
        }
    }
    assert_eq!(batch.cut_off(), 0);
    (datagrams, messages)
}

/// Bytes in which each datagram is different.
fn payload(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at / 7 % 251) as u8).collect()
}

fn expect(from: SocketAddr, payload: &[u8], segment_len: usize) -> Vec<(SocketAddr, Vec<u8>)> {
    payload
        .chunks(segment_len)
        .map(|datagram| (from, datagram.to_vec()))
        .collect()
}

#[test]
fn joined_datagrams_arrive_as_sent_in_fewer_messages() {
    in_network_namespace(|| {
        for ip in [
            IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(Ipv6Addr::LOCALHOST),
        ] {
            let (one, two) = (socket(ip), socket(ip));
            assert!(one.sends_gso() && two.receives_gro() && one.is_marked());
            // 40 datagrams and a shorter last one.
            let payload = payload(40 * 1200 + 77);
            let taken = one.send_gso(two.local_addr(), &payload, 1200).unwrap();
            assert_eq!(taken, payload.len());
            let (datagrams, messages) = receive(&two, 41);
            assert_eq!(datagrams, expect(one.local_addr(), &payload, 1200));
            assert!(messages < 41, "{messages} messages: nothing was joined");
        }
    });
}

#[test]
fn a_batch_goes_to_many_peers_beyond_the_limit_of_joined_datagrams() {
    in_network_namespace(|| {
        let sender = socket(Ipv4Addr::LOCALHOST);
        let peers: Vec<UdpSocket> = (0..50).map(|_| socket(Ipv4Addr::LOCALHOST)).collect();
        let payload = payload(150 * 1000);
        let batch: Vec<Datagrams<'_>> = peers
            .iter()
            .map(|peer| Datagrams {
                to: peer.local_addr(),
                payload: &payload,
                segment_len: 1000,
            })
            .collect();
        let outcome = sender.send_batch(&batch, |index, error| panic!("{index}: {error}"));
        assert_eq!((outcome.done, outcome.offset), (50, 0));
        assert_eq!(outcome.datagrams, 50 * 150);
        for peer in &peers {
            let (datagrams, _) = receive(peer, 150);
            assert_eq!(datagrams, expect(sender.local_addr(), &payload, 1000));
        }
    });
}

#[test]
fn a_route_too_narrow_for_gso_gets_fragments() {
    in_network_namespace(|| {
        ip("link set lo mtu 1000");
        let (one, two) = (socket(Ipv4Addr::LOCALHOST), socket(Ipv4Addr::LOCALHOST));
        let payload = payload(20 * 1200);
        for _ in 0..2 {
            let taken = one.send_gso(two.local_addr(), &payload, 1200).unwrap();
            assert_eq!(taken, payload.len());
            let (datagrams, _) = receive(&two, 20);
            assert_eq!(datagrams, expect(one.local_addr(), &payload, 1200));
        }
        // The refusal was this destination's, not the socket's.
        assert!(one.sends_gso());
    });
}

#[test]
fn one_bad_destination_does_not_stop_the_others() {
    in_network_namespace(|| {
        let (one, two) = (socket(Ipv4Addr::UNSPECIFIED), socket(Ipv4Addr::LOCALHOST));
        let nowhere = SocketAddr::from(([203, 0, 113, 1], 9));
        let to = two.local_addr();
        let payload = payload(3000);
        let batch = [
            (to, 1000),
            (nowhere, 1000),
            (to, 0),
            (nowhere, 0),
            (to, 500),
        ]
        .map(|(to, segment_len)| Datagrams {
            to,
            payload: &payload,
            segment_len,
        });
        let mut failures = Vec::new();
        let outcome = one.send_batch(&batch, |index, error| {
            failures.push((index, error.raw_os_error()));
        });
        assert_eq!(outcome.done, 5);
        let unreachable = Some(libc::ENETUNREACH);
        assert_eq!(failures, [(1, unreachable), (3, unreachable)]);
        let (datagrams, _) = receive(&two, 3 + 1 + 6);
        let lens: Vec<usize> = datagrams.iter().map(|(_, bytes)| bytes.len()).collect();
        assert_eq!(lens, [1000, 1000, 1000, 3000, 500, 500, 500, 500, 500, 500]);
        // A lone datagram, and an empty one.
        one.send_to(to, b"lone").unwrap();
        one.send_to(to, b"").unwrap();
        assert_eq!(receive(&two, 1).0[0].1, b"lone");
    });
}

#[test]
fn nothing_there_would_block() {
    in_network_namespace(|| {
        let socket = socket(Ipv4Addr::LOCALHOST);
        let error = socket.recv_batch(&mut RecvBatch::new(1)).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
    });
}

#[test]
fn a_taken_port_is_said_and_the_pair_takes_another() {
    in_network_namespace(|| {
        let options = UdpOptions::default();
        let first = bind_pair(&[41641], &options).unwrap();
        let ports = |pair: &warren_host::udp::UdpPair| {
            [&pair.v4, &pair.v6].map(|it| it.as_ref().unwrap().local_addr().port())
        };
        assert_eq!(ports(&first), [41641, 41641]);
        let error = UdpSocket::bind("0.0.0.0:41641".parse().unwrap(), &options).unwrap_err();
        assert!(error.to_string().contains("port 41641 is taken"), "{error}");
        let second = bind_pair(&[41641], &options).unwrap();
        let [v4, v6] = ports(&second);
        assert!(v4 != 41641 && v4 == v6, "{v4} {v6}");
        let to = "[::1]:1".parse().unwrap();
        assert!(second.for_destination(to).unwrap().local_addr().is_ipv6());
    });
}

#[test]
fn a_route_that_changes_under_a_running_sender_costs_nothing() {
    in_network_namespace(|| {
        let (one, two) = (socket(Ipv4Addr::LOCALHOST), socket(Ipv4Addr::LOCALHOST));
        let (six, seven) = (socket(Ipv6Addr::LOCALHOST), socket(Ipv6Addr::LOCALHOST));
        let payload = payload(30 * 1200 + 5);
        // Wide, too narrow for one datagram in its packet, wide again. Below
        // 1,280 there is no IPv6.
        for mtu in [65_536, 1_280, 9_000, 1_300, 1_000] {
            ip(&format!("link set lo mtu {mtu}"));
            one.send_gso(two.local_addr(), &payload, 1200).unwrap();
            let (datagrams, _) = receive(&two, 31);
            assert_eq!(datagrams, expect(one.local_addr(), &payload, 1200), "{mtu}");
            if mtu >= 1_280 {
                six.send_gso(seven.local_addr(), &payload, 1200).unwrap();
                let (datagrams, _) = receive(&seven, 31);
                assert_eq!(datagrams, expect(six.local_addr(), &payload, 1200), "{mtu}");
            }
        }
        assert!(one.sends_gso() && six.sends_gso());
    });
}

#[test]
fn a_firewall_in_the_middle_of_a_batch_costs_its_own_entries() {
    in_network_namespace(|| {
        let (one, two) = (socket(Ipv4Addr::LOCALHOST), socket(Ipv4Addr::LOCALHOST));
        let walled = socket(Ipv4Addr::LOCALHOST);
        let rule = format!(
            "add table inet t {{ chain c {{ type filter hook output priority 0 ; udp dport {} drop ; }} ; }}",
            walled.local_addr().port()
        );
        let nft = std::process::Command::new("nft").arg(rule).status();
        if !nft.is_ok_and(|status| status.success()) {
            eprintln!("SKIPPED: the `nft` program is not installed");
            return;
        }
        let payload = payload(70 * 1000);
        let batch: Vec<Datagrams<'_>> = (0..40)
            .map(|entry| Datagrams {
                to: if entry % 3 == 1 { &walled } else { &two }.local_addr(),
                payload: &payload[..1000 + 700 * (entry % 7)],
                segment_len: 1000,
            })
            .collect();
        let mut failures = Vec::new();
        let outcome = one.send_batch(&batch, |index, error| {
            assert_eq!(error.raw_os_error(), Some(libc::EPERM));
            failures.push(index);
        });
        assert_eq!(outcome.done, batch.len());
        assert_eq!(failures, (1..40).step_by(3).collect::<Vec<_>>());
        let expected: Vec<_> = batch
            .iter()
            .filter(|entry| entry.to == two.local_addr())
            .flat_map(|entry| expect(one.local_addr(), entry.payload, 1000))
            .collect();
        let (datagrams, _) = receive(&two, expected.len());
        assert!(datagrams == expected);
        assert!(one.sends_gso());
    });
}

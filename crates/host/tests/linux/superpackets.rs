//! The TUN device against the kernel's own TCP and UDP.
//!
//! A mirror stands at the other end: it swaps source and destination address
//! of each packet and writes it back, so that the kernel talks to itself as
//! 10.77.0.1 and 10.77.0.2. The swap leaves every checksum as it was.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::support::{ip, route_tunnel, with_tun};
use warren_host::poll::{Watch, wait};
use warren_host::tun::{MAX_FRAME_LEN, Tun, TunError, VNET_HEADER_LEN};
use warren_host::udp::{Datagrams, UdpOptions, UdpSocket};
use warren_host::wake::Waker;

/// A TUN with 10.77.0.1 and a route to its network.
fn tunnel() -> Tun {
    let tun = Tun::create("wtest%d").unwrap();
    assert_eq!(tun.name(), "wtest0");
    route_tunnel(tun.name());
    assert_eq!(tun.mtu().unwrap(), 1280);
    tun
}

fn swap_addresses(frame: &mut [u8]) {
    let packet = &mut frame[VNET_HEADER_LEN..];
    if packet[0] >> 4 == 4 {
        let (source, destination) = packet[12..20].split_at_mut(4);
        source.swap_with_slice(destination);
    }
}

#[test]
fn a_tcp_stream_travels_in_superpackets_both_ways() {
    with_tun(|| {
        let tun = tunnel();
        assert!(tun.offloads().tcp);
        let waker = Waker::new().unwrap();
        let stop = AtomicBool::new(false);
        let longest = AtomicUsize::new(0);
        let listener = TcpListener::bind("10.77.0.1:7777").unwrap();
        let sent: Vec<u8> = (0..4 << 20).map(|at: u32| (at / 3) as u8).collect();
        let mut received = Vec::new();
        std::thread::scope(|threads| {
            threads.spawn(|| {
                let mut frame = vec![0; MAX_FRAME_LEN];
                while !stop.load(Ordering::Acquire) {
                    wait(&mut [Watch::readable(&tun), Watch::readable(&waker)], None).unwrap();
                    while let Ok(len) = tun.read(&mut frame) {
                        longest.fetch_max(len, Ordering::Relaxed);
                        swap_addresses(&mut frame[..len]);
                        tun.write(&frame[..len]).unwrap();
                    }
                }
            });
            threads.spawn(|| {
                let mut stream = TcpStream::connect("10.77.0.2:7777").unwrap();
                stream.write_all(&sent).unwrap();
            });
            let (mut stream, from) = listener.accept().unwrap();
            assert_eq!(from.ip().to_string(), "10.77.0.2");
            stream.read_to_end(&mut received).unwrap();
            stop.store(true, Ordering::Release);
            waker.wake();
        });
        assert!(received == sent, "the stream was changed on its way");
        let longest = longest.load(Ordering::Relaxed);
        assert!(
            longest > 4 * 1280,
            "longest frame {longest}: no superpackets"
        );
    });
}

#[test]
fn a_udp_superpacket_is_read_whole_where_the_kernel_can() {
    with_tun(|| {
        let tun = tunnel();
        if !tun.offloads().udp {
            eprintln!("SKIPPED: this kernel has no UDP segmentation offload for TUN");
            return;
        }
        let any = "10.77.0.1:0".parse().unwrap();
        // Unmarked: marked packets would go around the tunnel.
        let options = UdpOptions {
            mark: None,
            ..UdpOptions::default()
        };
        let socket = UdpSocket::bind(any, &options).unwrap();
        let payload = [7; 10 * 1000];
        socket
            .send_gso("10.77.0.2:9".parse().unwrap(), &payload, 1000)
            .unwrap();
        let mut frame = vec![0; MAX_FRAME_LEN];
        let len = loop {
            wait(&mut [Watch::readable(&tun)], None).unwrap();
            let len = tun.read(&mut frame).unwrap();
            if frame[VNET_HEADER_LEN] >> 4 == 4 && frame[VNET_HEADER_LEN + 9] == 17 {
                break len;
            }
        };
        assert_eq!(len, VNET_HEADER_LEN + 20 + 8 + payload.len());
        let gso_size = u16::from_ne_bytes([frame[4], frame[5]]);
        assert_eq!(gso_size, 1000);
    });
}

#[test]
fn marked_packets_go_around_the_tunnel() {
    with_tun(|| {
        let _tun = tunnel();
        let any = "10.77.0.1:0".parse().unwrap();
        let socket = UdpSocket::bind(any, &UdpOptions::default()).unwrap();
        assert!(socket.is_marked());
        let error = socket
            .send_to("10.77.0.2:9".parse().unwrap(), b"around")
            .unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENETUNREACH));
    });
}

#[test]
fn taken_names_are_said() {
    with_tun(|| {
        let first = Tun::create("wtest0").unwrap();
        assert!(matches!(
            Tun::create("wtest0"),
            Err(TunError::NameTaken { name }) if name == "wtest0"
        ));
        // The loopback has its name.
        assert!(matches!(Tun::create("lo"), Err(TunError::NameTaken { .. })));
        first.set_mtu(1400).unwrap();
        first.set_up().unwrap();
        assert_eq!(first.mtu().unwrap(), 1400);
        assert!(ip("-br link show wtest0").contains("UP"));
        drop(first);
        assert!(!ip("-br link").contains("wtest0"));
    });
}

#[test]
fn a_full_send_buffer_stops_a_batch_where_it_can_go_on() {
    with_tun(|| {
        let tun = tunnel();
        // A slow device keeps packets, and these fill the send buffer.
        let slow = "qdisc add dev wtest0 root tbf rate 200mbit burst 20kb limit 10mb";
        let tc = std::process::Command::new("tc")
            .args(slow.split(' '))
            .status();
        if !tc.is_ok_and(|status| status.success()) {
            eprintln!("SKIPPED: no `tc`, or a kernel without the tbf queue");
            return;
        }
        let options = UdpOptions {
            mark: None,
            buffer: 60_000,
            ..UdpOptions::default()
        };
        let socket = UdpSocket::bind("10.77.0.1:0".parse().unwrap(), &options).unwrap();
        let payload: Vec<u8> = (0..150_000_u32).map(|at| (at / 9 % 251) as u8).collect();
        let entry = Datagrams {
            to: "10.77.0.2:9".parse().unwrap(),
            payload: &payload,
            segment_len: 1000,
        };
        let mut batch = vec![entry; 3];
        let (mut arrived, mut datagrams, mut stops) = (Vec::new(), 0, 0);
        let mut frame = vec![0; MAX_FRAME_LEN];
        while arrived.len() < 3 * payload.len() {
            if !batch.is_empty() {
                let outcome = socket.send_batch(&batch, |index, error| panic!("{index}: {error}"));
                datagrams += outcome.datagrams;
                batch.drain(..outcome.done);
                if let Some(first) = batch.first_mut() {
                    stops += 1;
                    first.payload = &first.payload[outcome.offset..];
                }
            }
            wait(&mut [Watch::readable(&tun)], None).unwrap();
            while let Ok(len) = tun.read(&mut frame) {
                if frame[VNET_HEADER_LEN] >> 4 == 4 && frame[VNET_HEADER_LEN + 9] == 17 {
                    arrived.extend_from_slice(&frame[VNET_HEADER_LEN + 28..len]);
                }
            }
        }
        assert_eq!(datagrams, 450);
        assert!(stops > 0, "the buffer never filled");
        assert!(arrived == [&payload[..]; 3].concat(), "lost or repeated");
    });
}

//! Frames from the host whose headers lie: found before anything is sealed, or
//! cut where the frame says.

#![allow(clippy::unwrap_used)]

use warren_dataplane::{DropReason, GsoType, VnetHdr};
use warren_dataplane_testkit::{HEADER, Pair, Transport, arrived, comparable, tcp, udp};

/// A frame of raw parts.
fn frame(gso: GsoType, size: u16, checksum: Option<(u16, u16)>, packet: &[u8]) -> Vec<u8> {
    let header = VnetHdr {
        checksum,
        gso,
        gso_size: size,
        hdr_len: 0,
    };
    [&header.to_bytes()[..], packet].concat()
}

/// `packet` (IPv6) with an extension header in front of its transport.
fn with_extension(packet: &[u8], kind: u8, extension: &[u8]) -> Vec<u8> {
    let mut out = packet[..40].to_vec();
    let len = (packet.len() - 40 + extension.len()) as u16;
    out[4..6].copy_from_slice(&len.to_be_bytes());
    let next = std::mem::replace(&mut out[6], kind);
    let start = out.len();
    out.extend(extension);
    out[start] = next;
    out.extend(&packet[40..]);
    out
}

#[test]
fn lies_are_found_before_anything_is_sealed() {
    let v4 = tcp(false, 4_000).build();
    let v6 = tcp(true, 4_000).build();
    let datagrams = udp(1, 4_000).build();
    let change = |packet: &[u8], at: usize, bytes: &[u8]| {
        let mut packet = packet.to_vec();
        packet[at..at + bytes.len()].copy_from_slice(bytes);
        packet
    };
    let (t4, t6, u) = (GsoType::TcpV4, GsoType::TcpV6, GsoType::Udp);
    let fragment = with_extension(&v6, 44, &[0, 0, 0, 1, 0, 0, 0, 9]);
    let routed = with_extension(&v6, 43, &[0, 0, 0, 1, 0, 0, 0, 0]);
    let jumbo = {
        let option = [0, 0, 0xc2, 4, 0, 1, 0x11, 0x70];
        change(&with_extension(&v6, 0, &option), 4, &[0, 0])
    };
    let late_hop_by_hop = {
        let inner = with_extension(&v6, 0, &[0, 0, 1, 4, 0, 0, 0, 0]);
        with_extension(&inner, 60, &[0, 0, 1, 4, 0, 0, 0, 0])
    };
    let endless = (0..20).fold(v6.clone(), |packet, _| {
        with_extension(&packet, 60, &[0, 0, 1, 4, 0, 0, 0, 0])
    });
    for (what, frame) in [
        (
            "a header length beyond the packet",
            frame(t4, 1000, None, &change(&v4[..40], 0, &[0x4f])),
        ),
        (
            "a header length of nothing",
            frame(t4, 1000, None, &change(&v4, 0, &[0x40])),
        ),
        (
            "a total length below the header",
            frame(t4, 1000, None, &change(&v4, 2, &[0, 19])),
        ),
        (
            "a total length of zero",
            frame(t4, 1000, None, &change(&v4, 2, &[0, 0])),
        ),
        (
            "a total length beyond the frame",
            frame(t4, 1000, None, &change(&v4, 2, &[0xff, 0xff])),
        ),
        (
            "a first fragment to cut",
            frame(t4, 1000, None, &change(&v4, 6, &[0x20, 0])),
        ),
        (
            "a later fragment to cut",
            frame(t4, 1000, None, &change(&v4, 6, &[0, 0x40])),
        ),
        (
            "another protocol",
            frame(t4, 1000, None, &change(&v4, 9, &[47])),
        ),
        (
            "TCP options beyond the packet",
            frame(
                t4,
                1000,
                None,
                &change(&change(&v4[..60], 2, &[0, 60]), 32, &[0xf0]),
            ),
        ),
        (
            "a TCP header of four bytes",
            frame(t4, 1000, None, &change(&v4, 32, &[0x10])),
        ),
        ("IPv4 as IPv6", frame(t6, 1000, None, &v4)),
        ("IPv6 as IPv4", frame(t4, 1000, None, &v6)),
        ("UDP as TCP", frame(t4, 1000, None, &datagrams)),
        ("segments of zero bytes", frame(t6, 0, None, &v6)),
        ("datagrams of zero bytes", frame(u, 0, None, &datagrams)),
        (
            "a UDP header cut off",
            frame(u, 1000, None, &change(&datagrams[..24], 2, &[0, 24])),
        ),
        (
            "no version",
            frame(t4, 1000, None, &change(&v4, 0, &[0x05])),
        ),
        (
            "a checksum in the addresses",
            frame(GsoType::None, 0, Some((12, 4)), &v4),
        ),
        (
            "a checksum in the IPv6 addresses",
            frame(GsoType::None, 0, Some((20, 6)), &v6),
        ),
        (
            "a checksum behind the end",
            frame(GsoType::None, 0, Some((20, 9_000)), &v4),
        ),
        (
            "a checksum across the end",
            frame(GsoType::None, 0, Some((20, 4_031)), &v4),
        ),
        (
            "a checksum in the middle of TCP",
            frame(t4, 1000, Some((20, 14)), &v4),
        ),
        ("an IPv6 fragment to cut", frame(t6, 1000, None, &fragment)),
        ("an IPv6 jumbogram", frame(t6, 1000, None, &jumbo)),
        (
            "IPv6 of zero bytes",
            frame(t6, 1000, None, &change(&v6, 4, &[0, 0])),
        ),
        ("an IPv6 route to follow", frame(t6, 1000, None, &routed)),
        (
            "hop-by-hop options too late",
            frame(t6, 1000, None, &late_hop_by_hop),
        ),
        (
            "more extensions than any host sends",
            frame(t6, 1000, None, &endless),
        ),
        (
            "an extension beyond the packet",
            frame(
                t6,
                1000,
                None,
                &with_extension(&v6, 60, &[0, 0xff, 1, 4, 0, 0, 0, 0])[..120],
            ),
        ),
        ("half a virtio header", vec![0; 5]),
        ("a virtio header and nothing", vec![0; HEADER]),
    ] {
        let mut pair = Pair::new();
        pair.send(&frame);
        pair.outbound.flush(&mut pair.net);
        assert_eq!(pair.drops[0].get(DropReason::Malformed), 1, "{what}");
        assert!(pair.net.udp.is_empty(), "{what}");
    }
}

#[test]
fn odd_frames_that_are_true_go_through() {
    let trailing = {
        let mut frame = tcp(true, 2_000).frame(Some(1_000));
        frame.extend([0xee; 300]);
        frame
    };
    let mut all_flags = tcp(false, 1_000);
    all_flags.transport = Transport::Tcp {
        sequence: u32::MAX - 10,
        flags: 0xff,
        options: 40,
    };
    let with_ecn = {
        let mut frame = all_flags.frame(Some(300));
        frame[1] |= 0x80;
        frame
    };
    for (what, frame, expected) in [
        (
            "one byte each",
            tcp(true, 200).frame(Some(1)),
            tcp(true, 200).expected(Some(1)),
        ),
        (
            "segments longer than all",
            tcp(false, 700).frame(Some(65_535)),
            tcp(false, 700).expected(None),
        ),
        (
            "exactly one segment",
            tcp(false, 700).frame(Some(700)),
            tcp(false, 700).expected(None),
        ),
        (
            "TCP without payload",
            tcp(true, 0).frame(Some(1_000)),
            tcp(true, 0).expected(None),
        ),
        (
            "UDP without payload",
            udp(1, 0).frame(Some(1_000)),
            udp(1, 0).expected(None),
        ),
        (
            "padding behind the packet",
            trailing,
            tcp(true, 2_000).expected(Some(1_000)),
        ),
        (
            "all flags, all options, ECN",
            with_ecn,
            all_flags.expected(Some(300)),
        ),
        (
            "as long as it gets",
            tcp(false, 65_535 - 52).frame(Some(1_228)),
            tcp(false, 65_535 - 52).expected(Some(1_228)),
        ),
    ] {
        let mut pair = Pair::new();
        pair.send(&frame);
        pair.cross();
        assert_eq!(pair.drops[0].total(), 0, "{what}");
        let got = arrived(&pair);
        assert_eq!(got.len(), expected.len(), "{what}");
        for (i, (got, expected)) in got.iter().zip(&expected).enumerate() {
            assert_eq!(comparable(got), comparable(expected), "{what}, packet {i}");
        }
    }
}

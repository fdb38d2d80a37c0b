//! IP packets: what parses, what is malformed, and what we write is read back.

#![allow(clippy::unwrap_used)]

use std::net::{IpAddr, SocketAddr};

use proptest::prelude::*;
use warren_keys::DiscoPublic;
use warren_wire::ip::checksum::{checksum, transport_checksum};
use warren_wire::ip::icmp::{self, Echo, Icmp, Quoted};
use warren_wire::ip::tsmp::{self, Message, Reject, RejectReason};
use warren_wire::ip::{BuildError, Fragment, IpPacket, Malformed, Parsed, Protocol, Version, udp};

/// IPv4: flags and offset in eight-byte blocks, protocol, transport bytes.
fn v4(fragment: u16, protocol: u8, transport: &[u8]) -> Vec<u8> {
    let total = u16::try_from(20 + transport.len()).unwrap();
    let mut out = vec![0x45, 0];
    out.extend(total.to_be_bytes());
    out.extend([0xab, 0xcd]);
    out.extend(fragment.to_be_bytes());
    out.extend([64, protocol, 0, 0, 100, 64, 0, 2, 100, 64, 0, 1]);
    out.extend(transport);
    out
}

/// IPv6: first next-header number and everything behind the fixed header.
fn v6(next: u8, rest: &[u8]) -> Vec<u8> {
    let len = u16::try_from(rest.len()).unwrap();
    let mut out = vec![0x60, 0, 0, 0];
    out.extend(len.to_be_bytes());
    out.extend([next, 64]);
    out.extend([0xfd, 0x7a, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
    out.extend([0xfd, 0x7a, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    out.extend(rest);
    out
}

fn tcp_syn() -> Vec<u8> {
    let mut out = vec![0x12, 0x34, 0, 22];
    out.extend([0; 8]);
    out.extend([0x50, 0x02, 0, 0, 0, 0, 0, 0]);
    out
}

fn chain(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

#[test]
fn padding_behind_the_packet_is_cut() {
    let mut bytes = v4(0, 6, &tcp_syn());
    bytes.extend([0; 13]);
    let packet = IpPacket::parse(&bytes).unwrap();
    assert_eq!(packet.bytes().len(), 40);
    assert_eq!(packet.transport().len(), 20);
    assert_eq!((packet.src_port, packet.dst_port), (0x1234, 22));
    assert!(packet.opens_tcp());
    assert_eq!(packet.src, "100.64.0.2".parse::<IpAddr>().unwrap());
}

#[test]
fn malformed_packets_have_their_reason() {
    let with = |at: usize, value: u8| {
        let mut bytes = v4(0, 6, &tcp_syn());
        bytes[at] = value;
        bytes
    };
    let fragment = |field: [u8; 2]| [6, 0, field[0], field[1], 0, 0, 0, 1];
    let cases: Vec<(&str, Vec<u8>, Malformed)> = vec![
        ("empty", vec![], Malformed::ShortHeader),
        (
            "19 bytes",
            v4(0, 6, &[])[..19].to_vec(),
            Malformed::ShortHeader,
        ),
        (
            "39 bytes",
            v6(6, &[])[..39].to_vec(),
            Malformed::ShortHeader,
        ),
        ("version 5", with(0, 0x55), Malformed::Version),
        ("header of 16", with(0, 0x44), Malformed::HeaderLength),
        (
            "header past the end",
            with(0, 0x4f),
            Malformed::HeaderLength,
        ),
        ("total too long", with(3, 41), Malformed::TotalLength),
        ("TCP of 19", v4(0, 6, &[0; 19]), Malformed::ShortTransport),
        ("UDP of 7", v4(0, 17, &[0; 7]), Malformed::ShortTransport),
        ("SCTP of 11", v6(132, &[0; 11]), Malformed::ShortTransport),
        ("TSMP of 6", v4(0, 99, &[0; 6]), Malformed::ShortTransport),
        (
            "first fragment of 19",
            v4(0x2000, 6, &[0; 19]),
            Malformed::ShortTransport,
        ),
        ("offset 72", v4(9, 6, &[0; 32]), Malformed::FragmentOverlap),
        (
            "offset 72 v6",
            v6(44, &chain(&[&fragment([0, 72]), &[0; 32]])),
            Malformed::FragmentOverlap,
        ),
        (
            "TSMP fragment",
            v4(0x2000, 99, &[0; 9]),
            Malformed::FragmentForbidden,
        ),
        (
            "TSMP fragment v6",
            v6(44, &chain(&[&[99, 0, 0, 1, 0, 0, 0, 1], &[0; 9]])),
            Malformed::FragmentForbidden,
        ),
        ("protocol 0", v4(0, 0, &[0; 32]), Malformed::Protocol),
        ("protocol 255", v6(255, &[0; 32]), Malformed::Protocol),
        (
            "late hop-by-hop",
            v6(
                60,
                &chain(&[&[0, 0, 0, 0, 0, 0, 0, 0], &[6, 0, 0, 0, 0, 0, 0, 0]]),
            ),
            Malformed::Extensions,
        ),
        (
            "extension past the end",
            v6(60, &[6, 9, 0, 0, 0, 0, 0, 0]),
            Malformed::Extensions,
        ),
        (
            "endless chain",
            v6(60, &[60, 0, 0, 0, 0, 0, 0, 0].repeat(40)),
            Malformed::Extensions,
        ),
        (
            "two fragment headers",
            v6(
                44,
                &chain(&[&[44, 0, 0, 1, 0, 0, 0, 1], &fragment([0, 1]), &tcp_syn()]),
            ),
            Malformed::Extensions,
        ),
        (
            "source route",
            v6(43, &chain(&[&[6, 0, 0, 1, 0, 0, 0, 0], &tcp_syn()])),
            Malformed::SourceRoute,
        ),
    ];
    for (name, bytes, reason) in cases {
        assert_eq!(Parsed::parse(&bytes), Err(reason), "{name}");
    }
}

#[test]
fn extension_headers_do_not_hide_the_transport() {
    let last: &[u8] = &[6, 1, 1, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    // Padding of four bytes; for a routing header stops left, so none there.
    for (first, fourth) in [(0, 4), (43, 0), (60, 4)] {
        let options: &[u8] = &[60, 0, 1, fourth, 0, 0, 0, 0];
        let bytes = v6(first, &chain(&[options, last, &tcp_syn()]));
        let packet = IpPacket::parse(&bytes).unwrap();
        assert_eq!((packet.protocol, packet.dst_port), (Protocol::TCP, 22));
        assert_eq!(packet.transport_offset, 40 + 24);
    }
}

#[test]
fn fragments_by_position() {
    let first = v4(0x2000, 17, &[0, 53, 0, 54, 0, 0, 0, 0]);
    let first = IpPacket::parse(&first).unwrap();
    assert_eq!((first.fragment, first.src_port), (Fragment::First, 53));
    assert_eq!(first.udp_payload(), None);
    let later = v4(10, 17, &[1; 8]);
    let later = IpPacket::parse(&later).unwrap();
    assert_eq!(later.fragment, Fragment::Later { offset: 80 });
    assert_eq!((later.src_port, later.dst_port), (0, 0));
    let later = v6(
        44,
        &chain(&[&[58, 0, 0, 161, 0, 0, 0, 1], &[129, 0, 0, 0, 0, 0, 0, 0]]),
    );
    let later = IpPacket::parse(&later).unwrap();
    assert_eq!(later.fragment, Fragment::Later { offset: 160 });
    assert_eq!(later.icmp(), None);
    // A fragment header around a whole packet.
    let atomic = v6(44, &chain(&[&[6, 0, 0, 0, 0, 0, 0, 1], &tcp_syn()]));
    let atomic = IpPacket::parse(&atomic).unwrap();
    assert_eq!((atomic.fragment, atomic.dst_port), (Fragment::Whole, 22));
}

#[test]
fn errors_quote_the_flow() {
    let quoted = udp::packet(
        "100.64.0.1:5000".parse().unwrap(),
        "8.8.8.8:53".parse().unwrap(),
        b"q",
    )
    .unwrap();
    let message = chain(&[&[3, 3, 0, 0, 0, 0, 0, 0], &quoted]);
    let Some(Icmp::Error { quoted, .. }) = Icmp::parse(Version::V4, &message) else {
        panic!("no error")
    };
    let flow = Quoted::parse(quoted).unwrap();
    assert_eq!(flow.src, "100.64.0.1".parse::<IpAddr>().unwrap());
    assert_eq!((flow.src_port, flow.dst_port), (Some(5000), Some(53)));
    // Cut off behind the IP header: still known whose it was.
    let short = Quoted::parse(&quoted[..20]).unwrap();
    assert_eq!((short.dst, short.dst_port), (flow.dst, None));
    assert_eq!(Quoted::parse(&quoted[..19]), None);
}

#[test]
fn the_bytes_of_tsmp() {
    let reject = Message::Reject(Reject {
        protocol: Protocol::TCP,
        reason: RejectReason::Acl,
        src_port: 0x1234,
        dst_port: 22,
        maybe_broken: false,
    });
    assert_eq!(reject.body(), [b'!', 6, b'A', 0x12, 0x34, 0, 22]);
    // Old peers leave the port out.
    assert_eq!(
        Message::parse(b"o12345678"),
        Some(Message::Pong {
            data: *b"12345678",
            peer_api_port: None
        })
    );
    assert_eq!(Message::parse(b"p1234567"), None);
    assert_eq!(Message::parse(b"?12345678"), None);

    let ping = Message::Ping(*b"12345678");
    let bytes = v4(0, 99, &ping.body());
    let packet = IpPacket::parse(&bytes).unwrap();
    let pong = tsmp::pong_for(&packet, Some(4000)).unwrap();
    let pong = IpPacket::parse(&pong).unwrap();
    assert_eq!((pong.src, pong.dst), (packet.dst, packet.src));
    assert_eq!(pong.bytes()[4..6], [!0xab, !0xcd]);
    assert_eq!(pong.bytes()[20..], *b"o12345678\x0f\xa0");
    assert_eq!(checksum(&pong.bytes()[..20]), 0);
    assert_eq!(tsmp::pong_for(&pong, None), None);
}

#[test]
fn packets_beyond_the_length_limit_are_not_built() {
    let (four, six) = ("1.2.3.4:5".parse().unwrap(), "[::1]:5".parse().unwrap());
    assert_eq!(udp::packet(four, six, b""), Err(BuildError::MixedFamilies));
    let long = vec![0; 65535 - 8 - 19];
    let len = long.len();
    assert!(udp::packet(four, four, &long[1..]).is_ok());
    assert!(matches!(
        udp::packet(four, four, &long),
        Err(BuildError::TooLong { .. })
    ));
    assert_eq!(
        udp::packet(six, six, &vec![0; 65535]),
        Err(BuildError::TooLong { len: 65535 })
    );
    assert!(udp::packet(six, six, &vec![0; len]).is_ok());
}

fn address_pair() -> impl Strategy<Value = (IpAddr, IpAddr)> {
    prop_oneof![
        any::<([u8; 4], [u8; 4])>().prop_map(|(a, b)| (IpAddr::from(a), IpAddr::from(b))),
        any::<([u8; 16], [u8; 16])>().prop_map(|(a, b)| (IpAddr::from(a), IpAddr::from(b))),
    ]
}

fn message() -> impl Strategy<Value = Message> {
    prop_oneof![
        any::<(u8, u8, u16, u16, bool)>().prop_map(
            |(protocol, code, src_port, dst_port, broken)| {
                let reason = match code {
                    b'A' => RejectReason::Acl,
                    b'S' => RejectReason::ShieldsUp,
                    b'F' => RejectReason::ForwardingOff,
                    b'W' => RejectReason::HostFirewall,
                    b'T' => RejectReason::UnknownTransit,
                    other => RejectReason::Other(other),
                };
                Message::Reject(Reject {
                    protocol: Protocol(protocol),
                    reason,
                    src_port,
                    dst_port,
                    maybe_broken: broken,
                })
            }
        ),
        any::<[u8; 8]>().prop_map(Message::Ping),
        any::<([u8; 8], u16)>().prop_map(|(data, port)| Message::Pong {
            data,
            peer_api_port: (port != 0).then_some(port),
        }),
        any::<[u8; 32]>().prop_map(|key| Message::DiscoAdvertisement(DiscoPublic::from_bytes(key))),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: Some(Box::new(
            proptest::test_runner::FileFailurePersistence::WithSource("regressions"),
        )),
        ..ProptestConfig::default()
    })]

    #[test]
    fn no_bytes_make_it_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..160), four in any::<bool>()) {
        // Random first bytes are seldom a packet: help a little.
        if let [first, _, high, low, ..] = bytes.as_mut_slice() && four {
            (*first, *high, *low) = (0x45, 0, *low & 0x7f);
        } else if let [first, _, _, _, high, low, next, ..] = bytes.as_mut_slice() {
            (*first, *high, *low, *next) = (0x60, 0, *low & 0x3f, [0, 43, 44, 60, 58, 6][usize::from(*next) % 6]);
        }
        if let Ok(packet) = IpPacket::parse(&bytes) {
            prop_assert!(packet.transport_offset <= packet.total_len);
            prop_assert!(packet.total_len <= bytes.len());
            let _ = (packet.icmp(), packet.udp_payload(), packet.tsmp());
            let _ = (tsmp::pong_for(&packet, None), tsmp::reject_for(&packet, RejectReason::Acl));
        }
        let _ = (Message::parse(&bytes), Quoted::parse(&bytes), udp::payload(&bytes));
        icmp::reply_in_place(&mut bytes);
    }

    #[test]
    fn udp_comes_back(
        (src, dst) in address_pair(),
        ports in any::<(u16, u16)>(),
        payload in proptest::collection::vec(any::<u8>(), 0..100),
    ) {
        let bytes = udp::packet(SocketAddr::new(src, ports.0), SocketAddr::new(dst, ports.1), &payload).unwrap();
        let packet = IpPacket::parse(&bytes).unwrap();
        prop_assert_eq!((packet.src, packet.dst), (src, dst));
        prop_assert_eq!((packet.src_port, packet.dst_port), ports);
        prop_assert_eq!(packet.udp_payload(), Some(&payload[..]));
        prop_assert_eq!(transport_checksum(src, dst, Protocol::UDP, packet.transport()), 0);
        if packet.version == Version::V4 {
            prop_assert_eq!(checksum(&bytes[..20]), 0);
        }
    }

    #[test]
    fn tsmp_comes_back((src, dst) in address_pair(), message in message()) {
        prop_assert_eq!(Message::parse(&message.body()), Some(message));
        let bytes = message.packet(src, dst).unwrap();
        let packet = IpPacket::parse(&bytes).unwrap();
        prop_assert_eq!((packet.src, packet.dst, packet.tsmp()), (src, dst, Some(message)));
    }

    #[test]
    fn an_echo_is_answered_with_right_checksums(
        (src, dst) in address_pair(),
        ident in any::<u16>(),
        sequence in any::<u16>(),
        data in proptest::collection::vec(any::<u8>(), 0..60),
    ) {
        let mut bytes = icmp::echo_request(src, dst, Echo { ident, sequence, data: &data }).unwrap();
        prop_assert!(icmp::reply_in_place(&mut bytes));
        let packet = IpPacket::parse(&bytes).unwrap();
        prop_assert_eq!((packet.src, packet.dst), (dst, src));
        prop_assert_eq!(packet.icmp(), Some(Icmp::EchoReply(Echo { ident, sequence, data: &data })));
        let sum = match packet.version {
            Version::V4 => checksum(packet.transport()),
            Version::V6 => transport_checksum(dst, src, Protocol::ICMPV6, packet.transport()),
        };
        prop_assert_eq!(sum, 0);
        // A reply is not answered again.
        prop_assert!(!icmp::reply_in_place(&mut bytes));
    }
}

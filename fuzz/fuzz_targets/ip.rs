//! IP packets as they come out of the tunnel, and the answers that are made
//! from them.
#![no_main]

use std::net::SocketAddr;

use libfuzzer_sys::fuzz_target;
use warren_wire::ip::icmp::{self, Icmp, Quoted};
use warren_wire::ip::tsmp::{self, Message, RejectReason};
use warren_wire::ip::{Fragment, IpPacket, Parsed, Protocol, udp};

fuzz_target!(|bytes: &[u8]| {
    let _ = Quoted::parse(bytes);
    if let Some(message) = Message::parse(bytes) {
        assert_eq!(Message::parse(&message.body()), Some(message));
    }
    let Ok(packet) = IpPacket::parse(bytes) else {
        assert!(Parsed::parse(bytes).is_err());
        return;
    };
    let parsed = *packet.parsed();
    assert_eq!(packet.bytes(), &bytes[..parsed.total_len]);
    assert!(parsed.transport_offset <= parsed.total_len);
    // Bytes behind the packet change nothing.
    assert_eq!(Parsed::parse(packet.bytes()), Ok(parsed));
    if !parsed.protocol.has_ports() || parsed.is_later_fragment() {
        assert_eq!((parsed.src_port, parsed.dst_port), (0, 0));
    }

    let is_request = matches!(packet.icmp(), Some(Icmp::EchoRequest(_)));
    if let Some(Icmp::Error { quoted, .. }) = packet.icmp() {
        let _ = Quoted::parse(quoted);
    }
    let mut reply = packet.bytes().to_vec();
    if icmp::reply_in_place(&mut reply) {
        assert!(is_request);
        let answer = IpPacket::parse(&reply).expect("a reply is a packet");
        assert_eq!((answer.src, answer.dst), (parsed.dst, parsed.src));
        assert!(matches!(answer.icmp(), Some(Icmp::EchoReply(_))));
    }

    if let Some(message) = packet.tsmp() {
        let built = message.packet(parsed.src, parsed.dst).expect("one family");
        let again = IpPacket::parse(&built).expect("a message is a packet");
        assert_eq!(again.tsmp(), Some(message));
    }
    if let Some(pong) = tsmp::pong_for(&packet, Some(1)) {
        let pong = IpPacket::parse(&pong).expect("a pong is a packet");
        assert!(matches!(pong.tsmp(), Some(Message::Pong { .. })));
        assert_eq!((pong.src, pong.dst), (parsed.dst, parsed.src));
    }
    if let Some(reject) = tsmp::reject_for(&packet, RejectReason::Acl) {
        let reject = IpPacket::parse(&reject).expect("a rejection is a packet");
        assert!(matches!(reject.tsmp(), Some(Message::Reject(_))));
    }

    if let Some(payload) = packet.udp_payload() {
        assert!(parsed.protocol == Protocol::UDP && parsed.fragment == Fragment::Whole);
        let src = SocketAddr::new(parsed.src, parsed.src_port);
        let dst = SocketAddr::new(parsed.dst, parsed.dst_port);
        let built = udp::packet(src, dst, payload).expect("it fitted before");
        let again = IpPacket::parse(&built).expect("a datagram is a packet");
        assert_eq!(again.udp_payload(), Some(payload));
        assert_eq!(
            (again.src_port, again.dst_port),
            (parsed.src_port, parsed.dst_port)
        );
    }
});

//! The known holes of the official client, one by one, each shown closed. Packets
//! that the parser refuses never reach the filter: the data plane drops them.

#![allow(clippy::unwrap_used)]

use std::net::IpAddr;

use serde_json::json;
use warren_control_types::FilterRule;
use warren_filter::{
    CapabilityHolders, DropReason, FRAGMENT_SECS, Filter, FlowTable, GRACE_SECS, LocalAddresses,
    LocalSet, TCP_IDLE_SECS, Verdict,
};
use warren_testkit::FixedEntropy;
use warren_wire::ip::{IpPacket, Malformed};

const HERE: [u8; 4] = [100, 64, 0, 1];
const PEER: [u8; 4] = [100, 64, 0, 2];
const STRANGER: [u8; 4] = [100, 64, 0, 3];
const ROUTED: [u8; 4] = [10, 1, 2, 3];
const ELSEWHERE: [u8; 4] = [10, 9, 9, 9];
const HERE6: &str = "fd7a:115c:a1e0::1";
const PEER6: &str = "fd7a:115c:a1e0::2";

const TCP: u8 = 6;
const UDP: u8 = 17;
const GRE: u8 = 47;
const AH: u8 = 51;
const SCTP: u8 = 132;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// The fate of a packet.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    Passes,
    Dropped(DropReason),
    Refused(Malformed),
}

use DropReason::{Fragment, NoFlow, NoRule, NotLocal, UnrelatedError};
use Fate::{Dropped, Passes, Refused};

struct Node {
    filter: Filter,
    flows: FlowTable,
    now: u32,
}

impl Node {
    /// This host, with a route, and peer 2 may use TCP port 22 of all of it.
    fn new() -> Self {
        Self::with(json!([
            {"SrcIPs": ["100.64.0.2", PEER6], "IPProto": [6],
             "DstPorts": [{"IP": "*", "Ports": {"First": 22, "Last": 22}}]},
        ]))
    }

    fn with(rules: serde_json::Value) -> Self {
        let rules: Vec<FilterRule> = serde_json::from_value(rules).unwrap();
        let own: Vec<IpAddr> = ["100.64.0.1", HERE6].map(|ip| ip.parse().unwrap()).into();
        let routes = ["10.1.0.0/16".parse().unwrap()];
        let local = LocalSet::new(&LocalAddresses {
            addresses: &own,
            advertised: &routes,
            ..LocalAddresses::default()
        });
        let mut holders = CapabilityHolders::new();
        holders.add("trusted", &["100.64.0.2/32".parse().unwrap()]);
        let (filter, problems) = Filter::compile(&rules, local, &holders);
        assert!(problems.is_empty(), "{problems:?}");
        Self {
            filter,
            flows: FlowTable::with_slots(&mut FixedEntropy(0), 1024),
            now: GRACE_SECS,
        }
    }

    fn fate(verdict: Verdict) -> Fate {
        match verdict {
            Verdict::Accept => Passes,
            Verdict::Drop(reason) => Dropped(reason),
        }
    }

    fn comes(&self, bytes: &[u8]) -> Fate {
        match IpPacket::parse(bytes) {
            Err(problem) => Refused(problem),
            Ok(packet) => Self::fate(self.filter.check_in(&self.flows, &packet, self.now)),
        }
    }

    fn leaves(&self, bytes: &[u8]) -> Fate {
        match IpPacket::parse(bytes) {
            Err(problem) => Refused(problem),
            Ok(packet) => Self::fate(self.filter.check_out(&self.flows, &packet, self.now)),
        }
    }
}

/// An IPv4 packet; `fragment` is the field of flags and offset.
fn v4(src: [u8; 4], dst: [u8; 4], protocol: u8, fragment: u16, payload: &[u8]) -> Vec<u8> {
    let total = u16::try_from(20 + payload.len()).unwrap().to_be_bytes();
    let mut out = vec![0x45, 0, total[0], total[1], 0, 7];
    out.extend(fragment.to_be_bytes());
    out.extend([64, protocol, 0, 0]);
    out.extend(src);
    out.extend(dst);
    out.extend(payload);
    out
}

fn v6(src: &str, dst: &str, next: u8, payload: &[u8]) -> Vec<u8> {
    let len = u16::try_from(payload.len()).unwrap().to_be_bytes();
    let mut out = vec![0x60, 0, 0, 0, len[0], len[1], next, 64];
    for address in [src, dst] {
        out.extend(address.parse::<std::net::Ipv6Addr>().unwrap().octets());
    }
    out.extend(payload);
    out
}

/// A transport header that is long enough for every protocol.
fn ports(from: u16, to: u16, flags: u8) -> Vec<u8> {
    let mut out = vec![0; 24];
    out[..2].copy_from_slice(&from.to_be_bytes());
    out[2..4].copy_from_slice(&to.to_be_bytes());
    out[12] = 0x50;
    out[13] = flags;
    out
}

fn icmp(kind: u8, rest: &[u8]) -> Vec<u8> {
    let mut out = vec![kind, 0, 0, 0];
    out.extend(rest);
    out
}

/// `next`, then a header of `words` times 8 bytes more.
fn extension(next: u8, words: u8, behind: &[u8]) -> Vec<u8> {
    let mut out = vec![next, words];
    out.resize(8 + 8 * usize::from(words), 0);
    out.extend(behind);
    out
}

fn fragment6(next: u8, offset: u16, more: bool, behind: &[u8]) -> Vec<u8> {
    let mut out = vec![next, 0];
    out.extend((offset | u16::from(more)).to_be_bytes());
    out.extend([0, 0, 0, 9]);
    out.extend(behind);
    out
}

const MORE: u16 = 0x2000;

#[test]
fn later_fragments_follow_a_first_one() {
    let node = Node::new();
    let later = |src, dst| v4(src, dst, UDP, 20, &[0; 64]);
    // The reference lets all of these in.
    assert_eq!(node.comes(&later(STRANGER, HERE)), Dropped(Fragment));
    assert_eq!(node.comes(&later(STRANGER, ROUTED)), Dropped(Fragment));
    assert_eq!(node.comes(&later(STRANGER, ELSEWHERE)), Dropped(NotLocal));
    // Where a rule opens something, a pair out of order is not torn apart.
    assert_eq!(node.comes(&later(PEER, HERE)), Passes);

    // An answer in fragments.
    assert_eq!(
        node.leaves(&v4(HERE, STRANGER, UDP, 0, &ports(1000, 53, 0))),
        Passes
    );
    let first = v4(STRANGER, HERE, UDP, MORE, &ports(53, 1000, 0));
    assert_eq!(node.comes(&first), Passes);
    assert_eq!(node.comes(&later(STRANGER, HERE)), Passes);
    assert_eq!(node.comes(&later(STRANGER, ROUTED)), Dropped(Fragment));
    let much_later = Node {
        now: node.now + FRAGMENT_SECS + 1,
        ..node
    };
    assert_eq!(much_later.comes(&later(STRANGER, HERE)), Dropped(Fragment));

    // A first fragment that is refused opens nothing.
    let refused = v4(STRANGER, HERE, TCP, MORE, &ports(1, 22, SYN));
    assert_eq!(much_later.comes(&refused), Dropped(NoRule));
    assert_eq!(much_later.comes(&later(STRANGER, HERE)), Dropped(Fragment));
}

#[test]
fn fragments_cannot_hide_or_overwrite_a_transport_header() {
    let node = Node::new();
    // Tiny: ports in the first, flags in the second one.
    let tiny = v4(PEER, HERE, TCP, MORE, &ports(1, 22, SYN)[..8]);
    assert_eq!(node.comes(&tiny), Refused(Malformed::ShortTransport));
    // Overlapping: a later one that reaches into the header.
    for blocks in 1..10 {
        let overlap = v4(PEER, HERE, TCP, blocks, &[0; 64]);
        assert_eq!(node.comes(&overlap), Refused(Malformed::FragmentOverlap));
    }
    assert_eq!(node.comes(&v4(PEER, HERE, TCP, 10, &[0; 64])), Passes);
    // IPv6: extension headers push the transport header behind that line.
    let syn = ports(1, 22, SYN);
    let pushed = extension(TCP, 7, &syn);
    let first = |behind: &[u8]| v6(PEER6, HERE6, 44, &fragment6(60, 0, true, behind));
    assert_eq!(
        node.comes(&first(&pushed)),
        Refused(Malformed::FragmentOverlap)
    );
    assert_eq!(node.comes(&first(&extension(TCP, 6, &syn))), Passes);
    let later = v6(PEER6, HERE6, 44, &fragment6(TCP, 72, false, &[0; 32]));
    assert_eq!(node.comes(&later), Refused(Malformed::FragmentOverlap));
}

#[test]
fn rules_see_what_stands_behind_extension_headers() {
    let node = Node::new();
    let (open, closed) = (ports(1, 22, SYN), ports(1, 23, SYN));
    for (chain, allowed) in [
        (v6(PEER6, HERE6, 0, &extension(TCP, 0, &open)), Passes),
        (
            v6(PEER6, HERE6, 0, &extension(TCP, 0, &closed)),
            Dropped(NoRule),
        ),
        (
            v6(PEER6, HERE6, 60, &extension(TCP, 2, &closed)),
            Dropped(NoRule),
        ),
        (v6(PEER6, HERE6, 43, &extension(TCP, 0, &open)), Passes),
        (
            v6(PEER6, HERE6, 43, &extension(TCP, 0, &closed)),
            Dropped(NoRule),
        ),
        // Two of them, then a fragment header of a whole packet.
        (
            v6(
                PEER6,
                HERE6,
                0,
                &extension(60, 0, &extension(44, 0, &fragment6(TCP, 0, false, &closed))),
            ),
            Dropped(NoRule),
        ),
    ] {
        assert_eq!(node.comes(&chain), allowed);
        assert_eq!(node.leaves(&chain), Passes);
    }
}

#[test]
fn extension_headers_have_limits() {
    let node = Node::new();
    let refused = Refused(Malformed::Extensions);
    let chain = |count| {
        let mut packet = ports(1, 22, SYN);
        let mut next = TCP;
        for _ in 0..count {
            packet = extension(next, 0, &packet);
            next = 60;
        }
        v6(PEER6, HERE6, next, &packet)
    };
    assert_eq!(node.comes(&chain(8)), Passes);
    assert_eq!(node.comes(&chain(9)), refused);
    let cut_off = v6(PEER6, HERE6, 60, &[TCP, 9, 0, 0, 0, 0, 0, 0]);
    assert_eq!(node.comes(&cut_off), refused);
    let misplaced = v6(
        PEER6,
        HERE6,
        60,
        &extension(0, 0, &extension(TCP, 0, &ports(1, 22, SYN))),
    );
    assert_eq!(node.comes(&misplaced), refused);
    let twice = fragment6(44, 0, true, &fragment6(TCP, 0, true, &ports(1, 22, SYN)));
    assert_eq!(node.comes(&v6(PEER6, HERE6, 44, &twice)), refused);
}

#[test]
fn authenticated_packets_are_a_protocol_of_their_own() {
    // Payload length 4: 24 bytes in all (RFC 4302 section 2.2).
    let mut header = vec![TCP, 4];
    header.resize(24, 0);
    header.extend(ports(1, 22, SYN));
    let packets = [
        v6(PEER6, HERE6, AH, &header),
        v4(PEER, HERE, AH, 0, &header),
    ];
    let tcp_only = Node::new();
    let named = Node::with(json!([
        {"SrcIPs": ["*"], "IPProto": [51], "DstPorts": [{"IP": "*", "Ports": {"First": 0, "Last": 65535}}]},
    ]));
    for packet in packets {
        assert_eq!(tcp_only.comes(&packet), Dropped(NoRule));
        assert_eq!(named.comes(&packet), Passes);
    }
}

#[test]
fn source_routes_are_refused() {
    let node = Node::new();
    let source_route = Refused(Malformed::SourceRoute);
    for kind in [131, 137] {
        let mut packet = v4(PEER, HERE, TCP, 0, &ports(1, 22, SYN));
        // No operation, then a route of one stop; 28 bytes of header.
        packet.splice(20..20, [1, kind, 7, 4, 10, 9, 9, 9]);
        packet[0] = 0x47;
        packet[3] += 8;
        assert_eq!(node.comes(&packet), source_route);
        assert_eq!(node.leaves(&packet), source_route);
        // Record route is none.
        packet[21] = 7;
        assert_eq!(node.comes(&packet), Passes);
        packet[22] = 1;
        assert_eq!(node.comes(&packet), Refused(Malformed::HeaderLength));
    }
    for kind in [0, 2, 3, 4, 200] {
        let mut routing = extension(TCP, 2, &ports(1, 22, SYN));
        routing[2] = kind;
        assert_eq!(
            node.comes(&v6(PEER6, HERE6, 43, &routing)),
            Passes,
            "no stops left"
        );
        routing[3] = 1;
        assert_eq!(node.comes(&v6(PEER6, HERE6, 43, &routing)), source_route);
    }
}

#[test]
fn capability_sources_reach_only_the_rules_destination() {
    let node = Node::with(json!([
        {"SrcIPs": ["cap:trusted"], "DstPorts": [{"IP": "100.64.0.1", "Ports": {"First": 22, "Last": 22}}]},
        {"SrcIPs": ["cap:trusted"], "IPProto": [47],
         "DstPorts": [{"IP": "100.64.0.1", "Ports": {"First": 0, "Last": 65535}}]},
    ]));
    let ping = icmp(8, &[0; 8]);
    for (protocol, payload) in [(1, &ping), (GRE, &ping), (TCP, &ports(1, 22, SYN))] {
        assert_eq!(node.comes(&v4(PEER, HERE, protocol, 0, payload)), Passes);
        // The reference lets the ping in here ...
        assert_eq!(
            node.comes(&v4(PEER, ROUTED, protocol, 0, payload)),
            Dropped(NoRule)
        );
        // ... and refuses the holder's GRE above.
        assert_eq!(
            node.comes(&v4(STRANGER, HERE, protocol, 0, payload)),
            Dropped(NoRule)
        );
    }
}

#[test]
fn icmp_errors_belong_to_a_flow() {
    let node = Node::with(json!([]));
    let error = |kind, quoted: &[u8]| {
        let mut rest = vec![0; 4];
        rest.extend(quoted);
        v4(STRANGER, HERE, 1, 0, &icmp(kind, &rest))
    };
    let flows = [
        v4(HERE, PEER, UDP, 0, &ports(1000, 53, 0)),
        v4(HERE, PEER, TCP, 0, &ports(1000, 443, SYN)),
        v4(HERE, PEER, SCTP, 0, &ports(1000, 9, 0)),
        v4(HERE, PEER, 1, 0, &icmp(8, &[0, 77, 0, 1])),
        v4(HERE, PEER, GRE, 0, &[0; 8]),
    ];
    for packet in &flows {
        // Only as much as RFC 792 promises: the header and 8 bytes.
        let quoted = &packet[..28];
        assert_eq!(node.comes(&error(3, quoted)), Dropped(UnrelatedError));
        assert_eq!(node.leaves(packet), Passes);
        for kind in [3, 11, 12] {
            assert_eq!(node.comes(&error(kind, quoted)), Passes, "type {kind}");
        }
    }
    let unrelated = [
        // Another port, another protocol, another identifier, another host's.
        v4(HERE, PEER, UDP, 0, &ports(1000, 54, 0)),
        v4(HERE, PEER, UDP, 0, &ports(1000, 443, 0)),
        v4(HERE, [100, 64, 0, 9], 1, 0, &icmp(8, &[0, 78, 0, 1])),
        v4(ROUTED, PEER, UDP, 0, &ports(1000, 53, 0)),
        v4(PEER, HERE, UDP, 0, &ports(53, 1000, 0)),
    ];
    for packet in unrelated {
        assert_eq!(node.comes(&error(3, &packet)), Dropped(UnrelatedError));
    }
    for cut in [0, 1, 19] {
        assert_eq!(
            node.comes(&error(3, &flows[0][..cut])),
            Dropped(UnrelatedError)
        );
    }
    // The constant that the reference takes for parameter problem is none.
    assert_eq!(node.comes(&error(18, &flows[0])), Dropped(NoRule));
}

#[test]
fn packet_too_big_about_a_fragment_passes() {
    let node = Node::with(json!([]));
    let sent = v6(
        HERE6,
        PEER6,
        44,
        &fragment6(UDP, 0, true, &ports(1000, 53, 0)),
    );
    let mut rest = vec![0, 0, 5, 0];
    rest.extend(&sent);
    let too_big = v6("2001:db8::1", HERE6, 58, &icmp(2, &rest));
    assert_eq!(node.comes(&too_big), Dropped(UnrelatedError));
    assert_eq!(node.leaves(&sent), Passes);
    assert_eq!(node.comes(&too_big), Passes);
}

#[test]
fn echo_replies_answer_a_request() {
    let node = Node::with(json!([]));
    let reply = v4(PEER, HERE, 1, 0, &icmp(0, &[0, 77, 0, 1]));
    let reply6 = v6(PEER6, HERE6, 58, &icmp(129, &[0, 77, 0, 1]));
    assert_eq!(node.comes(&reply), Dropped(NoFlow));
    assert_eq!(node.comes(&reply6), Dropped(NoFlow));
    assert_eq!(
        node.leaves(&v4(HERE, PEER, 1, 0, &icmp(8, &[0, 77, 0, 1]))),
        Passes
    );
    assert_eq!(
        node.leaves(&v6(HERE6, PEER6, 58, &icmp(128, &[0, 77, 0, 1]))),
        Passes
    );
    assert_eq!(node.comes(&reply), Passes);
    assert_eq!(node.comes(&reply6), Passes);
    assert_eq!(
        node.comes(&v4(STRANGER, HERE, 1, 0, &icmp(0, &[0, 77, 0, 1]))),
        Dropped(NoFlow)
    );
}

#[test]
fn tcp_has_a_memory() {
    let node = Node::new();
    let ack = |src, dst, from, to| v4(src, dst, TCP, 0, &ports(from, to, ACK));
    // The reference lets all of these in.
    assert_eq!(node.comes(&ack(STRANGER, HERE, 1, 22)), Dropped(NoFlow));
    assert_eq!(node.comes(&ack(PEER, HERE, 1, 23)), Dropped(NoFlow));
    assert_eq!(node.comes(&ack(STRANGER, ROUTED, 1, 80)), Dropped(NoFlow));
    // A connection that a rule allows may continue.
    assert_eq!(node.comes(&ack(PEER, HERE, 1, 22)), Passes);

    // A connection from here.
    assert_eq!(
        node.leaves(&v4(HERE, STRANGER, TCP, 0, &ports(1000, 443, SYN))),
        Passes
    );
    assert_eq!(
        node.comes(&v4(STRANGER, HERE, TCP, 0, &ports(443, 1000, SYN | ACK))),
        Passes
    );
    assert_eq!(node.comes(&ack(STRANGER, HERE, 443, 1001)), Dropped(NoFlow));
    // It may not be opened from the other side, and outlives long silence.
    assert_eq!(
        node.comes(&v4(STRANGER, HERE, TCP, 0, &ports(443, 1000, SYN))),
        Dropped(NoRule)
    );
    let later = Node {
        now: node.now + TCP_IDLE_SECS,
        ..node
    };
    assert_eq!(later.comes(&ack(STRANGER, HERE, 443, 1000)), Passes);

    // A connection to here goes on when its rule is gone, and with shields up.
    let node = Node::new();
    assert_eq!(
        node.comes(&v4(PEER, HERE, TCP, 0, &ports(1, 22, SYN))),
        Passes
    );
    assert_eq!(
        node.leaves(&v4(HERE, PEER, TCP, 0, &ports(22, 1, SYN | ACK))),
        Passes
    );
    let shields = Node {
        filter: node.filter.jailed(),
        ..node
    };
    assert_eq!(shields.comes(&ack(PEER, HERE, 1, 22)), Passes);
    assert_eq!(shields.comes(&ack(PEER, HERE, 2, 22)), Dropped(NoFlow));
}

#[test]
fn connections_outlive_the_daemon_that_knew_them() {
    let started = Node {
        now: 0,
        ..Node::with(json!([]))
    };
    let data = v4(PEER, HERE, TCP, 0, &ports(443, 1000, ACK));
    assert_eq!(started.comes(&data), Passes);
    assert_eq!(
        started.comes(&v4(PEER, HERE, TCP, 0, &ports(443, 1000, SYN))),
        Dropped(NoRule)
    );
    // The host acknowledges: from then on it is known.
    assert_eq!(
        started.leaves(&v4(HERE, PEER, TCP, 0, &ports(1000, 443, ACK))),
        Passes
    );
    let later = Node {
        now: GRACE_SECS,
        ..started
    };
    assert_eq!(later.comes(&data), Passes);
    assert_eq!(
        later.comes(&v4(PEER, HERE, TCP, 0, &ports(443, 1001, ACK))),
        Dropped(NoFlow)
    );
}

#[test]
fn sctp_is_as_udp() {
    let node = Node::with(json!([
        {"SrcIPs": ["100.64.0.2"], "IPProto": [132], "DstPorts": [{"IP": "*", "Ports": {"First": 9, "Last": 9}}]},
    ]));
    let sctp = |src, dst, from, to| v4(src, dst, SCTP, 0, &ports(from, to, 0));
    assert_eq!(node.comes(&sctp(PEER, HERE, 1, 9)), Passes);
    assert_eq!(node.comes(&sctp(PEER, HERE, 1, 10)), Dropped(NoRule));
    assert_eq!(node.comes(&sctp(STRANGER, HERE, 1, 9)), Dropped(NoRule));
    assert_eq!(node.leaves(&sctp(HERE, STRANGER, 9, 1)), Passes);
    assert_eq!(node.comes(&sctp(STRANGER, HERE, 1, 9)), Passes);
    assert_eq!(
        node.comes(&v4(PEER, HERE, UDP, 0, &ports(1, 9, 0))),
        Dropped(NoRule)
    );
    let short = v4(PEER, HERE, SCTP, 0, &ports(1, 9, 0)[..11]);
    assert_eq!(node.comes(&short), Refused(Malformed::ShortTransport));
}

#[test]
fn unknown_protocols_need_a_rule_of_their_own() {
    let every_port = json!([{"IP": "*", "Ports": {"First": 0, "Last": 65535}}]);
    let node = Node::with(json!([
        {"SrcIPs": ["*"], "DstPorts": every_port.clone()},
        {"SrcIPs": ["*"], "IPProto": [47], "DstPorts": every_port},
        {"SrcIPs": ["*"], "IPProto": [4], "DstPorts": [
            {"IP": "*", "Ports": {"First": 0, "Last": 9}}, {"IP": "*", "Ports": {"First": 10, "Last": 65535}},
        ]},
    ]));
    assert_eq!(node.comes(&v4(PEER, HERE, GRE, 0, &[])), Passes);
    // Not named; named with less than every port in one entry.
    assert_eq!(node.comes(&v4(PEER, HERE, 46, 0, &[])), Dropped(NoRule));
    assert_eq!(node.comes(&v4(PEER, HERE, 4, 0, &[])), Dropped(NoRule));
    // Nothing comes back just because something left.
    assert_eq!(node.leaves(&v4(HERE, PEER, 46, 0, &[])), Passes);
    assert_eq!(node.comes(&v4(PEER, HERE, 46, 0, &[])), Dropped(NoRule));
    for protocol in [0, 255] {
        let packet = v4(PEER, HERE, protocol, 0, &[]);
        assert_eq!(node.comes(&packet), Refused(Malformed::Protocol));
        assert_eq!(node.leaves(&packet), Refused(Malformed::Protocol));
    }
    // ICMP of the other family is such a protocol.
    assert_eq!(
        node.comes(&v4(PEER, HERE, 58, 0, &icmp(128, &[0; 8]))),
        Passes
    );
    assert_eq!(
        Node::new().comes(&v4(PEER, HERE, 58, 0, &icmp(129, &[0; 8]))),
        Dropped(NoRule)
    );
}

#[test]
fn lengths_that_lie_are_refused() {
    let node = Node::new();
    let good = v4(PEER, HERE, TCP, 0, &ports(1, 22, SYN));
    assert_eq!(node.comes(&good), Passes);
    let changed = |at: usize, to: u8| {
        let mut packet = good.clone();
        packet[at] = to;
        packet
    };
    for (packet, problem) in [
        (changed(0, 0x44), Malformed::HeaderLength),
        (changed(0, 0x4f), Malformed::HeaderLength),
        (changed(0, 0x55), Malformed::Version),
        (changed(3, 45), Malformed::TotalLength),
        (changed(3, 39), Malformed::ShortTransport),
        (changed(3, 19), Malformed::HeaderLength),
        (good[..19].to_vec(), Malformed::ShortHeader),
        (Vec::new(), Malformed::ShortHeader),
        (
            v6(PEER6, HERE6, TCP, &ports(1, 22, SYN))[..39].to_vec(),
            Malformed::ShortHeader,
        ),
        (
            v6(PEER6, HERE6, TCP, &ports(1, 22, SYN))[..60].to_vec(),
            Malformed::TotalLength,
        ),
        (v6(PEER6, HERE6, TCP, &[]), Malformed::ShortTransport),
    ] {
        assert_eq!(node.comes(&packet), Refused(problem), "{packet:02x?}");
    }
    // Bytes behind the packet's own end are ignored.
    let mut padded = v4(PEER, HERE, TCP, 0, &ports(1, 23, SYN));
    padded.extend(ports(1, 22, SYN));
    assert_eq!(node.comes(&padded), Dropped(NoRule));
}

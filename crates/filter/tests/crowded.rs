//! A table of flows that is far too small for all connections: quiet connections of
//! others stay, however many new ones one address opens.

#![allow(clippy::unwrap_used)]

use warren_control_types::FilterRule;
use warren_filter::{CapabilityHolders, Filter, FlowTable, LocalAddresses, LocalSet, Verdict};
use warren_testkit::FixedEntropy;
use warren_wire::ip::IpPacket;

const SYN: u8 = 0x02;
const SYN_ACK: u8 = 0x12;
const ACK: u8 = 0x10;
const RST_ACK: u8 = 0x14;

type End = ([u8; 4], u16);

const SERVER: End = ([100, 64, 0, 2], 443);
/// Quiet connections from here.
const QUIET: u16 = 24;
/// The number of connections that crowd the table.
const CROWD: u16 = 20_000;
/// Another host behind this node, which is a subnet router.
const BEHIND: [u8; 4] = [10, 1, 0, 7];

fn packet(protocol: u8, from: End, to: End, flags: u8) -> Vec<u8> {
    let mut out = vec![0u8; 40];
    out[..4].copy_from_slice(&[0x45, 0, 0, 40]);
    (out[8], out[9]) = (64, protocol);
    out[12..16].copy_from_slice(&from.0);
    out[16..20].copy_from_slice(&to.0);
    out[20..22].copy_from_slice(&from.1.to_be_bytes());
    out[22..24].copy_from_slice(&to.1.to_be_bytes());
    (out[32], out[33]) = (0x50, flags);
    out
}

struct Node {
    filter: Filter,
    flows: FlowTable,
}

fn quiet(n: u16) -> End {
    ([100, 64, 0, 1], 1000 + n)
}

impl Node {
    /// A node with quiet connections, and one rule: to its port 80.
    fn new() -> Self {
        let rules: Vec<FilterRule> = serde_json::from_value(serde_json::json!([
            {"SrcIPs": ["100.64.0.0/10"], "DstPorts": [{"IP": "*", "Ports": {"First": 80, "Last": 80}}]},
        ]))
        .unwrap();
        let local = LocalSet::new(&LocalAddresses {
            addresses: &["100.64.0.1".parse().unwrap()],
            advertised: &["10.1.0.0/16".parse().unwrap()],
            ..LocalAddresses::default()
        });
        let (filter, _) = Filter::compile(&rules, local, &CapabilityHolders::new());
        let node = Self {
            filter,
            flows: FlowTable::with_slots(&mut FixedEntropy(0), 512).without_grace(),
        };
        for n in 0..QUIET {
            node.leaves(6, quiet(n), SERVER, SYN);
            assert!(node.comes(6, SERVER, quiet(n), SYN_ACK));
        }
        node
    }

    fn leaves(&self, protocol: u8, from: End, to: End, flags: u8) {
        let bytes = packet(protocol, from, to, flags);
        let packet = IpPacket::parse(&bytes).unwrap();
        assert!(self.filter.check_out(&self.flows, &packet, 1).is_accept());
    }

    fn comes(&self, protocol: u8, from: End, to: End, flags: u8) -> bool {
        let bytes = packet(protocol, from, to, flags);
        let packet = IpPacket::parse(&bytes).unwrap();
        self.filter.check_in(&self.flows, &packet, 1) == Verdict::Accept
    }

    /// How many of the quiet connections are still known.
    fn left(&self) -> usize {
        (0..QUIET)
            .filter(|n| self.comes(6, SERVER, quiet(*n), ACK))
            .count()
    }
}

#[test]
fn a_peer_that_opens_many_connections_to_us() {
    let node = Node::new();
    for n in 0..CROWD {
        let (from, to) = (([100, 64, 0, 9], n), ([100, 64, 0, 1], 80));
        assert!(node.comes(6, from, to, SYN));
        node.leaves(6, to, from, SYN_ACK);
        assert!(node.comes(6, from, to, ACK));
    }
    assert_eq!(node.left(), usize::from(QUIET));
}

#[test]
fn a_peer_whose_packets_are_refused() {
    let node = Node::new();
    for n in 0..CROWD {
        let (from, to) = (([100, 64, 0, 9], n), ([100, 64, 0, 1], 81));
        for (protocol, flags) in [(6, SYN), (6, ACK), (17, 0), (132, 0)] {
            assert!(!node.comes(protocol, from, to, flags));
        }
    }
    assert_eq!(node.left(), usize::from(QUIET));
}

#[test]
fn a_scanner_here_that_is_refused_or_not_answered() {
    let node = Node::new();
    for n in 0..CROWD {
        let [high, low] = n.to_be_bytes();
        let (from, to) = (([100, 64, 0, 1], 50_000), ([10, 9, high, low], 22));
        node.leaves(6, from, to, SYN);
        if n % 2 == 0 {
            assert!(node.comes(6, to, from, RST_ACK));
        }
        node.leaves(17, from, to, 0);
    }
    assert_eq!(node.left(), usize::from(QUIET));
}

#[test]
fn a_host_behind_us_with_connections_to_everywhere() {
    let node = Node::new();
    for n in 0..CROWD {
        let (from, to) = ((BEHIND, n), ([100, 64, 0, 3], 443));
        node.leaves(6, from, to, SYN);
        // Its own newest is always known, too.
        assert!(node.comes(6, to, from, SYN_ACK));
    }
    assert_eq!(node.left(), usize::from(QUIET));
}

#[test]
fn connections_that_are_over_make_room() {
    let node = Node::new();
    for n in 0..QUIET {
        node.leaves(6, quiet(n), SERVER, 0x11);
        assert!(node.comes(6, SERVER, quiet(n), 0x11));
        node.leaves(6, quiet(n), SERVER, ACK);
    }
    assert_eq!(node.left(), usize::from(QUIET), "late segments pass");
    for n in 0..CROWD {
        let (from, to) = (([100, 64, 0, 9], n), ([100, 64, 0, 1], 80));
        assert!(node.comes(6, from, to, SYN));
        node.leaves(6, to, from, SYN_ACK);
    }
    assert_eq!(node.left(), 0);
}

//! A node that was restarted, and peers that still send on the old sessions: packets
//! from known addresses make it request a session, those from others do nothing.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use warren_dataplane::{DropReason, Sources};
use warren_dataplane_testkit::{PEER, Pair, udp_address, with_peer};
use warren_keys::NodePublic;
use warren_tunnel::Source;

/// Tunnel data of a session that does not exist; `count` datagrams in one call.
fn old_data(count: usize) -> Vec<u8> {
    let datagram = [&[4, 0, 0, 0, 9, 9, 9, 9][..], &[0; 40]].concat();
    datagram.repeat(count)
}

const LEN: usize = 48;

/// Node 2 after a restart: it knows where its peer is, and has no session.
fn restarted() -> Pair {
    let mut pair = Pair::new();
    let mut view = with_peer(&pair.views[1], |peer| peer.session = None);
    view.sessions.clear();
    let mut sources = Sources::default();
    sources.set(PEER, key(1), &[], &[udp_address(1)]);
    view.sources = Arc::new(sources);
    pair.views[1] = view;
    pair
}

fn key(n: u8) -> NodePublic {
    NodePublic::from_bytes([n; 32])
}

fn relayed(n: u8) -> Source {
    Source::Derp {
        region: warren_node_types::RegionId(3),
        key: key(n),
    }
}

#[test]
fn a_peer_that_sends_on_an_old_session_is_asked_for_a_new_one() {
    for from in [Source::Udp(udp_address(1)), relayed(1)] {
        for count in [1, 10] {
            let mut pair = restarted();
            pair.arrive(from, old_data(count), LEN);
            assert_eq!(pair.host.wanted, [PEER], "{count} from {from:?}");
            // Not again for each packet, but when nothing came of it.
            for _ in 0..100 {
                pair.later(Duration::from_millis(49));
                pair.arrive(from, old_data(count), LEN);
            }
            assert_eq!(pair.host.wanted, [PEER]);
            pair.later(Duration::from_millis(100));
            pair.arrive(from, old_data(count), LEN);
            assert_eq!(pair.host.wanted, [PEER, PEER]);
            let dropped = pair.drops[1].get(DropReason::UnknownSession);
            assert_eq!(dropped, 102 * count as u64);
        }
    }
}

#[test]
fn strangers_are_nobody() {
    let mut pair = restarted();
    for n in 2..200 {
        pair.arrive(Source::Udp(udp_address(n)), old_data(3), LEN);
        pair.arrive(relayed(n), old_data(3), LEN);
    }
    let mut other_port = udp_address(1);
    other_port.set_port(1);
    pair.arrive(Source::Udp(other_port), old_data(1), LEN);
    assert!(pair.host.wanted.is_empty());
}

#[test]
fn late_packets_beside_a_session_cause_nothing() {
    let mut pair = restarted();
    let session = Pair::new().views[1].peers[1].clone().unwrap();
    pair.views[1] = with_peer(&pair.views[1], |peer| {
        peer.session.clone_from(&session.session);
    });
    pair.arrive(relayed(1), old_data(2), LEN);
    assert!(pair.host.wanted.is_empty());
    // When it has ended, they do.
    pair.later(Duration::from_secs(200));
    pair.arrive(relayed(1), old_data(2), LEN);
    assert_eq!(pair.host.wanted, [PEER]);
}

//! Datagrams that go through a relay together, between two nodes that both
//! understand that.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use warren_control_types::RegionId;
use warren_dataplane::{DropReason, Drops, Outbound};
use warren_dataplane_testkit::{PEER, Pair, expand, segments, udp_address};
use warren_keys::NodePublic;
use warren_node_types::Destination;
use warren_tunnel::Source;
use warren_wire::relay_batch::{self, NOTE};
use warren_wire::wireguard::is_transport;

const REGION: RegionId = RegionId(7);

fn pair() -> Pair {
    let mut pair = Pair::new();
    for node in 0..2 {
        pair.views[node] = warren_dataplane_testkit::with_peer(&pair.views[node], |peer| {
            peer.destination = Destination::derp(REGION);
        });
    }
    pair
}

/// Carries what was sent, as the shell does; gives the packets' lengths.
fn carry(pair: &mut Pair) -> Vec<usize> {
    pair.outbound.flush(&mut pair.net);
    let packets = std::mem::take(&mut pair.net.relayed);
    let lengths = packets.iter().map(Vec::len).collect();
    let from = Source::Derp {
        region: REGION,
        key: NodePublic::from_bytes([1; 32]),
    };
    for mut packet in packets {
        if is_transport(&packet) {
            let len = packet.len();
            pair.arrive(from, packet, len);
        } else {
            let (len, datagrams) = relay_batch::split(&mut packet).unwrap();
            pair.arrive(from, datagrams.to_vec(), len);
        }
    }
    pair.inbound.flush(&mut pair.host);
    lengths
}

/// Lets node 1 receive the note of node 2.
fn receive_note(pair: &mut Pair, note: &[u8]) {
    let drops = Arc::new(Drops::new());
    let mut answering = Outbound::new(Arc::clone(&drops));
    answering.inject(&pair.views[1], pair.now, PEER, note, &mut pair.net);
    answering.flush(&mut pair.net);
    assert_eq!(drops.total(), 0);
    let [mut datagram] = <[_; 1]>::try_from(std::mem::take(&mut pair.net.relayed)).unwrap();
    let len = datagram.len();
    let from = Source::Udp(udp_address(2));
    let mut host = warren_dataplane_testkit::Host::default();
    let mut inbound = warren_dataplane_testkit::inbound(&pair.drops[0]);
    inbound.datagrams(
        &pair.views[0],
        pair.now,
        from,
        &mut datagram,
        len,
        &mut host,
    );
    inbound.flush(&mut host);
    assert!(
        host.frames.is_empty(),
        "it is for the node, not for the host"
    );
}

#[test]
fn batches_go_together_once_the_peer_has_said_so() {
    let mut pair = pair();
    pair.send(&segments(0, 60_000).frame(Some(1_208)));
    let lengths = carry(&mut pair);
    assert_eq!(lengths.len(), 50);
    assert_eq!(pair.host.out, [(PEER, NOTE.to_vec())], "one note so far");

    let (_, note) = pair.host.out.pop().unwrap();
    receive_note(&mut pair, &note);
    pair.send(&segments(60_000, 60_000).frame(Some(1_208)));
    let lengths = carry(&mut pair);
    // Twelve datagrams of 1,312 bytes each, two remain.
    assert_eq!(lengths.len(), 5, "{lengths:?}");
    assert!(
        lengths
            .iter()
            .all(|len| *len <= relay_batch::HEADER_LEN + relay_batch::MAX_BYTES)
    );
    let got: Vec<u8> = pair
        .host
        .frames
        .iter()
        .flat_map(|frame| expand(frame))
        .flat_map(|packet| packet[52..].to_vec())
        .collect();
    let sent = segments(0, 60_000).payload;
    assert_eq!(got, [&sent[..], &sent].concat());
    assert_eq!(pair.drops[1].total(), 0);
}

#[test]
fn single_packets_are_sent_without_a_batch_header() {
    let mut pair = pair();
    receive_note(&mut pair, &NOTE);
    for i in 0..3 {
        pair.send(&segments(i, 10).frame(None));
        let [length] = carry(&mut pair)[..] else {
            unreachable!("one packet was sent")
        };
        assert_eq!(length, 16 + 64 + 16);
    }
    assert_eq!(pair.host.frames.len(), 3);
}

/// The word is bound to the session, because the peer's next program may be
/// another one.
#[test]
fn another_session_starts_without_batches() {
    let mut pair = pair();
    receive_note(&mut pair, &NOTE);
    let session = |pair: &Pair| pair.views[0].peers[1].as_ref().unwrap().session.clone();
    assert!(session(&pair).unwrap().takes_batches());
    let fresh = warren_dataplane_testkit::sessions(pair.now)[0].clone();
    pair.views[0] =
        warren_dataplane_testkit::with_peer(&pair.views[0], |peer| peer.session = Some(fresh));
    pair.send(&segments(0, 60_000).frame(Some(1_208)));
    pair.outbound.flush(&mut pair.net);
    assert!(pair.net.relayed.iter().all(|packet| is_transport(packet)));
}

#[test]
fn peers_that_ignore_the_note_get_it_ever_less_often() {
    let mut pair = pair();
    for round in 0..2_100 {
        pair.send(&segments(round, 10).frame(None));
        carry(&mut pair);
    }
    assert_eq!(pair.host.out.len(), 4, "after 32, 128, 512 and 2,048");
}

#[test]
fn damaged_note_is_ignored() {
    let mut pair = pair();
    let mut note = NOTE;
    note[4] = 2;
    let session = pair.views[0].peers[1].as_ref().unwrap().session.clone();
    let session = session.unwrap();
    let mut datagram = [&[0; 16][..], &note, &[0; 27]].concat();
    session
        .seal_in_place(session.reserve(1).unwrap(), &mut datagram)
        .unwrap();
    let len = datagram.len();
    pair.arrive(Source::Udp(udp_address(1)), datagram, len);
    assert_eq!(pair.drops[1].get(DropReason::MalformedInner), 1);
}

//! The packet path when things go wrong: a network that loses, repeats,
//! reorders and damages, sessions at their end, a node that changes while packets
//! are on their way, and a device that refuses. The output must be that of a plain
//! model that handles one packet at a time.

#![allow(clippy::unwrap_used)]

mod traffic;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use traffic::{How, Item, by_flow, items, plain, raw};
use warren_dataplane::{
    DecryptMemory, DecryptedBatch, DropReason, GsoType, Inbound, InboundOffloads, Joined,
    SessionView, View, VnetHdr,
};
use warren_dataplane_testkit::{
    Batch, HEADER, PEER, Pair, Recipe, arrived, comparable, tcp, udp, udp_address, with_peer,
};
use warren_keys::noise::MessageKey;
use warren_node_types::Destination;
use warren_tunnel::{PeerIndex, REJECT_AFTER_MESSAGES, Role, Session, Source};
use warren_wire::wireguard::TRANSPORT_OVERHEAD;

// ---- the network ----

/// The fate of one datagram on its way.
#[derive(Debug, Clone, Copy)]
enum Fate {
    Arrives,
    Lost,
    /// Comes again so many datagrams later.
    Repeated(u8),
    /// Comes so many datagrams late.
    Late(u8),
    /// One bit is another.
    Damaged(u16),
    /// The end is missing.
    Cut(u8),
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        12 => Just(Fate::Arrives),
        1 => Just(Fate::Lost),
        1 => (0u8..60).prop_map(Fate::Repeated),
        2 => (1u8..20).prop_map(Fate::Late),
        1 => any::<u16>().prop_map(Fate::Damaged),
        1 => (1u8..255).prop_map(Fate::Cut),
    ]
}

/// An event at the sending node while it sends.
#[derive(Debug, Clone, Copy)]
enum Event {
    Nothing,
    Mtu(u16),
    /// A new session takes over; the old one still receives.
    Rekey,
    /// Packets wait for a path, until a later event finds one.
    NoPath,
    Roam(u8),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        8 => Just(Event::Nothing),
        1 => (576u16..9_000).prop_map(Event::Mtu),
        1 => Just(Event::Rekey),
        1 => Just(Event::NoPath),
        1 => (1u8..9).prop_map(Event::Roam),
    ]
}

/// A datagram that arrives, and the packet it brings if it is good.
struct Arrival {
    at: usize,
    bytes: Vec<u8>,
    number: Option<usize>,
}

fn arrivals(datagrams: &[Vec<u8>], fates: &[Fate]) -> Vec<Arrival> {
    let mut out = Vec::new();
    let fates = fates.iter().cycle();
    for (number, (datagram, fate)) in datagrams.iter().zip(fates).enumerate() {
        let mut come = |late: u8, bytes: Vec<u8>, good: bool| {
            out.push(Arrival {
                at: number + usize::from(late),
                bytes,
                number: good.then_some(number),
            });
        };
        let mut damaged = datagram.clone();
        match *fate {
            Fate::Arrives => come(0, damaged, true),
            Fate::Lost => {}
            Fate::Repeated(later) => {
                come(0, damaged.clone(), true);
                come(later, damaged, true);
            }
            Fate::Late(by) => come(by, damaged, true),
            Fate::Damaged(bit) => {
                // Not the receiver index: it would name no session.
                let bit = 64 + usize::from(bit) % ((damaged.len() - 8) * 8);
                damaged[bit / 8] ^= 1 << (bit % 8);
                come(0, damaged, false);
            }
            Fate::Cut(by) => {
                let len = damaged.len().saturating_sub(by.into()).max(33);
                damaged.truncate(len);
                come(0, damaged, len == datagram.len());
            }
        }
    }
    out.sort_by_key(|arrival| arrival.at);
    out
}

/// The result of one receive call: datagrams of one size and perhaps a smaller
/// last one, as the kernel joins them. It may join anywhere.
fn next_batch(arrivals: &[Arrival], most: usize) -> (Batch, usize) {
    let first = &arrivals[0].bytes;
    let (mut bytes, mut count) = (first.clone(), 1);
    for next in arrivals.iter().take(most).skip(1) {
        if next.bytes.len() > first.len() {
            break;
        }
        bytes.extend(&next.bytes);
        count += 1;
        if next.bytes.len() < first.len() {
            break;
        }
    }
    ((bytes, first.len()), count)
}

/// Both ends of another session between the two nodes.
fn another_session(pair: &mut Pair, number: u8) {
    let (x, y) = (
        MessageKey::new([number; 32]),
        MessageKey::new([number ^ 0xff; 32]),
    );
    let (here, there) = (100 + u32::from(number), 500 + u32::from(number));
    let near = Session::new(Role::Initiator, here, there, &x, &y, pair.now);
    let far = Session::new(Role::Responder, there, here, &y, &x, pair.now);
    pair.views[0] = with_peer(&pair.views[0], |peer| peer.session = Some(near.into()));
    let view = SessionView {
        peer: PEER,
        session: far.into(),
    };
    pair.views[1].sessions.insert(there, view);
    let view = pair.views[1].clone();
    pair.inbound.on_view_change(&view);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    /// The model: cut each superpacket, seal each packet on its own, let the
    /// network do what it does, take each datagram on its own, and refuse what
    /// is damaged or was there before. Batches, batches and joining change
    /// nothing but the number of system calls.
    #[test]
    fn batches_do_what_single_packets_would(
        raw in raw(),
        fates in prop::collection::vec(fate(), 1..200),
        events in prop::collection::vec(event(), 1..40),
        batches in prop::collection::vec((1usize..70, 0u8..4, 1u8..4), 1..50),
        offloads in (any::<bool>(), any::<bool>()),
    ) {
        let items = items(raw);
        let mut pair = Pair::new();
        let (tcp, udp) = offloads;
        let drops = Arc::clone(&pair.drops[1]);
        pair.inbound = Inbound::new(InboundOffloads { tcp, udp }, drops);
        let mut rekeys = 0;
        for (item, event) in items.iter().zip(events.iter().cycle()) {
            match *event {
                Event::Nothing => {}
                Event::Mtu(mtu) => pair.views[0].tunnel_mtu = mtu,
                Event::Rekey => {
                    rekeys += 1;
                    another_session(&mut pair, rekeys);
                }
                Event::NoPath => {
                    pair.views[0] = with_peer(&pair.views[0], |p| p.destination = Destination::None);
                }
                Event::Roam(to) => {
                    let to = Destination::udp(udp_address(to));
                    pair.views[0] = with_peer(&pair.views[0], |p| p.destination = to);
                }
            }
            pair.outbound.on_view_change(&pair.views[0], pair.now, &mut pair.net);
            pair.send(&item.frame());
        }
        let here = Destination::udp(udp_address(2));
        pair.views[0] = with_peer(&pair.views[0], |peer| peer.destination = here);
        pair.outbound.on_view_change(&pair.views[0], pair.now, &mut pair.net);
        pair.outbound.flush(&mut pair.net);
        prop_assert_eq!(pair.drops[0].total(), 0);

        let datagrams: Vec<Vec<u8>> = std::mem::take(&mut pair.net.udp)
            .into_iter()
            .flat_map(|(_, (bytes, size))| {
                bytes.chunks(size).map(<[u8]>::to_vec).collect::<Vec<_>>()
            })
            .collect();
        let packets: Vec<Vec<u8>> = items.iter().flat_map(Item::expected).collect();
        prop_assert_eq!(datagrams.len(), packets.len(), "one datagram per packet");
        for (datagram, packet) in datagrams.iter().zip(&packets) {
            let padding = datagram.len() - TRANSPORT_OVERHEAD - packet.len();
            prop_assert!(padding < 16);
        }

        let arrivals = arrivals(&datagrams, &fates);
        let mut seen = vec![false; packets.len()];
        let (mut expected, mut replayed, mut forged) = (Vec::new(), 0, 0);
        for arrival in &arrivals {
            match arrival.number {
                None => forged += 1,
                Some(number) if std::mem::replace(&mut seen[number], true) => replayed += 1,
                Some(number) => expected.push(packets[number].clone()),
            }
        }
        let mut rest = arrivals.as_slice();
        for (most, flush, from) in batches.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let ((bytes, size), count) = next_batch(rest, *most);
            rest = &rest[count..];
            pair.arrive(Source::Udp(udp_address(*from)), bytes, size);
            if *flush == 0 {
                pair.inbound.flush(&mut pair.host);
            }
        }
        pair.inbound.flush(&mut pair.host);
        prop_assert_eq!(pair.drops[1].get(DropReason::Replayed), replayed);
        prop_assert_eq!(pair.drops[1].get(DropReason::Forged), forged);
        prop_assert_eq!(pair.drops[1].total(), replayed + forged);
        let (got, expected) = (by_flow(arrived(&pair)), by_flow(expected));
        prop_assert_eq!(got.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
        for (flow, packets) in &expected {
            prop_assert_eq!(got[flow].len(), packets.len(), "{}", flow);
            prop_assert!(got[flow] == *packets, "{}", flow);
        }
    }

    /// Batches that are opened by several threads, before those in front of
    /// them are finished, give what one thread makes of them one by one: the
    /// same calls with the same bytes.
    #[test]
    fn two_halves_make_a_whole(
        raw in raw(),
        fates in prop::collection::vec(fate(), 1..200),
        rekey in any::<prop::sample::Index>(),
        batches in prop::collection::vec((1usize..70, 1usize..5, 0u8..4, 1u8..4), 1..50),
    ) {
        let items = items(raw);
        let mut whole = Pair::new();
        let mut halves = Pair::new();
        for (i, item) in items.iter().enumerate() {
            if i == rekey.index(items.len()) {
                another_session(&mut whole, 1);
                another_session(&mut halves, 1);
            }
            whole.send(&item.frame());
        }
        whole.outbound.flush(&mut whole.net);
        let mut datagrams: Vec<Vec<u8>> = std::mem::take(&mut whole.net.udp)
            .into_iter()
            .flat_map(|(_, (bytes, size))| {
                bytes.chunks(size).map(<[u8]>::to_vec).collect::<Vec<_>>()
            })
            .collect();
        // Some of another kind, some for no session.
        for (i, datagram) in datagrams.iter_mut().enumerate() {
            match (i * 7 + fates.len()) % 31 {
                0 => datagram[0] = 9,
                1 => datagram[4] ^= 0x40,
                2 => *datagram = [&b"TS\xf0\x9f\x92\xac"[..], &[3; 80]].concat(),
                _ => {}
            }
        }
        let arrivals = arrivals(&datagrams, &fates);
        let mut rest = arrivals.as_slice();
        let mut threads: Vec<_> = (0..4).map(|_| DecryptMemory::new()).collect();
        let mut groups = batches.iter().cycle();
        while !rest.is_empty() {
            let (most, threads_now, flush, from) = *groups.next().unwrap();
            let from = Source::Udp(udp_address(from));
            let mut batches = Vec::new();
            for _ in 0..threads_now {
                if rest.is_empty() {
                    break;
                }
                // Two buffers each, one behind the other.
                let mut buffers = Vec::new();
                for _ in 0..2 {
                    if let Some(first) = rest.first() {
                        let (buffer, count) = next_batch(rest, most.min(first.bytes.len()));
                        rest = &rest[count..];
                        buffers.push(buffer);
                    }
                }
                batches.push(buffers);
            }
            for (bytes, size) in batches.iter().flatten() {
                whole.arrive(from, bytes.clone(), *size);
            }
            // The last one is the first to be ready.
            let mut decrypted = Vec::new();
            for (buffers, memory) in batches.iter_mut().zip(&mut threads).rev() {
                let memory = std::mem::take(memory);
                let mut batch = DecryptedBatch::new(memory, &halves.views[1], halves.now);
                for (bytes, size) in buffers {
                    batch.decrypt(from, bytes, *size);
                }
                decrypted.push(batch);
            }
            for (batch, memory) in decrypted.into_iter().rev().zip(&mut threads) {
                *memory = halves.inbound.finish(batch, &mut halves.host);
            }
            if flush == 0 {
                whole.inbound.flush(&mut whole.host);
                halves.inbound.flush(&mut halves.host);
            }
        }
        whole.inbound.flush(&mut whole.host);
        halves.inbound.flush(&mut halves.host);
        prop_assert!(whole.host.frames == halves.host.frames, "frames differ");
        prop_assert_eq!(&whole.host.control, &halves.host.control);
        prop_assert_eq!(&whole.host.confirmed, &halves.host.confirmed);
        prop_assert_eq!(&whole.host.heard, &halves.host.heard);
        prop_assert_eq!(&whole.host.wanted, &halves.host.wanted);
        for reason in DropReason::ALL {
            prop_assert_eq!(whole.drops[1].get(reason), halves.drops[1].get(reason));
        }
    }

    /// A device that refuses superpackets costs no packet.
    #[test]
    fn refused_superpackets_are_written_in_pieces(raw in raw(), tcp: bool, udp: bool) {
        let items = items(raw);
        let mut pair = Pair::new();
        if tcp {
            pair.host.refuses.extend([GsoType::TcpV4, GsoType::TcpV6]);
        }
        if udp {
            pair.host.refuses.push(GsoType::Udp);
        }
        for some in items.chunks(7) {
            for item in some {
                pair.send(&item.frame());
            }
            pair.cross();
        }
        prop_assert!(pair.host.refused <= 4 * (usize::from(tcp) + usize::from(udp)));
        let given_up = |kind| pair.host.given_up.iter().filter(|k| **k == kind).count();
        prop_assert!(given_up(Joined::Tcp) <= usize::from(tcp));
        prop_assert!(given_up(Joined::Udp) <= usize::from(udp));
        let expected = by_flow(items.iter().flat_map(Item::expected));
        let got = by_flow(arrived(&pair));
        prop_assert_eq!(pair.drops[1].total(), 0);
        prop_assert!(got == expected);
    }

    /// A batch in which some datagrams are good, some damaged, some repeated,
    /// some of another kind: each is judged on its own.
    #[test]
    fn one_batch_of_everything(kinds in prop::collection::vec(0u8..7, 1..64)) {
        let mut pair = Pair::new();
        for id in 0..kinds.len() {
            pair.send(&udp(id as u16, 300).plain_frame());
        }
        pair.outbound.flush(&mut pair.net);
        let (_, (mut bytes, size)) = pair.net.udp.pop().unwrap();
        prop_assert_eq!(bytes.len(), kinds.len() * size);
        let first = bytes[..size].to_vec();
        let (mut good, mut by_reason, mut control) = (Vec::new(), BTreeMap::new(), 0);
        let mut first_is_taken = false;
        for (id, (kind, datagram)) in kinds.iter().zip(bytes.chunks_mut(size)).enumerate() {
            let mut wrong = |reason| *by_reason.entry(reason).or_insert(0) += 1;
            match kind {
                0 => {
                    datagram[size - 1] ^= 1;
                    wrong(DropReason::Forged);
                }
                1 => {
                    datagram[4] ^= 0x80;
                    wrong(DropReason::UnknownSession);
                }
                2 => {
                    datagram.fill(0xa5);
                    wrong(DropReason::Unrecognised);
                }
                3 => {
                    datagram[..6].copy_from_slice(b"TS\xf0\x9f\x92\xac");
                    control += 1;
                }
                4 => {
                    datagram.copy_from_slice(&first);
                    if std::mem::replace(&mut first_is_taken, true) {
                        wrong(DropReason::Replayed);
                    } else {
                        good.push(0);
                    }
                }
                _ if id == 0 && std::mem::replace(&mut first_is_taken, true) => {
                    wrong(DropReason::Replayed);
                }
                _ => good.push(id),
            }
        }
        pair.arrive(Source::Udp(udp_address(1)), bytes, size);
        pair.inbound.flush(&mut pair.host);
        let expected: Vec<_> = good.iter().map(|id| comparable(&udp(*id as u16, 300).build())).collect();
        let got: Vec<_> = arrived(&pair).iter().map(|p| comparable(p)).collect();
        prop_assert_eq!(got, expected);
        prop_assert_eq!(pair.host.control.len(), control);
        for (reason, count) in &by_reason {
            prop_assert_eq!(pair.drops[1].get(*reason), *count, "{:?}", reason);
        }
        prop_assert_eq!(pair.drops[1].total(), by_reason.values().sum::<u64>());
    }

    /// Whatever the virtio header claims, the packet that leaves has the
    /// addresses and ports that were judged.
    #[test]
    fn a_checksum_to_complete_never_rewrites_what_was_judged(
        v6: bool, extension: bool, start in 0u16..120, offset in 0u16..120, len in 0usize..60,
    ) {
        let recipe = Recipe { v6, extension: v6 && extension, ..udp(3, len) };
        let mut frame = recipe.plain_frame();
        let header = VnetHdr { checksum: Some((start, offset)), ..VnetHdr::PLAIN };
        frame[..HEADER].copy_from_slice(&header.to_bytes());
        let mut pair = Pair::new();
        pair.send(&frame);
        pair.cross();
        let sent = recipe.build();
        let headers = recipe.transport_offset();
        for packet in arrived(&pair) {
            prop_assert_eq!(packet.len(), sent.len());
            prop_assert_eq!(&packet[..headers], &sent[..headers]);
        }
        if usize::from(start) < headers {
            prop_assert_eq!(pair.drops[0].get(DropReason::Malformed), 1);
        }
    }
}

// ---- sessions at their end, peers that go ----

#[test]
fn the_last_counters_are_used_and_then_packets_wait() {
    let mut pair = Pair::new();
    let session = pair.views[0].peers[1]
        .as_ref()
        .unwrap()
        .session
        .clone()
        .unwrap();
    session.reserve(REJECT_AFTER_MESSAGES - 3).unwrap();
    // Two of three numbers; the window jumps over everything in between.
    pair.send(&tcp(false, 1_500).frame(Some(1_000)));
    pair.cross();
    assert_eq!(arrived(&pair), tcp(false, 1_500).expected(Some(1_000)));
    assert_eq!(
        pair.net.wanted,
        [PEER],
        "long before the end a new one is wanted"
    );
    // Three segments do not fit; nothing is sealed with a number of another
    // turn, nothing is lost, and the order stays.
    pair.host.frames.clear();
    let waiting = [udp(1, 3_000).frame(Some(1_000)), udp(2, 10).frame(None)];
    for frame in &waiting {
        pair.send(frame);
    }
    pair.outbound.flush(&mut pair.net);
    assert!(pair.net.udp.is_empty());
    // A view that brings no session changes nothing.
    let view = pair.views[0].clone();
    pair.outbound.on_view_change(&view, pair.now, &mut pair.net);
    assert_eq!(pair.drops[0].total(), 0);
    another_session(&mut pair, 7);
    pair.outbound
        .on_view_change(&pair.views[0], pair.now, &mut pair.net);
    pair.cross();
    let expected = [
        udp(1, 3_000).expected(Some(1_000)),
        udp(2, 10).expected(None),
    ]
    .concat();
    assert_eq!(by_flow(arrived(&pair)), by_flow(expected));
    assert_eq!(pair.drops[0].total() + pair.drops[1].total(), 0);
}

#[test]
fn counters_beyond_the_limit_are_refused() {
    let mut pair = Pair::new();
    let session = pair.views[0].peers[1]
        .as_ref()
        .unwrap()
        .session
        .clone()
        .unwrap();
    let sealed = |counter: u64| {
        let mut bytes = [&[0; 16][..], &udp(1, 20).build(), &[0; 16]].concat();
        session.seal_in_place(counter, &mut bytes).unwrap();
        bytes
    };
    for (counter, taken) in [
        (REJECT_AFTER_MESSAGES - 1, 1),
        (REJECT_AFTER_MESSAGES, 1),
        (u64::MAX, 1),
        (REJECT_AFTER_MESSAGES - 1, 1),
        (REJECT_AFTER_MESSAGES - 2, 2),
        (0, 2),
    ] {
        let bytes = sealed(counter);
        let len = bytes.len();
        pair.arrive(Source::Udp(udp_address(1)), bytes, len);
        pair.inbound.flush(&mut pair.host);
        assert_eq!(arrived(&pair).len(), taken, "{counter}");
    }
    assert_eq!(pair.drops[1].get(DropReason::Forged), 2);
    assert_eq!(pair.drops[1].get(DropReason::Replayed), 2);
}

/// `view` after its peer was taken from the netmap.
fn without_peer(view: &View) -> View {
    let mut view = view.clone();
    view.peers[1] = None;
    view.sessions.clear();
    view.routes = Arc::default();
    view
}

#[test]
fn a_peer_that_goes_takes_only_its_own_packets_along() {
    let mut pair = Pair::new();
    // Sealed already when the peer goes: they leave, and that is the end.
    pair.send(&tcp(false, 9_000).frame(Some(1_000)));
    let gone = without_peer(&pair.views[0]);
    pair.outbound.on_view_change(&gone, pair.now, &mut pair.net);
    pair.outbound
        .packet(&gone, pair.now, &udp(1, 10).frame(None), &mut pair.net);
    pair.outbound.flush(&mut pair.net);
    assert_eq!(pair.drops[0].get(DropReason::NoRoute), 1);
    let (_, (bytes, size)) = pair.net.udp.pop().unwrap();
    assert_eq!(bytes.len().div_ceil(size), 9);

    // At the receiver it goes in the middle of a batch that is being joined:
    // opened packets are delivered, the rest belongs to no session.
    let (first, second) = bytes.split_at(4 * size);
    pair.arrive(Source::Udp(udp_address(1)), first.to_vec(), size);
    let known = pair.views[1].clone();
    pair.views[1] = without_peer(&known);
    pair.inbound.on_view_change(&pair.views[1]);
    pair.arrive(Source::Udp(udp_address(1)), second.to_vec(), size);
    pair.inbound.flush(&mut pair.host);
    assert_eq!(arrived(&pair), tcp(false, 9_000).expected(Some(1_000))[..4]);
    assert_eq!(pair.drops[1].get(DropReason::UnknownSession), 5);

    // Packets that waited for the peer are dropped; those for others stay.
    let mut pair = Pair::new();
    let good = pair.views[0].clone();
    pair.views[0] = with_peer(&good, |peer| peer.session = None);
    pair.send(&udp(1, 10).frame(None));
    pair.outbound
        .on_view_change(&without_peer(&good), pair.now, &mut pair.net);
    pair.outbound.on_view_change(&good, pair.now, &mut pair.net);
    pair.cross();
    assert!(pair.host.frames.is_empty());
}

#[test]
fn an_mtu_that_changes_pads_no_further_and_cuts_nothing() {
    let mut pair = Pair::new();
    for (mtu, len) in [
        (1_280, 1_279),
        (576, 1_279),
        (1_500, 1_471),
        (9_000, 8_999),
        (1_280, 8_999),
    ] {
        pair.views[0].tunnel_mtu = mtu;
        pair.host.frames.clear();
        let recipe = udp(1, len - 28);
        pair.send(&recipe.plain_frame());
        pair.outbound.flush(&mut pair.net);
        let content = pair.net.udp[0].1.0.len() - TRANSPORT_OVERHEAD;
        assert!(
            content <= usize::from(mtu).max(len),
            "{content} bytes at an MTU of {mtu}"
        );
        pair.cross();
        assert_eq!(arrived(&pair), [recipe.build()]);
    }
}

#[test]
fn a_copy_by_another_way_in_the_same_batch_is_one_packet() {
    let mut pair = Pair::new();
    for id in 0..20 {
        pair.send(&udp(id, 500).plain_frame());
    }
    pair.outbound.flush(&mut pair.net);
    let (_, (bytes, size)) = pair.net.udp.pop().unwrap();
    let backwards: Vec<u8> = bytes.chunks(size).rev().flatten().copied().collect();
    let twice = [&bytes[..], &backwards, &bytes].concat();
    pair.arrive(Source::Udp(udp_address(1)), twice, size);
    pair.inbound.flush(&mut pair.host);
    let expected: Vec<_> = (0..20)
        .map(|id| comparable(&udp(id, 500).build()))
        .collect();
    assert_eq!(
        arrived(&pair)
            .iter()
            .map(|p| comparable(p))
            .collect::<Vec<_>>(),
        expected
    );
    assert_eq!(pair.drops[1].get(DropReason::Replayed), 40);
    // Copies on an old session prove nothing about the new one.
    pair.later(Duration::from_secs(1));
    another_session(&mut pair, 9);
    pair.arrive(Source::Udp(udp_address(5)), bytes, size);
    assert_eq!(pair.drops[1].get(DropReason::Replayed), 60);
    assert_eq!(pair.host.confirmed, [22]);
    assert_eq!(
        pair.host.heard,
        [(PeerIndex(1), Source::Udp(udp_address(1)))]
    );
}

#[test]
fn the_plain_model_cuts_where_the_frame_says() {
    let item = Item {
        recipe: tcp(false, 2_500),
        how: How::Super(1_000),
    };
    assert_eq!(item.expected().len(), 3);
    assert_eq!(plain(&item.expected()[0]).len(), HEADER + 1_052);
}

// ---- the TUN device ----

/// Ten datagrams of one flow, which are joined.
fn ten(pair: &mut Pair) {
    for id in 0..10 {
        pair.send(&udp(id, 300).plain_frame());
    }
    pair.cross();
}

#[test]
fn a_kind_that_is_refused_again_and_again_is_given_up() {
    let mut pair = Pair::new();
    pair.host.refuses = vec![GsoType::Udp];
    for round in 1..=4 {
        assert!(pair.host.given_up.is_empty(), "round {round}");
        ten(&mut pair);
        assert_eq!(pair.host.refused, round);
        assert_eq!(pair.host.frames.len(), 10 * round, "all in pieces");
    }
    assert_eq!(pair.host.given_up, [Joined::Udp]);
    // Nothing is tried any more, and the other kind goes on.
    ten(&mut pair);
    pair.send(&tcp(false, 9_000).frame(Some(1_000)));
    pair.cross();
    assert_eq!((pair.host.refused, pair.host.given_up.len()), (4, 1));
    assert_eq!(pair.host.frames.len(), 51);
    assert_eq!(arrived(&pair).len(), 59);
}

#[test]
fn one_refusal_now_and_then_is_no_reason_to_give_up() {
    let mut pair = Pair::new();
    for _ in 0..10 {
        pair.host.refuses = vec![GsoType::Udp];
        ten(&mut pair);
        pair.host.refuses.clear();
        ten(&mut pair);
    }
    assert_eq!(pair.host.refused, 10);
    assert!(pair.host.given_up.is_empty());
    assert_eq!(pair.host.frames.len(), 10 * 11);
}

#[test]
fn a_device_that_is_down_refuses_everything_and_is_no_reason_either() {
    let mut pair = Pair::new();
    pair.host.is_down = true;
    for _ in 0..10 {
        ten(&mut pair);
    }
    assert!(pair.host.frames.is_empty() && pair.host.given_up.is_empty());
    pair.host.is_down = false;
    ten(&mut pair);
    assert_eq!(pair.host.frames.len(), 1, "joined as ever");
}

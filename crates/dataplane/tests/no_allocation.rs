//! Moving packets allocates nothing, in either direction, once buffers are
//! warm.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use warren_dataplane::{
    DecryptMemory, DecryptedBatch, FairShare, OutSink, RelaySend, ServiceId, SessionView, UdpSend,
};
use warren_dataplane_testkit::{CountingHost, Pair, Recipe, Transport, udp_address};
use warren_keys::NodePublic;
use warren_node_types::{Destination, PathAddr};
use warren_testkit::CountingAllocator;
use warren_tunnel::{PeerIndex, Source};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// The network: remembers the last flush in buffers of fixed size.
struct Wire {
    bytes: Vec<u8>,
    batches: Vec<(usize, usize, usize)>,
    relayed: usize,
    packed: Vec<u8>,
}

impl OutSink for Wire {
    fn udp(&mut self, sends: &[UdpSend], buffer: &[u8]) {
        for send in sends {
            let start = self.bytes.len();
            self.bytes.extend_from_slice(&buffer[send.range.clone()]);
            self.batches
                .push((start, self.bytes.len(), send.segment_len));
        }
    }
    fn relay(&mut self, sends: &[RelaySend], buffer: &[u8]) {
        self.relayed += sends
            .iter()
            .map(|send| send.packets(buffer, &mut self.packed).count())
            .sum::<usize>();
    }
    fn need_session(&mut self, _: PeerIndex) {}
    fn deliver(&mut self, _: ServiceId, _: &[u8]) {}
    fn tun(&mut self, _: &[u8]) {}
}

#[test]
fn steady_state_does_not_allocate() {
    rounds(false);
}

/// Opened and judged in two halves, as when several threads receive.
#[test]
fn neither_do_the_two_halves() {
    rounds(true);
}

/// Under pressure, with a peer that is cut to its share.
#[test]
fn nor_does_sharing() {
    let pair = Pair::new();
    let mut view = pair.views[1].clone();
    let (&first, slot) = view.sessions.iter().next().unwrap();
    let other = SessionView {
        peer: PeerIndex(slot.peer.0 + 1),
        session: slot.session.clone(),
    };
    let second = first ^ 1;
    view.sessions.insert(second, other);
    let datagrams = |index: u32, count: usize| {
        let mut datagram = vec![0; 1_280];
        datagram[0] = 4;
        datagram[4..8].copy_from_slice(&index.to_le_bytes());
        datagram.repeat(count)
    };
    let (heavy, modest) = (datagrams(first, 32), datagrams(second, 1));
    let mut fair = FairShare::new(Arc::clone(&pair.drops[1]));
    let (mut now, mut changes) = (pair.now, 0);
    let before = CountingAllocator::allocations();
    for round in 0..500 {
        now += Duration::from_millis(1);
        let full = round < 300;
        if fair.minds(0, full) {
            fair.received(now, 0, full);
        }
        if fair.is_watching() {
            for _ in 0..10 {
                fair.count(&view, &heavy, 1_280);
            }
            fair.count(&view, &modest, 1_280);
        }
        if fair.is_due(now) {
            changes += usize::from(fair.tick(now, round).is_some());
        }
    }
    assert_eq!(CountingAllocator::allocations() - before, 0);
    assert!(changes > 1, "it worked: {changes}");
}

fn rounds(halves: bool) {
    let mut pair = Pair::new();
    let mut memory = DecryptMemory::new();
    let both = Destination::Both(
        PathAddr::Udp(udp_address(2)),
        warren_control_types::RegionId(1),
    );
    pair.views[0] =
        warren_dataplane_testkit::with_peer(&pair.views[0], |peer| peer.destination = both);
    let recipe = |v6: bool, flow: u16, transport: Transport, len: usize| Recipe {
        v6,
        extension: false,
        ports: (flow, 80),
        id: 1,
        dont_fragment: true,
        transport,
        payload: vec![5; len],
    };
    let tcp = Transport::Tcp {
        sequence: 1,
        flags: 0x10,
        options: 12,
    };
    let mut frames = Vec::new();
    for v6 in [false, true] {
        frames.push(recipe(v6, 1, tcp, 60_000).frame(Some(1_200)));
        frames.push(recipe(v6, 2, Transport::Udp, 20_000).frame(Some(1_000)));
        for flow in 3..30 {
            frames.push(recipe(v6, flow, tcp, 900).frame(None));
            frames.push(recipe(v6, flow, Transport::Udp, 900).plain_frame());
        }
    }
    let mut wire = Wire {
        bytes: Vec::with_capacity(1 << 20),
        batches: Vec::with_capacity(512),
        relayed: 0,
        packed: Vec::with_capacity(1 << 17),
    };
    let mut host = CountingHost::default();
    let relay_key = NodePublic::from_bytes([1; 32]);
    let mut before = 0;
    for round in 0..40 {
        if round == 10 {
            before = CountingAllocator::allocations();
        }
        for frame in &frames {
            pair.outbound
                .packet(&pair.views[0], pair.now, frame, &mut wire);
        }
        pair.outbound.flush(&mut wire);
        let from = if round % 2 == 0 {
            Source::Udp(udp_address(1))
        } else {
            Source::Derp {
                region: warren_node_types::RegionId(1),
                key: relay_key,
            }
        };
        let (view, now) = (&pair.views[1], pair.now);
        let mut decrypted = DecryptedBatch::new(std::mem::take(&mut memory), view, now);
        // The buffers lie behind each other.
        let mut rest = wire.bytes.as_mut_slice();
        for (start, end, segment) in wire.batches.drain(..) {
            let (buffer, behind) = rest.split_at_mut(end - start);
            rest = behind;
            if halves {
                decrypted.decrypt(from, buffer, segment);
            } else {
                pair.inbound
                    .datagrams(view, now, from, buffer, segment, &mut host);
            }
        }
        memory = pair.inbound.finish(decrypted, &mut host);
        pair.inbound.flush(&mut host);
        wire.bytes.clear();
    }
    let allocated = CountingAllocator::allocations() - before;
    assert!(
        host.frames > 1_000 && host.bytes > 40 * 160_000,
        "it worked: {}",
        host.bytes
    );
    assert!(wire.relayed > 0 && pair.drops.iter().all(|d| d.total() == 0));
    assert_eq!(allocated, 0, "allocations in 30 rounds");
}

//! From the network to the device.
//!
//! One thread at a time receives ([`receiver`](super::receiver)): batches from the
//! sockets in turn, and what relays brought. With a large batch it lets another one
//! receive, decrypts its own beside the others, and then, in the order in which batches
//! were received, has the one [`Inbound`] for itself: see [`pipeline`](super::pipeline).
//! With a small batch it does everything at once and wakes no other thread. So does the
//! only thread of a small machine, with all batches.
//!
//! A new view comes as a batch of its own: what was received before is judged by the
//! old one, what comes after by the new.

use std::sync::Arc;
use std::sync::mpsc;
use std::time::Instant;

use warren_dataplane::{
    DecryptMemory, DecryptedBatch, DropReason, InSink, Inbound, InboundOffloads, Joined, ServiceId,
    TunWrite, View,
};
use warren_host::device::{Device, Offloads};
use warren_keys::DiscoPublic;
use warren_tunnel::{PeerIndex, Source};

use super::pipeline::{OrderedPipeline, Position};
use super::queues::Queues;
use super::receiver::{Batch, Receiver};
use super::relayed::RelayInbox;
use super::{OwnPacket, Shared};

/// A batch of so many bytes is worth waking another thread for: decrypting it
/// takes some twenty microseconds, several times what waking costs.
const WORTH_SHARING: usize = 32 * 1024;

/// Orders the threads: one receives, and one at a time delivers.
pub(super) type InPipeline = OrderedPipeline<Receiver, Delivery>;

/// The state of the thread that delivers.
pub(super) struct Delivery {
    inbound: Inbound,
    /// The view that the last batch was judged by.
    view: Arc<View>,
}

impl Delivery {
    /// Goes on with `view`, if it is another one.
    fn adopt(&mut self, view: &Arc<View>) {
        if !Arc::ptr_eq(view, &self.view) {
            self.view = Arc::clone(view);
            self.inbound.on_view_change(view);
        }
    }
}

/// The pipeline for so many threads.
pub(super) fn pipeline(
    threads: usize,
    shared: &Shared,
    offloads: Offloads,
    relayed: RelayInbox,
) -> InPipeline {
    let offloads = InboundOffloads {
        tcp: offloads.tcp,
        udp: offloads.udp,
    };
    let receiver = Receiver::new(shared, relayed);
    let delivery = Delivery {
        inbound: Inbound::new(offloads, Arc::clone(&shared.drops)),
        view: Arc::clone(&receiver.view),
    };
    OrderedPipeline::new(threads, receiver, delivery)
}

/// A thread that receives.
pub(super) struct Inward<D> {
    pub(super) shared: Arc<Shared>,
    pub(super) queues: Arc<Queues<D>>,
    pub(super) answers: mpsc::SyncSender<OwnPacket>,
    pub(super) pipeline: Arc<InPipeline>,
}

impl<D: Device> Inward<D> {
    /// Receives until it is time to stop.
    pub(super) fn run(self) {
        let mut sink = ToHost {
            shared: &self.shared,
            queues: &*self.queues,
            answers: self.answers,
        };
        let mut batch = Batch::new();
        let mut memory = DecryptMemory::new();
        while let Some((position, view)) =
            receive(&self.shared, &self.pipeline, &mut batch, &mut sink)
        {
            // Another thread receives now.
            let mut decrypted = DecryptedBatch::new(memory, &view, Instant::now());
            batch.for_each(|from, segment_len, data| decrypted.decrypt(from, data, segment_len));
            let mut delivery = position.deliver_stage();
            delivery.adopt(&view);
            memory = delivery.inbound.finish(decrypted, &mut sink);
            delivery.inbound.flush(&mut sink);
            drop(delivery);
            batch.clear();
        }
    }
}

/// Receives, and does all of the work for small batches, until there is a batch that
/// should be worked on beside others. `None` when it is time to stop.
fn receive<'p, D: Device>(
    shared: &Shared,
    pipeline: &'p InPipeline,
    batch: &mut Batch,
    sink: &mut ToHost<'_, D>,
) -> Option<(Position<'p, Receiver, Delivery>, Arc<View>)> {
    let mut receiver = pipeline.receive_stage();
    while receiver.receive(shared, batch) {
        let position = receiver.next_position();
        if pipeline.has_several_threads() && batch.bytes >= WORTH_SHARING {
            return Some((position, Arc::clone(&receiver.view)));
        }
        let now = Instant::now();
        let mut delivery = position.deliver_stage();
        delivery.adopt(&receiver.view);
        batch.for_each(|from, segment_len, data| {
            delivery
                .inbound
                .datagrams(&receiver.view, now, from, data, segment_len, sink);
        });
        delivery.inbound.flush(sink);
    }
    None
}

/// Takes what comes out of the [`Inbound`].
struct ToHost<'a, D> {
    shared: &'a Shared,
    queues: &'a Queues<D>,
    answers: mpsc::SyncSender<OwnPacket>,
}

impl<D> ToHost<'_, D> {
    /// Counts a packet for which the receiver had no place.
    fn count_overrun(&self, taken: bool) {
        if !taken {
            self.shared.drops.count(DropReason::Overrun);
        }
    }
}

impl<D: Device> InSink for ToHost<'_, D> {
    fn deliver(&mut self, service: ServiceId, packet: &[u8]) {
        self.count_overrun(self.shared.engine.deliver(service, packet));
    }

    fn tun_write(&mut self, frame: &[u8]) -> TunWrite {
        self.queues.write(self.shared, frame)
    }

    fn joining_ends(&mut self, kind: Joined) {
        tracing::warn!(
            ?kind,
            "the tunnel device refuses joined packets; they go to it one by one from now on"
        );
    }

    fn control(&mut self, from: Source, datagram: &[u8]) {
        self.count_overrun(self.shared.engine.control(from, datagram));
    }

    fn confirmed(&mut self, local_index: u32) {
        self.shared.engine.session_confirmed(local_index);
    }

    fn heard(&mut self, peer: PeerIndex, from: Source) {
        self.shared.engine.received_from(peer, from);
    }

    fn need_session(&mut self, peer: PeerIndex) {
        self.shared.engine.need_session(peer);
    }

    fn out(&mut self, peer: PeerIndex, packet: &[u8]) {
        self.count_overrun(self.answers.try_send((peer, packet.to_vec())).is_ok());
        self.shared.wake_first_out();
    }

    fn pong(&mut self, _peer: PeerIndex, data: [u8; 8], _peer_api_port: Option<u16>) {
        self.shared.engine.tsmp_pong(data);
    }

    fn disco_advertised(&mut self, peer: PeerIndex, key: DiscoPublic) {
        self.shared.engine.disco_advertised(peer, key);
    }
}

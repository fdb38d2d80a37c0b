//! The send queue of one connection.
//!
//! Senders encode their frames into this queue and go on; the task that writes
//! the connection takes out as much as one write should carry. No sender ever
//! waits for a slow reader. When a class of frames exceeds its limit:
//!
//! | class | order | at the limit |
//! |---|---|---|
//! | control (gone, present, keepalive, health) | first | the connection is closed: it cannot be served truthfully |
//! | pong | next | one waits; further pings meanwhile stay unanswered |
//! | disco | next | the oldest is dropped |
//! | data | last | the oldest is dropped; also data older than [`Limits::max_age`] |
//!
//! Dropping the oldest data keeps the queue short in time as well as in bytes:
//! the TCP streams inside the tunnel see a loss early and slow down, rather
//! than a delay of seconds. Disco goes first because it is what moves two
//! peers off the relay.
//!
//! Frames are packed into chunks of up to 64 KiB, so a busy connection is
//! written with few large writes and no allocation per packet. Chunks are also
//! the grain of dropping.
//!
//! Queues that share a [`QueueBudget`] count in it all that waits, and the last bytes
//! that were taken, until the next are.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use warren_wire::derp::{Frame, looks_like_disco};

use crate::budget::QueueBudget;

/// Bytes of a chunk: four TLS records.
const CHUNK: usize = 64 * 1024;
/// A chunk stops taking frames at this age, so that dropping by age stays
/// fine-grained.
const CHUNK_SPAN: Duration = Duration::from_millis(5);
/// Capacity that an idle queue keeps.
const IDLE_CAPACITY: usize = 2 * 1024;

/// The limits of a queue.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of control frames.
    pub control_bytes: usize,
    /// Bytes of frames that carry disco.
    pub disco_bytes: usize,
    /// Bytes of frames that carry anything else.
    pub data_bytes: usize,
    /// The longest time that data may wait.
    pub max_age: Duration,
}

impl Limits {
    /// For a connection between a relay and a node: 1 MiB of data is 8 ms at
    /// 1 Gbit/s; slower connections are bounded by the 50 ms.
    pub const NODE: Self = Self {
        control_bytes: 1024 * 1024,
        disco_bytes: 64 * 1024,
        data_bytes: 1024 * 1024,
        max_age: Duration::from_millis(50),
    };

    /// For a connection between relays: many nodes share it, and the whole
    /// region may be announced at once (56 bytes a client).
    pub const MESH: Self = Self {
        control_bytes: 64 * 1024 * 1024,
        disco_bytes: 1024 * 1024,
        data_bytes: 8 * 1024 * 1024,
        max_age: Duration::from_millis(50),
    };
}

/// Control frames wait in such numbers that the other side must be stuck.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("more control frames wait than the connection can take")]
pub struct QueueFull;

/// Numbers of dropped packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Drops {
    /// Disco, because too many bytes of it waited.
    pub disco_full: u64,
    /// Data, because too many bytes of it waited, here or in all queues.
    pub data_full: u64,
    /// Data, because it had waited too long.
    pub data_old: u64,
}

#[derive(Debug)]
struct Chunk {
    since: Instant,
    packets: u64,
    bytes: Vec<u8>,
}

#[derive(Debug, Default)]
struct ClassQueue {
    chunks: VecDeque<Chunk>,
    bytes: usize,
}

impl ClassQueue {
    /// Appends a frame; returns the packets that had to go for it.
    fn push(
        &mut self,
        now: Instant,
        frame: &Frame<'_>,
        limit: usize,
        chunk: usize,
        spare: &mut Option<Vec<u8>>,
    ) -> u64 {
        let len = frame.frame_len();
        let mut dropped = 0;
        while self.bytes + len > limit {
            let Some(oldest) = self.pop() else { break };
            dropped += oldest.packets;
            keep(spare, oldest.bytes);
        }
        let open = self.chunks.back_mut().filter(|last| {
            last.bytes.len() + len <= chunk
                && now.saturating_duration_since(last.since) < CHUNK_SPAN
        });
        let last = match open {
            Some(last) => last,
            None => {
                let bytes = spare.take().unwrap_or_default();
                self.chunks.push_back(Chunk {
                    since: now,
                    packets: 0,
                    bytes,
                });
                match self.chunks.back_mut() {
                    Some(last) => last,
                    None => return dropped,
                }
            }
        };
        frame.emit(&mut last.bytes);
        last.packets += 1;
        self.bytes += len;
        dropped
    }

    fn pop(&mut self) -> Option<Chunk> {
        let chunk = self.chunks.pop_front()?;
        self.bytes -= chunk.bytes.len();
        Some(chunk)
    }
}

fn keep(spare: &mut Option<Vec<u8>>, mut bytes: Vec<u8>) {
    if spare
        .as_ref()
        .is_none_or(|kept| kept.capacity() < bytes.capacity())
    {
        bytes.clear();
        *spare = Some(bytes);
    }
}

/// Frames that wait for one connection. See the module docs.
#[derive(Debug)]
pub struct SendQueue {
    limits: Limits,
    control: Vec<u8>,
    pong: Option<[u8; 8]>,
    disco: ClassQueue,
    data: ClassQueue,
    spare: Option<Vec<u8>>,
    drops: Drops,
    /// Bytes that were taken and are being written.
    taken: usize,
    budget: Option<Arc<QueueBudget>>,
    /// The bytes of this queue in the budget.
    counted: usize,
}

impl Drop for SendQueue {
    fn drop(&mut self) {
        if let Some(budget) = &self.budget {
            budget.changed(self.counted, 0);
        }
    }
}

impl SendQueue {
    /// An empty queue.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            control: Vec::new(),
            pong: None,
            disco: ClassQueue::default(),
            data: ClassQueue::default(),
            spare: None,
            drops: Drops::default(),
            taken: 0,
            budget: None,
            counted: 0,
        }
    }

    /// An empty queue that shares a budget with others.
    pub fn with_budget(limits: Limits, budget: Arc<QueueBudget>) -> Self {
        let mut queue = Self::new(limits);
        queue.budget = Some(budget);
        queue
    }

    /// Brings the count in the budget up to date.
    fn count(&mut self) {
        if let Some(budget) = &self.budget {
            let held = self.control.len() + self.disco.bytes + self.data.bytes + self.taken;
            budget.changed(self.counted, held);
            self.counted = held;
        }
    }

    /// Other limits from now on, as when a client turns out to be a relay.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Queues a frame that carries a packet; disco is recognised by its first
    /// bytes. If its class is full, the oldest packets of the class are
    /// dropped.
    pub fn push_packet(&mut self, now: Instant, frame: &Frame<'_>) {
        let packet = match frame {
            Frame::SendPacket { packet, .. }
            | Frame::RecvPacket { packet, .. }
            | Frame::ForwardPacket { packet, .. } => *packet,
            Frame::ServerKey { .. }
            | Frame::ClientInfo { .. }
            | Frame::ServerInfo { .. }
            | Frame::KeepAlive
            | Frame::NotePreferred(_)
            | Frame::PeerGone { .. }
            | Frame::PeerPresent { .. }
            | Frame::WatchConns
            | Frame::ClosePeer(_)
            | Frame::Ping(_)
            | Frame::Pong(_)
            | Frame::Health(_)
            | Frame::Restarting { .. }
            | Frame::Unknown { .. } => &[],
        };
        let is_disco = looks_like_disco(packet);
        let budget = self.budget.as_deref();
        if budget.is_some_and(|budget| budget.free() < frame.frame_len()) {
            if is_disco {
                self.drops.disco_full += 1;
            } else {
                self.drops.data_full += 1;
            }
            return;
        }
        let share = budget.map_or(usize::MAX, QueueBudget::share);
        if is_disco {
            let limit = self.limits.disco_bytes.min(share);
            // Small chunks: dropping one must not lose all pings of a flow.
            self.drops.disco_full += self.disco.push(now, frame, limit, 1024, &mut None);
        } else {
            // Here too: the writer may be held up by a receiver that reads slowly.
            self.drop_old_data(now);
            let limit = self.limits.data_bytes.min(share);
            self.drops.data_full += self.data.push(now, frame, limit, CHUNK, &mut self.spare);
        }
        self.count();
    }

    /// Queues a control frame.
    ///
    /// # Errors
    /// [`QueueFull`]: close the connection.
    pub fn push_control(&mut self, frame: &Frame<'_>) -> Result<(), QueueFull> {
        if self.control.len() + frame.frame_len() > self.limits.control_bytes {
            return Err(QueueFull);
        }
        frame.emit(&mut self.control);
        self.count();
        Ok(())
    }

    /// Queues ready-made control frames, such as a login.
    ///
    /// # Errors
    /// [`QueueFull`]: close the connection.
    pub fn push_control_bytes(&mut self, frames: &[u8]) -> Result<(), QueueFull> {
        if self.control.len() + frames.len() > self.limits.control_bytes {
            return Err(QueueFull);
        }
        self.control.extend_from_slice(frames);
        self.count();
        Ok(())
    }

    /// Queues the answer to a ping, unless one waits already.
    pub fn push_pong(&mut self, data: [u8; 8]) {
        self.pong.get_or_insert(data);
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.control.is_empty()
            && self.pong.is_none()
            && self.disco.chunks.is_empty()
            && self.data.chunks.is_empty()
    }

    /// Fills `out` (replacing what it held) with what the next write carries:
    /// all control and disco, and about one chunk of data. Returns false when
    /// there was nothing.
    pub fn take(&mut self, now: Instant, out: &mut Vec<u8>) -> bool {
        out.clear();
        out.append(&mut self.control);
        if let Some(data) = self.pong.take() {
            Frame::Pong(data).emit(out);
        }
        while let Some(chunk) = self.disco.pop() {
            out.extend_from_slice(&chunk.bytes);
        }
        self.drop_old_data(now);
        if out.is_empty() {
            // The usual case under load: hand the chunk over as it is.
            if let Some(chunk) = self.data.pop() {
                keep(&mut self.spare, std::mem::replace(out, chunk.bytes));
            }
        }
        while let Some(next) = self.data.chunks.front() {
            if out.len() + next.bytes.len() > CHUNK {
                break;
            }
            if let Some(chunk) = self.data.pop() {
                out.extend_from_slice(&chunk.bytes);
                keep(&mut self.spare, chunk.bytes);
            }
        }
        self.taken = out.len();
        self.count();
        !out.is_empty()
    }

    /// Drops data that has waited longer than [`Limits::max_age`].
    fn drop_old_data(&mut self, now: Instant) {
        while let Some(head) = self.data.chunks.front() {
            if now.saturating_duration_since(head.since) <= self.limits.max_age {
                break;
            }
            if let Some(old) = self.data.pop() {
                self.drops.data_old += old.packets;
                keep(&mut self.spare, old.bytes);
            }
        }
    }

    /// Gives memory back that a quiet connection does not need; for the
    /// keepalive tick.
    pub fn shrink(&mut self) {
        if self
            .spare
            .as_ref()
            .is_some_and(|kept| kept.capacity() > IDLE_CAPACITY)
        {
            self.spare = None;
        }
        self.control.shrink_to(IDLE_CAPACITY);
        self.disco.chunks.shrink_to(4);
        self.data.chunks.shrink_to(4);
    }

    /// Returns the numbers of dropped packets and resets them to zero.
    pub fn take_drops(&mut self) -> Drops {
        std::mem::take(&mut self.drops)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;
    use warren_keys::NodePublic;
    use warren_wire::derp::split;

    fn data(tag: u8, len: usize) -> Vec<u8> {
        vec![tag; len]
    }

    fn disco(tag: u8) -> Vec<u8> {
        let mut packet = b"TS\xf0\x9f\x92\xac".to_vec();
        packet.resize(124, tag);
        packet
    }

    fn push(queue: &mut SendQueue, now: Instant, packet: &[u8]) {
        let from = NodePublic::from_bytes([1; 32]);
        queue.push_packet(now, &Frame::RecvPacket { from, packet });
    }

    /// Takes everything and names each frame by its last payload byte.
    fn drain(queue: &mut SendQueue, now: Instant) -> Vec<u8> {
        let (mut out, mut tags) = (Vec::new(), Vec::new());
        while queue.take(now, &mut out) {
            let mut rest = &out[..];
            while let Some((_, payload, tail)) = split(rest) {
                tags.push(payload.last().copied().unwrap_or(0));
                rest = tail;
            }
            assert!(rest.is_empty(), "half a frame was taken");
        }
        assert!(queue.is_empty());
        tags
    }

    #[test]
    fn control_and_disco_go_before_data() {
        let now = Instant::now();
        let mut queue = SendQueue::new(Limits::NODE);
        push(&mut queue, now, &data(1, 100));
        push(&mut queue, now, &disco(2));
        queue.push_pong([3; 8]);
        queue.push_pong([9; 8]);
        queue.push_control(&Frame::NotePreferred(true)).unwrap();
        push(&mut queue, now, &data(5, 100));
        assert_eq!(drain(&mut queue, now), [1, 3, 2, 1, 5]);
    }

    #[test]
    fn too_many_bytes_cost_the_oldest() {
        let now = Instant::now();
        let mut queue = SendQueue::new(Limits {
            data_bytes: 200_000,
            ..Limits::NODE
        });
        for tag in 0..200u8 {
            push(&mut queue, now, &data(tag, 2000));
        }
        let drops = queue.take_drops();
        let left = drain(&mut queue, now);
        assert_eq!(left.last(), Some(&199));
        assert_eq!(drops.data_full as usize + left.len(), 200);
        assert!(left.len() >= 64, "only {} left", left.len());
        assert!(left.is_sorted());
    }

    #[test]
    fn data_older_than_max_age_is_dropped() {
        let start = Instant::now();
        let mut queue = SendQueue::new(Limits::NODE);
        push(&mut queue, start, &data(1, 100));
        push(&mut queue, start, &disco(2));
        let later = start + Duration::from_millis(40);
        push(&mut queue, later, &data(3, 100));
        assert_eq!(drain(&mut queue, start + Duration::from_millis(60)), [2, 3]);
        assert_eq!(
            queue.take_drops(),
            Drops {
                data_old: 1,
                ..Drops::default()
            }
        );
    }

    #[test]
    fn queue_that_is_not_taken_from_holds_the_data_of_the_last_moment_only() {
        let mut now = Instant::now();
        let mut queue = SendQueue::new(Limits::NODE);
        // 1.4 MB/s to a receiver that does not read.
        for _ in 0..2_000 {
            push(&mut queue, now, &data(1, 1400));
            now += Duration::from_millis(1);
        }
        let span = Limits::NODE.max_age + CHUNK_SPAN;
        let held = usize::try_from(span.as_millis()).unwrap() * 1500;
        assert!(queue.data.bytes <= held, "{} bytes", queue.data.bytes);
        assert_eq!(queue.take_drops().data_full, 0);
    }

    #[test]
    fn flood_of_data_does_not_drop_disco() {
        let now = Instant::now();
        let mut queue = SendQueue::new(Limits::NODE);
        push(&mut queue, now, &disco(7));
        for _ in 0..10_000 {
            push(&mut queue, now, &data(1, 1400));
        }
        assert_eq!(drain(&mut queue, now).first(), Some(&7));
        assert_eq!(queue.take_drops().disco_full, 0);
    }

    #[test]
    fn control_that_piles_up_is_reported() {
        let mut queue = SendQueue::new(Limits {
            control_bytes: 20,
            ..Limits::NODE
        });
        let frame = Frame::Ping([0; 8]);
        assert_eq!(queue.push_control(&frame), Ok(()));
        assert_eq!(queue.push_control(&frame), Err(QueueFull));
    }

    #[test]
    fn receivers_that_do_not_read_leave_room_to_others() {
        for packet in [data(1, 1400), disco(1)] {
            leave_room_to_others(&packet);
        }
    }

    fn leave_room_to_others(packet: &[u8]) {
        let now = Instant::now();
        let budget = Arc::new(QueueBudget::new(1_000_000));
        let queue = || SendQueue::with_budget(Limits::NODE, budget.clone());
        let mut stuck: Vec<SendQueue> = (0..200).map(|_| queue()).collect();
        for _ in 0..100 {
            for queue in &mut stuck {
                push(queue, now, packet);
            }
        }
        assert!((500_000..=1_000_000).contains(&budget.used()));
        assert!(budget.free() > 1_400, "one more packet gets through");
        let mut reads = queue();
        for n in 0..50 {
            push(&mut reads, now, &data(n, 1400));
            assert_eq!(drain(&mut reads, now), [n]);
        }
        drop((stuck, reads));
        assert_eq!(budget.used(), 0);
    }

    proptest! {
        /// The budget counts what the queues hold, and is kept.
        #[test]
        fn budget_is_the_sum_of_all_queues(
            steps in proptest::collection::vec((0u8..5, 0usize..4, 0usize..5000), 0..300),
        ) {
            const LIMIT: usize = 60_000;
            let now = Instant::now();
            let budget = Arc::new(QueueBudget::new(LIMIT));
            let queue = || SendQueue::with_budget(Limits::NODE, budget.clone());
            let mut queues: Vec<SendQueue> = (0..4).map(|_| queue()).collect();
            let mut control = 0;
            for (what, n, len) in steps {
                let mut out = Vec::new();
                match what {
                    0 => drop(queues[n].take(now, &mut out)),
                    1 => push(&mut queues[n], now, &disco(1)),
                    2 if queues[n].push_control(&Frame::KeepAlive).is_ok() => {
                        control += Frame::KeepAlive.frame_len();
                    }
                    3 => queues[n] = queue(),
                    _ => push(&mut queues[n], now, &data(1, len)),
                }
                let held: usize = queues
                    .iter()
                    .map(|q| q.control.len() + q.disco.bytes + q.data.bytes + q.taken)
                    .sum();
                prop_assert_eq!(budget.used(), held);
                // Control frames are bounded in each queue and are not refused here.
                prop_assert!(held <= LIMIT + control);
            }
        }

        /// Per class the order is kept, nothing is taken twice, and what is
        /// neither taken nor counted as dropped does not exist.
        #[test]
        fn every_packet_is_taken_or_counted(
            steps in proptest::collection::vec((0u8..4, 0usize..5000, 0u64..30), 0..200),
        ) {
            let mut now = Instant::now();
            let mut queue = SendQueue::new(Limits {
                data_bytes: 20_000, disco_bytes: 1000, ..Limits::NODE
            });
            let (mut pushed, mut taken, mut out) = (0u64, 0u64, Vec::new());
            for (what, len, pause) in steps {
                now += Duration::from_millis(pause);
                match what {
                    0 => {
                        queue.take(now, &mut out);
                        let mut rest = &out[..];
                        while let Some((_, _, tail)) = split(rest) {
                            taken += 1;
                            rest = tail;
                        }
                        prop_assert!(rest.is_empty());
                    }
                    1 => { push(&mut queue, now, &disco(1)); pushed += 1; }
                    _ => { push(&mut queue, now, &data(1, len)); pushed += 1; }
                }
            }
            taken += drain(&mut queue, now).len() as u64;
            let drops = queue.take_drops();
            prop_assert_eq!(pushed, taken + drops.disco_full + drops.data_full + drops.data_old);
            prop_assert_eq!((queue.data.bytes, queue.disco.bytes), (0, 0));
        }
    }
}

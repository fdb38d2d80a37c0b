//! Single packets, gathered by peer.
//!
//! A host that sends small packets hands them over one by one, and those for
//! several peers come mixed. Sealed one by one, and sent in the order in which
//! they came, each would cost as much as a batch. So between two flushes they
//! are sorted: each peer has a [`PeerBatch`], a block of the send buffer in which its
//! packets lie behind each other, ready to be sealed together and sent with
//! segmentation offload. Within a batch packets keep their order; a packet that
//! does not fit behind the others ends the batch.
//!
//! Where a batch's block is the last in the buffer it grows with the batch. Otherwise
//! the batch ends when the block is full, and the peer gets another one.

use std::sync::Arc;

use warren_keys::NodePublic;
use warren_node_types::Destination;
use warren_tunnel::{PeerIndex, Session};

use super::PeerView;

/// Most datagrams of one send with segmentation offload (UDP_MAX_SEGMENTS).
pub(super) const MAX_RUN: usize = 64;
/// Most bytes of one send: what fits into one UDP datagram over IPv4.
pub(super) const MAX_RUN_BYTES: usize = 65_507;
/// Datagrams that fit into the block of a new batch, and most bytes of it: so small
/// that the packets for thirty peers can wait side by side.
const BLOCK_DATAGRAMS: usize = 16;
const BLOCK_BYTES: usize = 8 * 1024;

/// Packets of one peer that wait to be sealed together.
pub(super) struct PeerBatch {
    pub(super) peer: PeerIndex,
    pub(super) key: NodePublic,
    pub(super) destination: Destination,
    pub(super) session: Arc<Session>,
    /// Where its block of the send buffer begins.
    pub(super) start: usize,
    /// Bytes of the block.
    block_len: usize,
    /// Bytes written.
    pub(super) len: usize,
    /// Length of every datagram but the last, which may be smaller.
    pub(super) segment_len: usize,
    /// Datagrams written.
    pub(super) count: usize,
}

impl PeerBatch {
    /// Where its block ends.
    pub(super) fn block_end(&self) -> usize {
        self.start + self.block_len
    }

    /// Whether a datagram of `total` bytes may come behind the others.
    #[inline]
    fn takes(&self, peer: &PeerView, session: &Arc<Session>, total: usize) -> bool {
        Arc::ptr_eq(&self.session, session)
            && self.destination == peer.destination
            && total <= self.segment_len
            && self.len == self.count * self.segment_len
            && self.count < MAX_RUN
            && self.len + total <= MAX_RUN_BYTES
    }

    fn add(&mut self, total: usize) -> usize {
        let at = self.start + self.len;
        self.len += total;
        self.count += 1;
        at
    }
}

/// The batches between two flushes, the oldest first; at most one per peer.
#[derive(Default)]
pub(super) struct PeerBatches(Vec<PeerBatch>);

impl PeerBatches {
    pub(super) fn new() -> Self {
        Self(Vec::with_capacity(MAX_RUN))
    }

    /// Where in a buffer of `size` bytes, of which `used` are given away, a
    /// datagram of `total` bytes for `peer` is to be written, if that is behind
    /// others.
    #[inline]
    pub(super) fn append(
        &mut self,
        peer: &PeerView,
        session: &Arc<Session>,
        total: usize,
        used: &mut usize,
        size: usize,
    ) -> Option<usize> {
        let batch = self
            .0
            .iter_mut()
            .rev()
            .find(|batch| batch.peer == peer.index)?;
        if !batch.takes(peer, session, total) {
            return None;
        }
        let missing = (batch.len + total).saturating_sub(batch.block_len);
        if missing > 0 {
            if batch.block_end() != *used || *used + missing > size {
                return None;
            }
            batch.block_len += missing;
            *used += missing;
        }
        Some(batch.add(total))
    }

    /// Begins a batch with a datagram of `total` bytes, which must fit into the buffer,
    /// and returns where it is to be written.
    #[inline]
    pub(super) fn begin(
        &mut self,
        peer: &PeerView,
        session: &Arc<Session>,
        total: usize,
        used: &mut usize,
        size: usize,
    ) -> usize {
        let block_len = (total * BLOCK_DATAGRAMS)
            .min(BLOCK_BYTES)
            .max(total)
            .min(size - *used);
        let mut batch = PeerBatch {
            peer: peer.index,
            key: peer.key,
            destination: peer.destination,
            session: Arc::clone(session),
            start: *used,
            block_len,
            len: 0,
            segment_len: total,
            count: 0,
        };
        let at = batch.add(total);
        *used += block_len;
        self.0.push(batch);
        at
    }

    /// Takes out the batch of `peer`.
    #[inline]
    pub(super) fn take(&mut self, peer: PeerIndex) -> Option<PeerBatch> {
        let at = self.0.iter().rposition(|batch| batch.peer == peer)?;
        Some(self.0.remove(at))
    }

    /// Takes out all, the oldest first.
    #[inline]
    pub(super) fn drain(&mut self) -> std::vec::Drain<'_, PeerBatch> {
        self.0.drain(..)
    }
}

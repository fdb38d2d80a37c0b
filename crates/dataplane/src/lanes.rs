//! Single packets, gathered by peer.
//!
//! A host that sends small packets hands them over one by one, and those for
//! several peers come mixed. Sealed one by one, and sent in the order in which
//! they came, each would cost as much as a train. So between two flushes they
//! are sorted: each peer has a *lane*, a block of the send buffer in which its
//! packets lie behind each other, ready to be sealed as one train and sent with
//! segmentation offload. Within a lane packets keep their order; a packet that
//! does not fit behind the others ends the lane.
//!
//! Where a lane's block is the last in the buffer it grows with the lane. Else
//! the lane ends when the block is full, and the peer gets another one.

use std::sync::Arc;

use warren_keys::NodePublic;
use warren_node_types::Destination;
use warren_tunnel::{PeerIndex, Session};

use super::PeerView;
use super::outbound::{MAX_RUN, MAX_RUN_BYTES};

/// Datagrams for which a new lane has room, whoever comes behind it, and bytes: as
/// much as lets the packets for thirty peers wait side by side.
const ROOM: usize = 16;
const ROOM_BYTES: usize = 8 * 1024;

/// Packets of one peer that wait to be sealed together.
pub(super) struct Lane {
    pub(super) peer: PeerIndex,
    pub(super) key: NodePublic,
    pub(super) destination: Destination,
    pub(super) session: Arc<Session>,
    /// Where its block of the send buffer begins.
    pub(super) start: usize,
    room: usize,
    /// Bytes written.
    pub(super) len: usize,
    /// Length of every datagram but the last, which may be smaller.
    pub(super) segment_len: usize,
    /// Datagrams written.
    pub(super) count: usize,
}

impl Lane {
    /// Where its block ends.
    pub(super) fn block_end(&self) -> usize {
        self.start + self.room
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

/// The lanes between two flushes, the oldest first; at most one per peer.
#[derive(Default)]
pub(super) struct Lanes(Vec<Lane>);

impl Lanes {
    pub(super) fn new() -> Self {
        Self(Vec::with_capacity(MAX_RUN))
    }

    /// Where in a buffer of `size` bytes, of which `used` are given away, a
    /// datagram of `total` bytes for `peer` is to be written, if that is behind
    /// others.
    #[inline]
    pub(super) fn place(
        &mut self,
        peer: &PeerView,
        session: &Arc<Session>,
        total: usize,
        used: &mut usize,
        size: usize,
    ) -> Option<usize> {
        let lane = self.0.iter_mut().rev().find(|l| l.peer == peer.index)?;
        if !lane.takes(peer, session, total) {
            return None;
        }
        let missing = (lane.len + total).saturating_sub(lane.room);
        if missing > 0 {
            if lane.block_end() != *used || *used + missing > size {
                return None;
            }
            lane.room += missing;
            *used += missing;
        }
        Some(lane.add(total))
    }

    /// Begins a lane with a datagram of `total` bytes, for which there is room,
    /// and tells where it is to be written.
    #[inline]
    pub(super) fn open(
        &mut self,
        peer: &PeerView,
        session: &Arc<Session>,
        total: usize,
        used: &mut usize,
        size: usize,
    ) -> usize {
        let room = (total * ROOM).min(ROOM_BYTES).max(total).min(size - *used);
        let mut lane = Lane {
            peer: peer.index,
            key: peer.key,
            destination: peer.destination,
            session: Arc::clone(session),
            start: *used,
            room,
            len: 0,
            segment_len: total,
            count: 0,
        };
        let at = lane.add(total);
        *used += room;
        self.0.push(lane);
        at
    }

    /// Takes out the lane of `peer`.
    #[inline]
    pub(super) fn take(&mut self, peer: PeerIndex) -> Option<Lane> {
        let at = self.0.iter().rposition(|lane| lane.peer == peer)?;
        Some(self.0.remove(at))
    }

    /// Takes out all, the oldest first.
    #[inline]
    pub(super) fn drain(&mut self) -> std::vec::Drain<'_, Lane> {
        self.0.drain(..)
    }
}

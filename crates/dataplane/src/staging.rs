//! Packets that wait for a session or a path.
//!
//! The first packets to a peer come before there is anything to send them
//! with. They wait here, a bounded number per peer and in total; when there
//! are too many the oldest goes, because the newest is the one its sender
//! still cares about. When all peers together have too many, the one that has
//! most gives up its oldest: a flood harms only the peer that causes it.

use std::collections::{BTreeMap, VecDeque};

use warren_tunnel::PeerIndex;

/// Frames per peer. A frame may be a superpacket.
const MAX_FRAMES: usize = 128;
/// Bytes per peer.
const MAX_BYTES: usize = 512 * 1024;
/// Bytes of all peers.
const MAX_TOTAL: usize = 8 * 1024 * 1024;

#[derive(Default)]
struct Queue {
    frames: VecDeque<Box<[u8]>>,
    bytes: usize,
}

/// Waiting frames, each with its virtio header, by peer.
#[derive(Default)]
pub(super) struct Staging {
    queues: BTreeMap<PeerIndex, Queue>,
    total: usize,
}

impl Staging {
    /// Keeps `frame`; returns how many frames had to go for it.
    pub(super) fn push(&mut self, peer: PeerIndex, frame: Box<[u8]>) -> usize {
        let len = frame.len();
        let mut dropped = 0;
        let full = |queue: &Queue| {
            queue.frames.len() >= MAX_FRAMES
                || (!queue.frames.is_empty() && queue.bytes + len > MAX_BYTES)
        };
        while self.queues.get(&peer).is_some_and(full) && self.pop(peer).is_some() {
            dropped += 1;
        }
        while self.total + len > MAX_TOTAL {
            let most = self.queues.iter().max_by_key(|(_, queue)| queue.bytes);
            let Some(greedy) = most.map(|(peer, _)| *peer) else {
                break;
            };
            self.pop(greedy);
            dropped += 1;
        }
        let queue = self.queues.entry(peer).or_default();
        queue.bytes += len;
        self.total += len;
        queue.frames.push_back(frame);
        dropped
    }

    /// Gives back what [`pop`](Self::pop) took last: it stays the oldest.
    pub(super) fn put_back(&mut self, peer: PeerIndex, frame: Box<[u8]>) {
        let queue = self.queues.entry(peer).or_default();
        queue.bytes += frame.len();
        self.total += frame.len();
        queue.frames.push_front(frame);
    }

    /// Takes the oldest frame of `peer`.
    pub(super) fn pop(&mut self, peer: PeerIndex) -> Option<Box<[u8]>> {
        let queue = self.queues.get_mut(&peer)?;
        let frame = queue.frames.pop_front();
        if let Some(frame) = &frame {
            queue.bytes -= frame.len();
            self.total -= frame.len();
        }
        if queue.frames.is_empty() {
            self.queues.remove(&peer);
        }
        frame
    }

    /// Throws away what waits for `peer`; returns how many frames.
    pub(super) fn clear(&mut self, peer: PeerIndex) -> usize {
        let Some(queue) = self.queues.remove(&peer) else {
            return 0;
        };
        self.total -= queue.bytes;
        queue.frames.len()
    }

    /// The first peer at or after `from` that something waits for.
    pub(super) fn next_peer(&self, from: PeerIndex) -> Option<PeerIndex> {
        self.queues.range(from..).next().map(|(peer, _)| *peer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(len: usize, mark: u8) -> Box<[u8]> {
        vec![mark; len].into()
    }

    #[test]
    fn the_oldest_goes_first_and_the_newest_stays() {
        let (mut staging, peer) = (Staging::default(), PeerIndex(1));
        for i in 0..MAX_FRAMES {
            assert_eq!(staging.push(peer, frame(10, i as u8)), 0);
        }
        assert_eq!(staging.push(peer, frame(10, 200)), 1);
        assert_eq!(staging.pop(peer).map(|f| f[0]), Some(1));
        assert_eq!(
            staging.push(peer, frame(MAX_BYTES - 100, 201)),
            MAX_FRAMES - 11
        );
        assert_eq!(staging.clear(peer), 11);
        assert_eq!((staging.total, staging.pop(peer)), (0, None));
    }

    #[test]
    fn one_peer_cannot_take_the_room_of_all() {
        let mut staging = Staging::default();
        for peer in 0..40 {
            staging.push(PeerIndex(peer), frame(MAX_BYTES, 0));
        }
        assert!(staging.total <= MAX_TOTAL);
        // A new peer gets space, at the cost of one that has much.
        assert_eq!(staging.push(PeerIndex(99), frame(10, 7)), 1);
        assert_eq!(staging.pop(PeerIndex(99)).map(|f| f[0]), Some(7));
    }

    #[test]
    fn a_flooding_peer_loses_its_own_oldest_packets() {
        let mut staging = Staging::default();
        for peer in 0..200 {
            for i in 0..4 {
                staging.push(PeerIndex(peer), frame(100, i));
            }
        }
        for peer in 200..220 {
            for _ in 0..MAX_FRAMES {
                staging.push(PeerIndex(peer), frame(60_000, 0));
            }
        }
        assert!(staging.total <= MAX_TOTAL);
        for peer in 0..200 {
            let left = std::iter::from_fn(|| staging.pop(PeerIndex(peer)));
            assert_eq!(left.map(|f| f[0]).collect::<Vec<_>>(), [0, 1, 2, 3]);
        }
    }

    #[test]
    fn a_packet_that_is_put_back_is_the_oldest_again() {
        let (mut staging, peer) = (Staging::default(), PeerIndex(1));
        staging.push(peer, frame(10, 1));
        staging.push(peer, frame(10, 2));
        let first = staging.pop(peer);
        staging.put_back(peer, first.unwrap_or_default());
        assert_eq!(
            (staging.total, staging.pop(peer).map(|f| f[0])),
            (20, Some(1))
        );
        assert_eq!(staging.clear(peer), 1);
        assert_eq!(staging.total, 0);
    }
}

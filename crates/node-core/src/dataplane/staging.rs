//! Packets that wait for a session or a path.
//!
//! The first packets to a peer come before there is anything to send them
//! with. They wait here, a bounded number per peer and in total; when there
//! are too many the oldest goes, because the newest is the one its sender
//! still cares about.

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
        let queue = self.queues.entry(peer).or_default();
        while queue.frames.len() >= MAX_FRAMES
            || (!queue.frames.is_empty()
                && (queue.bytes + len > MAX_BYTES || self.total + len > MAX_TOTAL))
        {
            let Some(oldest) = queue.frames.pop_front() else {
                break;
            };
            queue.bytes -= oldest.len();
            self.total -= oldest.len();
            dropped += 1;
        }
        if self.total + len > MAX_TOTAL {
            if queue.frames.is_empty() {
                self.queues.remove(&peer);
            }
            return dropped + 1;
        }
        queue.bytes += len;
        self.total += len;
        queue.frames.push_back(frame);
        dropped
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
        assert_eq!(staging.push(PeerIndex(99), frame(10, 0)), 1);
        assert_eq!(staging.next_peer(PeerIndex(1)), Some(PeerIndex(1)));
        assert_eq!(staging.next_peer(PeerIndex(50)), None);
    }
}

//! Pings that wait for their pong.
//!
//! A pong counts only if its transaction id is here, it came from the
//! peer that was asked, and over the same kind of transport. An entry leaves
//! with its pong, after [`TIMEOUT`], or as the oldest of too many.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use warren_node_types::{PathAddr, PeerIndex};
use warren_wire::disco::TxId;

/// A pong that comes later than this does not count.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(5);
/// Bound on all waiting pings together.
const MAX: usize = 8192;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Waiting {
    pub(crate) peer: PeerIndex,
    pub(crate) via: PathAddr,
    pub(crate) sent: Instant,
    /// The `ping` call this belongs to.
    pub(crate) token: Option<u64>,
}

#[derive(Default)]
pub(crate) struct Pings {
    waiting: BTreeMap<TxId, Waiting>,
    /// In order of sending; ids that are answered already may linger.
    order: VecDeque<(Instant, TxId)>,
}

impl Pings {
    /// Returns whether an older ping had to go for it.
    pub(crate) fn insert(&mut self, tx: TxId, ping: Waiting) -> bool {
        self.order.push_back((ping.sent, tx));
        self.waiting.insert(tx, ping);
        let full = self.order.len() > MAX;
        if full && let Some((_, oldest)) = self.order.pop_front() {
            return self.waiting.remove(&oldest).is_some();
        }
        false
    }

    pub(crate) fn get(&self, tx: &TxId) -> Option<&Waiting> {
        self.waiting.get(tx)
    }

    pub(crate) fn remove(&mut self, tx: &TxId) {
        self.waiting.remove(tx);
    }

    pub(crate) fn forget_peer(&mut self, peer: PeerIndex) {
        self.waiting.retain(|_, ping| ping.peer != peer);
    }

    pub(crate) fn expire(&mut self, now: Instant) {
        while let Some((sent, tx)) = self.order.front() {
            if self.waiting.contains_key(tx) && now < *sent + TIMEOUT {
                return;
            }
            self.waiting.remove(tx);
            self.order.pop_front();
        }
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.order.front().map(|(sent, _)| *sent + TIMEOUT)
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_table_is_bounded_and_forgets_with_time() {
        let start = Instant::now();
        let mut pings = Pings::default();
        for number in 0..u32::try_from(MAX).unwrap() + 10 {
            let mut tx = [0; 12];
            tx[..4].copy_from_slice(&number.to_be_bytes());
            let ping = Waiting {
                peer: PeerIndex(1),
                via: PathAddr::Udp(([192, 0, 2, 1], 1).into()),
                sent: start,
                token: None,
            };
            pings.insert(TxId(tx), ping);
        }
        assert_eq!(pings.len(), MAX);
        pings.expire(start + TIMEOUT - Duration::from_millis(1));
        assert_eq!(pings.len(), MAX);
        pings.expire(start + TIMEOUT);
        assert_eq!(pings.len(), 0);
        assert_eq!(pings.deadline(), None);
    }
}

//! Pairs of addresses that were closed lately. The other side may not have received
//! our last ACK: it sends its FIN again and gets the ACK again (RFC 9293, TIME-WAIT).

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use crate::Tuple;

/// The last ACKs by pair of addresses, with a bound. Entries end in the order in which
/// they came.
#[derive(Debug, Default)]
pub(crate) struct TimeWait {
    last_acks: BTreeMap<Tuple, (Instant, Vec<u8>)>,
    order: VecDeque<(Instant, Tuple)>,
}

impl TimeWait {
    /// Remembers `last_ack` until `ends`.
    pub(crate) fn insert(&mut self, ends: Instant, tuple: Tuple, last_ack: Vec<u8>, most: usize) {
        self.last_acks.insert(tuple, (ends, last_ack));
        self.order.push_back((ends, tuple));
        while self.order.len() > most {
            self.remove_first();
        }
    }

    pub(crate) fn get(&self, tuple: &Tuple) -> Option<&[u8]> {
        self.last_acks.get(tuple).map(|(_, ack)| ack.as_slice())
    }

    pub(crate) fn contains(&self, tuple: &Tuple) -> bool {
        self.last_acks.contains_key(tuple)
    }

    /// Forgets a pair that is used again.
    pub(crate) fn remove(&mut self, tuple: &Tuple) {
        self.last_acks.remove(tuple);
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.order.front().map(|(ends, _)| *ends)
    }

    pub(crate) fn end_due(&mut self, now: Instant) {
        while self.next_deadline().is_some_and(|ends| ends <= now) {
            self.remove_first();
        }
    }

    fn remove_first(&mut self) {
        if let Some((ends, tuple)) = self.order.pop_front() {
            // The pair may have been used and closed again since.
            let is_this = |(at, _): &(Instant, Vec<u8>)| *at == ends;
            if self.last_acks.get(&tuple).is_some_and(is_this) {
                self.last_acks.remove(&tuple);
            }
        }
    }
}

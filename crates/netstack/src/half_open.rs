//! Incoming connections that the application has not accepted yet. Each is the SYN as
//! it came, so a flood of them costs little memory, and no answer is sent before the
//! application knows whether there will be a connection.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Instant;

use crate::{ConnectionId, Tuple};

/// A SYN that waits.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) tuple: Tuple,
    /// The packet.
    pub(crate) syn: Vec<u8>,
    ends: Instant,
}

/// The SYNs that wait, with bounds. Numbers rise, so the first entry is the oldest.
#[derive(Debug, Default)]
pub(crate) struct HalfOpen {
    waiting: BTreeMap<ConnectionId, Waiting>,
    by_source: BTreeMap<IpAddr, usize>,
}

impl HalfOpen {
    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// The number of SYNs of `source` that wait.
    pub(crate) fn of_source(&self, source: IpAddr) -> usize {
        self.by_source.get(&source).copied().unwrap_or(0)
    }

    pub(crate) fn insert(&mut self, id: ConnectionId, tuple: Tuple, syn: Vec<u8>, ends: Instant) {
        *self.by_source.entry(tuple.remote.ip()).or_default() += 1;
        self.waiting.insert(id, Waiting { tuple, syn, ends });
    }

    pub(crate) fn remove(&mut self, id: ConnectionId) -> Option<Waiting> {
        let waiting = self.waiting.remove(&id)?;
        let source = waiting.tuple.remote.ip();
        if let Some(count) = self.by_source.get_mut(&source) {
            *count -= 1;
            if *count == 0 {
                self.by_source.remove(&source);
            }
        }
        Some(waiting)
    }

    pub(crate) fn remove_oldest(&mut self) -> Option<Waiting> {
        let oldest = *self.waiting.first_key_value()?.0;
        self.remove(oldest)
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.waiting.first_key_value().map(|(_, first)| first.ends)
    }

    /// Removes one whose time has passed.
    pub(crate) fn pop_due(&mut self, now: Instant) -> Option<Waiting> {
        let due = self.next_deadline().is_some_and(|ends| ends <= now);
        due.then(|| self.remove_oldest()).flatten()
    }
}

//! The bytes that all send queues of a relay may hold together.
//!
//! A queue is bounded by itself, and a relay has thousands of them. Under a common
//! budget, a queue may hold a part of what is free at the moment, so a queue that
//! grows leaves space to the others: receivers that do not read cannot take everything,
//! and a connection that holds nothing gets its next packet through as long as a byte is
//! free (the dynamic thresholds of Choudhury and Hahne, 1998).

use std::sync::atomic::{AtomicUsize, Ordering};

/// The part of the free bytes that one queue may hold: one in this many.
const SHARE: usize = 16;

/// See the module. It is shared by the queues of one relay.
#[derive(Debug)]
pub struct QueueBudget {
    limit: usize,
    used: AtomicUsize,
}

impl QueueBudget {
    /// A budget of so many bytes.
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            used: AtomicUsize::new(0),
        }
    }

    /// The bytes that are held now.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// The bytes that are left.
    pub fn free(&self) -> usize {
        self.limit.saturating_sub(self.used())
    }

    /// The bytes that one queue may hold at this moment.
    pub(crate) fn share(&self) -> usize {
        self.free() / SHARE
    }

    /// A queue that held `before` bytes holds `after` now.
    pub(crate) fn changed(&self, before: usize, after: usize) {
        if after >= before {
            self.used.fetch_add(after - before, Ordering::Relaxed);
        } else {
            self.used.fetch_sub(before - after, Ordering::Relaxed);
        }
    }
}

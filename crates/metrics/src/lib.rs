//! Counters and gauges, and their text form for Prometheus (exposition format 0.0.4).
//!
//! A *family* is a metric with its name, its help text and the names of its labels.
//! Families are constants, so a name that Prometheus refuses does not compile:
//!
//! ```
//! use warren_metrics::{Counter, CounterFamily, Exposition, GaugeFamily};
//!
//! const CLIENTS: GaugeFamily<0> = GaugeFamily::new("relay_clients", "Clients.", []);
//! const DROPPED: CounterFamily<1> =
//!     CounterFamily::new("relay_dropped_total", "Packets dropped, by reason.", ["reason"]);
//!
//! let queue_full = Counter::default();
//! queue_full.add(3);
//!
//! let mut text = Exposition::default();
//! text.gauge(&CLIENTS, [], 2_usize);
//! text.counter(&DROPPED, ["queue_full"], queue_full.get());
//! assert!(text.render().ends_with("relay_dropped_total{reason=\"queue_full\"} 3\n"));
//! ```
//!
//! An [`Exposition`] gathers the samples by family. So each family has its head once
//! and its samples together, whatever the order in which they are added, as
//! Prometheus requires. A property test parses what is written.
//!
//! This is not a crate from outside because those that we know append `_total` to
//! the name of every counter, which the names of the official client and relay do
//! not allow.
#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

mod exposition;
mod family;

use std::sync::atomic::{AtomicU64, Ordering};

pub use exposition::{Exposition, GaugeValue};
pub use family::{CounterFamily, GaugeFamily};

/// A number that only grows. Any thread may add to it.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`.
    pub fn add(&self, n: u64) {
        if n > 0 {
            self.0.fetch_add(n, Ordering::Relaxed);
        }
    }

    /// The sum so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

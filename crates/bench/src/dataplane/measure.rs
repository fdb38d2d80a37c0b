//! The vocabulary of a measurement: how long it lasts, which CPU time it cost,
//! and which figures it produced.

use std::time::Duration;

use super::ends::Ends;
use super::usage::machine;

/// Bits in a gigabit, bytes in a gigabyte.
pub const GIGA: f64 = 1e9;

/// Figures of one measurement: the name of each metric and its value.
pub type Found = Vec<(&'static str, f64)>;

/// How long each piece of work lasts.
#[derive(Debug, Clone, Copy)]
pub struct Spans {
    /// TCP before it counts.
    pub warm_up: Duration,
    /// TCP while it counts.
    pub tcp: Duration,
    /// Datagrams at one rate.
    pub udp: Duration,
    /// Datagrams at each rate of the search.
    pub probe: Duration,
    /// Round trips of one series.
    pub pings: u16,
}

impl Spans {
    /// For figures.
    pub const FULL: Self = Self {
        warm_up: Duration::from_millis(1000),
        tcp: Duration::from_secs(5),
        udp: Duration::from_secs(3),
        probe: Duration::from_millis(1500),
        pings: 600,
    };
    /// For a look.
    pub const QUICK: Self = Self {
        warm_up: Duration::from_millis(500),
        tcp: Duration::from_secs(2),
        udp: Duration::from_millis(1500),
        probe: Duration::from_millis(700),
        pings: 300,
    };
}

/// CPU time used so far by both ends, the relay and the whole machine.
pub struct Clock {
    out: f64,
    in_: f64,
    relay: f64,
    machine: f64,
}

impl Clock {
    /// Reads the CPU time used until now.
    pub fn read(ends: &Ends) -> Self {
        Self {
            out: ends.cpu[0].seconds(),
            in_: ends.cpu[1].seconds(),
            relay: ends.relay.seconds(),
            machine: machine(),
        }
    }

    /// CPU seconds per GB since this reading. Empty when no bytes arrived.
    pub fn per_gigabyte(&self, ends: &Ends, bytes: f64) -> Found {
        let now = Self::read(ends);
        let per = |from: f64, to: f64| (to - from) / (bytes / GIGA);
        let mut found = Vec::new();
        if bytes <= 0.0 {
            return found;
        }
        if !ends.cpu[0].is_empty() {
            found.push(("cpu_out", per(self.out, now.out)));
            found.push(("cpu_in", per(self.in_, now.in_)));
        }
        if !ends.relay.is_empty() {
            found.push(("cpu_relay", per(self.relay, now.relay)));
        }
        found.push(("cpu_all", per(self.machine, now.machine)));
        found
    }
}

//! The stamp in each datagram of the load, and the statistics over many
//! datagrams: how many arrived from each sender, and their delay.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

/// The bytes that a stamp takes.
pub const LEN: usize = 20;

/// Number, time and sender, at the beginning of a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// From 0, per sender or per run.
    pub number: u64,
    /// When it left: nanoseconds since the UNIX epoch. All ends share one
    /// machine, and so one clock.
    pub at: u64,
    /// The sender's number.
    pub from: u32,
}

fn nanoseconds() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    // Enough until the year 2554.
    since.map_or(0, |since| since.as_nanos() as u64)
}

impl Stamp {
    /// One of this moment.
    pub fn now(number: u64, from: u32) -> Self {
        Self {
            number,
            at: nanoseconds(),
            from,
        }
    }

    /// Puts it down.
    pub fn write(self, payload: &mut [u8]) {
        payload[..8].copy_from_slice(&self.number.to_be_bytes());
        payload[8..16].copy_from_slice(&self.at.to_be_bytes());
        payload[16..LEN].copy_from_slice(&self.from.to_be_bytes());
    }

    /// Reads it back; `None` when the payload is too short for one.
    pub fn read(payload: &[u8]) -> Option<Self> {
        let (number, rest) = payload.split_first_chunk()?;
        let (at, rest) = rest.split_first_chunk()?;
        Some(Self {
            number: u64::from_be_bytes(*number),
            at: u64::from_be_bytes(*at),
            from: u32::from_be_bytes(*rest.first_chunk()?),
        })
    }
}

/// Datagrams that arrived from sender 0, which floods, and from all others.
#[derive(Debug, Default)]
pub struct Arrivals {
    flood: u64,
    others: BTreeMap<u32, u64>,
    /// How long each of the others' took, in microseconds.
    delays: Vec<u32>,
}

impl Arrivals {
    /// Counts one that arrived now.
    pub fn add(&mut self, stamp: Stamp) {
        self.add_after(stamp, nanoseconds().saturating_sub(stamp.at));
    }

    fn add_after(&mut self, stamp: Stamp, nanoseconds: u64) {
        if stamp.from == 0 {
            self.flood += 1;
            return;
        }
        *self.others.entry(stamp.from).or_default() += 1;
        let microseconds = u32::try_from(nanoseconds / 1000);
        self.delays.push(microseconds.unwrap_or(u32::MAX));
    }

    /// Counts, the fewest that one of the others got through, and delays in
    /// milliseconds.
    pub fn summary(&self) -> Value {
        let mut delays = self.delays.clone();
        delays.sort_unstable();
        let rank = |percent: usize| {
            let at = (delays.len() * percent).div_ceil(100).saturating_sub(1);
            delays.get(at).map_or(0.0, |us| f64::from(*us) / 1e3)
        };
        json!({
            "flood": self.flood,
            "others": self.delays.len(),
            "senders": self.others.len(),
            "fewest": self.others.values().min().copied().unwrap_or_default(),
            "p50": rank(50),
            "p99": rank(99),
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_stamp_is_read_back_from_what_holds_one() {
        let stamp = Stamp::now(1 << 40, 999);
        let mut payload = [0xaa; 24];
        stamp.write(&mut payload);
        assert_eq!(Stamp::read(&payload), Some(stamp));
        assert_eq!(payload[20..], [0xaa; 4]);
        assert_eq!(Stamp::read(&payload[..19]), None);
    }

    #[test]
    fn the_flood_is_counted_apart() {
        let mut arrivals = Arrivals::default();
        let stamp = |from| Stamp {
            number: 0,
            at: 0,
            from,
        };
        for _ in 0..5 {
            arrivals.add_after(stamp(0), 1);
        }
        for milliseconds in 1..=100 {
            arrivals.add_after(stamp(1), milliseconds * 1_000_000);
        }
        arrivals.add_after(stamp(2), 0);
        let summary = arrivals.summary();
        assert_eq!(summary["flood"], 5);
        assert_eq!(summary["others"], 101);
        assert_eq!(summary["senders"], 2);
        assert_eq!(summary["fewest"], 1);
        assert_eq!(summary["p50"], 50.0);
        assert_eq!(summary["p99"], 99.0);
        assert_eq!(Arrivals::default().summary()["p99"], 0.0);
    }
}

//! Whether handshakes come faster than they should be served, and whose turn
//! it is when they do.
//!
//! Serving an initiation costs several curve multiplications. Beyond
//! [`BUSY_PER_SECOND`] messages in a second the node counts as under load for
//! at least another second: then only senders that own their address are
//! served, and each address only [`PER_SECOND`] times a second.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;
use warren_keys::NodePublic;
use warren_node_types::Vni;

use crate::Source;

/// Handshake messages per second that are served without asking for proof:
/// about a tenth of one core.
pub(crate) const BUSY_PER_SECOND: u32 = 500;
/// Handshakes per second and address under load.
const PER_SECOND: u32 = 20;
/// Handshakes that one address may have at once before the rate counts.
const BURST: u32 = 5;
/// The largest number of addresses; beyond it no new address is served until the
/// next clean-up, which is at most a second away.
const MAX_BUCKETS: usize = 8192;

const WINDOW: Duration = Duration::from_secs(1);

/// The sender of a message as far as fairness is concerned: an address
/// without its port, so that ports do not multiply the share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Owner {
    Ip(IpAddr),
    Key(NodePublic),
    PeerRelay(SocketAddr, Vni),
}

struct Bucket {
    /// Time already used up, as of `at`: each handshake costs a part of a
    /// second.
    debt: Duration,
    at: Instant,
}

/// Measures the rate of handshake messages.
#[derive(Default)]
pub(crate) struct Load {
    forced: bool,
    window_start: Option<Instant>,
    in_window: u32,
    busy_until: Option<Instant>,
    buckets: FxHashMap<Owner, Bucket>,
    cleaned: Option<Instant>,
}

impl Load {
    /// The caller's own judgement, in addition to the rate.
    pub(crate) fn force(&mut self, under_load: bool) {
        self.forced = under_load;
    }

    /// Counts a handshake message; whether the node is under load.
    pub(crate) fn arrived(&mut self, now: Instant) -> bool {
        let expired = self
            .window_start
            .is_none_or(|start| now.saturating_duration_since(start) >= WINDOW);
        if expired {
            self.window_start = Some(now);
            self.in_window = 0;
        }
        self.in_window = self.in_window.saturating_add(1);
        if self.in_window > BUSY_PER_SECOND {
            self.busy_until = now.checked_add(WINDOW);
        }
        self.forced || self.busy_until.is_some_and(|until| now < until)
    }

    /// Whether the sender, whose address is proven, has its turn.
    pub(crate) fn admit(&mut self, now: Instant, source: &Source) -> bool {
        let owner = match source {
            Source::Udp(address) => Owner::Ip(address.ip()),
            // All nodes behind one peer relay share its address.
            Source::PeerRelay { server, vni } => Owner::PeerRelay(*server, *vni),
            Source::Derp { key, .. } => Owner::Key(*key),
        };
        let cost = WINDOW / PER_SECOND;
        let due = self
            .cleaned
            .is_none_or(|at| now.saturating_duration_since(at) >= WINDOW);
        if due {
            self.buckets
                .retain(|_, bucket| now.saturating_duration_since(bucket.at) < WINDOW);
            self.cleaned = Some(now);
        }
        if self.buckets.len() >= MAX_BUCKETS && !self.buckets.contains_key(&owner) {
            return false;
        }
        let bucket = self.buckets.entry(owner).or_insert(Bucket {
            debt: Duration::ZERO,
            at: now,
        });
        bucket.debt = bucket
            .debt
            .saturating_sub(now.saturating_duration_since(bucket.at));
        bucket.at = now;
        if bucket.debt + cost > cost * BURST {
            return false;
        }
        bucket.debt += cost;
        true
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn load_is_a_rate_that_lasts_a_second() {
        let (mut load, start) = (Load::default(), Instant::now());
        for _ in 0..BUSY_PER_SECOND {
            assert!(!load.arrived(start));
        }
        assert!(load.arrived(start));
        assert!(load.arrived(start + Duration::from_millis(999)));
        assert!(!load.arrived(start + Duration::from_secs(2)));
        load.force(true);
        assert!(load.arrived(start + Duration::from_secs(9)));
    }

    #[test]
    fn each_address_has_a_burst_and_then_a_rate() {
        let (mut load, start) = (Load::default(), Instant::now());
        let flood = Source::Udp("192.0.2.1:7".parse().unwrap());
        let other_port = Source::Udp("192.0.2.1:8".parse().unwrap());
        let quiet = Source::Udp("192.0.2.2:7".parse().unwrap());
        let served = (0..100).filter(|_| load.admit(start, &flood)).count();
        assert_eq!(served, 5);
        assert!(!load.admit(start, &other_port));
        assert!(load.admit(start, &quiet));
        let later = start + Duration::from_secs(1);
        let served = (0..100).filter(|_| load.admit(later, &flood)).count();
        assert_eq!(served, 5, "a full burst again after a second");
    }
}

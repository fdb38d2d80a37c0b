//! The counters of a filter: packets and bytes by rule, by the reason why they passed
//! without a rule, and by the reason of a drop.
//!
//! Rules and whatever else comes in are counted by the threads that receive,
//! which take turns, and drops on the way out by those that send, on cache lines
//! apart: neither waits for the other. Counters are read and written, not added
//! to: a locked addition would make every packet wait for its cache misses, which
//! costs several times more than the lookup. Where several threads send, a drop
//! may now and then go uncounted; none is counted twice. Readings may be a moment
//! old.
//!
//! Counters outlive the filter that counts: see
//! [`Filter::keep_counts`](crate::Filter::keep_counts).

use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use warren_control_types::FilterRule;

use crate::{Direction, DropReason};

/// Packets and their bytes. A superpacket is one packet here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Their bytes, IP headers included.
    pub bytes: u64,
}

impl std::ops::Add for Count {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            packets: self.packets.wrapping_add(other.packets),
            bytes: self.bytes.wrapping_add(other.bytes),
        }
    }
}

/// The reason why a packet passes without a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Without {
    /// It answers a flow of ours.
    Answer,
    /// An ICMP error about a packet of ours.
    Error,
    /// A later fragment behind a first one that passed.
    Fragment,
    /// A message from node to node.
    NodeMessage,
}

impl Without {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Answer, Self::Error, Self::Fragment, Self::NodeMessage];

    /// A short name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Answer => "answer",
            Self::Error => "icmp_error",
            Self::Fragment => "fragment",
            Self::NodeMessage => "node_message",
        }
    }
}

/// A count that grows.
#[derive(Debug, Default)]
pub(crate) struct Growing {
    packets: AtomicU64,
    bytes: AtomicU64,
}

impl Growing {
    #[inline]
    pub(crate) fn add(&self, packets: u64, bytes: u64) {
        let grow = |count: &AtomicU64, by: u64| {
            count.store(count.load(Relaxed).wrapping_add(by), Relaxed);
        };
        grow(&self.packets, packets);
        grow(&self.bytes, bytes);
    }

    pub(crate) fn read(&self) -> Count {
        Count {
            packets: self.packets.load(Relaxed),
            bytes: self.bytes.load(Relaxed),
        }
    }
}

/// One thread's share. Two cache lines apart from the next, because processors
/// fetch lines in pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Side {
    without: [Growing; Without::ALL.len()],
    drops: [Growing; DropReason::ALL.len()],
}

impl Side {
    #[inline]
    pub(crate) fn passed(&self, why: Without, packets: u64, bytes: u64) {
        if let Some(count) = self.without.get(why as usize) {
            count.add(packets, bytes);
        }
    }

    #[inline]
    pub(crate) fn dropped(&self, reason: DropReason, bytes: usize) {
        if let Some(count) = self.drops.get(reason.index()) {
            count.add(1, bytes as u64);
        }
    }

    pub(crate) fn read_passed(&self, why: Without) -> Count {
        self.without
            .get(why as usize)
            .map(Growing::read)
            .unwrap_or_default()
    }

    pub(crate) fn read_dropped(&self, reason: DropReason) -> Count {
        self.drops
            .get(reason.index())
            .map(Growing::read)
            .unwrap_or_default()
    }
}

/// Everything that is not counted by rule.
#[derive(Debug, Default)]
pub(crate) struct Totals {
    pub(crate) inbound: Side,
    pub(crate) outbound: Side,
}

impl Totals {
    pub(crate) fn side(&self, direction: Direction) -> &Side {
        match direction {
            Direction::In => &self.inbound,
            Direction::Out => &self.outbound,
        }
    }
}

/// The counters of the rules, in their order, and the identities of the rules.
#[derive(Debug, Clone, Default)]
pub(crate) struct RuleCounters {
    counts: Box<[Arc<Growing>]>,
    identities: Box<[u64]>,
}

impl RuleCounters {
    pub(crate) fn new(rules: &[FilterRule]) -> Self {
        Self {
            counts: rules.iter().map(|_| Arc::default()).collect(),
            identities: rules.iter().map(identity).collect(),
        }
    }

    #[inline]
    pub(crate) fn add(&self, rule: u32, packets: u64, bytes: u64) {
        if let Some(count) = self.counts.get(rule as usize) {
            count.add(packets, bytes);
        }
    }

    pub(crate) fn read(&self, rule: usize) -> Count {
        self.counts
            .get(rule)
            .map(|count| count.read())
            .unwrap_or_default()
    }

    pub(crate) fn len(&self) -> usize {
        self.counts.len()
    }

    /// Goes on with the counts of the rules in `before` that are still there;
    /// of several equal ones the first goes on with the first.
    pub(crate) fn keep(&mut self, before: &Self) {
        let mut known: std::collections::HashMap<u64, std::collections::VecDeque<&Arc<Growing>>> =
            std::collections::HashMap::new();
        for (identity, count) in before.identities.iter().zip(&before.counts) {
            known.entry(*identity).or_default().push_back(count);
        }
        for (identity, count) in self.identities.iter().zip(&mut self.counts) {
            if let Some(old) = known.get_mut(identity).and_then(|old| old.pop_front()) {
                *count = Arc::clone(old);
            }
        }
    }
}

/// The identity of a rule, for counting only: when two rules have the same one, their
/// counts mix and nothing else happens.
fn identity(rule: &FilterRule) -> u64 {
    let mut hasher = std::hash::DefaultHasher::new();
    rule.src_ips.hash(&mut hasher);
    rule.ip_proto.hash(&mut hasher);
    for dst in &rule.dst_ports {
        (&dst.ip, dst.ports.first, dst.ports.last).hash(&mut hasher);
    }
    hasher.finish()
}

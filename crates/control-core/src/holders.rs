//! Keys that several machines hold at the same time.
//!
//! A copied state folder, or a disk image with the state of a node in it, gives two
//! machines one node key or one machine key. Each of them works only while the other
//! is away, and neither can see why; the server can:
//!
//! - *one node key*: the machines take the map stream from each other, again and again;
//! - *one machine key*: two nodes of one machine stay connected side by side. A client
//!   with several logins uses one at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use warren_control_types::NodeId;
use warren_keys::MachinePublic;

/// The time in which events are counted.
const PERIOD: Duration = Duration::from_secs(30);
/// So often a stream is replaced within a period by a client that is alone only if it
/// has lost its connection as often.
const REPLACED: u32 = 5;
/// How long a contradiction is reported after it was seen last.
const REPORTED_FOR: Duration = Duration::from_secs(10 * 60);

/// A key with more than one live holder.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum SharedKey {
    /// The node key of this node.
    Node(NodeId),
    /// The machine key of these nodes, which are connected side by side.
    Machine(Vec<NodeId>),
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Holders {
    period_ends: Instant,
    replaced: BTreeMap<NodeId, u32>,
    /// The nodes of one machine that were connected at the end of the last period.
    together: BTreeSet<Vec<NodeId>>,
    /// The keys that were found, and the time when each was seen last.
    found: BTreeMap<SharedKey, Instant>,
}

impl Holders {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            period_ends: now + PERIOD,
            replaced: BTreeMap::new(),
            together: BTreeSet::new(),
            found: BTreeMap::new(),
        }
    }

    /// A new stream of the node took the place of one that was open.
    pub(crate) fn stream_replaced(&mut self, id: NodeId) {
        *self.replaced.entry(id).or_default() += 1;
    }

    /// Looks at the period if it is over. Returns what was found for the first time.
    pub(crate) fn check<I>(&mut self, now: Instant, connected: impl FnOnce() -> I) -> Vec<SharedKey>
    where
        I: IntoIterator<Item = (MachinePublic, NodeId)>,
    {
        if now < self.period_ends {
            return Vec::new();
        }
        self.period_ends = now + PERIOD;
        let mut machines: BTreeMap<MachinePublic, Vec<NodeId>> = BTreeMap::new();
        for (machine, node) in connected() {
            machines.entry(machine).or_default().push(node);
        }
        let together: BTreeSet<_> = machines.into_values().filter(|all| all.len() > 1).collect();
        let twice = self.together.intersection(&together).cloned();
        let replaced = std::mem::take(&mut self.replaced).into_iter();
        let taken = replaced.filter(|(_, times)| *times >= REPLACED);
        let seen: Vec<SharedKey> = twice
            .map(SharedKey::Machine)
            .chain(taken.map(|(node, _)| SharedKey::Node(node)))
            .collect();
        self.together = together;
        self.found.retain(|_, last| now < *last + REPORTED_FOR);
        let mut new = Vec::new();
        for key in seen {
            if self.found.insert(key.clone(), now).is_none() {
                new.push(key);
            }
        }
        new
    }

    /// The keys that were found in the last minutes.
    pub(crate) fn found(&self) -> impl Iterator<Item = &SharedKey> {
        self.found.keys()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: NodeId = NodeId(1);
    const TWO: NodeId = NodeId(2);

    fn nothing() -> [(MachinePublic, NodeId); 0] {
        []
    }

    #[test]
    fn machines_that_take_the_stream_from_each_other_are_reported_once() {
        let start = Instant::now();
        let mut holders = Holders::new(start);
        for _ in 1..REPLACED {
            holders.stream_replaced(ONE);
        }
        assert_eq!(holders.check(start + PERIOD, nothing), []);
        for period in 2..5 {
            for _ in 0..REPLACED {
                holders.stream_replaced(ONE);
            }
            let new = holders.check(start + period * PERIOD, nothing);
            assert_eq!(new.len(), usize::from(period == 2), "{new:?}");
        }
        assert_eq!(holders.found().collect::<Vec<_>>(), [&SharedKey::Node(ONE)]);
        let _ = holders.check(start + 4 * PERIOD + REPORTED_FOR, nothing);
        assert_eq!(holders.found().count(), 0, "the copy is gone");
    }

    #[test]
    fn nodes_of_one_machine_that_stay_connected_are_reported() {
        let start = Instant::now();
        let machine = |n| MachinePublic::from_bytes([n; 32]);
        let both = [
            (machine(1), ONE),
            (machine(1), TWO),
            (machine(2), NodeId(3)),
        ];
        let mut holders = Holders::new(start);
        // A client that changes its login is gone with the old one by the next period.
        assert_eq!(holders.check(start + PERIOD, || both), []);
        assert_eq!(holders.check(start + 2 * PERIOD, || [both[0]]), []);
        assert_eq!(holders.check(start + 3 * PERIOD, || both), []);
        let shared = SharedKey::Machine(vec![ONE, TWO]);
        assert_eq!(holders.check(start + 4 * PERIOD, || both), [shared]);
    }
}

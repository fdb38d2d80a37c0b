//! Nodes that are online, and what happens when one stays away.
//!
//! A node without a map stream is online for a grace time, so that a reconnect
//! goes unnoticed; an ephemeral node without one is deleted after its own
//! timeout. A deadline carries no decision: the coordinator looks at the
//! record when it fires, because the node may have registered again as
//! something else.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use warren_control_types::NodeId;
use warren_timers::DeadlineQueue;

/// A router without a stream may come back within this time before another one
/// serves its subnets: a client makes a new stream after some changes, and
/// connections through a router break when another one takes over.
pub(crate) const MISSED_AFTER: Duration = Duration::from_secs(1);

/// A deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum PresenceTimer {
    /// The grace time of a node without a stream is over.
    Offline(NodeId),
    /// A node without a stream is not back after a moment: other routers serve.
    Missed(NodeId),
    /// An ephemeral node has been away too long.
    Delete(NodeId),
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Presence {
    grace: Duration,
    ephemeral_timeout: Duration,
    connected: BTreeSet<NodeId>,
    deadlines: DeadlineQueue<PresenceTimer>,
}

impl Presence {
    pub(crate) fn new(grace: Duration, ephemeral_timeout: Duration) -> Self {
        Self {
            grace,
            ephemeral_timeout,
            connected: BTreeSet::new(),
            deadlines: DeadlineQueue::new(),
        }
    }

    /// The node has a map stream.
    pub(crate) fn connected(&mut self, id: NodeId) {
        self.connected.insert(id);
        self.deadlines.remove(&PresenceTimer::Offline(id));
        self.deadlines.remove(&PresenceTimer::Missed(id));
        self.deadlines.remove(&PresenceTimer::Delete(id));
    }

    /// The node's map stream ended.
    pub(crate) fn disconnected(&mut self, now: Instant, id: NodeId, ephemeral: bool) {
        self.connected.remove(&id);
        self.deadlines
            .set(PresenceTimer::Offline(id), now + self.grace);
        self.deadlines
            .set(PresenceTimer::Missed(id), now + MISSED_AFTER);
        self.kind_is(now, id, ephemeral);
    }

    /// The node is ephemeral or not. Time that it was away already counts.
    pub(crate) fn kind_is(&mut self, now: Instant, id: NodeId, ephemeral: bool) {
        let timer = PresenceTimer::Delete(id);
        if !ephemeral || self.connected.contains(&id) {
            self.deadlines.remove(&timer);
        } else if self.deadlines.get(&timer).is_none() {
            self.deadlines.set(timer, now + self.ephemeral_timeout);
        }
    }

    /// The node is gone.
    pub(crate) fn forget(&mut self, id: NodeId) {
        self.connected.remove(&id);
        self.deadlines.remove(&PresenceTimer::Offline(id));
        self.deadlines.remove(&PresenceTimer::Missed(id));
        self.deadlines.remove(&PresenceTimer::Delete(id));
    }

    /// Whether the node has a map stream now.
    pub(crate) fn is_connected(&self, id: NodeId) -> bool {
        self.connected.contains(&id)
    }

    /// Whether the node lost its stream a moment ago and may be back at once.
    pub(crate) fn may_be_back(&self, id: NodeId) -> bool {
        self.deadlines.get(&PresenceTimer::Missed(id)).is_some()
    }

    pub(crate) fn next_deadline(&self) -> Option<(Instant, PresenceTimer)> {
        self.deadlines.first().map(|(at, timer)| (at, *timer))
    }

    pub(crate) fn pop_due(&mut self, now: Instant) -> Option<PresenceTimer> {
        self.deadlines.pop_due(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(10);
    const TIMEOUT: Duration = Duration::from_secs(120);
    const ID: NodeId = NodeId(1);

    fn due(presence: &mut Presence, now: Instant) -> Vec<PresenceTimer> {
        std::iter::from_fn(|| presence.pop_due(now)).collect()
    }

    #[test]
    fn absent_node_goes_offline_and_an_ephemeral_one_is_deleted() {
        let now = Instant::now();
        let mut presence = Presence::new(GRACE, TIMEOUT);
        presence.connected(ID);
        assert!(presence.is_connected(ID));
        presence.disconnected(now, ID, true);
        assert!(presence.may_be_back(ID));
        assert_eq!(
            due(&mut presence, now + MISSED_AFTER),
            [PresenceTimer::Missed(ID)]
        );
        assert!(!presence.may_be_back(ID));
        assert_eq!(
            due(&mut presence, now + GRACE),
            [PresenceTimer::Offline(ID)]
        );
        assert_eq!(
            due(&mut presence, now + TIMEOUT),
            [PresenceTimer::Delete(ID)]
        );
    }

    #[test]
    fn return_within_the_grace_time_cancels_both_deadlines() {
        let now = Instant::now();
        let mut presence = Presence::new(GRACE, TIMEOUT);
        presence.connected(ID);
        presence.disconnected(now, ID, true);
        presence.connected(ID);
        assert_eq!(presence.next_deadline(), None);
    }

    #[test]
    fn deletion_follows_the_kind_of_the_node_and_not_its_past() {
        let now = Instant::now();
        let mut presence = Presence::new(GRACE, TIMEOUT);
        presence.kind_is(now, ID, true);
        presence.kind_is(now + GRACE, ID, true);
        assert_eq!(
            presence.next_deadline(),
            Some((now + TIMEOUT, PresenceTimer::Delete(ID)))
        );
        presence.kind_is(now, ID, false);
        assert_eq!(presence.next_deadline(), None);
        presence.connected(ID);
        presence.kind_is(now, ID, true);
        assert_eq!(presence.next_deadline(), None);
        presence.forget(ID);
        assert!(!presence.is_connected(ID));
    }
}

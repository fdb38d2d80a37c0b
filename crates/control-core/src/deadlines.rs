//! What happens by time alone.

use std::time::{Duration, Instant};

use warren_control_types::NodeId;

use crate::coordinator::{Coordinator, Notice, Output, timestamp};
use crate::session::{PatchFields, PeerMark};

/// A wall clock may jump; whatever hangs on it is looked at this often.
const WALL_CHECK: Duration = Duration::from_secs(30);

/// Why the coordinator wants to be called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// A node has been without a stream for the grace time.
    Offline(NodeId),
    /// An ephemeral node has been away too long.
    DeleteEphemeral(NodeId),
    /// A machine has waited too long for approval.
    ForgetPending,
    /// A session over SSH has waited too long for a check, or a decision about
    /// one has been kept long enough.
    SshCheck,
    /// A key may have expired.
    KeyExpiry,
}

impl Coordinator {
    /// When [`Coordinator::handle_timeout`] has something to do, and what.
    pub fn next_deadline(&self, now: Instant, wall: Duration) -> Option<(Instant, Reason)> {
        let offline = self
            .offline_at
            .iter()
            .map(|(id, at)| (*at, Reason::Offline(*id)));
        let delete = self
            .delete_at
            .iter()
            .map(|(id, at)| (*at, Reason::DeleteEphemeral(*id)));
        let pending = self
            .pendings
            .waiting
            .values()
            .map(|p| (p.deadline, Reason::ForgetPending));
        let checks = self.ssh_checks.deadlines().map(|at| (at, Reason::SshCheck));
        let time = timestamp(wall);
        let expiry = self
            .data
            .nodes
            .values()
            .filter(|node| !self.told_expired.contains(&node.id))
            .filter_map(|node| node.key_expiry)
            .min()
            .map(|expiry| {
                let left = Duration::try_from(expiry.duration_since(time)).unwrap_or_default();
                (now + left.min(WALL_CHECK), Reason::KeyExpiry)
            });
        offline
            .chain(delete)
            .chain(pending)
            .chain(checks)
            .chain(expiry)
            .min_by_key(|(at, _)| *at)
    }

    /// Does what is due. Called early, it does nothing.
    pub fn handle_timeout(&mut self, now: Instant, wall: Duration) {
        let due = |map: &std::collections::BTreeMap<NodeId, Instant>| -> Vec<NodeId> {
            map.iter()
                .filter(|(_, at)| **at <= now)
                .map(|(id, _)| *id)
                .collect()
        };
        for id in due(&self.offline_at) {
            self.offline_at.remove(&id);
            if self.online.remove(&id) {
                self.outputs.push_back(Output::Notice(Notice::Offline(id)));
                self.announce(id, PeerMark::Patch(PatchFields::ONLINE));
                self.presence_changed(id);
            }
        }
        for id in due(&self.delete_at) {
            self.delete_at.remove(&id);
            if !self.session_of.contains_key(&id) {
                self.remove_node(id);
            }
        }
        let forgotten: Vec<_> = self
            .pendings
            .waiting
            .iter()
            .filter(|(_, p)| p.deadline <= now)
            .map(|(id, _)| id.clone())
            .collect();
        for id in forgotten {
            self.pendings.waiting.remove(&id);
            // Whoever is parked asks again and is given a fresh address.
            self.outputs.push_back(Output::Decided(id));
        }
        self.time_out_ssh_checks(now);
        let time = timestamp(wall);
        let expired: Vec<_> = self
            .data
            .nodes
            .values()
            .filter(|node| node.is_expired(time) && !self.told_expired.contains(&node.id))
            .map(|node| node.id)
            .collect();
        for id in expired {
            self.told_expired.insert(id);
            self.mark_own(id);
            self.announce(id, PeerMark::Whole);
        }
    }
}

//! Changes by time alone.

use std::time::{Duration, Instant};

use super::Coordinator;
use crate::output::{Notice, Reason};
use crate::presence::PresenceTimer;

/// A wall clock may be set: it is compared with the monotonic clock this often.
const WALL_CHECK: Duration = Duration::from_secs(30);

impl Coordinator {
    /// When [`Coordinator::handle_timeout`] has something to do, and what.
    pub fn next_deadline(&self) -> Option<(Instant, Reason)> {
        let presence = self.presence.next_deadline().map(|(at, timer)| {
            let reason = match timer {
                PresenceTimer::Offline(id) => Reason::Offline(id),
                PresenceTimer::Missed(id) => Reason::RouterMissed(id),
                PresenceTimer::Delete(id) => Reason::DeleteEphemeral(id),
            };
            (at, reason)
        });
        let registrations = self.registrations.next_deadline();
        let ssh_checks = self.ssh_checks.next_deadline();
        [
            presence,
            registrations.map(|at| (at, Reason::ForgetPending)),
            ssh_checks.map(|at| (at, Reason::SshCheck)),
            self.logins
                .next_deadline()
                .map(|at| (at, Reason::ForgetLogin)),
            Some((self.wall_deadline(), Reason::KeyExpiry)),
            self.probes
                .next_deadline()
                .map(|at| (at, Reason::ProbeRouters)),
            self.expecting.map(|at| (at, Reason::ProbeRouters)),
        ]
        .into_iter()
        .flatten()
        .min_by_key(|(at, _)| *at)
    }

    fn wall_deadline(&self) -> Instant {
        let time = self.clock.time();
        let next = self.view.directory.next_expiry(time);
        let left = next.map(|expiry| expiry.duration_since(time));
        let left = left.map(|left| Duration::try_from(left).unwrap_or_default());
        self.wall_checked + left.unwrap_or(WALL_CHECK).min(WALL_CHECK)
    }

    /// Does what is due. Called early, it does nothing.
    pub fn handle_timeout(&mut self, now: Instant, wall: Duration) {
        self.advance(now, wall);
        self.wall_checked = now;
        while let Some(timer) = self.presence.pop_due(now) {
            match timer {
                PresenceTimer::Offline(id) => {
                    if !self.presence.is_connected(id) {
                        self.online_changed(id, false);
                    }
                }
                PresenceTimer::Missed(id) => self.refresh_routers([id]),
                PresenceTimer::Delete(id) => {
                    let ephemeral = self.node(id).is_some_and(|node| node.ephemeral);
                    if ephemeral && !self.presence.is_connected(id) {
                        self.remove_node(id);
                    }
                }
            }
        }
        self.probe_routers(now);
        let (view, presence) = (&self.view, &self.presence);
        let connected = || {
            let nodes = view.nodes().filter(|node| presence.is_connected(node.id));
            nodes.map(|node| (node.machine, node.id))
        };
        for shared in self.holders.check(now, connected) {
            self.notice(Notice::SharedKey(shared));
        }
        while let Some(id) = self.registrations.pop_due(now) {
            // A parked request asks again and gets a new address.
            self.decided([id]);
        }
        while let Some(ended) = self.ssh_checks.pop_due(now) {
            self.decided(ended);
        }
        self.forget_logins(now);
    }
}

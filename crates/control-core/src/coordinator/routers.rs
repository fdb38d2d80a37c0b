//! Which routers serve: whether they are there, whether they answer, and which of
//! them each subnet goes to.
//!
//! [`RouterState`] is derived from the presence of the node and the verdicts of the
//! probes; [`Primaries`](crate::routes::Primaries) chooses by it.

use std::collections::BTreeSet;
use std::time::Instant;

use ipnet::IpNet;
use warren_control_types::{NodeId, PingRequest};
use warren_keys::MachinePublic;

use super::Coordinator;
use crate::map_sessions::PeerUpdate;
use crate::output::Notice;
use crate::probes::{Question, Verdict, Way};
use crate::routes::RouterState;

/// The request for an echo, as it is sent to a router.
const ECHO: &[u8] = b"GET /echo HTTP/1.1\r\nHost: c2n\r\n\r\n";

impl Coordinator {
    /// The node's routes are these now.
    pub(super) fn routes_changed(&mut self, id: NodeId, routes: BTreeSet<IpNet>) {
        let directory = &self.view.directory;
        let state = |id| directory.router_state(id);
        let changed = self.primaries.set_routes(id, routes, state);
        self.routers_changed(changed);
        let contested = self.primaries.is_contested();
        let no_verdict = self.probes.needed(self.clock.now(), contested);
        self.refresh_routers(no_verdict);
    }

    /// The node came online, went offline, or its key expired or was renewed.
    pub(super) fn standing_changed(&mut self, id: NodeId) {
        let directory = &self.view.directory;
        let state = |id| directory.router_state(id);
        let changed = self.primaries.state_changed(id, state);
        self.routers_changed(changed);
    }

    /// Derives the state of these nodes as routers again. All of them are known
    /// before a subnet moves to one of them.
    pub(super) fn refresh_routers(&mut self, ids: impl IntoIterator<Item = NodeId>) {
        let mut changed = Vec::new();
        for id in ids {
            let router = self.router_state_of(id);
            let directory = &mut self.view_mut().directory;
            if directory.set_state(id, |state| state.router = router) {
                changed.push(id);
            }
        }
        for id in changed {
            let impact = self.view.access.presence_changed(id);
            self.invalidate(&impact);
            self.standing_changed(id);
        }
    }

    fn router_state_of(&self, id: NodeId) -> RouterState {
        let Some(entry) = self.view.directory.entry(id) else {
            return RouterState::Absent;
        };
        let before = entry.state.router;
        let verdict = self.probes.verdict(id);
        if self.presence.is_connected(id) {
            return match verdict {
                None => RouterState::Unasked,
                Some(Verdict::Answers) => RouterState::Answering,
                Some(Verdict::ChannelOnly) => RouterState::Impaired,
                Some(Verdict::Silent) => RouterState::Absent,
            };
        }
        match (entry.state.online, before) {
            // A router that was silent does not come back by losing its stream.
            (true, _) if verdict == Some(Verdict::Silent) => RouterState::Absent,
            (true, _) if self.presence.may_be_back(id) => RouterState::Returning,
            (true, _) => RouterState::Lost,
            (false, RouterState::Expected) if self.expecting.is_some() => RouterState::Expected,
            (false, _) => RouterState::Absent,
        }
    }

    fn routers_changed(&mut self, routers: BTreeSet<NodeId>) {
        for id in routers {
            let primary = self.primaries.of(id);
            let directory = &mut self.view_mut().directory;
            if directory.set_state(id, |state| state.primary_routes = primary) {
                self.announce(id, PeerUpdate::Whole);
                self.sessions
                    .invalidate(id, |pending| pending.own_node = true);
            }
        }
        for moved in self.primaries.take_moves() {
            self.notice(Notice::RouteMoved(moved));
        }
    }

    /// Does the work that is due: the verdicts of a round of questions, the next round,
    /// and the end of the time in which nodes are expected after a start.
    pub(super) fn probe_routers(&mut self, now: Instant) {
        if self.expecting.take_if(|until| *until <= now).is_some() {
            let missing = self.view.directory.nodes();
            let missing: Vec<NodeId> = missing.map(|node| node.id).collect();
            self.refresh_routers(missing);
        }
        let judged = self.probes.pop_verdicts(now);
        self.refresh_routers(judged);
        let (primaries, presence) = (&self.primaries, &self.presence);
        let (questions, no_verdict) = self.probes.begin(
            now,
            || primaries.rivals(),
            |id| presence.is_connected(id),
            self.entropy.as_mut(),
        );
        self.refresh_routers(no_verdict);
        for question in questions {
            let node = question.node;
            let ping = self.ping_of(question);
            // A node that does not read its messages does not answer either.
            let _ = self.sessions.ping(node, ping);
        }
    }

    fn ping_of(&self, question: Question) -> PingRequest {
        let server_url = &self.config().server_url;
        match question.way {
            Way::NewConnection => PingRequest {
                url: format!("{server_url}/ping/{}", question.token),
                ..PingRequest::default()
            },
            Way::Channel => PingRequest {
                url: channel_url(server_url, &question.token),
                url_is_noise: true,
                types: "c2n".to_owned(),
                payload: ECHO.to_vec(),
                ..PingRequest::default()
            },
        }
    }

    /// Takes the answer to a question with this token, which came through the channel
    /// of `machine`, or over a connection of its own without one. Whether a router was
    /// asked so.
    pub fn router_answered(&mut self, token: &str, machine: Option<MachinePublic>) -> bool {
        let way = machine.map_or(Way::NewConnection, |_| Way::Channel);
        let Some(id) = self.probes.asked(token, way) else {
            return false;
        };
        let owner = self.view.node(id).map(|node| node.machine);
        if machine.is_some() && machine != owner {
            return false;
        }
        if self.probes.answered(token) {
            self.refresh_routers([id]);
        }
        true
    }
}

/// The address for the response to a c2n request. Its host is the server's, with
/// `https`, as in the other requests of the official client: for any other host it
/// opens a second channel, and that on port 443 only.
#[must_use]
pub fn channel_url(server_url: &str, token: &str) -> String {
    let host = server_url
        .split_once("://")
        .map_or(server_url, |(_, host)| host);
    format!("https://{host}/c2n/{token}")
}

//! The coordinator: its parts, and how inputs reach them.
//!
//! The parts ([`Directory`] in the [`View`],
//! [`Presence`], [`MapSessions`], [`Registrations`], [`SshChecks`], [`Logins`],
//! [`Primaries`], [`Probes`]) do not know each other. All that is remembered changes in one
//! place, [`commit`], which also derives what the other parts have to do.

mod admin;
mod commit;
mod deadlines;
mod dns;
mod lock;
mod logins;
mod owners;
mod policies;
mod register;
mod routers;
mod ssh_checks;
mod update;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use warren_control_types::{DerpMap, MapRequest, MapResponse, NodeId};
use warren_keys::{Entropy, MachinePublic, NodePublic};

pub use admin::{NewAuthKey, PendingView};
pub use logins::{LoginPage, LoginSubject};
pub use register::RegisterOutcome;
pub use routers::channel_url;

use crate::access::Access;
use crate::clock::Clock;
use crate::config::Config;
use crate::directory::{Directory, NodeState};
use crate::error::{AdminError, MapError};
use crate::holders::{Holders, SharedKey};
use crate::lock::LockError;
use crate::logins::Logins;
use crate::map_sessions::{MapSessions, SessionId};
use crate::message::Message;
use crate::output::{Notice, Output};
use crate::parked::PendingId;
use crate::policies::Policies;
use crate::presence::Presence;
use crate::probes::Probes;
use crate::records::{NodeRecord, Snapshot, UserRecord};
use crate::references::{NodeRef, UserRef};
use crate::registrations::Registrations;
use crate::render::{MessageDraft, Rendered};
use crate::routes::{Primaries, RouterState, effective};
use crate::ssh_checks::SshChecks;
use crate::view::View;

/// After a start, subnets are served by routers that were there before it for this
/// long, although they are not connected yet: nodes come back one after the other,
/// and the connections through a router go on meanwhile.
const START_GRACE: Duration = Duration::from_secs(60);

/// The coordinator. See the crate's documentation for the life of a change.
pub struct Coordinator {
    view: Arc<View>,
    presence: Presence,
    primaries: Primaries,
    probes: Probes,
    /// Until then, nodes that were there before the start are expected back.
    expecting: Option<Instant>,
    sessions: MapSessions,
    holders: Holders,
    registrations: Registrations,
    ssh_checks: SshChecks,
    logins: Logins,
    lock_start: Option<lock::Start>,
    entropy: Box<dyn Entropy>,
    outputs: VecDeque<Output>,
    clock: Clock,
    /// When the wall clock was last read because of a deadline.
    wall_checked: Instant,
}

impl Coordinator {
    /// Starts from the records of a store.
    ///
    /// No node is online yet; ephemeral nodes get their full time to return.
    /// If the stored policy cannot be read, nothing is allowed until another one
    /// is set: [`View::policy_fault`].
    pub fn new(
        now: Instant,
        wall: Duration,
        config: Config,
        data: Snapshot,
        entropy: Box<dyn Entropy>,
    ) -> Self {
        let clock = Clock::new(now, wall);
        let time = clock.time();
        let mut access = match &data.policy {
            None => Access::allow_all(),
            Some(text) => Access::parse(text).unwrap_or_else(Access::unreadable),
        };
        let directory = Directory::load(&data, time);
        access.recompute(&directory);
        let mut this = Self {
            presence: Presence::new(config.offline_grace, config.ephemeral_timeout),
            primaries: Primaries::default(),
            probes: Probes::default(),
            expecting: Some(now + START_GRACE),
            sessions: MapSessions::default(),
            holders: Holders::new(now),
            registrations: Registrations::default(),
            ssh_checks: SshChecks::default(),
            logins: Logins::default(),
            lock_start: None,
            view: Arc::new(View {
                config: Arc::new(config),
                directory,
                access: Arc::new(access),
                policies: Policies::default(),
            }),
            entropy,
            outputs: VecDeque::new(),
            clock,
            wall_checked: now,
        };
        for node in data.nodes.values() {
            this.presence.kind_is(now, node.id, node.ephemeral);
            let expected = |state: &mut NodeState| state.router = RouterState::Expected;
            this.view_mut().directory.set_state(node.id, expected);
            this.routes_changed(node.id, effective(node));
        }
        if data.policy.is_some() {
            this.warn_of_open_policy();
        }
        if matches!(this.view.lock(), Err(LockError::Damaged)) {
            this.notice(Notice::LockDamaged);
        }
        if let Some(why) = this.view.policy_fault().map(str::to_owned) {
            this.notice(Notice::PolicyUnreadable(why));
        }
        this
    }

    /// The state of this moment. It does not change any more.
    pub fn view(&self) -> Arc<View> {
        self.view.clone()
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        self.view.config()
    }

    /// A copy of all records, in the form of a store.
    pub fn snapshot(&self) -> Snapshot {
        self.view.snapshot()
    }

    /// The node with this id.
    pub fn node(&self, id: NodeId) -> Option<&NodeRecord> {
        self.view.node(id)
    }

    /// The node that has this key.
    pub fn node_by_key(&self, key: &NodePublic) -> Option<&NodeRecord> {
        self.view.node_by_key(key)
    }

    /// See [`View::find_node`].
    ///
    /// # Errors
    /// See [`View::find_node`].
    pub fn find_node(&self, node: impl Into<NodeRef>) -> Result<&NodeRecord, AdminError> {
        self.view.find_node(node)
    }

    /// See [`View::find_user`].
    ///
    /// # Errors
    /// See [`View::find_user`].
    pub fn find_user(&self, user: impl Into<UserRef>) -> Result<&UserRecord, AdminError> {
        self.view.find_user(user)
    }

    /// See [`View::is_online`].
    pub fn is_online(&self, id: NodeId) -> bool {
        self.view.is_online(id)
    }

    /// See [`View::admits`].
    pub fn admits(&self, key: &NodePublic) -> bool {
        self.view.admits(key)
    }

    /// See [`View::render`].
    pub fn render(&self, wall: Duration, id: NodeId) -> Option<MapResponse> {
        self.view.render(wall, id)
    }

    /// The next action, in order.
    pub fn poll_output(&mut self) -> Option<Output> {
        let next = self.outputs.pop_front();
        next.or_else(|| self.sessions.pop_wake().map(Output::Wake))
    }

    fn notice(&mut self, notice: Notice) {
        self.outputs.push_back(Output::Notice(notice));
    }

    fn decided(&mut self, ids: impl IntoIterator<Item = PendingId>) {
        self.outputs.extend(ids.into_iter().map(Output::Decided));
    }

    /// Replaces the relays that are sent to the nodes, for instance when the
    /// embedded relay found out its port.
    pub fn set_derp_map(&mut self, derp_map: DerpMap) {
        if self.config().derp_map == derp_map {
            return;
        }
        let view = Arc::make_mut(&mut self.view);
        Arc::make_mut(&mut view.config).derp_map = derp_map;
        self.sessions
            .invalidate_all(|pending| pending.relays = true);
    }

    /// Opens the map stream of a node. It replaces an older stream of the same
    /// node. The first message is ready to be taken at once.
    ///
    /// Of the request only what is there is taken over: a fresh client may have
    /// neither a disco key nor endpoints yet.
    ///
    /// # Errors
    /// See [`MapError`]; nothing was changed.
    pub fn open_stream(
        &mut self,
        machine: MachinePublic,
        request: &MapRequest,
    ) -> Result<SessionId, MapError> {
        let id = self.view.authorize(machine, request)?;
        let (session, replaced) = self.sessions.open(id);
        if let Some(replaced) = replaced {
            self.outputs.push_back(Output::End(replaced));
            self.holders.stream_replaced(id);
        }
        self.presence.connected(id);
        self.probes.reconnected(id);
        self.apply_stream_request(id, request);
        self.online_changed(id, true);
        self.refresh_routers([id]);
        Ok(session)
    }

    /// The stream ended, from whichever side. Peers are informed after the grace
    /// time, unless the node is back by then.
    pub fn close_stream(&mut self, now: Instant, wall: Duration, session: SessionId) {
        let time = self.advance(now, wall);
        let Some(id) = self.sessions.close(session) else {
            return;
        };
        let ephemeral = self.node(id).is_some_and(|node| node.ephemeral);
        self.presence.disconnected(now, id, ephemeral);
        self.refresh_routers([id]);
        self.revise(id, false, |node| node.last_seen = Some(time));
    }

    /// Keys that several machines held at the same time, in the last minutes.
    pub fn shared_keys(&self) -> impl Iterator<Item = &SharedKey> {
        self.holders.found()
    }

    /// Checks that a one-shot map request is allowed.
    ///
    /// # Errors
    /// See [`MapError`].
    pub fn identify(
        &self,
        machine: MachinePublic,
        request: &MapRequest,
    ) -> Result<NodeId, MapError> {
        self.view.authorize(machine, request)
    }

    /// Hands out the next message of a session, to be rendered elsewhere; one at
    /// a time. `None`: there is nothing to send, or no such session. The first
    /// message is the complete map.
    pub fn begin_message(&mut self, session: SessionId) -> Option<MessageDraft> {
        let begun = self.sessions.begin(session)?;
        Some(MessageDraft {
            session,
            view: self.view.clone(),
            begun,
        })
    }

    /// The message was rendered and is about to be sent.
    pub fn finish_message(&mut self, rendered: Rendered) {
        self.sessions.finish(rendered.session, rendered.last);
    }

    /// The next message of a session, rendered here.
    pub fn next_message(&mut self, wall: Duration, session: SessionId) -> Option<Message> {
        let (message, rendered) = self.begin_message(session)?.render(wall);
        self.finish_message(rendered);
        message
    }

    /// A connection that was held open for a decision ended.
    pub fn stopped_waiting(&mut self, id: &PendingId) {
        self.registrations.stopped_waiting(id);
        self.ssh_checks.stopped_waiting(id);
    }

    #[cfg(test)]
    pub(crate) fn session_of(&self, id: NodeId) -> Option<SessionId> {
        self.sessions.of_node(id)
    }

    #[cfg(test)]
    pub(crate) fn logins_len(&self) -> usize {
        self.logins.len()
    }

    /// How many sessions and routers were looked at since the last call.
    #[cfg(test)]
    pub(crate) fn take_visited(&mut self) -> (usize, usize) {
        (
            std::mem::take(&mut self.sessions.visited),
            std::mem::take(&mut self.primaries.visited),
        )
    }
}

impl std::fmt::Debug for Coordinator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Coordinator")
            .field("view", &self.view)
            .field("sessions", &self.sessions.len())
            .finish_non_exhaustive()
    }
}

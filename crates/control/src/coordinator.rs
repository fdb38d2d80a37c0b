//! The one owner of the coordinator.
//!
//! A change takes the lock for the length of one method call; nothing waits
//! while holding it. The coordinator's outputs are carried out before the lock
//! is released: rows go to the writer in order, sessions and parked
//! registrations are woken, the timer is set. So a change is on its way to the
//! nodes it concerns the moment it is made.
//!
//! Readers and map messages work on the state of one moment ([`View`]), for
//! which they take the lock only to copy a pointer.

mod ssh_checks;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{AcquireError, Notify, Semaphore, SemaphorePermit, mpsc, oneshot};
use warren_control_core::{
    AdminError, Coordinator, LockError, MapError, Message, Notice, Output, PendingId,
    RegisterOutcome, RouteMove, SessionId, SharedKey, View,
};
use warren_control_types::{MapRequest, NodeId, PingRequest, RegisterRequest, RegisterResponse};
use warren_keys::{MachinePublic, NodePublic};

use crate::admin::moment;
use crate::c2n::{self, C2nError, C2nRequests};
use crate::clock::{now, wall_clock};
use crate::metrics::Metrics;
use crate::refusals::{Refusals, Refused};
use crate::store::{QueueState, Saved, StoreError, WriteQueue};
use crate::swallowed_upgrades::SwallowedUpgrades;
use crate::terminal::{Hints, printable};

/// The signals of the coordinator to a session.
#[derive(Debug, Default)]
pub struct Signals {
    wake: Notify,
    ended: AtomicBool,
}

struct Inner {
    coordinator: Coordinator,
    sessions: HashMap<SessionId, Arc<Signals>>,
    parked: HashMap<PendingId, Vec<oneshot::Sender<()>>>,
}

/// See the module.
pub struct CoordinatorHandle {
    inner: Mutex<Inner>,
    store: WriteQueue,
    timer: Notify,
    lines: mpsc::UnboundedSender<String>,
    hints: Hints,
    c2n: C2nRequests,
    upgrades: SwallowedUpgrades,
    refusals: Refusals,
    metrics: Metrics,
    /// One derivation of a disablement value at a time.
    disablement: Semaphore,
}

/// The result of a registration.
#[derive(Debug)]
pub enum Registration {
    /// This answer.
    Answer(Box<RegisterResponse>),
    /// Too many machines wait; the client is to try again later.
    Busy,
}

/// A connection that waits for a decision. Dropping it, also because the client
/// went away, ends the waiting.
struct ParkedPlace<'a> {
    coordinator: &'a CoordinatorHandle,
    id: PendingId,
}

impl Drop for ParkedPlace<'_> {
    fn drop(&mut self) {
        self.coordinator
            .lock()
            .coordinator
            .stopped_waiting(&self.id);
    }
}

impl std::fmt::Debug for CoordinatorHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CoordinatorHandle").finish_non_exhaustive()
    }
}

impl CoordinatorHandle {
    /// Takes ownership. Lines for the administrator's terminal go to `lines`;
    /// commands in them are written with `hints`.
    pub fn new(
        coordinator: Coordinator,
        store: WriteQueue,
        lines: mpsc::UnboundedSender<String>,
        hints: Hints,
    ) -> Arc<Self> {
        let inner = Inner {
            coordinator,
            sessions: HashMap::new(),
            parked: HashMap::new(),
        };
        Arc::new(Self {
            inner: Mutex::new(inner),
            store,
            timer: Notify::new(),
            lines,
            hints,
            c2n: C2nRequests::default(),
            upgrades: SwallowedUpgrades::default(),
            refusals: Refusals::default(),
            metrics: Metrics::default(),
            disablement: Semaphore::new(1),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // The coordinator does not panic half way through a change; if it ever
        // did, to serve the state as it is beats refusing every node.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the turn to derive the value of a disablement secret.
    ///
    /// # Errors
    /// The semaphore is closed, which does not happen while the handle lives.
    pub(crate) async fn disablement_turn(&self) -> Result<SemaphorePermit<'_>, AcquireError> {
        self.disablement.acquire().await
    }

    /// The state of this moment. It does not change any more.
    pub fn view(&self) -> Arc<View> {
        self.lock().coordinator.view()
    }

    /// Reads the state of this moment, without keeping changes waiting.
    pub fn read<R>(&self, look: impl FnOnce(&View) -> R) -> R {
        look(&self.view())
    }

    /// Reads the state of this moment, and waits until it is on disk as far as it was
    /// promised to anyone. Answers that others act on for good are read so;
    /// ARCHITECTURE.md lists those that are not.
    ///
    /// # Errors
    /// It is not on disk yet.
    pub async fn read_saved<R>(&self, look: impl FnOnce(&View) -> R) -> Result<R, StoreError> {
        let (view, saved) = {
            let inner = self.lock();
            (inner.coordinator.view(), self.store.saved())
        };
        let result = look(&view);
        saved.wait().await?;
        Ok(result)
    }

    /// Reads from the coordinator what is not part of a [`View`]: the requests
    /// that wait for a decision. Changes wait meanwhile.
    pub fn inspect<R>(&self, look: impl FnOnce(&Coordinator) -> R) -> R {
        look(&self.lock().coordinator)
    }

    /// Changes the coordinator and carries out what it wants. The answer may be
    /// given once [`Saved`] has been waited for.
    pub fn change<R>(
        &self,
        change: impl FnOnce(&mut Coordinator, Instant, Duration) -> R,
    ) -> (R, Saved) {
        let mut inner = self.lock();
        let result = change(&mut inner.coordinator, now(), wall_clock());
        let saved = self.carry_out(&mut inner);
        (result, saved)
    }

    /// As [`CoordinatorHandle::change`], and waits until it is on disk.
    ///
    /// # Errors
    /// It is not on disk yet. It is done, though, and will be.
    pub async fn change_saved<R>(
        &self,
        change: impl FnOnce(&mut Coordinator, Instant, Duration) -> R,
    ) -> Result<R, StoreError> {
        let (result, saved) = self.change(change);
        saved.wait().await?;
        Ok(result)
    }

    /// Registers, and waits for the administrator where that is called for.
    ///
    /// # Errors
    /// The registration is not on disk yet; the client should ask again.
    pub async fn register(
        &self,
        machine: MachinePublic,
        source: Option<IpAddr>,
        request: &RegisterRequest,
    ) -> Result<Registration, StoreError> {
        loop {
            let (outcome, parked, saved) = {
                let mut inner = self.lock();
                let outcome =
                    inner
                        .coordinator
                        .register_from(now(), wall_clock(), machine, source, request);
                // Under the same lock, or a decision in between would be missed.
                let parked = match &outcome {
                    RegisterOutcome::Answer(_) | RegisterOutcome::Busy => None,
                    RegisterOutcome::Park(id) => Some(self.park(&mut inner, id.clone())),
                };
                let saved = self.carry_out(&mut inner);
                (outcome, parked, saved)
            };
            if let Err(error) = saved.wait().await {
                self.metrics.registrations.unsaved.add(1);
                return Err(error);
            }
            match (outcome, parked) {
                (RegisterOutcome::Answer(response), _) => {
                    self.metrics.registrations.of_answer(&response).add(1);
                    if !response.error.is_empty() {
                        self.refused(Refused::Registration, &response.error);
                    }
                    return Ok(Registration::Answer(response));
                }
                (RegisterOutcome::Busy, _) => {
                    self.metrics.registrations.busy.add(1);
                    return Ok(Registration::Busy);
                }
                (RegisterOutcome::Park(_), Some((decided, _place))) => {
                    // Either way the question is put again.
                    let _ = decided.await;
                }
                (RegisterOutcome::Park(_), None) => {}
            }
        }
    }

    /// A place to wait for the decision about `id`.
    fn park(&self, inner: &mut Inner, id: PendingId) -> (oneshot::Receiver<()>, ParkedPlace<'_>) {
        let (sender, receiver) = oneshot::channel();
        let waiting = inner.parked.entry(id.clone()).or_default();
        waiting.retain(|other| !other.is_closed());
        waiting.push(sender);
        (
            receiver,
            ParkedPlace {
                coordinator: self,
                id,
            },
        )
    }

    /// Opens a map stream.
    ///
    /// # Errors
    /// The node is not known here or too old.
    pub fn open_stream(
        self: &Arc<Self>,
        machine: MachinePublic,
        request: &MapRequest,
    ) -> Result<Session, MapError> {
        let mut inner = self.lock();
        let opened = inner.coordinator.open_stream(machine, request);
        let session = opened.as_ref().ok().map(|id| Session {
            id: *id,
            signals: inner.sessions.entry(*id).or_default().clone(),
            coordinator: self.clone(),
        });
        let _ = self.carry_out(&mut inner);
        drop(inner);
        match (opened, session) {
            (Ok(_), Some(session)) => Ok(session),
            (Err(error), _) => Err(error),
            (Ok(_), None) => Err(MapError::NotFound),
        }
    }

    /// Applies a lite update.
    ///
    /// # Errors
    /// The node is not known here or too old.
    pub fn update(&self, machine: MachinePublic, request: &MapRequest) -> Result<(), MapError> {
        if self.store.is_full() {
            return Err(MapError::Unsaved);
        }
        let (result, _) = self.change(|coordinator, _, _| coordinator.update(machine, request));
        result?;
        self.metrics.endpoint_updates.add(1);
        Ok(())
    }

    /// The whole map, once.
    ///
    /// # Errors
    /// The node is not known here or too old.
    pub fn map_once(
        &self,
        machine: MachinePublic,
        request: &MapRequest,
    ) -> Result<Message, MapError> {
        let view = self.view();
        let id = view.authorize(machine, request)?;
        let message = view.full_message(wall_clock(), id);
        let message = message.ok_or(MapError::NotFound)?;
        self.metrics.messages.of(message.kind()).add(1);
        Ok(message)
    }

    /// Whether the key belongs to a node of this network, and still works.
    pub fn admits(&self, key: &NodePublic) -> bool {
        self.read(|coordinator| coordinator.admits(key))
    }

    /// Sends a c2n request to a node: status and body of its response.
    ///
    /// # Errors
    /// The node is not connected, or does not respond.
    pub async fn send_c2n(&self, node: &str, payload: Vec<u8>) -> Result<(u16, Vec<u8>), C2nError> {
        let waiting = self.c2n.open();
        let ping = PingRequest {
            url: self.read(|coordinator| waiting.url(&coordinator.config().server_url)),
            url_is_noise: true,
            types: "c2n".to_owned(),
            payload,
            ..PingRequest::default()
        };
        let (sent, _rows) = self.change(|coordinator, _, _| {
            let machine = coordinator.ask_node(node, ping)?;
            // Before the lock is given back, and so before it can respond.
            waiting.set_recipient(machine);
            Ok::<_, AdminError>(())
        });
        sent?;
        let response = waiting.response().await;
        let response = response.ok_or_else(|| C2nError::Silence(node.to_owned()))?;
        let (status, body) =
            c2n::read_response(&response).map_err(|why| C2nError::InvalidResponse {
                node: node.to_owned(),
                why,
            })?;
        Ok((status, body.to_vec()))
    }

    /// Takes a node's response to the c2n request with this token; whether a request
    /// waited for it.
    pub fn take_c2n_response(
        &self,
        token: &str,
        machine: MachinePublic,
        response: bytes::Bytes,
    ) -> bool {
        self.c2n.take_response(token, machine, response)
            || self.router_answered(token, Some(machine))
    }

    /// Takes a router's answer to the question with this token: through the channel of
    /// `machine`, or over a connection of its own. Whether it was asked.
    pub fn router_answered(&self, token: &str, machine: Option<MachinePublic>) -> bool {
        let (asked, _rows) =
            self.change(|coordinator, _, _| coordinator.router_answered(token, machine));
        asked
    }

    /// Waits until everything is on disk.
    ///
    /// # Errors
    /// Something cannot be written.
    pub async fn flush(&self) -> Result<(), StoreError> {
        self.store.write(Vec::new(), true);
        self.store.saved().wait().await
    }

    /// The requests whose upgrade a proxy swallowed.
    pub fn swallowed_upgrades(&self) -> &SwallowedUpgrades {
        &self.upgrades
    }

    /// Counts and reports a refusal.
    pub(crate) fn refused(&self, what: Refused, reason: &str) {
        let wall = moment(wall_clock());
        if let Some(line) = self.refusals.note(now(), wall, what, reason) {
            let _ = self.lines.send(self.hints.complete(&printable(&line)));
        }
    }

    /// The reasons that kept machines out.
    pub fn refusals(&self) -> &Refusals {
        &self.refusals
    }

    /// The counters of this server.
    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Open map streams.
    pub(crate) fn session_count(&self) -> usize {
        self.lock().sessions.len()
    }

    /// How far the rows on their way to the disk are.
    pub(crate) fn queue_state(&self) -> QueueState {
        self.store.state()
    }

    /// Whether rows reach the disk.
    pub fn is_healthy(&self) -> bool {
        self.store.is_healthy()
    }

    /// Calls the coordinator whenever something is due. Ends with the task.
    pub async fn run_timer(self: Arc<Self>) {
        loop {
            let deadline = {
                let inner = self.lock();
                inner.coordinator.next_deadline()
            };
            match deadline {
                None => self.timer.notified().await,
                Some((at, _reason)) => {
                    tokio::select! {
                        () = self.timer.notified() => continue,
                        () = tokio::time::sleep_until(at.into()) => {}
                    }
                    let ((), _rows) = self.change(Coordinator::handle_timeout);
                }
            }
        }
    }

    fn carry_out(&self, inner: &mut Inner) -> Saved {
        let mut rows = Vec::new();
        let mut promised = false;
        while let Some(output) = inner.coordinator.poll_output() {
            match output {
                Output::Store { change, durable } => {
                    rows.push(change);
                    promised |= durable;
                }
                Output::Wake(id) => inner.sessions.entry(id).or_default().wake.notify_one(),
                Output::End(id) => {
                    if let Some(signals) = inner.sessions.remove(&id) {
                        signals.ended.store(true, Ordering::Release);
                        signals.wake.notify_one();
                    }
                }
                // Dropping the senders wakes all that wait.
                Output::Decided(id) => drop(inner.parked.remove(&id)),
                Output::Notice(notice) => {
                    let view = inner.coordinator.view();
                    let next = if let Notice::Joined(id) = notice {
                        next_machine(&view, id)
                    } else {
                        None
                    };
                    for line in describe(&view, notice).into_iter().chain(next) {
                        let _ = self.lines.send(self.hints.complete(&printable(&line)));
                    }
                }
            }
        }
        self.timer.notify_one();
        if !rows.is_empty() {
            self.store.write(rows, promised);
        }
        self.store.saved()
    }
}

/// An open map stream. Dropping it closes the stream.
#[derive(Debug)]
pub struct Session {
    id: SessionId,
    signals: Arc<Signals>,
    coordinator: Arc<CoordinatorHandle>,
}

impl Session {
    /// The number of the stream.
    pub fn id(&self) -> SessionId {
        self.id
    }

    /// Counts a sign of life that the stream carries.
    pub(crate) fn note_keepalive(&self) {
        self.coordinator.metrics.messages.keepalive.add(1);
    }

    /// The next message for the node, as soon as there is one. `None`
    /// ends the stream.
    pub async fn next(&self) -> Option<Message> {
        loop {
            if self.signals.ended.load(Ordering::Acquire) {
                return None;
            }
            let draft = self.coordinator.lock().coordinator.begin_message(self.id);
            if let Some(draft) = draft {
                // Rendered without the lock: changes go on meanwhile.
                let (message, rendered) = draft.render(wall_clock());
                let mut inner = self.coordinator.lock();
                inner.coordinator.finish_message(rendered);
                let _ = self.coordinator.carry_out(&mut inner);
                drop(inner);
                if let Some(message) = message {
                    let messages = &self.coordinator.metrics.messages;
                    messages.of(message.kind()).add(1);
                    return Some(message);
                }
            }
            self.signals.wake.notified().await;
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let ended = &self.coordinator.metrics.sessions_ended;
        let ended = match self.signals.ended.load(Ordering::Acquire) {
            true => &ended.by_server,
            false => &ended.by_client,
        };
        ended.add(1);
        let mut inner = self.coordinator.lock();
        inner.sessions.remove(&self.id);
        inner.coordinator.close_stream(now(), wall_clock(), self.id);
        let _ = self.coordinator.carry_out(&mut inner);
    }
}

/// A message about a key that several machines hold at the same time, with a remedy.
pub(crate) fn held_twice(state: &View, shared: &SharedKey) -> String {
    let name = |id: &NodeId| state.node(*id).map_or("a deleted node", |node| &node.name);
    let cure = "remove the state folder on the copy and let it log in again";
    match shared {
        SharedKey::Node(id) => format!(
            "two machines use the node key of {}, so each interrupts the other; {cure}",
            name(id)
        ),
        SharedKey::Machine(ids) => {
            let names: Vec<&str> = ids.iter().map(name).collect();
            format!(
                "{} are connected with one machine key, so one has a copy of the other's state; {cure}",
                names.join(" and ")
            )
        }
    }
}

/// How to add the next machine after `joined`; nothing where the key that it used adds
/// more machines.
fn next_machine(coordinator: &View, joined: NodeId) -> Option<String> {
    let node = coordinator.node(joined)?;
    let mut keys = coordinator.auth_keys();
    if keys.any(|key| key.reusable && Some(key.id) == node.auth_key) {
        return None;
    }
    let user = node.user.and_then(|id| coordinator.user(id));
    let user = user.map_or("NAME", |user| &user.name);
    Some(format!(
        "next machine: warren up --login-server {} --auth-key KEY, with a KEY from: warren-control preauthkeys create --user {user}",
        coordinator.config().server_url
    ))
}

/// A line for the terminal; nothing for what would only be noise.
fn describe(coordinator: &View, notice: Notice) -> Option<String> {
    let node_line = |id, what: &str| {
        let node = coordinator.node(id)?;
        let user = match node.user.and_then(|id| coordinator.user(id)) {
            Some(user) if !node.is_tagged() => format!("user {}", user.name),
            Some(_) | None => node.tags.iter().cloned().collect::<Vec<_>>().join(" "),
        };
        let info = &node.hostinfo;
        let version = info.ipn_version.split('-').next().unwrap_or_default();
        let program = if info.app.is_empty() || info.app.starts_with('/') {
            "tailscale"
        } else {
            &info.app
        };
        let program = if version.is_empty() {
            String::new()
        } else {
            format!(", {program} {version}")
        };
        Some(format!(
            "{} {what} {} ({user}, {}{program})",
            node.name,
            node.address.v4(),
            info.os
        ))
    };
    match notice {
        Notice::Joined(id) => node_line(id, "joined as"),
        Notice::KeyRenewed(id) => node_line(id, "logged in again as"),
        Notice::LockOn(id) => node_line(id, "tailnet lock was turned on by"),
        Notice::LockOff(id) => node_line(id, "tailnet lock was turned off by"),
        Notice::LockDamaged => Some(format!("warning: {}", LockError::Damaged)),
        Notice::LoggedOut(_, name) => Some(format!("{name} logged out")),
        Notice::Left(_, name) => Some(format!("{name} is gone")),
        Notice::Waiting(id, host) => Some(format!(
            "{host} waits for approval: warren-control nodes approve {id} --user NAME"
        )),
        Notice::PolicyAllowsEverything(why) => {
            Some(format!("every node may reach every node: {why}"))
        }
        Notice::PolicyUnreadable(why) => Some(format!(
            "the stored policy is not valid, so nothing is allowed; set another one with \
             warren-control policy set FILE:\n{why}"
        )),
        Notice::SshCheck {
            id,
            source,
            destination,
            local_user,
        } => {
            let (source, destination) = (coordinator.node(source)?, coordinator.node(destination)?);
            Some(format!(
                "{} wants to log in to {} as {local_user} and waits for a check: warren-control ssh-checks approve {id}",
                source.name, destination.name
            ))
        }
        Notice::SharedKey(shared) => Some(held_twice(coordinator, &shared)),
        Notice::RouteMoved(RouteMove { route, from, to }) => {
            let name = |id| coordinator.node(id).map(|node| node.name.as_str());
            let from = name(from).unwrap_or("a node that was deleted");
            Some(match to.and_then(name) {
                Some(to) => format!("{route} is served by {to}, before by {from}"),
                None => format!(
                    "no router serves {route}: {from} is away; `warren-control nodes routes` shows all routers"
                ),
            })
        }
        Notice::Online(_) | Notice::Offline(_) => None,
    }
}

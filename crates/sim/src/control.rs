//! The host of the coordination server: the real coordinator behind simulated
//! streams.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use warren_control_core::{
    Config, Coordinator, MapError, NewAuthKey, Output, PendingId, RegisterOutcome, SessionId,
    Snapshot,
};
use warren_control_types::{DerpMap, RegisterRequest};
use warren_keys::MachinePublic;

use crate::control_frames::{Refusal, ToNode, ToServer};
use crate::network::HostId;
use crate::random::SimRng;
use crate::stream::{StreamActions, StreamId};

/// The address of the server.
pub(crate) const SERVER: &str = "http://control.sim";

/// The user that all nodes belong to.
pub(crate) const USER: &str = "sim";

struct Client {
    machine: MachinePublic,
    session: Option<SessionId>,
    /// A registration that waits for a decision.
    parked: Option<(PendingId, Box<RegisterRequest>)>,
}

/// The coordination server.
pub(crate) struct Control {
    pub(crate) host: HostId,
    pub(crate) is_up: bool,
    pub(crate) coordinator: Coordinator,
    pub(crate) auth_key: String,
    clients: BTreeMap<StreamId, Client>,
    stream_of: BTreeMap<SessionId, StreamId>,
}

impl Control {
    #[allow(
        clippy::expect_used,
        reason = "a simulation that cannot be set up has to stop"
    )]
    pub(crate) fn new(
        host: HostId,
        now: Instant,
        wall: Duration,
        key_lifetime: Option<Duration>,
        policy: Option<String>,
        mut rng: SimRng,
    ) -> Self {
        let mut config = Config::new(SERVER, DerpMap::default());
        config.key_lifetime = key_lifetime;
        let snapshot = Snapshot::default();
        let mut coordinator = Coordinator::new(now, wall, config, snapshot, rng.boxed());
        coordinator.create_user(wall, USER).expect("the first user");
        if policy.is_some() {
            coordinator
                .set_policy(policy)
                .expect("the policy of the test is sound");
        }
        let new = NewAuthKey {
            user: Some(USER.into()),
            reusable: true,
            ..NewAuthKey::default()
        };
        let (text, _) = coordinator
            .create_auth_key(wall, new)
            .expect("a key of that user");
        Self {
            host,
            is_up: true,
            coordinator,
            auth_key: text.expose(),
            clients: BTreeMap::new(),
            stream_of: BTreeMap::new(),
        }
    }

    /// The process ends; returns the streams that break. The state of the
    /// coordinator is kept, as by a store.
    pub(crate) fn stop(&mut self, now: Instant, wall: Duration) -> Vec<StreamId> {
        self.is_up = false;
        let streams: Vec<StreamId> = self.clients.keys().copied().collect();
        for stream in &streams {
            self.closed(now, wall, *stream);
        }
        streams
    }

    pub(crate) fn accept(&mut self, stream: StreamId, machine: MachinePublic) {
        self.clients.insert(
            stream,
            Client {
                machine,
                session: None,
                parked: None,
            },
        );
    }

    pub(crate) fn closed(&mut self, now: Instant, wall: Duration, stream: StreamId) {
        let Some(client) = self.clients.remove(&stream) else {
            return;
        };
        if let Some((id, _)) = client.parked {
            self.coordinator.stopped_waiting(&id);
        }
        if let Some(session) = client.session {
            self.stream_of.remove(&session);
            self.coordinator.close_stream(now, wall, session);
        }
    }

    pub(crate) fn received(
        &mut self,
        now: Instant,
        wall: Duration,
        stream: StreamId,
        bytes: &[u8],
        actions: &mut StreamActions,
    ) {
        let Some(machine) = self.clients.get(&stream).map(|client| client.machine) else {
            return;
        };
        match ToServer::parse(bytes) {
            Err(_) => {
                actions.close.push(stream);
                self.closed(now, wall, stream);
            }
            Ok(ToServer::Register(request)) => self.register(now, wall, stream, request, actions),
            Ok(ToServer::Update(request)) => {
                let result = self.coordinator.update(machine, &request);
                reply(
                    actions,
                    stream,
                    &ToNode::Updated(result.map(drop).map_err(refusal)),
                );
            }
            Ok(ToServer::OpenStream(request)) => {
                let result = self.coordinator.open_stream(machine, &request);
                let result = result.map_err(refusal).map(|session| {
                    self.stream_of.insert(session, stream);
                    if let Some(client) = self.clients.get_mut(&stream) {
                        client.session = Some(session);
                    }
                });
                reply(actions, stream, &ToNode::StreamOpened(result));
            }
        }
        self.settle(now, wall, actions);
    }

    fn register(
        &mut self,
        now: Instant,
        wall: Duration,
        stream: StreamId,
        request: Box<RegisterRequest>,
        actions: &mut StreamActions,
    ) {
        let Some(client) = self.clients.get_mut(&stream) else {
            return;
        };
        let outcome = self
            .coordinator
            .register(now, wall, client.machine, &request);
        let result = match outcome {
            RegisterOutcome::Answer(response) => Ok(response),
            RegisterOutcome::Busy => Err(Refusal::TooMany),
            RegisterOutcome::Park(id) => {
                client.parked = Some((id, request));
                return;
            }
        };
        reply(actions, stream, &ToNode::Registered(result));
    }

    /// A parked registration is decided: the request is put again.
    fn decided(
        &mut self,
        now: Instant,
        wall: Duration,
        id: &PendingId,
        actions: &mut StreamActions,
    ) {
        let mut decided = Vec::new();
        for (stream, client) in &mut self.clients {
            if let Some((_, request)) = client.parked.take_if(|(parked, _)| parked == id) {
                decided.push((*stream, request));
            }
        }
        for (stream, request) in decided {
            self.coordinator.stopped_waiting(id);
            self.register(now, wall, stream, request, actions);
        }
    }

    /// Sends the messages that sessions wait for.
    pub(crate) fn settle(&mut self, now: Instant, wall: Duration, actions: &mut StreamActions) {
        while let Some(output) = self.coordinator.poll_output() {
            match output {
                Output::Wake(session) => {
                    let Some(stream) = self.stream_of.get(&session) else {
                        continue;
                    };
                    while let Some(message) = self.coordinator.next_message(wall, session) {
                        // The types always render.
                        let json = message.to_json().unwrap_or_default();
                        reply(actions, *stream, &ToNode::Message(json));
                    }
                }
                Output::End(session) => {
                    if let Some(stream) = self.stream_of.remove(&session) {
                        if let Some(client) = self.clients.get_mut(&stream) {
                            client.session = client.session.filter(|open| *open != session);
                        }
                        reply(actions, stream, &ToNode::StreamEnded);
                    }
                }
                Output::Decided(id) => self.decided(now, wall, &id, actions),
                Output::Store { .. } | Output::Notice(_) => {}
            }
        }
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.coordinator
            .next_deadline()
            .filter(|_| self.is_up)
            .map(|(at, _)| at)
    }

    pub(crate) fn handle_timeout(
        &mut self,
        now: Instant,
        wall: Duration,
        actions: &mut StreamActions,
    ) {
        self.coordinator.handle_timeout(now, wall);
        self.settle(now, wall, actions);
    }
}

/// The status with which the server refuses a map request.
fn refusal(error: MapError) -> Refusal {
    match error {
        MapError::NotFound => Refusal::NotFound(error.to_string()),
        MapError::TooOld { .. } | MapError::Unsaved => Refusal::Failed(error.to_string()),
    }
}

fn reply(actions: &mut StreamActions, to: StreamId, message: &ToNode) {
    actions.send.push((to, message.emit()));
}

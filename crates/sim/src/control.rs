//! The host of the coordination server: the real coordinator behind simulated
//! streams.
//!
//! The Noise channel and HTTP/2 are left out; what is inside of them is the
//! real thing, as JSON: one letter for the kind of message, then the body.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use warren_control_core::{
    Config, Coordinator, NewAuthKey, Output, RegisterOutcome, SessionId, Snapshot,
};
use warren_control_types::{DerpMap, MapRequest, RegisterRequest};
use warren_keys::MachinePublic;

use crate::network::HostId;
use crate::random::Dice;
use crate::stream::StreamId;

/// Client to server: a `RegisterRequest`.
pub(crate) const REGISTER: u8 = b'R';
/// Client to server: a `MapRequest` that only reports.
pub(crate) const UPDATE: u8 = b'U';
/// Client to server: a `MapRequest` that asks for the stream.
pub(crate) const FOLLOW: u8 = b'S';
/// Server to client: a `RegisterResponse`.
pub(crate) const REGISTERED: u8 = b'r';
/// Server to client: a `MapResponse`.
pub(crate) const MAP: u8 = b'm';
/// Server to client: why not.
pub(crate) const REFUSED: u8 = b'e';

/// The user that all nodes belong to.
pub(crate) const USER: &str = "sim";

struct Client {
    machine: MachinePublic,
    session: Option<SessionId>,
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

/// What the server wants done with its streams.
#[derive(Default)]
pub(crate) struct ControlActs {
    pub(crate) send: Vec<(StreamId, Vec<u8>)>,
    pub(crate) close: Vec<StreamId>,
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
        mut dice: Dice,
    ) -> Self {
        let mut config = Config::new("http://control.sim", DerpMap::default());
        config.key_lifetime = key_lifetime;
        let snapshot = Snapshot::default();
        let mut coordinator = Coordinator::new(now, wall, config, snapshot, dice.boxed())
            .expect("an empty snapshot has no policy to complain about");
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

    /// The process ends; returns the streams that break. What it knows is kept
    /// by the store.
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
            },
        );
    }

    pub(crate) fn closed(&mut self, now: Instant, wall: Duration, stream: StreamId) {
        let session = self
            .clients
            .remove(&stream)
            .and_then(|client| client.session);
        if let Some(session) = session {
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
        acts: &mut ControlActs,
    ) {
        let Some(client) = self.clients.get_mut(&stream) else {
            return;
        };
        let Some((kind, body)) = bytes.split_first() else {
            return;
        };
        let answered = match *kind {
            REGISTER => register(&mut self.coordinator, now, wall, client.machine, body)
                .map(|answer| acts.send.push((stream, answer))),
            UPDATE => parse::<MapRequest>(body).and_then(|request| {
                let told = self.coordinator.update(client.machine, &request);
                told.map(drop).map_err(|error| error.to_string())
            }),
            FOLLOW => parse::<MapRequest>(body).and_then(|request| {
                let session = self
                    .coordinator
                    .open_stream(client.machine, &request)
                    .map_err(|error| error.to_string())?;
                client.session = Some(session);
                self.stream_of.insert(session, stream);
                Ok(())
            }),
            _ => Err("unknown kind of message".to_owned()),
        };
        if let Err(error) = answered {
            acts.send
                .push((stream, [&[REFUSED], error.as_bytes()].concat()));
        }
        self.settle(wall, acts);
    }

    /// Sends what sessions have to hear.
    pub(crate) fn settle(&mut self, wall: Duration, acts: &mut ControlActs) {
        while let Some(output) = self.coordinator.poll_output() {
            match output {
                Output::Wake(session) => {
                    let Some(stream) = self.stream_of.get(&session) else {
                        continue;
                    };
                    while let Some(message) = self.coordinator.next_message(wall, session) {
                        // The types always render.
                        let json = message.to_json().unwrap_or_default();
                        acts.send
                            .push((*stream, [&[MAP], json.as_slice()].concat()));
                    }
                }
                Output::End(session) => {
                    if let Some(stream) = self.stream_of.remove(&session) {
                        self.clients.remove(&stream);
                        acts.close.push(stream);
                    }
                }
                Output::Store { .. } | Output::Decided(_) | Output::Notice(_) => {}
            }
        }
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.coordinator
            .next_deadline()
            .filter(|_| self.is_up)
            .map(|(at, _)| at)
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant, wall: Duration, acts: &mut ControlActs) {
        self.coordinator.handle_timeout(now, wall);
        self.settle(wall, acts);
    }
}

fn parse<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, String> {
    serde_json::from_slice(body).map_err(|error| error.to_string())
}

fn register(
    coordinator: &mut Coordinator,
    now: Instant,
    wall: Duration,
    machine: MachinePublic,
    body: &[u8],
) -> Result<Vec<u8>, String> {
    let request: RegisterRequest = parse(body)?;
    match coordinator.register(now, wall, machine, &request) {
        RegisterOutcome::Answer(response) => {
            let json = serde_json::to_vec(&response).map_err(|error| error.to_string())?;
            Ok([&[REGISTERED], json.as_slice()].concat())
        }
        RegisterOutcome::Park(_) | RegisterOutcome::Busy => {
            Err("nobody approves machines here".to_owned())
        }
    }
}

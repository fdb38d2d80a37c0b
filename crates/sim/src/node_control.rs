//! A node's conversation with the coordination server: register, follow the
//! map stream, report what changed; try again when it breaks.

use std::time::{Duration, Instant};

use warren_control_types::{
    CapabilityVersion, Hostinfo, MapRequest, MapResponse, RegisterAuth, RegisterRequest,
    RegisterResponse,
};
use warren_node_core::ControlReport;

use crate::control::{FOLLOW, MAP, REFUSED, REGISTER, REGISTERED, UPDATE};
use crate::node::Identity;
use crate::random::Dice;
use crate::stream::StreamId;
use crate::time::millis;

/// Longest pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, PartialEq)]
enum State {
    Waiting(Instant),
    Dialing(Option<StreamId>),
    Registering(StreamId),
    Following { stream: StreamId, begun: bool },
    Refused(String),
}

pub(crate) struct ControlSession {
    state: State,
    is_registered: bool,
    failures: u32,
    told: Option<ControlReport>,
}

/// What a message of the server means.
#[derive(Default)]
pub(crate) struct Heard {
    pub(crate) send: Vec<Vec<u8>>,
    pub(crate) stream_begins: bool,
    pub(crate) map: Option<Box<MapResponse>>,
}

impl ControlSession {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            state: State::Waiting(now),
            is_registered: false,
            failures: 0,
            told: None,
        }
    }

    pub(crate) fn stream(&self) -> Option<StreamId> {
        match &self.state {
            State::Dialing(stream) => *stream,
            State::Registering(stream) | State::Following { stream, .. } => Some(*stream),
            State::Waiting(_) | State::Refused(_) => None,
        }
    }

    /// Why there is nothing more to be had from the server.
    pub(crate) fn refusal(&self) -> Option<&str> {
        match &self.state {
            State::Refused(why) => Some(why),
            State::Waiting(_)
            | State::Dialing(_)
            | State::Registering(_)
            | State::Following { .. } => None,
        }
    }

    pub(crate) fn complain(&mut self, what: String) {
        self.state = State::Refused(what);
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        match self.state {
            State::Waiting(at) => Some(at),
            State::Dialing(_)
            | State::Registering(_)
            | State::Following { .. }
            | State::Refused(_) => None,
        }
    }

    /// Whether it is time for another attempt, which begins with this call.
    pub(crate) fn wants_to_dial(&mut self, now: Instant) -> bool {
        let due = matches!(self.state, State::Waiting(at) if now >= at);
        if due {
            self.state = State::Dialing(None);
        }
        due
    }

    pub(crate) fn dialed(&mut self, stream: StreamId) {
        if matches!(self.state, State::Dialing(_)) {
            self.state = State::Dialing(Some(stream));
        }
    }

    pub(crate) fn lost(&mut self, now: Instant, dice: &mut Dice) {
        if matches!(self.state, State::Refused(_)) {
            return;
        }
        self.failures = match self.state {
            State::Following { begun: true, .. } => 0,
            _ => self.failures.saturating_add(1),
        };
        self.told = None;
        let grown = millis(10).saturating_mul(self.failures.saturating_mul(self.failures));
        let base = grown.clamp(millis(10), LONGEST_PAUSE);
        self.state = State::Waiting(now + base / 2 + dice.up_to(base));
    }

    pub(crate) fn opened(&mut self, identity: &Identity, report: &ControlReport) -> Vec<Vec<u8>> {
        let State::Dialing(Some(stream)) = self.state else {
            return Vec::new();
        };
        if self.is_registered {
            return self.follow(stream, identity, report);
        }
        self.state = State::Registering(stream);
        let request = RegisterRequest {
            version: CapabilityVersion::CURRENT,
            node_key: identity.key.public(),
            old_node_key: identity.old_key,
            auth: Some(RegisterAuth {
                auth_key: identity.auth_key.clone(),
            }),
            hostinfo: Some(hostinfo(identity, None)),
            ..RegisterRequest::default()
        };
        vec![message(REGISTER, &request)]
    }

    fn follow(
        &mut self,
        stream: StreamId,
        identity: &Identity,
        report: &ControlReport,
    ) -> Vec<Vec<u8>> {
        self.state = State::Following {
            stream,
            begun: false,
        };
        self.told = Some(report.clone());
        vec![
            message(UPDATE, &map_request(identity, report, false)),
            message(FOLLOW, &map_request(identity, report, true)),
        ]
    }

    /// The engine has something new to tell.
    pub(crate) fn report(&mut self, identity: &Identity, report: &ControlReport) -> Vec<Vec<u8>> {
        let following = matches!(self.state, State::Following { .. });
        if !following || self.told.as_ref() == Some(report) {
            return Vec::new();
        }
        self.told = Some(report.clone());
        vec![message(UPDATE, &map_request(identity, report, false))]
    }

    pub(crate) fn received(
        &mut self,
        bytes: &[u8],
        identity: &Identity,
        report: &ControlReport,
    ) -> Heard {
        let mut heard = Heard::default();
        let Some((kind, body)) = bytes.split_first() else {
            return heard;
        };
        match (*kind, &mut self.state) {
            (REGISTERED, State::Registering(stream)) => {
                let stream = *stream;
                match serde_json::from_slice::<RegisterResponse>(body) {
                    Err(error) => self.complain(error.to_string()),
                    Ok(answer) if !answer.error.is_empty() => self.complain(answer.error),
                    Ok(answer) if answer.node_key_expired => {
                        self.complain("the node key has ended".to_owned());
                    }
                    Ok(_) => {
                        self.is_registered = true;
                        heard.send = self.follow(stream, identity, report);
                    }
                }
            }
            (MAP, State::Following { begun, .. }) => {
                heard.stream_begins = !std::mem::replace(begun, true);
                match serde_json::from_slice(body) {
                    Ok(map) => heard.map = Some(Box::new(map)),
                    Err(error) => self.complain(error.to_string()),
                }
            }
            (REFUSED, _) => self.complain(String::from_utf8_lossy(body).into_owned()),
            _ => {}
        }
        heard
    }
}

fn message<T: serde::Serialize>(kind: u8, body: &T) -> Vec<u8> {
    let mut bytes = vec![kind];
    // The types always render.
    bytes.extend(serde_json::to_vec(body).unwrap_or_default());
    bytes
}

fn hostinfo(identity: &Identity, report: Option<&ControlReport>) -> Hostinfo {
    Hostinfo {
        hostname: identity.name.clone(),
        os: "linux".to_owned(),
        net_info: report.and_then(|report| report.net_info.clone()),
        ..Hostinfo::default()
    }
}

fn map_request(identity: &Identity, report: &ControlReport, stream: bool) -> MapRequest {
    MapRequest {
        version: CapabilityVersion::CURRENT,
        keep_alive: stream,
        node_key: identity.key.public(),
        disco_key: Some(report.disco_key),
        stream,
        hostinfo: Some(hostinfo(identity, Some(report))),
        endpoints: report
            .endpoints
            .iter()
            .map(|(address, _)| *address)
            .collect(),
        endpoint_types: report.endpoints.iter().map(|(_, kind)| *kind).collect(),
        omit_peers: !stream,
        ..MapRequest::default()
    }
}

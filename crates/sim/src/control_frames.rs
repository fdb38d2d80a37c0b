//! The messages between a node and the coordination server.
//!
//! The Noise channel and HTTP/2 are left out. The requests and responses inside of
//! them are the real ones, as JSON behind a byte for their kind. A session has at
//! most one request of each kind under way, so a response needs no number.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use warren_control_client::{Input, Request, RequestError};
use warren_control_types::{MapRequest, RegisterRequest, RegisterResponse};

/// A request of a node.
pub(crate) enum ToServer {
    Register(Box<RegisterRequest>),
    /// A map request that only reports.
    Update(Box<MapRequest>),
    /// A map request that asks for the map stream.
    OpenStream(Box<MapRequest>),
}

/// A response of the server, or a message of the map stream.
pub(crate) enum ToNode {
    Registered(Result<Box<RegisterResponse>, Refusal>),
    Updated(Result<(), Refusal>),
    StreamOpened(Result<(), Refusal>),
    /// A map response, as JSON.
    Message(Vec<u8>),
    StreamEnded,
}

/// The status of a response that is not the one that was asked for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Refusal {
    /// 404
    NotFound(String),
    /// 429
    TooMany,
    /// Any other.
    Failed(String),
}

impl From<Refusal> for RequestError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::NotFound(text) => Self::NotFound(text),
            Refusal::TooMany => Self::RateLimited { retry_after: None },
            Refusal::Failed(text) => Self::Failed(text),
        }
    }
}

fn frame<T: Serialize>(kind: u8, body: &T) -> Vec<u8> {
    let mut bytes = vec![kind];
    // The types always render.
    bytes.extend(serde_json::to_vec(body).unwrap_or_default());
    bytes
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, String> {
    serde_json::from_slice(body).map_err(|error| error.to_string())
}

impl ToServer {
    /// The message that carries a request; `None` for the answers to requests of
    /// the server, which the simulated server does not make.
    pub(crate) fn from_request(request: Request) -> Option<Self> {
        match request {
            Request::Register(request) => Some(Self::Register(request)),
            Request::Update(request) => Some(Self::Update(request)),
            Request::OpenStream(request) => Some(Self::OpenStream(request)),
            Request::AnswerHead(_) | Request::AnswerC2n(..) => None,
        }
    }

    pub(crate) fn emit(&self) -> Vec<u8> {
        match self {
            Self::Register(request) => frame(b'R', request),
            Self::Update(request) => frame(b'U', request),
            Self::OpenStream(request) => frame(b'S', request),
        }
    }

    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, String> {
        match bytes.split_first() {
            Some((b'R', body)) => parse(body).map(Self::Register),
            Some((b'U', body)) => parse(body).map(Self::Update),
            Some((b'S', body)) => parse(body).map(Self::OpenStream),
            _ => Err("unknown kind of message".to_owned()),
        }
    }
}

impl ToNode {
    pub(crate) fn emit(&self) -> Vec<u8> {
        match self {
            Self::Registered(result) => frame(b'r', result),
            Self::Updated(result) => frame(b'u', result),
            Self::StreamOpened(result) => frame(b's', result),
            Self::Message(json) => [b"m", json.as_slice()].concat(),
            Self::StreamEnded => b"e".to_vec(),
        }
    }

    /// The result for the node's control session.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Input, String> {
        Ok(match bytes.split_first() {
            Some((b'r', body)) => {
                let result: Result<_, Refusal> = parse(body)?;
                Input::Registered(result.map_err(Into::into))
            }
            Some((b'u', body)) => {
                let result: Result<(), Refusal> = parse(body)?;
                Input::Updated(result.map_err(Into::into))
            }
            Some((b's', body)) => {
                let result: Result<(), Refusal> = parse(body)?;
                Input::StreamOpened(result.map_err(Into::into))
            }
            Some((b'm', body)) => Input::Message(parse(body)?),
            Some((b'e', _)) => {
                Input::StreamEnded("the coordination server ended the map stream".to_owned())
            }
            _ => return Err("unknown kind of message".to_owned()),
        })
    }
}

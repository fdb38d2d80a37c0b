//! The IO of a session with the coordination server: carries the requests of the
//! node's control session over a simulated stream and reports their results. It
//! decides nothing, as `SessionIo` of the daemon.

use std::time::Instant;

use warren_control_client::{Input, Request, RequestError, STREAM_WATCHDOG};

use crate::control_frames::{ToNode, ToServer};
use crate::stream::StreamId;

/// The connection of one session, and the requests that are under way in it.
#[derive(Default)]
pub(crate) struct SessionIo {
    connection: Connection,
    registers: bool,
    updates: bool,
    map_stream: MapStream,
}

#[derive(Default)]
enum Connection {
    #[default]
    Closed,
    /// It is being made, and these messages wait for it.
    Dialing {
        stream: Option<StreamId>,
        waiting: Vec<Vec<u8>>,
    },
    Open(StreamId),
}

#[derive(Clone, Copy, PartialEq, Eq, Default)]
enum MapStream {
    #[default]
    Closed,
    /// It was asked for.
    Opening,
    /// It is open, and its last message came then.
    Open(Instant),
}

/// The action of the owner of a session for a request.
pub(crate) enum Send {
    Nothing,
    /// Connect to the server.
    Dial,
    /// Write these bytes.
    Write(StreamId, Vec<u8>),
}

impl SessionIo {
    pub(crate) fn stream(&self) -> Option<StreamId> {
        match &self.connection {
            Connection::Closed => None,
            Connection::Dialing { stream, .. } => *stream,
            Connection::Open(stream) => Some(*stream),
        }
    }

    /// Begins a request.
    pub(crate) fn request(&mut self, request: Request) -> Send {
        let Some(message) = ToServer::from_request(request) else {
            return Send::Nothing;
        };
        match message {
            ToServer::Register(_) => self.registers = true,
            ToServer::Update(_) => self.updates = true,
            ToServer::OpenStream(_) => self.map_stream = MapStream::Opening,
        }
        let bytes = message.emit();
        match &mut self.connection {
            Connection::Open(stream) => Send::Write(*stream, bytes),
            Connection::Dialing { waiting, .. } => {
                waiting.push(bytes);
                Send::Nothing
            }
            Connection::Closed => {
                self.connection = Connection::Dialing {
                    stream: None,
                    waiting: vec![bytes],
                };
                Send::Dial
            }
        }
    }

    /// The connection will have this number.
    pub(crate) fn dialed(&mut self, id: StreamId) {
        if let Connection::Dialing { stream, .. } = &mut self.connection {
            *stream = Some(id);
        }
    }

    /// The connection is open; returns the messages that waited.
    pub(crate) fn opened(&mut self, stream: StreamId) -> Vec<Vec<u8>> {
        match std::mem::replace(&mut self.connection, Connection::Open(stream)) {
            Connection::Dialing { waiting, .. } => waiting,
            Connection::Closed | Connection::Open(_) => Vec::new(),
        }
    }

    /// The connection ended; returns the results of everything that was under way.
    pub(crate) fn closed(&mut self, reason: &str) -> Vec<Input> {
        let error = || RequestError::Failed(reason.to_owned());
        let before = std::mem::take(self);
        let mut results = Vec::new();
        if before.registers {
            results.push(Input::Registered(Err(error())));
        }
        if before.updates {
            results.push(Input::Updated(Err(error())));
        }
        match before.map_stream {
            MapStream::Closed => {}
            MapStream::Opening => results.push(Input::StreamOpened(Err(error()))),
            MapStream::Open(_) => results.push(Input::StreamEnded(reason.to_owned())),
        }
        results
    }

    /// Takes what the server sent.
    ///
    /// # Errors
    /// The message makes no sense: close the connection.
    pub(crate) fn received(&mut self, now: Instant, bytes: &[u8]) -> Result<Input, String> {
        let input = ToNode::parse(bytes)?;
        match &input {
            Input::Registered(_) => self.registers = false,
            Input::Updated(_) => self.updates = false,
            Input::StreamOpened(Ok(())) | Input::Message(_) => {
                self.map_stream = MapStream::Open(now);
            }
            Input::StreamOpened(Err(_)) | Input::StreamEnded(_) => {
                self.map_stream = MapStream::Closed;
            }
            Input::FreshKey { .. }
            | Input::Signature(_)
            | Input::C2nAnswer { .. }
            | Input::Description(_) => {}
        }
        Ok(input)
    }

    /// The time at which the silence of the map stream ends the connection.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        match self.map_stream {
            MapStream::Open(last) => Some(last + STREAM_WATCHDOG),
            MapStream::Closed | MapStream::Opening => None,
        }
    }
}

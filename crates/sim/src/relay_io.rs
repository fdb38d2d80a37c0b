//! The IO of a connection to a relay: the real client state on a simulated stream.
//! The node decides which connections exist.

use std::time::Instant;

use warren_derp::client::{self, Client, ClientConfig, Event};
use warren_derp::{FrameBuffer, OverLong};
use warren_keys::{NodePublic, NodeSecret};
use warren_node_core::node::LinkId;
use warren_wire::derp::Frame;

use crate::random::SimRng;
use crate::stream::StreamId;

/// One connection to a relay.
pub(crate) struct RelayIo {
    pub(crate) link: LinkId,
    pub(crate) stream: Option<StreamId>,
    is_home: bool,
    /// `None` until the stream is open.
    client: Option<Client>,
    buffer: FrameBuffer,
    output: Vec<u8>,
}

/// An event received through a relay.
pub(crate) enum Received {
    /// The relay accepted the login.
    Up,
    Packet(NodePublic, Vec<u8>),
    PeerGone(NodePublic),
    /// The connection cannot be used any more.
    Ended,
}

impl RelayIo {
    pub(crate) fn new(link: LinkId, is_home: bool) -> Self {
        Self {
            link,
            stream: None,
            is_home,
            client: None,
            buffer: FrameBuffer::new(client::MAX_PAYLOAD, OverLong::Fatal),
            output: Vec::new(),
        }
    }

    /// The stream is open: logs in. Returns whether packets may follow.
    pub(crate) fn opened(
        &mut self,
        now: Instant,
        key: &NodeSecret,
        relay: NodePublic,
        rng: &mut SimRng,
    ) -> bool {
        let config = ClientConfig {
            home: self.is_home,
            ..ClientConfig::node(key.clone())
        };
        // Only a relay with a degenerate key fails here; ours are random.
        self.client = Client::fast_start(now, config, relay, rng).ok();
        if let Some(client) = &mut self.client {
            client.take_output(&mut self.output);
        }
        self.is_open()
    }

    /// Whether packets may be sent.
    pub(crate) fn is_open(&self) -> bool {
        self.client.is_some()
    }

    pub(crate) fn send(&mut self, to: NodePublic, packet: &[u8]) {
        if self.is_open() {
            Frame::SendPacket { to, packet }.emit(&mut self.output);
        }
    }

    pub(crate) fn note_home(&mut self, is_home: bool) {
        if self.is_open() {
            Frame::NotePreferred(is_home).emit(&mut self.output);
        }
    }

    pub(crate) fn received(
        &mut self,
        now: Instant,
        bytes: &[u8],
        rng: &mut SimRng,
    ) -> Vec<Received> {
        let mut events = Vec::new();
        let Some(client) = &mut self.client else {
            return events;
        };
        client.note_bytes(now);
        self.buffer.push(bytes);
        while self.buffer.is_ready() {
            let Ok(frames) = self.buffer.frames() else {
                events.push(Received::Ended);
                break;
            };
            for frame in frames {
                match client.handle_frame(now, frame, rng) {
                    Ok(Some(Event::Connected(_))) => events.push(Received::Up),
                    Ok(Some(Event::Packet { from, packet })) => {
                        events.push(Received::Packet(from, packet.to_vec()));
                    }
                    Ok(Some(Event::PeerGone { key, .. })) => events.push(Received::PeerGone(key)),
                    Ok(Some(Event::Restarting { .. })) | Err(_) => events.push(Received::Ended),
                    Ok(Some(Event::PeerPresent { .. } | Event::Health(_) | Event::Pong(_)))
                    | Ok(None) => {}
                }
            }
        }
        client.take_output(&mut self.output);
        events
    }

    /// The bytes to write now.
    pub(crate) fn take_output(&mut self) -> Option<(StreamId, Vec<u8>)> {
        let stream = self.stream.filter(|_| !self.output.is_empty())?;
        Some((stream, std::mem::take(&mut self.output)))
    }

    /// The time at which silence ends the connection.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.client.as_ref().map(Client::next_deadline)
    }

    pub(crate) fn is_silent(&self, now: Instant) -> bool {
        self.client
            .as_ref()
            .is_some_and(|client| client.handle_timeout(now).is_err())
    }
}

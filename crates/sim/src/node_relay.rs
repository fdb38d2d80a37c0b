//! A node's connection to one relay: the real client state on a simulated
//! stream.

use std::collections::VecDeque;
use std::time::Instant;

use warren_derp::client::{self, Client, ClientConfig, Event};
use warren_derp::{FrameBuffer, OverLong};
use warren_keys::{NodePublic, NodeSecret};
use warren_wire::derp::Frame;

use crate::random::Dice;
use crate::stream::StreamId;

/// Packets that wait for a connection that is being made.
const WAITING_PACKETS: usize = 256;

pub(crate) struct RelayLink {
    pub(crate) stream: Option<StreamId>,
    client: Option<Client>,
    buffer: FrameBuffer,
    waiting: VecDeque<(NodePublic, Vec<u8>)>,
    output: Vec<u8>,
}

/// What came through a relay.
pub(crate) enum Arrived {
    Connected,
    Packet(NodePublic, Vec<u8>),
    PeerGone(NodePublic),
    /// The connection makes no sense any more.
    Broken,
}

impl RelayLink {
    pub(crate) fn new() -> Self {
        Self {
            stream: None,
            client: None,
            buffer: FrameBuffer::new(client::MAX_PAYLOAD, OverLong::Fatal),
            waiting: VecDeque::new(),
            output: Vec::new(),
        }
    }

    /// The stream stands: log in, and send what waited.
    pub(crate) fn opened(
        &mut self,
        now: Instant,
        key: &NodeSecret,
        relay: NodePublic,
        home: bool,
        dice: &mut Dice,
    ) {
        let config = ClientConfig {
            home,
            ..ClientConfig::node(key.clone())
        };
        // Only a relay with a degenerate key fails here; ours are random.
        self.client = Client::fast_start(now, config, relay, dice).ok();
        if let Some(client) = &mut self.client {
            client.take_output(&mut self.output);
        }
        for (to, packet) in self.waiting.drain(..) {
            Frame::SendPacket {
                to,
                packet: &packet,
            }
            .emit(&mut self.output);
        }
    }

    pub(crate) fn send(&mut self, to: NodePublic, packet: Vec<u8>) {
        if self.client.is_some() {
            Frame::SendPacket {
                to,
                packet: &packet,
            }
            .emit(&mut self.output);
            return;
        }
        if self.waiting.len() == WAITING_PACKETS {
            self.waiting.pop_front();
        }
        self.waiting.push_back((to, packet));
    }

    pub(crate) fn note_home(&mut self, is_home: bool) {
        if self.client.is_some() {
            Frame::NotePreferred(is_home).emit(&mut self.output);
        }
    }

    pub(crate) fn received(&mut self, now: Instant, bytes: &[u8], dice: &mut Dice) -> Vec<Arrived> {
        let mut arrived = Vec::new();
        let Some(client) = &mut self.client else {
            return arrived;
        };
        client.note_bytes(now);
        self.buffer.push(bytes);
        while self.buffer.is_ready() {
            let Ok(frames) = self.buffer.frames() else {
                arrived.push(Arrived::Broken);
                break;
            };
            for frame in frames {
                match client.handle_frame(now, frame, dice) {
                    Ok(Some(Event::Connected(_))) => arrived.push(Arrived::Connected),
                    Ok(Some(Event::Packet { from, packet })) => {
                        arrived.push(Arrived::Packet(from, packet.to_vec()));
                    }
                    Ok(Some(Event::PeerGone { key, .. })) => arrived.push(Arrived::PeerGone(key)),
                    Ok(Some(Event::Restarting { .. })) | Err(_) => arrived.push(Arrived::Broken),
                    Ok(Some(Event::PeerPresent { .. } | Event::Health(_) | Event::Pong(_)))
                    | Ok(None) => {}
                }
            }
        }
        client.take_output(&mut self.output);
        arrived
    }

    /// What is to be written now.
    pub(crate) fn take_output(&mut self) -> Option<(StreamId, Vec<u8>)> {
        let stream = self.stream.filter(|_| !self.output.is_empty())?;
        Some((stream, std::mem::take(&mut self.output)))
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.client.as_ref().map(Client::next_deadline)
    }

    pub(crate) fn is_silent(&self, now: Instant) -> bool {
        self.client
            .as_ref()
            .is_some_and(|client| client.handle_timeout(now).is_err())
    }
}

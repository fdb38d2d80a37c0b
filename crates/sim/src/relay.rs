//! A relay host: the real DERP server state and registry over simulated
//! streams, and STUN beside them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use warren_control_types::RegionId;
use warren_derp::login::MAX_CLIENT_INFO;
use warren_derp::server::{self, Connection, Keepalive, LOGIN_TIMEOUT, Request};
use warren_derp::{
    ConnId, FrameBuffer, Identity, Limits, Notice, OverLong, Presence, Registry, Route, SendQueue,
    ServerInfo,
};
use warren_keys::{NodePublic, NodeSecret};
use warren_wire::derp::{Frame, PeerFlags, PeerGoneReason, looks_like_disco};
use warren_wire::stun;

use crate::network::HostId;
use crate::random::SimRng;
use crate::stream::{StreamActions, StreamId};

enum Phase {
    Login {
        until: Instant,
    },
    Ready {
        connection: Connection,
        keepalive: Keepalive,
        forwarded_to: BTreeSet<(NodePublic, ConnId)>,
    },
}

struct Client {
    buffer: FrameBuffer,
    queue: SendQueue,
    phase: Phase,
}

/// One relay, which is a region of its own.
pub(crate) struct Relay {
    pub(crate) host: HostId,
    pub(crate) region: RegionId,
    pub(crate) code: String,
    pub(crate) is_up: bool,
    identity: Identity,
    registry: Registry<StreamId, ()>,
    clients: BTreeMap<StreamId, Client>,
    rng: SimRng,
}

impl Relay {
    pub(crate) fn new(host: HostId, region: RegionId, code: &str, mut rng: SimRng) -> Self {
        let identity = Identity::new(NodeSecret::generate(&mut rng), None);
        Self {
            host,
            region,
            code: code.to_owned(),
            is_up: true,
            registry: Registry::new(identity.public()),
            identity,
            clients: BTreeMap::new(),
            rng,
        }
    }

    /// The key that clients read from the certificate.
    pub(crate) fn key(&self) -> NodePublic {
        self.identity.public()
    }

    /// The number of clients that are logged in.
    pub(crate) fn clients(&self) -> usize {
        self.registry.census().connections
    }

    /// Stops; returns the streams that break.
    pub(crate) fn stop(&mut self) -> Vec<StreamId> {
        self.is_up = false;
        self.registry = Registry::new(self.identity.public());
        std::mem::take(&mut self.clients).into_keys().collect()
    }

    pub(crate) fn accept(&mut self, now: Instant, stream: StreamId) -> StreamActions {
        let mut queue = SendQueue::new(Limits::NODE);
        // A fresh queue takes one small frame.
        let _ = queue.push_control_bytes(&self.identity.server_key_frame());
        let client = Client {
            buffer: FrameBuffer::new(MAX_CLIENT_INFO, OverLong::SkipUnknown),
            queue,
            phase: Phase::Login {
                until: now + LOGIN_TIMEOUT,
            },
        };
        self.clients.insert(stream, client);
        let mut actions = StreamActions::default();
        self.flush(now, stream, &mut actions);
        actions
    }

    pub(crate) fn closed(&mut self, now: Instant, stream: StreamId) -> StreamActions {
        let mut actions = StreamActions::default();
        self.drop_client(now, stream, &mut actions);
        actions
    }

    fn drop_client(&mut self, now: Instant, stream: StreamId, actions: &mut StreamActions) {
        if self.clients.remove(&stream).is_some() {
            let notices = self.registry.disconnect(ConnId(stream.0));
            self.notify(now, notices, actions);
        }
    }

    fn notify(
        &mut self,
        now: Instant,
        notices: Vec<Notice<StreamId>>,
        actions: &mut StreamActions,
    ) {
        for notice in notices {
            if let Some(client) = self.clients.get_mut(&notice.to) {
                let _ = client.queue.push_control(&notice.news.frame());
                self.flush(now, notice.to, actions);
            }
        }
    }

    fn flush(&mut self, now: Instant, stream: StreamId, actions: &mut StreamActions) {
        let Some(client) = self.clients.get_mut(&stream) else {
            return;
        };
        let mut bytes = Vec::new();
        while client.queue.take(now, &mut bytes) {
            actions.send.push((stream, bytes.clone()));
        }
    }

    pub(crate) fn received(
        &mut self,
        now: Instant,
        stream: StreamId,
        bytes: &[u8],
    ) -> StreamActions {
        let mut actions = StreamActions::default();
        // Out of the table while its frames are read; only packets of a client to
        // itself would see the difference.
        let Some(mut client) = self.clients.remove(&stream) else {
            return actions;
        };
        client.buffer.push(bytes);
        let outcome = self.read(now, stream, &mut client, &mut actions);
        self.clients.insert(stream, client);
        if outcome.is_err() {
            actions.close.push(stream);
            self.drop_client(now, stream, &mut actions);
        } else {
            self.flush(now, stream, &mut actions);
        }
        actions
    }

    fn read(
        &mut self,
        now: Instant,
        stream: StreamId,
        client: &mut Client,
        actions: &mut StreamActions,
    ) -> Result<(), String> {
        if matches!(client.phase, Phase::Login { .. }) {
            let Some(frame) = client.buffer.next_frame().map_err(|e| e.to_string())? else {
                return Ok(());
            };
            let login = self
                .identity
                .open_login(frame.kind, frame.payload)
                .map_err(|error| error.to_string())?;
            client.buffer.set_max_payload(server::MAX_PAYLOAD);
            let answer = login.accept(&ServerInfo::default(), &mut self.rng);
            client
                .queue
                .push_control_bytes(&answer)
                .map_err(|error| error.to_string())?;
            let presence = Presence {
                source: None,
                flags: PeerFlags::REGULAR,
            };
            let notices = self
                .registry
                .connect(ConnId(stream.0), login.key, stream, presence);
            self.notify(now, notices, actions);
            client.phase = Phase::Ready {
                connection: Connection::new(now, login.key, false),
                keepalive: Keepalive::new(now, &mut self.rng),
                forwarded_to: BTreeSet::new(),
            };
        }
        let Phase::Ready {
            connection,
            forwarded_to,
            ..
        } = &mut client.phase
        else {
            return Ok(());
        };
        if !self.registry.is_settled(ConnId(stream.0)) {
            self.registry.note_spoke(ConnId(stream.0));
        }
        while client.buffer.is_ready() {
            for frame in client.buffer.frames().map_err(|error| error.to_string())? {
                let request = connection
                    .handle_frame(now, frame.kind, frame.payload)
                    .map_err(|error| error.to_string())?;
                let (to, packet) = match request {
                    Request::Send { to, packet } => (to, packet),
                    Request::Pong(data) => {
                        client.queue.push_pong(data);
                        continue;
                    }
                    Request::Forward { .. }
                    | Request::Home { .. }
                    | Request::Watch
                    | Request::Close(_)
                    | Request::Nothing
                    | Request::Unknown => continue,
                };
                let from = connection.key();
                let Route::Local { id, handle, .. } = self.registry.route(&to) else {
                    if looks_like_disco(packet) && connection.may_say_not_here(now) {
                        let reason = PeerGoneReason::NotHere;
                        let _ = client
                            .queue
                            .push_control(&Frame::PeerGone { key: to, reason });
                    }
                    continue;
                };
                let target = *handle;
                if forwarded_to.insert((from, id)) {
                    self.registry.note_heard(from, id);
                }
                if let Some(receiver) = self.clients.get_mut(&target) {
                    receiver
                        .queue
                        .push_packet(now, &Frame::RecvPacket { from, packet });
                    let mut bytes = Vec::new();
                    while receiver.queue.take(now, &mut bytes) {
                        actions.send.push((target, bytes.clone()));
                    }
                }
            }
        }
        Ok(())
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.clients
            .values()
            .map(|client| match &client.phase {
                Phase::Login { until } => *until,
                Phase::Ready { keepalive, .. } => keepalive.next_deadline(),
            })
            .min()
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) -> StreamActions {
        let mut actions = StreamActions::default();
        let streams: Vec<StreamId> = self.clients.keys().copied().collect();
        for stream in streams {
            let Some(client) = self.clients.get_mut(&stream) else {
                continue;
            };
            match &mut client.phase {
                Phase::Login { until } if now >= *until => {
                    actions.close.push(stream);
                    self.drop_client(now, stream, &mut actions);
                }
                Phase::Login { .. } => {}
                Phase::Ready { keepalive, .. } => {
                    if keepalive.handle_timeout(now) {
                        let _ = client.queue.push_control(&Frame::KeepAlive);
                        self.flush(now, stream, &mut actions);
                    }
                }
            }
        }
        actions
    }

    /// Answers STUN, as long as it runs.
    pub(crate) fn stun(&self, from: SocketAddr, datagram: &[u8]) -> Option<Vec<u8>> {
        let request = stun::Request::parse(datagram).ok().filter(|_| self.is_up)?;
        Some(stun::Response::to(&request, from).emit())
    }
}

/// The time after which the other side of a connection that broke silently takes
/// it for closed.
pub(crate) const HALF_OPEN: Duration = Duration::from_secs(30);

//! One client of the relay: login, then a task that reads and one that writes.

use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::io::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadHalf, WriteHalf,
};
use tokio::time::timeout;
use tracing::Instrument as _;
use warren_derp::login::{MAX_CLIENT_INFO, ProvenLogin};
use warren_derp::server::{
    self, Connection, Keepalive, MESH_WRITE_TIMEOUT, Request, SLOWEST_READER, Violation,
    WRITE_TIMEOUT,
};
use warren_derp::{
    ConnId, FrameBuffer, FrameTooLong, Limits, LoginError, OverLong, Presence, Route, ServerInfo,
    Turns,
};
use warren_dial::SystemEntropy;
use warren_dial::connections::Owner;
use warren_dial::derp::{DerpSender, flush_unless_stalled, write_all_unless_stalled};
use warren_keys::NodePublic;
use warren_wire::derp::{Frame, PeerFlags, PeerGoneReason, looks_like_disco};

use crate::relay::{Applicant, OnDrop, Outbox, Relay, Shared};

/// The reason a connection ended. None of these needs an action.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// No whole login in time.
    #[error("no login in time")]
    LoginTimeout,
    /// The login is wrong.
    #[error(transparent)]
    Login(#[from] LoginError),
    /// The client may not use this relay.
    #[error("{0:?} is not admitted")]
    NotAdmitted(NodePublic),
    /// The client does not keep to the protocol.
    #[error(transparent)]
    Violation(#[from] Violation),
    /// The client sent a frame that is too long.
    #[error(transparent)]
    TooLong(#[from] FrameTooLong),
    /// The client went away without a word, or does not read.
    #[error("connection broke: {0}")]
    Broken(#[from] io::Error),
}

/// Serves a DERP stream from its first byte to its end; calls `identified` when
/// the client has logged in and is admitted.
pub(crate) async fn serve<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(
    relay: &Relay,
    stream: S,
    leftover: Vec<u8>,
    peer: SocketAddr,
    not_ideal: bool,
    identified: impl FnOnce(Owner),
) -> Result<(), ConnectionError> {
    let shared = &relay.shared;
    let (mut reading, mut writing) = tokio::io::split(stream);
    let mut buffer = FrameBuffer::new(MAX_CLIENT_INFO, OverLong::SkipUnknown);
    buffer.push(&leftover);
    drop(leftover);
    let login = async {
        writing
            .write_all(&shared.identity.server_key_frame())
            .await?;
        writing.flush().await?;
        log_in(shared, &mut reading, &mut buffer, peer).await
    };
    let proven = tokio::select! {
        login = timeout(shared.timeouts.login, login) => {
            login.map_err(|_| ConnectionError::LoginTimeout)??
        }
        () = shared.closing.cancelled() => return Ok(()),
    };
    let key = *proven.key.as_bytes();
    identified(if shared.admission.is_some() || proven.is_mesh_peer {
        Owner::Node(key)
    } else {
        Owner::AnyKey(key)
    });
    buffer.set_max_payload(server::MAX_PAYLOAD);

    let now = Instant::now();
    let (limits, stalled) = if proven.is_mesh_peer {
        (Limits::MESH, MESH_WRITE_TIMEOUT)
    } else {
        (Limits::NODE, WRITE_TIMEOUT)
    };
    let close = shared.closing.child_token();
    let outbox = Arc::new(Outbox::new(limits, shared.queues.clone(), close.clone()));
    let answer = proven.accept(&ServerInfo::default(), &mut SystemEntropy);
    // A fresh queue takes one small frame.
    let _ = outbox.queue().push_control_bytes(&answer);

    let id = ConnId(shared.next_id());
    let presence = Presence {
        source: Some(peer),
        flags: flags(&proven, not_ideal),
    };
    let mut connection = Connection::new(now, proven.key, proven.is_mesh_peer);
    if let Some(limit) = shared.rate_limit {
        connection.limit(now, limit.bytes_per_second, limit.burst);
    }
    shared.change(|registry| registry.connect(id, proven.key, Arc::clone(&outbox), presence));
    // Also when the task that serves this connection is cancelled.
    let registered = OnDrop(|| {
        close.cancel();
        shared.depart(|registry| registry.disconnect(id));
    });
    shared.metrics.accepts.add(1);
    tracing::debug!(key = ?proven.key, mesh = proven.is_mesh_peer, "client connected");

    let writer = write(Arc::clone(shared), writing, Arc::clone(&outbox), stalled);
    let writer = tokio::spawn(writer.in_current_span());
    let mut reader = Reader {
        shared,
        id,
        connection,
        outbox: &outbox,
        route: None,
        turns: shared.read().turns(id).unwrap_or_default(),
        settled: None,
        noted: HashSet::new(),
        departures: shared.departures(),
        woken: Vec::new(),
    };
    let applicant = Applicant::of(&proven, peer);
    let ended = tokio::select! {
        ended = reader.run(&mut reading, &mut buffer) => ended,
        () = close.cancelled() => Ok(()),
        () = admission_ends(shared, applicant, proven.is_mesh_peer) => {
            Err(ConnectionError::NotAdmitted(proven.key))
        }
    };
    drop(reader);
    drop(registered);
    let _ = writer.await;
    let drops = outbox.queue().take_drops();
    shared.metrics.note_drops(&drops);
    tracing::debug!(?ended, "client gone");
    ended
}

impl Applicant {
    fn of(proven: &ProvenLogin, peer: SocketAddr) -> Self {
        Self {
            key: proven.key,
            source: peer.ip().to_canonical(),
        }
    }
}

/// Returns when a client is not admitted any more, for instance because its key has
/// expired. An admission that holds for the whole connection is not asked again.
async fn admission_ends(shared: &Shared, applicant: Applicant, is_mesh_peer: bool) {
    let admission = shared.admission.as_ref().filter(|_| !is_mesh_peer);
    let period = admission.and_then(|admission| admission.recheck_after());
    let (Some(admission), Some(period)) = (admission, period) else {
        return std::future::pending().await;
    };
    loop {
        tokio::time::sleep(period).await;
        if !admission.admit(applicant).await {
            return;
        }
    }
}

fn flags(proven: &ProvenLogin, not_ideal: bool) -> PeerFlags {
    let mut flags = PeerFlags::default();
    for (is, flag) in [
        (proven.is_mesh_peer, PeerFlags::MESH_PEER),
        (proven.info.is_prober, PeerFlags::PROBER),
        (not_ideal, PeerFlags::NOT_IDEAL),
    ] {
        if is {
            flags.0 |= flag.0;
        }
    }
    if flags.0 == 0 {
        PeerFlags::REGULAR
    } else {
        flags
    }
}

async fn log_in<S: AsyncRead + AsyncWrite>(
    shared: &Shared,
    reading: &mut ReadHalf<S>,
    buffer: &mut FrameBuffer,
    peer: SocketAddr,
) -> Result<ProvenLogin, ConnectionError> {
    let proven = loop {
        if let Some(frame) = buffer.next_frame()? {
            break shared.identity.open_login(frame.kind, frame.payload)?;
        }
        let n = reading.read(buffer.spare()).await?;
        if n == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        buffer.filled(n);
    };
    if let Some(admission) = shared.admission.as_ref().filter(|_| !proven.is_mesh_peer)
        && !admission.admit(Applicant::of(&proven, peer)).await
    {
        return Err(ConnectionError::NotAdmitted(proven.key));
    }
    Ok(proven)
}

/// The route of packets for one key, and whether the registry has noted it.
enum Target {
    Local {
        id: ConnId,
        outbox: Arc<Outbox>,
        noted: bool,
        /// The turns of the key, and their number at the look-up.
        turns: (Turns, u64),
    },
    Mesh(DerpSender),
    Nowhere,
}

impl Target {
    /// Whether the key still has this target in the same generation.
    fn is_current(&self) -> bool {
        match self {
            Self::Local {
                turns: (turns, count),
                ..
            } => turns.count() == *count,
            Self::Mesh(_) | Self::Nowhere => true,
        }
    }
}

struct Reader<'a> {
    shared: &'a Shared,
    id: ConnId,
    connection: Connection,
    outbox: &'a Arc<Outbox>,
    /// The last looked-up route, and the generation it is of. Packets come in
    /// runs for one destination.
    route: Option<(u64, NodePublic, bool, Target)>,
    /// The turns of our own key.
    turns: Turns,
    /// The generation and the turns at which this was the active connection of its key.
    settled: Option<(u64, u64)>,
    /// The pairs of source and receiver that the registry has noted.
    noted: HashSet<(NodePublic, ConnId)>,
    departures: u64,
    /// Connections to wake once all frames of this read are queued.
    woken: Vec<Arc<Outbox>>,
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        if self.connection.is_home() {
            self.shared.homes.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Reader<'_> {
    async fn run<S: AsyncRead + AsyncWrite>(
        &mut self,
        reading: &mut ReadHalf<S>,
        buffer: &mut FrameBuffer,
    ) -> Result<(), ConnectionError> {
        loop {
            let now = Instant::now();
            while buffer.is_ready() {
                self.settle();
                for frame in buffer.frames()? {
                    let request = self
                        .connection
                        .handle_frame(now, frame.kind, frame.payload)?;
                    self.handle(now, request);
                }
            }
            for woken in self.woken.drain(..) {
                woken.wake.notify_one();
            }
            let n = reading.read(buffer.spare()).await?;
            if n == 0 {
                return Ok(());
            }
            buffer.filled(n);
            self.shared.metrics.bytes_received.add(n as u64);
            let pause = self.connection.pause_after(Instant::now(), n);
            if pause > Duration::ZERO {
                tokio::time::sleep(pause).await;
            }
        }
    }

    /// Of several connections of our key, the one that spoke last is active:
    /// makes sure that this one is.
    fn settle(&mut self) {
        let at = (self.shared.generation(), self.turns.count());
        if self.settled == Some(at) {
            return;
        }
        let settled = self.shared.read().is_settled(self.id);
        if !settled {
            self.shared.change(|registry| {
                registry.note_spoke(self.id);
                Vec::new()
            });
        }
        self.settled = settled.then_some(at);
    }

    fn handle(&mut self, now: Instant, request: Request<'_>) {
        let metrics = &self.shared.metrics;
        match request {
            Request::Send { to, packet } => {
                metrics.packets_received.add(1);
                let from = self.connection.key();
                self.carry(now, from, to, packet, false);
            }
            Request::Forward { from, to, packet } => {
                metrics.packets_forwarded_in.add(1);
                self.carry(now, from, to, packet, true);
            }
            Request::Home { is_home, moved } => {
                let homes = &self.shared.homes;
                let (_, moves) = if is_home {
                    (
                        homes.fetch_add(1, Ordering::Relaxed),
                        &metrics.home_moves_in,
                    )
                } else {
                    (
                        homes.fetch_sub(1, Ordering::Relaxed),
                        &metrics.home_moves_out,
                    )
                };
                moves.add(u64::from(moved));
            }
            Request::Watch => self.shared.change(|registry| {
                for news in registry.watch(self.id) {
                    self.outbox.control(&news.frame());
                }
                Vec::new()
            }),
            Request::Close(key) => {
                for outbox in self.shared.read().connections(&key) {
                    outbox.close.cancel();
                }
            }
            Request::Pong(data) => {
                metrics.pings.add(1);
                self.outbox.queue().push_pong(data);
                self.outbox.wake.notify_one();
            }
            Request::Nothing => {}
            Request::Unknown => metrics.unknown_frames.add(1),
        }
    }

    fn carry(&mut self, now: Instant, from: NodePublic, to: NodePublic, packet: &[u8], hop: bool) {
        self.find(to, hop);
        let Some((_, _, _, target)) = &mut self.route else {
            return;
        };
        match target {
            Target::Local {
                id, outbox, noted, ..
            } => {
                // A mesh peer carries for many sources: each is its own pair.
                if hop || !*noted {
                    let departures = self.shared.departures();
                    if hop && departures != self.departures {
                        self.noted.clear();
                        self.departures = departures;
                    }
                    if self.noted.insert((from, *id)) {
                        let id = *id;
                        self.shared.change(|registry| {
                            registry.note_heard(from, id);
                            Vec::new()
                        });
                    }
                    *noted = true;
                }
                outbox
                    .queue()
                    .push_packet(now, &Frame::RecvPacket { from, packet });
                if self
                    .woken
                    .last()
                    .is_none_or(|last| !Arc::ptr_eq(last, outbox))
                {
                    self.woken.push(Arc::clone(outbox));
                }
            }
            Target::Mesh(link) => {
                self.shared.metrics.packets_forwarded_out.add(1);
                link.forward(now, from, to, packet);
            }
            Target::Nowhere => {
                self.shared.metrics.dropped_unknown.add(1);
                if looks_like_disco(packet) && self.connection.may_say_not_here(now) {
                    self.shared.metrics.peer_gone_not_here.add(1);
                    let reason = PeerGoneReason::NotHere;
                    self.outbox.control(&Frame::PeerGone { key: to, reason });
                }
            }
        }
    }

    /// Puts the route to `to` into `self.route`.
    fn find(&mut self, to: NodePublic, hop: bool) {
        let generation = self.shared.generation();
        if let Some((at, key, was_hop, target)) = &self.route
            && (*at, *key, *was_hop) == (generation, to, hop)
            && target.is_current()
        {
            return;
        }
        let registry = self.shared.read();
        let generation = registry.generation();
        let route = if hop {
            registry.route_local(&to)
        } else {
            registry.route(&to)
        };
        let target = match route {
            Route::Local { id, handle, turns } => Target::Local {
                id,
                outbox: Arc::clone(handle),
                noted: false,
                turns: (turns.clone(), turns.count()),
            },
            Route::Mesh { handle, .. } => Target::Mesh(handle.clone()),
            Route::Unknown => Target::Nowhere,
        };
        self.route = Some((generation, to, hop, target));
    }
}

async fn write<S: AsyncRead + AsyncWrite>(
    shared: Arc<Shared>,
    mut stream: WriteHalf<S>,
    outbox: Arc<Outbox>,
    stalled: Duration,
) {
    let ended = tokio::select! {
        ended = write_queue(&shared, &mut stream, &outbox, stalled) => ended,
        () = outbox.close.cancelled() => Ok(()),
    };
    if let Err(error) = &ended
        && error.kind() == io::ErrorKind::TimedOut
    {
        shared.metrics.write_timeouts.add(1);
    }
    outbox.close.cancel();
    let _ = timeout(Duration::from_secs(1), stream.shutdown()).await;
}

async fn write_queue<S: AsyncRead + AsyncWrite>(
    shared: &Shared,
    stream: &mut WriteHalf<S>,
    outbox: &Outbox,
    stalled: Duration,
) -> io::Result<()> {
    let mut keepalive = Keepalive::new(Instant::now(), &mut SystemEntropy);
    let mut bytes = Vec::new();
    let mut flushed = true;
    loop {
        let now = Instant::now();
        if keepalive.handle_timeout(now) {
            let mut queue = outbox.queue();
            shared.metrics.note_drops(&queue.take_drops());
            let _ = queue.push_control(&Frame::KeepAlive);
            queue.shrink();
            bytes.shrink_to(2048);
        }
        let some = outbox.queue().take(now, &mut bytes);
        if some {
            // A stalled receiver is noticed early, a very slow one in the end.
            let longest = stalled + Duration::from_secs((bytes.len() / SLOWEST_READER) as u64);
            timeout(longest, write_all_unless_stalled(stream, &bytes, stalled))
                .await
                .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
            shared.metrics.bytes_sent.add(bytes.len() as u64);
            flushed = false;
        } else if !flushed {
            // At the end of a burst, the TLS buffers hold at most a few records, but
            // the link may be slow.
            flush_unless_stalled(stream, stalled * 4).await?;
            flushed = true;
        } else {
            let deadline = tokio::time::Instant::from_std(keepalive.next_deadline());
            tokio::select! {
                () = outbox.wake.notified() => {}
                () = tokio::time::sleep_until(deadline) => {}
            }
        }
    }
}

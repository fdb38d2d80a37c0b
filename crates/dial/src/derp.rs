//! A connection to a relay, as tasks and sockets around `warren-derp`'s client.
//!
//! Used by a node for each region it sends to, and by a relay for each other
//! relay of its mesh.
//!
//! # Life of a connection
//!
//! [`connect`] tries the region's relays in order ([`dialing`]): TCP (IPv4 and
//! IPv6 raced), TLS, HTTP. If the TLS handshake has named the relay's key, the
//! login goes out in the same flight as the HTTP request and no response is
//! awaited; else the connection is upgraded in the usual way, and the relay's
//! first frame names the key. Either way [`connect`] returns once the login is
//! on its way, so packets may follow it at once; `Event::Connected` says that
//! it was taken, the end of the stream that it was not.
//!
//! From then on there are three parties:
//!
//! - any number of [`DerpSender`]s put frames into one queue, without waiting
//!   and from any thread;
//! - one task writes that queue out, with one write and one flush for all that
//!   has gathered ([`SendQueue`] decides which frames are dropped when the relay
//!   is slow);
//! - the one [`DerpReceiver`] hands out all that has come as a [`Batch`],
//!   packets mutable where they lie; while much comes, it looks less often
//!   ([`moderation`]).
//!
//! Dropping the receiver closes the connection. There is no reconnecting here:
//! the owner of the receiver decides.

mod dialing;
mod moderation;
mod websocket;

pub use dialing::{
    ConnectError, ConnectOptions, Family, NodeError, connect, connect_node, https_latency,
    is_plain_http,
};
pub use websocket::ByteStream as WebSocketBytes;

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use tokio::io::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadHalf, WriteHalf,
};
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use warren_derp::client::{self, Client, ClientConfig, ClientError, Event};
use warren_derp::{
    FrameBuffer, FrameTooLong, Frames, Limits, LoginError, OverLong, SendQueue, TokenBucket,
};
use warren_keys::NodePublic;
use warren_wire::derp::{Frame, HEADER_LEN, KEY_LEN};

use crate::SystemEntropy;

use moderation::Moderation;

/// How long a write to a relay may make no progress.
const STALLED: Duration = Duration::from_secs(10);
/// Packets of this length are worth waking for.
const LARGE_PACKET: usize = 4 * 1024;
/// Bytes read before they are handed out, if they are there already.
const BATCH_BYTES: usize = 64 * 1024;

/// Bytes both ways: TCP, TLS over it, or a WebSocket.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// The connection to the relay is over.
#[derive(Debug, thiserror::Error)]
pub enum RecvError {
    /// The relay closed it, or refused the login.
    #[error("the relay closed the connection")]
    Closed,
    /// The connection broke.
    #[error("the connection to the relay broke: {0}")]
    Broken(#[from] io::Error),
    /// The relay does not keep to the protocol.
    #[error(transparent)]
    Protocol(#[from] ClientError),
    /// A frame is longer than a relay may send.
    #[error(transparent)]
    TooLong(#[from] FrameTooLong),
}

struct Outgoing {
    queue: SendQueue,
    /// The rate limit that the relay asked for.
    bucket: Option<TokenBucket>,
    closed: bool,
}

struct Shared {
    outgoing: Mutex<Outgoing>,
    wake: Notify,
    local: Option<SocketAddr>,
    remote: Option<SocketAddr>,
}

impl Shared {
    fn outgoing(&self) -> MutexGuard<'_, Outgoing> {
        self.outgoing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) {
        self.outgoing().closed = true;
        self.wake.notify_one();
    }
}

/// Puts frames on their way to one relay. Clones share the connection.
#[derive(Clone)]
pub struct DerpSender {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for DerpSender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DerpSender")
            .field("remote", &self.shared.remote)
            .finish_non_exhaustive()
    }
}

impl DerpSender {
    /// Queues a packet; never waits. If the connection is over, or too much
    /// waits, packets get lost as they do in any network.
    pub fn send(&self, to: &NodePublic, packet: &[u8]) {
        self.send_many([(to, packet)]);
    }

    /// Queues packets that came together; they leave together.
    pub fn send_many<'a>(&self, packets: impl IntoIterator<Item = (&'a NodePublic, &'a [u8])>) {
        let now = Instant::now();
        let mut outgoing = self.shared.outgoing();
        if outgoing.closed {
            return;
        }
        for (to, packet) in packets {
            let bytes = (HEADER_LEN + KEY_LEN + packet.len()) as u64;
            if outgoing
                .bucket
                .as_mut()
                .is_none_or(|bucket| bucket.try_take(now, bytes))
            {
                outgoing
                    .queue
                    .push_packet(now, &Frame::SendPacket { to: *to, packet });
            }
        }
        drop(outgoing);
        self.shared.wake.notify_one();
    }

    /// Queues another relay's client's packet, as a relay of the mesh.
    pub fn forward(&self, now: Instant, from: NodePublic, to: NodePublic, packet: &[u8]) {
        let mut outgoing = self.shared.outgoing();
        if !outgoing.closed {
            outgoing
                .queue
                .push_packet(now, &Frame::ForwardPacket { from, to, packet });
        }
        drop(outgoing);
        self.shared.wake.notify_one();
    }

    /// Notifies the relay whether it is our home.
    pub fn note_home(&self, is_home: bool) {
        self.control(&Frame::NotePreferred(is_home));
    }

    /// Asks for an answer with the same bytes: `Event::Pong`.
    pub fn ping(&self, data: [u8; 8]) {
        self.control(&Frame::Ping(data));
    }

    /// Makes a relay of our mesh close a client's connections.
    pub fn close_peer(&self, key: NodePublic) {
        self.control(&Frame::ClosePeer(key));
    }

    /// Ends the connection; the receiver sees it closed.
    pub fn close(&self) {
        self.shared.close();
    }

    /// Whether the connection is over.
    pub fn is_closed(&self) -> bool {
        self.shared.outgoing().closed
    }

    /// Our side of the TCP connection, to see whether it still fits the
    /// default route.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.shared.local
    }

    /// The relay's side of the TCP connection.
    pub fn remote_addr(&self) -> Option<SocketAddr> {
        self.shared.remote
    }

    fn control(&self, frame: &Frame<'_>) {
        let mut outgoing = self.shared.outgoing();
        if !outgoing.closed && outgoing.queue.push_control(frame).is_err() {
            outgoing.closed = true;
        }
        drop(outgoing);
        self.shared.wake.notify_one();
    }
}

/// Hands out the messages of a relay. Dropping it closes the connection.
pub struct DerpReceiver {
    reading: ReadHalf<Box<dyn Stream>>,
    buffer: FrameBuffer,
    client: Client,
    shared: Arc<Shared>,
    failed: Option<ClientError>,
    moderation: Moderation,
    /// Small packets of the last batch, and whether there were no more.
    packets: usize,
    drained: bool,
    /// Until when the connection is left alone.
    pause: Option<tokio::time::Instant>,
    writer: AbortHandle,
}

impl std::fmt::Debug for DerpReceiver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DerpReceiver")
            .field("relay", &self.client.relay_key())
            .finish_non_exhaustive()
    }
}

impl DerpReceiver {
    /// The relay's key.
    pub fn relay_key(&self) -> Option<NodePublic> {
        self.client.relay_key()
    }

    /// Waits for frames and hands out all that came together. Pings are
    /// answered and keepalives noted on the way. Cancel safe.
    ///
    /// # Errors
    /// [`RecvError`]: the connection is over.
    pub async fn recv(&mut self) -> Result<Batch<'_>, RecvError> {
        self.answer();
        if let Some(error) = self.failed.take() {
            return Err(error.into());
        }
        if !self.buffer.is_ready() {
            self.moderate().await;
        }
        while !self.buffer.is_ready() {
            let deadline = tokio::time::Instant::from_std(self.client.next_deadline());
            let spare = self.buffer.spare();
            let n = match tokio::time::timeout_at(deadline, self.reading.read(spare)).await {
                Ok(read) => read?,
                Err(_) => {
                    self.client.handle_timeout(Instant::now())?;
                    continue;
                }
            };
            if n == 0 {
                return Err(RecvError::Closed);
            }
            self.buffer.filled(n);
            let mut taken = n;
            self.drained = false;
            // Frames that have arrived already are taken too.
            while taken < BATCH_BYTES {
                let spare = self.buffer.spare();
                // An error, or the end, will be there again.
                let Some(Ok(n @ 1..)) = self.reading.read(spare).now_or_never() else {
                    self.drained = true;
                    break;
                };
                self.buffer.filled(n);
                taken += n;
            }
            self.client.note_bytes(Instant::now());
        }
        let frames = self.buffer.frames()?;
        Ok(Batch {
            now: Instant::now(),
            packets: &mut self.packets,
            frames,
            client: &mut self.client,
            shared: &self.shared,
            failed: &mut self.failed,
        })
    }

    /// Lets more packets arrive, if many do. Cancel safe.
    async fn moderate(&mut self) {
        let packets = std::mem::take(&mut self.packets);
        if packets > 0 {
            let now = tokio::time::Instant::now();
            let pause = self.moderation.note(now.into_std(), packets);
            self.pause = pause.filter(|_| self.drained).map(|pause| now + pause);
        }
        if let Some(until) = self.pause {
            tokio::time::sleep_until(until).await;
            self.pause = None;
        }
    }

    fn answer(&mut self) {
        answer(&mut self.client, &self.shared);
    }
}

fn answer(client: &mut Client, shared: &Shared) {
    if client.has_output() {
        let mut frames = Vec::new();
        client.take_output(&mut frames);
        let mut outgoing = shared.outgoing();
        if outgoing.queue.push_control_bytes(&frames).is_err() {
            outgoing.closed = true;
        }
        drop(outgoing);
        shared.wake.notify_one();
    }
}

impl Drop for DerpReceiver {
    fn drop(&mut self) {
        self.shared.close();
        self.writer.abort();
    }
}

/// The events of one read, as an iterator.
pub struct Batch<'a> {
    now: Instant,
    frames: Frames<'a>,
    packets: &'a mut usize,
    client: &'a mut Client,
    shared: &'a Shared,
    failed: &'a mut Option<ClientError>,
}

impl<'a> Iterator for Batch<'a> {
    type Item = Event<'a>;

    fn next(&mut self) -> Option<Event<'a>> {
        while self.failed.is_none() {
            let Some(frame) = self.frames.next() else {
                break;
            };
            match self
                .client
                .handle_frame(self.now, frame, &mut SystemEntropy)
            {
                Ok(None) => {}
                Ok(Some(event)) => {
                    if let Event::Connected(info) = &event {
                        let rate = u64::try_from(info.bytes_per_second).unwrap_or(0);
                        let burst = u64::try_from(info.burst).unwrap_or(0);
                        if rate > 0 && burst > 0 {
                            let bucket = TokenBucket::new(self.now, rate, burst);
                            self.shared.outgoing().bucket = Some(bucket);
                        }
                    }
                    if let Event::Packet { packet, .. } = &event {
                        *self.packets += usize::from(packet.len() < LARGE_PACKET);
                    }
                    return Some(event);
                }
                Err(error) => *self.failed = Some(error),
            }
        }
        answer(self.client, self.shared);
        None
    }
}

/// Logs in over a stream on which DERP starts right away. `leftover` was read
/// off the stream already; with `relay_key` known nothing is awaited.
///
/// # Errors
/// [`RecvError`] when the login cannot even be sent.
pub async fn start(
    stream: Box<dyn Stream>,
    leftover: &[u8],
    config: ClientConfig,
    relay_key: Option<NodePublic>,
) -> Result<(DerpSender, DerpReceiver), RecvError> {
    start_at(
        stream,
        leftover,
        config,
        relay_key,
        Vec::new(),
        (None, None),
    )
    .await
}

/// As [`start`]; `head` goes out in front of the login, in the same write.
async fn start_at(
    stream: Box<dyn Stream>,
    leftover: &[u8],
    config: ClientConfig,
    relay_key: Option<NodePublic>,
    head: Vec<u8>,
    (local, remote): (Option<SocketAddr>, Option<SocketAddr>),
) -> Result<(DerpSender, DerpReceiver), RecvError> {
    let (mut reading, mut writing) = tokio::io::split(stream);
    let now = Instant::now();
    let limits = if config.mesh_key.is_some() {
        Limits::MESH
    } else {
        Limits::NODE
    };
    let mut buffer = FrameBuffer::new(client::MAX_PAYLOAD, OverLong::Fatal);
    buffer.push(leftover);
    let mut client = match relay_key {
        Some(key) => Client::fast_start(now, config, key, &mut SystemEntropy)
            .map_err(|error: LoginError| ClientError::from(error))?,
        None => Client::new(now, config),
    };
    while !client.has_logged_in() {
        if let Some(frame) = buffer.next_frame()? {
            client.handle_frame(now, frame, &mut SystemEntropy)?;
            continue;
        }
        let n = reading.read(buffer.spare()).await?;
        if n == 0 {
            return Err(RecvError::Closed);
        }
        buffer.filled(n);
    }
    let mut first = head;
    client.take_output(&mut first);
    writing.write_all(&first).await?;
    writing.flush().await?;
    let outgoing = Outgoing {
        queue: SendQueue::new(limits),
        bucket: None,
        closed: false,
    };
    let shared = Arc::new(Shared {
        outgoing: Mutex::new(outgoing),
        wake: Notify::new(),
        local,
        remote,
    });
    let writer = tokio::spawn(write(writing, Arc::clone(&shared))).abort_handle();
    let sender = DerpSender {
        shared: Arc::clone(&shared),
    };
    Ok((
        sender,
        DerpReceiver {
            reading,
            buffer,
            client,
            shared,
            failed: None,
            moderation: Moderation::new(now),
            packets: 0,
            drained: false,
            pause: None,
            writer,
        },
    ))
}

async fn write(mut stream: WriteHalf<Box<dyn Stream>>, shared: Arc<Shared>) {
    let mut bytes = Vec::new();
    let mut flushed = true;
    loop {
        let (some, closed) = {
            let mut outgoing = shared.outgoing();
            (
                outgoing.queue.take(Instant::now(), &mut bytes),
                outgoing.closed,
            )
        };
        let written = if closed {
            Err(io::ErrorKind::NotConnected.into())
        } else if some {
            flushed = false;
            write_all_unless_stalled(&mut stream, &bytes, STALLED).await
        } else if !flushed {
            flushed = true;
            flush_unless_stalled(&mut stream, STALLED * 4).await
        } else {
            shared.wake.notified().await;
            continue;
        };
        if let Err(error) = written {
            tracing::debug!(%error, "relay connection: writing ended");
            shared.close();
            // The other half sees the end of the stream.
            let _ = tokio::time::timeout(Duration::from_secs(1), stream.shutdown()).await;
            return;
        }
    }
}

/// Writes all of `bytes`; fails when nothing could be written for `stalled`.
///
/// # Errors
/// Those of the stream, and `TimedOut`.
pub async fn write_all_unless_stalled<W: AsyncWrite + Unpin>(
    stream: &mut W,
    mut bytes: &[u8],
    stalled: Duration,
) -> io::Result<()> {
    while !bytes.is_empty() {
        let n = tokio::time::timeout(stalled, stream.write(bytes))
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        if n == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        bytes = bytes.get(n..).unwrap_or_default();
    }
    Ok(())
}

/// Flushes; fails when that takes longer than `stalled`.
///
/// # Errors
/// Those of the stream, and `TimedOut`.
pub async fn flush_unless_stalled<W: AsyncWrite + Unpin>(
    stream: &mut W,
    stalled: Duration,
) -> io::Result<()> {
    tokio::time::timeout(stalled, stream.flush())
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

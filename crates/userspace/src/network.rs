//! The netstack behind a lock, with its packets and deadlines.

use std::collections::hash_map::Entry;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;
use tokio::sync::{Notify, mpsc};
use warren_dataplane::{GsoType, VNET_HDR_LEN, VnetHdr};
use warren_dial::SystemEntropy;
use warren_host::device::BatchEnd;
use warren_host::device::memory::MemoryHost;
use warren_netstack::{
    Checksum, ConnectionId, Counters, Event, FlowId, Limits, Netstack, OpenError, Transmit, Tuple,
};
use warren_wire::ip::Version;

use crate::host_end::{End, readable};
use crate::stream::{Flow, Stream};

/// Arrivals that may wait to be forwarded.
const WAITING_ARRIVALS: usize = 1024;
/// Frames that are taken in with one lock.
const FRAMES_PER_LOCK: usize = 32;
/// Where the checksum of TCP is behind the start of its header.
const TCP_CHECKSUM: u16 = 16;

/// The way of frames (virtio header and packet) out of the netstack.
pub trait Link: Send + Sync + 'static {
    /// Takes a frame.
    ///
    /// # Errors
    /// The frame, when there is no space for it now.
    fn send(&self, frame: Vec<u8>) -> Result<(), Vec<u8>>;
}

impl Link for MemoryHost {
    fn send(&self, frame: Vec<u8>) -> Result<(), Vec<u8>> {
        self.send_or_return(frame.into_boxed_slice())
            .map_err(<[u8]>::into_vec)
    }
}

impl<L: Link> Link for Arc<L> {
    fn send(&self, frame: Vec<u8>) -> Result<(), Vec<u8>> {
        (**self).send(frame)
    }
}

/// The properties of a [`Network`].
#[derive(Debug, Clone, Copy)]
pub struct NetworkOptions {
    /// The longest packet in bytes.
    pub mtu: u16,
    /// Limits of the netstack.
    pub limits: Limits,
}

/// The network inside the tunnel. Copies are handles on the same one.
#[derive(Clone)]
pub struct Network {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    link: Box<dyn Link>,
    /// A deadline came that is earlier than the one that [`Network::run`] waits for.
    earlier: Notify,
}

/// The wakers of a connection.
#[derive(Default)]
struct Wakers {
    reader: Option<Waker>,
    writer: Option<Waker>,
}

/// A notice for [`Arrivals`]. It holds no handle, so that it can be dropped under the
/// lock.
enum Notice {
    Connection(ConnectionId, Tuple),
    Flow(FlowId, Tuple),
    Echo(Vec<u8>),
}

/// The part that is behind the lock.
pub(crate) struct State {
    pub(crate) stack: Netstack,
    /// The frame that found no space.
    unsent: Option<Vec<u8>>,
    connections: FxHashMap<ConnectionId, Wakers>,
    flows: FxHashMap<FlowId, Option<Waker>>,
    notices: mpsc::Sender<Notice>,
    /// The deadline that the running task waits for.
    waits_for: Option<Instant>,
}

impl Network {
    /// A network whose frames leave through `link`. Frames come in by
    /// [`receive`](Self::receive), or by [`run`](Self::run).
    pub fn new(link: Box<dyn Link>, options: NetworkOptions) -> (Self, Arrivals) {
        let (notices, arrivals) = mpsc::channel(WAITING_ARRIVALS);
        let stack = Netstack::new(
            Instant::now(),
            options.mtu,
            VNET_HDR_LEN,
            options.limits,
            Box::new(SystemEntropy),
        );
        let state = State {
            stack,
            unsent: None,
            connections: FxHashMap::default(),
            flows: FxHashMap::default(),
            notices,
            waits_for: None,
        };
        let network = Self {
            shared: Arc::new(Shared {
                state: Mutex::new(state),
                link,
                earlier: Notify::new(),
            }),
        };
        let arrivals = Arrivals {
            network: network.clone(),
            notices: arrivals,
        };
        (network, arrivals)
    }

    /// Sets the addresses of this node.
    pub fn set_addresses(&self, addresses: impl IntoIterator<Item = IpAddr>) {
        self.with(|state, _| state.stack.set_addresses(addresses));
    }

    /// The counts of the netstack, and the number of its connections.
    pub fn counters(&self) -> (Counters, usize) {
        let state = self.lock();
        (state.stack.counters(), state.stack.connections())
    }

    /// Opens a connection from the address `local` of this node.
    ///
    /// # Errors
    /// When it is refused, not answered, or not possible.
    pub async fn connect(&self, local: IpAddr, remote: SocketAddr) -> io::Result<Stream> {
        let id = self.with(|state, now| {
            let id = state.stack.connect(now, local, remote)?;
            state.connections.insert(id, Wakers::default());
            Ok(id)
        });
        let stream = Stream::new(self.clone(), id.map_err(open_error)?);
        stream.opened().await?;
        Ok(stream)
    }

    /// Opens a UDP flow from `local`; port zero: any free one.
    ///
    /// # Errors
    /// When the port is in use, or there are too many flows.
    pub fn open_flow(&self, local: SocketAddr, remote: SocketAddr) -> io::Result<Flow> {
        let id = self.with(|state, now| {
            let id = state.stack.open_flow(now, local, remote)?;
            state.flows.insert(id, None);
            Ok(id)
        });
        Ok(Flow::new(self.clone(), id.map_err(open_error)?))
    }

    /// Answers an [echo request](Arrival::Echo).
    pub fn answer_echo(&self, request: Vec<u8>) {
        self.with(|state, _| state.stack.answer_echo(request));
    }

    /// Takes a packet with complete checksums.
    pub fn receive(&self, packet: &[u8]) {
        self.with(|state, now| state.stack.receive(now, packet, Checksum::Complete));
    }

    /// Keeps the deadlines until the future is dropped: for a network whose frames come
    /// in by [`receive`](Self::receive).
    pub async fn keep_time(self) {
        loop {
            self.next_deadline().await;
        }
    }

    /// Takes the frames of `host` and keeps the deadlines, until the future is dropped.
    /// `host` is the other end of the device that [`Link`] sends to.
    ///
    /// # Errors
    /// When the system has no descriptors left.
    pub async fn run(self, host: Arc<MemoryHost>) -> io::Result<()> {
        let frames = readable(End::Frames(Arc::clone(&host)))?;
        let space = readable(End::Space(Arc::clone(&host)))?;
        loop {
            tokio::select! {
                guard = frames.readable() => {
                    guard?.clear_ready();
                    while self.take_frames(&host) == BatchEnd::Stopped {
                        tokio::task::yield_now().await;
                    }
                }
                guard = space.readable() => {
                    guard?.clear_ready();
                    host.clear_space();
                    self.with(|_, _| {});
                }
                () = self.next_deadline() => {}
            }
        }
    }

    /// Takes some frames in, with one lock.
    fn take_frames(&self, host: &MemoryHost) -> BatchEnd {
        self.with(|state, now| {
            let mut taken = 0;
            host.receive_until(|written| {
                state.frame(now, &written.frame);
                taken += 1;
                if taken == FRAMES_PER_LOCK {
                    return ControlFlow::Break(());
                }
                ControlFlow::Continue(())
            })
        })
    }

    /// Waits for the next deadline and does what is due.
    async fn next_deadline(&self) {
        let deadline = {
            let mut state = self.lock();
            let deadline = state.stack.next_deadline().map(|(at, _)| at);
            state.waits_for = deadline;
            deadline
        };
        // Without a deadline, one in an hour is as good as none.
        let at = deadline.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
        tokio::select! {
            () = tokio::time::sleep_until(at.into()) => {
                self.with(|state, now| state.stack.handle_timeout(now));
            }
            () = self.shared.earlier.notified() => {}
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        let state = self.shared.state.lock();
        state.unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something with the netstack, and then what follows from it.
    pub(crate) fn with<R>(&self, work: impl FnOnce(&mut State, Instant) -> R) -> R {
        let mut state = self.lock();
        let now = Instant::now();
        let result = work(&mut state, now);
        state.follow(now, &*self.shared.link);
        let next = state.stack.next_deadline().map(|(at, _)| at);
        let is_earlier = match (next, state.waits_for) {
            (Some(next), Some(waits_for)) => next < waits_for,
            (Some(_), None) => true,
            (None, _) => false,
        };
        if is_earlier {
            state.waits_for = next;
            drop(state);
            self.shared.earlier.notify_one();
        }
        result
    }
}

impl State {
    /// Takes a frame of the packet threads.
    fn frame(&mut self, now: Instant, frame: &[u8]) {
        let Some((header, packet)) = VnetHdr::parse(frame) else {
            return;
        };
        // The packet path verifies what it joins.
        let checksum = if header.gso != GsoType::None || header.checksum.is_some() {
            Checksum::Verified
        } else {
            Checksum::Complete
        };
        self.stack.receive(now, packet, checksum);
    }

    /// Sends what there is to send and passes events on, until nothing is left.
    fn follow(&mut self, now: Instant, link: &dyn Link) {
        loop {
            while let Some(frame) = self.next_frame(now) {
                if let Err(frame) = link.send(frame) {
                    self.unsent = Some(frame);
                    break;
                }
            }
            let mut had_events = false;
            while let Some(event) = self.stack.poll_event() {
                had_events = true;
                self.event(event);
            }
            if !had_events || self.unsent.is_some() {
                return;
            }
        }
    }

    fn next_frame(&mut self, now: Instant) -> Option<Vec<u8>> {
        if let Some(frame) = self.unsent.take() {
            return Some(frame);
        }
        self.stack.poll_transmit(now).map(with_header)
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Connection {
                id,
                readable,
                writable,
            } => {
                if let Some(wakers) = self.connections.get_mut(&id) {
                    if readable && let Some(reader) = wakers.reader.take() {
                        reader.wake();
                    }
                    if writable && let Some(writer) = wakers.writer.take() {
                        writer.wake();
                    }
                }
            }
            Event::Flow(id) => {
                if let Some(waker) = self.flows.get_mut(&id).and_then(Option::take) {
                    waker.wake();
                }
            }
            Event::Incoming { id, tuple } => {
                if self
                    .notices
                    .try_send(Notice::Connection(id, tuple))
                    .is_err()
                {
                    self.stack.refuse(id);
                }
            }
            Event::IncomingFlow { id, tuple } => {
                self.flows.insert(id, None);
                if self.notices.try_send(Notice::Flow(id, tuple)).is_err() {
                    self.flows.remove(&id);
                    self.stack.close_flow(id);
                }
            }
            Event::Echo(request) => {
                // One too many is lost, as on any network.
                let _ = self.notices.try_send(Notice::Echo(request));
            }
        }
    }

    pub(crate) fn wake_when_readable(&mut self, id: ConnectionId, waker: &Waker) {
        if let Entry::Occupied(mut wakers) = self.connections.entry(id) {
            wakers.get_mut().reader = Some(waker.clone());
        }
    }

    pub(crate) fn wake_when_writable(&mut self, id: ConnectionId, waker: &Waker) {
        if let Entry::Occupied(mut wakers) = self.connections.entry(id) {
            wakers.get_mut().writer = Some(waker.clone());
        }
    }

    pub(crate) fn wake_for_datagram(&mut self, id: FlowId, waker: &Waker) {
        if let Entry::Occupied(mut place) = self.flows.entry(id) {
            place.insert(Some(waker.clone()));
        }
    }

    pub(crate) fn forget(&mut self, id: ConnectionId) {
        self.connections.remove(&id);
    }

    pub(crate) fn forget_flow(&mut self, id: FlowId) {
        self.flows.remove(&id);
    }
}

/// The frame of a packet: the virtio header in its place in front.
fn with_header(sent: Transmit) -> Vec<u8> {
    let Transmit {
        mut frame,
        segment_len,
    } = sent;
    let Some(segment_len) = segment_len else {
        // All zero already: an ordinary packet.
        return frame;
    };
    let packet = frame.get(VNET_HDR_LEN..).unwrap_or_default();
    let Ok(parsed) = warren_wire::ip::Parsed::parse(packet) else {
        return frame;
    };
    // Both fit: headers are short.
    let start = parsed.transport_offset as u16;
    let tcp_len = packet
        .get(parsed.transport_offset + 12)
        .map_or(20, |byte| u16::from(byte >> 4) * 4);
    let header = VnetHdr {
        checksum: Some((start, TCP_CHECKSUM)),
        gso: match parsed.version {
            Version::V4 => GsoType::TcpV4,
            Version::V6 => GsoType::TcpV6,
        },
        gso_size: segment_len,
        hdr_len: start + tcp_len,
    };
    if let Some(place) = frame.first_chunk_mut() {
        *place = header.to_bytes();
    }
    frame
}

fn open_error(error: OpenError) -> io::Error {
    let kind = match error {
        OpenError::TooMany => io::ErrorKind::QuotaExceeded,
        OpenError::PortInUse => io::ErrorKind::AddrInUse,
        OpenError::Unusable => io::ErrorKind::AddrNotAvailable,
    };
    io::Error::new(kind, error)
}

/// The connections, flows and echo requests that peers send.
pub struct Arrivals {
    network: Network,
    notices: mpsc::Receiver<Notice>,
}

/// Something that a peer sent to an address of this node, or behind it.
pub enum Arrival {
    /// A connection that waits to be accepted.
    Connection(Incoming),
    /// A UDP flow with its first datagram.
    Flow(IncomingFlow),
    /// An echo request, as an IP packet, to an address that is not this node's.
    Echo(Vec<u8>),
}

impl Arrivals {
    /// The next one.
    pub async fn next(&mut self) -> Option<Arrival> {
        let network = self.network.clone();
        Some(match self.notices.recv().await? {
            Notice::Connection(id, tuple) => Arrival::Connection(Incoming {
                network,
                id,
                tuple,
                is_decided: false,
            }),
            Notice::Flow(id, tuple) => Arrival::Flow(IncomingFlow {
                flow: Flow::new(network, id),
                tuple,
            }),
            Notice::Echo(request) => Arrival::Echo(request),
        })
    }
}

/// A connection that waits to be accepted. Dropping it refuses it.
pub struct Incoming {
    network: Network,
    id: ConnectionId,
    tuple: Tuple,
    is_decided: bool,
}

impl Incoming {
    /// Both ends.
    pub fn tuple(&self) -> Tuple {
        self.tuple
    }

    /// Accepts it.
    ///
    /// # Errors
    /// When it was withdrawn, or a limit is reached.
    pub fn accept(mut self) -> io::Result<Stream> {
        self.is_decided = true;
        let accepted = self.network.with(|state, now| {
            state.stack.accept(now, self.id)?;
            state.connections.insert(self.id, Wakers::default());
            Ok(())
        });
        accepted.map_err(crate::stream::error)?;
        Ok(Stream::new(self.network.clone(), self.id))
    }

    /// Drops it without an answer.
    pub fn ignore(mut self) {
        self.is_decided = true;
        self.network.with(|state, _| state.stack.ignore(self.id));
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if !self.is_decided {
            self.network.with(|state, _| state.stack.refuse(self.id));
        }
    }
}

/// A UDP flow of a peer.
pub struct IncomingFlow {
    /// The flow.
    pub flow: Flow,
    /// Both ends.
    pub tuple: Tuple,
}

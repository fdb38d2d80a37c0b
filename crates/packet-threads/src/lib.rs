//! The threads that move packets, and the hand-overs to and from them.
//!
//! ```text
//!   device ──read──▶ [ out threads: an Outbound each ] ──▶ UDP sockets, relay ports
//!   UDP sockets, relay inbox ──▶ [ in threads: one Inbound ] ──write──▶ device
//! ```
//!
//! [`PacketThreads`] runs them over a TUN device, or over a device in memory
//! ([`Device`] is what they need of either). On a small machine there is one thread
//! for each direction. Where there are more processors ([`ThreadCounts`]), several
//! share a direction without changing the order within a flow: those that send have a
//! queue of the device each ([`queues`], [`outward`]), those that receive take turns
//! ([`pipeline`], [`inward`]).
//!
//! Decisions of the engine reach the threads as a new [`View`] and, rarely, as an
//! [`OutCommand`]; a waker ends their sleep in `poll(2)`. The threads report to an
//! [`EngineSink`]. Nothing of that happens per packet.
//!
//! **Compiled for speed.** The loops are generic over the device and instantiated here,
//! so that the whole path of a packet, with the crates below, is compiled in crates
//! with optimisation level 3. The public interface has nothing generic: the crates
//! above are compiled for size.
//!
//! **Limits.** It decides nothing about peers, paths or sessions, and opens no
//! connections: it moves packets as the view prescribes.

mod count;
mod inward;
mod outward;
mod pipeline;
mod queues;
mod receiver;
mod relayed;
mod search_sockets;
mod sync;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;

use arc_swap::{ArcSwap, Guard};
use warren_dataplane::{Drops, ServiceId, TunWrite, View};
use warren_host::device::Device;
use warren_host::device::memory::MemoryDevice;
use warren_host::tun::TunDevice;
use warren_host::udp::UdpPair;
use warren_host::wake::Waker;
use warren_keys::{DiscoPublic, NodePublic};
use warren_node_types::{RegionId, SearchSocket};
use warren_tunnel::{PeerIndex, Source};

pub use self::count::{BadThreads, ThreadCounts};
pub use self::relayed::{RelayFeed, RelayInbox, RelayPorts, RelayedPackets, relay_queue};

use self::inward::Inward;
use self::outward::Outward;
use self::queues::Queues;
use self::search_sockets::{KeptSockets, Search};

/// Answers of our own (errors, pongs) that may wait for the out thread. Peers
/// decide how many there are: more are dropped.
const WAITING_ANSWERS: usize = 1024;

/// A packet of our own, and the peer that gets it.
type OwnPacket = (PeerIndex, Vec<u8>);

/// Receives what the packet threads find out. It is called by several threads and must
/// not block. None of the calls is made for packets that just pass.
pub trait EngineSink: Send + Sync {
    /// A datagram without tunnel data: STUN, disco or a handshake. Returns whether it
    /// was taken; unauthenticated senders control the rate.
    fn control(&self, from: Source, datagram: &[u8]) -> bool;

    /// A datagram at a socket of a port search. Unauthenticated senders control the rate.
    fn search_datagram(&self, socket: SearchSocket, from: SocketAddr, datagram: &[u8]);

    /// The first packet authenticated on the session with this local index.
    fn session_confirmed(&self, local_index: u32);

    /// Authenticated traffic of the peer came from `from`.
    fn received_from(&self, peer: PeerIndex, from: Source);

    /// A session with the peer is needed, or should be renewed.
    fn need_session(&self, peer: PeerIndex);

    /// A peer answered the TSMP ping that carried `data`.
    fn tsmp_pong(&self, data: [u8; 8]);

    /// The peer reported its current disco key.
    fn disco_advertised(&self, peer: PeerIndex, key: DiscoPublic);

    /// A packet for a relay whose connection is not open. Returns whether it was taken.
    fn unconnected_relay(&self, region: RegionId, to: NodePublic, packet: &[u8]) -> bool;

    /// A packet for a service of this process. Returns whether it was taken.
    fn deliver(&self, service: ServiceId, packet: &[u8]) -> bool;
}

/// An order for the out threads.
#[derive(Debug)]
pub enum OutCommand {
    /// Send an empty packet.
    Keepalive(PeerIndex),
    /// Send a packet that the node itself made.
    Inject(PeerIndex, Vec<u8>),
    /// Throw away the packets that wait for a session.
    DropStaged(PeerIndex),
}

/// The settings with which the threads start.
pub struct Config {
    /// The number of in threads. There is an out thread for each queue of the device.
    pub inward: usize,
    /// The sockets for direct paths.
    pub sockets: UdpPair,
    /// The first view.
    pub view: Arc<View>,
    /// The receiver of reports.
    pub engine: Arc<dyn EngineSink>,
    /// The open connections to relays.
    pub relay_ports: Arc<RelayPorts>,
    /// The tunnel data that relays deliver.
    pub relay_inbox: RelayInbox,
    /// A device of services in this process beside the one of the host: its packets are
    /// sent like those of the host. Services get theirs by [`EngineSink::deliver`].
    pub services: Option<Arc<MemoryDevice>>,
}

/// The state that the threads share with each other and with [`PacketThreads`].
struct Shared {
    /// Replaced when sockets are bound again.
    sockets: ArcSwap<UdpPair>,
    /// The sockets for paths that a port search found.
    kept: ArcSwap<KeptSockets>,
    /// The view that the engine published last.
    view: ArcSwap<View>,
    drops: Arc<Drops>,
    /// Datagrams and frames that the system refused.
    send_failures: AtomicU64,
    engine: Arc<dyn EngineSink>,
    relay_ports: Arc<RelayPorts>,
    /// Each wakes the out thread of a queue.
    out_wakers: Box<[Waker]>,
    /// Wakes the in thread that receives.
    in_waker: Arc<Waker>,
    stop: AtomicBool,
}

impl Shared {
    fn wake_all(&self) {
        self.out_wakers.iter().for_each(Waker::wake);
        self.in_waker.wake();
    }

    /// Wakes the out thread that takes orders and answers.
    fn wake_first_out(&self) {
        if let Some(waker) = self.out_wakers.first() {
            waker.wake();
        }
    }

    fn count_send_failure(&self) {
        self.send_failures.fetch_add(1, Ordering::Relaxed);
    }
}

/// Writes one frame to the device, of whatever kind it is.
type WriteFrame = dyn Fn(&[u8]) -> TunWrite + Send + Sync;

/// Writes frames to the device of the packet threads, from any thread.
#[derive(Clone)]
pub struct FrameWriter(Arc<WriteFrame>);

impl FrameWriter {
    fn new<D: Device>(queues: Arc<Queues<D>>, shared: Arc<Shared>) -> Self {
        Self(Arc::new(move |frame| queues.write(&shared, frame)))
    }

    /// Writes a frame: virtio header and IP packet.
    pub fn write(&self, frame: &[u8]) -> TunWrite {
        (self.0)(frame)
    }
}

/// The running threads. Dropping it stops them.
pub struct PacketThreads {
    shared: Arc<Shared>,
    writer: FrameWriter,
    /// To each out thread.
    commands: Vec<mpsc::Sender<OutCommand>>,
    threads: Vec<JoinHandle<()>>,
    /// The port search that runs.
    search: Option<Search>,
}

impl PacketThreads {
    /// Starts the threads over a TUN device.
    ///
    /// # Errors
    /// When the system gives no more threads or descriptors; those that run are stopped.
    pub fn over_tun(device: TunDevice, config: Config) -> io::Result<Self> {
        Self::start(device, config)
    }

    /// Starts the threads over a device in memory.
    ///
    /// # Errors
    /// As [`over_tun`](Self::over_tun).
    pub fn over_memory(device: MemoryDevice, config: Config) -> io::Result<Self> {
        Self::start(device, config)
    }

    fn start<D: Device>(device: D, config: Config) -> io::Result<Self> {
        let out_wakers: io::Result<_> = (0..device.queues()).map(|_| Waker::new()).collect();
        let shared = Arc::new(Shared {
            sockets: ArcSwap::from_pointee(config.sockets),
            kept: ArcSwap::default(),
            view: ArcSwap::new(config.view),
            drops: Arc::new(Drops::new()),
            send_failures: AtomicU64::new(0),
            engine: config.engine,
            relay_ports: config.relay_ports,
            out_wakers: out_wakers?,
            in_waker: Arc::clone(&config.relay_inbox.waker),
            stop: AtomicBool::new(false),
        });
        let queues = Arc::new(Queues::new(device));
        let device = queues.device();
        tracing::debug!(
            out = device.queues(),
            inward = config.inward,
            mtu = device.mtu().unwrap_or_default(),
            offloads = ?device.offloads(),
            "packet threads"
        );
        let mut threads = Self {
            writer: FrameWriter::new(Arc::clone(&queues), Arc::clone(&shared)),
            shared: Arc::clone(&shared),
            commands: Vec::new(),
            threads: Vec::new(),
            search: None,
        };
        let (answers, to_answer) = mpsc::sync_channel(WAITING_ANSWERS);
        let mut to_answer = Some(to_answer);
        let count = device.queues();
        for queue in 0..count {
            let (commands, orders) = mpsc::channel();
            let outward = Outward {
                shared: Arc::clone(&shared),
                queues: Arc::clone(&queues),
                orders,
                to_answer: to_answer.take(),
                services: config.services.clone().filter(|_| queue == 0),
                queue,
            };
            threads.commands.push(commands);
            threads.spawn(count::name("out", queue, count), move || outward.run())?;
        }
        let pipeline = inward::pipeline(
            config.inward,
            &shared,
            device.offloads(),
            config.relay_inbox,
        );
        let pipeline = Arc::new(pipeline);
        for i in 0..config.inward {
            let inward = Inward {
                shared: Arc::clone(&shared),
                queues: Arc::clone(&queues),
                answers: answers.clone(),
                pipeline: Arc::clone(&pipeline),
            };
            threads.spawn(count::name("in", i, config.inward), move || inward.run())?;
        }
        Ok(threads)
    }

    fn spawn(&mut self, name: String, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let thread = std::thread::Builder::new().name(name).spawn(run)?;
        self.threads.push(thread);
        Ok(())
    }

    /// Lets the threads go on with this view.
    pub fn publish(&self, view: Arc<View>) {
        self.shared.view.store(view);
        self.shared.wake_all();
    }

    /// Gives an order to the out thread that it concerns.
    pub fn order(&self, command: OutCommand) {
        // The threads end when this is dropped, so a failed send cannot happen.
        match command {
            // Each thread has waiting packets of its own.
            OutCommand::DropStaged(peer) => {
                for (commands, waker) in self.commands.iter().zip(&self.shared.out_wakers) {
                    drop(commands.send(OutCommand::DropStaged(peer)));
                    waker.wake();
                }
            }
            OutCommand::Keepalive(_) | OutCommand::Inject(..) => {
                if let Some(first) = self.commands.first() {
                    drop(first.send(command));
                    self.shared.wake_first_out();
                }
            }
        }
    }

    /// Sends one datagram that is not tunnel data. When the system refuses it, it is
    /// lost as on any network.
    pub fn send_udp(&self, to: SocketAddr, datagram: &[u8]) {
        let sockets = self.shared.sockets.load();
        let kept = self.shared.kept.load();
        let kept = kept.get(to).map(|socket| &**socket);
        let Some(socket) = kept.or_else(|| sockets.for_destination(to)) else {
            return;
        };
        if let Err(error) = socket.send_to(to, datagram) {
            self.shared.count_send_failure();
            tracing::trace!(%to, %error, "datagram not sent");
        }
    }

    /// Writes frames to the device.
    #[must_use]
    pub fn frame_writer(&self) -> FrameWriter {
        self.writer.clone()
    }

    /// The sockets in use.
    #[must_use]
    pub fn sockets(&self) -> Guard<Arc<UdpPair>> {
        self.shared.sockets.load()
    }

    /// Lets the threads go on with these sockets.
    pub fn replace_sockets(&self, sockets: UdpPair) {
        self.shared.sockets.store(Arc::new(sockets));
        self.shared.in_waker.wake();
    }

    /// The packets that were dropped, by reason.
    #[must_use]
    pub fn drops(&self) -> &Drops {
        &self.shared.drops
    }

    /// The number of datagrams and frames that the system refused.
    #[must_use]
    pub fn send_failures(&self) -> u64 {
        self.shared.send_failures.load(Ordering::Relaxed)
    }
}

impl Drop for PacketThreads {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.wake_all();
        for thread in self.threads.drain(..) {
            drop(thread.join());
        }
    }
}

//! The threads that move packets, and the hand-overs to and from them.
//!
//! ```text
//!   TUN ──read──▶ [ out threads: an Outbound each ] ──▶ UDP sockets, relay ports
//!   UDP sockets, relay inbox ──▶ [ in threads: one Inbound ] ──write──▶ TUN
//! ```
//!
//! On a small machine there is one thread for each direction. Where there are
//! more processors ([`threads`]), several share a direction without changing
//! the order within a flow: those that send have a queue of the TUN device
//! each ([`queues`], [`outward`]), those that receive take turns ([`turns`],
//! [`inward`]).
//!
//! What the engine decides reaches the threads as a new [`View`] and, rarely,
//! as an [`OutCommand`]; a waker ends their sleep in `poll(2)`. What they find
//! out reaches the engine as messages. Nothing of that happens per packet.

mod inward;
mod outward;
mod queues;
mod threads;
mod turns;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;

use arc_swap::ArcSwap;
use rustix::io::Errno;
use tokio::sync::mpsc::Sender as AsyncSender;
use warren_dataplane::{Drops, GsoType, TunWrite, View, VnetHdr};
use warren_host::udp::UdpPair;
use warren_host::wake::Waker;
use warren_tunnel::PeerIndex;

use self::inward::Inward;
use self::outward::Outward;
pub use self::queues::Queues;
pub use self::threads::{BadThreads, Threads};
use super::Inbox;
use super::relays::{RelayInbox, RelayPorts};

/// Answers of our own (errors, pongs) that may wait for the out thread. Peers
/// decide how many there are: more are dropped.
const WAITING_ANSWERS: usize = 1024;

/// An answer of our own, and for whom.
type Answer = (PeerIndex, Vec<u8>);

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

/// What the threads share with the rest of the daemon.
pub struct Shared {
    /// The tunnel device.
    pub tun: Queues,
    /// The sockets; replaced when they are bound anew.
    pub sockets: ArcSwap<UdpPair>,
    /// The picture that the engine publishes.
    pub view: ArcSwap<View>,
    /// What went nowhere, by reason.
    pub drops: Arc<Drops>,
    /// Datagrams that the system refused to send.
    pub send_failures: std::sync::atomic::AtomicU64,
    /// Counters of MagicDNS.
    pub dns: super::magic_dns::DnsCounters,
    /// Each wakes the out thread of a queue.
    out_wakers: Box<[Waker]>,
    /// Wakes the in thread that receives.
    pub in_waker: Arc<Waker>,
    stop: AtomicBool,
}

impl Shared {
    /// Everything the threads start with.
    ///
    /// # Errors
    /// When the system has no descriptors left.
    pub fn new(tun: Queues, sockets: UdpPair, view: Arc<View>) -> io::Result<Self> {
        let out_wakers: io::Result<_> = (0..tun.count()).map(|_| Waker::new()).collect();
        Ok(Self {
            tun,
            sockets: ArcSwap::from_pointee(sockets),
            view: ArcSwap::new(view),
            drops: Arc::new(Drops::new()),
            send_failures: std::sync::atomic::AtomicU64::new(0),
            dns: super::magic_dns::DnsCounters::default(),
            out_wakers: out_wakers?,
            in_waker: Arc::new(Waker::new()?),
            stop: AtomicBool::new(false),
        })
    }

    /// Lets the threads go on with this view.
    pub fn publish(&self, view: Arc<View>) {
        self.view.store(view);
        self.wake_all();
    }

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

    /// Writes a frame to the tunnel device, from any thread.
    pub fn write_tun(&self, frame: &[u8]) -> TunWrite {
        let Err(error) = self.tun.write(frame) else {
            return TunWrite::Taken;
        };
        // EIO while the device is down, EINVAL for what the kernel cannot
        // parse: that packet is lost, the next may not be.
        let errno = Errno::from_io_error(&error);
        let refused = matches!(errno, Some(Errno::INVAL | Errno::IO));
        let comes_again =
            refused && VnetHdr::parse(frame).is_some_and(|(vnet, _)| vnet.gso != GsoType::None);
        if !comes_again {
            self.send_failures.fetch_add(1, Ordering::Relaxed);
        }
        tracing::trace!(%error, "cannot write to the tunnel device");
        if refused {
            TunWrite::Refused
        } else {
            TunWrite::Lost
        }
    }

    /// Sends one datagram, from any thread. Losing one is what networks do.
    pub fn send_udp(&self, to: SocketAddr, datagram: &[u8]) {
        let sockets = self.sockets.load();
        let Some(socket) = sockets.for_destination(to) else {
            return;
        };
        if let Err(error) = socket.send_to(to, datagram) {
            self.send_failures.fetch_add(1, Ordering::Relaxed);
            tracing::trace!(%to, %error, "datagram not sent");
        }
    }
}

/// The running threads. Dropping it stops them.
pub struct Pump {
    shared: Arc<Shared>,
    /// To each out thread.
    commands: Vec<mpsc::Sender<OutCommand>>,
    threads: Vec<JoinHandle<()>>,
}

impl Pump {
    /// Starts the threads: one out thread for each queue of the TUN device,
    /// and `inward` in threads.
    ///
    /// # Errors
    /// When the system gives no more threads; those that run are stopped.
    pub fn start(
        shared: Arc<Shared>,
        inward: usize,
        engine: Inbox,
        dns: AsyncSender<Vec<u8>>,
        ports: Arc<RelayPorts>,
        inbox: RelayInbox,
    ) -> io::Result<Self> {
        let mut pump = Self {
            shared: Arc::clone(&shared),
            commands: Vec::new(),
            threads: Vec::new(),
        };
        let (answers, to_answer) = mpsc::sync_channel(WAITING_ANSWERS);
        let mut to_answer = Some(to_answer);
        let queues = shared.tun.count();
        for queue in 0..queues {
            let (commands, orders) = mpsc::channel();
            let out = Outward {
                shared: Arc::clone(&shared),
                engine: engine.clone(),
                dns: dns.clone(),
                ports: Arc::clone(&ports),
                orders,
                to_answer: to_answer.take(),
                queue,
            };
            pump.commands.push(commands);
            pump.spawn(threads::name("out", queue, queues), move || out.run())?;
        }
        let turns = Arc::new(inward::turns(inward, &shared, inbox));
        for i in 0..inward {
            let inward_thread = Inward {
                shared: Arc::clone(&shared),
                engine: engine.clone(),
                answers: answers.clone(),
                turns: Arc::clone(&turns),
            };
            pump.spawn(threads::name("in", i, inward), move || inward_thread.run())?;
        }
        tracing::debug!(out = queues, inward, "packet threads");
        Ok(pump)
    }

    fn spawn(&mut self, name: String, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let thread = std::thread::Builder::new().name(name).spawn(run)?;
        self.threads.push(thread);
        Ok(())
    }

    /// Gives an order to the out thread that it concerns.
    pub fn order(&self, command: OutCommand) {
        // The threads end after everybody who could order something.
        match command {
            // Each has packets of its own that wait.
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
}

impl Drop for Pump {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.wake_all();
        for thread in self.threads.drain(..) {
            drop(thread.join());
        }
    }
}

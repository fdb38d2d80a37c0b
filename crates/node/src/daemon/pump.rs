//! The two threads that move packets, and the hand-overs to and from them.
//!
//! ```text
//!   TUN ──read──▶ [ out thread: Outbound ] ──▶ UDP sockets, relay ports
//!   UDP sockets, relay inbox ──▶ [ in thread: Inbound ] ──write──▶ TUN
//! ```
//!
//! Each thread owns its half of the data plane and sleeps in `poll(2)`. What
//! the engine decides reaches them as a new [`View`] and, rarely, as an
//! [`OutCommand`]; a waker ends their sleep. What they find out reaches the
//! engine as [`Message`]s. Nothing of that happens per packet.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::sync::mpsc::Sender as AsyncSender;
use warren_host::poll::{Watch, wait};
use warren_host::tun::Tun;
use warren_host::udp::{Datagrams, RecvBatch, UdpPair, UdpSocket};
use warren_host::wake::Waker;
use warren_keys::DiscoPublic;
use warren_node_core::dataplane::{
    DropReason, Drops, InSink, Inbound, InboundOffloads, OutSink, Outbound, RelaySend, UdpSend,
    View,
};
use warren_tunnel::{PeerIndex, Source};

use super::relays::{RelayInbox, RelayPorts};
use super::{Inbox, Message};

/// TUN reads before what they gave is sent: enough to fill the send buffer,
/// few enough that the first does not wait long.
const READS_PER_FLUSH: usize = 16;
/// Messages taken from a socket at once.
const RECEIVE_BATCH: usize = 16;
/// Relay batches taken before the sockets are looked at again.
const RELAY_BATCHES_PER_ROUND: usize = 16;
/// Answers of our own (errors, pongs) that may wait for the out thread. Peers
/// decide how many there are: more are dropped.
const WAITING_ANSWERS: usize = 1024;
/// Largest frame of the TUN device: virtio header and 64 KiB.
const TUN_FRAME: usize = 10 + 65_536;
/// How long a full socket is waited for before packets are dropped: about as
/// long as a queue of the kernel holds.
const FULL_SOCKET: Duration = Duration::from_millis(20);

/// An order for the out thread.
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
    pub tun: Tun,
    /// The sockets; replaced when they are bound anew.
    pub sockets: ArcSwap<UdpPair>,
    /// The picture that the engine publishes.
    pub view: ArcSwap<View>,
    /// What went nowhere, by reason.
    pub drops: Arc<Drops>,
    /// Datagrams that the system refused to send.
    pub send_failures: std::sync::atomic::AtomicU64,
    /// Wakes the out thread.
    pub out_waker: Arc<Waker>,
    /// Wakes the in thread.
    pub in_waker: Arc<Waker>,
    stop: AtomicBool,
}

impl Shared {
    /// Everything the threads start with.
    ///
    /// # Errors
    /// When the system has no descriptors left.
    pub fn new(tun: Tun, sockets: UdpPair, view: Arc<View>) -> io::Result<Self> {
        Ok(Self {
            tun,
            sockets: ArcSwap::from_pointee(sockets),
            view: ArcSwap::new(view),
            drops: Arc::new(Drops::new()),
            send_failures: std::sync::atomic::AtomicU64::new(0),
            out_waker: Arc::new(Waker::new()?),
            in_waker: Arc::new(Waker::new()?),
            stop: AtomicBool::new(false),
        })
    }

    /// Lets the threads go on with this view.
    pub fn publish(&self, view: Arc<View>) {
        self.view.store(view);
        self.out_waker.wake();
        self.in_waker.wake();
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
    commands: mpsc::Sender<OutCommand>,
    threads: Vec<JoinHandle<()>>,
}

impl Pump {
    /// Starts both threads.
    ///
    /// # Errors
    /// When the system gives no more threads.
    pub fn start(
        shared: Arc<Shared>,
        engine: Inbox,
        dns: AsyncSender<Vec<u8>>,
        ports: Arc<RelayPorts>,
        inbox: RelayInbox,
    ) -> io::Result<Self> {
        let (commands, orders) = mpsc::channel();
        let (answers, to_answer) = mpsc::sync_channel(WAITING_ANSWERS);
        let thread = |name: &str| std::thread::Builder::new().name(name.to_owned());
        let out = {
            let (shared, engine) = (Arc::clone(&shared), engine.clone());
            thread("warren-out")
                .spawn(move || run_out(&shared, &engine, &dns, &ports, &orders, &to_answer))?
        };
        let inward = {
            let shared = Arc::clone(&shared);
            thread("warren-in").spawn(move || run_in(&shared, &engine, answers, inbox))?
        };
        Ok(Self {
            shared,
            commands,
            threads: vec![out, inward],
        })
    }

    /// Gives an order to the out thread.
    pub fn order(&self, command: OutCommand) {
        // The thread ends after everybody who could order something.
        drop(self.commands.send(command));
        self.shared.out_waker.wake();
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.out_waker.wake();
        self.shared.in_waker.wake();
        for thread in self.threads.drain(..) {
            drop(thread.join());
        }
    }
}

struct OutSide<'a> {
    shared: &'a Shared,
    engine: &'a Inbox,
    dns: &'a AsyncSender<Vec<u8>>,
    ports: &'a RelayPorts,
}

impl OutSink for OutSide<'_> {
    fn udp(&mut self, sends: &[UdpSend], buffer: &[u8]) {
        let sockets = self.shared.sockets.load();
        // Runs of one family keep their order; the two have different sockets.
        for v4 in [true, false] {
            let Some(socket) = (if v4 { &sockets.v4 } else { &sockets.v6 }) else {
                continue;
            };
            let mut batch = [Datagrams {
                to: ANYWHERE,
                payload: &[],
                segment_len: 0,
            }; 64];
            let mut filled = 0;
            for send in sends.iter().filter(|send| send.to.is_ipv4() == v4) {
                let payload = buffer.get(send.range.clone()).unwrap_or_default();
                batch[filled] = Datagrams {
                    to: send.to,
                    payload,
                    segment_len: send.segment_len,
                };
                filled += 1;
                if filled == batch.len() {
                    self.send(socket, &batch);
                    filled = 0;
                }
            }
            self.send(socket, &batch[..filled]);
        }
    }

    fn relay(&mut self, sends: &[RelaySend], buffer: &[u8]) {
        let ports = self.ports.load();
        for send in sends {
            let datagrams = send.datagrams(buffer);
            if let Some(port) = ports.get(&send.region) {
                port.send_many(datagrams.map(|datagram| (&send.to, datagram)));
                continue;
            }
            // Not connected yet: the engine's task opens the connection, and
            // the packets wait there.
            for datagram in datagrams {
                let taken = self.engine.offer(Message::RelayData {
                    region: send.region,
                    to: send.to,
                    packet: datagram.to_vec(),
                });
                if !taken {
                    self.shared.drops.count(DropReason::Overrun);
                }
            }
        }
    }

    fn need_session(&mut self, peer: PeerIndex) {
        self.engine.tell(Message::NeedSession(peer));
    }

    fn local(&mut self, packet: &[u8]) {
        if self.dns.try_send(packet.to_vec()).is_err() {
            self.shared.drops.count(DropReason::Overrun);
        }
    }

    fn tun(&mut self, frame: &[u8]) {
        write_tun(self.shared, frame);
    }
}

const ANYWHERE: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), 0);

impl OutSide<'_> {
    /// Sends a batch; a full socket is waited for, shortly, then what is left
    /// is dropped: queueing it would only make it late.
    fn send(&self, socket: &UdpSocket, batch: &[Datagrams<'_>]) {
        let mut left: std::borrow::Cow<'_, [Datagrams<'_>]> = batch.into();
        while !left.is_empty() {
            let outcome = socket.send_batch(&left, |_, error| {
                self.shared.send_failures.fetch_add(1, Ordering::Relaxed);
                tracing::trace!(%error, "run not sent");
            });
            if outcome.done >= left.len() {
                return;
            }
            let mut rest = left[outcome.done..].to_vec();
            rest[0].payload = rest[0].payload.get(outcome.offset..).unwrap_or_default();
            left = rest.into();
            let mut writable = [Watch::writable(socket)];
            if !matches!(wait(&mut writable, Some(FULL_SOCKET)), Ok(1..)) {
                self.shared.send_failures.fetch_add(1, Ordering::Relaxed);
                return;
            }
        }
    }
}

fn run_out(
    shared: &Shared,
    engine: &Inbox,
    dns: &AsyncSender<Vec<u8>>,
    ports: &RelayPorts,
    orders: &mpsc::Receiver<OutCommand>,
    to_answer: &mpsc::Receiver<(PeerIndex, Vec<u8>)>,
) {
    let mut sink = OutSide {
        shared,
        engine,
        dns,
        ports,
    };
    let mut outbound = Outbound::new(Arc::clone(&shared.drops));
    let mut frame = vec![0; TUN_FRAME].into_boxed_slice();
    let mut view = shared.view.load_full();
    let mut told_of_loss = false;
    loop {
        let mut reads = 0;
        let idle = loop {
            match shared.tun.read(&mut frame) {
                Ok(len) => {
                    outbound.packet(&view, Instant::now(), &frame[..len], &mut sink);
                    reads += 1;
                    if reads == READS_PER_FLUSH {
                        break false;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break true,
                Err(error) => {
                    // EIO: the device is down for the moment; it comes back or
                    // we are told to stop.
                    tracing::debug!(%error, "cannot read the tunnel device");
                    break true;
                }
            }
        };
        outbound.flush(&mut sink);
        let waker: &Waker = &shared.out_waker;
        let mut watches = [Watch::readable(waker), Watch::readable(&shared.tun)];
        let timeout = if idle { None } else { Some(Duration::ZERO) };
        if wait(&mut watches, timeout).is_err() {
            std::thread::yield_now();
        } else if watches[1].is_broken() && !watches[0].is_ready() {
            // Somebody deleted the device. That does not end, and would keep
            // us busy with nothing: only orders are left to wait for.
            if !told_of_loss {
                told_of_loss = true;
                tracing::error!("the tunnel device is gone; restart the daemon to have it again");
            }
            let [orders, _] = &mut watches;
            drop(wait(std::slice::from_mut(orders), None));
        }
        if watches[0].is_ready() {
            waker.clear();
            if shared.stop.load(Ordering::Acquire) {
                return;
            }
            let now = Instant::now();
            let fresh = shared.view.load_full();
            if !Arc::ptr_eq(&fresh, &view) {
                view = fresh;
                outbound.on_view_change(&view, now, &mut sink);
            }
            for order in orders.try_iter() {
                match order {
                    OutCommand::DropStaged(peer) => outbound.drop_staged(peer),
                    OutCommand::Keepalive(peer) => {
                        outbound.send_keepalive(&view, now, peer, &mut sink);
                    }
                    OutCommand::Inject(peer, packet) => {
                        outbound.inject(&view, now, peer, &packet, &mut sink);
                    }
                }
            }
            for (peer, packet) in to_answer.try_iter() {
                outbound.inject(&view, now, peer, &packet, &mut sink);
            }
            outbound.flush(&mut sink);
        }
    }
}

struct InSide<'a> {
    shared: &'a Shared,
    engine: &'a Inbox,
    answers: mpsc::SyncSender<(PeerIndex, Vec<u8>)>,
}

impl InSide<'_> {
    fn tell(&self, message: Message) {
        self.engine.tell(message);
    }
}

impl InSink for InSide<'_> {
    fn tun_write(&mut self, frame: &[u8]) {
        write_tun(self.shared, frame);
    }

    fn control(&mut self, from: Source, datagram: &[u8]) {
        let packet = datagram.to_vec();
        let taken = self.engine.offer(match from {
            Source::Udp(from) => Message::Udp { from, packet },
            Source::Relay { region, key } => Message::RelayPacket {
                region: warren_control_types::RegionId(region),
                from: key,
                packet,
            },
        });
        if !taken {
            self.shared.drops.count(DropReason::Overrun);
        }
    }

    fn confirmed(&mut self, local_index: u32) {
        self.tell(Message::Confirmed(local_index));
    }

    fn heard(&mut self, peer: PeerIndex, from: Source) {
        self.tell(Message::Heard(peer, from));
    }

    fn need_session(&mut self, peer: PeerIndex) {
        self.tell(Message::NeedSession(peer));
    }

    fn out(&mut self, peer: PeerIndex, packet: &[u8]) {
        if self.answers.try_send((peer, packet.to_vec())).is_err() {
            self.shared.drops.count(DropReason::Overrun);
        }
        self.shared.out_waker.wake();
    }

    fn pong(&mut self, peer: PeerIndex, data: [u8; 8], peer_api_port: Option<u16>) {
        self.tell(Message::TsmpPong {
            peer,
            data,
            peer_api_port,
        });
    }

    fn disco_advertised(&mut self, peer: PeerIndex, key: DiscoPublic) {
        self.tell(Message::DiscoAdvertised(peer, key));
    }
}

fn run_in(
    shared: &Shared,
    engine: &Inbox,
    answers: mpsc::SyncSender<(PeerIndex, Vec<u8>)>,
    mut inbox: RelayInbox,
) {
    let offloads = shared.tun.offloads();
    let offloads = InboundOffloads {
        tcp: offloads.tcp,
        udp: offloads.udp,
    };
    let mut sink = InSide {
        shared,
        engine,
        answers,
    };
    let mut inbound = Inbound::new(offloads, Arc::clone(&shared.drops));
    let mut batch = RecvBatch::new(RECEIVE_BATCH);
    let mut view = shared.view.load_full();
    let mut sockets = shared.sockets.load_full();
    loop {
        let mut busy = false;
        for socket in [&sockets.v4, &sockets.v6].into_iter().flatten() {
            // An error belongs to an earlier datagram of ours (ICMP); the next
            // call gives what has arrived.
            if socket.recv_batch(&mut batch).is_ok() {
                let now = Instant::now();
                for train in batch.trains() {
                    busy = true;
                    let from = Source::Udp(train.from);
                    inbound.datagrams(&view, now, from, train.data, train.segment_len, &mut sink);
                }
            }
        }
        for _ in 0..RELAY_BATCHES_PER_ROUND {
            let Ok(mut relayed) = inbox.batches.try_recv() else {
                break;
            };
            busy = true;
            let now = Instant::now();
            let mut rest = relayed.bytes.as_mut_slice();
            for (key, len) in relayed.packets {
                let Some((packet, more)) = rest.split_at_mut_checked(len) else {
                    break;
                };
                rest = more;
                let from = Source::Relay {
                    region: relayed.region.0,
                    key,
                };
                inbound.datagrams(&view, now, from, packet, len, &mut sink);
            }
        }
        inbound.flush(&mut sink);

        let waker: &Waker = &shared.in_waker;
        let mut watches = [
            Watch::readable(waker),
            watch_socket(sockets.v4.as_ref(), waker),
            watch_socket(sockets.v6.as_ref(), waker),
        ];
        let timeout = if busy { Some(Duration::ZERO) } else { None };
        if wait(&mut watches, timeout).is_err() {
            std::thread::yield_now();
        }
        let woken = watches[0].is_ready();
        if woken {
            waker.clear();
            if shared.stop.load(Ordering::Acquire) {
                return;
            }
            let fresh = shared.view.load_full();
            if !Arc::ptr_eq(&fresh, &view) {
                view = fresh;
                inbound.on_view_change(&view);
            }
            sockets = shared.sockets.load_full();
        }
    }
}

/// A family without a socket watches the waker once more.
fn watch_socket<'a>(socket: Option<&'a UdpSocket>, waker: &'a Waker) -> Watch<'a> {
    match socket {
        Some(socket) => Watch::readable(socket),
        None => Watch::readable(waker),
    }
}

fn write_tun(shared: &Shared, frame: &[u8]) {
    if let Err(error) = shared.tun.write(frame) {
        // EIO while the device is down, EINVAL for what the kernel cannot
        // parse: that packet is lost, the next may not be.
        shared.send_failures.fetch_add(1, Ordering::Relaxed);
        tracing::trace!(%error, "cannot write to the tunnel device");
    }
}

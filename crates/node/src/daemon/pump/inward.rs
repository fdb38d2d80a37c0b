//! From the network to the TUN device.
//!
//! One thread at a time receives: batches from the sockets in turn, and what
//! relays brought. With a large batch it lets another one receive, decrypts
//! its own beside the others, and then, in the order in which batches were
//! received, has the one [`Inbound`] for itself: see [`turns`](super::turns).
//! With a small batch it does everything at once and wakes nobody. So does the
//! only thread of a small machine, with all batches.
//!
//! A new picture of the node comes as a batch of its own: what was received
//! before is judged by the old one, what comes after by the new.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use warren_dataplane::{
    DropReason, FairShare, InSink, Inbound, InboundOffloads, Joined, Limit, Opening, Received,
    ServiceId, TunWrite, View,
};
use warren_host::poll::{Watch, wait};
use warren_host::udp::{RecvBatch, UdpPair, UdpSocket};
use warren_host::wake::Waker;
use warren_keys::DiscoPublic;
use warren_node_core::node::NodeInput;
use warren_tunnel::{PeerIndex, Source};

use super::super::Inbox;
use super::super::relays::{RelayBatch, RelayInbox};
use super::turns::{Ticket, Turns};
use super::{Answer, Shared};

/// Messages taken from a socket at once.
const RECEIVE_BATCH: usize = 16;
/// Relay batches taken before the sockets are looked at again.
const RELAY_BATCHES_PER_ROUND: usize = 16;
/// Batches taken where there was something before, without asking the system
/// who else has something: asking costs as much as receiving.
const ROUNDS_PER_POLL: usize = 4;
/// A batch of so many bytes is worth waking another thread for: decrypting it
/// takes some twenty microseconds, several times what waking costs.
const WORTH_SHARING: usize = 32 * 1024;

/// Orders the threads: one receives, and one at a time delivers.
pub(super) type InTurns = Turns<Front, Back>;

/// The side of the network: for the thread that receives.
pub(super) struct Front {
    sockets: Arc<UdpPair>,
    view: Arc<View>,
    relayed: RelayInbox,
    /// Whether there may be more from relays, of which no waker tells.
    relays_left: bool,
    /// Where there may be something: relays, IPv4, IPv6.
    ready: [bool; 3],
    /// Which of them is first the next time.
    next: usize,
    /// Batches since the system was asked.
    unasked: usize,
    /// What each peer may take when there is too much for all.
    fair: FairShare,
    /// Whether the system refuses limits on these sockets.
    fair_fails: bool,
}

/// The side of the host: for the thread whose turn it is.
pub(super) struct Back {
    inbound: Inbound,
    /// The picture that the last batch was judged by.
    view: Arc<View>,
}

/// The datagrams of one receive call.
struct Batch {
    from: From,
    trains: RecvBatch,
    relayed: Vec<RelayBatch>,
    bytes: usize,
}

enum From {
    Nobody,
    Socket,
    Relays,
}

/// Both ends, for so many threads.
pub(super) fn turns(threads: usize, shared: &Shared, relayed: RelayInbox) -> InTurns {
    let offloads = shared.tun.offloads();
    let offloads = InboundOffloads {
        tcp: offloads.tcp,
        udp: offloads.udp,
    };
    let view = shared.view.load_full();
    let front = Front {
        sockets: shared.sockets.load_full(),
        view: Arc::clone(&view),
        relayed,
        relays_left: false,
        ready: [false; 3],
        next: 0,
        unasked: 0,
        fair: FairShare::new(Arc::clone(&shared.drops)),
        fair_fails: false,
    };
    let inbound = Inbound::new(offloads, Arc::clone(&shared.drops));
    Turns::new(threads, front, Back { inbound, view })
}

impl Front {
    /// Waits for something and puts it into `batch`. `false`: it is time to
    /// stop.
    fn receive(&mut self, shared: &Shared, batch: &mut Batch) -> bool {
        batch.clear();
        loop {
            if shared.stop.load(Ordering::Acquire) {
                return false;
            }
            // Each in its turn, so that a flood of one kind leaves room.
            while self.unasked < ROUNDS_PER_POLL && self.ready.contains(&true) {
                let source = self.next;
                self.next = (source + 1) % self.ready.len();
                if self.ready[source] {
                    // Where there was something there may be more.
                    self.ready[source] = self.take(source, batch);
                    if self.ready[source] {
                        self.unasked += 1;
                        return true;
                    }
                }
            }
            self.unasked = 0;
            let waker: &Waker = &shared.in_waker;
            let mut watches = [
                Watch::readable(waker),
                watch_socket(self.sockets.v4.as_ref(), waker),
                watch_socket(self.sockets.v6.as_ref(), waker),
            ];
            let left = self.relays_left || self.ready.contains(&true);
            let timeout = if left {
                Some(Duration::ZERO)
            } else {
                let deadline = self.fair.next_deadline();
                deadline.map(|at| at.saturating_duration_since(Instant::now()))
            };
            if wait(&mut watches, timeout).is_err() {
                std::thread::yield_now();
            }
            let woken = watches[0].is_ready();
            // Looking for relays' batches is no system call.
            self.ready = [true, watches[1].is_ready(), watches[2].is_ready()];
            if woken {
                waker.clear();
                self.take_sockets(shared);
                let fresh = shared.view.load_full();
                if !Arc::ptr_eq(&fresh, &self.view) {
                    self.view = fresh;
                    if self.fair.is_watching() {
                        self.fair.on_view_change(&self.view);
                    }
                    return true;
                }
            }
            if self.fair.is_watching() {
                let now = Instant::now();
                for (number, ready) in self.ready.iter().skip(1).enumerate() {
                    if !ready {
                        self.fair.received(now, number, false);
                    }
                }
                self.share(now);
            }
        }
    }

    /// Takes what a source has, and tells whether that was anything.
    fn take(&mut self, source: usize, batch: &mut Batch) -> bool {
        let socket = match source {
            0 => return self.take_relayed(batch),
            1 => self.sockets.v4.as_ref(),
            _ => self.sockets.v6.as_ref(),
        };
        // An error belongs to an earlier datagram of ours (ICMP); the next
        // call gives what has arrived.
        let came = socket.is_some_and(|socket| socket.recv_batch(&mut batch.trains).is_ok());
        let full = came && batch.trains.is_full();
        let number = source - 1;
        if !self.fair_fails && self.fair.minds(number, full) {
            let now = Instant::now();
            self.fair.received(now, number, full);
            if came && self.fair.is_watching() {
                for train in batch.trains.trains() {
                    self.fair.count(&self.view, train.data, train.segment_len);
                }
            }
            self.share(now);
        }
        if !came {
            return false;
        }
        batch.from = From::Socket;
        batch.bytes = batch.trains.trains().map(|train| train.data.len()).sum();
        true
    }

    /// Goes on with the sockets of now.
    fn take_sockets(&mut self, shared: &Shared) {
        let sockets = shared.sockets.load_full();
        if !Arc::ptr_eq(&sockets, &self.sockets) {
            self.sockets = sockets;
            self.fair.reset();
            self.fair_fails = false;
            // One of them may be from before.
            limit(&self.sockets, &[]);
        }
    }

    /// Lets the sockets take from everybody what is everybody's share.
    fn share(&mut self, now: Instant) {
        if !self.fair.is_due(now) {
            return;
        }
        let sockets = [&self.sockets.v4, &self.sockets.v6].into_iter().flatten();
        let dropped = sockets.filter_map(|socket| socket.dropped().ok());
        let dropped = dropped.fold(0, u32::wrapping_add);
        if let Some(limits) = self.fair.tick(now, dropped) {
            tracing::trace!(?limits, "shares");
            if !limit(&self.sockets, limits) {
                // Half a limit is worse than none.
                limit(&self.sockets, &[]);
                self.fair.reset();
                self.fair_fails = true;
            }
        }
    }

    fn take_relayed(&mut self, batch: &mut Batch) -> bool {
        self.relays_left = true;
        while batch.relayed.len() < RELAY_BATCHES_PER_ROUND {
            let Ok(relayed) = self.relayed.batches.try_recv() else {
                self.relays_left = false;
                break;
            };
            batch.bytes += relayed.bytes.len();
            batch.relayed.push(relayed);
        }
        batch.from = From::Relays;
        !batch.relayed.is_empty()
    }
}

impl Batch {
    fn new() -> Self {
        Self {
            from: From::Nobody,
            trains: RecvBatch::new(RECEIVE_BATCH),
            relayed: Vec::with_capacity(RELAY_BATCHES_PER_ROUND),
            bytes: 0,
        }
    }

    fn clear(&mut self) {
        self.from = From::Nobody;
        self.relayed.clear();
        self.bytes = 0;
    }

    /// Calls `each` with every buffer: who sent it, the length of its
    /// datagrams, and the datagrams.
    fn for_each(&mut self, mut each: impl FnMut(Source, usize, &mut [u8])) {
        match self.from {
            From::Nobody => {}
            From::Socket => {
                for train in self.trains.trains() {
                    each(Source::Udp(train.from), train.segment_len, train.data);
                }
            }
            From::Relays => {
                for relayed in &mut self.relayed {
                    let region = relayed.region;
                    let mut rest = relayed.bytes.as_mut_slice();
                    for packet in &relayed.packets {
                        let Some((datagrams, more)) = rest.split_at_mut_checked(packet.len) else {
                            break;
                        };
                        rest = more;
                        let key = packet.from;
                        each(Source::Derp { region, key }, packet.segment_len, datagrams);
                    }
                }
            }
        }
    }
}

impl Back {
    /// Goes on with `view`, if it is another one.
    fn adopt(&mut self, view: &Arc<View>) {
        if !Arc::ptr_eq(view, &self.view) {
            self.view = Arc::clone(view);
            self.inbound.on_view_change(view);
        }
    }
}

/// A thread that receives.
pub(super) struct Inward {
    pub(super) shared: Arc<Shared>,
    pub(super) engine: Inbox,
    pub(super) answers: mpsc::SyncSender<Answer>,
    pub(super) turns: Arc<InTurns>,
}

impl Inward {
    /// Receives until it is told to stop.
    pub(super) fn run(self) {
        let mut sink = InSide {
            shared: &self.shared,
            engine: &self.engine,
            answers: self.answers,
        };
        let mut batch = Batch::new();
        let mut opening = Opening::new();
        while let Some((ticket, view)) = lead(&self.shared, &self.turns, &mut batch, &mut sink) {
            // Another thread receives now.
            let now = Instant::now();
            let received = |from, segment_len| Received {
                view: &view,
                now,
                from,
                segment_len,
            };
            batch.for_each(|from, segment_len, data| {
                opening.open(&received(from, segment_len), data);
            });
            let mut back = ticket.turn();
            back.adopt(&view);
            batch.for_each(|from, segment_len, data| {
                let received = received(from, segment_len);
                back.inbound
                    .finish(&received, data, &mut opening, &mut sink);
            });
            back.inbound.flush(&mut sink);
            drop(back);
            batch.clear();
        }
    }
}

/// Receives, and does all of what is small, until there is a batch that should
/// be worked on beside others. `None` when it is time to stop.
fn lead<'t>(
    shared: &Shared,
    turns: &'t InTurns,
    batch: &mut Batch,
    sink: &mut InSide<'_>,
) -> Option<(Ticket<'t, Front, Back>, Arc<View>)> {
    let mut front = turns.lead();
    while front.receive(shared, batch) {
        let ticket = front.ticket();
        if turns.has_others() && batch.bytes >= WORTH_SHARING {
            return Some((ticket, Arc::clone(&front.view)));
        }
        let now = Instant::now();
        let mut back = ticket.turn();
        back.adopt(&front.view);
        batch.for_each(|from, segment_len, data| {
            back.inbound
                .datagrams(&front.view, now, from, data, segment_len, sink);
        });
        back.inbound.flush(sink);
    }
    None
}

struct InSide<'a> {
    shared: &'a Shared,
    engine: &'a Inbox,
    answers: mpsc::SyncSender<Answer>,
}

impl InSide<'_> {
    fn report(&self, input: NodeInput) {
        self.engine.send(input);
    }
}

impl InSink for InSide<'_> {
    fn deliver(&mut self, _: ServiceId, _: &[u8]) {
        // No service takes packets of peers yet, so the engine registers none.
        self.shared.drops.count(DropReason::Overrun);
    }

    fn tun_write(&mut self, frame: &[u8]) -> TunWrite {
        self.shared.write_tun(frame)
    }

    fn joining_ends(&mut self, kind: Joined) {
        tracing::warn!(
            ?kind,
            "the tunnel device refuses joined packets; they go to it one by one from now on"
        );
    }

    fn control(&mut self, from: Source, datagram: &[u8]) {
        let packet = datagram.to_vec();
        let taken = self.engine.try_send(match from {
            Source::Udp(from) => NodeInput::Udp { from, packet },
            // The server of a peer relay is where the datagram came from.
            Source::PeerRelay { server: from, .. } => NodeInput::Udp { from, packet },
            Source::Derp { region, key } => NodeInput::Relay {
                region,
                from: key,
                packet,
            },
        });
        if !taken {
            self.shared.drops.count(DropReason::Overrun);
        }
    }

    fn confirmed(&mut self, local_index: u32) {
        self.report(NodeInput::SessionConfirmed(local_index));
    }

    fn heard(&mut self, peer: PeerIndex, from: Source) {
        self.report(NodeInput::ReceivedFrom(peer, from));
    }

    fn need_session(&mut self, peer: PeerIndex) {
        self.report(NodeInput::NeedSession(peer));
    }

    fn out(&mut self, peer: PeerIndex, packet: &[u8]) {
        if self.answers.try_send((peer, packet.to_vec())).is_err() {
            self.shared.drops.count(DropReason::Overrun);
        }
        self.shared.wake_first_out();
    }

    fn pong(&mut self, _peer: PeerIndex, data: [u8; 8], _peer_api_port: Option<u16>) {
        self.report(NodeInput::TsmpPong(data));
    }

    fn disco_advertised(&mut self, peer: PeerIndex, key: DiscoPublic) {
        self.report(NodeInput::DiscoAdvertised(peer, key));
    }
}

/// Limits sessions on both sockets. `false` where the system cannot: all goes on
/// as it would without.
fn limit(sockets: &UdpPair, limits: &[Limit]) -> bool {
    let mut done = true;
    for socket in [&sockets.v4, &sockets.v6].into_iter().flatten() {
        let parts = limits.iter().map(|limit| (limit.index, limit.keep));
        if let Err(error) = socket.limit_sessions(parts) {
            tracing::debug!(%error, "the system limits no sessions");
            done = false;
        }
    }
    done
}

/// A family without a socket watches the waker once more.
fn watch_socket<'a>(socket: Option<&'a UdpSocket>, waker: &'a Waker) -> Watch<'a> {
    match socket {
        Some(socket) => Watch::readable(socket),
        None => Watch::readable(waker),
    }
}

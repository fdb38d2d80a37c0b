//! The receive stage: where batches come from.
//!
//! Sockets and relays are asked in turn, so that a flood on one of them does not
//! delay the others. The system is asked which of them are ready only when nothing is
//! left where there was something before. While a receive buffer overflows,
//! [`FairShare`] limits the peers above their share.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use warren_dataplane::{FairShare, Limit, View};
use warren_host::poll::{Watch, wait};
use warren_host::udp::{RecvBatch, UdpPair, UdpSocket};
use warren_host::wake::Waker;
use warren_tunnel::Source;

use super::Shared;
use super::relayed::{RelayInbox, RelayedPackets};
use super::search_sockets::KeptSockets;

/// Messages taken from a socket at once.
const RECEIVE_BATCH: usize = 16;
/// Reads of relay connections taken before the sockets are looked at again.
const RELAY_READS_PER_ROUND: usize = 16;
/// Batches taken where there was something before, without asking the system
/// where else there is something: asking costs as much as receiving.
const ROUNDS_PER_POLL: usize = 4;

/// The sources before the kept sockets: relays, IPv4, IPv6.
const FIRST_KEPT: usize = 3;

/// The state of the thread that receives.
pub(super) struct Receiver {
    sockets: Arc<UdpPair>,
    /// The view of the batches that are received now.
    pub(super) view: Arc<View>,
    relayed: RelayInbox,
    /// Whether there may be more from relays, although the waker was cleared.
    relays_left: bool,
    /// The sockets for paths that a port search found.
    kept: Arc<KeptSockets>,
    /// The sources that may have something: relays, IPv4, IPv6, the kept sockets.
    ready: Vec<bool>,
    /// The source to ask first the next time.
    next: usize,
    /// Batches since the system was asked.
    unasked: usize,
    /// The share of each peer when there is too much for all.
    fair: FairShare,
    /// Whether the system refuses limits on these sockets.
    fair_fails: bool,
}

/// The datagrams of one receive call.
pub(super) struct Batch {
    from: From,
    buffers: RecvBatch,
    relayed: Vec<RelayedPackets>,
    /// Bytes of all datagrams.
    pub(super) bytes: usize,
}

#[derive(Clone, Copy)]
enum From {
    /// Nothing was received; the view may be new.
    Nowhere,
    Socket,
    Relays,
}

impl Receiver {
    pub(super) fn new(shared: &Shared, relayed: RelayInbox) -> Self {
        Self {
            sockets: shared.sockets.load_full(),
            view: shared.view.load_full(),
            relayed,
            relays_left: false,
            kept: shared.kept.load_full(),
            ready: vec![false; FIRST_KEPT],
            next: 0,
            unasked: 0,
            fair: FairShare::new(Arc::clone(&shared.drops)),
            fair_fails: false,
        }
    }

    /// Waits for datagrams, and puts them into `batch`, or for a new view, with which
    /// the batch is empty. `false`: it is time to stop.
    pub(super) fn receive(&mut self, shared: &Shared, batch: &mut Batch) -> bool {
        batch.clear();
        loop {
            if shared.stop.load(Ordering::Acquire) {
                return false;
            }
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
            let first = [
                Watch::readable(waker),
                watch_socket(self.sockets.v4.as_ref(), waker),
                watch_socket(self.sockets.v6.as_ref(), waker),
            ];
            let kept = self.kept.sockets().iter();
            let kept = kept.map(|(_, socket)| Watch::readable(&**socket));
            let mut watches: Vec<Watch<'_>> = first.into_iter().chain(kept).collect();
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
            // Looking for packets of relays needs no system call.
            for (ready, watch) in self.ready.iter_mut().zip(&watches) {
                *ready = watch.is_ready();
            }
            self.ready[0] = true;
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
                let shared_sockets = self.ready[1..FIRST_KEPT].iter();
                for (number, ready) in shared_sockets.enumerate() {
                    if !ready {
                        self.fair.received(now, number, false);
                    }
                }
                self.share(now);
            }
        }
    }

    /// Takes what a source has, and returns whether that was anything.
    fn take(&mut self, source: usize, batch: &mut Batch) -> bool {
        let socket = match source {
            0 => return self.take_relayed(batch),
            1 => self.sockets.v4.as_ref(),
            2 => self.sockets.v6.as_ref(),
            _ => {
                let kept = self.kept.sockets().get(source - FIRST_KEPT);
                kept.map(|(_, socket)| &**socket)
            }
        };
        // An error belongs to an earlier datagram of ours (ICMP); the next
        // call gives what has arrived.
        let came = socket.is_some_and(|socket| socket.recv_batch(&mut batch.buffers).is_ok());
        let full = came && batch.buffers.is_full();
        let number = source - 1;
        // One peer at most sends to a kept socket, which has a buffer of its own.
        let is_shared = source < FIRST_KEPT;
        if is_shared && !self.fair_fails && self.fair.minds(number, full) {
            let now = Instant::now();
            self.fair.received(now, number, full);
            if came && self.fair.is_watching() {
                for buffer in batch.buffers.buffers() {
                    self.fair.count(&self.view, buffer.data, buffer.segment_len);
                }
            }
            self.share(now);
        }
        if !came {
            return false;
        }
        batch.from = From::Socket;
        batch.bytes = batch
            .buffers
            .buffers()
            .map(|buffer| buffer.data.len())
            .sum();
        true
    }

    /// Goes on with the present sockets.
    fn take_sockets(&mut self, shared: &Shared) {
        let kept = shared.kept.load_full();
        if !Arc::ptr_eq(&kept, &self.kept) {
            self.kept = kept;
            // Datagrams that are there already are read at once.
            self.ready.clear();
            self.ready
                .resize(FIRST_KEPT + self.kept.sockets().len(), true);
            self.next = 0;
        }
        let sockets = shared.sockets.load_full();
        if !Arc::ptr_eq(&sockets, &self.sockets) {
            self.sockets = sockets;
            self.fair.reset();
            self.fair_fails = false;
            // One of them may be from before.
            limit(&self.sockets, &[]);
        }
    }

    /// Lets the sockets take the share of each peer, when it is time to measure.
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
        while batch.relayed.len() < RELAY_READS_PER_ROUND {
            let Some(relayed) = self.relayed.try_receive() else {
                self.relays_left = false;
                break;
            };
            batch.bytes += relayed.len();
            batch.relayed.push(relayed);
        }
        batch.from = From::Relays;
        !batch.relayed.is_empty()
    }
}

impl Batch {
    pub(super) fn new() -> Self {
        Self {
            from: From::Nowhere,
            buffers: RecvBatch::new(RECEIVE_BATCH),
            relayed: Vec::with_capacity(RELAY_READS_PER_ROUND),
            bytes: 0,
        }
    }

    pub(super) fn clear(&mut self) {
        self.from = From::Nowhere;
        self.relayed.clear();
        self.bytes = 0;
    }

    /// Gives every buffer to `each`: its sender, the length of its datagrams, and
    /// the datagrams.
    pub(super) fn for_each<'b>(&'b mut self, mut each: impl FnMut(Source, usize, &'b mut [u8])) {
        match self.from {
            From::Nowhere => {}
            From::Socket => {
                for buffer in self.buffers.buffers() {
                    each(Source::Udp(buffer.from), buffer.segment_len, buffer.data);
                }
            }
            From::Relays => {
                for relayed in &mut self.relayed {
                    relayed.for_each(&mut each);
                }
            }
        }
    }
}

/// Limits sessions on both sockets. `false` where the system cannot: everything goes
/// on as it would without limits.
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

/// The watch of a socket. A family without a socket watches the waker once more.
fn watch_socket<'a>(socket: Option<&'a UdpSocket>, waker: &'a Waker) -> Watch<'a> {
    match socket {
        Some(socket) => Watch::readable(socket),
        None => Watch::readable(waker),
    }
}

//! Counters that the data plane writes and others read: traffic per peer, and drops
//! by reason. Relaxed atomics; numbers may be a moment old.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use warren_tunnel::Activity;

/// Traffic in one direction. On a cache line of its own, because each
/// direction is written by another thread.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Direction {
    bytes: AtomicU64,
    packets: AtomicU64,
    /// Milliseconds since the origin of the view, plus one; 0 is never.
    last_data: AtomicU64,
    last_any: AtomicU64,
}

impl Direction {
    #[inline]
    fn add(&self, packets: u64, bytes: u64, at: u64) {
        // One writer at a time is the rule and a lost update harmless, but
        // several receiving threads are allowed: so additions, not stores.
        self.packets.fetch_add(packets, Relaxed);
        self.bytes.fetch_add(bytes, Relaxed);
        self.last_data.store(at, Relaxed);
        self.last_any.store(at, Relaxed);
    }
}

/// Counters of one peer. Bytes are those of inner packets, without the
/// tunnel's own overhead; keepalives count as activity only.
#[derive(Debug, Default)]
pub struct PeerCounters {
    sent: Direction,
    received: Direction,
}

/// A reading of [`PeerCounters`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// Inner packets sealed and handed to a path.
    pub tx_packets: u64,
    /// Their bytes.
    pub tx_bytes: u64,
    /// Inner packets that authenticated.
    pub rx_packets: u64,
    /// Their bytes.
    pub rx_bytes: u64,
}

/// The coarse clock: milliseconds since `origin`, plus one.
#[inline]
pub(super) fn coarse(origin: Instant, now: Instant) -> u64 {
    let ms = now.saturating_duration_since(origin).as_millis();
    u64::try_from(ms).unwrap_or(u64::MAX - 1).saturating_add(1)
}

impl PeerCounters {
    /// Counters at zero.
    pub fn new() -> Self {
        Self::default()
    }

    #[inline]
    pub(super) fn sent(&self, packets: u64, bytes: u64, at: u64) {
        self.sent.add(packets, bytes, at);
    }

    #[inline]
    pub(super) fn sent_keepalive(&self, at: u64) {
        self.sent.last_any.store(at, Relaxed);
    }

    #[inline]
    pub(super) fn received(&self, packets: u64, bytes: u64, at: u64) {
        self.received.add(packets, bytes, at);
    }

    #[inline]
    pub(super) fn received_keepalive(&self, at: u64) {
        self.received.last_any.store(at, Relaxed);
    }

    /// Packets and bytes so far.
    pub fn traffic(&self) -> Traffic {
        Traffic {
            tx_packets: self.sent.packets.load(Relaxed),
            tx_bytes: self.sent.bytes.load(Relaxed),
            rx_packets: self.received.packets.load(Relaxed),
            rx_bytes: self.received.bytes.load(Relaxed),
        }
    }

    /// When something last happened, for the timers of the tunnel. `origin` is
    /// that of the view ([`View::origin`](super::View::origin)).
    pub fn activity(&self, origin: Instant) -> Activity {
        let time = |at: &AtomicU64| {
            let ms = at.load(Relaxed).checked_sub(1)?;
            origin.checked_add(Duration::from_millis(ms))
        };
        Activity {
            last_data_sent: time(&self.sent.last_data),
            last_sent: time(&self.sent.last_any),
            last_data_received: time(&self.received.last_data),
            last_received: time(&self.received.last_any),
        }
    }
}

/// Why a packet went nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(usize)]
pub enum DropReason {
    /// Out: the frame from the TUN device is invalid, or its packet cannot be judged
    /// safely.
    Malformed,
    /// Out: no peer has the destination.
    NoRoute,
    /// Out: the filter says no.
    FilteredOut,
    /// Out: a packet that only nodes themselves may make.
    Internal,
    /// Out: too many packets wait for a session or a path.
    StagingFull,
    /// Out: the session has no counters left.
    Exhausted,
    /// In: no session has this index.
    UnknownSession,
    /// In: the session is too old.
    ExpiredSession,
    /// In: damaged or forged.
    Forged,
    /// In: the counter was seen before, or is too old for the replay window.
    Replayed,
    /// In: the content is not an IP packet, or is shorter than its length field.
    MalformedInner,
    /// In: the peer may not use this source address.
    WrongSource,
    /// In: the filter says no.
    FilteredIn,
    /// In: no WireGuard, disco or STUN message at all.
    Unrecognised,
    /// In: handshakes, disco or STUN faster than they can be looked at; or
    /// out: packets for a relay that is still being connected.
    Overrun,
    /// In: of a peer that took more than its share while there was too much for
    /// all. Counted as the system does: by message, which may be a batch, with
    /// what else did not fit meanwhile.
    OverShare,
}

impl DropReason {
    /// All reasons, in order.
    pub const ALL: [Self; 16] = [
        Self::Malformed,
        Self::NoRoute,
        Self::FilteredOut,
        Self::Internal,
        Self::StagingFull,
        Self::Exhausted,
        Self::UnknownSession,
        Self::ExpiredSession,
        Self::Forged,
        Self::Replayed,
        Self::MalformedInner,
        Self::WrongSource,
        Self::FilteredIn,
        Self::Unrecognised,
        Self::Overrun,
        Self::OverShare,
    ];
}

/// Drops by reason, shared between the threads and the readers of the counters.
#[derive(Debug, Default)]
pub struct Drops([AtomicU64; DropReason::ALL.len()]);

impl Drops {
    /// Counters at zero.
    pub fn new() -> Self {
        Self::default()
    }

    /// Counts a packet that was dropped.
    #[inline]
    pub fn count(&self, reason: DropReason) {
        self.0[reason as usize].fetch_add(1, Relaxed);
    }

    /// Counts packets that were dropped.
    pub(super) fn add(&self, reason: DropReason, packets: u64) {
        self.0[reason as usize].fetch_add(packets, Relaxed);
    }

    /// Packets dropped for `reason`.
    pub fn get(&self, reason: DropReason) -> u64 {
        self.0[reason as usize].load(Relaxed)
    }

    /// Packets dropped for any reason.
    pub fn total(&self) -> u64 {
        self.0.iter().map(|n| n.load(Relaxed)).sum()
    }
}

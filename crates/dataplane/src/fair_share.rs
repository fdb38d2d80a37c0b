//! Fair shares of the receive path when a peer sends more than the node can take.
//!
//! A socket's receive buffer knows no peers: when it is full, the system drops
//! datagrams of all senders alike, and each datagram that is let in waits behind
//! all others in the buffer. When the node reads a datagram, it is too late to
//! protect the others. So the system drops *before* the buffer: it lets in a
//! random part of the datagrams of each session of a peer that takes more than its
//! share, and the rest costs the node nothing. The runtime makes a socket filter
//! from these [`Limit`]s.
//!
//! ```text
//! calm ── the buffer overflows, and no call empties it for 5 ms ──▶ watching
//!      watching: received bytes are counted by peer
//!   ── it overflows again, and a peer takes more than an even share ──▶ draining
//!      draining: few datagrams of such peers are let in, until the buffer is empty
//!   ── a call empties the buffer ──▶ sharing
//!      sharing: the `level` is the rate that one peer may take. It falls while the
//!      buffer is not emptied and rises while it is; of a peer above it, the part
//!      level / rate is let in
//!   ── that does not help for 40 ms ──▶ draining
//!   ── draining does not help for 300 ms ──▶ watching, with all rates forgotten
//!   ── no peer was above for 50 ms ──▶ watching ── no overflow for 100 ms ──▶ calm
//! ```
//!
//! While calm, a receive call costs one branch and nothing is counted.
//!
//! **Identification.** Sessions are identified by the receiver index in the header,
//! which only a peer and those that can read its traffic know: a sender with forged
//! addresses is not taken for a peer. Datagrams of no session (handshakes, disco,
//! STUN, noise) are never limited. Together they count as one more sender, and no
//! peer is limited below their rate: a flood of unauthenticated senders leaves the
//! peers as they would be without this module.
//!
//! **Never limited.** A peer that is alone, however much it sends. A peer that takes
//! less than a thirty-second of the total. Peers that use a relay: their packets
//! wait elsewhere, in queues of bounded length.

use std::sync::Arc;
use std::time::{Duration, Instant};

use warren_tunnel::PeerIndex;
use warren_wire::wireguard::is_transport;

use super::{DropReason, Drops, View};

/// How long a buffer that is never emptied is nothing to wonder at, and how often
/// shares are looked at after that.
const TICK: Duration = Duration::from_millis(5);
/// After a longer pause than so many ticks nothing is concluded from it.
const LONG_TICK: u32 = 8;
/// The number of peers that are measured. When there are more, the smallest ones
/// replace each other.
const SLOTS: usize = 512;
/// Places in which a peer may be.
const PROBES: usize = 4;
/// Sessions of one peer at a time: the one before, this one, the next.
const SESSIONS: usize = 3;
/// Peers below this share of the total are never limited.
const HEAVY_PART: f64 = 1.0 / 32.0;
/// There are at most 32 peers above that share.
const MOST_LIMITS: usize = 32 * SESSIONS;
/// The cost of a datagram without its bytes, expressed in bytes.
const PER_DATAGRAM: usize = 256;
/// The part of the datagrams of heavy peers that is let in while the buffer drains.
const DRAIN_KEEP: f64 = 1.0 / 32.0;
/// Draining limits the peers above the level at which this part of the node's
/// capacity would be used. If that is not enough, the part is halved after so many
/// ticks.
const DRAIN_PART: f64 = 0.9;
const DRAIN_MORE_TICKS: u32 = 8;
/// The longest time for it: a buffer of any size is then another one.
const DRAIN_TICKS: u32 = 60;
/// Draining begins only if a peer exceeds an even share by this factor: where all
/// peers send alike, the system already drops fairly.
const UNEVEN: f64 = 1.25;
/// The number of ticks in which rates are measured before they limit a peer.
const MEASURE_TICKS: u32 = 3;
/// A buffer that is not emptied for so many ticks is too much; less may be
/// the node's own sleep. That is also how long others wait in it.
const STANDING_TICKS: u32 = 2;
/// Factors of the level: in a tick with such a buffer, and in one in which it was
/// emptied.
const DOWN: f64 = 0.85;
const UP: f64 = 1.03;
/// As long as the node is known to take more than this part of what it gets, the
/// level rises faster.
const FAR_BELOW: f64 = 0.8;
const UP_FAST: f64 = 1.15;
/// A buffer that is not emptied for so many ticks in spite of the level is drained
/// again: it holds datagrams that older limits let in.
const STUCK_TICKS: u32 = 8;
/// Weight of the newest tick in a rate.
const NEWEST: f64 = 0.25;
/// A part that differs by less than this is as good as the one in force:
/// changing the filter has its price.
const NOTICEABLE: f64 = 0.08;
/// Ticks until a silent peer no longer counts, until limits that are not needed end,
/// and until counting ends.
const SILENT_TICKS: u32 = 20;
const UNLIMITED_TICKS: u32 = 10;
const QUIET_TICKS: u32 = 20;

/// How much of a session's datagrams the system should let in.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limit {
    /// The receiver index in the header of its datagrams.
    pub index: u32,
    /// The part to let in, from 0 to 1.
    pub keep: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Calm,
    /// For so many ticks without an overflow.
    Watching(u32),
    /// For so many ticks.
    Draining(u32),
    /// For so many ticks.
    Sharing(u32),
}

/// A peer that has sent datagrams lately.
#[derive(Debug, Clone, Copy)]
struct Slot {
    peer: PeerIndex,
    /// The sessions that it used, the newest first.
    sessions: [Option<u32>; SESSIONS],
    /// Received since the last tick: bytes, and the cost of datagrams in bytes.
    came: usize,
    /// Ticks since anything came.
    silent: u32,
    /// Bytes per second that it sends, as far as is known.
    rate: Option<f64>,
    /// The part of its datagrams that is let in.
    keep: f64,
}

/// Bytes from one kind of sender, and their rate.
#[derive(Debug, Clone, Copy, Default)]
struct Flow {
    came: usize,
    rate: f64,
}

/// Observations of one socket since the last tick.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    full: bool,
    emptied: bool,
}

/// Limits peers that flood, so that others lose nothing. The receiving thread owns
/// it.
pub struct FairShare {
    phase: Phase,
    /// Since when each socket's buffer was not emptied. For the calm.
    full_since: [Option<Instant>; 2],
    seen: [Seen; 2],
    /// Whether a socket's buffer was not emptied, when that was last seen.
    full: [bool; 2],
    last_tick: Option<Instant>,
    dropped: u32,
    slots: Box<[Option<Slot>]>,
    /// Datagrams that belong to no session.
    strangers: Flow,
    /// Everything that was received, while there always was something.
    capacity: f64,
    level: f64,
    /// Whether the rates of limited peers are known.
    measured: bool,
    /// Ticks in a row in which the buffer was not emptied.
    standing: u32,
    unlimited: u32,
    limits: Vec<Limit>,
    /// For the limits of a tick before they are in force.
    wanted: Vec<Limit>,
    drops: Arc<Drops>,
}

impl FairShare {
    /// One that counts what limits cost in `drops`.
    pub fn new(drops: Arc<Drops>) -> Self {
        Self {
            phase: Phase::Calm,
            full_since: [None; 2],
            seen: [Seen::default(); 2],
            full: [false; 2],
            last_tick: None,
            dropped: 0,
            slots: vec![None; SLOTS].into_boxed_slice(),
            strangers: Flow::default(),
            capacity: 0.0,
            level: 0.0,
            measured: false,
            standing: 0,
            unlimited: 0,
            limits: Vec::with_capacity(MOST_LIMITS),
            wanted: Vec::with_capacity(MOST_LIMITS),
            drops,
        }
    }

    /// Whether what is received has to be shown to [`count`](Self::count), and
    /// every call to [`received`](Self::received).
    #[inline]
    pub fn is_watching(&self) -> bool {
        self.phase != Phase::Calm
    }

    /// A receive call on one of the two sockets came back, `full` if it gave as
    /// much as it could. While calm, only news of one that was full, or of the
    /// first that was not, are of interest.
    #[inline]
    pub fn received(&mut self, now: Instant, socket: usize, full: bool) {
        if let Some(since) = self.full_since.get_mut(socket) {
            *since = full.then(|| since.unwrap_or(now));
        }
        if let Some(seen) = self.seen.get_mut(socket) {
            seen.full |= full;
            seen.emptied |= !full;
        }
    }

    /// Whether [`received`](Self::received) wants to know of a call like this.
    #[inline]
    pub fn minds(&self, socket: usize, full: bool) -> bool {
        full || self.is_watching() || self.full_since.get(socket).is_some_and(Option::is_some)
    }

    /// Counts datagrams behind each other, each of `segment_len` bytes but the
    /// last, which may be smaller.
    pub fn count(&mut self, view: &View, buffer: &[u8], segment_len: usize) {
        let mut rest = buffer;
        let segment_len = segment_len.max(1);
        while !rest.is_empty() {
            let head = rest.first_chunk::<8>();
            let same = rest
                .chunks(segment_len)
                .take_while(|datagram| datagram.first_chunk::<8>() == head)
                .count()
                .max(1);
            let (run, behind) = rest.split_at(same.saturating_mul(segment_len).min(rest.len()));
            rest = behind;
            let cost = run.len() + same * PER_DATAGRAM;
            let session = head
                .filter(|_| is_transport(run))
                .map(|[_, _, _, _, index @ ..]| u32::from_le_bytes(*index))
                .and_then(|index| Some((index, view.sessions.get(&index)?.peer)));
            match session {
                Some((index, peer)) => self.charge(peer, index, cost),
                None => self.strangers.came += cost,
            }
        }
    }

    fn charge(&mut self, peer: PeerIndex, index: u32, cost: usize) {
        let first = peer.0 as usize;
        let mut place = first % SLOTS;
        let mut least = usize::MAX;
        for probe in 0..PROBES {
            let at = (first + probe) % SLOTS;
            match &mut self.slots[at] {
                Some(slot) if slot.peer == peer => {
                    slot.came += cost;
                    slot.uses(index);
                    return;
                }
                // Never evict a limited peer.
                Some(slot) if slot.keep < 1.0 => {}
                Some(slot) if slot.came < least => (place, least) = (at, slot.came),
                Some(_) => {}
                None if least > 0 => (place, least) = (at, 0),
                None => {}
            }
        }
        if least == usize::MAX {
            // Only limited peers have a slot now: this one is not counted.
            return;
        }
        self.slots[place] = Some(Slot {
            peer,
            sessions: [Some(index), None, None],
            came: cost,
            silent: 0,
            rate: None,
            keep: 1.0,
        });
    }

    /// When [`tick`](Self::tick) should be called at the latest, even if
    /// nothing is received.
    pub fn next_deadline(&self) -> Option<Instant> {
        let last = self.last_tick.filter(|_| self.is_watching())?;
        last.checked_add(TICK)
    }

    /// Whether it is time for [`tick`](Self::tick).
    #[inline]
    pub fn is_due(&self, now: Instant) -> bool {
        let long_ago = |at: &Instant| now.saturating_duration_since(*at) >= TICK;
        let ticked = self.last_tick.as_ref().is_none_or(long_ago);
        ticked && (self.is_watching() || self.full_since.iter().flatten().any(long_ago))
    }

    /// Looks at what came since the last time. `dropped` are all messages that the
    /// system dropped so far, by limits or because a buffer was full; it may wrap.
    /// Gives the limits that should be in force from now on, if they are others
    /// than before.
    pub fn tick(&mut self, now: Instant, dropped: u32) -> Option<&[Limit]> {
        if !self.is_due(now) {
            return None;
        }
        let passed = self
            .last_tick
            .map(|last| now.saturating_duration_since(last));
        let news = dropped.wrapping_sub(self.dropped);
        let seen = std::mem::take(&mut self.seen);
        self.dropped = dropped;
        self.last_tick = Some(now);
        if self.phase == Phase::Calm {
            if news != 0 {
                self.begin();
            }
            return None;
        }
        if !self.limits.is_empty() {
            self.drops.add(DropReason::OverShare, news.into());
        }
        let Some(passed) = passed.filter(|passed| *passed <= TICK * LONG_TICK) else {
            // The thread was not scheduled for a while; discard this interval.
            self.strangers.came = 0;
            for slot in self.slots.iter_mut().flatten() {
                slot.came = 0;
            }
            return None;
        };
        for (full, seen) in self.full.iter_mut().zip(seen) {
            // The buffer was not polled, so keep the last state.
            if seen.full || seen.emptied {
                *full = !seen.emptied;
            }
        }
        let standing = self.full.contains(&true);
        self.step(passed.as_secs_f64(), standing, news != 0);
        self.adopt()
    }

    /// Forgets everything, as for other sockets. The limits should be lifted.
    pub fn reset(&mut self) {
        *self = Self::new(Arc::clone(&self.drops));
    }

    /// Call after taking a new view: forgets removed peers, since their
    /// places in it are given to others.
    pub fn on_view_change(&mut self, view: &View) {
        for place in &mut self.slots {
            let sessions = place.as_ref().map(|slot| (slot.peer, slot.sessions));
            let lives = sessions.is_none_or(|(peer, sessions)| {
                let of_peer =
                    |index: &u32| view.sessions.get(index).is_some_and(|s| s.peer == peer);
                sessions.iter().flatten().any(of_peer)
            });
            if !lives {
                *place = None;
            }
        }
    }

    fn begin(&mut self) {
        self.phase = Phase::Watching(0);
        self.slots.fill(None);
        self.strangers = Flow::default();
        self.capacity = 0.0;
        self.wanted.clear();
    }

    fn step(&mut self, seconds: f64, standing: bool, overflow: bool) {
        // While a long queue drains, what comes was let in by other rules.
        let measure = match self.phase {
            Phase::Sharing(_) => !standing,
            phase => !matches!(phase, Phase::Draining(_)),
        };
        let received = self.measure(seconds, measure);
        if standing {
            let weight = if self.capacity > 0.0 { NEWEST } else { 1.0 };
            self.capacity += weight * (received - self.capacity);
        }
        self.phase = match self.phase {
            Phase::Calm => Phase::Calm,
            Phase::Watching(quiet) => {
                let quiet = if overflow { 0 } else { quiet + 1 };
                if standing && overflow && self.is_uneven() && self.drain(DRAIN_PART) {
                    self.measured = false;
                    Phase::Draining(0)
                } else if quiet < QUIET_TICKS {
                    Phase::Watching(quiet)
                } else {
                    Phase::Calm
                }
            }
            Phase::Draining(ticks) if standing && ticks < DRAIN_TICKS => {
                if (ticks + 1) % DRAIN_MORE_TICKS == 0 {
                    self.drain(DRAIN_PART / f64::from(1 << ((ticks + 1) / DRAIN_MORE_TICKS)));
                }
                Phase::Draining(ticks + 1)
            }
            // The limited peers do not fill the buffer, or others have begun, whose
            // rates are unknown while it is full: start again, without limits.
            Phase::Draining(_) if standing => {
                self.begin();
                self.phase
            }
            Phase::Draining(_) => {
                (self.standing, self.unlimited) = (0, 0);
                // Once is enough, but for what may have changed.
                let known = std::mem::replace(&mut self.measured, true);
                Phase::Sharing(if known { MEASURE_TICKS - 1 } else { 0 })
            }
            Phase::Sharing(ticks) => {
                self.share(ticks, standing);
                if self.standing >= STUCK_TICKS && self.drain(DRAIN_PART) {
                    Phase::Draining(0)
                } else if self.unlimited < UNLIMITED_TICKS {
                    Phase::Sharing(ticks.saturating_add(1))
                } else {
                    self.wanted.clear();
                    Phase::Watching(0)
                }
            }
        };
    }

    /// Makes rates of what came, and gives the rate of all of it.
    fn measure(&mut self, seconds: f64, believe: bool) -> f64 {
        // In the few ticks after a drain each weighs alike, and what was thought
        // before, when the buffer threw most of it away, no more.
        let weight = match self.phase {
            Phase::Sharing(ticks) if ticks < MEASURE_TICKS => 1.0 / f64::from(ticks + 1),
            _ => NEWEST,
        };
        let mut received = per_second(self.strangers.came, seconds);
        if believe {
            self.strangers.rate += weight * (received - self.strangers.rate);
        }
        self.strangers.came = 0;
        for place in &mut self.slots {
            let Some(slot) = place else { continue };
            let came = per_second(slot.came, seconds);
            received += came;
            slot.silent = if slot.came > 0 { 0 } else { slot.silent + 1 };
            slot.came = 0;
            if believe {
                let sent = came / slot.keep;
                let known = slot.rate.unwrap_or(sent);
                slot.rate = Some(known + weight * (sent - known));
            }
            if slot.silent > SILENT_TICKS && slot.keep >= 1.0 {
                *place = None;
            }
        }
        received
    }

    /// The total rate, and the number of peers.
    #[allow(clippy::cast_precision_loss)] // a few hundred
    fn senders(&self) -> (f64, f64) {
        let rates = self.slots.iter().flatten().map(Slot::rate);
        let all = self.strangers.rate + rates.sum::<f64>();
        (all, self.slots.iter().flatten().count() as f64)
    }

    /// Whether a peer takes clearly more than the others.
    fn is_uneven(&self) -> bool {
        let (all, count) = self.senders();
        let rates = self.slots.iter().flatten().map(Slot::rate);
        rates.fold(0.0, f64::max) > UNEVEN * all / count
    }

    /// Limits the peers that take more than an even share. `false` if there are none.
    fn drain(&mut self, part: f64) -> bool {
        let (all, count) = self.senders();
        if count < 2.0 {
            return false;
        }
        let least = self
            .even_level(part * self.capacity)
            .max(self.strangers.rate);
        self.limit(all, |rate| if rate > least { DRAIN_KEEP } else { 1.0 })
    }

    fn share(&mut self, ticks: u32, standing: bool) {
        if ticks < MEASURE_TICKS {
            return;
        }
        self.standing = if standing { self.standing + 1 } else { 0 };
        let (all, count) = self.senders();
        let floor = (self.capacity / count.max(1.0)).max(self.strangers.rate);
        let even = self.even_level(self.capacity);
        self.level = match (ticks, self.standing) {
            (MEASURE_TICKS, _) => even,
            (_, 0) if self.level < FAR_BELOW * even => self.level * UP_FAST,
            (_, 0) => self.level * UP,
            (_, STANDING_TICKS..) => self.level * DOWN,
            _ => self.level,
        };
        let rates = self.slots.iter().flatten().map(Slot::rate);
        let most = rates.fold(0.0, f64::max);
        // Not higher than a level that limits no peer, so that it comes down soon.
        self.level = self.level.min(2.0 * most).max(floor);
        let level = self.level;
        let any = count >= 2.0 && self.limit(all, |rate| level / rate);
        self.unlimited = if any { 0 } else { self.unlimited + 1 };
        if !any {
            self.lift();
        }
    }

    /// The level at which all senders together take `capacity`, if those below get
    /// all that they send (max-min fairness). Unauthenticated senders count as one.
    #[allow(clippy::cast_precision_loss)] // a few hundred
    fn even_level(&self, capacity: f64) -> f64 {
        let rates = || {
            let peers = self.slots.iter().flatten().map(Slot::rate);
            peers.chain([self.strangers.rate])
        };
        let mut level = capacity / rates().count() as f64;
        loop {
            let (mut above, mut rest) = (0usize, capacity);
            for rate in rates() {
                if rate > level {
                    above += 1;
                } else {
                    rest -= rate;
                }
            }
            // Each round finds a sender below the level, or is the last one.
            let higher = rest / above.max(1) as f64;
            if above == 0 || higher <= level * 1.001 {
                return level;
            }
            level = higher;
        }
    }

    /// Sets the part to let in for each heavy peer that would get less than
    /// all, and all to the others. Says whether there are any.
    fn limit(&mut self, all: f64, part: impl Fn(f64) -> f64) -> bool {
        let mut any = false;
        for slot in self.slots.iter_mut().flatten() {
            let rate = slot.rate();
            let keep = if rate > 0.0 && rate >= all * HEAVY_PART {
                part(rate).clamp(0.0, 1.0)
            } else {
                1.0
            };
            let limited = keep < 1.0;
            any |= limited;
            // Rates are computed from the limits in force.
            if limited != (slot.keep < 1.0) || (keep / slot.keep - 1.0).abs() > NOTICEABLE {
                slot.keep = keep;
            }
        }
        any
    }

    fn lift(&mut self) {
        for slot in self.slots.iter_mut().flatten() {
            slot.keep = 1.0;
        }
    }

    /// The limits as they should be, if they are others than those in force.
    fn adopt(&mut self) -> Option<&[Limit]> {
        self.wanted.clear();
        for slot in self.slots.iter().flatten().filter(|slot| slot.keep < 1.0) {
            let limit = |index: &u32| Limit {
                index: *index,
                keep: slot.keep,
            };
            self.wanted
                .extend(slot.sessions.iter().flatten().map(limit));
        }
        if self.wanted == self.limits {
            return None;
        }
        std::mem::swap(&mut self.wanted, &mut self.limits);
        Some(&self.limits)
    }
}

impl Slot {
    /// Notes a session that the peer used.
    #[inline]
    fn uses(&mut self, index: u32) {
        if self.sessions[0] == Some(index) {
            return;
        }
        if !self.sessions.contains(&Some(index)) {
            self.sessions.rotate_right(1);
            self.sessions[0] = Some(index);
        }
    }

    fn rate(&self) -> f64 {
        self.rate.unwrap_or(0.0)
    }
}

#[allow(clippy::cast_precision_loss)] // bytes of a few milliseconds
fn per_second(bytes: usize, seconds: f64) -> f64 {
    bytes as f64 / seconds
}

impl std::fmt::Debug for FairShare {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FairShare")
            .field("phase", &self.phase)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

//! Shares under pressure, against a model of a socket under a virtual clock: a
//! receive buffer of bounded size in front of a node that takes so many bytes in
//! a second.

#![allow(clippy::unwrap_used)]

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use warren_dataplane::{DropReason, Drops, FairShare, Limit, SessionView, View};
use warren_dataplane_testkit::{allow_all, sessions, view};
use warren_tunnel::PeerIndex;

/// Bytes that fit into the buffer, and messages that one call gives.
const BUFFER: usize = 7 << 20;
const BATCH: usize = 16;
/// Bytes per second that the node can take.
const CAPACITY: f64 = 200e6;
/// The cost of a message without its bytes, in seconds.
const CALL: f64 = 1e-6;

/// The session of a peer.
fn session(peer: usize) -> u32 {
    0x1000 + peer as u32
}

fn many_peers(peers: usize, now: Instant) -> View {
    let mut view = view(1, 2, &sessions(now)[0], now, &allow_all());
    let any = view.sessions.values().next().unwrap().session.clone();
    view.sessions.clear();
    for peer in 0..peers {
        let slot = SessionView {
            peer: PeerIndex(peer as u32),
            session: Arc::clone(&any),
        };
        view.sessions.insert(session(peer), slot);
    }
    view
}

/// A sender, its rate and the shape of its messages.
#[derive(Debug, Clone)]
struct Sender {
    /// `None`: an unauthenticated sender, with another index each time.
    peer: Option<usize>,
    bytes_per_second: f64,
    /// In one message.
    datagrams: usize,
    len: usize,
    /// Between these times, in seconds.
    span: (f64, f64),
}

impl Sender {
    fn modest(peer: usize) -> Self {
        Self {
            peer: Some(peer),
            bytes_per_second: 128_000.0,
            datagrams: 1,
            len: 1280,
            span: (0.0, 9.0),
        }
    }

    fn heavy(peer: usize, bytes_per_second: f64) -> Self {
        Self {
            bytes_per_second,
            datagrams: 32,
            ..Self::modest(peer)
        }
    }

    fn unauthenticated(bytes_per_second: f64) -> Self {
        Self {
            peer: None,
            bytes_per_second,
            ..Self::modest(0)
        }
    }
}

/// The fate of a message.
#[derive(Debug, Clone, Copy)]
struct Fate {
    from: usize,
    sent: f64,
    /// When it was received.
    received: Option<f64>,
}

struct World {
    start: Instant,
    view: View,
    fair: FairShare,
    drops: Arc<Drops>,
    senders: Vec<Sender>,
    next: Vec<f64>,
    limits: Vec<Limit>,
    waiting: VecDeque<usize>,
    held: usize,
    dropped: u32,
    fates: Vec<Fate>,
    dice: u64,
    now: f64,
    /// The node sleeps for so long, so often: seconds.
    stalls: Option<(f64, f64)>,
    next_stall: f64,
    /// When limits were in force, and how much was let in.
    history: Vec<(f64, Vec<Limit>)>,
}

impl World {
    fn new(senders: Vec<Sender>) -> Self {
        let start = Instant::now();
        let peers = senders.iter().filter_map(|sender| sender.peer).max();
        let drops = Arc::new(Drops::new());
        // Everybody begins at another moment.
        let next = (0..senders.len())
            .map(|i| senders[i].span.0 + 0.01 * (i as f64 * 0.618).fract())
            .collect();
        Self {
            start,
            view: many_peers(peers.map_or(0, |peer| peer + 1), start),
            fair: FairShare::new(Arc::clone(&drops)),
            drops,
            senders,
            next,
            limits: Vec::new(),
            waiting: VecDeque::new(),
            held: 0,
            dropped: 0,
            fates: Vec::new(),
            dice: 88_172_645_463_325_252,
            now: 0.0,
            stalls: None,
            next_stall: 0.0,
            history: Vec::new(),
        }
    }

    fn roll(&mut self) -> u64 {
        self.dice ^= self.dice << 13;
        self.dice ^= self.dice >> 7;
        self.dice ^= self.dice << 17;
        self.dice
    }

    /// Everything that is sent until now comes to the socket.
    fn arrive(&mut self) {
        loop {
            let first =
                (0..self.senders.len()).min_by(|a, b| self.next[*a].total_cmp(&self.next[*b]));
            let Some(from) = first.filter(|from| self.next[*from] <= self.now) else {
                return;
            };
            let sent = self.next[from];
            let sender = self.senders[from].clone();
            let bytes = sender.datagrams * sender.len;
            self.next[from] += bytes as f64 / sender.bytes_per_second;
            if sent >= sender.span.1 {
                self.next[from] = f64::INFINITY;
                continue;
            }
            let limit = self
                .limits
                .iter()
                .find(|limit| sender.peer.is_some_and(|peer| session(peer) == limit.index));
            let keep = limit.map_or(1.0, |limit| limit.keep);
            let lot = (self.roll() >> 11) as f64 / (1u64 << 53) as f64;
            self.fates.push(Fate {
                from,
                sent,
                received: None,
            });
            if lot >= keep || self.held + bytes > BUFFER {
                self.dropped += 1;
                continue;
            }
            self.held += bytes;
            self.waiting.push_back(self.fates.len() - 1);
        }
    }

    /// Lets the node receive until `end`, in seconds.
    fn run(&mut self, end: f64) {
        while self.now < end {
            if let Some((sleep, every)) = self.stalls
                && self.now >= self.next_stall
            {
                self.next_stall = self.now + every;
                self.now += sleep;
            }
            self.arrive();
            let count = self.waiting.len().min(BATCH);
            let full = count == BATCH;
            let at = self.start + Duration::from_secs_f64(self.now);
            let minds = self.fair.minds(0, full);
            let watching = self.fair.is_watching();
            if minds {
                self.fair.received(at, 0, full);
            }
            let mut cost = 0.0;
            for _ in 0..count {
                let number = self.waiting.pop_front().unwrap();
                let sender = self.senders[self.fates[number].from].clone();
                let bytes = sender.len * sender.datagrams;
                self.held -= bytes;
                self.fates[number].received = Some(self.now);
                cost += CALL + bytes as f64 / CAPACITY;
                if watching {
                    let mut datagram = vec![0; sender.len];
                    datagram[0] = 4;
                    let index = match sender.peer {
                        Some(peer) => session(peer),
                        None => 0x8000_0000 | self.roll() as u32,
                    };
                    datagram[4..8].copy_from_slice(&index.to_le_bytes());
                    let batch = datagram.repeat(sender.datagrams);
                    self.fair.count(&self.view, &batch, sender.len);
                }
            }
            if self.fair.is_due(at)
                && let Some(limits) = self.fair.tick(at, self.dropped)
            {
                self.limits = limits.to_vec();
                self.history.push((self.now, self.limits.clone()));
            }
            if count > 0 {
                self.now += cost;
            } else {
                // Asleep until something comes, or it is time.
                let deadline = self.fair.next_deadline().map_or(f64::INFINITY, |at| {
                    at.saturating_duration_since(self.start).as_secs_f64() + 1e-9
                });
                let next = self.next.iter().copied().fold(deadline, f64::min);
                self.now = next.min(end).max(self.now + 1e-7);
            }
        }
    }

    fn of(&self, from: usize, span: (f64, f64)) -> impl Iterator<Item = &Fate> {
        let fates = self.fates.iter();
        fates.filter(move |fate| fate.from == from && fate.sent >= span.0 && fate.sent < span.1)
    }

    /// The part of a sender's messages that did not get in.
    fn lost(&self, from: usize, span: (f64, f64)) -> f64 {
        let all = self.of(from, span).count();
        let lost = self.of(from, span).filter(|fate| fate.received.is_none());
        lost.count() as f64 / all.max(1) as f64
    }

    /// Bytes per second that were received of a sender.
    fn received(&self, from: usize, span: (f64, f64)) -> f64 {
        let sender = &self.senders[from];
        let got = self.of(from, span).filter(|fate| fate.received.is_some());
        (got.count() * sender.datagrams * sender.len) as f64 / (span.1 - span.0)
    }

    /// How long 99 of 100 wait in the buffer at most.
    fn wait(&self, from: usize, span: (f64, f64)) -> f64 {
        let waits = self
            .of(from, span)
            .filter_map(|fate| Some(fate.received? - fate.sent));
        let mut waits: Vec<f64> = waits.collect();
        waits.sort_by(f64::total_cmp);
        waits[waits.len() * 99 / 100]
    }

    fn was_limited(&self, peer: usize) -> bool {
        let all = self.history.iter().flat_map(|(_, limits)| limits);
        all.into_iter().any(|limit| limit.index == session(peer))
    }
}

/// One floods, nine say little.
fn flooded(rate: f64) -> World {
    let mut senders = vec![Sender::heavy(0, rate)];
    senders[0].span = (0.5, 3.5);
    senders.extend((1..10).map(Sender::modest));
    World::new(senders)
}

#[test]
fn quiet_peers_lose_nothing_to_a_flood() {
    for times in [1.3, 2.0, 5.0, 20.0] {
        let mut world = flooded(times * CAPACITY);
        world.run(3.5);
        let later = (0.8, 3.5);
        for peer in 1..10 {
            let (lost, wait) = (world.lost(peer, later), world.wait(peer, later));
            assert!(lost < 0.01, "{times}: {peer} lost {lost}");
            assert!(wait < 0.020, "{times}: {peer} waited {wait}");
            assert!(!world.was_limited(peer));
            // The first moment, too, is short.
            let lost = world.lost(peer, (0.5, 3.5));
            assert!(lost < 0.05, "{times}: {peer} lost {lost} of all");
        }
        // The rest is for the peer that floods.
        let flood = world.received(0, later);
        assert!(flood > 0.8 * CAPACITY, "{times}: {flood}");
        assert!(world.drops.get(DropReason::OverShare) > 100);
    }
}

/// On a busy machine the node does not run all the time.
#[test]
fn pause_of_the_thread_limits_no_peer() {
    let mut world = flooded(3.0 * CAPACITY);
    world.stalls = Some((0.008, 0.030));
    world.run(3.5);
    let later = (0.8, 3.5);
    for peer in 1..10 {
        let (lost, wait) = (world.lost(peer, later), world.wait(peer, later));
        assert!(lost < 0.01, "{peer} lost {lost}");
        assert!(wait < 0.035, "{peer} waited {wait}");
    }
    let flood = world.received(0, later);
    assert!(flood > 0.5 * CAPACITY, "{flood}");
}

#[test]
fn after_a_flood_all_is_as_before() {
    let mut world = flooded(3.0 * CAPACITY);
    // The one that floods is modest afterwards.
    let mut after = Sender::modest(0);
    after.span = (3.5, 9.0);
    world.senders.push(after);
    world.next.push(3.5);
    world.run(3.4);
    assert!(!world.limits.is_empty());
    world.run(3.6);
    assert!(world.limits.is_empty(), "{:?}", world.limits);
    world.run(4.0);
    assert!(!world.fair.is_watching());
    assert_eq!(world.fair.next_deadline(), None);
    for sender in 1..11 {
        assert!(world.lost(sender, (3.6, 4.0)) == 0.0);
    }
}

#[test]
fn heavy_peers_get_equal_shares() {
    let mut senders = vec![
        Sender::heavy(0, 2.5 * CAPACITY),
        Sender::heavy(1, 0.8 * CAPACITY),
        // Less than a third of what there is.
        Sender::heavy(2, 0.2 * CAPACITY),
    ];
    senders.extend((3..20).map(Sender::modest));
    let mut world = World::new(senders);
    world.run(4.0);
    let span = (0.5, 4.0);
    let (a, b) = (world.received(0, span), world.received(1, span));
    assert!(a / b < 1.2 && b / a < 1.2, "{a} and {b}");
    assert!(a + b > 0.65 * CAPACITY);
    for sender in 2..20 {
        let lost = world.lost(sender, span);
        assert!(lost < 0.01, "{sender} lost {lost}");
    }
}

#[test]
fn a_single_peer_is_never_limited() {
    // With handshakes and the like beside it.
    let mut world = World::new(vec![
        Sender::heavy(0, 2.0 * CAPACITY),
        Sender::unauthenticated(0.001 * CAPACITY),
    ]);
    world.run(2.0);
    assert!(world.dropped > 1000);
    assert!(world.history.is_empty());
    assert_eq!(world.drops.total(), 0);
}

#[test]
fn no_peer_is_limited_without_an_overflow() {
    // A long queue, as one TCP connection makes, is not yet a loss.
    let mut senders = vec![Sender::heavy(0, 1.5 * CAPACITY), Sender::modest(1)];
    senders[0].span = (0.0, 0.02);
    let mut world = World::new(senders);
    world.run(0.5);
    assert_eq!(world.dropped, 0);
    assert!(!world.fair.is_watching());
    assert!(world.history.is_empty());
}

#[test]
fn unauthenticated_flood_limits_no_peer() {
    let mut senders = vec![
        Sender::heavy(0, 0.3 * CAPACITY),
        Sender::unauthenticated(4.0 * CAPACITY),
    ];
    senders.extend((1..10).map(Sender::modest));
    let mut world = World::new(senders);
    world.run(1.5);
    assert!(world.dropped > 1000);
    assert!(world.history.is_empty(), "{:?}", world.history);
}

#[test]
fn unauthenticated_senders_do_not_hide_the_peer_that_floods() {
    let mut world = flooded(3.0 * CAPACITY);
    world.senders.push(Sender::unauthenticated(0.05 * CAPACITY));
    world.next.push(0.0);
    world.run(3.5);
    for peer in 1..11 {
        let lost = world.lost(peer, (0.8, 3.5));
        assert!(lost < 0.01, "{peer} lost {lost}");
    }
}

/// Unauthenticated senders that begin while a peer is limited cannot keep it
/// limited, nor get others limited.
#[test]
fn later_unauthenticated_senders_change_nothing_for_peers() {
    let mut world = flooded(3.0 * CAPACITY);
    world.senders.push(Sender {
        span: (1.0, 4.0),
        ..Sender::unauthenticated(9.0 * CAPACITY)
    });
    world.next.push(1.0);
    world.run(4.0);
    let mut limited = 0.0;
    for (n, (at, limits)) in world.history.iter().enumerate() {
        assert!(limits.iter().all(|limit| limit.index == session(0)));
        let end = world.history.get(n + 1).map_or(4.0, |next| next.0);
        if !limits.is_empty() && *at > 1.5 {
            limited += end - at;
        }
    }
    assert!(limited < 0.5, "limited for {limited} s of 2.5");
}

#[test]
fn removed_peers_leave_no_limits() {
    let mut world = flooded(3.0 * CAPACITY);
    world.run(1.0);
    assert!(!world.limits.is_empty());
    world.view.sessions.remove(&session(0));
    world.fair.on_view_change(&world.view);
    world.senders[0].span.1 = 1.0;
    world.run(1.1);
    assert!(world.limits.is_empty(), "{:?}", world.limits);
}

#[test]
fn thousand_peers_with_equal_rates_are_not_limited() {
    let rate = 2.0 * CAPACITY / 1000.0;
    let senders = (0..1000).map(|peer| Sender {
        bytes_per_second: rate,
        ..Sender::modest(peer)
    });
    let mut world = World::new(senders.collect());
    world.run(0.3);
    assert!(world.dropped > 1000);
    assert!(world.history.is_empty(), "{:?}", world.history);
}

#[test]
fn ten_peers_with_equal_rates_are_not_limited() {
    let senders = (0..10).map(|peer| Sender::heavy(peer, 0.3 * CAPACITY));
    let mut world = World::new(senders.collect());
    world.run(1.0);
    assert!(world.dropped > 1000);
    assert!(world.history.is_empty(), "{:?}", world.history);
}

#[test]
fn one_flooding_peer_of_a_thousand_is_limited() {
    let mut senders = vec![Sender::heavy(0, 2.0 * CAPACITY)];
    senders.extend((1..1000).map(|peer| Sender {
        bytes_per_second: 12_800.0,
        ..Sender::modest(peer)
    }));
    let mut world = World::new(senders);
    world.run(1.5);
    let lost: f64 = (1..1000).map(|peer| world.lost(peer, (0.3, 1.5))).sum();
    assert!(lost / 999.0 < 0.01, "{lost}");
}

/// Changing sessions does not help: a peer is limited, in all that it uses.
#[test]
fn several_sessions_are_one_peer() {
    let mut world = flooded(3.0 * CAPACITY);
    let slot = world.view.sessions[&session(0)].clone();
    world.view.sessions.insert(session(10), slot);
    world.senders[0].bytes_per_second /= 2.0;
    let mut second = world.senders[0].clone();
    second.peer = Some(10);
    world.senders.push(second);
    world.next.push(0.5);
    world.run(3.5);
    for peer in 1..10 {
        let lost = world.lost(peer, (0.8, 3.5));
        assert!(lost < 0.01, "{peer} lost {lost}");
    }
    let (_, limits) = world
        .history
        .iter()
        .rev()
        .find(|(_, limits)| limits.len() == 2)
        .unwrap();
    assert_eq!(limits[0].keep, limits[1].keep);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// For any senders: limits are fractions, of sessions that exist, never of a
    /// peer that takes less than an even share of the node's capacity, and they end.
    #[test]
    fn only_peers_above_an_even_share_are_limited(
        peers in prop::collection::vec((0.0001f64..3.0, 1usize..40, 100usize..1400), 1..8),
        unauthenticated in 0.001f64..2.0,
    ) {
        let mut senders: Vec<_> = peers.iter().enumerate().map(|(peer, (rate, datagrams, len))| Sender {
            peer: Some(peer),
            bytes_per_second: rate * CAPACITY,
            datagrams: *datagrams,
            len: *len,
            span: (0.0, 0.4),
        }).collect();
        let mut others = Sender::unauthenticated(unauthenticated * CAPACITY);
        others.span = (0.0, 0.4);
        senders.push(others);
        let mut world = World::new(senders);
        world.run(1.0);
        for (_, limits) in &world.history {
            for limit in limits {
                prop_assert!(limit.keep > 0.0 && limit.keep < 1.0);
                let peer = (limit.index - session(0)) as usize;
                let rate = peers[peer].0;
                // With a margin for the random draw and for the cost of small datagrams.
                prop_assert!(rate * peers.len() as f64 > 0.15, "{peers:?} {limit:?}");
                prop_assert!(peers.len() > 1);
            }
        }
        prop_assert!(world.limits.is_empty());
        prop_assert!(!world.fair.is_watching());
    }
}

//! One end of a tunnel as a node would run it, and a network between two.

#![allow(clippy::unwrap_used, dead_code, missing_docs)]

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use warren_keys::{NodePublic, NodeSecret};
use warren_testkit::SeededEntropy;
use warren_tunnel::{Activity, Event, Handshakes, PeerIndex, ReplayWindow, Session, Source};
use warren_wire::wireguard::{TRANSPORT_OVERHEAD, is_transport, padded};

pub const PEER: PeerIndex = PeerIndex(0);

pub fn secret(byte: u8) -> NodeSecret {
    NodeSecret::from_bytes(&[byte; 32])
}

pub fn source(port: u16) -> Source {
    Source::Udp(std::net::SocketAddr::from(([192, 0, 2, 1], port)))
}

/// The number of refused datagrams, by reason.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    pub unknown: u32,
    pub forged: u32,
    pub replayed: u32,
    pub expired: u32,
}

/// A node with one peer.
pub struct Side {
    pub handshakes: Handshakes,
    pub sessions: BTreeMap<u32, (Arc<Session>, ReplayWindow, bool)>,
    pub sending: Option<Arc<Session>>,
    pub staged: VecDeque<Vec<u8>>,
    /// Datagrams for the network.
    pub out: Vec<Vec<u8>>,
    pub received: Vec<Vec<u8>>,
    pub refused: Refused,
    pub activity: Activity,
    pub sessions_made: u32,
    pub keepalives: u32,
    pub failed: u32,
}

impl Side {
    pub fn new(own: NodeSecret, peer: NodePublic, seed: u64, now: Instant) -> Self {
        let mut handshakes = Handshakes::new(own, Box::new(SeededEntropy(seed)));
        handshakes.add_peer(now, PEER, peer);
        Self {
            handshakes,
            sessions: BTreeMap::new(),
            sending: None,
            staged: VecDeque::new(),
            out: Vec::new(),
            received: Vec::new(),
            refused: Refused::default(),
            activity: Activity::default(),
            sessions_made: 0,
            keepalives: 0,
            failed: 0,
        }
    }

    /// Sends or keeps a packet, as the data plane does.
    pub fn send(&mut self, now: Instant, wall: Duration, packet: &[u8]) {
        match self.sending.clone().filter(|s| !s.is_expired(now)) {
            Some(session) => {
                self.seal(now, &session, packet);
                if session.wants_rekey(now) {
                    self.handshakes.want_session(now, wall, PEER);
                }
            }
            None => {
                self.staged.push_back(packet.to_vec());
                self.handshakes.want_session(now, wall, PEER);
            }
        }
        self.pump(now);
    }

    fn seal(&mut self, now: Instant, session: &Session, packet: &[u8]) {
        let mut datagram = vec![0; padded(packet.len()) + TRANSPORT_OVERHEAD];
        datagram[16..16 + packet.len()].copy_from_slice(packet);
        let counter = session.reserve(1).unwrap();
        session.seal_in_place(counter, &mut datagram).unwrap();
        self.out.push(datagram);
        self.activity.last_sent = Some(now);
        if !packet.is_empty() {
            self.activity.last_data_sent = Some(now);
        }
    }

    /// Takes a datagram from the network.
    pub fn receive(&mut self, now: Instant, wall: Duration, from: Source, mut datagram: Vec<u8>) {
        if is_transport(&datagram) {
            self.open(now, &mut datagram);
        } else {
            self.handshakes.handle_datagram(now, wall, from, &datagram);
        }
        self.pump(now);
    }

    fn open(&mut self, now: Instant, datagram: &mut [u8]) {
        let index = u32::from_le_bytes(datagram[4..8].try_into().unwrap());
        let Some((session, window, confirmed)) = self.sessions.get_mut(&index) else {
            self.refused.unknown += 1;
            return;
        };
        if session.is_expired(now) {
            self.refused.expired += 1;
            return;
        }
        let Ok((counter, range)) = session.open_in_place(datagram) else {
            self.refused.forged += 1;
            return;
        };
        if !window.accept(counter) {
            self.refused.replayed += 1;
            return;
        }
        if !std::mem::replace(confirmed, true) {
            self.handshakes.session_confirmed(now, index);
        }
        self.activity.last_received = Some(now);
        if !range.is_empty() {
            self.activity.last_data_received = Some(now);
            self.received.push(datagram[range].to_vec());
        }
    }

    /// The engine's sample of the counters, taken once per second.
    pub fn sample(&mut self, now: Instant, wall: Duration) {
        self.handshakes
            .note_activity(now, wall, PEER, self.activity);
        self.pump(now);
    }

    pub fn timeout(&mut self, now: Instant, wall: Duration) {
        self.handshakes.handle_timeout(now, wall);
        self.pump(now);
    }

    pub fn pump(&mut self, now: Instant) {
        while let Some(event) = self.handshakes.poll_event() {
            match event {
                Event::Send { datagram, .. } => self.out.push(datagram),
                Event::NewSession {
                    session, confirmed, ..
                } => {
                    self.sessions_made += 1;
                    let entry = (Arc::clone(&session), ReplayWindow::new(), false);
                    self.sessions.insert(session.local_index(), entry);
                    if confirmed {
                        self.use_session(now, session);
                    }
                }
                Event::SessionConfirmed { session, .. } => self.use_session(now, session),
                Event::SessionExpired { local_index, .. } => {
                    self.sessions.remove(&local_index);
                    self.sending.take_if(|s| s.local_index() == local_index);
                }
                Event::SendKeepalive { .. } => {
                    self.keepalives += 1;
                    if let Some(session) = self.sending.clone() {
                        self.seal(now, &session, &[]);
                    }
                }
                Event::HandshakeFailed { .. } => {
                    self.failed += 1;
                    self.staged.clear();
                }
            }
        }
    }

    fn use_session(&mut self, now: Instant, session: Arc<Session>) {
        self.sending = Some(Arc::clone(&session));
        while let Some(packet) = self.staged.pop_front() {
            self.seal(now, &session, &packet);
        }
    }
}

/// Two nodes and a network between them, under one virtual clock.
pub struct Pair {
    pub now: Instant,
    pub wall: Duration,
    pub sides: [Side; 2],
    pub random: SeededEntropy,
    /// Datagrams lost, in percent.
    pub loss: u64,
    /// Longest time on the way, in milliseconds; each takes a random part.
    pub latency: u64,
    flying: BTreeMap<(Instant, u64), (usize, Vec<u8>)>,
    number: u64,
    next_sample: Instant,
}

impl Pair {
    pub fn new(seed: u64) -> Self {
        let now = Instant::now();
        let (a, b) = (secret(1), secret(2));
        let (pa, pb) = (a.public(), b.public());
        Self {
            now,
            wall: Duration::from_secs(1_700_000_000),
            sides: [
                Side::new(a, pb, seed ^ 1, now),
                Side::new(b, pa, seed ^ 2, now),
            ],
            random: SeededEntropy(seed),
            loss: 0,
            latency: 20,
            flying: BTreeMap::new(),
            number: 0,
            next_sample: now,
        }
    }

    pub fn send(&mut self, from: usize, packet: &[u8]) {
        self.sides[from].send(self.now, self.wall, packet);
        self.collect();
    }

    /// A new process on one side: nothing is left but its key.
    pub fn restart(&mut self, side: usize) {
        let (own, peer) = (secret(side as u8 + 1), secret(2 - side as u8).public());
        self.sides[side] = Side::new(own, peer, self.random.next_u64(), self.now);
    }

    /// Lets time pass.
    pub fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let arrival = self.flying.keys().next().map(|(at, _)| *at);
            let timers = self
                .sides
                .iter()
                .filter_map(|s| Some(s.handshakes.next_deadline()?.0));
            let next = timers
                .chain(arrival)
                .chain([self.next_sample])
                .min()
                .unwrap();
            if next > end {
                break;
            }
            self.advance(next);
            for side in &mut self.sides {
                side.timeout(self.now, self.wall);
            }
            if self.now >= self.next_sample {
                for side in &mut self.sides {
                    side.sample(self.now, self.wall);
                }
                self.next_sample += Duration::from_secs(1);
            }
            while let Some(entry) = self.flying.first_entry() {
                if entry.key().0 > self.now {
                    break;
                }
                let (to, datagram) = entry.remove();
                self.sides[to].receive(self.now, self.wall, source(1 + to as u16), datagram);
            }
            self.collect();
        }
        self.advance(end);
    }

    fn advance(&mut self, to: Instant) {
        self.wall += to.saturating_duration_since(self.now);
        self.now = self.now.max(to);
    }

    fn collect(&mut self) {
        for from in 0..2 {
            for datagram in std::mem::take(&mut self.sides[from].out) {
                if self.random.below(100) < self.loss {
                    continue;
                }
                let delay = Duration::from_millis(1 + self.random.below(self.latency.max(1)));
                self.number += 1;
                self.flying
                    .insert((self.now + delay, self.number), (1 - from, datagram));
            }
        }
    }
}

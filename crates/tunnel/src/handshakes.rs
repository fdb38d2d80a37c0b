//! All handshakes of a node.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;
use warren_keys::{Entropy, NodePublic, NodeSecret};
use warren_timers::DeadlineQueue;
use warren_wire::wireguard::{CookieReply, Initiation, Message, Response};
use zerocopy::IntoBytes as _;
use zeroize::Zeroizing;

use crate::cipher::Aead;
use crate::cookie::{Checker, Macs, Proof};
use crate::load::Load;
use crate::noise::{Identity, TransportKeys};
use crate::peer::{Attempt, Demand, Peer};
use crate::timestamp::Clock;
use crate::{
    Activity, INITIATION_INTERVAL, PeerIndex, REKEY_ATTEMPT_TIME, REKEY_JITTER, REKEY_TIMEOUT,
    Role, Session, Source,
};

/// An action that [`Handshakes`] requests.
#[derive(Debug)]
pub enum Event {
    /// Send a handshake message.
    Send {
        /// The receiver; `None` for a cookie reply to an unauthenticated sender.
        peer: Option<PeerIndex>,
        /// Where the message that this answers came from; `None` for an
        /// initiation. The path to the peer, if better, may be used as well.
        reply_to: Option<Source>,
        /// The message.
        datagram: Vec<u8>,
    },
    /// A handshake ended well. The session may receive from now on; with
    /// `confirmed` it is also the one to send with.
    NewSession {
        /// The peer.
        peer: PeerIndex,
        /// The keys.
        session: Arc<Session>,
        /// Whether we started the handshake.
        initiator: bool,
        /// Whether it may be sent with. A responder's session waits for
        /// [`Handshakes::session_confirmed`].
        confirmed: bool,
    },
    /// A responder's session was confirmed: send with it from now on.
    SessionConfirmed {
        /// The peer.
        peer: PeerIndex,
        /// The keys, known from [`Event::NewSession`].
        session: Arc<Session>,
    },
    /// A session must not be used any more, neither to send nor to receive.
    SessionExpired {
        /// The peer.
        peer: PeerIndex,
        /// Which.
        local_index: u32,
    },
    /// Send an empty packet: to confirm a new session to the responder, or to
    /// confirm to the peer that its data arrives.
    SendKeepalive {
        /// The receiver.
        peer: PeerIndex,
    },
    /// No response for 90 seconds. Packets that wait for this peer are best
    /// thrown away; the next one starts a new attempt.
    HandshakeFailed {
        /// The peer.
        peer: PeerIndex,
    },
}

/// Why [`Handshakes`] wants to be called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// An initiation has no response yet.
    RetryHandshake,
    /// Data came in and nothing went out.
    Keepalive,
    /// Data went out and nothing came in.
    Silence,
    /// A session reaches its maximum age.
    ExpireSession,
    /// The last session of a peer is long gone.
    ForgetPeer,
}

impl Reason {
    /// A few words for logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::RetryHandshake => "handshake retry",
            Self::Keepalive => "keepalive",
            Self::Silence => "no answer to data",
            Self::ExpireSession => "session too old",
            Self::ForgetPeer => "forget keys",
        }
    }
}

/// Counters of handshake messages since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HandshakeCounters {
    /// Initiations sent, retries included.
    pub initiations_sent: u64,
    /// Responses sent.
    pub responses_sent: u64,
    /// Sessions made, in either role.
    pub completed: u64,
    /// Cookie replies sent.
    pub cookies_sent: u64,
    /// Cookies received and kept.
    pub cookies_received: u64,
    /// Attempts given up.
    pub failed: u64,
    /// Dropped: not a handshake message, or of the wrong length.
    pub malformed: u64,
    /// Dropped: `mac1` is wrong, so not meant for our key.
    pub bad_mac: u64,
    /// Dropped: from a key that does not belong to a peer.
    pub unknown_peer: u64,
    /// Dropped: does not authenticate.
    pub invalid: u64,
    /// Dropped: timestamp not greater than the last one.
    pub replayed: u64,
    /// Dropped: too soon after the last initiation of the peer, or too many
    /// from one address under load.
    pub flooded: u64,
    /// Dropped: a response or cookie for no pending handshake.
    pub unsolicited: u64,
}

/// The handshakes, sessions and timers of all peers of a node.
///
/// Call [`poll_event`](Self::poll_event) until it is empty after every other
/// call, and [`handle_timeout`](Self::handle_timeout) at
/// [`next_deadline`](Self::next_deadline). `wall` is the time since the UNIX
/// epoch; it only goes into timestamps and may jump.
pub struct Handshakes {
    identity: Identity,
    /// For the sessions to come.
    aead: Aead,
    entropy: Box<dyn Entropy>,
    clock: Clock,
    checker: Checker,
    load: Load,
    peers: BTreeMap<PeerIndex, Peer>,
    by_key: FxHashMap<NodePublic, PeerIndex>,
    /// The peer of each of our indices: those of sessions and of initiations that
    /// wait for a response.
    by_index: FxHashMap<u32, PeerIndex>,
    deadlines: DeadlineQueue<PeerIndex>,
    events: VecDeque<Event>,
    counters: HandshakeCounters,
}

impl Handshakes {
    /// Handshakes of the node with this key.
    pub fn new(secret: NodeSecret, entropy: Box<dyn Entropy>) -> Self {
        let identity = Identity::new(&secret);
        let checker = Checker::new(&identity.public());
        Self {
            identity,
            aead: Aead::default(),
            entropy,
            clock: Clock::default(),
            checker,
            load: Load::default(),
            peers: BTreeMap::new(),
            by_key: FxHashMap::default(),
            by_index: FxHashMap::default(),
            deadlines: DeadlineQueue::new(),
            events: VecDeque::new(),
            counters: HandshakeCounters::default(),
        }
    }

    /// Lets the sessions to come use this cipher.
    pub fn set_aead(&mut self, aead: Aead) {
        self.aead = aead;
    }

    /// Our own public key.
    pub fn public_key(&self) -> NodePublic {
        self.identity.public()
    }

    /// Lets `key` make sessions with us, under `peer`. Adding what is already
    /// there changes nothing; an index or key that meant something else before
    /// starts without sessions.
    pub fn add_peer(&mut self, _now: Instant, peer: PeerIndex, key: NodePublic) {
        if self.by_key.get(&key) == Some(&peer) {
            return;
        }
        if let Some(other) = self.by_key.get(&key).copied() {
            self.remove_peer(other);
        }
        self.remove_peer(peer);
        let shared = self.identity.shared_with(&key).ok();
        self.by_key.insert(key, peer);
        self.peers.insert(peer, Peer::new(key, shared));
    }

    /// Sets the secret mixed into handshakes with `peer` beside the keys; all
    /// zero means none. Counts from the next handshake on.
    pub fn set_preshared_key(&mut self, peer: PeerIndex, psk: Zeroizing<[u8; 32]>) {
        if let Some(peer) = self.peers.get_mut(&peer) {
            peer.psk = psk;
        }
    }

    /// Forgets a peer; its sessions expire at once.
    pub fn remove_peer(&mut self, index: PeerIndex) {
        let Some(peer) = self.peers.remove(&index) else {
            return;
        };
        self.by_key.remove(&peer.key);
        self.deadlines.remove(&index);
        if let Some((local_index, _)) = peer.attempt.as_ref().and_then(|a| a.pending.as_ref()) {
            self.by_index.remove(local_index);
        }
        for session in peer.sessions() {
            self.retire(index, session);
        }
    }

    /// The caller's judgement that the node is short of processor time, in
    /// addition to the built-in limit on handshakes per second.
    pub fn set_under_load(&mut self, under_load: bool) {
        self.load.force(under_load);
    }

    /// Time of the last timestamp sent, to be kept across restarts: with a
    /// wall clock that was set back, peers would refuse us until it caught up.
    pub fn last_timestamp(&self) -> Duration {
        self.clock.last()
    }

    /// Goes on after a timestamp kept from an earlier run.
    pub fn resume_timestamps(&mut self, last: Duration) {
        self.clock.resume(last);
    }

    /// The counters of all events so far.
    pub fn counters(&self) -> HandshakeCounters {
        self.counters
    }

    /// The session to send with to `peer`.
    pub fn sending_session(&self, peer: PeerIndex) -> Option<&Arc<Session>> {
        self.peers.get(&peer)?.current.as_ref()
    }

    /// All sessions that may receive, in order of their peers.
    pub fn sessions(&self) -> impl Iterator<Item = (PeerIndex, &Arc<Session>)> {
        self.peers
            .iter()
            .flat_map(|(index, peer)| peer.sessions().map(|s| (*index, s)))
    }

    /// The next thing to do, oldest first.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When to call [`handle_timeout`](Self::handle_timeout), and why.
    pub fn next_deadline(&self) -> Option<(Instant, Reason)> {
        let (_, peer) = self.deadlines.first()?;
        self.peers.get(peer)?.deadline()
    }

    /// Packets wait for `peer`, or its session asks to be renewed. Does
    /// nothing while a handshake is under way or the session is good.
    pub fn want_session(&mut self, now: Instant, wall: Duration, peer: PeerIndex) {
        let Some(state) = self.peers.get(&peer) else {
            return;
        };
        let good = state.current.as_ref().is_some_and(|s| !s.wants_rekey(now));
        if !good {
            self.start_attempt(now, wall, peer);
        }
        self.requeue(peer);
    }

    /// `peer` may have lost its sessions, as by a restart: makes a new one now,
    /// while the present one stays in use. Does nothing while a handshake is
    /// under way.
    pub fn renew(&mut self, now: Instant, wall: Duration, peer: PeerIndex) {
        if self.peers.contains_key(&peer) {
            self.start_attempt(now, wall, peer);
            self.requeue(peer);
        }
    }

    /// Notes the times of the last traffic with `peer`, sampled from the data
    /// plane's counters: about once per second for active peers.
    pub fn note_activity(
        &mut self,
        now: Instant,
        wall: Duration,
        peer: PeerIndex,
        activity: Activity,
    ) {
        let jitter = jitter(&mut *self.entropy);
        let Some(state) = self.peers.get_mut(&peer) else {
            return;
        };
        match state.observe(now, activity, jitter) {
            Demand::Renew => self.start_attempt(now, wall, peer),
            Demand::Nothing => {}
        }
        self.requeue(peer);
    }

    /// The first packet authenticated on the session with this index. For the
    /// session of a responder this ends the handshake; for others it means
    /// nothing.
    pub fn session_confirmed(&mut self, now: Instant, local_index: u32) {
        let Some(index) = self.by_index.get(&local_index).copied() else {
            return;
        };
        let Some(peer) = self.peers.get_mut(&index) else {
            return;
        };
        let confirmed = peer
            .next
            .take_if(|session| session.local_index() == local_index);
        let Some(session) = confirmed else { return };
        let dropped = peer.promote(now, Arc::clone(&session));
        self.events.push_back(Event::SessionConfirmed {
            peer: index,
            session,
        });
        if let Some(old) = dropped {
            self.retire(index, &old);
        }
        self.requeue(index);
    }

    /// Takes a handshake message. Transport messages do not belong here.
    pub fn handle_datagram(
        &mut self,
        now: Instant,
        _wall: Duration,
        source: Source,
        datagram: &[u8],
    ) {
        match Message::parse(datagram) {
            Ok(Message::Initiation(message)) => self.on_initiation(now, source, message),
            Ok(Message::Response(message)) => self.on_response(now, source, message),
            Ok(Message::Cookie(message)) => self.on_cookie(now, message),
            Ok(Message::Transport { .. }) | Err(_) => self.counters.malformed += 1,
        }
    }

    /// Does what is due. Early calls do nothing.
    pub fn handle_timeout(&mut self, now: Instant, wall: Duration) {
        while let Some(index) = self.deadlines.pop_due(now) {
            self.peer_timeout(now, wall, index);
            self.requeue(index);
        }
    }

    fn peer_timeout(&mut self, now: Instant, wall: Duration, index: PeerIndex) {
        let Some(peer) = self.peers.get_mut(&index) else {
            return;
        };
        if peer.take_keepalive(now) {
            self.events.push_back(Event::SendKeepalive { peer: index });
        }
        let silent = peer.take_silence(now);
        peer.take_forget(now);
        let expired = peer.take_expired(now);
        let attempt = peer.attempt.as_ref().filter(|a| now >= a.retry_at);
        let retry = attempt.map(|a| now >= a.started + REKEY_ATTEMPT_TIME);
        for session in expired {
            self.retire(index, &session);
        }
        match retry {
            Some(true) => self.give_up(index),
            Some(false) => self.send_initiation(now, wall, index),
            None if silent => self.start_attempt(now, wall, index),
            None => {}
        }
    }

    fn start_attempt(&mut self, now: Instant, wall: Duration, index: PeerIndex) {
        let Some(peer) = self.peers.get_mut(&index) else {
            return;
        };
        if peer.attempt.is_some() || peer.shared.is_none() {
            return;
        }
        // One initiation per retry interval, also across attempts.
        let allowed_at = peer
            .last_initiation_sent
            .map_or(now, |at| at + REKEY_TIMEOUT);
        peer.attempt = Some(Attempt {
            started: now,
            retry_at: allowed_at.max(now),
            pending: None,
        });
        if allowed_at <= now {
            self.send_initiation(now, wall, index);
        }
    }

    /// Sends an initiation of the attempt under way, replacing the one that
    /// got no response.
    fn send_initiation(&mut self, now: Instant, wall: Duration, index: PeerIndex) {
        let local_index = self.fresh_index();
        let Some(peer) = self.peers.get_mut(&index) else {
            return;
        };
        let (Some(attempt), Some(shared)) = (&mut peer.attempt, &peer.shared) else {
            return;
        };
        if let Some((replaced, _)) = attempt.pending.take() {
            self.by_index.remove(&replaced);
        }
        attempt.retry_at = now + REKEY_TIMEOUT + jitter(&mut *self.entropy);
        let timestamp = self.clock.next(wall);
        let made = self.identity.initiate(
            &mut *self.entropy,
            local_index,
            &peer.key,
            shared,
            timestamp,
        );
        let Ok((mut message, initiated)) = made else {
            return;
        };
        attempt.pending = Some((local_index, initiated));
        peer.last_initiation_sent = Some(now);
        peer.macs.sign(now, &mut message);
        self.by_index.insert(local_index, index);
        self.counters.initiations_sent += 1;
        self.events.push_back(Event::Send {
            peer: Some(index),
            reply_to: None,
            datagram: message.as_bytes().to_vec(),
        });
    }

    fn give_up(&mut self, index: PeerIndex) {
        let Some(peer) = self.peers.get_mut(&index) else {
            return;
        };
        let attempt = peer.attempt.take();
        if let Some((local_index, _)) = attempt.and_then(|a| a.pending) {
            self.by_index.remove(&local_index);
        }
        self.counters.failed += 1;
        self.events
            .push_back(Event::HandshakeFailed { peer: index });
    }

    /// Checks macs and load; `false` when the message is dealt with.
    fn admit(
        &mut self,
        now: Instant,
        source: &Source,
        message: &impl Macs,
        sender: u32,
        mac1: &[u8; 16],
    ) -> bool {
        let proof = self.checker.check(now, source, message.bytes());
        // Only messages that cost more than this one hash count as load: a sender
        // that does not know our key must not make us demand cookies.
        let under_load = proof != Proof::None && self.load.arrived(now);
        match proof {
            Proof::None => {
                self.counters.bad_mac += 1;
                false
            }
            Proof::KnowsOurKey if under_load => {
                let reply = self
                    .checker
                    .reply(now, &mut *self.entropy, source, sender, mac1);
                self.counters.cookies_sent += 1;
                self.events.push_back(Event::Send {
                    peer: None,
                    reply_to: Some(*source),
                    datagram: reply.as_bytes().to_vec(),
                });
                false
            }
            Proof::OwnsAddress if under_load => {
                let admitted = self.load.admit(now, source);
                if !admitted {
                    self.counters.flooded += 1;
                }
                admitted
            }
            Proof::KnowsOurKey | Proof::OwnsAddress => true,
        }
    }

    fn on_initiation(&mut self, now: Instant, source: Source, message: &Initiation) {
        if !self.admit(now, &source, message, message.sender.get(), &message.mac1) {
            return;
        }
        let Ok(opened) = self.identity.open(message) else {
            self.counters.invalid += 1;
            return;
        };
        let Some(index) = self.by_key.get(&opened.sender).copied() else {
            self.counters.unknown_peer += 1;
            return;
        };
        let local_index = self.fresh_index();
        let Some(peer) = self.peers.get_mut(&index) else {
            return;
        };
        let proven = peer
            .shared
            .as_ref()
            .and_then(|s| opened.prove(message, s).ok());
        let Some(proven) = proven else {
            self.counters.invalid += 1;
            return;
        };
        if peer.last_timestamp >= Some(proven.timestamp) {
            self.counters.replayed += 1;
            return;
        }
        let too_soon = peer
            .last_initiation_received
            .is_some_and(|at| now.saturating_duration_since(at) < INITIATION_INTERVAL);
        if too_soon {
            self.counters.flooded += 1;
            return;
        }
        peer.last_timestamp = Some(proven.timestamp);
        peer.last_initiation_received = Some(now);
        let remote_index = proven.their_index();
        let responded = proven.respond(&mut *self.entropy, local_index, &peer.psk);
        let Ok((mut response, keys)) = responded else {
            self.counters.invalid += 1;
            return;
        };
        peer.macs.sign(now, &mut response);
        peer.heard(now);
        let session = make_session(
            self.aead,
            Role::Responder,
            local_index,
            remote_index,
            &keys,
            now,
        );
        let replaced = peer.hold(now, Arc::clone(&session));
        self.by_index.insert(local_index, index);
        self.counters.completed += 1;
        self.counters.responses_sent += 1;
        // The session first: data may follow the response immediately.
        self.events.push_back(Event::NewSession {
            peer: index,
            session,
            initiator: false,
            confirmed: false,
        });
        self.events.push_back(Event::Send {
            peer: Some(index),
            reply_to: Some(source),
            datagram: response.as_bytes().to_vec(),
        });
        if let Some(replaced) = replaced {
            self.retire(index, &replaced);
        }
        self.requeue(index);
    }

    fn on_response(&mut self, now: Instant, source: Source, message: &Response) {
        if !self.admit(now, &source, message, message.sender.get(), &message.mac1) {
            return;
        }
        let receiver = message.receiver.get();
        let index = self.by_index.get(&receiver).copied();
        let Some((index, peer)) = index.and_then(|i| Some((i, self.peers.get_mut(&i)?))) else {
            self.counters.unsolicited += 1;
            return;
        };
        let pending = peer.attempt.as_ref().and_then(|a| a.pending.as_ref());
        let Some((local_index, initiated)) = pending.filter(|(i, _)| *i == receiver) else {
            self.counters.unsolicited += 1;
            return;
        };
        let Ok(keys) = initiated.finish(&self.identity, message, &peer.psk) else {
            self.counters.invalid += 1;
            return;
        };
        let session = make_session(
            self.aead,
            Role::Initiator,
            *local_index,
            message.sender.get(),
            &keys,
            now,
        );
        peer.attempt = None;
        peer.heard(now);
        let dropped = peer.promote(now, Arc::clone(&session));
        self.counters.completed += 1;
        self.events.push_back(Event::NewSession {
            peer: index,
            session,
            initiator: true,
            confirmed: true,
        });
        self.events.push_back(Event::SendKeepalive { peer: index });
        if let Some(old) = dropped {
            self.retire(index, &old);
        }
        self.requeue(index);
    }

    fn on_cookie(&mut self, now: Instant, message: &CookieReply) {
        let index = self.by_index.get(&message.receiver.get());
        let Some(peer) = index.and_then(|i| self.peers.get_mut(i)) else {
            self.counters.unsolicited += 1;
            return;
        };
        // The next retry carries it; answering at once would let a forger of
        // load make us send faster.
        if peer.macs.take(now, message) {
            self.counters.cookies_received += 1;
        } else {
            self.counters.invalid += 1;
        }
    }

    fn retire(&mut self, peer: PeerIndex, session: &Session) {
        self.by_index.remove(&session.local_index());
        self.events.push_back(Event::SessionExpired {
            peer,
            local_index: session.local_index(),
        });
    }

    /// A random index that is not in use.
    fn fresh_index(&mut self) -> u32 {
        loop {
            let mut bytes = [0; 4];
            self.entropy.fill(&mut bytes);
            let index = u32::from_le_bytes(bytes);
            if !self.by_index.contains_key(&index) {
                return index;
            }
        }
    }

    /// Puts the peer where its next deadline is.
    fn requeue(&mut self, index: PeerIndex) {
        let Some(peer) = self.peers.get(&index) else {
            return;
        };
        let deadline = peer.deadline().map(|(at, _)| at);
        self.deadlines.update(index, deadline);
    }
}

impl std::fmt::Debug for Handshakes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handshakes")
            .field("public", &self.identity.public())
            .field("peers", &self.peers.len())
            .field("counters", &self.counters)
            .finish_non_exhaustive()
    }
}

fn make_session(
    aead: Aead,
    role: Role,
    local_index: u32,
    remote_index: u32,
    keys: &TransportKeys,
    now: Instant,
) -> Arc<Session> {
    let TransportKeys { send, receive } = keys;
    Arc::new(Session::with_aead(
        aead,
        role,
        local_index,
        remote_index,
        send,
        receive,
        now,
    ))
}

fn jitter(entropy: &mut dyn Entropy) -> Duration {
    let mut bytes = [0; 4];
    entropy.fill(&mut bytes);
    let range = u32::try_from(REKEY_JITTER.as_micros())
        .unwrap_or(u32::MAX)
        .max(1);
    Duration::from_micros(u64::from(u32::from_le_bytes(bytes) % range))
}

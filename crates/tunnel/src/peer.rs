//! The state of one peer, and its timers (whitepaper, section 6).
//!
//! Each timer is an `Option<Instant>` derived from what happened last; the
//! earliest of them is the peer's deadline. The data plane does not call us
//! for each packet: the engine samples its counters into an [`Activity`], and
//! the two timers that depend on traffic start from those times.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use warren_keys::NodePublic;

use crate::cookie::Maker;
use crate::noise::{Initiated, PresharedKey, StaticShared};
use crate::timestamp::Tai64N;
use crate::{
    KEEPALIVE_TIMEOUT, KEY_ERASE_TIME, NEW_HANDSHAKE_TIMEOUT, REJECT_AFTER_TIME,
    REKEY_ON_RECEIVE_TIME, Reason, Role, Session,
};

/// Sessions kept for late packets besides the one in use and the one to come.
const MAX_OLD: usize = 3;

/// When traffic last happened with a peer; `None` is never. Sampled from the
/// data plane's counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Activity {
    /// A packet with content was sealed.
    pub last_data_sent: Option<Instant>,
    /// Any packet was sealed, keepalives included.
    pub last_sent: Option<Instant>,
    /// A packet with content authenticated.
    pub last_data_received: Option<Instant>,
    /// Any packet authenticated.
    pub last_received: Option<Instant>,
}

impl Activity {
    fn merge(&mut self, newer: Self) {
        self.last_data_sent = self.last_data_sent.max(newer.last_data_sent);
        self.last_sent = self.last_sent.max(newer.last_sent).max(self.last_data_sent);
        self.last_data_received = self.last_data_received.max(newer.last_data_received);
        self.last_received = self
            .last_received
            .max(newer.last_received)
            .max(self.last_data_received);
    }
}

/// A handshake we started and that has not ended.
pub(crate) struct Attempt {
    /// When the first initiation of this attempt went out.
    pub(crate) started: Instant,
    /// When to send the next one.
    pub(crate) retry_at: Instant,
    /// The initiation that is waiting for its response, under our index for
    /// it. `None` while the first one is held back by the rate limit.
    pub(crate) pending: Option<(u32, Initiated)>,
}

pub(crate) struct Peer {
    pub(crate) key: NodePublic,
    /// `None` for a key that is not a valid point: no handshake can succeed.
    pub(crate) shared: Option<StaticShared>,
    pub(crate) psk: PresharedKey,
    pub(crate) macs: Maker,

    pub(crate) attempt: Option<Attempt>,
    pub(crate) last_initiation_sent: Option<Instant>,

    /// Timestamp of the last initiation accepted, and when that was.
    pub(crate) last_timestamp: Option<Tai64N>,
    pub(crate) last_initiation_received: Option<Instant>,

    /// Made as responder, not yet confirmed by data.
    pub(crate) next: Option<Arc<Session>>,
    /// The session to send with.
    pub(crate) current: Option<Arc<Session>>,
    /// Still good for packets that were on their way, newest last.
    pub(crate) old: VecDeque<Arc<Session>>,
    last_session: Option<Instant>,

    activity: Activity,
    /// Received data that nothing was sent after.
    unanswered: Option<Instant>,
    /// Sent data that nothing was received after, with the jitter of its
    /// timer.
    silence: Option<(Instant, Duration)>,
    /// Silence up to here has already led to a handshake.
    silence_handled: Option<Instant>,
    renewed_on_receive: bool,
}

/// An action that the traffic of a peer requires at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Demand {
    Nothing,
    /// The session is ours to renew and near its end.
    Renew,
}

impl Peer {
    pub(crate) fn new(key: NodePublic, shared: Option<StaticShared>) -> Self {
        Self {
            key,
            shared,
            psk: PresharedKey::default(),
            macs: Maker::new(&key),
            attempt: None,
            last_initiation_sent: None,
            last_timestamp: None,
            last_initiation_received: None,
            next: None,
            current: None,
            old: VecDeque::new(),
            last_session: None,
            activity: Activity::default(),
            unanswered: None,
            silence: None,
            silence_handled: None,
            renewed_on_receive: false,
        }
    }

    /// All sessions that may receive.
    pub(crate) fn sessions(&self) -> impl Iterator<Item = &Arc<Session>> {
        self.old.iter().chain(&self.current).chain(&self.next)
    }

    /// Makes `session` the one to send with; returns the session that it replaces, if
    /// there were too many.
    pub(crate) fn promote(&mut self, now: Instant, session: Arc<Session>) -> Option<Arc<Session>> {
        self.last_session = Some(now);
        self.renewed_on_receive = false;
        self.old.extend(self.current.replace(session));
        if self.old.len() > MAX_OLD {
            self.old.pop_front()
        } else {
            None
        }
    }

    /// Keeps `session` until data confirms it; returns the one it replaces.
    pub(crate) fn hold(&mut self, now: Instant, session: Arc<Session>) -> Option<Arc<Session>> {
        self.last_session = Some(now);
        self.next.replace(session)
    }

    /// Takes out the sessions that are too old to be used.
    pub(crate) fn take_expired(&mut self, now: Instant) -> Vec<Arc<Session>> {
        let mut expired = Vec::new();
        self.old.retain(|session| {
            let gone = session.is_expired(now);
            if gone {
                expired.push(Arc::clone(session));
            }
            !gone
        });
        for slot in [&mut self.current, &mut self.next] {
            expired.extend(slot.take_if(|session| session.is_expired(now)));
        }
        if self.current.is_none() {
            self.silence = None;
            self.unanswered = None;
        }
        expired
    }

    /// An authenticated handshake message arrived: the peer is alive.
    pub(crate) fn heard(&mut self, now: Instant) {
        self.activity.merge(Activity {
            last_received: Some(now),
            ..Activity::default()
        });
        self.silence = None;
    }

    /// Starts and stops the timers that depend on traffic. `jitter` is used if
    /// the timer for silence starts.
    pub(crate) fn observe(&mut self, now: Instant, activity: Activity, jitter: Duration) -> Demand {
        self.activity.merge(activity);
        let Activity {
            last_data_sent,
            last_sent,
            last_data_received,
            last_received,
        } = self.activity;
        let Some(current) = &self.current else {
            return Demand::Nothing;
        };

        self.unanswered = match self.unanswered {
            Some(since) if last_sent < Some(since) => Some(since),
            Some(_) | None => last_data_received.filter(|at| last_sent < Some(*at)),
        };
        self.silence = match self.silence {
            Some((since, jitter)) if last_received < Some(since) => Some((since, jitter)),
            Some(_) | None => last_data_sent
                .filter(|at| last_received < Some(*at) && self.silence_handled < Some(*at))
                .map(|at| (at, jitter)),
        };

        let old_enough = current.created() + REKEY_ON_RECEIVE_TIME;
        let renew = current.role() == Role::Initiator
            && !self.renewed_on_receive
            && now >= old_enough
            && last_received >= Some(old_enough);
        if renew {
            self.renewed_on_receive = true;
            return Demand::Renew;
        }
        Demand::Nothing
    }

    /// Whether it is time for an empty packet; starts over.
    pub(crate) fn take_keepalive(&mut self, now: Instant) -> bool {
        let due = self
            .unanswered
            .is_some_and(|since| now >= since + KEEPALIVE_TIMEOUT);
        if due {
            self.unanswered = None;
            self.activity.merge(Activity {
                last_sent: Some(now),
                ..Activity::default()
            });
        }
        due
    }

    /// Whether the peer has been silent for too long; starts over.
    pub(crate) fn take_silence(&mut self, now: Instant) -> bool {
        let due = self
            .silence
            .is_some_and(|(since, jitter)| now >= since + NEW_HANDSHAKE_TIMEOUT + jitter);
        if due {
            self.silence = None;
            self.silence_handled = Some(now);
        }
        due
    }

    /// Forgets what outlives sessions, once that is due.
    pub(crate) fn take_forget(&mut self, now: Instant) -> bool {
        let due = self
            .last_session
            .is_some_and(|at| now >= at + KEY_ERASE_TIME);
        if due {
            self.last_session = None;
            self.macs.forget();
            self.activity = Activity::default();
        }
        due
    }

    /// The earliest thing to do, and why.
    pub(crate) fn deadline(&self) -> Option<(Instant, Reason)> {
        let retry = self
            .attempt
            .as_ref()
            .map(|a| (a.retry_at, Reason::RetryHandshake));
        let keepalive = self
            .unanswered
            .map(|at| (at + KEEPALIVE_TIMEOUT, Reason::Keepalive));
        let silence = self
            .silence
            .map(|(at, jitter)| (at + NEW_HANDSHAKE_TIMEOUT + jitter, Reason::Silence));
        let expire = self
            .sessions()
            .map(|session| session.created() + REJECT_AFTER_TIME)
            .min()
            .map(|at| (at, Reason::ExpireSession));
        let forget = self
            .last_session
            .map(|at| (at + KEY_ERASE_TIME, Reason::ForgetPeer));
        [retry, keepalive, silence, expire, forget]
            .into_iter()
            .flatten()
            .min()
    }
}

//! Equal questions under way, with their clients and their exchanges.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Instant;

use super::{Client, ExchangeId, GIVE_UP_AFTER, MAX_WRONG_ANSWERS, TCP_AFTER};
use crate::message;
use crate::resolver::Transport;

/// The state of an exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Attempt {
    Waiting,
    /// The upstream answered REFUSED.
    Refused,
    /// The upstream answered SERVFAIL, or its message did not fit.
    Failed,
    /// The system reported an error, such as an ICMP message "port unreachable".
    Unreachable,
}

/// One attempt with one upstream.
#[derive(Debug)]
pub(super) struct Exchange {
    pub(super) to: SocketAddr,
    pub(super) transport: Transport,
    pub(super) id: u16,
    pub(super) started: Instant,
    pub(super) attempt: Attempt,
    /// Messages on this socket that did not fit.
    pub(super) wrong: u8,
}

impl Exchange {
    /// Whether too many messages did not fit.
    pub(super) fn is_attacked(&self) -> bool {
        self.transport == Transport::Udp && self.wrong >= MAX_WRONG_ANSWERS
    }
}

/// Questions with the same key get the same answer: everything but the id,
/// and the case of the name, is equal.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct JoinKey {
    transport: Transport,
    message: Vec<u8>,
    upstreams: Vec<SocketAddr>,
}

impl JoinKey {
    pub(super) fn new(transport: Transport, query: &[u8], upstreams: &[SocketAddr]) -> Self {
        let mut message = query.to_vec();
        message::set_id(&mut message, 0);
        if let Some(end) = message::question_end(&message)
            && let Some(name) = message.get_mut(message::HEADER..end.saturating_sub(4))
        {
            // Lengths of labels are below 64, so they are not letters. Names
            // with pointers are not valid in a question; those keep their bytes.
            if name.iter().all(u8::is_ascii) {
                name.make_ascii_lowercase();
            }
        }
        Self {
            transport,
            message,
            upstreams: upstreams.to_vec(),
        }
    }

    /// The transport of the clients.
    pub(super) fn transport(&self) -> Transport {
        self.transport
    }
}

/// A client that waits, with its question as it was asked.
#[derive(Debug)]
pub(super) struct Waiter {
    pub(super) client: Client,
    pub(super) query: Vec<u8>,
}

/// Equal questions under way. At least one client waits, and while the
/// forwarder is idle at least one exchange is open.
#[derive(Debug)]
pub(super) struct Question {
    pub(super) key: JoinKey,
    /// The question as the first client asked it.
    pub(super) query: Vec<u8>,
    pub(super) waiters: Vec<Waiter>,
    started: Instant,
    /// Upstreams that were not asked yet.
    pub(super) left: VecDeque<SocketAddr>,
    pub(super) next_upstream: Instant,
    pub(super) last_attempt: Instant,
    /// All attempts so far.
    pub(super) exchanges: BTreeMap<ExchangeId, Exchange>,
    /// A cut answer, for when TCP brings nothing better.
    pub(super) truncated: Option<Vec<u8>>,
}

impl Question {
    pub(super) fn new(
        now: Instant,
        key: JoinKey,
        query: Vec<u8>,
        waiter: Waiter,
        upstreams: Vec<SocketAddr>,
    ) -> Self {
        Self {
            key,
            query,
            waiters: vec![waiter],
            started: now,
            left: upstreams.into(),
            next_upstream: now,
            last_attempt: now,
            exchanges: BTreeMap::new(),
            truncated: None,
        }
    }

    /// Whether the clients have waited long enough.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        now >= self.started + GIVE_UP_AFTER
    }

    pub(super) fn next_upstream_is_due(&self, now: Instant) -> bool {
        !self.left.is_empty() && now >= self.next_upstream
    }

    pub(super) fn asked_over_tcp(&self, to: SocketAddr) -> bool {
        self.exchanges
            .values()
            .any(|exchange| exchange.to == to && exchange.transport == Transport::Tcp)
    }

    /// Whether too many wrong messages came in this upstream's name.
    pub(super) fn is_attacked(&self, to: SocketAddr) -> bool {
        self.exchanges
            .values()
            .any(|exchange| exchange.to == to && exchange.is_attacked())
    }

    /// Whether an attempt is under way.
    pub(super) fn waiting(&self) -> bool {
        self.exchanges
            .values()
            .any(|exchange| exchange.attempt == Attempt::Waiting)
    }

    /// Whether each upstream answered REFUSED.
    pub(super) fn all_refused(&self) -> bool {
        self.exchanges
            .values()
            .all(|exchange| exchange.attempt == Attempt::Refused)
    }

    /// An upstream that UDP does not reach and that was not asked over TCP.
    pub(super) fn unreachable(&self) -> Option<SocketAddr> {
        self.exchanges
            .values()
            .filter(|exchange| exchange.attempt == Attempt::Unreachable)
            .map(|exchange| exchange.to)
            .find(|to| !self.asked_over_tcp(*to))
    }

    /// Upstreams that are silent over UDP and were not asked over TCP, with
    /// the moment when they should be.
    fn silent(&self) -> impl Iterator<Item = (Instant, SocketAddr)> + '_ {
        self.exchanges
            .values()
            .filter(|exchange| {
                exchange.attempt == Attempt::Waiting
                    && exchange.transport == Transport::Udp
                    && !self.asked_over_tcp(exchange.to)
            })
            .map(|exchange| (exchange.started + TCP_AFTER, exchange.to))
    }

    /// Silent upstreams that have to be asked over TCP now.
    pub(super) fn due_over_tcp(&self, now: Instant) -> Vec<SocketAddr> {
        self.silent()
            .filter(|(at, _)| now >= *at)
            .map(|(_, to)| to)
            .collect()
    }

    /// The next deadline, and the reason for it.
    pub(super) fn deadline(&self) -> (Instant, &'static str) {
        let mut deadline = (
            self.started + GIVE_UP_AFTER,
            "give up on a forwarded question",
        );
        if !self.left.is_empty() {
            deadline = deadline.min((self.next_upstream, "ask the next upstream"));
        }
        for (at, _) in self.silent() {
            deadline = deadline.min((at, "ask an upstream over TCP"));
        }
        deadline
    }
}

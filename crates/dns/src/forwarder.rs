//! Questions that are under way to upstreams.
//!
//! A question goes to the first upstream over UDP, under an id of our own.
//! Half a second later, or at once when an upstream fails, the next one is
//! asked too; an upstream that stays silent for two seconds is asked over TCP
//! as well, and so is one that is unreachable over UDP when no other is left.
//! The first good answer goes back to the client under the client's id, and
//! later ones are ignored. After ten seconds, or when all upstreams failed, the
//! client gets an error.
//!
//! Forged answers from off the path are kept out in three ways (RFC 5452):
//!
//! - Each exchange has a connected socket of its own, and the caller reports
//!   on which exchange an answer arrived. It counts for that exchange only,
//!   and only with the same id and the same question. So an attacker has to
//!   guess the port as well as the id.
//! - Equal questions under way share their exchanges, so that asking often
//!   does not make more targets (RFC 5452 section 5).
//! - After [`MAX_WRONG_ANSWERS`] messages that do not fit, an exchange over UDP
//!   ends, and that upstream is asked over TCP only.
//!
//! So a guess hits the port and the id with a probability of about one in 2^31,
//! four times per exchange at most. Names are not sent in mixed case (0x20): the
//! official client does not do it either, and some upstreams answer in lower
//! case, so each of their answers would cost a TCP connection.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use warren_keys::Entropy;

use crate::message::{self, Header};
use crate::resolver::Transport;

/// How many questions of clients are under way at most.
pub const MAX_PENDING: usize = 256;

/// How many exchanges, and so sockets, are open at most.
pub const MAX_EXCHANGES: usize = 512;

/// After so many messages that do not fit, an exchange over UDP ends.
pub const MAX_WRONG_ANSWERS: u8 = 4;

/// After this the next upstream is asked too.
const NEXT_UPSTREAM_AFTER: Duration = Duration::from_millis(500);

/// After this a silent upstream is asked over TCP too.
const TCP_AFTER: Duration = Duration::from_secs(2);

/// A question that a client repeats is sent again if the last attempt over
/// UDP is older than this: its datagram may be lost.
const REPEAT_AFTER: Duration = Duration::from_secs(2);

/// After this the client gets an error.
const GIVE_UP_AFTER: Duration = Duration::from_secs(10);

const SERVFAIL: u8 = 2;
const REFUSED: u8 = 5;

/// The caller's name for one question of a client.
pub type ClientId = u64;

/// One attempt with one upstream, on a socket of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExchangeId(pub u64);

/// What the caller has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Send this on a new, connected socket with a random port. What arrives
    /// on it is passed to [`Forwarder::handle_answer`], an error to
    /// [`Forwarder::handle_failure`].
    Send {
        /// The attempt; each has its own id.
        exchange: ExchangeId,
        /// The upstream.
        to: SocketAddr,
        /// The transport to use.
        transport: Transport,
        /// The message (over TCP: without the length in front).
        query: Vec<u8>,
    },
    /// Close the socket of this exchange; follows each `Send` exactly once.
    Close {
        /// The attempt that ended.
        exchange: ExchangeId,
    },
    /// Give this to the client.
    Answer {
        /// The client's question.
        client: ClientId,
        /// The message for the client.
        answer: Vec<u8>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Attempt {
    Waiting,
    Refused,
    Failed,
    /// The system reported an error, such as an ICMP message "port unreachable".
    Unreachable,
}

/// Events since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ForwarderCounters {
    /// Questions of clients that were taken on.
    pub questions: u64,
    /// Those of them that joined an equal question under way.
    pub joined: u64,
    /// Messages on the socket of an exchange that did not fit.
    pub wrong_answers: u64,
    /// Questions and exchanges that were refused because too many were under
    /// way.
    pub refused: u64,
}

#[derive(Debug)]
struct Exchange {
    to: SocketAddr,
    transport: Transport,
    id: u16,
    started: Instant,
    attempt: Attempt,
    /// Messages on this socket that did not fit.
    wrong: u8,
}

/// Questions with the same key get the same answer: everything but the id,
/// and the case of the name, is equal.
#[derive(Debug, PartialEq, Eq)]
struct JoinKey {
    transport: Transport,
    message: Vec<u8>,
    upstreams: Vec<SocketAddr>,
}

impl JoinKey {
    fn new(transport: Transport, query: &[u8], upstreams: &[SocketAddr]) -> Self {
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
}

/// A client that waits, with its question as it was asked.
#[derive(Debug)]
struct Waiter {
    client: ClientId,
    query: Vec<u8>,
}

/// Equal questions under way, and their exchanges.
#[derive(Debug)]
struct Pending {
    key: JoinKey,
    /// The question as the first client asked it.
    query: Vec<u8>,
    waiters: Vec<Waiter>,
    started: Instant,
    /// Upstreams that were not asked yet.
    left: VecDeque<SocketAddr>,
    next_upstream: Instant,
    last_attempt: Instant,
    exchanges: BTreeMap<ExchangeId, Exchange>,
    /// A cut answer, for when TCP brings nothing better.
    truncated: Option<Vec<u8>>,
}

/// All questions under way.
pub struct Forwarder {
    entropy: Box<dyn Entropy>,
    pending: BTreeMap<u64, Pending>,
    /// Exchanges with an open socket, and the question that they belong to.
    open: BTreeMap<ExchangeId, u64>,
    next: u64,
    counters: ForwarderCounters,
    outputs: VecDeque<Output>,
}

impl Forwarder {
    /// A forwarder that draws its message ids from `entropy`.
    pub fn new(entropy: Box<dyn Entropy>) -> Self {
        Self {
            entropy,
            pending: BTreeMap::new(),
            open: BTreeMap::new(),
            next: 0,
            counters: ForwarderCounters::default(),
            outputs: VecDeque::new(),
        }
    }

    /// How often each event happened.
    pub fn counters(&self) -> ForwarderCounters {
        self.counters
    }

    /// How many questions of clients are under way; equal ones count each.
    pub fn pending(&self) -> usize {
        self.pending
            .values()
            .map(|pending| pending.waiters.len())
            .sum()
    }

    /// Takes on a question, as [`crate::Decision::Forward`] has it.
    ///
    /// When too many are under way the client gets SERVFAIL at once.
    pub fn start(
        &mut self,
        now: Instant,
        client: ClientId,
        transport: Transport,
        query: Vec<u8>,
        upstreams: Vec<SocketAddr>,
    ) {
        let full = self.pending() >= MAX_PENDING;
        if full || upstreams.is_empty() {
            self.counters.refused += u64::from(full);
            let answer = failure(&query, SERVFAIL);
            self.outputs.push_back(Output::Answer { client, answer });
            return;
        }
        self.counters.questions += 1;
        let join = JoinKey::new(transport, &query, &upstreams);
        let waiter = Waiter {
            client,
            query: query.clone(),
        };
        let under_way = self
            .pending
            .iter_mut()
            .find(|(_, pending)| pending.key == join);
        if let Some((&key, pending)) = under_way {
            pending.waiters.push(waiter);
            self.counters.joined += 1;
            if pending.left.is_empty() && now >= pending.last_attempt + REPEAT_AFTER {
                pending.left = upstreams.into();
                self.ask_next(now, key);
            }
            return;
        }
        let key = self.draw_key();
        self.pending.insert(
            key,
            Pending {
                key: join,
                query,
                waiters: vec![waiter],
                started: now,
                left: upstreams.into(),
                next_upstream: now,
                last_attempt: now,
                exchanges: BTreeMap::new(),
                truncated: None,
            },
        );
        self.ask_next(now, key);
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Forwarder::handle_timeout`] has to be called.
    pub fn next_deadline(&self) -> Option<(Instant, &'static str)> {
        self.pending.values().map(Pending::deadline).min()
    }

    /// Does what is due; early, nothing.
    pub fn handle_timeout(&mut self, now: Instant) {
        let keys: Vec<u64> = self.pending.keys().copied().collect();
        for key in keys {
            let Some(pending) = self.pending.get(&key) else {
                continue;
            };
            if now >= pending.started + GIVE_UP_AFTER {
                self.give_up(key);
                continue;
            }
            let silent: Vec<SocketAddr> = pending.due_over_tcp(now).collect();
            if !pending.left.is_empty() && now >= pending.next_upstream {
                self.ask_next(now, key);
            }
            for to in silent {
                self.ask(now, key, to, Transport::Tcp);
            }
        }
    }

    /// Takes a message that arrived on the socket of this exchange.
    ///
    /// A message that does not fit is ignored and counted; late messages of
    /// exchanges that ended are ignored.
    pub fn handle_answer(&mut self, now: Instant, exchange: ExchangeId, answer: &[u8]) {
        let Some((key, pending)) = self.of_exchange(exchange) else {
            return;
        };
        let client_transport = pending.key.transport;
        let Some(state) = pending.exchanges.get_mut(&exchange) else {
            return;
        };
        let transport = state.transport;
        let header = Header::parse(answer).filter(|header| {
            header.response && header.id == state.id && same_question(&pending.query, answer)
        });
        let Some(header) = header else {
            state.wrong = state.wrong.saturating_add(1);
            let attacked = state.wrong >= MAX_WRONG_ANSWERS;
            self.counters.wrong_answers += 1;
            if transport == Transport::Tcp {
                // The one message of the connection.
                self.fail(now, key, exchange, Attempt::Failed);
            } else if attacked {
                self.continue_over_tcp(now, key, exchange);
            }
            return;
        };
        match header.rcode {
            SERVFAIL => return self.fail(now, key, exchange, Attempt::Failed),
            REFUSED => return self.fail(now, key, exchange, Attempt::Refused),
            _ => {}
        }
        if header.truncated && transport == Transport::Udp && client_transport == Transport::Tcp {
            // The client can take the whole answer.
            pending.truncated = Some(answer.to_vec());
            return self.continue_over_tcp(now, key, exchange);
        }
        self.finish(key, answer);
    }

    /// An attempt failed: the message could not be sent, or the socket or
    /// connection ended.
    pub fn handle_failure(&mut self, now: Instant, exchange: ExchangeId) {
        if let Some((key, _)) = self.of_exchange(exchange) {
            self.fail(now, key, exchange, Attempt::Unreachable);
        }
    }

    /// Drops this question: its client does not wait for the answer any more.
    pub fn forget(&mut self, client: ClientId) {
        let mut ended = Vec::new();
        for (key, pending) in &mut self.pending {
            pending.waiters.retain(|waiter| waiter.client != client);
            if pending.waiters.is_empty() {
                ended.push(*key);
            }
        }
        for key in ended {
            self.remove(key);
        }
    }

    fn draw_key(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// The question that an open exchange belongs to.
    fn of_exchange(&mut self, exchange: ExchangeId) -> Option<(u64, &mut Pending)> {
        let key = *self.open.get(&exchange)?;
        Some((key, self.pending.get_mut(&key)?))
    }

    /// Asks the next upstream that can be asked. When none is left and no
    /// attempt is under way, asks those over TCP that UDP does not reach; when
    /// there are none of them either, the question ends.
    fn ask_next(&mut self, now: Instant, key: u64) {
        loop {
            let Some(pending) = self.pending.get_mut(&key) else {
                return;
            };
            pending.next_upstream = now + NEXT_UPSTREAM_AFTER;
            let (to, transport) = match pending.left.pop_front() {
                Some(to) if pending.is_attacked(to) => (to, Transport::Tcp),
                Some(to) => {
                    pending.last_attempt = now;
                    (to, Transport::Udp)
                }
                None if pending.waiting() => return,
                None => match pending.unreachable() {
                    Some(to) => (to, Transport::Tcp),
                    None => return self.give_up(key),
                },
            };
            if self.ask(now, key, to, transport) {
                return;
            }
        }
    }

    /// Begins an exchange. `false` if too many are open, or this upstream was
    /// asked over TCP already.
    fn ask(&mut self, now: Instant, key: u64, to: SocketAddr, transport: Transport) -> bool {
        let mut id = [0; 2];
        self.entropy.fill(&mut id);
        let id = u16::from_be_bytes(id);
        let exchange = ExchangeId(self.draw_key());
        let full = self.open.len() >= MAX_EXCHANGES;
        let Some(pending) = self.pending.get_mut(&key) else {
            return false;
        };
        if transport == Transport::Tcp && pending.asked_over_tcp(to) {
            return false;
        }
        pending.exchanges.insert(
            exchange,
            Exchange {
                to,
                transport,
                id,
                started: now,
                attempt: if full {
                    Attempt::Failed
                } else {
                    Attempt::Waiting
                },
                wrong: 0,
            },
        );
        if full {
            self.counters.refused += 1;
            return false;
        }
        let mut query = pending.query.clone();
        message::set_id(&mut query, id);
        self.open.insert(exchange, key);
        self.outputs.push_back(Output::Send {
            exchange,
            to,
            transport,
            query,
        });
        true
    }

    fn close(&mut self, exchange: ExchangeId) {
        if self.open.remove(&exchange).is_some() {
            self.outputs.push_back(Output::Close { exchange });
        }
    }

    /// Ends an attempt, and returns its upstream.
    fn end_attempt(
        &mut self,
        key: u64,
        exchange: ExchangeId,
        outcome: Attempt,
    ) -> Option<SocketAddr> {
        self.close(exchange);
        let state = self.pending.get_mut(&key)?.exchanges.get_mut(&exchange)?;
        state.attempt = outcome;
        Some(state.to)
    }

    fn fail(&mut self, now: Instant, key: u64, exchange: ExchangeId, outcome: Attempt) {
        if self.end_attempt(key, exchange, outcome).is_some() {
            self.ask_next(now, key);
        }
    }

    /// Ends an exchange over UDP, and asks its upstream over TCP.
    fn continue_over_tcp(&mut self, now: Instant, key: u64, exchange: ExchangeId) {
        if let Some(to) = self.end_attempt(key, exchange, Attempt::Failed)
            && !self.ask(now, key, to, Transport::Tcp)
        {
            self.ask_next(now, key);
        }
    }

    fn give_up(&mut self, key: u64) {
        let Some(pending) = self.pending.get_mut(&key) else {
            return;
        };
        if let Some(answer) = pending.truncated.take() {
            return self.finish(key, &answer);
        }
        let refused = pending
            .exchanges
            .values()
            .all(|exchange| exchange.attempt == Attempt::Refused);
        let rcode = if refused { REFUSED } else { SERVFAIL };
        if let Some(pending) = self.remove(key) {
            for waiter in pending.waiters {
                let answer = failure(&waiter.query, rcode);
                self.give(pending.key.transport, &waiter, answer);
            }
        }
    }

    fn finish(&mut self, key: u64, answer: &[u8]) {
        let Some(pending) = self.remove(key) else {
            return;
        };
        for waiter in pending.waiters {
            let mut answer = answer.to_vec();
            repeat_question(&waiter.query, &mut answer);
            self.give(pending.key.transport, &waiter, answer);
        }
    }

    /// Gives a client its answer: with its id, and not longer than it takes.
    fn give(&mut self, transport: Transport, waiter: &Waiter, mut answer: Vec<u8>) {
        if let Some(header) = Header::parse(&waiter.query) {
            message::set_id(&mut answer, header.id);
        }
        if transport == Transport::Udp {
            let limit = message::edns_payload(&waiter.query)
                .unwrap_or(0)
                .max(message::MIN_PAYLOAD);
            message::fit(&mut answer, usize::from(limit));
        }
        self.outputs.push_back(Output::Answer {
            client: waiter.client,
            answer,
        });
    }

    /// Takes a question out and closes its exchanges.
    fn remove(&mut self, key: u64) -> Option<Pending> {
        let pending = self.pending.remove(&key)?;
        for exchange in pending.exchanges.keys() {
            self.close(*exchange);
        }
        Some(pending)
    }
}

impl Pending {
    fn asked_over_tcp(&self, to: SocketAddr) -> bool {
        self.exchanges
            .values()
            .any(|exchange| exchange.to == to && exchange.transport == Transport::Tcp)
    }

    /// Whether too many wrong messages came in this upstream's name.
    fn is_attacked(&self, to: SocketAddr) -> bool {
        self.exchanges.values().any(|exchange| {
            exchange.to == to
                && exchange.transport == Transport::Udp
                && exchange.wrong >= MAX_WRONG_ANSWERS
        })
    }

    /// An upstream that UDP does not reach and that was not asked over TCP.
    fn unreachable(&self) -> Option<SocketAddr> {
        self.exchanges
            .values()
            .filter(|exchange| exchange.attempt == Attempt::Unreachable)
            .map(|exchange| exchange.to)
            .find(|to| !self.asked_over_tcp(*to))
    }

    /// Whether an attempt is under way.
    fn waiting(&self) -> bool {
        self.exchanges
            .values()
            .any(|exchange| exchange.attempt == Attempt::Waiting)
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

    fn due_over_tcp(&self, now: Instant) -> impl Iterator<Item = SocketAddr> + '_ {
        self.silent()
            .filter(move |(at, _)| now >= *at)
            .map(|(_, to)| to)
    }

    fn deadline(&self) -> (Instant, &'static str) {
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

/// Whether the answer repeats the question: type, class and, whatever the
/// case of its letters, the name.
fn same_question(query: &[u8], answer: &[u8]) -> bool {
    match (message::question(query), message::question(answer)) {
        (Some(query), Some(answer)) => {
            query.name() == answer.name()
                && query.query_type() == answer.query_type()
                && query.query_class() == answer.query_class()
        }
        _ => false,
    }
}

/// Writes the question into the answer as the client asked it: in joined
/// questions the case of the name may differ.
fn repeat_question(query: &[u8], answer: &mut [u8]) {
    let Some(end) = message::question_end(query) else {
        return;
    };
    if let Some(asked) = query.get(message::HEADER..end)
        && let Some(repeated) = answer.get_mut(message::HEADER..end)
        && repeated.eq_ignore_ascii_case(asked)
    {
        repeated.copy_from_slice(asked);
    }
}

/// The question turned into an answer with this outcome.
fn failure(query: &[u8], rcode: u8) -> Vec<u8> {
    let end = message::question_end(query).unwrap_or(query.len().min(message::HEADER));
    let mut answer = query.get(..end).unwrap_or_default().to_vec();
    if let Some(counts) = answer.get_mut(6..message::HEADER) {
        counts.fill(0);
    }
    if let Some(flags) = answer.get_mut(2..4) {
        let recursion_desired = flags[0] & 1;
        flags[0] |= 0x80;
        flags[1] = recursion_desired << 7 | rcode;
    }
    answer
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use hickory_proto::op::{Message, Query};
    use hickory_proto::rr::{Name, RecordType};
    use proptest::prelude::*;

    struct Counting(u8);
    impl Entropy for Counting {
        fn fill(&mut self, bytes: &mut [u8]) {
            for byte in bytes {
                self.0 = self.0.wrapping_add(1);
                *byte = self.0;
            }
        }
    }

    fn query() -> Vec<u8> {
        let mut message = Message::query();
        message.metadata.id = 7;
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(
            Name::from_ascii("example.org.").unwrap(),
            RecordType::A,
        ));
        message.to_vec().unwrap()
    }

    fn upstreams(n: u8) -> Vec<SocketAddr> {
        (1..=n)
            .map(|last| SocketAddr::from(([192, 0, 2, last], 53)))
            .collect()
    }

    fn forwarder() -> Forwarder {
        Forwarder::new(Box::new(Counting(0)))
    }

    fn sent(forwarder: &mut Forwarder) -> (ExchangeId, SocketAddr, Transport, Vec<u8>) {
        match skip_closed(forwarder) {
            Some(Output::Send {
                exchange,
                to,
                transport,
                query,
            }) => (exchange, to, transport, query),
            other => panic!("{other:?}"),
        }
    }

    fn answer(query: &[u8], rcode: u8, truncated: bool) -> Vec<u8> {
        let mut answer = query.to_vec();
        answer[2] |= 0x80 | if truncated { 2 } else { 0 };
        answer[3] = rcode;
        answer
    }

    fn answered(forwarder: &mut Forwarder) -> Vec<u8> {
        match skip_closed(forwarder) {
            Some(Output::Answer { client: 1, answer }) => answer,
            other => panic!("{other:?}"),
        }
    }

    fn skip_until_answer(forwarder: &mut Forwarder) -> (ClientId, Vec<u8>) {
        loop {
            match forwarder.poll_output() {
                Some(Output::Answer { client, answer }) => return (client, answer),
                Some(_) => {}
                None => panic!("no answer"),
            }
        }
    }

    fn skip_closed(forwarder: &mut Forwarder) -> Option<Output> {
        loop {
            match forwarder.poll_output() {
                Some(Output::Close { .. }) => {}
                other => return other,
            }
        }
    }

    fn named(name: &str, id: u16) -> Vec<u8> {
        let mut message = Message::query();
        message.metadata.id = id;
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
        message.to_vec().unwrap()
    }

    #[test]
    fn an_answer_comes_back_under_the_clients_id() {
        let now = Instant::now();
        let mut forwarder = forwarder();
        forwarder.start(now, 1, Transport::Udp, query(), upstreams(2));
        let (exchange, to, transport, sent) = sent(&mut forwarder);
        assert_eq!((to, transport), (upstreams(1)[0], Transport::Udp));
        assert_ne!(sent[..2], query()[..2]);
        assert_eq!(sent[2..], query()[2..], "only the id changes");
        forwarder.handle_answer(now, exchange, &answer(&sent, 0, false));
        assert_eq!(answered(&mut forwarder)[..2], [0, 7]);
        assert_eq!(forwarder.pending(), 0);
        assert_eq!(forwarder.next_deadline(), None);
    }

    #[test]
    fn messages_that_do_not_fit_are_ignored() {
        let now = Instant::now();
        let mut forwarder = forwarder();
        forwarder.start(now, 1, Transport::Udp, query(), upstreams(1));
        forwarder.start(now, 2, Transport::Udp, named("b.example.", 9), upstreams(1));
        let (exchange, _, _, query) = sent(&mut forwarder);
        let (other_exchange, _, _, _) = sent(&mut forwarder);
        let good = answer(&query, 0, false);
        let mut other_name = good.clone();
        other_name[13] ^= 1;
        forwarder.handle_answer(now, exchange, &other_name);
        forwarder.handle_answer(now, exchange, &query);
        forwarder.handle_answer(now, exchange, &[]);
        forwarder.handle_answer(now, other_exchange, &good);
        forwarder.handle_answer(now, ExchangeId(999), &good);
        assert_eq!(forwarder.poll_output(), None);
        assert_eq!(forwarder.pending(), 2);
        forwarder.handle_answer(now, exchange, &good);
        assert_eq!(answered(&mut forwarder)[..2], [0, 7]);
    }

    #[test]
    fn exchange_goes_on_over_tcp_after_wrong_answers() {
        let now = Instant::now();
        let mut forwarder = forwarder();
        forwarder.start(now, 1, Transport::Udp, query(), upstreams(1));
        let (exchange, to, _, first) = sent(&mut forwarder);
        let good = answer(&first, 0, false);
        let mut wrong = good.clone();
        wrong[0] ^= 1;
        for _ in 0..MAX_WRONG_ANSWERS {
            assert_eq!(forwarder.poll_output(), None);
            forwarder.handle_answer(now, exchange, &wrong);
        }
        assert_eq!(forwarder.poll_output(), Some(Output::Close { exchange }));
        let (over_tcp, again, transport, second) = sent(&mut forwarder);
        assert_eq!((again, transport), (to, Transport::Tcp));
        forwarder.handle_answer(now, exchange, &good);
        assert_eq!(
            forwarder.poll_output(),
            None,
            "the right answer is too late"
        );

        // A client that asks again does not bring UDP back.
        let later = now + REPEAT_AFTER;
        forwarder.start(later, 2, Transport::Udp, query(), upstreams(1));
        assert_eq!(forwarder.poll_output(), None);
        forwarder.handle_answer(later, over_tcp, &answer(&second, 0, false));
        assert_eq!(answered(&mut forwarder)[..2], [0, 7]);
        assert_eq!(forwarder.pending(), 0);
    }

    #[test]
    fn equal_questions_share_one_exchange_and_keep_their_ids_and_case() {
        let now = Instant::now();
        let mut forwarder = forwarder();
        let questions = [named("example.org.", 7), named("eXample.ORG.", 8)];
        for (client, question) in (1..).zip(&questions) {
            forwarder.start(now, client, Transport::Udp, question.clone(), upstreams(1));
        }
        let (exchange, _, _, query) = sent(&mut forwarder);
        assert_eq!(forwarder.poll_output(), None);
        assert_eq!(forwarder.pending(), 2);

        // Checking disabled (CD) is another question.
        let mut checking_disabled = questions[0].clone();
        checking_disabled[3] |= 0x10;
        forwarder.start(now, 3, Transport::Udp, checking_disabled, upstreams(1));
        let (other, ..) = sent(&mut forwarder);
        forwarder.forget(3);
        assert_eq!(
            forwarder.poll_output(),
            Some(Output::Close { exchange: other })
        );

        forwarder.handle_answer(now, exchange, &answer(&query, 0, false));
        for (expected, question) in (1..).zip(&questions) {
            let Some(Output::Answer { client, answer }) = skip_closed(&mut forwarder) else {
                panic!("no answer for client {expected}");
            };
            assert_eq!(client, expected);
            assert_eq!(answer[..2], question[..2]);
            assert_eq!(answer[message::HEADER..], question[message::HEADER..]);
        }
        assert_eq!(forwarder.poll_output(), None);
    }

    #[test]
    fn repeated_question_is_sent_again_in_case_the_first_was_lost() {
        let now = Instant::now();
        let mut forwarder = forwarder();
        forwarder.start(now, 1, Transport::Udp, query(), upstreams(1));
        let (first, ..) = sent(&mut forwarder);
        forwarder.start(now + REPEAT_AFTER, 2, Transport::Udp, query(), upstreams(1));
        let (second, _, transport, _) = sent(&mut forwarder);
        assert_ne!(first, second);
        assert_eq!(transport, Transport::Udp);
    }

    #[test]
    fn silence_moves_on_to_the_next_and_to_tcp() {
        let start = Instant::now();
        let mut forwarder = forwarder();
        forwarder.start(start, 1, Transport::Udp, query(), upstreams(2));
        sent(&mut forwarder);
        let (at, _) = forwarder.next_deadline().unwrap();
        forwarder.handle_timeout(start);
        assert_eq!(forwarder.poll_output(), None, "early, nothing happens");
        forwarder.handle_timeout(at);
        assert_eq!(sent(&mut forwarder).1, upstreams(2)[1]);
        let (at, _) = forwarder.next_deadline().unwrap();
        assert_eq!(at, start + TCP_AFTER);
        forwarder.handle_timeout(at);
        let (_, to, transport, _) = sent(&mut forwarder);
        assert_eq!((to, transport), (upstreams(1)[0], Transport::Tcp));
        while let Some((at, _)) = forwarder.next_deadline() {
            forwarder.handle_timeout(at);
        }
        assert_eq!(sent(&mut forwarder).2, Transport::Tcp);
        let failed = answered(&mut forwarder);
        assert_eq!(Header::parse(&failed).unwrap().rcode, SERVFAIL);
        assert_eq!(Message::from_vec(&failed).unwrap().metadata.id, 7);
    }

    #[test]
    fn refusals_of_all_are_a_refusal() {
        for (codes, expected) in [
            ([REFUSED, REFUSED], REFUSED),
            ([REFUSED, SERVFAIL], SERVFAIL),
        ] {
            let now = Instant::now();
            let mut forwarder = forwarder();
            forwarder.start(now, 1, Transport::Udp, query(), upstreams(2));
            for code in codes {
                let (exchange, _, _, sent) = sent(&mut forwarder);
                forwarder.handle_answer(now, exchange, &answer(&sent, code, false));
            }
            assert_eq!(
                Header::parse(&answered(&mut forwarder)).unwrap().rcode,
                expected
            );
        }
    }

    #[test]
    fn cut_answers_are_fetched_again_for_tcp_clients_only() {
        let now = Instant::now();
        let mut forwarder = forwarder();
        forwarder.start(now, 1, Transport::Udp, query(), upstreams(1));
        let (exchange, _, _, first) = sent(&mut forwarder);
        forwarder.handle_answer(now, exchange, &answer(&first, 0, true));
        assert!(Header::parse(&answered(&mut forwarder)).unwrap().truncated);

        forwarder.start(now, 1, Transport::Tcp, query(), upstreams(1));
        let (exchange, _, _, first) = sent(&mut forwarder);
        forwarder.handle_answer(now, exchange, &answer(&first, 0, true));
        let (exchange, _, transport, second) = sent(&mut forwarder);
        assert_eq!(transport, Transport::Tcp);
        let mut failing = second.clone();
        failing[0] ^= 1;
        forwarder.handle_answer(now, exchange, &answer(&failing, 0, false));
        assert!(
            Header::parse(&answered(&mut forwarder)).unwrap().truncated,
            "better than nothing"
        );
    }

    #[test]
    fn too_many_at_once_fail_at_once() {
        let now = Instant::now();
        let mut forwarder = forwarder();
        for n in 0..MAX_PENDING {
            let question = named(&format!("n{n}.example."), 7);
            forwarder.start(now, 2, Transport::Udp, question, upstreams(1));
            sent(&mut forwarder);
        }
        forwarder.start(now, 1, Transport::Udp, query(), upstreams(1));
        assert_eq!(
            Header::parse(&answered(&mut forwarder)).unwrap().rcode,
            SERVFAIL
        );
        assert_eq!(forwarder.counters().refused, 1);
        forwarder.forget(2);
        assert_eq!(forwarder.pending(), 0);
    }

    #[test]
    fn open_exchanges_are_bounded() {
        let start = Instant::now();
        let mut forwarder = forwarder();
        for n in 0..MAX_PENDING as u64 {
            let question = named(&format!("n{n}.example."), 7);
            forwarder.start(start, n, Transport::Udp, question, upstreams(4));
        }
        while let Some((at, _)) = forwarder.next_deadline() {
            forwarder.handle_timeout(at);
            assert!(forwarder.open.len() <= MAX_EXCHANGES);
        }
        assert!(forwarder.counters().refused > 0);
        assert_eq!((forwarder.pending(), forwarder.open.len()), (0, 0));
        for n in 0..MAX_PENDING as u64 {
            let failed = skip_until_answer(&mut forwarder);
            assert_eq!(
                (failed.0, Header::parse(&failed.1).unwrap().rcode),
                (n, SERVFAIL)
            );
        }
    }

    #[test]
    fn unreachable_upstream_moves_on_to_the_next_and_then_to_tcp() {
        let now = Instant::now();
        let mut forwarder = forwarder();
        forwarder.start(now, 1, Transport::Udp, query(), upstreams(2));
        let (first, ..) = sent(&mut forwarder);
        forwarder.handle_failure(now, first);
        assert_eq!(
            forwarder.poll_output(),
            Some(Output::Close { exchange: first })
        );
        let (second, to, transport, _) = sent(&mut forwarder);
        assert_eq!((to, transport), (upstreams(2)[1], Transport::Udp));
        forwarder.handle_failure(now, second);
        let mut over_tcp = Vec::new();
        for upstream in upstreams(2) {
            let (exchange, to, transport, sent) = sent(&mut forwarder);
            assert_eq!((to, transport), (upstream, Transport::Tcp));
            over_tcp.push((exchange, sent));
            if over_tcp.len() == 1 {
                forwarder.handle_failure(now, exchange);
            }
        }
        forwarder.handle_answer(now, over_tcp[1].0, &answer(&over_tcp[1].1, 0, false));
        assert_eq!(Header::parse(&answered(&mut forwarder)).unwrap().rcode, 0);

        forwarder.start(now, 1, Transport::Udp, query(), upstreams(1));
        for transport in [Transport::Udp, Transport::Tcp] {
            let (exchange, _, used, _) = sent(&mut forwarder);
            assert_eq!(used, transport);
            forwarder.handle_failure(now, exchange);
        }
        assert_eq!(
            Header::parse(&answered(&mut forwarder)).unwrap().rcode,
            SERVFAIL
        );
    }

    #[derive(Debug, Clone)]
    enum Step {
        Question { name: u8, upstreams: u8, tcp: bool },
        Right { nth: usize, rcode: u8, cut: bool },
        Wrong { nth: usize },
        Failure { nth: usize },
        Wait { millis: u64 },
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (0u8..4, 0u8..4, any::<bool>())
                .prop_map(|(name, upstreams, tcp)| Step::Question { name, upstreams, tcp }),
            1 => (any::<usize>(), prop_oneof![Just(0u8), Just(3), Just(2), Just(5)], any::<bool>())
                .prop_map(|(nth, rcode, cut)| Step::Right { nth, rcode, cut }),
            8 => (0usize..6).prop_map(|nth| Step::Wrong { nth }),
            1 => any::<usize>().prop_map(|nth| Step::Failure { nth }),
            2 => (0u64..3000).prop_map(|millis| Step::Wait { millis }),
        ]
    }

    /// What the caller knows about one exchange.
    struct Socket {
        exchange: ExchangeId,
        transport: Transport,
        query: Vec<u8>,
        wrong: u8,
        open: bool,
    }

    proptest! {
        #[test]
        fn sockets_are_never_shared_and_each_question_gets_one_answer(
            steps in proptest::collection::vec(step(), 0..120),
        ) {
            let mut now = Instant::now();
            let mut forwarder = forwarder();
            let mut sockets: Vec<Socket> = Vec::new();
            let mut waiting = std::collections::BTreeSet::new();
            let mut asked = 0u64;
            let end = [Step::Wait { millis: 11_000 }, Step::Wait { millis: 11_000 }];
            for step in steps.into_iter().chain(end) {
                let mut dead = false;
                match step {
                    Step::Question { name, upstreams: n, tcp } => {
                        asked += 1;
                        waiting.insert(asked);
                        let transport = if tcp { Transport::Tcp } else { Transport::Udp };
                        let question = named(&format!("n{name}.example."), asked as u16);
                        forwarder.start(now, asked, transport, question, upstreams(n));
                    }
                    Step::Right { nth, rcode, cut } if !sockets.is_empty() => {
                        let nth = nth % sockets.len();
                        let socket = &sockets[nth];
                        dead = !socket.open;
                        forwarder.handle_answer(
                            now, socket.exchange, &answer(&socket.query, rcode, cut),
                        );
                    }
                    Step::Wrong { nth } if !sockets.is_empty() => {
                        let nth = sockets.len() - 1 - nth % sockets.len();
                        let socket = &mut sockets[nth];
                        dead = !socket.open;
                        socket.wrong += u8::from(socket.open);
                        let mut wrong = answer(&socket.query, 0, false);
                        wrong[1] ^= 1;
                        forwarder.handle_answer(now, socket.exchange, &wrong);
                    }
                    Step::Failure { nth } if !sockets.is_empty() => {
                        let socket = &sockets[nth % sockets.len()];
                        dead = !socket.open;
                        forwarder.handle_failure(now, socket.exchange);
                    }
                    Step::Wait { millis } => {
                        now += Duration::from_millis(millis);
                        forwarder.handle_timeout(now);
                    }
                    _ => {}
                }
                while let Some(output) = forwarder.poll_output() {
                    prop_assert!(!dead, "a closed socket has an effect: {output:?}");
                    match output {
                        Output::Send { exchange, transport, query, .. } => {
                            prop_assert!(sockets.iter().all(|other| other.exchange != exchange));
                            sockets.push(Socket { exchange, transport, query, wrong: 0, open: true });
                        }
                        Output::Close { exchange } => {
                            let socket = sockets.iter_mut().find(|s| s.exchange == exchange);
                            prop_assert!(std::mem::replace(&mut socket.unwrap().open, false));
                        }
                        Output::Answer { client, answer } => {
                            prop_assert!(waiting.remove(&client), "two answers");
                            prop_assert_eq!(answer[..2].to_vec(), (client as u16).to_be_bytes());
                        }
                    }
                }
                for socket in sockets.iter().filter(|socket| socket.open) {
                    let limit = match socket.transport {
                        Transport::Udp => MAX_WRONG_ANSWERS,
                        Transport::Tcp => 1,
                    };
                    prop_assert!(socket.wrong < limit, "goes on after {} wrong", socket.wrong);
                }
                prop_assert_eq!(forwarder.pending(), waiting.len());
                prop_assert!(forwarder.next_deadline().is_none_or(|(at, _)| at > now));
            }
            prop_assert!(waiting.is_empty());
            prop_assert!(sockets.iter().all(|socket| !socket.open));
        }

        #[test]
        fn any_bytes_are_survived(query in proptest::collection::vec(any::<u8>(), 0..80), answer in proptest::collection::vec(any::<u8>(), 0..80)) {
            let now = Instant::now();
            let mut forwarder = forwarder();
            forwarder.start(now, 1, Transport::Udp, query, upstreams(1));
            forwarder.handle_answer(now, ExchangeId(2), &answer);
            forwarder.handle_timeout(now + GIVE_UP_AFTER);
            prop_assert_eq!(forwarder.pending(), 0);
        }
    }
}

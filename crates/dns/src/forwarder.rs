//! Questions that are under way to upstreams.
//!
//! The life of one: it goes to the first upstream over UDP, under an id of our
//! own. Half a second later, or at once when an upstream fails, the next one
//! is asked too; an upstream that stays silent for two seconds is asked over
//! TCP as well. The first good answer goes back to the client under the
//! client's id, and what comes later is ignored. After ten seconds, or when
//! everybody failed, the client gets an error.
//!
//! An answer counts only if it comes from whom was asked, over the same
//! transport, with the same id and the same question (RFC 5452 section 9).

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use warren_keys::Entropy;

use crate::message::{self, Header};
use crate::resolver::Transport;

/// How many questions are under way at most.
pub const MAX_PENDING: usize = 256;

/// After this the next upstream is asked too.
const NEXT_UPSTREAM_AFTER: Duration = Duration::from_millis(500);

/// After this a silent upstream is asked over TCP too.
const TCP_AFTER: Duration = Duration::from_secs(2);

/// After this the client is told that it failed.
const GIVE_UP_AFTER: Duration = Duration::from_secs(10);

const SERVFAIL: u8 = 2;
const REFUSED: u8 = 5;

/// The shell's name for whoever asked.
pub type ClientId = u64;

/// One attempt with one upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExchangeId(pub u64);

/// What the shell has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Send this; over TCP with a connection of its own, whose outcome is
    /// reported by [`Forwarder::handle_answer`] or [`Forwarder::handle_failure`].
    Send {
        /// The attempt.
        exchange: ExchangeId,
        /// To whom.
        to: SocketAddr,
        /// Over what.
        transport: Transport,
        /// What (over TCP: without the length in front).
        query: Vec<u8>,
    },
    /// Give this to the client.
    Answer {
        /// To whom.
        client: ClientId,
        /// What.
        answer: Vec<u8>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Attempt {
    Waiting,
    Refused,
    Failed,
}

#[derive(Debug)]
struct Exchange {
    to: SocketAddr,
    transport: Transport,
    id: u16,
    started: Instant,
    attempt: Attempt,
}

#[derive(Debug)]
struct Pending {
    client: ClientId,
    transport: Transport,
    query: Vec<u8>,
    started: Instant,
    /// Upstreams that were not asked yet.
    left: VecDeque<SocketAddr>,
    next_upstream: Instant,
    exchanges: BTreeMap<ExchangeId, Exchange>,
    /// A cut answer, for when TCP brings nothing better.
    truncated: Option<Vec<u8>>,
}

/// All questions under way.
pub struct Forwarder {
    entropy: Box<dyn Entropy>,
    pending: BTreeMap<u64, Pending>,
    next: u64,
    outputs: VecDeque<Output>,
}

impl Forwarder {
    /// A forwarder that draws its message ids from `entropy`.
    pub fn new(entropy: Box<dyn Entropy>) -> Self {
        Self {
            entropy,
            pending: BTreeMap::new(),
            next: 0,
            outputs: VecDeque::new(),
        }
    }

    /// How many questions are under way.
    pub fn pending(&self) -> usize {
        self.pending.len()
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
        if self.pending.len() >= MAX_PENDING || upstreams.is_empty() {
            let answer = failure(&query, SERVFAIL);
            self.outputs.push_back(Output::Answer { client, answer });
            return;
        }
        let key = self.draw_key();
        self.pending.insert(
            key,
            Pending {
                client,
                transport,
                query,
                started: now,
                left: upstreams.into(),
                next_upstream: now,
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

    /// Takes what an upstream sent. Whatever does not fit is ignored.
    pub fn handle_answer(
        &mut self,
        now: Instant,
        from: SocketAddr,
        transport: Transport,
        answer: &[u8],
    ) {
        let Some(header) = Header::parse(answer).filter(|header| header.response) else {
            return;
        };
        let found = self.pending.iter().find_map(|(key, pending)| {
            let exchange = pending.exchanges.iter().find(|(_, exchange)| {
                exchange.attempt == Attempt::Waiting
                    && exchange.id == header.id
                    && exchange.to == from
                    && exchange.transport == transport
            })?;
            same_question(&pending.query, answer).then_some((*key, *exchange.0))
        });
        let Some((key, exchange)) = found else { return };
        match header.rcode {
            SERVFAIL => return self.fail(now, key, exchange, Attempt::Failed),
            REFUSED => return self.fail(now, key, exchange, Attempt::Refused),
            _ => {}
        }
        let Some(pending) = self.pending.get_mut(&key) else {
            return;
        };
        if header.truncated && transport == Transport::Udp && pending.transport == Transport::Tcp {
            // The client has room for all of it.
            pending.truncated = Some(answer.to_vec());
            let known = pending.asked_over_tcp(from);
            if let Some(exchange) = pending.exchanges.get_mut(&exchange) {
                exchange.attempt = Attempt::Failed;
            }
            if !known {
                self.ask(now, key, from, Transport::Tcp);
            }
            return;
        }
        self.finish(key, answer.to_vec());
    }

    /// An attempt failed: nothing could be sent, or the connection ended.
    pub fn handle_failure(&mut self, now: Instant, exchange: ExchangeId) {
        let key = self
            .pending
            .iter()
            .find(|(_, pending)| pending.exchanges.contains_key(&exchange))
            .map(|(key, _)| *key);
        if let Some(key) = key {
            self.fail(now, key, exchange, Attempt::Failed);
        }
    }

    /// Nobody waits for the answer to this client's questions any more.
    pub fn forget(&mut self, client: ClientId) {
        self.pending.retain(|_, pending| pending.client != client);
    }

    fn draw_key(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn ask_next(&mut self, now: Instant, key: u64) {
        let Some(pending) = self.pending.get_mut(&key) else {
            return;
        };
        pending.next_upstream = now + NEXT_UPSTREAM_AFTER;
        if let Some(to) = pending.left.pop_front() {
            self.ask(now, key, to, Transport::Udp);
        }
    }

    fn ask(&mut self, now: Instant, key: u64, to: SocketAddr, transport: Transport) {
        let mut id = [0; 2];
        self.entropy.fill(&mut id);
        let id = u16::from_be_bytes(id);
        let exchange = ExchangeId(self.draw_key());
        let Some(pending) = self.pending.get_mut(&key) else {
            return;
        };
        let mut query = pending.query.clone();
        message::set_id(&mut query, id);
        pending.exchanges.insert(
            exchange,
            Exchange {
                to,
                transport,
                id,
                started: now,
                attempt: Attempt::Waiting,
            },
        );
        self.outputs.push_back(Output::Send {
            exchange,
            to,
            transport,
            query,
        });
    }

    fn fail(&mut self, now: Instant, key: u64, exchange: ExchangeId, how: Attempt) {
        let Some(pending) = self.pending.get_mut(&key) else {
            return;
        };
        if let Some(exchange) = pending.exchanges.get_mut(&exchange) {
            exchange.attempt = how;
        }
        if !pending.left.is_empty() {
            self.ask_next(now, key);
        } else if pending
            .exchanges
            .values()
            .all(|exchange| exchange.attempt != Attempt::Waiting)
        {
            self.give_up(key);
        }
    }

    fn give_up(&mut self, key: u64) {
        let Some(pending) = self.pending.get(&key) else {
            return;
        };
        let answer = pending.truncated.clone().unwrap_or_else(|| {
            let refused = pending
                .exchanges
                .values()
                .all(|exchange| exchange.attempt == Attempt::Refused);
            failure(&pending.query, if refused { REFUSED } else { SERVFAIL })
        });
        self.finish(key, answer);
    }

    fn finish(&mut self, key: u64, mut answer: Vec<u8>) {
        let Some(pending) = self.pending.remove(&key) else {
            return;
        };
        if let Some(header) = Header::parse(&pending.query) {
            message::set_id(&mut answer, header.id);
        }
        if pending.transport == Transport::Udp {
            let limit = message::edns_payload(&pending.query)
                .unwrap_or(0)
                .max(message::MIN_PAYLOAD);
            message::fit(&mut answer, usize::from(limit));
        }
        self.outputs.push_back(Output::Answer {
            client: pending.client,
            answer,
        });
    }
}

impl Pending {
    fn asked_over_tcp(&self, to: SocketAddr) -> bool {
        self.exchanges
            .values()
            .any(|exchange| exchange.to == to && exchange.transport == Transport::Tcp)
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
        match forwarder.poll_output() {
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
        match forwarder.poll_output() {
            Some(Output::Answer { client: 1, answer }) => answer,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_answer_comes_back_under_the_clients_id() {
        let now = Instant::now();
        let mut forwarder = forwarder();
        forwarder.start(now, 1, Transport::Udp, query(), upstreams(2));
        let (_, to, transport, sent) = sent(&mut forwarder);
        assert_eq!((to, transport), (upstreams(1)[0], Transport::Udp));
        assert_ne!(sent[..2], query()[..2]);
        assert_eq!(sent[2..], query()[2..], "only the id changes");
        forwarder.handle_answer(now, to, transport, &answer(&sent, 0, false));
        assert_eq!(answered(&mut forwarder)[..2], [0, 7]);
        assert_eq!(forwarder.pending(), 0);
        assert_eq!(forwarder.next_deadline(), None);
    }

    #[test]
    fn what_does_not_fit_is_ignored() {
        let now = Instant::now();
        let mut forwarder = forwarder();
        forwarder.start(now, 1, Transport::Udp, query(), upstreams(1));
        let (_, to, transport, sent) = sent(&mut forwarder);
        let good = answer(&sent, 0, false);
        let mut other_id = good.clone();
        other_id[0] ^= 1;
        let mut other_name = good.clone();
        other_name[13] ^= 1;
        forwarder.handle_answer(now, to, transport, &other_id);
        forwarder.handle_answer(now, to, transport, &other_name);
        forwarder.handle_answer(now, to, Transport::Tcp, &good);
        forwarder.handle_answer(now, upstreams(9)[8], transport, &good);
        forwarder.handle_answer(now, to, transport, &sent);
        forwarder.handle_answer(now, to, transport, &[]);
        assert_eq!(forwarder.poll_output(), None);
        assert_eq!(forwarder.pending(), 1);
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
                let (_, to, transport, sent) = sent(&mut forwarder);
                forwarder.handle_answer(now, to, transport, &answer(&sent, code, false));
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
        let (_, to, transport, first) = sent(&mut forwarder);
        forwarder.handle_answer(now, to, transport, &answer(&first, 0, true));
        assert!(Header::parse(&answered(&mut forwarder)).unwrap().truncated);

        forwarder.start(now, 1, Transport::Tcp, query(), upstreams(1));
        let (_, to, transport, first) = sent(&mut forwarder);
        forwarder.handle_answer(now, to, transport, &answer(&first, 0, true));
        let (exchange, _, transport, second) = sent(&mut forwarder);
        assert_eq!(transport, Transport::Tcp);
        let mut failing = second.clone();
        failing[0] ^= 1;
        forwarder.handle_answer(now, to, Transport::Tcp, &answer(&failing, 0, false));
        assert_eq!(forwarder.poll_output(), None);
        forwarder.handle_failure(now, exchange);
        assert!(
            Header::parse(&answered(&mut forwarder)).unwrap().truncated,
            "better than nothing"
        );
    }

    #[test]
    fn too_many_at_once_fail_at_once() {
        let now = Instant::now();
        let mut forwarder = forwarder();
        for _ in 0..MAX_PENDING {
            forwarder.start(now, 2, Transport::Udp, query(), upstreams(1));
            sent(&mut forwarder);
        }
        forwarder.start(now, 1, Transport::Udp, query(), upstreams(1));
        assert_eq!(
            Header::parse(&answered(&mut forwarder)).unwrap().rcode,
            SERVFAIL
        );
        forwarder.forget(2);
        assert_eq!(forwarder.pending(), 0);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(query in proptest::collection::vec(any::<u8>(), 0..80), answer in proptest::collection::vec(any::<u8>(), 0..80)) {
            let now = Instant::now();
            let mut forwarder = forwarder();
            forwarder.start(now, 1, Transport::Udp, query, upstreams(1));
            forwarder.handle_answer(now, upstreams(1)[0], Transport::Udp, &answer);
            forwarder.handle_timeout(now + GIVE_UP_AFTER);
            prop_assert_eq!(forwarder.pending(), 0);
        }
    }
}

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
//!
//! The number of questions and of sockets is bounded. A new question always
//! gets in: when there are too many, one of the client (an address and a port) that has
//! most of them ends with SERVFAIL, the oldest one. So a program that asks for many names
//! at a time loses its own questions, and one that asks for a few keeps them until they
//! are answered. Only a program that asks from more ports than there are places can take
//! places of others; then the oldest question ends, which nothing has answered so far.

mod question;

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use warren_keys::Entropy;
use warren_timers::DeadlineQueue;

use crate::message::{self, Header};
use crate::resolver::Transport;
use question::{Attempt, Exchange, JoinKey, Question, Waiter};

/// The largest number of clients that wait for upstreams.
pub const MAX_PENDING: usize = 256;

/// The largest number of open exchanges, and so of sockets.
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

/// A client and its place in the network. Questions of one place share the places that
/// there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Client {
    /// The caller's name for the question.
    pub id: ClientId,
    /// The address and port that the question came from; `None`: from this program.
    pub from: Option<SocketAddr>,
}

impl From<ClientId> for Client {
    fn from(id: ClientId) -> Self {
        Self { id, from: None }
    }
}

/// One attempt with one upstream, on a socket of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExchangeId(pub u64);

/// An action for the caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Send this on a new, connected socket with a random port. Messages that
    /// arrive on it are passed to [`Forwarder::handle_answer`], an error to
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

/// Events since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ForwarderCounters {
    /// Questions of clients that were taken on.
    pub questions: u64,
    /// Those of them that joined an equal question under way.
    pub joined: u64,
    /// Messages on the socket of an exchange that did not fit.
    pub wrong_answers: u64,
    /// Questions of clients that ended early, so that a new question fits.
    pub evicted: u64,
    /// Further attempts with an upstream that were not made because too many
    /// exchanges were open.
    pub refused: u64,
}

/// All questions under way.
pub struct Forwarder {
    entropy: Box<dyn Entropy>,
    /// Questions by number; the oldest has the lowest.
    questions: BTreeMap<u64, Question>,
    /// The next deadline of each question.
    deadlines: DeadlineQueue<u64>,
    /// Exchanges with an open socket, and the number of their question.
    open: BTreeMap<ExchangeId, u64>,
    last_number: u64,
    counters: ForwarderCounters,
    outputs: VecDeque<Output>,
}

impl Forwarder {
    /// A forwarder that draws its message ids from `entropy`.
    pub fn new(entropy: Box<dyn Entropy>) -> Self {
        Self {
            entropy,
            questions: BTreeMap::new(),
            deadlines: DeadlineQueue::new(),
            open: BTreeMap::new(),
            last_number: 0,
            counters: ForwarderCounters::default(),
            outputs: VecDeque::new(),
        }
    }

    /// How often each event happened.
    pub fn counters(&self) -> ForwarderCounters {
        self.counters
    }

    /// The number of clients that wait; equal questions count each.
    pub fn pending(&self) -> usize {
        self.questions
            .values()
            .map(|question| question.waiters.len())
            .sum()
    }

    /// Takes on a question, as [`crate::Decision::Forward`] has it.
    ///
    /// Without upstreams the client gets SERVFAIL. When too many questions are
    /// under way, the client that has most of them gets it.
    pub fn start(
        &mut self,
        now: Instant,
        client: impl Into<Client>,
        transport: Transport,
        query: Vec<u8>,
        upstreams: Vec<SocketAddr>,
    ) {
        let client = client.into();
        if upstreams.is_empty() {
            let answer = message::failure(&query, SERVFAIL);
            let client = client.id;
            self.outputs.push_back(Output::Answer { client, answer });
            return;
        }
        self.counters.questions += 1;
        self.make_space();
        let join = JoinKey::new(transport, &query, &upstreams);
        let waiter = Waiter {
            client,
            query: query.clone(),
        };
        let under_way = self
            .questions
            .iter_mut()
            .find(|(_, question)| question.key == join);
        let number = if let Some((&number, question)) = under_way {
            self.counters.joined += 1;
            question.waiters.push(waiter);
            if !question.left.is_empty() || now < question.last_attempt + REPEAT_AFTER {
                return;
            }
            question.left = upstreams.into();
            number
        } else {
            let number = self.draw_number();
            let question = Question::new(now, join, query, waiter, upstreams);
            self.questions.insert(number, question);
            number
        };
        self.ask_next(now, number);
        self.schedule(number);
    }

    /// The next action.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Forwarder::handle_timeout`] has to be called, and why.
    pub fn next_deadline(&self) -> Option<(Instant, &'static str)> {
        let (at, number) = self.deadlines.first()?;
        let (_, reason) = self.questions.get(number)?.deadline();
        Some((at, reason))
    }

    /// Does everything that is due by `now`.
    pub fn handle_timeout(&mut self, now: Instant) {
        let due: Vec<u64> = std::iter::from_fn(|| self.deadlines.pop_due(now)).collect();
        for number in due {
            self.continue_question(now, number);
            self.schedule(number);
        }
    }

    /// Takes a message that arrived on the socket of this exchange.
    ///
    /// A message that does not fit is ignored and counted; late messages of
    /// exchanges that ended are ignored.
    pub fn handle_answer(&mut self, now: Instant, exchange: ExchangeId, answer: &[u8]) {
        if let Some(&number) = self.open.get(&exchange) {
            self.take_answer(now, number, exchange, answer);
            self.schedule(number);
        }
    }

    /// An attempt failed: the message could not be sent, or the socket or
    /// connection ended.
    pub fn handle_failure(&mut self, now: Instant, exchange: ExchangeId) {
        if let Some(&number) = self.open.get(&exchange) {
            self.fail(now, number, exchange, Attempt::Unreachable);
            self.schedule(number);
        }
    }

    /// Drops this question: its client does not wait for the answer any more.
    pub fn forget(&mut self, client: ClientId) {
        let mut ended = Vec::new();
        for (number, question) in &mut self.questions {
            question.waiters.retain(|waiter| waiter.client.id != client);
            if question.waiters.is_empty() {
                ended.push(*number);
            }
        }
        for number in ended {
            self.remove(number);
        }
    }

    fn draw_number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    /// Ends questions until one more client and one more exchange fit.
    fn make_space(&mut self) {
        while self.pending() >= MAX_PENDING || self.open.len() >= MAX_EXCHANGES {
            let Some(client) = self.oldest_of_largest() else {
                return;
            };
            self.counters.evicted += 1;
            self.evict(client);
        }
    }

    /// The oldest client of the place that has most of them; of several such places, the
    /// one that waits longest.
    fn oldest_of_largest(&self) -> Option<Client> {
        let waiters = || {
            self.questions
                .values()
                .flat_map(|question| &question.waiters)
        };
        let mut places: BTreeMap<Option<SocketAddr>, usize> = BTreeMap::new();
        for waiter in waiters() {
            *places.entry(waiter.client.from).or_default() += 1;
        }
        let largest = places.values().max()?;
        let of_largest = |waiter: &&Waiter| places.get(&waiter.client.from) == Some(largest);
        waiters().find(of_largest).map(|waiter| waiter.client)
    }

    /// Ends the question of one client. The exchanges go on for the others that asked the
    /// same.
    fn evict(&mut self, client: Client) {
        let mut questions = self.questions.iter_mut();
        let found = questions.find_map(|(number, question)| {
            let waiters = &mut question.waiters;
            let index = waiters.iter().position(|waiter| waiter.client == client)?;
            if waiters.len() == 1 {
                return Some((*number, None));
            }
            let waiter = waiters.remove(index);
            Some((*number, Some((question.key.transport(), waiter))))
        });
        match found {
            Some((_, Some((transport, waiter)))) => {
                let answer = message::failure(&waiter.query, SERVFAIL);
                self.answer(transport, &waiter, answer);
            }
            Some((number, None)) => self.give_up(number),
            None => {}
        }
    }

    /// Sets the deadline of a question that may have changed.
    fn schedule(&mut self, number: u64) {
        let question = self.questions.get(&number);
        let at = question.map(|question| question.deadline().0);
        self.deadlines.update(number, at);
    }

    /// Carries out the steps of one question that are due.
    fn continue_question(&mut self, now: Instant, number: u64) {
        let Some(question) = self.questions.get(&number) else {
            return;
        };
        if question.is_over(now) {
            return self.give_up(number);
        }
        let silent = question.due_over_tcp(now);
        if question.next_upstream_is_due(now) {
            self.ask_next(now, number);
        }
        for to in silent {
            self.ask(now, number, to, Transport::Tcp);
        }
    }

    fn take_answer(&mut self, now: Instant, number: u64, exchange: ExchangeId, answer: &[u8]) {
        let Some(question) = self.questions.get_mut(&number) else {
            return;
        };
        let client_transport = question.key.transport();
        let Some(state) = question.exchanges.get_mut(&exchange) else {
            return;
        };
        let transport = state.transport;
        let header = Header::parse(answer).filter(|header| {
            header.response
                && header.id == state.id
                && message::same_question(&question.query, answer)
        });
        let Some(header) = header else {
            state.wrong = state.wrong.saturating_add(1);
            let attacked = state.is_attacked();
            self.counters.wrong_answers += 1;
            if transport == Transport::Tcp {
                // The one message of the connection.
                self.fail(now, number, exchange, Attempt::Failed);
            } else if attacked {
                self.continue_over_tcp(now, number, exchange);
            }
            return;
        };
        match header.rcode {
            SERVFAIL => return self.fail(now, number, exchange, Attempt::Failed),
            REFUSED => return self.fail(now, number, exchange, Attempt::Refused),
            _ => {}
        }
        if header.truncated && transport == Transport::Udp && client_transport == Transport::Tcp {
            // The client can take the whole answer.
            question.truncated = Some(answer.to_vec());
            return self.continue_over_tcp(now, number, exchange);
        }
        self.finish(number, answer);
    }

    /// Asks the next upstream that can be asked. When none is left and no
    /// attempt is under way, asks those over TCP that UDP does not reach; when
    /// there are none of them either, the question ends.
    fn ask_next(&mut self, now: Instant, number: u64) {
        loop {
            let Some(question) = self.questions.get_mut(&number) else {
                return;
            };
            question.next_upstream = now + NEXT_UPSTREAM_AFTER;
            let (to, transport) = match question.left.pop_front() {
                Some(to) if question.is_attacked(to) => (to, Transport::Tcp),
                Some(to) => {
                    question.last_attempt = now;
                    (to, Transport::Udp)
                }
                None if question.waiting() => return,
                None => match question.unreachable() {
                    Some(to) => (to, Transport::Tcp),
                    None => return self.give_up(number),
                },
            };
            if self.ask(now, number, to, transport) {
                return;
            }
        }
    }

    /// Begins an exchange. `false` if too many are open, or this upstream was
    /// asked over TCP already.
    fn ask(&mut self, now: Instant, number: u64, to: SocketAddr, transport: Transport) -> bool {
        let mut id = [0; 2];
        self.entropy.fill(&mut id);
        let id = u16::from_be_bytes(id);
        let exchange = ExchangeId(self.draw_number());
        let full = self.open.len() >= MAX_EXCHANGES;
        let Some(question) = self.questions.get_mut(&number) else {
            return false;
        };
        if transport == Transport::Tcp && question.asked_over_tcp(to) {
            return false;
        }
        let attempt = if full {
            Attempt::Failed
        } else {
            Attempt::Waiting
        };
        let state = Exchange {
            to,
            transport,
            id,
            started: now,
            attempt,
            wrong: 0,
        };
        question.exchanges.insert(exchange, state);
        if full {
            self.counters.refused += 1;
            return false;
        }
        let mut query = question.query.clone();
        message::set_id(&mut query, id);
        self.open.insert(exchange, number);
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
        number: u64,
        exchange: ExchangeId,
        outcome: Attempt,
    ) -> Option<SocketAddr> {
        self.close(exchange);
        let question = self.questions.get_mut(&number)?;
        let state = question.exchanges.get_mut(&exchange)?;
        state.attempt = outcome;
        Some(state.to)
    }

    fn fail(&mut self, now: Instant, number: u64, exchange: ExchangeId, outcome: Attempt) {
        if self.end_attempt(number, exchange, outcome).is_some() {
            self.ask_next(now, number);
        }
    }

    /// Ends an exchange over UDP, and asks its upstream over TCP.
    fn continue_over_tcp(&mut self, now: Instant, number: u64, exchange: ExchangeId) {
        if let Some(to) = self.end_attempt(number, exchange, Attempt::Failed)
            && !self.ask(now, number, to, Transport::Tcp)
        {
            self.ask_next(now, number);
        }
    }

    /// Ends a question with the best answer there is: one that was cut, or an
    /// error.
    fn give_up(&mut self, number: u64) {
        let Some(mut question) = self.remove(number) else {
            return;
        };
        if let Some(answer) = question.truncated.take() {
            return self.answer_all(&question, &answer);
        }
        let rcode = if question.all_refused() {
            REFUSED
        } else {
            SERVFAIL
        };
        for waiter in &question.waiters {
            let answer = message::failure(&waiter.query, rcode);
            self.answer(question.key.transport(), waiter, answer);
        }
    }

    fn finish(&mut self, number: u64, answer: &[u8]) {
        if let Some(question) = self.remove(number) {
            self.answer_all(&question, answer);
        }
    }

    fn answer_all(&mut self, question: &Question, answer: &[u8]) {
        for waiter in &question.waiters {
            let mut answer = answer.to_vec();
            message::repeat_question(&waiter.query, &mut answer);
            self.answer(question.key.transport(), waiter, answer);
        }
    }

    /// Gives a client its answer: with its id, and not longer than it takes.
    fn answer(&mut self, transport: Transport, waiter: &Waiter, mut answer: Vec<u8>) {
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
            client: waiter.client.id,
            answer,
        });
    }

    /// Removes a question and closes its exchanges.
    fn remove(&mut self, number: u64) -> Option<Question> {
        let question = self.questions.remove(&number)?;
        self.deadlines.remove(&number);
        for exchange in question.exchanges.keys() {
            self.close(*exchange);
        }
        Some(question)
    }
}

#[cfg(test)]
mod tests;

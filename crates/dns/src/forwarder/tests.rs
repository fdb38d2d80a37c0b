//! The forwarder against upstreams, forgers and clients.
#![allow(clippy::unwrap_used)]

use super::*;
use hickory_proto::op::{Message, Query};
use hickory_proto::rr::{Name, RecordType};
use proptest::prelude::*;
use warren_testkit::CountingEntropy;

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
    Forwarder::new(Box::new(CountingEntropy::default()))
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

fn next_answer(forwarder: &mut Forwarder) -> (ClientId, Vec<u8>) {
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
fn answer_comes_back_under_the_clients_id() {
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
fn oldest_question_gives_way_to_a_new_one() {
    let now = Instant::now();
    let mut forwarder = forwarder();
    for n in 0..MAX_PENDING as u64 {
        let question = named(&format!("n{n}.example."), 7);
        forwarder.start(now, 1000 + n, Transport::Udp, question, upstreams(1));
        sent(&mut forwarder);
    }
    for n in 0..MAX_PENDING as u64 {
        // One client that asks for silent names, and one that is answered.
        let question = named(&format!("m{n}.example."), 7);
        forwarder.start(now, 2000 + n, Transport::Udp, question, upstreams(1));
        let (client, evicted) = next_answer(&mut forwarder);
        assert_eq!(client, 1000 + n);
        assert_eq!(Header::parse(&evicted).unwrap().rcode, SERVFAIL);
        sent(&mut forwarder);
        assert_eq!(forwarder.pending(), MAX_PENDING);
    }
    assert_eq!(forwarder.counters().evicted, MAX_PENDING as u64);
    forwarder.start(now, 1, Transport::Udp, query(), upstreams(1));
    assert_eq!(next_answer(&mut forwarder).0, 2000);
    let (exchange, _, _, query) = sent(&mut forwarder);
    forwarder.handle_answer(now, exchange, &answer(&query, 0, false));
    assert_eq!(Header::parse(&answered(&mut forwarder)).unwrap().rcode, 0);
}

#[test]
fn equal_questions_of_too_many_clients_give_way_too() {
    let now = Instant::now();
    let mut forwarder = forwarder();
    for n in 0..MAX_PENDING as u64 {
        forwarder.start(now, 1000 + n, Transport::Udp, query(), upstreams(1));
    }
    forwarder.start(now, 1, Transport::Udp, query(), upstreams(1));
    assert_eq!(forwarder.pending(), MAX_PENDING);
    assert_eq!(forwarder.counters().evicted, 1);
    // The exchange goes on for those that are left.
    assert_eq!(forwarder.open.len(), 1);
    let (exchange, _, _, query) = sent(&mut forwarder);
    assert_eq!(next_answer(&mut forwarder).0, 1000);
    forwarder.handle_answer(now, exchange, &answer(&query, 0, false));
    assert_eq!(forwarder.pending(), 0);
}

/// A program that asks for one name at a time, beside programs that flood.
#[test]
fn flood_from_fewer_ports_than_places_evicts_no_question_of_others() {
    let now = Instant::now();
    for ports in [1, 16, MAX_PENDING as u16 / 2] {
        let mut forwarder = forwarder();
        let client = |id: ClientId, port: u16| Client {
            id,
            from: Some(SocketAddr::from(([100, 64, 0, 1], port))),
        };
        let honest = client(1, 60_000);
        forwarder.start(now, honest, Transport::Udp, query(), upstreams(1));
        let (exchange, _, _, asked) = sent(&mut forwarder);
        for n in 0..5000 {
            let question = named(&format!("n{n}.example."), 7);
            let port = 1024 + n as u16 % ports;
            let flooding = client(1000 + n, port);
            forwarder.start(now, flooding, Transport::Udp, question, upstreams(1));
            assert!(forwarder.pending() <= MAX_PENDING);
        }
        assert!(forwarder.counters().evicted > 4000);
        while let Some(output) = forwarder.poll_output() {
            assert!(!matches!(output, Output::Answer { client: 1, .. }));
        }
        forwarder.handle_answer(now, exchange, &answer(&asked, 0, false));
        assert_eq!(Header::parse(&answered(&mut forwarder)).unwrap().rcode, 0);
    }
}

#[test]
fn open_exchanges_are_bounded() {
    let start = Instant::now();
    let mut forwarder = forwarder();
    let clients = MAX_PENDING as u64 - 1;
    for n in 0..clients {
        let question = named(&format!("n{n}.example."), 7);
        forwarder.start(start, n, Transport::Udp, question, upstreams(4));
    }
    let (at, _) = forwarder.next_deadline().unwrap();
    forwarder.handle_timeout(at);
    let (at, _) = forwarder.next_deadline().unwrap();
    forwarder.handle_timeout(at);
    assert_eq!(forwarder.open.len(), MAX_EXCHANGES);
    assert!(forwarder.counters().refused > 0);

    // A new question finds a socket all the same.
    forwarder.start(at, clients, Transport::Udp, query(), upstreams(1));
    assert!(forwarder.open.len() <= MAX_EXCHANGES);
    assert_eq!(forwarder.counters().evicted, 1);

    while let Some((at, _)) = forwarder.next_deadline() {
        forwarder.handle_timeout(at);
        assert!(forwarder.open.len() <= MAX_EXCHANGES);
    }
    assert_eq!((forwarder.pending(), forwarder.open.len()), (0, 0));
    for n in 0..=clients {
        let (client, failed) = next_answer(&mut forwarder);
        assert_eq!(client, n);
        assert_eq!(Header::parse(&failed).unwrap().rcode, SERVFAIL);
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

/// The caller's knowledge about one exchange.
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

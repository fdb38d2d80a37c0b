//! Questions under way to upstreams, and the answers of upstreams and of
//! off-path attackers who guess: every query ends with exactly one answer,
//! and every exchange is closed once.
#![no_main]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use warren_dns::message::{self, Header};
use warren_dns::{ExchangeId, Forwarder, Output, Transport};
use warren_fuzz::{Clock, steps};
use warren_testkit::SeededEntropy;

struct Sent {
    exchange: ExchangeId,
    query: Vec<u8>,
    closed: bool,
}

fn upstream(n: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, n], 53))
}

fn drain(
    forwarder: &mut Forwarder,
    sent: &mut Vec<Sent>,
    open: &mut BTreeMap<u64, (Transport, Vec<u8>)>,
) {
    while let Some(output) = forwarder.poll_output() {
        match output {
            Output::Send {
                exchange, query, ..
            } => {
                assert!(sent.len() < 10_000, "one question, no end of sends");
                assert!(sent.iter().all(|other| other.exchange != exchange));
                sent.push(Sent {
                    exchange,
                    query,
                    closed: false,
                });
            }
            Output::Close { exchange } => {
                let socket = sent.iter_mut().find(|sent| sent.exchange == exchange);
                let socket = socket.expect("only exchanges that were begun are closed");
                assert!(!std::mem::replace(&mut socket.closed, true), "closed twice");
            }
            Output::Answer { client, answer } => {
                let (transport, query) = open.remove(&client).expect("one answer per question");
                match (Header::parse(&query), Header::parse(&answer)) {
                    (Some(asked), Some(header)) => {
                        assert!(header.response && asked.id == header.id);
                        if transport == Transport::Udp {
                            let limit = message::edns_payload(&query)
                                .unwrap_or(0)
                                .max(message::MIN_PAYLOAD);
                            // An error repeats the question, however long.
                            assert!(
                                answer.len() <= usize::from(limit) || answer.len() <= query.len()
                            );
                        }
                    }
                    (None, _) => {}
                    (Some(_), None) => panic!("an answer without a header"),
                }
            }
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut clock = Clock::default();
    let mut forwarder = Forwarder::new(Box::new(SeededEntropy(1)));
    let (mut sent, mut open, mut client) = (Vec::new(), BTreeMap::new(), 0);
    for step in steps(bytes) {
        let transport = if step.arg & 1 == 0 {
            Transport::Udp
        } else {
            Transport::Tcp
        };
        let last = sent.len().wrapping_sub(1 + usize::from(step.arg >> 4));
        match step.kind % 5 {
            0 => {
                client += 1;
                open.insert(client, (transport, step.bytes.to_vec()));
                let upstreams = (0..step.arg >> 1 & 3).map(upstream).collect();
                forwarder.start(clock.now, client, transport, step.bytes.to_vec(), upstreams);
            }
            // The answer of the upstream that was asked: the query with other flags, and
            // anything behind it.
            1 => {
                if let Some(Sent {
                    exchange, query, ..
                }) = sent.get(last)
                {
                    let mut answer = query.clone();
                    if let Some(flags) = answer.get_mut(2..4) {
                        flags[0] |= 0x80 | step.arg & 2;
                        flags[1] = flags[1] & 0xf0 | step.arg >> 2 & 0x0f;
                    }
                    answer.extend_from_slice(step.bytes);
                    forwarder.handle_answer(clock.now, *exchange, &answer);
                }
            }
            2 => {
                if let Some(Sent { exchange, .. }) = sent.get(last) {
                    forwarder.handle_answer(clock.now, *exchange, step.bytes);
                }
            }
            3 => {
                if let Some(Sent { exchange, .. }) = sent.get(last) {
                    forwarder.handle_failure(clock.now, *exchange);
                }
            }
            _ => clock.pass(step.arg),
        }
        forwarder.handle_timeout(clock.now);
        drain(&mut forwarder, &mut sent, &mut open);
        assert_eq!(forwarder.pending(), open.len());
        if let Some((at, reason)) = forwarder.next_deadline() {
            assert!(at > clock.now, "{reason} stays due: the shell would spin");
        }
    }
    clock.now += Duration::from_secs(11);
    forwarder.handle_timeout(clock.now);
    drain(&mut forwarder, &mut sent, &mut open);
    assert!(
        open.is_empty() && forwarder.pending() == 0,
        "a question was forgotten"
    );
    assert!(
        sent.iter().all(|sent| sent.closed),
        "a socket stays open without a question"
    );
});

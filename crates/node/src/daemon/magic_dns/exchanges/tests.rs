//! Upstreams and forgers on loopback, against the forwarder and its sockets.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::time::Instant;

use tokio::net::TcpListener;
use warren_dial::SystemEntropy;
use warren_dns::forwarder::MAX_WRONG_ANSWERS;
use warren_dns::message::set_id;
use warren_dns::{ClientId, Forwarder, Output};

use super::*;

const GOOD: [u8; 4] = [192, 0, 2, 1];
const FORGED: [u8; 4] = [192, 0, 2, 66];

/// The question for the address of `x.example.`, with this id.
fn question(id: u16) -> Vec<u8> {
    let mut bytes = vec![0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    bytes.extend(b"\x01x\x07example\x00\x00\x01\x00\x01");
    set_id(&mut bytes, id);
    bytes
}

/// An answer to this question, with one address.
fn answer(question: &[u8], address: [u8; 4]) -> Vec<u8> {
    let mut bytes = question.to_vec();
    bytes[2] |= 0x80;
    bytes[7] = 1;
    bytes.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
    bytes.extend(address);
    bytes
}

/// The forwarder and its sockets, as the server at 100.100.100.100 runs them.
struct Stub {
    forwarder: Forwarder,
    exchanges: Exchanges,
    answers: Vec<(ClientId, Vec<u8>)>,
}

impl Stub {
    fn new() -> Self {
        Self {
            forwarder: Forwarder::new(Box::new(SystemEntropy)),
            exchanges: Exchanges::new(Routing::System),
            answers: Vec::new(),
        }
    }

    fn ask(&mut self, client: ClientId, upstreams: &[SocketAddr]) {
        let query = question(u16::try_from(client).unwrap());
        let now = Instant::now();
        self.forwarder
            .start(now, client, Transport::Udp, query, upstreams.to_vec());
        self.act();
    }

    fn act(&mut self) {
        while let Some(output) = self.forwarder.poll_output() {
            match output {
                Output::Send {
                    exchange,
                    to,
                    transport,
                    query,
                } => self.exchanges.start(exchange, to, transport, query),
                Output::Close { exchange } => self.exchanges.end(exchange),
                Output::Answer { client, answer } => self.answers.push((client, answer)),
            }
        }
    }

    /// Passes on reports until `count` clients have their answers.
    async fn answers(&mut self, count: usize) -> Vec<(ClientId, Vec<u8>)> {
        while self.answers.len() < count {
            let (exchange, message) = self.exchanges.next().await;
            let now = Instant::now();
            match message {
                Some(message) => self.forwarder.handle_answer(now, exchange, &message),
                None => self.forwarder.handle_failure(now, exchange),
            }
            self.act();
        }
        std::mem::take(&mut self.answers)
    }
}

/// A UDP socket and a TCP listener on one port of loopback.
async fn upstream() -> (UdpSocket, TcpListener, SocketAddr) {
    loop {
        let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let at = udp.local_addr().unwrap();
        if let Ok(tcp) = TcpListener::bind(at).await {
            return (udp, tcp, at);
        }
    }
}

/// Makes the system refuse datagrams to this port ("port unreachable") while
/// the port stays taken: a connected socket takes those of its peer only.
async fn refuse_datagrams(udp: &UdpSocket) {
    udp.connect(udp.local_addr().unwrap()).await.unwrap();
}

async fn answer_over_udp(upstream: &UdpSocket) -> SocketAddr {
    let mut buffer = [0; 512];
    let (len, client) = upstream.recv_from(&mut buffer).await.unwrap();
    let answer = answer(&buffer[..len], GOOD);
    upstream.send_to(&answer, client).await.unwrap();
    client
}

async fn answer_over_tcp(listener: &TcpListener) {
    let (mut stream, _) = listener.accept().await.unwrap();
    let len = stream.read_u16().await.unwrap();
    let mut query = vec![0; len.into()];
    stream.read_exact(&mut query).await.unwrap();
    let answer = answer(&query, GOOD);
    let len = u16::try_from(answer.len()).unwrap();
    stream.write_u16(len).await.unwrap();
    stream.write_all(&answer).await.unwrap();
}

#[tokio::test]
async fn forger_at_another_port_is_not_accepted_with_any_id() {
    let (upstream, _tcp, at) = upstream().await;
    let forger = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut stub = Stub::new();
    stub.ask(7, &[at]);
    let mut buffer = [0; 512];
    let (len, client) = upstream.recv_from(&mut buffer).await.unwrap();
    for id in 0..=u16::MAX {
        let forged = answer(&question(id), FORGED);
        forger.send_to(&forged, client).await.unwrap();
    }
    let good = answer(&buffer[..len], GOOD);
    upstream.send_to(&good, client).await.unwrap();
    assert_eq!(stub.answers(1).await, [(7, answer(&question(7), GOOD))]);
    assert_eq!(stub.forwarder.counters().wrong_answers, 0);
}

#[tokio::test]
async fn forger_at_the_right_port_has_few_guesses_before_tcp_is_used() {
    // The upstream's own socket sends the wrong ids, like a forger of its
    // address that has found the port.
    let (upstream, tcp, at) = upstream().await;
    let mut stub = Stub::new();
    stub.ask(7, &[at]);
    let mut buffer = [0; 512];
    let (_, client) = upstream.recv_from(&mut buffer).await.unwrap();
    let right = u16::from_be_bytes([buffer[0], buffer[1]]);
    for id in (0..=u16::MAX).filter(|id| *id != right).take(64) {
        let forged = answer(&question(id), FORGED);
        upstream.send_to(&forged, client).await.unwrap();
    }
    let (answers, ()) = tokio::join!(stub.answers(1), answer_over_tcp(&tcp));
    assert_eq!(answers, [(7, answer(&question(7), GOOD))]);
    let wrong = stub.forwarder.counters().wrong_answers;
    assert_eq!(wrong, u64::from(MAX_WRONG_ANSWERS));
}

#[tokio::test]
async fn equal_questions_make_one_exchange() {
    let (upstream, _tcp, at) = upstream().await;
    let mut stub = Stub::new();
    for client in 1..=200 {
        stub.ask(client, &[at]);
    }
    answer_over_udp(&upstream).await;
    for (client, bytes) in stub.answers(200).await {
        let id = u16::try_from(client).unwrap();
        assert_eq!(bytes, answer(&question(id), GOOD));
    }
    assert_eq!(stub.forwarder.counters().joined, 199);
    let further = upstream.try_recv_from(&mut [0; 512]).unwrap_err();
    assert_eq!(further.kind(), io::ErrorKind::WouldBlock);
}

#[tokio::test]
async fn exchanges_under_way_have_different_ports() {
    let (upstream, _tcp, at) = upstream().await;
    let mut exchanges = Exchanges::new(Routing::System);
    let mut ports = BTreeSet::new();
    for n in 0..32 {
        exchanges.start(ExchangeId(n), at, Transport::Udp, question(0));
        let client = answer_over_udp(&upstream).await;
        assert!(ports.insert(client.port()), "a port is used twice");
    }
}

#[tokio::test]
async fn closed_port_moves_on_to_the_next_upstream() {
    let (udp, _tcp, closed) = upstream().await;
    refuse_datagrams(&udp).await;
    let (upstream, _tcp, at) = upstream().await;
    let mut stub = Stub::new();
    stub.ask(7, &[closed, at]);
    let (answers, _) = tokio::join!(stub.answers(1), answer_over_udp(&upstream));
    assert_eq!(answers, [(7, answer(&question(7), GOOD))]);
}

#[tokio::test]
async fn closed_port_of_the_only_upstream_moves_on_to_tcp() {
    let (udp, tcp, at) = upstream().await;
    refuse_datagrams(&udp).await;
    let mut stub = Stub::new();
    stub.ask(7, &[at]);
    let (answers, ()) = tokio::join!(stub.answers(1), answer_over_tcp(&tcp));
    assert_eq!(answers, [(7, answer(&question(7), GOOD))]);
}

#[tokio::test]
async fn socket_is_closed_with_its_exchange() {
    let (upstream, _tcp, at) = upstream().await;
    let mut exchanges = Exchanges::new(Routing::System);
    exchanges.start(ExchangeId(1), at, Transport::Udp, question(0));
    upstream.recv_from(&mut [0; 512]).await.unwrap();
    exchanges.end(ExchangeId(1));
    // The task drops its sender of reports together with its socket.
    let Exchanges {
        reports,
        mut reported,
        ..
    } = exchanges;
    drop(reports);
    assert_eq!(reported.recv().await, None);
}

//! Our clients at our relay: each way in, and what the relay owes its clients.
#![allow(clippy::unwrap_used)]

mod net;

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use net::{
    PATIENCE, Received, TestClient, config, disco, plain, secret, tls, wait_until, without_tls,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use warren_dial::Dialer;
use warren_dial::connections::ConnectionLimits;
use warren_dial::derp::{ConnectOptions, NodeError, connect_node, https_latency};
use warren_keys::NodePublic;
use warren_relay::{Admission, Applicant, Relay};
use warren_wire::derp::{Frame, FrameKind, PeerGoneReason};

async fn exchange(a: &mut TestClient, b: &mut TestClient) {
    a.sender.send(&b.key, b"there");
    assert_eq!(b.packet(a.key).await, b"there");
    b.sender.send(&a.key, b"back");
    assert_eq!(a.packet(b.key).await, b"back");
}

#[tokio::test]
async fn packets_travel_whichever_way_a_client_came_in() {
    let folder = tempfile::tempdir().unwrap();
    let relay = Relay::new(config(100));
    let (open, pinned) = (plain(&relay).await, tls(&relay, folder.path()).await);
    let websocket = ConnectOptions {
        websocket: true,
        ..ConnectOptions::default()
    };
    let mut clients = [
        TestClient::connect(1, &open, &without_tls()).await,
        TestClient::connect(2, &pinned, &ConnectOptions::default()).await,
        TestClient::connect(3, &pinned, &websocket).await,
        TestClient::connect(
            4,
            &open,
            &ConnectOptions {
                websocket: true,
                ..without_tls()
            },
        )
        .await,
    ];
    for a in 0..clients.len() {
        for b in a + 1..clients.len() {
            let (left, right) = clients.split_at_mut(b);
            exchange(&mut left[a], &mut right[0]).await;
        }
    }
    assert_eq!(relay.connections(), 4);
    assert!(relay.metrics().contains("warren_relay_connections 4\n"));
}

#[tokio::test]
async fn certificate_with_another_pin_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let relay = Relay::new(config(100));
    let mut node = tls(&relay, folder.path()).await;
    node.cert_name = format!("sha256-raw:{}", "00".repeat(32));
    let refused = TestClient::try_connect(1, &node, &ConnectOptions::default()).await;
    assert!(matches!(refused.err(), Some(NodeError::Tls(_))));
}

#[tokio::test]
async fn burst_arrives_complete_and_in_order() {
    let relay = Relay::new(config(100));
    let node = plain(&relay).await;
    let a = TestClient::connect(1, &node, &without_tls()).await;
    let mut b = TestClient::connect(2, &node, &without_tls()).await;
    let packets: Vec<Vec<u8>> = (0..300u16).map(|n| n.to_be_bytes().repeat(600)).collect();
    a.sender
        .send_many(packets.iter().map(|packet| (&b.key, packet.as_slice())));
    for packet in &packets {
        assert_eq!(&b.packet(a.key).await, packet);
    }
    let largest = vec![7; warren_wire::derp::MAX_PACKET];
    a.sender.send(&b.key, &largest);
    assert_eq!(b.packet(a.key).await, largest);
    b.settle().await;
}

#[tokio::test]
async fn of_two_connections_of_a_key_the_one_that_spoke_last_gets_the_packets() {
    let relay = Relay::new(config(100));
    let node = plain(&relay).await;
    let mut sender = TestClient::connect(1, &node, &without_tls()).await;
    let mut old = TestClient::connect(2, &node, &without_tls()).await;
    let mut new = TestClient::connect(2, &node, &without_tls()).await;
    sender.sender.send(&new.key, b"to the newest");
    assert_eq!(new.packet(sender.key).await, b"to the newest");
    old.settle().await;
    sender.sender.send(&old.key, b"to the one that spoke");
    assert_eq!(old.packet(sender.key).await, b"to the one that spoke");
    // While one connection of a key is left, the key is not gone.
    old.sender.send(&sender.key, b"x");
    assert_eq!(sender.packet(old.key).await, b"x");
    drop(old);
    wait_until(|| relay.connections() == 2).await;
    sender.sender.send(&new.key, b"to the one that is left");
    assert_eq!(new.packet(sender.key).await, b"to the one that is left");
    let gone = new.key;
    drop(new);
    assert_eq!(
        sender.next().await,
        Some(Received::Gone(gone, PeerGoneReason::Disconnected))
    );
}

#[tokio::test]
async fn absent_target_is_reported_for_disco_only_and_rate_limited() {
    let relay = Relay::new(config(100));
    let node = plain(&relay).await;
    let mut a = TestClient::connect(1, &node, &without_tls()).await;
    let absent = secret(77).public();
    a.sender.send(&absent, b"data");
    a.settle().await;
    for _ in 0..20 {
        a.sender.send(&absent, &disco());
    }
    a.sender.ping(*b"the end.");
    let mut notices = 0;
    loop {
        match a.next().await {
            Some(Received::Gone(key, PeerGoneReason::NotHere)) if key == absent => notices += 1,
            Some(Received::Pong(_)) => break,
            other => panic!("{other:?}"),
        }
    }
    // Three at once and one a second; this takes far less than ten seconds.
    assert!((3..13).contains(&notices), "reported {notices} times");
}

#[tokio::test]
async fn only_admitted_keys_come_in() {
    let welcome = secret(1).public();
    let mut config = config(100);
    config.admission = Some(Arc::new(move |who: Applicant| who.key == welcome));
    let relay = Relay::new(config);
    let node = plain(&relay).await;
    TestClient::connect(1, &node, &without_tls()).await;
    let mut refused = TestClient::try_connect(2, &node, &without_tls())
        .await
        .unwrap();
    assert_eq!(refused.next().await, None);
}

/// Admits all clients until it is closed.
struct Gate(AtomicBool);

impl Admission for Gate {
    fn admit(&self, _: Applicant) -> Pin<Box<dyn Future<Output = bool> + Send + '_>> {
        Box::pin(std::future::ready(!self.0.load(Ordering::Relaxed)))
    }

    fn recheck_after(&self) -> Option<Duration> {
        Some(Duration::from_millis(10))
    }
}

#[tokio::test]
async fn client_that_is_not_admitted_any_more_is_disconnected() {
    let gate = Arc::new(Gate(AtomicBool::new(false)));
    let mut config = config(100);
    config.admission = Some(gate.clone());
    let relay = Relay::new(config);
    let node = plain(&relay).await;
    let mut a = TestClient::connect(1, &node, &without_tls()).await;
    let mut b = TestClient::connect(2, &node, &without_tls()).await;
    exchange(&mut a, &mut b).await;
    gate.0.store(true, Ordering::Relaxed);
    wait_until(|| relay.connections() == 0).await;
    while a.next().await.is_some() {}
}

#[tokio::test]
async fn receiver_that_does_not_read_delays_no_other_client() {
    let relay = Relay::new(config(100));
    let node = plain(&relay).await;
    let mut a = TestClient::connect(1, &node, &without_tls()).await;
    let mut c = TestClient::connect(3, &node, &without_tls()).await;
    // Connected by hand, so that nothing reads.
    let stuck = secret(2);
    let (_sender, _receiver) = connect_node(&Dialer::new(), &node, &stuck, &without_tls())
        .await
        .unwrap();
    wait_until(|| relay.connections() == 3).await;
    let packet = vec![1; 60_000];
    for _ in 0..500 {
        a.sender.send(&stuck.public(), &packet);
        a.settle().await;
    }
    exchange(&mut a, &mut c).await;
}

#[tokio::test]
async fn latency_check_works_with_and_without_tls() {
    let folder = tempfile::tempdir().unwrap();
    let relay = Relay::new(config(100));
    let (open, pinned) = (plain(&relay).await, tls(&relay, folder.path()).await);
    for (node, options) in [(open, without_tls()), (pinned, ConnectOptions::default())] {
        let (latency, from) = https_latency(&Dialer::new(), &node, &options)
            .await
            .unwrap();
        assert!(latency > Duration::ZERO && latency < PATIENCE);
        assert_eq!(from.port(), node.derp_port());
    }
}

/// Sends raw bytes and returns everything that comes back until the relay
/// closes.
async fn raw(port: u16, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let reading = stream.read_to_end(&mut answer);
    let _ = tokio::time::timeout(PATIENCE, reading)
        .await
        .expect("the relay should close");
    answer
}

#[tokio::test]
async fn small_http_addresses_answer() {
    let relay = Relay::new(config(100));
    let port = plain(&relay).await.derp_port();
    for (request, wanted) in [
        (
            "GET /derp/probe HTTP/1.1",
            &["HTTP/1.1 200 ", "Access-Control-Allow-Origin: *"][..],
        ),
        ("HEAD /derp/latency-check HTTP/1.1", &["HTTP/1.1 200 "]),
        ("POST /derp/probe HTTP/1.1", &["HTTP/1.1 405 "]),
        (
            "GET /derp HTTP/1.1",
            &["HTTP/1.1 426 ", "DERP requires connection upgrade"],
        ),
        ("GET /derp HTTP/1.1\r\nUpgrade: h2c", &["HTTP/1.1 426 "]),
        (
            "GET /generate_204 HTTP/1.1\r\nX-Tailscale-Challenge: ts_a.b-c:1",
            &[
                "HTTP/1.1 204 ",
                "X-Tailscale-Response: response ts_a.b-c:1",
                "no-cache",
            ],
        ),
        ("GET /robots.txt HTTP/1.1", &["Disallow: /"]),
        ("GET /bootstrap-dns HTTP/1.1", &["application/json", "{}"]),
        ("GET /metrics HTTP/1.1", &["warren_relay_connections 0"]),
        ("GET / HTTP/1.0", &["HTTP/1.1 200 ", "text/html"]),
        ("GET /nothing HTTP/1.1", &["HTTP/1.1 404 "]),
    ] {
        let bytes = format!("{request}\r\nHost: x\r\nConnection: close\r\n\r\n");
        let answer = String::from_utf8(raw(port, bytes.as_bytes()).await).unwrap();
        for wanted in wanted {
            assert!(
                answer.contains(wanted),
                "{request}: no {wanted} in {answer}"
            );
        }
    }
    let evil =
        "GET /generate_204 HTTP/1.1\r\nX-Tailscale-Challenge: a<b\r\nConnection: close\r\n\r\n";
    let answer = String::from_utf8(raw(port, evil.as_bytes()).await).unwrap();
    assert!(!answer.contains("X-Tailscale-Response"), "{answer}");
    // Two requests on one connection.
    let two = "GET /derp/probe HTTP/1.1\r\n\r\nGET /robots.txt HTTP/1.0\r\n\r\n";
    let answer = String::from_utf8(raw(port, two.as_bytes()).await).unwrap();
    assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), 2, "{answer}");
}

#[tokio::test]
async fn upgrade_response_has_the_exact_shape() {
    let relay = Relay::new(config(100));
    let port = plain(&relay).await.derp_port();
    for upgrade in ["DERP", "derp", "WebSocket"] {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let request =
            format!("GET /derp HTTP/1.1\r\nUpgrade: {upgrade}\r\nConnection: Upgrade\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let key = relay.public_key();
        let hex = key.to_string().replace("nodekey:", "");
        let mut wanted = format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n\
             Derp-Version: 2\r\nDerp-Public-Key: {hex}\r\n\r\n"
        )
        .into_bytes();
        Frame::ServerKey { key }.emit(&mut wanted);
        let mut got = vec![0; wanted.len()];
        stream.read_exact(&mut got).await.unwrap();
        assert_eq!(got, wanted);
    }
    // The fast start: not one byte of HTTP.
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let request = b"GET /derp HTTP/1.1\r\nUpgrade: DERP\r\nDerp-Fast-Start: 1\r\n\r\n";
    stream.write_all(request).await.unwrap();
    assert_eq!(stream.read_u8().await.unwrap(), FrameKind::ServerKey.code());
}

#[tokio::test]
async fn bad_input_closes_and_harms_absent() {
    let relay = Relay::new(config(100));
    let node = plain(&relay).await;
    let port = node.derp_port();
    let start = b"GET /derp HTTP/1.1\r\nUpgrade: DERP\r\nDerp-Fast-Start: 1\r\n\r\n".to_vec();
    let mut too_long = start.clone();
    too_long.extend([2, 0xff, 0xff, 0xff, 0xff]);
    let mut not_proven = start.clone();
    Frame::ClientInfo {
        key: secret(1).public(),
        sealed: &[7; 100],
    }
    .emit(&mut not_proven);
    let mut no_login = start.clone();
    Frame::Ping([0; 8]).emit(&mut no_login);
    for bytes in [too_long, not_proven, no_login] {
        let answer = raw(port, &bytes).await;
        assert_eq!(answer.len(), 45, "only the key frame comes: {answer:?}");
    }
    for bytes in [
        &b"\x16\x03\x01\x02\x00\x01\x00"[..],
        b"\r\n\r\nnonsense \x00\r\n\r\n",
    ] {
        let answer = raw(port, bytes).await;
        assert!(answer.starts_with(b"HTTP/1.1 400 "), "{answer:?}");
    }
    // After the login: what only mesh peers may do, and wrong lengths.
    for n in 0..3u8 {
        let mut client = TestClient::connect(9, &node, &without_tls()).await;
        match n {
            0 => client.sender.close_peer(secret(1).public()),
            1 => client.sender.forward(
                std::time::Instant::now(),
                client.key,
                secret(1).public(),
                b"forged",
            ),
            _ => client.sender.send(&secret(1).public(), &vec![0; 65_537]),
        }
        assert_eq!(client.next().await, None, "case {n}");
    }
    let mut a = TestClient::connect(1, &node, &without_tls()).await;
    let mut b = TestClient::connect(2, &node, &without_tls()).await;
    exchange(&mut a, &mut b).await;
}

#[tokio::test]
async fn connections_beyond_the_limit_are_refused() {
    let mut config = config(100);
    config.limits = ConnectionLimits::new(1, u64::MAX);
    let relay = Relay::new(config);
    let node = plain(&relay).await;
    let first = TestClient::connect(1, &node, &without_tls()).await;
    assert_eq!(relay.open_connections(), 1);
    assert!(
        TestClient::try_connect(2, &node, &without_tls())
            .await
            .is_err()
    );
    drop(first);
    wait_until(|| relay.open_connections() == 0).await;
    TestClient::connect(2, &node, &without_tls()).await;
}

#[tokio::test]
async fn closing_relay_notifies_all_clients() {
    let relay = Relay::new(config(100));
    let node = plain(&relay).await;
    let mut a = TestClient::connect(1, &node, &without_tls()).await;
    relay.close();
    assert_eq!(a.next().await, None);
    let absent: NodePublic = secret(9).public();
    a.sender.send(&absent, b"into the void");
}

//! Connections that stay silent in some phase before the login: each phase ends
//! by itself, and however many connections are in it, clients get in.
#![allow(clippy::unwrap_used)]

mod net;

use std::path::Path;
use std::time::Duration;

use net::{PATIENCE, TestClient, config, node, tls, without_tls};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use warren_control_types::DerpNode;
use warren_dial::connections::ConnectionLimits;
use warren_dial::derp::ConnectOptions;
use warren_relay::{Config, Relay, Timeouts, listen};
use warren_wire::derp::FrameKind;

/// A listener of the relay.
#[derive(Debug, Clone, Copy)]
enum Port {
    Tls,
    Plain,
    Redirect,
}

/// A phase before the login: the listener, and the bytes after which the client
/// is silent.
type Phase = (&'static str, Port, Vec<u8>);

fn phases() -> Vec<Phase> {
    let start = b"GET /derp HTTP/1.1\r\nUpgrade: DERP\r\n";
    let fast = [&start[..], b"Derp-Fast-Start: 1\r\n\r\n"].concat();
    // The start of a login, whose rest never comes.
    let half_login = [&fast[..], &[FrameKind::ClientInfo.code(), 0, 0, 1, 0, 7]].concat();
    let websocket = b"GET /derp HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
        Sec-WebSocket-Protocol: derp\r\nSec-WebSocket-Version: 13\r\n\
        Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n";
    vec![
        ("no TLS hello", Port::Tls, vec![]),
        ("half a TLS hello", Port::Tls, vec![0x16, 3, 1, 2, 0, 1]),
        ("no request", Port::Plain, vec![]),
        ("half a request", Port::Plain, start.to_vec()),
        (
            "no second request",
            Port::Plain,
            b"GET /derp/probe HTTP/1.1\r\n\r\n".to_vec(),
        ),
        ("no login", Port::Plain, [&start[..], b"\r\n"].concat()),
        ("no login, fast start", Port::Plain, fast),
        ("half a login", Port::Plain, half_login),
        ("no login, WebSocket", Port::Plain, websocket.to_vec()),
        ("no request to be redirected", Port::Redirect, vec![]),
    ]
}

struct Listeners {
    relay: Relay,
    tls: DerpNode,
    plain: DerpNode,
    redirect: u16,
}

impl Listeners {
    async fn start(config: Config, state: &Path) -> Self {
        let relay = Relay::new(config);
        let bind = || listen::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let (open, port_80) = (bind(), bind());
        let plain = node(open.local_addr().unwrap(), "");
        let redirect = port_80.local_addr().unwrap().port();
        tokio::spawn(listen::serve(relay.clone(), open, None));
        tokio::spawn(listen::serve_port_80(relay.clone(), port_80));
        let tls = tls(&relay, state).await;
        Self {
            relay,
            tls,
            plain,
            redirect,
        }
    }

    async fn idle(&self, port: Port, bytes: &[u8]) -> TcpStream {
        let port = match port {
            Port::Tls => self.tls.derp_port(),
            Port::Plain => self.plain.derp_port(),
            Port::Redirect => self.redirect,
        };
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream
    }
}

/// Reads until the relay closes.
async fn closed(mut stream: TcpStream, phase: &str) {
    let mut rest = Vec::new();
    let reading = stream.read_to_end(&mut rest);
    let _ = tokio::time::timeout(PATIENCE, reading)
        .await
        .unwrap_or_else(|_| panic!("{phase}: the relay should close"));
}

#[tokio::test]
async fn every_phase_before_the_login_has_a_deadline() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(100);
    let soon = Duration::from_millis(20);
    config.timeouts = Timeouts {
        tls: soon,
        http: soon,
        login: soon,
        ..Timeouts::default()
    };
    let listeners = Listeners::start(config, folder.path()).await;
    for (phase, port, bytes) in phases() {
        closed(listeners.idle(port, &bytes).await, phase).await;
    }
    net::wait_until(|| listeners.relay.open_connections() == 0).await;
}

#[tokio::test]
async fn requests_do_not_keep_a_connection_without_login_open() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(100);
    config.timeouts.until_upgrade = Duration::from_millis(50);
    let listeners = Listeners::start(config, folder.path()).await;
    let mut stream = listeners.idle(Port::Plain, b"").await;
    let requests = async {
        let request = b"GET /derp/probe HTTP/1.1\r\n\r\n";
        let mut answer = [0; 1024];
        while stream.write_all(request).await.is_ok()
            && matches!(stream.read(&mut answer).await, Ok(1..))
        {}
    };
    tokio::time::timeout(PATIENCE, requests)
        .await
        .expect("the relay should close");
}

#[tokio::test]
async fn idle_connections_in_no_phase_keep_clients_out() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(100);
    config.limits = ConnectionLimits::new(8, u64::MAX);
    let listeners = Listeners::start(config, folder.path()).await;
    let pinned = ConnectOptions::default();
    let first = TestClient::connect(1, &listeners.tls, &pinned).await;
    for (phase, port, bytes) in phases() {
        let mut idle = Vec::new();
        for _ in 0..20 {
            idle.push(listeners.idle(port, &bytes).await);
        }
        // The oldest was closed in favour of the others.
        closed(idle.remove(0), phase).await;
        let mut second = TestClient::connect(2, &listeners.plain, &without_tls()).await;
        first.sender.send(&second.key, b"in");
        assert_eq!(second.packet(first.key).await, b"in", "{phase}");
    }
}

#[tokio::test]
async fn one_key_cannot_keep_other_clients_out() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(100);
    config.limits = ConnectionLimits::new(16, u64::MAX);
    let share = config.limits.per_owner;
    let listeners = Listeners::start(config, folder.path()).await;
    let mut greedy = Vec::new();
    for _ in 0..40 {
        greedy.push(TestClient::connect(1, &listeners.plain, &without_tls()).await);
    }
    net::wait_until(|| listeners.relay.connections() == share).await;
    let other = TestClient::connect(2, &listeners.plain, &without_tls()).await;
    let mut third = TestClient::connect(3, &listeners.plain, &without_tls()).await;
    other.sender.send(&third.key, b"in");
    assert_eq!(third.packet(other.key).await, b"in");
}

#[tokio::test]
async fn addresses_of_one_source_share_their_slots_before_the_login() {
    let mut config = config(100);
    config.limits = ConnectionLimits::new(16, u64::MAX);
    config.limits.per_source = 2;
    let relay = Relay::new(config);
    let from = async |address: &str| {
        let (ours, theirs) = tokio::io::duplex(4096);
        let (relay, peer) = (relay.clone(), format!("[{address}]:1").parse().unwrap());
        let serving = tokio::spawn(async move { relay.serve_connection(theirs, peer).await });
        (ours, serving)
    };
    let (_a, oldest) = from("2001:db8::1").await;
    net::wait_until(|| relay.open_connections() == 1).await;
    let (_b, other) = from("2001:db8:0:1::1").await;
    net::wait_until(|| relay.open_connections() == 2).await;
    let (_c, _second) = from("2001:db8::2").await;
    net::wait_until(|| relay.open_connections() == 3).await;
    let (_d, _third) = from("2001:db8::3").await;
    let ended = tokio::time::timeout(PATIENCE, oldest)
        .await
        .unwrap()
        .unwrap();
    assert!(ended.unwrap_err().to_string().contains("newer connection"));
    assert!(!other.is_finished());
}

//! Silent connections: each phase has a deadline, and nodes get in beside any
//! number of them. The clock is virtual.

#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use bytes::Bytes;
use data_encoding::BASE64;
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use support::{Node, options, reusable};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, pause, timeout};
use warren_channel::ClientHandshake;
use warren_control::channel_idle::{FIRST_REQUEST, IDLE};
use warren_control::serve::{Running, start};
use warren_dial::SystemEntropy;
use warren_dial::noise_stream::NoiseStream;
use warren_keys::{MachinePublic, MachineSecret};

/// Connections in each phase.
const MANY: usize = 20;
/// Longer than a connection may stay in any phase.
const LONG: Duration = Duration::from_secs(600);

/// A server with a relay, and so with TLS.
async fn server(dir: &std::path::Path) -> Running {
    let mut serve = options(dir);
    serve.derp_map = None;
    start(&dir.join("state"), serve).await.unwrap()
}

async fn tcp(server: &Running, bytes: &[u8]) -> TcpStream {
    let address = server.server_url.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    stream
}

/// Upgrades, without waiting for the server's half of the Noise handshake.
async fn upgraded(
    server: &Running,
    key: &MachinePublic,
    machine: &MachineSecret,
) -> (TcpStream, ClientHandshake) {
    let (handshake, initiation) =
        ClientHandshake::start(119, machine, key, &mut SystemEntropy).unwrap();
    let head = format!(
        "POST /ts2021 HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: tailscale-control-protocol\r\nX-Tailscale-Handshake: {}\r\n\r\n",
        BASE64.encode(&initiation)
    );
    let mut stream = tcp(server, head.as_bytes()).await;
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(stream.read_u8().await.unwrap());
    }
    assert!(answer.starts_with(b"HTTP/1.1 101"));
    (stream, handshake)
}

async fn channel(
    server: &Running,
    key: &MachinePublic,
    machine: &MachineSecret,
) -> NoiseStream<TcpStream> {
    let (stream, handshake) = upgraded(server, key, machine).await;
    NoiseStream::connect(stream, Vec::new(), handshake)
        .await
        .unwrap()
}

async fn server_key(server: &Running) -> MachinePublic {
    let node = Node::new(&server.server_url, "any");
    node.client.fetch_key().await.unwrap().public_key.unwrap()
}

/// Waits until the server has closed the connection, and says how long it took.
async fn closed(mut stream: impl tokio::io::AsyncRead + Unpin) -> Duration {
    let start = Instant::now();
    let mut rest = Vec::new();
    let read = timeout(LONG, stream.read_to_end(&mut rest)).await;
    let _ = read.expect("the server closes the connection");
    start.elapsed()
}

async fn whoami(sender: &mut SendRequest<Empty<Bytes>>) {
    let request = http::Request::get("https://unused/machine/whoami").body(Empty::new());
    let response = sender.send_request(request.unwrap()).await.unwrap();
    response.into_body().collect().await.unwrap();
}

#[tokio::test]
async fn connections_that_do_not_speak_http_are_closed() {
    let dir = tempfile::tempdir().unwrap();
    let server = server(dir.path()).await;
    pause();
    for begun in [
        &b""[..],
        b"\x16",
        b"\x16\x03\x01\x02\x00",
        b"G",
        b"GET /key?v=119 HTTP/1.1\r\nHost: x\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /verify HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{",
        b"POST /ts2021 HTTP/1.1\r\nHost: x\r\n",
        b"GET /derp HTTP/1.1\r\nUpgrade: DERP\r\n",
        b"GET /derp/probe HTTP/1.1\r\nHost: x\r\n\r\n",
    ] {
        let mut streams = Vec::new();
        for _ in 0..MANY {
            streams.push(tcp(&server, begun).await);
        }
        for stream in streams {
            let took = closed(stream).await;
            assert!(took <= Duration::from_secs(60), "{begun:?}: {took:?}");
        }
    }
    assert!(server.connections.is_empty());
    server.stop().await.unwrap();
}

#[tokio::test]
async fn channels_without_a_request_are_closed() {
    let dir = tempfile::tempdir().unwrap();
    let server = server(dir.path()).await;
    let key = server_key(&server).await;
    let machine = MachineSecret::generate(&mut SystemEntropy);
    pause();
    let mut streams = Vec::new();
    for _ in 0..MANY {
        streams.push(upgraded(&server, &key, &machine).await.0);
    }
    for stream in streams {
        assert!(closed(stream).await <= FIRST_REQUEST + Duration::from_secs(1));
    }
    let mut streams = Vec::new();
    for _ in 0..MANY {
        let mut stream = channel(&server, &key, &machine).await;
        // The preface of RFC 9113 and an empty SETTINGS frame.
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
        stream.write_all(preface).await.unwrap();
        stream.flush().await.unwrap();
        streams.push(stream);
    }
    for stream in streams {
        assert!(closed(stream).await <= FIRST_REQUEST + Duration::from_secs(1));
    }
    server.stop().await.unwrap();
}

/// That the channel of a node stays open is tested beside the rule itself: the
/// deadlines of nodes go by the real clock, which does not follow this one.
#[tokio::test]
async fn an_idle_channel_of_an_unknown_machine_ends_after_a_minute() {
    let dir = tempfile::tempdir().unwrap();
    let server = server(dir.path()).await;
    let key = server_key(&server).await;
    pause();
    let machine = MachineSecret::generate(&mut SystemEntropy);
    let stream = channel(&server, &key, &machine).await;
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    let connection = tokio::spawn(connection);
    whoami(&mut sender).await;
    let start = Instant::now();
    let ended = timeout(LONG, connection).await;
    assert!(ended.is_ok(), "the server closes the channel");
    assert!(start.elapsed() <= IDLE + Duration::from_secs(1));
    server.stop().await.unwrap();
}

#[tokio::test]
async fn nodes_get_in_beside_more_silent_connections_than_there_are_slots() {
    let dir = tempfile::tempdir().unwrap();
    let mut serve = options(dir.path());
    serve.max_connections = Some(40);
    let server = start(&dir.path().join("state"), serve).await.unwrap();
    let key = server_key(&server).await;
    let mut node = Node::new(&server.server_url, "laptop");
    node.register(&reusable(dir.path()).await).await;
    node.poll("").await;
    let machine = MachineSecret::generate(&mut SystemEntropy);
    let mut silent = Vec::new();
    for _ in 0..60 {
        silent.push(upgraded(&server, &key, &machine).await.0);
        silent.push(tcp(&server, b"").await);
    }
    assert!(
        server.connections.len() <= 40,
        "{}",
        server.connections.len()
    );
    // The open stream is still there, and another node joins.
    let other = Node::new(&server.server_url, "desktop");
    other.register(&reusable(dir.path()).await).await;
    node.until(|map| map.peers.len() == 1).await;
    server.stop().await.unwrap();
}

#[tokio::test]
async fn one_member_cannot_keep_other_nodes_out() {
    let dir = tempfile::tempdir().unwrap();
    let mut serve = options(dir.path());
    serve.max_connections = Some(40);
    let server = start(&dir.path().join("state"), serve).await.unwrap();
    let key = server_key(&server).await;
    let member = Node::new(&server.server_url, "laptop");
    member.register(&reusable(dir.path()).await).await;
    let mut greedy = Vec::new();
    for _ in 0..60 {
        let stream = channel(&server, &key, &member.machine).await;
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                .await
                .unwrap();
        tokio::spawn(connection);
        whoami(&mut sender).await;
        greedy.push(sender);
    }
    assert!(server.connections.len() <= 20);
    greedy.retain(|sender| !sender.is_closed());
    assert!(greedy.len() <= 20 && !greedy.is_empty());
    let mut other = Node::new(&server.server_url, "desktop");
    other.register(&reusable(dir.path()).await).await;
    other.poll("").await;
    assert_eq!(other.peer_names(), ["laptop"]);
    server.stop().await.unwrap();
}

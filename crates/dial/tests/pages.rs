//! Short pages over HTTP: requests, and connections that send none.
#![allow(clippy::unwrap_used)]

use http::StatusCode;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use warren_dial::pages::{PROMETHEUS, Page, serve};

async fn start() -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(serve(listener, |path| async move {
        match path.as_str() {
            "/metrics" => Page {
                status: StatusCode::OK,
                media_type: PROMETHEUS,
                text: "up 1\n".to_owned(),
            },
            _ => Page::not_found(),
        }
    }));
    address
}

async fn ask(address: std::net::SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn requests_are_answered_by_their_path_and_method() {
    let address = start().await;
    let answer = ask(address, "GET /metrics?x=1 HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert_eq!(
        answer,
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n\
         Content-Length: 5\r\nConnection: close\r\n\r\nup 1\n"
    );
    let answer = ask(address, "HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(answer.ends_with("Content-Length: 5\r\nConnection: close\r\n\r\n"));
    for (request, status) in [
        ("GET / HTTP/1.1\r\n\r\n", "404"),
        (
            "POST /metrics HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc",
            "405",
        ),
        ("\u{1}\u{2}\r\n\r\n", "400"),
        (
            &format!("GET / HTTP/1.1\r\nA: {}", "x".repeat(8 * 1024)),
            "400",
        ),
    ] {
        let answer = ask(address, request).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{answer}"
        );
    }
}

#[tokio::test]
async fn connections_that_send_nothing_do_not_keep_probes_out() {
    let address = start().await;
    let mut silent = Vec::new();
    for _ in 0..100 {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    for _ in 0..3 {
        let answer = ask(address, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert!(answer.ends_with("up 1\n"), "{answer}");
    }
    // The first ones were closed.
    let mut first = silent.remove(0);
    let mut nothing = [0; 1];
    assert!(matches!(first.read(&mut nothing).await, Ok(0) | Err(_)));
}

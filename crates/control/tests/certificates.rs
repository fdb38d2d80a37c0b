//! The certificate of a server that runs is replaced.

#![allow(clippy::unwrap_used)]

mod support;

use std::path::{Path, PathBuf};

use support::{admin, options};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::ServerName;
use warren_control::serve::{Running, start};
use warren_control_api::endpoints::GetHealth;
use warren_control_types::DerpNode;
use warren_dial::tls::{Trust, client_config};
use warren_relay::tls::Certificate;

/// Makes a certificate for localhost; returns its files and its pin.
fn certificate(folder: &Path) -> (PathBuf, PathBuf, String) {
    std::fs::create_dir(folder).unwrap();
    let pin = Certificate::self_signed("localhost", folder).unwrap().pin();
    let find = |ending: &str| {
        let mut entries = std::fs::read_dir(folder).unwrap();
        let found = entries.find_map(|entry| {
            let path = entry.unwrap().path();
            path.extension()
                .is_some_and(|e| e == ending)
                .then_some(path)
        });
        found.unwrap()
    };
    (find("crt"), find("key"), pin)
}

async fn health(dir: &Path) -> Option<String> {
    admin(dir, GetHealth {}).await.unwrap().certificate_problem
}

async fn with_certificate(dir: &Path) -> (Running, PathBuf, PathBuf, String) {
    let (first_chain, first_key, pin) = certificate(&dir.join("first"));
    let (chain, key) = (dir.join("chain.pem"), dir.join("key.pem"));
    std::fs::copy(first_chain, &chain).unwrap();
    std::fs::copy(first_key, &key).unwrap();
    let mut options = options(dir);
    options.tls_cert = Some(chain.clone());
    options.tls_key = Some(key.clone());
    let server = start(&dir.join("state"), options).await.unwrap();
    (server, chain, key, pin)
}

/// A TLS connection to a server whose certificate has this pin.
async fn connect(server: &Running, pin: &str) -> std::io::Result<TlsStream<TcpStream>> {
    let relay = DerpNode {
        host_name: "localhost".to_owned(),
        cert_name: pin.to_owned(),
        ..DerpNode::default()
    };
    let trust = Trust::for_relay(&relay).unwrap();
    let connector = TlsConnector::from(client_config(&trust, &[]).unwrap());
    let address = server.server_url.strip_prefix("https://").unwrap();
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::try_from("localhost").unwrap();
    connector.connect(name, stream).await
}

/// Sends a request and returns the first line of the answer.
async fn status(stream: &mut TlsStream<TcpStream>) -> String {
    let request = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let mut answer = vec![0; 4096];
    let read = stream.read(&mut answer).await.unwrap();
    let text = String::from_utf8_lossy(&answer[..read]).into_owned();
    text.lines().next().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn renewed_files_are_used_and_open_streams_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let (server, chain, key, first) = with_certificate(dir.path()).await;
    let mut held = connect(&server, &first).await.unwrap();
    assert!(status(&mut held).await.starts_with("HTTP/1.1 200"));
    let (new_chain, new_key, second) = certificate(&dir.path().join("second"));
    assert_ne!(first, second);
    // The chain comes first: for a moment the two do not belong together.
    std::fs::copy(&new_chain, &chain).unwrap();
    while health(dir.path()).await.is_none() {
        tokio::task::yield_now().await;
    }
    connect(&server, &first).await.unwrap();
    assert!(connect(&server, &second).await.is_err());
    std::fs::copy(&new_key, &key).unwrap();
    while health(dir.path()).await.is_some() {
        tokio::task::yield_now().await;
    }
    connect(&server, &second).await.unwrap();
    assert!(connect(&server, &first).await.is_err());
    // A connection from before is served.
    assert!(status(&mut held).await.starts_with("HTTP/1.1 200"));

    std::fs::remove_file(&chain).unwrap();
    while health(dir.path()).await.is_none() {
        tokio::task::yield_now().await;
    }
    let why = health(dir.path()).await.unwrap();
    assert!(why.contains("chain.pem"), "{why}");
    server.stop().await.unwrap();
}

//! The log of a relay: each line names its connection, and no line at the level of a
//! server in use names an address or a key.
#![allow(clippy::unwrap_used)]

mod net;

use std::sync::Arc;

use net::{TestClient, config, plain, secret, wait_until, without_tls};
use tracing::Level;
use warren_relay::{Applicant, Relay};
use warren_testkit::LogLines;

/// The lines of the relay itself while a client is served, one is refused, and one
/// speaks another protocol.
async fn lines_at(level: Level) -> Vec<String> {
    let lines = LogLines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_writer(move || writer.clone())
        .with_max_level(level)
        .with_ansi(false)
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let welcome = secret(1).public();
    let mut config = config(100);
    config.admission = Some(Arc::new(move |who: Applicant| who.key == welcome));
    let relay = Relay::new(config);
    let node = plain(&relay).await;
    let admitted = TestClient::connect(1, &node, &without_tls()).await;
    let mut refused = TestClient::try_connect(2, &node, &without_tls())
        .await
        .unwrap();
    assert_eq!(refused.next().await, None);
    let port = node.derp_port();
    let mut other = tokio::net::TcpStream::connect(("127.0.0.1", port))
        .await
        .unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut other, b"SSH-2.0-x\r\n\r\n")
        .await
        .unwrap();
    wait_until(|| relay.metrics().contains("warren_relay_refused_total 2\n")).await;
    drop(admitted);
    wait_until(|| relay.connections() == 0).await;
    if level >= Level::DEBUG {
        wait_until(|| lines.text().contains("client gone")).await;
    }
    let text = lines.text();
    let own = text.lines().filter(|line| line.contains("warren_relay::"));
    own.map(str::to_owned).collect()
}

#[tokio::test]
async fn every_line_names_its_connection() {
    let lines = lines_at(Level::TRACE).await;
    for text in ["accepted", "connected", "client gone", "not admitted"] {
        assert!(
            lines.iter().any(|line| line.contains(text)),
            "{text}: {lines:#?}"
        );
    }
    for line in &lines {
        assert!(line.contains("conn{id="), "{line}");
    }
}

#[tokio::test]
async fn no_line_at_the_usual_level_names_an_address_or_a_key() {
    let key = format!("{:?}", secret(1).public());
    let private = ["127.0.0.1", "nodekey:", key.as_str()];
    for line in lines_at(Level::INFO).await {
        assert!(!private.iter().any(|text| line.contains(text)), "{line}");
    }
    let lines = lines_at(Level::DEBUG).await.join("\n");
    assert!(
        lines.contains("127.0.0.1"),
        "the address is there to be found"
    );
}

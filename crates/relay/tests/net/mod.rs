//! Helpers of the relay's integration tests: relays on loopback, and clients
//! whose events can be awaited one by one.
#![allow(clippy::unwrap_used, dead_code)]

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use warren_control_types::{DerpNode, HostAddress};
use warren_derp::client::Event;
use warren_dial::Dialer;
use warren_dial::derp::{ConnectOptions, DerpReceiver, DerpSender, NodeError, connect_node};
use warren_keys::{NodePublic, NodeSecret};
use warren_relay::tls::{Certificate, server_config};
use warren_relay::{Config, Relay, listen};

/// The longest wait for any event before a test fails as hanging.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The key of the `n`th client.
pub fn secret(n: u8) -> NodeSecret {
    NodeSecret::from_bytes(&[n; 32])
}

/// A relay's configuration with a key of its own.
pub fn config(n: u8) -> Config {
    Config::new(secret(n))
}

/// Serves a relay without TLS; returns its map entry.
pub async fn plain(relay: &Relay) -> DerpNode {
    let listener = listen::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(listen::serve(relay.clone(), listener, None));
    node(address, "")
}

/// Serves a relay with a self-signed certificate; returns its map entry.
pub async fn tls(relay: &Relay, state: &Path) -> DerpNode {
    let certificate = Certificate::self_signed("127.0.0.1", state).unwrap();
    let pin = certificate.pin();
    let tls = server_config(certificate, relay.public_key()).unwrap();
    let listener = listen::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(listen::serve(relay.clone(), listener, Some(tls)));
    node(address, &pin)
}

/// A map entry for an address.
pub fn node(address: SocketAddr, cert_name: &str) -> DerpNode {
    DerpNode {
        name: "test".into(),
        host_name: address.ip().to_string(),
        cert_name: cert_name.into(),
        derp_port_raw: address.port().into(),
        ipv4: HostAddress::At([127, 0, 0, 1].into()),
        ipv6: HostAddress::Never,
        ..DerpNode::default()
    }
}

/// Options for a relay without TLS.
pub fn without_tls() -> ConnectOptions {
    ConnectOptions {
        plain_http: true,
        ..ConnectOptions::default()
    }
}

/// An event that a client received, with packets copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Received {
    Connected,
    Packet(NodePublic, Vec<u8>),
    Gone(NodePublic, warren_wire::derp::PeerGoneReason),
    Present(NodePublic),
    Pong([u8; 8]),
    Other(String),
}

/// A client that keeps what came and was not yet asked for.
pub struct TestClient {
    pub key: NodePublic,
    pub sender: DerpSender,
    receiver: DerpReceiver,
    came: std::collections::VecDeque<Received>,
}

impl TestClient {
    /// Connects the `n`th client and waits until its login is taken.
    pub async fn connect(n: u8, node: &DerpNode, options: &ConnectOptions) -> Self {
        let mut client = Self::try_connect(n, node, options).await.unwrap();
        assert_eq!(client.next().await, Some(Received::Connected));
        client
    }

    /// Connects, without waiting for the login.
    pub async fn try_connect(
        n: u8,
        node: &DerpNode,
        options: &ConnectOptions,
    ) -> Result<Self, NodeError> {
        let secret = secret(n);
        let (sender, receiver) = connect_node(&Dialer::new(), node, &secret, options).await?;
        Ok(Self {
            key: secret.public(),
            sender,
            receiver,
            came: Default::default(),
        })
    }

    /// The next event; `None` when the connection is over.
    pub async fn next(&mut self) -> Option<Received> {
        while self.came.is_empty() {
            let received = tokio::time::timeout(PATIENCE, self.receiver.recv()).await;
            let batch = received.expect("something should have come by now").ok()?;
            self.came.extend(batch.map(|event| match event {
                Event::Connected(_) => Received::Connected,
                Event::Packet { from, packet } => Received::Packet(from, packet.to_vec()),
                Event::PeerGone { key, reason } => Received::Gone(key, reason),
                Event::PeerPresent { key, .. } => Received::Present(key),
                Event::Pong(data) => Received::Pong(data),
                other => Received::Other(format!("{other:?}")),
            }));
        }
        self.came.pop_front()
    }

    /// Waits for a packet from `from`, which must be the next event.
    pub async fn packet(&mut self, from: NodePublic) -> Vec<u8> {
        match self.next().await {
            Some(Received::Packet(source, packet)) if source == from => packet,
            other => panic!("wanted a packet from {from:?}, got {other:?}"),
        }
    }

    /// Waits until the relay has taken everything sent so far.
    pub async fn settle(&mut self) {
        self.sender.ping(*b"settled?");
        assert_eq!(self.next().await, Some(Received::Pong(*b"settled?")));
    }
}

/// A packet that relays take for disco.
pub fn disco() -> Vec<u8> {
    let mut packet = b"TS\xf0\x9f\x92\xac".to_vec();
    packet.resize(124, 5);
    packet
}

/// Waits for a condition that only the passage of events makes true.
pub async fn wait_until(condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting)
        .await
        .expect("the condition should hold by now");
}

//! Our client at the official relay, `derper`, which is looked up in
//! `$WARREN_PEERS`, else in `PATH`.
#![allow(clippy::unwrap_used)]

mod net;

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use net::{Received, TestClient, disco, secret, without_tls};
use warren_control_types::DerpNode;
use warren_dial::Dialer;
use warren_dial::derp::{ConnectOptions, https_latency};
use warren_keys::DerpMeshKey;
use warren_relay::{MeshPeer, Relay};
use warren_wire::derp::PeerGoneReason;

fn find(program: &str) -> Option<PathBuf> {
    let folders = std::env::var_os("WARREN_PEERS").or_else(|| std::env::var_os("PATH"))?;
    std::env::split_paths(&folders)
        .map(|folder| folder.join(program))
        .find(|path| path.is_file())
}

/// A running `derper`; stopped when dropped.
struct Derper {
    child: Child,
    node: DerpNode,
    _state: tempfile::TempDir,
}

impl Drop for Derper {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port that is free now.
fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

impl Derper {
    /// Starts it, with the arguments that `more` adds; prints the reason and
    /// returns `None` when it is not installed.
    async fn start(tls: bool, more: impl FnOnce(&mut Command)) -> Option<Self> {
        let Some(program) = find("derper") else {
            // Past the test harness, which hides the output of tests that pass.
            let skipped = "SKIPPED interop_derper: no derper in $WARREN_PEERS or PATH";
            let _ = writeln!(std::io::stderr(), "{skipped}");
            return None;
        };
        let state = tempfile::tempdir().unwrap();
        let folder = state.path().to_str().unwrap();
        let address = format!("127.0.0.1:{}", free_port());
        let mut command = Command::new(program);
        command.args([
            "-a",
            &address,
            "-stun=false",
            "-http-port",
            "-1",
            "-hostname",
            "127.0.0.1",
        ]);
        command.args(["-c", &format!("{folder}/derper.key")]);
        command.args(["-certdir", folder]);
        command.args(["-certmode", if tls { "manual" } else { "letsencrypt" }]);
        more(&mut command);
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut pin = String::new();
        // It says where it serves once everything is set up.
        for line in lines.by_ref().map_while(Result::ok) {
            eprintln!("derper: {line}");
            if let Some((_, rest)) = line.split_once("sha256-raw:") {
                let digits: String = rest.chars().take_while(char::is_ascii_hexdigit).collect();
                pin = format!("sha256-raw:{digits}");
            }
            if if tls {
                !pin.is_empty()
            } else {
                line.contains("serving on")
            } {
                break;
            }
        }
        // Its pipe must not fill up.
        std::thread::spawn(move || lines.map_while(Result::ok).count());
        assert_eq!(pin.is_empty(), !tls, "derper prints a pin with TLS");
        let node = net::node(address.parse().unwrap(), &pin);
        let mut connected = tokio::net::TcpStream::connect(&address).await;
        while connected.is_err() {
            assert!(child.try_wait().unwrap().is_none(), "derper has ended");
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            connected = tokio::net::TcpStream::connect(&address).await;
        }
        Some(Self {
            child,
            node,
            _state: state,
        })
    }
}

async fn talk(node: &DerpNode, options: &ConnectOptions) {
    let mut a = TestClient::connect(1, node, options).await;
    let mut b = TestClient::connect(2, node, options).await;
    a.sender.note_home(true);
    // 30 packets of 1,200 bytes: what its queue takes at once.
    let packets: Vec<Vec<u8>> = (0..30u8).map(|n| vec![n; 1200]).collect();
    a.sender
        .send_many(packets.iter().map(|packet| (&b.key, packet.as_slice())));
    for packet in &packets {
        assert_eq!(&b.packet(a.key).await, packet);
    }
    b.sender.send(&a.key, &disco());
    assert_eq!(a.packet(b.key).await, disco());
    a.settle().await;
    let absent = secret(99).public();
    a.sender.send(&absent, &disco());
    assert_eq!(
        a.next().await,
        Some(Received::Gone(absent, PeerGoneReason::NotHere))
    );
    let gone = b.key;
    drop(b);
    assert_eq!(
        a.next().await,
        Some(Received::Gone(gone, PeerGoneReason::Disconnected))
    );
}

#[tokio::test]
async fn over_tls_with_its_pin_and_a_fast_start() {
    let Some(derper) = Derper::start(true, |_| {}).await else {
        return;
    };
    let options = ConnectOptions::default();
    talk(&derper.node, &options).await;
    https_latency(&Dialer::new(), &derper.node, &options)
        .await
        .unwrap();
}

#[tokio::test]
async fn over_plain_http_with_an_upgrade() {
    let Some(derper) = Derper::start(false, |_| {}).await else {
        return;
    };
    talk(&derper.node, &without_tls()).await;
}

#[tokio::test]
async fn over_a_websocket() {
    let Some(derper) = Derper::start(true, |_| {}).await else {
        return;
    };
    let options = ConnectOptions {
        websocket: true,
        ..ConnectOptions::default()
    };
    talk(&derper.node, &options).await;
}

/// Our relay and `derper` in one mesh. Its link to us is the official client at
/// our relay,
/// which trusts our certificate and logs in with a fast start; our link
/// to it is our client.
#[tokio::test]
async fn in_one_mesh_with_our_relay() {
    let state = tempfile::tempdir().unwrap();
    let mut config = net::config(100);
    config.mesh_key = Some(DerpMeshKey::from_bytes([0x42; 32]));
    let relay = Relay::new(config);
    let ours = net::tls(&relay, state.path()).await;
    let key_file = state.path().join("mesh.key");
    std::fs::write(&key_file, "42".repeat(32)).unwrap();
    let derper = Derper::start(true, |command| {
        command.arg("-mesh-psk-file").arg(&key_file);
        command.args(["-mesh-with", &format!("127.0.0.1:{}", ours.derp_port())]);
        command.env("SSL_CERT_FILE", state.path().join("127.0.0.1.crt"));
    });
    let Some(derper) = derper.await else { return };
    let link = tokio::spawn({
        let (relay, node) = (relay.clone(), derper.node.clone());
        let peer = MeshPeer {
            node,
            plain_http: false,
        };
        async move { relay.mesh_with(Dialer::new(), peer).await }
    });
    let options = ConnectOptions::default();
    let mut here = TestClient::connect(1, &ours, &options).await;
    let mut there = TestClient::connect(2, &derper.node, &options).await;
    // Each relay may learn of the other's client a little later.
    carried(&mut here, &mut there).await;
    carried(&mut there, &mut here).await;
    let gone = there.key;
    drop(there);
    loop {
        match here.next().await {
            Some(Received::Packet(..)) => {}
            received => {
                assert_eq!(
                    received,
                    Some(Received::Gone(gone, PeerGoneReason::Disconnected))
                );
                break;
            }
        }
    }
    link.abort();
}

/// Sends until the first packet has come through, from `from` to `to`.
async fn carried(from: &mut TestClient, to: &mut TestClient) {
    let target = to.key;
    let sending = async {
        let mut every = tokio::time::interval(std::time::Duration::from_millis(20));
        loop {
            every.tick().await;
            from.sender.send(&target, b"through the mesh");
        }
    };
    let source = from.key;
    tokio::select! {
        () = sending => unreachable!("it never ends"),
        packet = to.packet(source) => assert_eq!(packet, b"through the mesh"),
    }
}

//! Two relays of one region: clients of either reach each other.
#![allow(clippy::unwrap_used)]

mod net;

use net::{Received, TestClient, config, disco, plain, secret, without_tls};
use warren_control_types::DerpNode;
use warren_dial::Dialer;
use warren_dial::derp::ConnectOptions;
use warren_keys::DerpMeshKey;
use warren_relay::{MeshPeer, Relay};
use warren_wire::derp::PeerGoneReason;

const MESH: [u8; 32] = [42; 32];

fn meshed(n: u8) -> Relay {
    let mut config = config(n);
    config.mesh_key = Some(DerpMeshKey::from_bytes(MESH));
    Relay::new(config)
}

fn link(relay: &Relay, to: &DerpNode) -> tokio::task::JoinHandle<()> {
    let relay = relay.clone();
    let peer = MeshPeer {
        node: to.clone(),
        plain_http: true,
    };
    tokio::spawn(async move { relay.mesh_with(Dialer::new(), peer).await })
}

/// Waits until `relay` knows `n` keys through its mesh.
async fn knows(relay: &Relay, n: usize) {
    let line = format!("warren_relay_remote_clients {n}\n");
    let waiting = async {
        while !relay.metrics().contains(&line) {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(net::PATIENCE, waiting)
        .await
        .expect("the mesh should have announced the client by now");
}

#[tokio::test]
async fn clients_of_two_relays_reach_each_other() {
    let (left, right) = (meshed(101), meshed(102));
    let (left_node, right_node) = (plain(&left).await, plain(&right).await);
    // One client is there before the link, one comes after it.
    let mut a = TestClient::connect(1, &left_node, &without_tls()).await;
    let _links = [link(&left, &right_node), link(&right, &left_node)];
    let mut b = TestClient::connect(2, &right_node, &without_tls()).await;
    // Each also knows the other relay's own connection.
    knows(&left, 1).await;
    knows(&right, 1).await;
    a.sender.send(&b.key, b"over");
    assert_eq!(b.packet(a.key).await, b"over");
    b.sender
        .send_many([(&a.key, &b"and"[..]), (&a.key, &b"back"[..])]);
    assert_eq!(a.packet(b.key).await, b"and");
    assert_eq!(a.packet(b.key).await, b"back");
    // A client that leaves one relay is gone from both.
    let gone = b.key;
    drop(b);
    assert_eq!(
        a.next().await,
        Some(Received::Gone(gone, PeerGoneReason::Disconnected))
    );
    knows(&left, 0).await;
    a.sender.send(&gone, &disco());
    assert_eq!(
        a.next().await,
        Some(Received::Gone(gone, PeerGoneReason::NotHere))
    );
}

#[tokio::test]
async fn when_a_link_breaks_its_clients_are_gone() {
    let (left, right) = (meshed(101), meshed(102));
    let (left_node, right_node) = (plain(&left).await, plain(&right).await);
    let _links = [link(&left, &right_node), link(&right, &left_node)];
    let mut a = TestClient::connect(1, &left_node, &without_tls()).await;
    let b = TestClient::connect(2, &right_node, &without_tls()).await;
    knows(&left, 1).await;
    knows(&right, 1).await;
    b.sender.send(&a.key, b"hello");
    a.packet(b.key).await;
    right.close();
    assert_eq!(
        a.next().await,
        Some(Received::Gone(b.key, PeerGoneReason::Disconnected))
    );
    knows(&left, 0).await;
}

#[tokio::test]
async fn relay_does_not_mesh_with_itself() {
    let relay = meshed(101);
    let node = plain(&relay).await;
    let ended = tokio::time::timeout(net::PATIENCE, link(&relay, &node)).await;
    ended.expect("it should have noticed by now").unwrap();
}

#[tokio::test]
async fn mesh_peers_watch_forward_and_close_strangers_do_not() {
    let relay = meshed(101);
    let node = plain(&relay).await;
    let mut a = TestClient::connect(1, &node, &without_tls()).await;
    let as_mesh = |key: [u8; 32]| ConnectOptions {
        mesh_key: Some(DerpMeshKey::from_bytes(key)),
        watch: true,
        ..without_tls()
    };
    let mut peer = TestClient::connect(50, &node, &as_mesh(MESH)).await;
    let mut here = vec![peer.next().await, peer.next().await];
    here.sort_by_key(|received| format!("{received:?}"));
    assert!(here.contains(&Some(Received::Present(a.key))), "{here:?}");
    let far = secret(60).public();
    peer.sender
        .forward(std::time::Instant::now(), far, a.key, b"from afar");
    assert_eq!(a.packet(far).await, b"from afar");
    // A forwarded packet for an unknown key comes back as "not here".
    peer.sender
        .forward(std::time::Instant::now(), a.key, far, &disco());
    assert_eq!(
        peer.next().await,
        Some(Received::Gone(far, PeerGoneReason::NotHere))
    );
    peer.sender.close_peer(a.key);
    assert_eq!(a.next().await, None);
    assert_eq!(
        peer.next().await,
        Some(Received::Gone(a.key, PeerGoneReason::Disconnected))
    );

    // With another mesh key the login is an ordinary one, and watching is not
    // for it.
    let mut outsider = TestClient::try_connect(51, &node, &as_mesh([1; 32]))
        .await
        .unwrap();
    loop {
        match outsider.next().await {
            Some(Received::Connected) => {}
            None => break,
            other => panic!("{other:?}"),
        }
    }
}

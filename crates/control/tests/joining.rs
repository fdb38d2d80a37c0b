//! Nodes join over the wire, see each other, and receive every change.

#![allow(clippy::unwrap_used)]

mod support;

use http::{Method, StatusCode};
use support::{Node, admin, key, reusable, serve};
use warren_control_api::endpoints::{
    ApproveNode, DeleteNode, ExpireAuthKey, ExpireNode, ListAuthKeys, ListNodes, ListPendingNodes,
    NewExpiry, RenameNode, SendC2n,
};
use warren_control_types::{CapabilityVersion, MapRequest, RegisterRequest};
use warren_dial::SystemEntropy;
use warren_keys::NodeSecret;

#[tokio::test]
async fn two_nodes_join_and_see_each_other_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(dir.path()).await;
    let auth = reusable(dir.path()).await;
    let mut alice = Node::new(&server.server_url, "alice");
    let response = alice.register(&auth).await;
    assert_eq!(
        (response.error.as_str(), response.machine_authorized),
        ("", true)
    );
    alice.poll("zstd").await;
    assert_eq!(
        alice.map.self_node.as_ref().unwrap().name,
        "alice.warren.internal."
    );
    assert!(alice.map.peers.is_empty());

    let mut bob = Node::new(&server.server_url, "bob");
    bob.register(&auth).await;
    // Plain frames for a client that does not ask for compression.
    bob.poll("").await;
    assert_eq!(bob.peer_names(), ["alice"]);
    alice
        .until(|map| map.peers.values().any(|peer| peer.online == Some(true)))
        .await;
    assert_eq!(alice.peer_names(), ["bob"]);

    // A lite update does not disturb the stream, and arrives as a patch.
    bob.update("192.0.2.7:41641").await.unwrap();
    let disco = bob.disco;
    alice
        .until(|map| {
            map.peers.values().any(|peer| {
                peer.disco_key == Some(disco)
                    && peer.endpoints == ["192.0.2.7:41641".parse().unwrap()]
            })
        })
        .await;
    assert_eq!(alice.map.packet_filter().count(), 1);
    server.stop().await.unwrap();
}

#[tokio::test]
async fn rename_expire_and_delete_reach_the_other_side() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(dir.path()).await;
    let auth = reusable(dir.path()).await;
    let (mut alice, mut bob) = (
        Node::new(&server.server_url, "alice"),
        Node::new(&server.server_url, "bob"),
    );
    alice.register(&auth).await;
    bob.register(&auth).await;
    alice.poll("zstd").await;
    bob.poll("zstd").await;

    let rename = RenameNode {
        node: "bob".into(),
        new_name: "db".into(),
    };
    admin(dir.path(), rename).await.unwrap();
    alice
        .until(|map| map.peers.values().any(|p| p.base_name() == "db"))
        .await;
    bob.until(|map| map.self_node.as_ref().unwrap().base_name() == "db")
        .await;

    admin(
        dir.path(),
        ExpireNode {
            node: "db".into(),
            expiry: NewExpiry::Now,
        },
    )
    .await
    .unwrap();
    alice
        .until(|map| map.peers.values().all(|p| p.expired))
        .await;
    bob.until(|map| {
        map.self_node
            .as_ref()
            .unwrap()
            .key_expiry
            .is_some_and(|at| at <= jiff::Timestamp::now())
    })
    .await;
    assert!(bob.register("").await.node_key_expired);

    admin(dir.path(), DeleteNode { node: "db".into() })
        .await
        .unwrap();
    alice.until(|map| map.peers.is_empty()).await;
    while bob.next().await.is_some() {}
    let error = bob
        .client
        .update(&MapRequest {
            omit_peers: true,
            ..bob.map_request()
        })
        .await;
    assert!(error.unwrap_err().to_string().contains("404"));
    server.stop().await.unwrap();
}

#[tokio::test]
async fn an_approval_wakes_the_machine_that_waits() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = serve(dir.path()).await;
    let mut node = Node::new(&server.server_url, "laptop");
    let url = node.register("").await.auth_url;
    assert!(
        url.starts_with(&format!("{}/register/", server.server_url)),
        "{url}"
    );
    let id = url.rsplit('/').next().unwrap().to_owned();
    let followup = RegisterRequest {
        followup: url,
        ..node.request("")
    };
    let client = node.client.clone();
    let parked = tokio::spawn(async move { client.register(&followup).await.unwrap() });
    let line = server.lines.recv().await.unwrap();
    assert!(line.contains(&format!("nodes approve {id}")), "{line}");
    assert!(line.contains("warren-control --state-dir "), "{line}");
    let waiting = admin(dir.path(), ListPendingNodes {}).await.unwrap();
    assert_eq!(waiting[0].name, "laptop");
    let approve = ApproveNode {
        id: id.clone(),
        user: "default".into(),
        tags: [].into(),
    };
    let node_view = admin(dir.path(), approve.clone()).await.unwrap();
    assert_eq!(node_view.ip_addresses[0], "100.64.0.1");
    assert_eq!(parked.await.unwrap().login.login_name, "default");
    let line = server.lines.recv().await.unwrap();
    assert!(line.starts_with("laptop joined as 100.64.0.1"), "{line}");
    let line = server.lines.recv().await.unwrap();
    let next = format!(
        "next machine: warren up --login-server {} ",
        server.server_url
    );
    assert!(line.starts_with(&next), "{line}");
    assert!(
        line.ends_with("preauthkeys create --user default"),
        "{line}"
    );
    assert!(
        admin(dir.path(), approve)
            .await
            .unwrap_err()
            .contains("15 minutes")
    );
    node.poll("zstd").await;
    server.stop().await.unwrap();
}

#[tokio::test]
async fn a_key_that_is_used_up_is_followed_by_how_to_add_the_next_machine() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = serve(dir.path()).await;
    let (once, often) = (key(dir.path(), false).await, reusable(dir.path()).await);
    for (name, key) in [("alice", &often), ("bob", &often), ("carol", &once)] {
        let refused = Node::new(&server.server_url, name)
            .register(key)
            .await
            .error;
        assert_eq!(refused, "");
    }
    let mut lines = Vec::new();
    while let Ok(line) = server.lines.try_recv() {
        lines.extend(line.split(' ').next().map(str::to_owned));
    }
    assert_eq!(lines, ["alice", "bob", "carol", "next"]);
    server.stop().await.unwrap();
}

#[tokio::test]
async fn a_login_started_over_answers_the_first_one() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(dir.path()).await;
    let mut node = Node::new(&server.server_url, "laptop");
    let url = node.register("").await.auth_url;
    let followup = RegisterRequest {
        followup: url,
        ..node.request("")
    };
    let client = node.client.clone();
    let parked = tokio::spawn(async move { client.register(&followup).await.unwrap() });
    node.secret = NodeSecret::generate(&mut SystemEntropy);
    let newer = node.register("").await.auth_url;
    assert!(parked.await.unwrap().error.contains("newer login"));
    let waiting = admin(dir.path(), ListPendingNodes {}).await.unwrap();
    assert_eq!(waiting.len(), 1);
    assert!(newer.ends_with(&waiting[0].id));
    server.stop().await.unwrap();
}

#[tokio::test]
async fn a_connected_node_answers_c2n_requests() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(dir.path()).await;
    let auth = reusable(dir.path()).await;
    let (mut node, other) = (
        Node::new(&server.server_url, "laptop"),
        Node::new(&server.server_url, "other"),
    );
    node.register(&auth).await;
    other.register(&auth).await;
    let ask = |path: &str| {
        let question = SendC2n {
            node: "laptop".into(),
            path: path.into(),
            data: Some("hello".into()),
        };
        let dir = dir.path().to_owned();
        async move { admin(&dir, question).await }
    };
    let refusal = ask("/echo").await.unwrap_err();
    assert!(refusal.contains("not connected"), "{refusal}");
    node.poll("zstd").await;
    assert!(ask("no path").await.unwrap_err().contains("/echo"));

    let asked = tokio::spawn(ask("/echo"));
    let question = loop {
        if let Some(question) = node.next().await.unwrap().ping_request {
            break question;
        }
    };
    assert_eq!(
        (question.types.as_str(), question.url_is_noise),
        ("c2n", true)
    );
    assert!(question.payload.starts_with(b"POST /echo HTTP/1.1\r\n"));
    assert!(question.payload.ends_with(b"\r\n\r\nhello"));
    let response = |body: &str| format!("HTTP/1.1 200 OK\r\n\r\n{body}").into_bytes();
    // No other machine may respond, even if it knows the address.
    let _ = other
        .client
        .post_c2n_response(&question, response("forged"))
        .await;
    node.client
        .post_c2n_response(&question, response("hello"))
        .await
        .unwrap();
    let answer = asked.await.unwrap().unwrap();
    assert_eq!((answer.status, answer.body.as_str()), (200, "hello"));
    server.stop().await.unwrap();
}

#[tokio::test]
async fn the_first_key_is_printed_until_a_machine_is_here() {
    let dir = tempfile::tempdir().unwrap();
    let first = serve(dir.path()).await;
    let key_in = |banner: &str| {
        let (_, key) = banner.split_once("--auth-key ").unwrap();
        key.split_whitespace().next().unwrap().to_owned()
    };
    let key = key_in(&first.banner);
    assert!(key.starts_with("wk-"), "{}", first.banner);
    first.stop().await.unwrap();

    let second = serve(dir.path()).await;
    assert_eq!(key_in(&second.banner), key);
    let keys = admin(dir.path(), ListAuthKeys {}).await.unwrap();
    assert_eq!(keys.len(), 1, "no key per start");
    let expire = ExpireAuthKey { id: keys[0].id };
    admin(dir.path(), expire).await.unwrap();
    second.stop().await.unwrap();

    // One that no longer works is replaced.
    let third = serve(dir.path()).await;
    let fresh = key_in(&third.banner);
    assert_ne!(fresh, key);
    let keys = admin(dir.path(), ListAuthKeys {}).await.unwrap();
    assert_eq!(keys.len(), 1);
    let node = Node::new(&third.server_url, "laptop");
    assert_eq!(node.register(&fresh).await.error, "");
    third.stop().await.unwrap();

    let fourth = serve(dir.path()).await;
    assert_eq!(key_in(&fourth.banner), "KEY");
    let state = dir.path().join("state");
    let command = format!(
        "warren-control --state-dir {} preauthkeys create --user default",
        state.display()
    );
    assert!(fourth.banner.contains(&command), "{}", fourth.banner);
    let keys = admin(dir.path(), ListAuthKeys {}).await.unwrap();
    assert_eq!(keys.len(), 1);
    fourth.stop().await.unwrap();
}

#[tokio::test]
async fn a_restart_keeps_everything() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(dir.path()).await;
    let once = key(dir.path(), false).await;
    let mut node = Node::new(&server.server_url, "laptop");
    assert_eq!(node.register(&once).await.error, "");
    let rename = RenameNode {
        node: "laptop".into(),
        new_name: "db".into(),
    };
    admin(dir.path(), rename).await.unwrap();
    let nodes = || admin(dir.path(), ListNodes { user: None });
    let before = nodes().await.unwrap();
    // Not `stop`: what was answered is on disk already.
    drop(server);

    let server = serve(dir.path()).await;
    assert_eq!(nodes().await.unwrap(), before);
    node.at(&server.server_url);
    assert_eq!(
        node.register(&once).await.error,
        "",
        "a known node does not need its key"
    );
    let other = Node::new(&server.server_url, "other");
    assert!(
        other
            .register(&once)
            .await
            .error
            .starts_with("authkey already used")
    );
    node.poll("").await;
    assert_eq!(node.map.self_node.as_ref().unwrap().base_name(), "db");
    server.stop().await.unwrap();
}

#[tokio::test]
async fn a_new_stream_ends_the_old_one() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(dir.path()).await;
    let auth = reusable(dir.path()).await;
    let mut old = Node::new(&server.server_url, "laptop");
    old.register(&auth).await;
    old.poll("").await;
    let mut new = Node::new(&server.server_url, "laptop");
    (new.machine, new.secret) = (old.machine.clone(), old.secret.clone());
    new.at(&server.server_url);
    new.poll("").await;
    while old.next().await.is_some() {}
    let listed = admin(dir.path(), ListNodes { user: None }).await.unwrap();
    assert!(listed[0].online);
    server.stop().await.unwrap();
}

#[tokio::test]
async fn invalid_requests_are_refused_with_a_reason() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(dir.path()).await;
    let node = Node::new(&server.server_url, "laptop");
    let ask = |method: Method, path: &'static str, body: Vec<u8>| {
        let client = node.client.clone();
        async move { client.request(method, path, body).await }
    };
    let status = |answer: Result<
        (StatusCode, bytes::Bytes),
        warren_dial::control::ControlError,
    >| { answer.unwrap().0 };
    let map = "/machine/map";
    // Nothing is read that a machine without a node sends there.
    let unknown = serde_json::to_vec(&node.map_request()).unwrap();
    for body in [unknown, b"{".to_vec()] {
        assert_eq!(
            status(ask(Method::POST, map, body).await),
            StatusCode::NOT_FOUND
        );
    }
    let auth = reusable(dir.path()).await;
    assert_eq!(node.register(&auth).await.error, "");
    assert_eq!(
        status(ask(Method::POST, map, b"{".to_vec()).await),
        StatusCode::BAD_REQUEST
    );
    assert_eq!(
        status(ask(Method::POST, map, vec![b' '; (1 << 20) + 1]).await),
        StatusCode::PAYLOAD_TOO_LARGE
    );
    assert_eq!(
        status(ask(Method::GET, "/machine/tka/bootstrap", b"{}".to_vec()).await),
        StatusCode::NOT_FOUND
    );
    let old = MapRequest {
        version: CapabilityVersion(112),
        ..node.map_request()
    };
    let (code, text) = ask(Method::POST, map, serde_json::to_vec(&old).unwrap())
        .await
        .unwrap();
    assert_eq!(code, StatusCode::BAD_REQUEST);
    assert!(String::from_utf8_lossy(&text).contains("too old"));
    let old = RegisterRequest {
        version: CapabilityVersion(5),
        ..node.request("")
    };
    assert!(
        node.client
            .register(&old)
            .await
            .unwrap()
            .error
            .contains("too old")
    );
    let other = Node::new(&server.server_url, "other");
    assert!(
        other
            .register("wk-1-nonsense")
            .await
            .error
            .starts_with("invalid pre auth key")
    );
    server.stop().await.unwrap();
}

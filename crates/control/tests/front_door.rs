//! The public HTTP interface: requests of unknown clients, and broken input.

#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;

use support::{Node, admin, key, options, reason, reusable, serve};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use warren_control::serve::start;
use warren_control_api::endpoints::{ExpireNode, GetHealth, NewExpiry};
use warren_control_types::{CapabilityVersion, MapRequest};
use warren_dial::derp::connect_node;
use warren_dial::{Dialer, SystemEntropy};
use warren_keys::NodeSecret;

/// Sends bytes, reads until the server closes.
async fn raw(server: &str, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(server.strip_prefix("http://").unwrap())
        .await
        .unwrap();
    stream.write_all(bytes).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

async fn get(server: &str, path: &str) -> String {
    raw(
        server,
        format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes(),
    )
    .await
}

#[tokio::test]
async fn the_key_and_the_pages_are_served() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(dir.path()).await;
    let url = server.server_url.as_str();
    let key = get(url, "/key?v=119").await;
    assert!(key.starts_with("HTTP/1.1 200"), "{key}");
    assert!(
        key.contains(&format!("\"legacyPublicKey\":\"mkey:{}\"", "0".repeat(64))),
        "{key}"
    );
    for path in ["/key", "/key?v=x", "/key?v=39", "/machine/map"] {
        assert!(get(url, path).await.starts_with("HTTP/1.1 400"), "{path}");
    }
    assert!(get(url, "/health").await.contains("\"pass\""));
    assert!(
        get(url, "/version")
            .await
            .contains("\"minimum_capability_version\":113")
    );
    let portal = get(url, "/generate_204").await;
    assert!(portal.starts_with("HTTP/1.1 204"), "{portal}");
    assert!(!portal.contains("content-length"), "{portal}");
    assert!(
        get(url, "/register/%3Cb%3E")
            .await
            .contains("No machine waits")
    );
    assert!(get(url, "/nowhere").await.starts_with("HTTP/1.1 404"));
    let head = "HEAD /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let head = raw(url, head.as_bytes()).await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert!(head.ends_with("\r\n\r\n"), "a body after HEAD: {head}");
    for path in ["/key", "/health", "/version", "/"] {
        let post = format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n");
        let refused = raw(url, post.as_bytes()).await;
        assert!(refused.starts_with("HTTP/1.1 405"), "{path}: {refused}");
    }
    server.stop().await.unwrap();
}

#[tokio::test]
async fn verify_knows_the_nodes_of_this_network() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(dir.path()).await;
    let node = Node::new(&server.server_url, "laptop");
    let ask = || async {
        let body = format!(
            "{{\"NodePublic\":\"{}\",\"Source\":\"192.0.2.1\"}}",
            node.secret.public()
        );
        let head = format!(
            "POST /verify HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        raw(&server.server_url, (head + &body).as_bytes()).await
    };
    assert!(ask().await.ends_with("{\"Allow\":false}"));
    node.register(&reusable(dir.path()).await).await;
    assert!(ask().await.ends_with("{\"Allow\":true}"));
    let expire = ExpireNode {
        node: "laptop".into(),
        expiry: NewExpiry::Now,
    };
    admin(dir.path(), expire).await.unwrap();
    assert!(ask().await.ends_with("{\"Allow\":false}"), "expired");
    server.stop().await.unwrap();
}

#[tokio::test]
async fn broken_upgrades_are_answered_and_the_server_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(dir.path()).await;
    let url = server.server_url.as_str();
    let post = |headers: &str| {
        format!("POST /ts2021 HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\n{headers}\r\n")
    };
    let upgrade = "Upgrade: Tailscale-Control-Protocol\r\n";
    for (headers, text) in [
        (String::new(), "missing next protocol"),
        ("Upgrade: other\r\n".to_owned(), "unknown next protocol"),
        (upgrade.to_owned(), "missing Tailscale handshake header"),
        (
            format!("{upgrade}X-Tailscale-Handshake: %%%\r\n"),
            "invalid tailscale handshake header",
        ),
        (
            format!("{upgrade}X-Tailscale-Handshake: AAAA\r\n"),
            "the handshake failed",
        ),
    ] {
        let answer = raw(url, post(&headers).as_bytes()).await;
        assert!(
            answer.starts_with("HTTP/1.1 400") && answer.contains(text),
            "{headers:?}: {answer}"
        );
    }
    let answer = get(url, "/ts2021?X-Tailscale-Handshake=AAAA").await;
    assert!(answer.contains("WebSocket"), "{answer}");
    for garbage in [
        &b"\x16\x03\x01\x02\x00garbage"[..],
        b"\0\0\0\0",
        b"GET",
        &[b'A'; 100_000],
    ] {
        raw(url, garbage).await;
    }
    assert!(get(url, "/health").await.contains("pass"));
    server.stop().await.unwrap();
}

#[tokio::test]
async fn heads_and_bodies_that_are_too_large_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(dir.path()).await;
    let address = server.server_url.strip_prefix("http://").unwrap();
    let long = "a".repeat(1 << 20);
    let many = "X-Header: a\r\n".repeat(10_000);
    let body = format!(
        "POST /verify HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{long}",
        1_u64 << 40
    );
    for request in [
        format!("GET /{long} HTTP/1.1\r\nHost: x\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nHost: x\r\nX-Long: {long}\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nHost: x\r\n{many}\r\n"),
        body,
    ] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        // The server may close before it has read everything; then the answer may be lost.
        let _ = stream.write_all(request.as_bytes()).await;
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer);
        let read = tokio::time::timeout(support::PATIENCE, read).await;
        let _ = read.expect("the server closes the connection");
        let refused = answer.is_empty() || answer.starts_with(b"HTTP/1.1 4");
        assert!(refused, "{}", String::from_utf8_lossy(&answer));
    }
    assert!(get(&server.server_url, "/health").await.contains("pass"));
    server.stop().await.unwrap();
}

/// As nginx passes an upgrade on with its defaults, and with those for WebSockets.
#[tokio::test]
async fn proxy_that_swallows_the_upgrade_is_shown_in_health() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(dir.path()).await;
    let health = || admin(dir.path(), GetHealth {});
    let url = server.server_url.as_str();
    raw(
        url,
        b"POST /ts2021 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    )
    .await;
    let before = health().await.unwrap();
    assert_eq!(
        (before.swallowed_upgrades, before.last_swallowed_upgrade),
        (0, None)
    );
    for head in [
        "POST /ts2021 HTTP/1.0\r\nHost: x\r\nConnection: close\r\n",
        "POST /ts2021 HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: WebSocket\r\n",
    ] {
        let request = format!("{head}X-Tailscale-Handshake: AAAA\r\n\r\n");
        let answer = raw(url, request.as_bytes()).await;
        assert!(answer.contains("400"), "{answer}");
    }
    let after = health().await.unwrap();
    assert_eq!(after.swallowed_upgrades, 2);
    assert!(after.last_swallowed_upgrade.is_some());
    server.stop().await.unwrap();
}

/// The names and reasons of the refusals that `health` reports.
async fn refusals(dir: &Path) -> Vec<(String, String)> {
    let health = admin(dir, GetHealth {}).await.unwrap();
    assert!(health.refusals.iter().all(|refusal| refusal.count > 0));
    let refusals = health.refusals.into_iter();
    refusals
        .map(|refusal| (refusal.what, refusal.reason))
        .collect()
}

/// Everything that keeps a machine out leaves a trace for the administrator, in `health`
/// and in the log.
#[tokio::test]
async fn every_refusal_is_in_health_and_in_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let mut serve = options(dir.path());
    // With the embedded relay, and so with TLS.
    serve.derp_map = None;
    let mut server = start(&dir.path().join("state"), serve).await.unwrap();
    let url = server.server_url.clone();
    let member = Node::new(&url, "laptop");
    let used = key(dir.path(), false).await;
    assert_eq!(member.register(&used).await.error, "");
    assert_eq!(refusals(dir.path()).await, []);

    let stranger = Node::new(&url, "stranger");
    let good = reusable(dir.path()).await;
    let mut too_old = stranger.request(&good);
    too_old.version = CapabilityVersion(1);
    let mut tagged = stranger.request(&good);
    if let Some(hostinfo) = &mut tagged.hostinfo {
        hostinfo.request_tags = vec!["tag:server".to_owned()];
    }
    for (request, reason) in [
        (stranger.request("wrong"), "does not know it"),
        (stranger.request(&used), "already used"),
        (too_old, "too old"),
        (tagged, "tag:server"),
    ] {
        let answer = stranger.client.register(&request).await.unwrap();
        assert!(answer.error.contains(reason), "{}", answer.error);
        let found = ("registration".to_owned(), answer.error);
        assert_eq!(refusals(dir.path()).await[0], found);
    }

    let request = MapRequest {
        node_key: stranger.secret.public(),
        ..member.map_request()
    };
    assert!(member.client.update(&request).await.is_err());
    assert_eq!(refusals(dir.path()).await[0].0, "request");

    let upgrade = "Connection: upgrade\r\nUpgrade: tailscale-control-protocol\r\n";
    let handshake = format!("{upgrade}X-Tailscale-Handshake: AAAA\r\n");
    for (begin, headers, reason) in [
        ("GET /key?v=39", "", "too old"),
        ("PUT /ts2021", "", "use POST"),
        ("GET /ts2021", "", "WebSocket"),
        ("POST /ts2021", "", "missing next protocol"),
        ("POST /ts2021", upgrade, "missing Tailscale handshake"),
        ("POST /ts2021", &handshake, "the handshake failed"),
    ] {
        let head = format!("{begin} HTTP/1.1\r\nHost: x\r\n{headers}\r\n");
        raw(&url, head.as_bytes()).await;
        let (what, why) = refusals(dir.path()).await.remove(0);
        assert_eq!(what, "request");
        assert!(why.contains(reason), "{begin}: {why}");
    }

    raw(&url, b"\x16\x03\x01\x02\x00garbage").await;
    let (what, why) = refusals(dir.path()).await.remove(0);
    assert_eq!(what, "connection");
    assert!(why.contains("TLS"), "{why}");

    // A client of the relay that is not a node.
    let map = server
        .coordinator
        .read(|core| core.config().derp_map.clone());
    let node = map.regions.values().next().unwrap().nodes[0].clone();
    let (secret, options) = (NodeSecret::generate(&mut SystemEntropy), Default::default());
    let client = connect_node(&Dialer::new(), &node, &secret, &options).await;
    // The relay may say so after the login was sent.
    if let Ok((_sender, mut receiver)) = client {
        while receiver.recv().await.is_ok() {}
    }
    let (what, why) = refusals(dir.path()).await.remove(0);
    assert_eq!(what, "relay");
    assert!(why.contains("not a node"), "{why}");

    // Lines have a bound too, which these reach.
    let mut lines = Vec::new();
    while let Ok(line) = server.lines.try_recv() {
        lines.extend(line.starts_with("refused a ").then_some(line));
    }
    assert!((10..=13).contains(&lines.len()), "{lines:?}");
    server.stop().await.unwrap();
}

async fn refused(dir: &Path, change: impl FnOnce(&mut warren_control::cli::args::Serve)) -> String {
    let mut serve = options(dir);
    change(&mut serve);
    reason(start(&dir.join("other"), serve).await.unwrap_err())
}

#[tokio::test]
async fn a_failed_start_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(dir.path()).await;
    let second = start(&dir.path().join("state"), options(dir.path()))
        .await
        .unwrap_err();
    assert!(reason(second).contains("another warren-control already serves"));
    let why = refused(dir.path(), |serve| {
        serve.server_url = Some("http://ctl.ok.test:8080".to_owned());
        serve.base_domain = Some("ok.test".to_owned());
    })
    .await;
    assert!(
        why.contains("choose another zone with --base-domain"),
        "{why}"
    );
    let port = server
        .server_url
        .rsplit(':')
        .next()
        .unwrap()
        .parse::<u16>()
        .unwrap();
    let taken = refused(dir.path(), |s| {
        s.listen = Some(([127, 0, 0, 1], port).into())
    })
    .await;
    assert!(
        taken.contains("another program uses it") && taken.contains("--listen"),
        "{taken}"
    );
    let no_map = refused(dir.path(), |s| s.derp_map = Some("nowhere.json".into())).await;
    assert!(no_map.contains("nowhere.json"), "{no_map}");
    let map = dir.path().join("derp.yaml");
    std::fs::write(&map, "regions:\n  900:\n    regionid: 900\n").unwrap();
    let yaml_map = refused(dir.path(), |s| s.derp_map = Some(map)).await;
    assert!(
        yaml_map.contains("derp.yaml") && yaml_map.contains("the file must be JSON"),
        "{yaml_map}"
    );
    let no_url = refused(dir.path(), |s| s.server_url = Some("ftp://x".into())).await;
    assert!(no_url.contains("http://"), "{no_url}");
    let policy = dir.path().join("policy.hujson");
    std::fs::write(&policy, "{\"acls\": [").unwrap();
    let bad_policy = refused(dir.path(), |s| s.policy = Some(policy)).await;
    assert!(bad_policy.contains("policy.hujson"), "{bad_policy}");
    server.stop().await.unwrap();
}

#[tokio::test]
async fn the_embedded_relay_shares_the_port() {
    let dir = tempfile::tempdir().unwrap();
    let mut serve = options(dir.path());
    serve.derp_map = None;
    let server = start(&dir.path().join("state"), serve).await.unwrap();
    let url = server.server_url.clone();
    let map = server.coordinator.read(|c| c.config().derp_map.clone());
    let node = &map.regions.values().next().unwrap().nodes[0];
    assert_eq!(node.host_name, "127.0.0.1");
    assert_eq!(format!("http://127.0.0.1:{}", node.derp_port()), url);
    assert!(
        node.cert_name.starts_with("sha256-raw:"),
        "{}",
        node.cert_name
    );
    assert_eq!(node.stun_port(), None);
    let probe = get(&url, "/derp/probe").await;
    assert!(probe.starts_with("HTTP/1.1 200"), "{probe}");
    assert!(
        server
            .banner
            .contains("warren up --login-server http://127.0.0.1:")
    );
    assert!(server.banner.contains("allow-all"));
    server.stop().await.unwrap();
}

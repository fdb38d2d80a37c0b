//! The public HTTP interface: requests of unknown clients, and broken input.

#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;

use support::{Node, admin, options, reusable, serve};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use warren_control::failure::Failure;
use warren_control::serve::start;
use warren_control_api::endpoints::{ExpireNode, GetHealth, NewExpiry};

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

fn reason(failure: Failure) -> String {
    match failure {
        Failure::Failed(why) | Failure::Usage(why) => why,
    }
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
        serve.base_domain = "ok.test".to_owned();
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

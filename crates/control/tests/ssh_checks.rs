//! A node asks over the wire whether to let a session in, and an administrator
//! answers with the real program.

#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;
use std::process::Output;

use futures_util::FutureExt as _;
use http::{Method, StatusCode};
use support::{Node, PATIENCE, admin, reusable, serve};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use warren_control::serve::Running;
use warren_control::ssh_action;
use warren_control_api::endpoints::ListSshChecks;
use warren_control_core::Coordinator;
use warren_control_types::SshAction;

const POLICY: &str = r#"{
    "acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}],
    "tagOwners": {"tag:db": []},
    "ssh": [{"action": "check", "src": ["default@"], "dst": ["tag:db"], "users": ["root", "autogroup:nonroot"]}],
}"#;

/// Runs the program against the server of `dir`.
async fn cli(dir: &Path, args: &[&str]) -> Output {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_warren-control"));
    command
        .current_dir(dir)
        .args(["--state-dir", "state"])
        .args(args);
    command.output().await.unwrap()
}

async fn good(dir: &Path, args: &[&str]) -> String {
    let output = cli(dir, args).await;
    assert!(output.status.success(), "{args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// A laptop, a database whose sessions are checked, and the address with which the
/// database asks.
async fn network(dir: &Path, server: &Running) -> (Node, Node, String) {
    let key = reusable(dir).await;
    let mut nodes = ["laptop", "db"].map(|name| Node::new(&server.server_url, name));
    for node in &mut nodes {
        node.register(&key).await;
        node.poll("").await;
    }
    let [laptop, mut db] = nodes;
    good(dir, &["nodes", "tag", "db", "tag:db"]).await;
    set_policy(dir, POLICY).await;
    let rule = |map: &warren_control_types::Netmap| {
        let policy = map.ssh_policy.clone().unwrap_or_default();
        policy.rules.first().and_then(|rule| rule.action.clone())
    };
    db.until(|map| rule(map).is_some()).await;
    let template = rule(&db.map).unwrap().hold_and_delegate;
    (laptop, db, template)
}

async fn set_policy(dir: &Path, policy: &str) {
    std::fs::write(dir.join("policy.hujson"), policy).unwrap();
    good(dir, &["policy", "set", "policy.hujson"]).await;
}

/// The path that a client asks for, its variables filled in as it does.
fn expand(server: &Running, template: &str, local_user: &str) -> String {
    template
        .strip_prefix(&server.server_url)
        .unwrap()
        .replace("$SRC_NODE_ID", "1")
        .replace("$DST_NODE_ID", "2")
        .replace("$LOCAL_USER", local_user)
}

async fn ask(node: &Node, path: &str) -> SshAction {
    let asked = node.client.request(Method::GET, path, Vec::new());
    let (status, body) = tokio::time::timeout(PATIENCE, asked)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(status, StatusCode::OK, "{body:?}");
    serde_json::from_slice(&body).unwrap()
}

/// Asks without waiting for the answer. Whether the question is there before the
/// decision or after it, the answer is the same.
fn park(node: &Node, path: &str) -> tokio::task::JoinHandle<SshAction> {
    let (client, path) = (node.client.clone(), path.to_owned());
    tokio::spawn(async move {
        let asked = client.request(Method::GET, &path, Vec::new());
        let (status, body) = asked.await.unwrap();
        assert_eq!(status, StatusCode::OK, "{body:?}");
        serde_json::from_slice(&body).unwrap()
    })
}

/// The public page at this address.
async fn page(url: &str) -> String {
    let (host, path) = url
        .strip_prefix("http://")
        .unwrap()
        .split_once('/')
        .unwrap();
    let mut stream = tokio::net::TcpStream::connect(host).await.unwrap();
    let request = format!("GET /{path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn a_session_waits_for_the_administrator_and_the_next_one_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut server = serve(dir).await;
    let (laptop, db, template) = network(dir, &server).await;
    let root = expand(&server, &template, "root");
    let held = ask(&db, &root).await;
    assert!(!held.accept && !held.reject, "{held:?}");
    let url = held
        .message
        .split_whitespace()
        .find(|word| word.starts_with(&server.server_url))
        .unwrap();
    let seen = page(url).await;
    assert!(seen.starts_with("HTTP/1.1 200"), "{seen}");
    assert!(seen.contains("<strong>laptop</strong> (default)"), "{seen}");

    let parked = park(&db, &expand(&server, &held.hold_and_delegate, "root"));
    let list = good(dir, &["ssh-checks", "list"]).await;
    assert!(list.contains("default  laptop  db  root  now"), "{list}");
    assert!(!parked.is_finished());
    let line = loop {
        let line = server.lines.recv().await.unwrap();
        if line.contains("ssh-checks approve") {
            break line;
        }
    };
    assert!(
        line.starts_with("laptop wants to log in to db as root"),
        "{line}"
    );
    // The whole address does, too.
    let said = good(dir, &["ssh-checks", "approve", url]).await;
    assert_eq!(said, "the session from laptop to db is approved, as root\n");
    let accepted = tokio::time::timeout(PATIENCE, parked)
        .await
        .unwrap()
        .unwrap();
    assert!(accepted.accept && accepted.allow_local_port_forwarding);
    assert!(accepted.hold_and_delegate.is_empty());

    // Within the period, for every user of that machine.
    assert!(ask(&db, &root).await.accept);
    let odd = expand(&server, &template, "jo+ann%26auth_id%3D1");
    assert!(ask(&db, &odd).await.accept);
    assert!(page(url).await.contains("No session waits"));
    assert_eq!(
        good(dir, &["ssh-checks", "list"]).await,
        "no session waits for a check\n"
    );
    let twice = cli(dir, &["ssh-checks", "approve", url]).await;
    assert_eq!(twice.status.code(), Some(1));
    let twice = String::from_utf8(twice.stderr).unwrap();
    assert!(
        twice.contains("--state-dir state ssh-checks list"),
        "{twice}"
    );

    // Only the database asks for its sessions, in the words of the address.
    for (node, path, expected) in [
        (&laptop, root.as_str(), StatusCode::UNAUTHORIZED),
        (
            &db,
            "/machine/ssh/action/1/to/1?local_user=root",
            StatusCode::UNAUTHORIZED,
        ),
        (&db, "/machine/ssh/action/1/to/2", StatusCode::BAD_REQUEST),
        (
            &db,
            "/machine/ssh/action/x/to/2?local_user=root",
            StatusCode::BAD_REQUEST,
        ),
    ] {
        let asked = node.client.request(Method::GET, path, Vec::new()).await;
        assert_eq!(asked.unwrap().0, expected, "{path}");
    }
    let outside = page(&format!("{}{root}", server.server_url)).await;
    assert!(outside.starts_with("HTTP/1.1 400"), "{outside}");
    server.stop().await.unwrap();
}

#[tokio::test]
async fn a_session_that_is_denied_or_has_lost_its_rule_ends() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let server = serve(dir).await;
    let (_laptop, db, template) = network(dir, &server).await;
    let root = expand(&server, &template, "root");
    let parked = |held: SshAction| park(&db, &expand(&server, &held.hold_and_delegate, "root"));
    let first = parked(ask(&db, &root).await);
    let checks = admin(dir, ListSshChecks {}).await.unwrap();
    let id = &checks[0].id;
    let said = good(dir, &["ssh-checks", "deny", id]).await;
    assert_eq!(said, "the session from laptop to db is refused\n");
    let denied = tokio::time::timeout(PATIENCE, first)
        .await
        .unwrap()
        .unwrap();
    assert!(denied.reject && !denied.message.is_empty(), "{denied:?}");

    let second = parked(ask(&db, &root).await);
    set_policy(dir, "{}").await;
    let lost = tokio::time::timeout(PATIENCE, second)
        .await
        .unwrap()
        .unwrap();
    assert!(lost.reject, "{lost:?}");
    assert!(ask(&db, &root).await.reject);
    server.stop().await.unwrap();
}

#[tokio::test]
async fn a_decision_wakes_the_session_that_waits() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let server = serve(dir).await;
    let (_laptop, db, template) = network(dir, &server).await;
    let held = ask(&db, &expand(&server, &template, "root")).await;
    let path = expand(&server, &held.hold_and_delegate, "root");
    let (path, query) = path.split_once('?').unwrap();
    let question = ssh_action::parse(path, query).unwrap();
    let id = question.check.clone().unwrap();
    let machine = db.machine.public();
    let coordinator = server.coordinator.clone();
    let mut asked = std::pin::pin!(coordinator.ssh_action(machine, &question));
    assert!(asked.as_mut().now_or_never().is_none(), "it waits");
    let approve = |c: &mut Coordinator, now, _| c.approve_ssh_check(now, &id);
    server.coordinator.change(approve).0.unwrap();
    let answer = asked.now_or_never().expect("it was woken");
    assert!(answer.unwrap().accept);
    server.stop().await.unwrap();
}

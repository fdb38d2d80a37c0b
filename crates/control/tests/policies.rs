//! `warren-control policy` as people and scripts use it: the real program, the
//! real socket, a running server.

#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;
use std::process::Output;

use serde_json::Value;
use support::{Node, PATIENCE, admin, options, reusable, serve};
use warren_control::serve::{Running, start};
use warren_control_api::endpoints::{GetPolicy, PolicyText, SetPolicy, WhichPolicy};

const CLOSED: &str = "{\n  \"acls\": [],\n}\n";
const OPEN: &str = r#"{
  "acls": [
    // default's machines reach each other by SSH
    {"action": "accept", "src": ["default@"], "dst": ["default@:22"]},
  ],
  "tests": [{"src": "default@", "accept": ["default@:22"], "deny": ["default@:80"]}],
}
"#;

/// Runs the program against the server of `dir`.
async fn cli(dir: &Path, args: &[&str]) -> Output {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_warren-control"));
    command
        .current_dir(dir)
        .args(["--state-dir", "state"])
        .args(args)
        .stdin(std::process::Stdio::null());
    command.output().await.unwrap()
}

async fn good(dir: &Path, args: &[&str]) -> String {
    let output = cli(dir, args).await;
    let text = String::from_utf8(output.stdout).unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {text}{error}");
    text
}

async fn json(dir: &Path, args: &[&str]) -> Value {
    let args: Vec<&str> = args.iter().copied().chain(["--json"]).collect();
    serde_json::from_str(&good(dir, &args).await).unwrap()
}

/// The printed reason of a failure.
async fn bad(dir: &Path, args: &[&str]) -> String {
    let output = cli(dir, args).await;
    assert_eq!(output.status.code(), Some(1), "{args:?}: {output:?}");
    String::from_utf8(output.stderr).unwrap()
}

fn file(dir: &Path, name: &str, text: &str) {
    std::fs::write(dir.join(name), text).unwrap();
}

/// Two machines of the user `default`.
async fn two_nodes(dir: &Path, server: &Running) -> [Node; 2] {
    let key = reusable(dir).await;
    let mut nodes = ["laptop", "db"].map(|name| Node::new(&server.server_url, name));
    for node in &mut nodes {
        node.register(&key).await;
        node.poll("").await;
    }
    nodes
}

#[tokio::test]
async fn errors_of_a_file_are_reported_with_positions_and_without_a_server() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    file(
        dir,
        "wrong.hujson",
        "{\n  \"groups\": {\"group:dev\": []},\n  \"acls\": [{\"action\": \"accept\", \"src\": [\"group:dve\"], \"dst\": [\"*:ssh\"]}],\n}\n",
    );
    let error = bad(dir, &["policy", "check", "wrong.hujson"]).await;
    assert!(error.contains("wrong.hujson: 2 errors"), "{error}");
    assert!(error.contains("--> wrong.hujson:3:41"), "{error}");
    assert!(error.contains("did you mean \"group:dev\"?"), "{error}");
    assert!(error.contains("port range \"ssh\""), "{error}");
    // Other commands say the same, before they ask a server.
    for command in ["set", "test", "diff"] {
        let again = bad(dir, &["policy", command, "wrong.hujson"]).await;
        assert_eq!(again, error, "{command}");
    }
    let output = cli(dir, &["policy", "check", "wrong.hujson", "--json"]).await;
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["ok"], false);
    assert_eq!(report["errors"].as_array().unwrap().len(), 2);
    assert_eq!(report["errors"][0]["line"], 3);

    std::fs::write(dir.join("bytes.hujson"), b"{\"acls\": [\xff]}").unwrap();
    let error = bad(dir, &["policy", "check", "bytes.hujson"]).await;
    assert!(error.contains("bytes.hujson:1:11"), "{error}");

    file(dir, "open.hujson", OPEN);
    file(dir, "closed.hujson", CLOSED);
    let text = good(dir, &["policy", "check", "open.hujson"]).await;
    assert!(
        text.contains("its 2 tests need users and nodes: warren-control --state-dir state policy test open.hujson"),
        "{text}"
    );
    let text = good(dir, &["policy", "diff", "closed.hujson", "open.hujson"]).await;
    assert_eq!(
        text,
        "gained: 2 pairs\n  + default@ -> default@  tcp+udp/22  (2 pairs)\n"
    );
    let back = json(dir, &["policy", "diff", "open.hujson", "closed.hujson"]).await;
    assert_eq!(
        (&back["pairs_gained"], &back["pairs_lost"]),
        (&0.into(), &2.into())
    );
    let error = bad(dir, &["policy", "get"]).await;
    assert!(error.contains("serve --state-dir state"), "{error}");
}

/// A pipe would be waited for, and could not be read again when it changes.
#[tokio::test]
async fn an_unreadable_file_does_not_become_the_policy() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    std::fs::create_dir(dir.join("folder")).unwrap();
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mkfifoat(rustix::fs::CWD, dir.join("pipe"), mode).unwrap();
    for name in ["pipe", "folder", "/dev/zero"] {
        let listen = ["--listen", "127.0.0.1:0", "--stun-listen", "off"];
        let args = ["serve", "--policy", name];
        let error = bad(dir, &[&args[..], &listen].concat()).await;
        let why = format!("cannot read {name}: it is not a regular file");
        assert!(error.contains(&why), "{error}");
    }
    assert!(!dir.join("state/control.db").exists());
}

#[tokio::test]
async fn a_policy_is_tried_set_remembered_and_taken_back() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(dir.path()).await;
    let mut nodes = two_nodes(dir.path(), &server).await;
    let dir = dir.path();
    file(dir, "open.hujson", OPEN);
    file(dir, "closed.hujson", CLOSED);

    let text = good(dir, &["policy", "history"]).await;
    assert!(
        text.contains("warren-control --state-dir state policy set FILE"),
        "{text}"
    );

    let text = good(dir, &["policy", "set", "open.hujson", "--dry-run"]).await;
    assert!(text.contains("lost: 2 pairs\n  - "), "{text}");
    assert!(text.ends_with("dry run: nothing was changed\n"), "{text}");
    assert!(good(dir, &["policy", "get"]).await.starts_with("no policy"));

    let text = good(dir, &["policy", "set", "open.hujson"]).await;
    assert!(text.contains("tcp+udp/0-21,23-65535"), "{text}");
    assert!(text.ends_with("policy set: version 1\n"), "{text}");
    assert_eq!(good(dir, &["policy", "get"]).await, OPEN);
    assert_eq!(good(dir, &["policy", "test"]).await, "2 tests hold\n");

    // One that breaks its promises is refused as a whole.
    file(
        dir,
        "broken.hujson",
        &OPEN.replace(
            "\"accept\": [\"default@:22\"]",
            "\"accept\": [\"default@:443\"]",
        ),
    );
    for command in ["set", "test"] {
        let error = bad(dir, &["policy", command, "broken.hujson"]).await;
        assert!(
            error.contains("broken.hujson: test(s) failed")
                && error.contains("default@ -> default@:443"),
            "{error}"
        );
    }
    assert_eq!(good(dir, &["policy", "get"]).await, OPEN);

    let text = good(dir, &["policy", "diff", "closed.hujson"]).await;
    assert!(
        text.starts_with("lost: 2 pairs\n  - default@ -> default@  tcp+udp/22"),
        "{text}"
    );
    let set = json(dir, &["policy", "set", "closed.hujson"]).await;
    assert_eq!((&set["version"], &set["before"]), (&2.into(), &1.into()));
    assert_eq!(set["diff"]["pairs_lost"], 2);
    nodes[0].until(|map| map.peers.is_empty()).await;

    let text = good(dir, &["policy", "set", "--version", "1"]).await;
    assert!(
        text.ends_with("policy set: version 3; back with: warren-control --state-dir state policy set --version 2\n"),
        "{text}"
    );
    nodes[0].until(|map| map.peers.len() == 1).await;
    assert_eq!(
        good(dir, &["policy", "get", "--version", "2"]).await,
        CLOSED
    );
    assert!(
        bad(dir, &["policy", "get", "--version", "9"])
            .await
            .contains("no policy version 9")
    );

    let history = json(dir, &["policy", "history"]).await;
    let history = history.as_array().unwrap();
    let files: Vec<&str> = history
        .iter()
        .map(|v| v["file"].as_str().unwrap())
        .collect();
    assert_eq!(files, ["open.hujson", "closed.hujson", "open.hujson"]);
    assert_eq!(history[2]["in_force"], true);
    assert!(
        history
            .iter()
            .all(|v| !v["by"].as_str().unwrap().is_empty() && v["at"].is_string())
    );

    // All of it is there after a restart.
    drop(nodes);
    server.stop().await.unwrap();
    let server = serve(dir).await;
    assert_eq!(
        json(dir, &["policy", "history"])
            .await
            .as_array()
            .unwrap()
            .len(),
        3
    );
    assert_eq!(good(dir, &["policy", "get"]).await, OPEN);
    server.stop().await.unwrap();
}

#[tokio::test]
async fn a_concurrent_change_is_not_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(dir.path()).await;
    let dir = dir.path();
    file(dir, "closed.hujson", CLOSED);
    good(dir, &["policy", "set", "closed.hujson"]).await;
    let looked_at = json(dir, &["policy", "set", "--allow-all", "--dry-run"]).await;
    good(dir, &["policy", "set", "closed.hujson"]).await;
    let late = SetPolicy {
        policy: WhichPolicy::Version(1),
        dry_run: false,
        base: looked_at["before"].as_i64(),
    };
    let error = admin(dir, late).await.unwrap_err();
    assert!(error.contains("changed in the meantime"), "{error}");
    server.stop().await.unwrap();
}

#[tokio::test]
async fn why_leads_to_the_file_and_the_edit_works() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(dir.path()).await;
    let nodes = two_nodes(dir.path(), &server).await;
    let dir = dir.path();
    file(dir, "acl.hujson", OPEN.split("  \"tests\"").next().unwrap());
    let text = std::fs::read_to_string(dir.join("acl.hujson")).unwrap() + "}\n";
    file(dir, "acl.hujson", &text);
    good(dir, &["policy", "set", "acl.hujson"]).await;

    let allowed = good(dir, &["policy", "why", "laptop", "db:22"]).await;
    assert!(
        allowed.starts_with(
            "allowed  laptop (default@) 100.64.0.1 -> db (default@) 100.64.0.2 tcp/22\n"
        ),
        "{allowed}"
    );
    assert!(
        allowed.contains("rule      acl.hujson:4:5  {\"action\""),
        "{allowed}"
    );

    let denied = json(dir, &["policy", "why", "laptop", "db:5432"]).await;
    let answer = &denied["answers"][0];
    assert_eq!(answer["allowed"], false);
    assert!(denied.get("text").is_none());
    let edit = &answer["edits"][0];
    let (start, end) = (
        edit["start"].as_u64().unwrap(),
        edit["end"].as_u64().unwrap(),
    );
    let mut edited = text.clone();
    let range = usize::try_from(start).unwrap()..usize::try_from(end).unwrap();
    edited.replace_range(range, edit["text"].as_str().unwrap());
    file(dir, "edited.hujson", &edited);
    let better = good(
        dir,
        &[
            "policy",
            "why",
            "laptop",
            "db:5432",
            "--file",
            "edited.hujson",
        ],
    )
    .await;
    assert!(better.starts_with("allowed"), "{better}");
    let wrong = bad(dir, &["policy", "why", "lapttop", "db:22"]).await;
    assert!(wrong.contains("did you mean \"laptop\"?"), "{wrong}");
    drop(nodes);
    server.stop().await.unwrap();
}

/// Asks until the answer is as wanted.
async fn until(dir: &Path, mut wanted: impl FnMut(&PolicyText) -> bool) -> PolicyText {
    let asking = async {
        loop {
            let answer = admin(dir, GetPolicy { version: None }).await.unwrap();
            if wanted(&answer) {
                return answer;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, asking).await.unwrap()
}

#[tokio::test]
async fn a_file_in_charge_is_followed_and_the_last_good_one_stays() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let path = dir.join("policies/acl.hujson");
    std::fs::create_dir(dir.join("policies")).unwrap();
    std::fs::write(&path, CLOSED).unwrap();
    let with_file = || {
        let mut options = options(dir);
        options.policy = Some(path.clone());
        options
    };
    let server = start(&dir.join("state"), with_file()).await.unwrap();
    assert!(server.banner.contains("from a file"), "{}", server.banner);
    let is = |text: &'static str| move |answer: &PolicyText| answer.policy.as_deref() == Some(text);
    until(dir, is(CLOSED)).await;

    // Written in place.
    let second = "{\"acls\": [], \"groups\": {}}";
    std::fs::write(&path, second).unwrap();
    until(dir, is(second)).await;
    // Replaced, as editors do.
    let third = "{\"acls\": [], \"hosts\": {}}";
    file(dir, "policies/.new", third);
    std::fs::rename(dir.join("policies/.new"), &path).unwrap();
    until(dir, is(third)).await;
    // Removed and created again.
    std::fs::remove_file(&path).unwrap();
    until(dir, |answer| answer.problem.is_some()).await;
    std::fs::write(&path, CLOSED).unwrap();
    let answer = until(dir, |answer| answer.problem.is_none()).await;
    assert_eq!(answer.policy.as_deref(), Some(CLOSED));
    // A link to elsewhere, whose target changes.
    std::fs::create_dir(dir.join("elsewhere")).unwrap();
    file(dir, "elsewhere/real", third);
    std::os::unix::fs::symlink(dir.join("elsewhere/real"), dir.join("policies/.link")).unwrap();
    std::fs::rename(dir.join("policies/.link"), &path).unwrap();
    until(dir, is(third)).await;
    std::fs::write(dir.join("elsewhere/real"), second).unwrap();
    until(dir, is(second)).await;

    // Cut to nothing, as some editors do before they write, or in the middle:
    // the last good one stays.
    for cut in ["", "// {}\n", "{\"acls\": [], \"gro"] {
        std::fs::write(&path, cut).unwrap();
        let answer = until(dir, |answer| answer.problem.is_some()).await;
        assert_eq!(answer.policy.as_deref(), Some(second), "{cut:?}");
        std::fs::write(&path, second).unwrap();
        until(dir, |answer| answer.problem.is_none()).await;
    }
    // Without rules it allows everything, and says so.
    std::fs::write(&path, "{}").unwrap();
    until(dir, is("{}")).await;
    let output = cli(dir, &["policy", "get"]).await;
    assert_eq!(String::from_utf8_lossy(&output.stdout), "{}");
    let note = String::from_utf8_lossy(&output.stderr);
    assert!(note.contains("every node may reach every node"), "{note}");
    let health = good(dir, &["health"]).await;
    assert!(
        health.contains("EVERY NODE MAY REACH EVERY NODE: it has neither acls nor grants"),
        "{health}"
    );
    std::fs::write(&path, second).unwrap();
    until(dir, is(second)).await;

    // Not valid: the last valid one stays, and the error is shown.
    std::fs::write(&path, "{\"acls\": [}").unwrap();
    let answer = until(dir, |answer| answer.problem.is_some()).await;
    assert_eq!(answer.policy.as_deref(), Some(second));
    let problem = answer.problem.unwrap().text;
    assert!(problem.contains("acl.hujson:1:11"), "{problem}");
    let output = cli(dir, &["policy", "get"]).await;
    assert_eq!(String::from_utf8_lossy(&output.stdout), second);
    let note = String::from_utf8_lossy(&output.stderr);
    assert!(
        note.contains("last good policy") && note.contains("acl.hujson:1:11"),
        "{note}"
    );
    let health = good(dir, &["health"]).await;
    assert!(health.contains("IS NOT VALID"), "{health}");

    // Meanwhile, commands cannot change the policy.
    file(dir, "mine.hujson", CLOSED);
    let error = bad(dir, &["policy", "set", "mine.hujson"]).await;
    assert!(
        error.contains("acl.hujson") && error.contains("edit that file"),
        "{error}"
    );

    // A restart with the file as it is goes on with the last good one too.
    server.stop().await.unwrap();
    let server = start(&dir.join("state"), with_file()).await.unwrap();
    let answer = until(dir, is(second)).await;
    assert!(answer.problem.is_some());
    server.stop().await.unwrap();
}

#[tokio::test]
async fn a_link_to_a_folder_that_is_exchanged_is_followed() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let texts = [CLOSED, "{\"acls\": [], \"groups\": {}}"];
    for (n, text) in texts.iter().enumerate() {
        std::fs::create_dir_all(dir.join(format!("app/releases/{n}"))).unwrap();
        file(dir, &format!("app/releases/{n}/acl.hujson"), text);
    }
    let deploy = |n: usize| {
        std::os::unix::fs::symlink(format!("releases/{n}"), dir.join("app/.next")).unwrap();
        std::fs::rename(dir.join("app/.next"), dir.join("app/current")).unwrap();
    };
    deploy(0);
    let mut options = options(dir);
    options.policy = Some(dir.join("app/current/acl.hujson"));
    let server = start(&dir.join("state"), options).await.unwrap();
    // More than once: what is watched changes with the link.
    for n in [1, 0, 1] {
        deploy(n);
        until(dir, |answer| answer.policy.as_deref() == Some(texts[n])).await;
    }
    // And in the folder that it leads to now.
    file(dir, "app/releases/1/acl.hujson", CLOSED);
    until(dir, |answer| answer.policy.as_deref() == Some(CLOSED)).await;
    server.stop().await.unwrap();
}

#[tokio::test]
async fn a_role_is_given_shown_kept_and_reaches_the_nodes() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let server = serve(dir).await;
    let [mut laptop, mut db] = two_nodes(dir, &server).await;
    laptop.until(|map| map.peers.len() == 1).await;
    let policy = r#"{"acls": [{"action": "accept", "src": ["autogroup:owner"], "dst": ["*:22"]}]}"#;
    file(dir, "roles.hujson", policy);
    good(dir, &["policy", "set", "roles.hujson"]).await;
    laptop.until(|map| map.peers.is_empty()).await;

    let said = good(dir, &["users", "set-role", "default", "owner"]).await;
    assert_eq!(said, "user default is now: owner\n");
    laptop.until(|map| map.peers.len() == 1).await;
    db.until(|map| map.packet_filter().any(|rule| !rule.dst_ports.is_empty()))
        .await;
    let list = good(dir, &["users", "list"]).await;
    assert!(
        list.starts_with("ID  NAME     ROLE   LOGIN  CREATED\n1   default  owner  -      "),
        "{list}"
    );
    let why = good(dir, &["policy", "why", "laptop", "db:22"]).await;
    assert!(why.starts_with("allowed"), "{why}");

    // A role that there is not is wrong usage, and the answer names all.
    let wrong = cli(dir, &["users", "set-role", "default", "king"]).await;
    assert_eq!(wrong.status.code(), Some(2));
    let wrong = String::from_utf8(wrong.stderr).unwrap();
    assert!(wrong.contains("network-admin"), "{wrong}");
    let unknown = bad(dir, &["users", "set-role", "ann", "admin"]).await;
    assert!(unknown.contains("user \"ann\" not found"), "{unknown}");

    server.stop().await.unwrap();
    let server = serve(dir).await;
    let users = json(dir, &["users", "list"]).await;
    assert_eq!(users[0]["role"], "owner");
    server.stop().await.unwrap();
}

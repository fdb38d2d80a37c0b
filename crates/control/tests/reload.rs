//! Settings that are read again while the server runs.

#![allow(clippy::unwrap_used)]

mod support;

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use support::provider::FakeProvider;
use support::{Node, admin, options, reusable};
use warren_control::serve::{Running, start};
use warren_control_api::endpoints::{GetHealth, Reload, ReloadInfo};
use warren_control_types::{DerpMap, DerpRegion, RegionId};

/// A server whose settings are in `dir/control.toml`.
async fn serve(dir: &Path, config: &str) -> Running {
    let file = dir.join("control.toml");
    std::fs::write(&file, config).unwrap();
    let mut options = options(dir);
    options.config = Some(file);
    start(&dir.join("state"), options).await.unwrap()
}

async fn reload(dir: &Path, config: &str) -> Result<ReloadInfo, String> {
    std::fs::write(dir.join("control.toml"), config).unwrap();
    admin(dir, Reload {}).await
}

fn provider(name: &str) -> String {
    format!(
        "[[oidc]]\nname = \"{name}\"\nissuer = \"https://{name}.invalid\"\nclient_id = \"c\"\nallowed_domains = [\"a.example\"]\n"
    )
}

async fn names(dir: &Path) -> Vec<String> {
    let providers = admin(dir, GetHealth {}).await.unwrap().providers;
    providers.into_iter().map(|known| known.name).collect()
}

/// A DERP map with one region of this code.
fn relays(dir: &Path, code: &str) {
    let region = DerpRegion {
        region_id: RegionId(7),
        region_code: code.to_owned(),
        region_name: code.to_owned(),
        ..DerpRegion::default()
    };
    let map = DerpMap {
        regions: [(RegionId(7), region)].into(),
        ..DerpMap::default()
    };
    std::fs::write(dir.join("derp.json"), serde_json::to_vec(&map).unwrap()).unwrap();
}

#[tokio::test]
async fn providers_are_replaced_and_the_same_ones_stay() {
    let dir = tempfile::tempdir().unwrap();
    let fake = FakeProvider::start().await;
    let kept = fake.config("kept", "");
    let server = serve(dir.path(), &format!("{kept}{}", provider("old"))).await;
    let before = server.logins.providers()[0].clone();
    before.until(|status| status.ready).await;
    let info = reload(dir.path(), &format!("{kept}{}", provider("new"))).await;
    assert_eq!(names(dir.path()).await, ["kept", "new"]);
    let info = info.unwrap();
    assert!(
        info.changed.contains(&"identity providers".to_owned()),
        "{info:?}"
    );
    assert!(info.needs_restart.is_empty(), "{info:?}");
    // The document and keys of the one that stays are not read again.
    assert!(std::sync::Arc::ptr_eq(
        &before,
        &server.logins.providers()[0]
    ));
    let again = admin(dir.path(), Reload {}).await.unwrap();
    assert_eq!(again, ReloadInfo::default());
    server.stop().await.unwrap();
}

#[tokio::test]
async fn relays_of_the_file_reach_connected_nodes() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(dir.path(), "").await;
    let key = reusable(dir.path()).await;
    let mut node = Node::new(&server.server_url, "a");
    node.register(&key).await;
    node.poll("").await;
    relays(dir.path(), "moved");
    let info = admin(dir.path(), Reload {}).await.unwrap();
    assert_eq!(info.changed, ["relays"]);
    node.until(|map| {
        let mut regions = map.derp_map.regions.values();
        regions.any(|region| region.region_code == "moved")
    })
    .await;
    server.stop().await.unwrap();
}

#[tokio::test]
async fn a_mistake_in_one_part_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let policy = dir.path().join("acl");
    std::fs::write(&policy, r#"{"acls": []}"#).unwrap();
    let config = format!("[policy]\nfile = \"acl\"\n{}", provider("old"));
    let server = serve(dir.path(), &config).await;
    let relays_before = server
        .coordinator
        .read(|view| view.config().derp_map.clone());
    let wrong = config.replace("old", "new");

    // A key that is not known, and a provider that is.
    let error = reload(dir.path(), &format!("{wrong}colour = 1\n[sever]\n")).await;
    let error = error.unwrap_err();
    for text in [
        "2 mistakes",
        "no key \"colour\"",
        "did you mean \"server\"?",
    ] {
        assert!(error.contains(text), "{error}");
    }
    assert_eq!(names(dir.path()).await, ["old"]);

    // The file with the relays.
    std::fs::write(dir.path().join("derp.json"), "{").unwrap();
    let error = reload(dir.path(), &wrong).await.unwrap_err();
    assert!(error.contains("derp.json"), "{error}");
    assert_eq!(names(dir.path()).await, ["old"]);

    // The policy, beside relays and providers that are valid.
    relays(dir.path(), "moved");
    std::fs::write(&policy, r#"{"acls": [], "colour": 1}"#).unwrap();
    let error = reload(dir.path(), &wrong).await.unwrap_err();
    assert!(error.contains("acl"), "{error}");
    assert_eq!(names(dir.path()).await, ["old"]);
    let relays_now = server
        .coordinator
        .read(|view| view.config().derp_map.clone());
    assert_eq!(relays_now, relays_before);

    // A relay in the zone of the nodes.
    let map = r#"{"Regions": {"7": {"RegionID": 7, "Nodes": [
        {"Name": "7a", "RegionID": 7, "HostName": "relay.warren.internal"}]}}}"#;
    std::fs::write(dir.path().join("derp.json"), map).unwrap();
    std::fs::write(&policy, r#"{"acls": []}"#).unwrap();
    let error = reload(dir.path(), &wrong).await.unwrap_err();
    assert!(error.contains("lies in the zone"), "{error}");
    assert_eq!(names(dir.path()).await, ["old"]);

    relays(dir.path(), "moved");
    reload(dir.path(), &wrong).await.unwrap();
    assert_eq!(names(dir.path()).await, ["new"]);
    server.stop().await.unwrap();
}

#[tokio::test]
async fn settings_that_need_a_restart_are_named_each_time() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(dir.path(), "").await;
    for _ in 0..2 {
        let config = "[nodes]\nkey_expiry = \"1d\"\n[log]\nlevels = \"error\"\n";
        let info = reload(dir.path(), config).await.unwrap();
        assert_eq!(info.needs_restart, ["[nodes] key_expiry"]);
    }
    server.stop().await.unwrap();
}

/// A signal does the same, in the program itself; so does its environment.
#[test]
fn signal_lets_the_program_read_its_settings_again() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("control.toml");
    let derp = dir.path().join("derp.json");
    std::fs::write(&derp, "{}").unwrap();
    std::fs::write(&file, "[server]\nlisten = \"nonsense\"\n").unwrap();
    let program = |listen: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_warren-control"));
        command
            .arg("serve")
            .env("WARREN_CONTROL_STATE_DIR", dir.path().join("state"))
            .env("WARREN_CONTROL_CONFIG", &file)
            .env("WARREN_CONTROL_SERVER_LISTEN", listen)
            .env("WARREN_CONTROL_RELAY_DERP_MAP", &derp)
            .env_remove("WARREN_LOG")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    };
    let output = program("127.0.0.1:0").output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        error.contains("control.toml:2: [server] listen: expected"),
        "{error}"
    );
    assert!(!output.status.success());

    std::fs::write(&file, "").unwrap();
    let mut child = program("127.0.0.1:0").spawn().unwrap();
    let pid = rustix::process::Pid::from_child(&child);
    // The banner comes when the signal handlers are there.
    let mut banner = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains("warren up") {
        line.clear();
        assert!(banner.read_line(&mut line).unwrap() > 0, "no banner");
    }
    std::fs::write(
        &file,
        "[log]\nlevels = \"info\"\n[server]\nfirst_user = \"x\"\n",
    )
    .unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let found = lines.by_ref().find_map(|line| {
        let line = line.unwrap();
        line.contains("after a restart of the server: [server] first_user")
            .then_some(line)
    });
    assert!(found.is_some());
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(child.wait().unwrap().success());
}

//! Backups of a server that runs, and servers that begin with one.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use jiff::Timestamp;
use support::{Node, admin, options, reusable, serve};
use warren_control::backup::{backup, restore};
use warren_control::serve::start;
use warren_control_api::endpoints::{CreateUser, ListAuthKeys, ListNodes, ListUsers};
use warren_control_core::Snapshot;

fn all_records(server: &warren_control::serve::Running) -> Snapshot {
    server.coordinator.read(warren_control_core::View::snapshot)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backup_under_load_holds_all_that_was_acknowledged_before() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(dir.path()).await;
    let key = reusable(dir.path()).await;
    let mut node = Node::new(&server.server_url, "kept");
    node.register(&key).await;
    node.poll("").await;

    // Users are made without a pause while the backup is made.
    let folder = dir.path().to_owned();
    let (before, made) = tokio::sync::watch::channel(0_usize);
    let load = tokio::spawn(async move {
        for n in 0.. {
            let name = format!("user{n}");
            admin(&folder, CreateUser { name }).await.unwrap();
            if before.send(n).is_err() {
                return;
            }
        }
    });
    let mut waits = made.clone();
    waits.wait_for(|n| *n >= 5).await.unwrap();
    let acknowledged = *made.borrow();
    let (state, target) = (dir.path().join("state"), dir.path().join("backup"));
    let copied = {
        let target = target.clone();
        tokio::task::spawn_blocking(move || backup(&state, &target, Timestamp::now()))
    };
    let manifest = copied.await.unwrap().unwrap();
    let after = *made.borrow();
    waits.wait_for(|n| *n > after).await.unwrap();
    drop((made, waits));
    load.await.unwrap();
    for name in ["control.db", "noise.key", "relay.key"] {
        assert!(manifest.files.contains_key(name), "{:?}", manifest.files);
    }
    assert!(!manifest.files.contains_key("lock"));
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&target), 0o700);
    assert_eq!(mode(&target.join("control.db")), 0o600);
    assert_eq!(mode(&target.join("noise.key")), 0o600);
    server.stop().await.unwrap();

    let other = tempfile::tempdir().unwrap();
    restore(&target, &other.path().join("state")).unwrap();
    let server = serve(other.path()).await;
    let users = admin(other.path(), ListUsers {}).await.unwrap();
    for n in 0..=acknowledged {
        let name = format!("user{n}");
        assert!(users.iter().any(|user| user.name == name), "{name} is lost");
    }
    // The node connects again with the key that it has.
    node.at(&server.server_url);
    node.poll("").await;
    assert_eq!(node.map.self_node.as_ref().unwrap().base_name(), "kept");
    server.stop().await.unwrap();
}

#[tokio::test]
async fn restored_records_are_equal() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(dir.path()).await;
    let key = reusable(dir.path()).await;
    for name in ["a", "b"] {
        Node::new(&server.server_url, name).register(&key).await;
    }
    let before = all_records(&server);
    let target = dir.path().join("backup");
    backup(&dir.path().join("state"), &target, Timestamp::now()).unwrap();
    server.stop().await.unwrap();
    // Of a server that stands still, it is the same.
    let still = dir.path().join("still");
    backup(&dir.path().join("state"), &still, Timestamp::now()).unwrap();
    for source in [&target, &still] {
        let other = tempfile::tempdir().unwrap();
        // An empty folder is as good as none.
        fs::create_dir(other.path().join("state")).unwrap();
        restore(source, &other.path().join("state")).unwrap();
        let server = start(&other.path().join("state"), options(other.path()))
            .await
            .unwrap();
        assert_eq!(all_records(&server).nodes, before.nodes);
        assert_eq!(all_records(&server).users, before.users);
        assert_eq!(
            admin(other.path(), ListNodes { user: None })
                .await
                .unwrap()
                .len(),
            2
        );
        assert!(
            !admin(other.path(), ListAuthKeys {})
                .await
                .unwrap()
                .is_empty()
        );
        server.stop().await.unwrap();
    }
}

#[tokio::test]
async fn nothing_is_overwritten_and_nothing_incomplete_is_restored() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let target = dir.path().join("backup");
    let why = |error: warren_control::backup::BackupError| error.to_string();
    let error = why(backup(&state, &target, Timestamp::UNIX_EPOCH).unwrap_err());
    assert!(error.contains("no state of a server"), "{error}");
    serve(dir.path()).await.stop().await.unwrap();
    backup(&state, &target, Timestamp::UNIX_EPOCH).unwrap();
    let error = why(backup(&state, &target, Timestamp::UNIX_EPOCH).unwrap_err());
    assert!(error.contains("nothing is overwritten"), "{error}");
    let error = why(restore(&target, &state).unwrap_err());
    assert!(error.contains("not empty"), "{error}");

    let fresh = dir.path().join("fresh");
    let manifest = fs::read_to_string(target.join("backup.json")).unwrap();
    let key = fs::read(target.join("noise.key")).unwrap();
    let refused = |text: &str, expected: &str| {
        fs::write(target.join("backup.json"), text).unwrap();
        let error = restore(&target, &fresh).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert!(!fresh.exists());
        fs::write(target.join("backup.json"), &manifest).unwrap();
    };
    refused("{", "is not a complete backup");
    refused(
        &manifest.replace("\"form\": 1", "\"form\": 2"),
        "does not know",
    );
    refused(
        &manifest.replace("noise.key", "../noise.key"),
        "not the name of a file",
    );
    refused(
        &manifest.replace("control.db", "other.db"),
        "control.db is missing",
    );
    fs::write(target.join("noise.key"), "other").unwrap();
    refused(&manifest, "noise.key is not as it was written");
    fs::remove_file(target.join("noise.key")).unwrap();
    refused(&manifest, "noise.key");
    fs::write(target.join("noise.key"), key).unwrap();
    fs::rename(target.join("backup.json"), target.join("gone")).unwrap();
    assert!(why(restore(&target, &fresh).unwrap_err()).contains("cannot be read"));
    fs::rename(target.join("gone"), target.join("backup.json")).unwrap();
    restore(&target, &fresh).unwrap();
    // No folder that was begun is left.
    let left = fs::read_dir(dir.path()).unwrap();
    let left = left.filter(|entry| {
        let name = entry.as_ref().unwrap().file_name();
        name.to_string_lossy().ends_with(".partial")
    });
    assert_eq!(left.count(), 0);
}

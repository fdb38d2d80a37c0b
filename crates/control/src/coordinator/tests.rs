//! Answers and the disk: nothing is answered from rows that a loss of power
//! would take back.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::sync::Arc;

use futures_util::FutureExt as _;
use tokio::sync::mpsc;
use warren_control_core::{
    AdminError, Config, Coordinator, NewAuthKey, PendingId, Snapshot, SshQuestion,
};
use warren_control_types::{
    CapabilityVersion, DerpMap, Hostinfo, NodeId, RegisterAuth, RegisterRequest,
};
use warren_dial::SystemEntropy;
use warren_keys::{MachinePublic, NodePublic};

use super::{CoordinatorHandle, Registration};
use crate::clock::{now, wall_clock};
use crate::store::{Disk, MemoryStore, WriteQueue};
use crate::terminal::Hints;

pub(crate) fn handle() -> (Arc<CoordinatorHandle>, Disk) {
    let coordinator = Coordinator::new(
        now(),
        wall_clock(),
        Config::new("http://192.0.2.1:8080", DerpMap::default()),
        Snapshot::default(),
        Box::new(SystemEntropy),
    );
    let (store, disk) = MemoryStore::new();
    let queue = WriteQueue::start(store).unwrap();
    let (lines, _) = mpsc::unbounded_channel();
    let handle = CoordinatorHandle::new(coordinator, queue, lines, Hints::default());
    (handle, disk)
}

fn machine(n: u8) -> MachinePublic {
    MachinePublic::from_bytes([n; 32])
}

fn request(n: u8, auth_key: &str) -> RegisterRequest {
    RegisterRequest {
        version: CapabilityVersion::CURRENT,
        node_key: NodePublic::from_bytes([n ^ 0x80; 32]),
        auth: (!auth_key.is_empty()).then(|| RegisterAuth {
            auth_key: auth_key.to_owned(),
        }),
        hostinfo: Some(Hostinfo {
            hostname: format!("host{n}"),
            ..Hostinfo::default()
        }),
        ..RegisterRequest::default()
    }
}

async fn user_and_key(handle: &CoordinatorHandle) -> String {
    let new = NewAuthKey {
        user: Some("ann".into()),
        reusable: true,
        ..NewAuthKey::default()
    };
    let made = handle
        .change_saved(|c, _, wall| {
            c.create_user(wall, "ann")?;
            Ok::<_, AdminError>(c.create_auth_key(wall, new)?.0.expose())
        })
        .await;
    made.unwrap().unwrap()
}

/// Polls the future once more than it needs to get to its first wait.
macro_rules! waits {
    ($future:expr) => {{
        tokio::task::yield_now().await;
        assert!($future.as_mut().now_or_never().is_none());
    }};
}

#[tokio::test]
async fn registration_by_key_and_its_repetition_wait_for_the_disk() {
    let (handle, disk) = handle();
    let key = user_and_key(&handle).await;
    disk.hold();
    let (machine, request) = (machine(1), request(1, &key));
    let mut first = Box::pin(handle.register(machine, None, &request));
    waits!(first);
    // The same question again changes nothing, and speaks of the same row.
    let mut repeated = Box::pin(handle.register(machine, None, &request));
    waits!(repeated);
    disk.release();
    for answer in [first.await, repeated.await] {
        let Ok(Registration::Answer(answer)) = answer else {
            panic!("{answer:?}")
        };
        assert!(answer.machine_authorized);
    }
    assert_eq!(disk.rows().nodes.len(), 1);
}

#[tokio::test]
async fn approved_login_and_its_administrator_wait_for_the_disk() {
    let (handle, disk) = handle();
    user_and_key(&handle).await;
    let mut request = request(1, "");
    let Ok(Registration::Answer(answer)) = handle.register(machine(1), None, &request).await else {
        panic!("no address to open")
    };
    let id = PendingId(answer.auth_url.rsplit('/').next().unwrap().to_owned());
    request.followup.clone_from(&answer.auth_url);
    let mut parked = Box::pin(handle.register(machine(1), None, &request));
    waits!(parked);
    disk.hold();
    let mut administrator = Box::pin(
        handle.change_saved(|c, now, wall| c.approve(now, wall, &id, "ann", BTreeSet::new())),
    );
    waits!(administrator);
    waits!(parked);
    disk.release();
    administrator.await.unwrap().unwrap();
    let Ok(Registration::Answer(answer)) = parked.await else {
        panic!("refused")
    };
    assert!(answer.machine_authorized);
    assert_eq!(disk.rows().nodes.len(), 1);
}

#[tokio::test]
async fn decision_about_an_ssh_session_waits_for_the_policy_on_disk() {
    let (handle, disk) = handle();
    let key = user_and_key(&handle).await;
    handle
        .register(machine(1), None, &request(1, &key))
        .await
        .unwrap();
    disk.hold();
    let policy = r#"{"ssh": [{"action": "check", "src": ["ann@"], "dst": ["autogroup:self"], "users": ["root"]}]}"#;
    let (set, saved) = handle.change(|c, _, _| c.set_policy(Some(policy.to_owned())));
    set.unwrap();
    let question = SshQuestion {
        source: NodeId(1),
        destination: NodeId(1),
        local_user: "root".to_owned(),
        check: None,
    };
    let mut asked = Box::pin(handle.ssh_action(machine(1), &question));
    waits!(asked);
    disk.release();
    asked.await.unwrap();
    saved.wait().await.unwrap();
}

#[tokio::test]
async fn full_disk_refuses_registrations_and_a_later_try_succeeds() {
    let (handle, disk) = handle();
    let key = user_and_key(&handle).await;
    disk.fail(true);
    let request = request(1, &key);
    assert!(handle.register(machine(1), None, &request).await.is_err());
    assert!(!handle.is_healthy());
    disk.fail(false);
    handle.flush().await.unwrap();
    assert!(handle.register(machine(1), None, &request).await.is_ok());
    assert_eq!(disk.rows().nodes.len(), 1);
}

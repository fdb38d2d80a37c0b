//! Which answers wait for the disk: all requests of nodes, in one table.

#![allow(clippy::unwrap_used)]

use serde_json::json;
use tower::ServiceExt as _;
use warren_control_core::{AdminError, NewAuthKey};
use warren_control_types::CapabilityVersion;
use warren_keys::NodePublic;

use super::*;
use crate::body_budget::BodyBudget;

const MACHINE: MachinePublic = MachinePublic::from_bytes([1; 32]);

fn request(path: &str, body: &serde_json::Value) -> Request {
    let get = ["whoami", "ssh"].iter().any(|part| path.contains(part));
    let builder = if get {
        Request::get(path)
    } else {
        Request::post(path)
    };
    let mut request = builder.body(Body::from(body.to_string())).unwrap();
    let peer = Peer {
        machine: MACHINE,
        source: None,
    };
    request.extensions_mut().insert(peer);
    let budget = BodyBudget::default().channel(MACHINE, None);
    request.extensions_mut().insert(budget);
    request
}

/// The clock is virtual: it goes on when all tasks wait, and so at once where an answer
/// waits for the disk.
#[tokio::test(start_paused = true)]
async fn answers_wait_for_the_disk_but_for_those_on_the_list() {
    const WAITS: bool = true;
    const AT_ONCE: bool = false;
    let (coordinator, disk) = crate::coordinator::tests::handle();
    let new = NewAuthKey {
        user: Some("ann".into()),
        ..NewAuthKey::default()
    };
    let key = coordinator.change_saved(|core, _, wall| {
        core.create_user(wall, "ann")?;
        Ok::<_, AdminError>(core.create_auth_key(wall, new)?.0.expose())
    });
    let key = key.await.unwrap().unwrap();
    let node_key = NodePublic::from_bytes([2; 32]);
    let version = CapabilityVersion::CURRENT;
    let join = json!({"Version": version, "NodeKey": node_key, "Auth": {"AuthKey": key}});
    let joined = router(coordinator.clone())
        .oneshot(request("/machine/register", &join))
        .await
        .unwrap();
    assert_eq!(joined.status(), StatusCode::OK);

    let node = json!({"Version": version, "NodeKey": node_key});
    let with = |name: &str, value: bool| {
        let mut node = node.clone();
        node[name] = value.into();
        node
    };
    let (stream, update) = (with("Stream", true), with("OmitPeers", true));
    let table = [
        ("/machine/register", &node, WAITS),
        ("/machine/ssh/action/1/to/1?local_user=root", &node, WAITS),
        ("/machine/tka/init/begin", &node, WAITS),
        ("/machine/tka/init/finish", &node, WAITS),
        ("/machine/tka/bootstrap", &node, WAITS),
        ("/machine/tka/sync/offer", &node, WAITS),
        ("/machine/tka/sync/send", &node, WAITS),
        ("/machine/tka/sign", &node, WAITS),
        ("/machine/tka/disable", &node, WAITS),
        ("/machine/tka/affected-sigs", &node, WAITS),
        // The list of ARCHITECTURE.md.
        ("/machine/map", &node, AT_ONCE),
        ("/machine/map", &stream, AT_ONCE),
        ("/machine/map", &update, AT_ONCE),
        // These speak of nothing that is stored.
        ("/machine/whoami", &node, AT_ONCE),
        ("/machine/update-health", &node, AT_ONCE),
        ("/machine/id-token", &node, AT_ONCE),
        ("/c2n/0123", &node, AT_ONCE),
    ];
    for (n, (path, body, waits)) in table.into_iter().enumerate() {
        disk.hold();
        // A promise to another machine, which is not on disk.
        let name = format!("user{n}");
        let (_, saved) = coordinator.change(|core, _, wall| core.create_user(wall, &name).is_ok());
        let answer = router(coordinator.clone()).oneshot(request(path, body));
        let mut answer = Box::pin(answer);
        let early = tokio::time::timeout(Duration::from_secs(1), &mut answer).await;
        assert_eq!(early.is_err(), waits, "{path} {body}");
        disk.release();
        saved.wait().await.unwrap();
        let answer = match early {
            Ok(answer) => answer,
            Err(_) => answer.await,
        };
        let _answered = answer.unwrap();
    }
}

//! Tailnet lock of official clients on our server: turned on, changed, and turned off by
//! them; a node that is not signed is invisible.
#![allow(clippy::unwrap_used)]

use serde_json::Value;
use warren_lab::scenario::{Tailnet, installed, lab, traffic_flows};
use warren_lab::{Kind, LabError, Node, PATIENCE, Place, RelayKind, until};

fn lock_status(node: &Node) -> Result<Value, LabError> {
    let text = node.cli(&["lock", "status", "--json"])?;
    serde_json::from_str(&text).map_err(|error| LabError::new(format!("{error}: {text}")))
}

fn lock_key(node: &Node) -> String {
    let status = lock_status(node).unwrap();
    status["PublicKey"].as_str().unwrap().to_owned()
}

/// Waits until the lock of the node is on or off, and the node itself is signed if on.
fn lock_is(node: &Node, on: bool) {
    until(
        &format!("the lock of {} to be {on}", node.host().name()),
        PATIENCE,
        || {
            let status = lock_status(node)?;
            let enabled = status["Enabled"] == true;
            if enabled == on && (!on || status["NodeKeySigned"] == true) {
                return Ok(());
            }
            Err(LabError::new(status.to_string()))
        },
    )
    .unwrap();
}

fn sees(node: &Node, peers: &[&str]) {
    until(
        &format!("{} to see {peers:?}", node.host().name()),
        PATIENCE,
        || {
            let seen = node.peers()?;
            if seen == peers {
                return Ok(());
            }
            Err(LabError::new(format!("{seen:?}")))
        },
    )
    .unwrap();
}

/// Waits until the node has refused a peer of that name.
fn refuses(node: &Node, peer: &str) {
    until(
        &format!("{} to refuse {peer}", node.host().name()),
        PATIENCE,
        || {
            let status = lock_status(node)?;
            if status["FilteredPeers"].to_string().contains(peer) {
                return Ok(());
            }
            Err(LabError::new(status.to_string()))
        },
    )
    .unwrap();
}

#[test]
fn official_clients_lock_the_tailnet_of_our_server() {
    let Some(mut lab) = lab() else { return };
    let Some(()) = installed(Kind::Tailscale) else {
        return;
    };
    let Some(mut tailnet) = Tailnet::new(&mut lab, RelayKind::Warren) else {
        return;
    };
    let set_role = ["users", "set-role", "ann", "admin"];
    tailnet.control.cli(&set_role).unwrap();
    let mut join = |tailnet: &Tailnet, name: &str| {
        let host = lab.host(name, Place::Open).unwrap();
        tailnet.join(&host, Kind::Tailscale)
    };
    let alice = join(&tailnet, "alice");
    let bob = join(&tailnet, "bob");
    sees(&alice, &["bob"]);

    // Alice turns the lock on, with the keys of both.
    let arguments = ["lock", "init", "--confirm", "--gen-disablements=1"];
    let keys = [lock_key(&alice), lock_key(&bob)];
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    let printed = alice.cli(&[&arguments[..], &keys].concat()).unwrap();
    let secret = printed
        .split_whitespace()
        .find(|word| word.starts_with("disablement-secret:"))
        .unwrap_or_else(|| panic!("{printed}"))
        .to_owned();
    lock_is(&alice, true);
    lock_is(&bob, true);
    sees(&alice, &["bob"]);
    sees(&bob, &["alice"]);
    traffic_flows(&alice, &bob);

    // A node that nobody signed: nobody sees it, until bob signs it.
    let carol = join(&tailnet, "carol");
    refuses(&alice, "carol");
    refuses(&bob, "carol");
    sees(&alice, &["bob"]);
    let carol_key = lock_status(&carol).unwrap()["NodeKey"]
        .as_str()
        .unwrap()
        .to_owned();
    bob.cli(&["lock", "sign", &carol_key, &lock_key(&carol)])
        .unwrap();
    sees(&alice, &["bob", "carol"]);
    sees(&bob, &["alice", "carol"]);
    lock_is(&carol, true);
    traffic_flows(&alice, &carol);

    // The chain survives a restart of the server, and grows.
    tailnet.control.restart().unwrap();
    alice.cli(&["lock", "add", &lock_key(&carol)]).unwrap();
    until("bob to trust carol", PATIENCE, || {
        let status = lock_status(&bob)?;
        if status["TrustedKeys"]
            .to_string()
            .contains(&lock_key(&carol))
        {
            return Ok(());
        }
        Err(LabError::new(status.to_string()))
    })
    .unwrap();

    // A wrong secret changes nothing; the right one turns the lock off everywhere.
    let wrong = format!("disablement-secret:{}", "00".repeat(32));
    bob.cli(&["lock", "disable", &wrong]).unwrap_err();
    bob.cli(&["lock", "disable", &secret]).unwrap();
    for node in [&alice, &bob, &carol] {
        lock_is(node, false);
    }
    let dave = join(&tailnet, "dave");
    sees(&alice, &["bob", "carol", "dave"]);
    traffic_flows(&bob, &dave);
}

//! Tailnet lock on our server, with official clients and ours in all roles: turned on,
//! signed, changed, attacked at the server, recovered, and turned off.
#![allow(clippy::unwrap_used)]

use rusqlite::Connection;
use serde_json::Value;
use warren_lab::scenario::{Tailnet, installed, lab, more, traffic_flows};
use warren_lab::{Kind, Lab, LabError, Node, PATIENCE, Place, RelayKind, foreign, until};

fn lock_status(node: &Node) -> Result<Value, LabError> {
    let text = node.cli(&["lock", "status", "--json"])?;
    serde_json::from_str(&text).map_err(|error| LabError::new(format!("{error}: {text}")))
}

fn text_of(node: &Node, name: &str) -> String {
    lock_status(node).unwrap()[name]
        .as_str()
        .unwrap()
        .to_owned()
}

fn lock_key(node: &Node) -> String {
    text_of(node, "PublicKey")
}

/// Waits until the lock status of a node is as wanted.
fn lock_becomes(node: &Node, what: &str, wanted: impl Fn(&Value) -> bool) {
    let what = format!("the lock of {}: {what}", node.host().name());
    until(&what, PATIENCE, || {
        let status = lock_status(node)?;
        if wanted(&status) {
            return Ok(());
        }
        Err(LabError::new(status.to_string()))
    })
    .unwrap();
}

/// Waits until the lock is on, and the node signed.
fn is_signed(node: &Node) {
    lock_becomes(node, "on and signed", |status| {
        status["Enabled"] == true && status["NodeKeySigned"] == true
    });
}

fn is_off(node: &Node) {
    lock_becomes(node, "off", |status| status["Enabled"] == false);
}

fn sees(node: &Node, peers: &[&str]) {
    let what = format!("{} to see {peers:?}", node.host().name());
    until(&what, PATIENCE, || {
        let seen = node.peers()?;
        if seen == peers {
            return Ok(());
        }
        Err(LabError::new(format!("{seen:?}")))
    })
    .unwrap();
}

/// Waits until the node keeps this peer out, and makes sure that it does not show it.
fn keeps_out(node: &Node, peer: &str) {
    lock_becomes(node, &format!("keeps {peer} out"), |status| {
        status["FilteredPeers"].to_string().contains(peer)
    });
    assert!(!node.peers().unwrap().iter().any(|seen| seen == peer));
}

/// The official command line, with the daemon of this node, whichever it is.
fn tailscale(node: &Node, words: &[&str]) -> String {
    let binary = foreign("tailscale").unwrap().display().to_string();
    let socket = format!("--socket={}/node/s.sock", node.host().folder().display());
    let mut all = vec![socket.as_str()];
    all.extend(words);
    node.host().run(&binary, &all).unwrap()
}

/// Turns the lock on at a node, with these trusted keys; returns the disablement secret.
fn init(node: &Node, keys: &[&str]) -> String {
    let arguments = ["lock", "init", "--confirm", "--gen-disablements=1"];
    let printed = node.cli(&[&arguments[..], keys].concat()).unwrap();
    printed
        .split_whitespace()
        .find(|word| word.starts_with("disablement-secret:"))
        .unwrap_or_else(|| panic!("{printed}"))
        .to_owned()
}

fn locked_tailnet(lab: &mut Lab) -> Option<Tailnet> {
    installed(Kind::Warren)?;
    installed(Kind::Tailscale)?;
    let tailnet = Tailnet::with_private_server(lab, RelayKind::Warren)?;
    let set_role = ["users", "set-role", "ann", "admin"];
    tailnet.control.cli(&set_role).unwrap();
    Some(tailnet)
}

fn join(lab: &mut Lab, tailnet: &Tailnet, name: &str, kind: Kind) -> Node {
    tailnet.join(&lab.host(name, Place::Open).unwrap(), kind)
}

/// The life of a lock: `first` turns it on and off, `second` signs.
fn life_of_a_lock(first: Kind, second: Kind) {
    let Some(mut lab) = lab() else { return };
    let Some(mut tailnet) = locked_tailnet(&mut lab) else {
        return;
    };
    let alice = join(&mut lab, &tailnet, "alice", first);
    let bob = join(&mut lab, &tailnet, "bob", second);
    sees(&alice, &["bob"]);
    let secret = init(&alice, &[&lock_key(&alice), &lock_key(&bob)]);
    for node in [&alice, &bob] {
        is_signed(node);
    }
    sees(&alice, &["bob"]);
    sees(&bob, &["alice"]);
    traffic_flows(&alice, &bob);

    // Nodes that are not signed: one of each kind.
    let carol = join(&mut lab, &tailnet, "carol", first);
    let dave = join(&mut lab, &tailnet, "dave", second);
    for node in [&alice, &bob] {
        keeps_out(node, "carol");
        keeps_out(node, "dave");
    }
    lock_becomes(&carol, "locked out", |status| {
        status["NodeKeySigned"] == false
    });
    for node in [&carol, &dave] {
        let health = node.status_json().unwrap()["Health"].to_string();
        assert!(health.contains("locked out"), "{health}");
        bob.cli(&["lock", "sign", &text_of(node, "NodeKey"), &lock_key(node)])
            .unwrap();
        is_signed(node);
    }
    sees(&alice, &["bob", "carol", "dave"]);
    sees(&bob, &["alice", "carol", "dave"]);
    traffic_flows(&alice, &carol);
    traffic_flows(&dave, &bob);

    // A renewed login keeps the chain of signatures: no node has to sign it again.
    let before = text_of(&carol, "NodeKey");
    let mut words = vec!["--force-reauth"];
    words.extend(more(first));
    carol
        .up(tailnet.control.url(), &tailnet.key, &words)
        .unwrap();
    lock_becomes(&carol, "another key, signed", |status| {
        status["NodeKey"] != before.as_str()
            && status["NodeKeySigned"] == true
            && status["NodeKeySignature"]["SigKind"] == "rotation"
    });
    sees(&bob, &["alice", "carol", "dave"]);
    traffic_flows(&bob, &carol);

    // An auth key that was signed admits a node at once.
    let wrap = match second {
        Kind::Warren => "sign",
        _ => "tskey-wrap",
    };
    let wrapped = bob.cli(&["lock", wrap, &tailnet.key]).unwrap();
    let host = lab.host("erin", Place::Open).unwrap();
    let erin = Node::start(&host, first).unwrap();
    erin.up(tailnet.control.url(), wrapped.trim(), more(first))
        .unwrap();
    is_signed(&erin);
    sees(&bob, &["alice", "carol", "dave", "erin"]);
    traffic_flows(&bob, &erin);

    // The chain survives a restart of the server, and grows and shrinks.
    tailnet.control.program().stop().unwrap();
    tailnet.control.restart().unwrap();
    let carol_key = lock_key(&carol);
    alice.cli(&["lock", "add", &carol_key]).unwrap();
    let trusts = |status: &Value, key: &str| status["TrustedKeys"].to_string().contains(key);
    lock_becomes(&bob, "trusts carol", |status| trusts(status, &carol_key));
    // Those that bob signed are signed again by alice.
    let bob_key = lock_key(&bob);
    alice.cli(&["lock", "remove", &bob_key]).unwrap();
    for node in [&alice, &bob, &dave] {
        lock_becomes(node, "trusts bob no more", |status| {
            !trusts(status, &bob_key)
        });
        is_signed(node);
    }
    sees(&alice, &["bob", "carol", "dave", "erin"]);

    let wrong = format!("disablement-secret:{}", "00".repeat(32));
    bob.cli(&["lock", "disable", &wrong]).unwrap_err();
    bob.cli(&["lock", "disable", &secret]).unwrap();
    for node in [&alice, &bob, &carol, &dave, &erin] {
        is_off(node);
    }
}

#[test]
fn official_client_turns_the_lock_on_and_ours_signs() {
    life_of_a_lock(Kind::Tailscale, Kind::Warren);
}

#[test]
fn our_client_turns_the_lock_on_and_the_official_one_signs() {
    life_of_a_lock(Kind::Warren, Kind::Tailscale);
}

/// Lets the database of the server say that one node has the signature of another.
fn copy_signature(tailnet: &Tailnet, from: &str, to: &str) {
    let path = tailnet.control.state_folder().join("control.db");
    let database = Connection::open(path).unwrap();
    let mut rows = database.prepare("SELECT id, record FROM nodes").unwrap();
    let records: Vec<(i64, Value)> = rows
        .query_map([], |row| Ok((row.get(0)?, row.get::<_, String>(1)?)))
        .unwrap()
        .map(|row| row.map(|(id, text)| (id, serde_json::from_str(&text).unwrap())))
        .collect::<Result<_, _>>()
        .unwrap();
    let find = |name: &str| {
        let named = |record: &Value| record.to_string().contains(&format!("\"{name}\""));
        let mut found = records.iter().filter(|(_, record)| named(record));
        found
            .next()
            .unwrap_or_else(|| panic!("{name}: {records:?}"))
            .clone()
    };
    let signature = find(from).1["key_signature"].clone();
    assert!(
        signature.as_array().is_some_and(|bytes| bytes.len() > 100),
        "{signature}"
    );
    let (id, mut record) = find(to);
    record["key_signature"] = signature;
    let changed = database
        .execute(
            "UPDATE nodes SET record = ?1 WHERE id = ?2",
            (record.to_string(), id),
        )
        .unwrap();
    assert_eq!(changed, 1);
}

/// The server is stolen: its database is edited, and it forgets the lock. Killed nodes keep
/// the lock, also while the server is away.
#[test]
fn stolen_server_brings_no_node_in() {
    let Some(mut lab) = lab() else { return };
    let Some(mut tailnet) = locked_tailnet(&mut lab) else {
        return;
    };
    let alice = join(&mut lab, &tailnet, "alice", Kind::Tailscale);
    let mut bob = join(&mut lab, &tailnet, "bob", Kind::Warren);
    sees(&bob, &["alice"]);
    init(&bob, &[&lock_key(&bob)]);
    for node in [&alice, &bob] {
        is_signed(node);
    }
    let mallory = join(&mut lab, &tailnet, "mallory", Kind::Warren);
    keeps_out(&alice, "mallory");
    keeps_out(&bob, "mallory");

    // The signature of alice in the record of mallory.
    tailnet.control.program().kill().unwrap();
    copy_signature(&tailnet, "alice", "mallory");
    // A node that is killed now starts without the server.
    bob.daemon().kill().unwrap();
    bob.restart().unwrap();
    lock_becomes(&bob, "on from disk", |status| status["Enabled"] == true);
    sees(&bob, &["alice"]);
    traffic_flows(&bob, &alice);
    tailnet.control.restart().unwrap();
    keeps_out(&alice, "mallory");
    keeps_out(&bob, "mallory");
    is_signed(&bob);

    // The server says that there never was a lock.
    tailnet.control.program().kill().unwrap();
    let path = tailnet.control.state_folder().join("control.db");
    let database = Connection::open(path).unwrap();
    let forgotten = database.execute("DELETE FROM settings WHERE name = 'lock'", ());
    assert_eq!(forgotten.unwrap(), 1);
    drop(database);
    tailnet.control.restart().unwrap();
    until("bob to notice", PATIENCE, || {
        let health = bob.status_json()?["Health"].to_string();
        if health.contains("cannot prove it") {
            return Ok(());
        }
        Err(LabError::new(health))
    })
    .unwrap();
    for node in [&alice, &bob] {
        assert_eq!(lock_status(node).unwrap()["Enabled"], true);
        keeps_out(node, "mallory");
    }
    drop(mallory);
}

/// The official command line drives our daemon, with a key that was stolen and revoked.
#[test]
fn official_command_line_uses_the_lock_of_our_daemon() {
    let Some(mut lab) = lab() else { return };
    let Some(tailnet) = locked_tailnet(&mut lab) else {
        return;
    };
    let [alice, bob, carol] =
        ["alice", "bob", "carol"].map(|name| join(&mut lab, &tailnet, name, Kind::Warren));
    sees(&alice, &["bob", "carol"]);
    let keys = [&alice, &bob, &carol].map(lock_key);
    let mut words = vec!["lock", "init", "--confirm", "--gen-disablements=1"];
    words.extend(keys.iter().map(String::as_str));
    tailscale(&alice, &words);
    for node in [&alice, &bob, &carol] {
        is_signed(node);
    }
    // Both command lines show the same.
    for words in [
        &["lock", "status", "--json"][..],
        &["lock", "log", "--json"],
        &["lock", "log"],
    ] {
        let official = tailscale(&bob, words);
        let ours = bob.cli(words).unwrap();
        match words {
            [.., "--json"] => {
                let value = |text: &str| serde_json::from_str::<Value>(text).unwrap();
                assert_eq!(value(&official), value(&ours), "{words:?}");
            }
            _ => assert_eq!(official.trim(), ours.trim(), "{words:?}"),
        }
    }
    let secret = "AB".repeat(32);
    let words = ["lock", "disablement-kdf", &secret];
    assert_eq!(tailscale(&bob, &words), bob.cli(&words).unwrap());

    // The key of carol is stolen: alice and bob revoke it together.
    let made = tailscale(&alice, &["lock", "revoke-keys", &keys[2]]);
    let message = made.split_whitespace().last().unwrap();
    let signed = tailscale(&bob, &["lock", "revoke-keys", "--cosign", message]);
    let message = signed.split_whitespace().last().unwrap();
    tailscale(&bob, &["lock", "revoke-keys", "--finish", message]);
    for node in [&alice, &bob, &carol] {
        lock_becomes(node, "trusts carol no more", |status| {
            !status["TrustedKeys"].to_string().contains(&keys[2])
        });
    }
    tailscale(&carol, &["lock", "local-disable"]);
    is_off(&carol);
    let text = tailscale(&carol, &["lock"]);
    assert!(text.contains("NOT enabled"), "{text}");
}

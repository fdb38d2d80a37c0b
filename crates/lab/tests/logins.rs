//! Logins that are forced, lost at the server, refused: what becomes of the
//! node, and that there is one of it.
#![allow(clippy::unwrap_used)]

use std::path::Path as FilePath;

use serde_json::Value;
use warren_lab::scenario::{installed, lab};
use warren_lab::{Control, Kind, Lab, LabError, Node, PATIENCE, Place, Program, ours, until};

fn wrong(text: impl std::fmt::Display) -> LabError {
    std::io::Error::other(text.to_string()).into()
}

/// A server with its embedded relay, and one node that joined with a key.
fn one_node(lab: &mut Lab) -> Option<(Control, Node)> {
    installed(Kind::Warren)?;
    let control = Control::start(&lab.host("control", Place::Open).unwrap(), None).unwrap();
    let host = lab.host("alice", Place::Open).unwrap();
    let alice = Node::start(&host, Kind::Warren).unwrap();
    alice.up(control.url(), &single(&control), &[]).unwrap();
    Some((control, alice))
}

/// A key that lets in once.
fn single(control: &Control) -> String {
    let key = control.json(&["preauthkeys", "create", "--user", "default"]);
    key.unwrap()["key"].as_str().unwrap().to_owned()
}

fn listed(control: &Control, what: &[&str]) -> Vec<Value> {
    control.json(what).unwrap().as_array().unwrap().clone()
}

/// The node that is all there is, online.
fn the_node(control: &Control) -> Value {
    until("one node, online", PATIENCE, || {
        let nodes = listed(control, &["nodes", "list"]);
        match nodes.as_slice() {
            [node] if node["online"] == true => Ok(node.clone()),
            _ => Err(wrong(format!("{nodes:?}"))),
        }
    })
    .unwrap()
}

/// The machine that is all that waits.
fn the_waiting(control: &Control) -> Value {
    until("one machine that waits", PATIENCE, || {
        let waiting = listed(control, &["nodes", "waiting"]);
        match waiting.as_slice() {
            [one] => Ok(one.clone()),
            _ => Err(wrong(format!("{waiting:?}"))),
        }
    })
    .unwrap()
}

fn state(node: &Node) -> Value {
    node.status_json().unwrap()["BackendState"].clone()
}

/// Waits until the node is in that state and says those words about it.
fn wait_for(node: &Node, wanted: &str, words: &str) {
    let what = format!("{wanted} with {words:?}");
    until(&what, PATIENCE, || {
        let status = node.status_json()?;
        let said = status["Health"].to_string();
        if status["BackendState"] == wanted && said.contains(words) {
            return Ok(());
        }
        Err(wrong(format!("{} {said}", status["BackendState"])))
    })
    .unwrap();
}

/// `up` as a program of its own, which waits for a person.
fn up_in_background(node: &Node, arguments: &[&str]) -> Program {
    let socket = format!("--socket={}/node/s.sock", node.host().folder().display());
    let mut all = vec![socket, "up".to_owned()];
    all.extend(arguments.iter().map(|&argument| argument.to_owned()));
    Program::start(
        node.host(),
        "up",
        FilePath::new(&ours("warren").unwrap()),
        &all,
        &[],
    )
    .unwrap()
}

/// The machine that waits is let in, and everything is as it should be.
fn approve(control: &Control) {
    let id = the_waiting(control)["id"].as_str().unwrap().to_owned();
    control
        .cli(&["nodes", "approve", &id, "--user", "default"])
        .unwrap();
}

fn no_machine_waits(control: &Control) {
    let waiting = listed(control, &["nodes", "waiting"]);
    assert!(waiting.is_empty(), "{waiting:?}");
}

#[test]
fn a_forced_login_uses_the_key_it_came_with() {
    let Some(mut lab) = lab() else { return };
    let run = |lab: &mut Lab| -> Option<()> {
        let (control, alice) = one_node(lab)?;
        let before = the_node(&control);
        // From both command lines: other people's asks in two requests.
        for foreign in [None, warren_lab::foreign("tailscale")] {
            let key = format!("--auth-key={}", single(&control));
            let mut arguments = vec!["up", "--force-reauth", "--hostname=alice", &key];
            arguments.push("--timeout=40s");
            let server = format!("--login-server={}", control.url());
            let old_key = the_node(&control)["node_key"].clone();
            match &foreign {
                None => drop(alice.cli(&arguments).unwrap()),
                Some(program) => {
                    let socket =
                        format!("--socket={}/node/s.sock", alice.host().folder().display());
                    let mut all = vec![socket.as_str()];
                    all.extend(arguments);
                    all.push(&server);
                    let program = program.display().to_string();
                    alice.host().run(&program, &all).unwrap();
                }
            }
            let after = the_node(&control);
            assert_eq!(after["id"], before["id"]);
            assert_ne!(after["node_key"], old_key, "{foreign:?}");
            assert_eq!(after["machine_key"], before["machine_key"]);
            let keys = listed(&control, &["preauthkeys", "list"]);
            let used = keys.iter().filter(|key| key["used"] == true).count();
            let last = keys.iter().max_by_key(|key| key["id"].as_i64()).unwrap();
            assert!(last["used"] == true, "{used} used: {keys:?}");
            no_machine_waits(&control);
        }
        Some(())
    };
    run(&mut lab);
}

#[test]
fn a_node_deleted_at_the_server_says_so_and_comes_back_as_one() {
    let Some(mut lab) = lab() else { return };
    let run = |lab: &mut Lab| -> Option<()> {
        let (control, alice) = one_node(lab)?;
        let gone = the_node(&control);
        control.cli(&["nodes", "delete", "alice"]).unwrap();
        wait_for(&alice, "Running", "does not know this machine");
        let said = alice.cli(&["status"]).unwrap();
        assert!(said.contains("warren up --force-reauth"), "{said}");
        no_machine_waits(&control);

        // With a key.
        let key = single(&control);
        let mut arguments = vec!["up", "--force-reauth", "--hostname=alice", "--timeout=40s"];
        let flag = format!("--auth-key={key}");
        arguments.push(&flag);
        alice.cli(&arguments).unwrap();
        let back = the_node(&control);
        assert_ne!(back["node_key"], gone["node_key"]);
        assert_eq!(back["machine_key"], gone["machine_key"]);
        assert_eq!(state(&alice), "Running");

        // With a person: one machine waits, and one node comes of it.
        control.cli(&["nodes", "delete", "alice"]).unwrap();
        wait_for(&alice, "Running", "does not know this machine");
        let mut up = up_in_background(&alice, &["--force-reauth", "--hostname=alice"]);
        approve(&control);
        the_node(&control);
        wait_for(&alice, "Running", "");
        no_machine_waits(&control);
        until("up to end", PATIENCE, || match up.check_alive() {
            Ok(()) => Err(wrong("it runs")),
            Err(_) => Ok(()),
        })
        .unwrap();

        // Deleted while it was away: known at the next start.
        let mut alice = alice;
        alice.daemon().stop().unwrap();
        control.cli(&["nodes", "delete", "alice"]).unwrap();
        alice.restart().unwrap();
        wait_for(&alice, "NeedsLogin", "wants this machine to log in");
        approve(&control);
        wait_for(&alice, "Running", "");
        the_node(&control);
        no_machine_waits(&control);
        Some(())
    };
    run(&mut lab);
}

#[test]
fn an_expired_login_is_seen_and_renewed() {
    let Some(mut lab) = lab() else { return };
    let run = |lab: &mut Lab| -> Option<()> {
        let (control, mut alice) = one_node(lab)?;
        let before = the_node(&control);
        alice.daemon().stop().unwrap();
        control.cli(&["nodes", "expire", "alice"]).unwrap();
        alice.restart().unwrap();
        // Its kept netmap knows nothing of it; the server does.
        wait_for(&alice, "NeedsLogin", "");
        the_waiting(&control);
        let key = format!("--auth-key={}", single(&control));
        let arguments = [
            "up",
            "--force-reauth",
            "--hostname=alice",
            "--timeout=40s",
            &key,
        ];
        alice.cli(&arguments).unwrap();
        let after = the_node(&control);
        assert_eq!(after["id"], before["id"]);
        assert_eq!(after["expired"], false);
        no_machine_waits(&control);
        Some(())
    };
    run(&mut lab);
}

#[test]
fn a_refusal_that_passes_is_got_over() {
    let Some(mut lab) = lab() else { return };
    let run = |lab: &mut Lab| -> Option<()> {
        let (control, alice) = one_node(lab)?;
        // A copy of its state with another machine key: the server refuses it
        // as long as the first one is there.
        let host = lab.host("bob", Place::Open).unwrap();
        let from = alice.host().folder().join("node/warren.state");
        let text = std::fs::read_to_string(&from).unwrap();
        let mut copy: Value = serde_json::from_str(&text).unwrap();
        let other = Node::start(&lab.host("carol", Place::Open).unwrap(), Kind::Warren).unwrap();
        let others = other.host().folder().join("node/warren.state");
        let others: Value =
            serde_json::from_str(&std::fs::read_to_string(others).unwrap()).unwrap();
        copy["_machinekey"] = others["_machinekey"].clone();
        let folder = host.folder().join("node");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("warren.state"), copy.to_string()).unwrap();
        let bob = Node::start(&host, Kind::Warren).unwrap();
        wait_for(&bob, "Starting", "different machine key");
        control.cli(&["nodes", "delete", "alice"]).unwrap();
        // No second `up` was run: the node retried by itself.
        wait_for(&bob, "NeedsLogin", "wants this machine to log in");
        Some(())
    };
    run(&mut lab);
}

//! Disks that are full, and files that are none.

use serde_json::Value;
use warren_lab::{Control, Host, Kind, LabError, Node, PATIENCE, Place, Program, ours, until};

use crate::refusals::{ends, lab_with_control, named, nodes, refused};
use warren_lab::scenario::{installed, lab, traffic_flows};

/// A folder of the host that holds no more than `size`.
fn small_disk(host: &Host, folder: &str, size: &str) -> String {
    let path = host.folder().join(folder);
    std::fs::create_dir_all(&path).unwrap();
    let path = path.display().to_string();
    let size = format!("size={size}");
    host.run("mount", &["-t", "tmpfs", "-o", &size, "none", &path])
        .unwrap();
    path
}

fn fill(host: &Host, folder: &str) {
    // The write ends with the disk, which is what it is for.
    let script = format!("head -c 100M /dev/zero > {folder}/filler || true");
    host.run("sh", &["-c", &script]).unwrap();
}

fn free(host: &Host, folder: &str) {
    host.run("rm", &[&format!("{folder}/filler")]).unwrap();
}

#[test]
fn a_node_on_a_full_disk_says_so_and_loses_nothing() {
    let Some((mut lab, control)) = lab_with_control() else {
        return;
    };
    let key = control.auth_key("default").unwrap();
    let host = lab.host("alice", Place::Open).unwrap();
    let disk = small_disk(&host, "node", "128k");
    let mut alice = Node::start(&host, Kind::Warren).unwrap();
    fill(&host, &disk);
    let text = refused(
        alice.up(control.url(), &key, &[]),
        &["warren.state", "No space left"],
    );
    assert!(!text.contains("not connected after"), "{text}");
    assert_eq!(nodes(&control), Vec::<Value>::new());
    free(&host, &disk);
    alice.up(control.url(), &key, &[]).unwrap();
    let addresses = alice.addresses().unwrap();

    let bob = Node::start(&lab.host("bob", Place::Open).unwrap(), Kind::Warren).unwrap();
    bob.up(control.url(), &key, &[]).unwrap();
    fill(&host, &disk);
    refused(
        alice.cli(&["set", "--hostname=other"]),
        &["warren.state", "No space left"],
    );
    // It goes on with what it has, and so does the next daemon.
    traffic_flows(&alice, &bob);
    alice.daemon().kill().unwrap();
    alice.restart().unwrap();
    assert_eq!(
        until("its addresses", PATIENCE, || alice.addresses()).unwrap(),
        addresses
    );
    traffic_flows(&alice, &bob);
    free(&host, &disk);
    alice.cli(&["set", "--hostname=other"]).unwrap();
    named(&bob, "other");
    assert_eq!(nodes(&control).len(), 2);
}

#[test]
fn a_server_on_a_full_disk_says_so_and_catches_up() {
    let Some(mut lab) = lab() else { return };
    if installed(Kind::Warren).is_none() {
        return;
    }
    let host = lab.host("control", Place::Open).unwrap();
    let disk = small_disk(&host, "control", "512k");
    let mut control = Control::start(&host, None).unwrap();
    let key = control.auth_key("default").unwrap();
    let alice = Node::start(&lab.host("alice", Place::Open).unwrap(), Kind::Warren).unwrap();
    alice.up(control.url(), &key, &[]).unwrap();
    let bob = Node::start(&lab.host("bob", Place::Open).unwrap(), Kind::Warren).unwrap();
    fill(&host, &disk);
    std::thread::scope(|scope| {
        let up = scope.spawn(|| bob.up(control.url(), &key, &[]));
        until("the server to notice", PATIENCE, || {
            match control.cli(&["health"]) {
                Err(sick) => Ok(sick.to_string()),
                Ok(text) => Err(text),
            }
        })
        .unwrap();
        refused(
            control.cli(&["users", "create", "carol"]),
            &["control.db", "free some space"],
        );
        until("the node to report it", PATIENCE, || {
            let health = bob.status_json()?["Health"].to_string();
            if health.contains("cannot save its state") {
                Ok(())
            } else {
                Err::<_, LabError>(std::io::Error::other(health).into())
            }
        })
        .unwrap();
        free(&host, &disk);
        up.join().unwrap().unwrap();
    });
    until("the server to be well", PATIENCE, || {
        control.cli(&["health"])
    })
    .unwrap();
    traffic_flows(&alice, &bob);
    let before = nodes(&control);
    assert_eq!(before.len(), 2);
    control.program().kill().unwrap();
    control.restart().unwrap();
    let keys = |nodes: &[Value]| -> Vec<Value> {
        nodes.iter().map(|node| node["node_key"].clone()).collect()
    };
    assert_eq!(keys(&nodes(&control)), keys(&before));
}

#[test]
fn a_first_start_on_a_full_disk_says_so_and_the_next_one_works() {
    let Some(mut lab) = lab() else { return };
    if installed(Kind::Warren).is_none() {
        return;
    }
    let host = lab.host("full", Place::Open).unwrap();
    let ip = host.address();
    let socket = format!("--socket={}", host.folder().join("n.sock").display());
    let (listen, stun) = (
        format!("--listen={ip}:8080"),
        format!("--stun-listen={ip}:3478"),
    );
    let name = format!("--hostname={ip}");
    let programs: [(&str, &str, Vec<&str>); 3] = [
        ("warren", "n", vec!["daemon", &socket, "--tun=warren0"]),
        ("warren-control", "c", vec!["serve", &listen, &stun]),
        ("warren-relay", "r", vec!["serve", &listen, &stun, &name]),
    ];
    for (program, folder, mut arguments) in programs {
        let disk = small_disk(&host, folder, "512k");
        let state = format!("--state-dir={disk}");
        arguments.push(&state);
        fill(&host, &disk);
        let text = ends(&host, program, &arguments, &[&disk]);
        assert!(
            text.contains("No space left") || text.contains("free some space"),
            "{text}"
        );
        free(&host, &disk);
        let arguments: Vec<String> = arguments.iter().map(|&word| word.to_owned()).collect();
        let mut started =
            Program::start(&host, program, &ours(program).unwrap(), &arguments, &[]).unwrap();
        let ready = match program {
            "warren" => "ready",
            "warren-control" => "Add a machine",
            _ => "Entry for the DERP map",
        };
        until("it to be ready", PATIENCE, || {
            started.check_alive()?;
            match started.log() {
                log if log.contains(ready) => Ok(()),
                log => Err::<_, LabError>(std::io::Error::other(log).into()),
            }
        })
        .unwrap();
    }
}

#[test]
fn a_server_with_a_broken_file_does_not_start_and_leaves_it_alone() {
    let Some(mut lab) = lab() else { return };
    if installed(Kind::Warren).is_none() {
        return;
    }
    let host = lab.host("broken", Place::Open).unwrap();
    let listen = format!("--listen={}:8080", host.address());
    let folder = host.folder().to_owned();
    let state = format!("--state-dir={}", folder.join("state").display());
    let file = |name: &str, text: &str| {
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let policy = file("policy", "{\n  \"acls\": [}\n}");
    let map = file("map", "{\"Regions\": 5}");
    let garbage = file("garbage", "no certificate");
    let serve = |more: &[&str], words: &[&str]| {
        let mut arguments = vec!["serve", &state, &listen, "--stun-listen=off"];
        arguments.extend(more);
        ends(&host, "warren-control", &arguments, words)
    };
    serve(&["--policy", &policy], &[&policy, "2:12"]);
    serve(&["--policy", "missing"], &["missing", "No such file"]);
    serve(&["--derp-map", &map], &[&map]);
    serve(
        &["--tls-cert", &garbage, "--tls-key", &garbage],
        &[&garbage],
    );
    assert!(
        !folder.join("state/control.db").exists(),
        "nothing is made before all is well"
    );

    std::fs::create_dir_all(folder.join("state")).unwrap();
    for (name, words) in [
        ("noise.key", ["noise.key", "backup"]),
        ("control.db", ["control.db", "not a database"]),
    ] {
        let path = folder.join("state").join(name);
        let text = "not what it should be, and long enough to be looked at ".repeat(20);
        std::fs::write(&path, &text).unwrap();
        serve(&[], &words);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        std::fs::remove_file(&path).unwrap();
    }
    let daemon_state = folder.join("node");
    std::fs::create_dir_all(&daemon_state).unwrap();
    std::fs::write(daemon_state.join("warren.state"), "{broken").unwrap();
    let state = format!("--state-dir={}", daemon_state.display());
    let socket = format!("--socket={}", folder.join("n.sock").display());
    ends(
        &host,
        "warren",
        &["daemon", &state, &socket],
        &["warren.state", "damaged", "backup"],
    );
    let kept = std::fs::read_to_string(daemon_state.join("warren.state")).unwrap();
    assert_eq!(kept, "{broken");
}

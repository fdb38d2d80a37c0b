//! The simulator runs the node core that the daemon runs, and has no second copy of
//! what the core decides.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use warren_node_core::node::NodeState;
use warren_sim::{NodeIndex, Sim, Uplink, secs};

#[test]
fn logins_sessions_relay_links_and_files_are_those_of_the_node_core() {
    let mut sim = Sim::new(1);
    let relay = sim.relay("ams");
    let alice = sim.node("alice", Uplink::Easy);
    sim.node("bob", Uplink::Easy);
    sim.run_until_joined();
    let core = |sim: &Sim, node: NodeIndex| {
        let core = sim.core(node);
        (core.state(), core.is_connected(), core.open_relay_links())
    };
    assert_eq!(core(&sim, alice), (Some(NodeState::Running), true, 1));
    assert_eq!(sim.relay_clients(relay), 2);
    let key = sim.core(alice).node_key().public();
    let account = sim.core(alice).account().unwrap();
    assert_eq!(account.node_key.public(), key);
    assert_eq!(sim.engine(alice).node_key(), key);

    // Killed while server and relay are away: login and netmap come from the disk.
    sim.stop_control();
    sim.stop_relay(relay);
    sim.restart(alice);
    sim.run_for(secs(1));
    assert_eq!(core(&sim, alice), (Some(NodeState::Running), false, 0));
    assert!(sim.core(alice).netmap_is_cached());
    assert_eq!(sim.core(alice).node_key().public(), key);
    let problems = sim.core(alice).login_problems();
    assert!(
        problems[0].starts_with("no connection to the coordination server"),
        "{problems:?}"
    );

    sim.start_control();
    sim.start_relay(relay);
    sim.wait_for(secs(30), |sim| {
        core(sim, alice).1 && core(sim, alice).2 == 1
    })
    .unwrap();
    assert!(sim.core(alice).login_problems().is_empty());

    sim.renew_key(alice);
    sim.run_for(secs(5));
    assert_eq!(core(&sim, alice), (Some(NodeState::Running), true, 1));
    let account = sim.core(alice).account().unwrap();
    assert_ne!(account.node_key.public(), key);
    let replaced = account.old_node_key.as_ref().map(|old| old.public());
    assert_eq!(replaced, Some(key));
}

/// Words that only an own implementation of something would need.
const OWN_IMPLEMENTATION: [(&str, &str); 15] = [
    ("RegisterAuth", "it registers"),
    ("RegisterRequest {", "it registers"),
    ("MapRequest {", "it asks for maps"),
    ("ControlSession", "it drives the session with the server"),
    ("apply_map", "it drives the engine"),
    ("begin_map_stream", "it drives the engine"),
    ("relay_connected", "it drives the engine"),
    ("Engine::new", "it drives the engine"),
    ("Handshakes::new", "it drives the handshakes"),
    ("Paths::new", "it drives path finding"),
    ("Backoff", "it tries again"),
    ("backoff", "it tries again"),
    ("retry_at", "it tries again"),
    ("failures", "it tries again"),
    ("VecDeque<(NodePublic", "it keeps packets for relay links"),
];

fn sources(folder: &Path, out: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, out);
        } else {
            out.push(path);
        }
    }
}

/// The reasons why a source file has an own implementation, with their lines.
fn own_implementations(text: &str) -> Vec<String> {
    let is_comment = |line: &str| line.trim_start().starts_with("//");
    let code = text.lines().filter(|line| !is_comment(line));
    code.flat_map(|line| {
        let words = OWN_IMPLEMENTATION.iter();
        let found = words.filter(move |(word, _)| line.contains(word));
        found.map(move |(_, reason)| format!("{reason}: {}", line.trim()))
    })
    .collect()
}

#[test]
fn no_source_file_implements_registration_retries_or_relay_links() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&folder, &mut files);
    assert!(files.len() > 15, "{files:?}");
    let mut wrong = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let found = own_implementations(&text).into_iter();
        wrong.extend(found.map(|line| format!("{}: {line}", file.display())));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    // The search finds what it is for.
    let found = own_implementations("// Backoff\nlet session = ControlSession::new(now);\n");
    assert_eq!(found.len(), 1, "{found:?}");
    let manifest = std::fs::read_to_string(folder.join("../Cargo.toml")).unwrap();
    assert!(!manifest.contains("warren-timers"), "it tries again");
}

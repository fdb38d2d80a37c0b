//! The server is killed at every step of its administration: after a change was
//! confirmed, and while one is being written. A confirmed change survives; one that was
//! not confirmed is there as a whole or not at all.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::time::SystemTime;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use warren_lab::scenario::{installed, lab};
use warren_lab::{Control, Host, Kind, LabError, Node, PATIENCE, Place, until};

/// Changes of an administrator, in an order in which each is possible. `POLICY` is
/// the path of a policy file; the nodes `alice` and `bob` are there from the start.
/// One of them stays: without nodes, a start makes a key for the first one.
const STEPS: &[&str] = &[
    "users create ann",
    "users create bob",
    "users set-role ann admin",
    "preauthkeys create --user ann --reusable",
    "users rename bob carol",
    "preauthkeys create --user carol --ephemeral",
    "policy set POLICY --yes",
    "nodes rename alice anna",
    "nodes tag anna tag:db",
    "policy set --allow-all --yes",
    "nodes assign anna --user ann",
    "nodes approve-routes anna 10.7.0.0/16",
    "users delete carol",
    "nodes expire anna",
    "nodes expire anna --never",
    "nodes delete anna",
];

const POLICY: &str = r#"{
    "tagOwners": {"tag:db": ["ann@"]},
    "acls": [{"action": "accept", "src": ["*"], "dst": ["tag:db:22"]}],
}"#;

/// A server with two nodes.
struct Site {
    control: Control,
    policy: String,
    _nodes: [Node; 2],
}

impl Site {
    fn new(lab: &mut warren_lab::Lab) -> Option<Self> {
        installed(Kind::Warren)?;
        let host = lab.host("control", Place::Open).unwrap();
        let policy = host.folder().join("policy.hujson");
        std::fs::write(&policy, POLICY).unwrap();
        let control = Control::start(&host, None).unwrap();
        let key = control.auth_key("default").unwrap();
        let nodes = ["alice", "bob"].map(|name| {
            let node = Node::start(&lab.host(name, Place::Open).unwrap(), Kind::Warren).unwrap();
            node.up(control.url(), &key, &[]).unwrap();
            node
        });
        Some(Self {
            control,
            policy: policy.display().to_string(),
            _nodes: nodes,
        })
    }

    fn words<'a>(&'a self, step: &'a str) -> Vec<&'a str> {
        let words = step.split(' ');
        words
            .map(|word| if word == "POLICY" { &self.policy } else { word })
            .collect()
    }

    /// Everything that administrators change, without what nodes report of
    /// themselves.
    fn records(&self) -> Value {
        let list = |what: &[&str]| self.control.json(what).unwrap();
        let mut nodes = list(&["nodes", "list"]);
        for node in nodes.as_array_mut().unwrap() {
            let reported = [
                "online",
                "last_seen",
                "endpoints",
                "home_relay",
                "disco_key",
                "router_state",
            ];
            node.as_object_mut()
                .unwrap()
                .retain(|name, _| !reported.contains(&name.as_str()));
        }
        json!({
            "users": list(&["users", "list"]),
            "keys": list(&["preauthkeys", "list"]),
            "nodes": nodes,
            "policies": list(&["policy", "history"]),
        })
    }

    fn kill_and_restart(&mut self) {
        self.control.program().kill().unwrap();
        self.control.restart().unwrap();
    }

    /// Runs a step and kills the server as soon as it writes. Returns whether the
    /// step was confirmed.
    fn kill_within(&mut self, step: &str) -> bool {
        let server = Pid::from_raw(self.control.program().pid().try_into().unwrap()).unwrap();
        let log = write_ahead_log(self.control.host());
        let before = changed(&log);
        let confirmed = std::thread::scope(|scope| {
            let (control, words) = (&self.control, self.words(step));
            let running = scope.spawn(move || control.cli(&words).is_ok());
            until("a write or the end of the step", PATIENCE, || {
                let begun = changed(&log) != before || running.is_finished();
                begun.then_some(()).ok_or("no write yet")
            })
            .unwrap();
            kill_process(server, Signal::KILL).unwrap();
            running.join().unwrap()
        });
        self.kill_and_restart();
        confirmed
    }
}

fn write_ahead_log(host: &Host) -> std::path::PathBuf {
    host.folder().join("control/control.db-wal")
}

/// The size and the time of the last write of a file.
fn changed(file: &Path) -> Option<(u64, SystemTime)> {
    let found = std::fs::metadata(file).ok()?;
    Some((found.len(), found.modified().ok()?))
}

#[test]
fn confirmed_change_survives_a_kill_after_every_step() {
    let Some(mut lab) = lab() else { return };
    let Some(mut site) = Site::new(&mut lab) else {
        return;
    };
    for step in STEPS {
        let before = site.records();
        site.control.cli(&site.words(step)).unwrap();
        let after = site.records();
        assert_ne!(before, after, "{step} changes something");
        site.kill_and_restart();
        assert_eq!(site.records(), after, "after {step}");
    }
}

#[test]
fn kill_within_a_step_leaves_all_of_it_or_nothing() -> Result<(), LabError> {
    let Some(mut lab) = lab() else { return Ok(()) };
    let Some(mut site) = Site::new(&mut lab) else {
        return Ok(());
    };
    for step in STEPS {
        let before = site.records();
        let confirmed = site.kill_within(step);
        let done = site.records() != before;
        assert!(done || !confirmed, "{step} was confirmed and is lost");
        if done {
            // A half of the step would make the whole of it impossible or
            // another one; the steps that follow need it too.
            continue;
        }
        site.control.cli(&site.words(step))?;
        assert_ne!(site.records(), before, "{step} is possible after the kill");
    }
    Ok(())
}

//! Helpers of the bad-input tests: programs that have to end with a reason,
//! and what a server and a kernel know.

use std::path::Path as FilePath;

use serde_json::Value;
use warren_lab::{Control, Host, Kind, Lab, LabError, Node, PATIENCE, Place, Program, ours, until};

use warren_lab::scenario::{installed, lab};

/// The command ended with exit code 1 and said all of `words`.
#[track_caller]
pub fn refused<T: std::fmt::Debug>(result: Result<T, LabError>, words: &[&str]) -> String {
    let text = result.expect_err("this must not work").to_string();
    assert!(text.contains("exit status: 1"), "exit code 1: {text}");
    for word in words {
        assert!(text.contains(word), "{word:?} is missing in: {text}");
    }
    text
}

/// Starts a program that should end by itself with exit code 1; what it said.
#[track_caller]
pub fn ends(host: &Host, name: &str, arguments: &[&str], words: &[&str]) -> String {
    ends_as(
        host,
        &ours(name).unwrap().display().to_string(),
        arguments,
        words,
    )
}

/// The same for another program, such as one that starts ours.
#[track_caller]
pub fn ends_as(host: &Host, binary: &str, arguments: &[&str], words: &[&str]) -> String {
    let arguments: Vec<String> = arguments.iter().map(|&word| word.to_owned()).collect();
    let log = format!("refused-{}", arguments.len());
    let mut program = Program::start(host, &log, FilePath::new(binary), &arguments, &[]).unwrap();
    let text = until("the program to give up", PATIENCE, || {
        match program.check_alive() {
            Err(ended) => Ok(ended.to_string()),
            Ok(()) => Err(program.log()),
        }
    })
    .unwrap();
    refused::<()>(Err(std::io::Error::other(text).into()), words)
}

/// A lab in which a control server with its embedded relay runs on an open host.
pub fn lab_with_control() -> Option<(Lab, Control)> {
    let mut lab = lab()?;
    installed(Kind::Warren)?;
    let host = lab.host("control", Place::Open).unwrap();
    let control = Control::start(&host, None).unwrap();
    Some((lab, control))
}

/// Its nodes, as it lists them.
pub fn nodes(control: &Control) -> Vec<Value> {
    let nodes = control.json(&["nodes", "list"]).unwrap();
    nodes.as_array().unwrap().clone()
}

/// Creates a pre-auth key with these flags and returns the server's answer.
pub fn create_key(control: &Control, more: &[&str]) -> Value {
    let mut arguments = vec!["preauthkeys", "create", "--user", "default"];
    arguments.extend(more);
    control.json(&arguments).unwrap()
}

/// The node's interface and rules as the kernel has them.
pub fn traces(host: &Host) -> String {
    let mut all = String::new();
    for arguments in [
        ["rule", "list"].as_slice(),
        &["-6", "rule", "list"],
        &["route", "show", "table", "all"],
        &["-brief", "link"],
    ] {
        all += &host.run("ip", arguments).unwrap();
    }
    all += &host.run("nft", &["list", "ruleset"]).unwrap();
    all + &host.run("cat", &["/etc/resolv.conf"]).unwrap()
}

/// How many nodes are online.
pub fn online(control: &Control) -> Result<usize, LabError> {
    let nodes = control.json(&["nodes", "list"])?;
    let nodes = nodes.as_array().into_iter().flatten();
    Ok(nodes.filter(|node| node["online"] == true).count())
}

/// Waits until so many are.
pub fn wait_online(control: &Control, count: usize) {
    until("the nodes to be online", PATIENCE, || {
        match online(control)? {
            there if there == count => Ok(()),
            there => Err::<_, LabError>(std::io::Error::other(format!("{there}")).into()),
        }
    })
    .unwrap();
}

/// Waits until a node sees a peer of that name.
pub fn named(node: &Node, peer: &str) {
    until(
        &format!("{} to see {peer}", node.host().name()),
        PATIENCE,
        || node.peer(peer),
    )
    .unwrap();
}

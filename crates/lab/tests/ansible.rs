//! A play that installs the node and lets it join, run twice.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use warren_lab::scenario::{Tailnet, lab, skip};
use warren_lab::{Host, PATIENCE, Place, Program, RelayKind, ours, until, which};

/// Runs a play on this host and returns how many tasks changed something.
fn play(host: &Host, name: &str, variables: &serde_json::Value) -> u32 {
    let file = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/ansible")
        .join(name);
    let home = format!("ANSIBLE_HOME={}", host.folder().join("ansible").display());
    let arguments = [
        home.as_str(),
        "LC_ALL=C.UTF-8",
        "ANSIBLE_NOCOLOR=1",
        "ansible-playbook",
        "--inventory=localhost,",
        "--connection=local",
        "--extra-vars",
        &variables.to_string(),
        &file.display().to_string(),
    ];
    let output = host.run("env", &arguments).unwrap();
    let changed = output.split_once("changed=").map(|(_, rest)| rest);
    let changed = changed.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    changed.unwrap_or_else(|| panic!("no recap: {output}"))
}

#[test]
fn a_play_installs_and_joins_and_changes_nothing_the_second_time() {
    if which("ansible-playbook").is_none() {
        return skip("ansible-playbook is not installed (package ansible-core)").unwrap_or(());
    }
    let Some(mut lab) = lab() else { return };
    let Some(tailnet) = Tailnet::new(&mut lab, RelayKind::Warren) else {
        return;
    };
    let host = lab.host("box", Place::Open).unwrap();
    let folder = host.folder().join("bin");
    std::fs::create_dir_all(&folder).unwrap();
    let socket = host.folder().join("s.sock").display().to_string();
    let variables = serde_json::json!({
        "program": ours("warren").unwrap(),
        "folder": folder,
        "socket": socket,
        "key": tailnet.key,
        "server": tailnet.control.url(),
        "hostname": "web",
    });
    assert_eq!(play(&host, "install.yml", &variables), 2);
    assert_eq!(play(&host, "install.yml", &variables), 0);
    let arguments = [
        format!("--statedir={}", host.folder().join("state").display()),
        format!("--socket={socket}"),
        "--tun=userspace-networking".to_owned(),
    ];
    let daemon = folder.join("tailscaled");
    let _daemon = Program::start(&host, "tailscaled", &daemon, &arguments, &[]).unwrap();
    until("the socket", PATIENCE, || std::fs::metadata(&socket)).unwrap();
    assert_eq!(play(&host, "join.yml", &variables), 1);
    let node = tailnet.control.node_id("web").unwrap();
    assert_eq!(play(&host, "join.yml", &variables), 0);
    assert_eq!(tailnet.control.node_id("web").unwrap(), node);
    let nodes = tailnet.control.json(&["nodes", "list"]).unwrap();
    assert_eq!(nodes.as_array().unwrap().len(), 1, "{nodes}");
}

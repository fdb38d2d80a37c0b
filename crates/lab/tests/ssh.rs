//! SSH through the tailnet: our server with OpenSSH's programs and the official client, and
//! `warren ssh` with the official server.
#![allow(clippy::unwrap_used)]

use warren_lab::scenario::{Tailnet, address, installed, lab, skip};
use warren_lab::{Host, Kind, Lab, LabError, Node, PATIENCE, Place, RelayKind, until, which};

/// Which rule lets the nodes of ann log in to each other.
fn set_rule(tailnet: &Tailnet, lab: &Lab, rule: &str) {
    let policy =
        format!(r#"{{"grants": [{{"src": ["*"], "dst": ["*"], "ip": ["*"]}}], "ssh": [{rule}]}}"#);
    let file = lab.folder().join("policy.hujson");
    std::fs::write(&file, policy).unwrap();
    tailnet
        .control
        .cli(&["policy", "set", &file.display().to_string()])
        .unwrap();
}

const ACCEPT_ROOT: &str =
    r#"{"action": "accept", "src": ["ann@"], "dst": ["autogroup:self"], "users": ["root"]}"#;
const CHECK_ROOT: &str =
    r#"{"action": "check", "src": ["ann@"], "dst": ["autogroup:self"], "users": ["root"]}"#;
const ACCEPT_OTHERS: &str = r#"{"action": "accept", "src": ["ann@"], "dst": ["autogroup:self"], "users": ["autogroup:nonroot"]}"#;

/// Where a node that serves has its end of the tunnel.
#[derive(Clone, Copy)]
enum Tunnel {
    Interface,
    Userspace,
}

/// A tailnet with alice, who serves SSH, and bob.
fn pair(lab: &mut Lab, alice: Kind, tunnel: Tunnel, bob: Kind) -> Option<(Tailnet, Node, Node)> {
    installed(Kind::Warren)?;
    installed(alice)?;
    installed(bob)?;
    if which("ssh").is_none() {
        return skip("ssh is not installed");
    }
    let tailnet = Tailnet::new(lab, RelayKind::Warren)?;
    set_rule(&tailnet, lab, ACCEPT_ROOT);
    let host = lab.host("alice", Place::Open).unwrap();
    let alice = match tunnel {
        Tunnel::Interface => Node::start(&host, alice),
        Tunnel::Userspace => Node::start_userspace(&host, alice, &[]),
    }
    .unwrap();
    let more: &[&str] = match alice.kind() {
        Kind::Warren => &["--ssh"],
        _ => &["--ssh", "--accept-dns=false"],
    };
    alice.up(tailnet.control.url(), &tailnet.key, more).unwrap();
    let host = lab.host("bob", Place::Open).unwrap();
    let bob = tailnet.join(&host, bob);
    Some((tailnet, alice, bob))
}

/// Options of OpenSSH's programs that take any host key.
const ANY_KEY: [&str; 8] = [
    "-F",
    "none",
    "-o",
    "StrictHostKeyChecking=no",
    "-o",
    "UserKnownHostsFile=/dev/null",
    "-o",
    "BatchMode=yes",
];

fn ssh(host: &Host, arguments: &[&str]) -> Result<String, LabError> {
    host.run("ssh", &[&ANY_KEY[..], arguments].concat())
}

/// The first login waits for the netmap and the path.
#[track_caller]
fn logs_in(bob: &Node, target: &str) {
    let text = until("a login", PATIENCE, || {
        ssh(
            bob.host(),
            &["-o", "ConnectTimeout=5", target, "echo in; id -u"],
        )
    });
    assert_eq!(text.unwrap(), "in\n0\n");
}

fn serves_openssh(tunnel: Tunnel) {
    let Some(mut lab) = lab() else { return };
    let Some((tailnet, alice, bob)) = pair(&mut lab, Kind::Warren, tunnel, Kind::Warren) else {
        return;
    };
    for v6 in [false, true] {
        logs_in(&bob, &format!("root@{}", address(&alice, v6)));
    }
    let to = address(&alice, false).to_string();
    let root = format!("root@{to}");
    // The status of the command, and a user whom no rule names.
    let failed = ssh(bob.host(), &[&root, "exit 7"]).unwrap_err().to_string();
    assert!(failed.contains('7'), "{failed}");
    let refused = ssh(bob.host(), &[&format!("daemon@{to}"), "true"]);
    let refused = refused.unwrap_err().to_string();
    assert!(
        refused.contains("does not let you log in to this node"),
        "{refused}"
    );
    // A terminal.
    let tty = ssh(bob.host(), &["-tt", &root, "test -t 0 && echo tty"]).unwrap();
    assert_eq!(tty.trim_end(), "tty");
    copies_files(&lab, bob.host(), &to);
    // With the keys that the network announces.
    let shown = bob.cli(&["ssh", "root@alice", "echo", "known"]).unwrap();
    assert_eq!(shown, "known\n");
    // Another policy.
    set_rule(&tailnet, &lab, ACCEPT_OTHERS);
    until("root is not let in any more", PATIENCE, || {
        match ssh(bob.host(), &[&root, "true"]) {
            Ok(_) => Err("let in"),
            Err(_) => Ok(()),
        }
    })
    .unwrap();
    alice.cli(&["set", "--ssh=false"]).unwrap();
    let off = ssh(bob.host(), &["-o", "ConnectTimeout=5", &root, "true"]);
    assert!(off.is_err());
}

/// Files arrive whole, both ways, with each of the programs that are installed.
fn copies_files(lab: &Lab, from: &Host, to: &str) {
    let folder = lab.folder().join("copied");
    std::fs::create_dir_all(&folder).unwrap();
    let source = folder.join("source");
    let content: Vec<u8> = (0..2_000_000_u32).flat_map(u32::to_le_bytes).collect();
    std::fs::write(&source, &content).unwrap();
    let path = |name: &str| folder.join(name).display().to_string();
    let remote = |name: &str| format!("root@[{to}]:{}", path(name));
    let rsh = format!("ssh {}", ANY_KEY.join(" "));
    let is_whole = |name: &str| std::fs::read(folder.join(name)).unwrap() == content;
    let scp = |flags: &[&str], from_path: &str, to_path: &str| {
        let arguments = [&ANY_KEY[..], flags, &[from_path, to_path]].concat();
        from.run("scp", &arguments).unwrap();
    };
    scp(&["-O"], &path("source"), &remote("scp"));
    scp(&["-O"], &remote("scp"), &path("scp.back"));
    assert!(is_whole("scp") && is_whole("scp.back"));
    if std::path::Path::new("/usr/lib/openssh/sftp-server").exists() {
        scp(&[], &path("source"), &remote("sftp"));
        scp(&[], &remote("sftp"), &path("sftp.back"));
        assert!(is_whole("sftp") && is_whole("sftp.back"));
    }
    if which("rsync").is_some() {
        let remote = |name: &str| format!("root@{to}:{}", path(name));
        for (a, b) in [
            (path("source"), remote("rsync")),
            (remote("rsync"), path("rsync.back")),
        ] {
            from.run("rsync", &["-e", &rsh, &a, &b]).unwrap();
        }
        assert!(is_whole("rsync") && is_whole("rsync.back"));
    }
}

#[test]
fn openssh_programs_use_our_server() {
    serves_openssh(Tunnel::Interface);
}

#[test]
fn openssh_programs_use_our_server_without_an_interface() {
    serves_openssh(Tunnel::Userspace);
}

#[test]
fn the_official_client_logs_in_to_our_server() {
    let Some(mut lab) = lab() else { return };
    let pair = pair(&mut lab, Kind::Warren, Tunnel::Interface, Kind::Tailscale);
    let Some((_tailnet, alice, bob)) = pair else {
        return;
    };
    logs_in(&bob, &format!("root@{}", address(&alice, false)));
    let shown = until("a login by name", PATIENCE, || {
        bob.cli(&["ssh", "root@alice", "echo", "in"])
    });
    assert_eq!(shown.unwrap(), "in\n");
}

#[test]
fn warren_ssh_logs_in_to_an_official_server() {
    let Some(mut lab) = lab() else { return };
    let pair = pair(&mut lab, Kind::Tailscale, Tunnel::Interface, Kind::Warren);
    let Some((_tailnet, _alice, bob)) = pair else {
        return;
    };
    let shown = until("a login by name", PATIENCE, || {
        bob.cli(&["ssh", "root@alice", "echo", "in"])
    });
    assert_eq!(shown.unwrap(), "in\n");
}

#[test]
fn a_check_waits_for_the_administrator() {
    let Some(mut lab) = lab() else { return };
    let pair = pair(&mut lab, Kind::Warren, Tunnel::Interface, Kind::Warren);
    let Some((tailnet, alice, bob)) = pair else {
        return;
    };
    let root = format!("root@{}", address(&alice, false));
    logs_in(&bob, &root);
    set_rule(&tailnet, &lab, CHECK_ROOT);
    let session = {
        let host = bob.host().clone();
        let root = root.clone();
        std::thread::spawn(move || ssh(&host, &[&root, "echo in"]))
    };
    let list = until("a session that waits", PATIENCE, || {
        let list = tailnet.control.json(&["ssh-checks", "list"])?;
        match list.as_array().and_then(|list| list.first()) {
            Some(first) => Ok(first.clone()),
            None => Err(LabError::from(std::io::Error::other(list.to_string()))),
        }
    })
    .unwrap();
    let id = list["id"].as_str().unwrap_or_else(|| panic!("{list}"));
    tailnet.control.cli(&["ssh-checks", "approve", id]).unwrap();
    assert_eq!(session.join().unwrap().unwrap(), "in\n");
}

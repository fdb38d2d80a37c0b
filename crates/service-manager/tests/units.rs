//! The units of our packages, as systemd reads them.

#![allow(clippy::unwrap_used)]

use std::io::Write as _;
use std::path::PathBuf;
use std::process::Command;

fn units() -> Vec<PathBuf> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../packaging/systemd");
    let entries = std::fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn systemd_finds_no_fault_in_our_units() {
    if Command::new("systemd-analyze")
        .arg("--version")
        .output()
        .is_err()
    {
        // Straight to the terminal: a test that does nothing must be seen.
        let text = "SKIPPED systemd_finds_no_fault_in_our_units: systemd-analyze is not installed";
        drop(writeln!(std::io::stderr().lock(), "{text}"));
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut verify = Command::new("systemd-analyze");
    verify.args(["verify", "--man=no"]);
    for unit in units() {
        // It looks for the programs of the units, which are not installed here.
        let text = std::fs::read_to_string(&unit).unwrap();
        let words = text.split_inclusive(['=', ' ', '\n']);
        let text: String = words
            .map(|word| match word.strip_prefix("/usr/bin/warren") {
                Some(rest) => format!("/bin/true{}", &rest[rest.len().saturating_sub(1)..]),
                None => word.to_owned(),
            })
            .collect();
        let copy = folder.path().join(unit.file_name().unwrap());
        std::fs::write(&copy, text).unwrap();
        verify.arg(copy);
    }
    let output = verify.output().unwrap();
    let found = String::from_utf8_lossy(&output.stderr);
    // Remarks about other units of this machine are not ours.
    let ours: Vec<&str> = found
        .lines()
        .filter(|line| line.contains("warren"))
        .collect();
    assert!(ours.is_empty(), "{found}");
}

#[test]
fn each_socket_unit_has_its_service_and_the_node_cleans_up() {
    let text = |unit: &PathBuf| std::fs::read_to_string(unit).unwrap();
    for socket in units() {
        if socket.extension().unwrap() == "socket" {
            assert!(socket.with_extension("service").exists(), "{socket:?}");
            assert!(text(&socket).contains("WantedBy=sockets.target"));
        }
    }
    let mut all = units().into_iter();
    let node = all.find(|unit| unit.ends_with("warren.service")).unwrap();
    assert!(
        text(&node)
            .contains("ExecStopPost=/usr/bin/warren daemon --state-dir=/var/lib/warren --cleanup")
    );
}

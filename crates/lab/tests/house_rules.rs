//! The rules of the house that a compiler does not check: who may depend on
//! whom, and what the rooms without IO may see of the world.
//!
//! When a test fails here, the question is not how to make it pass, but whether
//! the new arrow belongs into the map in ARCHITECTURE.md.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// The rows of the map, from the ground up. Arrows only go down.
const ROWS: &[(&str, &[&str])] = &[
    ("keys", &["keys"]),
    ("vocabulary", &["wire", "control-types", "timers"]),
    (
        "core",
        &[
            "control-client",
            "channel",
            "tunnel",
            "paths",
            "derp",
            "filter",
            "dns",
            "policy",
        ],
    ),
    ("packet path", &["dataplane"]),
    ("assembly", &["node-core", "control-core"]),
    ("shell", &["dial", "host"]),
    ("relay", &["relay"]),
    ("programs", &["node", "control"]),
    ("tests", &["sim", "lab"]),
    ("benchmarks", &["bench"]),
];

/// The last row in which nothing touches the world.
const LAST_ROW_WITHOUT_IO: &str = "assembly";

/// What the rooms without IO are built from: cryptography, formats, data
/// structures. Whoever adds a line should be able to say that the crate opens
/// nothing, starts nothing, and asks neither clock nor random generator.
const PURE: &[&str] = &[
    "aws-lc-rs",
    "blake2",
    "crc32fast",
    "data-encoding",
    "hickory-proto",
    "hmac",
    "ipnet",
    "jiff",
    "jsonc-parser",
    "poly1305",
    "prefix-trie",
    "rustc-hash",
    "salsa20",
    "serde",
    "serde_json",
    "sha2",
    "subtle",
    "thiserror",
    "zerocopy",
    "zeroize",
];

/// What must not come in through the back door either, as a dependency of a
/// dependency.
const WORLDLY: &[&str] = &[
    "async-io",
    "async-std",
    "hyper",
    "libsqlite3-sys",
    "mio",
    "netlink-sys",
    "openssl-sys",
    "polling",
    "rusqlite",
    "rustix",
    "rustls",
    "smol",
    "socket2",
    "tokio",
    "tracing-subscriber",
    "zbus",
];

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn cargo(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO"))
        .current_dir(workspace())
        .args(arguments)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "cargo {}: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

struct Room {
    name: String,
    description: String,
    folder: PathBuf,
    /// Rooms it depends on.
    rooms: BTreeSet<String>,
    /// Rooms that only its tests need.
    tested_with: BTreeSet<String>,
    /// What it depends on from outside, without what only its tests need.
    foreign: BTreeSet<String>,
}

fn rooms() -> BTreeMap<String, Room> {
    let metadata = cargo(&[
        "metadata",
        "--offline",
        "--no-deps",
        "--format-version",
        "1",
    ]);
    let metadata: Value = serde_json::from_str(&metadata).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let rooms: BTreeMap<_, _> = packages.iter().map(room).collect();
    assert!(rooms.len() >= 19, "only {} rooms were found", rooms.len());
    rooms
}

fn room(package: &Value) -> (String, Room) {
    let bare = |name: &str| name.strip_prefix("warren-").map(str::to_owned);
    let package_name = package["name"].as_str().unwrap();
    let name = bare(package_name).unwrap_or_else(|| panic!("{package_name} is no warren-room"));
    let manifest = Path::new(package["manifest_path"].as_str().unwrap());
    let mut room = Room {
        name: name.clone(),
        description: package["description"].as_str().unwrap_or("").to_owned(),
        folder: manifest.parent().unwrap().to_owned(),
        rooms: BTreeSet::new(),
        tested_with: BTreeSet::new(),
        foreign: BTreeSet::new(),
    };
    for dependency in package["dependencies"].as_array().unwrap() {
        let name = dependency["name"].as_str().unwrap();
        match bare(name) {
            Some(other) if dependency["kind"] == "dev" => room.tested_with.insert(other),
            Some(other) => room.rooms.insert(other),
            None if dependency["kind"] == "dev" => false,
            None => room.foreign.insert(name.to_owned()),
        };
    }
    (name, room)
}

fn row(name: &str) -> usize {
    ROWS.iter()
        .position(|(_, rooms)| rooms.contains(&name))
        .unwrap_or_else(|| panic!("{name} stands in no row: put it into ROWS and ARCHITECTURE.md"))
}

fn without_io() -> impl Iterator<Item = &'static str> {
    let last = ROWS
        .iter()
        .position(|(row, _)| *row == LAST_ROW_WITHOUT_IO)
        .unwrap();
    ROWS[..=last].iter().flat_map(|(_, rooms)| *rooms).copied()
}

#[test]
fn arrows_only_go_down() {
    let rooms = rooms();
    let mut wrong = Vec::new();
    for room in rooms.values() {
        for other in &room.rooms {
            if row(other) >= row(&room.name) {
                let (above, below) = (ROWS[row(other)].0, ROWS[row(&room.name)].0);
                wrong.push(format!(
                    "{} ({below}) depends on {other} ({above})",
                    room.name
                ));
            }
        }
        // Tests may also hold two rooms of one row against each other.
        for other in &room.tested_with {
            if row(other) > row(&room.name) {
                wrong.push(format!("{} is tested with {other} above it", room.name));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "arrows that go up or sideways: {wrong:#?}"
    );
    let known: BTreeSet<_> = ROWS.iter().flat_map(|(_, rooms)| *rooms).copied().collect();
    let there: BTreeSet<_> = rooms.keys().map(String::as_str).collect();
    assert_eq!(known, there, "ROWS and the workspace differ");
}

#[test]
fn rooms_without_io_are_built_from_pure_things() {
    let rooms = rooms();
    let mut wrong = Vec::new();
    for name in without_io() {
        for foreign in &rooms[name].foreign {
            if !PURE.contains(&foreign.as_str()) {
                wrong.push(format!("{name} depends on {foreign}"));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "not on the list of pure crates: {wrong:#?}"
    );
}

#[test]
fn no_runtime_comes_in_through_the_back_door() {
    let mut wrong = Vec::new();
    for name in without_io() {
        let tree = cargo(&[
            "tree",
            "--offline",
            "--package",
            &format!("warren-{name}"),
            "--edges",
            "normal",
            "--prefix",
            "none",
            "--format",
            "{p}",
        ]);
        let crates: BTreeSet<_> = tree
            .lines()
            .filter_map(|line| line.split(' ').next())
            .collect();
        assert!(crates.contains(format!("warren-{name}").as_str()), "{tree}");
        for found in WORLDLY.iter().filter(|worldly| crates.contains(**worldly)) {
            wrong.push(format!(
                "{name} reaches {found}; see: cargo tree -p warren-{name} -e normal -i {found}"
            ));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn rooms_without_io_refuse_clocks_files_and_sockets() {
    // What exactly is refused stands in clippy.toml.
    let refuses =
        "#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]";
    let rooms = rooms();
    for name in without_io() {
        let source = std::fs::read_to_string(rooms[name].folder.join("src/lib.rs")).unwrap();
        assert!(
            source.lines().any(|line| line == refuses),
            "{name}: its lib.rs lacks\n{refuses}"
        );
    }
}

#[test]
fn every_room_says_what_it_is() {
    for room in rooms().values() {
        assert!(
            room.description.len() > 20 && !room.description.ends_with('.'),
            "{}: the description in its Cargo.toml should be one line without full stop: {:?}",
            room.name,
            room.description
        );
        let source = std::fs::read_to_string(room.folder.join("src/lib.rs")).unwrap();
        assert!(
            source.starts_with("//! "),
            "{}: its lib.rs tells no story",
            room.name
        );
    }
}

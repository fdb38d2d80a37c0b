//! Rules about the workspace that the compiler does not check: which crate may
//! depend on which, and what the crates without IO may use.
//!
//! When a test fails here, do not ask how to make it pass. Ask whether the new
//! dependency belongs into the layers of ARCHITECTURE.md.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// The layers of ARCHITECTURE.md from the bottom up. A crate depends on lower
/// layers only.
const LAYERS: &[(&str, &[&str])] = &[
    ("keys", &["keys"]),
    (
        "vocabulary",
        &[
            "wire",
            "control-types",
            "timers",
            "metrics",
            "terminal",
            "testkit",
        ],
    ),
    ("node types", &["node-types"]),
    (
        "core",
        &[
            "control-client",
            "channel",
            "tunnel",
            "paths",
            "portmap",
            "peer-relay",
            "netstack",
            "derp",
            "filter",
            "dns",
            "policy",
            "ssh-policy",
            "lock",
            "oidc",
        ],
    ),
    ("packet path", &["dataplane"]),
    ("assembly", &["node-core", "control-core"]),
    ("packet path tests", &["dataplane-testkit"]),
    (
        "runtime",
        &[
            "dial",
            "host",
            "local-api",
            "control-api",
            "logging",
            "service-manager",
            "ssh",
        ],
    ),
    ("packet threads", &["packet-threads", "userspace"]),
    ("relay", &["relay"]),
    ("node", &["node"]),
    ("programs", &["cli", "control"]),
    ("tests", &["sim", "lab"]),
    ("benchmarks", &["bench"]),
];

/// The highest layer whose crates do no IO.
const LAST_LAYER_WITHOUT_IO: &str = "assembly";

/// Crates from outside that a crate without IO may depend on: cryptography,
/// formats, data structures. A crate belongs here only if it opens no files or
/// sockets, starts no threads, and asks neither a clock nor a random generator.
const PURE: &[&str] = &[
    // Renders errors to a string.
    "annotate-snippets",
    "argon2",
    "aws-lc-rs",
    "blake2",
    "crc32fast",
    "data-encoding",
    "ed25519-dalek",
    "ed25519-zebra",
    "hickory-proto",
    "hmac",
    "ipnet",
    "jiff",
    "jsonc-parser",
    // Of it, only keys and signatures are used; its checks of times read a clock.
    "jsonwebtoken",
    "poly1305",
    "prefix-trie",
    "rustc-hash",
    "salsa20",
    "serde",
    "serde_json",
    "sha2",
    // Without its devices for Linux, which are features of their own.
    "smoltcp",
    "subtle",
    "thiserror",
    // Parses and builds addresses; opens none.
    "url",
    "zerocopy",
    "zeroize",
    "zstd",
];

/// Crates that a crate without IO must not reach through its dependencies
/// either.
const IO_CRATES: &[&str] = &[
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

struct Member {
    name: String,
    description: String,
    folder: PathBuf,
    /// Crates of the workspace that it depends on.
    depends_on: BTreeSet<String>,
    /// Crates of the workspace that only its tests need.
    tested_with: BTreeSet<String>,
    /// Crates from outside that it depends on, without those of its tests.
    foreign: BTreeSet<String>,
}

fn members() -> BTreeMap<String, Member> {
    let metadata = cargo(&[
        "metadata",
        "--offline",
        "--no-deps",
        "--format-version",
        "1",
    ]);
    let metadata: Value = serde_json::from_str(&metadata).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let members: BTreeMap<_, _> = packages.iter().map(member).collect();
    assert!(
        members.len() >= 19,
        "only {} crates were found",
        members.len()
    );
    members
}

fn member(package: &Value) -> (String, Member) {
    let bare = |name: &str| name.strip_prefix("warren-").map(str::to_owned);
    let package_name = package["name"].as_str().unwrap();
    let name =
        bare(package_name).unwrap_or_else(|| panic!("{package_name} does not begin with warren-"));
    let manifest = Path::new(package["manifest_path"].as_str().unwrap());
    let mut member = Member {
        name: name.clone(),
        description: package["description"].as_str().unwrap_or("").to_owned(),
        folder: manifest.parent().unwrap().to_owned(),
        depends_on: BTreeSet::new(),
        tested_with: BTreeSet::new(),
        foreign: BTreeSet::new(),
    };
    for dependency in package["dependencies"].as_array().unwrap() {
        // Dependencies of the models of bin/loom are in no program.
        if dependency["target"] == "cfg(warren_loom)" {
            continue;
        }
        let name = dependency["name"].as_str().unwrap();
        match bare(name) {
            Some(other) if dependency["kind"] == "dev" => member.tested_with.insert(other),
            Some(other) => member.depends_on.insert(other),
            None if dependency["kind"] == "dev" => false,
            None => member.foreign.insert(name.to_owned()),
        };
    }
    (name, member)
}

fn layer(name: &str) -> usize {
    LAYERS
        .iter()
        .position(|(_, crates)| crates.contains(&name))
        .unwrap_or_else(|| panic!("{name} is in no layer: add it to LAYERS and to ARCHITECTURE.md"))
}

fn without_io() -> impl Iterator<Item = &'static str> {
    let last = LAYERS
        .iter()
        .position(|(layer, _)| *layer == LAST_LAYER_WITHOUT_IO)
        .unwrap();
    LAYERS[..=last]
        .iter()
        .flat_map(|(_, crates)| *crates)
        .copied()
}

#[test]
fn crates_depend_on_lower_layers_only() {
    let members = members();
    let mut wrong = Vec::new();
    for member in members.values() {
        for other in &member.depends_on {
            if layer(other) >= layer(&member.name) {
                let (above, below) = (LAYERS[layer(other)].0, LAYERS[layer(&member.name)].0);
                wrong.push(format!(
                    "{} ({below}) depends on {other} ({above})",
                    member.name
                ));
            }
        }
        // Tests may also compare two crates of one layer, and a crate may have a
        // testkit of its own that depends on it.
        for other in &member.tested_with {
            let own_testkit = *other == format!("{}-testkit", member.name);
            if layer(other) > layer(&member.name) && !own_testkit {
                wrong.push(format!("{} is tested with {other} above it", member.name));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "dependencies that go up or sideways: {wrong:#?}"
    );
    let known: BTreeSet<_> = LAYERS
        .iter()
        .flat_map(|(_, crates)| *crates)
        .copied()
        .collect();
    let present: BTreeSet<_> = members.keys().map(String::as_str).collect();
    assert_eq!(known, present, "LAYERS and the workspace differ");
}

#[test]
fn crates_without_io_use_pure_crates_only() {
    let members = members();
    let mut wrong = Vec::new();
    for name in without_io() {
        for foreign in &members[name].foreign {
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
fn crates_without_io_reach_no_runtime_through_dependencies() {
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
        for found in IO_CRATES.iter().filter(|name| crates.contains(**name)) {
            wrong.push(format!(
                "{name} reaches {found}; see: cargo tree -p warren-{name} -e normal -i {found}"
            ));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn crates_without_io_deny_clocks_files_and_sockets() {
    // clippy.toml lists the methods and types.
    let refuses =
        "#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]";
    let members = members();
    for name in without_io() {
        let source = std::fs::read_to_string(members[name].folder.join("src/lib.rs")).unwrap();
        assert!(
            source.lines().any(|line| line == refuses),
            "{name}: its lib.rs lacks\n{refuses}"
        );
    }
}

#[test]
fn every_crate_is_described() {
    for member in members().values() {
        assert!(
            member.description.len() > 20 && !member.description.ends_with('.'),
            "{}: the description in its Cargo.toml should be one line without full stop: {:?}",
            member.name,
            member.description
        );
        let source = std::fs::read_to_string(member.folder.join("src/lib.rs")).unwrap();
        assert!(
            source.starts_with("//! "),
            "{}: its lib.rs has no module docs",
            member.name
        );
    }
}

/// The macros of tracing take the id of a parent and drop a value that is given to
/// them: a child of a span that nothing else holds ends the program.
#[test]
fn parents_of_spans_are_borrowed() {
    let mut folders = vec![workspace().join("crates")];
    let mut seen = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|kind| kind == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                for (parent, _) in text.match_indices("!(parent: ") {
                    seen += 1;
                    let given = &text[parent + "!(parent: ".len()..];
                    assert!(
                        given.starts_with('&')
                            || given.starts_with("None,")
                            || given.starts_with('"'),
                        "{}: borrow the parent of the span: parent: &{}",
                        path.display(),
                        given.lines().next().unwrap()
                    );
                }
            }
        }
    }
    assert!(seen > 0, "there are spans with parents");
}

//! Rules about the text of all sources.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The sources of all crates and of the fuzz targets: path in the workspace, and text.
fn sources() -> Vec<(String, String)> {
    let root = workspace();
    let mut folders = vec![root.join("crates"), root.join("fuzz")];
    let mut sources = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.ends_with("target") {
                folders.push(path);
            } else if path.extension().is_some_and(|kind| kind == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                let name = path.strip_prefix(&root).unwrap();
                sources.push((name.display().to_string(), text));
            }
        }
    }
    sources.sort();
    assert!(sources.len() > 400, "only {} sources", sources.len());
    sources
}

/// Generators of the operating system, those of the simulator, and wrappers.
const GENERATORS: &[&str] = &[
    "crates/dial/src/entropy.rs",
    "crates/keys/src/entropy.rs",
    "crates/node-core/src/entropy.rs",
    "crates/sim/src/random.rs",
    "crates/testkit/src/lib.rs",
];

#[test]
fn tests_take_their_entropy_from_the_testkit() {
    let marker = concat!("Entropy", " for ");
    let copies: Vec<_> = sources()
        .into_iter()
        .filter(|(name, text)| text.contains(marker) && !GENERATORS.contains(&name.as_str()))
        .map(|(name, _)| name)
        .collect();
    assert!(
        copies.is_empty(),
        "use FixedEntropy, CountingEntropy or SeededEntropy of warren-testkit in {copies:#?}"
    );
}

#[test]
fn modules_are_included_from_their_own_crate_only() {
    let marker = concat!("#[path = ", "\"");
    for (name, text) in sources() {
        for (at, _) in text.match_indices(marker) {
            let path = text[at + marker.len()..].split('"').next().unwrap();
            assert!(
                !path.contains(".."),
                "{name} includes {path}: put shared code into a testkit crate"
            );
        }
    }
}

/// Words that comments and documents do not use: metaphors, and verbs of speech for
/// messages.
const AVOIDED: &[(&str, &str)] = &[
    ("anew", "again"),
    ("anybody", "any peer, any user, any host"),
    ("hear", "receive"),
    ("heard", "received"),
    ("hears", "receives"),
    ("house", "workspace, crate"),
    ("nobody", "no peer, no user, no host"),
    ("room", "space, capacity, crate"),
    ("rooms", "crates"),
    ("somebody", "another peer, user or program"),
    ("story", "sequence, description"),
    ("stranger", "unauthenticated sender"),
    ("strangers", "unauthenticated senders"),
    ("tell", "report, send, notify"),
    ("tells", "reports, sends, notifies"),
    ("told", "reported, sent, notified"),
    ("town", "peers, nodes"),
    ("train", "batch, GSO buffer, GRO buffer"),
    ("trains", "batches, GSO buffers, GRO buffers"),
];

/// Words with which no sentence begins: "Peers that ...", not "Who ...".
const NO_BEGINNING: &[&str] = &["Nobody", "Somebody", "What", "Who", "Whoever", "Whom"];

/// The comment of a line, without code in backticks.
fn comment(line: &str) -> String {
    let begins = line.trim_start().starts_with("//").then_some(0);
    let start = begins.or_else(|| line.find(" // "));
    start.map_or_else(String::new, |start| without_code(&line[start..]))
}

fn without_code(text: &str) -> String {
    text.split('`').step_by(2).collect::<Vec<_>>().join(" ")
}

fn sentences(text: &str) -> impl Iterator<Item = &str> {
    let plain = |c: char| c == '/' || c == '!' || c == '*' || c == '#' || c == '-' || c == ' ';
    text.split(". ")
        .map(move |part| part.trim_start_matches(plain))
}

fn mistakes(text: &str, found: &mut Vec<String>, place: &str) {
    for (word, instead) in AVOIDED {
        let is_there = |part: &str| part.eq_ignore_ascii_case(word);
        if text.split(|c: char| !c.is_alphabetic()).any(is_there) {
            found.push(format!("{place}: \"{word}\"; better: {instead}"));
        }
    }
    for sentence in sentences(text) {
        let first = sentence.split(|c: char| !c.is_alphabetic()).next();
        let is_question = sentence.contains('?');
        if first.is_some_and(|first| NO_BEGINNING.contains(&first)) && !is_question {
            found.push(format!("{place}: a sentence begins like this: {sentence}"));
        }
    }
}

/// CONTRIBUTING.md, "Words".
#[test]
fn comments_and_documents_use_plain_words() {
    let mut found = Vec::new();
    for (name, text) in sources() {
        if name == "crates/testkit/tests/sources.rs" {
            continue;
        }
        for (number, line) in text.lines().enumerate() {
            mistakes(
                &comment(line),
                &mut found,
                &format!("{name}:{}", number + 1),
            );
        }
    }
    for name in [
        "README.md",
        "ARCHITECTURE.md",
        "CHANGELOG.md",
        "bench/README.md",
    ] {
        let text = std::fs::read_to_string(workspace().join(name)).unwrap();
        let mut is_code = false;
        for (number, line) in text.lines().enumerate() {
            is_code ^= line.starts_with("```");
            if !is_code && !line.starts_with("    ") && !line.starts_with('#') {
                mistakes(
                    &without_code(line),
                    &mut found,
                    &format!("{name}:{}", number + 1),
                );
            }
        }
    }
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn test_names_state_a_claim() {
    const RIDDLES: &[&str] = &[
        "fn it_",
        "fn nobody_",
        "fn those_",
        "fn what_",
        "fn who_",
        "fn whom_",
    ];
    for (name, text) in sources() {
        for line in text.lines() {
            let is_riddle = RIDDLES
                .iter()
                .any(|riddle| line.trim_start().starts_with(riddle));
            assert!(!is_riddle, "{name}: {line}\nname the subject of the claim");
        }
    }
}

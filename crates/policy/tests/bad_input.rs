//! Files that are invalid, hostile or huge are refused with a position, in time
//! linear in their length.

#![allow(clippy::unwrap_used)]

use std::fmt::Write as _;

use proptest::prelude::*;
use warren_policy::{Context, Diagnostic, Policy};

fn errors(source: &str) -> Vec<Diagnostic> {
    Policy::parse(source).unwrap_err()
}

/// Ten megabytes of one pattern between a beginning and an end.
fn huge(begin: &str, end: &str, mut item: impl FnMut(usize) -> String) -> String {
    let mut out = String::from(begin);
    for n in 0.. {
        if out.len() > 10_000_000 {
            break;
        }
        out.push_str(&item(n));
    }
    out + end
}

#[test]
fn huge_files_are_parsed() {
    let source = huge("{\"groups\": {", "}}", |n| {
        format!("\"group:{n}\": [\"user{n}@example.com\"],\n")
    });
    assert!(Policy::parse(&source).is_ok());
    let source = huge("{\"acls\": [", "]}", |_| {
        "{\"action\": \"accept\", \"src\": [\"a@b.c\"], \"dst\": [\"10.0.0.0/8:*\"]},".to_owned()
    });
    assert!(Policy::parse(&source).is_ok());
    // Notes that are skipped, all in one rule.
    let source = huge("{\"acls\": [{\"action\": \"accept\",", "}]}", |n| {
        format!("\"#{n}\": 0,")
    });
    assert!(Policy::parse(&source).is_ok());
    // One name.
    let name = "x".repeat(10_000_000);
    let found = errors(&format!("{{\"{name}\": 1}}"));
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].text.len(), 200);
}

#[test]
fn huge_files_full_of_errors_are_refused() {
    // In one line and in many, with names that look like others.
    for end in ["", "\n"] {
        let groups: String = (0..5_000)
            .map(|n| format!("\"group:name{n}\": [],"))
            .collect();
        let begin =
            format!("{{\"groups\": {{{groups}}}, \"acls\": [{{\"action\": \"accept\", \"src\": [");
        let source = huge(&begin, "]}]}", |n| format!("\"group:nome{n}\",{end}"));
        let found = errors(&source);
        assert_eq!(found.len(), 501);
        assert!(
            found[0]
                .help
                .as_deref()
                .unwrap()
                .starts_with("did you mean")
        );
        assert!(found[500].message.ends_with("more errors are not shown"));
        let shown: usize = found
            .iter()
            .map(|e| e.render("policy", &source).len())
            .sum();
        assert!(shown < 500_000, "{shown}");
    }
    let source = huge("{\"tests\": [", "]}", |_| "{},".to_owned());
    assert_eq!(errors(&source).len(), 501);
    let source = huge("{", "}", |_| "\"acls\": [],".to_owned());
    assert_eq!(errors(&source).len(), 501);
}

#[test]
fn nesting_is_bounded() {
    for bomb in ["[", "{\"a\":", "{\"grants\":[{\"app\":{\"a/b\":["] {
        let source = bomb.repeat(1_000_000);
        let found = errors(&source);
        assert!(
            found[0].message.starts_with("nested deeper than"),
            "{found:?}"
        );
        assert_eq!(found[0].line, 1);
    }
    // Brackets in strings and comments do not nest.
    let brackets = "[".repeat(1_000);
    let source =
        format!("{{/* {brackets} */ \"hosts\": {{\"{brackets}\": \"10.0.0.1\"}}}} // {brackets}");
    assert!(Policy::parse(&source).is_ok());
}

#[test]
fn long_chains_and_cycles_of_names_are_bounded() {
    // Tag owners may form cycles and long chains.
    let mut owners = String::new();
    for n in 0..100_000 {
        write!(owners, "\"tag:t{n}\": [\"tag:t{}\"],", (n + 1) % 100_000).unwrap();
    }
    let policy = Policy::parse(&format!("{{\"tagOwners\": {{{owners}}}}}")).unwrap();
    assert!(policy.tag_owns("tag:t99999", "tag:t0"));
    // ipsets may not; a chain is fine.
    let chain = |last: &str| {
        let mut sets = String::new();
        for n in 0..50_000 {
            write!(sets, "\"ipset:s{n}\": [\"ipset:s{}\"],", n + 1).unwrap();
        }
        Policy::parse(&format!(
            "{{\"ipsets\": {{{sets} \"ipset:s50000\": [{last}]}}}}"
        ))
    };
    assert!(chain("\"10.0.0.1\"").is_ok());
    let found = chain("\"ipset:s0\"").unwrap_err();
    assert_eq!(found.len(), 1);
    assert!(
        found[0].message.starts_with("ipsets form a cycle"),
        "{found:?}"
    );
    // Sets that double each other would be large; there is a bound.
    let mut sets = String::from("\"ipset:a0\": [\"10.0.0.1\"],");
    for n in 1..20_000 {
        let last = n - 1;
        let (a, b) = (n / 250 % 250, n % 250);
        write!(
            sets,
            "\"ipset:a{n}\": [\"ipset:a{last}\", \"10.{a}.{b}.1\"],"
        )
        .unwrap();
    }
    let found = errors(&format!("{{\"ipsets\": {{{sets}}}}}"));
    assert!(found[0].message.contains("too large"), "{:?}", found[0]);
}

#[test]
fn text_that_is_not_utf8_is_refused_at_its_byte() {
    let bytes = b"{\n  \"hosts\": {\"\xe9\": \"10.0.0.1\"}\n}";
    let found = Policy::parse_bytes(bytes, &Context::default()).unwrap_err();
    assert_eq!(
        found[0].to_string(),
        "2:14: the file is not UTF-8: byte 0xe9 at offset 15 (save the file as UTF-8, without byte order mark)"
    );
    let shown = found[0].render("policy.hujson", &String::from_utf8_lossy(bytes));
    assert!(
        shown.contains("2 |   \"hosts\": {\"\u{fffd}\": "),
        "{shown}"
    );
    assert!(shown.contains("\n  |              ^\n"), "{shown}");
    // Cut in the middle of a character, and text of another width.
    for bytes in [&b"{}\xc3"[..], b"\xff\xfe{\0}\0"] {
        assert!(Policy::parse_bytes(bytes, &Context::default()).is_err());
    }
    assert!(Policy::parse_bytes(b"{}", &Context::default()).is_ok());
}

#[test]
fn errors_have_a_json_form() {
    let source = "{\n  \"acl\": [],\n}";
    let found = &errors(source)[0];
    assert_eq!(
        found.to_json(),
        serde_json::json!({
            "message": "unknown field: \"acl\"",
            "help": "did you mean \"acls\"?",
            "line": 2,
            "column": 3,
            "start": 4,
            "end": 9,
            "text": "\"acl\"",
        })
    );
}

#[test]
fn a_long_line_is_shown_around_the_error() {
    let source = format!("{{{} \"acl\": [], {}}}", " ".repeat(500), " ".repeat(500));
    let shown = errors(&source)[0].render("p", &source);
    let mut lines = shown.lines().skip(3);
    let (line, mark) = (lines.next().unwrap(), lines.next().unwrap());
    assert!(line.chars().count() < 120, "{line}");
    let at = mark.chars().position(|c| c == '^').unwrap();
    let marked: String = line.chars().skip(at).take(5).collect();
    assert_eq!(marked, "\"acl\"");
}

/// A piece of a policy file, right or wrong.
fn piece() -> impl Strategy<Value = String> {
    const WORDS: [&str; 40] = [
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "null",
        "true",
        "1",
        "-1e9",
        "\"\"",
        "\"*\"",
        "\"src\"",
        "\"dst\"",
        "\"users\"",
        "\"action\"",
        "\"check\"",
        "\"checkPeriod\"",
        "\"1h\"",
        "\"localpart:*@a.b\"",
        "\"target\"",
        "\"attr\"",
        "\"ipPool\"",
        "\"100.64.0.0/10\"",
        "\"posture:a\"",
        "\"node:os IN ['a']\"",
        "\"ipset:a\"",
        "\"remove ipset:a\"",
        "\"10.0.0.1-10.0.0.0\"",
        "\"svc:a\"",
        "\"tag:a\"",
        "\"autogroup:self\"",
        "\"a@b\"",
        "\"regions\"",
        "\"1\"",
        "\"type\"",
        "\"recorder\"",
        "\"srcPostureAttrs\"",
        "\"::/0\"",
        "\"autogroup:admin\"",
    ];
    proptest::collection::vec(proptest::sample::select(&WORDS[..]), 0..30)
        .prop_map(|words| words.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_section_makes_the_parser_panic(
        section in proptest::sample::select(&[
            "ssh", "sshTests", "tests", "nodeAttrs", "postures", "defaultSrcPosture", "ipsets",
            "attrConfig", "derpMap", "OneCGNATRoute", "autoApprovers", "grants", "acls",
        ][..]),
        piece in piece(),
    ) {
        let source = format!("{{\"tagOwners\": {{\"tag:a\": []}}, \"{section}\": {piece}}}");
        for found in Policy::parse(&source).err().into_iter().flatten() {
            prop_assert!(source.get(found.span.clone()).is_some());
            prop_assert!(found.render("p", &source).contains('^'));
        }
    }

    #[test]
    fn no_bytes_make_the_parser_panic(bytes: Vec<u8>) {
        if let Err(found) = Policy::parse_bytes(&bytes, &Context::default()) {
            let shown = String::from_utf8_lossy(&bytes);
            prop_assert!(!found.is_empty());
            prop_assert!(!found[0].render("p", &shown).is_empty());
        }
    }
}

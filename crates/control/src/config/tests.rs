#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use proptest::prelude::*;
use warren_oidc::KeyEnd;
use warren_oidc::provider::DEFAULT_SCOPES;

use super::*;

/// The file that describes each key.
const EXAMPLE: &str = include_str!("../../../../packaging/warren-control.toml");

fn source(variables: &[(&str, &str)]) -> Source {
    let variables = variables.iter();
    let variables = variables.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Source::new(Serve::default(), variables)
}

fn parse(text: &str) -> Result<Settings, Vec<String>> {
    parse_with(text, &[])
}

fn parse_with(text: &str, variables: &[(&str, &str)]) -> Result<Settings, Vec<String>> {
    let settings = source(variables).parse(Path::new("c.toml"), text);
    settings.map_err(|Mistakes(all)| all.iter().map(ToString::to_string).collect())
}

/// The example with its keys as a file that gives them all.
fn uncommented() -> String {
    let lines = EXAMPLE.lines();
    let lines = lines.map(|line| match line.strip_prefix('#') {
        Some(rest) if rest.starts_with(|c: char| c.is_ascii_lowercase() || c == '[') => rest,
        _ => line,
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn example_describes_every_key_that_is_read() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("okta.secret"), "secret").unwrap();
    let file = dir.path().join("c.toml");
    let settings = source(&[]).parse(&file, &uncommented()).unwrap();
    let given: BTreeSet<&str> = settings
        .entries
        .iter()
        .filter(|entry| entry.origin != Origin::Default)
        .map(|entry| entry.name)
        .collect();
    let known: BTreeSet<&str> = settings.entries.iter().map(|entry| entry.name).collect();
    assert_eq!(given, known, "the example leaves out a key");
    // As it is shipped, it sets nothing.
    let shipped = parse(EXAMPLE).unwrap();
    assert!(
        shipped
            .entries
            .iter()
            .all(|entry| entry.origin == Origin::Default)
    );
    // Each key comes after the text that describes it.
    let lines: Vec<&str> = EXAMPLE.lines().collect();
    for (n, line) in lines.iter().enumerate() {
        let is_key = line.starts_with('#') && line.contains(" = ") && !line.starts_with("# ");
        let described = |line: &str| line.starts_with("# ");
        assert!(!is_key || described(lines[n - 1]), "line {}: {line}", n + 1);
    }
}

#[test]
fn shown_settings_are_read_as_the_same() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("okta.secret"), "secret").unwrap();
    let file = dir.path().join("c.toml");
    let settings = source(&[]).parse(&file, &uncommented()).unwrap();
    let shown = to_toml(&settings.entries);
    let again = source(&[]).parse(&file, &shown).unwrap();
    let hidden = |entries: &[Entry]| to_json(entries).to_string().replace("c.toml", "");
    let values = |entries: &[Entry]| -> Vec<String> {
        let shown = entries.iter().filter(|entry| entry.hidden.is_none());
        shown
            .map(|entry| format!("{} {} {}", entry.section, entry.name, entry.text))
            .collect()
    };
    assert_eq!(values(&settings.entries), values(&again.entries));
    let is_shown = |text: &str, secret: &str| text.contains(secret);
    for text in [&shown, &hidden(&settings.entries)] {
        for secret in ["0123456789", "select_account"] {
            assert!(!is_shown(text, secret), "a secret is shown: {text}");
        }
    }
    assert!(!is_shown(&format!("{settings:?}"), "0123456789"));
}

#[test]
fn flags_override_variables_and_these_the_file() {
    let file = "[server]\nlisten = \"127.0.0.1:1\"\nmax_connections = 100\nfirst_user = \"ann\"\n";
    let variables = [
        ("WARREN_CONTROL_SERVER_LISTEN", "127.0.0.1:2"),
        ("WARREN_CONTROL_SERVER_MAX_CONNECTIONS", "200"),
        ("WARREN_CONTROL_STATE_DIR", "elsewhere"),
        ("UNRELATED", "x"),
    ];
    let mut source = source(&variables);
    source.flags.listen = Some(([127, 0, 0, 1], 3).into());
    let settings = source.parse(Path::new("c.toml"), file).unwrap();
    assert_eq!(settings.listen.unwrap().port(), 3);
    assert_eq!(settings.max_connections, 200);
    assert_eq!(settings.first_user, "ann");
    let origin = |name| settings.origin("[server]", name).to_string();
    assert_eq!(origin("listen"), "--listen");
    assert_eq!(
        origin("max_connections"),
        "WARREN_CONTROL_SERVER_MAX_CONNECTIONS"
    );
    assert_eq!(origin("first_user"), "c.toml:4");
    assert_eq!(origin("url"), "default");
}

#[test]
fn paths_are_those_of_the_folder_of_the_file() {
    let path = "[policy]\nfile = \"acl\"\n";
    let from = |file: &str, variables: &[(&str, &str)]| {
        let settings = source(variables).parse(Path::new(file), path).unwrap();
        settings.policy.unwrap()
    };
    assert_eq!(from("/etc/w/c.toml", &[]), Path::new("/etc/w/acl"));
    let variable = [("WARREN_CONTROL_POLICY_FILE", "acl")];
    assert_eq!(from("/etc/w/c.toml", &variable), Path::new("acl"));
}

#[test]
fn all_mistakes_are_reported_at_once_with_their_lines() {
    let text = "[server]\nlisen = 1\nurl = \"ftp://x\"\nmax_connections = -1\nlisten = 80\n\
                [serve]\n[log]\nlevels = \"a=b=c\"\n[tls]\nkey = \"k\"\n[nodes]\nkey_expiry = \"soon\"\n\
                [[oidc]]\nname = \"x\"\n";
    let variables = [
        ("WARREN_CONTROL_DNS_BASE_DOMAIN", "local"),
        ("WARREN_CONTROL_SERVER_LISTN", "x"),
    ];
    let mistakes = parse_with(text, &variables).unwrap_err();
    let expected = [
        ("c.toml: ", "certificate and key belong together"),
        (
            "c.toml:2: ",
            "[server] has no key \"lisen\"; did you mean \"listen\"?",
        ),
        ("c.toml:3: ", "must begin with http://"),
        ("c.toml:4: ", "a number from 16"),
        ("c.toml:5: ", "a number where a text in quotes is expected"),
        (
            "c.toml:6: ",
            "serve is not a section; did you mean \"server\"?",
        ),
        ("c.toml:8: ", "does not choose levels"),
        ("c.toml:12: ", "\"soon\" is not a valid duration"),
        ("c.toml:13: ", "issuer is missing"),
        ("c.toml:13: ", "client_id is missing"),
        ("WARREN_CONTROL_DNS_BASE_DOMAIN: ", "at least two parts"),
        (
            "WARREN_CONTROL_SERVER_LISTN: ",
            "did you mean \"WARREN_CONTROL_SERVER_LISTEN\"?",
        ),
    ];
    for (place, what) in expected {
        let found = |mistake: &String| mistake.starts_with(place) && mistake.contains(what);
        assert!(mistakes.iter().any(found), "{place}{what}: {mistakes:#?}");
    }
    assert_eq!(mistakes.len(), expected.len(), "{mistakes:#?}");
}

#[test]
fn mistakes_in_name_resolution_name_the_line_of_the_element() {
    let text = "[dns]\nmagic_dns = \"yes\"\nnameservers = [\n  \"10.0.0.1\",\n  \"dns.example\",\n]\n\
                split = { \"a b\" = [] }\nsearch_domains = [\"*.x\"]\n\
                records = [\n  { name = \"a.x\", type = \"TXT\", value = \"v\" },\n  { nam = \"a.x\" },\n]\n";
    let mistakes = parse(text).unwrap_err();
    let expected = [
        ("c.toml:2: ", "true or false is expected"),
        ("c.toml:5: ", "\"dns.example\" is not a name server"),
        ("c.toml:7: ", "\"a b\" is not a domain name"),
        ("c.toml:8: ", "clients know no wildcards"),
        ("c.toml:10: ", "type \"TXT\" is not possible"),
        ("c.toml:11: ", "a record is { name"),
    ];
    for (place, what) in expected {
        let found = |mistake: &String| mistake.starts_with(place) && mistake.contains(what);
        assert!(mistakes.iter().any(found), "{place}{what}: {mistakes:#?}");
    }
    assert_eq!(mistakes.len(), expected.len(), "{mistakes:#?}");
    let variables = [("WARREN_CONTROL_DNS_NAMESERVERS", "10.0.0.1, 10.0.0.2")];
    let settings = parse_with("", &variables).unwrap();
    assert_eq!(settings.dns.part.nameservers.unwrap().len(), 2);
    let variables = [("WARREN_CONTROL_DNS_SPLIT", "{ \"a.x\" = [\"10.0.0.1\"] }")];
    let settings = parse_with("", &variables).unwrap();
    assert_eq!(settings.dns.part.split.unwrap().len(), 1);
}

#[test]
fn several_errors_of_syntax_are_reported_beside_wrong_keys() {
    let mistakes = parse("[server]\nlisten = \nurl == \"x\"\nlisen = 2\n").unwrap_err();
    for line in ["c.toml:2:", "c.toml:3:", "c.toml:4: [server] has no key"] {
        assert!(
            mistakes.iter().any(|mistake| mistake.starts_with(line)),
            "{mistakes:#?}"
        );
    }
    let mistakes = parse("[server]\nlisten = \"a\"\nlisten = \"b\"\n").unwrap_err();
    assert!(
        mistakes
            .iter()
            .any(|mistake| mistake.contains("duplicate key")),
        "{mistakes:#?}"
    );
}

#[test]
fn only_what_differs_is_reported_with_what_it_takes() {
    let text = "[server]\nlisten = \"127.0.0.1:1\"\n[log]\nlevels = \"info\"\n";
    let old = parse(text).unwrap();
    let none: (Vec<String>, Vec<String>) = Default::default();
    assert_eq!(changed(&old.entries, &old.entries), none);
    let new = parse("[log]\nlevels = \"debug\"\n").unwrap();
    let (live, restart) = changed(&old.entries, &new.entries);
    assert_eq!(live, ["[log] levels"]);
    assert_eq!(restart, ["[server] listen"]);
    // A key that needs a restart stays as it was, so it is reported again.
    let used = new.as_used(&old);
    assert_eq!(used.listen, old.listen);
    assert_eq!(changed(&used.entries, &new.entries), (vec![], restart));
}

const PROVIDERS: &str = r#"
[[oidc]]
name = "okta"
title = "Okta"
issuer = "https://net.okta.com"
client_id = "abc"
client_secret = "s"
scopes = ["openid", "email", "groups"]
extra_parameters = { prompt = "select_account" }
allowed_domains = ["Example.com"]
allowed_users = ["Ann@example.com"]
allowed_groups = ["VPN"]
groups_claim = "groups"
email_verified_required = false
key_expiry = "30d"

[[oidc]]
name = "google"
issuer = "https://accounts.google.com"
client_id = "xyz"
client_secret = "s"
domain_claim = "hd"
key_expiry = "token"
"#;

#[test]
fn every_key_of_a_provider_is_read() {
    let providers = parse(PROVIDERS).unwrap().providers;
    let [okta, google] = &providers[..] else {
        panic!("two providers")
    };
    assert_eq!(okta.title, "Okta");
    assert!(okta.rules.domains.contains("example.com"));
    assert!(okta.rules.users.contains("ann@example.com"));
    assert!(okta.rules.groups.contains("VPN"));
    assert!(okta.rules.trust_unverified_email);
    assert_eq!(
        okta.key_end,
        KeyEnd::After(Duration::from_secs(30 * 86_400))
    );
    assert_eq!(google.title, "google");
    assert_eq!(google.scopes, DEFAULT_SCOPES);
    assert_eq!(google.rules.domain_claim.as_deref(), Some("hd"));
    assert_eq!(google.key_end, KeyEnd::Token);
    assert!(parse("").unwrap().providers.is_empty());
}

#[test]
fn mistakes_of_a_provider_are_named_with_what_to_write() {
    let valid = "[[oidc]]\nname = \"x\"\nissuer = \"https://x.example\"\nclient_id = \"c\"\n";
    assert!(parse(valid).is_ok());
    let with = |line: &str| parse(&format!("{valid}{line}\n")).unwrap_err().join("\n");
    for (line, text) in [
        ("isuer = \"x\"", "did you mean \"issuer\"?"),
        ("clientid = \"x\"", "did you mean \"client_id\"?"),
        ("allowed_domain = []", "did you mean \"allowed_domains\"?"),
        ("colour = 1", "has no key \"colour\""),
        (
            "scopes = \"openid\"",
            "c.toml:5: [[oidc]] \"x\" scopes: a text where a list",
        ),
        ("scopes = [\"email\"]", "must contain \"openid\""),
        ("key_expiry = \"soon\"", "key_expiry: \"soon\""),
        ("key_expiry = \"0\"", "key_expiry: \"0\""),
        ("client_secret = \"\"", "the client secret is empty"),
        (
            "client_secret = \"a\"\nclient_secret_file = \"b\"",
            "not both",
        ),
        (
            "client_secret_file = \"gone\"",
            "client_secret_file gone: No such file",
        ),
        ("allowed_groups = [\"a\"]", "needs groups_claim"),
        ("extra_parameters = { state = \"x\" }", "\"state\""),
        (
            "[[oidc]]\nname = \"y\"",
            "c.toml:5: [[oidc]] \"y\": issuer is missing",
        ),
    ] {
        let error = with(line);
        assert!(error.contains(text), "{line}: {error}");
    }
    for (from, to, text) in [
        ("https://x.example", "http://x.example", "https://"),
        ("https://x.example", "x.example", "https://"),
        ("https://x.example", "https://x.example/?a", "https://"),
        ("https://x.example", "https://github.com", "Dex"),
        ("\"x\"", "\"X y\"", "lower-case"),
        ("[[oidc]]", "[[oicd]]", "did you mean \"oidc\"?"),
        ("[[oidc]]", "[oidc]", "write [[oidc]]"),
    ] {
        let error = parse(&valid.replacen(from, to, 1)).unwrap_err().join("\n");
        assert!(error.contains(text), "{to}: {error}");
    }
    let twice = format!("{valid}{valid}");
    assert!(parse(&twice).unwrap_err()[0].contains("this name"));
    let twice = format!("{valid}{}", valid.replacen("\"x\"", "\"y\"", 1));
    assert!(parse(&twice).unwrap_err()[0].contains("same issuer"));
    // A slash at the end makes another issuer.
    assert!(parse(&twice.replacen("x.example", "x.example/", 1)).is_ok());
}

proptest! {
    #[test]
    fn parsing_never_panics(text in ".*", name in "[A-Z_]{0,12}") {
        let _ = parse(&text);
        let _ = parse(&format!("[[oidc]]\n{text} = 1"));
        let _ = parse(&format!("[server]\nlisten = {text}"));
        let _ = parse_with("", &[(&format!("WARREN_CONTROL_{name}"), &text)]);
    }
}

//! The configuration file (TOML): the identity providers.
//!
//! Every key has a type, and an unknown key is refused with the one that is most like
//! it. All that needs no answer of a provider is checked here, before the server creates
//! anything.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use warren_oidc::provider::DEFAULT_SCOPES;
use warren_oidc::{KeyEnd, Provider, Rules, Secret};

use crate::cli::args::parse_duration;
use crate::failure::Failure;

/// The content of the file, checked.
#[derive(Debug)]
pub struct ConfigFile {
    /// The identity providers, in the order of the buttons.
    pub providers: Vec<Provider>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    #[serde(default)]
    oidc: Vec<Entry>,
}

/// A table `[[oidc]]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    title: Option<String>,
    issuer: String,
    client_id: String,
    client_secret: Option<String>,
    client_secret_file: Option<PathBuf>,
    scopes: Option<Vec<String>>,
    #[serde(default)]
    extra_parameters: BTreeMap<String, String>,
    #[serde(default)]
    allowed_domains: Vec<String>,
    domain_claim: Option<String>,
    #[serde(default)]
    allowed_users: Vec<String>,
    #[serde(default)]
    allowed_groups: Vec<String>,
    groups_claim: Option<String>,
    email_verified_required: Option<bool>,
    key_expiry: Option<String>,
}

impl ConfigFile {
    /// Reads and checks the file.
    ///
    /// # Errors
    /// It cannot be read, is not valid, or describes a provider that cannot work.
    pub fn read(file: &Path) -> Result<Self, Failure> {
        let text = std::fs::read_to_string(file)
            .map_err(|error| Failure::Failed(format!("cannot read {}: {error}", file.display())))?;
        let read = |secret: &Path| {
            // As written in the file, from the folder of the file.
            let path = file.parent().unwrap_or(Path::new("")).join(secret);
            let text = std::fs::read_to_string(&path)
                .map_err(|error| format!("client_secret_file {}: {error}", path.display()))?;
            Ok(text.trim_end_matches(['\r', '\n']).to_owned())
        };
        Self::parse(&text, read)
            .map_err(|why| Failure::Failed(format!("{}: {}", file.display(), why.trim_end())))
    }

    /// Parses the text; `read` gives the content of a file with a secret.
    fn parse(text: &str, read: impl Fn(&Path) -> Result<String, String>) -> Result<Self, String> {
        let document: Document = toml::from_str(text).map_err(|error| explained(&error))?;
        let mut providers: Vec<Provider> = Vec::new();
        for entry in document.oidc {
            let name = entry.name.clone();
            let provider =
                provider(entry, &read).map_err(|why| format!("[[oidc]] \"{name}\": {why}"))?;
            for other in &providers {
                if other.name == provider.name {
                    return Err(format!(
                        "[[oidc]] \"{name}\": two providers have this name; choose another"
                    ));
                }
                if other.issuer == provider.issuer {
                    return Err(format!(
                        "[[oidc]] \"{name}\": \"{}\" has the same issuer, so it would be the same people; remove one of the two",
                        other.name
                    ));
                }
            }
            providers.push(provider);
        }
        Ok(Self { providers })
    }
}

fn provider(
    entry: Entry,
    read: &impl Fn(&Path) -> Result<String, String>,
) -> Result<Provider, String> {
    let secret = match (entry.client_secret, entry.client_secret_file) {
        (Some(_), Some(_)) => {
            return Err("give client_secret or client_secret_file, not both".to_owned());
        }
        (Some(secret), None) => Some(secret),
        (None, Some(file)) => Some(read(&file)?),
        (None, None) => None,
    };
    let lower = |list: Vec<String>| -> BTreeSet<String> {
        list.iter().map(|entry| entry.to_lowercase()).collect()
    };
    let provider = Provider {
        title: entry.title.unwrap_or_else(|| entry.name.clone()),
        name: entry.name,
        issuer: entry.issuer,
        client_id: entry.client_id,
        client_secret: secret.map(Secret::new),
        scopes: entry
            .scopes
            .unwrap_or_else(|| DEFAULT_SCOPES.map(str::to_owned).to_vec()),
        extra_parameters: entry.extra_parameters,
        groups_claim: entry.groups_claim,
        rules: Rules {
            domains: lower(entry.allowed_domains),
            domain_claim: entry.domain_claim,
            users: lower(entry.allowed_users),
            groups: entry.allowed_groups.into_iter().collect(),
            trust_unverified_email: entry.email_verified_required == Some(false),
        },
        key_end: key_end(entry.key_expiry.as_deref())?,
    };
    provider.check().map_err(|error| error.to_string())?;
    Ok(provider)
}

fn key_end(text: Option<&str>) -> Result<KeyEnd, String> {
    let Some(text) = text else {
        return Ok(KeyEnd::Server);
    };
    if text == "token" {
        return Ok(KeyEnd::Token);
    }
    match parse_duration(text) {
        Ok(Duration::ZERO) | Err(_) => Err(format!(
            "key_expiry \"{text}\": write a time such as \"30d\", or \"token\" for the expiry of the ID token"
        )),
        Ok(life) => Ok(KeyEnd::After(life)),
    }
}

/// The message of the parser; for an unknown key, with the one that is most like it.
fn explained(error: &toml::de::Error) -> String {
    let mut quoted = error.message().split('`').skip(1).step_by(2);
    let shown = error.to_string();
    if !error.message().starts_with("unknown field") {
        return shown;
    }
    let Some(unknown) = quoted.next() else {
        return shown;
    };
    let closest = quoted
        .map(|known| (distance(unknown, known), known))
        .min()
        .filter(|(distance, known)| *distance <= known.len().div_ceil(3));
    match closest {
        Some((_, known)) => format!("{}\ndid you mean \"{known}\"?", shown.trim_end()),
        None => shown,
    }
}

/// The number of characters to add, leave out or replace between two words.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, left) in a.chars().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, right) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(left != *right);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    const FULL: &str = r#"
[[oidc]]
name = "okta"
title = "Okta"
issuer = "https://net.okta.com"
client_id = "abc"
client_secret_file = "okta.secret"
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

    fn parse(text: &str) -> Result<ConfigFile, String> {
        ConfigFile::parse(text, |file| Ok(format!("content of {}", file.display())))
    }

    #[test]
    fn every_key_is_read() {
        let providers = parse(FULL).unwrap().providers;
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
        assert!(!format!("{providers:?}").contains("content of"));
        assert!(parse("").unwrap().providers.is_empty());
    }

    #[test]
    fn mistakes_are_named_with_what_to_write() {
        let valid = "[[oidc]]\nname = \"x\"\nissuer = \"https://x.example\"\nclient_id = \"c\"\n";
        assert!(parse(valid).is_ok());
        let with = |line: &str| parse(&format!("{valid}{line}\n")).unwrap_err();
        for (line, text) in [
            ("isuer = \"x\"", "did you mean \"issuer\"?"),
            ("clientid = \"x\"", "did you mean \"client_id\"?"),
            ("allowed_domain = []", "did you mean \"allowed_domains\"?"),
            ("colour = 1", "unknown field `colour`"),
            ("scopes = \"openid\"", "line 5"),
            ("scopes = [\"email\"]", "must contain \"openid\""),
            ("key_expiry = \"soon\"", "key_expiry \"soon\""),
            ("key_expiry = \"0\"", "key_expiry \"0\""),
            ("client_secret = \"\"", "the client secret is empty"),
            (
                "client_secret = \"a\"\nclient_secret_file = \"b\"",
                "not both",
            ),
            ("allowed_groups = [\"a\"]", "needs groups_claim"),
            ("extra_parameters = { state = \"x\" }", "\"state\""),
            ("[[oidc]]\nname = \"y\"", "missing field"),
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
        ] {
            let error = parse(&valid.replacen(from, to, 1)).unwrap_err();
            assert!(error.contains(text), "{to}: {error}");
        }
        let twice = format!("{valid}{valid}");
        assert!(parse(&twice).unwrap_err().contains("this name"));
        let twice = format!("{valid}{}", valid.replacen("\"x\"", "\"y\"", 1));
        assert!(parse(&twice).unwrap_err().contains("same issuer"));
        // A slash at the end makes another issuer.
        assert!(parse(&twice.replacen("x.example", "x.example/", 1)).is_ok());
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in ".*") {
            let _ = parse(&text);
            let _ = parse(&format!("[[oidc]]\n{text} = 1"));
        }

        #[test]
        fn distance_is_that_of_words(a in "[ab]{0,6}", b in "[ab]{0,6}") {
            prop_assert_eq!(distance(&a, &b), distance(&b, &a));
            prop_assert_eq!(distance(&a, &b) == 0, a == b);
        }
    }
}

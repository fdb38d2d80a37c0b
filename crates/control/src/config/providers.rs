//! The sections `[[oidc]]`: the identity providers.
//!
//! All that needs no answer of a provider is checked here, before the server creates
//! anything.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use warren_oidc::provider::DEFAULT_SCOPES;
use warren_oidc::{KeyEnd, Provider, Rules, Secret};

use super::given::{Given, Table, Value};
use super::reader::{Key, Reader};
use super::{path_from, read_text, text};
use crate::cli::args::parse_duration;

/// Reads all providers. Those that are wrong are left out.
pub(super) fn read(reader: &mut Reader) -> Vec<Provider> {
    let mut providers: Vec<Provider> = Vec::new();
    for (line, table) in reader.sections("oidc") {
        let Some(provider) = provider(reader, line, table) else {
            continue;
        };
        let name = &provider.name;
        for other in &providers {
            if other.name == *name {
                reader.wrong(
                    line,
                    format!("[[oidc]] \"{name}\": two providers have this name; choose another"),
                );
            } else if other.issuer == provider.issuer {
                reader.wrong(
                    line,
                    format!(
                        "[[oidc]] \"{name}\": \"{}\" has the same issuer, so it would be the same people; remove one of the two",
                        other.name
                    ),
                );
            }
        }
        providers.push(provider);
    }
    providers
}

fn provider(reader: &mut Reader, line: usize, table: Table) -> Option<Provider> {
    let label = match table.get("name").map(|given| &given.value) {
        Some(Value::Text(name)) => format!("[[oidc]] \"{name}\""),
        _ => format!("[[oidc]] of line {line}"),
    };
    let mut section = reader.one_of(label, line, table);
    let texts = |given: &Given| given.list(text);
    let path = path_from(section.file());
    let live = |name, default| Key::new(name, default).live();

    let name = section.key(live("name", "must be given"), text);
    let title = section.key(live("title", "the name"), text);
    let issuer = section.key(live("issuer", "must be given"), text);
    let client_id = section.key(live("client_id", "must be given"), text);
    let secret = section.key(
        live("client_secret", "none: a public client").secret(),
        text,
    );
    let secret_file = section.key(live("client_secret_file", "none: a public client"), path);
    let scopes = section.key(
        live("scopes", "[\"openid\", \"profile\", \"email\"]"),
        texts,
    );
    let extra_parameters = section.key(live("extra_parameters", "{}").secret(), |given| {
        given.map(|_, value| text(value))
    });
    let allowed_domains = section.key(live("allowed_domains", "[]"), texts);
    let domain_claim = section.key(live("domain_claim", "none: the domain of the e-mail"), text);
    let allowed_users = section.key(live("allowed_users", "[]"), texts);
    let allowed_groups = section.key(live("allowed_groups", "[]"), texts);
    let groups_claim = section.key(live("groups_claim", "none: groups are not read"), text);
    let verified = section.key(live("email_verified_required", "true"), Given::boolean);
    let end = section.key(live("key_expiry", "as in [nodes]"), |given| {
        given.text(|text| key_end(text).map(|_| text.to_owned()))
    });

    for (key, missing) in [
        ("name", name.is_none()),
        ("issuer", issuer.is_none()),
        ("client_id", client_id.is_none()),
    ] {
        if missing {
            section.wrong(&format!("{key} is missing"));
        }
    }
    let secret = match (secret, secret_file) {
        (Some(_), Some(_)) => {
            section.wrong("give client_secret or client_secret_file, not both");
            None
        }
        (None, Some(file)) => read_secret(&file).map_err(|why| section.wrong(&why)).ok(),
        (secret, None) => secret,
    };
    section.finish();

    let (name, issuer, client_id) = (name?, issuer?, client_id?);
    let lower = |list: Option<Vec<String>>| -> BTreeSet<String> {
        let list = list.unwrap_or_default();
        list.iter().map(|entry| entry.to_lowercase()).collect()
    };
    let provider = Provider {
        title: title.unwrap_or_else(|| name.clone()),
        issuer,
        client_id,
        client_secret: secret.map(Secret::new),
        scopes: scopes.unwrap_or_else(|| DEFAULT_SCOPES.map(str::to_owned).to_vec()),
        extra_parameters: extra_parameters.unwrap_or_default(),
        groups_claim,
        rules: Rules {
            domains: lower(allowed_domains),
            domain_claim,
            users: lower(allowed_users),
            groups: allowed_groups.unwrap_or_default().into_iter().collect(),
            trust_unverified_email: verified == Some(false),
        },
        key_end: end.map_or(Ok(KeyEnd::Server), |text| key_end(&text)).ok()?,
        name,
    };
    if let Err(error) = provider.check() {
        reader.wrong(line, format!("[[oidc]] \"{}\": {error}", provider.name));
    }
    Some(provider)
}

fn read_secret(file: &Path) -> Result<String, String> {
    let text = read_text(file)
        .map_err(|error| format!("client_secret_file {}: {error}", file.display()))?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

fn key_end(text: &str) -> Result<KeyEnd, String> {
    if text == "token" {
        return Ok(KeyEnd::Token);
    }
    match parse_duration(text) {
        Ok(Duration::ZERO) | Err(_) => Err(format!(
            "\"{text}\": write a time such as \"30d\", or \"token\" for the expiry of the ID token"
        )),
        Ok(life) => Ok(KeyEnd::After(life)),
    }
}

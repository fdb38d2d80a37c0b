//! From claims to a person: e-mail, names, groups, and the rules about them.
//!
//! Claims of the userinfo endpoint come before those of the ID token, and groups
//! replace them. An e-mail address and whether it is verified belong together and are
//! never taken from different places.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::id_token::Claims;
use crate::provider::{Provider, Rules};

/// How many groups a person may have.
pub const MAX_GROUPS: usize = 1000;
/// The longest name of a group, in bytes.
const MAX_GROUP: usize = 256;
/// The longest e-mail address, in bytes (RFC 5321 section 4.5.3.1.3).
const MAX_EMAIL: usize = 254;
/// The longest name of a person, in characters; longer ones are cut.
const MAX_DISPLAY_NAME: usize = 128;
/// The longest address of a picture, in bytes; longer ones are left out.
const MAX_PICTURE: usize = 512;

/// A person, as a provider knows them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// The name of the provider in the configuration.
    pub provider: String,
    /// With the subject, the key of the person.
    pub issuer: String,
    /// The person at that issuer.
    pub subject: String,
    /// The e-mail address, if it may be trusted.
    pub email: Option<String>,
    /// The short name that the person has at the provider. It may change.
    pub username: Option<String>,
    /// The name for people.
    pub display_name: Option<String>,
    /// The address of a picture.
    pub picture: Option<String>,
    /// Groups, if the configuration names a claim for them.
    pub groups: BTreeSet<String>,
    /// When the ID token expires, in seconds since the UNIX epoch.
    pub token_expiry: i64,
}

/// Why a person may not log in. The text is for that person.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AccountError {
    /// The provider put the groups elsewhere.
    #[error(
        "your account is in more groups than the provider puts into a token, so your groups are not known; the administrator of the provider can limit the token to groups that are assigned to this application"
    )]
    GroupOverage,
    /// More groups than are taken.
    #[error(
        "your account is in more than {MAX_GROUPS} groups; the administrator of the provider can limit which ones the token contains"
    )]
    TooManyGroups,
    /// Not a list of names.
    #[error(
        "the provider sends the claim \"{0}\" in a form that is not supported; a list of names is expected"
    )]
    GroupForm(String),
    /// A rule needs an e-mail address and there is none.
    #[error(
        "the provider sends no e-mail address for your account, and this network admits people by it; is the scope \"email\" allowed there?"
    )]
    NoEmail,
    /// The provider has not verified the address.
    #[error(
        "the provider has not verified the e-mail address {0}; verify it there, then log in again"
    )]
    Unverified(String),
    /// Another domain.
    #[error("accounts of \"{0}\" are not admitted to this network")]
    Domain(String),
    /// The account has no domain.
    #[error(
        "personal accounts are not admitted to this network; use the account of your organisation"
    )]
    NoDomain,
    /// Not on the list.
    #[error("the account {0} is not on the list of users of this network")]
    User(String),
    /// Not in one of the groups.
    #[error("your account is in none of the groups that are admitted to this network")]
    Group,
}

impl Account {
    /// The person in the claims of an ID token, with more claims from the userinfo
    /// endpoint where there are any, if the rules admit them.
    ///
    /// # Errors
    /// [`AccountError`].
    pub fn admitted(
        provider: &Provider,
        token: &Claims,
        userinfo: Option<&Claims>,
    ) -> Result<Self, AccountError> {
        let text = |name: &str| {
            let more = userinfo.and_then(|claims| claims.text(name));
            more.or_else(|| token.text(name))
        };
        let groups = match &provider.groups_claim {
            Some(claim) => groups(claim, token, userinfo)?,
            None => BTreeSet::new(),
        };
        let email = email(token, userinfo);
        let trusted = email
            .as_ref()
            .filter(|(_, verified)| *verified || provider.rules.trust_unverified_email);
        check_rules(&provider.rules, token, email.as_ref(), &groups)?;
        let full_name = || {
            let parts = [text("given_name"), text("family_name")];
            let parts: Vec<&str> = parts.into_iter().flatten().collect();
            (!parts.is_empty()).then(|| parts.join(" "))
        };
        let display_name = text("name").map(str::to_owned).or_else(full_name);
        Ok(Self {
            provider: provider.name.clone(),
            issuer: provider.issuer.clone(),
            subject: token.text("sub").unwrap_or_default().to_owned(),
            email: trusted.map(|(address, _)| address.clone()),
            username: text("preferred_username").map(str::to_owned),
            display_name: display_name.map(|name| name.chars().take(MAX_DISPLAY_NAME).collect()),
            picture: text("picture")
                .filter(|url| url.starts_with("https://") && url.len() <= MAX_PICTURE)
                .map(str::to_owned),
            groups,
            token_expiry: token.seconds("exp").unwrap_or_default(),
        })
    }
}

/// The e-mail address and whether it is verified, both from the same place.
fn email(token: &Claims, userinfo: Option<&Claims>) -> Option<(String, bool)> {
    let of = |claims: &Claims| {
        let address = claims.text("email").and_then(address)?;
        let verified = match claims.0.get("email_verified") {
            Some(Value::Bool(verified)) => *verified,
            // Some gateways make text of it.
            Some(Value::String(verified)) => verified == "true",
            _ => false,
        };
        Some((address, verified))
    };
    let (own, more) = (of(token), userinfo.and_then(of));
    match (own, more) {
        (Some((a, true)), Some((b, _))) if a == b => Some((a, true)),
        (own, more) => more.or(own),
    }
}

/// An e-mail address with its domain in lower case. `None`: it is not one.
fn address(text: &str) -> Option<String> {
    let (local, domain) = text.split_once('@')?;
    let good = |c: char| !c.is_whitespace() && !c.is_control() && !"<>\"@,;:\\".contains(c);
    let sane = text.len() <= MAX_EMAIL
        && !local.is_empty()
        && !domain.is_empty()
        && local.chars().all(good)
        && domain.chars().all(good);
    sane.then(|| format!("{local}@{}", domain.to_lowercase()))
}

fn groups(
    claim: &str,
    token: &Claims,
    userinfo: Option<&Claims>,
) -> Result<BTreeSet<String>, AccountError> {
    let more = userinfo.and_then(|claims| claims.0.get(claim));
    let Some(value) = more.or_else(|| token.0.get(claim)) else {
        // Too many for a token: the provider says where they are instead.
        let elsewhere = token.0.get("_claim_names");
        let elsewhere = elsewhere.is_some_and(|names| names.get(claim).is_some());
        let has = token.0.get("hasgroups").is_some_and(|has| match has {
            Value::Bool(has) => *has,
            other => other.as_str() == Some("true"),
        });
        if elsewhere || has {
            return Err(AccountError::GroupOverage);
        }
        return Ok(BTreeSet::new());
    };
    let form = || AccountError::GroupForm(claim.to_owned());
    let name = |value: &Value| {
        let name = value.as_str().filter(|name| name.len() <= MAX_GROUP);
        name.map(str::to_owned).ok_or_else(form)
    };
    let found: BTreeSet<String> = match value {
        Value::Null => BTreeSet::new(),
        Value::Array(all) if all.len() > MAX_GROUPS => return Err(AccountError::TooManyGroups),
        Value::Array(all) => all.iter().map(name).collect::<Result<_, _>>()?,
        one => BTreeSet::from([name(one)?]),
    };
    Ok(found.into_iter().filter(|name| !name.is_empty()).collect())
}

fn check_rules(
    rules: &Rules,
    token: &Claims,
    email: Option<&(String, bool)>,
    groups: &BTreeSet<String>,
) -> Result<(), AccountError> {
    let trusted = || match email {
        None => Err(AccountError::NoEmail),
        Some((address, verified)) if *verified || rules.trust_unverified_email => Ok(address),
        Some((address, _)) => Err(AccountError::Unverified(address.clone())),
    };
    if !rules.domains.is_empty() {
        let domain = match &rules.domain_claim {
            Some(claim) => token.text(claim).ok_or(AccountError::NoDomain)?,
            None => trusted()?.rsplit('@').next().unwrap_or_default(),
        };
        if !rules.domains.contains(&domain.to_lowercase()) {
            return Err(AccountError::Domain(domain.to_owned()));
        }
    }
    if !rules.users.is_empty() {
        let address = trusted()?;
        if !rules.users.contains(&address.to_lowercase()) {
            return Err(AccountError::User(address.clone()));
        }
    }
    if !rules.groups.is_empty() && rules.groups.is_disjoint(groups) {
        return Err(AccountError::Group);
    }
    Ok(())
}

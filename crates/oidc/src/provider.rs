//! The configuration of a provider.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use url::{Host, Url};
use zeroize::Zeroizing;

/// The scopes that are asked for if the configuration names none.
pub const DEFAULT_SCOPES: [&str; 3] = ["openid", "profile", "email"];
/// The longest name of a provider, in bytes.
const MAX_NAME: usize = 32;
/// The parameters of an authorisation request that the flow sets.
const RESERVED: [&str; 8] = [
    "response_type",
    "client_id",
    "redirect_uri",
    "scope",
    "state",
    "nonce",
    "code_challenge",
    "code_challenge_method",
];

/// A client secret. It is wiped from memory and never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// The secret with this text.
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The text, for the request to the provider.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// When the key of a node ends that joined by a login at the provider. The server's own
/// limit holds in addition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KeyEnd {
    /// When the server's limit says.
    #[default]
    Server,
    /// This long after the login.
    After(Duration),
    /// When the ID token expires (`exp`).
    Token,
}

/// The people who may log in. Every rule that is not empty must be met.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules {
    /// Domains, in lower case.
    pub domains: BTreeSet<String>,
    /// The claim of the ID token that names the domain. `None`: the domain of the
    /// e-mail address counts.
    pub domain_claim: Option<String>,
    /// E-mail addresses, in lower case.
    pub users: BTreeSet<String>,
    /// Groups; one of them is needed.
    pub groups: BTreeSet<String>,
    /// Whether an e-mail address counts that the provider has not verified.
    pub trust_unverified_email: bool,
}

impl Rules {
    /// Whether all people with an account at the provider may log in.
    #[must_use]
    pub fn admit_all(&self) -> bool {
        self.domains.is_empty() && self.users.is_empty() && self.groups.is_empty()
    }
}

/// A provider and how to log in there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Provider {
    /// The name in addresses and in the policy (`oidc:NAME/GROUP`).
    pub name: String,
    /// The name for people, on the button.
    pub title: String,
    /// The issuer, byte for byte as the provider writes it.
    pub issuer: String,
    /// The id under which this server is registered there.
    pub client_id: String,
    /// The secret of that registration. `None`: a public client.
    pub client_secret: Option<Secret>,
    /// The scopes to ask for, `openid` among them.
    pub scopes: Vec<String>,
    /// More parameters of the authorisation request, such as `prompt`.
    pub extra_parameters: BTreeMap<String, String>,
    /// The claim that lists the person's groups. `None`: groups are not read.
    pub groups_claim: Option<String>,
    /// The people who may log in.
    pub rules: Rules,
    /// When the keys of their nodes end.
    pub key_end: KeyEnd,
}

/// The configuration of a provider cannot work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProviderError {
    /// The name cannot be part of an address.
    #[error(
        "name \"{0}\": use 1 to {MAX_NAME} lower-case letters, digits and \"-\", for example \"google\""
    )]
    Name(String),
    /// The issuer is no URL that can be asked.
    #[error(
        "issuer \"{0}\": write the https:// address that the provider documents as its issuer; http:// works for this machine only"
    )]
    Issuer(String),
    /// The provider does not speak OpenID Connect.
    #[error(
        "issuer \"{0}\": GitHub does not speak OpenID Connect to people's browsers; put a broker between that does, such as Dex, Keycloak or Authentik, and name the broker's issuer here"
    )]
    NotOpenIdConnect(String),
    /// An entry that must not be empty is.
    #[error("{0} is empty")]
    Empty(&'static str),
    /// Without this scope there is no ID token.
    #[error("scopes must contain \"openid\"; without it the provider sends no ID token")]
    NoOpenIdScope,
    /// The flow sets this parameter itself.
    #[error("extra_parameters must not contain \"{0}\": the login sets it")]
    Reserved(String),
    /// A rule about groups cannot be met if groups are not read.
    #[error("allowed_groups needs groups_claim, the claim that lists the groups")]
    GroupsNotRead,
}

impl Provider {
    /// Checks what can be checked without asking the provider.
    ///
    /// # Errors
    /// [`ProviderError`] says what to change.
    pub fn check(&self) -> Result<(), ProviderError> {
        let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if !(1..=MAX_NAME).contains(&self.name.len()) || !self.name.bytes().all(good) {
            return Err(ProviderError::Name(self.name.clone()));
        }
        let bad_issuer = || ProviderError::Issuer(self.issuer.clone());
        let issuer = Url::parse(&self.issuer).map_err(|_| bad_issuer())?;
        if !may_be_asked(&issuer, is_local(&issuer)) || issuer.query().is_some() {
            return Err(bad_issuer());
        }
        if matches!(issuer.host_str(), Some("github.com" | "api.github.com")) {
            return Err(ProviderError::NotOpenIdConnect(self.issuer.clone()));
        }
        for (value, what) in [(&self.client_id, "client_id"), (&self.title, "title")] {
            if value.trim().is_empty() {
                return Err(ProviderError::Empty(what));
            }
        }
        if let Some(secret) = &self.client_secret
            && secret.expose().is_empty()
        {
            return Err(ProviderError::Empty("the client secret"));
        }
        if !self.scopes.iter().any(|scope| scope == "openid") {
            return Err(ProviderError::NoOpenIdScope);
        }
        if let Some(name) = self
            .extra_parameters
            .keys()
            .find(|name| RESERVED.contains(&name.as_str()))
        {
            return Err(ProviderError::Reserved(name.clone()));
        }
        if !self.rules.groups.is_empty() && self.groups_claim.is_none() {
            return Err(ProviderError::GroupsNotRead);
        }
        Ok(())
    }
}

/// Whether the address is on this machine, where plain HTTP is accepted.
pub(crate) fn is_local(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(ip)) => ip.is_loopback(),
        Some(Host::Ipv6(ip)) => ip.is_loopback(),
        None => false,
    }
}

/// Whether a request may go to the address: HTTPS, or HTTP to this machine for an
/// issuer that is there too.
pub(crate) fn may_be_asked(url: &Url, local_issuer: bool) -> bool {
    let scheme =
        url.scheme() == "https" || (url.scheme() == "http" && local_issuer && is_local(url));
    scheme
        && url.host().is_some()
        && url.username().is_empty()
        && url.password().is_none()
        && url.fragment().is_none()
}

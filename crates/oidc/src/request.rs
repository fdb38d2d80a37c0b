//! The requests of a login: to the provider by way of the browser, back to this
//! server, and from here to the token endpoint (OpenID Connect Core 1.0, section
//! 3.1.2; RFC 7636; RFC 9207).

use std::borrow::Cow;

use data_encoding::{BASE64, BASE64URL_NOPAD};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use url::{Url, form_urlencoded};
use warren_keys::Entropy;

use crate::discovery::{ClientAuth, Discovery};
use crate::provider::Provider;

/// The longest value of a callback's parameter, in bytes; codes of some providers have
/// two thousand.
const MAX_PARAMETER: usize = 8192;
/// The longest text of a provider that is shown, in characters.
const MAX_SHOWN: usize = 300;

/// 256 random bits as text that needs no escaping in an address or a cookie.
pub fn random_text(entropy: &mut dyn Entropy) -> String {
    let mut bytes = [0; 32];
    entropy.fill(&mut bytes);
    BASE64URL_NOPAD.encode(&bytes)
}

/// The secrets of one login, which the ID token and the token call must match.
#[derive(Clone, PartialEq, Eq)]
pub struct LoginSecrets {
    /// Comes back in the ID token.
    pub nonce: String,
    /// Its digest went to the provider; it goes there itself with the code (PKCE).
    pub verifier: String,
}

impl LoginSecrets {
    /// Fresh ones.
    pub fn generate(entropy: &mut dyn Entropy) -> Self {
        Self {
            nonce: random_text(entropy),
            verifier: random_text(entropy),
        }
    }

    fn challenge(&self) -> String {
        BASE64URL_NOPAD.encode(&Sha256::digest(self.verifier.as_bytes()))
    }
}

impl std::fmt::Debug for LoginSecrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LoginSecrets(..)")
    }
}

/// The address to which the browser is sent.
pub fn authorization_url(
    provider: &Provider,
    discovery: &Discovery,
    redirect_uri: &str,
    state: &str,
    secrets: &LoginSecrets,
) -> Url {
    let mut url = discovery.authorization_endpoint.clone();
    let mut query = url.query_pairs_mut();
    query
        .append_pair("response_type", "code")
        .append_pair("client_id", &provider.client_id)
        .append_pair("redirect_uri", redirect_uri)
        .append_pair("scope", &provider.scopes.join(" "))
        .append_pair("state", state)
        .append_pair("nonce", &secrets.nonce)
        .append_pair("code_challenge", &secrets.challenge())
        .append_pair("code_challenge_method", "S256");
    for (name, value) in &provider.extra_parameters {
        query.append_pair(name, value);
    }
    drop(query);
    url
}

/// The browser came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Callback {
    /// Names the login.
    pub state: String,
    /// The code, or the provider's error.
    pub result: Result<String, CallbackError>,
    /// The issuer that the provider says it is.
    pub issuer: Option<String>,
}

/// The provider did not log the person in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}{}", if .description.is_empty() { String::new() } else { format!(": {}", .description) })]
pub struct CallbackError {
    /// The code of the error, such as `access_denied`.
    pub code: String,
    /// The provider's words, cut and without control characters; to be escaped.
    pub description: String,
}

impl Callback {
    /// Reads the query of the callback. `None`: there is no state, neither a code nor
    /// an error, or a parameter comes twice or is too long.
    pub fn parse(query: &str) -> Option<Self> {
        let mut values: [Option<Cow<'_, str>>; 5] = Default::default();
        let names = ["state", "code", "iss", "error", "error_description"];
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            let Some(index) = names.iter().position(|known| *known == name) else {
                continue;
            };
            if values[index].is_some() || value.len() > MAX_PARAMETER {
                return None;
            }
            values[index] = Some(value);
        }
        let [state, code, issuer, error, description] = values;
        let result = match (error, code) {
            (Some(error), _) => Err(CallbackError {
                code: shown(&error),
                description: shown(description.as_deref().unwrap_or_default()),
            }),
            (None, Some(code)) if !code.is_empty() => Ok(code.into_owned()),
            (None, _) => return None,
        };
        Some(Self {
            state: state?.into_owned(),
            result,
            issuer: issuer.map(Cow::into_owned),
        })
    }

    /// Whether it comes from this provider, as far as that can be seen (RFC 9207): an
    /// issuer that is named must be the right one, and a provider that announces to
    /// name it must.
    pub fn is_from(&self, provider: &Provider, discovery: &Discovery) -> bool {
        match &self.issuer {
            Some(issuer) => *issuer == provider.issuer,
            None => !discovery.names_issuer,
        }
    }
}

/// Text of a provider for people: one line, not long.
fn shown(text: &str) -> String {
    let text = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    text.take(MAX_SHOWN).collect()
}

/// The request that exchanges a code for tokens: a form, and perhaps a header
/// `Authorization`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exchange {
    /// The body, `application/x-www-form-urlencoded`.
    pub form: String,
    /// The value of the header.
    pub authorization: Option<String>,
}

impl Exchange {
    /// The request for this code.
    pub fn new(
        provider: &Provider,
        client_auth: ClientAuth,
        redirect_uri: &str,
        code: &str,
        verifier: &str,
    ) -> Self {
        let mut form = form_urlencoded::Serializer::new(String::new());
        form.append_pair("grant_type", "authorization_code")
            .append_pair("code", code)
            .append_pair("redirect_uri", redirect_uri)
            .append_pair("code_verifier", verifier);
        let secret = provider.client_secret.as_ref();
        let authorization = match (client_auth, secret) {
            (ClientAuth::Basic, Some(secret)) => {
                // Both are form-encoded first (RFC 6749 section 2.3.1).
                let encoded = |text: &str| -> String {
                    form_urlencoded::byte_serialize(text.as_bytes()).collect()
                };
                let pair = format!(
                    "{}:{}",
                    encoded(&provider.client_id),
                    encoded(secret.expose())
                );
                Some(format!("Basic {}", BASE64.encode(pair.as_bytes())))
            }
            (ClientAuth::Post, Some(secret)) => {
                form.append_pair("client_id", &provider.client_id)
                    .append_pair("client_secret", secret.expose());
                None
            }
            (ClientAuth::Public | ClientAuth::Basic | ClientAuth::Post, _) => {
                form.append_pair("client_id", &provider.client_id);
                None
            }
        };
        Self {
            form: form.finish(),
            authorization,
        }
    }
}

/// The tokens.
#[derive(Clone, Deserialize)]
pub struct TokenAnswer {
    /// The ID token, not checked.
    pub id_token: String,
    /// Opens the userinfo endpoint.
    #[serde(default)]
    pub access_token: Option<String>,
}

impl std::fmt::Debug for TokenAnswer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TokenAnswer(..)")
    }
}

/// The token endpoint gave no tokens.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenAnswerError {
    /// It refused, for this reason.
    #[error("the provider refused the code of this login: {0}")]
    Refused(String),
    /// It sent no ID token.
    #[error("the provider sent no ID token; is the scope \"openid\" allowed for this application?")]
    NoIdToken,
    /// Something else.
    #[error("the provider's answer to the code of this login cannot be read (status {0})")]
    Unreadable(u16),
}

impl TokenAnswer {
    /// Reads the answer of the token endpoint.
    ///
    /// # Errors
    /// [`TokenAnswerError`].
    pub fn parse(status: u16, body: &[u8]) -> Result<Self, TokenAnswerError> {
        #[derive(Deserialize)]
        struct Refusal {
            error: String,
            #[serde(default)]
            error_description: String,
        }
        // Some send errors with the status 200.
        if let Ok(refusal) = serde_json::from_slice::<Refusal>(body) {
            let error = CallbackError {
                code: shown(&refusal.error),
                description: shown(&refusal.error_description),
            };
            return Err(TokenAnswerError::Refused(error.to_string()));
        }
        if status != 200 {
            return Err(TokenAnswerError::Unreadable(status));
        }
        let answer: serde_json::Map<String, serde_json::Value> =
            serde_json::from_slice(body).map_err(|_| TokenAnswerError::Unreadable(status))?;
        if !answer.contains_key("id_token") {
            return Err(TokenAnswerError::NoIdToken);
        }
        serde_json::from_value(answer.into()).map_err(|_| TokenAnswerError::Unreadable(status))
    }
}

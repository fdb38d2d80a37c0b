//! The document of a provider (OpenID Connect Discovery 1.0).

use serde::Deserialize;
use url::Url;

use crate::provider::{Provider, is_local, may_be_asked};

/// The end of the address of the document, after the issuer (section 4).
const PATH: &str = "/.well-known/openid-configuration";

/// How the client identifies itself to the token endpoint (OpenID Connect Core 1.0,
/// section 9).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientAuth {
    /// `client_secret_basic`.
    Basic,
    /// `client_secret_post`.
    Post,
    /// None: a public client, for which PKCE stands in.
    Public,
}

/// The part of the document that a login uses, checked.
#[derive(Debug, Clone)]
pub struct Discovery {
    /// Where the browser is sent.
    pub authorization_endpoint: Url,
    /// Where the code is exchanged.
    pub token_endpoint: Url,
    /// Where more claims are, if the provider has that.
    pub userinfo_endpoint: Option<Url>,
    /// Where the keys are.
    pub jwks_uri: Url,
    /// How the client identifies itself.
    pub client_auth: ClientAuth,
    /// Whether the callback names the issuer (RFC 9207).
    pub names_issuer: bool,
}

/// The document cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DiscoveryError {
    /// Not JSON, or a member is missing.
    #[error("the discovery document is not valid: {0}")]
    Json(String),
    /// The issuer differs.
    #[error(
        "the configuration says issuer = \"{configured}\", the provider calls itself \"{found}\"; they must be equal to the last character, a slash at the end included"
    )]
    Issuer {
        /// That of the configuration.
        configured: String,
        /// That of the document.
        found: String,
    },
    /// An address that must not be used.
    #[error("the provider's {name} \"{url}\" is not an https:// address")]
    Endpoint {
        /// The member of the document.
        name: &'static str,
        /// Its value.
        url: String,
    },
    /// No way to identify this client.
    #[error(
        "the provider's token endpoint takes none of client_secret_basic and client_secret_post; it takes: {0}"
    )]
    ClientAuth(String),
}

#[derive(Deserialize)]
struct Document {
    issuer: String,
    authorization_endpoint: String,
    token_endpoint: String,
    jwks_uri: String,
    #[serde(default)]
    userinfo_endpoint: Option<String>,
    #[serde(default)]
    token_endpoint_auth_methods_supported: Option<Vec<String>>,
    #[serde(default)]
    authorization_response_iss_parameter_supported: Option<bool>,
}

impl Discovery {
    /// The address of a provider's document. `None`: the issuer is no address.
    pub fn url(issuer: &str) -> Option<Url> {
        let base = issuer.strip_suffix('/').unwrap_or(issuer);
        Url::parse(&format!("{base}{PATH}")).ok()
    }

    /// Reads the document of this provider.
    ///
    /// # Errors
    /// [`DiscoveryError`].
    pub fn parse(document: &[u8], provider: &Provider) -> Result<Self, DiscoveryError> {
        let document: Document = serde_json::from_slice(document)
            .map_err(|error| DiscoveryError::Json(error.to_string()))?;
        if document.issuer != provider.issuer {
            return Err(DiscoveryError::Issuer {
                configured: provider.issuer.clone(),
                found: document.issuer,
            });
        }
        let local = Url::parse(&provider.issuer).is_ok_and(|issuer| is_local(&issuer));
        let endpoint = |name: &'static str, text: String| match Url::parse(&text) {
            Ok(url) if may_be_asked(&url, local) => Ok(url),
            _ => Err(DiscoveryError::Endpoint { name, url: text }),
        };
        Ok(Self {
            client_auth: client_auth(
                provider.client_secret.is_some(),
                document.token_endpoint_auth_methods_supported.as_deref(),
            )?,
            authorization_endpoint: endpoint(
                "authorization_endpoint",
                document.authorization_endpoint,
            )?,
            token_endpoint: endpoint("token_endpoint", document.token_endpoint)?,
            userinfo_endpoint: document
                .userinfo_endpoint
                .map(|text| endpoint("userinfo_endpoint", text))
                .transpose()?,
            jwks_uri: endpoint("jwks_uri", document.jwks_uri)?,
            names_issuer: document
                .authorization_response_iss_parameter_supported
                .unwrap_or(false),
        })
    }
}

fn client_auth(has_secret: bool, methods: Option<&[String]>) -> Result<ClientAuth, DiscoveryError> {
    if !has_secret {
        return Ok(ClientAuth::Public);
    }
    // The default where the document says nothing.
    let Some(methods) = methods else {
        return Ok(ClientAuth::Basic);
    };
    let has = |name: &str| methods.iter().any(|method| method == name);
    if has("client_secret_basic") {
        Ok(ClientAuth::Basic)
    } else if has("client_secret_post") {
        Ok(ClientAuth::Post)
    } else {
        Err(DiscoveryError::ClientAuth(methods.join(", ")))
    }
}

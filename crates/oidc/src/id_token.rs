//! The checks of an ID token (OpenID Connect Core 1.0, section 3.1.3.7).

use std::time::Duration;

use data_encoding::BASE64URL_NOPAD;
use jsonwebtoken::Algorithm;
use serde::Deserialize;
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256, Sha384, Sha512};
use subtle::ConstantTimeEq as _;

use crate::keys::{Digest, KeySet, Unverified, accepted, digest_of};

/// The longest token, in bytes.
const MAX_TOKEN: usize = 64 * 1024;
/// The longest subject, in bytes (section 2).
const MAX_SUBJECT: usize = 255;
/// How far the provider's clock and this one may be apart.
pub const LEEWAY: Duration = Duration::from_secs(60);
/// The oldest token that is accepted, whatever its expiry: it was made in this login.
const MAX_AGE: Duration = Duration::from_secs(24 * 3600);

/// Expectations of an ID token.
#[derive(Debug, Clone, Copy)]
pub struct Expected<'a> {
    /// The issuer.
    pub issuer: &'a str,
    /// The audience: this client.
    pub client_id: &'a str,
    /// The nonce of this login.
    pub nonce: &'a str,
    /// The access token that came with it, for `at_hash`.
    pub access_token: Option<&'a str>,
    /// The time since the UNIX epoch.
    pub wall: Duration,
}

/// The claims of a token that was checked, or of the userinfo endpoint.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Claims(pub(crate) Map<String, Value>);

impl Claims {
    /// A claim that is text and not empty.
    pub fn text(&self, name: &str) -> Option<&str> {
        let text = self.0.get(name)?.as_str()?;
        (!text.is_empty()).then_some(text)
    }

    /// Whether there is a claim with this name.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// A claim that is a time, in seconds since the UNIX epoch.
    pub fn seconds(&self, name: &str) -> Option<i64> {
        let value = self.0.get(name)?;
        // The limits of f64 as integers; a cast beyond saturates.
        value.as_i64().or_else(|| value.as_f64().map(|f| f as i64))
    }

    /// Reads the answer of the userinfo endpoint. `None` if it is not about
    /// `subject`: then nothing of it may be used (section 5.3.2).
    pub fn of_userinfo(answer: &[u8], subject: &str) -> Option<Self> {
        let claims: Map<String, Value> = serde_json::from_slice(answer).ok()?;
        let claims = Self(claims);
        (claims.text("sub") == Some(subject)).then_some(claims)
    }
}

/// Why a token is refused. The text is shown to the person who logs in and goes to the
/// log; it contains nothing of the token but names.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Longer than any.
    #[error("the ID token is longer than {MAX_TOKEN} bytes")]
    TooLong,
    /// Encrypted.
    #[error(
        "the ID token is encrypted, which is not supported; remove the encryption key from this application at the provider"
    )]
    Encrypted,
    /// Not three parts of base64url and JSON.
    #[error("the ID token cannot be read")]
    Malformed,
    /// Signed with the client secret.
    #[error(
        "the ID token is signed with the client secret ({0}); choose a signing key for this application at the provider"
    )]
    SharedSecret(String),
    /// Signed by an algorithm that is not accepted, or not signed.
    #[error(
        "the ID token is signed with \"{0}\", which is not accepted; use RS256, ES256 or EdDSA at the provider"
    )]
    Algorithm(String),
    /// Has extensions that must be understood.
    #[error("the ID token has critical extensions, which are not supported")]
    Critical,
    /// No key with this id. The keys may have been rotated.
    #[error("the ID token is signed with a key that the provider does not publish")]
    UnknownKey,
    /// Forged, or damaged.
    #[error("the signature of the ID token is wrong")]
    Signature,
    /// A claim is not what it has to be.
    #[error("the ID token is not for this login: its {0} is wrong or missing")]
    Claim(&'static str),
    /// Expired.
    #[error("the ID token has expired; is the clock of this server right?")]
    Expired,
    /// Issued in the future or long ago.
    #[error("the ID token was not issued now; is the clock of this server right?")]
    NotNow,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    #[serde(default)]
    kid: Option<String>,
    #[serde(default)]
    crit: Option<Value>,
}

/// Checks an ID token, signature first.
///
/// # Errors
/// [`TokenError`]. After [`TokenError::UnknownKey`], newer keys may help.
pub fn check(token: &str, keys: &KeySet, expected: &Expected<'_>) -> Result<Claims, TokenError> {
    if token.len() > MAX_TOKEN {
        return Err(TokenError::TooLong);
    }
    let parts: Vec<&str> = token.split('.').collect();
    let [header, payload, signature] = parts[..] else {
        return Err(match parts.len() {
            5 => TokenError::Encrypted,
            _ => TokenError::Malformed,
        });
    };
    let bytes = |part: &str| {
        let decoded = BASE64URL_NOPAD.decode(part.as_bytes());
        decoded.map_err(|_| TokenError::Malformed)
    };
    let head: Header =
        serde_json::from_slice(&bytes(header)?).map_err(|_| TokenError::Malformed)?;
    if head.crit.is_some() {
        return Err(TokenError::Critical);
    }
    let algorithm = accepted(&head.alg).ok_or_else(|| {
        let name: String = head.alg.chars().take(16).collect();
        match name.starts_with("HS") {
            true => TokenError::SharedSecret(name),
            false => TokenError::Algorithm(name),
        }
    })?;
    let signed = &token.as_bytes()[..header.len() + 1 + payload.len()];
    let kid = head.kid.as_deref();
    bytes(signature)?;
    keys.verify(algorithm, &head.alg, kid, signed, signature)
        .map_err(|why| match why {
            Unverified::NoKey => TokenError::UnknownKey,
            Unverified::Signature => TokenError::Signature,
        })?;
    let claims: Map<String, Value> =
        serde_json::from_slice(&bytes(payload)?).map_err(|_| TokenError::Malformed)?;
    let claims = Claims(claims);
    check_claims(&claims, algorithm, expected)?;
    Ok(claims)
}

fn check_claims(
    claims: &Claims,
    algorithm: Algorithm,
    expected: &Expected<'_>,
) -> Result<(), TokenError> {
    if claims.text("iss") != Some(expected.issuer) {
        return Err(TokenError::Claim("issuer"));
    }
    check_audience(claims, expected.client_id)?;
    let nonce = claims.text("nonce").unwrap_or_default();
    if !bool::from(nonce.as_bytes().ct_eq(expected.nonce.as_bytes())) {
        return Err(TokenError::Claim("nonce"));
    }
    let subject = claims.text("sub").unwrap_or_default();
    if !(1..=MAX_SUBJECT).contains(&subject.len()) {
        return Err(TokenError::Claim("subject"));
    }
    let seconds = |time: Duration| i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    let (now, leeway) = (seconds(expected.wall), seconds(LEEWAY));
    let expiry = claims.seconds("exp").ok_or(TokenError::Claim("expiry"))?;
    if expiry.saturating_add(leeway) <= now {
        return Err(TokenError::Expired);
    }
    let issued = claims
        .seconds("iat")
        .ok_or(TokenError::Claim("time of issue"))?;
    let begins = claims.seconds("nbf").unwrap_or(issued);
    let oldest = now.saturating_sub(seconds(MAX_AGE));
    if issued.max(begins) > now.saturating_add(leeway) || issued < oldest {
        return Err(TokenError::NotNow);
    }
    if let Some(hash) = claims.0.get("at_hash") {
        let token = expected.access_token.unwrap_or_default();
        let wanted = half_of_digest(digest_of(algorithm), token.as_bytes());
        if hash.as_str() != Some(wanted.as_str()) {
            return Err(TokenError::Claim("at_hash"));
        }
    }
    Ok(())
}

/// This client is the audience; where there are several, the token was made for this
/// one (`azp`).
fn check_audience(claims: &Claims, client_id: &str) -> Result<(), TokenError> {
    let wrong = TokenError::Claim("audience");
    let party = claims
        .0
        .get("azp")
        .map(|party| party.as_str() == Some(client_id));
    let several = match claims.0.get("aud") {
        Some(Value::String(one)) if one == client_id => false,
        Some(Value::Array(all)) if all.iter().any(|one| one.as_str() == Some(client_id)) => {
            all.len() > 1
        }
        _ => return Err(wrong),
    };
    match party {
        Some(false) => Err(wrong),
        None if several => Err(wrong),
        Some(true) | None => Ok(()),
    }
}

/// The left half of the digest of an access token (section 3.1.3.6).
pub(crate) fn half_of_digest(digest: Digest, token: &[u8]) -> String {
    let whole = match digest {
        Digest::Sha256 => Sha256::digest(token).to_vec(),
        Digest::Sha384 => Sha384::digest(token).to_vec(),
        Digest::Sha512 => Sha512::digest(token).to_vec(),
    };
    BASE64URL_NOPAD.encode(&whole[..whole.len() / 2])
}

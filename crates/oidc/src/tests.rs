//! Tokens, documents and claims as providers send them, and as attackers do.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::time::Duration;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256,
    RSA_PSS_SHA256, RsaKeyPair,
};
use data_encoding::BASE64URL_NOPAD;
use proptest::prelude::*;
use serde_json::{Value, json};
use warren_testkit::CountingEntropy;

use crate::discovery::ClientAuth;
use crate::id_token::{Expected, check, half_of_digest};
use crate::keys::Digest;
use crate::request::authorization_url;
use crate::*;

const ISSUER: &str = "https://id.example";
const CLIENT: &str = "warren";
const NONCE: &str = "n-0S6_WzA2Mj";
const NOW: u64 = 1_780_000_000;

enum Signer {
    Es256(EcdsaKeyPair),
    EdDsa(Ed25519KeyPair),
    Rsa(RsaKeyPair),
}

fn b64(bytes: impl AsRef<[u8]>) -> String {
    BASE64URL_NOPAD.encode(bytes.as_ref())
}

impl Signer {
    fn es256() -> Self {
        let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
        let rng = SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &rng).unwrap();
        Self::Es256(EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref()).unwrap())
    }

    fn eddsa() -> Self {
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        Self::EdDsa(Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).unwrap())
    }

    fn rsa() -> Self {
        Self::Rsa(RsaKeyPair::generate(KeySize::Rsa2048).unwrap())
    }

    fn algorithm(&self) -> &'static str {
        match self {
            Self::Es256(_) => "ES256",
            Self::EdDsa(_) => "EdDSA",
            Self::Rsa(_) => "RS256",
        }
    }

    fn jwk(&self, id: Option<&str>) -> Value {
        let mut key = match self {
            Self::Es256(pair) => {
                let point = pair.public_key().as_ref();
                json!({"kty": "EC", "crv": "P-256", "x": b64(&point[1..33]), "y": b64(&point[33..])})
            }
            Self::EdDsa(pair) => {
                json!({"kty": "OKP", "crv": "Ed25519", "x": b64(pair.public_key())})
            }
            Self::Rsa(pair) => {
                let key = pair.public_key();
                let (n, e) = (key.modulus(), key.exponent());
                json!({"kty": "RSA",
                    "n": b64(n.big_endian_without_leading_zero()),
                    "e": b64(e.big_endian_without_leading_zero())})
            }
        };
        key["use"] = json!("sig");
        if let Some(id) = id {
            key["kid"] = json!(id);
        }
        key
    }

    fn sign(&self, algorithm: &str, message: &[u8]) -> Vec<u8> {
        let rng = SystemRandom::new();
        match self {
            Self::Es256(pair) => pair.sign(&rng, message).unwrap().as_ref().to_vec(),
            Self::EdDsa(pair) => pair.sign(message).as_ref().to_vec(),
            Self::Rsa(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                let padding = match algorithm {
                    "PS256" => pair.sign(&RSA_PSS_SHA256, &rng, message, &mut signature),
                    _ => pair.sign(&RSA_PKCS1_SHA256, &rng, message, &mut signature),
                };
                padding.unwrap();
                signature
            }
        }
    }

    fn token_with(&self, header: &Value, claims: &Value) -> String {
        let message = format!("{}.{}", b64(header.to_string()), b64(claims.to_string()));
        let algorithm = header["alg"].as_str().unwrap_or_default();
        let signature = self.sign(algorithm, message.as_bytes());
        format!("{message}.{}", b64(signature))
    }

    fn token(&self, claims: &Value) -> String {
        self.token_with(&json!({"alg": self.algorithm(), "kid": "k1"}), claims)
    }
}

fn keys(all: &[Value]) -> KeySet {
    KeySet::parse(json!({ "keys": all }).to_string().as_bytes()).unwrap()
}

fn claims() -> Value {
    json!({
        "iss": ISSUER, "aud": CLIENT, "sub": "alice-1", "nonce": NONCE,
        "exp": NOW + 600, "iat": NOW, "email": "alice@Example.com", "email_verified": true,
    })
}

fn with(name: &str, value: Value) -> Value {
    let mut all = claims();
    match value {
        Value::Null => {
            all.as_object_mut().unwrap().remove(name);
        }
        value => all[name] = value,
    }
    all
}

fn expected() -> Expected<'static> {
    Expected {
        issuer: ISSUER,
        client_id: CLIENT,
        nonce: NONCE,
        access_token: Some("token"),
        wall: Duration::from_secs(NOW),
    }
}

fn provider() -> Provider {
    Provider {
        name: "okta".to_owned(),
        title: "Okta".to_owned(),
        issuer: ISSUER.to_owned(),
        client_id: CLIENT.to_owned(),
        client_secret: Some(Secret::new("a+/= %".to_owned())),
        scopes: vec!["openid".to_owned(), "email".to_owned()],
        extra_parameters: BTreeMap::from([("prompt".to_owned(), "select account".to_owned())]),
        groups_claim: Some("groups".to_owned()),
        rules: Rules::default(),
        key_end: KeyEnd::Server,
    }
}

fn admitted(
    provider: &Provider,
    token: &Value,
    userinfo: Option<Value>,
) -> Result<Account, AccountError> {
    let of = |value: &Value| Claims(value.as_object().unwrap().clone());
    let userinfo = userinfo.map(|userinfo| of(&userinfo));
    Account::admitted(provider, &of(token), userinfo.as_ref())
}

#[test]
fn tokens_of_every_key_type_are_accepted() {
    for signer in [Signer::es256(), Signer::eddsa(), Signer::rsa()] {
        let set = keys(&[signer.jwk(Some("k1"))]);
        let checked = check(&signer.token(&claims()), &set, &expected()).unwrap();
        assert_eq!(checked.text("sub"), Some("alice-1"));
        // Without a key id, in a set of one key and in one of several.
        let header = json!({"alg": signer.algorithm()});
        let nameless = signer.token_with(&header, &claims());
        assert!(check(&nameless, &set, &expected()).is_ok());
        let more = keys(&[Signer::es256().jwk(None), signer.jwk(None)]);
        assert!(check(&nameless, &more, &expected()).is_ok());
    }
    let rsa = Signer::rsa();
    let token = rsa.token_with(&json!({"alg": "PS256", "kid": "k1"}), &claims());
    let set = keys(&[rsa.jwk(Some("k1"))]);
    assert!(check(&token, &set, &expected()).is_ok());
}

#[test]
fn unsigned_and_wrongly_signed_tokens_are_refused() {
    let signer = Signer::es256();
    let set = keys(&[signer.jwk(Some("k1"))]);
    let refusal = |header: Value| check(&signer.token_with(&header, &claims()), &set, &expected());
    assert_eq!(
        refusal(json!({"alg": "none", "kid": "k1"})),
        Err(TokenError::Algorithm("none".to_owned()))
    );
    assert_eq!(
        refusal(json!({"alg": "HS256", "kid": "k1"})),
        Err(TokenError::SharedSecret("HS256".to_owned()))
    );
    // The right key for another algorithm is no key for this one.
    for alg in ["RS256", "ES384", "EdDSA"] {
        let refused = refusal(json!({"alg": alg, "kid": "k1"}));
        assert_eq!(refused, Err(TokenError::UnknownKey), "{alg}");
    }
    assert_eq!(
        refusal(json!({"alg": "ES256", "kid": "k2"})),
        Err(TokenError::UnknownKey)
    );
    assert_eq!(
        refusal(json!({"alg": "ES256", "kid": "k1", "crit": ["b64"]})),
        Err(TokenError::Critical)
    );
    // Another key under the same id.
    let forged = Signer::es256().token(&claims());
    assert_eq!(
        check(&forged, &set, &expected()),
        Err(TokenError::Signature)
    );
    // Another payload under the same signature.
    let token = signer.token(&claims());
    let parts: Vec<&str> = token.split('.').collect();
    let payload = b64(with("sub", json!("mallory")).to_string());
    let changed = format!("{}.{payload}.{}", parts[0], parts[2]);
    assert_eq!(
        check(&changed, &set, &expected()),
        Err(TokenError::Signature)
    );
    let unsigned = format!("{}.{}.", parts[0], parts[1]);
    assert_eq!(
        check(&unsigned, &set, &expected()),
        Err(TokenError::Signature)
    );
    assert_eq!(
        check("a.b.c.d.e", &set, &expected()),
        Err(TokenError::Encrypted)
    );
    for malformed in ["", "a", "a.b.c", "..", "a.b.c.d"] {
        let refused = check(malformed, &set, &expected());
        assert_eq!(refused, Err(TokenError::Malformed), "{malformed}");
    }
    let long = "a".repeat(70_000);
    assert_eq!(check(&long, &set, &expected()), Err(TokenError::TooLong));
}

#[test]
fn claims_for_another_login_are_refused() {
    let signer = Signer::es256();
    let set = keys(&[signer.jwk(Some("k1"))]);
    let outcome = |claims: &Value| check(&signer.token(claims), &set, &expected()).map(drop);
    let wrong = |claim| Err(TokenError::Claim(claim));
    let at_hash = |digest| json!(half_of_digest(digest, b"token"));
    for (name, value, wanted) in [
        ("iss", json!("https://id.example/"), wrong("issuer")),
        ("iss", Value::Null, wrong("issuer")),
        ("aud", json!("other"), wrong("audience")),
        ("aud", json!(["other"]), wrong("audience")),
        ("aud", Value::Null, wrong("audience")),
        // Also for others: then this client must be the party.
        ("aud", json!([CLIENT, "other"]), wrong("audience")),
        ("aud", json!([CLIENT]), Ok(())),
        ("azp", json!("other"), wrong("audience")),
        ("azp", json!(CLIENT), Ok(())),
        ("nonce", json!("another"), wrong("nonce")),
        ("nonce", json!(""), wrong("nonce")),
        ("nonce", Value::Null, wrong("nonce")),
        ("sub", Value::Null, wrong("subject")),
        ("sub", json!("x".repeat(256)), wrong("subject")),
        ("sub", json!("x".repeat(255)), Ok(())),
        ("exp", Value::Null, wrong("expiry")),
        ("exp", json!(NOW - 61), Err(TokenError::Expired)),
        ("exp", json!(NOW - 60), Err(TokenError::Expired)),
        ("exp", json!(NOW - 59), Ok(())),
        ("iat", Value::Null, wrong("time of issue")),
        ("iat", json!(NOW + 60), Ok(())),
        ("iat", json!(NOW + 61), Err(TokenError::NotNow)),
        ("iat", json!(NOW - 90_000), Err(TokenError::NotNow)),
        ("iat", json!(NOW as f64 + 0.5), Ok(())),
        ("nbf", json!(NOW + 61), Err(TokenError::NotNow)),
        ("at_hash", json!("x"), wrong("at_hash")),
        ("at_hash", at_hash(Digest::Sha256), Ok(())),
        ("at_hash", at_hash(Digest::Sha512), wrong("at_hash")),
    ] {
        let claims = with(name, value.clone());
        assert_eq!(outcome(&claims), wanted, "{name} = {value}");
    }
    let mut several = with("aud", json!([CLIENT, "other"]));
    several["azp"] = json!(CLIENT);
    assert_eq!(outcome(&several), Ok(()));
}

#[test]
fn keys_that_are_not_understood_are_left_out() {
    let signer = Signer::es256();
    let mut encrypting = signer.jwk(Some("enc"));
    encrypting["use"] = json!("enc");
    let mut short = signer.jwk(Some("short"));
    short["x"] = json!("AQAB");
    let set = keys(&[
        json!({"kty": "oct", "k": "c2VjcmV0"}),
        json!({"kty": "EC", "crv": "secp256k1", "x": "AA", "y": "AA"}),
        json!("no key"),
        encrypting,
        short,
        signer.jwk(Some("k1")),
    ]);
    assert_eq!(set.len(), 1);
    assert!(KeySet::parse(b"{}").is_err());
    assert!(keys(&[]).is_empty());
    let many: Vec<Value> = (0..200).map(|_| signer.jwk(None)).collect();
    assert_eq!(keys(&many).len(), 64);
}

#[test]
fn discovery_compares_the_issuer_to_the_last_character() {
    let document = |issuer: &str| {
        json!({
            "issuer": issuer,
            "authorization_endpoint": "https://id.example/authorize?tenant=1",
            "token_endpoint": "https://id.example/token",
            "jwks_uri": "https://keys.example/jwks",
            "userinfo_endpoint": "https://id.example/me",
            "token_endpoint_auth_methods_supported": ["private_key_jwt", "client_secret_post"],
        })
    };
    let parse = |document: &Value| Discovery::parse(document.to_string().as_bytes(), &provider());
    let found = parse(&document(ISSUER)).unwrap();
    assert_eq!(found.client_auth, ClientAuth::Post);
    assert!(!found.names_issuer);
    let error = parse(&document("https://id.example/"))
        .unwrap_err()
        .to_string();
    assert!(error.contains("a slash at the end included"), "{error}");
    for endpoint in [
        "http://id.example/token",
        "http://127.0.0.1/token",
        "https://user:x@id.example/token",
        "javascript:alert(1)",
        "/token",
    ] {
        let mut wrong = document(ISSUER);
        wrong["token_endpoint"] = json!(endpoint);
        assert!(
            matches!(parse(&wrong), Err(DiscoveryError::Endpoint { .. })),
            "{endpoint}"
        );
    }
    let mut none = document(ISSUER);
    none["token_endpoint_auth_methods_supported"] = json!(["private_key_jwt"]);
    assert!(matches!(parse(&none), Err(DiscoveryError::ClientAuth(_))));
    let mut default = document(ISSUER);
    default
        .as_object_mut()
        .unwrap()
        .remove("token_endpoint_auth_methods_supported");
    assert_eq!(parse(&default).unwrap().client_auth, ClientAuth::Basic);
    for (issuer, address) in [
        (
            "https://a.example",
            "https://a.example/.well-known/openid-configuration",
        ),
        (
            "https://a.example/x/",
            "https://a.example/x/.well-known/openid-configuration",
        ),
    ] {
        assert_eq!(Discovery::url(issuer).unwrap().as_str(), address);
    }
}

#[test]
fn requests_are_those_of_the_standard() {
    let provider = provider();
    let document = json!({
        "issuer": ISSUER, "authorization_endpoint": "https://id.example/authorize?tenant=1",
        "token_endpoint": "https://id.example/token", "jwks_uri": "https://id.example/jwks",
    });
    let discovery = Discovery::parse(document.to_string().as_bytes(), &provider).unwrap();
    let secrets = LoginSecrets {
        nonce: "n".to_owned(),
        // RFC 7636 appendix B.
        verifier: "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk".to_owned(),
    };
    let url = authorization_url(
        &provider,
        &discovery,
        "https://net.example/oidc/callback",
        "s",
        &secrets,
    );
    let query: Vec<(String, String)> = url.query_pairs().into_owned().collect();
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    assert_eq!(
        query,
        [
            pair("tenant", "1"),
            pair("response_type", "code"),
            pair("client_id", CLIENT),
            pair("redirect_uri", "https://net.example/oidc/callback"),
            pair("scope", "openid email"),
            pair("state", "s"),
            pair("nonce", "n"),
            pair(
                "code_challenge",
                "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"
            ),
            pair("code_challenge_method", "S256"),
            pair("prompt", "select account"),
        ]
    );
    let exchange = |auth| Exchange::new(&provider, auth, "https://r", "c&", "v");
    let basic = exchange(ClientAuth::Basic);
    let expected =
        "grant_type=authorization_code&code=c%26&redirect_uri=https%3A%2F%2Fr&code_verifier=v";
    assert_eq!(basic.form, expected);
    // "warren:a%2B%2F%3D+%25"
    assert_eq!(
        basic.authorization.as_deref(),
        Some("Basic d2FycmVuOmElMkIlMkYlM0QrJTI1")
    );
    let post = exchange(ClientAuth::Post);
    assert_eq!(
        post.form,
        format!("{expected}&client_id=warren&client_secret=a%2B%2F%3D+%25")
    );
    assert_eq!(post.authorization, None);
    assert!(!format!("{provider:?}{secrets:?}").contains("a+/="));
    let mut entropy = CountingEntropy(0);
    let (one, other) = (
        LoginSecrets::generate(&mut entropy),
        LoginSecrets::generate(&mut entropy),
    );
    assert!(one != other && one.nonce != one.verifier && one.verifier.len() == 43);
}

#[test]
fn callbacks_are_read_once_and_errors_are_kept() {
    let callback = Callback::parse("code=a%20b&state=s&session_state=x").unwrap();
    assert_eq!(callback.result.as_deref(), Ok("a b"));
    let refused = Callback::parse("error=access_denied&error_description=no%0A%3Cb%3E&state=s");
    let error = refused.unwrap().result.unwrap_err();
    assert_eq!(error.to_string(), "access_denied: no <b>");
    let long = format!("code={}&state=s", "x".repeat(9000));
    for query in [
        "",
        "code=a",
        "state=s",
        "code=&state=s",
        "code=a&code=b&state=s",
        &long,
    ] {
        assert_eq!(Callback::parse(query), None, "{query}");
    }
    let from = |query: &str, names_issuer| {
        let document = json!({
            "issuer": ISSUER, "authorization_endpoint": "https://id.example/a",
            "token_endpoint": "https://id.example/t", "jwks_uri": "https://id.example/j",
            "authorization_response_iss_parameter_supported": names_issuer,
        });
        let discovery = Discovery::parse(document.to_string().as_bytes(), &provider()).unwrap();
        Callback::parse(query)
            .unwrap()
            .is_from(&provider(), &discovery)
    };
    assert!(from("code=a&state=s", false));
    assert!(!from("code=a&state=s", true));
    assert!(from("code=a&state=s&iss=https://id.example", true));
    assert!(!from("code=a&state=s&iss=https://evil.example", false));
}

#[test]
fn answers_of_the_token_endpoint_are_distinguished() {
    let answer = TokenAnswer::parse(200, br#"{"id_token": "t", "token_type": "Bearer"}"#).unwrap();
    assert_eq!((answer.id_token.as_str(), answer.access_token), ("t", None));
    let refused = |status, body: &[u8]| TokenAnswer::parse(status, body).unwrap_err();
    let error = refused(
        400,
        br#"{"error": "invalid_client", "error_description": "bad secret"}"#,
    );
    assert!(error.to_string().ends_with("invalid_client: bad secret"));
    // With the status 200, as some providers send it.
    assert!(matches!(
        refused(200, br#"{"error": "bad_verification_code"}"#),
        TokenAnswerError::Refused(_)
    ));
    assert_eq!(refused(200, b"{}"), TokenAnswerError::NoIdToken);
    assert_eq!(refused(502, b"<html>"), TokenAnswerError::Unreadable(502));
    assert_eq!(
        refused(200, br#"{"id_token": 7}"#),
        TokenAnswerError::Unreadable(200)
    );
}

#[test]
fn e_mail_counts_only_where_it_is_verified() {
    let provider = provider();
    let email = |token: Value, userinfo: Option<Value>| {
        admitted(&provider, &token, userinfo).unwrap().email
    };
    let good = Some("alice@example.com".to_owned());
    assert_eq!(email(claims(), None), good);
    assert_eq!(email(with("email_verified", json!("true")), None), good);
    for unverified in [
        Value::Null,
        json!(false),
        json!("false"),
        json!("TRUE"),
        json!(1),
    ] {
        assert_eq!(
            email(with("email_verified", unverified.clone()), None),
            None,
            "{unverified}"
        );
    }
    for wrong in [
        "",
        "alice",
        "@example.com",
        "alice@",
        "a@b@c",
        "a b@c",
        "a\n@c",
        "<a>@c",
    ] {
        assert_eq!(email(with("email", json!(wrong)), None), None, "{wrong}");
    }
    // Address and verification are never taken from two places.
    let other = json!({"sub": "alice-1", "email": "ceo@example.com"});
    assert_eq!(email(claims(), Some(other)), None);
    let same = json!({"sub": "alice-1", "email": "alice@example.com"});
    assert_eq!(email(claims(), Some(same)), good);
    let only = json!({"sub": "alice-1", "email_verified": true});
    assert_eq!(email(with("email_verified", Value::Null), Some(only)), None);
    assert_eq!(
        Claims::of_userinfo(br#"{"sub": "mallory"}"#, "alice-1"),
        None
    );
    assert_eq!(Claims::of_userinfo(b"a.b.c", "alice-1"), None);
    let mut trusting = self::provider();
    trusting.rules.trust_unverified_email = true;
    let account = admitted(&trusting, &with("email_verified", Value::Null), None).unwrap();
    assert_eq!(account.email, good);
}

#[test]
fn every_configured_rule_must_be_met() {
    let with_rules = |change: fn(&mut Rules)| {
        let mut provider = provider();
        change(&mut provider.rules);
        provider
    };
    let domains = with_rules(|rules| {
        rules.domains.insert("example.com".to_owned());
    });
    assert!(admitted(&domains, &claims(), None).is_ok());
    assert_eq!(
        admitted(&domains, &with("email", json!("a@sub.example.com")), None),
        Err(AccountError::Domain("sub.example.com".to_owned()))
    );
    assert_eq!(
        admitted(&domains, &with("email_verified", json!(false)), None),
        Err(AccountError::Unverified("alice@example.com".to_owned()))
    );
    assert_eq!(
        admitted(&domains, &with("email", Value::Null), None),
        Err(AccountError::NoEmail)
    );
    // A claim of the verified token, not of the e-mail and not of userinfo.
    let hosted = with_rules(|rules| {
        rules.domains.insert("example.com".to_owned());
        rules.domain_claim = Some("hd".to_owned());
    });
    let userinfo = json!({"sub": "alice-1", "hd": "example.com"});
    assert_eq!(
        admitted(&hosted, &claims(), Some(userinfo)),
        Err(AccountError::NoDomain)
    );
    assert!(admitted(&hosted, &with("hd", json!("Example.com")), None).is_ok());
    let users = with_rules(|rules| {
        rules.users.insert("alice@example.com".to_owned());
    });
    assert!(admitted(&users, &with("email", json!("ALICE@example.com")), None).is_ok());
    assert!(matches!(
        admitted(&users, &with("email", json!("bob@example.com")), None),
        Err(AccountError::User(_))
    ));
    let both = with_rules(|rules| {
        rules.users.insert("alice@example.com".to_owned());
        rules.groups.insert("vpn".to_owned());
    });
    assert_eq!(admitted(&both, &claims(), None), Err(AccountError::Group));
    assert!(admitted(&both, &with("groups", json!(["x", "vpn"])), None).is_ok());
}

#[test]
fn groups_are_lists_or_one_name_and_overage_is_refused() {
    let provider = provider();
    let groups = |token: Value, userinfo: Option<Value>| {
        let account = admitted(&provider, &token, userinfo)?;
        Ok::<_, AccountError>(account.groups.into_iter().collect::<Vec<_>>())
    };
    assert_eq!(groups(claims(), None).unwrap(), [""; 0]);
    assert_eq!(groups(with("groups", json!("one")), None).unwrap(), ["one"]);
    assert_eq!(
        groups(with("groups", json!(["b", "/a/c", ""])), None).unwrap(),
        ["/a/c", "b"]
    );
    // Those of userinfo replace the others.
    let userinfo = json!({"sub": "alice-1", "groups": ["c"]});
    assert_eq!(
        groups(with("groups", json!(["a"])), Some(userinfo)).unwrap(),
        ["c"]
    );
    for overage in [
        with("_claim_names", json!({"groups": "src1"})),
        with("hasgroups", json!(true)),
        with("hasgroups", json!("true")),
    ] {
        assert_eq!(groups(overage, None), Err(AccountError::GroupOverage));
    }
    for form in [json!([1]), json!({"a": 1}), json!(["x".repeat(300)])] {
        assert!(matches!(
            groups(with("groups", form), None),
            Err(AccountError::GroupForm(_))
        ));
    }
    let many: Vec<String> = (0..1001).map(|n| n.to_string()).collect();
    assert_eq!(
        groups(with("groups", json!(many)), None),
        Err(AccountError::TooManyGroups)
    );
    let mut without = self::provider();
    without.groups_claim = None;
    let account = admitted(&without, &with("groups", json!(["a"])), None).unwrap();
    assert!(account.groups.is_empty());
}

#[test]
fn names_come_from_what_there_is() {
    let name = |token: Value| admitted(&provider(), &token, None).unwrap().display_name;
    assert_eq!(name(claims()), None);
    assert_eq!(
        name(with("name", json!("Alice A"))),
        Some("Alice A".to_owned())
    );
    let mut parts = with("given_name", json!("Alice"));
    parts["family_name"] = json!("Liddell");
    assert_eq!(name(parts), Some("Alice Liddell".to_owned()));
    assert_eq!(
        name(with("name", json!("x".repeat(500)))).unwrap().len(),
        128
    );
    let picture = |url: &str| {
        let token = with("picture", json!(url));
        admitted(&provider(), &token, None).unwrap().picture
    };
    assert!(picture("https://p.example/a.png").is_some());
    assert_eq!(picture("javascript:alert(1)"), None);
}

proptest! {
    /// No answer of a provider causes a panic, and none admits a token whose signature is not
    /// that of the key.
    #[test]
    fn hostile_tokens_are_refused(token in "[A-Za-z0-9_.-]{0,200}", json in ".*") {
        let set = keys(&[]);
        prop_assert!(check(&token, &set, &expected()).is_err());
        let made = format!("{}.{}.", b64(&json), b64(&json));
        prop_assert!(check(&made, &set, &expected()).is_err());
        let _ = KeySet::parse(json.as_bytes());
        let _ = Discovery::parse(json.as_bytes(), &provider());
        let _ = TokenAnswer::parse(200, json.as_bytes());
        let _ = Claims::of_userinfo(json.as_bytes(), "x");
        let _ = Callback::parse(&json);
    }

    /// One changed character makes a token invalid.
    #[test]
    fn damaged_tokens_are_refused(at in 0_usize..400, by in 1_u8..255) {
        let signer = Signer::eddsa();
        let set = keys(&[signer.jwk(Some("k1"))]);
        let token = signer.token(&claims());
        let mut bytes = token.clone().into_bytes();
        let at = at % bytes.len();
        bytes[at] = bytes[at].wrapping_add(by) & 0x7f;
        let damaged = String::from_utf8(bytes).unwrap();
        if damaged != token {
            prop_assert!(check(&damaged, &set, &expected()).is_err());
        }
    }
}

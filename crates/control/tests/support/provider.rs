//! An identity provider in this process, which lies as a test wants.

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use axum::extract::{Query, State};
use axum::response::{IntoResponse as _, Redirect, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use data_encoding::{BASE64, BASE64URL_NOPAD};
use http::{HeaderMap, StatusCode, header};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::net::TcpListener;
use url::form_urlencoded;

pub const CLIENT_ID: &str = "warren";
pub const SECRET: &str = "a+b/c=";

/// The provider's answers, to be changed while it runs.
pub struct Behaviour {
    key: EcdsaKeyPair,
    /// The id of the key in tokens; the published one unless a test differs.
    pub key_id: String,
    published_id: String,
    /// Members of the ID token that differ from the right ones; null removes one.
    pub claims: Value,
    /// The answer of the userinfo endpoint.
    pub userinfo: Option<Value>,
    /// The error with which it sends browsers back.
    pub error: Option<&'static str>,
    /// The `iss` of the callback.
    pub named_issuer: Option<String>,
    codes: HashMap<String, (String, String)>,
    /// The number of tokens that were given out.
    pub tokens: usize,
}

impl Behaviour {
    /// Makes a new key and publishes it alone.
    pub fn rotate(&mut self, id: &str) {
        self.key = fresh_key();
        self.key_id = id.to_owned();
        self.published_id = id.to_owned();
    }
}

fn fresh_key() -> EcdsaKeyPair {
    let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &SystemRandom::new()).unwrap();
    EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref()).unwrap()
}

#[derive(Clone)]
pub struct FakeProvider {
    pub issuer: String,
    behaviour: Arc<Mutex<Behaviour>>,
}

impl FakeProvider {
    /// On a free port.
    pub async fn start() -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").await.unwrap())
    }

    /// On this address, which was free a moment ago.
    pub async fn start_at(address: SocketAddr) -> Self {
        Self::on(TcpListener::bind(address).await.unwrap())
    }

    fn on(listener: TcpListener) -> Self {
        let behaviour = Behaviour {
            key: fresh_key(),
            key_id: "k1".to_owned(),
            published_id: "k1".to_owned(),
            claims: json!({}),
            userinfo: None,
            error: None,
            named_issuer: None,
            codes: HashMap::new(),
            tokens: 0,
        };
        let this = Self {
            issuer: format!("http://{}", listener.local_addr().unwrap()),
            behaviour: Arc::new(Mutex::new(behaviour)),
        };
        let router = Router::new()
            .route("/.well-known/openid-configuration", get(discovery))
            .route("/jwks", get(jwks))
            .route("/authorize", get(authorize))
            .route("/token", post(token))
            .route("/userinfo", get(userinfo))
            .with_state(this.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        this
    }

    pub fn behave(&self) -> MutexGuard<'_, Behaviour> {
        self.behaviour.lock().unwrap()
    }

    /// The table of the configuration file for this provider.
    pub fn config(&self, name: &str, more: &str) -> String {
        format!(
            "[[oidc]]\nname = \"{name}\"\ntitle = \"The {name}\"\nissuer = \"{}\"\nclient_id = \"{CLIENT_ID}\"\nclient_secret = \"{SECRET}\"\n{more}\n",
            self.issuer
        )
    }
}

async fn discovery(State(provider): State<FakeProvider>) -> Json<Value> {
    let issuer = &provider.issuer;
    Json(json!({
        "issuer": issuer,
        "authorization_endpoint": format!("{issuer}/authorize"),
        "token_endpoint": format!("{issuer}/token"),
        "userinfo_endpoint": format!("{issuer}/userinfo"),
        "jwks_uri": format!("{issuer}/jwks"),
    }))
}

async fn jwks(State(provider): State<FakeProvider>) -> Json<Value> {
    let behaviour = provider.behave();
    let point = behaviour.key.public_key().as_ref();
    let coordinate = |bytes: &[u8]| BASE64URL_NOPAD.encode(bytes);
    Json(json!({"keys": [{
        "kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": behaviour.published_id,
        "x": coordinate(&point[1..33]), "y": coordinate(&point[33..]),
    }]}))
}

/// Logs everybody in at once.
async fn authorize(
    State(provider): State<FakeProvider>,
    Query(query): Query<HashMap<String, String>>,
) -> Redirect {
    assert_eq!(query["client_id"], CLIENT_ID);
    assert_eq!(query["response_type"], "code");
    assert_eq!(query["code_challenge_method"], "S256");
    let mut behaviour = provider.behave();
    let mut back = url::Url::parse(&query["redirect_uri"]).unwrap();
    back.query_pairs_mut().append_pair("state", &query["state"]);
    if let Some(issuer) = &behaviour.named_issuer {
        back.query_pairs_mut().append_pair("iss", issuer);
    }
    if let Some(error) = behaviour.error {
        back.query_pairs_mut()
            .append_pair("error", error)
            .append_pair("error_description", "not <b>today</b>");
    } else {
        let code = format!("code+{}", behaviour.codes.len());
        back.query_pairs_mut().append_pair("code", &code);
        let kept = (query["nonce"].clone(), query["code_challenge"].clone());
        behaviour.codes.insert(code, kept);
    }
    Redirect::to(back.as_str())
}

async fn token(State(provider): State<FakeProvider>, headers: HeaderMap, body: String) -> Response {
    let refuse = |error| (StatusCode::BAD_REQUEST, Json(json!({ "error": error }))).into_response();
    let form: HashMap<String, String> = form_urlencoded::parse(body.as_bytes())
        .into_owned()
        .collect();
    let basic = format!("Basic {}", BASE64.encode(b"warren:a%2Bb%2Fc%3D"));
    if headers
        .get(header::AUTHORIZATION)
        .map(|value| value.as_bytes())
        != Some(basic.as_bytes())
    {
        return refuse("invalid_client");
    }
    let mut behaviour = provider.behave();
    // A code works once.
    let Some((nonce, challenge)) = behaviour.codes.remove(&form["code"]) else {
        return refuse("invalid_grant");
    };
    let digest = Sha256::digest(form["code_verifier"].as_bytes());
    if BASE64URL_NOPAD.encode(&digest) != challenge {
        return refuse("invalid_grant");
    }
    let now = warren_control::clock::wall_clock().as_secs();
    let mut claims = json!({
        "iss": provider.issuer, "aud": CLIENT_ID, "sub": "alice|1", "nonce": nonce,
        "iat": now, "exp": now + 600,
        "email": "alice@example.com", "email_verified": true, "name": "Alice <A>",
    });
    for (name, value) in behaviour.claims.as_object().unwrap() {
        match value {
            Value::Null => drop(claims.as_object_mut().unwrap().remove(name)),
            value => claims[name] = value.clone(),
        }
    }
    let part = |value: &Value| BASE64URL_NOPAD.encode(value.to_string().as_bytes());
    let header = json!({"alg": "ES256", "kid": behaviour.key_id});
    let message = format!("{}.{}", part(&header), part(&claims));
    let signature = behaviour.key.sign(&SystemRandom::new(), message.as_bytes());
    let signature = BASE64URL_NOPAD.encode(signature.unwrap().as_ref());
    behaviour.tokens += 1;
    Json(json!({
        "id_token": format!("{message}.{signature}"),
        "access_token": "access",
        "token_type": "Bearer",
    }))
    .into_response()
}

async fn userinfo(State(provider): State<FakeProvider>, headers: HeaderMap) -> Response {
    assert_eq!(headers[header::AUTHORIZATION], "Bearer access");
    match provider.behave().userinfo.clone() {
        Some(userinfo) => Json(userinfo).into_response(),
        None => StatusCode::FORBIDDEN.into_response(),
    }
}

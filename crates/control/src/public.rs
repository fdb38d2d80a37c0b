//! The public endpoints and pages of the port: `/ts2021`, `/key`, `/health`, ...

use std::sync::Arc;

use axum::extract::{Path, Query, Request, State};
use axum::response::Response;
use axum::routing::{any, get, post};
use axum::{Extension, Router};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use serde::{Deserialize, Serialize};
use warren_control_types::{CapabilityVersion, OverTlsPublicKeyResponse};
use warren_keys::{MachinePublic, NodePublic};

use crate::coordinator::CoordinatorHandle;
use crate::http::{Connection, JsonBody, json, no_content, text, with_spans};
use crate::login::{self, Logins};
use crate::noise::Upgrader;
use crate::pages;
use crate::refusals::Refused;

/// The longest `/verify` request, in bytes; usual ones have 150.
const MAX_VERIFY_BODY: usize = 4096;

/// The state that the handlers share.
struct Public {
    coordinator: Arc<CoordinatorHandle>,
    upgrader: Arc<Upgrader>,
    key: MachinePublic,
}

/// The router of the port. Requests must carry their [`Connection`].
pub(crate) fn router(
    coordinator: Arc<CoordinatorHandle>,
    upgrader: Arc<Upgrader>,
    logins: Arc<Logins>,
) -> Router {
    let logins = login::router(coordinator.clone(), logins);
    let public = Arc::new(Public {
        coordinator,
        key: upgrader.key.public(),
        upgrader,
    });
    let routes = Router::new()
        .route("/ts2021", any(upgrade))
        .route("/key", get(key))
        .route("/health", get(health))
        .route("/version", get(version))
        .route("/verify", post(verify))
        .route("/generate_204", get(generate_204))
        .route("/derpmap/default", get(derp_map))
        .route("/robots.txt", get(robots))
        .route("/", get(front))
        .route("/ping/{token}", get(router_answered))
        .route("/machine/{*path}", any(inside_the_channel))
        .fallback(async || text(StatusCode::NOT_FOUND, "not found"))
        .method_not_allowed_fallback(async || {
            text(StatusCode::METHOD_NOT_ALLOWED, "method not allowed")
        })
        .with_state(public)
        .merge(logins);
    with_spans(routes)
}

async fn upgrade(
    State(public): State<Arc<Public>>,
    Extension(connection): Extension<Connection>,
    request: Request,
) -> Response {
    public.upgrader.upgrade(connection, request)
}

/// A router was asked to make this request over a new connection. The address cannot
/// be guessed and works once. Without the header, the official client would keep the
/// connection for the next request.
async fn router_answered(
    State(public): State<Arc<Public>>,
    Path(token): Path<String>,
) -> (StatusCode, [(HeaderName, &'static str); 1]) {
    let status = if public.coordinator.router_answered(&token, None) {
        StatusCode::NO_CONTENT
    } else {
        StatusCode::NOT_FOUND
    };
    (status, [(header::CONNECTION, "close")])
}

async fn inside_the_channel() -> Response {
    text(
        StatusCode::BAD_REQUEST,
        "this path is only available inside /ts2021",
    )
}

#[derive(Deserialize)]
struct KeyQuery {
    v: Option<String>,
}

async fn key(State(public): State<Arc<Public>>, Query(query): Query<KeyQuery>) -> Response {
    let refused = |why: String| {
        public.coordinator.refused(Refused::Request, &why);
        text(StatusCode::BAD_REQUEST, why)
    };
    let Some(version) = query.v else {
        return refused("the capability version is missing: /key?v=N".to_owned());
    };
    let Ok(version) = version.parse::<u32>() else {
        return refused("the capability version in /key?v=N is not a valid number".to_owned());
    };
    let oldest = CapabilityVersion::OLDEST_CLIENT.0;
    if version < oldest {
        return refused(format!(
            "this client is too old (capability version {version}); {oldest} is needed, which is Tailscale 1.80"
        ));
    }
    // A legacy key of zero says that there is none.
    let keys = OverTlsPublicKeyResponse {
        legacy_public_key: None,
        public_key: Some(public.key),
    };
    json(StatusCode::OK, &keys)
}

async fn health(State(public): State<Arc<Public>>) -> Response {
    let (status, word) = if public.coordinator.is_healthy() {
        (StatusCode::OK, "pass")
    } else {
        (StatusCode::INTERNAL_SERVER_ERROR, "fail")
    };
    let mut response = json(status, &serde_json::json!({ "status": word }));
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/health+json; charset=utf-8"),
    );
    response
}

#[derive(Serialize)]
struct Version {
    name: &'static str,
    version: &'static str,
    capability_version: u32,
    minimum_capability_version: u32,
}

async fn version() -> Response {
    let version = Version {
        name: "warren-control",
        version: env!("CARGO_PKG_VERSION"),
        capability_version: CapabilityVersion::CURRENT.0,
        minimum_capability_version: CapabilityVersion::OLDEST_CLIENT.0,
    };
    json(StatusCode::OK, &version)
}

#[derive(Deserialize)]
struct VerifyRequest {
    #[serde(rename = "NodePublic")]
    node: NodePublic,
}

#[derive(Serialize)]
struct VerifyResponse {
    #[serde(rename = "Allow")]
    allow: bool,
}

/// Answers a relay's request whether a node may use it.
async fn verify(
    State(public): State<Arc<Public>>,
    JsonBody(request): JsonBody<VerifyRequest, MAX_VERIFY_BODY>,
) -> Response {
    let allow = public.coordinator.admits(&request.node);
    json(StatusCode::OK, &VerifyResponse { allow })
}

/// The captive portal check: 204, and an echo that a portal cannot guess.
async fn generate_204(headers: HeaderMap) -> Response {
    let mut response = no_content();
    response.headers_mut().insert(
        header::CACHE_CONTROL,
        HeaderValue::from_static("no-cache, no-store"),
    );
    let challenge = headers
        .get("X-Tailscale-Challenge")
        .and_then(|value| value.to_str().ok())
        .filter(|c| {
            c.len() <= 64
                && c.bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"._:-".contains(&b))
        });
    if let Some(challenge) = challenge
        && let Ok(value) = HeaderValue::from_str(&format!("response {challenge}"))
    {
        response.headers_mut().insert("X-Tailscale-Response", value);
    }
    response
}

async fn derp_map(State(public): State<Arc<Public>>) -> Response {
    public
        .coordinator
        .read(|state| json(StatusCode::OK, &state.config().derp_map))
}

async fn robots() -> Response {
    text(StatusCode::OK, "User-agent: *\nDisallow: /\n")
}

async fn front(State(public): State<Arc<Public>>) -> Response {
    public
        .coordinator
        .read(|state| pages::front(&state.config().server_url))
}

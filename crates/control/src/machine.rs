//! The requests inside the Noise channel: `/machine/register`,
//! `/machine/map`, `/machine/ssh/action`, and clear refusals for requests that
//! this server does not support.
//!
//! The map stream is pulled: a frame is made when HTTP/2 has space for it, from the
//! state at that moment. A client that reads slowly gets fewer, newer
//! messages, never a longer queue.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, HttpBody as _};
use axum::extract::{Path, Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use axum::routing::{any, get, post};
use axum::{Extension, Router};
use bytes::{Bytes, BytesMut};
use futures_util::stream;
use http::{HeaderValue, StatusCode, Uri, header};
use tokio::time::Instant;
use tracing::Instrument as _;
use warren_control_core::MapError;
use warren_control_types::{MapRequest, RegisterRequest};
use warren_keys::MachinePublic;

use crate::body_budget::ChannelBudget;
use crate::coordinator::{CoordinatorHandle, Registration, Session};
use crate::http::{BODY_TIMEOUT, JsonBody, WholeBody, json, no_content, text, with_spans};
use crate::refusals::Refused;
use crate::{ssh_action, tka};

/// The longest request body, in bytes; the official servers take as much.
const MAX_BODY: usize = 1 << 20;
/// The longest registration, in bytes. It comes from unknown machines and is kept
/// while they wait for approval; usual ones have a few kilobytes.
const MAX_REGISTRATION: usize = 1 << 16;
/// Seconds until the next try, if too many machines wait for approval.
const BUSY_RETRY: &str = "30";
/// Silence on a stream ends with a keepalive after 50 to 59 s; a client gives
/// up after 120 s.
const KEEPALIVE_FLOOR: u64 = 50;
/// The sign of life. Always these bytes: clients recognise them.
const KEEPALIVE: &[u8] = br#"{"KeepAlive":true}"#;
/// Maps are text that is sent once; more effort saves little.
const ZSTD_LEVEL: i32 = 3;

/// The machine at the other end of the channel. Requests carry it as an extension.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer {
    /// Its key, which the handshake proved.
    pub(crate) machine: MachinePublic,
    /// The address that it comes from, as far as it is known.
    pub(crate) source: Option<IpAddr>,
}

/// The router of the requests inside the channel. Requests must carry their [`Peer`]
/// and the [`ChannelBudget`] of their channel.
pub(crate) fn router(coordinator: Arc<CoordinatorHandle>) -> Router {
    let routes = Router::new()
        .route("/machine/register", post(register))
        .route("/machine/map", post(map))
        .route("/machine/whoami", get(whoami))
        .route("/machine/update-health", post(update_health))
        .route("/machine/ssh/action/{*nodes}", get(ssh_action))
        .nest("/machine/tka", tka::router())
        .route("/machine/{*path}", any(unsupported))
        .route("/c2n/{token}", post(c2n_response))
        .fallback(async |uri: Uri| text(StatusCode::NOT_FOUND, format!("{} not found", uri.path())))
        .method_not_allowed_fallback(async || {
            text(StatusCode::METHOD_NOT_ALLOWED, "method not allowed")
        })
        .layer(from_fn_with_state(coordinator.clone(), limit_bodies))
        .with_state(coordinator);
    with_spans(routes)
}

/// Bodies are read within the budget of their sender. Machines that own no node may
/// register; no body of another request of theirs is read.
async fn limit_bodies(
    State(coordinator): State<Arc<CoordinatorHandle>>,
    Extension(peer): Extension<Peer>,
    Extension(budget): Extension<ChannelBudget>,
    mut request: Request,
    next: Next,
) -> Response {
    let path = request.uri().path();
    let longest = longest_body(path);
    let is_member = coordinator.view().owns_node(peer.machine);
    if !is_member && !matches!(path, "/machine/register" | "/machine/whoami") {
        return text(StatusCode::NOT_FOUND, MapError::NotFound.to_string());
    }
    let length = request.body().size_hint().upper();
    let length = length.and_then(|length| usize::try_from(length).ok());
    let bytes = length.unwrap_or(longest).min(longest);
    if bytes == 0 {
        return next.run(request).await;
    }
    let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
    let reserve = async {
        if is_member {
            budget.reserve_for_member(bytes).await
        } else {
            budget.reserve(bytes).await
        }
    };
    let Ok(Some(reserved)) = tokio::time::timeout(BODY_TIMEOUT, reserve).await else {
        let why = if is_member {
            "this machine sends too many requests at a time; try again later"
        } else {
            "too many machines register at the moment; try again later"
        };
        return too_many(&coordinator, why);
    };
    request.extensions_mut().insert(reserved);
    next.run(request).await
}

/// The longest body that is read at this path, in bytes.
fn longest_body(path: &str) -> usize {
    match path {
        "/machine/register" => MAX_REGISTRATION,
        "/machine/whoami" => 0,
        path if path.starts_with("/machine/tka/") => tka::MAX_LARGE,
        _ => MAX_BODY,
    }
}

/// The refusal of a request that the client should repeat later.
fn too_many(coordinator: &CoordinatorHandle, why: &'static str) -> Response {
    coordinator.refused(Refused::Request, why);
    let mut response = text(StatusCode::TOO_MANY_REQUESTS, why);
    response
        .headers_mut()
        .insert(header::RETRY_AFTER, HeaderValue::from_static(BUSY_RETRY));
    response
}

async fn whoami(Extension(peer): Extension<Peer>) -> Response {
    text(StatusCode::OK, format!("you are {}\n", peer.machine))
}

/// Clients no longer send these unasked, and do not read the answer.
async fn update_health() -> Response {
    no_content()
}

async fn ssh_action(
    State(coordinator): State<Arc<CoordinatorHandle>>,
    Extension(peer): Extension<Peer>,
    uri: Uri,
) -> Response {
    let query = uri.query().unwrap_or_default();
    ssh_action::answer(&coordinator, peer.machine, uri.path(), query).await
}

async fn unsupported(uri: Uri) -> Response {
    text(StatusCode::NOT_IMPLEMENTED, not_available(uri.path()))
}

/// Takes the response to a c2n request, at a path that the server chose.
async fn c2n_response(
    State(coordinator): State<Arc<CoordinatorHandle>>,
    Extension(peer): Extension<Peer>,
    Path(token): Path<String>,
    WholeBody(body): WholeBody<MAX_BODY>,
) -> Response {
    if coordinator.take_c2n_response(&token, peer.machine, body) {
        no_content()
    } else {
        text(StatusCode::NOT_FOUND, "no request waits for this response")
    }
}

/// The reason why a request is not supported, as shown to the user.
fn not_available(path: &str) -> String {
    let what = match path.trim_start_matches("/machine/") {
        "set-dns" => {
            "this server sets no DNS records, so it cannot prove to a certificate authority who a node is: certificates for node names are not available"
        }
        "id-token" => "this server issues no identity tokens",
        _ => return format!("{path} is not available on this server"),
    };
    format!("{what} ({path})")
}

async fn register(
    State(coordinator): State<Arc<CoordinatorHandle>>,
    Extension(peer): Extension<Peer>,
    JsonBody(request): JsonBody<RegisterRequest, MAX_REGISTRATION>,
) -> Response {
    let registered = coordinator.register(peer.machine, peer.source, &request);
    match registered.await {
        Ok(Registration::Answer(response)) => json(StatusCode::OK, &response),
        Ok(Registration::Busy) => too_many(
            &coordinator,
            "too many machines wait for approval; try again later",
        ),
        // Not an `Error` text: the client should simply try again.
        Err(error) => {
            tracing::error!("a registration could not be saved: {error}");
            text(
                StatusCode::SERVICE_UNAVAILABLE,
                "the server cannot save its state at the moment (see its log); trying again will help once it can",
            )
        }
    }
}

async fn map(
    State(coordinator): State<Arc<CoordinatorHandle>>,
    Extension(Peer { machine, .. }): Extension<Peer>,
    JsonBody(request): JsonBody<MapRequest, MAX_BODY>,
) -> Response {
    let compressed = match request.compress.as_str() {
        "" => false,
        "zstd" => true,
        other => {
            return text(
                StatusCode::BAD_REQUEST,
                format!("compression \"{other}\" is not supported; use \"zstd\" or none"),
            );
        }
    };
    let answer = if request.stream {
        coordinator
            .open_stream(machine, &request)
            .map(|session| stream_body(session, compressed))
    } else if request.omit_peers && !request.read_only {
        coordinator
            .update(machine, &request)
            .map(|()| Body::empty())
    } else {
        coordinator.map_once(machine, &request).and_then(|message| {
            let json = message.to_json().map_err(|_| MapError::NotFound)?;
            Ok(Body::from(frame(&json, compressed)))
        })
    };
    if let Err(error) = &answer {
        coordinator.refused(Refused::Request, &error.to_string());
    }
    match answer {
        Ok(body) => Response::new(body),
        Err(error @ MapError::NotFound) => text(StatusCode::NOT_FOUND, error.to_string()),
        Err(error @ MapError::Unsaved) => text(StatusCode::SERVICE_UNAVAILABLE, error.to_string()),
        Err(error @ MapError::TooOld { .. }) => text(StatusCode::BAD_REQUEST, error.to_string()),
    }
}

/// A frame: little-endian length, then the message, compressed by itself where
/// the client asked for it.
fn frame(json: &[u8], compressed: bool) -> Bytes {
    let squeezed = compressed.then(|| zstd::bulk::compress(json, ZSTD_LEVEL));
    let payload = match &squeezed {
        Some(Ok(bytes)) => bytes.as_slice(),
        // Compression into memory does not fail; a frame of stored blocks would
        // be the way out if it ever did.
        Some(Err(_)) | None => json,
    };
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    let mut out = BytesMut::with_capacity(payload.len() + 4);
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(payload);
    out.freeze()
}

fn stream_body(session: Session, compressed: bool) -> Body {
    let keepalive = frame(KEEPALIVE, compressed);
    // At the level of warnings, so that every line of a stream carries its number.
    let span = tracing::warn_span!("session", id = session.id().0);
    let frames = stream::unfold((session, Instant::now()), move |(session, last)| {
        let keepalive = keepalive.clone();
        let next = async move {
            let silence = Duration::from_secs(KEEPALIVE_FLOOR) + jitter();
            let bytes = tokio::select! {
                message = session.next() => match message?.to_json() {
                    Ok(json) => frame(&json, compressed),
                    Err(error) => {
                        tracing::error!("a map message could not be encoded: {error}");
                        return None;
                    }
                },
                () = tokio::time::sleep_until(last + silence) => {
                    session.note_keepalive();
                    keepalive
                }
            };
            Some((Ok::<_, Infallible>(bytes), (session, Instant::now())))
        };
        next.instrument(span.clone())
    });
    Body::from_stream(frames)
}

/// Up to 9 s, so that the keepalives of all nodes are not due at once after a
/// restart.
fn jitter() -> Duration {
    let mut byte = [0_u8; 1];
    // Without randomness they would only all be on time.
    let _ = getrandom::fill(&mut byte);
    Duration::from_millis(u64::from(byte[0]) * 9000 / 256)
}

#[cfg(test)]
mod answers;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use tower::ServiceExt as _;

    use super::*;
    use crate::body_budget::BodyBudget;

    const MACHINE: MachinePublic = MachinePublic::from_bytes([1; 32]);

    /// A request of an unknown machine whose body does not come.
    async fn ask(path: &str, budget: &ChannelBudget) -> Response {
        let (coordinator, _disk) = crate::coordinator::tests::handle();
        let pending = stream::pending::<Result<Bytes, Infallible>>();
        let mut request = Request::post(path)
            .header(header::CONTENT_LENGTH, 60_000)
            .body(Body::from_stream(pending))
            .unwrap();
        request.extensions_mut().insert(Peer {
            machine: MACHINE,
            source: None,
        });
        request.extensions_mut().insert(budget.clone());
        router(coordinator).oneshot(request).await.unwrap()
    }

    #[tokio::test]
    async fn map_request_of_a_machine_without_a_node_is_refused_by_its_headers() {
        tokio::time::pause();
        let start = Instant::now();
        let budget = BodyBudget::default().channel(MACHINE, None);
        for path in [
            "/machine/map",
            "/c2n/0123",
            "/machine/tka/init/begin",
            "/machine/x",
        ] {
            assert_eq!(ask(path, &budget).await.status(), StatusCode::NOT_FOUND);
        }
        assert_eq!(start.elapsed(), Duration::ZERO);
    }

    #[tokio::test]
    async fn bodies_of_a_machine_without_a_node_are_read_two_at_a_time() {
        tokio::time::pause();
        let budget = BodyBudget::default().channel(MACHINE, None);
        let path = "/machine/register";
        let all = futures_util::future::join_all((0..6).map(|_| ask(path, &budget)));
        let mut refused: Vec<StatusCode> = all.await.iter().map(Response::status).collect();
        refused.sort();
        // Two wait for their bodies; the others for the budget, and as long.
        let [slow, busy] = [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_MANY_REQUESTS];
        assert!(refused.iter().filter(|status| **status == slow).count() >= 2);
        assert!(refused.iter().all(|status| [slow, busy].contains(status)));
        assert!(refused.contains(&busy), "{refused:?}");
    }

    #[test]
    fn frames_carry_their_length_and_open_again() {
        assert_eq!(&frame(b"{}", false)[..], b"\x02\0\0\0{}");
        let squeezed = frame(KEEPALIVE, true);
        let length = u32::from_le_bytes(squeezed[..4].try_into().unwrap()) as usize;
        assert_eq!(length, squeezed.len() - 4);
        assert_eq!(
            zstd::bulk::decompress(&squeezed[4..], 100).unwrap(),
            KEEPALIVE
        );
        assert_eq!(squeezed, frame(KEEPALIVE, true));
    }

    #[test]
    fn unsupported_requests_name_the_missing_feature() {
        assert!(not_available("/machine/set-dns").contains("certificates"));
        assert!(not_available("/machine/id-token").contains("identity"));
        assert!(not_available("/machine/x").starts_with("/machine/x is not"));
    }

    #[test]
    fn keepalives_come_between_50_and_59_seconds() {
        for _ in 0..100 {
            assert!(jitter() < Duration::from_secs(9));
        }
    }
}

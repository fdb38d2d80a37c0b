//! The requests inside the Noise channel: `/machine/register`,
//! `/machine/map`, `/machine/ssh/action`, and clear refusals for requests that
//! this server does not support.
//!
//! The map stream is pulled: a frame is made when HTTP/2 has room for it, from
//! what is true at that moment. A client that reads slowly gets fewer, newer
//! messages, never a longer queue.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::stream;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Body, Frame};
use serde::de::DeserializeOwned;
use tokio::time::Instant;
use warren_control_core::MapError;
use warren_control_types::{MapRequest, RegisterRequest};
use warren_keys::MachinePublic;

use crate::coordinator::{CoordinatorHandle, Registration, Session};
use crate::http::{ReplyBody, json, read_body, text, whole};
use crate::ssh_action;

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

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Box<Response<ReplyBody>>> {
    serde_json::from_slice(body).map_err(|error| {
        Box::new(text(
            StatusCode::BAD_REQUEST,
            format!("the request is not valid: {error}"),
        ))
    })
}

/// Answers one request of the machine at the other end of the channel, which
/// comes from `source` as far as that is known.
pub async fn handle<B>(
    coordinator: Arc<CoordinatorHandle>,
    machine: MachinePublic,
    source: Option<IpAddr>,
    request: Request<B>,
) -> Response<ReplyBody>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (parts, body) = request.into_parts();
    let path = parts.uri.path();
    let limit = match path {
        "/machine/register" => MAX_REGISTRATION,
        _ => MAX_BODY,
    };
    let body = match read_body(body, limit).await {
        Ok(body) => body,
        Err(refusal) => return *refusal,
    };
    match (parts.method, path) {
        (Method::POST, "/machine/register") => match parse(&body) {
            Ok(request) => register(&coordinator, machine, source, &request).await,
            Err(refusal) => *refusal,
        },
        (Method::POST, "/machine/map") => match parse(&body) {
            Ok(request) => map(&coordinator, machine, &request),
            Err(refusal) => *refusal,
        },
        (Method::GET, "/machine/whoami") => text(StatusCode::OK, format!("you are {machine}\n")),
        // Clients no longer send these unasked, and do not read the answer.
        (Method::POST, "/machine/update-health") => {
            let mut response = Response::new(whole(Bytes::new()));
            *response.status_mut() = StatusCode::NO_CONTENT;
            response
        }
        (Method::GET, path) if path.starts_with(ssh_action::PREFIX) => {
            let query = parts.uri.query().unwrap_or_default();
            ssh_action::answer(&coordinator, machine, path, query).await
        }
        (_, "/machine/register" | "/machine/map") => {
            text(StatusCode::METHOD_NOT_ALLOWED, "use POST")
        }
        (_, path) if path.starts_with("/machine/") => {
            text(StatusCode::NOT_IMPLEMENTED, not_available(path))
        }
        // Responses to c2n requests arrive here, at paths that the server chose.
        (Method::POST, path) if path.starts_with("/c2n/") => {
            if coordinator.answered(path, machine, body) {
                let mut response = Response::new(whole(Bytes::new()));
                *response.status_mut() = StatusCode::NO_CONTENT;
                response
            } else {
                text(StatusCode::NOT_FOUND, "no request waits for this response")
            }
        }
        (_, path) => text(StatusCode::NOT_FOUND, format!("{path} not found")),
    }
}

/// The reason why a request is not supported, as shown to the user.
fn not_available(path: &str) -> String {
    let what = match path.trim_start_matches("/machine/") {
        "set-dns" => {
            "this server sets no DNS records, so it cannot prove to a certificate authority who a node is: certificates for node names are not available"
        }
        "id-token" => "this server issues no identity tokens",
        rest if rest.starts_with("tka/") => "this server has no tailnet lock",
        _ => return format!("{path} is not available on this server"),
    };
    format!("{what} ({path})")
}

async fn register(
    coordinator: &CoordinatorHandle,
    machine: MachinePublic,
    source: Option<IpAddr>,
    request: &RegisterRequest,
) -> Response<ReplyBody> {
    match coordinator.register(machine, source, request).await {
        Ok(Registration::Answer(response)) => json(StatusCode::OK, &response),
        Ok(Registration::Busy) => {
            let mut response = text(
                StatusCode::TOO_MANY_REQUESTS,
                "too many machines wait for approval; try again later",
            );
            response.headers_mut().insert(
                http::header::RETRY_AFTER,
                http::HeaderValue::from_static(BUSY_RETRY),
            );
            response
        }
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

fn map(
    coordinator: &Arc<CoordinatorHandle>,
    machine: MachinePublic,
    request: &MapRequest,
) -> Response<ReplyBody> {
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
            .open_stream(machine, request)
            .map(|session| stream_body(session, compressed))
    } else if request.omit_peers && !request.read_only {
        coordinator
            .update(machine, request)
            .map(|()| whole(Bytes::new()))
    } else {
        coordinator.map_once(machine, request).and_then(|message| {
            let json = message.to_json().map_err(|_| MapError::NotFound)?;
            Ok(whole(frame(&json, compressed)))
        })
    };
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

fn stream_body(session: Session, compressed: bool) -> ReplyBody {
    let keepalive = frame(KEEPALIVE, compressed);
    let frames = stream::unfold((session, Instant::now()), move |(session, last)| {
        let keepalive = keepalive.clone();
        async move {
            let silence = Duration::from_secs(KEEPALIVE_FLOOR) + jitter();
            let bytes = tokio::select! {
                message = session.next() => match message?.to_json() {
                    Ok(json) => frame(&json, compressed),
                    Err(error) => {
                        tracing::error!("a map message could not be encoded: {error}");
                        return None;
                    }
                },
                () = tokio::time::sleep_until(last + silence) => keepalive,
            };
            Some((Ok(Frame::data(bytes)), (session, Instant::now())))
        }
    });
    StreamBody::new(frames).boxed_unsync()
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
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

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
        assert!(not_available("/machine/tka/sync/offer").contains("tailnet lock"));
        assert!(not_available("/machine/x").starts_with("/machine/x is not"));
    }

    #[test]
    fn keepalives_come_between_50_and_59_seconds() {
        for _ in 0..100 {
            assert!(jitter() < Duration::from_secs(9));
        }
    }
}

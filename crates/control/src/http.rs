//! Requests and responses of all routers of the server.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ::http::{HeaderValue, StatusCode, header};
use axum::Router;
use axum::body::{Body, HttpBody};
use axum::extract::{FromRequest, MatchedPath, Request};
use axum::response::Response;
use bytes::Bytes;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tower::ServiceExt as _;
use tower_http::trace::TraceLayer;
use tracing::Span;
use warren_dial::connections::Slot;

use crate::body_budget::ReservedBytes;

/// How long a request body may take. The bodies fit into a few packets.
pub(crate) const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// The connection of a request. Requests carry it as an extension.
#[derive(Clone)]
pub(crate) struct Connection {
    /// The address of the client, as far as it is known.
    pub(crate) source: Option<IpAddr>,
    /// The entry in the table of connections.
    pub(crate) slot: Arc<Slot>,
}

/// Answers a request through a router, in a span of its own, which also covers the
/// body of the response.
pub async fn answer<B>(router: Router, request: ::http::Request<B>) -> Result<Response, Infallible>
where
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<axum::BoxError>,
{
    let mut response = router.oneshot(request).await?;
    // The router gives every body its length; these statuses have no body, and must
    // have no length (RFC 9110 section 8.6).
    let status = response.status();
    if status.is_informational() || status == StatusCode::NO_CONTENT {
        response.headers_mut().remove(header::CONTENT_LENGTH);
    }
    Ok(response)
}

/// The router with a span for each request.
pub fn with_spans(router: Router) -> Router {
    let span = |request: &Request| -> Span {
        let route = request.extensions().get::<MatchedPath>();
        let route = route.map_or("", MatchedPath::as_str);
        // At the level of warnings, so that every line of a request carries its route.
        tracing::warn_span!("request", method = %request.method(), route)
    };
    router.layer(
        TraceLayer::new_for_http()
            .make_span_with(span)
            // Handlers report their failures.
            .on_failure(())
            .on_body_chunk(())
            .on_eos(()),
    )
}

fn response(status: StatusCode, content_type: &'static str, content: Body) -> Response {
    let mut response = Response::new(content);
    *response.status_mut() = status;
    let content_type = HeaderValue::from_static(content_type);
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, content_type);
    response
}

/// A short text with a status.
pub fn text(status: StatusCode, content: impl Into<Body>) -> Response {
    response(status, "text/plain; charset=utf-8", content.into())
}

/// A JSON answer.
pub fn json<T: Serialize>(status: StatusCode, value: &T) -> Response {
    match serde_json::to_vec(value) {
        Ok(content) => response(status, "application/json", content.into()),
        Err(error) => text(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("cannot encode: {error}"),
        ),
    }
}

/// A page.
pub fn html(content: String) -> Response {
    response(StatusCode::OK, "text/html; charset=utf-8", content.into())
}

/// The status 204.
pub fn no_content() -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}

/// Reads a body of at most `limit` bytes, in half a minute at most.
async fn read_body<B>(body: B, limit: usize) -> Result<Bytes, Response>
where
    B: HttpBody<Data = Bytes>,
    B::Error: Into<axum::BoxError>,
{
    let collected = Limited::new(body, limit).collect();
    let Ok(collected) = tokio::time::timeout(BODY_TIMEOUT, collected).await else {
        return Err(text(
            StatusCode::REQUEST_TIMEOUT,
            format!(
                "the request body took longer than {} s",
                BODY_TIMEOUT.as_secs()
            ),
        ));
    };
    match collected {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(text(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("the request body is larger than {limit} bytes"),
        )),
        Err(error) => Err(text(
            StatusCode::BAD_REQUEST,
            format!("the request was cut: {error}"),
        )),
    }
}

/// The body of a request, as a whole, of at most `LIMIT` bytes.
pub struct WholeBody<const LIMIT: usize>(pub Bytes);

impl<S: Sync, const LIMIT: usize> FromRequest<S> for WholeBody<LIMIT> {
    type Rejection = Response;

    async fn from_request(request: Request, _: &S) -> Result<Self, Response> {
        let _reserved = request.extensions().get::<ReservedBytes>().cloned();
        read_body(request.into_body(), LIMIT).await.map(Self)
    }
}

/// A JSON body of a request, of at most `LIMIT` bytes.
pub struct JsonBody<T, const LIMIT: usize>(pub T);

impl<S: Sync, T: DeserializeOwned, const LIMIT: usize> FromRequest<S> for JsonBody<T, LIMIT> {
    type Rejection = Response;

    async fn from_request(request: Request, _: &S) -> Result<Self, Response> {
        // Held until the body is parsed and gone.
        let _reserved = request.extensions().get::<ReservedBytes>().cloned();
        let body = read_body(request.into_body(), LIMIT).await?;
        serde_json::from_slice(&body).map(Self).map_err(|error| {
            text(
                StatusCode::BAD_REQUEST,
                format!("the request is not valid: {error}"),
            )
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use axum::routing::any;
    use hyper::body::Frame;

    use super::*;

    /// A body whose end does not come.
    struct Endless;

    impl HttpBody for Endless {
        type Data = Bytes;
        type Error = std::io::Error;

        fn poll_frame(
            self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
            std::task::Poll::Pending
        }
    }

    #[tokio::test]
    async fn a_body_that_does_not_end_is_refused_after_a_time() {
        tokio::time::pause();
        let refusal = read_body(Endless, 100).await.unwrap_err();
        assert_eq!(refusal.status(), StatusCode::REQUEST_TIMEOUT);
    }

    #[tokio::test]
    async fn responses_without_a_body_have_no_length() {
        let router = with_spans(
            Router::new()
                .route("/empty", any(async || no_content()))
                .route("/text", any(async || text(StatusCode::OK, "hi"))),
        );
        for (path, length) in [("/empty", None), ("/text", Some("2"))] {
            let request = ::http::Request::get(path).body(Body::empty()).unwrap();
            let response = answer(router.clone(), request).await.unwrap();
            let found = response.headers().get(header::CONTENT_LENGTH);
            assert_eq!(found.map(|value| value.to_str().unwrap()), length, "{path}");
        }
    }
}

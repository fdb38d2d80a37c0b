//! Bodies of requests and responses, for all interfaces of the server.

use std::convert::Infallible;
use std::time::Duration;

use ::http::{HeaderValue, Response, StatusCode, header};
use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Body;

/// How long a request body may take. The bodies fit into a few packets.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// A response body, complete or a stream.
pub type ReplyBody = UnsyncBoxBody<Bytes, Infallible>;

/// A body whose content is complete.
pub fn whole(content: impl Into<Bytes>) -> ReplyBody {
    Full::new(content.into()).boxed_unsync()
}

/// A short text with a status.
pub fn text(status: StatusCode, content: impl Into<Bytes>) -> Response<ReplyBody> {
    let mut response = Response::new(whole(content));
    *response.status_mut() = status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    response
}

/// A JSON answer.
pub fn json<T: serde::Serialize>(status: StatusCode, value: &T) -> Response<ReplyBody> {
    match serde_json::to_vec(value) {
        Ok(content) => {
            let mut response = Response::new(whole(content));
            *response.status_mut() = status;
            response.headers_mut().insert(
                header::CONTENT_TYPE,
                HeaderValue::from_static("application/json"),
            );
            response
        }
        Err(error) => text(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("cannot encode: {error}"),
        ),
    }
}

/// Reads a body of at most `limit` bytes, in half a minute at most.
///
/// # Errors
/// The refusal to answer with.
pub async fn read_body<B>(body: B, limit: usize) -> Result<Bytes, Box<Response<ReplyBody>>>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let collected = Limited::new(body, limit).collect();
    let Ok(collected) = tokio::time::timeout(BODY_TIMEOUT, collected).await else {
        return Err(Box::new(text(
            StatusCode::REQUEST_TIMEOUT,
            format!(
                "the request body took longer than {} s",
                BODY_TIMEOUT.as_secs()
            ),
        )));
    };
    match collected {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => Err(Box::new(text(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("the request body is larger than {limit} bytes"),
        ))),
        Err(error) => Err(Box::new(text(
            StatusCode::BAD_REQUEST,
            format!("the request was cut: {error}"),
        ))),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use hyper::body::Frame;

    use super::*;

    /// A body whose end does not come.
    struct Endless;

    impl Body for Endless {
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
}

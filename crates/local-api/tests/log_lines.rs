//! The log lines of a request. The test is alone in its process: tracing remembers
//! whether anything listens to a line, and tests of one process would race for that.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use axum::body::Body;
use http::{Method, Request, StatusCode, header};
use tower::ServiceExt as _;
use warren_local_api::HOST;
use warren_local_api::caller::Caller;
use warren_local_api::endpoint::{Endpoint, Handler};
use warren_local_api::error::ApiError;
use warren_local_api::router::local_router;
use warren_testkit::LogLines;

/// A node that logs each request and refuses it.
struct Unavailable;

impl<E: Endpoint> Handler<E> for Unavailable {
    async fn handle(&self, _: E) -> Result<E::Answer, ApiError> {
        tracing::info!("refused");
        Err(ApiError::Unavailable("later".to_owned()))
    }
}

#[tokio::test]
async fn log_lines_name_their_request_and_nothing_of_its_content() {
    let lines = LogLines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_writer(move || writer.clone())
        .with_ansi(false)
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let request = Request::builder()
        .method(Method::GET)
        .uri("/localapi/v0/whois?addr=100.64.0.7:1")
        .header(header::HOST, HOST)
        .extension(Caller::LocalUser { uid: 0 })
        .body(Body::empty())
        .unwrap();
    let router = local_router(Arc::new(Unavailable));
    let response = router.oneshot(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    let text = lines.text();
    let line = text.lines().find(|line| line.contains("refused")).unwrap();
    for part in ["request{", "uid: 0", "method=GET", "whois"] {
        assert!(line.contains(part), "{part}: {line}");
    }
    assert!(!text.contains("100.64.0.7"), "{text}");
}

//! The router: from an HTTP request to the handler of its row, and from the answer
//! to a response.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Query, Request};
use axum::response::Response;
use axum::routing::{self, MethodFilter};
use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Method, StatusCode};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use serde::Serialize;
use tracing::Instrument as _;

use crate::caller::Caller;
use crate::endpoint::{Endpoint, Handler};
use crate::error::{ApiError, ErrorCode, Reply};

/// The largest body of a request, in bytes. A policy of a large company has some
/// hundred kilobytes.
const MAX_BODY: usize = 16 << 20;
/// The time that a client has to send it.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// The routes of a service: rows with their handlers.
pub struct Routes<T> {
    service: Arc<T>,
    router: Router,
}

impl<T: Send + Sync + 'static> Routes<T> {
    /// No routes yet.
    pub fn new(service: Arc<T>) -> Self {
        Self {
            service,
            router: Router::new(),
        }
    }

    /// Adds the row of an endpoint.
    #[must_use]
    pub fn on<E: Endpoint>(mut self) -> Self
    where
        T: Handler<E>,
    {
        let service = Arc::clone(&self.service);
        let handler = move |request: Request| {
            let service = Arc::clone(&service);
            async move { respond(run::<E, T>(&service, request).await) }
        };
        // All methods that a row can name have a filter.
        let filter = MethodFilter::try_from(E::METHOD).unwrap_or(MethodFilter::POST);
        self.router = self.router.route(E::PATH, routing::on(filter, handler));
        self
    }

    /// A router of these rows. Requests must carry their [`Caller`] as an extension;
    /// those without it have no permission.
    pub fn into_router(self) -> Router {
        self.router
            .fallback(async |request: Request| {
                respond::<()>(Err(ApiError::new(
                    ErrorCode::NotFound,
                    format!("{} not found in this version", request.uri().path()),
                )))
            })
            .method_not_allowed_fallback(async |request: Request| {
                respond::<()>(Err(ApiError::new(
                    ErrorCode::MethodNotAllowed,
                    format!(
                        "{} is not a method of {}",
                        request.method(),
                        request.uri().path()
                    ),
                )))
            })
    }
}

/// Checks the permission, reads the request and lets the service handle it.
async fn run<E: Endpoint, T: Handler<E>>(service: &T, request: Request) -> Reply<E::Answer> {
    let caller = request.extensions().get::<Caller>().cloned();
    let Some(caller) = caller.filter(|caller| caller.has(E::PERMISSION)) else {
        return Err(ApiError::new(
            ErrorCode::PermissionDenied,
            format!("no permission for {}", E::PATH),
        ));
    };
    // At the level of warnings, so that every line of a request carries its endpoint.
    let span = tracing::warn_span!("admin", method = %E::METHOD, path = E::PATH);
    async {
        tracing::debug!(%caller, "request of an administrator");
        let request = read::<E>(request).await?;
        service.handle(&caller, request).await
    }
    .instrument(span)
    .await
}

/// Reads a request from the query or from the body.
async fn read<E: Endpoint>(request: Request) -> Reply<E> {
    let invalid = |error: &dyn std::fmt::Display| {
        ApiError::new(
            ErrorCode::InvalidRequest,
            format!("the request is not valid: {error}"),
        )
    };
    if E::METHOD == Method::GET {
        let query = Query::try_from_uri(request.uri());
        return query.map(|Query(read)| read).map_err(|e| invalid(&e));
    }
    let body = read_body(request.into_body()).await?;
    serde_json::from_slice(&body).map_err(|error| invalid(&error))
}

async fn read_body(body: Body) -> Reply<Bytes> {
    let collected = Limited::new(body, MAX_BODY).collect();
    let Ok(collected) = tokio::time::timeout(BODY_TIMEOUT, collected).await else {
        return Err(ApiError::new(
            ErrorCode::Timeout,
            format!(
                "the request body took longer than {} s",
                BODY_TIMEOUT.as_secs()
            ),
        ));
    };
    match collected {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(ApiError::new(
            ErrorCode::TooLarge,
            format!("the request body is larger than {MAX_BODY} bytes"),
        )),
        Err(error) => Err(ApiError::new(
            ErrorCode::InvalidRequest,
            format!("the request was cut: {error}"),
        )),
    }
}

/// The response with an answer or an error.
fn respond<A: Serialize>(reply: Reply<A>) -> Response {
    let written = match &reply {
        Ok(answer) => serde_json::to_vec(answer).map(|json| (StatusCode::OK, json)),
        Err(error) => serde_json::to_vec(error).map(|json| (error.code.status(), json)),
    };
    let (status, content) = written.unwrap_or_else(|error| {
        let text = format!("the answer has no JSON form: {error}");
        (StatusCode::INTERNAL_SERVER_ERROR, text.into_bytes())
    });
    let mut response = Response::new(Body::from(content));
    *response.status_mut() = status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    response
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use tower::ServiceExt as _;

    use super::*;
    use crate::endpoints::{ROWS, administration_routes};

    /// A server that refuses everything as unavailable.
    struct Unavailable;

    impl<E: Endpoint> Handler<E> for Unavailable {
        async fn handle(&self, _: &Caller, _: E) -> Reply<E::Answer> {
            Err(ApiError::new(ErrorCode::Unavailable, "later"))
        }
    }

    async fn send(caller: Option<Caller>, method: &Method, path: &str) -> ApiError {
        let mut request = http::Request::builder()
            .method(method)
            .uri(path)
            .body(Body::from("{}"))
            .unwrap();
        if let Some(caller) = caller {
            request.extensions_mut().insert(caller);
        }
        let router = administration_routes(Arc::new(Unavailable)).into_router();
        let response = router.oneshot(request).await.unwrap();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let error: ApiError = serde_json::from_slice(&body).unwrap();
        assert_eq!(error.code.status(), status);
        error
    }

    #[tokio::test]
    async fn every_row_is_reached_by_its_method_only() {
        let root = Caller::LocalUser { uid: 0, name: None };
        for (name, method, path, _) in ROWS {
            let error = send(Some(root.clone()), method, path).await;
            // The request is empty: it is refused by the handler, or lacks a member.
            let reached = [ErrorCode::Unavailable, ErrorCode::InvalidRequest];
            assert!(reached.contains(&error.code), "{name}: {error}");
            let error = send(Some(root.clone()), &Method::PATCH, path).await;
            assert_eq!(error.code, ErrorCode::MethodNotAllowed, "{name}");
        }
        let error = send(Some(root), &Method::GET, "/v1/missing").await;
        assert_eq!(error.code, ErrorCode::NotFound);
    }

    #[tokio::test]
    async fn requests_without_a_caller_have_no_permission() {
        for (name, method, path, _) in ROWS {
            let error = send(None, method, path).await;
            assert_eq!(error.code, ErrorCode::PermissionDenied, "{name}");
        }
    }
}

//! The router: from a request to the handler of its row, and from the answer to
//! a response.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use http::header::{self, HeaderName, HeaderValue};
use http::{Method, StatusCode};
use tower_http::set_header::SetResponseHeaderLayer;
use tracing::Instrument as _;
use warren_control_types::CapabilityVersion;

use crate::caller::{Access, Caller, user_id};
use crate::endpoint::{
    APPLICATION_JSON, AnswerForm, Endpoint, Handler, IncomingRequest, Permission, Query,
    plain_text, typed,
};
use crate::endpoints::{GetPrefs, NodeApi, node_routes};
use crate::error::{ApiError, Reply};
use crate::places::Place;
use crate::takeover;
use crate::{CAPABILITY_HEADER, HOST, VERSION, VERSION_HEADER};

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// The routes of one service: rows with their handlers, grouped by path.
pub struct Routes<T> {
    service: Arc<T>,
    paths: Vec<(&'static str, Vec<Route<T>>)>,
}

/// One row.
struct Route<T> {
    methods: &'static [Method],
    permission: Permission,
    run: fn(Arc<T>, IncomingRequest) -> BoxFuture<Response>,
}

impl<T: Send + Sync + 'static> Routes<T> {
    /// No routes yet.
    pub fn new(service: Arc<T>) -> Self {
        Self {
            service,
            paths: Vec::new(),
        }
    }

    /// Adds the row of an endpoint.
    #[must_use]
    pub fn on<E: Endpoint>(mut self) -> Self
    where
        T: Handler<E>,
    {
        let route = Route {
            methods: E::METHODS,
            permission: E::PERMISSION,
            run: |service, request| Box::pin(run::<E, T>(service, request)),
        };
        match self.paths.iter_mut().find(|(path, _)| *path == E::PATH) {
            Some((_, routes)) => routes.push(route),
            None => self.paths.push((E::PATH, vec![route])),
        }
        self
    }

    /// A router of these rows. Requests must carry their [`Access`] as an
    /// extension; those without it have no permission.
    pub fn into_router(self) -> Router {
        self.paths
            .into_iter()
            .fold(Router::new(), |router, (path, routes)| {
                let (service, routes) = (Arc::clone(&self.service), Arc::new(routes));
                let handler = move |request: Request| {
                    let (service, routes) = (Arc::clone(&service), Arc::clone(&routes));
                    async move { dispatch(path, service, &routes, request).await }
                };
                router.route(path, any(handler))
            })
    }
}

/// Carries out a request for one path.
async fn dispatch<T>(
    path: &'static str,
    service: Arc<T>,
    routes: &[Route<T>],
    request: Request,
) -> Response {
    let (mut head, body) = request.into_parts();
    let upgrade = head.extensions.remove::<hyper::upgrade::OnUpgrade>();
    // A connection that carries something else later keeps its place.
    let place = head.extensions.get::<Arc<Place>>().cloned();
    let name = path.strip_prefix("/localapi/v0/").unwrap_or(path);
    let route = routes
        .iter()
        .find(|route| route.methods.is_empty() || route.methods.contains(&head.method));
    let Some(route) = route else {
        return refusal(&ApiError::MethodNotAllowed(format!(
            "{} is not a method of {name}",
            head.method
        )));
    };
    let access = head.extensions.get::<Access>();
    let permitted = match access {
        Some(access) => access.includes(route.permission),
        None => route.permission == Permission::Nothing,
    };
    if !permitted {
        return refusal(&ApiError::AccessDenied(format!("{name} access denied")));
    }
    let caller = head.extensions.get::<Caller>();
    let span = tracing::info_span!("request", ?caller, method = %head.method, name);
    let tail = match path.ends_with("{id}") {
        true => head.uri.path().rsplit('/').next().unwrap_or_default(),
        false => "",
    };
    let request = IncomingRequest {
        tail: tail.to_owned(),
        query: Query::parse(head.uri.query().unwrap_or_default()),
        headers: head.headers,
        body,
    };
    let response = (route.run)(service, request).instrument(span.clone()).await;
    span.in_scope(|| takeover::follow(response, upgrade, place))
}

/// Reads the request, lets the service handle it, and writes the answer.
async fn run<E: Endpoint, T: Handler<E>>(service: Arc<T>, request: IncomingRequest) -> Response {
    let request = match E::read(request).await {
        Ok(request) => request,
        Err(error) => return refusal(&error),
    };
    if E::PERMISSION == Permission::Write {
        tracing::debug!("request of an administrator");
    }
    match service.handle(request).await {
        Ok(answer) => E::Form::write(answer).unwrap_or_else(|error| refusal(&error)),
        Err(error) => match E::ERROR_KEY {
            None => refusal(&error),
            Some(key) => {
                let text = serde_json::json!({ key: error.to_string() }).to_string();
                let mut response = typed(text, APPLICATION_JSON);
                *response.status_mut() = error.status();
                response
            }
        },
    }
}

/// An error as plain text.
pub(crate) fn refusal(error: &ApiError) -> Response {
    plain_text(error.status(), format!("{error}\n"))
}

/// The router of the local interface: the rows, the greeting, the checks that come
/// before them, and the headers of every answer. Requests must carry their
/// [`Caller`] as an extension.
pub fn local_router<T: NodeApi>(node: Arc<T>) -> Router {
    let header = |name: HeaderName, value: HeaderValue| {
        SetResponseHeaderLayer::<HeaderValue>::overriding(name, value)
    };
    let capability = HeaderValue::from(CapabilityVersion::CURRENT.0);
    let csp = "default-src 'none'; frame-ancestors 'none'; script-src 'none'; \
               script-src-elem 'none'; script-src-attr 'none'";
    let mut router = node_routes(Arc::clone(&node)).into_router();
    for path in ["/", "/localapi/", "/localapi/v0", "/localapi/v0/"] {
        router = router.route(path, any(greeting));
    }
    router
        .fallback(not_found)
        .layer(middleware::from_fn_with_state(node, authorize::<T>))
        .layer(middleware::from_fn(refuse_web_pages))
        .layer(header(
            HeaderName::from_static(VERSION_HEADER),
            HeaderValue::from_static(VERSION),
        ))
        .layer(header(
            HeaderName::from_static(CAPABILITY_HEADER),
            capability,
        ))
        .layer(header(
            header::CONTENT_SECURITY_POLICY,
            HeaderValue::from_static(csp),
        ))
        .layer(header(
            header::X_FRAME_OPTIONS,
            HeaderValue::from_static("DENY"),
        ))
        .layer(header(
            header::X_CONTENT_TYPE_OPTIONS,
            HeaderValue::from_static("nosniff"),
        ))
}

async fn greeting() -> Response {
    plain_text(StatusCode::OK, "tailscaled\n")
}

/// The words of the official client: programs that ask for endpoints of other versions
/// know them.
async fn not_found() -> Response {
    refusal(&ApiError::NotFound("404 page not found".to_owned()))
}

/// Refuses requests that a browser sends on behalf of a web page.
async fn refuse_web_pages(request: Request, next: Next) -> Response {
    match check_headers(&request) {
        Ok(()) => next.run(request).await,
        Err(error) => refusal(&error),
    }
}

fn check_headers(request: &http::Request<Body>) -> Reply<()> {
    let headers = request.headers();
    for name in [header::REFERER, header::ORIGIN] {
        if headers.contains_key(&name) {
            return Err(ApiError::AccessDenied(format!("invalid {name} header")));
        }
    }
    let host = headers
        .get(header::HOST)
        .map_or(&b""[..], HeaderValue::as_bytes);
    if host.is_empty() || host == HOST.as_bytes() {
        Ok(())
    } else {
        Err(ApiError::AccessDenied("invalid Host header".to_owned()))
    }
}

/// Finds out what the caller may do right now; the operator can change at any
/// time.
async fn authorize<T: NodeApi>(
    State(node): State<Arc<T>>,
    mut request: Request,
    next: Next,
) -> Result<Response, Infallible> {
    let caller = request.extensions().get::<Caller>().copied();
    let caller = caller.unwrap_or(Caller::UnknownUser);
    let daemon = rustix::process::geteuid().as_raw();
    let mut access = caller.access(daemon, None);
    if !access.write {
        access = caller.access(daemon, operator(&*node).await);
    }
    request.extensions_mut().insert(access);
    Ok(next.run(request).await.into_response())
}

/// Whether the caller is the operator at this moment.
pub(crate) async fn is_operator<T: Handler<GetPrefs>>(node: &T, caller: Caller) -> bool {
    let Some(operator) = operator(node).await else {
        return false;
    };
    caller == Caller::LocalUser { uid: operator }
}

/// The user id of the operator, if one is named and exists.
async fn operator<T: Handler<GetPrefs>>(node: &T) -> Option<u32> {
    let prefs = node.handle(GetPrefs).await.ok()?.prefs;
    if prefs.operator_user.is_empty() {
        return None;
    }
    let passwd = tokio::fs::read_to_string("/etc/passwd").await;
    user_id(&prefs.operator_user, &passwd.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::endpoints::ROWS;
    use http_body_util::BodyExt as _;
    use tower::ServiceExt as _;

    /// A node that refuses everything as unavailable.
    struct Unavailable;

    impl<E: Endpoint> Handler<E> for Unavailable {
        async fn handle(&self, _: E) -> Reply<E::Answer> {
            Err(ApiError::Unavailable("later".to_owned()))
        }
    }

    async fn send(caller: Caller, method: &Method, path: &str) -> (StatusCode, String) {
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, HOST)
            .extension(caller)
            .body(Body::empty())
            .unwrap();
        let router = local_router(Arc::new(Unavailable));
        let response = router.oneshot(request).await.unwrap();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn every_row_is_reached_by_its_methods_only() {
        let root = Caller::LocalUser { uid: 0 };
        for (name, methods, path, _) in ROWS {
            for method in *methods {
                let (status, text) = send(root, method, path).await;
                // The request is empty: it fails in the handler or in the query.
                let reached = [StatusCode::SERVICE_UNAVAILABLE, StatusCode::BAD_REQUEST];
                assert!(
                    reached.contains(&status),
                    "{name} {method}: {status} {text}"
                );
            }
            let (status, _) = send(root, &Method::TRACE, path).await;
            assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED, "{name}");
        }
        let (status, _) = send(root, &Method::HEAD, "/localapi/v0/status").await;
        assert_eq!(
            status,
            StatusCode::METHOD_NOT_ALLOWED,
            "GET does not include HEAD"
        );
        let (status, text) = send(root, &Method::GET, "/localapi/v0/missing").await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{text}");
    }

    #[tokio::test]
    async fn rows_that_need_the_permission_to_write_refuse_other_users() {
        for (name, methods, path, permission) in ROWS {
            let (status, text) = send(Caller::UnknownUser, &methods[0], path).await;
            let denied = status == StatusCode::FORBIDDEN;
            assert_eq!(denied, *permission == Permission::Write, "{name}: {text}");
            if denied {
                let name = path.trim_start_matches("/localapi/v0/");
                assert_eq!(text, format!("{name} access denied\n"));
            }
        }
    }
}

//! The pages for people: plain, without scripts, nothing from elsewhere. The templates
//! are in `templates/`; all values are escaped. Those of logins are in
//! [`login`](crate::login).

use askama::Template;
use axum::response::Response;
use http::{HeaderName, HeaderValue, StatusCode, header};

use crate::http::{html, text};

/// The headers of every page. Forms go to this server only, no other page may frame
/// one, and an address with a code in it is not sent to other sites.
const PROTECTION: [(HeaderName, &str); 5] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    ),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    // Not "no-referrer": browsers would hide the origin of forms from this server.
    (header::REFERRER_POLICY, "same-origin"),
    (header::CACHE_CONTROL, "no-store"),
];

/// The page at the server's address.
#[derive(Template)]
#[template(path = "front.html")]
struct Front<'a> {
    server_url: &'a str,
}

/// The page at the server's address.
pub fn front(server_url: &str) -> Response {
    page(&Front { server_url })
}

/// A page.
pub(crate) fn page(template: &impl Template) -> Response {
    page_with_status(StatusCode::OK, template)
}

/// A page about a failure.
pub(crate) fn page_with_status(status: StatusCode, template: &impl Template) -> Response {
    let mut response = match template.render() {
        Ok(content) => html(content),
        Err(error) => {
            tracing::error!("a page could not be rendered: {error}");
            return text(
                StatusCode::INTERNAL_SERVER_ERROR,
                "this page could not be made; see the server's log",
            );
        }
    };
    *response.status_mut() = status;
    protect(&mut response);
    response
}

/// Adds the headers of every page.
pub(crate) fn protect(response: &mut Response) {
    for (name, value) in PROTECTION {
        let value = HeaderValue::from_static(value);
        response.headers_mut().insert(name, value);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use http_body_util::BodyExt as _;

    use super::*;

    #[tokio::test]
    async fn pages_are_protected_and_name_the_server() {
        let response = front("http://192.0.2.1:8080");
        for (name, value) in PROTECTION {
            assert_eq!(response.headers()[&name], value);
        }
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let page = String::from_utf8_lossy(&body);
        let command = "--login-server http://192.0.2.1:8080";
        assert!(page.contains(command), "{page}");
    }
}

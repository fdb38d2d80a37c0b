//! The pages for users: plain, without scripts, nothing from elsewhere. The
//! templates are in `templates/`; all values are escaped.

use askama::Template;
use axum::response::Response;
use http::{HeaderValue, StatusCode, header};
use warren_control_api::endpoints::SshCheckInfo;
use warren_control_core::PendingView;

use crate::http::{html, text};

/// The page at the server's address.
#[derive(Template)]
#[template(path = "front.html")]
struct Front<'a> {
    server_url: &'a str,
}

/// The page for a machine that waits for approval.
#[derive(Template)]
#[template(path = "approval.html")]
struct Approval<'a> {
    id: &'a str,
    waiting: Option<&'a PendingView>,
}

/// The page for an SSH session that waits for a check.
#[derive(Template)]
#[template(path = "ssh_check.html")]
struct SshCheck<'a> {
    id: &'a str,
    waiting: Option<&'a SshCheckInfo>,
}

/// The page at the server's address.
pub fn front(server_url: &str) -> Response {
    page(&Front { server_url })
}

/// The page for a machine that waits for approval under this id.
pub fn approval(waiting: Option<&PendingView>, id: &str) -> Response {
    page(&Approval { id, waiting })
}

/// The page for an SSH session that waits for a check under this id.
pub fn ssh_check(waiting: Option<&SshCheckInfo>, id: &str) -> Response {
    page(&SshCheck { id, waiting })
}

fn page(template: &impl Template) -> Response {
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
    response.headers_mut().insert(
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static(
            "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
        ),
    );
    response
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use http_body_util::BodyExt as _;
    use warren_control_core::PendingId;

    use super::*;

    async fn content(response: Response) -> String {
        assert_eq!(response.status(), StatusCode::OK);
        let body = response.into_body().collect().await.unwrap().to_bytes();
        String::from_utf8(body.to_vec()).unwrap()
    }

    #[tokio::test]
    async fn names_from_machines_cannot_add_html() {
        let pending = PendingView {
            id: PendingId("abc".into()),
            hostname: "<script>alert('x')</script>".into(),
            os: "linux".into(),
            since: jiff::Timestamp::UNIX_EPOCH,
        };
        let page = content(approval(Some(&pending), "abc")).await;
        assert!(!page.contains("<script>"), "{page}");
        assert!(page.contains("nodes approve abc --user NAME"), "{page}");
        assert!(!content(approval(None, "<b>")).await.contains("<b>"));
        let check = SshCheckInfo {
            id: "abc".into(),
            owner: "ann".into(),
            source: "laptop".into(),
            destination: "db".into(),
            local_user: "<script>".into(),
            since: jiff::Timestamp::UNIX_EPOCH,
        };
        let page = content(ssh_check(Some(&check), "abc")).await;
        assert!(!page.contains("<script>"), "{page}");
        assert!(page.contains("ssh-checks approve abc"), "{page}");
        assert!(!content(ssh_check(None, "<b>")).await.contains("<b>"));
        let page = content(front("http://192.0.2.1:8080")).await;
        assert!(
            page.contains("--login-server http://192.0.2.1:8080"),
            "{page}"
        );
    }
}

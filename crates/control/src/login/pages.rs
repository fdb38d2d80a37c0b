//! The pages of logins: small, complete in themselves, without scripts. All values are
//! escaped by the templates.

use askama::Template;
use axum::response::Response;
use http::StatusCode;
use warren_control_api::endpoints::SshCheckInfo;
use warren_control_core::{
    Coordinator, LoginPage, LoginResult, LoginSubject, PendingId, PendingView,
};
use warren_keys::NodePublic;

use super::Logins;
use super::client::LoginFailure;
use crate::admin::ssh_check_info;
use crate::pages::{page, page_with_status};

/// A button.
struct Button {
    title: String,
    url: String,
    /// Whether the provider can be reached.
    ready: bool,
}

fn buttons(logins: &Logins, path: &str, id: &str) -> Vec<Button> {
    let clients = logins.providers().into_iter();
    clients
        .map(|client| Button {
            title: client.provider().title.clone(),
            // The callback comes to the URL of the server, so the cookie has to be
            // set there.
            url: format!(
                "{}/{path}/{id}/login/{}",
                logins.server_url,
                client.provider().name
            ),
            ready: client.status().ready,
        })
        .collect()
}

/// The first digits of a node key, as `warren status` and `tailscale status --json`
/// begin it.
fn fingerprint(key: &NodePublic) -> String {
    key.to_string().chars().take(8 + 16).collect()
}

/// A machine's description of itself.
struct Machine {
    hostname: String,
    os: String,
    fingerprint: String,
    source: String,
}

impl Machine {
    fn of(waiting: &PendingView) -> Self {
        let or_unknown = |text: &str| match text {
            "" => "not known".to_owned(),
            text => text.to_owned(),
        };
        let source = waiting.source.map(|source| source.to_string());
        Self {
            hostname: or_unknown(&waiting.hostname),
            os: or_unknown(&waiting.os),
            fingerprint: fingerprint(&waiting.node_key),
            source: or_unknown(&source.unwrap_or_default()),
        }
    }
}

/// The page for a machine that waits for approval.
#[derive(Template)]
#[template(path = "approval.html")]
struct Approval<'a> {
    id: &'a str,
    machine: Option<Machine>,
    buttons: Vec<Button>,
}

/// The page for an SSH session that waits for a check.
#[derive(Template)]
#[template(path = "ssh_check.html")]
struct SshCheck<'a> {
    id: &'a str,
    waiting: Option<&'a SshCheckInfo>,
    buttons: Vec<Button>,
}

/// The page for a machine that waits for approval under this id.
pub(super) fn approval(waiting: Option<&PendingView>, id: &str, logins: &Logins) -> Response {
    page(&Approval {
        id,
        machine: waiting.map(Machine::of),
        buttons: buttons(logins, "register", id),
    })
}

/// The page for an SSH session that waits for a check under this id.
pub(super) fn ssh_check(waiting: Option<&SshCheckInfo>, id: &str, logins: &Logins) -> Response {
    page(&SshCheck {
        id,
        waiting,
        buttons: buttons(logins, "ssh-check", id),
    })
}

/// The person is asked.
#[derive(Template)]
#[template(path = "login_confirm.html")]
struct Confirm<'a> {
    id: &'a str,
    step: &'a Asked,
}

pub(super) struct Asked {
    machine: Option<Machine>,
    session: Option<SshCheckInfo>,
    /// The name that the person knows best.
    person: String,
    display_name: String,
    provider: String,
    token: String,
}

/// The result.
#[derive(Template)]
#[template(path = "login_done.html")]
struct Done<'a> {
    connected: Option<&'a str>,
    declined: bool,
    person: &'a str,
}

/// A page in one of the last two steps of a login.
pub(super) enum NextStep {
    Asked(Box<Asked>),
    Done {
        connected: Option<String>,
        declined: bool,
        person: String,
    },
}

impl NextStep {
    pub(super) fn of(page: &LoginPage, coordinator: &Coordinator, logins: &Logins) -> Self {
        match page {
            LoginPage::Confirm {
                about,
                account,
                token,
            } => {
                let (machine, session) = match about {
                    LoginSubject::Machine(waiting) => (Some(Machine::of(waiting)), None),
                    LoginSubject::SshCheck(check) => {
                        (None, Some(ssh_check_info(&coordinator.view(), check)))
                    }
                };
                let client = logins.named(&account.provider);
                let names = [&account.email, &account.username];
                let known = names.into_iter().flatten().next();
                Self::Asked(Box::new(Asked {
                    machine,
                    session,
                    person: known.unwrap_or(&account.subject).clone(),
                    display_name: account.display_name.clone().unwrap_or_default(),
                    provider: client.map_or_else(
                        || account.provider.clone(),
                        |client| client.provider().title.clone(),
                    ),
                    token: token.clone(),
                }))
            }
            LoginPage::Done { result, name } => Self::Done {
                connected: match result {
                    LoginResult::Connected(node) => {
                        coordinator.node(*node).map(|node| node.name.clone())
                    }
                    LoginResult::SessionLetIn | LoginResult::Declined => None,
                },
                declined: *result == LoginResult::Declined,
                person: name.clone(),
            },
        }
    }

    pub(super) fn page(&self, id: &PendingId) -> Response {
        match self {
            Self::Asked(step) => page(&Confirm { id: &id.0, step }),
            Self::Done {
                connected,
                declined,
                person,
            } => page(&Done {
                connected: connected.as_deref(),
                declined: *declined,
                person,
            }),
        }
    }
}

/// The next step of a person after a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Advice {
    /// Follow the link back.
    StartAgain,
    /// Begin on the machine.
    OnTheMachine,
    /// Wait.
    Later,
    /// Wait, or have the administrator look.
    ProviderDown,
    /// Allow cookies, or use the same browser.
    Cookies,
    /// Log in with another account.
    OtherAccount,
    /// The administrator of this network.
    AskAdministrator,
    /// The reason is at the provider.
    AskProvider,
}

impl Advice {
    fn text(self) -> &'static str {
        match self {
            Self::StartAgain => "Start the login again.",
            Self::OnTheMachine => {
                "Start the login again on the machine: run \"warren up\" or \"tailscale up\" there, and open the address that it shows."
            }
            Self::Later => "Wait a minute, then start the login again.",
            Self::ProviderDown => {
                "Wait a minute, then start the login again. If that does not help, ask the administrator of this network: \"warren-control health\" shows the reason."
            }
            Self::Cookies => {
                "Allow cookies for this site, and do all of the login in one browser window. Then start the login again."
            }
            Self::OtherAccount => "Start the login again with another account.",
            Self::AskAdministrator => {
                "Ask the administrator of this network, and show this page to them."
            }
            Self::AskProvider => {
                "Start the login again. If the identity provider refuses your account, ask its administrator to admit you to this application."
            }
        }
    }
}

/// Status and advice for a login that failed after the callback.
pub(super) fn advice(failure: &LoginFailure) -> (StatusCode, Advice) {
    match failure {
        LoginFailure::NotReady => (StatusCode::SERVICE_UNAVAILABLE, Advice::ProviderDown),
        LoginFailure::Busy => (StatusCode::SERVICE_UNAVAILABLE, Advice::Later),
        LoginFailure::Fetch(_) | LoginFailure::NoGroups => {
            (StatusCode::BAD_GATEWAY, Advice::ProviderDown)
        }
        LoginFailure::Answer(_) | LoginFailure::Token(_) => {
            (StatusCode::BAD_GATEWAY, Advice::AskAdministrator)
        }
        LoginFailure::Account(_) => (StatusCode::FORBIDDEN, Advice::OtherAccount),
    }
}

/// A login that does not go on.
#[derive(Template)]
#[template(path = "login_failure.html")]
struct Failed<'a> {
    why: &'a str,
    advice: &'a str,
    back: Option<String>,
}

/// The page of a login that does not go on, with what to do; `back` is the page on
/// which it began.
pub(super) fn failure(
    status: StatusCode,
    why: &str,
    advice: Advice,
    back: Option<String>,
) -> Response {
    let why = capitalised(why);
    let failed = Failed {
        why: &why,
        advice: advice.text(),
        back,
    };
    page_with_status(status, &failed)
}

/// A message as a sentence of its own.
fn capitalised(message: &str) -> String {
    let mut chars = message.chars();
    let first = chars.next().map(|first| first.to_uppercase().to_string());
    let end = if message.ends_with('.') { "" } else { "." };
    format!("{}{}{end}", first.unwrap_or_default(), chars.as_str())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use http_body_util::BodyExt as _;

    use super::*;

    async fn content(response: Response) -> String {
        assert_eq!(response.status(), StatusCode::OK);
        let body = response.into_body().collect().await.unwrap().to_bytes();
        String::from_utf8(body.to_vec()).unwrap()
    }

    #[tokio::test]
    async fn names_from_machines_cannot_add_html() {
        let logins = Logins::new(Vec::new(), "http://192.0.2.1:8080");
        let pending = PendingView {
            id: PendingId("abc".into()),
            hostname: "<script>alert('x')</script>".into(),
            os: "linux".into(),
            node_key: NodePublic::from_bytes([7; 32]),
            source: Some([192, 0, 2, 9].into()),
            since: jiff::Timestamp::UNIX_EPOCH,
        };
        let page = content(approval(Some(&pending), "abc", &logins)).await;
        assert!(!page.contains("<script>"), "{page}");
        assert!(page.contains("nodes approve abc --user NAME"), "{page}");
        assert!(page.contains("nodekey:0707070707070707<"), "{page}");
        assert!(page.contains("192.0.2.9"), "{page}");
        assert!(
            !content(approval(None, "<b>", &logins))
                .await
                .contains("<b>")
        );
        let check = SshCheckInfo {
            id: "abc".into(),
            owner: "ann".into(),
            source: "laptop".into(),
            destination: "db".into(),
            local_user: "<script>".into(),
            since: jiff::Timestamp::UNIX_EPOCH,
        };
        let page = content(ssh_check(Some(&check), "abc", &logins)).await;
        assert!(!page.contains("<script>"), "{page}");
        assert!(page.contains("ssh-checks approve abc"), "{page}");
        assert!(
            !content(ssh_check(None, "<b>", &logins))
                .await
                .contains("<b>")
        );
    }
}

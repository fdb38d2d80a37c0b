//! The problems with logins, as shown to the user.

use super::Logins;
use super::login::Login;
use super::session::{Session, Stage};

const LOGIN_WANTED: &str = "the coordination server wants this machine to log in: open the address, or `warren up --auth-key KEY`";

impl Logins {
    /// The problems of the login; `wants_running`: whether the node should be
    /// connected.
    pub(in crate::node) fn problems(&self, wants_running: bool) -> Vec<String> {
        let mut problems: Vec<String> = self.error.iter().cloned().collect();
        if !wants_running {
            return problems;
        }
        match &self.login {
            Login::Ended { why, .. } => problems.push(why.clone()),
            Login::Active(_, session) => match &session.stage {
                Stage::NeedsUser { .. } => problems.push(LOGIN_WANTED.to_owned()),
                Stage::Unknown { why } => problems.push(why.clone()),
                Stage::Connecting | Stage::Running => {}
            },
            Login::LoggedOut | Login::Idle(_) => {
                if self.candidate.session().is_some_and(Session::needs_user) {
                    problems.push(LOGIN_WANTED.to_owned());
                }
            }
        }
        let sessions = [self.login.session(), self.candidate.session()];
        let mut sessions = sessions.into_iter().flatten();
        if let Some(trouble) = sessions.find_map(|session| session.trouble.as_ref()) {
            problems.push(format!(
                "no connection to the coordination server: {trouble}"
            ));
        }
        problems
    }
}

/// The text for a server that answered "not found", with its reason.
pub(super) fn unknown(reason: &str) -> String {
    let reason = reason.trim().trim_end_matches('.');
    let reason = if reason.is_empty() {
        "node not found"
    } else {
        reason
    };
    format!(
        "the coordination server does not know this machine any more ({reason}); was it deleted there? Join again with `warren up --force-reauth`, with --auth-key KEY if you have one"
    )
}

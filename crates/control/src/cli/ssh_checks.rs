//! `warren-control ssh-checks`.

use jiff::Timestamp;
use warren_control_api::endpoints::{ApproveSshCheck, DenySshCheck, ListSshChecks, SshCheckInfo};

use super::args::SshChecks;
use super::id_in;
use super::session::Session;
use crate::failure::Failure;
use crate::terminal::{printable, relative, table};

/// Runs an `ssh-checks` command.
pub(super) async fn run(session: &Session, command: SshChecks) -> Result<(), Failure> {
    match command {
        SshChecks::List => {
            session
                .ask(&ListSshChecks {}, |checks, now| list(checks, now))
                .await?;
        }
        SshChecks::Approve { id } => {
            let request = ApproveSshCheck { id: id_in(&id) };
            session
                .ask(&request, |check, _| {
                    let user = printable(&check.local_user);
                    format!("{} is approved, as {user}\n", ends(check))
                })
                .await?;
        }
        SshChecks::Deny { id } => {
            let request = DenySshCheck { id: id_in(&id) };
            session
                .ask(&request, |check, _| format!("{} is refused\n", ends(check)))
                .await?;
        }
    }
    Ok(())
}

/// A session, named by its ends.
fn ends(check: &SshCheckInfo) -> String {
    format!("the session from {} to {}", check.source, check.destination)
}

fn list(checks: &[SshCheckInfo], now: Timestamp) -> String {
    if checks.is_empty() {
        return "no session waits for a check\n".to_owned();
    }
    let rows: Vec<_> = checks
        .iter()
        .map(|check| {
            vec![
                check.id.clone(),
                check.owner.clone(),
                check.source.clone(),
                check.destination.clone(),
                check.local_user.clone(),
                relative(check.since, now),
            ]
        })
        .collect();
    let mut out = table(&["ID", "OWNER", "FROM", "TO", "AS", "SINCE"], &rows);
    out.push_str("approve one: warren-control ssh-checks approve ID\n");
    out
}

//! `warren-control users`.

use jiff::Timestamp;
use warren_control_api::endpoints::{
    CreateUser, DeleteUser, LinkUser, ListUsers, RenameUser, SetUserRole, UserInfo,
};

use super::args::Users;
use super::session::Session;
use crate::failure::Failure;
use crate::terminal::{relative, table};

/// Runs a `users` command.
pub(super) async fn run(session: &Session, command: Users) -> Result<(), Failure> {
    match command {
        Users::List => session
            .ask(&ListUsers {}, |users, now| list(users, now))
            .await
            .map(drop),
        Users::Create { name } => session
            .ask(&CreateUser { name }, |user, _| {
                format!(
                    "user {} (id {})\nnext: warren-control preauthkeys create --user {}\n",
                    user.name, user.id, user.name
                )
            })
            .await
            .map(drop),
        Users::Rename { name, new_name } => session
            .ask(
                &RenameUser {
                    user: name,
                    new_name,
                },
                |user, _| format!("the user is now {}\n", user.name),
            )
            .await
            .map(drop),
        Users::SetRole { name, role } => session
            .ask(&SetUserRole { user: name, role }, |user, _| {
                format!("user {} is now: {}\n", user.name, user.role)
            })
            .await
            .map(drop),
        Users::Link {
            name,
            issuer,
            subject,
        } => session
            .ask(
                &LinkUser {
                    user: name,
                    issuer,
                    subject,
                },
                |user, _| format!("user {} logs in with that account from now on\n", user.name),
            )
            .await
            .map(drop),
        Users::Delete { name } => session
            .ask(&DeleteUser { user: name }, |user, _| {
                format!("user {} deleted, with its pre-auth keys\n", user.name)
            })
            .await
            .map(drop),
    }
}

fn list(users: &[UserInfo], now: Timestamp) -> String {
    if users.is_empty() {
        return "no users yet; create one: warren-control users create NAME\n".to_owned();
    }
    let rows: Vec<_> = users
        .iter()
        .map(|user| {
            vec![
                user.id.to_string(),
                user.name.clone(),
                user.role.to_string(),
                login(user, now),
                relative(user.created_at, now),
            ]
        })
        .collect();
    table(&["ID", "NAME", "ROLE", "LOGIN", "CREATED"], &rows)
}

/// The provider and the last login; "-" for users that the administrator made.
fn login(user: &UserInfo, now: Timestamp) -> String {
    match &user.account {
        None => "-".to_owned(),
        Some(account) => match account.last_login {
            Some(last) => format!("{}, {}", account.provider, relative(last, now)),
            None => "linked, not used yet".to_owned(),
        },
    }
}

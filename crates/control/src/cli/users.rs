//! `warren-control users`.

use jiff::Timestamp;
use serde_json::json;
use warren_control_api::endpoints::{
    CreateUser, DeleteUser, LinkUser, ListUsers, RenameUser, SetUserRole, UserInfo,
};

use super::args::Users;
use super::session::Session;
use crate::failure::{Failure, print_error};
use crate::terminal::{relative, table};

/// Runs a `users` command.
pub(super) async fn run(session: &Session, command: Users) -> Result<(), Failure> {
    match command {
        Users::List {
            identifier,
            name,
            email,
        } => {
            let is_shown = |user: &UserInfo| {
                let account = user.account.as_ref();
                identifier.is_none_or(|id| id == user.id)
                    && name.as_ref().is_none_or(|name| *name == user.name)
                    && (email.is_none() || account.is_some_and(|known| known.email == email))
            };
            let mut users = session.call(&ListUsers {}).await?;
            users.retain(is_shown);
            session
                .show_answer(&users, |users, now| list(users, now))
                .await
        }
        Users::Create { name, profile } => {
            if profile.display_name.is_some()
                || profile.email.is_some()
                || profile.picture_url.is_some()
            {
                print_error(
                    "display name, mail address and picture come from identity providers; the flags are left out",
                );
            }
            let text = |user: &UserInfo, _| {
                format!(
                    "user {} (id {})\nnext: warren-control preauthkeys create --user {}\n",
                    user.name, user.id, user.name
                )
            };
            session.ask(&CreateUser { name }, text).await.map(drop)
        }
        Users::Rename {
            name,
            new_name,
            renamed,
        } => session
            .ask(
                &RenameUser {
                    user: name,
                    new_name: new_name.or(renamed).unwrap_or_default(),
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
        Users::Delete { name } => {
            session
                .done(
                    &DeleteUser { user: name },
                    |user| format!("user {} deleted, with its pre-auth keys\n", user.name),
                    json!({}),
                )
                .await
        }
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

//! `warren-control preauthkeys`.

use jiff::Timestamp;
use warren_control_api::endpoints::{AuthKeyInfo, CreateAuthKey, ExpireAuthKey, ListAuthKeys};

use super::args::{self, Preauthkeys};
use super::session::Session;
use crate::failure::Failure;
use crate::terminal::{relative, table};

/// Runs a `preauthkeys` command.
pub(super) async fn run(session: &Session, command: Preauthkeys) -> Result<(), Failure> {
    match command {
        Preauthkeys::Create {
            user,
            reusable,
            ephemeral,
            tags,
            expiry,
        } => {
            let request = CreateAuthKey {
                user,
                reusable,
                ephemeral,
                tags: args::set(tags, Vec::new()),
                lifetime_seconds: Some(expiry.as_secs()).filter(|seconds| *seconds != 0),
            };
            session
                .ask(&request, |created, _| format!("{}\n", created.key))
                .await?;
        }
        Preauthkeys::List => {
            session
                .ask(&ListAuthKeys {}, |keys, now| list(keys, now))
                .await?;
        }
        Preauthkeys::Expire { id } => {
            session
                .ask(&ExpireAuthKey { id }, |_, _| {
                    format!("key {id} no longer works\n")
                })
                .await?;
        }
    }
    Ok(())
}

fn list(keys: &[AuthKeyInfo], now: Timestamp) -> String {
    if keys.is_empty() {
        return "no keys; create one: warren-control preauthkeys create --user NAME\n".to_owned();
    }
    let rows: Vec<_> = keys
        .iter()
        .map(|key| {
            let mut kind = vec![if key.reusable { "reusable" } else { "once" }];
            if key.ephemeral {
                kind.push("ephemeral");
            }
            let owner = key
                .user
                .clone()
                .into_iter()
                .chain(key.acl_tags.iter().cloned());
            vec![
                key.id.to_string(),
                owner.collect::<Vec<_>>().join(","),
                kind.join(", "),
                key.uses.to_string(),
                if key.usable { "works" } else { "no longer" }.to_owned(),
                key.expiration
                    .map_or_else(|| "never".to_owned(), |at| relative(at, now)),
            ]
        })
        .collect();
    table(&["ID", "OWNER", "KIND", "USES", "STATE", "EXPIRES"], &rows)
}

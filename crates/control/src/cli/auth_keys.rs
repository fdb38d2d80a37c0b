//! `warren-control preauthkeys`.

use jiff::Timestamp;
use serde_json::json;
use warren_control_api::endpoints::{
    AuthKeyInfo, CreateAuthKey, DeleteAuthKey, ExpireAuthKey, ListAuthKeys,
};

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
            let text = |_: &AuthKeyInfo| format!("key {id} no longer works\n");
            session.done(&ExpireAuthKey { id }, text, json!({})).await?;
        }
        Preauthkeys::Delete { id } => {
            let text = |_: &AuthKeyInfo| format!("key {id} deleted\n");
            session.done(&DeleteAuthKey { id }, text, json!({})).await?;
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
                format!("{}...", key.prefix),
                owner.collect::<Vec<_>>().join(","),
                kind.join(", "),
                key.uses.to_string(),
                key.state.to_string(),
                key.expiration
                    .map_or_else(|| "never".to_owned(), |at| relative(at, now)),
            ]
        })
        .collect();
    table(
        &["ID", "KEY", "OWNER", "KIND", "USES", "STATE", "EXPIRES"],
        &rows,
    )
}

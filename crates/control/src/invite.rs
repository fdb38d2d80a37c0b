//! The invitation that `serve` prints: how to add a machine.

use std::time::Duration;

use warren_control_core::{AdminError, NewAuthKey};

use crate::coordinator::CoordinatorHandle;
use crate::failure::Failure;
use crate::state_dir::StateDir;

/// How long the key that `serve` prints is valid.
const FIRST_KEY_LIFETIME: Duration = Duration::from_secs(3600);
/// How much of that must be left for the key to be printed again.
const FIRST_KEY_REST: Duration = Duration::from_secs(600);

/// How the first lines of `serve` say to add a machine.
pub(crate) enum Invitation {
    /// With this key, which works for so long: no machine is here yet.
    Key(String, Duration),
    /// With a key that this user makes.
    Make(String),
}

/// A key for the first machine; the one of the last start if it still works for
/// a while. Once a machine is here, its administrator makes keys as needed.
pub(crate) async fn invite(
    coordinator: &CoordinatorHandle,
    state: &StateDir,
    user: &str,
) -> Result<Invitation, Failure> {
    let kept = state.first_key()?;
    let made = coordinator
        .change_saved(|c, _, wall| {
            if c.view().users().next().is_none() {
                c.create_user(wall, user)?;
            }
            let state = c.view();
            let owner = state
                .find_user(user)
                .ok()
                .or_else(|| state.users().next())
                .map(|user| user.name.clone());
            if state.node_count() > 0 {
                return Ok((Invitation::Make(owner.unwrap_or_default()), None));
            }
            if let Some(text) = &kept {
                let left = c.auth_key_left(wall, text);
                if let Some(left) = left.filter(|left| *left >= FIRST_KEY_REST) {
                    return Ok((Invitation::Key(text.to_string(), left), None));
                }
                // It was never used, so no node depends on it.
                c.forget_auth_key(text);
            }
            let new = NewAuthKey {
                user: owner.map(Into::into),
                lifetime: Some(FIRST_KEY_LIFETIME),
                ..NewAuthKey::default()
            };
            let (text, _) = c.create_auth_key(wall, new)?;
            let text = text.expose();
            let invitation = Invitation::Key(text.clone(), FIRST_KEY_LIFETIME);
            Ok::<_, AdminError>((invitation, Some(text)))
        })
        .await??;
    match made {
        (Invitation::Make(user), _) => {
            state.forget_first_key();
            Ok(Invitation::Make(user))
        }
        (invitation, None) => Ok(invitation),
        (invitation, Some(fresh)) => {
            state.keep_first_key(&fresh)?;
            Ok(invitation)
        }
    }
}

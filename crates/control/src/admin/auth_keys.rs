//! Pre-auth keys.

use std::time::Duration;

use warren_control_api::endpoints::{
    AuthKeyInfo, AuthKeyState, CreateAuthKey, CreatedAuthKey, DeleteAuthKey, ExpireAuthKey,
    ListAuthKeys,
};
use warren_control_api::{Caller, Handler, Reply};
use warren_control_core::{AuthKeyId, AuthKeyRecord, AuthKeyText, NewAuthKey, View};

use super::{Administration, moment};
use crate::clock::wall_clock;

fn auth_key_info(state: &View, key: &AuthKeyRecord, wall: Duration) -> AuthKeyInfo {
    let user = key.user.and_then(|id| state.user(id));
    let expired = key.expiry.is_some_and(|expiry| expiry <= moment(wall));
    let key_state = if key.revoked {
        AuthKeyState::Revoked
    } else if expired {
        AuthKeyState::Expired
    } else if !key.reusable && key.uses > 0 {
        AuthKeyState::UsedUp
    } else {
        AuthKeyState::Works
    };
    AuthKeyInfo {
        id: key.id.0,
        prefix: AuthKeyText::prefix(key.id),
        user: user.map(|user| user.name.clone()),
        reusable: key.reusable,
        ephemeral: key.ephemeral,
        acl_tags: key.tags.iter().cloned().collect(),
        uses: key.uses,
        used: key.uses > 0,
        usable: key_state == AuthKeyState::Works,
        state: key_state,
        expiration: key.expiry,
        created_at: key.created,
    }
}

impl Handler<ListAuthKeys> for Administration {
    async fn handle(&self, _: &Caller, _: ListAuthKeys) -> Reply<Vec<AuthKeyInfo>> {
        Ok(self.coordinator.read(|c| {
            c.auth_keys()
                .map(|key| auth_key_info(c, key, wall_clock()))
                .collect()
        }))
    }
}

impl Handler<CreateAuthKey> for Administration {
    async fn handle(&self, _: &Caller, request: CreateAuthKey) -> Reply<CreatedAuthKey> {
        let new = NewAuthKey {
            user: request.user.map(Into::into),
            reusable: request.reusable,
            ephemeral: request.ephemeral,
            tags: request.tags,
            lifetime: request.lifetime_seconds.map(Duration::from_secs),
        };
        self.change(|c, wall| {
            let (text, record) = c.create_auth_key(wall, new)?;
            Ok(CreatedAuthKey {
                key: text.expose(),
                record: auth_key_info(&c.view(), &record, wall),
            })
        })
        .await
    }
}

impl Handler<ExpireAuthKey> for Administration {
    async fn handle(&self, _: &Caller, request: ExpireAuthKey) -> Reply<AuthKeyInfo> {
        self.change(|c, wall| {
            let key = c.expire_auth_key(wall, AuthKeyId(request.id))?;
            Ok(auth_key_info(&c.view(), &key, wall))
        })
        .await
    }
}

impl Handler<DeleteAuthKey> for Administration {
    async fn handle(&self, _: &Caller, request: DeleteAuthKey) -> Reply<AuthKeyInfo> {
        self.change(|c, wall| {
            let key = c.delete_auth_key(AuthKeyId(request.id))?;
            Ok(auth_key_info(&c.view(), &key, wall))
        })
        .await
    }
}

//! Users.

use warren_control_api::endpoints::{
    CreateUser, DeleteUser, LinkUser, ListUsers, RenameUser, SetUserRole, UserAccountInfo, UserInfo,
};
use warren_control_api::{Caller, Handler, Reply};
use warren_control_core::UserRecord;

use super::Administration;

fn user_info(user: &UserRecord) -> UserInfo {
    UserInfo {
        id: user.id.0,
        name: user.name.clone(),
        role: user.role,
        created_at: user.created,
        account: user.account.as_deref().map(|account| UserAccountInfo {
            provider: account.provider.clone(),
            issuer: account.issuer.clone(),
            subject: account.subject.clone(),
            email: account.email.clone(),
            display_name: account.display_name.clone(),
            groups: account.groups.iter().cloned().collect(),
            last_login: account.last_login,
        }),
    }
}

impl Handler<ListUsers> for Administration {
    async fn handle(&self, _: &Caller, _: ListUsers) -> Reply<Vec<UserInfo>> {
        Ok(self
            .coordinator
            .read(|c| c.users().map(user_info).collect()))
    }
}

impl Handler<CreateUser> for Administration {
    async fn handle(&self, _: &Caller, request: CreateUser) -> Reply<UserInfo> {
        self.change(|c, wall| Ok(user_info(&c.create_user(wall, &request.name)?)))
            .await
    }
}

impl Handler<RenameUser> for Administration {
    async fn handle(&self, _: &Caller, request: RenameUser) -> Reply<UserInfo> {
        self.change(|c, _| Ok(user_info(&c.rename_user(&request.user, &request.new_name)?)))
            .await
    }
}

impl Handler<SetUserRole> for Administration {
    async fn handle(&self, _: &Caller, request: SetUserRole) -> Reply<UserInfo> {
        self.change(|c, _| Ok(user_info(&c.set_role(&request.user, request.role)?)))
            .await
    }
}

impl Handler<DeleteUser> for Administration {
    async fn handle(&self, _: &Caller, request: DeleteUser) -> Reply<UserInfo> {
        self.change(|c, _| Ok(user_info(&c.delete_user(&request.user)?)))
            .await
    }
}

impl Handler<LinkUser> for Administration {
    async fn handle(&self, _: &Caller, request: LinkUser) -> Reply<UserInfo> {
        self.change(|c, _| {
            let linked = c.link_user(&request.user, &request.issuer, &request.subject);
            Ok(user_info(&linked?))
        })
        .await
    }
}

//! Users.

use warren_control_api::endpoints::{
    CreateUser, DeleteUser, ListUsers, RenameUser, SetUserRole, UserInfo,
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

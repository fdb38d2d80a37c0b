//! Commands of the administrator.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use jiff::{SignedDuration, Timestamp};
use warren_control_types::{NodeId, PingRequest};
use warren_keys::{MachinePublic, NodePublic};
use warren_policy::Role;

use super::Coordinator;
use super::register::usable;
use crate::auth_keys::AuthKeyText;
use crate::clock::timestamp;
use crate::error::AdminError;
use crate::map_sessions::PingError;
use crate::names::{check_node_name, check_user_name};
use crate::parked::PendingId;
use crate::records::{AccountRecord, AuthKeyId, AuthKeyRecord, Change, UserRecord};
use crate::references::{NodeRef, UserRef};
use crate::registrations::PendingLogin;
use crate::routes::{EXIT_ROUTES, is_exit};

/// The properties of a new pre-auth key.
#[derive(Debug, Clone, Default)]
pub struct NewAuthKey {
    /// The user whose nodes it makes.
    pub user: Option<UserRef>,
    /// Works more than once.
    pub reusable: bool,
    /// Its nodes are deleted when they stay away.
    pub ephemeral: bool,
    /// Its nodes belong to these tags.
    pub tags: BTreeSet<String>,
    /// Its validity. `None`: until it is expired by hand.
    pub lifetime: Option<Duration>,
}

/// A machine that waits for approval, as it describes itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingView {
    /// The id to approve.
    pub id: PendingId,
    /// Its host name.
    pub hostname: String,
    /// Its operating system.
    pub os: String,
    /// Its node key.
    pub node_key: NodePublic,
    /// The address from which it asked, as far as it is known.
    pub source: Option<IpAddr>,
    /// The start of the waiting.
    pub since: Timestamp,
}

impl PendingView {
    pub(crate) fn of(id: &PendingId, login: &PendingLogin) -> Self {
        let host = login.request.hostinfo();
        Self {
            id: id.clone(),
            hostname: host.hostname,
            os: host.os,
            node_key: login.request.node_key,
            source: login.source,
            since: login.since,
        }
    }
}

impl Coordinator {
    /// Creates a user.
    ///
    /// # Errors
    /// The name is taken or not valid.
    pub fn create_user(&mut self, wall: Duration, name: &str) -> Result<UserRecord, AdminError> {
        check_user_name(name)?;
        if self.view.directory.users_named(name).next().is_some() {
            return Err(AdminError::UserExists(name.to_owned()));
        }
        let user = UserRecord {
            id: self.take_user_id(),
            name: name.to_owned(),
            created: timestamp(wall),
            role: Role::Member,
            account: None,
        };
        self.commit(Change::User(user.clone()), true);
        Ok(user)
    }

    /// Gives a user another name.
    ///
    /// # Errors
    /// No such user, or the new name is taken or not valid.
    pub fn rename_user(
        &mut self,
        old: impl Into<UserRef>,
        new: &str,
    ) -> Result<UserRecord, AdminError> {
        let mut user = self.find_user(old)?.clone();
        check_user_name(new)?;
        let directory = &self.view.directory;
        if directory.users_named(new).any(|other| other.id != user.id) {
            return Err(AdminError::UserExists(new.to_owned()));
        }
        user.name = new.to_owned();
        self.commit(Change::User(user.clone()), true);
        Ok(user)
    }

    /// Gives a user another role; the policy for it takes effect at once. Routes
    /// that it approves for the role are approved; those that were approved
    /// stay.
    ///
    /// # Errors
    /// No such user.
    pub fn set_role(
        &mut self,
        user: impl Into<UserRef>,
        role: Role,
    ) -> Result<UserRecord, AdminError> {
        let mut user = self.find_user(user)?.clone();
        if user.role != role {
            user.role = role;
            self.commit(Change::User(user.clone()), true);
            for node in self.view.directory.nodes_of_user(user.id) {
                self.approve_by_policy(node);
            }
        }
        Ok(user)
    }

    /// Deletes a user without nodes, and its pre-auth keys.
    ///
    /// # Errors
    /// No such user, or nodes are left.
    pub fn delete_user(&mut self, user: impl Into<UserRef>) -> Result<UserRecord, AdminError> {
        let user = self.find_user(user)?.clone();
        let nodes = self.view.directory.nodes_of_user(user.id).len();
        if nodes > 0 {
            return Err(AdminError::UserHasNodes {
                name: user.name,
                nodes,
            });
        }
        let keys = self.view.auth_keys();
        let keys: Vec<_> = keys
            .filter(|key| key.user == Some(user.id))
            .map(|key| key.id)
            .collect();
        for id in keys {
            self.commit(Change::AuthKeyGone(id), true);
        }
        self.commit(Change::UserGone(user.id), true);
        Ok(user)
    }

    /// Creates a pre-auth key. This is the only time that its text is known.
    ///
    /// # Errors
    /// No owner, no such user, or a tag that is not valid or that the policy does
    /// not define.
    pub fn create_auth_key(
        &mut self,
        wall: Duration,
        new: NewAuthKey,
    ) -> Result<(AuthKeyText, AuthKeyRecord), AdminError> {
        let user = match &new.user {
            // An administrator who asks for a key wants the user to exist.
            Some(name) => match self.find_user(name) {
                Ok(user) => Some(user.id),
                Err(_) if check_user_name(&name.to_string()).is_ok() => {
                    return Err(AdminError::NoUserForKey(name.to_string()));
                }
                Err(error) => return Err(error),
            },
            None if new.tags.is_empty() => return Err(AdminError::KeyWithoutOwner),
            None => None,
        };
        self.check_tags(&new.tags)?;
        let created = timestamp(wall);
        let expiry = match new.lifetime {
            None => None,
            Some(life) => Some(
                SignedDuration::try_from(life)
                    .ok()
                    .and_then(|life| created.checked_add(life).ok())
                    .ok_or(AdminError::Time)?,
            ),
        };
        let id = self.take_auth_key_id();
        let text = AuthKeyText::generate(id, self.entropy.as_mut());
        let record = AuthKeyRecord {
            revoked: false,
            id,
            digest: text.digest(),
            user,
            reusable: new.reusable,
            ephemeral: new.ephemeral,
            tags: new.tags,
            created,
            expiry,
            uses: 0,
        };
        self.commit(Change::AuthKey(record.clone()), true);
        Ok((text, record))
    }

    /// How long a pre-auth key still admits machines; `None` if it does not.
    pub fn auth_key_left(&self, wall: Duration, text: &str) -> Option<Duration> {
        let now = timestamp(wall);
        let key = self.view.auth_key(text);
        let key = key.filter(|key| usable(key, now).is_ok())?;
        let left = key
            .expiry
            .map(|end| Duration::try_from(end.duration_since(now)));
        left.map_or(Some(Duration::MAX), Result::ok)
    }

    /// Deletes a pre-auth key that was not used. Others stay: nodes name them.
    pub fn forget_auth_key(&mut self, text: &str) {
        let unused = self.view.auth_key(text).filter(|key| key.uses == 0);
        if let Some(id) = unused.map(|key| key.id) {
            self.commit(Change::AuthKeyGone(id), true);
        }
    }

    /// Makes a pre-auth key stop working now. Nodes that used it stay.
    ///
    /// # Errors
    /// No such key.
    pub fn expire_auth_key(
        &mut self,
        wall: Duration,
        id: AuthKeyId,
    ) -> Result<AuthKeyRecord, AdminError> {
        let key = self.view.directory.auth_key(id);
        let mut key = key.cloned().ok_or(AdminError::NoAuthKey(id.0))?;
        let time = self.past(wall);
        // A key that had ended by itself was not revoked.
        key.revoked |= key.expiry.is_none_or(|expiry| expiry > time);
        key.expiry = Some(key.expiry.map_or(time, |expiry| expiry.min(time)));
        self.commit(Change::AuthKey(key.clone()), true);
        Ok(key)
    }

    /// Deletes a key. Nodes that used it stay. Returns the key as it was.
    ///
    /// # Errors
    /// No such key.
    pub fn delete_auth_key(&mut self, id: AuthKeyId) -> Result<AuthKeyRecord, AdminError> {
        let key = self.view.directory.auth_key(id).cloned();
        let key = key.ok_or(AdminError::NoAuthKey(id.0))?;
        self.commit(Change::AuthKeyGone(id), true);
        Ok(key)
    }

    /// Gives a node a name that its host name no longer overrules.
    ///
    /// # Errors
    /// No such node, or a name that is not valid or belongs to another node.
    pub fn rename_node(
        &mut self,
        node: impl Into<NodeRef>,
        name: &str,
    ) -> Result<NodeId, AdminError> {
        let id = self.find_node(node)?.id;
        let label = check_node_name(name)?;
        let named = self.view.directory.nodes_named(&label);
        if named.iter().any(|other| other.id != id) {
            return Err(AdminError::NameTaken(label));
        }
        self.revise(id, true, |node| {
            node.name = label;
            node.name_chosen = true;
        });
        Ok(id)
    }

    /// Sets when a node's key stops working. A moment in the past: now, and the node
    /// has to log in again. `None`: never.
    ///
    /// # Errors
    /// No such node.
    pub fn set_expiry(
        &mut self,
        wall: Duration,
        node: impl Into<NodeRef>,
        end: Option<Timestamp>,
    ) -> Result<NodeId, AdminError> {
        let id = self.find_node(node)?.id;
        let past = self.past(wall);
        // Not the distant past: peers would see it.
        let end = end.map(|end| if end <= timestamp(wall) { past } else { end });
        self.revise(id, true, |node| node.key_expiry = end);
        Ok(id)
    }

    /// Makes a node's key stop working now: it has to log in again.
    ///
    /// # Errors
    /// No such node.
    pub fn expire_node(
        &mut self,
        wall: Duration,
        node: impl Into<NodeRef>,
    ) -> Result<NodeId, AdminError> {
        self.set_expiry(wall, node, Some(timestamp(wall)))
    }

    /// A moment that has passed, also by the time that is believed.
    fn past(&self, wall: Duration) -> Timestamp {
        timestamp(wall).min(self.clock.time())
    }

    /// Deletes a node. Its addresses are not given to another one soon.
    ///
    /// # Errors
    /// No such node.
    pub fn delete_node(&mut self, node: impl Into<NodeRef>) -> Result<NodeId, AdminError> {
        let id = self.find_node(node)?.id;
        self.remove_node(id);
        Ok(id)
    }

    /// Sends a c2n request to a node, over its map stream. The answer comes to
    /// the address in the request, from the machine that is returned here.
    ///
    /// # Errors
    /// No such node, or it has no stream now.
    pub fn ask_node(
        &mut self,
        node: impl Into<NodeRef>,
        ping: PingRequest,
    ) -> Result<MachinePublic, AdminError> {
        let node = self.view.find_node(node)?;
        match self.sessions.ping(node.id, ping) {
            Ok(()) => Ok(node.machine),
            Err(PingError::NotConnected) => Err(AdminError::NotConnected(node.name.clone())),
            Err(PingError::TooMany) => Err(AdminError::TooManyQuestions(node.name.clone())),
        }
    }

    /// Sets the routes of a node that are approved. A route that the node does not
    /// advertise yet counts from when it does. Exit routes come in pairs: one
    /// family approves both.
    ///
    /// # Errors
    /// No such node.
    pub fn approve_routes(
        &mut self,
        node: impl Into<NodeRef>,
        routes: &[IpNet],
    ) -> Result<NodeId, AdminError> {
        let id = self.find_node(node)?.id;
        let mut approved: BTreeSet<IpNet> = routes.iter().map(IpNet::trunc).collect();
        if approved.iter().any(is_exit) {
            approved.extend(EXIT_ROUTES);
        }
        self.revise(id, true, |node| node.approved_routes = approved);
        Ok(id)
    }

    /// Adds the routes that the policy approves by itself.
    pub(super) fn approve_by_policy(&mut self, id: NodeId) {
        let Some(node) = self.view.node(id) else {
            return;
        };
        let routes = self.view.approved_by_policy(node);
        self.revise(id, true, |node| node.approved_routes.extend(routes));
    }

    /// The node has another owner now. Routes were approved for the owner
    /// before; only those that the policy approves for the new one count.
    pub(super) fn approve_anew(&mut self, id: NodeId) {
        if let Some(node) = self.view.node(id) {
            let routes = self.view.approved_by_policy(node);
            self.revise(id, true, |node| node.approved_routes = routes);
        }
    }

    /// The machines that wait for approval, oldest first.
    pub fn pending(&self) -> Vec<PendingView> {
        let waiting = self.registrations.iter();
        waiting
            .map(|(id, login)| PendingView::of(id, login))
            .collect()
    }

    /// The machine that waits under this id.
    pub fn waiting(&self, id: &PendingId) -> Option<PendingView> {
        let login = self.registrations.get(id)?;
        Some(PendingView::of(id, login))
    }

    /// Says with which account of an identity provider a user logs in. The next login
    /// with it takes over the rest of the account.
    ///
    /// # Errors
    /// No such user, or the account belongs to another one.
    pub fn link_user(
        &mut self,
        user: impl Into<UserRef>,
        issuer: &str,
        subject: &str,
    ) -> Result<UserRecord, AdminError> {
        let mut user = self.find_user(user)?.clone();
        let other = self.view.directory.user_of_account(issuer, subject);
        if let Some(other) = other.filter(|other| other.id != user.id) {
            return Err(AdminError::AccountTaken(other.name.clone()));
        }
        user.account = Some(Box::new(AccountRecord {
            provider: String::new(),
            issuer: issuer.to_owned(),
            subject: subject.to_owned(),
            email: None,
            username: None,
            display_name: None,
            picture: None,
            groups: BTreeSet::new(),
            last_login: None,
        }));
        self.commit(Change::User(user.clone()), true);
        Ok(user)
    }
}

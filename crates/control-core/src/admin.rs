//! What the administrator does.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use jiff::{SignedDuration, Timestamp};
use warren_control_types::{NodeId, PingRequest, UserId};
use warren_keys::MachinePublic;
use warren_policy::Role;

use crate::access::Access;
use crate::auth_keys::AuthKeyText;
use crate::coordinator::{Coordinator, Output, timestamp};
use crate::error::AdminError;
use crate::names::{check_node_name, check_user_name};
use crate::records::{AuthKeyId, AuthKeyRecord, Change, NodeRecord, TAGGED_DEVICES, UserRecord};
use crate::references::{NodeRef, NodeTarget, UserRef, UserTarget};
use crate::register::{PendingId, hostinfo, usable};
use crate::routes::{advertised, is_exit};

/// Questions that may wait for a node that reads slowly.
const MAX_QUESTIONS: usize = 16;

/// What a new pre-auth key shall be.
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
    /// How long it works. `None`: until it is expired by hand.
    pub lifetime: Option<Duration>,
}

/// A machine that waits for approval, as it describes itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingView {
    /// What to approve.
    pub id: PendingId,
    /// Its host name.
    pub hostname: String,
    /// Its operating system.
    pub os: String,
    /// Since when it waits.
    pub since: Timestamp,
}

impl Coordinator {
    /// Makes a user.
    ///
    /// # Errors
    /// The name is taken or no name.
    pub fn create_user(&mut self, wall: Duration, name: &str) -> Result<UserRecord, AdminError> {
        check_user_name(name)?;
        if self.users_named(name).next().is_some() {
            return Err(AdminError::UserExists(name.to_owned()));
        }
        let user = UserRecord {
            id: self.take_user_id(),
            name: name.to_owned(),
            created: timestamp(wall),
            role: Role::Member,
        };
        self.store_user(&user);
        self.data.users.insert(user.id, user.clone());
        self.users_changed();
        Ok(user)
    }

    /// Gives a user another name; nodes that see one of its nodes hear of it.
    ///
    /// # Errors
    /// No such user, or the new name is taken or no name.
    pub fn rename_user(
        &mut self,
        old: impl Into<UserRef>,
        new: &str,
    ) -> Result<UserRecord, AdminError> {
        let id = self.find_user(old)?.id;
        check_user_name(new)?;
        if self.users_named(new).any(|other| other.id != id) {
            return Err(AdminError::UserExists(new.to_owned()));
        }
        let user = self
            .data
            .users
            .get_mut(&id)
            .ok_or_else(|| AdminError::NoUser(id.to_string()))?;
        user.name = new.to_owned();
        let user = user.clone();
        self.store_user(&user);
        let told: Vec<_> = self
            .sessions
            .iter()
            .filter(|(_, s)| s.told.as_ref().is_none_or(|told| told.users.contains(&id)))
            .map(|(session, _)| *session)
            .collect();
        for session in told {
            self.mark(session, |pending| {
                pending.users.insert(id);
            });
        }
        self.users_changed();
        Ok(user)
    }

    /// Gives a user another role; what the policy says of it takes effect at
    /// once. Routes that it approves for the role are approved; those that were
    /// approved stay.
    ///
    /// # Errors
    /// No such user.
    pub fn set_role(
        &mut self,
        name: impl Into<UserRef>,
        role: Role,
    ) -> Result<UserRecord, AdminError> {
        let id = self.find_user(name)?.id;
        let user = self.data.users.get_mut(&id);
        let user = user.ok_or_else(|| AdminError::NoUser(id.to_string()))?;
        let before = std::mem::replace(&mut user.role, role);
        let changed = before != role;
        let user = user.clone();
        if changed {
            self.store_user(&user);
            self.users_changed();
            let nodes = self.data.nodes.values();
            let own: Vec<_> = nodes
                .filter(|node| node.user == Some(id))
                .map(|node| node.id)
                .collect();
            for node in own {
                self.approve_by_policy(node);
                if before.capabilities() != role.capabilities() {
                    self.mark_own(node);
                }
            }
        }
        Ok(user)
    }

    /// Deletes a user without nodes, and its pre-auth keys.
    ///
    /// # Errors
    /// No such user, or nodes are left.
    pub fn delete_user(&mut self, name: impl Into<UserRef>) -> Result<UserRecord, AdminError> {
        let user = self.find_user(name)?.clone();
        let nodes = self
            .data
            .nodes
            .values()
            .filter(|node| node.user == Some(user.id))
            .count();
        if nodes > 0 {
            return Err(AdminError::UserHasNodes {
                name: user.name,
                nodes,
            });
        }
        let keys: Vec<_> = self
            .data
            .auth_keys
            .values()
            .filter(|key| key.user == Some(user.id))
            .map(|key| key.id)
            .collect();
        for id in keys {
            self.data.auth_keys.remove(&id);
            self.outputs.push_back(Output::Store {
                change: Change::AuthKeyGone(id),
                durable: true,
            });
        }
        self.data.users.remove(&user.id);
        self.outputs.push_back(Output::Store {
            change: Change::UserGone(user.id),
            durable: true,
        });
        self.users_changed();
        Ok(user)
    }

    /// The user that the reference names.
    ///
    /// # Errors
    /// No user has the number or name, or several users have the name.
    pub fn find_user(&self, user: impl Into<UserRef>) -> Result<&UserRecord, AdminError> {
        let user = user.into();
        let found: Vec<&UserRecord> = match user.target() {
            UserTarget::Number(id) => {
                let id = id.as_ref();
                id.and_then(|id| self.data.users.get(id))
                    .into_iter()
                    .collect()
            }
            UserTarget::Name(name) => self.users_named(name).collect(),
        };
        match found[..] {
            [] => Err(AdminError::NoUser(user.to_string())),
            [one] => Ok(one),
            [..] => Err(AdminError::Ambiguous {
                text: user.to_string(),
                candidates: found
                    .iter()
                    .map(|user| UserRef::from(user.id).to_string())
                    .collect(),
            }),
        }
    }

    fn users_named<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a UserRecord> {
        let users = self.data.users.values();
        users.filter(move |user| user.name.eq_ignore_ascii_case(name))
    }

    /// The name of an owner, and since when there is one.
    pub(crate) fn user_name(&self, id: UserId) -> (String, Option<Timestamp>) {
        match self.data.users.get(&id) {
            Some(user) => (user.name.clone(), Some(user.created)),
            None if id == TAGGED_DEVICES => ("tagged-devices".to_owned(), None),
            None => (format!("user-{id}"), None),
        }
    }

    /// Makes a pre-auth key. Its text is told once, here.
    ///
    /// # Errors
    /// No owner, no such user, a tag that is none.
    pub fn create_auth_key(
        &mut self,
        wall: Duration,
        new: NewAuthKey,
    ) -> Result<(AuthKeyText, AuthKeyRecord), AdminError> {
        let user = match &new.user {
            // Who asks for a key wants the user to be there.
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
        for tag in &new.tags {
            check_tag(tag)?;
        }
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
        self.store_auth_key(&record);
        self.data.auth_keys.insert(id, record.clone());
        Ok((text, record))
    }

    /// How long a pre-auth key still lets machines in; `None` if it does not.
    pub fn auth_key_left(&self, wall: Duration, text: &str) -> Option<Duration> {
        let now = timestamp(wall);
        let key = self.auth_key(text).filter(|key| usable(key, now).is_ok())?;
        let left = key
            .expiry
            .map(|end| Duration::try_from(end.duration_since(now)));
        left.map_or(Some(Duration::MAX), Result::ok)
    }

    /// Deletes a pre-auth key that nobody used. Others stay: nodes name them.
    pub fn forget_auth_key(&mut self, text: &str) {
        let unused = self.auth_key(text).filter(|key| key.uses == 0);
        if let Some(id) = unused.map(|key| key.id) {
            self.data.auth_keys.remove(&id);
            self.outputs.push_back(Output::Store {
                change: Change::AuthKeyGone(id),
                durable: true,
            });
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
        let key = self
            .data
            .auth_keys
            .get_mut(&id)
            .ok_or(AdminError::NoAuthKey(id.0))?;
        let time = timestamp(wall);
        key.expiry = Some(key.expiry.map_or(time, |expiry| expiry.min(time)));
        let key = key.clone();
        self.store_auth_key(&key);
        Ok(key)
    }

    /// The node that the reference names: by number, name, full name or address.
    ///
    /// # Errors
    /// No node has it, or several nodes have the name.
    pub fn find_node(&self, node: impl Into<NodeRef>) -> Result<&NodeRecord, AdminError> {
        let node = node.into();
        let nodes = self.data.nodes.values();
        let found: Vec<&NodeRecord> = match node.target() {
            NodeTarget::Number(id) => {
                let id = id.as_ref();
                id.and_then(|id| self.data.nodes.get(id))
                    .into_iter()
                    .collect()
            }
            NodeTarget::Name(name) => {
                let zone = format!(".{}", self.config.base_domain);
                let label = name.strip_suffix(&zone).unwrap_or(name);
                nodes.filter(|node| node.name == label).collect()
            }
            NodeTarget::Address(address) => nodes
                .filter(|node| {
                    IpAddr::from(node.address.v4()) == *address
                        || IpAddr::from(node.address.v6()) == *address
                })
                .collect(),
        };
        match found[..] {
            [] => Err(AdminError::NoNode(node.to_string())),
            [one] => Ok(one),
            [..] => Err(AdminError::Ambiguous {
                text: node.to_string(),
                candidates: found
                    .iter()
                    .map(|node| NodeRef::from(node.id).to_string())
                    .collect(),
            }),
        }
    }

    /// Gives a node a name that its host name no longer overrules.
    ///
    /// # Errors
    /// No such node, no name, or another node's name.
    pub fn rename_node(
        &mut self,
        node: impl Into<NodeRef>,
        name: &str,
    ) -> Result<NodeId, AdminError> {
        let id = self.find_node(node)?.id;
        let label = check_node_name(name)?;
        if self
            .data
            .nodes
            .values()
            .any(|other| other.id != id && other.name == label)
        {
            return Err(AdminError::NameTaken(label));
        }
        if let Some(node) = self.data.nodes.get_mut(&id) {
            node.name = label;
            node.name_chosen = true;
        }
        self.store_node(id, true);
        self.announce(id, crate::session::PeerMark::Whole);
        self.mark_own(id);
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
        let id = self.find_node(node)?.id;
        let time = timestamp(wall);
        self.set_expiry(id, Some(time));
        self.told_expired.insert(id);
        Ok(id)
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

    /// Puts a question to a node, over its map stream. The answer comes to the
    /// address in the question, from the machine that is answered here.
    ///
    /// # Errors
    /// No such node, or it has no stream now.
    pub fn ask_node(
        &mut self,
        node: impl Into<NodeRef>,
        question: PingRequest,
    ) -> Result<MachinePublic, AdminError> {
        let found = self.find_node(node)?;
        let (machine, name) = (found.machine, found.name.clone());
        let session = self.session_of.get(&found.id).copied();
        let open = session.and_then(|id| Some((id, self.sessions.get_mut(&id)?)));
        let (id, session) = open.ok_or(AdminError::NotConnected(name.clone()))?;
        if session.questions.len() >= MAX_QUESTIONS {
            return Err(AdminError::TooManyQuestions(name));
        }
        session.questions.push_back(question);
        self.outputs.push_back(Output::Wake(id));
        Ok(machine)
    }

    /// Gives a node to these tags; without any it returns to its user.
    ///
    /// # Errors
    /// No such node, a tag that is none, or nobody would own the node.
    pub fn tag_node(
        &mut self,
        node: impl Into<NodeRef>,
        tags: BTreeSet<String>,
    ) -> Result<NodeId, AdminError> {
        let found = self.find_node(node)?;
        let id = found.id;
        for tag in &tags {
            check_tag(tag)?;
        }
        if tags.is_empty() && found.user.is_none() {
            return Err(AdminError::KeyWithoutOwner);
        }
        let changed = found.tags != tags;
        if let Some(node) = self.data.nodes.get_mut(&id) {
            node.tags = tags;
            // A key that belongs to a service does not ask a person to renew it.
            if node.is_tagged() && !self.told_expired.contains(&id) {
                node.key_expiry = None;
            }
        }
        self.store_node(id, true);
        self.identity_changed(id);
        if changed {
            self.approve_anew(id);
        }
        Ok(id)
    }

    /// Sets which of a node's advertised routes count. Exit routes come in
    /// pairs: one family named approves both that are advertised.
    ///
    /// # Errors
    /// No such node, or a route it does not advertise.
    pub fn approve_routes(
        &mut self,
        node: impl Into<NodeRef>,
        routes: &[IpNet],
    ) -> Result<NodeId, AdminError> {
        let found = self.find_node(node)?;
        let (id, offered) = (found.id, advertised(found));
        let mut approved: BTreeSet<IpNet> = routes.iter().map(IpNet::trunc).collect();
        if approved.iter().any(is_exit) {
            approved.extend(offered.iter().filter(|route| is_exit(route)));
        }
        if let Some(route) = approved.difference(&offered).next() {
            let listed: Vec<_> = offered.iter().map(ToString::to_string).collect();
            return Err(AdminError::NotAdvertised {
                node: found.name.clone(),
                route: route.to_string(),
                advertised: if listed.is_empty() {
                    "nothing".into()
                } else {
                    listed.join(", ")
                },
            });
        }
        self.set_approved(id, approved);
        Ok(id)
    }

    pub(crate) fn set_approved(&mut self, id: NodeId, approved: BTreeSet<IpNet>) {
        let Some(node) = self.data.nodes.get_mut(&id) else {
            return;
        };
        if node.approved_routes == approved {
            return;
        }
        node.approved_routes = approved;
        self.store_node(id, true);
        self.routers_changed();
        self.identity_changed(id);
    }

    /// Adds what the policy approves by itself.
    pub(crate) fn approve_by_policy(&mut self, id: NodeId) {
        let Some(node) = self.data.nodes.get(&id) else {
            return;
        };
        let mut approved = node.approved_routes.clone();
        approved.extend(self.approved_by_policy(node));
        self.set_approved(id, approved);
    }

    /// The node belongs to somebody else now: what was approved, was approved
    /// for the owner before. What the policy approves for the new one, counts.
    pub(crate) fn approve_anew(&mut self, id: NodeId) {
        if let Some(node) = self.data.nodes.get(&id) {
            let approved = self.approved_by_policy(node).collect();
            self.set_approved(id, approved);
        }
    }

    fn approved_by_policy(&self, node: &NodeRecord) -> impl Iterator<Item = IpNet> {
        advertised(node)
            .into_iter()
            .filter(|route| self.access.approves_route(node, route))
    }

    /// The machines that wait for approval, oldest first.
    pub fn pending(&self) -> Vec<PendingView> {
        let mut views: Vec<_> = self
            .pendings
            .waiting
            .iter()
            .map(|(id, login)| PendingView {
                id: id.clone(),
                hostname: hostinfo(&login.request).hostname,
                os: hostinfo(&login.request).os,
                since: login.since,
            })
            .collect();
        views.sort_by_key(|view| view.since);
        views
    }

    /// Everybody whose view the policy alters hears of it.
    pub(crate) fn put_in_force(&mut self, access: Access, text: Option<String>) {
        let same_relays = self.access.has_same_relays(&access);
        let concern = self.access.replace(access, &self.data);
        self.data.policy.clone_from(&text);
        self.outputs.push_back(Output::Store {
            change: Change::Policy(text),
            durable: true,
        });
        let all: Vec<_> = self.data.nodes.keys().copied().collect();
        for id in all {
            self.approve_by_policy(id);
        }
        self.mark_concern(&concern);
        if !same_relays {
            let sessions: Vec<_> = self.sessions.keys().copied().collect();
            for session in sessions {
                self.mark(session, |pending| pending.relays = true);
            }
        }
    }
}

/// `tag:`, a letter, then letters, digits and `-`: the client's own rule.
fn check_tag(tag: &str) -> Result<(), AdminError> {
    let name = tag.strip_prefix("tag:").unwrap_or_default();
    let good = name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
        && name.len() <= 63;
    if good {
        Ok(())
    } else {
        Err(AdminError::Tag(tag.to_owned()))
    }
}

//! Owners of nodes: a person or tags, and all that follows from the owner.
//!
//! A node stays the same node (id, addresses, name) whether a person or tags own
//! it. A login renews the node whose key it replaces (`OldNodeKey`), if that node
//! belongs to the same machine; without that, the node of this machine that has
//! the owner already. Only a login for another person makes another node: two
//! people may share a machine, and neither takes over what the other had.
//!
//! The end of the key and the approved routes follow from the owner at every
//! change, in both directions: the key of a person's node ends, that of a tagged
//! or ephemeral node does not, and routes count for the owner for whom they were
//! approved.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};
use warren_control_types::{NodeId, UserId};
use warren_keys::MachinePublic;

use super::Coordinator;
use crate::error::AdminError;
use crate::records::{AuthKeyId, AuthKeyRecord, JoinMethod, NodeRecord};
use crate::references::{NodeRef, UserRef};
use crate::registrations::JoinRequest;

/// Why requested tags are refused if no pre-auth key carries them.
pub(super) const POLICY_REFUSES: &str =
    "the policy's tagOwners must name the user, or the pre-auth key must carry the tag";

/// The owner of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Owner {
    /// The person, or the person whose login or key gave the node its tags.
    pub(super) user: Option<UserId>,
    /// Not empty: these own the node.
    pub(super) tags: BTreeSet<String>,
    /// Whether an administrator set it after the node had joined.
    pub(super) set: bool,
}

impl Owner {
    pub(super) fn of(node: &NodeRecord) -> Self {
        Self {
            user: node.user,
            tags: node.tags.clone(),
            set: node.owner_set,
        }
    }

    fn is_tags(&self) -> bool {
        !self.tags.is_empty()
    }

    /// Whether it is another owner.
    pub(super) fn differs(&self, other: &Self) -> bool {
        self.tags != other.tags || self.user != other.user
    }

    pub(super) fn give(self, node: &mut NodeRecord) {
        node.user = self.user;
        node.tags = self.tags;
        node.owner_set = self.set;
    }
}

/// The future owner of a node, and the reason why it may join.
#[derive(Debug)]
pub(super) struct Admission {
    pub(super) owner: Owner,
    pub(super) ephemeral: bool,
    pub(super) method: JoinMethod,
    pub(super) auth_key: Option<AuthKeyId>,
}

impl Coordinator {
    /// Checks the tags that a client asks for in a login with a pre-auth key. The
    /// tags of a tagged key are final; without tags in the key, the policy says
    /// which tags its user may give.
    pub(super) fn check_requested_tags(
        &self,
        key: &AuthKeyRecord,
        wanted: &[String],
    ) -> Result<(), String> {
        let refused = |permitted: &dyn Fn(&String) -> bool| -> Vec<String> {
            let refused = wanted.iter().filter(|tag| !permitted(tag));
            refused.cloned().collect()
        };
        if key.tags.is_empty() {
            let access = &self.view.access;
            let may = |tag: &String| key.user.is_some_and(|user| access.may_tag(user, tag));
            let refused = refused(&may);
            if !refused.is_empty() {
                return Err(refused_tags(&refused, POLICY_REFUSES));
            }
        } else {
            let refused = refused(&|tag| key.tags.contains(tag));
            if !refused.is_empty() {
                let own: Vec<&str> = key.tags.iter().map(String::as_str).collect();
                let why = format!(
                    "the tags of this pre-auth key are final ({})",
                    own.join(", ")
                );
                return Err(refused_tags(&refused, &why));
            }
        }
        Ok(())
    }

    /// The admission of a login with a pre-auth key. If the node has used this key
    /// before and an administrator set its owner since then, the owner stays.
    pub(super) fn admission_by_key(
        &self,
        machine: MachinePublic,
        request: &JoinRequest,
        key: &AuthKeyRecord,
        wanted: Vec<String>,
    ) -> Admission {
        let of_machine = || self.view.directory.nodes_of_machine(machine);
        let used_it = |node: &&NodeRecord| node.auth_key == Some(key.id);
        let known = self.named_by(machine, request);
        let known = known.or_else(|| of_machine().find(used_it));
        let set = known.filter(used_it).filter(|node| node.owner_set);
        let owner = set.map_or_else(
            || Owner {
                user: key.user,
                tags: if key.tags.is_empty() {
                    wanted.into_iter().collect()
                } else {
                    key.tags.clone()
                },
                set: false,
            },
            Owner::of,
        );
        Admission {
            owner,
            ephemeral: key.ephemeral || request.ephemeral,
            method: JoinMethod::AuthKey,
            auth_key: Some(key.id),
        }
    }

    /// The owner that a node asks for when it registers again with its key and other
    /// tags than the last time (`up --advertise-tags`). `None`: the one that it has.
    ///
    /// # Errors
    /// The tags are not for this node: a text for the user.
    pub(super) fn owner_by_wish(
        &self,
        node: &NodeRecord,
        request: &JoinRequest,
    ) -> Result<Option<Owner>, String> {
        let Some(host) = &request.hostinfo else {
            return Ok(None);
        };
        let wanted = &host.request_tags;
        let tags: BTreeSet<String> = wanted.iter().cloned().collect();
        let is_new_wish = *wanted != node.hostinfo.request_tags;
        if tags.is_empty() || tags == node.tags || !is_new_wish {
            return Ok(None);
        }
        if node.owner_set {
            let why = "an administrator set the owner of this node";
            return Err(refused_tags(wanted, why));
        }
        let key = node
            .auth_key
            .and_then(|id| self.view.directory.auth_key(id));
        if let Some(key) = key.filter(|key| !key.tags.is_empty()) {
            self.check_requested_tags(key, wanted)?;
            return Ok(None);
        }
        let may = |tag: &&String| {
            let access = &self.view.access;
            node.user.is_some_and(|user| access.may_tag(user, tag))
        };
        let refused: Vec<String> = wanted.iter().filter(|tag| !may(tag)).cloned().collect();
        if !refused.is_empty() {
            return Err(refused_tags(&refused, POLICY_REFUSES));
        }
        Ok(Some(Owner {
            user: node.user,
            tags,
            set: false,
        }))
    }

    /// The node of this machine whose key the request says that it replaces.
    fn named_by(&self, machine: MachinePublic, request: &JoinRequest) -> Option<&NodeRecord> {
        let node = self.view.node_by_key(&request.replaces?)?;
        (node.machine == machine).then_some(node)
    }

    /// The node that a login renews. `None`: it makes another one.
    pub(super) fn renewed_by(
        &self,
        machine: MachinePublic,
        request: &JoinRequest,
        admission: &Admission,
    ) -> Option<NodeId> {
        let owner = &admission.owner;
        let named = self.named_by(machine, request);
        let named =
            named.filter(|node| node.is_tagged() || owner.is_tags() || node.user == owner.user);
        let same_owner = |node: &&NodeRecord| {
            node.is_tagged() == owner.is_tags() && (owner.is_tags() || node.user == owner.user)
        };
        let found = named.or_else(|| {
            let mut nodes = self.view.directory.nodes_of_machine(machine);
            nodes.find(same_owner)
        });
        found.map(|node| node.id)
    }

    /// When the key of a node with this owner ends, if the machine wishes for this
    /// end. It counts from what the wall clock says now: a machine must not get a
    /// key that ends when a clock that was corrected is believed.
    pub(super) fn end_of_key(
        &self,
        owner: &Owner,
        ephemeral: bool,
        wish: Option<Timestamp>,
    ) -> Option<Timestamp> {
        let lifetime = self.config().key_lifetime;
        let granted = lifetime
            .filter(|_| !owner.is_tags() && !ephemeral)
            .and_then(|life| SignedDuration::try_from(life).ok())
            .and_then(|life| self.clock.latest().checked_add(life).ok());
        match (granted, wish) {
            (Some(granted), Some(wish)) => Some(granted.min(wish)),
            (granted, wish) => granted.or(wish),
        }
    }

    /// Gives a node to these tags.
    ///
    /// # Errors
    /// No such node, no tags, or a tag that is not valid or that the policy does
    /// not define.
    pub fn tag_node(
        &mut self,
        node: impl Into<NodeRef>,
        tags: BTreeSet<String>,
    ) -> Result<NodeId, AdminError> {
        let found = self.find_node(node)?;
        if tags.is_empty() {
            return Err(AdminError::NoTags(found.name.clone()));
        }
        self.check_tags(&tags)?;
        let (id, user) = (found.id, found.user);
        self.set_owner(id, user, tags);
        Ok(id)
    }

    /// Gives a node to a person, and takes its tags away. `None`: the person whose
    /// login or key it joined with.
    ///
    /// # Errors
    /// No such node or user, or the node joined without a user.
    pub fn assign_node(
        &mut self,
        node: impl Into<NodeRef>,
        user: Option<UserRef>,
    ) -> Result<NodeId, AdminError> {
        let found = self.find_node(node)?;
        let user = match user {
            Some(user) => self.find_user(user)?.id,
            None => found
                .user
                .ok_or_else(|| AdminError::JoinedWithoutUser(found.name.clone()))?,
        };
        let id = found.id;
        self.set_owner(id, Some(user), BTreeSet::new());
        Ok(id)
    }

    /// An administrator sets the owner. A key that has ended stays so.
    fn set_owner(&mut self, id: NodeId, user: Option<UserId>, tags: BTreeSet<String>) {
        let Some(node) = self.view.node(id) else {
            return;
        };
        let owner = Owner {
            user,
            tags,
            set: true,
        };
        let changed = Owner::of(node).differs(&owner);
        let mut end = node.key_expiry;
        if changed && !self.view.standing(id).is_expired() {
            // The end that a person or a machine wished for does not hold for a
            // service, whose key no person renews.
            let wish = end.filter(|_| !owner.is_tags());
            end = self.end_of_key(&owner, node.ephemeral, wish);
        }
        self.revise(id, true, |node| {
            owner.give(node);
            node.key_expiry = end;
        });
        if changed {
            self.approve_anew(id);
        }
    }

    /// Checks tags that an administrator gives: their form, and that the policy
    /// defines them. Without a policy, no tag is defined and all are accepted.
    pub(super) fn check_tags(&self, tags: &BTreeSet<String>) -> Result<(), AdminError> {
        for tag in tags {
            check_tag(tag)?;
            if !self.view.access.defines_tag(tag) {
                return Err(AdminError::UndefinedTag(tag.clone()));
            }
        }
        Ok(())
    }
}

/// The refusal of requested tags, in the words of the official service, with the
/// reason.
pub(super) fn refused_tags(tags: &[String], why: &str) -> String {
    let tags = tags.join(" ");
    format!("requested tags [{tags}] are invalid or not permitted: {why}")
}

/// Checks a tag: `tag:`, a letter, then letters, digits and `-`, as the client
/// does.
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

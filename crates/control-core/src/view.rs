//! The state at one moment, for readers and for rendering.
//!
//! A [`View`] is what everything that is shown is computed from. A copy costs a
//! few pointers and does not change any more, so readers and map rendering work
//! on one without keeping commits from the coordinator.

use std::collections::BTreeSet;
use std::sync::Arc;

use ipnet::IpNet;
use jiff::Timestamp;
use warren_control_types::{MapRequest, NodeId, UserId};
use warren_keys::{MachinePublic, NodePublic};
use warren_policy::NodeSet;

use crate::access::Access;
use crate::auth_keys::AuthKeyText;
use crate::config::Config;
use crate::directory::{Directory, Standing};
use crate::error::{AdminError, MapError};
use crate::names::unique_label;
use crate::policies::{Policies, PolicyFile};
use crate::records::{
    AuthKeyRecord, NodeRecord, PolicyVersion, Snapshot, TAGGED_DEVICES, UserRecord,
};
use crate::references::{NodeRef, NodeTarget, UserRef, UserTarget};
use crate::routes::{RouterState, advertised, effective, is_exit};
use crate::tailnet::{GivenPolicy, Tailnet};

/// The identity provider of users whom the administrator made.
const OWN_PROVIDER: &str = "warren";

/// An owner of nodes as clients see it.
pub(crate) struct Person {
    pub(crate) login_name: String,
    pub(crate) display_name: String,
    pub(crate) provider: String,
    /// The address of a picture, or empty.
    pub(crate) picture: String,
    pub(crate) created: Option<Timestamp>,
}

/// See the module.
#[derive(Clone)]
pub struct View {
    pub(crate) config: Arc<Config>,
    pub(crate) directory: Directory,
    pub(crate) access: Arc<Access>,
    pub(crate) policies: Policies,
}

impl std::fmt::Debug for View {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("View")
            .field("users", &self.directory.users().count())
            .field("nodes", &self.directory.node_count())
            .finish_non_exhaustive()
    }
}

impl View {
    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// A copy of all records, in the form of a store.
    pub fn snapshot(&self) -> Snapshot {
        self.directory.snapshot()
    }

    /// The node with this id.
    pub fn node(&self, id: NodeId) -> Option<&NodeRecord> {
        self.directory.node(id)
    }

    /// The node that has this key.
    pub fn node_by_key(&self, key: &NodePublic) -> Option<&NodeRecord> {
        self.directory.node_by_key(key)
    }

    /// Whether any node belongs to this machine.
    pub fn owns_node(&self, machine: MachinePublic) -> bool {
        self.directory.nodes_of_machine(machine).next().is_some()
    }

    /// Whether any node of this machine may use the network.
    pub fn has_valid_node(&self, machine: MachinePublic) -> bool {
        let mut nodes = self.directory.nodes_of_machine(machine);
        nodes.any(|node| self.standing(node.id).is_valid())
    }

    /// All nodes, by their ids.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeRecord> {
        self.directory.nodes()
    }

    /// The number of nodes.
    pub fn node_count(&self) -> usize {
        self.directory.node_count()
    }

    /// The user with this id.
    pub fn user(&self, id: UserId) -> Option<&UserRecord> {
        self.directory.user(id)
    }

    /// All users, by their ids.
    pub fn users(&self) -> impl Iterator<Item = &UserRecord> {
        self.directory.users()
    }

    /// All pre-auth keys, by their ids.
    pub fn auth_keys(&self) -> impl Iterator<Item = &AuthKeyRecord> {
        self.directory.auth_keys()
    }

    /// Whether no policy is in force, so that every node may reach every node.
    pub fn is_without_policy(&self) -> bool {
        self.directory.policy().is_none()
    }

    /// The reason why every node may reach every node, if that is so: no policy
    /// is set, or it allows everything.
    pub fn allows_everything(&self) -> Option<String> {
        self.access.allows_everything()
    }

    /// The reason why the stored policy cannot be read, if that is so; nothing is
    /// allowed then.
    pub fn policy_fault(&self) -> Option<&str> {
        self.access.fault()
    }

    /// Whether peers are informed that the node is online.
    pub fn is_online(&self, id: NodeId) -> bool {
        let entry = self.directory.entry(id);
        entry.is_some_and(|entry| entry.state.online)
    }

    /// Whether a node takes part in the network at this moment. Routes, relay
    /// admission, SSH checks and registrations all go by it.
    pub fn standing(&self, id: NodeId) -> Standing {
        self.directory.standing(id)
    }

    /// Whether a node can serve as a router at this moment.
    pub fn router_state(&self, id: NodeId) -> RouterState {
        self.directory.router_state(id)
    }

    /// The routes that the node serves at this moment: the subnets for which it is
    /// the active router, and its approved exit routes while it is there.
    pub fn serving_routes(&self, id: NodeId) -> Vec<IpNet> {
        let Some(entry) = self.directory.entry(id) else {
            return Vec::new();
        };
        let mut routes = entry.state.primary_routes.clone();
        if self.router_state(id) > RouterState::Absent {
            routes.extend(effective(&entry.record).into_iter().filter(is_exit));
        }
        routes
    }

    /// Whether a relay may serve the holder of this key: a node of this network
    /// whose key is valid. It need not be online, because relays have to work
    /// while this server is away.
    pub fn admits(&self, key: &NodePublic) -> bool {
        self.node_by_key(key)
            .is_some_and(|node| self.standing(node.id).is_valid())
    }

    /// Checks that the machine at the other end of the channel owns the node
    /// key in the request, and that the client is not too old.
    ///
    /// # Errors
    /// See [`MapError`].
    pub fn authorize(
        &self,
        machine: MachinePublic,
        request: &MapRequest,
    ) -> Result<NodeId, MapError> {
        let have = request.version.0;
        if have < crate::MIN_CAPABILITY {
            return Err(MapError::TooOld {
                have,
                need: crate::MIN_CAPABILITY,
            });
        }
        match self.node_by_key(&request.node_key) {
            Some(node) if node.machine == machine => Ok(node.id),
            Some(_) | None => Err(MapError::NotFound),
        }
    }

    /// The user that the reference names.
    ///
    /// # Errors
    /// No user has the number or name, or several users have the name.
    pub fn find_user(&self, user: impl Into<UserRef>) -> Result<&UserRecord, AdminError> {
        let user = user.into();
        let found: Vec<&UserRecord> = match user.target() {
            UserTarget::Number(id) => id.and_then(|id| self.user(id)).into_iter().collect(),
            UserTarget::Name(name) => self.directory.users_named(name).collect(),
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

    /// The node that the reference names: by number, name, full name or address.
    ///
    /// # Errors
    /// No node has it, or several nodes have the name.
    pub fn find_node(&self, node: impl Into<NodeRef>) -> Result<&NodeRecord, AdminError> {
        let node = node.into();
        let found: Vec<&NodeRecord> = match node.target() {
            NodeTarget::Number(id) => id.and_then(|id| self.node(id)).into_iter().collect(),
            NodeTarget::Address(address) => {
                let found = self.directory.node_with_address(*address);
                found.into_iter().collect()
            }
            NodeTarget::Name(name) => {
                let zone = format!(".{}", self.config.base_domain);
                let label = name.strip_suffix(&zone).unwrap_or(name);
                self.directory.nodes_named(label)
            }
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

    /// The fully qualified name, with the dot at the end.
    pub fn full_name(&self, node: &NodeRecord) -> String {
        format!("{}.{}.", node.name, self.config.base_domain)
    }

    /// An owner as clients see it.
    pub(crate) fn person(&self, id: UserId) -> Person {
        if let Some(user) = self.user(id) {
            let account = user.account.as_deref();
            return Person {
                login_name: user.name.clone(),
                display_name: user.display_name().to_owned(),
                provider: account
                    .map_or(OWN_PROVIDER, |account| &account.provider)
                    .to_owned(),
                picture: account
                    .and_then(|account| account.picture.clone())
                    .unwrap_or_default(),
                created: Some(user.created),
            };
        }
        let name = match id {
            TAGGED_DEVICES => "tagged-devices".to_owned(),
            _ => format!("user-{id}"),
        };
        Person {
            login_name: name.clone(),
            display_name: name,
            provider: OWN_PROVIDER.to_owned(),
            picture: String::new(),
            created: None,
        }
    }

    /// The label itself, or with the first number that makes it unique.
    pub(crate) fn free_name(&self, label: &str, except: Option<NodeId>) -> String {
        unique_label(label, |candidate| {
            let named = self.directory.nodes_named(candidate);
            named.iter().any(|node| Some(node.id) != except)
        })
    }

    /// The pre-auth key with this text.
    pub(crate) fn auth_key(&self, text: &str) -> Option<&AuthKeyRecord> {
        let text = AuthKeyText::parse(text)?;
        let record = self.directory.auth_key(text.id())?;
        text.matches(&record.digest).then_some(record)
    }

    /// The nodes in whose maps the node is a peer. `None`: all others.
    pub(crate) fn viewers_of(&self, id: NodeId) -> Option<NodeSet> {
        self.access.peers_of(id)
    }

    #[cfg(test)]
    pub(crate) fn recompiled_access(&self) -> Access {
        self.access.recompiled(&self.directory)
    }

    /// The routes that the policy approves by itself.
    pub(crate) fn approved_by_policy(&self, node: &NodeRecord) -> BTreeSet<IpNet> {
        let mut routes = advertised(node);
        routes.retain(|route| self.access.approves_route(node, route));
        routes
    }

    /// The users and nodes of this moment, for trying and explaining policies.
    #[must_use]
    pub fn tailnet(&self) -> Tailnet {
        Tailnet::of(&self.directory, &self.config.base_domain)
    }

    /// The policy in force, as it was handed over.
    #[must_use]
    pub fn policy_in_force(&self) -> GivenPolicy {
        let text = self.directory.policy();
        let file = match self.directory.policy_versions().next_back() {
            Some(version) if version.text.as_deref() == text => version.file.clone(),
            Some(_) | None => "policy".to_owned(),
        };
        GivenPolicy {
            file,
            text: text.map(str::to_owned),
        }
    }

    /// The number of the policy in force; `None` before the first.
    #[must_use]
    pub fn policy_version(&self) -> Option<i64> {
        let last = self.directory.policy_versions().next_back()?;
        (last.text.as_deref() == self.directory.policy()).then_some(last.version)
    }

    /// All versions that are remembered, oldest first.
    pub fn policy_versions(&self) -> impl Iterator<Item = &PolicyVersion> {
        self.directory.policy_versions()
    }

    /// A version of the history.
    ///
    /// # Errors
    /// It is not remembered.
    pub fn policy_at(&self, version: i64) -> Result<&PolicyVersion, AdminError> {
        let found = self.directory.policy_version(version);
        found.ok_or(AdminError::NoPolicyVersion(version))
    }

    /// The file in charge, if one is.
    #[must_use]
    pub fn policy_file(&self) -> Option<&PolicyFile> {
        self.policies.file()
    }
}

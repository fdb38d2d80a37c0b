//! The logins that this machine has, and the change between them.

use warren_dial::SystemEntropy;
use warren_node_core::node::NodeInput;

use super::EngineTask;
use crate::daemon::{lock_files, status};
use crate::localapi::error::{ApiError, Reply};
use crate::localapi::types::{LoginProfile, NetworkProfile};

impl EngineTask {
    /// The login in use; empty without one.
    pub(in crate::daemon) fn current_profile(&self) -> LoginProfile {
        let Some(login) = &self.state.login.account else {
            return LoginProfile::default();
        };
        LoginProfile {
            id: self.state.profile_id().to_owned(),
            name: self.state.profile_name(),
            network_profile: self.network_profile(),
            key: self.state.profile().to_owned(),
            user_profile: login.user_profile.clone(),
            node_id: login.node_id.0.clone(),
            control_url: self.state.prefs.control_url.clone(),
            ..LoginProfile::default()
        }
    }

    fn network_profile(&self) -> NetworkProfile {
        let netmap = self.node.netmap();
        let Some(own) = &netmap.self_node else {
            return self.state.network.clone();
        };
        NetworkProfile {
            magic_dns_name: status::magic_dns_suffix(own),
            domain_name: netmap.domain.clone(),
            display_name: String::new(),
        }
    }

    /// All logins, by id.
    pub(in crate::daemon) fn profiles(&self) -> Vec<LoginProfile> {
        let others = self.state.other_profiles().into_values();
        // An entry of another program that cannot be read is kept, but not shown.
        let mut profiles: Vec<LoginProfile> = others
            .filter_map(|profile| serde_json::from_value(profile).ok())
            .collect();
        let current = self.current_profile();
        if !current.id.is_empty() {
            profiles.push(current);
        }
        profiles.sort_by(|one, other| one.id.cmp(&other.id));
        profiles
    }

    /// One login.
    pub(in crate::daemon) fn profile(&self, id: &str) -> Reply<LoginProfile> {
        let mut profiles = self.profiles().into_iter();
        profiles
            .find(|profile| profile.id == id)
            .ok_or_else(|| ApiError::NotFound("Profile not found".to_owned()))
    }

    /// Begins an empty login, unless the one in use is empty.
    pub(in crate::daemon) fn new_profile(&mut self) -> Reply<()> {
        if self.state.login.account.is_none() {
            return Ok(());
        }
        self.choose_profile(None)
    }

    /// Changes to a stored login.
    pub(in crate::daemon) fn switch_profile(&mut self, id: &str) -> Reply<()> {
        if self.profile(id)?.id == self.current_profile().id {
            return Ok(());
        }
        self.choose_profile(Some(id))
    }

    /// Removes a stored login. The one in use is replaced by an empty one.
    pub(in crate::daemon) fn delete_profile(&mut self, id: &str) -> Reply<()> {
        if self.profile(id)?.id == self.current_profile().id {
            self.choose_profile(None)?;
        }
        let lock = self.state.lock_folder_of(id);
        self.change_state(|state| {
            state.remove_profile(id);
            Ok(())
        })?;
        lock_files::store(lock.as_deref(), None).map_err(|error| {
            ApiError::Failed(format!(
                "the login is removed, but its tailnet lock is not: {error}"
            ))
        })
    }

    fn choose_profile(&mut self, id: Option<&str>) -> Reply<()> {
        let network = self.network_profile();
        // The entry of the login that is left has the network's name then.
        self.change_state(|state| {
            state.network = network;
            Ok(())
        })?;
        self.change_state(|state| {
            let chosen = state.choose_profile(id, &mut SystemEntropy);
            chosen.map_err(ApiError::Failed)
        })?;
        // Endpoints of one tailnet are not for the peers of another.
        self.relay_server = None;
        self.refresh_relay_server();
        let settings = Box::new(self.settings());
        self.give(NodeInput::UseLogin {
            settings,
            stored: Box::new(self.state.login.clone()),
            lock: Box::new(lock_files::load(self.state.lock_folder().as_deref())),
        });
        self.notify_prefs();
        Ok(())
    }
}

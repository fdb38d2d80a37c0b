//! Preferences: what the user wants, kept in the state file and given to the
//! node.

use warren_control_types::StableNodeId;
use warren_node_core::NodePrefs;
use warren_node_core::node::{NodeInput, NodeSettings};

use super::EngineTask;
use crate::daemon::hostinfo;
use crate::localapi::error::{ApiError, Reply};
use crate::localapi::prefs::{MaskedPrefs, Prefs, ShownPrefs};

/// The part of the preferences that the node decides by.
pub(in crate::daemon) fn node_settings(
    prefs: &Prefs,
    has_interface: bool,
    ssh_host_keys: &[String],
) -> NodeSettings {
    let exit_node = Some(prefs.exit_node_id.clone()).filter(|id| !id.is_empty());
    NodeSettings {
        want_running: prefs.want_running,
        server: prefs.control_url.clone(),
        packets: NodePrefs {
            accept_routes: prefs.route_all,
            shields_up: prefs.shields_up,
            advertise_routes: prefs.advertise_routes.clone(),
            exit_node: exit_node.map(StableNodeId),
            no_port_search: prefs.no_port_search,
            // Without an interface, all packets come to this process anyway.
            intercept_ssh: has_interface && !ssh_host_keys.is_empty(),
        },
        hostinfo: hostinfo::describe(prefs, has_interface, ssh_host_keys),
    }
}

impl EngineTask {
    /// The preferences.
    pub(in crate::daemon) fn prefs(&self) -> ShownPrefs {
        ShownPrefs {
            config: self.state.shown_login(),
            prefs: self.state.prefs.clone(),
        }
    }

    /// Changes preferences.
    pub(in crate::daemon) fn edit_prefs(&mut self, change: &MaskedPrefs) -> Reply<ShownPrefs> {
        let before = self.state.prefs.clone();
        let mut after = before.clone();
        change.apply_to(&mut after);
        self.check_ssh(&before, &after)?;
        self.change_state(|state| {
            change.apply_to(&mut state.prefs);
            Ok(())
        })?;
        if self.state.prefs != before {
            self.refresh_relay_server();
            let settings = Box::new(self.settings());
            self.give(NodeInput::Settings(settings));
            self.notify_prefs();
        }
        Ok(self.prefs())
    }

    /// Fails if only the configuration file sets preferences.
    pub(in crate::daemon) fn check_unlocked(&self) -> Reply<()> {
        match &self.state.config {
            Some(config) if config.locked => Err(ApiError::Refused(format!(
                "the settings are locked by the configuration file {}; edit that file, then: \
                 warren debug reload-config",
                config.path().display()
            ))),
            _ => Ok(()),
        }
    }

    /// Reads the configuration file again and uses it. `false`: there is none.
    pub(in crate::daemon) fn reload_config(&mut self) -> Reply<bool> {
        let Some(config) = &self.state.config else {
            return Ok(false);
        };
        let config = config.reload();
        let config = config.map_err(|error| ApiError::Refused(error.to_string()))?;
        self.edit_prefs(&config.change)?;
        let auth_key = config.auth_key.clone();
        self.state.config = Some(config);
        if let Some(auth_key) = auth_key
            && self.node.account().is_none()
        {
            self.log_in_with(auth_key)?;
        }
        Ok(true)
    }

    /// The settings of the node, with the SSH server as they want it.
    pub(super) fn settings(&mut self) -> NodeSettings {
        self.refresh_ssh();
        let host_keys = self.ssh.public_keys();
        node_settings(&self.state.prefs, self.has_interface, host_keys)
    }

    pub(super) fn notify_prefs(&mut self) {
        let shown = self.prefs();
        self.listeners
            .notify(|notify| notify.prefs = Some(Box::new(shown)));
    }
}

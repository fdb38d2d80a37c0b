//! Preferences: what the user wants, kept in the state file and handed to the
//! engine.

use std::time::Instant;

use warren_node_core::NodePrefs;

use super::EngineTask;
use crate::localapi::error::Reply;
use crate::localapi::prefs::{MaskedPrefs, Prefs, ShownPrefs};

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
        change.apply_to(&mut self.state.prefs);
        if let Err(error) = self.save_state() {
            self.state.prefs = before;
            return Err(error);
        }
        self.prefs_changed(&before);
        Ok(self.prefs())
    }

    pub(super) fn prefs_changed(&mut self, before: &Prefs) {
        let prefs = self.state.prefs.clone();
        if prefs == *before {
            return;
        }
        self.apply_prefs(Instant::now());
        self.refresh_description();
        if prefs.want_running != before.want_running || prefs.control_url != before.control_url {
            if prefs.want_running && self.state.login.is_some() {
                self.connect(None);
            } else if !prefs.want_running {
                self.session = None;
                self.relays.close_all();
                self.settle();
            }
        }
        self.refresh_host();
        let shown = self.prefs();
        self.notify(|notify| notify.prefs = Some(Box::new(shown)));
    }

    pub(super) fn apply_prefs(&mut self, now: Instant) {
        let prefs = &self.state.prefs;
        let exit_node = Some(prefs.exit_node_id.clone()).filter(|id| !id.is_empty());
        self.engine.set_prefs(
            now,
            NodePrefs {
                accept_routes: prefs.route_all,
                shields_up: prefs.shields_up,
                advertise_routes: prefs.advertise_routes.clone(),
                exit_node: exit_node.map(warren_control_types::StableNodeId),
            },
        );
    }
}

//! The SSH server: its place in the preferences, the netmap and the health.

use std::net::IpAddr;

use warren_ssh::Facts;

use super::EngineTask;
use crate::daemon::ssh::is_address_of;
use crate::localapi::error::{ApiError, Reply};
use crate::localapi::prefs::Prefs;

/// The capability with which a tailnet lets a node serve SSH.
const MAY_SERVE: &str = "https://tailscale.com/cap/ssh";
/// The capability with which the patterns of a rule for variables count.
const ACCEPTS_ENV: &str = "ssh-env-vars";

impl EngineTask {
    /// Starts or stops the server as the preferences say.
    pub(super) fn refresh_ssh(&mut self) {
        self.ssh.set(self.state.prefs.run_ssh);
        self.ssh.netmap_changed();
    }

    /// Refuses to turn the server on where the tailnet does not allow it.
    pub(super) fn check_ssh(&self, before: &Prefs, after: &Prefs) -> Reply<()> {
        if !after.run_ssh || before.run_ssh {
            return Ok(());
        }
        let own = self.known_netmap().and_then(|map| map.self_node.as_ref());
        if own.is_some_and(|own| !own.cap_map.contains_key(MAY_SERVE)) {
            return Err(ApiError::Refused(
                "the tailnet does not let this node serve SSH; ask its administrator, or leave \
                 out --ssh"
                    .to_owned(),
            ));
        }
        Ok(())
    }

    /// The facts about the peer with this address, for its login.
    pub(in crate::daemon) fn ssh_facts(&self, source: IpAddr) -> Option<Facts> {
        let prefs = &self.state.prefs;
        if !prefs.run_ssh || !prefs.want_running {
            return None;
        }
        let netmap = self.known_netmap()?;
        let own = netmap.self_node.as_ref()?;
        if !own.cap_map.contains_key(MAY_SERVE) {
            return None;
        }
        // An address behind a router is not the router's.
        let peer = self.node.engine().peer_at(source)?;
        if peer.expired || !is_address_of(peer, source) {
            return None;
        }
        let owner = netmap.user_profiles.get(&peer.user);
        Some(Facts {
            policy: netmap.ssh_policy.clone().unwrap_or_default(),
            node: peer.stable_id.clone(),
            id: peer.id,
            login: owner
                .map(|owner| owner.login_name.clone())
                .unwrap_or_default(),
            own: own.id,
            accepts_env: own.cap_map.contains_key(ACCEPTS_ENV),
        })
    }

    /// The problems of the server, for the health of the node.
    pub(super) fn ssh_problems(&self) -> Vec<String> {
        if !self.state.prefs.run_ssh {
            return Vec::new();
        }
        let mut problems: Vec<String> = self.ssh.problem().cloned().into_iter().collect();
        if let Some(netmap) = self.known_netmap()
            && netmap
                .ssh_policy
                .as_ref()
                .is_none_or(|policy| policy.rules.is_empty())
        {
            problems.push(
                "the SSH server is on, but the policy of the tailnet lets no node log in to this \
                 one; add a rule to its \"ssh\" section"
                    .to_owned(),
            );
        }
        problems
    }
}

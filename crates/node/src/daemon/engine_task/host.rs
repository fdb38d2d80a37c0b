//! The settings that the operating system should have, from the node and preferences.

use std::collections::BTreeSet;

use ipnet::IpNet;
use warren_dns::{Options as DnsOptions, ResolverConfig};

use super::EngineTask;
use crate::daemon::host_task::{Forwarding, HostState};
use crate::localapi::prefs::NetfilterMode;

impl EngineTask {
    /// Sends the host task what follows from netmap and preferences.
    pub(super) fn refresh_host(&mut self) {
        let state = match self.node.host_config() {
            None => HostState::default(),
            Some(config) => HostState {
                host: config.clone(),
                bypass_networks: self.bypass_networks(),
                forwarding: self.forwarding(),
                dns: self.resolver_config(),
            },
        };
        self.host.apply(state);
    }

    /// The networks that this machine is connected to, when an exit node is not
    /// to take them too.
    fn bypass_networks(&self) -> BTreeSet<IpNet> {
        let prefs = &self.state.prefs;
        if prefs.exit_node_id.is_empty() || !prefs.exit_node_allow_lan_access {
            return BTreeSet::new();
        }
        let interfaces = self.link.interfaces.iter();
        interfaces
            .filter(|interface| interface.up && !interface.loopback)
            .flat_map(|interface| &interface.addrs)
            .map(IpNet::trunc)
            .collect()
    }

    fn forwarding(&self) -> Option<Forwarding> {
        let prefs = &self.state.prefs;
        (prefs.netfilter_mode == NetfilterMode::On).then(|| Forwarding {
            snat: !prefs.no_snat,
            stateful: prefs.no_stateful_filtering == Some(false),
            offered: !prefs.advertise_routes.is_empty(),
        })
    }

    fn resolver_config(&self) -> Option<ResolverConfig> {
        if !self.state.prefs.corp_dns {
            return None;
        }
        let netmap = self.node.netmap();
        let own = netmap.self_node.as_ref()?;
        let options = DnsOptions {
            accept_dns: true,
            key_expired: false,
        };
        let peers = netmap.peers.values();
        Some(ResolverConfig::from_netmap(
            &netmap.dns_config,
            own,
            peers,
            options,
        ))
    }
}

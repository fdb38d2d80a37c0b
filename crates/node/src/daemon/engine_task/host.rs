//! The settings that the operating system should have, from the node and preferences.

use std::collections::BTreeSet;

use ipnet::IpNet;
use warren_dns::{Options as DnsOptions, ResolverConfig};
use warren_host::link::LinkState;
use warren_node_core::HostConfig;

use super::EngineTask;
use crate::daemon::host_task::{Forwarding, HostState};
use crate::localapi::prefs::NetfilterMode;

/// The number of overlaps that are shown.
const MAX_OVERLAPS: usize = 4;

/// The networks of the interfaces that are up, with the names of the interfaces.
fn attached_networks(link: &LinkState) -> impl Iterator<Item = (IpNet, &str)> {
    let interfaces = link.interfaces.iter();
    let interfaces = interfaces.filter(|interface| interface.up && !interface.loopback);
    interfaces.flat_map(|interface| {
        let addresses = interface.addrs.iter();
        addresses.map(|address| (address.trunc(), interface.name.as_str()))
    })
}

/// The narrowest route into the tunnel that covers the network. The default route of an
/// exit node is meant to cover networks, and the route to a node is that node.
fn covering_route<'a>(config: &'a HostConfig, network: &IpNet) -> Option<&'a IpNet> {
    let routes = config.routes.iter();
    routes
        .filter(|route| route.prefix_len() > 0 && !is_single(route) && route.contains(network))
        .max_by_key(|route| route.prefix_len())
}

/// The routes into the tunnel that take a part of the network.
fn routes_inside<'a>(
    config: &'a HostConfig,
    network: IpNet,
) -> impl Iterator<Item = &'a IpNet> + use<'a> {
    let routes = config.routes.iter();
    routes.filter(move |route| {
        let widest = network.prefix_len();
        widest > 0 && route.prefix_len() > widest && network.contains(*route)
    })
}

fn is_single(net: &IpNet) -> bool {
    net.prefix_len() == net.max_prefix_len()
}

/// Where the tailnet and a network of this machine have the same addresses, as shown to
/// the user.
fn overlaps_with(config: &HostConfig, network: IpNet, interface: &str) -> Vec<String> {
    let covering = covering_route(config, &network).map(|route| {
        format!(
            "the accepted route {route} covers the network {network} of the interface \
             {interface}, which is reached directly, not through the tunnel; give one \
             of them other addresses to reach both"
        )
    });
    let narrower = routes_inside(config, network).filter(|route| !is_single(route));
    let narrower = narrower.map(|route| {
        format!(
            "the accepted route {route} is a part of the network {network} of the interface \
             {interface}: packets to machines there take the tunnel, also to those of this \
             network; give one of them other addresses, or do not accept the route"
        )
    });
    let mut nodes = routes_inside(config, network).filter(|route| is_single(route));
    let captured = nodes.next().map(|first| {
        format!(
            "{} addresses of the network {network} of the interface {interface} belong \
             to nodes of the tailnet, for example {}: packets to them take the tunnel; \
             give one of them other addresses",
            nodes.count() + 1,
            first.addr()
        )
    });
    covering
        .into_iter()
        .chain(narrower)
        .chain(captured)
        .collect()
}

impl EngineTask {
    /// Sends the host task what follows from netmap and preferences.
    pub(super) fn refresh_host(&mut self) {
        let state = match self.node.host_config() {
            None => HostState::default(),
            Some(config) => HostState {
                host: config.clone(),
                bypass_networks: self.bypass_networks(config),
                forwarding: self.forwarding(),
                dns: self.resolver_config(),
            },
        };
        self.host.apply(state);
    }

    /// The networks that this machine is connected to and that the tunnel does not
    /// take: those inside an accepted route, and with the user's consent those that an
    /// exit node would take.
    fn bypass_networks(&self, config: &HostConfig) -> BTreeSet<IpNet> {
        let prefs = &self.state.prefs;
        let all = !prefs.exit_node_id.is_empty() && prefs.exit_node_allow_lan_access;
        let networks = attached_networks(&self.link);
        networks
            .filter(|(network, _)| all || covering_route(config, network).is_some())
            .map(|(network, _)| network)
            .collect()
    }

    /// Where the tailnet and the networks around this machine have the same addresses.
    pub(super) fn overlaps(&self) -> Vec<String> {
        let Some(config) = self.node.host_config() else {
            return Vec::new();
        };
        let networks = attached_networks(&self.link);
        let lines =
            networks.flat_map(|(network, interface)| overlaps_with(config, network, interface));
        lines.take(MAX_OVERLAPS).collect()
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn networks_of_this_machine_count_against_routes_but_not_against_nodes() {
        let config = HostConfig {
            routes: [
                "0.0.0.0/0",
                "10.0.0.0/8",
                "10.1.0.0/16",
                "100.64.0.2/32",
                "192.168.1.128/25",
            ]
            .map(|route| route.parse().unwrap())
            .into(),
            ..HostConfig::default()
        };
        for (network, route) in [
            ("10.1.2.0/24", Some("10.1.0.0/16")),
            ("10.1.0.0/16", Some("10.1.0.0/16")),
            ("10.2.3.4/32", Some("10.0.0.0/8")),
            // The route is for a part of the network only: see below.
            ("192.168.1.0/24", None),
            ("203.0.113.0/24", None),
            ("100.64.0.2/32", None),
            ("100.64.0.0/24", None),
            ("fd00::/64", None),
        ] {
            let found = covering_route(&config, &network.parse().unwrap());
            let expected = route.map(|route| route.parse().unwrap());
            assert_eq!(found.copied(), expected, "{network}");
        }
    }

    #[test]
    fn every_overlap_of_routes_and_networks_is_shown() {
        let config = HostConfig {
            routes: [
                "0.0.0.0/0",
                "10.0.0.0/8",
                "100.64.0.2/32",
                "192.168.1.128/25",
            ]
            .map(|route| route.parse().unwrap())
            .into(),
            ..HostConfig::default()
        };
        for (network, shown) in [
            ("10.1.2.0/24", Some("route 10.0.0.0/8 covers")),
            ("192.168.1.128/25", Some("route 192.168.1.128/25 covers")),
            ("192.168.1.0/24", Some("route 192.168.1.128/25 is a part")),
            ("100.64.0.0/24", Some("1 addresses")),
            ("203.0.113.0/24", None),
            ("100.64.0.2/32", None),
            ("0.0.0.0/0", None),
        ] {
            let lines = overlaps_with(&config, network.parse().unwrap(), "eth0");
            match shown {
                Some(part) => assert!(lines.len() == 1 && lines[0].contains(part), "{lines:?}"),
                None => assert!(lines.is_empty(), "{network}: {lines:?}"),
            }
        }
    }
}

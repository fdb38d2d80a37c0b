//! The settings of the operating system that lead packets into the tunnel.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use warren_control_types::{Netmap, Node};
use warren_node_types::TailnetRanges;

use crate::NodePrefs;

/// MTU of the tunnel device in bytes. 1,280 is the least that IPv6 allows on
/// any link, so that with WireGuard's 80 bytes around it a packet still fits
/// nearly every path.
pub const TUNNEL_MTU: u16 = 1280;

/// The tunnel device's addresses and the routes that lead into it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HostConfig {
    /// Our own addresses, each on its own (/32, /128).
    pub addresses: Vec<IpAddr>,
    /// Destinations behind the tunnel.
    pub routes: BTreeSet<IpNet>,
    /// The address ranges of the tailnet.
    pub ranges: TailnetRanges,
}

impl HostConfig {
    /// The settings that follow from the netmap and the preferences.
    pub(crate) fn compute(netmap: &Netmap, prefs: &NodePrefs, ranges: &TailnetRanges) -> Self {
        let Some(own) = netmap.self_node.as_ref() else {
            return Self {
                ranges: *ranges,
                ..Self::default()
            };
        };
        let addresses = single_addresses(own);
        let has_v6 = addresses.iter().any(IpAddr::is_ipv6);
        let mut routes = BTreeSet::from([IpNet::from(IpAddr::V4(ranges.service_v4))]);
        if has_v6 {
            routes.insert(ranges.v6.into());
        }
        let one_route = own.cap_map.has("one-cgnat?v=true");
        if one_route {
            routes.insert(ranges.v4.into());
        }
        for peer in netmap.peers.values() {
            for prefix in accepted_prefixes(peer, prefs) {
                let routed = one_route || prefix.addr().is_ipv6();
                let covered = routed && ranges.covers(&prefix);
                if !covered {
                    routes.insert(prefix);
                }
            }
        }
        if prefs.exit_node.is_some() {
            // Both families, even if the exit node serves one: nothing may
            // leave around it.
            routes.insert(default_route_v4());
            routes.insert(default_route_v6());
        }
        Self {
            addresses,
            routes,
            ranges: *ranges,
        }
    }
}

/// The node's own addresses, IPv4 first.
pub(crate) fn single_addresses(node: &Node) -> Vec<IpAddr> {
    let mut addresses: Vec<IpAddr> = node.addresses.iter().map(IpNet::addr).collect();
    addresses.sort();
    addresses
}

/// The prefixes of `peer` that we send to and take from.
pub(crate) fn accepted_prefixes(peer: &Node, prefs: &NodePrefs) -> Vec<IpNet> {
    if peer.expired {
        return Vec::new();
    }
    let is_exit = prefs.exit_node.as_ref() == Some(&peer.stable_id);
    let allowed = peer.allowed_ips().iter().map(IpNet::trunc);
    allowed
        .filter(|prefix| {
            if prefix.prefix_len() == 0 {
                is_exit
            } else {
                prefs.accept_routes || peer.addresses.contains(prefix)
            }
        })
        .collect()
}

fn default_route_v4() -> IpNet {
    net(Ipv4Addr::UNSPECIFIED.into(), 0)
}

fn default_route_v6() -> IpNet {
    net(Ipv6Addr::UNSPECIFIED.into(), 0)
}

fn net(address: IpAddr, len: u8) -> IpNet {
    IpNet::new_assert(address, len)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use warren_control_types::{NodeId, StableNodeId};

    fn node(id: i64, addresses: &[&str], allowed: &[&str]) -> Node {
        let nets = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        Node {
            id: NodeId(id),
            stable_id: StableNodeId(format!("n{id}")),
            addresses: nets(addresses),
            allowed_ips: Some(nets(allowed)),
            ..Node::default()
        }
    }

    fn netmap() -> Netmap {
        let own = node(1, &["100.64.0.1/32", "fd7a:115c:a1e0::1/128"], &[]);
        let peer = node(
            2,
            &["100.64.0.2/32"],
            &["100.64.0.2/32", "10.0.0.0/8", "0.0.0.0/0"],
        );
        let mut netmap = Netmap::default();
        netmap.self_node = Some(own);
        netmap.peers.insert(NodeId(2), peer);
        netmap
    }

    fn routes(prefs: &NodePrefs) -> Vec<String> {
        HostConfig::compute(&netmap(), prefs, &TailnetRanges::DEFAULT)
            .routes
            .iter()
            .map(IpNet::to_string)
            .collect()
    }

    #[test]
    fn subnet_routes_and_the_exit_node_only_when_wanted() {
        let tailnet = ["100.64.0.2/32", "100.100.100.100/32", "fd7a:115c:a1e0::/48"];
        assert_eq!(routes(&NodePrefs::default()), tailnet);
        let accept = NodePrefs {
            accept_routes: true,
            ..NodePrefs::default()
        };
        assert!(routes(&accept).contains(&"10.0.0.0/8".to_owned()));
        assert!(!routes(&accept).contains(&"0.0.0.0/0".to_owned()));
        let exit = NodePrefs {
            exit_node: Some(StableNodeId("n2".into())),
            ..NodePrefs::default()
        };
        assert!(routes(&exit).contains(&"0.0.0.0/0".to_owned()));
        assert!(
            routes(&exit).contains(&"::/0".to_owned()),
            "no leak in the other family"
        );
    }

    #[test]
    fn an_expired_peer_may_nothing() {
        let mut peer = netmap().peers.remove(&NodeId(2)).unwrap();
        assert_eq!(accepted_prefixes(&peer, &NodePrefs::default()).len(), 1);
        peer.expired = true;
        assert!(accepted_prefixes(&peer, &NodePrefs::default()).is_empty());
    }

    #[test]
    fn routes_follow_the_ranges_of_the_tailnet() {
        let ranges = TailnetRanges {
            v4: "10.64.0.0/16".parse().unwrap(),
            v6: "fd00:64::/48".parse().unwrap(),
            service_v4: [10, 64, 0, 53].into(),
            service_v6: "fd00:64::53".parse().unwrap(),
        };
        let config = HostConfig::compute(&netmap(), &NodePrefs::default(), &ranges);
        let routes = config.routes.iter().map(IpNet::to_string);
        assert_eq!(
            routes.collect::<Vec<_>>(),
            ["10.64.0.53/32", "100.64.0.2/32", "fd00:64::/48"]
        );
        assert_eq!(config.ranges, ranges);
    }
}

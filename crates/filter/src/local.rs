//! Which destinations count as this host: the only ones that packets from the
//! tunnel may have.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use warren_node_types::TailnetRanges;

use crate::ranges::{AddressRange, AddressSet};

/// Networks that an exit node never opens by its default route alone, beside the
/// tailnet's own ranges: private networks, link-local, and multicast with all that
/// is reserved above it. A network among them is opened by advertising it.
const NEVER_BY_DEFAULT_V4: [(Ipv4Addr, u8); 5] = [
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(224, 0, 0, 0), 3),
];
const NEVER_BY_DEFAULT_V6: [(Ipv6Addr, u8); 2] = [
    (Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10),
    (Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8),
];

/// The input of [`LocalSet::new`].
#[derive(Debug, Clone, Default)]
pub struct LocalAddresses<'a> {
    /// The node's own tailnet addresses and those of services it hosts.
    pub addresses: &'a [IpAddr],
    /// Routes the node advertises, exit routes included.
    pub advertised: &'a [IpNet],
    /// Networks of this host's outer interfaces: an exit node does not expose
    /// the LAN it stands in.
    pub host_networks: &'a [IpNet],
    /// This host's addresses on those interfaces, which stay reachable
    /// through an exit route if they are public.
    pub host_addresses: &'a [IpAddr],
    /// The address ranges of the tailnet.
    pub ranges: TailnetRanges,
}

/// The set of destinations a packet from the tunnel may have.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LocalSet(AddressSet);

impl LocalSet {
    /// Computes the set. An advertised default route stands for the internet:
    /// everything but the networks this host is attached to and those that
    /// are private by nature.
    #[must_use]
    pub fn new(from: &LocalAddresses<'_>) -> Self {
        let named = from
            .addresses
            .iter()
            .map(|address| AddressRange::single(*address))
            .chain(
                from.advertised
                    .iter()
                    .filter(|route| route.prefix_len() != 0)
                    .map(|route| AddressRange::from(*route)),
            );
        let mut set = AddressSet::new(named);

        let everything = AddressSet::new(
            from.advertised
                .iter()
                .filter(|route| route.prefix_len() == 0)
                .map(|route| AddressRange::from(*route)),
        );
        if !everything.v4.is_empty() || !everything.v6.is_empty() {
            let attached = AddressSet::new(from.host_networks.iter().map(|net| (*net).into()));
            let own = AddressSet::new(
                from.host_addresses
                    .iter()
                    .map(|address| AddressRange::single(*address))
                    .filter(|range| everything.overlaps(*range)),
            );
            let internet = everything
                .subtract(&attached)
                .union(&own)
                .subtract(&never_by_default(&from.ranges));
            set = set.union(&internet);
        }
        Self(set)
    }

    /// Whether packets to `address` are for this host.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.contains(address)
    }
}

fn never_by_default(tailnet: &TailnetRanges) -> AddressSet {
    let v4 = NEVER_BY_DEFAULT_V4
        .iter()
        .filter_map(|(address, len)| Ipv4Net::new(*address, *len).ok())
        .map(IpNet::from);
    let v6 = NEVER_BY_DEFAULT_V6
        .iter()
        .filter_map(|(address, len)| Ipv6Net::new(*address, *len).ok())
        .map(IpNet::from);
    let tailnet = [IpNet::from(tailnet.v4), IpNet::from(tailnet.v6)];
    AddressSet::new(v4.chain(v6).chain(tailnet).map(AddressRange::from))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn an_exit_node_opens_the_internet_but_not_its_lan() {
        let own = ["100.64.0.1".parse().unwrap()];
        let advertised = [
            "0.0.0.0/0".parse().unwrap(),
            "::/0".parse().unwrap(),
            "10.7.0.0/16".parse().unwrap(),
        ];
        let networks = ["203.0.113.0/24".parse().unwrap()];
        let hosts = [
            "203.0.113.9".parse().unwrap(),
            "192.168.1.9".parse().unwrap(),
        ];
        let set = LocalSet::new(&LocalAddresses {
            addresses: &own,
            advertised: &advertised,
            host_networks: &networks,
            host_addresses: &hosts,
            ranges: TailnetRanges::DEFAULT,
        });
        for (address, local) in [
            ("100.64.0.1", true),
            ("100.64.0.2", false),
            ("8.8.8.8", true),
            ("10.7.3.3", true),
            ("10.8.3.3", false),
            ("203.0.113.8", false),
            ("203.0.113.9", true),
            ("192.168.1.9", false),
            ("224.0.0.1", false),
            ("2001:db8::1", true),
            ("fe80::1", false),
            ("fd7a:115c:a1e0::1", false),
            ("255.255.255.255", false),
        ] {
            assert_eq!(set.contains(address.parse().unwrap()), local, "{address}");
        }
    }
}

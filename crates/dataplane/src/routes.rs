//! From a destination address to the peer that has it.
//!
//! Nearly every packet goes to the single address of a node: those are in
//! hash tables and found in one step. Everything wider is found by longest
//! prefix.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use prefix_trie::PrefixMap;
use rustc_hash::FxHashMap;
use warren_tunnel::PeerIndex;

/// Longest-prefix table. Built once, then only read.
#[derive(Debug, Clone, Default)]
pub struct RouteTable {
    hosts_v4: FxHashMap<Ipv4Addr, PeerIndex>,
    hosts_v6: FxHashMap<Ipv6Addr, PeerIndex>,
    nets_v4: PrefixMap<Ipv4Net, PeerIndex>,
    nets_v6: PrefixMap<Ipv6Net, PeerIndex>,
}

impl RouteTable {
    /// An empty table.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sends `prefix` to `peer`. Returns the peer that had exactly this prefix
    /// before.
    pub fn insert(&mut self, prefix: IpNet, peer: PeerIndex) -> Option<PeerIndex> {
        match prefix {
            IpNet::V4(net) if net.prefix_len() == 32 => self.hosts_v4.insert(net.addr(), peer),
            IpNet::V6(net) if net.prefix_len() == 128 => self.hosts_v6.insert(net.addr(), peer),
            IpNet::V4(net) => self.nets_v4.insert(net.trunc(), peer),
            IpNet::V6(net) => self.nets_v6.insert(net.trunc(), peer),
        }
    }

    /// The peer with the longest prefix that contains `address`.
    #[inline]
    pub fn lookup(&self, address: IpAddr) -> Option<PeerIndex> {
        match address {
            IpAddr::V4(v4) => self
                .hosts_v4
                .get(&v4)
                .copied()
                .or_else(|| Some(*self.nets_v4.get_lpm(&Ipv4Net::from(v4))?.1)),
            IpAddr::V6(v6) => self
                .hosts_v6
                .get(&v6)
                .copied()
                .or_else(|| Some(*self.nets_v6.get_lpm(&Ipv6Net::from(v6))?.1)),
        }
    }
}

impl FromIterator<(IpNet, PeerIndex)> for RouteTable {
    fn from_iter<I: IntoIterator<Item = (IpNet, PeerIndex)>>(routes: I) -> Self {
        let mut table = Self::new();
        for (prefix, peer) in routes {
            table.insert(prefix, peer);
        }
        table
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_longest_prefix_wins_in_both_families() {
        let table: RouteTable = [
            ("0.0.0.0/0", 1),
            ("10.0.0.0/8", 2),
            ("10.1.0.7/16", 3),
            ("10.1.2.3/32", 4),
            ("fd00::/8", 5),
            ("fd00::1/128", 6),
        ]
        .into_iter()
        .map(|(net, peer)| (net.parse().unwrap(), PeerIndex(peer)))
        .collect();
        for (address, peer) in [
            ("8.8.8.8", Some(1)),
            ("10.9.9.9", Some(2)),
            ("10.1.2.4", Some(3)),
            ("10.1.2.3", Some(4)),
            ("fd00::2", Some(5)),
            ("fd00::1", Some(6)),
            ("2000::1", None),
        ] {
            assert_eq!(
                table.lookup(address.parse().unwrap()),
                peer.map(PeerIndex),
                "{address}"
            );
        }
    }

    proptest! {
        #[test]
        fn agrees_with_a_scan(
            nets in prop::collection::vec((any::<u32>(), 0u8..=32), 0..40), probes: [u32; 16],
        ) {
            // A narrow address range, so that prefixes nest.
            let narrow = |bits: u32| Ipv4Addr::from(bits & 0x0301_0307);
            let nets: Vec<_> = nets
                .into_iter()
                .map(|(bits, len)| Ipv4Net::new(narrow(bits), len).unwrap().trunc())
                .collect();
            let table: RouteTable = nets
                .iter()
                .enumerate()
                .map(|(i, net)| (IpNet::V4(*net), PeerIndex(i as u32)))
                .collect();
            for probe in probes {
                let probe = narrow(probe);
                let best = nets
                    .iter()
                    .enumerate()
                    .filter(|(_, net)| net.contains(&probe))
                    .max_by_key(|(i, net)| (net.prefix_len(), *i))
                    .map(|(i, _)| PeerIndex(i as u32));
                prop_assert_eq!(table.lookup(IpAddr::V4(probe)), best);
            }
        }
    }
}

//! The address ranges of a tailnet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// The addresses that belong to the tailnet, and the node's own service
/// addresses among them.
///
/// A tailnet uses the [`DEFAULT`](Self::DEFAULT) ranges unless its netmap says
/// otherwise, so the ranges are a value that is passed along and not constants
/// of each crate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TailnetRanges {
    /// IPv4 addresses of nodes.
    pub v4: Ipv4Net,
    /// IPv6 addresses of nodes.
    pub v6: Ipv6Net,
    /// The IPv4 address at which every node answers its own host (MagicDNS).
    pub service_v4: Ipv4Addr,
    /// The same over IPv6.
    pub service_v6: Ipv6Addr,
}

impl TailnetRanges {
    /// The ranges of the coordination protocol: 100.64.0.0/10 and
    /// fd7a:115c:a1e0::/48, with 100.100.100.100 and fd7a:115c:a1e0::53.
    pub const DEFAULT: Self = Self {
        v4: Ipv4Net::new_assert(Ipv4Addr::new(100, 64, 0, 0), 10),
        v6: Ipv6Net::new_assert(Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, 0), 48),
        service_v4: Ipv4Addr::new(100, 100, 100, 100),
        service_v6: Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, 0x53),
    };

    /// Whether `address` belongs to the tailnet.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => self.v4.contains(&v4),
            IpAddr::V6(v6) => self.v6.contains(&v6),
        }
    }

    /// Whether all addresses of `net` belong to the tailnet.
    #[must_use]
    pub fn covers(&self, net: &IpNet) -> bool {
        match net {
            IpNet::V4(net) => self.v4.contains(net),
            IpNet::V6(net) => self.v6.contains(net),
        }
    }

    /// Whether `address` is one of the service addresses.
    #[must_use]
    #[inline]
    pub fn is_service(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => v4 == self.service_v4,
            IpAddr::V6(v6) => v6 == self.service_v6,
        }
    }
}

impl Default for TailnetRanges {
    fn default() -> Self {
        Self::DEFAULT
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn service_addresses_lie_within_the_default_ranges() {
        let ranges = TailnetRanges::default();
        for address in [ranges.service_v4.into(), ranges.service_v6.into()] {
            assert!(ranges.contains(address) && ranges.is_service(address));
        }
        let cases = [
            ("100.64.0.1", true),
            ("100.127.255.255", true),
            ("100.128.0.0", false),
            ("fd7a:115c:a1e0:1::", true),
            ("fd7a:115c:a1e1::", false),
        ];
        for (text, expected) in cases {
            let address: IpAddr = text.parse().unwrap();
            assert_eq!(ranges.contains(address), expected, "{text}");
            assert!(!ranges.is_service(address));
        }
        assert!(ranges.covers(&"100.64.0.0/11".parse().unwrap()));
        assert!(!ranges.covers(&"100.0.0.0/8".parse().unwrap()));
    }
}

//! Stable addresses: one index per node gives both families.
//!
//! Index `n` is `100.64.0.0 + n` and `fd7a:115c:a1e0::n`, so that the two are
//! easy to distinguish from any other node's and easy to remember. An index is
//! handed out once and goes back only when the whole range has been used.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net};
use serde::{Deserialize, Serialize};

/// Where node addresses come from: carrier-grade NAT space (RFC 6598).
pub const V4_RANGE: (Ipv4Addr, u8) = (Ipv4Addr::new(100, 64, 0, 0), 10);
/// The unique local prefix of the overlay (RFC 4193).
pub const V6_RANGE: (Ipv6Addr, u8) = (Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, 0), 48);

/// One past the last usable index: the range is a /10.
const END: u32 = 1 << 22;

/// The position of a node's addresses in both ranges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AddressIndex(u32);

impl AddressIndex {
    /// The index `n`, unless it is outside of the range or reserved.
    pub fn new(n: u32) -> Option<Self> {
        (n < END - 1 && !reserved(n)).then_some(Self(n))
    }

    /// The index of an address of either range.
    pub(crate) fn of(address: IpAddr) -> Option<Self> {
        let index = match address {
            IpAddr::V4(v4) => v4.to_bits().checked_sub(V4_RANGE.0.to_bits())?,
            IpAddr::V6(v6) => {
                let index = v6.to_bits().checked_sub(V6_RANGE.0.to_bits())?;
                u32::try_from(index).ok()?
            }
        };
        Self::new(index)
    }

    /// The number itself.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// The IPv4 address.
    pub fn v4(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(V4_RANGE.0.to_bits() | self.0)
    }

    /// The IPv6 address.
    pub fn v6(self) -> Ipv6Addr {
        Ipv6Addr::from_bits(V6_RANGE.0.to_bits() | u128::from(self.0))
    }

    /// Both as single-address prefixes, IPv4 first.
    pub fn prefixes(self) -> [IpNet; 2] {
        [
            IpNet::from(IpAddr::from(self.v4())),
            IpNet::from(IpAddr::from(self.v6())),
        ]
    }
}

/// Index 0 is the network itself. 100.100.0.0/24 and 100.100.100.0/24 hold the
/// hosted service's and the resolver's addresses, 100.115.92.0/23 is used by
/// ChromeOS inside the machine, and `::53` is the resolver in IPv6.
fn reserved(n: u32) -> bool {
    let [_, b, c, _] = Ipv4Addr::from_bits(V4_RANGE.0.to_bits() | n).octets();
    n == 0 || n == 0x53 || (b == 100 && (c == 0 || c == 100)) || (b == 115 && (c == 92 || c == 93))
}

/// The next free index at or after `cursor`, wrapping once.
pub(crate) fn allocate(used: impl Fn(AddressIndex) -> bool, cursor: u32) -> Option<AddressIndex> {
    let start = cursor.clamp(1, END - 1);
    (start..END)
        .chain(1..start)
        .filter_map(AddressIndex::new)
        .find(|index| !used(*index))
}

/// The next free index in one of the pools, the first pool with one; in none:
/// `None`. Without pools, as [`allocate`].
pub(crate) fn allocate_in(
    pools: &[Ipv4Net],
    used: impl Fn(AddressIndex) -> bool,
    cursor: u32,
) -> Option<AddressIndex> {
    if pools.is_empty() {
        return allocate(used, cursor);
    }
    let index = |address: Ipv4Addr| address.to_bits().checked_sub(V4_RANGE.0.to_bits());
    pools
        .iter()
        .filter_map(|pool| Some(index(pool.network())?..=index(pool.broadcast())?))
        .flatten()
        .filter_map(AddressIndex::new)
        .find(|index| !used(*index))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn both_families_come_from_one_index() {
        let index = AddressIndex::new(1).unwrap();
        assert_eq!(index.v4().to_string(), "100.64.0.1");
        assert_eq!(index.v6().to_string(), "fd7a:115c:a1e0::1");
        assert_eq!(index.prefixes()[0].to_string(), "100.64.0.1/32");
        assert_eq!(index.prefixes()[1].to_string(), "fd7a:115c:a1e0::1/128");
    }

    #[test]
    fn service_addresses_are_never_given_out() {
        for text in [
            "100.64.0.0",
            "100.100.100.100",
            "100.100.0.1",
            "100.115.92.3",
            "100.64.0.83",
            "100.127.255.255",
        ] {
            let address: Ipv4Addr = text.parse().unwrap();
            assert_eq!(
                AddressIndex::new(address.to_bits() - V4_RANGE.0.to_bits()),
                None,
                "{text}"
            );
        }
    }

    #[test]
    fn a_pool_is_used_up_and_no_more() {
        let pools: Vec<Ipv4Net> = ["100.81.0.4/31", "100.100.99.254/32", "10.0.0.0/8"]
            .map(|net| net.parse().unwrap())
            .to_vec();
        let mut used = BTreeSet::new();
        let mut given = Vec::new();
        while let Some(index) = allocate_in(&pools, |i| used.contains(&i), 1) {
            used.insert(index);
            given.push(index.v4().to_string());
        }
        assert_eq!(given, ["100.81.0.4", "100.81.0.5", "100.100.99.254"]);
        assert_eq!(allocate_in(&[], |i| used.contains(&i), 7).unwrap().get(), 7);
    }

    #[test]
    fn freed_addresses_come_back_only_after_the_rest() {
        let mut used = BTreeSet::new();
        let mut cursor = 1;
        for _ in 0..100 {
            let index = allocate(|i| used.contains(&i), cursor).unwrap();
            cursor = index.get() + 1;
            assert!(used.insert(index));
        }
        used.remove(&AddressIndex::new(5).unwrap());
        assert_eq!(
            allocate(|i| used.contains(&i), cursor).unwrap().get(),
            cursor
        );
        assert_eq!(allocate(|i| used.contains(&i), END).unwrap().get(), 5);
    }
}

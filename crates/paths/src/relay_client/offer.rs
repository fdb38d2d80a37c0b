//! An endpoint on a peer relay that a server or the peer names, checked.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use warren_keys::DiscoPublic;
use warren_node_types::{Family, TailnetRanges, Vni};
use warren_wire::disco::RelayEndpoint;

use crate::core::Core;

/// Addresses of one server that are tried.
pub(crate) const MAX_ADDRESSES: usize = 16;
/// A handshake never takes longer, whatever the server allows.
const LONGEST_BIND: Duration = Duration::from_secs(30);
/// An endpoint without traffic for longer is taken as gone, whatever the server says.
const LONGEST_STEADY: Duration = Duration::from_secs(300);

/// An endpoint for us and one peer, with addresses that a datagram may be sent to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Offer {
    /// The disco key of the server.
    pub(crate) server: DiscoPublic,
    pub(crate) vni: Vni,
    /// Orders the endpoints of one server by the time of their allocation.
    pub(crate) lamport_id: u64,
    pub(crate) addresses: Vec<SocketAddr>,
    pub(crate) bind_lifetime: Duration,
    pub(crate) steady_lifetime: Duration,
}

impl Offer {
    /// `None` for an endpoint of other clients, without a usable address, or of a server
    /// whose key is that of one of its clients.
    pub(crate) fn check(
        endpoint: &RelayEndpoint,
        core: &Core,
        tailnet: &TailnetRanges,
        peer: &DiscoPublic,
    ) -> Option<Self> {
        let clients = sorted_pair(*core.keys.public(), *peer);
        let vni = Vni::new(endpoint.vni)?;
        if endpoint.clients != clients || clients.contains(&endpoint.server) {
            return None;
        }
        let mut addresses: Vec<SocketAddr> = Vec::new();
        for address in endpoint.addresses.iter().copied() {
            let reachable = core.netcheck.has_family(Family::of_socket(address))
                && !core.own.is_own_socket(address);
            if reachable && is_usable(address, tailnet) && !addresses.contains(&address) {
                addresses.push(address);
            }
            if addresses.len() == MAX_ADDRESSES {
                break;
            }
        }
        (!addresses.is_empty()).then(|| Self {
            server: endpoint.server,
            vni,
            lamport_id: endpoint.lamport_id,
            addresses,
            bind_lifetime: Duration::from_nanos(endpoint.bind_lifetime).min(LONGEST_BIND),
            steady_lifetime: Duration::from_nanos(endpoint.steady_lifetime).min(LONGEST_STEADY),
        })
    }
}

/// Two clients in the order that relay servers use.
pub(crate) fn sorted_pair(a: DiscoPublic, b: DiscoPublic) -> [DiscoPublic; 2] {
    let mut pair = [a, b];
    pair.sort_unstable_by_key(|key| *key.as_bytes());
    pair
}

/// Whether a relay server can be there. An address of the tailnet would lead into the
/// tunnel that the relay carries.
fn is_usable(address: SocketAddr, tailnet: &TailnetRanges) -> bool {
    let sensible = match address.ip() {
        IpAddr::V4(ip) => !ip.is_broadcast() && !ip.is_link_local(),
        IpAddr::V6(ip) => !ip.is_unicast_link_local(),
    };
    let ip = address.ip();
    let somewhere = !ip.is_unspecified() && !ip.is_multicast() && !ip.is_loopback();
    sensible && somewhere && !tailnet.contains(ip) && address.port() != 0
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn addresses_that_no_relay_can_have_are_not_usable() {
        let cases = [
            ("192.0.2.1:40000", true),
            ("10.0.0.1:40000", true),
            ("[2001:db8::1]:40000", true),
            ("192.0.2.1:0", false),
            ("0.0.0.0:40000", false),
            ("127.0.0.1:40000", false),
            ("[::1]:40000", false),
            ("224.0.0.1:40000", false),
            ("[ff02::1]:40000", false),
            ("255.255.255.255:40000", false),
            ("169.254.1.1:40000", false),
            ("[fe80::1]:40000", false),
            ("100.64.0.1:40000", false),
            ("[fd7a:115c:a1e0::1]:40000", false),
        ];
        for (address, expected) in cases {
            let usable = is_usable(address.parse().unwrap(), &TailnetRanges::DEFAULT);
            assert_eq!(usable, expected, "{address}");
        }
    }
}

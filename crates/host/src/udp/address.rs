//! Socket addresses in the kernel's layout, without allocation.

use std::mem::size_of;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

/// Space for an address of either family.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) union RawAddress {
    family: libc::sa_family_t,
    v4: libc::sockaddr_in,
    v6: libc::sockaddr_in6,
}

impl RawAddress {
    pub(super) const EMPTY: RawAddress = RawAddress {
        v6: libc::sockaddr_in6 {
            sin6_family: 0,
            sin6_port: 0,
            sin6_flowinfo: 0,
            sin6_addr: libc::in6_addr { s6_addr: [0; 16] },
            sin6_scope_id: 0,
        },
    };

    /// Its length in bytes, for the kernel to fill.
    pub(super) const LEN: libc::socklen_t = size_of::<RawAddress>() as libc::socklen_t;

    /// The address and its length in bytes.
    pub(super) fn new(address: SocketAddr) -> (RawAddress, libc::socklen_t) {
        match address {
            SocketAddr::V4(address) => {
                // Starts from all zero, so no byte of the union is undefined.
                let mut raw = RawAddress::EMPTY;
                raw.v4 = libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: address.port().to_be(),
                    sin_addr: libc::in_addr {
                        s_addr: u32::from_ne_bytes(address.ip().octets()),
                    },
                    sin_zero: [0; 8],
                };
                (raw, size_of::<libc::sockaddr_in>() as libc::socklen_t)
            }
            SocketAddr::V6(address) => (
                RawAddress {
                    v6: libc::sockaddr_in6 {
                        sin6_family: libc::AF_INET6 as libc::sa_family_t,
                        sin6_port: address.port().to_be(),
                        sin6_flowinfo: address.flowinfo(),
                        sin6_addr: libc::in6_addr {
                            s6_addr: address.ip().octets(),
                        },
                        sin6_scope_id: address.scope_id(),
                    },
                },
                size_of::<libc::sockaddr_in6>() as libc::socklen_t,
            ),
        }
    }

    /// The address the kernel wrote; IPv4 in IPv6 form becomes IPv4, because
    /// the same peer must not have two names. `None`: another family.
    pub(super) fn get(&self) -> Option<SocketAddr> {
        // SAFETY: the value starts from `EMPTY` and the kernel writes whole
        // addresses, so every byte is defined; both structures start with the
        // family, which says which of them is in use.
        unsafe {
            match libc::c_int::from(self.family) {
                libc::AF_INET => Some(SocketAddr::new(
                    IpAddr::V4(Ipv4Addr::from(self.v4.sin_addr.s_addr.to_ne_bytes())),
                    u16::from_be(self.v4.sin_port),
                )),
                libc::AF_INET6 => {
                    let ip = Ipv6Addr::from(self.v6.sin6_addr.s6_addr);
                    let port = u16::from_be(self.v6.sin6_port);
                    Some(match ip.to_ipv4_mapped() {
                        Some(ip) => SocketAddr::new(IpAddr::V4(ip), port),
                        // The flow label is of the packet, not of the peer.
                        None => SocketAddrV6::new(ip, port, 0, self.v6.sin6_scope_id).into(),
                    })
                }
                _ => None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn addresses_survive_the_round_trip() {
        for text in [
            "192.0.2.7:41641",
            "[2001:db8::7]:41641",
            "[fe80::1%3]:1",
            "0.0.0.0:0",
        ] {
            let address: SocketAddr = text.parse().unwrap();
            assert_eq!(RawAddress::new(address).0.get(), Some(address), "{text}");
        }
    }

    #[test]
    fn mapped_addresses_are_unmapped() {
        let mapped = RawAddress::new("[::ffff:192.0.2.7]:5".parse().unwrap()).0;
        assert_eq!(mapped.get(), Some("192.0.2.7:5".parse().unwrap()));
        assert_eq!(RawAddress::EMPTY.get(), None);
    }
}

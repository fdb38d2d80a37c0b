//! Addresses that come from outside: typed by users, or passed on by programs.
//!
//! One machine has one IPv4 address, but programs write it in two ways: a service that
//! listens on `[::]` sees `::ffff:100.64.0.2` (RFC 4291 section 2.5.5.2). A
//! [`CanonicalIp`] has the IPv4 form, so that comparing it finds the node. Requests of
//! the local interface contain no other addresses.

use std::fmt;
use std::net::{AddrParseError, IpAddr, SocketAddr};
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An address in its canonical form: never IPv4 within IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CanonicalIp(IpAddr);

impl CanonicalIp {
    /// The address.
    pub fn get(self) -> IpAddr {
        self.0
    }
}

impl From<IpAddr> for CanonicalIp {
    fn from(ip: IpAddr) -> Self {
        Self(ip.to_canonical())
    }
}

impl From<CanonicalIp> for IpAddr {
    fn from(ip: CanonicalIp) -> Self {
        ip.0
    }
}

impl FromStr for CanonicalIp {
    type Err = AddrParseError;
    fn from_str(text: &str) -> Result<Self, AddrParseError> {
        text.parse().map(|ip: IpAddr| ip.into())
    }
}

impl fmt::Display for CanonicalIp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for CanonicalIp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for CanonicalIp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        IpAddr::deserialize(deserializer).map(Self::from)
    }
}

/// An address and a port, the address in its canonical form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CanonicalSocket {
    /// The address.
    pub ip: CanonicalIp,
    /// The port.
    pub port: u16,
}

impl FromStr for CanonicalSocket {
    type Err = AddrParseError;
    fn from_str(text: &str) -> Result<Self, AddrParseError> {
        let address: SocketAddr = text.parse()?;
        Ok(Self {
            ip: address.ip().into(),
            port: address.port(),
        })
    }
}

impl fmt::Display for CanonicalSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        SocketAddr::new(self.ip.get(), self.port).fmt(f)
    }
}

/// The prefix without IPv6 around IPv4.
pub fn canonical_net(net: IpNet) -> IpNet {
    let inner = net.prefix_len().checked_sub(96);
    match (net.addr().to_canonical(), inner) {
        (ip @ IpAddr::V4(_), Some(len)) if net.addr().is_ipv6() => {
            // At most 128 - 96 bits.
            IpNet::new(ip, len).unwrap_or(net)
        }
        _ => net,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;
    use crate::types::WhoIsTarget;

    proptest! {
        /// Both forms of an address are one, wherever an address is read.
        #[test]
        fn mapped_addresses_are_those_that_they_map(bits: u32, port: u16) {
            let plain = std::net::Ipv4Addr::from_bits(bits);
            let mapped = plain.to_ipv6_mapped();
            let forms = [format!("{mapped}"), format!("::ffff:{plain}")];
            for form in forms {
                let ip: CanonicalIp = form.parse().unwrap();
                prop_assert_eq!(ip, IpAddr::V4(plain).into());
                let json = serde_json::to_string(&form).unwrap();
                prop_assert_eq!(serde_json::from_str::<CanonicalIp>(&json).unwrap(), ip);
                prop_assert_eq!(form.parse(), Ok(WhoIsTarget::Ip(ip)));
                let socket = CanonicalSocket { ip, port };
                let text = format!("[{form}]:{port}");
                prop_assert_eq!(text.parse(), Ok(WhoIsTarget::Socket(socket)));
                let net: IpNet = format!("{form}/120").parse().unwrap();
                prop_assert_eq!(canonical_net(net), IpNet::new(plain.into(), 24).unwrap());
            }
        }
    }

    #[test]
    fn other_addresses_stay() {
        for text in ["100.64.0.2", "fd7a:115c:a1e0::2", "::1", "::ffff:0:6440:2"] {
            let ip: CanonicalIp = text.parse().unwrap();
            assert_eq!(ip.to_string(), text);
        }
        for text in ["10.0.0.0/8", "fd00::/64", "::ffff:0:0/95", "::/0"] {
            let net: IpNet = text.parse().unwrap();
            assert_eq!(canonical_net(net), net);
        }
    }
}

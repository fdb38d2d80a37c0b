//! Selectors of users, nodes and addresses, and the ports and protocols that a
//! rule opens.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::node::Role;
use crate::span::Span;

/// A source or destination of a rule. Names of hosts are resolved to their
/// addresses when the file is read.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Selector {
    /// `*`.
    Any,
    /// An address, a prefix or a host: exactly these addresses.
    Net(IpNet),
    /// A login name: the untagged nodes of that user.
    User(String),
    /// `group:x`: the untagged nodes of its members.
    Group(String),
    /// `tag:x`: nodes with the tag.
    Tag(String),
    /// `user:*@domain`: the untagged nodes of users of that domain.
    Domain(String),
    /// `autogroup:member`: all untagged nodes.
    Member,
    /// `autogroup:tagged`: all tagged nodes.
    Tagged,
    /// `autogroup:self`: the untagged nodes of the source's own user.
    OwnUser,
    /// `autogroup:internet`: public addresses, by way of exit nodes.
    Internet,
    /// `autogroup:danger-all`: every address without exception.
    DangerAll,
    /// `autogroup:admin` and similar: the untagged nodes of users with the
    /// role.
    Role(Role),
    /// `autogroup:shared`: nodes that other tailnets share in. There are none.
    Shared,
    /// `ipset:x`: exactly these addresses, resolved when the file is read.
    Set(IpSet),
    /// `svc:x`: the addresses of a service that nodes offer together. No
    /// service has addresses yet, so this matches no node.
    Service(String),
}

impl Selector {
    /// Whether the file writes it as `autogroup:`.
    pub(crate) fn is_autogroup(&self) -> bool {
        match self {
            Self::Member
            | Self::Tagged
            | Self::OwnUser
            | Self::Internet
            | Self::DangerAll
            | Self::Role(_)
            | Self::Shared => true,
            Self::Any
            | Self::Net(_)
            | Self::User(_)
            | Self::Group(_)
            | Self::Tag(_)
            | Self::Domain(_)
            | Self::Set(_)
            | Self::Service(_) => false,
        }
    }
}

/// A named set of addresses: ascending ranges that are neither adjacent nor
/// overlapping.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct IpSet {
    pub(crate) name: String,
    pub(crate) spans: Arc<[Span]>,
}

/// Parses an address. An IPv4 address in IPv6 form (`::ffff:192.0.2.1`) is the
/// IPv4 address.
pub(crate) fn parse_address(text: &str) -> Option<IpAddr> {
    text.parse()
        .ok()
        .map(|address: IpAddr| address.to_canonical())
}

/// Parses an address or a prefix. Host bits are cleared: the packet filter of
/// the official client refuses prefixes with host bits.
pub(crate) fn parse_net(text: &str) -> Option<IpNet> {
    if let Some(address) = parse_address(text) {
        return Some(IpNet::from(address));
    }
    let net: IpNet = text.parse().ok()?;
    let net = net.trunc();
    // A prefix within the range of IPv4 addresses in IPv6 form.
    match (net.addr().to_canonical(), net.prefix_len().checked_sub(96)) {
        (IpAddr::V4(address), Some(length)) if net.addr().is_ipv6() => {
            IpNet::new(address.into(), length).ok()
        }
        _ => Some(net),
    }
}

/// Whether `name` is `svc:` and the name of a service: one DNS label.
pub(crate) fn is_service_name(name: &str) -> bool {
    name.strip_prefix("svc:").is_some_and(|label| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-')
    })
}

/// A port range, both ends included; `*` is 0 to 65535.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Ports {
    pub(crate) first: u16,
    pub(crate) last: u16,
}

impl Ports {
    pub(crate) const ALL: Self = Self {
        first: 0,
        last: u16::MAX,
    };

    pub(crate) fn contains(self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.first, self.last) {
            (0, u16::MAX) => f.write_str("*"),
            (first, last) if first == last => write!(f, "{first}"),
            (first, last) => write!(f, "{first}-{last}"),
        }
    }
}

/// Parses `*`, `n`, `a-b` and comma lists of these. The error is the text after
/// `port range "...": ` in a message.
pub(crate) fn parse_ports(text: &str) -> Result<Vec<Ports>, &'static str> {
    text.split(',')
        .map(|part| parse_range(part.trim()))
        .collect()
}

fn parse_range(text: &str) -> Result<Ports, &'static str> {
    if text == "*" {
        return Ok(Ports::ALL);
    }
    let (first, last) = match text.split_once('-') {
        Some((first, last)) => (
            parse_port(first, "invalid first integer")?,
            parse_port(last, "invalid last integer")?,
        ),
        None => {
            let port = parse_port(text, "invalid first integer")?;
            (port, port)
        }
    };
    if first == 0 {
        return Err("first port must be >0, or use '*' for wildcard");
    }
    if first > last {
        return Err("first port must be <= last port");
    }
    Ok(Ports { first, last })
}

fn parse_port(text: &str, not_a_number: &'static str) -> Result<u16, &'static str> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(not_a_number);
    }
    text.parse().map_err(|_| "port must be at most 65535")
}

const PROTOCOLS: [(&str, u8); 14] = [
    ("icmp", 1),
    ("igmp", 2),
    ("ipv4", 4),
    ("ip-in-ip", 4),
    ("tcp", 6),
    ("egp", 8),
    ("igp", 9),
    ("udp", 17),
    ("gre", 47),
    ("esp", 50),
    ("ah", 51),
    ("ipv6-icmp", 58),
    ("sctp", 132),
    ("fc", 133),
];

/// Names of the protocols, for suggestions.
pub(crate) fn protocol_names() -> impl Iterator<Item = &'static str> {
    PROTOCOLS.iter().map(|(name, _)| *name)
}

/// Reads a protocol name or number.
pub(crate) fn parse_protocol(text: &str) -> Option<u8> {
    let lower = text.to_ascii_lowercase();
    if let Some((_, number)) = PROTOCOLS.iter().find(|(name, _)| *name == lower) {
        return Some(*number);
    }
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let leading_zero = text.len() > 1 && text.starts_with('0');
    text.parse().ok().filter(|_| digits && !leading_zero)
}

/// Whether a rule may name single ports of the protocol.
pub(crate) fn has_ports(protocol: Option<u8>) -> bool {
    matches!(protocol, None | Some(6 | 17 | 132))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn ports_parse_in_every_form() {
        let one = |first, last| Ok(vec![Ports { first, last }]);
        for (text, expected) in [
            ("*", Ok(vec![Ports::ALL])),
            ("22", one(22, 22)),
            ("1-65535", one(1, 65535)),
            ("ssh", Err("invalid first integer")),
            ("", Err("invalid first integer")),
            ("0", Err("first port must be >0, or use '*' for wildcard")),
            ("65536", Err("port must be at most 65535")),
            ("9-2", Err("first port must be <= last port")),
            ("1-x", Err("invalid last integer")),
            ("-5", Err("invalid first integer")),
        ] {
            assert_eq!(parse_ports(text), expected, "{text}");
        }
        assert_eq!(parse_ports("80,443-444").unwrap().len(), 2);
    }

    #[test]
    fn ipv4_addresses_in_ipv6_form_are_ipv4_addresses() {
        for (text, expected) in [
            ("::ffff:100.64.0.2", "100.64.0.2/32"),
            ("::ffff:10.1.2.3/104", "10.0.0.0/8"),
            ("::ffff:0:0/96", "0.0.0.0/0"),
            ("::ffff:0:0/95", "::fffe:0:0/95"),
            ("::/0", "::/0"),
            ("fd7a::1", "fd7a::1/128"),
        ] {
            assert_eq!(parse_net(text).unwrap().to_string(), expected, "{text}");
        }
    }

    #[test]
    fn protocols_parse_by_name_and_number() {
        for (text, expected) in [
            ("tcp", Some(6)),
            ("TCP", Some(6)),
            ("ip-in-ip", Some(4)),
            ("17", Some(17)),
            ("255", Some(255)),
            ("0", Some(0)),
            ("256", None),
            ("06", None),
            ("*", None),
            ("", None),
            ("+6", None),
        ] {
            assert_eq!(parse_protocol(text), expected, "{text}");
        }
    }
}

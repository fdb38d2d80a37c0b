//! Address arithmetic for compiling: ranges of both families, overlap, and the
//! fixed sets of the language.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// A range of addresses of one family, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Span {
    v6: bool,
    first: u128,
    last: u128,
}

impl Span {
    /// Every address of both families.
    pub(crate) const ALL: [Self; 2] = [
        Self {
            v6: false,
            first: 0,
            last: u32::MAX as u128,
        },
        Self {
            v6: true,
            first: 0,
            last: u128::MAX,
        },
    ];

    pub(crate) const fn v4(first: Ipv4Addr, last: Ipv4Addr) -> Self {
        Self {
            v6: false,
            first: first.to_bits() as u128,
            last: last.to_bits() as u128,
        }
    }

    pub(crate) const fn v6(first: Ipv6Addr, last: Ipv6Addr) -> Self {
        Self {
            v6: true,
            first: first.to_bits(),
            last: last.to_bits(),
        }
    }

    pub(crate) fn overlaps(&self, other: &Self) -> bool {
        self.v6 == other.v6 && self.first <= other.last && other.first <= self.last
    }

    pub(crate) fn contains(&self, other: &Self) -> bool {
        self.v6 == other.v6 && self.first <= other.first && other.last <= self.last
    }
}

impl From<IpAddr> for Span {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(a) => Self::v4(a, a),
            IpAddr::V6(a) => Self::v6(a, a),
        }
    }
}

impl From<&IpNet> for Span {
    fn from(net: &IpNet) -> Self {
        match net {
            IpNet::V4(net) => Self::v4(net.network(), net.broadcast()),
            IpNet::V6(net) => Self::v6(net.network(), net.broadcast()),
        }
    }
}

/// A named range as it goes on the wire.
pub(crate) struct Named {
    pub(crate) text: &'static str,
    pub(crate) span: Span,
}

const fn v4(text: &'static str, first: [u8; 4], last: [u8; 4]) -> Named {
    Named {
        text,
        span: Span::v4(
            Ipv4Addr::new(first[0], first[1], first[2], first[3]),
            Ipv4Addr::new(last[0], last[1], last[2], last[3]),
        ),
    }
}

/// The tailnet's own ranges: what `*` stands for as a source, besides subnet
/// routes. 100.115.92.0/23 is left out: it belongs to ChromeOS's containers.
pub(crate) const TAILNET: [Named; 3] = [
    v4(
        "100.64.0.0-100.115.91.255",
        [100, 64, 0, 0],
        [100, 115, 91, 255],
    ),
    v4(
        "100.115.94.0-100.127.255.255",
        [100, 115, 94, 0],
        [100, 127, 255, 255],
    ),
    Named {
        text: "fd7a:115c:a1e0::/48",
        span: Span::v6(
            Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, 0),
            Ipv6Addr::new(
                0xfd7a, 0x115c, 0xa1e0, 0xffff, 0xffff, 0xffff, 0xffff, 0xffff,
            ),
        ),
    },
];

/// Public addresses: what `autogroup:internet` stands for.
pub(crate) const INTERNET: [Named; 7] = [
    v4("0.0.0.0-9.255.255.255", [0, 0, 0, 0], [9, 255, 255, 255]),
    v4(
        "11.0.0.0-100.63.255.255",
        [11, 0, 0, 0],
        [100, 63, 255, 255],
    ),
    v4(
        "100.128.0.0-169.253.255.255",
        [100, 128, 0, 0],
        [169, 253, 255, 255],
    ),
    v4(
        "169.255.0.0-172.15.255.255",
        [169, 255, 0, 0],
        [172, 15, 255, 255],
    ),
    v4(
        "172.32.0.0-192.167.255.255",
        [172, 32, 0, 0],
        [192, 167, 255, 255],
    ),
    v4(
        "192.169.0.0-255.255.255.255",
        [192, 169, 0, 0],
        [255, 255, 255, 255],
    ),
    Named {
        text: "2000::-3fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        span: Span::v6(
            Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0),
            Ipv6Addr::new(
                0x3fff, 0xffff, 0xffff, 0xffff, 0xffff, 0xffff, 0xffff, 0xffff,
            ),
        ),
    },
];

/// Whether public addresses overlap `span`.
pub(crate) fn internet_overlaps(span: &Span) -> bool {
    INTERNET.iter().any(|named| named.span.overlaps(span))
}

/// The way a prefix goes on the wire in rules: a single address without its
/// length.
pub(crate) fn net_text(net: &IpNet) -> String {
    if net.prefix_len() == net.max_prefix_len() {
        net.addr().to_string()
    } else {
        net.to_string()
    }
}

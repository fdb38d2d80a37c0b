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

    /// Both ends of one family, the first not above the last.
    pub(crate) fn between(first: IpAddr, last: IpAddr) -> Option<Self> {
        let span = match (first, last) {
            (IpAddr::V4(first), IpAddr::V4(last)) => Self::v4(first, last),
            (IpAddr::V6(first), IpAddr::V6(last)) => Self::v6(first, last),
            _ => return None,
        };
        (span.first <= span.last).then_some(span)
    }

    fn address(&self, bits: u128) -> IpAddr {
        if self.v6 {
            Ipv6Addr::from_bits(bits).into()
        } else {
            // Bits of a v4 span come from v4 addresses.
            Ipv4Addr::from_bits(u32::try_from(bits).unwrap_or(u32::MAX)).into()
        }
    }

    /// The wire format of a range in rules: an address, a prefix if one fits,
    /// otherwise `first-last`.
    pub(crate) fn text(&self) -> String {
        let (first, last) = (self.address(self.first), self.address(self.last));
        match self.nets().as_slice() {
            [net] => net_text(net),
            _ => format!("{first}-{last}"),
        }
    }

    /// The range as the fewest prefixes, ascending.
    pub(crate) fn nets(&self) -> Vec<IpNet> {
        let width: u32 = if self.v6 { 128 } else { 32 };
        let mut out = Vec::new();
        let mut first = self.first;
        loop {
            // The largest block that starts here and does not go beyond.
            let mut bits = first.trailing_zeros().min(width);
            while bits > 0 && block_end(first, bits) > self.last {
                bits -= 1;
            }
            let length = u8::try_from(width - bits).unwrap_or(u8::MAX);
            out.extend(IpNet::new(self.address(first), length));
            match block_end(first, bits).checked_add(1) {
                Some(next) if next <= self.last => first = next,
                _ => return out,
            }
        }
    }

    /// This range without `other`: up to two ranges.
    pub(crate) fn without(&self, other: &Self) -> Vec<Self> {
        if !self.overlaps(other) {
            return vec![*self];
        }
        let mut out = Vec::new();
        if self.first < other.first {
            let last = other.first - 1;
            out.push(Self { last, ..*self });
        }
        if other.last < self.last {
            let first = other.last + 1;
            out.push(Self { first, ..*self });
        }
        out
    }

    /// Ranges without other ranges. Both lists ascend and have no overlaps.
    pub(crate) fn difference(spans: &[Self], without: &[Self]) -> Vec<Self> {
        let mut out = Vec::with_capacity(spans.len());
        let mut others = without.iter().peekable();
        for span in spans {
            let mut rest = Some(*span);
            while let (Some(left), Some(other)) = (rest, others.peek()) {
                let is_before = (other.v6, other.last) < (left.v6, left.first);
                if is_before {
                    others.next();
                    continue;
                }
                if !other.overlaps(&left) {
                    break;
                }
                rest = None;
                for part in left.without(other) {
                    if part.last < other.first {
                        out.push(part);
                    } else {
                        rest = Some(part);
                    }
                }
                if rest.is_some() {
                    others.next();
                }
            }
            out.extend(rest);
        }
        out
    }

    /// Joins ranges that touch or overlap; ascending.
    pub(crate) fn union(mut spans: Vec<Self>) -> Vec<Self> {
        spans.sort_unstable();
        let mut out: Vec<Self> = Vec::with_capacity(spans.len());
        for span in spans {
            match out.last_mut() {
                Some(before)
                    if before.v6 == span.v6 && span.first <= before.last.saturating_add(1) =>
                {
                    before.last = before.last.max(span.last);
                }
                _ => out.push(span),
            }
        }
        out
    }

    pub(crate) fn overlaps(&self, other: &Self) -> bool {
        self.v6 == other.v6 && self.first <= other.last && other.first <= self.last
    }

    pub(crate) fn contains(&self, other: &Self) -> bool {
        self.v6 == other.v6 && self.first <= other.first && other.last <= self.last
    }

    /// The first and the last address, each as a range of its own. Ranges of
    /// one address within this one lie between them.
    pub(crate) fn ends(&self) -> (Self, Self) {
        let one = |at| Self {
            v6: self.v6,
            first: at,
            last: at,
        };
        (one(self.first), one(self.last))
    }

    pub(crate) fn is_single(&self) -> bool {
        self.first == self.last
    }

    pub(crate) fn is_v6(&self) -> bool {
        self.v6
    }

    /// Whether one of the ranges overlaps this one. They ascend and none
    /// overlaps another.
    pub(crate) fn overlaps_any(&self, spans: &[Self]) -> bool {
        let at = spans.partition_point(|span| (span.v6, span.last) < (self.v6, self.first));
        spans.get(at).is_some_and(|span| span.overlaps(self))
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

/// The last address of a block of `2^bits` that starts at `first`.
fn block_end(first: u128, bits: u32) -> u128 {
    if bits >= u128::BITS {
        u128::MAX
    } else {
        first | ((1 << bits) - 1)
    }
}

/// A range with its text on the wire.
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

/// The tailnet's own ranges: `*` as a source means these and all subnet routes.
/// 100.115.92.0/23 is excluded: it belongs to the containers of ChromeOS.
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

/// Public addresses: the ranges of `autogroup:internet`.
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

/// The wire format of a prefix in rules: a single address has no length.
pub(crate) fn net_text(net: &IpNet) -> String {
    if net.prefix_len() == net.max_prefix_len() {
        net.addr().to_string()
    } else {
        net.to_string()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    fn span(first: &str, last: &str) -> Span {
        Span::between(first.parse().unwrap(), last.parse().unwrap()).unwrap()
    }

    #[test]
    fn ranges_are_written_as_prefix_or_range() {
        for (first, last, text) in [
            ("10.0.0.0", "10.255.255.255", "10.0.0.0/8"),
            ("10.0.0.1", "10.0.0.1", "10.0.0.1"),
            ("10.0.0.1", "10.0.0.2", "10.0.0.1-10.0.0.2"),
            ("0.0.0.0", "255.255.255.255", "0.0.0.0/0"),
            ("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "::/0"),
            ("fd00::1", "fd00::ff", "fd00::1-fd00::ff"),
        ] {
            assert_eq!(span(first, last).text(), text);
        }
        let four: IpAddr = "10.0.0.1".parse().unwrap();
        assert_eq!(Span::between(four, "::1".parse().unwrap()), None);
        assert_eq!(Span::between(four, "10.0.0.0".parse().unwrap()), None);
        for named in &TAILNET {
            assert_eq!(named.span.text(), named.text);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn prefixes_cover_exactly_the_range(first: u32, length in 0u32..70_000) {
            let last = first.saturating_add(length);
            let span = Span::v4(first.into(), last.into());
            let nets = span.nets();
            let total: u64 = nets.iter().map(|net| 1u64 << (32 - net.prefix_len())).sum();
            prop_assert_eq!(total, u64::from(last - first) + 1);
            prop_assert!(nets.iter().all(|net| span.contains(&Span::from(net))));
            let joined = Span::union(nets.iter().rev().map(Span::from).collect());
            prop_assert_eq!(joined, vec![span]);
        }

        #[test]
        fn difference_removes_exactly_the_other_ranges(a: Vec<(u8, u8)>, b: Vec<(u8, u8)>, at: u8) {
            let make = |pairs: Vec<(u8, u8)>| {
                let spans = pairs.into_iter().map(|(x, y)| {
                    let address = |n: u8| Ipv4Addr::new(10, 0, 0, n);
                    let length = y % 9;
                    Span::v4(address(x), address(x.saturating_add(length)))
                });
                Span::union(spans.collect())
            };
            let (a, b) = (make(a), make(b));
            let at = Span::from(IpAddr::from([10, 0, 0, at]));
            let holds = |spans: &[Span]| spans.iter().any(|span| span.contains(&at));
            let left = Span::difference(&a, &b);
            prop_assert_eq!(holds(&left), holds(&a) && !holds(&b));
            prop_assert_eq!(Span::union(left.clone()).len() <= left.len(), true);
        }

        #[test]
        fn without_removes_exactly_the_other_range(a: (u8, u8), b: (u8, u8), at: u8) {
            let make = |(x, y): (u8, u8)| {
                let address = |n: u8| Ipv4Addr::new(10, 0, 0, n);
                Span::v4(address(x.min(y)), address(x.max(y)))
            };
            let (a, b) = (make(a), make(b));
            let at = Span::from(IpAddr::from([10, 0, 0, at]));
            let left = a.without(&b).iter().any(|part| part.contains(&at));
            prop_assert_eq!(left, a.contains(&at) && !b.contains(&at));
        }
    }
}

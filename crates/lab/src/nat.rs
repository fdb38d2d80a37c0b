//! The place of a host in the network, and the nftables rules that make
//! the kernel behave like it.
//!
//! The rules follow RFC 4787's vocabulary. Linux `masquerade` keeps the source
//! port while it is free, so one host behind it sees an endpoint-independent
//! mapping with address-and-port-dependent filtering; `fully-random` gives
//! every destination another port. Every router drops new packets that arrive
//! for itself on the outside: otherwise the other side's first probe would be
//! answered by the router and take the port that our own probe needs.

use std::fmt;

/// The place of a host: its NAT or firewall.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// A public address, nothing in between.
    Open,
    /// A NAT that lets everyone in through a mapped port (full cone).
    Cone,
    /// A NAT that keeps the port and admits only answers of addresses that were contacted.
    Easy,
    /// An easy NAT behind a carrier's easy NAT.
    CarrierNat,
    /// A public address, and a firewall that lets only answers in.
    Firewall,
    /// A NAT that uses another port for every destination (symmetric).
    Hard,
    /// An easy NAT that forwards no UDP at all.
    NoUdp,
}

impl Place {
    /// All places, in the order of the tables in the documentation.
    pub const ALL: [Self; 7] = [
        Self::Open,
        Self::Cone,
        Self::Easy,
        Self::CarrierNat,
        Self::Firewall,
        Self::Hard,
        Self::NoUdp,
    ];

    /// Whether a router is between the host and the internet.
    pub fn has_router(self) -> bool {
        match self {
            Self::Open | Self::Firewall => false,
            Self::Cone | Self::Easy | Self::CarrierNat | Self::Hard | Self::NoUdp => true,
        }
    }

    /// The name for people.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Cone => "cone NAT",
            Self::Easy => "easy NAT",
            Self::CarrierNat => "carrier NAT",
            Self::Firewall => "firewall",
            Self::Hard => "hard NAT",
            Self::NoUdp => "no UDP",
        }
    }

    /// The rules of the router in front of the host `inside`, whose outside
    /// interface is `wan`.
    pub(crate) fn router_rules(self, inside: &str) -> String {
        let masquerade = match self {
            Self::Hard => "masquerade fully-random",
            Self::Open
            | Self::Cone
            | Self::Easy
            | Self::CarrierNat
            | Self::Firewall
            | Self::NoUdp => "masquerade",
        };
        let port_forward = match self {
            Self::Cone => format!(
                "chain prerouting {{ type nat hook prerouting priority dstnat; \
                 iifname \"wan\" meta l4proto udp dnat to {inside} }}"
            ),
            Self::Open
            | Self::Easy
            | Self::CarrierNat
            | Self::Firewall
            | Self::Hard
            | Self::NoUdp => String::new(),
        };
        let forward = match self {
            Self::Cone => "",
            Self::NoUdp => "meta l4proto udp drop; iifname \"wan\" ct state new drop",
            Self::Open | Self::Easy | Self::CarrierNat | Self::Firewall | Self::Hard => {
                "iifname \"wan\" ct state new drop"
            }
        };
        format!(
            "table ip lab {{
               chain postrouting {{ type nat hook postrouting priority srcnat; oifname \"wan\" {masquerade} }}
               {port_forward}
               chain input {{ type filter hook input priority filter; iifname \"wan\" ct state new drop }}
               chain forward {{ type filter hook forward priority filter; {forward} }}
             }}
             table ip6 lab {{
               chain input {{ type filter hook input priority filter; meta l4proto ipv6-icmp accept; iifname \"wan\" ct state new drop }}
               chain forward {{ type filter hook forward priority filter; meta l4proto ipv6-icmp accept; {forward} }}
             }}"
        )
    }

    /// The rules of the host itself.
    pub(crate) fn host_rules(self) -> Option<&'static str> {
        (self == Self::Firewall).then_some(
            "table inet lab {
               chain input { type filter hook input priority filter;
                 iifname \"lo\" accept; meta l4proto ipv6-icmp accept;
                 iifname \"eth0\" ct state new drop }
             }",
        )
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.describe())
    }
}

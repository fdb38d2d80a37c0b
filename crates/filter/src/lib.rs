//! The packet filter: compiled rules, and memory of the flows that answer.
//!
//! Control sends every node the rules that concern it. [`Filter::compile`]
//! turns them into an immutable [`Filter`] that the data-plane threads share;
//! a new rule list, a change of the node's own addresses or of the peers that
//! hold a capability means a new filter. [`Filter::check_out`] sees each packet
//! on its way into the tunnel, [`Filter::check_in`] each one that comes out.
//! The only memory is the [`FlowTable`], which outlives filters: answers to
//! flows this node started keep passing when rules change.
//!
//! Rules only allow, and only what comes in. What leaves is free, but for
//! multicast and link-local destinations, which have no place in the tunnel.
//!
//! Checking neither allocates nor locks, and costs two binary searches however
//! many rules there are. Super-packets (GSO) are checked once: all segments
//! share the headers that decide.
//!
//! Where the reference is known to be lax, this filter is not:
//! - later fragments must be addressed to this host;
//! - IPv6 extension headers are walked, so rules see the real transport;
//! - `cap:` sources are addresses here, so the destination of a rule counts
//!   for them with ICMP and with protocols without ports too;
//! - an ICMP error passes only if it quotes a packet of its receiver;
//! - the real IPv4 parameter-problem type counts as an error.

#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

mod flows;
mod local;
mod ranges;
mod rules;
mod table;

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use warren_control_types::{CapMap, FilterRule};
use warren_wire::ip::icmp::{Icmp, Quoted};
use warren_wire::ip::tsmp::{self, RejectReason};
use warren_wire::ip::{IpPacket, Parsed, Protocol};

pub use flows::{FlowTable, IDLE_SECS};
pub use local::{LocalAddresses, LocalSet};
pub use rules::{CapabilityHolders, EntryProblem, Field, RuleProblem, capability_sources};

use ranges::{AddressRange, AddressSet};
use rules::{GrantRule, PortRule};
use table::{FamilyRule, Query, Table};

/// What becomes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[must_use]
pub enum Verdict {
    /// It goes on.
    Accept,
    /// It goes no further.
    Drop(DropReason),
}

impl Verdict {
    /// Whether the packet goes on.
    #[must_use]
    pub const fn is_accept(self) -> bool {
        matches!(self, Self::Accept)
    }
}

/// Why a packet goes no further.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DropReason {
    /// Multicast destination.
    Multicast,
    /// Link-local destination.
    LinkLocal,
    /// The destination is neither this host nor a route it serves.
    NotLocal,
    /// No rule allows it.
    NoRule,
    /// All incoming connections are blocked.
    ShieldsUp,
    /// An ICMP error about a packet that its receiver did not send.
    UnrelatedError,
}

impl DropReason {
    /// Every reason, for counters by [`DropReason::index`].
    pub const ALL: [Self; 6] = [
        Self::Multicast,
        Self::LinkLocal,
        Self::NotLocal,
        Self::NoRule,
        Self::ShieldsUp,
        Self::UnrelatedError,
    ];

    /// Position in [`DropReason::ALL`].
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// A short name for metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Multicast => "multicast",
            Self::LinkLocal => "link_local",
            Self::NotLocal => "not_local",
            Self::NoRule => "acl",
            Self::ShieldsUp => "shields_up",
            Self::UnrelatedError => "unrelated_icmp_error",
        }
    }
}

/// Which rules a filter has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Those that control sent.
    Rules,
    /// None: only answers come in.
    ShieldsUp,
}

/// Compiled rules. Immutable; share it by reference.
#[derive(Debug, Clone)]
pub struct Filter {
    mode: Mode,
    local: LocalSet,
    v4: Table<u32>,
    v6: Table<u128>,
    grants: Vec<GrantRule>,
}

impl Filter {
    /// Compiles `rules`. Entries that cannot be used are left out and
    /// returned; a rule list with retired fields becomes a filter without
    /// rules.
    #[must_use]
    pub fn compile(
        rules: &[FilterRule],
        local: LocalSet,
        holders: &CapabilityHolders,
    ) -> (Self, Vec<RuleProblem>) {
        let (rules, problems) = rules::read(rules, holders);
        let filter = Self {
            mode: Mode::Rules,
            local,
            v4: Table::new(family_v4(&rules.ports)),
            v6: Table::new(family_v6(&rules.ports)),
            grants: rules.grants,
        };
        (filter, problems)
    }

    /// A filter that lets only answers in: the user's wish to block incoming
    /// connections, and what holds until preferences are known.
    #[must_use]
    pub fn shields_up(local: LocalSet) -> Self {
        Self {
            mode: Mode::ShieldsUp,
            local,
            v4: Table::Empty,
            v6: Table::Empty,
            grants: Vec::new(),
        }
    }

    /// A filter that lets nothing in: no netmap, no destination of ours.
    #[must_use]
    pub fn block_all() -> Self {
        Self::shields_up(LocalSet::default())
    }

    /// The filter for packets from and to peers that are jailed (may be
    /// reached but not reach us): the same destinations, no rules.
    #[must_use]
    pub fn jailed(&self) -> Self {
        Self::shields_up(self.local.clone())
    }

    /// The destinations that count as this host.
    #[must_use]
    pub fn local(&self) -> &LocalSet {
        &self.local
    }

    /// Decides about a packet that came out of the tunnel, after its source
    /// was found to belong to the peer that sent it. `now`: seconds from any
    /// fixed moment, the same for all callers of one `flows`.
    pub fn check_in(&self, flows: &FlowTable, packet: &IpPacket<'_>, now: u32) -> Verdict {
        if let Some(reason) = unfit_destination(packet.dst) {
            return Verdict::Drop(reason);
        }
        if !self.local.contains(packet.dst) {
            return Verdict::Drop(DropReason::NotLocal);
        }
        // Without its first fragment, which is checked in full, the host can
        // make nothing of a later one.
        if packet.is_later_fragment() {
            return Verdict::Accept;
        }
        if packet.is_icmp() {
            return self.check_icmp(packet);
        }
        let protocol = packet.protocol;
        match protocol {
            Protocol::TCP if !packet.tcp_flags.opens() => Verdict::Accept,
            Protocol::TSMP => Verdict::Accept,
            Protocol::UDP | Protocol::SCTP if flows.expects(packet, now) => Verdict::Accept,
            Protocol::TCP | Protocol::UDP | Protocol::SCTP => {
                self.ask(packet, Query::Port(protocol, packet.dst_port))
            }
            other => self.ask(packet, Query::Whole(other)),
        }
    }

    /// Decides about a packet on its way into the tunnel, and remembers its
    /// flow so that the answer may come in.
    pub fn check_out(&self, flows: &FlowTable, packet: &IpPacket<'_>, now: u32) -> Verdict {
        if let Some(reason) = unfit_destination(packet.dst) {
            return Verdict::Drop(reason);
        }
        if !packet.is_later_fragment() && matches!(packet.protocol, Protocol::UDP | Protocol::SCTP)
        {
            flows.remember(packet, now);
        }
        Verdict::Accept
    }

    /// The message that tells the sender of a refused packet so: for TCP
    /// packets that would open a connection, refused by rules or shields.
    #[must_use]
    pub fn rejection(&self, packet: &IpPacket<'_>, reason: DropReason) -> Option<Vec<u8>> {
        if !packet.opens_tcp() {
            return None;
        }
        let reason = match reason {
            DropReason::NoRule => RejectReason::Acl,
            DropReason::ShieldsUp => RejectReason::ShieldsUp,
            DropReason::Multicast
            | DropReason::LinkLocal
            | DropReason::NotLocal
            | DropReason::UnrelatedError => return None,
        };
        tsmp::reject_for(packet, reason)
    }

    /// The capabilities that `src` holds towards `dst`, one of this node's
    /// addresses: all values of all grants that name both, in rule order.
    #[must_use]
    pub fn caps_for(&self, src: IpAddr, dst: IpAddr) -> CapMap {
        let mut out = CapMap::default();
        let matching = self
            .grants
            .iter()
            .filter(|rule| rule.sources.contains(src))
            .flat_map(|rule| &rule.grants)
            .filter(|(net, _)| net.contains(&dst));
        for (_, map) in matching {
            for (name, values) in &map.0 {
                out.0
                    .entry(name.clone())
                    .or_default()
                    .extend_from_slice(values);
            }
        }
        out
    }

    /// Whether a rule lets `src` open TCP port `port` on `dst`: for answers to
    /// people, not for packets.
    #[must_use]
    pub fn allows(&self, protocol: Protocol, src: IpAddr, dst: IpAddr, port: u16) -> bool {
        let query = if protocol.has_ports() {
            Query::Port(protocol, port)
        } else if matches!(protocol, Protocol::ICMPV4 | Protocol::ICMPV6) {
            Query::Anything
        } else {
            Query::Whole(protocol)
        };
        self.local.contains(dst) && self.matches(src, dst, query)
    }

    fn check_icmp(&self, packet: &IpPacket<'_>) -> Verdict {
        match packet.icmp() {
            Some(Icmp::EchoReply(_)) => Verdict::Accept,
            Some(Icmp::Error { quoted, .. }) => {
                // Routers and the host itself can only do something with an
                // error about a packet that its receiver sent.
                let related = Quoted::parse(quoted).is_some_and(|quoted| quoted.src == packet.dst);
                if related {
                    Verdict::Accept
                } else {
                    Verdict::Drop(DropReason::UnrelatedError)
                }
            }
            // Any open port implies that the host may be pinged.
            Some(Icmp::EchoRequest(_) | Icmp::Other { .. }) | None => {
                self.ask(packet, Query::Anything)
            }
        }
    }

    fn ask(&self, packet: &Parsed, query: Query) -> Verdict {
        if self.matches(packet.src, packet.dst, query) {
            return Verdict::Accept;
        }
        Verdict::Drop(match self.mode {
            Mode::Rules => DropReason::NoRule,
            Mode::ShieldsUp => DropReason::ShieldsUp,
        })
    }

    fn matches(&self, src: IpAddr, dst: IpAddr, query: Query) -> bool {
        match (src, dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                self.v4.allows(src.to_bits(), dst.to_bits(), query)
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                self.v6.allows(src.to_bits(), dst.to_bits(), query)
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }
}

/// Whether some rule opens a port to one of `unsigned`: the prefixes of peers
/// whose keys tailnet lock has not signed. Such peers may only offer their
/// PeerAPI; a rule list that says otherwise must not be used.
#[must_use]
pub fn permits_unsigned(
    rules: &[FilterRule],
    holders: &CapabilityHolders,
    unsigned: &[IpNet],
) -> bool {
    if unsigned.is_empty() {
        return false;
    }
    let peers = AddressSet::new(unsigned.iter().map(|net| AddressRange::from(*net)));
    let by_address = rules
        .iter()
        .filter(|rule| !rule.dst_ports.is_empty())
        .flat_map(rules::source_ranges)
        .any(|range| peers.overlaps(range));
    by_address || {
        let (rules, _) = rules::read(rules, holders);
        rules.ports.iter().any(|rule| {
            unsigned
                .iter()
                .any(|net| rule.sources.overlaps(AddressRange::from(*net)))
        })
    }
}

/// Destinations that have no place in the tunnel, in both directions.
fn unfit_destination(dst: IpAddr) -> Option<DropReason> {
    /// Cloud instance metadata: link-local, but reachable on purpose through
    /// a node that advertises it.
    const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
    if dst.is_multicast() {
        return Some(DropReason::Multicast);
    }
    let link_local = match dst {
        IpAddr::V4(dst) => dst.is_link_local() && dst != METADATA,
        IpAddr::V6(dst) => dst.is_unicast_link_local(),
    };
    link_local.then_some(DropReason::LinkLocal)
}

fn family_v4(rules: &[PortRule]) -> Vec<FamilyRule<u32>> {
    let family = rules.iter().map(|rule| FamilyRule {
        sources: rule.sources.v4.clone(),
        protocols: rule.protocols,
        destinations: rule
            .destinations
            .iter()
            .filter_map(|dst| match dst.range {
                AddressRange::V4(from, to) => Some((from, to, dst.ports)),
                AddressRange::V6(..) => None,
            })
            .collect(),
    });
    family.collect()
}

fn family_v6(rules: &[PortRule]) -> Vec<FamilyRule<u128>> {
    let family = rules.iter().map(|rule| FamilyRule {
        sources: rule.sources.v6.clone(),
        protocols: rule.protocols,
        destinations: rule
            .destinations
            .iter()
            .filter_map(|dst| match dst.range {
                AddressRange::V6(from, to) => Some((from, to, dst.ports)),
                AddressRange::V4(..) => None,
            })
            .collect(),
    });
    family.collect()
}

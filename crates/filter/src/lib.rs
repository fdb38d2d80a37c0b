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
//! Rules only allow, and only incoming packets. Outgoing packets are free, but for
//! multicast and link-local destinations, which do not belong into the tunnel.
//!
//! Checking neither allocates nor locks, and costs three binary searches and
//! an intersection however many rules there are (see `table.rs`). Super-packets
//! (GSO) are checked once: all segments share the headers that decide. Every
//! verdict is counted, those by rule under their rule: the first in the list
//! that matches.
//!
//! # Where the reference is lax and this filter is not
//!
//! Together with the parser ([`warren_wire::ip`]), which refuses what cannot
//! be judged safely. Each line has a test of its own in `tests/holes.rs`.
//!
//! - *Fragments.* A first fragment holds the whole transport header, and no
//!   later one reaches back into it, extension headers included. A later
//!   fragment passes only to this host's destinations and only behind a first
//!   one that passed, or where a rule lets its source reach its destination;
//!   the reference accepts it without looking at its addresses.
//! - *IPv6 extension headers* are walked (hop-by-hop, routing, destination
//!   options, fragment; at most eight), so rules see the transport that the
//!   host will act on. A chain that is cut off, too long, or has hop-by-hop
//!   options elsewhere than in front is refused. Authentication headers and
//!   encrypted payload stay protocols of their own (51, 50): a rule for TCP
//!   does not let in TCP behind them.
//! - *Source routes*, IPv4 options and IPv6 routing headers with stops left,
//!   are refused: the packet would go on to where no rule was asked about.
//! - *`cap:` sources* are addresses here, so a rule's destination counts for
//!   them with ICMP, and protocols without ports know them too.
//! - *ICMP errors* pass only about a flow that left from their receiver, and
//!   the real IPv4 parameter-problem type (12) counts as one; echo replies
//!   pass only to a request.
//! - *TCP* that does not open a connection passes only where a rule would let
//!   it open one, or as part of a connection that has sent something from
//!   here; the reference accepts all of it.
//! - *Flows*: 65,536 of them with a time limit, instead of 512 without one. When
//!   there are more, expired flows are replaced first, and no address crowds out
//!   flows that others need (`flows/bucket.rs`); the official client replaces the
//!   flow that is idle for the longest time.
//! - *Malformed lengths* and the reserved protocols 0 and 255 are refused in
//!   both directions; other unknown protocols need a rule that names them with
//!   every port.

#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

mod bits;
mod counters;
mod flows;
mod local;
mod ranges;
mod rules;
mod table;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use ipnet::IpNet;
use warren_control_types::{CapMap, FilterRule};
use warren_wire::ip::icmp::Icmp;
use warren_wire::ip::tsmp::{self, RejectReason};
use warren_wire::ip::{Fragment, IpPacket, Parsed, Protocol};

pub use counters::{Count, Without};
pub use flows::{FRAGMENT_SECS, FlowTable, GRACE_SECS, IDLE_SECS, TCP_IDLE_SECS};
pub use local::{LocalAddresses, LocalSet};
pub use rules::{CapabilityHolders, EntryProblem, Field, RuleProblem, capability_sources};

use counters::{RuleCounters, Totals};
use ranges::{AddressRange, AddressSet};
use rules::{GrantRule, PortRule};
use table::{FamilyRule, Query, Table};

/// The decision about a packet.
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
    /// A part of a connection, or an answer, that nothing from here belongs to.
    NoFlow,
    /// A later fragment without a first one.
    Fragment,
}

impl DropReason {
    /// Every reason, for counters by [`DropReason::index`].
    pub const ALL: [Self; 8] = [
        Self::Multicast,
        Self::LinkLocal,
        Self::NotLocal,
        Self::NoRule,
        Self::ShieldsUp,
        Self::UnrelatedError,
        Self::NoFlow,
        Self::Fragment,
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
            Self::NoFlow => "no_flow",
            Self::Fragment => "fragment",
        }
    }

    /// The reference's name for metrics, which knows fewer reasons.
    #[must_use]
    pub const fn reference_name(self) -> &'static str {
        match self {
            Self::Multicast => "multicast",
            Self::LinkLocal => "link_local_unicast",
            Self::Fragment => "fragment",
            Self::NotLocal
            | Self::NoRule
            | Self::ShieldsUp
            | Self::UnrelatedError
            | Self::NoFlow => "acl",
        }
    }
}

/// Where a packet goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// Out of the tunnel, to this host.
    In,
    /// Into the tunnel.
    Out,
}

/// The reason why a packet was let in: see [`Filter::admit_in`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pass(Passed);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Passed {
    /// The rule with this number.
    Rule(u32),
    /// Something else.
    Without(Without),
}

/// Which rules a filter has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Those that control sent.
    Rules,
    /// None: only answers come in.
    ShieldsUp,
}

/// Compiled rules. Immutable but for what it counts; share it by reference.
/// Clones count together.
#[derive(Debug, Clone)]
pub struct Filter {
    mode: Mode,
    local: LocalSet,
    v4: Table<u32>,
    v6: Table<u128>,
    grants: Vec<GrantRule>,
    rule_counters: RuleCounters,
    totals: Arc<Totals>,
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
        let (read, problems) = rules::read(rules, holders);
        let filter = Self {
            mode: Mode::Rules,
            local,
            v4: Table::new(family_v4(&read.ports)),
            v6: Table::new(family_v6(&read.ports)),
            grants: read.grants,
            rule_counters: RuleCounters::new(rules),
            totals: Arc::default(),
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
            v4: Table::new(Vec::new()),
            v6: Table::new(Vec::new()),
            grants: Vec::new(),
            rule_counters: RuleCounters::default(),
            totals: Arc::default(),
        }
    }

    /// A filter that lets nothing in: no netmap, no destination of ours.
    #[must_use]
    pub fn block_all() -> Self {
        Self::shields_up(LocalSet::default())
    }

    /// The filter for packets from and to peers that are jailed (may be
    /// reached but not reach us): the same destinations, no rules. Counts
    /// together with this one.
    #[must_use]
    pub fn jailed(&self) -> Self {
        Self {
            totals: Arc::clone(&self.totals),
            ..Self::shields_up(self.local.clone())
        }
    }

    /// Goes on counting where `before` stands, which this filter is about to
    /// replace: its totals, and those of its rules that are still there. Both
    /// may be in use at the same time.
    #[must_use]
    pub fn keep_counts(mut self, before: &Self) -> Self {
        self.totals = Arc::clone(&before.totals);
        self.rule_counters.keep(&before.rule_counters);
        self
    }

    /// The destinations that count as this host.
    #[must_use]
    pub fn local(&self) -> &LocalSet {
        &self.local
    }

    /// Whether only answers come in, by the user's wish or for want of rules.
    #[must_use]
    pub fn is_shields_up(&self) -> bool {
        self.mode == Mode::ShieldsUp
    }

    /// How many rules control sent; 0 with shields up.
    #[must_use]
    pub fn rule_count(&self) -> usize {
        self.rule_counters.len()
    }

    /// The packets and bytes that rule number `rule` let in.
    #[must_use]
    pub fn passed_by_rule(&self, rule: usize) -> Count {
        self.rule_counters.read(rule)
    }

    /// The packets and bytes that passed without a rule, for the reason `why`.
    #[must_use]
    pub fn passed_without_rule(&self, why: Without) -> Count {
        self.totals.inbound.read_passed(why)
    }

    /// The packets and bytes that were dropped.
    #[must_use]
    pub fn dropped(&self, direction: Direction, reason: DropReason) -> Count {
        self.totals.side(direction).read_dropped(reason)
    }

    /// About how many bytes of memory the compiled rules take.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.v4.bytes() + self.v6.bytes() + self.rule_count() * 56
    }

    /// Decides about a packet that came out of the tunnel, after its source
    /// was found to belong to the peer that sent it. `now`: seconds from the
    /// making of `flows`.
    pub fn check_in(&self, flows: &FlowTable, packet: &IpPacket<'_>, now: u32) -> Verdict {
        match self.admit_in(flows, packet, now) {
            Ok(_) => Verdict::Accept,
            Err(reason) => Verdict::Drop(reason),
        }
    }

    /// As [`Filter::check_in`], and returns the reason why the packet passes. When it
    /// opens no connection and is not a fragment, the same reason lets in the packets
    /// of the same addresses, protocol and ports that follow it at once, if they open
    /// none and are not fragments either: they need not be checked, only
    /// [counted](Filter::count_alike).
    ///
    /// # Errors
    /// Why it is dropped.
    #[inline]
    pub fn admit_in(
        &self,
        flows: &FlowTable,
        packet: &IpPacket<'_>,
        now: u32,
    ) -> Result<Pass, DropReason> {
        let bytes = packet.total_len;
        match self.admit(flows, packet, now) {
            Ok(passed) => {
                self.count_alike(Pass(passed), 1, bytes as u64);
                // A rule lets in the later fragments as well.
                let without_rule = matches!(passed, Passed::Without(_));
                if without_rule && packet.fragment == Fragment::First {
                    flows.remember_first_fragment(packet, now);
                }
                Ok(Pass(passed))
            }
            Err(reason) => {
                self.totals.inbound.dropped(reason, bytes);
                Err(reason)
            }
        }
    }

    /// Counts packets that came in like the one that this filter let in with
    /// `pass`.
    #[inline]
    pub fn count_alike(&self, pass: Pass, packets: u64, bytes: u64) {
        match pass.0 {
            Passed::Rule(rule) => self.rule_counters.add(rule, packets, bytes),
            Passed::Without(why) => self.totals.inbound.passed(why, packets, bytes),
        }
    }

    /// Decides about a packet on its way into the tunnel, and remembers its
    /// flow so that the answer may come in.
    pub fn check_out(&self, flows: &FlowTable, packet: &IpPacket<'_>, now: u32) -> Verdict {
        if let Some(reason) = unfit_destination(packet.dst) {
            self.totals.outbound.dropped(reason, packet.total_len);
            return Verdict::Drop(reason);
        }
        flows.remember_or_spare(packet, now, || self.admits_answers_to(packet));
        Verdict::Accept
    }

    /// Whether a rule lets in the answers to `packet`, remembered or not.
    fn admits_answers_to(&self, packet: &Parsed) -> bool {
        let query = if packet.protocol.has_ports() {
            Query::Port(packet.protocol, packet.src_port)
        } else {
            Query::Anything
        };
        self.find(packet.dst, packet.src, query).is_some()
    }

    fn admit(
        &self,
        flows: &FlowTable,
        packet: &IpPacket<'_>,
        now: u32,
    ) -> Result<Passed, DropReason> {
        if let Some(reason) = unfit_destination(packet.dst) {
            return Err(reason);
        }
        if !self.local.contains(packet.dst) {
            return Err(DropReason::NotLocal);
        }
        if packet.is_later_fragment() {
            return self.admit_later_fragment(flows, packet, now);
        }
        if packet.is_icmp() {
            return self.admit_icmp(flows, packet, now);
        }
        let answer = Passed::Without(Without::Answer);
        match packet.protocol {
            Protocol::TSMP => Ok(Passed::Without(Without::NodeMessage)),
            // A packet that a rule allows is counted under it, established or not.
            protocol if protocol.has_ports() => {
                let query = Query::Port(protocol, packet.dst_port);
                if let Some(rule) = self.find(packet.src, packet.dst, query) {
                    return Ok(Passed::Rule(rule));
                }
                if packet.opens_tcp() {
                    return Err(self.refusal());
                }
                if flows.expects(packet, now) {
                    return Ok(answer);
                }
                match protocol {
                    Protocol::TCP if flows.is_new(now) => Ok(answer),
                    Protocol::TCP => Err(DropReason::NoFlow),
                    _ => Err(self.refusal()),
                }
            }
            other => self.ask(packet, Query::Whole(other)),
        }
    }

    /// Without its first fragment, which is checked in full, a host can make
    /// nothing of a later one but keep it in memory, and answer when it gives up: so
    /// it has to follow a first fragment, or to come on a way that a rule opens
    /// and where a reordered pair does no harm.
    fn admit_later_fragment(
        &self,
        flows: &FlowTable,
        packet: &Parsed,
        now: u32,
    ) -> Result<Passed, DropReason> {
        let allowed = flows.expects_later_fragment(packet, now)
            || self.find(packet.src, packet.dst, Query::Anything).is_some();
        if allowed {
            Ok(Passed::Without(Without::Fragment))
        } else {
            Err(DropReason::Fragment)
        }
    }

    fn admit_icmp(
        &self,
        flows: &FlowTable,
        packet: &IpPacket<'_>,
        now: u32,
    ) -> Result<Passed, DropReason> {
        match packet.icmp() {
            Some(Icmp::EchoReply(_)) => {
                if flows.expects(packet, now) || flows.is_new(now) {
                    return Ok(Passed::Without(Without::Answer));
                }
                let rule = self.find(packet.src, packet.dst, Query::Anything);
                rule.map(Passed::Rule).ok_or(DropReason::NoFlow)
            }
            Some(Icmp::Error { quoted, .. }) => {
                if flows.caused(packet.dst, quoted, now) {
                    Ok(Passed::Without(Without::Error))
                } else {
                    Err(DropReason::UnrelatedError)
                }
            }
            // Any open port implies that the host may be pinged.
            Some(Icmp::EchoRequest(_) | Icmp::Other { .. }) | None => {
                self.ask(packet, Query::Anything)
            }
        }
    }

    /// The message that reports a refused packet to its sender: for TCP packets that
    /// would open a connection, refused by rules or shields.
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
            | DropReason::UnrelatedError
            | DropReason::NoFlow
            | DropReason::Fragment => return None,
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

    /// The rule that lets `src` reach `dst` with `protocol`, at `port` where the
    /// protocol has ports: its place in the list. For answers to people, not
    /// for packets; nothing is counted.
    #[must_use]
    pub fn rule_for(
        &self,
        protocol: Protocol,
        src: IpAddr,
        dst: IpAddr,
        port: u16,
    ) -> Option<usize> {
        let query = if protocol.has_ports() {
            Query::Port(protocol, port)
        } else if matches!(protocol, Protocol::ICMPV4 | Protocol::ICMPV6) {
            Query::Anything
        } else {
            Query::Whole(protocol)
        };
        let rule = self
            .local
            .contains(dst)
            .then(|| self.find(src, dst, query))??;
        usize::try_from(rule).ok()
    }

    /// Whether a rule allows it: see [`Filter::rule_for`].
    #[must_use]
    pub fn allows(&self, protocol: Protocol, src: IpAddr, dst: IpAddr, port: u16) -> bool {
        self.rule_for(protocol, src, dst, port).is_some()
    }

    fn ask(&self, packet: &Parsed, query: Query) -> Result<Passed, DropReason> {
        let rule = self.find(packet.src, packet.dst, query);
        rule.map(Passed::Rule).ok_or_else(|| self.refusal())
    }

    /// The reason to report when no rule matches.
    fn refusal(&self) -> DropReason {
        match self.mode {
            Mode::Rules => DropReason::NoRule,
            Mode::ShieldsUp => DropReason::ShieldsUp,
        }
    }

    #[inline]
    fn find(&self, src: IpAddr, dst: IpAddr, query: Query) -> Option<u32> {
        match (src, dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => self.v4.find(src.to_bits(), dst.to_bits(), query),
            (IpAddr::V6(src), IpAddr::V6(dst)) => self.v6.find(src.to_bits(), dst.to_bits(), query),
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => None,
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
        number: rule.number,
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
        number: rule.number,
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

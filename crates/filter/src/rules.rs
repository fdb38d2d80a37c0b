//! From the rules that control sends to sets of addresses, protocols and
//! ports.
//!
//! Entries that cannot be read are left out and reported; the rest of the
//! rule applies. Since rules only ever allow, leaving something out is safe.
//! The two retired fields (`SrcBits`, `Bits`) change the meaning of the
//! entries beside them: a list that uses one is refused as a whole.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use thiserror::Error;
use warren_control_types::{CapMap, FilterRule};
use warren_wire::ip::Protocol;

use crate::ranges::{AddressRange, AddressSet};

/// The addresses of the peers that hold a node capability, by capability: what
/// `cap:` sources stand for. A change among the peers means a new filter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CapabilityHolders(BTreeMap<String, Vec<IpNet>>);

impl CapabilityHolders {
    /// No peer holds anything.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Notes that a peer with `addresses` holds `capability`.
    pub fn add(&mut self, capability: &str, addresses: &[IpNet]) {
        self.0
            .entry(capability.to_owned())
            .or_default()
            .extend_from_slice(addresses);
    }
}

/// The capabilities that `rules` use as `cap:` sources, in order, once each:
/// what [`CapabilityHolders`] has to know.
#[must_use]
pub fn capability_sources(rules: &[FilterRule]) -> Vec<&str> {
    let mut names: Vec<&str> = rules
        .iter()
        .flat_map(|rule| &rule.src_ips)
        .filter_map(|entry| entry.strip_prefix("cap:"))
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// Which part of a rule a problem is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// `SrcIPs`.
    SrcIps,
    /// `SrcBits`.
    SrcBits,
    /// `DstPorts`.
    DstPorts,
    /// `IPProto`.
    IpProto,
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SrcIps => "SrcIPs",
            Self::SrcBits => "SrcBits",
            Self::DstPorts => "DstPorts",
            Self::IpProto => "IPProto",
        })
    }
}

/// The reason why an entry is invalid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum EntryProblem {
    /// Neither `*`, an address, a prefix nor a range.
    #[error("is not an address, a prefix, a range or *")]
    Unreadable,
    /// A prefix with bits behind its length.
    #[error("is a prefix with host bits set")]
    HostBits,
    /// A range whose end is in front of its start or of another family.
    #[error("is a range that ends before it starts or mixes families")]
    Range,
    /// `cap:` without a name, or as a destination.
    #[error("uses cap: where it is not allowed or without a name")]
    Capability,
    /// First port above the last one.
    #[error("has an inverted port range")]
    Ports,
    /// Not a protocol number.
    #[error("is not a protocol number from 0 to 255")]
    Protocol,
    /// A retired field is in use; all rules are refused.
    #[error("uses a retired field, so the whole rule list is refused")]
    Retired,
}

/// One entry of one rule that could not be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("rule {rule}: {field} entry {entry:?} {problem}")]
pub struct RuleProblem {
    /// Index of the rule in the list.
    pub rule: usize,
    /// Where in the rule.
    pub field: Field,
    /// The entry as it was sent.
    pub entry: String,
    /// The reason why the entry is invalid.
    pub problem: EntryProblem,
}

/// A set of protocol numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) struct ProtocolSet([u64; 4]);

impl ProtocolSet {
    pub(crate) fn insert(&mut self, protocol: u8) {
        if let Some(word) = self.0.get_mut(usize::from(protocol >> 6)) {
            *word |= 1 << (protocol & 63);
        }
    }

    pub(crate) fn contains(&self, protocol: Protocol) -> bool {
        self.0
            .get(usize::from(protocol.0 >> 6))
            .is_some_and(|word| word & (1 << (protocol.0 & 63)) != 0)
    }

    pub(crate) fn extend(&mut self, other: &Self) {
        for (to, from) in self.0.iter_mut().zip(other.0) {
            *to |= from;
        }
    }

    fn is_empty(&self) -> bool {
        self.0 == [0; 4]
    }
}

/// Addresses with a port range, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Destination {
    pub(crate) range: AddressRange,
    pub(crate) ports: (u16, u16),
}

/// A rule that opens ports.
#[derive(Debug, Clone)]
pub(crate) struct PortRule {
    /// Its place in the list.
    pub(crate) number: u32,
    pub(crate) sources: AddressSet,
    pub(crate) protocols: ProtocolSet,
    pub(crate) destinations: Vec<Destination>,
}

/// A rule that hands out capabilities.
#[derive(Debug, Clone)]
pub(crate) struct GrantRule {
    pub(crate) sources: AddressSet,
    pub(crate) grants: Vec<(IpNet, CapMap)>,
}

/// All rules of a list, read.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rules {
    pub(crate) ports: Vec<PortRule>,
    pub(crate) grants: Vec<GrantRule>,
}

/// Protocols of a rule that names none.
const DEFAULT_PROTOCOLS: [Protocol; 4] = [
    Protocol::TCP,
    Protocol::UDP,
    Protocol::ICMPV4,
    Protocol::ICMPV6,
];

pub(crate) fn read(rules: &[FilterRule], holders: &CapabilityHolders) -> (Rules, Vec<RuleProblem>) {
    let mut problems = Vec::new();
    let mut out = Rules::default();
    for (index, rule) in rules.iter().enumerate() {
        let mut reader = Reader {
            rule: index,
            problems: &mut problems,
        };
        if let Some(retired) = reader.retired(rule) {
            return (Rules::default(), vec![retired]);
        }
        let sources = reader.sources(rule, holders);
        let destinations = reader.destinations(rule);
        let protocols = reader.protocols(rule);
        if !destinations.is_empty() && !protocols.is_empty() {
            out.ports.push(PortRule {
                // A message holds far fewer.
                number: u32::try_from(index).unwrap_or(u32::MAX),
                sources: sources.clone(),
                protocols,
                destinations,
            });
        }
        let grants: Vec<(IpNet, CapMap)> = rule
            .cap_grant
            .iter()
            .flat_map(|grant| {
                let mut map = grant.cap_map.clone();
                for name in &grant.caps {
                    map.0.entry(name.clone()).or_default();
                }
                grant.dsts.iter().map(move |dst| (dst.trunc(), map.clone()))
            })
            .collect();
        if !grants.is_empty() {
            out.grants.push(GrantRule { sources, grants });
        }
    }
    (out, problems)
}

/// The source ranges of one rule without its `cap:` entries; unreadable
/// entries are left out.
pub(crate) fn source_ranges(rule: &FilterRule) -> impl Iterator<Item = AddressRange> + '_ {
    rule.src_ips
        .iter()
        .filter_map(|entry| parse_addresses(entry).ok())
        .flatten()
}

struct Reader<'a> {
    rule: usize,
    problems: &'a mut Vec<RuleProblem>,
}

impl Reader<'_> {
    fn problem(
        &self,
        field: Field,
        entry: impl fmt::Display,
        problem: EntryProblem,
    ) -> RuleProblem {
        RuleProblem {
            rule: self.rule,
            field,
            entry: entry.to_string(),
            problem,
        }
    }

    fn retired(&self, rule: &FilterRule) -> Option<RuleProblem> {
        if let Some(bits) = rule.src_bits.first() {
            return Some(self.problem(Field::SrcBits, bits, EntryProblem::Retired));
        }
        let with_bits = rule.dst_ports.iter().find(|dst| dst.bits.is_some())?;
        Some(self.problem(Field::DstPorts, &with_bits.ip, EntryProblem::Retired))
    }

    fn sources(&mut self, rule: &FilterRule, holders: &CapabilityHolders) -> AddressSet {
        let mut ranges = Vec::new();
        for entry in &rule.src_ips {
            if let Some(name) = entry.strip_prefix("cap:") {
                if name.is_empty() {
                    let problem = self.problem(Field::SrcIps, entry, EntryProblem::Capability);
                    self.problems.push(problem);
                }
                let nets = holders.0.get(name).into_iter().flatten();
                ranges.extend(nets.map(|net| AddressRange::from(*net)));
                continue;
            }
            match parse_addresses(entry) {
                Ok(found) => ranges.extend(found),
                Err(problem) => {
                    let problem = self.problem(Field::SrcIps, entry, problem);
                    self.problems.push(problem);
                }
            }
        }
        AddressSet::new(ranges)
    }

    fn destinations(&mut self, rule: &FilterRule) -> Vec<Destination> {
        let mut out = Vec::new();
        for entry in &rule.dst_ports {
            let ports = (entry.ports.first, entry.ports.last);
            let found = if ports.0 > ports.1 {
                Err(EntryProblem::Ports)
            } else if entry.ip.starts_with("cap:") {
                Err(EntryProblem::Capability)
            } else {
                parse_addresses(&entry.ip)
            };
            match found {
                Ok(ranges) => {
                    out.extend(ranges.into_iter().map(|range| Destination { range, ports }))
                }
                Err(problem) => {
                    let problem = self.problem(Field::DstPorts, &entry.ip, problem);
                    self.problems.push(problem);
                }
            }
        }
        out
    }

    fn protocols(&mut self, rule: &FilterRule) -> ProtocolSet {
        let mut set = ProtocolSet::default();
        if rule.ip_proto.is_empty() {
            for protocol in DEFAULT_PROTOCOLS {
                set.insert(protocol.0);
            }
        }
        for number in &rule.ip_proto {
            match u8::try_from(*number) {
                Ok(number) => set.insert(number),
                Err(_) => {
                    let problem = self.problem(Field::IpProto, number, EntryProblem::Protocol);
                    self.problems.push(problem);
                }
            }
        }
        set
    }
}

/// Reads `*`, an address, a prefix or a range `a-b`.
fn parse_addresses(entry: &str) -> Result<Vec<AddressRange>, EntryProblem> {
    if entry == "*" {
        return Ok(AddressRange::ALL.to_vec());
    }
    if let Ok(address) = entry.parse::<IpAddr>() {
        return Ok(vec![AddressRange::single(address)]);
    }
    if entry.contains('/') {
        let net: IpNet = entry.parse().map_err(|_| EntryProblem::Unreadable)?;
        if net.trunc() != net {
            return Err(EntryProblem::HostBits);
        }
        return Ok(vec![net.into()]);
    }
    let (from, to) = entry.split_once('-').ok_or(EntryProblem::Unreadable)?;
    let from = from.parse().map_err(|_| EntryProblem::Unreadable)?;
    let to = to.parse().map_err(|_| EntryProblem::Unreadable)?;
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) if from <= to => Ok(vec![AddressRange::v4(from, to)]),
        (IpAddr::V6(from), IpAddr::V6(to)) if from <= to => Ok(vec![AddressRange::v6(from, to)]),
        _ => Err(EntryProblem::Range),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use warren_control_types::{NetPortRange, PortRange};

    #[test]
    fn every_form_of_an_entry() {
        for (entry, expected) in [
            ("*", Ok(2)),
            ("100.64.0.1", Ok(1)),
            ("fd7a::1", Ok(1)),
            ("10.0.0.0/8", Ok(1)),
            ("10.0.0.1/8", Err(EntryProblem::HostBits)),
            ("::/0", Ok(1)),
            ("10.0.0.1-10.0.0.9", Ok(1)),
            ("10.0.0.9-10.0.0.1", Err(EntryProblem::Range)),
            ("10.0.0.9-::1", Err(EntryProblem::Range)),
            ("", Err(EntryProblem::Unreadable)),
            ("10.0.0.0/33", Err(EntryProblem::Unreadable)),
            ("example", Err(EntryProblem::Unreadable)),
        ] {
            assert_eq!(parse_addresses(entry).map(|r| r.len()), expected, "{entry}");
        }
    }

    #[test]
    fn a_bad_entry_costs_only_itself() {
        let rule = FilterRule {
            src_ips: vec!["10.0.0.1".into(), "nonsense".into()],
            dst_ports: vec![
                NetPortRange {
                    ip: "*".into(),
                    ports: PortRange::ANY,
                    ..Default::default()
                },
                NetPortRange {
                    ip: "cap:x".into(),
                    ports: PortRange::ANY,
                    ..Default::default()
                },
            ],
            ip_proto: vec![6, 300],
            ..Default::default()
        };
        let (rules, problems) = read(&[rule], &CapabilityHolders::new());
        assert_eq!(rules.ports.len(), 1);
        let fields: Vec<Field> = problems.iter().map(|p| p.field).collect();
        assert_eq!(fields, [Field::SrcIps, Field::DstPorts, Field::IpProto]);
        assert_eq!(
            problems[0].to_string(),
            "rule 0: SrcIPs entry \"nonsense\" is not an address, a prefix, a range or *"
        );
    }

    #[test]
    fn retired_fields_refuse_everything() {
        let good = FilterRule {
            src_ips: vec!["*".into()],
            dst_ports: vec![NetPortRange {
                ip: "*".into(),
                ports: PortRange::ANY,
                ..Default::default()
            }],
            ..Default::default()
        };
        let mut src_bits = good.clone();
        src_bits.src_bits = vec![8];
        let mut bits = good.clone();
        bits.dst_ports[0].bits = Some(8);
        for bad in [src_bits, bits] {
            let (rules, problems) = read(&[good.clone(), bad], &CapabilityHolders::new());
            assert!(rules.ports.is_empty());
            assert_eq!(problems.len(), 1);
            assert_eq!(problems[0].problem, EntryProblem::Retired);
        }
    }
}

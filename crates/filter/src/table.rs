//! Rules of one family, arranged so that a packet costs two binary searches.
//!
//! Every source address belongs to a class: the set of rules that have it as
//! a source. Every class has a table of destinations: which ports and
//! protocols its rules open there. Classes and openings that are equal are
//! stored once, so allow-all is one class with one opening.
//!
//! Rules that overlap by the thousand could make these tables larger than
//! they are worth; then, and only then, the rules are kept as a list and
//! walked.

use std::collections::HashMap;

use warren_wire::ip::Protocol;

use crate::ranges::{Budget, IntervalTable, Key, RangeSet, cover};
use crate::rules::ProtocolSet;

/// A rule of one family.
#[derive(Debug, Clone)]
pub(crate) struct FamilyRule<K> {
    pub(crate) sources: RangeSet<K>,
    pub(crate) protocols: ProtocolSet,
    /// First address, last address, ports.
    pub(crate) destinations: Vec<(K, K, (u16, u16))>,
}

/// What is asked of the rules.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Query {
    /// A protocol with ports, to this port.
    Port(Protocol, u16),
    /// A protocol without ports: needs a rule for it with every port.
    Whole(Protocol),
    /// Anything at all: what a ping asks.
    Anything,
}

const ALL_PORTS: (u16, u16) = (0, u16::MAX);

/// Elementary intervals times covering items that a table may cost to build.
const BUDGET: usize = 1 << 22;

/// What is open at a destination. Equal ones are stored once.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct Opening {
    /// Sorted port ranges that do not overlap, for the protocols with ports.
    tcp: Box<[(u16, u16)]>,
    udp: Box<[(u16, u16)]>,
    sctp: Box<[(u16, u16)]>,
    /// Protocols with a rule for every port.
    whole: ProtocolSet,
}

impl Opening {
    fn new(parts: &[(ProtocolSet, (u16, u16))]) -> Self {
        let ports = |protocol| {
            let ranges = parts
                .iter()
                .filter(|(protocols, _)| protocols.contains(protocol))
                .map(|(_, (from, to))| (u32::from(*from), u32::from(*to)))
                .collect();
            let set: RangeSet<u32> = RangeSet::new(ranges);
            set.ranges()
                .iter()
                // Built from u16 above; joined ranges end where one of them did.
                .map(|(from, to)| (*from as u16, *to as u16))
                .collect()
        };
        let mut whole = ProtocolSet::default();
        for (protocols, _) in parts.iter().filter(|(_, ports)| *ports == ALL_PORTS) {
            whole.extend(protocols);
        }
        Self {
            tcp: ports(Protocol::TCP),
            udp: ports(Protocol::UDP),
            sctp: ports(Protocol::SCTP),
            whole,
        }
    }

    fn allows(&self, query: Query) -> bool {
        let ranges = match query {
            Query::Anything => return true,
            Query::Whole(protocol) => return self.whole.contains(protocol),
            Query::Port(Protocol::TCP, _) => &self.tcp,
            Query::Port(Protocol::UDP, _) => &self.udp,
            Query::Port(Protocol::SCTP, _) => &self.sctp,
            Query::Port(_, _) => return false,
        };
        let Query::Port(_, port) = query else {
            return false;
        };
        let behind = ranges.partition_point(|(from, _)| *from <= port);
        behind
            .checked_sub(1)
            .and_then(|at| ranges.get(at))
            .is_some_and(|(_, to)| port <= *to)
    }
}

/// The rules of one family.
#[derive(Debug, Clone)]
pub(crate) enum Table<K> {
    /// No rule: nothing matches.
    Empty,
    /// Two binary searches.
    Indexed {
        /// Source to class; 0 is "no rule".
        classes: IntervalTable<K>,
        /// Class to destinations; destination to opening, 0 is "nothing".
        destinations: Box<[IntervalTable<K>]>,
        openings: Box<[Opening]>,
    },
    /// Too many overlaps for an index.
    List(Vec<FamilyRule<K>>),
}

impl<K: Key> Table<K> {
    pub(crate) fn new(mut rules: Vec<FamilyRule<K>>) -> Self {
        rules.retain(|rule| !rule.sources.is_empty() && !rule.destinations.is_empty());
        if rules.is_empty() {
            return Self::Empty;
        }
        Self::index(&rules, &mut Budget(BUDGET)).unwrap_or(Self::List(rules))
    }

    fn index(rules: &[FamilyRule<K>], budget: &mut Budget) -> Option<Self> {
        let sources = (0u32..).zip(rules).flat_map(|(number, rule)| {
            let ranges = rule.sources.ranges().iter();
            ranges.map(move |(from, to)| (*from, *to, number))
        });
        let (classes, members) = cover(sources, budget)?;

        let mut openings = vec![Opening::default()];
        let mut numbers: HashMap<Opening, u32> = HashMap::new();
        let mut destinations = Vec::with_capacity(members.len());
        for class in &members {
            let mut parts = Vec::new();
            let mut spans = Vec::new();
            for rule in class
                .iter()
                .filter_map(|number| rules.get(*number as usize))
            {
                for &(from, to, ports) in &rule.destinations {
                    spans.push((from, to, u32::try_from(parts.len()).ok()?));
                    parts.push((rule.protocols, ports));
                }
            }
            let (mut table, sets) = cover(spans, budget)?;
            let mut translated = Vec::with_capacity(sets.len());
            for set in &sets {
                if set.is_empty() {
                    translated.push(0);
                    continue;
                }
                let chosen: Vec<_> = set
                    .iter()
                    .filter_map(|part| parts.get(*part as usize).copied())
                    .collect();
                let opening = Opening::new(&chosen);
                let next = u32::try_from(openings.len()).ok()?;
                let number = *numbers.entry(opening).or_insert_with_key(|opening| {
                    openings.push(opening.clone());
                    next
                });
                translated.push(number);
            }
            table.translate(&translated);
            destinations.push(table);
        }
        Some(Self::Indexed {
            classes,
            destinations: destinations.into(),
            openings: openings.into(),
        })
    }

    /// Whether a rule allows what is asked from `src` to `dst`.
    pub(crate) fn allows(&self, src: K, dst: K, query: Query) -> bool {
        match self {
            Self::Empty => false,
            Self::Indexed {
                classes,
                destinations,
                openings,
            } => destinations
                .get(classes.get(src) as usize)
                .map(|table| table.get(dst) as usize)
                .filter(|opening| *opening != 0)
                .and_then(|opening| openings.get(opening))
                .is_some_and(|opening| opening.allows(query)),
            Self::List(rules) => rules.iter().any(|rule| rule.allows(src, dst, query)),
        }
    }
}

impl<K: Key> FamilyRule<K> {
    fn allows(&self, src: K, dst: K, query: Query) -> bool {
        let ports_match = |ports: (u16, u16)| match query {
            Query::Anything => true,
            Query::Whole(protocol) => self.protocols.contains(protocol) && ports == ALL_PORTS,
            Query::Port(protocol, port) => {
                self.protocols.contains(protocol) && ports.0 <= port && port <= ports.1
            }
        };
        self.sources.contains(src)
            && self
                .destinations
                .iter()
                .any(|&(from, to, ports)| from <= dst && dst <= to && ports_match(ports))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use proptest::prelude::*;

    fn rule() -> impl Strategy<Value = FamilyRule<u32>> {
        let range = (0u32..12, 0u32..6).prop_map(|(from, len)| (from, from + len));
        let ports = prop_oneof![
            Just(ALL_PORTS),
            (0u16..6, 0u16..4).prop_map(|(from, len)| (from, from + len)),
            Just((u16::MAX - 1, u16::MAX)),
        ];
        let protocol = prop_oneof![Just(6u8), Just(17), Just(132), Just(1), Just(47)];
        (
            proptest::collection::vec(range.clone(), 0..3),
            proptest::collection::vec(protocol, 1..3),
            proptest::collection::vec((range, ports), 0..3),
        )
            .prop_map(|(sources, protocols, destinations)| {
                let mut set = ProtocolSet::default();
                protocols.into_iter().for_each(|p| set.insert(p));
                FamilyRule {
                    sources: RangeSet::new(sources),
                    protocols: set,
                    destinations: destinations
                        .into_iter()
                        .map(|((from, to), ports)| (from, to, ports))
                        .collect(),
                }
            })
    }

    proptest! {
        #[test]
        fn the_index_answers_as_the_list(rules in proptest::collection::vec(rule(), 1..6)) {
            let index = Table::index(&rules, &mut Budget(BUDGET)).unwrap();
            let list = Table::List(rules);
            for src in 0..18 {
                for dst in 0..18 {
                    let mut queries = vec![Query::Anything, Query::Whole(Protocol(47)), Query::Whole(Protocol(1))];
                    for protocol in [Protocol::TCP, Protocol::UDP, Protocol::SCTP] {
                        queries.extend([0, 3, 7, 80, u16::MAX].map(|p| Query::Port(protocol, p)));
                    }
                    for query in queries {
                        prop_assert_eq!(
                            index.allows(src, dst, query),
                            list.allows(src, dst, query),
                            "{} {} {:?}", src, dst, query
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn overlaps_beyond_the_budget_fall_back_to_the_list() {
        let rules: Vec<FamilyRule<u32>> = (0..3000)
            .map(|n| FamilyRule {
                sources: RangeSet::new(vec![(n, u32::MAX - n)]),
                protocols: ProtocolSet::default(),
                destinations: vec![(n, u32::MAX - n, ALL_PORTS)],
            })
            .collect();
        let table = Table::new(rules);
        assert!(matches!(table, Table::List(_)));
        assert!(table.allows(5, 5, Query::Anything));
    }
}

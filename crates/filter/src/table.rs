//! Rules of one family, arranged so that a packet costs three binary searches
//! and an intersection, however many rules there are.
//!
//! A rule is taken apart into *blocks*: products of a set of sources, a set of
//! destinations, a set of ports and a set of protocols. (A rule that lists
//! every address with the same ports is one block.) Three indexes give the blocks
//! that have a source, a destination, a port; a block that is in all three
//! sets matches, and since blocks are numbered in the order of the rules, the
//! smallest is the first rule that matches: the one that is counted and named.
//!
//! Memory: ten thousand rules for single hosts take a few hundred kilobytes.
//! Rules that overlap by the thousand would make the sets grow with the square
//! of their number; beyond [`LIMIT`] neighbouring cells of an index are joined,
//! and what it names is then checked against the block itself.

use std::collections::BTreeMap;

use warren_wire::ip::Protocol;

use crate::bits::{Interner, NONE, Sets};
use crate::ranges::{Index, Key, RangeSet};
use crate::rules::ProtocolSet;

/// A rule of one family.
#[derive(Debug, Clone)]
pub(crate) struct FamilyRule<K> {
    /// Its place in the list that control sent.
    pub(crate) number: u32,
    pub(crate) sources: RangeSet<K>,
    pub(crate) protocols: ProtocolSet,
    /// First address, last address, ports.
    pub(crate) destinations: Vec<(K, K, (u16, u16))>,
}

/// A question to the rules.
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

/// Bytes of sets that one index may add before it is made coarser.
const LIMIT: usize = 16 << 20;

/// The protocols with ports, in the order of [`Table::ports`].
const WITH_PORTS: [Protocol; 3] = [Protocol::TCP, Protocol::UDP, Protocol::SCTP];

/// A product of sources, destinations, ports and protocols.
#[derive(Debug, Clone)]
struct Block<K> {
    rule: u32,
    /// Which of [`Blocks::sources`].
    sources: u32,
    destinations: RangeSet<K>,
    ports: RangeSet<u16>,
    /// Whether the rule names all ports in one entry, as protocols without
    /// ports need it.
    whole: bool,
    protocols: ProtocolSet,
}

/// The blocks themselves, with the sources that several may share.
#[derive(Debug, Clone)]
struct Blocks<K> {
    blocks: Vec<Block<K>>,
    sources: Vec<RangeSet<K>>,
}

/// The rules of one family.
#[derive(Debug, Clone)]
pub(crate) struct Table<K> {
    sets: Sets,
    by_source: Index<K>,
    by_destination: Index<K>,
    /// By [`WITH_PORTS`].
    ports: [Index<u16>; 3],
    /// Blocks with every port, by protocol; sorted.
    whole: Box<[(u8, u32)]>,
    /// The rule of each block.
    rules: Box<[u32]>,
    /// Kept only where an index was joined.
    check: Option<Box<Blocks<K>>>,
}

impl<K: Key> Table<K> {
    pub(crate) fn new(rules: Vec<FamilyRule<K>>) -> Self {
        Self::with_limit(rules, LIMIT)
    }

    fn with_limit(rules: Vec<FamilyRule<K>>, limit: usize) -> Self {
        let (mut blocks, mut sources) = (Vec::new(), Vec::new());
        for rule in rules {
            if rule.sources.is_empty() {
                continue;
            }
            // Rules beyond four thousand million do not fit into a message.
            let place = sources.len() as u32;
            let before = blocks.len();
            blocks.extend(split(&rule, place));
            if blocks.len() > before {
                sources.push(rule.sources);
            }
        }
        let numbered = || (0u32..).zip(&blocks);
        let mut interner = Interner::new(blocks.len());
        let no_sources = RangeSet::default();
        let by_source = Index::new(
            numbered().flat_map(|(number, block)| {
                let set = sources.get(block.sources as usize).unwrap_or(&no_sources);
                set.ranges()
                    .iter()
                    .map(move |(from, to)| (*from, *to, number))
            }),
            &mut interner,
            limit,
        );
        let by_destination = Index::new(
            numbered().flat_map(|(number, block)| {
                let ranges = block.destinations.ranges().iter();
                ranges.map(move |(from, to)| (*from, *to, number))
            }),
            &mut interner,
            limit,
        );
        let ports = WITH_PORTS.map(|protocol| {
            let spans = numbered()
                .filter(|(_, block)| block.protocols.contains(protocol))
                .flat_map(|(number, block)| {
                    let ranges = block.ports.ranges().iter();
                    ranges.map(move |(from, to)| (*from, *to, number))
                });
            Index::new(spans, &mut interner, limit)
        });
        let mut without_ports = ProtocolSet::default();
        let of_every_port = blocks.iter().filter(|block| block.whole);
        of_every_port.for_each(|block| without_ports.extend(&block.protocols));
        let mut whole = Vec::new();
        for protocol in (0..=u8::MAX).filter(|number| without_ports.contains(Protocol(*number))) {
            let mut set = interner.sweep();
            numbered()
                .filter(|(_, block)| block.whole && block.protocols.contains(Protocol(protocol)))
                .for_each(|(number, _)| set.insert(number));
            let number = interner.number(&set);
            if number != NONE {
                whole.push((protocol, number));
            }
        }
        let exact =
            by_source.is_exact() && by_destination.is_exact() && ports.iter().all(Index::is_exact);
        Self {
            sets: interner.finish(),
            by_source,
            by_destination,
            ports,
            whole: whole.into(),
            rules: blocks.iter().map(|block| block.rule).collect(),
            check: (!exact).then(|| Box::new(Blocks { blocks, sources })),
        }
    }

    /// The first rule that allows what is asked from `src` to `dst`.
    #[inline]
    pub(crate) fn find(&self, src: K, dst: K, query: Query) -> Option<u32> {
        let sources = self.by_source.get(src);
        if sources == NONE {
            return None;
        }
        let destinations = self.by_destination.get(dst);
        let third = match query {
            Query::Anything => None,
            Query::Whole(protocol) => {
                let at = self
                    .whole
                    .binary_search_by_key(&protocol.0, |(number, _)| *number);
                Some(self.whole.get(at.ok()?)?.1)
            }
            Query::Port(protocol, port) => {
                let at = WITH_PORTS.iter().position(|known| *known == protocol)?;
                Some(self.ports.get(at)?.get(port))
            }
        };
        let fits = |block| {
            let check = self.check.as_ref();
            check.is_none_or(|check| check.fits(block, src, dst, query))
        };
        let block = self.sets.first_common(sources, destinations, third, fits)?;
        self.rules.get(block as usize).copied()
    }

    /// About how many bytes of memory the table takes.
    pub(crate) fn bytes(&self) -> usize {
        let indexes = self.by_source.bytes() + self.by_destination.bytes();
        let ports: usize = self.ports.iter().map(Index::bytes).sum();
        let check = self.check.as_ref().map_or(0, |check| check.bytes());
        indexes + ports + self.sets.bytes() + size_of_val(&*self.rules) + check
    }
}

impl<K: Key> Blocks<K> {
    /// Looks at a block itself.
    fn fits(&self, block: u32, src: K, dst: K, query: Query) -> bool {
        let Some(block) = self.blocks.get(block as usize) else {
            return false;
        };
        let port_fits = match query {
            // Those sets are never joined.
            Query::Anything | Query::Whole(_) => true,
            Query::Port(_, port) => block.ports.contains(port),
        };
        port_fits
            && block.destinations.contains(dst)
            && self
                .sources
                .get(block.sources as usize)
                .is_some_and(|sources| sources.contains(src))
    }

    fn bytes(&self) -> usize {
        let ranges = |set: &RangeSet<K>| size_of_val(set.ranges());
        let blocks = self.blocks.iter().map(|block| {
            size_of_val(block) + ranges(&block.destinations) + size_of_val(block.ports.ranges())
        });
        let sources = self
            .sources
            .iter()
            .map(|set| size_of_val(set) + ranges(set));
        blocks.sum::<usize>() + sources.sum::<usize>()
    }
}

/// The blocks of a rule: destinations with the same ports together.
fn split<K: Key>(rule: &FamilyRule<K>, sources: u32) -> Vec<Block<K>> {
    let mut by_range: BTreeMap<(K, K), Vec<(u16, u16)>> = BTreeMap::new();
    for &(from, to, ports) in &rule.destinations {
        by_range.entry((from, to)).or_default().push(ports);
    }
    // By whether one entry names every port, and by ports.
    let mut by_ports = BTreeMap::<(bool, RangeSet<u16>), Vec<(K, K)>>::new();
    for (range, ports) in by_range {
        let whole = ports.contains(&ALL_PORTS);
        let key = (whole, RangeSet::new(ports));
        by_ports.entry(key).or_default().push(range);
    }
    let blocks = by_ports.into_iter().map(|((whole, ports), ranges)| Block {
        rule: rule.number,
        sources,
        destinations: RangeSet::new(ranges),
        ports,
        whole,
        protocols: rule.protocols,
    });
    blocks.collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use proptest::prelude::*;

    /// The first rule that matches, by asking one after the other.
    fn walk<K: Key>(rules: &[FamilyRule<K>], src: K, dst: K, query: Query) -> Option<u32> {
        let matching = rules.iter().find(|rule| {
            let ports_match = |ports: (u16, u16)| match query {
                Query::Anything => true,
                Query::Whole(protocol) => rule.protocols.contains(protocol) && ports == ALL_PORTS,
                Query::Port(protocol, port) => {
                    rule.protocols.contains(protocol) && ports.0 <= port && port <= ports.1
                }
            };
            rule.sources.contains(src)
                && rule
                    .destinations
                    .iter()
                    .any(|&(from, to, ports)| from <= dst && dst <= to && ports_match(ports))
        });
        matching.map(|rule| rule.number)
    }

    fn rules() -> impl Strategy<Value = Vec<FamilyRule<u32>>> {
        let range = (0u32..12, 0u32..6).prop_map(|(from, len)| (from, from + len));
        let ports = prop_oneof![
            Just(ALL_PORTS),
            (0u16..6, 0u16..4).prop_map(|(from, len)| (from, from + len)),
            Just((u16::MAX - 1, u16::MAX)),
            Just((0, 99)),
            Just((100, u16::MAX)),
        ];
        let protocol = prop_oneof![Just(6u8), Just(17), Just(132), Just(1), Just(47)];
        let rule = (
            proptest::collection::vec(range.clone(), 0..3),
            proptest::collection::vec(protocol, 1..3),
            proptest::collection::vec((range, ports), 0..4),
        );
        proptest::collection::vec(rule, 0..40).prop_map(|rules| {
            let rules = (0u32..).zip(rules);
            rules
                .map(|(number, (sources, protocols, destinations))| {
                    let mut set = ProtocolSet::default();
                    protocols.into_iter().for_each(|p| set.insert(p));
                    FamilyRule {
                        // Rules in between do not open ports.
                        number: number * 2,
                        sources: RangeSet::new(sources),
                        protocols: set,
                        destinations: destinations
                            .into_iter()
                            .map(|((from, to), ports)| (from, to, ports))
                            .collect(),
                    }
                })
                .collect()
        })
    }

    proptest! {
        #[test]
        fn the_index_answers_as_the_list_however_little_room_it_has(
            rules in rules(), limit in prop_oneof![Just(0), 1usize..2000, Just(LIMIT)],
        ) {
            let table = Table::with_limit(rules.clone(), limit);
            for src in 0..18 {
                for dst in 0..18 {
                    let mut queries = vec![
                        Query::Anything,
                        Query::Whole(Protocol(47)),
                        Query::Whole(Protocol(1)),
                    ];
                    for protocol in WITH_PORTS {
                        queries.extend([0, 3, 7, 80, u16::MAX].map(|p| Query::Port(protocol, p)));
                    }
                    for query in queries {
                        prop_assert_eq!(
                            table.find(src, dst, query),
                            walk(&rules, src, dst, query),
                            "{} {} {:?}", src, dst, query
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn nested_rules_take_bounded_memory() {
        let rules: Vec<FamilyRule<u32>> = (0..3000)
            .map(|n| {
                let mut protocols = ProtocolSet::default();
                protocols.insert(6);
                FamilyRule {
                    number: n,
                    sources: RangeSet::new(vec![(n, u32::MAX - n)]),
                    protocols,
                    destinations: vec![(n, u32::MAX - n, (n as u16, 9999))],
                }
            })
            .collect();
        let limit = 64 << 10;
        let table = Table::with_limit(rules.clone(), limit);
        let input: usize = rules.len() * (size_of::<Block<u32>>() + 64);
        assert!(table.bytes() < input + 6 * limit, "{}", table.bytes());
        for (src, dst, port) in [
            (5, 5, 9),
            (0, 9, 2),
            (2999, 2999, 2999),
            (7, 2, 1),
            (2998, 1, 0),
        ] {
            let query = Query::Port(Protocol::TCP, port);
            assert_eq!(table.find(src, dst, query), walk(&rules, src, dst, query));
        }
    }
}

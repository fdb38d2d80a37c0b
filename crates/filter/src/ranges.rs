//! Sets of addresses as sorted ranges, and indexes that map an address (or a
//! port) to what covers it with one binary search.
//!
//! Both are built once, when a filter is compiled, and only read afterwards.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use rustc_hash::FxHashMap;

use crate::bits::{Interner, NONE, Pending};

/// An address of one family, or a port, as a number, so that ranges are plain intervals.
pub(crate) trait Key: Copy + Ord + std::hash::Hash + std::fmt::Debug {
    /// The next address; `None` behind the last one.
    fn next(self) -> Option<Self>;
    /// The address before; `None` in front of the first one.
    fn previous(self) -> Option<Self>;
}

impl Key for u32 {
    fn next(self) -> Option<Self> {
        self.checked_add(1)
    }
    fn previous(self) -> Option<Self> {
        self.checked_sub(1)
    }
}

impl Key for u16 {
    fn next(self) -> Option<Self> {
        self.checked_add(1)
    }
    fn previous(self) -> Option<Self> {
        self.checked_sub(1)
    }
}

impl Key for u128 {
    fn next(self) -> Option<Self> {
        self.checked_add(1)
    }
    fn previous(self) -> Option<Self> {
        self.checked_sub(1)
    }
}

/// A range of addresses of one family, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AddressRange {
    V4(u32, u32),
    V6(u128, u128),
}

impl AddressRange {
    pub(crate) const ALL: [Self; 2] = [Self::V4(0, u32::MAX), Self::V6(0, u128::MAX)];

    pub(crate) fn single(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(a) => Self::V4(a.to_bits(), a.to_bits()),
            IpAddr::V6(a) => Self::V6(a.to_bits(), a.to_bits()),
        }
    }

    pub(crate) fn v4(from: Ipv4Addr, to: Ipv4Addr) -> Self {
        Self::V4(from.to_bits(), to.to_bits())
    }

    pub(crate) fn v6(from: Ipv6Addr, to: Ipv6Addr) -> Self {
        Self::V6(from.to_bits(), to.to_bits())
    }
}

impl From<IpNet> for AddressRange {
    fn from(net: IpNet) -> Self {
        match net {
            IpNet::V4(net) => Self::v4(net.network(), net.broadcast()),
            IpNet::V6(net) => Self::v6(net.network(), net.broadcast()),
        }
    }
}

/// A set of addresses of one family: sorted ranges that neither overlap nor
/// touch.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct RangeSet<K>(Vec<(K, K)>);

impl<K> Default for RangeSet<K> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<K: Key> RangeSet<K> {
    pub(crate) fn new(mut ranges: Vec<(K, K)>) -> Self {
        ranges.retain(|(from, to)| from <= to);
        ranges.sort_unstable();
        let mut out: Vec<(K, K)> = Vec::with_capacity(ranges.len());
        for (from, to) in ranges {
            match out.last_mut() {
                // Overlaps or touches the range before.
                Some(last) if last.1.next().is_none_or(|next| from <= next) => {
                    last.1 = last.1.max(to);
                }
                _ => out.push((from, to)),
            }
        }
        Self(out)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn ranges(&self) -> &[(K, K)] {
        &self.0
    }

    pub(crate) fn contains(&self, key: K) -> bool {
        let behind = self.0.partition_point(|(from, _)| *from <= key);
        behind
            .checked_sub(1)
            .and_then(|at| self.0.get(at))
            .is_some_and(|(_, to)| key <= *to)
    }

    pub(crate) fn overlaps(&self, from: K, to: K) -> bool {
        let behind = self.0.partition_point(|(start, _)| *start <= to);
        behind
            .checked_sub(1)
            .and_then(|at| self.0.get(at))
            .is_some_and(|(_, end)| from <= *end)
    }

    pub(crate) fn union(mut self, other: &Self) -> Self {
        self.0.extend_from_slice(&other.0);
        Self::new(self.0)
    }

    pub(crate) fn subtract(&self, other: &Self) -> Self {
        let mut out = Vec::new();
        for &(from, to) in &self.0 {
            let mut start = Some(from);
            for &(cut_from, cut_to) in &other.0 {
                let Some(at) = start else { break };
                if cut_to < at || cut_from > to {
                    continue;
                }
                if let Some(end) = cut_from.previous().filter(|end| at <= *end) {
                    out.push((at, end));
                }
                start = cut_to.next();
            }
            if let Some(at) = start.filter(|at| *at <= to) {
                out.push((at, to));
            }
        }
        Self::new(out)
    }
}

/// Sets of both families.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct AddressSet {
    pub(crate) v4: RangeSet<u32>,
    pub(crate) v6: RangeSet<u128>,
}

impl AddressSet {
    pub(crate) fn new(ranges: impl IntoIterator<Item = AddressRange>) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for range in ranges {
            match range {
                AddressRange::V4(from, to) => v4.push((from, to)),
                AddressRange::V6(from, to) => v6.push((from, to)),
            }
        }
        Self {
            v4: RangeSet::new(v4),
            v6: RangeSet::new(v6),
        }
    }

    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(a) => self.v4.contains(a.to_bits()),
            IpAddr::V6(a) => self.v6.contains(a.to_bits()),
        }
    }

    pub(crate) fn overlaps(&self, range: AddressRange) -> bool {
        match range {
            AddressRange::V4(from, to) => self.v4.overlaps(from, to),
            AddressRange::V6(from, to) => self.v6.overlaps(from, to),
        }
    }

    pub(crate) fn union(self, other: &Self) -> Self {
        Self {
            v4: self.v4.union(&other.v4),
            v6: self.v6.union(&other.v6),
        }
    }

    pub(crate) fn subtract(&self, other: &Self) -> Self {
        Self {
            v4: self.v4.subtract(&other.v4),
            v6: self.v6.subtract(&other.v6),
        }
    }
}

/// Maps every key to the set of what covers it. Keys are in cells, which have
/// the number of a set each. Nearly all cells are single addresses: where there
/// are many they are found by hash, the wider ones by binary search.
#[derive(Debug, Clone)]
pub(crate) struct Index<K> {
    singles: FxHashMap<K, u32>,
    /// First keys of the other cells, sorted.
    starts: Box<[K]>,
    sets: Box<[u32]>,
    /// Whether every cell holds exactly what covers each of its keys. Otherwise
    /// neighbouring cells were joined to save memory, and a set may name more.
    exact: bool,
}

impl<K: Key> Index<K> {
    /// Builds the index over `items` (first key, last key, item). The ranges of
    /// one item neither overlap nor touch. The new sets take about `limit`
    /// bytes at most: overlaps by the thousand would otherwise grow tables
    /// with the square of the rules.
    pub(crate) fn new(
        items: impl IntoIterator<Item = (K, K, u32)>,
        interner: &mut Interner,
        limit: usize,
    ) -> Self {
        // (key, false = ended before it, item)
        let mut edges: Vec<(K, bool, u32)> = Vec::new();
        for (from, to, item) in items {
            edges.push((from, true, item));
            if let Some(behind) = to.next() {
                edges.push((behind, false, item));
            }
        }
        edges.sort_unstable();
        let mut joined = 1;
        loop {
            let mark = interner.mark();
            if let Some(index) = Self::sweep(&edges, interner, joined, limit) {
                return index;
            }
            interner.back_to(mark);
            joined *= 2;
        }
    }

    /// One try, with every `joined` cells made one. `None` when that needs more
    /// than `limit` bytes.
    fn sweep(
        edges: &[(K, bool, u32)],
        interner: &mut Interner,
        joined: usize,
        limit: usize,
    ) -> Option<Self> {
        let full = interner.bytes().saturating_add(limit);
        let mut active = interner.sweep();
        let mut ended = Pending::new();
        let (mut starts, mut sets) = (Vec::new(), Vec::new());
        let groups: Vec<&[(K, bool, u32)]> = edges.chunk_by(|a, b| a.0 == b.0).collect();
        for cell in groups.chunks(joined) {
            for item in std::mem::take(&mut ended) {
                active.remove(item);
            }
            for (i, group) in cell.iter().enumerate() {
                for &(_, begins, item) in *group {
                    if begins {
                        ended.remove(&item);
                        active.insert(item);
                    } else if i == 0 {
                        active.remove(item);
                    } else {
                        // It covers the first keys of this cell.
                        ended.insert(item);
                    }
                }
            }
            let Some(&(start, _, _)) = cell.first().and_then(|group| group.first()) else {
                continue;
            };
            let number = interner.number(&active);
            // A single cell has to be taken, whatever its size.
            if interner.bytes() > full && joined < groups.len() {
                return None;
            }
            if sets.last().copied().unwrap_or(NONE) != number {
                starts.push(start);
                sets.push(number);
            }
        }
        Some(Self::from_cells(&starts, &sets, joined == 1))
    }

    fn from_cells(starts: &[K], sets: &[u32], exact: bool) -> Self {
        /// Up to this many cells a binary search stays in one or two lines of
        /// the cache.
        const FEW_CELLS: usize = 32;
        let mut singles = FxHashMap::default();
        let (mut wide_starts, mut wide_sets) = (Vec::new(), Vec::new());
        let ends = starts.iter().skip(1).copied().map(Some).chain([None]);
        for ((start, set), behind) in starts.iter().zip(sets).zip(ends) {
            if starts.len() > FEW_CELLS && start.next() == behind {
                singles.insert(*start, *set);
            } else {
                wide_starts.push(*start);
                wide_sets.push(*set);
            }
        }
        singles.shrink_to_fit();
        Self {
            singles,
            starts: wide_starts.into(),
            sets: wide_sets.into(),
            exact,
        }
    }

    /// The number of the set at `key`.
    #[inline]
    pub(crate) fn get(&self, key: K) -> u32 {
        if !self.singles.is_empty()
            && let Some(set) = self.singles.get(&key)
        {
            return *set;
        }
        // The cells left out in between hold none of the keys that get here.
        let behind = self.starts.partition_point(|start| *start <= key);
        behind
            .checked_sub(1)
            .and_then(|at| self.sets.get(at))
            .copied()
            .unwrap_or(NONE)
    }

    /// Whether sets name exactly what covers a key.
    pub(crate) fn is_exact(&self) -> bool {
        self.exact
    }

    /// Bytes of memory, without the sets.
    pub(crate) fn bytes(&self) -> usize {
        let singles = self.singles.capacity() * (size_of::<(K, u32)>() + 1);
        singles + size_of_val(&*self.starts) + size_of_val(&*self.sets)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use proptest::prelude::*;

    fn ranges() -> impl Strategy<Value = Vec<(u32, u32)>> {
        let end = prop_oneof![0u32..40, Just(u32::MAX), Just(u32::MAX - 1)];
        proptest::collection::vec((end.clone(), end), 0..6)
    }

    fn probes() -> impl Iterator<Item = u32> {
        (0..45).chain([u32::MAX - 2, u32::MAX - 1, u32::MAX])
    }

    fn inside(ranges: &[(u32, u32)], key: u32) -> bool {
        ranges.iter().any(|(from, to)| *from <= key && key <= *to)
    }

    proptest! {
        #[test]
        fn sets_hold_what_was_put_in(a in ranges(), b in ranges()) {
            let (set_a, set_b) = (RangeSet::new(a.clone()), RangeSet::new(b.clone()));
            let union = set_a.clone().union(&set_b);
            let rest = set_a.subtract(&set_b);
            for key in probes() {
                let (in_a, in_b) = (inside(&a, key), inside(&b, key));
                prop_assert_eq!(set_a.contains(key), in_a);
                prop_assert_eq!(set_a.overlaps(key, key), in_a);
                prop_assert_eq!(union.contains(key), in_a || in_b);
                prop_assert_eq!(rest.contains(key), in_a && !in_b);
            }
            for window in set_a.ranges().windows(2) {
                prop_assert!(window[0].1 + 1 < window[1].0);
            }
        }

        #[test]
        fn an_index_tells_what_covers_and_when_tight_never_less(
            items in proptest::collection::vec(ranges(), 0..30), singles in 0u32..45,
            limit in 0usize..400,
        ) {
            // Beside the ranges a row of single keys, so that both ways of
            // finding a cell are walked.
            let mut items: Vec<RangeSet<u32>> = items.into_iter().map(RangeSet::new).collect();
            items.extend((0..singles).map(|n| RangeSet::new(vec![(n, n)])));
            let spans = || (0u32..).zip(&items).flat_map(|(number, set)| {
                set.ranges().iter().map(move |(from, to)| (*from, *to, number))
            });
            let mut interner = Interner::new(items.len());
            let exact = Index::new(spans(), &mut interner, usize::MAX);
            let tight = Index::new(spans(), &mut interner, limit);
            prop_assert!(exact.is_exact());
            let sets = interner.finish();
            for key in probes() {
                for (number, item) in (0u32..).zip(&items) {
                    let in_set = |set| sets.first_common(set, set, None, |m| m == number).is_some();
                    prop_assert_eq!(in_set(exact.get(key)), item.contains(key));
                    prop_assert!(in_set(tight.get(key)) || !item.contains(key));
                    if tight.is_exact() {
                        prop_assert_eq!(in_set(tight.get(key)), item.contains(key));
                    }
                }
            }
        }
    }
}

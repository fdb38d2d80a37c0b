//! Sets of addresses as sorted ranges, and tables that map an address to what
//! covers it with one binary search.
//!
//! Both are built once, when a filter is compiled, and only read afterwards.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// An address of one family as a number, so that ranges are plain intervals.
pub(crate) trait Key: Copy + Ord + std::fmt::Debug {
    const MIN: Self;
    /// The next address; `None` behind the last one.
    fn next(self) -> Option<Self>;
    /// The address before; `None` in front of the first one.
    fn previous(self) -> Option<Self>;
}

impl Key for u32 {
    const MIN: Self = 0;
    fn next(self) -> Option<Self> {
        self.checked_add(1)
    }
    fn previous(self) -> Option<Self> {
        self.checked_sub(1)
    }
}

impl Key for u128 {
    const MIN: Self = 0;
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
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct RangeSet<K>(Vec<(K, K)>);

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

/// Maps every address to a small number: which of several items cover it.
/// Elementary intervals, sorted by their first address; the first one starts
/// at zero.
#[derive(Debug, Clone)]
pub(crate) struct IntervalTable<K> {
    starts: Box<[K]>,
    values: Box<[u32]>,
}

impl<K: Key> IntervalTable<K> {
    /// The value at `key`.
    pub(crate) fn get(&self, key: K) -> u32 {
        let behind = self.starts.partition_point(|start| *start <= key);
        behind
            .checked_sub(1)
            .and_then(|at| self.values.get(at))
            .copied()
            .unwrap_or(0)
    }
}

impl<K> IntervalTable<K> {
    /// Replaces every value by the one that `numbers` has at its place.
    pub(crate) fn translate(&mut self, numbers: &[u32]) {
        for value in &mut self.values {
            *value = numbers.get(*value as usize).copied().unwrap_or(0);
        }
    }
}

/// Work that building may still spend, in covered items over all intervals.
/// Overlapping rules by the ten thousand would otherwise grow a table that is
/// larger than any gain from it.
#[derive(Debug)]
pub(crate) struct Budget(pub(crate) usize);

/// Builds a table whose values number the distinct sets of items; value 0 is
/// the empty set. `None` when the budget is spent.
pub(crate) fn cover<K: Key>(
    items: impl IntoIterator<Item = (K, K, u32)>,
    budget: &mut Budget,
) -> Option<(IntervalTable<K>, Vec<Vec<u32>>)> {
    // (address, false = ends before it, item)
    let mut edges: Vec<(K, bool, u32)> = Vec::new();
    for (from, to, item) in items {
        edges.push((from, true, item));
        if let Some(behind) = to.next() {
            edges.push((behind, false, item));
        }
    }
    edges.sort_unstable();

    let mut sets = vec![Vec::new()];
    let mut numbers: HashMap<Vec<u32>, u32> = HashMap::from([(Vec::new(), 0)]);
    let mut active = BTreeSet::new();
    let (mut starts, mut values) = (vec![K::MIN], vec![0u32]);
    for group in edges.chunk_by(|a, b| a.0 == b.0) {
        for &(_, begins, item) in group {
            if begins {
                active.insert(item);
            } else {
                active.remove(&item);
            }
        }
        let Some(&(at, _, _)) = group.first() else {
            continue;
        };
        budget.0 = budget.0.checked_sub(active.len())?;
        let set: Vec<u32> = active.iter().copied().collect();
        let number = match numbers.get(&set) {
            Some(number) => *number,
            None => {
                let number = u32::try_from(sets.len()).ok()?;
                sets.push(set.clone());
                numbers.insert(set, number);
                number
            }
        };
        if at == K::MIN {
            values = vec![number];
        } else if values.last() != Some(&number) {
            starts.push(at);
            values.push(number);
        }
    }
    let table = IntervalTable {
        starts: starts.into(),
        values: values.into(),
    };
    Some((table, sets))
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
        fn tables_tell_exactly_what_covers(a in ranges(), b in ranges()) {
            let (a, b) = (RangeSet::new(a), RangeSet::new(b));
            let items = a.ranges().iter().map(|(f, t)| (*f, *t, 0))
                .chain(b.ranges().iter().map(|(f, t)| (*f, *t, 1)));
            let (table, sets) = cover(items, &mut Budget(1000)).unwrap();
            for key in probes() {
                let set = &sets[table.get(key) as usize];
                prop_assert_eq!(set.contains(&0), a.contains(key));
                prop_assert_eq!(set.contains(&1), b.contains(key));
            }
        }
    }
}

//! A compact set of node ids. Ids are sparse and grow without bound, so the
//! bits are in chunks. Slots are dense, and the compiler asks for them
//! thousands of times per change; its own bits are one list of words. A single
//! chunked type for both was measured: a change of one node took 0.09 ms
//! instead of 0.06 ms.

use std::collections::BTreeMap;

use warren_control_types::NodeId;

const WORDS: usize = 8;
const PER_CHUNK: i64 = WORDS as i64 * 64;

/// An ordered set of nodes. Numbers that lie close together share a chunk of
/// bits, so that ten thousand nodes of ten thousand take about 1.5 kB.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeSet {
    /// No chunk is empty.
    chunks: BTreeMap<i64, [u64; WORDS]>,
}

/// The chunk of a node, and its word and bit there.
fn place(id: NodeId) -> (i64, usize, u64) {
    let within = id.0.rem_euclid(PER_CHUNK);
    // Below 512, by the line above.
    let within = usize::try_from(within).unwrap_or_default();
    (id.0.div_euclid(PER_CHUNK), within / 64, 1 << (within % 64))
}

impl NodeSet {
    /// The empty set.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether the node is in the set.
    #[must_use]
    pub fn contains(&self, id: NodeId) -> bool {
        let (chunk, word, bit) = place(id);
        let chunk = self.chunks.get(&chunk);
        chunk
            .and_then(|words| words.get(word))
            .is_some_and(|word| word & bit != 0)
    }

    /// Inserts a node; returns whether it was absent.
    pub fn insert(&mut self, id: NodeId) -> bool {
        let (chunk, word, bit) = place(id);
        let words = self.chunks.entry(chunk).or_default();
        words.get_mut(word).is_some_and(|word| {
            let new = *word & bit == 0;
            *word |= bit;
            new
        })
    }

    /// Removes a node; returns whether it was present.
    pub fn remove(&mut self, id: NodeId) -> bool {
        let (chunk, word, bit) = place(id);
        let Some(words) = self.chunks.get_mut(&chunk) else {
            return false;
        };
        let was = words.get_mut(word).is_some_and(|word| {
            let was = *word & bit != 0;
            *word &= !bit;
            was
        });
        if words.iter().all(|word| *word == 0) {
            self.chunks.remove(&chunk);
        }
        was
    }

    /// Whether the set is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// The number of nodes in the set.
    #[must_use]
    pub fn len(&self) -> usize {
        let words = self.chunks.values().flatten();
        words.map(|word| word.count_ones() as usize).sum()
    }

    /// The nodes, ascending.
    pub fn iter(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.chunks.iter().flat_map(|(chunk, words)| {
            words.iter().enumerate().flat_map(move |(at, word)| {
                let mut left = *word;
                std::iter::from_fn(move || {
                    let bit = i64::from(left.trailing_zeros());
                    left &= left.checked_sub(1)?;
                    Some(NodeId(chunk * PER_CHUNK + at as i64 * 64 + bit))
                })
            })
        })
    }

    /// The nodes of this set that are not in the other one, ascending.
    pub fn difference<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = NodeId> + 'a {
        self.iter().filter(|id| !other.contains(*id))
    }
}

impl Extend<NodeId> for NodeSet {
    fn extend<T: IntoIterator<Item = NodeId>>(&mut self, ids: T) {
        for id in ids {
            self.insert(id);
        }
    }
}

impl FromIterator<NodeId> for NodeSet {
    fn from_iter<T: IntoIterator<Item = NodeId>>(ids: T) -> Self {
        let mut out = Self::default();
        out.extend(ids);
        out
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn node_set_behaves_like_a_btree_set(steps: Vec<(i16, bool)>, probe: i16) {
            let (mut ours, mut plain) = (NodeSet::new(), BTreeSet::new());
            for (id, put) in steps {
                let id = NodeId(id.into());
                if put {
                    prop_assert_eq!(ours.insert(id), plain.insert(id));
                } else {
                    prop_assert_eq!(ours.remove(id), plain.remove(&id));
                }
            }
            prop_assert_eq!(ours.len(), plain.len());
            prop_assert_eq!(ours.is_empty(), plain.is_empty());
            prop_assert_eq!(ours.contains(NodeId(probe.into())), plain.contains(&NodeId(probe.into())));
            prop_assert!(ours.iter().eq(plain.iter().copied()));
            prop_assert_eq!(plain.into_iter().collect::<NodeSet>(), ours);
        }
    }
}

//! An ordered map that is cheap to copy.
//!
//! Readers and map rendering work on a copy of the state as it was at one
//! moment. The entries lie in chunks that copies share: a copy costs one
//! pointer, and a change after it costs the list of chunks and one chunk.

use std::sync::Arc;

/// Entries in a full chunk.
const CHUNK: usize = 64;

type Chunk<K, V> = Arc<Vec<(K, V)>>;

/// See the module. Keys are unique and ascending; no chunk is empty.
#[derive(Debug, Clone)]
pub(crate) struct Table<K, V> {
    chunks: Arc<Vec<Chunk<K, V>>>,
    len: usize,
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Self {
            chunks: Arc::default(),
            len: 0,
        }
    }
}

impl<K: Ord + Clone, V: Clone> Table<K, V> {
    /// The chunk in which the key is, or would be.
    fn chunk_of(&self, key: &K) -> usize {
        let after = self
            .chunks
            .partition_point(|chunk| chunk.first().is_some_and(|(first, _)| first <= key));
        after.saturating_sub(1)
    }

    /// The value of the key.
    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        let chunk = self.chunks.get(self.chunk_of(key))?;
        let at = chunk.binary_search_by(|(k, _)| k.cmp(key)).ok()?;
        chunk.get(at).map(|(_, value)| value)
    }

    /// Sets the value of the key and returns the one before.
    pub(crate) fn insert(&mut self, key: K, value: V) -> Option<V> {
        let index = self.chunk_of(&key);
        let chunks = Arc::make_mut(&mut self.chunks);
        let Some(chunk) = chunks.get_mut(index) else {
            chunks.push(Arc::new(vec![(key, value)]));
            self.len += 1;
            return None;
        };
        let chunk = Arc::make_mut(chunk);
        match chunk.binary_search_by(|(k, _)| k.cmp(&key)) {
            Ok(at) => chunk
                .get_mut(at)
                .map(|(_, old)| std::mem::replace(old, value)),
            Err(at) => {
                chunk.insert(at, (key, value));
                self.len += 1;
                // Keys mostly ascend: a full last chunk stays full.
                if chunk.len() > CHUNK {
                    let rest = chunk.split_off(if at == CHUNK { CHUNK } else { CHUNK / 2 });
                    chunks.insert(index + 1, Arc::new(rest));
                }
                None
            }
        }
    }

    /// Removes the key and returns its value.
    pub(crate) fn remove(&mut self, key: &K) -> Option<V> {
        let index = self.chunk_of(key);
        let found = self.chunks.get(index)?;
        let at = found.binary_search_by(|(k, _)| k.cmp(key)).ok()?;
        let chunks = Arc::make_mut(&mut self.chunks);
        let chunk = Arc::make_mut(chunks.get_mut(index)?);
        let (_, value) = chunk.remove(at);
        if chunk.is_empty() {
            chunks.remove(index);
        }
        self.len -= 1;
        Some(value)
    }

    /// All entries, ascending.
    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = (&K, &V)> {
        self.chunks
            .iter()
            .flat_map(|chunk| chunk.iter().map(|(key, value)| (key, value)))
    }

    /// All values, in the order of their keys.
    pub(crate) fn values(&self) -> impl DoubleEndedIterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }

    /// The entries from this key on, ascending.
    pub(crate) fn range_from<'a>(&'a self, key: &'a K) -> impl Iterator<Item = (&'a K, &'a V)> {
        let chunks = self.chunks.get(self.chunk_of(key)..).unwrap_or_default();
        chunks
            .iter()
            .flat_map(|chunk| chunk.iter().map(|(k, value)| (k, value)))
            .skip_while(move |(k, _)| *k < key)
    }

    /// How many entries there are.
    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn table_agrees_with_a_plain_map_and_copies_stay_as_they_were(
            steps in prop::collection::vec((any::<bool>(), 0_u16..400, any::<u8>()), 0..600),
        ) {
            let mut table = Table::default();
            let mut plain = BTreeMap::new();
            let mut copies = Vec::new();
            for (n, (insert, key, value)) in steps.into_iter().enumerate() {
                if insert {
                    prop_assert_eq!(table.insert(key, value), plain.insert(key, value));
                } else {
                    prop_assert_eq!(table.remove(&key), plain.remove(&key));
                }
                prop_assert_eq!(table.get(&key), plain.get(&key));
                prop_assert_eq!(table.len(), plain.len());
                prop_assert!(table.range_from(&key).eq(plain.range(key..)));
                if n % 100 == 0 {
                    copies.push((table.clone(), plain.clone()));
                }
            }
            copies.push((table, plain));
            for (table, plain) in copies {
                prop_assert!(table.iter().eq(plain.iter()));
                prop_assert!(table.values().eq(plain.values()));
                prop_assert!(table.iter().rev().eq(plain.iter().rev()));
            }
        }
    }
}

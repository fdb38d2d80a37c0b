//! Arenas whose entries keep their index, and indexes that make equal entries
//! one.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

/// The index of an entry.
pub(super) struct Id<K>(usize, PhantomData<fn() -> K>);

/// A list of entries; the indexes of removed entries are reused. The ids have
/// the type `K`, so that an entry can be referred to without naming its type.
#[derive(Debug, Clone)]
pub(super) struct Arena<T, K = T> {
    entries: Vec<Option<T>>,
    free: Vec<usize>,
    key: PhantomData<fn() -> K>,
}

impl<T, K> Default for Arena<T, K> {
    fn default() -> Self {
        Self {
            entries: Vec::new(),
            free: Vec::new(),
            key: PhantomData,
        }
    }
}

impl<T, K> Arena<T, K> {
    pub(super) fn add(&mut self, entry: T) -> Id<K> {
        if let Some(free) = self.free.pop()
            && let Some(place) = self.entries.get_mut(free)
        {
            *place = Some(entry);
            return Id(free, PhantomData);
        }
        self.entries.push(Some(entry));
        Id(self.entries.len() - 1, PhantomData)
    }

    pub(super) fn get(&self, id: Id<K>) -> Option<&T> {
        self.entries.get(id.0)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, id: Id<K>) -> Option<&mut T> {
        self.entries.get_mut(id.0)?.as_mut()
    }

    pub(super) fn remove(&mut self, id: Id<K>) -> Option<T> {
        let entry = self.entries.get_mut(id.0)?.take()?;
        self.free.push(id.0);
        Some(entry)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Id<K>, &T)> {
        let entries = self.entries.iter().enumerate();
        entries.filter_map(|(at, entry)| Some((Id(at, PhantomData), entry.as_ref()?)))
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (Id<K>, &mut T)> {
        let entries = self.entries.iter_mut().enumerate();
        entries.filter_map(|(at, entry)| Some((Id(at, PhantomData), entry.as_mut()?)))
    }
}

/// The entry for each key.
pub(super) type Index<K, T> = BTreeMap<K, Id<T>>;

impl<T> Clone for Id<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Id<T> {}

impl<T> PartialEq for Id<T> {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl<T> Eq for Id<T> {}

impl<T> PartialOrd for Id<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Id<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.cmp(&other.0)
    }
}

impl<T> fmt::Debug for Id<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

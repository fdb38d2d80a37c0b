//! Arenas whose entries keep their index, and indexes that make equal entries
//! one.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

/// The index of an entry.
pub(super) struct Id<T>(usize, PhantomData<fn() -> T>);

/// A list of entries; the indexes of removed entries are reused.
#[derive(Debug, Clone)]
pub(super) struct Arena<T> {
    rows: Vec<Option<T>>,
    free: Vec<usize>,
}

impl<T> Default for Arena<T> {
    fn default() -> Self {
        Self {
            rows: Vec::new(),
            free: Vec::new(),
        }
    }
}

impl<T> Arena<T> {
    pub(super) fn add(&mut self, row: T) -> Id<T> {
        if let Some(free) = self.free.pop()
            && let Some(place) = self.rows.get_mut(free)
        {
            *place = Some(row);
            return Id(free, PhantomData);
        }
        self.rows.push(Some(row));
        Id(self.rows.len() - 1, PhantomData)
    }

    pub(super) fn get(&self, id: Id<T>) -> Option<&T> {
        self.rows.get(id.0)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, id: Id<T>) -> Option<&mut T> {
        self.rows.get_mut(id.0)?.as_mut()
    }

    pub(super) fn remove(&mut self, id: Id<T>) -> Option<T> {
        let row = self.rows.get_mut(id.0)?.take()?;
        self.free.push(id.0);
        Some(row)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Id<T>, &T)> {
        let rows = self.rows.iter().enumerate();
        rows.filter_map(|(at, row)| Some((Id(at, PhantomData), row.as_ref()?)))
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (Id<T>, &mut T)> {
        let rows = self.rows.iter_mut().enumerate();
        rows.filter_map(|(at, row)| Some((Id(at, PhantomData), row.as_mut()?)))
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

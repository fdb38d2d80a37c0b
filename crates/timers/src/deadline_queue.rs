//! One deadline per key, ordered by time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

/// At most one deadline for each key.
///
/// Setting, removing and popping cost `O(log n)`; looking at the earliest
/// deadline does not depend on how many there are.
///
/// Deadlines at the same instant fire in the order of their keys, so that the
/// same inputs give the same outputs.
#[derive(Debug, Clone)]
pub struct DeadlineQueue<K> {
    by_key: BTreeMap<K, Instant>,
    by_time: BTreeSet<(Instant, K)>,
}

impl<K> Default for DeadlineQueue<K> {
    fn default() -> Self {
        Self {
            by_key: BTreeMap::new(),
            by_time: BTreeSet::new(),
        }
    }
}

impl<K: Ord + Clone> DeadlineQueue<K> {
    /// An empty queue.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the deadline of `key`. It replaces an earlier one.
    pub fn set(&mut self, key: K, at: Instant) {
        match self.by_key.insert(key.clone(), at) {
            Some(old) if old == at => return,
            Some(old) => {
                self.by_time.remove(&(old, key.clone()));
            }
            None => {}
        }
        self.by_time.insert((at, key));
    }

    /// Sets the deadline of `key`, or removes it when `at` is `None`.
    pub fn update(&mut self, key: K, at: Option<Instant>) {
        match at {
            Some(at) => self.set(key, at),
            None => {
                self.remove(&key);
            }
        }
    }

    /// Removes the deadline of `key` and returns it.
    pub fn remove(&mut self, key: &K) -> Option<Instant> {
        let at = self.by_key.remove(key)?;
        self.by_time.remove(&(at, key.clone()));
        Some(at)
    }

    /// The deadline of `key`.
    pub fn get(&self, key: &K) -> Option<Instant> {
        self.by_key.get(key).copied()
    }

    /// The earliest deadline and its key.
    pub fn first(&self) -> Option<(Instant, &K)> {
        self.by_time.first().map(|(at, key)| (*at, key))
    }

    /// The instant of the earliest deadline.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.first().map(|(at, _)| at)
    }

    /// Removes and returns the earliest key whose deadline is `now` or earlier.
    pub fn pop_due(&mut self, now: Instant) -> Option<K> {
        let (at, _) = self.by_time.first()?;
        if *at > now {
            return None;
        }
        let (_, key) = self.by_time.pop_first()?;
        self.by_key.remove(&key);
        Some(key)
    }

    /// How many keys have a deadline.
    pub fn len(&self) -> usize {
        self.by_key.len()
    }

    /// Whether no key has a deadline.
    pub fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }

    /// Removes all deadlines.
    pub fn clear(&mut self) {
        self.by_key.clear();
        self.by_time.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Step {
        Set(u8, u64),
        Remove(u8),
        Pop(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0u8..8, 0u64..20).prop_map(|(key, at)| Step::Set(key, at)),
            (0u8..8).prop_map(Step::Remove),
            (0u64..20).prop_map(Step::Pop),
        ]
    }

    proptest! {
        /// A plain map that is searched in full gives the same answers.
        #[test]
        fn queue_agrees_with_a_plain_map(steps in prop::collection::vec(step(), 0..64)) {
            let start = Instant::now();
            let at = |seconds| start + Duration::from_secs(seconds);
            let mut queue = DeadlineQueue::new();
            let mut plain = BTreeMap::<u8, u64>::new();
            for step in steps {
                match step {
                    Step::Set(key, seconds) => {
                        queue.set(key, at(seconds));
                        plain.insert(key, seconds);
                    }
                    Step::Remove(key) => {
                        prop_assert_eq!(queue.remove(&key), plain.remove(&key).map(at));
                    }
                    Step::Pop(seconds) => {
                        let due = plain.iter().map(|(key, at)| (*at, *key)).min();
                        let due = due.filter(|(at, _)| *at <= seconds).map(|(_, key)| key);
                        prop_assert_eq!(queue.pop_due(at(seconds)), due);
                        if let Some(key) = due {
                            plain.remove(&key);
                        }
                    }
                }
                let first = plain.iter().map(|(key, at)| (*at, *key)).min();
                prop_assert_eq!(
                    queue.first().map(|(at, key)| (at, *key)),
                    first.map(|(seconds, key)| (at(seconds), key))
                );
                prop_assert_eq!(queue.len(), plain.len());
                prop_assert_eq!(queue.is_empty(), plain.is_empty());
            }
        }
    }

    #[test]
    fn update_with_none_removes_the_deadline() {
        let now = Instant::now();
        let mut queue = DeadlineQueue::new();
        queue.update("probe", Some(now));
        assert_eq!(queue.get(&"probe"), Some(now));
        queue.update("probe", None);
        assert_eq!(queue.get(&"probe"), None);
        assert_eq!(queue.pop_due(now), None);
    }
}

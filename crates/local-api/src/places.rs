//! How many connections each user of the machine may have.
//!
//! All users may connect. Each has a share, so that one user cannot keep out another.
//! Some places are kept for the operator and some for root and the daemon's own user, so
//! that all users together cannot keep out those that may change something.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::caller::Caller;

/// Connections at a time.
const ALL: usize = 256;
/// The number of them that only root and the daemon's own user can have.
const KEPT_FOR_ADMINISTRATORS: usize = 32;
/// The number of them that only the operator and those can have.
const KEPT_FOR_OPERATOR: usize = 16;
/// Connections of one user, other than root and the daemon's own user.
const PER_USER: usize = 32;

/// The kind of a caller, as far as places are concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rank {
    /// Root, or the daemon's own user.
    Administrator,
    /// The user that root has named.
    Operator,
    /// Any other user.
    Other,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    by_caller: HashMap<Caller, usize>,
}

/// The places of all connections.
#[derive(Debug, Clone, Default)]
pub(crate) struct Places(Arc<Mutex<Taken>>);

/// The place of one connection, free again when it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    places: Places,
    caller: Caller,
}

impl Taken {
    fn has_room(&self, caller: Caller, rank: Rank) -> bool {
        let own = self.by_caller.get(&caller).copied().unwrap_or_default();
        let (limit, share) = match rank {
            Rank::Administrator => (ALL, ALL),
            Rank::Operator => (ALL - KEPT_FOR_ADMINISTRATORS, PER_USER),
            Rank::Other => (ALL - KEPT_FOR_ADMINISTRATORS - KEPT_FOR_OPERATOR, PER_USER),
        };
        self.all < limit && own < share
    }
}

impl Places {
    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for one more connection; `None`: the caller has to try later.
    pub(crate) fn take(&self, caller: Caller, rank: Rank) -> Option<Place> {
        let mut taken = self.lock();
        if !taken.has_room(caller, rank) {
            return None;
        }
        taken.all += 1;
        *taken.by_caller.entry(caller).or_default() += 1;
        Some(Place {
            places: self.clone(),
            caller,
        })
    }

    /// Whether a place would be free for a caller of this rank.
    pub(crate) fn has_room(&self, caller: Caller, rank: Rank) -> bool {
        self.lock().has_room(caller, rank)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.lock();
        taken.all -= 1;
        if let Some(own) = taken.by_caller.get_mut(&self.caller) {
            *own -= 1;
            if *own == 0 {
                taken.by_caller.remove(&self.caller);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn user(uid: u32) -> Caller {
        Caller::LocalUser { uid }
    }

    fn take_all(places: &Places, caller: Caller, rank: Rank) -> Vec<Place> {
        std::iter::from_fn(|| places.take(caller, rank)).collect()
    }

    #[test]
    fn one_user_cannot_keep_out_another() {
        let places = Places::default();
        let greedy = take_all(&places, user(1000), Rank::Other);
        assert_eq!(greedy.len(), PER_USER);
        assert!(places.take(user(1001), Rank::Other).is_some());
        drop(greedy);
        assert!(places.take(user(1000), Rank::Other).is_some());
        assert!(places.lock().by_caller.is_empty());
        assert_eq!(places.lock().all, 0);
    }

    #[test]
    fn all_users_together_cannot_keep_out_those_that_may_write() {
        let places = Places::default();
        let others: Vec<Place> = (1000..1100)
            .flat_map(|uid| take_all(&places, user(uid), Rank::Other))
            .collect();
        assert!(!places.has_room(user(2000), Rank::Other));
        let operator = take_all(&places, user(2000), Rank::Operator);
        assert_eq!(operator.len(), KEPT_FOR_OPERATOR);
        let root = take_all(&places, user(0), Rank::Administrator);
        assert_eq!(root.len(), KEPT_FOR_ADMINISTRATORS);
        assert_eq!(others.len() + operator.len() + root.len(), ALL);
    }
}

//! Which connections a listener keeps when there are many.
//!
//! Each connection holds a [`Slot`] from the moment it is accepted until it is
//! closed, through TLS and through upgrades. It begins *unidentified*; when the
//! machine at the other end proves that it belongs to the network (or, at a relay
//! that is open for all, that it owns its key) it becomes *identified*, and has an
//! [`Owner`].
//! Unidentified connections may use a part of all slots, and those of one source
//! (an IPv4 address, or an IPv6 /64) a part of that. Identified connections of one
//! owner have a share too. Where such a part is used up, the oldest connection in it is
//! closed in favour of the new one. So connections that stay silent cannot keep out
//! nodes, and no node can keep out the others: a node needs one or two round trips to
//! identify itself, and is closed afterwards only in favour of its own connections.
//!
//! How long a connection may stay in each phase is not decided here, but by the
//! server that holds the slot.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};

/// Files that a server needs beside its connections: database, listeners,
/// administration, policy file.
pub const OTHER_FILES: usize = 64;
/// Of all slots, one in so many is for unidentified connections.
const UNIDENTIFIED_PART: usize = 4;
/// Unidentified connections of one source. Many machines may share an IPv4
/// address, and after a restart of the server all of them come at once.
const PER_SOURCE: usize = 256;
/// Identified connections of one owner. A node has one or two at a time; the others are
/// those of a network that it has left.
const PER_OWNER: usize = 8;
/// Of all slots, one in so many is for clients of one source whose keys are not known.
const VISITORS_PART: usize = 4;

/// How many connections are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// All connections.
    pub all: usize,
    /// Connections whose machine is not known to own a node.
    pub unidentified: usize,
    /// Unidentified connections of one source.
    pub per_source: usize,
    /// Identified connections of one owner.
    pub per_owner: usize,
    /// Connections of one source with [`Owner::AnyKey`].
    pub visitors_per_source: usize,
}

impl ConnectionLimits {
    /// The limits for `wanted` connections in a process that may have `files`
    /// files open: see [`raise_file_limit`](crate::limits::raise_file_limit).
    pub fn new(wanted: usize, files: u64) -> Self {
        let files = usize::try_from(files).unwrap_or(usize::MAX);
        let all = files.saturating_sub(OTHER_FILES).min(wanted).max(1);
        let unidentified = all.div_ceil(UNIDENTIFIED_PART);
        Self {
            all,
            unidentified,
            per_source: PER_SOURCE.min(unidentified),
            per_owner: PER_OWNER.min(all),
            visitors_per_source: all.div_ceil(VISITORS_PART),
        }
    }
}

/// Where connections come from; those with the same source share limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Source {
    /// The connection comes from this machine, most likely from a proxy that
    /// has not yet named its client.
    Local,
    /// An IPv4 address.
    V4([u8; 4]),
    /// The first 64 bits of an IPv6 address: one subscriber has at least these.
    V6([u8; 8]),
}

impl From<IpAddr> for Source {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            address if address.is_loopback() => Self::Local,
            IpAddr::V4(address) => Self::V4(address.octets()),
            IpAddr::V6(address) => {
                let [a, b, c, d, e, f, g, h, ..] = address.octets();
                Self::V6([a, b, c, d, e, f, g, h])
            }
        }
    }
}

/// The machine at the other end of a connection, which has proven that it has this key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// A node of the network, by its machine key or its node key.
    Node([u8; 32]),
    /// A client of a relay that is open for all. Keys cost nothing, so those of one
    /// source also share a limit.
    AnyKey([u8; 32]),
}

impl Owner {
    fn key(self) -> [u8; 32] {
        match self {
            Self::Node(key) | Self::AnyKey(key) => key,
        }
    }
}

/// No slot is free, and none can be made free.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("all {0} connections are in use by identified clients")]
pub struct NoSlot(pub usize);

struct Held {
    source: Source,
    owner: Option<Owner>,
    closing: CancellationToken,
}

/// Connections in groups that share a limit; the oldest of a group is the first.
#[derive(Debug)]
struct Groups<K> {
    ids: HashMap<K, BTreeSet<u64>>,
    /// The sum of the lengths of all groups.
    total: usize,
}

impl<K> Default for Groups<K> {
    fn default() -> Self {
        Self {
            ids: HashMap::new(),
            total: 0,
        }
    }
}

impl<K: Copy + Eq + Hash + Ord> Groups<K> {
    fn add(&mut self, key: K, id: u64) {
        if self.ids.entry(key).or_default().insert(id) {
            self.total += 1;
        }
    }

    fn remove(&mut self, key: K, id: u64) {
        if let Some(ids) = self.ids.get_mut(&key)
            && ids.remove(&id)
        {
            self.total -= 1;
            if ids.is_empty() {
                self.ids.remove(&key);
            }
        }
    }

    /// The oldest of a group that has `share` members or more.
    fn oldest_beyond(&self, key: K, share: usize) -> Option<u64> {
        let ids = self.ids.get(&key).filter(|ids| ids.len() >= share)?;
        ids.first().copied()
    }

    /// The oldest of the group that has most members.
    fn oldest_of_largest(&self) -> Option<u64> {
        let groups = self.ids.iter();
        let (_, ids) = groups.max_by_key(|(key, ids)| (ids.len(), **key))?;
        ids.first().copied()
    }
}

#[derive(Default)]
struct Slots {
    next: u64,
    held: HashMap<u64, Held>,
    unidentified: Groups<Source>,
    owners: Groups<[u8; 32]>,
    /// Connections with [`Owner::AnyKey`].
    visitors: Groups<Source>,
}

impl Slots {
    /// Takes a connection out of the table.
    fn forget(&mut self, id: u64) -> Option<Held> {
        let held = self.held.remove(&id)?;
        self.unidentified.remove(held.source, id);
        self.visitors.remove(held.source, id);
        if let Some(owner) = held.owner {
            self.owners.remove(owner.key(), id);
        }
        Some(held)
    }

    /// Closes a connection, if there is one to close.
    fn close(&mut self, id: Option<u64>) -> bool {
        let held = id.and_then(|id| self.forget(id));
        if let Some(held) = &held {
            held.closing.cancel();
        }
        held.is_some()
    }

    fn close_unidentified(&mut self) -> bool {
        self.close(self.unidentified.oldest_of_largest())
    }

    /// Frees a slot for one more unidentified connection of the source.
    fn make_room(&mut self, limits: &ConnectionLimits, source: Source) {
        // All clients of a local proxy look alike before it names them.
        let share = match source {
            Source::Local => limits.unidentified,
            Source::V4(_) | Source::V6(_) => limits.per_source,
        };
        while self.close(self.unidentified.oldest_beyond(source, share)) {}
        while self.unidentified.total >= limits.unidentified && self.close_unidentified() {}
    }

    /// Frees a slot for one more connection of the owner.
    fn make_room_for_owner(&mut self, limits: &ConnectionLimits, owner: Owner, source: Source) {
        while self.close(self.owners.oldest_beyond(owner.key(), limits.per_owner)) {}
        if matches!(owner, Owner::AnyKey(_)) {
            let share = limits.visitors_per_source;
            while self.close(self.visitors.oldest_beyond(source, share)) {}
        }
    }
}

/// All connections of the listener.
pub struct ConnectionTable {
    limits: ConnectionLimits,
    slots: Mutex<Slots>,
}

impl std::fmt::Debug for ConnectionTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConnectionTable")
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

impl ConnectionTable {
    /// A table without connections.
    pub fn new(limits: ConnectionLimits) -> Arc<Self> {
        Arc::new(Self {
            limits,
            slots: Mutex::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A slot for a new connection from this address.
    ///
    /// # Errors
    /// All slots are in use by identified connections.
    pub fn open(self: &Arc<Self>, peer: IpAddr) -> Result<Slot, NoSlot> {
        let source = Source::from(peer);
        let mut slots = self.lock();
        slots.make_room(&self.limits, source);
        if slots.held.len() >= self.limits.all && !slots.close_unidentified() {
            return Err(NoSlot(self.limits.all));
        }
        let id = slots.next;
        slots.next += 1;
        let closing = CancellationToken::new();
        let held = Held {
            source,
            owner: None,
            closing: closing.clone(),
        };
        slots.held.insert(id, held);
        slots.unidentified.add(source, id);
        Ok(Slot {
            table: self.clone(),
            id,
            closing,
        })
    }

    /// How many connections hold a slot.
    pub fn len(&self) -> usize {
        self.lock().held.len()
    }

    /// Whether there are no connections.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The place of one connection. Dropping it makes the place free.
#[derive(Debug)]
pub struct Slot {
    table: Arc<ConnectionTable>,
    id: u64,
    closing: CancellationToken,
}

impl Slot {
    /// The number of the connection, for the log.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The machine at the other end is identified. A connection is identified once;
    /// later calls change nothing.
    pub fn identify(&self, owner: Owner) {
        let mut slots = self.table.lock();
        let Some(held) = slots.held.get_mut(&self.id) else {
            return;
        };
        if held.owner.is_some() {
            return;
        }
        held.owner = Some(owner);
        let source = held.source;
        slots.unidentified.remove(source, self.id);
        slots.make_room_for_owner(&self.table.limits, owner, source);
        slots.owners.add(owner.key(), self.id);
        // A proxy on this machine may bring all clients.
        if matches!(owner, Owner::AnyKey(_)) && source != Source::Local {
            slots.visitors.add(source, self.id);
        }
    }

    /// Whether [`Slot::identify`] was called.
    pub fn is_identified(&self) -> bool {
        let slots = self.table.lock();
        let held = slots.held.get(&self.id);
        held.is_some_and(|held| held.owner.is_some())
    }

    /// A proxy on this machine named the client: from now on the connection
    /// counts for that source.
    pub fn move_to(&self, client: IpAddr) {
        let source = Source::from(client);
        let mut slots = self.table.lock();
        let Some(held) = slots.held.get_mut(&self.id) else {
            return;
        };
        if held.owner.is_some() || held.source == source {
            return;
        }
        let old = std::mem::replace(&mut held.source, source);
        slots.unidentified.remove(old, self.id);
        slots.make_room(&self.table.limits, source);
        slots.unidentified.add(source, self.id);
    }

    /// Completes when the connection has to end in favour of another one.
    pub fn must_close(&self) -> WaitForCancellationFuture<'_> {
        self.closing.cancelled()
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.table.lock().forget(self.id);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    const LIMITS: ConnectionLimits = ConnectionLimits {
        all: 8,
        unidentified: 4,
        per_source: 2,
        per_owner: 2,
        visitors_per_source: 3,
    };

    fn node(key: u8) -> Owner {
        Owner::Node([key; 32])
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn is_closed(slot: &Slot) -> bool {
        slot.closing.is_cancelled()
    }

    #[test]
    fn the_oldest_of_a_source_makes_room() {
        let table = ConnectionTable::new(LIMITS);
        let first = table.open(ip("192.0.2.1")).unwrap();
        let second = table.open(ip("192.0.2.1")).unwrap();
        let other = table.open(ip("192.0.2.2")).unwrap();
        let third = table.open(ip("::ffff:192.0.2.1")).unwrap();
        assert!(is_closed(&first));
        assert!(!is_closed(&second) && !is_closed(&third) && !is_closed(&other));
    }

    #[test]
    fn addresses_of_one_ipv6_network_share_a_limit() {
        let table = ConnectionTable::new(LIMITS);
        let first = table.open(ip("2001:db8::1")).unwrap();
        let _second = table.open(ip("2001:db8::2")).unwrap();
        let other = table.open(ip("2001:db8:0:1::1")).unwrap();
        let _third = table.open(ip("2001:db8::3")).unwrap();
        assert!(is_closed(&first) && !is_closed(&other));
    }

    #[test]
    fn many_sources_cannot_close_an_identified_connection() {
        let table = ConnectionTable::new(LIMITS);
        let node = table.open(ip("192.0.2.1")).unwrap();
        node.identify(super::tests::node(1));
        let unauthenticated: Vec<Slot> = (0..50)
            .map(|n| table.open(ip(&format!("198.51.100.{n}"))).unwrap())
            .collect();
        assert!(!is_closed(&node));
        assert_eq!(
            unauthenticated
                .iter()
                .filter(|slot| !is_closed(slot))
                .count(),
            4
        );
        let late = table.open(ip("192.0.2.2")).unwrap();
        late.identify(super::tests::node(2));
        let _more: Vec<Slot> = (0..50)
            .map(|n| table.open(ip(&format!("203.0.113.{n}"))).unwrap())
            .collect();
        assert!(!is_closed(&late));
    }

    #[test]
    fn nodes_take_all_slots_and_then_no_more_are_given() {
        let table = ConnectionTable::new(LIMITS);
        let nodes: Vec<Slot> = (0..8)
            .map(|n| {
                let slot = table.open(ip("192.0.2.1")).unwrap();
                slot.identify(node(n));
                slot
            })
            .collect();
        assert_eq!(table.open(ip("192.0.2.1")).unwrap_err(), NoSlot(8));
        drop(nodes);
        assert!(table.is_empty());
        assert!(table.open(ip("192.0.2.1")).is_ok());
    }

    #[test]
    fn one_node_cannot_take_the_slots_of_the_others() {
        let table = ConnectionTable::new(LIMITS);
        let other = table.open(ip("192.0.2.2")).unwrap();
        other.identify(node(2));
        let greedy: Vec<Slot> = (0..100)
            .map(|n| {
                let slot = table.open(ip(&format!("198.51.100.{n}"))).unwrap();
                slot.identify(node(1));
                slot
            })
            .collect();
        assert!(!is_closed(&other));
        let (old, new) = greedy.split_at(98);
        assert!(old.iter().all(is_closed));
        assert!(!new.iter().any(is_closed));
        assert_eq!(table.len(), 3);
    }

    #[test]
    fn keys_that_cost_nothing_share_the_limit_of_their_source() {
        let table = ConnectionTable::new(LIMITS);
        let visitor = |address: &str, key: u8| {
            let slot = table.open(ip(address)).unwrap();
            slot.identify(Owner::AnyKey([key; 32]));
            slot
        };
        let other = visitor("192.0.2.2", 0);
        let greedy: Vec<Slot> = (1..50).map(|key| visitor("192.0.2.1", key)).collect();
        assert_eq!(greedy.iter().filter(|slot| !is_closed(slot)).count(), 3);
        // Those of a proxy on this machine may be anyone.
        let _local: Vec<Slot> = (51..55).map(|key| visitor("127.0.0.1", key)).collect();
        assert_eq!(table.len(), 8);
        assert!(!is_closed(&other));
    }

    #[test]
    fn clients_of_a_local_proxy_share_by_the_address_it_names() {
        let table = ConnectionTable::new(LIMITS);
        let slots: Vec<Slot> = (0..3)
            .map(|_| {
                let slot = table.open(ip("127.0.0.1")).unwrap();
                slot.move_to(ip("192.0.2.1"));
                slot
            })
            .collect();
        assert!(is_closed(&slots[0]));
        assert!(!is_closed(&slots[1]) && !is_closed(&slots[2]));
    }

    #[test]
    fn limits_follow_the_files_that_the_system_allows() {
        let limits = ConnectionLimits::new(16_384, u64::MAX);
        assert_eq!((limits.all, limits.unidentified), (16_384, 4096));
        let limits = ConnectionLimits::new(16_384, 1024);
        assert_eq!((limits.all, limits.unidentified), (960, 240));
        assert_eq!(limits.per_source, 240);
        assert_eq!(ConnectionLimits::new(5, 0).all, 1);
    }

    proptest! {
        #[test]
        fn no_limit_is_ever_exceeded(steps in prop::collection::vec((0_u8..5, 0_u8..6, 0_usize..8), 0..80)) {
            let table = ConnectionTable::new(LIMITS);
            let mut slots: Vec<Slot> = Vec::new();
            for (act, address, which) in steps {
                let peer = IpAddr::from([if address == 0 { 127 } else { 192 }, 0, 2, address]);
                match (act, slots.len()) {
                    (0 | 1, _) => slots.extend(table.open(peer)),
                    (_, 0) => {}
                    (2, n) => slots[which % n].identify(Owner::Node([address; 32])),
                    (3, n) => slots[which % n].identify(Owner::AnyKey([address; 32])),
                    (_, n) if address > 2 => drop(slots.swap_remove(which % n)),
                    (_, n) => slots[which % n].move_to(peer),
                }
                slots.retain(|slot| !is_closed(slot));
                let held = table.lock();
                prop_assert_eq!(held.held.len(), slots.len());
                prop_assert!(slots.len() <= LIMITS.all);
                prop_assert!(held.unidentified.total <= LIMITS.unidentified);
                for (source, ids) in &held.unidentified.ids {
                    prop_assert!(*source == Source::Local || ids.len() <= LIMITS.per_source);
                }
                prop_assert!(held.owners.ids.values().all(|ids| ids.len() <= LIMITS.per_owner));
                let visitors = held.visitors.ids.values();
                prop_assert!(visitors.clone().all(|ids| ids.len() <= LIMITS.visitors_per_source));
                // Each connection is in one group, and the groups know no others.
                prop_assert_eq!(held.unidentified.total + held.owners.total, slots.len());
                let sum: usize = held.unidentified.ids.values().map(BTreeSet::len).sum();
                prop_assert_eq!(sum, held.unidentified.total);
                prop_assert_eq!(visitors.map(BTreeSet::len).sum::<usize>(), held.visitors.total);
            }
        }
    }
}

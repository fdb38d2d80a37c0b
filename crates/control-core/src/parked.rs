//! Requests that wait until a person decides.
//!
//! A parked request has an id that cannot be guessed, a deadline, and shares:
//! groups of requests (one source, one pair of nodes, all) each of which may
//! hold a limited number. When a group is full, the oldest request of it whose
//! client no longer waits for the answer is removed; when there is none, the new
//! request is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};
use std::time::Instant;

use data_encoding::HEXLOWER;
use warren_keys::Entropy;
use warren_timers::DeadlineQueue;

/// Names a machine that waits for approval, or a session over SSH that waits for
/// a check: 24 hexadecimal digits that cannot be guessed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PendingId(pub String);

impl PendingId {
    fn generate(entropy: &mut dyn Entropy) -> Self {
        let mut bytes = [0; 12];
        entropy.fill(&mut bytes);
        Self(HEXLOWER.encode(&bytes))
    }
}

impl std::fmt::Display for PendingId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// How many requests may come from one address, or one IPv6 network of 64 bits.
const MAX_OF_SOURCE: usize = 64;
/// How many may come from the wider IPv6 networks that one customer is commonly
/// given: the bits of their prefix, and the limit.
const MAX_OF_NETWORK: [(u32, usize); 2] = [(56, 128), (48, 256)];

/// Groups of requests that share the places.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Group {
    /// An address, or an IPv6 network with this many bits of prefix.
    Source(IpAddr, u32),
    /// Logins about one machine or session that waits.
    About(PendingId),
    /// All.
    All,
}

/// The groups of a source with their limits, the narrowest first. An IPv6 host
/// has as many addresses as it likes, and its owner as many networks as the
/// provider gave it.
pub(crate) fn shares_of(address: IpAddr) -> Vec<(Group, usize)> {
    match address.to_canonical() {
        v4 @ IpAddr::V4(_) => vec![(Group::Source(v4, 32), MAX_OF_SOURCE)],
        IpAddr::V6(v6) => [(64, MAX_OF_SOURCE)]
            .into_iter()
            .chain(MAX_OF_NETWORK)
            .map(|(prefix, limit)| {
                let network = v6.to_bits() & !(u128::MAX >> prefix);
                let network = IpAddr::V6(Ipv6Addr::from_bits(network));
                (Group::Source(network, prefix), limit)
            })
            .collect(),
    }
}

/// Every request of a full group is still waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Full;

#[derive(Debug)]
struct Parked<K, T> {
    request: T,
    groups: Vec<K>,
    order: u64,
    /// Connections that are held open for the decision.
    waiters: u32,
}

/// Requests `T` with shares by the groups `K`. See the module.
#[derive(Debug)]
pub(crate) struct ParkedRequests<K, T> {
    parked: BTreeMap<PendingId, Parked<K, T>>,
    by_order: BTreeMap<u64, PendingId>,
    groups: BTreeMap<K, BTreeSet<u64>>,
    deadlines: DeadlineQueue<PendingId>,
    next: u64,
}

impl<K, T> Default for ParkedRequests<K, T> {
    fn default() -> Self {
        Self {
            parked: BTreeMap::new(),
            by_order: BTreeMap::new(),
            groups: BTreeMap::new(),
            deadlines: DeadlineQueue::default(),
            next: 0,
        }
    }
}

impl<K: Ord + Clone, T> ParkedRequests<K, T> {
    /// Adds a request that belongs to these groups, each with its limit, the
    /// narrowest first. Returns the request that was removed for it, if any.
    /// Requests that are not `evictable` keep their places.
    pub(crate) fn insert(
        &mut self,
        request: T,
        shares: &[(K, usize)],
        deadline: Instant,
        evictable: impl Fn(&T) -> bool,
        entropy: &mut dyn Entropy,
    ) -> Result<(PendingId, Option<PendingId>), Full> {
        let full = shares.iter().find(|(group, limit)| {
            let members = self.groups.get(group);
            members.is_some_and(|members| members.len() >= *limit)
        });
        // One request less in the narrowest group is one less in the others.
        let evicted = match full {
            None => None,
            Some((group, _)) => Some(self.oldest_idle(group, evictable).ok_or(Full)?),
        };
        if let Some(evicted) = &evicted {
            self.remove(evicted);
        }
        let id = PendingId::generate(entropy);
        self.next += 1;
        let order = self.next;
        self.by_order.insert(order, id.clone());
        let groups: Vec<K> = shares.iter().map(|(group, _)| group.clone()).collect();
        for group in &groups {
            self.groups.entry(group.clone()).or_default().insert(order);
        }
        self.deadlines.set(id.clone(), deadline);
        let parked = Parked {
            request,
            groups,
            order,
            waiters: 0,
        };
        self.parked.insert(id.clone(), parked);
        Ok((id, evicted))
    }

    fn oldest_idle(&self, group: &K, evictable: impl Fn(&T) -> bool) -> Option<PendingId> {
        let members = self.groups.get(group)?.iter();
        let mut ids = members.filter_map(|order| self.by_order.get(order));
        let idle = |id: &&PendingId| {
            let parked = self.parked.get(*id);
            parked.is_some_and(|parked| parked.waiters == 0 && evictable(&parked.request))
        };
        ids.find(idle).cloned()
    }

    pub(crate) fn get(&self, id: &PendingId) -> Option<&T> {
        self.parked.get(id).map(|parked| &parked.request)
    }

    pub(crate) fn get_mut(&mut self, id: &PendingId) -> Option<&mut T> {
        self.parked.get_mut(id).map(|parked| &mut parked.request)
    }

    /// All requests, oldest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&PendingId, &T)> {
        let ids = self.by_order.values();
        ids.filter_map(|id| Some((id, self.get(id)?)))
    }

    pub(crate) fn remove(&mut self, id: &PendingId) -> Option<T> {
        let parked = self.parked.remove(id)?;
        self.by_order.remove(&parked.order);
        for group in parked.groups {
            if let Some(members) = self.groups.get_mut(&group) {
                members.remove(&parked.order);
                if members.is_empty() {
                    self.groups.remove(&group);
                }
            }
        }
        self.deadlines.remove(id);
        Some(parked.request)
    }

    /// Removes all requests for which `stays` is false, and returns their ids.
    pub(crate) fn retain(&mut self, stays: impl Fn(&T) -> bool) -> Vec<PendingId> {
        let gone: Vec<PendingId> = self
            .iter()
            .filter(|(_, request)| !stays(request))
            .map(|(id, _)| id.clone())
            .collect();
        for id in &gone {
            self.remove(id);
        }
        gone
    }

    /// A connection is held open for the decision about the request.
    pub(crate) fn wait(&mut self, id: &PendingId) {
        if let Some(parked) = self.parked.get_mut(id) {
            parked.waiters += 1;
        }
    }

    /// Such a connection ended, for whatever reason.
    pub(crate) fn stopped_waiting(&mut self, id: &PendingId) {
        if let Some(parked) = self.parked.get_mut(id) {
            parked.waiters = parked.waiters.saturating_sub(1);
        }
    }

    /// Gives a request another deadline.
    pub(crate) fn set_deadline(&mut self, id: &PendingId, at: Instant) {
        if self.parked.contains_key(id) {
            self.deadlines.set(id.clone(), at);
        }
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.next_deadline()
    }

    /// The next request whose deadline has passed. It stays until it is
    /// removed, without a deadline.
    pub(crate) fn pop_due(&mut self, now: Instant) -> Option<PendingId> {
        self.deadlines.pop_due(now)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Duration;

    use super::*;
    use warren_testkit::CountingEntropy;

    type Requests = ParkedRequests<&'static str, u32>;

    fn add(
        requests: &mut Requests,
        entropy: &mut CountingEntropy,
        group: &'static str,
        request: u32,
    ) -> Result<(PendingId, Option<PendingId>), Full> {
        let shares = [(group, 2), ("all", 3)];
        requests.insert(request, &shares, Instant::now(), |r| *r != 99, entropy)
    }

    #[test]
    fn oldest_idle_request_of_the_full_group_makes_room() {
        let (mut requests, mut entropy) = (Requests::default(), CountingEntropy(0));
        let (a1, none) = add(&mut requests, &mut entropy, "a", 1).unwrap();
        assert_eq!(none, None);
        let (b, _) = add(&mut requests, &mut entropy, "b", 2).unwrap();
        let (a2, _) = add(&mut requests, &mut entropy, "a", 3).unwrap();
        requests.wait(&a1);
        // Its own group is full: b, though older, is not pushed out by a.
        let (a3, evicted) = add(&mut requests, &mut entropy, "a", 99).unwrap();
        assert_eq!(evicted, Some(a2));
        // One is waited for, the other one keeps its place.
        assert_eq!(add(&mut requests, &mut entropy, "a", 5), Err(Full));
        // All are full: the oldest idle one of all.
        let (_, evicted) = add(&mut requests, &mut entropy, "c", 6).unwrap();
        assert_eq!(evicted, Some(b));
        requests.stopped_waiting(&a1);
        let (_, evicted) = add(&mut requests, &mut entropy, "a", 7).unwrap();
        assert_eq!(evicted, Some(a1));
        assert_eq!(requests.get(&a3), Some(&99));
        let order: Vec<u32> = requests.iter().map(|(_, request)| *request).collect();
        assert_eq!(order, [99, 6, 7]);
        assert_eq!(requests.retain(|request| *request == 6).len(), 2);
        assert_eq!(requests.groups.len(), 2);
    }

    #[test]
    fn deadline_fires_once_and_can_be_set_again() {
        let (mut requests, mut entropy) = (Requests::default(), CountingEntropy(0));
        let (id, _) = add(&mut requests, &mut entropy, "a", 1).unwrap();
        let now = Instant::now();
        assert_eq!(requests.pop_due(now), Some(id.clone()));
        assert_eq!(requests.pop_due(now), None);
        let later = now + Duration::from_secs(1);
        requests.set_deadline(&id, later);
        assert_eq!(requests.next_deadline(), Some(later));
        assert_eq!(requests.remove(&id), Some(1));
        requests.set_deadline(&id, later);
        assert_eq!(requests.next_deadline(), None);
    }

    #[test]
    fn hosts_of_one_ipv6_network_are_one_source() {
        let shares = |address: &str| shares_of(address.parse().unwrap());
        let one = shares("2001:db8::1");
        assert_eq!(shares("2001:db8::ffff:1"), one);
        let beside = shares("2001:db8:0:1::1");
        assert_ne!(beside[0], one[0]);
        assert_eq!(beside[1..], one[1..]);
        let same_site = shares("2001:db8:0:ff00::1");
        assert_ne!(same_site[1], one[1]);
        assert_eq!(same_site[2], one[2]);
        assert_eq!(shares("::ffff:192.0.2.1"), shares("192.0.2.1"));
    }
}

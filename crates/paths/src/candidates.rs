//! The addresses that a peer may have, and what is known about each.
//!
//! A candidate comes from the netmap, from a CallMeMaybe, or from the source
//! of something that authenticated. It is removed when its source withdraws it,
//! or as the stalest of more than [`MAX`]. Most candidates never work: private
//! addresses of other networks, mappings that are gone.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use warren_node_types::TailnetRanges;

use crate::choice::RoundTrip;

/// Candidates of one peer.
pub(crate) const MAX: usize = 64;
/// An address that was only learned from traffic is removed after this time
/// without traffic.
const LEARNED_LIFETIME: Duration = Duration::from_secs(45);

#[derive(Debug, Clone)]
pub(crate) struct Candidate {
    in_netmap: bool,
    /// When the newest CallMeMaybe listed it.
    call_me_maybe: Option<Instant>,
    /// When something that authenticated came from there.
    pub(crate) received: Option<Instant>,
    pub(crate) last_ping: Option<Instant>,
    pub(crate) last_pong: Option<Instant>,
    pub(crate) round_trip: RoundTrip,
    added: Instant,
}

impl Candidate {
    fn new(now: Instant) -> Self {
        Self {
            in_netmap: false,
            call_me_maybe: None,
            received: None,
            last_ping: None,
            last_pong: None,
            round_trip: RoundTrip::default(),
            added: now,
        }
    }

    /// The last sign that this candidate may be worth something.
    fn freshness(&self) -> Instant {
        let signs = [self.call_me_maybe, self.received, self.last_pong];
        signs.into_iter().flatten().fold(self.added, Instant::max)
    }

    /// Whether a source still lists it, or it showed a sign of life lately.
    fn is_listed_or_alive(&self, now: Instant) -> bool {
        let recent = |at: Option<Instant>| at.is_some_and(|at| now < at + LEARNED_LIFETIME);
        self.in_netmap
            || self.call_me_maybe.is_some()
            || recent(self.received)
            || recent(self.last_pong)
    }
}

/// The effect of a change to the candidates, for the counters and the pings.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Added {
    pub(crate) new: Vec<SocketAddr>,
    pub(crate) refused: u64,
    pub(crate) evicted: u64,
}

/// The candidates of one peer.
#[derive(Debug)]
pub(crate) struct Candidates {
    known: BTreeMap<SocketAddr, Candidate>,
    /// Addresses inside the tunnel.
    tailnet: TailnetRanges,
}

impl Candidates {
    pub(crate) fn new(tailnet: TailnetRanges) -> Self {
        Self {
            known: BTreeMap::new(),
            tailnet,
        }
    }

    pub(crate) fn get_mut(&mut self, address: SocketAddr) -> Option<&mut Candidate> {
        self.known.get_mut(&address)
    }

    pub(crate) fn get(&self, address: SocketAddr) -> Option<&Candidate> {
        self.known.get(&address)
    }

    /// Takes the netmap's list; `keep` is never evicted.
    pub(crate) fn set_netmap(
        &mut self,
        now: Instant,
        listed: &[SocketAddr],
        keep: Option<SocketAddr>,
    ) -> Added {
        for candidate in self.known.values_mut() {
            candidate.in_netmap = false;
        }
        self.take_list(now, listed, keep, |candidate| candidate.in_netmap = true)
    }

    /// Takes the list of a CallMeMaybe, which replaces that of earlier ones.
    pub(crate) fn set_call_me_maybe(
        &mut self,
        now: Instant,
        listed: &[SocketAddr],
        keep: Option<SocketAddr>,
    ) -> Added {
        for candidate in self.known.values_mut() {
            candidate.call_me_maybe = None;
        }
        self.take_list(now, listed, keep, |candidate| {
            candidate.call_me_maybe = Some(now)
        })
    }

    /// Something authenticated came from `address`.
    pub(crate) fn received(
        &mut self,
        now: Instant,
        address: SocketAddr,
        keep: Option<SocketAddr>,
    ) -> Added {
        self.take_list(now, &[address], keep, |candidate| {
            candidate.received = Some(now)
        })
    }

    fn take_list(
        &mut self,
        now: Instant,
        listed: &[SocketAddr],
        keep: Option<SocketAddr>,
        mark: impl Fn(&mut Candidate),
    ) -> Added {
        let mut added = Added::default();
        for (position, address) in listed.iter().enumerate() {
            if position >= MAX || !is_usable(*address, &self.tailnet) {
                added.refused += 1;
                continue;
            }
            if !self.known.contains_key(address) {
                added.new.push(*address);
            }
            mark(
                self.known
                    .entry(*address)
                    .or_insert_with(|| Candidate::new(now)),
            );
        }
        self.known.retain(|address, candidate| {
            candidate.is_listed_or_alive(now) || Some(*address) == keep
        });
        added.new.retain(|address| self.known.contains_key(address));
        while self.known.len() > MAX {
            let others = self
                .known
                .iter()
                .filter(|(address, _)| Some(**address) != keep);
            let stalest = others.min_by_key(|(_, candidate)| candidate.freshness());
            let Some(address) = stalest.map(|(address, _)| *address) else {
                break;
            };
            self.known.remove(&address);
            added.new.retain(|new| *new != address);
            added.evicted += 1;
        }
        added
    }

    /// All addresses, those with the freshest signs of life first.
    pub(crate) fn by_freshness(&self) -> Vec<SocketAddr> {
        let mut all: Vec<_> = self.known.iter().collect();
        all.sort_by_key(|(_, candidate)| std::cmp::Reverse(candidate.freshness()));
        all.into_iter().map(|(address, _)| *address).collect()
    }

    /// After a change of our own network no earlier measurement means anything.
    pub(crate) fn forget_measurements(&mut self) {
        for candidate in self.known.values_mut() {
            candidate.round_trip = RoundTrip::default();
            candidate.last_ping = None;
            candidate.last_pong = None;
        }
    }
}

/// Whether a datagram to this address can reach a peer.
///
/// IPv6 link-local addresses lack the interface they belong to, and an IPv6
/// address of the tailnet would lead into the tunnel again. IPv4 addresses of the
/// tailnet may also be those of a carrier's NAT.
fn is_usable(address: SocketAddr, tailnet: &TailnetRanges) -> bool {
    let sensible = match address.ip() {
        IpAddr::V4(ip) => !ip.is_unspecified() && !ip.is_multicast() && !ip.is_broadcast(),
        IpAddr::V6(ip) => {
            let overlay = tailnet.v6.contains(&ip);
            !ip.is_unspecified() && !ip.is_multicast() && !ip.is_unicast_link_local() && !overlay
        }
    };
    sensible && address.port() != 0
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn v4(last: u8) -> SocketAddr {
        ([192, 0, 2, last], 41641).into()
    }

    #[test]
    fn lists_replace_their_own_kind_only() {
        let now = Instant::now();
        let mut candidates = Candidates::new(TailnetRanges::DEFAULT);
        assert_eq!(
            candidates.set_netmap(now, &[v4(1), v4(2)], None).new,
            [v4(1), v4(2)]
        );
        assert_eq!(
            candidates.set_call_me_maybe(now, &[v4(2), v4(3)], None).new,
            [v4(3)]
        );
        candidates.set_netmap(now, &[], None);
        assert!(candidates.get(v4(1)).is_none());
        assert!(
            candidates.get(v4(2)).is_some(),
            "still listed by the CallMeMaybe"
        );
        candidates.set_call_me_maybe(now, &[v4(4)], Some(v4(3)));
        assert!(candidates.get(v4(2)).is_none());
        assert!(candidates.get(v4(3)).is_some(), "in use");
    }

    #[test]
    fn addresses_learned_from_traffic_expire() {
        let now = Instant::now();
        let mut candidates = Candidates::new(TailnetRanges::DEFAULT);
        candidates.received(now, v4(9), None);
        candidates.set_netmap(now + Duration::from_secs(44), &[v4(1)], None);
        assert!(candidates.get(v4(9)).is_some());
        candidates.set_netmap(now + Duration::from_secs(46), &[v4(1)], None);
        assert!(candidates.get(v4(9)).is_none());
    }

    #[test]
    fn unusable_addresses_are_refused() {
        let list = [
            "0.0.0.0:1",
            "224.0.0.1:1",
            "255.255.255.255:1",
            "192.0.2.1:0",
            "[::]:1",
            "[fe80::1]:1",
            "[ff02::1]:1",
            "[fd7a:115c:a1e0::1]:1",
        ];
        let list = list.map(|address| address.parse().unwrap());
        let added =
            Candidates::new(TailnetRanges::DEFAULT).set_call_me_maybe(Instant::now(), &list, None);
        assert_eq!(
            added,
            Added {
                new: vec![],
                refused: 8,
                evicted: 0
            }
        );
    }

    proptest! {
        #[test]
        fn never_more_than_the_bound(steps in prop::collection::vec((0u8..3, prop::collection::vec(any::<(u8, u16)>(), 0..90)), 0..12)) {
            let mut now = Instant::now();
            let mut candidates = Candidates::new(TailnetRanges::DEFAULT);
            let keep = Some(v4(1));
            candidates.received(now, v4(1), None);
            for (kind, list) in steps {
                now += Duration::from_secs(7);
                let list: Vec<_> = list.into_iter()
                    .map(|(last, port)| SocketAddr::from(([198, 51, 100, last], port)))
                    .collect();
                let added = match kind {
                    0 => candidates.set_netmap(now, &list, keep),
                    1 => candidates.set_call_me_maybe(now, &list, keep),
                    _ => candidates.received(now, *list.first().unwrap_or(&v4(2)), keep),
                };
                prop_assert!(candidates.by_freshness().len() <= MAX);
                prop_assert!(candidates.get(v4(1)).is_some());
                prop_assert!(added.new.iter().all(|new| candidates.get(*new).is_some()));
            }
        }
    }
}

//! Machines that wait for approval.
//!
//! A machine waits once: a newer login with another node key replaces the older
//! one, whose request is answered with a refusal, so that a late approval
//! cannot create a node that no machine runs. Unauthenticated machines can ask
//! as often as they like, so places are limited, in total and for each source.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use warren_control_types::RegisterRequest;
use warren_keys::{Entropy, MachinePublic, NodePublic};

use crate::parked::{ParkedRequests, PendingId};

/// How many machines may wait for approval.
const MAX_PENDING: usize = 1024;
/// How many of them may come from one address, or one IPv6 network of 64 bits.
const MAX_PENDING_OF_SOURCE: usize = 64;
/// How long a machine may wait for approval.
const PENDING_TTL: Duration = Duration::from_secs(15 * 60);

/// A machine that waits for approval.
#[derive(Debug, Clone)]
pub(crate) struct PendingLogin {
    pub(crate) machine: MachinePublic,
    pub(crate) request: Box<RegisterRequest>,
    pub(crate) since: Timestamp,
}

/// Groups that share the places.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Group {
    Source(IpAddr),
    All,
}

/// The reaction to a login without a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LoginStep {
    /// Hold the request until this id is decided.
    Park(PendingId),
    /// Send the person to the address of this id, under which the machine
    /// waits already.
    SendTo(PendingId),
    /// The same, and the machine waits from now on.
    New(PendingId),
    /// The machine continues with a login that a newer one replaced.
    Replaced,
    /// All places are taken by requests that are waited for.
    Busy,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Registrations {
    parked: ParkedRequests<Group, PendingLogin>,
    by_machine: BTreeMap<MachinePublic, PendingId>,
}

impl Registrations {
    /// A login of a machine without a key. `continues` says whether it names
    /// the address of this id. Besides what to do, returns the requests that
    /// ended because of it.
    pub(crate) fn request(
        &mut self,
        now: Instant,
        login: PendingLogin,
        source: Option<IpAddr>,
        continues: impl Fn(&PendingId) -> bool,
        entropy: &mut dyn Entropy,
    ) -> (LoginStep, Vec<PendingId>) {
        let mut ended = Vec::new();
        let machine = login.machine;
        let known = self.by_machine.get(&machine).cloned();
        if let Some((id, waiting)) = known.and_then(|id| Some((id.clone(), self.parked.get(&id)?)))
        {
            if waiting.request.node_key == login.request.node_key {
                if !continues(&id) {
                    return (LoginStep::SendTo(id), ended);
                }
                self.parked.wait(&id);
                return (LoginStep::Park(id), ended);
            }
            if !login.request.followup.is_empty() {
                return (LoginStep::Replaced, ended);
            }
            self.remove(&id);
            ended.push(id);
        }
        let source = source.map(|source| (Group::Source(network(source)), MAX_PENDING_OF_SOURCE));
        let shares: Vec<_> = source
            .into_iter()
            .chain([(Group::All, MAX_PENDING)])
            .collect();
        let deadline = now + PENDING_TTL;
        match self
            .parked
            .insert(login, &shares, deadline, |_| true, entropy)
        {
            Ok((id, evicted)) => {
                if let Some(evicted) = evicted {
                    self.by_machine.retain(|_, other| *other != evicted);
                    ended.push(evicted);
                }
                self.by_machine.insert(machine, id.clone());
                (LoginStep::New(id), ended)
            }
            Err(_full) => (LoginStep::Busy, ended),
        }
    }

    pub(crate) fn get(&self, id: &PendingId) -> Option<&PendingLogin> {
        self.parked.get(id)
    }

    /// All machines that wait, oldest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&PendingId, &PendingLogin)> {
        self.parked.iter()
    }

    fn remove(&mut self, id: &PendingId) {
        if let Some(login) = self.parked.remove(id) {
            self.by_machine.remove(&login.machine);
        }
    }

    /// A connection that was held open for this id ended.
    pub(crate) fn stopped_waiting(&mut self, id: &PendingId) {
        self.parked.stopped_waiting(id);
    }

    /// Ends the waiting of a machine that has joined, and of machines that wait
    /// with the node key that has just become a node's: to approve it later
    /// would create a node that no machine runs, or give two nodes one key.
    pub(crate) fn joined(&mut self, machine: MachinePublic, key: NodePublic) -> Vec<PendingId> {
        let gone = self
            .parked
            .retain(|login| login.request.node_key != key && login.machine != machine);
        if !gone.is_empty() {
            self.by_machine.retain(|_, id| !gone.contains(id));
        }
        gone
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.parked.next_deadline()
    }

    /// The next machine that has waited too long. It is no longer known; its
    /// parked request asks again and gets a new address.
    pub(crate) fn pop_due(&mut self, now: Instant) -> Option<PendingId> {
        let id = self.parked.pop_due(now)?;
        self.remove(&id);
        Some(id)
    }
}

/// The source of an address: itself, or the network of an IPv6 host, which
/// has as many addresses as it likes.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => IpAddr::V4(v4),
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !(u128::MAX >> 64))),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    struct Counting(u64);

    impl Entropy for Counting {
        fn fill(&mut self, out: &mut [u8]) {
            self.0 += 1;
            let bytes = self.0.to_le_bytes();
            out.iter_mut()
                .zip(bytes.iter().cycle())
                .for_each(|(o, b)| *o = *b);
        }
    }

    fn login(machine: u8, key: u8) -> PendingLogin {
        let request = RegisterRequest {
            node_key: NodePublic::from_bytes([key; 32]),
            ..RegisterRequest::default()
        };
        PendingLogin {
            machine: MachinePublic::from_bytes([machine; 32]),
            request: Box::new(request),
            since: Timestamp::UNIX_EPOCH,
        }
    }

    #[test]
    fn machine_waits_once_and_its_newest_login_counts() {
        let (mut all, mut entropy) = (Registrations::default(), Counting(0));
        let now = Instant::now();
        let mut ask = |all: &mut Registrations, login, continues| {
            all.request(now, login, None, |_| continues, &mut entropy)
        };
        let (LoginStep::New(first), _) = ask(&mut all, login(1, 1), false) else {
            panic!("a place is free")
        };
        let again = ask(&mut all, login(1, 1), false);
        assert_eq!(again, (LoginStep::SendTo(first.clone()), vec![]));
        let parked = ask(&mut all, login(1, 1), true);
        assert_eq!(parked, (LoginStep::Park(first.clone()), vec![]));
        let (LoginStep::New(second), ended) = ask(&mut all, login(1, 2), false) else {
            panic!("a newer login")
        };
        assert_eq!(ended, [first]);
        let mut old = login(1, 1);
        old.request.followup = "http://192.0.2.1/register/x".to_owned();
        assert_eq!(ask(&mut all, old, true), (LoginStep::Replaced, vec![]));
        assert_eq!(all.iter().count(), 1);
        assert_eq!(all.pop_due(now + PENDING_TTL), Some(second));
        assert!(all.iter().next().is_none() && all.by_machine.is_empty());
    }

    #[test]
    fn hosts_of_one_ipv6_network_are_one_source() {
        let one = network("2001:db8::1".parse().unwrap());
        assert_eq!(network("2001:db8::ffff:1".parse().unwrap()), one);
        assert_ne!(network("2001:db8:0:1::1".parse().unwrap()), one);
        let mapped = network("::ffff:192.0.2.1".parse().unwrap());
        assert_eq!(mapped, "192.0.2.1".parse::<IpAddr>().unwrap());
    }
}

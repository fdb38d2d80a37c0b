//! Machines that wait for approval.
//!
//! A machine waits once: a newer login with another node key replaces the older
//! one, whose request is answered with a refusal, so that a late approval
//! cannot create a node that no machine runs. Unauthenticated machines can ask
//! as often as they like, so places are limited, in total and for each source.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use warren_control_types::{Hostinfo, RegisterRequest};
use warren_keys::{Entropy, LockPublic, MachinePublic, NodePublic};

use crate::host_limits::{MAX_TAGS, bounded};
use crate::parked::{Group, ParkedRequests, PendingId, shares_of};

/// How many machines may wait for approval.
const MAX_PENDING: usize = 1024;
/// The longest signature of a node key, in bytes.
const MAX_SIGNATURE: usize = 4096;
/// How long a machine may wait for approval.
const PENDING_TTL: Duration = Duration::from_secs(15 * 60);

/// The part of a registration that makes a node, with a largest size whatever
/// the request contained.
#[derive(Debug, Clone)]
pub(crate) struct JoinRequest {
    pub(crate) node_key: NodePublic,
    /// The key of the node that the login renews, as the machine says.
    pub(crate) replaces: Option<NodePublic>,
    pub(crate) key_signature: Vec<u8>,
    pub(crate) lock_key: Option<LockPublic>,
    pub(crate) capability: u32,
    pub(crate) expiry: Option<Timestamp>,
    pub(crate) ephemeral: bool,
    /// `None` if the machine does not describe itself.
    pub(crate) hostinfo: Option<Hostinfo>,
}

impl JoinRequest {
    /// The part of this request.
    ///
    /// # Errors
    /// The request has more of something than may be left out: a text for the
    /// user.
    pub(crate) fn of(request: &RegisterRequest) -> Result<Self, String> {
        let hostinfo = request.hostinfo.as_ref();
        let tags = hostinfo.map_or(0, |host| host.request_tags.len());
        if tags > MAX_TAGS {
            return Err(format!(
                "the request names {tags} tags; a node may have {MAX_TAGS}"
            ));
        }
        let signature = &request.node_key_signature;
        if signature.len() > MAX_SIGNATURE {
            return Err(format!(
                "the signature of the node key is longer than {MAX_SIGNATURE} bytes"
            ));
        }
        Ok(Self {
            node_key: request.node_key,
            replaces: request.old_node_key,
            key_signature: signature.clone(),
            lock_key: request.nl_key,
            capability: request.version.0,
            expiry: request.expiry,
            ephemeral: request.ephemeral,
            hostinfo: hostinfo.map(bounded),
        })
    }

    /// The part that is kept while the machine waits. All else comes again with
    /// the request that it repeats after the approval.
    pub(crate) fn while_waiting(&self) -> Self {
        let host = self.hostinfo();
        Self {
            hostinfo: Some(Hostinfo {
                hostname: host.hostname,
                os: host.os,
                request_tags: host.request_tags,
                ..Hostinfo::default()
            }),
            ..self.clone()
        }
    }

    /// The machine's description of itself; empty if there is none.
    pub(crate) fn hostinfo(&self) -> Hostinfo {
        self.hostinfo.clone().unwrap_or_default()
    }
}

/// A machine that waits for approval.
#[derive(Debug, Clone)]
pub(crate) struct PendingLogin {
    pub(crate) machine: MachinePublic,
    pub(crate) request: Box<JoinRequest>,
    pub(crate) since: Timestamp,
    /// The address from which it asked, as far as it is known.
    pub(crate) source: Option<IpAddr>,
    /// An administrator refused it. It is kept until the machine has been informed.
    pub(crate) is_refused: bool,
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
    /// The machine continues with a login that an administrator refused.
    Refused,
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
    /// A login of a machine without a key. `followup` is the address that it
    /// names, or empty; `continues` says whether that is the address of this id.
    /// Besides what to do, returns the requests that ended because of it.
    pub(crate) fn request(
        &mut self,
        now: Instant,
        login: PendingLogin,
        source: Option<IpAddr>,
        followup: &str,
        continues: impl Fn(&PendingId) -> bool,
        entropy: &mut dyn Entropy,
    ) -> (LoginStep, Vec<PendingId>) {
        let mut ended = Vec::new();
        let machine = login.machine;
        let known = self.by_machine.get(&machine).cloned();
        if let Some((id, waiting)) = known.and_then(|id| Some((id.clone(), self.parked.get(&id)?)))
        {
            if waiting.is_refused && continues(&id) {
                self.remove(&id);
                return (LoginStep::Refused, ended);
            }
            if waiting.request.node_key == login.request.node_key && !waiting.is_refused {
                if !continues(&id) {
                    return (LoginStep::SendTo(id), ended);
                }
                self.parked.wait(&id);
                return (LoginStep::Park(id), ended);
            }
            if !followup.is_empty() && !waiting.is_refused {
                return (LoginStep::Replaced, ended);
            }
            self.remove(&id);
            ended.push(id);
        }
        let mut shares = source.map(shares_of).unwrap_or_default();
        shares.push((Group::All, MAX_PENDING));
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
        self.parked.get(id).filter(|login| !login.is_refused)
    }

    /// All machines that wait, oldest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&PendingId, &PendingLogin)> {
        self.parked.iter().filter(|(_, login)| !login.is_refused)
    }

    /// Refuses a machine that waits. Returns whether there is one under this id.
    pub(crate) fn refuse(&mut self, id: &PendingId) -> bool {
        match self.parked.get_mut(id) {
            Some(login) if !login.is_refused => {
                login.is_refused = true;
                true
            }
            Some(_) | None => false,
        }
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::net::Ipv6Addr;

    use warren_control_types::Service;

    use super::*;
    use warren_testkit::CountingEntropy;

    fn login(machine: u8, key: u8) -> PendingLogin {
        let request = RegisterRequest {
            node_key: NodePublic::from_bytes([key; 32]),
            ..RegisterRequest::default()
        };
        PendingLogin {
            machine: MachinePublic::from_bytes([machine; 32]),
            request: Box::new(JoinRequest::of(&request).unwrap()),
            since: Timestamp::UNIX_EPOCH,
            source: None,
            is_refused: false,
        }
    }

    #[test]
    fn machine_waits_once_and_its_newest_login_counts() {
        let (mut all, mut entropy) = (Registrations::default(), CountingEntropy(0));
        let now = Instant::now();
        let mut ask = |all: &mut Registrations, login, continues| {
            all.request(now, login, None, "", |_| continues, &mut entropy)
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
        let followup = "http://192.0.2.1/register/x";
        let old = all.request(now, login(1, 1), None, followup, |_| true, &mut entropy);
        assert_eq!(old, (LoginStep::Replaced, vec![]));
        assert_eq!(all.iter().count(), 1);
        assert_eq!(all.pop_due(now + PENDING_TTL), Some(second));
        assert!(all.iter().next().is_none() && all.by_machine.is_empty());
    }

    #[test]
    fn refused_machine_is_informed_once_and_may_ask_anew() {
        let (mut all, mut entropy) = (Registrations::default(), CountingEntropy(0));
        let now = Instant::now();
        let mut ask = |all: &mut Registrations, continues| {
            let followup = if continues {
                "http://192.0.2.1/register/x"
            } else {
                ""
            };
            all.request(
                now,
                login(1, 1),
                None,
                followup,
                |_| continues,
                &mut entropy,
            )
        };
        let (LoginStep::New(first), _) = ask(&mut all, false) else {
            panic!("a place is free")
        };
        assert!(all.refuse(&first) && !all.refuse(&first));
        assert!(all.get(&first).is_none() && all.iter().next().is_none());
        assert_eq!(ask(&mut all, true).0, LoginStep::Refused);
        let (LoginStep::New(second), _) = ask(&mut all, false) else {
            panic!("the place is free again")
        };
        assert!(all.refuse(&second));
        // Another login does not wait for the end of the refused one.
        let (step, ended) = ask(&mut all, false);
        assert!(matches!(step, LoginStep::New(_)) && ended == [second]);
    }

    #[test]
    fn waiting_login_keeps_a_bounded_part_of_a_request() {
        let long = "x".repeat(60_000);
        let hostinfo = Hostinfo {
            hostname: long.clone(),
            os: long.clone(),
            request_tags: vec![long.clone(); MAX_TAGS],
            services: vec![Service::default(); 20_000],
            wol_macs: vec![long.clone(); 10],
            ..Hostinfo::default()
        };
        let mut request = RegisterRequest {
            hostinfo: Some(hostinfo),
            followup: long.clone(),
            tailnet: long,
            node_key_signature: vec![1; MAX_SIGNATURE],
            ..RegisterRequest::default()
        };
        let kept = JoinRequest::of(&request).unwrap().while_waiting();
        let host = kept.hostinfo();
        let texts = host.hostname.len() + host.os.len();
        let tags: usize = host.request_tags.iter().map(String::len).sum();
        assert!(texts + tags + kept.key_signature.len() < 24 * 1024);
        let rest = Hostinfo {
            hostname: String::new(),
            os: String::new(),
            request_tags: Vec::new(),
            ..host
        };
        assert_eq!(rest, Hostinfo::default());
        request.node_key_signature.push(1);
        assert!(JoinRequest::of(&request).is_err());
    }

    #[test]
    fn one_ipv6_site_cannot_take_all_places() {
        let (mut all, mut entropy) = (Registrations::default(), CountingEntropy(0));
        let now = Instant::now();
        let mut waiting = 0;
        for n in 0..1024_u32 {
            // A new /64 for each machine, all in one /48.
            let source = Ipv6Addr::from_bits((0x2001_0db8 << 96) | (u128::from(n) << 64) | 1);
            let mut login = login(0, 0);
            let mut bytes = [1; 32];
            bytes[..4].copy_from_slice(&n.to_le_bytes());
            login.machine = MachinePublic::from_bytes(bytes);
            login.request.node_key = NodePublic::from_bytes(bytes);
            let source = Some(source.into());
            let (step, _) = all.request(now, login, source, "", |_| false, &mut entropy);
            if let LoginStep::New(id) = step {
                all.parked.wait(&id);
                waiting += 1;
            }
        }
        assert_eq!(waiting, 256);
    }
}

//! Registration: by key, by approval, again, and out.
//!
//! The machine key at the other end of the channel is proven; everything in the
//! request is only claimed. So a node key that is known belongs to its machine,
//! and a pending request is bound to the machine and the node key it came with.
//!
//! An interactive login is parked: the node is sent to an address, asks again
//! with `Followup`, and that question is held open until the administrator
//! decides ([`Output::Decided`]). Then the very same request is put to
//! [`Coordinator::register`] again, and finds its node made.
//!
//! A machine waits once: a newer login with another node key takes the place of
//! the older one, whose question is answered with a refusal, so that approving
//! it late cannot make a node that nobody runs. Strangers can ask as often as
//! they like, so the places are limited, in all and for each source; those that
//! nobody waits at any more are given away first, and who is waited for is not
//! pushed out ([`RegisterOutcome::Busy`]).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use data_encoding::HEXLOWER;
use jiff::{SignedDuration, Timestamp};
use warren_control_types::{
    Hostinfo, Login, LoginId, NodeId, RegisterRequest, RegisterResponse, User, UserId,
};
use warren_keys::{Entropy, MachinePublic, NodePublic};

use crate::auth_keys::AuthKeyText;
use crate::coordinator::{Coordinator, Notice, Output, timestamp};
use crate::error::AdminError;
use crate::names::{sanitize_hostname, unique_label};
use crate::records::{AuthKeyRecord, JoinMethod, NodeRecord, TAGGED_DEVICES};
use crate::references::UserRef;
use crate::session::{PatchFields, PeerMark};
use crate::{addresses, update};

/// How many machines may wait for approval.
const MAX_PENDING: usize = 1024;
/// How many of them may come from one address, or one IPv6 network of 64 bits.
const MAX_PENDING_OF_SOURCE: usize = 64;
/// How long a machine may wait for approval.
const PENDING_TTL: Duration = Duration::from_secs(15 * 60);

/// Names a machine that waits for approval, or a session over SSH that waits for
/// a check: 24 hexadecimal digits, unguessable.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PendingId(pub String);

impl PendingId {
    pub(crate) fn generate(entropy: &mut dyn Entropy) -> Self {
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

/// A machine that waits for approval.
#[derive(Debug, Clone)]
pub(crate) struct PendingLogin {
    pub(crate) machine: MachinePublic,
    pub(crate) request: Box<RegisterRequest>,
    pub(crate) since: Timestamp,
    pub(crate) deadline: Instant,
    source: Option<IpAddr>,
    /// Questions that are held open for it.
    waiters: u32,
    order: u64,
}

/// All machines that wait.
#[derive(Debug, Default)]
pub(crate) struct Pendings {
    pub(crate) waiting: BTreeMap<PendingId, PendingLogin>,
    next: u64,
}

impl Pendings {
    fn of_machine(&self, machine: MachinePublic) -> Option<(&PendingId, &PendingLogin)> {
        self.waiting.iter().find(|(_, p)| p.machine == machine)
    }

    /// Makes room for one more from `source`; answers who has to go. `Err` when
    /// everybody who could go is waited for.
    fn make_room(&mut self, source: Option<IpAddr>) -> Result<Option<PendingId>, ()> {
        let of_source = |login: &PendingLogin| source.is_some() && login.source == source;
        let taken = self.waiting.values().filter(|p| of_source(p)).count();
        let crowded = taken >= MAX_PENDING_OF_SOURCE;
        if !crowded && self.waiting.len() < MAX_PENDING {
            return Ok(None);
        }
        let oldest = self
            .waiting
            .iter()
            .filter(|(_, login)| login.waiters == 0 && (!crowded || of_source(login)))
            .min_by_key(|(_, login)| login.order)
            .map(|(id, _)| id.clone())
            .ok_or(())?;
        self.waiting.remove(&oldest);
        Ok(Some(oldest))
    }

    fn add(&mut self, login: PendingLogin, entropy: &mut dyn Entropy) -> PendingId {
        let id = PendingId::generate(entropy);
        self.next += 1;
        let order = self.next;
        self.waiting
            .insert(id.clone(), PendingLogin { order, ..login });
        id
    }
}

/// Who counts as one source: an address, or the network of an IPv6 host, which
/// has as many addresses as it likes.
fn one_source(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => IpAddr::V4(v4),
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !(u128::MAX >> 64))),
    }
}

/// What to do with a registration.
#[derive(Debug, Clone, PartialEq)]
pub enum RegisterOutcome {
    /// Answer it.
    Answer(Box<RegisterResponse>),
    /// Hold it until [`Output::Decided`] names this id, then ask again. When
    /// the client goes away before that: [`Coordinator::stopped_waiting`].
    Park(PendingId),
    /// Too many wait already; the client should try again later.
    Busy,
}

impl RegisterOutcome {
    fn error(text: impl Into<String>) -> Self {
        Self::Answer(Box::new(RegisterResponse {
            error: text.into(),
            ..Default::default()
        }))
    }

    fn expired() -> Self {
        Self::Answer(Box::new(RegisterResponse {
            node_key_expired: true,
            ..Default::default()
        }))
    }
}

/// Who a new node will belong to, and why it may come in.
struct Admission {
    user: Option<UserId>,
    tags: BTreeSet<String>,
    ephemeral: bool,
    method: JoinMethod,
    auth_key: Option<crate::AuthKeyId>,
}

impl Coordinator {
    /// Decides about a registration from the machine at the other end of the
    /// channel. Refusals are answers too: their text is shown to the user.
    pub fn register(
        &mut self,
        now: Instant,
        wall: Duration,
        machine: MachinePublic,
        request: &RegisterRequest,
    ) -> RegisterOutcome {
        self.register_from(now, wall, machine, None, request)
    }

    /// As [`Coordinator::register`], where it is known which address the
    /// channel comes from.
    pub fn register_from(
        &mut self,
        now: Instant,
        wall: Duration,
        machine: MachinePublic,
        source: Option<IpAddr>,
        request: &RegisterRequest,
    ) -> RegisterOutcome {
        let time = timestamp(wall);
        let have = request.version.0;
        if have < crate::MIN_CAPABILITY {
            let error = crate::MapError::TooOld {
                have,
                need: crate::MIN_CAPABILITY,
            };
            return RegisterOutcome::error(error.to_string());
        }
        if request.node_key.is_zero() {
            return RegisterOutcome::error("the request has no node key");
        }
        if let Some(node) = self.node_by_key(&request.node_key) {
            if node.machine != machine {
                return RegisterOutcome::error("node exists with a different machine key");
            }
            let id = node.id;
            return self.register_known(wall, id, request);
        }
        if request.expiry.is_some_and(|expiry| expiry <= time) {
            // A logout of a node that is gone already.
            return RegisterOutcome::expired();
        }
        match request
            .auth
            .as_ref()
            .map(|auth| auth.auth_key.as_str())
            .filter(|key| !key.is_empty())
        {
            Some(text) => self.register_with_key(now, wall, machine, request, text),
            None => self.register_interactive(now, time, machine, source, request),
        }
    }

    /// The node key is known and the machine owns it: a restart, a logout, or a
    /// wish for an earlier expiry.
    fn register_known(
        &mut self,
        wall: Duration,
        id: NodeId,
        request: &RegisterRequest,
    ) -> RegisterOutcome {
        let time = timestamp(wall);
        let Some(node) = self.data.nodes.get(&id) else {
            return RegisterOutcome::expired();
        };
        let expired = node.is_expired(time);
        if let Some(expiry) = request.expiry {
            if expiry <= time {
                return self.log_out(time, id);
            }
            if expired || node.key_expiry.is_some_and(|present| expiry > present) {
                return RegisterOutcome::error("extending key is not allowed; log in again");
            }
            self.set_expiry(id, Some(expiry));
        } else if expired {
            return RegisterOutcome::expired();
        }
        self.take_register_details(id, request);
        RegisterOutcome::Answer(Box::new(self.welcome(id)))
    }

    fn log_out(&mut self, time: Timestamp, id: NodeId) -> RegisterOutcome {
        let Some(node) = self.data.nodes.get(&id) else {
            return RegisterOutcome::expired();
        };
        if node.ephemeral {
            self.remove_node(id);
        } else {
            let name = node.name.clone();
            // Not the distant past that clients ask for: peers would see it.
            self.set_expiry(id, Some(time));
            self.told_expired.insert(id);
            self.outputs
                .push_back(Output::Notice(Notice::LoggedOut(id, name)));
        }
        RegisterOutcome::expired()
    }

    /// The pre-auth key with this text.
    pub(crate) fn auth_key(&self, text: &str) -> Option<&AuthKeyRecord> {
        let text = AuthKeyText::parse(text)?;
        let record = self.data.auth_keys.get(&text.id())?;
        text.matches(&record.digest).then_some(record)
    }

    fn register_with_key(
        &mut self,
        now: Instant,
        wall: Duration,
        machine: MachinePublic,
        request: &RegisterRequest,
        text: &str,
    ) -> RegisterOutcome {
        let time = timestamp(wall);
        let Some(mut key) = self.auth_key(text).cloned() else {
            return RegisterOutcome::error(
                "invalid pre auth key: this server does not know it; make one with `warren-control preauthkeys create`",
            );
        };
        if let Err(why) = usable(&key, time) {
            return RegisterOutcome::error(why);
        }
        let wanted = hostinfo(request).request_tags;
        let permitted = |tag: &String| {
            key.tags.contains(tag) || key.user.is_some_and(|user| self.access.may_tag(user, tag))
        };
        if let Some(tag) = wanted.iter().find(|tag| !permitted(tag)) {
            return RegisterOutcome::error(refused_tag(tag));
        }
        let mut tags = key.tags.clone();
        tags.extend(wanted.iter().cloned());
        let admission = Admission {
            user: key.user,
            tags,
            ephemeral: key.ephemeral || request.ephemeral,
            method: JoinMethod::AuthKey,
            auth_key: Some(key.id),
        };
        match self.admit(now, wall, machine, request, admission) {
            Ok(id) => {
                key.uses += 1;
                self.store_auth_key(&key);
                self.data.auth_keys.insert(key.id, key);
                RegisterOutcome::Answer(Box::new(self.welcome(id)))
            }
            Err(error) => RegisterOutcome::error(error.to_string()),
        }
    }

    fn register_interactive(
        &mut self,
        now: Instant,
        time: Timestamp,
        machine: MachinePublic,
        source: Option<IpAddr>,
        request: &RegisterRequest,
    ) -> RegisterOutcome {
        let waiting = self.pendings.of_machine(machine);
        let waiting = waiting.map(|(id, login)| (id.clone(), login.request.node_key));
        if let Some((id, node_key)) = waiting {
            let same_url = request.followup == self.auth_url(&id);
            if node_key == request.node_key {
                if !same_url {
                    return self.send_to(&id);
                }
                if let Some(login) = self.pendings.waiting.get_mut(&id) {
                    login.waiters += 1;
                }
                return RegisterOutcome::Park(id);
            }
            if !request.followup.is_empty() {
                // It goes on with what the newer login took the place of.
                return RegisterOutcome::error(
                    "a newer login of this machine took the place of this one; finish that one, or log in again",
                );
            }
            self.pendings.waiting.remove(&id);
            self.outputs.push_back(Output::Decided(id));
        }
        let source = source.map(one_source);
        match self.pendings.make_room(source) {
            Ok(None) => {}
            Ok(Some(evicted)) => self.outputs.push_back(Output::Decided(evicted)),
            Err(()) => return RegisterOutcome::Busy,
        }
        let login = PendingLogin {
            machine,
            request: Box::new(request.clone()),
            since: time,
            deadline: now + PENDING_TTL,
            source,
            waiters: 0,
            order: 0,
        };
        let id = self.pendings.add(login, self.entropy.as_mut());
        let host = hostinfo(request).hostname;
        self.outputs
            .push_back(Output::Notice(Notice::Waiting(id.clone(), host)));
        self.send_to(&id)
    }

    /// A question that was parked is no longer held open, for whatever reason.
    pub fn stopped_waiting(&mut self, id: &PendingId) {
        if let Some(login) = self.pendings.waiting.get_mut(id) {
            login.waiters = login.waiters.saturating_sub(1);
        }
        self.ssh_checks.stopped_waiting(id);
    }

    fn send_to(&self, id: &PendingId) -> RegisterOutcome {
        RegisterOutcome::Answer(Box::new(RegisterResponse {
            auth_url: self.auth_url(id),
            ..Default::default()
        }))
    }

    /// Where a person is sent to have a machine approved.
    pub fn auth_url(&self, id: &PendingId) -> String {
        format!("{}/register/{id}", self.config.server_url)
    }

    /// Lets a waiting machine in, as a node of `user` (or of `tags`).
    ///
    /// # Errors
    /// Nobody waits under this id, no such user, or no address is left.
    pub fn approve(
        &mut self,
        now: Instant,
        wall: Duration,
        id: &PendingId,
        user: impl Into<UserRef>,
        tags: BTreeSet<String>,
    ) -> Result<NodeId, AdminError> {
        let user = self.find_user(user)?.id;
        let login = self
            .pendings
            .waiting
            .get(id)
            .cloned()
            .ok_or_else(|| AdminError::NoPending(id.0.clone()))?;
        let mut all_tags = tags;
        for tag in hostinfo(&login.request).request_tags {
            // The administrator stands above tag owners, yet a machine must not
            // talk itself into a tag that nobody looked at.
            if !self.access.may_tag(user, &tag) && !all_tags.contains(&tag) {
                return Err(AdminError::Policy(refused_tag(&tag)));
            }
            all_tags.insert(tag);
        }
        let admission = Admission {
            user: Some(user),
            tags: all_tags,
            ephemeral: login.request.ephemeral,
            method: JoinMethod::Approval,
            auth_key: None,
        };
        self.admit(now, wall, login.machine, &login.request, admission)
    }

    /// Ends the waiting of this machine, which is in, and of whoever waits with
    /// this node key, which has just become a node's: approving it later would
    /// make a node that nobody runs, or give two nodes one key.
    fn end_waiting(&mut self, machine: MachinePublic, key: NodePublic) {
        let outputs = &mut self.outputs;
        self.pendings.waiting.retain(|id, login| {
            let stays = login.request.node_key != key && login.machine != machine;
            if !stays {
                outputs.push_back(Output::Decided(id.clone()));
            }
            stays
        });
    }

    /// Makes the node, or gives the node that this machine and owner already
    /// have the new key.
    fn admit(
        &mut self,
        now: Instant,
        wall: Duration,
        machine: MachinePublic,
        request: &RegisterRequest,
        admission: Admission,
    ) -> Result<NodeId, AdminError> {
        let time = timestamp(wall);
        let tagged = !admission.tags.is_empty();
        let lifetime = self
            .config
            .key_lifetime
            .filter(|_| !tagged && !admission.ephemeral);
        let granted = lifetime
            .and_then(|life| SignedDuration::try_from(life).ok())
            .and_then(|life| time.checked_add(life).ok());
        let expiry = match (granted, request.expiry) {
            (Some(granted), Some(wish)) => Some(granted.min(wish)),
            (granted, wish) => granted.or(wish),
        };
        let known = self.data.nodes.values().find(|node| {
            node.machine == machine
                && node.is_tagged() == tagged
                && (tagged || node.user == admission.user)
        });
        if let Some(known) = known.map(|node| node.id) {
            self.renew(now, known, request, admission, expiry);
            self.end_waiting(machine, request.node_key);
            return Ok(known);
        }
        let used = self.data.nodes.values().map(|node| node.address).collect();
        let pools = self.access.address_pools(admission.user, &admission.tags);
        let address = addresses::allocate_in(&pools, &used, self.data.counters.address)
            .ok_or(AdminError::NoAddresses)?;
        if pools.is_empty() {
            self.data.counters.address = address.get() + 1;
        }
        let id = self.take_node_id();
        let hostinfo = hostinfo(request);
        let name = self.free_name(&sanitize_hostname(&hostinfo.hostname), None);
        let node = NodeRecord {
            id,
            machine,
            key: request.node_key,
            user: admission.user,
            tags: admission.tags,
            address,
            name,
            name_chosen: false,
            created: time,
            key_expiry: expiry,
            last_seen: Some(time),
            ephemeral: admission.ephemeral,
            join_method: admission.method,
            auth_key: admission.auth_key,
            disco: None,
            endpoints: Vec::new(),
            home_relay: update::home_relay(&hostinfo),
            hostinfo,
            capability: request.version.0,
            approved_routes: BTreeSet::new(),
            key_signature: request.node_key_signature.clone(),
        };
        self.by_key.insert(node.key, id);
        if node.ephemeral {
            self.delete_at
                .insert(id, now + self.config.ephemeral_timeout);
        }
        self.data.nodes.insert(id, node);
        self.store_node(id, true);
        self.outputs.push_back(Output::Notice(Notice::Joined(id)));
        self.identity_changed(id);
        self.approve_by_policy(id);
        self.end_waiting(machine, request.node_key);
        Ok(id)
    }

    /// A known node comes with a new key: same id, addresses and name.
    fn renew(
        &mut self,
        now: Instant,
        id: NodeId,
        request: &RegisterRequest,
        admission: Admission,
        expiry: Option<Timestamp>,
    ) {
        let Some(node) = self.data.nodes.get_mut(&id) else {
            return;
        };
        let old_key = std::mem::replace(&mut node.key, request.node_key);
        let owner_changed = node.tags != admission.tags || node.user != admission.user;
        let expiry_changed = node.key_expiry != expiry || self.told_expired.contains(&id);
        node.tags = admission.tags;
        node.user = admission.user;
        node.key_expiry = expiry;
        node.ephemeral = admission.ephemeral;
        node.join_method = admission.method;
        node.auth_key = admission.auth_key.or(node.auth_key);
        node.key_signature.clone_from(&request.node_key_signature);
        self.by_key.remove(&old_key);
        self.by_key.insert(request.node_key, id);
        self.told_expired.remove(&id);
        self.store_node(id, true);
        self.outputs
            .push_back(Output::Notice(Notice::KeyRenewed(id)));
        // The stream of the old key ends: its owner polls anew with the new one,
        // and within the grace time nobody hears of the gap.
        if let Some(session) = self.session_of.remove(&id) {
            self.sessions.remove(&session);
            self.outputs.push_back(Output::End(session));
            self.offline_at.insert(id, now + self.config.offline_grace);
        }
        if owner_changed {
            self.identity_changed(id);
        } else if expiry_changed {
            self.announce(id, PeerMark::Whole);
        } else {
            self.announce(id, PeerMark::Patch(PatchFields::KEY));
        }
        self.take_register_details(id, request);
        if owner_changed {
            self.approve_anew(id);
        }
    }

    /// Takes over what a registration says besides the key.
    fn take_register_details(&mut self, id: NodeId, request: &RegisterRequest) {
        if let Some(hostinfo) = &request.hostinfo {
            self.apply_hostinfo(id, hostinfo);
        }
        self.apply_capability(id, request.version.0);
    }

    pub(crate) fn free_name(&self, label: &str, except: Option<NodeId>) -> String {
        unique_label(label, |candidate| {
            self.data
                .nodes
                .values()
                .any(|node| Some(node.id) != except && node.name == candidate)
        })
    }

    /// Sets the expiry of a node's key and tells the node and its peers.
    pub(crate) fn set_expiry(&mut self, id: NodeId, expiry: Option<Timestamp>) {
        let Some(node) = self.data.nodes.get_mut(&id) else {
            return;
        };
        if node.key_expiry == expiry {
            return;
        }
        node.key_expiry = expiry;
        self.told_expired.remove(&id);
        self.store_node(id, true);
        self.mark_own(id);
        self.announce(id, PeerMark::Whole);
    }

    fn welcome(&self, id: NodeId) -> RegisterResponse {
        let owner = self
            .data
            .nodes
            .get(&id)
            .map_or(TAGGED_DEVICES, NodeRecord::owner);
        let (name, created) = self.user_name(owner);
        RegisterResponse {
            user: User {
                id: owner,
                display_name: name.clone(),
                created,
                ..Default::default()
            },
            login: Login {
                id: LoginId(owner.0),
                provider: "warren".to_owned(),
                login_name: name.clone(),
                display_name: name,
                ..Default::default()
            },
            machine_authorized: true,
            ..Default::default()
        }
    }
}

/// What the machine says about itself, nothing if it says nothing.
pub(crate) fn hostinfo(request: &RegisterRequest) -> Hostinfo {
    request.hostinfo.clone().unwrap_or_default()
}

/// Whether the key lets a machine in; if not, why.
pub(crate) fn usable(key: &AuthKeyRecord, time: Timestamp) -> Result<(), String> {
    if let Some(expiry) = key.expiry.filter(|expiry| *expiry <= time) {
        return Err(format!(
            "authkey expired at {expiry:.0}; make a new one with `warren-control preauthkeys create`"
        ));
    }
    if key.uses > 0 && !key.reusable {
        return Err("authkey already used: it worked once; make a new one, or a --reusable one, with `warren-control preauthkeys create`".to_owned());
    }
    Ok(())
}

fn refused_tag(tag: &str) -> String {
    format!(
        "requested tag {tag} is not permitted: the policy's tagOwners must name the user, or the pre-auth key must carry the tag"
    )
}

//! Registration: by key, by approval, again, and logout.
//!
//! The machine key at the other end of the channel is proven; everything in the
//! request is only claimed. So a node key that is known belongs to its machine,
//! and a pending request is bound to the machine and the node key it came with.
//! Which owner a node gets, and which node a login renews: [`owners`](super::owners).
//!
//! An interactive login is parked: the node is sent an address, asks again with
//! `Followup`, and that request is held open until the administrator decides
//! ([`Output::Decided`](crate::Output::Decided)). Then the very same request is
//! put to [`Coordinator::register`] again, and finds its node made.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use warren_control_types::{
    Login, LoginId, NodeId, RegisterRequest, RegisterResponse, User, UserId,
};
use warren_keys::MachinePublic;

use super::Coordinator;
use super::owners::{Admission, Owner, POLICY_REFUSES, refused_tags};
use super::update::{Report, home_relay};
use crate::addresses;
use crate::error::AdminError;
use crate::names::sanitize_hostname;
use crate::output::Notice;
use crate::parked::PendingId;
use crate::records::{AuthKeyRecord, Change, JoinMethod, NodeRecord, TAGGED_DEVICES};
use crate::references::UserRef;
use crate::registrations::{JoinRequest, LoginStep, PendingLogin};

/// The reaction to a registration.
#[derive(Debug, Clone, PartialEq)]
pub enum RegisterOutcome {
    /// Answer it.
    Answer(Box<RegisterResponse>),
    /// Hold it until [`Output::Decided`](crate::Output::Decided) names this id,
    /// then ask again. When the client goes away before that:
    /// [`Coordinator::stopped_waiting`].
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
        let time = self.advance(now, wall);
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
        let join = match JoinRequest::of(request) {
            Ok(join) => join,
            Err(why) => return RegisterOutcome::error(why),
        };
        if self.signature_replaces_others(machine, request) {
            return RegisterOutcome::error(
                "the signature of the node key replaces the key of another machine",
            );
        }
        if let Some(node) = self.node_by_key(&request.node_key) {
            if node.machine != machine {
                return RegisterOutcome::error("node exists with a different machine key");
            }
            let id = node.id;
            return self.register_known(id, &join);
        }
        if request.expiry.is_some_and(|expiry| expiry <= time) {
            // A logout of a node that is gone already.
            return RegisterOutcome::expired();
        }
        if let Some(signature) = self.signature_to_rotate(machine, request) {
            return RegisterOutcome::Answer(Box::new(RegisterResponse {
                node_key_signature: signature,
                ..Default::default()
            }));
        }
        match request
            .auth
            .as_ref()
            .map(|auth| auth.auth_key.as_str())
            .filter(|key| !key.is_empty())
        {
            Some(text) => self.register_with_key(time, machine, &join, text),
            None => self.register_interactive(now, time, machine, source, &request.followup, &join),
        }
    }

    /// The node key is known and the machine owns it: a restart, a logout, or a
    /// request for an earlier expiry.
    fn register_known(&mut self, id: NodeId, request: &JoinRequest) -> RegisterOutcome {
        let time = self.clock.time();
        let Some(node) = self.view.node(id) else {
            return RegisterOutcome::expired();
        };
        let expired = !self.view.standing(id).is_valid();
        let mut expiry = node.key_expiry;
        if let Some(wish) = request.expiry {
            if wish <= time {
                return self.log_out(time, id);
            }
            if expired || expiry.is_some_and(|present| wish > present) {
                return RegisterOutcome::error("extending key is not allowed; log in again");
            }
            expiry = Some(wish);
        } else if expired {
            return RegisterOutcome::expired();
        }
        let owner = match self.owner_by_wish(node, request) {
            Ok(owner) => owner,
            Err(why) => {
                // Refused once: the node goes on with its owner when it comes again.
                let wanted = request.hostinfo().request_tags;
                self.revise(id, true, |record| record.hostinfo.request_tags = wanted);
                return RegisterOutcome::error(why);
            }
        };
        let mut node = node.clone();
        let routes_before = node.hostinfo.routable_ips.clone();
        node.key_expiry = expiry;
        self.take_registration(&mut node, request);
        let routes_differ = routes_before != node.hostinfo.routable_ips;
        let has_new_owner = owner.is_some();
        if let Some(owner) = owner {
            node.key_expiry = self.end_of_key(&owner, node.ephemeral, request.expiry);
            owner.give(&mut node);
        }
        self.revise(id, true, |record| *record = node);
        if has_new_owner {
            self.approve_anew(id);
        } else if routes_differ {
            self.approve_by_policy(id);
        }
        RegisterOutcome::Answer(Box::new(self.welcome(id)))
    }

    fn log_out(&mut self, time: Timestamp, id: NodeId) -> RegisterOutcome {
        let Some(node) = self.view.node(id) else {
            return RegisterOutcome::expired();
        };
        if node.ephemeral {
            self.remove_node(id);
        } else {
            let name = node.name.clone();
            // Not the distant past that clients ask for: peers would see it.
            self.revise(id, true, |node| node.key_expiry = Some(time));
            self.notice(Notice::LoggedOut(id, name));
        }
        RegisterOutcome::expired()
    }

    fn register_with_key(
        &mut self,
        time: Timestamp,
        machine: MachinePublic,
        request: &JoinRequest,
        text: &str,
    ) -> RegisterOutcome {
        let Some(mut key) = self.view.auth_key(text).cloned() else {
            return RegisterOutcome::error(
                "invalid pre auth key: this server does not know it; make one with `warren-control preauthkeys create`",
            );
        };
        if let Err(why) = usable(&key, time) {
            return RegisterOutcome::error(why);
        }
        let wanted = request.hostinfo().request_tags;
        if let Err(why) = self.check_requested_tags(&key, &wanted) {
            return RegisterOutcome::error(why);
        }
        let admission = self.admission_by_key(machine, request, &key, wanted);
        match self.admit(machine, request, admission) {
            Ok(id) => {
                key.uses += 1;
                self.commit(Change::AuthKey(key), true);
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
        followup: &str,
        request: &JoinRequest,
    ) -> RegisterOutcome {
        let login = PendingLogin {
            machine,
            request: Box::new(request.while_waiting()),
            since: time,
            source,
            is_refused: false,
        };
        let view = &self.view;
        let continues = |id: &PendingId| followup == auth_url(&view.config.server_url, id);
        let entropy = self.entropy.as_mut();
        let (step, ended) = self
            .registrations
            .request(now, login, source, followup, continues, entropy);
        self.decided(ended);
        match step {
            LoginStep::Park(id) => RegisterOutcome::Park(id),
            LoginStep::SendTo(id) => self.send_to(&id),
            LoginStep::New(id) => {
                let host = request.hostinfo().hostname;
                self.notice(Notice::Waiting(id.clone(), host));
                self.send_to(&id)
            }
            LoginStep::Replaced => RegisterOutcome::error(
                "a newer login of this machine took the place of this one; finish that one, or log in again",
            ),
            LoginStep::Refused => RegisterOutcome::error(
                "an administrator of this network refused this machine; ask them before you log in again",
            ),
            LoginStep::Busy => RegisterOutcome::Busy,
        }
    }

    fn send_to(&self, id: &PendingId) -> RegisterOutcome {
        RegisterOutcome::Answer(Box::new(RegisterResponse {
            auth_url: self.auth_url(id),
            ..Default::default()
        }))
    }

    /// The address to which a person is sent to have a machine approved.
    pub fn auth_url(&self, id: &PendingId) -> String {
        auth_url(&self.config().server_url, id)
    }

    /// Admits a waiting machine, as a node of `user` (or of `tags`).
    ///
    /// # Errors
    /// No machine waits under this id, no such user, a tag that the policy does
    /// not define or that the user may not use, or no address is left.
    pub fn approve(
        &mut self,
        now: Instant,
        wall: Duration,
        id: &PendingId,
        user: impl Into<UserRef>,
        tags: BTreeSet<String>,
    ) -> Result<NodeId, AdminError> {
        self.advance(now, wall);
        let user = self.find_user(user)?.id;
        self.admit_waiting(id, user, tags, JoinMethod::Approval, None)
    }

    /// Admits a waiting machine, as a node of `user` (or of `tags`). The key of a
    /// person's node ends at `end` at the latest.
    pub(super) fn admit_waiting(
        &mut self,
        id: &PendingId,
        user: UserId,
        tags: BTreeSet<String>,
        method: JoinMethod,
        end: Option<Timestamp>,
    ) -> Result<NodeId, AdminError> {
        self.check_tags(&tags)?;
        let login = self.registrations.get(id).cloned();
        let mut login = login.ok_or_else(|| AdminError::NoPending(id.0.clone()))?;
        let mut all_tags = tags;
        for tag in login.request.hostinfo().request_tags {
            // The administrator may give any tag, yet a machine must not get a
            // tag that no person looked at.
            if !self.view.access.may_tag(user, &tag) && !all_tags.contains(&tag) {
                return Err(AdminError::Policy(refused_tags(&[tag], POLICY_REFUSES)));
            }
            all_tags.insert(tag);
        }
        if all_tags.is_empty() {
            let wishes = [login.request.expiry, end];
            login.request.expiry = wishes.into_iter().flatten().min();
        }
        let admission = Admission {
            owner: Owner {
                user: Some(user),
                tags: all_tags,
                set: false,
            },
            ephemeral: login.request.ephemeral,
            method,
            auth_key: None,
        };
        self.admit(login.machine, &login.request, admission)
    }

    /// Refuses a waiting machine, or a session over SSH that waits for a check.
    ///
    /// # Errors
    /// Nothing waits under this id.
    pub fn refuse(&mut self, now: Instant, id: &PendingId) -> Result<(), AdminError> {
        if self.registrations.refuse(id) {
            self.decided([id.clone()]);
            return Ok(());
        }
        match self.deny_ssh_check(now, id) {
            Ok(_) => Ok(()),
            Err(_) => Err(AdminError::NoPending(id.0.clone())),
        }
    }

    /// Creates the node, or gives the node that the login renews the new key.
    fn admit(
        &mut self,
        machine: MachinePublic,
        request: &JoinRequest,
        admission: Admission,
    ) -> Result<NodeId, AdminError> {
        let end = self.end_of_key(&admission.owner, admission.ephemeral, request.expiry);
        let id = match self.renewed_by(machine, request, &admission) {
            Some(known) => {
                self.renew(known, request, admission, end);
                known
            }
            None => self.join(machine, request, admission, end)?,
        };
        let ended = self.registrations.joined(machine, request.node_key);
        self.decided(ended);
        Ok(id)
    }

    /// Creates a node.
    fn join(
        &mut self,
        machine: MachinePublic,
        request: &JoinRequest,
        admission: Admission,
        expiry: Option<Timestamp>,
    ) -> Result<NodeId, AdminError> {
        let time = self.clock.latest();
        let owner = admission.owner;
        let directory = &self.view.directory;
        let pools = self.view.access.address_pools(owner.user, &owner.tags);
        let mut counters = directory.counters();
        let used = |index| directory.has_address(index);
        let address = addresses::allocate_in(&pools, used, counters.address)
            .ok_or(AdminError::NoAddresses)?;
        if pools.is_empty() {
            counters.address = address.get() + 1;
            self.commit(Change::Counters(counters), true);
        }
        let id = self.take_node_id();
        let hostinfo = request.hostinfo();
        let node = NodeRecord {
            id,
            machine,
            key: request.node_key,
            user: owner.user,
            tags: owner.tags,
            owner_set: owner.set,
            address,
            name: self
                .view
                .free_name(&sanitize_hostname(&hostinfo.hostname), None),
            name_chosen: false,
            created: time,
            key_expiry: expiry,
            last_seen: Some(time),
            ephemeral: admission.ephemeral,
            join_method: admission.method,
            auth_key: admission.auth_key,
            disco: None,
            endpoints: Vec::new(),
            home_relay: home_relay(&hostinfo),
            hostinfo,
            capability: request.capability,
            approved_routes: BTreeSet::new(),
            key_signature: request.key_signature.clone(),
            lock_key: request.lock_key,
        };
        self.commit(Change::Node(Box::new(node)), true);
        self.notice(Notice::Joined(id));
        self.approve_by_policy(id);
        Ok(id)
    }

    /// A known node comes with a new key: same id, addresses and name.
    fn renew(
        &mut self,
        id: NodeId,
        request: &JoinRequest,
        admission: Admission,
        expiry: Option<Timestamp>,
    ) {
        let Some(old) = self.view.node(id) else {
            return;
        };
        let mut node = old.clone();
        let owner_changed = Owner::of(old).differs(&admission.owner);
        let routes_before = node.hostinfo.routable_ips.clone();
        node.key = request.node_key;
        admission.owner.give(&mut node);
        node.key_expiry = expiry;
        node.ephemeral = admission.ephemeral;
        node.join_method = admission.method;
        node.auth_key = admission.auth_key.or(node.auth_key);
        node.key_signature.clone_from(&request.key_signature);
        if admission.method == JoinMethod::AuthKey {
            // Of a request that waited, only a part was kept. The rest comes when
            // the machine repeats it; until then the node is as it was.
            self.take_registration(&mut node, request);
        }
        let routes_differ = routes_before != node.hostinfo.routable_ips;
        self.revise(id, true, |record| *record = node);
        self.notice(Notice::KeyRenewed(id));
        if owner_changed {
            self.approve_anew(id);
        } else if routes_differ {
            self.approve_by_policy(id);
        }
    }

    /// Takes over what a registration says besides the key.
    fn take_registration(&self, node: &mut NodeRecord, request: &JoinRequest) {
        let report = Report {
            capability: request.capability,
            hostinfo: request.hostinfo.as_ref(),
            ..Report::default()
        };
        self.take_report(node, &report);
        node.lock_key = request.lock_key.or(node.lock_key);
    }

    fn welcome(&self, id: NodeId) -> RegisterResponse {
        let owner = self.node(id).map_or(TAGGED_DEVICES, NodeRecord::owner);
        let person = self.view.person(owner);
        RegisterResponse {
            user: User {
                id: owner,
                display_name: person.display_name.clone(),
                created: person.created,
                ..Default::default()
            },
            login: Login {
                id: LoginId(owner.0),
                provider: person.provider,
                login_name: person.login_name,
                display_name: person.display_name,
                profile_pic_url: person.picture,
            },
            machine_authorized: true,
            ..Default::default()
        }
    }
}

fn auth_url(server_url: &str, id: &PendingId) -> String {
    format!("{server_url}/register/{id}")
}

/// Whether the key admits a machine; the reason if not.
pub(super) fn usable(key: &AuthKeyRecord, time: Timestamp) -> Result<(), String> {
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

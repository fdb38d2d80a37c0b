//! The one way in which records change.
//!
//! A change is applied to the directory, handed to the store, and compared with
//! the record before it; from the two follows what the policy, the routers, the
//! timers and the maps of which nodes have to follow. A change that another
//! coordinator made goes the same way, and is not stored again.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use warren_control_types::{NodeId, UserId};
use warren_policy::{Context, NodeSet, Policy};

use super::Coordinator;
use crate::access::{Access, MapImpact};
use crate::impact::{self, NodeImpact};
use crate::map_sessions::{PatchFields, PeerUpdate};
use crate::output::{Notice, Output};
use crate::records::{AuthKeyId, Change, Counters, NodeRecord, UserRecord};
use crate::view::View;

impl Coordinator {
    /// Carries out a change of this coordinator. `durable`: no answer may speak
    /// of it before it is on disk.
    pub(super) fn commit(&mut self, change: Change, durable: bool) {
        self.outputs.push_back(Output::Store {
            change: change.clone(),
            durable,
        });
        self.apply(change);
    }

    /// As [`Coordinator::commit`], for a policy that was parsed already.
    pub(super) fn commit_policy(&mut self, policy: Policy, text: Option<String>) {
        self.outputs.push_back(Output::Store {
            change: Change::Policy(text.clone()),
            durable: true,
        });
        self.policy_committed(policy, text);
    }

    /// Carries out a change that another coordinator made and stored.
    ///
    /// # Errors
    /// A policy that this version cannot parse: its diagnostics. Nothing was
    /// changed.
    pub fn apply_foreign(
        &mut self,
        now: Instant,
        wall: Duration,
        change: Change,
    ) -> Result<(), String> {
        self.advance(now, wall);
        if let Change::Policy(Some(text)) = &change {
            let policy = crate::access::read("policy", text, &Context::default())?;
            self.policy_committed(policy, Some(text.clone()));
        } else {
            self.apply(change);
        }
        Ok(())
    }

    fn apply(&mut self, change: Change) {
        match change {
            Change::User(user) => self.user_committed(user),
            Change::UserGone(id) => {
                let directory = &mut self.view_mut().directory;
                if directory.remove_user(id).is_some() {
                    self.users_changed();
                }
            }
            Change::Node(node) => self.node_committed(*node),
            Change::NodeGone(id) => self.node_removed(id),
            Change::AuthKey(key) => self.view_mut().directory.put_auth_key(key),
            Change::AuthKeyGone(id) => self.view_mut().directory.remove_auth_key(id),
            Change::Policy(None) => self.policy_committed(Policy::allow_all(), None),
            // Both callers parse a policy before; a wrong one changes nothing.
            Change::Policy(Some(text)) => {
                if let Ok(policy) = crate::access::read("policy", &text, &Context::default()) {
                    self.policy_committed(policy, Some(text));
                }
            }
            Change::PolicyVersion(version) => {
                self.view_mut().directory.put_policy_version(version);
            }
            Change::PolicyVersionGone(version) => {
                self.view_mut().directory.remove_policy_version(version);
            }
            change @ (Change::LockMessage(_) | Change::LockMessageGone(_) | Change::Lock(_)) => {
                self.lock_committed(change);
            }
            Change::Dns(dns) => self.dns_committed(*dns),
            Change::Counters(counters) => self.view_mut().directory.set_counters(counters),
        }
    }

    /// The state, to be changed. Readers keep the one that they have.
    pub(super) fn view_mut(&mut self) -> &mut View {
        Arc::make_mut(&mut self.view)
    }

    // Nodes.

    fn node_committed(&mut self, new: NodeRecord) {
        let (id, ephemeral) = (new.id, new.ephemeral);
        let time = self.clock.time();
        let before = self.view.viewers_of(id);
        let access = &self.view.access;
        let impact = NodeImpact::of(self.view.node(id), &new, |old, new| {
            access.depends_on_host(old, new)
        });
        let is_new = self.view.node(id).is_none();
        let routes = crate::routes::effective(&new);
        let old = self.view_mut().directory.put_node(new, time);
        let expired_before = old.is_some_and(|old| old.state.expired);
        if impact.ends_stream {
            // The node polls again with its new key, and within the grace time
            // no peer is informed of the gap.
            if let Some(session) = self.sessions.end_of(id) {
                self.outputs.push_back(Output::End(session));
                self.presence.disconnected(self.clock.now(), id, ephemeral);
                self.refresh_routers([id]);
            }
        }
        self.presence.kind_is(self.clock.now(), id, ephemeral);
        if impact.policy {
            self.policy_of_node_changed(id, before, !is_new);
        } else if let Some(update) = impact.peers {
            self.sessions.invalidate_peer(before.as_ref(), id, update);
        }
        if impact.own {
            self.sessions
                .invalidate(id, |pending| pending.own_node = true);
        }
        if impact.routes {
            self.routes_changed(id, routes);
        }
        let expired = self.view.directory.entry(id);
        if expired.is_some_and(|entry| entry.state.expired != expired_before) {
            self.expiry_changed(id);
        }
    }

    /// The policy treats the node differently: it joined or left, or has another
    /// owner, other tags, routes or attributes.
    fn policy_of_node_changed(&mut self, id: NodeId, before: Option<NodeSet>, existed: bool) {
        let view = self.view_mut();
        let impact = Arc::make_mut(&mut view.access).node_changed(&view.directory, id);
        let after = view.viewers_of(id);
        let viewers = match (before, after) {
            (Some(before), Some(mut after)) => {
                after.extend(before.iter());
                Some(after)
            }
            (None, _) | (_, None) => None,
        };
        self.sessions
            .invalidate_peer(viewers.as_ref(), id, PeerUpdate::Whole);
        self.invalidate(&impact);
        if existed {
            self.sessions.invalidate(id, |pending| {
                pending.own_node = true;
                pending.view = true;
                pending.filter = true;
                pending.ssh = true;
            });
        }
    }

    fn node_removed(&mut self, id: NodeId) {
        let before = self.view.viewers_of(id);
        let Some(old) = self.view_mut().directory.remove_node(id) else {
            return;
        };
        self.outputs
            .extend(self.sessions.end_of(id).map(Output::End));
        self.presence.forget(id);
        self.probes.forget(id);
        self.notice(Notice::Left(id, old.record.name.clone()));
        self.policy_of_node_changed(id, before, false);
        self.routes_changed(id, BTreeSet::new());
    }

    /// Replaces a record by an altered one, if it differs.
    pub(super) fn revise(
        &mut self,
        id: NodeId,
        durable: bool,
        change: impl FnOnce(&mut NodeRecord),
    ) -> bool {
        let Some(old) = self.view.node(id) else {
            return false;
        };
        let mut node = old.clone();
        change(&mut node);
        let differs = node != *old;
        if differs {
            self.commit(Change::Node(Box::new(node)), durable);
        }
        differs
    }

    /// Deletes a node.
    pub(super) fn remove_node(&mut self, id: NodeId) {
        if self.view.node(id).is_some() {
            self.commit(Change::NodeGone(id), true);
        }
    }

    // State beside the records.

    /// Peers are informed that the node is online, or that it is not.
    pub(super) fn online_changed(&mut self, id: NodeId, online: bool) {
        let directory = &mut self.view_mut().directory;
        if !directory.set_state(id, |state| state.online = online) {
            return;
        }
        self.notice(if online {
            Notice::Online(id)
        } else {
            Notice::Offline(id)
        });
        self.announce(id, PeerUpdate::Patch(PatchFields::ONLINE));
        if online {
            self.sessions
                .invalidate(id, |pending| pending.own_node = true);
        }
        let impact = self.view.access.presence_changed(id);
        self.invalidate(&impact);
        self.refresh_routers([id]);
    }

    /// Takes over readings of the clocks, and returns the time that is believed.
    /// Keys expire and become valid again by it, in whichever direction it moves.
    pub(super) fn advance(&mut self, now: Instant, wall: Duration) -> Timestamp {
        let before = self.clock.time();
        self.clock.read(now, wall);
        let time = self.clock.time();
        let (from, to) = (before.min(time), before.max(time));
        for id in self.view.directory.expiring(from, to) {
            let directory = &mut self.view_mut().directory;
            let expired = directory.node(id).is_some_and(|node| node.is_expired(time));
            if directory.set_state(id, |state| state.expired = expired) {
                self.announce(id, PeerUpdate::Whole);
                self.expiry_changed(id);
            }
        }
        time
    }

    /// The node's key expired or became valid again: so does its view of others.
    fn expiry_changed(&mut self, id: NodeId) {
        self.sessions.invalidate(id, |pending| {
            pending.own_node = true;
            pending.view = true;
            pending.filter = true;
            pending.ssh = true;
        });
        self.standing_changed(id);
    }

    /// Invalidates the node in the maps of its peers.
    pub(super) fn announce(&mut self, id: NodeId, update: PeerUpdate) {
        let viewers = self.view.viewers_of(id);
        self.sessions.invalidate_peer(viewers.as_ref(), id, update);
    }

    // Users and the policy.

    fn user_committed(&mut self, new: UserRecord) {
        let id = new.id;
        let old = self.view_mut().directory.put_user(new.clone());
        let (renamed, capabilities) = impact::of_user(old.as_deref(), &new);
        if renamed {
            self.sessions.invalidate_user(id);
        }
        if capabilities {
            for node in self.view.directory.nodes_of_user(id) {
                self.sessions
                    .invalidate(node, |pending| pending.own_node = true);
            }
        }
        self.users_changed();
    }

    fn users_changed(&mut self) {
        let view = self.view_mut();
        let impact = Arc::make_mut(&mut view.access).users_changed(&view.directory);
        self.invalidate(&impact);
    }

    fn policy_committed(&mut self, policy: Policy, text: Option<String>) {
        let access = match &text {
            None => Access::allow_all(),
            Some(_) => Access::of(policy),
        };
        let view = self.view_mut();
        let same_relays = view.access.has_same_relays(&access);
        let impact = Arc::make_mut(&mut view.access).replace(access, &view.directory);
        view.directory.set_policy(text);
        self.invalidate(&impact);
        self.warn_of_open_policy();
        if !same_relays {
            self.sessions
                .invalidate_all(|pending| pending.relays = true);
        }
    }

    /// Informs the administrator if every node may reach every node.
    pub(super) fn warn_of_open_policy(&mut self) {
        if let Some(why) = self.view.allows_everything() {
            self.notice(Notice::PolicyAllowsEverything(why));
        }
    }

    /// Invalidates what a change of nodes, users or of the policy may have
    /// altered.
    pub(super) fn invalidate(&mut self, impact: &MapImpact) {
        match &impact.access {
            None => self.sessions.invalidate_all(|pending| {
                pending.view = true;
                pending.filter = true;
            }),
            Some(access) => {
                for node in access.filters.iter() {
                    self.sessions
                        .invalidate(node, |pending| pending.filter = true);
                }
                for node in access.views.iter() {
                    self.sessions
                        .invalidate(node, |pending| pending.view = true);
                }
            }
        }
        if impact.ssh {
            self.review_ssh_checks();
        }
        if impact.ssh || impact.own_nodes {
            self.sessions.invalidate_all(|pending| {
                pending.ssh |= impact.ssh;
                pending.own_node |= impact.own_nodes;
                // A node may have lost its IPv4 address in the maps of others.
                pending.view |= impact.own_nodes;
            });
        }
    }

    // Numbers.

    pub(super) fn take_user_id(&mut self) -> UserId {
        UserId(self.take_number(|counters| &mut counters.user))
    }

    pub(super) fn take_node_id(&mut self) -> NodeId {
        NodeId(self.take_number(|counters| &mut counters.node))
    }

    pub(super) fn take_auth_key_id(&mut self) -> AuthKeyId {
        AuthKeyId(self.take_number(|counters| &mut counters.auth_key))
    }

    fn take_number(&mut self, counter: impl FnOnce(&mut Counters) -> &mut i64) -> i64 {
        let mut counters = self.view.directory.counters();
        let next = counter(&mut counters);
        let number = *next;
        *next += 1;
        self.commit(Change::Counters(counters), true);
        number
    }
}

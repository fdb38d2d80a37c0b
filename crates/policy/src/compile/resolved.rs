//! Selectors, each resolved once.

use std::collections::{BTreeMap, BTreeSet};

use warren_control_types::UserId;

use super::bits::{Bits, Slot};
use super::network::{Network, NodeEntry};
use crate::model::Policy;
use crate::node::PolicyUser;
use crate::selector::Selector;
use crate::span::{Span, internet_overlaps};

/// A selector with the nodes that it currently matches.
#[derive(Debug, Clone)]
pub(super) struct ResolvedSelector {
    pub(super) selector: Selector,
    pub(super) kind: SelectorKind,
    /// Nodes that match by identity; for addresses, nodes that have one.
    pub(super) holds: Bits,
    /// Nodes with an approved subnet route that overlaps the addresses.
    pub(super) serves: Bits,
}

/// The way in which a selector matches nodes.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum SelectorKind {
    /// `*`.
    Any,
    /// `autogroup:danger-all`.
    DangerAll,
    /// Nodes by tag, or by having tags or none.
    Nodes,
    /// The untagged nodes of these users.
    Users(BTreeSet<UserId>),
    /// Addresses, ascending, and whether public ones of either family are
    /// among them.
    Addresses(Vec<Span>, [bool; 2]),
    /// `autogroup:internet`.
    Internet,
    /// A selector that matches no node.
    Nothing,
}

/// The current users by login name, alias and group of an identity provider.
#[derive(Debug, Clone, Default)]
pub(super) struct Names(BTreeMap<String, BTreeSet<UserId>>);

impl Names {
    fn of(user: &PolicyUser) -> impl Iterator<Item = &String> {
        std::iter::once(&user.login)
            .chain(&user.aliases)
            .chain(&user.groups)
    }

    pub(super) fn add(&mut self, user: &PolicyUser) {
        for name in Self::of(user) {
            self.0.entry(name.clone()).or_default().insert(user.id);
        }
    }

    pub(super) fn remove(&mut self, user: &PolicyUser) {
        for name in Self::of(user) {
            if let Some(users) = self.0.get_mut(name) {
                users.remove(&user.id);
                if users.is_empty() {
                    self.0.remove(name);
                }
            }
        }
    }

    /// The users for which [`PolicyUser::is_named`] is true.
    fn find(&self, login: &str) -> impl Iterator<Item = UserId> + '_ {
        let plain = login.strip_suffix('@').unwrap_or(login);
        let exact = self.0.get(login).into_iter().flatten();
        exact
            .chain(self.0.get(plain).into_iter().flatten())
            .copied()
    }
}

impl ResolvedSelector {
    pub(super) fn resolve(
        selector: &Selector,
        policy: &Policy,
        users: &BTreeMap<UserId, PolicyUser>,
        names: &Names,
        network: &Network,
    ) -> Self {
        let kind = match selector {
            Selector::Any => SelectorKind::Any,
            Selector::DangerAll => SelectorKind::DangerAll,
            Selector::Internet => SelectorKind::Internet,
            Selector::Tag(_) | Selector::Tagged | Selector::Member => SelectorKind::Nodes,
            Selector::Net(net) => addresses(vec![Span::from(net)]),
            Selector::Set(set) => addresses(set.spans.to_vec()),
            Selector::User(login) => SelectorKind::Users(names.find(login).collect()),
            Selector::Group(group) => {
                let logins = policy.groups.get(group).into_iter().flatten();
                SelectorKind::Users(logins.flat_map(|login| names.find(login)).collect())
            }
            Selector::Domain(_) | Selector::Role(_) => SelectorKind::Users(
                users
                    .values()
                    .filter(|user| policy.selects_user(selector, user))
                    .map(|user| user.id)
                    .collect(),
            ),
            Selector::OwnUser | Selector::Shared | Selector::Service(_) => SelectorKind::Nothing,
        };
        let mut out = Self {
            selector: selector.clone(),
            kind,
            holds: Bits::default(),
            serves: Bits::default(),
        };
        out.refresh_all(network);
        out
    }

    /// Evaluates all nodes.
    pub(super) fn refresh_all(&mut self, network: &Network) {
        (self.holds, self.serves) = match &self.kind {
            SelectorKind::Addresses(spans, _) => network.touching(spans),
            SelectorKind::Users(users) => {
                let nodes = users.iter().flat_map(|user| network.nodes_of(*user));
                (nodes.collect(), Bits::default())
            }
            SelectorKind::Nodes => {
                let nodes = network.all().filter(|(_, own)| self.at(Some(own)).0);
                (nodes.map(|(slot, _)| slot).collect(), Bits::default())
            }
            SelectorKind::Any
            | SelectorKind::DangerAll
            | SelectorKind::Internet
            | SelectorKind::Nothing => Default::default(),
        };
        self.holds.shrink();
        self.serves.shrink();
    }

    /// Evaluates one node again; returns whether its result changed.
    pub(super) fn refresh(&mut self, slot: Slot, own: Option<&NodeEntry>) -> bool {
        let (holds, serves) = self.at(own);
        self.holds.assign(slot, holds) | self.serves.assign(slot, serves)
    }

    fn at(&self, own: Option<&NodeEntry>) -> (bool, bool) {
        let Some(own) = own else {
            return (false, false);
        };
        match &self.kind {
            SelectorKind::Addresses(spans, _) => (own.is_in(spans), own.serves(spans)),
            SelectorKind::Users(users) => {
                (own.user().is_some_and(|user| users.contains(&user)), false)
            }
            SelectorKind::Nodes => {
                let holds = match &self.selector {
                    Selector::Tag(tag) => own.node.tags.contains(tag),
                    Selector::Tagged => own.node.is_tagged(),
                    _ => own.user().is_some(),
                };
                (holds, false)
            }
            SelectorKind::Any
            | SelectorKind::DangerAll
            | SelectorKind::Internet
            | SelectorKind::Nothing => (false, false),
        }
    }

    /// Whether the selector matches nodes by identity; false for `*`.
    pub(super) fn is_identity(&self) -> bool {
        matches!(self.kind, SelectorKind::Nodes | SelectorKind::Users(_))
    }

    /// Whether the selector matches an address of the node.
    pub(super) fn has_address_of(&self, own: &NodeEntry) -> bool {
        match &self.kind {
            SelectorKind::Addresses(spans, _) => own.is_in(spans),
            SelectorKind::DangerAll => true,
            _ => false,
        }
    }
}

fn addresses(spans: Vec<Span>) -> SelectorKind {
    let public = |v6| {
        let mut spans = spans.iter();
        spans.any(|span| span.is_v6() == v6 && internet_overlaps(span))
    };
    let public = [public(false), public(true)];
    SelectorKind::Addresses(spans, public)
}

//! Equivalence classes of machines and addresses, between which two policies
//! are compared.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use warren_control_types::UserId;

use super::ranges::ranges;
use crate::explain::context::PolicyContext;
use crate::model::Policy;
use crate::node::PolicyNode;
use crate::selector::Selector;
use crate::span::{INTERNET, Span};

/// An equivalence class.
#[derive(Debug, Clone)]
pub(super) enum Class {
    /// Machines that no name distinguishes, as positions in the list of nodes.
    Nodes(Vec<usize>),
    /// Addresses that belong to no machine.
    Range(Span),
    /// Public addresses that no rule names.
    Internet,
    /// As a destination: the machines of the source's own user.
    Own,
}

/// One of the two policies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Before,
    After,
}

/// The facts about a machine that rules can depend on. Machines with equal keys
/// form one class.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct ClassKey {
    tagged: bool,
    owned: bool,
    /// By known selector: whether it matches by tag or address.
    directly: Vec<bool>,
    /// By known selector: whether it matches the user, before and after.
    by_user: Vec<[bool; 2]>,
    /// By list of postures: whether the machine has one of them, before and
    /// after.
    postures: Vec<bool>,
}

/// The equivalence classes under two policies.
#[derive(Debug)]
pub(super) struct EquivalenceClasses<'a> {
    pub(super) context: &'a PolicyContext<'a>,
    pub(super) list: Vec<Class>,
    /// Selectors of both policies, in order of appearance.
    pub(super) selectors: Vec<Selector>,
    /// Their positions.
    known: BTreeMap<Selector, usize>,
    /// The keys of the machine classes, which come first in the list.
    keys: Vec<ClassKey>,
    policies: [&'a Policy; 2],
    /// The classes of the untagged nodes of each user.
    pub(super) classes_of_user: BTreeMap<UserId, BTreeSet<usize>>,
    nodes_of_user: BTreeMap<UserId, usize>,
}

/// The selectors of rules.
fn named(policy: &Policy) -> impl Iterator<Item = &Selector> {
    let of_rules = policy.rules.iter().flat_map(|rule| {
        let to = rule.reach.iter().flat_map(|reach| &reach.to);
        rule.sources.iter().chain(to).chain(&rule.app_to)
    });
    let of_ssh = policy.ssh.iter();
    of_rules.chain(of_ssh.flat_map(|rule| rule.sources.iter().chain(&rule.to)))
}

/// The lists of postures that rules require.
fn postures(policy: &Policy) -> BTreeSet<&[String]> {
    let of_rules = policy.rules.iter().map(|rule| rule.postures.as_slice());
    let of_ssh = policy.ssh.iter().map(|rule| rule.postures.as_slice());
    of_rules.chain(of_ssh).collect()
}

impl<'a> EquivalenceClasses<'a> {
    pub(super) fn new(context: &'a PolicyContext<'a>, after: &'a Policy) -> Self {
        let policies = [context.policy, after];
        let mut selectors: Vec<Selector> = Vec::new();
        let mut known: BTreeMap<Selector, usize> = BTreeMap::new();
        for selector in policies.iter().flat_map(|policy| named(policy)) {
            if !known.contains_key(selector) {
                known.insert(selector.clone(), selectors.len());
                selectors.push(selector.clone());
            }
        }
        let by_user: BTreeMap<UserId, Vec<[bool; 2]>> = context
            .users
            .iter()
            .map(|user| {
                let means = |s| policies.map(|policy| policy.selects_user(s, user));
                (user.id, selectors.iter().map(means).collect())
            })
            .collect();
        let lists = policies.map(postures);
        let key_of = |node: &PolicyNode| {
            let user = node.user.filter(|_| !node.is_tagged());
            let nothing = || vec![[false; 2]; selectors.len()];
            let wanted = policies.iter().zip(&lists);
            ClassKey {
                tagged: node.is_tagged(),
                owned: user.is_some(),
                directly: selectors
                    .iter()
                    .map(|selector| match selector {
                        Selector::Tag(tag) => node.tags.contains(tag),
                        other => has_address(other, node),
                    })
                    .collect(),
                by_user: user
                    .and_then(|user| by_user.get(&user).cloned())
                    .unwrap_or_else(nothing),
                postures: wanted
                    .flat_map(|(policy, lists)| {
                        lists
                            .iter()
                            .map(|list| policy.has_posture(list, &node.attributes))
                    })
                    .collect(),
            }
        };
        let mut groups: BTreeMap<ClassKey, Vec<usize>> = BTreeMap::new();
        for (at, node) in context.nodes.iter().enumerate() {
            groups.entry(key_of(node)).or_default().push(at);
        }
        let (keys, groups): (Vec<ClassKey>, Vec<Vec<usize>>) = groups.into_iter().unzip();
        let mut spots: Vec<Class> = groups.into_iter().map(Class::Nodes).collect();
        spots.extend(ranges(&selectors).into_iter().map(Class::Range));
        spots.push(Class::Internet);
        spots.push(Class::Own);
        let mut classes_of_user: BTreeMap<UserId, BTreeSet<usize>> = BTreeMap::new();
        let mut nodes_of_user: BTreeMap<UserId, usize> = BTreeMap::new();
        for (class, kind) in spots.iter().enumerate() {
            let Class::Nodes(members) = kind else {
                continue;
            };
            for node in members.iter().filter_map(|at| context.nodes.get(*at)) {
                if let Some(user) = node.user.filter(|_| !node.is_tagged()) {
                    classes_of_user.entry(user).or_default().insert(class);
                    *nodes_of_user.entry(user).or_default() += 1;
                }
            }
        }
        Self {
            context,
            list: spots,
            selectors,
            known,
            keys,
            policies,
            classes_of_user,
            nodes_of_user,
        }
    }

    /// The class of the source's own machines.
    pub(super) fn own(&self) -> usize {
        self.list.len().saturating_sub(1)
    }

    /// The number of machine classes, which come first in the list.
    pub(super) fn machine_classes(&self) -> usize {
        self.keys.len()
    }

    /// The machines of a class; empty for other classes.
    pub(super) fn members(&self, class: usize) -> impl Iterator<Item = &'a PolicyNode> {
        let members = match self.list.get(class) {
            Some(Class::Nodes(members)) => members.as_slice(),
            _ => &[],
        };
        let nodes = self.context.nodes;
        members.iter().filter_map(move |at| nodes.get(*at))
    }

    /// The classes that some sources of a policy match, limited to those with
    /// one of the postures.
    pub(super) fn sources(
        &self,
        side: Side,
        selectors: &[Selector],
        postures: &[String],
    ) -> BTreeSet<usize> {
        let mut class_ids = self.meant(side, selectors, |kind, selector| match (kind, selector) {
            (Class::Range(span), Selector::Any) => {
                let mut routes = self
                    .context
                    .nodes
                    .iter()
                    .flat_map(PolicyNode::subnet_routes);
                routes.any(|route| Span::from(route).contains(span))
            }
            (Class::Range(span), other) => in_range(other, span),
            (Class::Internet, selector) => *selector == Selector::DangerAll,
            (Class::Nodes(_) | Class::Own, _) => false,
        });
        if !postures.is_empty() {
            let policy = self.policy(side);
            class_ids.retain(|class| {
                let node = self.members(*class).next();
                node.is_none_or(|node| policy.has_posture(postures, &node.attributes))
            });
        }
        class_ids
    }

    /// The classes that some destinations of a policy match.
    pub(super) fn destinations(&self, side: Side, selectors: &[Selector]) -> BTreeSet<usize> {
        self.meant(side, selectors, |kind, selector| match (kind, selector) {
            (Class::Own, Selector::Any) => true,
            // A range without a router is omitted unless a rule names it.
            (Class::Range(span), Selector::Any) => self.is_served(span),
            (Class::Internet, Selector::Any) => self.has_exit(),
            (Class::Range(span), Selector::Internet) => is_public(span),
            (Class::Range(span), other) => in_range(other, span),
            (Class::Internet, selector) => *selector == Selector::Internet,
            (Class::Own, selector) => *selector == Selector::OwnUser,
            (Class::Nodes(_), _) => false,
        })
    }

    fn routes(&self) -> impl Iterator<Item = &IpNet> {
        let approved = self.context.nodes.iter().flat_map(|node| &node.routes);
        approved.chain(self.context.offered.values().flatten())
    }

    fn is_served(&self, span: &Span) -> bool {
        let mut routes = self.routes().filter(|route| route.prefix_len() != 0);
        routes.any(|route| Span::from(route).overlaps(span)) || (is_public(span) && self.has_exit())
    }

    fn has_exit(&self) -> bool {
        self.routes().any(|route| route.prefix_len() == 0)
    }

    fn policy(&self, side: Side) -> &'a Policy {
        let [before, after] = self.policies;
        match side {
            Side::Before => before,
            Side::After => after,
        }
    }

    fn meant(
        &self,
        side: Side,
        selectors: &[Selector],
        beside: impl Fn(&Class, &Selector) -> bool,
    ) -> BTreeSet<usize> {
        let mut out = BTreeSet::new();
        for (class, kind) in self.list.iter().enumerate() {
            let meant = |selector: &Selector| match self.keys.get(class) {
                Some(keys) => self.matches_key(keys, side, selector),
                None => beside(kind, selector),
            };
            if selectors.iter().any(meant) {
                out.insert(class);
            }
        }
        out
    }

    /// Whether a selector matches the machines with this key.
    fn matches_key(&self, keys: &ClassKey, side: Side, selector: &Selector) -> bool {
        let at = self.known.get(selector);
        match selector {
            Selector::Any | Selector::DangerAll => true,
            Selector::Member => keys.owned,
            Selector::Tagged => keys.tagged,
            Selector::Tag(_) | Selector::Net(_) | Selector::Set(_) => at
                .and_then(|at| keys.directly.get(*at))
                .copied()
                .unwrap_or(false),
            Selector::User(_) | Selector::Group(_) | Selector::Domain(_) | Selector::Role(_) => at
                .and_then(|at| keys.by_user.get(*at))
                .is_some_and(|[before, after]| match side {
                    Side::Before => *before,
                    Side::After => *after,
                }),
            Selector::OwnUser | Selector::Internet | Selector::Shared | Selector::Service(_) => {
                false
            }
        }
    }

    /// The number of pairs of machines between two classes.
    pub(super) fn pairs(&self, from: usize, to: usize) -> usize {
        let size = |class: usize| match self.list.get(class) {
            Some(Class::Nodes(members)) => members.len(),
            Some(_) => 1,
            None => 0,
        };
        match self.list.get(to) {
            Some(Class::Own) => self
                .members(from)
                .filter(|node| !node.is_tagged())
                .filter_map(|node| self.nodes_of_user.get(&node.user?))
                .map(|count| count.saturating_sub(1))
                .sum(),
            _ if from == to && matches!(self.list.get(to), Some(Class::Nodes(_))) => {
                size(from) * size(from).saturating_sub(1)
            }
            _ if from == to => 0,
            _ => size(from) * size(to),
        }
    }

    /// Whether both classes contain only untagged machines of the same user.
    pub(super) fn is_of_one_user(&self, from: usize, to: usize) -> bool {
        let users: BTreeSet<Option<UserId>> = self
            .members(from)
            .chain(self.members(to))
            .map(|node| node.user.filter(|_| !node.is_tagged()))
            .collect();
        users.len() == 1
            && !users.contains(&None)
            && self.members(from).next().is_some()
            && self.members(to).next().is_some()
    }

    /// The classes of the machines of a class's users. `None` if it has no
    /// user.
    pub(super) fn own_classes(&self, from: usize) -> Option<BTreeSet<usize>> {
        let mut out = BTreeSet::new();
        for node in self.members(from) {
            let user = node.user.filter(|_| !node.is_tagged())?;
            out.extend(self.classes_of_user.get(&user)?);
        }
        (!out.is_empty()).then_some(out)
    }
}

/// Whether an address selector matches an address of the node.
fn has_address(selector: &Selector, node: &PolicyNode) -> bool {
    let mut own = node.addresses.iter();
    match selector {
        Selector::Net(net) => own.any(|address| net.contains(address)),
        Selector::Set(set) => own.any(|address| {
            let address = Span::from(*address);
            set.spans.iter().any(|span| span.contains(&address))
        }),
        _ => false,
    }
}

/// Whether an address selector contains the range. The range is inside one part
/// of it or outside of all.
fn in_range(selector: &Selector, span: &Span) -> bool {
    match selector {
        Selector::DangerAll => true,
        Selector::Net(net) => Span::from(net).contains(span),
        Selector::Set(set) => set.spans.iter().any(|part| part.contains(span)),
        _ => false,
    }
}

fn is_public(span: &Span) -> bool {
    INTERNET.iter().any(|named| named.span.contains(span))
}

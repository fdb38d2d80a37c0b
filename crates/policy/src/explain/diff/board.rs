//! The places between which two policies are compared.

use std::collections::{BTreeMap, BTreeSet};

use warren_control_types::UserId;

use super::atoms::Atom;
use crate::explain::scene::Scene;
use crate::node::{PolicyNode, Role};
use crate::policy::Policy;
use crate::selector::Selector;
use crate::span::{INTERNET, Span, TAILNET, net_text};

/// How many names a list has before the rest is counted.
const LABELS: usize = 8;

/// A place.
#[derive(Debug, Clone)]
pub(super) enum Spot {
    /// Machines that no name tells apart, as positions in the list of nodes.
    Nodes(Vec<usize>),
    /// Addresses that belong to no machine.
    Range(Span),
    /// Public addresses that no rule names.
    Internet,
    /// As a destination: the machines of the source's own user.
    Own,
}

/// Places, and who is where.
#[derive(Debug)]
pub(super) struct Board<'a> {
    scene: &'a Scene<'a>,
    pub(super) spots: Vec<Spot>,
    /// Selectors of both policies, in order of appearance.
    selectors: Vec<Selector>,
    /// Place of each untagged node's user: user -> places.
    places_of_user: BTreeMap<UserId, BTreeSet<usize>>,
    nodes_of_user: BTreeMap<UserId, usize>,
}

/// The selectors of rules.
fn selectors(policy: &Policy) -> impl Iterator<Item = &Selector> {
    let of_rules = policy.rules.iter().flat_map(|rule| {
        let to = rule.reach.iter().flat_map(|reach| &reach.to);
        rule.sources.iter().chain(to).chain(&rule.app_to)
    });
    let of_ssh = policy.ssh.iter();
    of_rules.chain(of_ssh.flat_map(|rule| rule.sources.iter().chain(&rule.to)))
}

/// The lists of postures that rules want.
fn postures(policy: &Policy) -> BTreeSet<&[String]> {
    let of_rules = policy.rules.iter().map(|rule| rule.postures.as_slice());
    let of_ssh = policy.ssh.iter().map(|rule| rule.postures.as_slice());
    of_rules.chain(of_ssh).collect()
}

impl<'a> Board<'a> {
    pub(super) fn new(scene: &'a Scene<'a>, after: &Policy) -> Self {
        let mut known: Vec<Selector> = Vec::new();
        let mut seen = BTreeSet::new();
        for selector in selectors(scene.policy).chain(selectors(after)) {
            if seen.insert(selector) {
                known.push(selector.clone());
            }
        }
        // Machines are told apart by what each policy means with each name.
        let mut classes: BTreeMap<Vec<bool>, Vec<usize>> = BTreeMap::new();
        let user_at: BTreeMap<UserId, usize> = scene
            .users
            .iter()
            .enumerate()
            .map(|(n, user)| (user.id, n))
            .collect();
        let by_user: Vec<Vec<bool>> = scene
            .users
            .iter()
            .map(|user| {
                let means = |policy: &Policy, selector| policy.selects_user(selector, user);
                known
                    .iter()
                    .flat_map(|s| [means(scene.policy, s), means(after, s)])
                    .collect()
            })
            .collect();
        let wanted = [scene.policy, after].map(|policy| (policy, postures(policy)));
        for (at, node) in scene.nodes.iter().enumerate() {
            let user = node.user.filter(|_| !node.is_tagged());
            let user_row = user
                .and_then(|id| user_at.get(&id))
                .and_then(|n| by_user.get(*n));
            let mut row: Vec<bool> = vec![node.is_tagged(), user.is_some()];
            for (n, selector) in known.iter().enumerate() {
                row.push(has_address(selector, node));
                row.push(matches!(selector, Selector::Tag(tag) if node.tags.contains(tag)));
                let cell = |n: usize| user_row.and_then(|row| row.get(n)).copied();
                row.push(cell(2 * n).unwrap_or(false));
                row.push(cell(2 * n + 1).unwrap_or(false));
            }
            for (policy, lists) in &wanted {
                let has = |list: &&[String]| policy.has_posture(list, &node.attributes);
                row.extend(lists.iter().map(has));
            }
            classes.entry(row).or_default().push(at);
        }
        let mut spots: Vec<Spot> = classes.into_values().map(Spot::Nodes).collect();
        spots.extend(ranges(&known).into_iter().map(Spot::Range));
        spots.push(Spot::Internet);
        spots.push(Spot::Own);
        let mut places_of_user: BTreeMap<UserId, BTreeSet<usize>> = BTreeMap::new();
        let mut nodes_of_user: BTreeMap<UserId, usize> = BTreeMap::new();
        for (place, spot) in spots.iter().enumerate() {
            let Spot::Nodes(members) = spot else { continue };
            for node in members.iter().filter_map(|at| scene.nodes.get(*at)) {
                if let Some(user) = node.user.filter(|_| !node.is_tagged()) {
                    places_of_user.entry(user).or_default().insert(place);
                    *nodes_of_user.entry(user).or_default() += 1;
                }
            }
        }
        Self {
            scene,
            spots,
            selectors: known,
            places_of_user,
            nodes_of_user,
        }
    }

    /// The place that stands for the source's own machines.
    pub(super) fn own(&self) -> usize {
        self.spots.len().saturating_sub(1)
    }

    fn members(&self, place: usize) -> impl Iterator<Item = &'a PolicyNode> {
        let members = match self.spots.get(place) {
            Some(Spot::Nodes(members)) => members.as_slice(),
            _ => &[],
        };
        let nodes = self.scene.nodes;
        members.iter().filter_map(move |at| nodes.get(*at))
    }

    /// The places that some sources of a policy mean, as far as they have one
    /// of the postures.
    pub(super) fn sources(
        &self,
        policy: &Policy,
        selectors: &[Selector],
        postures: &[String],
    ) -> BTreeSet<usize> {
        let mut places = self.meant(policy, selectors, |spot, selector| match (spot, selector) {
            (Spot::Range(span), Selector::Any) => {
                let mut routes = self.scene.nodes.iter().flat_map(PolicyNode::subnet_routes);
                routes.any(|route| Span::from(route).contains(span))
            }
            (Spot::Range(span), other) => in_range(other, span),
            (Spot::Internet, selector) => *selector == Selector::DangerAll,
            (Spot::Nodes(_) | Spot::Own, _) => false,
        });
        places.retain(|place| {
            self.members(*place)
                .next()
                .is_none_or(|node| policy.has_posture(postures, &node.attributes))
        });
        places
    }

    /// The places that some destinations of a policy mean.
    pub(super) fn destinations(&self, policy: &Policy, selectors: &[Selector]) -> BTreeSet<usize> {
        self.meant(policy, selectors, |spot, selector| match (spot, selector) {
            (Spot::Range(_) | Spot::Internet | Spot::Own, Selector::Any) => true,
            (Spot::Range(span), Selector::Internet) => is_public(span),
            (Spot::Range(span), other) => in_range(other, span),
            (Spot::Internet, selector) => *selector == Selector::Internet,
            (Spot::Own, selector) => *selector == Selector::OwnUser,
            (Spot::Nodes(_), _) => false,
        })
    }

    fn meant(
        &self,
        policy: &Policy,
        selectors: &[Selector],
        beside: impl Fn(&Spot, &Selector) -> bool,
    ) -> BTreeSet<usize> {
        let mut out = BTreeSet::new();
        for (place, spot) in self.spots.iter().enumerate() {
            // All members of a place are alike.
            let node = self.members(place).next();
            let meant = |selector: &Selector| match node {
                Some(node) => {
                    *selector == Selector::DangerAll
                        || has_address(selector, node)
                        || policy.selects_node(selector, self.scene.users, node)
                }
                None => beside(spot, selector),
            };
            if selectors.iter().any(meant) {
                out.insert(place);
            }
        }
        out
    }

    /// How many pairs of machines two places make.
    pub(super) fn pairs(&self, from: usize, to: usize) -> usize {
        let size = |place: usize| match self.spots.get(place) {
            Some(Spot::Nodes(members)) => members.len(),
            Some(_) => 1,
            None => 0,
        };
        match self.spots.get(to) {
            Some(Spot::Own) => self
                .members(from)
                .filter(|node| !node.is_tagged())
                .filter_map(|node| self.nodes_of_user.get(&node.user?))
                .map(|count| count.saturating_sub(1))
                .sum(),
            _ if from == to && matches!(self.spots.get(to), Some(Spot::Nodes(_))) => {
                size(from) * size(from).saturating_sub(1)
            }
            _ if from == to => 0,
            _ => size(from) * size(to),
        }
    }

    /// Whether both places hold untagged machines of the same one user.
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

    /// Where the machines of the users of a place are. `None`: it has none.
    pub(super) fn own_places(&self, from: usize) -> Option<BTreeSet<usize>> {
        let mut out = BTreeSet::new();
        for node in self.members(from) {
            let user = node.user.filter(|_| !node.is_tagged())?;
            out.extend(self.places_of_user.get(&user)?);
        }
        (!out.is_empty()).then_some(out)
    }

    /// Names for some places: those of the rules that differ first, then other
    /// names of the files, users and tags, and single machines; as `policy`
    /// understands them.
    pub(super) fn labels(
        &self,
        policy: &Policy,
        places: &BTreeSet<usize>,
        rules: &[&Atom],
    ) -> Vec<String> {
        let mut left = places.clone();
        let mut out = Vec::new();
        let near = rules.iter().flat_map(|atom| &atom.names.0);
        let tags = places
            .iter()
            .flat_map(|place| self.members(*place))
            .flat_map(|node| node.tags.iter().cloned().map(Selector::Tag));
        let tags: BTreeSet<Selector> = tags.collect();
        let logins: BTreeSet<Selector> = places
            .iter()
            .flat_map(|place| self.members(*place))
            .filter(|node| !node.is_tagged())
            .filter_map(|node| self.scene.login(node.user?))
            .map(Selector::User)
            .collect();
        let other = [Selector::Member, Selector::Tagged];
        let mut tried: BTreeSet<&Selector> = BTreeSet::new();
        let mut choices: Vec<(&Selector, BTreeSet<usize>)> = Vec::new();
        for selector in near
            .chain(&self.selectors)
            .chain(&tags)
            .chain(&logins)
            .chain(&other)
        {
            if !tried.insert(selector) {
                continue;
            }
            let one = std::slice::from_ref(selector);
            let mut set = self.sources(policy, one, &[]);
            set.extend(self.destinations(policy, one));
            // As a destination everything includes what is not a source.
            if *selector == Selector::Any {
                set.retain(|place| *place != self.own());
                let is_node =
                    |place: &usize| matches!(self.spots.get(*place), Some(Spot::Nodes(_)));
                let nodes_only = places.iter().all(is_node);
                if nodes_only {
                    set.retain(is_node);
                }
            }
            if !set.is_empty() && set.is_subset(places) {
                choices.push((selector, set));
            }
        }
        while !left.is_empty() {
            let mut best: Option<(usize, &Selector, &BTreeSet<usize>)> = None;
            for (selector, set) in &choices {
                let new = set.intersection(&left).count();
                if new > 0 && best.is_none_or(|(most, ..)| new > most) {
                    best = Some((new, selector, set));
                }
            }
            let Some((_, selector, set)) = best else {
                break;
            };
            out.push(self.selector_text(selector));
            left.retain(|place| !set.contains(place));
            if *selector == Selector::Any {
                left.remove(&self.own());
            }
        }
        for place in left {
            match self.spots.get(place) {
                Some(Spot::Nodes(_)) => {
                    out.extend(self.members(place).map(|node| self.scene.name_of(node)));
                }
                Some(Spot::Range(span)) => out.push(span.text()),
                Some(Spot::Internet) => out.push("autogroup:internet".to_owned()),
                Some(Spot::Own) => out.push("autogroup:self".to_owned()),
                None => {}
            }
        }
        if out.len() > LABELS {
            let more = out.len() - LABELS + 1;
            out.truncate(LABELS - 1);
            out.push(format!("{more} more"));
        }
        out
    }

    fn selector_text(&self, selector: &Selector) -> String {
        match selector {
            Selector::Any => "*".to_owned(),
            Selector::Net(net) => net_text(net),
            Selector::User(name)
            | Selector::Group(name)
            | Selector::Tag(name)
            | Selector::Service(name) => name.clone(),
            Selector::Domain(domain) => format!("user:*@{domain}"),
            Selector::Member => "autogroup:member".to_owned(),
            Selector::Tagged => "autogroup:tagged".to_owned(),
            Selector::OwnUser => "autogroup:self".to_owned(),
            Selector::Internet => "autogroup:internet".to_owned(),
            Selector::DangerAll => "autogroup:danger-all".to_owned(),
            Selector::Shared => "autogroup:shared".to_owned(),
            Selector::Set(set) => set.name.clone(),
            Selector::Role(role) => {
                let named = Role::NAMED.iter().find(|(_, named)| named == role);
                format!("autogroup:{}", named.map_or("member", |(name, _)| name))
            }
        }
    }
}

/// Whether a selector of addresses means one of the node's.
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

/// Whether a selector of addresses means the range, which lies within one part
/// of it or outside.
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

/// The ranges that selectors tell apart, without those of the tailnet itself,
/// where addresses belong to machines.
fn ranges(selectors: &[Selector]) -> Vec<Span> {
    let mut cuts: Vec<Span> = Vec::new();
    for selector in selectors {
        match selector {
            Selector::Net(net) => cuts.push(Span::from(net)),
            Selector::Set(set) => cuts.extend(set.spans.iter()),
            _ => {}
        }
    }
    let public: Vec<Span> = INTERNET.iter().map(|named| named.span).collect();
    let mut out: Vec<Span> = Vec::new();
    for cut in cuts {
        let mut new = vec![cut];
        for known in std::mem::take(&mut out) {
            let mut inside = known;
            for outside in known.without(&cut) {
                out.push(outside);
                inside = inside.without(&outside).first().copied().unwrap_or(inside);
            }
            if known.overlaps(&cut) {
                out.push(inside);
                new = new.iter().flat_map(|part| part.without(&known)).collect();
            }
        }
        out.extend(new);
    }
    // The public part of a range is another place than the rest.
    let mut split = Vec::new();
    for span in out {
        let mut rest = vec![span];
        for named in &public {
            let mut private = Vec::new();
            for part in rest {
                if !part.overlaps(named) {
                    private.push(part);
                    continue;
                }
                let mut inside = part;
                for outside in part.without(named) {
                    inside = inside.without(&outside).first().copied().unwrap_or(inside);
                    private.push(outside);
                }
                split.push(inside);
            }
            rest = private;
        }
        split.extend(rest);
    }
    split.retain(|span| !TAILNET.iter().any(|named| named.span.contains(span)));
    split.sort_unstable();
    split.dedup();
    split
}

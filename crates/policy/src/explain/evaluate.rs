//! A plain evaluator: rule by rule, selector by selector, packet by packet.
//!
//! It shares only the parsed policy with the compiler, so each of the two
//! checks the other.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net};
use warren_control_types::NodeId;

use crate::model::{Policy, Reach, Rule};
use crate::node::{PROVIDER_GROUP, PolicyNode, PolicyUser, Role};
use crate::selector::{IpSet, Selector};
use crate::span::Span;

/// The first packet of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Packet {
    /// The address that opens the connection.
    pub source: IpAddr,
    /// The destination address.
    pub destination: IpAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// Destination port; means something with TCP, UDP and SCTP only.
    pub port: u16,
}

/// A way in which a rule accepts a packet, as positions in the parsed policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Opening {
    /// The index of the rule: grants in file order, then acls in file order.
    pub rule: usize,
    /// The index among its sources.
    pub source: usize,
    /// The index among its groups of destinations.
    pub reach: usize,
    /// The index of the destination in that group.
    pub destination: usize,
}

/// The verdict on a packet at one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Whether the packet is accepted.
    pub allowed: bool,
    /// The rules that accept it. Empty if it is refused, or if the policy has
    /// no rules and so accepts TCP, UDP and ICMP.
    pub by: Vec<Opening>,
}

/// Whether `receiver` accepts a packet that arrives at it.
#[must_use]
pub fn evaluate(
    policy: &Policy,
    users: &[PolicyUser],
    nodes: &[PolicyNode],
    receiver: NodeId,
    packet: &Packet,
) -> Verdict {
    let refused = Verdict {
        allowed: false,
        by: Vec::new(),
    };
    let Some(receiver) = nodes.iter().find(|node| node.id == receiver) else {
        return refused;
    };
    if !is_for(receiver, packet.destination)
        || packet.source.is_ipv4() != packet.destination.is_ipv4()
    {
        return refused;
    }
    let evaluator = Evaluator {
        policy,
        users,
        nodes,
    };
    if policy.open {
        return Verdict {
            allowed: evaluator.is_anyone(packet.source) && is_usual(packet.protocol),
            by: Vec::new(),
        };
    }
    let mut by = Vec::new();
    for (rule_at, rule) in policy.rules.iter().enumerate() {
        for (source_at, source) in rule.sources.iter().enumerate() {
            for (reach_at, reach) in rule.reach.iter().enumerate() {
                if !opens(reach, packet.protocol, packet.port) {
                    continue;
                }
                for (to_at, to) in reach.to.iter().enumerate() {
                    if evaluator.lets_in(rule, source, to, receiver, packet) {
                        by.push(Opening {
                            rule: rule_at,
                            source: source_at,
                            reach: reach_at,
                            destination: to_at,
                        });
                    }
                }
            }
        }
    }
    Verdict {
        allowed: !by.is_empty(),
        by,
    }
}

/// Whether a packet with this destination may arrive at the node: an address of
/// its own, one behind an approved route, or a public one at an exit node.
pub(super) fn is_for(node: &PolicyNode, destination: IpAddr) -> bool {
    let link_local = match destination {
        // The metadata address of cloud providers may be routed by a node.
        IpAddr::V4(a) => a.is_link_local() && a != Ipv4Addr::new(169, 254, 169, 254),
        IpAddr::V6(a) => a.is_unicast_link_local(),
    };
    if destination.is_multicast() || link_local {
        return false;
    }
    node.addresses.contains(&destination)
        || node
            .routes
            .iter()
            .any(|route| route.prefix_len() != 0 && route.contains(&destination))
        || (node
            .routes
            .iter()
            .any(|route| route.prefix_len() == 0 && route.contains(&destination))
            && !is_private(destination))
}

/// Addresses to which the default route of an exit node gives no access.
fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => {
            let [first, second, ..] = a.octets();
            a.is_private()
                || a.is_link_local()
                || first >= 224
                || (first == 100 && second & 0xc0 == 64)
        }
        IpAddr::V6(a) => a.is_unicast_link_local() || a.is_multicast() || is_tailnet_v6(a),
    }
}

/// The tailnet's own ranges, without those that ChromeOS uses.
fn is_tailnet(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => {
            let [first, second, third, _] = a.octets();
            let chromeos = second == 115 && (third == 92 || third == 93);
            first == 100 && second & 0xc0 == 64 && !chromeos
        }
        IpAddr::V6(a) => is_tailnet_v6(a),
    }
}

fn is_tailnet_v6(address: Ipv6Addr) -> bool {
    address.segments().get(..3) == Some(&[0xfd7a, 0x115c, 0xa1e0])
}

/// Protocols that are open if the rule names none: ICMP, TCP, UDP.
fn is_usual(protocol: u8) -> bool {
    matches!(protocol, 1 | 6 | 17 | 58)
}

/// Whether protocol and port are open. Any open port implies ICMP; protocols
/// without ports need the full port range.
pub(super) fn opens(reach: &Reach, protocol: u8, port: u16) -> bool {
    let named = match reach.protocol {
        Some(only) => only == protocol,
        None => is_usual(protocol),
    };
    match protocol {
        1 | 58 => !reach.ports.is_empty(),
        6 | 17 | 132 => {
            named
                && reach
                    .ports
                    .iter()
                    .any(|ports| ports.first <= port && port <= ports.last)
        }
        _ => {
            named
                && reach
                    .ports
                    .iter()
                    .any(|ports| ports.first == 0 && ports.last == u16::MAX)
        }
    }
}

/// A policy with the users and nodes for which it is evaluated.
#[derive(Clone, Copy)]
pub(super) struct Evaluator<'a> {
    pub(super) policy: &'a Policy,
    pub(super) users: &'a [PolicyUser],
    pub(super) nodes: &'a [PolicyNode],
}

impl<'a> Evaluator<'a> {
    fn lets_in(
        &self,
        rule: &Rule,
        source: &Selector,
        to: &Selector,
        receiver: &PolicyNode,
        packet: &Packet,
    ) -> bool {
        if !self.has_posture(rule, source, packet.source) {
            return false;
        }
        if *to == Selector::OwnUser {
            let Some(sender) = self.owner(packet.source) else {
                return false;
            };
            return are_of_one_user(sender, receiver)
                && self.means_node(source, sender)
                && receiver.addresses.contains(&packet.destination);
        }
        self.is_source(source, packet.source)
            && self.is_destination(to, receiver, packet.destination)
            && if rule.via.is_empty() {
                self.is_in_filter(to, receiver, packet.destination)
            } else {
                self.is_in_router_filter(&rule.via, to, receiver)
            }
    }

    /// Whether the sender has a posture that the rule requires. Hosts behind a
    /// subnet router need none. An address of the tailnet without a machine is
    /// refused if the matching entry also matches a machine that lacks the
    /// posture.
    pub(super) fn has_posture(&self, rule: &Rule, source: &Selector, address: IpAddr) -> bool {
        if let Some(node) = self.owner(address) {
            return self.posture_of(rule, node).is_some();
        }
        if !is_tailnet(address) {
            return true;
        }
        let lacking = || {
            self.nodes
                .iter()
                .filter(|node| self.posture_of(rule, node).is_none())
                .flat_map(|node| &node.addresses)
        };
        match source {
            Selector::Net(net) => !lacking().any(|other| net.contains(other)),
            Selector::Set(set) => {
                let at = Span::from(address);
                let mut parts = set.spans.iter().filter(|part| part.contains(&at));
                parts.any(|part| !lacking().any(|other| part.contains(&Span::from(*other))))
            }
            Selector::Any => lacking().next().is_none() || self.is_routed(address),
            _ => lacking().next().is_none(),
        }
    }

    /// The first of a rule's postures that the node has; the empty string if
    /// the rule requires none.
    pub(super) fn posture_of<'r>(&self, rule: &'r Rule, node: &PolicyNode) -> Option<&'r str> {
        if rule.postures.is_empty() {
            return Some("");
        }
        let has = |name: &&String| {
            let assertions = self.policy.postures.get(*name);
            assertions.is_some_and(|all| all.iter().all(|one| one.holds(&node.attributes)))
        };
        rule.postures.iter().find(has).map(String::as_str)
    }

    /// Whether a selector among the sources matches the address.
    pub(super) fn is_source(&self, selector: &Selector, address: IpAddr) -> bool {
        match selector {
            Selector::Any => self.is_anyone(address),
            Selector::DangerAll => true,
            Selector::Net(net) => net.contains(&address),
            Selector::Set(set) => holds(set, address),
            identity => self
                .owner(address)
                .is_some_and(|node| self.means_node(identity, node)),
        }
    }

    /// Whether `*` among the sources matches the address: the tailnet's own
    /// ranges, without those of ChromeOS, and all approved subnets.
    pub(super) fn is_anyone(&self, address: IpAddr) -> bool {
        is_tailnet(address) || self.is_routed(address)
    }

    /// Whether the address is behind an approved subnet route.
    fn is_routed(&self, address: IpAddr) -> bool {
        self.nodes
            .iter()
            .flat_map(|node| &node.routes)
            .any(|route| route.prefix_len() != 0 && route.contains(&address))
    }

    /// Whether a selector among the destinations matches the address at this
    /// node.
    pub(super) fn is_destination(
        &self,
        selector: &Selector,
        receiver: &PolicyNode,
        address: IpAddr,
    ) -> bool {
        match selector {
            Selector::Any | Selector::DangerAll => true,
            Selector::Net(net) => net.contains(&address),
            Selector::Set(set) => holds(set, address),
            Selector::Internet => is_internet(address),
            identity => {
                receiver.addresses.contains(&address) && self.means_node(identity, receiver)
            }
        }
    }

    /// Whether the node's filter contains the destination, or the part of it
    /// that contains the address.
    fn is_in_filter(&self, to: &Selector, node: &PolicyNode, address: IpAddr) -> bool {
        let has_exit = node.routes.iter().any(|route| route.prefix_len() == 0);
        match to {
            Selector::Any | Selector::DangerAll => true,
            Selector::Internet => has_exit,
            Selector::Net(net) => {
                let owns = node.addresses.iter().any(|own| net.contains(own));
                let same_family = |route: &IpNet| route.addr().is_ipv4() == net.addr().is_ipv4();
                let exit = node
                    .routes
                    .iter()
                    .any(|route| route.prefix_len() == 0 && same_family(route));
                owns || serves(node, net) || (exit && touches_internet(net))
            }
            // Each range of a set is decided on its own.
            Selector::Set(set) => {
                let at = Span::from(address);
                let mut parts = set.spans.iter().filter(|part| part.contains(&at));
                parts.any(|part| {
                    let own = node.addresses.iter();
                    let mut own = own.map(|own| Span::from(*own));
                    own.any(|own| part.contains(&own))
                        || node.routes.iter().any(|route| {
                            part.overlaps(&Span::from(route))
                                && (route.prefix_len() != 0 || crate::span::internet_overlaps(part))
                        })
                })
            }
            identity => self.means_node(identity, node),
        }
    }

    /// The same for a grant that names routers.
    fn is_in_router_filter(&self, via: &[String], to: &Selector, node: &PolicyNode) -> bool {
        if !node.tags.iter().any(|tag| via.contains(tag)) {
            return false;
        }
        match to {
            Selector::Any => node.routes.iter().any(|route| route.prefix_len() != 0),
            Selector::Internet => node.routes.iter().any(|route| route.prefix_len() == 0),
            Selector::Net(net) => serves(node, net),
            Selector::Set(set) => node.routes.iter().any(|route| {
                let route_span = Span::from(route);
                route.prefix_len() != 0 && set.spans.iter().any(|span| span.overlaps(&route_span))
            }),
            _ => false,
        }
    }

    /// The node that has the address.
    pub(super) fn owner(&self, address: IpAddr) -> Option<&'a PolicyNode> {
        self.nodes
            .iter()
            .find(|node| node.addresses.contains(&address))
    }

    /// Whether a selector matches a node by identity.
    pub(super) fn means_node(&self, selector: &Selector, node: &PolicyNode) -> bool {
        let tagged = !node.tags.is_empty();
        let of_user = |wanted: &dyn Fn(&PolicyUser) -> bool| {
            !tagged
                && self
                    .users
                    .iter()
                    .any(|user| node.user == Some(user.id) && wanted(user))
        };
        match selector {
            Selector::Any => true,
            Selector::Tagged => tagged,
            Selector::Member => !tagged && node.user.is_some(),
            Selector::Tag(tag) => node.tags.iter().any(|own| own == tag),
            Selector::User(login) => of_user(&|user| is_called(user, login)),
            Selector::Group(group) => of_user(&|user| {
                let members = self.policy.groups.get(group);
                members.is_some_and(|logins| logins.iter().any(|login| is_called(user, login)))
            }),
            Selector::Domain(domain) => of_user(&|user| {
                let end = format!("@{}", domain.to_ascii_lowercase());
                std::iter::once(&user.login)
                    .chain(&user.aliases)
                    .any(|name| name.len() > end.len() && name.to_ascii_lowercase().ends_with(&end))
            }),
            Selector::Role(role) => of_user(&|user| {
                user.role == *role || (user.role == Role::Owner && *role == Role::Admin)
            }),
            Selector::Net(_)
            | Selector::Set(_)
            | Selector::OwnUser
            | Selector::Internet
            | Selector::DangerAll
            | Selector::Shared
            | Selector::Service(_) => false,
        }
    }
}

/// Whether a login in a policy names the user, or a group of an identity provider
/// that lists it. `name@` is the local user `name` of this server.
pub(super) fn is_called(user: &PolicyUser, login: &str) -> bool {
    if login.starts_with(PROVIDER_GROUP) {
        return user.groups.iter().any(|group| group == login);
    }
    let local = login.strip_suffix('@');
    std::iter::once(&user.login)
        .chain(&user.aliases)
        .any(|name| name == login || Some(name.as_str()) == local)
}

fn holds(set: &IpSet, address: IpAddr) -> bool {
    let address = Span::from(address);
    set.spans.iter().any(|span| span.contains(&address))
}

/// Whether both are untagged nodes of one user.
pub(super) fn are_of_one_user(a: &PolicyNode, b: &PolicyNode) -> bool {
    a.tags.is_empty() && b.tags.is_empty() && a.user.is_some() && a.user == b.user
}

/// Whether an approved subnet route of the node overlaps the prefix: one of
/// two prefixes that overlap contains the other.
fn serves(node: &PolicyNode, net: &IpNet) -> bool {
    node.routes
        .iter()
        .any(|route| route.prefix_len() != 0 && (route.contains(net) || net.contains(route)))
}

/// The IPv4 networks that `autogroup:internet` leaves out; IPv6 is 2000::/3.
const NOT_INTERNET: [(Ipv4Addr, u8); 5] = [
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
];

fn private_v4() -> impl Iterator<Item = Ipv4Net> {
    NOT_INTERNET
        .into_iter()
        .filter_map(|(network, length)| Ipv4Net::new(network, length).ok())
}

pub(super) fn is_internet(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => !private_v4().any(|net| net.contains(&a)),
        IpAddr::V6(a) => a.octets().first().is_some_and(|first| first >> 5 == 1),
    }
}

/// Whether some address of the prefix is public.
fn touches_internet(net: &IpNet) -> bool {
    match net {
        // Private networks are not adjacent, so a prefix is private only if one
        // of them contains it.
        IpNet::V4(net) => !private_v4().any(|private| private.contains(net)),
        IpNet::V6(net) => {
            let global = [0x2000, 0, 0, 0, 0, 0, 0, 0];
            let first = Ipv6Addr::from(global);
            is_internet(IpAddr::V6(net.network())) || net.contains(&first)
        }
    }
}

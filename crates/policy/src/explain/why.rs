//! Explains why one endpoint may reach another, or may not.

use std::net::IpAddr;

use ipnet::IpNet;
use warren_control_types::NodeId;

use super::context::{AskError, Endpoint, PolicyContext};
use super::edit::{self, Edit};
use super::evaluate::{
    Opening, Packet, Verdict, are_of_one_user, evaluate, is_called, is_for, opens,
};
use super::layout::{Entry, Layout, Section, SourceLocation};
use super::ports::{has_ports, ports_text, protocol_name};
use crate::model::Rule;
use crate::node::PolicyNode;
use crate::selector::{Selector, parse_protocol};

/// The number of pairs of machines that are explained if names match several.
const PAIRS: usize = 16;
/// The number of rules that are listed as reasons or as near misses.
const RULES: usize = 3;

/// The question whether a source may open a connection to a destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// The source: a machine, address, user, tag, group or host.
    pub source: String,
    /// The destination, named in the same ways.
    pub destination: String,
    /// IP protocol number.
    pub protocol: u8,
    /// Destination port; 0 for protocols without ports.
    pub port: u16,
}

/// The answer to a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Why {
    /// The name of the policy file.
    pub file: String,
    /// One answer per pair of machines, those that are refused first.
    pub answers: Vec<PairAnswer>,
    /// The number of further pairs that the names match.
    pub left_out: usize,
}

/// The answer for two machines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PairAnswer {
    /// The endpoint that opens the connection.
    pub source: Endpoint,
    /// The endpoint that receives it.
    pub destination: Endpoint,
    /// IP protocol number.
    pub protocol: u8,
    /// Destination port.
    pub port: u16,
    /// Whether the packet arrives and is accepted, over IPv4 or IPv6.
    pub allowed: bool,
    /// The pairs of addresses that work.
    pub open: Vec<(IpAddr, IpAddr)>,
    /// The policy has no rules, so everything is allowed.
    pub no_rules: bool,
    /// The rules that accept it.
    pub reasons: Vec<Reason>,
    /// The routers for the destination, if it is not a machine's own address.
    pub carriers: Vec<Carrier>,
    /// Rules that accept it except for one element.
    pub near: Vec<NearMiss>,
    /// Edits of the file that would accept it, the smallest first.
    pub edits: Vec<Edit>,
    /// Further obstacles and remarks.
    pub notes: Vec<String>,
}

/// A rule that accepts the packet, and how its names match the machines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    /// The rule.
    pub rule: SourceLocation,
    /// From its source to the machine.
    pub source: Link,
    /// From its destination to the machine.
    pub destination: Link,
    /// The ports and protocols that the rule opens.
    pub service: String,
    /// Tags of the routers that must carry the traffic.
    pub via: Vec<String>,
    /// The posture that the rule requires and the source has.
    pub posture: Option<String>,
}

/// An entry of a rule and the steps from it to a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// The entry.
    pub entry: Option<SourceLocation>,
    /// The steps from the entry to the machine.
    pub steps: Vec<String>,
}

/// A machine that serves the destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Carrier {
    /// The machine.
    pub node: NodeId,
    /// Its name.
    pub name: String,
    /// The route that it advertises.
    pub route: IpNet,
    /// Whether the route was approved.
    pub approved: bool,
    /// Whether its filter accepts the packet.
    pub lets_in: bool,
}

/// A rule that accepts the packet except for one element.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NearMiss {
    /// The rule.
    pub rule: SourceLocation,
    /// A text that says which elements match and which do not.
    pub says: String,
}

impl Question {
    /// Parses `SRC DST:PORT [PROTOCOL]`. The default protocol is TCP.
    ///
    /// # Errors The destination has no port, or the protocol is unknown.
    pub fn parse(
        source: &str,
        destination: &str,
        protocol: Option<&str>,
    ) -> Result<Self, AskError> {
        let protocol = match protocol.map(str::trim) {
            None | Some("") => 6,
            Some(name) => {
                parse_protocol(name).ok_or_else(|| AskError::Protocol(name.to_owned()))?
            }
        };
        let whole = destination.trim();
        let split = whole.rsplit_once(':').and_then(|(host, port)| {
            let is_address = whole.parse::<IpAddr>().is_ok();
            let port: u16 = port.parse().ok().filter(|port| *port > 0)?;
            (!is_address && !host.is_empty()).then_some((host, port))
        });
        let (host, port) = match split {
            Some(found) => found,
            None if has_ports(protocol) => return Err(AskError::Destination(whole.to_owned())),
            None => (whole.trim_end_matches(":*"), 0),
        };
        Ok(Self {
            source: source.trim().to_owned(),
            destination: host.to_owned(),
            protocol,
            port: if has_ports(protocol) { port } else { 0 },
        })
    }
}

impl PolicyContext<'_> {
    /// Answers a question.
    ///
    /// # Errors A name matches no machine.
    pub fn why(&self, question: &Question) -> Result<Why, AskError> {
        let sources = self.resolve(&question.source)?;
        let destinations = self.resolve(&question.destination)?;
        let layout = self.layout();
        let pairs: Vec<(&Endpoint, &Endpoint)> = sources
            .iter()
            .flat_map(|source| destinations.iter().map(move |to| (source, to)))
            .filter(|(source, to)| source.node.is_none() || source.node != to.node)
            .collect();
        // The question about a machine and itself is answered, too.
        let pairs = match (pairs.as_slice(), sources.first(), destinations.first()) {
            ([], Some(source), Some(to)) => vec![(source, to)],
            _ => pairs,
        };
        let mut answers: Vec<PairAnswer> = pairs
            .iter()
            .take(PAIRS)
            .map(|(source, to)| self.answer(&layout, source, to, question))
            .collect();
        answers.sort_by_key(|answer| answer.allowed);
        Ok(Why {
            file: self.file.to_owned(),
            answers,
            left_out: pairs.len().saturating_sub(PAIRS),
        })
    }

    fn answer(
        &self,
        layout: &Layout,
        source: &Endpoint,
        destination: &Endpoint,
        question: &Question,
    ) -> PairAnswer {
        let mut out = PairAnswer {
            source: source.clone(),
            destination: destination.clone(),
            protocol: question.protocol,
            port: question.port,
            allowed: false,
            open: Vec::new(),
            no_rules: self.policy.open,
            reasons: Vec::new(),
            carriers: Vec::new(),
            near: Vec::new(),
            edits: Vec::new(),
            notes: Vec::new(),
        };
        let pairs: Vec<(IpAddr, IpAddr)> = source
            .addresses
            .iter()
            .flat_map(|s| destination.addresses.iter().map(move |d| (*s, *d)))
            .filter(|(s, d)| s.is_ipv4() == d.is_ipv4())
            .collect();
        let mut openings: Vec<(Opening, NodeId, Packet)> = Vec::new();
        for (s, d) in &pairs {
            let packet = Packet {
                source: *s,
                destination: *d,
                protocol: question.protocol,
                port: question.port,
            };
            let carriers = self.carriers(&packet);
            let verdicts: Vec<(NodeId, Verdict)> = self
                .receivers(&packet)
                .into_iter()
                .map(|node| {
                    let verdict = evaluate(self.policy, self.users, self.nodes, node, &packet);
                    (node, verdict)
                })
                .collect();
            if verdicts.iter().any(|(_, verdict)| verdict.allowed) {
                out.open.push((*s, *d));
            }
            for (node, verdict) in verdicts {
                openings.extend(verdict.by.iter().map(|by| (*by, node, packet)));
            }
            for carrier in carriers {
                if !out.carriers.contains(&carrier) {
                    out.carriers.push(carrier);
                }
            }
        }
        out.allowed = !out.open.is_empty();
        // One reason per rule, even if several of its entries match.
        let mut told = Vec::new();
        for (opening, receiver, packet) in openings {
            if told.len() < RULES && !told.contains(&opening.rule) {
                told.push(opening.rule);
                out.reasons
                    .extend(self.reason(layout, opening, receiver, &packet));
            }
        }
        self.notes(&mut out, &pairs);
        if !out.allowed
            && let Some((s, d)) = pairs.first()
        {
            let packet = Packet {
                source: *s,
                destination: *d,
                protocol: question.protocol,
                port: question.port,
            };
            out.near = self.near_misses(layout, &packet);
            if source.node.is_none() || source.node != destination.node {
                out.edits = edit::edits(self, layout, source, destination, &packet);
            }
        }
        out
    }

    /// The nodes at which a packet with this destination may arrive.
    pub(super) fn receivers(&self, packet: &Packet) -> Vec<NodeId> {
        match self.evaluator().owner(packet.destination) {
            Some(owner) => vec![owner.id],
            None => self
                .nodes
                .iter()
                .filter(|node| is_for(node, packet.destination))
                .map(|node| node.id)
                .collect(),
        }
    }

    /// The routers of an address that belongs to no machine, the most specific
    /// route first.
    fn carriers(&self, packet: &Packet) -> Vec<Carrier> {
        if self.evaluator().owner(packet.destination).is_some() {
            return Vec::new();
        }
        let mut out = Vec::new();
        for node in self.nodes {
            let offered = self.offered.get(&node.id).map_or(&[][..], Vec::as_slice);
            let covers = |route: &&IpNet| route.contains(&packet.destination);
            let approved = node.routes.iter().filter(covers).map(|route| (route, true));
            let waiting = offered
                .iter()
                .filter(covers)
                .filter(|route| !node.routes.contains(route))
                .map(|route| (route, false));
            let best = approved
                .chain(waiting)
                .max_by_key(|(route, approved)| (*approved, route.prefix_len()));
            if let Some((route, approved)) = best {
                let verdict = evaluate(self.policy, self.users, self.nodes, node.id, packet);
                out.push(Carrier {
                    node: node.id,
                    name: self.name_of(node),
                    route: *route,
                    approved,
                    lets_in: verdict.allowed,
                });
            }
        }
        out.sort_by_key(|carrier| {
            (
                !carrier.approved,
                std::cmp::Reverse(carrier.route.prefix_len()),
                carrier.node,
            )
        });
        out
    }

    fn notes(&self, out: &mut PairAnswer, pairs: &[(IpAddr, IpAddr)]) {
        let notes = &mut out.notes;
        if pairs.is_empty() {
            notes.push("the two have no address family in common".to_owned());
            return;
        }
        if out.allowed && out.open.len() < pairs.len() {
            let family = |v4: bool| out.open.iter().any(|(s, _)| s.is_ipv4() == v4);
            for (v4, name) in [(true, "IPv4"), (false, "IPv6")] {
                if pairs.iter().any(|(s, _)| s.is_ipv4() == v4) && !family(v4) {
                    notes.push(format!("not over {name}: the rules name addresses"));
                }
            }
        }
        if out.source.node.is_some() && out.source.node == out.destination.node {
            notes.push("a machine reaches itself without a policy".to_owned());
        }
        if out.destination.node.is_none() {
            let usable = out.carriers.iter().any(|carrier| carrier.approved);
            let address = out.destination.name.as_str();
            match out.carriers.first() {
                None => notes.push(format!(
                    "no machine has {address} or offers a route to it, so no policy makes it reachable"
                )),
                Some(waiting) if !usable => notes.push(format!(
                    "the route is not approved: warren-control nodes approve-routes {} --routes {}",
                    waiting.name, waiting.route
                )),
                Some(_) => {}
            }
        }
        if out.no_rules && !out.allowed && out.carriers.iter().all(|carrier| carrier.approved) {
            notes.push(
                "without rules all machines reach all machines, with tcp, udp and icmp".to_owned(),
            );
        }
    }

    fn location(&self, entry: &Entry) -> SourceLocation {
        SourceLocation::of(self.text, &entry.span)
    }

    fn reason(
        &self,
        layout: &Layout,
        opening: Opening,
        receiver: NodeId,
        packet: &Packet,
    ) -> Option<Reason> {
        let rule = self.policy.rules.get(opening.rule)?;
        let source = rule.sources.get(opening.source)?;
        let reach = rule.reach.get(opening.reach)?;
        let to = reach.to.get(opening.destination)?;
        let receiver = self.nodes.iter().find(|node| node.id == receiver)?;
        let written = layout.rules.get(opening.rule)?;
        let sender = self.evaluator().owner(packet.source);
        let source_steps = self.source_steps(layout, source, sender, packet.source);
        let mut to_steps = self.destination_steps(layout, to, sender, receiver, packet.destination);
        if has_ports(packet.protocol) {
            to_steps.push(format!(
                "port {} is in {}",
                packet.port,
                ports_text(&reach.ports)
            ));
        }
        let service = format!(
            "{} {}",
            reach
                .protocol
                .map_or_else(|| "tcp, udp, icmp".to_owned(), protocol_name),
            ports_text(&reach.ports)
        );
        Some(Reason {
            rule: SourceLocation::of(self.text, &written.span),
            source: Link {
                entry: written
                    .src
                    .entries
                    .get(opening.source)
                    .map(|e| self.location(e)),
                steps: source_steps,
            },
            destination: Link {
                entry: layout
                    .destination(opening.rule, opening.reach, opening.destination)
                    .map(|entry| self.location(entry)),
                steps: to_steps,
            },
            service,
            via: rule.via.clone(),
            posture: sender
                .and_then(|node| self.evaluator().posture_of(rule, node))
                .filter(|posture| !posture.is_empty())
                .map(str::to_owned),
        })
    }

    /// The steps from a source entry to an address.
    fn source_steps(
        &self,
        layout: &Layout,
        selector: &Selector,
        sender: Option<&PolicyNode>,
        address: IpAddr,
    ) -> Vec<String> {
        match (selector, sender) {
            (Selector::Any, Some(node)) => {
                vec![format!(
                    "{} is a machine of the network",
                    self.name_of(node)
                )]
            }
            (Selector::Any, None) => vec![self.behind(address)],
            (Selector::DangerAll, _) => vec!["every address".to_owned()],
            (Selector::Net(net), _) => self.net_steps(layout, net, address),
            (Selector::Set(set), _) => vec![format!("{} contains {address}", set.name)],
            (_, Some(node)) => self.identity_steps(layout, selector, node),
            (_, None) => Vec::new(),
        }
    }

    fn destination_steps(
        &self,
        layout: &Layout,
        selector: &Selector,
        sender: Option<&PolicyNode>,
        receiver: &PolicyNode,
        address: IpAddr,
    ) -> Vec<String> {
        match selector {
            Selector::Any | Selector::DangerAll => vec!["every destination".to_owned()],
            Selector::Internet => vec![format!("{address} is a public address")],
            Selector::Net(net) => self.net_steps(layout, net, address),
            Selector::Set(set) => vec![format!("{} contains {address}", set.name)],
            Selector::OwnUser => {
                let both = sender.filter(|sender| are_of_one_user(sender, receiver));
                both.map(|sender| {
                    format!(
                        "{} and {} belong to {}",
                        self.name_of(sender),
                        self.name_of(receiver),
                        self.owner_of(receiver)
                    )
                })
                .into_iter()
                .collect()
            }
            identity => self.identity_steps(layout, identity, receiver),
        }
    }

    /// A sentence that names the router of the address.
    fn behind(&self, address: IpAddr) -> String {
        for node in self.nodes {
            if let Some(route) = node.subnet_routes().find(|route| route.contains(&address)) {
                let name = self.name_of(node);
                return format!("{address} is behind {name}, which serves {route}");
            }
        }
        format!("{address} is in the network's own range")
    }

    fn net_steps(&self, layout: &Layout, net: &IpNet, address: IpAddr) -> Vec<String> {
        let mut steps = Vec::new();
        let host = layout.hosts.iter().find(|(_, span)| {
            let member = self.text.get(span.clone()).unwrap_or_default();
            let value = member.trim_end_matches('"').rsplit('"').next();
            value.and_then(|v| crate::selector::parse_net(v.trim())) == Some(*net)
        });
        if let Some((name, span)) = host {
            let place = SourceLocation::of(self.text, span);
            steps.push(format!(
                "host {name} is {net} ({}:{})",
                place.line, place.column
            ));
        }
        if net.prefix_len() != net.max_prefix_len() {
            steps.push(format!("{net} contains {address}"));
        }
        if let Some(node) = self.evaluator().owner(address) {
            steps.push(format!("{address} is {}", self.name_of(node)));
        }
        steps
    }

    fn identity_steps(
        &self,
        layout: &Layout,
        selector: &Selector,
        node: &PolicyNode,
    ) -> Vec<String> {
        let name = self.name_of(node);
        let owner = self.owner_of(node);
        match selector {
            Selector::Tag(tag) => vec![format!("{name} carries {tag}")],
            Selector::Tagged => vec![format!("{name} is tagged ({owner})")],
            Selector::Member => vec![format!("{name} belongs to the user {owner}")],
            Selector::User(login) => vec![format!("{login} owns {name}")],
            Selector::Domain(domain) => {
                vec![format!("{owner} is in the domain {domain} and owns {name}")]
            }
            Selector::Group(group) => {
                let user = self.users.iter().find(|user| Some(user.id) == node.user);
                let members = layout.groups.iter().find(|(named, _)| named == group);
                let entry = user.and_then(|user| {
                    let (_, members) = members?;
                    members.iter().find(|entry| is_called(user, &entry.text))
                });
                let contains = match entry {
                    Some(entry) => {
                        let at = self.location(entry);
                        format!(
                            "{group} contains {} ({}:{})",
                            entry.text, at.line, at.column
                        )
                    }
                    None => format!("{group} contains {owner}"),
                };
                vec![contains, format!("{owner} owns {name}")]
            }
            _ => vec![format!("{name} matches")],
        }
    }

    /// The rules of which most elements match, best first.
    fn near_misses(&self, layout: &Layout, packet: &Packet) -> Vec<NearMiss> {
        let mut found: Vec<(usize, usize, String)> = Vec::new();
        for (at, rule) in self.policy.rules.iter().enumerate() {
            let near = self.nearness(layout, at, rule, packet);
            if let Some((points, says)) = near {
                found.push((points, at, says));
            }
        }
        found.sort_by_key(|(points, at, _)| (std::cmp::Reverse(*points), *at));
        let best = found.first().map_or(0, |(points, ..)| *points);
        found
            .into_iter()
            .filter(|(points, ..)| *points == best)
            .take(RULES)
            .filter_map(|(_, at, says)| {
                let written = layout.rules.get(at)?;
                Some(NearMiss {
                    rule: SourceLocation::of(self.text, &written.span),
                    says,
                })
            })
            .collect()
    }

    /// How near a rule comes to letting the packet in. `None`: not near.
    fn nearness(
        &self,
        layout: &Layout,
        at: usize,
        rule: &Rule,
        packet: &Packet,
    ) -> Option<(usize, String)> {
        let evaluator = self.evaluator();
        let written = layout.rules.get(at)?;
        let source = rule
            .sources
            .iter()
            .position(|selector| evaluator.is_source(selector, packet.source))
            .and_then(|n| written.src.entries.get(n));
        let posed = rule.sources.iter().any(|selector| {
            evaluator.is_source(selector, packet.source)
                && evaluator.has_posture(rule, selector, packet.source)
        });
        let receivers: Vec<&PolicyNode> = self
            .receivers(packet)
            .iter()
            .filter_map(|id| self.nodes.iter().find(|node| node.id == *id))
            .collect();
        // Of all destinations that mean the address, the one whose ports fit.
        let mut best: Option<(bool, usize, usize)> = None;
        for (reach_at, reach) in rule.reach.iter().enumerate() {
            for (to_at, to) in reach.to.iter().enumerate() {
                let meant = receivers
                    .iter()
                    .any(|node| evaluator.is_destination(to, node, packet.destination));
                let open = opens(reach, packet.protocol, packet.port);
                if meant && best.is_none_or(|(fits, ..)| open && !fits) {
                    best = Some((open, reach_at, to_at));
                }
            }
        }
        let ports_fit = match best {
            Some((fits, ..)) => fits,
            None => rule
                .reach
                .iter()
                .any(|reach| opens(reach, packet.protocol, packet.port)),
        };
        let points = usize::from(source.is_some() && posed) * 2
            + usize::from(best.is_some()) * 2
            + usize::from(ports_fit);
        // Ports alone are nothing to speak of.
        if points < 2 {
            return None;
        }
        let source_says = match source {
            Some(entry) if posed => format!("src matches (\"{}\")", entry.text),
            Some(entry) => format!(
                "src matches (\"{}\") but lacks the posture {}",
                entry.text,
                rule.postures.join(" or ")
            ),
            None => "src does not match".to_owned(),
        };
        let destination = best.and_then(|(_, reach, to)| layout.destination(at, reach, to));
        let destination_says = match destination {
            Some(entry) => format!("dst matches (\"{}\")", entry.text),
            None => "dst does not match".to_owned(),
        };
        let mut says = format!("{source_says}, {destination_says}");
        if let Some((false, reach, _)) = best
            && let Some(reach) = rule.reach.get(reach)
        {
            let protocol = reach.protocol;
            let other = protocol.is_some_and(|protocol| protocol != packet.protocol);
            let protocol = protocol.map_or_else(|| "tcp, udp, icmp".to_owned(), protocol_name);
            says.push_str(&if other || !has_ports(packet.protocol) {
                let asked = protocol_name(packet.protocol);
                format!(", it opens {protocol} and not {asked}")
            } else {
                let open = match written.section {
                    Section::Acls => ports_text(&reach.ports),
                    Section::Grants => written
                        .ip
                        .entries
                        .iter()
                        .map(|entry| entry.text.as_str())
                        .collect::<Vec<_>>()
                        .join(","),
                };
                format!(", port {} is not in {open}", packet.port)
            });
        }
        if source.is_some() && posed && best.is_some() && ports_fit {
            let routers = rule.via.join(", ");
            says.push_str(&if rule.via.is_empty() {
                ", but it is in the filter of no machine".to_owned()
            } else {
                format!(", but only by way of {routers}")
            });
        }
        Some((points, says))
    }
}

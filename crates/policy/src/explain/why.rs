//! Explains why one endpoint may reach another, or may not.

mod carriers;
mod near;
mod steps;

use std::net::IpAddr;

use ipnet::IpNet;
use warren_control_types::NodeId;

use super::context::{AskError, Endpoint, PolicyContext};
use super::edit::{self, Edit};
use super::evaluate::{Opening, Packet, Verdict, evaluate};
use super::layout::{Layout, SourceLocation};
use super::ports::{has_ports, ports_text, protocol_name};
use crate::selector::parse_protocol;

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
        let mut explained = Vec::new();
        for (opening, receiver, packet) in openings {
            if explained.len() < RULES && !explained.contains(&opening.rule) {
                explained.push(opening.rule);
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
}

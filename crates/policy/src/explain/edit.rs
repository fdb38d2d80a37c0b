//! Finds the smallest edit of a policy file that allows a packet.
//!
//! Candidates are made from rules that lack one element (the source, the
//! destination, the port), and from a new rule. Each candidate is applied to
//! the text, and the result is parsed and evaluated for the packet: only edits
//! that work are offered.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::Range;

use warren_control_types::NodeId;

use super::context::{Endpoint, PolicyContext};
use super::evaluate::{Packet, evaluate, opens};
use super::layout::{Layout, List, RuleLayout, Section, SourceLocation};
use super::ports::{DEFAULT, has_ports, protocol_name};
use crate::model::Policy;
use crate::node::PolicyNode;

/// The number of candidates that are tried before a new rule is proposed.
const TRIES: usize = 24;

/// A replacement in a policy file that allows a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edit {
    /// A description of the edit for users.
    pub what: String,
    /// The byte range that is replaced.
    pub span: Range<usize>,
    /// The text that replaces it.
    pub text: String,
    /// The position of the edit.
    pub location: SourceLocation,
    /// The affected lines before the edit.
    pub before: Vec<String>,
    /// The same lines after the edit.
    pub after: Vec<String>,
    /// The number of other pairs of machines that would gain access.
    pub others: usize,
}

impl Edit {
    /// The file after the edit. `source` is the text that was explained.
    #[must_use]
    pub fn apply(&self, source: &str) -> String {
        let head = source.get(..self.span.start).unwrap_or_default();
        let tail = source.get(self.span.end..).unwrap_or_default();
        format!("{head}{}{tail}", self.text)
    }
}

/// An edit that has not been tried yet.
struct Candidate {
    what: String,
    span: Range<usize>,
    text: String,
}

/// The smallest edit, and the narrowest one if the smallest allows other
/// packets too.
pub(super) fn edits(
    context: &PolicyContext<'_>,
    layout: &Layout,
    source: &Endpoint,
    destination: &Endpoint,
    packet: &Packet,
) -> Vec<Edit> {
    if context.policy.open {
        return Vec::new();
    }
    // Routes that wait for approval count as approved, because the answer asks
    // for their approval separately.
    let nodes = with_offered_routes(context);
    let receivers: Vec<&PolicyNode> = match nodes
        .iter()
        .find(|node| node.has_address(packet.destination))
    {
        Some(owner) => vec![owner],
        None => nodes
            .iter()
            .filter(|node| super::evaluate::is_for(node, packet.destination))
            .collect(),
    };
    if receivers.is_empty() {
        return Vec::new();
    }
    let context = PolicyContext {
        nodes: &nodes,
        ..context.clone()
    };
    let search = EditSearch {
        context: &context,
        layout,
        packet,
        receivers: receivers.iter().map(|node| node.id).collect(),
        from: spelled(context.policy, source, packet.source),
        to: spelled(context.policy, destination, packet.destination),
    };
    let mut candidates = search.candidates(&receivers);
    candidates.sort_by_key(|candidate| {
        (
            candidate.text.len() + candidate.span.len(),
            candidate.span.start,
        )
    });
    let works = |candidate: Candidate| search.tried(candidate);
    let mut out: Vec<Edit> = candidates
        .into_iter()
        .take(TRIES)
        .find_map(works)
        .into_iter()
        .collect();
    if out.first().is_none_or(|edit| edit.others > 0) {
        let (from, to) = (packet.source.to_string(), packet.destination.to_string());
        // The owners of the two machines may own others; the addresses are theirs alone.
        let rules = [
            search.new_rule(&search.from, &search.to),
            search.new_rule(&from, &to),
        ];
        let rules = rules.into_iter().flatten().filter_map(works);
        let narrowest = rules.min_by_key(|rule| rule.others);
        let before = out.first().map_or(usize::MAX, |edit| edit.others);
        out.extend(narrowest.filter(|rule| rule.others < before));
    }
    out
}

fn with_offered_routes(context: &PolicyContext<'_>) -> Vec<PolicyNode> {
    let mut nodes = context.nodes.to_vec();
    for node in &mut nodes {
        for route in context.offered.get(&node.id).into_iter().flatten() {
            if !node.routes.contains(route) {
                node.routes.push(*route);
            }
        }
    }
    nodes
}

/// The text by which a new entry names an endpoint: a tag, a user, or the
/// address.
fn spelled(policy: &Policy, end: &Endpoint, address: IpAddr) -> String {
    let first = end.owner.split(',').next().unwrap_or_default();
    let usable = if first.starts_with("tag:") {
        policy.knows_tag(first)
    } else {
        first.contains('@')
    };
    if end.node.is_some() && usable {
        first.to_owned()
    } else {
        address.to_string()
    }
}

struct EditSearch<'a> {
    context: &'a PolicyContext<'a>,
    layout: &'a Layout,
    packet: &'a Packet,
    receivers: Vec<NodeId>,
    from: String,
    to: String,
}

impl EditSearch<'_> {
    fn candidates(&self, receivers: &[&PolicyNode]) -> Vec<Candidate> {
        let mut out = Vec::new();
        for (at, rule) in self.context.policy.rules.iter().enumerate() {
            let Some(written) = self.layout.rules.get(at) else {
                continue;
            };
            if rule.reach.is_empty() && written.section == Section::Grants {
                continue;
            }
            let evaluator = self.context.evaluator();
            // No new entry helps if the source does not have the posture.
            let sender = evaluator.owner(self.packet.source);
            if sender.is_some_and(|node| evaluator.posture_of(rule, node).is_none()) {
                continue;
            }
            let source = rule
                .sources
                .iter()
                .any(|selector| evaluator.is_source(selector, self.packet.source));
            let means = |to| {
                receivers
                    .iter()
                    .any(|node| evaluator.is_destination(to, node, self.packet.destination))
            };
            let open = |reach| opens(reach, self.packet.protocol, self.packet.port);
            let destination = rule.reach.iter().any(|reach| reach.to.iter().any(means));
            let both = rule
                .reach
                .iter()
                .any(|reach| open(reach) && reach.to.iter().any(means));
            if !source && both {
                out.extend(addition("add a source", &written.src, &self.from));
            }
            if source && !destination {
                out.extend(self.add_destination(written, rule.reach.iter().any(open)));
            }
            if source && destination && !both {
                match written.section {
                    Section::Grants => {
                        out.extend(addition("open the port", &written.ip, &self.ip_entry()));
                    }
                    Section::Acls => {
                        for (reach_at, reach) in rule.reach.iter().enumerate() {
                            let fits = self.protocol_fits(reach.protocol);
                            if fits && reach.to.iter().any(means) {
                                out.extend(self.add_port(at, reach_at));
                            }
                        }
                    }
                }
            }
        }
        out
    }

    fn protocol_fits(&self, protocol: Option<u8>) -> bool {
        match protocol {
            Some(only) => only == self.packet.protocol,
            None => DEFAULT.contains(&self.packet.protocol),
        }
    }

    /// `"tag:db:22"` becomes `"tag:db:22,5432"`.
    fn add_port(&self, rule: usize, reach: usize) -> Option<Candidate> {
        let entry = self.layout.destination(rule, reach, 0)?;
        let what = "open the port".to_owned();
        if has_ports(self.packet.protocol) {
            let more = format!(",{}", self.packet.port);
            let as_written = self.context.text.get(entry.span.clone());
            // Insert before the closing quote, unless the string contains
            // escapes.
            if as_written == Some(quoted(&entry.text).as_str()) {
                let at = entry.span.end - 1;
                return Some(Candidate {
                    what,
                    span: at..at,
                    text: more,
                });
            }
            return Some(Candidate {
                what,
                span: entry.span.clone(),
                text: quoted(&(entry.text.clone() + &more)),
            });
        }
        let (host, _) = entry.text.rsplit_once(':')?;
        Some(Candidate {
            what,
            span: entry.span.clone(),
            text: quoted(&format!("{host}:*")),
        })
    }

    fn add_destination(&self, written: &RuleLayout, open: bool) -> Option<Candidate> {
        match written.section {
            Section::Acls => addition(
                "add a destination",
                &written.dst,
                &self.acl_destination(&self.to),
            ),
            Section::Grants if open => addition("add a destination", &written.dst, &self.to),
            Section::Grants => None,
        }
    }

    fn acl_destination(&self, to: &str) -> String {
        let host = match to.parse::<IpAddr>() {
            Ok(IpAddr::V6(address)) => format!("[{address}]"),
            Ok(IpAddr::V4(_)) | Err(_) => to.to_owned(),
        };
        if has_ports(self.packet.protocol) {
            format!("{host}:{}", self.packet.port)
        } else {
            format!("{host}:*")
        }
    }

    fn ip_entry(&self) -> String {
        let name = protocol_name(self.packet.protocol);
        if has_ports(self.packet.protocol) {
            format!("{name}:{}", self.packet.port)
        } else {
            format!("{name}:*")
        }
    }

    /// A rule for these two endpoints alone, after the last one of its section.
    fn new_rule(&self, from: &str, to: &str) -> Option<Candidate> {
        let section = match (&self.layout.acls, &self.layout.grants) {
            (Some(_), _) => Section::Acls,
            (None, _) => Section::Grants,
        };
        let array = match section {
            Section::Acls => self.layout.acls.clone(),
            Section::Grants => self.layout.grants.clone(),
        }?;
        let proto = if self.packet.protocol == 6 {
            String::new()
        } else {
            let name = protocol_name(self.packet.protocol);
            format!(", \"proto\": {}", quoted(&name))
        };
        let rule = match section {
            Section::Acls => format!(
                "{{\"action\": \"accept\", \"src\": [{}], \"dst\": [{}]{proto}}}",
                quoted(from),
                quoted(&self.acl_destination(to))
            ),
            Section::Grants => format!(
                "{{\"src\": [{}], \"dst\": [{}], \"ip\": [{}]}}",
                quoted(from),
                quoted(to),
                quoted(&self.ip_entry())
            ),
        };
        let last = self
            .layout
            .rules
            .iter()
            .rfind(|rule| rule.section == section);
        let (at, text) = match last {
            Some(last) => {
                let text = self.context.text;
                let before = text.get(..last.span.start).unwrap_or_default();
                let line = before.rfind('\n').map_or(0, |at| at + 1);
                let lead = before.get(line..).unwrap_or_default();
                // On a line of its own if the last rule starts a line.
                let between = if lead.chars().all(char::is_whitespace) && line > 0 {
                    format!("\n{lead}")
                } else {
                    " ".to_owned()
                };
                (last.span.end, format!(",{between}{rule}"))
            }
            None => (array.start + 1, rule),
        };
        Some(Candidate {
            what: "add a rule".to_owned(),
            span: at..at,
            text,
        })
    }

    /// Applies a candidate and evaluates the packet against the result.
    fn tried(&self, candidate: Candidate) -> Option<Edit> {
        let mut edit = Edit {
            what: candidate.what,
            location: SourceLocation::of(self.context.text, &candidate.span),
            span: candidate.span,
            text: candidate.text,
            before: Vec::new(),
            after: Vec::new(),
            others: 0,
        };
        let text = edit.apply(self.context.text);
        let policy = Policy::parse(&text).ok()?;
        let lets_in = |receiver: &NodeId| {
            evaluate(
                &policy,
                self.context.users,
                self.context.nodes,
                *receiver,
                self.packet,
            )
            .allowed
        };
        if !self.receivers.iter().any(lets_in) {
            return None;
        }
        let names = BTreeMap::new();
        let offered = BTreeMap::new();
        let after = PolicyContext {
            policy: &policy,
            text: &text,
            names: &names,
            offered: &offered,
            ..self.context.clone()
        };
        edit.others = self.context.diff(&after).pairs_gained().saturating_sub(1);
        let old = self.context.text;
        edit.before = lines(old, &edit.span);
        edit.after = lines(&text, &(edit.span.start..edit.span.start + edit.text.len()));
        Some(edit)
    }
}

/// One more string at the end of a list.
fn addition(what: &str, list: &List, text: &str) -> Option<Candidate> {
    let span = list.span.clone()?;
    let (at, text) = match list.entries.last() {
        Some(last) => (last.span.end, format!(", {}", quoted(text))),
        None => (span.start + 1, quoted(text)),
    };
    Some(Candidate {
        what: what.to_owned(),
        span: at..at,
        text,
    })
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// The whole lines that the bytes touch.
fn lines(text: &str, span: &Range<usize>) -> Vec<String> {
    let start = text
        .get(..span.start)
        .and_then(|before| before.rfind('\n'))
        .map_or(0, |at| at + 1);
    let end = text
        .get(span.end..)
        .and_then(|after| after.find('\n'))
        .map_or(text.len(), |at| span.end + at);
    let touched = text.get(start..end).unwrap_or_default();
    touched.lines().map(str::to_owned).collect()
}

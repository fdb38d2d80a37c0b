//! Rules that accept a packet except for one element.

use super::{NearMiss, RULES};
use crate::explain::context::PolicyContext;
use crate::explain::evaluate::{Packet, opens};
use crate::explain::layout::{Entry, Layout, RuleLayout, Section, SourceLocation};
use crate::explain::ports::{has_ports, ports_text, protocol_name};
use crate::model::{Reach, Rule};
use crate::node::PolicyNode;

impl PolicyContext<'_> {
    /// The rules of which most elements match, best first.
    pub(super) fn near_misses(&self, layout: &Layout, packet: &Packet) -> Vec<NearMiss> {
        let mut found: Vec<(usize, usize, String)> = Vec::new();
        for (at, rule) in self.policy.rules.iter().enumerate() {
            let near = Nearness::of(self, layout, at, rule, packet);
            if let Some(near) = near.filter(Nearness::is_near) {
                found.push((near.points(), at, near.text(layout, packet)));
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
}

/// The elements of a rule that match a packet.
struct Nearness<'a> {
    at: usize,
    rule: &'a Rule,
    written: &'a RuleLayout,
    /// The first source that matches.
    source: Option<&'a Entry>,
    /// Whether a source matches and has a posture that the rule requires.
    has_posture: bool,
    destination: Option<Destination<'a>>,
    /// Whether the ports of the destination fit; without a matching
    /// destination, whether those of any fit.
    ports_fit: bool,
}

/// A destination that matches.
#[derive(Clone, Copy)]
struct Destination<'a> {
    reach: &'a Reach,
    reach_at: usize,
    to_at: usize,
    open: bool,
}

impl<'a> Nearness<'a> {
    fn of(
        context: &PolicyContext<'_>,
        layout: &'a Layout,
        at: usize,
        rule: &'a Rule,
        packet: &Packet,
    ) -> Option<Self> {
        let evaluator = context.evaluator();
        let written = layout.rules.get(at)?;
        let is_source = |selector| evaluator.is_source(selector, packet.source);
        let first = rule.sources.iter().position(is_source);
        let has_posture = rule.sources.iter().any(|selector| {
            is_source(selector) && evaluator.has_posture(rule, selector, packet.source)
        });
        let destination = Self::destination(context, rule, packet);
        let open = |reach: &Reach| opens(reach, packet.protocol, packet.port);
        Some(Self {
            at,
            rule,
            written,
            source: first.and_then(|n| written.src.entries.get(n)),
            has_posture,
            destination,
            ports_fit: destination.map_or_else(
                || rule.reach.iter().any(open),
                |destination| destination.open,
            ),
        })
    }

    /// Of all destinations that match the address, the first whose ports fit,
    /// otherwise the first.
    fn destination(
        context: &PolicyContext<'_>,
        rule: &'a Rule,
        packet: &Packet,
    ) -> Option<Destination<'a>> {
        let evaluator = context.evaluator();
        let receivers: Vec<&PolicyNode> = context
            .receivers(packet)
            .iter()
            .filter_map(|id| context.nodes.iter().find(|node| node.id == *id))
            .collect();
        let mut best: Option<Destination<'a>> = None;
        for (reach_at, reach) in rule.reach.iter().enumerate() {
            let open = opens(reach, packet.protocol, packet.port);
            for (to_at, to) in reach.to.iter().enumerate() {
                let matches = receivers
                    .iter()
                    .any(|node| evaluator.is_destination(to, node, packet.destination));
                if matches && best.is_none_or(|best| open && !best.open) {
                    best = Some(Destination {
                        reach,
                        reach_at,
                        to_at,
                        open,
                    });
                }
            }
        }
        best
    }

    fn has_source(&self) -> bool {
        self.source.is_some() && self.has_posture
    }

    fn points(&self) -> usize {
        usize::from(self.has_source()) * 2
            + usize::from(self.destination.is_some()) * 2
            + usize::from(self.ports_fit)
    }

    /// Whether source or destination match; matching ports alone are not near.
    fn is_near(&self) -> bool {
        self.points() >= 2
    }

    /// The elements that match and those that do not, as one sentence.
    fn text(&self, layout: &Layout, packet: &Packet) -> String {
        let source = match self.source {
            Some(entry) if self.has_posture => format!("src matches (\"{}\")", entry.text),
            Some(entry) => format!(
                "src matches (\"{}\") but lacks the posture {}",
                entry.text,
                self.rule.postures.join(" or ")
            ),
            None => "src does not match".to_owned(),
        };
        let entry = self
            .destination
            .and_then(|found| layout.destination(self.at, found.reach_at, found.to_at));
        let destination = match entry {
            Some(entry) => format!("dst matches (\"{}\")", entry.text),
            None => "dst does not match".to_owned(),
        };
        let mut text = format!("{source}, {destination}");
        if let Some(found) = self.destination.filter(|found| !found.open) {
            text.push_str(&self.closed_ports_text(found.reach, packet));
        }
        if self.has_source() && self.destination.is_some() && self.ports_fit {
            text.push_str(&if self.rule.via.is_empty() {
                ", but it is in the filter of no machine".to_owned()
            } else {
                format!(", but only by way of {}", self.rule.via.join(", "))
            });
        }
        text
    }

    /// A text about the protocols or ports that the destination opens instead.
    fn closed_ports_text(&self, reach: &Reach, packet: &Packet) -> String {
        let other = reach
            .protocol
            .is_some_and(|protocol| protocol != packet.protocol);
        if other || !has_ports(packet.protocol) {
            let opens = reach
                .protocol
                .map_or_else(|| "tcp, udp, icmp".to_owned(), protocol_name);
            let asked = protocol_name(packet.protocol);
            return format!(", it opens {opens} and not {asked}");
        }
        let open = match self.written.section {
            Section::Acls => ports_text(&reach.ports),
            Section::Grants => {
                let entries = self.written.ip.entries.iter();
                let entries: Vec<&str> = entries.map(|entry| entry.text.as_str()).collect();
                entries.join(",")
            }
        };
        format!(", port {} is not in {open}", packet.port)
    }
}

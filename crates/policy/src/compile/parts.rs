//! The parts of a rule of the file, each with one protocol, in the order of
//! their destinations on the wire.
//!
//! A destination appears once in a part, with all its ports: the filter lists
//! the ports of an address together, in the order of the file. In a part, `*`
//! comes first, then users, then groups, then the rest in the order of the
//! file. The ports of a `via` grant are in the order of their text.

use std::collections::BTreeMap;

use crate::model::{Reach, Rule};
use crate::selector::{Ports, Selector};

/// The destinations of a rule with one protocol.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Part {
    pub(super) protocol: Option<u8>,
    pub(super) to: PartTo,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum PartTo {
    /// The nodes of the source's own user.
    OwnUser(Vec<Ports>),
    /// The other destinations.
    Others(Vec<(Selector, Vec<Ports>)>),
}

/// Splits the ports of a rule into parts, by protocol, in the order in which
/// the file first names them. The nodes of the source's own user follow the
/// other destinations, unless all destinations are autogroups.
pub(super) fn parts(rule: &Rule) -> Vec<Part> {
    let mut by_protocol: Vec<Destinations<'_>> = Vec::new();
    let mut known: BTreeMap<Option<u8>, usize> = BTreeMap::new();
    for reach in &rule.reach {
        let at = *known.entry(reach.protocol).or_insert_with(|| {
            by_protocol.push(Destinations::new(reach.protocol));
            by_protocol.len() - 1
        });
        if let Some(destinations) = by_protocol.get_mut(at) {
            destinations.add(reach);
        }
    }
    let parts = by_protocol.into_iter().flat_map(Destinations::into_parts);
    let mut parts: Vec<Part> = parts.collect();
    if !rule.via.is_empty() {
        for part in &mut parts {
            part.sort_ports_by_text();
        }
    }
    parts
}

/// The destinations of one protocol while they are collected.
struct Destinations<'r> {
    protocol: Option<u8>,
    own_user: Vec<Ports>,
    /// The number of other destinations that precede the first
    /// `autogroup:self`.
    before_own_user: Option<usize>,
    others: Vec<(&'r Selector, Vec<Ports>)>,
    places: BTreeMap<&'r Selector, usize>,
}

impl<'r> Destinations<'r> {
    fn new(protocol: Option<u8>) -> Self {
        Self {
            protocol,
            own_user: Vec::new(),
            before_own_user: None,
            others: Vec::new(),
            places: BTreeMap::new(),
        }
    }

    fn add(&mut self, reach: &'r Reach) {
        for selector in &reach.to {
            if *selector == Selector::OwnUser {
                self.before_own_user.get_or_insert(self.others.len());
                self.own_user.extend(&reach.ports);
                continue;
            }
            let others = &mut self.others;
            let place = *self.places.entry(selector).or_insert_with(|| {
                others.push((selector, Vec::new()));
                others.len() - 1
            });
            if let Some((_, ports)) = others.get_mut(place) {
                ports.extend(&reach.ports);
            }
        }
    }

    fn into_parts(mut self) -> impl Iterator<Item = Part> {
        let only_autogroups = self.others.iter().all(|(to, _)| to.is_autogroup());
        let own_user_first = only_autogroups && self.before_own_user == Some(0);
        self.others.sort_by_key(|(selector, _)| rank(selector));
        let protocol = self.protocol;
        let own_user = self.before_own_user.map(|_| Part {
            protocol,
            to: PartTo::OwnUser(self.own_user),
        });
        let others = (!self.others.is_empty()).then(|| Part {
            protocol,
            to: PartTo::Others(
                self.others
                    .into_iter()
                    .map(|(selector, ports)| (selector.clone(), ports))
                    .collect(),
            ),
        });
        let parts = match own_user_first {
            true => [own_user, others],
            false => [others, own_user],
        };
        parts.into_iter().flatten()
    }
}

impl Part {
    fn sort_ports_by_text(&mut self) {
        if let PartTo::Others(to) = &mut self.to {
            for (_, ports) in to {
                ports.sort_by_cached_key(ToString::to_string);
            }
        }
    }
}

/// The rank of a destination within its part.
fn rank(selector: &Selector) -> u8 {
    match selector {
        Selector::Any => 0,
        Selector::User(_) => 1,
        Selector::Group(_) => 2,
        _ => 3,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::model::Policy;

    fn parts_of(section: &str, rule: &str) -> Vec<(Option<u8>, String)> {
        let text = format!(
            r#"{{"groups": {{"group:a": []}}, "tagOwners": {{"tag:b": [], "tag:r": []}}, "{section}": [{rule}]}}"#
        );
        let policy = Policy::parse(&text).unwrap();
        let list = |ports: &[Ports]| {
            let texts: Vec<String> = ports.iter().map(ToString::to_string).collect();
            texts.join(",")
        };
        let text = |part: Part| match part.to {
            PartTo::OwnUser(ports) => format!("self:{}", list(&ports)),
            PartTo::Others(to) => {
                let to = to.iter().map(|(selector, ports)| match selector {
                    Selector::Any => format!("*:{}", list(ports)),
                    Selector::Net(net) => format!("{net}:{}", list(ports)),
                    Selector::User(name) | Selector::Group(name) | Selector::Tag(name) => {
                        format!("{name}:{}", list(ports))
                    }
                    other => format!("{other:?}:{}", list(ports)),
                });
                to.collect::<Vec<_>>().join(" ")
            }
        };
        let parts = parts(&policy.rules[0]);
        parts
            .into_iter()
            .map(|part| (part.protocol, text(part)))
            .collect()
    }

    #[test]
    fn ports_of_one_destination_stay_together_in_file_order() {
        assert_eq!(
            parts_of(
                "acls",
                r#"{"action": "accept", "src": ["*"], "dst": ["tag:b:5432", "tag:r:1", "tag:b:80,443", "tag:b:80"]}"#
            ),
            [(None, "tag:b:5432,80,443,80 tag:r:1".to_owned())]
        );
        assert_eq!(
            parts_of(
                "grants",
                r#"{"src": ["*"], "dst": ["tag:b", "10.0.0.0/8"], "ip": ["tcp:80", "udp:53", "tcp:443"]}"#
            ),
            [
                (Some(6), "tag:b:80,443 10.0.0.0/8:80,443".to_owned()),
                (Some(17), "tag:b:53 10.0.0.0/8:53".to_owned()),
            ]
        );
    }

    #[test]
    fn wildcard_users_and_groups_come_before_other_destinations() {
        assert_eq!(
            parts_of(
                "acls",
                r#"{"action": "accept", "src": ["*"], "dst": ["tag:b:1", "group:a:2", "10.0.0.0/8:3", "x@y.z:4", "*:5"]}"#
            ),
            [(
                None,
                "*:5 x@y.z:4 group:a:2 tag:b:1 10.0.0.0/8:3".to_owned()
            )]
        );
    }

    #[test]
    fn own_nodes_come_last_unless_all_destinations_are_autogroups() {
        for (section, rule, expected) in [
            (
                "acls",
                r#"{"action": "accept", "src": ["x@y.z"], "dst": ["autogroup:self:1", "tag:b:2", "autogroup:self:3"]}"#,
                ["tag:b:2", "self:1,3"],
            ),
            (
                "acls",
                r#"{"action": "accept", "src": ["x@y.z"], "dst": ["autogroup:self:1", "autogroup:tagged:2"]}"#,
                ["self:1", "Tagged:2"],
            ),
            (
                "grants",
                r#"{"src": ["x@y.z"], "dst": ["autogroup:self", "tag:b"], "ip": ["1"]}"#,
                ["tag:b:1", "self:1"],
            ),
            (
                "grants",
                r#"{"src": ["x@y.z"], "dst": ["autogroup:self", "autogroup:tagged"], "ip": ["1"]}"#,
                ["self:1", "Tagged:1"],
            ),
        ] {
            let found: Vec<String> = parts_of(section, rule)
                .into_iter()
                .map(|(_, text)| text)
                .collect();
            assert_eq!(found, expected, "{rule}");
        }
    }

    #[test]
    fn ports_of_a_via_grant_are_in_the_order_of_their_text() {
        assert_eq!(
            parts_of(
                "grants",
                r#"{"src": ["*"], "dst": ["10.0.0.0/8"], "via": ["tag:r"], "ip": ["tcp:80", "tcp:443", "22", "tcp:22"]}"#
            ),
            [
                (Some(6), "10.0.0.0/8:22,443,80".to_owned()),
                (None, "10.0.0.0/8:22".to_owned()),
            ]
        );
    }
}

//! Protocols and ports: as text for users, and as sets.

use std::collections::BTreeMap;

use crate::selector::{Ports, parse_protocol, protocol_names};

/// The protocols of a rule that names none.
pub(super) const DEFAULT: [u8; 4] = [1, 6, 17, 58];

/// The usual name of a protocol, else its number.
pub(super) fn protocol_name(protocol: u8) -> String {
    protocol_names()
        .find(|name| parse_protocol(name) == Some(protocol))
        .map_or_else(|| protocol.to_string(), str::to_owned)
}

pub(super) fn has_ports(protocol: u8) -> bool {
    matches!(protocol, 6 | 17 | 132)
}

/// `tcp/5432`, `icmp`.
pub(super) fn service_text(protocol: u8, port: u16) -> String {
    let name = protocol_name(protocol);
    if has_ports(protocol) {
        format!("{name}/{port}")
    } else {
        name
    }
}

/// Port ranges as a policy spells them.
pub(super) fn ports_text(ports: &[Ports]) -> String {
    let texts = ports.iter().map(ToString::to_string);
    texts.collect::<Vec<_>>().join(",")
}

/// A set of open services: port ranges by protocol, sorted and merged. A
/// protocol without ports has the full range.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Services(BTreeMap<u8, Vec<(u16, u16)>>);

impl Services {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn add_open(&mut self, named: Option<u8>, open: &[Ports]) {
        let protocols = named.as_slice().iter().chain(match named {
            Some(_) => [].iter(),
            None => DEFAULT.iter(),
        });
        for protocol in protocols.copied() {
            let ranges: Vec<(u16, u16)> = if has_ports(protocol) {
                open.iter().map(|p| (p.first, p.last)).collect()
            } else if named.is_none() || open.contains(&Ports::ALL) {
                vec![(0, u16::MAX)]
            } else {
                continue;
            };
            if ranges.is_empty() {
                continue;
            }
            let own = self.0.entry(protocol).or_default();
            own.extend(ranges);
            *own = joined(std::mem::take(own));
        }
    }

    /// The services in this set that are not in the other one.
    pub(super) fn minus(&self, other: &Self) -> Self {
        let mut out = BTreeMap::new();
        for (protocol, ranges) in &self.0 {
            let taken = other.0.get(protocol).map_or(&[][..], Vec::as_slice);
            let mut left = Vec::new();
            for &(first, last) in ranges {
                let mut from = u32::from(first);
                let to = u32::from(last);
                for &(a, b) in taken {
                    let (a, b) = (u32::from(a), u32::from(b));
                    if b < from || a > to {
                        continue;
                    }
                    if a > from {
                        left.push((from, a - 1));
                    }
                    from = b + 1;
                }
                if from <= to {
                    left.push((from, to));
                }
            }
            let narrow = |port: u32| u16::try_from(port).unwrap_or(u16::MAX);
            if !left.is_empty() {
                let left = left.into_iter().map(|(a, b)| (narrow(a), narrow(b)));
                out.insert(*protocol, left.collect());
            }
        }
        Self(out)
    }

    /// Removes ICMP if a port is open, because an open port implies it.
    pub(super) fn without_implied(&mut self) {
        if self.0.keys().any(|protocol| has_ports(*protocol)) {
            self.0.remove(&1);
            self.0.remove(&58);
        }
    }

    /// The text for users; TCP and UDP are combined if they are equal.
    pub(super) fn text(&self) -> String {
        let ranges = |ranges: &[(u16, u16)]| {
            let ranges: Vec<Ports> = ranges
                .iter()
                .map(|&(first, last)| Ports { first, last })
                .collect();
            ports_text(&ranges)
        };
        let mut rest = self.0.clone();
        let mut parts = Vec::new();
        if let (Some(tcp), true) = (self.0.get(&6), self.0.get(&6) == self.0.get(&17)) {
            parts.push(match ranges(tcp).as_str() {
                "*" => "all ports".to_owned(),
                ports => format!("tcp+udp/{ports}"),
            });
            rest.remove(&6);
            rest.remove(&17);
        }
        if rest.contains_key(&1) && rest.contains_key(&58) {
            rest.remove(&58);
        }
        for (protocol, open) in &rest {
            let name = protocol_name(*protocol);
            parts.push(if has_ports(*protocol) {
                format!("{name}/{}", ranges(open))
            } else {
                name
            });
        }
        parts.join(" ")
    }

    /// Protocol numbers with their ranges.
    pub(super) fn json(&self) -> serde_json::Value {
        self.0
            .iter()
            .map(|(protocol, ranges)| {
                let mut one = serde_json::json!({ "protocol": protocol_name(*protocol) });
                if has_ports(*protocol)
                    && let Some(members) = one.as_object_mut()
                {
                    members.insert("ports".to_owned(), serde_json::json!(ranges));
                }
                one
            })
            .collect()
    }
}

/// Sorted, without overlaps, neighbours joined.
fn joined(mut ranges: Vec<(u16, u16)>) -> Vec<(u16, u16)> {
    ranges.sort_unstable();
    let mut out: Vec<(u16, u16)> = Vec::new();
    for (first, last) in ranges {
        match out.last_mut() {
            Some(open) if u32::from(first) <= u32::from(open.1) + 1 => open.1 = open.1.max(last),
            _ => out.push((first, last)),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn services(protocol: Option<u8>, ports: &[(u16, u16)]) -> Services {
        let mut out = Services::default();
        let ports: Vec<Ports> = ports
            .iter()
            .map(|&(first, last)| Ports { first, last })
            .collect();
        out.add_open(protocol, &ports);
        out
    }

    #[test]
    fn sets_of_ports_subtract() {
        let all = services(Some(6), &[(0, u16::MAX)]);
        let some = services(Some(6), &[(22, 22), (80, 90)]);
        assert_eq!(all.minus(&some).text(), "tcp/0-21,23-79,91-65535");
        assert_eq!(some.minus(&all), Services::default());
        assert_eq!(
            some.minus(&services(Some(6), &[(85, 100)])).text(),
            "tcp/22,80-84"
        );
        assert_eq!(some.minus(&services(Some(17), &[(22, 22)])), some);
    }

    #[test]
    fn sets_of_ports_are_written_like_rules() {
        assert_eq!(services(None, &[(0, u16::MAX)]).text(), "all ports icmp");
        assert_eq!(
            services(None, &[(22, 22), (23, 25)]).text(),
            "tcp+udp/22-25 icmp"
        );
        assert_eq!(services(Some(47), &[(0, u16::MAX)]).text(), "gre");
        assert_eq!(services(Some(17), &[(53, 53)]).text(), "udp/53");
    }
}

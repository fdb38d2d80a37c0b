//! The answers of `debug-filter` and `debug-why`: the packet filter in force with
//! its counters, and whether a connection may work as far as this node knows.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;

use crate::address::CanonicalIp;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use warren_control_types::{FilterRule, NetPortRange, PortRange};
use warren_wire::ip::Protocol;

/// Packets and their bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Counted {
    /// Packets.
    pub packets: u64,
    /// Bytes, IP headers included.
    pub bytes: u64,
}

/// The packet filter in force.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct FilterReport {
    /// Whether only answers come in, regardless of the rules.
    pub shields_up: bool,
    /// The rules, in order.
    pub rules: Vec<RuleReport>,
    /// Packets that came in without a rule, by reason.
    pub without_rule: BTreeMap<String, Counted>,
    /// Packets that were dropped on the way in, by reason.
    pub dropped_in: BTreeMap<String, Counted>,
    /// Packets that were dropped on the way out, by reason.
    pub dropped_out: BTreeMap<String, Counted>,
    /// Entries of the rules that could not be used; the rest applies.
    pub problems: Vec<String>,
    /// Memory of the compiled rules, in bytes.
    pub compiled_bytes: u64,
}

/// One rule.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct RuleReport {
    /// Its index in the list of all rules.
    pub number: usize,
    /// The name of the filter that it belongs to.
    pub filter: String,
    /// The rule, as the coordination server sent it.
    pub rule: FilterRule,
    /// The packets that it let in; a packet counts under the first rule that allows it.
    pub passed: Counted,
}

/// The connection that `debug-why` is asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WhyQuestion {
    /// The destination.
    pub dst: CanonicalIp,
    /// The port; 0 for protocols without.
    pub port: u16,
    /// The IP protocol.
    pub protocol: u8,
    /// The source; this machine if missing.
    pub from: Option<CanonicalIp>,
}

/// The verdict, as far as this node knows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WhyVerdict {
    /// Nothing here blocks it, and the other end does not decide.
    Allowed,
    /// Nothing here blocks it; the other end decides.
    #[default]
    NothingHere,
    /// Something here blocks it.
    Blocked,
    /// It does not concern this node.
    Unknown,
}

/// The answer of `debug-why`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct WhyAnswer {
    /// The verdict.
    pub verdict: WhyVerdict,
    /// The destination.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination: Option<IpAddr>,
    /// The port; 0 for protocols without.
    pub port: u16,
    /// The IP protocol.
    pub protocol: u8,
    /// The source, if the question named one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<IpAddr>,
    /// The kind of peer that carries it: `self`, `peer`, `subnet-route`, `exit-node`, or `none`.
    pub carried_by: String,
    /// The route.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route: Option<IpNet>,
    /// The peer at the other end of the tunnel: its name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub peer: String,
    /// Whether that peer is connected to the coordination server, if known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub online: Option<bool>,
    /// The rule of our filter that lets it in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<RuleReport>,
    /// The explanation, one sentence each, in order.
    pub because: Vec<String>,
    /// Facts that this node cannot know.
    pub not_known_here: Vec<String>,
}

impl WhyAnswer {
    /// Adds a sentence to the explanation.
    pub fn say(&mut self, sentence: impl Into<String>) {
        self.because.push(sentence.into());
    }
}

/// A rule in one line: sources, then destinations.
pub fn rule_line(rule: &FilterRule) -> String {
    let mut line = listed(&rule.src_ips);
    let targets: Vec<String> = rule.dst_ports.iter().map(target).collect();
    if !targets.is_empty() {
        // Writing into a String cannot fail.
        let _ = write!(line, " -> {}", listed(&targets));
        if !rule.ip_proto.is_empty() {
            let protocols = rule
                .ip_proto
                .iter()
                .map(|number| match u8::try_from(*number) {
                    Ok(number) => Protocol(number).to_string(),
                    Err(_) => number.to_string(),
                });
            let _ = write!(line, " ({})", protocols.collect::<Vec<_>>().join(", "));
        }
    }
    for grant in &rule.cap_grant {
        let nets: Vec<String> = grant.dsts.iter().map(ToString::to_string).collect();
        let names = grant.cap_map.0.keys().chain(&grant.caps).cloned();
        let names: Vec<String> = names.collect();
        let _ = write!(
            line,
            " -> {}: capabilities {}",
            listed(&nets),
            listed(&names)
        );
    }
    line
}

fn target(to: &NetPortRange) -> String {
    let ip = if to.ip.contains(':') {
        format!("[{}]", to.ip)
    } else {
        to.ip.clone()
    };
    match to.ports {
        PortRange::ANY => format!("{ip}:*"),
        PortRange { first, last } if first == last => format!("{ip}:{first}"),
        PortRange { first, last } => format!("{ip}:{first}-{last}"),
    }
}

/// The first few, and how many more.
fn listed(all: &[String]) -> String {
    const SHOWN: usize = 4;
    let shown = all
        .get(..SHOWN.min(all.len()))
        .unwrap_or_default()
        .join(", ");
    match all.len().checked_sub(SHOWN) {
        None | Some(0) => shown,
        Some(more) => format!("{shown} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn rules_fit_into_a_line() {
        let rule: FilterRule = serde_json::from_value(serde_json::json!({
            "SrcIPs": ["100.64.0.1", "100.64.0.2", "100.64.0.3", "100.64.0.4", "fd7a::1", "cap:x"],
            "IPProto": [6, 300],
            "DstPorts": [
                {"IP": "10.0.0.0/8", "Ports": {"First": 0, "Last": 65535}},
                {"IP": "fd7a::2", "Ports": {"First": 22, "Last": 22}},
                {"IP": "*", "Ports": {"First": 80, "Last": 90}},
            ],
        }))
        .unwrap();
        assert_eq!(
            rule_line(&rule),
            "100.64.0.1, 100.64.0.2, 100.64.0.3, 100.64.0.4 and 2 more \
             -> 10.0.0.0/8:*, [fd7a::2]:22, *:80-90 (TCP, 300)"
        );
        let grant: FilterRule = serde_json::from_value(serde_json::json!({
            "SrcIPs": ["*"],
            "CapGrant": [{"Dsts": ["100.64.0.1/32"], "CapMap": {"example.com/a": null}}],
        }))
        .unwrap();
        assert_eq!(
            rule_line(&grant),
            "* -> 100.64.0.1/32: capabilities example.com/a"
        );
    }
}

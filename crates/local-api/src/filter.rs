//! What `debug-filter` and `debug-why` answer: the packet filter in force with
//! its counters, and whether a connection may work as far as this node can tell.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;

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
    /// Whether only answers come in, whatever the rules say.
    pub shields_up: bool,
    /// The rules, in order.
    pub rules: Vec<RuleReport>,
    /// What came in without a rule, by why.
    pub without_rule: BTreeMap<String, Counted>,
    /// What did not come in, by reason.
    pub dropped_in: BTreeMap<String, Counted>,
    /// What did not go out, by reason.
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
    /// Its place in the whole list.
    pub number: usize,
    /// The name of the filter that it belongs to.
    pub filter: String,
    /// The rule, as the coordination server sent it.
    pub rule: FilterRule,
    /// What it let in; a packet counts under the first rule that allows it.
    pub passed: Counted,
}

/// What `debug-why` is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WhyQuestion {
    /// Where to.
    pub dst: IpAddr,
    /// The port; 0 for protocols without.
    pub port: u16,
    /// The IP protocol.
    pub protocol: u8,
    /// Where from; this machine if missing.
    pub from: Option<IpAddr>,
}

/// As far as this node can tell.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WhyVerdict {
    /// Nothing here stands in the way, and the other end has no say.
    Allowed,
    /// Nothing here stands in the way; the other end decides.
    #[default]
    NothingHere,
    /// Something here stands in the way.
    Blocked,
    /// It does not concern this node.
    Unknown,
}

/// The answer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct WhyAnswer {
    /// In one word.
    pub verdict: WhyVerdict,
    /// Where to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination: Option<IpAddr>,
    /// The port; 0 for protocols without.
    pub port: u16,
    /// The IP protocol.
    pub protocol: u8,
    /// Where from, if asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<IpAddr>,
    /// What carries it: `self`, `peer`, `subnet-route`, `exit-node`, or `none`.
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
    /// All of it in sentences, in order.
    pub because: Vec<String>,
    /// What cannot be known here.
    pub not_known_here: Vec<String>,
}

impl WhyAnswer {
    /// Adds a sentence to the explanation.
    pub fn say(&mut self, sentence: impl Into<String>) {
        self.because.push(sentence.into());
    }
}

/// A rule in one line: who, to what.
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

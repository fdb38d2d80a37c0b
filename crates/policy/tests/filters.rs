//! The packet filters of nodes, in the form in which the hosted service sends
//! them.

#![allow(clippy::unwrap_used)]

use warren_control_types::{FilterRule, NodeId, UserId};
use warren_policy::{Attributes, Policy, PolicyNode, PolicyUser, Role};

fn user(id: i64, login: &str) -> PolicyUser {
    PolicyUser {
        id: UserId(id),
        login: login.to_owned(),
        aliases: Vec::new(),
        groups: Vec::new(),
        role: Role::Member,
    }
}

fn node(id: i64, user: Option<i64>, tags: &[&str], routes: &[&str]) -> PolicyNode {
    PolicyNode {
        id: NodeId(id),
        user: user.map(UserId),
        tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
        addresses: vec![format!("100.64.0.{id}").parse().unwrap()],
        routes: routes.iter().map(|route| route.parse().unwrap()).collect(),
        attributes: Attributes::default(),
    }
}

/// Two nodes of alice (1, 2), one of bob (3), a server (4) and a router (5).
fn filter(rules: &str, id: i64) -> Vec<String> {
    let text = format!(
        r#"{{
        "groups": {{"group:none": []}},
        "tagOwners": {{"tag:web": [], "tag:router": []}},
        {rules}}}"#
    );
    let policy = Policy::parse(&text).unwrap_or_else(|errors| panic!("{errors:#?}"));
    let users = [user(1, "alice@example.com"), user(2, "bob@example.com")];
    let nodes = [
        node(1, Some(1), &[], &[]),
        node(2, Some(1), &[], &[]),
        node(3, Some(2), &[], &[]),
        node(4, None, &["tag:web"], &[]),
        node(5, None, &["tag:router"], &["10.1.0.0/16", "10.2.0.0/16"]),
    ];
    let rules = policy.compile(&users, &nodes).filter_for(NodeId(id));
    rules.iter().map(text_of).collect()
}

/// `sources -> destinations`, with the protocol in brackets.
fn text_of(rule: &FilterRule) -> String {
    let mut to: Vec<String> = rule
        .dst_ports
        .iter()
        .map(|to| match (to.ports.first, to.ports.last) {
            (0, u16::MAX) => format!("{}:*", to.ip),
            (first, last) if first == last => format!("{}:{first}", to.ip),
            (first, last) => format!("{}:{first}-{last}", to.ip),
        })
        .collect();
    for grant in &rule.cap_grant {
        let names: Vec<&str> = grant.cap_map.0.keys().map(String::as_str).collect();
        to.push(format!("{} on {:?}", names.join(" "), grant.dsts));
    }
    let from: Vec<&str> = rule
        .src_ips
        .iter()
        .map(|text| text.trim_start_matches("100.64.0"))
        .collect();
    let to = to.join(" ").replace("100.64.0.", ".");
    format!("{} {:?} -> {to}", from.join(" "), rule.ip_proto)
}

#[test]
fn ports_of_a_via_grant_are_one_entry_per_protocol() {
    let grants = r#""grants": [
        {"src": ["alice@example.com"], "dst": ["10.1.0.0/16", "10.2.0.0/16"], "via": ["tag:router"],
         "ip": ["tcp:80", "tcp:443", "udp:53", "tcp:22"]},
        {"src": ["alice@example.com"], "dst": ["10.2.0.0/16"], "via": ["tag:router"], "ip": ["tcp:1"]},
        {"src": ["alice@example.com"], "dst": ["tag:router"], "ip": ["udp:9"]},
        {"src": ["bob@example.com"], "dst": ["10.2.0.0/16"], "via": ["tag:router"], "ip": ["tcp:1"]}]"#;
    assert_eq!(
        filter(grants, 5),
        [
            ".1 .2 [6] -> 10.1.0.0/16:22 10.1.0.0/16:443 10.1.0.0/16:80 \
             10.2.0.0/16:22 10.2.0.0/16:443 10.2.0.0/16:80 10.2.0.0/16:1",
            ".1 .2 [17] -> 10.1.0.0/16:53 10.2.0.0/16:53 .5:9",
            ".3 [6] -> 10.2.0.0/16:1",
        ]
    );
}

#[test]
fn rules_among_own_nodes_merge_with_rules_of_equal_sources() {
    let acls = r#""acls": [
        {"action": "accept", "src": ["alice@example.com"], "dst": ["alice@example.com:22"]},
        {"action": "accept", "src": ["bob@example.com"], "dst": ["*:1"]},
        {"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self:80", "autogroup:self:22"]},
        {"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self:53"], "proto": "udp"},
        {"action": "accept", "src": ["100.64.0.2", "100.64.0.1"], "dst": ["100.64.0.0/24:22"]}]"#;
    // Destinations that appear twice are kept.
    assert_eq!(
        filter(acls, 1),
        [
            ".1 .2 [] -> .1:22 .1:80 .1:22 .0/24:22",
            ".3 [] -> *:1",
            ".1 .2 [17] -> .1:53",
        ]
    );
    assert_eq!(
        filter(acls, 3),
        [
            ".3 [] -> *:1 .3:80 .3:22",
            ".3 [17] -> .3:53",
            ".1 .2 [] -> .0/24:22",
        ]
    );
}

#[test]
fn grant_without_sources_has_no_entry_and_one_with_an_empty_group_names_its_capability() {
    let grant = |src: &str, dst: &str| {
        format!(
            r#""grants": [{{"src": {src}, "dst": {dst}, "ip": ["*"], "app": {{"tailscale.com/cap/drive": []}}}}]"#
        )
    };
    assert!(filter(&grant("[]", r#"["tag:web"]"#), 4).is_empty());
    assert!(filter(&grant(r#"["alice@example.com"]"#, "[]"), 1).is_empty());
    assert_eq!(
        filter(&grant(r#"["group:none"]"#, r#"["tag:web"]"#), 4),
        [" [] -> tailscale.com/cap/drive on [.4/32]"]
    );
}

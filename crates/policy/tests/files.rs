//! Policy files as users write them: refusals with their messages, and results
//! of accepted files.

#![allow(clippy::unwrap_used)]

use ipnet::IpNet;
use proptest::prelude::*;
use warren_control_types::{NodeId, UserId};
use warren_policy::{Attributes, Policy, PolicyNode, PolicyUser, Role};

fn users() -> Vec<PolicyUser> {
    let user = |id, login: &str| PolicyUser {
        id: UserId(id),
        login: login.to_owned(),
        aliases: Vec::new(),
        groups: Vec::new(),
        role: Role::Member,
    };
    vec![user(1, "alice@example.com"), user(2, "bob")]
}

fn node(id: i64, user: Option<i64>, tags: &[&str], routes: &[&str]) -> PolicyNode {
    PolicyNode {
        id: NodeId(id),
        user: user.map(UserId),
        tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
        addresses: vec![
            format!("100.64.0.{id}").parse().unwrap(),
            format!("fd7a:115c:a1e0::{id}").parse().unwrap(),
        ],
        routes: routes.iter().map(|route| route.parse().unwrap()).collect(),
        attributes: Attributes::default(),
    }
}

fn errors(source: &str) -> Vec<String> {
    Policy::parse(source)
        .unwrap_err()
        .iter()
        .map(ToString::to_string)
        .collect()
}

#[test]
fn all_errors_are_reported_at_once_with_their_position() {
    let source = r#"{
  "aclz": [],
  "groups": {"group:dev": ["alice@example.com", "group:ops"]},
  "acls": [
    {"action": "deny", "src": ["group:dve"], "dst": ["tag:web:80"]},
    {"action": "accept", "src": ["*"], "dst": ["*:ssh"], "proto": "tpc"},
  ],
}"#;
    let expected = [
        "2:3: unknown field: \"aclz\" (did you mean \"acls\"?)",
        "3:49: groups[\"group:dev\"]: \"group:ops\": group members cannot be recursive",
        "5:16: action=\"deny\" is not supported (rules only allow: write \"action\": \"accept\")",
        "5:32: src=group not found: \"group:dve\" (did you mean \"group:dev\"?)",
        "5:54: dst=\"tag:web\": tag not found: \"tag:web\" (define \"tag:web\" in \"tagOwners\")",
        "6:48: dst=\"*:ssh\": port range \"ssh\": invalid first integer (expected *, a port, a range such as 80-443, or a list of these)",
        "6:67: unknown protocol: \"tpc\" (did you mean \"tcp\"?)",
    ];
    let mut found = errors(source);
    let mut expected: Vec<String> = expected.iter().map(|e| (*e).to_owned()).collect();
    found.sort();
    expected.sort();
    assert_eq!(found, expected);
}

#[test]
fn absent_and_null_sections_have_no_effect() {
    let policy = Policy::parse("{\"ssh\": null, \"nodeAttrs\": [], \"tests\": null}").unwrap();
    assert!(policy.is_allow_all());
    assert!(
        policy
            .compile_ssh(&users(), &[])
            .policy_for(NodeId(1), "")
            .rules
            .is_empty()
    );
}

#[test]
fn duplicate_keys_are_refused() {
    for source in [
        r#"{"acls": [], "ACLs": []}"#,
        r#"{"groups": {"group:a": [], "group:a": []}}"#,
    ] {
        assert!(errors(source)[0].contains("twice"), "{source}");
    }
}

#[test]
fn file_without_rules_is_allow_all_and_an_empty_list_is_deny_all() {
    let nodes = [node(1, Some(1), &[], &[]), node(2, Some(2), &[], &[])];
    for source in ["{}", "{\"acls\": null}"] {
        let policy = Policy::parse(source).unwrap();
        assert!(policy.allows_everything().is_some(), "{source}");
        let compiled = policy.compile(&users(), &nodes);
        assert!(compiled.can_see(NodeId(1), NodeId(2)), "{source}");
        let rules = compiled.filter_for(NodeId(1));
        assert_eq!(rules[0].dst_ports[0].ip, "*");
        assert!(rules[0].src_ips.contains(&"fd7a:115c:a1e0::/48".to_owned()));
    }
    let compiled = Policy::parse("{\"acls\": []}")
        .unwrap()
        .compile(&users(), &nodes);
    assert!(!compiled.can_see(NodeId(1), NodeId(2)));
    assert!(compiled.filter_for(NodeId(1)).is_empty());
}

#[test]
fn a_local_user_is_named_with_a_trailing_at() {
    let source = r#"{"acls": [{"action": "accept", "src": ["bob@"], "dst": ["alice@example.com:22,80-81"]}]}"#;
    let nodes = [node(1, Some(1), &[], &[]), node(2, Some(2), &[], &[])];
    let compiled = Policy::parse(source).unwrap().compile(&users(), &nodes);
    let rules = compiled.filter_for(NodeId(1));
    assert_eq!(rules.len(), 1);
    assert_eq!(rules[0].src_ips, ["100.64.0.2", "fd7a:115c:a1e0::2"]);
    let ports: Vec<_> = rules[0]
        .dst_ports
        .iter()
        .map(|dst| (dst.ip.as_str(), dst.ports.first, dst.ports.last))
        .collect();
    assert_eq!(
        ports,
        [
            ("100.64.0.1", 22, 22),
            ("100.64.0.1", 80, 81),
            ("fd7a:115c:a1e0::1", 22, 22),
            ("fd7a:115c:a1e0::1", 80, 81),
        ]
    );
    assert!(compiled.filter_for(NodeId(2)).is_empty());
    // One-way access is enough for both to appear.
    assert_eq!(compiled.peers_of(NodeId(2)), [NodeId(1)]);
}

#[test]
fn tagged_node_has_no_user() {
    let source = r#"{
        "tagOwners": {"tag:web": ["alice@example.com"]},
        "acls": [{"action": "accept", "src": ["alice@example.com"], "dst": ["autogroup:self:*"]}],
    }"#;
    let nodes = [
        node(1, Some(1), &[], &[]),
        node(2, Some(1), &[], &[]),
        node(3, Some(1), &["tag:web"], &[]),
        node(4, Some(2), &[], &[]),
    ];
    let compiled = Policy::parse(source).unwrap().compile(&users(), &nodes);
    assert_eq!(compiled.peers_of(NodeId(1)), [NodeId(2)]);
    assert!(compiled.peers_of(NodeId(3)).is_empty());
    assert!(compiled.peers_of(NodeId(4)).is_empty());
}

#[test]
fn tags_may_own_tags_and_cycles_add_no_owner() {
    let source = r#"{"tagOwners": {
        "tag:a": ["tag:b"], "tag:b": ["tag:a", "alice@example.com"], "tag:c": ["tag:c"]
    }}"#;
    let policy = Policy::parse(source).unwrap();
    assert!(policy.may_use_tag(&users(), UserId(1), "tag:a"));
    assert!(!policy.may_use_tag(&users(), UserId(2), "tag:a"));
    assert!(!policy.may_use_tag(&users(), UserId(1), "tag:c"));
    assert!(!policy.may_use_tag(&users(), UserId(1), "tag:none"));
    assert!(policy.tag_owns("tag:b", "tag:a"));
    assert!(!policy.tag_owns("tag:c", "tag:a"));
}

#[test]
fn routes_are_approved_by_a_wider_key_and_exits_only_by_name() {
    let source = r#"{
        "tagOwners": {"tag:router": []},
        "autoApprovers": {
            "routes": {"10.0.0.0/8": ["tag:router"], "0.0.0.0/0": ["alice@example.com"]},
            "exitNode": ["tag:router"],
        },
    }"#;
    let policy = Policy::parse(source).unwrap();
    let router = node(1, Some(1), &["tag:router"], &[]);
    let alice = node(2, Some(1), &[], &[]);
    let route = |text: &str| text.parse::<IpNet>().unwrap();
    for (node, net, approved) in [
        (&router, "10.1.0.0/16", true),
        (&router, "10.0.0.0/8", true),
        (&router, "0.0.0.0/0", true),
        (&router, "192.168.0.0/16", false),
        (&alice, "192.168.0.0/16", true),
        (&alice, "0.0.0.0/0", false),
        (&alice, "fd00::/64", false),
    ] {
        assert_eq!(
            policy.approves_route(&users(), node, route(net)),
            approved,
            "{net}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: Some(Box::new(
            proptest::test_runner::FileFailurePersistence::WithSource("regressions"),
        )),
        ..ProptestConfig::default()
    })]

    #[test]
    fn no_text_makes_the_parser_panic(source in "\\PC{0,200}") {
        let _ = Policy::parse(&source);
    }

    #[test]
    fn no_json_makes_the_parser_panic(
        section in prop_oneof![
            Just("acls"), Just("grants"), Just("groups"), Just("hosts"), Just("tagOwners"),
            Just("autoApprovers"), Just("tests"), Just("ssh"),
        ],
        parts in proptest::collection::vec(
            prop_oneof![
                Just("{"), Just("}"), Just("["), Just("]"), Just(","), Just(":"), Just("null"),
                Just("1"), Just("\"src\""), Just("\"dst\""), Just("\"*:*\""), Just("\"[\""),
                Just("\"tag:\""), Just("\"group:a\""), Just("\"autogroup:self:*\""),
                Just("\"::1/3:1\""), Just("\"é:🦀\""), Just("\"ip\""), Just("\"app\""),
            ],
            0..24,
        ),
    ) {
        let _ = Policy::parse(&format!("{{\"{section}\": {}}}", parts.concat()));
    }

    #[test]
    fn visibility_is_symmetric_and_output_is_stable(
        rules in proptest::collection::vec((0usize..6, 0usize..6), 0..5),
    ) {
        const SOURCES: [&str; 6] =
            ["*", "alice@example.com", "bob@", "tag:web", "autogroup:member", "10.0.0.0/8"];
        const TARGETS: [&str; 6] =
            ["*:*", "alice@example.com:22", "bob@:80", "tag:web:*", "10.0.0.0/8:53", "autogroup:internet:*"];
        let acls: Vec<String> = rules.iter().map(|(src, dst)| format!(
            r#"{{"action": "accept", "src": ["{}"], "dst": ["{}"]}}"#, SOURCES[*src], TARGETS[*dst]
        )).collect();
        let source = format!(r#"{{"tagOwners": {{"tag:web": []}}, "acls": [{}]}}"#, acls.join(","));
        let mut nodes = vec![
            node(1, Some(1), &[], &[]),
            node(2, Some(2), &[], &["10.1.0.0/16"]),
            node(3, None, &["tag:web"], &["0.0.0.0/0", "::/0"]),
            node(4, Some(1), &[], &[]),
        ];
        let policy = Policy::parse(&source).unwrap();
        let compiled = policy.compile(&users(), &nodes);
        nodes.reverse();
        let again = policy.compile(&users(), &nodes);
        for a in 1..=4 {
            prop_assert_eq!(compiled.filter_for(NodeId(a)), again.filter_for(NodeId(a)));
            for b in 1..=4 {
                let sees = compiled.can_see(NodeId(a), NodeId(b));
                prop_assert_eq!(sees, compiled.can_see(NodeId(b), NodeId(a)));
                prop_assert_eq!(sees, compiled.peers_of(NodeId(a)).contains(&NodeId(b)));
            }
        }
    }
}

#[test]
fn groups_of_an_identity_provider_are_members_of_groups() {
    let policy = Policy::parse(
        r#"{
  "groups": {"group:dev": ["oidc:okta/Engineering", "bob@"]},
  "acls": [{"action": "accept", "src": ["group:dev"], "dst": ["100.64.0.9:22"]}],
}"#,
    )
    .unwrap();
    let mut users = users();
    let nodes = [
        node(1, Some(1), &[], &[]),
        node(2, Some(2), &[], &[]),
        node(9, None, &["tag:x"], &[]),
    ];
    let mut compiled = policy.compile(&users, &nodes);
    assert!(!compiled.can_see(NodeId(1), NodeId(9)));
    assert!(compiled.can_see(NodeId(2), NodeId(9)));
    // Exact names only, and no part of one as the domain of a login.
    for group in [
        "oidc:okta/engineering",
        "oidc:other/Engineering",
        "oidc:okta/x@",
    ] {
        users[0].groups = vec![group.to_owned()];
        compiled.update_users(&users);
        assert!(!compiled.can_see(NodeId(1), NodeId(9)), "{group}");
    }
    users[0].groups = vec!["oidc:okta/Engineering".to_owned()];
    let impact = compiled.update_users(&users);
    assert!(compiled.can_see(NodeId(1), NodeId(9)));
    assert!(impact.views.iter().any(|id| id == NodeId(1)));
    users[0].groups.clear();
    compiled.update_users(&users);
    assert!(!compiled.can_see(NodeId(1), NodeId(9)));

    let wrong = r#"{
  "groups": {"group:dev": ["oidc:okta", "oidc:/x"]},
  "acls": [{"action": "accept", "src": ["oidc:okta/dev"], "dst": ["*:*"]}],
}"#;
    let found = errors(wrong);
    assert_eq!(found.len(), 3, "{found:?}");
    assert!(found[0].contains("oidc:PROVIDER/GROUP"), "{found:?}");
    assert!(
        found[2].contains("make it a member of a group"),
        "{found:?}"
    );
}

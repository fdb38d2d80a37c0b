//! The sections other than acls and grants: refusals with their messages, and
//! results.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use serde_json::json;
use warren_control_types::{DerpMap, NodeId, SshPolicy, UserId};
use warren_policy::{
    Attributes, Context, HostedTailnet, Number, Policy, PolicyNode, PolicyUser, Role,
};

fn user(id: i64, login: &str, role: Role) -> PolicyUser {
    PolicyUser {
        id: UserId(id),
        login: login.to_owned(),
        aliases: Vec::new(),
        groups: Vec::new(),
        role,
    }
}

fn users() -> Vec<PolicyUser> {
    vec![
        user(1, "alice@example.com", Role::Owner),
        user(2, "bob@example.org", Role::Admin),
        user(3, "carol@example.com", Role::Member),
    ]
}

fn node(id: i64, user: Option<i64>, tags: &[&str]) -> PolicyNode {
    PolicyNode {
        id: NodeId(id),
        user: user.map(UserId),
        tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
        addresses: vec![
            format!("100.64.0.{id}").parse().unwrap(),
            format!("fd7a:115c:a1e0::{id:x}").parse().unwrap(),
        ],
        routes: Vec::new(),
        attributes: Attributes::default(),
    }
}

fn nodes() -> Vec<PolicyNode> {
    vec![
        node(1, Some(1), &[]),
        node(2, Some(2), &[]),
        node(3, Some(3), &[]),
        node(4, None, &["tag:web", "tag:db"]),
        node(5, None, &["tag:rec"]),
    ]
}

const TAGS: &str = r#""tagOwners": {"tag:web": [], "tag:db": [], "tag:rec": []}"#;

fn parse(sections: &str) -> Policy {
    Policy::parse(&format!("{{{TAGS}, {sections}}}")).unwrap_or_else(|e| panic!("{e:?}"))
}

fn refusals(sections: &str) -> Vec<String> {
    let context = Context {
        domains: Some(["example.com".to_owned()].into()),
    };
    Policy::parse_in(&format!("{{{TAGS}, {sections}}}"), &context)
        .expect_err(sections)
        .iter()
        .map(|found| found.message.clone())
        .collect()
}

fn ssh(policy: &Policy, id: i64) -> SshPolicy {
    let rules = policy.compile_ssh(&users(), &nodes());
    rules.policy_for(NodeId(id), "https://control.example")
}

#[test]
fn invalid_sections_are_refused_with_their_message() {
    let table = include_str!("data/invalid_sections.txt");
    let mut lines = table
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty());
    let mut count = 0;
    while let Some(sections) = lines.next() {
        let message = lines.next().and_then(|line| line.strip_prefix("=> "));
        assert_eq!(refusals(sections), [message.expect(sections)], "{sections}");
        count += 1;
    }
    assert_eq!(count, 40, "the table was cut");
}

#[test]
fn localpart_entries_allow_a_login_by_own_name() {
    let policy = parse(
        r#""ssh": [{
            "action": "accept", "src": ["autogroup:member", "autogroup:tagged"], "dst": ["tag:web"],
            "users": ["localpart:*@example.com", "ubuntu"], "acceptEnv": ["LANG", " X "],
        }]"#,
    );
    let rules_of = |id| serde_json::to_value(ssh(&policy, id)).unwrap();
    let names = |id| -> Vec<_> {
        let rules = rules_of(id)["rules"].as_array().cloned().unwrap();
        rules
            .iter()
            .map(|rule| {
                let first = rule["principals"][0]["nodeIP"].clone();
                (
                    first,
                    rule["sshUsers"].clone(),
                    rule["principals"].as_array().unwrap().len(),
                )
            })
            .collect()
    };
    let common = json!({"root": "", "ubuntu": "ubuntu"});
    let expected = [
        (json!("100.64.0.1"), common.clone(), 2),
        (json!("100.64.0.1"), json!({"alice": "alice"}), 2),
        (json!("100.64.0.2"), common.clone(), 2),
        (json!("100.64.0.3"), common.clone(), 2),
        (json!("100.64.0.3"), json!({"carol": "carol"}), 2),
        // A node with two tags counts twice.
        (json!("100.64.0.4"), common.clone(), 6),
    ];
    assert_eq!(names(4), expected);
    // A source to which no login is allowed receives its own entries.
    assert_eq!(names(1), expected[..2]);
    assert_eq!(names(2), expected[2..3]);
    assert_eq!(names(5), [(json!("100.64.0.5"), common, 2)]);
    assert_eq!(rules_of(4)["rules"][0]["acceptEnv"], json!(["LANG", " X "]));
}

#[test]
fn check_rules_come_first_and_their_period_is_not_sent() {
    let policy = parse(
        r#""ssh": [
            {"action": "accept", "src": ["alice@example.com"], "dst": ["tag:web"], "users": ["root"]},
            {"action": "check", "src": ["autogroup:admin"], "dst": ["tag:web"], "users": ["autogroup:nonroot"],
             "checkPeriod": "30s", "recorder": ["tag:rec"], "enforceRecorder": true},
            {"action": "check", "src": ["bob@example.org"], "dst": ["tag:web"], "users": ["root"]},
        ]"#,
    );
    let value = serde_json::to_value(ssh(&policy, 4)).unwrap();
    let rules = value["rules"].as_array().unwrap();
    assert_eq!(rules.len(), 3);
    let url = "https://control.example/machine/ssh/action/$SRC_NODE_ID/to/$DST_NODE_ID?local_user=$LOCAL_USER";
    assert_eq!(rules[0]["action"], json!({"holdAndDelegate": url}));
    assert_eq!(rules[0]["sshUsers"], json!({"*": "=", "root": ""}));
    assert_eq!(rules[2]["action"]["accept"], true);

    let all = policy.compile_ssh(&users(), &nodes());
    let check = |from, user| all.check_for(NodeId(from), NodeId(4), user);
    let found = check(1, "ubuntu").unwrap();
    assert_eq!(found.period, Duration::from_secs(30));
    let recorders: Vec<String> = found
        .then
        .recorders
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(recorders, ["100.64.0.5:80", "[fd7a:115c:a1e0::5]:80"]);
    assert!(found.then.on_recording_failure.is_some());
    assert_eq!(check(1, "root"), None);
    let found = check(2, "root").unwrap();
    assert_eq!(found.period, Duration::from_secs(12 * 3600));
    assert_eq!(found.then.on_recording_failure, None);
    assert_eq!(check(3, "ubuntu"), None);
    assert_eq!(check(9, "ubuntu"), None);
}

#[test]
fn ssh_tests_report_logins_that_differ() {
    let failing = |tests: &str| {
        let policy = parse(&format!(
            r#""ssh": [
                {{"action": "accept", "src": ["alice@example.com"], "dst": ["tag:web"], "users": ["ubuntu"]}},
                {{"action": "check", "src": ["autogroup:member"], "dst": ["autogroup:self"], "users": ["root"]}},
            ], "sshTests": [{tests}]"#
        ));
        let failed = policy.run_ssh_tests(&users(), &nodes());
        failed.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let fine = r#"
        {"src": "alice@example.com", "dst": ["tag:web", "100.64.0.4"], "accept": ["ubuntu"], "deny": ["root"]},
        {"src": "alice@example.com", "dst": ["autogroup:self"], "check": ["root"], "accept": ["root"], "deny": ["ubuntu"]},
        {"src": "bob@example.org", "dst": ["tag:db"], "deny": ["ubuntu"]}"#;
    assert_eq!(failing(fine), [""; 0]);
    for (test, expected) in [
        (
            r#"{"src": "alice@example.com", "dst": ["tag:web"], "check": ["ubuntu"]}"#,
            "ssh alice@example.com -> ubuntu@tag:web: expected checked, got accepted without a check",
        ),
        (
            r#"{"src": "autogroup:member", "dst": ["tag:web"], "accept": ["ubuntu"]}"#,
            "ssh autogroup:member -> ubuntu@tag:web: expected accepted, got denied",
        ),
        (
            r#"{"src": "absent@example.com", "dst": ["tag:web"], "deny": ["ubuntu"]}"#,
            "ssh absent@example.com -> ubuntu@tag:web: expected denied, but the source matches no node",
        ),
        (
            r#"{"src": "tag:db", "dst": ["autogroup:self"], "deny": ["root"]}"#,
            "ssh tag:db -> root@autogroup:self: expected denied, but the destination matches no node",
        ),
    ] {
        assert_eq!(failing(test), [expected]);
    }
}

#[test]
fn node_attributes_merge_all_matching_targets() {
    let policy = parse(
        r#""hosts": {"one": "100.64.0.1"}, "randomizeClientPort": true, "OneCGNATRoute": "mac-never",
        "nodeAttrs": [
            {"target": ["one"], "attr": ["funnel", "custom?x=1"]},
            {"target": ["autogroup:admin", "tag:web"], "attr": ["funnel", "disable-ipv4"]},
            {"target": ["tag:web"], "app": {"tailscale.com/app-connectors": [{"name": "x"}]}},
            {"target": ["*"], "app": {"tailscale.com/app-connectors": [{"name": "x"}, {"name": "y"}]}},
            {"target": ["carol@example.com"], "ipPool": ["100.81.0.0/16", "100.82.7.1"]},
            {"target": []},
        ]"#,
    );
    let (users, nodes) = (users(), nodes());
    let of = |at: usize| policy.node_attributes(&users, &nodes[at]);
    let names = |at| of(at).keys().cloned().collect::<Vec<_>>();
    assert_eq!(
        names(0),
        [
            "custom?x=1",
            "disable-ipv4",
            "funnel",
            "https://tailscale.com/cap/funnel-ports?ports=443,8443,10000",
            "one-cgnat?v=false",
            "randomize-client-port",
            "tailscale.com/app-connectors",
        ]
    );
    assert_eq!(
        names(2),
        [
            "one-cgnat?v=false",
            "randomize-client-port",
            "tailscale.com/app-connectors"
        ]
    );
    let app = of(3)["tailscale.com/app-connectors"].clone();
    assert_eq!(app, [json!({"name": "x"}), json!({"name": "y"})]);
    assert!(policy.disables_ipv4(&users, &nodes[1]));
    assert!(!policy.disables_ipv4(&users, &nodes[2]));
    let pools = policy.ip_pools(&users, &nodes[2]);
    let pools: Vec<String> = pools.iter().map(ToString::to_string).collect();
    assert_eq!(pools, ["100.81.0.0/16", "100.82.7.1/32"]);
    assert!(policy.ip_pools(&users, &nodes[0]).is_empty());

    let hosted = HostedTailnet {
        display_name: "example.com",
        auto_update: None,
        https: false,
    };
    let baseline = |at: usize| policy.hosted_baseline(&users, &nodes[at], &hosted);
    let has = |at, name: &str| baseline(at).has(&format!("https://tailscale.com/cap/{name}"));
    assert!(has(0, "is-owner") && has(0, "is-admin") && has(0, "warn-funnel-no-https"));
    assert!(!has(1, "is-owner") && has(1, "is-admin"));
    assert!(!has(2, "is-admin") && !has(2, "warn-funnel-no-https"));
    assert!(has(3, "is-owner") && !has(3, "is-admin"));
}

#[test]
fn postures_restrict_the_sources() {
    let with = |rule: &str, default: &str| {
        parse(&format!(
            r#""postures": {{
                "posture:linux": ["node:os == 'linux'", "node:tsVersion >= '1.80'"],
                "posture:score": ["falcon:ztaScore > 50"],
            }}, {default} "acls": [{{"action": "accept", {rule} "dst": ["tag:web:22"]}}]"#
        ))
    };
    let mut nodes = nodes();
    nodes[0].attributes.set_text("node:os", "linux");
    nodes[0].attributes.set_text("node:tsVersion", "1.84.0");
    nodes[1].attributes.set_text("node:os", "linux");
    let score = warren_policy::AttributeValue::Number(Number::new(51.0).unwrap());
    nodes[2]
        .attributes
        .0
        .insert("falcon:ztaScore".to_owned(), score);
    nodes[4].routes = vec!["10.0.0.0/8".parse().unwrap()];
    let sources = |policy: &Policy| {
        let rules = policy.compile(&users(), &nodes).filter_for(NodeId(4));
        rules
            .into_iter()
            .flat_map(|rule| rule.src_ips)
            .collect::<Vec<_>>()
    };
    let one = ["100.64.0.1", "fd7a:115c:a1e0::1"];
    let both = [
        "100.64.0.1",
        "100.64.0.3",
        "fd7a:115c:a1e0::1",
        "fd7a:115c:a1e0::3",
    ];
    let members = r#""src": ["autogroup:member"],"#;
    assert_eq!(
        sources(&with(
            &format!(r#"{members} "srcPosture": ["posture:linux"],"#),
            ""
        )),
        one
    );
    assert_eq!(
        sources(&with(
            &format!(r#"{members} "srcPosture": ["posture:linux", "posture:score"],"#),
            ""
        )),
        both
    );
    let default = r#""defaultSrcPosture": ["posture:linux"],"#;
    assert_eq!(sources(&with(members, default)), one);
    // A rule's own list replaces the default, an empty one too.
    assert_eq!(
        sources(&with(&format!(r#"{members} "srcPosture": [],"#), default)).len(),
        6
    );
    // Hosts behind a subnet router have no posture; addresses of nodes have.
    assert_eq!(
        sources(&with(r#""src": ["*"],"#, default)),
        ["10.0.0.0/8", one[0], one[1]]
    );
    assert_eq!(
        sources(&with(
            r#""src": ["100.64.0.0/24", "100.64.0.2", "10.1.0.0/16"],"#,
            default
        )),
        ["10.1.0.0/16", one[0]]
    );
    // A node that lost its access is not a peer either.
    let compiled = with(members, default).compile(&users(), &nodes);
    assert_eq!(compiled.peers_of(NodeId(4)), [NodeId(1)]);

    // Tests set the attributes of the source.
    let tested = |test: &str| {
        let policy = parse(&format!(
            r#""postures": {{"posture:linux": ["node:os == 'linux'"]}},
            "grants": [{{"src": ["carol@example.com"], "dst": ["tag:web"], "ip": ["22"], "srcPosture": ["posture:linux"]}}],
            "tests": [{{"src": "carol@example.com", {test}}}]"#
        ));
        policy.run_tests(&users(), &nodes).len()
    };
    assert_eq!(tested(r#""deny": ["tag:web:22"]"#), 0);
    assert_eq!(
        tested(r#""accept": ["tag:web:22"], "srcPostureAttrs": {"node:os": "linux"}"#),
        0
    );
    assert_eq!(
        tested(r#""accept": ["tag:web:22"], "srcPostureAttrs": {"node:os": "macos"}"#),
        1
    );
}

#[test]
fn ipsets_work_as_source_and_destination() {
    let policy = parse(
        r#""hosts": {"srv": "10.0.0.9"},
        "ipsets": {
            "ipset:all": ["10.0.0.0/24", "remove ipset:some", "add 192.168.0.1-192.168.0.2"],
            "ipset:some": ["host:srv", "10.0.0.128/25", "remove 10.0.0.255"],
        },
        "grants": [{"src": ["ipset:some"], "dst": ["ipset:all"], "ip": ["*"]}]"#,
    );
    let mut nodes = nodes();
    nodes[3].routes = vec!["10.0.0.0/16".parse().unwrap()];
    let rules = policy.compile(&users(), &nodes).filter_for(NodeId(4));
    assert_eq!(rules[0].src_ips, ["10.0.0.128-10.0.0.254", "10.0.0.9"]);
    let to: Vec<&str> = rules[0].dst_ports.iter().map(|to| to.ip.as_str()).collect();
    assert_eq!(
        to,
        ["10.0.0.0-10.0.0.8", "10.0.0.10-10.0.0.127", "10.0.0.255"]
    );
}

#[test]
fn roles_may_own_tags_and_approve_routes() {
    let policy = parse(
        r#""autoApprovers": {
            "routes": {"10.0.0.0/8": ["autogroup:admin"]},
            "services": {"svc:web": ["tag:web"], "tag:db": ["autogroup:owner"]},
        }"#,
    );
    let (users, nodes) = (users(), nodes());
    assert!(policy.may_use_tag(&users, UserId(2), "tag:web"));
    assert!(!policy.may_use_tag(&users, UserId(2), "tag:none"));
    assert!(!policy.may_use_tag(&users, UserId(3), "tag:web"));
    let net = "10.1.0.0/16".parse().unwrap();
    assert!(policy.approves_route(&users, &nodes[0], net));
    assert!(policy.approves_route(&users, &nodes[1], net));
    assert!(!policy.approves_route(&users, &nodes[2], net));
    assert!(policy.approves_service(&users, &nodes[3], "svc:web", &[]));
    assert!(!policy.approves_service(&users, &nodes[0], "svc:web", &[]));
    assert!(policy.approves_service(&users, &nodes[0], "svc:db", &["tag:db".to_owned()]));
}

#[test]
fn file_with_every_section_is_accepted() {
    let source = include_str!("../../../fuzz/corpus/policy/sections");
    let context = Context {
        domains: Some(["example.com".to_owned()].into()),
    };
    let policy = Policy::parse_in(source, &context).unwrap_or_else(|e| panic!("{e:?}"));
    assert!(policy.has_node_rules() && policy.requires_postures());
    let mut nodes = nodes();
    nodes[3].tags.truncate(1);
    assert!(policy.run_ssh_tests(&users(), &nodes).len() <= 6);
}

#[test]
fn old_spellings_mean_the_same() {
    let old = parse(
        r##""acls": [{"action": "accept", "users": ["autogroup:members"], "ports": ["tag:web:22"], "#note": 1}],
        "tests": [{"user": "carol@example.com", "allow": ["tag:web:22"]}]"##,
    );
    let new = parse(
        r#""ACLs": [{"Action": "accept", "src": ["autogroup:member"], "dst": ["tag:web:22"]}],
        "tests": [{"src": "carol@example.com", "accept": ["tag:web:22"]}]"#,
    );
    assert_eq!(old, new);
    assert!(old.run_tests(&users(), &nodes()).is_empty());
}

#[test]
fn relays_are_added_and_removed() {
    let policy = parse(
        r#""derpMap": {"regions": {
            "1": null,
            "900": {"regionID": 900, "regionCode": "own", "nodes": [{"name": "900a", "regionID": 900, "hostName": "relay.example.com"}]},
        }}"#,
    );
    let json = br#"{"Regions": {"1": {"RegionID": 1}, "2": {"RegionID": 2}}}"#;
    let mut map = DerpMap::from_json(json).unwrap();
    policy.relay_regions().apply(&mut map);
    let ids: Vec<u16> = map.regions.keys().map(|id| id.0).collect();
    assert_eq!(ids, [2, 900]);
    let own = map.regions.values().last().unwrap();
    assert_eq!(own.nodes[0].host_name, "relay.example.com");
    let only = parse(r#""derpMap": {"omitDefaultRegions": true}"#);
    only.relay_regions().apply(&mut map);
    assert!(map.regions.is_empty() && map.omit_default_regions);
    let wrong = r#""derpMap": {"regions": {"900": {"regionID": 901}}}"#;
    assert!(refusals(wrong)[0].starts_with("region 900:"), "{wrong}");
}

//! The texts of explanations, word for word.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use ipnet::IpNet;
use warren_control_types::{NodeId, UserId};
use warren_policy::explain::{AskError, Diff, PolicyContext, Question, Why};
use warren_policy::{Attributes, Policy, PolicyNode, PolicyUser, Role};

const FILE: &str = r#"{
  "groups": {
    "group:engineering": ["alice@example.com", "bob@example.com"],
  },
  "hosts": {"office": "10.1.0.0/16"},
  "tagOwners": {"tag:db": [], "tag:router": []},
  "acls": [
    // people reach the database
    {"action": "accept", "src": ["group:engineering"], "dst": ["tag:db:22,443"]},
    {"action": "accept", "src": ["alice@example.com"], "dst": ["office:*"]},
  ],
}
"#;

struct Fixture {
    users: Vec<PolicyUser>,
    nodes: Vec<PolicyNode>,
    names: BTreeMap<NodeId, String>,
    offered: BTreeMap<NodeId, Vec<IpNet>>,
}

fn fixture() -> Fixture {
    let user = |id, login: &str| PolicyUser {
        id: UserId(id),
        login: login.to_owned(),
        aliases: Vec::new(),
        groups: Vec::new(),
        role: Role::default(),
    };
    let node = |id: i64, user: Option<i64>, tags: &[&str], routes: &[&str]| PolicyNode {
        id: NodeId(id),
        user: user.map(UserId),
        tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
        addresses: vec![
            format!("100.64.0.{id}").parse().unwrap(),
            format!("fd7a:115c:a1e0::{id}").parse().unwrap(),
        ],
        routes: routes.iter().map(|route| route.parse().unwrap()).collect(),
        attributes: Attributes::default(),
    };
    let names = ["laptop", "phone", "db", "gateway"];
    Fixture {
        users: vec![
            user(1, "alice@example.com"),
            user(2, "bob@example.com"),
            user(3, "carol"),
        ],
        nodes: vec![
            node(1, Some(1), &[], &[]),
            node(2, Some(3), &[], &[]),
            node(3, None, &["tag:db"], &[]),
            node(4, None, &["tag:router"], &["10.1.0.0/16"]),
        ],
        names: names
            .iter()
            .zip(1..)
            .map(|(name, id)| (NodeId(id), (*name).to_owned()))
            .collect(),
        offered: [(
            NodeId(4),
            vec![
                "10.1.0.0/16".parse().unwrap(),
                "10.9.0.0/16".parse().unwrap(),
            ],
        )]
        .into(),
    }
}

fn with<R>(fixture: &Fixture, text: &str, ask: impl FnOnce(&PolicyContext<'_>) -> R) -> R {
    let policy = Policy::parse(text).unwrap();
    ask(&PolicyContext {
        policy: &policy,
        text,
        file: "acl.hujson",
        users: &fixture.users,
        nodes: &fixture.nodes,
        names: &fixture.names,
        offered: &fixture.offered,
    })
}

fn why(text: &str, from: &str, to: &str, protocol: Option<&str>) -> Result<Why, AskError> {
    let question = Question::parse(from, to, protocol)?;
    with(&fixture(), text, |scene| scene.why(&question))
}

fn diff(before: &str, after: &str) -> Diff {
    let fixture = fixture();
    let policy = Policy::parse(after).unwrap();
    with(&fixture, before, |old| {
        old.diff(&PolicyContext {
            policy: &policy,
            text: after,
            ..old.clone()
        })
    })
}

#[test]
fn allowed_packet_is_traced_to_the_file() {
    assert_eq!(
        why(FILE, "laptop", "db:22", None).unwrap().text(),
        r#"allowed  laptop (alice@example.com) 100.64.0.1 -> db (tag:db) 100.64.0.3 tcp/22
  rule      acl.hujson:9:5  {"action": "accept", "src": ["group:engineering"], "dst": ["tag:db:22,443"]}
  src       9:34  "group:engineering"  group:engineering contains alice@example.com (3:27), alice@example.com owns laptop
  dst       9:64  "tag:db:22,443"  db carries tag:db, port 22 is in 22,443
  route     none needed: 100.64.0.3 is db itself
"#
    );
    let behind = why(FILE, "alice@example.com", "10.1.2.3:80", Some("tcp")).unwrap();
    assert_eq!(
        behind.text(),
        r#"allowed  laptop (alice@example.com) 100.64.0.1 -> 10.1.2.3 tcp/80
  rule      acl.hujson:10:5  {"action": "accept", "src": ["alice@example.com"], "dst": ["office:*"]}
  src       10:34  "alice@example.com"  alice@example.com owns laptop
  dst       10:64  "office:*"  host office is 10.1.0.0/16 (5:13), 10.1.0.0/16 contains 10.1.2.3, port 80 is in *
  route     gateway serves 10.1.0.0/16 (approved, its filter lets it in)
"#
    );
    assert_eq!(
        behind.json()["answers"][0]["reasons"][0]["rule"]["line"],
        10
    );
}

#[test]
fn refused_packet_comes_with_the_smallest_edit() {
    let denied = why(FILE, "laptop", "db:5432", None).unwrap();
    assert_eq!(
        denied.text(),
        r#"denied   laptop (alice@example.com) 100.64.0.1 -> db (tag:db) 100.64.0.3 tcp/5432
  closest   acl.hujson:9:5  src matches ("group:engineering"), dst matches ("tag:db:22,443"), port 5432 is not in 22,443
  edit      acl.hujson:9:78  open the port; would allow nothing else
       9 -     {"action": "accept", "src": ["group:engineering"], "dst": ["tag:db:22,443"]},
       9 +     {"action": "accept", "src": ["group:engineering"], "dst": ["tag:db:22,443,5432"]},
"#
    );
    let edited = denied.answers[0].edits[0].apply(FILE);
    assert!(why(&edited, "laptop", "db:5432", None).unwrap().answers[0].allowed);

    let source = why(FILE, "phone", "db:22", None).unwrap();
    let edit = &source.answers[0].edits[0];
    assert_eq!(
        (edit.what.as_str(), edit.text.as_str()),
        ("add a source", ", \"carol@\"")
    );
    assert!(
        why(&edit.apply(FILE), "phone", "db:22", None)
            .unwrap()
            .answers[0]
            .allowed
    );

    let rule = why(FILE, "db", "phone:53", Some("udp")).unwrap();
    let edit = &rule.answers[0].edits[0];
    assert_eq!(edit.what, "add a rule");
    assert_eq!(
        edit.apply(FILE).lines().nth(10).unwrap(),
        "    {\"action\": \"accept\", \"src\": [\"tag:db\"], \"dst\": [\"carol@:53\"], \"proto\": \"udp\"},"
    );
}

#[test]
fn obstacles_outside_the_policy_are_reported() {
    let waiting = why(FILE, "laptop", "10.9.1.1:22", None).unwrap().text();
    assert!(
        waiting.contains("gateway serves 10.9.0.0/16 (offered, NOT APPROVED)"),
        "{waiting}"
    );
    assert!(
        waiting.contains("warren-control nodes approve-routes gateway --routes 10.9.0.0/16"),
        "{waiting}"
    );
    assert!(waiting.contains("add a destination"), "{waiting}");
    let missing = why(FILE, "laptop", "192.0.2.1:22", None).unwrap().text();
    assert!(
        missing.contains("no machine has 192.0.2.1 or offers a route to it"),
        "{missing}"
    );
    let open = why("{}", "phone", "db:1", None).unwrap().text();
    assert!(
        open.contains("without acls and grants everything is allowed"),
        "{open}"
    );
}

#[test]
fn invalid_questions_are_refused_with_advice() {
    let wrong = |from, to, protocol| why(FILE, from, to, protocol).unwrap_err().to_string();
    assert_eq!(
        wrong("lptop", "db:22", None),
        "\"lptop\" not found among the machines, addresses, users, tags, groups and hosts; did you mean \"laptop\"?"
    );
    assert!(wrong("laptop", "db", None).contains("is not a destination"));
    assert!(wrong("laptop", "office:22", None).contains("more than one address"));
    assert!(wrong("bob@example.com", "db:22", None).contains("matches no machine"));
    assert!(wrong("laptop", "db:22", Some("tpc")).contains("is not a valid protocol"));
    assert!(why(FILE, "laptop", "db", Some("icmp")).unwrap().answers[0].allowed);
    assert!(
        why(FILE, "laptop", "[fd7a:115c:a1e0::3]:443", None)
            .unwrap()
            .answers[0]
            .allowed
    );
}

#[test]
fn diff_uses_the_names_of_the_files() {
    let after = FILE
        .replace("tag:db:22,443", "tag:db:443,5432")
        .replace("\"office:*\"", "\"office:443\"")
        .replace("\"bob@example.com\"", "\"carol@\"");
    assert_eq!(
        diff(FILE, &after).text(),
        "gained: 2 pairs\n\
         \x20 + alice@example.com -> tag:db  tcp+udp/5432  (1 pair)\n\
         \x20 + carol@ -> tag:db  tcp+udp/443,5432  (1 pair)\n\
         lost: 2 pairs\n\
         \x20 - alice@example.com -> 10.1.0.0/16  tcp+udp/0-442,444-65535  (1 pair)\n\
         \x20 - group:engineering -> tag:db  tcp+udp/22  (1 pair)\n"
    );
}

#[test]
fn diff_covers_own_machines_and_capabilities() {
    let mut fixture = fixture();
    fixture.nodes[1].user = Some(UserId(1));
    let closed = "{\"acls\": []}";
    let own = r#"{"acls": [], "grants": [
        {"src": ["autogroup:member"], "dst": ["autogroup:self"], "ip": ["22"]},
        {"src": ["phone"], "dst": ["100.64.0.3"], "app": {"x.com/y": [{"a": 1}]}},
    ], "hosts": {"phone": "100.64.0.2"}}"#;
    let policy = Policy::parse(own).unwrap();
    let gained = with(&fixture, closed, |old| {
        old.diff(&PolicyContext {
            policy: &policy,
            text: own,
            ..old.clone()
        })
    });
    assert_eq!(
        gained.text(),
        "gained: 3 pairs\n\
         \x20 + 100.64.0.2 -> 100.64.0.3  capability x.com/y {\"a\":1}  (1 pair)\n\
         \x20 + autogroup:member -> autogroup:self  tcp+udp/22  (2 pairs)\n"
    );
    assert_eq!(gained.json()["pairs_gained"], 3);
    let words = "{\"acls\": [{\"action\": \"accept\", \"src\": [\"bob@example.com\"], \"dst\": [\"*:*\"]}]}";
    assert_eq!(
        diff(closed, words).text(),
        "note: the rules differ, but not for the machines that are there now\n"
    );
    assert_eq!(
        diff(FILE, FILE).text(),
        "no difference in what is allowed\n"
    );
}

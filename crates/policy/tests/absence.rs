//! Absence is never permission: a file that is cut is refused, and a policy
//! from which a part is missing allows no more than before, is refused, or says
//! that it allows everything.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde_json::Value;
use warren_control_types::{NodeId, UserId};
use warren_policy::explain::{Packet, evaluate};
use warren_policy::{AllowsEverything, Attributes, Policy, PolicyNode, PolicyUser, Role};

/// Members that narrow a rule. Without them, or if they are empty, the language
/// defines a rule that is not narrowed.
const NARROWING: [&str; 4] = ["proto", "srcPosture", "defaultSrcPosture", "via"];

const POLICY: &str = r#"{
  "groups": {"group:dev": ["alice@example.com"], "group:none": []},
  "hosts": {"srv": "10.1.0.9"},
  "ipsets": {"ipset:lan": ["10.1.0.0/16", "remove srv"]},
  "tagOwners": {"tag:web": ["group:dev"], "tag:router": ["tag:web"], "tag:rec": []},
  "postures": {"posture:linux": ["node:os == 'linux'"]},
  "defaultSrcPosture": ["posture:linux"],
  "autoApprovers": {"routes": {"10.1.0.0/16": ["group:dev", "tag:router"]}, "exitNode": ["tag:router"]},
  "acls": [
    {"action": "accept", "src": ["group:dev"], "dst": ["tag:web:22,80", "srv:443"], "proto": "tcp"},
    {"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self:*"]},
    {"action": "accept", "src": ["*"], "dst": ["ipset:lan:53"], "srcPosture": ["posture:linux"]},
  ],
  "grants": [
    {"src": ["bob@example.com"], "dst": ["tag:web"], "ip": ["icmp:*", "8080"],
     "app": {"example.com/cap/admin": [{"level": 1}]}},
    {"src": ["tag:web"], "dst": ["10.1.0.0/16"], "ip": ["udp:9"], "via": ["tag:router"]},
  ],
  "ssh": [
    {"action": "check", "src": ["group:dev"], "dst": ["tag:web"], "users": ["root", "autogroup:nonroot"],
     "checkPeriod": "1h", "recorder": ["tag:rec"], "enforceRecorder": true},
    {"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self"], "users": ["localpart:*@example.com"]},
  ],
  "nodeAttrs": [{"target": ["group:dev"], "attr": ["drive:share"]}],
  "tests": [{"src": "alice@example.com", "accept": ["tag:web:22"], "deny": ["tag:web:23"]}],
}"#;

fn users() -> Vec<PolicyUser> {
    let user = |id, login: &str| PolicyUser {
        id: UserId(id),
        login: login.to_owned(),
        aliases: Vec::new(),
        groups: Vec::new(),
        role: Role::Member,
    };
    vec![user(1, "alice@example.com"), user(2, "bob@example.com")]
}

fn nodes() -> Vec<PolicyNode> {
    let node = |id: i64, user: Option<i64>, tags: &[&str], routes: &[&str], os: &str| {
        let mut attributes = Attributes::default();
        attributes.set_text("node:os", os);
        PolicyNode {
            id: NodeId(id),
            user: user.map(UserId),
            tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
            addresses: vec![format!("100.64.0.{id}").parse().unwrap()],
            routes: routes.iter().map(|route| route.parse().unwrap()).collect(),
            attributes,
        }
    };
    vec![
        node(1, Some(1), &[], &[], "linux"),
        node(2, Some(1), &[], &[], "macos"),
        node(3, Some(2), &[], &[], "linux"),
        node(4, None, &["tag:web"], &[], "linux"),
        node(5, None, &["tag:router"], &["10.1.0.0/16"], "linux"),
        node(6, None, &["tag:rec"], &[], "linux"),
    ]
}

/// Everything that a policy allows these users and nodes.
fn allowed(policy: &Policy) -> BTreeSet<String> {
    let (users, nodes) = (users(), nodes());
    let mut out = BTreeSet::new();
    let compiled = policy.compile(&users, &nodes);
    let ssh = policy.compile_ssh(&users, &nodes);
    let subnet: [IpAddr; 2] = [[10, 1, 0, 9].into(), [10, 1, 0, 10].into()];
    let destinations: Vec<IpAddr> = nodes.iter().map(|node| node.addresses[0]).collect();
    for node in &nodes {
        for source in nodes.iter().map(|node| node.addresses[0]) {
            for destination in destinations.iter().chain(&subnet) {
                for (protocol, port) in [1, 6, 17].into_iter().flat_map(|protocol| {
                    let ports: &[u16] = if protocol == 1 {
                        &[0]
                    } else {
                        &[9, 22, 53, 443, 8080]
                    };
                    ports.iter().map(move |port| (protocol, *port))
                }) {
                    let packet = Packet {
                        source,
                        destination: *destination,
                        protocol,
                        port,
                    };
                    if evaluate(policy, &users, &nodes, node.id, &packet).allowed {
                        out.insert(format!("{packet:?} at {}", node.id));
                    }
                }
            }
        }
        for rule in compiled.filter_for(node.id) {
            for grant in &rule.cap_grant {
                for source in &rule.src_ips {
                    let names = grant.cap_map.0.keys();
                    out.extend(
                        names.map(|name| format!("{source} has {name} at {:?}", grant.dsts)),
                    );
                }
            }
        }
        for rule in ssh.policy_for(node.id, "").rules {
            let action = rule.action.unwrap();
            for principal in rule.principals.iter().filter(|_| !action.reject) {
                let logins = rule.ssh_users.iter().filter(|(_, local)| !local.is_empty());
                for (login, _) in logins {
                    out.insert(format!(
                        "{} logs in as {login} at {}",
                        principal.node_ip, node.id
                    ));
                }
            }
        }
        for route in ["10.1.0.0/16", "10.1.2.0/24", "0.0.0.0/0"] {
            if policy.approves_route(&users, node, route.parse().unwrap()) {
                out.insert(format!("{} serves {route}", node.id));
            }
        }
        for (name, _) in policy.node_attributes(&users, node).0 {
            out.insert(format!("{} has {name}", node.id));
        }
    }
    for user in &users {
        for tag in ["tag:web", "tag:router", "tag:rec"] {
            if policy.may_use_tag(&users, user.id, tag) {
                out.insert(format!("{} gives {tag}", user.login));
            }
        }
    }
    out
}

/// The pointers of all values in a tree, with the name of the member that holds
/// each.
fn pointers(value: &Value, at: &str, name: &str, out: &mut Vec<(String, String)>) {
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                let at = format!("{at}/{}", name.replace('~', "~0").replace('/', "~1"));
                out.push((at.clone(), name.clone()));
                pointers(member, &at, name, out);
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                let at = format!("{at}/{index}");
                out.push((at.clone(), name.to_owned()));
                pointers(item, &at, name, out);
            }
        }
        _ => {}
    }
}

/// The policy as JSON, without comments and trailing commas.
fn tree() -> Value {
    let text: String = POLICY.lines().map(str::trim_end).collect();
    let text = text.replace(",  ]", "]").replace(",}", "}");
    serde_json::from_str(&text).unwrap()
}

/// The tree without the member or element at a pointer.
fn without(tree: &Value, at: &str) -> Value {
    let mut tree = tree.clone();
    let (parent, last) = at.rsplit_once('/').unwrap();
    let last = last.replace("~1", "/").replace("~0", "~");
    match tree.pointer_mut(parent).unwrap() {
        Value::Object(members) => drop(members.remove(&last)),
        Value::Array(items) => drop(items.remove(last.parse().unwrap())),
        _ => panic!("{at}"),
    }
    tree
}

#[test]
fn policy_without_one_of_its_parts_allows_no_more() {
    let full = tree();
    let before = allowed(&Policy::parse(POLICY).unwrap());
    assert_eq!(before, allowed(&Policy::parse(&full.to_string()).unwrap()));
    assert!(before.len() > 50, "{}", before.len());
    let mut parts = Vec::new();
    pointers(&full, "", "", &mut parts);
    let (mut refused, mut taken) = (0, 0);
    for (at, name) in &parts {
        // Assertions of a posture narrow it, and so do removals from an ipset.
        let narrows = NARROWING.contains(&name.as_str())
            || at.starts_with("/postures/posture:linux/")
            || at.starts_with("/ipsets/ipset:lan/");
        let empty = full.pointer(at).map(|value| match value {
            Value::Array(_) => Value::Array(Vec::new()),
            Value::Object(_) => Value::Object(serde_json::Map::new()),
            _ => Value::from(""),
        });
        let mut changed = vec![without(&full, at)];
        for value in [Some(Value::Null), empty].into_iter().flatten() {
            let mut tree = full.clone();
            *tree.pointer_mut(at).unwrap() = value;
            changed.push(tree);
        }
        for tree in changed {
            let Ok(policy) = Policy::parse(&tree.to_string()) else {
                refused += 1;
                continue;
            };
            taken += 1;
            let more: Vec<String> = allowed(&policy).difference(&before).cloned().collect();
            assert!(more.is_empty() || narrows, "{at}: {more:#?}\n{tree}");
        }
    }
    assert!(refused > 50 && taken > 100, "{refused} {taken}");
}

#[test]
fn policy_that_lost_all_its_rules_says_that_it_allows_everything() {
    let full = tree();
    assert_eq!(Policy::parse(POLICY).unwrap().allows_everything(), None);
    let open = without(&without(&full, "/acls"), "/grants");
    let policy = Policy::parse(&open.to_string()).unwrap();
    assert_eq!(policy.allows_everything(), Some(AllowsEverything::NoRules));
    for (rule, open) in [
        (
            r#""acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]"#,
            true,
        ),
        (
            r#""acls": [{"action": "accept", "src": ["*"], "dst": ["*:1-65535"]}]"#,
            true,
        ),
        (
            r#""acls": [{"action": "accept", "src": ["autogroup:tagged", "autogroup:member"],
                "dst": ["autogroup:member:*", "autogroup:tagged:*"]}]"#,
            true,
        ),
        (
            r#""grants": [{"src": ["autogroup:danger-all"], "dst": ["*"], "ip": ["22", "*"]}]"#,
            true,
        ),
        (
            r#""grants": [{"src": ["*"], "dst": ["*"], "ip": ["22", "tcp:*"]}]"#,
            false,
        ),
        (
            r#""grants": [{"src": ["*"], "dst": ["*"], "app": {"a.b/c": []}}]"#,
            false,
        ),
        (
            r#""acls": [{"action": "accept", "src": ["autogroup:member"], "dst": ["*:*"]}]"#,
            false,
        ),
        (r#""acls": []"#, false),
    ] {
        let policy = Policy::parse(&format!("{{{rule}}}")).unwrap();
        let found = policy.allows_everything();
        assert_eq!(found, open.then_some(AllowsEverything::Rule), "{rule}");
    }
}

#[test]
fn cut_file_is_refused() {
    let end = POLICY.rfind('}').unwrap();
    for cut in POLICY
        .char_indices()
        .map(|(at, _)| at)
        .filter(|at| *at <= end)
    {
        let text = &POLICY[..cut];
        assert!(Policy::parse(text).is_err(), "{text}");
        // A comment does not stand in for the rest.
        assert!(
            Policy::parse(&format!("{text}\n// note\n")).is_err(),
            "{text}"
        );
    }
    for (text, message) in [
        ("", "1:1: the file is empty"),
        (" \r\n\t", "2:2: the file is empty"),
        ("// {}\n", "2:1: the file holds only comments"),
        ("/* {} */", "1:9: the file holds only comments"),
    ] {
        let found = Policy::parse(text).unwrap_err();
        let shown = found[0].to_string();
        assert!(shown.starts_with(message), "{shown}");
        assert!(
            found[0]
                .render("policy.hujson", text)
                .contains("policy.hujson:")
        );
    }
}

#[test]
fn login_that_must_be_recorded_is_refused_while_no_node_records() {
    let policy = Policy::parse(POLICY).unwrap();
    let action = |nodes: &[PolicyNode]| {
        let ssh = policy.compile_ssh(&users(), nodes);
        let check = ssh.check_for(NodeId(1), NodeId(4), "root").unwrap();
        check.then
    };
    let with = action(&nodes());
    assert!(
        with.accept && with.on_recording_failure.is_some(),
        "{with:?}"
    );
    assert_eq!(with.recorders.len(), 1);
    let without = action(&nodes()[..5]);
    assert!(without.reject && !without.accept, "{without:?}");
}

//! Incremental changes give the result of a full compilation, and their impact
//! names all affected nodes and few others.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use ipnet::IpNet;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use warren_control_types::{FilterRule, NodeId, UserId};

use super::{Compiled, Impact, RouterService, plain};
use crate::model::Policy;
use crate::node::{PolicyNode, PolicyUser, Role};
use crate::node_set::NodeSet;
use crate::posture::Attributes;

const ACLS: [&str; 26] = [
    r#"{"src": ["alice@"], "dst": ["tag:web:22"]}"#,
    r#"{"src": ["group:dev"], "dst": ["tag:web:80,443", "tag:db:5432"]}"#,
    r#"{"src": ["alice@", "100.64.0.1"], "dst": ["tag:web:443"]}"#,
    r#"{"src": ["autogroup:member"], "dst": ["autogroup:self:*"]}"#,
    r#"{"src": ["group:dev"], "dst": ["autogroup:self:22", "tag:db:1"], "proto": "tcp"}"#,
    r#"{"src": ["*"], "dst": ["tag:web:8080"]}"#,
    r#"{"src": ["*"], "dst": ["bob@:*"], "proto": "udp"}"#,
    r#"{"src": ["*", "alice@"], "dst": ["10.1.0.0/16:*"]}"#,
    r#"{"src": ["autogroup:danger-all"], "dst": ["ipset:mixed:53"]}"#,
    r#"{"src": ["100.64.0.0/30"], "dst": ["*:*"]}"#,
    r#"{"src": ["ipset:mixed"], "dst": ["autogroup:member:*"]}"#,
    r#"{"src": ["100.64.0.2", "fd7a:115c:a1e0::2"], "dst": ["tag:db:*"]}"#,
    r#"{"src": ["bob@"], "dst": ["tag:db:22"]}"#,
    r#"{"src": ["tag:web"], "dst": ["tag:db:5432"]}"#,
    r#"{"src": ["tag:web"], "dst": ["tag:db:6432", "tag:web:*"]}"#,
    r#"{"src": ["autogroup:tagged"], "dst": ["8.0.0.0/6:*", "100.64.0.3:9"]}"#,
    r#"{"src": ["autogroup:member"], "dst": ["autogroup:internet:*"]}"#,
    r#"{"src": ["10.1.2.0/24"], "dst": ["tag:db:1"]}"#,
    r#"{"src": ["autogroup:admin"], "dst": ["192.168.7.0/24:*"]}"#,
    r#"{"src": ["user:*@example.com"], "dst": ["tag:web:1"]}"#,
    r#"{"src": ["absent@", "group:empty"], "dst": ["*:1"]}"#,
    r#"{"src": ["10.0.0.0/8", "tag:router"], "dst": ["100.64.0.0/28:*"], "proto": "icmp"}"#,
    r#"{"src": ["alice@"], "dst": ["alice@:22,80", "autogroup:self:443"]}"#,
    r#"{"src": ["alice@"], "dst": ["autogroup:self:22", "autogroup:self:*", "autogroup:member:1"]}"#,
    r#"{"src": ["100.64.0.1", "fd7a:115c:a1e0::1"], "dst": ["*:443", "bob@:1-9"]}"#,
    r#"{"src": [], "dst": ["*:*"]}"#,
];

const GRANTS: [&str; 13] = [
    r#"{"src": ["group:dev"], "dst": ["10.1.0.0/16"], "ip": ["*"], "via": ["tag:router"]}"#,
    r#"{"src": ["*"], "dst": ["autogroup:internet"], "ip": ["443"], "via": ["tag:web"]}"#,
    r#"{"src": ["alice@"], "dst": ["tag:db", "10.0.0.0/8"], "app": {"x.io/cap/a": [{"n": 1}]}}"#,
    r#"{"src": ["alice@"], "dst": ["tag:db", "10.0.0.0/8"], "app": {"x.io/cap/a": [{"n": 2}]}}"#,
    r#"{"src": ["autogroup:member"], "dst": ["autogroup:self"], "app": {"x.io/cap/b": []}}"#,
    r#"{"src": ["bob@", "*"], "dst": ["tag:web"], "app": {"tailscale.com/cap/drive": []}, "srcPosture": ["posture:linux"]}"#,
    r#"{"src": ["*"], "dst": ["*"], "ip": ["22"], "srcPosture": ["posture:linux"]}"#,
    r#"{"src": ["100.64.0.0/29", "autogroup:danger-all"], "dst": ["tag:db"], "ip": ["23"], "srcPosture": ["posture:linux"]}"#,
    r#"{"src": ["ipset:mixed", "group:dev"], "dst": ["*"], "ip": ["tcp:24"], "app": {"tailscale.com/cap/relay": []}, "srcPosture": ["posture:linux"]}"#,
    r#"{"src": ["tag:router"], "dst": ["192.168.7.0/24"], "app": {"x.io/cap/c": []}, "via": ["tag:router"]}"#,
    r#"{"src": ["group:dev"], "dst": ["10.1.0.0/16", "192.168.7.0/24"], "ip": ["tcp:80", "tcp:443", "53"], "via": ["tag:router"]}"#,
    r#"{"src": ["group:dev"], "dst": ["10.1.0.0/16", "autogroup:self"], "ip": ["tcp:80", "*"]}"#,
    r#"{"src": [], "dst": ["*"], "app": {"tailscale.com/cap/drive": []}, "ip": ["1"]}"#,
];

const ROUTES: [&str; 9] = [
    "10.0.0.0/8",
    "10.1.0.0/16",
    "10.1.2.0/24",
    "192.168.7.0/24",
    "8.8.8.0/24",
    "0.0.0.0/0",
    "::/0",
    "100.64.0.0/30",
    "fd00:1::/32",
];

fn a_policy() -> impl Strategy<Value = Option<Policy>> {
    let rules = (
        proptest::collection::vec(select(ACLS.to_vec()), 0..8),
        proptest::collection::vec(select(GRANTS.to_vec()), 0..4),
        subsequence(vec!["alice@", "bob@", "carol@example.com"], 0..=3),
        select(vec![
            "node:os == 'linux'",
            "node:os != 'ios'",
            "node:os IS SET",
        ]),
        prop_oneof![4 => Just(""), 1 => Just(r#""posture:linux""#)],
    );
    let closed = rules.prop_map(|(acls, grants, dev, posture, default)| {
        let acls: Vec<String> = acls
            .iter()
            .map(|acl| acl.replacen('{', r#"{"action": "accept", "#, 1))
            .collect();
        let dev: Vec<String> = dev.iter().map(|login| format!("{login:?}")).collect();
        let text = format!(
            r#"{{
            "groups": {{"group:dev": [{}], "group:empty": []}},
            "ipsets": {{"ipset:mixed": ["100.64.0.2", "10.1.0.0-10.1.2.99", "8.8.8.0/24"]}},
            "postures": {{"posture:linux": ["{posture}"]}},
            "defaultSrcPosture": [{default}],
            "tagOwners": {{"tag:web": [], "tag:db": [], "tag:router": []}},
            "acls": [{}], "grants": [{}]}}"#,
            dev.join(","),
            acls.join(","),
            grants.join(",")
        );
        Some(policy(&text))
    });
    prop_oneof![12 => closed, 1 => Just(None)]
}

fn policy(text: &str) -> Policy {
    Policy::parse(text).unwrap_or_else(|errors| panic!("{errors:#?}"))
}

fn a_node() -> impl Strategy<Value = PolicyNode> {
    let tags = vec!["tag:web", "tag:db", "tag:router"];
    (
        1_i64..8,
        proptest::bool::weighted(0.2),
        proptest::option::weighted(0.8, 1_i64..5),
        prop_oneof![3 => Just(Vec::new()), 2 => subsequence(tags, 1..=2)],
        prop_oneof![3 => Just(Vec::new()), 2 => subsequence(ROUTES.to_vec(), 1..=3)],
        select(vec!["linux", "linux", "ios", ""]),
    )
        .prop_map(|(id, moved, user, tags, routes, os)| {
            let mut node = node(id);
            // No two have one address: servers never give that.
            let at = if moved { id + 16 } else { id };
            node.addresses = vec![
                format!("100.64.0.{at}").parse().unwrap(),
                format!("fd7a:115c:a1e0::{at:x}").parse().unwrap(),
            ];
            node.user = user.map(UserId);
            node.tags = tags.into_iter().map(str::to_owned).collect();
            node.routes = routes.iter().map(|route| route.parse().unwrap()).collect();
            if !os.is_empty() {
                node.attributes.set_text("node:os", os);
            }
            node
        })
}

fn node(n: i64) -> PolicyNode {
    PolicyNode {
        id: NodeId(n),
        user: None,
        tags: Vec::new(),
        addresses: vec![
            format!("100.64.0.{n}").parse().unwrap(),
            format!("fd7a:115c:a1e0::{n:x}").parse().unwrap(),
        ],
        routes: Vec::new(),
        attributes: Attributes::default(),
    }
}

fn user(id: i64, login: &str) -> PolicyUser {
    PolicyUser {
        id: UserId(id),
        login: login.to_owned(),
        aliases: Vec::new(),
        groups: Vec::new(),
        role: Role::Member,
    }
}

fn some_users() -> impl Strategy<Value = Vec<PolicyUser>> {
    let logins = vec![
        "alice",
        "bob",
        "carol@example.com",
        "dan@example.com",
        "ann",
    ];
    let roles = || select(vec![Role::Member, Role::Member, Role::Admin, Role::Owner]);
    (subsequence(logins, 2..=4), roles(), any::<bool>()).prop_map(|(logins, role, alias)| {
        let users = logins.iter().zip(1..).map(|(login, id)| user(id, login));
        let mut users: Vec<_> = users.collect();
        users[0].role = role;
        if alias {
            users[1].aliases.push("bob".to_owned());
        }
        users
    })
}

#[derive(Debug, Clone)]
enum Step {
    Node(Box<PolicyNode>),
    Gone(NodeId),
    Users(Vec<PolicyUser>),
    Policy(Option<Box<Policy>>),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => a_node().prop_map(|node| Step::Node(Box::new(node))),
        2 => (1_i64..8).prop_map(|id| Step::Gone(NodeId(id))),
        1 => some_users().prop_map(Step::Users),
        3 => a_policy().prop_map(|policy| Step::Policy(policy.map(Box::new))),
    ]
}

/// All answers about all nodes.
#[derive(Debug, Clone, Default, PartialEq)]
struct Answers {
    filters: BTreeMap<NodeId, Vec<FilterRule>>,
    peers: BTreeMap<NodeId, Vec<NodeId>>,
    routes: BTreeMap<(NodeId, NodeId), Vec<IpNet>>,
}

fn answers(
    nodes: &BTreeMap<NodeId, PolicyNode>,
    filter_for: impl Fn(NodeId) -> Vec<FilterRule>,
    peers_of: impl Fn(NodeId) -> Vec<NodeId>,
    routes_for: impl Fn(NodeId, NodeId, &[IpNet]) -> Vec<IpNet>,
) -> Answers {
    let mut out = Answers::default();
    for &id in nodes.keys() {
        out.filters.insert(id, filter_for(id));
        out.peers.insert(id, peers_of(id));
        for peer in nodes.values().filter(|peer| peer.id != id) {
            let primary: Vec<IpNet> = peer.subnet_routes().copied().collect();
            let routes = routes_for(id, peer.id, &primary);
            out.routes.insert((id, peer.id), routes);
        }
    }
    out
}

/// How well nodes serve in these tests.
fn by_number(id: NodeId) -> RouterService {
    match id.0 % 3 {
        0 => RouterService::Absent,
        1 => RouterService::Good,
        _ => RouterService::Impaired,
    }
}

fn of(compiled: &Compiled, nodes: &BTreeMap<NodeId, PolicyNode>) -> Answers {
    answers(
        nodes,
        |id| compiled.filter_for(id),
        |id| compiled.peers_of(id),
        |viewer, peer, primary| compiled.routes_for(viewer, peer, primary, &by_number),
    )
}

/// The exact impact of a change of the answers.
fn concerned(before: &Answers, after: &Answers) -> Impact {
    let mut out = Impact::default();
    for (id, filter) in &after.filters {
        if before.filters.get(id) != Some(filter) {
            out.filters.insert(*id);
        }
    }
    for (id, peers) in &after.peers {
        if before.peers.get(id) != Some(peers) {
            out.peers.insert(*id);
        }
    }
    for ((viewer, peer), routes) in &after.routes {
        let saw = |answers: &Answers| {
            let peers = answers.peers.get(viewer);
            peers.is_some_and(|peers| peers.contains(peer))
        };
        if saw(before) && saw(after) && before.routes.get(&(*viewer, *peer)) != Some(routes) {
            out.routes.insert(*viewer);
        }
    }
    out
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    #[test]
    fn incremental_changes_equal_a_full_compilation(
        first in a_policy(),
        mut users in some_users(),
        steps in proptest::collection::vec(step(), 1..24),
    ) {
        let mut policy = first.unwrap_or_else(Policy::allow_all);
        let mut nodes: BTreeMap<NodeId, PolicyNode> = BTreeMap::new();
        let mut compiled = policy.compile(&users, &[]);
        let mut before = Answers::default();
        for step in steps {
            let named = match step.clone() {
                Step::Node(node) => {
                    nodes.insert(node.id, (*node).clone());
                    compiled.update_node(*node)
                }
                Step::Gone(id) => {
                    nodes.remove(&id);
                    compiled.remove_node(id)
                }
                Step::Users(now) => {
                    users = now;
                    compiled.update_users(&users)
                }
                Step::Policy(now) => {
                    policy = now.map_or_else(Policy::allow_all, |now| *now);
                    compiled.replace_policy(&policy)
                }
            };
            compiled.check_tables();
            compiled.check_sets();
            let all: Vec<PolicyNode> = nodes.values().cloned().collect();
            let plain = plain::Compiled::new(&policy, &users, &all);
            let after = answers(
                &nodes,
                |id| plain.filter_for(id),
                |id| plain.peers_of(id),
                |viewer, peer, primary| plain.routes_for(viewer, peer, primary, &by_number),
            );
            prop_assert_eq!(&of(&policy.compile(&users, &all), &nodes), &after, "full, {:?}", step);
            prop_assert_eq!(&of(&compiled, &nodes), &after, "incremental, {:?}", step);
            for (id, peers) in &after.peers {
                prop_assert_eq!(&compiled.peer_set(*id), &peers.iter().copied().collect());
                for other in nodes.keys() {
                    prop_assert_eq!(compiled.can_see(*id, *other), peers.contains(other));
                }
            }
            let needed = concerned(&before, &after);
            let missing = |needed: &NodeSet, named: &NodeSet| {
                needed.difference(named).collect::<Vec<_>>()
            };
            prop_assert_eq!(missing(&needed.filters, &named.filters), [], "filters, {:?}", step);
            prop_assert_eq!(missing(&needed.peers, &named.peers), [], "peers, {:?}", step);
            prop_assert_eq!(missing(&needed.routes, &named.routes), [], "routes, {:?}", step);
            // Nodes that are not in `views` differ in the one node only.
            let one = match &step {
                Step::Node(node) => Some(node.id),
                Step::Gone(id) => Some(*id),
                Step::Users(_) | Step::Policy(_) => None,
            };
            if let Some(id) = one {
                let elsewhere = concerned(&before.without(id), &after.without(id));
                for one in [&elsewhere.peers, &elsewhere.routes] {
                    prop_assert_eq!(missing(one, &named.views), [], "views, {:?}", step);
                }
            } else {
                prop_assert_eq!(missing(&needed.peers, &named.views), []);
                prop_assert_eq!(missing(&needed.routes, &named.views), []);
            }
            before = after;
        }
    }
}

impl Answers {
    /// The answers without those about one peer.
    fn without(&self, id: NodeId) -> Self {
        let mut out = self.clone();
        out.peers
            .values_mut()
            .for_each(|peers| peers.retain(|peer| *peer != id));
        out.routes.retain(|(_, peer), _| *peer != id);
        out
    }
}

/// Two teams of two and two servers.
const TEAMS: &str = r#"{
    "groups": {"group:red": ["r1@", "r2@"], "group:blue": ["b1@", "b2@"]},
    "tagOwners": {"tag:red": [], "tag:blue": [], "tag:router": []},
    "acls": [
        {"action": "accept", "src": ["group:red"], "dst": ["tag:red:22"]},
        {"action": "accept", "src": ["group:blue"], "dst": ["tag:blue:22"]},
        {"action": "accept", "src": ["group:blue"], "dst": ["10.0.0.0/8:*"]},
    ]}"#;

fn teams() -> (Compiled, Vec<PolicyNode>) {
    let users: Vec<_> = ["r1", "r2", "b1", "b2"]
        .iter()
        .zip(1..)
        .map(|(l, n)| user(n, l))
        .collect();
    let mut nodes: Vec<_> = (1..=7).map(node).collect();
    for (node, user) in nodes.iter_mut().zip(1..=4) {
        node.user = Some(UserId(user));
    }
    for (at, tag) in [(4, "tag:red"), (5, "tag:blue"), (6, "tag:router")] {
        nodes[at].tags = vec![tag.to_owned()];
    }
    nodes[6].routes = vec!["10.0.0.0/8".parse().unwrap()];
    (policy(TEAMS).compile(&users, &nodes), nodes)
}

fn ids(set: &NodeSet) -> Vec<i64> {
    set.iter().map(|id| id.0).collect()
}

#[test]
fn changes_that_no_rule_mentions_have_no_impact() {
    let (mut compiled, nodes) = teams();
    assert!(compiled.update_node(nodes[0].clone()).is_empty());
    let mut other_host = nodes[0].clone();
    other_host.attributes.set_text("node:os", "plan9");
    assert!(compiled.update_node(other_host).is_empty());
    // A tag that no rule names gives no access.
    let mut tagged = nodes[6].clone();
    tagged.tags.push("tag:unheard".to_owned());
    let affected = compiled.update_node(tagged);
    assert!(
        affected.filters.is_empty() && affected.peers.is_empty(),
        "{affected:?}"
    );
    assert!(compiled.remove_node(NodeId(99)).is_empty());
    assert!(compiled.replace_policy(&policy(TEAMS)).is_empty());
}

#[test]
fn node_change_affects_only_its_own_team() {
    let (mut compiled, nodes) = teams();
    let mut moved = nodes[0].clone();
    moved.addresses[0] = "100.64.9.9".parse().unwrap();
    let affected = compiled.update_node(moved);
    // Its own filter, and that of the server that lets it in.
    assert_eq!(ids(&affected.filters), [1, 5]);
    assert!(affected.peers.is_empty());

    let mut joined = node(8);
    joined.user = Some(UserId(2));
    let affected = compiled.update_node(joined);
    assert_eq!(ids(&affected.filters), [5, 8]);
    assert_eq!(ids(&affected.peers), [5, 8]);
    let affected = compiled.remove_node(NodeId(8));
    assert_eq!(ids(&affected.filters), [5]);
    assert_eq!(ids(&affected.peers), [5]);

    let mut router = nodes[6].clone();
    router.routes.clear();
    let affected = compiled.update_node(router);
    assert_eq!(ids(&affected.peers), [3, 4, 7]);
    assert_eq!(ids(&affected.filters), [7]);
}

#[test]
fn rule_change_affects_only_its_sources_and_destinations() {
    let (mut compiled, _) = teams();
    let more = TEAMS.replace("tag:red:22", "tag:red:22,80");
    let affected = compiled.replace_policy(&policy(&more));
    assert_eq!(ids(&affected.filters), [5]);
    assert_eq!(ids(&affected.peers), [1, 2, 5]);
    // A removed member affects her nodes and the servers that accepted her.
    let fewer = more.replace(r#""b1@", "b2@""#, r#""b1@""#);
    let affected = compiled.replace_policy(&policy(&fewer));
    assert_eq!(ids(&affected.filters), [6, 7]);
    assert_eq!(ids(&affected.peers), [4, 6, 7]);
    // Another name for a person in no group.
    let users = ["r1", "r2", "b1", "x"]
        .iter()
        .zip(1..)
        .map(|(l, n)| user(n, l));
    assert!(compiled.update_users(&users.collect::<Vec<_>>()).is_empty());
    // A section other than rules has no impact here.
    let ssh = fewer.replace(r#""acls""#, r#""randomizeClientPort": true, "acls""#);
    assert!(compiled.replace_policy(&policy(&ssh)).is_empty());
}

#[test]
fn reordering_keeps_unchanged_rules_compiled() {
    let (mut compiled, _) = teams();
    let new = r#""acls": [{"action": "accept", "src": ["b1@"], "dst": ["r1@:1"]},"#;
    let with = TEAMS.replace(r#""acls": ["#, new);
    let affected = compiled.replace_policy(&policy(&with));
    assert_eq!(ids(&affected.filters), [1]);
    let affected = compiled.replace_policy(&policy(TEAMS));
    assert_eq!(ids(&affected.filters), [1]);
    // Unused selectors and sources are removed.
    let (fresh, _) = teams();
    assert_eq!(compiled.selector_ids.len(), fresh.selector_ids.len());
    assert_eq!(compiled.source_ids.len(), fresh.source_ids.len());
    assert_eq!(compiled.merge_targets.len(), fresh.merge_targets.len());
    assert_eq!(
        compiled.compiled_rules.iter().count(),
        fresh.compiled_rules.iter().count()
    );
}

#[test]
fn via_fails_over_to_an_online_router() {
    let policy = Policy::parse(
        r#"{"tagOwners": {"tag:r": []}, "grants": [
        {"src": ["ann@"], "dst": ["10.0.0.0/8"], "ip": ["*"], "via": ["tag:r"]}]}"#,
    )
    .unwrap();
    let user = PolicyUser {
        id: UserId(1),
        login: "ann@".to_owned(),
        aliases: Vec::new(),
        groups: Vec::new(),
        role: Role::default(),
    };
    let node = |n: u8| PolicyNode {
        id: NodeId(n.into()),
        user: (n == 1).then_some(UserId(1)),
        tags: if n == 1 {
            vec![]
        } else {
            vec!["tag:r".to_owned()]
        },
        addresses: vec![std::net::Ipv4Addr::new(100, 64, 0, n).into()],
        routes: if n == 1 {
            vec![]
        } else {
            vec!["10.0.0.0/8".parse().unwrap()]
        },
        attributes: Attributes::default(),
    };
    let compiled = policy.compile(&[user], &[node(1), node(2), node(3)]);
    let router = |good: &[i64], impaired: &[i64]| {
        let service = |id: NodeId| match id.0 {
            id if good.contains(&id) => RouterService::Good,
            id if impaired.contains(&id) => RouterService::Impaired,
            _ => RouterService::Absent,
        };
        let given = |n: &i64| {
            !compiled
                .routes_for(NodeId(1), NodeId(*n), &[], &service)
                .is_empty()
        };
        [2, 3].into_iter().filter(given).collect::<Vec<i64>>()
    };
    for (good, impaired, chosen) in [
        (&[2, 3][..], &[][..], 2),
        (&[3], &[], 3),
        (&[], &[], 2),
        (&[3], &[2], 3),
        (&[], &[2, 3], 2),
        (&[], &[3], 3),
    ] {
        assert_eq!(router(good, impaired), [chosen], "{good:?} {impaired:?}");
    }
    // The impact is on the nodes that use it.
    let concerned = compiled.presence_changed(NodeId(2));
    assert_eq!(concerned.views.iter().collect::<Vec<_>>(), [NodeId(1)]);
    assert!(concerned.filters.is_empty() && concerned.peers.is_empty());
    assert!(compiled.presence_changed(NodeId(1)).is_empty());
}

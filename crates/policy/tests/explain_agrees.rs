//! Compares three answers for random policies, networks and packets: the
//! evaluator that reads rule after rule, the filter that a node compiles from
//! its netmap, and the explanation for users.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::json;
use warren_control_types::{NodeId, UserId};
use warren_filter::{CapabilityHolders, Filter, FlowTable, LocalAddresses, LocalSet};
use warren_policy::explain::{Packet, PolicyContext, Question, evaluate};
use warren_policy::{AttributeValue, Attributes, Policy, PolicyNode, PolicyUser, Role};
use warren_testkit::FixedEntropy;
use warren_wire::ip::IpPacket;

const LOGINS: [&str; 3] = ["alice@example.com", "bob@example.com", "carol@other.net"];
const TAGS: [&str; 3] = ["tag:web", "tag:db", "tag:router"];
const ROUTES: [&str; 8] = [
    "10.0.0.0/8",
    "10.1.0.0/16",
    "192.168.7.0/24",
    "8.8.8.0/24",
    "fd00:1::/32",
    "0.0.0.0/0",
    "::/0",
    "100.115.92.0/24",
];
const IDENTITIES: [&str; 12] = [
    "autogroup:admin",
    "autogroup:auditor",
    "alice@example.com",
    "bob@example.com",
    "absent@example.com",
    "group:dev",
    "group:empty",
    "tag:web",
    "tag:db",
    "user:*@example.com",
    "autogroup:member",
    "autogroup:tagged",
];
const NETS: [&str; 12] = [
    "ipset:mixed",
    "ipset:far",
    "100.64.0.1",
    "100.64.0.0/30",
    "fd7a:115c:a1e0::2",
    "office",
    "printer",
    "10.0.0.0/8",
    "10.1.2.0/24",
    "8.0.0.0/6",
    "fd00:1:2::/48",
    "2000::/3",
];
/// Sources and destinations of packets: machines, hosts behind routers, the
/// internet, unused addresses.
const PLACES: [&str; 22] = [
    "100.64.0.1",
    "100.64.0.2",
    "100.64.0.3",
    "100.64.0.4",
    "100.64.0.5",
    "100.64.0.9",
    "100.115.92.7",
    "fd7a:115c:a1e0::1",
    "fd7a:115c:a1e0::2",
    "fd7a:115c:a1e0::3",
    "fd7a:115c:a1e0::4",
    "10.1.2.3",
    "10.200.0.1",
    "192.168.7.9",
    "192.168.8.9",
    "8.8.8.8",
    "1.1.1.1",
    "169.254.1.1",
    "fd00:1:2::5",
    "fd00:1:3::5",
    "2001:4860::8888",
    "3fff::1",
];

fn users() -> Vec<PolicyUser> {
    let users = LOGINS.iter().enumerate();
    users
        .map(|(n, login)| PolicyUser {
            id: UserId(i64::try_from(n).unwrap() + 1),
            login: (*login).to_owned(),
            aliases: Vec::new(),
            groups: Vec::new(),
            role: [Role::Owner, Role::Auditor, Role::Member][n],
        })
        .collect()
}

type NodeParts = (Option<i64>, Vec<&'static str>, Vec<&'static str>, bool);

fn a_node() -> impl Strategy<Value = NodeParts> {
    (
        prop_oneof![4 => (1_i64..=3).prop_map(Some), 1 => Just(None)],
        prop_oneof![
            3 => Just(Vec::new()),
            2 => proptest::sample::subsequence(TAGS.to_vec(), 1..=2),
        ],
        prop_oneof![
            2 => Just(Vec::new()),
            2 => proptest::sample::subsequence(ROUTES.to_vec(), 1..=3),
        ],
        any::<bool>(),
    )
}

fn network() -> impl Strategy<Value = Vec<PolicyNode>> {
    proptest::collection::vec(a_node(), 1..=5).prop_map(|nodes| {
        let nodes = nodes.into_iter().enumerate();
        nodes
            .map(|(n, (user, tags, routes, linux))| {
                let n = i64::try_from(n).unwrap() + 1;
                PolicyNode {
                    id: NodeId(n),
                    user: user.map(UserId),
                    tags: tags.into_iter().map(str::to_owned).collect(),
                    addresses: vec![
                        format!("100.64.0.{n}").parse().unwrap(),
                        format!("fd7a:115c:a1e0::{n}").parse().unwrap(),
                    ],
                    routes: routes.iter().map(|route| route.parse().unwrap()).collect(),
                    attributes: Attributes(
                        [(
                            "node:os".to_owned(),
                            AttributeValue::Text(if linux { "linux" } else { "ios" }.to_owned()),
                        )]
                        .into(),
                    ),
                }
            })
            .collect()
    })
}

fn ports() -> impl Strategy<Value = &'static str> {
    select(vec!["*", "22", "80-90", "22,443", "1-65535"])
}

fn source() -> impl Strategy<Value = &'static str> {
    prop_oneof![
        6 => select(IDENTITIES.to_vec()),
        3 => select(NETS.to_vec()),
        2 => Just("*"),
        1 => Just("autogroup:danger-all"),
    ]
}

/// Sources that go with `autogroup:self`.
fn personal() -> impl Strategy<Value = &'static str> {
    select(vec![
        "alice@example.com",
        "group:dev",
        "user:*@example.com",
        "autogroup:member",
    ])
}

fn target() -> impl Strategy<Value = &'static str> {
    prop_oneof![
        6 => select(IDENTITIES.to_vec()),
        5 => select(NETS.to_vec()),
        2 => Just("*"),
        2 => Just("autogroup:internet"),
    ]
}

fn bracketed(host: &str) -> String {
    match host.split_once('/') {
        None if host.parse::<std::net::Ipv6Addr>().is_ok() => format!("[{host}]"),
        Some((address, length)) if address.contains(':') => format!("[{address}]/{length}"),
        _ => host.to_owned(),
    }
}

fn acl() -> impl Strategy<Value = serde_json::Value> {
    let protocol = select(vec!["", "tcp", "udp", "icmp", "gre", "ipv6-icmp", "132"]);
    let general = (
        proptest::collection::vec(source(), 1..=3),
        proptest::collection::vec((target(), ports()), 1..=3),
        protocol,
    );
    let general = general.prop_map(|(src, dst, proto)| {
        let has_ports = matches!(proto, "" | "tcp" | "udp" | "132");
        let dst: Vec<String> = dst
            .iter()
            .map(|(host, ports)| {
                let ports = if has_ports { ports } else { "*" };
                format!("{}:{ports}", bracketed(host))
            })
            .collect();
        json!({"action": "accept", "src": src, "dst": dst, "proto": proto})
    });
    let own = (
        proptest::collection::vec(personal(), 1..=2),
        target(),
        ports(),
        any::<bool>(),
    );
    let own = own.prop_map(|(src, other, ports, mixed)| {
        let mut dst = vec![format!("autogroup:self:{ports}")];
        if mixed {
            dst.push(format!("{}:*", bracketed(other)));
        }
        json!({"action": "accept", "src": src, "dst": dst})
    });
    prop_oneof![4 => general, 1 => own]
}

fn grant() -> impl Strategy<Value = serde_json::Value> {
    let ip = select(vec![
        "*",
        "22",
        "tcp:80-90",
        "udp:53",
        "icmp:*",
        "gre:*",
        "443",
    ]);
    let via = prop_oneof![
        3 => Just(Vec::new()),
        1 => proptest::sample::subsequence(TAGS.to_vec(), 1..=2),
    ];
    (
        proptest::collection::vec(source(), 1..=2),
        proptest::collection::vec(target(), 1..=2),
        proptest::collection::vec(ip, 1..=2),
        via,
    )
        .prop_map(|(src, dst, ip, via)| json!({"src": src, "dst": dst, "ip": ip, "via": via}))
}

fn policy() -> impl Strategy<Value = String> {
    (
        proptest::sample::subsequence(vec!["posture:linux"], 0..=1),
        proptest::option::weighted(0.9, proptest::collection::vec(acl(), 0..=4)),
        proptest::option::weighted(0.6, proptest::collection::vec(grant(), 0..=3)),
        proptest::sample::subsequence(LOGINS.to_vec(), 0..=3),
    )
        .prop_map(|(posture, acls, grants, dev)| {
            let mut file = json!({
                "groups": {"group:dev": dev, "group:empty": []},
                "hosts": {"office": "10.1.0.0/16", "printer": "192.168.7.9"},
                "ipsets": {
                    "ipset:mixed": ["100.64.0.2", "10.1.0.0-10.1.2.99", "8.8.8.0/24"],
                    "ipset:far": ["add 10.0.0.0/8", "remove office", "fd00:1:3::/48"],
                },
                "postures": {"posture:linux": ["node:os == 'linux'"]},
                "defaultSrcPosture": posture,
                "tagOwners": {"tag:web": [], "tag:db": [], "tag:router": []},
            });
            let members = file.as_object_mut().unwrap();
            members.extend(acls.map(|acls| ("acls".to_owned(), json!(acls))));
            members.extend(grants.map(|grants| ("grants".to_owned(), json!(grants))));
            serde_json::to_string_pretty(&file).unwrap()
        })
}

fn packet() -> impl Strategy<Value = Packet> {
    (
        select(PLACES.to_vec()),
        select(PLACES.to_vec()),
        select(vec![6_u8, 6, 6, 17, 1, 47, 132]),
        select(vec![22_u16, 80, 443, 53, 5432]),
    )
        .prop_map(|(source, destination, protocol, port)| {
            let source: IpAddr = source.parse().unwrap();
            let destination: IpAddr = destination.parse().unwrap();
            let protocol = match protocol {
                1 if source.is_ipv6() => 58,
                other => other,
            };
            Packet {
                source,
                destination,
                protocol,
                port: if matches!(protocol, 6 | 17 | 132) {
                    port
                } else {
                    0
                },
            }
        })
}

/// The packet as it comes out of the tunnel; `None` for mixed families.
fn bytes(packet: &Packet) -> Option<Vec<u8>> {
    let mut payload = vec![0_u8; 20];
    if matches!(packet.protocol, 6 | 17 | 132) {
        payload[..2].copy_from_slice(&40_000_u16.to_be_bytes());
        payload[2..4].copy_from_slice(&packet.port.to_be_bytes());
    }
    match packet.protocol {
        // A connection that opens.
        6 => (payload[12], payload[13]) = (0x50, 0x02),
        17 => payload[4..6].copy_from_slice(&20_u16.to_be_bytes()),
        1 => payload[0] = 8,
        58 => payload[0] = 128,
        _ => {}
    }
    let length = u16::try_from(payload.len()).unwrap();
    let mut out = match (packet.source, packet.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut head = vec![0x45, 0];
            head.extend((length + 20).to_be_bytes());
            head.extend([0, 0, 0, 0, 64, packet.protocol, 0, 0]);
            head.extend(source.octets());
            head.extend(destination.octets());
            head
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let mut head = vec![0x60, 0, 0, 0];
            head.extend(length.to_be_bytes());
            head.extend([packet.protocol, 64]);
            head.extend(source.octets());
            head.extend(destination.octets());
            head
        }
        _ => return None,
    };
    out.extend(payload);
    Some(out)
}

fn filter_of(policy: &Policy, nodes: &[PolicyNode], node: &PolicyNode) -> Filter {
    let rules = policy.compile(&users(), nodes).filter_for(node.id);
    let local = LocalSet::new(&LocalAddresses {
        addresses: &node.addresses,
        advertised: &node.routes,
        ..LocalAddresses::default()
    });
    let (filter, problems) = Filter::compile(&rules, local, &CapabilityHolders::new());
    assert!(problems.is_empty(), "{problems:?}");
    filter
}

/// Random policies can be wrong in ways the generator does not avoid, such as
/// `autogroup:self` beside a group of addresses; these are skipped.
fn parsed(text: &str) -> Option<Policy> {
    Policy::parse(text).ok()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn evaluator_filter_and_explanation_agree(
        text in policy(),
        nodes in network(),
        packets in proptest::collection::vec(packet(), 1..24),
    ) {
        let Some(policy) = parsed(&text) else {
            return Err(TestCaseError::reject("not a policy"));
        };
        let users = users();
        let (names, offered) = (BTreeMap::new(), BTreeMap::<NodeId, Vec<IpNet>>::new());
        let scene = PolicyContext {
            policy: &policy,
            text: &text,
            file: "policy.hujson",
            users: &users,
            nodes: &nodes,
            names: &names,
            offered: &offered,
        };
        let flows = FlowTable::with_slots(&mut FixedEntropy(0), 64);
        let filters: Vec<Filter> =
            nodes.iter().map(|node| filter_of(&policy, &nodes, node)).collect();
        for packet in packets {
            let Some(bytes) = bytes(&packet) else { continue };
            let parsed = IpPacket::parse(&bytes).unwrap();
            let mut let_in_somewhere = false;
            let owner = nodes.iter().find(|node| node.has_address(packet.destination));
            for (node, filter) in nodes.iter().zip(&filters) {
                let plain = evaluate(&policy, &users, &nodes, node.id, &packet);
                let compiled = filter.check_in(&flows, &parsed, 0).is_accept();
                prop_assert_eq!(
                    plain.allowed, compiled,
                    "{:?} at node {:?}\n{}", packet, node, text
                );
                prop_assert!(policy.is_allow_all() || plain.allowed != plain.by.is_empty());
                if owner.is_none_or(|owner| owner.id == node.id) {
                    let_in_somewhere |= plain.allowed;
                }
            }
            let question = Question {
                source: packet.source.to_string(),
                destination: packet.destination.to_string(),
                protocol: packet.protocol,
                port: packet.port,
            };
            let why = scene.why(&question).unwrap();
            prop_assert_eq!(why.answers.len(), 1);
            let answer = &why.answers[0];
            prop_assert_eq!(answer.allowed, let_in_somewhere, "{:?}\n{}", packet, text);
            prop_assert_eq!(
                answer.reasons.is_empty(),
                !answer.allowed || policy.is_allow_all(),
                "{}", why.text()
            );
            // Every quoted text is in the file.
            for reason in &answer.reasons {
                for place in [Some(&reason.rule), reason.source.entry.as_ref(), reason.destination.entry.as_ref()] {
                    let place = place.unwrap();
                    let line = text.lines().nth(place.line - 1).unwrap();
                    let there: String = line.chars().skip(place.column - 1).collect();
                    prop_assert!(there.starts_with(&place.text), "{place:?}: {there:?}");
                }
            }
            // An edit has the announced effect.
            for edit in &answer.edits {
                let edited = edit.apply(&text);
                let better = Policy::parse(&edited).unwrap();
                let works = nodes.iter().any(|node| {
                    evaluate(&better, &users, &nodes, node.id, &packet).allowed
                });
                prop_assert!(works, "{:?}\n{}", edit, edited);
                prop_assert!(edit.others < usize::MAX);
            }
            // Through an exit node only public addresses are reached.
            let reachable = owner.is_some()
                || answer.carriers.iter().any(|c| c.approved && c.route.prefix_len() != 0);
            let other = owner.is_none_or(|owner| !owner.has_address(packet.source));
            // No edit gives a machine a posture or removes the requirement.
            let posed = text.contains("\"defaultSrcPosture\": []")
                || nodes.iter().all(|node| {
                    node.attributes.get("node:os") == Some(&AttributeValue::Text("linux".into()))
                });
            if !answer.allowed && !policy.is_allow_all() && reachable && other && posed {
                let fit = filters.iter().zip(&nodes).any(|(filter, node)| {
                    owner.is_none_or(|owner| owner.id == node.id)
                        && filter.local().contains(packet.destination)
                });
                prop_assert!(
                    !fit || !answer.edits.is_empty(),
                    "no edit for {:?}\n{}\n{}", packet, why.text(), text
                );
            }
            prop_assert!(!why.text().is_empty() && why.json().is_object());
        }
    }

    #[test]
    fn diff_lists_exactly_the_changed_access(
        before in policy(),
        after in policy(),
        nodes in network(),
        packets in proptest::collection::vec(packet(), 1..24),
    ) {
        let (Some(old), Some(new)) = (parsed(&before), parsed(&after)) else {
            return Err(TestCaseError::reject("not a policy"));
        };
        let users = users();
        let (names, offered) = (BTreeMap::new(), BTreeMap::new());
        let old_scene = PolicyContext {
            policy: &old,
            text: &before,
            file: "old",
            users: &users,
            nodes: &nodes,
            names: &names,
            offered: &offered,
        };
        let new_scene = PolicyContext { policy: &new, text: &after, file: "new", ..old_scene.clone() };
        let forth = old_scene.diff(&new_scene);
        let back = new_scene.diff(&old_scene);
        prop_assert_eq!(forth.pairs_gained(), back.pairs_lost());
        prop_assert_eq!(forth.pairs_lost(), back.pairs_gained());
        let same = old_scene.diff(&old_scene);
        prop_assert!(same.is_empty(), "{}", same.text());
        prop_assert_eq!(forth.gained.is_empty(), forth.pairs_gained() == 0);
        // Access that a packet between two machines gains or loses is in the
        // diff.
        for packet in packets {
            let owner = |address: IpAddr| nodes.iter().find(|node| node.has_address(address));
            let (Some(from), Some(to)) = (owner(packet.source), owner(packet.destination)) else {
                continue;
            };
            if from.id == to.id || !matches!(packet.protocol, 6 | 17) {
                continue;
            }
            let allowed = |policy: &Policy| {
                evaluate(policy, &users, &nodes, to.id, &packet).allowed
            };
            match (allowed(&old), allowed(&new)) {
                (false, true) => prop_assert!(
                    !forth.gained.is_empty(), "{:?}\n{}\n{}", packet, before, after
                ),
                (true, false) => prop_assert!(
                    !forth.lost.is_empty(), "{:?}\n{}\n{}", packet, before, after
                ),
                _ => {}
            }
        }
    }
}

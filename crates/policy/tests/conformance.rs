//! Our answers beside recorded ones of the hosted service.
//!
//! The folder is `$WARREN_CONFORMANCE`, else `../shared/conformance` beside the
//! workspace; without one the test says so and passes. Every case that lies
//! there is taken and none is known by name. Per folder the count is printed,
//! and each case that differs with its first difference
//! (`cargo test -p warren-policy --test conformance -- --nocapture`).

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;
use warren_control_types::{FilterRule, NodeId, UserId};
use warren_policy::{Attributes, Compiled, Policy, PolicyNode, PolicyUser, Role};

/// Percent of a folder's cases that must pass: what was reached before. Only
/// ever raised.
const FLOORS: [(&str, usize); 5] = [
    ("acl_results", 95),
    ("grant_results", 95),
    ("issue_3212", 100),
    ("policytest_results", 90),
    ("routes_results", 95),
];

#[derive(Deserialize)]
struct Case {
    id: String,
    policy: String,
    users: Vec<CaseUser>,
    nodes: BTreeMap<String, CaseNode>,
    expect: Expect,
    #[serde(default)]
    captures: BTreeMap<String, Capture>,
}

#[derive(Deserialize)]
struct CaseUser {
    id: i64,
    name: String,
    email: String,
}

#[derive(Deserialize)]
struct CaseNode {
    ipv4: String,
    ipv6: String,
    tags: Vec<String>,
    approved_routes: Vec<IpNet>,
    user: Option<String>,
    created_rank: Option<i64>,
}

#[derive(Deserialize)]
struct Expect {
    status: u16,
    message: Option<String>,
}

#[derive(Deserialize)]
struct Capture {
    #[serde(default)]
    filter: Option<Vec<FilterRule>>,
    peers: BTreeMap<String, Peer>,
    #[serde(default)]
    ssh: Option<Value>,
}

#[derive(Deserialize)]
struct Peer {
    #[serde(rename = "AllowedIPs")]
    allowed_ips: Vec<IpNet>,
}

#[test]
fn conformance() {
    let root = std::env::var_os("WARREN_CONFORMANCE").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/conformance"),
        PathBuf::from,
    );
    let root = root.join("policy");
    let Ok(entries) = std::fs::read_dir(&root) else {
        println!("SKIPPED: no conformance cases at {}", root.display());
        return;
    };
    let mut folders: Vec<PathBuf> = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir())
        .collect();
    folders.sort();
    let mut below = Vec::new();
    for folder in folders {
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let (passed, total) = run_folder(&name, &folder);
        let floor = FLOORS.iter().find(|(folder, _)| *folder == name);
        if let Some((_, percent)) = floor
            && passed * 100 < total * percent
        {
            below.push(format!("{name}: {passed} of {total}, floor {percent} %"));
        }
    }
    assert!(below.is_empty(), "fewer cases pass than before: {below:?}");
}

fn run_folder(name: &str, folder: &Path) -> (usize, usize) {
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ext| ext == "json"))
        .collect();
    files.sort();
    let mut failures = Vec::new();
    for file in &files {
        let text = std::fs::read_to_string(file).unwrap();
        match serde_json::from_str::<Case>(&text) {
            Ok(case) => {
                if let Err(difference) = check(&case) {
                    failures.push(format!("  {}: {difference}", case.id));
                }
            }
            Err(error) => failures.push(format!("  {}: unreadable: {error}", file.display())),
        }
    }
    let passed = files.len() - failures.len();
    println!("{name}: passed {passed} of {}", files.len());
    for failure in failures {
        println!("{failure}");
    }
    (passed, files.len())
}

/// The tailnet of a case in our terms.
struct Tailnet {
    users: Vec<PolicyUser>,
    nodes: Vec<PolicyNode>,
    names: BTreeMap<NodeId, String>,
}

impl Tailnet {
    fn new(case: &Case) -> Self {
        let users = case.users.iter().map(|user| PolicyUser {
            id: UserId(user.id),
            login: user.email.clone(),
            aliases: vec![user.name.clone()],
            role: Role::Member,
        });
        // Older nodes have lower ids, as on a server.
        let mut order: Vec<(&String, &CaseNode)> = case.nodes.iter().collect();
        order.sort_by_key(|(name, node)| (node.created_rank.unwrap_or(i64::MAX), *name));
        let (mut nodes, mut names) = (Vec::new(), BTreeMap::new());
        for (id, (name, node)) in (1..).map(NodeId).zip(order) {
            names.insert(id, name.clone());
            let owner = case
                .users
                .iter()
                .find(|user| Some(&user.name) == node.user.as_ref());
            nodes.push(PolicyNode {
                id,
                user: owner.map(|user| UserId(user.id)),
                tags: node.tags.clone(),
                addresses: vec![node.ipv4.parse().unwrap(), node.ipv6.parse().unwrap()],
                routes: node.approved_routes.clone(),
                attributes: Attributes::default(),
            });
        }
        Self {
            users: users.collect(),
            nodes,
            names,
        }
    }

    /// The routes of which `node` is the primary router: the oldest has it.
    fn primary(&self, node: &PolicyNode) -> Vec<IpNet> {
        let first = |route: &IpNet| {
            let router = self.nodes.iter().find(|other| other.routes.contains(route));
            router.map(|router| router.id) == Some(node.id)
        };
        node.subnet_routes().filter(|r| first(r)).copied().collect()
    }
}

fn check(case: &Case) -> Result<(), String> {
    let tailnet = Tailnet::new(case);
    let mut problems: Vec<String> = Vec::new();
    let policy = match Policy::parse(&case.policy) {
        Ok(policy) => {
            let failed = policy.run_tests(&tailnet.users, &tailnet.nodes);
            problems.extend(failed.iter().map(|test| format!("test(s) failed: {test}")));
            Some(policy)
        }
        Err(found) => {
            problems.extend(found.iter().map(ToString::to_string));
            None
        }
    };
    match (case.expect.status, policy) {
        (200, Some(policy)) if problems.is_empty() => {
            let compiled = policy.compile(&tailnet.users, &tailnet.nodes);
            for (name, capture) in &case.captures {
                check_node(&tailnet, &compiled, name, capture)
                    .map_err(|difference| format!("{name}: {difference}"))?;
            }
            Ok(())
        }
        (200, _) => Err(format!("refused, should be taken: {problems:?}")),
        (_, _) if problems.is_empty() => Err(format!("taken, expected {:?}", case.expect.message)),
        (_, _) => match &case.expect.message {
            Some(wanted) if !problems.iter().any(|problem| problem.contains(wanted)) => {
                Err(format!("expected message {wanted:?}, got {problems:?}"))
            }
            _ => Ok(()),
        },
    }
}

fn check_node(
    tailnet: &Tailnet,
    compiled: &Compiled,
    name: &str,
    capture: &Capture,
) -> Result<(), String> {
    let node = tailnet
        .nodes
        .iter()
        .find(|node| tailnet.names[&node.id] == name)
        .ok_or("captured node is not among the nodes")?;
    let ours: Vec<Value> = compiled.filter_for(node.id).iter().map(canonical).collect();
    let theirs: Vec<Value> = capture.filter.iter().flatten().map(canonical).collect();
    if ours != theirs {
        return Err(format!(
            "filter\n      ours   {}\n      theirs {}",
            json(&ours),
            json(&theirs)
        ));
    }
    let ours: BTreeSet<&str> = compiled
        .peers_of(node.id)
        .iter()
        .map(|peer| tailnet.names[peer].as_str())
        .collect();
    let theirs: BTreeSet<&str> = capture.peers.keys().map(String::as_str).collect();
    if ours != theirs {
        return Err(format!("peers {ours:?}, expected {theirs:?}"));
    }
    for (peer_name, expected) in &capture.peers {
        let peer = tailnet
            .nodes
            .iter()
            .find(|node| tailnet.names[&node.id] == *peer_name)
            .ok_or("captured peer is not among the nodes")?;
        let primary = tailnet.primary(peer);
        let own = peer.addresses.iter().map(|a| IpNet::from(*a));
        let ours: BTreeSet<IpNet> = own
            .chain(compiled.routes_for(node.id, peer.id, &primary))
            .collect();
        let theirs: BTreeSet<IpNet> = expected.allowed_ips.iter().copied().collect();
        if ours != theirs {
            return Err(format!(
                "AllowedIPs of {peer_name} {ours:?}, expected {theirs:?}"
            ));
        }
    }
    let ssh_rules = capture.ssh.as_ref().and_then(|ssh| ssh.get("rules"));
    if ssh_rules
        .and_then(Value::as_array)
        .is_some_and(|rules| !rules.is_empty())
    {
        return Err("SSH policy is not compiled".to_owned());
    }
    Ok(())
}

/// A rule with its lists in one order: the service's own varies.
fn canonical(rule: &FilterRule) -> Value {
    let mut value = serde_json::to_value(rule).unwrap();
    for key in ["SrcIPs", "DstPorts"] {
        if let Some(list) = value.get_mut(key).and_then(Value::as_array_mut) {
            list.sort_by_key(Value::to_string);
        }
    }
    for grant in value
        .get_mut("CapGrant")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
    {
        if let Some(list) = grant.get_mut("Dsts").and_then(Value::as_array_mut) {
            list.sort_by_key(Value::to_string);
        }
    }
    value
}

fn json(rules: &[Value]) -> String {
    serde_json::to_string(rules).unwrap()
}

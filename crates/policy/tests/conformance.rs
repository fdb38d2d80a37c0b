//! Compares our answers with recorded ones of the hosted service.
//!
//! The folder is `$WARREN_CONFORMANCE`, else `../shared/conformance` beside the
//! workspace; without one the test prints `SKIPPED` and passes. Every case in
//! the folder is run and none is known by name. Per folder the count is
//! printed, and each case that differs with its first difference (`cargo test
//! -p warren-policy --test conformance -- --nocapture`). One different case
//! fails the test.
//!
//! Filters and SSH policies are compared as they are on the wire, with the order
//! of every list. Flaws of the recordings are corrected before the comparison:
//! see [`are_addresses_rewritten`], and with a printed note
//! [`Tailnet::unowned_addresses`] and [`Tailnet::routes_in_transition`].

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::{Value, json};
use warren_control_types::{CapMap, FilterRule, NodeId, SshPolicy, UserId};
use warren_policy::{
    Attributes, Compiled, Context, HostedTailnet, Policy, PolicyNode, PolicyUser, Role,
    RouterService, SshRules,
};

/// The login domain of the recorded tailnets.
const DOMAIN: &str = "example.com";

/// The user who owns them; the others are admins.
const OWNER: &str = "odin";

#[derive(Deserialize)]
struct Case {
    id: String,
    policy: String,
    users: Vec<CaseUser>,
    nodes: BTreeMap<String, CaseNode>,
    expect: Expect,
    #[serde(default)]
    captures: BTreeMap<String, Capture>,
    #[serde(default)]
    tailnet: Settings,
}

#[derive(Deserialize, Default)]
struct Settings {
    #[serde(default)]
    settings: BTreeMap<String, Value>,
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
    #[serde(default)]
    routable_ips: Vec<IpNet>,
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
    #[serde(rename = "self")]
    own: Seen,
    peers: BTreeMap<String, Seen>,
    #[serde(default)]
    ssh: Option<Value>,
}

/// A node as it appears in a recorded netmap.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Seen {
    addresses: Option<Vec<IpNet>>,
    #[serde(rename = "AllowedIPs")]
    allowed_ips: Vec<IpNet>,
    #[serde(default)]
    primary_routes: Option<Vec<IpNet>>,
    #[serde(default)]
    cap_map: Option<CapMap>,
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
    let mut differ = Vec::new();
    for folder in folders {
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let (passed, total) = run_folder(&name, &folder);
        if passed < total {
            differ.push(format!("{name}: {} of {total}", total - passed));
        }
    }
    assert!(differ.is_empty(), "cases differ: {differ:?}");
}

fn run_folder(name: &str, folder: &Path) -> (usize, usize) {
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ext| ext == "json"))
        .collect();
    files.sort();
    let (mut failures, mut notes) = (Vec::new(), Vec::new());
    for file in &files {
        let text = std::fs::read_to_string(file).unwrap();
        match serde_json::from_str::<Case>(&text) {
            Ok(case) => {
                if let Err(difference) = check(name, &case, &mut notes) {
                    failures.push(format!("  {}: {difference}", case.id));
                }
            }
            Err(error) => failures.push(format!("  {}: unreadable: {error}", file.display())),
        }
    }
    let passed = files.len() - failures.len();
    println!("{name}: passed {passed} of {}", files.len());
    for line in notes.iter().chain(&failures) {
        println!("{line}");
    }
    (passed, files.len())
}

/// Whether the anonymiser gave every node the addresses `100.64.0.n` and
/// `fd7a:115c:a1e0::n`. The service sorted the original addresses, so the order
/// of addresses says nothing in such a recording.
fn are_addresses_rewritten(case: &Case) -> bool {
    case.nodes.values().all(|node| {
        let v4: Ipv4Addr = node.ipv4.parse().unwrap();
        let v6: Ipv6Addr = node.ipv6.parse().unwrap();
        let expected = Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, v4.octets()[3].into());
        v4.octets()[..3] == [100, 64, 0] && v6 == expected
    })
}

/// The tailnet of a case in our terms.
struct Tailnet {
    users: Vec<PolicyUser>,
    nodes: Vec<PolicyNode>,
    names: BTreeMap<NodeId, String>,
    /// See [`Self::unowned_addresses`]: recorded address and its replacement.
    stand_ins: BTreeMap<IpAddr, IpAddr>,
}

impl Tailnet {
    fn new(case: &Case) -> Self {
        let users = case.users.iter().map(|user| PolicyUser {
            id: UserId(user.id),
            login: user.email.clone(),
            aliases: vec![user.name.clone()],
            groups: Vec::new(),
            role: if user.name == OWNER {
                Role::Owner
            } else {
                Role::Admin
            },
        });
        let stand_ins = Self::unowned_addresses(case);
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
            let addresses = [&node.ipv4, &node.ipv6].map(|address| address.parse().unwrap());
            nodes.push(PolicyNode {
                id,
                user: owner.map(|user| UserId(user.id)),
                tags: node.tags.clone(),
                addresses: addresses
                    .map(|address| *stand_ins.get(&address).unwrap_or(&address))
                    .to_vec(),
                routes: node.approved_routes.clone(),
                attributes: Attributes::default(),
            });
        }
        Self {
            users: users.collect(),
            nodes,
            names,
            stand_ins,
        }
    }

    /// IPv6 addresses that nodes got from the anonymiser and that also appear
    /// in the policy.
    ///
    /// IPv4 addresses in policies were rewritten along with those of nodes, IPv6
    /// ones were not: for the recorded service such an address belongs to no
    /// node (a grant to it reaches no node). So the node gets another one here.
    fn unowned_addresses(case: &Case) -> BTreeMap<IpAddr, IpAddr> {
        if !are_addresses_rewritten(case) {
            return BTreeMap::new();
        }
        let is_part = |c: char| !(c.is_ascii_hexdigit() || c == ':');
        let written: BTreeSet<Ipv6Addr> = case
            .policy
            .split(is_part)
            .filter_map(|word| word.parse().ok())
            .collect();
        let nodes = case.nodes.values();
        let v6 = nodes.map(|node| node.ipv6.parse::<Ipv6Addr>().unwrap());
        v6.filter(|address| written.contains(address))
            .map(|address| {
                let other = Ipv6Addr::from_bits(address.to_bits() | 0xffff_0000);
                (address.into(), other.into())
            })
            .collect()
    }

    /// The replacement of a recorded address.
    fn here(&self, recorded: IpNet) -> IpNet {
        match self.stand_ins.get(&recorded.addr()) {
            Some(other) if recorded.prefix_len() == recorded.max_prefix_len() => {
                IpNet::from(*other)
            }
            _ => recorded,
        }
    }

    /// Subnet routes that were on their way in or out while the case was
    /// recorded: a viewer has them behind the peer, but neither the case nor
    /// the peer's own recording knows them as approved.
    fn routes_in_transition(case: &Case, peer: &str, seen: &Seen) -> BTreeSet<IpNet> {
        let own = case.captures.get(peer).map(|capture| &capture.own);
        let known = |route: &IpNet| {
            case.nodes[peer].approved_routes.contains(route)
                || own.is_none_or(|own| own.allowed_ips.contains(route))
        };
        let routes = seen.primary_routes.iter().flatten();
        routes.filter(|route| !known(route)).copied().collect()
    }

    fn node(&self, name: &str) -> Result<&PolicyNode, String> {
        let mut nodes = self.nodes.iter();
        nodes
            .find(|node| self.names[&node.id] == name)
            .ok_or_else(|| format!("captured node {name} is not among the nodes"))
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

fn check(folder: &str, case: &Case, notes: &mut Vec<String>) -> Result<(), String> {
    let tailnet = Tailnet::new(case);
    if !tailnet.stand_ins.is_empty() {
        notes.push(format!(
            "  note: {}: in the policy, but of no node when it was recorded: {:?}",
            case.id,
            tailnet.stand_ins.keys()
        ));
    }
    let context = Context {
        domains: Some([DOMAIN.to_owned()].into()),
    };
    let mut problems: Vec<String> = Vec::new();
    let policy = match Policy::parse_bytes(case.policy.as_bytes(), &context) {
        Ok(policy) => {
            let failed = policy.run_tests(&tailnet.users, &tailnet.nodes);
            problems.extend(failed.iter().map(|test| format!("test(s) failed: {test}")));
            let failed = policy.run_ssh_tests(&tailnet.users, &tailnet.nodes);
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
            if folder == "routes_results" {
                check_approvers(case, &tailnet, &policy)?;
            }
            let answers = Answers {
                case,
                tailnet: &tailnet,
                policy: &policy,
                compiled: policy.compile(&tailnet.users, &tailnet.nodes),
                ssh: policy.compile_ssh(&tailnet.users, &tailnet.nodes),
            };
            for (name, capture) in &case.captures {
                answers
                    .check_node(name, capture, notes)
                    .map_err(|difference| format!("{name}: {difference}"))?;
            }
            Ok(())
        }
        (200, _) => Err(format!("refused, should be taken: {problems:?}")),
        (_, _) if problems.is_empty() => Err(format!("taken, expected {:?}", case.expect.message)),
        // For refused nodeAttrs only the refusal is compared.
        (_, _) if folder == "nodeattrs_results" => Ok(()),
        (_, _) => match &case.expect.message {
            Some(wanted) if !problems.iter().any(|problem| problem.contains(wanted)) => {
                Err(format!("expected message {wanted:?}, got {problems:?}"))
            }
            _ => Ok(()),
        },
    }
}

/// Capabilities of features that are not claimed: services with addresses of
/// their own, lifetimes of keys.
const NOT_CLAIMED: [&str; 3] = ["service-host", "native-ipv4", "tailnet.maxKeyDuration"];

/// Every advertised route is approved by the policy exactly if the service
/// approved it.
fn check_approvers(case: &Case, tailnet: &Tailnet, policy: &Policy) -> Result<(), String> {
    for (name, node) in &case.nodes {
        let ours = tailnet.node(name)?;
        for route in &node.routable_ips {
            let verdict = policy.approves_route(&tailnet.users, ours, *route);
            let approved = node.approved_routes.contains(route);
            if verdict != approved {
                return Err(format!(
                    "{name}: {route} approved {verdict}, expected {approved}"
                ));
            }
        }
    }
    Ok(())
}

/// Our side of a case.
struct Answers<'a> {
    case: &'a Case,
    tailnet: &'a Tailnet,
    policy: &'a Policy,
    compiled: Compiled,
    ssh: SshRules,
}

impl Answers<'_> {
    fn check_node(
        &self,
        name: &str,
        capture: &Capture,
        notes: &mut Vec<String>,
    ) -> Result<(), String> {
        let (tailnet, compiled) = (self.tailnet, &self.compiled);
        let node = tailnet.node(name)?;
        let sort = are_addresses_rewritten(self.case);
        let ours = rules_value(&compiled.filter_for(node.id), sort);
        let theirs = rules_value(capture.filter.as_deref().unwrap_or_default(), sort);
        equal("filter", &ours, &theirs)?;

        let ours: BTreeSet<&str> = compiled
            .peers_of(node.id)
            .iter()
            .map(|peer| tailnet.names[peer].as_str())
            .collect();
        let theirs: BTreeSet<&str> = capture.peers.keys().map(String::as_str).collect();
        if ours != theirs {
            return Err(format!("peers {ours:?}, expected {theirs:?}"));
        }
        self.check_self(node, &capture.own)?;
        for (peer_name, seen) in &capture.peers {
            let routes_in_transition = Tailnet::routes_in_transition(self.case, peer_name, seen);
            if !routes_in_transition.is_empty() {
                notes.push(format!(
                    "  note: {}: {name} has {routes_in_transition:?} behind {peer_name}, which {peer_name} itself has not",
                    self.case.id
                ));
            }
            self.check_peer(node, peer_name, seen, &routes_in_transition)
                .map_err(|difference| format!("peer {peer_name}: {difference}"))?;
        }
        let ours = serde_json::to_value(self.ssh.policy_for(node.id, "https://unused")).unwrap();
        let theirs = capture.ssh.clone().unwrap_or(json!([]));
        let theirs: SshPolicy = serde_json::from_value(json!({ "rules": theirs })).unwrap();
        let theirs = serde_json::to_value(theirs).unwrap();
        equal(
            "ssh",
            &logins_value(ours, sort),
            &logins_value(theirs, sort),
        )
    }

    fn check_self(&self, node: &PolicyNode, seen: &Seen) -> Result<(), String> {
        let primary = self.tailnet.primary(node);
        let all: Vec<IpNet> = node.routes.clone();
        self.check_addresses([node, node], &all, &primary, seen, &BTreeSet::new())?;
        let Some(theirs) = &seen.cap_map else {
            return Ok(());
        };
        let hosted = HostedTailnet {
            display_name: &format!("{OWNER}@{DOMAIN}"),
            // Older recordings do not have it.
            auto_update: theirs.has("default-auto-update").then(|| {
                let settings = &self.case.tailnet.settings;
                let on = settings.get("devices_auto_updates_on");
                on.and_then(Value::as_bool).unwrap_or(false)
            }),
            https: (self.case.tailnet.settings.iter())
                .any(|(name, value)| name.contains("https") && *value == Value::Bool(true)),
        };
        let users = &self.tailnet.users;
        let mut ours = self.policy.hosted_baseline(users, node, &hosted);
        ours.extend(self.policy.node_attributes(users, node).0);
        let mut theirs = theirs.clone();
        for name in NOT_CLAIMED {
            ours.remove(name);
            theirs.remove(name);
        }
        equal("self CapMap", &value(&ours), &value(&theirs))
    }

    fn check_peer(
        &self,
        viewer: &PolicyNode,
        peer: &str,
        seen: &Seen,
        routes_in_transition: &BTreeSet<IpNet>,
    ) -> Result<(), String> {
        let peer = self.tailnet.node(peer)?;
        let primary = self.tailnet.primary(peer);
        let routes = self
            .compiled
            .routes_for(viewer.id, peer.id, &primary, &|_| RouterService::Good);
        let primary: Vec<IpNet> = routes
            .iter()
            .copied()
            .filter(|r| r.prefix_len() > 0)
            .collect();
        self.check_addresses(
            [viewer, peer],
            &routes,
            &primary,
            seen,
            routes_in_transition,
        )?;
        let theirs = seen.cap_map.clone().unwrap_or_default();
        equal(
            "CapMap",
            &value(&self.policy.peer_attributes(peer)),
            &value(&theirs),
        )
    }

    fn check_addresses(
        &self,
        [viewer, node]: [&PolicyNode; 2],
        routes: &[IpNet],
        primary: &[IpNet],
        seen: &Seen,
        routes_in_transition: &BTreeSet<IpNet>,
    ) -> Result<(), String> {
        let disables = |node| self.policy.disables_ipv4(&self.tailnet.users, node);
        let only_v6 = disables(viewer) || disables(node);
        let own = node.addresses.iter().filter(|a| a.is_ipv6() || !only_v6);
        let own: BTreeSet<IpNet> = own.map(|a| IpNet::from(*a)).collect();
        let theirs = |recorded: &[IpNet]| -> BTreeSet<IpNet> {
            let settled = recorded
                .iter()
                .filter(|net| !routes_in_transition.contains(net));
            settled.map(|net| self.tailnet.here(*net)).collect()
        };
        let allowed: BTreeSet<IpNet> = own.iter().chain(routes).copied().collect();
        let primary: BTreeSet<IpNet> = primary.iter().copied().collect();
        let seen_primary = seen.primary_routes.clone().unwrap_or_default();
        for (what, ours, theirs) in [
            ("Addresses", &own, seen.addresses.as_deref().map(theirs)),
            ("AllowedIPs", &allowed, Some(theirs(&seen.allowed_ips))),
            ("PrimaryRoutes", &primary, Some(theirs(&seen_primary))),
        ] {
            if theirs.as_ref().is_some_and(|theirs| theirs != ours) {
                return Err(format!("{what} {ours:?}, expected {theirs:?}"));
            }
        }
        Ok(())
    }
}

fn value(map: &CapMap) -> Value {
    serde_json::to_value(map).unwrap()
}

fn equal(what: &str, ours: &Value, theirs: &Value) -> Result<(), String> {
    if ours == theirs {
        return Ok(());
    }
    Err(format!(
        "{what}\n      ours   {ours}\n      theirs {theirs}"
    ))
}

/// The rules as on the wire; their sources sorted if `sort` is set.
fn rules_value(rules: &[FilterRule], sort: bool) -> Value {
    let mut rules = rules.to_vec();
    for rule in rules.iter_mut().filter(|_| sort) {
        rule.src_ips.sort_unstable();
    }
    serde_json::to_value(rules).unwrap()
}

/// An SSH policy without the address of the server; the principals sorted if
/// `sort` is set.
fn logins_value(mut policy: Value, sort: bool) -> Value {
    for rule in policy["rules"].as_array_mut().into_iter().flatten() {
        let principals = rule.get_mut("principals").and_then(Value::as_array_mut);
        if let Some(list) = principals.filter(|_| sort) {
            list.sort_by_key(Value::to_string);
        }
        if let Some(url) = rule["action"].get_mut("holdAndDelegate") {
            let text = url.as_str().unwrap_or_default();
            let path = text.splitn(4, '/').nth(3).unwrap_or_default().to_owned();
            *url = path.into();
        }
    }
    policy
}

//! The cost of a policy for the control server: 1,000 rules and 10,000 nodes,
//! parsed, compiled, and changed incrementally. Run by `bench/policy`.
//!
//! Times are the median of several rounds and the worst of them: a change may
//! be cheap for one node and expensive for another. Memory is the sum of
//! requested allocations.

#![allow(clippy::unwrap_used)]
// The table is what this program is for.
#![allow(clippy::print_stdout)]
// The allocator counts bytes and forwards to the system.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::fmt::Write as _;
use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use warren_control_types::{NodeId, UserId};
use warren_policy::{Attributes, Compiled, Impact, Policy, PolicyNode, PolicyUser, Role};
use warren_testkit::SeededEntropy;

/// Bytes that are allocated now.
static HELD: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        HELD.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: as asked of this function.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as asked of this function.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const RULES: usize = 1_000;
const NODES: usize = 10_000;
/// People have two machines each; the rest is tagged.
const USERS: usize = 3_500;
const GROUPS: usize = 100;
const TAGS: usize = 150;
/// Of the tagged nodes.
const ROUTERS: usize = 300;
const ROUNDS: usize = 25;

/// A number below `limit`.
fn below(random: &mut SeededEntropy, limit: usize) -> usize {
    random.below(limit.max(1) as u64) as usize
}

fn users() -> Vec<PolicyUser> {
    (0..USERS)
        .map(|n| PolicyUser {
            id: UserId(n as i64 + 1),
            login: format!("user{n}@example.com"),
            aliases: Vec::new(),
            groups: Vec::new(),
            role: if n < 5 { Role::Admin } else { Role::Member },
        })
        .collect()
}

fn node(n: usize) -> PolicyNode {
    let mut attributes = Attributes::default();
    let os = ["linux", "macos", "windows", "ios"][n % 4];
    attributes.set_text("node:os", os);
    let tagged = n.checked_sub(2 * USERS);
    PolicyNode {
        id: NodeId(n as i64 + 1),
        user: (tagged.is_none()).then_some(UserId((n % USERS) as i64 + 1)),
        tags: tagged
            .map(|n| format!("tag:t{}", n % TAGS))
            .into_iter()
            .collect(),
        addresses: vec![
            format!("100.{}.{}.{}", 64 + n / 65_536, n / 256 % 256, n % 256)
                .parse()
                .unwrap(),
            format!("fd7a:115c:a1e0::{n:x}").parse().unwrap(),
        ],
        routes: match tagged {
            Some(n) if n < ROUTERS => {
                vec![format!("10.{}.{}.0/24", n / 250, n % 250).parse().unwrap()]
            }
            Some(n) if n < ROUTERS + 20 => {
                vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()]
            }
            _ => Vec::new(),
        },
        attributes,
    }
}

/// The file; `port` is one of those that its 500th rule opens.
fn file(port: u16) -> String {
    let mut random = SeededEntropy(1);
    let mut text = String::from("{\n  \"groups\": {\n");
    for n in 0..GROUPS {
        let members: Vec<String> = (0..20 + below(&mut random, 60))
            .map(|_| format!("\"user{}@example.com\"", below(&mut random, USERS)))
            .collect();
        let _ = writeln!(text, "    \"group:g{n}\": [{}],", members.join(", "));
    }
    text += "  },\n  \"hosts\": {\n";
    for n in 0..200 {
        let _ = writeln!(
            text,
            "    \"host{n}\": \"10.{}.{}.{}\",",
            n / 250,
            n % 250,
            n + 1
        );
    }
    text += "  },\n  \"tagOwners\": {\n";
    for n in 0..TAGS {
        let _ = writeln!(text, "    \"tag:t{n}\": [\"group:g{}\"],", n % GROUPS);
    }
    text += "  },\n  \"postures\": {\"posture:desk\": [\"node:os IN ['linux', 'macos', 'windows']\"]},\n";
    text += "  \"grants\": [\n";
    for n in 0..RULES {
        let mut group = || format!("group:g{}", below(&mut random, GROUPS));
        let (a, b) = (group(), group());
        let mut tag = || format!("tag:t{}", below(&mut random, TAGS));
        let (t, u) = (tag(), tag());
        let ports = if n == 500 {
            port
        } else {
            1 + (n * 7 % 9_000) as u16
        };
        let person = below(&mut random, USERS);
        let other = below(&mut random, 250);
        let rule = match n % 20 {
            0..=7 => format!(r#""src": ["{a}"], "dst": ["{t}", "{u}"], "ip": ["tcp:{ports}"]"#),
            8..=9 => format!(
                r#""src": ["{a}", "{b}"], "dst": ["host{}"], "ip": ["*"]"#,
                other % 200
            ),
            10..=11 => format!(r#""src": ["{t}"], "dst": ["{u}"], "ip": ["tcp:{ports}"]"#),
            12 => format!(r#""src": ["user{person}@example.com"], "dst": ["{t}"], "ip": ["22"]"#),
            13 => format!(r#""src": ["{a}"], "dst": ["10.0.{other}.0/24"], "ip": ["443"]"#),
            14 => format!(r#""src": ["10.0.{other}.0/24"], "dst": ["{t}"], "ip": ["udp:53"]"#),
            15 => format!(
                r#""src": ["{a}"], "dst": ["{t}"], "app": {{"example.com/cap/x": [{{"n": {n}}}]}}"#
            ),
            16 => format!(
                r#""src": ["{a}"], "dst": ["{t}"], "ip": ["{ports}"], "srcPosture": ["posture:desk"]"#
            ),
            17 => format!(
                r#""src": ["{a}"], "dst": ["10.0.{other}.0/24"], "ip": ["*"], "via": ["tag:t{}"]"#,
                other % TAGS
            ),
            18 => format!(r#""src": ["{a}"], "dst": ["autogroup:self"], "ip": ["{ports}"]"#),
            _ if n < 100 => {
                r#""src": ["autogroup:member"], "dst": ["tag:t0"], "ip": ["80", "443"]"#.to_owned()
            }
            _ => format!(r#""src": ["{a}"], "dst": ["autogroup:internet"], "ip": ["tcp:{ports}"]"#),
        };
        let _ = writeln!(text, "    {{{rule}}},");
    }
    text += "  ],\n}\n";
    text
}

fn figure(what: &str, mut times: Vec<Duration>, note: &str) {
    times.sort_unstable();
    let ms = |time: Option<&Duration>| time.map_or(0.0, |time| time.as_secs_f64() * 1e3);
    let (median, worst) = (ms(times.get(times.len() / 2)), ms(times.last()));
    println!("{what:<40} {median:>10.3} {worst:>10.3}   {note}");
}

fn timed<T>(work: impl FnOnce() -> T) -> (Duration, T) {
    let start = Instant::now();
    let out = work();
    (start.elapsed(), black_box(out))
}

/// Does a change and takes it back, for several nodes; both are measured.
fn change(
    what: &str,
    compiled: &mut Compiled,
    mut one: impl FnMut(&mut Compiled, usize, bool) -> Impact,
) {
    let mut times = Vec::new();
    let mut most = [0; 3];
    for round in 0..ROUNDS {
        let n = round * NODES / ROUNDS;
        for there in [true, false] {
            let (time, impact) = timed(|| one(compiled, n, there));
            times.push(time);
            let sizes = [&impact.filters, &impact.peers, &impact.routes];
            for (most, set) in most.iter_mut().zip(sizes) {
                *most = (*most).max(set.len());
            }
        }
    }
    let [filters, peers, routes] = most;
    let note = format!("at most {filters} filters, {peers} views, {routes} viewers' routes");
    figure(what, times, &note);
}

fn main() {
    let (users, nodes) = (users(), (0..NODES).map(node).collect::<Vec<_>>());
    let text = file(9_999);
    println!(
        "{RULES} rules, {NODES} nodes ({ROUTERS} routers), {USERS} users, file of {} KiB\n",
        text.len() / 1024
    );
    println!("{:<40} {:>10} {:>10}", "ms", "median", "worst");
    let read = || Policy::parse(&text).unwrap();
    figure("read the file", (0..5).map(|_| timed(read).0).collect(), "");
    let policy = read();

    let before = HELD.load(Ordering::Relaxed);
    let (first, mut compiled) = timed(|| policy.compile(&users, &nodes));
    let held = HELD.load(Ordering::Relaxed) - before;
    let mut times = vec![first];
    times.extend((0..4).map(|_| timed(|| policy.compile(&users, &nodes)).0));
    figure("compile everything", times, "");

    change("another address", &mut compiled, |compiled, n, there| {
        let mut one = nodes[n].clone();
        if there {
            one.addresses[0] = format!("100.120.0.{}", n % 250).parse().unwrap();
        }
        compiled.update_node(one)
    });
    change("a tag", &mut compiled, |compiled, n, there| {
        let mut one = nodes[n].clone();
        if there {
            one.tags = vec!["tag:t7".to_owned()];
        }
        compiled.update_node(one)
    });
    change("a subnet route", &mut compiled, |compiled, n, there| {
        let mut one = nodes[n].clone();
        if there {
            one.routes = vec![format!("10.200.{}.0/24", n % 250).parse().unwrap()];
        }
        compiled.update_node(one)
    });
    change("join and leave", &mut compiled, |compiled, n, there| {
        let mut one = node(n);
        one.id = NodeId(20_000);
        one.addresses = vec![
            "100.121.0.1".parse().unwrap(),
            "fd7a:115c:a1e0:9::1".parse().unwrap(),
        ];
        if there {
            compiled.update_node(one)
        } else {
            compiled.remove_node(one.id)
        }
    });
    change(
        "an attribute that no rule uses",
        &mut compiled,
        |compiled, n, there| {
            let mut one = nodes[n].clone();
            one.attributes.set_bool("node:tsAutoUpdate", there);
            compiled.update_node(one)
        },
    );
    change("a user's name", &mut compiled, |compiled, n, there| {
        let mut users = users.clone();
        if there {
            users[n % USERS].login = "renamed@example.com".to_owned();
        }
        compiled.update_users(&users)
    });
    let other = Policy::parse(&file(9_998)).unwrap();
    change("a rule", &mut compiled, |compiled, _, there| {
        compiled.replace_policy(if there { &other } else { &policy })
    });

    let id = |round: usize| NodeId((round * NODES / ROUNDS) as i64 + 1);
    let filters = (0..ROUNDS).map(|n| timed(|| compiled.filter_for(id(n))).0);
    figure("the filter of one node", filters.collect(), "");
    let peers = (0..ROUNDS).map(|n| timed(|| compiled.peer_set(id(n))).0);
    figure("the peers of one node", peers.collect(), "");
    let (time, rules) = timed(|| {
        let filters = nodes.iter().map(|node| compiled.filter_for(node.id).len());
        filters.sum::<usize>()
    });
    figure(
        "the filters of all nodes",
        vec![time],
        &format!("{rules} rules"),
    );
    let (time, pairs) = timed(|| {
        let sets = nodes.iter().map(|node| compiled.peer_set(node.id).len());
        sets.sum::<usize>()
    });
    figure(
        "the peers of all nodes",
        vec![time],
        &format!("{pairs} pairs"),
    );

    println!("\nmemory, compiled: {} KiB", held / 1024);
    let after = HELD.load(Ordering::Relaxed) - before;
    println!(
        "with the texts of all filters' sources: {} KiB",
        after / 1024
    );
}

//! Whatever happens, in whatever order: no packet reaches whom it was not
//! meant for or who may not have it, and once the network is whole again all
//! who may talk do.
//!
//! The simulation itself looks for wrong deliveries all the time.

#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;
use warren_sim::{FlowSpec, NodeIndex, NodeSpec, Options, Place, RelayIndex, Sim, millis, secs};

const POLICY: &str = r#"{
    "tagOwners": { "tag:web": ["sim@"], "tag:db": ["sim@"] },
    "acls": [{ "action": "accept", "src": ["tag:web"], "dst": ["tag:web:*", "tag:db:7"] }],
}"#;

/// Two of each; only the first kind may open connections.
const TAGS: [&str; 4] = ["tag:web", "tag:web", "tag:db", "tag:db"];

#[derive(Debug, Clone, Copy)]
enum Step {
    Wait(u64),
    Roam(usize, Place),
    Restart(usize),
    Kill(usize),
    Start(usize),
    Cut(usize, usize),
    Unplug(usize),
    Plug(usize),
    RebootRouter(usize),
    StopRelay(usize),
    StartRelay(usize),
    StopControl,
    StartControl,
    JumpClock(usize, i64),
}

fn place() -> impl Strategy<Value = Place> {
    prop::sample::select(vec![
        Place::Open,
        Place::Cone,
        Place::Easy,
        Place::Cgnat,
        Place::Firewall,
        Place::Hard,
        Place::NoUdp,
    ])
}

fn step() -> impl Strategy<Value = Step> {
    let node = || 0..TAGS.len();
    prop_oneof![
        6 => (100u64..8_000).prop_map(Step::Wait),
        2 => (node(), place()).prop_map(|(node, place)| Step::Roam(node, place)),
        1 => node().prop_map(Step::Restart),
        1 => node().prop_map(Step::Kill),
        1 => node().prop_map(Step::Start),
        1 => (node(), node()).prop_map(|(a, b)| Step::Cut(a, b)),
        1 => node().prop_map(Step::Unplug),
        1 => node().prop_map(Step::Plug),
        1 => node().prop_map(Step::RebootRouter),
        1 => (0usize..2).prop_map(Step::StopRelay),
        1 => (0usize..2).prop_map(Step::StartRelay),
        1 => Just(Step::StopControl),
        1 => Just(Step::StartControl),
        1 => (node(), -100_000i64..100_000).prop_map(|(node, by)| Step::JumpClock(node, by)),
    ]
}

fn take(sim: &mut Sim, nodes: &[NodeIndex], relays: &[RelayIndex], step: Step) {
    match step {
        Step::Wait(time) => sim.run_for(millis(time)),
        Step::Roam(node, place) => sim.roam(nodes[node], place),
        Step::Restart(node) => sim.restart(nodes[node]),
        Step::Kill(node) => sim.kill(nodes[node]),
        Step::Start(node) => sim.start_if_stopped(nodes[node]),
        Step::Cut(a, b) => sim.cut(nodes[a], nodes[b]),
        Step::Unplug(node) => sim.unplug(nodes[node]),
        Step::Plug(node) => sim.plug(nodes[node]),
        Step::RebootRouter(node) => sim.reboot_router(nodes[node]),
        Step::StopRelay(relay) => sim.stop_relay(relays[relay]),
        Step::StartRelay(relay) => sim.start_relay(relays[relay]),
        Step::StopControl => sim.stop_control(),
        Step::StartControl => sim.start_control(),
        Step::JumpClock(node, seconds) => sim.jump_clock(nodes[node], seconds),
    }
}

fn pairs() -> impl Iterator<Item = (usize, usize)> {
    (0..TAGS.len())
        .flat_map(|a| (0..TAGS.len()).map(move |b| (a, b)))
        .filter(|(a, b)| a != b)
}

proptest! {
    #![proptest_config(ProptestConfig {
        // Each is minutes of four nodes' lives.
        cases: 10,
        max_shrink_iters: 60,
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("proptest-regressions"))),
        ..ProptestConfig::default()
    })]

    #[test]
    fn nothing_goes_astray_and_all_recover(
        seed: u64,
        places in prop::array::uniform4(place()),
        steps in prop::collection::vec(step(), 1..20),
    ) {
        let policy = Some(POLICY.to_owned());
        let mut sim = Sim::with(Options { seed, policy, ..Options::default() });
        let relays = [sim.relay("ams"), sim.relay("fra")];
        let mut nodes = Vec::new();
        for (n, place) in places.into_iter().enumerate() {
            let spec = NodeSpec::new(&format!("node{n}"), place).tag(TAGS[n]);
            nodes.push(sim.node_with(spec));
        }
        let mut noise = Vec::new();
        for (a, b) in pairs() {
            noise.push(sim.flow(nodes[a], nodes[b], FlowSpec::every(millis(200))));
            if TAGS[a] == "tag:db" {
                sim.forbid(nodes[a], nodes[b]);
            }
        }
        sim.run_for(secs(2));
        for step in steps {
            take(&mut sim, &nodes, &relays, step);
        }

        sim.heal();
        // The longest timers in the way: a dead session is found out after
        // 15 s, a dead relay connection after 30 s, attempts pause up to 30 s.
        sim.run_for(secs(35));
        noise.into_iter().for_each(|flow| sim.stop_flow(flow));
        sim.run_for(secs(40));
        let mut allowed = Vec::new();
        for (a, b) in pairs().filter(|(a, _)| TAGS[*a] == "tag:web") {
            allowed.push((a, b, sim.flow(nodes[a], nodes[b], FlowSpec::every(millis(100)))));
        }
        sim.run_for(secs(5));
        for (a, b, flow) in allowed {
            let report = sim.report(flow);
            prop_assert!(
                report.answered > 0 && report.lost.is_empty(),
                "node{a} to node{b}: {report:?}\n{}\n{}\n{:?}",
                sim.describe(nodes[a]), sim.describe(nodes[b]), sim.destination(nodes[a], nodes[b])
            );
        }
    }
}

#[test]
fn the_policy_lets_through_what_it_should() {
    let policy = Some(POLICY.to_owned());
    let mut sim = Sim::with(Options {
        seed: 1,
        policy,
        ..Options::default()
    });
    sim.relay("ams");
    let web = sim.node_with(NodeSpec::new("web", Place::Easy).tag("tag:web"));
    let db = sim.node_with(NodeSpec::new("db", Place::Easy).tag("tag:db"));
    sim.run_until_joined();
    sim.forbid(db, web);
    let asked = sim.flow(web, db, FlowSpec::default());
    let refused = sim.flow(db, web, FlowSpec::default());
    sim.run_for(secs(5));
    sim.stop_flow(refused);
    sim.run_for(secs(1));
    assert!(sim.report(asked).lost.is_empty());
    let report = sim.report(refused);
    assert!(report.sent > 100 && report.reached == 0, "{report:?}");
    assert_eq!(
        sim.drops(web).get("FilteredIn").copied(),
        Some(u64::from(report.sent))
    );
}

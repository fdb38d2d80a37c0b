//! Random faults in random order: every packet reaches its receiver or no one, the
//! policy holds, and once the network is whole again all allowed flows work.
//!
//! The simulation itself checks every delivery.

#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;
use warren_sim::{FlowSpec, NodeIndex, NodeSpec, Options, RelayIndex, Sim, Uplink, millis, secs};

const POLICY: &str = r#"{
    "tagOwners": { "tag:web": ["sim@"], "tag:db": ["sim@"] },
    "acls": [{ "action": "accept", "src": ["tag:web"], "dst": ["tag:web:*", "tag:db:7"] }],
}"#;

/// Two of each; only the first kind may open connections.
const TAGS: [&str; 4] = ["tag:web", "tag:web", "tag:db", "tag:db"];

#[derive(Debug, Clone, Copy)]
enum Step {
    Wait(u64),
    Roam(usize, Uplink),
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

fn uplink() -> impl Strategy<Value = Uplink> {
    prop::sample::select(vec![
        Uplink::Open,
        Uplink::Cone,
        Uplink::Easy,
        Uplink::Cgnat,
        Uplink::Firewall,
        Uplink::Hard,
        Uplink::NoUdp,
    ])
}

fn step() -> impl Strategy<Value = Step> {
    let node = || 0..TAGS.len();
    prop_oneof![
        6 => (100u64..8_000).prop_map(Step::Wait),
        2 => (node(), uplink()).prop_map(|(node, uplink)| Step::Roam(node, uplink)),
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
        Step::Roam(node, uplink) => sim.roam(nodes[node], uplink),
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
        // Each case simulates minutes of four nodes.
        cases: 10,
        max_shrink_iters: 60,
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("proptest-regressions"))),
        ..ProptestConfig::default()
    })]

    #[test]
    fn no_packet_reaches_a_wrong_node_and_all_nodes_recover(
        seed: u64,
        uplinks in prop::array::uniform4(uplink()),
        steps in prop::collection::vec(step(), 1..20),
    ) {
        let policy = Some(POLICY.to_owned());
        let mut sim = Sim::with(Options { seed, policy, ..Options::default() });
        let relays = [sim.relay("ams"), sim.relay("fra")];
        let mut nodes = Vec::new();
        for (n, uplink) in uplinks.into_iter().enumerate() {
            let spec = NodeSpec::new(&format!("node{n}"), uplink).tag(TAGS[n]);
            nodes.push(sim.node_with(spec));
        }
        let mut background = Vec::new();
        for (a, b) in pairs() {
            background.push(sim.flow(nodes[a], nodes[b], FlowSpec::every(millis(200))));
            if TAGS[a] == "tag:db" {
                sim.forbid(nodes[a], nodes[b]);
            }
        }
        sim.run_for(secs(2));
        for step in steps {
            take(&mut sim, &nodes, &relays, step);
        }

        sim.heal();
        // The longest timers: a dead session is detected after 15 s, a dead relay
        // connection after 30 s, and attempts are up to 30 s apart.
        sim.run_for(secs(35));
        background.into_iter().for_each(|flow| sim.stop_flow(flow));
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
fn the_policy_decides_which_flows_pass() {
    let policy = Some(POLICY.to_owned());
    let mut sim = Sim::with(Options {
        seed: 1,
        policy,
        ..Options::default()
    });
    sim.relay("ams");
    let web = sim.node_with(NodeSpec::new("web", Uplink::Easy).tag("tag:web"));
    let db = sim.node_with(NodeSpec::new("db", Uplink::Easy).tag("tag:db"));
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

//! Long runs, many nodes, and equal runs for equal seeds.

#![allow(clippy::unwrap_used)]

use warren_sim::{FlowSpec, NodeIndex, PathKind, Sim, Uplink, millis, secs};

#[test]
fn session_renewals_lose_no_packet() {
    for (a, b) in [(Uplink::Easy, Uplink::Easy), (Uplink::Hard, Uplink::Hard)] {
        let mut sim = Sim::new(1);
        sim.relay("ams");
        let alice = sim.node("alice", a);
        let bob = sim.node("bob", b);
        sim.run_until_joined();
        let there = sim.flow(alice, bob, FlowSpec::every(millis(50)));
        let back = sim.flow(
            bob,
            alice,
            FlowSpec {
                v6: true,
                ..FlowSpec::every(millis(70))
            },
        );
        sim.run_for(secs(400));
        for flow in [there, back] {
            let report = sim.report(flow);
            assert!(
                report.lost.is_empty(),
                "{a:?}: {:?} of {}",
                report.lost,
                report.sent
            );
            assert!(
                report.longest_silence < millis(500),
                "{:?}",
                report.longest_silence
            );
        }
        let age = sim.engine(alice).handshakes().counters();
        println!("{a:?} {b:?}: {age:?}");
    }
}

#[test]
fn flows_after_a_pause_lose_no_packet() {
    let mut sim = Sim::new(2);
    sim.relay("ams");
    let alice = sim.node("alice", Uplink::Easy);
    let bob = sim.node("bob", Uplink::Easy);
    sim.run_until_joined();
    for pause in [20, 60, 100, 150, 200, 700] {
        let flow = sim.flow(alice, bob, FlowSpec::every(millis(50)));
        sim.run_for(secs(5));
        sim.stop_flow(flow);
        sim.run_for(secs(pause));
        let report = sim.report(flow);
        println!("before {pause} s: first answer {:?}", report.first_answer);
        assert!(
            report.lost.is_empty(),
            "before {pause} s: {:?}",
            report.lost
        );
        assert!(report.first_answer.unwrap() < millis(300), "{report:?}");
    }
}

#[test]
fn twenty_nodes_find_direct_paths_to_each_other() {
    let uplinks = [
        Uplink::Open,
        Uplink::Cone,
        Uplink::Easy,
        Uplink::Cgnat,
        Uplink::Firewall,
    ];
    let mut sim = Sim::new(3);
    sim.relay("ams");
    let nodes: Vec<NodeIndex> = (0..20)
        .map(|n| sim.node(&format!("node{n}"), uplinks[n % uplinks.len()]))
        .collect();
    let joined = sim.run_until_joined();
    println!("20 nodes joined after {joined:?}");
    assert!(joined < secs(3), "{joined:?}");
    let mut flows = Vec::new();
    for from in &nodes {
        for to in nodes.iter().filter(|to| *to != from) {
            flows.push(sim.flow(*from, *to, FlowSpec::every(millis(1_000))));
        }
    }
    let all_direct = |sim: &Sim| {
        let pairs = nodes
            .iter()
            .flat_map(|from| nodes.iter().map(move |to| (*from, *to)));
        pairs
            .filter(|(from, to)| from != to)
            .all(|(from, to)| sim.path_kind(from, to) == PathKind::Direct)
    };
    let direct = sim.wait_for(secs(20), all_direct);
    println!("all 380 paths direct after {direct:?}");
    sim.run_for(secs(4));
    for flow in flows {
        let report = sim.report(flow);
        assert!(report.answered > 0 && report.lost.is_empty(), "{report:?}");
    }
    assert!(direct.is_some_and(|time| time < secs(5)), "{direct:?}");
}

/// A run with roaming, a relay that stops, and a restart.
fn busy_run(seed: u64) -> (u64, u64) {
    let mut sim = Sim::new(seed);
    let relay = sim.relay("ams");
    sim.relay("fra");
    let uplinks = [
        Uplink::Easy,
        Uplink::Hard,
        Uplink::Cgnat,
        Uplink::NoUdp,
        Uplink::Firewall,
    ];
    let nodes: Vec<_> = uplinks
        .into_iter()
        .enumerate()
        .map(|(n, uplink)| sim.node(&format!("node{n}"), uplink))
        .collect();
    for pair in nodes.windows(2) {
        sim.flow(pair[0], pair[1], FlowSpec::every(millis(30)));
    }
    sim.run_for(secs(5));
    sim.roam(nodes[0], Uplink::Cone);
    sim.run_for(secs(5));
    sim.stop_relay(relay);
    sim.restart(nodes[4]);
    sim.run_for(secs(5));
    sim.start_relay(relay);
    sim.run_for(secs(5));
    (sim.trace(), sim.deliveries())
}

#[test]
fn the_same_seed_gives_the_same_packets() {
    let first = busy_run(7);
    assert!(first.1 > 1_000, "{first:?}");
    assert_eq!(first, busy_run(7));
    assert_ne!(first.0, busy_run(8).0);
}

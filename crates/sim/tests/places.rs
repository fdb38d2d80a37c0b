//! Every pair of places: when the first answer comes, which way packets go in
//! the end, and that none gets lost on the way there.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use warren_sim::{FlowSpec, NodeSpec, Place, Sim, Way, millis, secs};

const PLACES: [(&str, Place); 7] = [
    ("open", Place::Open),
    ("cone", Place::Cone),
    ("easy", Place::Easy),
    ("cgnat", Place::Cgnat),
    ("firewall", Place::Firewall),
    ("hard", Place::Hard),
    ("no-udp", Place::NoUdp),
];

/// Whether RFC 4787 lets two places find a straight way without guessing
/// ports: a NAT that maps by destination can only talk to somebody who takes
/// datagrams from ports that were never asked for.
fn can_be_direct(a: Place, b: Place) -> bool {
    let takes_strangers = |place| matches!(place, Place::Open | Place::Cone);
    match (a, b) {
        (Place::NoUdp, _) | (_, Place::NoUdp) => false,
        (Place::Hard, other) | (other, Place::Hard) => takes_strangers(other),
        _ => true,
    }
}

struct Outcome {
    /// Since both had the other in their netmap.
    first_answer: Duration,
    direct_after: Option<Duration>,
    ways: Vec<Way>,
    lost: usize,
}

/// Two nodes start at the same moment; the first datagram leaves as soon as
/// both have heard of each other, long before anything is measured.
fn try_pair(seed: u64, a: NodeSpec, b: NodeSpec) -> Outcome {
    let mut sim = Sim::new(seed);
    sim.relay("ams");
    let alice = sim.node_with(a);
    let bob = sim.node_with(b);
    let met = sim.wait_for(secs(5), |sim| sim.sees(alice, bob) && sim.sees(bob, alice));
    met.unwrap();
    let began = sim.moment();
    let flow = sim.flow(alice, bob, FlowSpec::every(millis(20)));
    let both = |sim: &Sim| [sim.way(alice, bob), sim.way(bob, alice)] == [Way::Direct; 2];
    let direct_after = sim.wait_for(secs(8), both);
    sim.run_until(began + secs(12));
    let report = sim.report(flow);
    Outcome {
        first_answer: report.first_answer.unwrap_or(Duration::MAX),
        direct_after,
        ways: sim
            .ways(alice, bob)
            .into_iter()
            .map(|(_, way)| way)
            .collect(),
        lost: report.lost.len(),
    }
}

#[test]
fn every_pair_talks_at_once_and_goes_direct_where_it_can() {
    println!(
        "{:>9} {:<9} {:>12} {:>8}  ways",
        "from", "to", "first answer", "direct"
    );
    let mut wrong = Vec::new();
    for (n, (name_a, a)) in PLACES.into_iter().enumerate() {
        for (m, (name_b, b)) in PLACES.into_iter().enumerate() {
            let seed = (n * 10 + m) as u64;
            let outcome = try_pair(seed, NodeSpec::new("alice", a), NodeSpec::new("bob", b));
            let ms = |time: Duration| format!("{} ms", time.as_millis());
            println!(
                "{name_a:>9} {name_b:<9} {:>12} {:>8}  {:?}, {} lost",
                ms(outcome.first_answer),
                outcome.direct_after.map_or("never".to_owned(), ms),
                outcome.ways,
                outcome.lost,
            );
            let direct = can_be_direct(a, b);
            // A node without UDP has to find that out before it has a home.
            let patience = match (a, b) {
                (Place::NoUdp, _) | (_, Place::NoUdp) => millis(600),
                _ => millis(400),
            };
            let as_it_should = outcome.first_answer < patience
                && outcome.ways.contains(&Way::Direct) == direct
                && outcome.direct_after.is_some_and(|time| time < secs(1)) == direct
                && outcome.lost == 0;
            if !as_it_should {
                wrong.push(format!("{name_a}-{name_b}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn ipv6_goes_straight_where_ipv4_cannot() {
    let spec = |name| NodeSpec::new(name, Place::Hard).with_v6();
    let outcome = try_pair(1, spec("alice"), spec("bob"));
    assert!(outcome.direct_after.unwrap() < secs(1));
    assert_eq!(outcome.lost, 0);
}

#[test]
fn neighbours_find_each_other_without_their_router() {
    for place in [Place::Easy, Place::Hard, Place::Cgnat, Place::NoUdp] {
        let mut sim = Sim::new(2);
        sim.relay("ams");
        let alice = sim.node("alice", place);
        let bob = sim.node_with(NodeSpec::new("bob", place).beside(alice));
        sim.run_until_joined();
        let flow = sim.flow(alice, bob, FlowSpec::default());
        let direct = sim.wait_for(secs(10), |sim| sim.way(alice, bob) == Way::Direct);
        assert!(direct.unwrap() < secs(1), "{place:?}");
        sim.run_for(secs(5));
        let report = sim.report(flow);
        assert!(report.lost.is_empty(), "{place:?}: {:?}", report.lost);
        let destination = format!("{:?}", sim.destination(alice, bob));
        let near = place == Place::NoUdp || destination.contains("192.168.1.");
        assert!(near, "{place:?} goes around: {destination}");
    }
}

#[test]
fn the_relay_at_home_is_the_nearest_one() {
    let link = |ms| warren_sim::Link {
        latency: millis(ms),
        ..warren_sim::Link::default()
    };
    let mut sim = Sim::new(3);
    sim.relay_with("far", link(90));
    sim.relay_with("near", link(5));
    sim.relay_with("middle", link(40));
    let alice = sim.node("alice", Place::Easy);
    let shut_in = sim.node("shut-in", Place::NoUdp);
    sim.run_until_joined();
    for node in [alice, shut_in] {
        let home = sim.engine(node).paths().home();
        assert_eq!(home.map(|home| home.0), Some(2), "{}", sim.describe(node));
    }
}

#[test]
fn nodes_with_different_homes_reach_each_other() {
    let line = |ms| warren_sim::Link {
        latency: millis(ms),
        ..warren_sim::Link::default()
    };
    let mut sim = Sim::new(4);
    let (west, east) = (
        sim.relay_with("west", line(5)),
        sim.relay_with("east", line(6)),
    );
    let alice = sim.node("alice", Place::Hard);
    sim.run_for(secs(5));
    // From now on the west is full of fog.
    sim.set_relay_link(west, line(80));
    let bob = sim.node("bob", Place::Hard);
    sim.run_until_joined();
    let homes = [alice, bob].map(|node| sim.engine(node).paths().home().unwrap().0);
    assert_eq!(homes, [1, 2]);
    let flow = sim.flow(alice, bob, FlowSpec::default());
    sim.run_for(secs(10));
    let report = sim.report(flow);
    assert!(report.lost.is_empty(), "{report:?}");
    assert_eq!(sim.way(alice, bob), Way::Relay);
    assert!(
        sim.relay_clients(east) == 2,
        "both are connected where bob is at home"
    );
}

#[test]
fn no_packet_is_lost_when_a_flow_leaves_the_relay() {
    println!("{:>9} {:<9} {:>8}", "from", "to", "direct");
    for (n, (name_a, a)) in PLACES.into_iter().enumerate() {
        for (name_b, b) in PLACES.into_iter().skip(n) {
            if !can_be_direct(a, b) {
                continue;
            }
            let mut sim = Sim::new(n as u64);
            sim.relay("ams");
            let alice = sim.node("alice", a);
            let bob = sim.node("bob", b);
            sim.cut(alice, bob);
            sim.run_until_joined();
            let flows = [(alice, bob), (bob, alice)]
                .map(|(from, to)| sim.flow(from, to, FlowSpec::every(millis(10))));
            sim.run_for(secs(3));
            let ways = |sim: &Sim| [sim.way(alice, bob), sim.way(bob, alice)];
            assert_eq!(ways(&sim), [Way::Relay; 2], "{name_a}-{name_b}");
            sim.mend(alice, bob);
            let direct = sim.wait_for(secs(30), |sim| ways(sim) == [Way::Direct; 2]);
            sim.run_for(secs(5));
            println!(
                "{name_a:>9} {name_b:<9} {:>5} ms",
                direct.unwrap().as_millis()
            );
            for flow in flows {
                let report = sim.report(flow);
                assert!(
                    report.lost.is_empty(),
                    "{name_a}-{name_b}: {:?}",
                    report.lost
                );
            }
        }
    }
}

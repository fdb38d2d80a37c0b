//! Every pair of uplinks: the time of the first reply, the final path, and that no
//! packet is lost until then.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use warren_sim::{FlowSpec, NodeSpec, PathKind, Sim, Uplink, millis, secs};

const UPLINKS: [(&str, Uplink); 7] = [
    ("open", Uplink::Open),
    ("cone", Uplink::Cone),
    ("easy", Uplink::Easy),
    ("cgnat", Uplink::Cgnat),
    ("firewall", Uplink::Firewall),
    ("hard", Uplink::Hard),
    ("no-udp", Uplink::NoUdp),
];

/// Whether RFC 4787 lets two nodes find a direct path without guessing ports: a
/// NAT that maps by destination needs a peer that takes datagrams from ports to
/// which it has not sent.
fn can_be_direct(a: Uplink, b: Uplink) -> bool {
    let takes_unasked = |uplink| matches!(uplink, Uplink::Open | Uplink::Cone);
    match (a, b) {
        (Uplink::NoUdp, _) | (_, Uplink::NoUdp) => false,
        (Uplink::Hard, other) | (other, Uplink::Hard) => takes_unasked(other),
        _ => true,
    }
}

struct Outcome {
    /// The time since both had the other in their netmap.
    first_answer: Duration,
    direct_after: Option<Duration>,
    path_kinds: Vec<PathKind>,
    lost: usize,
}

/// Two nodes start at the same moment; the first datagram leaves as soon as
/// both have the other in their netmap, long before anything is measured.
fn try_pair(seed: u64, a: NodeSpec, b: NodeSpec) -> Outcome {
    let mut sim = Sim::new(seed);
    sim.relay("ams");
    let alice = sim.node_with(a);
    let bob = sim.node_with(b);
    let met = sim.wait_for(secs(5), |sim| sim.sees(alice, bob) && sim.sees(bob, alice));
    met.unwrap();
    let began = sim.elapsed();
    let flow = sim.flow(alice, bob, FlowSpec::every(millis(20)));
    let both =
        |sim: &Sim| [sim.path_kind(alice, bob), sim.path_kind(bob, alice)] == [PathKind::Direct; 2];
    let direct_after = sim.wait_for(secs(8), both);
    sim.run_until(began + secs(12));
    let report = sim.report(flow);
    Outcome {
        first_answer: report.first_answer.unwrap_or(Duration::MAX),
        direct_after,
        path_kinds: sim
            .path_history(alice, bob)
            .into_iter()
            .map(|(_, kind)| kind)
            .collect(),
        lost: report.lost.len(),
    }
}

#[test]
fn every_pair_connects_at_once_and_directly_where_nats_allow_it() {
    println!(
        "{:>9} {:<9} {:>12} {:>8}  path_kinds",
        "from", "to", "first answer", "direct"
    );
    let mut wrong = Vec::new();
    for (n, (name_a, a)) in UPLINKS.into_iter().enumerate() {
        for (m, (name_b, b)) in UPLINKS.into_iter().enumerate() {
            let seed = (n * 10 + m) as u64;
            let outcome = try_pair(seed, NodeSpec::new("alice", a), NodeSpec::new("bob", b));
            let ms = |time: Duration| format!("{} ms", time.as_millis());
            println!(
                "{name_a:>9} {name_b:<9} {:>12} {:>8}  {:?}, {} lost",
                ms(outcome.first_answer),
                outcome.direct_after.map_or("never".to_owned(), ms),
                outcome.path_kinds,
                outcome.lost,
            );
            let direct = can_be_direct(a, b);
            // A node without UDP has to find that out before it has a home.
            let limit = match (a, b) {
                (Uplink::NoUdp, _) | (_, Uplink::NoUdp) => millis(600),
                _ => millis(400),
            };
            let is_expected = outcome.first_answer < limit
                && outcome.path_kinds.contains(&PathKind::Direct) == direct
                && outcome.direct_after.is_some_and(|time| time < secs(1)) == direct
                && outcome.lost == 0;
            if !is_expected {
                wrong.push(format!("{name_a}-{name_b}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn ipv6_is_direct_where_ipv4_cannot_be() {
    let spec = |name| NodeSpec::new(name, Uplink::Hard).with_v6();
    let outcome = try_pair(1, spec("alice"), spec("bob"));
    assert!(outcome.direct_after.unwrap() < secs(1));
    assert_eq!(outcome.lost, 0);
}

#[test]
fn neighbours_use_their_local_network() {
    for uplink in [Uplink::Easy, Uplink::Hard, Uplink::Cgnat, Uplink::NoUdp] {
        let mut sim = Sim::new(2);
        sim.relay("ams");
        let alice = sim.node("alice", uplink);
        let bob = sim.node_with(NodeSpec::new("bob", uplink).beside(alice));
        sim.run_until_joined();
        let flow = sim.flow(alice, bob, FlowSpec::default());
        let direct = sim.wait_for(secs(10), |sim| {
            sim.path_kind(alice, bob) == PathKind::Direct
        });
        assert!(direct.unwrap() < secs(1), "{uplink:?}");
        sim.run_for(secs(5));
        let report = sim.report(flow);
        assert!(report.lost.is_empty(), "{uplink:?}: {:?}", report.lost);
        let destination = format!("{:?}", sim.destination(alice, bob));
        let near = uplink == Uplink::NoUdp || destination.contains("192.168.1.");
        assert!(near, "{uplink:?} goes around: {destination}");
    }
}

#[test]
fn the_home_relay_is_the_nearest_one() {
    let link = |ms| warren_sim::Link {
        latency: millis(ms),
        ..warren_sim::Link::default()
    };
    let mut sim = Sim::new(3);
    sim.relay_with("far", link(90));
    sim.relay_with("near", link(5));
    sim.relay_with("middle", link(40));
    let alice = sim.node("alice", Uplink::Easy);
    let no_udp = sim.node("no-udp", Uplink::NoUdp);
    sim.run_until_joined();
    for node in [alice, no_udp] {
        let home = sim.engine(node).paths().home();
        assert_eq!(home.map(|home| home.0), Some(2), "{}", sim.describe(node));
    }
}

#[test]
fn nodes_with_different_homes_reach_each_other() {
    let link = |ms| warren_sim::Link {
        latency: millis(ms),
        ..warren_sim::Link::default()
    };
    let mut sim = Sim::new(4);
    let (west, east) = (
        sim.relay_with("west", link(5)),
        sim.relay_with("east", link(6)),
    );
    let alice = sim.node("alice", Uplink::Hard);
    sim.run_for(secs(5));
    // From now on the western relay is far away.
    sim.set_relay_link(west, link(80));
    let bob = sim.node("bob", Uplink::Hard);
    sim.run_until_joined();
    let homes = [alice, bob].map(|node| sim.engine(node).paths().home().unwrap().0);
    assert_eq!(homes, [1, 2]);
    let flow = sim.flow(alice, bob, FlowSpec::default());
    sim.run_for(secs(10));
    let report = sim.report(flow);
    assert!(report.lost.is_empty(), "{report:?}");
    assert_eq!(sim.path_kind(alice, bob), PathKind::Relay);
    assert!(
        sim.relay_clients(east) == 2,
        "both are connected where bob is at home"
    );
}

#[test]
fn no_packet_is_lost_when_a_flow_leaves_the_relay() {
    println!("{:>9} {:<9} {:>8}", "from", "to", "direct");
    for (n, (name_a, a)) in UPLINKS.into_iter().enumerate() {
        for (name_b, b) in UPLINKS.into_iter().skip(n) {
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
            let path_kinds = |sim: &Sim| [sim.path_kind(alice, bob), sim.path_kind(bob, alice)];
            assert_eq!(path_kinds(&sim), [PathKind::Relay; 2], "{name_a}-{name_b}");
            sim.mend(alice, bob);
            let direct = sim.wait_for(secs(30), |sim| path_kinds(sim) == [PathKind::Direct; 2]);
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

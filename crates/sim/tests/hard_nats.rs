//! NATs with another, random port for each destination: which pairs become direct, how
//! soon, and for how many probes.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use warren_paths::PortPattern;
use warren_sim::{
    FlowSpec, NatBehaviour, NodeIndex, NodeSpec, PathKind, Ports, Sim, Uplink, millis, secs,
};

/// Tries of each pair, each with another seed.
const SEEDS: u64 = 100;
/// Tries where nothing depends on luck.
const FEW_SEEDS: u64 = 20;
/// The most guesses in a search.
const MOST_PROBES: u64 = 2_048;

/// Two nodes that know each other and two relays, which show a node that its NAT maps
/// each destination to another port. Packets flow from the first to the second.
fn pair(seed: u64, first: Uplink, second: Uplink) -> (Sim, NodeIndex, NodeIndex) {
    let mut sim = Sim::new(seed);
    sim.relay("ams");
    sim.relay("fra");
    let first = sim.node_with(NodeSpec::new("first", first));
    let second = sim.node_with(NodeSpec::new("second", second));
    let met = sim.wait_for(secs(5), |sim| {
        sim.sees(first, second) && sim.sees(second, first)
    });
    met.unwrap();
    (sim, first, second)
}

fn are_direct(sim: &Sim, a: NodeIndex, b: NodeIndex) -> bool {
    [sim.path_kind(a, b), sim.path_kind(b, a)] == [PathKind::Direct; 2]
}

fn probes(sim: &Sim, node: NodeIndex) -> u64 {
    sim.engine(node).paths().counters().search_probes_sent
}

struct Tried {
    direct_after: Option<Duration>,
    /// Of the node that sent more.
    probes: u64,
    lost: usize,
}

/// `is_watched`: look at what follows too.
fn try_pair(seed: u64, first: Uplink, second: Uplink, is_watched: bool) -> Tried {
    let (mut sim, first, second) = pair(seed, first, second);
    let flow = sim.flow(first, second, FlowSpec::every(millis(50)));
    let direct_after = sim.wait_for(secs(5), |sim| are_direct(sim, first, second));
    let searched = probes(&sim, first).max(probes(&sim, second));
    if direct_after.is_some() && is_watched {
        sim.run_for(secs(20));
        assert!(are_direct(&sim, first, second), "it stays so");
        let again = probes(&sim, first).max(probes(&sim, second));
        assert_eq!(again, searched, "nothing is searched any more");
        let sockets = [sim.search_sockets(first), sim.search_sockets(second)];
        assert!(sockets.iter().all(|(open, _)| *open == 0), "{sockets:?}");
        // None where the guess was the port of the first socket.
        let kept: usize = sockets.iter().map(|(_, kept)| kept).sum();
        assert!(kept <= 1, "{kept} sockets are kept");
    }
    Tried {
        direct_after,
        probes: searched,
        lost: sim.report(flow).lost.len(),
    }
}

/// At least 99 of 100 pairs become direct within 5 s and with no more than 2,048 probes;
/// no packet is lost until then.
fn passes_a_hard_nat(name: &str, uplink: Uplink) {
    let tries = (0..SEEDS).map(|seed| {
        let is_watched = seed < 6;
        // Packets flow from either side.
        match seed % 2 {
            0 => try_pair(seed, Uplink::Hard, uplink, is_watched),
            _ => try_pair(seed, uplink, Uplink::Hard, is_watched),
        }
    });
    let tries: Vec<Tried> = tries.collect();
    let times = tries.iter().filter_map(|tried| tried.direct_after);
    let mut times: Vec<Duration> = times.collect();
    times.sort();
    let mut probes: Vec<u64> = tries.iter().map(|tried| tried.probes).collect();
    probes.sort_unstable();
    println!(
        "{name} x hard: {} of {SEEDS} direct, median {:?}, worst {:?}; probes: median {}, most {}",
        times.len(),
        times[times.len() / 2],
        times.last().unwrap(),
        probes[probes.len() / 2],
        probes.last().unwrap(),
    );
    assert!(times.len() >= 99, "{} of {SEEDS}", times.len());
    assert!(times[times.len() / 2] < secs(1));
    assert!(probes.last() <= Some(&MOST_PROBES));
    assert!(tries.iter().all(|tried| tried.lost == 0));
}

#[test]
fn an_easy_nat_and_one_with_random_ports_become_direct() {
    passes_a_hard_nat("easy", Uplink::Easy);
}

#[test]
fn a_carrier_nat_and_one_with_random_ports_become_direct() {
    passes_a_hard_nat("carrier", Uplink::Cgnat);
}

#[test]
fn a_firewall_and_a_nat_with_random_ports_become_direct() {
    passes_a_hard_nat("firewall", Uplink::Firewall);
}

#[test]
fn two_nats_with_random_ports_stay_on_the_relay_and_search_nothing() {
    let (mut sim, first, second) = pair(1, Uplink::Hard, Uplink::Hard);
    let flow = sim.flow(first, second, FlowSpec::every(millis(50)));
    sim.run_for(secs(20));
    assert_eq!(sim.path_kind(first, second), PathKind::Relay);
    assert_eq!(probes(&sim, first) + probes(&sim, second), 0);
    assert_eq!(sim.report(flow).lost.len(), 0);
}

/// A NAT with another port for each destination that it counts up.
const COUNTING: Uplink = Uplink::Behind(NatBehaviour {
    ports: Ports::Sequential,
    ..NatBehaviour::HARD
});

/// A peer that makes no searches stands for the official client: it knows pings and
/// CallMeMaybe only.
#[test]
fn counted_ports_are_foreseen_for_a_peer_that_makes_no_searches() {
    for (name, uplink) in [
        ("easy", Uplink::Easy),
        ("carrier", Uplink::Cgnat),
        ("firewall", Uplink::Firewall),
    ] {
        let tries = (0..FEW_SEEDS).map(|seed| {
            let (mut sim, plain, counting) = pair(seed, uplink, COUNTING);
            sim.set_port_search(plain, false);
            let flow = match seed % 2 {
                0 => sim.flow(plain, counting, FlowSpec::every(millis(50))),
                _ => sim.flow(counting, plain, FlowSpec::every(millis(50))),
            };
            let direct_after = sim.wait_for(secs(5), |sim| are_direct(sim, plain, counting));
            assert_eq!(sim.report(flow).lost.len(), 0);
            assert_eq!(probes(&sim, plain) + probes(&sim, counting), 0);
            direct_after
        });
        let tries: Vec<_> = tries.collect();
        let mut times: Vec<Duration> = tries.into_iter().flatten().collect();
        times.sort();
        let (middle, last) = (times[times.len() / 2], times.last().unwrap());
        println!(
            "{name} x counting, one-sided: {} of {FEW_SEEDS} direct, median {middle:?}, worst {last:?}",
            times.len(),
        );
        assert!(times.len() as u64 == FEW_SEEDS && *last < secs(2));
    }
}

#[test]
fn counted_ports_are_searched_with_a_peer_that_can() {
    let tries = (0..20).map(|seed| try_pair(seed, Uplink::Easy, COUNTING, false));
    for tried in tries {
        assert!(tried.direct_after.is_some_and(|time| time < secs(2)));
        assert!(tried.probes < 600, "{} probes", tried.probes);
    }
}

/// Random ports cannot be foreseen: a few questions show it, and then it is left.
#[test]
fn a_peer_that_makes_no_searches_stays_on_the_relay_behind_random_ports() {
    let (mut sim, plain, hard) = pair(3, Uplink::Easy, Uplink::Hard);
    sim.set_port_search(plain, false);
    let flow = sim.flow(hard, plain, FlowSpec::every(millis(50)));
    sim.run_for(secs(60));
    assert_eq!(sim.path_kind(hard, plain), PathKind::Relay);
    let paths = sim.engine(hard).paths();
    assert_eq!(paths.port_pattern(), Some(PortPattern::Random));
    assert_eq!(probes(&sim, plain) + probes(&sim, hard), 0);
    assert_eq!(sim.search_sockets(hard), (0, 0));
    assert_eq!(sim.report(flow).lost.len(), 0);
}

#[test]
fn idle_peers_are_not_searched_for() {
    let (mut sim, first, second) = pair(1, Uplink::Easy, Uplink::Hard);
    sim.run_for(secs(60));
    assert_eq!(probes(&sim, first) + probes(&sim, second), 0);
    assert_eq!(sim.search_sockets(second), (0, 0));
}

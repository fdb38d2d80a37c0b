//! NATs with another, random port for each destination: which pairs become direct, how
//! soon, and for how many probes.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;
use warren_paths::PortPattern;
use warren_sim::{
    FlowSpec, Link, NatBehaviour, NodeIndex, NodeSpec, PathKind, Ports, RelayIndex, Sim, Uplink,
    millis, secs,
};

/// Tries of each pair, each with another seed.
const SEEDS: u64 = 100;
/// Tries where nothing depends on luck.
const FEW_SEEDS: u64 = 20;
/// A pair is direct so soon after the last disturbance: a search to the end may have failed
/// in it, after which there is a pause of 20 s.
const LIMIT: Duration = secs(40);
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

/// The guesses of a machine with too much to do come slowly, and the other side waits for them.
#[test]
fn late_timers_delay_the_path_only() {
    for late in [30, 100, 250] {
        let direct = (0..40).filter(|seed| {
            let mut sim = Sim::new(*seed);
            sim.relay("ams");
            sim.relay("fra");
            let late = millis(late);
            let easy = sim.node_with(NodeSpec::new("easy", Uplink::Firewall).late(late));
            let hard = sim.node_with(NodeSpec::new("hard", Uplink::Hard).late(late));
            let met = sim.wait_for(secs(10), |sim| sim.sees(easy, hard) && sim.sees(hard, easy));
            met.unwrap();
            sim.flow(easy, hard, FlowSpec::every(millis(50)));
            sim.wait_for(secs(20), |sim| are_direct(sim, easy, hard))
                .is_some()
        });
        let direct = direct.count();
        println!("timers {late} ms late: {direct} of 40 direct in the first search");
        assert!(direct >= 39, "{late} ms late: {direct} of 40");
    }
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

/// A disturbance of the agreement on a search, or of the search itself. Each is over when the
/// next step begins, except for the last ones, which [`Sim::heal`] ends.
#[derive(Debug, Clone, Copy)]
enum Step {
    Wait(u64),
    /// The network of a node changes, and back.
    LinkChange(usize),
    Restart(usize),
    RebootRouter(usize),
    /// Messages through the relays take so long.
    SlowRelays(u64),
    RestartRelay(usize),
    /// STUN answers and messages through a relay get lost.
    LossyRelay(usize, f64),
    SwitchOff(usize),
    SwitchOn(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0u64..1_500).prop_map(Step::Wait),
        2 => (0usize..2).prop_map(Step::LinkChange),
        1 => (0usize..2).prop_map(Step::Restart),
        1 => (0usize..2).prop_map(Step::RebootRouter),
        2 => (1u64..900).prop_map(Step::SlowRelays),
        1 => (0usize..2).prop_map(Step::RestartRelay),
        2 => (0usize..2, 0.05f64..0.3).prop_map(|(relay, loss)| Step::LossyRelay(relay, loss)),
        1 => (0usize..2).prop_map(Step::SwitchOff),
        1 => (0usize..2).prop_map(Step::SwitchOn),
    ]
}

const NEAR: Link = Link {
    latency: millis(5),
    jitter: Duration::from_micros(500),
    loss: 0.0,
    mtu: 1_500,
};

fn take(sim: &mut Sim, nodes: [NodeIndex; 2], relays: [RelayIndex; 2], step: Step) {
    match step {
        Step::Wait(time) => sim.run_for(millis(time)),
        Step::LinkChange(node) => {
            sim.unplug(nodes[node]);
            sim.plug(nodes[node]);
        }
        Step::Restart(node) => sim.restart(nodes[node]),
        Step::RebootRouter(node) => sim.reboot_router(nodes[node]),
        Step::SlowRelays(time) => {
            let latency = millis(time);
            for relay in relays {
                sim.set_relay_link(relay, Link { latency, ..NEAR });
            }
        }
        Step::RestartRelay(relay) => {
            sim.stop_relay(relays[relay]);
            sim.start_relay(relays[relay]);
        }
        Step::LossyRelay(relay, loss) => sim.set_relay_link(relays[relay], Link { loss, ..NEAR }),
        Step::SwitchOff(node) => sim.set_port_search(nodes[node], false),
        Step::SwitchOn(node) => sim.set_port_search(nodes[node], true),
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 150,
        max_shrink_iters: 200,
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("proptest-regressions"))),
        ..ProptestConfig::default()
    })]

    /// Nodes join, measure and begin to send at any time, and anything may happen while they
    /// agree on a search. Whatever it was, the pair becomes direct after it.
    #[test]
    fn every_reason_that_passes_delays_the_direct_path_only(
        seed: u64,
        uplink in prop::sample::select(vec![Uplink::Easy, Uplink::Cgnat, Uplink::Firewall]),
        hard_joins_first: bool,
        hard_sends: bool,
        pauses in (0u64..2_000, 0u64..2_000),
        steps in prop::collection::vec(step(), 0..8),
    ) {
        let mut sim = Sim::new(seed);
        let relays = [sim.relay("ams"), sim.relay("fra")];
        let spec = |is_hard: bool| match is_hard {
            true => NodeSpec::new("hard", Uplink::Hard),
            false => NodeSpec::new("easy", uplink),
        };
        let first = sim.node_with(spec(hard_joins_first));
        sim.run_for(millis(pauses.0));
        let second = sim.node_with(spec(!hard_joins_first));
        let known = sim.wait_for(secs(5), |sim| sim.knows(first, second) && sim.knows(second, first));
        prop_assert!(known.is_some());
        sim.run_for(millis(pauses.1));
        let [from, to] = if hard_sends == hard_joins_first { [first, second] } else { [second, first] };
        let flow = sim.flow(from, to, FlowSpec::every(millis(50)));
        for step in &steps {
            take(&mut sim, [first, second], relays, *step);
        }
        for node in [first, second] {
            sim.set_port_search(node, true);
        }
        for relay in relays {
            sim.set_relay_link(relay, NEAR);
        }
        sim.heal();
        let direct_after = sim.wait_for(LIMIT, |sim| are_direct(sim, first, second));
        prop_assert!(
            direct_after.is_some(),
            "{}\n{}\n{:?}", sim.describe(first), sim.describe(second), sim.report(flow)
        );
    }
}

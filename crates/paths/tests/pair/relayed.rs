//! Pairs that find no direct path and meet at a peer relay.

use std::time::Duration;

use proptest::prelude::*;
use warren_node_types::{Destination, PathAddr};

use crate::nat::Kind;
use crate::world::{World, ms};

/// Nodes 0 and 1 behind NATs of these kinds, and `relays` open nodes that relay, from 2 on.
/// All have joined and are idle.
fn tailnet(kinds: [Kind; 2], relays: usize) -> World {
    let mut world = World::new(&kinds);
    for _ in 0..relays {
        let node = world.add(Kind::Open, false);
        world.serve_relay(node);
    }
    for node in 0..world.nodes.len() {
        world.join(node);
    }
    world.run(Duration::from_secs(60));
    world
}

fn both_relayed(world: &World) -> bool {
    world.is_relayed(0, 1) && world.is_relayed(1, 0)
}

/// The host of the relay that node 0 uses.
fn relay_in_use(world: &World) -> Option<usize> {
    let path = world.destination(0, 1).paths().next()?;
    let server = match path {
        PathAddr::PeerRelay { server, .. } => server,
        PathAddr::Udp(_) | PathAddr::Derp(_) => return None,
    };
    (2..world.nodes.len()).find(|node| world.relay_address(*node) == server)
}

fn requests(world: &mut World, node: usize) -> u64 {
    world.paths(node).counters().peer_relay_requests_sent
}

#[test]
fn hard_nats_meet_at_a_relay_within_a_second() {
    for kinds in [
        [Kind::Hard, Kind::Hard],
        [Kind::Hard, Kind::Easy],
        [Kind::Firewall, Kind::Hard],
    ] {
        let mut world = tailnet(kinds, 1);
        world.start_flow(0, 1, ms(10), Duration::from_secs(20));
        let took = world.run_while(Duration::from_secs(5), |world| world.is_relayed(0, 1));
        println!("{kinds:?}: {took:?}");
        assert!(
            took.is_some_and(|took| took < ms(1000)),
            "{kinds:?}: {took:?}"
        );
        world.start_flow(1, 0, ms(10), Duration::from_secs(10));
        world.run(Duration::from_secs(25));
        assert!(both_relayed(&world));
        for flow in &world.flows {
            assert_eq!(flow.lost(), 0);
        }
    }
}

#[test]
fn a_side_without_packets_learns_the_path_from_the_other() {
    let mut world = tailnet([Kind::Hard, Kind::Hard], 1);
    world.start_flow(0, 1, ms(10), Duration::from_secs(5));
    let took = world.run_while(Duration::from_secs(2), both_relayed);
    assert!(took.is_some_and(|took| took < ms(1200)), "{took:?}");
    assert_eq!(requests(&mut world, 1), 0);
}

#[test]
fn idle_pairs_and_direct_pairs_ask_no_relay() {
    let mut idle = tailnet([Kind::Hard, Kind::Hard], 3);
    assert_eq!(requests(&mut idle, 0) + requests(&mut idle, 1), 0);
    let mut direct = tailnet([Kind::Easy, Kind::Easy], 3);
    direct.start_flow(0, 1, ms(10), Duration::from_secs(120));
    direct.run(Duration::from_secs(120));
    assert!(direct.is_direct(0, 1));
    assert_eq!(requests(&mut direct, 0) + requests(&mut direct, 1), 0);
}

#[test]
fn a_relay_that_refuses_is_asked_ever_less_often() {
    let mut world = tailnet([Kind::Hard, Kind::Hard], 0);
    let node = world.add(Kind::Open, false);
    world.serve_relay(node);
    world.join(node);
    // Without an address it answers no request.
    if let Some(relay) = &mut world.nodes[node].relay_server {
        relay.server.set_addresses(Vec::new());
    }
    world.start_flow(0, 1, ms(50), Duration::from_secs(300));
    world.run(Duration::from_secs(300));
    let asked = requests(&mut world, 0);
    assert!(
        (4..=20).contains(&asked),
        "{asked} requests in five minutes"
    );
    assert_eq!(world.flows[0].lost(), 0, "DERP carries it all");
}

#[test]
fn a_relay_that_dies_is_left_within_its_time_limit_for_another() {
    let mut world = tailnet([Kind::Hard, Kind::Hard], 2);
    world.start_flow(0, 1, ms(10), Duration::from_secs(40));
    world.start_flow(1, 0, ms(10), Duration::from_secs(40));
    world.run(Duration::from_secs(10));
    let first = relay_in_use(&world).unwrap();
    let relay = world.nodes[first].nat.outside;
    for node in [0, 1] {
        let outside = world.nodes[node].nat.outside;
        world.cut.insert((outside, relay));
    }
    let both = world.run_while(Duration::from_secs(5), |world| {
        matches!(world.destination(0, 1), Destination::Both(..))
    });
    assert!(both.is_some_and(|took| took < ms(1600)), "{both:?}");
    let again = world.run_while(Duration::from_secs(5), both_relayed);
    assert!(again.is_some_and(|took| took < ms(1000)), "{again:?}");
    assert_ne!(relay_in_use(&world), Some(first));
}

/// Its endpoints are gone, and so is its key.
#[test]
fn a_relay_that_restarts_is_used_again() {
    let mut world = tailnet([Kind::Hard, Kind::Hard], 1);
    world.start_flow(0, 1, ms(10), Duration::from_secs(30));
    world.start_flow(1, 0, ms(10), Duration::from_secs(30));
    world.run(Duration::from_secs(8));
    assert!(both_relayed(&world));
    let old = world.destination(0, 1);
    world.serve_relay(2);
    let took = world.run_while(Duration::from_secs(10), |world| {
        both_relayed(world) && world.destination(0, 1) != old
    });
    assert!(took.is_some_and(|took| took < ms(4000)), "{took:?}");
    let lost_before = world.flows[0].lost();
    world.run(Duration::from_secs(5));
    // Those under way at this moment count as lost.
    assert!(world.flows[0].lost() <= lost_before);
}

#[test]
fn an_endpoint_that_expired_is_allocated_anew() {
    let mut world = tailnet([Kind::Hard, Kind::Hard], 1);
    world.start_flow(0, 1, ms(10), Duration::from_secs(5));
    world.run(Duration::from_secs(400));
    world.start_flow(0, 1, ms(10), Duration::from_secs(5));
    let took = world.run_while(Duration::from_secs(5), both_relayed);
    assert!(took.is_some_and(|took| took < ms(1200)), "{took:?}");
    let expired = world.nodes[2].relay_server.as_ref().unwrap();
    assert_eq!(expired.server.counters().expired, 1);
    world.run(Duration::from_secs(6));
    assert_eq!(world.flows[1].lost(), 0);
}

#[test]
fn a_relayed_path_is_silent_when_idle_and_back_at_once() {
    let mut world = tailnet([Kind::Hard, Kind::Hard], 1);
    world.start_flow(0, 1, ms(10), Duration::from_secs(5));
    // Heartbeats end 45 s after the last packet, and the mappings live 30 s more.
    world.run(Duration::from_secs(56));
    let sent = world.nodes[0].udp_sent + world.nodes[1].udp_sent;
    world.run(Duration::from_secs(15));
    let later = world.nodes[0].udp_sent + world.nodes[1].udp_sent;
    assert_eq!(later - sent, 0);
    world.start_flow(0, 1, ms(10), Duration::from_secs(5));
    let took = world.run_while(Duration::from_secs(5), |world| world.is_relayed(0, 1));
    assert!(took.is_some_and(|took| took < ms(200)), "{took:?}");
    assert_eq!(requests(&mut world, 0), 1, "the endpoint is still there");
}

#[test]
fn a_direct_path_replaces_the_relay() {
    let mut world = tailnet([Kind::Hard, Kind::Hard], 1);
    world.start_flow(0, 1, ms(10), Duration::from_secs(60));
    world.start_flow(1, 0, ms(10), Duration::from_secs(60));
    world.run(Duration::from_secs(5));
    assert!(both_relayed(&world));
    world.nodes[0].nat.kind = Kind::Cone;
    let took = world.run_while(Duration::from_secs(30), |world| {
        world.is_direct(0, 1) && world.is_direct(1, 0)
    });
    assert!(took.is_some(), "{:?}", world.destination(0, 1));
    // The relay takes over when that path dies.
    let addresses = (world.nodes[0].nat.outside, world.nodes[1].nat.outside);
    world.cut.insert(addresses);
    let took = world.run_while(Duration::from_secs(5), both_relayed);
    assert!(took.is_some_and(|took| took < ms(2000)), "{took:?}");
}

#[test]
fn the_fastest_relay_is_taken_and_kept() {
    let mut world = tailnet([Kind::Hard, Kind::Hard], 3);
    for (node, extra) in [(2, 30), (3, 0), (4, 60)] {
        let relay = world.nodes[node].nat.outside;
        world.slow.insert(relay, ms(extra));
    }
    world.start_flow(0, 1, ms(10), Duration::from_secs(200));
    world.start_flow(1, 0, ms(10), Duration::from_secs(200));
    world.run(Duration::from_secs(3));
    assert_eq!(relay_in_use(&world), Some(3));
    let changes = world.nodes[0].history.len();
    // Hardly faster than the one in use: not worth a change.
    world.slow.insert(world.nodes[3].nat.outside, ms(2));
    world.slow.insert(world.nodes[4].nat.outside, ms(1));
    world.run(Duration::from_secs(100));
    assert_eq!(relay_in_use(&world), Some(3));
    assert_eq!(world.nodes[0].history.len(), changes);
    // Far faster.
    world.slow.insert(world.nodes[3].nat.outside, ms(80));
    world.slow.insert(world.nodes[2].nat.outside, ms(0));
    let took = world.run_while(Duration::from_secs(90), |world| {
        relay_in_use(world) == Some(2)
    });
    assert!(took.is_some());
}

#[test]
fn roaming_and_restarting_clients_are_found_again() {
    let mut world = tailnet([Kind::Hard, Kind::Hard], 1);
    world.start_flow(0, 1, ms(10), Duration::from_secs(60));
    world.start_flow(1, 0, ms(10), Duration::from_secs(60));
    world.run(Duration::from_secs(5));
    assert!(both_relayed(&world));
    world.roam(0, [198, 51, 100, 77]);
    world.run(Duration::from_secs(1));
    let took = world.run_while(Duration::from_secs(10), both_relayed);
    assert!(took.is_some_and(|took| took < ms(3000)), "{took:?}");
    world.restart(1);
    world.run(Duration::from_secs(1));
    let took = world.run_while(Duration::from_secs(10), both_relayed);
    assert!(took.is_some_and(|took| took < ms(5000)), "{took:?}");
}

/// Steps of a run that may go wrong in every way.
#[derive(Debug, Clone, Copy)]
enum Step {
    Pass(u64),
    RestartRelay(usize),
    CutRelay(usize),
    Heal,
    Roam(u8),
    RestartClient,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (50u64..8_000).prop_map(Step::Pass),
        1 => (0usize..2).prop_map(Step::RestartRelay),
        1 => (0usize..2).prop_map(Step::CutRelay),
        1 => Just(Step::Heal),
        1 => (50u8..200).prop_map(Step::Roam),
        1 => Just(Step::RestartClient),
        1 => Just(Step::Pass(400_000)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10))]

    /// With loss, delay, restarts of relays and cuts, data never goes to the endpoint of another
    /// pair (the world checks it). Once all works again, the pair meets at a relay and loses
    /// nothing.
    #[test]
    fn the_pair_always_comes_back_to_a_relay(
        seed: u64,
        loss in 0u64..25,
        jitter in 0u64..80,
        steps in prop::collection::vec(step(), 1..8),
    ) {
        let mut world = tailnet([Kind::Hard, Kind::Hard], 2);
        world.disturb(seed, loss, ms(jitter));
        for (from, to) in [(0, 1), (1, 0), (0, 2)] {
            world.start_flow(from, to, ms(500), Duration::from_secs(7200));
        }
        for step in steps {
            match step {
                Step::Pass(millis) => world.run(ms(millis)),
                Step::RestartRelay(relay) => world.serve_relay(2 + relay),
                Step::CutRelay(relay) => {
                    for node in [0, 1] {
                        let ends = (world.nodes[node].nat.outside, world.nodes[2 + relay].nat.outside);
                        world.cut.insert(ends);
                    }
                }
                Step::Heal => world.cut.clear(),
                Step::Roam(last) => world.roam(0, [203, 0, 114, last]),
                Step::RestartClient => world.restart(1),
            }
        }
        world.cut.clear();
        world.disturb(seed, 0, Duration::ZERO);
        // The longest pause between two searches is a minute.
        let took = world.run_while(Duration::from_secs(75), both_relayed);
        prop_assert!(took.is_some(), "{:?} {:?}", world.destination(0, 1), world.destination(1, 0));
        world.run(Duration::from_secs(15));
        prop_assert!(both_relayed(&world));
        let lost: Vec<_> = world.flows.iter().map(crate::world::Flow::lost).collect();
        world.run(Duration::from_secs(10));
        for (flow, before) in world.flows.iter().zip(lost) {
            prop_assert!(flow.lost() <= before);
        }
    }
}

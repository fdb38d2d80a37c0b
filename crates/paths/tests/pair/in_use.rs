//! Paths that are in use: loss, roaming, restarts, and silence.

use std::time::Duration;

use warren_node_types::{Destination, PathAddr};

use crate::nat::Kind;
use crate::world::{World, ms};

fn connected(kinds: [Kind; 2]) -> World {
    let mut world = World::new(&kinds);
    world.join(0);
    world.join(1);
    let took = world.run_while(ms(1000), |world| {
        world.is_direct(0, 1) && world.is_direct(1, 0)
    });
    assert!(took.is_some());
    world
}

fn longest_gap(world: &World, flow: usize) -> Duration {
    let arrivals: Vec<_> = world.flows[flow]
        .packets
        .iter()
        .filter_map(|(_, arrived)| *arrived)
        .collect();
    arrivals
        .windows(2)
        .map(|pair| pair[1].saturating_duration_since(pair[0]))
        .max()
        .unwrap()
}

#[test]
fn a_dead_path_is_replaced_within_its_time_limit() {
    for (first, second) in [(true, true), (true, false)] {
        let mut world = connected([Kind::Easy, Kind::Easy]);
        if first {
            world.start_flow(0, 1, ms(10), Duration::from_secs(30));
        }
        if second {
            world.start_flow(1, 0, ms(10), Duration::from_secs(30));
        }
        world.run(Duration::from_secs(10));
        assert!(world.is_direct(0, 1));
        let addresses = (world.nodes[0].nat.outside, world.nodes[1].nat.outside);
        world.cut.insert(addresses);
        let took = world.run_while(Duration::from_secs(10), |world| {
            matches!(world.destination(0, 1), Destination::One(PathAddr::Derp(_)))
        });
        assert!(took.is_some_and(|took| took < ms(2500)), "{took:?}");
        world.run(Duration::from_secs(5));
        let gap = longest_gap(&world, 0);
        assert!(gap < ms(2300), "the flow stalled for {gap:?}");

        // And back, when the way is free again.
        world.cut.clear();
        let took = world.run_while(Duration::from_secs(16), |world| world.is_direct(0, 1));
        assert!(took.is_some());
    }
}

/// A router that restarts forgets its mappings; the next packets make new ones.
#[test]
fn a_router_restart_is_survived() {
    let mut world = connected([Kind::Easy, Kind::Easy]);
    world.start_flow(0, 1, ms(10), Duration::from_secs(30));
    world.start_flow(1, 0, ms(10), Duration::from_secs(30));
    world.run(Duration::from_secs(5));
    world.nodes[0].nat.reset();
    world.run(Duration::from_secs(10));
    for flow in [0, 1] {
        let gap = longest_gap(&world, flow);
        assert!(gap < ms(2300), "flow {flow} stalled for {gap:?}");
    }
    assert!(world.is_direct(0, 1) && world.is_direct(1, 0));
}

#[test]
fn roaming_is_fast() {
    let mut world = connected([Kind::Easy, Kind::Easy]);
    world.start_flow(0, 1, ms(10), Duration::from_secs(20));
    world.start_flow(1, 0, ms(10), Duration::from_secs(20));
    world.run(Duration::from_secs(5));
    world.roam(0, [192, 0, 2, 77]);
    let outside = world.nodes[0].nat.outside;
    let took = world.run_while(Duration::from_secs(5), |world| {
        let back = matches!(world.destination(1, 0), Destination::One(PathAddr::Udp(to)) if to.ip() == outside);
        back && world.is_direct(0, 1)
    });
    assert!(took.is_some_and(|took| took < ms(1000)), "{took:?}");
    world.run(Duration::from_secs(3));
    // Its relay connection is new as well: packets of that time are lost.
    for flow in [0, 1] {
        let gap = longest_gap(&world, flow);
        assert!(gap < ms(600), "flow {flow} stalled for {gap:?}");
    }
}

/// A late carrier, a new address on another interface: the system calls it a
/// change, but the path goes on working, whatever NAT it leads through.
#[test]
fn a_change_that_leaves_the_path_loses_no_packet() {
    for kinds in [
        [Kind::Open, Kind::Hard],
        [Kind::Easy, Kind::Easy],
        [Kind::Hard, Kind::Open],
    ] {
        let mut world = connected(kinds);
        world.start_flow(0, 1, ms(10), Duration::from_secs(10));
        world.start_flow(1, 0, ms(10), Duration::from_secs(10));
        world.run(Duration::from_secs(5));
        let direct = world.destination(0, 1);
        world.poke(0, |paths, now| paths.link_changed(now));
        assert!(
            matches!(world.destination(0, 1), Destination::Both(path, _)
                if direct == Destination::One(path)),
            "the relay carries packets as well until the path has answered"
        );
        let took = world.run_while(Duration::from_secs(1), |world| world.is_direct(0, 1));
        assert!(
            took.is_some_and(|took| took < ms(300)),
            "{kinds:?}: {took:?}"
        );
        world.run(Duration::from_secs(11));
        assert_eq!([0, 1].map(|flow: usize| world.flows[flow].lost()), [0, 0]);
    }
}

#[test]
fn a_restarted_peer_is_found_again() {
    let mut world = connected([Kind::Easy, Kind::Easy]);
    world.start_flow(1, 0, ms(10), Duration::from_secs(20));
    world.run(Duration::from_secs(3));
    world.restart(0);
    let took = world.run_while(Duration::from_secs(5), |world| world.is_direct(0, 1));
    assert!(took.is_some_and(|took| took < ms(1000)), "{took:?}");
    let took = world.run_while(Duration::from_secs(5), |world| world.is_direct(1, 0));
    assert!(took.is_some_and(|took| took < ms(1000)), "{took:?}");
}

/// 45 s after the last packet neither side sends anything, neither pings nor
/// STUN.
#[test]
fn idle_is_silent() {
    for kinds in [
        [Kind::Easy, Kind::Easy],
        [Kind::Hard, Kind::Hard],
        [Kind::Open, Kind::Hard],
    ] {
        let mut world = World::new(&kinds);
        world.join(0);
        world.join(1);
        world.start_flow(0, 1, ms(100), Duration::from_secs(3));
        world.run(Duration::from_secs(3));
        let active = world.nodes[0].udp_sent;
        world.run(Duration::from_secs(10));
        assert!(world.nodes[0].udp_sent > active, "still active");
        world.run(Duration::from_secs(42));
        let sent = [world.nodes[0].udp_sent, world.nodes[1].udp_sent];
        let calls = world.paths(0).counters().call_me_maybes_sent;
        world.run(Duration::from_secs(300));
        assert_eq!(
            [world.nodes[0].udp_sent, world.nodes[1].udp_sent],
            sent,
            "{kinds:?}"
        );
        assert_eq!(world.paths(0).counters().call_me_maybes_sent, calls);
    }
}

/// After a long silence the first packets take both ways: none is lost.
#[test]
fn waking_up_loses_nothing() {
    let mut world = connected([Kind::Easy, Kind::Easy]);
    world.run(Duration::from_secs(600));
    world.start_flow(0, 1, ms(10), Duration::from_secs(10));
    let took = world.run_while(Duration::from_secs(5), |world| world.is_direct(0, 1));
    assert!(took.is_some_and(|took| took < ms(1000)), "{took:?}");
    world.run(Duration::from_secs(11));
    assert_eq!(world.flows[0].lost(), 0);
}

/// A busy pair is not pinged more than it must be.
#[test]
fn a_healthy_path_is_checked_gently() {
    let mut world = connected([Kind::Easy, Kind::Easy]);
    world.start_flow(0, 1, ms(10), Duration::from_secs(70));
    world.start_flow(1, 0, ms(10), Duration::from_secs(70));
    world.run(Duration::from_secs(5));
    let before = world.paths(0).counters();
    world.run(Duration::from_secs(60));
    let after = world.paths(0).counters();
    let pings = after.pings_sent - before.pings_sent;
    assert!((20..=75).contains(&pings), "{pings} pings in a minute");
    assert_eq!(after.call_me_maybes_sent, before.call_me_maybes_sent);
    let stun = after.stun_sent - before.stun_sent;
    assert!((2..=24).contains(&stun), "{stun} STUN requests in a minute");
}

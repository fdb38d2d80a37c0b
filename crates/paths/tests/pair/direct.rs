//! The pairs that get a direct path, and how fast.

use std::time::Duration;

use warren_control_types::{EndpointType, RegionId};
use warren_paths::{Destination, Event, PathAddr, PeerIndex};

use crate::nat::{ALL, Kind};
use crate::world::{World, ms};

const GOAL: Duration = Duration::from_secs(1);

/// Whether a direct path is possible between two NATs without guessing ports.
fn can_be_direct(a: Kind, b: Kind) -> bool {
    use Kind::{Blocked, Cone, Easy, Firewall, Hard, Open};
    match (a, b) {
        (Blocked, _) | (_, Blocked) => false,
        (Hard, Easy | Firewall | Hard) | (Easy | Firewall, Hard) => false,
        (Open | Cone | Easy | Firewall | Hard, _) => true,
    }
}

fn joined(kinds: [Kind; 2], apart: Duration) -> World {
    let mut world = World::new(&kinds);
    world.join(0);
    world.run(apart);
    world.join(1);
    world
}

fn both_direct(world: &World) -> bool {
    world.is_direct(0, 1) && world.is_direct(1, 0)
}

/// One joins while the other is long there; one packet every 10 ms both ways.
#[test]
fn pairs_that_can_be_direct_become_direct_with_packets() {
    for a in ALL {
        for b in ALL {
            let mut world = joined([a, b], Duration::from_secs(8));
            world.start_flow(0, 1, ms(10), Duration::from_secs(20));
            world.start_flow(1, 0, ms(10), Duration::from_secs(20));
            let took = world.run_while(Duration::from_secs(20), both_direct);
            println!("{a:?} - {b:?}: {took:?}");
            assert_direct_in_time(a, b, took);
            world.run(Duration::from_secs(21));
            for flow in &world.flows {
                assert!(
                    flow.packets.len() > 1900,
                    "{a:?} - {b:?}: {}",
                    flow.packets.len()
                );
                assert_eq!(flow.lost(), 0, "{a:?} - {b:?}");
            }
        }
    }
}

/// A pair that can be direct was so within the goal; another one never was.
fn assert_direct_in_time(a: Kind, b: Kind, took: Option<Duration>) {
    assert_eq!(
        took.is_some(),
        can_be_direct(a, b),
        "{a:?} - {b:?}: {took:?}"
    );
    assert!(
        took.is_none_or(|took| took < GOAL),
        "{a:?} - {b:?}: {took:?}"
    );
}

/// Both join at the same time and send nothing: the path is there before the
/// first packet.
#[test]
fn pairs_that_can_be_direct_become_direct_without_packets() {
    for apart in [ms(0), ms(30), ms(130)] {
        for a in ALL {
            for b in ALL {
                let mut world = joined([a, b], apart);
                let took = world.run_while(Duration::from_secs(20), both_direct);
                assert_direct_in_time(a, b, took);
            }
        }
    }
}

/// A foreign peer pings only after a CallMeMaybe, or every 5 s.
#[test]
fn pairs_with_a_foreign_peer_become_direct() {
    for a in ALL {
        for b in ALL {
            let mut world = World::new(&[a]);
            world.add(b, true);
            world.join(1);
            world.run(Duration::from_secs(8));
            world.join(0);
            world.start_flow(0, 1, ms(100), Duration::from_secs(20));
            world.start_flow(1, 0, ms(100), Duration::from_secs(20));
            // The path that the foreign peer uses does not matter here.
            let took = world.run_while(Duration::from_secs(20), |world| world.is_direct(0, 1));
            assert_direct_in_time(a, b, took);
        }
    }
}

#[test]
fn direct_paths_need_one_region_only() {
    let mut world = World::new(&[Kind::Easy, Kind::Easy]);
    world.regions = 1;
    world.join(0);
    world.join(1);
    assert!(world.run_while(GOAL, both_direct).is_some());
    let varies = world.paths(0).net_info().mapping_varies_by_dest_ip;
    assert_eq!(varies, None, "one server is not enough to know");
}

#[test]
fn findings_are_reported_to_control() {
    let mut world = joined([Kind::Hard, Kind::Easy], ms(0));
    world.run(Duration::from_secs(6));
    let info = |world: &mut World, node| world.paths(node).net_info();
    assert_eq!(info(&mut world, 0).mapping_varies_by_dest_ip, Some(true));
    let easy = info(&mut world, 1);
    assert_eq!(easy.mapping_varies_by_dest_ip, Some(false));
    assert_eq!(easy.working_udp, Some(true));
    assert_eq!(easy.preferred_derp, Some(RegionId(1)));
    assert_eq!(easy.derp_latency.get("2-v4"), Some(&0.04));

    let lists: Vec<_> = world.nodes[1]
        .events
        .iter()
        .filter_map(|event| match event {
            Event::Endpoints(list) => Some(list.iter().map(|(_, kind)| *kind).collect::<Vec<_>>()),
            _ => None,
        })
        .collect();
    assert_eq!(lists, [[EndpointType::Stun, EndpointType::Local]]);
}

/// Without UDP the home is the region that answers HTTPS first.
#[test]
fn without_udp_home_is_the_first_region_that_answers_https() {
    let mut world = World::new(&[Kind::Blocked]);
    world.join(0);
    world.run(ms(310));
    let asked = Event::ProbeRelayHttps {
        region: RegionId(2),
    };
    assert!(world.nodes[0].events.contains(&asked));
    assert_eq!(world.paths(0).home(), None);
    world.poke(0, |paths, now| {
        paths.relay_https_latency(now, RegionId(2), ms(50))
    });
    assert_eq!(world.paths(0).home(), Some(RegionId(2)));
    world.run(Duration::from_secs(6));
    assert_eq!(world.paths(0).net_info().working_udp, Some(false));
}

/// Nothing answers at all: still some home, always the same.
#[test]
fn without_any_answer_home_is_always_the_same_region() {
    let home = || {
        let mut world = World::new(&[Kind::Blocked]);
        world.join(0);
        world.run(Duration::from_secs(6));
        world.paths(0).home()
    };
    assert!(home().is_some());
    assert_eq!(home(), home());
}

#[test]
fn a_ping_of_the_user_is_answered_once() {
    let mut world = joined([Kind::Easy, Kind::Easy], ms(0));
    world.run(Duration::from_secs(2));
    world.poke(0, |paths, now| paths.ping(now, PeerIndex(1), 7, Some(900)));
    world.poke(0, |paths, now| paths.ping(now, PeerIndex(9), 8, None));
    world.run(Duration::from_secs(6));
    let pongs: Vec<_> = world.nodes[0]
        .events
        .iter()
        .filter(|event| matches!(event, Event::Pong { .. } | Event::PingFailed { .. }))
        .collect();
    assert_eq!(pongs.len(), 2, "{pongs:?}");
    assert!(pongs.iter().any(|event| {
        matches!(event, Event::Pong { token: 7, latency, .. } if *latency == ms(40))
    }));
    assert!(matches!(
        world.destination(0, 1),
        Destination::One(PathAddr::Udp(_)) | Destination::Both(..)
    ));
}

/// The relay carries the first packets, long before anything else is known.
#[test]
fn the_first_packets_take_the_relay_at_once() {
    let mut world = joined([Kind::Hard, Kind::Hard], Duration::from_secs(8));
    let took = world.run_while(Duration::from_secs(2), |world| {
        matches!(world.destination(0, 1), Destination::One(PathAddr::Derp(_)))
            && matches!(world.destination(1, 0), Destination::One(PathAddr::Derp(_)))
    });
    assert!(took.is_some_and(|took| took < ms(200)), "{took:?}");
}

//! Port mappings: when they are asked for, what they make possible, and how they
//! end.

use std::net::SocketAddr;
use std::time::Duration;

use warren_control_types::EndpointType;
use warren_paths::{Event, Family, LocalAddresses, MappingProtocols, PortMapReport};

use crate::nat::{ALL, Kind};
use crate::world::{MAPPING_LIFETIME, PORT, World, ms};

const MAPPED: &str = "198.51.100.1:50000";

/// A host behind a NAT of this kind that maps ports.
fn mapped(kind: Kind) -> World {
    let mut world = World::new(&[kind]);
    world.nodes[0].nat.maps_ports = true;
    world.join(0);
    world.run(Duration::from_secs(4));
    world
}

/// The ports that mappings were wanted for, in order.
fn wishes(world: &World) -> Vec<Option<u16>> {
    let wish = |event: &Event| match event {
        Event::WantPortMapping { family, port } => {
            assert_eq!(*family, Family::V4);
            Some(*port)
        }
        _ => None,
    };
    world.nodes[0].events.iter().filter_map(wish).collect()
}

/// The mapped endpoint that control was given last.
fn advertised(world: &World) -> Option<SocketAddr> {
    let list = world.nodes[0]
        .events
        .iter()
        .rev()
        .find_map(|event| match event {
            Event::Endpoints(list) => Some(list),
            _ => None,
        });
    let mut list = list.into_iter().flatten();
    let mapped = list.find(|(_, kind)| *kind == EndpointType::PortMapped);
    mapped.map(|(address, _)| *address)
}

#[test]
fn mappings_are_wanted_behind_nats_only() {
    for kind in ALL {
        let world = mapped(kind);
        let translated = matches!(kind, Kind::Cone | Kind::Easy | Kind::Hard);
        let expected = if translated { vec![Some(PORT)] } else { vec![] };
        assert_eq!(wishes(&world), expected, "{kind:?}");
        let address = MAPPED.parse().ok().filter(|_| translated);
        assert_eq!(advertised(&world), address, "{kind:?}");
    }
}

#[test]
fn one_mapping_makes_two_hard_nats_direct() {
    let mut world = World::new(&[Kind::Hard, Kind::Hard]);
    world.nodes[0].nat.maps_ports = true;
    world.join(0);
    world.join(1);
    let took = world.run_while(Duration::from_secs(5), |world| {
        world.is_direct(0, 1) && world.is_direct(1, 0)
    });
    assert!(
        took.is_some_and(|took| took < Duration::from_secs(1)),
        "{took:?}"
    );
}

#[test]
fn a_mapping_is_advertised_until_its_lifetime_ends() {
    let mut world = mapped(Kind::Easy);
    assert!(world.paths(0).net_info().have_port_map);
    world.run(MAPPING_LIFETIME / 2);
    let external = MAPPED.parse().unwrap();
    let renewed = PortMapReport::Mapped {
        external,
        lifetime: MAPPING_LIFETIME,
    };
    world.poke(0, |paths, now| paths.handle_port_map(now, renewed));
    world.run(MAPPING_LIFETIME - ms(1));
    assert_eq!(advertised(&world), Some(external));
    world.run(ms(100));
    assert_eq!(advertised(&world), None);
    let info = world.nodes[0]
        .events
        .iter()
        .rev()
        .find_map(|event| match event {
            Event::NetInfo(info) => Some(info.have_port_map),
            _ => None,
        });
    assert_eq!(info, Some(false));
    assert_eq!(
        wishes(&world),
        [Some(PORT)],
        "the port mapper tries again by itself"
    );
}

#[test]
fn a_change_of_network_gives_the_mapping_up_and_asks_again() {
    let mut world = mapped(Kind::Easy);
    world.poke(0, |paths, now| paths.link_changed(now));
    let endpoints = |world: &mut World| world.paths(0).endpoints().to_vec();
    let is_mapped = |(_, kind): &(_, EndpointType)| *kind == EndpointType::PortMapped;
    assert!(!endpoints(&mut world).iter().any(is_mapped));
    assert_eq!(wishes(&world), [Some(PORT), None]);
    world.run(ms(200));
    assert_eq!(wishes(&world), [Some(PORT), None, Some(PORT)]);
    assert!(endpoints(&mut world).iter().any(is_mapped));
}

#[test]
fn a_pause_gives_the_mapping_up() {
    let mut world = mapped(Kind::Easy);
    world.poke(0, |paths, now| paths.set_paused(now, true));
    assert_eq!(wishes(&world), [Some(PORT), None]);
    assert_eq!(world.paths(0).next_deadline(), None);
    world.poke(0, |paths, now| paths.set_paused(now, false));
    world.run(ms(200));
    assert_eq!(wishes(&world), [Some(PORT), None, Some(PORT)]);
}

#[test]
fn another_local_port_needs_another_mapping() {
    let mut world = mapped(Kind::Easy);
    let local = LocalAddresses {
        port_v4: Some(PORT + 1),
        interfaces: vec!["10.0.1.2".parse().unwrap()],
        ..LocalAddresses::default()
    };
    world.poke(0, |paths, now| paths.set_local_addresses(now, local));
    assert_eq!(wishes(&world), [Some(PORT), Some(PORT + 1)]);
}

#[test]
fn mappings_that_were_not_asked_for_are_refused() {
    let mut world = mapped(Kind::Open);
    let report = PortMapReport::Mapped {
        external: MAPPED.parse().unwrap(),
        lifetime: MAPPING_LIFETIME,
    };
    world.poke(0, |paths, now| paths.handle_port_map(now, report));
    world.run(ms(100));
    assert_eq!(advertised(&world), None);
    assert_eq!(world.paths(0).counters().port_mappings_refused, 1);
}

#[test]
fn the_protocols_of_the_router_are_reported_until_the_network_changes() {
    let mut world = mapped(Kind::Easy);
    let protocols = MappingProtocols {
        upnp: Some(false),
        nat_pmp: Some(true),
        pcp: None,
    };
    let report = PortMapReport::Protocols(protocols);
    world.poke(0, |paths, now| paths.handle_port_map(now, report));
    let info = world.paths(0).net_info();
    assert_eq!(
        (info.upnp, info.pmp, info.pcp),
        (Some(false), Some(true), None)
    );
    world.poke(0, |paths, now| paths.link_changed(now));
    assert_eq!(world.paths(0).net_info().pmp, None);
}

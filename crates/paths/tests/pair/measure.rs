//! Measuring through one engine: names, families, and when home may move.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use warren_control_types::{DerpMap, HostAddress, RegionId};
use warren_keys::{DiscoSecret, NodeSecret};
use warren_paths::{Event, LocalAddresses, Paths, PathsConfig, PeerIndex, PeerInfo, PeerRelayRole};
use warren_wire::stun;

use warren_testkit::SeededEntropy;

use crate::world::{World, ms};

fn engine(now: Instant, map: &DerpMap, interfaces: &[&str]) -> Paths {
    let config = PathsConfig {
        configured_port: Some(41641),
        ..PathsConfig::default()
    };
    let key = NodeSecret::from_bytes(&[1; 32]).public();
    let disco = DiscoSecret::from_bytes(&[1; 32]);
    let mut paths = Paths::new(config, key, disco, Box::new(SeededEntropy(1)));
    let local = LocalAddresses {
        port_v4: Some(41641),
        port_v6: Some(41641),
        interfaces: interfaces.iter().map(|ip| ip.parse().unwrap()).collect(),
        explicit: Vec::new(),
    };
    paths.set_local_addresses(now, local);
    paths.set_derp_map(now, map);
    paths
}

fn map() -> DerpMap {
    World::new(&[]).derp_map()
}

fn events(paths: &mut Paths) -> Vec<Event> {
    std::iter::from_fn(|| paths.poll_event()).collect()
}

/// The STUN requests in `events`: where to, and how to answer them.
fn requests(events: &[Event]) -> Vec<(SocketAddr, stun::Request)> {
    let read = |event: &Event| match event {
        Event::SendUdp { to, packet } => Some((*to, stun::Request::parse(packet).ok()?)),
        _ => None,
    };
    events.iter().filter_map(read).collect()
}

fn answer(paths: &mut Paths, now: Instant, request: (SocketAddr, stun::Request), seen: &str) {
    let response = stun::Response::to(&request.1, seen.parse().unwrap());
    assert!(paths.handle_udp(now, request.0, &response.emit()));
}

/// Lets `time` pass; what happened meanwhile.
fn pass(paths: &mut Paths, now: &mut Instant, time: Duration) -> Vec<Event> {
    let end = *now + time;
    let mut out = events(paths);
    let mut steps = 0;
    while let Some((at, _)) = paths.next_deadline().filter(|(at, _)| *at <= end) {
        *now = at.max(*now);
        paths.handle_timeout(*now);
        out.extend(events(paths));
        steps += 1;
        assert!(
            steps < 500,
            "the clock stands still: {:?}",
            paths.next_deadline()
        );
    }
    *now = end;
    out
}

#[test]
fn names_are_resolved_once() {
    let mut map = map();
    for region in map.regions.values_mut() {
        region.nodes[0].ipv4 = HostAddress::Resolve;
        region.nodes[0].host_name = "relay.example".to_owned();
    }
    let mut now = Instant::now();
    let mut paths = engine(now, &map, &["10.0.0.1"]);
    let first = pass(&mut paths, &mut now, ms(500));
    assert_eq!(requests(&first), []);
    let name = "relay.example".to_owned();
    let asked = first
        .iter()
        .filter(|event| **event == Event::ResolveHost { name: name.clone() });
    assert_eq!(asked.count(), 1);

    paths.host_resolved(now, "other.example", vec![IpAddr::from([192, 0, 2, 99])]);
    assert_eq!(requests(&events(&mut paths)), []);
    paths.host_resolved(now, &name, vec![IpAddr::from([192, 0, 2, 1])]);
    let sent = requests(&events(&mut paths));
    let to: Vec<_> = sent.iter().map(|(to, _)| to.to_string()).collect();
    assert_eq!(
        to,
        ["192.0.2.1:3478", "192.0.2.1:3478"],
        "one for each region"
    );
}

#[test]
fn a_name_without_address_stops_nothing() {
    let mut map = map();
    map.regions.get_mut(&RegionId(1)).unwrap().nodes[0].ipv4 = HostAddress::Resolve;
    let mut now = Instant::now();
    let mut paths = engine(now, &map, &["10.0.0.1"]);
    let sent = requests(&events(&mut paths));
    assert_eq!(sent.len(), 1);
    paths.host_resolved(now, "relay1.example", Vec::new());
    now += ms(20);
    answer(&mut paths, now, sent[0], "198.51.100.1:7");
    let after = pass(&mut paths, &mut now, Duration::from_secs(6));
    assert!(after.contains(&Event::HomeRelay(RegionId(2))), "{after:?}");
    assert_eq!(requests(&after), [], "nothing is left to ask");
}

#[test]
fn families_that_the_host_lacks_are_left_alone() {
    let mut map = map();
    for region in map.regions.values_mut() {
        region.nodes[0].ipv6 = HostAddress::At("2001:db8::1".parse().unwrap());
    }
    let now = Instant::now();
    let count = |interfaces: &[&str]| {
        let mut paths = engine(now, &map, interfaces);
        let info = PeerInfo {
            node_key: NodeSecret::from_bytes(&[2; 32]).public(),
            disco_key: Some(DiscoSecret::from_bytes(&[2; 32]).public()),
            endpoints: vec![
                "192.0.2.2:1".parse().unwrap(),
                "[2001:db8::2]:1".parse().unwrap(),
            ],
            home_derp: None,
            peer_relay: PeerRelayRole::Client,
        };
        paths.upsert_peer(now, PeerIndex(2), info);
        let sent = events(&mut paths)
            .into_iter()
            .filter_map(|event| match event {
                Event::SendUdp { to, .. } => Some(to),
                _ => None,
            });
        let (v4, v6): (Vec<_>, Vec<_>) = sent.partition(SocketAddr::is_ipv4);
        (v4.len(), v6.len())
    };
    assert_eq!(count(&["10.0.0.1", "fe80::1"]), (3, 0));
    assert_eq!(count(&["10.0.0.1", "2001:db8::9"]), (3, 3));
}

#[test]
fn a_forwarded_port_is_guessed_behind_a_varying_nat() {
    let mut now = Instant::now();
    let mut paths = engine(now, &map(), &["10.0.0.1"]);
    let sent = requests(&events(&mut paths));
    now += ms(20);
    answer(&mut paths, now, sent[0], "198.51.100.1:7");
    let first = events(&mut paths);
    assert!(
        first
            .iter()
            .any(|event| matches!(event, Event::Endpoints(list) if list.len() == 2))
    );
    answer(&mut paths, now, sent[1], "198.51.100.1:8");
    pass(&mut paths, &mut now, ms(100));
    let advertised: Vec<_> = paths
        .endpoints()
        .iter()
        .map(|(to, _)| to.to_string())
        .collect();
    assert_eq!(
        advertised,
        ["198.51.100.1:7", "198.51.100.1:41641", "10.0.0.1:41641"]
    );
}

/// Peers could not learn of a new home.
#[test]
fn home_stays_while_control_is_away() {
    for (connected, expected) in [(false, RegionId(1)), (true, RegionId(2))] {
        let mut now = Instant::now();
        let mut paths = engine(now, &map(), &["10.0.0.1"]);
        let measure = |paths: &mut Paths, now: &mut Instant, order: [usize; 2]| {
            let mut sent = requests(&events(paths));
            sent.sort_by_key(|(to, _)| *to);
            for region in order {
                *now += ms(20);
                answer(paths, *now, sent[region], "198.51.100.1:7");
                *now += ms(200);
            }
            pass(paths, now, Duration::from_secs(4));
        };
        measure(&mut paths, &mut now, [0, 1]);
        assert_eq!(paths.home(), Some(RegionId(1)));
        paths.set_control_connected(connected);
        // Six minutes later the other one is nearer.
        pass(&mut paths, &mut now, Duration::from_secs(360));
        paths.link_changed(now);
        measure(&mut paths, &mut now, [1, 0]);
        assert_eq!(paths.home(), Some(expected));
    }
}

#[test]
fn stray_and_forged_answers_are_counted() {
    let now = Instant::now();
    let mut paths = engine(now, &map(), &["10.0.0.1"]);
    events(&mut paths);
    let forged = stun::Request {
        transaction: stun::TransactionId([7; 12]),
    };
    answer(
        &mut paths,
        now,
        ("203.0.113.1:3478".parse().unwrap(), forged),
        "192.0.2.66:1",
    );
    assert_eq!(paths.counters().stun_unknown_transaction, 1);
    assert_eq!(paths.outside_addresses(), []);
    let request = forged.emit();
    assert!(paths.handle_udp(now, "192.0.2.66:1".parse().unwrap(), &request));
    assert_eq!(paths.counters().stun_malformed, 1);
    assert!(!paths.handle_udp(now, "192.0.2.66:1".parse().unwrap(), &[4, 0, 0, 0, 1, 2, 3]));
}

//! One way to change: what it costs, that a follower ends up the same, and that
//! decisions look at the record of the moment.

use std::collections::BTreeSet;
use std::time::Duration;

use warren_control_types::NodeId;

use super::world::{World, key, machine, map_request, request};
use crate::{NewAuthKey, Standing};

/// Pairs of nodes that see each other and no other node, all connected.
fn pairs(count: u8) -> World {
    let mut w = World::new();
    w.user("lab");
    let auth = w.reusable("lab");
    for n in 0..count {
        w.join(n, &auth);
    }
    let address = |w: &World, n: u8| w.c.node_by_key(&key(n)).unwrap().address.v4();
    let rules: Vec<String> = (0..count)
        .step_by(2)
        .map(|n| {
            format!(
                r#"{{"action": "accept", "src": ["{}"], "dst": ["{}:*"]}}"#,
                address(&w, n),
                address(&w, n + 1)
            )
        })
        .collect();
    let policy = format!(r#"{{"acls": [{}]}}"#, rules.join(","));
    w.c.set_policy(Some(policy)).unwrap();
    for n in 0..count {
        w.open(n).unwrap();
    }
    w.settle();
    w.read_all();
    w.c.take_visited();
    w
}

#[test]
fn change_of_one_node_looks_at_the_sessions_it_concerns_and_no_others() {
    let mut costs = BTreeSet::new();
    for count in [4, 64] {
        let mut w = pairs(count);
        let mut update = map_request(0);
        update.endpoints = vec![([192, 0, 2, 1], 1).into()];
        w.c.update(machine(0), &update).unwrap();
        let endpoints = w.c.take_visited();
        w.c.rename_node("host1", "db").unwrap();
        let name = w.c.take_visited();
        let session = w.c.session_of(NodeId(1)).unwrap();
        w.close(session);
        w.pass(Duration::from_secs(10));
        let offline = w.c.take_visited();
        costs.insert((endpoints, name, offline));
    }
    // As much in a network of 64 as in one of 4.
    assert_eq!(costs.len(), 1, "{costs:?}");
    let (endpoints, ..) = costs.first().unwrap();
    assert_eq!(*endpoints, (2, 0), "the peer, and the node itself");
}

#[test]
fn change_of_one_router_looks_at_the_routers_of_its_subnets_and_no_others() {
    let mut w = World::new();
    w.user("lab");
    let auth = w.reusable("lab");
    for n in 0..40 {
        let mut r = request(n, &auth);
        let route = format!("10.{}.0.0/16", n / 2);
        r.hostinfo.as_mut().unwrap().routable_ips = vec![route.parse().unwrap()];
        assert!(w.answer(n, &r).machine_authorized);
        let id = w.c.node_by_key(&key(n)).unwrap().id;
        w.c.approve_routes(id, &[route.parse().unwrap()]).unwrap();
    }
    w.settle();
    w.c.take_visited();
    w.open(0).unwrap();
    assert_eq!(w.c.take_visited().1, 2);
}

/// Two routers of one subnet, both online, and a viewer.
fn routers() -> (World, crate::SessionId) {
    let mut w = World::new();
    w.user("lab");
    let auth = w.reusable("lab");
    let route = "10.9.0.0/16".parse().unwrap();
    for n in [1, 2] {
        let mut r = request(n, &auth);
        r.hostinfo.as_mut().unwrap().routable_ips = vec![route];
        assert!(w.answer(n, &r).machine_authorized);
        w.c.approve_routes(format!("host{n}"), &[route]).unwrap();
    }
    w.join(3, &auth);
    let viewer = w.open(3).unwrap();
    for n in [1, 2] {
        w.open(n).unwrap();
    }
    w.read_all();
    (w, viewer)
}

fn active(w: &mut World, viewer: crate::SessionId) -> Vec<i64> {
    w.read(viewer);
    let peers = w.clients[&viewer].peers.values();
    let routers = peers.filter(|peer| !peer.primary_routes.is_empty());
    routers.map(|peer| peer.id.0).collect()
}

#[test]
fn expired_router_gives_its_subnet_to_the_one_that_may_serve() {
    let (mut w, viewer) = routers();
    assert_eq!(active(&mut w, viewer), [1]);
    w.c.expire_node(w.wall, "host1").unwrap();
    w.settle();
    assert_eq!(active(&mut w, viewer), [2]);
    let (first, second) = (NodeId(1), NodeId(2));
    let view = w.c.view();
    assert_eq!(view.standing(first), Standing::Expired);
    assert_eq!(view.standing(second), Standing::Online);
    assert!(!w.c.admits(&key(1)) && w.c.admits(&key(2)));
    // A new login makes it equal again: the present router stays.
    let auth = w.reusable("lab");
    let mut again = request(11, &auth);
    let known = w.c.node(first).unwrap();
    again.hostinfo = Some(known.hostinfo.clone());
    let outcome = w.c.register(w.now, w.wall, machine(1), &again);
    assert!(matches!(outcome, crate::RegisterOutcome::Answer(a) if a.machine_authorized));
    w.settle();
    assert_eq!(active(&mut w, viewer), [2]);
}

#[test]
fn wall_clock_that_jumps_and_comes_back_expires_no_key() {
    let (mut w, viewer) = routers();
    let ahead = Duration::from_secs(200 * 24 * 3600);
    w.wall += ahead;
    w.pass(Duration::from_secs(35));
    w.read(viewer);
    assert!(w.clients[&viewer].peers.values().all(|peer| !peer.expired));
    assert_eq!(active(&mut w, viewer), [1]);
    // All decisions go by one time, that of peers and that of the relay.
    assert!(w.c.admits(&super::world::key(1)));
    w.wall -= ahead;
    w.pass(Duration::from_secs(400));
    w.read(viewer);
    assert!(w.clients[&viewer].peers.values().all(|peer| !peer.expired));
}

#[test]
fn wall_clock_that_stays_elsewhere_expires_keys_and_makes_them_valid_again() {
    let (mut w, viewer) = routers();
    let ahead = Duration::from_secs(200 * 24 * 3600);
    // The checks come by themselves, also when no key is left to expire.
    let pass_settling_time = |w: &mut World| {
        let end = w.now + crate::clock::SETTLE + Duration::from_secs(60);
        while w.now < end {
            let (at, _) = w.c.next_deadline().unwrap();
            assert!(at <= w.now + Duration::from_secs(30));
            w.pass(at - w.now);
            w.read_all();
        }
    };
    // The key of the viewer expires too, and it sees nothing of others then.
    let valid = |w: &World| {
        let map = &w.clients[&viewer];
        let peers = map.peers.values().filter(|peer| !peer.expired).count();
        (!map.self_node.as_ref().unwrap().expired, peers)
    };
    w.wall += ahead;
    pass_settling_time(&mut w);
    assert_eq!(valid(&w), (false, 0));
    assert!(!w.c.admits(&super::world::key(1)));
    w.wall -= ahead;
    pass_settling_time(&mut w);
    assert_eq!(valid(&w), (true, 2));
    assert_eq!(active(&mut w, viewer), [1]);
}

#[test]
fn deletion_of_an_ephemeral_node_looks_at_the_record_of_the_moment() {
    let mut w = World::new();
    w.user("lab");
    let ephemeral = w.auth_key(NewAuthKey {
        user: Some("lab".into()),
        ephemeral: true,
        reusable: true,
        ..NewAuthKey::default()
    });
    let ordinary = w.reusable("lab");
    // Ephemeral, away, and back as an ordinary node that opens no stream.
    let id = w.join(1, &ephemeral);
    w.pass(Duration::from_secs(60));
    assert!(w.c.node(id).unwrap().ephemeral);
    let again = request(11, &ordinary);
    let renew = |w: &mut World, request| {
        let outcome = w.c.register(w.now, w.wall, machine(1), request);
        assert!(matches!(outcome, crate::RegisterOutcome::Answer(a) if a.machine_authorized));
        w.settle();
    };
    renew(&mut w, &again);
    w.pass(Duration::from_secs(300));
    assert!(w.c.node(id).is_some(), "not ephemeral any more");
    // The other way round, without a stream in between.
    renew(&mut w, &request(12, &ephemeral));
    w.pass(Duration::from_secs(119));
    assert!(w.c.node(id).is_some());
    w.pass(Duration::from_secs(1));
    assert!(w.c.node(id).is_none());
}

#[test]
fn reader_keeps_its_state_while_the_coordinator_goes_on() {
    let mut w = World::new();
    w.user("lab");
    let auth = w.reusable("lab");
    let id = w.join(1, &auth);
    let view = w.c.view();
    w.c.rename_node(id, "db").unwrap();
    w.join(2, &auth);
    w.c.delete_node(id).unwrap();
    assert_eq!(view.node(id).unwrap().name, "host1");
    assert_eq!((view.node_count(), w.c.view().node_count()), (1, 1));
    assert!(view.find_node("host1").is_ok() && w.c.find_node("host1").is_err());
    assert!(view.render(w.wall, id).is_some());
}

//! A policy in force: the peers and filters of each node.

use super::world::{World, request};

const ONLY_TO_DB: &str = r#"{
    // members reach the database, and nothing else is reachable
    "tagOwners": {"tag:db": ["alice@"]},
    "acls": [{"action": "accept", "src": ["alice@"], "dst": ["tag:db:5432"]}],
}"#;

#[test]
fn a_policy_takes_peers_away_and_gives_them_back() {
    let (mut w, alice, bob) = World::alice_and_bob();
    w.join(1, &alice);
    w.join(2, &bob);
    w.join(3, &bob);
    w.c.tag_node("host3", ["tag:db".to_owned()].into()).unwrap();
    w.settle();
    let (a, b, db) = (w.open(1).unwrap(), w.open(2).unwrap(), w.open(3).unwrap());
    w.read_all();
    assert_eq!(w.clients[&a].peers.len(), 2);

    w.c.set_policy(Some(ONLY_TO_DB.to_owned())).unwrap();
    w.settle();
    w.read_all();
    let peers = |w: &World, s| -> Vec<String> {
        w.clients[&s]
            .peers
            .values()
            .map(|p| p.base_name().to_owned())
            .collect()
    };
    assert_eq!(peers(&w, a), ["host3"]);
    assert_eq!(peers(&w, db), ["host1"]);
    assert_eq!(peers(&w, b), Vec::<String>::new());
    assert_eq!(w.clients[&b].packet_filter().count(), 0, "nothing comes in");
    assert_eq!(w.clients[&db].packet_filter().count(), 1);

    // A change of a node is sent to the nodes that see it, and to no others.
    w.c.rename_node("host1", "laptop").unwrap();
    w.settle();
    assert!(w.woken.contains(&db) && !w.woken.contains(&b));
    w.read_all();
    assert_eq!(peers(&w, db), ["laptop"]);

    // A new machine of alice's changes what the database lets in.
    w.join(4, &alice);
    w.settle();
    assert!(!w.woken.contains(&b));
    w.read_all();
    let sources: usize = w.clients[&db]
        .packet_filter()
        .map(|rule| rule.src_ips.len())
        .sum();
    assert!(sources >= 2, "{sources}");
    assert_eq!(peers(&w, db).len(), 2);

    w.c.set_policy(None).unwrap();
    w.settle();
    w.read_all();
    assert_eq!(w.clients[&b].peers.len(), 3);
}

#[test]
fn a_broken_policy_changes_nothing_and_says_where() {
    let mut w = World::new();
    let error =
        w.c.set_policy(Some("{\"acls\": [}".to_owned()))
            .unwrap_err()
            .to_string();
    assert!(error.contains("1:"), "{error}");
    let error =
        w.c.set_policy(Some(
            r#"{"acls": [{"action": "accept", "src": ["group:x"], "dst": ["*:*"]}]}"#.to_owned(),
        ))
        .unwrap_err()
        .to_string();
    assert!(error.contains("group:x"), "{error}");
    assert!(w.c.snapshot().policy.is_none());
}

#[test]
fn every_wanted_tag_needs_an_owner() {
    let mut w = World::new();
    w.user("alice");
    let policy = r#"{"tagOwners": {"tag:db": ["alice@"], "tag:ci": []}}"#;
    w.c.set_policy(Some(policy.to_owned())).unwrap();
    let alice = w.reusable("alice");
    for (tags, refused) in [
        (vec!["tag:db", "tag:ci"], Some("tag:ci")),
        (vec!["tag:ci", "tag:db"], Some("tag:ci")),
        (vec!["tag:db"], None),
    ] {
        let mut claim = request(1, &alice);
        claim.hostinfo.as_mut().unwrap().request_tags =
            tags.into_iter().map(str::to_owned).collect();
        let error = w.answer(1, &claim).error;
        match refused {
            Some(tag) => assert!(error.contains(tag), "{error}"),
            None => assert_eq!(error, ""),
        }
    }
    assert!(w.c.find_node("host1").unwrap().is_tagged());
}

#[test]
fn routes_are_told_to_those_who_may_use_them() {
    let (mut w, alice, bob) = World::alice_and_bob();
    let routes: Vec<ipnet::IpNet> = ["10.1.0.0/16", "0.0.0.0/0", "::/0"]
        .into_iter()
        .map(|route| route.parse().unwrap())
        .collect();
    let mut router = request(1, &alice);
    router
        .hostinfo
        .as_mut()
        .unwrap()
        .routable_ips
        .clone_from(&routes);
    assert_eq!(w.answer(1, &router).error, "");
    w.c.approve_routes("host1", &routes).unwrap();
    w.join(2, &alice);
    w.join(3, &bob);
    w.open(1).unwrap();
    let (a, b) = (w.open(2).unwrap(), w.open(3).unwrap());
    w.read_all();
    let routes = |w: &World, session| {
        let router = w.clients[&session]
            .peers
            .values()
            .find(|peer| peer.base_name() == "host1")
            .unwrap();
        (router.allowed_ips().len(), router.primary_routes.len())
    };
    assert_eq!((routes(&w, a), routes(&w, b)), ((5, 1), (5, 1)));

    // Bob may ping the router, alice may use what is behind it.
    let policy = |subnet_for: &str| {
        format!(
            r#"{{"acls": [
                {{"action": "accept", "src": ["alice@", "bob@"], "dst": ["100.64.0.1:*"]}},
                {{"action": "accept", "src": ["{subnet_for}"], "dst": ["10.1.2.0/24:22"]}},
                {{"action": "accept", "src": ["alice@"], "dst": ["autogroup:internet:*"]}}]}}"#
        )
    };
    w.c.set_policy(Some(policy("alice@"))).unwrap();
    w.settle();
    w.read_all();
    assert_eq!((routes(&w, a), routes(&w, b)), ((5, 1), (2, 0)));

    // Another rule for the same peers: the visible peers stay, the routes change.
    w.c.set_policy(Some(policy("bob@"))).unwrap();
    w.settle();
    w.read_all();
    assert_eq!((routes(&w, a), routes(&w, b)), ((4, 0), (3, 1)));
}

#[test]
fn node_sent_through_a_tagged_router_falls_over_to_another() {
    let mut w = World::new();
    w.user("alice");
    let alice = w.reusable("alice");
    let route: ipnet::IpNet = "10.1.0.0/16".parse().unwrap();
    w.c.set_policy(Some(
        r#"{"tagOwners": {"tag:r": ["alice@"]}, "grants": [
        {"src": ["alice@"], "dst": ["tag:r"], "ip": ["icmp:*"]},
        {"src": ["alice@"], "dst": ["10.1.0.0/16"], "ip": ["*"], "via": ["tag:r"]}]}"#
            .to_owned(),
    ))
    .unwrap();
    for n in [1, 2] {
        let mut router = request(n, &alice);
        let host = router.hostinfo.as_mut().unwrap();
        host.routable_ips = vec![route];
        host.request_tags = vec!["tag:r".to_owned()];
        assert_eq!(w.answer(n, &router).error, "");
        w.c.approve_routes(format!("host{n}"), &[route]).unwrap();
    }
    w.join(3, &alice);
    let viewer = w.open(3).unwrap();
    let routers = |w: &mut World| {
        w.settle();
        w.read_all();
        let peers = w.clients[&viewer].peers.values();
        let given = peers.filter(|peer| peer.primary_routes.contains(&route));
        let names: Vec<String> = given.map(|peer| peer.base_name().to_owned()).collect();
        names
    };
    // None is online: the oldest.
    assert_eq!(routers(&mut w), ["host1"]);
    let _second = w.open(2).unwrap();
    assert_eq!(routers(&mut w), ["host2"]);
    let first = w.open(1).unwrap();
    assert_eq!(routers(&mut w), ["host1"]);
    // A new stream within a second moves nothing.
    w.close(first);
    w.clients.remove(&first);
    assert_eq!(routers(&mut w), ["host1"]);
    w.pass(std::time::Duration::from_millis(500));
    assert_eq!(routers(&mut w), ["host1"]);
    let first = w.open(1).unwrap();
    w.pass(std::time::Duration::from_secs(2));
    assert_eq!(routers(&mut w), ["host1"]);
    w.close(first);
    w.clients.remove(&first);
    w.pass(std::time::Duration::from_secs(3600));
    assert_eq!(routers(&mut w), ["host2"]);
}

#[test]
fn a_router_keeps_its_own_routes_whoever_is_active() {
    let mut w = World::new();
    w.user("alice");
    let alice = w.reusable("alice");
    let route: ipnet::IpNet = "10.1.0.0/16".parse().unwrap();
    for n in [1, 2] {
        let mut router = request(n, &alice);
        router.hostinfo.as_mut().unwrap().routable_ips = vec![route];
        assert_eq!(w.answer(n, &router).error, "");
        w.c.approve_routes(format!("host{n}"), &[route]).unwrap();
    }
    let (_active, standby) = (w.open(1).unwrap(), w.open(2).unwrap());
    w.read_all();
    w.read(standby);
    let own = w.clients[&standby].self_node.as_ref().unwrap();
    assert_eq!(own.allowed_ips().len(), 3);
    assert!(own.primary_routes.is_empty());
}

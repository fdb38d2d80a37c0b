//! Roles of users in a policy.

use warren_control_types::{Hostinfo, UserId};

use super::world::{World, meaning, request};
use crate::{AdminError, Role};

const POLICY: &str = r#"{
    "tagOwners": {"tag:db": []},
    "acls": [{"action": "accept", "src": ["autogroup:admin"], "dst": ["tag:db:22"]}],
    "ssh": [{"action": "accept", "src": ["autogroup:admin"], "dst": ["tag:db"], "users": ["root"]}],
    "nodeAttrs": [{"target": ["autogroup:network-admin"], "attr": ["custom"]}],
    "autoApprovers": {"routes": {"10.0.0.0/8": ["autogroup:network-admin"]}},
}"#;

#[test]
fn a_role_takes_effect_at_once_and_is_kept() {
    let (mut w, alice, bob) = World::alice_and_bob();
    w.join(1, &alice);
    w.join(2, &bob);
    w.c.tag_node("host2", ["tag:db".to_owned()].into()).unwrap();
    w.c.set_policy(Some(POLICY.to_owned())).unwrap();
    w.settle();
    let (a, db) = (w.open(1).unwrap(), w.open(2).unwrap());
    w.read_all();
    assert_eq!(w.c.snapshot().users[&UserId(1)].role, Role::Member);
    let seen = |w: &World| {
        (
            w.clients[&db].packet_filter().count(),
            w.clients[&db].ssh_policy.clone().unwrap().rules.len(),
            w.clients[&db].peers.len(),
            w.clients[&a].peers.len(),
        )
    };
    assert_eq!(seen(&w), (0, 0, 0, 0));

    // An owner is an admin too.
    for (role, expected) in [
        (Role::Admin, (1, 1, 1, 1)),
        (Role::ItAdmin, (0, 0, 0, 0)),
        (Role::Owner, (1, 1, 1, 1)),
        (Role::Member, (0, 0, 0, 0)),
    ] {
        let user = w.c.set_role("alice", role).unwrap();
        assert_eq!(user.role, role);
        w.settle();
        w.read_all();
        assert_eq!(seen(&w), expected, "{role}");
        assert_eq!(w.stored.users[&UserId(1)].role, role);
        for (session, id) in [(a, 1), (db, 2)] {
            let fresh = w.fresh(warren_control_types::NodeId(id));
            assert_eq!(meaning(w.clients[&session].clone()), meaning(fresh));
        }
    }

    // The same again is sent to no node.
    w.c.set_role("alice", Role::Member).unwrap();
    w.settle();
    assert!(w.woken.is_empty());
    assert!(matches!(
        w.c.set_role("missing", Role::Owner),
        Err(AdminError::NoUser(_))
    ));
}

/// With a policy or without one, its nodes are sent the role; a tagged node has no user.
#[test]
fn nodes_learn_the_role_of_their_user() {
    for policy in [None, Some(POLICY)] {
        let (mut w, alice, bob) = World::alice_and_bob();
        w.join(1, &alice);
        w.join(2, &alice);
        w.join(3, &bob);
        w.c.set_policy(policy.map(str::to_owned)).unwrap();
        w.c.tag_node("host2", ["tag:db".to_owned()].into()).unwrap();
        w.settle();
        let sessions = [1, 2, 3].map(|n| w.open(n).unwrap());
        w.read_all();
        let capabilities = |w: &World| {
            sessions.map(|session| {
                let own = w.clients[&session].self_node.as_ref().unwrap();
                ["is-admin", "is-owner"].map(|name| {
                    own.cap_map
                        .has(&format!("https://tailscale.com/cap/{name}"))
                })
            })
        };
        const NOTHING: [bool; 2] = [false; 2];
        assert_eq!(capabilities(&w), [NOTHING; 3]);
        for (role, expected) in [
            (Role::Admin, [true, false]),
            (Role::Owner, [true, true]),
            (Role::NetworkAdmin, NOTHING),
            (Role::Owner, [true, true]),
            (Role::Member, NOTHING),
        ] {
            w.c.set_role("alice", role).unwrap();
            w.settle();
            w.read_all();
            assert_eq!(capabilities(&w), [expected, NOTHING, NOTHING], "{role}");
        }
    }
}

#[test]
fn attributes_tags_and_routes_follow_the_role() {
    let mut w = World::new();
    w.user("alice");
    let auth = w.reusable("alice");
    w.c.set_policy(Some(POLICY.to_owned())).unwrap();
    let mut router = request(1, &auth);
    router.hostinfo = Some(Hostinfo {
        routable_ips: vec!["10.1.0.0/16".parse().unwrap()],
        ..router.hostinfo.unwrap()
    });
    assert_eq!(w.answer(1, &router).error, "");
    let a = w.open(1).unwrap();
    w.read_all();
    let own = |w: &World| w.clients[&a].self_node.clone().unwrap();
    assert!(!own(&w).cap_map.has("custom"));
    assert!(own(&w).primary_routes.is_empty());
    let mut tagged = request(2, &auth);
    tagged.hostinfo = Some(Hostinfo {
        request_tags: vec!["tag:db".to_owned()],
        ..tagged.hostinfo.unwrap()
    });
    assert!(w.answer(2, &tagged).error.contains("not permitted"));

    w.c.set_role("alice", Role::NetworkAdmin).unwrap();
    w.settle();
    w.read_all();
    assert!(own(&w).cap_map.has("custom"));
    assert_eq!(own(&w).primary_routes.len(), 1);
    assert_eq!(w.answer(2, &tagged).error, "");

    // No rule approves the tag or the route any more; approved ones stay.
    w.c.set_role("alice", Role::Member).unwrap();
    w.settle();
    w.read_all();
    assert!(!own(&w).cap_map.has("custom"));
    assert_eq!(own(&w).primary_routes.len(), 1);
}

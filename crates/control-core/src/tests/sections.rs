//! The sections of a policy besides its access rules, in the maps of nodes.

use warren_control_types::{Hostinfo, MapRequest};

use super::world::{World, key, machine, map_request, request};

const POLICY: &str = r#"{
    "tagOwners": {"tag:db": ["alice@"]},
    "postures": {"posture:linux": ["node:os == 'linux'"]},
    "acls": [{"action": "accept", "src": ["alice@"], "dst": ["tag:db:22"], "srcPosture": ["posture:linux"]}],
    "ssh": [
        {"action": "accept", "src": ["alice@"], "dst": ["tag:db"], "users": ["ubuntu"]},
        {"action": "check", "src": ["alice@"], "dst": ["tag:db"], "users": ["root"]},
    ],
    "nodeAttrs": [
        {"target": ["tag:db"], "attr": ["disable-ipv4", "custom"]},
        {"target": ["bob@"], "ipPool": ["100.90.0.0/30"]},
    ],
    "derpMap": {"regions": {"900": {"regionID": 900, "regionCode": "own"}}},
    "randomizeClientPort": true,
}"#;

/// The zone of the tests is warren.internal.
#[test]
fn relay_of_a_policy_that_is_named_in_the_nodes_zone_is_refused() {
    let mut w = World::new();
    for (name, refused) in [
        ("relay.warren.internal", true),
        ("Relay.Warren.Internal.", true),
        ("warren.internal", true),
        ("relay.warren.internal.example.org", false),
        ("notwarren.internal", false),
    ] {
        let text = format!(
            r#"{{"derpMap": {{"regions": {{"900": {{
                "regionID": 900, "regionCode": "own",
                "nodes": [{{"name": "900a", "regionID": 900, "hostName": "{name}"}}],
            }}}}}}}}"#
        );
        match w.c.set_policy(Some(text)) {
            Ok(()) => assert!(!refused, "{name}"),
            Err(error) => assert!(refused && error.to_string().contains("zone"), "{error}"),
        }
    }
}

#[test]
fn sections_reach_the_nodes_they_speak_of() {
    let (mut w, alice, bob) = World::alice_and_bob();
    w.join(1, &alice);
    w.join(2, &alice);
    w.c.tag_node("host2", ["tag:db".to_owned()].into()).unwrap();
    w.settle();
    let (a, db) = (w.open(1).unwrap(), w.open(2).unwrap());
    w.read_all();
    let own = |w: &World, s| w.clients[&s].self_node.clone().unwrap();
    assert!(w.clients[&db].ssh_policy.as_ref().unwrap().rules.is_empty());
    assert_eq!(own(&w, db).addresses.len(), 2);

    w.c.set_policy(Some(POLICY.to_owned())).unwrap();
    w.settle();
    w.read_all();
    let rules = w.clients[&db].ssh_policy.clone().unwrap().rules;
    assert_eq!(rules.len(), 2);
    let check = rules[0].action.as_ref().unwrap();
    assert!(
        check
            .hold_and_delegate
            .starts_with("http://192.0.2.1:8080/machine/ssh/action/"),
        "{check:?}"
    );
    assert_eq!(rules[1].ssh_users["ubuntu"], "ubuntu");
    assert!(w.clients[&a].ssh_policy.as_ref().unwrap().rules.is_empty());
    assert!(own(&w, db).cap_map.has("custom"));
    assert!(own(&w, db).cap_map.has("randomize-client-port"));
    assert!(!own(&w, a).cap_map.has("custom"));
    // Without IPv4 in its own eyes, in others', and others in its.
    assert_eq!(own(&w, db).addresses.len(), 1);
    assert_eq!(own(&w, a).addresses.len(), 2);
    for session in [a, db] {
        let peer = w.clients[&session].peers.values().next().unwrap();
        assert_eq!(peer.addresses.len(), 1);
        assert!(peer.addresses[0].addr().is_ipv6());
    }
    let regions = |w: &World| w.clients[&a].derp_map.regions.len();
    assert_eq!(regions(&w), 1);

    // bob's nodes get their addresses from the pool, until it is used up.
    for n in 3..6 {
        let id = w.join(n, &bob);
        let address = w.c.snapshot().nodes[&id].address.v4().to_string();
        assert_eq!(address, format!("100.90.0.{}", n - 3));
    }
    let id = w.join(6, &alice);
    let address = w.c.snapshot().nodes[&id].address.v4().to_string();
    assert!(address.starts_with("100.64.0."), "{address}");

    // Another system than the posture asks for: nothing comes in from there.
    let sources = |w: &World| -> Vec<String> {
        w.clients[&db]
            .packet_filter()
            .flat_map(|rule| rule.src_ips.clone())
            .collect()
    };
    w.read_all();
    let before = sources(&w);
    let mut hostinfo: Hostinfo = request(1, "").hostinfo.unwrap();
    hostinfo.os = "windows".to_owned();
    let update = MapRequest {
        stream: false,
        omit_peers: true,
        hostinfo: Some(hostinfo),
        ..map_request(1)
    };
    assert_eq!(update.node_key, key(1));
    w.c.update(machine(1), &update).unwrap();
    w.settle();
    w.read_all();
    let after = sources(&w);
    assert_eq!(before.len(), after.len() + 2, "{before:?} {after:?}");
    assert!(!w.clients[&db].peers.contains_key(&own(&w, a).id));

    w.c.set_policy(None).unwrap();
    w.settle();
    w.read_all();
    assert!(w.clients[&db].ssh_policy.as_ref().unwrap().rules.is_empty());
    assert!(!own(&w, db).cap_map.has("custom"));
    assert_eq!(own(&w, db).addresses.len(), 2);
    let peer = w.clients[&a].peers.values().next().unwrap();
    assert_eq!(peer.addresses.len(), 2);
    assert_eq!(regions(&w), 0);
}

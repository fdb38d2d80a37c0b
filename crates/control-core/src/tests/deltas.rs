//! The sessions that a change reaches, and deltas that are as good as a full map.

use std::collections::BTreeSet;
use std::time::Duration;

use proptest::prelude::*;
use warren_control_types::{Hostinfo, MapRequest, NetInfo, PingRequest, RegionId};
use warren_keys::DiscoPublic;

use super::world::{World, machine, map_request, meaning, request};
use crate::{DnsChange, DnsKey, DnsPart, ExtraRecord, NewAuthKey};

fn lite(n: u8) -> MapRequest {
    MapRequest {
        stream: false,
        omit_peers: true,
        disco_key: Some(DiscoPublic::from_bytes([n; 32])),
        endpoints: vec![([192, 0, 2, n], 41641).into()],
        hostinfo: Some(Hostinfo {
            hostname: format!("host{n}"),
            os: "linux".to_owned(),
            net_info: Some(NetInfo {
                preferred_derp: Some(RegionId(900)),
                ..NetInfo::default()
            }),
            ..Hostinfo::default()
        }),
        ..map_request(n)
    }
}

/// Two nodes that are connected and know everything.
fn pair() -> (World, crate::SessionId, crate::SessionId) {
    let mut w = World::new();
    w.user("lab");
    let auth = w.reusable("lab");
    w.join(1, &auth);
    w.join(2, &auth);
    let (a, b) = (w.open(1).unwrap(), w.open(2).unwrap());
    for n in [1, 2] {
        w.c.update(machine(n), &lite(n)).unwrap();
    }
    w.settle();
    w.read_all();
    assert!(w.woken.is_empty());
    (w, a, b)
}

#[test]
fn the_first_message_is_whole() {
    let mut w = World::new();
    w.user("lab");
    let auth = w.reusable("lab");
    let id = w.join(1, &auth);
    let session = w.open(1).unwrap();
    // A change that comes before the first message overtakes nothing.
    w.join(2, &auth);
    let messages = w.read(session);
    assert_eq!(messages.len(), 1);
    let first = &messages[0];
    assert_eq!(first.node.as_ref().unwrap().id, id);
    assert_eq!(first.node.as_ref().unwrap().name, "host1.warren.internal.");
    assert_eq!(first.peers.as_ref().unwrap().len(), 1);
    assert!(first.derp_map.is_some() && first.dns_config.is_some() && first.control_time.is_some());
    assert!(first.packet_filters["base"].is_some());
    assert_eq!(first.user_profiles.len(), 1);
    assert!(first.dns_config.as_ref().unwrap().proxied);
}

#[test]
fn a_patch_is_a_patch_and_reaches_only_the_others() {
    let (mut w, a, b) = pair();
    let mut update = lite(1);
    update.endpoints = vec![
        ([198, 51, 100, 7], 1).into(),
        "[fe80::1]:5".parse().unwrap(),
    ];
    w.c.update(machine(1), &update).unwrap();
    w.settle();
    let received = w.read(b);
    assert_eq!(received.len(), 1);
    assert_eq!(received[0].peers_changed_patch.len(), 1);
    assert!(received[0].peers_changed.is_empty() && received[0].node.is_none());
    assert_eq!(
        received[0].peers_changed_patch[0]
            .endpoints
            .as_ref()
            .unwrap()
            .len(),
        1,
        "no link-local"
    );
    let own = w.read(a);
    assert!(own[0].node.is_some() && own[0].peers_changed_patch.is_empty());
    // The same update again changes nothing.
    w.c.update(machine(1), &update).unwrap();
    w.settle();
    assert!(w.woken.is_empty());
}

#[test]
fn slow_reader_is_sent_the_newest_state_once() {
    let (mut w, _a, b) = pair();
    for n in 0..200_u8 {
        let mut update = lite(1);
        update.disco_key = Some(DiscoPublic::from_bytes([n + 1; 32]));
        update.endpoints = vec![([203, 0, 113, n], 41641).into()];
        w.c.update(machine(1), &update).unwrap();
    }
    w.settle();
    let received = w.read(b);
    assert_eq!(received.len(), 1);
    let patch = &received[0].peers_changed_patch;
    assert_eq!(patch.len(), 1);
    assert_eq!(patch[0].disco_key, Some(DiscoPublic::from_bytes([200; 32])));
}

#[test]
fn rename_expire_delete_reach_the_peer_at_once() {
    let (mut w, a, b) = pair();
    w.c.rename_node("host1", "db").unwrap();
    w.settle();
    let received = w.read(b);
    assert_eq!(received[0].peers_changed[0].name, "db.warren.internal.");
    assert_eq!(
        w.read(a)[0].node.as_ref().unwrap().name,
        "db.warren.internal."
    );

    w.c.expire_node(w.wall, "db").unwrap();
    w.settle();
    let received = w.read(b);
    assert!(
        received[0].peers_changed[0].expired && received[0].peers_changed[0].endpoints.is_empty()
    );
    let own = w.read(a);
    assert!(own[0].node.as_ref().unwrap().key_expiry.is_some());

    let id = w.c.find_node("db").unwrap().id;
    w.c.delete_node("db").unwrap();
    w.settle();
    assert_eq!(w.read(b)[0].peers_removed, [id]);
    assert!(w.ended.contains(&a));
}

#[test]
fn short_absence_is_not_sent_and_a_long_one_is() {
    let (mut w, a, b) = pair();
    w.close(a);
    w.pass(Duration::from_secs(9));
    let again = w.open(1).unwrap();
    w.read(again);
    assert!(w.read(b).is_empty());
    w.close(again);
    w.pass(Duration::from_secs(10));
    let received = w.read(b);
    let patch = &received[0].peers_changed_patch[0];
    assert_eq!(patch.online, Some(false));
    assert!(matches!(patch.last_seen, Some(Some(_))));
}

#[test]
fn a_second_stream_replaces_the_first() {
    let (mut w, a, b) = pair();
    let second = w.open(1).unwrap();
    assert!(w.ended.contains(&a));
    // The shell closing the old one late changes nothing.
    w.c.close_stream(w.now, w.wall, a);
    w.pass(Duration::from_secs(60));
    assert!(w.c.is_online(w.c.find_node("host1").unwrap().id));
    assert!(w.read(b).is_empty());
    assert_eq!(w.read(second).len(), 1);
}

#[test]
fn expiring_key_is_announced_when_its_time_comes() {
    let (mut w, _a, b) = pair();
    w.c.tag_node("host2", ["tag:db".to_owned()].into()).unwrap();
    w.settle();
    w.read_all();
    w.pass(Duration::from_secs(180 * 24 * 3600 - 1));
    assert!(w.read(b).is_empty());
    w.pass(Duration::from_secs(1));
    assert!(w.read(b)[0].peers_changed.iter().any(|peer| peer.expired));
}

#[test]
fn peer_that_changed_while_it_was_hidden_is_sent_again() {
    let (mut w, a, _b) = pair();
    let apart = r#"{"acls": [], "tagOwners": {}}"#;
    w.c.set_policy(Some(apart.to_owned())).unwrap();
    let mut update = lite(2);
    update.endpoints = vec!["192.0.2.77:7".parse().unwrap()];
    w.c.update(machine(2), &update).unwrap();
    w.c.set_policy(None).unwrap();
    w.settle();
    w.read_all();
    let peers = &w.clients[&a].peers;
    assert_eq!(peers.values().next().unwrap().endpoints, update.endpoints);
}

#[test]
fn early_timeouts_do_nothing() {
    let (mut w, _a, _b) = pair();
    let (at, _) = w.c.next_deadline().unwrap();
    assert!(at > w.now);
    w.c.handle_timeout(w.now, w.wall);
    assert_eq!(w.c.poll_output(), None);
    // A wall clock that jumps back changes nothing either.
    w.c.handle_timeout(w.now, Duration::ZERO);
    assert_eq!(w.c.poll_output(), None);
}

#[test]
fn one_router_per_subnet_and_another_when_it_goes() {
    let mut w = World::new();
    w.user("lab");
    let auth = w.reusable("lab");
    let route: ipnet::IpNet = "10.1.0.0/16".parse().unwrap();
    for n in [1, 2] {
        let mut r = request(n, &auth);
        r.hostinfo.as_mut().unwrap().routable_ips =
            vec![route, "0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()];
        assert_eq!(w.answer(n, &r).error, "");
    }
    w.join(3, &auth);
    let (a, _b, viewer) = (w.open(1).unwrap(), w.open(2).unwrap(), w.open(3).unwrap());
    w.c.approve_routes("host1", &[route, "0.0.0.0/0".parse().unwrap()])
        .unwrap();
    w.c.approve_routes("host2", &[route]).unwrap();
    w.settle();
    w.read(viewer);
    let carriers = |w: &World| -> Vec<usize> {
        w.clients[&viewer]
            .peers
            .values()
            .map(|p| p.allowed_ips().len())
            .collect()
    };
    // Two addresses, the subnet, and both default routes.
    assert_eq!(carriers(&w), [5, 2]);
    w.close(a);
    w.pass(Duration::from_secs(10));
    w.read(viewer);
    assert_eq!(carriers(&w), [4, 3]);
}

#[test]
fn c2n_requests_come_one_a_message_and_need_a_stream() {
    let (mut w, a, b) = pair();
    let question = |n: u8| PingRequest {
        url: format!("https://unused/c2n/{n}"),
        types: "c2n".to_owned(),
        ..PingRequest::default()
    };
    for n in 0..2 {
        assert_eq!(w.c.ask_node("host1", question(n)), Ok(machine(1)));
    }
    w.c.rename_node("host2", "db").unwrap();
    w.settle();
    let received = w.read(a);
    let urls: Vec<_> = received
        .iter()
        .map(|message| message.ping_request.as_ref().unwrap().url.as_str())
        .collect();
    assert_eq!(urls, ["https://unused/c2n/0", "https://unused/c2n/1"]);
    assert_eq!(received[0].peers_changed.len(), 1, "changes come along");
    assert!(
        w.read(b)
            .iter()
            .all(|message| message.ping_request.is_none())
    );
    for n in 0..16 {
        w.c.ask_node("host1", question(n)).unwrap();
    }
    let error = w.c.ask_node("host1", question(99)).unwrap_err();
    assert!(error.to_string().contains("try again"), "{error}");
    w.close(a);
    let error = w.c.ask_node("host1", question(3)).unwrap_err();
    assert!(error.to_string().contains("not connected"), "{error}");
    assert!(w.c.ask_node("missing", question(4)).is_err());
}

#[test]
fn change_is_sent_to_the_nodes_that_it_concerns_only() {
    let mut w = World::new();
    for name in ["alice", "bob"] {
        w.user(name);
    }
    let (alice, bob) = (w.reusable("alice"), w.reusable("bob"));
    // Two machines of each user, which may reach those of their own user.
    for (n, auth) in [(1, &alice), (2, &alice), (3, &bob), (4, &bob)] {
        w.join(n, auth);
    }
    let policy = |port: u16| {
        format!(
            r#"{{"acls": [{{"action": "accept", "src": ["alice@"], "dst": ["alice@:{port}"]}},
                         {{"action": "accept", "src": ["bob@"], "dst": ["bob@:22"]}}]}}"#
        )
    };
    w.c.set_policy(Some(policy(22))).unwrap();
    let open: Vec<_> = (1..=4).map(|n| w.open(n).unwrap()).collect();
    for n in 1..=4 {
        w.c.update(machine(n), &lite(n)).unwrap();
    }
    w.settle();
    w.read_all();
    let woken = |w: &mut World| -> Vec<usize> {
        w.settle();
        let woken = std::mem::take(&mut w.woken);
        let places = open.iter().enumerate();
        let woken: Vec<_> = places
            .filter(|(_, session)| woken.contains(session))
            .map(|(at, _)| at + 1)
            .collect();
        for session in &open {
            w.read(*session);
        }
        w.woken.clear();
        woken
    };

    let mut moved = lite(1);
    moved.endpoints = vec![([198, 51, 100, 7], 1).into()];
    w.c.update(machine(1), &moved).unwrap();
    assert_eq!(woken(&mut w), [1, 2]);
    w.c.set_policy(Some(policy(80))).unwrap();
    assert_eq!(woken(&mut w), [1, 2]);
    w.c.set_policy(Some(format!("// The same.\n{}", policy(80))))
        .unwrap();
    assert!(woken(&mut w).is_empty());
    w.join(5, &bob);
    assert_eq!(woken(&mut w), [3, 4]);
    w.c.create_user(w.wall, "carol").unwrap();
    assert!(woken(&mut w).is_empty());
    w.c.delete_node("host5").unwrap();
    assert_eq!(woken(&mut w), [3, 4]);
}

#[derive(Debug, Clone)]
enum Step {
    Join(u8),
    Rotate(u8, u8),
    Open(u8),
    Close(u8),
    Lite(u8, u8, u8),
    Rename(u8, u8),
    Expire(u8),
    Delete(u8),
    Tag(u8, bool),
    Routes(u8, bool),
    RenameUser(bool),
    Policy(u8),
    Dns(u8),
    Pass(u16),
    Read(u8),
}

fn step() -> impl Strategy<Value = Step> {
    let n = || 1_u8..6;
    prop_oneof![
        4 => n().prop_map(Step::Join),
        1 => (n(), 10_u8..14).prop_map(|(a, b)| Step::Rotate(a, b)),
        4 => n().prop_map(Step::Open),
        1 => n().prop_map(Step::Close),
        4 => (n(), any::<u8>(), 0_u8..4).prop_map(|(a, b, c)| Step::Lite(a, b, c)),
        1 => (n(), 0_u8..3).prop_map(|(a, b)| Step::Rename(a, b)),
        1 => n().prop_map(Step::Expire),
        1 => n().prop_map(Step::Delete),
        1 => (n(), any::<bool>()).prop_map(|(a, b)| Step::Tag(a, b)),
        1 => (n(), any::<bool>()).prop_map(|(a, b)| Step::Routes(a, b)),
        1 => any::<bool>().prop_map(Step::RenameUser),
        1 => (0_u8..9).prop_map(Step::Policy),
        2 => (0_u8..8).prop_map(Step::Dns),
        2 => (0_u16..200).prop_map(Step::Pass),
        4 => n().prop_map(Step::Read),
    ]
}

const POLICIES: [Option<&str>; 9] = [
    None,
    Some(r#"{"acls": []}"#),
    Some(
        r#"{"tagOwners": {"tag:db": []}, "acls": [{"action": "accept", "src": ["autogroup:member"], "dst": ["tag:db:22"]}]}"#,
    ),
    Some(
        r#"{"acls": [{"action": "accept", "src": ["100.64.0.1"], "dst": ["100.64.0.2:*"]}, {"action": "accept", "src": ["autogroup:member"], "dst": ["10.1.0.0/16:*"]}]}"#,
    ),
    Some(
        r#"{"tagOwners": {"tag:db": []}, "autoApprovers": {"routes": {"10.0.0.0/8": ["tag:db"]}, "exitNode": ["alice@"]},
            "acls": [{"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:member:22"]},
                     {"action": "accept", "src": ["alice@"], "dst": ["10.1.2.0/24:*", "tag:db:1", "autogroup:internet:*"]},
                     {"action": "accept", "src": ["10.1.0.0/16"], "dst": ["bob@:*"]}]}"#,
    ),
    Some(
        r#"{"tagOwners": {"tag:db": []},
            "grants": [{"src": ["alice@"], "dst": ["10.1.0.0/16"], "ip": ["*"], "via": ["tag:db"]},
                       {"src": ["autogroup:member"], "dst": ["autogroup:member"], "ip": ["22"]}]}"#,
    ),
    Some(
        r#"{"tagOwners": {"tag:db": []}, "randomizeClientPort": true,
            "derpMap": {"regions": {"900": {"regionID": 900}}},
            "ssh": [{"action": "check", "src": ["autogroup:member"], "dst": ["tag:db"], "users": ["root"]}],
            "nodeAttrs": [{"target": ["tag:db"], "attr": ["disable-ipv4", "funnel"]}]}"#,
    ),
    Some(
        r#"{"tagOwners": {"tag:db": []}, "postures": {"posture:p": ["node:os == 'linux'"]}, "defaultSrcPosture": ["posture:p"],
            "acls": [{"action": "accept", "src": ["autogroup:member"], "dst": ["*:22"]}],
            "ssh": [{"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self", "tag:db"], "users": ["root"]}],
            "nodeAttrs": [{"target": ["alice@"], "attr": ["disable-ipv4"]}]}"#,
    ),
    Some(
        r#"{"tagOwners": {"tag:db": []}, "acls": [{"action": "accept", "src": ["alice@"], "dst": ["*:*"]}],
            "nodeAttrs": [{"target": ["tag:db", "bob@"], "attr": ["nextdns:abc"]},
                          {"target": ["alice@"], "attr": ["disable-ipv4", "nextdns:no-device-info"]}]}"#,
    ),
];

/// Changes of name resolution, of each kind.
fn change_dns(w: &mut World, n: u8) {
    let alias = |name: &str| ExtraRecord::parse("alias.example", "CNAME", name).unwrap();
    let set = |set: DnsPart| DnsChange {
        set,
        ..DnsChange::default()
    };
    let name = "alias.example".parse().unwrap();
    match n {
        0 => drop(w.c.add_dns_record(alias("db"))),
        1 => drop(w.c.add_dns_record(alias("host1"))),
        2 => drop(w.c.delete_dns_records(&name, None, None)),
        3 => drop(w.c.take_dns_file([alias("web.warren.internal")].into())),
        4 => drop(w.c.take_dns_file(BTreeSet::new())),
        5 => drop(w.c.change_dns(set(DnsPart {
            nameservers: Some(vec!["https://dns.nextdns.io/x".parse().unwrap()]),
            ..DnsPart::default()
        }))),
        6 => {
            let magic_dns = Some(!w.c.view().dns().magic_dns());
            drop(w.c.change_dns(set(DnsPart {
                magic_dns,
                ..DnsPart::default()
            })));
        }
        _ => drop(w.c.change_dns(DnsChange {
            unset: DnsKey::ALL.into(),
            ..DnsChange::default()
        })),
    }
}

fn apply(w: &mut World, step: Step, auth: &[String; 2]) {
    let session_of = |w: &World, n: u8| {
        let id = w.c.node_by_key(&super::world::key(n))?.id;
        w.c.session_of(id)
    };
    let name_of = |w: &World, n: u8| {
        w.c.node_by_key(&super::world::key(n))
            .map(|node| node.name.clone())
            .unwrap_or_default()
    };
    match step {
        Step::Join(n) => {
            let _ = w.answer(n, &request(n, &auth[usize::from(n % 2)]));
        }
        Step::Rotate(n, k) => {
            let mut r = request(k, &auth[usize::from(n % 2)]);
            r.hostinfo.as_mut().unwrap().hostname = format!("host{n}");
            let _ = w.register(n, &r);
        }
        Step::Open(n) => {
            let _ = w.open(n);
        }
        Step::Close(n) => {
            if let Some(session) = session_of(w, n) {
                w.close(session);
            }
        }
        Step::Lite(n, disco, extra) => {
            let mut update = lite(n);
            update.disco_key = Some(DiscoPublic::from_bytes([disco; 32]));
            if extra == 1 {
                update.endpoints.clear();
            }
            if extra == 2 {
                update.hostinfo.as_mut().unwrap().hostname = "same".to_owned();
            }
            if extra == 3 {
                update.hostinfo.as_mut().unwrap().routable_ips =
                    vec!["10.1.0.0/16".parse().unwrap(), "::/0".parse().unwrap()];
            }
            let _ = w.c.update(machine(n), &update);
        }
        Step::Rename(n, to) => {
            let _ =
                w.c.rename_node(name_of(w, n), ["db", "web", "host1"][usize::from(to)]);
        }
        Step::Expire(n) => {
            let _ = w.c.expire_node(w.wall, name_of(w, n));
        }
        Step::Delete(n) => {
            let _ = w.c.delete_node(name_of(w, n));
        }
        Step::Tag(n, on) => {
            let _ = if on {
                w.c.tag_node(name_of(w, n), ["tag:db".to_owned()].into())
            } else {
                w.c.assign_node(name_of(w, n), None)
            };
        }
        Step::Routes(n, on) => {
            let routes = if on {
                vec!["10.1.0.0/16".parse().unwrap()]
            } else {
                Vec::new()
            };
            let _ = w.c.approve_routes(name_of(w, n), &routes);
        }
        Step::RenameUser(back) => {
            let (old, new) = if back {
                ("ann", "alice")
            } else {
                ("alice", "ann")
            };
            let _ = w.c.rename_user(old, new);
        }
        Step::Policy(n) => {
            w.c.set_policy(POLICIES[usize::from(n)].map(str::to_owned))
                .unwrap()
        }
        Step::Dns(n) => change_dns(w, n),
        Step::Pass(seconds) => w.pass(Duration::from_secs(seconds.into())),
        Step::Read(n) => {
            if let Some(session) = session_of(w, n) {
                w.read(session);
            }
        }
    }
    w.settle();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    /// Old map + deltas = new map, for every client, at every pause.
    #[test]
    fn deltas_are_as_good_as_asking_again(steps in prop::collection::vec(step(), 1..80)) {
        let mut w = World::new();
        w.user("alice");
        w.user("bob");
        let ephemeral = w.auth_key(NewAuthKey {
            user: Some("bob".into()), ephemeral: true, reusable: true, ..NewAuthKey::default()
        });
        let auth = [w.reusable("alice"), ephemeral];
        for step in steps {
            let pause = matches!(step, Step::Pass(_));
            apply(&mut w, step, &auth);
            if !pause {
                continue;
            }
            w.read_all();
            check(&w)?;
        }
        w.read_all();
        check(&w)?;
        prop_assert_eq!(&w.stored, &w.c.snapshot());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// A coordinator that only follows the changes of another one renders the
    /// same maps, and its own sessions are sent each change.
    #[test]
    fn follower_renders_the_same_maps(steps in prop::collection::vec(step(), 1..60)) {
        let mut w = World::new();
        w.user("alice");
        w.user("bob");
        let auth = [w.reusable("alice"), w.reusable("bob")];
        let mut idle = World::with(w.stored.clone());
        let mut busy = World::with(w.stored.clone());
        w.changes.clear();
        for step in steps {
            // Streams and deadlines of the other one are its own.
            if !matches!(step, Step::Open(_)) {
                apply(&mut w, step, &auth);
            }
            for follower in [&mut idle, &mut busy] {
                (follower.now, follower.wall) = (w.now, w.wall);
                for change in &w.changes {
                    follower.c.apply_foreign(w.now, w.wall, change.clone()).unwrap();
                }
                follower.pass(Duration::ZERO);
                prop_assert_eq!(&follower.changes, &[]);
                prop_assert_eq!(&follower.c.snapshot(), &w.c.snapshot());
            }
            w.changes.clear();
            for id in w.c.snapshot().nodes.keys() {
                prop_assert_eq!(w.fresh(*id), idle.fresh(*id));
            }
            for n in 1..6 {
                let node = busy.c.node_by_key(&super::world::key(n)).map(|node| node.id);
                if node.is_some_and(|id| busy.c.session_of(id).is_none()) {
                    busy.open(n).unwrap();
                }
            }
            busy.read_all();
            check(&busy)?;
        }
    }
}

fn check(w: &World) -> Result<(), TestCaseError> {
    // A policy that was updated step by step gives the answers of a new one.
    let recompiled = w.c.view().recompiled_access();
    for id in w.c.snapshot().nodes.keys() {
        prop_assert_eq!(
            w.c.view().access.filter_for(*id),
            recompiled.filter_for(*id)
        );
        prop_assert_eq!(w.c.view().access.peers_of(*id), recompiled.peers_of(*id));
    }
    for (session, client) in &w.clients {
        let id = client.self_node.as_ref().unwrap().id;
        prop_assert_eq!(w.c.session_of(id), Some(*session));
        prop_assert_eq!(
            meaning(client.clone()),
            meaning(w.fresh(id)),
            "of node {}",
            id
        );
        for peer in client.peers.keys() {
            prop_assert!(
                w.c.view().access.can_see(id, *peer),
                "{} must not know {}",
                id,
                peer
            );
        }
    }
    Ok(())
}

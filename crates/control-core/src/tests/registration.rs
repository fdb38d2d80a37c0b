//! Joining, leaving, and everything that can be wrong with it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;
use proptest::prelude::*;
use warren_control_types::{CapabilityVersion, Hostinfo, MapRequest, Netmap, RegisterRequest};

use super::world::{World, key, machine, map_request, request};
use crate::{Coordinator, MapError, NewAuthKey, PendingId, RegisterOutcome};

fn at(wall: Duration) -> Timestamp {
    crate::clock::timestamp(wall)
}

#[test]
fn a_key_lets_in_once_and_a_restart_does_not_need_it() {
    let mut w = World::new();
    w.user("lab");
    let auth = w.auth_key(NewAuthKey {
        user: Some("lab".into()),
        ..NewAuthKey::default()
    });
    let id = w.join(1, &auth);
    let node = w.c.node(id).unwrap();
    assert_eq!(node.name, "host1");
    assert_eq!(node.address.v4().to_string(), "100.64.0.1");
    // The same machine again, as after a reboot with the key still in its unit file.
    let again = w.answer(1, &request(1, &auth));
    assert_eq!(again.error, "");
    assert_eq!(again.login.login_name, "lab");
    // Another machine.
    assert!(
        w.answer(2, &request(2, &auth))
            .error
            .starts_with("authkey already used")
    );
}

#[test]
fn wrong_keys_are_refused_with_a_text() {
    let mut w = World::new();
    w.user("lab");
    let short = w.auth_key(NewAuthKey {
        user: Some("lab".into()),
        lifetime: Some(Duration::from_secs(60)),
        ..NewAuthKey::default()
    });
    let revoked = w.reusable("lab");
    let id = crate::AuthKeyText::parse(&revoked).unwrap().id();
    w.c.expire_auth_key(w.wall, id).unwrap();
    w.pass(Duration::from_secs(61));
    for (auth, text) in [
        (short.as_str(), "authkey expired"),
        (revoked.as_str(), "authkey expired"),
        ("nonsense", "invalid pre auth key"),
        ("wk-1-aaaa", "invalid pre auth key"),
        ("wk-99-aaaa", "invalid pre auth key"),
    ] {
        let response = w.answer(9, &request(9, auth));
        assert!(
            response.error.starts_with(text),
            "{auth}: {}",
            response.error
        );
        assert!(!response.machine_authorized);
    }
    assert!(w.c.snapshot().nodes.is_empty());
}

#[test]
fn key_for_an_unknown_user_says_how_to_create_the_user() {
    let mut w = World::new();
    let mut refusal = |user: &str| {
        let new = NewAuthKey {
            user: Some(user.into()),
            ..NewAuthKey::default()
        };
        w.c.create_auth_key(w.wall, new).unwrap_err().to_string()
    };
    let text = refusal("bob");
    assert!(text.contains("`warren-control users create bob`"), "{text}");
    // A number is not a valid name for a user.
    let text = refusal("7");
    assert!(
        text.contains("users list") && !text.contains("create 7"),
        "{text}"
    );
}

#[test]
fn a_foreign_machine_cannot_use_a_known_node_key() {
    let mut w = World::new();
    w.user("lab");
    let auth = w.reusable("lab");
    w.join(1, &auth);
    let mut stolen = request(1, &auth);
    assert_eq!(
        w.answer(2, &stolen).error,
        "node exists with a different machine key"
    );
    stolen.expiry = Some(Timestamp::UNIX_EPOCH);
    assert_eq!(
        w.answer(2, &stolen).error,
        "node exists with a different machine key"
    );
    assert_eq!(
        w.c.open_stream(machine(2), &map_request(1)),
        Err(MapError::NotFound)
    );
    assert_eq!(
        w.c.update(machine(2), &map_request(1)),
        Err(MapError::NotFound)
    );
}

#[test]
fn client_that_is_too_old_is_refused_with_a_text() {
    let mut w = World::new();
    let mut old = request(1, "");
    old.version = CapabilityVersion(112);
    assert!(w.answer(1, &old).error.contains("too old"));
    let mut map = map_request(1);
    map.version = CapabilityVersion(0);
    assert!(matches!(
        w.c.open_stream(machine(1), &map),
        Err(MapError::TooOld { have: 0, .. })
    ));
}

#[test]
fn approval_lets_a_parked_login_go_on() {
    let mut w = World::new();
    w.user("lab");
    let first = w.answer(1, &request(1, ""));
    let id = PendingId(first.auth_url.rsplit('/').next().unwrap().to_owned());
    assert_eq!(
        first.auth_url,
        format!("http://192.0.2.1:8080/register/{id}")
    );
    let mut followup = request(1, "");
    followup.followup.clone_from(&first.auth_url);
    assert_eq!(w.register(1, &followup), RegisterOutcome::Park(id.clone()));
    // Another machine that knows the address gets one of its own.
    let other = w.answer(
        2,
        &RegisterRequest {
            node_key: key(2),
            ..followup.clone()
        },
    );
    assert!(!other.auth_url.is_empty() && other.auth_url != first.auth_url);
    w.c.approve(w.now, w.wall, &id, "lab", BTreeSet::new())
        .unwrap();
    w.settle();
    assert_eq!(w.decided, std::slice::from_ref(&id));
    assert!(w.answer(1, &followup).machine_authorized);
    assert!(
        w.c.approve(w.now, w.wall, &id, "lab", BTreeSet::new())
            .is_err()
    );
}

#[test]
fn key_ends_the_waiting_of_a_machine_and_of_others_with_its_node_key() {
    let mut w = World::new();
    w.user("lab");
    w.user("other");
    let auth = w.reusable("lab");
    let first = w.answer(1, &request(1, ""));
    let id = PendingId(first.auth_url.rsplit('/').next().unwrap().to_owned());
    // Another machine learned the node key and waits with it, too.
    assert!(!w.answer(2, &request(1, "")).auth_url.is_empty());
    let node = w.join(1, &auth);
    assert!(w.c.pending().is_empty());
    assert_eq!(w.decided.len(), 2);
    assert!(
        w.c.approve(w.now, w.wall, &id, "other", BTreeSet::new())
            .is_err()
    );
    assert_eq!(w.c.snapshot().nodes.len(), 1);
    assert_eq!(w.c.node_by_key(&key(1)).unwrap().id, node);
}

#[test]
fn login_that_waits_too_long_gets_another_address() {
    let mut w = World::new();
    let first = w.answer(1, &request(1, ""));
    let mut followup = request(1, "");
    followup.followup.clone_from(&first.auth_url);
    assert!(matches!(w.register(1, &followup), RegisterOutcome::Park(_)));
    w.pass(Duration::from_secs(15 * 60));
    assert_eq!(w.decided.len(), 1);
    let second = w.answer(1, &followup);
    assert!(!second.auth_url.is_empty() && second.auth_url != first.auth_url);
}

/// A login that the machine starts over: another node key, nothing else.
fn another_try(n: u8, node_key: u8) -> RegisterRequest {
    RegisterRequest {
        node_key: key(node_key),
        ..request(n, "")
    }
}

fn id_of(auth_url: &str) -> PendingId {
    PendingId(auth_url.rsplit('/').next().unwrap().to_owned())
}

#[test]
fn a_machine_waits_once_and_its_newest_login_counts() {
    let mut w = World::new();
    w.user("lab");
    let first = w.answer(1, &another_try(1, 1)).auth_url;
    let parked = RegisterRequest {
        followup: first.clone(),
        ..another_try(1, 1)
    };
    assert!(matches!(w.register(1, &parked), RegisterOutcome::Park(_)));
    let second = w.answer(1, &another_try(1, 2)).auth_url;
    assert_eq!(w.c.pending().len(), 1);
    assert_eq!(w.decided, [id_of(&first)], "who waited is answered");
    // The older question, put again, takes nothing back.
    let stale = w.answer(1, &parked);
    assert!(stale.error.contains("newer login"), "{}", stale.error);
    assert!(stale.auth_url.is_empty() && !stale.machine_authorized);
    assert!(
        w.c.approve(w.now, w.wall, &id_of(&first), "lab", BTreeSet::new())
            .is_err(),
        "it would let a ghost in"
    );
    w.c.approve(w.now, w.wall, &id_of(&second), "lab", BTreeSet::new())
        .unwrap();
    assert!(w.c.node_by_key(&key(2)).is_some());
    assert_eq!(w.c.snapshot().nodes.len(), 1);
}

#[test]
fn a_machine_that_joined_waits_for_nothing_more() {
    let mut w = World::new();
    w.user("lab");
    let auth = w.reusable("lab");
    let waiting = w.answer(1, &another_try(1, 2)).auth_url;
    w.join(1, &auth);
    assert!(w.c.pending().is_empty());
    assert_eq!(w.decided, [id_of(&waiting)]);
}

/// Machine number `n` of thousands asks to be let in.
fn ask_to_join(w: &mut World, n: u32, source: Option<IpAddr>) -> RegisterOutcome {
    let mut bytes = [7; 32];
    bytes[..4].copy_from_slice(&n.to_le_bytes());
    let ask = RegisterRequest {
        node_key: warren_keys::NodePublic::from_bytes(bytes),
        ..request(1, "")
    };
    let machine = warren_keys::MachinePublic::from_bytes(bytes);
    let outcome = w.c.register_from(w.now, w.wall, machine, source, &ask);
    w.settle();
    outcome
}

#[test]
fn waiting_logins_are_bounded_and_the_oldest_makes_room() {
    let mut w = World::new();
    let first = w.answer(0, &request(0, "")).auth_url;
    for n in 0..1024 {
        let _ = ask_to_join(&mut w, n, None);
    }
    assert_eq!(w.c.pending().len(), 1024);
    assert_eq!(w.decided, [id_of(&first)]);
}

#[test]
fn login_with_a_waiting_connection_keeps_its_place() {
    let mut w = World::new();
    let first = w.answer(0, &request(0, "")).auth_url;
    let parked = RegisterRequest {
        followup: first.clone(),
        ..request(0, "")
    };
    assert!(matches!(w.register(0, &parked), RegisterOutcome::Park(_)));
    for n in 0..1024 {
        let _ = ask_to_join(&mut w, n, None);
    }
    assert_eq!(w.c.pending().len(), 1024);
    assert!(
        !w.decided.contains(&id_of(&first)),
        "its connection still waits"
    );
    // Without a waiting connection it is the oldest.
    w.c.stopped_waiting(&id_of(&first));
    let _ = ask_to_join(&mut w, 5000, None);
    assert!(w.decided.contains(&id_of(&first)));
}

#[test]
fn one_source_cannot_push_the_others_out() {
    let mut w = World::new();
    let here: Option<IpAddr> = Some([192, 0, 2, 1].into());
    let there: Option<IpAddr> = Some([198, 51, 100, 1].into());
    let _ = ask_to_join(&mut w, 1_000_000, there);
    let mut busy = 0;
    for n in 0..3000 {
        match ask_to_join(&mut w, n, here) {
            RegisterOutcome::Answer(answer) => {
                let mut bytes = [7; 32];
                bytes[..4].copy_from_slice(&n.to_le_bytes());
                // Each of them stays and waits.
                let again = RegisterRequest {
                    node_key: warren_keys::NodePublic::from_bytes(bytes),
                    followup: answer.auth_url,
                    ..request(1, "")
                };
                let machine = warren_keys::MachinePublic::from_bytes(bytes);
                let parked = w.c.register_from(w.now, w.wall, machine, here, &again);
                assert!(matches!(parked, RegisterOutcome::Park(_)));
            }
            RegisterOutcome::Busy => busy += 1,
            RegisterOutcome::Park(id) => panic!("parked as {id}"),
        }
    }
    assert!(w.decided.is_empty(), "no request lost its place");
    assert_eq!((w.c.pending().len(), busy), (1 + 64, 3000 - 64));
    assert!(matches!(
        ask_to_join(&mut w, 2_000_000, there),
        RegisterOutcome::Answer(_)
    ));
    // A server behind a proxy sees one source; the place of a machine that left is free.
    let gone = w.c.pending()[1].id.clone();
    w.c.stopped_waiting(&gone);
    assert!(matches!(
        ask_to_join(&mut w, 4000, here),
        RegisterOutcome::Answer(_)
    ));
    assert_eq!(w.decided, [gone]);
}

#[test]
fn approved_routes_end_with_the_owner_they_were_approved_for() {
    let mut w = World::new();
    w.user("alice");
    w.user("bob");
    w.c.set_policy(Some(
        r#"{"tagOwners": {"tag:a": [], "tag:b": []},
            "autoApprovers": {"routes": {"10.2.0.0/16": ["tag:b"]}}}"#
            .to_owned(),
    ))
    .unwrap();
    let tagged = |w: &mut World, user: &str, tag: &str| {
        w.auth_key(NewAuthKey {
            user: Some(user.into()),
            tags: [tag.to_owned()].into(),
            reusable: true,
            ..NewAuthKey::default()
        })
    };
    let (a, b) = (
        tagged(&mut w, "alice", "tag:a"),
        tagged(&mut w, "bob", "tag:b"),
    );
    let routes: Vec<ipnet::IpNet> = vec![
        "10.1.0.0/16".parse().unwrap(),
        "10.2.0.0/16".parse().unwrap(),
    ];
    let mut login = request(1, &a);
    login
        .hostinfo
        .as_mut()
        .unwrap()
        .routable_ips
        .clone_from(&routes);
    assert_eq!(w.answer(1, &login).error, "");
    let id = w.c.node_by_key(&key(1)).unwrap().id;
    w.c.approve_routes("host1", &routes[..1]).unwrap();
    w.settle();

    // The same owner again keeps what the administrator decided.
    let mut again = login.clone();
    again.node_key = key(2);
    assert_eq!(w.answer(1, &again).error, "");
    assert_eq!(w.c.node(id).unwrap().approved_routes, [routes[0]].into());

    let mut other = login.clone();
    other.node_key = key(3);
    other.auth = request(1, &b).auth;
    assert_eq!(w.answer(1, &other).error, "");
    assert_eq!(
        w.c.node(id).unwrap().approved_routes,
        [routes[1]].into(),
        "only what the policy approves for the new owner"
    );

    // And so it is when the administrator changes the tags.
    w.c.tag_node("host1", ["tag:a".to_owned()].into()).unwrap();
    assert!(w.c.node(id).unwrap().approved_routes.is_empty());
    w.settle();
    assert_eq!(&w.stored, &w.c.snapshot());
}

#[test]
fn node_with_an_expired_key_is_sent_nothing_about_others() {
    let mut w = World::new();
    w.user("lab");
    let auth = w.reusable("lab");
    let id = w.join(1, &auth);
    w.join(2, &auth);
    w.join(3, &auth);
    let (one, _two) = (w.open(1).unwrap(), w.open(2).unwrap());
    w.read_all();
    assert_eq!(w.clients[&one].peers.len(), 2);
    assert!(w.clients[&one].packet_filter().count() > 0);

    w.c.expire_node(w.wall, "host1").unwrap();
    w.settle();
    w.read_all();
    let alone = |map: &Netmap| {
        let own = map.self_node.as_ref().unwrap();
        assert!(own.expired, "it is sent that its key has expired");
        assert!(map.peers.is_empty());
        assert_eq!(map.packet_filter().count(), 0);
        assert!(
            map.ssh_policy
                .as_ref()
                .is_none_or(|ssh| ssh.rules.is_empty())
        );
    };
    alone(&w.clients[&one]);
    alone(&w.fresh(id));
    // Changes of others do not reach it either, nor does a new stream.
    w.c.rename_node("host2", "renamed").unwrap();
    w.settle();
    w.read_all();
    alone(&w.clients[&one]);
    let again = w.open(1).unwrap();
    w.read(again);
    alone(&w.clients[&again]);

    // After a new login it is a node as before.
    let new = RegisterRequest {
        node_key: key(9),
        ..request(1, &auth)
    };
    assert!(w.answer(1, &new).machine_authorized);
    let map = MapRequest {
        node_key: key(9),
        ..map_request(1)
    };
    let session = w.c.open_stream(machine(1), &map).unwrap();
    w.settle();
    w.clients.insert(session, Netmap::default());
    w.read(session);
    assert_eq!(w.clients[&session].peers.len(), 2);
}

#[test]
fn relays_admit_nodes_with_a_valid_key_only() {
    let mut w = World::new();
    w.user("lab");
    let auth = w.reusable("lab");
    w.join(1, &auth);
    assert!(w.c.admits(&key(1)));
    assert!(!w.c.admits(&key(2)), "an unknown key");
    w.c.expire_node(w.wall, "host1").unwrap();
    assert!(!w.c.admits(&key(1)), "expired");
}

#[test]
fn logout_expires_and_a_new_key_brings_the_same_node_back() {
    let mut w = World::new();
    w.user("lab");
    let auth = w.reusable("lab");
    let id = w.join(1, &auth);
    w.c.rename_node("host1", "db").unwrap();
    let mut logout = request(1, &auth);
    logout.expiry = Some(Timestamp::from_second(123).unwrap());
    assert!(w.answer(1, &logout).node_key_expired);
    assert_eq!(
        w.c.node(id).unwrap().key_expiry,
        Some(at(w.wall)),
        "not 1970"
    );
    assert!(w.answer(1, &request(1, &auth)).node_key_expired);
    let mut fresh = request(1, &auth);
    fresh.node_key = key(100);
    assert_eq!(w.answer(1, &fresh).error, "");
    let node = w.c.node_by_key(&key(100)).unwrap();
    assert_eq!((node.id, node.name.as_str()), (id, "db"));
    assert!(w.c.node_by_key(&key(1)).is_none());
    assert!(node.key_expiry.unwrap() > at(w.wall));
}

#[test]
fn a_login_may_be_shortened_but_not_extended() {
    let mut w = World::new();
    w.user("lab");
    let auth = w.reusable("lab");
    let id = w.join(1, &auth);
    let soon = at(w.wall + Duration::from_secs(60));
    let mut wish = request(1, "");
    wish.expiry = Some(soon);
    assert_eq!(w.answer(1, &wish).error, "");
    assert_eq!(w.c.node(id).unwrap().key_expiry, Some(soon));
    wish.expiry = Some(at(w.wall + Duration::from_secs(3600)));
    assert!(
        w.answer(1, &wish)
            .error
            .starts_with("extending key is not allowed")
    );
}

#[test]
fn one_machine_may_have_a_node_for_each_owner() {
    let (mut w, alice, bob) = World::alice_and_bob();
    let first = w.join(1, &alice);
    let mut second = request(1, &bob);
    second.node_key = key(2);
    assert_eq!(w.answer(1, &second).error, "");
    let second = w.c.node_by_key(&key(2)).unwrap();
    assert_ne!(second.id, first);
    assert_eq!(second.name, "host1-1");
}

#[test]
fn tags_come_from_the_key_and_not_from_the_machine() {
    let mut w = World::new();
    w.user("lab");
    let tags = BTreeSet::from(["tag:db".to_owned()]);
    let auth = w.auth_key(NewAuthKey {
        tags: tags.clone(),
        reusable: true,
        ..NewAuthKey::default()
    });
    let id = w.join(1, &auth);
    let node = w.c.node(id).unwrap();
    assert_eq!(
        (node.owner(), node.key_expiry),
        (crate::TAGGED_DEVICES, None)
    );
    let plain = w.reusable("lab");
    let mut claim = request(2, &plain);
    claim.hostinfo.as_mut().unwrap().request_tags = vec!["tag:db".to_owned()];
    assert!(
        w.answer(2, &claim)
            .error
            .starts_with("requested tags [tag:db] are invalid or not permitted: ")
    );
    assert_eq!(w.c.snapshot().nodes.len(), 1);
}

#[test]
fn ephemeral_nodes_go_when_they_stay_away() {
    let mut w = World::new();
    w.user("lab");
    let auth = w.auth_key(NewAuthKey {
        user: Some("lab".into()),
        ephemeral: true,
        reusable: true,
        ..NewAuthKey::default()
    });
    let id = w.join(1, &auth);
    let session = w.open(1).unwrap();
    w.pass(Duration::from_secs(3600));
    assert!(w.c.node(id).is_some(), "connected");
    w.close(session);
    w.pass(Duration::from_secs(119));
    assert!(w.c.node(id).is_some());
    w.pass(Duration::from_secs(1));
    assert!(w.c.node(id).is_none());
    // One that never connected goes too, and so does one after a logout.
    let second = w.join(2, &auth);
    w.pass(Duration::from_secs(120));
    assert!(w.c.node(second).is_none());
    let third = w.join(3, &auth);
    let mut logout = request(3, "");
    logout.expiry = Some(Timestamp::UNIX_EPOCH);
    assert!(w.answer(3, &logout).node_key_expired);
    assert!(w.c.node(third).is_none());
    assert!(third > second && second > id, "ids are not reused");
}

#[test]
fn a_restart_finds_everything_again() {
    let mut w = World::new();
    w.user("lab");
    let once = w.auth_key(NewAuthKey {
        user: Some("lab".into()),
        ..NewAuthKey::default()
    });
    let many = w.reusable("lab");
    let id = w.join(1, &once);
    let session = w.open(1).unwrap();
    w.close(session);
    w.c.rename_node("host1", "db").unwrap();
    w.settle();
    assert_eq!(
        w.stored,
        w.c.snapshot(),
        "every change was handed out as a row"
    );
    let mut again = World::with(w.stored.clone());
    assert_eq!(again.c.node(id).unwrap().name, "db");
    assert!(
        again
            .answer(2, &request(2, &once))
            .error
            .starts_with("authkey already used")
    );
    let next = again.join(2, &many);
    assert!(next > id);
    assert_eq!(
        again.c.node(next).unwrap().address.v4().to_string(),
        "100.64.0.2"
    );
}

#[test]
fn names_follow_the_host_until_a_person_chooses() {
    let mut w = World::new();
    w.user("lab");
    let auth = w.reusable("lab");
    let id = w.join(1, &auth);
    let mut update = map_request(1);
    update.stream = false;
    update.omit_peers = true;
    let named = |name: &str| {
        Some(Hostinfo {
            hostname: name.to_owned(),
            ..Hostinfo::default()
        })
    };
    update.hostinfo = named("Web Server");
    w.c.update(machine(1), &update).unwrap();
    assert_eq!(w.c.node(id).unwrap().name, "web-server");
    w.c.rename_node("web-server", "www").unwrap();
    update.hostinfo = named("other");
    w.c.update(machine(1), &update).unwrap();
    assert_eq!(w.c.node(id).unwrap().name, "www");
    let other = w.join(2, &auth);
    assert!(w.c.rename_node("host2", "WWW").is_err());
    assert!(w.c.rename_node("host2", "a.b").is_err());
    assert!(w.c.rename_node(other.to_string(), "db").is_ok());
}

proptest! {
    /// Whatever a client sends, the coordinator answers and its rows stay true.
    #[test]
    fn no_registration_breaks_anything(
        steps in prop::collection::vec((0_u8..4, 0_u8..4, 0_u8..5, any::<bool>(), 0_i64..3), 0..40),
        hostname in ".{0,80}",
    ) {
        let mut w = World::new();
        w.user("lab");
        let many = w.reusable("lab");
        let once = w.auth_key(NewAuthKey { user: Some("lab".into()), ephemeral: true, ..NewAuthKey::default() });
        for (m, k, auth, followup, expiry) in steps {
            let auth = [many.as_str(), once.as_str(), "", "wk-0-x", "junk"][usize::from(auth)];
            let mut r = request(k, auth);
            r.hostinfo.as_mut().unwrap().hostname.clone_from(&hostname);
            if followup {
                r.followup = "http://192.0.2.1:8080/register/00".to_owned();
            }
            r.expiry = match expiry {
                0 => None,
                1 => Some(Timestamp::UNIX_EPOCH),
                _ => Some(at(w.wall + Duration::from_secs(100))),
            };
            let _ = w.register(m, &r);
            let _ = w.open(m);
            w.pass(Duration::from_secs(20));
        }
        prop_assert_eq!(&w.stored, &w.c.snapshot());
        let names: BTreeSet<_> = w.stored.nodes.values().map(|n| n.name.clone()).collect();
        let addresses: BTreeSet<_> = w.stored.nodes.values().map(|n| n.address).collect();
        prop_assert_eq!(names.len(), w.stored.nodes.len());
        prop_assert_eq!(addresses.len(), w.stored.nodes.len());
        let again = Coordinator::new(
            w.now, w.wall, w.c.config().clone(), w.stored.clone(), Box::new(warren_testkit::CountingEntropy(0))
        );
        prop_assert_eq!(&w.stored, &again.snapshot());
    }
}

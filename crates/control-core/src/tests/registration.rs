//! Joining, leaving, and everything that can be wrong with it.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use proptest::prelude::*;
use warren_control_types::{CapabilityVersion, Hostinfo, RegisterRequest};

use super::world::{World, key, machine, map_request, request};
use crate::{Coordinator, MapError, NewAuthKey, PendingId, RegisterOutcome};

fn at(wall: Duration) -> Timestamp {
    crate::coordinator::timestamp(wall)
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
fn old_clients_are_told_so() {
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
    // Somebody else who knows the address gets one of their own.
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
fn who_waits_and_then_brings_a_key_waits_no_more() {
    let mut w = World::new();
    w.user("lab");
    w.user("other");
    let auth = w.reusable("lab");
    let first = w.answer(1, &request(1, ""));
    let id = PendingId(first.auth_url.rsplit('/').next().unwrap().to_owned());
    // Somebody else has heard of the node key and waits with it, too.
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
fn who_waits_too_long_is_given_another_address() {
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

#[test]
fn waiting_logins_are_bounded_and_the_oldest_makes_room() {
    let mut w = World::new();
    let first = w.answer(0, &request(0, ""));
    for n in 0..1024_u32 {
        let mut flood = request(1, "");
        let mut bytes = [7; 32];
        bytes[..4].copy_from_slice(&n.to_le_bytes());
        flood.node_key = warren_keys::NodePublic::from_bytes(bytes);
        let _ = w.register(1, &flood);
    }
    assert_eq!(w.c.pending().len(), 1024);
    assert_eq!(
        w.decided,
        [PendingId(
            first.auth_url.rsplit('/').next().unwrap().to_owned()
        )]
    );
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
    let mut w = World::new();
    w.user("alice");
    w.user("bob");
    let (alice, bob) = (w.reusable("alice"), w.reusable("bob"));
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
            .contains("tag:db is not permitted")
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
        &w.stored,
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
    assert!(w.c.rename_node(&other.to_string(), "db").is_ok());
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
        prop_assert_eq!(&w.stored, w.c.snapshot());
        let names: BTreeSet<_> = w.stored.nodes.values().map(|n| n.name.clone()).collect();
        let addresses: BTreeSet<_> = w.stored.nodes.values().map(|n| n.address).collect();
        prop_assert_eq!(names.len(), w.stored.nodes.len());
        prop_assert_eq!(addresses.len(), w.stored.nodes.len());
        prop_assert!(Coordinator::new(
            w.now, w.wall, w.c.config().clone(), w.stored.clone(), Box::new(super::world::Counting(0))
        ).is_ok());
    }
}

//! References of administrators, whatever nodes and users are called.

use std::collections::BTreeMap;

use proptest::prelude::*;
use warren_control_types::NodeId;

use super::world::{World, key, machine, map_request, request};
use crate::{AdminError, LabelError, NodeRef, Snapshot, UserRef};

#[test]
fn host_named_like_a_number_does_not_catch_commands_for_that_node() {
    let mut w = World::new();
    w.user("lab");
    let auth = w.reusable("lab");
    let first = w.join(1, &auth);
    let mut thief = request(2, &auth);
    thief.hostinfo.as_mut().unwrap().hostname = first.to_string();
    assert!(w.answer(2, &thief).machine_authorized);
    let second = w.c.node_by_key(&key(2)).unwrap();
    assert_eq!(second.name, "node-1");
    let tagged = w.c.tag_node("1", ["tag:prod".to_owned()].into());
    assert_eq!(tagged, Ok(first));
}

#[test]
fn names_of_digits_are_refused_where_a_person_chooses() {
    let mut w = World::new();
    w.user("lab");
    let auth = w.reusable("lab");
    w.join(1, &auth);
    let refused = AdminError::Name(LabelError::OnlyDigits("7".to_owned()));
    assert_eq!(w.c.rename_node("host1", "7"), Err(refused.clone()));
    assert_eq!(w.c.create_user(w.wall, "7").err(), Some(refused.clone()));
    assert_eq!(w.c.rename_user("lab", "7").err(), Some(refused));
}

#[test]
fn imported_names_are_reached_by_the_explicit_form_and_shown_when_ambiguous() {
    let mut w = World::new();
    w.user("lab");
    let auth = w.reusable("lab");
    for n in 1..=3 {
        w.join(n, &auth);
    }
    let mut data: Snapshot = w.stored.clone();
    for (id, name) in [(1, "2"), (2, "db"), (3, "db")] {
        data.nodes.get_mut(&NodeId(id)).unwrap().name = name.to_owned();
    }
    let w = World::with(data);
    let id = |text: &str| w.c.find_node(text).map(|node| node.id.0);
    assert_eq!(id("2"), Ok(2));
    assert_eq!(id("name:2"), Ok(1));
    let error = id("db").unwrap_err().to_string();
    assert!(error.contains("id:2 and id:3"), "{error}");
    assert_eq!(id("id:3"), Ok(3));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// However hosts call themselves and administrators rename them, every
    /// reference to a node or user names that one.
    #[test]
    fn no_name_makes_a_reference_resolve_to_another_record(
        hosts in prop::collection::vec("([0-9]{1,3}|id:[0-9]|name:[0-9a-z]|[0-9.]{1,9}|fd7a::[0-9]|[a-z0-9-]{1,4}|.{0,6})", 4),
        chosen in prop::collection::vec((0_u8..4, "([0-9]{1,2}|id:[0-9]|[a-z0-9-]{1,4})"), 0..6),
        users in prop::collection::vec("([0-9]{1,2}|id:[0-9]|[a-zA-Z0-9@.]{1,3})", 0..6),
    ) {
        let mut w = World::new();
        w.user("lab");
        let auth = w.reusable("lab");
        for n in 0..4 {
            w.join(n, &auth);
        }
        for (n, host) in (0..).zip(&hosts) {
            let mut update = map_request(n);
            update.hostinfo = request(n, "").hostinfo;
            update.hostinfo.as_mut().unwrap().hostname.clone_from(host);
            w.c.update(machine(n), &update).unwrap();
        }
        for (n, name) in &chosen {
            let id = w.c.node_by_key(&key(*n)).unwrap().id;
            let _ = w.c.rename_node(id, name);
        }
        for user in &users {
            let _ = w.c.create_user(w.wall, user);
        }
        w.settle();
        let mut named = BTreeMap::new();
        for node in w.c.snapshot().nodes.values() {
            for reference in [
                node.id.to_string(),
                format!("id:{}", node.id),
                node.name.clone(),
                format!("name:{}", node.name),
                format!("{}.warren.internal", node.name),
                node.address.v4().to_string(),
                node.address.v6().to_string(),
            ] {
                prop_assert_eq!(w.c.find_node(&reference).map(|found| found.id), Ok(node.id));
                prop_assert_eq!(named.insert(NodeRef::from(&reference).to_string(), node.id), None);
            }
        }
        for user in w.c.snapshot().users.values() {
            for reference in [
                user.id.to_string(),
                format!("id:{}", user.id),
                user.name.clone(),
                format!("name:{}", user.name.to_uppercase()),
            ] {
                let found = w.c.find_user(UserRef::from(&reference));
                prop_assert_eq!(found.map(|found| found.id), Ok(user.id));
            }
        }
    }
}

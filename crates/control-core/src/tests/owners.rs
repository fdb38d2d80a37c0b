//! A node stays one node under each owner; the properties that follow from the owner.

use std::collections::BTreeSet;
use std::time::Duration;

use ipnet::IpNet;
use jiff::Timestamp;
use proptest::prelude::*;
use warren_control_types::{Hostinfo, MapRequest, NodeId, RegisterRequest};

use super::world::{World, key, machine, map_request, request};
use crate::{AdminError, NewAuthKey, NodeRecord, PendingId, RegisterOutcome};

/// `tag:a` and `tag:b` belong to ann, `tag:c` to no person, `tag:x` is not defined.
const POLICY: &str = r#"{
    "tagOwners": {"tag:a": ["ann@"], "tag:b": ["ann@"], "tag:c": []},
    "autoApprovers": {"routes": {"10.2.0.0/16": ["tag:b"], "10.3.0.0/16": ["ann@"]}},
}"#;
const MONTHS: Duration = Duration::from_secs(180 * 24 * 3600);

fn tags(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| format!("tag:{name}")).collect()
}

fn nets(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// A network with the policy and the users ann and bob.
fn world() -> World {
    let mut w = World::new();
    w.user("ann");
    w.user("bob");
    w.c.set_policy(Some(POLICY.to_owned())).unwrap();
    w.settle();
    w
}

fn auth_key(w: &mut World, user: Option<&str>, names: &[&str], ephemeral: bool) -> String {
    w.auth_key(NewAuthKey {
        user: user.map(Into::into),
        tags: tags(names),
        reusable: true,
        ephemeral,
        ..NewAuthKey::default()
    })
}

/// A login of machine 1 with node key `new` that replaces `old`, asking for tags.
fn login(new: u8, old: Option<u8>, auth: &str, wanted: &[&str]) -> RegisterRequest {
    RegisterRequest {
        node_key: key(new),
        old_node_key: old.map(key),
        hostinfo: Some(Hostinfo {
            hostname: "box".to_owned(),
            request_tags: tags(wanted).into_iter().collect(),
            routable_ips: nets(&["10.1.0.0/16", "10.2.0.0/16", "10.3.0.0/16"]),
            ..Hostinfo::default()
        }),
        ..request(1, auth)
    }
}

/// The node that this login makes or renews.
fn logged_in(w: &mut World, login: &RegisterRequest) -> NodeRecord {
    assert_eq!(w.answer(1, login).error, "");
    w.c.node_by_key(&login.node_key).unwrap().clone()
}

/// The same for a login that an administrator approves for `user`.
fn approved(
    w: &mut World,
    login: &RegisterRequest,
    user: &str,
    given: &[&str],
) -> Result<NodeRecord, AdminError> {
    let id = waiting(w, login);
    let node = w.c.approve(w.now, w.wall, &id, user, tags(given))?;
    w.settle();
    // The client repeats its request, now as a known node.
    let repeated = RegisterRequest {
        followup: w.c.auth_url(&id),
        ..login.clone()
    };
    assert!(w.answer(1, &repeated).machine_authorized);
    Ok(w.c.node(node).unwrap().clone())
}

fn waiting(w: &mut World, login: &RegisterRequest) -> PendingId {
    match w.register(1, login) {
        RegisterOutcome::Answer(answer) => {
            PendingId(answer.auth_url.rsplit('/').next().unwrap().to_owned())
        }
        other => panic!("{other:?}"),
    }
}

/// T01, T04, T20, T21, T22 of Headscale's scenarios.
#[test]
fn tags_of_a_tagged_key_are_final() {
    let mut w = world();
    let tagged = auth_key(&mut w, Some("ann"), &["a"], false);
    let plain = auth_key(&mut w, Some("ann"), &[], false);
    let refused = "are invalid or not permitted";
    for (auth, wanted) in [
        (&tagged, &["b"][..]),
        (&tagged, &["a", "b"]),
        (&tagged, &["x"]),
        (&tagged, &["c"]),
        (&plain, &["x"]),
        (&plain, &["a", "c"]),
    ] {
        let error = w.answer(1, &login(1, None, auth, wanted)).error;
        assert!(error.contains(refused), "{wanted:?}: {error}");
        assert!(w.c.snapshot().nodes.is_empty());
    }
    assert_eq!(
        logged_in(&mut w, &login(1, None, &tagged, &["a"])).tags,
        tags(&["a"])
    );
    // The client's wish for other tags changes nothing later, in either way.
    assert_eq!(
        logged_in(&mut w, &login(2, Some(1), &tagged, &[])).tags,
        tags(&["a"])
    );
    let with_wish = login(3, Some(2), &plain, &["a", "b"]);
    assert_eq!(logged_in(&mut w, &with_wish).tags, tags(&["a", "b"]));
    assert_eq!(w.c.snapshot().nodes.len(), 1);
}

/// `up --advertise-tags` on a node that is connected.
#[test]
fn known_node_that_asks_for_other_tags_gets_them_or_is_refused_once() {
    let mut w = world();
    let plain = auth_key(&mut w, Some("ann"), &[], false);
    let before = logged_in(&mut w, &login(1, None, &plain, &[]));
    assert!(before.key_expiry.is_some());
    let again = |wanted: &[&str]| RegisterRequest {
        auth: None,
        ..login(1, None, "", wanted)
    };
    // A description of the machine is no wish.
    let report = MapRequest {
        hostinfo: again(&["b"]).hostinfo,
        ..map_request(1)
    };
    w.c.update(machine(1), &report).unwrap();
    w.settle();
    assert_eq!(w.c.node(before.id).unwrap().tags, tags(&[]));

    let tagged = logged_in(&mut w, &again(&["b"]));
    assert_eq!((tagged.id, tagged.tags), (before.id, tags(&["b"])));
    assert_eq!(tagged.key_expiry, None);
    assert_eq!(
        tagged.approved_routes,
        nets(&["10.2.0.0/16"]).into_iter().collect()
    );

    let refused = "requested tags [tag:c] are invalid or not permitted: ";
    let error = w.answer(1, &again(&["b", "c"])).error;
    assert!(error.starts_with(refused), "{error}");
    // The client comes again by itself, and the network must not end with a wrong word.
    assert_eq!(logged_in(&mut w, &again(&["b", "c"])).tags, tags(&["b"]));
    // Without a wish, the owner stays.
    assert_eq!(logged_in(&mut w, &again(&[])).tags, tags(&["b"]));

    w.c.tag_node(before.id, tags(&["c"])).unwrap();
    let error = w.answer(1, &again(&["a"])).error;
    assert!(error.contains("an administrator set the owner"), "{error}");
    assert_eq!(logged_in(&mut w, &again(&["a"])).tags, tags(&["c"]));
}

/// T05, T06: as long as the machine comes with the key that it has used before.
#[test]
fn owner_that_an_administrator_set_survives_a_login_with_the_same_key() {
    let mut w = world();
    let tagged = auth_key(&mut w, Some("ann"), &["a"], false);
    let plain = auth_key(&mut w, Some("ann"), &[], false);
    let id = logged_in(&mut w, &login(1, None, &tagged, &["a"])).id;
    w.c.tag_node(id, tags(&["b"])).unwrap();
    let with_old = logged_in(&mut w, &login(2, Some(1), &tagged, &["a"]));
    let without = logged_in(&mut w, &login(3, None, &tagged, &[]));
    assert_eq!((with_old.id, with_old.tags), (id, tags(&["b"])));
    assert_eq!((without.id, without.tags), (id, tags(&["b"])));
    // So does a person to whom it was given.
    w.c.assign_node(id, Some("bob".into())).unwrap();
    let node = logged_in(&mut w, &login(4, Some(3), &tagged, &[]));
    assert_eq!((node.id, node.tags.len()), (id, 0));
    assert_eq!(node.user, Some(w.c.find_user("bob").unwrap().id));
    // Another key is another decision of an administrator, and later ones hold.
    let node = logged_in(&mut w, &login(5, Some(4), &plain, &[]));
    assert_ne!(node.id, id, "ann does not take over what bob has");
    let node = logged_in(&mut w, &login(6, Some(4), &tagged, &[]));
    assert_eq!(node.tags.len(), 0, "bob's is still what was set");
    w.c.tag_node(id, tags(&["c"])).unwrap();
    let node = logged_in(&mut w, &login(7, Some(6), &plain, &["b"]));
    assert_eq!((node.id, node.tags), (id, tags(&["b"])));
    let node = logged_in(&mut w, &login(8, Some(7), &tagged, &[]));
    assert_eq!(node.tags, tags(&["a"]), "no administrator has set b");
}

/// T29 and T32.
#[test]
fn tagged_node_that_logs_in_for_a_person_stays_the_same_node() {
    for user in [Some("ann"), None] {
        let mut w = world();
        let tagged = auth_key(&mut w, user, &["a", "b"], false);
        let before = match user {
            Some(user) => approved(&mut w, &login(1, None, "", &["a", "b"]), user, &[]).unwrap(),
            None => logged_in(&mut w, &login(1, None, &tagged, &[])),
        };
        assert_eq!((before.tags, before.key_expiry), (tags(&["a", "b"]), None));
        let after = approved(&mut w, &login(2, Some(1), "", &[]), "ann", &[]).unwrap();
        assert_eq!((after.id, after.address), (before.id, before.address));
        assert_eq!((after.name, after.tags.len()), (before.name, 0));
        assert_eq!(after.user, Some(w.c.find_user("ann").unwrap().id));
        assert!(after.key_expiry.is_some());
        assert_eq!(
            after.approved_routes,
            nets(&["10.3.0.0/16"]).into_iter().collect()
        );
        assert_eq!(w.c.snapshot().nodes.len(), 1);
    }
}

/// Field report F11.
#[test]
fn replaced_key_names_the_node_before_any_guess() {
    let mut w = world();
    let ann = auth_key(&mut w, Some("ann"), &[], false);
    let tagged = auth_key(&mut w, Some("ann"), &["a"], false);
    let first = logged_in(&mut w, &login(1, None, &tagged, &[])).id;
    let second = logged_in(&mut w, &login(2, None, &ann, &[])).id;
    assert_ne!(first, second);
    w.c.assign_node(first, Some("ann".into())).unwrap();
    assert_eq!(logged_in(&mut w, &login(3, Some(2), &ann, &[])).id, second);
    assert_eq!(logged_in(&mut w, &login(4, Some(1), &ann, &[])).id, first);
    // The key of another machine's node names nothing here.
    let foreign = w.join(9, &ann);
    assert_eq!(logged_in(&mut w, &login(5, Some(9), &ann, &[])).id, first);
    assert!(w.c.node(foreign).is_some_and(|node| node.key == key(9)));
    // People do not take over each other's nodes.
    let bob = approved(&mut w, &login(6, Some(5), "", &[]), "bob", &[]).unwrap();
    assert!(bob.id != first && bob.id != second);
    assert_eq!(w.c.node(first).unwrap().key, key(5));
}

/// T14, T24, T25, I14, I15, and the other places where an administrator gives tags.
#[test]
fn administrator_gives_only_tags_that_the_policy_defines() {
    let mut w = world();
    let ann = auth_key(&mut w, Some("ann"), &[], false);
    let before = logged_in(&mut w, &login(1, None, &ann, &[]));
    let id = before.id;
    let undefined = |result: Result<_, AdminError>| {
        assert_eq!(
            result.err(),
            Some(AdminError::UndefinedTag("tag:x".to_owned()))
        );
    };
    undefined(w.c.tag_node(id, tags(&["a", "x"])).map(drop));
    undefined(approved(&mut w, &login(2, None, "", &[]), "ann", &["x"]).map(drop));
    assert!(approved(&mut w, &login(3, None, "", &["x"]), "ann", &[]).is_err());
    let new = NewAuthKey {
        tags: tags(&["x"]),
        ..NewAuthKey::default()
    };
    undefined(w.c.create_auth_key(w.wall, new).map(drop));
    assert_eq!(
        w.c.tag_node(id, BTreeSet::new()),
        Err(AdminError::NoTags("box".to_owned()))
    );
    assert_eq!(w.c.node(id), Some(&before), "nothing was changed");
    w.c.tag_node(id, tags(&["c"])).unwrap();
    assert_eq!(w.c.node(id).unwrap().tags, tags(&["c"]));
    // Without a policy, no tag needs a definition.
    w.c.set_policy(None).unwrap();
    w.c.tag_node(id, tags(&["x"])).unwrap();
    // To a person it goes by a command of its own.
    w.c.assign_node(id, None).unwrap();
    assert_eq!(w.c.node(id).unwrap().user, before.user);
    assert!(w.c.node(id).unwrap().tags.is_empty());
    let unowned = auth_key(&mut w, None, &["x"], false);
    let other = w.join(2, &unowned);
    let refused = w.c.assign_node(other, None);
    assert!(matches!(refused, Err(AdminError::JoinedWithoutUser(_))));
    w.c.assign_node(other, Some("bob".into())).unwrap();
    assert!(w.c.node(other).unwrap().key_expiry.is_some());
}

/// S01: 1 announced, 1 approved, 0 serving, and the reverse.
#[test]
fn approved_route_is_served_as_soon_as_it_is_announced() {
    let mut w = world();
    let bob = auth_key(&mut w, Some("bob"), &[], false);
    let id = w.join(1, &bob);
    let _ = w.open(1).unwrap();
    let viewer = w.join(2, &bob);
    let routes = nets(&["10.1.0.0/16", "0.0.0.0/0"]);
    w.c.approve_routes(id, &routes).unwrap();
    w.settle();
    let served = |w: &World| {
        w.fresh(viewer).peers[&id]
            .allowed_ips
            .as_ref()
            .map_or(0, |ips| ips.len() - 2)
    };
    assert_eq!(
        (w.c.node(id).unwrap().approved_routes.len(), served(&w)),
        (3, 0)
    );
    let announce = |w: &mut World, texts: &[&str]| {
        let mut update = super::world::map_request(1);
        (update.stream, update.omit_peers) = (false, true);
        update.hostinfo = Some(Hostinfo {
            hostname: "host1".to_owned(),
            routable_ips: nets(texts),
            ..Hostinfo::default()
        });
        w.c.update(super::world::machine(1), &update).unwrap();
        w.settle();
    };
    announce(&mut w, &["10.1.0.0/16", "10.9.0.0/16"]);
    assert_eq!(served(&w), 1);
    announce(&mut w, &["0.0.0.0/0", "::/0"]);
    assert_eq!(served(&w), 2, "both exit routes");
    w.c.approve_routes(id, &[]).unwrap();
    assert_eq!(served(&w), 0);
}

#[test]
fn expiry_can_be_taken_back_or_set() {
    let mut w = world();
    let ann = auth_key(&mut w, Some("ann"), &[], false);
    let id = w.join(1, &ann);
    w.c.expire_node(w.wall, id).unwrap();
    assert!(w.c.view().standing(id).is_expired());
    w.c.set_expiry(w.wall, id, None).unwrap();
    assert!(w.c.view().standing(id).is_valid());
    assert!(w.answer(1, &request(1, "")).machine_authorized);
    let soon = crate::clock::timestamp(w.wall + Duration::from_secs(60));
    w.c.set_expiry(w.wall, id, Some(soon)).unwrap();
    assert_eq!(w.c.node(id).unwrap().key_expiry, Some(soon));
    w.pass(Duration::from_secs(60));
    assert!(w.c.view().standing(id).is_expired());
    w.c.set_expiry(w.wall, id, Some(Timestamp::UNIX_EPOCH))
        .unwrap();
    let end = w.c.node(id).unwrap().key_expiry;
    assert_eq!(end, Some(crate::clock::timestamp(w.wall)), "not 1970");
}

/// Changes of the owner of one node, by all who can make them.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// A login with the key of ann, of `tag:a`, of `tag:b` without a user, or with
    /// the ephemeral one of ann.
    Key(usize),
    /// A login that is approved for ann, without tags or with `tag:b`.
    Approval(bool),
    /// An administrator gives it to `tag:a`, `tag:b` or ann.
    Tag(bool),
    Assign,
    Expire,
    ApproveRoute,
    Pass(u32),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0_usize..4).prop_map(Step::Key),
        any::<bool>().prop_map(Step::Approval),
        any::<bool>().prop_map(Step::Tag),
        Just(Step::Assign),
        Just(Step::Expire),
        Just(Step::ApproveRoute),
        (1_u32..10_000).prop_map(Step::Pass),
    ]
}

struct Model {
    node_key: u8,
    id: Option<NodeId>,
    /// An administrator has ended its key since the last login.
    expired: bool,
    /// An administrator has approved a route since the owner changed.
    by_hand: bool,
}

fn take(w: &mut World, model: &mut Model, keys: &[String; 4], step: Step) {
    let old = model.node_key;
    let next = |model: &mut Model| {
        model.node_key += 1;
        model.expired = false;
        model.node_key
    };
    let before = model.id.and_then(|id| w.c.node(id).cloned());
    match step {
        Step::Key(n) => {
            let new = next(model);
            logged_in(w, &login(new, Some(old), &keys[n], &[]));
        }
        Step::Approval(tagged) => {
            let new = next(model);
            let given: &[&str] = if tagged { &["b"] } else { &[] };
            approved(w, &login(new, Some(old), "", &[]), "ann", given).unwrap();
        }
        Step::Pass(seconds) => w.pass(Duration::from_secs(seconds.into())),
        _ => {
            let Some(id) = model.id else { return };
            match step {
                Step::Tag(a) => drop(w.c.tag_node(id, tags(&[if a { "a" } else { "b" }]))),
                Step::Assign => drop(w.c.assign_node(id, Some("ann".into()))),
                Step::Expire => {
                    w.c.expire_node(w.wall, id).unwrap();
                    model.expired = true;
                }
                _ => {
                    w.c.approve_routes(id, &nets(&["10.1.0.0/16"])).unwrap();
                    model.by_hand = true;
                }
            }
            w.settle();
        }
    }
    let Some(node) = w.c.snapshot().nodes.into_values().next() else {
        return;
    };
    let owner_before = before.map(|node| (node.user, node.tags));
    if owner_before.is_some_and(|owner| owner != (node.user, node.tags.clone())) {
        model.by_hand = false;
    }
    model.id = Some(node.id);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    /// The properties that follow from the owner are those of the present one after
    /// each sequence of owners.
    #[test]
    fn state_that_follows_from_the_owner_is_that_of_the_current_owner(
        steps in prop::collection::vec(step(), 1..25),
    ) {
        let mut w = world();
        let keys = [
            auth_key(&mut w, Some("ann"), &[], false),
            auth_key(&mut w, Some("ann"), &["a"], false),
            auth_key(&mut w, None, &["b"], false),
            auth_key(&mut w, Some("ann"), &[], true),
        ];
        let mut model = Model {
            node_key: 1, id: None, expired: false, by_hand: false,
        };
        for step in steps {
            let known = model.id;
            take(&mut w, &mut model, &keys, step);
            let nodes = w.c.snapshot().nodes;
            // An ephemeral node that never connects is deleted in the end.
            let Some(node) = model.id.and_then(|id| nodes.get(&id)) else {
                model.id = None;
                continue;
            };
            prop_assert_eq!(nodes.len(), 1, "after {:?}", step);
            prop_assert!(known.is_none_or(|known| known == node.id));
            prop_assert_eq!(&node.name, "box");
            let now = crate::clock::timestamp(w.wall);
            let ends = !node.is_tagged() && !node.ephemeral;
            match node.key_expiry {
                Some(end) if model.expired => prop_assert!(end <= now),
                None => prop_assert!(!ends && !model.expired, "{:?} never ends", node),
                Some(end) => {
                    prop_assert!(ends && end > now, "{:?}", node);
                    prop_assert!(end <= crate::clock::timestamp(w.wall + MONTHS));
                }
            }
            let by_policy = w.c.view().approved_by_policy(node);
            let by_hand = &nets(&["10.1.0.0/16"]).into_iter().collect() | &by_policy;
            if model.by_hand {
                prop_assert!(node.approved_routes.is_subset(&by_hand));
            } else {
                prop_assert_eq!(&node.approved_routes, &by_policy);
            }
        }
        prop_assert_eq!(&w.stored, &w.c.snapshot());
    }
}

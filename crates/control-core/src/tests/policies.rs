//! Policies that were set: their history, and a file in charge.

use std::time::Duration;

use super::world::World;
use crate::{AdminError, GivenPolicy, PolicyVersion, Snapshot};

fn given(n: usize) -> GivenPolicy {
    GivenPolicy {
        file: format!("acl-{n}.hujson"),
        text: Some(format!("{{\"acls\": []}} // {n}")),
    }
}

/// Tries it and takes it.
fn take(w: &mut World, wall: Duration, n: usize, base: Option<i64>) -> Result<i64, AdminError> {
    let tried = w.c.tailnet().try_policy(&given(n))?;
    w.c.take_policy(wall, "ann", tried, base)
}

/// The same with what a file in charge says.
fn take_file(w: &mut World, text: &str) -> Result<bool, AdminError> {
    let given = GivenPolicy {
        file: w.c.view().policy_file().unwrap().path.clone(),
        text: Some(text.to_owned()),
    };
    let tried = w.c.tailnet().try_policy(&given);
    match tried {
        Ok(tried) => w.c.take_policy_file(w.wall, tried),
        Err(error) => {
            w.c.policy_file_failed(w.wall, &error.to_string());
            Err(error)
        }
    }
}

#[test]
fn every_policy_becomes_a_version_and_the_oldest_go() {
    let mut w = World::with(Snapshot {
        policy: Some("{}".to_owned()),
        ..Snapshot::default()
    });
    assert_eq!(w.c.view().policy_version(), None, "older than the history");
    for n in 0..150 {
        let wall = w.wall + Duration::from_secs(60) * u32::try_from(n).unwrap();
        let base = w.c.view().policy_version();
        let version = take(&mut w, wall, n, base).unwrap();
        assert_eq!(version, i64::try_from(n).unwrap() + 2);
    }
    w.settle();
    let view = w.c.view();
    let kept: Vec<&PolicyVersion> = view.policy_versions().collect();
    assert_eq!(
        (kept.len(), kept[0].version, kept[99].version),
        (100, 52, 151)
    );
    assert_eq!(w.c.view().policy_in_force(), given(149));
    assert_eq!(
        (kept[99].by.as_str(), kept[99].file.as_str()),
        ("ann", "acl-149.hujson")
    );
    assert!(kept[98].at < kept[99].at);
    assert_eq!(w.c.view().policy_at(1), Err(AdminError::NoPolicyVersion(1)));
    // A restart finds the same.
    assert_eq!(&w.stored.policies, &w.c.snapshot().policies);
    assert_eq!(World::with(w.stored).c.view().policy_version(), Some(151));
}

#[test]
fn policy_from_before_the_history_becomes_its_first_version() {
    let mut w = World::with(Snapshot {
        policy: Some("{}".to_owned()),
        ..Snapshot::default()
    });
    let wall = w.wall;
    take(&mut w, wall, 1, None).unwrap();
    let first = w.c.view().policy_at(1).unwrap().clone();
    assert_eq!((first.text.as_deref(), first.at), (Some("{}"), None));
}

#[test]
fn a_change_that_was_not_seen_is_not_undone() {
    let mut w = World::new();
    let wall = w.wall;
    assert_eq!(take(&mut w, wall, 1, None), Ok(1));
    // Two administrators saw that there is none yet: the second one is refused.
    assert_eq!(take(&mut w, wall, 3, None), Err(AdminError::PolicyChanged));
    assert_eq!(take(&mut w, wall, 2, Some(1)), Ok(2));
    let late = take(&mut w, wall, 3, Some(1));
    assert_eq!(late, Err(AdminError::PolicyChanged));
    assert_eq!(w.c.view().policy_in_force(), given(2));
}

#[test]
fn a_file_in_charge_keeps_others_out_and_its_last_good_text() {
    let mut w = World::new();
    w.c.put_file_in_charge("/etc/acl.hujson");
    let good = "{\"acls\": []}";
    assert!(take_file(&mut w, good).unwrap());
    assert!(!take_file(&mut w, good).unwrap(), "nothing new");
    let (wall, base) = (w.wall, w.c.view().policy_version());
    let refused = take(&mut w, wall, 1, base).unwrap_err();
    assert!(refused.to_string().contains("/etc/acl.hujson"), "{refused}");

    let error = take_file(&mut w, "{\"acls\": [}").unwrap_err();
    assert!(
        error.to_string().contains("--> /etc/acl.hujson:1:11"),
        "{error}"
    );
    let problem = w.c.view().policy_file().unwrap().problem.clone().unwrap().1;
    assert_eq!(problem, error.to_string());
    assert_eq!(w.c.snapshot().policy.as_deref(), Some(good));

    let lying =
        "{\"acls\": [], \"tests\": [{\"src\": \"100.64.0.1\", \"accept\": [\"100.64.0.2:1\"]}]}";
    let error = take_file(&mut w, lying).unwrap_err();
    assert!(
        error.to_string().contains("100.64.0.1 -> 100.64.0.2:1"),
        "{error}"
    );
    assert!(w.c.policy_file_says_the_same(good));
    assert_eq!(w.c.view().policy_file().unwrap().problem, None);
    assert_eq!(w.c.view().policy_versions().count(), 1);
}

#[test]
fn changes_since_a_policy_was_tried_count() {
    let mut w = World::new();
    w.user("alice");
    let key = w.reusable("alice");
    w.join(1, &key);
    let given = GivenPolicy {
        file: "acl.hujson".to_owned(),
        text: Some(
            r#"{"acls": [{"action": "accept", "src": ["alice@"], "dst": ["alice@:22"]}],
            "tests": [{"src": "alice@", "accept": ["alice@:22"]}]}"#
                .to_owned(),
        ),
    };
    let tried = w.c.tailnet().try_policy(&given).unwrap();
    assert_eq!(tried.assertions(), 1);
    assert_eq!(w.c.take_policy(w.wall, "ann", tried.clone(), None), Ok(1));
    // Its only node goes: no node is left for which the test would pass.
    w.c.delete_node("host1").unwrap();
    let error = w.c.take_policy(w.wall, "ann", tried, Some(1)).unwrap_err();
    assert!(error.to_string().contains("alice@ -> alice@:22"), "{error}");
}

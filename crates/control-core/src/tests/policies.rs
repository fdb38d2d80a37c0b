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

#[test]
fn every_policy_becomes_a_version_and_the_oldest_go() {
    let mut w = World::with(Snapshot {
        policy: Some("{}".to_owned()),
        ..Snapshot::default()
    });
    assert_eq!(w.c.policy_version(), None, "older than the history");
    for n in 0..150 {
        let wall = w.wall + Duration::from_secs(60) * u32::try_from(n).unwrap();
        let version = w.c.take_policy(wall, "ann", given(n), None).unwrap();
        assert_eq!(version, i64::try_from(n).unwrap() + 2);
    }
    w.settle();
    let kept: Vec<&PolicyVersion> = w.c.policy_versions().collect();
    assert_eq!(
        (kept.len(), kept[0].version, kept[99].version),
        (100, 52, 151)
    );
    assert_eq!(w.c.policy_in_force(), given(149));
    assert_eq!(
        (kept[99].by.as_str(), kept[99].file.as_str()),
        ("ann", "acl-149.hujson")
    );
    assert!(kept[98].at < kept[99].at);
    assert_eq!(w.c.policy_at(1), Err(AdminError::NoPolicyVersion(1)));
    // A restart finds the same.
    assert_eq!(&w.stored.policies, &w.c.snapshot().policies);
    assert_eq!(World::with(w.stored).c.policy_version(), Some(151));
}

#[test]
fn what_came_before_the_history_is_its_first_version() {
    let mut w = World::with(Snapshot {
        policy: Some("{}".to_owned()),
        ..Snapshot::default()
    });
    w.c.take_policy(w.wall, "ann", given(1), None).unwrap();
    let first = w.c.policy_at(1).unwrap();
    assert_eq!((first.text.as_deref(), first.at), (Some("{}"), None));
}

#[test]
fn a_change_that_was_not_seen_is_not_undone() {
    let mut w = World::new();
    assert_eq!(w.c.take_policy(w.wall, "ann", given(1), None).unwrap(), 1);
    assert_eq!(
        w.c.take_policy(w.wall, "ben", given(2), Some(1)).unwrap(),
        2
    );
    let late = w.c.take_policy(w.wall, "ann", given(3), Some(1));
    assert_eq!(late, Err(AdminError::PolicyChanged));
    assert_eq!(w.c.policy_in_force(), given(2));
}

#[test]
fn a_file_in_charge_keeps_others_out_and_its_last_good_text() {
    let mut w = World::new();
    w.c.put_file_in_charge("/etc/acl.hujson");
    let good = "{\"acls\": []}".to_owned();
    assert!(w.c.take_policy_file(w.wall, good.clone()).unwrap());
    assert!(
        !w.c.take_policy_file(w.wall, good.clone()).unwrap(),
        "nothing new"
    );
    let refused = w.c.take_policy(w.wall, "ann", given(1), None).unwrap_err();
    assert!(refused.to_string().contains("/etc/acl.hujson"), "{refused}");

    let error =
        w.c.take_policy_file(w.wall, "{\"acls\": [}".to_owned())
            .unwrap_err();
    assert!(
        error.to_string().contains("--> /etc/acl.hujson:1:11"),
        "{error}"
    );
    let problem = w.c.policy_file().unwrap().problem.clone().unwrap().1;
    assert_eq!(problem, error.to_string());
    assert_eq!(w.c.snapshot().policy.as_ref(), Some(&good));

    let lying =
        "{\"acls\": [], \"tests\": [{\"src\": \"100.64.0.1\", \"accept\": [\"100.64.0.2:1\"]}]}";
    let error = w.c.take_policy_file(w.wall, lying.to_owned()).unwrap_err();
    assert!(
        error.to_string().contains("100.64.0.1 -> 100.64.0.2:1"),
        "{error}"
    );
    assert!(!w.c.take_policy_file(w.wall, good).unwrap());
    assert_eq!(w.c.policy_file().unwrap().problem, None);
    assert_eq!(w.c.policy_versions().count(), 1);
}

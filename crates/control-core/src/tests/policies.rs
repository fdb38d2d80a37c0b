//! Policies that were set: their history, and a file in charge.

use std::time::Duration;

use super::world::World;
use crate::{AdminError, GivenPolicy, Notice, Output, PolicyVersion, Snapshot};

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

/// The reasons of which the administrator was informed that everything is
/// allowed.
fn warnings(w: &mut World) -> Vec<String> {
    let outputs = std::iter::from_fn(|| w.c.poll_output());
    outputs
        .filter_map(|output| match output {
            Output::Notice(Notice::PolicyAllowsEverything(why)) => Some(why),
            _ => None,
        })
        .collect()
}

#[test]
fn policy_that_allows_everything_is_reported_whenever_it_comes_into_force() {
    let mut w = World::new();
    assert_eq!(
        w.c.view().allows_everything().as_deref(),
        Some("no policy is set")
    );
    for (text, why) in [
        (Some("{}"), Some("it has neither acls nor grants")),
        (Some("{\"acls\": []}"), None),
        (
            Some(r#"{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]}"#),
            Some("one of its rules allows all sources to reach all destinations"),
        ),
        (None, Some("no policy is set")),
    ] {
        w.c.set_policy(text.map(str::to_owned)).unwrap();
        let why: Vec<String> = why.into_iter().map(str::to_owned).collect();
        assert_eq!(warnings(&mut w), why, "{text:?}");
        assert_eq!(w.c.view().allows_everything(), why.first().cloned());
    }
    // A stored policy is reported at the start.
    let mut w = World::with(Snapshot {
        policy: Some("{\"hosts\": {}}".to_owned()),
        ..Snapshot::default()
    });
    assert_eq!(warnings(&mut w).len(), 1);
}

#[test]
fn stored_policy_that_cannot_be_read_allows_nothing_until_another_is_set() {
    for stored in ["", "{", "{\"acls\": 7}"] {
        let mut w = World::with(Snapshot {
            policy: Some(stored.to_owned()),
            ..Snapshot::default()
        });
        assert!(w.c.view().policy_fault().is_some(), "{stored:?}");
        assert_eq!(w.c.view().allows_everything(), None);
        let outputs: Vec<Output> = std::iter::from_fn(|| w.c.poll_output()).collect();
        let is_reported =
            |output: &Output| matches!(output, Output::Notice(Notice::PolicyUnreadable(_)));
        assert!(outputs.iter().any(is_reported));
        // The text is kept for the administrator who mends it.
        assert_eq!(w.c.snapshot().policy.as_deref(), Some(stored));
        w.c.set_policy(Some("{\"acls\": []}".to_owned())).unwrap();
        assert_eq!(w.c.view().policy_fault(), None);
    }
}

#[test]
fn empty_policy_is_refused_and_the_last_one_stays() {
    let mut w = World::new();
    w.c.put_file_in_charge("/etc/acl.hujson");
    let good = "{\"acls\": []}";
    assert!(take_file(&mut w, good).unwrap());
    for text in ["", "\n", "// {\"acls\": []}\n", "{\"acls\": [", "null"] {
        take_file(&mut w, text).unwrap_err();
        assert_eq!(w.c.snapshot().policy.as_deref(), Some(good), "{text:?}");
        assert!(w.c.view().policy_file().unwrap().problem.is_some());
    }
    assert_eq!(w.c.view().allows_everything(), None);
}

#[test]
fn policy_without_a_text_has_to_say_so() {
    let given = r#"{"file": "p", "text": null}"#;
    let given: GivenPolicy = serde_json::from_str(given).unwrap();
    assert_eq!(given.text, None);
    for missing in [r#"{"file": "p"}"#, r#"{"file": "p", "txt": ""}"#] {
        serde_json::from_str::<GivenPolicy>(missing).unwrap_err();
    }
    let row = r#"{"version": 1, "at": null, "by": "ann", "file": "p"}"#;
    serde_json::from_str::<PolicyVersion>(row).unwrap_err();
}

#[test]
fn policy_names_only_login_domains_of_users() {
    let mut w = World::new();
    w.user("bob");
    let ssh = |domain: &str| GivenPolicy {
        file: "acl.hujson".to_owned(),
        text: Some(format!(
            r#"{{"ssh": [{{"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self"], "users": ["localpart:*@{domain}"]}}]}}"#
        )),
    };
    let acl = |domain: &str| GivenPolicy {
        file: "acl.hujson".to_owned(),
        text: Some(format!(
            r#"{{"acls": [{{"action": "accept", "src": ["user:*@{domain}"], "dst": ["*:*"]}}]}}"#
        )),
    };
    let refused = |w: &World, given: &GivenPolicy| {
        let tried = w.c.tailnet().try_policy(given);
        tried.err().map(|error| error.to_string())
    };
    w.user("alice@Example.com");
    for given in [ssh("example.org"), acl("example.org")] {
        let error = refused(&w, &given).unwrap();
        assert!(
            error.contains(
                "example.org is not associated with this Tailnet and cannot be used in user:*@example.org expressions"
            ),
            "{error}"
        );
    }
    for domain in ["@example.com", "bob", "b@example.com"] {
        assert!(refused(&w, &ssh(domain)).is_some(), "{domain}");
        assert!(refused(&w, &acl(domain)).is_some(), "{domain}");
    }
    let given = acl("example.com");
    for given in [ssh("EXAMPLE.com"), given.clone()] {
        assert_eq!(refused(&w, &given), None);
    }
    // The policy in force stays valid without the last user of the domain.
    w.c.set_policy(given.text.clone()).unwrap();
    w.c.delete_user("alice@Example.com").unwrap();
    assert!(refused(&w, &given).is_some());
    w.settle();
    let stored = World::with(w.stored).c.snapshot().policy;
    assert_eq!(stored, given.text);
}

#![allow(clippy::unwrap_used)]
use warren_control_types::UserProfile;
use warren_testkit::CountingEntropy;

use super::*;

const STATE_FILE: &str = "warren.state";

fn open(folder: &Path, first: u64) -> Result<StateFolder, StateError> {
    StateFolder::open(
        folder,
        &folder.join(STATE_FILE),
        &mut CountingEntropy(first),
    )
}

#[test]
fn keys_and_preferences_survive_and_stay_private() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().join("state");
    let mut state = open(&folder, 0).unwrap();
    let machine = state.machine_key.public();
    state.prefs.hostname = "laptop".to_owned();
    state.login = StoredLogin {
        account: Some(Account {
            node_key: NodeSecret::from_bytes(&[7; 32]),
            old_node_key: None,
            user_profile: UserProfile::default(),
            node_id: StableNodeId("n1".to_owned()),
        }),
        candidate: Some(NodeSecret::from_bytes(&[8; 32])),
        lock_key: state.login.lock_key.take(),
        refused_locks: vec!["1:2".to_owned()],
        autosign_tags: ["tag:a".to_owned()].into(),
    };
    let lock_key = state.login.lock_key.clone();
    assert!(lock_key.is_some());
    state.save().unwrap();
    let path = folder.join(STATE_FILE);
    assert_eq!(
        std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
    assert_eq!(
        std::fs::metadata(&folder).unwrap().permissions().mode() & 0o777,
        0o700
    );

    assert!(matches!(open(&folder, 9), Err(StateError::Locked(_))));
    drop(state);
    let state = open(&folder, 9).unwrap();
    assert_eq!(state.machine_key.public(), machine);
    assert_eq!(state.prefs.hostname, "laptop");
    let login = state.login.account.as_ref().unwrap();
    assert_eq!(login.node_key, NodeSecret::from_bytes(&[7; 32]));
    assert!(login.old_node_key.is_none());
    assert_eq!(login.node_id.0, "n1");
    assert_eq!(state.login.lock_key, lock_key);
    assert_eq!(state.login.refused_locks, ["1:2"]);
    assert!(state.login.autosign_tags.contains("tag:a"));
    assert!(!state.values.contains_key(LOCK_KEY));
    let candidate = state.login.candidate.as_ref();
    assert_eq!(candidate, Some(&NodeSecret::from_bytes(&[8; 32])));

    // A candidate that has ended is not on disk any more.
    let mut state = state;
    state.login.candidate = None;
    state.save().unwrap();
    drop(state);
    assert!(open(&folder, 9).unwrap().login.candidate.is_none());
}

#[test]
fn a_damaged_file_is_reported_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(STATE_FILE);
    for damage in [
        "{",
        "{\"_machinekey\": 5}",
        "{\"_machinekey\": \"!\"}",
        "{\"_machinekey\": \"AAAA\"}",
    ] {
        std::fs::write(&path, damage).unwrap();
        let error = open(folder.path(), 0).err().unwrap();
        assert!(
            matches!(error, StateError::Damaged { .. }),
            "{damage}: {error}"
        );
        assert_eq!(std::fs::read_to_string(&path).unwrap(), damage);
    }
}

#[test]
fn the_clock_of_handshakes_is_read_or_begins_at_the_epoch() {
    let folder = tempfile::tempdir().unwrap();
    let floor = || open(folder.path(), 0).unwrap().clock_floor;
    assert_eq!(floor(), Duration::ZERO);
    let path = open(folder.path(), 0).unwrap().clock_path().unwrap();
    std::fs::write(&path, "1700000060\n").unwrap();
    assert_eq!(floor(), Duration::from_secs(1_700_000_060));
    for damage in ["", "-5", "yesterday", "18446744073709551615", "\u{1}"] {
        std::fs::write(&path, damage).unwrap();
        assert_eq!(floor(), Duration::ZERO, "{damage}");
    }
    std::fs::write(&path, [0xff, 0xfe]).unwrap();
    assert_eq!(floor(), Duration::ZERO);
}

#[test]
fn netmap_that_cannot_be_read_is_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let state = open(folder.path(), 0).unwrap();
    assert!(state.load_netmap().is_none());
    let path = state.netmap_path().unwrap();
    for damage in [
        "",
        "{",
        "{}",
        "{\"netmap\": {\"self_node\": 5}}",
        "\u{0}\u{0}",
    ] {
        std::fs::write(&path, damage).unwrap();
        assert!(state.load_netmap().is_none(), "{damage}");
        assert!(!path.exists(), "{damage}");
    }
    std::fs::write(&path, "{\"netmap\": {}, \"clock\": null}").unwrap();
    assert!(state.load_netmap().is_some());
    // Another kind of file is in the way.
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    assert!(state.load_netmap().is_none());
}

#[test]
fn logins_stay_when_another_one_is_chosen() {
    let folder = tempfile::tempdir().unwrap();
    let login = |byte: u8| Account {
        node_key: NodeSecret::from_bytes(&[byte; 32]),
        old_node_key: None,
        user_profile: UserProfile::default(),
        node_id: StableNodeId(format!("n{byte}")),
    };
    let mut state = open(folder.path(), 0).unwrap();
    let first = state.profile_id().to_owned();
    state.login.account = Some(login(7));
    state.prefs.hostname = "one".to_owned();
    state.save().unwrap();

    let mut entropy = CountingEntropy(40);
    state.choose_profile(None, &mut entropy).unwrap();
    assert!(state.login.account.is_none() && state.prefs.logged_out);
    assert_eq!(state.prefs.hostname, "");
    // An empty one that is left leaves nothing behind.
    let empty = state.profile_id().to_owned();
    state.save().unwrap();
    state.choose_profile(None, &mut entropy).unwrap();
    let second = state.profile_id().to_owned();
    state.login.account = Some(login(8));
    state.save().unwrap();
    assert!(!state.values.contains_key(&format!("profile-{empty}")));
    drop(state);

    let mut state = open(folder.path(), 9).unwrap();
    assert_eq!(state.profile_id(), second);
    let others: Vec<String> = state.other_profiles().keys().cloned().collect();
    assert_eq!(others, [first.as_str()]);
    state.choose_profile(Some(&first), &mut entropy).unwrap();
    state.save().unwrap();
    assert_eq!(state.prefs.hostname, "one");
    let node_key = &state.login.account.as_ref().unwrap().node_key;
    assert_eq!(*node_key, NodeSecret::from_bytes(&[7; 32]));
    assert!(state.choose_profile(Some("nope"), &mut entropy).is_err());
    assert_eq!(state.profile_id(), first);

    // The same node again, as after a second login at one server.
    state.choose_profile(None, &mut entropy).unwrap();
    state.login.account = Some(login(8));
    state.save().unwrap();
    assert_eq!(state.other_profiles().keys().collect::<Vec<_>>(), [&first]);
    let second = state.profile_id().to_owned();
    state.choose_profile(Some(&first), &mut entropy).unwrap();
    state.remove_profile(&second);
    state.save().unwrap();
    assert!(
        open_values(folder.path())
            .keys()
            .all(|key| !key.contains(&second))
    );
    assert!(state.other_profiles().is_empty());
}

fn open_values(folder: &Path) -> BTreeMap<String, Value> {
    serde_json::from_slice(&std::fs::read(folder.join(STATE_FILE)).unwrap()).unwrap()
}

#[test]
fn unknown_keys_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(STATE_FILE);
    std::fs::write(&path, "{\"_taildrop-received\": \"MQ==\"}").unwrap();
    open(folder.path(), 0).unwrap().save().unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains("\"_taildrop-received\": \"MQ==\""), "{text}");
}

#[test]
fn a_state_in_memory_is_that_of_a_new_machine_and_has_no_files() {
    let mut state = StateFolder::in_memory_only(&mut CountingEntropy(0)).unwrap();
    let other = StateFolder::in_memory_only(&mut CountingEntropy(9)).unwrap();
    assert_ne!(state.machine_key.public(), other.machine_key.public());
    assert!(state.is_ephemeral() && state.prefs.logged_out);
    state.prefs.hostname = "laptop".to_owned();
    state.save().unwrap();
    let paths = [
        state.netmap_path(),
        state.clock_path(),
        state.port_mapping_path(),
        state.lock_folder(),
    ];
    assert_eq!(paths, [const { None }; 4]);
    assert!(state.load_netmap().is_none());
    // Logins can be changed, as on disk.
    state.choose_profile(None, &mut CountingEntropy(5)).unwrap();
    assert_eq!(state.prefs.hostname, "");
}

#[test]
fn settings_of_a_newer_version_survive_a_change_by_this_one() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join(STATE_FILE);
    let mut state = open(folder.path(), 0).unwrap();
    state.prefs.hostname = "laptop".to_owned();
    state.save().unwrap();
    let profile = state.profile().to_owned();
    drop(state);
    let profile_in = |text: &[u8]| -> (BTreeMap<String, Value>, Value) {
        let values: BTreeMap<String, Value> = serde_json::from_slice(text).unwrap();
        let bytes = BASE64.decode(values[&profile].as_str().unwrap().as_bytes());
        let profile = serde_json::from_slice(&bytes.unwrap()).unwrap();
        (values, profile)
    };
    let (mut values, mut prefs) = profile_in(&std::fs::read(&file).unwrap());
    prefs["TeleportTo"] = json!({ "Deck": 4 });
    values.insert(
        profile.clone(),
        Value::String(BASE64.encode(prefs.to_string().as_bytes())),
    );
    std::fs::write(&file, serde_json::to_vec(&values).unwrap()).unwrap();

    let mut state = open(folder.path(), 0).unwrap();
    assert_eq!(state.prefs.hostname, "laptop");
    state.prefs.hostname = "desktop".to_owned();
    state.save().unwrap();
    let (_, prefs) = profile_in(&std::fs::read(&file).unwrap());
    assert_eq!(prefs["TeleportTo"], json!({ "Deck": 4 }));
    assert_eq!(prefs["Hostname"], "desktop");
}

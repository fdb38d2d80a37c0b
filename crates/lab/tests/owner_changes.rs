//! The owner of a node, a user or tags, as logins and administrators change it. The
//! names T01 to T32, I14 and I15 are those of Headscale's scenarios.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use serde_json::Value;
use warren_lab::scenario::{installed, lab, more};
use warren_lab::{
    Control, Host, Kind, Lab, LabError, Node, PATIENCE, Place, Program, foreign, ours, until,
};

const POLICY: &str = r#"{
    "tagOwners": {"tag:a": ["default@"], "tag:b": ["default@"]},
    "grants": [{"src": ["*"], "dst": ["*"], "ip": ["*"]}],
}"#;

/// A server whose policy defines the tags a and b, in a LAN of `client`: over plain HTTP
/// official clients log in several times in two minutes only at a private address.
fn server(lab: &mut Lab, client: &Host) -> Control {
    let host = lab.lan_host("control", client).unwrap();
    let control = Control::start(&host, None).unwrap();
    let file = host.folder().join("policy.hujson");
    std::fs::write(&file, POLICY).unwrap();
    let file = file.display().to_string();
    control.cli(&["policy", "set", "--yes", &file]).unwrap();
    control
}

/// A reusable key: of these tags, or of the user without any.
fn key(control: &Control, tags: &str) -> String {
    let mut words = vec!["preauthkeys", "create", "--reusable"];
    let tags = format!("--tags={tags}");
    match tags.as_str() {
        "--tags=" => words.push("--user=default"),
        tags => words.push(tags),
    }
    let key = control.json(&words).unwrap();
    key["key"].as_str().unwrap().to_owned()
}

fn login(node: &Node, control: &Control, key: &str, flags: &[&str]) -> Result<(), String> {
    let mut all = more(node.kind()).to_vec();
    all.extend(flags);
    match node.up(control.url(), key, &all) {
        Ok(_) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

/// A forced login without a key, which an administrator approves for the user.
fn login_by_approval(node: &Node, control: &Control, flags: &[&str]) {
    let program = match node.kind() {
        Kind::Warren => ours("warren").unwrap(),
        Kind::Tailscale | Kind::TailscaleWebSocket => foreign("tailscale").unwrap(),
    };
    let host = node.host();
    let mut words = vec![
        format!("--socket={}/node/s.sock", host.folder().display()),
        "up".to_owned(),
        "--force-reauth".to_owned(),
        format!("--hostname={}", host.name()),
        format!("--login-server={}", control.url()),
    ];
    let more = more(node.kind()).iter().chain(flags);
    words.extend(more.map(|&word| word.to_owned()));
    let program: &Path = &program;
    let mut up = Program::start(host, "up", program, &words, &[]).unwrap();
    let id = until(
        "a machine that waits",
        PATIENCE,
        || -> Result<_, LabError> {
            let waiting = control.json(&["nodes", "waiting"])?;
            match waiting.as_array().map(Vec::as_slice) {
                Some([one]) => Ok(one["id"].as_str().unwrap().to_owned()),
                _ => Err(std::io::Error::other(waiting.to_string()).into()),
            }
        },
    )
    .unwrap();
    control
        .cli(&["nodes", "approve", &id, "--user", "default"])
        .unwrap();
    until("up to end", PATIENCE, || match up.check_alive() {
        Ok(()) => Err("it runs"),
        Err(_) => Ok(()),
    })
    .unwrap();
}

/// The id, the user and the tags of the only node.
fn owner(control: &Control) -> (Value, Value, Value) {
    let nodes = control.json(&["nodes", "list"]).unwrap();
    let [node] = nodes.as_array().unwrap().as_slice() else {
        panic!("one node is expected: {nodes}");
    };
    (
        node["id"].clone(),
        node["user"].clone(),
        node["tags"].clone(),
    )
}

/// The tags that the node knows of itself.
fn own_tags(node: &Node, expected: &[&str]) {
    until(
        "the node's own tags",
        PATIENCE,
        || -> Result<_, LabError> {
            let status = node.status_json()?;
            let tags = &status["Self"]["Tags"];
            let tags: Vec<&str> = tags.as_array().map_or_else(Vec::new, |tags| {
                tags.iter().filter_map(Value::as_str).collect()
            });
            match tags == expected {
                true => Ok(()),
                false => Err(std::io::Error::other(format!("{tags:?}")).into()),
            }
        },
    )
    .unwrap();
}

/// Runs a scenario with our client, and with the official one where it is installed.
fn with_both(scenario: impl Fn(&Control, &Node)) {
    for kind in [Kind::Warren, Kind::Tailscale] {
        let Some(mut lab) = lab() else { return };
        let Some(()) = installed(kind) else { continue };
        let host = lab.host("alice", Place::Open).unwrap();
        let control = server(&mut lab, &host);
        let node = Node::start(&host, kind).unwrap();
        scenario(&control, &node);
    }
}

#[test]
fn t01_tags_of_a_tagged_key_are_final() {
    with_both(|control, node| {
        let key = key(control, "tag:a");
        let refused = login(
            node,
            control,
            &key,
            &["--advertise-tags=tag:b", "--timeout=10s"],
        );
        let refused = refused.unwrap_err();
        assert!(refused.contains("tag:b"), "{refused}");
        let nodes = control.json(&["nodes", "list"]).unwrap();
        assert_eq!(nodes.as_array().unwrap().len(), 0, "{nodes}");
    });
}

#[test]
fn t05_tags_that_an_administrator_set_survive_a_login_with_the_same_key() {
    with_both(|control, node| {
        let key = key(control, "tag:a");
        login(node, control, &key, &[]).unwrap();
        own_tags(node, &["tag:a"]);
        let (id, ..) = owner(control);
        let number = id.to_string();
        let number = number.trim_matches('"');
        control
            .cli(&["nodes", "tag", number, "--tags=tag:b"])
            .unwrap();
        own_tags(node, &["tag:b"]);
        login(node, control, &key, &["--force-reauth"]).unwrap();
        let (after, _, tags) = owner(control);
        assert_eq!((after, tags), (id, serde_json::json!(["tag:b"])));
        own_tags(node, &["tag:b"]);
    });
}

/// T29: the tags came with a login that was approved. T32: they came with a key that
/// has no user.
#[test]
fn t29_t32_forced_login_without_tags_gives_the_same_node_to_the_user() {
    with_both(|control, node| {
        let key = key(control, "tag:a");
        login(node, control, &key, &[]).unwrap();
        own_tags(node, &["tag:a"]);
        let (id, ..) = owner(control);
        // Twice: from the tags of a key, and from those of a login.
        login_by_approval(node, control, &["--advertise-tags="]);
        own_tags(node, &[]);
        assert_eq!(
            owner(control),
            (id.clone(), "default".into(), serde_json::json!([]))
        );
        login_by_approval(node, control, &["--advertise-tags=tag:a,tag:b"]);
        own_tags(node, &["tag:a", "tag:b"]);
        assert_eq!(owner(control).0, id);
        login_by_approval(node, control, &["--advertise-tags="]);
        own_tags(node, &[]);
        assert_eq!(
            owner(control),
            (id, "default".into(), serde_json::json!([]))
        );
    });
}

/// T24, I14, I15: an administrator's command that is refused changes nothing.
#[test]
fn t24_i14_i15_wrong_commands_change_nothing() {
    with_both(|control, node| {
        login(node, control, &key(control, ""), &[]).unwrap();
        let before = owner(control);
        let number = before.0.to_string();
        let number = number.trim_matches('"');
        for (words, said) in [
            (
                &["nodes", "tag", number, "--tags=tag:undefined"][..],
                "tag:undefined",
            ),
            (&["nodes", "tag", number, "--tags=undefined"], "tag:"),
            (&["nodes", "tag", number], "nodes assign"),
            (&["nodes", "tag", number, "--tags="], "tag"),
            (&["nodes", "tag", "77", "--tags=tag:a"], "77"),
            (&["nodes", "tag", "--tags=tag:a"], "required"),
            (&["nodes", "expire", "77"], "77"),
            (&["nodes", "expire", number, "--in=soon"], "soon"),
            (&["nodes", "rename", number, "not a name"], "not a name"),
            (
                &["nodes", "approve-routes", number, "--routes=10.0.0.0/99"],
                "10.0.0.0/99",
            ),
            (&["nodes", "delete", "77"], "77"),
        ] {
            let error = control.cli(words).unwrap_err().to_string();
            assert!(error.contains(said), "{words:?}: {error}");
            assert_eq!(owner(control), before, "{words:?}");
        }
        // And one that is right.
        control
            .cli(&["nodes", "tag", number, "--tags=tag:a"])
            .unwrap();
        own_tags(node, &["tag:a"]);
        control
            .cli(&["nodes", "assign", number, "--user=default"])
            .unwrap();
        own_tags(node, &[]);
        assert_eq!(owner(control), before);
    });
}

//! Access and the state of nodes under policies that are set while
//! everything runs, tags, ephemeral nodes, logout, down and up, and what the
//! administrator sees of it.
#![allow(clippy::unwrap_used)]

use std::io::ErrorKind;
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use serde_json::Value;
use warren_lab::scenario::{Tailnet, address, installed, lab, more, traffic_flows};
use warren_lab::{Control, Host, Kind, Lab, LabError, Node, PATIENCE, Place, RelayKind, until};

fn wrong(text: impl std::fmt::Display) -> LabError {
    std::io::Error::other(text.to_string()).into()
}

/// Takes connections on a port until the test ends.
fn listen(host: &Host, port: u16) {
    let listener = host.inside(move || {
        TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
            .or_else(|_| TcpListener::bind(("0.0.0.0", port)))
    });
    let listener = listener.unwrap();
    std::thread::spawn(move || for _ in listener.incoming() {});
}

/// Whether a connection comes about. A filter that drops gives no answer at
/// all, so "no" takes the whole time given.
fn connects(from: &Node, to: &Node, port: u16, time: Duration) -> Result<(), LabError> {
    let target = SocketAddr::new(address(to, false), port);
    let result = from
        .host()
        .inside(move || TcpStream::connect_timeout(&target, time));
    match result {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == ErrorKind::TimedOut => Err(wrong("no answer")),
        Err(error) => Err(wrong(error)),
    }
}

#[track_caller]
fn allowed(from: &Node, to: &Node, port: u16) {
    let what = format!(
        "{} to reach {}:{port}",
        from.host().name(),
        to.host().name()
    );
    until(&what, PATIENCE, || {
        connects(from, to, port, Duration::from_secs(2))
    })
    .unwrap();
}

/// Blocked means that nothing comes back, not even a refusal.
#[track_caller]
fn blocked(from: &Node, to: &Node, port: u16) {
    let error = connects(from, to, port, Duration::from_secs(1)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "no answer",
        "{} must not reach {}:{port}",
        from.host().name(),
        to.host().name()
    );
}

fn set(tailnet: &Tailnet, lab: &Lab, policy: &str) -> Result<String, LabError> {
    let file = lab.folder().join("policy.hujson");
    std::fs::write(&file, policy).unwrap();
    tailnet
        .control
        .cli(&["policy", "set", &file.display().to_string()])
}

fn join_as(tailnet: &Tailnet, host: &Host, kind: Kind, user: &str) -> Node {
    let key = tailnet.control.auth_key(user).unwrap();
    let node = Node::start(host, kind).unwrap();
    node.up(tailnet.control.url(), &key, more(kind)).unwrap();
    node
}

/// A node as the administrator sees it.
fn view(control: &Control, name: &str) -> Result<Value, LabError> {
    let nodes = control.json(&["nodes", "list"])?;
    let mut nodes = nodes.as_array().into_iter().flatten();
    let node = nodes.find(|node| node["given_name"] == name).cloned();
    node.ok_or_else(|| wrong(format!("no node {name}")))
}

/// With a receiver of that kind: what the policy allows passes, the rest does
/// not, and a change counts at once.
fn policy_is_in_force(kind: Kind) {
    let Some(mut lab) = lab() else { return };
    let run = |lab: &mut Lab| -> Option<()> {
        installed(Kind::Warren)?;
        installed(kind)?;
        let tailnet = Tailnet::new(lab, RelayKind::Warren)?;
        let place = Place::Open;
        let ann = join_as(&tailnet, &lab.host("ann-pc", place).unwrap(), kind, "ann");
        let bob = join_as(
            &tailnet,
            &lab.host("bob-pc", place).unwrap(),
            Kind::Warren,
            "bob",
        );
        let server = join_as(&tailnet, &lab.host("server", place).unwrap(), kind, "ann");
        for port in [80, 443, 5432, 9000] {
            listen(server.host(), port);
        }
        listen(bob.host(), 22);
        // Without a policy everybody reaches everybody.
        allowed(&ann, &server, 9000);
        allowed(&bob, &server, 9000);
        allowed(&ann, &bob, 22);

        let id = tailnet.control.node_id("server").unwrap();
        let database = address(&server, false);
        let policy = format!(
            r#"{{
                // people, machines and ports by their names
                "groups": {{"group:admins": ["ann@"]}},
                "tagOwners": {{"tag:web": ["group:admins"]}},
                "hosts": {{"database": "{database}"}},
                "acls": [
                    {{"action": "accept", "src": ["group:admins"], "dst": ["database:5432"]}},
                    {{"action": "accept", "src": ["bob@"], "dst": ["tag:web:80,440-450"]}},
                ],
            }}"#
        );
        set(&tailnet, lab, &policy).unwrap();
        tailnet
            .control
            .cli(&["nodes", "tag", &id, "tag:web"])
            .unwrap();
        allowed(&bob, &server, 80);
        allowed(&bob, &server, 443);
        allowed(&ann, &server, 5432);
        for port in [5432, 9000] {
            blocked(&bob, &server, port);
        }
        for port in [80, 443, 9000] {
            blocked(&ann, &server, port);
        }
        until("ann not to see bob", PATIENCE, || match ann.peers()? {
            peers if peers == ["server"] => Ok(()),
            peers => Err(wrong(format!("{peers:?}"))),
        })
        .unwrap();

        // A broken policy is refused with the place, and the old one stays.
        let broken = [
            ("{\n  \"acls\": [}\n}", "2:12"),
            ("{\n  \"acl\": []\n}", "did you mean \"acls\"?"),
            (
                "{\"acls\": [\n  {\"action\": \"accept\", \"src\": [\"group:none\"], \"dst\": [\"*:*\"]}\n]}",
                "2:32",
            ),
        ];
        for (text, place) in broken {
            let error = set(&tailnet, lab, text).unwrap_err().to_string();
            assert!(error.contains("exit status: 1"), "{error}");
            assert!(error.contains(place), "{place} in {error}");
        }
        let kept = tailnet.control.cli(&["policy", "get"]).unwrap();
        assert!(kept.contains("people, machines and ports"), "{kept}");
        allowed(&bob, &server, 80);
        blocked(&bob, &server, 9000);

        // The next one counts at once, for connections that are new.
        let next = policy.replace("tag:web:80,440-450", "tag:web:9000");
        set(&tailnet, lab, &next).unwrap();
        allowed(&bob, &server, 9000);
        until("port 80 to close", PATIENCE, || {
            match connects(&bob, &server, 80, Duration::from_secs(1)) {
                Err(error) if error.to_string() == "no answer" => Ok(()),
                other => Err(wrong(format!("{other:?}"))),
            }
        })
        .unwrap();
        tailnet
            .control
            .cli(&["policy", "set", "--allow-all"])
            .unwrap();
        allowed(&bob, &server, 80);
        allowed(&ann, &bob, 22);
        Some(())
    };
    run(&mut lab);
}

#[test]
fn our_nodes_keep_to_the_policy() {
    policy_is_in_force(Kind::Warren);
}

#[test]
fn real_clients_keep_to_our_policy() {
    policy_is_in_force(Kind::Tailscale);
}

#[test]
fn an_ephemeral_node_is_forgotten_after_its_logout() {
    let Some(mut lab) = lab() else { return };
    let run = |lab: &mut Lab| -> Option<()> {
        installed(Kind::Warren)?;
        let tailnet = Tailnet::new(lab, RelayKind::Warren)?;
        let control = &tailnet.control;
        let stays = tailnet.join(&lab.host("stays", Place::Open).unwrap(), Kind::Warren);
        let create = [
            "preauthkeys",
            "create",
            "--user",
            "ann",
            "--ephemeral",
            "--reusable",
        ];
        let key = control.json(&create).unwrap()["key"]
            .as_str()
            .unwrap()
            .to_owned();
        let kinds = [Kind::Warren, Kind::Tailscale];
        for kind in kinds.into_iter().filter(|kind| installed(*kind).is_some()) {
            let host = lab
                .host(&format!("brief-{kind:?}").to_lowercase(), Place::Open)
                .unwrap();
            let name = host.name().to_owned();
            let brief = Node::start(&host, kind).unwrap();
            brief.up(control.url(), &key, more(kind)).unwrap();
            assert_eq!(view(control, &name).unwrap()["ephemeral"], true);
            traffic_flows(&stays, &brief);
            brief.cli(&["logout"]).unwrap();
            until("the node to be forgotten", PATIENCE, || {
                match view(control, &name) {
                    Err(_) => Ok(()),
                    Ok(node) => Err(node),
                }
            })
            .unwrap();
            until("its peer to forget it", PATIENCE, || {
                match stays.peers()? {
                    peers if peers.is_empty() => Ok(()),
                    peers => Err(wrong(format!("{peers:?}"))),
                }
            })
            .unwrap();
        }
        Some(())
    };
    run(&mut lab);
}

#[test]
fn a_logout_ends_the_key_and_a_login_brings_the_address_back() {
    let Some(mut lab) = lab() else { return };
    let run = |lab: &mut Lab| -> Option<()> {
        installed(Kind::Warren)?;
        let tailnet = Tailnet::new(lab, RelayKind::Warren)?;
        let control = &tailnet.control;
        let alice = tailnet.join(&lab.host("alice", Place::Open).unwrap(), Kind::Warren);
        let bob = tailnet.join(&lab.host("bob", Place::Open).unwrap(), Kind::Warren);
        let before = alice.addresses().unwrap();
        let first_key = view(control, "alice").unwrap()["node_key"].clone();
        traffic_flows(&bob, &alice);

        alice.cli(&["logout"]).unwrap();
        assert_eq!(view(control, "alice").unwrap()["expired"], true);
        assert_eq!(alice.status_json().unwrap()["BackendState"], "NeedsLogin");
        let state = alice.host().folder().join("node/warren.state");
        let state = std::fs::read_to_string(state).unwrap();
        assert!(!state.contains("netmap"), "{state}");
        alice.up(control.url(), &tailnet.key, &[]).unwrap();
        assert_eq!(alice.addresses().unwrap(), before);
        let node = view(control, "alice").unwrap();
        assert_eq!(node["expired"], false);
        assert_ne!(node["node_key"], first_key, "a new login has a new key");
        assert_eq!(
            control
                .json(&["nodes", "list"])
                .unwrap()
                .as_array()
                .unwrap()
                .len(),
            2
        );
        traffic_flows(&bob, &alice);
        Some(())
    };
    run(&mut lab);
}

#[test]
fn down_is_down_and_up_is_as_before() {
    let Some(mut lab) = lab() else { return };
    let run = |lab: &mut Lab| -> Option<()> {
        installed(Kind::Warren)?;
        let tailnet = Tailnet::new(lab, RelayKind::Warren)?;
        let alice = tailnet.join(&lab.host("alice", Place::Open).unwrap(), Kind::Warren);
        let bob = tailnet.join(&lab.host("bob", Place::Easy).unwrap(), Kind::Warren);
        let before = alice.addresses().unwrap();
        listen(alice.host(), 80);
        allowed(&bob, &alice, 80);
        let target = SocketAddr::new(before[0], 80);
        alice.cli(&["down"]).unwrap();
        assert_eq!(alice.status_json().unwrap()["BackendState"], "Stopped");
        let refused = bob
            .host()
            .inside(move || TcpStream::connect_timeout(&target, Duration::from_secs(1)));
        assert!(refused.is_err(), "a node that is down must not answer");
        until("the server to see it", PATIENCE, || {
            match view(&tailnet.control, "alice")? {
                node if node["online"] == false => Ok(()),
                node => Err(wrong(node)),
            }
        })
        .unwrap();
        alice.cli(&["up"]).unwrap();
        assert_eq!(alice.addresses().unwrap(), before);
        allowed(&bob, &alice, 80);
        Some(())
    };
    run(&mut lab);
}

#[test]
fn a_tagged_key_makes_tagged_nodes_and_the_list_says_everything() {
    let Some(mut lab) = lab() else { return };
    let run = |lab: &mut Lab| -> Option<()> {
        installed(Kind::Warren)?;
        let tailnet = Tailnet::new(lab, RelayKind::Warren)?;
        let control = &tailnet.control;
        let create = [
            "preauthkeys",
            "create",
            "--tag",
            "tag:db",
            "--expiry",
            "24h",
        ];
        let key = control.json(&create).unwrap();
        assert_eq!(key["acl_tags"], serde_json::json!(["tag:db"]));
        assert_eq!(
            (&key["used"], &key["usable"]),
            (&Value::from(false), &Value::from(true))
        );
        assert!(key["expiration"].is_string(), "{key}");
        let node = Node::start(&lab.host("db", Place::Open).unwrap(), Kind::Warren).unwrap();
        node.up(control.url(), key["key"].as_str().unwrap(), &[])
            .unwrap();
        let shown = node.status_json().unwrap()["Self"]["Tags"].clone();
        assert_eq!(shown, serde_json::json!(["tag:db"]));

        let keys = control.json(&["preauthkeys", "list"]).unwrap();
        let mut keys = keys.as_array().unwrap().iter();
        let listed = keys.find(|listed| listed["id"] == key["id"]).unwrap();
        assert_eq!(
            (&listed["used"], &listed["usable"]),
            (&Value::from(true), &Value::from(false))
        );
        assert!(
            listed.get("key").is_none(),
            "the secret is shown once: {listed}"
        );

        let listed = until("a home relay", PATIENCE, || match view(control, "db")? {
            node if node["home_relay"].is_number() && node["online"] == true => Ok(node),
            node => Err(wrong(node)),
        })
        .unwrap();
        let addresses: Vec<String> = node
            .addresses()
            .unwrap()
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(listed["ip_addresses"], serde_json::json!(addresses));
        for (field, value) in [
            ("name", Value::from("db")),
            ("tags", serde_json::json!(["tag:db"])),
            ("expiry", Value::Null),
            ("expired", Value::from(false)),
            ("ephemeral", Value::from(false)),
            ("register_method", Value::from("auth_key")),
            ("os", Value::from("linux")),
            ("fqdn", Value::from("db.warren.internal")),
        ] {
            let shown = listed[field]
                .as_str()
                .map(|text| Value::from(text.trim_end_matches('.')));
            assert_eq!(
                shown.unwrap_or(listed[field].clone()),
                value,
                "{field} in {listed}"
            );
        }
        for field in [
            "id",
            "node_key",
            "machine_key",
            "disco_key",
            "created_at",
            "version",
            "endpoints",
        ] {
            assert!(!listed[field].is_null(), "{field} in {listed}");
        }
        for words in [
            ["nodes", "list"],
            ["preauthkeys", "list"],
            ["users", "list"],
        ] {
            assert!(!control.cli(&words).unwrap().is_empty());
        }
        Some(())
    };
    run(&mut lab);
}

/// A node reports which rule let packets in and how often, which packets it dropped,
/// and what it cannot know.
#[test]
fn a_node_explains_its_filter() {
    let Some(mut lab) = lab() else { return };
    let run = |lab: &mut Lab| -> Option<()> {
        installed(Kind::Warren)?;
        let tailnet = Tailnet::new(lab, RelayKind::Warren)?;
        let mut join = |name: &str| {
            let host = lab.host(name, Place::Open).unwrap();
            join_as(&tailnet, &host, Kind::Warren, "ann")
        };
        let (ann, server) = (join("ann-pc"), join("server"));
        listen(server.host(), 5432);
        let target = address(&server, false);
        let policy = format!(
            r#"{{"acls": [{{"action": "accept", "src": ["{}"], "dst": ["{target}:5432"]}}]}}"#,
            address(&ann, false),
        );
        set(&tailnet, lab, &policy).unwrap();
        allowed(&ann, &server, 5432);
        until(
            "the policy to block another port",
            PATIENCE,
            || match connects(&ann, &server, 22, Duration::from_secs(1)) {
                Err(error) if error.to_string() == "no answer" => Ok(()),
                other => Err(wrong(format!("{other:?}"))),
            },
        )
        .unwrap();

        let report = server.cli(&["debug", "filter", "--json"]).unwrap();
        let report: Value = serde_json::from_str(&report).unwrap();
        let passed = report["Rules"][0]["Passed"]["Packets"].as_u64();
        assert!(passed.is_some_and(|packets| packets >= 3), "{report:#}");
        let dropped = report["DroppedIn"]["acl"]["Packets"].as_u64();
        assert!(dropped.is_some_and(|packets| packets >= 1), "{report:#}");
        let text = server.cli(&["debug", "filter"]).unwrap();
        assert!(text.contains(&format!("-> {target}:5432")), "{text}");

        let question = format!("{target}:5432");
        let inwards = ["debug", "why", &question, "--from", "ann-pc"];
        let answer = server.cli(&inwards).unwrap();
        assert!(answer.starts_with("Allowed.\n"), "{answer}");
        let closed = format!("{target}:22");
        let refused = server.cli(&["debug", "why", &closed, "--from", "ann-pc"]);
        assert!(refused.is_err(), "{refused:?}");
        let outwards = ann.cli(&["debug", "why", &question]).unwrap();
        assert!(outwards.contains("a peer of this network"), "{outwards}");
        assert!(outwards.contains("Not known here:"), "{outwards}");
        Some(())
    };
    run(&mut lab);
}

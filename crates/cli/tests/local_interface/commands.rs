//! The command line, as users type it.

use warren_control_api::endpoints::{ApproveRoutes, DeleteNode, SetPolicy};
use warren_node::daemon::DetachedNode;
use warren_node_types::Prefs;

use crate::network::Network;
use crate::served::{Served, served};

/// `up` with a new key for the network.
fn up(network: &Network) -> String {
    let (server, key) = (network.url(), network.key());
    format!("up --login-server {server} --hostname laptop --auth-key {key}")
}

/// A node that is up in the network.
fn joined(network: &Network) -> Served {
    let served = served();
    let (code, _, err) = served.warren(&up(network));
    assert_eq!(code, 0, "{err}");
    served
}

/// The node key in the status.
fn own_key(served: &Served) -> serde_json::Value {
    let (_, json, _) = served.warren("status --json --peers=false");
    let status: serde_json::Value = serde_json::from_str(&json).unwrap();
    status["Self"]["PublicKey"].clone()
}

#[test]
fn forced_login_is_one_request_that_carries_the_key() {
    let network = Network::start();
    let served = joined(&network);
    let (old_key, key) = (own_key(&served), network.key());
    served.changes();
    let (code, _, err) = served.warren(&format!(
        "up --force-reauth --hostname laptop --auth-key {key}"
    ));
    assert_eq!(code, 0, "{err}");
    assert_ne!(own_key(&served), old_key);
    let changes = served.changes();
    let endpoints: Vec<_> = changes.iter().map(|change| change.endpoint).collect();
    assert_eq!(endpoints, ["check-prefs", "start"]);
    let start: serde_json::Value = serde_json::from_slice(&changes[1].request.body).unwrap();
    assert_eq!(start["AuthKey"], key.as_str());
}

#[test]
fn forced_login_waits_for_another_node_key() {
    let network = Network::start();
    let served = joined(&network);
    let old_key = own_key(&served);
    let command = served.warren_in_background("up --force-reauth --hostname laptop");
    command.err.until("/register/");
    assert_eq!(
        own_key(&served),
        old_key,
        "the old login holds until the new one is approved"
    );
    network.approve();
    let (code, _, err) = command.end();
    assert_eq!(code, 0, "{err}");
    assert_ne!(own_key(&served), old_key);
}

#[test]
fn status_of_a_deleted_node_says_what_to_do() {
    let network = Network::start();
    let served = joined(&network);
    let node = "laptop".to_owned();
    network.admin(&DeleteNode { node });
    served.until_problem("does not know this machine any more");
    let (code, out, _) = served.warren("status");
    assert_eq!(code, 0);
    let health = "\n\n# Health check:\n#     - ";
    assert!(
        out.contains(health) && out.contains("warren up --force-reauth"),
        "{out}"
    );
}

#[test]
fn flags_without_effect_are_stored_with_a_warning() {
    let network = Network::start();
    let served = served();
    let (code, _, err) = served.warren(&format!(
        "{} --snat-subnet-routes=false --stateful-filtering --netfilter-mode=nodivert --report-posture --advertise-connector",
        up(&network)
    ));
    assert_eq!(code, 0, "{err}");
    assert!(err.contains("nodivert does what off does"), "{err}");
    assert!(!err.contains("--stateful-filtering"), "{err}");
    for flag in ["--report-posture", "--advertise-connector"] {
        assert!(
            err.contains(&format!("warning: {flag} has no effect yet")),
            "{err}"
        );
    }
    let prefs = served.prefs();
    assert!(prefs.no_snat && prefs.posture_checking && prefs.app_connector.advertise);
    assert_eq!(prefs.no_stateful_filtering, Some(false));
    let (code, _, err) = served.warren(
        "up --reset --snat-subnet-routes --stateful-filtering=false --netfilter-mode=on --report-posture=false --advertise-connector=false",
    );
    assert_eq!(
        (code, err.as_str()),
        (0, ""),
        "no warning for values that change nothing"
    );
    let (code, _, err) = served.warren("set --report-posture");
    assert_eq!(code, 0);
    assert!(
        err.contains("warning: --report-posture has no effect yet"),
        "{err}"
    );
}

#[test]
fn other_tags_are_asked_of_the_server_and_its_answer_is_the_result() {
    let network = Network::start();
    let served = joined(&network);
    let line = "up --hostname laptop --advertise-tags tag:web";
    let (code, _, err) = served.warren(line);
    let refused = "backend error: requested tags [tag:web] are invalid or not permitted";
    assert!(code == 1 && err.contains(refused), "{err}");
    let policy = r#"{"tagOwners": {"tag:web": ["default@"]}, "acls": []}"#;
    let given = serde_json::json!({
        "policy": { "given": { "file": "acl.hujson", "text": policy } },
        "dry_run": false,
        "base": null,
    });
    let request: SetPolicy = serde_json::from_value(given).unwrap();
    network.admin(&request);
    assert_eq!(served.warren("up --reset --hostname laptop").0, 0);
    let (code, out, err) = served.warren(line);
    assert!(code == 0 && out.contains("connected as laptop"), "{err}");
    // The netmap with the new owner follows.
    let tags = || -> serde_json::Value {
        let status = served.warren("status --json --peers=false").1;
        let status: serde_json::Value = serde_json::from_str(&status).unwrap();
        status["Self"]["Tags"].clone()
    };
    while tags() != serde_json::json!(["tag:web"]) {}
}

#[test]
fn netcheck_measures_when_it_is_asked() {
    let network = Network::start();
    let served = joined(&network);
    let report = || -> serde_json::Value {
        let (code, out, err) = served.warren("netcheck --format json");
        assert_eq!(code, 0, "{err}");
        serde_json::from_str(&out).unwrap()
    };
    let (first, second) = (report(), report());
    let time = |report: &serde_json::Value| -> jiff::Timestamp {
        report["Now"].as_str().unwrap().parse().unwrap()
    };
    assert!(time(&first) < time(&second), "{first}\n{second}");
    assert_eq!(second["UDP"], true);
    assert!(second["RegionLatency"]["900"].is_u64(), "{second}");
}

/// A node that offers to be an exit node, and may be one.
fn exit_node(network: &Network, name: &str) -> DetachedNode {
    let routes = ["0.0.0.0/0", "::/0"].map(|route| route.parse().unwrap());
    let prefs = Prefs {
        advertise_routes: routes.to_vec(),
        ..Prefs::default()
    };
    let node = network.node(name, prefs);
    network.admin(&ApproveRoutes {
        node: name.to_owned(),
        routes: routes.to_vec(),
    });
    node
}

#[test]
fn up_connects_and_shows_the_peers() {
    let network = Network::start();
    let _db = exit_node(&network, "db");
    let served = served();
    let (code, out, _) = served.warren("status");
    assert_eq!((code, out.as_str()), (1, "Logged out.\n"));
    let (code, _, err) = served.warren("up --auth-key k");
    assert_eq!(code, 1);
    assert!(err.contains("--login-server"), "{err}");

    let (code, out, err) = served.warren(&format!("{} --timeout 40s", up(&network)));
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(
        out.starts_with("connected as laptop   100.64.0.2   fd7a:115c:a1e0::2   "),
        "{out}"
    );
    assert!(out.ends_with("1 peer; try: warren ping db\n"), "{out}");

    assert_eq!(
        served.warren("status").1,
        "100.64.0.2  laptop  default  linux  -\n\
         100.64.0.1  db      default  linux  idle; offers exit node\n"
    );
    let (_, json, _) = served.warren("status --json --peers=false");
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["BackendState"], "Running");
    assert!(json["Peer"].is_null());
    assert_eq!(served.warren("ip").1, "100.64.0.2\nfd7a:115c:a1e0::2\n");
    assert_eq!(served.warren("ip -4 db").1, "100.64.0.1\n");
    assert_eq!(served.warren("ip -1").1, "100.64.0.2\n");
    assert_eq!(served.warren("ip -4 -6").0, 2);
    assert_eq!(served.warren("ip --assert=100.64.0.2").0, 0);
    assert_eq!(served.warren("ip --assert=100.64.0.1").0, 1);
    assert!(
        served
            .warren("whois 100.64.0.1")
            .1
            .contains("Name:           db.warren.internal\n")
    );
    assert!(
        served
            .warren("whois --json 100.64.0.1")
            .1
            .contains("\"LoginName\": \"default\"")
    );
    assert_eq!(served.warren("whois 100.64.0.3").0, 1);
    assert_eq!(served.warren("version").1, "0.1.0\n");
    assert!(
        served
            .warren("version --daemon --json")
            .1
            .contains("\"daemonLong\": \"0.1.0\"")
    );
    assert!(served.warren("completion bash").1.contains("_warren"));
}

#[test]
fn ping_shows_the_path_or_why_there_is_no_answer() {
    let network = Network::start();
    let _db = network.node("db", Prefs::default());
    let gone = network.node("gone", Prefs::default());
    let served = joined(&network);
    for address in ["100.64.0.1", "100.64.0.2"] {
        served.until_reachable(address);
    }
    network.block_on(gone.stop());

    let (_, out, err) = served.warren("ping -c 1 --until-direct=false db");
    assert!(
        out.starts_with("pong from db (100.64.0.1) via "),
        "{out}{err}"
    );
    let (code, out, err) = served.warren("ping -tsmp db");
    assert_eq!(code, 0, "{err}");
    assert!(
        out.starts_with("pong from db (100.64.0.1) via TSMP in "),
        "{out}"
    );
    assert_eq!(
        served.warren("ping 100.64.0.3").1,
        "100.64.0.3 is local Tailscale IP\n"
    );
    assert_eq!(
        served.warren("ping -c 1 --timeout 20ms gone"),
        (
            1,
            "ping \"100.64.0.2\" timed out\n".into(),
            "no reply\n".into()
        )
    );
    assert_eq!(served.warren("ping 100.64.0.50").2, "no matching peer\n");
}

#[test]
fn netcheck_shows_the_measured_network() {
    let network = Network::start();
    let served = joined(&network);
    // The first measurement takes its time.
    let text = std::iter::repeat_with(|| served.warren("netcheck"))
        .find(|(code, _, _)| *code == 0)
        .unwrap()
        .1;
    assert!(text.contains("\t* UDP: true\n"), "{text}");
    let (_, line, _) = served.warren("netcheck --format=json-line");
    assert!(line.contains("\"UDP\":true"), "{line}");
}

#[test]
fn settings_are_changed_and_never_lost_silently() {
    let network = Network::start();
    let _db = exit_node(&network, "db");
    let served = joined(&network);
    assert_eq!(served.warren("set --shields-up").0, 0);
    assert!(served.prefs().shields_up);
    assert_eq!(served.warren("set").0, 2);
    assert_eq!(served.warren("set --exit-node=nosuch").0, 1);
    let (code, _, err) = served.warren("up --accept-routes");
    assert_eq!(code, 1);
    assert!(
        err.contains("\twarren up --accept-routes --hostname=laptop --shields-up\n"),
        "{err}"
    );

    let exit_node = || served.prefs().exit_node_id;
    assert_eq!(served.warren("set --exit-node 100.64.0.1").0, 0);
    assert_ne!(exit_node(), "");
    assert_eq!(served.warren("set --exit-node=").0, 0);
    assert_eq!(exit_node(), "");
    let (code, _, err) = served.warren("set --exit-node 100.64.0.3");
    assert_eq!(code, 1);
    assert!(err.contains("offers to be an exit node"), "{err}");
}

#[test]
fn down_keeps_the_login_and_logout_ends_it() {
    let network = Network::start();
    let served = joined(&network);
    assert_eq!(served.warren("down").0, 0);
    assert_eq!(served.warren("status").1, "Tailscale is stopped.\n");
    assert_eq!(served.warren("down").0, 0);
    assert_eq!(served.warren("up").0, 0);
    served.changes();
    assert_eq!(served.warren("logout --reason going-home").0, 0);
    assert_eq!(served.warren("status").1, "Logged out.\n");
    let changes = served.changes();
    assert_eq!(changes.len(), 1);
    assert_eq!(changes[0].endpoint, "logout");
    let reason = &changes[0].request.headers[0].1;
    assert_eq!(reason, "Z29pbmctaG9tZQ==", "going-home in base64");
}

#[test]
fn up_shows_where_to_log_in() {
    let network = Network::start();
    let served = served();
    let server = network.url();
    let command = served.warren_in_background(&format!("up --login-server {server}"));
    command.err.until("/register/");
    network.approve();
    let (code, _, err) = command.end();
    assert_eq!(code, 0, "{err}");
    assert!(
        err.starts_with(&format!(
            "\nTo authenticate, visit:\n\n\t{server}/register/"
        )),
        "{err}"
    );
    assert!(err.ends_with("\n\nSuccess.\n"), "{err}");
}

#[test]
fn up_with_json_shows_the_address_and_the_end() {
    let network = Network::start();
    let served = served();
    let server = network.url();
    let command = served.warren_in_background(&format!("up --login-server {server} --json"));
    command.out.until("/register/");
    network.approve();
    let (code, out, err) = command.end();
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(
        out.starts_with(&format!("{{\n\t\"AuthURL\": \"{server}/register/")),
        "{out}"
    );
    assert!(
        out.ends_with("{\n\t\"BackendState\": \"Running\"\n}\n"),
        "{out}"
    );
}

#[test]
fn refused_key_fails_with_its_reason() {
    let network = Network::start();
    let served = served();
    let server = network.url();
    let (code, _, err) = served.warren(&format!(
        "up --login-server {server} --auth-key tskey-auth-bad"
    ));
    assert_eq!(code, 1);
    assert!(err.starts_with("backend error: "), "{err}");
    assert!(!err.contains("tskey-auth-bad"), "keys are not printed");
}

#[test]
fn wrong_usage_has_its_own_exit_code() {
    let served = served();
    for wrong in [
        "nonsense",
        "up --nonsense",
        "up --timeout soon",
        "ping",
        "ping -c x db",
        "status --json --json",
        "up --exit-node-allow-lan-access",
    ] {
        assert_eq!(served.warren(wrong).0, 2, "{wrong}");
    }
    for right in ["--help", "up --help", "ping -h"] {
        let (code, out, err) = served.warren(right);
        assert_eq!((code, err.as_str()), (0, ""), "{right}");
        assert!(out.contains("Usage: warren"), "{out}");
    }
    assert_eq!(
        served.warren("daemon --state-dir /s").0,
        77,
        "the daemon's exit code is passed on"
    );
}

/// The next change that is written must not contain one that was reported as failed.
#[test]
fn change_that_cannot_be_written_changes_nothing() {
    let network = Network::start();
    let server = network.url();
    let served = joined(&network);
    let settings = || (served.prefs(), served.warren("switch --list").1);
    let before = settings();
    let force = format!("up --login-server {server} --hostname laptop --force-reauth --timeout 2s");
    served.with_full_disk(|| {
        for line in [
            "set --hostname other",
            "down",
            "logout",
            "login --timeout 2s",
            force.as_str(),
        ] {
            let (code, _, err) = served.warren(line);
            assert_eq!(code, 1, "{line}: {err}");
            assert_eq!(settings(), before, "{line}");
        }
    });
    assert_eq!(served.warren("set --accept-routes").0, 0);
    let after = served.prefs();
    assert!(after.route_all);
    assert_eq!(after.hostname, before.0.hostname);
    assert!(after.want_running && !after.logged_out);
}

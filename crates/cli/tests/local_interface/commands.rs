//! The command line, as users type it.

use crate::memory::KEY;
use crate::served::served;

#[test]
fn a_forced_login_is_one_request_that_carries_the_key() {
    let served = served();
    assert_eq!(
        served
            .warren(&format!("up --login-server http://c --auth-key {KEY}"))
            .0,
        0
    );
    let before = served.backend.log().len();
    assert_eq!(
        served
            .warren(&format!("up --force-reauth --auth-key {KEY}"))
            .0,
        0
    );
    let (code, _, err) = served.warren("up --force-reauth");
    assert_eq!(code, 0);
    assert!(
        err.contains("http://control.example/register/again"),
        "{err}"
    );
    let log = served.backend.log().split_off(before);
    assert_eq!(log.len(), 2, "{log:?}");
    assert!(
        log.iter().all(|line| line.contains("force_login: true")),
        "{log:?}"
    );
    assert!(
        log[0].contains("given") && log[1].contains("none"),
        "{log:?}"
    );
}

#[test]
fn status_of_a_logged_out_node_shows_its_health() {
    let served = served();
    served.backend.0.lock().unwrap().health = vec!["deleted there; log in again".into()];
    let (code, out, _) = served.warren("status");
    assert_eq!(code, 1);
    assert_eq!(
        out,
        "Logged out.\n\n# Health check:\n#     - deleted there; log in again\n"
    );
}

#[test]
fn flags_without_effect_are_stored_with_a_warning() {
    let served = served();
    let up = format!("up --login-server http://c --auth-key {KEY}");
    let (code, _, err) = served.warren(&format!(
        "{up} --snat-subnet-routes=false --stateful-filtering --netfilter-mode=nodivert --report-posture --advertise-connector"
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
    let prefs = served.backend.0.lock().unwrap().prefs.clone();
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
fn up_with_a_key_then_the_other_commands() {
    let served = served();
    let (code, out, _) = served.warren("status");
    assert_eq!((code, out.as_str()), (1, "Logged out.\n"));
    let (code, _, err) = served.warren("up --auth-key k");
    assert_eq!(code, 1);
    assert!(err.contains("--login-server"), "{err}");

    let (code, out, err) = served.warren(
        "up --login-server http://c -authkey tskey-auth-good --hostname laptop --timeout 40s",
    );
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(
        out.starts_with("connected as laptop   100.64.0.1   fd7a:115c:a1e0::1   "),
        "{out}"
    );
    assert!(out.ends_with("1 peer; try: warren ping db\n"), "{out}");

    assert_eq!(
        served.warren("status").1,
        "100.64.0.1  laptop  -  linux  -\n100.64.0.2  db      -  linux  idle; offers exit node\n"
    );
    let (_, json, _) = served.warren("status --json --peers=false");
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["BackendState"], "Running");
    assert!(json["Peer"].is_null());
    assert_eq!(served.warren("ip").1, "100.64.0.1\nfd7a:115c:a1e0::1\n");
    assert_eq!(served.warren("ip -4 db").1, "100.64.0.2\n");
    assert_eq!(served.warren("ip -1").1, "100.64.0.1\n");
    assert_eq!(served.warren("ip -6 db").0, 1);
    assert_eq!(served.warren("ip --assert=100.64.0.1").0, 0);
    assert_eq!(served.warren("ip --assert=100.64.0.2").0, 1);
    assert_eq!(served.warren("ip -4 -6").0, 2);
    assert_eq!(
        served.warren("ping db"),
        (
            0,
            "pong from db (100.64.0.2) via 192.0.2.7:41641 in 8ms\n".into(),
            String::new()
        )
    );
    assert_eq!(
        served.warren("ping -tsmp db").1,
        "pong from db (100.64.0.2) via TSMP in 8ms\n"
    );
    assert_eq!(
        served.warren("ping 100.64.0.1").1,
        "100.64.0.1 is local Tailscale IP\n"
    );
    assert_eq!(
        served.warren("ping -c 1 --timeout 20ms 100.64.0.99"),
        (
            1,
            "ping \"100.64.0.99\" timed out\n".into(),
            "no reply\n".into()
        )
    );
    assert_eq!(
        served.warren("ping 100.64.0.50").2,
        "no matching peer for 100.64.0.50\n"
    );
    assert!(
        served
            .warren("whois 100.64.0.2")
            .1
            .contains("Name:           db.net.example\n")
    );
    assert!(
        served
            .warren("whois --json 100.64.0.2")
            .1
            .contains("\"LoginName\": \"ann@example.com\"")
    );
    assert_eq!(served.warren("whois 100.64.0.3").0, 1);
    assert!(served.warren("netcheck").1.contains("\t* UDP: true\n"));
    assert!(
        served
            .warren("netcheck --format=json-line")
            .1
            .contains("\"UDP\":true")
    );
    assert_eq!(served.warren("version").1, "0.1.0\n");
    assert!(
        served
            .warren("version --daemon --json")
            .1
            .contains("\"daemonLong\": \"0.0.0-test\"")
    );
    assert!(served.warren("completion bash").1.contains("_warren"));

    assert_eq!(served.warren("set --shields-up").0, 0);
    assert_eq!(served.warren("set").0, 2);
    assert_eq!(served.warren("set --ssh").0, 1);
    let (code, _, err) = served.warren("up --accept-routes");
    assert_eq!(code, 1);
    assert!(
        err.contains("\twarren up --accept-routes --hostname=laptop --shields-up\n"),
        "{err}"
    );

    let exit_node = || served.backend.0.lock().unwrap().prefs.exit_node_id.clone();
    assert_eq!(served.warren("set --exit-node 100.64.0.2").0, 0);
    assert_eq!(exit_node(), "nDB");
    assert_eq!(served.warren("set --exit-node=").0, 0);
    assert_eq!(exit_node(), "");
    let (code, _, err) = served.warren("set --exit-node 100.64.0.3");
    assert_eq!(code, 1);
    assert!(err.contains("offers to be an exit node"), "{err}");

    assert_eq!(served.warren("down").0, 0);
    assert_eq!(served.warren("status").1, "Tailscale is stopped.\n");
    assert_eq!(served.warren("down").0, 0);
    assert_eq!(served.warren("up").0, 0);
    assert_eq!(served.warren("logout --reason going-home").0, 0);
    assert_eq!(served.warren("status").1, "Logged out.\n");
    assert_eq!(
        served.backend.log().last().unwrap(),
        "logout \"going-home\""
    );
}

#[test]
fn up_shows_where_to_log_in() {
    let served = served();
    let (code, _, err) = served.warren("up --login-server http://c");
    assert_eq!(code, 0);
    assert_eq!(
        err,
        "\nTo authenticate, visit:\n\n\thttp://control.example/register/abc\n\nSuccess.\n"
    );
    let served = self::served();
    let (_, out, _) = served.warren("up --login-server http://c --json");
    assert!(
        out.contains("{\n\t\"AuthURL\": \"http://control.example/register/abc\"\n}"),
        "{out}"
    );
    assert!(
        out.ends_with("{\n\t\"BackendState\": \"Running\"\n}\n"),
        "{out}"
    );
}

#[test]
fn a_forced_login_waits_for_another_key() {
    let served = served();
    assert_eq!(
        served
            .warren("up --login-server http://c --auth-key tskey-auth-good")
            .0,
        0
    );
    let before = served.backend.0.lock().unwrap().key;
    assert_eq!(served.warren("up --force-reauth").0, 0);
    assert_ne!(served.backend.0.lock().unwrap().key, before);
}

#[test]
fn a_refused_key_fails_with_its_reason() {
    let served = served();
    let (code, _, err) = served.warren("up --login-server http://c --auth-key bad");
    assert_eq!(
        (code, err.as_str()),
        (1, "backend error: the auth key is not known\n")
    );
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

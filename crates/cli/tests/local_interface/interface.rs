//! The socket itself: permissions, status codes and headers.

use std::io::Write;

use warren_local_api::client::{Client, ClientError};
use warren_local_api::endpoints::{EditPrefs, GetStatus, Start, WatchBus};
use warren_local_api::notify::{NotifyMask, State};
use warren_local_api::prefs::Options;
use warren_local_api::server;
use warren_node_types::{MaskedPrefs, Prefs};

use crate::network::Network;
use crate::served::{HOST, block_on, get, raw, served};

#[test]
fn every_answer_names_the_version_and_pages_are_refused() {
    let served = served();
    let good = get(&served, "/localapi/v0/status", HOST);
    assert!(good.starts_with("HTTP/1.1 200"), "{good}");
    for header in [
        "Tailscale-Version: ",
        "Tailscale-Cap: 121",
        "X-Frame-Options: DENY",
        "X-Content-Type-Options: nosniff",
        "Content-Security-Policy: default-src 'none'",
    ] {
        assert!(good.contains(header), "{header} is not in {good}");
    }
    assert!(
        good.contains("\n\t\"BackendState\": \"NeedsLogin\""),
        "tab-indented: {good}"
    );
    assert!(get(&served, "/localapi/v0/status", "Host:\r\n").starts_with("HTTP/1.1 200"));
    assert!(get(&served, "/", HOST).ends_with("tailscaled\n"));
    for refused in [
        "Host: evil.example\r\n",
        "Host: localhost\r\n",
        "Host: local-tailscaled.sock\r\nOrigin: http://evil\r\n",
        "Host: local-tailscaled.sock\r\nReferer: http://evil/\r\n",
    ] {
        let answer = get(&served, "/localapi/v0/status", refused);
        assert!(answer.starts_with("HTTP/1.1 403"), "{refused}: {answer}");
        assert!(answer.contains("Tailscale-Version: "));
    }
    let missing = get(&served, "/localapi/v0/nonsense", HOST);
    assert!(
        missing.starts_with("HTTP/1.1 404") && missing.ends_with("404 page not found\n"),
        "{missing}"
    );
    // The official command line crashes where there is no object.
    assert!(good.contains("\n\t\"Self\": {\n"), "{good}");
    assert!(get(&served, "/localapi/v0/start", HOST).starts_with("HTTP/1.1 405"));
    assert!(get(&served, "/localapi/v0/whois?addr=100.64.0.77", HOST).starts_with("HTTP/1.1 404"));
    assert!(get(&served, "/localapi/v0/whois?addr=x", HOST).starts_with("HTTP/1.1 400"));
    assert!(get(&served, "/localapi/v0/whois", HOST).starts_with("HTTP/1.1 400"));
    assert!(get(&served, "/localapi/v0/dns-config", HOST).starts_with("HTTP/1.1 503"));
    assert!(
        get(&served, "/localapi/v0/watch-ipn-bus?mask=65536", HOST).starts_with("HTTP/1.1 400")
    );
    assert!(
        get(&served, "/localapi/v0/usermetrics", HOST)
            .contains("\ntailscaled_home_derp_region_id 0\n")
    );
    assert!(get(&served, "/localapi/v0/profiles/", HOST).ends_with("\r\n[]\n"));
}

#[test]
fn preferences_are_patched_as_other_programs_do_it() {
    let served = served();
    let patch = |body: &str| {
        raw(
            &served,
            &format!(
                "PATCH /localapi/v0/prefs HTTP/1.1\r\n{HOST}Connection: close\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            ),
        )
    };
    let answer = patch(r#"{"hostname":"box","HostnameSet":true,"ShieldsUp":true,"Unknown":1}"#);
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let prefs: serde_json::Value =
        serde_json::from_str(answer.split("\r\n\r\n").nth(1).unwrap()).unwrap();
    assert_eq!(prefs["Hostname"], "box");
    assert_eq!(prefs["ShieldsUp"], false, "not marked as set");
    assert!(prefs["AdvertiseRoutes"].is_null() && prefs["Config"].is_null());
    let refused = patch(r#"{"RunWebClient":true,"RunWebClientSet":true}"#);
    assert!(
        refused.starts_with("HTTP/1.1 400") && refused.contains("{\"Error\":\""),
        "{refused}"
    );
    assert!(
        patch(r#"{"InternalExitNodePrior":"x","InternalExitNodePriorSet":true}"#)
            .starts_with("HTTP/1.1 400")
    );
    assert!(patch("nonsense").starts_with("HTTP/1.1 400"));
    let changes = served.changed_endpoints();
    assert!(changes.iter().all(|endpoint| *endpoint == "prefs"));
    assert_eq!(served.prefs().hostname, "box");
}

#[test]
fn a_listener_gets_the_state_and_then_the_changes() {
    let network = Network::start();
    let served = served();
    let options = Options {
        auth_key: network.key(),
        update_prefs: Some(Prefs {
            control_url: network.url().to_owned(),
            ..Prefs::default()
        }),
        force_login: false,
    };
    block_on(async {
        let client = served.client();
        let mut watch = client
            .call(WatchBus {
                mask: NotifyMask(2 | 4),
            })
            .await
            .unwrap();
        let first = watch.next().await.unwrap().unwrap();
        assert_eq!(first.state, Some(State::NeedsLogin));
        assert!(first.prefs.is_some() && !first.session_id.is_empty());
        client.call(Start { options }).await.unwrap();
        let mut states = Vec::new();
        while states.last() != Some(&State::Running) {
            states.extend(watch.next().await.unwrap().unwrap().state);
        }
        // The state at the start is sent also where the start does not change it.
        assert_eq!(states, [State::NeedsLogin, State::Starting, State::Running]);
    });
}

#[test]
fn missing_daemon_is_reported_with_the_next_step() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("none.sock");
    let error = block_on(
        Client::new(&socket)
            .impatient()
            .call(GetStatus { peers: true }),
    )
    .unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("none.sock") && text.contains("warren daemon"),
        "{text}"
    );
    assert!(matches!(error, ClientError::Unreachable { .. }));
}

#[test]
fn only_the_socket_of_a_dead_daemon_is_replaced() {
    let served = served();
    let inside = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let _guard = inside.enter();
    assert_eq!(
        server::bind(&served.socket).unwrap_err().kind(),
        std::io::ErrorKind::AddrInUse
    );
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    drop(server::bind(&path).unwrap());
    assert!(path.exists(), "a killed daemon leaves its socket");
    drop(server::bind(&path).unwrap());
    let file = folder.path().join("file");
    std::fs::write(&file, "keep").unwrap();
    assert_eq!(
        server::bind(&file).unwrap_err().kind(),
        std::io::ErrorKind::AlreadyExists
    );
    assert_eq!(std::fs::read(&file).unwrap(), b"keep");
}

#[test]
fn connections_are_limited_and_a_place_comes_free() {
    let served = served();
    let mut open = Vec::new();
    let full = loop {
        let mut stream = std::os::unix::net::UnixStream::connect(&served.socket).unwrap();
        // The server accepts in order: it has decided once it answers.
        let ask = format!("GET /localapi/v0/status HTTP/1.1\r\n{HOST}\r\n");
        let _ = stream.write_all(ask.as_bytes());
        let mut start = [0; 12];
        std::io::Read::read_exact(&mut stream, &mut start).unwrap();
        if start != *b"HTTP/1.1 200" {
            assert_eq!(start, *b"HTTP/1.1 503");
            break open.len();
        }
        open.push(stream);
        assert!(open.len() <= 256, "no limit");
    };
    assert_eq!(full, 256, "as the daemon's own user");
    drop(open);
    while !get(&served, "/localapi/v0/status", HOST).starts_with("HTTP/1.1 200") {}
}

/// The test starts a process of another user, which only root can do.
#[test]
fn other_users_may_look_and_the_operator_may_change() {
    use std::os::unix::fs::PermissionsExt as _;
    use std::os::unix::process::CommandExt as _;

    /// The user `nobody`, everywhere.
    const NOBODY: u32 = 65534;

    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can start a process of another user");
        return;
    }
    let served = served();
    let folder = served.socket.parent().unwrap();
    let open = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(folder.parent().unwrap(), open.clone()).unwrap();
    let mode = std::fs::metadata(&served.socket)
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o666, "all users may connect");

    // The build folder may be closed to others.
    let program = folder.join("warren");
    std::fs::copy(env!("CARGO_BIN_EXE_warren"), &program).unwrap();
    std::fs::set_permissions(&program, open).unwrap();
    let as_other_user = |line: &str| {
        let output = std::process::Command::new(&program)
            .arg("--socket")
            .arg(&served.socket)
            .args(line.split_whitespace())
            .current_dir("/")
            .uid(NOBODY)
            .gid(NOBODY)
            .output()
            .unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (
            output.status.code(),
            text(output.stdout),
            text(output.stderr),
        )
    };
    let (code, out, _) = as_other_user("status");
    assert_eq!((code, out.as_str()), (Some(1), "Logged out.\n"));
    for refused in [
        "set --shields-up",
        "up --login-server http://c --auth-key tskey-auth-good",
        "logout",
        "debug filter",
    ] {
        let (code, _, err) = as_other_user(refused);
        assert_eq!(code, Some(1), "{refused}: {err}");
        assert!(err.starts_with("Access denied: "), "{refused}: {err}");
        assert!(err.contains("sudo warren set --operator=$USER"), "{err}");
    }
    assert!(served.changes().is_empty());
    let change = MaskedPrefs {
        operator_user: Some(NOBODY.to_string()),
        ..MaskedPrefs::default()
    };
    block_on(served.client().call(EditPrefs { change })).unwrap();
    assert_eq!(as_other_user("set --shields-up").0, Some(0));
    assert!(served.prefs().shields_up);
}

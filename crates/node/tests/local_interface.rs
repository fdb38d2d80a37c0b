//! The local interface over a real socket, with an engine made of a few
//! variables behind it: the server's rules, the client, and the command line.
#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use warren_control_types::{DerpMap, DnsConfig, Node, UserProfile};
use warren_keys::NodePublic;
use warren_node::cli::{self, Io};
use warren_node::localapi::backend::{Backend, BackendError, Reply};
use warren_node::localapi::client::{Client, ClientError};
use warren_node::localapi::metrics::{Metric, MetricKind};
use warren_node::localapi::notify::{Notify, NotifyMask, Snapshot, State};
use warren_node::localapi::prefs::{MaskedPrefs, Options, Prefs};
use warren_node::localapi::server;
use warren_node::localapi::types::{
    LoginProfile, NetcheckReport, PeerStatus, PingResult, PingType, Status, WhoIsResponse,
    WhoIsTarget,
};

/// The good key of this pretended network.
const KEY: &str = "tskey-auth-good";

#[derive(Default)]
struct Inner {
    state: State,
    prefs: Prefs,
    key: u8,
    auth_url: String,
    listeners: Vec<(NotifyMask, mpsc::Sender<Notify>)>,
    log: Vec<String>,
    health: Vec<String>,
}

#[derive(Default)]
struct Memory(Mutex<Inner>);

impl Inner {
    fn tell(&mut self, notify: Notify) {
        self.listeners
            .retain(|(mask, listener)| match notify.clone().for_mask(*mask) {
                Some(notify) => listener.try_send(notify).is_ok(),
                None => true,
            });
    }

    fn enter(&mut self, state: State) {
        self.state = state;
        self.tell(Notify {
            state: Some(state),
            ..Notify::new()
        });
    }

    fn join(&mut self) {
        self.key += 1;
        self.auth_url.clear();
        self.enter(State::Starting);
        self.enter(State::Running);
    }

    fn status(&self, peers: bool) -> Status {
        let mut status = Status {
            version: "0.0.0-test".into(),
            backend_state: self.state.to_string(),
            have_node_key: self.key != 0,
            auth_url: self.auth_url.clone(),
            health: self.health.clone(),
            magic_dns_suffix: "net.example".into(),
            ..Status::default()
        };
        if self.key != 0 {
            status.tailscale_ips = vec![ip("100.64.0.1"), ip("fd7a:115c:a1e0::1")];
            status.self_status = Some(PeerStatus {
                public_key: NodePublic::from_bytes([self.key; 32]),
                dns_name: "laptop.net.example.".into(),
                tailscale_ips: status.tailscale_ips.clone(),
                online: true,
                os: "linux".into(),
                ..PeerStatus::default()
            });
        }
        if peers && self.key != 0 {
            let key = NodePublic::from_bytes([200; 32]);
            let db = PeerStatus {
                public_key: key,
                id: "nDB".into(),
                exit_node_option: true,
                dns_name: "db.net.example.".into(),
                tailscale_ips: vec![ip("100.64.0.2")],
                online: true,
                os: "linux".into(),
                ..PeerStatus::default()
            };
            status.peer.insert(key, db);
        }
        status
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

impl Memory {
    fn log(&self) -> Vec<String> {
        self.0.lock().unwrap().log.clone()
    }
}

impl Backend for Memory {
    /// Whoever is to log in does so as soon as somebody has seen the address.
    async fn status(&self, peers: bool) -> Reply<Status> {
        let mut inner = self.0.lock().unwrap();
        let status = inner.status(peers);
        if !inner.auth_url.is_empty() {
            inner.join();
        }
        Ok(status)
    }

    async fn prefs(&self) -> Reply<Prefs> {
        Ok(self.0.lock().unwrap().prefs.clone())
    }

    async fn edit_prefs(&self, change: MaskedPrefs) -> Reply<Prefs> {
        let mut inner = self.0.lock().unwrap();
        inner.log.push(format!("edit {}", change.names().join(" ")));
        change.apply_to(&mut inner.prefs);
        match change.want_running {
            Some(true) => inner.enter(State::Running),
            Some(false) => inner.enter(State::Stopped),
            None => {}
        }
        Ok(inner.prefs.clone())
    }

    async fn start(&self, options: Options) -> Reply<()> {
        let mut inner = self.0.lock().unwrap();
        inner.log.push(format!("start {options:?}"));
        if let Some(prefs) = options.update_prefs {
            inner.prefs = prefs;
        }
        if options.force_login && options.auth_key.is_empty() {
            inner.auth_url = "http://control.example/register/again".into();
            inner.enter(State::NeedsLogin);
            return Ok(());
        }
        match options.auth_key.as_str() {
            "" if inner.key == 0 => inner.enter(State::NeedsLogin),
            "" => inner.enter(State::Running),
            KEY => inner.join(),
            _ => {
                let text = "the auth key is not known".to_owned();
                inner.enter(State::NeedsLogin);
                inner.tell(Notify {
                    err_message: Some(text),
                    ..Notify::new()
                });
            }
        }
        Ok(())
    }

    async fn login_interactive(&self) -> Reply<()> {
        let mut inner = self.0.lock().unwrap();
        inner.log.push("login".into());
        inner.auth_url = "http://control.example/register/abc".into();
        let url = inner.auth_url.clone();
        inner.tell(Notify {
            browse_to_url: Some(url),
            ..Notify::new()
        });
        Ok(())
    }

    async fn logout(&self, reason: String) -> Reply<()> {
        let mut inner = self.0.lock().unwrap();
        inner.log.push(format!("logout {reason:?}"));
        inner.key = 0;
        inner.enter(State::NeedsLogin);
        Ok(())
    }

    async fn reset_auth(&self) -> Reply<()> {
        self.0.lock().unwrap().key = 0;
        Ok(())
    }

    async fn subscribe(&self, mask: NotifyMask) -> Reply<mpsc::Receiver<Notify>> {
        let mut inner = self.0.lock().unwrap();
        let (sender, receiver) = mpsc::channel(64);
        let snapshot = Snapshot {
            session_id: format!("s{}", inner.listeners.len()),
            state: inner.state,
            prefs: inner.prefs.clone(),
            ..Snapshot::default()
        };
        if let Some(first) = Notify::initial(mask, snapshot) {
            sender.try_send(first).unwrap();
        }
        inner.listeners.push((mask, sender));
        Ok(receiver)
    }

    async fn ping(&self, to: IpAddr, kind: PingType, _size: usize) -> Reply<PingResult> {
        if to == ip("100.64.0.99") {
            std::future::pending::<()>().await;
        }
        if to != ip("100.64.0.2") {
            return Err(BackendError::Failed(format!("no matching peer for {to}")));
        }
        let endpoint = if kind == PingType::Disco {
            "192.0.2.7:41641"
        } else {
            ""
        };
        Ok(PingResult {
            ip: to.to_string(),
            node_ip: to.to_string(),
            node_name: "db".into(),
            latency_seconds: 0.008,
            endpoint: endpoint.into(),
            ..PingResult::default()
        })
    }

    async fn whois(&self, target: WhoIsTarget) -> Reply<WhoIsResponse> {
        match target {
            WhoIsTarget::Ip(found) if found == ip("100.64.0.2") => Ok(WhoIsResponse {
                node: Node {
                    name: "db.net.example.".into(),
                    ..Node::default()
                },
                user_profile: UserProfile {
                    login_name: "ann@example.com".into(),
                    ..UserProfile::default()
                },
                cap_map: Default::default(),
            }),
            other => Err(BackendError::NotFound(format!("no match for {other:?}"))),
        }
    }

    async fn derp_map(&self) -> Reply<DerpMap> {
        Ok(DerpMap::default())
    }

    async fn dns_config(&self) -> Reply<DnsConfig> {
        Err(BackendError::Unavailable("no netmap yet".into()))
    }

    async fn current_profile(&self) -> Reply<LoginProfile> {
        Ok(LoginProfile {
            id: "ab12".into(),
            ..LoginProfile::default()
        })
    }

    async fn netcheck(&self) -> Reply<NetcheckReport> {
        Ok(NetcheckReport {
            udp: true,
            ..NetcheckReport::default()
        })
    }

    async fn metrics(&self) -> Reply<Vec<Metric>> {
        Ok(vec![Metric {
            name: "tailscaled_home_derp_region_id",
            kind: MetricKind::Gauge,
            help: "Home relay.",
            labels: Vec::new(),
            value: 900.0,
        }])
    }

    async fn restun(&self) -> Reply<()> {
        self.0.lock().unwrap().log.push("restun".into());
        Ok(())
    }

    async fn rebind(&self) -> Reply<()> {
        self.0.lock().unwrap().log.push("rebind".into());
        Ok(())
    }
}

/// A daemon's socket in its own folder, served by a thread of its own.
struct Served {
    socket: PathBuf,
    backend: Arc<Memory>,
    _runtime: tokio::runtime::Runtime,
    _folder: tempfile::TempDir,
}

fn served() -> Served {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("run/warren.sock");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let backend = Arc::new(Memory::default());
    backend.0.lock().unwrap().state = State::NeedsLogin;
    let listener = {
        let _inside = runtime.enter();
        server::bind(&socket).unwrap()
    };
    runtime.spawn(server::serve(listener, Arc::clone(&backend)));
    Served {
        socket,
        backend,
        _runtime: runtime,
        _folder: folder,
    }
}

impl Served {
    fn client(&self) -> Client {
        Client::new(&self.socket).impatient()
    }

    /// Runs a command line; its exit code, output and messages.
    fn warren(&self, line: &str) -> (u8, String, String) {
        let mut args = vec![
            "warren".into(),
            "--socket".into(),
            self.socket.clone().into(),
        ];
        args.extend(line.split_whitespace().map(Into::into));
        warren(args)
    }
}

#[derive(Clone, Default)]
struct Page(Arc<Mutex<Vec<u8>>>);

impl Page {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Page {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        Write::write(&mut *self.0.lock().unwrap(), bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn warren(args: Vec<std::ffi::OsString>) -> (u8, String, String) {
    let (out, err) = (Page::default(), Page::default());
    let io = Io {
        out: Box::new(out.clone()),
        err: Box::new(err.clone()),
    };
    let code = cli::run_with(args, |_| ExitCode::from(77), io);
    let code = [0, 1, 2, 77]
        .into_iter()
        .find(|number| format!("{:?}", ExitCode::from(*number)) == format!("{code:?}"));
    (code.unwrap(), out.text(), err.text())
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

/// Sends raw bytes and reads the whole answer.
fn raw(served: &Served, request: &str) -> String {
    block_on(async {
        let mut stream = UnixStream::connect(&served.socket).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    })
}

fn get(served: &Served, path: &str, headers: &str) -> String {
    raw(
        served,
        &format!("GET {path} HTTP/1.1\r\nConnection: close\r\n{headers}\r\n"),
    )
}

const HOST: &str = "Host: local-tailscaled.sock\r\n";

#[test]
fn every_answer_names_the_version_and_pages_are_refused() {
    let served = served();
    let good = get(&served, "/localapi/v0/status", HOST);
    assert!(good.starts_with("HTTP/1.1 200"), "{good}");
    for header in [
        "Tailscale-Version: ",
        "Tailscale-Cap: 119",
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
    assert!(get(&served, "/localapi/v0/nonsense", HOST).starts_with("HTTP/1.1 404"));
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
            .contains("\ntailscaled_home_derp_region_id 900\n")
    );
    assert!(get(&served, "/localapi/v0/profiles/", HOST).contains("[{\"ID\":\"ab12\""));
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
    let refused = patch(r#"{"RunSSH":true,"RunSSHSet":true}"#);
    assert!(
        refused.starts_with("HTTP/1.1 400") && refused.contains("{\"Error\":\""),
        "{refused}"
    );
    assert!(
        patch(r#"{"InternalExitNodePrior":"x","InternalExitNodePriorSet":true}"#)
            .starts_with("HTTP/1.1 400")
    );
    assert!(patch("nonsense").starts_with("HTTP/1.1 400"));
    assert_eq!(served.backend.log(), ["edit Hostname"]);
}

#[test]
fn a_listener_gets_the_state_and_then_the_changes() {
    let served = served();
    block_on(async {
        let client = served.client();
        let mut watch = client.watch(NotifyMask(2 | 4)).await.unwrap();
        let first = watch.next().await.unwrap().unwrap();
        assert_eq!(first.state, Some(State::NeedsLogin));
        assert!(first.prefs.is_some() && !first.session_id.is_empty());
        client
            .start(&Options {
                auth_key: KEY.into(),
                ..Options::default()
            })
            .await
            .unwrap();
        let mut states = Vec::new();
        while states.last() != Some(&State::Running) {
            states.extend(watch.next().await.unwrap().unwrap().state);
        }
        assert_eq!(states, [State::Starting, State::Running]);
    });
    assert!(
        !served.backend.log().join("").contains(KEY),
        "keys are not printed"
    );
}

#[test]
fn nobody_at_the_socket_is_said_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("none.sock");
    let error = block_on(Client::new(&socket).impatient().status(true)).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("none.sock") && text.contains("warren daemon"),
        "{text}"
    );
    assert!(matches!(error, ClientError::Unreachable { .. }));
}

#[test]
fn a_socket_is_taken_over_from_the_dead_only() {
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
fn who_is_logged_out_is_told_what_to_do() {
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
fn flags_without_effect_are_kept_and_said_so() {
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
        "nothing to say of what happens anyway"
    );
    let (code, _, err) = served.warren("set --report-posture");
    assert_eq!(code, 0);
    assert!(
        err.contains("warning: --report-posture has no effect yet"),
        "{err}"
    );
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

/// Other users may look; changing takes root or the operator. Shown with a
/// process that really is another user, which only root can start.
#[test]
fn other_users_look_and_the_operator_changes() {
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
    assert_eq!(mode & 0o777, 0o666, "everybody may connect");

    // The build folder may be closed to others.
    let program = folder.join("warren");
    std::fs::copy(env!("CARGO_BIN_EXE_warren"), &program).unwrap();
    std::fs::set_permissions(&program, open).unwrap();
    let as_nobody = |line: &str| {
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
    let (code, out, _) = as_nobody("status");
    assert_eq!((code, out.as_str()), (Some(1), "Logged out.\n"));
    for refused in [
        "set --shields-up",
        "up --login-server http://c --auth-key tskey-auth-good",
        "logout",
        "debug filter",
    ] {
        let (code, _, err) = as_nobody(refused);
        assert_eq!(code, Some(1), "{refused}: {err}");
        assert!(err.starts_with("Access denied: "), "{refused}: {err}");
        assert!(err.contains("sudo warren set --operator=$USER"), "{err}");
    }
    assert!(served.backend.log().is_empty());
    served.backend.0.lock().unwrap().prefs.operator_user = NOBODY.to_string();
    assert_eq!(as_nobody("set --shields-up").0, Some(0));
    assert_eq!(served.backend.log(), ["edit ShieldsUp"]);
}

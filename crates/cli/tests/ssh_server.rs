//! The SSH server with OpenSSH's client, over a loopback socket instead of the tunnel. The
//! sessions are processes of the real program.
#![allow(clippy::unwrap_used)]

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::process::Command;
use tokio::sync::watch;
use warren_control_types::{NodeId, SshAction, SshPolicy, StableNodeId};
use warren_ssh::{Accounts, Answer, Ends, Facts, HostKeys, Options, Server, Tailnet};

const PATIENCE: Duration = Duration::from_secs(60);
/// The ids of alice where the test runs as root: `scp` wants a user that exists.
const ALICE: (u32, u32) = (65_534, 65_534);

/// A network whose policy and server the test decides about.
struct Network {
    policy: Mutex<SshPolicy>,
    changes: watch::Sender<u64>,
    answers: Mutex<VecDeque<Result<SshAction, String>>>,
    asked: Mutex<Vec<String>>,
}

impl Network {
    fn set_policy(&self, policy: serde_json::Value) {
        *self.policy.lock().unwrap() = serde_json::from_value(policy).unwrap();
        self.changes.send_modify(|count| *count += 1);
    }
}

impl Tailnet for Network {
    fn facts(&self, source: IpAddr) -> Answer<'_, Option<Facts>> {
        let policy = self.policy.lock().unwrap().clone();
        Box::pin(std::future::ready(Some(Facts {
            policy,
            // All addresses but 127.0.0.1 are of one other node.
            node: StableNodeId(match source.to_string().as_str() {
                "127.0.0.1" => "n1".to_owned(),
                _ => "n2".to_owned(),
            }),
            id: NodeId(1),
            login: "alice@example.com".to_owned(),
            own: NodeId(2),
            accepts_env: true,
        })))
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn ask(&self, target: String) -> Answer<'_, Result<SshAction, String>> {
        self.asked.lock().unwrap().push(target);
        let answer = self.answers.lock().unwrap().pop_front();
        Box::pin(async move {
            match answer {
                Some(answer) => answer,
                None => std::future::pending().await,
            }
        })
    }
}

/// A server that listens, with its accounts and known hosts.
struct Served {
    network: Arc<Network>,
    folder: TempDir,
    port: u16,
}

/// A policy that lets everybody in as `user`, with this action.
fn policy(user: &str, action: serde_json::Value) -> serde_json::Value {
    json!({"rules": [{
        "principals": [{"any": true}],
        "sshUsers": {user: user},
        "acceptEnv": ["FOO*"],
        "action": action,
    }]})
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

async fn serve(action: serde_json::Value) -> Served {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let (uid, gid) = match is_root() {
        true => ALICE,
        false => (
            rustix::process::getuid().as_raw(),
            rustix::process::getgid().as_raw(),
        ),
    };
    let home = path("home");
    std::fs::create_dir(&home).unwrap();
    if is_root() {
        let owner = (
            rustix::fs::Uid::from_raw(uid),
            rustix::fs::Gid::from_raw(gid),
        );
        rustix::fs::chown(&home, Some(owner.0), Some(owner.1)).unwrap();
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(folder.path(), open).unwrap();
    }
    let passwd = format!(
        "root:x:0:0::/root:/bin/sh\nalice:x:{uid}:{gid}::{}:/bin/sh\n\
         homeless:x:{uid}:{gid}::/nonexistent/home:/bin/sh\n\
         shell-less:x:{uid}:{gid}::/:/nonexistent/shell\n\
         closed:x:{uid}:{gid}::/:/bin/false\n",
        home.display()
    );
    std::fs::write(path("passwd"), passwd).unwrap();
    std::fs::write(
        path("group"),
        "one:x:771:bob,alice\ntwo:x:772:bob\nthree:x:773:alice\n",
    )
    .unwrap();
    let host_keys = HostKeys::load(Some(&path("keys")), None).unwrap();
    let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let known = format!("[127.0.0.1]:{port} {}\n", host_keys.public_lines()[0]);
    std::fs::write(path("known_hosts"), known).unwrap();
    let network = Arc::new(Network {
        policy: Mutex::default(),
        changes: watch::channel(0).0,
        answers: Mutex::default(),
        asked: Mutex::default(),
    });
    network.set_policy(policy("alice", action));
    let server = Server::new(Options {
        tailnet: Arc::clone(&network) as Arc<dyn Tailnet>,
        host_keys,
        accounts: Accounts::in_files(path("passwd"), path("group")),
        program: PathBuf::from(env!("CARGO_BIN_EXE_warren")),
    });
    tokio::spawn(async move {
        loop {
            let (stream, peer) = listener.accept().await.unwrap();
            let ends = Ends {
                peer,
                local: stream.local_addr().unwrap(),
            };
            let server = server.clone();
            tokio::spawn(async move { drop(server.serve(ends, || Ok(stream)).await) });
        }
    });
    Served {
        network,
        folder,
        port,
    }
}

impl Served {
    /// The options of OpenSSH's programs.
    fn options(&self) -> Vec<String> {
        let known = self.folder.path().join("known_hosts");
        let known = format!("UserKnownHostsFile={}", known.display());
        let options = [
            "BatchMode=yes",
            "StrictHostKeyChecking=yes",
            "IdentityFile=none",
            "ConnectTimeout=20",
            &known,
        ];
        let port = format!("Port={}", self.port);
        let options = options.into_iter().chain([port.as_str()]);
        let options = options.flat_map(|option| ["-o".to_owned(), option.to_owned()]);
        ["-F".to_owned(), "none".to_owned()]
            .into_iter()
            .chain(options)
            .collect()
    }

    fn ssh(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("ssh");
        command
            .args(self.options())
            .args(arguments)
            .env_remove("SSH_AUTH_SOCK")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    async fn run(&self, arguments: &[&str]) -> Output {
        run(self.ssh(arguments)).await
    }
}

async fn run(mut command: Command) -> Output {
    let running = tokio::time::timeout(PATIENCE, command.output());
    running.await.expect("ssh does not end").unwrap()
}

/// Standard output, without the end of the line, and exit status.
fn shown(output: &Output) -> (String, Option<i32>) {
    let text = String::from_utf8_lossy(&output.stdout)
        .trim_end()
        .to_owned();
    (text, output.status.code())
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Whether OpenSSH's client is there.
fn has_ssh() -> bool {
    let found = std::process::Command::new("ssh").arg("-V").output().is_ok();
    if !found {
        eprintln!("SKIPPED: ssh is not installed");
    }
    found
}

fn accept() -> serde_json::Value {
    json!({"accept": true})
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_run_as_the_user_and_report_their_status() {
    if !has_ssh() {
        return;
    }
    let served = serve(accept()).await;
    let output = served
        .run(&["alice@127.0.0.1", "echo out; echo err >&2; exit 7"])
        .await;
    assert_eq!(
        shown(&output),
        ("out".to_owned(), Some(7)),
        "{}",
        errors(&output)
    );
    assert!(errors(&output).ends_with("err\n"));
    let output = served
        .run(&[
            "alice@127.0.0.1",
            "id -u; id -g; pwd; echo $USER $HOME $SHELL",
        ])
        .await;
    let (uid, gid) = match is_root() {
        true => ALICE,
        false => (
            rustix::process::getuid().as_raw(),
            rustix::process::getgid().as_raw(),
        ),
    };
    let home = served.folder.path().join("home").display().to_string();
    let expected = format!("{uid}\n{gid}\n{home}\nalice {home} /bin/sh");
    assert_eq!(shown(&output), (expected, Some(0)));
    // Killed by a signal.
    let output = served.run(&["alice@127.0.0.1", "kill -9 $$"]).await;
    assert_eq!(output.status.code(), Some(255));
    // A shell without a terminal reads commands from its input.
    let mut command = served.ssh(&["alice@127.0.0.1"]);
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(b"echo $0\nexit 3\n").await.unwrap();
    drop(input);
    let output = tokio::time::timeout(PATIENCE, child.wait_with_output())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(shown(&output), ("-sh".to_owned(), Some(3)));
}

#[tokio::test(flavor = "multi_thread")]
async fn privileges_are_given_up_for_good() {
    if !has_ssh() || !is_root() {
        return;
    }
    let served = serve(accept()).await;
    let script = "id -G; grep -E '^(Uid|Gid|CapEff|CapPrm):' /proc/self/status; \
                  ls /proc/self/fd | wc -l; umask; cat /root/.x 2>&1; head -c 0 /etc/shadow 2>&1";
    let output = served.run(&["alice@127.0.0.1", script]).await;
    let (text, _) = shown(&output);
    let (uid, gid) = ALICE;
    let mut lines = text.lines();
    assert_eq!(
        lines.next().unwrap(),
        format!("{gid} 771 773"),
        "first the main group"
    );
    assert_eq!(
        lines.next().unwrap(),
        format!("Uid:\t{uid}\t{uid}\t{uid}\t{uid}")
    );
    assert_eq!(
        lines.next().unwrap(),
        format!("Gid:\t{gid}\t{gid}\t{gid}\t{gid}")
    );
    for line in lines.by_ref().take(2) {
        assert!(line.ends_with("\t0000000000000000"), "{line}");
    }
    // Standard input, output and error, and the folder itself.
    assert_eq!(lines.next().unwrap().trim(), "4", "{text}");
    assert_eq!(lines.next().unwrap(), "0022");
    assert!(text.contains("Permission denied"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn logins_that_no_rule_names_are_refused_with_the_reason() {
    if !has_ssh() {
        return;
    }
    let served = serve(accept()).await;
    for (user, reason) in [
        ("root", "does not let you log in to this node as \"root\""),
        ("eve", "as \"eve\""),
    ] {
        let output = served.run(&["-l", user, "127.0.0.1", "true"]).await;
        assert_eq!(output.status.code(), Some(255), "{user:?}");
        assert!(errors(&output).contains(reason), "{}", errors(&output));
        assert!(!errors(&output).contains('\u{1b}'));
    }
    served.network.set_policy(json!({"rules": null}));
    let output = served.run(&["alice@127.0.0.1", "true"]).await;
    // Without a name: no rule is about this machine at all.
    let text = errors(&output);
    let mut lines = text.lines();
    assert!(
        lines.any(|line| line.ends_with("does not let you log in to this node")),
        "{text}"
    );
    // The rule names an account that is not there.
    served.network.set_policy(policy("ghost", accept()));
    let output = served.run(&["ghost@127.0.0.1", "true"]).await;
    assert!(
        errors(&output).contains("there is no user \"ghost\""),
        "{}",
        errors(&output)
    );
    let recorded = json!({"accept": true, "recorders": ["100.64.0.9:80"]});
    served.network.set_policy(policy("alice", recorded));
    let output = served.run(&["alice@127.0.0.1", "true"]).await;
    assert!(
        errors(&output).contains("is recorded"),
        "{}",
        errors(&output)
    );
    assert_eq!(output.status.code(), Some(255));
}

#[tokio::test(flavor = "multi_thread")]
async fn users_without_home_or_shell_get_what_is_left() {
    if !has_ssh() {
        return;
    }
    let served = serve(accept()).await;
    served.network.set_policy(policy("homeless", accept()));
    let output = served.run(&["homeless@127.0.0.1", "pwd"]).await;
    assert_eq!(shown(&output), ("/".to_owned(), Some(0)));
    served.network.set_policy(policy("shell-less", accept()));
    let output = served.run(&["shell-less@127.0.0.1", "true"]).await;
    assert_eq!(output.status.code(), Some(127));
    assert!(
        errors(&output).contains("/nonexistent/shell"),
        "{}",
        errors(&output)
    );
    served.network.set_policy(policy("closed", accept()));
    let output = served.run(&["closed@127.0.0.1", "echo in"]).await;
    assert_eq!(shown(&output), (String::new(), Some(1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_shows_the_message_and_waits_for_the_server() {
    if !has_ssh() {
        return;
    }
    let hold = json!({"holdAndDelegate": "https://s/a/$SRC_NODE_ID/to/$DST_NODE_ID?local_user=$LOCAL_USER"});
    let served = serve(hold).await;
    let action = |value: serde_json::Value| Ok(serde_json::from_value(value).unwrap());
    let answer = |answer: Result<SshAction, String>| {
        served.network.answers.lock().unwrap().push_back(answer);
    };
    answer(action(
        json!({"message": "open https://s/login/7\n", "holdAndDelegate": "/b?id=7"}),
    ));
    answer(Err("the line is cut".to_owned()));
    answer(action(accept()));
    let output = served.run(&["alice@127.0.0.1", "echo in"]).await;
    assert_eq!(
        shown(&output),
        ("in".to_owned(), Some(0)),
        "{}",
        errors(&output)
    );
    assert!(
        errors(&output).contains("open https://s/login/7"),
        "{}",
        errors(&output)
    );
    let asked = std::mem::take(&mut *served.network.asked.lock().unwrap());
    assert_eq!(asked, ["/a/1/to/2?local_user=alice", "/b?id=7", "/b?id=7"]);
    answer(action(json!({"reject": true, "message": "not today"})));
    let output = served.run(&["alice@127.0.0.1", "echo in"]).await;
    assert_eq!(output.status.code(), Some(255));
    assert!(errors(&output).contains("not today"), "{}", errors(&output));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_changes_during_a_check_counts() {
    if !has_ssh() {
        return;
    }
    let served = serve(json!({"holdAndDelegate": "/a"})).await;
    let mut child = served.ssh(&["alice@127.0.0.1", "echo in"]).spawn().unwrap();
    while served.network.asked.lock().unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    // The question that waits is lost with this client; the next one is answered.
    child.kill().await.unwrap();
    served
        .network
        .answers
        .lock()
        .unwrap()
        .push_back(Ok(serde_json::from_value(accept()).unwrap()));
    let output = served.run(&["alice@127.0.0.1", "echo in"]).await;
    assert_eq!(shown(&output).0, "in");
    served
        .network
        .answers
        .lock()
        .unwrap()
        .push_back(Ok(serde_json::from_value(accept()).unwrap()));
    *served.network.policy.lock().unwrap() = SshPolicy::default();
    let output = served.run(&["alice@127.0.0.1", "echo in"]).await;
    assert_eq!(shown(&output), (String::new(), Some(255)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_policy_ends_sessions_that_run() {
    if !has_ssh() {
        return;
    }
    let served = serve(accept()).await;
    let mut child = served
        .ssh(&["alice@127.0.0.1", "echo started; exec sleep 1000"])
        .spawn()
        .unwrap();
    let mut started = [0; 8];
    child
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut started)
        .await
        .unwrap();
    served.network.set_policy(policy("bob", accept()));
    let output = tokio::time::timeout(PATIENCE, child.wait_with_output())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(output.status.code(), Some(255));
    assert!(
        errors(&output).contains("access revoked"),
        "{}",
        errors(&output)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_ends_with_its_time() {
    if !has_ssh() {
        return;
    }
    let served = serve(json!({"accept": true, "sessionDuration": 1_000_000_000_u64})).await;
    let output = served.run(&["alice@127.0.0.1", "sleep 1000"]).await;
    assert_eq!(output.status.code(), Some(255));
    assert!(
        errors(&output).contains("session time"),
        "{}",
        errors(&output)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn variables_are_set_as_the_rule_says() {
    if !has_ssh() {
        return;
    }
    let served = serve(accept()).await;
    let variables = [
        "-o",
        "SetEnv=FOO_A=1 LD_PRELOAD=/x BAR=2 LC_ALL=C LANG=/tmp/x BASH_ENV=/x",
    ];
    let script = "echo $FOO_A-$LD_PRELOAD-$BAR-$LC_ALL-$LANG-$BASH_ENV-$PATH-$SSH_CONNECTION";
    let output = served
        .run(&[&variables[..], &["alice@127.0.0.1", script]].concat())
        .await;
    let (text, _) = shown(&output);
    assert!(
        text.starts_with("1---C---/usr/local/bin:/usr/bin:/bin:"),
        "{text}"
    );
    assert!(
        text.ends_with(&format!(" 127.0.0.1 {}", served.port)),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_is_given_with_its_size_and_modes() {
    if !has_ssh() {
        return;
    }
    let served = serve(accept()).await;
    let script =
        "test -t 0 && test -t 1 && echo tty $TERM; stty -a | grep -o 'erase = [^;]*'; exit 5";
    let mut command = served.ssh(&["-tt", "alice@127.0.0.1", script]);
    let output = run({
        command.env("TERM", "xterm-256color");
        command
    })
    .await;
    let (text, status) = shown(&output);
    assert!(
        text.starts_with("tty xterm-256color\r\n"),
        "{text:?} {}",
        errors(&output)
    );
    assert_eq!(status, Some(5));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_answers_while_it_reads_does_not_stop() {
    if !has_ssh() {
        return;
    }
    let served = serve(accept()).await;
    let sent = vec![b'x'; 24 * 1024 * 1024];
    let mut command = served.ssh(&["alice@127.0.0.1", "cat"]);
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let (mut input, mut output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let len = sent.len();
    let sending = async {
        input.write_all(&sent).await.unwrap();
        drop(input);
    };
    let receiving = async {
        let mut received = Vec::new();
        output.read_to_end(&mut received).await.unwrap();
        received
    };
    let both = async { tokio::join!(sending, receiving).1 };
    let received = tokio::time::timeout(PATIENCE, both)
        .await
        .expect("it stops");
    assert_eq!(received.len(), len);
    assert!(received.iter().all(|byte| *byte == b'x'));
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_copied_both_ways() {
    if !has_ssh() {
        return;
    }
    let served = serve(accept()).await;
    let here = served.folder.path().join("here");
    let content: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect();
    std::fs::write(&here, &content).unwrap();
    let has_sftp = [
        "/usr/lib/openssh/sftp-server",
        "/usr/libexec/openssh/sftp-server",
    ]
    .iter()
    .any(|path| std::path::Path::new(path).exists());
    // With the older protocol, `scp` is a command on the other side.
    for way in [Some("-O"), None] {
        if way.is_none() && !has_sftp {
            eprintln!("SKIPPED: sftp-server is not installed");
            continue;
        }
        for (from, to) in [
            (
                here.display().to_string(),
                "alice@127.0.0.1:there".to_owned(),
            ),
            (
                "alice@127.0.0.1:there".to_owned(),
                format!("{}.back", here.display()),
            ),
        ] {
            let mut scp = Command::new("scp");
            scp.args(served.options()).args(way).args([&from, &to]);
            let output = run(scp).await;
            assert!(output.status.success(), "{from} {to}: {}", errors(&output));
        }
        let back = std::fs::read(format!("{}.back", here.display())).unwrap();
        assert!(back == content, "{way:?}");
        std::fs::remove_file(format!("{}.back", here.display())).unwrap();
    }
}

/// A server that sends back what it receives.
async fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let (mut from, mut to) = stream.split();
                drop(tokio::io::copy(&mut from, &mut to).await);
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_forwarded_as_the_action_says() {
    if !has_ssh() {
        return;
    }
    let echo = echo().await;
    for allowed in [true, false] {
        let served = serve(json!({
            "accept": true,
            "allowLocalPortForwarding": allowed,
            "allowRemotePortForwarding": allowed,
        }))
        .await;
        // -W: standard input and output over a forwarded connection.
        let to = echo.to_string();
        let mut command = served.ssh(&["-W", &to, "alice@127.0.0.1"]);
        let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
        let mut input = child.stdin.take().unwrap();
        // A refused connection is closed before.
        let _ = input.write_all(b"hello").await;
        drop(input);
        let output = tokio::time::timeout(PATIENCE, child.wait_with_output())
            .await
            .unwrap()
            .unwrap();
        assert_eq!(shown(&output).0 == "hello", allowed, "{}", errors(&output));
        if !allowed {
            assert!(
                errors(&output).contains("administratively prohibited"),
                "{}",
                errors(&output)
            );
        }
        // The other way: a port of the node that leads here.
        let back = format!("0:{to}");
        let refusal = [
            "-o",
            "ExitOnForwardFailure=yes",
            "-R",
            &back,
            "alice@127.0.0.1",
        ];
        let mut command = served.ssh(&[&refusal[..], &["sleep 1000"]].concat());
        let mut child = command.spawn().unwrap();
        let mut reported = String::new();
        let mut err = child.stderr.take().unwrap();
        let reading = async {
            let mut buffer = [0; 512];
            while !reported.contains('\n') {
                let read = err.read(&mut buffer).await.unwrap();
                if read == 0 {
                    break;
                }
                reported.push_str(&String::from_utf8_lossy(&buffer[..read]));
            }
        };
        tokio::time::timeout(PATIENCE, reading).await.unwrap();
        if !allowed {
            assert!(!reported.contains("Allocated port"), "{reported}");
            continue;
        }
        let port: u16 = reported
            .split_ascii_whitespace()
            .nth(2)
            .unwrap()
            .parse()
            .unwrap();
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        stream.write_all(b"back").await.unwrap();
        let mut answer = [0; 4];
        tokio::time::timeout(PATIENCE, stream.read_exact(&mut answer))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(&answer, b"back");
        child.kill().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_below_1024_are_for_root() {
    if !has_ssh() {
        return;
    }
    let served = serve(json!({"accept": true, "allowRemotePortForwarding": true})).await;
    let arguments = [
        "-o",
        "ExitOnForwardFailure=yes",
        "-R",
        "1023:127.0.0.1:1",
        "alice@127.0.0.1",
        "true",
    ];
    let output = served.run(&arguments).await;
    assert_eq!(output.status.code(), Some(255), "{}", errors(&output));
    assert!(
        errors(&output).contains("remote port forwarding failed"),
        "{}",
        errors(&output)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_half_open_connections_of_a_peer_do_not_keep_others_out() {
    if !has_ssh() {
        return;
    }
    let served = serve(accept()).await;
    let mut held = Vec::new();
    let mut refused = 0;
    for n in 0..1000 {
        let socket = TcpSocket::new_v4().unwrap();
        let from = if n % 2 == 0 {
            "127.0.0.2:0"
        } else {
            "127.0.0.3:0"
        };
        socket.bind(from.parse().unwrap()).unwrap();
        let to = SocketAddr::from(([127, 0, 0, 1], served.port));
        let mut stream = socket.connect(to).await.unwrap();
        let mut ident = [0; 4];
        match tokio::time::timeout(PATIENCE, stream.read(&mut ident))
            .await
            .unwrap()
        {
            Ok(1..) => held.push(stream),
            Ok(0) | Err(_) => refused += 1,
        }
    }
    assert_eq!(held.len(), warren_ssh::limits::LOGGING_IN_OF_PEER);
    assert_eq!(refused, 1000 - held.len());
    let output = served.run(&["alice@127.0.0.1", "echo in"]).await;
    assert_eq!(
        shown(&output),
        ("in".to_owned(), Some(0)),
        "{}",
        errors(&output)
    );
    // Their places are free again when they are gone.
    drop(held);
    loop {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        let to = SocketAddr::from(([127, 0, 0, 1], served.port));
        let mut stream = socket.connect(to).await.unwrap();
        if matches!(stream.read(&mut [0; 4]).await, Ok(1..)) {
            break;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agent_of_the_client_is_reached_where_the_action_says() {
    let has_agent = std::process::Command::new("ssh-add")
        .arg("-V")
        .output()
        .is_ok();
    if !has_ssh() || !has_agent {
        return;
    }
    for allowed in [true, false] {
        let served = serve(json!({"accept": true, "allowAgentForwarding": allowed})).await;
        let socket = served.folder.path().join("agent.sock");
        let mut agent = Command::new("ssh-agent");
        agent
            .args(["-D", "-a"])
            .arg(&socket)
            .stdout(Stdio::null())
            .kill_on_drop(true);
        let _agent = agent.spawn().unwrap();
        while !socket.exists() {
            tokio::task::yield_now().await;
        }
        let mut command = served.ssh(&[
            "-A",
            "alice@127.0.0.1",
            "ssh-add -l; ls -ld ${SSH_AUTH_SOCK%/*}",
        ]);
        command.env("SSH_AUTH_SOCK", &socket);
        let output = run(command).await;
        let text = shown(&output).0 + &errors(&output);
        assert_eq!(
            text.contains("The agent has no identities"),
            allowed,
            "{text}"
        );
        assert_eq!(text.contains("drwx------"), allowed, "{text}");
    }
}

/// Whether a process is there, and not only its exit status.
fn runs(pid: u32) -> bool {
    let state = std::fs::read_to_string(format!("/proc/{pid}/stat"));
    state.is_ok_and(|state| !state.contains(") Z "))
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_end_with_a_client_that_vanishes() {
    if !has_ssh() {
        return;
    }
    let served = serve(accept()).await;
    let home = served.folder.path().join("home");
    // One is silent, one takes no input, one has more output than the client takes.
    for (n, script) in ["sleep 1000", "sleep 1000 # with input", "yes"]
        .iter()
        .enumerate()
    {
        let command = format!("echo $$ > pid.new && mv pid.new pid{n} && exec {script}");
        let mut ssh = served.ssh(&["alice@127.0.0.1", &command]);
        let mut child = ssh.stdin(Stdio::piped()).spawn().unwrap();
        let mut input = child.stdin.take().unwrap();
        let file = home.join(format!("pid{n}"));
        let started = async {
            while !file.exists() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, started).await.unwrap();
        let pid = std::fs::read_to_string(&file)
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        assert!(runs(pid));
        // More than a pipe takes, and less than the window of the channel.
        let stuffing = input.write_all(&[b'x'; 1024 * 1024]);
        tokio::time::timeout(PATIENCE, stuffing)
            .await
            .unwrap()
            .unwrap();
        child.kill().await.unwrap();
        let ended = async {
            while runs(pid) {
                tokio::task::yield_now().await;
            }
        };
        let ended = tokio::time::timeout(PATIENCE, ended).await;
        assert!(ended.is_ok(), "{script} goes on");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_permission_that_is_taken_back_ends_the_connection() {
    if !has_ssh() {
        return;
    }
    let served = serve(json!({"accept": true, "allowLocalPortForwarding": true})).await;
    let mut child = served
        .ssh(&["alice@127.0.0.1", "echo in; exec sleep 1000"])
        .spawn()
        .unwrap();
    child
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut [0; 3])
        .await
        .unwrap();
    served.network.set_policy(policy("alice", accept()));
    let output = tokio::time::timeout(PATIENCE, child.wait_with_output())
        .await
        .unwrap()
        .unwrap();
    assert!(
        errors(&output).contains("access revoked"),
        "{}",
        errors(&output)
    );
}

//! The server on sockets of a service manager, which keeps them while it restarts.

#![allow(clippy::unwrap_used)]

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use warren_wire::stun::{Request, Response, TransactionId};

/// Longer than anything here takes; only a failure waits for it.
const PATIENCE: Duration = Duration::from_secs(60);

/// A command that runs the server with a TCP and a UDP socket as descriptors 3 and 4, as
/// sd_listen_fds(3) describes it. The output of the server goes to its standard error.
fn with_sockets(tcp: OwnedFd, udp: OwnedFd, names: &str) -> Command {
    // The variables name the process, which is known only when it runs. The shell gets the
    // sockets as its input and output.
    const SCRIPT: &str = "exec 3<&0 4<&1 0</dev/null 1>&2; LISTEN_PID=$$ exec \"$0\" \"$@\"";
    let mut command = Command::new("sh");
    command
        .args(["-c", SCRIPT, env!("CARGO_BIN_EXE_warren-control"), "serve"])
        .env("LISTEN_FDS", "2")
        .env("LISTEN_FDNAMES", names)
        .stdin(Stdio::from(tcp))
        .stdout(Stdio::from(udp));
    command
}

/// A running server; killed when dropped.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl Server {
    fn start(folder: &Path, tcp: &TcpListener, udp: &UdpSocket, names: &str) -> Self {
        let (tcp, udp) = (tcp.try_clone().unwrap(), udp.try_clone().unwrap());
        let mut command = with_sockets(tcp.into(), udp.into(), names);
        command
            .arg("--state-dir")
            .arg(folder)
            // Where it would listen if it had no sockets.
            .args(["--listen", "127.0.0.1:1", "--stun-listen", "127.0.0.1:1"])
            .stderr(Stdio::null());
        Self(command.spawn().unwrap())
    }

    fn terminate(mut self) {
        let id = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
        assert!(self.0.wait().unwrap().success());
    }
}

/// Connects and asks; the answer may take until a server is there.
fn ask(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
        .write_all(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .unwrap();
    stream
}

fn is_answered(mut stream: TcpStream) {
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

fn cli(folder: &Path, arguments: &[&str]) -> String {
    let program = env!("CARGO_BIN_EXE_warren-control");
    let output = Command::new(program)
        .arg("--state-dir")
        .arg(folder)
        .args(arguments)
        .output()
        .unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_server_that_restarts_again_and_again_refuses_no_dial_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = tcp.local_addr().unwrap();
    for round in 0..6 {
        // Before there is a server.
        let early = ask(address);
        let request = Request {
            transaction: TransactionId([7; 12]),
        };
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client
            .send_to(&request.emit(), udp.local_addr().unwrap())
            .unwrap();
        let mut server = Server::start(folder.path(), &tcp, &udp, "control:stun");
        is_answered(early);
        let mut answer = [0; 100];
        let (length, _) = client.recv_from(&mut answer).unwrap();
        let seen = Response::parse(&answer[..length]).unwrap().mapped;
        assert_eq!(seen, client.local_addr().unwrap());
        is_answered(ask(address));
        cli(folder.path(), &["users", "create", &format!("user{round}")]);
        if round % 2 == 0 {
            server.terminate();
        } else {
            server.0.kill().unwrap();
        }
    }
    let _server = Server::start(folder.path(), &tcp, &udp, "unknown:unknown");
    is_answered(ask(address));
    let users = cli(folder.path(), &["users", "list"]);
    for round in 0..6 {
        assert!(users.contains(&format!("user{round}")), "{users}");
    }
}

#[test]
fn a_socket_that_no_service_needs_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    // Both are datagram sockets: one is for STUN, and the other for nothing.
    let socket = || OwnedFd::from(UdpSocket::bind("127.0.0.1:0").unwrap());
    let mut command = with_sockets(socket(), socket(), "x:stun");
    let arguments = ["--listen", "127.0.0.1:0", "--state-dir"];
    command.args(arguments).arg(folder.path());
    let output = command.stderr(Stdio::piped()).output().unwrap();
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        text.contains("a socket named \"x\" that is not needed"),
        "{text}"
    );
}

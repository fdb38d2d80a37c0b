//! The relay on sockets of a service manager, which keeps them while it restarts.
#![allow(clippy::unwrap_used)]

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Longer than anything here takes; only a failure waits for it.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running relay; killed when dropped.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Starts the relay with these as descriptors 3 and 4, as sd_listen_fds(3) describes it.
fn start(folder: &Path, tcp: &TcpListener, udp: &UdpSocket) -> Program {
    // The variables name the process, which is known only when it runs. The shell gets the
    // sockets as its input and output.
    const SCRIPT: &str = "exec 3<&0 4<&1 0</dev/null 1>&2; LISTEN_PID=$$ exec \"$0\" \"$@\"";
    let mut command = Command::new("sh");
    command
        .args(["-c", SCRIPT, env!("CARGO_BIN_EXE_warren-relay"), "serve"])
        .args(["--hostname=127.0.0.1", "--tls=off", "--listen=127.0.0.1:1"])
        .args(["--stun-listen=127.0.0.1:1", "--state-dir"])
        .arg(folder)
        .env("LISTEN_FDS", "2")
        .env("LISTEN_FDNAMES", "derp:stun")
        .stdin(Stdio::from(OwnedFd::from(tcp.try_clone().unwrap())))
        .stdout(Stdio::from(OwnedFd::from(udp.try_clone().unwrap())))
        .stderr(Stdio::null());
    Program(command.spawn().unwrap())
}

#[test]
fn a_relay_that_restarts_again_and_again_refuses_no_dial() {
    let folder = tempfile::tempdir().unwrap();
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    for round in 0..4 {
        // Before there is a relay.
        let mut stream = TcpStream::connect(tcp.local_addr().unwrap()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let request = b"GET /derp/probe HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        stream.write_all(request).unwrap();
        let mut relay = start(folder.path(), &tcp, &udp);
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        if round % 2 == 0 {
            let id = rustix::process::Pid::from_child(&relay.0);
            rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
            assert!(relay.0.wait().unwrap().success());
        }
    }
    let map = std::fs::read_to_string(folder.path().join("derp-map.json")).unwrap();
    let port = tcp.local_addr().unwrap().port();
    assert!(map.contains(&format!("\"DERPPort\": {port}")), "{map}");
}

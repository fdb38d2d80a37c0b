//! The daemon as it is started: with its state in memory, settings from a file, and a
//! listener for counters.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};

use tokio::task::JoinHandle;
use warren_control_api::endpoints::ListNodes;
use warren_local_api::client::Client;
use warren_local_api::endpoints::{GetPrefs, WatchBus};
use warren_local_api::notify::{NotifyMask, State};
use warren_node::daemon::{DaemonError, DaemonOptions, Proxies, StatePlace, Tunnel, run};

use crate::network::Network;
use crate::served::Command;

/// A daemon without an interface, in memory. It ends with the network.
struct Daemon {
    socket: PathBuf,
    state_dir: PathBuf,
    debug: String,
    task: JoinHandle<Result<(), DaemonError>>,
}

impl Daemon {
    fn start(network: &Network, config: &Path) -> Self {
        let folder = network.state_dir("daemon");
        let (socket, state_dir) = (folder.join("run/s.sock"), folder.join("state"));
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let debug = free.local_addr().unwrap().to_string();
        drop(free);
        let options = DaemonOptions {
            state_dir: state_dir.clone(),
            state: StatePlace::Memory,
            config: Some(config.to_owned()),
            debug: Some(debug.clone()),
            socket: socket.clone(),
            port: 0,
            tunnel: Tunnel::Userspace,
            proxies: Proxies::default(),
        };
        let task = network.spawn(run(options));
        Self {
            socket,
            state_dir,
            debug,
            task,
        }
    }

    fn client(&self) -> Client {
        Client::new(&self.socket)
    }

    fn warren(&self, line: &str) -> (u8, String, String) {
        Command::at(&self.socket, line).end()
    }

    fn page(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(&self.debug).unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut page = String::new();
        stream.read_to_string(&mut page).unwrap();
        page
    }
}

#[test]
fn a_file_alone_brings_a_machine_into_the_network_and_nothing_is_kept() {
    let network = Network::start();
    let config = network.state_dir("config.hujson");
    let write = |locked: bool, more: &str| {
        let text = format!(
            "{{\"version\": \"alpha0\", // the only one\n\"ServerURL\": {:?}, \"AuthKey\": {:?}, \
             \"Locked\": {locked}, {more}}}",
            network.url(),
            network.key()
        );
        std::fs::write(&config, text).unwrap();
    };
    write(true, "\"Hostname\": \"first\"");
    let daemon = Daemon::start(&network, &config);
    network.block_on(async {
        let mask = NotifyMask::INITIAL_STATE;
        let mut events = daemon.client().call(WatchBus { mask }).await.unwrap();
        while events.next().await.unwrap().unwrap().state != Some(State::Running) {}
    });

    // Nothing is on disk, and the server knows that the node goes with its process.
    assert!(!daemon.state_dir.exists());
    let nodes = network.admin(&ListNodes { user: None });
    assert_eq!(nodes.len(), 1);
    assert!(nodes[0].ephemeral && nodes[0].name == "first");

    // Only the file sets preferences.
    let (code, _, error) = daemon.warren("set --hostname=second");
    assert!(
        code == 1 && error.contains("locked by the configuration file"),
        "{error}"
    );
    let (code, ..) = daemon.warren("down");
    assert_eq!(code, 1);

    // A file with a mistake changes nothing.
    let hostname = || {
        network
            .block_on(daemon.client().call(GetPrefs))
            .unwrap()
            .prefs
            .hostname
    };
    write(true, "\"Hostnam\": \"second\"");
    let (code, _, error) = daemon.warren("debug reload-config");
    assert!(
        code == 1 && error.contains("\"Hostnam\" is not a known"),
        "{error}"
    );
    assert_eq!(hostname(), "first");

    write(false, "\"Hostname\": \"second\"");
    let (code, out, error) = daemon.warren("debug reload-config");
    assert_eq!((code, out.as_str()), (0, "config reloaded\n"), "{error}");
    assert_eq!(hostname(), "second");
    let (code, _, error) = daemon.warren("set --hostname=third");
    assert_eq!(code, 0, "{error}");
    assert_eq!(hostname(), "third");

    let metrics = daemon.page("/debug/metrics");
    assert!(metrics.starts_with("HTTP/1.1 200 "), "{metrics}");
    assert!(
        metrics.contains("\ntailscaled_advertised_routes 0\n"),
        "{metrics}"
    );
    assert!(daemon.page("/debug/tasks").contains("\"alive_tasks\": "));
    daemon.task.abort();
}

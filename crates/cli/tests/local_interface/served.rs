//! A node that is served on a socket, and ways to send requests to it.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use warren_cli::Io;
use warren_local_api::client::Client;
use warren_local_api::endpoint::{Endpoint, Handler, OutgoingRequest, Permission};
use warren_local_api::endpoints::{GetPrefs, Ping, WatchBus};
use warren_local_api::error::Reply;
use warren_local_api::notify::{Notify, NotifyMask, State};
use warren_local_api::server;
use warren_local_api::types::{PingResult, PingType};
use warren_node::daemon::{DetachedNode, NodeHandle};
use warren_node_types::Prefs;

use crate::network::{runtime, until};

/// A request that changes something.
pub struct Change {
    /// The last part of the path of its endpoint.
    pub endpoint: &'static str,
    /// Its content.
    pub request: OutgoingRequest,
}

/// The node, which keeps the requests that change something.
pub struct Recorder {
    node: NodeHandle,
    changes: Mutex<Vec<Change>>,
}

impl<E: Endpoint> Handler<E> for Recorder
where
    NodeHandle: Handler<E>,
{
    async fn handle(&self, request: E) -> Reply<E::Answer> {
        let is_get = E::METHODS.iter().all(|method| method.as_str() == "GET");
        if matches!(E::PERMISSION, Permission::Write) && !is_get {
            self.changes.lock().unwrap().push(Change {
                endpoint: E::PATH.rsplit('/').next().unwrap(),
                request: request.write(),
            });
        }
        self.node.call(request).await
    }
}

/// The socket of a node in its own folder.
pub struct Served {
    pub socket: PathBuf,
    recorder: Arc<Recorder>,
    node: DetachedNode,
    runtime: Runtime,
    folder: tempfile::TempDir,
}

/// A node without a login.
pub fn served() -> Served {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("run/warren.sock");
    let runtime = runtime();
    let (node, recorder) = runtime.block_on(async {
        let state_dir = folder.path().join("state");
        let node = DetachedNode::start(&state_dir).await.unwrap();
        until(&node.handle(), State::NeedsLogin).await;
        let recorder = Arc::new(Recorder {
            node: node.handle(),
            changes: Mutex::default(),
        });
        let listener = server::bind(&socket).unwrap();
        tokio::spawn(server::serve(listener, Arc::clone(&recorder)));
        (node, recorder)
    });
    Served {
        socket,
        recorder,
        node,
        runtime,
        folder,
    }
}

impl Served {
    /// While `work` runs, the state file cannot be written.
    pub fn with_full_disk(&self, work: impl FnOnce()) {
        let file = self.folder.path().join("state/warren.state");
        let kept = self.folder.path().join("kept.state");
        // A folder in its place: also root cannot replace it by a file.
        std::fs::rename(&file, &kept).unwrap();
        std::fs::create_dir(&file).unwrap();
        work();
        std::fs::remove_dir(&file).unwrap();
        std::fs::rename(&kept, &file).unwrap();
    }

    /// A client of the node.
    pub fn client(&self) -> Client {
        Client::new(&self.socket).impatient()
    }

    /// The preferences of the node.
    pub fn prefs(&self) -> Prefs {
        let prefs = self.node.handle();
        self.runtime.block_on(prefs.call(GetPrefs)).unwrap().prefs
    }

    /// Waits until the node reports a problem with these words.
    pub fn until_problem(&self, words: &str) {
        let mask = NotifyMask::INITIAL_HEALTH;
        self.runtime.block_on(async {
            let mut events = self.node.handle().call(WatchBus { mask }).await.unwrap();
            let has_problem = |notify: Notify| {
                let warnings = notify.health.unwrap_or_default().warnings;
                let mut texts = warnings.values().map(|warning| &warning.text);
                texts.any(|text| text.contains(words))
            };
            while !has_problem(events.next().await.unwrap().unwrap()) {}
        });
    }

    /// Waits until the node with this address answers pings of both kinds. The first
    /// ones are lost while the relay is dialled.
    pub fn until_reachable(&self, address: &str) {
        let ip = address.parse().unwrap();
        block_on(async {
            for kind in [PingType::Tsmp, PingType::Disco] {
                let ping = || Ping { ip, kind, size: 0 };
                let answered = |pong: PingResult| pong.err.is_empty();
                while !self.client().call(ping()).await.is_ok_and(answered) {}
            }
        });
    }

    /// Takes the requests so far that changed something.
    pub fn changes(&self) -> Vec<Change> {
        std::mem::take(&mut *self.recorder.changes.lock().unwrap())
    }

    /// The endpoints of the requests so far that changed something.
    pub fn changed_endpoints(&self) -> Vec<&'static str> {
        self.changes()
            .iter()
            .map(|change| change.endpoint)
            .collect()
    }

    /// Runs a command line; its exit code, output and messages.
    pub fn warren(&self, line: &str) -> (u8, String, String) {
        self.warren_in_background(line).end()
    }

    /// Starts a command line.
    pub fn warren_in_background(&self, line: &str) -> Command {
        Command::at(&self.socket, line)
    }
}

/// The output of a command so far.
#[derive(Clone, Default)]
pub struct Page(Arc<(Mutex<Vec<u8>>, Condvar)>);

impl Page {
    fn text(&self) -> String {
        String::from_utf8(self.0.0.lock().unwrap().clone()).unwrap()
    }

    /// Waits until the page contains this text.
    pub fn until(&self, wanted: &str) {
        let (bytes, changed) = &*self.0;
        let lacks = |bytes: &mut Vec<u8>| !String::from_utf8_lossy(bytes).contains(wanted);
        drop(changed.wait_while(bytes.lock().unwrap(), lacks).unwrap());
    }
}

impl Write for Page {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.0.lock().unwrap().extend_from_slice(bytes);
        self.0.1.notify_all();
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A command line that runs.
pub struct Command {
    pub out: Page,
    pub err: Page,
    thread: JoinHandle<ExitCode>,
}

impl Command {
    /// Starts a command line for the daemon at this socket.
    pub fn at(socket: &std::path::Path, line: &str) -> Self {
        let mut args = vec!["warren".into(), "--socket".into(), socket.into()];
        args.extend(line.split_whitespace().map(Into::into));
        Self::start(args)
    }

    fn start(args: Vec<std::ffi::OsString>) -> Self {
        let (out, err) = (Page::default(), Page::default());
        let io = Io {
            out: Box::new(out.clone()),
            err: Box::new(err.clone()),
        };
        let run = move || warren_cli::run_with(args, |_| ExitCode::from(77), io);
        let thread = std::thread::spawn(run);
        Self { out, err, thread }
    }

    /// Waits for its end; its exit code, output and messages.
    pub fn end(self) -> (u8, String, String) {
        let code = self.thread.join().unwrap();
        let code = [0, 1, 2, 77]
            .into_iter()
            .find(|number| format!("{:?}", ExitCode::from(*number)) == format!("{code:?}"));
        (code.unwrap(), self.out.text(), self.err.text())
    }
}

pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

/// Sends raw bytes and reads the whole answer.
pub fn raw(served: &Served, request: &str) -> String {
    block_on(async {
        let mut stream = UnixStream::connect(&served.socket).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    })
}

pub fn get(served: &Served, path: &str, headers: &str) -> String {
    raw(
        served,
        &format!("GET {path} HTTP/1.1\r\nConnection: close\r\n{headers}\r\n"),
    )
}

pub const HOST: &str = "Host: local-tailscaled.sock\r\n";

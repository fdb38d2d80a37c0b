//! A socket that a node in memory serves, and ways to send requests to it.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use warren_cli::Io;
use warren_local_api::client::Client;
use warren_local_api::notify::State;
use warren_local_api::server;

use crate::memory::Memory;

/// A daemon's socket in its own folder, served by a thread of its own.
pub struct Served {
    pub socket: PathBuf,
    pub backend: Arc<Memory>,
    _runtime: tokio::runtime::Runtime,
    _folder: tempfile::TempDir,
}

/// A daemon without a login.
pub fn served() -> Served {
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
    /// A client of the daemon.
    pub fn client(&self) -> Client {
        Client::new(&self.socket).impatient()
    }

    /// Runs a command line; its exit code, output and messages.
    pub fn warren(&self, line: &str) -> (u8, String, String) {
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
    let code = warren_cli::run_with(args, |_| ExitCode::from(77), io);
    let code = [0, 1, 2, 77]
        .into_iter()
        .find(|number| format!("{:?}", ExitCode::from(*number)) == format!("{code:?}"));
    (code.unwrap(), out.text(), err.text())
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

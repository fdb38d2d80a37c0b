//! Both ends of the administrator's socket.

use std::convert::Infallible;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json as value};
use tokio::net::{UnixListener, UnixStream};

use crate::admin::Command;
use crate::coordinator::CoordinatorHandle;
use crate::http::{ReplyBody, json, read_body};
use crate::state_dir::socket_path;

/// The longest command, in bytes. A policy of a large company has some hundred
/// kilobytes.
const MAX_COMMAND: usize = 16 << 20;
const PATH: &str = "/v1/command";

/// Sockets have names of at most 107 bytes; through a handle of the folder the
/// name is short wherever the folder is.
fn short_path(path: &Path) -> io::Result<(Option<std::fs::File>, PathBuf)> {
    if path.as_os_str().len() < 100 {
        return Ok((None, path.to_owned()));
    }
    let folder = std::fs::File::open(path.parent().unwrap_or(Path::new(".")))?;
    let name = path.file_name().unwrap_or_default();
    let short = Path::new("/proc/self/fd")
        .join(folder.as_raw_fd().to_string())
        .join(name);
    Ok((Some(folder), short))
}

/// The listening end. Dropping it takes the socket away.
#[derive(Debug)]
pub struct AdminSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl AdminSocket {
    /// Opens the socket of a state folder. A socket that a killed server left is
    /// replaced: the folder's lock says that no server uses it.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn open(state_dir: &Path) -> io::Result<Self> {
        let path = socket_path(state_dir);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let (_folder, short) = short_path(&path)?;
        // Only the owner may enter the folder, so no other user can open the
        // socket before its mode is set.
        let listener = UnixListener::bind(short)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        Ok(Self { listener, path })
    }
}

impl Drop for AdminSocket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Answers the administrator until the task is dropped.
pub async fn serve(socket: AdminSocket, coordinator: Arc<CoordinatorHandle>) {
    loop {
        let stream = match socket.listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!("cannot accept an administrator's connection: {error}");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            }
        };
        let coordinator = coordinator.clone();
        let caller = caller(&stream);
        tokio::spawn(async move {
            let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                let (coordinator, caller) = (coordinator.clone(), caller.clone());
                async move { Ok::<_, Infallible>(answer(&coordinator, &caller, request).await) }
            });
            let served = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
            if let Err(error) = served {
                tracing::debug!("an administrator's connection ended: {error}");
            }
        });
    }
}

/// The local user at the other end, by name or number, for the history.
fn caller(stream: &UnixStream) -> String {
    let Ok(uid) = stream.peer_cred().map(|peer| peer.uid()) else {
        return "unknown".to_owned();
    };
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let found: u32 = fields.nth(1)?.parse().ok()?;
        (found == uid).then_some(name)
    });
    name.map_or_else(|| format!("uid {uid}"), str::to_owned)
}

async fn answer(
    coordinator: &Arc<CoordinatorHandle>,
    caller: &str,
    request: Request<Incoming>,
) -> Response<ReplyBody> {
    if request.method() != Method::POST || request.uri().path() != PATH {
        let error = format!("POST a command to {PATH}");
        return json(StatusCode::NOT_FOUND, &value!({ "error": error }));
    }
    let body = match read_body(request.into_body(), MAX_COMMAND).await {
        Ok(body) => body,
        Err(refusal) => return *refusal,
    };
    let command: Command = match serde_json::from_slice(&body) {
        Ok(command) => command,
        Err(error) => {
            let error = format!("the request is not a valid command: {error}");
            return json(StatusCode::BAD_REQUEST, &value!({ "error": error }));
        }
    };
    match command.run(coordinator, caller).await {
        Ok(answer) => json(StatusCode::OK, &answer),
        Err(refusal) => json(StatusCode::CONFLICT, &value!({ "error": refusal.0 })),
    }
}

/// A command was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// No server listens on the socket.
    #[error(
        "no warren-control serves the state in {} ({source}); start it with `warren-control serve --state-dir {}`, or name the right folder with --state-dir",
        state_dir.display(),
        state_dir.display()
    )]
    NotRunning {
        /// The state folder.
        state_dir: PathBuf,
        /// Why the socket could not be opened.
        source: io::Error,
    },
    /// The connection failed.
    #[error("the server did not answer: {0}")]
    Connection(String),
    /// The server refused, with this reason.
    #[error("{0}")]
    Refused(String),
}

/// Puts a command to the server of a state folder.
///
/// # Errors
/// See [`AskError`].
pub async fn ask(state_dir: &Path, command: &Command) -> Result<Value, AskError> {
    let not_running = |source| AskError::NotRunning {
        state_dir: state_dir.to_owned(),
        source,
    };
    let (_folder, path) = short_path(&socket_path(state_dir)).map_err(not_running)?;
    let stream = UnixStream::connect(path).await.map_err(not_running)?;
    let failed = |error: &dyn std::fmt::Display| AskError::Connection(error.to_string());
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|e| failed(&e))?;
    tokio::spawn(connection);
    let body = serde_json::to_vec(command).map_err(|e| failed(&e))?;
    let request = Request::post(PATH)
        .header(http::header::HOST, "localhost")
        .body(Full::new(Bytes::from(body)))
        .map_err(|e| failed(&e))?;
    let response = sender.send_request(request).await.map_err(|e| failed(&e))?;
    let status = response.status();
    let body = response
        .into_body()
        .collect()
        .await
        .map_err(|e| failed(&e))?
        .to_bytes();
    let answer: Value = serde_json::from_slice(&body)
        .map_err(|_| AskError::Connection(String::from_utf8_lossy(&body).into_owned()))?;
    if status.is_success() {
        return Ok(answer);
    }
    let reason = answer
        .get("error")
        .and_then(Value::as_str)
        .unwrap_or("no reason given");
    Err(AskError::Refused(reason.to_owned()))
}

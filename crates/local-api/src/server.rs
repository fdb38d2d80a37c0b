//! The listening end: sockets, connections, and the checks that come before
//! any request is looked at.
//!
//! A connection is trusted as much as the user behind it. A request that was
//! caused by a web page (it has `Origin` or `Referer`, or another `Host`) is
//! refused, whoever sends it.
//!
//! Everybody on the machine may connect, so connections are limited, and a part
//! of them is kept for root and the daemon's own user: nobody else can lock the
//! administrator out.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;

use crate::backend::Backend;
use crate::permission::{self, Access};
use crate::routes;

/// Connections at a time.
const MAX_CONNECTIONS: usize = 256;
/// How many of them are for root and the daemon's own user alone.
const KEPT_CONNECTIONS: usize = 32;
/// How long a program may take for the head of a request, the first one and
/// each one that follows.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Refusals at a time, and how long one may take. Beyond, connections are closed
/// without a word.
const MAX_REFUSALS: usize = 32;
const REFUSAL_TIME: Duration = Duration::from_secs(1);
/// The answer to one connection too many.
const FULL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Type: text/plain\r\nContent-Length: 44\r\n\r\ntoo many local connections; try again later\n";

/// Opens the socket: makes its folder, removes what a dead daemon left, and
/// lets everybody connect (what they may do is another question).
///
/// # Errors
/// When something answers at `path` already, when something that is no socket
/// is in the way, or when the file system refuses.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    if let Some(parent) = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
    {
        fs::create_dir_all(parent)?;
    }
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                format!("{} is in the way and is not a socket", path.display()),
            ));
        }
        Ok(_) => {
            if std::os::unix::net::UnixStream::connect(path).is_ok() {
                return Err(io::Error::new(
                    io::ErrorKind::AddrInUse,
                    format!("another daemon answers at {}", path.display()),
                ));
            }
            fs::remove_file(path)?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o666))?;
    Ok(listener)
}

/// Serves until the future is dropped, which also ends all connections.
pub async fn serve<B: Backend>(listener: UnixListener, backend: Arc<B>) {
    let mut connections = JoinSet::new();
    let mut refusals = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let limit = match is_administrator(&stream) {
                        true => MAX_CONNECTIONS,
                        false => MAX_CONNECTIONS - KEPT_CONNECTIONS,
                    };
                    if connections.len() < limit {
                        connections.spawn(serve_connection(stream, Arc::clone(&backend)));
                    } else if refusals.len() < MAX_REFUSALS {
                        refusals.spawn(refuse(stream));
                    }
                }
                Err(error) => {
                    // Out of file descriptors, most likely: others will be
                    // closed soon, and a busy loop would help nobody.
                    tracing::warn!(%error, "the local socket accepts no connection");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
            },
            Some(_) = connections.join_next() => {}
            Some(_) = refusals.join_next() => {}
        }
    }
}

/// Says that there is no room. What the other end has sent is read first: a
/// socket that is closed over unread bytes takes the answer back.
async fn refuse(mut stream: UnixStream) {
    let mut unread = [0; 4096];
    let polite = async {
        let _request = stream.read(&mut unread).await?;
        stream.write_all(FULL).await?;
        stream.shutdown().await
    };
    // Nobody is owed a refusal.
    drop(tokio::time::timeout(REFUSAL_TIME, polite).await);
}

/// Whether the other end is root or the daemon's own user.
fn is_administrator(stream: &UnixStream) -> bool {
    let uid = stream.peer_cred().ok().map(|credentials| credentials.uid());
    uid.is_some_and(|uid| uid == 0 || uid == rustix::process::geteuid().as_raw())
}

async fn serve_connection<B: Backend>(stream: UnixStream, backend: Arc<B>) {
    let peer = stream.peer_cred().ok().map(|credentials| credentials.uid());
    let service = service_fn(move |request| {
        let backend = Arc::clone(&backend);
        async move {
            let access = access_of(peer, &*backend).await;
            Ok::<_, std::convert::Infallible>(routes::respond(&*backend, access, request).await)
        }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .title_case_headers(true)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a local connection ended early");
    }
}

/// What the peer may do right now; the operator can change at any time.
async fn access_of<B: Backend>(peer: Option<u32>, backend: &B) -> Access {
    let daemon = rustix::process::geteuid().as_raw();
    let access = permission::access(peer, daemon, None);
    if access.write {
        return access;
    }
    let operator = match backend.prefs().await {
        Ok(prefs) if !prefs.operator_user.is_empty() => {
            let passwd = tokio::fs::read_to_string("/etc/passwd")
                .await
                .unwrap_or_default();
            permission::user_id(&prefs.operator_user, &passwd)
        }
        _ => None,
    };
    permission::access(peer, daemon, operator)
}

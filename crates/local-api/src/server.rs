//! The listening end: the socket and its connections.
//!
//! A connection is trusted as much as the user at its other end. The router
//! refuses requests that were caused by a web page (they have `Origin` or
//! `Referer`, or another `Host`), for all users.
//!
//! All users of the machine may connect, so connections are limited for each of them:
//! see the module `places`.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tracing::Instrument as _;

use crate::caller::Caller;
use crate::endpoints::NodeApi;
use crate::places::{Place, Places, Rank};
use crate::router::{is_operator, local_router};

/// Callers at a time of which is looked up whether they are the operator.
const MAX_LOOKUPS: usize = 16;
/// The time in which a program must send the head of a request, the first one and
/// each one that follows.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Refusals at a time. Beyond that, connections are closed without an answer.
const MAX_REFUSALS: usize = 32;
/// The time that one refusal may take.
const REFUSAL_TIME: Duration = Duration::from_secs(1);
/// The answer when there are too many connections.
const FULL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Type: text/plain\r\nContent-Length: 44\r\n\r\ntoo many local connections; try again later\n";

/// Opens the socket: makes its folder, removes the socket that a dead daemon left,
/// and lets all users connect. Their rights are decided for each request.
///
/// # Errors
/// A daemon answers at `path` already, another kind of file is in the way, or the
/// file system refuses.
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
pub async fn serve<T: NodeApi>(listener: UnixListener, node: Arc<T>) {
    let router = local_router(Arc::clone(&node));
    let places = Places::default();
    let mut connections = JoinSet::new();
    let mut lookups = JoinSet::new();
    let mut refusals = JoinSet::new();
    let mut last_connection = 0_u64;
    loop {
        // The rank is `None` before a user other than root was looked up.
        let (stream, caller, rank) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let caller = caller(&stream);
                    let daemon = rustix::process::geteuid().as_raw();
                    let is_administrator = caller.is_administrator(daemon);
                    (stream, caller, is_administrator.then_some(Rank::Administrator))
                }
                Err(error) => {
                    // Most likely there are no file descriptors left. Others
                    // will be closed soon; a busy loop would not help.
                    tracing::warn!(%error, "the local socket accepts no connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
            Some(found) = lookups.join_next() => match found {
                Ok(found) => found,
                Err(_) => continue,
            },
            Some(_) = connections.join_next() => continue,
            Some(_) = refusals.join_next() => continue,
        };
        if let Some(place) = places.take(caller, rank.unwrap_or(Rank::Other)) {
            last_connection += 1;
            let span = tracing::info_span!("local", connection = last_connection);
            let serving = serve_connection(stream, caller, place, router.clone());
            connections.spawn(serving.instrument(span));
        } else if rank.is_none()
            && places.has_room(caller, Rank::Operator)
            && lookups.len() < MAX_LOOKUPS
        {
            let node = Arc::clone(&node);
            lookups.spawn(async move {
                let rank = match is_operator(&*node, caller).await {
                    true => Rank::Operator,
                    false => Rank::Other,
                };
                (stream, caller, Some(rank))
            });
        } else if refusals.len() < MAX_REFUSALS {
            refusals.spawn(refuse(stream));
        }
    }
}

/// Answers that there are too many connections. The request is read first: a
/// socket that is closed with unread bytes drops the answer.
async fn refuse(mut stream: UnixStream) {
    let mut unread = [0; 4096];
    let polite = async {
        let _request = stream.read(&mut unread).await?;
        stream.write_all(FULL).await?;
        stream.shutdown().await
    };
    // A refusal that does not arrive changes nothing.
    drop(tokio::time::timeout(REFUSAL_TIME, polite).await);
}

/// The user at the other end, as the kernel reports it.
fn caller(stream: &UnixStream) -> Caller {
    match stream.peer_cred() {
        Ok(credentials) => Caller::LocalUser {
            uid: credentials.uid(),
        },
        Err(_) => Caller::UnknownUser,
    }
}

async fn serve_connection(stream: UnixStream, caller: Caller, place: Place, router: Router) {
    let place = Arc::new(place);
    let router = router.layer(Extension(caller)).layer(Extension(place));
    let service = TowerToHyperService::new(router);
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .title_case_headers(true)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a local connection ended early");
    }
}

//! The listening end: the socket in the state folder, and its connections.

use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::net::{UnixListener, UnixStream};

use crate::caller::Caller;

/// The socket of the server with this state folder.
pub fn path_in(state_dir: &Path) -> PathBuf {
    state_dir.join("control.sock")
}

/// A path that fits into a socket address, which holds at most 107 bytes: through a
/// handle of the folder the name is short wherever the folder is. The path is valid
/// as long as the handle.
pub(crate) fn short_path(path: &Path) -> io::Result<(Option<std::fs::File>, PathBuf)> {
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

/// The listening socket. Dropping it removes its file.
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
        let path = path_in(state_dir);
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

    /// Serves the administrator until the future is dropped.
    pub async fn serve(self, router: Router) {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => drop(tokio::spawn(connection(stream, router.clone()))),
                Err(error) => {
                    tracing::warn!("cannot accept an administrator's connection: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

impl Drop for AdminSocket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

async fn connection(stream: UnixStream, router: Router) {
    let caller = Caller::at(&stream);
    let service = TowerToHyperService::new(router.layer(Extension(caller)));
    let served = http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!("an administrator's connection ended: {error}");
    }
}

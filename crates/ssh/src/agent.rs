//! The socket through which programs of a session reach the agent of the client.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;

use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid};
use tokio::net::{UnixListener, UnixStream};

use crate::accounts::User;

/// The name of the socket in its folder.
const NAME: &str = "agent";

/// The socket; its folder goes when it is dropped.
pub(crate) struct AgentSocket {
    listener: UnixListener,
    folder: PathBuf,
    /// The folder itself, whatever its path leads to later.
    opened: OwnedFd,
    uid: u32,
}

impl AgentSocket {
    /// Makes a socket that only `user` reaches. Its folder gets a random name, is made by
    /// this process alone, and is given to the user when the socket is in it: nothing that
    /// others put into the folder of temporary files is followed.
    ///
    /// # Errors
    /// When the file system refuses.
    pub(crate) fn make(user: &User) -> io::Result<Self> {
        let mut random = [0; 10];
        getrandom::fill(&mut random).map_err(io::Error::other)?;
        let name = format!("warren-ssh-{}", data_encoding::HEXLOWER.encode(&random));
        let folder = std::env::temp_dir().join(name);
        std::fs::DirBuilder::new().mode(0o700).create(&folder)?;
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = rustix::fs::open(&folder, flags, Mode::empty())?;
        let socket = Self {
            listener: UnixListener::bind(folder.join(NAME))?,
            folder,
            opened,
            uid: user.uid,
        };
        if rustix::process::geteuid().is_root() {
            let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
            let (owner, group) = (Some(uid), Some(gid));
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            rustix::fs::chownat(&socket.opened, NAME, owner, group, flags)?;
            rustix::fs::fchown(&socket.opened, owner, group)?;
        }
        Ok(socket)
    }

    /// The path of the socket, for `SSH_AUTH_SOCK`.
    pub(crate) fn path(&self) -> PathBuf {
        self.folder.join(NAME)
    }

    /// The next program of the user that connects.
    pub(crate) async fn accept(&self) -> io::Result<UnixStream> {
        loop {
            let (stream, _) = self.listener.accept().await?;
            let uid = stream.peer_cred()?.uid();
            if uid == self.uid || uid == 0 {
                return Ok(stream);
            }
        }
    }
}

impl Drop for AgentSocket {
    fn drop(&mut self) {
        // Gone already is as good. The user may have put more files into it: those stay.
        let _ = rustix::fs::unlinkat(&self.opened, NAME, AtFlags::empty());
        // An empty folder of this name, and nothing else.
        let _ = std::fs::remove_dir(&self.folder);
    }
}

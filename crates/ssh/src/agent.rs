//! The socket through which programs of a session reach the agent of the client.

use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;

use rustix::fs::{Gid, Uid};
use tokio::net::{UnixListener, UnixStream};

use crate::accounts::User;

/// The socket; its folder goes when it is dropped.
pub(crate) struct AgentSocket {
    listener: UnixListener,
    folder: PathBuf,
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
        let socket = Self {
            listener: UnixListener::bind(folder.join("agent"))?,
            folder,
            uid: user.uid,
        };
        if rustix::process::geteuid().is_root() {
            let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
            for path in [socket.path(), socket.folder.clone()] {
                rustix::fs::chown(&path, Some(uid), Some(gid))?;
            }
        }
        Ok(socket)
    }

    /// The path of the socket, for `SSH_AUTH_SOCK`.
    pub(crate) fn path(&self) -> PathBuf {
        self.folder.join("agent")
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
        let _ = std::fs::remove_file(self.path());
        let _ = std::fs::remove_dir(&self.folder);
    }
}

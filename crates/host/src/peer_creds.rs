//! The user at the other end of a Unix socket.
//!
//! The local socket is open to every user of the machine; the rights of a request
//! depend on its user. The kernel reports the user as of the time when the connection
//! was made, so the client cannot forge it.

use std::io;
use std::os::fd::AsFd;

/// The process at the other end of a connected Unix socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerCredentials {
    /// User id; 0 is root.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Process id, where the process lives in a namespace we can see.
    pub pid: Option<u32>,
}

impl PeerCredentials {
    /// Reads the credentials of the peer of `socket`.
    pub fn of(socket: &impl AsFd) -> io::Result<PeerCredentials> {
        let credentials = rustix::net::sockopt::socket_peercred(socket)?;
        Ok(PeerCredentials {
            uid: credentials.uid.as_raw(),
            gid: credentials.gid.as_raw(),
            pid: u32::try_from(credentials.pid.as_raw_nonzero().get()).ok(),
        })
    }

    /// Whether the peer is root, or the user this process runs as.
    pub fn is_root_or_self(&self) -> bool {
        self.uid == 0 || self.uid == rustix::process::geteuid().as_raw()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_other_end_of_a_pair_is_this_process() {
        let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        let peer = PeerCredentials::of(&one).unwrap();
        assert_eq!(peer.pid, Some(std::process::id()));
        assert_eq!(peer.uid, rustix::process::geteuid().as_raw());
        assert!(peer.is_root_or_self());
    }

    #[test]
    fn another_user_is_neither_root_nor_self() {
        let other = PeerCredentials {
            uid: rustix::process::geteuid().as_raw() + 1,
            gid: 0,
            pid: None,
        };
        assert!(!other.is_root_or_self());
    }
}

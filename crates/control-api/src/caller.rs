//! The callers of the administration API, and what they may do.

use std::fmt;

use tokio::net::UnixStream;

/// The permission that an endpoint asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Permission {
    /// To look at users, nodes, keys and policies.
    Read,
    /// To change them.
    Write,
}

/// The person or program that made a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// A program on the server's machine that could open the socket.
    LocalUser {
        /// The user id that the kernel reports for the other end of the socket.
        uid: u32,
        /// The login name of the user, if it has one.
        name: Option<String>,
    },
    /// A program on the server's machine whose user the kernel did not report.
    UnknownUser,
}

impl Caller {
    /// The user at the other end of a connection.
    pub fn at(stream: &UnixStream) -> Self {
        let Ok(peer) = stream.peer_cred() else {
            return Self::UnknownUser;
        };
        let uid = peer.uid();
        let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        Self::LocalUser {
            uid,
            name: user_name(&users, uid),
        }
    }

    /// Whether the caller has the permission. Only the server's own user and root can
    /// open the socket, and they may do everything.
    pub fn has(&self, permission: Permission) -> bool {
        match (self, permission) {
            (Self::LocalUser { .. } | Self::UnknownUser, Permission::Read | Permission::Write) => {
                true
            }
        }
    }
}

/// The caller as the history of policies names it.
impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LocalUser {
                name: Some(name), ..
            } => f.write_str(name),
            Self::LocalUser { uid, name: None } => write!(f, "uid {uid}"),
            Self::UnknownUser => f.write_str("unknown"),
        }
    }
}

/// The login name of a user id in the text of `/etc/passwd`.
fn user_name(passwd: &str, uid: u32) -> Option<String> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let found: u32 = fields.nth(1)?.parse().ok()?;
        (found == uid).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_are_named_by_login_name_or_number() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbroken\nann:x:1000:1000::/home/ann:/bin/sh\n";
        for (uid, shown) in [(0, "root"), (1000, "ann"), (7, "uid 7")] {
            let name = user_name(passwd, uid);
            assert_eq!(Caller::LocalUser { uid, name }.to_string(), shown);
        }
        assert_eq!(Caller::UnknownUser.to_string(), "unknown");
    }
}

//! The callers of the local interface, and what they may do.
//!
//! The kernel reports the user at the other end of a socket. All users that can
//! open the socket may look. Changing something takes root, the user that the
//! daemon itself runs as (unless that is root), or the operator whom root has
//! named (preference `OperatorUser`).

use crate::endpoint::Permission;

/// The program or server that made a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Caller {
    /// A program on this machine, of the user with this id.
    LocalUser {
        /// The user id.
        uid: u32,
    },
    /// A program on this machine whose user the kernel did not report.
    UnknownUser,
    /// The coordination server, through the map stream (c2n).
    CoordinationServer,
}

impl Caller {
    /// The permissions of the caller. The daemon runs as `daemon`, and `operator` is the user id of the operator, if one is named and exists.
    pub fn access(self, daemon: u32, operator: Option<u32>) -> Access {
        let may_write = match self {
            Self::LocalUser { uid } => {
                uid == 0 || (daemon != 0 && uid == daemon) || operator == Some(uid)
            }
            // Its table has only what it may use.
            Self::CoordinationServer => true,
            Self::UnknownUser => false,
        };
        if may_write {
            Access::FULL
        } else {
            Access::READ_ONLY
        }
    }

    /// Whether the caller is root or the daemon's own user.
    pub fn is_administrator(self, daemon: u32) -> bool {
        matches!(self, Self::LocalUser { uid } if uid == 0 || uid == daemon)
    }
}

/// The permissions of a caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// Look at the node.
    pub read: bool,
    /// Change the node.
    pub write: bool,
}

impl Access {
    /// Only look.
    pub const READ_ONLY: Self = Self {
        read: true,
        write: false,
    };
    /// Everything.
    pub const FULL: Self = Self {
        read: true,
        write: true,
    };

    /// Whether this includes the permission.
    pub fn includes(self, permission: Permission) -> bool {
        match permission {
            Permission::Nothing => true,
            Permission::Read => self.read,
            Permission::Write => self.write,
        }
    }
}

/// The user id of a user, given by name or number.
///
/// `passwd` is the local user database in the format of `/etc/passwd`. Users that
/// only a directory service knows must be given by number.
pub fn user_id(user: &str, passwd: &str) -> Option<u32> {
    if user.is_empty() {
        return None;
    }
    let by_name = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(user))
            .then(|| fields.nth(1)?.parse().ok())
            .flatten()
    });
    by_name.or_else(|| user.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_the_daemons_user_and_the_operator_may_write() {
        let table = [
            (Some(0), 0, None, true),
            (Some(1000), 0, None, false),
            (Some(1000), 0, Some(1000), true),
            (Some(1001), 0, Some(1000), false),
            (Some(1000), 1000, None, true),
            (Some(1001), 1000, None, false),
            (None, 0, None, false),
            (None, 1000, Some(1000), false),
        ];
        for (user, daemon, operator, write) in table {
            let caller = user.map_or(Caller::UnknownUser, |uid| Caller::LocalUser { uid });
            let access = caller.access(daemon, operator);
            assert!(access.read);
            assert_eq!(access.write, write, "{user:?} {daemon} {operator:?}");
        }
    }

    #[test]
    fn users_are_found_by_name_then_by_number() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\nbroken\n1000:x:7:7::/:/bin/sh\n";
        assert_eq!(user_id("ann", passwd), Some(1000));
        assert_eq!(
            user_id("1000", passwd),
            Some(7),
            "a name wins over a number"
        );
        assert_eq!(user_id("1234", passwd), Some(1234));
        assert_eq!(user_id("bob", passwd), None);
        assert_eq!(user_id("", passwd), None);
        assert_eq!(user_id("broken", passwd), None);
    }
}

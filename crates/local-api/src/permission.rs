//! Who may do what, decided from the user id that the kernel reports for the
//! other end of the socket.
//!
//! Everybody who can open the socket may look. Changing something takes root,
//! the user the daemon itself runs as (unless that is root), or the operator
//! whom root has named (preference `OperatorUser`).

/// What the other end of a connection may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// Look at things.
    pub read: bool,
    /// Change things.
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
}

/// Decides for one peer.
///
/// `peer` is its user id, if known; `daemon` the daemon's; `operator` the user
/// id of the operator, if one is named and exists.
pub fn access(peer: Option<u32>, daemon: u32, operator: Option<u32>) -> Access {
    let Some(peer) = peer else {
        return Access::READ_ONLY;
    };
    let may_write = peer == 0 || (daemon != 0 && peer == daemon) || operator == Some(peer);
    if may_write {
        Access::FULL
    } else {
        Access::READ_ONLY
    }
}

/// The user id of a user, given by name or number.
///
/// Reads the local user database (`/etc/passwd` format in `passwd`); users that
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
        for (peer, daemon, operator, write) in table {
            let access = access(peer, daemon, operator);
            assert!(access.read);
            assert_eq!(access.write, write, "{peer:?} {daemon} {operator:?}");
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

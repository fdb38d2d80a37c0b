//! How many files, and so connections, this process may have open.
//!
//! Shells and service managers start programs with a low soft limit (often
//! 1,024), because old programs use `select`. Servers raise it to the hard limit
//! themselves.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the soft limit of open files to the hard limit, and returns the number
/// of files that the process may have open from now on. If that is below
/// `needed`, the number that the configuration promises, a warning is logged.
pub fn raise_file_limit(needed: u64) -> u64 {
    let before = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: before.maximum,
        maximum: before.maximum,
    };
    let limit = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => before.maximum,
        Err(error) => {
            tracing::warn!("cannot raise the limit of open files: {error}");
            before.current
        }
    };
    // No limit at all is `None`.
    let limit = limit.unwrap_or(u64::MAX);
    if limit < needed {
        tracing::warn!(
            "the system allows {limit} open files, but the configured number of connections needs {needed}; raise the hard limit (LimitNOFILE= in a systemd unit, `ulimit -Hn` in a shell)"
        );
    }
    limit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        let limit = raise_file_limit(0);
        let after = getrlimit(Resource::Nofile);
        assert_eq!(after.current, after.maximum);
        assert_eq!(after.current.unwrap_or(u64::MAX), limit);
    }
}

//! One process per state folder.
//!
//! Two daemons on one state would overwrite each other's keys. The first takes
//! a lock file and keeps it open; the kernel drops the lock with the process,
//! however it ends, so no stale lock is left behind and nothing needs to be
//! cleaned up by hand. The file carries the process id for the error message
//! of the second, and is never deleted: deleting would let a third process
//! lock a new file of the same name while the second still holds the old one.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use rustix::io::Errno;

/// Why a lock was not taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process holds it: stop that one, or use another folder.
    #[error(
        "already running{}: {} is locked; stop that process first, or use another state folder",
        .pid.map(|pid| format!(" as process {pid}")).unwrap_or_default(), .path.display()
    )]
    AlreadyRunning {
        /// The lock file.
        path: PathBuf,
        /// The holder, if it has written its id.
        pid: Option<u32>,
    },
    /// The file cannot be opened, locked or written.
    #[error("cannot lock {}: {source}", .path.display())]
    Io {
        /// The lock file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
}

/// A held lock. It ends when this value is dropped or the process ends.
#[derive(Debug)]
pub struct LockFile {
    _file: File,
}

impl LockFile {
    /// Takes the lock at `path` without waiting; creates the file (mode 0600)
    /// where it is missing.
    pub fn acquire(path: &Path) -> Result<LockFile, LockError> {
        let io_error = |source: io::Error| LockError::Io {
            path: path.to_owned(),
            source,
        };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(io_error)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let mut text = String::new();
                let _ = (&mut file).take(32).read_to_string(&mut text);
                return Err(LockError::AlreadyRunning {
                    path: path.to_owned(),
                    pid: text.trim().parse().ok(),
                });
            }
            Err(error) => return Err(io_error(error.into())),
        }
        // The id is a help for people; a full disk must not stop the daemon.
        let _ = file
            .set_len(0)
            .and_then(|()| file.seek(SeekFrom::Start(0)))
            .and_then(|_| writeln!(file, "{}", std::process::id()));
        Ok(LockFile { _file: file })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_second_is_told_who_holds_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("daemon.lock");
        let held = LockFile::acquire(&path).unwrap();
        let error = LockFile::acquire(&path).unwrap_err();
        assert!(
            matches!(&error, LockError::AlreadyRunning { pid, .. } if *pid == Some(std::process::id()))
        );
        let text = error.to_string();
        assert!(
            text.contains("already running") && text.contains("daemon.lock"),
            "{text}"
        );
        drop(held);
        LockFile::acquire(&path).unwrap();
    }

    #[test]
    fn a_missing_folder_is_named() {
        let error = LockFile::acquire(Path::new("/nonexistent-folder/daemon.lock")).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("/nonexistent-folder/daemon.lock")
        );
    }
}

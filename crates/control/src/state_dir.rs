//! The state folder: made on first use, readable by its owner only, and in use
//! by one server at a time.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use warren_keys::{Entropy, MachineSecret};
use zeroize::Zeroizing;

/// The file of the database.
pub(crate) const DATABASE: &str = "control.db";
/// The file that the server holds locked.
pub(crate) const LOCK: &str = "lock";

/// How long to wait for the lock of a server that may be going down.
const LOCK_TIMEOUT: Duration = Duration::from_secs(1);

/// The state folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateDirError {
    /// A file operation failed.
    #[error("{what} {}: {source}{}", path.display(), hint(source))]
    Io {
        /// The operation, as "cannot create".
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// The folder is open to other users, and was not made for a server.
    #[error(
        "the folder {} is open to other users and holds other files, so it is not closed to them; choose an empty folder with --state-dir, or close it with chmod 700",
        .0.display()
    )]
    Foreign(PathBuf),
    /// Another server holds the lock.
    #[error(
        "another warren-control already serves the state in {}; stop it, or give this one its own with --state-dir",
        .0.display()
    )]
    InUse(PathBuf),
    /// The key file holds something else.
    #[error(
        "{} is not a server key ({reason}); restore it from a backup. Deleting it makes a new key, and every node must then be restarted",
        path.display()
    )]
    Key {
        /// The key file.
        path: PathBuf,
        /// The error in its content.
        reason: String,
    },
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "; choose a folder you may write to with --state-dir",
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "; free some space there",
        io::ErrorKind::ReadOnlyFilesystem => "; choose another folder with --state-dir",
        _ => "",
    }
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StateDirError {
    let path = path.to_owned();
    move |source| StateDirError::Io { what, path, source }
}

/// The folder, locked for as long as this lives.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    _lock: File,
}

impl StateDir {
    /// Makes the folder if it is not there, closes it to other users (mode 0700) and
    /// takes its lock.
    ///
    /// # Errors
    /// It cannot be made, closed or written to, or another server uses it.
    pub fn open(path: &Path) -> Result<Self, StateDirError> {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder
            .create(path)
            .map_err(io_error("cannot create the state folder", path))?;
        close_to_others(path)?;
        let lock_path = path.join(LOCK);
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&lock_path)
            .map_err(io_error("cannot open", &lock_path))?;
        // A server that was killed just now holds its lock until the kernel has
        // taken it down.
        let deadline = Instant::now() + LOCK_TIMEOUT;
        loop {
            match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {
                    return Ok(Self {
                        path: path.to_owned(),
                        _lock: lock,
                    });
                }
                Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    return Err(StateDirError::InUse(path.to_owned()));
                }
                Err(errno) => return Err(io_error("cannot lock", &lock_path)(errno.into())),
            }
        }
    }

    /// Whether a server has kept its state there before.
    pub fn was_used(path: &Path) -> bool {
        path.join(DATABASE).exists()
    }

    /// The path of the folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The database file.
    pub fn database(&self) -> PathBuf {
        self.path.join(DATABASE)
    }

    /// The server's Noise key, and whether it was made just now.
    ///
    /// # Errors
    /// It cannot be read or written, or is not a key.
    pub fn noise_key(
        &self,
        entropy: &mut dyn Entropy,
    ) -> Result<(MachineSecret, bool), StateDirError> {
        let path = self.path.join("noise.key");
        match self.read_secret(&path)? {
            Some(text) => {
                let key = text.trim().parse().map_err(|error| StateDirError::Key {
                    path,
                    reason: format!("{error}"),
                })?;
                Ok((key, false))
            }
            None => {
                let key = MachineSecret::generate(entropy);
                write_private(&path, format!("{}\n", *key.to_text()).as_bytes())?;
                Ok((key, true))
            }
        }
    }

    fn first_key_path(&self) -> PathBuf {
        self.path.join("first.key")
    }

    /// The pre-auth key that the last start printed, if it is kept.
    ///
    /// # Errors
    /// It is there and cannot be read.
    pub fn first_key(&self) -> Result<Option<Zeroizing<String>>, StateDirError> {
        let text = self.read_secret(&self.first_key_path())?;
        Ok(text.map(|text| Zeroizing::new(text.trim().to_owned())))
    }

    /// Keeps the pre-auth key that is printed, so that the next start need not
    /// make another one.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn keep_first_key(&self, text: &str) -> Result<(), StateDirError> {
        write_private(&self.first_key_path(), format!("{text}\n").as_bytes())
    }

    /// Forgets it.
    pub fn forget_first_key(&self) {
        // A file that stays behind holds a key that is used or expires.
        let _ = fs::remove_file(self.first_key_path());
    }

    fn read_secret(&self, path: &Path) -> Result<Option<Zeroizing<String>>, StateDirError> {
        match fs::read_to_string(path) {
            Ok(text) => Ok(Some(Zeroizing::new(text))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io_error("cannot read", path)(error)),
        }
    }
}

/// Closes a folder to other users, if it is one of ours or empty. Others are left as
/// they are: they may be a home or a system folder.
fn close_to_others(path: &Path) -> Result<(), StateDirError> {
    let found = fs::metadata(path).map_err(io_error("cannot look at", path))?;
    if found.permissions().mode() & 0o077 == 0 {
        return Ok(());
    }
    let foreign = |entry: &fs::DirEntry| {
        let name = entry.file_name();
        name != "lost+found"
    };
    let mut entries = fs::read_dir(path).map_err(io_error("cannot read", path))?;
    let is_ours = StateDir::was_used(path) || path.join("noise.key").exists();
    if !is_ours && entries.any(|entry| entry.as_ref().is_ok_and(foreign)) {
        return Err(StateDirError::Foreign(path.to_owned()));
    }
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))
        .map_err(io_error("cannot close to other users the folder", path))
}

/// Writes a file that only its owner may read, so that after a crash either the
/// old or the new content is there.
///
/// # Errors
/// It cannot be written.
pub fn write_private(path: &Path, content: &[u8]) -> Result<(), StateDirError> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new()
        .prefix(".new-")
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o600))
        .tempfile_in(dir)
        .map_err(io_error("cannot create a file in", dir))?;
    file.write_all(content)
        .and_then(|()| file.as_file().sync_all())
        .map_err(io_error("cannot write", path))?;
    file.persist(path)
        .map_err(|error| io_error("cannot replace", path)(error.error))?;
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(io_error("cannot write", dir))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use warren_testkit::FixedEntropy;

    #[test]
    fn folder_that_is_ours_or_empty_is_closed_to_others() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("state");
        let mode = || fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        let open_up = || fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(&path).unwrap();
        fs::create_dir(path.join("lost+found")).unwrap();
        open_up();
        let first = StateDir::open(&path).unwrap();
        assert_eq!(mode(), 0o700, "empty");
        first.noise_key(&mut FixedEntropy(7)).unwrap();
        drop(first);
        open_up();
        drop(StateDir::open(&path).unwrap());
        assert_eq!(mode(), 0o700, "ours");
        fs::remove_file(path.join("noise.key")).unwrap();
        open_up();
        assert!(matches!(
            StateDir::open(&path),
            Err(StateDirError::Foreign(_))
        ));
        assert_eq!(mode(), 0o755, "left as it is");
    }

    #[test]
    fn a_state_folder_has_one_server_and_is_private() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("a/b");
        let first = StateDir::open(&path).unwrap();
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o700
        );
        assert!(matches!(
            StateDir::open(&path),
            Err(StateDirError::InUse(_))
        ));
        let (key, new) = first.noise_key(&mut FixedEntropy(7)).unwrap();
        assert!(new);
        let file = path.join("noise.key");
        assert_eq!(
            fs::metadata(&file).unwrap().permissions().mode() & 0o777,
            0o600
        );
        drop(first);
        let second = StateDir::open(&path).unwrap();
        assert_eq!(
            second.noise_key(&mut FixedEntropy(7)).unwrap(),
            (key, false)
        );
        fs::write(&file, "garbage").unwrap();
        let error = second
            .noise_key(&mut FixedEntropy(7))
            .unwrap_err()
            .to_string();
        assert!(error.contains("noise.key is not a server key"), "{error}");
    }
}

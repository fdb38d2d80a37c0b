//! Writing a file so that a reader, a crash or a full disk sees the old
//! content or the new, never a part.
//!
//! The bytes go to a fresh file in the same folder, are forced to the disk,
//! and take the name in one step; then the folder is forced to the disk, so
//! that the name survives a power cut. Whatever fails on the way, the old file
//! is untouched and the fresh one is removed.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Replaces the content of `path` by `content`, with the permission bits
/// `mode` (for secrets 0o600) whatever the umask.
///
/// A symbolic link at `path` is replaced, not followed.
///
/// # Errors
/// The error of the step that failed, with the path in its text and the kind
/// kept (`StorageFull`, `PermissionDenied`, ...). The old content is then still
/// in place, except that a failure to sync the folder is reported after the
/// new content has taken the name.
pub fn write_atomic(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let fresh = fresh_name(path)?;
    let written = write_fresh(&fresh, content, mode).and_then(|()| std::fs::rename(&fresh, path));
    if let Err(error) = written {
        // Best effort: the fresh file has a name of its own and does no harm.
        let _ = std::fs::remove_file(&fresh);
        return Err(with_path(error, path));
    }
    sync_folder(path).map_err(|error| with_path(error, path))
}

/// A name in the folder of `path` that no other call uses.
pub(crate) fn fresh_name(path: &Path) -> io::Result<PathBuf> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let name = path.file_name().ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{} does not name a file", path.display()),
        )
    })?;
    let mut fresh = std::ffi::OsString::from(".");
    fresh.push(name);
    fresh.push(format!(
        ".{}-{}.new",
        std::process::id(),
        COUNTER.fetch_add(1, Ordering::Relaxed)
    ));
    Ok(path.with_file_name(fresh))
}

fn write_fresh(fresh: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    // A crashed process with our id may have left the same name behind.
    match std::fs::remove_file(fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode & 0o600)
        .open(fresh)?;
    file.write_all(content)?;
    file.set_permissions(std::fs::Permissions::from_mode(mode))?;
    file.sync_all()
}

pub(crate) fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    match File::open(folder)?.sync_all() {
        // Some file systems cannot sync a folder; the rename is then as good
        // as it gets.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
        other => other,
    }
}

fn with_path(error: io::Error, path: &Path) -> io::Error {
    io::Error::new(
        error.kind(),
        format!("cannot write {}: {error}", path.display()),
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn content_and_mode_are_new_and_nothing_is_left_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        write_atomic(&path, b"one", 0o644).unwrap();
        write_atomic(&path, b"two", 0o600).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_failure_names_the_file_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("taken");
        // A folder cannot be replaced by a file.
        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join("inside"), b"x").unwrap();
        let error = write_atomic(&path, b"x", 0o600).unwrap_err();
        assert!(error.to_string().contains("taken"), "{error}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_path_without_a_file_name_is_refused() {
        assert!(write_atomic(Path::new("/"), b"x", 0o600).is_err());
    }
}

//! Backups: a folder with a copy of the state, made while the server runs or stands still.
//!
//! ```text
//! BACKUP/backup.json   which files there are, their SHA-256, the schema of the database
//! BACKUP/control.db    one consistent state of the database, with all that was
//!                      acknowledged before
//! BACKUP/...           the other files of the state folder: keys, certificates
//! ```
//!
//! The folder appears under its name when it is complete, and is readable by its owner
//! only, for it holds the keys of the server. Neither command overwrites anything.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::state_dir::{DATABASE, LOCK, StateDir, write_private};
use crate::store::{self, StoreError};

/// The file that describes a backup.
const MANIFEST: &str = "backup.json";
/// The only version of its form.
const FORM: u32 = 1;
/// The longest description, in bytes.
const MAX_MANIFEST: u64 = 1 << 20;

/// The description of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The version of this form.
    pub form: u32,
    /// The version of the program that made it.
    pub program: String,
    /// When it was made.
    pub created: Timestamp,
    /// The schema of the database.
    pub schema: usize,
    /// The SHA-256 of each file, as hexadecimal digits.
    pub files: BTreeMap<String, String>,
}

/// Why a backup cannot be made or restored.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// A file operation failed.
    #[error("{what} {}: {source}", path.display())]
    Io {
        /// The operation, as "cannot read".
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No server kept its state there.
    #[error(
        "there is no state of a server in {}; name the right folder with --state-dir",
        .0.display()
    )]
    NoState(PathBuf),
    /// The target is there already.
    #[error("{} is there already, and nothing is overwritten; choose another folder", .0.display())]
    Exists(PathBuf),
    /// The state folder is in use.
    #[error(
        "the state folder {} is not empty, and nothing is overwritten; move it away, or choose another with --state-dir",
        .0.display()
    )]
    NotEmpty(PathBuf),
    /// It is not a backup, or not one of ours.
    #[error("{} is not a complete backup: {reason}", path.display())]
    NotABackup {
        /// The folder.
        path: PathBuf,
        /// The reason.
        reason: String,
    },
}

fn failed<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> BackupError + 'a {
    move |source| BackupError::Io {
        what,
        path: path.to_owned(),
        source,
    }
}

/// Copies the state in `state` into the new folder `target`.
///
/// # Errors
/// It cannot be read or written; `target` is not there then.
pub fn backup(state: &Path, target: &Path, now: Timestamp) -> Result<Manifest, BackupError> {
    if !StateDir::was_used(state) {
        return Err(BackupError::NoState(state.to_owned()));
    }
    if target.symlink_metadata().is_ok() {
        return Err(BackupError::Exists(target.to_owned()));
    }
    let partial = Partial::beside(target)?;
    // Keys first: a database never names a key that is missing in the backup.
    let mut names = Vec::new();
    let entries = fs::read_dir(state).map_err(failed("cannot read", state))?;
    for entry in entries {
        let entry = entry.map_err(failed("cannot read", state))?;
        let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        if is_file && !name.starts_with(DATABASE) && name != LOCK && !name.starts_with('.') {
            copy(&entry.path(), &partial.path.join(&name))?;
            names.push(name);
        }
    }
    let schema = store::copy(&state.join(DATABASE), &partial.path.join(DATABASE))?;
    names.push(DATABASE.to_owned());
    let mut files = BTreeMap::new();
    for name in names {
        let digest = digest(&partial.path.join(&name))?;
        files.insert(name, digest);
    }
    let manifest = Manifest {
        form: FORM,
        program: env!("CARGO_PKG_VERSION").to_owned(),
        created: now,
        schema,
        files,
    };
    let text = serde_json::to_string_pretty(&manifest).unwrap_or_default() + "\n";
    let file = partial.path.join(MANIFEST);
    write_private(&file, text.as_bytes())
        .map_err(|error| failed("cannot write", &file)(io::Error::other(error)))?;
    partial.complete(target)?;
    Ok(manifest)
}

/// Puts a backup into the state folder `state`, which must be empty or missing.
///
/// # Errors
/// The backup is not complete, or was made by a newer program, or the folder is not empty;
/// nothing was written.
pub fn restore(source: &Path, state: &Path) -> Result<Manifest, BackupError> {
    let manifest = read_manifest(source)?;
    let wrong = |reason: String| BackupError::NotABackup {
        path: source.to_owned(),
        reason,
    };
    match fs::read_dir(state).map(|mut entries| entries.next().is_none()) {
        Ok(true) => {}
        Ok(false) => return Err(BackupError::NotEmpty(state.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed("cannot read", state)(error)),
    }
    let partial = Partial::beside(state)?;
    for (name, expected) in &manifest.files {
        let copied = partial.path.join(name);
        copy(&source.join(name), &copied)?;
        if digest(&copied)? != *expected {
            return Err(wrong(format!("the file {name} is not as it was written")));
        }
    }
    // Everything is read once, so that a server starts with it.
    store::check(&partial.path.join(DATABASE))?;
    partial.complete(state)?;
    Ok(manifest)
}

fn read_manifest(source: &Path) -> Result<Manifest, BackupError> {
    let wrong = |reason: String| BackupError::NotABackup {
        path: source.to_owned(),
        reason,
    };
    let mut text = String::new();
    let file = File::open(source.join(MANIFEST))
        .map_err(|error| wrong(format!("{MANIFEST} cannot be read: {error}")))?;
    file.take(MAX_MANIFEST)
        .read_to_string(&mut text)
        .map_err(|error| wrong(format!("{MANIFEST} cannot be read: {error}")))?;
    let manifest: Manifest =
        serde_json::from_str(&text).map_err(|error| wrong(format!("{MANIFEST}: {error}")))?;
    if manifest.form != FORM {
        return Err(wrong(format!(
            "it was made by warren-control {}, whose form this version does not know",
            manifest.program
        )));
    }
    // Names only: a description that was changed must not lead out of the folders.
    let is_name = |name: &String| {
        let mut parts = Path::new(name).components();
        let first = parts.next();
        matches!(first, Some(std::path::Component::Normal(only)) if only == name.as_str())
            && parts.next().is_none()
    };
    if let Some(name) = manifest.files.keys().find(|name| !is_name(name)) {
        return Err(wrong(format!("{name:?} is not the name of a file")));
    }
    if !manifest.files.contains_key(DATABASE) {
        return Err(wrong(format!("{DATABASE} is missing")));
    }
    Ok(manifest)
}

/// A folder that is being written, and is removed unless it becomes complete.
struct Partial {
    path: PathBuf,
    parent: PathBuf,
    complete: bool,
}

impl Partial {
    fn beside(target: &Path) -> Result<Self, BackupError> {
        let absolute = std::path::absolute(target).map_err(failed("cannot use", target))?;
        let (Some(parent), Some(name)) = (absolute.parent(), absolute.file_name()) else {
            return Err(BackupError::Exists(target.to_owned()));
        };
        fs::create_dir_all(parent).map_err(failed("cannot create", parent))?;
        let path = parent.join(format!(
            ".{}.{}.partial",
            name.to_string_lossy(),
            std::process::id()
        ));
        DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(failed("cannot create", &path))?;
        Ok(Self {
            path,
            parent: parent.to_owned(),
            complete: false,
        })
    }

    /// Gives the folder its name. An empty folder of that name is replaced; anything else
    /// is not.
    fn complete(mut self, target: &Path) -> Result<(), BackupError> {
        let sync = |path: &Path| {
            let file = File::open(path).and_then(|file| file.sync_all());
            file.map_err(failed("cannot write", path))
        };
        for entry in fs::read_dir(&self.path).map_err(failed("cannot read", &self.path))? {
            sync(&entry.map_err(failed("cannot read", &self.path))?.path())?;
        }
        sync(&self.path)?;
        fs::rename(&self.path, target).map_err(failed("cannot create", target))?;
        self.complete = true;
        sync(&self.parent)
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.complete {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// Copies a file, readable by its owner only.
fn copy(from: &Path, to: &Path) -> Result<(), BackupError> {
    fs::copy(from, to).map_err(failed("cannot copy", from))?;
    let private = fs::Permissions::from_mode(0o600);
    fs::set_permissions(to, private).map_err(failed("cannot close to other users", to))
}

fn digest(path: &Path) -> Result<String, BackupError> {
    let mut file = File::open(path).map_err(failed("cannot read", path))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => hasher.update(&buffer[..read]),
            Err(error) => return Err(failed("cannot read", path)(error)),
        }
    }
    Ok(data_encoding::HEXLOWER.encode(&hasher.finalize()))
}

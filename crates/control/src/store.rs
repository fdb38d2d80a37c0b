//! Rows on disk.
//!
//! A [`Store`] keeps rows; [`SqliteStore`] does so in a file, [`MemoryStore`]
//! in memory, for tests. A [`WriteQueue`] hands the coordinator's changes to a
//! store in a thread of its own, in batches, and numbers what was promised:
//! an answer waits for [`Saved`], which is all that was promised up to that
//! moment, by any change.

mod memory;
mod queue;
mod sqlite;

use std::path::{Path, PathBuf};

use warren_control_core::{Change, Snapshot};

pub use memory::{Disk, MemoryStore};
pub use queue::{QueueState, Saved, WriteQueue};
pub use sqlite::{SqliteStore, check, copy};

/// Keeps rows. All methods block.
pub trait Store: Send + 'static {
    /// Reads all rows.
    ///
    /// # Errors
    /// The store cannot be read, or a row is broken.
    fn load(&mut self) -> Result<Snapshot, StoreError>;

    /// Writes the rows, all or none. With `durable` they survive a loss of
    /// power once this returns.
    ///
    /// # Errors
    /// Nothing was written.
    fn write(&mut self, rows: &[Change], durable: bool) -> Result<(), StoreError>;
}

/// Opens or creates the database at `path`, and reads everything.
///
/// # Errors
/// It cannot be opened, was written by a newer program, or is broken.
pub fn open(path: &Path) -> Result<(WriteQueue, Snapshot), StoreError> {
    let mut store = SqliteStore::open(path)?;
    let snapshot = store.load()?;
    Ok((WriteQueue::start(store)?, snapshot))
}

/// The reason why rows cannot be read or written.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// SQLite reports an error.
    #[error("the database {}: {reason}{}", path.display(), hint(reason))]
    Database {
        /// The file.
        path: PathBuf,
        /// The error of SQLite.
        reason: String,
    },
    /// The database was written by a newer program.
    #[error(
        "the database {} was written by a newer warren-control (schema {found}, this one knows {known}); update the program, or go back to {}, the copy made before the update, which lacks all later changes",
        path.display(), before_schema(path, *known).display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// The schema in the file.
        found: usize,
        /// The newest schema that this program knows.
        known: usize,
    },
    /// A row cannot be parsed.
    #[error(
        "the database {} has a broken row ({table} {id}: {reason}); restore it from a backup",
        path.display()
    )]
    Row {
        /// The file.
        path: PathBuf,
        /// The table.
        table: &'static str,
        /// The row.
        id: String,
        /// The error of the parser.
        reason: String,
    },
    /// The thread that writes has ended or could not be started.
    #[error("the database writer has stopped")]
    Stopped,
}

/// The remedy for an error of SQLite.
fn hint(reason: &str) -> &'static str {
    let has = |words: &[&str]| words.iter().any(|word| reason.contains(word));
    if has(&["full", "disk I/O"]) {
        "; free some space there. Nothing is lost: the rows that could not be written are kept and tried again"
    } else if has(&["locked"]) {
        "; another program has it open: end that program"
    } else if has(&["malformed", "not a database"]) {
        "; restore it from a backup, into another folder: warren-control restore BACKUP --state-dir DIR"
    } else if has(&["readonly", "unable to open"]) {
        "; the user of the server must be able to write the file and its folder"
    } else {
        ""
    }
}

/// The name of the copy of a database that has this schema, made before it gets a newer
/// one.
fn before_schema(database: &Path, schema: usize) -> PathBuf {
    let mut name = database.as_os_str().to_owned();
    name.push(format!(".schema-{schema}"));
    name.into()
}

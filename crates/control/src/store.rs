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
pub use queue::{Saved, WriteQueue};
pub use sqlite::SqliteStore;

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
    #[error("the database {}: {reason}{}", path.display(), full_hint(reason))]
    Database {
        /// The file.
        path: PathBuf,
        /// The error of SQLite.
        reason: String,
    },
    /// The database was written by a newer program.
    #[error(
        "the database {} was written by a newer warren-control (schema {found}, this one knows {known}); update the program, or restore the backup made before the update",
        path.display()
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

fn full_hint(reason: &str) -> &'static str {
    if reason.contains("full") || reason.contains("disk I/O") {
        "; free some space there. Nothing is lost: the rows that could not be written are kept and tried again"
    } else {
        ""
    }
}

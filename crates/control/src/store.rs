//! Rows on disk: SQLite in WAL mode, written by one thread in batches.
//!
//! Every change of the coordinator is one row as it now is, so writing it twice
//! does no harm and a batch that could not be written (a full disk) is kept and
//! tried again with the next one, and once a second. Whoever needs its rows to
//! be on disk before it answers waits for [`Saved`].

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, params};
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;
use warren_control_core::{Change, Snapshot};

/// Migrations in order; the database remembers how many it has seen.
const MIGRATIONS: &[&str] = &[
    "
    CREATE TABLE users     (id INTEGER PRIMARY KEY, record TEXT NOT NULL) STRICT;
    CREATE TABLE nodes     (id INTEGER PRIMARY KEY, record TEXT NOT NULL) STRICT;
    CREATE TABLE auth_keys (id INTEGER PRIMARY KEY, record TEXT NOT NULL) STRICT;
    CREATE TABLE settings  (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
",
    "
    CREATE TABLE policies  (id INTEGER PRIMARY KEY, record TEXT NOT NULL) STRICT;
",
    // Roles. A row that does not read is left for `load` to complain about.
    "
    UPDATE users SET record = json_set(record, '$.role', 'member')
     WHERE json_valid(record) AND json_type(record, '$.role') IS NULL;
",
];

/// How often rows that could not be written are tried again.
const RETRY: Duration = Duration::from_secs(1);

/// The database cannot be used.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// SQLite says no.
    #[error("the database {}: {reason}{}", path.display(), full_hint(reason))]
    Database {
        /// The file.
        path: PathBuf,
        /// What SQLite says.
        reason: String,
    },
    /// Written by a newer program.
    #[error(
        "the database {} was written by a newer warren-control (schema {found}, this one knows {known}); update the program, or restore the backup made before the update",
        path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// The schema in the file.
        found: usize,
        /// The newest schema here.
        known: usize,
    },
    /// A row does not read.
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
        /// What is wrong.
        reason: String,
    },
    /// The writer is gone.
    #[error("the database writer has stopped")]
    Stopped,
}

fn full_hint(reason: &str) -> &'static str {
    if reason.contains("full") || reason.contains("disk I/O") {
        "; free some space there. Nothing is lost: what could not be written is kept and tried again"
    } else {
        ""
    }
}

/// Resolves when everything stored so far is on disk, or could not be written.
#[must_use = "an answer must not be given before its rows are on disk"]
#[derive(Debug)]
pub struct Saved(Option<oneshot::Receiver<Result<(), StoreError>>>);

impl Saved {
    /// Nothing had to be written.
    pub const fn already() -> Self {
        Self(None)
    }

    /// Waits.
    ///
    /// # Errors
    /// The rows are not on disk yet. They are kept and tried again.
    pub async fn wait(self) -> Result<(), StoreError> {
        match self.0 {
            None => Ok(()),
            Some(receiver) => receiver.await.unwrap_or(Err(StoreError::Stopped)),
        }
    }
}

struct Job {
    changes: Vec<Change>,
    durable: bool,
    done: oneshot::Sender<Result<(), StoreError>>,
}

/// The writing half. Dropping it writes what is left and ends the thread.
#[derive(Debug)]
pub struct Store {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    healthy: Arc<AtomicBool>,
}

impl Store {
    /// Opens or makes the database, and reads everything.
    ///
    /// # Errors
    /// It cannot be opened, is from the future, or broken.
    pub fn open(path: &Path) -> Result<(Self, Snapshot), StoreError> {
        let failed = |error: rusqlite::Error| StoreError::Database {
            path: path.to_owned(),
            reason: error.to_string(),
        };
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut connection = Connection::open_with_flags(path, flags).map_err(failed)?;
        restrict(path);
        connection
            .busy_timeout(Duration::from_secs(5))
            .map_err(failed)?;
        connection
            .pragma_update(None, "journal_mode", "WAL")
            .map_err(failed)?;
        connection
            .pragma_update(None, "foreign_keys", "ON")
            .map_err(failed)?;
        connection
            .pragma_update(None, "synchronous", "FULL")
            .map_err(failed)?;
        migrate(&mut connection, path)?;
        let snapshot = load(&connection, path)?;
        let (jobs, receiver) = mpsc::channel();
        let healthy = Arc::new(AtomicBool::new(true));
        let writer = Writer {
            connection,
            path: path.to_owned(),
            backlog: Vec::new(),
            backlog_durable: false,
            healthy: healthy.clone(),
        };
        let thread = std::thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || writer.run(&receiver))
            .map_err(|error| StoreError::Database {
                path: path.to_owned(),
                reason: error.to_string(),
            })?;
        Ok((
            Self {
                jobs: Some(jobs),
                thread: Some(thread),
                healthy,
            },
            snapshot,
        ))
    }

    /// Hands rows to the writer, which takes them in this order.
    pub fn write(&self, changes: Vec<Change>, durable: bool) -> Saved {
        let (done, receiver) = oneshot::channel();
        if let Some(jobs) = &self.jobs {
            // A writer that is gone drops `done`, which the waiter sees.
            let _ = jobs.send(Job {
                changes,
                durable,
                done,
            });
        }
        Saved(Some(receiver))
    }

    /// Whether the last batch reached the disk.
    pub fn is_healthy(&self) -> bool {
        self.healthy.load(Ordering::Relaxed)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Writer {
    connection: Connection,
    path: PathBuf,
    /// What is not on disk yet, in order.
    backlog: Vec<Change>,
    backlog_durable: bool,
    healthy: Arc<AtomicBool>,
}

impl Writer {
    fn run(mut self, jobs: &mpsc::Receiver<Job>) {
        loop {
            let first = if self.backlog.is_empty() {
                jobs.recv().map_err(|_| RecvTimeoutError::Disconnected)
            } else {
                jobs.recv_timeout(RETRY)
            };
            let batch: Vec<Job> = match first {
                Ok(first) => std::iter::once(first).chain(jobs.try_iter()).collect(),
                Err(RecvTimeoutError::Timeout) => Vec::new(),
                Err(RecvTimeoutError::Disconnected) => break,
            };
            let mut waiting = Vec::with_capacity(batch.len());
            for job in batch {
                self.backlog.extend(job.changes);
                self.backlog_durable |= job.durable;
                waiting.push(job.done);
            }
            let result = self.flush();
            if let Err(error) = &result
                && self.healthy.swap(false, Ordering::Relaxed)
            {
                tracing::error!("cannot save: {error}");
            }
            if result.is_ok() && !self.healthy.swap(true, Ordering::Relaxed) {
                tracing::warn!("saving works again; nothing was lost");
            }
            for done in waiting {
                let _ = done.send(result.clone());
            }
        }
        if let Err(error) = self.flush() {
            tracing::error!("cannot save the last changes: {error}");
        }
    }

    fn flush(&mut self) -> Result<(), StoreError> {
        if self.backlog.is_empty() {
            return Ok(());
        }
        self.try_flush().map_err(|error| StoreError::Database {
            path: self.path.clone(),
            reason: error.to_string(),
        })?;
        self.backlog.clear();
        self.backlog_durable = false;
        Ok(())
    }

    fn try_flush(&mut self) -> Result<(), rusqlite::Error> {
        // Endpoints and the like are learned again anyway: no fsync for them.
        let mode = if self.backlog_durable {
            "FULL"
        } else {
            "NORMAL"
        };
        self.connection.pragma_update(None, "synchronous", mode)?;
        let transaction = self.connection.transaction()?;
        for change in &self.backlog {
            write_change(&transaction, change)?;
        }
        transaction.commit()
    }
}

fn write_change(connection: &Connection, change: &Change) -> Result<(), rusqlite::Error> {
    fn json<T: serde::Serialize>(value: &T) -> Result<String, rusqlite::Error> {
        serde_json::to_string(value)
            .map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))
    }
    let put = |table: &str, id: i64, record: String| -> Result<(), rusqlite::Error> {
        let sql = format!("INSERT OR REPLACE INTO {table} (id, record) VALUES (?1, ?2)");
        connection
            .prepare_cached(&sql)?
            .execute(params![id, record])
            .map(drop)
    };
    let delete = |table: &str, id: i64| -> Result<(), rusqlite::Error> {
        let sql = format!("DELETE FROM {table} WHERE id = ?1");
        connection
            .prepare_cached(&sql)?
            .execute(params![id])
            .map(drop)
    };
    let set = |name: &str, value: Option<String>| -> Result<(), rusqlite::Error> {
        match value {
            Some(value) => connection
                .prepare_cached("INSERT OR REPLACE INTO settings (name, value) VALUES (?1, ?2)")?
                .execute(params![name, value]),
            None => connection
                .prepare_cached("DELETE FROM settings WHERE name = ?1")?
                .execute(params![name]),
        }
        .map(drop)
    };
    match change {
        Change::User(user) => put("users", user.id.0, json(user)?),
        Change::UserGone(id) => delete("users", id.0),
        Change::Node(node) => put("nodes", node.id.0, json(node)?),
        Change::NodeGone(id) => delete("nodes", id.0),
        Change::AuthKey(key) => put("auth_keys", key.id.0, json(key)?),
        Change::AuthKeyGone(id) => delete("auth_keys", id.0),
        Change::Policy(text) => set("policy", text.clone()),
        Change::PolicyVersion(version) => put("policies", version.version, json(version)?),
        Change::PolicyVersionGone(version) => delete("policies", *version),
        Change::Counters(counters) => set("counters", Some(json(counters)?)),
    }
}

/// The database holds who may join; only its owner reads it. The folder is
/// closed already, so a failure here opens nothing.
fn restrict(path: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    let _ = std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600));
}

fn migrate(connection: &mut Connection, path: &Path) -> Result<(), StoreError> {
    let failed = |error: rusqlite::Error| StoreError::Database {
        path: path.to_owned(),
        reason: error.to_string(),
    };
    let found: i64 = connection
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .map_err(failed)?;
    let found = usize::try_from(found).unwrap_or(usize::MAX);
    if found > MIGRATIONS.len() {
        return Err(StoreError::Newer {
            path: path.to_owned(),
            found,
            known: MIGRATIONS.len(),
        });
    }
    for (done, sql) in MIGRATIONS.iter().enumerate().skip(found) {
        let transaction = connection.transaction().map_err(failed)?;
        transaction.execute_batch(sql).map_err(failed)?;
        let version = i64::try_from(done + 1).unwrap_or(i64::MAX);
        transaction
            .pragma_update(None, "user_version", version)
            .map_err(failed)?;
        transaction.commit().map_err(failed)?;
    }
    Ok(())
}

fn load(connection: &Connection, path: &Path) -> Result<Snapshot, StoreError> {
    let users = rows(connection, path, "users")?;
    let nodes = rows(connection, path, "nodes")?;
    let auth_keys = rows(connection, path, "auth_keys")?;
    let policies = rows(connection, path, "policies")?;
    let mut snapshot = Snapshot::default();
    for user in users {
        snapshot.apply(Change::User(user));
    }
    for node in nodes {
        snapshot.apply(Change::Node(Box::new(node)));
    }
    for key in auth_keys {
        snapshot.apply(Change::AuthKey(key));
    }
    for version in policies {
        snapshot.apply(Change::PolicyVersion(version));
    }
    snapshot.apply(Change::Policy(setting(connection, path, "policy")?));
    if let Some(text) = setting(connection, path, "counters")? {
        let counters = serde_json::from_str(&text).map_err(|error| StoreError::Row {
            path: path.to_owned(),
            table: "settings",
            id: "counters".to_owned(),
            reason: error.to_string(),
        })?;
        snapshot.apply(Change::Counters(counters));
    }
    Ok(snapshot)
}

fn setting(connection: &Connection, path: &Path, name: &str) -> Result<Option<String>, StoreError> {
    use rusqlite::OptionalExtension as _;
    connection
        .query_row(
            "SELECT value FROM settings WHERE name = ?1",
            params![name],
            |row| row.get(0),
        )
        .optional()
        .map_err(|error| StoreError::Database {
            path: path.to_owned(),
            reason: error.to_string(),
        })
}

fn rows<T: DeserializeOwned>(
    connection: &Connection,
    path: &Path,
    table: &'static str,
) -> Result<Vec<T>, StoreError> {
    let failed = |error: rusqlite::Error| StoreError::Database {
        path: path.to_owned(),
        reason: error.to_string(),
    };
    let mut statement = connection
        .prepare(&format!("SELECT id, record FROM {table} ORDER BY id"))
        .map_err(failed)?;
    let found = statement
        .query_map([], |row| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?))
        })
        .map_err(failed)?;
    let mut out = Vec::new();
    for row in found {
        let (id, record) = row.map_err(failed)?;
        out.push(
            serde_json::from_str(&record).map_err(|error| StoreError::Row {
                path: path.to_owned(),
                table,
                id: id.to_string(),
                reason: error.to_string(),
            })?,
        );
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use warren_control_core::{Role, UserRecord};
    use warren_control_types::UserId;

    fn user(id: i64) -> UserRecord {
        UserRecord {
            id: UserId(id),
            name: format!("user{id}"),
            created: jiff::Timestamp::UNIX_EPOCH,
            role: Role::Auditor,
        }
    }

    #[test]
    fn users_from_before_there_were_roles_are_members() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.db");
        let mut connection = Connection::open(&path).unwrap();
        for sql in &MIGRATIONS[..2] {
            connection.execute_batch(sql).unwrap();
        }
        connection.pragma_update(None, "user_version", 2).unwrap();
        let old = r#"{"id":1,"name":"ann","created":"2026-01-02T03:04:05Z"}"#;
        connection
            .execute("INSERT INTO users VALUES (1, ?1)", [old])
            .unwrap();
        migrate(&mut connection, &path).unwrap();
        let users = load(&connection, &path).unwrap().users;
        assert_eq!(users[&UserId(1)].role, Role::Member);
        assert_eq!(users[&UserId(1)].name, "ann");
        // A row that is no JSON is named, not hidden behind the migration.
        connection.pragma_update(None, "user_version", 2).unwrap();
        connection
            .execute("INSERT INTO users VALUES (2, 'broken')", [])
            .unwrap();
        migrate(&mut connection, &path).unwrap();
        let error = load(&connection, &path).unwrap_err().to_string();
        assert!(error.contains("users 2"), "{error}");
    }

    #[tokio::test]
    async fn what_was_saved_is_there_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.db");
        let (store, empty) = Store::open(&path).unwrap();
        assert_eq!(empty, Snapshot::default());
        let policy = Change::Policy(Some("{}".into()));
        store
            .write(
                vec![Change::User(user(1)), Change::User(user(2)), policy],
                true,
            )
            .wait()
            .await
            .unwrap();
        store
            .write(vec![Change::UserGone(UserId(1))], false)
            .wait()
            .await
            .unwrap();
        assert!(store.is_healthy());
        drop(store);
        let (_store, again) = Store::open(&path).unwrap();
        assert_eq!(again.users.values().collect::<Vec<_>>(), [&user(2)]);
        assert_eq!(again.policy.as_deref(), Some("{}"));
    }

    #[tokio::test]
    async fn a_full_disk_is_an_error_and_nothing_is_lost() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.db");
        let (store, _) = Store::open(&path).unwrap();
        // The limit of pages stands in for the end of the disk.
        drop(store);
        let connection = Connection::open(&path).unwrap();
        let pages: i64 = connection
            .pragma_query_value(None, "page_count", |row| row.get(0))
            .unwrap();
        connection
            .pragma_update(None, "max_page_count", pages)
            .unwrap();
        let mut writer = Writer {
            connection,
            path: path.clone(),
            backlog: (0..4000).map(|n| Change::User(user(n))).collect(),
            backlog_durable: true,
            healthy: Arc::new(AtomicBool::new(true)),
        };
        let error = writer.flush().unwrap_err().to_string();
        assert!(
            error.contains("full") && error.contains("Nothing is lost"),
            "{error}"
        );
        assert_eq!(writer.backlog.len(), 4000);
        writer
            .connection
            .pragma_update(None, "max_page_count", 1_000_000)
            .unwrap();
        writer.flush().unwrap();
        drop(writer);
        assert_eq!(Store::open(&path).unwrap().1.users.len(), 4000);
    }

    #[test]
    fn a_newer_database_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.db");
        drop(Store::open(&path).unwrap());
        let connection = Connection::open(&path).unwrap();
        connection.pragma_update(None, "user_version", 99).unwrap();
        drop(connection);
        let error = Store::open(&path).unwrap_err();
        assert!(
            matches!(error, StoreError::Newer { found: 99, .. }),
            "{error}"
        );
    }
}

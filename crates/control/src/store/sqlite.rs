//! Rows in a file: SQLite in WAL mode.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, params};
use serde::de::DeserializeOwned;
use warren_control_core::{Change, Snapshot};

use super::{Store, StoreError};

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
    "
    CREATE TABLE IF NOT EXISTS lock_messages
        (id TEXT PRIMARY KEY, record TEXT NOT NULL) STRICT, WITHOUT ROWID;
",
];

/// A database in a file.
#[derive(Debug)]
pub struct SqliteStore {
    connection: Connection,
    path: PathBuf,
}

impl SqliteStore {
    /// Opens or creates the database.
    ///
    /// # Errors
    /// It cannot be opened, or was written by a newer program.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
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
        Ok(Self {
            connection,
            path: path.to_owned(),
        })
    }

    fn try_write(&mut self, rows: &[Change], durable: bool) -> Result<(), rusqlite::Error> {
        // Endpoints and the like are learned again anyway: no fsync for them.
        let mode = if durable { "FULL" } else { "NORMAL" };
        self.connection.pragma_update(None, "synchronous", mode)?;
        let transaction = self.connection.transaction()?;
        for change in rows {
            write_change(&transaction, change)?;
        }
        transaction.commit()
    }
}

impl Store for SqliteStore {
    fn load(&mut self) -> Result<Snapshot, StoreError> {
        load(&self.connection, &self.path)
    }

    fn write(&mut self, rows: &[Change], durable: bool) -> Result<(), StoreError> {
        self.try_write(rows, durable)
            .map_err(|error| StoreError::Database {
                path: self.path.clone(),
                reason: error.to_string(),
            })
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
        Change::LockMessage(message) => {
            let id = message.hash.to_string();
            connection
                .prepare_cached(
                    "INSERT OR REPLACE INTO lock_messages (id, record) VALUES (?1, ?2)",
                )?
                .execute(params![id, json(message)?])
                .map(drop)
        }
        Change::LockMessageGone(hash) => connection
            .prepare_cached("DELETE FROM lock_messages WHERE id = ?1")?
            .execute(params![hash.to_string()])
            .map(drop),
        Change::Lock(record) => set("lock", Some(json(record)?)),
        Change::Dns(dns) => set("dns", Some(json(dns)?)),
        Change::Counters(counters) => set("counters", Some(json(counters)?)),
    }
}

/// The database holds the records that admit nodes; only its owner may read it. The
/// folder is closed already, so a failure here opens nothing.
fn restrict(path: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    let _ = std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600));
}

fn migrate(connection: &mut Connection, path: &Path) -> Result<(), StoreError> {
    let failed = |error: rusqlite::Error| StoreError::Database {
        path: path.to_owned(),
        reason: error.to_string(),
    };
    let found = schema_of(connection, path)?;
    if (1..MIGRATIONS.len()).contains(&found) {
        keep_copy(connection, path, found)?;
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

/// Keeps a copy of a database that is about to get a newer schema. One that an earlier
/// try left is replaced: no server ran in between.
fn keep_copy(connection: &Connection, path: &Path, schema: usize) -> Result<(), StoreError> {
    let kept = super::before_schema(path, schema);
    if let Err(error) = std::fs::remove_file(&kept)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        return Err(StoreError::Database {
            path: kept,
            reason: error.to_string(),
        });
    }
    copy_into(connection, path, &kept)
}

fn copy_into(connection: &Connection, path: &Path, target: &Path) -> Result<(), StoreError> {
    let failed = |path: &Path, reason: String| StoreError::Database {
        path: path.to_owned(),
        reason,
    };
    let name = target
        .to_str()
        .ok_or_else(|| failed(target, "the name of the file is not Unicode".to_owned()))?;
    connection
        .execute("VACUUM INTO ?1", params![name])
        .map_err(|error| failed(path, error.to_string()))?;
    restrict(target);
    std::fs::File::open(target)
        .and_then(|file| file.sync_all())
        .map_err(|error| failed(target, error.to_string()))
}

/// Opens a database that is there, without changing it.
fn open_existing(path: &Path) -> Result<Connection, StoreError> {
    let failed = |error: rusqlite::Error| StoreError::Database {
        path: path.to_owned(),
        reason: error.to_string(),
    };
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(failed)?;
    connection
        .busy_timeout(Duration::from_secs(5))
        .map_err(failed)?;
    Ok(connection)
}

/// The schema, if this program knows it.
fn schema_of(connection: &Connection, path: &Path) -> Result<usize, StoreError> {
    let found: i64 = connection
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .map_err(|error| StoreError::Database {
            path: path.to_owned(),
            reason: error.to_string(),
        })?;
    let found = usize::try_from(found).unwrap_or(usize::MAX);
    let known = MIGRATIONS.len();
    if found > known {
        let path = path.to_owned();
        return Err(StoreError::Newer { path, found, known });
    }
    Ok(found)
}

/// Copies a database into a new file, as it is at one moment, also while a server writes
/// to it. Returns its schema.
///
/// # Errors
/// It cannot be read, was written by a newer program, or the file cannot be written.
pub fn copy(path: &Path, target: &Path) -> Result<usize, StoreError> {
    let connection = open_existing(path)?;
    let schema = schema_of(&connection, path)?;
    copy_into(&connection, path, target)?;
    Ok(schema)
}

/// Reads everything in a database, without changing it.
///
/// # Errors
/// It is damaged, or was written by a newer program.
pub fn check(path: &Path) -> Result<(), StoreError> {
    let connection = open_existing(path)?;
    let schema = schema_of(&connection, path)?;
    let damage: String = connection
        .query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))
        .map_err(|error| StoreError::Database {
            path: path.to_owned(),
            reason: error.to_string(),
        })?;
    if damage != "ok" {
        return Err(StoreError::Database {
            path: path.to_owned(),
            reason: format!("it is malformed: {damage}"),
        });
    }
    // Rows of an older schema are read after its migration.
    if schema == MIGRATIONS.len() {
        load(&connection, path)?;
    }
    Ok(())
}

fn load(connection: &Connection, path: &Path) -> Result<Snapshot, StoreError> {
    let users = rows(connection, path, "users")?;
    let nodes = rows(connection, path, "nodes")?;
    let auth_keys = rows(connection, path, "auth_keys")?;
    let policies = rows(connection, path, "policies")?;
    let lock_messages = rows(connection, path, "lock_messages")?;
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
    for message in lock_messages {
        snapshot.apply(Change::LockMessage(message));
    }
    snapshot.apply(Change::Policy(setting(connection, path, "policy")?));
    if let Some(counters) = json_setting(connection, path, "counters")? {
        snapshot.apply(Change::Counters(counters));
    }
    if let Some(dns) = json_setting(connection, path, "dns")? {
        snapshot.apply(Change::Dns(dns));
    }
    if let Some(lock) = json_setting(connection, path, "lock")? {
        snapshot.apply(Change::Lock(lock));
    }
    Ok(snapshot)
}

fn json_setting<T: DeserializeOwned>(
    connection: &Connection,
    path: &Path,
    name: &str,
) -> Result<Option<T>, StoreError> {
    let text = setting(connection, path, name)?;
    text.map(|text| serde_json::from_str(&text))
        .transpose()
        .map_err(|error| StoreError::Row {
            path: path.to_owned(),
            table: "settings",
            id: name.to_owned(),
            reason: error.to_string(),
        })
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
        .prepare(&format!(
            "SELECT CAST(id AS TEXT), record FROM {table} ORDER BY {table}.id"
        ))
        .map_err(failed)?;
    let found = statement
        .query_map([], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?))
        })
        .map_err(failed)?;
    let mut out = Vec::new();
    for row in found {
        let (id, record) = row.map_err(failed)?;
        out.push(
            serde_json::from_str(&record).map_err(|error| StoreError::Row {
                path: path.to_owned(),
                table,
                id,
                reason: error.to_string(),
            })?,
        );
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use warren_control_core::{LockMessage, LockRecord, Role, Turned, UserRecord};
    use warren_control_types::UserId;
    use warren_lock::AumHash;

    fn user(id: i64) -> UserRecord {
        UserRecord {
            id: UserId(id),
            name: format!("user{id}"),
            created: jiff::Timestamp::UNIX_EPOCH,
            role: Role::Auditor,
            account: None,
        }
    }

    #[test]
    fn users_of_a_database_without_roles_become_members() {
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
        // The database from before is kept, readable by its owner only.
        let kept = super::super::before_schema(&path, 2);
        let mode = std::fs::metadata(&kept).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let before = Connection::open(&kept).unwrap();
        let row: String = before
            .query_row("SELECT record FROM users", [], |row| row.get(0))
            .unwrap();
        assert_eq!((row.as_str(), schema_of(&before, &kept).unwrap()), (old, 2));
        // A row that is no JSON is named, not hidden behind the migration.
        connection.pragma_update(None, "user_version", 2).unwrap();
        connection
            .execute("INSERT INTO users VALUES (2, 'broken')", [])
            .unwrap();
        migrate(&mut connection, &path).unwrap();
        let error = load(&connection, &path).unwrap_err().to_string();
        assert!(error.contains("users 2"), "{error}");
    }

    #[test]
    fn written_rows_are_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.db");
        let mut store = SqliteStore::open(&path).unwrap();
        assert_eq!(store.load().unwrap(), Snapshot::default());
        let policy = Change::Policy(Some("{}".into()));
        let rows = [Change::User(user(1)), Change::User(user(2)), policy];
        store.write(&rows, true).unwrap();
        store.write(&[Change::UserGone(UserId(1))], false).unwrap();
        drop(store);
        let again = SqliteStore::open(&path).unwrap().load().unwrap();
        assert_eq!(again.users.values().collect::<Vec<_>>(), [&user(2)]);
        assert_eq!(again.policy.as_deref(), Some("{}"));
    }

    #[test]
    fn rows_of_tailnet_lock_are_read_again_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.db");
        let mut store = SqliteStore::open(&path).unwrap();
        let hash = AumHash::from_bytes([7; 32]);
        let message = LockMessage {
            hash,
            bytes: vec![1, 2],
            stored_at: 3,
        };
        let turned = Turned::On { genesis: hash };
        let record = LockRecord { turned };
        let rows = [
            Change::LockMessage(message.clone()),
            Change::Lock(record.clone()),
        ];
        store.write(&rows, true).unwrap();
        drop(store);
        let mut store = SqliteStore::open(&path).unwrap();
        let snapshot = store.load().unwrap();
        assert_eq!(snapshot.lock, Some(record));
        assert_eq!(snapshot.lock_messages.get(&hash), Some(&message));
        store.write(&[Change::LockMessageGone(hash)], true).unwrap();
        assert!(store.load().unwrap().lock_messages.is_empty());
    }

    #[test]
    fn a_full_disk_is_an_error_and_writes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.db");
        let mut store = SqliteStore::open(&path).unwrap();
        // The limit of pages stands in for the end of the disk.
        let pages: i64 = store
            .connection
            .pragma_query_value(None, "page_count", |row| row.get(0))
            .unwrap();
        let limit = |store: &SqliteStore, pages: i64| {
            let set = store
                .connection
                .pragma_update(None, "max_page_count", pages);
            set.unwrap();
        };
        limit(&store, pages);
        let rows: Vec<Change> = (0..4000).map(|n| Change::User(user(n))).collect();
        let error = store.write(&rows, true).unwrap_err().to_string();
        assert!(
            error.contains("full") && error.contains("Nothing is lost"),
            "{error}"
        );
        assert_eq!(store.load().unwrap().users.len(), 0);
        limit(&store, 1_000_000);
        store.write(&rows, true).unwrap();
        assert_eq!(store.load().unwrap().users.len(), 4000);
    }

    #[test]
    fn database_that_cannot_be_used_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.db");
        std::fs::write(&path, "this was a database once, and is none any more").unwrap();
        let open = || SqliteStore::open(&path).unwrap_err().to_string();
        let error = open();
        assert!(
            error.contains("not a database") && error.contains("restore"),
            "{error}"
        );
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        let error = open();
        assert!(error.contains("must be able to write"), "{error}");
        std::fs::remove_dir(&path).unwrap();

        // Another program that holds the lock, and one that took the right to write away.
        let mut store = SqliteStore::open(&path).unwrap();
        let other = Connection::open(&path).unwrap();
        other.execute_batch("BEGIN EXCLUSIVE").unwrap();
        store.connection.busy_timeout(Duration::ZERO).unwrap();
        let write = |store: &mut SqliteStore| store.write(&[Change::User(user(1))], true);
        let error = write(&mut store).unwrap_err().to_string();
        assert!(
            error.contains("locked") && error.contains("end that program"),
            "{error}"
        );
        other.execute_batch("ROLLBACK").unwrap();
        store
            .connection
            .pragma_update(None, "query_only", "ON")
            .unwrap();
        let error = write(&mut store).unwrap_err().to_string();
        assert!(
            error.contains("readonly") && error.contains("must be able"),
            "{error}"
        );
        store
            .connection
            .pragma_update(None, "query_only", "OFF")
            .unwrap();
        write(&mut store).unwrap();

        // Bytes of a page that are gone.
        drop((store, other));
        check(&path).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[4096..middle.max(8192)].fill(0x5a);
        std::fs::write(&path, bytes).unwrap();
        let error = check(&path).unwrap_err().to_string();
        assert!(
            error.contains("malformed") && error.contains("restore"),
            "{error}"
        );
    }

    #[test]
    fn a_newer_database_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.db");
        drop(SqliteStore::open(&path).unwrap());
        let connection = Connection::open(&path).unwrap();
        connection.pragma_update(None, "user_version", 99).unwrap();
        drop(connection);
        let error = SqliteStore::open(&path).unwrap_err();
        assert!(
            matches!(error, StoreError::Newer { found: 99, .. }),
            "{error}"
        );
        assert!(error.to_string().contains("control.db.schema-"), "{error}");
        let target = dir.path().join("copy");
        assert!(copy(&path, &target).is_err() && check(&path).is_err());
    }
}

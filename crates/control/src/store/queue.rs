//! Rows on their way to a store.
//!
//! The queue holds one entry per row, the newest: a change is the row as it now
//! is, so an older one that was not written yet is of no use. A store that
//! cannot be written to (a full disk) therefore costs at most one copy of each
//! row. A batch that fails goes back below the rows that came meanwhile, and is
//! tried again with the next change and once a second.
//!
//! Each call of [`WriteQueue::write`] has a number. A batch takes all rows there
//! are, so one number says how far the store is.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::watch;
use warren_control_core::{Change, RowId};

use super::{Store, StoreError};

/// The delay after which rows that could not be written are tried again.
const RETRY: Duration = Duration::from_secs(1);
/// With this many rows waiting, changes that can be refused are refused.
const MAX_ROWS: usize = 1 << 16;

#[derive(Debug, Default)]
struct Waiting {
    rows: BTreeMap<RowId, Change>,
    durable: bool,
    /// The number of the last write.
    last: u64,
    /// The number of the last write that promised to be durable.
    promised: u64,
    /// The number of the last write that is in the store or in a batch.
    taken: u64,
    closed: bool,
}

#[derive(Debug, Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    wake: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug, Clone, Default)]
struct Progress {
    /// All writes up to this one are in the store.
    written: u64,
    /// Batches that failed so far.
    failures: u64,
    /// The error of the last batch, if it failed.
    error: Option<StoreError>,
}

/// Resolves when everything that was promised up to its creation is durable.
#[must_use = "an answer must not be given before the rows it speaks of are on disk"]
#[derive(Debug)]
pub struct Saved {
    until: u64,
    failures: u64,
    progress: watch::Receiver<Progress>,
}

impl Saved {
    /// Waits until the rows are on disk.
    ///
    /// # Errors
    /// The rows are not on disk yet. They are kept and tried again.
    pub async fn wait(mut self) -> Result<(), StoreError> {
        loop {
            {
                let now = self.progress.borrow_and_update();
                if now.written >= self.until {
                    return Ok(());
                }
                if let Some(error) = now.error.as_ref().filter(|_| now.failures > self.failures) {
                    return Err(error.clone());
                }
            }
            if self.progress.changed().await.is_err() {
                return Err(StoreError::Stopped);
            }
        }
    }
}

/// How far a [`WriteQueue`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueState {
    /// Rows that wait for the next batch.
    pub rows: usize,
    /// Writes that are in the store.
    pub written: u64,
    /// Batches that failed.
    pub failures: u64,
}

/// The writing half of a store. Dropping it writes the remaining rows and ends
/// the thread.
#[derive(Debug)]
pub struct WriteQueue {
    shared: Arc<Shared>,
    progress: watch::Receiver<Progress>,
    thread: Option<JoinHandle<()>>,
}

impl WriteQueue {
    /// Starts the thread that writes.
    ///
    /// # Errors
    /// The system refuses another thread.
    pub fn start(store: impl Store) -> Result<Self, StoreError> {
        let shared = Arc::new(Shared::default());
        let (sender, progress) = watch::channel(Progress::default());
        let writer = Writer {
            store,
            shared: shared.clone(),
            progress: sender,
        };
        let thread = std::thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || writer.run())
            .map_err(|error| {
                tracing::error!("cannot start the database writer: {error}");
                StoreError::Stopped
            })?;
        Ok(Self {
            shared,
            progress,
            thread: Some(thread),
        })
    }

    /// Hands rows to the writer. With `durable`, answers wait for them.
    pub fn write(&self, changes: Vec<Change>, durable: bool) {
        let mut waiting = self.shared.lock();
        waiting.last += 1;
        if durable {
            waiting.durable = true;
            waiting.promised = waiting.last;
        }
        for change in changes {
            waiting.rows.insert(change.row(), change);
        }
        drop(waiting);
        self.shared.wake.notify_one();
    }

    /// The moment at which all that was promised so far is durable.
    pub fn saved(&self) -> Saved {
        let progress = self.progress.clone();
        let failures = progress.borrow().failures;
        Saved {
            until: self.shared.lock().promised,
            failures,
            progress,
        }
    }

    /// How far the writer is.
    pub fn state(&self) -> QueueState {
        let rows = self.shared.lock().rows.len();
        let progress = self.progress.borrow();
        QueueState {
            rows,
            written: progress.written,
            failures: progress.failures,
        }
    }

    /// Whether so many rows wait that changes without a promise are refused.
    pub fn is_full(&self) -> bool {
        self.shared.lock().rows.len() >= MAX_ROWS
    }

    /// Whether the writer runs and its last batch reached the store.
    pub fn is_healthy(&self) -> bool {
        self.progress.has_changed().is_ok() && self.progress.borrow().error.is_none()
    }
}

impl Drop for WriteQueue {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.wake.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Batch {
    rows: BTreeMap<RowId, Change>,
    durable: bool,
    number: u64,
}

struct Writer<S> {
    store: S,
    shared: Arc<Shared>,
    progress: watch::Sender<Progress>,
}

impl<S: Store> Writer<S> {
    fn run(mut self) {
        let mut failed = false;
        while let Some(batch) = self.next_batch(failed) {
            let rows: Vec<Change> = batch.rows.values().cloned().collect();
            let result = if rows.is_empty() {
                Ok(())
            } else {
                self.store.write(&rows, batch.durable)
            };
            failed = result.is_err();
            match result {
                Ok(()) => self.written(batch.number),
                Err(error) => self.failed(batch, error),
            }
        }
    }

    /// The next rows; `None` when the queue is closed and everything was tried.
    fn next_batch(&self, failed: bool) -> Option<Batch> {
        let mut waiting = self.shared.lock();
        if failed {
            // A new change, or the time, is a reason to try again.
            let last = waiting.last;
            waiting = self
                .shared
                .wake
                .wait_timeout_while(waiting, RETRY, |w| w.last == last && !w.closed)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        waiting = self
            .shared
            .wake
            .wait_while(waiting, |w| {
                w.taken == w.last && w.rows.is_empty() && !w.closed
            })
            .unwrap_or_else(PoisonError::into_inner);
        if waiting.closed && (waiting.rows.is_empty() || failed) {
            return None;
        }
        waiting.taken = waiting.last;
        Some(Batch {
            rows: std::mem::take(&mut waiting.rows),
            durable: std::mem::take(&mut waiting.durable),
            number: waiting.last,
        })
    }

    fn written(&self, number: u64) {
        self.progress.send_modify(|progress| {
            progress.written = number;
            if progress.error.take().is_some() {
                tracing::warn!("saving works again; nothing was lost");
            }
        });
    }

    fn failed(&self, batch: Batch, error: StoreError) {
        let mut waiting = self.shared.lock();
        for (id, change) in batch.rows {
            waiting.rows.entry(id).or_insert(change);
        }
        waiting.durable |= batch.durable;
        drop(waiting);
        self.progress.send_modify(|progress| {
            if progress.error.is_none() {
                tracing::error!("cannot save: {error}");
            }
            progress.failures += 1;
            progress.error = Some(error);
        });
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use futures_util::FutureExt as _;
    use warren_control_core::{Role, UserRecord};
    use warren_control_types::UserId;

    use super::super::MemoryStore;
    use super::*;

    fn user(id: i64, name: &str) -> Change {
        Change::User(UserRecord {
            id: UserId(id),
            name: name.to_owned(),
            created: jiff::Timestamp::UNIX_EPOCH,
            role: Role::Member,
            account: None,
        })
    }

    #[tokio::test]
    async fn a_later_answer_waits_for_an_earlier_promise() {
        let (store, disk) = MemoryStore::new();
        let queue = WriteQueue::start(store).unwrap();
        queue.saved().wait().await.unwrap();
        disk.hold();
        queue.write(vec![user(1, "ann")], true);
        // It promised nothing itself, yet it speaks of the row.
        let mut later = Box::pin(queue.saved().wait());
        tokio::task::yield_now().await;
        assert!(later.as_mut().now_or_never().is_none());
        disk.release();
        later.await.unwrap();
        assert_eq!(disk.rows().users[&UserId(1)].name, "ann");
    }

    #[tokio::test]
    async fn rows_without_a_promise_delay_no_answer() {
        let (store, disk) = MemoryStore::new();
        let queue = WriteQueue::start(store).unwrap();
        disk.hold();
        queue.write(vec![user(1, "ann")], false);
        queue.saved().wait().await.unwrap();
        disk.release();
        drop(queue);
        assert_eq!(disk.rows().users.len(), 1);
    }

    #[tokio::test]
    async fn a_full_disk_costs_one_copy_of_each_row_and_loses_nothing() {
        let (store, disk) = MemoryStore::new();
        let queue = WriteQueue::start(store).unwrap();
        disk.fail(true);
        queue.write(vec![user(1, "first")], true);
        let error = queue.saved().wait().await.unwrap_err();
        assert!(error.to_string().contains("full"), "{error}");
        assert!(!queue.is_healthy());
        for n in 0..1000 {
            queue.write(vec![user(1, &format!("name{n}")), user(2, "bob")], false);
        }
        assert!(queue.shared.lock().rows.len() <= 2);
        assert!(!queue.is_full());
        disk.fail(false);
        queue.write(Vec::new(), true);
        queue.saved().wait().await.unwrap();
        assert!(queue.is_healthy());
        let rows = disk.rows();
        assert_eq!(rows.users[&UserId(1)].name, "name999");
        assert_eq!(rows.users[&UserId(2)].name, "bob");
    }

    #[tokio::test]
    async fn a_queue_of_a_full_disk_has_an_end() {
        let (store, disk) = MemoryStore::new();
        let queue = WriteQueue::start(store).unwrap();
        disk.hold();
        let rows = 0..i64::try_from(MAX_ROWS).unwrap() + 1;
        queue.write(rows.map(|n| user(n, "x")).collect(), false);
        queue.write((0..1 << 17).map(|n| user(n, "x")).collect(), false);
        assert!(queue.is_full());
        disk.release();
        queue.write(Vec::new(), true);
        queue.saved().wait().await.unwrap();
        assert!(!queue.is_full());
    }

    #[tokio::test]
    async fn an_ended_writer_is_not_healthy() {
        let (store, disk) = MemoryStore::new();
        let queue = WriteQueue::start(store).unwrap();
        disk.panic();
        queue.write(vec![user(1, "ann")], true);
        assert!(matches!(
            queue.saved().wait().await,
            Err(StoreError::Stopped)
        ));
        assert!(!queue.is_healthy());
    }
}

//! A store in memory, with a disk that a test holds back or fills up.

use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use warren_control_core::{Change, Snapshot};

use super::{Store, StoreError};

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Mode {
    #[default]
    Works,
    Held,
    Full,
    Broken,
}

#[derive(Debug, Default)]
struct State {
    rows: Snapshot,
    mode: Mode,
}

/// The disk below a [`MemoryStore`], for the test that owns it.
#[derive(Debug, Clone, Default)]
pub struct Disk {
    shared: Arc<(Mutex<State>, Condvar)>,
}

impl Disk {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, mode: Mode) {
        self.lock().mode = mode;
        self.shared.1.notify_all();
    }

    /// The rows that are on it.
    pub fn rows(&self) -> Snapshot {
        self.lock().rows.clone()
    }

    /// From now on, writes do not return.
    pub fn hold(&self) {
        self.set(Mode::Held);
    }

    /// Writes go on.
    pub fn release(&self) {
        self.set(Mode::Works);
    }

    /// Whether the disk is full.
    pub fn fail(&self, full: bool) {
        self.set(if full { Mode::Full } else { Mode::Works });
    }

    /// The next write ends its thread.
    pub fn panic(&self) {
        self.set(Mode::Broken);
    }
}

/// See [`Disk`].
#[derive(Debug)]
pub struct MemoryStore {
    disk: Disk,
}

impl MemoryStore {
    /// An empty store and its disk.
    pub fn new() -> (Self, Disk) {
        let disk = Disk::default();
        (Self { disk: disk.clone() }, disk)
    }
}

impl Store for MemoryStore {
    fn load(&mut self) -> Result<Snapshot, StoreError> {
        Ok(self.disk.rows())
    }

    fn write(&mut self, rows: &[Change], _durable: bool) -> Result<(), StoreError> {
        let (_, released) = &*self.disk.shared;
        let mut state = released
            .wait_while(self.disk.lock(), |state| state.mode == Mode::Held)
            .unwrap_or_else(PoisonError::into_inner);
        match state.mode {
            Mode::Broken => std::panic::resume_unwind(Box::new("the disk is broken")),
            Mode::Full => Err(StoreError::Database {
                path: PathBuf::from("memory"),
                reason: "the disk is full".to_owned(),
            }),
            Mode::Works | Mode::Held => {
                for row in rows {
                    state.rows.apply(row.clone());
                }
                Ok(())
            }
        }
    }
}

//! The locks of the pipeline: those of the standard library, or of loom where its
//! models run (`bin/loom`).

#[cfg(not(warren_loom))]
pub(crate) use std::sync::{Condvar, Mutex, MutexGuard};

#[cfg(warren_loom)]
pub(crate) use loom::sync::{Condvar, Mutex, MutexGuard};

//! The netmap on disk, with which the node starts while the coordination
//! server is away.
//!
//! It is written soon after every change, so that a node that is killed right
//! after joining still knows its network. Writing takes time and goes through
//! one thread of its own ([`NetmapFile`]), in order: nothing older overwrites
//! something newer, a netmap that a logout forgets does not come back, and at
//! the end of the daemon the last one is on disk before the process ends.

use std::path::PathBuf;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::EngineTask;

/// A netmap is written at most this often, a big one less often.
const WRITES: Duration = Duration::from_millis(100);
/// How often a big one.
const BIG_WRITES: Duration = Duration::from_secs(5);
/// From how many peers on it is big.
const BIG: usize = 200;

enum Job {
    Write(PathBuf, Vec<u8>),
    Remove(PathBuf),
}

/// The thread that writes. Dropping it waits for the last write.
pub(super) struct NetmapFile {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl NetmapFile {
    pub(super) fn new() -> Self {
        let (jobs, queue) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("warren-netmap".to_owned())
            .spawn(move || work(&queue));
        if let Err(error) = &thread {
            tracing::warn!(%error, "cannot keep the netmap; a restart needs the server");
        }
        Self {
            jobs: Some(jobs),
            thread: thread.ok(),
        }
    }

    fn order(&self, job: Job) {
        // Without the thread there is nobody to tell, as was said at the start.
        drop(self.jobs.as_ref().map(|jobs| jobs.send(job)));
    }
}

impl Drop for NetmapFile {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn work(queue: &mpsc::Receiver<Job>) {
    while let Ok(first) = queue.recv() {
        // Only the newest counts, also across a removal.
        let newest = queue.try_iter().last().unwrap_or(first);
        let (outcome, what) = match newest {
            Job::Write(path, text) => (
                warren_host::atomic_file::write_atomic(&path, &text, 0o600),
                "cannot keep the netmap; a restart needs the server",
            ),
            Job::Remove(path) => (
                std::fs::remove_file(&path).or_else(|error| match error.kind() {
                    std::io::ErrorKind::NotFound => Ok(()),
                    _ => Err(error),
                }),
                "cannot remove the kept netmap",
            ),
        };
        if let Err(error) = outcome {
            tracing::warn!(%error, "{what}");
        }
    }
}

impl EngineTask {
    pub(super) fn save_netmap_if_due(&mut self, now: Instant) {
        if self.netmap_due().is_some_and(|due| now >= due) {
            self.save_netmap();
        }
    }

    /// When the netmap is to be written; `None` when the file is up to date.
    pub(super) fn netmap_due(&self) -> Option<Instant> {
        let big = self.engine.netmap().peers.len() > BIG;
        let pause = if big { BIG_WRITES } else { WRITES };
        self.netmap_unsaved.then(|| self.netmap_saved_at + pause)
    }

    pub(super) fn save_netmap(&mut self) {
        if !std::mem::take(&mut self.netmap_unsaved) || self.state.login.is_none() {
            return;
        }
        self.netmap_saved_at = Instant::now();
        match serde_json::to_vec(self.engine.netmap()) {
            Ok(text) => self
                .netmap_file
                .order(Job::Write(self.state.netmap_path(), text)),
            Err(error) => tracing::warn!(%error, "cannot keep the netmap"),
        }
    }

    /// Forgets the netmap, for a logout.
    pub(super) fn forget_netmap(&mut self) {
        self.netmap_unsaved = false;
        self.netmap_file
            .order(Job::Remove(self.state.netmap_path()));
    }
}

//! Writes the files that follow the state of the node: the netmap and the floor of
//! the handshakes' clock.
//!
//! Writing takes time and goes through one thread of its own, in order: nothing
//! older overwrites something newer, what was removed does not come back, and at
//! the end of the daemon the last of each is on disk before the process ends.

use std::path::PathBuf;
use std::sync::mpsc;
use std::thread::JoinHandle;

/// The next state of one file.
struct Job {
    path: PathBuf,
    /// `None`: the file is removed.
    content: Option<Vec<u8>>,
    /// The consequence when this fails, for the log.
    otherwise: &'static str,
}

/// The thread that writes. Dropping it waits for the last write.
pub(super) struct FileWriter {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl FileWriter {
    pub(super) fn new() -> Self {
        let (jobs, queue) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("warren-files".to_owned())
            .spawn(move || work(&queue));
        if let Err(error) = &thread {
            tracing::warn!(%error, "cannot keep the netmap; a restart needs the server");
        }
        Self {
            jobs: Some(jobs),
            thread: thread.ok(),
        }
    }

    /// Writes a file as a whole, for this user only. Without a path there is nothing to
    /// write to.
    pub(super) fn write(&self, path: Option<PathBuf>, content: Vec<u8>, otherwise: &'static str) {
        let Some(path) = path else { return };
        self.order(Job {
            path,
            content: Some(content),
            otherwise,
        });
    }

    /// Removes a file, if it is there.
    pub(super) fn remove(&self, path: Option<PathBuf>, otherwise: &'static str) {
        let Some(path) = path else { return };
        self.order(Job {
            path,
            content: None,
            otherwise,
        });
    }

    fn order(&self, job: Job) {
        // Without the thread nothing is written; the log said so at the start.
        drop(self.jobs.as_ref().map(|jobs| jobs.send(job)));
    }
}

impl Drop for FileWriter {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn work(queue: &mpsc::Receiver<Job>) {
    while let Ok(first) = queue.recv() {
        // Only the newest of each file counts, also across a removal.
        let mut newest = vec![first];
        for job in queue.try_iter() {
            newest.retain(|older| older.path != job.path);
            newest.push(job);
        }
        for job in newest {
            let outcome = match &job.content {
                Some(content) => warren_host::atomic_file::write_atomic(&job.path, content, 0o600),
                None => std::fs::remove_file(&job.path).or_else(|error| match error.kind() {
                    std::io::ErrorKind::NotFound => Ok(()),
                    _ => Err(error),
                }),
            };
            if let Err(error) = outcome {
                tracing::warn!(%error, "{}", job.otherwise);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_last_order_for_each_file_holds() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| Some(folder.path().join(name));
        let files = FileWriter::new();
        for n in 0..50u8 {
            files.write(path("kept"), vec![n], "");
            files.write(path("forgotten"), vec![n], "");
            files.write(path("back again"), vec![n], "");
        }
        files.remove(path("forgotten"), "");
        files.remove(path("back again"), "");
        files.remove(path("never there"), "");
        files.write(path("back again"), vec![50], "");
        drop(files);
        assert_eq!(std::fs::read(folder.path().join("kept")).unwrap(), [49]);
        assert_eq!(
            std::fs::read(folder.path().join("back again")).unwrap(),
            [50]
        );
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
    }
}

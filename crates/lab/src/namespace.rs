//! One thread per test host, living in its own network and mount namespace.
//!
//! A namespace belongs to a thread, not to a process: the thread unshares once
//! and then serves closures until its [`Namespace`] is dropped. Sockets opened
//! in such a closure stay in that network wherever they are used later, and
//! programs started in it inherit both namespaces. Nothing is registered under
//! `/run`, so when the lab's process ends, however it ends, the kernel removes
//! every interface, rule and mount.
//!
//! Needs root, or a user namespace in which the caller is root
//! (`unshare --user --map-root-user`).
#![allow(unsafe_code)] // unshare(2) and prctl(2) have no safe wrapper; reasons beside each call.

use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc;
use std::thread::JoinHandle;

type Job = Box<dyn FnOnce() + Send>;

/// A network of its own, and a private view of the files in `/etc` that
/// describe one.
pub struct Namespace {
    name: String,
    thread_id: u32,
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Namespace {
    /// Makes the namespace, brings its loopback up and gives it its own
    /// `resolv.conf`, which starts as a copy of `resolv_conf`.
    ///
    /// # Errors
    /// Says so when the caller may not make namespaces.
    pub fn new(name: &str, resolv_conf: PathBuf) -> io::Result<Self> {
        let (jobs, inbox) = mpsc::channel::<Job>();
        let (ready, started) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name(format!("lab-{name}"))
            .spawn(move || {
                let entered = enter(&resolv_conf).map(|()| rustix::thread::gettid());
                let failed = entered.is_err();
                if ready.send(entered).is_err() || failed {
                    return;
                }
                while let Ok(job) = inbox.recv() {
                    job();
                }
            })?;
        let thread_id = started
            .recv()
            .map_err(|_| io::Error::other("the namespace thread ended at once"))??
            .as_raw_nonzero()
            .get()
            .unsigned_abs();
        let namespace = Self {
            name: name.to_owned(),
            thread_id,
            jobs: Some(jobs),
            thread: Some(thread),
        };
        Ok(namespace)
    }

    /// The host's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A number that `ip link set … netns` understands.
    pub fn id(&self) -> u32 {
        self.thread_id
    }

    /// Runs `job` on the host's thread and returns what it returns.
    pub fn inside<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = mpsc::channel();
        let boxed: Job = Box::new(move || {
            // The receiver waits below for as long as the job runs.
            drop(done.send(job()));
        });
        let sent = self
            .jobs
            .as_ref()
            .is_some_and(|jobs| jobs.send(boxed).is_ok());
        assert!(sent, "the thread of {} has ended", self.name);
        result
            .recv()
            .unwrap_or_else(|_| panic!("a job on {} panicked", self.name))
    }

    /// Prepares `command` to die with the lab, however the lab ends.
    pub fn tie(command: &mut Command) {
        // SAFETY: the closure runs between fork and exec in the child, where
        // only async-signal-safe calls are allowed; prctl is one and touches
        // no memory.
        unsafe {
            command.pre_exec(|| {
                rustix::process::set_parent_process_death_signal(Some(
                    rustix::process::Signal::KILL,
                ))?;
                Ok(())
            });
        }
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was reported by the job that caused it.
            drop(thread.join());
        }
    }
}

/// Moves the calling thread into fresh namespaces.
fn enter(resolv_conf: &std::path::Path) -> io::Result<()> {
    use rustix::mount::{MountPropagationFlags, mount_bind, mount_change};
    use rustix::thread::UnshareFlags;
    // SAFETY: NEWNET and NEWNS leave the file descriptor table shared, which
    // is what makes unshare unsafe in general.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET | UnshareFlags::NEWNS) }.map_err(
        |errno| {
            io::Error::other(format!(
                "cannot make a network namespace ({errno}): run as root, or under \
                 `unshare --user --map-root-user`"
            ))
        },
    )?;
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )?;
    if let Ok(target) = std::fs::canonicalize("/etc/resolv.conf") {
        mount_bind(resolv_conf, target)?;
    }
    // A host's own /proc/sys/net and /sys belong to the namespace that mounted
    // them; /proc follows the reading thread, so nothing else is needed.
    Ok(())
}

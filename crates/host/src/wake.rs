//! Waking a thread that sleeps in [`crate::poll::wait`].
//!
//! A data-plane thread owns its buffers and sleeps on file descriptors. When
//! another thread has work for it (a frame from the relay, a new snapshot, the
//! order to stop) it puts the work where the sleeper looks and calls
//! [`Waker::wake`]. Wakes that come before the sleeper has looked are one: no
//! system call is made for the second.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

#[cfg(not(warren_loom))]
use std::sync::atomic::{AtomicBool, Ordering};

#[cfg(warren_loom)]
use loom::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;

#[cfg(all(test, warren_loom))]
mod models;

/// A wake-up flag with a descriptor to sleep on. Share it by reference or
/// `Arc`; one thread sleeps, any number wake.
#[derive(Debug)]
pub struct Waker(Flag<EventFd>);

impl Waker {
    /// A new waker, not woken.
    pub fn new() -> io::Result<Waker> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Waker(Flag::new(EventFd(fd))))
    }

    /// Makes the descriptor readable. Put the work in place before.
    pub fn wake(&self) {
        self.0.wake();
    }

    /// Says that the sleeper is awake. Look for work *after* this: work that was
    /// put in place before a wake that this call swallows is then seen.
    pub fn clear(&self) {
        self.0.clear();
    }
}

/// Makes a sleeper run: an eventfd, or its model.
trait Event {
    /// Becomes ready, until it is reset.
    fn set(&self);
    /// Is no longer ready.
    fn reset(&self);
}

#[derive(Debug)]
struct EventFd(OwnedFd);

impl Event for EventFd {
    fn set(&self) {
        // The counter cannot overflow (at most one write per clear) and the
        // descriptor is ours, so nothing but a signal can be in the way.
        while let Err(Errno::INTR) = rustix::io::write(&self.0, &1u64.to_ne_bytes()) {}
    }

    fn reset(&self) {
        let mut counter = [0u8; 8];
        while let Err(Errno::INTR) = rustix::io::read(&self.0, &mut counter) {}
    }
}

/// Merges the wakes that come before the sleeper has looked.
#[derive(Debug)]
struct Flag<E> {
    event: E,
    /// Set between a wake and the sleeper's [`Flag::clear`].
    pending: AtomicBool,
}

impl<E: Event> Flag<E> {
    fn new(event: E) -> Self {
        Self {
            event,
            pending: AtomicBool::new(false),
        }
    }

    fn wake(&self) {
        if !self.pending.swap(true, Ordering::AcqRel) {
            self.event.set();
        }
    }

    fn clear(&self) {
        self.event.reset();
        // Only after the reset. A wake that came in between set nothing, but
        // its work is in place and the caller looks after this. In the other
        // order the reset could swallow a wake whose flag stays set, and every
        // later wake would be taken for a repetition.
        self.pending.swap(false, Ordering::AcqRel);
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.event.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::poll::{Watch, wait};
    use std::time::Duration;

    #[test]
    fn wakes_are_merged_until_cleared() {
        let waker = Waker::new().unwrap();
        let mut watch = [Watch::readable(&waker)];
        assert_eq!(wait(&mut watch, Some(Duration::ZERO)).unwrap(), 0);
        waker.wake();
        waker.wake();
        assert_eq!(wait(&mut watch, Some(Duration::ZERO)).unwrap(), 1);
        assert!(watch[0].is_ready());
        waker.clear();
        assert_eq!(wait(&mut watch, Some(Duration::ZERO)).unwrap(), 0);
        assert!(!watch[0].is_ready());
        waker.wake();
        assert_eq!(wait(&mut watch, None).unwrap(), 1);
    }

    #[test]
    fn another_thread_ends_the_sleep() {
        let waker = std::sync::Arc::new(Waker::new().unwrap());
        let other = waker.clone();
        let thread = std::thread::spawn(move || other.wake());
        assert_eq!(wait(&mut [Watch::readable(&*waker)], None).unwrap(), 1);
        thread.join().unwrap();
    }
}

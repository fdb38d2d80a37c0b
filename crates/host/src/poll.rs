//! Sleeping on a few descriptors: `poll(2)` for the dedicated threads.
//!
//! A data-plane thread watches two to four descriptors for its whole life, so
//! `poll` is as good as `epoll` and needs no registration. A signal does not
//! end the sleep early from the caller's view: the rest of the time is slept.

#![allow(unsafe_code)] // one slice cast, so that callers see our type and not the kernel's

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

/// One watched descriptor and what was seen on it.
#[derive(Debug)]
#[repr(transparent)]
pub struct Watch<'fd>(PollFd<'fd>);

impl<'fd> Watch<'fd> {
    /// Ends the sleep when there is something to read (or the other side is
    /// gone, or the descriptor has an error: reading then returns it).
    pub fn readable(fd: &'fd impl AsFd) -> Watch<'fd> {
        Watch(PollFd::new(fd, PollFlags::IN))
    }

    /// Ends the sleep when a write would not block.
    pub fn writable(fd: &'fd impl AsFd) -> Watch<'fd> {
        Watch(PollFd::new(fd, PollFlags::OUT))
    }

    /// Whether the last [`wait`] found this descriptor ready or broken.
    pub fn is_ready(&self) -> bool {
        !self.0.revents().is_empty()
    }

    /// Whether the last [`wait`] found the descriptor hung up or in error.
    pub fn is_broken(&self) -> bool {
        self.0
            .revents()
            .intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL)
    }
}

/// Sleeps until one of `watches` is ready, or `timeout` has passed (`None`:
/// for ever). Gives the number of ready descriptors, 0 at the timeout.
pub fn wait(watches: &mut [Watch<'_>], timeout: Option<Duration>) -> io::Result<usize> {
    let deadline = timeout.map(|timeout| Instant::now() + timeout);
    let mut left = timeout;
    // SAFETY: `Watch` is a transparent wrapper around `PollFd`, so a slice of
    // one has the layout of a slice of the other; the lifetime is kept.
    let entries = unsafe {
        std::slice::from_raw_parts_mut(watches.as_mut_ptr().cast::<PollFd<'_>>(), watches.len())
    };
    loop {
        let timespec = left.map(|left| Timespec {
            tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        });
        match rustix::event::poll(entries, timespec.as_ref()) {
            Err(Errno::INTR) => {
                left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            }
            other => return Ok(other?),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use std::io::Write;

    #[test]
    fn tells_which_descriptor_is_ready() {
        let (quiet, _keep) = std::os::unix::net::UnixStream::pair().unwrap();
        let (loud, mut writer) = std::os::unix::net::UnixStream::pair().unwrap();
        writer.write_all(b"x").unwrap();
        let mut watches = [Watch::readable(&quiet), Watch::readable(&loud)];
        assert_eq!(wait(&mut watches, None).unwrap(), 1);
        assert!(!watches[0].is_ready());
        assert!(watches[1].is_ready() && !watches[1].is_broken());
        drop(_keep);
        assert_eq!(wait(&mut watches, None).unwrap(), 2);
        assert!(watches[0].is_broken());
    }
}

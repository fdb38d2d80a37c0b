//! The descriptors of a [`MemoryHost`] in the reactor of tokio.
// To register a descriptor is unsafe in tokio: it must stay open and the same.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd as _, AsRawFd, RawFd};
use std::sync::Arc;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use warren_host::device::memory::MemoryHost;

/// A descriptor of a host.
pub(crate) enum End {
    /// Readable while frames wait.
    Frames(Arc<MemoryHost>),
    /// Readable when there is space again.
    Space(Arc<MemoryHost>),
}

impl AsRawFd for End {
    fn as_raw_fd(&self) -> RawFd {
        match self {
            Self::Frames(host) => host.as_fd().as_raw_fd(),
            Self::Space(host) => host.space().as_raw_fd(),
        }
    }
}

/// Registers a descriptor, to be waited for.
pub(crate) fn readable(end: End) -> io::Result<AsyncFd<End>> {
    // SAFETY: the descriptors of a host are open as long as it lives, which the `Arc`
    // makes as long as the `AsyncFd`, and never replaced.
    let registered = unsafe { AsyncFd::register_with_interest(end, Interest::READABLE) };
    Ok(registered?)
}

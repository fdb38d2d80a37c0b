//! The master end of a terminal in the reactor of tokio.
// To register a descriptor is unsafe in tokio: it must stay open and the same.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::unix::AsyncFd;

/// Registers the master end of a terminal, to be waited for. It does not block any more.
///
/// # Errors
/// When the system refuses.
pub(crate) fn register(master: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    rustix::io::ioctl_fionbio(&master, true)?;
    // SAFETY: the `AsyncFd` owns the descriptor, which is open as long as it lives, and an
    // `OwnedFd` is not replaced behind a shared reference.
    let registered = unsafe { AsyncFd::register(master) };
    Ok(registered?)
}

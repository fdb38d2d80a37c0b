//! Closes the open files that a session must not have.
// Closing a range of descriptors is a call of the C library: what owns them is not known.
#![allow(unsafe_code)]

use std::io;

/// The first descriptor behind standard input, output and error.
const FIRST: libc::c_uint = 3;

/// Closes everything but standard input, output and error.
///
/// The daemon opens its files so that other programs do not inherit them; the programs that
/// started the daemon may not.
///
/// # Errors
/// When the kernel is older than Linux 5.9.
pub(crate) fn close_all() -> io::Result<()> {
    // SAFETY: this process has one thread, and no value in it owns a descriptor of the range:
    // it has opened nothing since its start.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, FIRST, libc::c_uint::MAX, 0) };
    match closed {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

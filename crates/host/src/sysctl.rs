//! Kernel settings under `/proc/sys`, as seen from the network namespace of
//! the calling thread.

use std::io;
use std::path::PathBuf;

/// Reads a setting, for example `net/ipv4/conf/all/rp_filter`.
pub(crate) fn read(name: &str) -> io::Result<String> {
    Ok(std::fs::read_to_string(path(name))?.trim().to_owned())
}

/// Writes a setting. Needs the rights of the network namespace's owner and a
/// writable `/proc/sys`, which containers often do not have.
pub(crate) fn write(name: &str, value: &str) -> io::Result<()> {
    std::fs::write(path(name), value)
}

fn path(name: &str) -> PathBuf {
    PathBuf::from("/proc/sys").join(name)
}

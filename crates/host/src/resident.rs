//! Memory of the program itself that is not needed any more.
//!
//! Most of a program runs once, when it starts, and stays mapped for good: the
//! kernel maps pages of a program generously, many around each that is touched,
//! and takes them away only when memory runs out. [`release_program`] takes away
//! all of them at once. What runs on comes back page by page, from the page
//! cache as a rule, at the cost of a few hundred short faults; the rest is the
//! kernel's to use for others.
//!
//! Only mappings are touched of which nothing was ever changed by this process:
//! their pages are in the file. Data, relocated or not, stays.

#![allow(unsafe_code)] // madvise has no safe wrapper that may drop pages

use std::io;

/// A part of the address space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mapping {
    start: usize,
    len: usize,
    /// Bytes in memory.
    resident: usize,
}

/// Unmaps the pages of program and libraries until they are needed again;
/// returns how many bytes were in memory before.
///
/// # Errors
/// When the kernel does not tell what is mapped.
pub fn release_program() -> io::Result<usize> {
    let mut released = 0;
    for mapping in unchanged_files(&std::fs::read_to_string("/proc/self/smaps")?) {
        // SAFETY: the range is a private mapping of a file, not writable, and
        // none of its pages differs from the file (`Anonymous` is 0). The next
        // access reads the same bytes from the file again. That the program's
        // file does not change under it is what running it rests on anyway.
        let done = unsafe {
            libc::madvise(
                std::ptr::with_exposed_provenance_mut(mapping.start),
                mapping.len,
                libc::MADV_DONTNEED,
            )
        };
        if done == 0 {
            released += mapping.resident;
        }
    }
    Ok(released)
}

/// Private, unwritable, unchanged mappings of files in a table like
/// `/proc/self/smaps`: a line with range, permissions, offset, device, inode and
/// path, then lines with a name and a size each.
fn unchanged_files(smaps: &str) -> Vec<Mapping> {
    let mut found = Vec::new();
    let mut open: Option<Mapping> = None;
    let mut unchanged = false;
    for line in smaps.lines() {
        if let Some(mapping) = head(line) {
            found.extend(open.take().filter(|_| unchanged));
            open = mapping;
            unchanged = false;
        } else if let Some(kilobytes) = size(line, "Anonymous:") {
            unchanged = kilobytes == 0;
        } else if let (Some(kilobytes), Some(mapping)) = (size(line, "Rss:"), &mut open) {
            mapping.resident = kilobytes * 1024;
        }
    }
    found.extend(open.filter(|_| unchanged));
    found
}

/// `None` if this is no first line of a mapping; the mapping, if it is of a kind
/// that may be released.
fn head(line: &str) -> Option<Option<Mapping>> {
    let mut words = line.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let start = usize::from_str_radix(start, 16).ok()?;
    let end = usize::from_str_radix(end, 16).ok()?;
    let permissions = words.next()?;
    let inode = words.nth(2)?;
    let fits = matches!(permissions, "r-xp" | "r--p") && inode != "0";
    let mapping = Mapping {
        start,
        len: end.checked_sub(start)?,
        resident: 0,
    };
    Some(fits.then_some(mapping))
}

fn size(line: &str, name: &str) -> Option<usize> {
    let value = line.strip_prefix(name)?.trim().strip_suffix("kB")?;
    value.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const TABLE: &str = "\
5000-9000 r--p 00000000 fd:00 17                         /usr/bin/warren
Size:                 16 kB
Rss:                   8 kB
Anonymous:             0 kB
VmFlags: rd mr mw me
9000-a000 r-xp 00004000 fd:00 17                         /usr/bin/warren
Rss:                   4 kB
Anonymous:             4 kB
a000-b000 rw-p 00004000 fd:00 17                         /usr/bin/warren
Rss:                   4 kB
Anonymous:             0 kB
b000-c000 r--p 00000000 00:00 0
Rss:                   4 kB
Anonymous:             0 kB
c000-d000 r-xs 00000000 fd:00 18                         /shared file
Rss:                   4 kB
Anonymous:             0 kB
d000-f000 r-xp 00000000 fd:00 19                         /lib/with spaces.so
Rss:                   4 kB
Anonymous:             0 kB
";

    #[test]
    fn only_what_the_file_still_holds_is_released() {
        let mapping = |start, len, resident| Mapping {
            start,
            len,
            resident,
        };
        assert_eq!(
            unchanged_files(TABLE),
            [
                mapping(0x5000, 0x4000, 0x2000),
                mapping(0xd000, 0x2000, 0x1000)
            ]
        );
        assert_eq!(unchanged_files(""), []);
        assert_eq!(
            unchanged_files("5000-4000 r-xp 0 0 17 /x\nAnonymous: 0 kB\n"),
            []
        );
    }

    fn resident_files() -> usize {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|l| l.strip_prefix("RssFile:"));
        let value = line.unwrap().trim().strip_suffix("kB").unwrap().trim();
        value.parse().unwrap()
    }

    /// Code that nobody needs is gone, and all still works.
    #[test]
    fn the_program_goes_on() {
        let before = resident_files();
        let released = release_program().unwrap();
        assert!(released > 0);
        let after = resident_files();
        assert!(after < before, "{before} kB, then {after} kB");
        let again = release_program().unwrap();
        assert!(again < released, "{released}, then {again}");
    }
}

//! Memory of the program itself that is not needed any more.
//!
//! Most of a program runs once, when it starts, and stays mapped for good: the
//! kernel maps pages of a program generously, many around each that is touched,
//! and takes them away only when memory runs out. [`release_program`] takes away
//! all of them at once. What runs on comes back page by page, from the page
//! cache as a rule, at the cost of a few hundred short faults; the rest is the
//! kernel's to use for others.
//!
//! Only segments of the program and its libraries are touched that are loaded
//! without permission to write, and of which no page was changed all the same:
//! their pages are in the file. Data, relocated or not, stays.

#![allow(unsafe_code)] // madvise and the list of loaded objects have no safe wrapper

use std::ffi::c_void;
use std::io;
use std::ops::Range;

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
    let loaded = read_only_segments();
    let mut released = 0;
    for mapping in unchanged_files(&std::fs::read_to_string("/proc/self/smaps")?) {
        let end = mapping.start.saturating_add(mapping.len);
        let is_loaded =
            |segment: &Range<usize>| segment.start <= mapping.start && end <= segment.end;
        if !loaded.iter().any(is_loaded) {
            continue;
        }
        // SAFETY: the range lies in a segment of a loaded object, which is never
        // unloaded, so nothing else can have taken its place meanwhile. It is a
        // private mapping of a file, not writable, and none of its pages differs
        // from the file: none in memory (`Anonymous`), none swapped out (`Swap`).
        // The next access reads the same bytes from the file again. That the
        // program's file does not change under it is what running it rests on
        // anyway.
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

/// Where the segments of all loaded objects lie that are loaded without
/// permission to write, in whole pages.
fn read_only_segments() -> Vec<Range<usize>> {
    /// Adds those of one object.
    unsafe extern "C" fn add(
        info: *mut libc::dl_phdr_info,
        _size: libc::size_t,
        found: *mut c_void,
    ) -> libc::c_int {
        // SAFETY: the loader hands in a valid description of an object, and back
        // what `read_only_segments` gave it, which nobody else uses meanwhile.
        let (info, found) = unsafe { (&*info, &mut *found.cast::<Vec<Range<usize>>>()) };
        if info.dlpi_phdr.is_null() {
            return 0;
        }
        // SAFETY: the description says where its headers are and how many.
        let headers = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()) };
        let read_only = headers
            .iter()
            .filter(|header| header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0);
        found.extend(read_only.filter_map(|header| {
            let start = usize::try_from(info.dlpi_addr.checked_add(header.p_vaddr)?).ok()?;
            let end = start.checked_add(usize::try_from(header.p_memsz).ok()?)?;
            Some(start / PAGE * PAGE..end.checked_next_multiple_of(PAGE)?)
        }));
        0
    }
    let mut found: Vec<Range<usize>> = Vec::new();
    // SAFETY: `add` fits what the loader calls, and gets what it expects.
    unsafe { libc::dl_iterate_phdr(Some(add), std::ptr::from_mut(&mut found).cast()) };
    found
}

/// The smallest page there is; larger ones are made of it.
const PAGE: usize = 4096;

/// Private, unwritable, unchanged mappings of files in a table like
/// `/proc/self/smaps`: a line with range, permissions, offset, device, inode and
/// path, then lines with a name and a size each.
fn unchanged_files(smaps: &str) -> Vec<Mapping> {
    let mut found = Vec::new();
    let mut open: Option<Mapping> = None;
    // Pages changed in memory, and on their way out of it: none of both.
    let mut unchanged = [false; 2];
    let whole = |unchanged: [bool; 2]| unchanged == [true; 2];
    for line in smaps.lines() {
        if let Some(mapping) = head(line) {
            found.extend(open.take().filter(|_| whole(unchanged)));
            open = mapping;
            unchanged = [false; 2];
        } else if let Some(kilobytes) = size(line, "Anonymous:") {
            unchanged[0] = kilobytes == 0;
        } else if let Some(kilobytes) = size(line, "Swap:") {
            unchanged[1] = kilobytes == 0;
        } else if let (Some(kilobytes), Some(mapping)) = (size(line, "Rss:"), &mut open) {
            mapping.resident = kilobytes * 1024;
        }
    }
    found.extend(open.filter(|_| whole(unchanged)));
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
Swap:                  0 kB
VmFlags: rd mr mw me
9000-a000 r-xp 00004000 fd:00 17                         /usr/bin/warren
Rss:                   4 kB
Anonymous:             4 kB
Swap:                  0 kB
a000-b000 rw-p 00004000 fd:00 17                         /usr/bin/warren
Rss:                   4 kB
Anonymous:             0 kB
Swap:                  0 kB
b000-c000 r--p 00000000 00:00 0
Rss:                   4 kB
Anonymous:             0 kB
Swap:                  0 kB
c000-d000 r-xs 00000000 fd:00 18                         /shared file
Rss:                   4 kB
Anonymous:             0 kB
Swap:                  0 kB
cd000-ce000 r--p 00000000 fd:00 17                        /swapped out
Rss:                   0 kB
Anonymous:             0 kB
Swap:                  4 kB
ce000-cf000 r--p 00000000 fd:00 17                        /an old kernel
Rss:                   0 kB
Anonymous:             0 kB
d000-f000 r-xp 00000000 fd:00 19                         /lib/with spaces.so
Rss:                   4 kB
Anonymous:             0 kB
Swap:                  0 kB
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
            unchanged_files("5000-4000 r-xp 0 0 17 /x\nAnonymous: 0 kB\nSwap: 0 kB\n"),
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

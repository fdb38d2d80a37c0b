//! Files that are watched, and read again when they change.
//!
//! Editors write a file in place, or write another and put it in its place;
//! deployment tools exchange a link or a whole folder. So it is the folders
//! that are watched, of the file and of every link on the way to it, and
//! whatever happens in them, the file is read again.

use std::ffi::OsString;
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{OFlags, inotify};
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;

/// A save is several events; what comes within this time is one.
const QUIET: Duration = Duration::from_millis(100);
/// How often a folder that is gone is looked for.
const RETRY: Duration = Duration::from_secs(1);
/// Bytes of the longest file that is read.
const MAX_FILE: u64 = 16 << 20;
/// Links on one way to a file, as many as the system itself follows.
const MAX_LINKS: usize = 40;

/// A folder, and which one it is: one that was replaced is another under the
/// same name.
type Folder = (PathBuf, Option<(u64, u64)>);

/// A file that is read again when it changes.
pub(crate) trait Watched: Send + Sync + 'static {
    /// The file.
    fn path(&self) -> &Path;

    /// Reads it. Called at first, and whenever it may have changed.
    fn reload(&self) -> impl Future<Output = ()> + Send;
}

/// Watches a file until the task is dropped.
pub(crate) async fn watch<W: Watched>(file: Arc<W>) {
    let path = file.path();
    let mut reported = String::new();
    loop {
        if let Err(error) = follow(path, file.as_ref()).await {
            let error = error.to_string();
            if reported != error {
                tracing::warn!(
                    "cannot watch the file {}: {error}; it is read once a second instead",
                    path.display()
                );
                reported = error;
            }
            tokio::time::sleep(RETRY).await;
            file.reload().await;
        }
    }
}

/// Follows the folders as they are now; ends when they are others.
async fn follow<W: Watched>(path: &Path, file: &W) -> io::Result<()> {
    let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
    let events = inotify::init(flags)?;
    let wanted = inotify::WatchFlags::CLOSE_WRITE
        | inotify::WatchFlags::MOVED_TO
        | inotify::WatchFlags::MOVED_FROM
        | inotify::WatchFlags::CREATE
        | inotify::WatchFlags::DELETE
        | inotify::WatchFlags::DELETE_SELF
        | inotify::WatchFlags::MOVE_SELF;
    let folders = aside(path, folders_of).await?;
    for (folder, _) in &folders {
        inotify::add_watch(&events, folder, wanted)?;
    }
    // To be read like any stream of bytes; what they say does not matter.
    let mut events = pipe::Receiver::from_owned_fd_unchecked(events)?;
    // Changes before the watches were set up.
    file.reload().await;
    let mut buffer = [0; 4096];
    while aside(path, folders_of).await? == folders {
        // How much was read does not matter: the rest is drained below.
        let _some = events.read(&mut buffer).await?;
        tokio::time::sleep(QUIET).await;
        while events.try_read(&mut buffer).is_ok_and(|n| n > 0) {}
        file.reload().await;
    }
    Ok(())
}

/// Runs a file system operation on a thread that may block.
pub(crate) async fn aside<R: Send + 'static>(path: &Path, work: fn(&Path) -> R) -> io::Result<R> {
    let path = path.to_owned();
    let done = tokio::task::spawn_blocking(move || work(&path)).await;
    done.map_err(io::Error::other)
}

/// The folders where a change may make the path lead to another text: those of
/// the links on the way, and that of the file at its end.
fn folders_of(path: &Path) -> Vec<Folder> {
    let start = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mut here = PathBuf::new();
    // The remaining path components, the next one last.
    let mut steps = Vec::new();
    let put = |steps: &mut Vec<OsString>, path: &Path| {
        let parts = path.components().rev();
        steps.extend(parts.map(|part| part.as_os_str().to_owned()));
    };
    put(&mut steps, &start);
    let mut folders: Vec<PathBuf> = Vec::new();
    let mut links = 0;
    while let Some(step) = steps.pop() {
        match Path::new(&step).components().next() {
            Some(Component::ParentDir) => {
                here.pop();
            }
            Some(Component::Normal(name)) => {
                let next = here.join(name);
                match std::fs::read_link(&next) {
                    Ok(target) if links < MAX_LINKS => {
                        links += 1;
                        folders.push(here.clone());
                        put(&mut steps, &target);
                    }
                    Ok(_) | Err(_) => here = next,
                }
            }
            Some(Component::RootDir) => here = PathBuf::from("/"),
            Some(Component::CurDir | Component::Prefix(_)) | None => {}
        }
    }
    folders.extend(here.parent().map(Path::to_owned));
    folders.sort();
    folders.dedup();
    let which = |path: &PathBuf| {
        let found = std::fs::metadata(path).ok()?;
        Some((found.dev(), found.ino()))
    };
    let named = folders.into_iter().map(|path| {
        let which = which(&path);
        (path, which)
    });
    named.collect()
}

/// The text of the file, or the reason why it cannot be read. It has to be a
/// file that can be read again at any time: a pipe is refused, not waited for.
pub(crate) fn read(path: &Path) -> Result<String, String> {
    let name = path.display();
    let bytes = read_bytes(path).map_err(|error| format!("cannot read {name}: {error}"))?;
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        format!("{name}: not UTF-8 text, from byte {at} on")
    })
}

fn read_bytes(path: &Path) -> io::Result<Vec<u8>> {
    // A pipe without a writer must not block the reader.
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).map_err(io::Error::other)?;
    let file = std::fs::File::options()
        .read(true)
        .custom_flags(flags)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut bytes = Vec::new();
    let read = file.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
    if u64::try_from(read).is_ok_and(|read| read <= MAX_FILE) {
        return Ok(bytes);
    }
    let most = MAX_FILE >> 20;
    Err(io::Error::other(format!("it is longer than {most} MiB")))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::unix::fs::symlink;

    use super::*;

    fn names(path: &Path) -> Vec<PathBuf> {
        folders_of(path).into_iter().map(|(path, _)| path).collect()
    }

    #[test]
    fn the_folder_of_each_link_on_the_way_is_watched() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        std::fs::create_dir_all(dir.join("app/releases/5")).unwrap();
        std::fs::create_dir_all(dir.join("etc")).unwrap();
        std::fs::write(dir.join("app/releases/5/acl"), "{}").unwrap();
        assert_eq!(
            names(&dir.join("app/releases/5/acl")),
            [dir.join("app/releases/5")]
        );
        symlink("releases/5", dir.join("app/current")).unwrap();
        symlink("../app/./current/acl", dir.join("etc/acl")).unwrap();
        symlink(dir.join("etc"), dir.join("conf")).unwrap();
        let all = ["", "app", "app/releases/5", "etc"];
        assert_eq!(
            names(&dir.join("conf/acl")),
            all.map(|name| match name {
                "" => dir.clone(),
                name => dir.join(name),
            })
        );
        // One that is gone is watched where it would be.
        std::fs::remove_dir_all(dir.join("app/releases/5")).unwrap();
        assert_eq!(names(&dir.join("conf/acl")).len(), 4);
        // In a circle.
        symlink("loop", dir.join("loop")).unwrap();
        assert!(names(&dir.join("loop/acl")).contains(&dir));
    }

    #[test]
    fn only_regular_files_of_some_length_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("acl");
        rustix::fs::mkfifoat(rustix::fs::CWD, &file, rustix::fs::Mode::RUSR).unwrap();
        assert!(read(&file).unwrap_err().contains("not a regular file"));
        assert!(read(dir.path()).unwrap_err().contains("not a regular file"));
        std::fs::remove_file(&file).unwrap();
        std::fs::write(&file, "{}").unwrap();
        assert_eq!(read(&file).unwrap(), "{}");
        let long = std::fs::File::create(&file).unwrap();
        long.set_len(MAX_FILE).unwrap();
        assert_eq!(read(&file).unwrap().len(), 16 << 20);
        long.set_len(MAX_FILE + 1).unwrap();
        assert!(read(&file).unwrap_err().contains("longer than 16 MiB"));
    }
}

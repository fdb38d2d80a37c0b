//! A policy file that is in charge: watched, and taken when it changes.
//!
//! Editors write a file in place, or write another and put it in its place;
//! deployment tools exchange a link or a whole folder. So it is the folders
//! that are watched, of the file and of what it is a link to, and whatever
//! happens in them, the file is read again; a text that is in force already is
//! nothing new. What is wrong leaves the last good policy in force.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::inotify;
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;

use crate::hub::{Hub, wall_clock};

/// A save is several events; what comes within this time is one.
const QUIET: Duration = Duration::from_millis(100);
/// How often a folder that is gone is looked for.
const RETRY: Duration = Duration::from_secs(1);

/// Watches until the task is dropped.
pub async fn watch(path: PathBuf, hub: Arc<Hub>) {
    let mut told = String::new();
    loop {
        if let Err(error) = follow(&path, &hub).await {
            let error = error.to_string();
            if told != error {
                tracing::warn!(
                    "cannot watch the policy file {}: {error}; it is read once a second instead",
                    path.display()
                );
                told = error;
            }
            tokio::time::sleep(RETRY).await;
            reload(&path, &hub).await;
        }
    }
}

/// Follows the folders as they are now; ends when they are others.
async fn follow(path: &Path, hub: &Arc<Hub>) -> io::Result<()> {
    let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
    let events = inotify::init(flags)?;
    let wanted = inotify::WatchFlags::CLOSE_WRITE
        | inotify::WatchFlags::MOVED_TO
        | inotify::WatchFlags::MOVED_FROM
        | inotify::WatchFlags::CREATE
        | inotify::WatchFlags::DELETE
        | inotify::WatchFlags::DELETE_SELF
        | inotify::WatchFlags::MOVE_SELF;
    let folders = folders_of(path);
    for (folder, _) in &folders {
        inotify::add_watch(&events, folder, wanted)?;
    }
    // To be read like any stream of bytes; what they say does not matter.
    let mut events = pipe::Receiver::from_owned_fd_unchecked(events)?;
    // What happened before the watches stood.
    reload(path, hub).await;
    let mut buffer = [0; 4096];
    while folders_of(path) == folders {
        // How much was read does not matter: the rest is drained below.
        let _some = events.read(&mut buffer).await?;
        tokio::time::sleep(QUIET).await;
        while events.try_read(&mut buffer).is_ok_and(|n| n > 0) {}
        reload(path, hub).await;
    }
    Ok(())
}

/// The folder of the file, and of what it is a link to.
fn folders_of(path: &Path) -> Vec<(PathBuf, Option<u64>)> {
    let folder = |path: &Path| match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        Some(_) | None => PathBuf::from("."),
    };
    let mut out = vec![folder(path)];
    if let Ok(real) = path.canonicalize() {
        out.push(folder(&real));
    }
    // A folder that was replaced is another one under the same name.
    let inode = |path: &PathBuf| std::fs::metadata(path).ok().map(|found| found.ino());
    out.into_iter()
        .map(|path| {
            let inode = inode(&path);
            (path, inode)
        })
        .collect()
}

/// Reads the file and takes what it says, if that is new.
async fn reload(path: &Path, hub: &Arc<Hub>) {
    let failed = |why: &str| {
        let known = hub.read(|c| {
            let problem = c.policy_file().and_then(|file| file.problem.as_ref());
            problem.is_some_and(|(_, text)| text == why)
        });
        if !known {
            tracing::error!("the policy stays as it was: {why}");
            let ((), _rows) = hub.change(|c, _, _| c.policy_file_failed(wall_clock(), why));
        }
    };
    let text = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) => return failed(&format!("cannot read {}: {error}", path.display())),
    };
    let text = match String::from_utf8(text) {
        Ok(text) => text,
        Err(error) => {
            let at = error.utf8_error().valid_up_to();
            let name = path.display();
            return failed(&format!("{name}: not UTF-8 text, from byte {at} on"));
        }
    };
    let known = hub.read(|c| {
        let file = c.policy_file();
        file.is_some_and(|file| file.problem.is_none())
            && c.snapshot().policy.as_ref() == Some(&text)
    });
    if known {
        return;
    }
    let before = hub.read(|c| c.policy_file().and_then(|file| file.problem.clone()));
    match hub
        .change_saved(|c, _, wall| c.take_policy_file(wall, text))
        .await
    {
        Ok(Ok(true)) => {
            let version = hub.read(warren_control_core::Coordinator::policy_version);
            tracing::info!(
                "policy version {} from {} is in force",
                version.unwrap_or_default(),
                path.display()
            );
        }
        Ok(Ok(false)) => {}
        Ok(Err(error)) => {
            let error = error.to_string();
            if before.is_none_or(|(_, text)| text != error) {
                tracing::error!("the policy stays as it was:\n{error}");
            }
        }
        Err(error) => tracing::error!("{error}"),
    }
}

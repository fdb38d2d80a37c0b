//! resolv.conf in our hands: taking it, defending it, giving it back.
//!
//! The original is copied to [`BACKUP_NAME`] *before* the file is replaced in
//! one step, so at every moment either the original is in place or the copy
//! is complete. A symbolic link is kept as a link.

#![allow(unsafe_code)] // tokio asks for a promise that a descriptor stays the same

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use inotify::{Inotify, WatchMask};
use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags};
use tokio::io::unix::AsyncFd;
use tokio::task::JoinHandle;

use super::resolv_conf::{BaseConfig, is_ours, render};
use super::{OsDnsConfig, ResolverError, ResolverOptions};
use crate::atomic_file::{fresh_name, sync_folder, write_atomic};

/// The original's name while ours is in place.
pub(super) const BACKUP_NAME: &str = "resolv.pre-warren-backup.conf";

/// So many times in [`FIGHT_WINDOW`] ours is written again over another
/// program's file; then that program gets its way until the window has passed.
const FIGHT_ROUNDS: usize = 10;
const FIGHT_WINDOW: Duration = Duration::from_secs(5);

/// The two files, and how to change them.
#[derive(Clone, Debug)]
struct Files {
    resolv_conf: PathBuf,
    state_dir: Option<PathBuf>,
}

/// What is at the path of resolv.conf.
#[derive(Debug, PartialEq, Eq)]
enum Present {
    Nothing,
    Ours(Vec<u8>),
    Foreign,
}

impl Files {
    fn new(options: &ResolverOptions) -> Files {
        Files {
            resolv_conf: options.resolv_conf.clone(),
            state_dir: options.state_dir.clone(),
        }
    }

    /// Whether the file is a mount of its own: it can then be written but not
    /// replaced, and the folder around it is not part of the same story.
    fn is_mounted(&self) -> bool {
        rustix::fs::statx(
            CWD,
            &self.resolv_conf,
            AtFlags::SYMLINK_NOFOLLOW,
            StatxFlags::BASIC_STATS,
        )
        .is_ok_and(|stat| stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
    }

    fn backup(&self) -> PathBuf {
        match &self.state_dir {
            Some(folder) if self.is_mounted() => folder.join(BACKUP_NAME),
            _ => self.resolv_conf.with_file_name(BACKUP_NAME),
        }
    }

    fn present(&self) -> Result<Present, ResolverError> {
        match std::fs::read(&self.resolv_conf) {
            Ok(content) if is_ours(&content) => Ok(Present::Ours(content)),
            Ok(_) => Ok(Present::Foreign),
            // A link that points nowhere is somebody's too.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Ok(match std::fs::symlink_metadata(&self.resolv_conf) {
                    Ok(_) => Present::Foreign,
                    Err(_) => Present::Nothing,
                })
            }
            Err(error) => Err(file_error("read", &self.resolv_conf)(error)),
        }
    }

    /// Keeps a copy of the file that is not ours.
    fn keep_original(&self) -> Result<(), ResolverError> {
        let backup = self.backup();
        copy(&self.resolv_conf, &backup, self.is_mounted())
            .map_err(file_error("keep a copy of the original as", &backup))
    }

    fn put(&self, content: &[u8], mode: u32) -> Result<(), ResolverError> {
        let replaced = if self.is_mounted() {
            Err(io::ErrorKind::ResourceBusy.into())
        } else {
            write_atomic(&self.resolv_conf, content, mode)
        };
        match replaced {
            // The folder may be read-only while the file is not; a full disk
            // on the other hand must not cost the old content.
            Err(error) if error.kind() != io::ErrorKind::StorageFull => {
                write_in_place(&self.resolv_conf, content)
            }
            other => other,
        }
        .map_err(file_error("write", &self.resolv_conf))
    }

    /// Gives the file back if it is ours, and forgets the copy.
    fn restore(&self) -> Result<(), ResolverError> {
        let backup = self.backup();
        if let Present::Ours(_) = self.present()? {
            match std::fs::symlink_metadata(&backup) {
                Ok(_) if !self.is_mounted() => {
                    let renamed = std::fs::rename(&backup, &self.resolv_conf);
                    if renamed.is_ok() {
                        // Best effort: the name is right, only its way to the
                        // disk is not proved.
                        let _ = sync_folder(&self.resolv_conf);
                        return Ok(());
                    }
                    self.restore_content(&backup)?;
                }
                Ok(_) => self.restore_content(&backup)?,
                // There was none when we came.
                Err(error) if error.kind() == io::ErrorKind::NotFound => self.remove()?,
                Err(error) => return Err(file_error("read", &backup)(error)),
            }
        }
        match std::fs::remove_file(&backup) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(file_error("remove", &backup)(error))
            }
            _ => Ok(()),
        }
    }

    fn restore_content(&self, backup: &Path) -> Result<(), ResolverError> {
        let content = std::fs::read(backup).map_err(file_error("read", backup))?;
        write_in_place(&self.resolv_conf, &content).map_err(file_error("write", &self.resolv_conf))
    }

    fn remove(&self) -> Result<(), ResolverError> {
        std::fs::remove_file(&self.resolv_conf)
            .or_else(|_| write_in_place(&self.resolv_conf, b""))
            .map_err(file_error("remove", &self.resolv_conf))
    }
}

/// Restores what a killed predecessor left, or forgets a copy that nobody
/// needs because somebody else wrote the file since.
pub(super) fn recover(options: &ResolverOptions) -> Result<(), ResolverError> {
    let files = Files::new(options);
    if let Present::Ours(_) = files.present()? {
        tracing::info!(path = %files.resolv_conf.display(), "restoring resolv.conf after a crash");
    }
    files.restore()
}

fn copy(from: &Path, to: &Path, by_content: bool) -> io::Result<()> {
    let meta = std::fs::symlink_metadata(from)?;
    if meta.is_symlink() && !by_content {
        let fresh = fresh_name(to)?;
        std::os::unix::fs::symlink(std::fs::read_link(from)?, &fresh)?;
        return std::fs::rename(&fresh, to);
    }
    let content = std::fs::read(from)?;
    write_atomic(to, &content, meta.permissions().mode() & 0o777)
}

fn write_in_place(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).truncate(true).open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

fn file_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ResolverError {
    let path = path.to_owned();
    move |source| ResolverError::File {
        action,
        path,
        source,
    }
}

/// The file and the text we want in it.
#[derive(Debug)]
struct Shared {
    files: Files,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Ours, while it is taken.
    wanted: Option<Vec<u8>>,
    /// What the machine had, as far as the file tells.
    base: BaseConfig,
    /// When ours was last written over another program's file.
    fights: VecDeque<Instant>,
    overwritten: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Every update is whole before anything can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes `wanted` if something else is there. What another program wrote
    /// becomes the original.
    fn assert(&self, state: &mut State, now: Instant) -> Result<(), ResolverError> {
        let Some(wanted) = state.wanted.clone() else {
            return Ok(());
        };
        match self.files.present()? {
            Present::Ours(content) if content == wanted => return Ok(()),
            Present::Ours(_) | Present::Nothing => {}
            Present::Foreign => {
                if !state.may_fight(now) {
                    return Ok(());
                }
                self.files.keep_original()?;
                let content = std::fs::read(self.files.backup()).unwrap_or_default();
                state.base = BaseConfig::parse(&String::from_utf8_lossy(&content));
            }
        }
        self.files.put(&wanted, 0o644)
    }
}

impl State {
    fn may_fight(&mut self, now: Instant) -> bool {
        while self
            .fights
            .front()
            .is_some_and(|fight| now.saturating_duration_since(*fight) >= FIGHT_WINDOW)
        {
            self.fights.pop_front();
        }
        self.overwritten = self.fights.len() >= FIGHT_ROUNDS;
        if !self.overwritten {
            self.fights.push_back(now);
        }
        !self.overwritten
    }
}

/// resolv.conf, ours from [`Direct::apply`] to [`Direct::revert`] or drop.
#[derive(Debug)]
pub(super) struct Direct {
    shared: Arc<Shared>,
    watch: Option<JoinHandle<()>>,
}

impl Direct {
    pub(super) fn new(options: &ResolverOptions) -> Direct {
        let base = BaseConfig::parse(&super::read_or_empty(&options.resolv_conf));
        Direct {
            shared: Arc::new(Shared {
                files: Files::new(options),
                state: Mutex::new(State {
                    base,
                    ..State::default()
                }),
            }),
            watch: None,
        }
    }

    pub(super) fn base_config(&self) -> BaseConfig {
        let state = self.shared.lock();
        if state.wanted.is_none() {
            return BaseConfig::parse(&super::read_or_empty(&self.shared.files.resolv_conf));
        }
        state.base.clone()
    }

    pub(super) fn is_overwritten(&self) -> bool {
        self.shared.lock().overwritten
    }

    pub(super) fn apply(&mut self, config: &OsDnsConfig) -> Result<(), ResolverError> {
        if self.watch.as_ref().is_none_or(JoinHandle::is_finished) {
            // First the watch, then the file: what comes in between is seen.
            // Without it the file is still set, only not defended.
            match watch(&self.shared) {
                Ok(task) => self.watch = Some(task),
                Err(error) => tracing::warn!(%error, "cannot watch resolv.conf for changes"),
            }
        }
        let mut state = self.shared.lock();
        state.wanted = Some(render(config).into_bytes());
        // What we are asked to do is no fight.
        state.fights.clear();
        self.shared.assert(&mut state, Instant::now())
    }

    pub(super) fn revert(&mut self) -> Result<(), ResolverError> {
        if let Some(watch) = self.watch.take() {
            watch.abort();
        }
        let mut state = self.shared.lock();
        if state.wanted.take().is_none() {
            return Ok(());
        }
        state.overwritten = false;
        self.shared.files.restore()
    }
}

impl Drop for Direct {
    fn drop(&mut self) {
        if let Err(error) = self.revert() {
            tracing::warn!(%error, "resolv.conf was not restored");
        }
    }
}

/// Starts the task that looks at the file whenever something happens to it.
fn watch(shared: &Arc<Shared>) -> io::Result<JoinHandle<()>> {
    let path = shared.files.resolv_conf.clone();
    let mut inotify = Inotify::init()?;
    // The folder, because editors and other managers replace the file.
    let folder = path.parent().unwrap_or(Path::new("/"));
    inotify.watches().add(
        folder,
        WatchMask::CREATE | WatchMask::MOVED_TO | WatchMask::DELETE | WatchMask::CLOSE_WRITE,
    )?;
    watch_file(&mut inotify, &path);
    // SAFETY: an `Inotify` owns its descriptor and keeps the same one open for
    // as long as it lives, which is as long as the `AsyncFd` around it.
    let mut inotify = unsafe { AsyncFd::register(inotify) }?;
    let shared = Arc::clone(shared);
    Ok(tokio::spawn(async move {
        let name = path.file_name().map(OsStr::to_owned);
        loop {
            let concerns_us = tokio::select! {
                readable = inotify.readable_mut() => match readable {
                    Ok(mut guard) => {
                        let mut buffer = [0; 4096];
                        let events = guard.try_io(|inner| {
                            let mut events = inner.get_mut().read_events(&mut buffer)?;
                            // An event without a name is of the file itself.
                            Ok(events.any(|event| event.name.is_none() || event.name == name.as_deref()))
                        });
                        events.is_ok_and(|events| events.unwrap_or(true))
                    }
                    Err(error) => {
                        tracing::warn!(%error, "resolv.conf is not watched any more");
                        return;
                    }
                },
                // After a lost fight nobody may write again, so look by time.
                () = tokio::time::sleep(FIGHT_WINDOW), if shared.lock().overwritten => true,
            };
            if concerns_us {
                let mut state = shared.lock();
                if let Err(error) = shared.assert(&mut state, Instant::now()) {
                    tracing::warn!(%error, "another program changed resolv.conf");
                }
                drop(state);
                watch_file(inotify.get_mut(), &path);
            }
        }
    }))
}

/// Watches the file itself as well: writes into a file that is mounted by
/// itself do not show in its folder. Watching the same file twice is once.
fn watch_file(inotify: &mut Inotify, path: &Path) {
    let _ = inotify.watches().add(path, WatchMask::CLOSE_WRITE);
}

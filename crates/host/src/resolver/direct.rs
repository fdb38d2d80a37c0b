//! resolv.conf in our hands: taking it, defending it, giving it back.
//!
//! The original is copied to [`BACKUP_NAME`] *before* the file is replaced in
//! one step, so at every moment either the original is in place or the copy
//! is complete. A symbolic link is replaced, and the copy is a link too.
//!
//! Appliances mount `/etc` read-only and let resolv.conf be a link into a folder
//! that is writable. There the target of the link is written, and the copy is in
//! the state folder.

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
use rustix::fs::{Access, AtFlags, CWD, StatxAttributes, StatxFlags};
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
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

/// The file at the path of resolv.conf.
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
    /// replaced, and the folder around it belongs to another system.
    fn is_mounted(&self) -> bool {
        rustix::fs::statx(
            CWD,
            &self.resolv_conf,
            AtFlags::SYMLINK_NOFOLLOW,
            StatxFlags::BASIC_STATS,
        )
        .is_ok_and(|stat| stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
    }

    /// The file that is written: resolv.conf, or the target of the link at that
    /// path where its own folder takes no files.
    fn target(&self) -> PathBuf {
        if self.is_mounted() || takes_files(folder_of(&self.resolv_conf)) {
            return self.resolv_conf.clone();
        }
        self.link_target()
            .unwrap_or_else(|| self.resolv_conf.clone())
    }

    /// The end of the link at the path of resolv.conf, where there is one. It may be
    /// missing.
    fn link_target(&self) -> Option<PathBuf> {
        let next = std::fs::read_link(&self.resolv_conf).ok()?;
        let whole = std::fs::canonicalize(&self.resolv_conf);
        Some(whole.unwrap_or_else(|_| folder_of(&self.resolv_conf).join(next)))
    }

    /// Where the copy is kept while `target` is ours.
    fn backup(&self, target: &Path) -> PathBuf {
        match &self.state_dir {
            Some(folder) if self.is_mounted() || target != self.resolv_conf => {
                folder.join(BACKUP_NAME)
            }
            _ => target.with_file_name(BACKUP_NAME),
        }
    }

    /// The copy that a take-over left, wherever it was kept: the folder may have been
    /// writable then and not be now, or the reverse.
    fn kept(&self) -> Result<Option<PathBuf>, ResolverError> {
        let mut places = vec![self.backup(&self.target())];
        // The folder around a mounted file may belong to another system.
        if !self.is_mounted() {
            places.push(self.resolv_conf.with_file_name(BACKUP_NAME));
            places.extend(self.link_target().map(|it| it.with_file_name(BACKUP_NAME)));
            places.extend(self.state_dir.as_ref().map(|it| it.join(BACKUP_NAME)));
        }
        for place in places {
            match std::fs::symlink_metadata(&place) {
                Ok(_) => return Ok(Some(place)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(file_error("read", &place)(error)),
            }
        }
        Ok(None)
    }

    /// The settings that the machine had, by the copy if the file is ours.
    fn original(&self) -> String {
        match (self.present(), self.kept()) {
            (Ok(Present::Ours(_)), Ok(Some(kept))) => super::read_or_empty(&kept),
            _ => super::read_or_empty(&self.resolv_conf),
        }
    }

    fn present(&self) -> Result<Present, ResolverError> {
        match std::fs::read(&self.resolv_conf) {
            Ok(content) if is_ours(&content) => Ok(Present::Ours(content)),
            Ok(_) => Ok(Present::Foreign),
            // A dangling link belongs to another program too.
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
        let target = self.target();
        let backup = self.backup(&target);
        let by_content = self.is_mounted() || target != self.resolv_conf;
        match copy(&self.resolv_conf, &backup, by_content) {
            // A link that points nowhere has no content: without a copy the file
            // is removed at the end.
            Err(error) if by_content && error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other.map_err(file_error("keep a copy of the original as", &backup)),
        }
    }

    fn put(&self, content: &[u8], mode: u32) -> Result<(), ResolverError> {
        let target = self.target();
        self.write(&target, content, mode)
            .map_err(file_error("write", &target))
    }

    /// Replaces the content of `target` in one step where that is possible.
    fn write(&self, target: &Path, content: &[u8], mode: u32) -> io::Result<()> {
        let replaced = if self.is_mounted() {
            Err(io::ErrorKind::ResourceBusy.into())
        } else {
            write_atomic(target, content, mode)
        };
        match replaced {
            // The folder may be read-only while the file is not; a full disk
            // on the other hand must not cost the old content.
            Err(error) if error.kind() != io::ErrorKind::StorageFull => {
                write_in_place(target, content)
            }
            other => other,
        }
    }

    /// Gives the file back if it is ours, and forgets the copy.
    fn restore(&self) -> Result<(), ResolverError> {
        if let Present::Ours(_) = self.present()? {
            // A link with our text behind it was there before: its target was written.
            let target = self.link_target();
            let target = target.unwrap_or_else(|| self.resolv_conf.clone());
            match self.kept()? {
                Some(kept) => self.put_back(&target, &kept)?,
                // There was none when we came.
                None => std::fs::remove_file(&target)
                    .or_else(|_| write_in_place(&target, b""))
                    .map_err(file_error("remove", &target))?,
            }
        }
        self.forget_copy();
        Ok(())
    }

    fn put_back(&self, target: &Path, kept: &Path) -> Result<(), ResolverError> {
        let beside = kept.parent() == target.parent();
        if beside && !self.is_mounted() && std::fs::rename(kept, target).is_ok() {
            // Best effort: the name is right, only its way to the disk is not proved.
            let _ = sync_folder(target);
            return Ok(());
        }
        let content = std::fs::read(kept).map_err(file_error("read", kept))?;
        let mode = std::fs::metadata(kept).map_or(0o644, |meta| meta.permissions().mode());
        self.write(target, &content, mode & 0o777)
            .map_err(file_error("write", target))
    }

    /// Removes a copy that is not needed any more. One that stays does no harm: the
    /// next take-over writes it again.
    fn forget_copy(&self) {
        if let Ok(Some(kept)) = self.kept()
            && let Err(error) = std::fs::remove_file(&kept)
        {
            tracing::debug!(path = %kept.display(), %error, "an old copy of resolv.conf stays");
        }
    }
}

fn folder_of(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

/// Whether files can be made in `folder`: not on a read-only mount, nor where the
/// folder is immutable.
fn takes_files(folder: &Path) -> bool {
    rustix::fs::access(folder, Access::WRITE_OK).is_ok()
}

/// Restores what a killed predecessor left, or forgets a copy that is not needed
/// because another program wrote the file since.
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
    /// Another program wrote a file with other settings.
    base_changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// The content of our file, while it is taken.
    wanted: Option<OsDnsConfig>,
    /// The settings without us, as far as the file shows them.
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

    /// Writes `wanted` if the file differs. The content that another program wrote
    /// becomes the original.
    fn assert(&self, state: &mut State, now: Instant) -> Result<(), ResolverError> {
        let Some(wanted) = state.wanted.clone() else {
            return Ok(());
        };
        match self.files.present()? {
            Present::Ours(content) if content == render(&wanted, &state.base).as_bytes() => {
                return Ok(());
            }
            Present::Ours(_) | Present::Nothing => {}
            Present::Foreign => {
                if !state.may_fight(now) {
                    return Ok(());
                }
                let content = super::read_or_empty(&self.files.resolv_conf);
                self.files.keep_original()?;
                let base = BaseConfig::parse_whole(&content);
                if state.base != base {
                    state.base = base;
                    self.base_changed.notify_one();
                }
            }
        }
        let text = render(&wanted, &state.base);
        let done = self.files.put(text.as_bytes(), 0o644);
        if done.is_err() && !matches!(self.files.present(), Ok(Present::Ours(_))) {
            self.files.forget_copy();
        }
        done
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
        let files = Files::new(options);
        let base = BaseConfig::parse_whole(&files.original());
        Direct {
            shared: Arc::new(Shared {
                files,
                state: Mutex::new(State {
                    base,
                    ..State::default()
                }),
                base_changed: Notify::new(),
            }),
            watch: None,
        }
    }

    pub(super) fn base_config(&self) -> BaseConfig {
        let state = self.shared.lock();
        if state.wanted.is_none() {
            return BaseConfig::parse_whole(&self.shared.files.original());
        }
        state.base.clone()
    }

    /// Waits until what the machine had is something else than before.
    pub(super) async fn base_changed(&self) {
        self.shared.base_changed.notified().await;
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
        state.wanted = Some(config.clone());
        // A requested change does not count as a fight.
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
    let target = shared.files.target();
    let mut inotify = Inotify::init()?;
    // The folders, because editors and other managers replace the file.
    for folder in [folder_of(&path), folder_of(&target)] {
        inotify.watches().add(
            folder,
            WatchMask::CREATE | WatchMask::MOVED_TO | WatchMask::DELETE | WatchMask::CLOSE_WRITE,
        )?;
    }
    watch_file(&mut inotify, &path);
    // SAFETY: an `Inotify` owns its descriptor and keeps the same one open for
    // as long as it lives, which is as long as the `AsyncFd` around it.
    let mut inotify = unsafe { AsyncFd::register(inotify) }?;
    let shared = Arc::clone(shared);
    Ok(tokio::spawn(async move {
        let names = [&path, &target].map(|path| path.file_name().map(OsStr::to_owned));
        loop {
            let concerns_us = tokio::select! {
                readable = inotify.readable_mut() => match readable {
                    Ok(mut guard) => {
                        let mut buffer = [0; 4096];
                        let events = guard.try_io(|inner| {
                            let mut events = inner.get_mut().read_events(&mut buffer)?;
                            // An event without a name is of the file itself.
                            Ok(events.any(|event| {
                                event.name.is_none()
                                    || names.iter().any(|name| event.name == name.as_deref())
                            }))
                        });
                        events.is_ok_and(|events| events.unwrap_or(true))
                    }
                    Err(error) => {
                        tracing::warn!(%error, "resolv.conf is not watched any more");
                        return;
                    }
                },
                // After a lost fight there may be no more events, so look by time.
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

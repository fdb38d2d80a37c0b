//! Settings that are read again while the server runs.
//!
//! Everything is read and checked first; if anything is wrong, nothing changes. The
//! policy comes first of what is put to use, for it alone can still be refused: its tests
//! may fail with the users and nodes of the moment.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::Mutex;
use url::Url;
use warren_control_api::endpoints::ReloadInfo;
use warren_logging::{LevelControl, LevelFilter, Levels};

use crate::config::{self, Mistake, Mistakes, Origin, Settings, Source};
use crate::coordinator::CoordinatorHandle;
use crate::inputs::Inputs;
use crate::login::Logins;
use crate::policy_file;
use crate::self_map::check_outside_zone;
use crate::store::StoreError;

/// Reads the settings of a running server again.
pub struct Reloader {
    pub(crate) source: Source,
    /// Those that were read last. One reload at a time.
    pub(crate) last: Mutex<Settings>,
    pub(crate) coordinator: Arc<CoordinatorHandle>,
    pub(crate) logins: Arc<Logins>,
    /// The URL of the server.
    pub(crate) url: Url,
    /// The policy file in charge.
    pub(crate) policy: Option<PathBuf>,
    /// The log, where this process is the server and nothing else.
    pub(crate) log: Option<LevelControl>,
}

impl std::fmt::Debug for Reloader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reloader").finish_non_exhaustive()
    }
}

/// Why the settings were not read again. Nothing changed.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// Something is wrong with them.
    #[error(transparent)]
    Mistakes(#[from] Mistakes),
    /// A row cannot be written.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The levels of the log: those of the environment, else those of the settings.
pub(crate) fn levels(settings: &Settings) -> Levels {
    Levels::of_environment()
        .or_else(|| settings.log_levels.clone())
        .unwrap_or_else(|| Levels::all(LevelFilter::WARN))
}

impl Reloader {
    /// Reads the settings and the files that they name, and uses what is different and
    /// needs no restart.
    ///
    /// # Errors
    /// Everything that is wrong with them; nothing changed.
    pub async fn reload(&self) -> Result<ReloadInfo, ReloadError> {
        let mut last = self.last.lock().await;
        let source = self.source.clone();
        let read = tokio::task::spawn_blocking(move || {
            let settings = source.read()?;
            let inputs = Inputs::read(&settings)?;
            Ok::<_, Mistakes>((settings, inputs))
        });
        let (settings, inputs) = read.await.unwrap_or_else(|error| {
            Err(Mistakes(vec![Mistake {
                place: Origin::Default,
                what: error.to_string(),
            }]))
        })?;
        if let Some(why) = inputs.records_error() {
            return Err(Mistakes(vec![Mistake {
                place: settings.origin("[dns]", "records_file"),
                what: why.to_owned(),
            }])
            .into());
        }
        let (changed, needs_restart) = config::changed(&last.entries, &settings.entries);
        let mut info = ReloadInfo {
            changed,
            needs_restart,
        };
        // Without a map there is a relay here, and that begins and ends with the server.
        let takes_map = last.derp_map.is_some() && settings.derp_map.is_some();
        let map = inputs.derp_map.filter(|_| takes_map);
        if !takes_map {
            restart_for(&mut info, "[relay] derp_map");
        }
        let zone = self
            .coordinator
            .read(|view| view.config().base_domain.clone());
        if let Some(map) = &map
            && let Err(what) = check_outside_zone(&zone, &self.url, map)
        {
            let place = settings.origin("[relay]", "derp_map");
            return Err(Mistakes(vec![Mistake { place, what }]).into());
        }
        if let (Some(file), Some((_, read))) = (&self.policy, inputs.policy)
            && settings.policy == last.policy
            && self.take_policy(file, read, &settings).await?
        {
            info.changed.push(format!("policy {}", file.display()));
        }
        if let Some(map) = map {
            let before = self.coordinator.read(|view| view.config().derp_map.clone());
            if before != map {
                info.changed.push("relays".to_owned());
                let ((), _no_rows) = self.coordinator.change(|c, _, _| c.set_derp_map(map));
            }
        }
        let dns = settings.dns.clone();
        let ((), _no_rows) = self.coordinator.change(|c, _, _| c.set_configured_dns(dns));
        if settings.providers != last.providers {
            self.logins.replace(settings.providers.clone());
            info.changed.push("identity providers".to_owned());
        }
        if let Some(log) = &self.log {
            log.set(levels(&settings));
        }
        *last = settings.as_used(&last);
        tracing::info!(changed = ?info.changed, "the settings were read again");
        Ok(info)
    }

    async fn take_policy(
        &self,
        file: &std::path::Path,
        read: Result<String, String>,
        settings: &Settings,
    ) -> Result<bool, ReloadError> {
        let wrong = |what: String| {
            let place = settings.origin("[policy]", "file");
            ReloadError::Mistakes(Mistakes(vec![Mistake { place, what }]))
        };
        let text = read.map_err(wrong)?;
        let taken = policy_file::take(&self.coordinator, file, text).await?;
        taken.map_err(|error| wrong(error.to_string()))
    }
}

/// Moves a key to those that need a restart.
fn restart_for(info: &mut ReloadInfo, key: &str) {
    let (moved, rest) = std::mem::take(&mut info.changed)
        .into_iter()
        .partition(|changed| changed == key);
    info.changed = rest;
    info.needs_restart.extend::<Vec<String>>(moved);
}

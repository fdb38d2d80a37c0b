//! The name servers that systemd-resolved asks, in the file that it writes.
//!
//! It writes the file some time after the network has changed, so the file is looked at
//! every few seconds while it is needed.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::read_or_empty;
use super::resolv_conf::BaseConfig;

/// The time between two looks at the file.
const LOOK: Duration = Duration::from_secs(5);

/// The file, and its settings as of the last time that they were asked for.
#[derive(Debug)]
pub(super) struct Uplinks {
    path: PathBuf,
    seen: Mutex<BaseConfig>,
}

impl Uplinks {
    pub(super) fn new(path: PathBuf) -> Self {
        Self {
            path,
            seen: Mutex::default(),
        }
    }

    /// The settings as of now.
    pub(super) fn base_config(&self) -> BaseConfig {
        let config = BaseConfig::parse(&read_or_empty(&self.path));
        self.replace_seen(config.clone());
        config
    }

    /// Waits until the settings are others than those that were asked for last. Can be
    /// dropped and called again.
    pub(super) async fn changed(&self) {
        loop {
            let config = BaseConfig::parse(&read_or_empty(&self.path));
            if self.replace_seen(config) {
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Whether these are others than before.
    fn replace_seen(&self, config: BaseConfig) -> bool {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let differ = *seen != config;
        *seen = config;
        differ
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn servers_of_another_network_are_seen() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("resolv.conf");
        std::fs::write(&path, "nameserver 192.0.2.1\n").unwrap();
        let uplinks = Uplinks::new(path.clone());
        assert_eq!(uplinks.base_config().nameservers.len(), 1);
        let unchanged = tokio::time::timeout(10 * LOOK, uplinks.changed()).await;
        assert!(unchanged.is_err());
        // Also a change while the file is not looked at.
        for servers in ["nameserver 192.0.2.2\n", ""] {
            std::fs::write(&path, servers).unwrap();
            let changed = tokio::time::timeout(10 * LOOK, uplinks.changed()).await;
            assert!(changed.is_ok());
        }
        std::fs::write(&path, "# a comment\n").unwrap();
        let unchanged = tokio::time::timeout(10 * LOOK, uplinks.changed()).await;
        assert!(unchanged.is_err());
    }
}

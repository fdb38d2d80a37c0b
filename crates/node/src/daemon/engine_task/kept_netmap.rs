//! The netmap on disk, with which the node starts while the coordination
//! server is away.
//!
//! It is written soon after every change, so that a node that is killed right
//! after joining still knows its network.

use std::time::{Duration, Instant};

use super::EngineTask;

/// A netmap is written at most this often, a big one less often.
const WRITES: Duration = Duration::from_millis(100);
/// How often a big one.
const BIG_WRITES: Duration = Duration::from_secs(5);
/// From how many peers on it is big.
const BIG: usize = 200;

impl EngineTask {
    pub(super) fn save_netmap_if_due(&mut self, now: Instant) {
        if self.netmap_due().is_some_and(|due| now >= due) {
            self.save_netmap();
        }
    }

    /// When the netmap is to be written; `None` when the file is up to date.
    pub(super) fn netmap_due(&self) -> Option<Instant> {
        let big = self.engine.netmap().peers.len() > BIG;
        let pause = if big { BIG_WRITES } else { WRITES };
        self.netmap_unsaved.then(|| self.netmap_saved_at + pause)
    }

    pub(super) fn save_netmap(&mut self) {
        if !std::mem::take(&mut self.netmap_unsaved) || self.state.login.is_none() {
            return;
        }
        self.netmap_saved_at = Instant::now();
        match serde_json::to_vec(self.engine.netmap()) {
            Ok(text) => self.files.write(
                self.state.netmap_path(),
                text,
                "cannot keep the netmap; a restart needs the server",
            ),
            Err(error) => tracing::warn!(%error, "cannot keep the netmap"),
        }
    }

    /// Forgets the netmap, for a logout.
    pub(super) fn forget_netmap(&mut self) {
        self.netmap_unsaved = false;
        self.files
            .remove(self.state.netmap_path(), "cannot remove the kept netmap");
    }
}

//! The programs that listen to changes.

use tokio::sync::mpsc;

use crate::localapi::notify::{EngineStatus, Notify, NotifyMask};

/// Notifications that may wait for a listener.
const LISTENER_QUEUE: usize = 128;

/// All listeners.
#[derive(Default)]
pub(super) struct Listeners {
    all: Vec<(NotifyMask, mpsc::Sender<Notify>)>,
    sessions_given: u64,
    /// Programs wait for the state until the server has answered a registration.
    pub(super) state_follows_login: bool,
    /// The traffic counters that they know.
    pub(super) engine_status: Option<EngineStatus>,
}

impl Listeners {
    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Whether a listener wants this part.
    pub(super) fn want(&self, part: NotifyMask) -> bool {
        self.all.iter().any(|(mask, _)| mask.contains(part))
    }

    /// A session id that was not given before.
    pub(super) fn next_session_id(&mut self) -> String {
        self.sessions_given += 1;
        format!("{:016x}", self.sessions_given)
    }

    /// Adds a listener, which gets `first` at once.
    pub(super) fn add(
        &mut self,
        mask: NotifyMask,
        first: Option<Notify>,
    ) -> mpsc::Receiver<Notify> {
        self.all.retain(|(_, listener)| !listener.is_closed());
        let (listener, notifications) = mpsc::channel(LISTENER_QUEUE);
        if let Some(first) = first {
            // The queue is new and has space.
            drop(listener.try_send(first));
        }
        self.all.push((mask, listener));
        notifications
    }

    /// Notifies all listeners of what `fill` fills in.
    pub(super) fn notify(&mut self, fill: impl FnOnce(&mut Notify)) {
        if self.all.is_empty() {
            return;
        }
        let mut notify = Notify::new();
        fill(&mut notify);
        self.all
            .retain(|(mask, listener)| match notify.clone().for_mask(*mask) {
                None => !listener.is_closed(),
                // A listener that does not keep up has to start again.
                Some(notify) => listener.try_send(notify).is_ok(),
            });
    }
}

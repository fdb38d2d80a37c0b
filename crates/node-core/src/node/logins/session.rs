//! A session with the coordination server, and how far it has come.

use std::time::Instant;

use warren_control_client::{ControlSession, Description, Input, Output};
use warren_keys::Entropy;

use crate::node::io::SessionId;

/// A session with the server, and its results so far.
pub(super) struct Session {
    pub(super) id: SessionId,
    pub(super) stage: Stage,
    /// The reason why the server cannot be reached, until it is.
    pub(super) trouble: Option<String>,
    /// The auth key as the user gave it, with the credential that it may carry.
    given_key: Option<String>,
    control: ControlSession,
}

/// How far a session has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Stage {
    /// It registers, or (re)opens the map stream.
    Connecting,
    /// A person must open this address.
    NeedsUser { url: String },
    /// The map stream is open.
    Running,
    /// The server does not know the node, for this reason. The node goes on as
    /// it does while the server is away: perhaps an administrator deleted it,
    /// perhaps the server lost its database, and then the network must not end
    /// with it.
    Unknown { why: String },
}

impl Session {
    pub(super) fn new(id: SessionId, control: ControlSession, given_key: Option<String>) -> Self {
        Self {
            id,
            stage: Stage::Connecting,
            trouble: None,
            given_key,
            control,
        }
    }

    /// The address that a person should open.
    pub(super) fn url(&self) -> Option<&str> {
        match &self.stage {
            Stage::NeedsUser { url } => Some(url),
            Stage::Connecting | Stage::Running | Stage::Unknown { .. } => None,
        }
    }

    pub(super) fn needs_user(&self) -> bool {
        self.url().is_some()
    }

    /// Whether the map stream is open.
    pub(super) fn is_running(&self) -> bool {
        self.stage == Stage::Running
    }

    /// The auth key, until it is used.
    pub(super) fn auth_key(&self) -> Option<&str> {
        self.control.auth_key().and(self.given_key.as_deref())
    }

    pub(super) fn handle(&mut self, now: Instant, input: Input, entropy: &mut dyn Entropy) {
        self.control.handle(now, input, entropy);
    }

    /// This machine changed.
    pub(super) fn describe(
        &mut self,
        now: Instant,
        description: &Description,
        entropy: &mut dyn Entropy,
    ) {
        let input = Input::Description(Box::new(description.clone()));
        self.control.handle(now, input, entropy);
    }

    pub(super) fn poll_output(&mut self) -> Option<Output> {
        self.control.poll_output()
    }

    pub(super) fn next_deadline(&self) -> Option<(Instant, &'static str)> {
        let (at, reason) = self.control.next_deadline()?;
        Some((at, reason.as_str()))
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        self.control.handle_timeout(now);
    }
}

//! A new login that the server has not accepted yet.

use warren_keys::{Entropy, NodeSecret};

use super::session::Session;
use crate::node::io::SaveId;

/// The node key of a new login.
#[derive(Clone)]
pub(super) struct CandidateKey {
    pub(super) secret: NodeSecret,
    /// Whether the server may have this key. It was sent in a registration that was not
    /// refused, or in one without an answer; of a key that was found on disk nothing is
    /// known. Such a key is never given up before the server has accepted another one.
    pub(super) may_be_known: bool,
}

impl CandidateKey {
    /// A key that was never sent.
    pub(super) fn fresh(secret: NodeSecret) -> Self {
        Self {
            secret,
            may_be_known: false,
        }
    }

    /// A new key.
    pub(super) fn generate(entropy: &mut dyn Entropy) -> Self {
        Self::fresh(NodeSecret::generate(entropy))
    }

    /// A key of a run before.
    pub(super) fn found(secret: NodeSecret) -> Self {
        Self {
            secret,
            may_be_known: true,
        }
    }
}

/// The new login beside the one in force.
pub(super) enum Candidate {
    /// No new login exists.
    None,
    /// Its key is on disk and nothing is under way.
    Dormant(CandidateKey),
    /// Its key is being written to disk.
    Saving {
        key: CandidateKey,
        save: SaveId,
        then: AfterSave,
    },
    /// A session with the server exists.
    Active(CandidateKey, Box<Session>),
}

/// The next step when a candidate's key is on disk.
pub(super) enum AfterSave {
    /// A registration with this auth key.
    Register(Option<String>),
    /// The session that asked for a fresh key continues with it.
    Continue(Box<Session>),
}

impl Candidate {
    /// Leaves `None` behind.
    pub(super) fn take(&mut self) -> Self {
        std::mem::replace(self, Self::None)
    }

    pub(super) fn exists(&self) -> bool {
        !matches!(self, Self::None)
    }

    /// Whether the server is asked, or will be when the key is on disk.
    pub(super) fn is_under_way(&self) -> bool {
        matches!(self, Self::Saving { .. } | Self::Active(..))
    }

    pub(super) fn key(&self) -> Option<&NodeSecret> {
        match self {
            Self::None => None,
            Self::Dormant(key) | Self::Saving { key, .. } | Self::Active(key, _) => {
                Some(&key.secret)
            }
        }
    }

    /// The key of a dormant candidate, if the server may have it.
    pub(super) fn known_key(&self) -> Option<&NodeSecret> {
        match self {
            Self::Dormant(key) if key.may_be_known => Some(&key.secret),
            Self::None | Self::Dormant(_) | Self::Saving { .. } | Self::Active(..) => None,
        }
    }

    /// The server may have accepted the key, or may do so later.
    pub(super) fn may_be_known(&mut self) {
        if let Self::Active(key, _) = self {
            key.may_be_known = true;
        }
    }

    /// The session, while it may continue.
    pub(super) fn session(&self) -> Option<&Session> {
        match self {
            Self::Active(_, session) => Some(session),
            Self::None | Self::Dormant(_) | Self::Saving { .. } => None,
        }
    }

    pub(super) fn session_mut(&mut self) -> Option<&mut Session> {
        match self {
            Self::Active(_, session) => Some(session),
            Self::None | Self::Dormant(_) | Self::Saving { .. } => None,
        }
    }

    /// The session, also while it waits for a fresh key.
    pub(super) fn open_session_mut(&mut self) -> Option<&mut Session> {
        match self {
            Self::Active(_, session)
            | Self::Saving {
                then: AfterSave::Continue(session),
                ..
            } => Some(session),
            Self::None | Self::Dormant(_) | Self::Saving { .. } => None,
        }
    }

    /// The key, and the session that is to be closed.
    pub(super) fn into_parts(self) -> (Option<CandidateKey>, Option<Box<Session>>) {
        match self {
            Self::None => (None, None),
            Self::Dormant(key)
            | Self::Saving {
                key,
                then: AfterSave::Register(_),
                ..
            } => (Some(key), None),
            Self::Saving {
                key,
                then: AfterSave::Continue(session),
                ..
            }
            | Self::Active(key, session) => (Some(key), Some(session)),
        }
    }

    /// The next step after the save with this number; `None` when the candidate
    /// does not wait for it.
    pub(super) fn take_saved(&mut self, id: SaveId) -> Option<(CandidateKey, AfterSave)> {
        match self.take() {
            Self::Saving { key, save, then } if save == id => Some((key, then)),
            other => {
                *self = other;
                None
            }
        }
    }
}

//! The login in force.

use super::session::Session;
use crate::node::io::Account;

/// The login in force.
pub(super) enum Login {
    /// No login exists.
    LoggedOut,
    /// A login exists, without a session with the server.
    Idle(Account),
    /// A session with the server exists.
    Active(Account, Box<Session>),
    /// Only a new login helps, for this reason.
    Ended { account: Account, why: String },
}

impl Login {
    /// Leaves `LoggedOut` behind.
    pub(super) fn take(&mut self) -> Self {
        std::mem::replace(self, Self::LoggedOut)
    }

    pub(super) fn account(&self) -> Option<&Account> {
        match self {
            Self::LoggedOut => None,
            Self::Idle(account) | Self::Active(account, _) | Self::Ended { account, .. } => {
                Some(account)
            }
        }
    }

    pub(super) fn session(&self) -> Option<&Session> {
        match self {
            Self::Active(_, session) => Some(session),
            Self::LoggedOut | Self::Idle(_) | Self::Ended { .. } => None,
        }
    }

    pub(super) fn session_mut(&mut self) -> Option<&mut Session> {
        match self {
            Self::Active(_, session) => Some(session),
            Self::LoggedOut | Self::Idle(_) | Self::Ended { .. } => None,
        }
    }

    /// Takes the account and the session out, and leaves `LoggedOut` behind.
    pub(super) fn into_parts(self) -> (Option<Account>, Option<Box<Session>>) {
        match self {
            Self::LoggedOut => (None, None),
            Self::Idle(account) | Self::Ended { account, .. } => (Some(account), None),
            Self::Active(account, session) => (Some(account), Some(session)),
        }
    }
}

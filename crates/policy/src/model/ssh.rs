//! Rules and tests of SSH logins.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::posture::Attributes;
use crate::selector::Selector;

/// An entry of `ssh`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct SshRule {
    /// `None`: accepted without a check. Otherwise the time for which a check
    /// stays valid; zero asks every time.
    pub(crate) check: Option<Duration>,
    pub(crate) sources: Vec<Selector>,
    pub(crate) to: Vec<Selector>,
    pub(crate) logins: Logins,
    pub(crate) accept_env: Vec<String>,
    pub(crate) postures: Vec<String>,
    pub(crate) recorders: Vec<Selector>,
    pub(crate) enforce_recorder: bool,
}

/// The `users` of a rule: local users of the destination.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Logins {
    /// `root`.
    pub(crate) root: bool,
    /// `autogroup:nonroot`: every account except root.
    pub(crate) nonroot: bool,
    /// Accounts by name.
    pub(crate) names: BTreeSet<String>,
    /// `localpart:*@domain`: the part of the source's own login before the @.
    pub(crate) domains: Vec<String>,
}

/// An entry of `sshTests`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct SshTest {
    pub(crate) source: Selector,
    pub(crate) source_text: String,
    pub(crate) to: Vec<(Selector, String)>,
    pub(crate) accept: Vec<String>,
    pub(crate) check: Vec<String>,
    pub(crate) deny: Vec<String>,
    /// The attributes that the source is assumed to have.
    pub(crate) attributes: Attributes,
}

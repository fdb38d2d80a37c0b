//! Logins of people in browsers.
//!
//! A login is about something that waits: a machine that wants to join, or a session
//! over SSH that wants a check. It goes through these steps, each of which is done
//! once:
//!
//! 1. *sent*: the browser was sent to the identity provider, with a `state` and a
//!    cookie;
//! 2. *returned*: it came back with both; the runtime exchanges the code for the
//!    person's account;
//! 3. *confirming*: the account is known, and the person is asked whether to connect
//!    that machine. The browser has a new cookie now, and the page a token: without
//!    this step, a link that an attacker sends would connect the attacker's machine;
//! 4. *done*: the result is shown to that browser until the time is over.
//!
//! `state`, cookie and token are 256 random bits each, and the first two are kept as
//! digests. A login has a deadline. Places are limited as for all requests that wait:
//! in total, for each source, and for each machine; a new login takes the place of the
//! oldest one that no person has logged in to yet.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use warren_control_types::NodeId;
use warren_keys::Entropy;
use warren_oidc::request::random_text;
use warren_oidc::{Account, LoginSecrets};

use crate::parked::{Full, Group, ParkedRequests, PendingId, shares_of};

/// How many logins there may be.
const MAX_LOGINS: usize = 1024;
/// How many may be about one machine or session.
const MAX_ABOUT_ONE: usize = 16;
/// How long a person may take for each step.
pub(crate) const STEP_TTL: Duration = Duration::from_secs(10 * 60);

/// The thing that a login is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoginPurpose {
    /// A machine that waits for approval.
    Machine(PendingId),
    /// A session over SSH that waits for a check.
    SshCheck(PendingId),
}

impl LoginPurpose {
    /// The id under which it waits.
    pub fn id(&self) -> &PendingId {
        match self {
            Self::Machine(id) | Self::SshCheck(id) => id,
        }
    }
}

/// A login that begins: for the browser and for the provider.
#[derive(Debug)]
pub struct BegunLogin {
    /// Names the login.
    pub id: PendingId,
    /// The parameter `state`.
    pub state: String,
    /// The content of the cookie.
    pub cookie: String,
    /// For the requests to the provider.
    pub secrets: LoginSecrets,
}

/// A login whose browser came back.
#[derive(Debug)]
pub struct ReturnedLogin {
    /// Names the login.
    pub id: PendingId,
    /// The thing that it is about.
    pub purpose: LoginPurpose,
    /// For the token call and the ID token.
    pub secrets: LoginSecrets,
}

/// The result of a login.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoginResult {
    /// This node joined, or has a new key.
    Connected(NodeId),
    /// The session was let in.
    SessionLetIn,
    /// The person did not want it.
    Declined,
}

/// A login was not found, or is not for this browser.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoLogin {
    /// Never begun, done already, or too old.
    Unknown,
    /// The cookie is another one.
    OtherBrowser,
    /// The token of the page is another one.
    Forged,
}

type Sha = [u8; 32];

#[derive(Debug)]
enum Step {
    Sent {
        state: Sha,
        cookie: Sha,
        secrets: LoginSecrets,
    },
    Returned,
    Confirming {
        cookie: Sha,
        token: String,
        account: Box<Account>,
        end: Option<Timestamp>,
    },
    Done {
        cookie: Sha,
        result: LoginResult,
        name: String,
    },
}

#[derive(Debug)]
struct BrowserLogin {
    purpose: LoginPurpose,
    provider: String,
    step: Step,
}

/// The page of a login in one of its last two steps.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Shown<'a> {
    Confirming {
        token: &'a str,
        account: &'a Account,
    },
    Done {
        result: &'a LoginResult,
        name: &'a str,
    },
}

/// A decision that a person made.
#[derive(Debug)]
pub(crate) struct Decided {
    pub(crate) purpose: LoginPurpose,
    pub(crate) account: Box<Account>,
    /// The latest end of the key of a node that joins by it.
    pub(crate) end: Option<Timestamp>,
    cookie: Sha,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Logins {
    parked: ParkedRequests<Group, BrowserLogin>,
}

impl Logins {
    pub(crate) fn begin(
        &mut self,
        now: Instant,
        purpose: LoginPurpose,
        provider: &str,
        source: Option<IpAddr>,
        entropy: &mut dyn Entropy,
    ) -> Result<BegunLogin, Full> {
        let secrets = LoginSecrets::generate(entropy);
        let (state, cookie) = (random_text(entropy), random_text(entropy));
        let mut shares = vec![(Group::About(purpose.id().clone()), MAX_ABOUT_ONE)];
        shares.extend(source.map(shares_of).unwrap_or_default());
        shares.push((Group::All, MAX_LOGINS));
        let login = BrowserLogin {
            purpose,
            provider: provider.to_owned(),
            step: Step::Sent {
                state: sha(&state),
                cookie: sha(&cookie),
                secrets: secrets.clone(),
            },
        };
        let evictable = |login: &BrowserLogin| !matches!(login.step, Step::Confirming { .. });
        let deadline = now + STEP_TTL;
        let (id, _) = self
            .parked
            .insert(login, &shares, deadline, evictable, entropy)?;
        Ok(BegunLogin {
            state: format!("{id}.{state}"),
            id,
            cookie,
            secrets,
        })
    }

    /// The browser is back from `provider`. The step is done with this, so the same
    /// address does not work twice. Another browser, which has no cookie, changes
    /// nothing.
    pub(crate) fn returned(
        &mut self,
        provider: &str,
        state: &str,
        cookie: &str,
    ) -> Result<ReturnedLogin, NoLogin> {
        let (id, random) = state.split_once('.').ok_or(NoLogin::Unknown)?;
        let id = PendingId(id.to_owned());
        let login = self.parked.get_mut(&id).ok_or(NoLogin::Unknown)?;
        let Step::Sent {
            state,
            cookie: own,
            secrets,
        } = &login.step
        else {
            return Err(NoLogin::Unknown);
        };
        if !is_digest_of(state, random) || login.provider != provider {
            return Err(NoLogin::Unknown);
        }
        if !is_digest_of(own, cookie) {
            return Err(NoLogin::OtherBrowser);
        }
        let secrets = secrets.clone();
        login.step = Step::Returned;
        Ok(ReturnedLogin {
            purpose: login.purpose.clone(),
            id,
            secrets,
        })
    }

    /// The account of the person is known. Returns the content of the browser's new
    /// cookie.
    pub(crate) fn identified(
        &mut self,
        now: Instant,
        id: &PendingId,
        account: Account,
        end: Option<Timestamp>,
        entropy: &mut dyn Entropy,
    ) -> Result<String, NoLogin> {
        let login = self.parked.get_mut(id).ok_or(NoLogin::Unknown)?;
        if !matches!(login.step, Step::Returned) || login.provider != account.provider {
            return Err(NoLogin::Unknown);
        }
        let cookie = random_text(entropy);
        login.step = Step::Confirming {
            cookie: sha(&cookie),
            token: random_text(entropy),
            account: Box::new(account),
            end,
        };
        self.parked.set_deadline(id, now + STEP_TTL);
        Ok(cookie)
    }

    pub(crate) fn purpose(&self, id: &PendingId) -> Option<&LoginPurpose> {
        self.parked.get(id).map(|login| &login.purpose)
    }

    /// The page of the login, for the browser that has the cookie.
    pub(crate) fn shown(&self, id: &PendingId, cookie: &str) -> Result<Shown<'_>, NoLogin> {
        let login = self.parked.get(id).ok_or(NoLogin::Unknown)?;
        let (own, shown) = match &login.step {
            Step::Sent { .. } | Step::Returned => return Err(NoLogin::Unknown),
            Step::Confirming {
                cookie,
                token,
                account,
                ..
            } => (cookie, Shown::Confirming { token, account }),
            Step::Done {
                cookie,
                result,
                name,
            } => (cookie, Shown::Done { result, name }),
        };
        match is_digest_of(own, cookie) {
            true => Ok(shown),
            false => Err(NoLogin::OtherBrowser),
        }
    }

    /// The person decided. The login is over with this, unless [`Logins::done`] adds
    /// the result.
    pub(crate) fn decide(
        &mut self,
        id: &PendingId,
        cookie: &str,
        token: &str,
    ) -> Result<Decided, NoLogin> {
        match self.shown(id, cookie)? {
            Shown::Confirming { token: own, .. } => {
                if !bool::from(own.as_bytes().ct_eq(token.as_bytes())) {
                    return Err(NoLogin::Forged);
                }
            }
            Shown::Done { .. } => return Err(NoLogin::Unknown),
        }
        let login = self.parked.get_mut(id).ok_or(NoLogin::Unknown)?;
        let Step::Confirming {
            cookie,
            account,
            end,
            ..
        } = std::mem::replace(&mut login.step, Step::Returned)
        else {
            return Err(NoLogin::Unknown);
        };
        Ok(Decided {
            purpose: login.purpose.clone(),
            account,
            end,
            cookie,
        })
    }

    /// Keeps the result of a decision for the page of the browser.
    pub(crate) fn done(
        &mut self,
        now: Instant,
        id: &PendingId,
        decided: &Decided,
        result: LoginResult,
        name: String,
    ) {
        if let Some(login) = self.parked.get_mut(id) {
            login.step = Step::Done {
                cookie: decided.cookie,
                result,
                name,
            };
            self.parked.set_deadline(id, now + STEP_TTL);
        }
    }

    /// Ends a login.
    pub(crate) fn remove(&mut self, id: &PendingId) {
        self.parked.remove(id);
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.parked.next_deadline()
    }

    /// Forgets the next login whose time is over; whether there was one.
    pub(crate) fn forget_due(&mut self, now: Instant) -> bool {
        let due = self.parked.pop_due(now);
        if let Some(id) = &due {
            self.parked.remove(id);
        }
        due.is_some()
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.parked.iter().count()
    }
}

fn sha(text: &str) -> Sha {
    Sha256::digest(text.as_bytes()).into()
}

fn is_digest_of(digest: &Sha, text: &str) -> bool {
    sha(text).ct_eq(digest).into()
}

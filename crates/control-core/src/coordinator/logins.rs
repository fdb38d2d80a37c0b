//! Logins of people at identity providers, and the users that they make.
//!
//! A user is the pair of issuer and subject. The login name is the e-mail address if
//! the provider vouches for it, else a name that ends in `@` and the name of the
//! provider, which has no dot, so that it cannot be the address of another person. Two
//! users never share a name: the second login is refused until an administrator links
//! the account to the user who has the name.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use sha2::{Digest as _, Sha256};
use warren_control_types::UserId;
use warren_oidc::Account;
use warren_policy::Role;

use super::{Coordinator, PendingView};
use crate::error::{AdminError, LoginError};
use crate::logins::{
    BegunLogin, Decided, LoginPurpose, LoginResult, NoLogin, ReturnedLogin, Shown,
};
use crate::names::check_user_name;
use crate::parked::PendingId;
use crate::records::{AccountRecord, Change, JoinMethod, NodeRecord, UserRecord};
use crate::ssh_checks::SshCheckView;

/// The longest login name, in bytes.
const MAX_NAME: usize = 254;

/// The page of a login, for the browser that it belongs to.
#[derive(Debug)]
pub enum LoginPage {
    /// The person is asked whether to connect this.
    Confirm {
        /// The machine or session that waits.
        about: LoginSubject,
        /// The person, for the person.
        account: Box<Account>,
        /// To be sent back with the decision.
        token: String,
    },
    /// The result.
    Done {
        /// The result.
        result: LoginResult,
        /// The login name of the person.
        name: String,
    },
}

/// The thing that a login is about, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoginSubject {
    /// A machine that waits for approval.
    Machine(PendingView),
    /// A session over SSH that waits for a check.
    SshCheck(SshCheckView),
}

impl From<NoLogin> for LoginError {
    fn from(why: NoLogin) -> Self {
        match why {
            NoLogin::Unknown => Self::Unknown,
            NoLogin::OtherBrowser => Self::OtherBrowser,
            NoLogin::Forged => Self::Forged,
        }
    }
}

impl Coordinator {
    /// Begins a login at a provider.
    ///
    /// # Errors
    /// Nothing waits under that id, or there are too many logins.
    pub fn begin_login(
        &mut self,
        now: Instant,
        wall: Duration,
        purpose: LoginPurpose,
        provider: &str,
        source: Option<IpAddr>,
    ) -> Result<BegunLogin, LoginError> {
        self.advance(now, wall);
        self.subject(&purpose)?;
        let entropy = self.entropy.as_mut();
        self.logins
            .begin(now, purpose, provider, source, entropy)
            .map_err(|_full| LoginError::TooMany)
    }

    /// The browser came back from the provider with this `state`, and has this cookie.
    ///
    /// # Errors
    /// The login is not known, was used, or belongs to another browser.
    pub fn login_returned(
        &mut self,
        provider: &str,
        state: &str,
        cookie: &str,
    ) -> Result<ReturnedLogin, LoginError> {
        Ok(self.logins.returned(provider, state, cookie)?)
    }

    /// The provider confirmed who the person is. The key of a node that joins by this
    /// login ends at `end` at the latest. Returns the content of the new cookie.
    ///
    /// # Errors
    /// The time of the login is over.
    pub fn login_identified(
        &mut self,
        now: Instant,
        id: &PendingId,
        account: Account,
        end: Option<Timestamp>,
    ) -> Result<String, LoginError> {
        let entropy = self.entropy.as_mut();
        Ok(self.logins.identified(now, id, account, end, entropy)?)
    }

    /// The login failed; it cannot go on.
    pub fn login_failed(&mut self, id: &PendingId) {
        self.logins.remove(id);
    }

    /// The page of a login for the browser with this cookie.
    ///
    /// # Errors
    /// The login is not known or belongs to another browser, or nothing waits any more.
    pub fn login_page(&self, id: &PendingId, cookie: &str) -> Result<LoginPage, LoginError> {
        let purpose = self.logins.purpose(id).ok_or(LoginError::Unknown)?;
        match self.logins.shown(id, cookie)? {
            Shown::Done { result, name } => Ok(LoginPage::Done {
                result: result.clone(),
                name: name.to_owned(),
            }),
            Shown::Confirming { token, account } => Ok(LoginPage::Confirm {
                about: self.subject(purpose)?,
                account: Box::new(account.clone()),
                token: token.to_owned(),
            }),
        }
    }

    /// The person decided about the login.
    ///
    /// # Errors
    /// The login is not known, belongs to another browser, or the token is wrong; then
    /// nothing changed. Or the machine or session cannot be let in, and the login is
    /// over.
    pub fn decide_login(
        &mut self,
        now: Instant,
        wall: Duration,
        id: &PendingId,
        cookie: &str,
        token: &str,
        connect: bool,
    ) -> Result<LoginResult, LoginError> {
        self.advance(now, wall);
        let decided = self.logins.decide(id, cookie, token)?;
        let outcome = self.carry_out_login(now, &decided, connect);
        match outcome {
            Ok((result, name)) => {
                self.logins.done(now, id, &decided, result.clone(), name);
                Ok(result)
            }
            Err(error) => {
                self.logins.remove(id);
                Err(error)
            }
        }
    }

    fn carry_out_login(
        &mut self,
        now: Instant,
        decided: &Decided,
        connect: bool,
    ) -> Result<(LoginResult, String), LoginError> {
        if !connect {
            return Ok((LoginResult::Declined, String::new()));
        }
        self.subject(&decided.purpose)?;
        let user = self.user_of(&decided.account)?;
        let name = self.view.person(user).login_name;
        match &decided.purpose {
            LoginPurpose::Machine(waiting) => {
                let none = BTreeSet::new();
                let node =
                    self.admit_waiting(waiting, user, none, JoinMethod::Login, decided.end)?;
                Ok((LoginResult::Connected(node), name))
            }
            LoginPurpose::SshCheck(waiting) => {
                let check = self.ssh_checks.waiting().find(|check| check.id == *waiting);
                let source = check.and_then(|check| self.view.node(check.source));
                let owner = source.filter(|node| !node.is_tagged());
                if owner.and_then(|node: &NodeRecord| node.user) != Some(user) {
                    return Err(LoginError::NotTheOwner);
                }
                self.approve_ssh_check(now, waiting)?;
                Ok((LoginResult::SessionLetIn, name))
            }
        }
    }

    /// The machine or session that a login is about, for people.
    ///
    /// # Errors
    /// Nothing does.
    pub fn login_subject(&self, purpose: &LoginPurpose) -> Result<LoginSubject, LoginError> {
        self.subject(purpose)
    }

    fn subject(&self, purpose: &LoginPurpose) -> Result<LoginSubject, LoginError> {
        match purpose {
            LoginPurpose::Machine(id) => {
                let waiting = self.waiting(id);
                waiting
                    .map(LoginSubject::Machine)
                    .ok_or(LoginError::NoMachine)
            }
            LoginPurpose::SshCheck(id) => {
                let mut waiting = self.ssh_checks.waiting();
                let found = waiting.find(|check| check.id == *id);
                found
                    .map(LoginSubject::SshCheck)
                    .ok_or(LoginError::NoSession)
            }
        }
    }

    /// The user of an account, made or brought up to date.
    fn user_of(&mut self, account: &Account) -> Result<UserId, LoginError> {
        let time = self.clock.latest();
        let record = AccountRecord {
            provider: account.provider.clone(),
            issuer: account.issuer.clone(),
            subject: account.subject.clone(),
            email: account.email.clone(),
            username: account.username.clone(),
            display_name: account.display_name.clone(),
            picture: account.picture.clone(),
            groups: account.groups.clone(),
            last_login: Some(time),
        };
        let directory = &self.view.directory;
        let known = directory.user_of_account(&account.issuer, &account.subject);
        let is_free = |name: &str| {
            let mut others = directory.users_named(name);
            others.all(|other| known.is_some_and(|known| known.id == other.id))
        };
        let wished = login_name(&record);
        let user = match known {
            Some(known) => {
                // A name that the administrator chose stays, and so does the old one
                // where the new one belongs to another user.
                let was_made = known.account.as_ref().is_some_and(|old| {
                    old.last_login.is_some() && login_name(old).eq_ignore_ascii_case(&known.name)
                });
                let mut user = known.clone();
                if was_made && is_free(&wished) && record.email.is_some() {
                    user.name = wished;
                }
                user.account = Some(Box::new(record));
                user
            }
            None => {
                let name = if is_free(&wished) {
                    wished
                } else if record.email.is_none() && is_free(&name_of_subject(&record)) {
                    name_of_subject(&record)
                } else {
                    return Err(LoginError::NameTaken {
                        name: wished,
                        issuer: record.issuer,
                        subject: record.subject,
                    });
                };
                UserRecord {
                    id: self.take_user_id(),
                    name,
                    created: time,
                    role: Role::Member,
                    account: Some(Box::new(record)),
                }
            }
        };
        let id = user.id;
        self.commit(Change::User(user), true);
        for node in self.view.directory.nodes_of_user(id) {
            self.approve_by_policy(node);
        }
        Ok(id)
    }

    /// Forgets logins whose time is over.
    pub(super) fn forget_logins(&mut self, now: Instant) {
        while self.logins.forget_due(now) {}
    }
}

/// The login name of an account.
fn login_name(account: &AccountRecord) -> String {
    let email = account.email.as_deref();
    if let Some(email) = email.filter(|email| check_user_name(email).is_ok()) {
        return email.to_owned();
    }
    match &account.username {
        Some(username) => name_at_provider(&username.to_lowercase(), &account.provider),
        None => name_of_subject(account),
    }
}

fn name_of_subject(account: &AccountRecord) -> String {
    name_at_provider(&account.subject, &account.provider)
}

/// `text@provider`. Characters that a login name cannot have, `@`, and capitals, which
/// login names do not distinguish, become `+` and their bytes in hexadecimal digits, so
/// that two texts never give one name.
fn name_at_provider(text: &str, provider: &str) -> String {
    let mut name = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte) {
            name.push(char::from(byte));
        } else {
            let _ = write!(name, "+{byte:02x}");
        }
    }
    if name.len() + 1 + provider.len() > MAX_NAME {
        name = data_encoding::HEXLOWER.encode(&Sha256::digest(text.as_bytes()));
    }
    format!("{name}@{provider}")
}

impl From<AdminError> for LoginError {
    fn from(error: AdminError) -> Self {
        match error {
            AdminError::NoPending(_) => Self::NoMachine,
            AdminError::NoSshCheck(_) => Self::NoSession,
            other => Self::Refused(other.to_string()),
        }
    }
}

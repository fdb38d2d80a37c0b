//! The login in force, and the new one that may be under way beside it.
//!
//! ```text
//!               ┌──────────── login ─────────────┐    ┌───────── candidate ─────────┐
//!  LoggedOut    │ Idle ──▶ Active  ──▶ Ended     │    │ None ──▶ Saving ──▶ Active  │
//!      ▲        │            │ Connecting         │    │   ▲                   │     │
//!      │        │            │ NeedsUser          │    │   └── refused ────────┘     │
//!      └────────│            │ Running            │◀───│── registered                │
//!   logout,     │            │ Unknown            │    │ Dormant (kept on disk only) │
//!   reset-auth  └────────────────────────────────┘    └─────────────────────────────┘
//! ```
//!
//! A new login is a candidate with a node key of its own. Until the server has
//! answered it with a registration, the login from before stays in force, in
//! memory and on disk: a wrong auth key, a server that is down, or a person who
//! never approves leave a node that works as it did. Only a logout and
//! `reset-auth` end a login earlier.
//!
//! The candidate's key is on disk before the server learns it. If the answer to
//! the registration is lost (a crash, a broken connection), the server may have
//! replaced the old key by it. So a candidate that was found on disk is *dormant*
//! and is tried when the server does not accept the login any more.
//!
//! A key that the server may have is never given up before the server has accepted
//! another one: a login that fails without a clear refusal leaves its key dormant, and
//! the next login uses that key again. If the server has it, it answers at once.
//!
//! An auth key makes the server accept the node key that it comes with, in place of the
//! one it had. So only one session at a time carries one: the candidate's if there is one.

mod candidate;
mod events;
mod login;
mod problems;
mod session;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use warren_control_client::{
    ControlSession, Description, Input as ControlInput, SessionConfig, logout_request,
};
use warren_control_types::MapResponse;
use warren_keys::{Entropy, NodeSecret};
use warren_lock::{LockSecret, WrappedAuthKey};

use self::candidate::{AfterSave, Candidate, CandidateKey};
use self::login::Login;
use self::session::{Session, Stage};
use super::io::{Account, NodeOutput, Notice, SaveId, SessionId, StoredLogin};

/// The time after a start with an auth key in which a wish to log in means that
/// key.
const GIVEN_KEY_LIFETIME: Duration = Duration::from_secs(10);

/// Something for the node to do.
pub(super) enum Effect {
    /// Something for the runtime.
    Output(NodeOutput),
    /// Another key is in force.
    KeyReplaced,
    /// A map stream begins: the next message replaces the netmap.
    StreamBegins,
    /// The map stream ended.
    Disconnected,
    /// A message of the map stream.
    Map(Box<MapResponse>),
}

/// All logins of a node.
pub(super) struct Logins {
    login: Login,
    candidate: Candidate,
    /// The last thing that failed, for the list of problems.
    error: Option<String>,
    /// The auth key of the last start, and its time.
    given_key: Option<(Instant, String)>,
    description: Description,
    /// Whether the server is to remove the node when it is gone.
    ephemeral: bool,
    /// The node's own key for tailnet lock.
    lock_key: LockSecret,
    last_id: u64,
    entropy: Box<dyn Entropy>,
    effects: VecDeque<Effect>,
}

impl Logins {
    pub(super) fn new(stored: StoredLogin, ephemeral: bool, mut entropy: Box<dyn Entropy>) -> Self {
        Self {
            login: stored.account.map_or(Login::LoggedOut, Login::Idle),
            candidate: Self::found(stored.candidate),
            error: None,
            given_key: None,
            description: Description::default(),
            ephemeral,
            lock_key: stored
                .lock_key
                .unwrap_or_else(|| LockSecret::generate(&mut *entropy)),
            last_id: 0,
            entropy,
            effects: VecDeque::new(),
        }
    }

    /// The candidate of a run before.
    fn found(key: Option<NodeSecret>) -> Candidate {
        key.map_or(Candidate::None, |key| {
            Candidate::Dormant(CandidateKey::found(key))
        })
    }

    // ---- views ----

    /// The node's own key for tailnet lock.
    pub(super) fn lock_key(&self) -> &LockSecret {
        &self.lock_key
    }

    /// The session of the login in force.
    pub(super) fn session_id(&self) -> Option<SessionId> {
        self.login.session().map(|session| session.id)
    }

    /// The login in force.
    pub(super) fn account(&self) -> Option<&Account> {
        self.login.account()
    }

    pub(super) fn stored(&self) -> StoredLogin {
        StoredLogin {
            account: self.account().cloned(),
            candidate: self.candidate.key().cloned(),
            lock_key: Some(self.lock_key.clone()),
            refused_locks: Vec::new(),
            autosign_tags: Default::default(),
        }
    }

    /// Whether the node cannot work before a person or an auth key logs it in.
    pub(super) fn needs_login(&self) -> bool {
        match &self.login {
            Login::LoggedOut | Login::Ended { .. } => true,
            Login::Idle(_) => self.candidate.session().is_some_and(Session::needs_user),
            Login::Active(_, session) => session.needs_user(),
        }
    }

    /// The address that a person should open; empty when there is none.
    pub(super) fn auth_url(&self) -> &str {
        let sessions = [self.candidate.session(), self.login.session()];
        let mut sessions = sessions.into_iter().flatten();
        sessions.find_map(Session::url).unwrap_or_default()
    }

    /// Whether the map stream is open.
    pub(super) fn is_connected(&self) -> bool {
        self.login.session().is_some_and(Session::is_running)
    }

    /// Whether a session with the server exists, for the login in force.
    pub(super) fn has_session(&self) -> bool {
        self.login.session().is_some()
    }

    // ---- requests of the node and its user ----

    /// Records that a message of the server cannot be used.
    pub(super) fn note_trouble(&mut self, trouble: String) {
        if let Some(session) = self.login.session_mut() {
            session.trouble = Some(trouble);
        }
    }

    /// This machine changed.
    pub(super) fn describe(&mut self, now: Instant, description: Description) {
        if self.description == description {
            return;
        }
        self.description = description;
        let sessions = [self.login.session_mut(), self.candidate.open_session_mut()];
        for session in sessions.into_iter().flatten() {
            session.describe(now, &self.description, &mut *self.entropy);
        }
        self.drain(now);
    }

    /// Opens a session for what is stored: the login, or else the candidate that a
    /// run before left.
    pub(super) fn connect(&mut self, now: Instant, auth_key: Option<String>) {
        self.error = None;
        let stage = match self.login.session() {
            // A person with an address at hand is not given another state for a
            // new connection.
            Some(session) if session.needs_user() => session.stage.clone(),
            _ => Stage::Connecting,
        };
        let (account, session) = self.login.take().into_parts();
        if let Some(session) = session {
            self.close(&session);
        }
        match account {
            None => self.try_dormant_candidate(),
            Some(account) => {
                let old_key = account.old_node_key.as_ref();
                let mut session = self.open(&account.node_key, old_key, auth_key);
                session.stage = stage;
                self.login = Login::Active(account, session);
            }
        }
        self.drain(now);
    }

    /// Opens the session of the login once more, over a new connection.
    pub(super) fn reconnect(&mut self, now: Instant) {
        let auth_key = self.login.session().and_then(Session::auth_key);
        let auth_key = auth_key.map(str::to_owned);
        let error = self.error.take();
        self.connect(now, auth_key);
        self.error = error;
    }

    /// Starts with an auth key, or with the stored login.
    pub(super) fn start(
        &mut self,
        now: Instant,
        force_login: bool,
        auth_key: Option<String>,
        spare_key: &NodeSecret,
    ) {
        self.given_key = None;
        if force_login {
            self.log_in(now, auth_key, spare_key);
            return;
        }
        self.given_key = auth_key.clone().map(|key| (now, key));
        if self.account().is_some() {
            let is_beside = self.candidate.is_under_way();
            self.connect(now, auth_key.filter(|_| !is_beside));
        } else if auth_key.is_some() {
            self.log_in(now, auth_key, spare_key);
        }
    }

    /// Logs in as the user wishes: with the key of a start just before (the
    /// official command line sends both, one after the other), or interactively.
    pub(super) fn log_in_interactively(&mut self, now: Instant, spare_key: &NodeSecret) {
        let given = self.given_key.take();
        let is_fresh = |at: Instant| now.saturating_duration_since(at) < GIVEN_KEY_LIFETIME;
        let auth_key = given.filter(|(at, _)| is_fresh(*at)).map(|(_, key)| key);
        self.log_in(now, auth_key, spare_key);
    }

    /// Begins a new login, beside the one in force, with the key of the candidate that
    /// exists. `spare_key` is the key to use when there is neither.
    fn log_in(&mut self, now: Instant, auth_key: Option<String>, spare_key: &NodeSecret) {
        self.error = None;
        self.rest_candidate();
        if self.login.session().is_some_and(Session::needs_user) {
            // The server keeps one login of a machine waiting, not two.
            self.disconnect_login();
        } else if self.login.session().and_then(Session::auth_key).is_some() {
            self.connect(now, None);
        }
        let key = match (self.candidate.take(), &self.login) {
            (Candidate::Dormant(key), _) => key,
            (_, Login::LoggedOut) => CandidateKey::fresh(spare_key.clone()),
            (_, Login::Idle(_) | Login::Active(..) | Login::Ended { .. }) => {
                CandidateKey::generate(&mut *self.entropy)
            }
        };
        self.save_candidate(key, AfterSave::Register(auth_key));
        self.drain(now);
    }

    /// Ends all sessions; the files on disk stay.
    pub(super) fn disconnect(&mut self) {
        self.disconnect_login();
        self.rest_candidate();
    }

    /// Forgets all logins. `notify_server`: the server should forget them too, also a new
    /// one that it may have accepted.
    pub(super) fn forget(&mut self, notify_server: bool) {
        self.disconnect();
        let keys = [
            self.account().map(|account| account.node_key.public()),
            self.candidate.known_key().map(NodeSecret::public),
        ];
        for key in keys.into_iter().flatten().filter(|_| notify_server) {
            let request = logout_request(key, self.description.hostinfo.clone());
            self.output(NodeOutput::Unregister(Box::new(request)));
        }
        self.login = Login::LoggedOut;
        self.candidate = Candidate::None;
        // The next login may be that of another user.
        self.lock_key = LockSecret::generate(&mut *self.entropy);
        self.error = None;
        self.given_key = None;
        self.save();
    }

    /// Uses another stored login. It is on disk already.
    pub(super) fn replace(&mut self, stored: StoredLogin) {
        self.disconnect();
        self.login = stored.account.map_or(Login::LoggedOut, Login::Idle);
        self.candidate = Self::found(stored.candidate);
        self.lock_key = stored
            .lock_key
            .unwrap_or_else(|| LockSecret::generate(&mut *self.entropy));
        self.error = None;
        self.given_key = None;
    }

    /// A login was written to disk, or not.
    pub(super) fn saved(&mut self, now: Instant, id: SaveId, result: Result<(), String>) {
        if let Err(error) = &result {
            self.error = Some(error.clone());
        }
        let Some((key, then)) = self.candidate.take_saved(id) else {
            return;
        };
        match (result, then) {
            // A key that is not on disk must not be used.
            (Err(_), AfterSave::Register(_)) => self.keep_if_known(key),
            (Err(why), AfterSave::Continue(session)) => {
                self.close(&session);
                self.keep_if_known(key);
                self.end_login(why);
            }
            (Ok(()), AfterSave::Register(auth_key)) => self.register_candidate(key, auth_key),
            (Ok(()), AfterSave::Continue(mut session)) => {
                let given_key = session.auth_key().map(str::to_owned);
                let input = ControlInput::FreshKey {
                    node_key_signature: signed_by_auth_key(given_key, &key.secret).1,
                    node_key: key.secret.public(),
                    old_node_key: self.account().map(|account| account.node_key.public()),
                };
                session.handle(now, input, &mut *self.entropy);
                self.candidate = Candidate::Active(key, session);
            }
        }
        self.drain(now);
    }

    // ---- sessions ----

    /// The result of a request, or a message of the map stream. Those of sessions
    /// that have ended are ignored.
    pub(super) fn handle_control(&mut self, now: Instant, id: SessionId, input: ControlInput) {
        let sessions = [self.login.session_mut(), self.candidate.session_mut()];
        let session = sessions
            .into_iter()
            .flatten()
            .find(|session| session.id == id);
        if let Some(session) = session {
            session.handle(now, input, &mut *self.entropy);
        }
        self.drain(now);
    }

    pub(super) fn next_deadline(&self) -> Option<(Instant, &'static str)> {
        let sessions = [self.login.session(), self.candidate.session()];
        let deadlines = sessions
            .into_iter()
            .flatten()
            .filter_map(Session::next_deadline);
        deadlines.min_by_key(|(at, _)| *at)
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        let sessions = [self.login.session_mut(), self.candidate.session_mut()];
        for session in sessions.into_iter().flatten() {
            session.handle_timeout(now);
        }
        self.drain(now);
    }

    pub(super) fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    fn open(
        &mut self,
        key: &NodeSecret,
        old_key: Option<&NodeSecret>,
        auth_key: Option<String>,
    ) -> Box<Session> {
        let id = SessionId(self.next_id());
        self.output(NodeOutput::OpenSession(id));
        let given_key = auth_key.clone();
        let (auth_key, node_key_signature) = signed_by_auth_key(auth_key, key);
        let control = ControlSession::new(SessionConfig {
            node_key: key.public(),
            old_node_key: old_key.map(NodeSecret::public),
            auth_key,
            lock_key: Some(self.lock_key.public()),
            node_key_signature,
            ephemeral: self.ephemeral,
            description: self.description.clone(),
        });
        Box::new(Session::new(id, control, given_key))
    }

    fn close(&mut self, session: &Session) {
        self.output(NodeOutput::CloseSession(session.id));
        if session.is_running() {
            self.effects.push_back(Effect::Disconnected);
        }
    }

    // ---- steps that requests and events share ----

    fn disconnect_login(&mut self) {
        match self.login.take() {
            Login::Active(account, session) => {
                self.close(&session);
                self.login = Login::Idle(account);
            }
            other => self.login = other,
        }
    }

    fn end_login(&mut self, why: String) {
        if let Some(account) = self.account().cloned() {
            self.login = Login::Ended { account, why };
        }
    }

    fn save_candidate(&mut self, key: CandidateKey, then: AfterSave) {
        let save = SaveId(self.next_id());
        self.candidate = Candidate::Saving { key, save, then };
        self.output(NodeOutput::SaveLogin(save));
    }

    fn register_candidate(&mut self, key: CandidateKey, auth_key: Option<String>) {
        let old_key = self.account().map(|account| account.node_key.clone());
        let session = self.open(&key.secret, old_key.as_ref(), auth_key);
        self.candidate = Candidate::Active(key, session);
    }

    /// Ends the session of the candidate. Its key is dormant then: an answer to the
    /// registration may be on its way.
    fn rest_candidate(&mut self) {
        self.candidate.may_be_known();
        let (key, session) = self.candidate.take().into_parts();
        if let Some(session) = session {
            self.close(&session);
        }
        self.candidate = key.map_or(Candidate::None, Candidate::Dormant);
    }

    /// Ends the candidate, which failed.
    fn give_up_candidate(&mut self) {
        let (key, session) = self.candidate.take().into_parts();
        if let Some(session) = session {
            self.close(&session);
        }
        if let Some(key) = key {
            self.keep_if_known(key);
        }
        self.save();
    }

    fn keep_if_known(&mut self, key: CandidateKey) {
        if key.may_be_known {
            self.candidate = Candidate::Dormant(key);
        }
    }

    /// Tries the candidate that a login before left, if there is one.
    fn try_dormant_candidate(&mut self) {
        match self.candidate.take() {
            Candidate::Dormant(key) => self.register_candidate(key, None),
            other => self.candidate = other,
        }
    }

    /// Writes the logins to disk.
    pub(super) fn save(&mut self) {
        let id = SaveId(self.next_id());
        self.output(NodeOutput::SaveLogin(id));
    }

    fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    fn output(&mut self, output: NodeOutput) {
        self.effects.push_back(Effect::Output(output));
    }

    fn notice(&mut self, notice: Notice) {
        self.output(NodeOutput::Notice(notice));
    }
}

/// The auth key for the server, and the signature of the node key if the auth key
/// carries a credential of tailnet lock.
fn signed_by_auth_key(auth_key: Option<String>, key: &NodeSecret) -> (Option<String>, Vec<u8>) {
    let Some(wrapped) = auth_key.as_deref().and_then(WrappedAuthKey::parse) else {
        return (auth_key, Vec::new());
    };
    match wrapped
        .credential
        .by_credential(key.public(), &wrapped.delegate)
    {
        Ok(signature) => (Some(wrapped.auth_key), signature.encode()),
        // The server says what is wrong with it.
        Err(_) => (auth_key, Vec::new()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use warren_lock::{
        Authority, Checkpoint, DisablementValue, Meta, NodeKeySignature, StateId, TrustedKey,
    };

    use super::*;

    #[test]
    fn auth_key_with_a_credential_signs_the_node_key() {
        let (trusted, delegate) = (
            LockSecret::from_seed(&[1; 32]),
            LockSecret::from_seed(&[2; 32]),
        );
        let key = NodeSecret::from_bytes(&[3; 32]);
        let wrapped = WrappedAuthKey {
            auth_key: "tskey-auth-x".to_owned(),
            credential: NodeKeySignature::credential(delegate.public(), &trusted),
            delegate,
        };
        let (auth_key, signature) = signed_by_auth_key(Some(wrapped.to_text().to_string()), &key);
        assert_eq!(auth_key.as_deref(), Some("tskey-auth-x"));
        let keys = vec![TrustedKey::new(trusted.public(), 1, Meta::default()).unwrap()];
        let values = vec![DisablementValue::from_bytes([1; 32])];
        let checkpoint = Checkpoint::new(keys, values, StateId(1, 2)).unwrap();
        let (authority, _) = Authority::create(checkpoint, &trusted, 0).unwrap();
        assert!(authority.authorize(key.public(), &signature).is_ok());

        for plain in [
            None,
            Some("tskey-auth-x".to_owned()),
            Some("a--TLb-c".to_owned()),
        ] {
            let (auth_key, signature) = signed_by_auth_key(plain.clone(), &key);
            assert_eq!((auth_key, signature), (plain, Vec::new()));
        }
    }
}

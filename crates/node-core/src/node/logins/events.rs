//! Events of the sessions with the server: registrations, refusals, keys that
//! expired, and the map stream.

use std::time::Instant;

use warren_control_client::{Event, Input, Output as ControlOutput};
use warren_control_types::UserProfile;
use warren_keys::NodePublic;
use warren_lock::NodeKeySignature;

use super::candidate::{AfterSave, Candidate, CandidateKey};
use super::login::Login;
use super::problems;
use super::session::{Session, Stage};
use super::{Effect, Logins};
use crate::node::io::{Account, NodeOutput, Notice, SessionId};

const KEY_EXPIRED: &str = "the coordination server says that this login has expired; log in again with `warren up --force-reauth`";

/// The login that a session belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Login,
    Candidate,
}

impl Logins {
    /// Passes on the outputs of the sessions until they have none.
    pub(super) fn drain(&mut self, now: Instant) {
        while let Some((id, output)) = self.poll_sessions() {
            match output {
                ControlOutput::Request(request) => {
                    self.output(NodeOutput::Control(id, request));
                }
                ControlOutput::Event(event) => self.on_event(now, id, event),
            }
        }
    }

    fn poll_sessions(&mut self) -> Option<(SessionId, ControlOutput)> {
        let sessions = [self.login.session_mut(), self.candidate.session_mut()];
        sessions
            .into_iter()
            .flatten()
            .find_map(|session| Some((session.id, session.poll_output()?)))
    }

    /// The session with that number, while it goes on.
    pub(super) fn session_mut(&mut self, id: SessionId) -> Option<&mut Session> {
        let sessions = [self.login.session_mut(), self.candidate.session_mut()];
        sessions
            .into_iter()
            .flatten()
            .find(|session| session.id == id)
    }

    fn role(&self, id: SessionId) -> Role {
        match self.login.session() {
            Some(session) if session.id == id => Role::Login,
            _ => Role::Candidate,
        }
    }

    fn on_event(&mut self, now: Instant, id: SessionId, event: Event) {
        let role = self.role(id);
        let has_candidate = self.candidate.exists();
        if role == Role::Candidate && !matches!(event, Event::Refused { .. }) {
            self.candidate.may_be_known();
        }
        let Some(session) = self.session_mut(id) else {
            return;
        };
        match (role, event) {
            (
                _,
                Event::C2n {
                    id: number,
                    request,
                },
            ) => self.output(NodeOutput::C2n {
                session: id,
                id: number,
                request,
            }),
            (_, Event::Map(message)) => self.effects.push_back(Effect::Map(message)),
            (_, Event::StreamBegins) => {
                session.stage = Stage::Running;
                session.trouble = None;
                self.effects.push_back(Effect::StreamBegins);
            }
            (_, Event::Trouble(why)) => {
                if session.is_running() {
                    session.stage = Stage::Connecting;
                }
                session.trouble = Some(why);
                self.effects.push_back(Effect::Disconnected);
            }
            (Role::Login, Event::AuthUrl(_)) if has_candidate => {
                // The server does not accept the login. A candidate is the way
                // on; a dormant one may have the key that the server knows.
                self.disconnect_login();
                self.try_dormant_candidate();
            }
            (_, Event::AuthUrl(url)) => {
                session.trouble = None;
                session.stage = Stage::NeedsUser { url: url.clone() };
                self.notice(Notice::BrowseTo(url));
            }
            (Role::Login, Event::Registered(profile)) => {
                if let Login::Active(account, _) = &mut self.login {
                    account.user_profile = *profile;
                }
                self.login_finished();
            }
            (Role::Candidate, Event::Registered(profile)) => self.accept_candidate(*profile),
            (Role::Login, Event::FreshKeyWanted) => self.rotate_key(),
            (Role::Candidate, Event::FreshKeyWanted) => self.replace_candidate_key(),
            (_, Event::SignatureWanted { node_key, before }) => {
                self.sign_node_key(now, id, node_key, &before);
            }
            (_, Event::KeyExpired) => self.key_expired(role),
            (_, Event::Refused { reason, over }) => self.refused(now, role, reason, over),
            (Role::Login, Event::Unknown(why)) => {
                self.unknown(&why);
                self.try_dormant_candidate();
            }
            // Only a registered session opens a stream, and that is the login's.
            (Role::Candidate, Event::Unknown(_)) => {}
        }
    }

    /// Answers the server with a signature of the new node key that rests on the one of
    /// the key before it.
    fn sign_node_key(&mut self, now: Instant, id: SessionId, node_key: NodePublic, before: &[u8]) {
        // A signature that cannot be read cannot be rotated; the session ends then.
        let signature = NodeKeySignature::decode(before)
            .map(|before| before.rotated(node_key, &self.lock_key).encode())
            .unwrap_or_default();
        self.handle_control(now, id, Input::Signature(signature));
    }

    fn login_finished(&mut self) {
        self.error = None;
        self.save();
        self.notice(Notice::LoginFinished);
    }

    /// The server accepted the new login: from here on it is the one in force.
    fn accept_candidate(&mut self, user_profile: UserProfile) {
        let (node_key, mut session) = match self.candidate.take() {
            Candidate::Active(key, session) => (key.secret, session),
            other => return self.candidate = other,
        };
        let (before, old_session) = self.login.take().into_parts();
        if let Some(old_session) = old_session {
            self.close(&old_session);
        }
        let account = Account {
            node_key,
            old_node_key: before.map(|account| account.node_key),
            user_profile,
            node_id: Default::default(),
        };
        session.stage = Stage::Connecting;
        self.login = Login::Active(account, session);
        self.effects.push_back(Effect::KeyReplaced);
        self.login_finished();
    }

    /// The server wants another key for the login. The login goes on, without a
    /// session, while the candidate registers.
    fn rotate_key(&mut self) {
        let (account, session) = match self.login.take() {
            Login::Active(account, session) => (account, session),
            other => return self.login = other,
        };
        let key = match self.candidate.take() {
            Candidate::None => CandidateKey::generate(&mut *self.entropy),
            // It may be the key that the server knows.
            Candidate::Dormant(key) => key,
            // A new login is under way already.
            under_way @ (Candidate::Saving { .. } | Candidate::Active(..)) => {
                self.candidate = under_way;
                self.close(&session);
                let why = KEY_EXPIRED.to_owned();
                self.login = Login::Ended { account, why };
                return;
            }
        };
        self.login = Login::Idle(account);
        self.save_candidate(key, AfterSave::Continue(session));
    }

    /// The server wants another key for the new login, because the one it was sent has
    /// expired. Only a key that it has can expire: unless the login in force works, that
    /// key has replaced the login's, and does so here too.
    fn replace_candidate_key(&mut self) {
        let (key, session) = match self.candidate.take() {
            Candidate::Active(key, session) => (key, session),
            other => return self.candidate = other,
        };
        if !self.is_connected()
            && let Some(before) = self.account().cloned()
        {
            self.disconnect_login();
            self.login = Login::Idle(Account {
                node_key: key.secret,
                old_node_key: Some(before.node_key),
                ..before
            });
            self.effects.push_back(Effect::KeyReplaced);
        }
        let fresh = CandidateKey::generate(&mut *self.entropy);
        self.save_candidate(fresh, AfterSave::Continue(session));
    }

    fn key_expired(&mut self, role: Role) {
        self.effects.push_back(Effect::Disconnected);
        match role {
            Role::Login => self.disconnect_login(),
            Role::Candidate => self.give_up_candidate(),
        }
        if matches!(self.login, Login::Idle(_)) {
            self.end_login(KEY_EXPIRED.to_owned());
        } else {
            self.error = Some(KEY_EXPIRED.to_owned());
        }
    }

    fn refused(&mut self, now: Instant, role: Role, reason: String, over: bool) {
        // A refusal that is repeated is reported once.
        if over || self.error.as_ref() != Some(&reason) {
            self.notice(Notice::Error(reason.clone()));
        }
        match role {
            Role::Login => {
                self.effects.push_back(Effect::Disconnected);
                if over {
                    let session = self.login.session();
                    let had_key = session.is_some_and(|session| session.auth_key().is_some());
                    self.disconnect_login();
                    // The login may be good without the key.
                    if had_key {
                        self.connect(now, None);
                    }
                }
            }
            Role::Candidate => {
                let is_beside = self.login.session().is_some();
                if over || is_beside {
                    self.give_up_candidate();
                    if matches!(self.login, Login::Idle(_)) {
                        self.connect(now, None);
                    }
                }
            }
        }
        self.error = Some(reason);
    }

    fn unknown(&mut self, reason: &str) {
        let stage = Stage::Unknown {
            why: problems::unknown(reason),
        };
        self.effects.push_back(Effect::Disconnected);
        let Some(session) = self.login.session_mut() else {
            return;
        };
        session.trouble = None;
        if session.stage != stage {
            session.stage = stage;
            self.notice(Notice::Health);
        }
    }
}

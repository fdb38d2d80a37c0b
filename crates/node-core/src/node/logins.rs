//! The login in force, and the new one that may be under way beside it.
//!
//! ```text
//!               ┌──────────── login ─────────────┐    ┌───────── candidate ─────────┐
//!  LoggedOut    │ Idle ──▶ Talking ──▶ Ended     │    │ None ──▶ Saving ──▶ Talking │
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

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use warren_control_client::{
    ControlSession, Description, Event, Input as ControlInput, Output as ControlOutput,
    SessionConfig, logout_request,
};
use warren_control_types::{MapResponse, UserProfile};
use warren_keys::{Entropy, NodeSecret};

use super::io::{Account, NodeOutput, Notice, SaveId, SessionId, StoredLogin};

/// The time after a start with an auth key in which a wish to log in means that
/// key.
const GIVEN_KEY_LIFETIME: Duration = Duration::from_secs(10);

const LOGIN_WANTED: &str = "the coordination server wants this machine to log in: open the address, or `warren up --auth-key KEY`";
const KEY_EXPIRED: &str = "the coordination server says that this login has expired; log in again with `warren up --force-reauth`";

/// A session with the server, and what came of it so far.
struct Talk {
    id: SessionId,
    session: ControlSession,
    stage: Stage,
    /// The reason why the server cannot be reached, until it is.
    trouble: Option<String>,
}

/// How far a session has come.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Stage {
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

/// The login in force.
enum Login {
    /// There is none.
    LoggedOut,
    /// There is one, and no session with the server.
    Idle(Account),
    /// The server is talked to.
    Talking(Account, Box<Talk>),
    /// Only a new login helps, for this reason.
    Ended { account: Account, why: String },
}

/// The new login beside it.
enum Candidate {
    /// There is none.
    None,
    /// It is on disk and nothing is under way.
    Dormant(NodeSecret),
    /// Its key is being written to disk.
    Saving {
        key: NodeSecret,
        save: SaveId,
        then: AfterSave,
    },
    /// The server is talked to.
    Talking(NodeSecret, Box<Talk>),
}

/// What follows when a candidate's key is on disk.
enum AfterSave {
    /// A registration with this auth key.
    Register(Option<String>),
    /// A session that asked for a fresh key goes on with it.
    GoOn(Box<Talk>),
}

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
    last_id: u64,
    entropy: Box<dyn Entropy>,
    effects: VecDeque<Effect>,
}

impl Logins {
    pub(super) fn new(stored: StoredLogin, entropy: Box<dyn Entropy>) -> Self {
        Self {
            login: stored.account.map_or(Login::LoggedOut, Login::Idle),
            candidate: stored.candidate.map_or(Candidate::None, Candidate::Dormant),
            error: None,
            given_key: None,
            description: Description::default(),
            last_id: 0,
            entropy,
            effects: VecDeque::new(),
        }
    }

    // ---- views ----

    /// The login in force.
    pub(super) fn account(&self) -> Option<&Account> {
        match &self.login {
            Login::LoggedOut => None,
            Login::Idle(account) | Login::Talking(account, _) | Login::Ended { account, .. } => {
                Some(account)
            }
        }
    }

    pub(super) fn stored(&self) -> StoredLogin {
        StoredLogin {
            account: self.account().cloned(),
            candidate: match &self.candidate {
                Candidate::None => None,
                Candidate::Dormant(key)
                | Candidate::Saving { key, .. }
                | Candidate::Talking(key, _) => Some(key.clone()),
            },
        }
    }

    fn talk(&self) -> Option<&Talk> {
        match &self.login {
            Login::Talking(_, talk) => Some(talk),
            Login::LoggedOut | Login::Idle(_) | Login::Ended { .. } => None,
        }
    }

    fn candidate_talk(&self) -> Option<&Talk> {
        match &self.candidate {
            Candidate::Talking(_, talk) => Some(talk),
            Candidate::None | Candidate::Dormant(_) | Candidate::Saving { .. } => None,
        }
    }

    /// Whether the node cannot work before a person or an auth key logs it in.
    pub(super) fn needs_login(&self) -> bool {
        match &self.login {
            Login::LoggedOut | Login::Ended { .. } => true,
            Login::Idle(_) => self.candidate_talk().is_some_and(Talk::needs_user),
            Login::Talking(_, talk) => talk.needs_user(),
        }
    }

    /// The address that a person should open; empty when there is none.
    pub(super) fn auth_url(&self) -> &str {
        let talks = [self.candidate_talk(), self.talk()];
        let urls = talks.into_iter().flatten().filter_map(Talk::url);
        urls.into_iter().next().unwrap_or_default()
    }

    /// Whether the map stream is open.
    pub(super) fn is_connected(&self) -> bool {
        self.talk().is_some_and(|talk| talk.stage == Stage::Running)
    }

    /// Whether there is a session with the server, for the login in force.
    pub(super) fn is_talking(&self) -> bool {
        self.talk().is_some()
    }

    /// What is wrong, for the user; `wants_running`: whether the node should be
    /// connected.
    pub(super) fn problems(&self, wants_running: bool) -> Vec<String> {
        let mut problems: Vec<String> = self.error.iter().cloned().collect();
        if !wants_running {
            return problems;
        }
        match &self.login {
            Login::Ended { why, .. } => problems.push(why.clone()),
            Login::Talking(_, talk) => match &talk.stage {
                Stage::NeedsUser { .. } => problems.push(LOGIN_WANTED.to_owned()),
                Stage::Unknown { why } => problems.push(why.clone()),
                Stage::Connecting | Stage::Running => {}
            },
            Login::LoggedOut | Login::Idle(_) => {
                if self.candidate_talk().is_some_and(Talk::needs_user) {
                    problems.push(LOGIN_WANTED.to_owned());
                }
            }
        }
        let talks = [self.talk(), self.candidate_talk()];
        let mut troubles = talks
            .into_iter()
            .flatten()
            .filter_map(|talk| talk.trouble.as_ref());
        if let Some(trouble) = troubles.next() {
            problems.push(format!(
                "no connection to the coordination server: {trouble}"
            ));
        }
        problems
    }

    // ---- requests of the node and its user ----

    /// Records what went wrong with the server's messages.
    pub(super) fn note_trouble(&mut self, trouble: String) {
        if let Login::Talking(_, talk) = &mut self.login {
            talk.trouble = Some(trouble);
        }
    }

    /// This machine changed.
    pub(super) fn describe(&mut self, now: Instant, description: Description) {
        if self.description == description {
            return;
        }
        self.description = description.clone();
        let login = match &mut self.login {
            Login::Talking(_, talk) => Some(talk),
            Login::LoggedOut | Login::Idle(_) | Login::Ended { .. } => None,
        };
        let candidate = match &mut self.candidate {
            Candidate::Talking(_, talk)
            | Candidate::Saving {
                then: AfterSave::GoOn(talk),
                ..
            } => Some(talk),
            Candidate::None | Candidate::Dormant(_) | Candidate::Saving { .. } => None,
        };
        for talk in [login, candidate].into_iter().flatten() {
            let input = ControlInput::Description(Box::new(description.clone()));
            talk.session.handle(now, input, &mut *self.entropy);
        }
        self.drain(now);
    }

    /// Talks to the server about what is stored: the login, or else the candidate
    /// that a run before left.
    pub(super) fn connect(&mut self, now: Instant, auth_key: Option<String>) {
        self.error = None;
        let stage = match self.talk() {
            // A person with an address at hand is not given another state for a
            // new connection.
            Some(talk) if talk.needs_user() => talk.stage.clone(),
            _ => Stage::Connecting,
        };
        match std::mem::replace(&mut self.login, Login::LoggedOut) {
            Login::LoggedOut => self.wake_candidate(),
            Login::Idle(account) | Login::Ended { account, .. } => {
                self.talk_about(account, stage, auth_key);
            }
            Login::Talking(account, talk) => {
                self.close(&talk);
                self.talk_about(account, stage, auth_key);
            }
        }
        self.drain(now);
    }

    /// The same again, over a new connection.
    pub(super) fn reconnect(&mut self, now: Instant) {
        let auth_key = self.talk().and_then(|talk| talk.session.auth_key());
        let auth_key = auth_key.map(str::to_owned);
        let error = self.error.take();
        self.connect(now, auth_key);
        self.error = error;
    }

    fn talk_about(&mut self, account: Account, stage: Stage, auth_key: Option<String>) {
        let old_key = account.old_node_key.as_ref();
        let mut talk = self.open(&account.node_key, old_key, auth_key);
        talk.stage = stage;
        self.login = Login::Talking(account, talk);
    }

    /// Starts with an auth key, or with what is there.
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
            self.connect(now, auth_key);
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

    /// Begins a new login, beside the one in force. `spare_key` is a key that is
    /// used when there is none in force.
    fn log_in(&mut self, now: Instant, auth_key: Option<String>, spare_key: &NodeSecret) {
        self.error = None;
        self.end_candidate();
        if self.talk().is_some_and(Talk::needs_user) {
            // The server keeps one login of a machine waiting, not two.
            self.disconnect_login();
        }
        let key = match self.login {
            Login::LoggedOut => spare_key.clone(),
            Login::Idle(_) | Login::Talking(..) | Login::Ended { .. } => {
                NodeSecret::generate(&mut self.entropy)
            }
        };
        self.save_candidate(key, AfterSave::Register(auth_key));
        self.drain(now);
    }

    /// Ends all sessions; what is on disk stays.
    pub(super) fn disconnect(&mut self) {
        self.disconnect_login();
        if let Some(key) = self.end_candidate() {
            self.candidate = Candidate::Dormant(key);
        }
    }

    /// Forgets all logins. `tell_server`: the server should forget them too.
    pub(super) fn forget(&mut self, tell_server: bool) {
        if let Some(account) = self.account().filter(|_| tell_server) {
            let hostinfo = self.description.hostinfo.clone();
            let request = logout_request(account.node_key.public(), hostinfo);
            self.output(NodeOutput::Unregister(Box::new(request)));
        }
        self.disconnect();
        self.login = Login::LoggedOut;
        self.candidate = Candidate::None;
        self.error = None;
        self.given_key = None;
        self.save();
    }

    /// A login was written to disk, or not.
    pub(super) fn saved(&mut self, now: Instant, id: SaveId, result: Result<(), String>) {
        if let Err(error) = &result {
            self.error = Some(error.clone());
        }
        let waits = matches!(&self.candidate, Candidate::Saving { save, .. } if *save == id);
        if !waits {
            return;
        }
        let Candidate::Saving { key, then, .. } =
            std::mem::replace(&mut self.candidate, Candidate::None)
        else {
            return;
        };
        match (result, then) {
            // A key that is not on disk must not be used.
            (Err(_), AfterSave::Register(_)) => {}
            (Err(why), AfterSave::GoOn(talk)) => {
                self.close(&talk);
                self.end_login(why);
            }
            (Ok(()), AfterSave::Register(auth_key)) => self.talk_about_candidate(key, auth_key),
            (Ok(()), AfterSave::GoOn(mut talk)) => {
                let input = ControlInput::FreshKey {
                    node_key: key.public(),
                    old_node_key: self.account().map(|account| account.node_key.public()),
                };
                talk.session.handle(now, input, &mut *self.entropy);
                self.candidate = Candidate::Talking(key, talk);
            }
        }
        self.drain(now);
    }

    // ---- candidates ----

    fn save_candidate(&mut self, key: NodeSecret, then: AfterSave) {
        let save = SaveId(self.next_id());
        self.candidate = Candidate::Saving { key, save, then };
        self.output(NodeOutput::SaveLogin(save));
    }

    fn talk_about_candidate(&mut self, key: NodeSecret, auth_key: Option<String>) {
        let old_key = self.account().map(|account| account.node_key.clone());
        let talk = self.open(&key, old_key.as_ref(), auth_key);
        self.candidate = Candidate::Talking(key, talk);
    }

    /// Ends the candidate, and returns its key if it may be known to the server.
    fn end_candidate(&mut self) -> Option<NodeSecret> {
        match std::mem::replace(&mut self.candidate, Candidate::None) {
            Candidate::None => None,
            Candidate::Dormant(key) => Some(key),
            Candidate::Saving { key, then, .. } => {
                if let AfterSave::GoOn(talk) = then {
                    self.close(&talk);
                }
                Some(key)
            }
            Candidate::Talking(key, talk) => {
                self.close(&talk);
                Some(key)
            }
        }
    }

    /// Tries the candidate that a run before left, if there is one.
    fn wake_candidate(&mut self) {
        match std::mem::replace(&mut self.candidate, Candidate::None) {
            Candidate::Dormant(key) => self.talk_about_candidate(key, None),
            other => self.candidate = other,
        }
    }

    fn end_login(&mut self, why: String) {
        if let Some(account) = self.account().cloned() {
            self.login = Login::Ended { account, why };
        }
    }

    // ---- sessions ----

    fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    fn save(&mut self) {
        let id = SaveId(self.next_id());
        self.output(NodeOutput::SaveLogin(id));
    }

    fn output(&mut self, output: NodeOutput) {
        self.effects.push_back(Effect::Output(output));
    }

    fn notice(&mut self, notice: Notice) {
        self.output(NodeOutput::Notice(notice));
    }

    fn open(
        &mut self,
        key: &NodeSecret,
        old_key: Option<&NodeSecret>,
        auth_key: Option<String>,
    ) -> Box<Talk> {
        let id = SessionId(self.next_id());
        self.output(NodeOutput::OpenSession(id));
        let session = ControlSession::new(SessionConfig {
            node_key: key.public(),
            old_node_key: old_key.map(NodeSecret::public),
            auth_key,
            ephemeral: false,
            description: self.description.clone(),
        });
        Box::new(Talk {
            id,
            session,
            stage: Stage::Connecting,
            trouble: None,
        })
    }

    fn close(&mut self, talk: &Talk) {
        self.output(NodeOutput::CloseSession(talk.id));
        if talk.stage == Stage::Running {
            self.effects.push_back(Effect::Disconnected);
        }
    }

    /// The result of a request, or a message of the map stream. Those of sessions
    /// that have ended are ignored.
    pub(super) fn handle_control(&mut self, now: Instant, id: SessionId, input: ControlInput) {
        if let Some((_, talk)) = find(&mut self.login, &mut self.candidate, id) {
            talk.session.handle(now, input, &mut *self.entropy);
        }
        self.drain(now);
    }

    pub(super) fn next_deadline(&self) -> Option<(Instant, &'static str)> {
        let talks = [self.talk(), self.candidate_talk()];
        let deadlines = talks.into_iter().flatten();
        deadlines
            .filter_map(|talk| talk.session.next_deadline())
            .map(|(at, reason)| (at, reason.as_str()))
            .min_by_key(|(at, _)| *at)
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        if let Login::Talking(_, talk) = &mut self.login {
            talk.session.handle_timeout(now);
        }
        if let Candidate::Talking(_, talk) = &mut self.candidate {
            talk.session.handle_timeout(now);
        }
        self.drain(now);
    }

    pub(super) fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// Passes on what the sessions say until they say nothing more.
    fn drain(&mut self, now: Instant) {
        loop {
            let ids = [self.talk(), self.candidate_talk()];
            let ids = ids.map(|talk| talk.map(|talk| talk.id));
            let mut next = None;
            for id in ids.into_iter().flatten() {
                let Some((_, talk)) = find(&mut self.login, &mut self.candidate, id) else {
                    continue;
                };
                if let Some(output) = talk.session.poll_output() {
                    next = Some((id, output));
                    break;
                }
            }
            match next {
                None => return,
                Some((id, ControlOutput::Request(request))) => {
                    self.output(NodeOutput::Control(id, request));
                }
                Some((id, ControlOutput::Event(event))) => self.on_event(now, id, event),
            }
        }
    }

    // ---- events ----

    fn on_event(&mut self, now: Instant, id: SessionId, event: Event) {
        let has_candidate = !matches!(self.candidate, Candidate::None);
        let Some((role, talk)) = find(&mut self.login, &mut self.candidate, id) else {
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
                talk.stage = Stage::Running;
                talk.trouble = None;
                self.effects.push_back(Effect::StreamBegins);
            }
            (_, Event::Trouble(why)) => {
                if talk.stage == Stage::Running {
                    talk.stage = Stage::Connecting;
                }
                talk.trouble = Some(why);
                self.effects.push_back(Effect::Disconnected);
            }
            (Role::Login, Event::AuthUrl(_)) if has_candidate => {
                // The server does not accept the login. A candidate is the way
                // on; that of a run before may be what the server knows.
                self.disconnect_login();
                self.wake_candidate();
            }
            (_, Event::AuthUrl(url)) => {
                talk.trouble = None;
                talk.stage = Stage::NeedsUser { url: url.clone() };
                self.notice(Notice::BrowseTo(url));
            }
            (Role::Login, Event::Registered(profile)) => {
                if let Login::Talking(account, _) = &mut self.login {
                    account.user_profile = *profile;
                }
                self.login_finished();
            }
            (Role::Candidate, Event::Registered(profile)) => self.accept_candidate(*profile),
            (Role::Login, Event::FreshKeyWanted) => self.rotate_key(),
            (Role::Candidate, Event::FreshKeyWanted) => self.replace_candidate_key(),
            (_, Event::KeyExpired) => self.key_expired(role),
            (_, Event::Refused { reason, over }) => self.refused(now, role, reason, over),
            (Role::Login, Event::Unknown(why)) => {
                self.unknown(&why);
                self.wake_candidate();
            }
            // Only a registered session opens a stream, and that is the login's.
            (Role::Candidate, Event::Unknown(_)) => {}
        }
    }

    fn login_finished(&mut self) {
        self.error = None;
        self.save();
        self.notice(Notice::LoginFinished);
    }

    /// The server accepted the new login: from here on it is the one in force.
    fn accept_candidate(&mut self, user_profile: UserProfile) {
        let candidate = std::mem::replace(&mut self.candidate, Candidate::None);
        let Candidate::Talking(node_key, talk) = candidate else {
            self.candidate = candidate;
            return;
        };
        let before = std::mem::replace(&mut self.login, Login::LoggedOut);
        let old_node_key = match before {
            Login::LoggedOut => None,
            Login::Idle(account) | Login::Ended { account, .. } => Some(account.node_key),
            Login::Talking(account, old_talk) => {
                self.close(&old_talk);
                Some(account.node_key)
            }
        };
        let account = Account {
            node_key,
            old_node_key,
            user_profile,
            node_id: Default::default(),
        };
        self.login = Login::Talking(account, talk);
        if let Login::Talking(_, talk) = &mut self.login {
            talk.stage = Stage::Connecting;
        }
        self.effects.push_back(Effect::KeyReplaced);
        self.login_finished();
    }

    /// The server wants another key for the login. The login goes on, without a
    /// session, while the candidate registers.
    fn rotate_key(&mut self) {
        let Login::Talking(account, talk) = std::mem::replace(&mut self.login, Login::LoggedOut)
        else {
            return;
        };
        let key = match std::mem::replace(&mut self.candidate, Candidate::None) {
            Candidate::None => NodeSecret::generate(&mut self.entropy),
            // It may be the key that the server knows.
            Candidate::Dormant(key) => key,
            // A new login is under way already.
            active @ (Candidate::Saving { .. } | Candidate::Talking(..)) => {
                self.candidate = active;
                self.close(&talk);
                let why = KEY_EXPIRED.to_owned();
                self.login = Login::Ended { account, why };
                return;
            }
        };
        self.login = Login::Idle(account);
        self.save_candidate(key, AfterSave::GoOn(talk));
    }

    fn replace_candidate_key(&mut self) {
        let candidate = std::mem::replace(&mut self.candidate, Candidate::None);
        let Candidate::Talking(_, talk) = candidate else {
            self.candidate = candidate;
            return;
        };
        let key = NodeSecret::generate(&mut self.entropy);
        self.save_candidate(key, AfterSave::GoOn(talk));
    }

    fn key_expired(&mut self, role: Role) {
        self.effects.push_back(Effect::Disconnected);
        match role {
            Role::Login => self.disconnect_login(),
            Role::Candidate => {
                self.end_candidate();
                self.save();
            }
        }
        if matches!(self.login, Login::Idle(_)) {
            self.end_login(KEY_EXPIRED.to_owned());
        } else {
            self.error = Some(KEY_EXPIRED.to_owned());
        }
    }

    fn disconnect_login(&mut self) {
        match std::mem::replace(&mut self.login, Login::LoggedOut) {
            Login::Talking(account, talk) => {
                self.close(&talk);
                self.login = Login::Idle(account);
            }
            other => self.login = other,
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
                    let had_key = self
                        .talk()
                        .is_some_and(|talk| talk.session.auth_key().is_some());
                    self.disconnect_login();
                    // The login may be good without the key.
                    if had_key {
                        self.connect(now, None);
                    }
                }
            }
            Role::Candidate => {
                let is_beside = matches!(self.login, Login::Talking(..));
                if over || is_beside {
                    self.end_candidate();
                    self.save();
                    if matches!(self.login, Login::Idle(_)) {
                        self.connect(now, None);
                    }
                }
            }
        }
        self.error = Some(reason);
    }

    fn unknown(&mut self, why: &str) {
        let why = why.trim().trim_end_matches('.');
        let why = if why.is_empty() {
            "node not found"
        } else {
            why
        };
        let why = format!(
            "the coordination server does not know this machine any more ({why}); was it deleted there? Join again with `warren up --force-reauth`, with --auth-key KEY if you have one"
        );
        self.effects.push_back(Effect::Disconnected);
        let Login::Talking(_, talk) = &mut self.login else {
            return;
        };
        talk.trouble = None;
        let stage = Stage::Unknown { why };
        if talk.stage != stage {
            talk.stage = stage;
            self.notice(Notice::Health);
        }
    }
}

/// What a session is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Login,
    Candidate,
}

/// The session with that number, while it goes on.
fn find<'a>(
    login: &'a mut Login,
    candidate: &'a mut Candidate,
    id: SessionId,
) -> Option<(Role, &'a mut Talk)> {
    if let Login::Talking(_, talk) = login
        && talk.id == id
    {
        return Some((Role::Login, talk));
    }
    match candidate {
        Candidate::Talking(_, talk) if talk.id == id => Some((Role::Candidate, talk)),
        _ => None,
    }
}

impl Talk {
    fn url(&self) -> Option<&str> {
        match &self.stage {
            Stage::NeedsUser { url } => Some(url),
            Stage::Connecting | Stage::Running | Stage::Unknown { .. } => None,
        }
    }

    fn needs_user(&self) -> bool {
        self.url().is_some()
    }
}

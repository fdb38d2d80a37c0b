//! The login: starting a session with the coordination server, what it says,
//! and giving the login up again.

use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use warren_control_types::PingRequest;
use warren_keys::{DiscoSecret, NodeSecret};
use warren_node_core::{Engine, EngineConfig};

use super::EngineTask;
use crate::daemon::control_session::{ControlEvent, ControlSession, SessionConfig, log_out};
use crate::daemon::entropy::SystemEntropy;
use crate::daemon::state::Login;
use crate::localapi::error::{ApiError, Reply};
use crate::localapi::notify::Empty;
use crate::localapi::prefs::Options;

/// How long after a `start` with an auth key a wish to log in means that key.
const GIVEN_KEY_LIFETIME: Duration = Duration::from_secs(10);

impl EngineTask {
    /// Starts talking to the server, with what is stored and this key.
    pub(super) fn connect(&mut self, auth_key: Option<String>) {
        self.pending_key.clone_from(&auth_key);
        let server = match self.state.prefs.control_url.parse() {
            Ok(server) => server,
            Err(error) => {
                self.error = format!(
                    "the address of the coordination server, {:?}, makes no sense: {error}",
                    self.state.prefs.control_url
                );
                self.settle();
                return;
            }
        };
        let (node_key, old_node_key) = match &self.state.login {
            Some(login) => (login.node_key.clone(), login.old_node_key.clone()),
            None => (self.candidate_key.clone(), self.replaced_key.clone()),
        };
        let config = SessionConfig {
            server,
            machine_key: self.state.machine_key.clone(),
            node_key,
            old_node_key,
            auth_key,
            ephemeral: false,
        };
        self.error.clear();
        self.trouble = None;
        self.refresh_description();
        self.epoch += 1;
        self.stream_stands = false;
        self.session = Some(ControlSession::start(
            self.epoch,
            config,
            self.dialer.clone(),
            self.description.subscribe(),
            self.inbox.clone(),
        ));
        self.settle();
    }

    pub(super) fn control(&mut self, now: Instant, wall: Duration, event: ControlEvent) {
        match event {
            ControlEvent::AuthUrl(url) => {
                self.auth_url = url.clone();
                let wanted = "the coordination server wants this machine to log in: open the address, or `warren up --auth-key KEY`";
                self.needs_login = Some(wanted.to_owned());
                self.notify(|notify| notify.browse_to_url = Some(url));
                self.settle();
            }
            ControlEvent::Registered {
                node_key,
                old_node_key,
                user_profile,
            } => {
                self.registered(now, node_key, old_node_key, user_profile);
            }
            ControlEvent::KeyExpired => self.login_ended(
                "the coordination server says that this login has expired; log in again with `warren up --force-reauth`".to_owned(),
            ),
            ControlEvent::Unknown(why) => {
                let why = why.trim().trim_end_matches('.');
                let why = if why.is_empty() { "node not found" } else { why };
                self.forgotten_there(format!(
                    "the coordination server does not know this machine any more ({why}); was it deleted there? Join again with `warren up --force-reauth`, with --auth-key KEY if you have one"
                ));
            }
            ControlEvent::StreamBegins => {
                self.trouble = None;
                self.needs_login = None;
                self.forgotten_there = None;
                self.stream_stands = true;
                self.engine.set_control_connected(true);
                self.engine.begin_map_stream();
            }
            ControlEvent::Map(message) => {
                self.netmap_is_cached = false;
                match self.engine.apply_map(now, wall, *message) {
                    Ok(notices) => {
                        if let Some(request) = notices.ping_request {
                            self.answer_server(request);
                        }
                        if let Some(url) = notices.pop_browser_url {
                            self.notify(|notify| notify.browse_to_url = Some(url));
                        }
                    }
                    Err(error) => self.trouble = Some(error.to_string()),
                }
            }
            ControlEvent::Refused { reason, over } => {
                if over {
                    self.session = None;
                    if self.state.login.is_some() {
                        let what = "log in again with `warren up --force-reauth`, or with another --auth-key";
                        self.needs_login.get_or_insert_with(|| what.to_owned());
                    }
                }
                // Where it is asked again, once said is enough.
                if over || self.error != reason {
                    tracing::warn!(reason, "the coordination server refused");
                    self.error = reason.clone();
                    self.notify(|notify| notify.err_message = Some(reason));
                }
                self.stream_stands = false;
                self.engine.set_control_connected(false);
                self.settle();
            }
            ControlEvent::Trouble(what) => {
                self.stream_stands = false;
                self.engine.set_control_connected(false);
                if self.trouble.as_ref() != Some(&what) {
                    tracing::info!(what, "coordination server");
                }
                self.trouble = Some(what);
            }
        }
    }

    /// The server says that it does not have us. Perhaps an administrator
    /// deleted the node; perhaps the server lost its memory, and then the
    /// network must not end with it: the node goes on as it does while the
    /// server is away, asks again, and says what is wrong.
    fn forgotten_there(&mut self, why: String) {
        self.stream_stands = false;
        self.engine.set_control_connected(false);
        self.trouble = None;
        if self.forgotten_there.as_ref() != Some(&why) {
            tracing::warn!("{why}");
            self.forgotten_there = Some(why);
            let health = serde_json::json!({ "Warnings": self.health() });
            self.notify(|notify| notify.health = Some(health));
        }
    }

    /// Without a new login there is nothing to be had from the server.
    fn login_ended(&mut self, why: String) {
        if self.needs_login.as_ref() != Some(&why) {
            tracing::warn!("{why}");
        }
        self.stream_stands = false;
        self.engine.set_control_connected(false);
        self.trouble = None;
        self.needs_login = Some(why);
        self.settle();
    }

    pub(super) fn answer_server(&mut self, request: PingRequest) {
        if request.url.is_empty() || request.url == self.last_server_ping {
            return;
        }
        self.last_server_ping = request.url.clone();
        if let Some(session) = &self.session {
            session.answer_ping(request);
        }
    }

    pub(super) fn registered(
        &mut self,
        now: Instant,
        node_key: NodeSecret,
        old_node_key: Option<NodeSecret>,
        user_profile: warren_control_types::UserProfile,
    ) {
        if node_key.public() != self.engine.node_key() {
            self.replace_engine(now, &node_key);
        }
        let node_id = self.state.login.as_ref().map(|login| login.node_id.clone());
        self.state.login = Some(Login {
            node_key,
            old_node_key,
            user_profile,
            node_id: node_id.unwrap_or_default(),
        });
        self.state.prefs.logged_out = false;
        self.needs_login = None;
        self.forgotten_there = None;
        self.pending_key = None;
        self.replaced_key = None;
        self.error.clear();
        if let Err(error) = self.save_state() {
            // Running on is better than stopping; the next start needs a login.
            self.error = error.to_string();
            tracing::error!("{error}");
        }
        self.auth_url.clear();
        self.notify(|notify| notify.login_finished = Some(Empty {}));
        self.settle();
    }

    /// Another node key is another node: everything is learnt anew.
    pub(super) fn replace_engine(&mut self, now: Instant, node_key: &NodeSecret) {
        let config = EngineConfig {
            node_key: node_key.clone(),
            disco_key: DiscoSecret::generate(&mut SystemEntropy),
            flow_slots: None,
            aead: self.engine.aead(),
        };
        let entropy = || Box::new(SystemEntropy);
        self.engine = Engine::new(config, now, entropy(), entropy(), entropy());
        self.resume_clock();
        self.relays.set_node_key(node_key.clone());
        self.host_ready = false;
        self.engine.set_paused(now, !self.is_engaged());
        self.tell_link(now);
        self.apply_prefs(now);
    }

    /// Starts with these preferences, and with a new login if that is wanted.
    pub(in crate::daemon) fn start(&mut self, options: Options) -> Reply<()> {
        let before = self.state.prefs.clone();
        if let Some(prefs) = options.update_prefs {
            self.state.prefs = prefs;
        }
        self.state.prefs.logged_out = false;
        if let Err(error) = self.save_state() {
            self.state.prefs = before;
            return Err(error);
        }
        self.apply_prefs(Instant::now());
        let auth_key = Some(options.auth_key).filter(|key| !key.is_empty());
        self.given_key = None;
        if options.force_login {
            self.log_in_anew(auth_key)?;
        } else if auth_key.is_some() || self.state.login.is_some() {
            self.state.prefs.want_running = true;
            self.given_key = auth_key.clone().map(|key| (Instant::now(), key));
            self.connect(auth_key);
        } else {
            self.settle();
        }
        self.refresh_host();
        let shown = self.prefs();
        self.notify(|notify| notify.prefs = Some(Box::new(shown)));
        Ok(())
    }

    /// Lets a person log in, or the key that came with a `start` just before:
    /// other people's command lines ask for both, one after the other.
    pub(in crate::daemon) fn login_interactive(&mut self) -> Reply<()> {
        let given = self.given_key.take();
        let fresh = given.filter(|(at, _)| at.elapsed() < GIVEN_KEY_LIFETIME);
        self.log_in_anew(fresh.map(|(_, key)| key))
    }

    /// Registers with a new node key, so that the server decides anew. The old
    /// login is over from here on.
    fn log_in_anew(&mut self, auth_key: Option<String>) -> Reply<()> {
        if self.state.prefs.control_url.is_empty() {
            return Err(ApiError::Refused(
                "no coordination server is chosen; give one with --login-server".to_owned(),
            ));
        }
        // On disk first: what cannot be kept must not end what works.
        let before = (self.state.login.clone(), self.state.prefs.want_running);
        self.state.prefs.want_running = true;
        self.state.login = None;
        if let Err(error) = self.save_state() {
            (self.state.login, self.state.prefs.want_running) = before;
            return Err(error);
        }
        // Its last words are not for the new login, nor is its netmap.
        self.session = None;
        self.forget_netmap();
        if let Some(login) = before.0 {
            self.replaced_key = Some(login.node_key);
            self.candidate_key = NodeSecret::generate(&mut SystemEntropy);
            let key = self.candidate_key.clone();
            self.replace_engine(Instant::now(), &key);
        }
        self.auth_url.clear();
        self.needs_login = None;
        self.forgotten_there = None;
        self.connect(auth_key);
        Ok(())
    }

    /// Gives up the login, at the server and here.
    pub(in crate::daemon) fn logout(&mut self, reason: &str, reply: oneshot::Sender<Reply<()>>) {
        tracing::info!(reason, "logging out");
        let config = self.state.login.as_ref().and_then(|login| {
            Some(SessionConfig {
                server: self.state.prefs.control_url.parse().ok()?,
                machine_key: self.state.machine_key.clone(),
                node_key: login.node_key.clone(),
                old_node_key: None,
                auth_key: None,
                ephemeral: false,
            })
        });
        let forgotten = self.reset_auth();
        let (dialer, hostinfo) = (
            self.dialer.clone(),
            self.description.borrow().hostinfo.clone(),
        );
        tokio::spawn(async move {
            let told = match config {
                None => Ok(()),
                Some(config) => log_out(config, dialer, hostinfo).await.map_err(|error| {
                    ApiError::Failed(format!(
                        "logged out here, but the coordination server could not be told: {error}"
                    ))
                }),
            };
            drop(reply.send(forgotten.and(told)));
        });
    }

    /// Forgets the login here.
    pub(in crate::daemon) fn reset_auth(&mut self) -> Reply<()> {
        self.session = None;
        self.needs_login = None;
        self.forgotten_there = None;
        self.pending_key = None;
        self.given_key = None;
        self.replaced_key = None;
        self.error.clear();
        self.state.login = None;
        self.state.prefs.want_running = false;
        self.state.prefs.logged_out = true;
        self.forget_netmap();
        self.auth_url.clear();
        self.candidate_key = NodeSecret::generate(&mut SystemEntropy);
        let key = self.candidate_key.clone();
        self.replace_engine(Instant::now(), &key);
        self.relays.close_all();
        self.settle();
        self.refresh_host();
        let shown = self.prefs();
        self.notify(|notify| notify.prefs = Some(Box::new(shown)));
        self.save_state()
    }
}
